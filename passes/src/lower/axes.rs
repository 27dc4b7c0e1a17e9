//! Normal form of the index space: argument reductions expanded, axes split until quotients and
//! remainders vanish, axes of extent 1 dropped, axes merged that no access tells apart.

use super::space::{Rewrite, VarFacts, for_each_dim, for_each_stmt, rewrite, substitute, vars_of};
use ir::dtype::Scalar;
use ir::kernel::{Axis, Expr, ExprId, Kernel, Stmt};
use ir::prim::{CmpOp, Combine};
use ir::{Atom, DType, Dim, Monoid, Symbols, Var};

/// The normal form of a kernel whose accesses are linear.
pub fn normalise(kernel: &Kernel, symbols: &Symbols) -> Kernel {
    let mut k = sink_store_axes(hoist_store_axes(kernel.clone()));
    k = drop_units(k, symbols);
    // each split or merge removes a quotient or an axis; the bound only guards against a fault
    for _ in 0..64 {
        let facts = VarFacts::of(&k, symbols);
        match find_split(&k, &facts) {
            Some((v, q)) => k = split(&k, symbols, v, &q),
            None => break,
        }
    }
    k = drop_units(k, symbols);
    while let Some(next) = merge_some(&k, symbols) {
        k = next;
    }
    k
}

/// `arg max x` is the least (or greatest) index at which x equals the maximum: two plain reductions,
/// which every schedule can vectorise. NaN equals a NaN maximum here.
pub fn expand_arg_reduce(kernel: &Kernel) -> Kernel {
    struct Expand {
        /// Types of the kernel's locals, which the one in the making does not define yet.
        locals: Vec<DType>,
    }
    impl Rewrite for Expand {
        fn stmt(&mut self, s: Stmt, k: &mut Kernel) -> Vec<Stmt> {
            let Stmt::ArgReduce { local, max, last, axis, value } = s else { return vec![s] };
            let dtype = dtype_of(k, value, &self.locals);
            let monoid = if max { Monoid::Max } else { Monoid::Min };
            let extreme = k.new_local();
            let best = k.expr(Expr::Local(extreme));
            let mut hit = k.expr(Expr::Cmp(CmpOp::Eq, value, best));
            if dtype.is_float() {
                let nan = k.expr(Expr::Cmp(CmpOp::Ne, value, value));
                let best_nan = k.expr(Expr::Cmp(CmpOp::Ne, best, best));
                let both = k.expr(Expr::Binary(ir::prim::BinaryOp::And, nan, best_nan));
                hit = k.expr(Expr::Binary(ir::prim::BinaryOp::Or, hit, both));
            }
            let index = k.expr(Expr::Index(Dim::from(axis.var)));
            let miss = Scalar::Int(if last { -1 } else { i64::MAX.into() });
            let miss = k.expr(Expr::Const(DType::I64, miss));
            let found = k.expr(Expr::Select(hit, index, miss));
            let order = if last { Monoid::Max } else { Monoid::Min };
            vec![
                Stmt::Reduce { local: extreme, acc: dtype, monoid, axes: vec![axis.clone()], value },
                Stmt::Reduce { local, acc: DType::I64, monoid: order, axes: vec![axis], value: found },
            ]
        }
    }
    let locals = (0..kernel.locals).map(|l| local_dtype(kernel, l)).collect();
    rewrite(kernel, &mut Expand { locals })
}

/// Element type of an expression; `locals` gives those of locals, which are i64 where it is silent.
pub fn dtype_of(k: &Kernel, e: ExprId, locals: &[DType]) -> DType {
    match k.get(e) {
        Expr::Const(t, _) | Expr::Convert(t, ..) | Expr::Bitcast(t, _) => *t,
        Expr::Index(_) => DType::I64,
        Expr::Read { buf, .. } => k.buffers[buf.0 as usize].dtype,
        Expr::Unary(_, a) | Expr::Binary(_, a, _) | Expr::Select(_, a, _) => dtype_of(k, *a, locals),
        Expr::Cmp(..) | Expr::Inside(_) => DType::Bool,
        Expr::Dot(dot, ..) => dot.dtype(),
        Expr::Bind { body, .. } => dtype_of(k, *body, locals),
        Expr::Local(l) => locals.get(*l as usize).copied().unwrap_or_else(|| local_dtype(k, *l)),
    }
}

fn local_dtype(k: &Kernel, local: u32) -> DType {
    fn find(k: &Kernel, list: &[Stmt], local: u32) -> Option<DType> {
        list.iter().find_map(|s| match s {
            Stmt::Reduce { local: l, acc, .. } if *l == local => Some(*acc),
            Stmt::ArgReduce { local: l, .. } if *l == local => Some(DType::I64),
            Stmt::Let { local: l, value } if *l == local => Some(dtype_of(k, *value, &[])),
            Stmt::Ordered { carries, body, .. } => {
                let carried = carries.iter().find(|c| c.0 == local).map(|c| c.1);
                carried.or_else(|| find(k, body, local))
            }
            _ => None,
        })
    }
    find(k, &k.stmts, local).unwrap_or(DType::I64)
}

/// A kernel that only maps: the axes of its one store belong to the domain.
fn hoist_store_axes(mut k: Kernel) -> Kernel {
    let maps = k.stmts.iter().filter(|s| !matches!(s, Stmt::Let { .. } | Stmt::Bind { .. })).count() == 1;
    if let [.., Stmt::Store { axes, .. }] = k.stmts.as_mut_slice()
        && maps
    {
        k.domain.append(axes);
    }
    k
}

/// Axes of the domain that no reduction depends on become axes of the stores: what is reduced is then
/// computed once, not for every point along them.
fn sink_store_axes(mut k: Kernel) -> Kernel {
    let plain =
        k.stmts.iter().all(|s| matches!(s, Stmt::Reduce { .. } | Stmt::Store { .. } | Stmt::Let { .. }));
    let reduces = k.stmts.iter().any(|s| matches!(s, Stmt::Reduce { .. }));
    if !plain || !reduces || order_matters(&k) {
        return k;
    }
    let mut used = Vec::new();
    for s in &k.stmts {
        match s {
            Stmt::Reduce { axes, value, .. } => {
                expr_vars(&k, *value, &mut used);
                used.extend(axes.iter().flat_map(|a| vars_of(&a.extent)));
            }
            Stmt::Let { value, .. } => expr_vars(&k, *value, &mut used),
            _ => {}
        }
    }
    let (kept, sunk): (Vec<Axis>, Vec<Axis>) = k.domain.drain(..).partition(|a| used.contains(&a.var));
    k.domain = kept;
    for s in &mut k.stmts {
        if let Stmt::Store { axes, .. } = s {
            axes.splice(0..0, sunk.iter().cloned());
        }
    }
    k
}

/// Variables that an expression depends on; locals are not followed.
pub fn expr_vars(k: &Kernel, e: ExprId, into: &mut Vec<Var>) {
    let mut dims = |ds: &mut dyn Iterator<Item = &Dim>| {
        for v in ds.flat_map(vars_of) {
            if !into.contains(&v) {
                into.push(v);
            }
        }
    };
    match k.get(e) {
        Expr::Const(..) | Expr::Local(_) => {}
        Expr::Index(d) => dims(&mut std::iter::once(d)),
        Expr::Read { index, guards, .. } => {
            dims(&mut index.iter().chain(guards.iter().flat_map(|g| [&g.expr, &g.bound])));
        }
        Expr::Inside(guards) => dims(&mut guards.iter().flat_map(|g| [&g.expr, &g.bound])),
        Expr::Unary(_, x) | Expr::Convert(_, _, x) | Expr::Bitcast(_, x) => expr_vars(k, *x, into),
        Expr::Binary(_, x, y) | Expr::Cmp(_, x, y) | Expr::Dot(_, x, y) => {
            expr_vars(k, *x, into);
            expr_vars(k, *y, into);
        }
        Expr::Select(x, y, z) => [x, y, z].into_iter().for_each(|e| expr_vars(k, *e, into)),
        Expr::Bind { value, body, .. } => {
            expr_vars(k, *value, into);
            expr_vars(k, *body, into);
        }
    }
}

struct Replace<'a, 'b> {
    facts: &'a VarFacts<'b>,
    map: &'a [(Var, Dim)],
}

impl Rewrite for Replace<'_, '_> {
    fn dim(&mut self, d: &Dim) -> Dim {
        substitute(d, self.facts, self.map)
    }
}

/// Replaces variables everywhere and edits every list of axes.
fn replace(k: &Kernel, facts: &VarFacts, map: &[(Var, Dim)], axes: &dyn Fn(&mut Vec<Axis>)) -> Kernel {
    let mut k = rewrite(k, &mut Replace { facts, map });
    for_each_list(&mut k, &mut |list| axes(list));
    k
}

fn for_each_list(k: &mut Kernel, f: &mut dyn FnMut(&mut Vec<Axis>)) {
    fn stmts(list: &mut [Stmt], f: &mut dyn FnMut(&mut Vec<Axis>)) {
        for s in list {
            match s {
                Stmt::Reduce { axes, .. } | Stmt::Store { axes, .. } => f(axes),
                Stmt::Ordered { body, .. } => stmts(body, f),
                _ => {}
            }
        }
    }
    f(&mut k.domain);
    stmts(&mut k.stmts, f);
}

/// Axes of extent 1 become the index 0.
fn drop_units(k: Kernel, symbols: &Symbols) -> Kernel {
    let mut lists: Vec<Vec<Axis>> = Vec::new();
    let mut k = k;
    for_each_list(&mut k, &mut |l| lists.push(l.clone()));
    let units: Vec<(Var, Dim)> =
        lists.iter().flatten().filter(|a| a.extent.is_const(1)).map(|a| (a.var, Dim::from(0))).collect();
    if units.is_empty() {
        return k;
    }
    let facts = VarFacts::of(&k, symbols);
    replace(&k, &facts, &units, &|list| list.retain(|a| !a.extent.is_const(1)))
}

/// An axis v and a factor q such that `v = v1 * q + v0` makes a quotient or remainder vanish.
fn find_split(k: &Kernel, facts: &VarFacts) -> Option<(Var, Dim)> {
    let mut found = None;
    let mut k2 = k.clone();
    let mut axes: Vec<Axis> = Vec::new();
    for_each_list(&mut k2, &mut |l| axes.extend(l.iter().cloned()));
    for_each_dim(k, &mut |d| {
        d.visit_atoms(&mut |a| {
            let (Atom::FloorDiv(x, by) | Atom::Mod(x, by)) = a else { return };
            if found.is_some() || !vars_of(by).is_empty() {
                return;
            }
            for axis in axes.iter().filter(|a| x.uses_var(a.var)) {
                let Some((coef, _)) = x.affine_in(axis.var) else { continue };
                // one step of v1 must advance x by a multiple of the divisor
                let (q, rest) = by.split_multiple(&coef);
                if !rest.is_const(0) || q.as_const().is_some_and(|q| q <= 1) || coef.is_const(0) {
                    continue;
                }
                let (outer, rest) = axis.extent.split_multiple(&q);
                let proper = !outer.is_const(1) && !outer.is_const(0) && axis.extent != q;
                if rest.is_const(0) && proper && q.bounds(facts).1 > 1 {
                    found = Some((axis.var, q));
                    return;
                }
            }
        });
    });
    found
}

fn split(k: &Kernel, symbols: &Symbols, v: Var, q: &Dim) -> Kernel {
    let mut k = k.clone();
    let name = k.vars.get(v.0 as usize).cloned().unwrap_or_default();
    let outer = k.new_var(format!("{name}1"));
    let inner = k.new_var(format!("{name}0"));
    let mut facts = VarFacts::of(&k, symbols);
    let Some(extent) = facts.extent(v).cloned() else { return k };
    let (count, _) = extent.split_multiple(q);
    facts.set(outer, count.clone());
    facts.set(inner, q.clone());
    let map = [(v, Dim::from(outer) * q + Dim::from(inner))];
    replace(&k, &facts, &map, &|list| {
        if let Some(i) = list.iter().position(|a| a.var == v) {
            let parts = [Axis { var: outer, extent: count.clone() }, Axis { var: inner, extent: q.clone() }];
            list.splice(i..=i, parts);
        }
    })
}

/// Variables that get their values from data.
pub fn bound_vars(k: &Kernel) -> Vec<Var> {
    let mut vars: Vec<Var> = k
        .exprs()
        .iter()
        .filter_map(|e| if let Expr::Bind { var, .. } = e { Some(*var) } else { None })
        .collect();
    for_each_stmt(&k.stmts, &mut |s| {
        if let Stmt::Bind { var, .. } = s {
            vars.push(*var);
        }
    });
    vars
}

/// True where the order of the domain's points shows: stores that combine, or to data-dependent places.
pub fn order_matters(k: &Kernel) -> bool {
    let bound = bound_vars(k);
    let mut found = false;
    for_each_stmt(&k.stmts, &mut |s| {
        if let Stmt::Store { index, combine, .. } = s {
            found |= *combine != Combine::Set || index.iter().any(|d| bound.iter().any(|v| d.uses_var(*v)));
        }
    });
    found
}

/// Merges one pair of axes of some list, where every use is in terms of `outer * extent(inner) + inner`.
fn merge_some(k: &Kernel, symbols: &Symbols) -> Option<Kernel> {
    let adjacent_only = order_matters(k);
    let mut lists: Vec<Vec<Axis>> = Vec::new();
    let mut copy = k.clone();
    for_each_list(&mut copy, &mut |l| lists.push(l.clone()));
    let mut dims: Vec<Dim> = Vec::new();
    for_each_dim(k, &mut |d| {
        if !vars_of(d).is_empty() && !dims.contains(d) {
            dims.push(d.clone());
        }
    });
    let mut extents = Vec::new();
    super::space::for_each_axis(k, &mut |a| extents.push(a.extent.clone()));
    for list in &lists {
        for (i, outer) in list.iter().enumerate() {
            for (j, inner) in list.iter().enumerate() {
                let order_kept = j == i + 1 || !adjacent_only;
                let used = |v: Var| extents.iter().any(|e| e.uses_var(v));
                if i == j || !order_kept || used(outer.var) || used(inner.var) {
                    continue;
                }
                let has = |l: &[Axis], v: Var| l.iter().any(|a| a.var == v);
                if lists.iter().any(|l| has(l, outer.var) != has(l, inner.var)) {
                    continue;
                }
                if dims.iter().all(|d| mergeable(d, outer, inner)) {
                    return Some(merge(k, symbols, outer, inner));
                }
            }
        }
    }
    None
}

fn mergeable(d: &Dim, outer: &Axis, inner: &Axis) -> bool {
    if !d.uses_var(outer.var) && !d.uses_var(inner.var) {
        return true;
    }
    let Some((co, rest)) = d.affine_in(outer.var) else { return false };
    let Some((ci, _)) = rest.affine_in(inner.var) else { return false };
    !co.uses_var(inner.var) && co == ci * &inner.extent
}

fn merge(k: &Kernel, symbols: &Symbols, outer: &Axis, inner: &Axis) -> Kernel {
    let mut k = k.clone();
    let name = |v: Var, k: &Kernel| k.vars.get(v.0 as usize).cloned().unwrap_or_default();
    let merged = format!("{}_{}", name(outer.var, &k), name(inner.var, &k));
    let var = k.new_var(merged);
    let extent = &outer.extent * &inner.extent;
    let mut facts = VarFacts::of(&k, symbols);
    facts.set(var, extent.clone());
    // every use is co * (outer + inner / extent), so outer = 0 and inner = the merged axis says the same
    let map = [(outer.var, Dim::from(0)), (inner.var, Dim::from(var))];
    replace(&k, &facts, &map, &|list| {
        if let Some(i) = list.iter().position(|a| a.var == inner.var) {
            list[i] = Axis { var, extent: extent.clone() };
            list.retain(|a| a.var != outer.var);
        }
    })
}
