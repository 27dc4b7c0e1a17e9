//! What a queue has recorded: an executable graph, with events between its kernels if they are to be timed.

use super::super::Recording;
use super::Driver;
use super::api::Failure;
use cudarc::driver::sys as cu;
use std::any::Any;
use std::sync::Arc;

/// A recording in progress.
pub(super) struct Record {
    /// Kernels and origins.
    pub kernels: Vec<(usize, usize)>,
    pub clock: Option<Clock>,
}

/// Events that a graph records at each of its launches.
pub(super) struct Clock {
    driver: Arc<Driver>,
    events: Vec<cu::CUevent>,
    /// By kernel, which event is the one behind it; the one before it has the number before.
    ends: Vec<usize>,
    /// Nothing was recorded since the last event.
    fresh: bool,
}

impl Clock {
    pub fn new(driver: Arc<Driver>) -> Clock {
        Clock { driver, events: Vec::new(), ends: Vec::new(), fresh: false }
    }

    /// Records an event, as part of the graph that this stream captures.
    fn tick(&mut self, stream: cu::CUstream) -> Result<(), Failure> {
        let (timed, mut event) = (cu::CUevent_flags::CU_EVENT_DEFAULT as u32, std::ptr::null_mut());
        let external = cu::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32;
        // SAFETY: writes the handle, which is destroyed with `self`, after the graph; the stream is the caller's and
        // captures.
        unsafe {
            self.driver.api.event_create(&mut event, timed)?;
            self.events.push(event);
            self.driver.api.event_record_with_flags(event, stream, external)
        }
    }

    /// Before a kernel.
    pub fn begin(&mut self, stream: cu::CUstream) -> Result<(), Failure> {
        if self.fresh { Ok(()) } else { self.tick(stream) }
    }

    /// Behind a kernel.
    pub fn end(&mut self, stream: cu::CUstream) -> Result<(), Failure> {
        self.ends.push(self.events.len());
        self.fresh = true;
        self.tick(stream)
    }

    /// Before other work, whose time is no kernel's.
    pub fn pass(&mut self, _: cu::CUstream) -> Result<(), Failure> {
        self.fresh = false;
        Ok(())
    }

    /// The events before and behind each kernel.
    pub fn kernels(&self) -> impl Iterator<Item = [cu::CUevent; 2]> {
        self.ends.iter().map(|&e| [self.events[e - 1], self.events[e]])
    }

    /// The events before the first kernel and behind the last one.
    pub fn whole(&self) -> Option<[cu::CUevent; 2]> {
        Some([*self.events.first()?, *self.events.last()?])
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if self.driver.enter().is_ok() {
            for &e in &self.events {
                // SAFETY: made by `tick`; the graph that records it is gone.
                let _ = unsafe { self.driver.api.event_destroy(e) };
            }
        }
    }
}

/// An instantiated graph.
pub(super) struct Graph {
    pub driver: Arc<Driver>,
    pub exec: cu::CUgraphExec,
    pub kernels: Vec<(usize, usize)>,
    pub clock: Option<Clock>,
    pub bytes: usize,
}

// SAFETY: handles of the driver.
unsafe impl Send for Graph {}

impl Recording for Graph {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.driver.enter().is_ok() {
            // SAFETY: ours; whoever replayed it has waited, or the driver does.
            let _ = unsafe { self.driver.api.graph_exec_destroy(self.exec) };
        }
    }
}
