//! Evaluates a kernel point by point, straight from its definition.

use super::Memory;
use ir::dtype::Scalar;
use ir::kernel::{Axis, BufId, Expr, ExprId, Guard, Kernel, Stmt};
use ir::loops_opt::eval;
use ir::prim::{CmpOp, Combine};
use ir::{Atom, Dim, Sym};

pub struct Direct<'a> {
    k: &'a Kernel,
    pub bufs: Vec<Memory>,
    syms: &'a dyn Fn(Sym) -> i64,
    vars: Vec<i64>,
    locals: Vec<Scalar>,
    pub failed: usize,
}

impl<'a> Direct<'a> {
    pub fn run(k: &'a Kernel, bufs: Vec<Memory>, syms: &'a dyn Fn(Sym) -> i64) -> Direct<'a> {
        let mut d = Direct {
            k,
            bufs,
            syms,
            vars: vec![0; k.vars.len()],
            locals: vec![Scalar::Int(0); k.locals as usize],
            failed: 0,
        };
        d.points(&k.domain, &mut |d| d.stmts(&k.stmts));
        d
    }

    pub fn dim(&self, d: &Dim) -> i64 {
        d.eval(&|a| match a {
            Atom::Sym(s) => Some((self.syms)(*s)),
            Atom::Var(v) => self.vars.get(v.0 as usize).copied(),
            _ => None,
        })
        .expect("an index without value")
    }

    fn points(&mut self, axes: &[Axis], f: &mut dyn FnMut(&mut Self)) {
        let Some((a, rest)) = axes.split_first() else { return f(self) };
        for i in 0..self.dim(&a.extent) {
            self.vars[a.var.0 as usize] = i;
            self.points(rest, f);
        }
    }

    fn stmts(&mut self, list: &[Stmt]) {
        for s in list {
            match s {
                Stmt::Let { local, value } => self.locals[*local as usize] = self.expr(*value),
                Stmt::Bind { var, value, bound } => {
                    let i = self.index(*value, bound);
                    self.vars[var.0 as usize] = i;
                }
                Stmt::Reduce { local, acc, monoid, axes, value } => {
                    let mut sum = monoid.identity(*acc);
                    self.points(axes, &mut |d| {
                        let v = d.expr(*value);
                        // floats in f64: the order of terms does not show
                        sum = match (sum, v) {
                            (Scalar::Float(_), Scalar::Float(_)) => {
                                eval::combine(*monoid, ir::DType::F64, sum, v)
                            }
                            _ => eval::combine(*monoid, *acc, sum, v),
                        };
                    });
                    self.locals[*local as usize] = eval::normalise(*acc, sum);
                }
                Stmt::ArgReduce { local, max, last, axis, value } => {
                    let mut best: Option<(Scalar, i64)> = None;
                    for i in 0..self.dim(&axis.extent) {
                        self.vars[axis.var.0 as usize] = i;
                        let v = self.expr(*value);
                        let nan = |s: Scalar| s.as_f64().is_nan();
                        let better = best.is_none_or(|(b, _)| {
                            let op = if *max { CmpOp::Gt } else { CmpOp::Lt };
                            let more = eval::cmp(op, v, b) || nan(v) && !nan(b);
                            let equal = eval::cmp(CmpOp::Eq, v, b) || nan(v) && nan(b);
                            (!nan(b) || nan(v)) && (more || *last && equal)
                        });
                        if better {
                            best = Some((v, i));
                        }
                    }
                    self.locals[*local as usize] = Scalar::Int(best.map_or(0, |b| b.1).into());
                }
                Stmt::Store { axes, buf, index, guards, value, combine } => {
                    self.points(axes, &mut |d| {
                        if d.hold(guards) {
                            let v = d.expr(*value);
                            let at = d.address(*buf, index);
                            let dtype = d.k.buffers[buf.0 as usize].dtype;
                            let slot = &mut d.bufs[buf.0 as usize][at];
                            let op = match combine {
                                Combine::Set => None,
                                Combine::Add => Some(ir::prim::BinaryOp::Add),
                                Combine::Mul => Some(ir::prim::BinaryOp::Mul),
                                Combine::Min => Some(ir::prim::BinaryOp::Min),
                                Combine::Max => Some(ir::prim::BinaryOp::Max),
                            };
                            *slot = Some(match op {
                                Some(op) => eval::binary(op, dtype, slot.expect("unwritten"), v),
                                None => v,
                            });
                        }
                    });
                }
                Stmt::Ordered { axis, carries, body } => {
                    for c in carries {
                        self.locals[c.0 as usize] = self.expr(c.2);
                    }
                    for i in 0..self.dim(&axis.extent) {
                        self.vars[axis.var.0 as usize] = i;
                        self.stmts(body);
                        let next: Vec<Scalar> = carries.iter().map(|c| self.expr(c.3)).collect();
                        for (c, v) in carries.iter().zip(next) {
                            self.locals[c.0 as usize] = v;
                        }
                    }
                }
            }
        }
    }

    fn index(&mut self, value: ExprId, bound: &Dim) -> i64 {
        let i = self.expr(value).as_int() as i64;
        if (0..self.dim(bound)).contains(&i) {
            return i;
        }
        self.failed += 1;
        0
    }
    fn hold(&self, guards: &[Guard]) -> bool {
        guards.iter().all(|g| (0..self.dim(&g.bound)).contains(&self.dim(&g.expr)))
    }
    fn address(&self, buf: BufId, index: &[Dim]) -> usize {
        let b = &self.k.buffers[buf.0 as usize];
        let shape: Vec<usize> = b.shape.iter().map(|d| self.dim(d) as usize).collect();
        let at: Vec<usize> = index.iter().map(|d| self.dim(d) as usize).collect();
        assert!(at.iter().zip(&shape).all(|(i, n)| i < n), "{} at {at:?} of {shape:?}", b.name);
        b.layout.offset(&shape, &at)
    }

    fn expr(&mut self, e: ExprId) -> Scalar {
        let t = |d: &Self, e: ExprId| crate::lower::axes::dtype_of(d.k, e, &[]);
        match self.k.get(e).clone() {
            Expr::Const(t, s) => eval::normalise(t, s),
            Expr::Index(d) => Scalar::Int(self.dim(&d).into()),
            Expr::Read { buf, index, guards, fill } => {
                if !self.hold(&guards) {
                    return fill;
                }
                let at = self.address(buf, &index);
                self.bufs[buf.0 as usize][at].expect("reads an element that nobody wrote")
            }
            Expr::Unary(op, a) => eval::unary(op, t(self, a), self.expr(a)),
            Expr::Binary(op, a, b) => {
                let (x, y) = (self.expr(a), self.expr(b));
                eval::binary(op, t(self, a), x, y)
            }
            Expr::Cmp(op, a, b) => {
                let (x, y) = (self.expr(a), self.expr(b));
                Scalar::Int(eval::cmp(op, x, y).into())
            }
            Expr::Select(c, a, b) => {
                let c = self.expr(c).as_int() != 0;
                self.expr(if c { a } else { b })
            }
            Expr::Inside(gs) => Scalar::Int(self.hold(&gs).into()),
            Expr::Convert(to, mode, a) => eval::convert(to, mode, t(self, a), self.expr(a)),
            Expr::Bitcast(to, a) => eval::bitcast(to, t(self, a), self.expr(a)),
            Expr::Dot(..) => unreachable!("kernels hold no words before they are scheduled"),
            Expr::Local(l) => self.locals[l as usize],
            Expr::Bind { var, value, bound, body } => {
                let i = self.index(value, &bound);
                self.vars[var.0 as usize] = i;
                self.expr(body)
            }
        }
    }
}
