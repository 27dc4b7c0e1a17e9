//! Activation functions and dropout.

use super::compose::{self, call1, float_attr, sigmoid, softplus, wide, widened};
use super::{Op, op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::{DType, Result};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[
    op("Celu", 12, celu),
    op("Dropout", 1, dropout),
    op("Elu", 1, elu),
    op("Gelu", 20, |cx| match cx.string("approximate", "none")? {
        "none" => unary(cx, compose::gelu),
        "tanh" => unary(cx, compose::gelu_tanh),
        other => Err(OpError::invalid(Code::Attribute, format!("approximate {other:?}"))),
    }),
    op("HardSigmoid", 1, |cx| {
        let (alpha, beta) = (cx.float("alpha", 0.2)?, cx.float("beta", 0.5)?);
        unary(cx, |b, x| widened(b, x, |b, x| hard_sigmoid(b, x, alpha.into(), beta.into())))
    }),
    op("HardSwish", 14, |cx| {
        unary(cx, |b, x| {
            widened(b, x, |b, x| {
                let s = hard_sigmoid(b, x, 1.0 / 6.0, 0.5)?;
                b.mul(x, s)
            })
        })
    }),
    op("LeakyRelu", 1, |cx| {
        let alpha = cx.float("alpha", 0.01)?;
        unary(cx, |b, x| leaky_relu(b, x, alpha.into()))
    }),
    op("Mish", 18, |cx| unary(cx, mish)),
    op("PRelu", 1, prelu),
    op("Selu", 1, selu),
    op("Shrink", 9, shrink),
    op("Sigmoid", 1, |cx| unary(cx, |b, x| widened(b, x, sigmoid))),
    op("Softplus", 1, |cx| unary(cx, |b, x| widened(b, x, softplus))),
    op("Softsign", 1, |cx| unary(cx, softsign)),
    op("SwiGLU", 28, swiglu),
    op("Swish", 24, |cx| {
        let alpha = cx.float("alpha", 1.0)?;
        unary(cx, |b, x| compose::swish(b, x, alpha.into()))
    }),
    op("ThresholdedRelu", 1, |cx| {
        let alpha = cx.float("alpha", 1.0)?;
        unary(cx, |b, x| thresholded_relu(b, x, alpha.into()))
    }),
    op_in(MS, "BiasGelu", |cx| biased(cx, compose::gelu)),
    op_in(MS, "FastGelu", |cx| biased(cx, compose::gelu_tanh)),
    op_in(MS, "Gelu", |cx| unary(cx, compose::gelu)),
    op_in(MS, "QuickGelu", |cx| {
        let alpha = cx.float("alpha", 1.702)?;
        unary(cx, |b, x| compose::swish(b, x, alpha.into()))
    }),
];

fn unary(cx: &mut NodeCx, f: impl FnOnce(&mut Builder, V) -> Result<V>) -> OpResult {
    let x = cx.input(0)?;
    Ok(f(cx.b, x)?.into())
}

/// `f(x + bias)`, the bias being optional.
fn biased(cx: &mut NodeCx, f: impl FnOnce(&mut Builder, V) -> Result<V>) -> OpResult {
    let mut x = cx.input(0)?;
    if let Some(bias) = cx.opt(1)? {
        x = cx.b.add(x, bias)?;
    }
    Ok(f(cx.b, x)?.into())
}

/// `max(0, min(1, alpha * x + beta))`.
pub fn hard_sigmoid(b: &mut Builder, x: V, alpha: f64, beta: f64) -> Result<V> {
    let y = b.mul_scalar(x, alpha)?;
    let y = b.add_scalar(y, beta)?;
    let (zero, one) = (b.scalar(b.dtype(x), 0.0)?, b.scalar(b.dtype(x), 1.0)?);
    b.clamp(y, zero, one)
}

/// `x < 0 ? alpha * x : x`.
pub fn leaky_relu(b: &mut Builder, x: V, alpha: f64) -> Result<V> {
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let negative = b.lt(x, zero)?;
    let scaled = b.mul_scalar(x, alpha)?;
    b.select(negative, scaled, x)
}

/// `x < 0 ? alpha * (exp(x) - 1) : x`.
pub fn elu_of(b: &mut Builder, x: V, alpha: f64) -> Result<V> {
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let negative = b.lt(x, zero)?;
    let e = b.expm1(x)?;
    let e = b.mul_scalar(e, alpha)?;
    b.select(negative, e, x)
}

/// `x > alpha ? x : 0`.
pub fn thresholded_relu(b: &mut Builder, x: V, alpha: f64) -> Result<V> {
    let (limit, zero) = (b.scalar(b.dtype(x), alpha)?, b.scalar(b.dtype(x), 0.0)?);
    let above = b.gt(x, limit)?;
    b.select(above, x, zero)
}

/// `x / (1 + |x|)`.
pub fn softsign(b: &mut Builder, x: V) -> Result<V> {
    let a = b.abs(x)?;
    let d = b.add_scalar(a, 1.0)?;
    b.div(x, d)
}

fn mish(b: &mut Builder, x: V) -> Result<V> {
    call1(b, "mish", vec![], x, |b, x| {
        widened(b, x, |b, x| {
            let s = softplus(b, x)?;
            let t = b.tanh(s)?;
            b.mul(x, t)
        })
    })
}

fn elu(cx: &mut NodeCx) -> OpResult {
    let alpha = cx.float("alpha", 1.0)?;
    unary(cx, |b, x| widened(b, x, |b, x| elu_of(b, x, alpha.into())))
}

/// `gamma * (x > 0 ? x : alpha * (exp(x) - 1))`.
fn selu(cx: &mut NodeCx) -> OpResult {
    // version 1 rounded the constants
    let (a, g) = if cx.opset < 6 { (1.6732, 1.0507) } else { (1.673_263_2, 1.050_701) };
    let (alpha, gamma) = (cx.float("alpha", a)?, cx.float("gamma", g)?);
    unary(cx, |b, x| {
        widened(b, x, |b, x| {
            let e = elu_of(b, x, alpha.into())?;
            b.mul_scalar(e, gamma.into())
        })
    })
}

/// `max(0, x) + min(0, alpha * (exp(x / alpha) - 1))`.
fn celu(cx: &mut NodeCx) -> OpResult {
    let alpha = f64::from(cx.float("alpha", 1.0)?);
    unary(cx, |b, x| {
        call1(b, "celu", vec![float_attr("alpha", alpha)], x, |b, x| {
            widened(b, x, |b, x| {
                let zero = b.scalar(b.dtype(x), 0.0)?;
                let pos = b.max(x, zero)?;
                let a = b.scalar(b.dtype(x), alpha)?;
                let q = b.div(x, a)?;
                let e = b.expm1(q)?;
                let e = b.mul(e, a)?;
                let neg = b.min(e, zero)?;
                b.add(pos, neg)
            })
        })
    })
}

/// `x < 0 ? slope * x : x`. Before version 7 a slope of rank 1 belongs to the channels.
fn prelu(cx: &mut NodeCx) -> OpResult {
    let (x, mut slope) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    if cx.opset < 7 && cx.rank(slope) == 1 && rank > 1 {
        slope = compose::along(cx.b, slope, 1, rank)?;
    }
    let shape = cx.shape(x);
    let b = &mut *cx.b;
    // the slope broadcasts to x, never the other way
    let slope = b.broadcast_to(slope, &shape)?;
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let negative = b.lt(x, zero)?;
    let scaled = b.mul(x, slope)?;
    Ok(b.select(negative, scaled, x)?.into())
}

/// `x < -lambd ? x + bias : x > lambd ? x - bias : 0`.
fn shrink(cx: &mut NodeCx) -> OpResult {
    let (bias, lambd) = (f64::from(cx.float("bias", 0.0)?), f64::from(cx.float("lambd", 0.5)?));
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    // limits of integer operands are fractional: compare as floats
    let compute = if dtype.is_int() { DType::F64 } else { wide(dtype) };
    let b = &mut *cx.b;
    let w = b.convert(x, compute)?;
    let (low, high, zero) = (b.scalar(compute, -lambd)?, b.scalar(compute, lambd)?, b.scalar(compute, 0.0)?);
    let (below, above) = (b.lt(w, low)?, b.gt(w, high)?);
    let (plus, minus) = (b.add_scalar(w, bias)?, b.add_scalar(w, -bias)?);
    let upper = b.select(above, minus, zero)?;
    let y = b.select(below, plus, upper)?;
    Ok(b.convert(y, dtype)?.into())
}

/// `swish(a) * b`.
fn swiglu(cx: &mut NodeCx) -> OpResult {
    let (gate, linear) = (cx.input(0)?, cx.input(1)?);
    let alpha = cx.float("alpha", 1.0)?;
    let s = compose::swish(cx.b, gate, alpha.into())?;
    Ok(cx.b.mul(s, linear)?.into())
}

/// The identity in inference. In training, elements are dropped with probability `ratio` and the others
/// scaled up. Before version 12 only inference exists (models that do not say are taken for that).
fn dropout(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (shape, dtype) = (cx.shape(x), cx.dtype(x));
    let mask_type = if cx.opset < 10 { dtype } else { DType::Bool };
    let all_kept = |b: &mut Builder| b.full(mask_type, &shape, 1.0);
    let training = if cx.opset >= 12 { cx.opt(2)? } else { None };
    let Some(training) = training else {
        let mask = if cx.wants(1) { all_kept(cx.b)? } else { x };
        return Ok([x, mask].into());
    };
    let ratio = cx.opt(1)?;
    let seed = super::random::seed(cx)?;
    let b = &mut *cx.b;
    let training = compose::scalar(b, training)?;
    let off = b.known_ints(training).is_some_and(|t| t == [0])
        || ratio.and_then(|r| b.known_floats(r)).is_some_and(|r| r == [0.0]);
    if off {
        let mask = all_kept(b)?;
        return Ok([x, mask].into());
    }
    let compute = wide(dtype);
    let ratio = match ratio {
        Some(r) => {
            let r = compose::scalar(b, r)?;
            b.convert(r, compute)?
        }
        None => b.scalar(compute, 0.5)?,
    };
    let u = compose::uniform(b, compute, &shape, seed)?;
    let drawn = b.ge(u, ratio)?;
    let still = b.not(training)?;
    let kept = b.or(drawn, still)?;
    let one = b.scalar(compute, 1.0)?;
    let rest = b.sub(one, ratio)?;
    let up = b.div(one, rest)?;
    let scale = b.select(training, up, one)?;
    let wide_x = b.convert(x, compute)?;
    let scaled = b.mul(wide_x, scale)?;
    let zero = b.scalar(compute, 0.0)?;
    let y = b.select(kept, scaled, zero)?;
    let y = b.convert(y, dtype)?;
    let kept = b.broadcast_to(kept, &shape)?;
    Ok([y, kept].into())
}
