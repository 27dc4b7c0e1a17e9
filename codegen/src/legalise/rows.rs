//! Rows that the warps of a block share: each has its part of the columns ([`super::columns`]), scalars are the same
//! in all of them, and what is reduced along the columns goes from warp to warp through shared memory.

use super::tile::Legaliser;
use crate::Fault;
use crate::error::Emit;
use ir::Dim;
use ir::loops::{Block, Func, Inst, Level, Mem, Space, Stmt, Ty, Val};
use ir::prim::BinaryOp;

/// Lanes of a warp.
const LANES: u32 = 32;

/// Warps that share the rows of a function; `None` where iterations are those of one warp, or where a block stages
/// operands through shared memory (see [`super::block`]).
pub(super) fn warps(func: &Func) -> Emit<Option<u32>> {
    let grid = |s: &Stmt| matches!(s, Stmt::For { parallel: Some(Level::Grid), .. });
    if !func.body.stmts.iter().any(grid) || func.locals.iter().any(|l| l.space == Space::Shared) {
        return Ok(None);
    }
    let [threads, 1, 1] = func.launch.block else {
        return Err(Fault::unsupported("blocks of more than one dim"));
    };
    if !threads.is_multiple_of(LANES) || !(2 * LANES..=1024).contains(&threads) {
        return Err(Fault::unsupported(format!("blocks of {threads} threads")));
    }
    if let Some(m) = both(func) {
        return Err(Fault::unsupported(format!("{m:?} between the warps of a block")));
    }
    Ok(Some(threads / LANES))
}

/// Memory that a function both reads and writes.
fn both(func: &Func) -> Option<Mem> {
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    fn walk(block: &Block, reads: &mut Vec<Mem>, writes: &mut Vec<Mem>) {
        for s in &block.stmts {
            match s {
                Stmt::Let { inst: Inst::Load(a), .. } => reads.push(a.mem),
                Stmt::Let { inst: Inst::Gather { mem, .. }, .. } => reads.push(*mem),
                Stmt::Store { addr, .. } => writes.push(addr.mem),
                Stmt::Scatter { mem, .. } => writes.push(*mem),
                _ => {}
            }
            s.blocks().into_iter().for_each(|b| walk(b, reads, writes));
        }
    }
    walk(&func.body, &mut reads, &mut writes);
    writes.into_iter().find(|m| reads.contains(m))
}

impl Legaliser<'_> {
    /// What all warps make of their parts, in the order of the warps.
    pub(super) fn reduce_warps(&mut self, op: BinaryOp, parts: Vec<Val>) -> Vec<Val> {
        let Some(warp) = self.warp else { return parts };
        let (warps, rows) = (self.columns.warps(), parts.len() as u32);
        let Some(dtype) = parts.first().map(|v| self.b.dtype(*v)) else { return parts };
        let mem = self.b.local(dtype, Dim::from(i64::from(warps * rows)), Space::Shared);
        // warps may still be reading what an iteration before this one left here
        self.b.barrier(Level::Warp);
        for (r, part) in (0..).zip(&parts) {
            let addr = self.b.addr(mem, warp, r * i64::from(warps));
            self.b.store(addr, *part);
        }
        self.b.barrier(Level::Warp);
        (0..rows)
            .map(|r| {
                let of = |me: &mut Self, w: u32| {
                    let zero = me.b.index(0);
                    let addr = me.b.addr(mem, zero, i64::from(r * warps + w));
                    me.b.load_as(addr, Ty::scalar(dtype))
                };
                let all = (0..warps).map(|w| of(self, w)).collect();
                self.tree(op, all)
            })
            .collect()
    }
}
