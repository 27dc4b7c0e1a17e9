//! Text of loop IR.
//!
//! ```text
//! func @scale tile (x: f32 align 64, y: f32 align 64 writable, s0) {
//!   local l0: f32[16*s0] scratch
//!   launch trip s0 ns 12.5
//!   origins 4, 7
//!   %0 = const 16 : i64
//!   %1 = param s0 : i64
//!   for %2 in %3 .. %1 step 1 parallel thread {
//!     %4 = mul %2, %0 : i64
//!     %5 = load x[%4 + 8, row 16, col 1, valid %9, align 64] : f32[4,16]
//!     %6: f32[4,16] = for %7 in %3 .. %0 step 1 carries (%8: f32[4,16] = %5) {
//!       %10 = add %8, %5 : f32[4,16]
//!       yield %10
//!     }
//!     store %6, y[%4, row 16, col 1, align 64]
//!   }
//! }
//! ```
//!
//! Symbols are parameters of the function and print by number. A type is `f32` (1 x 1), `f32[16]` (1 x 16) or
//! `f32[4,16]`. Buffers print by name where the names are distinct, else as `b0`, `b1`, ...

mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use parse::parse;
pub use print::stmt_line;

use crate::loops::{BufParam, Level, Space};
use std::collections::BTreeSet;

const LEVELS: [(Level, &str); 6] = [
    (Level::Grid, "grid"),
    (Level::Cluster, "cluster"),
    (Level::Thread, "thread"),
    (Level::Warpgroup, "warpgroup"),
    (Level::Warp, "warp"),
    (Level::Lane, "lane"),
];
const SPACES: [(Space, &str); 3] =
    [(Space::Global, "global"), (Space::Shared, "shared"), (Space::Scratch, "scratch")];

/// True where buffers can be told apart by name.
fn names_are_distinct(bufs: &[BufParam]) -> bool {
    let mut seen = BTreeSet::new();
    let like_local = |s: &str| s.strip_prefix('l').is_some_and(|d| d.bytes().all(|b| b.is_ascii_digit()));
    bufs.iter().all(|b| !like_local(&b.name) && seen.insert(b.name.as_str()))
}
