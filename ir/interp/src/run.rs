//! Execution of graphs: values, their lifetimes, sizes, and control flow.

use crate::constant;
use crate::context::{Budget, Cx, Held};
use crate::error::{InterpError, OpError};
use crate::eval::eval;
use crate::noise::Noise;
use crate::view::View;
use ir::{ConstId, DType, Graph, Module, Op, Prim, Sym, SymKind, Tensor, TensorType, ValueId};
use std::borrow::Borrow;
use std::cell::RefCell;
use std::rc::Rc;

type Result<T> = std::result::Result<T, InterpError>;

/// Sees every value of the main graph right after it is computed, and the inputs before. What it answers, a
/// tensor of the same type, takes the place of the value in all that follows.
pub type Observer<'o> = dyn FnMut(ValueId, &Tensor) -> Option<Tensor> + 'o;

/// Executes a module. Holds nothing but the reference and the limits, so it is free to make.
#[derive(Clone, Copy)]
pub struct Interp<'m> {
    module: &'m Module,
    budget: Budget,
}

impl<'m> Interp<'m> {
    pub fn new(module: &'m Module) -> Interp<'m> {
        Interp::with_budget(module, Budget::RUN)
    }
    pub fn with_budget(module: &'m Module, budget: Budget) -> Interp<'m> {
        Interp { module, budget }
    }

    /// Outputs of the main graph. Inputs must have the declared element types and ranks; their extents
    /// give the entry symbols their values, within the declared ranges.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.execute(inputs, None, None)
    }

    /// As [`Interp::run`], with every rounding made otherwise; see [`crate::noise`].
    pub(crate) fn run_with_noise(&self, inputs: &[Tensor], seed: u64) -> Result<Vec<Tensor>> {
        self.execute(inputs, None, Some(Noise::new(seed)))
    }

    /// As [`Interp::run`]; shows every value of the main graph to `observe` in order of execution.
    /// A value is freed after its last use, so what is to be kept must be copied.
    pub fn run_with_values(&self, inputs: &[Tensor], observe: &mut Observer<'_>) -> Result<Vec<Tensor>> {
        self.execute(inputs, Some(observe), None)
    }

    fn execute(
        &self,
        inputs: &[Tensor],
        observe: Option<&mut Observer<'_>>,
        noise: Option<Noise>,
    ) -> Result<Vec<Tensor>> {
        let graph = &self.module.graph;
        if inputs.len() != graph.inputs.len() {
            let (expected, found) = (graph.inputs.len(), inputs.len());
            return Err(InterpError::InputCount { expected, found });
        }
        let cx = Cx::new(&self.module.symbols, self.budget);
        self.bind_inputs(&cx, inputs)?;
        let run = Run { module: self.module, cx, noise: noise.map(RefCell::new) };
        let slots = inputs.iter().map(Slot::Input).collect();
        let outputs = run.graph(graph, slots, observe)?;
        outputs.into_iter().map(|slot| run.take(slot)).collect()
    }

    fn bind_inputs(&self, cx: &Cx, inputs: &[Tensor]) -> Result<()> {
        let module = self.module;
        let entry = |s: Sym| module.symbols.infos.get(s.0 as usize).is_some_and(|i| i.kind == SymKind::Entry);
        let mut values = Vec::new();
        for (index, (&v, t)) in module.graph.inputs.iter().zip(inputs).enumerate() {
            let value = &module.graph[v];
            let at = |source| {
                let name = value.name.clone().unwrap_or_default();
                InterpError::Input { index, name, source: Box::new(source) }
            };
            let view = View::of(t).map_err(at)?;
            // one by one first, for a message that names the input
            let known = cx.unify(&[(&value.ty, view)], "input", &entry);
            if let Err(source) = known
                && !matches!(source, OpError::Unbound(_))
            {
                return Err(at(source));
            }
            values.push((&value.ty, view));
        }
        // what took more than one input to solve
        cx.unify(&values, "input", &entry).map_err(|source| InterpError::Input {
            index: 0,
            name: "all inputs together".into(),
            source: Box::new(source),
        })
    }
}

/// Results of one operation: constant folding. `symbol` gives the values of the size symbols that are
/// known; an operation that needs another one fails. Nothing beyond the budget is allocated or computed.
pub fn eval_op<T: Borrow<Tensor>>(
    module: &Module,
    op: &Op,
    operands: &[T],
    symbol: &dyn Fn(Sym) -> Option<i64>,
    budget: Budget,
) -> Result<Vec<Tensor>> {
    let cx = Cx::new(&module.symbols, budget);
    for i in 0..module.symbols.infos.len() {
        let s = Sym(i as u32);
        cx.set(s, symbol(s));
    }
    let run = Run { module, cx, noise: None };
    let operands: Vec<Slot> = operands.iter().map(|t| Slot::Input(t.borrow())).collect();
    let results = run.op(op, &operands)?;
    results.into_iter().map(|slot| run.take(slot)).collect()
}

/// A value: one that the run computed, one of the caller's, or a constant where it lies.
#[derive(Clone)]
enum Slot<'a> {
    Held(Rc<Held>),
    Input(&'a Tensor),
    Const(ConstId),
}

struct Run<'a> {
    module: &'a Module,
    cx: Cx<'a>,
    noise: Option<RefCell<Noise>>,
}

impl<'a> Run<'a> {
    fn hold(&self, t: Tensor) -> Slot<'a> {
        Slot::Held(self.cx.hold(t, false))
    }
    fn rounded(slot: &Slot<'a>) -> bool {
        matches!(slot, Slot::Held(held) if held.rounded)
    }
    fn view<'s>(&'s self, slot: &'s Slot<'a>) -> std::result::Result<View<'s>, OpError> {
        match slot {
            Slot::Held(held) => View::of(&held.tensor),
            Slot::Input(t) => View::of(t),
            Slot::Const(id) => match self.module.consts.get(id.0 as usize) {
                Some(data) => {
                    constant::view(data)?.ok_or_else(|| OpError::mismatch("constant", "bytes", "a formula"))
                }
                None => Err(OpError::mismatch("constant", "one of the module", id.0)),
            },
        }
    }
    fn take(&self, slot: Slot<'a>) -> Result<Tensor> {
        match slot {
            Slot::Held(held) => Ok(Held::into_tensor(held)),
            Slot::Input(t) => Ok(t.clone()),
            Slot::Const(id) => match self.module.consts.get(id.0 as usize) {
                Some(data) => constant::elements(&self.cx, data).map_err(|source| {
                    let name = data.name.clone().unwrap_or_default();
                    InterpError::Const { name, source: Box::new(source) }
                }),
                None => Err(InterpError::Malformed(format!("no constant {}", id.0))),
            },
        }
    }
    /// Attributes a failure to the node that the operation came from.
    fn at(&self, op: &Op, source: OpError) -> InterpError {
        let origin = self.module.origins.get(op.origin.index());
        InterpError::Op {
            node: origin.map_or_else(String::new, |o| o.node.clone()),
            op_type: origin.map_or_else(String::new, |o| o.op_type.clone()),
            prim: op.prim.name(),
            source: Box::new(source),
        }
    }

    /// Executes a graph on `inputs`, whose types the caller has checked.
    fn graph(
        &self,
        graph: &Graph,
        inputs: Vec<Slot<'a>>,
        mut observe: Option<&mut Observer<'_>>,
    ) -> Result<Vec<Slot<'a>>> {
        let mut values: Vec<Option<Slot<'a>>> = vec![None; graph.value_count()];
        let last_use = last_uses(graph);
        let mut define = |values: &mut [Option<Slot<'a>>], v: ValueId, slot: Slot<'a>| {
            let mut slot = slot;
            if let Some(observe) = observe.as_deref_mut() {
                let other = match &slot {
                    Slot::Held(held) => observe(v, &held.tensor),
                    Slot::Input(t) => observe(v, t),
                    Slot::Const(_) => observe(v, &self.take(slot.clone())?),
                };
                if let Some(other) = other {
                    slot = self.hold(other);
                }
            }
            match values.get_mut(v.index()) {
                Some(place) => *place = Some(slot),
                None => return Err(InterpError::Malformed(format!("no value {}", v.0))),
            }
            Ok(())
        };
        for (&v, slot) in graph.inputs.iter().zip(inputs) {
            define(&mut values, v, slot)?;
        }
        for (position, (_, op)) in graph.ops().enumerate() {
            let operands = op
                .operands
                .iter()
                .map(|v| match values.get(v.index()) {
                    Some(Some(slot)) => Ok(slot.clone()),
                    _ => Err(InterpError::Malformed(format!(
                        "{} uses value {} before it is defined",
                        op.prim.name(),
                        v.0
                    ))),
                })
                .collect::<Result<Vec<_>>>()?;
            self.cx.unbind(op.prim.defines());
            let results = self.op(op, &operands)?;
            drop(operands);
            self.check_results(graph, op, &results).map_err(|e| self.at(op, e))?;
            for (&v, slot) in op.results.iter().zip(results) {
                define(&mut values, v, slot)?;
            }
            for v in op.operands.iter().chain(&op.results) {
                if last_use[v.index()] == Last::Op(position) || last_use[v.index()] == Last::Never {
                    values[v.index()] = None;
                }
            }
        }
        let output = |v: &ValueId| {
            let slot = values.get(v.index()).cloned().flatten();
            slot.ok_or_else(|| InterpError::Malformed(format!("output {} is not defined", v.0)))
        };
        graph.outputs.iter().map(output).collect()
    }

    /// Compares the results with their declared types; symbols that the operation defines get
    /// their values from the shapes.
    fn check_results(
        &self,
        graph: &Graph,
        op: &Op,
        results: &[Slot<'a>],
    ) -> std::result::Result<(), OpError> {
        if results.len() != op.results.len() {
            return Err(OpError::mismatch("results", op.results.len(), results.len()));
        }
        let types = op.results.iter().map(|&v| &graph[v].ty);
        let pairs = self.typed(types, results)?;
        let defines = op.prim.defines();
        self.cx.unify(&pairs, "result", &|s| defines.contains(&s))
    }

    fn op(&self, op: &Op, operands: &[Slot<'a>]) -> Result<Vec<Slot<'a>>> {
        let fail = |source| self.at(op, source);
        // every operation costs something, so that no loop is free
        self.cx.spend(1).map_err(fail)?;
        match &op.prim {
            Prim::Const(id) => {
                let Some(data) = self.module.consts.get(id.0 as usize) else {
                    return Err(InterpError::Malformed(format!("no constant {}", id.0)));
                };
                match constant::view(data).map_err(fail)? {
                    Some(_) => Ok(vec![Slot::Const(*id)]),
                    None => Ok(vec![self.hold(constant::elements(&self.cx, data).map_err(fail)?)]),
                }
            }
            Prim::If { .. } => self.if_(op, operands),
            Prim::Loop { carried, carried_syms, .. } => self.loop_(op, *carried, carried_syms, operands),
            Prim::Call { .. } => match op.regions.as_slice() {
                [body] => self.region(op, body, operands.to_vec(), &[]),
                regions => Err(fail(OpError::mismatch("regions", 1, regions.len()))),
            },
            prim => {
                let views = operands.iter().map(|slot| self.view(slot));
                let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(fail)?;
                if let Some(noise) = &self.noise {
                    let noise = &mut *noise.borrow_mut();
                    return self.noisy(noise, prim, &views, operands).map_err(fail);
                }
                let results = eval(&self.cx, prim, &views).map_err(fail)?;
                Ok(results.into_iter().map(|t| self.hold(t)).collect())
            }
        }
    }

    /// One operation of a run with noise.
    fn noisy(
        &self,
        noise: &mut Noise,
        prim: &Prim,
        views: &[View],
        operands: &[Slot<'a>],
    ) -> std::result::Result<Vec<Slot<'a>>, OpError> {
        let rounded: Vec<bool> = operands.iter().map(Self::rounded).collect();
        let moved = noise.operands(prim, views, &rounded);
        let mut results = match &moved {
            Some(moved) => {
                let views = moved.iter().map(View::of).collect::<std::result::Result<Vec<_>, _>>()?;
                eval(&self.cx, prim, &views)?
            }
            None => eval(&self.cx, prim, views)?,
        };
        let any = noise.results(prim, views, &rounded, &mut results);
        let hold = |t: Tensor| {
            let rounded = any && t.dtype.is_float();
            Slot::Held(self.cx.hold(t, rounded))
        };
        Ok(results.into_iter().map(hold).collect())
    }

    /// Executes a region on values of its input types; `rebind` get their values from them.
    fn region(
        &self,
        op: &Op,
        region: &Graph,
        inputs: Vec<Slot<'a>>,
        rebind: &[Sym],
    ) -> Result<Vec<Slot<'a>>> {
        let fail = |source| self.at(op, source);
        if inputs.len() != region.inputs.len() {
            let (expected, found) = (region.inputs.len(), inputs.len());
            return Err(fail(OpError::mismatch("inputs of the region", expected, found)));
        }
        self.cx.unbind(rebind);
        let types = region.inputs.iter().map(|&v| &region[v].ty);
        let pairs = self.typed(types, &inputs).map_err(fail)?;
        self.cx.unify(&pairs, "input of the region", &|s| rebind.contains(&s)).map_err(fail)?;
        self.cx.enter().map_err(fail)?;
        let results = self.graph(region, inputs, None);
        self.cx.leave();
        results
    }

    /// The operand `i`, which has one element of `dtype`.
    fn scalar(&self, operands: &[Slot<'a>], i: usize, dtype: DType) -> std::result::Result<i64, OpError> {
        let Some(slot) = operands.get(i) else {
            return Err(OpError::mismatch("operands", format!("more than {i}"), operands.len()));
        };
        let x = self.view(slot)?;
        if x.dtype != dtype {
            return Err(OpError::mismatch(format!("operand {i}"), dtype, x.describe()));
        }
        // both types that are asked for fit
        x.int().map(|x| x as i64)
    }

    fn if_(&self, op: &Op, operands: &[Slot<'a>]) -> Result<Vec<Slot<'a>>> {
        let cond = self.scalar(operands, 0, DType::Bool).map_err(|e| self.at(op, e))?;
        let [then, otherwise] = op.regions.as_slice() else {
            return Err(self.at(op, OpError::mismatch("regions", 2, op.regions.len())));
        };
        let taken = if cond != 0 { then } else { otherwise };
        self.region(op, taken, operands[1..].to_vec(), &[])
    }

    fn loop_(
        &self,
        op: &Op,
        carried: usize,
        carried_syms: &[Sym],
        operands: &[Slot<'a>],
    ) -> Result<Vec<Slot<'a>>> {
        let fail = |source| self.at(op, source);
        let [body] = op.regions.as_slice() else {
            return Err(fail(OpError::mismatch("regions", 1, op.regions.len())));
        };
        let trip = self.scalar(operands, 0, DType::I64).map_err(fail)?;
        let mut go = self.scalar(operands, 1, DType::Bool).map_err(fail)? != 0;
        let Some(captures) = operands.get(2 + carried..) else {
            let expected = format!("at least {}", 2 + carried);
            return Err(fail(OpError::mismatch("operands", expected, operands.len())));
        };
        let Some(scans) = body.outputs.len().checked_sub(1 + carried) else {
            let expected = format!("at least {}", 1 + carried);
            let found = body.outputs.len();
            return Err(fail(OpError::mismatch("outputs of the body", expected, found)));
        };
        let mut state = operands[2..2 + carried].to_vec();
        let mut stacks: Vec<Vec<Slot<'a>>> = vec![Vec::new(); scans];
        let mut iteration = 0;
        while go && iteration < trip {
            let counter = self.hold(Tensor::from_i64(Vec::new(), &[iteration]));
            let inputs = [std::slice::from_ref(&counter), &state, captures].concat();
            let mut outputs = self.region(op, body, inputs, carried_syms)?.into_iter();
            let next = outputs.next().into_iter().collect::<Vec<_>>();
            go = self.scalar(&next, 0, DType::Bool).map_err(fail)? != 0;
            state = outputs.by_ref().take(carried).collect();
            for (stack, slot) in stacks.iter_mut().zip(outputs) {
                stack.push(slot);
            }
            iteration += 1;
        }
        if iteration == 0 && scans > 0 {
            // the body never ran: its carried sizes are those of the initial values
            self.cx.unbind(carried_syms);
            let types = body.inputs.iter().skip(1).map(|&v| &body[v].ty);
            let pairs = self.typed(types, &state).map_err(fail)?;
            let bound = self.cx.unify(&pairs, "carried value", &|s| carried_syms.contains(&s));
            bound.map_err(fail)?;
        }
        for (i, stack) in stacks.iter().enumerate() {
            let ty = &body[body.outputs[1 + carried + i]].ty;
            let stacked = self.stack(stack, ty).map_err(fail)?;
            state.push(Slot::Held(self.cx.hold(stacked, stack.iter().any(Self::rounded))));
        }
        Ok(state)
    }

    /// The slices under a new leading dim. Without any slice the sizes of the declared type count, 0 for
    /// those that only the body would have determined.
    fn stack(&self, slices: &[Slot<'a>], ty: &TensorType) -> std::result::Result<Tensor, OpError> {
        let mut shape = vec![slices.len()];
        let Some(first) = slices.first() else {
            shape.extend(ty.shape.iter().map(|d| self.cx.extent(d).unwrap_or(0)));
            return self.cx.zeros(ty.dtype, shape);
        };
        let first = self.view(first)?;
        shape.extend(first.shape);
        let n = self.cx.room(&shape, first.dtype.bytes())?;
        self.cx.spend(n)?;
        let mut all = crate::view::Gathered::new(first.dtype, n);
        for slot in slices {
            let x = self.view(slot)?;
            crate::elementwise::same(first, x)?;
            all.push(&x, 0, x.elems());
        }
        Ok(all.into_tensor(shape))
    }

    /// Values beside their declared types.
    fn typed<'s>(
        &'s self,
        types: impl Iterator<Item = &'s TensorType>,
        slots: &'s [Slot<'a>],
    ) -> std::result::Result<Vec<(&'s TensorType, View<'s>)>, OpError> {
        types.zip(slots).map(|(ty, slot)| Ok((ty, self.view(slot)?))).collect()
    }
}

/// When a value is used for the last time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Never,
    /// By the op at this position of the execution order.
    Op(usize),
    /// It is an output.
    Output,
}

fn last_uses(graph: &Graph) -> Vec<Last> {
    let mut last = vec![Last::Never; graph.value_count()];
    for (position, (_, op)) in graph.ops().enumerate() {
        for v in &op.operands {
            if let Some(l) = last.get_mut(v.index()) {
                *l = Last::Op(position);
            }
        }
    }
    for v in &graph.outputs {
        if let Some(l) = last.get_mut(v.index()) {
            *l = Last::Output;
        }
    }
    last
}
