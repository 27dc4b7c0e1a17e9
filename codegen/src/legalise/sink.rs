//! Into the parallel loop with what legalisation expands to control flow in front of it.
//!
//! Values that do not depend on the loop are computed in front of it, where machine form has nothing but
//! definitions. Some functions become loops and branches (`pow` of integers, the remainder of floats, sines of large
//! arguments): these, and what depends on them, are computed in each iteration instead.

use ir::loops::{Func, Stmt, Val};
use ir::loops_opt::renumber;
use std::collections::HashSet;

/// Moves what is more than a definition in front of the parallel loop, and the definitions that depend on it, to the
/// beginning of its body. The loop's bounds are sizes and depend on neither.
pub fn sink(func: &mut Func) {
    let Some(Stmt::For { .. }) = func.body.stmts.last() else { return };
    let Some(mut parallel) = func.body.stmts.pop() else { return };
    let mut moved: HashSet<Val> = HashSet::new();
    let (mut inside, mut front) = (Vec::new(), Vec::new());
    for stmt in func.body.stmts.drain(..) {
        let mut goes = !matches!(stmt, Stmt::Let { .. });
        stmt.for_each_operand(&mut |v| goes |= moved.contains(&v));
        if goes {
            moved.extend(stmt.results());
            inside.push(stmt);
        } else {
            front.push(stmt);
        }
    }
    func.body.stmts = front;
    if let Stmt::For { body, .. } = &mut parallel {
        body.stmts.splice(0..0, inside);
    }
    func.body.stmts.push(parallel);
    if !moved.is_empty() {
        renumber(func);
    }
}
