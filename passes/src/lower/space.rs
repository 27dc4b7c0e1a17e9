//! The index space of a kernel: what is known of its variables, and rewriting of its index expressions.

use ir::kernel::{Axis, Expr, ExprId, Guard, Kernel, Stmt};
use ir::{Atom, Dim, Facts, Sym, Symbols, Var};

/// Facts inside one kernel: the module's symbols, and variables in `0..extent`.
#[derive(Clone)]
pub struct VarFacts<'a> {
    pub symbols: &'a Symbols,
    /// Extent by [`Var`]; `None` where nothing is known.
    extents: Vec<Option<Dim>>,
}

impl<'a> VarFacts<'a> {
    pub fn of(kernel: &Kernel, symbols: &'a Symbols) -> VarFacts<'a> {
        let mut facts = VarFacts { symbols, extents: Vec::new() };
        kernel.params.iter().for_each(|a| facts.set(a.var, a.extent.clone()));
        for_each_axis(kernel, &mut |a| facts.set(a.var, a.extent.clone()));
        for e in kernel.exprs() {
            if let Expr::Bind { var, bound, .. } = e {
                facts.set(*var, bound.clone());
            }
        }
        for_each_stmt(&kernel.stmts, &mut |s| {
            if let Stmt::Bind { var, bound, .. } = s {
                facts.set(*var, bound.clone());
            }
        });
        facts
    }
    pub fn set(&mut self, v: Var, extent: Dim) {
        let i = v.0 as usize;
        if self.extents.len() <= i {
            self.extents.resize(i + 1, None);
        }
        self.extents[i] = Some(extent);
    }
    pub fn extent(&self, v: Var) -> Option<&Dim> {
        self.extents.get(v.0 as usize)?.as_ref()
    }
    /// The value to plan with, at least 1 for what is not constant: symbols at their hints but no smaller
    /// than [`PLANNED`] (where their range allows), variables at 0.
    pub fn estimate(&self, d: &Dim) -> f64 {
        self.planned(d, PLANNED)
    }
    /// As [`VarFacts::estimate`] with symbols at their hints, however small.
    pub fn likely(&self, d: &Dim) -> f64 {
        self.planned(d, 1)
    }
    fn planned(&self, d: &Dim, least: i64) -> f64 {
        if let Some(c) = d.as_const() {
            return c.max(0) as f64;
        }
        let value = d.eval(&|a| match a {
            Atom::Sym(s) => {
                let i = self.symbols.infos.get(s.0 as usize)?;
                let n = i.hint.max(least);
                Some(n.min(i.hi).max(i.lo))
            }
            Atom::Var(_) => Some(0),
            _ => None,
        });
        value.unwrap_or(1).max(1) as f64
    }
}

/// Sizes that nobody knows are taken to be worth a vector loop.
const PLANNED: i64 = 64;

impl Facts for VarFacts<'_> {
    fn sym_range(&self, s: Sym) -> (i64, i64) {
        self.symbols.sym_range(s)
    }
    fn sym_divisor(&self, s: Sym) -> i64 {
        self.symbols.sym_divisor(s)
    }
    fn var_range(&self, v: Var) -> (i64, i64) {
        match self.extent(v) {
            // a loop over nothing has no index: any range is right, and 0..=0 is a harmless one
            Some(e) => (0, e.bounds(self.symbols).1.saturating_sub(1).max(0)),
            None => (-Dim::LIMIT, Dim::LIMIT),
        }
    }
    fn var_extent(&self, v: Var) -> Option<Dim> {
        self.extent(v).cloned()
    }
}

/// Visits every statement, those of loops included.
pub fn for_each_stmt<'a>(list: &'a [Stmt], f: &mut dyn FnMut(&'a Stmt)) {
    for s in list {
        f(s);
        if let Stmt::Ordered { body, .. } = s {
            for_each_stmt(body, f);
        }
    }
}

/// Visits every axis of the domain and of the statements.
pub fn for_each_axis(kernel: &Kernel, f: &mut dyn FnMut(&Axis)) {
    kernel.domain.iter().for_each(&mut *f);
    for_each_stmt(&kernel.stmts, &mut |s| match s {
        Stmt::Reduce { axes, .. } | Stmt::Store { axes, .. } => axes.iter().for_each(&mut *f),
        Stmt::ArgReduce { axis, .. } | Stmt::Ordered { axis, .. } => f(axis),
        Stmt::Let { .. } | Stmt::Bind { .. } => {}
    });
}

/// Visits every index expression: accesses, guards, index values, extents excepted.
pub fn for_each_dim(kernel: &Kernel, f: &mut dyn FnMut(&Dim)) {
    let guards = |gs: &[Guard], f: &mut dyn FnMut(&Dim)| {
        for g in gs {
            f(&g.expr);
            f(&g.bound);
        }
    };
    for e in kernel.exprs() {
        match e {
            Expr::Index(d) => f(d),
            Expr::Read { index, guards: gs, .. } => {
                index.iter().for_each(&mut *f);
                guards(gs, f);
            }
            Expr::Inside(gs) => guards(gs, f),
            Expr::Bind { bound, .. } => f(bound),
            _ => {}
        }
    }
    for_each_stmt(&kernel.stmts, &mut |s| match s {
        Stmt::Store { index, guards: gs, .. } => {
            index.iter().for_each(&mut *f);
            guards(gs, f);
        }
        Stmt::Bind { bound, .. } => f(bound),
        _ => {}
    });
}

/// What [`rewrite`] asks for; the defaults change nothing.
pub trait Rewrite {
    fn dim(&mut self, d: &Dim) -> Dim {
        d.clone()
    }
    /// `e` has its operands and index expressions rewritten already.
    fn expr(&mut self, e: Expr) -> Expr {
        e
    }
    /// `s` has its parts rewritten already; may answer any number of statements.
    fn stmt(&mut self, s: Stmt, into: &mut Kernel) -> Vec<Stmt> {
        let _ = into;
        vec![s]
    }
}

/// A copy of the kernel with every index expression, expression and statement rewritten.
pub fn rewrite(kernel: &Kernel, r: &mut dyn Rewrite) -> Kernel {
    let mut out = Kernel::default();
    out.name.clone_from(&kernel.name);
    out.buffers.clone_from(&kernel.buffers);
    out.domain = kernel.domain.iter().map(|a| rewrite_axis(a, r)).collect();
    out.vars.clone_from(&kernel.vars);
    out.locals = kernel.locals;
    out.generated.clone_from(&kernel.generated);
    out.params.clone_from(&kernel.params);
    out.origins.clone_from(&kernel.origins);
    // operands precede their users, so one pass in order sees every operand first
    let mut ids: Vec<ExprId> = Vec::with_capacity(kernel.exprs().len());
    for e in kernel.exprs() {
        let e = rewrite_expr(e, &ids, r);
        let e = r.expr(e);
        ids.push(out.expr(e));
    }
    out.stmts = rewrite_stmts(&kernel.stmts, &ids, r, &mut out);
    out
}

fn rewrite_axis(a: &Axis, r: &mut dyn Rewrite) -> Axis {
    Axis { var: a.var, extent: r.dim(&a.extent) }
}

fn rewrite_guards(gs: &[Guard], r: &mut dyn Rewrite) -> Vec<Guard> {
    gs.iter().map(|g| Guard { expr: r.dim(&g.expr), bound: r.dim(&g.bound) }).collect()
}

fn rewrite_expr(e: &Expr, ids: &[ExprId], r: &mut dyn Rewrite) -> Expr {
    let id = |e: &ExprId| ids[e.0 as usize];
    match e {
        Expr::Const(..) | Expr::Local(_) => e.clone(),
        Expr::Index(d) => Expr::Index(r.dim(d)),
        Expr::Read { buf, index, guards, fill } => Expr::Read {
            buf: *buf,
            index: index.iter().map(|d| r.dim(d)).collect(),
            guards: rewrite_guards(guards, r),
            fill: *fill,
        },
        Expr::Unary(op, a) => Expr::Unary(*op, id(a)),
        Expr::Binary(op, a, b) => Expr::Binary(*op, id(a), id(b)),
        Expr::Cmp(op, a, b) => Expr::Cmp(*op, id(a), id(b)),
        Expr::Select(a, b, c) => Expr::Select(id(a), id(b), id(c)),
        Expr::Inside(gs) => Expr::Inside(rewrite_guards(gs, r)),
        Expr::Convert(t, m, a) => Expr::Convert(*t, *m, id(a)),
        Expr::Bitcast(t, a) => Expr::Bitcast(*t, id(a)),
        Expr::Dot(dot, a, b) => Expr::Dot(*dot, id(a), id(b)),
        Expr::Bind { var, value, bound, body } => {
            Expr::Bind { var: *var, value: id(value), bound: r.dim(bound), body: id(body) }
        }
    }
}

fn rewrite_stmts(list: &[Stmt], ids: &[ExprId], r: &mut dyn Rewrite, out: &mut Kernel) -> Vec<Stmt> {
    let id = |e: &ExprId| ids[e.0 as usize];
    let mut result = Vec::with_capacity(list.len());
    for s in list {
        let s = match s {
            Stmt::Let { local, value } => Stmt::Let { local: *local, value: id(value) },
            Stmt::Bind { var, value, bound } => {
                Stmt::Bind { var: *var, value: id(value), bound: r.dim(bound) }
            }
            Stmt::Reduce { local, acc, monoid, axes, value } => Stmt::Reduce {
                local: *local,
                acc: *acc,
                monoid: *monoid,
                axes: axes.iter().map(|a| rewrite_axis(a, r)).collect(),
                value: id(value),
            },
            Stmt::ArgReduce { local, max, last, axis, value } => Stmt::ArgReduce {
                local: *local,
                max: *max,
                last: *last,
                axis: rewrite_axis(axis, r),
                value: id(value),
            },
            Stmt::Store { axes, buf, index, guards, value, combine } => Stmt::Store {
                axes: axes.iter().map(|a| rewrite_axis(a, r)).collect(),
                buf: *buf,
                index: index.iter().map(|d| r.dim(d)).collect(),
                guards: rewrite_guards(guards, r),
                value: id(value),
                combine: *combine,
            },
            Stmt::Ordered { axis, carries, body } => {
                let axis = rewrite_axis(axis, r);
                let body = rewrite_stmts(body, ids, r, out);
                let carries = carries.iter().map(|(l, t, a, b)| (*l, *t, id(a), id(b))).collect();
                Stmt::Ordered { axis, carries, body }
            }
        };
        result.extend(r.stmt(s, out));
    }
    result
}

/// Replaces variables by expressions and simplifies with `facts`.
pub fn substitute(d: &Dim, facts: &dyn Facts, map: &[(Var, Dim)]) -> Dim {
    if !map.iter().any(|(v, _)| d.uses_var(*v)) {
        return d.clone();
    }
    d.subst(facts, &mut |a| match a {
        Atom::Var(v) => map.iter().find(|(w, _)| w == v).map(|(_, d)| d.clone()),
        _ => None,
    })
}

/// Index variables that occur in `d`, each once.
pub fn vars_of(d: &Dim) -> Vec<Var> {
    let mut vars = Vec::new();
    d.visit_atoms(&mut |a| {
        if let Atom::Var(v) = a
            && !vars.contains(v)
        {
            vars.push(*v);
        }
    });
    vars
}
