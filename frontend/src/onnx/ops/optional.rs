//! Optionals: whether one holds something is known at import.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Val};
use crate::onnx::inputs::element_dtype;
use ir::DType;

pub static OPS: &[Op] = &[
    op("Optional", 15, optional),
    op("OptionalGetElement", 15, get_element),
    op("OptionalHasElement", 15, has_element),
];

/// What holds something is that thing.
fn optional(cx: &mut NodeCx) -> OpResult {
    if let Some(v) = cx.val(0) {
        return Ok(v.clone().into());
    }
    let dtype = cx.attrs.type_proto("type")?.and_then(element_dtype);
    Ok(Val::Absent(dtype).into())
}

fn get_element(cx: &mut NodeCx) -> OpResult {
    match cx.val(0) {
        None | Some(Val::Absent(_)) => Err(OpError::invalid(Code::Input, "the optional holds nothing")),
        Some(v) => Ok(v.clone().into()),
    }
}

fn has_element(cx: &mut NodeCx) -> OpResult {
    let held = !matches!(cx.val(0), None | Some(Val::Absent(_)));
    Ok(cx.b.scalar(DType::Bool, if held { 1.0 } else { 0.0 })?.into())
}
