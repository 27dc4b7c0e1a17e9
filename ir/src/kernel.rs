//! Kernel IR: one fused kernel as a mathematical statement.
//!
//! A kernel is a set of points (its `domain`, all parallel) and a list of statements executed for each
//! of them. Index expressions are [`Dim`]s over symbols and index variables and speak *logical* dims of
//! buffers; how these lie in memory is the buffers' [`Layout`]. Nothing here says how fast or in which
//! order. That a kernel is a contraction, a window or a row reduction is derived, never stored.

use crate::dtype::Scalar;
use crate::prim::{BinaryOp, CmpOp, Combine, ConvertMode, Monoid, UnaryOp};
use crate::{DType, Dim, Layout, OriginId, Var};

/// A loop index with its extent: `var in 0 .. extent`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Axis {
    pub var: Var,
    pub extent: Dim,
}

/// Operand of a kernel, by position.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BufId(pub u32);

/// Expression of a kernel's body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ExprId(pub u32);

/// What a kernel does with an operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    Read,
    Write,
    /// Read and written in place (scatter, update_slice, ordered carries).
    ReadWrite,
    /// Belongs to one call of a chain: written by one stage, read by later ones. No operand of the call;
    /// these buffers come after all others.
    Local,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Buffer {
    pub name: String,
    pub dtype: DType,
    /// Logical shape.
    pub shape: Vec<Dim>,
    pub layout: Layout,
    pub access: Access,
    /// A constant of the program (its packing can be chosen freely).
    pub constant: bool,
}

/// `0 <= expr < bound`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Guard {
    pub expr: Dim,
    pub bound: Dim,
}

/// How the words (i32) that a dot product takes are made up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dot {
    /// Four unsigned bytes times four signed bytes, exactly: i32.
    Bytes,
    /// Two bf16 times two bf16: f32, the part in the low half first.
    Bf16,
}

impl Dot {
    pub const ALL: [Dot; 2] = [Dot::Bytes, Dot::Bf16];

    /// Type of the sum.
    pub fn dtype(self) -> DType {
        match self {
            Dot::Bytes => DType::I32,
            Dot::Bf16 => DType::F32,
        }
    }
    /// Parts of a word.
    pub fn parts(self) -> usize {
        match self {
            Dot::Bytes => 4,
            Dot::Bf16 => 2,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Dot::Bytes => "dot_bytes",
            Dot::Bf16 => "dot_bf16",
        }
    }
    /// The tile instruction of loop IR that adds it to an accumulator.
    pub fn tile_op(self) -> &'static str {
        match self {
            Dot::Bytes => "vpdpbusd",
            Dot::Bf16 => "vdpbf16ps",
        }
    }
    /// The tile instruction of loop IR that adds a product of matrices of words to an accumulator.
    pub fn matrix_op(self) -> &'static str {
        match self {
            Dot::Bytes => "tdpbusd",
            Dot::Bf16 => "tdpbf16ps",
        }
    }
    /// The kind of words whose matrices a tile instruction multiplies.
    pub fn of_matrix_op(name: &str) -> Option<Dot> {
        Dot::ALL.into_iter().find(|d| d.matrix_op() == name)
    }
}

/// A scalar expression; evaluated at one point of the enclosing axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Expr {
    Const(DType, Scalar),
    /// The value of an index expression, as i64.
    Index(Dim),
    /// `buf[index]` where every guard holds (and the index is then in bounds), else `fill`.
    Read {
        buf: BufId,
        index: Vec<Dim>,
        guards: Vec<Guard>,
        fill: Scalar,
    },
    Unary(UnaryOp, ExprId),
    Binary(BinaryOp, ExprId, ExprId),
    Cmp(CmpOp, ExprId, ExprId),
    Select(ExprId, ExprId, ExprId),
    /// All guards hold: `bool`.
    Inside(Vec<Guard>),
    Convert(DType, ConvertMode, ExprId),
    Bitcast(DType, ExprId),
    /// Sum of the products of the parts of two words: what one lane of a dot-product instruction adds.
    Dot(Dot, ExprId, ExprId),
    /// Result `part` of the reduction (or carry) that defines this name in an enclosing statement list.
    Local(u32),
    /// Gives the integer value of `value` the name `var` for use in index expressions of `body`.
    /// It must lie in `0..bound`; otherwise the kernel reports an index error (origin, value, bound)
    /// and goes on with 0.
    Bind {
        var: Var,
        value: ExprId,
        bound: Dim,
        body: ExprId,
    },
}

/// A statement, executed once for each point of the enclosing axes.
#[derive(Clone, PartialEq, Debug)]
pub enum Stmt {
    /// `locals[i] = reduce over axes of values[i]`. Accumulates in `acc` dtype, which is that of
    /// `value` and of the local; no axes (all extents 1): the local is `value` itself.
    Reduce { local: u32, acc: DType, monoid: Monoid, axes: Vec<Axis>, value: ExprId },
    /// Index (i64) of the extreme of `value` over one axis; NaN counts as the extreme.
    ArgReduce { local: u32, max: bool, last: bool, axis: Axis, value: ExprId },
    /// For every point of `axes` (parallel): `buf[index] = value`, where the guards hold.
    Store {
        axes: Vec<Axis>,
        buf: BufId,
        index: Vec<Dim>,
        guards: Vec<Guard>,
        value: ExprId,
        combine: Combine,
    },
    /// A sequential loop: `body` for 0, 1, ... extent-1. `locals` carry values from step to step:
    /// (name, initial value, value after the step).
    Ordered { axis: Axis, carries: Vec<(u32, DType, ExprId, ExprId)>, body: Vec<Stmt> },
    /// `locals` hold a value for later statements of the same list.
    Let { local: u32, value: ExprId },
    /// As [`Expr::Bind`], for index expressions of later statements of the same list (the row that a
    /// scatter writes). These statements carry a guard that keeps 0 out of an empty dim.
    Bind { var: Var, value: ExprId, bound: Dim },
}

impl Stmt {
    /// `buf[index] = value` at each point of the domain.
    pub fn store(buf: BufId, index: Vec<Dim>, value: ExprId) -> Stmt {
        Stmt::Store { axes: Vec::new(), buf, index, guards: Vec::new(), value, combine: Combine::Set }
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Kernel {
    pub name: String,
    pub buffers: Vec<Buffer>,
    pub domain: Vec<Axis>,
    pub stmts: Vec<Stmt>,
    exprs: Vec<Expr>,
    /// Names of index variables, by [`Var`].
    pub vars: Vec<String>,
    /// Number of locals.
    pub locals: u32,
    /// A generated kernel of the closed table, where kernel IR cannot say it (then no statements).
    pub generated: Option<Generated>,
    /// A chain (then no statements either): these kernels, one after another.
    pub stages: Vec<Stage>,
    /// Index variables with values from outside, in `0..extent`: where a block of a chain begins.
    pub params: Vec<Axis>,
    pub origins: Vec<OriginId>,
}

/// One kernel of a chain. A chain means its stages in order, each over its whole domain; that they may
/// share loops is for schedules to find out.
#[derive(Clone, PartialEq, Debug)]
pub struct Stage {
    pub kernel: Kernel,
    /// Buffers of the chain that are the operands of the kernel.
    pub args: Vec<BufId>,
}

/// The closed table of generated kernels: loop IR comes from a generator over shape and dtype.
/// Operand order is that of the primitive of the same name, then its results.
#[derive(Clone, PartialEq, Debug)]
pub enum Generated {
    /// Comparison networks and merges are not a map over points.
    Sort {
        axis: usize,
        descending: bool,
    },
    TopK {
        axis: usize,
        largest: bool,
    },
    /// Output position depends on a running count; result count goes to an extra i64[] output.
    Compact,
}

impl Kernel {
    /// Everything but domain, statements and expressions, to be built anew.
    pub fn without_body(&self) -> Kernel {
        Kernel { domain: Vec::new(), stmts: Vec::new(), exprs: Vec::new(), ..self.clone() }
    }
    pub fn expr(&mut self, e: Expr) -> ExprId {
        if let Some(i) = self.exprs.iter().position(|x| *x == e) {
            return ExprId(i as u32);
        }
        self.exprs.push(e);
        ExprId(self.exprs.len() as u32 - 1)
    }
    pub fn get(&self, e: ExprId) -> &Expr {
        &self.exprs[e.0 as usize]
    }
    pub fn exprs(&self) -> &[Expr] {
        &self.exprs
    }
    pub fn new_var(&mut self, name: impl Into<String>) -> Var {
        self.vars.push(name.into());
        Var(self.vars.len() as u32 - 1)
    }
    pub fn new_local(&mut self) -> u32 {
        self.locals += 1;
        self.locals - 1
    }
    /// Buffers that a call has to bring: all but the local ones, which come last.
    pub fn operands(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter().filter(|b| b.access != Access::Local)
    }
    pub fn add_buffer(&mut self, b: Buffer) -> BufId {
        self.buffers.push(b);
        BufId(self.buffers.len() as u32 - 1)
    }
}
