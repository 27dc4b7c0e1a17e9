//! How far compiled kernels may be from the reference interpreter.

use interp::Tolerance;
use ir::prim::BinaryOp;
use ir::{DType, Math, Module, Prim, ValueId};

/// How far a kernel's result may be from the interpreter's.
pub fn tolerance(m: &Module, v: ValueId, math: Math) -> Tolerance {
    // one operand beside a rounding boundary moves one quantised value by a whole step
    match is_rounded(m, v) {
        true => Tolerance { abs: 1.0, ..Tolerance::EXACT },
        false => tolerance_of(m.graph[v].ty.dtype, math),
    }
}

/// As [`tolerance`], for a value of which nothing but its type is known.
pub fn tolerance_of(dtype: DType, math: Math) -> Tolerance {
    match math {
        // likewise a whole step of bf16, and all sums after it
        Math::Bf16 if dtype == DType::F32 => Tolerance::of_network(DType::BF16),
        _ => Tolerance::of_network(dtype),
    }
}

/// Bytes that were floats: rounded, or moved since.
fn is_rounded(m: &Module, v: ValueId) -> bool {
    let Some(op) = m.graph.def_op(v).map(|op| &m.graph[op]) else { return false };
    let Some(&x) = op.operands.first() else { return false };
    let (from, to) = (m.graph[x].ty.dtype, m.graph[v].ty.dtype);
    match &op.prim {
        Prim::Convert { .. } => from.is_float() && to.is_int() && to.bytes() == 1,
        Prim::Bitcast { .. }
        | Prim::Binary(BinaryOp::Xor)
        | Prim::Pad { .. }
        | Prim::Reshape { .. }
        | Prim::Transpose { .. }
        | Prim::WindowReduce { .. } => to.bytes() == 1 && is_rounded(m, x),
        _ => false,
    }
}
