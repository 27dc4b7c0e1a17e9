//! Sums of products of words in matrix registers.
//!
//! The innermost loop of the reduction takes a step of K words at a time: R x K of the row operand and K x C of the
//! column operand, whose product one instruction of tile form adds to the R x C sums. When all steps are done the sums
//! go to scratch memory, and what the kernel does with them reads some rows of them at a time.

use super::{Nest, Reduction};
use crate::error::Result;
use crate::lower::expr::TileDim;
use crate::schedule::{Edge, MatrixTile};
use ir::kernel::{Axis, Dot, Expr, ExprId, Stmt};
use ir::loops::{Addr, Mem, Space, Stride, Ty, Val};
use ir::target::MATRIX_SIZE;
use ir::{DType, Dim};

/// Bytes that rows of sums begin at multiples of.
const ROW_ALIGN: u32 = 64;

impl Nest<'_> {
    /// True where the kernel has the sums that a schedule wants in matrix registers.
    pub(super) fn fits_matrix(&self, t: MatrixTile) -> bool {
        let Some(Stmt::Reduce { axes, value, .. }) = self.e.k.stmts.first() else { return false };
        let (Some(rows), Some(cols)) = (self.s.rows, self.s.cols) else { return false };
        let whole = |n: u32, by: u32| by > 0 && n.is_multiple_of(by);
        let words = axes.iter().find(|a| a.var == t.axis).and_then(|a| a.extent.as_const());
        matches!(self.e.k.get(*value), Expr::Dot(..))
            && (2..=2 * MATRIX_SIZE).contains(&rows.size)
            && whole(rows.size, t.rows)
            && [MATRIX_SIZE, 2 * MATRIX_SIZE].contains(&cols.size)
            // the columns beyond the end are read too
            && (cols.panel || cols.edge == Edge::Exact)
            && (2..=MATRIX_SIZE).contains(&t.words)
            && words.is_some_and(|n| n % i64::from(t.words) == 0)
    }

    /// The loop over the words of one row.
    pub(super) fn matrix_steps(
        &mut self,
        r: &Reduction,
        t: MatrixTile,
        axis: &Axis,
        carry: Val,
    ) -> Result<Val> {
        let Expr::Dot(dot, x, y) = *self.e.k.get(r.value) else {
            return Err(self.e.fault("matrix registers for what is no product of words".into()));
        };
        let extent = self.e.resolve(&axis.extent);
        let (lo, hi) = (self.e.b.index(0), self.e.dim(&extent)?);
        let (base, inside) = self.e.b.open_for(lo, hi, i64::from(t.words), &[carry]);
        let scope = self.e.enter();
        let first = self.e.fresh(extent);
        self.e.bind(first, base);
        self.e.replace(axis.var, Dim::from(first));
        self.ask_ahead(t.words)?;
        let iota = self.e.fresh(Dim::from(i64::from(t.words)));
        self.e.replace(axis.var, Dim::from(first) + Dim::from(iota));
        let step = TileDim { iota, size: t.words };
        let (rows, cols) = match (self.e.shape(x).1, self.e.shape(y).1) {
            (1, _) => (x, y),
            // the bytes of rows are the unsigned ones
            (_, 1) if dot == Dot::Bf16 => (y, x),
            _ => {
                return Err(self
                    .e
                    .fault("matrix registers for operands that are no rows and columns".into()));
            }
        };
        let a = self.matrix_operand(rows, step, true)?;
        let b = self.matrix_operand(cols, step, false)?;
        let next = self.e.b.tile_op(dot.matrix_op(), inside[0], a, b);
        self.e.unreplace(axis.var);
        self.e.leave(scope);
        Ok(self.e.b.close_for(&[next])[0])
    }

    /// The words of a step: along the columns of the row operand, the rows of the column operand.
    fn matrix_operand(&mut self, e: ExprId, step: TileDim, along_cols: bool) -> Result<Val> {
        let scope = self.e.enter();
        let ty =
            if along_cols { Ty::vector(DType::I64, step.size) } else { Ty::tile(DType::I64, step.size, 1) };
        let numbers = self.e.b.iota(ty, along_cols);
        self.e.bind(step.iota, numbers);
        *(if along_cols { &mut self.e.col } else { &mut self.e.row }) = Some(step);
        self.e.valid = None;
        let v = self.e.eval(e);
        self.e.leave(scope);
        v
    }

    /// Statements after the sums `sum`, some rows at a time.
    pub(super) fn after_matrix(&mut self, local: u32, sum: Val, t: MatrixTile, rest: &[Stmt]) -> Result<()> {
        let (Some(row), Some(base)) = (self.e.row, self.row_base) else {
            return Err(self.e.fault("matrix registers for a single row".into()));
        };
        let Some(first) = self.e.value(base) else {
            return Err(self.e.fault("rows without a beginning".into()));
        };
        let ty = self.e.b.ty(sum);
        let mem = self.sums_memory(ty);
        let lo = self.e.b.index(0);
        let place = |mut a: Addr| {
            a.row = Stride::Const(ty.cols.into());
            a.align = ROW_ALIGN;
            a
        };
        let to = place(self.e.b.addr(mem, lo, 0));
        self.e.b.store(to, sum);
        let hi = self.e.b.index(ty.rows.into());
        let (at, _) = self.e.b.open_for(lo, hi, t.rows.into(), &[]);
        let scope = self.e.enter();
        let begin = self.e.b.add(first, at);
        self.e.bind(base, begin);
        let numbers = match t.rows {
            1 => self.e.b.index(0),
            n => self.e.b.iota(Ty::tile(DType::I64, n, 1), false),
        };
        self.e.bind(row.iota, numbers);
        self.e.row = (t.rows > 1).then_some(TileDim { size: t.rows, ..row });
        let width = self.e.b.index(ty.cols.into());
        let at = self.e.b.mul(at, width);
        let from = place(self.e.b.addr(mem, at, 0));
        let v = self.e.b.load(from, t.rows, ty.cols);
        self.e.locals[local as usize] = Some(v);
        self.stmts(rest)?;
        self.e.leave(scope);
        self.e.b.close_for(&[]);
        Ok(())
    }

    /// Scratch memory for the sums of one tile.
    fn sums_memory(&mut self, ty: Ty) -> Mem {
        let elems = i64::from(ty.rows) * i64::from(ty.cols);
        *self.sums.get_or_insert_with(|| self.e.b.local(ty.dtype, Dim::from(elems), Space::Scratch))
    }
}
