//! The PTX instructions that we emit, as data, and the one place that prints them.
//!
//! Section numbers refer to NVIDIA's "PTX ISA". Only forms listed here can be written, so that each is checked once by the
//! assembler and once by the interpreter of PTX text.

use std::fmt::{self, Display, Formatter};

/// Register files (§5.2.1): a register name tells its class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Class {
    Pred,
    B16,
    B32,
    B64,
    F32,
    F64,
}

impl Class {
    pub const ALL: [Class; 6] = [Class::Pred, Class::B16, Class::B32, Class::B64, Class::F32, Class::F64];

    /// Prefix of the registers, and the type they are declared with.
    const fn spelling(self) -> (&'static str, &'static str) {
        match self {
            Class::Pred => ("p", "pred"),
            Class::B16 => ("h", "b16"),
            Class::B32 => ("r", "b32"),
            Class::B64 => ("rd", "b64"),
            Class::F32 => ("f", "f32"),
            Class::F64 => ("fd", "f64"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Reg {
    pub class: Class,
    pub id: u32,
}

/// Read-only special registers (§10).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Special {
    Tid,
    Ntid,
    Ctaid,
    Nctaid,
    Lane,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Operand {
    Reg(Reg),
    Int(i64),
    F32(f32),
    F64(f64),
    Special(Special),
}

impl From<Reg> for Operand {
    fn from(r: Reg) -> Operand {
        Operand::Reg(r)
    }
}

/// State spaces (§5.1) of loads and stores.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    Global,
    Shared,
}

impl Space {
    const fn name(self) -> &'static str {
        match self {
            Space::Global => "global",
            Space::Shared => "shared",
        }
    }
}

/// Instruction types (§5.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Type {
    Pred,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F32,
    F64,
}

impl Type {
    const fn name(self) -> &'static str {
        match self {
            Type::Pred => "pred",
            Type::B16 => "b16",
            Type::B32 => "b32",
            Type::B64 => "b64",
            Type::U8 => "u8",
            Type::U16 => "u16",
            Type::U32 => "u32",
            Type::U64 => "u64",
            Type::S8 => "s8",
            Type::S16 => "s16",
            Type::S32 => "s32",
            Type::S64 => "s64",
            Type::F16 => "f16",
            Type::F32 => "f32",
            Type::F64 => "f64",
        }
    }
    pub const fn is_float(self) -> bool {
        matches!(self, Type::F16 | Type::F32 | Type::F64)
    }
}

/// Two operands (§9.7.1, §9.7.3, §9.7.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    /// Of f32: NaN propagates (`.NaN`, sm_80). Of f64 a number wins over NaN.
    Min,
    Max,
    And,
    Or,
    Xor,
    /// Counts are unsigned 32-bit numbers; those beyond the width count as the width.
    Shl,
    Shr,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unary {
    Neg,
    Abs,
    Not,
    /// `.rn`
    Sqrt,
}

/// Rounding of `cvt` (§9.7.9.21): `Rni` and its like make whole numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    Rn,
    Rni,
    Rzi,
    Rmi,
    Rpi,
}

/// Comparisons; those but `Neu` are false where an operand is NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compare {
    Eq,
    Ne,
    Neu,
    Lt,
    Le,
    Gt,
    Ge,
    /// Either is NaN.
    Nan,
}

/// Every lane of a warp takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vote {
    Any,
    All,
    Ballot,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Op {
    Mov {
        ty: Type,
        d: Reg,
        a: Operand,
    },
    Unary {
        op: Unary,
        ty: Type,
        d: Reg,
        a: Operand,
    },
    Binary {
        op: Binary,
        ty: Type,
        d: Reg,
        a: Operand,
        b: Operand,
    },
    /// Floats: one rounding, to nearest even. Integers: the low half of the product, plus `c`.
    MulAdd {
        ty: Type,
        d: Reg,
        a: Operand,
        b: Operand,
        c: Operand,
    },
    /// The whole product of 32-bit numbers, plus the 64-bit `c`.
    MadWide {
        d: Reg,
        a: Operand,
        b: Operand,
        c: Operand,
    },
    Cvt {
        round: Option<Round>,
        to: Type,
        from: Type,
        d: Reg,
        a: Operand,
    },
    Setp {
        op: Compare,
        ty: Type,
        d: Reg,
        a: Operand,
        b: Operand,
    },
    Selp {
        ty: Type,
        d: Reg,
        a: Operand,
        b: Operand,
        p: Reg,
    },
    /// Position of the highest bit that is set; all ones where none is.
    Bfind {
        d: Reg,
        a: Operand,
    },
    /// `d = {lo, hi}` and back.
    Pack {
        d: Reg,
        lo: Reg,
        hi: Reg,
    },
    Unpack {
        lo: Reg,
        hi: Reg,
        a: Reg,
    },
    LdParam {
        ty: Type,
        d: Reg,
        param: u32,
    },
    /// A generic address as one of global memory.
    ToGlobal {
        d: Reg,
        a: Reg,
    },
    /// Address of a shared array.
    SharedBase {
        d: Reg,
        local: u32,
    },
    /// Four neighbours.
    LdFour {
        space: Space,
        ty: Type,
        d: [Reg; 4],
        base: Reg,
        offset: i32,
    },
    StFour {
        space: Space,
        ty: Type,
        base: Reg,
        offset: i32,
        a: [Reg; 4],
    },
    /// Two neighbours, where four are more than one access.
    LdTwo {
        space: Space,
        ty: Type,
        d: [Reg; 2],
        base: Reg,
        offset: i32,
    },
    StTwo {
        space: Space,
        ty: Type,
        base: Reg,
        offset: i32,
        a: [Reg; 2],
    },
    /// All warps of the block meet; what they wrote is seen by all.
    BarSync,
    Ld {
        space: Space,
        ty: Type,
        d: Reg,
        base: Reg,
        offset: i32,
    },
    St {
        space: Space,
        ty: Type,
        base: Reg,
        offset: i32,
        a: Operand,
    },
    /// Compare and swap; `d` gets the old value.
    Cas {
        d: Reg,
        base: Reg,
        compare: Operand,
        swap: Operand,
    },
    /// The 32-bit register of lane `own ^ mask`.
    ShflBfly {
        d: Reg,
        a: Reg,
        mask: u32,
    },
    /// The 32-bit register of this lane.
    ShflIdx {
        d: Reg,
        a: Reg,
        lane: Operand,
    },
    Vote {
        kind: Vote,
        d: Reg,
        a: Reg,
    },
    /// The lanes whose 64-bit value is equal to one's own, as a mask.
    MatchAny {
        d: Reg,
        a: Reg,
    },
    /// All lanes of the warp meet; what each wrote before is seen by all after.
    WarpSync,
    Label(u32),
    /// All lanes go the same way.
    Bra(u32),
    Ret,
}

/// An instruction, executed by the lanes where the guard has this value.
#[derive(Clone, PartialEq, Debug)]
pub struct Inst {
    pub guard: Option<(Reg, bool)>,
    pub op: Op,
}

/// One kernel: an `.entry`.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    pub name: String,
    /// All parameters are 64 bits wide: addresses and sizes.
    pub params: u32,
    pub threads_per_block: u32,
    /// Shared arrays: number and bytes.
    pub shared: Vec<(u32, u64)>,
    pub body: Vec<Inst>,
}

/// Everything that a kernel may need of PTX 7.0: `min.NaN`, `match.any`, on sm_80.
const HEADER: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

impl Display for Reg {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "%{}{}", self.class.spelling().0, self.id)
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Operand::Reg(r) => r.fmt(f),
            Operand::Int(i64::MIN) => f.write_str("0x8000000000000000"),
            Operand::Int(i) => i.fmt(f),
            Operand::F32(x) => write!(f, "0f{:08X}", x.to_bits()),
            Operand::F64(x) => write!(f, "0d{:016X}", x.to_bits()),
            Operand::Special(s) => f.write_str(match s {
                Special::Tid => "%tid.x",
                Special::Ntid => "%ntid.x",
                Special::Ctaid => "%ctaid.x",
                Special::Nctaid => "%nctaid.x",
                Special::Lane => "%laneid",
            }),
        }
    }
}

impl Binary {
    fn name(self, ty: Type) -> &'static str {
        let float = ty.is_float();
        match self {
            Binary::Add if float => "add.rn",
            Binary::Add => "add",
            Binary::Sub if float => "sub.rn",
            Binary::Sub => "sub",
            Binary::Mul if float => "mul.rn",
            Binary::Mul => "mul.lo",
            Binary::Div if float => "div.rn",
            Binary::Div => "div",
            Binary::Rem => "rem",
            Binary::Min if ty == Type::F32 => "min.NaN",
            Binary::Min => "min",
            Binary::Max if ty == Type::F32 => "max.NaN",
            Binary::Max => "max",
            Binary::And => "and",
            Binary::Or => "or",
            Binary::Xor => "xor",
            Binary::Shl => "shl",
            Binary::Shr => "shr",
        }
    }
}

impl Unary {
    fn name(self) -> &'static str {
        match self {
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Not => "not",
            Unary::Sqrt => "sqrt.rn",
        }
    }
}

impl Round {
    fn name(self) -> &'static str {
        match self {
            Round::Rn => "rn",
            Round::Rni => "rni",
            Round::Rzi => "rzi",
            Round::Rmi => "rmi",
            Round::Rpi => "rpi",
        }
    }
}

impl Compare {
    fn name(self) -> &'static str {
        match self {
            Compare::Eq => "eq",
            Compare::Ne => "ne",
            Compare::Neu => "neu",
            Compare::Lt => "lt",
            Compare::Le => "le",
            Compare::Gt => "gt",
            Compare::Ge => "ge",
            Compare::Nan => "nan",
        }
    }
}

/// Mask of all lanes of a warp.
const ALL_LANES: &str = "0xffffffff";

impl Display for Op {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match self {
            Op::Mov { ty, d, a } => write!(f, "mov.{} {d}, {a};", ty.name()),
            Op::Unary { op, ty, d, a } => write!(f, "{}.{} {d}, {a};", op.name(), ty.name()),
            Op::Binary { op, ty, d, a, b } => write!(f, "{}.{} {d}, {a}, {b};", op.name(*ty), ty.name()),
            Op::MulAdd { ty, d, a, b, c } => {
                let name = if ty.is_float() { "fma.rn" } else { "mad.lo" };
                write!(f, "{name}.{} {d}, {a}, {b}, {c};", ty.name())
            }
            Op::MadWide { d, a, b, c } => write!(f, "mad.wide.s32 {d}, {a}, {b}, {c};"),
            Op::Cvt { round, to, from, d, a } => {
                let round = round.map_or(String::new(), |r| format!(".{}", r.name()));
                write!(f, "cvt{round}.{}.{} {d}, {a};", to.name(), from.name())
            }
            Op::Setp { op, ty, d, a, b } => write!(f, "setp.{}.{} {d}, {a}, {b};", op.name(), ty.name()),
            Op::Selp { ty, d, a, b, p } => write!(f, "selp.{} {d}, {a}, {b}, {p};", ty.name()),
            Op::Bfind { d, a } => write!(f, "bfind.u32 {d}, {a};"),
            Op::Pack { d, lo, hi } => write!(f, "mov.b64 {d}, {{{lo}, {hi}}};"),
            Op::Unpack { lo, hi, a } => write!(f, "mov.b64 {{{lo}, {hi}}}, {a};"),
            Op::LdParam { ty, d, param } => write!(f, "ld.param.{} {d}, [param{param}];", ty.name()),
            Op::ToGlobal { d, a } => write!(f, "cvta.to.global.u64 {d}, {a};"),
            Op::Ld { space, ty, d, base, offset } => {
                write!(f, "ld.{}.{} {d}, [{base}{}];", space.name(), ty.name(), Offset(*offset))
            }
            Op::St { space, ty, base, offset, a } => {
                write!(f, "st.{}.{} [{base}{}], {a};", space.name(), ty.name(), Offset(*offset))
            }
            Op::LdFour { space, ty, d: [x, y, z, w], base, offset } => {
                let at = Offset(*offset);
                write!(f, "ld.{}.v4.{} {{{x}, {y}, {z}, {w}}}, [{base}{at}];", space.name(), ty.name())
            }
            Op::StFour { space, ty, base, offset, a: [x, y, z, w] } => {
                let at = Offset(*offset);
                write!(f, "st.{}.v4.{} [{base}{at}], {{{x}, {y}, {z}, {w}}};", space.name(), ty.name())
            }
            Op::LdTwo { space, ty, d: [x, y], base, offset } => {
                let at = Offset(*offset);
                write!(f, "ld.{}.v2.{} {{{x}, {y}}}, [{base}{at}];", space.name(), ty.name())
            }
            Op::StTwo { space, ty, base, offset, a: [x, y] } => {
                let at = Offset(*offset);
                write!(f, "st.{}.v2.{} [{base}{at}], {{{x}, {y}}};", space.name(), ty.name())
            }
            Op::SharedBase { d, local } => write!(f, "mov.u64 {d}, shared{local};"),
            Op::BarSync => f.write_str("bar.sync 0;"),
            Op::Cas { d, base, compare, swap } => {
                write!(f, "atom.global.cas.b64 {d}, [{base}], {compare}, {swap};")
            }
            Op::ShflBfly { d, a, mask } => {
                write!(f, "shfl.sync.bfly.b32 {d}, {a}, {mask}, 31, {ALL_LANES};")
            }
            Op::ShflIdx { d, a, lane } => write!(f, "shfl.sync.idx.b32 {d}, {a}, {lane}, 31, {ALL_LANES};"),
            Op::Vote { kind, d, a } => {
                let name = match kind {
                    Vote::Any => "any.pred",
                    Vote::All => "all.pred",
                    Vote::Ballot => "ballot.b32",
                };
                write!(f, "vote.sync.{name} {d}, {a}, {ALL_LANES};")
            }
            Op::MatchAny { d, a } => write!(f, "match.any.sync.b64 {d}, {a}, {ALL_LANES};"),
            Op::WarpSync => write!(f, "bar.warp.sync {ALL_LANES};"),
            Op::Label(l) => write!(f, "$L{l}:"),
            Op::Bra(l) => write!(f, "bra.uni $L{l};"),
            Op::Ret => f.write_str("ret;"),
        }
    }
}

struct Offset(i32);

impl Display for Offset {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "+{}", self.0) }
    }
}

impl Op {
    /// The registers that it writes.
    fn registers(&self, f: &mut dyn FnMut(Reg)) {
        match self {
            Op::Mov { d, .. }
            | Op::Unary { d, .. }
            | Op::Binary { d, .. }
            | Op::MulAdd { d, .. }
            | Op::MadWide { d, .. }
            | Op::Cvt { d, .. }
            | Op::Setp { d, .. }
            | Op::Selp { d, .. }
            | Op::Bfind { d, .. }
            | Op::Pack { d, .. }
            | Op::LdParam { d, .. }
            | Op::SharedBase { d, .. }
            | Op::ToGlobal { d, .. }
            | Op::Ld { d, .. }
            | Op::Cas { d, .. }
            | Op::ShflBfly { d, .. }
            | Op::ShflIdx { d, .. }
            | Op::Vote { d, .. }
            | Op::MatchAny { d, .. } => f(*d),
            Op::Unpack { lo, hi, .. } => {
                f(*lo);
                f(*hi);
            }
            Op::LdFour { d, .. } => d.iter().for_each(|d| f(*d)),
            Op::LdTwo { d, .. } => d.iter().for_each(|d| f(*d)),
            Op::St { .. }
            | Op::StFour { .. }
            | Op::StTwo { .. }
            | Op::BarSync
            | Op::WarpSync
            | Op::Label(_)
            | Op::Bra(_)
            | Op::Ret => {}
        }
    }
}

impl Entry {
    /// A module with this kernel alone.
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut out = format!("{HEADER}\n.visible .entry {}(", self.name);
        // writing to a String cannot fail
        for i in 0..self.params {
            let _ = write!(out, "{}\n    .param .u64 param{i}", if i == 0 { "" } else { "," });
        }
        // without a number of resident blocks the assembler aims at all that fit, and spills
        let _ = write!(out, "\n)\n.reqntid {}, 1, 1\n.minnctapersm 2\n{{\n", self.threads_per_block);
        let mut counts = [0u32; Class::ALL.len()];
        for inst in &self.body {
            inst.op.registers(&mut |r| counts[r.class as usize] = counts[r.class as usize].max(r.id + 1));
        }
        for class in Class::ALL {
            let (prefix, ty) = class.spelling();
            if counts[class as usize] > 0 {
                let _ = writeln!(out, "    .reg .{ty} %{prefix}<{}>;", counts[class as usize]);
            }
        }
        for (local, bytes) in &self.shared {
            let _ = writeln!(out, "    .shared .align 16 .b8 shared{local}[{bytes}];");
        }
        for inst in &self.body {
            let _ = match (&inst.op, inst.guard) {
                (Op::Label(_), _) => writeln!(out, "{}", inst.op),
                (op, None) => writeln!(out, "    {op}"),
                (op, Some((p, true))) => writeln!(out, "    @{p} {op}"),
                (op, Some((p, false))) => writeln!(out, "    @!{p} {op}"),
            };
        }
        out.push_str("}\n");
        out
    }
}
