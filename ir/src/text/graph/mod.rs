//! Text of the graph IR (`.ksg`): what [`print`] writes, [`parse`] reads back.
//!
//! ```text
//! symbol N entry 1..64 hint 8                  # hi `max`: Dim::LIMIT; `divisor 8` where it is not 1
//! const c0 f32[64, 3, 3, 3] random(seed=7, mean=0.0, std=0.05) "conv1.weight"
//! const c1 f32[64] splat(0.0)
//! const c2 i64[2] [1, -1]
//! const c3 f8e4m3fn[2] hex "3c40"
//!
//! graph @main(%x: f32[N, 3, 56, 56]) {
//!   %0 = const c0 : f32[64, 3, 3, 3]
//!   %1 = convolve %x, %0 stride=[1, 1] pad_lo=[1, 1] pad_hi=[1, 1] dilation=[1, 1] base_dilation=[1, 1] groups=1 acc=f32 : f32[N, 64, 56, 56] loc "conv1" Conv-11
//!   %y = tanh %1 : f32[N, 64, 56, 56] loc "act" Tanh-13
//!   return %y
//! }
//! ```
//!
//! A value is `%name`, or `%12` where it has no name; the k-th further value of one name in a graph is
//! `%name'k`. Names that are no identifiers are quoted: `%"conv1/out"`. Regions follow the op they belong
//! to: `region @then(%x: f32[4]) { ... return %0 }`. `return %3 as "y"` gives an output of the main graph
//! a name that is not its value's. Constants are a table because several ops may share one.

mod parse;
mod print;

pub use parse::parse;
pub use print::{Printer, print};

#[cfg(test)]
mod tests;
