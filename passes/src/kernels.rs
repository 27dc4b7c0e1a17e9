//! Kernels from fusion groups: the statements for one materialised value.

use crate::facts::{Class, class};
use crate::index::{IndexFacts, inside, vars_of};
use crate::normalise::normalise;
use crate::pull::{Home, PullError, Puller, Unit, accumulator, bounds_guards};
use ir::kernel::{Access, Axis, Expr, ExprId, Guard, Kernel, Stmt};
use ir::prim::{Combine, ConvertMode, Monoid};
use ir::{DType, Dim, OpId, OriginId, Prim, ValueId, Var};
use std::collections::{HashMap, HashSet};

/// One kernel call: the kernel and the values whose buffers are its operands.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelUnit {
    pub kernel: Kernel,
    pub args: Vec<ValueId>,
    /// The op that the kernel is reported under.
    pub op: OpId,
    /// Depends on constants alone: executed once per program.
    pub init: bool,
}

/// What the kernel builders share.
pub struct Build<'a> {
    pub unit: Unit<'a>,
    pub homes: &'a HashMap<ValueId, Home>,
    pub inline: &'a dyn Fn(ValueId) -> bool,
    pub limit: usize,
    pub op: OpId,
}

type Result<T> = std::result::Result<T, PullError>;

/// Elements of a vector, most likely.
const LANES: i64 = 16;

impl<'a> Build<'a> {
    pub fn puller(&self) -> Puller<'a> {
        Puller::new(self.unit, self.inline, self.homes, self.limit)
    }

    /// Axes over `shape`, and the index of their point.
    fn root_axes(p: &mut Puller, shape: &[Dim]) -> (Vec<Axis>, Vec<Dim>) {
        let mut axes = Vec::new();
        let mut index = Vec::new();
        for (d, extent) in shape.iter().enumerate() {
            let (i, axis) = p.axis(format!("i{d}"), extent);
            p.scope.extend(axis.iter().map(|a| a.var));
            axes.extend(axis);
            index.push(i);
        }
        (axes, index)
    }

    pub fn finish(&self, mut p: Puller<'a>, domain: Vec<Axis>, tail: Vec<Stmt>) -> Result<KernelUnit> {
        let mut kernel = std::mem::take(&mut p.kernel);
        kernel.domain = domain;
        kernel.stmts = std::mem::take(&mut p.stmts);
        kernel.stmts.extend(tail);
        kernel.origins = self.origins(&p.pulled);
        kernel.name = self.name(&p.pulled);
        let mut kernel = normalise(kernel, p.extents.clone(), self.unit.symbols);
        // after axes were split: a reduction may depend on the outer part of one alone
        split_domain(&mut kernel, &p.stmt_values)?;
        self.channels_fill_lanes(&kernel, &p.stmt_values)?;
        Ok(KernelUnit { kernel, args: p.args, op: self.op, init: false })
    }

    /// A convolution whose channels are interleaved with places of the result before they are stored: where
    /// no axis of the kernel has enough of them for a vector, it lies in a buffer of its own.
    fn channels_fill_lanes(&self, kernel: &Kernel, values: &[ValueId]) -> Result<()> {
        let reductions = kernel.stmts.iter().filter_map(|s| match s {
            Stmt::Reduce { value, .. } => Some(*value),
            _ => None,
        });
        for (value, &v) in reductions.zip(values) {
            let g = self.unit.graph;
            // not the root itself, which gets the buffer
            let inside = g.def_op(v).filter(|op| *op != self.op);
            let convolves = inside.is_some_and(|op| matches!(g[op].prim, Prim::Convolve { .. }));
            let Expr::Binary(_, _, weights) = kernel.get(value) else { continue };
            let Expr::Read { index, .. } = kernel.get(*weights) else { continue };
            let Some(channel) = index.first().filter(|_| convolves) else { continue };
            let parts: Vec<i64> = kernel
                .domain
                .iter()
                .filter(|a| channel.uses_var(a.var))
                .map(|a| a.extent.as_const().unwrap_or(i64::MAX))
                .collect();
            let all = g[v].ty.shape.get(1).and_then(Dim::as_const).unwrap_or(0);
            let most = parts.iter().copied().max().unwrap_or(0);
            if parts.len() > 1 && most < LANES.min(all) {
                return Err(PullError::Materialise(v));
            }
        }
        Ok(())
    }

    /// Origins of the ops, those that can report an index error first.
    fn origins(&self, ops: &[OpId]) -> Vec<OriginId> {
        let g = self.unit.graph;
        let reports = |op: &OpId| matches!(g[*op].prim, Prim::Gather { .. } | Prim::Scatter { .. });
        let (first, rest): (Vec<OpId>, Vec<OpId>) =
            [self.op].into_iter().chain(ops.iter().copied()).partition(reports);
        let mut origins: Vec<OriginId> = Vec::new();
        for op in first.into_iter().chain(rest) {
            if !origins.contains(&g[op].origin) {
                origins.push(g[op].origin);
            }
        }
        origins
    }

    /// `convolve_add_max`: the ops in order of execution, reductions always, at most five in all.
    fn name(&self, ops: &[OpId]) -> String {
        let g = self.unit.graph;
        let mut ops: Vec<OpId> = [self.op].into_iter().chain(ops.iter().copied()).collect();
        ops.sort();
        ops.dedup();
        let heavy = |op: &OpId| matches!(class(&g[*op].prim), Class::Gemm | Class::Reduce | Class::Ordered);
        let named = |op: &OpId| !matches!(class(&g[*op].prim), Class::View | Class::Const | Class::Source);
        let kept: Vec<&OpId> = if ops.iter().any(named) {
            ops.iter().filter(|op| named(op)).collect()
        } else {
            ops.iter().collect()
        };
        let surplus = kept.len().saturating_sub(5);
        let mut dropped = 0;
        let mut names: Vec<&str> = Vec::new();
        for op in kept.iter().rev() {
            if names.len() >= 4 && dropped < surplus && !heavy(op) {
                dropped += 1;
                continue;
            }
            names.push(g[**op].prim.name());
        }
        names.truncate(8);
        names.reverse();
        names.join("_")
    }

    /// The kernel that computes all of `root` from values that are not inline.
    pub fn root(&self, root: ValueId) -> Result<KernelUnit> {
        let mut p = self.puller();
        let (axes, index) = Self::root_axes(&mut p, &self.unit.graph[root].ty.shape);
        let value = p.pull(root, index.clone())?;
        let (home, at) = p.locate(root, &index);
        let buf = p.buffer(home, Access::Write);
        let store = Stmt::store(buf, at, value);
        self.finish(p, axes, vec![store])
    }

    /// Copies `piece` into `into` from `offset` on.
    pub fn place(&self, piece: ValueId, into: ValueId, offset: &[Dim]) -> Result<KernelUnit> {
        let mut p = self.puller();
        let (axes, index) = Self::root_axes(&mut p, &self.unit.graph[piece].ty.shape);
        let value = p.pull(piece, index.clone())?;
        let at: Vec<Dim> = index.iter().zip(offset).map(|(i, o)| i + o).collect();
        // a slice that is written at run-time positions must lie inside its base
        let guards = bounds_guards(&at, &self.unit.graph[into].ty.shape);
        let guards: Vec<Guard> = guards
            .into_iter()
            .zip(&self.unit.graph[piece].ty.shape)
            .zip(offset)
            .filter(|((g, n), o)| {
                let end = *o + *n;
                let within =
                    o.bounds(self.unit.symbols).0 >= 0 && end.provably_le(&g.bound, self.unit.symbols);
                !(within || inside(g, &p.facts()))
            })
            .map(|((g, _), _)| g)
            .collect();
        let (home, at) = p.locate(into, &at);
        let buf = p.buffer(home, Access::Write);
        let store = Stmt::Store { axes: Vec::new(), buf, index: at, guards, value, combine: Combine::Set };
        self.finish(p, axes, vec![store])
    }

    /// Fills the border that a constant pad puts around its operand: per padded dim a strip before
    /// and a strip after, within the interior of the dims before it. In one kernel, whose domain are the dims before
    /// the first padded one and whose stores have all others as axes; or `apart`, each in a kernel over its elements, two of
    /// one size together.
    pub fn border(
        &self,
        padded: ValueId,
        operand: ValueId,
        lo: &[Dim],
        hi: &[Dim],
        apart: bool,
    ) -> Result<Vec<KernelUnit>> {
        let g = self.unit.graph;
        let (outer, inner) = (&g[padded].ty.shape, &g[operand].ty.shape);
        let is_padded = |d: usize| !lo[d].is_const(0) || !hi[d].is_const(0);
        let rank = outer.len();
        let first = (0..rank).find(|&d| is_padded(d)).unwrap_or(rank).min(1);
        // the dim, where the strip begins, its length, and whether there is another behind the operand
        let mut strips = Vec::new();
        for d in first..rank {
            let both = apart && lo[d] == hi[d];
            strips.push((d, Dim::from(0), &lo[d], both));
            if !both {
                strips.push((d, &lo[d] + &inner[d], &hi[d], false));
            }
        }
        strips.retain(|s| !s.2.is_const(0));
        let together = if apart { 1 } else { strips.len().max(1) };
        let one = |strips: &[(usize, Dim, &Dim, bool)]| {
            let mut p = self.puller();
            let (mut domain, lead) = Self::root_axes(&mut p, &outer[..first]);
            let value = match g[self.op].operands.get(1) {
                Some(&f) => p.pull(f, Vec::new())?,
                None => {
                    let dtype = g[padded].ty.dtype;
                    p.constant(dtype, ir::dtype::Scalar::zero(dtype))
                }
            };
            let mut buf = None;
            let mut stores = Vec::new();
            for (d, begin, len, both) in strips {
                let before = inner[first..*d].iter();
                let shape: Vec<Dim> = before.chain([*len]).chain(&outer[d + 1..]).cloned().collect();
                let (mut axes, index) = Self::root_axes(&mut p, &shape);
                let mut index: Vec<Dim> = lead.iter().cloned().chain(index).collect();
                if *both {
                    let two = Dim::from(2);
                    let side = p.new_var("side".into(), two.clone());
                    index[*d] = &index[*d] + &(Dim::from(side) * (&lo[*d] + &inner[*d]));
                    axes.push(Axis { var: side, extent: two });
                }
                for e in first..*d {
                    index[e] = &index[e] + &lo[e];
                }
                index[*d] = &index[*d] + begin;
                let (home, index) = p.locate(padded, &index);
                let buf = *buf.get_or_insert_with(|| p.buffer(home, Access::Write));
                if apart {
                    domain.append(&mut axes);
                }
                let guards = Vec::new();
                stores.push(Stmt::Store { axes, buf, index, guards, value, combine: Combine::Set });
            }
            let mut unit = self.finish(p, domain, stores)?;
            unit.kernel.name = "pad_border".into();
            Ok(unit)
        };
        strips.chunks(together).map(one).collect()
    }

    /// `cumulative`: a sequential loop along the axis at each point of the other axes.
    pub fn cumulative(
        &self,
        x: ValueId,
        result: ValueId,
        monoid: Monoid,
        axis: usize,
        exclusive: bool,
        reverse: bool,
    ) -> Result<KernelUnit> {
        let g = self.unit.graph;
        let shape = &g[result].ty.shape;
        let dtype = g[result].ty.dtype;
        let mut p = self.puller();
        let mut outer = shape.clone();
        let extent = std::mem::replace(&mut outer[axis], Dim::from(1));
        let (domain, mut index) = Self::root_axes(&mut p, &outer);
        let step = p.new_var("t".into(), extent.clone());
        let at = Dim::from(step);
        index[axis] = if reverse { &extent - Dim::from(1) - at } else { at };
        let acc = accumulator(dtype);
        let x = p.pull(x, index.clone())?;
        let x = p.convert(acc, ConvertMode::Plain, x);
        let local = p.new_local(acc);
        let before = p.local(local);
        let after = p.binary(monoid.op(), before, x);
        let start = p.constant(acc, monoid.identity(acc));
        let value = p.convert(dtype, ConvertMode::Plain, if exclusive { before } else { after });
        let (home, index) = p.locate(result, &index);
        let buf = p.buffer(home, Access::Write);
        let body = vec![Stmt::store(buf, index, value)];
        let carries = vec![(local, acc, start, after)];
        let axis = Axis { var: step, extent };
        self.finish(p, domain, vec![Stmt::Ordered { axis, carries, body }])
    }

    /// `scatter` after its base has been copied into the result: updates in order of n at each point
    /// of the inner dims.
    pub fn scatter(
        &self,
        indices: ValueId,
        updates: ValueId,
        result: ValueId,
        combine: Combine,
    ) -> Result<KernelUnit> {
        let g = self.unit.graph;
        let shape = &g[result].ty.shape;
        let mut p = self.puller();
        let (domain, inner) = Self::root_axes(&mut p, &shape[1..]);
        let count = g[updates].ty.shape[0].clone();
        let step = p.new_var("n".into(), count.clone());
        p.scope.insert(step);
        let row = p.pull(indices, vec![Dim::from(step)])?;
        let row = p.convert(DType::I64, ConvertMode::Plain, row);
        let from: Vec<Dim> = [Dim::from(step)].into_iter().chain(inner.iter().cloned()).collect();
        let value = p.pull(updates, from)?;
        let var = p.new_var("row".into(), shape[0].clone());
        let at: Vec<Dim> = [Dim::from(var)].into_iter().chain(inner).collect();
        let (home, index) = p.locate(result, &at);
        let buf = p.buffer(home, Access::ReadWrite);
        // the variable goes on as 0 after an index error, which a tensor without rows does not have
        let guards = vec![Guard { expr: Dim::from(var), bound: shape[0].clone() }];
        let store = Stmt::Store { axes: Vec::new(), buf, index, guards, value, combine };
        let body = vec![Stmt::Bind { var, value: row, bound: shape[0].clone() }, store];
        let axis = Axis { var: step, extent: count };
        self.finish(p, domain, vec![Stmt::Ordered { axis, carries: Vec::new(), body }])
    }
}

/// Splits the axes of the domain: those on which the reductions depend stay, along all others their
/// results are broadcast, and the store loops over them. `values`: what the reductions compute.
fn split_domain(kernel: &mut Kernel, values: &[ValueId]) -> Result<()> {
    let roots: HashSet<Var> = kernel.domain.iter().map(|a| a.var).collect();
    let mut locals: HashMap<u32, HashSet<Var>> = HashMap::new();
    let mut scopes = Vec::new();
    for stmt in &kernel.stmts {
        let (local, value, extents) = match stmt {
            Stmt::Reduce { local, value, axes, .. } => {
                (*local, *value, axes.iter().map(|a| &a.extent).collect::<Vec<_>>())
            }
            Stmt::ArgReduce { local, value, axis, .. } => (*local, *value, vec![&axis.extent]),
            _ => continue,
        };
        let mut vars = Vec::new();
        extents.iter().for_each(|e| vars_of(e, &mut vars));
        let mut scope: HashSet<Var> = vars.into_iter().filter(|v| roots.contains(v)).collect();
        expr_scope(kernel, value, &roots, &locals, &mut scope, &mut HashSet::new());
        locals.insert(local, scope.clone());
        scopes.push(scope);
    }
    if scopes.is_empty() {
        return Ok(());
    }
    let union: HashSet<Var> = scopes.iter().flatten().copied().collect();
    // a reduction that does not depend on all of the domain would be repeated at each of its points
    for (scope, &value) in scopes.iter().zip(values) {
        if scope.len() != union.len() {
            return Err(PullError::Materialise(value));
        }
    }
    let (domain, rest) = std::mem::take(&mut kernel.domain).into_iter().partition(|a| union.contains(&a.var));
    kernel.domain = domain;
    if let Some(Stmt::Store { axes, .. }) = kernel.stmts.last_mut() {
        *axes = rest;
    }
    Ok(())
}

/// Root variables that an expression depends on.
fn expr_scope(
    k: &Kernel,
    e: ExprId,
    roots: &HashSet<Var>,
    locals: &HashMap<u32, HashSet<Var>>,
    scope: &mut HashSet<Var>,
    seen: &mut HashSet<ExprId>,
) {
    if !seen.insert(e) {
        return;
    }
    let mut vars = Vec::new();
    let mut note = |dims: &mut dyn Iterator<Item = &Dim>| dims.for_each(|d| vars_of(d, &mut vars));
    match k.get(e) {
        Expr::Index(d) => note(&mut [d].into_iter()),
        Expr::Read { index, guards, .. } => {
            note(&mut index.iter());
            note(&mut guards.iter().flat_map(|g| [&g.expr, &g.bound]));
        }
        Expr::Inside(guards) => note(&mut guards.iter().flat_map(|g| [&g.expr, &g.bound])),
        Expr::Bind { bound, .. } => note(&mut [bound].into_iter()),
        Expr::Local(l) => {
            if let Some(inner) = locals.get(l) {
                scope.extend(inner);
            }
        }
        _ => {}
    }
    scope.extend(vars.into_iter().filter(|v| roots.contains(v)));
    for child in children(k.get(e)) {
        expr_scope(k, child, roots, locals, scope, seen);
    }
}

/// Sub-expressions.
pub fn children(e: &Expr) -> Vec<ExprId> {
    match *e {
        Expr::Const(..) | Expr::Index(_) | Expr::Read { .. } | Expr::Inside(_) | Expr::Local(_) => Vec::new(),
        Expr::Unary(_, x) | Expr::Convert(_, _, x) | Expr::Bitcast(_, x) => vec![x],
        Expr::Binary(_, x, y) | Expr::Cmp(_, x, y) | Expr::Dot(_, x, y) => vec![x, y],
        Expr::Select(c, x, y) => vec![c, x, y],
        Expr::Bind { value, body, .. } => vec![value, body],
    }
}

/// Facts about a finished kernel's variables.
pub fn kernel_facts<'a>(extents: &'a [Dim], symbols: &'a ir::Symbols) -> IndexFacts<'a> {
    IndexFacts { symbols, extents }
}
