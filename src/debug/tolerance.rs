//! How far compiled kernels may be from the reference interpreter.

use interp::{Comparison, Tolerance, compare};
use ir::prim::BinaryOp;
use ir::{DType, Math, Module, Prim, Tensor, ValueId};

/// Of how many elements one, at most, may lie beside a boundary of rounding.
const RARE: usize = 100;

/// Compares what a kernel gave for value `v` with the interpreter's result for the same operands. Of floats that were
/// rounded to bytes, few elements may be one step apart: an operand beside a boundary falls to either side.
pub fn judge(m: &Module, v: ValueId, got: &Tensor, want: &Tensor, math: Math) -> Comparison {
    let close = compare(got, want, tolerance_of(want.dtype, math));
    if close.passes() || close.mismatch.is_some() || close.bad > 1 + close.elems / RARE {
        return close;
    }
    step(m, v, DEPTH).map_or(close, |_| compare(got, want, tolerance(m, v, math)))
}

/// How far a kernel's result may be from the interpreter's.
pub fn tolerance(m: &Module, v: ValueId, math: Math) -> Tolerance {
    let close = tolerance_of(m.graph[v].ty.dtype, math);
    // the product with a scale is rounded too
    step(m, v, DEPTH).map_or(close, |s| Tolerance { abs: close.abs + s * (1.0 + 1e-6), ..close })
}

/// As [`tolerance`], for a value of which nothing but its type is known.
pub fn tolerance_of(dtype: DType, math: Math) -> Tolerance {
    match math {
        // likewise a whole step of bf16, and all sums after it
        Math::Bf16 if dtype == DType::F32 => Tolerance::of_network(DType::BF16),
        _ => Tolerance::of_network(dtype),
    }
}

/// Ops between a value and the rounding behind it.
const DEPTH: usize = 12;

/// Of a value that is a float rounded to a byte, and scaled or moved since: how far apart neighbours are, at most.
fn step(m: &Module, v: ValueId, depth: usize) -> Option<f64> {
    let op = &m.graph[m.graph.def_op(v).filter(|_| depth > 0)?];
    let &x = op.operands.first()?;
    let of = |x: ValueId| step(m, x, depth - 1);
    let (from, to) = (m.graph[x].ty.dtype, m.graph[v].ty.dtype);
    match (&op.prim, op.operands.get(1)) {
        (Prim::Convert { .. }, _) if from.is_float() && to.is_int() => (to.bytes() == 1).then_some(1.0),
        (Prim::Convert { .. }, _) => of(x),
        (
            Prim::Bitcast { .. }
            | Prim::Pad { .. }
            | Prim::Reshape { .. }
            | Prim::Transpose { .. }
            | Prim::Broadcast { .. }
            | Prim::WindowReduce { .. },
            _,
        ) => of(x),
        (Prim::Binary(BinaryOp::Mul), Some(&y)) => {
            let scaled = |x, scale| Some(of(x)? * largest(m, scale, depth - 1)?);
            scaled(x, y).or_else(|| scaled(y, x))
        }
        (Prim::Binary(BinaryOp::Add | BinaryOp::Sub), Some(&y)) => match (of(x), of(y)) {
            (Some(a), Some(b)) => Some(a + b),
            (Some(a), None) | (None, Some(a)) => {
                let fixed = [x, y].into_iter().any(|c| largest(m, c, depth - 1).is_some());
                fixed.then_some(a)
            }
            (None, None) => None,
        },
        // the other bytes of a sign that was changed; bounds
        (Prim::Binary(BinaryOp::Xor | BinaryOp::Max | BinaryOp::Min), _) => of(x),
        _ => None,
    }
}

/// The largest magnitude in a constant.
fn largest(m: &Module, v: ValueId, depth: usize) -> Option<f64> {
    let op = &m.graph[m.graph.def_op(v).filter(|_| depth > 0)?];
    match op.prim {
        Prim::Const(c) => {
            let data = m.consts.get(c.0 as usize)?;
            (0..data.elems())
                .map(|i| data.scalar_at(i).map(|s| s.as_f64().abs()))
                .try_fold(0.0, |a: f64, x| Some(a.max(x?)))
        }
        Prim::Reshape { .. } | Prim::Broadcast { .. } | Prim::Convert { .. } | Prim::Transpose { .. } => {
            largest(m, *op.operands.first()?, depth - 1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::Dim;
    use ir::build::Builder;
    use ir::prim::ConvertMode;

    /// One value in a hundred may be one step away, and no value two.
    #[test]
    fn a_step_here_and_there() {
        let mut b = Builder::new("quantised");
        let x = b.input("x", DType::F32, vec![Dim::from(400)]);
        let bytes =
            b.round_even(x).and_then(|v| b.convert_with(v, DType::U8, ConvertMode::Saturate)).unwrap();
        let floats = b.convert(bytes, DType::F32).unwrap();
        let scaled = b.mul_scalar(floats, 0.25).unwrap();
        let plain = b.mul_scalar(x, 0.25).unwrap();
        let m = b.finish(&[("scaled".into(), scaled), ("plain".into(), plain)]).unwrap();
        let [scaled, plain] = [m.graph.outputs[0], m.graph.outputs[1]];
        let tensor = |moved: usize, by: f32| {
            let values: Vec<f32> = (0..400).map(|i| if i < moved { 10.0 + by } else { 10.0 }).collect();
            Tensor::from_f32(vec![400], &values)
        };
        let good = |v, moved, by| judge(&m, v, &tensor(moved, by), &tensor(0, 0.0), Math::Strict).passes();
        assert!(good(scaled, 5, 0.25));
        assert!(!good(scaled, 6, 0.25));
        assert!(!good(scaled, 1, 0.5));
        assert!(!good(plain, 1, 0.25));
    }
}
