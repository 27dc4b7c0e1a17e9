//! pow of floats and integers.

use super::Math;
use super::exp::{EXP_F64, EXP_SHORT, LN2_F64};
use super::log::LOG_F64;
use ir::DType;
use ir::loops::Val;
use ir::prim::{CmpOp, UnaryOp};

impl Math<'_> {
    /// x to the power y as IEEE 754 has it.
    pub fn pow(&mut self, x: Val, y: Val) -> Val {
        let a = self.abs(x);
        let magnitude = if self.is_f64(x) {
            self.pow_f64(a, y)
        } else {
            let (ad, yd) = (self.convert(DType::F64, a), self.convert(DType::F64, y));
            let (k, f) = self.frexp(ad);
            let (hi, lo) = self.log_parts(k, f, false);
            let log = self.add(hi, lo);
            let log = self.log_edges(ad, log);
            let t = self.mul(yd, log);
            let (q, n) = self.exp_parts(t, &EXP_SHORT, None);
            let p = self.add_c(q, 1.0);
            let r = self.ldexp(p, n);
            self.convert(DType::F32, r)
        };
        self.pow_edges(x, a, y, magnitude)
    }

    /// a^y for a >= 0, the cases of 1 and NaN aside.
    fn pow_f64(&mut self, a: Val, y: Val) -> Val {
        let (k, f) = self.frexp(a);
        let (hi, lo) = self.log_parts(k, f, true);
        // 0 and infinity: their logarithm is all in the first part
        let edge = self.log_edges(a, hi);
        let zero = self.c(a, 0.0);
        let is_zero = self.cmp(CmpOp::Eq, a, zero);
        let is_inf = self.cmp_c(CmpOp::Eq, a, f64::INFINITY);
        let at_edge = self.or(is_zero, is_inf);
        let lo = self.sel(at_edge, zero, lo);
        let (p, e) = self.two_prod(y, edge);
        let e = self.mad(y, lo, e);
        // where the product is beyond the range of exp, the second part is nothing or NaN
        let size = self.abs(p);
        let in_range = self.cmp_c(CmpOp::Lt, size, 800.0);
        let e = self.sel(in_range, e, zero);
        let (q, n) = self.exp_parts(p, &EXP_F64, Some(e));
        let r = self.add_c(q, 1.0);
        self.ldexp(r, n)
    }

    /// k ln(2) + log(1 + f) in two parts, f64; `precise` to about 2^-62, else to about 2^-50.
    fn log_parts(&mut self, k: Val, f: Val, precise: bool) -> (Val, Val) {
        let d = self.add_c(f, 2.0);
        let s = self.div(f, d);
        let z = self.mul(s, s);
        let r = self.poly(z, &LOG_F64);
        let sz = self.mul(s, z);
        let mut rest = self.mul(sz, r);
        let s2 = self.add(s, s);
        let ln2_hi = self.c(f, LN2_F64.0);
        let ln2_lo = self.c(f, LN2_F64.1);
        let k_hi = self.mul(k, ln2_hi);
        if !precise {
            rest = self.mad(k, ln2_lo, rest);
            let t = self.add(s2, rest);
            return (k_hi, t);
        }
        // what the quotient s lacks: (f - s d) / d with d = 2 + f exactly
        let two = self.c(f, 2.0);
        let d_up = self.sub(d, two);
        let d_lo = self.sub(f, d_up);
        let (p, e) = self.two_prod(s, d);
        let res = self.sub(f, p);
        let res = self.sub(res, e);
        let more = self.mul(s, d_lo);
        let res = self.sub(res, more);
        let s_lo = self.div(res, d);
        let s_lo2 = self.add(s_lo, s_lo);
        let (hi, e1) = {
            // k ln(2) is 0 or larger than 2 s
            let is_zero = self.cmp_c(CmpOp::Eq, k, 0.0);
            let (h, l) = self.fast_two_sum(k_hi, s2);
            let zero = self.c(f, 0.0);
            (self.sel(is_zero, s2, h), self.sel(is_zero, zero, l))
        };
        let lo = self.mul(k, ln2_lo);
        let lo = self.add(lo, s_lo2);
        let lo = self.add(lo, e1);
        // the rest is rounded to 53 of its own bits, which lie 6 below those of s
        let (hi2, l2) = self.fast_two_sum(hi, rest);
        let lo = self.add(lo, l2);
        self.fast_two_sum(hi2, lo)
    }

    fn pow_edges(&mut self, x: Val, a: Val, y: Val, magnitude: Val) -> Val {
        let yt = self.trunc(y);
        let y_int = self.cmp(CmpOp::Eq, yt, y);
        let half = self.mul_c(y, 0.5);
        let half_t = self.trunc(half);
        let half_differs = self.cmp(CmpOp::Ne, half_t, half);
        let y_odd = self.and(y_int, half_differs);
        let one = self.c(x, 1.0);
        // |x| = 1 and infinite y
        let unit = self.cmp(CmpOp::Eq, a, one);
        let y_number = self.cmp(CmpOp::Eq, y, y);
        let unit = self.and(unit, y_number);
        let m = self.sel(unit, one, magnitude);
        let bits = self.bits(x);
        let zero_bits = self.i(x, 0);
        let minus = self.cmp(CmpOp::Lt, bits, zero_bits);
        let flip = self.and(minus, y_odd);
        let negated = self.neg(m);
        let r = self.sel(flip, negated, m);
        // a negative finite base has real powers for integers only
        let below = self.cmp_c(CmpOp::Lt, x, 0.0);
        let finite = self.cmp_c(CmpOp::Gt, x, f64::NEG_INFINITY);
        let below = self.and(below, finite);
        let broken = self.not(y_int);
        let bad = self.and(below, broken);
        let r = self.sel_c(bad, f64::NAN, r);
        let y_zero = self.cmp_c(CmpOp::Eq, y, 0.0);
        let x_one = self.cmp(CmpOp::Eq, x, one);
        let always = self.or(y_zero, x_one);
        self.sel(always, one, r)
    }

    /// Integer power, wrapping. A negative exponent gives the truncated real value (0 for base 0).
    pub fn int_pow(&mut self, x: Val, y: Val) -> Val {
        let ty = self.b.ty(x);
        let (zero, one) = (self.b.int(ty, 0), self.b.int(ty, 1));
        let carried = self.b.open_while(&[one, x, y]);
        let (result, square, e) = (carried[0], carried[1], carried[2]);
        let more = self.cmp(CmpOp::Gt, e, zero);
        let any = self.any(more);
        self.b.open_while_body(any);
        let bit = self.and(e, one);
        let odd = self.cmp(CmpOp::Ne, bit, zero);
        let more = self.cmp(CmpOp::Gt, e, zero);
        let odd = self.and(odd, more);
        let product = self.mul(result, square);
        let next = self.sel(odd, product, result);
        let square2 = self.mul(square, square);
        let e2 = self.shr(e, 1);
        let r = self.b.close_while(&[next, square2, e2])[0];
        if !ty.dtype.is_signed_int() {
            return r;
        }
        let minus_one = self.b.int(ty, -1);
        let bit = self.and(y, one);
        let odd = self.cmp(CmpOp::Ne, bit, zero);
        let sign = self.sel(odd, minus_one, one);
        let is_one = self.cmp(CmpOp::Eq, x, one);
        let is_minus = self.cmp(CmpOp::Eq, x, minus_one);
        let r_neg = self.sel(is_minus, sign, zero);
        let r_neg = self.sel(is_one, one, r_neg);
        let negative = self.cmp(CmpOp::Lt, y, zero);
        self.sel(negative, r_neg, r)
    }

    /// Quotient of vectors of 32-bit integers through f64, whose division is exact enough: the distance of
    /// a quotient to the next integer is at least 2^-32 of it. Division by 0 gives 0.
    pub fn int_div_by_float(&mut self, x: Val, y: Val) -> Val {
        let dtype = self.b.dtype(x);
        let (xd, yd) = (self.convert(DType::F64, x), self.convert(DType::F64, y));
        let q = self.div(xd, yd);
        let q = self.b.unary(UnaryOp::Trunc, q);
        // MIN / -1 is 2^31, which wraps: through i64
        let q = self.convert(DType::I64, q);
        let q = self.convert(dtype, q);
        let zero = self.b.zero(self.b.ty(y));
        let by_zero = self.cmp(CmpOp::Eq, y, zero);
        self.sel(by_zero, zero, q)
    }
}
