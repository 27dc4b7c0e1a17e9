//! Where the elements of a block's tile lie: which warp, which lane and which register holds each of them.
//!
//! A tile of R x C elements is spread over the warps of a block, their 32 lanes, and registers of each lane. Along each
//! dim an index is `lane part + warp part + register part`; the first two are computed once, the last is a constant of
//! the register. Two spreads matter:
//!
//! * that of the **result** ([`Spread::result`]): each lane has 4 x 4 elements that lie together, as often as the tile
//!   needs. Operands staged in shared memory are then read 16 bytes at a time, and the eight lanes that read
//!   together want 128 different bytes of the columns and 16 of the rows: no two want different words of one bank;
//! * that of what is **staged** ([`Spread::staged`]): four elements along the contiguous dim to a lane. Where they are stored
//!   across (`transposed`), two lanes of a warp lie along that dim and sixteen along the other, so that a store of one
//!   register goes to sixteen neighbouring words in each of two places; rows of the shared array that are 4 words longer
//!   than a multiple of 32 keep these in different banks.

use ir::DType;
use ir::loops::{Ty, Val};
use ir::loops_build::LoopBuilder;

/// Lanes of a warp.
const LANES: u32 = 32;
/// Elements that lie together in one lane.
pub(super) const TOGETHER: u32 = 4;

/// How one dim is spread: element `i` of group `g` of a lane is number
/// `i + near * (lane + lanes * (g + again * warp))`, and lies in register `g * near + i`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Along {
    /// Neighbouring elements of one lane.
    near: u32,
    lanes: u32,
    /// Groups of neighbours of one lane.
    again: u32,
    warps: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spread {
    pub rows: Along,
    pub cols: Along,
}

/// Largest power of two that divides `n` and is at most `most`.
fn part(n: u32, most: u32) -> u32 {
    let most = 1 << most.max(1).ilog2();
    most.min(1 << n.trailing_zeros().min(31))
}

impl Along {
    /// The elements of one lane along this dim.
    pub fn regs(self) -> u32 {
        self.near * self.again
    }
    fn size(self) -> u32 {
        self.near * self.lanes * self.again * self.warps
    }
    /// What register `i` adds to the index.
    pub fn of_reg(self, i: u32) -> u32 {
        i % self.near + i / self.near * self.near * self.lanes
    }
    /// Registers from `i` on hold neighbours as far as this many.
    pub fn is_group(self, i: u32) -> bool {
        self.near == TOGETHER && i.is_multiple_of(TOGETHER)
    }
    /// What the position of the lane adds: a vector, or the constant 0.
    fn of_thread(self, b: &mut LoopBuilder, lane: Val, warp: Val) -> Val {
        let by = |b: &mut LoopBuilder, v: Val, n: u32, unit: u32| {
            if n == 1 {
                return b.index(0);
            }
            let unit = b.index(unit.into());
            b.mul(v, unit)
        };
        let lanes = by(b, lane, self.lanes, self.near);
        let warps = by(b, warp, self.warps, self.near * self.lanes * self.again);
        b.add(lanes, warps)
    }
}

impl Spread {
    /// For the R x C result of a block of `warps` warps; `None` where it does not fit.
    pub fn result(rows: u32, cols: u32, warps: u32) -> Option<Spread> {
        let (near, lanes) = (TOGETHER, (4, 8));
        let all = (1..=warps).filter(|w| warps.is_multiple_of(*w)).filter_map(|across| {
            let down = warps / across;
            let rows = (rows / (near * lanes.0 * down), near * lanes.0 * down, rows);
            let cols = (cols / (near * lanes.1 * across), near * lanes.1 * across, cols);
            (rows.0 * rows.1 == rows.2 && cols.0 * cols.1 == cols.2 && rows.0 > 0 && cols.0 > 0).then_some(
                Spread {
                    rows: Along { near, lanes: lanes.0, again: rows.0, warps: down },
                    cols: Along { near, lanes: lanes.1, again: cols.0, warps: across },
                },
            )
        });
        // square: the fewest reads for each product; of two as good the one with more rows
        all.min_by_key(|s| (s.rows.again.abs_diff(s.cols.again), s.cols.again))
    }

    /// For an R x C tile on its way to shared memory; `None` where it does not fit.
    pub fn staged(rows: u32, cols: u32, transposed: bool, warps: u32) -> Option<Spread> {
        let near = part(cols, TOGETHER);
        let across = part(cols / near, if transposed { 2 } else { LANES });
        let down = part(rows, LANES / across);
        // lanes that the rows do not need
        let across = across * (LANES / across / down);
        let (col_groups, row_groups) = (cols / (near * across), rows / down);
        let warp_rows = part(row_groups.max(1), warps);
        let warp_cols = warps / warp_rows;
        let spread = Spread {
            rows: Along { near: 1, lanes: down, again: row_groups / warp_rows, warps: warp_rows },
            cols: Along { near, lanes: across, again: col_groups / warp_cols, warps: warp_cols },
        };
        (spread.rows.size() == rows && spread.cols.size() == cols).then_some(spread)
    }

    /// Registers that a value of this type has in each lane.
    pub fn count(&self, ty: Ty) -> usize {
        (self.per_col(ty) * self.per_row(ty)) as usize
    }
    /// Registers along a row.
    pub fn per_row(&self, ty: Ty) -> u32 {
        if ty.cols == 1 { 1 } else { self.cols.regs() }
    }
    fn per_col(&self, ty: Ty) -> u32 {
        if ty.rows == 1 { 1 } else { self.rows.regs() }
    }
    /// (row register, column register) of each register of a value.
    pub fn places(&self, ty: Ty) -> Vec<(u32, u32)> {
        let (down, across) = (self.per_col(ty), self.per_row(ty));
        (0..down).flat_map(|r| (0..across).map(move |c| (r, c))).collect()
    }
}

/// The lane's part of row and column indices in one spread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thread {
    pub row: Val,
    pub col: Val,
}

impl Thread {
    /// `warp`: the number of the warp, an i64 scalar.
    pub fn of(s: &Spread, b: &mut LoopBuilder, warp: Val) -> Thread {
        let lane = b.iota(Ty::vector(DType::I64, LANES), true);
        let across = b.index(s.cols.lanes.into());
        let split = |b: &mut LoopBuilder, v: Val, n: Val| (b.floor_mod(v, n), b.floor_div(v, n));
        let lanes = split(b, lane, across);
        let across = b.index(s.cols.warps.into());
        let warps = split(b, warp, across);
        Thread { row: s.rows.of_thread(b, lanes.1, warps.1), col: s.cols.of_thread(b, lanes.0, warps.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element lies in exactly one register of one lane.
    fn check(s: &Spread, rows: u32, cols: u32, warps: u32) {
        let mut seen = vec![0; (rows * cols) as usize];
        for warp in 0..warps {
            for lane in 0..LANES {
                let part = |a: Along, lane: u32, warp: u32| a.near * lane + a.near * a.lanes * a.again * warp;
                let row = part(s.rows, lane / s.cols.lanes, warp / s.cols.warps);
                let col = part(s.cols, lane % s.cols.lanes, warp % s.cols.warps);
                for (r, c) in s.places(Ty::tile(DType::F32, rows, cols)) {
                    let at = (row + s.rows.of_reg(r)) * cols + col + s.cols.of_reg(c);
                    seen[at as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|n| *n == 1), "{s:?} of {rows} x {cols}");
    }

    #[test]
    fn every_element_has_one_place() {
        let tiles =
            [(128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 2), (32, 64, 2), (32, 32, 1)];
        for (rows, cols, warps) in tiles {
            let s = Spread::result(rows, cols, warps).unwrap();
            check(&s, rows, cols, warps);
            for depth in [8, 16] {
                for (r, c, transposed) in [(rows, depth, true), (depth, cols, false), (cols, depth, true)] {
                    let Some(s) = Spread::staged(r, c, transposed, warps) else {
                        panic!("{r} x {c} {transposed} for {warps} warps")
                    };
                    check(&s, r, c, warps);
                }
            }
        }
        assert_eq!(Spread::result(100, 64, 8), None);
        assert_eq!(Spread::result(16, 16, 8), None);
        assert_eq!(Spread::staged(3, 16, false, 8), None);
    }
}
