//! Attention of com.microsoft for serving: one token at a time, and sequences without padding.

use super::attention::{Scores, attend, heads, merge_heads, split_heads};
use super::compose::arange;
use super::microsoft::{add_optional, mask_bias, scale_of};
use super::{Op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::{DType, Dim};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[
    op_in(MS, "DecoderMaskedMultiHeadAttention", decoder_attention),
    op_in(MS, "PackedAttention", packed_attention),
];

/// `x` [.., sum of sizes] in three parts, in the sizes that `qkv_hidden_sizes` names or in thirds.
fn thirds(cx: &mut NodeCx, x: V) -> Result<[V; 3], OpError> {
    let axis = cx.rank(x).saturating_sub(1);
    let sizes: Vec<Dim> = match cx.ints("qkv_hidden_sizes")? {
        Some(s) if s.len() == 3 => s.into_iter().map(Dim::from).collect(),
        _ => vec![cx.dim(x, axis)?.floor_div(&Dim::from(3), cx.b.symbols()); 3],
    };
    let parts = cx.b.split(x, axis, &sizes)?;
    Ok([parts[0], parts[1], parts[2]])
}

/// Attention over the tokens of several sequences behind one another, none of which sees those of the others.
/// Inputs: tokens [T, K], weights, bias, places of the tokens (not needed), where sequences begin and end [B + 1].
fn packed_attention(cx: &mut NodeCx) -> OpResult {
    let (x, w, bias, ends) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?, cx.input(4)?);
    if cx.opt(5)?.is_some() {
        return Err(OpError::unsupported(
            Code::Input,
            "attention_bias: its rows are those of padded sequences",
        ));
    }
    cx.check_rank("input", x, 2)?;
    cx.check_rank("cumulative_sequence_length", ends, 1)?;
    let h = heads(cx, "num_heads")?;
    let mut qkv = cx.b.matmul(x, w)?;
    if let Some(bias) = bias {
        qkv = cx.b.add(qkv, bias)?;
    }
    let tokens = cx.dim(x, 0)?;
    let qkv = cx.b.unsqueeze(qkv, &[0])?;
    let parts = thirds(cx, qkv)?;
    let [q, k, v] = parts.map(|p| split_heads(cx.b, p, h));
    let (q, k, v) = (q?, k?, v?);
    let scale = scale_of(cx, q)?;
    let b = &mut *cx.b;
    // the number of ends that lie before a token is that of its sequence
    let ends = b.convert(ends, DType::I64)?;
    let place = arange(b, DType::I64, &tokens, 0, 2)?;
    let behind = b.le(ends, place)?;
    let behind = b.convert(behind, DType::I64)?;
    let sequence = b.reduce_sum(behind, &[1], true)?;
    let other = b.transpose(sequence, &[1, 0])?;
    let allowed = Some(b.eq(sequence, other)?);
    let a = attend(b, q, k, v, Scores { scale, allowed, ..Scores::default() })?;
    let y = merge_heads(b, a.y)?;
    Ok(b.squeeze(y, &[0])?.into())
}

/// One token of each sequence over all before it (self attention) or over given keys and values (cross attention).
/// With `past_present_share_buffer` the cache has room for more tokens than it holds, and the new one is put behind
/// those that are there.
fn decoder_attention(cx: &mut NodeCx) -> OpResult {
    let (q, k, v) = (cx.input(0)?, cx.opt(1)?, cx.opt(2)?);
    let (padding, extra, past_k, past_v) = (cx.opt(3)?, cx.opt(4)?, cx.opt(5)?, cx.opt(6)?);
    let (count, beams, origins, bias) = (cx.opt(7)?, cx.opt(8)?, cx.opt(9)?, cx.opt(10)?);
    let one_beam = |cx: &NodeCx, b: V| cx.const_ints(b).is_some_and(|n| n == [1]);
    if origins.is_some() && !beams.is_some_and(|b| one_beam(cx, b)) {
        return Err(OpError::unsupported(Code::Input, "cache_indirection: beams that share a cache"));
    }
    if cx.wants(3) {
        return Err(OpError::unsupported(Code::Op, "the output qk"));
    }
    cx.check_rank("query", q, 3)?;
    let h = heads(cx, "num_heads")?;
    let dtype = cx.dtype(q);
    let mut cross = false;
    let mut parts = match (k, v) {
        (Some(k), Some(v)) => {
            cross = cx.rank(k) == 4;
            [q, k, v]
        }
        _ => thirds(cx, q)?,
    };
    if let Some(bias) = bias {
        let biases = match cross {
            // keys and values had theirs when they were made
            true => vec![cx.b.slice_axis(bias, 0, &Dim::from(0), &cx.dim(q, 2)?)?],
            false => {
                let sizes = [cx.dim(parts[0], 2)?, cx.dim(parts[1], 2)?, cx.dim(parts[2], 2)?];
                cx.b.split(bias, 0, &sizes)?
            }
        };
        for (x, bias) in parts.iter_mut().zip(biases) {
            *x = cx.b.add(*x, bias)?;
        }
    }
    let b = &mut *cx.b;
    let q = split_heads(b, parts[0], h)?;
    let (mut keys, mut values) = if cross {
        (parts[1], parts[2])
    } else {
        (split_heads(b, parts[1], h)?, split_heads(b, parts[2], h)?)
    };
    let (mut present_k, mut present_v) = (keys, values);
    if let (Some(pk), Some(pv), false) = (past_k, past_v, cross) {
        if cx.flag("past_present_share_buffer", false)? {
            let count =
                count.ok_or_else(|| OpError::invalid(Code::Input, "past_sequence_length should be there"))?;
            let room = cx.dim(pk, 2)?.bounds(cx.b.symbols()).1;
            let b = &mut *cx.b;
            let count = b.reshape(count, &[])?;
            let count = b.convert(count, DType::I64)?;
            let at = b.bind_dim(count, 0, (room - 1).max(0), 128)?;
            let start = [Dim::from(0), Dim::from(0), at.clone(), Dim::from(0)];
            (present_k, present_v) = (b.update_slice(pk, keys, &start)?, b.update_slice(pv, values, &start)?);
            let total = at + Dim::from(1);
            keys = b.slice_axis(present_k, 2, &Dim::from(0), &total)?;
            values = b.slice_axis(present_v, 2, &Dim::from(0), &total)?;
        } else {
            (keys, values) = (cx.b.concat(&[pk, keys], 2)?, cx.b.concat(&[pv, values], 2)?);
            (present_k, present_v) = (keys, values);
        }
    }
    let t = cx.dim(keys, 2)?;
    let mask = padding.map(|m| mask_bias(cx, m, &t, dtype)).transpose()?;
    let scale = scale_of(cx, q)?;
    let bias = add_optional(cx.b, mask, extra)?;
    let a = attend(cx.b, q, keys, values, Scores { scale, bias, ..Scores::default() })?;
    let y = merge_heads(cx.b, a.y)?;
    Ok([y, present_k, present_v].into())
}
