//! Scaled dot-product attention and rotary embeddings.

use super::compose::{self, arange, call_n, int_attr, wide};
use super::{Op, op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Val};
use ir::build::{Builder, V};
use ir::{DType, Dim, IrError, Result};

pub static OPS: &[Op] = &[
    op("Attention", 23, attention),
    op_in("ai.onnx.preview", "FlexAttention", flex_attention),
    op("RotaryEmbedding", 23, rotary_embedding),
];

/// What modifies the scores before they are normalised, and how that is done.
#[derive(Clone, Copy, Default)]
pub struct Scores {
    pub scale: f64,
    /// `cap * tanh(score / cap)`; 0: none.
    pub softcap: f64,
    /// Added; broadcasts to [B, Hq, S, T].
    pub bias: Option<V>,
    /// Scores that count; broadcasts likewise.
    pub allowed: Option<V>,
    /// A score beside the keys' that takes its share of the normalisation and has no value; broadcasts to
    /// [B, Hq, S, 1].
    pub sink: Option<V>,
    /// Type of the normalisation; none: that of the operands.
    pub precision: Option<DType>,
}

/// The product and what came before it, all [B, Hq, S, ..] in the type of the query.
pub struct Attended {
    pub y: V,
    /// Scaled products of queries and keys.
    pub raw: V,
    pub capped: V,
    pub biased: V,
    pub probabilities: V,
}

/// Exponentials over their sum along the last axis, a sink being part of the sum. A row in which nothing counts (all
/// -inf) gives 0.
fn masked_softmax(b: &mut Builder, x: V, sink: Option<V>) -> Result<V> {
    let axis = b.rank(x) - 1;
    let (zero, one) = (b.scalar(b.dtype(x), 0.0)?, b.scalar(b.dtype(x), 1.0)?);
    let least = b.scalar(b.dtype(x), f64::NEG_INFINITY)?;
    let m = b.reduce_max(x, &[axis], true)?;
    if let Some(sink) = sink {
        let sink = b.convert(sink, b.dtype(x))?;
        let m = b.max(m, sink)?;
        let d = b.sub(x, m)?;
        let e = b.exp(d)?;
        let s = b.reduce_sum(e, &[axis], true)?;
        let rest = b.sub(sink, m)?;
        let rest = b.exp(rest)?;
        let s = b.add(s, rest)?;
        return b.div(e, s);
    }
    let nothing = b.eq(m, least)?;
    let m = b.select(nothing, zero, m)?;
    let d = b.sub(x, m)?;
    let e = b.exp(d)?;
    let s = b.reduce_sum(e, &[axis], true)?;
    let s = b.select(nothing, one, s)?;
    b.div(e, s)
}

/// Query heads [B, Hq, S, D] as groups of the key heads [B, Hk, Hq / Hk, S, D].
fn grouped(b: &mut Builder, x: V, heads: &Dim) -> Result<V> {
    let s = b.shape(x).to_vec();
    let each = s[1].floor_div(heads, b.symbols());
    b.reshape(x, &[s[0].clone(), heads.clone(), each, s[2].clone(), s[3].clone()])
}

/// Scaled products of q[B, Hq, S, D] and k[B, Hk, T, D]: [B, Hq, S, T]. Each key head serves a group of
/// query heads, without being repeated.
fn products(b: &mut Builder, q: V, k: V, scale: f64) -> Result<V> {
    let dtype = b.dtype(q);
    // halves share the scale between both operands, so that neither loses range
    let (q, k) = if wide(dtype) != dtype {
        (b.mul_scalar(q, scale.sqrt())?, b.mul_scalar(k, scale.sqrt())?)
    } else {
        (b.mul_scalar(q, scale)?, k)
    };
    let (qs, ks) = (b.shape(q).to_vec(), b.shape(k).to_vec());
    if b.same_dim(&qs[1], &ks[1]) {
        return b.contract(q, k, &[(0, 0), (1, 1)], &[(3, 3)], dtype);
    }
    let q = grouped(b, q, &ks[1])?;
    let p = b.contract(q, k, &[(0, 0), (1, 1)], &[(4, 3)], dtype)?;
    b.reshape(p, &[qs[0].clone(), qs[1].clone(), qs[2].clone(), ks[2].clone()])
}

/// p[B, Hq, S, T] times v[B, Hk, T, D]: [B, Hq, S, D].
fn weighted(b: &mut Builder, p: V, v: V) -> Result<V> {
    let (ps, vs) = (b.shape(p).to_vec(), b.shape(v).to_vec());
    let dtype = b.dtype(v);
    let p = b.convert(p, dtype)?;
    if b.same_dim(&ps[1], &vs[1]) {
        return b.contract(p, v, &[(0, 0), (1, 1)], &[(3, 2)], dtype);
    }
    let p = grouped(b, p, &vs[1])?;
    let y = b.contract(p, v, &[(0, 0), (1, 1)], &[(4, 2)], dtype)?;
    b.reshape(y, &[ps[0].clone(), ps[1].clone(), ps[2].clone(), vs[3].clone()])
}

/// Attention of q[B, Hq, S, D] over k[B, Hk, T, D] and v[B, Hk, T, Dv], as a composite.
pub fn attend(b: &mut Builder, q: V, k: V, v: V, scores: Scores) -> Result<Attended> {
    let operands: Vec<V> =
        [Some(q), Some(k), Some(v), scores.bias, scores.allowed, scores.sink].into_iter().flatten().collect();
    let attrs = vec![
        compose::float_attr("scale", scores.scale),
        compose::float_attr("softcap", scores.softcap),
        int_attr("bias", scores.bias.is_some().into()),
        int_attr("mask", scores.allowed.is_some().into()),
    ];
    let out = b.call::<IrError>("attention", attrs, &operands, |b, a| {
        let dtype = b.dtype(a[0]);
        let raw = products(b, a[0], a[1], scores.scale)?;
        let mut capped = raw;
        if scores.softcap > 0.0 {
            let c = b.mul_scalar(raw, 1.0 / scores.softcap)?;
            let c = b.tanh(c)?;
            capped = b.mul_scalar(c, scores.softcap)?;
        }
        let mut biased = capped;
        let mut rest = a[3..].iter().copied();
        let shape = b.shape(raw).to_vec();
        if scores.bias.is_some()
            && let Some(bias) = rest.next()
        {
            let bias = b.convert(bias, dtype)?;
            let bias = b.broadcast_to(bias, &shape)?;
            biased = b.add(biased, bias)?;
        }
        if scores.allowed.is_some()
            && let Some(allowed) = rest.next()
        {
            let allowed = b.broadcast_to(allowed, &shape)?;
            let least = b.scalar(dtype, f64::NEG_INFINITY)?;
            biased = b.select(allowed, biased, least)?;
        }
        let x = b.convert(biased, scores.precision.unwrap_or(dtype))?;
        let sink = scores.sink.and_then(|_| rest.next());
        let p = masked_softmax(b, x, sink)?;
        let p = b.convert(p, dtype)?;
        let y = weighted(b, p, a[2])?;
        Ok(vec![y, raw, capped, biased, p])
    })?;
    Ok(Attended { y: out[0], raw: out[1], capped: out[2], biased: out[3], probabilities: out[4] })
}

/// x[B, S, H * D] as [B, H, S, D].
pub fn split_heads(b: &mut Builder, x: V, heads: i64) -> Result<V> {
    let s = b.shape(x).to_vec();
    let heads = Dim::from(heads);
    let [batch, time, width] = s.as_slice() else {
        return Err(IrError::ty("attention", format!("expected rank 3, found {}", s.len())));
    };
    let size = width.floor_div(&heads, b.symbols());
    let x = b.reshape(x, &[batch.clone(), time.clone(), heads, size])?;
    b.transpose(x, &[0, 2, 1, 3])
}

/// x[B, H, S, D] as [B, S, H * D].
pub fn merge_heads(b: &mut Builder, x: V) -> Result<V> {
    let s = b.shape(x).to_vec();
    let x = b.transpose(x, &[0, 2, 1, 3])?;
    b.reshape(x, &[s[0].clone(), s[2].clone(), &s[1] * &s[3]])
}

/// Which keys j a query i sees: `lo <= j <= hi` relative to its place `i + offset`.
#[derive(Clone, Copy, Default)]
pub struct Reach {
    /// Keys behind the query's place; none: all.
    pub left: Option<i64>,
    /// Keys in front of it; none: all.
    pub right: Option<i64>,
}

/// The mask of a reach: [S, T], or [B, 1, S, T] where the offset (i64) is [B, 1, 1, 1].
pub fn reach_mask(b: &mut Builder, s: &Dim, t: &Dim, offset: V, reach: Reach) -> Result<Option<V>> {
    let i = arange(b, DType::I64, s, 0, 2)?;
    let j = arange(b, DType::I64, t, 1, 2)?;
    let place = b.add(i, offset)?;
    let mut mask = None;
    for (limit, behind) in [(reach.left, true), (reach.right, false)] {
        let Some(limit) = limit else { continue };
        let edge = b.add_scalar(place, if behind { -limit as f64 } else { limit as f64 })?;
        let ok = if behind { b.ge(j, edge)? } else { b.le(j, edge)? };
        mask = Some(and(b, mask, ok)?);
    }
    Ok(mask)
}

/// Both masks, where there are two.
pub fn and(b: &mut Builder, a: Option<V>, other: V) -> Result<V> {
    match a {
        Some(a) => b.and(a, other),
        None => Ok(other),
    }
}

/// A mask with a last extent of `t`: what it does not say does not count.
fn full_width(b: &mut Builder, mask: V, t: &Dim) -> Result<V> {
    let rank = b.rank(mask);
    let Some(last) = b.shape(mask).last().cloned() else { return Ok(mask) };
    if b.same_dim(&last, t) {
        return Ok(mask);
    }
    let dtype = b.dtype(mask);
    let fill = b.scalar(dtype, if dtype == DType::Bool { 0.0 } else { f64::NEG_INFINITY })?;
    let none = vec![Dim::from(0); rank];
    let mut hi = none.clone();
    let missing = (t - &last).max_with(&Dim::from(0), b.symbols());
    hi[rank - 1] = missing;
    let mask = b.pad(mask, fill, &none, &hi, &vec![0; rank])?;
    // longer masks are cut; this also gives the extent its right name
    b.slice_axis(mask, rank - 1, &Dim::from(0), t)
}

fn attention(cx: &mut NodeCx) -> OpResult {
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (mask, past_k, past_v, valid) = (cx.opt(3)?, cx.opt(4)?, cx.opt(5)?, cx.opt(6)?);
    let packed = cx.rank(q) == 3;
    let rank = if packed { 3 } else { 4 };
    for (what, x) in [("Q", q), ("K", k), ("V", v)] {
        cx.check_rank(what, x, rank)?;
    }
    if past_k.is_some() != past_v.is_some() {
        return Err(OpError::invalid(Code::Input, "past_key and past_value belong together"));
    }
    let (q, k, v) = if packed {
        let (hq, hk) = (heads(cx, "q_num_heads")?, heads(cx, "kv_num_heads")?);
        (split_heads(cx.b, q, hq)?, split_heads(cx.b, k, hk)?, split_heads(cx.b, v, hk)?)
    } else {
        (q, k, v)
    };
    let (k, v, past) = match (past_k, past_v) {
        (Some(pk), Some(pv)) => {
            cx.check_rank("past_key", pk, 4)?;
            (cx.b.concat(&[pk, k], 2)?, cx.b.concat(&[pv, v], 2)?, cx.dim(pk, 2)?)
        }
        _ => (k, v, Dim::from(0)),
    };
    let scale = match cx.attrs.float("scale")? {
        Some(s) => f64::from(s),
        None => inverse_root(cx, &cx.dim(q, 3)?)?,
    };
    let mut scores = Scores { scale, softcap: cx.float("softcap", 0.0)?.into(), ..Default::default() };
    if cx.attrs.has("softmax_precision") {
        scores.precision = cx.dtype_attr("softmax_precision")?;
    }
    let mut reach = Reach::default();
    if cx.flag("is_causal", false)? {
        reach.right = Some(0);
    }
    let mode = cx.int("qk_matmul_output_mode", 0)?;
    let windows = [cx.int("left_window_size", -1)?, cx.int("right_window_size", -1)?];
    if windows.iter().any(|&w| w < -1) {
        return Err(OpError::invalid(Code::Attribute, format!("window sizes {windows:?}")));
    }
    if windows[0] >= 0 {
        reach.left = Some(windows[0]);
    }
    if windows[1] >= 0 {
        reach.right = Some(reach.right.map_or(windows[1], |r| r.min(windows[1])));
    }
    let (s, t) = (cx.dim(q, 2)?, cx.dim(k, 2)?);
    let b = &mut *cx.b;
    if let Some(mask) = mask {
        let mask = full_width(b, mask, &t)?;
        if b.dtype(mask) == DType::Bool {
            scores.allowed = Some(mask);
        } else {
            scores.bias = Some(mask);
        }
    }
    let valid = match valid {
        Some(n) => {
            let n = b.convert(n, DType::I64)?;
            let count = Dim::product(b.shape(n));
            Some(b.reshape(n, &[count, Dim::from(1), Dim::from(1), Dim::from(1)])?)
        }
        None => None,
    };
    let offset = match valid {
        // the queries are the last of the valid keys
        Some(n) if past_k.is_none() => {
            let s = b.dim_value(&s)?;
            b.sub(n, s)?
        }
        _ => b.dim_value(&past)?,
    };
    if let Some(m) = reach_mask(b, &s, &t, offset, reach)? {
        scores.allowed = Some(and(b, scores.allowed, m)?);
    }
    if let Some(n) = valid {
        let j = arange(b, DType::I64, &t, 3, 4)?;
        let real = b.lt(j, n)?;
        scores.allowed = Some(and(b, scores.allowed, real)?);
    }
    let a = attend(b, q, k, v, scores)?;
    let y = if packed { merge_heads(b, a.y)? } else { a.y };
    let shown = match mode {
        0 => a.raw,
        1 => a.capped,
        2 => a.biased,
        3 => a.probabilities,
        m => return Err(OpError::invalid(Code::Attribute, format!("qk_matmul_output_mode {m}"))),
    };
    Ok([y, k, v, shown].into())
}

/// A positive number of heads.
pub fn heads(cx: &NodeCx, name: &str) -> Result<i64, OpError> {
    match cx.need_int(name)? {
        n if (1..=1 << 20).contains(&n) => Ok(n),
        n => Err(OpError::invalid(Code::Attribute, format!("{name} is {n}"))),
    }
}

/// `1 / sqrt(d)` of a head size, which has to be known.
pub fn inverse_root(_: &NodeCx, d: &Dim) -> Result<f64, OpError> {
    match d.as_const() {
        Some(d) if d > 0 => Ok(1.0 / (d as f64).sqrt()),
        _ => Err(OpError::unsupported(Code::Dynamic, "the size of the heads is only known at run time")),
    }
}

/// Attention whose scores and probabilities pass through subgraphs of the node.
fn flex_attention(cx: &mut NodeCx) -> OpResult {
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    for (what, x) in [("Q", q), ("K", k), ("V", v)] {
        cx.check_rank(what, x, 4)?;
    }
    let scale = match cx.attrs.float("scale")? {
        Some(s) => f64::from(s),
        None => inverse_root(cx, &cx.dim(q, 3)?)?,
    };
    let dtype = cx.dtype(q);
    let compute = match cx.attrs.has("softmax_precision") {
        true => cx.dtype_attr("softmax_precision")?.unwrap_or(DType::F32),
        false => wide(dtype),
    };
    let p = products(cx.b, q, k, scale)?;
    let p = cx.b.convert(p, compute)?;
    let p = modified(cx, "score_mod", p)?;
    let p = compose::softmax(cx.b, p, &[3])?;
    let p = modified(cx, "prob_mod", p)?;
    let p = cx.b.convert(p, dtype)?;
    Ok(weighted(cx.b, p, v)?.into())
}

/// `x` through the subgraph of this name, where there is one.
fn modified(cx: &mut NodeCx, name: &str, x: V) -> Result<V, OpError> {
    let Some(graph) = cx.attrs.graph(name)? else { return Ok(x) };
    let out = cx.imp.subgraph(cx.b, name, graph, vec![Val::Tensor(x)])?;
    match out.as_slice() {
        [Val::Tensor(y)] if cx.b.dtype(*y) == cx.b.dtype(x) && cx.b.rank(*y) == 4 => Ok(*y),
        _ => Err(OpError::invalid(Code::Type, format!("{name} should yield one tensor like its input"))),
    }
}

/// Rotates pairs of the first `rotated` features of x[B, S, H, D] by angles whose cosine and sine are
/// [B or 1, S, rotated / 2]. Pairs are neighbours where `interleaved`, else the two halves.
pub fn rotate(b: &mut Builder, x: V, cos: V, sin: V, interleaved: bool, rotated: &Dim) -> Result<V> {
    let attrs = vec![int_attr("interleaved", interleaved.into())];
    call_n(b, "rotary_embedding", attrs, &[x, cos, sin], |b, a| {
        let shape = b.shape(a[0]).to_vec();
        let two = Dim::from(2);
        let half = rotated.floor_div(&two, b.symbols());
        let cos = b.unsqueeze(a[1], &[2])?;
        let sin = b.unsqueeze(a[2], &[2])?;
        let part = b.slice_axis(a[0], 3, &Dim::from(0), rotated)?;
        let (first, second) = if interleaved {
            let pairs = [&shape[..3], &[half.clone(), two.clone()]].concat();
            let pairs = b.reshape(part, &pairs)?;
            (b.index_axis(pairs, 4, &Dim::from(0))?, b.index_axis(pairs, 4, &Dim::from(1))?)
        } else {
            (b.slice_axis(part, 3, &Dim::from(0), &half)?, b.slice_axis(part, 3, &half, &half)?)
        };
        let (fc, ss) = (b.mul(first, cos)?, b.mul(second, sin)?);
        let real = b.sub(fc, ss)?;
        let (fs, sc) = (b.mul(first, sin)?, b.mul(second, cos)?);
        let imaginary = b.add(fs, sc)?;
        let turned = if interleaved {
            let (r, i) = (b.unsqueeze(real, &[4])?, b.unsqueeze(imaginary, &[4])?);
            let pairs = b.concat(&[r, i], 4)?;
            b.reshape(pairs, &[&shape[..3], std::slice::from_ref(rotated)].concat())?
        } else {
            b.concat(&[real, imaginary], 3)?
        };
        if b.same_dim(rotated, &shape[3]) {
            return b.reshape(turned, &shape);
        }
        let rest = b.slice_axis(a[0], 3, rotated, &(&shape[3] - rotated))?;
        b.concat(&[turned, rest], 3)
    })
}

/// x as [B, S, H, D], and how to give it back its shape.
pub fn token_major(cx: &mut NodeCx, x: V) -> Result<V, OpError> {
    match cx.rank(x) {
        4 => Ok(cx.b.transpose(x, &[0, 2, 1, 3])?),
        3 => {
            let heads = Dim::from(heads(cx, "num_heads")?);
            let s = cx.shape(x);
            let size = s[2].floor_div(&heads, cx.b.symbols());
            Ok(cx.b.reshape(x, &[s[0].clone(), s[1].clone(), heads, size])?)
        }
        r => Err(OpError::invalid(Code::Shape, format!("expected rank 3 or 4, found {r}"))),
    }
}

/// Number of rotated features.
pub fn rotated_dim(cx: &NodeCx, x: V) -> Result<Dim, OpError> {
    let size = cx.dim(x, 3)?;
    match cx.int("rotary_embedding_dim", 0)? {
        0 => Ok(size),
        n if n > 0 && n % 2 == 0 => Ok(Dim::from(n)),
        n => Err(OpError::invalid(Code::Attribute, format!("rotary_embedding_dim {n}"))),
    }
}

fn rotary_embedding(cx: &mut NodeCx) -> OpResult {
    let (x, mut cos, mut sin, ids) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.opt(3)?);
    let shape = cx.shape(x);
    let wide = token_major(cx, x)?;
    let rotated = rotated_dim(cx, wide)?;
    let interleaved = cx.flag("interleaved", false)?;
    if let Some(ids) = ids {
        cos = cx.b.gather(cos, ids, 0)?;
        sin = cx.b.gather(sin, ids, 0)?;
    }
    cx.check_rank("the cosines by token", cos, 3)?;
    cx.check_rank("the sines by token", sin, 3)?;
    let y = rotate(cx.b, wide, cos, sin, interleaved, &rotated)?;
    Ok(if shape.len() == 4 { cx.b.transpose(y, &[0, 2, 1, 3])? } else { cx.b.reshape(y, &shape)? }.into())
}
