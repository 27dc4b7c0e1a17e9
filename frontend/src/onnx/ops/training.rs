//! Optimiser steps of ai.onnx.preview.training. Inputs are a rate, an update count, then all tensors of
//! one role after the other.

use super::{Op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Outs, Val};
use ir::build::{Builder, V};
use ir::{DType, Result};

const TRAINING: &str = "ai.onnx.preview.training";

pub static OPS: &[Op] = &[
    op_in(TRAINING, "Adagrad", |cx| {
        let epsilon = f64::from(cx.float("epsilon", 0.0)?);
        let (decay, norm) = (f64::from(cx.float("decay_factor", 0.0)?), norm(cx)?);
        each(cx, 3, 2, |b, rate, t, v| {
            // the rate falls with the number of updates
            let slow = b.mul_scalar(t, decay)?;
            let slow = b.add_scalar(slow, 1.0)?;
            let rate = b.div(rate, slow)?;
            let g = regularized(b, v[0], v[1], norm)?;
            let sq = b.mul(g, g)?;
            let h = b.add(v[2], sq)?;
            let root = b.sqrt(h)?;
            let root = b.add_scalar(root, epsilon)?;
            let step = b.div(g, root)?;
            Ok(vec![moved(b, v[0], rate, step)?, h])
        })
    }),
    op_in(TRAINING, "Adam", |cx| {
        let (alpha, beta) = (f64::from(cx.float("alpha", 0.9)?), f64::from(cx.float("beta", 0.999)?));
        let (epsilon, norm) = (f64::from(cx.float("epsilon", 0.0)?), norm(cx)?);
        let after = f64::from(cx.float("norm_coefficient_post", 0.0)?);
        each(cx, 4, 3, |b, rate, t, v| {
            let g = regularized(b, v[0], v[1], norm)?;
            let first = blend(b, v[2], g, alpha)?;
            let sq = b.mul(g, g)?;
            let second = blend(b, v[3], sq, beta)?;
            // both averages start at 0: their bias is taken out, but for the first update
            let bias = |b: &mut Builder, base: f64| -> Result<V> {
                let base = b.scalar(b.dtype(t), base)?;
                let p = b.pow(base, t)?;
                let n = b.neg(p)?;
                b.add_scalar(n, 1.0)
            };
            let (top, bottom) = (bias(b, beta)?, bias(b, alpha)?);
            let top = b.sqrt(top)?;
            let fixed = b.mul(rate, top)?;
            let fixed = b.div(fixed, bottom)?;
            let zero = b.scalar(b.dtype(t), 0.0)?;
            let later = b.gt(t, zero)?;
            let rate = b.select(later, fixed, rate)?;
            let root = b.sqrt(second)?;
            let root = b.add_scalar(root, epsilon)?;
            let step = b.div(first, root)?;
            let x = moved(b, v[0], rate, step)?;
            Ok(vec![b.mul_scalar(x, 1.0 - after)?, first, second])
        })
    }),
    op_in(TRAINING, "Gradient", gradient),
    op_in(TRAINING, "Momentum", |cx| {
        let (alpha, beta) = (f64::from(cx.float("alpha", 0.9)?), f64::from(cx.float("beta", 1.0)?));
        let norm = norm(cx)?;
        let nesterov = match cx.string("mode", "standard")? {
            "standard" => false,
            "nesterov" => true,
            m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
        };
        each(cx, 3, 2, |b, rate, t, v| {
            let g = regularized(b, v[0], v[1], norm)?;
            let (zero, one) = (b.scalar(b.dtype(t), 0.0)?, b.scalar(b.dtype(t), 1.0)?);
            let beta = b.scalar(b.dtype(t), beta)?;
            let later = b.gt(t, zero)?;
            let beta = b.select(later, beta, one)?;
            let beta = b.convert(beta, b.dtype(g))?;
            let kept = b.mul_scalar(v[2], alpha)?;
            let added = b.mul(g, beta)?;
            let speed = b.add(kept, added)?;
            let step = if nesterov {
                let ahead = b.mul_scalar(speed, alpha)?;
                b.add(g, ahead)?
            } else {
                speed
            };
            Ok(vec![moved(b, v[0], rate, step)?, speed])
        })
    }),
];

/// The derivatives of the value named `y` by those named `xs`, at the values that these have in the graph. The graph
/// between them is differentiated; `zs` names what is held fixed besides, which changes nothing here.
fn gradient(cx: &mut NodeCx) -> OpResult {
    let named = |cx: &NodeCx, name: &str| match cx.imp.lookup(name) {
        Some(Val::Tensor(v)) => Ok(v),
        _ => Err(OpError::invalid(Code::Name, format!("there is no tensor {name:?} to differentiate"))),
    };
    let y = cx.string("y", "")?;
    let y = named(cx, y)?;
    let names = cx.attrs.strs("xs")?.unwrap_or_default();
    let mut xs = Vec::with_capacity(names.len());
    for (i, name) in names.into_iter().enumerate() {
        let x = named(cx, name)?;
        if cx.input(i)? != x {
            return Err(OpError::unsupported(
                Code::Input,
                format!("the derivative by {name:?} at another value than the graph gives it"),
            )
            .hint("name the tensor that is the input"));
        }
        xs.push(x);
    }
    match grad::gradient(cx.b, y, &xs) {
        Ok(grads) => Ok(grads.into()),
        Err(grad::GradError::Ir(e)) => Err(e.into()),
        Err(e) => Err(OpError::unsupported(Code::Op, e.to_string())),
    }
}

fn norm(cx: &NodeCx) -> Result<f64, OpError> {
    Ok(cx.float("norm_coefficient", 0.0)?.into())
}

/// `norm * x + gradient`.
fn regularized(b: &mut Builder, x: V, gradient: V, norm: f64) -> Result<V> {
    let n = b.mul_scalar(x, norm)?;
    b.add(n, gradient)
}

/// `keep * old + (1 - keep) * new`.
fn blend(b: &mut Builder, old: V, new: V, keep: f64) -> Result<V> {
    let old = b.mul_scalar(old, keep)?;
    let new = b.mul_scalar(new, 1.0 - keep)?;
    b.add(old, new)
}

/// `x - rate * step`, the rate in its own type.
fn moved(b: &mut Builder, x: V, rate: V, step: V) -> Result<V> {
    let rate = b.convert(rate, b.dtype(x))?;
    let d = b.mul(step, rate)?;
    b.sub(x, d)
}

/// `f(rate, count, tensors of one variable)` for every variable: `roles` inputs and `results` outputs of
/// each, grouped by role.
fn each(
    cx: &mut NodeCx,
    roles: usize,
    results: usize,
    f: impl Fn(&mut Builder, V, V, &[V]) -> Result<Vec<V>>,
) -> OpResult {
    let (rate, count) = (cx.input(0)?, cx.input(1)?);
    let all = (2..cx.input_count()).map(|i| cx.input(i)).collect::<Result<Vec<V>, _>>()?;
    if all.is_empty() || all.len() % roles != 0 {
        return Err(OpError::invalid(Code::Input, format!("{} tensors for {roles} roles", all.len())));
    }
    let n = all.len() / roles;
    let b = &mut *cx.b;
    let rate = super::compose::scalar(b, rate)?;
    let count = super::compose::scalar(b, count)?;
    let to = if b.dtype(rate) == DType::F64 { DType::F64 } else { DType::F32 };
    let (rate, count) = (b.convert(rate, to)?, b.convert(count, to)?);
    let mut out = vec![Val::Poison; n * results];
    for i in 0..n {
        let own: Vec<V> = (0..roles).map(|r| all[r * n + i]).collect();
        for (r, v) in f(b, rate, count, &own)?.into_iter().enumerate() {
            out[r * n + i] = Val::Tensor(v);
        }
    }
    Ok(Outs(out))
}
