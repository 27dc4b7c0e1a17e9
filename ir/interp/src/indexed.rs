//! Gather, scatter, and selection by value: sort, top-k, compact.

use crate::context::Cx;
use crate::error::OpError;
use crate::number::{Number, Store};
use crate::view::{Gathered, View, split_at_axis};
use ir::prim::{BinaryOp, Combine};
use ir::{DType, Tensor};
use std::cmp::Ordering;

type Result<T> = std::result::Result<T, OpError>;

/// Reader of indices into `extent`.
fn indices<'a>(index: View<'a>, extent: usize) -> Result<impl Fn(usize) -> Result<usize> + 'a> {
    let load = match index.dtype {
        DType::I32 | DType::I64 => <i128 as Number>::load(index.dtype),
        _ => None,
    };
    let Some(load) = load else {
        return Err(OpError::mismatch("type of indices", "i32 or i64", index.dtype));
    };
    Ok(move |i| {
        let index = load(index.bytes, i);
        usize::try_from(index).ok().filter(|&i| i < extent).ok_or(OpError::Index { index, extent })
    })
}

pub(crate) fn gather(cx: &Cx, x: View, index: View, axis: usize) -> Result<Tensor> {
    let (outer, extent, inner) = split_at_axis(x.shape, axis)?;
    let at = indices(index, extent)?;
    let shape = [&x.shape[..axis], index.shape, &x.shape[axis + 1..]].concat();
    let n = cx.room(&shape, x.dtype.bytes())?;
    cx.spend(n)?;
    let mut out = Gathered::new(x.dtype, n);
    // an empty result reads nothing and checks nothing
    if n > 0 {
        for o in 0..outer {
            for i in 0..index.elems() {
                out.push(&x, (o * extent + at(i)?) * inner, inner);
            }
        }
    }
    Ok(out.into_tensor(shape))
}

pub(crate) fn scatter(cx: &Cx, base: View, index: View, update: View, combine: Combine) -> Result<Tensor> {
    let (_, extent, inner) = split_at_axis(base.shape, 0)?;
    let expected = [index.shape, &base.shape[1..]].concat();
    if index.rank() != 1 || update.shape != expected || update.dtype != base.dtype {
        let expected = format!("{}{expected:?} and one index dim", base.dtype);
        return Err(OpError::mismatch("updates", expected, update.describe()));
    }
    let at = indices(index, extent)?;
    cx.room(base.shape, base.dtype.bytes())?;
    cx.spend(base.elems())?;
    cx.spend(update.elems())?;
    let op = match combine {
        Combine::Set => None,
        Combine::Add => Some(BinaryOp::Add),
        Combine::Mul => Some(BinaryOp::Mul),
        Combine::Min => Some(BinaryOp::Min),
        Combine::Max => Some(BinaryOp::Max),
    };
    let mut out = base.to_tensor();
    if update.elems() == 0 {
        return Ok(out);
    }
    let rows: Vec<usize> = (0..index.elems()).map(at).collect::<Result<_>>()?;
    match op {
        None => {
            let size = inner * base.dtype.bytes();
            for (n, &row) in rows.iter().enumerate() {
                if base.dtype == DType::String {
                    let from = &update.strings[n * inner..(n + 1) * inner];
                    out.strings[row * inner..(row + 1) * inner].clone_from_slice(from);
                } else {
                    out.data[row * size..(row + 1) * size]
                        .copy_from_slice(&update.bytes[n * size..(n + 1) * size]);
                }
            }
        }
        Some(op) if base.dtype.is_float() => {
            combine_rows::<f64>(cx, &mut out, update, &rows, inner, op)?;
        }
        Some(op) => combine_rows::<i128>(cx, &mut out, update, &rows, inner, op)?,
    }
    Ok(out)
}

/// Adds up in the wide type and rounds once, as a reduction does.
fn combine_rows<N: Number>(
    cx: &Cx,
    out: &mut Tensor,
    update: View,
    rows: &[usize],
    inner: usize,
    op: BinaryOp,
) -> Result<()> {
    let dtype = out.dtype;
    let (Some(f), Some(load), Some(store)) = (N::binary(op), N::load(dtype), N::store(dtype)) else {
        return Err(OpError::Undefined { prim: "scatter", dtype });
    };
    cx.room(&out.shape, size_of::<N>())?;
    let mut acc: Vec<N> = (0..out.elems()).map(|i| load(&out.data, i)).collect();
    for (n, &row) in rows.iter().enumerate() {
        for j in 0..inner {
            let a = &mut acc[row * inner + j];
            *a = f(*a, load(update.bytes, n * inner + j), dtype.bits());
        }
    }
    // elements that no update touches keep their bits
    for &row in rows {
        for (j, &a) in acc[row * inner..(row + 1) * inner].iter().enumerate() {
            store(a, &mut out.data, row * inner + j);
        }
    }
    Ok(())
}

/// For every lane along `axis`: (offset of its first element, distance between its elements), in
/// row-major order of the other dims.
fn lanes(x: View, axis: usize) -> Result<(impl Iterator<Item = usize>, usize, usize)> {
    let (outer, extent, inner) = split_at_axis(x.shape, axis)?;
    let (outer, inner) = if x.elems() == 0 { (0, 0) } else { (outer, inner) };
    let starts = (0..outer).flat_map(move |o| (0..inner).map(move |i| o * extent * inner + i));
    Ok((starts, inner, extent))
}

/// Positions of a lane in stable order. NaN counts as the largest value in both directions.
fn sorted<N: Number>(keys: View, start: usize, step: usize, n: usize, down: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    if let Some(load) = N::load(keys.dtype) {
        let key = |i: usize| load(keys.bytes, start + i * step);
        order.sort_by(|&a, &b| match key(a).order(key(b)) {
            o if down => o.reverse(),
            o => o,
        });
    }
    order
}

fn sorted_any(keys: View, start: usize, step: usize, n: usize, down: bool) -> Vec<usize> {
    if keys.dtype.is_float() {
        sorted::<f64>(keys, start, step, n, down)
    } else {
        sorted::<i128>(keys, start, step, n, down)
    }
}

/// Charges `n log n` comparisons.
fn spend_sort(cx: &Cx, n: usize) -> Result<()> {
    cx.spend(n.saturating_mul(n.max(2).ilog2() as usize))
}

pub(crate) fn sort(cx: &Cx, xs: &[View], axis: usize, descending: bool) -> Result<Vec<Tensor>> {
    let Some(&keys) = xs.first() else {
        return Err(OpError::mismatch("operands", "at least 1", 0));
    };
    if let Some(x) = xs.iter().find(|x| x.shape != keys.shape || x.dtype == DType::String) {
        let expected = format!("numbers of shape {:?}", keys.shape);
        return Err(OpError::mismatch("operand", expected, x.describe()));
    }
    spend_sort(cx, keys.elems())?;
    let mut outs = Vec::with_capacity(xs.len());
    for x in xs {
        outs.push(cx.zeros(x.dtype, x.shape.to_vec())?);
    }
    let (starts, step, n) = lanes(keys, axis)?;
    for start in starts {
        let order = sorted_any(keys, start, step, n, descending);
        for (x, out) in xs.iter().zip(&mut outs) {
            let size = x.dtype.bytes();
            for (to, &from) in order.iter().enumerate() {
                let (to, from) = ((start + to * step) * size, (start + from * step) * size);
                out.data[to..to + size].copy_from_slice(&x.bytes[from..from + size]);
            }
        }
    }
    Ok(outs)
}

pub(crate) fn top_k(cx: &Cx, x: View, axis: usize, k: usize, largest: bool) -> Result<Vec<Tensor>> {
    let (_, extent, _) = split_at_axis(x.shape, axis)?;
    if k > extent {
        return Err(OpError::mismatch("k", format!("at most the extent {extent}"), k));
    }
    if x.dtype == DType::String {
        return Err(OpError::Undefined { prim: "top_k", dtype: x.dtype });
    }
    spend_sort(cx, x.elems())?;
    let mut shape = x.shape.to_vec();
    shape[axis] = k;
    let mut values = cx.zeros(x.dtype, shape.clone())?;
    let mut positions = cx.zeros(DType::I64, shape)?;
    let (starts, step, n) = lanes(x, axis)?;
    let size = x.dtype.bytes();
    for start in starts {
        let order = sorted_any(x, start, step, n, largest);
        // the same lane of the result, whose extent is k instead of n
        let lane = start / (n * step) * (k * step) + start % step;
        for (j, &i) in order.iter().take(k).enumerate() {
            let (to, from) = (lane + j * step, (start + i * step) * size);
            values.data[to * size..(to + 1) * size].copy_from_slice(&x.bytes[from..from + size]);
            positions.data[to * 8..(to + 1) * 8].copy_from_slice(&(i as i64).to_le_bytes());
        }
    }
    Ok(vec![values, positions])
}

pub(crate) fn compact(cx: &Cx, x: View) -> Result<Tensor> {
    if x.dtype != DType::Bool || x.rank() != 1 {
        return Err(OpError::mismatch("operand", "bool[n]", x.describe()));
    }
    cx.spend(x.elems())?;
    let count = x.bytes.iter().filter(|b| **b != 0).count();
    cx.room(&[count], 8)?;
    let hits = x.bytes.iter().enumerate().filter(|(_, b)| **b != 0);
    let data = hits.flat_map(|(i, _)| (i as i64).to_le_bytes()).collect();
    Ok(Tensor::new(DType::I64, vec![count], data))
}

/// Index of the extreme of each lane. NaN is more extreme than any number.
pub(crate) fn arg_reduce(cx: &Cx, x: View, max: bool, axis: usize, last: bool) -> Result<Tensor> {
    let (_, extent, _) = split_at_axis(x.shape, axis)?;
    let mut shape = x.shape.to_vec();
    shape.remove(axis);
    let mut out = cx.zeros(DType::I64, shape)?;
    cx.spend(x.elems())?;
    if extent == 0 && out.elems() > 0 {
        return Err(OpError::mismatch("extent of the reduced axis", "at least 1", 0));
    }
    fn run<N: Number>(x: View, axis: usize, max: bool, last: bool, out: &mut [u8]) -> Result<()> {
        let (Some(load), Some(store)) = (N::load(x.dtype), <i128 as Number>::store(DType::I64)) else {
            return Err(OpError::Undefined { prim: "arg_reduce", dtype: x.dtype });
        };
        let store: Store<i128> = store;
        let (starts, step, n) = lanes(x, axis)?;
        for (lane, start) in starts.enumerate() {
            let at = |i: usize| load(x.bytes, start + i * step);
            let mut best = 0;
            for i in 1..n {
                let (new, old) = (at(i), at(best));
                let order = match (new.is_nan(), old.is_nan()) {
                    (true, false) => Ordering::Greater,
                    (false, true) => Ordering::Less,
                    _ if max => new.order(old),
                    _ => old.order(new),
                };
                if order == Ordering::Greater || last && order == Ordering::Equal {
                    best = i;
                }
            }
            store(best as i128, out, lane);
        }
        Ok(())
    }
    if x.dtype.is_float() {
        run::<f64>(x, axis, max, last, &mut out.data)?;
    } else {
        run::<i128>(x, axis, max, last, &mut out.data)?;
    }
    Ok(out)
}
