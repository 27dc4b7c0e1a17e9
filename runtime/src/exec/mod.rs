//! The interpreter of the host schedule, the same for every device.
//!
//! What the host has to know (a size that is a value, a condition, the operands of a host function) is read back from
//! the device where it lies there; everything else stays on it.

mod bind;
mod buckets;
mod call;
mod places;
mod tape;

use crate::context::InputView;
use crate::device::{Addr, CallerStream, Device, Memory, Queue, nowhere};
use crate::error::{Result, RunError};
use crate::host_fns;
use crate::model::Model;
use crate::states::Kept;
use format::{BufferDef, OriginDef, Place, SizeExpr, Step, UNBOUND};
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

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
    /// Bytes of a buffer at this moment; a copy where the device has memory of its own.
    pub fn bytes(&self, buffer: usize) -> Result<Cow<'_, [u8]>> {
        self.buffers.bytes(buffer)
    }
    /// How many bytes a buffer has.
    pub fn len(&self, buffer: usize) -> usize {
        self.buffers.state.lens[buffer]
    }
    /// Value of a size under the symbols bound so far.
    pub fn size(&self, e: &SizeExpr) -> Option<i64> {
        e.eval(&self.buffers.state.syms).ok()
    }
}

pub type Observer<'a> = &'a mut dyn FnMut(&Event<'_>);

/// Something that the host had to do, or to know, while a device with memory of its own did the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostOp {
    /// The node, where there is one.
    pub origin: Option<usize>,
    pub reason: &'static str,
    /// How often in the last run.
    pub times: u64,
}

/// The part of a context that steps change.
pub(crate) struct State {
    pub(crate) queue: Box<dyn Queue>,
    pub(crate) syms: Vec<i64>,
    /// Address and length of every buffer; null where it has no place yet.
    pub(crate) ptrs: Vec<Addr>,
    pub(crate) lens: Vec<usize>,
    /// Offsets of placed arena buffers (the arena may move when it grows).
    offsets: Vec<Option<usize>>,
    pub(crate) arena: Box<dyn Memory>,
    pub(crate) kept: Vec<Kept>,
    /// Memory of own and output buffers, by buffer.
    own: Vec<Option<Box<dyn Memory>>>,
    /// Copies of inputs that the device cannot read where they are.
    staged: Vec<Box<dyn Memory>>,
    /// Copies of outputs where the host cannot read those of the device, by output.
    pub(crate) mirrors: Vec<Box<dyn Memory>>,
    args: Vec<Addr>,
    sym_args: Vec<i64>,
    pub(crate) shapes: Vec<Vec<usize>>,
    pub(crate) host_calls: u64,
    pub(crate) host_nanos: u64,
    pub(crate) host_ops: Vec<HostOp>,
    buckets: buckets::Buckets,
    /// Written instead of handing work over, while a run is only gone through.
    tape: Option<tape::Tape>,
    /// One to write the next time.
    spare: Option<tape::Tape>,
    /// How often memory that kernels use has moved.
    pub(crate) moves: u64,
    runs: u64,
    /// A run was handed over and has not ended well as yet.
    pub(crate) pending: bool,
    /// Runs that were replays of recordings.
    pub(crate) replays: u64,
}

impl State {
    pub(crate) fn new(model: &Model, stream: Option<CallerStream>) -> Result<State> {
        let p = &model.program;
        let queue = model.code.clone().queue(stream)?;
        // made now, so that no run has to
        let own = |b: &BufferDef| match b.place {
            Place::Output(_) | Place::Own => Some(model.device.memory()),
            _ => None,
        };
        let mirrors = if queue.is_direct() { 0 } else { p.outputs.len() };
        Ok(State {
            queue,
            syms: vec![UNBOUND; p.symbols.len()],
            ptrs: model.fixed.clone(),
            lens: vec![0; p.buffers.len()],
            offsets: vec![None; p.buffers.len()],
            arena: model.device.memory(),
            kept: p.states.iter().map(|_| Kept::default()).collect(),
            own: p.buffers.iter().map(own).collect(),
            staged: p.inputs.iter().map(|_| model.device.memory()).collect(),
            mirrors: (0..mirrors).map(|_| model.device.host_memory()).collect(),
            args: vec![nowhere(); model.max_args],
            sym_args: vec![0; model.max_syms],
            shapes: p.outputs.iter().map(|o| vec![0; o.shape.len()]).collect(),
            host_calls: 0,
            host_nanos: 0,
            host_ops: Vec::new(),
            buckets: buckets::Buckets::default(),
            tape: None,
            spare: None,
            moves: 0,
            runs: 0,
            replays: 0,
            pending: false,
        })
    }
}

impl State {
    /// Recordings that are kept, and the device memory that they take.
    pub(crate) fn recordings(&self) -> (usize, usize) {
        (self.buckets.recordings(), self.buckets.bytes())
    }

    /// Lets go of memory that is only kept so that the next run finds it; states stay.
    pub(crate) fn trim(&mut self, model: &Model) -> Result<()> {
        self.queue.begin()?;
        self.queue.wait()?;
        self.buckets.clear();
        self.queue.trim();
        self.moves += 1;
        self.arena = model.device.memory();
        self.own.iter_mut().flatten().for_each(|m| *m = model.device.memory());
        self.staged.iter_mut().for_each(|m| *m = model.device.memory());
        self.mirrors.iter_mut().for_each(|m| *m = model.device.host_memory());
        self.ptrs.copy_from_slice(&model.fixed);
        self.lens.fill(0);
        self.pending = false;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // what is still under way uses the memory that goes next; an error has nobody to be told
        let _ = self.queue.wait();
        self.buckets.clear();
    }
}

/// Steps a program through a state.
pub(crate) struct Executor<'m> {
    model: &'m Model,
    state: &'m mut State,
    /// What the caller gave, in the order of [`Model::given_inputs`].
    inputs: &'m [InputView<'m>],
    cancel: Option<&'m AtomicBool>,
}

impl<'m> Executor<'m> {
    pub(crate) fn new(
        model: &'m Model,
        state: &'m mut State,
        inputs: &'m [InputView<'m>],
        cancel: Option<&'m AtomicBool>,
    ) -> Executor<'m> {
        Executor { model, state, inputs, cancel }
    }

    /// Runs the init steps. `before` and `after` are told the number of each, and may place and free constants.
    pub(crate) fn run_init(
        mut self,
        steps: &[Step],
        mut before: impl FnMut(usize, &mut State) -> Result<()>,
        mut after: impl FnMut(usize, &mut State) -> Result<()>,
    ) -> Result<()> {
        self.state.queue.begin()?;
        self.place_fixed()?;
        for (i, step) in steps.iter().enumerate() {
            before(i, self.state)?;
            self.resolve_aliases();
            self.step(step, &mut None)?;
            after(i, self.state)?;
        }
        self.wait()
    }

    /// Hands a run over; its outputs are there after [`Executor::finish`].
    pub(crate) fn start(&mut self, mut observer: Option<Observer<'_>>) -> Result<()> {
        self.state.queue.begin()?;
        if std::mem::replace(&mut self.state.pending, true) {
            // what the earlier run found is told when this one is waited for
            self.state.queue.wait()?;
        }
        self.state.host_ops.clear();
        self.state.syms.fill(UNBOUND);
        self.state.offsets.fill(None);
        self.bind_inputs()?;
        self.place_fixed()?;
        let model = self.model;
        self.steps_of_bucket(&mut observer)?;
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
        self.copy_outputs()
    }

    /// Waits for the run that was handed over.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.wait()?;
        self.state.pending = false;
        Ok(())
    }

    /// After a failure: what is still under way ends, and what it finds is no longer of interest.
    pub(crate) fn abandon(&mut self) {
        if self.state.queue.wait().is_ok() {
            self.state.queue.failure();
        }
    }

    /// Copies what the host cannot read on the device, states apart.
    fn copy_outputs(&mut self) -> Result<()> {
        let program = &self.model.program;
        for (i, mirror) in self.state.mirrors.iter_mut().enumerate() {
            if program.states.iter().any(|s| s.output == i) {
                continue;
            }
            let b = program.outputs[i].buffer;
            let (from, len) = (self.state.ptrs[b], self.state.lens[b]);
            if len > 0 {
                placed(from)?;
                mirror.grow(len)?;
                // SAFETY: the buffer holds `len` bytes, and now the mirror does too; it is read after the wait.
                unsafe { self.state.queue.read_later(from, mirror.base(), len) }?;
            }
        }
        Ok(())
    }

    /// Until the device has done everything; then looks at what its kernels found.
    fn wait(&self) -> Result<()> {
        self.state.queue.wait()?;
        self.look()
    }

    fn look(&self) -> Result<()> {
        match self.state.queue.failure() {
            None => Ok(()),
            Some(f) => Err(RunError::Index { value: f.value, limit: f.limit, origin: self.origin(f.origin) }),
        }
    }

    /// The host did something for the device.
    fn note(&mut self, origin: Option<usize>, reason: &'static str) {
        if self.state.queue.is_direct() {
            return;
        }
        let ops = &mut self.state.host_ops;
        match ops.iter_mut().find(|o| o.origin == origin && o.reason == reason) {
            Some(o) => o.times += 1,
            None => ops.push(HostOp { origin, reason, times: 1 }),
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
                let end = self.extent(end, "the arena")?;
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
                    placed(from)?;
                    placed(to)?;
                    match &mut self.state.tape {
                        Some(tape) => tape.copy(to, from, len),
                        // SAFETY: both buffers hold `len` bytes; they may overlap where they are aliases.
                        None => unsafe { self.state.queue.copy(to, from, len) }?,
                    }
                }
            }
            Step::SetSym { sym, value, origin } => {
                if let Some(tape) = &mut self.state.tape {
                    tape.bind(*sym, value, self.state.syms[*sym as usize]);
                }
                let value = self.eval(value, "a size")?;
                self.set_sym(*sym, value, Some(*origin))?;
            }
            Step::BindSym { sym, from, origin } => {
                self.note(Some(*origin), "its value is a size");
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
                self.note(Some(*origin), "an assertion of the model");
                if self.read_int(*cond)? == 0 {
                    let origin = self.origin(*origin);
                    return Err(RunError::Assert { message: message.clone(), origin });
                }
            }
            Step::If { cond, then, otherwise } => {
                self.note(None, "its value chooses a branch");
                let branch = if self.read_int(*cond)? != 0 { then } else { otherwise };
                self.steps(branch, observer)?;
            }
            Step::Loop { trip, cond, iter, cond_next, count, body, origin } => {
                self.note(Some(*origin), "a loop over kernels");
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
                self.note(Some(*origin), "a function of the host");
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
                        placed(self.state.ptrs[b])?;
                        // SAFETY: `place` gave the buffer at least `len` bytes.
                        unsafe { self.state.queue.write(self.state.ptrs[b], &bytes[..len]) }?;
                    }
                }
                let nanos = began.elapsed().as_nanos() as u64;
                self.state.host_calls += 1;
                self.state.host_nanos += nanos;
            }
        }
        Ok(())
    }

    fn eval(&self, e: &SizeExpr, what: &str) -> Result<i64> {
        e.eval(&self.state.syms).map_err(|kind| RunError::Size { what: what.into(), kind })
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
}

fn placed(p: Addr) -> Result<()> {
    if p.is_null() {
        return Err(RunError::Program("a buffer has no place".into()));
    }
    Ok(())
}

/// The memory of a slot, made when it is first used.
fn memory<'a>(slot: &'a mut Option<Box<dyn Memory>>, device: &dyn Device) -> &'a mut dyn Memory {
    &mut **slot.get_or_insert_with(|| device.memory())
}

/// Operands of a host function.
pub(crate) struct HostArgs<'a, 'm> {
    ex: &'a Executor<'m>,
    args: &'a [usize],
    origin: usize,
}

impl HostArgs<'_, '_> {
    /// Bytes of operand `i`.
    pub(crate) fn bytes(&self, i: usize) -> Result<Cow<'_, [u8]>> {
        self.args.get(i).map_or(Ok(Cow::Borrowed(&[])), |&b| self.ex.bytes(b))
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
