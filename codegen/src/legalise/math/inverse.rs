//! asin, acos, atan, atan2.

use super::Math;
use ir::loops::Val;
use ir::prim::CmpOp;
use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, PI};

/// What f64 pi lacks.
const PI_LO: f64 = 1.2246467991473532e-16;

/// (atan(t) / t - 1) / z in z = t^2 for |t| <= tan(pi / 8); relative error of atan 2.3e-11 and 4.6e-20.
const ATAN_F32: [f64; 6] = [
    -0.3333333134651184,
    0.19999904930591583,
    -0.14282019436359406,
    0.11044787615537643,
    -0.08476556837558746,
    0.04744182154536247,
];
const ATAN_F64: [f64; 12] = [
    -0.33333333333333326,
    0.19999999999997647,
    -0.1428571428538518,
    0.11111111087999938,
    -0.09090908138066847,
    0.07692282611685132,
    -0.06666224575459291,
    0.058770003271885675,
    -0.052182655311195814,
    0.04502982238531269,
    -0.033461193190719815,
    0.01518162271784378,
];
/// (asin(s) / s - 1) / z in z = s^2 for |s| <= 1/2; relative error of asin 2.9e-10 and 6.4e-20.
const ASIN_F32: [f64; 6] = [
    0.16666659712791443,
    0.07500512897968292,
    0.04451529681682587,
    0.03182147815823555,
    0.014386769384145737,
    0.03758905082941055,
];
const ASIN_F64: [f64; 14] = [
    0.1666666666666666,
    0.07500000000002577,
    0.04464285713963897,
    0.03038194464744202,
    0.022372151510717933,
    0.017352947207122358,
    0.013961846885847064,
    0.011586236196530833,
    0.009480170885545605,
    0.010028313050771034,
    0.0006193343244682053,
    0.024965625656262373,
    -0.026331162677111213,
    0.0337496004796392,
];

impl Math<'_> {
    /// `x` as the nearest value of the type of `like`, and what that lacks.
    fn parts(&self, like: Val, x: f64, rest: f64) -> (f64, f64) {
        if self.is_f64(like) {
            return (x, rest);
        }
        let hi = f64::from(x as f32);
        (hi, x - hi)
    }

    /// atan of `num / den` for both not negative (or NaN).
    fn atan_ratio(&mut self, num: Val, den: Val) -> Val {
        // tan(3 pi / 8) and tan(pi / 8)
        let bound = self.mul_c(den, 2.414213562373095);
        let big = self.cmp(CmpOp::Gt, num, bound);
        let bound = self.mul_c(den, 0.414213562373095);
        let mid = self.cmp(CmpOp::Gt, num, bound);
        let minus = self.neg(den);
        let diff = self.sub(num, den);
        let sum = self.add(num, den);
        let n = self.sel(mid, diff, num);
        let n = self.sel(big, minus, n);
        let d = self.sel(mid, sum, den);
        let d = self.sel(big, num, d);
        let t = self.div(n, d);
        let z = self.mul(t, t);
        let p = if self.is_f64(t) { self.poly(z, &ATAN_F64) } else { self.poly(z, &ATAN_F32) };
        let tz = self.mul(t, z);
        let y = self.mad(tz, p, t);
        let (quarter, quarter_lo) = self.parts(t, FRAC_PI_4, PI_LO / 4.0);
        let (half, half_lo) = self.parts(t, FRAC_PI_2, PI_LO / 2.0);
        let zero = self.c(t, 0.0);
        let lo = self.sel_c(mid, quarter_lo, zero);
        let lo = self.sel_c(big, half_lo, lo);
        let y = self.add(y, lo);
        let hi = self.sel_c(mid, quarter, zero);
        let hi = self.sel_c(big, half, hi);
        self.add(y, hi)
    }

    pub(super) fn atan(&mut self, x: Val) -> Val {
        let a = self.abs(x);
        let one = self.c(x, 1.0);
        let y = self.atan_ratio(a, one);
        self.copysign(y, x)
    }

    /// The angle of the point (x, y) as IEEE 754 has it.
    pub fn atan2(&mut self, y: Val, x: Val) -> Val {
        let (ay, ax) = (self.abs(y), self.abs(x));
        // sizes that multiply without overflow and underflow: both are scaled by the same power of two
        let (big, small, down, up) = if self.is_f64(x) {
            (1e300, 1e-290, 2f64.powi(-60), 2f64.powi(60))
        } else {
            (1e37, 1e-30, 2f64.powi(-30), 2f64.powi(30))
        };
        let swap = self.cmp(CmpOp::Gt, ay, ax);
        let max = self.sel(swap, ay, ax);
        let is_big = self.cmp_c(CmpOp::Gt, max, big);
        let is_small = self.cmp_c(CmpOp::Lt, max, small);
        let one = self.c(x, 1.0);
        let scale = self.sel_c(is_big, down, one);
        let scale = self.sel_c(is_small, up, scale);
        let (n, d) = (self.mul(ay, scale), self.mul(ax, scale));
        // both infinite: as if both were one; both zero: 0 / 1
        let both_inf = {
            let (yi, xi) =
                (self.cmp_c(CmpOp::Eq, ay, f64::INFINITY), self.cmp_c(CmpOp::Eq, ax, f64::INFINITY));
            self.and(yi, xi)
        };
        let n = self.sel(both_inf, one, n);
        let d = self.sel(both_inf, one, d);
        let both_zero = self.cmp_c(CmpOp::Eq, max, 0.0);
        let d = self.sel(both_zero, one, d);
        let a = self.atan_ratio(n, d);
        // left of the axis, -0 included
        let x_bits = self.bits(x);
        let zero = self.i(x, 0);
        let left = self.cmp(CmpOp::Lt, x_bits, zero);
        let (pi, pi_lo) = self.parts(x, PI, PI_LO);
        let lo = self.add_c(a, -pi_lo);
        let hi = self.c(x, pi);
        let mirrored = self.sub(hi, lo);
        let a = self.sel(left, mirrored, a);
        let r = self.copysign(a, y);
        let sum = self.add(x, y);
        let nan_x = self.cmp(CmpOp::Ne, x, x);
        let nan_y = self.cmp(CmpOp::Ne, y, y);
        let nan = self.or(nan_x, nan_y);
        self.sel(nan, sum, r)
    }

    /// (|x| > 1/2, the reduced s, asin(s)) with s = |x|, or sqrt((1 - |x|) / 2).
    fn asin_parts(&mut self, x: Val) -> (Val, Val) {
        let a = self.abs(x);
        let big = self.cmp_c(CmpOp::Gt, a, 0.5);
        let half = self.c(x, 0.5);
        let minus_half = self.c(x, -0.5);
        let z_big = self.mad(a, minus_half, half);
        let z_small = self.mul(a, a);
        let z = self.sel(big, z_big, z_small);
        let root = self.sqrt(z);
        let s = self.sel(big, root, a);
        let p = if self.is_f64(x) { self.poly(z, &ASIN_F64) } else { self.poly(z, &ASIN_F32) };
        let sz = self.mul(s, z);
        (big, self.mad(sz, p, s))
    }

    pub(super) fn asin(&mut self, x: Val) -> Val {
        let (big, p) = self.asin_parts(x);
        let (half, half_lo) = self.parts(x, FRAC_PI_2, PI_LO / 2.0);
        let p2 = self.add(p, p);
        let lo = self.add_c(p2, -half_lo);
        let hi = self.c(x, half);
        let y_big = self.sub(hi, lo);
        let y = self.sel(big, y_big, p);
        self.copysign(y, x)
    }

    pub(super) fn acos(&mut self, x: Val) -> Val {
        let (big, p) = self.asin_parts(x);
        let p2 = self.add(p, p);
        let negative = self.cmp_c(CmpOp::Lt, x, 0.0);
        let (pi, pi_lo) = self.parts(x, PI, PI_LO);
        let lo = self.add_c(p2, -pi_lo);
        let hi = self.c(x, pi);
        let far = self.sub(hi, lo);
        let y_big = self.sel(negative, far, p2);
        let (half, half_lo) = self.parts(x, FRAC_PI_2, PI_LO / 2.0);
        let signed = self.copysign(p, x);
        let lo = self.add_c(signed, -half_lo);
        let hi = self.c(x, half);
        let y_small = self.sub(hi, lo);
        self.sel(big, y_big, y_small)
    }
}
