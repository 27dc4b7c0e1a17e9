//! What differs on a GPU: the block tile of a contraction, columns of a warp, rows that several warps share.

use super::{Choice, Chooser, Use};
use crate::lower::block::{Factors, factors};
use crate::occupancy::{self, LEAST, Product, Tile, multiprocessors};
use crate::schedule::{BlockTile, ColTile, Edge, LoopSpec, Schedule};
use ir::kernel::Guard;
use ir::{Dim, Var};

/// Columns of a warp of which each lane has four neighbours, which are read at once.
const WIDE: u32 = 128;
/// Reads of an iteration whose values a lane holds at once, at most, beside those of its neighbours: the 64 of a tile of Winograd's form
/// were spilled for two columns each.
const MOST_READS: usize = 48;
/// Warps that share a row, at most.
const MOST_WARPS: u32 = 16;
/// Warps that a multiprocessor holds, and of the cache of the target, which is half of that of an H100, how much their rows
/// may fill.
const RESIDENT: f64 = 64.0;
const CACHED: f64 = 1.0;
/// Words of a row that a lane holds in registers, at most.
const HELD: f64 = 16.0;
/// Of the figure of threads of a target, which is 16 for each multiprocessor, as many warps as keep it busy.
const FULL: f64 = 4.0;

impl Chooser<'_> {
    /// Columns of a tile along an axis of so many, where lanes are those of warps.
    pub(super) fn warp_columns(&self, n: i64) -> Option<u32> {
        let narrow = (n.clamp(1, WIDE.into()) as u32).next_multiple_of(self.lanes);
        let reads = self.a.works.iter().flat_map(|w| &w.accesses).filter(|x| !x.store).count();
        let wide = if narrow > WIDE / 2 { WIDE } else { narrow };
        self.target.simt.then_some(if reads > MOST_READS { self.lanes } else { wide })
    }

    /// True where tiles of so many elements are fewer than the warps that keep a GPU busy.
    pub(super) fn few_iterations(&self, tile: u32) -> bool {
        let points: f64 = self.a.k.domain.iter().map(|x| self.a.facts.likely(&x.extent)).product();
        self.target.simt && points / f64::from(tile) < self.target.threads as f64
    }

    /// Where there are fewer iterations than warps, and each runs along columns of its own, several warps share one:
    /// as many as have work for all their lanes. So too where a row is read more than once: the rows in work on a multiprocessor
    /// stay in its cache.
    pub(super) fn share_rows(&self, s: &mut Schedule) {
        let reads_own = self.a.k.buffers.iter().any(|b| b.access == Use::ReadWrite);
        let plain = |w: &super::Work| w.ordered.is_empty();
        if !self.target.simt || !self.parallel || s.cols.is_some() || reads_own {
            return;
        }
        if !self.a.works.iter().all(plain) || !s.inner.iter().all(|i| i.cols.is_some()) {
            return;
        }
        let lengths = s.inner.iter().filter_map(|i| i.cols).map(|c| self.a.estimate(&self.a.extent(c.0)));
        let longest = lengths.fold(0.0, f64::max);
        let rows: f64 = self.a.k.domain.iter().map(|x| self.a.facts.likely(&x.extent)).product();
        let busy = self.target.threads as f64 * FULL / rows.max(1.0);
        let most = (longest / f64::from(WIDE)).min(MOST_WARPS.into());
        if let Some(warps) = self.held_rows(s, busy.min(most)) {
            s.warps = if warps > 1 { warps } else { 0 };
            for i in &mut s.inner {
                let n = |v: Var| self.a.extent(v).as_const().unwrap_or(1).max(1) as u32;
                i.cols = i.cols.map(|c| (c.0, n(c.0).next_multiple_of(WIDE * warps)));
                i.tail = i.cols.map_or(i.tail, |c| c.1);
            }
            return;
        }
        let near = RESIDENT * longest * self.bytes_read_again() / (CACHED * self.target.l1_bytes as f64);
        let wanted = busy.max((near.ceil() as u64).next_power_of_two() as f64);
        let most = most.min(wanted);
        if most < 2.0 {
            return;
        }
        s.warps = 1 << (most as u32).ilog2();
        for i in &mut s.inner {
            i.cols = i.cols.map(|c| (c.0, WIDE * s.warps));
            i.tail = WIDE * s.warps;
        }
    }

    /// How many warps hold a row in registers, `least` at least: where its length is known and it is read more than once, tiles
    /// of whole rows make every later read one of registers.
    fn held_rows(&self, s: &Schedule, least: f64) -> Option<u32> {
        let again = self.bytes_read_again() / 4.0;
        let columns = s.inner.iter().map(|i| self.a.extent(i.cols?.0).as_const());
        let longest = columns.collect::<Option<Vec<i64>>>()?.into_iter().max()?;
        let words = longest as f64 * again / f64::from(self.lanes);
        let enough = ((words / HELD).ceil() as u32).checked_next_power_of_two()?;
        let warps = enough.max(1 << (least.max(1.0) as u32).ilog2());
        (again > 0.0 && longest > 0 && warps <= MOST_WARPS).then_some(warps)
    }

    /// Bytes of a column that more than one statement reads.
    fn bytes_read_again(&self) -> f64 {
        let reads = |w: &super::Work| -> Vec<ir::kernel::BufId> {
            let along =
                |v: Var| w.accesses.iter().filter(move |x| !x.store && x.offset.uses_var(v)).map(|x| x.buf);
            w.axes.iter().flat_map(|a| along(a.var)).collect()
        };
        let all: Vec<_> = self.a.works.iter().map(reads).collect();
        let buffers = self.a.k.buffers.iter().enumerate();
        let again =
            buffers.filter(|(i, _)| all.iter().filter(|w| w.iter().any(|b| b.0 as usize == *i)).count() > 1);
        again.map(|(_, b)| b.dtype.bytes() as f64).sum()
    }

    /// A schedule with a block tile; `None` where the kernel is no contraction, or too small a one.
    ///
    /// Columns are those that other schedules would have in lanes; where these would lay no axis of a contraction there,
    /// whichever axis takes the least time: blocks read through shared memory, so that no operand has to be
    /// contiguous along the columns.
    pub(super) fn block_choice(&self) -> Option<Choice> {
        if !self.target.simt
            || !self.parallel
            || self.free.len() != self.a.k.domain.len()
            || !self.idempotent()
        {
            return None;
        }
        if let Some((col, panel)) = self.col.filter(|_| self.contraction) {
            return self.block_with(col, panel).map(|c| c.1);
        }
        let all = self.free.iter().filter_map(|v| self.block_with(*v, self.a.panel(*v)));
        all.min_by(|a, b| a.0.total_cmp(&b.0)).map(|c| c.1)
    }

    /// The schedule with these columns, and its time in units of its own.
    fn block_with(&self, col: Var, panel: Option<i64>) -> Option<(f64, Choice)> {
        let f = factors(self.a.k, col).filter(|f| !f.rows.is_empty())?;
        let product =
            |vars: &[Var]| Dim::product(&vars.iter().map(|v| self.a.extent(*v)).collect::<Vec<_>>());
        let (rows, steps) = (product(&f.rows), product(&f.reduce));
        let cols = product(&f.cols) * self.a.extent(col);
        let mut guards = Vec::new();
        for (dim, least) in [(&rows, LEAST.0), (&cols, LEAST.1), (&steps, LEAST.2)] {
            if dim.bounds(&self.a.facts).0 < least {
                if dim.as_const().is_some() {
                    return None;
                }
                guards.push(Guard { expr: dim - Dim::from(least), bound: Dim::from(Dim::LIMIT) });
            }
        }
        let known = [&rows, &cols, &steps].iter().all(|d| d.as_const().is_some());
        let (tile, time) = self.block_tile(&f, [&rows, &steps], (col, panel), known)?;
        let (row_size, col_size, threads) = (tile.rows, tile.cols, tile.threads);
        let order = self.inner_specs().into_iter().next()?.order;
        let (depth, flat) = self.steps_at_a_time(&order, occupancy::depth(tile.own()))?;
        let axis = |axis, step| LoopSpec { axis, step, parallel: true };
        let mut loops: Vec<LoopSpec> = f.shared.iter().map(|v| axis(*v, 1)).collect();
        loops.push(axis(f.rows[0], row_size));
        // blocks that run together share rows, and between them have all columns
        loops.extend(f.cols.iter().map(|v| axis(*v, 1)));
        loops.push(axis(col, col_size));
        let whole = self.a.extent(col).divisible_by(col_size.into(), &self.a.facts);
        let edge = if whole { Edge::Exact } else { Edge::Mask };
        let cols = ColTile { axis: col, size: col_size, edge, tail: col_size, panel: panel.is_some() };
        let block = BlockTile { threads, rows: f.rows, row_size, steps: order, depth, flat };
        let schedule = Schedule { loops, cols: Some(cols), block: Some(block), ..Schedule::default() };
        Some((time, Choice { guards, schedule, ns_per_iter: self.nanoseconds() }))
    }

    /// The tile with the least time, in cycles. Sizes that are not known need registers for themselves: beside 64 elements of
    /// a thread they would be spilled.
    fn block_tile(
        &self,
        f: &Factors,
        [rows, steps]: [&Dim; 2],
        (col, panel): (Var, Option<i64>),
        known: bool,
    ) -> Option<(Tile, f64)> {
        let others = f.shared.iter().chain(&f.cols).map(|v| self.a.estimate(&self.a.extent(*v))).product();
        let extent = self.a.extent(col);
        let [rows, cols, steps] = [rows, &extent, steps].map(|d| self.a.estimate(d));
        // of two blocks of 256 threads each has 128 registers: none for masks of columns beside 64 elements
        let whole = |t: Tile| t.threads < 256 || extent.divisible_by(t.cols.into(), &self.a.facts);
        let fits =
            |t: Tile| panel.is_none_or(|p| p == i64::from(t.cols)) && (known || t.own() < 64) && whole(t);
        Product { rows, cols, others, steps }.best(multiprocessors(self.target), fits)
    }

    /// Steps that are staged at a time, `most` at most, and whether they run through all axes of the reduction as one.
    fn steps_at_a_time(&self, order: &[Var], most: u32) -> Option<(u32, bool)> {
        let extent = |v: &Var| self.a.extent(*v).as_const();
        let fill =
            |n: i64, depth: i64| n as f64 / (n.max(1) as u64).div_ceil(depth as u64) as f64 / depth as f64;
        let last = extent(order.last()?);
        let few = |n: i64| fill(n, 8) > fill(n, 16);
        let depth = |n: Option<i64>| if n.is_some_and(few) { 8 } else { most };
        // quotients and remainders for each element cost less than staging mostly zeros
        if last.is_some_and(|n| order.len() > 1 && fill(n, depth(last).into()) < 0.75) {
            let all = order.iter().map(extent).try_fold(1i64, |p, n| p.checked_mul(n?));
            return Some((depth(all), true));
        }
        Some((depth(last), false))
    }
}
