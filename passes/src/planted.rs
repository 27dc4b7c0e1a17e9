//! Faults that tests plant and `kernelsmith bisect` has to find. Part of builds with the feature `planted-faults`
//! only, which nothing but these tests asks for.

use crate::schedule::Schedule;
use ir::loops::{Block, Func, Stmt};
use ir::{Dim, Layout};

/// A fault, in the words of what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Constant folding subtracts the wrong way round.
    Fold,
    /// `0 - x` is simplified to `x`.
    Simplify,
    /// Two ops are one if they differ in attributes only.
    Cse,
    /// A slice that is computed inside of its consumer begins one element early.
    Pull,
    /// Readers take rows for columns in values with channels last.
    Layout,
    /// The last tile of a row is stored whole, whatever is left of the row.
    Schedule,
    /// A buffer may be overwritten by the step that reads it last.
    Place,
}

impl Fault {
    pub const ALL: [Fault; 7] =
        [Fault::Fold, Fault::Simplify, Fault::Cse, Fault::Pull, Fault::Layout, Fault::Schedule, Fault::Place];
}

/// The start of a slice, one element early where that is within the operand.
pub(crate) fn early(start: &[Dim], wanted: bool) -> Vec<Dim> {
    let early =
        |s: &Dim| if wanted && s.as_const().is_some_and(|s| s > 0) { s - Dim::from(1) } else { s.clone() };
    start.iter().map(early).collect()
}

/// Channels last, rows and columns in each other's place.
pub(crate) fn confuse(layout: &mut Layout) {
    if !layout.is_row_major() && layout.frags.len() == 4 {
        layout.frags.swap(1, 2);
    }
}

/// A function whose stores do not count the columns that are left.
pub(crate) fn without_masks(lowered: (Schedule, Func), planted: Option<Fault>) -> (Schedule, Func) {
    fn unmask(block: &mut Block) {
        for s in &mut block.stmts {
            match s {
                Stmt::Store { addr, .. } => addr.cols_valid = None,
                Stmt::For { body, .. } => unmask(body),
                Stmt::While { cond, body, .. } => {
                    unmask(cond);
                    unmask(body);
                }
                Stmt::If { then, otherwise, .. } => {
                    unmask(then);
                    unmask(otherwise);
                }
                _ => {}
            }
        }
    }
    let (schedule, mut func) = lowered;
    if planted == Some(Fault::Schedule) {
        unmask(&mut func.body);
    }
    (schedule, func)
}
