//! Where the columns of a row lie, where lanes are those of GPU warps: which warp, lane and register holds each of them.
//!
//! Registers of a row either hold neighbouring lanes (register j: columns `32 j ..`), or four of them hold four
//! neighbours of each lane (register `4 g + i`: columns `128 g + 4 lane + i`), which are then read or written at once. The
//! latter where every access along the columns begins at a multiple of four elements, as far as [`super::multiples`]
//! can tell: else four accesses of single elements would each touch what one does.
//!
//! Where the warps of a block share a row, each of them has the columns `32 warp ..` (or `128 warp ..`) of such a group.

use super::multiples::Multiples;
use ir::loops::{Addr, Block, Func, Inst, Stmt, Stride};
use ir::target::TargetDesc;

/// Neighbours that a lane has at most.
const TOGETHER: u32 = 4;
/// Bytes of the widest access of a lane.
pub(super) const WIDEST: u32 = 16;

/// See the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Columns {
    lanes: u32,
    near: u32,
    warps: u32,
}

/// Columns that one register of a row holds: `first + step * (lane + lanes * warp)`, in the first `width` lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    pub first: u32,
    pub step: u32,
    pub width: u32,
}

impl Columns {
    /// Vectors of neighbouring lanes.
    pub fn plain(lanes: u32) -> Columns {
        Columns { lanes, near: 1, warps: 1 }
    }

    /// As it suits the accesses of a function whose rows are shared by so many warps.
    pub fn of(func: &Func, target: &TargetDesc, lanes: u32, warps: u32, multiples: &Multiples) -> Columns {
        let mut suits = None;
        if target.simt {
            let all = Columns { lanes, near: TOGETHER, warps };
            walk(
                &func.body,
                &mut |addr, ty| {
                    if addr.col == Stride::Const(1) && all.near(ty.cols) == TOGETHER {
                        let bytes = ty.dtype.bytes() as u32;
                        let wanted = (TOGETHER * bytes).min(WIDEST);
                        let aligned = multiples.align(func, addr, WIDEST) >= wanted;
                        suits = Some(suits.unwrap_or(true) && aligned);
                    }
                },
                func,
            );
        }
        Columns { lanes, near: if suits == Some(true) { TOGETHER } else { 1 }, warps }
    }

    pub fn warps(self) -> u32 {
        self.warps
    }

    /// Warps have equal parts of so many columns.
    pub fn fits(self, cols: u32) -> bool {
        cols == 1 || self.warps == 1 || cols.is_multiple_of(self.lanes * self.warps)
    }

    fn near(self, cols: u32) -> u32 {
        if cols.is_multiple_of(self.lanes * self.warps * self.near) { self.near } else { 1 }
    }

    /// Registers of a row of so many columns.
    pub fn count(self, cols: u32) -> u32 {
        if cols == 1 { 1 } else { cols.div_ceil(self.lanes * self.warps) }
    }

    pub fn chunk(self, cols: u32, register: u32) -> Chunk {
        if cols == 1 {
            return Chunk { first: 0, step: 1, width: 1 };
        }
        let near = self.near(cols);
        let first = register / near * near * self.lanes * self.warps + register % near;
        let width = if near > 1 { self.lanes } else { self.lanes.min(cols - first) };
        Chunk { first, step: near, width }
    }

    pub fn chunks(self, cols: u32) -> impl Iterator<Item = Chunk> {
        (0..self.count(cols)).map(move |j| self.chunk(cols, j))
    }

    /// Register and lane of a column; `None` where not every warp has it.
    pub fn place(self, cols: u32, col: u32) -> Option<(u32, u32)> {
        if cols == 1 {
            return Some((0, 0));
        }
        let near = self.near(cols);
        let (group, within) = (col / (near * self.lanes), col % (near * self.lanes));
        (self.warps == 1).then_some((group * near + within % near, within / near))
    }
}

/// Every rectangular access of a function and the type of what it moves.
fn walk(block: &Block, f: &mut dyn FnMut(&Addr, ir::loops::Ty), func: &Func) {
    for stmt in &block.stmts {
        match stmt {
            Stmt::Let { val, inst: Inst::Load(addr) } => f(addr, func.ty(*val)),
            Stmt::Store { addr, value } => f(addr, func.ty(*value)),
            _ => {}
        }
        stmt.blocks().into_iter().for_each(|b| walk(b, f, func));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_one_place() {
        for (near, warps) in [(1, 1), (4, 1), (1, 4), (4, 4)] {
            let c = Columns { lanes: 32, near, warps };
            for cols in [1, 7, 32, 50, 96, 128, 160, 256, 512, 640, 1024].into_iter().filter(|n| c.fits(*n)) {
                let mut seen = vec![0; cols as usize];
                for (j, chunk) in c.chunks(cols).enumerate() {
                    for (warp, lane) in (0..warps).flat_map(|w| (0..chunk.width).map(move |l| (w, l))) {
                        if cols == 1 && warp > 0 {
                            continue;
                        }
                        let col = chunk.first + chunk.step * (lane + 32 * warp);
                        seen[col as usize] += 1;
                        let own = (warps == 1).then_some((j as u32, lane));
                        assert!(cols == 1 || c.place(cols, col) == own, "{c:?} {cols} {col}");
                    }
                }
                assert!(seen.iter().all(|n| *n == 1), "{c:?} {cols}: {seen:?}");
            }
        }
    }
}
