//! The CPU as a device: everything is done when it is handed over.

use super::{
    Addr, CallerStream, Code, Device, DeviceInfo, IndexFailure, Launch, Memory, Queue, Recording, Times,
    subnormals,
};
use crate::arena::Region;
use crate::error::{DeviceError, Result, RunError};
use crate::loader::CodeImage;
use crate::model::Limits;
use crate::pool::Pool;
use format::Program;
use format::abi::{KernelArgs, KernelFn, KernelStatus};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Loops shorter than this run on the calling thread.
const SINGLE_THREAD_NS: f64 = 5_000.0;
/// Pieces handed to a thread are at least this long.
const MIN_CHUNK_NS: f64 = 1_500.0;

pub(super) struct Cpu {
    pool: Arc<Pool>,
    info: DeviceInfo,
}

impl Cpu {
    pub(super) fn new(pool: Arc<Pool>) -> Cpu {
        let info =
            DeviceInfo { name: "cpu".into(), units: pool.threads(), compute_capability: None, memory: 0 };
        Cpu { pool, info }
    }
}

impl Device for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn memory(&self) -> Box<dyn Memory> {
        Box::new(Region::empty())
    }
    fn host_memory(&self) -> Box<dyn Memory> {
        Box::new(Region::empty())
    }
    fn adopt(&self, bytes: &[u8]) -> Option<Addr> {
        Some(bytes.as_ptr().cast_mut())
    }
    fn load(&self, program: &Program, limits: Limits) -> Result<Arc<dyn Code>> {
        let began = Instant::now();
        let image = CodeImage::load(&program.objects)?;
        let entries = program
            .kernels
            .iter()
            .map(|k| {
                k.variants
                    .iter()
                    .map(|v| match &v.code {
                        Some((object, symbol)) => Ok(Some(image.function(*object, symbol)?)),
                        None => Ok(None),
                    })
                    .collect::<Result<Vec<_>>>()
            })
            .collect::<Result<Vec<_>>>()?;
        let names = program.kernels.iter().map(|k| k.name.clone()).collect();
        let load_ms = began.elapsed().as_secs_f64() * 1e3;
        Ok(Arc::new(CpuCode {
            entries,
            names,
            pool: self.pool.clone(),
            limits,
            load_ms,
            flushes: program.flushes,
            _image: image,
        }))
    }
    fn pool(&self) -> Option<&Arc<Pool>> {
        Some(&self.pool)
    }
}

impl Memory for Region {
    fn base(&self) -> Addr {
        self.as_ptr()
    }
    fn len(&self) -> usize {
        Region::len(self)
    }
    fn grow(&mut self, len: usize) -> Result<bool> {
        Region::grow(self, len)
    }
    unsafe fn release(&self, range: Range<usize>) {
        // SAFETY: the caller's contract.
        unsafe { Region::release(self, range) };
    }
}

struct CpuCode {
    /// Entry points by kernel and variant.
    entries: Vec<Vec<Option<KernelFn>>>,
    names: Vec<String>,
    pool: Arc<Pool>,
    limits: Limits,
    load_ms: f64,
    /// Results smaller than all normal numbers become zeros.
    flushes: bool,
    _image: CodeImage,
}

impl Code for CpuCode {
    fn queue(self: Arc<Self>, stream: Option<CallerStream>) -> Result<Box<dyn Queue>> {
        if stream.is_some() {
            return Err(DeviceError::NoStreams.into());
        }
        Ok(Box::new(CpuQueue {
            code: self,
            scratch: RefCell::default(),
            status: KernelStatus::default(),
            forked: Cell::new(false),
            launches: Cell::new(0),
        }))
    }
    fn load_ms(&self) -> f64 {
        self.load_ms
    }
}

struct CpuQueue {
    code: Arc<CpuCode>,
    scratch: RefCell<Region>,
    status: KernelStatus,
    /// A loop was shared among threads since the last run began.
    forked: Cell<bool>,
    launches: Cell<u64>,
}

/// Kernel arguments shared by the threads of one loop.
struct Shared(KernelArgs);
// SAFETY: the pointers lead to buffers that the threads' pieces use disjointly or read only, and to
// atomics; all outlive the loop.
unsafe impl Sync for Shared {}

impl Queue for CpuQueue {
    fn begin(&self) -> Result<()> {
        // a model too small for several threads leaves them asleep
        if self.forked.replace(false) {
            self.code.pool.wake();
        }
        Ok(())
    }

    unsafe fn launch(&self, l: &Launch<'_>, timed: bool) -> Result<u64> {
        let Some(Some(entry)) = self.code.entries.get(l.kernel).and_then(|k| k.get(l.variant)) else {
            return Err(RunError::Program("a kernel without code".into()));
        };
        let began = timed.then(Instant::now);
        let pool = &self.code.pool;
        let threads = pool.threads();
        let per_thread = usize::try_from(l.scratch)
            .ok()
            .and_then(|n| n.checked_next_multiple_of(4096))
            .filter(|&n| n.saturating_mul(threads) as u64 <= self.code.limits.arena_bytes)
            .ok_or_else(|| RunError::Limit {
                what: format!("scratch of kernel {}", self.code.names[l.kernel]),
                needed: l.scratch as u64,
                limit: self.code.limits.arena_bytes,
            })?;
        let mut scratch = self.scratch.borrow_mut();
        if per_thread > 0 {
            scratch.grow(per_thread * threads)?;
        }
        let shared = Shared(KernelArgs {
            bufs: l.bufs.as_ptr(),
            syms: l.syms.as_ptr(),
            scratch: scratch.as_ptr(),
            status: (&raw const self.status).cast_mut(),
        });
        let flushes = self.code.flushes;
        let piece = |worker: usize, begin: i64, end: i64| {
            let shared = &shared;
            let mut args = shared.0;
            args.scratch = args.scratch.wrapping_add(worker * per_thread);
            // SAFETY: generated code stays within the buffers and scratch sizes that the program
            // declares for these symbol values, which the caller vouches for; `begin..end` lies in `0..trip`;
            // pieces are disjoint; the status word is made of atomics.
            let code = || unsafe { entry(&args, begin, end) };
            if flushes {
                // SAFETY: generated code alone.
                unsafe { subnormals::flushed(code) };
            } else {
                code();
            }
        };
        let nanos = l.trip as f64 * l.ns_per_iter;
        if threads == 1 || nanos < SINGLE_THREAD_NS {
            piece(0, 0, l.trip);
        } else {
            let even = l.trip / (threads as i64 * 4) + 1;
            let least = (MIN_CHUNK_NS / l.ns_per_iter.max(1e-3)).ceil() as i64;
            let most = (l.trip - 1) / threads as i64 + 1;
            self.forked.set(true);
            pool.run(l.trip, even.max(least).min(most).max(1), &piece);
        }
        self.launches.set(self.launches.get() + 1);
        Ok(began.map_or(0, |b| b.elapsed().as_nanos() as u64))
    }

    unsafe fn copy(&self, to: Addr, from: Addr, len: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { to.copy_from(from, len) };
        Ok(())
    }

    unsafe fn write(&self, to: Addr, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { to.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn read_later(&self, from: Addr, to: *mut u8, len: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { to.copy_from(from, len) };
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        Ok(())
    }

    fn is_at_mark(&self) -> Result<bool> {
        Ok(true)
    }

    fn failure(&self) -> Option<IndexFailure> {
        let flag = self.status.flag.swap(0, Ordering::AcqRel);
        (flag != 0).then(|| IndexFailure {
            origin: (flag - 1).max(0) as usize,
            value: self.status.value.load(Ordering::Relaxed),
            limit: self.status.limit.load(Ordering::Relaxed),
        })
    }

    /// Kernels are given the values themselves.
    fn resize(&self, _: &[i64]) -> Result<()> {
        Ok(())
    }

    /// A host schedule costs next to nothing where no driver stands between.
    fn record(&self, _: bool) -> Result<bool> {
        Ok(false)
    }

    fn recorded(&self) -> Result<Box<dyn Recording>> {
        Err(RunError::Program("a CPU records nothing".into()))
    }

    unsafe fn replay(&self, _: &dyn Recording) -> Result<()> {
        Err(RunError::Program("a CPU records nothing".into()))
    }

    unsafe fn replay_timed(&self, _: &dyn Recording, _: u32) -> Result<u64> {
        Err(RunError::Program("a CPU records nothing".into()))
    }

    fn times(&self, _: &dyn Recording) -> Result<Times> {
        Err(RunError::Program("a CPU records nothing".into()))
    }

    fn is_direct(&self) -> bool {
        true
    }

    fn trim(&self) {
        self.scratch.take();
    }

    fn launches(&self) -> u64 {
        self.launches.get()
    }
}
