//! The order of loops of windows: pooling and depthwise convolutions.

use super::Chooser;
use crate::schedule::analyse::{Access, Work};
use ir::Var;
use ir::kernel::Axis;

/// Part of the first-level cache that the rows under a window may fill.
const ROWS: f64 = 0.5;

impl Chooser<'_> {
    /// The reduction of a kernel of windows.
    fn window(&self) -> Option<&Work> {
        let mut reductions = self.a.works.iter().filter(|w| w.reduce);
        reductions.next().filter(|w| reductions.next().is_none() && !self.contraction && !w.axes.is_empty())
    }

    /// Windows slide along this axis of the domain: what they read begins elsewhere at each step.
    pub(super) fn slides(&self, v: Var) -> bool {
        let moves = |w: &Work| {
            let windowed = |x: &ir::Dim| w.axes.iter().any(|r| x.uses_var(r.var));
            w.accesses.iter().any(|x| x.offset.uses_var(v) && windowed(&x.offset))
        };
        self.window().is_some_and(moves) && self.col.is_none_or(|c| c.0 != v)
    }

    /// The rows that a line of windows reads, with all their columns, are more than the first-level cache holds. Tile
    /// after tile of columns, they are fewer, and the next line of windows finds most of them there.
    pub(super) fn columns_before_windows(&self, rows: Option<Var>) -> bool {
        let (Some(w), Some(rows), Some((col, _))) = (self.window(), rows, self.col) else { return false };
        let extent = |v: Var| self.a.estimate(&self.a.extent(v));
        let line = |x: &Access| {
            let step = |v: Var| x.offset.affine_in(v).map_or(0.0, |(by, _)| self.a.estimate(&by));
            // of the window's axes the one along the rows of the tile; the others are lines
            let apart = |r: &Axis| (step(r.var) - step(rows)).abs();
            let along = w.axes.iter().min_by(|a, b| apart(a).total_cmp(&apart(b))).map(|a| a.var);
            let lines = w.axes.iter().filter(|r| Some(r.var) != along && x.offset.uses_var(r.var));
            let lines: f64 = lines.map(|r| self.a.estimate(&r.extent)).product();
            let bytes = self.a.k.buffers[x.buf.0 as usize].dtype.bytes() as f64;
            lines * extent(rows) * extent(col) * bytes
        };
        let reads =
            w.accesses.iter().filter(|x| !x.store && x.offset.uses_var(rows) && x.offset.uses_var(col));
        self.slides(rows) && reads.map(line).fold(0.0, f64::max) > ROWS * self.target.l1_bytes as f64
    }
}
