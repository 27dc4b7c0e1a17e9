//! Elements as numbers: floats of every kind as `f64`, integers and booleans as `i128`.
//!
//! Each result is computed in that wide type and rounded (or wrapped) once when it is stored. For
//! `+ - * / sqrt` on `f32` and narrower that is the correctly rounded result: `f64` has more than
//! twice their precision.

use crate::float::{decode_e8m0, encode_e8m0, format, int_to_odd};
use ir::DType;
use ir::dtype::Scalar;
use ir::prim::BinaryOp;
use std::cmp::Ordering;

/// Reads element `i` of a buffer.
pub(crate) type Load<N> = fn(&[u8], usize) -> N;
/// Writes element `i` of a buffer.
pub(crate) type Store<N> = fn(N, &mut [u8], usize);

/// The two wide types.
pub(crate) trait Number: Copy + 'static {
    /// Reader of elements of `dtype`; `None` where the type is of the other class.
    fn load(dtype: DType) -> Option<Load<Self>>;
    /// Writer of elements of `dtype`; rounds to nearest even, integers wrap.
    fn store(dtype: DType) -> Option<Store<Self>>;
    /// The function, where it is defined on this class. `bits` is the width of the integer type.
    fn binary(op: BinaryOp) -> Option<fn(Self, Self, u32) -> Self>;
    fn scalar(s: Scalar) -> Self;
    /// Ascending; NaN is the largest and equal to itself, zeros of both signs are equal.
    fn order(self, other: Self) -> Ordering;
    /// IEEE comparison: `None` with a NaN.
    fn compare(self, other: Self) -> Option<Ordering>;
    fn is_nan(self) -> bool;
}

fn bytes<const N: usize>(data: &[u8], i: usize) -> [u8; N] {
    let mut b = [0; N];
    b.copy_from_slice(&data[i * N..(i + 1) * N]);
    b
}

fn put<const N: usize>(b: [u8; N], data: &mut [u8], i: usize) {
    data[i * N..(i + 1) * N].copy_from_slice(&b);
}

/// Reader of a narrow float type; a constant parameter cannot be a `DType`, so its index it is.
fn narrow1<const D: usize>(data: &[u8], i: usize) -> f64 {
    format(DType::ALL[D]).map_or(f64::NAN, |f| f.decode(data[i].into()))
}
fn narrow2<const D: usize>(data: &[u8], i: usize) -> f64 {
    format(DType::ALL[D]).map_or(f64::NAN, |f| f.decode(u16::from_le_bytes(bytes(data, i)).into()))
}
fn put_narrow1<const D: usize, const SATURATE: bool>(x: f64, data: &mut [u8], i: usize) {
    data[i] = format(DType::ALL[D]).map_or(0, |f| f.encode(x, SATURATE)) as u8;
}
fn put_narrow2<const D: usize, const SATURATE: bool>(x: f64, data: &mut [u8], i: usize) {
    let code = format(DType::ALL[D]).map_or(0, |f| f.encode(x, SATURATE)) as u16;
    put(code.to_le_bytes(), data, i);
}

/// One sign and payload for every NaN that is computed, so that results do not depend on the host.
fn canonical(x: f64) -> f64 {
    if x.is_nan() { f64::NAN } else { x }
}

fn store_float<const SATURATE: bool>(dtype: DType) -> Option<Store<f64>> {
    use DType as D;
    fn finite<const SATURATE: bool>(x: f64, max: f64) -> f64 {
        if SATURATE { x.clamp(-max, max) } else { x }
    }
    Some(match dtype {
        D::F64 => |x, d, i| put(canonical(finite::<SATURATE>(x, f64::MAX)).to_le_bytes(), d, i),
        D::F32 => |x, d, i| {
            let x = canonical(finite::<SATURATE>(x, f32::MAX.into())) as f32;
            put(x.to_le_bytes(), d, i);
        },
        D::F16 => put_narrow2::<{ D::F16 as usize }, SATURATE>,
        D::BF16 => put_narrow2::<{ D::BF16 as usize }, SATURATE>,
        D::F8E4M3FN => put_narrow1::<{ D::F8E4M3FN as usize }, SATURATE>,
        D::F8E4M3FNUZ => put_narrow1::<{ D::F8E4M3FNUZ as usize }, SATURATE>,
        D::F8E5M2 => put_narrow1::<{ D::F8E5M2 as usize }, SATURATE>,
        D::F8E5M2FNUZ => put_narrow1::<{ D::F8E5M2FNUZ as usize }, SATURATE>,
        D::F4E2M1 => put_narrow1::<{ D::F4E2M1 as usize }, SATURATE>,
        D::F8E8M0 => |x, d, i| d[i] = encode_e8m0(x, SATURATE),
        _ => return None,
    })
}

/// As [`Number::store`] of `f64`, where out-of-range values become the nearest finite one.
pub(crate) fn store_saturating(dtype: DType) -> Option<Store<f64>> {
    store_float::<true>(dtype)
}

impl Number for f64 {
    fn load(dtype: DType) -> Option<Load<f64>> {
        use DType as D;
        Some(match dtype {
            D::F64 => |d, i| f64::from_le_bytes(bytes(d, i)),
            D::F32 => |d, i| f32::from_le_bytes(bytes(d, i)).into(),
            D::F16 => narrow2::<{ D::F16 as usize }>,
            D::BF16 => narrow2::<{ D::BF16 as usize }>,
            D::F8E4M3FN => narrow1::<{ D::F8E4M3FN as usize }>,
            D::F8E4M3FNUZ => narrow1::<{ D::F8E4M3FNUZ as usize }>,
            D::F8E5M2 => narrow1::<{ D::F8E5M2 as usize }>,
            D::F8E5M2FNUZ => narrow1::<{ D::F8E5M2FNUZ as usize }>,
            D::F4E2M1 => |d, i| narrow1::<{ D::F4E2M1 as usize }>(&[d[i] & 15], 0),
            D::F8E8M0 => |d, i| decode_e8m0(d[i]),
            _ => return None,
        })
    }
    fn store(dtype: DType) -> Option<Store<f64>> {
        store_float::<false>(dtype)
    }
    fn binary(op: BinaryOp) -> Option<fn(f64, f64, u32) -> f64> {
        Some(match op {
            BinaryOp::Add => |a, b, _| a + b,
            BinaryOp::Sub => |a, b, _| a - b,
            BinaryOp::Mul => |a, b, _| a * b,
            BinaryOp::Div => |a, b, _| a / b,
            BinaryOp::Rem => |a, b, _| a % b,
            BinaryOp::Pow => |a, b, _| libm::pow(a, b),
            BinaryOp::Atan2 => |a, b, _| libm::atan2(a, b),
            BinaryOp::Min => |a, b, _| extreme(a, b, Ordering::Less),
            BinaryOp::Max => |a, b, _| extreme(a, b, Ordering::Greater),
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr => {
                return None;
            }
        })
    }
    fn scalar(s: Scalar) -> f64 {
        s.as_f64()
    }
    fn order(self, other: f64) -> Ordering {
        match (self.is_nan(), other.is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.partial_cmp(&other).unwrap_or(Ordering::Equal),
        }
    }
    fn compare(self, other: f64) -> Option<Ordering> {
        self.partial_cmp(&other)
    }
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }
}

/// The operand on the `side` of the other; NaN propagates; -0 is below +0 (IEEE 754-2019 minimum, maximum).
fn extreme(a: f64, b: f64, side: Ordering) -> f64 {
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    if a.total_cmp(&b) == side { a } else { b }
}

impl Number for i128 {
    fn load(dtype: DType) -> Option<Load<i128>> {
        use DType as D;
        Some(match dtype {
            D::I64 => |d, i| i64::from_le_bytes(bytes(d, i)).into(),
            D::I32 => |d, i| i32::from_le_bytes(bytes(d, i)).into(),
            D::I16 => |d, i| i16::from_le_bytes(bytes(d, i)).into(),
            D::I8 => |d, i| (d[i] as i8).into(),
            D::U64 => |d, i| u64::from_le_bytes(bytes(d, i)).into(),
            D::U32 => |d, i| u32::from_le_bytes(bytes(d, i)).into(),
            D::U16 => |d, i| u16::from_le_bytes(bytes(d, i)).into(),
            D::U8 => |d, i| d[i].into(),
            D::I4 => |d, i| ((d[i] << 4) as i8 >> 4).into(),
            D::U4 => |d, i| (d[i] & 15).into(),
            D::I2 => |d, i| ((d[i] << 6) as i8 >> 6).into(),
            D::U2 => |d, i| (d[i] & 3).into(),
            D::Bool => |d, i| (d[i] != 0).into(),
            _ => return None,
        })
    }
    fn store(dtype: DType) -> Option<Store<i128>> {
        use DType as D;
        Some(match dtype {
            D::I64 | D::U64 => |x, d, i| put((x as i64).to_le_bytes(), d, i),
            D::I32 | D::U32 => |x, d, i| put((x as i32).to_le_bytes(), d, i),
            D::I16 | D::U16 => |x, d, i| put((x as i16).to_le_bytes(), d, i),
            D::I8 | D::U8 => |x, d, i| d[i] = x as u8,
            D::I4 => |x, d, i| d[i] = (((x as u8) << 4) as i8 >> 4) as u8,
            D::U4 => |x, d, i| d[i] = x as u8 & 15,
            D::I2 => |x, d, i| d[i] = (((x as u8) << 6) as i8 >> 6) as u8,
            D::U2 => |x, d, i| d[i] = x as u8 & 3,
            D::Bool => |x, d, i| d[i] = (x != 0).into(),
            _ => return None,
        })
    }
    fn binary(op: BinaryOp) -> Option<fn(i128, i128, u32) -> i128> {
        Some(match op {
            BinaryOp::Add => |a, b, _| a.wrapping_add(b),
            BinaryOp::Sub => |a, b, _| a.wrapping_sub(b),
            BinaryOp::Mul => |a, b, _| a.wrapping_mul(b),
            BinaryOp::Div => |a, b, _| if b == 0 { 0 } else { a.wrapping_div(b) },
            BinaryOp::Rem => |a, b, _| if b == 0 { 0 } else { a.wrapping_rem(b) },
            BinaryOp::Pow => |a, b, _| int_pow(a, b),
            BinaryOp::Min => |a, b, _| a.min(b),
            BinaryOp::Max => |a, b, _| a.max(b),
            BinaryOp::And => |a, b, _| a & b,
            BinaryOp::Or => |a, b, _| a | b,
            BinaryOp::Xor => |a, b, _| a ^ b,
            BinaryOp::Shl => |a, b, bits| if (0..i128::from(bits)).contains(&b) { a << b } else { 0 },
            BinaryOp::Shr => |a, b, bits| if (0..i128::from(bits)).contains(&b) { a >> b } else { a >> 127 },
            BinaryOp::Atan2 => return None,
        })
    }
    fn scalar(s: Scalar) -> i128 {
        s.as_int()
    }
    fn order(self, other: i128) -> Ordering {
        self.cmp(&other)
    }
    fn compare(self, other: i128) -> Option<Ordering> {
        Some(self.cmp(&other))
    }
    fn is_nan(self) -> bool {
        false
    }
}

/// Wrapping power; a negative exponent truncates the real value towards zero, with 1 / 0 = 0.
fn int_pow(base: i128, exponent: i128) -> i128 {
    if exponent < 0 {
        return match base {
            1 => 1,
            -1 if exponent % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut square, mut left) = (1i128, base, exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    result
}

/// An integer on its way into a float type, such that storing it rounds correctly.
pub(crate) fn int_to_float(x: i128, to: DType) -> f64 {
    if to == DType::F64 { x as f64 } else { int_to_odd(x) }
}

/// Truncates towards zero and saturates at the range of `to`; NaN gives 0; bool is `x != 0`.
pub(crate) fn float_to_int(x: f64, to: DType) -> i128 {
    if to == DType::Bool {
        return (x != 0.0).into();
    }
    let (lo, hi) = to.int_range().unwrap_or((0, 0));
    // `as` truncates, saturates and maps NaN to 0
    (x as i128).clamp(lo, hi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(dtype: DType, x: i128) -> i128 {
        let mut b = [0; 8];
        <i128 as Number>::store(dtype).expect("an integer type")(x, &mut b, 0);
        <i128 as Number>::load(dtype).expect("an integer type")(&b, 0)
    }

    #[test]
    fn integers_wrap_at_their_width() {
        for dtype in DType::ALL {
            let Some((lo, hi)) = dtype.int_range() else { continue };
            assert_eq!(round_trip(dtype, lo), lo, "{dtype}");
            assert_eq!(round_trip(dtype, hi), hi, "{dtype}");
            if dtype != DType::Bool {
                assert_eq!(round_trip(dtype, hi + 1), lo, "{dtype}");
                assert_eq!(round_trip(dtype, lo - 1), hi, "{dtype}");
            }
        }
    }

    #[test]
    fn each_type_belongs_to_one_class() {
        for dtype in DType::ALL {
            let (f, i) = (<f64 as Number>::load(dtype), <i128 as Number>::load(dtype));
            assert_eq!(f.is_some(), dtype.is_float());
            assert_eq!(i.is_some(), dtype.is_int() || dtype == DType::Bool);
            assert_eq!(<f64 as Number>::store(dtype).is_some(), f.is_some());
            assert_eq!(<i128 as Number>::store(dtype).is_some(), i.is_some());
        }
    }

    #[test]
    fn integer_power() {
        let cases = [
            (2, 10, 1024),
            (-3, 3, -27),
            (0, 0, 1),
            (7, 0, 1),
            (2, -1, 0),
            (1, -5, 1),
            (-1, -5, -1),
            (-1, -4, 1),
            (0, -1, 0),
        ];
        for (a, b, want) in cases {
            assert_eq!(int_pow(a, b), want, "{a} ^ {b}");
        }
    }

    #[test]
    fn floats_to_integers_saturate() {
        let cases = [
            (DType::I8, 300.7, 127),
            (DType::I8, -300.7, -128),
            (DType::U8, -1.5, 0),
            (DType::I32, 2.9, 2),
            (DType::I32, -2.9, -2),
            (DType::I64, f64::INFINITY, i64::MAX.into()),
            (DType::U64, 1e30, u64::MAX.into()),
            (DType::I16, f64::NAN, 0),
            (DType::Bool, f64::NAN, 1),
            (DType::Bool, -0.0, 0),
            (DType::Bool, 0.25, 1),
            (DType::U2, 9.0, 3),
            (DType::I4, -9.0, -8),
        ];
        for (to, x, want) in cases {
            assert_eq!(float_to_int(x, to), want, "{x} to {to}");
        }
    }
}
