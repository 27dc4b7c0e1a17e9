//! A loaded program: machine code, constants and initialised weights, shared by all contexts.

use crate::arena::{ALIGN, Region};
use crate::error::{Result, RunError};
use crate::exec::Executor;
use crate::loader::CodeImage;
use crate::pool::Pool;
use format::abi::KernelFn;
use format::{Place, Program, SizeExpr, Step};
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
    /// Entry points by kernel and variant.
    pub(crate) entries: Vec<Vec<Option<KernelFn>>>,
    /// Base address of every constant and init buffer; null elsewhere. By buffer.
    pub(crate) fixed: Vec<*mut u8>,
    /// Inputs that the caller gives: those that are no states.
    pub(crate) given: Vec<usize>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) limits: Limits,
    pub(crate) max_args: usize,
    pub(crate) max_syms: usize,
    _code: CodeImage,
    weights: Region,
    /// Buffers that runs use.
    used: Vec<bool>,
    weight_bytes: usize,
}

// SAFETY: `fixed` points into constants and `weights`, which live as long as the model and are only read
// after `load` returned.
unsafe impl Send for Model {}
// SAFETY: as above; nothing is mutated through a shared model.
unsafe impl Sync for Model {}

impl Model {
    /// Links the machine code, and runs the init steps (packing, folded weights). Constants stay where they
    /// are; those that only the init steps read are released as soon as they were read.
    pub fn load(mut program: Program, pool: Arc<Pool>, limits: Limits) -> Result<Arc<Model>> {
        let lens: Vec<_> = program.consts.iter().map(|c| c.as_ref().map(|b| b.bytes().len())).collect();
        format::validate::validate(&program, &lens).map_err(|e| RunError::Program(e.to_string()))?;
        let code = CodeImage::load(&program.objects)?;
        let entries = program
            .kernels
            .iter()
            .map(|k| {
                k.variants
                    .iter()
                    .map(|v| match &v.code {
                        Some((object, symbol)) => Ok(Some(code.function(*object, symbol)?)),
                        None => Ok(None),
                    })
                    .collect::<Result<Vec<_>>>()
            })
            .collect::<Result<Vec<_>>>()?;
        let places = init_places(&program, limits)?;
        let init_bytes = places.last().map_or(0, |p| p.end);
        // 64 bytes more, so that the last vector of a buffer may be read whole
        let weights = Region::with_len(init_bytes + ALIGN)?;
        let fixed = program
            .buffers
            .iter()
            .zip(&places)
            .map(|(b, place)| match b.place {
                // SAFETY: the offset lies within the region.
                Place::Init => unsafe { weights.as_ptr().add(place.start) },
                Place::Const(i) => program.consts[i].as_ref().map_or(std::ptr::null_mut(), |blob| {
                    let bytes = blob.bytes();
                    // where an empty one lies does not matter, as long as it does not look absent
                    if bytes.is_empty() { weights.as_ptr() } else { bytes.as_ptr().cast_mut() }
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
        let used = used_buffers(&program);
        let mut model = Model {
            entries,
            fixed,
            given,
            pool,
            limits,
            max_args,
            max_syms,
            _code: code,
            weights,
            used,
            weight_bytes: 0,
            program,
        };
        if !init.is_empty() {
            model.run_init(&init, &places)?;
        }
        model.forget_unused();
        Ok(Arc::new(model))
    }

    /// Runs the init steps. What no later step and no run reads is given back on the way, so that the peak
    /// is about the size of the packed weights, and not twice that.
    fn run_init(&self, init: &[Step], places: &[Range<usize>]) -> Result<()> {
        let mut last = vec![None; self.program.buffers.len()];
        for (i, step) in init.iter().enumerate() {
            let mut used = vec![false; last.len()];
            mark(std::slice::from_ref(step), &mut used);
            follow_aliases(&self.program, &mut used);
            for (at, _) in last.iter_mut().zip(used).filter(|(_, used)| *used) {
                *at = Some(i);
            }
        }
        let mut done: Vec<Vec<usize>> = vec![Vec::new(); init.len()];
        for (b, at) in last.iter().enumerate() {
            if let (Some(i), false) = (at, self.used[b]) {
                done[*i].push(b);
            }
        }
        Executor::new(self).run_init(init, |i| {
            for &b in &done[i] {
                match &self.program.buffers[b].place {
                    // SAFETY: the step is done, and no later one uses the buffer.
                    Place::Init => unsafe { self.weights.release(places[b].clone()) },
                    Place::Const(c) => {
                        if let Some(blob) = &self.program.consts[*c] {
                            blob.release();
                        }
                    }
                    _ => {}
                }
            }
        })
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
    pub(crate) fn fixed_bytes(&self, b: usize) -> Option<&[u8]> {
        let SizeExpr::Const(n) = self.program.buffers[b].bytes else { return None };
        let at = self.fixed[b];
        // SAFETY: `load` saw that the constant or the region holds so many bytes there; nobody writes to
        // them after it returned.
        (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at, n as usize) })
    }

    pub fn program(&self) -> &Program {
        &self.program
    }
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
    /// Bytes of constants and packed weights that runs read.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
}

/// Where each init buffer lies in the region of weights; empty ranges for the others.
fn init_places(program: &Program, limits: Limits) -> Result<Vec<Range<usize>>> {
    let mut end = 0usize;
    let mut place = |b: &format::BufferDef| {
        let begin = end;
        if b.place == Place::Init {
            let SizeExpr::Const(bytes) = b.bytes else {
                return Err(RunError::Program(format!("init buffer {} has no fixed size", b.name)));
            };
            end = usize::try_from(bytes)
                .ok()
                .and_then(|n| begin.checked_add(n)?.checked_next_multiple_of(ALIGN))
                .filter(|&n| n as u64 <= limits.arena_bytes)
                .ok_or(RunError::Limit {
                    what: "packed weights".into(),
                    needed: u64::MAX,
                    limit: limits.arena_bytes,
                })?;
        }
        Ok(begin..end)
    };
    program.buffers.iter().map(&mut place).collect()
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
