//! Operators that read or write at positions given by data.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::prim::{CmpOp, Combine, Monoid};
use ir::{DType, Dim};

pub static OPS: &[Op] = &[
    op("Compress", 9, compress),
    op("Gather", 1, gather),
    op("GatherElements", 11, gather_elements),
    op("GatherND", 11, gather_nd),
    op("NonZero", 9, non_zero),
    op("OneHot", 9, one_hot),
    op("ReverseSequence", 10, reverse_sequence),
    op("Scatter", 9, scatter_elements),
    op("ScatterElements", 11, scatter_elements),
    op("ScatterND", 11, scatter_nd),
    op("TensorScatter", 24, tensor_scatter),
    op("Trilu", 14, trilu),
    op("Unique", 11, unique),
];

/// Indices as i64 or i32 with `extent` added to the negative ones.
fn wrapped(cx: &mut NodeCx, indices: V, extent: &Dim) -> Result<V, OpError> {
    let indices = match cx.dtype(indices) {
        DType::I32 | DType::I64 => indices,
        d if d.is_int() => cx.b.convert(indices, DType::I64)?,
        d => return Err(OpError::invalid(Code::Type, format!("indices of type {d}"))),
    };
    Ok(cx.b.wrap_indices(indices, extent)?)
}

fn gather(cx: &mut NodeCx) -> OpResult {
    let (x, indices) = (cx.input(0)?, cx.input(1)?);
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let extent = cx.dim(x, axis)?;
    // one index that is a size is a slice, which costs nothing
    if let Some([at]) = cx.b.known(indices).as_deref()
        && cx.dtype(x) != DType::String
    {
        let facts = cx.b.symbols();
        let (lo, hi) = at.bounds(facts);
        let at = if hi < 0 { at + &extent } else { at.clone() };
        if (lo >= 0 || hi < 0) && !at.provably_lt(&Dim::from(0), facts) {
            if extent.provably_le(&at, facts) {
                return Err(OpError::invalid(
                    Code::Shape,
                    format!("index {at} is outside an axis of extent {extent}"),
                ));
            }
            let one = cx.b.slice_axis(x, axis, &at, &Dim::from(1))?;
            let shape = cx.shape(x);
            let out = [&shape[..axis], &cx.shape(indices), &shape[axis + 1..]].concat();
            return Ok(cx.b.reshape(one, &out)?.into());
        }
    }
    let indices = wrapped(cx, indices, &extent)?;
    Ok(cx.b.gather(x, indices, axis)?.into())
}

/// Row-major position in a tensor of shape `of`, given the coordinate along each of its dims; `None`
/// stands for the position of the result itself along that dim. All have shape `shape`.
fn linear(cx: &mut NodeCx, of: &[Dim], shape: &[Dim], coords: &[Option<V>]) -> Result<V, OpError> {
    let mut at: Option<V> = None;
    for (d, c) in coords.iter().enumerate() {
        let c = match c {
            Some(v) => cx.b.convert(*v, DType::I64)?,
            None if shape[d].is_const(1) => continue,
            None => cx.b.iota(DType::I64, shape, d)?,
        };
        let stride = Dim::product(&of[d + 1..]);
        let part = if stride.is_const(1) {
            c
        } else {
            let s = cx.b.dim_value(&stride)?;
            cx.b.mul(c, s)?
        };
        at = Some(match at {
            Some(v) => cx.b.add(v, part)?,
            None => part,
        });
    }
    match at {
        Some(v) => Ok(v),
        None => Ok(cx.b.full(DType::I64, shape, 0.0)?),
    }
}

fn flat(cx: &mut NodeCx, x: V) -> Result<V, OpError> {
    let n = Dim::product(&cx.shape(x));
    Ok(cx.b.reshape(x, &[n])?)
}

/// Position in the flattened data for each element of the indices along `axis`.
fn element_positions(cx: &mut NodeCx, x: V, indices: V, axis: usize) -> Result<V, OpError> {
    cx.check_rank("indices", indices, cx.rank(x))?;
    let (of, shape) = (cx.shape(x), cx.shape(indices));
    let wrapped = wrapped(cx, indices, &of[axis])?;
    let coords: Vec<Option<V>> = (0..of.len()).map(|d| (d == axis).then_some(wrapped)).collect();
    linear(cx, &of, &shape, &coords)
}

fn gather_elements(cx: &mut NodeCx) -> OpResult {
    let (x, indices) = (cx.input(0)?, cx.input(1)?);
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let at = element_positions(cx, x, indices, axis)?;
    let data = flat(cx, x)?;
    Ok(cx.b.gather(data, at, 0)?.into())
}

/// The combiner of the attribute `reduction`.
fn combiner(cx: &NodeCx) -> Result<Combine, OpError> {
    Ok(match cx.string("reduction", "none")? {
        "none" => Combine::Set,
        "add" => Combine::Add,
        "mul" => Combine::Mul,
        "min" => Combine::Min,
        "max" => Combine::Max,
        r => return Err(OpError::invalid(Code::Attribute, format!("reduction {r:?}"))),
    })
}

fn scatter_elements(cx: &mut NodeCx) -> OpResult {
    let (x, indices, updates) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let axis = cx.axis_attr("axis", 0, cx.rank(x))?;
    let combine = combiner(cx)?;
    let shape = cx.shape(x);
    let at = element_positions(cx, x, indices, axis)?;
    let (base, at, updates) = (flat(cx, x)?, flat(cx, at)?, flat(cx, updates)?);
    let y = cx.b.scatter(base, at, updates, combine)?;
    Ok(cx.b.reshape(y, &shape)?.into())
}

/// Indices whose last dim holds coordinates: positions in the dims `batch..batch + k` of the data, as
/// a tensor without the last dim, and `k`.
fn coordinate_positions(cx: &mut NodeCx, x: V, indices: V, batch: usize) -> Result<(V, usize), OpError> {
    let (of, shape) = (cx.shape(x), cx.shape(indices));
    let Some((last, lead)) = shape.split_last() else {
        return Err(OpError::invalid(Code::Shape, "indices need a dim of coordinates"));
    };
    let k = last.as_const().and_then(|k| usize::try_from(k).ok()).ok_or_else(|| {
        OpError::unsupported(
            Code::Dynamic,
            "the number of coordinates is only known when the model is executed",
        )
    })?;
    if batch > lead.len() || batch + k > of.len() {
        return Err(OpError::invalid(
            Code::Shape,
            format!("{k} coordinates after {batch} batch dims for data of rank {}", of.len()),
        ));
    }
    let mut coords = vec![None; batch];
    for (j, extent) in of[batch..batch + k].iter().enumerate() {
        let c = cx.b.index_axis(indices, lead.len(), &Dim::from(j))?;
        coords.push(Some(wrapped(cx, c, extent)?));
    }
    Ok((linear(cx, &of[..batch + k], lead, &coords)?, k))
}

fn gather_nd(cx: &mut NodeCx) -> OpResult {
    let (x, indices) = (cx.input(0)?, cx.input(1)?);
    let batch = usize::try_from(cx.int("batch_dims", 0)?)
        .map_err(|_| OpError::invalid(Code::Attribute, "a negative batch_dims"))?;
    let (at, k) = coordinate_positions(cx, x, indices, batch)?;
    let shape = cx.shape(x);
    let rows = Dim::product(&shape[..batch + k]);
    let data = cx.b.reshape(x, &[&[rows], &shape[batch + k..]].concat())?;
    Ok(cx.b.gather(data, at, 0)?.into())
}

fn scatter_nd(cx: &mut NodeCx) -> OpResult {
    let (x, indices, updates) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let combine = combiner(cx)?;
    let shape = cx.shape(x);
    let (at, k) = coordinate_positions(cx, x, indices, 0)?;
    let inner = &shape[k..];
    let rows = Dim::product(&shape[..k]);
    let base = cx.b.reshape(x, &[&[rows], inner].concat())?;
    let count = Dim::product(&cx.shape(at));
    let at = cx.b.reshape(at, std::slice::from_ref(&count))?;
    let updates = cx.b.reshape(updates, &[&[count], inner].concat())?;
    let y = cx.b.scatter(base, at, updates, combine)?;
    Ok(cx.b.reshape(y, &shape)?.into())
}

/// Writes rows into a cache along `axis`, for each batch element from its own position on.
fn tensor_scatter(cx: &mut NodeCx) -> OpResult {
    let (cache, update) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(cache);
    cx.check_rank("update", update, rank)?;
    let axis = cx.axis_attr("axis", -2, rank)?;
    if axis == 0 {
        return Err(OpError::invalid(Code::Attribute, "the axis cannot be the batch"));
    }
    let circular = match cx.string("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
    };
    // [batch, axis, others...]
    let mut perm: Vec<usize> = (0..rank).filter(|&d| d != axis).collect();
    perm.insert(1, axis);
    let mut back = vec![0; rank];
    perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    let base = cx.b.transpose(cache, &perm)?;
    let rows = cx.b.transpose(update, &perm)?;
    let (shape, rows_shape) = (cx.shape(base), cx.shape(rows));
    let lead = rows_shape[..2].to_vec();
    let mut at = cx.b.iota(DType::I64, &lead, 1)?;
    if let Some(w) = cx.opt(2)? {
        let w = cx.b.convert(w, DType::I64)?;
        let w = cx.b.reshape(w, &[lead[0].clone(), Dim::from(1)])?;
        at = cx.b.add(at, w)?;
    }
    if circular {
        let n = cx.b.dim_value(&shape[1])?;
        at = cx.b.rem(at, n)?;
    }
    let at = linear(cx, &shape[..2], &lead, &[None, Some(at)])?;
    let inner = &shape[2..];
    let flat_base = cx.b.reshape(base, &[&[&shape[0] * &shape[1]], inner].concat())?;
    let count = &lead[0] * &lead[1];
    let at = cx.b.reshape(at, std::slice::from_ref(&count))?;
    let rows = cx.b.reshape(rows, &[&[count], inner].concat())?;
    let y = cx.b.scatter(flat_base, at, rows, Combine::Set)?;
    let y = cx.b.reshape(y, &shape)?;
    Ok(cx.b.transpose(y, &back)?.into())
}

fn one_hot(cx: &mut NodeCx) -> OpResult {
    let (indices, depth, values) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let mut shape = cx.shape(indices);
    let axis = cx.axis_attr("axis", -1, shape.len() + 1)?;
    let depth = if cx.dtype(depth).is_float() { cx.b.convert(depth, DType::I64)? } else { depth };
    let depth = cx.size_of(depth, 0)?;
    let indices = cx.b.convert(indices, DType::I64)?;
    let indices = cx.b.wrap_indices(indices, &depth)?;
    let indices = cx.b.unsqueeze(indices, &[axis as i64])?;
    shape.insert(axis, depth);
    let class = cx.b.iota(DType::I64, &shape, axis)?;
    let hit = cx.b.eq(indices, class)?;
    let off = cx.b.index_axis(values, 0, &Dim::from(0))?;
    let on = cx.b.index_axis(values, 0, &Dim::from(1))?;
    Ok(cx.b.select(hit, on, off)?.into())
}

/// Keeps the elements on and above (below) diagonal `k` of the last two dims.
fn trilu(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    if shape.len() < 2 {
        return Err(OpError::invalid(
            Code::Shape,
            format!("expected rank 2 at least, found {}", shape.len()),
        ));
    }
    let upper = cx.flag("upper", true)?;
    let k = match cx.opt(1)? {
        Some(k) => cx.as_scalar(k)?,
        None => cx.b.scalar_i64(0)?,
    };
    let plane = &shape[shape.len() - 2..];
    let (row, col) = (cx.b.iota(DType::I64, plane, 0)?, cx.b.iota(DType::I64, plane, 1)?);
    let diagonal = cx.b.add(row, k)?;
    let keep = cx.b.cmp(if upper { CmpOp::Ge } else { CmpOp::Le }, col, diagonal)?;
    let zero = cx.like(x, 0.0)?;
    Ok(cx.b.select(keep, x, zero)?.into())
}

/// Coordinates of the elements that are not zero, [rank, count], in row-major order.
fn non_zero(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = match cx.shape(x) {
        s if s.is_empty() => vec![Dim::from(1)],
        s => s,
    };
    let zero = cx.like(x, 0.0)?;
    let mask = if cx.dtype(x) == DType::Bool { x } else { cx.b.ne(x, zero)? };
    let mask = flat(cx, mask)?;
    let at = cx.b.compact(mask)?;
    let mut rows = Vec::new();
    for d in 0..shape.len() {
        let stride = Dim::product(&shape[d + 1..]);
        let mut c = at;
        if !stride.is_const(1) {
            let s = cx.b.dim_value(&stride)?;
            c = cx.b.div(c, s)?;
        }
        if d > 0 {
            let n = cx.b.dim_value(&shape[d])?;
            c = cx.b.rem(c, n)?;
        }
        rows.push(cx.b.unsqueeze(c, &[0])?);
    }
    Ok(cx.b.concat(&rows, 0)?.into())
}

/// Elements (or slices along `axis`) where the condition, which may be shorter, is true.
fn compress(cx: &mut NodeCx) -> OpResult {
    let (x, condition) = (cx.input(0)?, cx.input(1)?);
    cx.check_rank("condition", condition, 1)?;
    let (data, axis) = match cx.attrs.int("axis")? {
        Some(a) => (x, cx.axis(a, cx.rank(x))?),
        None => (flat(cx, x)?, 0),
    };
    let at = cx.b.compact(condition)?;
    Ok(cx.b.gather(data, at, axis)?.into())
}

/// Reverses the first `len[b]` steps of each sequence.
fn reverse_sequence(cx: &mut NodeCx) -> OpResult {
    let (x, lens) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    let (time, batch) = (cx.axis_attr("time_axis", 0, rank)?, cx.axis_attr("batch_axis", 1, rank)?);
    if time == batch {
        return Err(OpError::invalid(Code::Attribute, "time_axis and batch_axis are the same"));
    }
    let perm: Vec<usize> =
        [time, batch].into_iter().chain((0..rank).filter(|d| ![time, batch].contains(d))).collect();
    let mut back = vec![0; rank];
    perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    let data = cx.b.transpose(x, &perm)?;
    let shape = cx.shape(data);
    let lead = &shape[..2];
    let step = cx.b.iota(DType::I64, lead, 0)?;
    let lens = cx.b.convert(lens, DType::I64)?;
    let inside = cx.b.lt(step, lens)?;
    let mirrored = cx.b.sub(lens, step)?;
    let mirrored = cx.b.add_scalar(mirrored, -1.0)?;
    let from = cx.b.select(inside, mirrored, step)?;
    let at = linear(cx, lead, lead, &[Some(from), None])?;
    let rows = cx.b.reshape(data, &[&[&shape[0] * &shape[1]], &shape[2..]].concat())?;
    let y = cx.b.gather(rows, at, 0)?;
    Ok(cx.b.transpose(y, &back)?.into())
}

/// Most columns that rows are compared by.
const MAX_UNIQUE_COLUMNS: i64 = 64;

/// Distinct elements (or slices along `axis`): sorted, or in order of their first occurrence; with the
/// position of that, the number of each element's group, and the sizes of the groups.
fn unique(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let sorted = cx.flag("sorted", true)?;
    let axis = cx.attrs.int("axis")?.map(|a| cx.axis(a, cx.rank(x))).transpose()?;
    // rows [n, m]
    let (rows, row_shape) = match axis {
        None => (flat(cx, x)?, Vec::new()),
        Some(a) => {
            let mut perm: Vec<usize> = (0..cx.rank(x)).filter(|&d| d != a).collect();
            perm.insert(0, a);
            let t = cx.b.transpose(x, &perm)?;
            let shape = cx.shape(t);
            (t, shape[1..].to_vec())
        }
    };
    let n = cx.dim(rows, 0)?;
    let columns =
        Dim::product(&row_shape).as_const().filter(|&m| m <= MAX_UNIQUE_COLUMNS).ok_or_else(|| {
            OpError::unsupported(Code::Shape, format!("slices of more than {MAX_UNIQUE_COLUMNS} elements"))
        })?;
    let table = cx.b.reshape(rows, &[n.clone(), Dim::from(columns)])?;
    // sorts by the last column first: each sort is stable
    let mut order = cx.b.iota(DType::I64, std::slice::from_ref(&n), 0)?;
    for c in (0..columns).rev() {
        let column = cx.b.index_axis(table, 1, &Dim::from(c))?;
        let keys = cx.b.gather(column, order, 0)?;
        order = cx.b.sort(&[keys, order], 0, false)?[1];
    }
    let in_order = cx.b.gather(table, order, 0)?;
    // true where a row differs from the one before; the first one has none before
    let position = cx.b.iota(DType::I64, std::slice::from_ref(&n), 0)?;
    let zero = cx.b.scalar_i64(0)?;
    let before = cx.b.add_scalar(position, -1.0)?;
    let before = cx.b.max(before, zero)?;
    let previous = cx.b.gather(in_order, before, 0)?;
    let differs = cx.b.ne(in_order, previous)?;
    let differs = cx.b.reduce(Monoid::Max, differs, &[1], false)?;
    let is_first = cx.b.eq(position, zero)?;
    let starts_group = cx.b.or(differs, is_first)?;
    let starts = cx.b.compact(starts_group)?;
    let count = cx.dim(starts, 0)?;
    let first_at = cx.b.gather(order, starts, 0)?;
    let group = cx.b.convert(starts_group, DType::I64)?;
    let group = cx.b.cumulative(Monoid::Sum, group, 0, false, false)?;
    let group = cx.b.add_scalar(group, -1.0)?;
    let zeros = cx.b.full(DType::I64, std::slice::from_ref(&n), 0.0)?;
    let mut inverse = cx.b.scatter(zeros, order, group, Combine::Set)?;
    let zeros = cx.b.full(DType::I64, std::slice::from_ref(&count), 0.0)?;
    let ones = cx.b.full(DType::I64, std::slice::from_ref(&n), 1.0)?;
    let mut counts = cx.b.scatter(zeros, group, ones, Combine::Add)?;
    let mut firsts = first_at;
    if !sorted {
        let number = cx.b.iota(DType::I64, std::slice::from_ref(&count), 0)?;
        let by_first = cx.b.sort(&[first_at, number, counts], 0, false)?;
        firsts = by_first[0];
        counts = by_first[2];
        let zeros = cx.b.full(DType::I64, &[count], 0.0)?;
        let renumbered = cx.b.scatter(zeros, by_first[1], number, Combine::Set)?;
        inverse = cx.b.gather(renumbered, inverse, 0)?;
    }
    let y = match axis {
        None => cx.b.gather(rows, firsts, 0)?,
        Some(a) => cx.b.gather(x, firsts, a)?,
    };
    Ok([y, firsts, inverse, counts].into())
}
