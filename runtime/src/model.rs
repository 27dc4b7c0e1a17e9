//! A loaded program: machine code, constants and initialised weights, shared by all contexts.

use crate::arena::{ALIGN, Region};
use crate::error::{Result, RunError};
use crate::exec::Executor;
use crate::loader::CodeImage;
use crate::pool::Pool;
use format::abi::KernelFn;
use format::{Place, Program, SizeExpr, Step};
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
    _weights: Region,
    _aligned_consts: Vec<Region>,
    weight_bytes: usize,
}

// SAFETY: `fixed` points into constants and `_weights`, which live as long as the model and are only read
// after `load` returned.
unsafe impl Send for Model {}
// SAFETY: as above; nothing is mutated through a shared model.
unsafe impl Sync for Model {}

impl Model {
    /// Links the machine code, aligns constants, and runs the init steps (packing, folded weights).
    pub fn load(mut program: Program, pool: Arc<Pool>, limits: Limits) -> Result<Arc<Model>> {
        let code = CodeImage::load(&program.objects)?;
        program.objects = Vec::new();
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

        let mut aligned = Vec::new();
        let mut const_ptrs = Vec::new();
        for c in &program.consts {
            const_ptrs.push(match c {
                None => std::ptr::null_mut(),
                Some(blob) => {
                    let bytes = blob.bytes();
                    if (bytes.as_ptr() as usize).is_multiple_of(ALIGN) {
                        bytes.as_ptr().cast_mut()
                    } else {
                        let r = Region::with_len(bytes.len())?;
                        // SAFETY: the region is fresh and at least as long as the constant.
                        unsafe { r.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                        aligned.push(r);
                        aligned[aligned.len() - 1].as_ptr()
                    }
                }
            });
        }

        let mut init_bytes = 0usize;
        let mut offsets = Vec::new();
        for b in &program.buffers {
            if b.place == Place::Init {
                let bytes = match b.bytes {
                    SizeExpr::Const(n) if n >= 0 => n as usize,
                    _ => return Err(RunError::Program(format!("init buffer {} has no fixed size", b.name))),
                };
                offsets.push(init_bytes);
                init_bytes = init_bytes
                    .checked_add(bytes)
                    .and_then(|n| n.checked_next_multiple_of(ALIGN))
                    .filter(|&n| n as u64 <= limits.arena_bytes)
                    .ok_or(RunError::Limit {
                        what: "packed weights".into(),
                        needed: u64::MAX,
                        limit: limits.arena_bytes,
                    })?;
            } else {
                offsets.push(0);
            }
        }
        // 64 bytes more, so that the last vector of a buffer may be read whole
        let weights = Region::with_len(init_bytes + ALIGN)?;
        let fixed = program
            .buffers
            .iter()
            .zip(&offsets)
            .map(|(b, &offset)| match b.place {
                // SAFETY: the offset lies within the region.
                Place::Init => Ok(unsafe { weights.as_ptr().add(offset) }),
                Place::Const(i) => const_ptrs
                    .get(i)
                    .copied()
                    .ok_or_else(|| RunError::Program(format!("buffer {} names no constant", b.name))),
                _ => Ok(std::ptr::null_mut()),
            })
            .collect::<Result<Vec<_>>>()?;

        let max_args = program.kernels.iter().map(|k| k.writes.len()).max().unwrap_or(0);
        let max_syms =
            program.kernels.iter().flat_map(|k| &k.variants).map(|v| v.syms.len()).max().unwrap_or(0);
        let state = |i: &usize| program.states.iter().any(|s| s.input == *i);
        let given = (0..program.inputs.len()).filter(|i| !state(i)).collect();
        let mut model = Model {
            entries,
            fixed,
            given,
            pool,
            limits,
            max_args,
            max_syms,
            _code: code,
            _weights: weights,
            _aligned_consts: aligned,
            weight_bytes: init_bytes,
            program,
        };
        let init = std::mem::take(&mut model.program.init);
        if !init.is_empty() {
            Executor::new(&model).run_init(&init)?;
        }
        model.drop_unused_consts();
        Ok(Arc::new(model))
    }

    /// Constants that only the init steps read are released.
    fn drop_unused_consts(&mut self) {
        let mut used = vec![false; self.program.buffers.len()];
        mark(&self.program.steps, &mut used);
        for io in &self.program.outputs {
            used[io.buffer] = true;
        }
        for i in (0..used.len()).rev() {
            // an alias uses what it aliases, which may itself be an alias
            let mut at = i;
            while let (true, Place::Alias(of)) = (used[at], &self.program.buffers[at].place) {
                if used[*of] {
                    break;
                }
                used[*of] = true;
                at = *of;
            }
        }
        let mut keep = vec![false; self.program.consts.len()];
        for (b, used) in self.program.buffers.iter().zip(&used) {
            if let (true, Place::Const(c)) = (*used, &b.place) {
                keep[*c] = true;
            }
        }
        for (i, b) in self.program.buffers.iter().enumerate() {
            if let Place::Const(c) = b.place
                && !keep[c]
            {
                self.fixed[i] = std::ptr::null_mut();
            }
        }
        let kept: Vec<*const u8> = self.fixed.iter().map(|p| p.cast_const()).collect();
        self._aligned_consts.retain(|r| kept.contains(&r.as_ptr().cast_const()));
        for (c, keep) in self.program.consts.iter_mut().zip(keep) {
            if !keep {
                *c = None;
            } else if let Some(blob) = c {
                self.weight_bytes += blob.bytes().len();
            }
        }
    }

    /// Numbers of the inputs that a run takes, in order: all but the states.
    pub fn given_inputs(&self) -> &[usize] {
        &self.given
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
