//! Legalisation: tile form to machine form, for targets whose registers are scalars and vectors.
//!
//! # Machine form: the contract between legalisation and the emitters
//!
//! **Function.** `body` holds `let`s without loads, then exactly one `for` with `parallel: Some(Thread)`, `lo` the
//! constant 0, `step` 1, no carries; its `hi` equals the launch's `trip`. The emitter runs it for the range
//! `begin..end` that it gets as arguments and ignores `lo` and `hi`. No other loop is parallel; `Barrier` and
//! `Pipe` do not occur. All loads and stores happen inside the loop. Distinct buffers do not overlap.
//!
//! **Values.** Every value is a scalar (1 x 1) or a vector (1 x L). All vectors of a function have the same number of
//! lanes L = `TargetDesc::lanes(4)`, whatever their element type: 64-bit elements take two registers, which LLVM
//! splits itself and an emitter of 128-bit code splits. Value types are `i32 u32 i64 u64 f32 f64 bool`; a bool
//! vector is a mask. `u32` and `u64` are registers on which division, remainder, right shift, comparison, min, max and
//! conversion are unsigned.
//!
//! **Instructions that occur** (operands of element-wise ones have the type of the result unless said otherwise):
//!
//! | instruction | types | remarks |
//! |---|---|---|
//! | `Const` | all | scalar or vector; costs nothing to repeat: materialise where used |
//! | `Sym` | i64 scalar | |
//! | `Iota { along_cols: true }` | i32, i64 vector | 0, 1, ... L-1 |
//! | `Splat` | scalar -> vector | all types, bool too |
//! | `Unary` | f32, f64: `Neg Abs Floor Ceil Trunc RoundEven Sqrt`; ints, bool: `Not` | native instructions only |
//! | `Binary` | floats: `Add Sub Mul Div`; ints: `Add Sub Mul And Or Xor Shl Shr Min Max Div Rem`; bool: `And Or Xor` | `Shl`, `Shr`: counts in `0..width`. `Div`, `Rem`: the divisor is not 0 and the quotient does not overflow |
//! | `Fma` | f32, f64 | only where `TargetDesc::has_fma` |
//! | `Cmp` | ints, floats -> bool | any comparison with NaN but `Ne` is false |
//! | `Select` | all; mask is bool of the same shape | |
//! | `Convert(Plain)` | between i32 u32 i64 u64 f32 f64 | float to integer saturates, NaN gives 0 |
//! | `Bitcast` | 32 <-> 32 bits, 64 <-> 64 bits | |
//! | `Load` | see below | |
//! | `Gather` | vector; index i64 vector; types as `Load` | masked-off lanes are not accessed and give 0 |
//! | `Extract(v, 0, lane)` | vector -> scalar | bool too |
//! | `Insert` | | bool does not occur |
//! | `Shuffle` | vectors | bool does not occur |
//! | `TileOp` | `"vpdpbusd"`: acc i32 vector, a u32 or i32 vector (4 unsigned bytes a lane), b i32 vector (4 signed bytes); `"vdpbf16ps"`: acc f32, a and b i32 vectors (2 bf16 a lane) | only where `TargetDesc::features` has `avx512vnni` / `avx512bf16` |
//!
//! `ReduceCols`, `ReduceRows`, float `Min`/`Max` (NaN propagates: they become comparisons and selects, `select(a > b, a, b)`
//! being one `max` instruction), math functions, float `Rem`, integer `Neg`/`Abs` do not occur.
//!
//! **Loads and stores** of a scalar, or of a vector with `col` stride `Const(1)` (`row` is irrelevant). The memory type is that of
//! the buffer or local array. Allowed pairs:
//!
//! | memory type | value type of a load | value type of a store |
//! |---|---|---|
//! | i32 u32 i64 u64 f32 f64 | the same, or the other of its size (i32/u32/f32, i64/u64/f64: same bits) | likewise |
//! | i8 i16 i4 i2 | i32 (sign extended; i4 and i2 occupy a byte, sign extended) | i32, u32 (low byte or low 16 bits) |
//! | u8 u16 u4 u2 | i32, u32 (zero extended) | i32, u32 (low bits) |
//! | f16 bf16 f8* f4* | u32 (bits, zero extended) | i32, u32 (low bits) |
//! | f16 | f32 where `TargetDesc::has_f16` | f32 where `has_f16` (to nearest even) |
//! | bool | bool (byte != 0) | bool (byte 0 or 1) |
//!
//! `cols_valid`, on vectors only, is an i64 scalar that is already in `0..=L`: only so many leading elements are
//! accessed, others read as 0. It is often a constant. `align` bounds the alignment of the vector's first element from below.
//!
//! **Statements**: `Let`, `For` (sequential), `While`, `If`, `Store`, `Scatter` (vectors; lanes are written in ascending order, a later
//! one wins), `Check` (i64 `value` and `limit`).
//!
//! Masks of a scalar `If`, `Check` and the condition of `While` are bool scalars.
