//! Streams, events and graphs: work that has been handed over.

use crate::codes;
use crate::world::{Function, Res, World};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// One piece of work. Addresses of the host are numbers: whoever handed them over keeps them valid.
#[derive(Clone)]
pub(crate) enum Work {
    Launch {
        function: Rc<Function>,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: Vec<u8>,
    },
    /// Pageable memory: its bytes were taken when the copy was handed over.
    Upload {
        to: u64,
        bytes: Vec<u8>,
    },
    LateUpload {
        to: u64,
        from: usize,
        len: usize,
    },
    Download {
        from: u64,
        to: usize,
        len: usize,
    },
    Copy {
        from: u64,
        to: u64,
        len: usize,
    },
    Fill {
        to: u64,
        value: u8,
        len: usize,
    },
    Record {
        event: usize,
        number: u64,
    },
    Wait {
        event: usize,
        number: u64,
    },
}

#[derive(Default)]
pub(crate) struct Stream {
    pub work: VecDeque<Work>,
    /// Work goes into a graph instead.
    pub capture: Option<Vec<Node>>,
}

#[derive(Default)]
pub(crate) struct Event {
    pub stream: usize,
    /// Times that it was recorded, and that recordings are done.
    pub recorded: u64,
    pub done: u64,
    pub at: Option<Duration>,
}

/// What a graph does at each launch.
#[derive(Clone)]
pub(crate) enum Node {
    Work(Work),
    /// Records an event anew.
    Record(usize),
}

/// A captured graph, or one that can be launched.
#[derive(Clone, Default)]
pub(crate) struct Graph {
    pub nodes: Vec<Node>,
    pub launchable: bool,
    /// Device memory that it takes.
    pub bytes: u64,
}

/// Device memory for each node of a graph that can be launched, and for an event.
pub(crate) const BYTES_OF_NODE: u64 = 512;
pub(crate) const BYTES_OF_EVENT: u64 = 32;

impl World {
    /// Hands work to a stream; 0 is the one that is always there.
    pub fn hand(&mut self, stream: usize, work: Work) -> Res<()> {
        let s = match stream {
            0 => self.streams.entry(0).or_default(),
            _ => self.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?,
        };
        match &mut s.capture {
            Some(capture) => capture.push(Node::Work(work)),
            None => s.work.push_back(work),
        }
        Ok(())
    }

    pub fn is_capturing(&self, stream: usize) -> bool {
        self.streams.get(&stream).is_some_and(|s| s.capture.is_some())
    }

    /// Waits for a stream.
    pub fn wait_for(&mut self, stream: usize) -> Res<()> {
        if stream != 0 && !self.streams.contains_key(&stream) {
            return Err(codes::INVALID_HANDLE);
        }
        if self.is_capturing(stream) {
            return Err(codes::CAPTURE_UNSUPPORTED);
        }
        self.drain(stream, usize::MAX)
    }

    /// Waits for everything, which no stream may be capturing then.
    pub fn wait_for_all(&mut self) -> Res<()> {
        if self.streams.values().any(|s| s.capture.is_some()) {
            return Err(codes::CAPTURE_UNSUPPORTED);
        }
        self.drain_all()
    }

    pub fn record(&mut self, event: usize, stream: usize) -> Res<()> {
        let e = self.events.get_mut(&event).ok_or(codes::INVALID_HANDLE)?;
        e.recorded += 1;
        e.stream = stream;
        let number = e.recorded;
        self.hand(stream, Work::Record { event, number })
    }

    /// Has the graph that a stream captures record an event at each launch.
    pub fn record_in_graph(&mut self, event: usize, stream: usize) -> Res<()> {
        if !self.events.contains_key(&event) {
            return Err(codes::INVALID_HANDLE);
        }
        let capture = self.streams.get_mut(&stream).and_then(|s| s.capture.as_mut());
        capture.ok_or(codes::INVALID_VALUE)?.push(Node::Record(event));
        Ok(())
    }
}
