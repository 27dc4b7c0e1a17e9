//! The host schedule: kernel calls in order, sizes, and control flow.
//!
//! Buffers get a class here (constant, input, output, arena) and arena buffers an offset in
//! [`crate::place`]. [`Step::Layout`] steps stand where sizes become known: at the start, after each
//! step that binds a symbol, and at the start of loop bodies.

use crate::error::{PassError, Result};
use crate::facts::static_elems;
use crate::group::{Choices, Item, Plan, plan};
use crate::kernels::KernelUnit;
use crate::limits::Fuel;
use crate::pull::Unit;
use crate::schedule::operands::Operand;
use ir::host::{Buffer, BufferId, Place, Step};
use ir::kernel::{Access, Expr, Generated, Kernel};
use ir::target::TargetDesc;
use ir::{
    ConstId, DType, Dim, Graph, Layout, Module, Op, OpId, OriginId, Prim, Sym, Symbols, TensorType, ValueId,
};
use std::collections::HashMap;

const PASS: &str = "host-schedule";

/// A program whose kernels have no schedule yet.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    pub module: Module,
    /// Distinct kernels.
    pub kernels: Vec<Kernel>,
    pub buffers: Vec<Buffer>,
    pub init: Vec<Step>,
    pub steps: Vec<Step>,
    pub inputs: Vec<BufferId>,
    pub outputs: Vec<BufferId>,
}

/// Groups all graphs of the module and schedules their kernels.
pub fn schedule(module: Module, target: &TargetDesc, choices: Choices, fuel: &Fuel) -> Result<Planned> {
    let mut s = Scheduler {
        consts: &module.consts,
        origins: &module.origins,
        states: &module.states,
        symbols: module.symbols.clone(),
        out: Planned::default(),
        kernel_ids: HashMap::new(),
        const_buffers: HashMap::new(),
        choices,
        fuel,
        target,
        needs: HashMap::new(),
        packed: HashMap::new(),
    };
    let g = &module.graph;
    let inputs: Vec<BufferId> = (0..g.inputs.len())
        .map(|i| {
            let v = g.inputs[i];
            let name = g[v].name.clone().unwrap_or_else(|| format!("input{i}"));
            s.buffer(name, &g[v].ty, Place::Input(i), Some(v))
        })
        .collect();
    let mut frame = Frame::new(g, &inputs);
    frame.main = true;
    // a state is updated where it lies
    frame.buffers.extend(module.states.iter().map(|s| (g.outputs[s.output], inputs[s.input])));
    s.graph(&mut frame)?;
    for (i, &v) in g.outputs.iter().enumerate() {
        let from = s.value(&mut frame, v);
        let mine = s.out.buffers[from.0 as usize].place == Place::Output(i)
            || module.states.iter().any(|s| s.output == i);
        let to = if mine {
            from
        } else {
            let to = s.buffer(format!("output{i}"), &g[v].ty, Place::Output(i), Some(v));
            frame.steps.push(s.layout());
            frame.steps.push(Step::Copy { from, to });
            to
        };
        s.out.outputs.push(to);
    }
    s.out.inputs = inputs;
    s.out.steps = std::mem::take(&mut frame.steps);
    let Scheduler { symbols, mut out, packed, .. } = s;
    crate::stage::fuse_packing(&mut out, &packed);
    out.module = module;
    out.module.symbols = symbols;
    crate::packs::share(&mut out);
    Ok(out)
}

pub(crate) struct Scheduler<'m> {
    consts: &'m [ir::ConstData],
    origins: &'m [ir::Origin],
    states: &'m [ir::graph::State],
    pub(crate) symbols: Symbols,
    pub(crate) out: Planned,
    kernel_ids: HashMap<String, usize>,
    const_buffers: HashMap<ConstId, BufferId>,
    choices: Choices,
    pub(crate) fuel: &'m Fuel,
    pub(crate) target: &'m TargetDesc,
    /// What contractions need of their operands, by [`kernel_key`].
    pub(crate) needs: HashMap<String, Vec<Operand>>,
    /// Packed constants.
    pub(crate) packed: HashMap<(BufferId, Layout), BufferId>,
}

/// One graph being scheduled.
pub(crate) struct Frame<'g> {
    pub(crate) graph: &'g Graph,
    pub(crate) buffers: HashMap<ValueId, BufferId>,
    plan: Plan,
    pub(crate) steps: Vec<Step>,
    /// The main graph: its outputs may be computed in place.
    main: bool,
}

impl<'g> Frame<'g> {
    pub(crate) fn new(graph: &'g Graph, inputs: &[BufferId]) -> Frame<'g> {
        let buffers = graph.inputs.iter().copied().zip(inputs.iter().copied()).collect();
        Frame { graph, buffers, plan: Plan::default(), steps: Vec::new(), main: false }
    }
}

/// Bytes of a buffer, its layout's padding included.
pub fn buffer_bytes(dtype: DType, shape: &[Dim], layout: &Layout, symbols: &Symbols) -> Dim {
    let mut bytes = Dim::from(dtype.bytes());
    for (d, n) in shape.iter().enumerate() {
        let split = Dim::from(layout.split_of(d));
        let (lo, hi) = layout.halo.get(d).copied().unwrap_or((0, 0));
        let padded = n + Dim::from(lo) + Dim::from(hi);
        bytes = bytes * padded.ceil_div(&split, symbols) * split;
    }
    bytes
}

impl Scheduler<'_> {
    pub(crate) fn buffer(
        &mut self,
        name: String,
        ty: &TensorType,
        place: Place,
        value: Option<ValueId>,
    ) -> BufferId {
        let layout = Layout::row_major(ty.rank());
        let bytes = buffer_bytes(ty.dtype, &ty.shape, &layout, &self.symbols);
        let shape = ty.shape.clone();
        self.out.buffers.push(Buffer { name, dtype: ty.dtype, shape, layout, bytes, place, value });
        BufferId(self.out.buffers.len() as u32 - 1)
    }

    /// A place in the arena whose offset is planned later.
    pub(crate) fn arena() -> Place {
        Place::Arena { offset: Dim::from(0) }
    }

    /// A step that `place` fills in.
    pub(crate) fn layout(&self) -> Step {
        Step::Layout { buffers: Vec::new(), end: Dim::from(0) }
    }

    /// The buffer of a value that lies in one of its own.
    pub(crate) fn value(&mut self, f: &mut Frame, v: ValueId) -> BufferId {
        if let Some(&b) = f.buffers.get(&v) {
            return b;
        }
        if let Some(temp) = f.plan.temps.iter().find(|t| t.id == v) {
            let place = if temp.init { Place::Init } else { Self::arena() };
            let id = self.buffer("winograd".into(), &temp.ty.clone(), place, None);
            f.buffers.insert(v, id);
            return id;
        }
        let g = f.graph;
        let value = &g[v];
        let op = g.def_op(v);
        let id = if let Some(op) = op
            && let Prim::Const(c) = g[op].prim
        {
            self.constant(c, v)
        } else {
            let constant = f.plan.constant.get(v.index()) == Some(&true);
            let place = if constant { Place::Init } else { self.result_place(f, v) };
            let name = value.name.clone().unwrap_or_else(|| format!("v{}", v.0));
            let main = f.main.then_some(v);
            let id = self.buffer(name, &value.ty, place, main);
            if let Some(layout) = f.plan.layouts.get(&v) {
                let b = &mut self.out.buffers[id.0 as usize];
                b.layout.clone_from(layout);
                b.bytes = buffer_bytes(b.dtype, &b.shape, layout, &self.symbols);
            }
            id
        };
        f.buffers.insert(v, id);
        id
    }

    fn constant(&mut self, c: ConstId, v: ValueId) -> BufferId {
        if let Some(&b) = self.const_buffers.get(&c) {
            return b;
        }
        let data = &self.consts[c.0 as usize];
        let name = data.name.clone().unwrap_or_else(|| format!("c{}", v.0));
        let shape = data.shape.iter().map(|&d| Dim::from(d)).collect();
        let id = self.buffer(name, &TensorType::new(data.dtype, shape), Place::Const(c), None);
        self.const_buffers.insert(c, id);
        id
    }

    /// Outputs of the main graph whose sizes are known before they are computed need no copy.
    fn result_place(&self, f: &Frame, v: ValueId) -> Place {
        let g = f.graph;
        let direct = || {
            let output = g.outputs.iter().position(|&o| o == v)?;
            let op = g.def_op(v)?;
            let mut defined = g.order.iter().take_while(|&&o| o != op).flat_map(|&o| g[o].prim.defines());
            let entry = |s: &Sym| self.symbols.get(*s).kind == ir::SymKind::Entry;
            let known = symbols_of(&g[v].ty.shape).iter().all(|s| entry(s) || defined.any(|d| d == s));
            let kernel = !matches!(crate::facts::class(&g[op].prim), crate::facts::Class::Host);
            (known && kernel).then_some(Place::Output(output))
        };
        if f.main { direct().unwrap_or_else(Self::arena) } else { Self::arena() }
    }

    /// Schedules the kernels and control flow of one graph.
    pub(crate) fn graph(&mut self, f: &mut Frame) -> Result<()> {
        let symbols = self.symbols.clone();
        let unit = Unit {
            graph: f.graph,
            consts: self.consts,
            symbols: &symbols,
            #[cfg(feature = "planted-faults")]
            off_by_one: self.fuel.planted(crate::planted::Fault::Pull),
        };
        let states = if f.main { self.states } else { &[] };
        f.plan = plan(unit, self.origins, states, self.choices, self.fuel)?;
        f.steps.push(self.layout());
        let mut checks = self.checks(f.graph)?.into_iter().peekable();
        let items = std::mem::take(&mut f.plan.items);
        let position: HashMap<OpId, usize> =
            f.graph.order.iter().enumerate().map(|(i, &op)| (op, i)).collect();
        for item in items {
            let op = match &item {
                Item::Kernel(k) => k.op,
                Item::Host(op) => *op,
            };
            while let Some(check) = checks.next_if(|c| c.0 <= position[&op]) {
                f.steps.push(check.1);
            }
            match item {
                Item::Kernel(k) => self.call(f, k)?,
                Item::Host(op) => self.host(f, op)?,
            }
        }
        f.steps.extend(checks.map(|c| c.1));
        Ok(())
    }

    /// Conditions on sizes that no pass could prove, with the position of their op.
    fn checks(&self, g: &Graph) -> Result<Vec<(usize, Step)>> {
        let mut checks = Vec::new();
        for (at, (_, op)) in g.ops().enumerate() {
            let symbolic = |v: &ValueId| static_elems(&g[*v].ty.shape).is_none();
            if !op.operands.iter().chain(&op.results).any(symbolic) {
                continue;
            }
            let operands: Vec<&TensorType> = op.operands.iter().map(|&v| &g[v].ty).collect();
            let required =
                ir::infer::requirements(&op.prim, &operands, &op.regions, self.consts, &self.symbols)?;
            for r in required {
                let (a, b) = r.as_equality(&self.symbols);
                let message = format!("{}: sizes do not agree", op.prim.name());
                let step = Step::CheckEq { a, b, message, origin: op.origin };
                if !checks.iter().any(|(_, s)| same_check(s, &step)) {
                    checks.push((at, step));
                }
            }
        }
        Ok(checks)
    }

    fn call(&mut self, f: &mut Frame, unit: KernelUnit) -> Result<()> {
        let origin = f.graph[unit.op].origin;
        let args: Vec<BufferId> = unit.args.iter().map(|&v| self.value(f, v)).collect();
        let (kernel, args) = self.stage(f, unit.kernel, args, origin, unit.init)?;
        let step = self.call_step(kernel, args, origin);
        if unit.init {
            self.out.init.push(step)
        } else {
            f.steps.push(step)
        }
        Ok(())
    }

    pub(crate) fn call_step(&mut self, kernel: Kernel, args: Vec<BufferId>, origin: OriginId) -> Step {
        let key = kernel_key(&kernel);
        let next = self.out.kernels.len();
        let id = *self.kernel_ids.entry(key).or_insert(next);
        if id == next {
            self.out.kernels.push(kernel);
        }
        Step::Call { kernel: id, args, origin }
    }

    /// An op that is no kernel of the grouping.
    fn host(&mut self, f: &mut Frame, id: OpId) -> Result<()> {
        let g = f.graph;
        let op = &g[id];
        let origin = op.origin;
        match &op.prim {
            Prim::BindDim(sym) => {
                let from = self.value(f, op.operands[0]);
                f.steps.push(Step::BindSym { sym: *sym, from, origin });
                f.steps.push(self.layout());
            }
            Prim::Assert { message } => {
                let cond = self.value(f, op.operands[0]);
                f.steps.push(Step::Assert { cond, message: message.clone(), origin });
            }
            Prim::Sort { axis, descending } => {
                let generated = Generated::Sort { axis: *axis, descending: *descending };
                self.generated(f, op, generated, None);
            }
            Prim::TopK { axis, largest, .. } => {
                self.generated(f, op, Generated::TopK { axis: *axis, largest: *largest }, None);
            }
            Prim::Compact { sym } => {
                let ty = TensorType::scalar(DType::I64);
                let count = self.buffer("count".into(), &ty, Self::arena(), None);
                // room for all of them: the count is known afterwards only
                let capacity = Dim::product(&g[op.operands[0]].ty.shape) * Dim::from(8);
                let result = self.value(f, op.results[0]);
                self.out.buffers[result.0 as usize].bytes = capacity;
                self.generated(f, op, Generated::Compact, Some(count));
                f.steps.push(Step::BindSym { sym: *sym, from: count, origin });
                f.steps.push(self.layout());
            }
            Prim::If { defines } => self.if_op(f, op, defines)?,
            Prim::Loop { carried, carried_syms, defines } => {
                self.loop_op(f, op, *carried, carried_syms, defines)?;
            }
            Prim::Host { func, defines } => {
                let args = op.operands.iter().map(|&v| self.value(f, v)).collect();
                let mut results = Vec::new();
                for &v in &op.results {
                    let b = self.value(f, v);
                    self.out.buffers[b.0 as usize].place = Place::Own;
                    results.push(b);
                }
                let defines = defines.clone();
                f.steps.push(Step::Host { func: func.clone(), args, results, defines, origin });
                f.steps.push(self.layout());
            }
            _ => {
                return Err(PassError::unsupported(PASS, self.origins, g, id, op.prim.name()));
            }
        }
        Ok(())
    }

    /// A call of a generated kernel: operands, results, and the count where there is one.
    fn generated(&mut self, f: &mut Frame, op: &Op, generated: Generated, count: Option<BufferId>) {
        let mut kernel = Kernel::default();
        kernel.name = op.prim.name().into();
        kernel.generated = Some(generated);
        kernel.origins.push(op.origin);
        let mut args = Vec::new();
        let values = op.operands.iter().map(|v| (*v, Access::Read));
        for (v, access) in values.chain(op.results.iter().map(|v| (*v, Access::Write))) {
            let ty = &f.graph[v].ty;
            let id = self.value(f, v);
            add_operand(&mut kernel, args.len(), ty, access);
            args.push(id);
        }
        if let Some(count) = count {
            add_operand(&mut kernel, args.len(), &TensorType::scalar(DType::I64), Access::Write);
            args.push(count);
        }
        let step = self.call_step(kernel, args, op.origin);
        f.steps.push(step);
    }
}

fn add_operand(kernel: &mut Kernel, n: usize, ty: &TensorType, access: Access) {
    kernel.add_buffer(ir::kernel::Buffer {
        name: format!("{}{n}", if access == Access::Read { "in" } else { "out" }),
        dtype: ty.dtype,
        shape: ty.shape.clone(),
        layout: Layout::row_major(ty.rank()),
        access,
        constant: false,
    });
}

fn same_check(a: &Step, b: &Step) -> bool {
    match (a, b) {
        (Step::CheckEq { a: x, b: y, .. }, Step::CheckEq { a: u, b: v, .. }) => x == u && y == v,
        _ => false,
    }
}

/// Symbols that occur in a shape.
pub fn symbols_of(shape: &[Dim]) -> Vec<Sym> {
    let mut symbols = Vec::new();
    for d in shape {
        d.visit_atoms(&mut |a| {
            if let ir::Atom::Sym(s) = a
                && !symbols.contains(s)
            {
                symbols.push(*s);
            }
        });
    }
    symbols
}

/// Text that is equal for kernels that compute the same: names do not matter, and origins only where
/// the kernel can report an index error of its own.
pub(crate) fn kernel_key(k: &Kernel) -> String {
    use std::fmt::Write;
    let mut key = String::new();
    for b in &k.buffers {
        let _ = write!(key, "{:?}{:?}{:?}{:?}{}|", b.dtype, b.shape, b.layout, b.access, b.constant);
    }
    let _ = write!(key, "{:?}{:?}{:?}{:?}", k.domain, k.stmts, k.exprs(), k.generated);
    for s in &k.stages {
        let _ = write!(key, "{:?}{{{}}}", s.args, kernel_key(&s.kernel));
    }
    if k.exprs().iter().any(|e| matches!(e, Expr::Bind { .. })) || key.contains("Bind {") {
        let _ = write!(key, "{:?}", k.origins);
    }
    key
}
