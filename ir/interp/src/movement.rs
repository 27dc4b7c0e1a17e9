//! Movement primitives: they copy elements and never look at their values.

use crate::context::Cx;
use crate::error::OpError;
use crate::view::{Gathered, View, signed, split_at_axis, strides, walk};
use ir::prim::PadMode;
use ir::{DType, Tensor};

type Result<T> = std::result::Result<T, OpError>;

pub(crate) fn reshape(cx: &Cx, x: View, shape: Vec<usize>) -> Result<Tensor> {
    let n = cx.room(&shape, x.dtype.bytes())?;
    if n != x.elems() {
        return Err(OpError::mismatch("elements of the result", x.elems(), n));
    }
    cx.spend(n)?;
    let mut out = x.to_tensor();
    out.shape = shape;
    Ok(out)
}

/// Result element `index` is operand element `base + index . strides`; every one of them exists.
fn strided(cx: &Cx, x: View, shape: Vec<usize>, strides: &[isize], base: isize) -> Result<Tensor> {
    let n = cx.room(&shape, x.dtype.bytes())?;
    cx.spend(n)?;
    let mut out = Gathered::new(x.dtype, n);
    match (shape.split_last(), strides.split_last()) {
        // contiguous rows
        (Some((&len, outer)), Some((1, outer_strides))) if n > 0 => {
            walk(outer, outer_strides, base, |at| out.push(&x, at, len));
        }
        _ => walk(&shape, strides, base, |at| out.push(&x, at, 1)),
    }
    Ok(out.into_tensor(shape))
}

fn expect_rank(what: &str, found: usize, rank: usize) -> Result<()> {
    if found == rank {
        return Ok(());
    }
    Err(OpError::mismatch(format!("entries of {what}"), rank, found))
}

pub(crate) fn transpose(cx: &Cx, x: View, perm: &[usize]) -> Result<Tensor> {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..x.rank()) {
        let expected = format!("a permutation of {} axes", x.rank());
        return Err(OpError::mismatch("perm", expected, format!("{perm:?}")));
    }
    let from = signed(&strides(x.shape));
    let shape = perm.iter().map(|&p| x.shape[p]).collect();
    let strides: Vec<isize> = perm.iter().map(|&p| from[p]).collect();
    strided(cx, x, shape, &strides, 0)
}

pub(crate) fn broadcast(cx: &Cx, x: View, shape: Vec<usize>, dims: &[usize]) -> Result<Tensor> {
    expect_rank("dims", dims.len(), x.rank())?;
    if !dims.is_sorted_by(|a, b| a < b) || dims.last().is_some_and(|&d| d >= shape.len()) {
        let expected = format!("increasing dims below {}", shape.len());
        return Err(OpError::mismatch("dims", expected, format!("{dims:?}")));
    }
    let from = signed(&strides(x.shape));
    let mut to = vec![0; shape.len()];
    for (i, &d) in dims.iter().enumerate() {
        if x.shape[i] == shape[d] {
            to[d] = from[i];
        } else if x.shape[i] != 1 {
            let expected = format!("1 or {}", shape[d]);
            return Err(OpError::mismatch("broadcast extent", expected, x.shape[i]));
        }
    }
    strided(cx, x, shape, &to, 0)
}

/// A slice without elements reads nothing, wherever it starts.
pub(crate) fn slice(cx: &Cx, x: View, start: &[i64], size: Vec<usize>, step: &[i64]) -> Result<Tensor> {
    for (what, len) in [("start", start.len()), ("size", size.len()), ("step", step.len())] {
        expect_rank(what, len, x.rank())?;
    }
    let from = strides(x.shape);
    let (mut to, mut base) = (vec![0; x.rank()], 0);
    if !size.contains(&0) {
        for d in 0..x.rank() {
            let first = i128::from(start[d]);
            let last = first + (size[d] as i128 - 1) * i128::from(step[d]);
            for index in [first, last] {
                if index < 0 || index >= x.shape[d] as i128 {
                    return Err(OpError::Index { index, extent: x.shape[d] });
                }
            }
            // both ends lie inside, so these fit; a step that is never taken may be anything
            base += start[d] as isize * from[d] as isize;
            to[d] = if size[d] > 1 { step[d] as isize * from[d] as isize } else { 0 };
        }
    }
    strided(cx, x, size, &to, base)
}

/// Operand index that each index of a padded dim reads; `None` reads the fill value.
fn pad_map(
    extent: usize,
    result: usize,
    lo: i64,
    interior: i64,
    mode: PadMode,
) -> Result<Vec<Option<usize>>> {
    let (n, step) = (extent as i128, i128::from(interior) + 1);
    let source = |o: usize| {
        let p = o as i128 - i128::from(lo);
        match mode {
            PadMode::Constant => (p >= 0 && p % step == 0 && p / step < n).then_some(p / step),
            _ if n == 0 => None,
            PadMode::Edge => Some(p.clamp(0, n - 1)),
            PadMode::Wrap => Some(p.rem_euclid(n)),
            PadMode::Reflect if n == 1 => Some(0),
            PadMode::Reflect => {
                let p = p.rem_euclid(2 * (n - 1));
                Some(p.min(2 * (n - 1) - p))
            }
        }
    };
    let map: Vec<_> = (0..result).map(|o| source(o).map(|p| p as usize)).collect();
    if mode != PadMode::Constant && map.contains(&None) {
        return Err(OpError::mismatch("padded extent", "at least 1 to repeat", 0));
    }
    Ok(map)
}

pub(crate) fn pad(
    cx: &Cx,
    x: View,
    fill: Option<View>,
    (lo, hi, interior): (&[i64], &[i64], &[i64]),
    mode: PadMode,
) -> Result<Tensor> {
    for (what, len) in [("lo", lo.len()), ("hi", hi.len()), ("interior", interior.len())] {
        expect_rank(what, len, x.rank())?;
    }
    let fill = match (mode, fill) {
        (PadMode::Constant, Some(f)) if f.dtype == x.dtype && f.elems() == 1 => f,
        (PadMode::Constant, f) => {
            let found = f.map_or("none".into(), |f| f.describe());
            return Err(OpError::mismatch("fill", format!("a scalar of {}", x.dtype), found));
        }
        // never read
        _ => x,
    };
    let mut shape = Vec::with_capacity(x.rank());
    for d in 0..x.rank() {
        if interior[d] < 0 || mode != PadMode::Constant && interior[d] != 0 {
            return Err(OpError::mismatch("interior padding", "0 in this mode", interior[d]));
        }
        let n = x.shape[d] as i128;
        let gaps = (n - 1).max(0) * i128::from(interior[d]);
        let extent = n + gaps + i128::from(lo[d]) + i128::from(hi[d]);
        match usize::try_from(extent) {
            Ok(extent) => shape.push(extent),
            Err(_) => return Err(OpError::mismatch("padded extent", "0 or more", extent)),
        }
    }
    let n = cx.room(&shape, x.dtype.bytes())?;
    cx.spend(n)?;
    let mut out = Gathered::new(x.dtype, n);
    let Some((&inner, outer)) = shape.split_last().filter(|_| n > 0) else {
        if n == 1 {
            out.push(&x, 0, 1);
        }
        return Ok(out.into_tensor(shape));
    };
    let maps: Vec<_> = (0..x.rank())
        .map(|d| pad_map(x.shape[d], shape[d], lo[d], interior[d], mode))
        .collect::<Result<_>>()?;
    let from = strides(x.shape);
    let last = &maps[outer.len()];
    let mut index = vec![0; outer.len()];
    for _ in 0..n / inner {
        // start of the operand's row, if this row of the result reads any
        let row = index
            .iter()
            .enumerate()
            .try_fold(0, |at, (d, &i): (usize, &usize)| Some(at + maps[d][i]? * from[d]));
        for source in last {
            match (row, source) {
                (Some(row), Some(i)) => out.push(&x, row + i, 1),
                _ => out.push(&fill, 0, 1),
            }
        }
        for d in (0..outer.len()).rev() {
            index[d] += 1;
            if index[d] < outer[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Ok(out.into_tensor(shape))
}

pub(crate) fn concat(cx: &Cx, xs: &[View], axis: usize) -> Result<Tensor> {
    let Some(first) = xs.first() else {
        return Err(OpError::mismatch("operands", "at least 1", 0));
    };
    let mut shape = first.shape.to_vec();
    split_at_axis(&shape, axis)?;
    shape[axis] = 0;
    for x in xs {
        let mut like = x.shape.to_vec();
        if x.rank() == shape.len() {
            shape[axis] = shape[axis].saturating_add(x.shape[axis]);
            like[axis] = shape[axis];
        }
        if like != shape || x.dtype != first.dtype {
            return Err(OpError::mismatch(
                format!("operand of a concatenation along axis {axis}"),
                first.describe(),
                x.describe(),
            ));
        }
    }
    let n = cx.room(&shape, first.dtype.bytes())?;
    cx.spend(n)?;
    let mut out = Gathered::new(first.dtype, n);
    if n > 0 {
        let (outer, _, inner) = split_at_axis(&shape, axis)?;
        for o in 0..outer {
            for x in xs {
                let len = x.shape[axis] * inner;
                out.push(x, o * len, len);
            }
        }
    }
    Ok(out.into_tensor(shape))
}

pub(crate) fn update_slice(cx: &Cx, base: View, update: View, start: &[i64]) -> Result<Tensor> {
    expect_rank("start", start.len(), base.rank())?;
    if update.dtype != base.dtype || update.rank() != base.rank() {
        return Err(OpError::mismatch("update", base.describe(), update.describe()));
    }
    let into = strides(base.shape);
    let mut at = 0isize;
    for d in 0..base.rank() {
        let end = i128::from(start[d]) + update.shape[d] as i128;
        if start[d] < 0 || end > base.shape[d] as i128 {
            let index = if start[d] < 0 { start[d].into() } else { end - 1 };
            return Err(OpError::Index { index, extent: base.shape[d] });
        }
        // wraps only where an extent is 0 and nothing is written
        at = (start[d] as isize).wrapping_mul(into[d] as isize).wrapping_add(at);
    }
    cx.room(base.shape, base.dtype.bytes())?;
    cx.spend(base.elems())?;
    let mut out = base.to_tensor();
    let size = base.dtype.bytes();
    let mut from = 0;
    walk(update.shape, &signed(&into), at, |to| {
        if base.dtype == DType::String {
            out.strings[to] = update.strings[from].clone();
        } else {
            let bytes = &update.bytes[from * size..(from + 1) * size];
            out.data[to * size..(to + 1) * size].copy_from_slice(bytes);
        }
        from += 1;
    });
    Ok(out)
}
