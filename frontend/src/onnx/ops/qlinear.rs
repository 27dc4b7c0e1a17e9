//! Quantised operators of com.microsoft. Those without an integer formula of their own compute in real
//! numbers between a dequantisation and a quantisation, which fuse.

use super::compose::{self, sigmoid};
use super::quant::{
    dequantize_tensor, dynamic_quantize, matmul_integer, multiplier, quantize_tensor, requantize,
};
use super::{Op, activations, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Val};
use ir::build::{Builder, V};
use ir::prim::BinaryOp;
use ir::{DType, Result};

const MS: &str = "com.microsoft";

pub static OPS: &[Op] = &[
    op_in(MS, "DequantizeLinear", super::quant::dequantize_linear),
    op_in(MS, "DynamicQuantizeMatMul", dynamic_quantize_matmul),
    op_in(MS, "MatMulIntegerToFloat", matmul_integer_to_float),
    op_in(MS, "QGemm", qgemm),
    op_in(MS, "QLinearAdd", |cx| binary(cx, BinaryOp::Add)),
    op_in(MS, "QLinearAveragePool", average_pool),
    op_in(MS, "QLinearConcat", concat),
    op_in(MS, "QLinearGlobalAveragePool", global_average_pool),
    op_in(MS, "QLinearLeakyRelu", |cx| {
        let alpha = f64::from(cx.float("alpha", 0.01)?);
        unary(cx, |b, x| activations::leaky_relu(b, x, alpha))
    }),
    op_in(MS, "QLinearMul", |cx| binary(cx, BinaryOp::Mul)),
    op_in(MS, "QLinearSigmoid", |cx| unary(cx, sigmoid)),
    op_in(MS, "QLinearSoftmax", softmax),
    op_in(MS, "QuantizeLinear", super::quant::quantize_linear),
];

/// The quantised operand at input `i`, its scale and zero point behind it, as real numbers.
pub(super) fn real(cx: &mut NodeCx, i: usize) -> Result<V, OpError> {
    let (x, scale, zero) = (cx.input(i)?, cx.input(i + 1)?, cx.opt(i + 2)?);
    Ok(dequantize_tensor(cx.b, x, scale, zero)?)
}

/// Quantises with the scale at input `i`; without a zero point of its own, in the type of `like`.
pub(super) fn quantized(cx: &mut NodeCx, y: V, i: usize, like: V) -> OpResult {
    let (scale, zero) = (cx.input(i)?, cx.opt(i + 1)?);
    let zero = match zero {
        Some(z) => z,
        None => {
            let dtype = cx.dtype(like);
            cx.b.scalar(dtype, 0.0)?
        }
    };
    Ok(quantize_tensor(cx.b, y, scale, Some(zero))?.into())
}

fn unary(cx: &mut NodeCx, f: impl FnOnce(&mut Builder, V) -> Result<V>) -> OpResult {
    let x = cx.input(0)?;
    let r = real(cx, 0)?;
    let y = f(cx.b, r)?;
    quantized(cx, y, 3, x)
}

fn binary(cx: &mut NodeCx, f: BinaryOp) -> OpResult {
    let like = cx.input(0)?;
    let (x, y) = (real(cx, 0)?, real(cx, 3)?);
    let r = cx.b.binary(f, x, y)?;
    quantized(cx, r, 6, like)
}

fn softmax(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let opset = cx.int("opset", 13)?;
    let axis = cx.axis_attr("axis", if opset < 13 { 1 } else { -1 }, rank)?;
    let axes: Vec<usize> = if opset < 13 { (axis..rank).collect() } else { vec![axis] };
    unary(cx, |b, x| compose::softmax(b, x, &axes))
}

/// `channels_last` operands go through the channels-first order of everything else.
fn channels_first(b: &mut Builder, x: V, last: bool) -> Result<V> {
    let rank = b.rank(x);
    if !last || rank < 3 {
        return Ok(x);
    }
    let perm: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    b.transpose(x, &perm)
}

fn channels_last(b: &mut Builder, x: V, last: bool) -> Result<V> {
    let rank = b.rank(x);
    if !last || rank < 3 {
        return Ok(x);
    }
    let perm: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    b.transpose(x, &perm)
}

fn global_average_pool(cx: &mut NodeCx) -> OpResult {
    let last = cx.flag("channels_last", false)?;
    unary(cx, |b, x| {
        let x = channels_first(b, x, last)?;
        let axes: Vec<usize> = (2..b.rank(x)).collect();
        let y = b.reduce_mean(x, &axes, true)?;
        channels_last(b, y, last)
    })
}

fn average_pool(cx: &mut NodeCx) -> OpResult {
    let last = cx.flag("channels_last", false)?;
    let like = cx.input(0)?;
    let x = real(cx, 0)?;
    let x = channels_first(cx.b, x, last)?;
    let pooled = super::delegate(cx, "AveragePool", 22, &[Some(x)])?;
    let [Val::Tensor(y)] = pooled.0.as_slice() else {
        return Err(OpError::invalid(Code::Type, "expected one pooled tensor"));
    };
    let y = channels_last(cx.b, *y, last)?;
    quantized(cx, y, 3, like)
}

/// (scale, zero point of the result, then operand, scale and zero point of each part).
fn concat(cx: &mut NodeCx) -> OpResult {
    let n = cx.input_count();
    if n < 5 || n % 3 != 2 {
        return Err(OpError::invalid(Code::Input, format!("{n} inputs")));
    }
    let like = cx.input(2)?;
    let mut parts = Vec::new();
    for i in (2..n).step_by(3) {
        parts.push(real(cx, i)?);
    }
    let axis = cx.axis(cx.need_int("axis")?, cx.rank(parts[0]))?;
    let y = cx.b.concat(&parts, axis)?;
    quantized(cx, y, 0, like)
}

/// `alpha * A' * B' + C` in integers; real numbers come out where no result scale is given.
fn qgemm(cx: &mut NodeCx) -> OpResult {
    let (a, sa, za) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
    let (w, sw, zw) = (cx.input(3)?, cx.input(4)?, cx.opt(5)?);
    let (bias, sy, zy) = (cx.opt(6)?, cx.opt(7)?, cx.opt(8)?);
    cx.check_rank("A", a, 2)?;
    cx.check_rank("B", w, 2)?;
    let alpha = f64::from(cx.float("alpha", 1.0)?);
    let (ta, tb) = (cx.flag("transA", false)?, cx.flag("transB", false)?);
    let b = &mut *cx.b;
    let a = if ta { b.transpose(a, &[1, 0])? } else { a };
    let w = if tb { b.transpose(w, &[1, 0])? } else { w };
    let mut acc = matmul_integer(b, a, w, za, zw)?;
    if let Some(bias) = bias {
        acc = b.add(acc, bias)?;
    }
    let sa = compose::scalar(b, sa)?;
    let mut m = multiplier(b, sa, sw, sy)?;
    if alpha != 1.0 {
        m = b.mul_scalar(m, alpha)?;
    }
    if b.shape(m).iter().all(|d| d.is_const(1)) {
        m = b.reshape(m, &[])?;
    }
    if sy.is_none() {
        let f = b.convert(acc, DType::F32)?;
        return Ok(b.mul(f, m)?.into());
    }
    let zy = match zy {
        Some(z) => z,
        None => b.scalar(b.dtype(a), 0.0)?,
    };
    Ok(requantize(b, acc, m, Some(zy))?.into())
}

/// The real product of integer sums with both scales, plus a bias.
fn scaled(b: &mut Builder, acc: V, sa: V, sw: V, bias: Option<V>) -> Result<V> {
    let f = b.convert(acc, DType::F32)?;
    let m = multiplier(b, sa, sw, None)?;
    let y = b.mul(f, m)?;
    match bias {
        Some(c) => b.add(y, c),
        None => Ok(y),
    }
}

fn matmul_integer_to_float(cx: &mut NodeCx) -> OpResult {
    let (a, w, sa, sw) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.input(3)?);
    let (za, zw, bias) = (cx.opt(4)?, cx.opt(5)?, cx.opt(6)?);
    let b = &mut *cx.b;
    let acc = matmul_integer(b, a, w, za, zw)?;
    let sa = compose::scalar(b, sa)?;
    Ok(scaled(b, acc, sa, sw, bias)?.into())
}

/// The left operand is quantised by its own range.
fn dynamic_quantize_matmul(cx: &mut NodeCx) -> OpResult {
    let (a, w, sw, zw, bias) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.opt(3)?, cx.opt(4)?);
    let b = &mut *cx.b;
    let [q, sa, za] = dynamic_quantize(b, a)?;
    let acc = matmul_integer(b, q, w, Some(za), zw)?;
    Ok(scaled(b, acc, sa, sw, bias)?.into())
}
