//! Operators that early files carry and the standard has since dropped.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::Dim;
use ir::tensor::Tensor;

pub static OPS: &[Op] = &[
    op("Affine", 1, affine),
    op("Crop", 1, crop),
    op("ImageScaler", 1, image_scaler),
    op("ParametricSoftplus", 1, parametric_softplus),
    op("ScaledTanh", 1, scaled_tanh),
];

/// `alpha * x + beta`.
fn affine(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (alpha, beta) = (cx.float("alpha", 1.0)?, cx.float("beta", 0.0)?);
    let y = cx.b.mul_scalar(x, alpha.into())?;
    Ok(cx.b.add_scalar(y, beta.into())?.into())
}

/// `scale * x + bias[channel]` of an image [n, c, h, w].
fn image_scaler(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("input", x, 4)?;
    let scale = cx.float("scale", 1.0)?;
    let y = cx.b.mul_scalar(x, scale.into())?;
    let Some(bias) = cx.attrs.floats("bias")? else { return Ok(y.into()) };
    let bias = cx.b.constant(Tensor::from_f32(vec![bias.len(), 1, 1], bias))?;
    let dtype = cx.dtype(x);
    let bias = cx.b.convert(bias, dtype)?;
    Ok(cx.b.add(y, bias)?.into())
}

/// Cuts `border` = (left, top, right, bottom) off an image, or keeps `scale` = (height, width) from the
/// left and top borders on.
fn crop(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("input", x, 4)?;
    let border = cx.need_ints("border")?;
    let [left, top, right, bottom] = border[..] else {
        return Err(OpError::invalid(Code::Attribute, format!("border {border:?}, expected 4 numbers")));
    };
    let shape = cx.shape(x);
    let mut size = shape.clone();
    match cx.ints("scale")?.as_deref() {
        Some(&[h, w]) => (size[2], size[3]) = (Dim::from(h), Dim::from(w)),
        Some(s) => return Err(OpError::invalid(Code::Attribute, format!("scale {s:?}, expected 2 numbers"))),
        None => {
            size[2] = &shape[2] - &Dim::from(top.saturating_add(bottom));
            size[3] = &shape[3] - &Dim::from(left.saturating_add(right));
        }
    }
    let start = [Dim::from(0), Dim::from(0), Dim::from(top), Dim::from(left)];
    Ok(cx.b.slice(x, &start, &size, &[1; 4])?.into())
}

/// `alpha * log(exp(beta * x) + 1)`, as `max(t, 0) + log1p(exp(-|t|))` with `t = beta * x`.
fn parametric_softplus(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (alpha, beta) = (cx.float("alpha", 1.0)?, cx.float("beta", 1.0)?);
    let t = cx.b.mul_scalar(x, beta.into())?;
    let zero = cx.like(t, 0.0)?;
    let positive = cx.b.max(t, zero)?;
    let size = cx.b.abs(t)?;
    let minus = cx.b.neg(size)?;
    let e = cx.b.exp(minus)?;
    let l = cx.b.log1p(e)?;
    let y = cx.b.add(positive, l)?;
    Ok(cx.b.mul_scalar(y, alpha.into())?.into())
}

/// `alpha * tanh(beta * x)`.
fn scaled_tanh(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (alpha, beta) = (cx.float("alpha", 1.0)?, cx.float("beta", 1.0)?);
    let t = cx.b.mul_scalar(x, beta.into())?;
    let t = cx.b.tanh(t)?;
    Ok(cx.b.mul_scalar(t, alpha.into())?.into())
}
