//! The loop over the grid of a kernel for blocks of warps.

use super::expr::Eval;
use crate::error::Result;
use crate::schedule::LoopSpec;
use ir::loops::{Level, Val};
use ir::loops_build::LoopBuilder;
use ir::{Dim, Var};

/// Opens the loop over all blocks: so many along each of `loops`, of which the last runs fastest. Binds their axes, but for
/// the two of the tile: variables for the numbers of its rows' and its columns' tiles are the answer, beside the number of blocks.
pub(super) fn open(
    e: &mut Eval,
    loops: &[LoopSpec],
    counts: &[Dim],
    tiled: [Var; 2],
) -> Result<(Dim, [Var; 2])> {
    let trip = Dim::product(counts);
    let blocks = e.dim(&trip)?;
    let mut rest = e.b.open_parallel(Level::Grid, blocks);
    let mut numbers = [Var(0); 2];
    for (i, (l, count)) in loops.iter().zip(counts).enumerate().rev() {
        let mut index = rest;
        if i > 0 {
            let n = e.dim(count)?;
            (index, rest) = split(&mut e.b, rest, n);
        }
        match tiled.iter().position(|v| *v == l.axis) {
            Some(side) => {
                numbers[side] = e.fresh(count.clone());
                e.bind(numbers[side], index);
            }
            None => e.bind(l.axis, index),
        }
    }
    Ok((trip, numbers))
}

/// Remainder and quotient of a number that is not negative.
pub(super) fn split(b: &mut LoopBuilder, v: Val, n: Val) -> (Val, Val) {
    let shift = b.as_index(n).is_some_and(|n| n > 0 && n & (n - 1) == 0);
    let (rest, quotient) =
        if shift { (b.floor_mod(v, n), b.floor_div(v, n)) } else { (b.rem(v, n), b.div(v, n)) };
    b.assume_nonneg(rest);
    b.assume_nonneg(quotient);
    (rest, quotient)
}
