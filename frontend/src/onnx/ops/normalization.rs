//! Softmax and normalisations.

use super::{Op, op};
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::prim::Attr;
use ir::{Dim, IrError};

pub static OPS: &[Op] = &[op("Softmax", 1, softmax)];

/// `exp(x - max x) / sum exp(x - max x)` along `axis`, as a composite.
pub fn softmax_of(b: &mut Builder, x: V, axis: usize) -> Result<V, IrError> {
    let attrs = vec![("axis".to_owned(), Attr::Int(axis as i64))];
    let out = b.call("softmax", attrs, &[x], |b, args| {
        let m = b.reduce_max(args[0], &[axis], true)?;
        let d = b.sub(args[0], m)?;
        let e = b.exp(d)?;
        let s = b.reduce_sum(e, &[axis], true)?;
        Ok::<_, IrError>(vec![b.div(e, s)?])
    })?;
    Ok(out[0])
}

/// From version 13 on along one axis; before, over all dims from `axis` on together.
fn softmax(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    if cx.opset >= 13 {
        let axis = cx.axis_attr("axis", -1, shape.len())?;
        return Ok(softmax_of(cx.b, x, axis)?.into());
    }
    let axis = cx.axis_attr("axis", 1, shape.len())?;
    let flat = flat_from(cx, x, axis)?;
    let y = softmax_of(cx.b, flat, 1)?;
    Ok(cx.b.reshape(y, &shape)?.into())
}

/// Two dims: what is before `axis`, and the rest.
pub fn flat_from(cx: &mut NodeCx, x: V, axis: usize) -> Result<V, OpError> {
    let shape = cx.shape(x);
    Ok(cx.b.reshape(x, &[Dim::product(&shape[..axis]), Dim::product(&shape[axis..])])?)
}
