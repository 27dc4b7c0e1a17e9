//! Contractions of words in matrix registers (Intel AMX): which tile, and whether it pays.
//!
//! Up to 2 x 2 accumulators of 16 x 16 share two row and two column operands, which are read a step of up to 16 words
//! at a time. All steps have equal length, so nothing is read that is not there. Sums leave the registers through the
//! thread's scratch memory, some rows at a time.

use super::Chooser;
use crate::schedule::analyse::{Step, Work};
use crate::schedule::{MatrixTile, RowTile};
use ir::kernel::{Dot, Expr, ExprId, Stmt};
use ir::prim::BinaryOp;
use ir::target::MATRIX_SIZE;
use ir::{Dim, Monoid, Var};

/// Products of words (multiply-adds of 32 bits) that vectors do in a cycle: measured 0.7 TOPS of bytes on Sapphire
/// Rapids, whose matrix registers do 4.7.
const VECTOR_WORDS: f64 = 38.0;
/// Cycles in which a matrix of 16 rows is read. Its product takes one cycle for each row.
const LOAD: f64 = 8.0;
/// Cycles for each row and 16 columns of a result on its way through memory.
const LEAVE: f64 = 1.0;
/// Cycles around the steps of a tile.
const TILE: f64 = 20.0;
/// Vectors are given up for matrices that take at most so much of their time.
const PAYS: f64 = 0.8;

/// A tile in matrix registers, before the axes of rows are compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    /// Axis of the words, its length and the words of a step.
    axis: Var,
    extent: i64,
    words: u32,
}

/// What was found: the tile of rows, columns, and estimated cycles for a product of words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub rows: RowTile,
    pub cols: u32,
    pub tile: MatrixTile,
    cost: f64,
    row_bytes: i64,
}

impl Chooser<'_> {
    /// The reduction that matrix registers may compute: the first statement, of plain reads, and nothing like it after.
    fn matrix_words(&self) -> Option<(Dot, [ExprId; 2])> {
        let k = self.a.k;
        let (Stmt::Reduce { monoid: Monoid::Sum, value, acc, .. }, rest) = k.stmts.split_first()? else {
            return None;
        };
        let Expr::Dot(dot, x, y) = *k.get(*value) else { return None };
        let plain = rest.iter().all(|s| match s {
            Stmt::Let { .. } => true,
            Stmt::Store { axes, .. } => axes.is_empty(),
            _ => false,
        });
        let suits = plain && *acc == dot.dtype() && self.product_of_reads();
        // stages of chains share their function's registers with others
        let here = self.parallel && !self.target.simt && self.target.has_matrices(dot);
        (suits && here).then_some((dot, [x, y]))
    }

    /// True where a reduction multiplies plain reads: nothing else needs a register in its loop.
    pub(super) fn product_of_reads(&self) -> bool {
        let k = self.a.k;
        k.stmts.iter().all(|s| match s {
            Stmt::Reduce { value, monoid: Monoid::Sum, .. } => match k.get(*value) {
                Expr::Binary(BinaryOp::Mul, x, y) | Expr::Dot(_, x, y) => [x, y]
                    .iter()
                    .all(|e| matches!(k.get(**e), Expr::Read { guards, .. } if guards.is_empty())),
                _ => false,
            },
            Stmt::Reduce { .. } => false,
            _ => true,
        })
    }

    /// The longest steps that words of the reduction come in, where the columns' words lie as matrices do.
    pub(super) fn matrix_question(&self, col: Var, panel: Option<i64>) -> Option<Question> {
        let (dot, reads) = self.matrix_words()?;
        let mut works = self.a.works.iter().filter(|w| w.reduce);
        let work = works.next().filter(|_| works.next().is_none())?;
        let offset = |e: ExprId| match self.a.k.get(e) {
            Expr::Read { index, .. } => index.first(),
            _ => None,
        };
        let [x, y] = [offset(reads[0])?, offset(reads[1])?];
        let is_col = |o| self.a.step(o, col, panel) == Step::One;
        // unsigned bytes come first, and must be those of the rows
        let (row, column) = match (is_col(x), is_col(y)) {
            (false, true) => (x, y),
            (true, false) if dot == Dot::Bf16 => (y, x),
            _ => return None,
        };
        if row.uses_var(col) {
            return None;
        }
        let mut best: Option<Question> = None;
        for axis in &work.axes {
            let Some(extent) = axis.extent.as_const() else { continue };
            let regular = self.a.step(row, axis.var, None) == Step::One
                && matches!(self.a.step(column, axis.var, None), Step::By(d) if d.as_const().is_some());
            let steps = (2..=i64::from(MATRIX_SIZE)).rev().find(|d| extent % d == 0);
            if let Some(words) = steps.filter(|_| regular)
                && best.is_none_or(|b| b.words < words as u32)
            {
                best = Some(Question { axis: axis.var, extent, words: words as u32 });
            }
        }
        best
    }

    /// The best tile of rows along `axis`, which lie so many bytes apart.
    pub(super) fn matrix_tile(
        &self,
        q: &Question,
        axis: Var,
        overlap: bool,
        row_bytes: i64,
    ) -> Option<Found> {
        let (col, panel) = self.col?;
        let extent = self.a.extent(axis);
        let n = self.a.estimate(&self.a.extent(col)).max(1.0);
        let steps = self.matrix_steps(q);
        let mut best: Option<Found> = None;
        let widths = match panel {
            Some(p) => vec![p as u32],
            None => vec![2 * MATRIX_SIZE, MATRIX_SIZE],
        };
        for cols in widths.into_iter().filter(|c| [MATRIX_SIZE, 2 * MATRIX_SIZE].contains(c)) {
            for size in 2..=2 * MATRIX_SIZE {
                let whole = extent.divisible_by(size.into(), &self.a.facts);
                let known = extent.as_const();
                if !whole && !overlap || known.is_some_and(|m| m < i64::from(size)) {
                    continue;
                }
                let m = known.map_or(128.0, |m| m as f64);
                let (rows, blocks) = (f64::from(size), f64::from(size.div_ceil(MATRIX_SIZE)));
                let across = f64::from(cols / MATRIX_SIZE);
                let loads = rows * f64::from(MATRIX_SIZE).recip() * LOAD
                    + across * LOAD * f64::from(q.words) / f64::from(MATRIX_SIZE);
                let step = (rows * across).max(loads) + 0.25 * loads + blocks;
                let leave = rows * across * LEAVE * leave_factor(size);
                let tiles = (m / rows).ceil() * (n / f64::from(cols)).ceil();
                let words = m * n * steps * f64::from(q.words);
                let cost = tiles * (steps * step + leave + TILE) / words;
                if best.is_none_or(|b| cost < b.cost - 1e-9) {
                    let tile = MatrixTile { axis: q.axis, words: q.words, rows: MatrixTile::leaving(size) };
                    best = Some(Found {
                        rows: RowTile { axis, size, overlap: !whole },
                        cols,
                        tile,
                        cost,
                        row_bytes,
                    });
                }
            }
        }
        best.filter(|b| b.cost * VECTOR_WORDS < PAYS)
    }

    /// Takes a tile in matrix registers, where the columns lie as it needs them; else one of vectors as wide.
    pub(super) fn take_matrices(&mut self, found: &Found, overlap: bool) {
        let Some((col, panel)) = self.col else { return };
        (self.contraction, self.col_size) = (true, found.cols);
        let single = panel.is_none() && self.is_padded_panel(col, found.cols);
        if single {
            self.col = Some((col, Some(found.cols.into())));
        }
        let whole = self.a.extent(col).divisible_by(found.cols.into(), &self.a.facts);
        if single || panel.is_some() || whole {
            (self.rows, self.matrix) = (Some(found.rows), Some(found.tile));
        } else {
            // not yet packed, or beside other columns: matrices read whole tiles
            self.rows = self.vector_rows(found.rows.axis, overlap);
        }
    }

    /// True where all columns are those of one panel that is wider than they are.
    fn is_padded_panel(&self, col: Var, cols: u32) -> bool {
        let mut facts = self.a.facts.clone();
        let extent = self.a.extent(col).as_const();
        if extent.is_none_or(|n| n >= i64::from(cols)) {
            return false;
        }
        facts.set(col, Dim::from(i64::from(cols)));
        let reads = self.a.works.iter().filter(|w| w.reduce).flat_map(|w| &w.accesses);
        reads.filter(|x| x.offset.uses_var(col)).all(|x| {
            let elems = self.a.k.buffers[x.buf.0 as usize].shape[0].as_const();
            x.offset.affine_in(col).is_some_and(|(c, _)| c.is_const(1))
                && elems.is_some_and(|n| x.offset.bounds(&facts).1 < n)
        })
    }

    /// Rows of a tile of vectors as wide as that in matrix registers.
    fn vector_rows(&self, axis: Var, overlap: bool) -> Option<RowTile> {
        let extent = self.a.extent(axis);
        let whole = |n: u32| extent.divisible_by(n.into(), &self.a.facts);
        let short = |n: u32| extent.as_const().is_some_and(|m| m < n.into());
        let size = (2..=12).rev().find(|n| (overlap || whole(*n)) && !short(*n))?;
        Some(RowTile { axis, size, overlap: !whole(size) })
    }

    /// Steps of one result.
    fn matrix_steps(&self, q: &Question) -> f64 {
        let work = self.a.works.iter().find(|w| w.reduce);
        let all = |w: &Work| w.axes.iter().map(|a| self.a.estimate(&a.extent)).product::<f64>();
        work.map_or(q.extent as f64, all) / f64::from(q.words)
    }

    /// Shorter tiles, for axes of unknown length.
    pub(super) fn matrix_of_rows(&self, size: u32) -> Option<MatrixTile> {
        self.matrix.filter(|_| size > 1).map(|t| MatrixTile { rows: MatrixTile::leaving(size), ..t })
    }
}

impl Found {
    /// At equal merit the axis with the nearer rows is the better one.
    pub fn better_than(&self, other: Option<&Found>) -> bool {
        other.is_none_or(|o| {
            let (cost, least) = (self.cost / o.cost, 1.0 - 1e-6);
            cost < least || cost < 2.0 - least && self.row_bytes < o.row_bytes
        })
    }
}

/// Rows that leave one by one keep the processor less busy.
fn leave_factor(size: u32) -> f64 {
    match MatrixTile::leaving(size) {
        1 => 1.5,
        2 | 3 => 1.15,
        _ => 1.0,
    }
}
