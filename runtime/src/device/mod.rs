//! What a processor does for a program: memory, code, and an ordered queue of work.
//!
//! The interpreter of host steps is the same for all of them; it speaks to a [`Device`] and knows no other. On the
//! CPU a queue does everything at once, on a GPU it is a stream: work is handed over, and waited for where the host
//! needs a value.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod subnormals;

use crate::error::{DeviceError, Result};
use crate::model::Limits;
use crate::pool::Pool;
use format::Program;
use std::any::Any;
use std::ffi::c_void;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// An address in the memory of a device. Only the device that gave it may follow it.
pub type Addr = *mut u8;

/// What a device is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// `cpu`, or as the driver says.
    pub name: String,
    /// Threads of a parallel loop, or multiprocessors.
    pub units: usize,
    /// Major and minor, of a GPU.
    pub compute_capability: Option<(u32, u32)>,
    /// Bytes of its own memory; 0 where it has the host's.
    pub memory: usize,
}

/// A processor that runs programs.
pub trait Device: Send + Sync {
    fn info(&self) -> &DeviceInfo;
    /// Memory without a byte as yet.
    fn memory(&self) -> Box<dyn Memory>;
    /// Memory of the host that copies from and to the device are fastest with.
    fn host_memory(&self) -> Box<dyn Memory>;
    /// Where the device can read `bytes` in place, at any alignment; `None` where they must be copied.
    fn adopt(&self, bytes: &[u8]) -> Option<Addr>;
    /// Makes the kernels of a program callable.
    fn load(&self, program: &Program, limits: Limits) -> Result<Arc<dyn Code>>;
    /// The threads behind a CPU.
    fn pool(&self) -> Option<&Arc<Pool>>;
}

/// Memory that grows and belongs to one owner.
pub trait Memory: Send + Sync {
    /// Aligned to 64 bytes, empty or not.
    fn base(&self) -> Addr;
    /// Bytes there are; may be more than was asked for.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Makes it at least `len` bytes long; what it holds stays. True where it may have moved, as it does when it gets
    /// its first bytes.
    fn grow(&mut self, len: usize) -> Result<bool>;
    /// Gives the pages of a range back, where that is possible.
    ///
    /// # Safety
    /// Nobody reads or writes the range any more.
    unsafe fn release(&self, range: Range<usize>);
}

/// The kernels of one program on one device.
pub trait Code: Send + Sync {
    /// A queue for one caller, on a stream of its own or of the caller.
    fn queue(self: Arc<Self>, stream: Option<CallerStream>) -> Result<Box<dyn Queue>>;
    /// Milliseconds that the driver took to load it.
    fn load_ms(&self) -> f64;
    /// Kernels whose machine code was found in [`GpuSettings::binaries`].
    fn found(&self) -> usize {
        0
    }
}

/// One call of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: usize,
    pub variant: usize,
    pub origin: usize,
    /// Iterations of the parallel loop; 1 at least.
    pub trip: i64,
    /// As the schedule estimates it.
    pub ns_per_iter: f64,
    /// Addresses of the operands.
    pub bufs: &'a [Addr],
    /// Values of the kernel's symbols.
    pub syms: &'a [i64],
    /// The same symbols by number, and the values of all symbols of the program.
    pub numbers: &'a [u32],
    pub sizes: &'a [i64],
    /// Scratch bytes of a thread, or of a warp.
    pub scratch: i64,
}

/// The first data-dependent error of the kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexFailure {
    pub origin: usize,
    pub value: i64,
    pub limit: i64,
}

/// Work in order. Addresses must lie in memory of the queue's device that holds enough bytes, and stay there until
/// the work is done ([`Queue::wait`]).
pub trait Queue: Send {
    /// A run begins, on this thread.
    fn begin(&self) -> Result<()>;
    /// Hands a kernel over. `timed`: waits for it, and answers the nanoseconds it took.
    ///
    /// # Safety
    /// The operands hold as many bytes as the program declares for these symbols.
    unsafe fn launch(&self, launch: &Launch<'_>, timed: bool) -> Result<u64>;
    /// # Safety
    /// Both hold `len` bytes; they may overlap.
    unsafe fn copy(&self, to: Addr, from: Addr, len: usize) -> Result<()>;
    /// Copies bytes of the host, which may change as soon as this returns.
    ///
    /// # Safety
    /// `to` holds as many.
    unsafe fn write(&self, to: Addr, bytes: &[u8]) -> Result<()>;
    /// Copies to the host; the bytes are there after [`Queue::wait`].
    ///
    /// # Safety
    /// Both hold `len` bytes, and nobody uses `to` until then.
    unsafe fn read_later(&self, from: Addr, to: *mut u8, len: usize) -> Result<()>;
    /// Until everything handed over is done.
    fn wait(&self) -> Result<()>;
    /// Sets a mark behind everything handed over.
    fn mark(&self) -> Result<()>;
    /// Whether everything before the mark is done; does not wait.
    fn is_at_mark(&self) -> Result<bool>;
    /// What kernels that are done have reported; forgets it.
    fn failure(&self) -> Option<IndexFailure>;
    /// Gives the kernels that are handed over, recorded or replayed from here on these values of the program's symbols.
    fn resize(&self, sizes: &[i64]) -> Result<()>;
    /// Begins to record instead of doing; false where this queue does not. Until [`Queue::recorded`] nothing may be
    /// read, written or waited for, and sizes stay those of the last [`Queue::resize`]. `timed`: each replay notes when
    /// its kernels begin and end, for [`Queue::times`].
    fn record(&self, timed: bool) -> Result<bool>;
    /// Ends the recording.
    fn recorded(&self) -> Result<Box<dyn Recording>>;
    /// Does once more what was recorded on this queue, with the sizes of the last [`Queue::resize`].
    ///
    /// # Safety
    /// As for what was recorded: every address in it still holds as much.
    unsafe fn replay(&self, recording: &dyn Recording) -> Result<()>;
    /// As [`Queue::replay`], so many times one after the other, and waits; nanoseconds of the device for all of them.
    ///
    /// # Safety
    /// As for `replay`.
    unsafe fn replay_timed(&self, recording: &dyn Recording, times: u32) -> Result<u64>;
    /// What the last replay of a recording took that is timed; it has been waited for.
    fn times(&self, recording: &dyn Recording) -> Result<Times>;
    /// The host may follow addresses of the device, once what writes there is done, which is at once.
    fn is_direct(&self) -> bool;
    /// Gives back memory that is kept for the next launch. Everything handed over is done, and no recording is left.
    fn trim(&self);
    /// Kernels handed over so far.
    fn launches(&self) -> u64;
}

/// What a replay took, in nanoseconds of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Times {
    /// Each kernel, in order. The device launches it within this time, which is about a microsecond.
    pub kernels: Vec<u64>,
    /// From the first kernel to the end of the last one.
    pub whole: u64,
}

/// Work that a queue has recorded and can do again at the cost of one call.
pub trait Recording: Send {
    /// For the queue that made it.
    fn as_any(&self) -> &dyn Any;
    /// Device memory that it takes.
    fn bytes(&self) -> usize;
}

/// Which device to open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Gpu {
    /// The n-th of the system's CUDA driver.
    Cuda(usize),
    /// The first of the driver in this file.
    Library(PathBuf),
}

/// How a GPU is used.
#[derive(Clone, Default)]
pub struct GpuSettings {
    /// Waits after each kernel, so that an error names the one that caused it.
    pub check_launches: bool,
    /// Where the machine code that the driver makes of kernels is kept.
    pub binaries: Option<Arc<dyn BinaryStore>>,
}

/// Machine code by what it was made of; used by several threads and processes at once.
pub trait BinaryStore: Send + Sync {
    /// What was made of `source`, where that is known and sound.
    fn get(&self, source: &[u8]) -> Option<Vec<u8>>;
    /// Keeps `binary`, if that can be done.
    fn put(&self, source: &[u8], binary: &[u8]);
}

/// A stream of the caller (`CUstream`), on which runs take their turn with the caller's own work.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "read by devices that have streams"))]
pub struct CallerStream(*mut c_void);

// SAFETY: a handle of the driver, which any thread may use.
unsafe impl Send for CallerStream {}

impl CallerStream {
    /// # Safety
    /// `handle` is a stream of the primary context of the device that the model is loaded on, and is not destroyed before
    /// the contexts that use it are dropped.
    pub unsafe fn new(handle: *mut c_void) -> CallerStream {
        CallerStream(handle)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn handle(self) -> *mut c_void {
        self.0
    }
}

/// The CPU that this runs on, with the threads of `pool`.
pub fn cpu(pool: Arc<Pool>) -> Arc<dyn Device> {
    Arc::new(cpu::Cpu::new(pool))
}

/// Opens a GPU.
///
/// # Errors
/// [`DeviceError`] that says what is missing: the driver, a device, a recent version of either, support in this build.
#[cfg(feature = "cuda")]
pub fn gpu(which: &Gpu, settings: GpuSettings) -> Result<Arc<dyn Device>, DeviceError> {
    cuda::open(which, settings)
}

/// As above, in a build without support for GPUs.
#[cfg(not(feature = "cuda"))]
pub fn gpu(_: &Gpu, _: GpuSettings) -> Result<Arc<dyn Device>, DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// An address that nobody follows, for operands without bytes.
pub(crate) const fn nowhere() -> Addr {
    std::ptr::without_provenance_mut(crate::arena::ALIGN)
}
