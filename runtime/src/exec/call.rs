//! Calls of kernels: which variant, with which operands.

use super::{Executor, Observer};
use crate::device::{Addr, Launch, nowhere};
use crate::error::{Result, RunError};
use crate::exec::Event;
use format::KernelDef;

impl Executor<'_> {
    pub(super) fn call(
        &mut self,
        k: usize,
        args: &[usize],
        origin: usize,
        observer: &mut Option<Observer<'_>>,
    ) -> Result<()> {
        let model = self.model;
        let kernel = &model.program.kernels[k];
        let i = self.variant(kernel)?;
        let variant = &kernel.variants[i];
        let trip = self.extent(&variant.trip, &kernel.name)?;
        let mut nanos = 0;
        if trip > 0 && variant.code.is_some() {
            let scratch = self.extent(&variant.scratch, &kernel.name)?;
            self.operands(args)?;
            let state = &mut *self.state;
            for (slot, &s) in state.sym_args.iter_mut().zip(&variant.syms) {
                *slot = state.syms[s as usize];
            }
            let launch = Launch {
                kernel: k,
                variant: i,
                origin,
                trip,
                ns_per_iter: variant.ns_per_iter,
                bufs: &state.args[..args.len()],
                syms: &state.sym_args[..variant.syms.len()],
                numbers: &variant.syms,
                sizes: &state.syms,
                scratch,
            };
            match &mut state.tape {
                Some(tape) => nanos = tape.launch(&launch),
                // SAFETY: every operand has the bytes that the program declares for the symbols as they are.
                None => nanos = unsafe { state.queue.launch(&launch, observer.is_some()) }?,
            }
            if self.state.tape.is_none() {
                self.look()?;
            }
        }
        if let Some(observe) = observer {
            observe(&Event { kernel: Some(k), variant: i, origin, args, nanos, buffers: self });
        }
        Ok(())
    }

    /// The first variant whose guards hold.
    fn variant(&self, kernel: &KernelDef) -> Result<usize> {
        for (i, v) in kernel.variants.iter().enumerate() {
            let mut fits = true;
            for (a, b) in &v.guards {
                let (a, b) = (self.eval(a, &kernel.name)?, self.eval(b, &kernel.name)?);
                fits &= 0 <= a && a < b;
            }
            if fits {
                return Ok(i);
            }
        }
        Err(RunError::Program(format!("no variant of kernel {} fits", kernel.name)))
    }

    /// Addresses of the operands, in [`super::State::args`].
    fn operands(&mut self, args: &[usize]) -> Result<()> {
        let (model, state) = (self.model, &mut *self.state);
        for (slot, &b) in state.args.iter_mut().zip(args) {
            let at: Addr = state.ptrs[b];
            *slot = match at.is_null() {
                false => at,
                true if state.lens[b] > 0 => {
                    let name = &model.program.buffers[b].name;
                    return Err(RunError::Program(format!("buffer {name} has no place")));
                }
                true => nowhere(),
            };
        }
        Ok(())
    }
}
