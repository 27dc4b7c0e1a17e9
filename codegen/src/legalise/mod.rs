//! Legalisation: tile form to machine form, for targets whose registers are scalars and vectors.
//!
//! # Machine form: the contract between legalisation and the emitters
//!
//! **Function.** `body` holds `let`s without loads, then exactly one `for` with `parallel: Some(Thread)`, `lo` the
//! constant 0, `step` 1, no carries; its `hi` equals the launch's `trip`. The emitter runs it for the range
//! `begin..end` that it gets as arguments and ignores `lo` and `hi`. No other loop is parallel; `Barrier` and
//! `Pipe` do not occur. All loads and stores happen inside the loop. Distinct buffers do not overlap.
//!
//! **Blocks of warps** (only where the tile form's parallel loop is one over the grid; the emitters for CPUs refuse them): the loop is
//! `parallel: Some(Grid)`, and its body holds `let`s without loads, then exactly one `for` with `parallel: Some(Warp)` over the warps of
//! the block (`launch.block[0]` threads), which all run at once. Local arrays are shared ones of known size; `Barrier(Warp)`
//! stands where every warp comes by. The address of a vector access may have a vector for its index, a place for each
//! lane, then `row` and `col` are 0, and `cols_valid` is a mask: the lanes that take part.
//!
//! **Values.** Every value is a scalar (1 x 1) or a vector (1 x L). All vectors of a function have the same number of
//! lanes L = `TargetDesc::lanes(4)`, whatever their element type: 64-bit elements take two registers, which LLVM
//! splits itself and an emitter of 128-bit code splits. Value types are `i32 u32 i64 u64 f32 f64 bool`; a bool
//! vector is a mask. `u32` and `u64` are registers on which division, remainder, right shift, comparison, min, max and
//! conversion are unsigned. Local arrays, symbols and buffers are those of the tile form, in the same order.
//!
//! **Instructions that occur** (operands of element-wise ones have the type of the result unless said otherwise). They mean
//! what `ir::prim` says, for every operand value: division by 0 gives 0, shifts by the width or more give 0, and so on.
//!
//! | instruction | types | remarks |
//! |---|---|---|
//! | `Const` | all | scalar or vector; costs nothing to repeat: materialise where used |
//! | `Sym` | i64 scalar | |
//! | `Iota { along_cols: true }` | i32 u32 i64 u64 vector | 0, 1, ... L-1 |
//! | `Splat` | scalar -> vector | all types, bool too |
//! | `Unary` | f32, f64: `Neg Abs Floor Ceil Trunc RoundEven Sqrt`; ints, bool: `Not` | native instructions only |
//! | `Binary` | floats: `Add Sub Mul Div Min Max`; ints: `Add Sub Mul Div Rem And Or Xor Shl Shr Min Max`; bool: `And Or Xor` | float `Min`, `Max`: NaN propagates |
//! | `Fma` | f32, f64 | only where `TargetDesc::has_fma` |
//! | `Cmp` | ints, floats -> bool | any comparison with NaN but `Ne` is false |
//! | `Select` | all; mask is bool of the same shape | |
//! | `Convert(Plain)` | between i32 u32 i64 u64 f32 f64 | float to integer saturates, NaN gives 0 |
//! | `Bitcast` | 32 <-> 32 bits, 64 <-> 64 bits | |
//! | `Load` | see below | |
//! | `Gather` | index i64 vector or scalar; types as `Load` | masked-off lanes are not accessed and give 0 |
//! | `ReduceCols` | vector -> scalar, all types; bool: `Max` is any, `Min` is all | order of lanes is free, but fixed for one emitter |
//! | `Extract(v, 0, lane)` | vector -> scalar | bool too |
//! | `Insert` | | bool does not occur |
//! | `Shuffle` | vectors | bool does not occur |
//! | `TileOp` | `"vpdpbusd"`: acc i32, a i32 (4 unsigned bytes a lane), b i32 (4 signed bytes a lane), all vectors; `"vdpbf16ps"`: acc f32, a and b i32 (2 bf16 a lane, the even one in the low half) | only where `TargetDesc::features` has `+avx512vnni` / `+avx512bf16`; expanded elsewhere; `"vscalef"` (`ir::loops::SCALE`) on floats where `TargetDesc::scales` |
//!
//! **Matrices.** Where `TargetDesc::has_matrices`, values may also be i32 or f32 matrices of 2 to 16 rows and 2 to 16 columns: constants
//! (0), `Load`s with any row stride, and `TileOp` `"tdpbusd"` or `"tdpbf16ps"` (acc R x 16 += a R x K times b K x 16, words as in
//! `"vpdpbusd"` and `"vdpbf16ps"`). Loops carry them and `Store` writes them. Each of them but constants is used as an accumulator, carried or yielded
//! once and for all, so that products can be in place, and what is read is used in its own block.
//!
//! Math functions, float `Rem`, integer `Neg`/`Abs`/`Pow`, `ReduceRows` do not occur.
//!
//! **Loads and stores** of a scalar, or of a vector with `col` stride `Const(1)` (`row` is irrelevant). Where lanes are those of GPU warps
//! (`TargetDesc::simt`) also with `Const(4)`: four neighbouring elements of each lane are in four vectors, and `align` says how
//! many of them may be read or written at once. The memory type is that of
//! the buffer or local array. Allowed pairs:
//!
//! | memory type | value type of a load | value type of a store |
//! |---|---|---|
//! | i32 u32 i64 u64 f32 f64 | the same | the same |
//! | i8 i16 i4 i2 | i32 (sign extended; i4 and i2 occupy a byte, sign extended) | i32 (low byte or low 16 bits) |
//! | u8 u16 u4 u2 | i32 (zero extended) | i32 (low bits) |
//! | f16 bf16 f8* f4* | u32 (bits, zero extended) | u32 (low bits) |
//! | f16 | f32 where `TargetDesc::has_f16` | f32 where `has_f16` (to nearest even) |
//! | bool | bool (byte != 0) | bool (byte 0 or 1) |
//!
//! `cols_valid` is an i64 scalar that is already in `0..=cols`: only so many leading elements are accessed, others read
//! as 0. It is often a constant; a scalar access has it too (then it is 0 or 1). `rows_valid` does not occur. `align` bounds the alignment of
//! the first element from below, in bytes.
//!
//! **Statements**: `Let`, `For` (sequential), `While`, `If`, `Store`, `Scatter` (lanes are written in ascending order, a later
//! one wins; a scalar one may have a mask), `Prefetch`, `Check` (i64 `value` and `limit`). Conditions are bool scalars.

mod block;
mod columns;
mod math;
mod matrix;
mod memory;
mod multiples;
mod narrow;
mod rows;
mod sink;
mod spread;
#[cfg(test)]
mod tests;
mod tile;

use crate::{CodegenError, Fault};
use ir::Math;
use ir::loops::{Form, Func};
use ir::target::TargetDesc;

/// What the compile request wants of arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Rounds f16 and bf16 values after every operation, as the primitives are defined: results do not depend on what
    /// was fused. Else they stay f32 until stored or converted.
    pub strict_halves: bool,
    /// Math functions that are expanded, in order of occurrence; the others stay what they are, which no emitter
    /// takes: for finding a wrong one. `None`: all.
    pub expansions: Option<usize>,
    /// The expansion of `erf` is off by a thousandth.
    #[cfg(feature = "planted-faults")]
    pub wrong_erf: bool,
}

impl From<Math> for Options {
    fn from(math: Math) -> Options {
        Options { strict_halves: math != Math::Bf16, ..Options::default() }
    }
}

/// Turns a function in tile form into machine form for `target`, with default [`Options`].
///
/// # Errors
/// [`Fault::Invalid`] where the function breaks the contract of tile form, [`Fault::Unsupported`] where it
/// uses what only other kinds of target have (barriers, pipes, other levels than threads).
pub fn legalise(func: &Func, target: &TargetDesc) -> Result<Func, CodegenError> {
    legalise_with(func, target, Options::default())
}

/// As [`legalise`].
pub fn legalise_with(func: &Func, target: &TargetDesc, options: Options) -> Result<Func, CodegenError> {
    legalise_counting(func, target, options).map(|(func, _)| func)
}

/// As [`legalise_with`]; also the names of the math functions that it met, in order, expanded or not.
///
/// # Errors
/// As [`legalise`].
pub fn legalise_counting(
    func: &Func,
    target: &TargetDesc,
    options: Options,
) -> Result<(Func, Vec<&'static str>), CodegenError> {
    if func.form == Form::Machine {
        return Err(Fault::invalid("already in machine form").of(&func.name));
    }
    tile::Legaliser::new(func, target, options).run().map_err(|f| f.of(&func.name))
}
