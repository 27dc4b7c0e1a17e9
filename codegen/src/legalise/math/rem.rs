//! Float remainder.

use super::Math;
use ir::DType;
use ir::loops::Val;
use ir::prim::CmpOp;

/// Quotients below 2^50 are exact enough for one step.
const STEP_BITS: i64 = 50;
/// The largest power of two by which `ldexp` multiplies.
const MOST_BITS: i64 = 2046;

impl Math<'_> {
    /// The exact remainder with the sign of the dividend (C `fmod`). Long division in f64, some 50 bits of
    /// quotient a step: one step unless the operands differ by more than a factor of 10^15.
    pub fn rem(&mut self, x: Val, y: Val) -> Val {
        let dtype = self.b.dtype(x);
        let (xd, yd) = (self.convert(DType::F64, x), self.convert(DType::F64, y));
        let r = self.rem_f64(xd, yd);
        // the remainder of two f32 is an f32
        self.convert(dtype, r)
    }

    fn rem_f64(&mut self, x: Val, y: Val) -> Val {
        let (a, b) = (self.abs(x), self.abs(y));
        let finite = self.cmp_c(CmpOp::Lt, a, f64::INFINITY);
        let divides = self.cmp_c(CmpOp::Gt, b, 0.0);
        let good = self.and(finite, divides);
        let zero = self.c(x, 0.0);
        let one = self.c(x, 1.0);
        let start = self.sel(good, a, zero);
        let b = self.sel(good, b, one);
        let eb = self.exponent(b);
        let carried = self.b.open_while(&[start]);
        let r = carried[0];
        let more = self.cmp(CmpOp::Ge, r, b);
        let any = self.any(more);
        self.b.open_while_body(any);
        let er = self.exponent(r);
        let step = self.i(x, STEP_BITS);
        let k = self.sub(er, eb);
        let k = self.sub(k, step);
        let none = self.i(x, 0);
        let k = self.b.max(k, none);
        // more than two factors of `ldexp` hold; two bits of quotient more are exact still
        let most = self.i(x, MOST_BITS);
        let k = self.b.min(k, most);
        let t = self.ldexp(b, k);
        let q = self.div(r, t);
        let q = self.trunc(q);
        // the quotient may have been rounded up to an integer: its product with the divisor then exceeds the dividend, and
        // so that it does not exceed the largest number, both are halved near that
        let large = self.cmp_c(CmpOp::Ge, r, 2f64.powi(1022));
        let part = self.sel_c(large, 0.5, one);
        let (dividend, divisor) = (self.mul(r, part), self.mul(t, part));
        let (p, e) = self.two_prod(q, divisor);
        let d = self.sub(dividend, p);
        let d = self.sub(d, e);
        let d = self.div(d, part);
        let below = self.cmp_c(CmpOp::Lt, d, 0.0);
        let up = self.add(d, t);
        let d = self.sel(below, up, d);
        let more = self.cmp(CmpOp::Ge, r, b);
        let next = self.sel(more, d, r);
        let r = self.b.close_while(&[next])[0];
        let signed = self.copysign(r, x);
        self.sel_c_not(good, f64::NAN, signed)
    }

    fn sel_c_not(&mut self, mask: Val, otherwise: f64, then: Val) -> Val {
        let c = self.c(then, otherwise);
        self.sel(mask, then, c)
    }

    /// Exponent of a positive f64, that of denormals included, as i64.
    fn exponent(&mut self, x: Val) -> Val {
        let tiny = self.cmp_c(CmpOp::Lt, x, f64::MIN_POSITIVE);
        let scaled = self.mul_c(x, 2f64.powi(54));
        let x = self.sel(tiny, scaled, x);
        let bits = self.bits(x);
        let e = self.shr(bits, 52);
        let c = self.i(x, 54);
        let less = self.sub(e, c);
        self.sel(tiny, less, e)
    }
}
