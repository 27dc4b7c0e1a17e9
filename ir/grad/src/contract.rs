//! Contractions and convolutions: each operand's adjoint is one of the same kind, of the adjoint and the other.

use crate::reduce::transposed;
use crate::{Node, Result};
use ir::build::{Builder, V};
use ir::prim::{Prim, WindowDim};
use ir::{DType, Dim};

pub(crate) fn rule(b: &mut Builder, n: &Node, g: V) -> Result<Vec<Option<V>>> {
    match &n.prim {
        Prim::Contract { batch, reduce, .. } => {
            let (x, y) = (n.operands[0], n.operands[1]);
            let swapped = |p: &[(usize, usize)]| p.iter().map(|&(a, b)| (b, a)).collect::<Vec<_>>();
            let (rx, ry) = (b.rank(x), b.rank(y));
            let free = |rank: usize, batch: &[(usize, usize)], reduce: &[(usize, usize)]| {
                rank - batch.len() - reduce.len()
            };
            let k = batch.len();
            let (fx, fy) = (free(rx, batch, reduce), free(ry, &swapped(batch), &swapped(reduce)));
            let of_x: Vec<usize> = (k..k + fx).collect();
            let of_y: Vec<usize> = (k + fx..k + fx + fy).collect();
            let dx = match n.wanted[0] {
                true => Some(operand(b, g, x, y, batch, reduce, &of_x, &of_y)?),
                false => None,
            };
            let dy = match n.wanted[1] {
                true => Some(operand(b, g, y, x, &swapped(batch), &swapped(reduce), &of_y, &of_x)?),
                false => None,
            };
            Ok(vec![dx, dy])
        }
        Prim::Convolve { window, groups, .. } => {
            let dx = if n.wanted[0] { Some(image(b, n, g, window, *groups)?) } else { None };
            let dw = if n.wanted[1] { Some(filter(b, n, g, window, *groups)?) } else { None };
            Ok(vec![dx, dw])
        }
        _ => Ok(vec![None; n.operands.len()]),
    }
}

/// The operands of a rule in one type, which is also that of the sums.
fn in_type_of(b: &mut Builder, g: V, other: V) -> Result<(V, DType)> {
    let acc = b.dtype(g);
    Ok((b.convert(other, acc)?, acc))
}

/// The adjoint of `x`, one operand of a contraction whose other is `other`: `g` contracted with it over its free
/// dims. `batch` and `reduce` are pairs (axis of x, axis of other); `own` and `theirs` the free dims in `g`.
#[allow(clippy::too_many_arguments, reason = "the roles of all dims")]
fn operand(
    b: &mut Builder,
    g: V,
    x: V,
    other: V,
    batch: &[(usize, usize)],
    reduce: &[(usize, usize)],
    own: &[usize],
    theirs: &[usize],
) -> Result<V> {
    let (rank, dtype) = (b.rank(x), b.dtype(x));
    let free =
        |rank: usize, taken: &dyn Fn(usize) -> bool| (0..rank).filter(|&d| !taken(d)).collect::<Vec<_>>();
    let of_other = free(b.rank(other), &|d| batch.iter().chain(reduce).any(|p| p.1 == d));
    let of_x = free(rank, &|d| batch.iter().chain(reduce).any(|p| p.0 == d));
    let pairs: Vec<(usize, usize)> = batch.iter().enumerate().map(|(i, p)| (i, p.1)).collect();
    let over: Vec<(usize, usize)> = theirs.iter().copied().zip(of_other).collect();
    let (other, acc) = in_type_of(b, g, other)?;
    let d = b.contract(g, other, &pairs, &over, acc)?;
    // batch dims, own free dims, then the reduced dims in the order of the other operand
    let mut reduced: Vec<(usize, usize)> = reduce.iter().map(|p| (p.1, p.0)).collect();
    reduced.sort_unstable();
    debug_assert_eq!(own.len(), of_x.len());
    let now: Vec<usize> =
        batch.iter().map(|p| p.0).chain(of_x).chain(reduced.into_iter().map(|p| p.1)).collect();
    let mut perm = vec![0; rank];
    now.iter().enumerate().for_each(|(i, &axis)| perm[axis] = i);
    let d = b.transpose(d, &perm)?;
    Ok(b.convert(d, dtype)?)
}

/// w[G * Co, Ci, K..] as [G * Ci, Co, K..], mirrored: the filter that leads back.
fn image(b: &mut Builder, n: &Node, g: V, window: &[WindowDim], groups: usize) -> Result<V> {
    let (x, w) = (n.operands[0], n.operands[1]);
    let (shape, out, dtype) = (b.shape(x).to_vec(), b.shape(g).to_vec(), b.dtype(x));
    let ws = b.shape(w).to_vec();
    let g_dim = Dim::from(groups);
    let co = ws[0].floor_div(&g_dim, b.symbols());
    let spatial = ws.len() - 2;
    let split = [&[g_dim.clone(), co.clone(), ws[1].clone()], &ws[2..]].concat();
    let back = b.reshape(w, &split)?;
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..3 + spatial).collect();
    let back = b.transpose(back, &perm)?;
    let merged = [&[&g_dim * &ws[1], co], &ws[2..]].concat();
    let mut back = b.reshape(back, &merged)?;
    for d in 0..spatial {
        back = b.reverse(back, 2 + d)?;
    }
    let windows: Vec<WindowDim> = window
        .iter()
        .enumerate()
        .map(|(i, win)| transposed(win, &ws[2 + i], &shape[2 + i], &out[2 + i], b))
        .collect();
    let (back, acc) = in_type_of(b, g, back)?;
    let dx = b.convolve(g, back, &windows, groups, acc)?;
    let dx = b.reshape(dx, &shape)?;
    Ok(b.convert(dx, dtype)?)
}

/// The filter's adjoint: the image convolved with the adjoint of the result, images being channels.
fn filter(b: &mut Builder, n: &Node, g: V, window: &[WindowDim], groups: usize) -> Result<V> {
    let (x, w) = (n.operands[0], n.operands[1]);
    let (xs, gs, ws, dtype) = (b.shape(x).to_vec(), b.shape(g).to_vec(), b.shape(w).to_vec(), b.dtype(w));
    let spatial = ws.len() - 2;
    let (one, g_dim) = (Dim::from(1), Dim::from(groups));
    // x[N, G * Ci, S..] to [Ci, G * N, S..]
    let split = [&[xs[0].clone(), g_dim.clone(), ws[1].clone()], &xs[2..]].concat();
    let images = b.reshape(x, &split)?;
    let perm: Vec<usize> = [2, 1, 0].into_iter().chain(3..3 + spatial).collect();
    let images = b.transpose(images, &perm)?;
    let merged = [&[ws[1].clone(), &g_dim * &xs[0]], &xs[2..]].concat();
    let images = b.reshape(images, &merged)?;
    // g[N, G * Co, O..] to [G * Co, N, O..]
    let kernel = b.swap_axes(g, 0, 1)?;
    let windows: Vec<WindowDim> = window
        .iter()
        .enumerate()
        .map(|(i, win)| {
            let facts = b.symbols();
            let spread = |n: &Dim, by: i64| n + &((n.max_with(&one, facts) - &one) * Dim::from(by - 1));
            let reach = (&gs[2 + i] - &one) * Dim::from(win.stride) + &one;
            let span = (&ws[2 + i] - &one) * Dim::from(win.dilation);
            let pad_hi = span + &reach - &spread(&xs[2 + i], win.base_dilation) - &win.pad_lo;
            WindowDim {
                stride: win.dilation,
                pad_lo: win.pad_lo.clone(),
                pad_hi,
                dilation: win.stride,
                base_dilation: win.base_dilation,
            }
        })
        .collect();
    let (images, acc) = in_type_of(b, g, images)?;
    let dw = b.convolve(images, kernel, &windows, groups, acc)?;
    let dw = b.swap_axes(dw, 0, 1)?;
    let dw = b.reshape(dw, &ws)?;
    Ok(b.convert(dw, dtype)?)
}
