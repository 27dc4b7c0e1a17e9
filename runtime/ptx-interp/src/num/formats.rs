//! Binary floating-point formats and conversions between them (PTX ISA §5.2.2-5.2.3, §9.7.9.23 `cvt`).
//!
//! One rounding routine serves every format and mode; it starts from an `f64`, so a sum or a fused product
//! that does not fit one is first rounded to odd ([`add_odd`]), which the second rounding cannot tell from
//! the exact value.

/// Rounding modes (§9.7.9.23): `.rn`, `.rz`, `.rm`, `.rp` and `.rna`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Even,
    Zero,
    Down,
    Up,
    Away,
}

/// A format: widths of exponent and mantissa; `finite` has no infinity and a single NaN (e4m3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub exp: u32,
    pub man: u32,
    pub finite: bool,
    /// Bits below the mantissa that the container keeps and that are zero (TF32 in 32 bits).
    pub pad: u32,
}

pub const F16: Format = Format { exp: 5, man: 10, finite: false, pad: 0 };
pub const BF16: Format = Format { exp: 8, man: 7, finite: false, pad: 0 };
pub const TF32: Format = Format { exp: 8, man: 10, finite: false, pad: 13 };
pub const F32: Format = Format { exp: 8, man: 23, finite: false, pad: 0 };
pub const E4M3: Format = Format { exp: 4, man: 3, finite: true, pad: 0 };
pub const E5M2: Format = Format { exp: 5, man: 2, finite: false, pad: 0 };

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exp - 1)) - 1
    }

    fn sign_bit(self) -> u32 {
        1 << (self.exp + self.man)
    }

    fn infinity(self) -> u32 {
        ((1 << self.exp) - 1) << self.man
    }

    fn largest(self) -> u32 {
        if self.finite { self.sign_bit() - 2 } else { self.infinity() - 1 }
    }

    /// The canonical NaN: all bits but the sign.
    pub fn nan(self) -> u32 {
        (self.sign_bit() - 1) << self.pad
    }

    /// The value of `bits`, exactly.
    pub fn decode(self, bits: u32) -> f64 {
        let bits = bits >> self.pad;
        let sign = if bits & self.sign_bit() != 0 { -1.0 } else { 1.0 };
        let magnitude = bits & (self.sign_bit() - 1);
        if self.finite && magnitude == self.sign_bit() - 1 {
            return f64::NAN;
        }
        if !self.finite && magnitude >= self.infinity() {
            return if magnitude == self.infinity() { sign * f64::INFINITY } else { f64::NAN };
        }
        let e = (magnitude >> self.man) as i32;
        let m = magnitude & ((1 << self.man) - 1);
        let (m, e) = if e == 0 { (m, 1) } else { (m | (1 << self.man), e) };
        sign * f64::from(m) * pow2(e - self.bias() - self.man as i32)
    }

    /// `x` rounded to this format. `saturate` (`.satfinite`) turns overflow and infinity into the largest
    /// finite number; a format without infinity always does.
    pub fn encode(self, x: f64, mode: Round, saturate: bool) -> u32 {
        if x.is_nan() {
            return self.nan();
        }
        let negative = x.is_sign_negative();
        let sign = if negative { self.sign_bit() } else { 0 };
        let saturate = saturate || self.finite;
        if x.is_infinite() {
            return (sign | if saturate { self.largest() } else { self.infinity() }) << self.pad;
        }
        let raw = x.abs().to_bits();
        if raw == 0 {
            return sign << self.pad;
        }
        let biased = (raw >> 52) as i32;
        let (m, e) =
            if biased == 0 { (raw, -1022) } else { ((raw & ((1 << 52) - 1)) | (1 << 52), biased - 1023) };
        let base = e.max(1 - self.bias());
        let shift = (base - e + 52 - self.man as i32) as u32;
        let up = |odd: bool, above_half: bool, half: bool, inexact: bool| match mode {
            Round::Even => above_half || (half && odd),
            Round::Away => above_half || half,
            Round::Zero => false,
            Round::Down => negative && inexact,
            Round::Up => !negative && inexact,
        };
        let kept = if shift > 54 {
            u64::from(up(false, false, false, true))
        } else {
            let (kept, rest, half) = (m >> shift, m & ((1 << shift) - 1), 1u64 << (shift - 1));
            kept + u64::from(up(kept & 1 == 1, rest > half, rest == half, rest != 0))
        };
        let bits = (((base + self.bias() - 1) as u64) << self.man) + kept;
        let largest = u64::from(self.largest());
        let bits = if bits <= largest {
            bits as u32
        } else if saturate {
            self.largest()
        } else {
            let towards_zero = match mode {
                Round::Zero => true,
                Round::Down => !negative,
                Round::Up => negative,
                _ => false,
            };
            if towards_zero { self.largest() } else { self.infinity() }
        };
        (sign | bits) << self.pad
    }
}

/// 2^e, also where the result is subnormal.
fn pow2(e: i32) -> f64 {
    if e >= -1022 {
        f64::from_bits(((e + 1023) as u64) << 52)
    } else {
        f64::from_bits(1u64 << (e + 1074).max(0))
    }
}

/// `a + b` rounded to odd: exact where it fits, else the neighbour whose last bit is one.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    if !s.is_finite() {
        return s;
    }
    let bb = s - a;
    let err = (a - (s - bb)) + (b - bb);
    if err == 0.0 || s.to_bits() & 1 == 1 {
        return s;
    }
    if s == 0.0 {
        return err;
    }
    f64::from_bits(if (err > 0.0) == (s > 0.0) { s.to_bits() + 1 } else { s.to_bits() - 1 })
}

/// `a * b + c` for operands of at most 24 significant bits, rounded to odd.
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// f16 bits to f32.
#[inline(always)]
pub fn h2f(h: u32) -> f32 {
    let magnitude = h & 0x7fff;
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let special = (magnitude << 13) | 0x7f80_0000;
    let bits = if magnitude >= 0x7c00 { special } else { finite.to_bits() };
    f32::from_bits(bits | ((h & 0x8000) << 16))
}

/// f32 to f16 bits, to nearest even; NaN becomes 0x7fff.
#[inline(always)]
pub fn f2h(x: f32) -> u32 {
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let m = bits & 0x7fff_ffff;
    let normal = (m.wrapping_add(0xc800_0fff).wrapping_add((m >> 13) & 1)) >> 13;
    let half = 0.5f32;
    let tiny = (f32::from_bits(m) + half).to_bits().wrapping_sub(half.to_bits());
    let finite = if m < 0x3880_0000 { tiny } else { normal };
    if m > 0x7f80_0000 {
        0x7fff
    } else if m >= 0x4780_0000 {
        sign | 0x7c00
    } else {
        sign | finite
    }
}

/// bf16 bits to f32.
#[inline(always)]
pub fn b2f(b: u32) -> f32 {
    f32::from_bits(b << 16)
}

/// f32 to bf16 bits, to nearest even; NaN becomes 0x7fff.
#[inline(always)]
pub fn f2b(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_and_the_fast_paths_agree_with_the_general_one() {
        for h in 0..=0xffffu32 {
            let x = F16.decode(h);
            if x.is_nan() {
                assert_eq!(F16.encode(x, Round::Even, false), 0x7fff);
                assert!(h2f(h).is_nan());
                continue;
            }
            assert_eq!(F16.encode(x, Round::Even, false), h, "{h:#x}");
            assert_eq!(f64::from(h2f(h)), x, "{h:#x}");
            assert_eq!(f2h(h2f(h)), h);
            // half-way points and their neighbours
            for d in [-1i32, 0, 1] {
                let y = f32::from_bits((h2f(h).to_bits() + 0x1000).wrapping_add_signed(d));
                if y.is_finite() {
                    assert_eq!(f2h(y), F16.encode(f64::from(y), Round::Even, false), "{y}");
                }
                let z = f32::from_bits(((h << 16) + 0x8000).wrapping_add_signed(d));
                if z.is_finite() {
                    assert_eq!(f2b(z), BF16.encode(f64::from(z), Round::Even, false), "{z}");
                }
            }
        }
    }

    #[test]
    fn f32_to_f32_is_the_identity_and_directed_modes_bracket() {
        let mut bits = 12345u32;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            if x.is_finite() {
                assert_eq!(F32.encode(f64::from(x), Round::Even, false), bits);
                let y = f64::from(x) * (1.0 + 1e-9);
                let down = F32.decode(F32.encode(y, Round::Down, false));
                let up = F32.decode(F32.encode(y, Round::Up, false));
                assert!(down <= y && y <= up);
                assert_eq!(F32.encode(y, Round::Even, false), (y as f32).to_bits());
            }
        }
    }

    #[test]
    fn eight_bit_formats_saturate() {
        assert_eq!(E4M3.encode(1e9, Round::Even, true), 0x7e);
        assert_eq!(E4M3.decode(0x7e), 448.0);
        assert_eq!(E4M3.encode(f64::NAN, Round::Even, true), 0x7f);
        assert_eq!(E4M3.encode(-0.0, Round::Even, true), 0x80);
        assert_eq!(E4M3.encode(464.0, Round::Even, true), 0x7e);
        assert_eq!(E5M2.encode(1e9, Round::Even, true), 0x7b);
        assert_eq!(E5M2.encode(1e9, Round::Even, false), 0x7c);
        assert_eq!(E5M2.decode(0x01), 2f64.powi(-16));
        assert_eq!(TF32.encode(1.0 + 2f64.powi(-11), Round::Away, false), 0x3f80_2000);
        assert_eq!(TF32.encode(1.0 + 2f64.powi(-11), Round::Even, false), 0x3f80_0000);
    }

    #[test]
    fn sums_that_do_not_fit_are_odd() {
        let s = add_odd(1.0, 2f64.powi(-80));
        assert_eq!(s.to_bits(), 1f64.to_bits() + 1);
        assert_eq!(add_odd(1.0, -2f64.powi(-80)).to_bits(), 1f64.to_bits() - 1);
        assert_eq!(add_odd(1.0, 0.5), 1.5);
    }
}
