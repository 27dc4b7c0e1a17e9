//! Movement: adjoints move back, and are added up where one element went to several places.

use crate::indexed::scatter_axis;
use crate::{Node, Result, zeros_like};
use ir::build::{Builder, V};
use ir::prim::{PadMode, Prim};
use ir::{DType, Dim};

pub(crate) fn rule(b: &mut Builder, n: &Node, g: V) -> Result<Vec<Option<V>>> {
    let shape = n.operands.first().map(|&x| b.shape(x).to_vec()).unwrap_or_default();
    Ok(match &n.prim {
        Prim::Reshape { .. } => vec![Some(b.reshape(g, &shape)?)],
        Prim::Transpose { perm } => {
            let mut inverse = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
            vec![Some(b.transpose(g, &inverse)?)]
        }
        Prim::Broadcast { dims, .. } => vec![Some(unbroadcast(b, g, &shape, dims)?)],
        Prim::Slice { start, size, step } => vec![Some(unslice(b, g, &shape, start, size, step)?)],
        Prim::Pad { lo, hi, interior, mode } => pad(b, n, g, &shape, lo, hi, interior, *mode)?,
        Prim::Concat { axis } => {
            let sizes: Vec<Dim> = n.operands.iter().map(|&x| b.shape(x)[*axis].clone()).collect();
            b.split(g, *axis, &sizes)?.into_iter().map(Some).collect()
        }
        Prim::UpdateSlice { start } => {
            let update = n.operands[1];
            let zeros = zeros_like(b, update)?;
            let base = b.update_slice(g, zeros, start)?;
            let (size, step) = (b.shape(update).to_vec(), vec![1; start.len()]);
            vec![Some(base), Some(b.slice(g, start, &size, &step)?)]
        }
        _ => vec![None; n.operands.len()],
    })
}

/// Sums of what the elements of `shape` were broadcast to: operand dim i is result dim `dims[i]`.
fn unbroadcast(b: &mut Builder, g: V, shape: &[Dim], dims: &[usize]) -> Result<V> {
    let wide = b.shape(g).to_vec();
    let mut sum: Vec<usize> = (0..wide.len()).filter(|d| !dims.contains(d)).collect();
    let mut at_run_time = Vec::new();
    for (i, (&d, extent)) in dims.iter().zip(shape).enumerate() {
        if b.same_dim(extent, &wide[d]) {
            continue;
        }
        if extent.is_const(1) {
            sum.push(d);
        } else {
            at_run_time.push(i);
        }
    }
    let mut g = b.reduce_sum(g, &sum, false)?;
    // the dims that are left, with 1 for those that were summed
    let left: Vec<Dim> = dims
        .iter()
        .zip(shape)
        .map(|(&d, extent)| {
            if sum.contains(&d) {
                Dim::from(1)
            } else if b.same_dim(extent, &wide[d]) {
                extent.clone()
            } else {
                wide[d].clone()
            }
        })
        .collect();
    g = b.reshape(g, &left)?;
    for i in at_run_time {
        // element j came from min(j, extent - 1): from itself, or from the only one
        let j = b.iota(DType::I64, &left[i..=i], 0)?;
        let last = b.dim_value(&(&shape[i] - &Dim::from(1)))?;
        let index = b.min(j, last)?;
        g = scatter_axis(b, g, i, index, &shape[i])?;
    }
    Ok(g)
}

/// The adjoint of a slice of a tensor of `shape`: zeros around and between.
pub(crate) fn unslice(
    b: &mut Builder,
    g: V,
    shape: &[Dim],
    start: &[Dim],
    size: &[Dim],
    step: &[i64],
) -> Result<V> {
    let (mut g, mut lo, mut hi, mut interior) = (g, Vec::new(), Vec::new(), Vec::new());
    let one = Dim::from(1);
    for (axis, &s) in step.iter().enumerate() {
        let (every, mut first) = (s.unsigned_abs().max(1) as i64, start[axis].clone());
        if s < 0 {
            g = b.reverse(g, axis)?;
            first = &first - &((&size[axis] - &one) * Dim::from(every));
        }
        let gaps = size[axis].max_with(&one, b.symbols()) - &one;
        let span = &size[axis] + &(gaps * Dim::from(every - 1));
        hi.push(&shape[axis] - &first - &span);
        lo.push(first);
        interior.push(every - 1);
    }
    let zero = b.scalar(b.dtype(g), 0.0)?;
    let dx = b.pad(g, zero, &lo, &hi, &interior)?;
    Ok(b.reshape(dx, shape)?)
}

/// The part of a padded tensor's adjoint that belongs to the operand of `shape`.
pub(crate) fn unpad(
    b: &mut Builder,
    g: V,
    shape: &[Dim],
    lo: &[Dim],
    hi: &[Dim],
    interior: &[i64],
) -> Result<V> {
    let zero = b.scalar(b.dtype(g), 0.0)?;
    let negative = |d: &[Dim]| d.iter().map(|x| -x.clone()).collect::<Vec<_>>();
    let none = vec![0; shape.len()];
    let whole = b.pad(g, zero, &negative(lo), &negative(hi), &none)?;
    let step: Vec<i64> = interior.iter().map(|i| i + 1).collect();
    Ok(b.slice(whole, &vec![Dim::from(0); shape.len()], shape, &step)?)
}

#[allow(clippy::too_many_arguments, reason = "the attributes of the primitive")]
fn pad(
    b: &mut Builder,
    n: &Node,
    g: V,
    shape: &[Dim],
    lo: &[Dim],
    hi: &[Dim],
    interior: &[i64],
    mode: PadMode,
) -> Result<Vec<Option<V>>> {
    if mode == PadMode::Constant {
        let dx = unpad(b, g, shape, lo, hi, interior)?;
        let fill = if n.wanted.get(1) == Some(&true) {
            let axes: Vec<usize> = (0..shape.len()).collect();
            let (all, own) = (b.reduce_sum(g, &axes, false)?, b.reduce_sum(dx, &axes, false)?);
            Some(b.sub(all, own)?)
        } else {
            None
        };
        return Ok(vec![Some(dx), fill]);
    }
    // axis by axis: the place that each element was read from
    let mut g = g;
    for axis in 0..shape.len() {
        if lo[axis].is_const(0) && hi[axis].is_const(0) {
            continue;
        }
        let places = b.iota(DType::I64, &shape[axis..=axis], 0)?;
        let places = b.pad_mode(places, mode, &lo[axis..=axis], &hi[axis..=axis])?;
        g = scatter_axis(b, g, axis, places, &shape[axis])?;
    }
    Ok(vec![Some(g)])
}
