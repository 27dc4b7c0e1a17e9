//! A stream of one caller, with the status word that its kernels write to.

use super::super::{Addr, CallerStream, IndexFailure, Launch, Memory, Queue, Recording, Times};
use super::api::Failure;
use super::graph::{Clock, Graph, Record};
use super::memory::{DeviceMemory, PinnedMemory};
use super::{CudaCode, Entry, is_sticky};
use crate::error::{DeviceError, Result, RunError};
use cudarc::driver::sys as cu;
use format::abi::KernelStatus;
use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

const LANES: u32 = 32;
const NOT_READY: u32 = 600;
/// Blocks per multiprocessor beyond which warps take several iterations instead.
const BLOCKS_PER_UNIT: u64 = 16;
/// Scratch memory of a grid stays below this where fewer blocks can do the work.
const SCRATCH_BYTES: u64 = 256 << 20;
/// Pending kernels that an error message names.
const NAMED: usize = 8;
const STATUS: usize = size_of::<KernelStatus>();

pub(super) struct CudaQueue {
    // fields are dropped in this order: the stream first, which waits
    stream: Stream,
    timers: [cu::CUevent; 2],
    mark: cu::CUevent,
    inner: RefCell<Inner>,
    /// The kernels' status word, and what it said at the last wait.
    status: DeviceMemory,
    seen: PinnedMemory,
    /// Where kernels read the values of symbols, by number: what changes there changes for what has been recorded too.
    sizes: DeviceMemory,
    code: Arc<CudaCode>,
}

// SAFETY: handles of the driver, which any thread may use; a queue is used by one at a time.
unsafe impl Send for CudaQueue {}

#[derive(Default)]
struct Inner {
    scratch: Option<DeviceMemory>,
    /// Scratch memory that has become too small; recordings may use it. Each is half of the next one at most.
    outgrown: Vec<DeviceMemory>,
    /// Kernels and origins handed over since the last wait.
    pending: Vec<(usize, usize)>,
    /// The last one known to be done.
    done: Option<(usize, usize)>,
    /// What [`CudaQueue::sizes`] holds.
    sizes: Vec<i64>,
    /// Values of the parameters, and their addresses.
    values: Vec<u64>,
    params: Vec<*mut c_void>,
    launches: u64,
    /// Something may have written to the status word since the last wait.
    dirty: bool,
    recording: Option<Record>,
}

struct Stream {
    code: Arc<CudaCode>,
    handle: cu::CUstream,
    /// Made by us, and not the caller's.
    ours: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let driver = &self.code.driver;
        if driver.enter().is_ok() {
            // SAFETY: alive, as its maker vouches for; nobody uses ours after this.
            unsafe {
                let _ = driver.api.stream_synchronize(self.handle);
                if self.ours {
                    let _ = driver.api.stream_destroy(self.handle);
                }
            }
        }
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        let driver = &self.code.driver;
        if driver.enter().is_ok() {
            for e in self.timers.into_iter().chain([self.mark]) {
                // SAFETY: made by `new`.
                let _ = unsafe { driver.api.event_destroy(e) };
            }
        }
    }
}

impl CudaQueue {
    pub(super) fn new(code: Arc<CudaCode>, stream: Option<CallerStream>) -> Result<CudaQueue> {
        let driver = &code.driver;
        driver.enter()?;
        let mut handle = stream.map_or(std::ptr::null_mut(), |s| s.handle().cast());
        if stream.is_none() {
            let flags = cu::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: writes the handle, which `Stream` destroys.
            unsafe { driver.api.stream_create(&mut handle, flags) }.map_err(|f| driver.error(f))?;
        }
        let stream = Stream { code: code.clone(), handle, ours: stream.is_none() };
        let mut status = DeviceMemory::new(driver.clone());
        status.grow(STATUS)?;
        let mut seen = PinnedMemory::new(driver.clone());
        seen.grow(STATUS)?;
        let mut sizes = DeviceMemory::new(driver.clone());
        sizes.grow(code.symbols * size_of::<i64>())?;
        // SAFETY: both hold a status word; all zeros is one.
        unsafe {
            seen.base().write_bytes(0, STATUS);
            driver
                .api
                .memset_d8_async(status.base() as u64, 0, STATUS, handle)
                .map_err(|f| driver.error(f))?;
        }
        let timed = cu::CUevent_flags::CU_EVENT_DEFAULT as u32;
        let untimed = cu::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut events = [std::ptr::null_mut(); 3];
        for (e, flags) in events.iter_mut().zip([timed, timed, untimed]) {
            // SAFETY: writes the handle.
            unsafe { driver.api.event_create(e, flags) }.map_err(|f| driver.error(f))?;
        }
        let [begin, end, mark] = events;
        Ok(CudaQueue {
            stream,
            timers: [begin, end],
            mark,
            inner: RefCell::default(),
            status,
            seen,
            sizes,
            code: code.clone(),
        })
    }

    /// What a call that failed means: errors of kernels arrive with any later call.
    fn error(&self, inner: &Inner, f: Failure) -> RunError {
        let code = &self.code;
        if !is_sticky(f.code) {
            return code.driver.memory_error(f, 0).into();
        }
        let message = format!("{} ({}, {})", f.text, f.name, f.code);
        code.driver.error(f);
        let name = |&(k, o): &(usize, usize)| code.name(k, o);
        let mut pending: Vec<String> = inner.pending.iter().take(NAMED).map(name).collect();
        if inner.pending.len() > NAMED {
            pending.push(format!("and {} more", inner.pending.len() - NAMED));
        }
        let done = inner.done.as_ref().map_or_else(|| "none".into(), name);
        DeviceError::Failed { message, done, pending: pending.join(", ") }.into()
    }

    fn check(&self, inner: &Inner, result: Result<(), Failure>) -> Result<()> {
        result.map_err(|f| self.error(inner, f))
    }

    /// Hands the sizes over that have changed since the last time.
    fn hand_sizes(&self, inner: &mut Inner, sizes: &[i64]) -> Result<()> {
        if inner.sizes == sizes {
            return Ok(());
        }
        if inner.recording.is_some() {
            return Err(RunError::Program("a size changes in a recording".into()));
        }
        inner.sizes.clear();
        inner.sizes.extend_from_slice(sizes);
        let bytes = size_of_val(sizes);
        if bytes > self.sizes.len() {
            return Err(RunError::Program("more sizes than symbols".into()));
        }
        let (to, from) = (self.sizes.base().addr() as u64, inner.sizes.as_ptr().cast());
        // SAFETY: both hold so many bytes; the driver has its own copy of pageable memory when the call returns.
        let copied = unsafe { self.code.driver.api.memcpy_htod_async(to, from, bytes, self.stream.handle) };
        if copied.is_err() {
            inner.sizes.clear();
        }
        self.check(inner, copied)
    }

    fn wait_for(&self, inner: &mut Inner) -> Result<()> {
        let api = &self.code.driver.api;
        if inner.dirty {
            let (to, from) = (self.seen.base().cast(), self.status.base() as u64);
            // SAFETY: both hold a status word, and live as long as the queue.
            let copied = unsafe { api.memcpy_dtoh_async(to, from, STATUS, self.stream.handle) };
            self.check(inner, copied)?;
        }
        // SAFETY: our stream.
        let waited = unsafe { api.stream_synchronize(self.stream.handle) };
        self.check(inner, waited)?;
        inner.dirty = false;
        inner.done = inner.pending.last().copied().or(inner.done);
        inner.pending.clear();
        Ok(())
    }

    fn begin_timing(&self, inner: &Inner) -> Result<()> {
        // SAFETY: our event and stream.
        let recorded = unsafe { self.code.driver.api.event_record(self.timers[0], self.stream.handle) };
        self.check(inner, recorded)
    }

    /// Waits; nanoseconds of the device since [`CudaQueue::begin_timing`].
    fn end_timing(&self, inner: &mut Inner) -> Result<u64> {
        let ([begin, end], api) = (self.timers, &self.code.driver.api);
        // SAFETY: our event and stream.
        let recorded = unsafe { api.event_record(end, self.stream.handle) };
        self.check(inner, recorded)?;
        self.wait_for(inner)?;
        self.between(inner, [begin, end])
    }

    /// Nanoseconds from one event to another; both are done.
    fn between(&self, inner: &Inner, [begin, end]: [cu::CUevent; 2]) -> Result<u64> {
        let mut ms = 0.0;
        // SAFETY: two events that are alive; writes a number.
        let timed = unsafe { self.code.driver.api.event_elapsed_time(&mut ms, begin, end) };
        self.check(inner, timed)?;
        Ok((f64::from(ms) * 1e6) as u64)
    }

    /// Does something with the events of the recording in progress, if it has any.
    fn clock(&self, inner: &mut Inner, f: fn(&mut Clock, cu::CUstream) -> Result<(), Failure>) -> Result<()> {
        let clock = inner.recording.as_mut().and_then(|r| r.clock.as_mut());
        let done = clock.map_or(Ok(()), |c| f(c, self.stream.handle));
        self.check(inner, done)
    }

    /// Blocks of the grid: a warp, or a block, for each iteration, as far as that pays.
    fn blocks(&self, l: &Launch<'_>, entry: &Entry) -> u64 {
        let warps = u64::from((entry.block / LANES).max(1));
        let most = self.code.driver.info.units as u64 * BLOCKS_PER_UNIT;
        let scratch = SCRATCH_BYTES / (l.scratch.max(0) as u64 * warps).max(1);
        (l.trip as u64).div_ceil(entry.at_once.into()).min(most).min(scratch).max(1)
    }
}

impl Queue for CudaQueue {
    fn begin(&self) -> Result<()> {
        Ok(self.code.driver.enter()?)
    }

    unsafe fn launch(&self, l: &Launch<'_>, timed: bool) -> Result<u64> {
        let code = &self.code;
        let driver = &code.driver;
        let Some(Some(entry)) = code.entries.get(l.kernel).and_then(|k| k.get(l.variant)) else {
            return Err(RunError::Program("a kernel without code".into()));
        };
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let held = |n: &u32| inner.sizes.get(*n as usize) == l.sizes.get(*n as usize);
        if !l.numbers.iter().all(held) {
            self.hand_sizes(inner, l.sizes)?;
        }
        let blocks = self.blocks(l, entry);
        let warps = blocks * u64::from((entry.block / LANES).max(1));
        let scratch = u64::try_from(l.scratch).unwrap_or(u64::MAX).saturating_mul(warps);
        if scratch > code.limits.arena_bytes {
            return Err(RunError::Limit {
                what: format!("scratch of kernel {}", code.kernels[l.kernel]),
                needed: scratch,
                limit: code.limits.arena_bytes,
            });
        }
        let held = inner.scratch.as_ref().map_or(0, Memory::len);
        if scratch as usize > held {
            let mut new = DeviceMemory::new(driver.clone());
            new.grow((scratch as usize).max(2 * held))?;
            inner.outgrown.extend(inner.scratch.replace(new));
        }
        inner.values.clear();
        inner.values.extend(l.bufs.iter().map(|b| b.addr() as u64));
        let sizes = self.sizes.base().addr();
        inner.values.extend(l.numbers.iter().map(|n| (sizes + *n as usize * size_of::<i64>()) as u64));
        inner.values.push(inner.scratch.as_ref().map_or(0, |s| s.base().addr() as u64));
        inner.values.push(self.status.base().addr() as u64);
        inner.params.clear();
        inner.params.extend(inner.values.iter_mut().map(|v| (&raw mut *v).cast::<c_void>()));
        let (api, stream) = (&driver.api, self.stream.handle);
        match &mut inner.recording {
            Some(record) => record.kernels.push((l.kernel, l.origin)),
            None => {
                inner.pending.push((l.kernel, l.origin));
                inner.dirty = true;
                inner.launches += 1;
            }
        }
        if timed {
            self.begin_timing(inner)?;
        }
        self.clock(inner, Clock::begin)?;
        let params = inner.params.as_mut_ptr();
        // SAFETY: the parameters are those of the kernel, in its order (`codegen::ptx`), and the driver copies them;
        // what they lead to holds what the program declares, which the caller vouches for.
        let launched = unsafe {
            api.launch_kernel(
                entry.function,
                blocks as u32,
                1,
                1,
                entry.block,
                1,
                1,
                0,
                stream,
                params,
                std::ptr::null_mut(),
            )
        };
        if let Err(f) = launched {
            if inner.recording.is_none() {
                inner.pending.pop();
            }
            if is_sticky(f.code) {
                return Err(self.error(inner, f));
            }
            let kernel = code.name(l.kernel, l.origin);
            let message = format!("{} ({}, {})", f.text, f.name, f.code);
            return Err(DeviceError::Launch { kernel, message }.into());
        }
        self.clock(inner, Clock::end)?;
        if !timed {
            if driver.settings.check_launches && inner.recording.is_none() {
                self.wait_for(inner)?;
            }
            return Ok(0);
        }
        self.end_timing(inner)
    }

    unsafe fn copy(&self, to: Addr, from: Addr, len: usize) -> Result<()> {
        let (to, from) = (to.addr() as u64, from.addr() as u64);
        if to == from {
            return Ok(());
        }
        let mut inner = self.inner.borrow_mut();
        self.clock(&mut inner, Clock::pass)?;
        // SAFETY: the caller's contract.
        let copied = unsafe { self.code.driver.api.memcpy_dtod_async(to, from, len, self.stream.handle) };
        self.check(&inner, copied)
    }

    unsafe fn write(&self, to: Addr, bytes: &[u8]) -> Result<()> {
        let inner = self.inner.borrow();
        self.code.driver.enter()?;
        let (to, from) = (to.addr() as u64, bytes.as_ptr().cast());
        // SAFETY: the caller's contract; the driver has its own copy of pageable memory when the call returns.
        let copied =
            unsafe { self.code.driver.api.memcpy_htod_async(to, from, bytes.len(), self.stream.handle) };
        self.check(&inner, copied)
    }

    unsafe fn read_later(&self, from: Addr, to: *mut u8, len: usize) -> Result<()> {
        let inner = self.inner.borrow();
        self.code.driver.enter()?;
        let from = from.addr() as u64;
        // SAFETY: the caller's contract.
        let copied =
            unsafe { self.code.driver.api.memcpy_dtoh_async(to.cast(), from, len, self.stream.handle) };
        self.check(&inner, copied)
    }

    fn wait(&self) -> Result<()> {
        self.code.driver.enter()?;
        self.wait_for(&mut self.inner.borrow_mut())
    }

    fn mark(&self) -> Result<()> {
        // SAFETY: our event and stream.
        let recorded = unsafe { self.code.driver.api.event_record(self.mark, self.stream.handle) };
        self.check(&self.inner.borrow(), recorded)
    }

    fn is_at_mark(&self) -> Result<bool> {
        self.code.driver.enter()?;
        // SAFETY: our event.
        match unsafe { self.code.driver.api.event_query(self.mark) } {
            Err(f) if f.code == NOT_READY => Ok(false),
            result => self.check(&self.inner.borrow(), result).map(|()| true),
        }
    }

    fn failure(&self) -> Option<IndexFailure> {
        if self.inner.borrow().dirty {
            return None;
        }
        let at = self.seen.base().cast::<i64>();
        // SAFETY: three numbers; no copy into them is under way, since the last one was waited for.
        let [flag, value, limit] = unsafe { at.cast::<[i64; 3]>().read() };
        if flag == 0 {
            return None;
        }
        // SAFETY: as above; the status word of the device lives as long as the queue.
        unsafe {
            at.write(0);
            let (to, stream) = (self.status.base().addr() as u64, self.stream.handle);
            // where this fails, so does what comes next
            let _ = self.code.driver.api.memset_d8_async(to, 0, STATUS, stream);
        }
        Some(IndexFailure { origin: (flag - 1).max(0) as usize, value, limit })
    }

    fn resize(&self, sizes: &[i64]) -> Result<()> {
        self.hand_sizes(&mut self.inner.borrow_mut(), sizes)
    }

    fn record(&self, timed: bool) -> Result<bool> {
        let driver = &self.code.driver;
        // the streams that every context has from the start (handles 0 to 2) cannot record
        if driver.settings.check_launches || self.stream.handle.addr() <= 2 {
            return Ok(false);
        }
        let mut inner = self.inner.borrow_mut();
        // calls of other threads are nothing to this recording
        let mode = cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: our stream, which records nothing yet.
        let begun = unsafe { driver.api.stream_begin_capture(self.stream.handle, mode) };
        self.check(&inner, begun)?;
        let clock = timed.then(|| Clock::new(driver.clone()));
        inner.recording = Some(Record { kernels: Vec::new(), clock });
        Ok(true)
    }

    fn recorded(&self) -> Result<Box<dyn Recording>> {
        let driver = &self.code.driver;
        let mut inner = self.inner.borrow_mut();
        let Some(Record { kernels, clock }) = inner.recording.take() else {
            return Err(RunError::Program("nothing is recorded".into()));
        };
        let (mut graph, mut exec) = (std::ptr::null_mut(), std::ptr::null_mut());
        let free = driver.free_memory();
        // SAFETY: our stream, which records; the graph is destroyed once the executable form has been made of it.
        unsafe {
            let ended = driver.api.stream_end_capture(self.stream.handle, &mut graph);
            self.check(&inner, ended)?;
            let made = driver.api.graph_instantiate(&mut exec, graph, 0);
            let gone = driver.api.graph_destroy(graph);
            self.check(&inner, made.and(gone))?;
        }
        let bytes = free.saturating_sub(driver.free_memory());
        Ok(Box::new(Graph { driver: driver.clone(), exec, kernels, clock, bytes }))
    }

    unsafe fn replay(&self, recording: &dyn Recording) -> Result<()> {
        let graph = graph(recording)?;
        let mut inner = self.inner.borrow_mut();
        // SAFETY: made of work of this queue, whose addresses are good, as the caller says.
        let launched = unsafe { self.code.driver.api.graph_launch(graph.exec, self.stream.handle) };
        self.check(&inner, launched)?;
        inner.pending.extend_from_slice(&graph.kernels);
        inner.dirty |= !graph.kernels.is_empty();
        inner.launches += graph.kernels.len() as u64;
        Ok(())
    }

    unsafe fn replay_timed(&self, recording: &dyn Recording, times: u32) -> Result<u64> {
        self.code.driver.enter()?;
        self.begin_timing(&self.inner.borrow())?;
        for _ in 0..times {
            // SAFETY: the caller's contract.
            unsafe { self.replay(recording) }?;
        }
        self.end_timing(&mut self.inner.borrow_mut())
    }

    fn times(&self, recording: &dyn Recording) -> Result<Times> {
        let Some(clock) = &graph(recording)?.clock else {
            return Err(RunError::Program("a recording without times".into()));
        };
        self.code.driver.enter()?;
        let inner = self.inner.borrow();
        let kernels = clock.kernels().map(|k| self.between(&inner, k)).collect::<Result<_>>()?;
        let whole = clock.whole().map_or(Ok(0), |w| self.between(&inner, w))?;
        Ok(Times { kernels, whole })
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn trim(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.scratch = None;
        inner.outgrown.clear();
    }

    fn launches(&self) -> u64 {
        self.inner.borrow().launches
    }
}

fn graph(recording: &dyn Recording) -> Result<&Graph> {
    recording.as_any().downcast_ref().ok_or_else(|| RunError::Program("a recording of another device".into()))
}
