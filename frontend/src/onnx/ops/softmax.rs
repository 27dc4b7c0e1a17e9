//! Softmax, LogSoftmax, Hardmax.

use super::compose;
use super::{Op, op};
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::{DType, Dim};

pub static OPS: &[Op] = &[
    op("Hardmax", 1, hardmax),
    op("LogSoftmax", 1, |cx| {
        let (x, axes) = operand(cx)?;
        Ok(compose::log_softmax(cx.b, x, &axes)?.into())
    }),
    op("Softmax", 1, |cx| {
        let (x, axes) = operand(cx)?;
        Ok(compose::softmax(cx.b, x, &axes)?.into())
    }),
];

/// The operand and the axes that are normalised together: one axis from version 13 on, before that all
/// from `axis` on (the operand counts as a matrix).
fn operand(cx: &mut NodeCx) -> Result<(V, Vec<usize>), OpError> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    if cx.opset >= 13 {
        return Ok((x, if rank == 0 { vec![] } else { vec![cx.axis_attr("axis", -1, rank)?] }));
    }
    let axis = match cx.int("axis", 1)? {
        a if a == rank as i64 => rank,
        a => cx.axis(a, rank)?,
    };
    Ok((x, (axis..rank).collect()))
}

/// 1 at the first largest element, 0 elsewhere.
fn hardmax(cx: &mut NodeCx) -> OpResult {
    let (x, axes) = operand(cx)?;
    let (shape, dtype) = (cx.shape(x), cx.dtype(x));
    let b = &mut *cx.b;
    // as [outer, n, inner] with n the normalised elements
    let (lo, hi) = (axes.first().copied().unwrap_or(0), axes.last().map_or(0, |a| a + 1));
    let n = Dim::product(&shape[lo..hi]);
    let cut = [Dim::product(&shape[..lo]), n.clone(), Dim::product(&shape[hi..])];
    let flat = b.reshape(x, &cut)?;
    let best = b.arg_reduce(flat, true, 1, false)?;
    let best = b.unsqueeze(best, &[1])?;
    let index = compose::arange(b, DType::I64, &n, 1, 3)?;
    let hit = b.eq(index, best)?;
    let out = compose::indicator(b, hit, dtype, 1.0, 0.0)?;
    Ok(b.reshape(out, &shape)?.into())
}
