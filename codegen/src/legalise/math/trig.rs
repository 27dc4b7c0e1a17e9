//! sin, cos, tan.

use super::Math;
use ir::DType;
use ir::loops::Val;
use ir::prim::{BinaryOp, CmpOp, Monoid};
use std::f64::consts::FRAC_PI_2;

/// (sin(r) / r - 1) / z in z = r^2 for |r| <= pi / 4; relative error of sin 5e-12 and 2e-21.
const SIN_F32: [f64; 4] =
    [-0.1666666716337204, 0.008333329111337662, -0.00019839296874124557, 2.7179405606148066e-06];
const SIN_F64: [f64; 7] = [
    -0.16666666666666666,
    0.008333333333333323,
    -0.0001984126984125441,
    2.7557319213841225e-06,
    -2.5052104818688563e-08,
    1.6058354564187652e-10,
    -7.578089461614717e-13,
];
/// (cos(r) - 1 + z / 2) / z^2, the same range; relative error of cos 1.3e-13 and 3e-23.
const COS_F32: [f64; 4] =
    [0.0416666679084301, -0.0013888883404433727, 2.4799417587928474e-05, -2.720220777518989e-07];
const COS_F64: [f64; 7] = [
    0.041666666666666664,
    -0.0013888888888888872,
    2.4801587301569704e-05,
    -2.7557319213635846e-07,
    2.08767542053125e-09,
    -1.1470275581781119e-11,
    4.737333613375703e-14,
];
/// pi / 2 in three parts; products of the first two with integers below 2^20 are exact.
const HALF_PI: [f64; 3] = [1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21];
/// pi / 2 in four parts for fused multiply-add, where no product is rounded.
const HALF_PI_F32: [f64; 4] =
    [1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15, 1.056299898220315e-23];
/// Below this the reduction by [`HALF_PI`] is accurate: 2 x / pi < 2^20.
const SMALL_ARGUMENT: f64 = 1e6;
/// 2 / pi in binary after one word of zeros; the first bit of the second word weighs 1/2.
const TWO_OVER_PI: [u64; 21] = [
    0,
    0xa2f9836e4e441529,
    0xfc2757d1f534ddc0,
    0xdb6295993c439041,
    0xfe5163abdebbc561,
    0xb7246e3a424dd2e0,
    0x06492eea09d1921c,
    0xfe1deb1cb129a73e,
    0xe88235f52ebb4484,
    0xe99c7026b45f7e41,
    0x3991d639835339f4,
    0x9c845f8bbdf9283b,
    0x1ff897ffde05980f,
    0xef2f118b5a0a6d1f,
    0x6d367ecf27cb09b7,
    0x4f463f669e5fea2d,
    0x7527bac7ebe5f17b,
    0x3d0739f78a5292ea,
    0x6bfb5fb11f8d5d08,
    0x56033046fc7b6bab,
    0xf0cfbc209af4361d,
];

impl Math<'_> {
    /// x = quadrant * pi / 2 + r with |r| <= pi / 4 or a little more: (r in the type of x, quadrant as i32, of
    /// which the lower two bits count).
    fn trig_reduce(&mut self, x: Val) -> (Val, Val) {
        let a = self.abs(x);
        let small = self.cmp_c(CmpOp::Lt, a, SMALL_ARGUMENT);
        let large = self.not(small);
        let any_large = self.any(large);
        let (r, q) = if self.is_f64(x) {
            self.reduce_small(x, &HALF_PI, 6755399441055744.0)
        } else if self.fma {
            self.reduce_small(x, &HALF_PI_F32, 12582912.0)
        } else {
            let xd = self.convert(DType::F64, x);
            let (r, q) = self.reduce_small(xd, &HALF_PI, 6755399441055744.0);
            (self.convert(DType::F32, r), q)
        };
        self.b.open_if(any_large);
        let (rl, ql) = self.reduce_lanes(x);
        // lanes that are small keep the other reduction, whose result is as good
        let both = [self.sel(small, r, rl), self.sel(small, q, ql)];
        self.b.open_else(&both);
        let chosen = self.b.close_if(&[r, q]);
        (chosen[0], chosen[1])
    }

    /// Cody and Waite; `parts` of pi / 2 have products with the quadrant that are exact, or fused.
    fn reduce_small(&mut self, x: Val, parts: &[f64], magic: f64) -> (Val, Val) {
        // adding 1.5 * 2^52 (2^23) rounds to an integer, which then lies in the low bits
        let c = self.c(x, magic);
        let scale = self.c(x, std::f64::consts::FRAC_2_PI);
        let t = self.mad(x, scale, c);
        let n = self.sub(t, c);
        let mut r = x;
        for part in parts {
            let c = self.c(x, -part);
            r = self.mad(n, c, r);
        }
        let q = self.bits(t);
        (r, self.convert(DType::I32, q))
    }

    /// [`Self::reduce_large`] for one lane after the other: this happens so rarely that small code is
    /// worth more than speed.
    fn reduce_lanes(&mut self, x: Val) -> (Val, Val) {
        let ty = self.b.ty(x);
        let wide = self.is_f64(x);
        if ty.is_scalar() {
            return self.reduce_large(x, wide);
        }
        let int = ty.with(DType::I32);
        let (r0, q0) = (self.b.zero(ty), self.b.zero(int));
        let (lo, hi) = (self.b.index(0), self.b.index(ty.cols.into()));
        let (lane, carried) = self.b.open_for(lo, hi, 1, &[r0, q0]);
        let lane = self.convert(DType::I32, lane);
        let iota = self.b.iota(int, true);
        let here = self.cmp(CmpOp::Eq, iota, lane);
        let alone = self.sel(here, x, r0);
        let x1 = self.b.reduce_cols(Monoid::Sum, alone);
        let (r1, q1) = self.reduce_large(x1, wide);
        let next = [self.sel(here, r1, carried[0]), self.sel(here, q1, carried[1])];
        let out = self.b.close_for(&next);
        (out[0], out[1])
    }

    /// Payne and Hanek: the bits of 2 / pi that matter for the exponent of x, times its mantissa, give
    /// the quadrant and 126 bits of the fraction. `wide`: exponents beyond those of f32 occur.
    fn reduce_large(&mut self, x: Val, wide: bool) -> (Val, Val) {
        let dtype = self.b.dtype(x);
        let x = self.convert(DType::F64, x);
        let a = self.abs(x);
        let bits = self.bits(a);
        let exp = self.shr(bits, 52);
        let ty = self.b.ty(x);
        let man_mask = self.i(x, (1 << 52) - 1);
        let hidden = self.i(x, 1 << 52);
        let man = self.and(bits, man_mask);
        let man = self.or(man, hidden);
        let m = self.convert(DType::U64, man);
        // the window begins two bits before those that weigh 1 in units of a whole turn's quarter
        let first = self.i(x, 1075 + 2 - 64);
        let start = self.sub(exp, first);
        let word = self.shr(start, 6);
        let mask63 = self.i(x, 63);
        let shift = self.and(start, mask63);
        let shift = self.convert(DType::U64, shift);
        let u64_ty = ty.with(DType::U64);
        let words = if wide { TWO_OVER_PI.len() - 3 } else { 3 };
        let mut t = [self.b.int(u64_ty, 0); 4];
        for k in 0..words {
            let k_val = self.i(x, k as i64);
            let here = self.cmp(CmpOp::Eq, word, k_val);
            for (j, t) in t.iter_mut().enumerate() {
                let w = TWO_OVER_PI.get(k + j).copied().unwrap_or(0);
                let w = self.b.int(u64_ty, w.into());
                *t = self.sel(here, w, *t);
            }
        }
        let c64 = self.b.int(u64_ty, 64);
        let back = self.sub(c64, shift);
        let mut window = [t[0]; 3];
        for (i, w) in window.iter_mut().enumerate() {
            let hi = self.b.binary(BinaryOp::Shl, t[i], shift);
            let lo = self.b.binary(BinaryOp::Shr, t[i + 1], back);
            *w = self.or(hi, lo);
        }
        // the product modulo 2^192, its upper 128 bits
        let p0 = self.mul(m, window[0]);
        let p1 = self.mul(m, window[1]);
        let h1 = self.mul_high(m, window[1]);
        let h2 = self.mul_high(m, window[2]);
        let low = self.add(p1, h2);
        let carried = self.cmp(CmpOp::Lt, low, p1);
        let one = self.b.int(u64_ty, 1);
        let zero = self.b.int(u64_ty, 0);
        let carry = self.sel(carried, one, zero);
        let high = self.add(p0, h1);
        let high = self.add(high, carry);
        // quadrant: the upper two bits, rounded; the rest is a signed fraction
        let round = self.b.int(u64_ty, 1 << 61);
        let q = self.add(high, round);
        let q = self.shr(q, 62);
        let whole = self.shl(q, 62);
        let frac = self.sub(high, whole);
        let frac = self.convert(DType::I64, frac);
        let hi = self.convert(DType::F64, frac);
        let exact = self.convert(DType::I64, hi);
        let rest = self.sub(frac, exact);
        let rest = self.convert(DType::F64, rest);
        let low = self.convert(DType::F64, low);
        let low = self.mul_c(low, 2f64.powi(-64));
        let lo = self.add(rest, low);
        let r = self.add(hi, lo);
        let r = self.mul_c(r, FRAC_PI_2 * 2f64.powi(-62));
        let q = self.convert(DType::I32, q);
        let negative = self.cmp_c(CmpOp::Lt, x, 0.0);
        let minus_r = self.neg(r);
        let r = self.sel(negative, minus_r, r);
        let zero32 = self.b.int(ty.with(DType::I32), 0);
        let minus_q = self.sub(zero32, q);
        let q = self.sel(negative, minus_q, q);
        // infinity and NaN have no angle
        let nan = self.sub(x, x);
        let r = self.add(r, nan);
        (self.convert(dtype, r), q)
    }

    /// Upper 64 bits of a product of u64.
    fn mul_high(&mut self, a: Val, b: Val) -> Val {
        let mask = self.b.int(self.b.ty(a), 0xffff_ffff);
        let (al, ah) = (self.and(a, mask), self.shr(a, 32));
        let (bl, bh) = (self.and(b, mask), self.shr(b, 32));
        let ll = self.mul(al, bl);
        let ll = self.shr(ll, 32);
        let lh = self.mul(al, bh);
        let mid = self.add(ll, lh);
        let hl = self.mul(ah, bl);
        let mid_low = self.and(mid, mask);
        let mid2 = self.add(mid_low, hl);
        let hh = self.mul(ah, bh);
        let up = self.shr(mid, 32);
        let up2 = self.shr(mid2, 32);
        let s = self.add(hh, up);
        self.add(s, up2)
    }

    /// (sin(r), cos(r)) of a reduced argument.
    fn sin_cos(&mut self, r: Val) -> (Val, Val) {
        let wide = self.is_f64(r);
        let z = self.mul(r, r);
        let p = if wide { self.poly(z, &SIN_F64) } else { self.poly(z, &SIN_F32) };
        let rz = self.mul(r, z);
        let sin = self.mad(rz, p, r);
        let p = if wide { self.poly(z, &COS_F64) } else { self.poly(z, &COS_F32) };
        let z2 = self.mul(z, z);
        // 1 - z / 2 rounds; what it loses comes back with the rest
        let half = self.mul_c(z, 0.5);
        let one = self.c(r, 1.0);
        let w = self.sub(one, half);
        let back = self.sub(one, w);
        let lost = self.sub(back, half);
        let rest = self.mad(z2, p, lost);
        (sin, self.add(w, rest))
    }

    /// True where bit `bit` of the quadrant is set.
    fn quadrant_bit(&mut self, q: Val, bit: i128) -> Val {
        let c = self.b.int(self.b.ty(q), bit);
        let zero = self.b.int(self.b.ty(q), 0);
        let b = self.and(q, c);
        self.cmp(CmpOp::Ne, b, zero)
    }

    /// sin(x + turn * pi / 2).
    fn sin_turned(&mut self, x: Val, turn: i128) -> Val {
        let (r, q) = self.trig_reduce(x);
        let (s, c) = self.sin_cos(r);
        let t = self.b.int(self.b.ty(q), turn);
        let q = self.add(q, t);
        let odd = self.quadrant_bit(q, 1);
        let y = self.sel(odd, c, s);
        let flip = self.quadrant_bit(q, 2);
        let minus = self.neg(y);
        self.sel(flip, minus, y)
    }

    pub(super) fn sin(&mut self, x: Val) -> Val {
        let y = self.sin_turned(x, 0);
        self.keep_zero(x, y)
    }

    pub(super) fn cos(&mut self, x: Val) -> Val {
        self.sin_turned(x, 1)
    }

    pub(super) fn tan(&mut self, x: Val) -> Val {
        let (r, q) = self.trig_reduce(x);
        let (s, c) = self.sin_cos(r);
        let odd = self.quadrant_bit(q, 1);
        let minus = self.neg(c);
        let num = self.sel(odd, minus, s);
        let den = self.sel(odd, s, c);
        let y = self.div(num, den);
        self.keep_zero(x, y)
    }
}
