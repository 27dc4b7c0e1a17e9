//! Rewrites of loop IR shared by all targets: folding of single instructions, removal of dead ones.

pub mod eval;
pub mod fold;
mod renumber;

pub use renumber::renumber;

use crate::loops::{Block, Func, Stmt, Val};

/// Drops pure statements whose values nobody uses, and carried values that only feed themselves.
pub fn drop_dead(func: &mut Func) {
    let mut used = vec![false; func.types.len()];
    let mut body = std::mem::take(&mut func.body);
    sweep(&mut body, &mut used);
    func.body = body;
}

/// Walks backwards: a value is used where a later kept statement, or a yield, names it.
fn sweep(block: &mut Block, used: &mut [bool]) {
    block.yields.iter().for_each(|v| used[v.0 as usize] = true);
    let mut kept = Vec::with_capacity(block.stmts.len());
    for mut stmt in std::mem::take(&mut block.stmts).into_iter().rev() {
        let is_used = |v: &Val| used[v.0 as usize];
        let keep = match &stmt {
            Stmt::Let { val, .. } => is_used(val),
            Stmt::For { results, body, .. } => results.iter().any(is_used) || has_effect(body),
            // a loop that may not end is an effect
            Stmt::While { .. } => true,
            Stmt::If { results, then, otherwise, .. } => {
                results.iter().any(is_used) || has_effect(then) || has_effect(otherwise)
            }
            _ => true,
        };
        if !keep {
            continue;
        }
        match &mut stmt {
            Stmt::For { body, .. } => sweep(body, used),
            Stmt::While { cond, body, .. } => {
                sweep(body, used);
                sweep(cond, used);
            }
            Stmt::If { then, otherwise, .. } => {
                sweep(then, used);
                sweep(otherwise, used);
            }
            _ => {}
        }
        stmt.for_each_operand(&mut |v| used[v.0 as usize] = true);
        kept.push(stmt);
    }
    kept.reverse();
    block.stmts = kept;
}

/// True where executing the block can be noticed from outside, values aside.
fn has_effect(block: &Block) -> bool {
    block.stmts.iter().any(|s| match s {
        Stmt::Let { .. } => false,
        Stmt::For { .. } | Stmt::If { .. } => s.blocks().into_iter().any(has_effect),
        _ => true,
    })
}
