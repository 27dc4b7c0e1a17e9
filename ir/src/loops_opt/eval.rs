//! The meaning of element-wise instructions, one scalar at a time: used by folding and by the loop
//! interpreter. Arithmetic of narrow floats is done in f64 and rounded once, which is exact rounding.

use crate::DType;
use crate::dtype::Scalar;
use crate::minifloat::round_to;
use crate::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use std::cmp::Ordering;

/// The scalar as a value of `dtype`: integers wrap, floats round, bools are 0 or 1.
pub fn normalise(dtype: DType, s: Scalar) -> Scalar {
    if dtype.is_float() {
        Scalar::Float(round_to(dtype, s.as_f64(), false))
    } else {
        let i = match s {
            Scalar::Int(i) => i,
            Scalar::Float(x) => return convert(dtype, ConvertMode::Plain, DType::F64, Scalar::Float(x)),
        };
        Scalar::Int(wrap(dtype, i))
    }
}

/// `i` modulo 2^bits in the range of `dtype`.
pub fn wrap(dtype: DType, i: i128) -> i128 {
    let Some((lo, hi)) = dtype.int_range() else { return i };
    if dtype == DType::Bool {
        return i128::from(i != 0);
    }
    if (lo..=hi).contains(&i) { i } else { i.wrapping_sub(lo).rem_euclid(hi - lo + 1) + lo }
}

pub fn unary(op: UnaryOp, dtype: DType, s: Scalar) -> Scalar {
    match s {
        Scalar::Int(i) => Scalar::Int(wrap(
            dtype,
            match op {
                UnaryOp::Neg => -i,
                UnaryOp::Abs => i.abs(),
                UnaryOp::Not if dtype == DType::Bool => 1 - i,
                UnaryOp::Not => !i,
                UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Trunc | UnaryOp::RoundEven => i,
                // functions of integers do not exist; the verifier refuses them
                _ => 0,
            },
        )),
        Scalar::Float(x) => Scalar::Float(round_to(dtype, float_unary(op, x), false)),
    }
}

fn float_unary(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Trunc => x.trunc(),
        UnaryOp::RoundEven => x.round_ties_even(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Exp => x.exp(),
        UnaryOp::Expm1 => x.exp_m1(),
        UnaryOp::Log => x.ln(),
        UnaryOp::Log1p => x.ln_1p(),
        UnaryOp::Sin => x.sin(),
        UnaryOp::Cos => x.cos(),
        UnaryOp::Tan => x.tan(),
        UnaryOp::Asin => x.asin(),
        UnaryOp::Acos => x.acos(),
        UnaryOp::Atan => x.atan(),
        UnaryOp::Sinh => x.sinh(),
        UnaryOp::Cosh => x.cosh(),
        UnaryOp::Asinh => asinh(x),
        UnaryOp::Acosh => acosh(x),
        UnaryOp::Atanh => atanh(x),
        UnaryOp::Tanh => x.tanh(),
        UnaryOp::Erf => erf(x),
        UnaryOp::Not => f64::NAN,
    }
}

/// std's `asinh` loses accuracy for small and overflows for large arguments.
fn asinh(x: f64) -> f64 {
    let a = x.abs();
    let y = if a > 1e150 {
        a.ln() + std::f64::consts::LN_2
    } else {
        (a + a * a / (1.0 + (a * a + 1.0).sqrt())).ln_1p()
    };
    if x == 0.0 { x } else { y.copysign(x) }
}

fn acosh(x: f64) -> f64 {
    let t = x - 1.0;
    if x < 1.0 {
        f64::NAN
    } else if x > 1e150 {
        x.ln() + std::f64::consts::LN_2
    } else {
        (t + (t * (t + 2.0)).sqrt()).ln_1p()
    }
}

fn atanh(x: f64) -> f64 {
    let a = x.abs();
    if x == 0.0 { x } else { (0.5 * (2.0 * a / (1.0 - a)).ln_1p()).copysign(x) }
}

/// Error function: Taylor series below 1, continued fraction of the complement above
/// (Abramowitz and Stegun 7.1.6 and 7.1.14); accurate to about 1e-15.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if x.is_nan() || a == 0.0 {
        return x;
    }
    let y = if a < 1.0 {
        let (mut term, mut sum) = (a, a);
        let mut n = 1.0;
        while term > sum * 1e-18 {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI * (-a * a).exp()
    } else if a < 6.5 {
        let f = (1..=200).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
        1.0 - (-a * a).exp() / f / std::f64::consts::PI.sqrt()
    } else {
        1.0
    };
    y.copysign(x)
}

pub fn binary(op: BinaryOp, dtype: DType, a: Scalar, b: Scalar) -> Scalar {
    match (a, b) {
        (Scalar::Int(a), Scalar::Int(b)) => Scalar::Int(wrap(dtype, int_binary(op, dtype, a, b))),
        _ => {
            let x = float_binary(op, a.as_f64(), b.as_f64());
            Scalar::Float(round_to(dtype, x, false))
        }
    }
}

fn int_binary(op: BinaryOp, dtype: DType, a: i128, b: i128) -> i128 {
    let width = i128::from(dtype.bits());
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a.wrapping_mul(b),
        BinaryOp::Div => a.checked_div(b).unwrap_or(0),
        BinaryOp::Rem => a.checked_rem(b).unwrap_or(0),
        BinaryOp::Pow => int_pow(dtype, a, b),
        // no meaning on integers; the verifier refuses it
        BinaryOp::Atan2 => 0,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::And => a & b,
        BinaryOp::Or => a | b,
        BinaryOp::Xor => a ^ b,
        BinaryOp::Shl if (0..width).contains(&b) => a << b,
        BinaryOp::Shr if (0..width).contains(&b) => a >> b,
        BinaryOp::Shr if a < 0 => -1,
        BinaryOp::Shl | BinaryOp::Shr => 0,
    }
}

/// Wrapping power; a negative exponent gives the truncated real value (0 also for base 0).
fn int_pow(dtype: DType, base: i128, exp: i128) -> i128 {
    if exp < 0 {
        return match base {
            1 => 1,
            -1 if exp % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut square, mut e) = (1i128, base, exp);
    while e > 0 {
        if e & 1 == 1 {
            result = wrap(dtype, result.wrapping_mul(square));
        }
        square = wrap(dtype, square.wrapping_mul(square));
        e >>= 1;
    }
    result
}

fn float_binary(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Atan2 => a.atan2(b),
        BinaryOp::Min if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Max if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        // bit operations on floats do not exist; the verifier refuses them
        BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => f64::NAN,
    }
}

/// a * b + c, rounded once for f32 and f64.
pub fn fma(dtype: DType, a: Scalar, b: Scalar, c: Scalar) -> Scalar {
    match (a, b, c) {
        (Scalar::Int(a), Scalar::Int(b), Scalar::Int(c)) => {
            Scalar::Int(wrap(dtype, a.wrapping_mul(b).wrapping_add(c)))
        }
        _ if dtype == DType::F32 => {
            let x = (a.as_f64() as f32).mul_add(b.as_f64() as f32, c.as_f64() as f32);
            Scalar::Float(x.into())
        }
        _ => Scalar::Float(round_to(dtype, a.as_f64().mul_add(b.as_f64(), c.as_f64()), false)),
    }
}

pub fn cmp(op: CmpOp, a: Scalar, b: Scalar) -> bool {
    let order = match (a, b) {
        (Scalar::Int(a), Scalar::Int(b)) => Some(a.cmp(&b)),
        _ => a.as_f64().partial_cmp(&b.as_f64()),
    };
    match op {
        CmpOp::Eq => order == Some(Ordering::Equal),
        CmpOp::Ne => order != Some(Ordering::Equal),
        CmpOp::Lt => order == Some(Ordering::Less),
        CmpOp::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        CmpOp::Gt => order == Some(Ordering::Greater),
        CmpOp::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

/// [`crate::Prim::Convert`] of one element.
pub fn convert(to: DType, mode: ConvertMode, from: DType, s: Scalar) -> Scalar {
    let saturate = mode == ConvertMode::Saturate;
    match s {
        _ if to == DType::Bool => Scalar::Int(match s {
            Scalar::Int(i) => i128::from(i != 0),
            Scalar::Float(x) => i128::from(x != 0.0),
        }),
        // i64 and u64 have more digits than f64: convert to the final type at once
        Scalar::Int(i) if to == DType::F32 => Scalar::Float((i as f32).into()),
        Scalar::Int(i) if to.is_float() => {
            // narrow types have so few digits that what f64 cannot hold exactly is far from a tie, or
            // beyond their range
            Scalar::Float(round_to(to, i as f64, saturate))
        }
        Scalar::Int(i) => match to.int_range() {
            Some((lo, hi)) if saturate => Scalar::Int(i.clamp(lo, hi)),
            _ => Scalar::Int(wrap(to, i)),
        },
        Scalar::Float(x) if to.is_float() => {
            let same = to == from;
            Scalar::Float(if same && !saturate { x } else { round_to(to, x, saturate) })
        }
        Scalar::Float(x) => {
            let (lo, hi) = to.int_range().unwrap_or((0, 0));
            Scalar::Int((x as i128).clamp(lo, hi))
        }
    }
}

/// Same bits in another type of the same size.
pub fn bitcast(to: DType, from: DType, s: Scalar) -> Scalar {
    from_bits(to, to_bits(from, s))
}

/// The stored pattern of a value.
pub fn to_bits(dtype: DType, s: Scalar) -> u64 {
    match dtype {
        DType::F64 => s.as_f64().to_bits(),
        DType::F32 => u64::from((s.as_f64() as f32).to_bits()),
        _ => match crate::minifloat::format(dtype) {
            Some(f) => u64::from(f.encode(s.as_f64(), false)),
            None => {
                let bits = s.as_int() as u64;
                match dtype.bytes() {
                    8 => bits,
                    n => bits & ((1 << (8 * n)) - 1),
                }
            }
        },
    }
}

/// The value of a stored pattern; bits beyond the type's width are ignored.
pub fn from_bits(dtype: DType, bits: u64) -> Scalar {
    match dtype {
        DType::F64 => Scalar::Float(f64::from_bits(bits)),
        DType::F32 => Scalar::Float(f32::from_bits(bits as u32).into()),
        _ => match crate::minifloat::format(dtype) {
            Some(f) => Scalar::Float(f.decode(bits as u16)),
            None if dtype == DType::Bool => Scalar::Int((bits & 0xff != 0).into()),
            None => Scalar::Int(wrap(dtype, i128::from(bits))),
        },
    }
}

/// One step of a reduction; `bool` sums and products are "or" and "and".
pub fn combine(monoid: Monoid, dtype: DType, a: Scalar, b: Scalar) -> Scalar {
    match (monoid, dtype) {
        (Monoid::Sum, DType::Bool) => binary(BinaryOp::Or, dtype, a, b),
        _ => binary(monoid.op(), dtype, a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_and_divide_safely() {
        let i = Scalar::Int;
        assert_eq!(binary(BinaryOp::Add, DType::I8, i(127), i(1)), i(-128));
        assert_eq!(binary(BinaryOp::Div, DType::I32, i(5), i(0)), i(0));
        let min = i(i64::MIN.into());
        assert_eq!(binary(BinaryOp::Div, DType::I64, min, i(-1)), min);
        assert_eq!(binary(BinaryOp::Rem, DType::I32, i(-7), i(3)), i(-1));
        assert_eq!(binary(BinaryOp::Shl, DType::I32, i(1), i(32)), i(0));
        assert_eq!(binary(BinaryOp::Shr, DType::U8, i(0x80), i(7)), i(1));
        assert_eq!(binary(BinaryOp::Shr, DType::I32, i(-5), i(40)), i(-1));
        assert_eq!(binary(BinaryOp::Pow, DType::U8, i(3), i(6)), i(729 % 256));
        assert_eq!(unary(UnaryOp::Neg, DType::I8, i(-128)), i(-128));
    }

    #[test]
    fn conversions() {
        let c = |to, s| convert(to, ConvertMode::Plain, DType::F64, s);
        assert_eq!(c(DType::I8, Scalar::Float(-1e9)), Scalar::Int(-128));
        assert_eq!(c(DType::U8, Scalar::Float(f64::NAN)), Scalar::Int(0));
        assert_eq!(c(DType::F16, Scalar::Float(1e9)), Scalar::Float(f64::INFINITY));
        assert_eq!(c(DType::I8, Scalar::Int(200)), Scalar::Int(-56));
        let sat = convert(DType::I8, ConvertMode::Saturate, DType::I32, Scalar::Int(200));
        assert_eq!(sat, Scalar::Int(127));
        assert_eq!(bitcast(DType::I32, DType::F32, Scalar::Float(1.0)), Scalar::Int(0x3f80_0000));
    }

    #[test]
    fn erf_values() {
        for (x, y) in [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (3.5, 0.9999992569016276)] {
            assert!((erf(x) - y).abs() < 2e-16, "{x}");
        }
        assert_eq!(erf(-9.0), -1.0);
    }
}
