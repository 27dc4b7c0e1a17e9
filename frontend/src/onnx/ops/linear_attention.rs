//! Layers that carry a state from step to step: linear attention and causal convolution.

use super::attention::{heads, inverse_root, merge_heads, split_heads};
use super::compose::{self, int_attr, wide};
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, LoopStep, V};
use ir::prim::{Attr, WindowDim};
use ir::{DType, Dim, IrError, Result};

pub static OPS: &[Op] =
    &[op("CausalConvWithState", 27, causal_conv_with_state), op("LinearAttention", 27, linear_attention)];

/// By head, a state S[d_k, d_v] that decays, is corrected and updated by `k (x) v` at every step; the
/// output is `scale * q^T S`.
fn linear_attention(cx: &mut NodeCx) -> OpResult {
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (past, decay, beta) = (cx.opt(3)?, cx.opt(4)?, cx.opt(5)?);
    for (what, x) in [("query", q), ("key", k), ("value", v)] {
        cx.check_rank(what, x, 3)?;
    }
    let (hq, hk) = (heads(cx, "q_num_heads")?, heads(cx, "kv_num_heads")?);
    if hq % hk != 0 {
        return Err(OpError::invalid(Code::Attribute, format!("{hq} query heads for {hk} key heads")));
    }
    let rule = cx.string("update_rule", "gated_delta")?;
    let (gated, delta) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(OpError::invalid(Code::Attribute, format!("update_rule {other:?}"))),
    };
    let need = |x: Option<V>, needed: bool, what: &str| match (x, needed) {
        (Some(x), true) => Ok(Some(x)),
        (None, false) => Ok(None),
        _ => Err(OpError::invalid(Code::Input, format!("update_rule {rule:?} and input {what} do not fit"))),
    };
    let (decay, beta) = (need(decay, gated, "decay")?, need(beta, delta, "beta")?);
    let width = cx.dim(q, 2)?.floor_div(&Dim::from(hq), cx.b.symbols());
    let scale = match cx.float("scale", 0.0)? {
        0.0 => inverse_root(cx, &width)?,
        s => f64::from(s),
    };
    let out_type = cx.dtype(q);
    let state_type = past.map_or(out_type, |p| cx.dtype(p));
    let attrs = vec![("rule".to_owned(), Attr::Str(rule.to_owned())), int_attr("heads", hq)];
    let operands: Vec<V> = [Some(q), Some(k), Some(v), past, decay, beta].into_iter().flatten().collect();
    let out = cx.b.call::<IrError>("linear_attention", attrs, &operands, |b, a| {
        let compute = wide(out_type);
        let mut rest = a[3..].iter().copied();
        let mut take = |given: Option<V>| given.and_then(|_| rest.next());
        let (past, decay, beta) = (take(past), take(decay), take(beta));
        // by time: [T, B, H, D]
        let by_time = |b: &mut Builder, x: V, heads: i64| -> Result<V> {
            let x = b.convert(x, compute)?;
            let x = split_heads(b, x, heads)?;
            b.transpose(x, &[2, 0, 1, 3])
        };
        let (q, k, v) = (by_time(b, a[0], hq)?, by_time(b, a[1], hk)?, by_time(b, a[2], hk)?);
        let (ks, vs) = (b.shape(k).to_vec(), b.shape(v).to_vec());
        let state_shape = [ks[1].clone(), ks[2].clone(), ks[3].clone(), vs[3].clone()];
        let state = match past {
            Some(p) => b.convert(p, compute)?,
            None => b.full(compute, &state_shape, 0.0)?,
        };
        // [T, B, H, d_k or 1] of factors
        let decay = match decay {
            Some(g) => {
                let g = by_time(b, g, hk)?;
                Some(b.exp(g)?)
            }
            None => None,
        };
        let beta = match beta {
            Some(x) => {
                let own = b.shape(x).get(2).and_then(Dim::as_const).unwrap_or(hk);
                Some(by_time(b, x, own)?)
            }
            None => None,
        };
        let trip = b.dim_value(&ks[0])?;
        let groups = Dim::from(hq / hk);
        let out = b.loop_::<IrError>(Some(trip), None, &[state], |b, t, carried| {
            let mut s = carried[0];
            if let Some(decay) = decay {
                let g = b.gather(decay, t, 0)?;
                let g = b.unsqueeze(g, &[3])?;
                s = b.mul(s, g)?;
            }
            let kt = b.gather(k, t, 0)?;
            let mut vt = b.gather(v, t, 0)?;
            if let Some(beta) = beta {
                // what the state answers for this key is replaced in part
                let known = b.contract(kt, s, &[(0, 0), (1, 1)], &[(2, 2)], compute)?;
                let bt = b.gather(beta, t, 0)?;
                let d = b.sub(vt, known)?;
                vt = b.mul(bt, d)?;
            }
            let (column, row) = (b.unsqueeze(kt, &[3])?, b.unsqueeze(vt, &[2])?);
            let update = b.mul(column, row)?;
            let s = b.add(s, update)?;
            let qt = b.gather(q, t, 0)?;
            let qs = b.shape(qt).to_vec();
            let grouped = [qs[0].clone(), Dim::from(hk), groups.clone(), qs[2].clone()];
            let qt = b.reshape(qt, &grouped)?;
            let y = b.contract(qt, s, &[(0, 0), (1, 1)], &[(3, 2)], compute)?;
            let y = b.reshape(y, &[qs[0].clone(), qs[1].clone(), vs[3].clone()])?;
            let y = b.mul_scalar(y, scale)?;
            let cond = b.scalar(DType::Bool, 1.0)?;
            Ok(LoopStep { cond, carried: vec![s], scans: vec![y] })
        })?;
        // [T, B, Hq, d_v] back to tokens
        let y = b.transpose(out[1], &[1, 2, 0, 3])?;
        let y = merge_heads(b, y)?;
        Ok(vec![b.convert(y, out_type)?, b.convert(out[0], state_type)?])
    })?;
    Ok(out.into())
}

/// A depthwise convolution over the past; its last `k - 1` inputs are the next state.
fn causal_conv_with_state(cx: &mut NodeCx) -> OpResult {
    let (x, w, bias, past) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?, cx.opt(3)?);
    cx.check_rank("input", x, 3)?;
    cx.check_rank("weight", w, 3)?;
    let (channels, taps) = (cx.dim(w, 0)?, cx.dim(w, 2)?);
    let silu = match cx.string("activation", "none")? {
        "none" => false,
        "silu" | "swish" => true,
        other => return Err(OpError::invalid(Code::Attribute, format!("activation {other:?}"))),
    };
    let Some(groups) = channels.as_const().and_then(|c| usize::try_from(c).ok()) else {
        return Err(OpError::unsupported(Code::Dynamic, "a number of channels that is not known"));
    };
    let shape = cx.shape(x);
    let dtype = cx.dtype(x);
    let keep = &taps - &Dim::from(1);
    let b = &mut *cx.b;
    let before = match past {
        Some(p) => p,
        None => b.full(dtype, &[shape[0].clone(), shape[1].clone(), keep.clone()], 0.0)?,
    };
    let padded = b.concat(&[before, x], 2)?;
    let mut y = b.convolve(padded, w, &[WindowDim::unit()], groups, dtype)?;
    if let Some(bias) = bias {
        let bias = compose::along(b, bias, 1, 3)?;
        y = b.add(y, bias)?;
    }
    if silu {
        y = compose::swish(b, y, 1.0)?;
    }
    // the padded sequence is `keep` longer than the input
    let state = b.slice_axis(padded, 2, &shape[2], &keep)?;
    Ok([y, state].into())
}
