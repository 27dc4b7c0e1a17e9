//! Everything that the driver knows, behind one lock.

use crate::codes;
use crate::settings::Settings;
use crate::stream::{Event, Graph, Stream, Work};
use kernelsmith_ptx_interp::{DeviceMemory, FaultKind, Module};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A result code other than success.
pub(crate) type Code = u32;
pub(crate) type Res<T> = Result<T, Code>;

/// The one context; its address is its handle.
pub(crate) static CONTEXT: u8 = 0;

thread_local! {
    /// The context is current in this thread.
    pub(crate) static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// A kernel that can be launched.
pub(crate) struct Function {
    pub module: Rc<Module>,
    pub name: String,
}

/// Physical memory of the virtual memory calls.
pub(crate) struct Pages {
    pub bytes: u64,
    /// What it holds, while it is not mapped.
    pub data: Option<Vec<u8>>,
    pub mapped_at: Option<u64>,
}

/// What a primary context holds; goes with its last user.
pub(crate) struct World {
    pub settings: Settings,
    /// Users of the primary context.
    pub retained: usize,
    pub memory: DeviceMemory,
    /// Bytes of device memory in use, and by address.
    pub used: u64,
    pub allocations: BTreeMap<u64, u64>,
    /// Page-locked memory of the host, by address.
    pub pinned: BTreeMap<usize, Box<[u64]>>,
    pub pages: HashMap<u64, Pages>,
    pub reserved: BTreeMap<u64, u64>,
    pub modules: HashMap<usize, Rc<Module>>,
    pub functions: HashMap<usize, Rc<Function>>,
    pub streams: HashMap<usize, Stream>,
    pub events: HashMap<usize, Event>,
    pub graphs: HashMap<usize, Graph>,
    pub next: usize,
    /// The error after which every call fails, and what the interpreter said.
    pub lost: Option<Code>,
    pub said: String,
    /// Kernels executed.
    pub launches: u64,
    /// Linkers, and the images that they have made.
    pub links: HashMap<usize, Vec<u8>>,
    /// Calls that wanted pages mapped.
    pub maps: u64,
    pub began: Instant,
}

// SAFETY: the reference-counted parts never leave the world, which one thread uses at a time, behind `WORLD`.
unsafe impl Send for World {}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Descriptions of errors, which must live on once they are handed out.
static TEXTS: Mutex<BTreeMap<String, &'static CString>> = Mutex::new(BTreeMap::new());

pub(crate) fn lock() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn status(r: Res<()>) -> u32 {
    r.err().unwrap_or(codes::SUCCESS)
}

/// Runs `f` on the initialised driver.
pub(crate) fn with(f: impl FnOnce(&mut World) -> Res<()>) -> u32 {
    status(lock().as_mut().ok_or(codes::NOT_INITIALIZED).and_then(f))
}

/// Runs `f` in the context of this thread.
pub(crate) fn within(f: impl FnOnce(&mut World) -> Res<()>) -> u32 {
    with(|w| {
        if !CURRENT.get() || w.retained == 0 {
            return Err(codes::INVALID_CONTEXT);
        }
        match w.lost {
            Some(code) => Err(code),
            None => f(w),
        }
    })
}

/// A text that lives as long as the process.
pub(crate) fn keep(text: String) -> &'static CString {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let leak = || &*Box::leak(Box::new(CString::new(text.replace('\0', " ")).unwrap_or_default()));
    texts.entry(text.clone()).or_insert_with(leak)
}

impl World {
    pub fn new(settings: Settings) -> World {
        World {
            settings,
            retained: 0,
            memory: DeviceMemory::new(),
            used: 0,
            allocations: BTreeMap::new(),
            pinned: BTreeMap::new(),
            pages: HashMap::new(),
            reserved: BTreeMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            graphs: HashMap::new(),
            next: 0,
            lost: None,
            said: String::new(),
            launches: 0,
            links: HashMap::new(),
            maps: 0,
            began: Instant::now(),
        }
    }

    /// A handle that no other thing has had.
    pub fn handle(&mut self) -> usize {
        self.next += 16;
        0x10_0000 + self.next
    }

    /// Counts `bytes` of device memory as used.
    pub fn take(&mut self, bytes: u64) -> Res<()> {
        let used = self.used.checked_add(bytes).filter(|&u| u <= self.settings.memory);
        self.used = used.ok_or(codes::OUT_OF_MEMORY)?;
        Ok(())
    }

    /// The context is of no use from here on.
    pub fn lose(&mut self, code: Code, said: String) -> Code {
        self.lost = Some(code);
        self.said = said;
        self.streams.values_mut().for_each(|s| s.work.clear());
        code
    }

    /// Whether host memory is page-locked.
    pub fn is_pinned(&self, at: usize, len: usize) -> bool {
        let begins = self.pinned.range(..=at).next_back();
        begins.is_some_and(|(base, data)| at + len <= base + data.len() * 8)
    }

    /// Does everything that has been handed over.
    pub fn drain_all(&mut self) -> Res<()> {
        let mut streams: Vec<usize> = self.streams.keys().copied().collect();
        streams.sort_unstable();
        streams.into_iter().try_for_each(|s| self.drain(s, usize::MAX))
    }

    /// Does the first `count` pieces of a stream's work.
    pub fn drain(&mut self, stream: usize, mut count: usize) -> Res<()> {
        while count > 0 {
            let Some(work) = self.streams.get_mut(&stream).and_then(|s| s.work.pop_front()) else { break };
            self.perform(work)?;
            count -= 1;
        }
        Ok(())
    }

    fn perform(&mut self, work: Work) -> Res<()> {
        let bad = |w: &mut World, e: FaultKind| w.lose(codes::ILLEGAL_ADDRESS, e.to_string());
        match work {
            Work::Launch { function, grid, block, shared, params } => {
                self.launches += 1;
                if self.settings.fails == Some(self.launches) {
                    return Err(self.lose(codes::LAUNCH_FAILED, "as the environment asked".into()));
                }
                let (memory, config) = (&mut self.memory, &self.settings.config);
                let ran = function.module.run(memory, config, &function.name, grid, block, shared, &params);
                ran.map(|_| ()).map_err(|e| {
                    let code = match &e {
                        kernelsmith_ptx_interp::Error::Fault(f) => match f.kind {
                            FaultKind::OutOfBounds { .. } | FaultKind::ReadOnly { .. } => {
                                codes::ILLEGAL_ADDRESS
                            }
                            FaultKind::Misaligned { .. } => codes::MISALIGNED_ADDRESS,
                            FaultKind::Budget { .. } => codes::LAUNCH_TIMEOUT,
                            _ => codes::LAUNCH_FAILED,
                        },
                        _ => codes::LAUNCH_FAILED,
                    };
                    self.lose(code, e.to_string())
                })
            }
            Work::Upload { to, bytes } => self.memory.write(to, &bytes).map_err(|e| bad(self, e)),
            Work::LateUpload { to, from, len } => {
                // SAFETY: the caller of the copy keeps `len` bytes there until it has been waited for.
                let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, len) };
                self.memory.write(to, bytes).map_err(|e| bad(self, e))
            }
            Work::Download { from, to, len } => {
                let mut bytes = vec![0; len];
                self.memory.read(from, &mut bytes).map_err(|e| bad(self, e))?;
                // SAFETY: as above; nobody uses the bytes meanwhile.
                unsafe { (to as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), len) };
                Ok(())
            }
            Work::Copy { from, to, len } => {
                let mut bytes = vec![0; len];
                self.memory.read(from, &mut bytes).map_err(|e| bad(self, e))?;
                self.memory.write(to, &bytes).map_err(|e| bad(self, e))
            }
            Work::Fill { to, value, len } => {
                self.memory.write(to, &vec![value; len]).map_err(|e| bad(self, e))
            }
            Work::Record { event, number } => {
                let now = self.began.elapsed();
                if let Some(e) = self.events.get_mut(&event) {
                    e.done = e.done.max(number);
                    e.at = Some(now);
                }
                Ok(())
            }
            Work::Wait { event, number } => self.reach(event, number),
        }
    }

    /// Goes on until the `number`-th recording of an event is done.
    pub fn reach(&mut self, event: usize, number: u64) -> Res<()> {
        loop {
            let e = self.events.get(&event).ok_or(codes::INVALID_HANDLE)?;
            if e.done >= number {
                return Ok(());
            }
            let stream = e.stream;
            let left = self.streams.get(&stream).is_some_and(|s| !s.work.is_empty());
            if !left {
                // the stream is gone, and its work was done with it
                return Ok(());
            }
            self.drain(stream, 1)?;
        }
    }
}
