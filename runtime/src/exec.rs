//! The interpreter of the host schedule.

use crate::arena::{ALIGN, Region};
use crate::context::InputView;
use crate::error::{Result, RunError};
use crate::host_fns;
use crate::model::Model;
use crate::states::Kept;
use format::abi::{KernelArgs, KernelStatus};
use format::{OriginDef, Place, SizeExpr, SizeOp, Step, UNBOUND};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Loops shorter than this run on the calling thread.
const SINGLE_THREAD_NS: f64 = 5_000.0;
/// Pieces handed to a thread are at least this long.
const MIN_CHUNK_NS: f64 = 1_500.0;

/// What an observer of a run is told after each kernel and host function.
pub struct Event<'a> {
    /// Kernel number, or `None` for a host function.
    pub kernel: Option<usize>,
    pub variant: usize,
    pub origin: usize,
    /// Buffers in operand order.
    pub args: &'a [usize],
    pub nanos: u64,
    buffers: &'a Executor<'a>,
}

impl Event<'_> {
    /// Bytes of a buffer at this moment.
    pub fn bytes(&self, buffer: usize) -> &[u8] {
        self.buffers.bytes(buffer)
    }
    /// Value of a size under the symbols bound so far.
    pub fn size(&self, e: &SizeExpr) -> Option<i64> {
        e.eval(&self.buffers.state.syms).ok()
    }
}

pub type Observer<'a> = &'a mut dyn FnMut(&Event<'_>);

/// The part of a context that steps change.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) syms: Vec<i64>,
    /// Address and length of every buffer; null where it has no place yet.
    pub(crate) ptrs: Vec<*mut u8>,
    pub(crate) lens: Vec<usize>,
    /// Offsets of placed arena buffers (the arena may move when it grows).
    offsets: Vec<Option<usize>>,
    pub(crate) arena: Region,
    pub(crate) kept: Vec<Kept>,
    /// The last run shared a loop among threads.
    forked: bool,
    /// Memory of own and output buffers, by buffer.
    own: Vec<Region>,
    staged: Vec<Region>,
    scratch: Region,
    args: Vec<*mut u8>,
    sym_args: Vec<i64>,
    pub(crate) shapes: Vec<Vec<usize>>,
    pub(crate) host_calls: u64,
    pub(crate) host_nanos: u64,
}

impl State {
    pub(crate) fn new(model: &Model) -> State {
        let p = &model.program;
        State {
            syms: vec![UNBOUND; p.symbols.len()],
            ptrs: model.fixed.clone(),
            lens: vec![0; p.buffers.len()],
            offsets: vec![None; p.buffers.len()],
            arena: Region::empty(),
            forked: false,
            kept: p.states.iter().map(|_| Kept::default()).collect(),
            own: p.buffers.iter().map(|_| Region::empty()).collect(),
            staged: p.inputs.iter().map(|_| Region::empty()).collect(),
            scratch: Region::empty(),
            args: vec![std::ptr::null_mut(); model.max_args],
            sym_args: vec![0; model.max_syms],
            shapes: p.outputs.iter().map(|o| vec![0; o.shape.len()]).collect(),
            host_calls: 0,
            host_nanos: 0,
        }
    }
}

/// Steps a program through a state.
pub(crate) struct Executor<'m> {
    model: &'m Model,
    state: State,
    cancel: Option<&'m AtomicBool>,
    status: KernelStatus,
}

impl<'m> Executor<'m> {
    pub(crate) fn new(model: &'m Model) -> Executor<'m> {
        Executor::with_state(model, State::new(model), None)
    }
    pub(crate) fn with_state(model: &'m Model, state: State, cancel: Option<&'m AtomicBool>) -> Executor<'m> {
        Executor { model, state, cancel, status: KernelStatus::default() }
    }
    pub(crate) fn into_state(self) -> State {
        self.state
    }

    /// Runs the init steps; `after` is told the number of each when it is done.
    pub(crate) fn run_init(mut self, steps: &[Step], mut after: impl FnMut(usize)) -> Result<()> {
        for b in 0..self.model.program.buffers.len() {
            if !self.model.fixed[b].is_null() {
                self.state.lens[b] = self.size_of(b)?;
            }
        }
        self.resolve_aliases();
        for (i, step) in steps.iter().enumerate() {
            self.step(step, &mut None)?;
            after(i);
        }
        Ok(())
    }

    pub(crate) fn run(&mut self, inputs: &[InputView<'_>], mut observer: Option<Observer<'_>>) -> Result<()> {
        // a model too small for several threads leaves them asleep
        if std::mem::take(&mut self.state.forked) {
            self.model.pool.wake();
        }
        self.state.syms.fill(UNBOUND);
        self.state.offsets.fill(None);
        self.bind_inputs(inputs)?;
        for b in 0..self.model.program.buffers.len() {
            if !self.model.fixed[b].is_null() {
                self.state.lens[b] = self.size_of(b)?;
            }
        }
        self.resolve_aliases();
        let model = self.model;
        self.steps(&model.program.steps, &mut observer)?;
        for (i, def) in model.program.outputs.iter().enumerate() {
            for (d, e) in def.shape.iter().enumerate() {
                self.state.shapes[i][d] = self.eval(e, &def.name)?.max(0) as usize;
            }
            let elems = self.state.shapes[i].iter().fold(1usize, |n, &d| n.saturating_mul(d));
            // what a program claims of its outputs is no reason to read beyond them
            let held = self.state.lens[def.buffer];
            self.state.lens[def.buffer] = elems.saturating_mul(def.elem.bytes).min(held);
        }
        for (i, s) in model.program.states.iter().enumerate() {
            self.state.kept[i].len = self.eval(&s.next, "a state")?;
        }
        Ok(())
    }

    /// States bind their lengths and, once all sizes are known, their buffers.
    fn bind_states(&mut self) -> Result<()> {
        let model = self.model;
        for (i, s) in model.program.states.iter().enumerate() {
            let def = &model.program.inputs[s.input];
            let fail = |message| Err(RunError::State { name: def.name.clone(), message });
            let next = self.eval(&s.next, &def.name)?;
            if next > s.capacity {
                return fail(format!("{next} rows do not fit its capacity of {}", s.capacity));
            }
            let len = self.size_of(def.buffer)?;
            let started = self.state.kept[i].len > 0;
            for (d, e) in def.shape.iter().enumerate() {
                let n = self.eval(e, &def.name)?.max(0) as usize;
                let kept = &mut self.state.kept[i];
                if kept.shape.len() <= d {
                    kept.shape.push(n);
                } else if kept.shape[d] != n && started {
                    return fail(format!("its extent {} along dim {d} cannot become {n}", kept.shape[d]));
                }
                kept.shape[d] = n;
            }
            let kept = &mut self.state.kept[i];
            kept.region.grow(len + ALIGN)?;
            self.state.ptrs[def.buffer] = kept.region.as_ptr();
            self.state.lens[def.buffer] = len;
        }
        Ok(())
    }

    fn bind_inputs(&mut self, inputs: &[InputView<'_>]) -> Result<()> {
        let model = self.model;
        let defs = &model.program.inputs;
        let given = &model.given;
        if inputs.len() != given.len() {
            let missing = given.len().saturating_sub(inputs.len());
            return Err(RunError::InputCount { expected: given.len(), missing });
        }
        for s in &model.program.states {
            self.state.syms[s.len as usize] = UNBOUND;
        }
        for (i, s) in model.program.states.iter().enumerate() {
            let (len, before) = (self.state.kept[i].len, self.state.syms[s.len as usize]);
            if before != UNBOUND && before != len {
                return Err(RunError::State {
                    name: defs[s.input].name.clone(),
                    message: format!("it holds {len} rows, another state of the same length {before}"),
                });
            }
            self.set_sym(s.len, len, None)?;
        }
        for (&i, view) in given.iter().zip(inputs) {
            let def = &defs[i];
            if def.elem.name != view.elem || def.shape.len() != view.shape.len() {
                return Err(self.input_error(i, view));
            }
            for (e, &n) in def.shape.iter().zip(view.shape) {
                if let SizeExpr::Code(code) = e
                    && let [SizeOp::Sym(s)] = **code
                    && self.state.syms[s as usize] == UNBOUND
                {
                    self.set_sym(s, n as i64, None)?;
                }
            }
        }
        for (&i, view) in given.iter().zip(inputs) {
            let def = &defs[i];
            let mut elems = 1usize;
            for (e, &n) in def.shape.iter().zip(view.shape) {
                if self.eval(e, &def.name)? != n as i64 {
                    return Err(self.input_error(i, view));
                }
                elems = elems.saturating_mul(n);
            }
            if elems.saturating_mul(def.elem.bytes) != view.data.len() {
                return Err(self.input_error(i, view));
            }
            let at = view.data.as_ptr();
            let ptr = if (at as usize).is_multiple_of(ALIGN) {
                at.cast_mut()
            } else {
                self.state.staged[i].grow(view.data.len().max(1))?;
                let to = self.state.staged[i].as_ptr();
                // SAFETY: the staging region was grown to the input's length.
                unsafe { to.copy_from_nonoverlapping(at, view.data.len()) };
                to
            };
            self.state.ptrs[def.buffer] = ptr;
            self.state.lens[def.buffer] = view.data.len();
        }
        self.bind_states()
    }

    /// Which tensor was expected for input `i`, with sizes by name, and what came.
    #[cold]
    fn input_error(&self, i: usize, view: &InputView<'_>) -> RunError {
        let def = &self.model.program.inputs[i];
        let dims: Vec<String> = def
            .shape
            .iter()
            .map(|e| match e {
                SizeExpr::Const(c) => c.to_string(),
                SizeExpr::Code(code) => match **code {
                    [SizeOp::Sym(s)] => {
                        let sym = &self.model.program.symbols[s as usize];
                        match self.state.syms[s as usize] {
                            UNBOUND => sym.name.clone(),
                            v => format!("{}={v}", sym.name),
                        }
                    }
                    _ => e.eval(&self.state.syms).map_or("?".into(), |v| v.to_string()),
                },
            })
            .collect();
        RunError::Input {
            index: i,
            name: def.name.clone(),
            expected: format!("{}[{}]", def.elem.name, dims.join(", ")),
            found: format!("{}{:?} in {} bytes", view.elem, view.shape, view.data.len()),
        }
    }

    fn steps(&mut self, steps: &[Step], observer: &mut Option<Observer<'_>>) -> Result<()> {
        for step in steps {
            if self.cancel.is_some_and(|c| c.load(Ordering::Relaxed)) {
                return Err(RunError::Cancelled);
            }
            self.step(step, observer)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, observer: &mut Option<Observer<'_>>) -> Result<()> {
        match step {
            Step::Layout { buffers, end } => {
                let end = self.eval(end, "the arena")?;
                self.reserve(end)?;
                for &b in buffers {
                    self.place(b)?;
                }
                self.resolve_aliases();
            }
            Step::Call { kernel, args, origin } => self.call(*kernel, args, *origin, observer)?,
            Step::Copy { from, to } => {
                let len = self.state.lens[*from].min(self.state.lens[*to]);
                let (from, to) = (self.state.ptrs[*from], self.state.ptrs[*to]);
                if len > 0 {
                    self.placed(from)?;
                    self.placed(to)?;
                    // SAFETY: both buffers hold `len` bytes; they may overlap where they are aliases.
                    unsafe { to.copy_from(from, len) };
                }
            }
            Step::SetSym { sym, value, origin } => {
                let value = self.eval(value, "a size")?;
                self.set_sym(*sym, value, Some(*origin))?;
            }
            Step::BindSym { sym, from, origin } => {
                let value = self.read_int(*from)?;
                self.set_sym(*sym, value, Some(*origin))?;
            }
            Step::CheckEq { a, b, message, origin } => {
                let (a, b) = (self.eval(a, message)?, self.eval(b, message)?);
                if a != b {
                    let origin = self.origin(*origin);
                    return Err(RunError::SizeMismatch { message: message.clone(), a, b, origin });
                }
            }
            Step::Assert { cond, message, origin } => {
                if self.read_int(*cond)? == 0 {
                    let origin = self.origin(*origin);
                    return Err(RunError::Assert { message: message.clone(), origin });
                }
            }
            Step::If { cond, then, otherwise } => {
                let branch = if self.read_int(*cond)? != 0 { then } else { otherwise };
                self.steps(branch, observer)?;
            }
            Step::Loop { trip, cond, iter, cond_next, count, body, .. } => {
                let trip = self.read_int(*trip)?;
                let mut go = self.read_int(*cond)? != 0;
                let mut i = 0i64;
                while go && i < trip {
                    if i >= self.model.limits.loop_iterations {
                        return Err(RunError::Limit {
                            what: "loop iterations".into(),
                            needed: trip as u64,
                            limit: self.model.limits.loop_iterations as u64,
                        });
                    }
                    self.state.syms[*count as usize] = i;
                    self.write_int(*iter, i)?;
                    self.steps(body, observer)?;
                    go = self.read_int(*cond_next)? != 0;
                    i += 1;
                }
                self.state.syms[*count as usize] = i;
            }
            Step::Append { from, to, index } => self.append(*from, *to, *index)?,
            Step::Host { func, args, results, defines, origin } => {
                let began = Instant::now();
                let out = host_fns::call(*func, &HostArgs { ex: self, args, origin: *origin })?;
                for (&sym, value) in defines.iter().zip(&out.sizes) {
                    self.set_sym(sym, *value, Some(*origin))?;
                }
                for (&b, bytes) in results.iter().zip(&out.results) {
                    self.place(b)?;
                    self.resolve_aliases();
                    let len = bytes.len().min(self.state.lens[b]);
                    if len > 0 {
                        self.placed(self.state.ptrs[b])?;
                        // SAFETY: `place` gave the buffer at least `len` bytes.
                        unsafe { self.state.ptrs[b].copy_from_nonoverlapping(bytes.as_ptr(), len) };
                    }
                }
                let nanos = began.elapsed().as_nanos() as u64;
                self.state.host_calls += 1;
                self.state.host_nanos += nanos;
            }
        }
        Ok(())
    }

    /// Copies `from` behind what the own buffer `to` holds: it grows and keeps its contents.
    fn append(&mut self, from: usize, to: usize, index: u32) -> Result<()> {
        let len = self.state.lens[from];
        let at = self.state.syms[index as usize];
        let end = usize::try_from(at).ok().and_then(|i| i.checked_mul(len)?.checked_add(len));
        let end =
            end.filter(|&e| e as u64 <= self.model.limits.arena_bytes).ok_or_else(|| RunError::Limit {
                what: self.model.program.buffers[to].name.clone(),
                needed: u64::MAX,
                limit: self.model.limits.arena_bytes,
            })?;
        if len == 0 {
            return Ok(());
        }
        let needed = if end + ALIGN > self.state.own[to].len() { (end + ALIGN).max(2 * end) } else { 0 };
        self.state.own[to].grow(needed)?;
        self.state.ptrs[to] = self.state.own[to].as_ptr();
        self.state.lens[to] = end;
        self.placed(self.state.ptrs[from])?;
        // SAFETY: the own buffer was grown to `end` bytes; `from` lies elsewhere.
        unsafe { self.state.ptrs[to].add(end - len).copy_from(self.state.ptrs[from], len) };
        Ok(())
    }

    fn call(
        &mut self,
        k: usize,
        args: &[usize],
        origin: usize,
        observer: &mut Option<Observer<'_>>,
    ) -> Result<()> {
        let model = self.model;
        let kernel = &model.program.kernels[k];
        let mut chosen = None;
        for (i, v) in kernel.variants.iter().enumerate() {
            let mut fits = true;
            for (a, b) in &v.guards {
                let (a, b) = (self.eval(a, &kernel.name)?, self.eval(b, &kernel.name)?);
                fits &= 0 <= a && a < b;
            }
            if fits {
                chosen = Some(i);
                break;
            }
        }
        let Some(i) = chosen else {
            return Err(RunError::Program(format!("no variant of kernel {} fits", kernel.name)));
        };
        let variant = &kernel.variants[i];
        let trip = self.eval(&variant.trip, &kernel.name)?;
        let began = observer.is_some().then(Instant::now);
        if trip > 0
            && let Some(entry) = model.entries[k][i]
        {
            let threads = model.pool.threads();
            let scratch = self.eval(&variant.scratch, &kernel.name)?;
            let per_thread = usize::try_from(scratch)
                .ok()
                .and_then(|n| n.checked_next_multiple_of(4096))
                .filter(|&n| n.saturating_mul(threads) as u64 <= model.limits.arena_bytes)
                .ok_or_else(|| RunError::Limit {
                    what: format!("scratch of kernel {}", kernel.name),
                    needed: scratch as u64,
                    limit: model.limits.arena_bytes,
                })?;
            if per_thread > 0 {
                self.state.scratch.grow(per_thread * threads)?;
            }
            for (slot, &b) in self.state.args.iter_mut().zip(args) {
                *slot = self.state.ptrs[b];
            }
            for (slot, &s) in self.state.sym_args.iter_mut().zip(&variant.syms) {
                *slot = self.state.syms[s as usize];
            }
            for (slot, &b) in self.state.args.iter_mut().zip(args) {
                if slot.is_null() {
                    if self.state.lens[b] > 0 {
                        let name = &model.program.buffers[b].name;
                        return Err(RunError::Program(format!("buffer {name} has no place")));
                    }
                    *slot = Region::empty().as_ptr();
                }
            }
            let shared = Shared(KernelArgs {
                bufs: self.state.args.as_ptr(),
                syms: self.state.sym_args.as_ptr(),
                scratch: self.state.scratch.as_ptr(),
                status: &raw mut self.status,
            });
            let piece = |worker: usize, begin: i64, end: i64| {
                let shared = &shared;
                let mut args = shared.0;
                args.scratch = args.scratch.wrapping_add(worker * per_thread);
                // SAFETY: generated code stays within the buffers and scratch sizes that the program
                // declares for these symbol values; `begin..end` lies in `0..trip`; pieces are disjoint.
                unsafe { entry(&args, begin, end) };
            };
            let nanos = trip as f64 * variant.ns_per_iter;
            if threads == 1 || nanos < SINGLE_THREAD_NS {
                piece(0, 0, trip);
            } else {
                let even = trip / (threads as i64 * 4) + 1;
                let least = (MIN_CHUNK_NS / variant.ns_per_iter.max(1e-3)).ceil() as i64;
                let most = (trip - 1) / threads as i64 + 1;
                self.state.forked = true;
                model.pool.run(trip, even.max(least).min(most).max(1), &piece);
            }
            let flag = self.status.flag.swap(0, Ordering::AcqRel);
            if flag != 0 {
                return Err(RunError::Index {
                    value: self.status.value.load(Ordering::Relaxed),
                    limit: self.status.limit.load(Ordering::Relaxed),
                    origin: self.origin((flag - 1).max(0) as usize),
                });
            }
        }
        if let (Some(observe), Some(began)) = (observer, began) {
            let nanos = began.elapsed().as_nanos() as u64;
            observe(&Event { kernel: Some(k), variant: i, origin, args, nanos, buffers: self });
        }
        Ok(())
    }

    fn eval(&self, e: &SizeExpr, what: &str) -> Result<i64> {
        e.eval(&self.state.syms).map_err(|kind| RunError::Size { what: what.into(), kind })
    }

    fn size_of(&self, b: usize) -> Result<usize> {
        let def = &self.model.program.buffers[b];
        let n = self.eval(&def.bytes, &def.name)?;
        usize::try_from(n).ok().filter(|&n| n as u64 <= self.model.limits.arena_bytes).ok_or_else(|| {
            RunError::Limit { what: def.name.clone(), needed: n as u64, limit: self.model.limits.arena_bytes }
        })
    }

    fn origin(&self, i: usize) -> Option<OriginDef> {
        self.model.program.origins.get(i).cloned()
    }

    fn set_sym(&mut self, s: u32, value: i64, origin: Option<usize>) -> Result<()> {
        let def = &self.model.program.symbols[s as usize];
        if value < def.lo || value > def.hi {
            return Err(RunError::Range {
                symbol: def.name.clone(),
                value,
                lo: def.lo,
                hi: def.hi,
                origin: origin.and_then(|o| self.origin(o)),
            });
        }
        self.state.syms[s as usize] = value;
        Ok(())
    }

    /// Makes the arena hold `end` bytes; placed buffers keep their contents and may move.
    fn reserve(&mut self, end: i64) -> Result<()> {
        let limit = self.model.limits.arena_bytes;
        let needed = u64::try_from(end).unwrap_or(0);
        if needed > limit {
            return Err(RunError::Limit { what: "the arena".into(), needed, limit });
        }
        // one vector more, so that the last one of a buffer may be read whole
        if self.state.arena.grow(needed as usize + ALIGN)? {
            for (b, offset) in self.state.offsets.iter().enumerate() {
                if let Some(o) = offset {
                    self.state.ptrs[b] = self.state.arena.as_ptr().wrapping_add(*o);
                }
            }
        }
        Ok(())
    }

    /// Gives a buffer its address for the sizes known now.
    fn place(&mut self, b: usize) -> Result<()> {
        let model = self.model;
        let len = self.size_of(b)?;
        self.state.lens[b] = len;
        match &model.program.buffers[b].place {
            Place::Arena { offset } => {
                let offset = self.eval(offset, &model.program.buffers[b].name)?;
                let end = offset.checked_add(len as i64).filter(|_| offset >= 0);
                self.reserve(end.unwrap_or(i64::MAX))?;
                self.state.offsets[b] = Some(offset as usize);
                self.state.ptrs[b] = self.state.arena.as_ptr().wrapping_add(offset as usize);
            }
            Place::Output(_) | Place::Own => {
                self.state.own[b].grow(len + ALIGN)?;
                self.state.ptrs[b] = self.state.own[b].as_ptr();
            }
            Place::Const(_) | Place::Init | Place::Input(_) | Place::Alias(_) => {}
        }
        Ok(())
    }

    fn resolve_aliases(&mut self) {
        for (b, def) in self.model.program.buffers.iter().enumerate() {
            if let Place::Alias(mut of) = def.place {
                // aliases point backwards, so this ends
                while let Place::Alias(next) = self.model.program.buffers[of].place
                    && next < of
                {
                    of = next;
                }
                self.state.ptrs[b] = self.state.ptrs[of];
                self.state.lens[b] = self.state.lens[of];
            }
        }
    }

    fn placed(&self, p: *mut u8) -> Result<()> {
        if p.is_null() {
            return Err(RunError::Program("a buffer has no place".into()));
        }
        Ok(())
    }

    /// Element 0 of a buffer of integers or booleans.
    fn read_int(&self, b: usize) -> Result<i64> {
        let def = &self.model.program.buffers[b];
        let bytes = self.bytes(b).get(..def.elem.bytes).unwrap_or(&[]);
        match (def.elem.name, bytes) {
            ("i64", &[a, b, c, d, e, f, g, h]) => Ok(i64::from_le_bytes([a, b, c, d, e, f, g, h])),
            ("i32", &[a, b, c, d]) => Ok(i32::from_le_bytes([a, b, c, d]).into()),
            ("bool", &[a]) => Ok((a != 0).into()),
            _ => Err(RunError::Program(format!("{} holds no integer ({})", def.name, def.elem.name))),
        }
    }

    fn write_int(&mut self, b: usize, value: i64) -> Result<()> {
        self.placed(self.state.ptrs[b])?;
        if self.state.lens[b] < 8 {
            return Err(RunError::Program("a loop counter is an i64".into()));
        }
        // SAFETY: the buffer has a place and at least eight bytes.
        unsafe { self.state.ptrs[b].copy_from_nonoverlapping(value.to_le_bytes().as_ptr(), 8) };
        Ok(())
    }

    pub(crate) fn bytes(&self, b: usize) -> &[u8] {
        let (ptr, len) = (self.state.ptrs[b], self.state.lens[b]);
        if ptr.is_null() || len == 0 {
            return &[];
        }
        // SAFETY: a placed buffer holds `len` bytes; no kernel runs while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }
}

/// Kernel arguments shared by the threads of one loop.
struct Shared(KernelArgs);
// SAFETY: the pointers lead to buffers that the threads' pieces use disjointly or read only, and to
// atomics; all outlive the loop.
unsafe impl Sync for Shared {}

/// Operands of a host function.
pub(crate) struct HostArgs<'a, 'm> {
    ex: &'a Executor<'m>,
    args: &'a [usize],
    origin: usize,
}

impl HostArgs<'_, '_> {
    /// Bytes of operand `i`.
    pub(crate) fn bytes(&self, i: usize) -> &[u8] {
        self.args.get(i).map_or(&[], |&b| self.ex.bytes(b))
    }
    /// Bytes that a result may have.
    pub(crate) fn limit(&self) -> u64 {
        self.ex.model.limits.arena_bytes
    }
    /// The failure of `function` on these operands.
    pub(crate) fn fault(&self, function: &'static str, message: impl ToString) -> RunError {
        RunError::Host { function, message: message.to_string(), origin: self.ex.origin(self.origin) }
    }
    /// Extents of operand `i`.
    pub(crate) fn shape(&self, i: usize) -> Result<Vec<usize>> {
        let Some(&b) = self.args.get(i) else { return Ok(Vec::new()) };
        let def = &self.ex.model.program.buffers[b];
        def.shape.iter().map(|e| Ok(self.ex.eval(e, &def.name)?.max(0) as usize)).collect()
    }
}
