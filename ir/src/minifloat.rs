//! The narrow float formats as data: encoding and decoding by their definition, one element at a time.
//!
//! Sources: IEEE 754 (f16), the OCP 8-bit and microscaling specifications (f8, e8m0, f4), and the `UZ`
//! variants as ONNX describes them (no infinity, no negative zero, NaN is 0x80).

use crate::DType;

/// Shape of a binary float format of at most 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub exp_bits: u32,
    pub man_bits: u32,
    pub bias: i32,
    /// Has infinities (then every pattern above is NaN).
    pub inf: bool,
    /// The pattern of NaN, where the format has one.
    pub nan: Option<u16>,
    /// Pattern of the largest finite value.
    pub max: u16,
    pub signed: bool,
    /// Has a negative zero.
    pub neg_zero: bool,
}

/// The format of `dtype`; `None` for f32, f64 and types that are not floats.
pub const fn format(dtype: DType) -> Option<Format> {
    Some(match dtype {
        DType::F16 => make(5, 10, 15, true, Some(0x7e00), 0x7bff),
        DType::BF16 => make(8, 7, 127, true, Some(0x7fc0), 0x7f7f),
        DType::F8E4M3FN => make(4, 3, 7, false, Some(0x7f), 0x7e),
        DType::F8E4M3FNUZ => Format { neg_zero: false, ..make(4, 3, 8, false, Some(0x80), 0x7f) },
        DType::F8E5M2 => make(5, 2, 15, true, Some(0x7e), 0x7b),
        DType::F8E5M2FNUZ => Format { neg_zero: false, ..make(5, 2, 16, false, Some(0x80), 0x7f) },
        DType::F8E8M0 => {
            Format { signed: false, neg_zero: false, ..make(8, 0, 127, false, Some(0xff), 0xfe) }
        }
        DType::F4E2M1 => make(2, 1, 1, false, None, 0x7),
        _ => return None,
    })
}

const fn make(exp_bits: u32, man_bits: u32, bias: i32, inf: bool, nan: Option<u16>, max: u16) -> Format {
    Format { exp_bits, man_bits, bias, inf, nan, max, signed: true, neg_zero: true }
}

impl Format {
    fn sign_bit(self) -> u16 {
        if self.signed { 1 << (self.exp_bits + self.man_bits) } else { 0 }
    }

    /// The value of a pattern (bits above the format's width are ignored).
    pub fn decode(self, bits: u16) -> f64 {
        let width = self.exp_bits + self.man_bits + u32::from(self.signed);
        let bits = if width == 16 { bits } else { bits & ((1 << width) - 1) };
        if self.nan == Some(bits) {
            return f64::NAN;
        }
        let sign = if bits & self.sign_bit() != 0 { -1.0 } else { 1.0 };
        let magnitude = bits & !self.sign_bit();
        if self.inf {
            let inf = ((1u16 << self.exp_bits) - 1) << self.man_bits;
            if magnitude == inf {
                return sign * f64::INFINITY;
            }
            if magnitude > inf {
                return f64::NAN;
            }
        } else if self.nan == Some(magnitude) && self.neg_zero {
            return f64::NAN;
        }
        if self.man_bits == 0 {
            return exp2(i32::from(magnitude) - self.bias);
        }
        let exp = i32::from(magnitude >> self.man_bits);
        let man = f64::from(magnitude & ((1 << self.man_bits) - 1));
        let one = f64::from(1u16 << self.man_bits);
        let scale = exp2(exp.max(1) - self.bias - self.man_bits as i32);
        sign * scale * if exp == 0 { man } else { one + man }
    }

    /// Rounds to nearest even. Beyond the largest finite value: infinity, else NaN, else the largest
    /// finite value, as far as the format has them; with `saturate` always the largest finite value.
    pub fn encode(self, x: f64, saturate: bool) -> u16 {
        let sign = if x.is_sign_negative() { self.sign_bit() } else { 0 };
        if x.is_nan() {
            // a format without NaN has a negative zero for it
            return self.nan.unwrap_or(self.sign_bit());
        }
        if !self.signed && x < 0.0 {
            return self.nan.unwrap_or(0);
        }
        let a = x.abs();
        let max = self.decode(self.max);
        let emin = if self.man_bits == 0 { -self.bias } else { 1 - self.bias };
        let magnitude = if a.is_infinite() {
            None
        } else {
            let e = exponent(a).max(emin);
            let quantum = e - self.man_bits as i32;
            let q = (a / exp2(quantum)).round_ties_even();
            if q * exp2(quantum) > max {
                None
            } else if self.man_bits == 0 {
                // e8m0 has no zero: the smallest power of two stands for all that is smaller
                Some(((e - emin) as u16 + (q as u16).saturating_sub(1)).min(self.max))
            } else {
                let q = q as u16;
                let base = ((e - emin) as u16) << self.man_bits;
                Some(base + q)
            }
        };
        let magnitude = match magnitude {
            Some(m) => m,
            None if saturate => self.max,
            None if self.inf => ((1 << self.exp_bits) - 1) << self.man_bits,
            None => match self.nan {
                Some(nan) if self.neg_zero => nan,
                Some(nan) => return nan,
                None => self.max,
            },
        };
        if magnitude == 0 && !self.neg_zero { 0 } else { sign | magnitude }
    }
}

/// 2^e for every e that a finite f64 can have.
fn exp2(e: i32) -> f64 {
    if e >= -1022 {
        f64::from_bits(((e + 1023) as u64) << 52)
    } else {
        f64::from_bits(1u64 << (e + 1074).max(0))
    }
}

/// floor(log2(a)) of a positive normal number; far below every narrow format otherwise.
fn exponent(a: f64) -> i32 {
    ((a.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// The value nearest to `x` in `dtype` (a float type), as [`Format::encode`] rounds.
pub fn round_to(dtype: DType, x: f64, saturate: bool) -> f64 {
    match format(dtype) {
        Some(f) => f.decode(f.encode(x, saturate)),
        None if dtype == DType::F32 => {
            let y = x as f32;
            if saturate && y.is_infinite() {
                return f64::from(f32::MAX.copysign(y));
            }
            f64::from(y)
        }
        None if saturate && x.is_infinite() => f64::MAX.copysign(x),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_round_trips() {
        for dtype in DType::ALL {
            let Some(f) = format(dtype) else { continue };
            let width = f.exp_bits + f.man_bits + u32::from(f.signed);
            for bits in 0..1u32 << width {
                let x = f.decode(bits as u16);
                let back = f.encode(x, false);
                if x.is_nan() {
                    assert!(f.decode(back).is_nan());
                } else {
                    assert_eq!(back, bits as u16, "{dtype} {bits:#x} = {x}");
                }
            }
        }
    }

    #[test]
    fn halves_agree_with_the_half_crate() {
        let f = format(DType::F16).unwrap();
        let g = format(DType::BF16).unwrap();
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(0x9E37_79B9));
            if !x.is_nan() {
                assert_eq!(f.encode(x.into(), false), half::f16::from_f32(x).to_bits(), "{x}");
                assert_eq!(g.encode(x.into(), false), half::bf16::from_f32(x).to_bits(), "{x}");
            }
        }
    }

    #[test]
    fn overflow() {
        let e4m3 = format(DType::F8E4M3FN).unwrap();
        assert_eq!(e4m3.encode(464.0, false), 0x7e, "ties to even");
        assert!(e4m3.decode(e4m3.encode(500.0, false)).is_nan());
        assert_eq!(e4m3.encode(f64::NEG_INFINITY, true), 0xfe);
        let f4 = format(DType::F4E2M1).unwrap();
        assert_eq!(f4.decode(f4.encode(100.0, false)), 6.0);
        assert_eq!(f4.decode(f4.encode(0.25, false)), 0.0, "ties to even");
        let e8 = format(DType::F8E8M0).unwrap();
        assert_eq!(e8.decode(e8.encode(1.5, false)), 2.0);
        assert_eq!(e8.decode(e8.encode(0.0, false)), exp2(-127));
    }
}
