//! The default schedule of a kernel, from an analytical model of the target.

mod across;
mod blocks;
mod matrix;
mod simt;
mod windows;

use super::analyse::{Access, Analysis, Step, Work};
use super::tiles::{self, Question};
use super::{ColTile, Edge, InnerSpec, LoopSpec, MatrixTile, RowTile, Schedule};
use ir::kernel::{Access as Use, Axis, Expr, Guard, Kernel, Stmt};
use ir::prim::Combine;
use ir::target::{TargetDesc, Words};
use ir::{Dim, Symbols, Var};

/// A schedule and the sizes that it is for: every guard `0 <= expr < bound` holds.
#[derive(Clone, Debug)]
pub struct Choice {
    pub guards: Vec<Guard>,
    pub schedule: Schedule,
    pub ns_per_iter: f64,
}

/// What a kernel costs, whatever its schedule.
#[derive(Clone, Debug)]
pub struct Cost {
    pub flops: Dim,
}

pub fn cost(k: &Kernel, symbols: &Symbols) -> Cost {
    Cost { flops: Analysis::of(k, symbols).flops() }
}

/// Nanoseconds of one vector instruction of the model.
const NS_PER_OP: f64 = 0.2;
/// Products of vectors that take as long as those of matrix registers.
const MATRIX_SPEED: f64 = 5.0;
/// Bytes that one core moves in a nanosecond, out of its caches on average.
const BYTES_PER_NS: f64 = 16.0;
/// Values that share a byte, at most.
const PLACES: i64 = 4;
/// Rows that fill no tile.
const FEW: f64 = 8.0;
/// Vector instructions below which an iteration of the parallel loop is not worth its dispatch.
const MIN_WORK: f64 = 2000.0;
/// The same of a warp, which only counts on to its next iteration.
const MIN_WARP_WORK: f64 = 16.0;

/// Schedules of a kernel in normal form, most special first; the last has no guard.
pub fn variants(k: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Vec<Choice> {
    let a = Analysis::of(k, symbols);
    variants_of(&a, &Chooser::new(&a, target))
}

/// As [`variants`], for a kernel that runs inside of a parallel loop: all its loops are serial. The time is
/// that of its arithmetic.
pub fn serial_variants(k: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Vec<Choice> {
    let a = Analysis::of(k, symbols);
    variants_of(&a, &Chooser::with(&a, target, false))
}

/// Why a kernel has the plain schedule.
pub(crate) const PLAIN: &str = "plain, as asked for";

/// One element after the other, all loops serial, axes as the kernel has them.
pub(crate) fn plain(k: &Kernel, symbols: &Symbols) -> Schedule {
    let a = Analysis::of(k, symbols);
    let inner = a.works.iter().filter(|w| w.inner);
    Schedule {
        loops: k.domain.iter().map(|x| LoopSpec { axis: x.var, step: 1, parallel: false }).collect(),
        inner: inner
            .map(|w| InnerSpec { order: w.axes.iter().map(|x| x.var).collect(), ..InnerSpec::default() })
            .collect(),
        scalar: Some(PLAIN.into()),
        ..Schedule::default()
    }
}

fn variants_of(a: &Analysis, chooser: &Chooser) -> Vec<Choice> {
    let block = chooser.block_choice().or_else(|| chooser.across_choice());
    let mut choices: Vec<Choice> = block.into_iter().collect();
    if choices.first().is_none_or(|c| !c.guards.is_empty()) {
        choices.extend(variants_of_threads(a, chooser));
    }
    choices
}

/// Those whose iterations are the work of threads.
fn variants_of_threads(a: &Analysis, chooser: &Chooser) -> Vec<Choice> {
    let Some(rows) = chooser.rows else { return vec![chooser.choice(None, Vec::new())] };
    let extent = a.extent(rows.axis);
    let least = extent.bounds(&a.facts).0;
    let mut choices = Vec::new();
    // a tile may not be longer than its axis: shorter ones for short axes whose length is not known
    // matrix registers gain from a few rows more
    let few = if chooser.matrix.is_some() { FEW as u32 } else { 4 };
    let mut sizes = vec![rows.size, rows.size.min(few), rows.size.min(4), 1];
    sizes.dedup();
    for size in sizes {
        let tile = RowTile { size, overlap: !extent.divisible_by(size.into(), &a.facts), ..rows };
        let fits = i64::from(size) <= least || !tile.overlap || size == 1;
        let guard = Guard { expr: &extent - Dim::from(i64::from(size)), bound: Dim::from(Dim::LIMIT) };
        choices.push(chooser.choice(Some(tile), if fits { Vec::new() } else { vec![guard] }));
        if fits {
            break;
        }
    }
    choices.dedup_by(|b, a| a.schedule == b.schedule);
    choices
}

/// Columns of the tile of a contraction in normal form; `None` where the kernel is not one.
pub fn column_tile(k: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Option<u32> {
    let a = Analysis::of(k, symbols);
    let c = Chooser::new(&a, target);
    if let Some(cols) = c.block_choice().and_then(|b| b.schedule.cols)
        && c.col.is_some_and(|col| col.0 == cols.axis)
    {
        return Some(cols.size);
    }
    (c.contraction || c.col.is_some() && a.works.iter().any(|w| w.reduce)).then_some(c.col_size)
}

struct Chooser<'a> {
    a: &'a Analysis<'a>,
    target: &'a TargetDesc,
    lanes: u32,
    /// Axes of the domain that may run in any order.
    free: Vec<Var>,
    /// Column axis of the domain, panel.
    col: Option<(Var, Option<i64>)>,
    col_size: u32,
    rows: Option<RowTile>,
    /// Sums are accumulated in matrix registers.
    matrix: Option<MatrixTile>,
    contraction: bool,
    scalar: Option<String>,
    /// Some loops may be parallel.
    parallel: bool,
}

/// An axis as the lanes of a statement: estimated cost in scalar operations.
struct Lanes {
    cost: f64,
    /// Column axes of the statements, where the domain has none.
    inner: Vec<Option<Var>>,
}

/// A number that surely divides the extent.
fn known_factor(extent: &Dim) -> i64 {
    let gcd = |a: i64, b: i64| {
        let (mut a, mut b) = (a.abs(), b.abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    extent.terms().iter().fold(0, |g, t| gcd(g, t.1)).max(1)
}

/// Rows of a tile along some axis.
struct Rows {
    /// They share vectors of some read.
    shared: bool,
    contraction: bool,
    /// Bytes between rows of the row operand, where known.
    row_bytes: Option<i64>,
}

impl<'a> Chooser<'a> {
    fn new(a: &'a Analysis<'a>, target: &'a TargetDesc) -> Chooser<'a> {
        Chooser::with(a, target, true)
    }

    fn with(a: &'a Analysis<'a>, target: &'a TargetDesc, parallel: bool) -> Chooser<'a> {
        // all vectors of a GPU have as many lanes as a warp has threads
        let lanes = target.lanes(if target.simt { 4 } else { a.compute_bytes() });
        let free = a.free_axes();
        let mut c = Chooser {
            a,
            target,
            lanes,
            free,
            col: None,
            col_size: 1,
            rows: None,
            matrix: None,
            contraction: false,
            scalar: None,
            parallel,
        };
        c.choose_columns();
        c.choose_tile();
        c
    }

    // ---- which axis lies in lanes ---------------------------------------------------------------

    fn choose_columns(&mut self) {
        let inner = self.inner_lanes();
        let mut best = inner.cost;
        for axis in self.a.k.domain.iter().filter(|x| self.free.contains(&x.var)) {
            let panel = self.a.panel(axis.var);
            let cost = self.domain_lanes(axis, panel);
            // later axes are usually the contiguous ones: they win ties
            if cost <= best {
                best = cost;
                self.col = Some((axis.var, panel));
            }
        }
        let none = self.col.is_none() && inner.inner.iter().all(Option::is_none);
        if none {
            self.scalar = Some(match (self.a.k.domain.is_empty(), self.free.is_empty()) {
                (false, true) => "the order of stores matters along every axis".into(),
                (true, _) if self.a.works.iter().all(|w| w.axes.is_empty()) => "a single point".into(),
                _ => "no axis along which memory is contiguous".into(),
            });
        }
    }

    /// Cost of one element of an access along an axis in lanes, in scalar operations.
    fn access_cost(&self, x: &Access, v: Var, panel: Option<i64>, vector: f64) -> f64 {
        if x.guard_vars.contains(&v) {
            return vector * 4.0;
        }
        match self.a.step(&x.offset, v, panel) {
            Step::Zero | Step::One => vector,
            // gathers and scatters touch one element at a time, idle lanes included
            _ => (if x.store { 2.0 } else { 1.0 }) * vector * f64::from(self.lanes),
        }
    }

    /// Cost per element of vector code along an axis: the idle lanes of the last vector count.
    fn vector_cost(&self, extent: &Dim) -> f64 {
        // a size that is not known fills vectors more often than not
        let least = if extent.as_const().is_some() { 1.0 } else { 128.0 };
        let (n, l) = (self.a.estimate(extent).max(least), f64::from(self.lanes));
        (n / l).ceil() / n
    }

    fn domain_lanes(&self, axis: &Axis, panel: Option<i64>) -> f64 {
        let strided = |x: &Access| !matches!(self.a.step(&x.offset, axis.var, panel), Step::Zero | Step::One);
        let vector = if self.a.works.iter().flat_map(|w| &w.accesses).all(strided) {
            // nothing is contiguous: lanes are worth no more than there are, and batches are likely to be single
            self.vector_cost(&Dim::from(self.a.facts.likely(&axis.extent) as i64))
        } else {
            self.vector_cost(&axis.extent)
        };
        let work = |w: &Work| {
            let accesses: f64 = w.accesses.iter().map(|x| self.access_cost(x, axis.var, panel, vector)).sum();
            self.a.points(w) * (accesses + w.ops * vector)
        };
        self.a.works.iter().map(work).sum()
    }

    fn inner_lanes(&self) -> Lanes {
        let mut total = Lanes { cost: 0.0, inner: Vec::new() };
        for w in &self.a.works {
            let scalar = w.accesses.len() as f64 + w.ops;
            let mut best = (scalar, None);
            for axis in &w.axes {
                let vector = self.vector_cost(&axis.extent);
                let accesses: f64 =
                    w.accesses.iter().map(|x| self.access_cost(x, axis.var, None, vector)).sum();
                // the lanes of a reduction meet at its end
                let n = self.a.points(w) / self.a.domain_points().max(1.0);
                let ends = if w.reduce { 8.0 / n.max(1.0) } else { 0.0 };
                let cost = accesses + w.ops * vector + ends;
                if cost <= best.0 {
                    best = (cost, Some(axis.var));
                }
            }
            total.cost += self.a.points(w) * best.0;
            if w.inner {
                total.inner.push(best.1);
            }
        }
        total
    }

    // ---- the tile -------------------------------------------------------------------------------

    fn choose_tile(&mut self) {
        let Some((col, panel)) = self.col else { return };
        let extent = self.a.extent(col);
        let reductions: Vec<&Work> = self.a.works.iter().filter(|w| w.reduce).collect();
        if reductions.is_empty() {
            if let Some(rows) = self.transposed_rows(col, panel) {
                self.col_size = self.lanes;
                self.rows = Some(rows);
                return;
            }
            let n = extent.as_const().unwrap_or(i64::MAX);
            let ops: f64 = self.a.works.iter().map(|w| w.ops).sum();
            let vectors = if ops > 12.0 { 2 } else { 4 };
            let cap = (n.max(1) as u64).div_ceil(u64::from(self.lanes)).min(vectors) as u32;
            let size = self.warp_columns(n).unwrap_or(cap * self.lanes);
            self.col_size = panel.map_or(size, |p| p as u32);
            return;
        }
        let overlap = self.idempotent();
        let mut question = Question {
            rows: Some(1),
            rows_step: 1,
            cols: extent.as_const(),
            panel,
            row_bytes: None,
            lanes: self.lanes,
            contraction: false,
            overlap,
            extra: 0,
            col_operands: 1,
            few: false,
            col_bytes: self.col_bytes(&reductions),
            vectors: self.warp_columns(extent.as_const().unwrap_or(i64::MAX)).map(|n| n / self.lanes),
        };
        let (tile, score) = tiles::best(&question, self.target);
        self.col_size = tile.cols;
        let matrices = self.matrix_question(col, panel);
        let mut found: Option<matrix::Found> = None;
        // sharing both operands beats sharing one, whatever the tile
        let mut best = (false, score * 0.5, 0.0, None, tile);
        let single = score;
        for axis in self.a.k.domain.iter().filter(|x| x.var != col && self.free.contains(&x.var)) {
            let Some(Rows { shared, contraction, row_bytes }) =
                self.row_candidate(axis.var, col, &reductions)
            else {
                continue;
            };
            question.rows = axis.extent.as_const();
            question.rows_step = known_factor(&axis.extent);
            question.contraction = contraction;
            question.few = self.a.facts.likely(&axis.extent) < FEW;
            question.row_bytes = row_bytes;
            question.extra = if contraction && self.product_of_reads() { 0 } else { 2 };
            question.col_operands = self.col_operands(axis.var, col, &reductions);
            if self.splits_words() {
                question.col_operands *= 2;
                question.extra += 2;
            }
            if let Some(tile) = matrices
                .filter(|_| contraction)
                .and_then(|q| self.matrix_tile(&q, axis.var, overlap, row_bytes.unwrap_or(i64::MAX)))
                .filter(|t| t.better_than(found.as_ref()))
            {
                found = Some(tile);
            }
            let (tile, mut score) = tiles::best(&question, self.target);
            if question.rows.is_none() && question.rows_step % i64::from(tile.rows) != 0 {
                // perhaps there are too few of them: better an axis whose length is known
                score *= 0.5;
                // batches are likely to be single, sequences to be long
                score *= (self.a.facts.likely(&axis.extent) / f64::from(tile.rows)).min(1.0);
            }
            // at equal merit the axis with the nearer rows
            let near = -row_bytes.map_or(f64::MAX, |b| b as f64);
            // rows that share no vector only add independent accumulators
            if tile.rows > 1
                && (shared || score > 1.2 * single)
                && (contraction, score, near) > (best.0, best.1, best.2)
            {
                best = (contraction, score, near, Some(axis.var), tile);
            }
        }
        if let Some(found) = found {
            return self.take_matrices(&found, overlap);
        }
        let (contraction, _, _, axis, tile) = best;
        // a matrix times a vector has no rows and is a contraction all the same
        let is_row = |x: &Access| self.a.step(&x.offset, col, panel) == Step::Zero;
        let vector = |w: &&Work| w.accesses.iter().any(is_row) && !w.accesses.iter().all(is_row);
        self.contraction = contraction || axis.is_none() && reductions.iter().all(vector);
        self.col_size = tile.cols;
        // where there are few warps, rows are worth more as iterations of their own
        let axis = axis.filter(|_| self.contraction || !self.few_iterations(tile.rows * tile.cols));
        self.rows = axis.map(|axis| {
            let whole = self.a.extent(axis).divisible_by(tile.rows.into(), &self.a.facts);
            RowTile { axis, size: tile.rows, overlap: !whole }
        });
    }

    /// Rows of a copy whose operand is contiguous along another axis than its result: square tiles are read along
    /// that one and transposed in registers. Little else, so that a tile stays in registers.
    fn transposed_rows(&self, col: Var, panel: Option<i64>) -> Option<RowTile> {
        let [work] = self.a.works.as_slice() else { return None };
        let regular = |x: &Access, v: Var| {
            self.a.step(&x.offset, v, None) != Step::Irregular && !x.guard_vars.contains(&v)
        };
        let lanes = i64::from(self.lanes);
        let plain = panel.is_none() && !self.target.simt && work.ops <= 2.0 && self.idempotent();
        if !plain || work.accesses.len() > 3 || self.a.estimate(&self.a.extent(col)) < lanes as f64 {
            return None;
        }
        let strided = |x: &&Access| !x.store && matches!(self.a.step(&x.offset, col, None), Step::By(_));
        let x = work.accesses.iter().find(strided)?;
        let axis = self.a.k.domain.iter().find(|a| {
            a.var != col
                && self.free.contains(&a.var)
                && self.a.step(&x.offset, a.var, None) == Step::One
                && a.extent.bounds(&self.a.facts).0 >= lanes
                && work.accesses.iter().all(|x| regular(x, a.var) && regular(x, col))
        })?;
        let overlap = !axis.extent.divisible_by(self.lanes.into(), &self.a.facts);
        Some(RowTile { axis: axis.var, size: self.lanes, overlap })
    }

    /// What rows along `v` would share; `None` where an access is irregular along it.
    fn row_candidate(&self, v: Var, col: Var, reductions: &[&Work]) -> Option<Rows> {
        let panel = self.col.and_then(|c| c.1);
        let irregular =
            |x: &Access| self.a.step(&x.offset, v, None) == Step::Irregular || x.guard_vars.contains(&v);
        if self.a.works.iter().flat_map(|w| &w.accesses).any(|x| x.store && irregular(x)) {
            return None;
        }
        let mut shared = false;
        let mut contraction = false;
        let mut bytes = None;
        for w in reductions {
            let row_free = |x: &&Access| self.a.step(&x.offset, v, None) == Step::Zero;
            let col_free = |x: &&Access| self.a.step(&x.offset, col, panel) == Step::Zero;
            let reads: Vec<&Access> = w.accesses.iter().collect();
            // rows that are only partly there would be read one by one
            if reads
                .iter()
                .any(|x| self.a.step(&x.offset, v, None) == Step::Irregular || x.guard_vars.contains(&v))
            {
                return None;
            }
            shared |= reads.iter().any(|x| row_free(x) && !col_free(x));
            let row_operand: Vec<&&Access> = reads.iter().filter(|x| !row_free(x) && col_free(x)).collect();
            let col_operand = reads.iter().any(|x| row_free(x) && !col_free(x));
            if !row_operand.is_empty() && col_operand && reads.iter().all(|x| row_free(x) || col_free(x)) {
                contraction = true;
            }
            for x in reads.iter().filter(|x| !row_free(x)) {
                let elem = self.a.k.buffers[x.buf.0 as usize].dtype.bytes() as i64;
                bytes = bytes.or(match self.a.step(&x.offset, v, None) {
                    Step::One => Some(elem),
                    Step::By(d) => d.as_const().map(|c| c.saturating_mul(elem).abs()),
                    _ => None,
                });
            }
        }
        Some(Rows { shared, contraction, row_bytes: bytes })
    }

    /// Reads of a reduction that rows along `v` share, at most.
    fn col_operands(&self, v: Var, col: Var, reductions: &[&Work]) -> u32 {
        let panel = self.col.and_then(|c| c.1);
        let shared = |x: &&Access| {
            self.a.step(&x.offset, v, None) == Step::Zero && self.a.step(&x.offset, col, panel) != Step::Zero
        };
        reductions.iter().map(|w| w.accesses.iter().filter(shared).count() as u32).max().unwrap_or(1)
    }

    /// Bytes of one column of a constant column operand, where its reduction has a known length.
    fn col_bytes(&self, reductions: &[&Work]) -> Option<i64> {
        let [w] = reductions else { return None };
        let (col, panel) = self.col?;
        let x = w.accesses.iter().find(|x| self.a.step(&x.offset, col, panel) != Step::Zero)?;
        let buffer = &self.a.k.buffers[x.buf.0 as usize];
        let mut steps = w.axes.iter().filter(|a| x.offset.uses_var(a.var)).map(|a| a.extent.as_const());
        let steps = steps.try_fold(1i64, |n, e| n.checked_mul(e?))?;
        buffer.constant.then(|| steps.saturating_mul(buffer.dtype.bytes() as i64))
    }

    /// True where dot products take their operands apart first.
    fn splits_words(&self) -> bool {
        let pairs =
            |e: &Expr| matches!(e, Expr::Dot(dot, ..) if self.target.words(*dot) == Some(Words::Pairs));
        self.a.k.exprs().iter().any(pairs)
    }

    /// True where a point may be computed twice: it only sets, and reads nothing that the kernel writes.
    fn idempotent(&self) -> bool {
        let sets = self.a.k.stmts.iter().all(|s| match s {
            Stmt::Store { combine, .. } => *combine == Combine::Set,
            Stmt::Ordered { .. } => false,
            _ => true,
        });
        sets && self.a.k.buffers.iter().all(|b| b.access != Use::ReadWrite)
    }

    // ---- loops ----------------------------------------------------------------------------------

    fn choice(&self, rows: Option<RowTile>, guards: Vec<Guard>) -> Choice {
        let cols = self.col.map(|(axis, panel)| self.col_tile(axis, panel));
        let mut schedule = Schedule {
            loops: Vec::new(),
            rows: rows.filter(|r| r.size > 1),
            cols,
            inner: self.inner_specs(),
            block: None,
            across: None,
            warps: 0,
            matrix: rows.and_then(|r| self.matrix_of_rows(r.size)),
            ahead: 0,
            scalar: self.scalar.clone(),
        };
        let order = self.loop_order(rows.map(|r| r.axis));
        let trip = self.bind_loops(&order, &mut schedule);
        self.share_rows(&mut schedule);
        schedule.ahead = self.ahead(&schedule);
        let ns_per_iter = match self.parallel {
            true => self.nanoseconds() / trip.max(1.0),
            false => self.work() * NS_PER_OP,
        };
        Choice { guards, schedule, ns_per_iter }
    }

    fn col_tile(&self, axis: Var, panel: Option<i64>) -> ColTile {
        let size = self.col_size;
        let extent = self.a.extent(axis);
        let short = extent.bounds(&self.a.facts).1 < i64::from(size);
        let edge = if extent.divisible_by(size.into(), &self.a.facts) {
            Edge::Exact
        } else if short || self.target.has_masks && self.contraction {
            Edge::Mask
        } else {
            Edge::Peel
        };
        let tail = match edge {
            // offsets in panels are regular for whole tiles only
            Edge::Peel if panel.is_none() && !self.contraction && !self.target.simt => self.lanes.min(size),
            _ => size,
        };
        ColTile { axis, size, edge, tail, panel: panel.is_some() }
    }

    fn inner_specs(&self) -> Vec<InnerSpec> {
        let lanes = if self.col.is_none() { self.inner_lanes().inner } else { Vec::new() };
        let works = self.a.works.iter().filter(|w| w.inner);
        works
            .enumerate()
            .map(|(i, w)| {
                let cols = lanes.get(i).copied().flatten();
                let mut order: Vec<(f64, Var)> =
                    w.axes.iter().map(|x| (self.stride_key(w, x.var), x.var)).collect();
                // the smallest steps innermost
                order.sort_by(|a, b| b.0.total_cmp(&a.0));
                let mut order: Vec<Var> = order.into_iter().map(|o| o.1).collect();
                let mut spec = InnerSpec::default();
                if let Some(v) = cols {
                    order.retain(|x| *x != v);
                    order.push(v);
                    let n = self.a.extent(v).as_const().unwrap_or(i64::MAX).max(1) as u64;
                    let vectors = if w.ops > 12.0 { 2 } else { 4 };
                    let vectors = n.div_ceil(u64::from(self.lanes)).min(vectors) as u32;
                    let wide = self.warp_columns(i64::try_from(n).unwrap_or(i64::MAX));
                    spec.cols = Some((v, wide.unwrap_or(vectors * self.lanes)));
                    spec.tail = wide.unwrap_or(self.lanes);
                }
                let window: f64 = w.axes.iter().map(|x| self.a.estimate(&x.extent)).product();
                let guarded = w.accesses.iter().any(|x| x.guarded);
                if w.reduce && !self.contraction && self.rows.is_some() && window <= 9.0 && !guarded {
                    // neighbouring windows overlap: unrolled, they share their loads
                    spec.unroll = 5;
                }
                if w.reduce && self.contraction && w.axes.iter().any(|x| self.is_place_in_byte(w, x)) {
                    spec.unroll = PLACES as u32;
                }
                if let Some(m) = self.matrix.filter(|_| w.reduce) {
                    order.retain(|x| *x != m.axis);
                    order.push(m.axis);
                }
                spec.order = order;
                spec
            })
            .collect()
    }

    /// True where the steps of a short axis take different parts of the same elements of a column operand:
    /// unrolled, they share their load.
    fn is_place_in_byte(&self, w: &Work, axis: &Axis) -> bool {
        let Some((col, panel)) = self.col else { return false };
        let repeats = |x: &Access| {
            !x.store
                && self.a.step(&x.offset, col, panel) != Step::Zero
                && self.a.step(&x.offset, axis.var, None) == Step::Zero
        };
        let dtype = |x: &Access| self.a.k.buffers[x.buf.0 as usize].dtype;
        axis.extent.as_const().is_some_and(|n| n <= PLACES)
            && w.accesses.iter().any(|x| dtype(x).bytes() == 1 && repeats(x))
    }

    /// How far accesses move along `v`, estimated.
    fn stride_key(&self, w: &Work, v: Var) -> f64 {
        let panel = self.col.filter(|c| c.0 == v).and_then(|c| c.1);
        w.accesses
            .iter()
            .map(|x| match self.a.step(&x.offset, v, panel) {
                Step::Zero => 0.0,
                Step::One => 1.0,
                Step::By(d) => self.a.estimate(&d).max(self.a.estimate(&(Dim::from(0) - d))),
                Step::Irregular => 1e9,
            })
            .sum()
    }

    /// Axes of the domain, outermost loop first.
    fn loop_order(&self, rows: Option<Var>) -> Vec<Var> {
        let domain: Vec<Var> = self.a.k.domain.iter().map(|x| x.var).collect();
        let (free, bound): (Vec<Var>, Vec<Var>) = domain.into_iter().partition(|v| self.free.contains(v));
        let store = self.a.works.iter().find(|w| w.accesses.iter().any(|x| x.store));
        let far = |v: Var| store.map_or(0.0, |w| self.stride_key(w, v));
        let mut order = free;
        order.sort_by(|a, b| far(*b).total_cmp(&far(*a)));
        if self.contraction
            && let Some((col, panel)) = self.col
        {
            // what the column operand depends on comes first: its panel then stays in the cache
            let outer = |v: &Var| {
                self.a
                    .works
                    .iter()
                    .filter(|w| w.reduce)
                    .flat_map(|w| &w.accesses)
                    .any(|x| self.a.step(&x.offset, col, panel) != Step::Zero && x.offset.uses_var(*v))
            };
            let (mut first, last): (Vec<Var>, Vec<Var>) = order.into_iter().partition(|v| outer(v));
            first.retain(|v| *v != col);
            first.push(col);
            first.extend(last.into_iter().filter(|v| *v != col && Some(*v) != rows));
            first.extend(rows);
            order = first;
        }
        if let Some((col, _)) = self.col.filter(|_| self.columns_before_windows(rows)) {
            let (batches, inner): (Vec<Var>, Vec<Var>) =
                order.into_iter().partition(|v| !self.slides(*v) && *v != col);
            order = batches;
            order.push(col);
            order.extend(inner.into_iter().filter(|v| *v != col));
        }
        // loops whose order shows run inside, one after another, as the kernel lists them
        order.extend(bound);
        order
    }

    /// Vector instructions of the whole kernel, estimated.
    fn work(&self) -> f64 {
        let lanes = if self.scalar.is_some() { 1.0 } else { f64::from(self.lanes) };
        let one = |w: &Work| {
            let ordered: f64 = w.ordered.iter().map(|x| self.a.estimate(&x.extent)).product();
            let loads = if self.contraction && w.reduce { 0.2 } else { w.accesses.len() as f64 };
            let speed = if self.matrix.is_some() && w.reduce { MATRIX_SPEED } else { 1.0 };
            self.a.points(w) * ordered * (w.ops + loads) / lanes / speed
        };
        self.a.works.iter().map(one).sum()
    }

    fn nanoseconds(&self) -> f64 {
        let elems = |b: &ir::kernel::Buffer| b.shape.first().map_or(1.0, |d| self.a.estimate(d));
        let bytes: f64 = self.a.k.buffers.iter().map(|b| elems(b) * b.dtype.bytes() as f64).sum();
        (self.work() * NS_PER_OP).max(bytes / BYTES_PER_NS)
    }

    /// Makes loops of the axes: outer ones parallel until there is enough to share out, with enough work
    /// in each iteration. Answers the estimated number of iterations.
    fn bind_loops(&self, order: &[Var], s: &mut Schedule) -> f64 {
        let target = 8.0 * self.target.threads.max(1) as f64;
        let work = self.work();
        // iterations as estimated, and those that there are whatever the sizes
        let (mut trip, mut sure) = (1.0, 1.0);
        let mut serial = Vec::new();
        let mut open = self.parallel;
        let step_of = |s: &Schedule, v: Var| match (s.rows, s.cols) {
            (Some(r), _) if r.axis == v => r.size,
            (_, Some(c)) if c.axis == v => c.size,
            _ => 1,
        };
        let shares = self.shares(order, s);
        for &(axis, step) in &shares {
            s.loops.push(LoopSpec { axis, step, parallel: true });
            let extent = self.a.extent(axis);
            let chunks = (self.a.estimate(&extent) / f64::from(step)).ceil().max(1.0);
            trip *= chunks;
            sure *= if extent.as_const().is_some() { chunks } else { 1.0 };
        }
        for v in order {
            let step = step_of(s, *v);
            let tile = LoopSpec { axis: *v, step, parallel: false };
            if let Some(share) = shares.iter().find(|x| x.0 == *v) {
                if share.1 > step {
                    serial.push(tile);
                }
                continue;
            }
            // blocks of rows are whole: nothing else cuts them
            let row = !shares.is_empty() && (!self.columns_use(*v) || self.slides(*v));
            open &= self.free.contains(v) && sure < target && !row;
            if !open {
                serial.push(tile);
                continue;
            }
            let tiles = (self.a.estimate(&self.a.extent(*v)) / f64::from(step)).ceil().max(1.0);
            let each = work / (trip * tiles);
            let fixed = self.a.extent(*v).as_const().is_some();
            // chunks: not too many of them, and each with enough to do
            let least = if self.target.simt { MIN_WARP_WORK } else { MIN_WORK };
            let enough = (least / each.max(1e-9)).ceil();
            let few = if fixed { (sure * tiles / (4.0 * target)).ceil() } else { 1.0 };
            let few_left = fixed && sure * tiles <= 4.0 * target && each * 8.0 >= least;
            let chunk = if few_left { 1.0 } else { enough.max(few).clamp(1.0, (1 << 16) as f64) };
            if chunk >= tiles && (fixed || chunk > 4.0 * tiles) {
                serial.push(tile);
                continue;
            }
            let chunk_step = (chunk as u32).max(1).saturating_mul(step);
            s.loops.push(LoopSpec { axis: *v, step: chunk_step, parallel: true });
            if chunk_step > step {
                serial.push(tile);
            }
            let chunks = (tiles / chunk).ceil();
            trip *= chunks;
            sure *= if fixed { chunks } else { 1.0 };
        }
        s.loops.extend(serial);
        trip
    }
}
