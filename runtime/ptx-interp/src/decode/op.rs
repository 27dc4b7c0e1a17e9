//! Decoded instructions: names are slots, forms are function pointers, nothing is left to look up.

use crate::num::formats::Round;
use crate::num::lanes::*;
use crate::syntax::types::{Space, Ty};

/// Where a value lives in a warp's register files. Immediates and special registers have slots too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    R32(u32),
    R64(u32),
    None,
}

/// A predicate read, possibly negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredSrc {
    pub slot: u32,
    pub negated: bool,
}

/// How a predicate result joins another predicate (`setp.lt.and`), or two predicates each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    pub fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Logic::And => a & b,
            Logic::Or => a | b,
            Logic::Xor => a ^ b,
        }
    }
}

/// Ordering of a memory instruction (PTX ISA §8.3-8.4, §9.7.9.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sem {
    /// Plain loads and stores.
    Weak,
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

impl Sem {
    pub fn acquires(self) -> bool {
        matches!(self, Sem::Acquire | Sem::AcqRel)
    }

    pub fn releases(self) -> bool {
        matches!(self, Sem::Release | Sem::AcqRel)
    }
}

/// `[base + offset]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addr {
    pub base: Slot,
    pub offset: i64,
}

/// A load or store: `regs[..n]` hold the elements of a vector.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    pub space: Space,
    pub addr: Addr,
    pub ty: Ty,
    pub n: u32,
    pub regs: [Slot; 8],
    pub sem: Sem,
    /// `.nc`: the bytes must not be written while the kernel runs.
    pub non_coherent: bool,
    /// The destinations are 16-bit registers: what is extended is cut to them.
    pub narrow: bool,
}

/// Read-modify-write operations (§9.7.13.6 `atom`, §9.7.13.7 `red`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rmw {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy)]
pub struct Atomic {
    pub space: Space,
    pub addr: Addr,
    pub op: Rmw,
    pub ty: Ty,
    pub n: u32,
    pub d: [Slot; 4],
    pub a: [Slot; 4],
    pub b: Slot,
    pub sem: Sem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    Sync,
    Arrive,
    /// `.red.popc`, `.red.and`, `.red.or`
    Popc,
    All,
    Any,
}

#[derive(Debug, Clone, Copy)]
pub struct Bar {
    pub kind: BarKind,
    pub aligned: bool,
    pub id: Slot,
    pub threads: Slot,
    pub pred: PredSrc,
    pub d: Slot,
    pub d_pred: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShflKind {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteKind {
    All,
    Any,
    Uni,
    Ballot,
}

/// Reductions over the lanes of a mask (§9.7.9.10 `redux.sync`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redux {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// Element type of a matrix fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elem {
    F16,
    BF16,
    TF32,
    F64,
    F32,
    E4M3,
    E5M2,
    S8,
    U8,
    S4,
    U4,
    S32,
}

#[derive(Debug, Clone, Copy)]
pub struct Mma {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a_ty: Elem,
    pub b_ty: Elem,
    pub c_ty: Elem,
    pub d_ty: Elem,
    pub satfinite: bool,
    pub d: [Slot; 8],
    pub a: [Slot; 8],
    pub b: [Slot; 8],
    pub c: [Slot; 8],
}

#[derive(Debug, Clone, Copy)]
pub struct Cvt {
    pub to: Ty,
    pub from: Ty,
    /// Rounding of a result that is a float.
    pub round: Round,
    /// Rounding to an integral value (`.rni`, ...), also for float to float.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub satfinite: bool,
    pub relu: bool,
    /// The destination is a 16-bit register.
    pub narrow: bool,
    pub d: Slot,
    pub a: Slot,
    pub b: Slot,
}

#[derive(Debug, Clone, Copy)]
pub enum Op {
    F1 {
        f: F1,
        d: u32,
        a: u32,
    },
    F2 {
        f: F2,
        d: u32,
        a: u32,
        b: u32,
        imm: u32,
    },
    F3 {
        f: F3,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
        imm: u32,
    },
    D1 {
        f: D1,
        d: u32,
        a: u32,
    },
    D2 {
        f: D2,
        d: u32,
        a: u32,
        b: u32,
    },
    D3 {
        f: D3,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    W1 {
        f: W1,
        d: u32,
        a: u32,
    },
    W2 {
        f: W2,
        d: u32,
        a: u32,
        b: u32,
    },
    W3 {
        f: W3,
        d: u32,
        a: u32,
        b: u32,
        c: u32,
    },
    N1 {
        f: N1,
        d: u32,
        a: u32,
    },
    Sh {
        f: Sh,
        d: u32,
        a: u32,
        b: u32,
    },
    S {
        f: Scalar,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        imm: u32,
    },
    Cvt(Cvt),
    C32 {
        f: C32,
        a: u32,
        b: u32,
        p: u32,
        q: u32,
        join: Option<(Logic, PredSrc)>,
    },
    C64 {
        f: C64,
        a: u32,
        b: u32,
        p: u32,
        q: u32,
        join: Option<(Logic, PredSrc)>,
    },
    Sel32 {
        d: u32,
        a: u32,
        b: u32,
        p: PredSrc,
    },
    Sel64 {
        d: u32,
        a: u32,
        b: u32,
        p: PredSrc,
    },
    P {
        logic: Logic,
        d: u32,
        a: PredSrc,
        b: PredSrc,
    },
    Pack {
        d: Slot,
        a: [Slot; 4],
        n: u32,
        bits: u32,
    },
    Unpack {
        d: [Slot; 4],
        a: Slot,
        n: u32,
        bits: u32,
    },
    Clock {
        d: Slot,
    },
    ActiveMask {
        d: u32,
    },
    IsSpace {
        p: u32,
        a: u32,
        space: Space,
    },
    Ld(Access),
    St(Access),
    Atom(Atomic),
    Fence,
    Bra {
        target: u32,
    },
    Exit,
    Trap,
    Bar(Bar),
    WarpSync {
        mask: u32,
    },
    Shfl {
        kind: ShflKind,
        d: u32,
        p: u32,
        a: u32,
        b: u32,
        c: u32,
        mask: u32,
    },
    Vote {
        kind: VoteKind,
        p: u32,
        d: u32,
        a: PredSrc,
        mask: u32,
    },
    Match {
        all: bool,
        d: u32,
        p: u32,
        a: Slot,
        mask: u32,
    },
    Redux {
        op: Redux,
        d: u32,
        a: u32,
        mask: u32,
    },
    Elect {
        d: u32,
        p: u32,
        mask: u32,
    },
    CpAsync {
        dst: Addr,
        src: Addr,
        bytes: u32,
        src_bytes: Slot,
    },
    CpCommit,
    /// Waits until at most `n` of the newest groups are pending; `u32::MAX` stands for `wait_all`.
    CpWait {
        n: u32,
    },
    LdMatrix {
        addr: Addr,
        n: u32,
        trans: bool,
        d: [Slot; 4],
    },
    StMatrix {
        addr: Addr,
        n: u32,
        trans: bool,
        a: [Slot; 4],
    },
    Mma(Mma),
    Sleep,
    Nop,
}

/// No predicate destination (`_`, or none written).
pub const NO_PRED: u32 = u32::MAX;
/// No 32-bit destination (`_`).
pub const NO_REG: u32 = u32::MAX;

/// A decoded instruction.
#[derive(Debug, Clone, Copy)]
pub struct Inst {
    pub op: Op,
    pub guard: Option<PredSrc>,
    pub line: u32,
    /// Floating-point operations of one lane; a fused multiply-add counts two.
    pub flops: u32,
}
