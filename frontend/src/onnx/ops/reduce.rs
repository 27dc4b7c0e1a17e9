//! Reductions, extremes, running sums.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::prim::Monoid;
use ir::{DType, Dim};

pub static OPS: &[Op] = &[
    op("ArgMax", 1, |cx| arg(cx, true)),
    op("ArgMin", 1, |cx| arg(cx, false)),
    op("CumProd", 1, |cx| cumulative(cx, Monoid::Prod)),
    op("CumSum", 11, |cx| cumulative(cx, Monoid::Sum)),
    op("ReduceL1", 1, |cx| reduce(cx, l1)),
    op("ReduceL2", 1, |cx| reduce(cx, l2)),
    op("ReduceLogSum", 1, |cx| reduce(cx, log_sum)),
    op("ReduceLogSumExp", 1, |cx| reduce(cx, log_sum_exp)),
    op("ReduceMax", 1, |cx| reduce(cx, |cx, x, a, k| Ok(cx.b.reduce_max(x, a, k)?))),
    op("ReduceMean", 1, |cx| reduce(cx, mean)),
    op("ReduceMin", 1, |cx| reduce(cx, |cx, x, a, k| Ok(cx.b.reduce_min(x, a, k)?))),
    op("ReduceProd", 1, |cx| reduce(cx, |cx, x, a, k| Ok(cx.b.reduce_prod(x, a, k)?))),
    op("ReduceSum", 1, |cx| reduce(cx, |cx, x, a, k| Ok(cx.b.reduce_sum(x, a, k)?))),
    op("ReduceSumSquare", 1, |cx| reduce(cx, sum_square)),
    op("TopK", 1, top_k),
];

type Reduction = fn(&mut NodeCx, V, &[usize], bool) -> Result<V, OpError>;

/// First version whose axes are an input.
fn axes_input_since(op: &str) -> i64 {
    if op == "ReduceSum" { 13 } else { 18 }
}

fn reduce(cx: &mut NodeCx, f: Reduction) -> OpResult {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let keep = cx.flag("keepdims", true)?;
    let given = if cx.opset < axes_input_since(cx.op_type) {
        cx.ints("axes")?
    } else {
        match cx.opt(1)? {
            Some(v) => Some(cx.need_const_ints("axes", v)?),
            None => cx.ints("axes")?,
        }
    };
    let axes = match given {
        Some(a) if !a.is_empty() => cx.axes(&a, rank)?,
        _ if cx.flag("noop_with_empty_axes", false)? => Vec::new(),
        _ => (0..rank).collect(),
    };
    Ok(f(cx, x, &axes, keep)?.into())
}

/// Mean: sum times a reciprocal where the count is known and the type a float. Halves are summed in f32,
/// since a sum can leave their range where the mean does not.
pub fn mean(cx: &mut NodeCx, x: V, axes: &[usize], keep: bool) -> Result<V, OpError> {
    if axes.is_empty() {
        return Ok(x);
    }
    let dtype = cx.dtype(x);
    let wide = match dtype {
        DType::F16 | DType::BF16 => cx.b.convert(x, DType::F32)?,
        _ => x,
    };
    let shape = cx.shape(x);
    let count = Dim::product(axes.iter().map(|&a| &shape[a]));
    let sum = cx.b.reduce_sum(wide, axes, keep)?;
    let acc = cx.dtype(sum);
    let mean = match count.as_const() {
        Some(n) if acc.is_float() && n > 0 => {
            // division by a power of two is exact either way; else it rounds once more than a multiplication
            let n = cx.b.scalar(acc, n as f64)?;
            cx.b.div(sum, n)?
        }
        _ => {
            let n = cx.b.dim_value(&count)?;
            let n = cx.b.convert(n, acc)?;
            cx.b.div(sum, n)?
        }
    };
    Ok(cx.b.convert(mean, dtype)?)
}

fn l1(cx: &mut NodeCx, x: V, axes: &[usize], keep: bool) -> Result<V, OpError> {
    let a = cx.b.abs(x)?;
    Ok(cx.b.reduce_sum(a, axes, keep)?)
}

fn sum_square(cx: &mut NodeCx, x: V, axes: &[usize], keep: bool) -> Result<V, OpError> {
    let a = cx.b.mul(x, x)?;
    Ok(cx.b.reduce_sum(a, axes, keep)?)
}

fn l2(cx: &mut NodeCx, x: V, axes: &[usize], keep: bool) -> Result<V, OpError> {
    let dtype = cx.dtype(x);
    let s = sum_square(cx, x, axes, keep)?;
    if dtype.is_float() {
        return Ok(cx.b.sqrt(s)?);
    }
    let s = cx.b.convert(s, DType::F64)?;
    let r = cx.b.sqrt(s)?;
    Ok(cx.b.convert(r, dtype)?)
}

fn log_sum(cx: &mut NodeCx, x: V, axes: &[usize], keep: bool) -> Result<V, OpError> {
    let s = cx.b.reduce_sum(x, axes, keep)?;
    Ok(cx.b.log(s)?)
}

/// `m + log(sum(exp(x - m)))` with `m` the maximum, or 0 where that is not finite.
fn log_sum_exp(cx: &mut NodeCx, x: V, axes: &[usize], keep: bool) -> Result<V, OpError> {
    let m = cx.b.reduce_max(x, axes, true)?;
    let size = cx.b.abs(m)?;
    let inf = cx.like(m, f64::INFINITY)?;
    let finite = cx.b.lt(size, inf)?;
    let zero = cx.like(m, 0.0)?;
    let m = cx.b.select(finite, m, zero)?;
    let d = cx.b.sub(x, m)?;
    let e = cx.b.exp(d)?;
    let s = cx.b.reduce_sum(e, axes, true)?;
    let l = cx.b.log(s)?;
    let r = cx.b.add(l, m)?;
    if keep || axes.is_empty() {
        return Ok(r);
    }
    let drop: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
    Ok(cx.b.squeeze(r, &drop)?)
}

fn arg(cx: &mut NodeCx, max: bool) -> OpResult {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let axis = cx.axis_attr("axis", 0, rank)?;
    let last = cx.flag("select_last_index", false)?;
    let v = cx.b.arg_reduce(x, max, axis, last)?;
    if cx.flag("keepdims", true)? { Ok(cx.b.unsqueeze(v, &[axis as i64])?.into()) } else { Ok(v.into()) }
}

fn cumulative(cx: &mut NodeCx, monoid: Monoid) -> OpResult {
    let (x, axis) = (cx.input(0)?, cx.input(1)?);
    let axis = match cx.need_const_ints("axis", axis)?.as_slice() {
        [a] => cx.axis(*a, cx.rank(x))?,
        a => return Err(OpError::invalid(Code::Shape, format!("{} axes", a.len()))),
    };
    let (exclusive, reverse) = (cx.flag("exclusive", false)?, cx.flag("reverse", false)?);
    Ok(cx.b.cumulative(monoid, x, axis, exclusive, reverse)?.into())
}

fn top_k(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let axis = cx.axis_attr("axis", -1, cx.rank(x))?;
    let k = if cx.opset < 10 {
        Dim::from(cx.need_int("k")?)
    } else {
        let k = cx.input(1)?;
        cx.size_of(k, 0)?
    };
    if k.as_const().is_some_and(|k| k < 0) {
        return Err(OpError::invalid(Code::Shape, format!("k is {k}")));
    }
    let largest = cx.flag("largest", true)?;
    let (values, indices) = cx.b.top_k(x, axis, &k, largest)?;
    Ok([values, indices].into())
}
