//! Splitting axes so that index expressions become affine.
//!
//! Where an access contains `floordiv` or `mod` of an axis by a divisor of its extent, the axis `v` is
//! split into `outer * f + inner`; the divisions then cancel. Attention's `[S, H * D]` heads, pixel
//! shuffles and a flatten after a convolution need no division afterwards.

use crate::index::{IndexFacts, inside, simplify_guards};
use crate::lower::space::for_each_dim;
use ir::kernel::{Axis, Expr, ExprId, Guard, Kernel, Stmt};
use ir::{Atom, Dim, Symbols, Var};

/// Splits that one kernel may take; more are a sign of index expressions that no split helps.
const MAX_SPLITS: usize = 24;

/// `kernel` with divisions by divisors of axis extents removed. `extents`: by variable.
pub fn normalise(mut kernel: Kernel, mut extents: Vec<Dim>, symbols: &Symbols) -> Kernel {
    for _ in 0..MAX_SPLITS {
        let Some((var, factor)) = find_split(&kernel, &extents, symbols) else { break };
        kernel = split(kernel, &mut extents, symbols, var, &factor);
    }
    kernel
}

/// Axes of the kernel, nested ones included.
fn axes(kernel: &Kernel) -> Vec<Axis> {
    fn of(stmts: &[Stmt], out: &mut Vec<Axis>) {
        for s in stmts {
            match s {
                Stmt::Reduce { axes, .. } | Stmt::Store { axes, .. } => out.extend(axes.iter().cloned()),
                Stmt::Ordered { body, .. } => of(body, out),
                Stmt::ArgReduce { .. } | Stmt::Let { .. } | Stmt::Bind { .. } => {}
            }
        }
    }
    let mut out = kernel.domain.clone();
    of(&kernel.stmts, &mut out);
    out
}

/// The first axis whose split by the returned factor removes a division.
fn find_split(kernel: &Kernel, extents: &[Dim], symbols: &Symbols) -> Option<(Var, Dim)> {
    let axes = axes(kernel);
    let mut found = None;
    for_each_dim(kernel, &mut |d| {
        if found.is_some() {
            return;
        }
        d.visit_atoms(&mut |a| {
            if found.is_none()
                && let Atom::FloorDiv(x, by) | Atom::Mod(x, by) = a
            {
                found = axes.iter().find_map(|axis| {
                    let (coef, _) = x.affine_in(axis.var)?;
                    if coef.is_const(0) || coef.bounds(symbols).0 < 0 {
                        return None;
                    }
                    let factor = exact_quotient(by, &coef)?;
                    let extent = &extents[axis.var.0 as usize];
                    let outer = exact_quotient(extent, &factor)?;
                    (!factor.is_const(1) && !outer.is_const(1) && factor.bounds(symbols).0 >= 0)
                        .then_some((axis.var, factor))
                });
            }
        });
    });
    found
}

/// `a / b` where that is exact as polynomials.
fn exact_quotient(a: &Dim, b: &Dim) -> Option<Dim> {
    let (q, rest) = a.split_multiple(b);
    (rest.is_const(0) && !q.is_const(0)).then_some(q)
}

fn split(kernel: Kernel, extents: &mut Vec<Dim>, symbols: &Symbols, var: Var, factor: &Dim) -> Kernel {
    let mut names = kernel.vars.clone();
    let base = names[var.0 as usize].clone();
    let outer_extent = exact_quotient(&extents[var.0 as usize], factor).unwrap_or_default();
    let mut fresh = |suffix: &str, extent: &Dim| {
        names.push(format!("{base}{suffix}"));
        extents.push(extent.clone());
        Axis { var: Var(names.len() as u32 - 1), extent: extent.clone() }
    };
    let outer = fresh("o", &outer_extent);
    let inner = fresh("i", factor);
    let replacement = Dim::from(outer.var) * factor + Dim::from(inner.var);
    let facts = IndexFacts { symbols, extents };
    let map_dim = |d: &Dim| {
        if !d.uses_var(var) {
            return d.clone();
        }
        d.subst(&facts, &mut |a| (*a == Atom::Var(var)).then(|| replacement.clone()))
    };
    let map_axes = |list: &[Axis]| -> Vec<Axis> {
        list.iter()
            .flat_map(|a| if a.var == var { vec![outer.clone(), inner.clone()] } else { vec![a.clone()] })
            .collect()
    };
    let mut new = rewrite(&kernel, &map_dim, &map_axes, &facts);
    new.vars = names;
    new
}

/// A copy of `kernel` with index expressions and axis lists mapped; guards that are proved afterwards
/// are dropped.
pub fn rewrite(
    kernel: &Kernel,
    map_dim: &dyn Fn(&Dim) -> Dim,
    map_axes: &dyn Fn(&[Axis]) -> Vec<Axis>,
    facts: &IndexFacts,
) -> Kernel {
    let mut new = kernel.without_body();
    new.domain = map_axes(&kernel.domain);
    let map_guards = |gs: &[Guard]| -> Vec<Guard> {
        let mapped: Vec<Guard> =
            gs.iter().map(|g| Guard { expr: map_dim(&g.expr), bound: map_dim(&g.bound) }).collect();
        // a guard that never holds stays as it is: the expression around it relies on it
        match simplify_guards(&mapped, facts) {
            Some(left) => left,
            None => mapped.into_iter().filter(|g| !inside(g, facts)).collect(),
        }
    };
    // children come before their parents
    let mut ids: Vec<ExprId> = Vec::with_capacity(kernel.exprs().len());
    for e in kernel.exprs() {
        let at = |x: &ExprId| ids[x.0 as usize];
        let e = match e {
            Expr::Const(..) | Expr::Local(_) => e.clone(),
            Expr::Index(d) => Expr::Index(map_dim(d)),
            Expr::Read { buf, index, guards, fill } => Expr::Read {
                buf: *buf,
                index: index.iter().map(map_dim).collect(),
                guards: map_guards(guards),
                fill: *fill,
            },
            Expr::Unary(op, x) => Expr::Unary(*op, at(x)),
            Expr::Binary(op, x, y) => Expr::Binary(*op, at(x), at(y)),
            Expr::Cmp(op, x, y) => Expr::Cmp(*op, at(x), at(y)),
            Expr::Select(c, x, y) => Expr::Select(at(c), at(x), at(y)),
            Expr::Inside(guards) => Expr::Inside(map_guards(guards)),
            Expr::Convert(to, mode, x) => Expr::Convert(*to, *mode, at(x)),
            Expr::Bitcast(to, x) => Expr::Bitcast(*to, at(x)),
            Expr::Dot(dot, x, y) => Expr::Dot(*dot, at(x), at(y)),
            Expr::Bind { var, value, bound, body } => {
                Expr::Bind { var: *var, value: at(value), bound: map_dim(bound), body: at(body) }
            }
        };
        ids.push(new.expr(e));
    }
    new.stmts = map_stmts(&kernel.stmts, map_dim, map_axes, &map_guards, &ids);
    new
}

fn map_stmts(
    stmts: &[Stmt],
    map_dim: &dyn Fn(&Dim) -> Dim,
    map_axes: &dyn Fn(&[Axis]) -> Vec<Axis>,
    map_guards: &dyn Fn(&[Guard]) -> Vec<Guard>,
    ids: &[ExprId],
) -> Vec<Stmt> {
    let at = |x: &ExprId| ids[x.0 as usize];
    stmts
        .iter()
        .map(|s| match s {
            Stmt::Reduce { local, acc, monoid, axes, value } => Stmt::Reduce {
                local: *local,
                acc: *acc,
                monoid: *monoid,
                axes: map_axes(axes),
                value: at(value),
            },
            Stmt::ArgReduce { local, max, last, axis, value } => Stmt::ArgReduce {
                local: *local,
                max: *max,
                last: *last,
                axis: axis.clone(),
                value: at(value),
            },
            Stmt::Store { axes, buf, index, guards, value, combine } => Stmt::Store {
                axes: map_axes(axes),
                buf: *buf,
                index: index.iter().map(map_dim).collect(),
                guards: map_guards(guards),
                value: at(value),
                combine: *combine,
            },
            Stmt::Ordered { axis, carries, body } => Stmt::Ordered {
                axis: axis.clone(),
                carries: carries.iter().map(|(l, d, a, b)| (*l, *d, at(a), at(b))).collect(),
                body: map_stmts(body, map_dim, map_axes, map_guards, ids),
            },
            Stmt::Let { local, value } => Stmt::Let { local: *local, value: at(value) },
            Stmt::Bind { var, value, bound } => {
                Stmt::Bind { var: *var, value: at(value), bound: map_dim(bound) }
            }
        })
        .collect()
}
