//! The narrow float formats, by formula: every finite value of each of them is exact in `f64`.
//!
//! Sources: IEEE 754 binary16; bfloat16; "FP8 Formats for Deep Learning" (E4M3FN, E5M2);
//! "8-bit Numerical Formats for Deep Neural Networks" (the FNUZ kinds); OCP Microscaling formats
//! v1.0 (E8M0, E2M1); the conversion tables are those of ONNX Cast.

use ir::DType;

/// What the codes with the largest exponent, and minus zero, mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Specials {
    /// Infinities and NaNs as in IEEE 754.
    Ieee,
    /// No infinity; all ones is NaN.
    AllOnesNan,
    /// No infinity, no minus zero: the code of minus zero is the only NaN.
    MinusZeroNan,
    /// Every code is a finite number.
    Finite,
}

/// A float format with a sign bit, `exp` exponent bits and `man` mantissa bits.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    exp: u32,
    man: u32,
    bias: i32,
    specials: Specials,
}

/// The format of a narrow float type; `None` for `f64`, `f32`, `f8e8m0` and all others.
pub(crate) const fn format(dtype: DType) -> Option<Format> {
    use Specials::*;
    let (exp, man, bias, specials) = match dtype {
        DType::F16 => (5, 10, 15, Ieee),
        DType::BF16 => (8, 7, 127, Ieee),
        DType::F8E4M3FN => (4, 3, 7, AllOnesNan),
        DType::F8E4M3FNUZ => (4, 3, 8, MinusZeroNan),
        DType::F8E5M2 => (5, 2, 15, Ieee),
        DType::F8E5M2FNUZ => (5, 2, 16, MinusZeroNan),
        DType::F4E2M1 => (2, 1, 1, Finite),
        _ => return None,
    };
    Some(Format { exp, man, bias, specials })
}

/// `2^n` for an exponent of a normal `f64`.
fn exp2(n: i32) -> f64 {
    f64::from_bits(((n + 1023) as u64) << 52)
}

/// `floor(log2(x))` of a positive, finite `x`; subnormals answer -1023.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

impl Format {
    fn sign(self) -> u32 {
        1 << (self.exp + self.man)
    }
    /// Code of the largest finite magnitude.
    fn max(self) -> u32 {
        match self.specials {
            Specials::Ieee => (((1 << self.exp) - 1) << self.man) - 1,
            Specials::AllOnesNan => self.sign() - 2,
            Specials::MinusZeroNan | Specials::Finite => self.sign() - 1,
        }
    }
    fn nan(self) -> u32 {
        match self.specials {
            Specials::Ieee => (self.max() + 1) | 1 << (self.man - 1),
            Specials::AllOnesNan => self.sign() - 1,
            Specials::MinusZeroNan => self.sign(),
            // ONNX's reference gives minus zero for a NaN that the format cannot hold.
            Specials::Finite => self.sign(),
        }
    }

    pub(crate) fn decode(self, code: u32) -> f64 {
        let magnitude = code & (self.sign() - 1);
        let negative = code & self.sign() != 0;
        let value = if self.specials == Specials::MinusZeroNan && code == self.sign() {
            f64::NAN
        } else if magnitude > self.max() {
            // one above the largest finite number is infinity, where there is one
            let infinite = self.specials == Specials::Ieee && magnitude == self.max() + 1;
            if infinite { f64::INFINITY } else { f64::NAN }
        } else {
            let (e, m) = (magnitude >> self.man, magnitude & ((1 << self.man) - 1));
            let hidden = if e > 0 { 1 << self.man } else { 0 };
            f64::from(hidden + m) * exp2(e.max(1) as i32 - self.bias - self.man as i32)
        };
        if negative { -value } else { value }
    }

    /// Rounds to nearest even. What exceeds the largest finite number after rounding becomes that
    /// number if `saturate` is set or there is nothing else, otherwise infinity, otherwise NaN.
    pub(crate) fn encode(self, x: f64, saturate: bool) -> u32 {
        if x.is_nan() {
            return self.nan();
        }
        let (a, sign) = (x.abs(), if x.is_sign_negative() { self.sign() } else { 0 });
        let overflow = match self.specials {
            _ if saturate => self.max(),
            Specials::Ieee => self.max() + 1,
            Specials::Finite => self.max(),
            Specials::AllOnesNan | Specials::MinusZeroNan => self.nan(),
        };
        if a.is_infinite() {
            return overflow | sign;
        }
        let e = exponent(a).max(1 - self.bias);
        // a multiple of the format's quantum here; scaling by a power of two is exact
        let steps = (a / exp2(e - self.man as i32)).round_ties_even();
        // the exponent field is one less because `steps` brings the hidden bit with it; a carry out
        // of the mantissa and the step from subnormal to normal come out right by themselves
        let code = (i64::from(e + self.bias - 1) << self.man) + steps as i64;
        if code > i64::from(self.max()) {
            return overflow | sign;
        }
        let code = code as u32;
        if code == 0 && self.specials == Specials::MinusZeroNan { 0 } else { code | sign }
    }
}

/// `2^(code - 127)`; 255 is NaN. There is neither sign nor zero.
pub(crate) fn decode_e8m0(code: u8) -> f64 {
    if code == 255 { f64::NAN } else { exp2(i32::from(code) - 127) }
}

/// To the nearest power of two by value, ties up; all below 2^-127, zero included, becomes 2^-127. What
/// rounds to more than 2^127 becomes NaN, or 2^127 if `saturate` is set. Negative numbers become NaN.
pub(crate) fn encode_e8m0(x: f64, saturate: bool) -> u8 {
    const NAN: u8 = 255;
    if x.is_nan() || x < 0.0 {
        return NAN;
    }
    // 1.5 * 2^e is the middle between 2^e and 2^(e+1)
    let up = x.to_bits() & (1 << 51) != 0;
    let e = if x.is_infinite() { 1024 } else { exponent(x) + i32::from(up) };
    match e {
        ..=-127 => 0,
        -126..=127 => (e + 127) as u8,
        _ if saturate => 254,
        _ => NAN,
    }
}

/// `x` as `f64`, rounded to odd: exact, or the neighbour whose last mantissa bit is 1. Rounding that
/// once more to at most 51 bits gives what one rounding of `x` gives.
pub(crate) fn int_to_odd(x: i128) -> f64 {
    let magnitude = x.unsigned_abs();
    let shift = (128 - magnitude.leading_zeros()).saturating_sub(53);
    let kept = (magnitude >> shift) as u64;
    let lost = magnitude & ((1 << shift) - 1) != 0;
    let value = (kept | u64::from(lost)) as f64 * exp2(shift as i32);
    if x < 0 { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dtype: DType) -> (Format, u32) {
        let f = format(dtype).expect("a narrow float");
        (f, f.sign() * 2)
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        for dtype in DType::ALL {
            let Some(f) = format(dtype) else { continue };
            for code in 0..f.sign() * 2 {
                let x = f.decode(code);
                if x.is_nan() {
                    assert!(f.decode(f.encode(x, false)).is_nan(), "{dtype} {code:#x}");
                } else {
                    assert_eq!(f.encode(x, false), code, "{dtype} {code:#x}");
                }
            }
        }
        for code in 0..255 {
            assert_eq!(encode_e8m0(decode_e8m0(code), false), code);
        }
    }

    #[test]
    fn halfway_goes_to_even_and_neighbours_to_the_nearest() {
        for dtype in [DType::F16, DType::BF16, DType::F8E4M3FN, DType::F8E5M2FNUZ, DType::F4E2M1] {
            let (f, _) = all(dtype);
            for code in 0..f.max() {
                let (lo, hi) = (f.decode(code), f.decode(code + 1));
                let mid = (lo + hi) / 2.0;
                let even = if code % 2 == 0 { code } else { code + 1 };
                assert_eq!(f.encode(mid, false), even, "{dtype} {code:#x}");
                assert_eq!(f.encode(mid.next_down(), false), code, "{dtype} {code:#x}");
                assert_eq!(f.encode(mid.next_up(), false), code + 1, "{dtype} {code:#x}");
            }
        }
    }

    #[test]
    fn half_precision_agrees_with_the_half_crate() {
        let (f16, bf16) = (all(DType::F16).0, all(DType::BF16).0);
        for code in 0..=u16::MAX {
            let (a, b) = (f16.decode(code.into()), half::f16::from_bits(code).to_f64());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "f16 {code:#x}");
            let (a, b) = (bf16.decode(code.into()), half::bf16::from_bits(code).to_f64());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "bf16 {code:#x}");
        }
    }

    #[test]
    fn largest_values_and_specials() {
        // (type, largest finite, code of NaN, code of +inf converted plainly, converted saturating)
        let rows = [
            (DType::F16, 65504.0, 0x7e00, 0x7c00, 0x7bff),
            (DType::BF16, 3.3895313892515355e38, 0x7fc0, 0x7f80, 0x7f7f),
            (DType::F8E4M3FN, 448.0, 0x7f, 0x7f, 0x7e),
            (DType::F8E4M3FNUZ, 240.0, 0x80, 0x80, 0x7f),
            (DType::F8E5M2, 57344.0, 0x7e, 0x7c, 0x7b),
            (DType::F8E5M2FNUZ, 57344.0, 0x80, 0x80, 0x7f),
            (DType::F4E2M1, 6.0, 0x8, 0x7, 0x7),
        ];
        for (dtype, max, nan, inf, saturated) in rows {
            let (f, _) = all(dtype);
            assert_eq!(f.decode(f.max()), max, "{dtype}");
            assert_eq!(f.encode(f64::NAN, true), nan, "{dtype}");
            assert_eq!(f.encode(f64::INFINITY, false), inf, "{dtype}");
            assert_eq!(f.encode(f64::INFINITY, true), saturated, "{dtype}");
            assert_eq!(f.encode(1e300, true), saturated, "{dtype}");
            assert_eq!(f.encode(-1e300, true), saturated | f.sign(), "{dtype}");
            assert_eq!(f.encode(5e-324, false), 0, "{dtype}");
        }
        // FNUZ has no minus zero
        assert_eq!(all(DType::F8E5M2FNUZ).0.encode(-0.0, false), 0);
        assert_eq!(all(DType::F8E5M2FNUZ).0.encode(-1e-9, false), 0);
        assert_eq!(all(DType::F8E5M2).0.encode(-0.0, false), 0x80);
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        let cases = [
            (1.0, 127, 127),
            (1.49, 127, 127),
            (1.5, 128, 128),
            (0.0, 0, 0),
            (-0.0, 0, 0),
            (-2.0, 255, 255),
            (f64::INFINITY, 255, 254),
            (f64::NAN, 255, 255),
            (1e300, 255, 254),
            (1e-300, 0, 0),
            (exp2(127), 254, 254),
            (exp2(-127), 0, 0),
        ];
        for (x, plain, saturated) in cases {
            assert_eq!(encode_e8m0(x, false), plain, "{x}");
            assert_eq!(encode_e8m0(x, true), saturated, "{x}");
        }
    }

    #[test]
    fn integers_round_to_odd() {
        assert_eq!(int_to_odd(-7), -7.0);
        assert_eq!(int_to_odd(0), 0.0);
        assert_eq!(int_to_odd(1 << 60), exp2(60));
        // 2^24 + 1 + 2^-40 scaled: twice rounded it would become even first and then tie
        let x = (1i128 << 63) + (1 << 39) + 1;
        assert_eq!(int_to_odd(x) as f32, exp2(63) as f32 + exp2(40) as f32);
    }
}
