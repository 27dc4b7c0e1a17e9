//! What scheduling asks of a kernel in normal form: its accesses, how they step along an axis, how much
//! work its statements are.

use crate::kernels::children;
use crate::lower::space::{VarFacts, for_each_dim, substitute, vars_of};
use ir::kernel::{Axis, BufId, Expr, ExprId, Kernel, Stmt};
use ir::prim::{BinaryOp, UnaryOp};
use ir::{Atom, DType, Dim, Facts, Symbols, Var};

/// How an offset moves when an index grows by one.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    Zero,
    One,
    /// By this many elements.
    By(Dim),
    /// In no constant manner.
    Irregular,
}

/// One read or store.
#[derive(Clone, Debug)]
pub struct Access {
    pub buf: BufId,
    pub offset: Dim,
    pub store: bool,
    pub guarded: bool,
    /// Variables that its guards mention.
    pub guard_vars: Vec<Var>,
}

/// A statement with what it touches.
#[derive(Clone, Debug)]
pub struct Work {
    /// Axes of the statement itself, and of `ordered` loops around it.
    pub axes: Vec<Axis>,
    pub ordered: Vec<Axis>,
    pub reduce: bool,
    /// It has an [`super::InnerSpec`].
    pub inner: bool,
    pub accesses: Vec<Access>,
    /// Arithmetic per point, in vector instructions.
    pub ops: f64,
    /// Floating-point (or integer) operations per point, as people count them.
    pub flops: i64,
}

pub struct Analysis<'a> {
    pub k: &'a Kernel,
    pub facts: VarFacts<'a>,
    pub works: Vec<Work>,
}

impl<'a> Analysis<'a> {
    pub fn of(k: &'a Kernel, symbols: &'a Symbols) -> Analysis<'a> {
        let facts = VarFacts::of(k, symbols);
        let mut works = Vec::new();
        collect(k, &k.stmts, &[], &mut works);
        Analysis { k, facts, works }
    }

    pub fn estimate(&self, d: &Dim) -> f64 {
        self.facts.estimate(d)
    }
    pub fn extent(&self, v: Var) -> Dim {
        self.facts.extent(v).cloned().unwrap_or_else(|| Dim::from(1))
    }

    /// How `offset` moves along `v`. `panel`: `v` runs in tiles that begin at its multiples.
    pub fn step(&self, offset: &Dim, v: Var, panel: Option<i64>) -> Step {
        if !offset.uses_var(v) {
            return Step::Zero;
        }
        let plain = match panel {
            Some(_) => None,
            None => offset.affine_in(v),
        };
        let coef = plain.map(|p| p.0).or_else(|| {
            let p = panel?;
            let (tile, lane) = (Var(self.k.vars.len() as u32), Var(self.k.vars.len() as u32 + 1));
            let mut facts = self.facts.clone();
            facts.set(lane, Dim::from(p));
            facts.set(tile, self.extent(v).ceil_div(&Dim::from(p), &self.facts));
            let by = Dim::from(tile) * Dim::from(p) + Dim::from(lane);
            Some(substitute(offset, &facts, &[(v, by)]).affine_in(lane)?.0)
        });
        match coef {
            None => Step::Irregular,
            Some(c) if c.is_const(0) => Step::Zero,
            Some(c) if c.is_const(1) => Step::One,
            Some(c) if vars_of(&c).is_empty() => Step::By(c),
            Some(_) => Step::Irregular,
        }
    }

    /// The divisor in whose multiples tiles of `v` must begin for the offsets to be regular, where some
    /// access is irregular without one.
    pub fn panel(&self, v: Var) -> Option<i64> {
        let mut found = None;
        for_each_dim(self.k, &mut |d| {
            d.visit_atoms(&mut |a| {
                if let Atom::FloorDiv(x, by) | Atom::Mod(x, by) = a
                    && let Some(p) = by.as_const()
                    && x.affine_in(v).is_some_and(|(c, _)| c.is_const(1))
                {
                    found = Some(found.map_or(p, |f: i64| f.min(p)));
                }
            });
        });
        let p = found.filter(|p| (2..=256).contains(p))?;
        let regular = |panel: Option<i64>| {
            self.works
                .iter()
                .flat_map(|w| &w.accesses)
                .filter(|a| self.step(&a.offset, v, panel) == Step::Irregular)
                .count()
        };
        (regular(Some(p)) < regular(None)).then_some(p)
    }

    /// Points of a statement, domain included.
    pub fn points(&self, w: &Work) -> f64 {
        self.domain_points() * w.axes.iter().map(|a| self.estimate(&a.extent)).product::<f64>()
    }
    pub fn domain_points(&self) -> f64 {
        self.k.domain.iter().map(|a| self.estimate(&a.extent)).product()
    }

    /// Operations of the whole kernel.
    pub fn flops(&self) -> Dim {
        let domain = Dim::product(self.k.domain.iter().map(|a| &a.extent));
        let mut sum = Dim::from(0);
        for w in &self.works {
            sum = sum + Dim::product(w.axes.iter().map(|a| &a.extent)) * Dim::from(w.flops);
        }
        // extents of inner axes may depend on outer variables: their largest values
        let facts = &self.facts;
        (sum * domain).subst(facts, &mut |a| match a {
            Atom::Var(v) => Some(facts.var_extent(*v).unwrap_or_else(|| Dim::from(1))),
            _ => None,
        })
    }

    /// Bytes of one element in the registers that the kernel computes in.
    pub fn compute_bytes(&self) -> usize {
        let mut bytes = 4;
        let mut see = |t: DType| bytes = bytes.max(t.bytes());
        let f = &mut |s: &Stmt| match s {
            Stmt::Reduce { acc, .. } if *acc != DType::I64 => see(*acc),
            Stmt::Store { buf, .. } => see(self.k.buffers[buf.0 as usize].dtype),
            _ => {}
        };
        crate::lower::space::for_each_stmt(&self.k.stmts, f);
        bytes
    }

    /// Axes of the domain along which the order of points cannot show: every store goes to distinct
    /// elements for distinct values.
    pub fn free_axes(&self) -> Vec<Var> {
        let all: Vec<Var> = self.k.domain.iter().map(|a| a.var).collect();
        if !crate::lower::axes::order_matters(self.k) {
            return all;
        }
        let stores: Vec<&Access> = self.works.iter().flat_map(|w| &w.accesses).filter(|a| a.store).collect();
        all.into_iter().filter(|v| stores.iter().all(|s| self.separates(s, *v))).collect()
    }

    /// True where the stored offset tells values of `v` apart whatever the data-dependent indices are:
    /// `v` moves less than every data-dependent step, or every one of these moves less than `v`.
    fn separates(&self, s: &Access, v: Var) -> bool {
        self.separates_symbolic(s, v) || self.separates_numeric(s, v)
    }

    fn separates_numeric(&self, s: &Access, v: Var) -> bool {
        let Some((coef, rest)) = s.offset.affine_in(v) else { return false };
        let Some(c) = coef.as_const().filter(|c| *c > 0) else { return false };
        let reach = c.saturating_mul(self.extent(v).bounds(&self.facts).1);
        if reach <= 0 {
            // no points at all
            return true;
        }
        // the others, each with its range of offsets, sorted into those below and above the stride of v
        let mut inner = 0i64;
        for (atoms, k) in rest.terms().iter().filter(|t| !t.0.is_empty()) {
            let term = Dim::product(&atoms.iter().map(|a| Dim::from(a.clone())).collect::<Vec<_>>());
            let (lo, hi) = term.bounds(&self.facts);
            let span = k.unsigned_abs().saturating_mul(hi.saturating_sub(lo).unsigned_abs());
            if span < c as u64 {
                inner = inner.saturating_add(span as i64);
            } else if k % reach != 0 {
                return false;
            }
        }
        inner < c
    }

    /// By strides alone, which may be products of symbols: every other variable moves by a multiple of all
    /// that `v` covers, or covers less than one step of `v`.
    fn separates_symbolic(&self, s: &Access, v: Var) -> bool {
        let Some((coef, rest)) = s.offset.affine_in(v) else { return false };
        if coef.is_const(0) || !vars_of(&coef).is_empty() {
            return false;
        }
        let reach = &coef * &self.extent(v);
        vars_of(&rest).into_iter().all(|u| match rest.affine_in(u) {
            Some((c, _)) => {
                let above = c.split_multiple(&reach).1.is_const(0);
                let below = coef.split_multiple(&(&c * &self.extent(u))).1.is_const(0);
                above || below
            }
            None => false,
        })
    }
}

fn collect(k: &Kernel, list: &[Stmt], ordered: &[Axis], works: &mut Vec<Work>) {
    for s in list {
        let (axes, values, reduce, inner): (&[Axis], Vec<ExprId>, bool, bool) = match s {
            Stmt::Reduce { axes, value, .. } => (axes, vec![*value], true, true),
            Stmt::ArgReduce { axis, value, .. } => (std::slice::from_ref(axis), vec![*value], true, false),
            Stmt::Store { axes, value, .. } => (axes, vec![*value], false, !axes.is_empty()),
            Stmt::Let { value, .. } | Stmt::Bind { value, .. } => (&[], vec![*value], false, false),
            Stmt::Ordered { axis, carries, body } => {
                let mut around = ordered.to_vec();
                around.push(axis.clone());
                let first = works.len();
                collect(k, body, &around, works);
                let values: Vec<ExprId> = carries.iter().map(|c| c.3).collect();
                works.push(work(k, &[], &around, &values, false, false, None));
                debug_assert!(works.len() > first);
                continue;
            }
        };
        works.push(work(k, axes, ordered, &values, reduce, inner, Some(s)));
    }
}

fn work(
    k: &Kernel,
    axes: &[Axis],
    ordered: &[Axis],
    values: &[ExprId],
    reduce: bool,
    inner: bool,
    stmt: Option<&Stmt>,
) -> Work {
    let mut seen = vec![false; k.exprs().len()];
    let mut stack = values.to_vec();
    let mut w = Work {
        axes: axes.to_vec(),
        ordered: ordered.to_vec(),
        reduce,
        inner,
        accesses: Vec::new(),
        ops: if reduce { 1.0 } else { 0.0 },
        flops: i64::from(reduce),
    };
    let guard_vars = |gs: &[ir::kernel::Guard]| {
        let mut vars: Vec<Var> = gs.iter().flat_map(|g| vars_of(&g.expr)).collect();
        vars.dedup();
        vars
    };
    if let Some(Stmt::Store { buf, index, guards, .. }) = stmt {
        w.accesses.push(Access {
            buf: *buf,
            offset: index[0].clone(),
            store: true,
            guarded: !guards.is_empty(),
            guard_vars: guard_vars(guards),
        });
    }
    while let Some(e) = stack.pop() {
        if std::mem::replace(&mut seen[e.0 as usize], true) {
            continue;
        }
        let mut arithmetic = |ops: f64| {
            w.ops += ops;
            w.flops += 1;
        };
        match k.get(e) {
            Expr::Const(..) | Expr::Index(_) | Expr::Local(_) | Expr::Inside(_) => {}
            Expr::Read { buf, index, guards, .. } => w.accesses.push(Access {
                buf: *buf,
                offset: index[0].clone(),
                store: false,
                guarded: !guards.is_empty(),
                guard_vars: guard_vars(guards),
            }),
            Expr::Unary(op, a) => {
                arithmetic(unary_ops(*op));
                stack.push(*a);
            }
            Expr::Binary(op, a, b) => {
                // the product of a reduction is half of a fused multiply-add
                let fused = reduce && values.contains(&e) && *op == BinaryOp::Mul;
                arithmetic(if fused { 0.0 } else { binary_ops(*op) });
                stack.extend([*a, *b]);
            }
            Expr::Dot(dot, a, b) => {
                // one instruction adds it to the sum
                arithmetic(if reduce && values.contains(&e) { 0.0 } else { 1.0 });
                w.flops += 2 * dot.parts() as i64 - 2;
                stack.extend([*a, *b]);
            }
            Expr::Cmp(_, a, b) => {
                arithmetic(1.0);
                stack.extend([*a, *b]);
            }
            Expr::Select(a, b, c) => {
                arithmetic(1.0);
                stack.extend([*a, *b, *c]);
            }
            Expr::Convert(_, _, a) | Expr::Bitcast(_, a) => {
                w.ops += 1.0;
                stack.push(*a);
            }
            Expr::Bind { value, body, .. } => stack.extend([*value, *body]),
        }
    }
    w
}

/// True where computing an expression costs more than storing it and reading it again.
pub fn is_expensive(k: &Kernel, e: ExprId) -> bool {
    let own = match k.get(e) {
        Expr::Unary(op, _) => unary_ops(*op),
        Expr::Binary(op, ..) => binary_ops(*op),
        _ => 0.0,
    };
    own > 10.0 || children(k.get(e)).into_iter().any(|c| is_expensive(k, c))
}

/// Vector instructions of a function, roughly.
fn unary_ops(op: UnaryOp) -> f64 {
    match op {
        UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not => 1.0,
        UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Trunc | UnaryOp::RoundEven => 1.0,
        UnaryOp::Sqrt => 4.0,
        UnaryOp::Exp | UnaryOp::Tanh | UnaryOp::Erf => 16.0,
        _ => 30.0,
    }
}

fn binary_ops(op: BinaryOp) -> f64 {
    match op {
        BinaryOp::Div => 4.0,
        BinaryOp::Rem | BinaryOp::Pow | BinaryOp::Atan2 => 40.0,
        _ => 1.0,
    }
}
