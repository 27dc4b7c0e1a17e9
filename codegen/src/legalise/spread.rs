//! Where the elements of a block's tile lie: which warp, which lane and which register holds each of them.
//!
//! A tile of R x C elements is spread over the warps of a block, their 32 lanes, and registers of each lane. Along each
//! dim an index is `lane part + warp part + register part`; the first two are computed once, the last is a constant of
//! the register. Two spreads matter for a contraction:
//!
//! * that of the **result** ([`Spread::result`]): each lane has 4 x 4 elements that lie together, as often as the tile
//!   needs. Operands staged in shared memory are then read 16 bytes at a time, and the eight lanes that read
//!   together want 128 different bytes of the columns and 16 of the rows: no two want different words of one bank;
//! * that of what is **staged** ([`Spread::staged`]): four elements along the contiguous dim to a lane. Where they are stored
//!   across (`transposed`), two lanes of a warp lie along that dim and sixteen along the other, so that a store of one
//!   register goes to sixteen neighbouring words in each of two places; rows of the shared array that are 4 words longer
//!   than a multiple of 32 keep these in different banks.
//!
//! A tile that goes **across** ([`Spread::lines`]) is read along one dim, written to shared memory along the other, and stored along
//! that one. On both sides a lane has four neighbours of a row (or one, where four may not be read at once), and as many
//! lanes lie along a row as make a line of 128 bytes, as far as banks allow. What is read has four rows to a lane besides: the
//! lane turns its 4 x 4 elements round by naming registers, and writes four neighbours of the other dim at once.
//! Rows of the shared array have P elements, P = 4 mod 32. Shared memory serves 128 bytes at a time:
//!
//! * writes: the lanes that are served together are `d` down the rows by as many along them as are left, `d` counting fastest. Elements
//!   of 4 bytes: 8 lanes, `d` = 4; one row of the array is 16 words for the four, the next is 4 P = 16 words on: 32 banks, each once.
//!   2 bytes: 16 lanes, `d` = 2: 4 words from each of 8 rows that are 2 P = 8 words apart, each bank twice. 1 byte: 32 lanes, `d` = 2:
//!   2 words from each of 16 rows that are P = 4 words apart, each bank twice (twice, not four times, is why no more than 16 lanes lie
//!   along a row). Lanes with one column each, as all have of 8 bytes, lie all along a row, P elements apart: 4 words of every P for 4 bytes,
//!   2 of every P / 2 for 2 bytes, 1 of every P / 4 for one, each bank once; 8 bytes: 4 of every 2 P, each bank twice;
//! * reads: a row of the array is served at once, or two rows that are 2 P or P / 4 words apart: each bank twice at most.
//!
//! The tests count it.

use ir::DType;
use ir::loops::{Ty, Val};
use ir::loops_build::LoopBuilder;

/// Lanes of a warp.
const LANES: u32 = 32;
/// Elements that lie together in one lane.
pub(super) const TOGETHER: u32 = 4;
/// Bytes of a line of memory.
const LINE: u32 = 128;

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
    /// Lanes count down the rows first, else along them.
    down_first: bool,
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
    /// The first register of the group of neighbours that `i` is one of.
    pub fn group(self, i: u32) -> u32 {
        if self.near == TOGETHER { i / TOGETHER * TOGETHER } else { i }
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
                    down_first: false,
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
            down_first: false,
        };
        (spread.rows.size() == rows && spread.cols.size() == cols).then_some(spread)
    }

    /// For an R x C tile of elements of so many bytes that goes across, whose rows lie in memory: of each row a lane has `near`
    /// neighbours. `turned`: on its way to shared memory, four rows to a lane.
    pub fn lines(rows: u32, cols: u32, bytes: u32, near: u32, turned: bool, warps: u32) -> Option<Spread> {
        let line = if near == 1 { LANES } else { (LINE / (near * bytes.max(1))).clamp(8, 16) };
        let across = part(cols / near, line);
        let down = LANES / across;
        let own = if turned { TOGETHER } else { 1 };
        let (row_groups, col_groups) = (rows / (own * down), cols / (near * across));
        let warp_rows = part(row_groups.max(1), warps);
        let warp_cols = warps / warp_rows;
        let spread = Spread {
            rows: Along { near: own, lanes: down, again: row_groups / warp_rows, warps: warp_rows },
            cols: Along { near, lanes: across, again: col_groups / warp_cols, warps: warp_cols },
            down_first: turned,
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
        let first = b.index(if s.down_first { s.rows.lanes } else { s.cols.lanes }.into());
        let split = |b: &mut LoopBuilder, v: Val, n: Val| (b.floor_mod(v, n), b.floor_div(v, n));
        let (low, high) = split(b, lane, first);
        let lanes = if s.down_first { (high, low) } else { (low, high) };
        let across = b.index(s.cols.warps.into());
        let warps = split(b, warp, across);
        Thread { row: s.rows.of_thread(b, lanes.1, warps.1), col: s.cols.of_thread(b, lanes.0, warps.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Position of a lane down the rows and along them.
    fn lane_of(s: &Spread, lane: u32) -> (u32, u32) {
        match s.down_first {
            true => (lane % s.rows.lanes, lane / s.rows.lanes),
            false => (lane / s.cols.lanes, lane % s.cols.lanes),
        }
    }

    /// Every element lies in exactly one register of one lane.
    fn check(s: &Spread, rows: u32, cols: u32, warps: u32) {
        let mut seen = vec![0; (rows * cols) as usize];
        for warp in 0..warps {
            for lane in 0..LANES {
                let part = |a: Along, lane: u32, warp: u32| a.near * lane + a.near * a.lanes * a.again * warp;
                let (down, across) = lane_of(s, lane);
                let row = part(s.rows, down, warp / s.cols.warps);
                let col = part(s.cols, across, warp % s.cols.warps);
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
        for (rows, cols, warps) in ACROSS {
            for (bytes, near, turned) in [1, 2, 4, 8].into_iter().flat_map(forms) {
                let Some(s) = Spread::lines(rows, cols, bytes, near, turned, warps) else {
                    panic!("{rows} x {cols} of {bytes} bytes, {near} near, turned: {turned}, {warps} warps")
                };
                check(&s, rows, cols, warps);
            }
        }
    }

    /// Rows, columns and warps of tiles that go across.
    const ACROSS: [(u32, u32, u32); 8] = [
        (32, 32, 2),
        (32, 64, 4),
        (64, 32, 4),
        (64, 64, 8),
        (64, 128, 16),
        (128, 64, 16),
        (128, 32, 8),
        (128, 128, 16),
    ];

    fn forms(bytes: u32) -> Vec<(u32, u32, bool)> {
        let near: &[u32] = if bytes == 8 { &[1] } else { &[1, TOGETHER] };
        near.iter().flat_map(|n| [(bytes, *n, true), (bytes, *n, false)]).collect()
    }

    /// How often the busiest bank is asked for different words by lanes that shared memory serves together. `place`: of the first
    /// element of an access of a lane, which has `n` elements.
    fn conflicts(place: impl Fn(u32) -> u32, n: u32, bytes: u32) -> usize {
        let width = (n * bytes).min(16);
        let together = (128 / width).min(LANES);
        let mut most = 0;
        for half in (0..n * bytes).step_by(width as usize) {
            for first in (0..LANES).step_by(together as usize) {
                let mut banks = vec![std::collections::BTreeSet::new(); 32];
                for lane in first..first + together {
                    let at = place(lane) * bytes + half;
                    for word in at / 4..=(at + width - 1) / 4 {
                        banks[word as usize % 32].insert(word);
                    }
                }
                most = most.max(banks.iter().map(|b| b.len()).max().unwrap_or(0));
            }
        }
        most
    }

    #[test]
    fn lanes_that_go_across_share_banks_in_pairs_at_most() {
        let mut counts = std::collections::BTreeMap::new();
        for (rows, cols, warps) in ACROSS {
            for (bytes, near, turned) in [1, 2, 4, 8].into_iter().flat_map(forms) {
                let s = Spread::lines(rows, cols, bytes, near, turned, warps).unwrap();
                let place = |lane: u32| {
                    let (down, across) = lane_of(&s, lane);
                    let (row, col) = (s.rows.near * down, s.cols.near * across);
                    // a row of the array is a column of what is turned
                    if turned { col * (rows + 4) + row } else { row * (cols + 4) + col }
                };
                let most = conflicts(place, if turned { TOGETHER } else { near }, bytes);
                assert!(most <= 2, "{most}: {rows} x {cols} of {bytes} bytes, {near} near, turned: {turned}");
                if (rows, cols) == (64, 64) {
                    counts.insert((bytes, near, turned), most);
                }
            }
        }
        let of = |bytes| forms(bytes).into_iter().map(|f| counts[&f]).collect::<Vec<_>>();
        assert_eq!([1, 2, 4].map(of), [[1, 1, 2, 2], [1, 1, 2, 1], [1, 1, 1, 1]]);
        assert_eq!(of(8), [2, 1]);
    }
}
