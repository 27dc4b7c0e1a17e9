//! Inputs and states: sizes from shapes, and where their bytes lie.

use super::{Executor, memory};
use crate::arena::ALIGN;
use crate::context::InputView;
use crate::error::{Result, RunError};
use format::{SizeExpr, SizeOp, UNBOUND};

impl Executor<'_> {
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
            let region = memory(&mut kept.memory, &*model.device);
            self.state.moves += u64::from(region.grow(len + ALIGN)?);
            self.state.ptrs[def.buffer] = region.base();
            self.state.lens[def.buffer] = len;
        }
        Ok(())
    }

    pub(super) fn bind_inputs(&mut self) -> Result<()> {
        let (model, inputs) = (self.model, self.inputs);
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
            let in_place = model.device.adopt(view.data).filter(|at| at.addr().is_multiple_of(ALIGN));
            let ptr = match in_place {
                Some(at) => at,
                None => {
                    let staged = &mut self.state.staged[i];
                    self.state.moves += u64::from(staged.grow(view.data.len() + ALIGN)?);
                    let to = staged.base();
                    // SAFETY: the staging memory was grown to the input's length.
                    unsafe { self.state.queue.write(to, view.data) }?;
                    to
                }
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
}
