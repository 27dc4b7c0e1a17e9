//! Index expressions: [`Dim`]s as values.

use super::LoopBuilder;
use crate::loops::Val;
use crate::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};
use crate::{Atom, DType, Dim, Var};

impl LoopBuilder {
    /// The i64 value of `d`, with `env` for index variables. What does not depend on inner loops is
    /// computed outside of them.
    pub fn dim(&mut self, d: &Dim, env: &dyn Fn(Var) -> Val) -> Val {
        let (v, c) = self.dim_parts(d, env);
        let c = self.index(c);
        self.add(v, c)
    }

    /// `d` as a value plus a constant: the constant belongs into [`Addr::disp`].
    pub fn dim_parts(&mut self, d: &Dim, env: &dyn Fn(Var) -> Val) -> (Val, i64) {
        let mut constant = 0i64;
        let mut parts = Vec::with_capacity(d.terms().len());
        for (atoms, c) in d.terms() {
            if atoms.is_empty() {
                constant = *c;
                continue;
            }
            let mut factors: Vec<Val> = atoms.iter().map(|a| self.atom(a, env)).collect();
            factors.sort_by_key(|v| self.depth(*v));
            let first = self.index(*c);
            parts.push(factors.into_iter().fold(first, |p, f| self.mul(p, f)));
        }
        // outermost first, so that partial sums leave the inner loops
        parts.sort_by_key(|v| self.depth(*v));
        let zero = self.index(0);
        (parts.into_iter().fold(zero, |s, p| self.add(s, p)), constant)
    }

    fn atom(&mut self, a: &Atom, env: &dyn Fn(Var) -> Val) -> Val {
        match a {
            Atom::Sym(s) => self.sym(*s),
            Atom::Var(v) => env(*v),
            Atom::FloorDiv(x, y) => {
                let (x, y) = (self.dim(x, env), self.dim(y, env));
                self.floor_div(x, y)
            }
            Atom::Mod(x, y) => {
                let (x, y) = (self.dim(x, env), self.dim(y, env));
                self.floor_mod(x, y)
            }
            Atom::Min(x, y) => {
                let (x, y) = (self.dim(x, env), self.dim(y, env));
                self.min(x, y)
            }
            Atom::Max(x, y) => {
                let (x, y) = (self.dim(x, env), self.dim(y, env));
                self.max(x, y)
            }
        }
    }

    /// floor(x / y) of i64 scalars for positive y, or of tiles of indices (below 2^52 in size).
    pub fn floor_div(&mut self, x: Val, y: Val) -> Val {
        if let Some(bits) = self.log2_const(y) {
            // an arithmetic shift is the floor for negative values too
            let n = self.int(self.ty(y), bits.into());
            return self.binary(BinaryOp::Shr, x, n);
        }
        if !self.ty(x).is_scalar() {
            // no vector unit divides 64-bit integers; as f64 the quotient of numbers below 2^52, which
            // indices are, rounds to no other integer
            let [xf, yf] = [x, y].map(|v| self.convert(DType::F64, ConvertMode::Plain, v));
            let q = self.div(xf, yf);
            let q = self.unary(UnaryOp::Floor, q);
            let q = self.convert(DType::I64, ConvertMode::Plain, q);
            if self.nonneg(x) {
                self.assume_nonneg(q);
            }
            return q;
        }
        let q = self.div(x, y);
        if self.nonneg(x) {
            return q;
        }
        let qy = self.mul(q, y);
        let rest = self.sub(x, qy);
        let zero = self.zero(self.ty(rest));
        let below = self.cmp(CmpOp::Lt, rest, zero);
        let one = self.int(self.ty(q), 1);
        let q1 = self.sub(q, one);
        self.select(below, q1, q)
    }

    /// x mod y in `0..y` of i64 scalars for positive y, or of tiles of indices (below 2^52 in size).
    pub fn floor_mod(&mut self, x: Val, y: Val) -> Val {
        if let Some(bits) = self.log2_const(y) {
            let mask = self.int(self.ty(y), (1i128 << bits) - 1);
            let v = self.and(x, mask);
            self.assume_nonneg(v);
            return v;
        }
        if !self.ty(x).is_scalar() {
            let q = self.floor_div(x, y);
            let qy = self.mul(q, y);
            let r = self.sub(x, qy);
            self.assume_nonneg(r);
            return r;
        }
        let r = self.rem(x, y);
        if self.nonneg(x) {
            self.assume_nonneg(r);
            return r;
        }
        let zero = self.zero(self.ty(r));
        let below = self.cmp(CmpOp::Lt, r, zero);
        let up = self.add(r, y);
        let v = self.select(below, up, r);
        self.assume_nonneg(v);
        v
    }

    fn log2_const(&self, v: Val) -> Option<u32> {
        let c = self.as_index(v).filter(|c| *c > 0)?;
        (c & (c - 1) == 0).then(|| c.trailing_zeros())
    }
    pub(super) fn nonneg(&self, v: Val) -> bool {
        self.known[v.0 as usize].nonneg
    }
    pub(super) fn depth(&self, v: Val) -> u32 {
        self.known[v.0 as usize].depth
    }
}
