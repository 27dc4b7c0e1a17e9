//! Runs of which ONNX Runtime's results say nothing, because it is known to compute otherwise there.
//!
//! It reduces integers in f64 (`2^53 + 1` becomes `2^53`, and what overflows saturates) and computes their powers so; the
//! reference evaluator of the standard keeps integers, as the primitives do. 0 becomes NaN in `f8e8m0`, where the standard
//! has its smallest number. Of a loop without iterations the standard does
//! not say what shape its rows have; ONNX Runtime puts 0 for every named extent. Each case is known by the values of the run,
//! so that a graph with such an op counts as long as nothing of the kind happens.

use super::Repro;
use ir::prim::BinaryOp;
use ir::{DType, Module, Monoid, Op, Prim, Tensor, ValueId};
use passes::limits::Fuel;

/// The first such case outside of branches and bodies of loops.
pub fn known_difference(repro: &Repro) -> Option<&'static str> {
    let mut plain = repro.clone();
    let fuel = Fuel::new(&passes::Options::default());
    passes::graph::inline_composites(&mut plain.module, &fuel).ok()?;
    let values = plain.values().ok()?;
    let m = &plain.module;
    values.iter().find_map(|set| {
        let value = |v: ValueId| set.get(v.index()).and_then(Option::as_ref);
        m.graph.ops().find_map(|(_, op)| differs(m, op, &value))
    })
}

fn differs<'t>(m: &Module, op: &Op, value: &dyn Fn(ValueId) -> Option<&'t Tensor>) -> Option<&'static str> {
    match &op.prim {
        Prim::Reduce { monoid: monoid @ (Monoid::Sum | Monoid::Prod), axes } => {
            let x = value(op.operands[0])?;
            let along = |d: usize| axes.contains(&d);
            (x.dtype.is_int() && largest(x, *monoid, &along) >= exact(x.dtype))
                .then_some("an integer reduction beyond what f64 holds")
        }
        // a table of prefixes is reduced
        Prim::Cumulative { monoid: Monoid::Prod, axis, .. } => {
            let x = value(op.operands[0])?;
            (x.dtype.is_int() && largest(x, Monoid::Prod, &|d| d == *axis) >= exact(x.dtype))
                .then_some("an integer reduction beyond what f64 holds")
        }
        Prim::Binary(BinaryOp::Pow) => {
            let (x, y) = (value(op.operands[0])?, value(op.operands[1])?);
            let overflows = |i: usize| {
                let (x, y) = (as_f64(x, i), as_f64(y, i));
                y < 0.0 || x.abs().powf(y) >= exact(DType::I64)
            };
            (x.dtype.is_int() && (0..x.elems()).any(overflows))
                .then_some("an integer power beyond what f64 holds, or with a negative exponent")
        }
        Prim::Convert { to: DType::F8E8M0, .. } => {
            let x = value(op.operands[0])?;
            (0..x.elems()).any(|i| as_f64(x, i) == 0.0).then_some("0 as a power of two")
        }
        Prim::Loop { carried, .. } => op.results[*carried..]
            .iter()
            .any(|&v| {
                let named = m.graph[v].ty.shape[1..].iter().any(|d| d.as_const().is_none());
                named && value(v).is_some_and(|t| t.shape[0] == 0)
            })
            .then_some("named extents of rows that no iteration makes"),
        _ => None,
    }
}

fn as_f64(t: &Tensor, i: usize) -> f64 {
    ir::tensor::read_scalar(t.dtype, &t.data, i).map_or(0.0, |s| s.as_f64())
}

/// From here on f64 does not hold every integer of the type, or the type does not hold the number.
fn exact(dtype: DType) -> f64 {
    let bits = dtype.bits() as i32 - i32::from(dtype.is_signed_int());
    2f64.powi(bits.min(53))
}

/// A bound of the magnitude of every partial result of a reduction.
fn largest(x: &Tensor, monoid: Monoid, along: &dyn Fn(usize) -> bool) -> f64 {
    let rank = x.shape.len();
    let extent = |d: usize| if along(d) { 1 } else { x.shape[d] };
    let mut bounds = vec![if monoid == Monoid::Sum { 0.0 } else { 1.0f64 }; (0..rank).map(extent).product()];
    for i in 0..x.elems() {
        let (mut rest, mut at, mut stride) = (i, 0, 1);
        for d in (0..rank).rev() {
            let index = rest % x.shape[d];
            rest /= x.shape[d];
            if !along(d) {
                at += index * stride;
                stride *= x.shape[d];
            }
        }
        let size = as_f64(x, i).abs();
        if monoid == Monoid::Sum {
            bounds[at] += size;
        } else {
            bounds[at] *= size.max(1.0);
        }
    }
    bounds.into_iter().fold(0.0, f64::max)
}
