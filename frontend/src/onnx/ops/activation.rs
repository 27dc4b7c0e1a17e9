//! Activation functions.

use super::{Op, op};
use crate::onnx::cx::{NodeCx, OpResult};
use ir::IrError;
use ir::build::{Builder, V};

pub static OPS: &[Op] = &[op("Sigmoid", 1, sigmoid)];

/// `1 / (1 + exp(-x))`, as a composite.
pub fn sigmoid_of(b: &mut Builder, x: V) -> Result<V, IrError> {
    let out = b.call("sigmoid", Vec::new(), &[x], |b, args| Ok::<_, IrError>(vec![b.sigmoid(args[0])?]))?;
    Ok(out[0])
}

fn sigmoid(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    Ok(sigmoid_of(cx.b, x)?.into())
}
