//! Gather, scatter, and what permutes: adjoints go to where elements came from.

use crate::{Node, Result};
use ir::build::{Builder, V};
use ir::prim::{Combine, Prim};
use ir::{DType, Dim};

pub(crate) fn rule(b: &mut Builder, n: &Node, g: V) -> Result<Vec<Option<V>>> {
    match &n.prim {
        Prim::Gather { axis } => {
            let (x, index) = (n.operands[0], n.operands[1]);
            let (shape, places) = (b.shape(x).to_vec(), b.shape(index).to_vec());
            // [before, places, after] to [before, place, after]
            let merged = [&shape[..*axis], &[Dim::product(&places)], &shape[axis + 1..]].concat();
            let g = b.reshape(g, &merged)?;
            let index = b.reshape(index, &merged[*axis..=*axis])?;
            Ok(vec![Some(scatter_axis(b, g, *axis, index, &shape[*axis])?), None])
        }
        Prim::Scatter { combine } => scatter(b, n, g, *combine),
        _ => Ok(vec![None; n.operands.len()]),
    }
}

/// Adds the slices of `g` along `axis` up at the places `index` (n) of an axis of `extent`.
pub(crate) fn scatter_axis(b: &mut Builder, g: V, axis: usize, index: V, extent: &Dim) -> Result<V> {
    let rank = b.rank(g);
    let front: Vec<usize> = std::iter::once(axis).chain((0..rank).filter(|&d| d != axis)).collect();
    let g = b.transpose(g, &front)?;
    let mut shape = b.shape(g).to_vec();
    shape[0] = extent.clone();
    let zeros = b.full(b.dtype(g), &shape, 0.0)?;
    let sum = b.scatter(zeros, index, g, Combine::Add)?;
    let mut back = vec![0; rank];
    front.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    Ok(b.transpose(sum, &back)?)
}

fn scatter(b: &mut Builder, n: &Node, g: V, combine: Combine) -> Result<Vec<Option<V>>> {
    let (base, index, updates, y) = (n.operands[0], n.operands[1], n.operands[2], n.results[0]);
    let dtype = b.dtype(base);
    let theirs = b.gather(g, index, 0)?;
    let (dbase, dupdates) = match combine {
        Combine::Add => (g, theirs),
        Combine::Set => {
            let zeros = crate::zeros_like(b, updates)?;
            let dbase = b.scatter(g, index, zeros, Combine::Set)?;
            // of several updates of one row the last counts
            let (rows, count) = (b.shape(base)[..1].to_vec(), b.shape(index).to_vec());
            let number = b.iota(DType::I64, &count, 0)?;
            let none = b.full(DType::I64, &rows, -1.0)?;
            let last = b.scatter(none, index, number, Combine::Set)?;
            let last = b.gather(last, index, 0)?;
            let counts = b.eq(last, number)?;
            let mut shape = vec![Dim::from(1); b.rank(updates)];
            shape[0] = count[0].clone();
            let counts = b.reshape(counts, &shape)?;
            let zero = b.scalar(dtype, 0.0)?;
            (dbase, b.select(counts, theirs, zero)?)
        }
        Combine::Mul => {
            let shape = b.shape(base).to_vec();
            let ones = b.full(dtype, &shape, 1.0)?;
            let factors = b.scatter(ones, index, updates, Combine::Mul)?;
            let product = b.mul(g, y)?;
            let product = b.gather(product, index, 0)?;
            // not a number where an update is 0: the product of the others is not at hand
            (b.mul(g, factors)?, b.div(product, updates)?)
        }
        Combine::Min | Combine::Max => {
            let result = b.gather(y, index, 0)?;
            let won = b.eq(updates, result)?;
            let won = b.convert(won, dtype)?;
            let kept = b.eq(base, y)?;
            let kept = b.convert(kept, dtype)?;
            let count = b.scatter(kept, index, won, Combine::Add)?;
            let share = b.div(g, count)?;
            let each = b.gather(share, index, 0)?;
            (b.mul(share, kept)?, b.mul(each, won)?)
        }
    };
    Ok(vec![Some(dbase), None, Some(dupdates)])
}

/// Each operand's adjoint in the order from before the sort.
pub(crate) fn sort(b: &mut Builder, n: &Node, gs: &[Option<V>]) -> Result<Vec<Option<V>>> {
    let Prim::Sort { axis, descending } = n.prim else { return Ok(Vec::new()) };
    let shape = b.shape(n.operands[0]).to_vec();
    let number = b.iota(DType::I64, &shape, axis)?;
    let from = b.sort(&[n.operands[0], number], axis, descending)?[1];
    gs.iter()
        .map(|g| match g {
            Some(g) => Ok(Some(b.sort(&[from, *g], axis, false)?[1])),
            None => Ok(None),
        })
        .collect()
}

pub(crate) fn top_k(b: &mut Builder, n: &Node, gs: &[Option<V>]) -> Result<Vec<Option<V>>> {
    let (Prim::TopK { axis, .. }, Some(&Some(g))) = (&n.prim, gs.first()) else { return Ok(vec![None]) };
    let (x, place) = (n.operands[0], n.results[1]);
    let (shape, taken) = (b.shape(x).to_vec(), b.shape(g).to_vec());
    // the place of every element in the flat tensor
    let mut flat = None;
    let mut stride = Dim::from(1);
    for d in (0..shape.len()).rev() {
        let i = if d == *axis { place } else { b.iota(DType::I64, &taken, d)? };
        let s = b.dim_value(&stride)?;
        let term = b.mul(i, s)?;
        flat = Some(match flat {
            Some(f) => b.add(f, term)?,
            None => term,
        });
        stride = stride * &shape[d];
    }
    let Some(flat) = flat else { return Ok(vec![Some(g)]) };
    let count = [Dim::product(&taken)];
    let (flat, updates) = (b.reshape(flat, &count)?, b.reshape(g, &count)?);
    let zeros = b.full(b.dtype(g), &[stride], 0.0)?;
    let sum = b.scatter(zeros, flat, updates, Combine::Add)?;
    Ok(vec![Some(b.reshape(sum, &shape)?)])
}
