//! Random numbers, drawn from a counter-based generator: the same model gives the same numbers on every
//! machine and in every run.

use super::compose::{self, uniform};
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::{DType, Dim, Result};

pub static OPS: &[Op] = &[
    op("Bernoulli", 15, bernoulli),
    op("Multinomial", 7, multinomial),
    op("RandomNormal", 1, |cx| draw_shape(cx, normal)),
    op("RandomNormalLike", 1, |cx| draw_like(cx, normal)),
    op("RandomUniform", 1, |cx| draw_shape(cx, uniform_between)),
    op("RandomUniformLike", 1, |cx| draw_like(cx, uniform_between)),
];

/// The seed of the node: its attribute, else a number made from its name.
pub fn seed(cx: &NodeCx) -> Result<u64, OpError> {
    if cx.attrs.has("seed") {
        // float by the standard, integer for dropout
        return Ok(match cx.attrs.float("seed") {
            Ok(f) => u64::from(f.unwrap_or(0.0).to_bits()),
            Err(_) => cx.int("seed", 0)? as u64,
        });
    }
    let origin = &cx.b.module().origins[cx.b.origin().index()];
    // FNV-1a
    let hash = |h: u64, byte: u8| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    Ok(origin.node.bytes().fold(0xcbf2_9ce4_8422_2325, hash))
}

type Draw = fn(&mut NodeCx, DType, &[Dim]) -> Result<V, OpError>;

fn draw_shape(cx: &mut NodeCx, f: Draw) -> OpResult {
    let shape: Vec<Dim> = cx.need_ints("shape")?.into_iter().map(Dim::from).collect();
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(DType::F32);
    Ok(f(cx, dtype, &shape)?.into())
}

fn draw_like(cx: &mut NodeCx, f: Draw) -> OpResult {
    let x = cx.input(0)?;
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(cx.dtype(x));
    let shape = cx.shape(x);
    Ok(f(cx, dtype, &shape)?.into())
}

fn float_type(dtype: DType) -> Result<DType, OpError> {
    if dtype.is_float() {
        return Ok(compose::wide(dtype));
    }
    Err(OpError::invalid(Code::Type, format!("expected a float type, found {dtype}")))
}

fn uniform_between(cx: &mut NodeCx, dtype: DType, shape: &[Dim]) -> Result<V, OpError> {
    let (low, high) = (f64::from(cx.float("low", 0.0)?), f64::from(cx.float("high", 1.0)?));
    let (compute, seed) = (float_type(dtype)?, seed(cx)?);
    let b = &mut *cx.b;
    let u = uniform(b, compute, shape, seed)?;
    let u = b.mul_scalar(u, high - low)?;
    let u = b.add_scalar(u, low)?;
    Ok(b.convert(u, dtype)?)
}

/// Box-Muller: `sqrt(-2 ln u1) * cos(2 pi u2)`.
fn normal(cx: &mut NodeCx, dtype: DType, shape: &[Dim]) -> Result<V, OpError> {
    let (mean, scale) = (f64::from(cx.float("mean", 0.0)?), f64::from(cx.float("scale", 1.0)?));
    let (compute, seed) = (float_type(dtype)?, seed(cx)?);
    let b = &mut *cx.b;
    let n = standard_normal(b, compute, shape, seed)?;
    let n = b.mul_scalar(n, scale)?;
    let n = b.add_scalar(n, mean)?;
    Ok(b.convert(n, dtype)?)
}

fn standard_normal(b: &mut Builder, dtype: DType, shape: &[Dim], seed: u64) -> Result<V> {
    let u1 = uniform(b, dtype, shape, seed)?;
    let u2 = uniform(b, dtype, shape, seed ^ 0x9e37_79b9_7f4a_7c15)?;
    // 1 - u is in (0, 1]: its logarithm is finite
    let n = b.neg(u1)?;
    let l = b.log1p(n)?;
    let l = b.mul_scalar(l, -2.0)?;
    let r = b.sqrt(l)?;
    let a = b.mul_scalar(u2, std::f64::consts::TAU)?;
    let c = b.cos(a)?;
    b.mul(r, c)
}

/// 1 with the probability that each element says.
fn bernoulli(cx: &mut NodeCx) -> OpResult {
    let p = cx.input(0)?;
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(cx.dtype(p));
    let (shape, compute, seed) = (cx.shape(p), float_type(cx.dtype(p))?, seed(cx)?);
    let b = &mut *cx.b;
    let u = uniform(b, compute, &shape, seed)?;
    let p = b.convert(p, compute)?;
    let hit = b.lt(u, p)?;
    Ok(b.convert(hit, dtype)?.into())
}

/// Draws classes from unnormalised log-probabilities [batch, classes]: the largest of
/// `log p + Gumbel noise` is distributed like p.
fn multinomial(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("log-probabilities", x, 2)?;
    let samples = cx.int("sample_size", 1)?;
    let dtype = cx.dtype_attr("dtype")?.unwrap_or(DType::I32);
    let (shape, compute, seed) = (cx.shape(x), float_type(cx.dtype(x))?, seed(cx)?);
    let b = &mut *cx.b;
    let full = [shape[0].clone(), Dim::from(samples), shape[1].clone()];
    let u = uniform(b, compute, &full, seed)?;
    // -ln(-ln(1 - u)), kept away from 1 - u = 1
    let u = b.add_scalar(u, 1e-12)?;
    let n = b.neg(u)?;
    let l = b.log1p(n)?;
    let l = b.neg(l)?;
    let l = b.log(l)?;
    let x = b.convert(x, compute)?;
    let x = b.unsqueeze(x, &[1])?;
    let score = b.sub(x, l)?;
    let best = b.arg_reduce(score, true, 2, false)?;
    Ok(b.convert(best, dtype)?.into())
}
