//! exp, expm1, sinh, cosh, tanh, erf.

use super::Math;
use ir::loops::{SCALE, Val};
use ir::prim::CmpOp;

/// (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2: relative error of exp 4e-8 and of expm1 1.2e-7.
const EXP_F32: [f64; 5] = [
    0.49999821186065674,
    0.16666576266288757,
    0.041726429015398026,
    0.008363207802176476,
    0.0009941358584910631,
];
/// As [`EXP_F32`]; error of expm1 2.7e-10.
const EXPM1_F32: [f64; 6] = [
    0.5,
    0.1666666716337204,
    0.04166632518172264,
    0.008333219215273857,
    0.0013943316880613565,
    0.00019962596707046032,
];
/// As [`EXP_F32`]; error 5.2e-11: for f32 results computed in f64.
pub(super) const EXP_SHORT: [f64; 7] = [
    0.5000000010503274,
    0.1666666671914468,
    0.04166659672772259,
    0.008333298399817127,
    0.0013900502418767893,
    0.00019899353088768018,
    1.9323533177882732e-05,
];
/// As [`EXP_F32`]; error 3.4e-21.
pub(super) const EXP_F64: [f64; 12] = [
    0.5,
    0.16666666666666666,
    0.0416666666666667,
    0.008333333333333345,
    0.001388888888887008,
    0.00019841269841207088,
    2.4801587353915415e-05,
    2.7557319363723963e-06,
    2.7557248446796986e-07,
    2.505196659872748e-08,
    2.092270995627664e-09,
    1.612040728511147e-10,
];
/// ln(2) in two parts; products of the first with every exponent are exact.
pub(super) const LN2_F32: (f64, f64) = (0.693145751953125, 1.4286068203094173e-06);
pub(super) const LN2_F64: (f64, f64) = (0.6931471803691238, 1.9082149292705877e-10);

/// erf(x) / x in z = x^2 for |x| <= 3.95; relative error 2.1e-8.
const ERF_NUM: [f64; 6] = [
    1.1283791065216064,
    0.19155065715312958,
    0.052875496447086334,
    0.0038081782404333353,
    0.0002846884308382869,
    2.025909452640917e-06,
];
const ERF_DEN: [f64; 6] = [
    1.0,
    0.5030900239944458,
    0.11455976963043213,
    0.01505512185394764,
    0.0011707304511219263,
    3.7831850931979716e-05,
];
/// tanh(x) / x in z = x^2 for |x| <= 9.1; relative error 2.3e-8.
const TANH_NUM: [f64; 5] =
    [1.0, 0.13374465703964233, 0.0034878007136285305, 2.0481027604546398e-05, 1.3177325897117953e-08];
const TANH_DEN: [f64; 5] =
    [1.0, 0.4670777916908264, 0.02584734745323658, 0.00032729038503021, 7.703960704930068e-07];
/// erf(x) / x in z = x^2 for |x| < 1; relative error 2.2e-21.
const ERF_SMALL: [f64; 14] = [
    std::f64::consts::FRAC_2_SQRT_PI,
    -0.37612638903183754,
    0.11283791670955119,
    -0.026866170645129736,
    0.005223977625422104,
    -0.0008548327021854214,
    0.00012055332899393883,
    -1.4925647465956485e-05,
    1.6462043420826237e-06,
    -1.6364614554752861e-07,
    1.4792146609872266e-08,
    -1.216304501303421e-09,
    8.703794250610697e-11,
    -4.222894090238812e-12,
];
/// exp(x^2) erfc(x) in u = (x - 2.5) / (x + 2.5) for 1 <= x <= 6; relative error 3.6e-19.
const ERFC: [f64; 18] = [
    0.2108063640611436,
    -0.37173673394897333,
    0.2517131932174493,
    -0.12503305237882856,
    0.03992253907558438,
    -0.0039937011659179605,
    -0.0026423659642688543,
    0.0008759154522671088,
    0.00022838037801699648,
    -0.00012887721172620057,
    -3.4182224242089855e-05,
    1.861489146747565e-05,
    7.552480341281609e-06,
    -2.3007658603343344e-06,
    -1.8015329393687136e-06,
    8.636255487906318e-08,
    3.4341744341062307e-07,
    5.805663082270495e-08,
];

/// 1.5 * 2^52, or 2^23 in f32, and its bits: adding it rounds to an integer, which then lies in the low bits.
fn magic(wide: bool) -> (f64, i64) {
    let magic: f64 = if wide { 6755399441055744.0 } else { 12582912.0 };
    (magic, if wide { magic.to_bits() as i64 } else { i64::from((magic as f32).to_bits()) })
}

impl Math<'_> {
    /// exp(x) = 2^n (1 + q): n as an integer, q = expm1(r) of the reduced argument. `lo` is added to the
    /// reduced argument. The argument is limited to where results differ from 0 and infinity.
    pub(super) fn exp_parts(&mut self, x: Val, coef: &[f64], lo: Option<Val>) -> (Val, Val) {
        let (q, t) = self.exp_reduced(x, coef, lo);
        let bits = self.bits(t);
        let base = self.i(x, magic(self.is_f64(x)).1);
        (q, self.sub(bits, base))
    }

    /// As [`Self::exp_parts`], but for n: the sum of it and of [`magic`].
    fn exp_reduced(&mut self, x: Val, coef: &[f64], lo: Option<Val>) -> (Val, Val) {
        let wide = self.is_f64(x);
        let (min, max) = if wide { (-746.0, 711.0) } else { (-104.0, 90.0) };
        let x = self.at_most(x, max);
        let x = self.at_least(x, min);
        let c = self.c(x, magic(wide).0);
        let log2e = self.c(x, std::f64::consts::LOG2_E);
        let t = self.mad(x, log2e, c);
        let nf = self.sub(t, c);
        let (ln2_hi, ln2_lo) = if wide { LN2_F64 } else { LN2_F32 };
        let hi = self.c(x, -ln2_hi);
        let r = self.mad(nf, hi, x);
        let low = self.c(x, -ln2_lo);
        let mut r = self.mad(nf, low, r);
        if let Some(lo) = lo {
            r = self.add(r, lo);
        }
        let p = self.poly(r, coef);
        let r2 = self.mul(r, r);
        (self.mad(r2, p, r), t)
    }

    pub(super) fn exp(&mut self, x: Val) -> Val {
        let coef: &[f64] = if self.is_f64(x) { &EXP_F64 } else { &EXP_F32 };
        if self.scales(x) {
            let (q, t) = self.exp_reduced(x, coef, None);
            let p = self.add_c(q, 1.0);
            let c = self.c(x, magic(self.is_f64(x)).0);
            let n = self.sub(t, c);
            return self.b.tile_op(SCALE, p, n, n);
        }
        let (q, n) = self.exp_parts(x, coef, None);
        let p = self.add_c(q, 1.0);
        self.ldexp(p, n)
    }

    fn expm1_coef(&self, x: Val) -> &'static [f64] {
        if self.is_f64(x) { &EXP_F64 } else { &EXPM1_F32 }
    }

    pub(super) fn expm1(&mut self, x: Val) -> Val {
        let (q, n) = self.exp_parts(x, self.expm1_coef(x), None);
        let y = self.expm1_of(q, n);
        self.keep_zero(x, y)
    }

    /// 2^n (1 + q) - 1 without cancellation.
    fn expm1_of(&mut self, q: Val, n: Val) -> Val {
        let one = self.c(q, 1.0);
        let s = self.ldexp(one, n);
        let s1 = self.sub(s, one);
        let near = self.mad(s, q, s1);
        // 2^n may overflow where the result does not; the 1 has no effect there
        let p = self.add(q, one);
        let far = self.ldexp(p, n);
        let limit = self.i(q, 60);
        let is_far = self.cmp(CmpOp::Gt, n, limit);
        self.sel(is_far, far, near)
    }

    /// exp(x) / 2.
    fn half_exp(&mut self, x: Val) -> Val {
        let coef: &[f64] = if self.is_f64(x) { &EXP_F64 } else { &EXP_F32 };
        let (q, n) = self.exp_parts(x, coef, None);
        let p = self.add_c(q, 1.0);
        let one = self.i(x, 1);
        let n = self.sub(n, one);
        self.ldexp(p, n)
    }

    pub(super) fn cosh(&mut self, x: Val) -> Val {
        let a = self.abs(x);
        let e = self.half_exp(a);
        let quarter = self.c(x, 0.25);
        let inv = self.div(quarter, e);
        self.add(e, inv)
    }

    pub(super) fn sinh(&mut self, x: Val) -> Val {
        let a = self.abs(x);
        // small: (E + E / (E + 1)) / 2 with E = expm1(a)
        let (q, n) = self.exp_parts(a, self.expm1_coef(x), None);
        let e1 = self.expm1_of(q, n);
        let e2 = self.add_c(e1, 1.0);
        let ratio = self.div(e1, e2);
        let sum = self.add(e1, ratio);
        let small = self.mul_c(sum, 0.5);
        let p = self.add_c(q, 1.0);
        let one = self.i(x, 1);
        let n = self.sub(n, one);
        let e = self.ldexp(p, n);
        let quarter = self.c(x, 0.25);
        let inv = self.div(quarter, e);
        let large = self.sub(e, inv);
        let is_large = self.cmp_c(CmpOp::Gt, a, 1.0);
        let y = self.sel(is_large, large, small);
        self.copysign(y, x)
    }

    pub(super) fn tanh(&mut self, x: Val) -> Val {
        if self.is_f64(x) {
            // E / (E + 2) with E = expm1(2 a)
            let a = self.abs(x);
            let a = self.at_most(a, 22.0);
            let a2 = self.add(a, a);
            let (q, n) = self.exp_parts(a2, &EXP_F64, None);
            let e = self.expm1_of(q, n);
            let d = self.add_c(e, 2.0);
            let y = self.div(e, d);
            return self.copysign(y, x);
        }
        self.odd_rational(x, 9.1, &TANH_NUM, &TANH_DEN)
    }

    /// x P(x^2) / Q(x^2), limited to -1..=1.
    fn odd_rational(&mut self, x: Val, limit: f64, num: &[f64], den: &[f64]) -> Val {
        let x = self.at_most(x, limit);
        let x = self.at_least(x, -limit);
        let z = self.mul(x, x);
        let p = self.poly(z, num);
        let p = self.mul(p, x);
        let q = self.poly(z, den);
        let y = self.div(p, q);
        let y = self.at_most(y, 1.0);
        self.at_least(y, -1.0)
    }

    pub(super) fn erf(&mut self, x: Val) -> Val {
        if !self.is_f64(x) {
            return self.odd_rational(x, 3.95, &ERF_NUM, &ERF_DEN);
        }
        let a = self.abs(x);
        let z = self.mul(x, x);
        let p = self.poly(z, &ERF_SMALL);
        let small = self.mul(p, x);
        let a = self.at_most(a, 6.0);
        let one = self.c(x, 1.0);
        let num = self.add_c(a, -2.5);
        let den = self.add_c(a, 2.5);
        let u = self.div(num, den);
        let g = self.poly(u, &ERFC);
        let z = self.mul(a, a);
        let minus = self.neg(z);
        let e = self.exp(minus);
        let minus_g = self.neg(g);
        let y = self.mad(minus_g, e, one);
        let large = self.copysign(y, x);
        let is_small = self.cmp(CmpOp::Lt, a, one);
        self.sel(is_small, small, large)
    }
}
