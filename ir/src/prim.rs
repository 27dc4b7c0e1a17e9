//! The primitives: a small closed set. Every target lowers all of them through kernel IR.
//!
//! This file is THE definition of what exists; [`crate::infer`] gives each one its types and shapes,
//! `kernelsmith-interp` its meaning, `passes` its one lowering to kernel IR.

use crate::dtype::{DType, Scalar};
use crate::graph::Graph;
use crate::{ConstId, Dim, Sym};

/// Elementwise functions of one operand. Result type = operand type.
///
/// Floats of every type are computed as if in infinite precision and rounded once (the interpreter: in
/// `f64`). A NaN that is computed is quiet; its sign and payload mean nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum UnaryOp {
    /// Integers wrap (two's complement): `neg(MIN) == MIN`.
    Neg,
    /// `abs(MIN) == MIN`.
    Abs,
    Floor,
    Ceil,
    Trunc,
    /// To nearest, ties to even.
    RoundEven,
    Sqrt,
    Exp,
    Expm1,
    Log,
    Log1p,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Tanh,
    Erf,
    /// Bitwise complement; logical not on `bool`.
    Not,
}

/// Elementwise functions of two operands of equal type and shape. Result type = operand type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    /// Integers truncate towards zero; division by 0 gives 0, `MIN / -1` wraps to `MIN`.
    Div,
    /// Remainder with the sign of the dividend (C `fmod`, `%`); integer `x rem 0` gives 0.
    Rem,
    /// C `pow`. Integers wrap; a negative exponent gives the real value truncated towards zero
    /// (0 but for the bases 1 and -1; base 0 gives 0).
    Pow,
    /// (y, x), C `atan2`.
    Atan2,
    /// NaN propagates. Of zeros with different signs either may result.
    Min,
    /// NaN propagates. Of zeros with different signs either may result.
    Max,
    /// Bitwise; logical on `bool`.
    And,
    Or,
    Xor,
    /// A count that is negative or at least the width gives 0.
    Shl,
    /// Arithmetic for signed types, logical for unsigned ones. A count that is negative or at least the
    /// width gives 0, and -1 where a signed operand is negative.
    Shr,
}

/// Comparisons: operands of equal type, result `bool`. Any comparison with NaN but `Ne` is false.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum CmpOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Declared monoids of reductions. Identity: 0, 1, lowest, highest, true, false.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Monoid {
    /// f16/bf16 accumulate in f32 or wider and round once at the end (the interpreter: all floats in f64).
    /// Integers wrap.
    Sum,
    /// As `Sum`.
    Prod,
    /// NaN propagates; on `bool` this is "any".
    Max,
    /// NaN propagates; on `bool` this is "all".
    Min,
}

/// How `scatter` combines an update with what is there. All updates of one element count as one
/// reduction: floats may be accumulated wider and rounded once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Combine {
    /// The last update in row-major order of the indices wins.
    Set,
    Add,
    Mul,
    Min,
    Max,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PadMode {
    /// The second operand, a scalar, fills.
    Constant,
    /// Edge value repeated.
    Edge,
    /// Mirrored without repeating the edge, as often as needed (period 2 (d - 1); d = 1 repeats the element).
    Reflect,
    /// Periodic, as often as needed. The period is the whole operand, also where the other side crops.
    Wrap,
}

/// Convert modes of [`Prim::Convert`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ConvertMode {
    /// Float to integer truncates towards zero and saturates, NaN gives 0. Integer to narrower
    /// integer wraps. Integer or float to float rounds to nearest even once, overflowing to infinity, or to
    /// NaN where the type has no infinity (E4M3FN, both FNUZ, E8M0), or to the largest finite value
    /// where it has neither (E2M1). To bool: `x != 0` (NaN is true).
    /// A NaN stays one; E2M1 has none and gets -0, as in ONNX. E8M0 rounds to the nearest power of two, ties up,
    /// has 2^-127 for all that is smaller (zero included), and NaN for negative numbers.
    Plain,
    /// As `Plain`, but every out-of-range value becomes the nearest finite value of the type, infinities
    /// included. Integer to integer clamps.
    Saturate,
}

impl ConvertMode {
    /// Conversion to the type that a value has anyway changes nothing; saturation makes infinities finite.
    pub fn keeps(self, dtype: DType) -> bool {
        self == ConvertMode::Plain || !dtype.is_float()
    }
}

/// Per spatial dim of a convolution or window: output o reads input
/// `(o * stride + k * dilation - pad_lo) / base_dilation` where that is exact and in bounds.
/// Elsewhere a convolution reads 0. Of operands that are not finite it is not said which of these zeros they are multiplied
/// by, so results of windows beside theirs may be NaN too (forms with missing taps, Winograd's; the interpreter: by
/// those of the definition alone).
/// Result extent: `(D + pad_lo + pad_hi - K) floordiv stride + 1` with `D` the input spread by
/// `base_dilation` (0 if empty) and `K = (k - 1) * dilation + 1`; never negative.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct WindowDim {
    pub stride: i64,
    /// May be negative (crops).
    pub pad_lo: Dim,
    pub pad_hi: Dim,
    pub dilation: i64,
    /// Zeros inserted between input elements, plus one (1 = none): transposed convolutions.
    pub base_dilation: i64,
}

impl WindowDim {
    pub fn unit() -> WindowDim {
        WindowDim { stride: 1, pad_lo: Dim::from(0), pad_hi: Dim::from(0), dilation: 1, base_dilation: 1 }
    }
}

/// One operation of the graph IR.
#[derive(Clone, PartialEq, Debug)]
pub enum Prim {
    // ---- sources -------------------------------------------------------------------------
    /// () -> T[shape of the constant]
    Const(ConstId),
    /// () -> dtype[shape]; element value = its index along `axis`, wrapped or rounded to the type.
    /// Integer or float dtype.
    Iota {
        dtype: DType,
        shape: Vec<Dim>,
        axis: usize,
    },
    /// () -> i64[]; the value of a size.
    DimValue(Dim),
    /// (i64[] or i64[1]) -> (); at run time gives symbol `sym` the value of the operand; a value
    /// outside the symbol's range is a run-time error. Later ops may use `sym` in their shapes.
    BindDim(Sym),
    /// (u64[] key) -> u64[shape]; counter-based: element i = SplitMix64 finaliser of
    /// `key + (i + 1) * 0x9E3779B97F4A7C15`, all modulo 2^64.
    RandomBits {
        shape: Vec<Dim>,
    },

    // ---- elementwise ---------------------------------------------------------------------
    Unary(UnaryOp),
    Binary(BinaryOp),
    Cmp(CmpOp),
    /// (bool[s], T[s], T[s]) -> T[s]
    Select,
    Convert {
        to: DType,
        mode: ConvertMode,
    },
    /// Same bytes; `to` has the same storage size. A NaN of a float type below 32 bits may become another NaN first.
    Bitcast {
        to: DType,
    },

    // ---- movement ------------------------------------------------------------------------
    /// Row-major reshape; the element counts are equal (proved, or checked when shapes are bound).
    Reshape {
        shape: Vec<Dim>,
    },
    /// Result dim i = operand dim `perm[i]`.
    Transpose {
        perm: Vec<usize>,
    },
    /// Operand dim i becomes result dim `dims[i]` (strictly increasing); its extent is equal to the
    /// result's, or 1, or (not provably either) a stride that is 0 where the extent is 1 at run time.
    Broadcast {
        shape: Vec<Dim>,
        dims: Vec<usize>,
    },
    /// Result `i` reads operand `start + i * step`; `size` is the result extent. All by dim. Every index
    /// read lies inside; a slice without elements reads nothing, wherever it starts.
    Slice {
        start: Vec<Dim>,
        size: Vec<Dim>,
        step: Vec<i64>,
    },
    /// (T[...], T[] fill) -> T; by dim `lo`/`hi` may be negative (crop), `interior` fill values
    /// between elements (before the crop). Modes other than `Constant` have no fill operand and no interior;
    /// they index the whole operand: result o reads `o - lo`, brought inside by the mode.
    Pad {
        lo: Vec<Dim>,
        hi: Vec<Dim>,
        interior: Vec<i64>,
        mode: PadMode,
    },
    Concat {
        axis: usize,
    },
    /// (T[s] base, T[u] update) -> T[s]: `base` with `update` written at `start`, where it fits.
    UpdateSlice {
        start: Vec<Dim>,
    },

    // ---- indexed -------------------------------------------------------------------------
    /// (T[d0..], I[idx...]) -> T[d0..d(axis-1), idx..., d(axis+1)..]; I is i32 or i64. An index
    /// outside `0..d(axis)` is a run-time error that names the node; an empty result reads nothing.
    Gather {
        axis: usize,
    },
    /// (T[d0, inner...] base, I[n] indices, T[n, inner...] updates) -> T[d0, inner...].
    /// Updates apply in order of n. An index out of range is a run-time error.
    Scatter {
        combine: Combine,
    },

    // ---- reductions ----------------------------------------------------------------------
    /// Reduces `axes` (sorted, distinct) and drops them.
    Reduce {
        monoid: Monoid,
        axes: Vec<usize>,
    },
    /// -> i64; index of the extreme along `axis`, which is dropped and not empty. NaN counts as the extreme.
    /// Of equal ones (zeros of both signs are equal) the first, or the last.
    ArgReduce {
        max: bool,
        axis: usize,
        last: bool,
    },
    /// Windows over the trailing `window.len()` dims; positions outside the input are identity.
    WindowReduce {
        monoid: Monoid,
        size: Vec<i64>,
        window: Vec<WindowDim>,
    },
    /// Running reduction along `axis`; `exclusive` leaves out the element itself, `reverse` runs from the end.
    Cumulative {
        monoid: Monoid,
        axis: usize,
        exclusive: bool,
        reverse: bool,
    },

    // ---- contractions --------------------------------------------------------------------
    /// (A, B) -> acc type. Result dims: batch dims (in order of `batch`), free dims of A, free dims
    /// of B. Integers (8-bit, any signs) accumulate exactly in i32; halves in f32, rounded once.
    Contract {
        batch: Vec<(usize, usize)>,
        reduce: Vec<(usize, usize)>,
        acc: DType,
    },
    /// (x T[N, G*Ci, spatial...], w T[G*Co, Ci, kernel...]) -> acc[N, G*Co, out...].
    Convolve {
        window: Vec<WindowDim>,
        groups: usize,
        acc: DType,
    },

    // ---- selection -----------------------------------------------------------------------
    /// n operands of one shape, sorted by the first along `axis`, stably (also where descending). NaN sorts
    /// as largest; zeros of both signs are equal.
    Sort {
        axis: usize,
        descending: bool,
    },
    /// (T[...]) -> (T[.. k ..], i64[.. k ..]) along `axis`, ordered as by `Sort`, largest first or smallest
    /// first; ties to the lower index. `k` is at most the extent.
    TopK {
        axis: usize,
        k: Dim,
        largest: bool,
    },
    /// (bool[n]) -> i64[sym]: indices of the true elements, ascending. Defines `sym` in 0..=n.
    Compact {
        sym: Sym,
    },

    // ---- control -------------------------------------------------------------------------
    /// (bool[] cond, captures...) -> results; regions: then, else; region inputs = captures.
    /// Where branch shapes differ, result dims are value symbols listed in `defines`.
    If {
        defines: Vec<Sym>,
    },
    /// ONNX's Loop. Operands: i64[] trip count (i64::MAX: none), bool[] condition, `carried` initial
    /// values, captures. One region with inputs (i64[] iteration, carried, captures) and outputs
    /// (bool[] condition, carried, scan outputs). Results: carried finals, then stacked scan outputs
    /// (new leading dim = number of iterations; all of one shape. Without an iteration the other extents are
    /// those of the body's type at the initial carried sizes, 0 where only the body could tell).
    /// A negative trip count is 0. `carried_syms`: symbols that occur in the carried region
    /// inputs' types, rebound at each iteration; `defines`: value symbols of the results.
    Loop {
        carried: usize,
        carried_syms: Vec<Sym>,
        defines: Vec<Sym>,
    },
    /// A composite: named, attributed, never opaque; one region holds its body.
    Call {
        name: String,
        attrs: Vec<(String, Attr)>,
    },
    /// (bool[]) -> (); false at run time is an error with this message.
    Assert {
        message: String,
    },
    /// A host function of the closed table: what is not tensor arithmetic.
    Host {
        func: HostFn,
        defines: Vec<Sym>,
    },
}

/// Attribute of a composite call.
#[derive(Clone, PartialEq, Debug)]
pub enum Attr {
    Int(i64),
    Float(f64),
    Ints(Vec<i64>),
    Str(String),
}

/// The closed table of host functions, each with the reason why it is not tensor arithmetic.
#[derive(Clone, PartialEq, Debug)]
pub enum HostFn {
    /// (boxes f32[B, N, 4], scores f32[B, C, N], max i64[], iou f32[], score f32[]) -> i64[sym, 3].
    /// Greedy suppression: each choice depends on all earlier ones, data-dependent output size.
    NonMaxSuppression { center_point_box: bool },
    /// (u8[n] file) -> u8[height, width, 3, or 1 where `pixels` is grey]; defines height and width. JPEG, JPEG 2000,
    /// PNG, BMP, TIFF, WebP, PNM. Entropy decoders are state machines over bits, not arithmetic on tensors. A file
    /// that is none of these, or broken, is a run-time error.
    DecodeImage { pixels: Pixels },
}

/// Order of the channels of a decoded image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Pixels {
    Rgb,
    Bgr,
    /// Luma by ITU-R 601.
    Grey,
}

impl Pixels {
    pub fn channels(self) -> i64 {
        if self == Pixels::Grey { 1 } else { 3 }
    }
}

impl HostFn {
    pub fn name(&self) -> &'static str {
        match self {
            HostFn::NonMaxSuppression { .. } => "non_max_suppression",
            HostFn::DecodeImage { .. } => "decode_image",
        }
    }
}

impl Prim {
    /// The mnemonic of the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Prim::Const(_) => "const",
            Prim::Iota { .. } => "iota",
            Prim::DimValue(_) => "dim_value",
            Prim::BindDim(_) => "bind_dim",
            Prim::RandomBits { .. } => "random_bits",
            Prim::Unary(op) => op.name(),
            Prim::Binary(op) => op.name(),
            Prim::Cmp(op) => op.name(),
            Prim::Select => "select",
            Prim::Convert { .. } => "convert",
            Prim::Bitcast { .. } => "bitcast",
            Prim::Reshape { .. } => "reshape",
            Prim::Transpose { .. } => "transpose",
            Prim::Broadcast { .. } => "broadcast",
            Prim::Slice { .. } => "slice",
            Prim::Pad { .. } => "pad",
            Prim::Concat { .. } => "concat",
            Prim::UpdateSlice { .. } => "update_slice",
            Prim::Gather { .. } => "gather",
            Prim::Scatter { .. } => "scatter",
            Prim::Reduce { .. } => "reduce",
            Prim::ArgReduce { .. } => "arg_reduce",
            Prim::WindowReduce { .. } => "window_reduce",
            Prim::Cumulative { .. } => "cumulative",
            Prim::Contract { .. } => "contract",
            Prim::Convolve { .. } => "convolve",
            Prim::Sort { .. } => "sort",
            Prim::TopK { .. } => "top_k",
            Prim::Compact { .. } => "compact",
            Prim::If { .. } => "if",
            Prim::Loop { .. } => "loop",
            Prim::Call { .. } => "call",
            Prim::Assert { .. } => "assert",
            Prim::Host { .. } => "host",
        }
    }

    /// Symbols that executing this op gives a value.
    pub fn defines(&self) -> &[Sym] {
        match self {
            Prim::BindDim(s) | Prim::Compact { sym: s } => std::slice::from_ref(s),
            Prim::If { defines } | Prim::Loop { defines, .. } | Prim::Host { defines, .. } => defines,
            _ => &[],
        }
    }

    /// Every size expression among the attributes.
    pub fn for_each_dim<'a>(&'a self, mut f: impl FnMut(&'a Dim)) {
        match self {
            Prim::Iota { shape, .. }
            | Prim::RandomBits { shape }
            | Prim::Reshape { shape }
            | Prim::Broadcast { shape, .. } => shape.iter().for_each(f),
            Prim::DimValue(d) | Prim::TopK { k: d, .. } => f(d),
            Prim::Slice { start, size, .. } => start.iter().chain(size).for_each(f),
            Prim::Pad { lo, hi, .. } => lo.iter().chain(hi).for_each(f),
            Prim::UpdateSlice { start } => start.iter().for_each(f),
            Prim::WindowReduce { window, .. } | Prim::Convolve { window, .. } => {
                window.iter().flat_map(|w| [&w.pad_lo, &w.pad_hi]).for_each(f);
            }
            Prim::Const(_)
            | Prim::BindDim(_)
            | Prim::Unary(_)
            | Prim::Binary(_)
            | Prim::Cmp(_)
            | Prim::Select
            | Prim::Convert { .. }
            | Prim::Bitcast { .. }
            | Prim::Transpose { .. }
            | Prim::Concat { .. }
            | Prim::Gather { .. }
            | Prim::Scatter { .. }
            | Prim::Reduce { .. }
            | Prim::ArgReduce { .. }
            | Prim::Cumulative { .. }
            | Prim::Contract { .. }
            | Prim::Sort { .. }
            | Prim::Compact { .. }
            | Prim::If { .. }
            | Prim::Loop { .. }
            | Prim::Call { .. }
            | Prim::Assert { .. }
            | Prim::Host { .. } => {}
        }
    }
    /// As [`Prim::for_each_dim`], to replace them.
    pub fn for_each_dim_mut(&mut self, mut f: impl FnMut(&mut Dim)) {
        match self {
            Prim::Iota { shape, .. }
            | Prim::RandomBits { shape }
            | Prim::Reshape { shape }
            | Prim::Broadcast { shape, .. } => shape.iter_mut().for_each(f),
            Prim::DimValue(d) | Prim::TopK { k: d, .. } => f(d),
            Prim::Slice { start, size, .. } => start.iter_mut().chain(size).for_each(f),
            Prim::Pad { lo, hi, .. } => lo.iter_mut().chain(hi).for_each(f),
            Prim::UpdateSlice { start } => start.iter_mut().for_each(f),
            Prim::WindowReduce { window, .. } | Prim::Convolve { window, .. } => {
                window.iter_mut().flat_map(|w| [&mut w.pad_lo, &mut w.pad_hi]).for_each(f);
            }
            Prim::Const(_)
            | Prim::BindDim(_)
            | Prim::Unary(_)
            | Prim::Binary(_)
            | Prim::Cmp(_)
            | Prim::Select
            | Prim::Convert { .. }
            | Prim::Bitcast { .. }
            | Prim::Transpose { .. }
            | Prim::Concat { .. }
            | Prim::Gather { .. }
            | Prim::Scatter { .. }
            | Prim::Reduce { .. }
            | Prim::ArgReduce { .. }
            | Prim::Cumulative { .. }
            | Prim::Contract { .. }
            | Prim::Sort { .. }
            | Prim::Compact { .. }
            | Prim::If { .. }
            | Prim::Loop { .. }
            | Prim::Call { .. }
            | Prim::Assert { .. }
            | Prim::Host { .. } => {}
        }
    }

    /// True where the op must stay although nobody uses its results.
    pub fn has_effect(&self) -> bool {
        matches!(self, Prim::BindDim(_) | Prim::Assert { .. })
    }
}

macro_rules! names {
    ($ty:ident { $($v:ident $n:literal),* $(,)? }) => {
        impl $ty {
            pub const ALL: &'static [$ty] = &[$($ty::$v),*];
            pub fn name(self) -> &'static str {
                match self { $($ty::$v => $n),* }
            }
            pub fn parse(s: &str) -> Option<$ty> {
                match s { $($n => Some($ty::$v),)* _ => None }
            }
        }
    };
}

names!(UnaryOp {
    Neg "neg", Abs "abs", Floor "floor", Ceil "ceil", Trunc "trunc", RoundEven "round_even", Sqrt "sqrt",
    Exp "exp", Expm1 "expm1", Log "log", Log1p "log1p", Sin "sin", Cos "cos", Tan "tan", Asin "asin",
    Acos "acos", Atan "atan", Sinh "sinh", Cosh "cosh", Asinh "asinh", Acosh "acosh", Atanh "atanh",
    Tanh "tanh", Erf "erf", Not "not",
});
names!(BinaryOp {
    Add "add", Sub "sub", Mul "mul", Div "div", Rem "rem", Pow "pow", Atan2 "atan2", Min "min", Max "max",
    And "and", Or "or", Xor "xor", Shl "shl", Shr "shr",
});
names!(CmpOp { Eq "eq", Ne "ne", Lt "lt", Le "le", Gt "gt", Ge "ge" });
names!(Monoid { Sum "sum", Prod "prod", Max "max", Min "min" });
names!(Combine { Set "set", Add "add", Mul "mul", Min "min", Max "max" });
names!(PadMode { Constant "constant", Edge "edge", Reflect "reflect", Wrap "wrap" });
names!(Pixels { Rgb "rgb", Bgr "bgr", Grey "grey" });
names!(ConvertMode { Plain "plain", Saturate "saturate" });

impl Monoid {
    /// The identity of the monoid on `dtype`.
    pub fn identity(self, dtype: DType) -> Scalar {
        let range = dtype.int_range();
        match (self, range) {
            (Monoid::Sum, _) => Scalar::zero(dtype),
            (Monoid::Prod, _) => Scalar::of(dtype, 1.0),
            (Monoid::Max, None) => Scalar::Float(f64::NEG_INFINITY),
            (Monoid::Min, None) => Scalar::Float(f64::INFINITY),
            (Monoid::Max, Some((lo, _))) => Scalar::Int(lo),
            (Monoid::Min, Some((_, hi))) => Scalar::Int(hi),
        }
    }
    /// The binary function of the monoid.
    pub fn op(self) -> BinaryOp {
        match self {
            Monoid::Sum => BinaryOp::Add,
            Monoid::Prod => BinaryOp::Mul,
            Monoid::Max => BinaryOp::Max,
            Monoid::Min => BinaryOp::Min,
        }
    }
}

/// A region of a control op or the body of a composite.
pub type Region = Graph;
