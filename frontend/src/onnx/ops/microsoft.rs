//! Operators of com.microsoft that fuse others, and its attention family.

use super::attention::{
    Reach, Scores, and, attend, heads, inverse_root, merge_heads, reach_mask, rotate, rotated_dim,
    split_heads, token_major,
};
use super::compose::{self, arange, call_n, int_attr};
use super::{Op, activations, delegate, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Outs, Val};
use ir::build::{Builder, V};
use ir::{DType, Dim, Result};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[
    op_in(MS, "Attention", packed_attention),
    op_in(MS, "FusedConv", fused_conv),
    op_in(MS, "FusedGemm", |cx| {
        let inputs = [Some(cx.input(0)?), Some(cx.input(1)?), cx.opt(2)?];
        let out = delegate(cx, "Gemm", 13, &inputs)?;
        activated(cx, out)
    }),
    op_in(MS, "FusedMatMul", fused_matmul),
    op_in(MS, "GroupQueryAttention", group_query_attention),
    op_in(MS, "MatMulNBits", matmul_n_bits),
    op_in(MS, "MultiHeadAttention", multi_head_attention),
    op_in(MS, "NhwcConv", nhwc_conv),
    op_in(MS, "RotaryEmbedding", rotary_embedding),
];

pub(super) fn one(out: Outs) -> Result<V, OpError> {
    match out.0.first() {
        Some(Val::Tensor(v)) => Ok(*v),
        _ => Err(OpError::invalid(Code::Type, "expected a tensor")),
    }
}

/// The activation that attribute `activation` names, on the first result.
pub(super) fn activated(cx: &mut NodeCx, out: Outs) -> OpResult {
    let x = one(out)?;
    let params: Vec<f64> =
        cx.attrs.floats("activation_params")?.unwrap_or_default().iter().map(|&p| p.into()).collect();
    let name = cx.string("activation", "")?;
    let alpha = cx.attrs.float("activation_alpha")?.map(f64::from);
    let param = |i: usize, default: f64| params.get(i).copied().unwrap_or(default);
    let b = &mut *cx.b;
    let dtype = b.dtype(x);
    Ok(match name {
        "" => x,
        "Relu" => {
            let zero = b.scalar(dtype, 0.0)?;
            b.max(x, zero)?
        }
        "Tanh" => b.tanh(x)?,
        "Sigmoid" => compose::sigmoid(b, x)?,
        "LeakyRelu" => activations::leaky_relu(b, x, alpha.unwrap_or(param(0, 0.01)))?,
        "HardSigmoid" => activations::hard_sigmoid(b, x, alpha.unwrap_or(param(0, 0.2)), param(1, 0.5))?,
        "Clip" => {
            let (lo, hi) = (b.scalar(dtype, param(0, f64::MIN))?, b.scalar(dtype, param(1, f64::MAX))?);
            b.clamp(x, lo, hi)?
        }
        other => return Err(OpError::unsupported(Code::Attribute, format!("activation {other:?}"))),
    }
    .into())
}

/// A convolution, an optional sum with a fourth input, an activation.
fn fused_conv(cx: &mut NodeCx) -> OpResult {
    let (x, w, bias, sum) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?, cx.opt(3)?);
    let mut out = delegate(cx, "Conv", 22, &[Some(x), Some(w), bias])?;
    if let Some(sum) = sum {
        let y = one(out)?;
        out = cx.b.add(y, sum)?.into();
    }
    activated(cx, out)
}

/// A convolution whose operands and result have their channels last.
pub(super) fn nhwc_conv(cx: &mut NodeCx) -> OpResult {
    let (x, w, bias) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
    cx.check_rank("X", x, 4)?;
    let x = cx.b.transpose(x, &[0, 3, 1, 2])?;
    let y = one(delegate(cx, "Conv", 22, &[Some(x), Some(w), bias])?)?;
    Ok(cx.b.transpose(y, &[0, 2, 3, 1])?.into())
}

/// `alpha * A' * B'` with the last two axes, or first the batch axes, transposed.
pub(super) fn fused_matmul(cx: &mut NodeCx) -> OpResult {
    let alpha = f64::from(cx.float("alpha", 1.0)?);
    let mut operands = [cx.input(0)?, cx.input(1)?];
    for (v, name) in operands.iter_mut().zip(["A", "B"]) {
        let rank = cx.rank(*v);
        if rank < 2 {
            continue;
        }
        if cx.flag(&format!("transBatch{name}"), false)? {
            // [M, batch.., K] to [batch.., M, K]
            let perm: Vec<usize> = (1..rank - 1).chain([0, rank - 1]).collect();
            *v = cx.b.transpose(*v, &perm)?;
        }
        if cx.flag(&format!("trans{name}"), false)? {
            *v = cx.b.swap_axes(*v, -1, -2)?;
        }
    }
    let acc = cx.dtype(operands[0]);
    let y = cx.b.matmul_acc(operands[0], operands[1], acc)?;
    Ok(if alpha == 1.0 { y } else { cx.b.mul_scalar(y, alpha)? }.into())
}

/// Values of `bits` bits packed into bytes along the last axis, low bits first, one byte each.
pub(super) fn unpack(b: &mut Builder, x: V, bits: i64) -> Result<V> {
    if bits == 8 {
        return Ok(x);
    }
    let per = 8 / bits;
    let mut shape = b.shape(x).to_vec();
    let (last, axis) = (shape.len() - 1, shape.len());
    // a function of a byte and of the place in it: elementwise, so that users may decode in registers
    let parts: Vec<Dim> = shape.iter().cloned().chain([Dim::from(per)]).collect();
    let x = b.unsqueeze(x, &[-1])?;
    let x = b.broadcast_to(x, &parts)?;
    let place = b.iota(DType::U8, &parts, axis)?;
    let shift = b.mul_scalar(place, bits as f64)?;
    let all = b.shr(x, shift)?;
    let mask = b.scalar(DType::U8, f64::from((1 << bits) - 1))?;
    let all = b.and(all, mask)?;
    shape[last] = &shape[last] * &Dim::from(per);
    b.reshape(all, &shape)
}

/// A times the transpose of weights [N, K] that are stored as packed bits [N, blocks, bytes] with a scale
/// and a zero point for each block.
fn matmul_n_bits(cx: &mut NodeCx) -> OpResult {
    let (a, w, scales) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (zeros, group, bias) = (cx.opt(3)?, cx.opt(4)?, cx.opt(5)?);
    let (k, n) = (cx.need_int("K")?, cx.need_int("N")?);
    let (bits, block) = (cx.int("bits", 4)?, cx.need_int("block_size")?);
    if !matches!(bits, 2 | 4 | 8) || k < 1 || n < 1 || block < 1 || k > Dim::LIMIT || n > Dim::LIMIT {
        return Err(OpError::invalid(Code::Attribute, format!("{bits} bits, K {k}, N {n}, block {block}")));
    }
    let blocks = (k - 1) / block + 1;
    let dtype = cx.dtype(a);
    let compute = compose::wide(dtype);
    let attrs = vec![int_attr("bits", bits), int_attr("block", block), int_attr("k", k), int_attr("n", n)];
    let operands: Vec<V> = [Some(w), Some(scales), zeros, group].into_iter().flatten().collect();
    let weights = call_n(cx.b, "dequantize_n_bits", attrs, &operands, |b, o| {
        let mut rest = o[2..].iter().copied();
        let zeros = zeros.and_then(|_| rest.next());
        let group = group.and_then(|_| rest.next());
        let (dn, dk, dblocks) = (Dim::from(n), Dim::from(k), Dim::from(blocks));
        let q = unpack(b, o[0], bits)?;
        let q = b.reshape(q, &[dn.clone(), &dblocks * &Dim::from(block)])?;
        let q = b.slice_axis(q, 1, &Dim::from(0), &dk)?;
        let q = b.convert(q, compute)?;
        // a parameter of each block for every element of its row
        let spread = |b: &mut Builder, p: V| -> Result<V> {
            let p = b.reshape(p, &[dn.clone(), dblocks.clone()])?;
            let p = b.convert(p, compute)?;
            if let Some(group) = group {
                return b.gather(p, group, 1);
            }
            let p = b.unsqueeze(p, &[2])?;
            let p = b.broadcast_to(p, &[dn.clone(), dblocks.clone(), Dim::from(block)])?;
            let p = b.reshape(p, &[dn.clone(), &dblocks * &Dim::from(block)])?;
            b.slice_axis(p, 1, &Dim::from(0), &dk)
        };
        let zero = match zeros {
            None => b.scalar(compute, f64::from(1 << (bits - 1)))?,
            Some(z) if b.dtype(z) == DType::U8 => {
                let bytes = (blocks * bits + 7) / 8;
                let z = b.reshape(z, &[dn.clone(), Dim::from(bytes)])?;
                let z = unpack(b, z, bits)?;
                let z = b.slice_axis(z, 1, &Dim::from(0), &dblocks)?;
                spread(b, z)?
            }
            Some(z) => spread(b, z)?,
        };
        let scale = spread(b, o[1])?;
        let d = b.sub(q, zero)?;
        let w = b.mul(d, scale)?;
        b.convert(w, dtype)
    })?;
    let b = &mut *cx.b;
    let axis = b.rank(a).saturating_sub(1);
    let mut y = b.contract(a, weights, &[], &[(axis, 1)], dtype)?;
    if let Some(bias) = bias {
        y = b.add(y, bias)?;
    }
    Ok(y.into())
}

/// Position ids are [B, S], or one number that the first token has.
fn rotary_embedding(cx: &mut NodeCx) -> OpResult {
    let (x, ids, cos, sin) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.input(3)?);
    let shape = cx.shape(x);
    if !cx.attrs.has("num_heads") || cx.int("num_heads", 0)? == 0 {
        // the head size follows from the cache
        if shape.len() == 3 {
            return packed_rotary(cx, x, ids, cos, sin);
        }
    }
    let tokens = token_major(cx, x)?;
    let rotated = rotated_dim(cx, tokens)?;
    let y = rotate_at(cx, tokens, ids, cos, sin, &rotated)?;
    Ok(if shape.len() == 4 { cx.b.transpose(y, &[0, 2, 1, 3])? } else { cx.b.reshape(y, &shape)? }.into())
}

fn packed_rotary(cx: &mut NodeCx, x: V, ids: V, cos: V, sin: V) -> OpResult {
    let shape = cx.shape(x);
    let size = &cx.dim(cos, 1)? * &Dim::from(2);
    let heads = shape[2].floor_div(&size, cx.b.symbols());
    let tokens = cx.b.reshape(x, &[shape[0].clone(), shape[1].clone(), heads, size.clone()])?;
    let y = rotate_at(cx, tokens, ids, cos, sin, &size)?;
    Ok(cx.b.reshape(y, &shape)?.into())
}

/// Rotates x[B, S, H, D] by the rows of the caches that the ids name.
fn rotate_at(cx: &mut NodeCx, x: V, ids: V, cos: V, sin: V, rotated: &Dim) -> Result<V, OpError> {
    let interleaved = cx.flag("interleaved", false)? || cx.flag("rotary_interleaved", false)?;
    let seq = cx.dim(x, 1)?;
    let b = &mut *cx.b;
    let ids = if b.rank(ids) == 2 {
        ids
    } else {
        let first = b.convert(ids, DType::I64)?;
        let first = compose::scalar(b, first)?;
        let i = arange(b, DType::I64, &seq, 1, 2)?;
        b.add(i, first)?
    };
    let (c, s) = (b.gather(cos, ids, 0)?, b.gather(sin, ids, 0)?);
    Ok(rotate(b, x, c, s, interleaved, rotated)?)
}

pub(super) fn scale_of(cx: &NodeCx, q: V) -> Result<f64, OpError> {
    match cx.float("scale", 0.0)? {
        0.0 => inverse_root(cx, &cx.dim(q, 3)?),
        s => Ok(s.into()),
    }
}

/// Attention of grouped heads with a cache that holds exactly the past tokens. `seqlens_k` (last valid
/// position by batch) hides padding behind shorter sequences.
fn group_query_attention(cx: &mut NodeCx) -> OpResult {
    let (q, k, v) = (cx.input(0)?, cx.opt(1)?, cx.opt(2)?);
    let (past_k, past_v, lens) = (cx.opt(3)?, cx.opt(4)?, cx.input(5)?);
    let (cos, sin, ids, bias) = (cx.opt(7)?, cx.opt(8)?, cx.opt(9)?, cx.opt(10)?);
    let (hq, hk) = (heads(cx, "num_heads")?, heads(cx, "kv_num_heads")?);
    cx.check_rank("query", q, 3)?;
    let (q, k, v) = match (k, v) {
        (Some(k), Some(v)) => (q, k, v),
        _ => {
            let size = cx.dim(q, 2)?.floor_div(&Dim::from(hq + 2 * hk), cx.b.symbols());
            let sizes = [hq, hk, hk].map(|h| &size * &Dim::from(h));
            let parts = cx.b.split(q, 2, &sizes)?;
            (parts[0], parts[1], parts[2])
        }
    };
    let (mut q, mut k, v) = (split_heads(cx.b, q, hq)?, split_heads(cx.b, k, hk)?, split_heads(cx.b, v, hk)?);
    let past = past_k.map_or(Ok(Dim::from(0)), |p| cx.dim(p, 2))?;
    if cx.flag("do_rotary", false)? {
        let (Some(cos), Some(sin)) = (cos, sin) else {
            return Err(OpError::invalid(Code::Input, "do_rotary needs the caches of cosines and sines"));
        };
        let rotated = &cx.dim(cos, 1)? * &Dim::from(2);
        let ids = match ids {
            Some(i) => i,
            None => cx.b.dim_value(&past)?,
        };
        for x in [&mut q, &mut k] {
            let tokens = cx.b.transpose(*x, &[0, 2, 1, 3])?;
            let turned = rotate_at(cx, tokens, ids, cos, sin, &rotated)?;
            *x = cx.b.transpose(turned, &[0, 2, 1, 3])?;
        }
    }
    let (k, v) = match (past_k, past_v) {
        (Some(pk), Some(pv)) if !past.is_const(0) => (cx.b.concat(&[pk, k], 2)?, cx.b.concat(&[pv, v], 2)?),
        _ => (k, v),
    };
    let (s, t) = (cx.dim(q, 2)?, cx.dim(k, 2)?);
    let window = cx.int("local_window_size", -1)?;
    let reach = Reach { left: (window > 0).then_some(window - 1), right: Some(0) };
    let mut scores = Scores {
        scale: scale_of(cx, q)?,
        softcap: cx.float("softcap", 0.0)?.into(),
        bias,
        ..Default::default()
    };
    let (smooth, sink) = (cx.flag("smooth_softmax", false)?, cx.opt(11)?);
    let b = &mut *cx.b;
    scores.sink = match sink {
        Some(sink) => Some(b.reshape(sink, &[Dim::from(1), Dim::from(hq), Dim::from(1), Dim::from(1)])?),
        None if smooth => Some(b.scalar(b.dtype(q), 0.0)?),
        None => None,
    };
    let offset = b.dim_value(&past)?;
    scores.allowed = reach_mask(b, &s, &t, offset, reach)?;
    let last = b.convert(lens, DType::I64)?;
    let count = Dim::product(b.shape(last));
    let last = b.reshape(last, &[count, Dim::from(1), Dim::from(1), Dim::from(1)])?;
    let j = arange(b, DType::I64, &t, 3, 4)?;
    let valid = b.le(j, last)?;
    scores.allowed = Some(and(b, scores.allowed, valid)?);
    let a = attend(b, q, k, v, scores)?;
    let y = merge_heads(b, a.y)?;
    Ok([y, k, v].into())
}

/// A padding mask of integers as an additive bias: [B, T] or [B, S, T] of 0 and 1, or the lengths [B].
pub(super) fn mask_bias(cx: &mut NodeCx, mask: V, t: &Dim, dtype: DType) -> Result<V, OpError> {
    let filter = f64::from(cx.float("mask_filter_value", -10000.0)?);
    let rank = cx.rank(mask);
    let b = &mut *cx.b;
    let mask = b.convert(mask, DType::I64)?;
    let zero = b.scalar_i64(0)?;
    let counts = match rank {
        1 => {
            let n = compose::extent(b, mask, 0)?;
            let lens = b.reshape(mask, &[n, Dim::from(1), Dim::from(1), Dim::from(1)])?;
            let j = arange(b, DType::I64, t, 3, 4)?;
            b.lt(j, lens)?
        }
        2 => {
            let m = b.unsqueeze(mask, &[1, 2])?;
            b.ne(m, zero)?
        }
        3 => {
            let m = b.unsqueeze(mask, &[1])?;
            b.ne(m, zero)?
        }
        r => return Err(OpError::unsupported(Code::Shape, format!("a padding mask of rank {r}"))),
    };
    Ok(compose::indicator(b, counts, dtype, 0.0, filter)?)
}

pub(super) fn add_optional(b: &mut Builder, a: Option<V>, c: Option<V>) -> Result<Option<V>> {
    Ok(match (a, c) {
        (Some(a), Some(c)) => Some(b.add(a, c)?),
        (a, c) => a.or(c),
    })
}

/// Projected queries, keys and values in the layouts that com.microsoft allows.
fn multi_head_attention(cx: &mut NodeCx) -> OpResult {
    let (q, k, v, bias) = (cx.input(0)?, cx.opt(1)?, cx.opt(2)?, cx.opt(3)?);
    let (padding, extra, past_k, past_v) = (cx.opt(4)?, cx.opt(5)?, cx.opt(6)?, cx.opt(7)?);
    let h = heads(cx, "num_heads")?;
    let dtype = cx.dtype(q);
    let slot = |b: &mut Builder, x: V, axis: usize, i: i64| -> Result<V> {
        // [B, S, N, parts, D] to the part [B, N, S, D]
        let p = b.index_axis(x, axis, &Dim::from(i))?;
        b.transpose(p, &[0, 2, 1, 3])
    };
    let parts = match bias {
        None => [None; 3],
        Some(bias) => {
            let hidden = if cx.rank(q) == 3 {
                cx.dim(q, 2)?
            } else {
                cx.dim(bias, 0)?.floor_div(&Dim::from(3), cx.b.symbols())
            };
            let last = cx.dim(bias, 0)? - &hidden - &hidden;
            let p = cx.b.split(bias, 0, &[hidden.clone(), hidden, last])?;
            [Some(p[0]), Some(p[1]), Some(p[2])]
        }
    };
    let b = &mut *cx.b;
    let project = |b: &mut Builder, x: V, bias: Option<V>| -> Result<V> {
        let x = match bias {
            Some(bias) if b.rank(x) == 3 => b.add(x, bias)?,
            _ => x,
        };
        if b.rank(x) == 3 { split_heads(b, x, h) } else { Ok(x) }
    };
    let (q, k, v) = match (k, v) {
        (None, None) if b.rank(q) == 5 => (slot(b, q, 3, 0)?, slot(b, q, 3, 1)?, slot(b, q, 3, 2)?),
        (Some(kv), None) if b.rank(kv) == 5 => {
            let q = project(b, q, parts[0])?;
            (q, slot(b, kv, 3, 0)?, slot(b, kv, 3, 1)?)
        }
        (Some(k), Some(v)) => (project(b, q, parts[0])?, project(b, k, parts[1])?, project(b, v, parts[2])?),
        _ => return Err(OpError::invalid(Code::Input, "query, key and value have an unknown layout")),
    };
    let (k, v, past) = match (past_k, past_v) {
        (Some(pk), Some(pv)) => {
            let past = compose::extent(b, pk, 2)?;
            (b.concat(&[pk, k], 2)?, b.concat(&[pv, v], 2)?, past)
        }
        _ => (k, v, Dim::from(0)),
    };
    let y = masked(cx, q, k, v, padding, extra, &past, dtype)?;
    Ok([y.0, k, v, y.1].into())
}

/// Attention with the masks of com.microsoft; (merged result, scores).
#[allow(clippy::too_many_arguments)]
fn masked(
    cx: &mut NodeCx,
    q: V,
    k: V,
    v: V,
    padding: Option<V>,
    extra: Option<V>,
    past: &Dim,
    dtype: DType,
) -> Result<(V, V), OpError> {
    let (s, t) = (cx.dim(q, 2)?, cx.dim(k, 2)?);
    let mask = padding.map(|m| mask_bias(cx, m, &t, dtype)).transpose()?;
    let mut scores = Scores { scale: scale_of(cx, q)?, ..Default::default() };
    scores.bias = add_optional(cx.b, mask, extra)?;
    if cx.flag("unidirectional", false)? {
        let offset = cx.b.dim_value(past)?;
        let reach = Reach { left: None, right: Some(0) };
        scores.allowed = reach_mask(cx.b, &s, &t, offset, reach)?;
    }
    let a = attend(cx.b, q, k, v, scores)?;
    Ok((merge_heads(cx.b, a.y)?, a.biased))
}

/// One product gives queries, keys and values; past and present are stacked in one tensor.
fn packed_attention(cx: &mut NodeCx) -> OpResult {
    let (x, w, bias) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
    let (padding, past, extra) = (cx.opt(3)?, cx.opt(4)?, cx.opt(5)?);
    let mut qkv = cx.b.matmul(x, w)?;
    if let Some(bias) = bias {
        qkv = cx.b.add(qkv, bias)?;
    }
    attention_of(cx, qkv, padding, past, extra)
}

/// Attention of queries, keys and values that lie side by side in [B, S, 3 H D].
pub(super) fn attention_of(
    cx: &mut NodeCx,
    qkv: V,
    padding: Option<V>,
    past: Option<V>,
    extra: Option<V>,
) -> OpResult {
    let h = heads(cx, "num_heads")?;
    let dtype = cx.dtype(qkv);
    if cx.flag("do_rotary", false)? {
        return Err(OpError::unsupported(
            Code::Attribute,
            "rotary embeddings inside com.microsoft Attention",
        ));
    }
    let sizes: Vec<Dim> = match cx.ints("qkv_hidden_sizes")? {
        Some(s) if s.len() == 3 => s.into_iter().map(Dim::from).collect(),
        _ => {
            let third = cx.dim(qkv, 2)?.floor_div(&Dim::from(3), cx.b.symbols());
            vec![third.clone(), third.clone(), third]
        }
    };
    let parts = cx.b.split(qkv, 2, &sizes)?;
    let b = &mut *cx.b;
    let (q, mut k, mut v) =
        (split_heads(b, parts[0], h)?, split_heads(b, parts[1], h)?, split_heads(b, parts[2], h)?);
    let mut before = Dim::from(0);
    if let Some(past) = past {
        let (pk, pv) = (b.index_axis(past, 0, &Dim::from(0))?, b.index_axis(past, 0, &Dim::from(1))?);
        before = compose::extent(b, pk, 2)?;
        k = b.concat(&[pk, k], 2)?;
        v = b.concat(&[pv, v], 2)?;
    }
    let (y, _) = masked(cx, q, k, v, padding, extra, &before, dtype)?;
    if !cx.wants(1) {
        return Ok(y.into());
    }
    let (k, v) = (cx.b.unsqueeze(k, &[0])?, cx.b.unsqueeze(v, &[0])?);
    let present = cx.b.concat(&[k, v], 0)?;
    Ok([y, present].into())
}
