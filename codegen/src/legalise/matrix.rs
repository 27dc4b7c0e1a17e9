//! Tiles in matrix registers.
//!
//! What a product of matrices ([`Dot::matrix_op`]) takes and makes lies in matrix registers: blocks of up to 16 rows of
//! 16 words. Rows are cut into equal blocks, columns into blocks of 16. Such values are read, multiplied, carried
//! around loops and stored, so nothing else needs to know of them.

use super::tile::{Legaliser, Tile};
use crate::Fault;
use crate::error::Emit;
use ir::kernel::Dot;
use ir::loops::{Addr, Block, Func, Inst, Stmt, Stride, Ty, Val};
use ir::target::MATRIX_SIZE;
use std::collections::HashSet;

/// The values of a function that lie in matrix registers; constants are made where they are wanted.
#[derive(Debug, Default)]
pub(super) struct Matrices {
    values: HashSet<Val>,
}

impl Matrices {
    pub fn of(func: &Func) -> Matrices {
        let mut m = Matrices::default();
        if m.products(&func.body) {
            while m.carried(&func.body) {}
        }
        m
    }

    pub fn has(&self, v: Val) -> bool {
        self.values.contains(&v)
    }

    /// Operands and results of products; true where there are any.
    fn products(&mut self, block: &Block) -> bool {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let { val, inst: Inst::TileOp { name, a, b, .. } }
                    if Dot::of_matrix_op(name).is_some() =>
                {
                    self.values.extend([*val, *a, *b]);
                }
                other => other.blocks().into_iter().for_each(|b| {
                    self.products(b);
                }),
            }
        }
        !self.values.is_empty()
    }

    /// What loops carry from product to product; true where something is new.
    fn carried(&mut self, block: &Block) -> bool {
        let mut new = false;
        for stmt in &block.stmts {
            if let Stmt::For { carries, results, body, .. } = stmt {
                for ((c, result), next) in carries.iter().zip(results).zip(&body.yields) {
                    let all = [c.0, *result, *next];
                    if all.iter().any(|v| self.has(*v)) {
                        all.into_iter().for_each(|v| new |= self.values.insert(v));
                    }
                }
            }
            stmt.blocks().into_iter().for_each(|b| new |= self.carried(b));
        }
        new
    }
}

/// Part of a tile that one register holds.
#[derive(Clone, Copy)]
struct Part {
    row: u32,
    rows: u32,
    col: u32,
    cols: u32,
}

/// Blocks of rows: as few as there can be, of equal size but for one row.
fn row_parts(rows: u32) -> Vec<(u32, u32)> {
    let n = rows.div_ceil(MATRIX_SIZE).max(1);
    let mut at = 0;
    (0..n)
        .map(|i| {
            let size = rows / n + u32::from(i < rows % n);
            at += size;
            (at - size, size)
        })
        .collect()
}

/// Row by row.
fn parts(ty: Ty) -> Emit<Vec<Part>> {
    let whole = ty.cols <= MATRIX_SIZE || ty.cols.is_multiple_of(MATRIX_SIZE);
    if !whole || ty.rows < 2 || ty.cols < 2 || ty.dtype.bytes() != 4 {
        return Err(Fault::unsupported(format!("{} x {} in matrix registers", ty.rows, ty.cols)));
    }
    let cols = ty.cols.min(MATRIX_SIZE);
    let of_row =
        |(row, rows)| (0..ty.cols).step_by(cols as usize).map(move |col| Part { row, rows, col, cols });
    Ok(row_parts(ty.rows).into_iter().flat_map(of_row).collect())
}

impl Legaliser<'_> {
    /// Registers that a value takes.
    pub(super) fn count_of(&self, v: Val) -> Emit<usize> {
        let ty = self.func.ty(v);
        if self.matrices.has(v) { Ok(parts(ty)?.len()) } else { Ok(self.reg_count(ty)) }
    }

    /// The registers of a value as those of another one, which may be a matrix.
    pub(super) fn regs_like(&mut self, v: Val, like: Val) -> Emit<Vec<Val>> {
        if self.matrices.has(like) { self.matrix_regs(v) } else { self.regs(v) }
    }

    fn matrix_regs(&mut self, v: Val) -> Emit<Vec<Val>> {
        if self.matrices.has(v) {
            return self.regs(v);
        }
        let regs = self.regs(v)?;
        let Some(c) = regs.first().and_then(|r| self.b.as_const(*r)) else {
            return Err(Fault::unsupported("vectors as a matrix"));
        };
        let ty = self.func.ty(v);
        let parts = parts(ty)?;
        Ok(parts.iter().map(|p| self.b.constant(Ty::tile(ty.dtype, p.rows, p.cols), c)).collect())
    }

    pub(super) fn matrix(&mut self, ty: Ty, inst: &Inst) -> Emit<Tile> {
        match inst {
            Inst::Load(addr) => {
                let mut regs = Vec::new();
                for p in parts(ty)? {
                    let at = self.matrix_part(addr, p)?;
                    regs.push(self.b.load_as(at, Ty::tile(ty.dtype, p.rows, p.cols)));
                }
                Ok(Tile::of(regs))
            }
            Inst::TileOp { name, acc, a, b } => self.product(name, *acc, *a, *b),
            _ => Err(Fault::unsupported("arithmetic in matrix registers")),
        }
    }

    fn product(&mut self, name: &str, acc: Val, a: Val, b: Val) -> Emit<Tile> {
        let dot = Dot::of_matrix_op(name).filter(|d| self.target.has_matrices(*d));
        let depth = self.func.ty(a).cols;
        if dot.is_none() || depth > MATRIX_SIZE {
            return Err(Fault::unsupported(format!("tile instruction `{name}` of {depth} words")));
        }
        let (sums, rows, cols) = (self.matrix_regs(acc)?, self.matrix_regs(a)?, self.matrix_regs(b)?);
        let each = cols.len();
        let sums = sums.into_iter().enumerate();
        Ok(Tile::of(sums.map(|(i, s)| self.b.tile_op(name, s, rows[i / each], cols[i % each])).collect()))
    }

    pub(super) fn matrix_store(&mut self, addr: &Addr, value: Val) -> Emit<()> {
        let regs = self.regs(value)?;
        for (p, v) in parts(self.func.ty(value))?.into_iter().zip(regs) {
            let at = self.matrix_part(addr, p)?;
            self.b.store(at, v);
        }
        Ok(())
    }

    fn matrix_part(&mut self, addr: &Addr, p: Part) -> Emit<Addr> {
        if addr.col != Stride::Const(1) || addr.cols_valid.is_some() || addr.rows_valid.is_some() {
            return Err(Fault::unsupported("a matrix with gaps in its rows"));
        }
        let a = self.address(addr)?;
        let part = self.part(&a, p.row, p.col)?;
        Ok(Addr { row: a.row, ..part })
    }
}
