//! Control flow in the host schedule: branches and loops around the steps of their regions.
//!
//! A region's inputs are the buffers of its captures. Results of a branch are copied into buffers that
//! both branches share. Carried values of a loop lie in fixed buffers that the end of the body
//! overwrites; where their sizes change from step to step these are own buffers, and the carried symbols
//! are rebound just before.

use crate::error::Result;
use crate::host::{Frame, Scheduler, symbols_of};
use ir::host::{BufferId, Place, Step};
use ir::{DType, Dim, Graph, Op, OriginId, Sym, SymKind, TensorType, ValueId};

impl Scheduler<'_> {
    /// The steps of a region on these inputs, and the buffers of its outputs.
    fn region(&mut self, g: &Graph, inputs: &[BufferId]) -> Result<(Vec<Step>, Vec<BufferId>)> {
        let mut frame = Frame::new(g, inputs);
        self.graph(&mut frame)?;
        let outputs = g.outputs.iter().map(|&v| self.value(&mut frame, v)).collect();
        Ok((frame.steps, outputs))
    }

    /// A buffer for a value whose size may change where `changing` are rebound.
    fn result_buffer(&mut self, name: String, ty: &TensorType, changing: &[Sym]) -> BufferId {
        let own = symbols_of(&ty.shape).iter().any(|s| changing.contains(s));
        let place = if own { Place::Own } else { Self::arena() };
        self.buffer(name, ty, place, None)
    }

    fn is_own(&self, b: BufferId) -> bool {
        self.out.buffers[b.0 as usize].place == Place::Own
    }

    /// A step that sizes the own buffers among these.
    fn size_own(&self, buffers: &[BufferId]) -> Step {
        let buffers = buffers.iter().copied().filter(|&b| self.is_own(b)).collect();
        Step::Layout { buffers, end: Dim::from(0) }
    }

    pub(crate) fn if_op(&mut self, f: &mut Frame, op: &Op, defines: &[Sym]) -> Result<()> {
        let g = f.graph;
        let cond = self.value(f, op.operands[0]);
        let captures: Vec<BufferId> = op.operands[1..].iter().map(|&v| self.value(f, v)).collect();
        let mut results = Vec::new();
        for &v in &op.results {
            let b = self.result_buffer(format!("if{}", v.0), &g[v].ty, defines);
            f.buffers.insert(v, b);
            results.push(b);
        }
        let mut branches = Vec::new();
        for region in &op.regions {
            let (mut steps, outputs) = self.region(region, &captures)?;
            let from: Vec<&TensorType> = region.outputs.iter().map(|&v| &region[v].ty).collect();
            let to: Vec<&TensorType> = op.results.iter().map(|&v| &g[v].ty).collect();
            for (sym, value) in definitions(defines, &to, &from) {
                steps.push(Step::SetSym { sym, value, origin: op.origin });
            }
            steps.push(self.size_own(&results));
            steps.extend(outputs.iter().zip(&results).map(|(&from, &to)| Step::Copy { from, to }));
            branches.push(steps);
        }
        let otherwise = branches.pop().unwrap_or_default();
        let then = branches.pop().unwrap_or_default();
        f.steps.push(Step::If { cond, then, otherwise });
        f.steps.push(self.layout());
        Ok(())
    }

    pub(crate) fn loop_op(
        &mut self,
        f: &mut Frame,
        op: &Op,
        carried: usize,
        carried_syms: &[Sym],
        defines: &[Sym],
    ) -> Result<()> {
        let g = f.graph;
        let origin = op.origin;
        let Some(region) = op.regions.first() else { return Ok(()) };
        let operand = |n: usize| op.operands[n];
        let trip = self.value(f, operand(0));
        let cond = self.value(f, operand(1));
        let starts: Vec<BufferId> = (0..carried).map(|i| self.value(f, operand(2 + i))).collect();
        let captures: Vec<BufferId> = op.operands[2 + carried..].iter().map(|&v| self.value(f, v)).collect();
        let ty_in = |i: usize| &region[region.inputs[1 + i]].ty;
        let ty_out = |i: usize| &region[region.outputs[1 + i]].ty;
        let iter = self.buffer("iteration".into(), &TensorType::scalar(DType::I64), Self::arena(), None);
        let cond_next =
            self.buffer("condition".into(), &TensorType::scalar(DType::Bool), Self::arena(), None);
        let count = self.symbols.fresh("iterations", SymKind::Value);

        // carried values get their start
        let inputs: Vec<&TensorType> = (0..carried).map(ty_in).collect();
        let initial: Vec<&TensorType> = (0..carried).map(|i| &g[operand(2 + i)].ty).collect();
        let current: Vec<BufferId> =
            (0..carried).map(|i| self.result_buffer(format!("carried{i}"), ty_in(i), carried_syms)).collect();
        let first = definitions(carried_syms, &inputs, &initial);
        f.steps.extend(first.into_iter().map(|(sym, value)| Step::SetSym { sym, value, origin }));
        // sizes of scan outputs that no iteration defines
        let scans: Vec<ValueId> = op.results[carried..].to_vec();
        let slices: Vec<&TensorType> = (carried..carried + scans.len()).map(ty_out).collect();
        let stacked: Vec<TensorType> = scans
            .iter()
            .map(|&v| TensorType::new(g[v].ty.dtype, g[v].ty.shape.get(1..).unwrap_or(&[]).to_vec()))
            .collect();
        let stacked: Vec<&TensorType> = stacked.iter().collect();
        let scan_syms = definitions(defines, &stacked, &slices);
        for (sym, _) in &scan_syms {
            let value = Dim::from(self.symbols.get(*sym).lo.max(0));
            f.steps.push(Step::SetSym { sym: *sym, value, origin });
        }
        f.steps.push(self.size_own(&current));
        f.steps.extend(starts.iter().zip(&current).map(|(&from, &to)| Step::Copy { from, to }));

        // the body
        let region_inputs: Vec<BufferId> =
            [iter].into_iter().chain(current.iter().copied()).chain(captures).collect();
        let (mut body, outputs) = self.region(region, &region_inputs)?;
        body.push(Step::Copy { from: outputs[0], to: cond_next });
        let mut stacks = Vec::new();
        for (&v, &from) in scans.iter().zip(&outputs[1 + carried..]) {
            let to = self.buffer(format!("scan{}", v.0), &g[v].ty, Place::Own, None);
            body.push(Step::Append { from, to, index: count });
            stacks.push(to);
        }
        body.extend(scan_syms.into_iter().map(|(sym, value)| Step::SetSym { sym, value, origin }));
        let next = outputs[1..1 + carried].to_vec();
        self.carry(&mut body, region, &current, next, carried_syms, origin);
        f.steps.push(Step::Loop { trip, cond, iter, cond_next, count, body, origin });

        // results
        let finals: Vec<&TensorType> = op.results[..carried].iter().map(|&v| &g[v].ty).collect();
        let mut last = definitions(defines, &finals, &inputs);
        for &v in &scans {
            if let Some(s) = g[v].ty.shape.first().and_then(Dim::as_sym).filter(|s| defines.contains(s)) {
                last.push((s, Dim::from(count)));
            }
        }
        f.steps.extend(last.into_iter().map(|(sym, value)| Step::SetSym { sym, value, origin }));
        f.buffers.extend(op.results.iter().copied().zip(current.into_iter().chain(stacks.iter().copied())));
        f.steps.push(self.size_own(&stacks));
        Ok(())
    }

    /// The end of a loop body: the next values of the carried buffers and symbols.
    fn carry(
        &mut self,
        body: &mut Vec<Step>,
        region: &Graph,
        current: &[BufferId],
        mut next: Vec<BufferId>,
        carried_syms: &[Sym],
        origin: OriginId,
    ) {
        // a value that another carried buffer holds is saved before that is overwritten
        for (i, b) in next.iter_mut().enumerate() {
            if current.iter().enumerate().any(|(j, c)| c == b && j != i) {
                let ty = &region[region.outputs[1 + i]].ty;
                let saved = self.buffer(format!("saved{i}"), ty, Self::arena(), None);
                body.push(Step::Copy { from: *b, to: saved });
                *b = saved;
            }
        }
        let ty = |values: &[ValueId], i: usize| region[values[1 + i]].ty.clone();
        let to: Vec<TensorType> = (0..current.len()).map(|i| ty(&region.inputs, i)).collect();
        let from: Vec<TensorType> = (0..current.len()).map(|i| ty(&region.outputs, i)).collect();
        let (to, from): (Vec<&TensorType>, Vec<&TensorType>) = (to.iter().collect(), from.iter().collect());
        let mut changes = definitions(carried_syms, &to, &from);
        changes.retain(|(s, d)| d.as_sym() != Some(*s));
        // all at once: where a new size is made of another one that changes too, through temporaries
        let changing: Vec<Sym> = changes.iter().map(|c| c.0).collect();
        let entangled = changes
            .iter()
            .any(|(s, d)| symbols_of(std::slice::from_ref(d)).iter().any(|x| x != s && changing.contains(x)));
        if entangled {
            for (_, value) in &mut changes {
                let sym = self.symbols.fresh("next", SymKind::Value);
                let d = std::mem::replace(value, Dim::from(sym));
                body.push(Step::SetSym { sym, value: d, origin });
            }
        }
        body.extend(changes.into_iter().map(|(sym, value)| Step::SetSym { sym, value, origin }));
        let moved: Vec<(BufferId, BufferId)> =
            next.into_iter().zip(current.iter().copied()).filter(|(from, to)| from != to).collect();
        let targets: Vec<BufferId> = moved.iter().map(|m| m.1).collect();
        body.push(self.size_own(&targets));
        body.extend(moved.into_iter().map(|(from, to)| Step::Copy { from, to }));
    }
}

/// Values of `symbols` that occur as dims of `to` when values of types `from` are stored there.
fn definitions(symbols: &[Sym], to: &[&TensorType], from: &[&TensorType]) -> Vec<(Sym, Dim)> {
    let mut list: Vec<(Sym, Dim)> = Vec::new();
    for (t, f) in to.iter().zip(from) {
        for (d, value) in t.shape.iter().zip(&f.shape) {
            if let Some(s) = d.as_sym()
                && symbols.contains(&s)
                && list.iter().all(|(known, _)| *known != s)
            {
                list.push((s, value.clone()));
            }
        }
    }
    list
}
