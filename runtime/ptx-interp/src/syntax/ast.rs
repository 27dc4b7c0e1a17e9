//! What a PTX file says, before names are resolved.

use super::types::{Space, Ty};
use std::ops::Range;

/// A PTX file (PTX ISA §5.4, §10).
#[derive(Debug, Clone)]
pub struct Module {
    /// `.version`
    pub version: (u32, u32),
    /// `.target`, the first name
    pub target: String,
    /// Module-scope `.global`, `.const` and `.shared` variables.
    pub vars: Vec<Var>,
    pub kernels: Vec<Kernel>,
}

/// A variable or array (§5.4).
#[derive(Debug, Clone)]
pub struct Var {
    pub name: String,
    pub space: Space,
    pub align: u32,
    /// Size in bytes; 0 for an `.extern` array without a size (dynamic shared memory).
    pub bytes: u32,
    pub init: Vec<u8>,
    pub line: u32,
}

/// A kernel parameter (§5.1.6).
#[derive(Debug, Clone)]
pub struct Param {
    pub name: String,
    pub offset: u32,
    pub bytes: u32,
}

/// An `.entry` (§10.1.1) with its performance-tuning directives (§11.4).
#[derive(Debug, Clone)]
pub struct Kernel {
    pub name: String,
    pub line: u32,
    pub params: Vec<Param>,
    /// Register name to type.
    pub regs: Vec<(String, Ty)>,
    /// `.shared` and `.local` variables of the body.
    pub vars: Vec<Var>,
    pub body: Vec<Stmt>,
    pub reqntid: Option<[u32; 3]>,
    pub maxntid: Option<[u32; 3]>,
    pub maxnreg: Option<u32>,
}

impl Kernel {
    /// Size of the parameter block in bytes.
    pub fn param_bytes(&self) -> u32 {
        self.params.last().map_or(0, |p| p.offset + p.bytes)
    }
}

#[derive(Debug, Clone)]
pub enum Stmt {
    Label(String),
    Inst(Inst),
}

/// An instruction as written. `span` is its byte range in the source, guard and semicolon included.
#[derive(Debug, Clone)]
pub struct Inst {
    pub line: u32,
    pub span: Range<usize>,
    /// Negated, and the predicate's name (§8.3).
    pub guard: Option<(bool, String)>,
    /// The opcode and its modifiers, split at the dots.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Register, special register, label or variable.
    Name(String),
    /// `!p`
    Not(String),
    Int(i64),
    F32(u32),
    F64(u64),
    /// `[name+offset]` or `[offset]`
    Address(Option<String>, i64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
}
