//! Expensive values that a kernel would compute twice: once for a reduction over a row, once more for the
//! row that it stores (the exponentials of a softmax).
//!
//! ```text
//! l1 = sum over r of exp(x[r] - l0)            for r: y[r] = exp(x[r] - l0)
//! for v: y[v] = exp(x[v] - l0) / l1     =>     l1 = sum over r of y[r]
//!                                              for v: y[v] = y[v] / l1
//! ```
//!
//! The result's own memory holds the values meanwhile: a row of it is near by when it is read again.

use super::analyse::is_expensive;
use crate::kernels::children;
use crate::lower::space::{Rewrite, VarFacts, rewrite, substitute};
use crate::stage::roots;
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, BufId, Expr, ExprId, Kernel, Stmt};
use ir::prim::Combine;
use ir::{Dim, Symbols, Var};

/// The kernel with each such value computed once; `None` where it has none. Accesses are linear.
pub fn once(k: &Kernel, symbols: &Symbols) -> Option<Kernel> {
    let (last, before) = k.stmts.split_last()?;
    let Stmt::Store { axes, buf, index, guards, value: stored, combine: Combine::Set } = last else {
        return None;
    };
    let [out] = axes.as_slice() else { return None };
    let b = &k.buffers[buf.0 as usize];
    let contiguous = index.first()?.affine_in(out.var)?.0.is_const(1);
    if b.access != Access::Write || !guards.is_empty() || !contiguous {
        return None;
    }
    let facts = VarFacts::of(k, symbols);
    let uses = |s: &Stmt| matches!(s, Stmt::Store { .. } | Stmt::Ordered { .. });
    if before.iter().any(uses) {
        return None;
    }
    before.iter().enumerate().find_map(|(at, s)| {
        let Stmt::Reduce { acc, axes, value, .. } = s else { return None };
        let [axis] = axes.as_slice() else { return None };
        if *acc != b.dtype || axis.extent != out.extent || !is_expensive(k, *value) {
            return None;
        }
        let here = renamed(k, *value, (axis.var, out.var), &facts)?;
        // what comes before could not read it yet
        if before[..at].iter().flat_map(roots).any(|e| reaches(k, e, here)) {
            return None;
        }
        reaches(k, *stored, here).then(|| split(k, at, axis, out, here, *buf, &facts))?
    })
}

/// The expression that `e` is with another variable in place of its own, where the kernel has it.
fn renamed(k: &Kernel, e: ExprId, (from, to): (Var, Var), facts: &VarFacts) -> Option<ExprId> {
    let mut copy = k.clone();
    let id = rename(&mut copy, e, (from, to), facts)?;
    ((id.0 as usize) < k.exprs().len()).then_some(id)
}

/// As [`renamed`], in a kernel that gets the expression.
fn rename(k: &mut Kernel, e: ExprId, vars: (Var, Var), facts: &VarFacts) -> Option<ExprId> {
    let dim = |d: &Dim| substitute(d, facts, &[(vars.0, Dim::from(vars.1))]);
    let new = match k.get(e).clone() {
        Expr::Index(d) => Expr::Index(dim(&d)),
        Expr::Read { buf, index, guards, fill } if guards.is_empty() => {
            Expr::Read { buf, index: index.iter().map(dim).collect(), guards, fill }
        }
        Expr::Read { .. } | Expr::Inside(_) | Expr::Bind { .. } => return None,
        Expr::Unary(op, a) => Expr::Unary(op, rename(k, a, vars, facts)?),
        Expr::Convert(t, m, a) => Expr::Convert(t, m, rename(k, a, vars, facts)?),
        Expr::Bitcast(t, a) => Expr::Bitcast(t, rename(k, a, vars, facts)?),
        Expr::Binary(op, a, b) => Expr::Binary(op, rename(k, a, vars, facts)?, rename(k, b, vars, facts)?),
        Expr::Cmp(op, a, b) => Expr::Cmp(op, rename(k, a, vars, facts)?, rename(k, b, vars, facts)?),
        Expr::Dot(dot, a, b) => Expr::Dot(dot, rename(k, a, vars, facts)?, rename(k, b, vars, facts)?),
        Expr::Select(a, b, c) => {
            Expr::Select(rename(k, a, vars, facts)?, rename(k, b, vars, facts)?, rename(k, c, vars, facts)?)
        }
        e @ (Expr::Const(..) | Expr::Local(_)) => e,
    };
    Some(k.expr(new))
}

fn reaches(k: &Kernel, from: ExprId, to: ExprId) -> bool {
    from == to || children(k.get(from)).into_iter().any(|c| reaches(k, c, to))
}

/// `here`: the value of reduction `at` along the axis of the store.
fn split(
    k: &Kernel,
    at: usize,
    axis: &Axis,
    out: &Axis,
    here: ExprId,
    buf: BufId,
    facts: &VarFacts,
) -> Option<Kernel> {
    let Some(Stmt::Store { index, .. }) = k.stmts.last() else { return None };
    let kept = |v: Var| {
        let index = index.iter().map(|d| substitute(d, facts, &[(out.var, Dim::from(v))])).collect();
        Expr::Read { buf, index, guards: Vec::new(), fill: Scalar::zero(k.buffers[buf.0 as usize].dtype) }
    };
    /// The store's value, with `here` read from where it is kept.
    struct Kept {
        here: Expr,
        read: Expr,
    }
    impl Rewrite for Kept {
        fn expr(&mut self, e: Expr) -> Expr {
            if e == self.here { self.read.clone() } else { e }
        }
    }
    let Some(&Stmt::Reduce { value, .. }) = k.stmts.get(at) else { return None };
    let mut new = k.clone();
    new.buffers[buf.0 as usize].access = Access::ReadWrite;
    // the axis along which it is computed, which may have been that of the reduction and of the store
    let var = new.new_var(k.vars.get(out.var.0 as usize).cloned().unwrap_or_default());
    let mut facts = facts.clone();
    facts.set(var, out.extent.clone());
    let value = rename(&mut new, value, (axis.var, var), &facts)?;
    let Expr::Read { index, .. } = kept(var) else { return None };
    let keep = Stmt::Store {
        axes: vec![Axis { var, extent: out.extent.clone() }],
        buf,
        index,
        guards: Vec::new(),
        value,
        combine: Combine::Set,
    };
    let read = new.expr(kept(axis.var));
    if let Some(Stmt::Reduce { value, .. }) = new.stmts.get_mut(at) {
        *value = read;
    }
    new.stmts.insert(at, keep);
    Some(rewrite(&new, &mut Kept { here: k.get(here).clone(), read: kept(out.var) }))
}
