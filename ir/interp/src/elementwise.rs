//! Sources and elementwise primitives.

use crate::context::Cx;
use crate::error::OpError;
use crate::float::int_to_odd;
use crate::number::{Number, float_to_int, int_to_float, store_saturating};
use crate::view::View;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};
use ir::{DType, Tensor};
use std::cmp::Ordering;

type Result<T> = std::result::Result<T, OpError>;

/// Element value = its index along `axis`, rounded or wrapped to the type.
pub(crate) fn iota(cx: &Cx, dtype: DType, shape: Vec<usize>, axis: usize) -> Result<Tensor> {
    if axis >= shape.len() {
        return Err(OpError::mismatch("axis", format!("below {}", shape.len()), axis));
    }
    let mut out = cx.zeros(dtype, shape)?;
    let n = out.elems();
    cx.spend(n)?;
    if n == 0 {
        return Ok(out);
    }
    let inner: usize = out.shape[axis + 1..].iter().product();
    let extent = out.shape[axis];
    let value = |i: usize| (i / inner % extent) as i128;
    if let Some(store) = <i128 as Number>::store(dtype) {
        (0..n).for_each(|i| store(value(i), &mut out.data, i));
    } else if let Some(store) = <f64 as Number>::store(dtype) {
        (0..n).for_each(|i| store(int_to_odd(value(i)), &mut out.data, i));
    } else {
        return Err(OpError::Undefined { prim: "iota", dtype });
    }
    Ok(out)
}

/// Finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(crate) fn split_mix(state: u64) -> u64 {
    let z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// The `i`-th word of the stream that `key` names.
pub(crate) fn random_word(key: u64, i: u64) -> u64 {
    split_mix(key.wrapping_add(i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

pub(crate) fn random_bits(cx: &Cx, key: View, shape: Vec<usize>) -> Result<Tensor> {
    let key = key.int()? as u64;
    let mut out = cx.zeros(DType::U64, shape)?;
    cx.spend(out.elems())?;
    for (i, word) in out.data.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&random_word(key, i as u64).to_le_bytes());
    }
    Ok(out)
}

/// The function of `f64`, where the operation is defined on floats.
fn float_function(op: UnaryOp) -> Option<fn(f64) -> f64> {
    Some(match op {
        UnaryOp::Neg => |x| -x,
        UnaryOp::Abs => f64::abs,
        UnaryOp::Floor => f64::floor,
        UnaryOp::Ceil => f64::ceil,
        UnaryOp::Trunc => f64::trunc,
        UnaryOp::RoundEven => f64::round_ties_even,
        UnaryOp::Sqrt => f64::sqrt,
        UnaryOp::Exp => libm::exp,
        UnaryOp::Expm1 => libm::expm1,
        UnaryOp::Log => libm::log,
        UnaryOp::Log1p => libm::log1p,
        UnaryOp::Sin => libm::sin,
        UnaryOp::Cos => libm::cos,
        UnaryOp::Tan => libm::tan,
        UnaryOp::Asin => libm::asin,
        UnaryOp::Acos => libm::acos,
        UnaryOp::Atan => libm::atan,
        UnaryOp::Sinh => libm::sinh,
        UnaryOp::Cosh => libm::cosh,
        UnaryOp::Asinh => libm::asinh,
        // libm's has values below 1, where there are none
        UnaryOp::Acosh => |x| if x < 1.0 { f64::NAN } else { libm::acosh(x) },
        UnaryOp::Atanh => libm::atanh,
        UnaryOp::Tanh => libm::tanh,
        UnaryOp::Erf => libm::erf,
        UnaryOp::Not => return None,
    })
}

/// The function of integers (and of `bool`, for `Not` alone), where the operation is defined on them.
fn int_function(op: UnaryOp, dtype: DType) -> Option<fn(i128) -> i128> {
    Some(match op {
        UnaryOp::Not if dtype == DType::Bool => |x| (x == 0).into(),
        UnaryOp::Not => |x| !x,
        UnaryOp::Neg if dtype.is_int() => |x| -x,
        UnaryOp::Abs if dtype.is_int() => i128::abs,
        _ => return None,
    })
}

fn map1<N: Number>(cx: &Cx, x: View, f: impl Fn(N) -> N) -> Result<Tensor> {
    let undefined = OpError::Undefined { prim: "map", dtype: x.dtype };
    let (Some(load), Some(store)) = (N::load(x.dtype), N::store(x.dtype)) else {
        return Err(undefined);
    };
    let mut out = cx.zeros(x.dtype, x.shape.to_vec())?;
    cx.spend(x.elems())?;
    for i in 0..x.elems() {
        store(f(load(x.bytes, i)), &mut out.data, i);
    }
    Ok(out)
}

pub(crate) fn unary(cx: &Cx, op: UnaryOp, x: View) -> Result<Tensor> {
    let dtype = x.dtype;
    if dtype.is_float()
        && let Some(f) = float_function(op)
    {
        map1::<f64>(cx, x, f)
    } else if !dtype.is_float()
        && let Some(f) = int_function(op, dtype)
    {
        map1::<i128>(cx, x, f)
    } else {
        Err(OpError::Undefined { prim: op.name(), dtype })
    }
}

/// Operands have one type and one shape.
pub(crate) fn same(a: View, b: View) -> Result<()> {
    if a.dtype == b.dtype && a.shape == b.shape {
        return Ok(());
    }
    Err(OpError::mismatch("operands of equal type", a.describe(), b.describe()))
}

pub(crate) fn binary(cx: &Cx, op: BinaryOp, a: View, b: View) -> Result<Tensor> {
    same(a, b)?;
    let undefined = OpError::Undefined { prim: op.name(), dtype: a.dtype };
    use BinaryOp::*;
    if a.dtype == DType::Bool && !matches!(op, And | Or | Xor | Min | Max) {
        return Err(undefined);
    }
    fn zip<N: Number>(cx: &Cx, op: BinaryOp, a: View, b: View) -> Result<Tensor> {
        let (Some(f), Some(load), Some(store)) = (N::binary(op), N::load(a.dtype), N::store(a.dtype)) else {
            return Err(OpError::Undefined { prim: op.name(), dtype: a.dtype });
        };
        let mut out = cx.zeros(a.dtype, a.shape.to_vec())?;
        cx.spend(a.elems())?;
        for i in 0..a.elems() {
            let y = f(load(a.bytes, i), load(b.bytes, i), a.dtype.bits());
            store(y, &mut out.data, i);
        }
        Ok(out)
    }
    if a.dtype.is_float() { zip::<f64>(cx, op, a, b) } else { zip::<i128>(cx, op, a, b) }
}

pub(crate) fn cmp(cx: &Cx, op: CmpOp, a: View, b: View) -> Result<Tensor> {
    same(a, b)?;
    // `None` is a comparison with NaN: only `Ne` holds
    let holds = |order: Option<Ordering>| match op {
        CmpOp::Eq => order == Some(Ordering::Equal),
        CmpOp::Ne => order != Some(Ordering::Equal),
        CmpOp::Lt => order == Some(Ordering::Less),
        CmpOp::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        CmpOp::Gt => order == Some(Ordering::Greater),
        CmpOp::Ge => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    };
    fn orders<'a, N: Number>(a: View<'a>, b: View<'a>) -> impl Fn(usize) -> Option<Ordering> + 'a {
        let load = N::load(a.dtype);
        move |i| load.and_then(|load| load(a.bytes, i).compare(load(b.bytes, i)))
    }
    let mut out = cx.zeros(DType::Bool, a.shape.to_vec())?;
    cx.spend(a.elems())?;
    let mut fill = |order: &dyn Fn(usize) -> Option<Ordering>| {
        out.data.iter_mut().enumerate().for_each(|(i, o)| *o = holds(order(i)).into());
    };
    match a.dtype {
        DType::String => fill(&|i| Some(a.strings[i].cmp(&b.strings[i]))),
        d if d.is_float() => fill(&orders::<f64>(a, b)),
        _ => fill(&orders::<i128>(a, b)),
    }
    Ok(out)
}

pub(crate) fn select(cx: &Cx, cond: View, a: View, b: View) -> Result<Tensor> {
    same(a, b)?;
    if cond.dtype != DType::Bool || cond.shape != a.shape {
        let want = format!("bool{:?}", a.shape);
        return Err(OpError::mismatch("condition", want, cond.describe()));
    }
    let n = cx.room(a.shape, a.dtype.bytes())?;
    cx.spend(n)?;
    let mut out = crate::view::Gathered::new(a.dtype, n);
    for i in 0..n {
        out.push(if cond.bytes[i] != 0 { &a } else { &b }, i, 1);
    }
    Ok(out.into_tensor(a.shape.to_vec()))
}

pub(crate) fn convert(cx: &Cx, x: View, to: DType, mode: ConvertMode) -> Result<Tensor> {
    let n = x.elems();
    let undefined = OpError::Undefined { prim: "convert", dtype: x.dtype };
    let mut out = cx.zeros(to, x.shape.to_vec())?;
    cx.spend(n)?;
    let saturate = mode == ConvertMode::Saturate;
    let store_float = if saturate { store_saturating(to) } else { <f64 as Number>::store(to) };
    let store_int = <i128 as Number>::store(to);
    let out_bytes = &mut out.data;
    match (<f64 as Number>::load(x.dtype), <i128 as Number>::load(x.dtype)) {
        (Some(load), _) => match (store_float, store_int) {
            (Some(store), _) => (0..n).for_each(|i| store(load(x.bytes, i), out_bytes, i)),
            (_, Some(store)) => {
                (0..n).for_each(|i| store(float_to_int(load(x.bytes, i), to), out_bytes, i));
            }
            _ => return Err(undefined),
        },
        (_, Some(load)) => match (store_float, store_int, to.int_range()) {
            (Some(store), ..) => {
                (0..n).for_each(|i| store(int_to_float(load(x.bytes, i), to), out_bytes, i));
            }
            (_, Some(store), Some((lo, hi))) => (0..n).for_each(|i| {
                let v = load(x.bytes, i);
                store(if saturate && to != DType::Bool { v.clamp(lo, hi) } else { v }, out_bytes, i);
            }),
            _ => return Err(undefined),
        },
        _ => return Err(undefined),
    }
    Ok(out)
}

pub(crate) fn bitcast(cx: &Cx, x: View, to: DType) -> Result<Tensor> {
    if x.dtype == DType::String || to == DType::String || x.dtype.bytes() != to.bytes() {
        return Err(OpError::mismatch("bitcast", format!("a type as wide as {}", x.dtype), to));
    }
    cx.room(x.shape, to.bytes())?;
    cx.spend(x.elems())?;
    Ok(Tensor::new(to, x.shape.to_vec(), x.bytes.to_vec()))
}
