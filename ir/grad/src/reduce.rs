//! Reductions, windows and running sums.

use crate::movement::{unpad, unslice};
use crate::{Node, Result};
use ir::Dim;
use ir::build::{Builder, V};
use ir::prim::{Monoid, Prim, WindowDim};

/// Windows of more positions are refused where each position takes ops of its own.
const MAX_WINDOW: i64 = 4096;

pub(crate) fn rule(b: &mut Builder, n: &Node, g: V) -> Result<Vec<Option<V>>> {
    Ok(vec![Some(match &n.prim {
        Prim::Reduce { monoid, axes } => reduce(b, n, g, *monoid, axes)?,
        Prim::WindowReduce { monoid, size, window } => match monoid {
            Monoid::Sum => window_sum(b, n, g, size, window)?,
            Monoid::Max | Monoid::Min => window_extreme(b, n, g, *monoid, size, window)?,
            Monoid::Prod => return n.fail("products over windows"),
        },
        Prim::Cumulative { monoid, axis, exclusive, reverse } => match monoid {
            Monoid::Sum => b.cumulative(Monoid::Sum, g, *axis, *exclusive, !reverse)?,
            Monoid::Prod => match b.shape(g)[*axis].as_const() {
                Some(extent) => running_product(b, n.operands[0], g, *axis, extent, *exclusive, *reverse)?,
                None => return n.fail("a running product over an extent that is only known at run time"),
            },
            Monoid::Max | Monoid::Min => return n.fail("running extremes"),
        },
        _ => return Ok(vec![None; n.operands.len()]),
    })])
}

fn reduce(b: &mut Builder, n: &Node, g: V, monoid: Monoid, axes: &[usize]) -> Result<V> {
    let (x, y) = (n.operands[0], n.results[0]);
    let shape = b.shape(x).to_vec();
    let kept: Vec<usize> = (0..shape.len()).filter(|d| !axes.contains(d)).collect();
    let g = b.broadcast(g, &shape, &kept)?;
    Ok(match monoid {
        Monoid::Sum => g,
        Monoid::Prod => {
            let others = products_of_others(b, x, axes)?;
            b.mul(g, others)?
        }
        Monoid::Max | Monoid::Min => {
            let y = b.broadcast(y, &shape, &kept)?;
            let won = b.eq(x, y)?;
            let won = b.convert(won, b.dtype(x))?;
            let count = b.reduce_sum(won, axes, false)?;
            let count = b.broadcast(count, &shape, &kept)?;
            let share = b.div(g, count)?;
            b.mul(share, won)?
        }
    })
}

/// For every element the product of all others that are reduced with it, without a division.
fn products_of_others(b: &mut Builder, x: V, axes: &[usize]) -> Result<V> {
    let shape = b.shape(x).to_vec();
    let order: Vec<usize> =
        (0..shape.len()).filter(|d| !axes.contains(d)).chain(axes.iter().copied()).collect();
    let moved = b.transpose(x, &order)?;
    let split = b.shape(moved).to_vec();
    let kept = split.len() - axes.len();
    let flat = [&split[..kept], &[Dim::product(&split[kept..])]].concat();
    let flat = b.reshape(moved, &flat)?;
    let before = b.cumulative(Monoid::Prod, flat, kept, true, false)?;
    let after = b.cumulative(Monoid::Prod, flat, kept, true, true)?;
    let others = b.mul(before, after)?;
    let others = b.reshape(others, &split)?;
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    Ok(b.transpose(others, &back)?)
}

/// Element j of a running product takes part in all results from j on: with `r[j] = g[j] + x[j + 1] r[j + 1]` its
/// adjoint is `r[j]` times the product of those before it. The recurrence is solved by doubling, without a division.
fn running_product(
    b: &mut Builder,
    x: V,
    g: V,
    axis: usize,
    extent: i64,
    exclusive: bool,
    reverse: bool,
) -> Result<V> {
    let flip = |b: &mut Builder, v: V| if reverse { b.reverse(v, axis) } else { Ok(v) };
    let (x, mut sum) = (flip(b, x)?, flip(b, g)?);
    if exclusive {
        sum = later(b, sum, axis, extent, 1)?;
    }
    let mut factor = later(b, x, axis, extent, 1)?;
    let mut reach = 1;
    while reach < extent {
        let further = later(b, sum, axis, extent, reach)?;
        let further = b.mul(factor, further)?;
        sum = b.add(sum, further)?;
        let next = later(b, factor, axis, extent, reach)?;
        factor = b.mul(factor, next)?;
        reach *= 2;
    }
    let before = b.cumulative(Monoid::Prod, x, axis, true, false)?;
    let dx = b.mul(sum, before)?;
    Ok(flip(b, dx)?)
}

/// Every element replaced by the one `by` places further along `axis`, 0 beyond the end.
fn later(b: &mut Builder, v: V, axis: usize, extent: i64, by: i64) -> Result<V> {
    let left = (extent - by).max(0);
    let part = b.slice_axis(v, axis, &Dim::from(extent - left), &Dim::from(left))?;
    let rank = b.rank(v);
    let (lo, mut hi) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
    hi[axis] = Dim::from(extent - left);
    let zero = b.scalar(b.dtype(v), 0.0)?;
    Ok(b.pad(part, zero, &lo, &hi, &vec![0; rank])?)
}

/// The window that leads back: the operand's elements as outputs, the results spread by the stride as inputs. `size`
/// is the kernel's extent, `input` and `output` those of the forward window.
pub(crate) fn transposed(w: &WindowDim, size: &Dim, input: &Dim, output: &Dim, b: &Builder) -> WindowDim {
    let one = Dim::from(1);
    let facts = b.symbols();
    let reach = (size - &one) * Dim::from(w.dilation);
    let gaps = output.max_with(&one, facts) - &one;
    let spread = output + &(gaps * Dim::from(w.stride - 1));
    let pad_lo = &reach - &w.pad_lo;
    // the last element of the operand is the last output
    let last = (input - &one) * Dim::from(w.base_dilation);
    let pad_hi = last + &one + &reach - &spread - &pad_lo;
    WindowDim { stride: w.base_dilation, pad_lo, pad_hi, dilation: w.dilation, base_dilation: w.stride }
}

fn window_sum(b: &mut Builder, n: &Node, g: V, size: &[i64], window: &[WindowDim]) -> Result<V> {
    let shape = b.shape(n.operands[0]).to_vec();
    let lead = shape.len() - window.len();
    let out = b.shape(g).to_vec();
    let back: Vec<WindowDim> = window
        .iter()
        .enumerate()
        .map(|(i, w)| transposed(w, &Dim::from(size[i]), &shape[lead + i], &out[lead + i], b))
        .collect();
    let dx = b.window_reduce(Monoid::Sum, g, size, &back)?;
    Ok(b.reshape(dx, &shape)?)
}

/// Every position of the window is a strided slice of the padded operand; the adjoint goes to those that are equal to
/// the extreme.
fn window_extreme(
    b: &mut Builder,
    n: &Node,
    g: V,
    monoid: Monoid,
    size: &[i64],
    window: &[WindowDim],
) -> Result<V> {
    let (x, y) = (n.operands[0], n.results[0]);
    let positions = size.iter().try_fold(1i64, |p, &s| p.checked_mul(s)).filter(|&p| p <= MAX_WINDOW);
    let Some(positions) = positions else {
        return n.fail(format!("an extreme over windows of more than {MAX_WINDOW} elements"));
    };
    let (shape, out, dtype) = (b.shape(x).to_vec(), b.shape(y).to_vec(), b.dtype(x));
    let lead = shape.len() - window.len();
    let (mut lo, mut hi, mut interior) =
        (vec![Dim::from(0); shape.len()], vec![Dim::from(0); shape.len()], vec![0; shape.len()]);
    let mut step = vec![1; shape.len()];
    for (i, w) in window.iter().enumerate() {
        (lo[lead + i], hi[lead + i]) = (w.pad_lo.clone(), w.pad_hi.clone());
        (interior[lead + i], step[lead + i]) = (w.base_dilation - 1, w.stride);
    }
    let fill = b.scalar_of(dtype, monoid.identity(dtype))?;
    let padded = b.pad(x, fill, &lo, &hi, &interior)?;
    let wide = b.shape(padded).to_vec();
    let starts: Vec<Vec<Dim>> = (0..positions)
        .map(|p| {
            let mut rest = p;
            let mut start = vec![Dim::from(0); shape.len()];
            for i in (0..window.len()).rev() {
                start[lead + i] = Dim::from(rest % size[i] * window[i].dilation);
                rest /= size[i];
            }
            start
        })
        .collect();
    let mut won = Vec::with_capacity(starts.len());
    let mut count: Option<V> = None;
    for start in &starts {
        let part = b.slice(padded, start, &out, &step)?;
        let equal = b.eq(part, y)?;
        let equal = b.convert(equal, dtype)?;
        count = Some(match count {
            Some(c) => b.add(c, equal)?,
            None => equal,
        });
        won.push(equal);
    }
    let Some(count) = count else { return n.fail("windows without elements") };
    let share = b.div(g, count)?;
    let mut sum: Option<V> = None;
    for (start, won) in starts.iter().zip(won) {
        let part = b.mul(share, won)?;
        let part = unslice(b, part, &wide, start, &out, &step)?;
        sum = Some(match sum {
            Some(s) => b.add(s, part)?,
            None => part,
        });
    }
    let sum = sum.unwrap_or(share);
    unpad(b, sum, &shape, &lo, &hi, &interior)
}
