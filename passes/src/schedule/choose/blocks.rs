//! What of a contraction's operands is near when it is needed: blocks of rows, and panels that are asked for
//! ahead of their use.

use super::Chooser;
use crate::lower::ahead;
use crate::schedule::Schedule;
use crate::schedule::analyse::{Access, Step};
use ir::{Dim, Var};

/// Where the next panel of weights is asked for ahead of its use: tiles that share a panel, at least and at
/// most; the part of the second-level cache that the weights must be larger than.
///
/// Measured on Zen 5, weights in main memory: 5 % less time with 16 tiles, 4 % with 25, nothing with 190. On Zen 3:
/// 10 to 20 % less with 9. One tile (see [`ahead`]), on an Intel: weights of 4 bits in 0.65 of the time, of f32 in main memory
/// in the same, in caches in 1.15 of it.
const AHEAD_TILES: (f64, f64) = (2.0, 64.0);
const AHEAD_CACHE: i64 = 4;

/// Bytes of the row operand of a contraction from which on it matters which thread wrote it.
const SHARED_ROWS: f64 = 32e3;
/// Tiles of rows for each thread, at least, where the length of the axis is not known.
const MANY: i64 = 8;
/// Part of the second-level cache that a block of rows may fill.
const BLOCK: f64 = 0.65;

/// Part of the second-level cache that all columns fit, where they pass by each tile of rows.
const COLUMNS_NEAR: f64 = 8.0;

impl Chooser<'_> {
    /// Elements of the next panel for each step of the reduction, so that the tiles of one panel ask for all
    /// of the next: not where tiles are too few or so many that a panel's latency does not show, nor where
    /// all panels stay in the cache.
    pub(super) fn ahead(&self, s: &Schedule) -> u32 {
        let Some(cols) = s.cols else { return 0 };
        let Some(panel) = ahead::panel(self.a.k, &cols, &self.a.facts).filter(|_| !self.target.simt) else {
            return 0;
        };
        let buffer = &self.a.k.buffers[panel.buf.0 as usize];
        let bytes = Dim::product(&buffer.shape).as_const().unwrap_or(0) * buffer.dtype.bytes() as i64;
        let shared = ahead::sharing(self.a.k, s, &panel);
        let tiles: f64 = match s.rows {
            // the version for fewer rows than those of any tile
            None if self.rows.is_some() => 1.0,
            _ => shared.iter().map(|f| self.a.facts.likely(&f.tiles(&self.a.facts))).product(),
        };
        let width = f64::from(cols.size);
        // bytes that are decoded on their way, or more than one tile
        let least = if buffer.dtype.bytes() == 1 { 1.0 } else { AHEAD_TILES.0 };
        let pays = (least..=AHEAD_TILES.1).contains(&tiles);
        if !pays || bytes * AHEAD_CACHE < self.target.l2_bytes as i64 {
            return 0;
        }
        (width / tiles).ceil() as u32
    }

    /// The outermost loops of a contraction whose threads share out rows, with their steps; empty where they
    /// share out columns.
    ///
    /// Rows, where these are more bytes than the columns: each thread then reads mostly what it wrote itself,
    /// since elementwise and window kernels share out rows too; and a block of rows stays in its cache while
    /// the columns pass by.
    pub(super) fn shares(&self, order: &[Var], s: &Schedule) -> Vec<(Var, u32)> {
        let threads = self.target.threads.max(1) as u32;
        let parallel = self.parallel && threads > 1 && !self.target.simt;
        if parallel && self.columns_before_windows(s.rows.map(|r| r.axis)) {
            return self.lines_of_windows(order, s, threads);
        }
        let (true, Some((col, panel))) = (parallel && self.contraction, self.col) else { return Vec::new() };
        let mut reductions = self.a.works.iter().filter(|w| w.reduce);
        let (Some(w), None) = (reductions.next(), reductions.next()) else { return Vec::new() };
        let domain = &self.a.k.domain;
        let size = |v: Var| self.a.estimate(&self.a.extent(v));
        let bytes = |x: &Access| -> f64 {
            let used = domain.iter().chain(&w.axes).filter(|a| x.offset.uses_var(a.var));
            let elems: f64 = used.map(|a| self.a.estimate(&a.extent)).product();
            elems * self.a.k.buffers[x.buf.0 as usize].dtype.bytes() as f64
        };
        let (columns, rows): (Vec<&Access>, Vec<&Access>) =
            w.accesses.iter().partition(|x| self.a.step(&x.offset, col, panel) != Step::Zero);
        let most = |list: &[&Access]| list.iter().map(|x| bytes(x)).fold(0.0, f64::max);
        let (row_bytes, column_bytes) = (most(&rows), most(&columns));
        // products of many pairs of computed matrices: a thread takes whole pairs, and reads no matrix of another
        let batch = |v: Var| {
            let uses = |list: &[&Access]| list.iter().any(|x| x.offset.uses_var(v));
            v != col && self.free.contains(&v) && uses(&rows) && uses(&columns)
        };
        let batches: f64 =
            order.iter().filter(|v| batch(**v)).map(|v| self.a.facts.likely(&self.a.extent(*v))).product();
        let computed = columns.iter().any(|x| !self.a.k.buffers[x.buf.0 as usize].constant);
        if computed && batches >= threads as f64 {
            return Vec::new();
        }
        let of_rows: Vec<Var> =
            order.iter().copied().filter(|v| *v != col && !self.columns_use(*v)).collect();
        // of one row, its part of the result included
        let count: f64 = of_rows.iter().map(|v| size(*v)).product();
        let each = row_bytes / count.max(1.0) + f64::from(self.col_size) * self.a.compute_bytes() as f64;
        let near = BLOCK * self.target.l2_bytes as f64 / each;
        if row_bytes < SHARED_ROWS.max(column_bytes) {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut inside = count;
        for v in of_rows {
            if !self.free.contains(&v) {
                break;
            }
            inside /= size(v).max(1.0);
            let step = s.rows.filter(|r| r.axis == v).map_or(1, |r| r.size);
            // rows of a batch whose size is not known are at least those of one
            let extent = self.a.extent(v);
            let least = extent.bounds(&self.a.facts).0;
            let Some(n) =
                extent.as_const().or(Some(least).filter(|n| *n >= MANY * i64::from(threads * step)))
            else {
                // a batch, most likely
                found.push((v, step));
                continue;
            };
            let tiles = (n as u32).div_ceil(step);
            if n > 1 && tiles >= threads {
                let near = near / (inside.max(1.0) * f64::from(step));
                // enough blocks for threads to help one another out, and as many for each
                let others = domain.iter().filter(|a| a.var != col && self.columns_use(a.var));
                let panels = (size(col) / f64::from(self.col_size)).ceil();
                let panels = others.fold(panels, |n, a| n * size(a.var));
                let pieces = (8.0 / panels.max(1.0)).ceil() * f64::from(threads);
                let block = (f64::from(tiles) / pieces).ceil().min(near.floor()).max(1.0) as u32;
                // matrix registers are done with rows before these leave the nearest cache: where all columns fit the
                // next one, a block of rows meets them all
                let few = self.matrix.is_some() && column_bytes * COLUMNS_NEAR <= self.target.l2_bytes as f64;
                let block = if few { 1 } else { block };
                let blocks = tiles.div_ceil(block).next_multiple_of(threads);
                found.push((v, tiles.div_ceil(blocks) * step));
                return found;
            }
        }
        Vec::new()
    }

    /// Blocks of the outermost axis that windows slide along, whose threads go through all columns.
    fn lines_of_windows(&self, order: &[Var], s: &Schedule, threads: u32) -> Vec<(Var, u32)> {
        let rows = s.rows.map(|r| r.axis);
        let lines =
            order.iter().copied().find(|v| self.slides(*v) && Some(*v) != rows && self.free.contains(v));
        let Some((lines, n)) = lines.and_then(|v| Some((v, self.a.extent(v).as_const()? as u32))) else {
            return Vec::new();
        };
        if n < 2 * threads {
            return Vec::new();
        }
        // blocks for threads to help one another out, but no short ones, whose first rows are read anew
        let each = if n >= 8 * threads { 2 } else { 1 };
        vec![(lines, n.div_ceil(each * threads))]
    }

    /// The column operand of the contraction depends on this axis.
    pub(super) fn columns_use(&self, v: Var) -> bool {
        let Some((col, panel)) = self.col else { return false };
        let reads = self.a.works.iter().filter(|w| w.reduce).flat_map(|w| &w.accesses);
        reads.filter(|x| self.a.step(&x.offset, col, panel) != Step::Zero).any(|x| x.offset.uses_var(v))
    }
}
