//! Execution: one context per concurrent caller.

use crate::error::{Result, RunError};
use crate::exec::{Executor, Observer, State};
use crate::model::Model;
use crate::states::StateView;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An input tensor in the caller's memory: dense, row-major. Copied only where it is not 64-byte aligned.
#[derive(Clone, Copy, Debug)]
pub struct InputView<'a> {
    pub elem: &'a str,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

/// An output tensor in the context's memory, valid until the next run.
#[derive(Clone, Copy, Debug)]
pub struct OutputView<'a> {
    pub name: &'a str,
    pub elem: &'static str,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

/// Memory and symbol values of one caller. After the first run at the largest sizes, a run allocates
/// nothing on the heap.
pub struct Context {
    model: Arc<Model>,
    state: State,
}

// SAFETY: the pointers lead into regions and constants that the context or its model own, and into inputs
// that are borrowed for the duration of `run`, which has `&mut self`.
unsafe impl Send for Context {}

impl Context {
    pub fn new(model: Arc<Model>) -> Context {
        let state = State::new(&model);
        Context { model, state }
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs the model; the outputs are then in [`Context::output`]. Inputs are in the model's order, without
    /// those that are states.
    pub fn run(&mut self, inputs: &[InputView<'_>]) -> Result<()> {
        self.run_with(inputs, None, None)
    }

    /// As [`Context::run`]; `cancel` is looked at between kernels, `observer` is told of each.
    pub fn run_with(
        &mut self,
        inputs: &[InputView<'_>],
        cancel: Option<&AtomicBool>,
        observer: Option<Observer<'_>>,
    ) -> Result<()> {
        let mut ex = Executor::with_state(&self.model, std::mem::take(&mut self.state), cancel);
        let result = ex.run(inputs, observer);
        self.state = ex.into_state();
        result
    }

    /// The i-th output of the last successful run.
    pub fn output(&self, i: usize) -> Option<OutputView<'_>> {
        let def = self.model.program.outputs.get(i)?;
        let (ptr, len) = (self.state.ptrs[def.buffer], self.state.lens[def.buffer]);
        let data = if ptr.is_null() || len == 0 {
            &[][..]
        } else {
            // SAFETY: the buffer was placed by the last run and nothing has moved since.
            unsafe { std::slice::from_raw_parts(ptr, len) }
        };
        Some(OutputView { name: &def.name, elem: def.elem.name, shape: &self.state.shapes[i], data })
    }

    /// State `i` (in the order of their declaration) as it is now.
    pub fn state(&self, i: usize) -> Option<StateView<'_>> {
        let def = self.model.program.states.get(i)?;
        Some(self.state.kept.get(i)?.view(&self.model, def))
    }

    /// Fills state `i` with the rows of a dense tensor.
    ///
    /// # Errors
    /// [`RunError::State`] where type or extents are not the state's, or there is no such state.
    pub fn set_state(&mut self, i: usize, rows: InputView<'_>) -> Result<()> {
        let program = &self.model.program;
        let (Some(s), Some(kept)) = (program.states.get(i), self.state.kept.get_mut(i)) else {
            return Err(RunError::State { name: format!("#{i}"), message: "there is no such state".into() });
        };
        kept.set(&program.inputs[s.input], s, &rows)
    }

    /// Forgets the rows of all states from row `len` on; 0 starts anew.
    pub fn truncate_states(&mut self, len: usize) {
        for kept in &mut self.state.kept {
            kept.len = kept.len.min(i64::try_from(len).unwrap_or(i64::MAX));
        }
    }

    /// Bytes of the arena, at its high-water mark.
    pub fn arena_bytes(&self) -> usize {
        self.state.arena.len()
    }
    /// Host functions called so far, and the nanoseconds spent in them.
    pub fn host_calls(&self) -> (u64, u64) {
        (self.state.host_calls, self.state.host_nanos)
    }
}
