//! A contraction as the work of blocks of warps: each block computes a tile of rows x columns, whose operands are staged
//! through shared memory, some steps of the reduction at a time.
//!
//! ```text
//! stage x, y of step 0 into buffer 0; barrier
//! for each step s:
//!     read x, y of step s + 1 into registers          (their latency passes during the products)
//!     for each k of the step: acc += column k of x * row k of y      (from buffer s mod 2)
//!     write them to buffer (s + 1) mod 2; barrier
//! store f(acc)
//! ```
//!
//! An operand is whatever expression the kernel multiplies: it is evaluated where it is staged, once for each element of
//! the block's tile. Rows may run through several axes of the domain; each lane then computes where its own rows lie, once.
//! Rows beyond the last repeat it; columns beyond the last are neither read nor written; steps of the reduction
//! beyond the last are staged as zeros.

use super::expr::{Eval, TileDim};
use super::grid::{self, split};
use super::space::VarFacts;
use crate::error::Result;
use crate::schedule::{BlockTile, ColTile, Edge, Schedule};
use ir::dtype::Scalar;
use ir::kernel::{Expr, ExprId, Kernel, Stmt};
use ir::loops::{Addr, Func, Launch, Level, Mem, Space, Stride, Ty, Val};
use ir::prim::{BinaryOp, CmpOp};
use ir::{DType, Dim, Monoid, Symbols, Var};

/// Elements by which rows of an array that is written across are longer: the words that the lanes of a warp write at once
/// then lie in different banks.
const PAD: i64 = 4;
/// Bytes of the widest access.
pub(super) const WIDEST: u32 = 16;

/// The factors of a kernel that is a contraction of f32: the first depends on `rows`, the second on `col`, neither on
/// what the other has. `None` where it is no such kernel.
pub fn factors(k: &Kernel, col: Var) -> Option<Factors> {
    let mut found = None;
    for s in &k.stmts {
        match s {
            Stmt::Reduce { acc: DType::F32, monoid: Monoid::Sum, value, axes, .. } if found.is_none() => {
                found = Some((*value, axes));
            }
            Stmt::Let { .. } => {}
            Stmt::Store { axes, .. } if axes.is_empty() => {}
            _ => return None,
        }
    }
    let (value, axes) = found?;
    let Expr::Binary(BinaryOp::Mul, a, b) = k.get(value) else { return None };
    let vars = |e: ExprId| {
        let mut vars = Vec::new();
        super::axes::expr_vars(k, e, &mut vars);
        vars
    };
    let (a, b) = ((*a, vars(*a)), (*b, vars(*b)));
    let (x, y) = if b.1.contains(&col) { (a, b) } else { (b, a) };
    if x.1.contains(&col) || !y.1.contains(&col) {
        return None;
    }
    let plain = |e: ExprId| super::axes::dtype_of(k, e, &[]) == DType::F32 && is_closed(k, e);
    if !plain(x.0) || !plain(y.0) {
        return None;
    }
    let others = || k.domain.iter().map(|a| a.var).filter(|v| *v != col);
    let rows: Vec<Var> = others().filter(|v| !y.1.contains(v)).collect();
    let shared = others().filter(|v| y.1.contains(v) && x.1.contains(v)).collect();
    let cols = others().filter(|v| y.1.contains(v) && !x.1.contains(v)).collect();
    let reduce = axes.iter().map(|a| a.var).collect();
    Some(Factors { x: x.0, y: y.0, rows, shared, cols, reduce })
}

/// See [`factors`].
pub struct Factors {
    x: ExprId,
    y: ExprId,
    /// Axes of the domain that the second factor does not depend on.
    pub rows: Vec<Var>,
    /// Axes that both depend on.
    pub shared: Vec<Var>,
    /// Axes but the column axis that only the second depends on.
    pub cols: Vec<Var>,
    pub reduce: Vec<Var>,
}

/// Neither results of other statements nor indices from data.
fn is_closed(k: &Kernel, e: ExprId) -> bool {
    !matches!(k.get(e), Expr::Local(_) | Expr::Bind { .. })
        && crate::kernels::children(k.get(e)).into_iter().all(|c| is_closed(k, c))
}

/// Lowers by a schedule that has a block tile.
///
/// # Errors
/// As [`super::nest::lower`].
pub fn lower(
    kernel: &Kernel,
    symbols: &Symbols,
    schedule: &Schedule,
    tile: &BlockTile,
    ns_per_iter: f64,
) -> Result<Func> {
    let mut e = Eval::new(kernel, VarFacts::of(kernel, symbols));
    e.own_rows = true;
    let fail = |e: &Eval, m: &str| e.fault(format!("schedule `{}`: {m}", schedule.text(e.k)));
    let Some(cols) = schedule.cols else { return Err(fail(&e, "a block without columns")) };
    let Some(factors) = factors(kernel, cols.axis) else {
        return Err(fail(&e, "a block for a kernel that is no contraction"));
    };
    let mut b = Block { e, s: schedule, t: tile, cols, factors, number: [Var(0); 2] };
    b.check()?;
    let trip = b.run()?;
    let block = [tile.threads, 1, 1];
    Ok(b.e.b.finish(Launch { trip, ns_per_iter, block, ..Launch::default() }))
}

struct Block<'a> {
    e: Eval<'a>,
    s: &'a Schedule,
    t: &'a BlockTile,
    cols: ColTile,
    factors: Factors,
    /// Numbers of the row tile and of the column tile.
    number: [Var; 2],
}

/// An operand on its way through shared memory.
struct Staged {
    value: ExprId,
    /// Of the row axes, else of the column axis.
    rows: bool,
    size: u32,
    /// Neighbours in memory are steps of the reduction.
    along_steps: bool,
    mem: Mem,
    /// Elements from one step of the reduction to the next.
    pitch: i64,
}

impl Block<'_> {
    fn check(&self) -> Result<()> {
        let fail = |m: &str| Err(self.e.fault(format!("schedule `{}`: {m}", self.s.text(self.e.k))));
        let t = self.t;
        if t.rows.is_empty() || t.row_size == 0 || t.depth == 0 || self.cols.size == 0 || t.threads == 0 {
            return fail("a block without rows, columns, steps or threads");
        }
        let same = |a: &[Var], b: &[Var]| a.len() == b.len() && a.iter().all(|v| b.contains(v));
        if !same(&t.rows, &self.factors.rows) || !same(&t.steps, &self.factors.reduce) {
            return fail("rows or steps are not those of the contraction");
        }
        let looped: Vec<Var> = self.s.loops.iter().map(|l| l.axis).collect();
        let wanted = self.e.k.domain.iter().map(|a| a.var).filter(|v| !t.rows[1..].contains(v));
        if !same(&looped, &wanted.collect::<Vec<_>>()) {
            return fail("the loops are not those of the domain");
        }
        let step = |v: Var| match v {
            v if v == t.rows[0] => t.row_size,
            v if v == self.cols.axis => self.cols.size,
            _ => 1,
        };
        if self.s.loops.iter().any(|l| !l.parallel || l.step != step(l.axis)) {
            return fail("a loop of a block that is serial or has another step than its tile");
        }
        let whole = self.extent(self.cols.axis).divisible_by(self.cols.size.into(), &self.e.facts);
        if self.cols.edge == Edge::Exact && !whole {
            return fail("columns do not divide their axis");
        }
        Ok(())
    }

    fn extent(&self, v: Var) -> Dim {
        self.e.facts.extent(v).cloned().unwrap_or_else(|| Dim::from(1))
    }
    fn product(&self, vars: &[Var]) -> Dim {
        Dim::product(&vars.iter().map(|v| self.extent(*v)).collect::<Vec<_>>())
    }

    fn run(&mut self) -> Result<Dim> {
        let size = |s: &Self, l: &crate::schedule::LoopSpec| {
            if l.axis == s.t.rows[0] { s.product(&s.t.rows) } else { s.extent(l.axis) }
        };
        let tiles = |s: &Self, l| size(s, l).ceil_div(&Dim::from(i64::from(l.step)), &s.e.facts);
        let counts: Vec<Dim> = self.s.loops.iter().map(|l| tiles(self, l)).collect();
        let tiled = [self.t.rows[0], self.cols.axis];
        let (trip, numbers) = grid::open(&mut self.e, &self.s.loops, &counts, tiled)?;
        self.number = numbers;
        let scope = self.e.enter();
        let k = self.e.k;
        for s in &k.stmts {
            self.stmt(s)?;
        }
        self.e.leave(scope);
        self.e.b.close_for(&[]);
        Ok(trip)
    }

    fn stmt(&mut self, s: &Stmt) -> Result<()> {
        if let Stmt::Reduce { local, acc, .. } = s {
            let v = self.products(*acc)?;
            self.e.locals[*local as usize] = Some(v);
            return Ok(());
        }
        let scope = self.e.enter();
        self.bind_rows(self.t.row_size, false)?;
        self.bind_cols()?;
        if !self.e.plain(s)? {
            return Err(self.e.fault("a statement that blocks do not know".into()));
        }
        self.e.unreplace(self.cols.axis);
        self.e.leave(scope);
        Ok(())
    }

    // ---- axes of the tile ---------------------------------------------------------------------

    /// Numbers `first .. first + size` that end at `total`, down the rows of a tile or along its columns: what is
    /// beyond repeats the last. Also which are not beyond, where some may be.
    fn numbers(
        &mut self,
        first: Val,
        size: u32,
        total: &Dim,
        along_cols: bool,
    ) -> Result<(Val, Option<Val>)> {
        let ty = if along_cols { Ty::tile(DType::I64, 1, size) } else { Ty::tile(DType::I64, size, 1) };
        let iota = self.e.b.iota(ty, along_cols);
        let numbers = self.e.b.add(iota, first);
        self.e.b.assume_nonneg(numbers);
        if total.divisible_by(size.into(), &self.e.facts) {
            return Ok((numbers, None));
        }
        let (end, last) = (self.e.dim(total)?, self.e.dim(&(total - Dim::from(1)))?);
        let inside = self.e.b.cmp(CmpOp::Lt, numbers, end);
        let clamped = self.e.b.min(numbers, last);
        self.e.b.assume_nonneg(clamped);
        Ok((clamped, Some(inside)))
    }

    /// Binds axes to the parts of one number, the last axis running fastest.
    fn bind_parts(&mut self, axes: &[Var], number: Val) -> Result<()> {
        let mut rest = number;
        for (i, axis) in axes.iter().enumerate().rev() {
            let mut part = rest;
            if i > 0 {
                let extent = self.extent(*axis);
                let n = self.e.dim(&extent)?;
                (part, rest) = split(&mut self.e.b, rest, n);
            }
            self.e.bind(*axis, part);
        }
        Ok(())
    }

    fn bind_rows(&mut self, size: u32, along_cols: bool) -> Result<()> {
        let axes = self.t.rows.clone();
        let first = self.e.dim(&(Dim::from(self.number[0]) * Dim::from(i64::from(self.t.row_size))))?;
        let total = self.product(&axes);
        let (numbers, _) = self.numbers(first, size, &total, along_cols)?;
        self.bind_parts(&axes, numbers)
    }

    /// The column axis along the columns of a tile.
    fn bind_cols(&mut self) -> Result<()> {
        let size = Dim::from(i64::from(self.cols.size));
        let first = Dim::from(self.number[1]) * &size;
        self.along_cols(self.cols.axis, first.clone(), self.cols.size);
        if self.cols.edge != Edge::Exact {
            let left = self.extent(self.cols.axis) - first;
            self.e.valid = Some(self.e.dim(&left)?);
        }
        Ok(())
    }

    /// `axis = first + number of the column`
    fn along_cols(&mut self, axis: Var, first: Dim, size: u32) {
        let iota = self.e.fresh(Dim::from(i64::from(size)));
        let numbers = self.e.b.iota(Ty::vector(DType::I64, size), true);
        self.e.bind(iota, numbers);
        self.e.replace(axis, first + Dim::from(iota));
        self.e.col = Some(TileDim { iota, size });
    }

    // ---- the reduction ------------------------------------------------------------------------

    fn depth(&self) -> i64 {
        self.t.depth.into()
    }

    /// Axes of the reduction that a step runs through, and those around it.
    fn inner_steps(&self) -> (&[Var], &[Var]) {
        self.t.steps.split_at(if self.t.flat { 0 } else { self.t.steps.len().saturating_sub(1) })
    }

    fn staged(&mut self, value: ExprId, rows: bool, size: u32) -> Staged {
        let k = self.e.k;
        let inner = self.t.steps.last().copied();
        let along_steps = inner.is_some_and(|v| reads_along(k, value, v));
        let pitch = i64::from(size) + if along_steps { PAD } else { 0 };
        let mem = self.e.b.local(DType::F32, Dim::from(2 * self.depth() * pitch), Space::Shared);
        Staged { value, rows, size, along_steps, mem, pitch }
    }

    fn products(&mut self, acc: DType) -> Result<Val> {
        let x = self.staged(self.factors.x, true, self.t.row_size);
        let y = self.staged(self.factors.y, false, self.cols.size);
        let (outer, inner) = self.inner_steps();
        let (outer, inner) = (self.product(outer), self.product(inner));
        let blocks = inner.ceil_div(&Dim::from(self.depth()), &self.e.facts);
        let steps = outer * &blocks;
        let (zero, one) = (self.e.b.index(0), self.e.b.index(1));
        // the block may still be reading what its last iteration staged
        self.e.b.barrier(Level::Warp);
        for operand in [&x, &y] {
            let v = self.stage(operand, zero, &inner, &blocks)?;
            self.put(operand, zero, v);
        }
        self.e.b.barrier(Level::Warp);
        let init = self.e.b.zero(Ty::tile(acc, self.t.row_size, self.cols.size));
        if steps.is_const(1) {
            return Ok(self.multiply(&x, &y, zero, init));
        }
        let end = self.e.dim(&steps)?;
        let (step, inside) = self.e.b.open_for(zero, end, 1, &[init]);
        let scope = self.e.enter();
        let next = self.e.b.add(step, one);
        let more = self.e.b.cmp(CmpOp::Lt, next, end);
        self.e.b.open_if(more);
        let mut ahead = Vec::new();
        for operand in [&x, &y] {
            ahead.push(self.stage(operand, next, &inner, &blocks)?);
        }
        self.e.b.open_else(&ahead);
        let none: Vec<Val> = ahead.iter().map(|v| self.e.b.zero(self.e.b.ty(*v))).collect();
        let ahead = self.e.b.close_if(&none);
        let two = self.e.b.index(2);
        let (now, then) = (self.e.b.floor_mod(step, two), self.e.b.floor_mod(next, two));
        let sum = self.multiply(&x, &y, now, inside[0]);
        self.e.b.open_if(more);
        for (operand, v) in [&x, &y].into_iter().zip(ahead) {
            self.put(operand, then, v);
        }
        self.e.b.open_else(&[]);
        self.e.b.close_if(&[]);
        self.e.b.barrier(Level::Warp);
        self.e.leave(scope);
        Ok(self.e.b.close_for(&[sum])[0])
    }

    /// The elements of an operand that a step needs. `inner`: length of what steps run through, `blocks`: steps of it.
    fn stage(&mut self, o: &Staged, step: Val, inner: &Dim, blocks: &Dim) -> Result<Val> {
        let scope = self.e.enter();
        let (around, within) = self.inner_steps();
        let (around, within) = (around.to_vec(), within.to_vec());
        let n = self.e.dim(blocks)?;
        let (block, rest) = if around.is_empty() { (step, step) } else { split(&mut self.e.b, step, n) };
        self.bind_parts(&around, rest)?;
        let depth = self.e.b.index(self.depth());
        let first = self.e.b.mul(block, depth);
        let whole = inner.divisible_by(self.depth(), &self.e.facts);
        let mut inside = None;
        let mut replaced = None;
        if let ([axis], true) = (within.as_slice(), o.along_steps) {
            let number = self.e.fresh(blocks.clone());
            self.e.bind(number, block);
            self.along_cols(*axis, Dim::from(number) * Dim::from(self.depth()), self.t.depth);
            replaced = Some(*axis);
            if !whole {
                let end = self.e.dim(inner)?;
                self.e.valid = Some(self.e.b.sub(end, first));
            }
        } else {
            let (numbers, mask) = self.numbers(first, self.t.depth, inner, o.along_steps)?;
            self.bind_parts(&within, numbers)?;
            inside = mask;
        }
        // the tile's own axes lie across the steps
        let down = o.along_steps;
        match o.rows {
            true => {
                let total = self.product(&self.t.rows);
                match self.t.rows.as_slice() {
                    [axis] if !down && total.divisible_by(o.size.into(), &self.e.facts) => {
                        let axis = *axis;
                        let first = Dim::from(self.number[0]) * Dim::from(i64::from(o.size));
                        self.along_cols(axis, first, o.size);
                        replaced = Some(axis);
                    }
                    _ => self.bind_rows(o.size, !down)?,
                }
            }
            false if down => {
                let first = Dim::from(self.number[1]) * Dim::from(i64::from(o.size));
                let first = self.e.dim(&first)?;
                let extent = self.extent(self.cols.axis);
                let (numbers, _) = self.numbers(first, o.size, &extent, false)?;
                self.e.bind(self.cols.axis, numbers);
            }
            false => {
                self.bind_cols()?;
                replaced = Some(self.cols.axis);
            }
        }
        let mut v = self.e.eval(o.value)?;
        let zero = self.e.b.constant(Ty::scalar(DType::F32), Scalar::Float(0.0));
        if down && self.e.valid.is_some() {
            v = self.e.b.splat(v, self.e.b.ty(v).rows, self.t.depth);
            v = self.e.masked_cols(v, zero)?;
        }
        if let Some(mask) = inside {
            v = self.e.b.select(mask, v, zero);
        }
        let (rows, cols) = if down { (o.size, self.t.depth) } else { (self.t.depth, o.size) };
        let v = self.e.b.splat(v, rows, cols);
        if let Some(axis) = replaced {
            self.e.unreplace(axis);
        }
        self.e.leave(scope);
        Ok(v)
    }

    /// Place of an operand's elements in one of its two buffers, for step `k` of those staged.
    fn place(&mut self, o: &Staged, buffer: Val, k: i64) -> Addr {
        let size = self.e.b.index(self.depth() * o.pitch);
        let begin = self.e.b.mul(buffer, size);
        let addr = self.e.b.addr(o.mem, begin, k * o.pitch);
        Addr { align: WIDEST, ..addr }
    }

    /// Writes what was staged: step after step, each a row of the shared array.
    fn put(&mut self, o: &Staged, buffer: Val, v: Val) {
        let mut addr = self.place(o, buffer, 0);
        let (next, step) = (Stride::Const(1), Stride::Const(o.pitch));
        (addr.row, addr.col) = if o.along_steps { (next, step) } else { (step, next) };
        self.e.b.store(addr, v);
    }

    fn multiply(&mut self, x: &Staged, y: &Staged, buffer: Val, mut acc: Val) -> Val {
        for k in 0..self.depth() {
            let down = Addr { row: Stride::Const(1), ..self.place(x, buffer, k) };
            let a = self.e.b.load(down, x.size, 1);
            let across = self.place(y, buffer, k);
            let b = self.e.b.load(across, 1, y.size);
            acc = self.e.b.fma(a, b, acc);
        }
        acc
    }
}

/// True where neighbours along `v` are neighbours in some memory that the expression reads.
fn reads_along(k: &Kernel, e: ExprId, v: Var) -> bool {
    let own = match k.get(e) {
        Expr::Read { index, .. } => index[0].affine_in(v).is_some_and(|(c, _)| c.is_const(1)),
        _ => false,
    };
    own || crate::kernels::children(k.get(e)).into_iter().any(|c| reads_along(k, c, v))
}
