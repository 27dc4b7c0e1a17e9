//! More operators of com.microsoft: fused elementwise steps, channels-last forms, quantised ones, and the names that
//! operators of the standard had there before they were standardised.

use super::compose::{self, call_n, int_attr, wide};
use super::microsoft::{activated, attention_of, fused_matmul, nhwc_conv, one, unpack};
use super::qlinear::{quantized, real};
use super::quant::{Granularity, dequantize, matmul_integer, multiplier};
use super::trees::floats;
use super::{Op, delegate, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Outs};
use ir::build::{Builder, V};
use ir::{DType, Dim, Result};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[
    op_in(MS, "BiasAdd", bias_add),
    op_in(MS, "BiasSoftmax", bias_softmax),
    op_in(MS, "BiasSplitGelu", bias_split_gelu),
    op_in(MS, "CDist", cdist),
    op_in(MS, "DynamicQuantizeLSTM", dynamic_quantize_lstm),
    op_in(MS, "ExpandDims", expand_dims),
    op_in(MS, "FusedMatMulActivation", |cx| {
        let out = fused_matmul(cx)?;
        activated(cx, out)
    }),
    op_in(MS, "GatherBlockQuantized", gather_block_quantized),
    op_in(MS, "GatherND", |cx| standard(cx, "GatherND", 13)),
    op_in(MS, "GridSample", |cx| standard(cx, "GridSample", 16)),
    op_in(MS, "MatMulBnb4", matmul_bnb4),
    op_in(MS, "NhwcFusedConv", |cx| {
        let sum = cx.opt(3)?;
        let mut out = nhwc_conv(cx)?;
        if let Some(sum) = sum {
            let y = one(out)?;
            out = cx.b.add(y, sum)?.into();
        }
        activated(cx, out)
    }),
    op_in(MS, "NhwcMaxPool", nhwc_max_pool),
    op_in(MS, "Pad", |cx| standard(cx, "Pad", 13)),
    op_in(MS, "QAttention", quantized_attention),
    op_in(MS, "QLinearConv", qlinear_conv),
    op_in(MS, "QLinearReduceMean", qlinear_reduce_mean),
    op_in(MS, "QLinearWhere", qlinear_where),
    op_in(MS, "Range", |cx| standard(cx, "Range", 11)),
    op_in(MS, "ReduceSumInteger", reduce_sum_integer),
    op_in(MS, "TransposeMatMul", fused_matmul),
    op_in(MS, "Trilu", |cx| standard(cx, "Trilu", 14)),
    op_in(MS, "Unique", |cx| standard(cx, "Unique", 11)),
];

/// An operator that the standard took over as it was.
fn standard(cx: &mut NodeCx, name: &str, opset: i64) -> OpResult {
    let inputs = (0..cx.input_count()).map(|i| cx.opt(i)).collect::<Result<Vec<_>, _>>()?;
    delegate(cx, name, opset, &inputs)
}

/// `x + bias + skip`.
fn bias_add(cx: &mut NodeCx) -> OpResult {
    let (x, bias, skip) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let sum = cx.b.add(x, bias)?;
    Ok(cx.b.add(sum, skip)?.into())
}

fn bias_softmax(cx: &mut NodeCx) -> OpResult {
    let (x, bias) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    let axis = cx.axis_attr("axis", 1, rank)?;
    let sum = cx.b.add(x, bias)?;
    let axes: Vec<usize> = (axis..rank).collect();
    Ok(compose::softmax(cx.b, sum, &axes)?.into())
}

/// `left * gelu(right)` of the halves of the last dim of `x + bias`.
fn bias_split_gelu(cx: &mut NodeCx) -> OpResult {
    let (x, bias) = (cx.input(0)?, cx.input(1)?);
    let axis =
        cx.rank(x).checked_sub(1).ok_or_else(|| OpError::invalid(Code::Shape, "a scalar has no halves"))?;
    let b = &mut *cx.b;
    let x = b.add(x, bias)?;
    let half = b.shape(x)[axis].floor_div(&Dim::from(2), b.symbols());
    let parts = b.split(x, axis, &[half.clone(), half])?;
    let gate = compose::gelu(b, parts[1])?;
    Ok(b.mul(parts[0], gate)?.into())
}

/// Distances between the rows of a[M, K] and c[N, K]: [M, N].
fn cdist(cx: &mut NodeCx) -> OpResult {
    let (a, c) = (cx.input(0)?, cx.input(1)?);
    cx.check_rank("A", a, 2)?;
    cx.check_rank("B", c, 2)?;
    let root = match cx.string("metric", "sqeuclidean")? {
        "sqeuclidean" => false,
        "euclidean" => true,
        other => return Err(OpError::invalid(Code::Attribute, format!("metric {other:?}"))),
    };
    let b = &mut *cx.b;
    let (a, c) = (b.unsqueeze(a, &[1])?, b.unsqueeze(c, &[0])?);
    let d = b.sub(a, c)?;
    let sq = b.mul(d, d)?;
    let sum = b.reduce_sum(sq, &[2], false)?;
    Ok(if root { b.sqrt(sum)? } else { sum }.into())
}

fn expand_dims(cx: &mut NodeCx) -> OpResult {
    let (x, axis) = (cx.input(0)?, cx.input(1)?);
    let axes = cx.need_const_ints("axis", axis)?;
    Ok(cx.b.unsqueeze(x, &axes)?.into())
}

/// A pool over operands whose channels are last.
fn nhwc_max_pool(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("X", x, 4)?;
    let x = cx.b.transpose(x, &[0, 3, 1, 2])?;
    let y = one(delegate(cx, "MaxPool", 12, &[Some(x)])?)?;
    Ok(cx.b.transpose(y, &[0, 2, 3, 1])?.into())
}

/// QLinearConv of the standard, on request with the channels last.
fn qlinear_conv(cx: &mut NodeCx) -> OpResult {
    let mut inputs = (0..cx.input_count()).map(|i| cx.opt(i)).collect::<Result<Vec<_>, _>>()?;
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    if !cx.flag("channels_last", false)? || rank < 3 {
        return delegate(cx, "QLinearConv", 10, &inputs);
    }
    let first: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    inputs[0] = Some(cx.b.transpose(x, &first)?);
    let y = one(delegate(cx, "QLinearConv", 10, &inputs)?)?;
    Ok(cx.b.transpose(y, &last)?.into())
}

fn qlinear_reduce_mean(cx: &mut NodeCx) -> OpResult {
    let like = cx.input(0)?;
    let rank = cx.rank(like);
    let axes = match cx.ints("axes")? {
        Some(a) => cx.axes(&a, rank)?,
        None => (0..rank).collect(),
    };
    let keep = cx.flag("keepdims", true)?;
    let x = real(cx, 0)?;
    let y = cx.b.reduce_mean(x, &axes, keep)?;
    quantized(cx, y, 3, like)
}

/// (condition, X and its scale and zero point, Y likewise, those of the result).
fn qlinear_where(cx: &mut NodeCx) -> OpResult {
    let (cond, like) = (cx.input(0)?, cx.input(1)?);
    let (x, y) = (real(cx, 1)?, real(cx, 4)?);
    let r = cx.b.select(cond, x, y)?;
    quantized(cx, r, 7, like)
}

/// Sums of 8-bit integers in i32.
fn reduce_sum_integer(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let axes = cx.axes(&cx.need_ints("axes")?, cx.rank(x))?;
    let keep = cx.flag("keepdims", true)?;
    let x = cx.b.convert(x, DType::I32)?;
    Ok(cx.b.reduce_sum(x, &axes, keep)?.into())
}

/// com.microsoft Attention whose projection is a product of 8-bit integers.
fn quantized_attention(cx: &mut NodeCx) -> OpResult {
    let (x, w, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (sx, sw, padding) = (cx.input(3)?, cx.input(4)?, cx.opt(5)?);
    let (zx, zw, past) = (cx.opt(6)?, cx.opt(7)?, cx.opt(8)?);
    let b = &mut *cx.b;
    let acc = matmul_integer(b, x, w, zx, zw)?;
    let f = b.convert(acc, DType::F32)?;
    let sx = compose::scalar(b, sx)?;
    let m = multiplier(b, sx, sw, None)?;
    let qkv = b.mul(f, m)?;
    let qkv = b.add(qkv, bias)?;
    attention_of(cx, qkv, padding, past, None)
}

/// Rows of a table that is stored as 4- or 8-bit integers with a scale, and a zero point, for each block of an axis.
fn gather_block_quantized(cx: &mut NodeCx) -> OpResult {
    let (data, index, scales, zeros) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.opt(3)?);
    let (bits, block) = (cx.int("bits", 4)?, cx.int("block_size", 128)?);
    if !matches!(bits, 4 | 8) || block < 1 {
        return Err(OpError::invalid(Code::Attribute, format!("{bits} bits in blocks of {block}")));
    }
    let rank = cx.rank(data);
    let (gather, axis) = (cx.axis_attr("gather_axis", 0, rank)?, cx.axis_attr("quantize_axis", 1, rank)?);
    let to = cx.dtype(scales);
    let b = &mut *cx.b;
    let bytes = b.dtype(data) == DType::U8;
    let whole = |b: &mut Builder, v: V| if bytes { unpack(b, v, bits) } else { Ok(v) };
    let q = whole(b, data)?;
    let zero = match zeros {
        Some(z) => {
            let z = whole(b, z)?;
            // packed zero points may end in a half that stands for nothing
            let shape = b.shape(scales).to_vec();
            let none = vec![Dim::from(0); shape.len()];
            let z = b.slice(z, &none, &shape, &vec![1; shape.len()])?;
            Some(b.convert(z, DType::I32)?)
        }
        None if bytes => {
            let middle = b.scalar(DType::I32, f64::from(1 << (bits - 1)))?;
            let shape = b.shape(scales).to_vec();
            Some(b.broadcast_to(middle, &shape)?)
        }
        None => None,
    };
    let q = b.convert(q, DType::I32)?;
    let w = dequantize(b, q, scales, zero, to, Granularity { axis: axis as i64, block })?;
    let extent = b.shape(w)[gather].clone();
    let index = b.wrap_indices(index, &extent)?;
    Ok(b.gather(w, index, gather)?.into())
}

/// Codes of bitsandbytes' 4-bit floats: those of QLoRA's NormalFloat (Dettmers et al. 2023, appendix E) and of its
/// FP4, sign, two bits of exponent, one of mantissa, scaled to 1.
const NF4: [f64; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];
const FP4: [f64; 8] =
    [0.0, 0.005208333333333333, 0.6666666666666666, 1.0, 0.3333333333333333, 0.5, 0.16666666666666666, 0.25];

/// A times the transpose of weights [N, K] stored as 4-bit codes, high nibble first, with the largest magnitude of
/// each block of the flat weights.
fn matmul_bnb4(cx: &mut NodeCx) -> OpResult {
    let (a, w, absmax) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (k, n, block) = (cx.need_int("K")?, cx.need_int("N")?, cx.need_int("block_size")?);
    let table: Vec<f64> = match cx.need_int("quant_type")? {
        0 => FP4.iter().copied().chain(FP4.map(|x| -x)).collect(),
        1 => NF4.to_vec(),
        t => return Err(OpError::invalid(Code::Attribute, format!("quant_type {t}"))),
    };
    if k < 1 || n < 1 || block < 1 || k > Dim::LIMIT / n {
        return Err(OpError::invalid(Code::Attribute, format!("K {k}, N {n}, blocks of {block}")));
    }
    let dtype = cx.dtype(a);
    let compute = wide(dtype);
    let attrs = vec![int_attr("block", block), int_attr("k", k), int_attr("n", n)];
    let weights = call_n(cx.b, "dequantize_bnb4", attrs, &[w, absmax], |b, o| {
        let elems = n * k;
        let bytes = Dim::from((elems + 1) / 2);
        let flat = b.reshape(o[0], std::slice::from_ref(&bytes))?;
        let (four, mask) = (b.scalar(DType::U8, 4.0)?, b.scalar(DType::U8, 15.0)?);
        let (high, low) = (b.shr(flat, four)?, b.and(flat, mask)?);
        let (high, low) = (b.unsqueeze(high, &[1])?, b.unsqueeze(low, &[1])?);
        let codes = b.concat(&[high, low], 1)?;
        let codes = b.reshape(codes, &[bytes * Dim::from(2)])?;
        let codes = b.slice_axis(codes, 0, &Dim::from(0), &Dim::from(elems))?;
        let codes = b.convert(codes, DType::I32)?;
        let table = floats(b, compute, &[16], &table)?;
        let values = b.gather(table, codes, 0)?;
        let blocks = Dim::from((elems - 1) / block + 1);
        let scale = b.reshape(o[1], std::slice::from_ref(&blocks))?;
        let scale = b.convert(scale, compute)?;
        let scale = b.unsqueeze(scale, &[1])?;
        let scale = b.broadcast_to(scale, &[blocks.clone(), Dim::from(block)])?;
        let scale = b.reshape(scale, &[blocks * Dim::from(block)])?;
        let scale = b.slice_axis(scale, 0, &Dim::from(0), &Dim::from(elems))?;
        let w = b.mul(values, scale)?;
        let w = b.reshape(w, &[Dim::from(n), Dim::from(k)])?;
        b.convert(w, dtype)
    })?;
    let axis = cx.rank(a).saturating_sub(1);
    Ok(cx.b.contract(a, weights, &[], &[(axis, 1)], dtype)?.into())
}

/// An LSTM whose weights [D, I, 4 H] and [D, H, 4 H] are 8-bit integers with a scale, and a zero point, for the
/// tensor of a direction or for each column. Inputs and states stay real numbers, which is more precise than quantising
/// them by the range of the moment.
fn dynamic_quantize_lstm(cx: &mut NodeCx) -> OpResult {
    let mut inputs: Vec<Option<V>> = (0..8).map(|i| cx.opt(i)).collect::<Result<Vec<_>, _>>()?;
    for (i, at) in [(1, 8), (2, 10)] {
        let (w, scale, zero) = (cx.input(i)?, cx.input(at)?, cx.opt(at + 1)?);
        cx.check_rank("weights", w, 3)?;
        let b = &mut *cx.b;
        let mut spread = |p: V| -> Result<V> {
            // [D], [D, 4 H]: one for each direction, or for each column of it
            let shape = b.shape(p).to_vec();
            let place = match shape.as_slice() {
                [d] => vec![d.clone(), Dim::from(1), Dim::from(1)],
                [d, n] => vec![d.clone(), Dim::from(1), n.clone()],
                _ => vec![Dim::from(1); 3],
            };
            let p = b.reshape(p, &place)?;
            b.convert(p, DType::F32)
        };
        let scale = spread(scale)?;
        let zero = zero.map(&mut spread).transpose()?;
        let mut w = b.convert(w, DType::F32)?;
        if let Some(z) = zero {
            w = b.sub(w, z)?;
        }
        let w = b.mul(w, scale)?;
        inputs[i] = Some(b.transpose(w, &[0, 2, 1])?);
    }
    let out: Outs = delegate(cx, "LSTM", 14, &inputs)?;
    Ok(out)
}
