//! Sources and sizes: constants, shapes, ranges.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::tensor::Tensor;
use ir::{ConstData, ConstSource, DType, Dim};

pub static OPS: &[Op] = &[
    op("Constant", 1, constant),
    op("ConstantOfShape", 9, constant_of_shape),
    op("EyeLike", 9, eye_like),
    op("Range", 11, range),
    op("Shape", 1, shape),
    op("Size", 1, size),
];

fn constant(cx: &mut NodeCx) -> OpResult {
    if let Some(c) = cx.tensor_attr("value")? {
        return Ok(cx.b.constant_data(c)?.into());
    }
    if let Some(x) = cx.attrs.float("value_float")? {
        return Ok(cx.b.constant(Tensor::from_f32(vec![], &[x]))?.into());
    }
    if let Some(x) = cx.attrs.floats("value_floats")? {
        return Ok(cx.b.constant(Tensor::from_f32(vec![x.len()], x))?.into());
    }
    if let Some(x) = cx.attrs.int("value_int")? {
        return Ok(cx.b.scalar_i64(x)?.into());
    }
    if let Some(x) = cx.attrs.ints("value_ints")? {
        return Ok(cx.b.vector_i64(x)?.into());
    }
    let strings = match (cx.attrs.str("value_string")?, cx.attrs.strs("value_strings")?) {
        (Some(s), _) => Some((vec![], vec![s.to_owned()])),
        (_, Some(s)) => Some((vec![s.len()], s.into_iter().map(str::to_owned).collect::<Vec<_>>())),
        _ => None,
    };
    if let Some((shape, text)) = strings {
        let source = ConstSource::Strings(text.into());
        return Ok(cx.b.constant_data(ConstData { dtype: DType::String, shape, source, name: None })?.into());
    }
    Err(if cx.attrs.has("sparse_value") {
        OpError::unsupported(Code::Attribute, "sparse constants are not supported")
    } else {
        OpError::invalid(Code::Attribute, "no value")
    })
}

/// `start..end` of the dims, with Python's treatment of negative and excessive bounds.
fn shape(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let dims = cx.shape(x);
    let r = dims.len() as i64;
    let bound = |i: i64| (if i < 0 { i + r } else { i }).clamp(0, r) as usize;
    let start = bound(cx.int("start", 0)?);
    let end = bound(cx.int("end", i64::MAX)?).max(start);
    Ok(cx.b.dims_vector(&dims[start..end])?.into())
}

fn size(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let n = Dim::product(&cx.shape(x));
    Ok(cx.b.dim_value(&n)?.into())
}

fn constant_of_shape(cx: &mut NodeCx) -> OpResult {
    let s = cx.input(0)?;
    let dims = cx.sizes_of(s, 0)?;
    let value = match cx.tensor_attr("value")? {
        Some(c) => cx.b.constant_data(c)?,
        None => cx.b.scalar(DType::F32, 0.0)?,
    };
    let value = cx.as_scalar(value)?;
    Ok(cx.b.broadcast_to(value, &dims)?.into())
}

/// Ones on diagonal `k` of a matrix of the input's shape.
fn eye_like(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("input", x, 2)?;
    let dims = cx.shape(x);
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(cx.dtype(x));
    let k = cx.int("k", 0)?;
    let rows = cx.b.iota(DType::I64, &dims, 0)?;
    let cols = cx.b.iota(DType::I64, &dims, 1)?;
    let k = cx.b.scalar_i64(k)?;
    let at = cx.b.add(rows, k)?;
    let hit = cx.b.eq(at, cols)?;
    Ok(cx.b.convert(hit, dtype)?.into())
}

/// `start + i * delta` for `i < max(0, ceil((limit - start) / delta))`.
fn range(cx: &mut NodeCx) -> OpResult {
    let (start, limit, delta) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (start, limit, delta) = (cx.as_scalar(start)?, cx.as_scalar(limit)?, cx.as_scalar(delta)?);
    let dtype = cx.dtype(start);
    let count = if dtype.is_int() {
        integer_count(cx, start, limit, delta)?
    } else {
        // in f64, as a quotient of f32 may round across an integer
        let wide = |cx: &mut NodeCx, v: V| cx.b.convert(v, DType::F64);
        let (s, l, d) = (wide(cx, start)?, wide(cx, limit)?, wide(cx, delta)?);
        let count = match (cx.const_f64(s), cx.const_f64(l), cx.const_f64(d)) {
            (Some(s), Some(l), Some(d)) => {
                if d == 0.0 {
                    return Err(OpError::invalid(Code::Shape, "a delta of 0"));
                }
                cx.b.scalar_i64(((l - s) / d).ceil().max(0.0).min(Dim::LIMIT as f64) as i64)?
            }
            _ => {
                let span = cx.b.sub(l, s)?;
                let n = cx.b.div(span, d)?;
                let n = cx.b.ceil(n)?;
                let zero = cx.b.scalar(DType::F64, 0.0)?;
                let n = cx.b.max(n, zero)?;
                cx.b.convert(n, DType::I64)?
            }
        };
        cx.size_of(count, 0)?
    };
    let i = cx.b.iota(dtype, std::slice::from_ref(&count), 0)?;
    let steps = cx.b.mul(i, delta)?;
    Ok(cx.b.add(start, steps)?.into())
}

fn integer_count(cx: &mut NodeCx, start: V, limit: V, delta: V) -> Result<Dim, OpError> {
    if let Some([d]) = cx.b.known_ints(delta).as_deref() {
        let d = *d;
        if d == 0 {
            return Err(OpError::invalid(Code::Shape, "a delta of 0"));
        }
        let (s, l) = (cx.size_of(start, -Dim::LIMIT)?, cx.size_of(limit, -Dim::LIMIT)?);
        let facts = cx.b.symbols();
        let span = if d > 0 { l - s } else { s - l };
        return Ok(span
            .max_with(&Dim::from(0), facts)
            .ceil_div(&Dim::from(d.unsigned_abs().min(1 << 48) as i64), facts));
    }
    // ceil((limit - start) / delta) with a run-time delta of any sign: -floor(-span / delta)
    let wide = |cx: &mut NodeCx, v: V| cx.b.convert(v, DType::I64);
    let (s, l, d) = (wide(cx, start)?, wide(cx, limit)?, wide(cx, delta)?);
    let zero = cx.b.scalar_i64(0)?;
    let span = cx.b.sub(l, s)?;
    let negative = cx.b.lt(d, zero)?;
    let minus_span = cx.b.neg(span)?;
    let span = cx.b.select(negative, minus_span, span)?;
    let step = cx.b.abs(d)?;
    let one = cx.b.scalar_i64(1)?;
    let top = cx.b.add(span, step)?;
    let top = cx.b.sub(top, one)?;
    let n = cx.b.div(top, step)?;
    let n = cx.b.max(n, zero)?;
    let positive = cx.b.gt(span, zero)?;
    let n = cx.b.select(positive, n, zero)?;
    cx.size_of(n, 0)
}
