//! Normalisations.
//!
//! Statistics are computed in f32 for halves (`stash_type`), with the mean subtracted before squaring.

use super::compose::{self, call_n, centre, float_attr, int_attr, rsqrt_eps, wide};
use super::{Op, op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Outs};
use ir::build::{Builder, V};
use ir::prim::{Monoid, WindowDim};
use ir::{DType, Dim, IrError, Result};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[
    op("BatchNormalization", 1, batch_normalization),
    op("GroupNormalization", 18, group_normalization),
    op("InstanceNormalization", 1, instance_normalization),
    op("LRN", 1, lrn),
    op("LayerNormalization", 1, layer_normalization),
    op("LpNormalization", 1, lp_normalization),
    op("MeanVarianceNormalization", 9, mean_variance_normalization),
    op("RMSNormalization", 23, rms_normalization),
    // written into the standard domain by some exporters
    op("SimplifiedLayerNormalization", 1, rms_normalization),
    op_in(MS, "EmbedLayerNormalization", embed_layer_normalization),
    op_in(MS, "GroupNorm", group_norm_nhwc),
    op_in(MS, "SimplifiedLayerNormalization", rms_normalization),
    op_in(MS, "SkipGroupNorm", skip_group_norm),
    op_in(MS, "SkipLayerNormalization", |cx| skip_normalization(cx, false)),
    op_in(MS, "SkipSimplifiedLayerNormalization", |cx| skip_normalization(cx, true)),
];

/// A per-channel vector for an operand of `rank`: channels are axis 1 (a vector operand has one).
fn per_channel(b: &mut Builder, v: V, rank: usize, to: DType) -> Result<V> {
    let v = b.convert(v, to)?;
    match (b.rank(v), rank) {
        (_, 0 | 1) => {
            let shape = vec![Dim::product(b.shape(v)); rank];
            b.reshape(v, &shape)
        }
        // statistics of every element (`spatial = 0` of old versions)
        (r, rank) if r > 1 && r + 1 == rank => b.unsqueeze(v, &[0]),
        (_, rank) => compose::along(b, v, 1, rank),
    }
}

fn batch_normalization(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let given = [cx.input(1)?, cx.input(2)?, cx.input(3)?, cx.input(4)?];
    let (eps, momentum) = (f64::from(cx.float("epsilon", 1e-5)?), f64::from(cx.float("momentum", 0.9)?));
    let rank = cx.rank(x);
    let training = if cx.opset >= 14 {
        cx.flag("training_mode", false)?
    } else {
        // several outputs meant training
        cx.wants(1) || cx.wants(2)
    };
    let dtype = cx.dtype(x);
    let compute = wide(dtype);
    let b = &mut *cx.b;
    let attrs = vec![float_attr("epsilon", eps)];
    if !training {
        let y = call_n(b, "batch_norm", attrs, &[x, given[0], given[1], given[2], given[3]], |b, a| {
            let x = b.convert(a[0], compute)?;
            let mut p = [a[1], a[2], a[3], a[4]];
            for v in &mut p {
                *v = per_channel(b, *v, rank, compute)?;
            }
            let [scale, bias, mean, var] = p;
            // one multiplication and one addition for each element; the rest is per channel
            let inv = rsqrt_eps(b, var, eps)?;
            let slope = b.mul(scale, inv)?;
            let shift = b.mul(mean, slope)?;
            let shift = b.sub(bias, shift)?;
            let y = b.mul(x, slope)?;
            let y = b.add(y, shift)?;
            b.convert(y, dtype)
        })?;
        return Ok(y.into());
    }
    let stat_type = b.dtype(given[2]);
    let (scale, bias, mean, var) = (given[0], given[1], given[2], given[3]);
    let out = b.call::<IrError>("batch_norm_training", attrs, &[x, scale, bias, mean, var], |b, a| {
        let x = b.convert(a[0], compute)?;
        let axes: Vec<usize> = (0..rank).filter(|&d| d != 1).collect();
        let (d, m, v) = centre(b, x, &axes)?;
        let inv = rsqrt_eps(b, v, eps)?;
        let scale = per_channel(b, a[1], rank, compute)?;
        let bias = per_channel(b, a[2], rank, compute)?;
        let n = b.mul(d, inv)?;
        let y = b.mul(n, scale)?;
        let y = b.add(y, bias)?;
        let mut out = vec![b.convert(y, dtype)?];
        let mut flat = Vec::new();
        for (now, before) in [(m, a[3]), (v, a[4])] {
            let shape = b.shape(before).to_vec();
            let now = b.reshape(now, &shape)?;
            flat.push(b.convert(now, stat_type)?);
            let before = b.convert(before, compute)?;
            let kept = b.mul_scalar(before, momentum)?;
            let added = b.mul_scalar(now, 1.0 - momentum)?;
            let running = b.add(kept, added)?;
            out.push(b.convert(running, stat_type)?);
        }
        // saved statistics of the versions before 14
        out.extend(flat);
        Ok(out)
    })?;
    Ok(out.into())
}

fn instance_normalization(cx: &mut NodeCx) -> OpResult {
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let eps = f64::from(cx.float("epsilon", 1e-5)?);
    let (rank, dtype) = (cx.rank(x), cx.dtype(x));
    if rank < 2 {
        return Err(OpError::invalid(Code::Shape, format!("expected at least [N, C], found rank {rank}")));
    }
    let y = call_n(cx.b, "instance_norm", vec![float_attr("epsilon", eps)], &[x, scale, bias], |b, a| {
        let compute = wide(dtype);
        let x = b.convert(a[0], compute)?;
        let axes: Vec<usize> = (2..rank).collect();
        let (d, _, v) = centre(b, x, &axes)?;
        let inv = rsqrt_eps(b, v, eps)?;
        let scale = per_channel(b, a[1], rank, compute)?;
        let bias = per_channel(b, a[2], rank, compute)?;
        let slope = b.mul(inv, scale)?;
        let y = b.mul(d, slope)?;
        let y = b.add(y, bias)?;
        b.convert(y, dtype)
    })?;
    Ok(y.into())
}

/// `(x - mean) / sqrt(var + eps) * scale + bias` over `axes`; (y, mean, 1 / deviation), the latter two
/// in the type of the statistics.
pub fn layer_norm(
    b: &mut Builder,
    x: V,
    axes: &[usize],
    eps: f64,
    stash: DType,
    scale: Option<V>,
    bias: Option<V>,
) -> Result<[V; 3]> {
    let dtype = b.dtype(x);
    let operands: Vec<V> = [Some(x), scale, bias].into_iter().flatten().collect();
    let attrs = vec![float_attr("epsilon", eps), compose::axes_attr(axes)];
    let out = b.call::<IrError>("layer_norm", attrs, &operands, |b, a| {
        let (d, mean, var) = {
            let x = b.convert(a[0], stash)?;
            centre(b, x, axes)?
        };
        let inv = rsqrt_eps(b, var, eps)?;
        let mut y = b.mul(d, inv)?;
        let mut rest = a[1..].iter();
        for (given, multiply) in [(scale, true), (bias, false)] {
            if given.is_some()
                && let Some(&p) = rest.next()
            {
                let p = b.convert(p, stash)?;
                y = if multiply { b.mul(y, p)? } else { b.add(y, p)? };
            }
        }
        let y = b.convert(y, dtype)?;
        Ok(vec![y, mean, inv])
    })?;
    match <[V; 3]>::try_from(out) {
        Ok(three) => Ok(three),
        Err(_) => Err(IrError::ty("call", "expected 3 results")),
    }
}

/// `x / sqrt(mean(x^2) + eps) * scale` over `axes`; (y, 1 / root mean square).
pub fn rms_norm(
    b: &mut Builder,
    x: V,
    axes: &[usize],
    eps: f64,
    stash: DType,
    scale: V,
    bias: Option<V>,
) -> Result<(V, V)> {
    let dtype = b.dtype(scale);
    let operands: Vec<V> = [Some(x), Some(scale), bias].into_iter().flatten().collect();
    let attrs = vec![float_attr("epsilon", eps), compose::axes_attr(axes)];
    let out = b.call::<IrError>("rms_norm", attrs, &operands, |b, a| {
        let x = b.convert(a[0], stash)?;
        let sq = b.mul(x, x)?;
        let mean = b.reduce_mean(sq, axes, true)?;
        let inv = rsqrt_eps(b, mean, eps)?;
        let n = b.mul(x, inv)?;
        let scale = b.convert(a[1], stash)?;
        let mut y = b.mul(n, scale)?;
        if let Some(&bias) = a.get(2) {
            let bias = b.convert(bias, stash)?;
            y = b.add(y, bias)?;
        }
        Ok(vec![b.convert(y, dtype)?, inv])
    })?;
    Ok((out[0], out[1]))
}

/// Type of the statistics by `stash_type`, at least as wide as f32.
fn stash(cx: &NodeCx, x: V) -> Result<DType, OpError> {
    let dtype = cx.dtype(x);
    Ok(match cx.dtype_attr("stash_type")? {
        None | Some(DType::F32) if dtype != DType::F64 => DType::F32,
        Some(DType::F64) => DType::F64,
        // a narrower type than f32 for statistics is not worth imitating
        _ => wide(dtype),
    })
}

/// Axes from attribute `axis` on.
fn trailing_axes(cx: &NodeCx, x: V) -> Result<Vec<usize>, OpError> {
    let rank = cx.rank(x);
    Ok((cx.axis_attr("axis", -1, rank)?..rank).collect())
}

fn layer_normalization(cx: &mut NodeCx) -> OpResult {
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
    let axes = trailing_axes(cx, x)?;
    let (eps, stash) = (cx.float("epsilon", 1e-5)?, stash(cx, x)?);
    Ok(layer_norm(cx.b, x, &axes, eps.into(), stash, Some(scale), bias)?.into())
}

fn rms_normalization(cx: &mut NodeCx) -> OpResult {
    let (x, scale) = (cx.input(0)?, cx.input(1)?);
    let axes = trailing_axes(cx, x)?;
    let (eps, stash) = (cx.float("epsilon", 1e-5)?, stash(cx, x)?);
    let (y, inv) = rms_norm(cx.b, x, &axes, eps.into(), stash, scale, None)?;
    Ok([y, inv].into())
}

/// Groups of channels: x[N, C, ...] as [N, G, C / G, ...], normalised over all but N and G.
#[allow(clippy::too_many_arguments, reason = "the attributes of the operator")]
fn group_norm(
    b: &mut Builder,
    x: V,
    groups: i64,
    eps: f64,
    scale: V,
    bias: V,
    per_group: bool,
    stash: DType,
) -> Result<V> {
    let attrs = vec![float_attr("epsilon", eps), int_attr("groups", groups)];
    call_n(b, "group_norm", attrs, &[x, scale, bias], |b, a| {
        let (shape, dtype) = (b.shape(a[0]).to_vec(), b.dtype(a[0]));
        let x = b.convert(a[0], stash)?;
        let groups = Dim::from(groups);
        let each = shape[1].floor_div(&groups, b.symbols());
        let split = [&[shape[0].clone(), groups.clone(), each.clone()], &shape[2..]].concat();
        let x = b.reshape(x, &split)?;
        let axes: Vec<usize> = (2..split.len()).collect();
        let (d, _, v) = centre(b, x, &axes)?;
        let inv = rsqrt_eps(b, v, eps)?;
        let mut y = b.mul(d, inv)?;
        for (p, multiply) in [(a[1], true), (a[2], false)] {
            let p = b.convert(p, stash)?;
            let mut place = vec![Dim::from(1); split.len()];
            place[1] = groups.clone();
            if !per_group {
                place[2] = each.clone();
            }
            let p = b.reshape(p, &place)?;
            y = if multiply { b.mul(y, p)? } else { b.add(y, p)? };
        }
        let y = b.reshape(y, &shape)?;
        b.convert(y, dtype)
    })
}

/// Version 18 scales by group, version 21 by channel.
fn group_normalization(cx: &mut NodeCx) -> OpResult {
    let (x, scale, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let groups = positive(cx, "num_groups")?;
    if cx.rank(x) < 2 {
        return Err(OpError::invalid(Code::Shape, "expected at least [N, C]"));
    }
    let (eps, stash) = (cx.float("epsilon", 1e-5)?, stash(cx, x)?);
    let per_group = cx.opset < 21;
    Ok(group_norm(cx.b, x, groups, eps.into(), scale, bias, per_group, stash)?.into())
}

fn positive(cx: &NodeCx, name: &str) -> Result<i64, OpError> {
    match cx.need_int(name)? {
        n if n > 0 => Ok(n),
        n => Err(OpError::invalid(Code::Attribute, format!("{name} should be positive, found {n}"))),
    }
}

/// Channels last, with an optional SiLU.
fn group_norm_nhwc(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    Ok(nhwc_normalised(cx, x)?.into())
}

/// (normalised sum, sum) of `x + skip + bias`; the skip may be one value for each channel of an image.
fn skip_group_norm(cx: &mut NodeCx) -> OpResult {
    let (x, skip, bias) = (cx.input(0)?, cx.input(3)?, cx.opt(4)?);
    let last = cx.int("channels_last", 1)? != 0;
    cx.check_rank("X", x, 4)?;
    let b = &mut *cx.b;
    let skip = match (b.rank(skip), last) {
        (2, true) => b.unsqueeze(skip, &[1, 2])?,
        (2, false) => b.unsqueeze(skip, &[2, 3])?,
        _ => skip,
    };
    let mut sum = b.add(x, skip)?;
    if let Some(bias) = bias {
        let bias = if last { bias } else { b.unsqueeze(bias, &[1, 2])? };
        sum = b.add(sum, bias)?;
    }
    let y = nhwc_normalised(cx, sum)?;
    Ok([y, sum].into())
}

/// `x` normalised by groups of channels as the attributes and the inputs 1 and 2 say.
fn nhwc_normalised(cx: &mut NodeCx, x: V) -> Result<V, OpError> {
    let (scale, bias) = (cx.input(1)?, cx.input(2)?);
    let groups = positive(cx, "groups")?;
    let (eps, silu) = (cx.float("epsilon", 1e-5)?, cx.int("activation", 0)? == 1);
    let last = cx.int("channels_last", 1)? != 0;
    cx.check_rank("an operand", x, 4)?;
    let stash = wide(cx.dtype(x));
    let b = &mut *cx.b;
    let x = if last { b.transpose(x, &[0, 3, 1, 2])? } else { x };
    let y = group_norm(b, x, groups, eps.into(), scale, bias, false, stash)?;
    let y = if silu { compose::swish(b, y, 1.0)? } else { y };
    Ok(if last { b.transpose(y, &[0, 2, 3, 1])? } else { y })
}

/// `x / norm`, 0 where the norm is 0.
fn lp_normalization(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (p, rank, dtype) = (cx.int("p", 2)?, cx.rank(x), cx.dtype(x));
    let axis = cx.axis_attr("axis", -1, rank)?;
    let y = compose::call1(cx.b, "lp_norm", vec![int_attr("p", p)], x, |b, x| {
        compose::widened(b, x, |b, x| {
            let a = b.abs(x)?;
            let norm = match p {
                1 => b.reduce_sum(a, &[axis], true)?,
                2 => {
                    let sq = b.mul(x, x)?;
                    let s = b.reduce_sum(sq, &[axis], true)?;
                    b.sqrt(s)?
                }
                p => {
                    let e = b.scalar(b.dtype(a), p as f64)?;
                    let a = b.pow(a, e)?;
                    let s = b.reduce_sum(a, &[axis], true)?;
                    let e = b.scalar(b.dtype(a), 1.0 / p as f64)?;
                    b.pow(s, e)?
                }
            };
            let zero = b.scalar(wide(dtype), 0.0)?;
            let none = b.eq(norm, zero)?;
            let q = b.div(x, norm)?;
            b.select(none, zero, q)
        })
    })?;
    Ok(y.into())
}

/// `(x - mean) / (deviation + 1e-9)` over `axes`.
fn mean_variance_normalization(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let axes = cx.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]);
    let axes = cx.axes(&axes, cx.rank(x))?;
    let y = compose::call1(cx.b, "mean_variance_norm", vec![compose::axes_attr(&axes)], x, |b, x| {
        compose::widened(b, x, |b, x| {
            let (d, _, v) = centre(b, x, &axes)?;
            let s = b.sqrt(v)?;
            let s = b.add_scalar(s, 1e-9)?;
            b.div(d, s)
        })
    })?;
    Ok(y.into())
}

/// `x / (bias + alpha / size * sum of squares over a window of channels)^beta`.
fn lrn(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let size = positive(cx, "size")?;
    let (alpha, beta) = (f64::from(cx.float("alpha", 1e-4)?), f64::from(cx.float("beta", 0.75)?));
    let bias = f64::from(cx.float("bias", 1.0)?);
    let rank = cx.rank(x);
    if rank < 2 {
        return Err(OpError::invalid(Code::Shape, format!("expected at least [N, C], found rank {rank}")));
    }
    let y = compose::call1(cx.b, "lrn", vec![int_attr("size", size)], x, |b, x| {
        compose::widened(b, x, |b, x| {
            let sq = b.mul(x, x)?;
            let mut sizes = vec![1; rank - 1];
            sizes[0] = size;
            let mut window = vec![WindowDim::unit(); rank - 1];
            window[0].pad_lo = Dim::from((size - 1) / 2);
            window[0].pad_hi = Dim::from(size - 1 - (size - 1) / 2);
            let s = b.window_reduce(Monoid::Sum, sq, &sizes, &window)?;
            let s = b.mul_scalar(s, alpha / size as f64)?;
            let s = b.add_scalar(s, bias)?;
            let e = b.scalar(b.dtype(s), beta)?;
            let p = b.pow(s, e)?;
            b.div(x, p)
        })
    })?;
    Ok(y.into())
}

/// Normalises `input + skip (+ bias)`; the sum is the fourth output.
fn skip_normalization(cx: &mut NodeCx, rms: bool) -> OpResult {
    let (x, skip, gamma) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (beta, bias) = if rms { (None, cx.opt(3)?) } else { (cx.opt(3)?, cx.opt(4)?) };
    let eps = f64::from(cx.float("epsilon", 1e-12)?);
    let stash = wide(cx.dtype(x));
    let b = &mut *cx.b;
    let mut sum = b.add(x, skip)?;
    if let Some(bias) = bias {
        sum = b.add(sum, bias)?;
    }
    let axes = [b.rank(sum).saturating_sub(1)];
    if rms {
        let (y, inv) = rms_norm(b, sum, &axes, eps, stash, gamma, None)?;
        // there is no mean; its place in the outputs is never used
        return Ok([y, inv, inv, sum].into());
    }
    let [y, mean, inv] = layer_norm(b, sum, &axes, eps, stash, Some(gamma), beta)?;
    Ok([y, mean, inv, sum].into())
}

/// (input ids, segment ids, word, position and segment embeddings, gamma, beta, mask, position ids) to
/// the normalised sum of the embeddings, the number of unmasked positions, and the sum.
fn embed_layer_normalization(cx: &mut NodeCx) -> OpResult {
    let (ids, segments) = (cx.input(0)?, cx.opt(1)?);
    let (words, positions, segment_table) = (cx.input(2)?, cx.input(3)?, cx.opt(4)?);
    let (gamma, beta, mask, position_ids) = (cx.input(5)?, cx.input(6)?, cx.opt(7)?, cx.opt(8)?);
    let eps = f64::from(cx.float("epsilon", 1e-12)?);
    cx.check_rank("input ids", ids, 2)?;
    let shape = cx.shape(ids);
    let stash = wide(cx.dtype(words));
    let b = &mut *cx.b;
    let mut sum = b.gather(words, ids, 0)?;
    let places = match position_ids {
        Some(p) => b.gather(positions, p, 0)?,
        None => {
            let width = compose::extent(b, positions, 1)?;
            let (zero, seq) = (Dim::from(0), shape[1].clone());
            b.slice(positions, &[zero.clone(), zero], &[seq, width], &[1, 1])?
        }
    };
    sum = b.add(sum, places)?;
    if let (Some(table), Some(s)) = (segment_table, segments) {
        let s = b.gather(table, s, 0)?;
        sum = b.add(sum, s)?;
    }
    let [y, _, _] = layer_norm(b, sum, &[2], eps, stash, Some(gamma), Some(beta))?;
    let count = match mask {
        Some(m) => b.reduce_sum(m, &[1], false)?,
        None => b.full(DType::I32, &shape[..1], 0.0)?,
    };
    Ok(Outs::from([y, count, sum]))
}
