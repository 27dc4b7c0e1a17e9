//! log, log1p, asinh, acosh, atanh.

use super::Math;
use super::exp::{LN2_F32, LN2_F64};
use ir::DType;
use ir::loops::Val;
use ir::prim::CmpOp;

/// (log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in sqrt(1/2)..sqrt(2); relative error of log 5.8e-9.
const LOG_F32: [f64; 8] = [
    0.3333333134651184,
    -0.2500081956386566,
    0.20001226663589478,
    -0.1662335842847824,
    0.14201751351356506,
    -0.1316017061471939,
    0.12761618196964264,
    -0.07634570449590683,
];
/// (log(1 + f) - 2 s) / s^3 in z = s^2 with s = f / (2 + f), the same range; relative error 8.3e-21.
pub(super) const LOG_F64: [f64; 8] = [
    0.6666666666666666,
    0.40000000000006275,
    0.28571428569077284,
    0.2222222264817099,
    0.18181775549033338,
    0.15387096124287722,
    0.13249991415934334,
    0.13252528267322614,
];

impl Math<'_> {
    /// Positive finite x = 2^k (1 + f) with 1 + f in sqrt(1/2)..sqrt(2); k as a float. Garbage else.
    pub(super) fn frexp(&mut self, x: Val) -> (Val, Val) {
        let wide = self.is_f64(x);
        let (min_normal, up, up_exp) =
            if wide { (f64::MIN_POSITIVE, 54, 54.0) } else { (f64::from(f32::MIN_POSITIVE), 25, 25.0) };
        let tiny = self.cmp_c(CmpOp::Lt, x, min_normal);
        let scaled = self.mul_c(x, f64::from(2u32).powi(up));
        let x = self.sel(tiny, scaled, x);
        let (sqrt_half, man) = if wide { (0x3fe6_a09e_667f_3bcd, 52) } else { (0x3f35_04f3, 23) };
        let bits = self.bits(x);
        let base = self.i(x, sqrt_half);
        let offset = self.sub(bits, base);
        let k = self.shr(offset, man);
        let exp_bits = self.shl(k, man);
        let m_bits = self.sub(bits, exp_bits);
        let m = self.float_of(m_bits);
        let f = self.add_c(m, -1.0);
        let kf = if wide {
            // through 32 bits: vectors of i64 convert slowly on most machines
            let k = self.convert(DType::I32, k);
            self.convert(DType::F64, k)
        } else {
            self.convert(DType::F32, k)
        };
        let kf_tiny = self.add_c(kf, -up_exp);
        (self.sel(tiny, kf_tiny, kf), f)
    }

    pub(super) fn log(&mut self, x: Val) -> Val {
        let (k, f) = self.frexp(x);
        let y = self.log_of(k, f);
        self.log_edges(x, y)
    }

    /// `y`, but what log has at 0, below 0, at infinity and NaN.
    pub(super) fn log_edges(&mut self, x: Val, y: Val) -> Val {
        let nan = self.c(x, f64::NAN);
        let zero = self.cmp_c(CmpOp::Eq, x, 0.0);
        let edge = self.sel_c(zero, f64::NEG_INFINITY, nan);
        let positive = self.cmp_c(CmpOp::Gt, x, 0.0);
        let y = self.sel(positive, y, edge);
        let inf = self.cmp_c(CmpOp::Eq, x, f64::INFINITY);
        self.sel(inf, x, y)
    }

    /// k ln(2) + log(1 + f).
    fn log_of(&mut self, k: Val, f: Val) -> Val {
        let f2 = self.mul(f, f);
        if !self.is_f64(f) {
            let p = self.poly(f, &LOG_F32);
            let f3 = self.mul(f2, f);
            let y = self.mul(f3, p);
            let lo = self.c(f, LN2_F32.1);
            let y = self.mad(k, lo, y);
            let half = self.c(f, -0.5);
            let y = self.mad(f2, half, y);
            let y = self.add(y, f);
            let hi = self.c(f, LN2_F32.0);
            return self.mad(k, hi, y);
        }
        // log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + z R(z)))
        let d = self.add_c(f, 2.0);
        let s = self.div(f, d);
        let z = self.mul(s, s);
        let r = self.poly(z, &LOG_F64);
        let zr = self.mul(z, r);
        let half = self.mul_c(f2, 0.5);
        let t = self.add(half, zr);
        let t = self.mul(s, t);
        let lo = self.c(f, LN2_F64.1);
        let t = self.mad(k, lo, t);
        let t = self.sub(half, t);
        let t = self.sub(f, t);
        let hi = self.c(f, LN2_F64.0);
        self.mad(k, hi, t)
    }

    pub(super) fn log1p(&mut self, x: Val) -> Val {
        // log(u) + (what 1 + x lost in rounding to u) / u
        let one = self.c(x, 1.0);
        let u = self.add(x, one);
        let y = self.log(u);
        let u1 = self.sub(u, one);
        let lost = self.sub(x, u1);
        let correction = self.div(lost, u);
        // below 1 / eps only: beyond, and at the poles, the correction is nothing or NaN
        let small = self.cmp_c(CmpOp::Lt, u, if self.is_f64(x) { 1e16 } else { 1e8 });
        let positive = self.cmp_c(CmpOp::Gt, u, 0.0);
        let use_it = self.and(small, positive);
        let zero = self.c(x, 0.0);
        let correction = self.sel(use_it, correction, zero);
        let y = self.add(y, correction);
        self.keep_zero(x, y)
    }

    /// log(1 + small), or log(large) + ln(2) where `is_large`.
    fn log1p_or_log2x(&mut self, is_large: Val, small: Val, large: Val) -> Val {
        let arg = self.sel(is_large, large, small);
        let y = self.log1p(arg);
        let plus = self.add_c(y, std::f64::consts::LN_2);
        self.sel(is_large, plus, y)
    }
    /// Where x^2 + 1 is x^2, and log(x) is log1p(x), in every digit.
    fn huge(&self, x: Val) -> f64 {
        if self.is_f64(x) { 1e30 } else { 1e12 }
    }

    pub(super) fn asinh(&mut self, x: Val) -> Val {
        // log1p(a + a^2 / (1 + sqrt(1 + a^2)))
        let a = self.abs(x);
        let is_large = self.cmp_c(CmpOp::Gt, a, self.huge(x));
        let a2 = self.mul(a, a);
        let r = self.add_c(a2, 1.0);
        let r = self.sqrt(r);
        let r = self.add_c(r, 1.0);
        let q = self.div(a2, r);
        let small = self.add(a, q);
        let y = self.log1p_or_log2x(is_large, small, a);
        self.copysign(y, x)
    }

    pub(super) fn acosh(&mut self, x: Val) -> Val {
        // log1p(t + sqrt(t (t + 2))) with t = x - 1
        let is_large = self.cmp_c(CmpOp::Gt, x, self.huge(x));
        let t = self.add_c(x, -1.0);
        let t2 = self.add_c(t, 2.0);
        let r = self.mul(t, t2);
        let r = self.sqrt(r);
        let small = self.add(t, r);
        let y = self.log1p_or_log2x(is_large, small, x);
        let below = self.cmp_c(CmpOp::Lt, x, 1.0);
        self.sel_c(below, f64::NAN, y)
    }

    pub(super) fn atanh(&mut self, x: Val) -> Val {
        // log1p(2 a / (1 - a)) / 2
        let a = self.abs(x);
        let one = self.c(x, 1.0);
        let d = self.sub(one, a);
        let a2 = self.add(a, a);
        let q = self.div(a2, d);
        let y = self.log1p(q);
        let y = self.mul_c(y, 0.5);
        self.copysign(y, x)
    }
}
