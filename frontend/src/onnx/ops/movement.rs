//! Operators that move elements without computing: reshape, transpose, slice, concat, pad, tile.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::prim::PadMode;
use ir::{DType, Dim, SymKind};

pub static OPS: &[Op] = &[
    op("CenterCropPad", 18, center_crop_pad),
    op("Concat", 1, concat),
    op("DepthToSpace", 1, depth_to_space),
    op("Expand", 8, expand),
    op("Flatten", 1, flatten),
    op("Pad", 1, pad),
    op("Reshape", 1, reshape),
    op("Slice", 1, slice),
    op("SpaceToDepth", 1, space_to_depth),
    op("Split", 1, split),
    op("Squeeze", 1, squeeze),
    op("Tile", 6, tile),
    op("Transpose", 1, transpose),
    op("Unsqueeze", 1, unsqueeze),
];

// ---- reshape -------------------------------------------------------------------------------

fn reshape(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let copy_zero = !cx.flag("allowzero", false)?;
    let target = if cx.opset < 5 {
        cx.need_ints("shape")?.into_iter().map(Dim::from).collect()
    } else {
        let s = cx.input(1)?;
        let facts = cx.b.symbols();
        // an expression that can be negative was read from data elsewhere, and may be a mark
        let sizes = |d: &Dim| d.as_const().is_some() || d.bounds(facts).0 >= 0;
        if !cx.b.known(s).is_some_and(|k| k.iter().all(sizes)) && cx.const_ints(s).is_none() {
            let out = run_time_shape(cx, x, s, copy_zero)?;
            return Ok(cx.b.reshape(x, &out)?.into());
        }
        cx.sizes_of(s, -1)?
    };
    let out = resolve_shape(cx, &shape, &target, copy_zero)?;
    Ok(cx.b.reshape(x, &out)?.into())
}

/// The shape that a Reshape to `target` gives: 0 copies the input's dim (where `copy_zero`), -1 takes
/// what is left. Elements that are not constant are sizes.
fn resolve_shape(cx: &NodeCx, input: &[Dim], target: &[Dim], copy_zero: bool) -> Result<Vec<Dim>, OpError> {
    let mut out = Vec::with_capacity(target.len());
    let mut inferred = None;
    for (i, t) in target.iter().enumerate() {
        out.push(match t.as_const() {
            Some(-1) if inferred.replace(i).is_some() => {
                return Err(OpError::invalid(Code::Shape, "more than one element of the shape is -1"));
            }
            Some(0) if copy_zero => input.get(i).cloned().ok_or_else(|| {
                OpError::invalid(
                    Code::Shape,
                    format!("element {i} of the shape is 0, the input has rank {}", input.len()),
                )
            })?,
            Some(n) if n < -1 => {
                return Err(OpError::invalid(Code::Shape, format!("element {i} of the shape is {n}")));
            }
            _ => t.clone(),
        });
    }
    if let Some(i) = inferred {
        let others: Vec<Dim> =
            out.iter().enumerate().filter(|(k, _)| *k != i).map(|(_, d)| d.clone()).collect();
        out[i] = quotient(cx, input, &others)?;
    }
    Ok(out)
}

/// As [`resolve_shape`] where some elements are only known at run time: the same rules on the tensor of
/// the shape, whose result is bound.
fn run_time_shape(cx: &mut NodeCx, x: V, target: V, copy_zero: bool) -> Result<Vec<Dim>, OpError> {
    let input = cx.shape(x);
    cx.check_rank("shape", target, 1)?;
    let n = cx.dim(target, 0)?.as_const().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
        OpError::unsupported(Code::Dynamic, "a shape whose rank is only known when the model is executed")
    })?;
    if n > crate::onnx::tensor::MAX_RANK {
        return Err(OpError::limit(format!("rank {n}")));
    }
    let target = cx.b.convert(target, DType::I64)?;
    let mut sizes = target;
    if copy_zero {
        // beyond the input's rank a 0 has nothing to copy: -2 is no size, and refused when it is bound
        let copied: Vec<Dim> = (0..n).map(|i| input.get(i).cloned().unwrap_or(Dim::from(-2))).collect();
        let copied = cx.b.dims_vector(&copied)?;
        let zero = cx.b.scalar_i64(0)?;
        let is_zero = cx.b.eq(target, zero)?;
        sizes = cx.b.select(is_zero, copied, sizes)?;
    }
    let (one, minus) = (cx.b.scalar_i64(1)?, cx.b.scalar_i64(-1)?);
    let is_mark = cx.b.eq(target, minus)?;
    let others = cx.b.select(is_mark, one, sizes)?;
    let others = cx.b.reduce_prod(others, &[0], false)?;
    let others = cx.b.max(others, one)?;
    let total = cx.b.dim_value(&Dim::product(&input))?;
    let rest = cx.b.div(total, others)?;
    let sizes = cx.b.select(is_mark, rest, sizes)?;
    cx.sizes_of(sizes, 0)
}

/// `product(of) / product(by)`, equal factors cancelled first so that sums cancel too.
pub fn quotient(cx: &NodeCx, of: &[Dim], by: &[Dim]) -> Result<Dim, OpError> {
    let facts = cx.b.symbols();
    let mut of = of.to_vec();
    let mut left = Vec::new();
    for d in by {
        if d.is_const(1) {
            continue;
        }
        match of.iter().position(|o| o == d) {
            Some(i) => {
                of.remove(i);
            }
            None => left.push(d.clone()),
        }
    }
    let (num, den) = (Dim::product(&of), Dim::product(&left));
    if den.is_const(1) {
        return Ok(num);
    }
    match (num.as_const(), den.as_const()) {
        (_, Some(0)) => Err(OpError::invalid(Code::Shape, "a dim cannot be inferred where another one is 0")),
        (Some(n), Some(d)) if n % d != 0 => {
            Err(OpError::invalid(Code::Shape, format!("{n} elements do not divide into rows of {d}")))
        }
        _ => {
            let (q, rest) = num.split_multiple(&den);
            Ok(if rest.is_const(0) { q } else { num.floor_div(&den.max_with(&Dim::from(1), facts), facts) })
        }
    }
}

fn flatten(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let rank = shape.len() as i64;
    let axis = cx.int("axis", 1)?;
    if !(-rank..=rank).contains(&axis) {
        return Err(OpError::invalid(
            Code::Attribute,
            format!("axis {axis} is out of range for rank {rank}"),
        ));
    }
    let axis = if axis < 0 { axis + rank } else { axis } as usize;
    let out = [Dim::product(&shape[..axis]), Dim::product(&shape[axis..])];
    Ok(cx.b.reshape(x, &out)?.into())
}

/// Axes from the attribute (before version 13) or from input 1.
fn axes_operand(cx: &mut NodeCx, rank: usize) -> Result<Option<Vec<usize>>, OpError> {
    let given = if cx.opset < 13 {
        cx.ints("axes")?
    } else {
        match cx.opt(1)? {
            Some(v) => Some(cx.need_const_ints("axes", v)?),
            None => None,
        }
    };
    given.map(|a| cx.axes(&a, rank)).transpose()
}

fn squeeze(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let axes = match axes_operand(cx, shape.len())? {
        Some(a) => a,
        None => {
            if let Some(d) = shape.iter().find(|d| d.as_const().is_none()) {
                return Err(OpError::unsupported(
                    Code::Dynamic,
                    format!("which dims are 1 is only known when the model is executed ({d})"),
                )
                .hint("give the axes"));
            }
            (0..shape.len()).filter(|&i| shape[i].is_const(1)).collect()
        }
    };
    for &a in &axes {
        if shape[a].as_const().is_some_and(|d| d != 1) {
            return Err(OpError::invalid(Code::Shape, format!("axis {a} has extent {}, not 1", shape[a])));
        }
    }
    let out: Vec<Dim> = (0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i].clone()).collect();
    Ok(cx.b.reshape(x, &out)?.into())
}

fn unsqueeze(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let given = if cx.opset < 13 {
        cx.need_ints("axes")?
    } else {
        let v = cx.input(1)?;
        cx.need_const_ints("axes", v)?
    };
    let mut rest = cx.shape(x).into_iter();
    let rank = rest.len() + given.len();
    let axes = cx.axes(&given, rank)?;
    let out: Vec<Dim> = (0..rank)
        .map(|i| if axes.contains(&i) { Dim::from(1) } else { rest.next().unwrap_or_default() })
        .collect();
    Ok(cx.b.reshape(x, &out)?.into())
}

// ---- transpose and blocks ------------------------------------------------------------------

fn transpose(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let perm = match cx.ints("perm")? {
        Some(p) => cx.axes(&p, rank)?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank {
        return Err(OpError::invalid(
            Code::Attribute,
            format!("perm has {} elements, the input rank {rank}", perm.len()),
        ));
    }
    Ok(cx.b.transpose(x, &perm)?.into())
}

/// Block size, checked.
fn block(cx: &NodeCx) -> Result<Dim, OpError> {
    match cx.need_int("blocksize")? {
        n if (1..=1 << 20).contains(&n) => Ok(Dim::from(n)),
        n => Err(OpError::invalid(Code::Attribute, format!("blocksize {n}"))),
    }
}

fn depth_to_space(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("input", x, 4)?;
    let b = block(cx)?;
    let [n, c, h, w]: [Dim; 4] = cx.shape(x).try_into().unwrap_or_default();
    let depth = quotient(cx, &[c], &[b.clone(), b.clone()])?;
    let (split, perm) = match cx.string("mode", "DCR")? {
        "DCR" => ([n.clone(), b.clone(), b.clone(), depth.clone(), h.clone(), w.clone()], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n.clone(), depth.clone(), b.clone(), b.clone(), h.clone(), w.clone()], [0, 1, 4, 2, 5, 3]),
        m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
    };
    let v = cx.b.reshape(x, &split)?;
    let v = cx.b.transpose(v, &perm)?;
    Ok(cx.b.reshape(v, &[n, depth, h * &b, w * &b])?.into())
}

fn space_to_depth(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    cx.check_rank("input", x, 4)?;
    let b = block(cx)?;
    let [n, c, h, w]: [Dim; 4] = cx.shape(x).try_into().unwrap_or_default();
    let h = quotient(cx, &[h], std::slice::from_ref(&b))?;
    let w = quotient(cx, &[w], std::slice::from_ref(&b))?;
    let v = cx.b.reshape(x, &[n.clone(), c.clone(), h.clone(), b.clone(), w.clone(), b.clone()])?;
    let perm = match cx.string("mode", "DCR")? {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
    };
    let v = cx.b.transpose(v, &perm)?;
    Ok(cx.b.reshape(v, &[n, c * &b * &b, h, w])?.into())
}

// ---- concat and split ----------------------------------------------------------------------

fn concat(cx: &mut NodeCx) -> OpResult {
    let all = cx.all_inputs()?;
    let Some(first) = all.first() else {
        return Err(OpError::invalid(Code::Input, "at least one input is needed"));
    };
    let rank = cx.rank(*first);
    let axis = if cx.opset < 4 { cx.int("axis", 1)? } else { cx.need_int("axis")? };
    let axis = cx.axis(axis, rank)?;
    Ok(cx.b.concat(&all, axis)?.into())
}

fn split(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let axis = cx.axis_attr("axis", 0, shape.len())?;
    let outputs = cx.output_count();
    let sizes = match if cx.opset < 13 { None } else { cx.opt(1)? } {
        Some(v) => cx.sizes_of(v, 0)?,
        None => match cx.ints("split")? {
            Some(s) if cx.opset < 13 => s.into_iter().map(Dim::from).collect(),
            _ => even_parts(cx, &shape[axis], outputs)?,
        },
    };
    if sizes.len() < outputs {
        return Err(OpError::invalid(Code::Shape, format!("{} sizes for {outputs} outputs", sizes.len())));
    }
    if sizes.iter().any(|s| s.as_const().is_some_and(|s| s < 0)) {
        return Err(OpError::invalid(Code::Shape, "a negative size"));
    }
    let total = sizes.iter().fold(Dim::from(0), |a, b| a + b);
    if let (Some(t), Some(d)) = (total.as_const(), shape[axis].as_const())
        && t != d
    {
        return Err(OpError::invalid(
            Code::Shape,
            format!("the sizes sum to {t}, axis {axis} has extent {d}"),
        ));
    }
    let mut outs = Vec::with_capacity(sizes.len());
    let mut start = Dim::from(0);
    for size in sizes {
        outs.push(cx.b.slice_axis(x, axis, &start, &size)?);
        start = start + size;
    }
    Ok(outs.into())
}

/// Sizes of a split into equal parts: version 18 and later let the last one be smaller.
fn even_parts(cx: &NodeCx, extent: &Dim, outputs: usize) -> Result<Vec<Dim>, OpError> {
    let parts = cx.int("num_outputs", outputs as i64)?;
    if parts < 1 || parts > outputs.max(1) as i64 {
        return Err(OpError::invalid(
            Code::Attribute,
            format!("num_outputs {parts}, the node has {outputs}"),
        ));
    }
    let facts = cx.b.symbols();
    let n = Dim::from(parts);
    let chunk = extent.ceil_div(&n, facts);
    let exact = extent.divisible_by(parts, facts);
    Ok((0..parts)
        .map(|i| {
            if exact {
                return chunk.clone();
            }
            // what is left after i chunks, at most a chunk, at least nothing
            let left = extent.clone() - chunk.clone() * Dim::from(i);
            left.min_with(&chunk, facts).max_with(&Dim::from(0), facts)
        })
        .collect())
}

// ---- slice ---------------------------------------------------------------------------------

fn slice(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    let rank = shape.len();
    let (starts, ends, axes, steps) = if cx.opset < 10 {
        let of = |v: Vec<i64>| v.into_iter().map(Dim::from).collect::<Vec<_>>();
        (of(cx.need_ints("starts")?), of(cx.need_ints("ends")?), cx.ints("axes")?, None)
    } else {
        let (s, e) = (cx.input(1)?, cx.input(2)?);
        let starts = cx.sizes_of(s, -Dim::LIMIT)?;
        let ends = cx.sizes_of(e, -Dim::LIMIT)?;
        let axes = cx.opt(3)?.map(|v| cx.need_const_ints("axes", v)).transpose()?;
        let steps = cx.opt(4)?.map(|v| cx.need_const_ints("steps", v)).transpose()?;
        (starts, ends, axes, steps)
    };
    let axes = match axes {
        Some(a) => cx.axes(&a, rank)?,
        None => (0..starts.len().min(rank)).collect(),
    };
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&n| n != starts.len()) {
        return Err(OpError::invalid(
            Code::Shape,
            format!(
                "{} starts, {} ends, {} axes, {} steps",
                starts.len(),
                ends.len(),
                axes.len(),
                steps.len()
            ),
        ));
    }
    let mut start = vec![Dim::from(0); rank];
    let mut size = shape.clone();
    let mut step = vec![1; rank];
    for (i, &a) in axes.iter().enumerate() {
        if steps[i] == 0 {
            return Err(OpError::invalid(Code::Shape, "a step of 0"));
        }
        // a step beyond every extent takes one element at most, like any other such step
        step[a] = steps[i].clamp(-Dim::LIMIT, Dim::LIMIT);
        (start[a], size[a]) = slice_range(cx, &shape[a], &starts[i], &ends[i], step[a]);
    }
    Ok(cx.b.slice(x, &start, &size, &step)?.into())
}

/// First index and number of elements of `start..end` by `step` within `extent`.
///
/// A table of fixed size that is cut by sizes of the inputs (masks, position embeddings) is taken to be
/// large enough, which the program checks: the clamped size `min(1024, seq)` would not be seen to be
/// the `seq` of the operands it is combined with.
fn slice_range(cx: &NodeCx, extent: &Dim, start: &Dim, end: &Dim, step: i64) -> (Dim, Dim) {
    let facts = cx.b.symbols();
    let given = |d: &Dim| d.as_const().is_none() && d.bounds(facts).0 >= 0 && only_entry_symbols(cx, d);
    if step == 1 && extent.as_const().is_some() && given(end) {
        let fits = given(start) || start.as_const().is_some_and(|s| s >= 0);
        let size = end - start;
        if fits && size.bounds(facts).0 >= 0 {
            return (start.clone(), size);
        }
    }
    let (first, size) = ir::build::slice_range(start, end, step, extent, facts);
    // with a negative step, an empty axis leaves the start at -1
    let first = if step < 0 { first.max_with(&Dim::from(0), facts) } else { first };
    (first, size)
}

/// True where all symbols are sizes of the inputs.
fn only_entry_symbols(cx: &NodeCx, d: &Dim) -> bool {
    let mut all = true;
    d.visit_atoms(&mut |a| {
        if let ir::Atom::Sym(s) = a {
            all &= cx.b.symbols().get(*s).kind == SymKind::Entry;
        }
    });
    all
}

// ---- expand, tile, pad ---------------------------------------------------------------------

fn expand(cx: &mut NodeCx) -> OpResult {
    let (x, s) = (cx.input(0)?, cx.input(1)?);
    let target = cx.sizes_of(s, 0)?;
    let shape = cx.b.broadcast_shapes(&[cx.shape(x).to_vec(), target])?;
    Ok(cx.b.broadcast_to(x, &shape)?.into())
}

fn tile(cx: &mut NodeCx) -> OpResult {
    let (x, r) = (cx.input(0)?, cx.input(1)?);
    let shape = cx.shape(x);
    let repeats = cx.sizes_of(r, 0)?;
    if repeats.len() != shape.len() {
        return Err(OpError::invalid(
            Code::Shape,
            format!("{} repeats for rank {}", repeats.len(), shape.len()),
        ));
    }
    tile_by(cx, x, &repeats)
}

/// `x` repeated along each axis.
fn tile_by(cx: &mut NodeCx, x: V, repeats: &[Dim]) -> OpResult {
    let shape = cx.shape(x);
    let (mut with_ones, mut wide, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for (d, r) in shape.iter().zip(repeats) {
        if !r.is_const(1) {
            with_ones.push(Dim::from(1));
            wide.push(r.clone());
        }
        with_ones.push(d.clone());
        wide.push(d.clone());
        out.push(d * r);
    }
    let v = cx.b.reshape(x, &with_ones)?;
    let v = cx.b.broadcast_to(v, &wide)?;
    Ok(cx.b.reshape(v, &out)?.into())
}

fn pad(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let mode = match cx.string("mode", "constant")? {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
    };
    let (amounts, fill, axes) = if cx.opset < 11 {
        let name = if cx.opset < 2 { "paddings" } else { "pads" };
        let pads = cx.need_ints(name)?.into_iter().map(Dim::from).collect();
        let value = cx.float("value", 0.0)?;
        (pads, cx.like(x, value.into())?, None)
    } else {
        let p = cx.input(1)?;
        let pads = cx.sizes_of(p, -Dim::LIMIT)?;
        let fill = match cx.opt(2)? {
            Some(v) => cx.as_scalar(v)?,
            None => cx.like(x, 0.0)?,
        };
        (pads, fill, cx.opt(3)?.map(|v| cx.need_const_ints("axes", v)).transpose()?)
    };
    let axes = match axes {
        Some(a) => cx.axes(&a, rank)?,
        None => (0..rank).collect(),
    };
    if amounts.len() != 2 * axes.len() {
        return Err(OpError::invalid(Code::Shape, format!("{} pads for {} axes", amounts.len(), axes.len())));
    }
    let mut lo = vec![Dim::from(0); rank];
    let mut hi = lo.clone();
    for (i, &a) in axes.iter().enumerate() {
        lo[a] = amounts[i].clone();
        hi[a] = amounts[axes.len() + i].clone();
    }
    Ok(if mode == PadMode::Constant {
        cx.b.pad(x, fill, &lo, &hi, &vec![0; rank])?
    } else {
        cx.b.pad_mode(x, mode, &lo, &hi)?
    }
    .into())
}

/// Crops and pads around the centre to a shape.
fn center_crop_pad(cx: &mut NodeCx) -> OpResult {
    let (x, s) = (cx.input(0)?, cx.input(1)?);
    let shape = cx.shape(x);
    let target = cx.sizes_of(s, 0)?;
    let axes = match cx.ints("axes")? {
        Some(a) => cx.axes(&a, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    if axes.len() != target.len() {
        return Err(OpError::invalid(Code::Shape, format!("{} sizes for {} axes", target.len(), axes.len())));
    }
    let (mut lo, mut hi) = (vec![Dim::from(0); shape.len()], vec![Dim::from(0); shape.len()]);
    let facts = cx.b.symbols();
    for (&a, t) in axes.iter().zip(&target) {
        // growing puts floor(difference / 2) in front; shrinking takes floor(difference / 2) from the front
        let grow = (t - &shape[a]).max_with(&Dim::from(0), facts);
        let shrink = (&shape[a] - t).max_with(&Dim::from(0), facts);
        let two = Dim::from(2);
        lo[a] = grow.floor_div(&two, facts) - shrink.floor_div(&two, facts);
        hi[a] = t - &shape[a] - &lo[a];
    }
    let fill = cx.like(x, 0.0)?;
    Ok(cx.b.pad(x, fill, &lo, &hi, &vec![0; shape.len()])?.into())
}
