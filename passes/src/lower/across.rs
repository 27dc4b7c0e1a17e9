//! What reads along one axis and writes along another, as the work of blocks of warps: each block takes a tile of rows x columns
//! of the result through shared memory, so that both sides are accessed along their contiguous axes.
//!
//! ```text
//! for each tile:
//!     v = read, a column of the tile along each of its rows
//!     barrier                                 (the block may still be reading its last tile)
//!     shared[row * pitch + column] = v
//!     barrier
//!     v = shared, along the columns
//!     store f(v, what is read along the columns anyway)
//! ```
//!
//! Rows and columns beyond the last are neither read nor written, so that each element is computed once: an operand that is read
//! where the result is written may share its memory.

use super::block::WIDEST;
use super::expr::{Eval, TileDim};
use super::grid;
use super::space::{VarFacts, vars_of};
use crate::error::Result;
use crate::schedule::{AcrossTile, ColTile, Edge, Schedule};
use ir::kernel::{Access, Expr, ExprId, Kernel, Stmt};
use ir::loops::{Addr, Func, Launch, Level, Mem, Space, Stride, Ty, Val};
use ir::prim::Combine;
use ir::{DType, Dim, Symbols, Var};

/// Elements by which rows of the shared array are longer than those of the tile (`codegen::legalise::spread` says why).
pub const PAD: u32 = 4;

/// How a kernel reads that can go across: it stores along `cols`, and reads regularly.
#[derive(Default)]
pub struct Reads {
    /// Along `rows`, where neighbours along `cols` lie apart.
    pub across: Vec<ExprId>,
    /// All others.
    pub straight: Vec<ExprId>,
}

/// The reads of a kernel, in normal form, of which tiles along two of its axes may go across; `None` where it does more than
/// store elements of regular reads.
pub fn reads(k: &Kernel, rows: Var, cols: Var) -> Option<Reads> {
    let mut stack = Vec::new();
    for s in &k.stmts {
        match s {
            Stmt::Let { value, .. } => stack.push(*value),
            Stmt::Store { axes, index, guards, value, combine: Combine::Set, .. }
                if axes.is_empty() && guards.is_empty() =>
            {
                let (down, along) = (steps(&index[0], rows)?, steps(&index[0], cols)?);
                if down.is_const(0) || !along.is_const(1) {
                    return None;
                }
                stack.push(*value);
            }
            _ => return None,
        }
    }
    let (mut found, mut seen) = (Reads::default(), vec![false; k.exprs().len()]);
    while let Some(e) = stack.pop() {
        if std::mem::replace(&mut seen[e.0 as usize], true) {
            continue;
        }
        match k.get(e) {
            Expr::Bind { .. } | Expr::Dot(..) => return None,
            Expr::Read { buf, index, guards, .. } => {
                let read_only = k.buffers[buf.0 as usize].access == Access::Read;
                if !guards.is_empty() || !read_only {
                    return None;
                }
                let (down, along) = (steps(&index[0], rows)?, steps(&index[0], cols)?);
                let apart = !along.is_const(0) && !along.is_const(1);
                let list = if apart && down.is_const(1) { &mut found.across } else { &mut found.straight };
                list.push(e);
            }
            other => stack.extend(crate::kernels::children(other)),
        }
    }
    Some(found)
}

/// How an offset moves along an axis, the same everywhere.
fn steps(offset: &Dim, v: Var) -> Option<Dim> {
    offset.affine_in(v).map(|a| a.0).filter(|by| vars_of(by).is_empty())
}

/// Lowers by a schedule whose tiles go across.
///
/// # Errors
/// As [`super::nest::lower`].
pub fn lower(
    kernel: &Kernel,
    symbols: &Symbols,
    schedule: &Schedule,
    tile: &AcrossTile,
    ns_per_iter: f64,
) -> Result<Func> {
    let e = Eval::new(kernel, VarFacts::of(kernel, symbols));
    let fail = |e: &Eval, m: &str| e.fault(format!("schedule `{}`: {m}", schedule.text(e.k)));
    let Some(cols) = schedule.cols else { return Err(fail(&e, "a tile without columns")) };
    let Some(reads) = reads(kernel, tile.rows, cols.axis).filter(|r| !r.across.is_empty()) else {
        return Err(fail(&e, "a kernel that does not read across"));
    };
    let mut a = Across { e, s: schedule, t: tile, cols, reads, number: [Var(0); 2] };
    a.check()?;
    let trip = a.run()?;
    Ok(a.e.b.finish(Launch { trip, ns_per_iter, block: [tile.threads, 1, 1], ..Launch::default() }))
}

struct Across<'a> {
    e: Eval<'a>,
    s: &'a Schedule,
    t: &'a AcrossTile,
    cols: ColTile,
    reads: Reads,
    /// Numbers of the row tile and of the column tile.
    number: [Var; 2],
}

/// An axis of the tile.
#[derive(Clone, Copy)]
struct Side {
    axis: Var,
    /// Of the tile.
    number: Var,
    size: u32,
}

impl Across<'_> {
    fn check(&self) -> Result<()> {
        let fail = |m: &str| Err(self.e.fault(format!("schedule `{}`: {m}", self.s.text(self.e.k))));
        let (rows, cols) = (self.t.rows, self.cols.axis);
        if self.t.row_size == 0 || self.cols.size == 0 || self.t.threads == 0 || rows == cols {
            return fail("a tile without rows, columns or threads");
        }
        let domain: Vec<Var> = self.e.k.domain.iter().map(|a| a.var).collect();
        let once = |v: &Var| self.s.loops.iter().filter(|l| l.axis == *v).count() == 1;
        if self.s.loops.len() != domain.len()
            || !domain.iter().all(once)
            || ![rows, cols].iter().all(|v| domain.contains(v))
        {
            return fail("the loops are not those of the domain");
        }
        if self.s.loops.iter().any(|l| !l.parallel || l.step != self.step(l.axis)) {
            return fail("a loop that is serial or has another step than its tile");
        }
        if self.cols.edge == Edge::Exact && !self.whole(cols, self.cols.size) {
            return fail("columns do not divide their axis");
        }
        Ok(())
    }

    fn extent(&self, v: Var) -> Dim {
        self.e.facts.extent(v).cloned().unwrap_or_else(|| Dim::from(1))
    }
    fn whole(&self, v: Var, size: u32) -> bool {
        self.extent(v).divisible_by(size.into(), &self.e.facts)
    }
    fn step(&self, v: Var) -> u32 {
        match v {
            v if v == self.t.rows => self.t.row_size,
            v if v == self.cols.axis => self.cols.size,
            _ => 1,
        }
    }

    fn run(&mut self) -> Result<Dim> {
        let tiles = |s: &Self, v| s.extent(v).ceil_div(&Dim::from(i64::from(s.step(v))), &s.e.facts);
        let counts: Vec<Dim> = self.s.loops.iter().map(|l| tiles(self, l.axis)).collect();
        let tiled = [self.t.rows, self.cols.axis];
        let (trip, numbers) = grid::open(&mut self.e, &self.s.loops, &counts, tiled)?;
        self.number = numbers;
        self.tile()?;
        self.e.b.close_for(&[]);
        Ok(trip)
    }

    fn tile(&mut self) -> Result<()> {
        let rows = Side { axis: self.t.rows, number: self.number[0], size: self.t.row_size };
        let cols = Side { axis: self.cols.axis, number: self.number[1], size: self.cols.size };
        let across = self.reads.across.clone();
        let scope = self.e.enter();
        self.sides(cols, rows)?;
        let mut staged = Vec::new();
        for e in &across {
            staged.push(self.e.eval(*e)?);
        }
        self.e.leave(scope);
        let scope = self.e.enter();
        self.sides(rows, cols)?;
        // asked for before the barrier, all at once
        for e in self.reads.straight.clone() {
            self.e.eval(e)?;
        }
        self.e.b.barrier(Level::Warp);
        let pitch = i64::from(cols.size + PAD);
        let arrays: Vec<Mem> = staged
            .iter()
            .map(|v| {
                let elems = Dim::from(i64::from(rows.size) * pitch);
                self.e.b.local(self.e.b.dtype(*v), elems, Space::Shared)
            })
            .collect();
        for (mem, v) in arrays.iter().zip(staged) {
            let addr = self.place(*mem);
            self.e.b.store(Addr { row: Stride::Const(1), col: Stride::Const(pitch), ..addr }, v);
        }
        self.e.b.barrier(Level::Warp);
        for (mem, e) in arrays.iter().zip(across) {
            let addr = Addr { row: Stride::Const(pitch), ..self.place(*mem) };
            let v = self.e.b.load(addr, rows.size, cols.size);
            self.e.know(e, v);
        }
        let k = self.e.k;
        for s in &k.stmts {
            if !self.e.plain(s)? {
                return Err(self.e.fault("a statement that tiles do not know".into()));
            }
        }
        for side in [rows, cols] {
            self.e.unreplace(side.axis);
        }
        self.e.leave(scope);
        Ok(())
    }

    /// The begin of a shared array, at which four neighbours lie along either dim.
    fn place(&mut self, mem: Mem) -> Addr {
        let align = (PAD * self.e.b.mem_dtype(mem).bytes() as u32).min(WIDEST);
        let begin = self.e.b.index(0);
        Addr { align, ..self.e.b.addr(mem, begin, 0) }
    }

    /// Binds one axis down the rows of a tile, one along its columns.
    fn sides(&mut self, down: Side, along: Side) -> Result<()> {
        let row = self.side(down, Ty::tile(DType::I64, down.size, 1), false);
        let col = self.side(along, Ty::vector(DType::I64, along.size), true);
        (self.e.row, self.e.col) = (Some(row), Some(col));
        self.e.valid_rows = self.left(down)?;
        self.e.valid = self.left(along)?;
        Ok(())
    }

    fn side(&mut self, side: Side, ty: Ty, along_cols: bool) -> TileDim {
        let n = Dim::from(i64::from(side.size));
        let iota = self.e.fresh(n.clone());
        let numbers = self.e.b.iota(ty, along_cols);
        self.e.bind(iota, numbers);
        self.e.replace(side.axis, Dim::from(side.number) * n + Dim::from(iota));
        TileDim { iota, size: side.size }
    }

    /// What is left of an axis, where a tile may be more.
    fn left(&mut self, side: Side) -> Result<Option<Val>> {
        if self.whole(side.axis, side.size) {
            return Ok(None);
        }
        let first = Dim::from(side.number) * Dim::from(i64::from(side.size));
        Ok(Some(self.e.dim(&(self.extent(side.axis) - first))?))
    }
}
