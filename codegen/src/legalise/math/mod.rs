//! Math functions as explicit arithmetic, on scalars and vectors of f32 and f64 alike.
//!
//! Polynomials and rationals are minimax fits of ours (Remez exchange; weighted least squares for the
//! rationals); argument reductions are the textbook ones (Cody and Waite, Payne and Hanek; see Muller,
//! *Elementary Functions*). No library call, no table in memory, no branch but the reduction of huge
//! arguments of sin, cos and tan (lane by lane), and the loop of a float remainder.
//!
//! Largest error in units of the last place, with fused multiply-add (without: erf 4.4 in f32,
//! up to one more in f64), measured by `tests::ulp_table` against f64 (f32) and against the platform's libm
//! (f64, itself off by up to one):
//!
//! | function | f32 | f64 | | function | f32 | f64 |
//! |---|---|---|---|---|---|---|
//! | exp | 1.4 | 1 | | sinh | 1.8 | 2 |
//! | expm1 | 1.1 | 2 | | cosh | 1.8 | 1 |
//! | log | 0.8 | 1 | | asinh | 1.5 | 1 |
//! | log1p | 1.3 | 1 | | acosh | 1.8 | 1 |
//! | sin | 1.3 | 2 | | atanh | 1.8 | 1 |
//! | cos | 1.4 | 1 | | tanh | 4.0 | 2 |
//! | tan | 2.5 | 2 | | erf | 3.8 | 2 |
//! | asin | 1.9 | 2 | | pow | 0.5 | 6 |
//! | acos | 1.0 | 1 | | atan2 | 1.7 | 2 |
//! | atan | 1.9 | 1 | | float rem | 0 | 0 |
//!
//! The arguments cover the whole range of the type; results may be denormal. Infinities, zeros (with
//! sign), NaN and poles follow IEEE 754 and C (Annex F).

mod exp;
mod inverse;
mod log;
mod pow;
mod rem;
mod trig;

#[cfg(test)]
mod tests;

use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};

/// True for what every emitter has an instruction for.
pub fn is_native(op: UnaryOp) -> bool {
    use UnaryOp as U;
    matches!(op, U::Neg | U::Abs | U::Floor | U::Ceil | U::Trunc | U::RoundEven | U::Sqrt | U::Not)
}

/// Builds expansions at the end of the builder's open block.
pub struct Math<'a> {
    pub b: &'a mut LoopBuilder,
    /// Fused multiply-add exists.
    pub fma: bool,
    /// Bytes of vectors that one instruction multiplies by powers of 2 ([`ir::loops::SCALE`]); 0 where there is none.
    pub scale: usize,
}

impl Math<'_> {
    /// The expansion of `op`, or `None` where it is native. `x`: f32 or f64, scalar or vector.
    pub fn unary(&mut self, op: UnaryOp, x: Val) -> Option<Val> {
        Some(match op {
            UnaryOp::Exp => self.exp(x),
            UnaryOp::Expm1 => self.expm1(x),
            UnaryOp::Log => self.log(x),
            UnaryOp::Log1p => self.log1p(x),
            UnaryOp::Sin => self.sin(x),
            UnaryOp::Cos => self.cos(x),
            UnaryOp::Tan => self.tan(x),
            UnaryOp::Asin => self.asin(x),
            UnaryOp::Acos => self.acos(x),
            UnaryOp::Atan => self.atan(x),
            UnaryOp::Sinh => self.sinh(x),
            UnaryOp::Cosh => self.cosh(x),
            UnaryOp::Asinh => self.asinh(x),
            UnaryOp::Acosh => self.acosh(x),
            UnaryOp::Atanh => self.atanh(x),
            UnaryOp::Tanh => self.tanh(x),
            UnaryOp::Erf => self.erf(x),
            UnaryOp::Neg
            | UnaryOp::Abs
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Trunc
            | UnaryOp::RoundEven
            | UnaryOp::Sqrt
            | UnaryOp::Not => return None,
        })
    }

    // ---- shorthand ----------------------------------------------------------------------------

    fn is_f64(&self, x: Val) -> bool {
        self.b.dtype(x) == DType::F64
    }
    /// A float constant of the type of `like`.
    fn c(&mut self, like: Val, x: f64) -> Val {
        self.b.constant(self.b.ty(like), Scalar::Float(x))
    }
    /// The integer type of the width of `like`.
    fn int_ty(&self, like: Val) -> Ty {
        let wide = self.b.dtype(like).bytes() == 8;
        self.b.ty(like).with(if wide { DType::I64 } else { DType::I32 })
    }
    /// An integer constant of the width of `like`.
    fn i(&mut self, like: Val, x: i64) -> Val {
        let ty = self.int_ty(like);
        self.b.int(ty, x.into())
    }
    fn add(&mut self, a: Val, b: Val) -> Val {
        self.b.add(a, b)
    }
    fn sub(&mut self, a: Val, b: Val) -> Val {
        self.b.sub(a, b)
    }
    fn mul(&mut self, a: Val, b: Val) -> Val {
        self.b.mul(a, b)
    }
    fn div(&mut self, a: Val, b: Val) -> Val {
        self.b.div(a, b)
    }
    fn neg(&mut self, a: Val) -> Val {
        self.b.unary(UnaryOp::Neg, a)
    }
    fn abs(&mut self, a: Val) -> Val {
        self.b.unary(UnaryOp::Abs, a)
    }
    fn sqrt(&mut self, a: Val) -> Val {
        self.b.unary(UnaryOp::Sqrt, a)
    }
    fn trunc(&mut self, a: Val) -> Val {
        self.b.unary(UnaryOp::Trunc, a)
    }
    fn add_c(&mut self, a: Val, x: f64) -> Val {
        let c = self.c(a, x);
        self.b.add(a, c)
    }
    fn mul_c(&mut self, a: Val, x: f64) -> Val {
        let c = self.c(a, x);
        self.b.mul(a, c)
    }
    /// a * b + c, rounded once or twice as the target can.
    fn mad(&mut self, a: Val, b: Val, c: Val) -> Val {
        if self.fma {
            return self.b.fma(a, b, c);
        }
        let p = self.b.mul(a, b);
        self.b.add(p, c)
    }
    fn cmp(&mut self, op: CmpOp, a: Val, b: Val) -> Val {
        self.b.cmp(op, a, b)
    }
    fn cmp_c(&mut self, op: CmpOp, a: Val, x: f64) -> Val {
        let c = self.c(a, x);
        self.b.cmp(op, a, c)
    }
    fn sel(&mut self, mask: Val, a: Val, b: Val) -> Val {
        self.b.select(mask, a, b)
    }
    fn sel_c(&mut self, mask: Val, a: f64, b: Val) -> Val {
        let a = self.c(b, a);
        self.b.select(mask, a, b)
    }
    fn and(&mut self, a: Val, b: Val) -> Val {
        self.b.and(a, b)
    }
    fn or(&mut self, a: Val, b: Val) -> Val {
        self.b.or(a, b)
    }
    fn not(&mut self, a: Val) -> Val {
        self.b.not(a)
    }
    fn shl(&mut self, a: Val, n: i64) -> Val {
        let n = self.b.int(self.b.ty(a), n.into());
        self.b.binary(BinaryOp::Shl, a, n)
    }
    fn shr(&mut self, a: Val, n: i64) -> Val {
        let n = self.b.int(self.b.ty(a), n.into());
        self.b.binary(BinaryOp::Shr, a, n)
    }
    fn convert(&mut self, to: DType, a: Val) -> Val {
        self.b.convert(to, ConvertMode::Plain, a)
    }
    /// The bits of a float as a signed integer.
    fn bits(&mut self, x: Val) -> Val {
        let to = self.int_ty(x).dtype;
        self.b.bitcast(to, x)
    }
    /// The float with these bits.
    fn float_of(&mut self, i: Val) -> Val {
        let wide = self.b.dtype(i).bytes() == 8;
        self.b.bitcast(if wide { DType::F64 } else { DType::F32 }, i)
    }

    /// `c[0] + x c[1] + x^2 c[2] + ...`, by Horner's rule.
    fn poly(&mut self, x: Val, c: &[f64]) -> Val {
        let (last, rest) = c.split_last().unwrap_or((&0.0, &[]));
        let mut p = self.c(x, *last);
        for c in rest.iter().rev() {
            let c = self.c(x, *c);
            p = self.mad(p, x, c);
        }
        p
    }
    /// The minimum with a constant; NaN stays.
    fn at_most(&mut self, x: Val, max: f64) -> Val {
        let c = self.c(x, max);
        let above = self.cmp(CmpOp::Lt, c, x);
        self.sel(above, c, x)
    }
    /// The maximum with a constant; NaN stays.
    fn at_least(&mut self, x: Val, min: f64) -> Val {
        let c = self.c(x, min);
        let below = self.cmp(CmpOp::Gt, c, x);
        self.sel(below, c, x)
    }
    /// `magnitude`, which is not negative, with the sign of `sign`.
    fn copysign(&mut self, magnitude: Val, sign: Val) -> Val {
        let mask = self.i(sign, if self.is_f64(sign) { i64::MIN } else { i32::MIN.into() });
        let s = self.bits(sign);
        let s = self.and(s, mask);
        let m = self.bits(magnitude);
        let r = self.or(m, s);
        self.float_of(r)
    }
    /// `f(x)` but `x` itself where it is zero: keeps the sign of zero.
    fn keep_zero(&mut self, x: Val, y: Val) -> Val {
        let zero = self.cmp_c(CmpOp::Eq, x, 0.0);
        self.sel(zero, x, y)
    }
    /// True where any lane of a mask is set, as a scalar.
    fn any(&mut self, mask: Val) -> Val {
        self.b.reduce_cols(Monoid::Max, mask)
    }
    /// a * b as an unevaluated sum of two f64 (exact unless it underflows).
    fn two_prod(&mut self, a: Val, b: Val) -> (Val, Val) {
        let p = self.mul(a, b);
        if self.fma {
            let minus = self.neg(p);
            let e = self.b.fma(a, b, minus);
            return (p, e);
        }
        // Dekker: products of halves of 26 bits are exact
        let (ah, al) = self.split(a);
        let (bh, bl) = self.split(b);
        let hh = self.mul(ah, bh);
        let e = self.sub(hh, p);
        let hl = self.mul(ah, bl);
        let e = self.add(e, hl);
        let lh = self.mul(al, bh);
        let e = self.add(e, lh);
        let ll = self.mul(al, bl);
        (p, self.add(e, ll))
    }
    /// Upper 26 bits and the rest of an f64.
    fn split(&mut self, a: Val) -> (Val, Val) {
        let mask = self.i(a, !((1 << 27) - 1));
        let bits = self.bits(a);
        let upper = self.and(bits, mask);
        let hi = self.float_of(upper);
        (hi, self.sub(a, hi))
    }
    /// a + b with |a| >= |b| as an unevaluated sum.
    fn fast_two_sum(&mut self, a: Val, b: Val) -> (Val, Val) {
        let s = self.add(a, b);
        let d = self.sub(s, a);
        (s, self.sub(b, d))
    }
    /// Whether one instruction multiplies `x` by powers of 2.
    fn scales(&self, x: Val) -> bool {
        let ty = self.b.ty(x);
        self.scale > 0 && ty.cols as usize * ty.dtype.bytes() == self.scale
    }
    /// x * 2^n for every n that matters: in two steps, so that the result may be denormal or infinite.
    fn ldexp(&mut self, x: Val, n: Val) -> Val {
        let (bias, man) = if self.is_f64(x) { (1023, 52) } else { (127, 23) };
        let half = self.shr(n, 1);
        let rest = self.sub(n, half);
        let bias = self.i(x, bias);
        let mut y = x;
        for n in [half, rest] {
            let e = self.add(n, bias);
            let e = self.shl(e, man);
            let s = self.float_of(e);
            y = self.mul(y, s);
        }
        y
    }
}
