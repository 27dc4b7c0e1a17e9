//! Verifier of kernel IR.
//!
//! A kernel is well formed when
//!
//! **Buffers.** Element types are not strings; shapes mention only symbols. The fragments of a layout cover each logical dim
//! exactly: sorted by divisor they begin with 1, each next divisor is the last one times its length, and only the outermost
//! has no length.
//!
//! **Expressions.** Operands come before their users in the table, so there are no cycles. Arithmetic keeps its operands'
//! type, comparisons and `inside` are bool, `index` is i64. Math functions, `atan2` and rounding take what [`crate::prim`] says. A read
//! has one index for each dim of a buffer that may be read.
//!
//! **Scopes.** An index variable is bound once along every path to its use: by the domain, by the axes of a
//! reduction, store or ordered loop around it, or by `bind`. Extents, bounds and guards mention what is bound outside of
//! them. A local is defined once, by an earlier statement of the same or an enclosing list, or carried.
//!
//! **Statements.** A reduction accumulates in the type of its value. What is stored has the element type of the buffer, which may be
//! written, and one index for each of its dims. Carried locals keep their type; the values after a step see what the
//! body defines. A generated kernel has no statements and no domain.
//!
//! **Chains.** A kernel with stages has neither statements nor a domain. No stage is a chain or a generated kernel; each brings
//! buffers that agree with its operands in element type, shape and layout. A local buffer is written by one stage, before any
//! reads it; only chains have local buffers, and all other buffers come before them.
//!
//! Not checked: that indices are in bounds where the guards hold, and that different points store to different elements.

use crate::dtype::Scalar;
use crate::kernel::{Access, Axis, BufId, Buffer, Expr, ExprId, Guard, Kernel, Stmt};
use crate::prim::{BinaryOp, UnaryOp};
use crate::{Atom, DType, Dim, IrError, Result, Var};
use std::collections::HashMap;

/// Ordered loops nest at most this deep.
const MAX_DEPTH: usize = 64;

/// Checks a kernel; the error names the statement or buffer.
pub fn verify(k: &Kernel) -> Result<()> {
    let mut v = Verifier {
        k,
        vars: vec![false; k.vars.len()],
        locals: vec![None; k.locals as usize],
        place: format!("kernel {}", k.name),
        depth: 0,
        types: HashMap::new(),
    };
    for b in &k.buffers {
        v.place = format!("buffer {}", b.name);
        v.buffer(b)?;
    }
    v.place = format!("kernel {}", k.name);
    for (i, e) in k.exprs().iter().enumerate() {
        v.order(i, e)?;
    }
    if k.generated.is_some() {
        return v.require(k.stmts.is_empty() && k.domain.is_empty(), || {
            "a generated kernel has statements".into()
        });
    }
    if !k.stages.is_empty() {
        return v.chain();
    }
    v.require(k.buffers.iter().all(|b| b.access != Access::Local), || "local buffers without stages".into())?;
    v.axes(&k.params)?;
    v.axes(&k.domain)?;
    v.stmts(&k.stmts)
}

struct Verifier<'a> {
    k: &'a Kernel,
    /// Variables that are bound here.
    vars: Vec<bool>,
    /// Types of the locals that are defined here.
    locals: Vec<Option<DType>>,
    place: String,
    depth: usize,
    /// Expressions checked in the scope of the current statement, with their types.
    types: HashMap<ExprId, DType>,
}

impl Verifier<'_> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(IrError::verify(&self.place, message))
    }
    fn require(&self, ok: bool, message: impl FnOnce() -> String) -> Result<()> {
        if ok { Ok(()) } else { self.fail(message()) }
    }

    // ---- buffers ----------------------------------------------------------------------------

    fn buffer(&self, b: &Buffer) -> Result<()> {
        self.require(b.dtype != DType::String, || "holds strings".into())?;
        let mut has_var = false;
        b.shape.iter().for_each(|d| d.visit_atoms(&mut |a| has_var |= matches!(a, Atom::Var(_))));
        self.require(!has_var, || "a shape that mentions an index variable".into())?;
        let rank = b.shape.len();
        let l = &b.layout;
        self.require(l.rank() == rank && l.frags.iter().all(|f| f.dim < rank), || {
            format!("a layout of rank {} for {rank} dims", l.rank())
        })?;
        for dim in 0..rank {
            let mut frags: Vec<_> = l.frags.iter().filter(|f| f.dim == dim).collect();
            frags.sort_by_key(|f| f.div);
            let mut div = Some(1);
            for f in &frags {
                self.require(div == Some(f.div) && f.len != Some(0), || {
                    format!("fragments of dim {dim} that do not fit together")
                })?;
                div = f.len.and_then(|n| f.div.checked_mul(n));
            }
            let whole = frags.last().is_some_and(|f| f.len.is_none());
            self.require(whole, || format!("dim {dim} has no outermost fragment"))?;
        }
        Ok(())
    }

    fn chain(&mut self) -> Result<()> {
        let k = self.k;
        self.require(k.stmts.is_empty() && k.domain.is_empty(), || "a chain has statements".into())?;
        let sorted = k.buffers.is_sorted_by_key(|b| b.access == Access::Local);
        self.require(sorted, || "local buffers come last".into())?;
        let mut written = vec![false; k.buffers.len()];
        for (i, s) in k.stages.iter().enumerate() {
            self.place = format!("kernel {}, stage {i}", k.name);
            let plain = s.kernel.stages.is_empty() && s.kernel.generated.is_none();
            self.require(plain, || "a chain or generated kernel as a stage".into())?;
            verify(&s.kernel)?;
            self.require(s.args.len() == s.kernel.buffers.len(), || "operands and buffers differ".into())?;
            for (a, b) in s.args.iter().zip(&s.kernel.buffers) {
                let of = self.buf(*a)?;
                let same = of.dtype == b.dtype && of.shape == b.shape && of.layout == b.layout;
                self.require(same, || format!("{} is not as {}", of.name, b.name))?;
                let done = &mut written[a.0 as usize];
                let ok = match (of.access, b.access) {
                    (Access::Local, Access::Read) => *done,
                    (Access::Local, Access::Write) => !std::mem::replace(done, true),
                    (Access::Read, Access::Read) | (Access::Write | Access::ReadWrite, _) => true,
                    _ => false,
                };
                self.require(ok, || format!("{} may not be accessed in this way", of.name))?;
            }
        }
        Ok(())
    }

    fn buf(&self, b: BufId) -> Result<&Buffer> {
        self.k
            .buffers
            .get(b.0 as usize)
            .map_or_else(|| self.fail(format!("buffer {} does not exist", b.0)), Ok)
    }

    /// Operands come before their users.
    fn order(&self, i: usize, e: &Expr) -> Result<()> {
        let below = |x: &ExprId| (x.0 as usize) < i;
        let ok = match e {
            Expr::Const(..) | Expr::Index(_) | Expr::Read { .. } | Expr::Inside(_) | Expr::Local(_) => true,
            Expr::Unary(_, a) | Expr::Convert(_, _, a) | Expr::Bitcast(_, a) => below(a),
            Expr::Binary(_, a, b) | Expr::Cmp(_, a, b) | Expr::Dot(_, a, b) => below(a) && below(b),
            Expr::Select(a, b, c) => below(a) && below(b) && below(c),
            Expr::Bind { value, body, .. } => below(value) && below(body),
        };
        self.require(ok, || format!("expression {i} comes before its operands"))
    }

    // ---- scopes -----------------------------------------------------------------------------

    fn bind(&mut self, v: Var) -> Result<()> {
        // what was checked without the variable may be different with it
        self.types.clear();
        match self.vars.get_mut(v.0 as usize) {
            Some(b @ false) => *b = true,
            Some(_) => return self.fail(format!("variable {} is bound twice", v.0)),
            None => return self.fail(format!("variable {} does not exist", v.0)),
        }
        Ok(())
    }
    fn unbind(&mut self, v: Var) {
        self.types.clear();
        self.vars[v.0 as usize] = false;
    }
    fn axes(&mut self, axes: &[Axis]) -> Result<()> {
        for a in axes {
            self.dim(&a.extent)?;
            self.bind(a.var)?;
        }
        Ok(())
    }
    /// Checks `f` inside of `axes`.
    fn inside<T>(&mut self, axes: &[Axis], f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.axes(axes)?;
        let out = f(self)?;
        axes.iter().for_each(|a| self.unbind(a.var));
        Ok(out)
    }
    fn dim(&self, d: &Dim) -> Result<()> {
        let mut unbound = None;
        d.visit_atoms(&mut |a| {
            if let Atom::Var(v) = a
                && !self.vars.get(v.0 as usize).is_some_and(|b| *b)
            {
                unbound = Some(*v);
            }
        });
        match unbound {
            Some(v) => {
                let name = self.k.vars.get(v.0 as usize).map_or("?", String::as_str);
                self.fail(format!("variable {} (`{name}`) is not bound in {d}", v.0))
            }
            None => Ok(()),
        }
    }
    fn guards(&self, guards: &[Guard]) -> Result<()> {
        guards.iter().try_for_each(|g| {
            self.dim(&g.expr)?;
            self.dim(&g.bound)
        })
    }
    fn index(&self, b: &Buffer, index: &[Dim]) -> Result<()> {
        self.require(index.len() == b.shape.len(), || {
            format!("{} indices for the {} dims of {}", index.len(), b.shape.len(), b.name)
        })?;
        index.iter().try_for_each(|d| self.dim(d))
    }
    fn define(&mut self, local: u32, dtype: DType) -> Result<()> {
        match self.locals.get_mut(local as usize) {
            Some(l @ None) => *l = Some(dtype),
            Some(_) => return self.fail(format!("l{local} is defined twice")),
            None => return self.fail(format!("l{local} does not exist")),
        }
        Ok(())
    }

    // ---- statements -------------------------------------------------------------------------

    fn stmts(&mut self, list: &[Stmt]) -> Result<()> {
        self.depth += 1;
        self.require(self.depth <= MAX_DEPTH, || "loops nest too deeply".into())?;
        for (i, s) in list.iter().enumerate() {
            self.place = format!("kernel {}, statement {i}", self.k.name);
            self.stmt(s)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn stmt(&mut self, s: &Stmt) -> Result<()> {
        match s {
            Stmt::Reduce { local, acc, axes, value, .. } => {
                let t = self.inside(axes, |v| v.expr(*value))?;
                self.require(t == *acc, || format!("a reduction of {t} that accumulates in {acc}"))?;
                self.define(*local, *acc)
            }
            Stmt::ArgReduce { local, axis, value, .. } => {
                self.inside(std::slice::from_ref(axis), |v| v.expr(*value))?;
                self.define(*local, DType::I64)
            }
            Stmt::Store { axes, buf, index, guards, value, .. } => self.inside(axes, |v| {
                let t = v.expr(*value)?;
                let b = v.buf(*buf)?;
                v.require(t == b.dtype, || format!("{t} is stored to {} of {}", b.name, b.dtype))?;
                v.require(b.access != Access::Read, || format!("{} is only read", b.name))?;
                v.index(b, index)?;
                v.guards(guards)
            }),
            Stmt::Ordered { axis, carries, body } => {
                for (local, dtype, init, _) in carries {
                    let t = self.expr(*init)?;
                    self.require(t == *dtype, || format!("l{local} of {dtype} begins as {t}"))?;
                }
                for (local, dtype, ..) in carries {
                    self.define(*local, *dtype)?;
                }
                let place = self.place.clone();
                let before = self.locals.clone();
                let bound_before = self.vars.clone();
                self.inside(std::slice::from_ref(axis), |v| {
                    v.stmts(body)?;
                    v.place.clone_from(&place);
                    for (local, dtype, _, next) in carries {
                        let t = v.expr(*next)?;
                        v.require(t == *dtype, || format!("l{local} of {dtype} becomes {t}"))?;
                    }
                    Ok(())
                })?;
                // what the body defines and binds ends with it; carried locals hold their last value
                self.locals = before;
                self.vars = bound_before;
                self.types.clear();
                Ok(())
            }
            Stmt::Let { local, value } => {
                let t = self.expr(*value)?;
                self.define(*local, t)
            }
            Stmt::Bind { var, value, bound } => {
                let t = self.expr(*value)?;
                self.require(t.is_int(), || format!("an index of type {t}"))?;
                self.dim(bound)?;
                self.bind(*var)
            }
        }
    }

    // ---- expressions ------------------------------------------------------------------------

    fn expr(&mut self, id: ExprId) -> Result<DType> {
        if let Some(t) = self.types.get(&id) {
            return Ok(*t);
        }
        if id.0 as usize >= self.k.exprs().len() {
            return self.fail(format!("expression {} does not exist", id.0));
        }
        // operands come first in the table: an explicit stack instead of recursion
        let mut todo = vec![id];
        while let Some(e) = todo.pop() {
            if self.types.contains_key(&e) {
                continue;
            }
            let missing = self.missing(e);
            if missing.is_empty() {
                let t = self.typed(e)?;
                self.types.insert(e, t);
            } else {
                todo.push(e);
                todo.extend(missing);
            }
        }
        Ok(self.types[&id])
    }

    /// Operands without a type yet. A `bind` is checked as a whole.
    fn missing(&self, e: ExprId) -> Vec<ExprId> {
        let all = match self.k.get(e) {
            Expr::Unary(_, a) | Expr::Convert(_, _, a) | Expr::Bitcast(_, a) => vec![*a],
            Expr::Binary(_, a, b) | Expr::Cmp(_, a, b) | Expr::Dot(_, a, b) => vec![*a, *b],
            Expr::Select(a, b, c) => vec![*a, *b, *c],
            Expr::Bind { value, .. } => vec![*value],
            _ => Vec::new(),
        };
        all.into_iter().filter(|a| !self.types.contains_key(a)).collect()
    }

    fn typed(&mut self, e: ExprId) -> Result<DType> {
        let t = |v: &Self, e: &ExprId| v.types[e];
        let same = |v: &Self, a: &ExprId, b: &ExprId| {
            let (x, y) = (v.types[a], v.types[b]);
            v.require(x == y, || format!("operands of {x} and {y}"))
        };
        let k = self.k;
        match k.get(e) {
            Expr::Const(d, s) => {
                let fits = match (s, d.int_range()) {
                    (Scalar::Int(i), Some((lo, hi))) => (lo..=hi).contains(i),
                    (Scalar::Float(_), None) => *d != DType::String,
                    _ => false,
                };
                self.require(fits, || format!("constant {s:?} of type {d}"))?;
                Ok(*d)
            }
            Expr::Index(d) => {
                self.dim(d)?;
                Ok(DType::I64)
            }
            Expr::Read { buf, index, guards, .. } => {
                let b = self.buf(*buf)?;
                self.require(b.access != Access::Write, || format!("{} is only written", b.name))?;
                self.index(b, index)?;
                self.guards(guards)?;
                Ok(b.dtype)
            }
            Expr::Unary(op, a) => {
                let d = t(self, a);
                let fits = match op {
                    UnaryOp::Not => !d.is_float(),
                    UnaryOp::Neg | UnaryOp::Abs => d != DType::Bool,
                    UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Trunc | UnaryOp::RoundEven => d != DType::Bool,
                    _ => d.is_float(),
                };
                self.require(fits, || format!("{} of {d}", op.name()))?;
                Ok(d)
            }
            Expr::Binary(op, a, b) => {
                same(self, a, b)?;
                let d = t(self, a);
                use BinaryOp::*;
                let fits = match op {
                    And | Or | Xor => !d.is_float(),
                    Shl | Shr => d.is_int(),
                    Min | Max => true,
                    Add | Sub | Mul | Div | Rem | Pow => d != DType::Bool,
                    Atan2 => d.is_float(),
                };
                self.require(fits, || format!("{} of {d}", op.name()))?;
                Ok(d)
            }
            Expr::Cmp(_, a, b) => {
                same(self, a, b)?;
                Ok(DType::Bool)
            }
            Expr::Select(m, a, b) => {
                let d = t(self, m);
                self.require(d == DType::Bool, || format!("a choice by {d}"))?;
                same(self, a, b)?;
                Ok(t(self, a))
            }
            Expr::Inside(guards) => {
                self.guards(guards)?;
                Ok(DType::Bool)
            }
            Expr::Convert(d, _, _) => {
                self.require(*d != DType::String, || "a conversion to strings".into())?;
                Ok(*d)
            }
            Expr::Bitcast(d, a) => {
                let from = t(self, a);
                let fits = from.bytes() == d.bytes() && *d != DType::String;
                self.require(fits, || format!("a bitcast of {from} to {d}"))?;
                Ok(*d)
            }
            Expr::Dot(dot, a, b) => {
                let (a, b) = (t(self, a), t(self, b));
                self.require([a, b] == [DType::I32; 2], || format!("{} of {a} and {b}", dot.name()))?;
                Ok(dot.dtype())
            }
            Expr::Local(l) => match self.locals.get(*l as usize) {
                Some(Some(d)) => Ok(*d),
                _ => self.fail(format!("l{l} is used before it is defined")),
            },
            Expr::Bind { var, value, bound, body } => {
                let d = t(self, value);
                self.require(d.is_int(), || format!("an index of type {d}"))?;
                self.dim(bound)?;
                // types found outside of the binding stay valid after it
                let outside = std::mem::take(&mut self.types);
                self.depth += 1;
                self.require(self.depth <= MAX_DEPTH, || "bindings nest too deeply".into())?;
                self.bind(*var)?;
                let d = self.expr(*body)?;
                self.unbind(*var);
                self.depth -= 1;
                self.types = outside;
                Ok(d)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::kernel::parse;

    fn check(body: &str, expected: &str) {
        let text = format!(
            "kernel @k (x: f32[4, s0] read, i: i64[4] read, y: f32[4] write) {{\n  vars n, c, j\n  locals 2\n  {body}\n}}"
        );
        let k = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let got = verify(&k).err().map_or(String::new(), |e| e.to_string());
        assert!(got.contains(expected) && got.is_empty() == expected.is_empty(), "{text}\n{got}");
    }

    #[test]
    fn what_is_refused() {
        check("domain n: 4\n l0 = sum f32 over [c: s0] of x[n, c]\n y[n] = l0", "");
        check(
            "domain n: 4\n l0 = sum f32 over [c: s0] of x[n, c]\n y[n] = x[n, c]",
            "variable 1 (`c`) is not bound",
        );
        check("domain n: 4\n y[n] = l0", "l0 is used before it is defined");
        check(
            "domain n: 4\n let l0 = x[n, 0]\n let l0 = x[n, 1]",
            "l0 is defined twice (at kernel k, statement 1)",
        );
        check("domain n: 4\n y[n] = i[n]", "i64 is stored to y of f32");
        check("domain n: 4\n x[n, 0] = 1.0f32", "x is only read");
        check("domain n: 4\n y[n] = y[n]", "y is only written");
        check("domain n: 4\n y[n] = x[n]", "1 indices for the 2 dims of x");
        check("domain n: 4\n y[n] = x[n, 0] + 1.0f64", "operands of f32 and f64");
        check("domain n: 4\n l0 = sum f64 over [c: s0] of x[n, c]", "accumulates in f64");
        check("domain n: 4, n: 4\n y[n] = 1.0f32", "bound twice");
        check("domain n: 4\n y[n] = tanh(f32(i[n])) + bind(j: s0 = i[n], x[n, j])", "");
        check("domain n: 4\n y[n] = bind(j: s0 = x[n, 0], x[n, j])", "an index of type f32");
        check("domain n: 4\n y[n] = f32(tanh(i[n]))", "tanh of i64");
        check("domain n: 4\n y[n] = 300u8", "constant");
        check(
            "domain n: 4\n ordered c: s0 carries (l0: f32 = x[n, 0]) {\n let l1 = x[n, c]\n next l0 = l0 + l1 }\n y[n] = l0",
            "",
        );
        check(
            "domain n: 4\n ordered c: s0 carries (l0: f32 = x[n, 0]) {\n let l1 = x[n, c]\n next l0 = l0 }\n y[n] = l1",
            "l1 is used before",
        );
    }

    #[test]
    fn layouts_cover_their_dims() {
        let layout = |l: &str| {
            let text = format!("kernel @k (x: f32[64, 4] read layout({l})) {{\n}}");
            verify(&parse(&text).unwrap()).map_err(|e| e.to_string())
        };
        layout("d0/16 d1 d0%16").unwrap();
        layout("d0/32 d1 d0/4%8 d0%4; halo d1 1 1").unwrap();
        assert!(layout("d0/16 d1 d0%8").unwrap_err().contains("do not fit together"));
        assert!(layout("d0 d0").unwrap_err().contains("do not fit together"));
        assert!(layout("d0").unwrap_err().contains("dim 1 has no outermost fragment"));
    }
}
