//! A loaded program: machine code, constants and initialised weights, shared by all contexts.

use crate::arena::ALIGN;
use crate::device::{self, Addr, Code, Device, Memory, nowhere};
use crate::error::{Result, RunError};
use crate::exec::{Executor, State};
use crate::pool::Pool;
use format::{Place, Program, SizeExpr, Step};
use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Limits that turn hostile sizes into errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one context's arena, and of one output.
    pub arena_bytes: u64,
    /// Iterations of any one loop of the host schedule.
    pub loop_iterations: i64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { arena_bytes: 1 << 38, loop_iterations: 1 << 32 }
    }
}

/// Immutable and `Send + Sync`. Make one [`crate::Context`] per concurrent caller.
pub struct Model {
    pub(crate) program: Program,
    pub(crate) code: Arc<dyn Code>,
    /// Address of every constant and init buffer on the device; null elsewhere. By buffer.
    pub(crate) fixed: Vec<Addr>,
    /// Inputs that the caller gives: those that are no states.
    pub(crate) given: Vec<usize>,
    pub(crate) limits: Limits,
    pub(crate) max_args: usize,
    pub(crate) max_syms: usize,
    weights: Box<dyn Memory>,
    pub(crate) device: Arc<dyn Device>,
    /// Buffers that runs use.
    used: Vec<bool>,
    weight_bytes: usize,
    init_launches: u64,
}

// SAFETY: `fixed` points into constants and `weights`, which live as long as the model and are only read
// after `load` returned.
unsafe impl Send for Model {}
// SAFETY: as above; nothing is mutated through a shared model.
unsafe impl Sync for Model {}

impl Model {
    /// [`Model::load_on`] the CPU, with the threads of `pool`.
    pub fn load(program: Program, pool: Arc<Pool>, limits: Limits) -> Result<Arc<Model>> {
        Model::load_on(program, device::cpu(pool), limits)
    }

    /// Loads the kernels, and runs the init steps (packing, folded weights). Constants stay where they are if the
    /// device can read them there; those that only the init steps read are released as soon as they were read.
    pub fn load_on(mut program: Program, device: Arc<dyn Device>, limits: Limits) -> Result<Arc<Model>> {
        let lens: Vec<_> = program.consts.iter().map(|c| c.as_ref().map(|b| b.bytes().len())).collect();
        format::validate::validate(&program, &lens).map_err(|e| RunError::Program(e.to_string()))?;
        let code = device.load(&program, limits)?;
        let used = used_buffers(&program);
        let in_place = device.adopt(&[]).is_some();
        let places = fixed_places(&program, limits, |b| !in_place && used[b])?;
        let fixed_bytes = places.last().map_or(0, |p| p.end);
        let mut weights = device.memory();
        // 64 bytes more, so that the last vector of a buffer may be read whole
        weights.grow(fixed_bytes + ALIGN)?;
        let fixed = program
            .buffers
            .iter()
            .zip(&places)
            .map(|(b, place)| match b.place {
                Place::Init => weights.base().wrapping_add(place.start),
                Place::Const(_) if !place.is_empty() => weights.base().wrapping_add(place.start),
                Place::Const(i) => program.consts[i].as_ref().map_or(std::ptr::null_mut(), |blob| {
                    let bytes = blob.bytes();
                    // where an empty one lies does not matter, as long as it does not look absent
                    if bytes.is_empty() {
                        return nowhere();
                    }
                    device.adopt(bytes).unwrap_or(std::ptr::null_mut())
                }),
                _ => std::ptr::null_mut(),
            })
            .collect();
        let max_args = program.kernels.iter().map(|k| k.writes.len()).max().unwrap_or(0);
        let max_syms =
            program.kernels.iter().flat_map(|k| &k.variants).map(|v| v.syms.len()).max().unwrap_or(0);
        let state = |i: &usize| program.states.iter().any(|s| s.input == *i);
        let given = (0..program.inputs.len()).filter(|i| !state(i)).collect();
        let init = std::mem::take(&mut program.init);
        let mut model = Model {
            code,
            fixed,
            given,
            limits,
            max_args,
            max_syms,
            weights,
            device,
            used,
            weight_bytes: 0,
            init_launches: 0,
            program,
        };
        model.prepare(&init, &places)?;
        model.forget_unused();
        Ok(Arc::new(model))
    }

    /// Copies constants to where they are read, and runs the init steps. What no later step and no run reads is
    /// given back on the way, so that the peak is about the size of the packed weights, and not twice that.
    fn prepare(&mut self, init: &[Step], places: &[Range<usize>]) -> Result<()> {
        let mut state = State::new(self, None)?;
        state.queue.begin()?;
        for (b, place) in places.iter().enumerate() {
            if let (Some(bytes), false) = (self.const_bytes(b), place.is_empty()) {
                // SAFETY: the place is as long as the buffer.
                unsafe { state.queue.write(self.fixed[b], &bytes[..place.len().min(bytes.len())]) }?;
            }
        }
        let buffers = self.program.buffers.len();
        let (mut first, mut last) = (vec![None; buffers], vec![None; buffers]);
        for (i, step) in init.iter().enumerate() {
            let mut used = vec![false; buffers];
            mark(std::slice::from_ref(step), &mut used);
            follow_aliases(&self.program, &mut used);
            for b in (0..buffers).filter(|b| used[*b]) {
                first[b].get_or_insert(i);
                last[b] = Some(i);
            }
        }
        let mut wanted: Vec<Vec<usize>> = vec![Vec::new(); init.len()];
        let mut done: Vec<Vec<usize>> = vec![Vec::new(); init.len()];
        for b in 0..buffers {
            if let (Some(i), true) = (first[b], self.fixed[b].is_null()) {
                wanted[i].push(b);
            }
            if let (Some(i), false) = (last[b], self.used[b]) {
                done[i].push(b);
            }
        }
        // constants that the device cannot read in place, and that runs do not need
        let copies: Vec<Option<Box<dyn Memory>>> = (0..buffers).map(|_| None).collect();
        let copies = RefCell::new(copies);
        let before = |i: usize, state: &mut State| -> Result<()> {
            for &b in &wanted[i] {
                if let Some(bytes) = self.const_bytes(b) {
                    let mut copy = self.device.memory();
                    copy.grow(bytes.len() + ALIGN)?;
                    // SAFETY: it was grown to hold them.
                    unsafe { state.queue.write(copy.base(), bytes) }?;
                    (state.ptrs[b], state.lens[b]) = (copy.base(), bytes.len());
                    copies.borrow_mut()[b] = Some(copy);
                }
            }
            Ok(())
        };
        let after = |i: usize, state: &mut State| -> Result<()> {
            for &b in &done[i] {
                match &self.program.buffers[b].place {
                    // SAFETY: the step is done, and no later one uses the buffer.
                    Place::Init => unsafe { self.weights.release(places[b].clone()) },
                    Place::Const(c) => {
                        if let Some(copy) = copies.borrow_mut()[b].take() {
                            state.queue.wait()?;
                            drop(copy);
                        }
                        if let Some(blob) = &self.program.consts[*c] {
                            blob.release();
                        }
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        Executor::new(self, &mut state, &[], None).run_init(init, before, after)?;
        self.init_launches = state.queue.launches();
        Ok(())
    }

    /// The bytes of the constant that a buffer is.
    fn const_bytes(&self, b: usize) -> Option<&[u8]> {
        let def = &self.program.buffers[b];
        let (Place::Const(c), SizeExpr::Const(n)) = (&def.place, &def.bytes) else { return None };
        self.program.consts.get(*c)?.as_ref()?.bytes().get(..usize::try_from(*n).ok()?)
    }

    /// Lets go of constants and init buffers that no run reads.
    fn forget_unused(&mut self) {
        let mut keep = vec![false; self.program.consts.len()];
        for (i, b) in self.program.buffers.iter().enumerate() {
            match (&b.place, &b.bytes) {
                (Place::Const(_) | Place::Init, _) if !self.used[i] => self.fixed[i] = std::ptr::null_mut(),
                (Place::Const(c), SizeExpr::Const(n)) => {
                    keep[*c] = true;
                    self.weight_bytes += *n as usize;
                }
                (Place::Init, SizeExpr::Const(n)) => self.weight_bytes += *n as usize,
                _ => {}
            }
        }
        for (c, keep) in self.program.consts.iter_mut().zip(keep) {
            if !keep {
                *c = None;
            }
        }
    }

    /// Numbers of the inputs that a run takes, in order: all but the states.
    pub fn given_inputs(&self) -> &[usize] {
        &self.given
    }

    /// The bytes of a constant or init buffer that runs read.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn fixed_bytes(&self, b: usize) -> Result<Option<Cow<'_, [u8]>>> {
        let SizeExpr::Const(n) = self.program.buffers[b].bytes else { return Ok(None) };
        let (at, n) = (self.fixed[b], n as usize);
        if at.is_null() {
            return Ok(None);
        }
        if let Some(bytes) = self.const_bytes(b) {
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        let queue = self.code.clone().queue(None)?;
        if queue.is_direct() {
            // SAFETY: `load` saw that the region holds so many bytes there; nobody writes to them after it returned.
            return Ok(Some(Cow::Borrowed(unsafe { std::slice::from_raw_parts(at, n) })));
        }
        let mut bytes = vec![0; n];
        queue.begin()?;
        // SAFETY: as above; the copy is waited for.
        unsafe { queue.read_later(at, bytes.as_mut_ptr(), n) }?;
        queue.wait()?;
        Ok(Some(Cow::Owned(bytes)))
    }

    pub fn program(&self) -> &Program {
        &self.program
    }
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }
    /// Kernels that ran when the model was loaded.
    pub fn init_launches(&self) -> u64 {
        self.init_launches
    }
    /// Milliseconds in which the kernels were loaded.
    pub fn code_ms(&self) -> f64 {
        self.code.load_ms()
    }
    /// Kernels whose machine code was kept from an earlier start.
    pub fn kept_kernels(&self) -> usize {
        self.code.found()
    }
    /// Bytes of constants and packed weights that runs read.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
}

/// Where each init buffer, and each of the constants asked for, lies in the memory of weights; empty ranges for the others.
fn fixed_places(
    program: &Program,
    limits: Limits,
    copied: impl Fn(usize) -> bool,
) -> Result<Vec<Range<usize>>> {
    let mut end = 0usize;
    let mut place = |(i, b): (usize, &format::BufferDef)| {
        let begin = end;
        if b.place == Place::Init || matches!(b.place, Place::Const(_)) && copied(i) {
            let SizeExpr::Const(bytes) = b.bytes else {
                return Err(RunError::Program(format!("init buffer {} has no fixed size", b.name)));
            };
            let bytes = usize::try_from(bytes).ok();
            let next = bytes
                .and_then(|n| begin.checked_add(n)?.checked_next_multiple_of(ALIGN))
                .filter(|&n| n as u64 <= limits.arena_bytes);
            let (Some(bytes), Some(next)) = (bytes, next) else {
                return Err(RunError::Limit {
                    what: "packed weights".into(),
                    needed: u64::MAX,
                    limit: limits.arena_bytes,
                });
            };
            end = next;
            return Ok(begin..begin + bytes);
        }
        Ok(begin..begin)
    };
    program.buffers.iter().enumerate().map(&mut place).collect()
}

/// Which buffers the steps of a run use, those behind aliases included.
fn used_buffers(program: &Program) -> Vec<bool> {
    let mut used = vec![false; program.buffers.len()];
    mark(&program.steps, &mut used);
    for io in program.inputs.iter().chain(&program.outputs) {
        used[io.buffer] = true;
    }
    follow_aliases(program, &mut used);
    used
}

/// An alias uses what it aliases, which may itself be an alias.
fn follow_aliases(program: &Program, used: &mut [bool]) {
    for i in (0..used.len()).rev() {
        let mut at = i;
        while let (true, Place::Alias(of)) = (used[at], &program.buffers[at].place) {
            if used[*of] {
                break;
            }
            used[*of] = true;
            at = *of;
        }
    }
}

fn mark(steps: &[Step], used: &mut [bool]) {
    for s in steps {
        match s {
            Step::Layout { .. } | Step::SetSym { .. } | Step::CheckEq { .. } => {}
            Step::Call { args, .. } => args.iter().for_each(|&a| used[a] = true),
            Step::Copy { from, to } | Step::Append { from, to, .. } => {
                used[*from] = true;
                used[*to] = true;
            }
            Step::BindSym { from, .. } => used[*from] = true,
            Step::Assert { cond, .. } => used[*cond] = true,
            Step::If { cond, then, otherwise } => {
                used[*cond] = true;
                mark(then, used);
                mark(otherwise, used);
            }
            Step::Loop { trip, cond, iter, cond_next, body, .. } => {
                [trip, cond, iter, cond_next].into_iter().for_each(|&b| used[b] = true);
                mark(body, used);
            }
            Step::Host { args, results, .. } => args.iter().chain(results).for_each(|&b| used[b] = true),
        }
    }
}
