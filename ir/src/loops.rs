//! Loop IR: in which order one target computes a kernel.
//!
//! One language, two verified forms. In **tile form** a value is a tile of `rows x cols` elements;
//! in **machine form** every value is a scalar (1 x 1) or one vector of the target's width (1 x lanes),
//! math functions are expanded and narrow types live in wide registers. Emitters accept machine form
//! only and translate it one to one. Where a target has matrix registers, values of machine form may be those too:
//! up to 16 rows of 16 words, which are read, multiplied, carried and stored, and nothing else. The meaning of a function is sequential: erase parallel levels,
//! pipes and barriers and nothing changes.
//!
//! **Blocks of warps (GPU).** Where the parallel loop is one of [`Level::Grid`], an iteration is the work of a block of threads,
//! and tiles are those of the whole block: their elements lie across warps, lanes and registers, which
//! legalisation decides. In machine form a loop of [`Level::Warp`] inside of it is run by all warps at once, so
//! barriers count there: between two of them warps go in any order.

use crate::dtype::Scalar;
use crate::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use crate::{DType, Dim, OriginId, Sym};

/// Tile instruction: a float times 2 to the whole number below another, rounded once (`acc * 2^floor(a)`, `b` is `a`).
pub const SCALE: &str = "vscalef";

/// An SSA value of one [`Func`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Val(pub u32);

/// Type of a value: `rows x cols` elements. A scalar is 1 x 1, a vector 1 x lanes; `cols` is the
/// dimension that lies in vector lanes, `rows` lies across registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ty {
    pub dtype: DType,
    pub rows: u32,
    pub cols: u32,
}

impl Ty {
    pub const INDEX: Ty = Ty::scalar(DType::I64);
    pub const fn scalar(dtype: DType) -> Ty {
        Ty { dtype, rows: 1, cols: 1 }
    }
    pub const fn vector(dtype: DType, lanes: u32) -> Ty {
        Ty { dtype, rows: 1, cols: lanes }
    }
    pub const fn tile(dtype: DType, rows: u32, cols: u32) -> Ty {
        Ty { dtype, rows, cols }
    }
    pub fn is_scalar(self) -> bool {
        self.rows == 1 && self.cols == 1
    }
    pub fn with(self, dtype: DType) -> Ty {
        Ty { dtype, ..self }
    }
}

/// Parallel levels, outermost first. A CPU has `Thread` (the pool) only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Level {
    Grid,
    Cluster,
    Thread,
    Warpgroup,
    Warp,
    Lane,
}

/// Memory spaces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Space {
    /// Operands.
    Global,
    /// On-chip memory of a block (GPU): one array for all its warps.
    Shared,
    /// Private to one iteration of the parallel loop; lies in the thread's scratch area on a CPU.
    Scratch,
}

/// A memory region: operand `bufs[i]` or local array `locals[i]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Mem {
    Buf(u32),
    Local(u32),
}

/// Distance in elements between neighbouring rows or columns of a tile in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stride {
    Const(i64),
    Val(Val),
}

/// Where a rectangular access begins and how it steps: element (r, c) of the tile is element
/// `index + disp + r * row + c * col` of `mem`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Addr {
    pub mem: Mem,
    /// i64 scalar, in elements. Where an iteration is a block's: in tile form also R x 1, a place for each row (`row`
    /// is then 0); in machine form also a vector, a place for each lane (`row`, `col` are then 0).
    pub index: Val,
    /// Constant displacement in elements.
    pub disp: i64,
    pub row: Stride,
    pub col: Stride,
    /// Only the first `n` columns are accessed (i64 scalar, clamped to `0..=cols`); others read as 0. In machine form, beside
    /// a place for each lane: the lanes that take part, a bool vector.
    pub cols_valid: Option<Val>,
    /// The same of rows, in the tile form of what iterations of blocks do.
    pub rows_valid: Option<Val>,
    /// Bytes to which `index + disp`, and of a tile with several columns the row stride, are aligned; element size
    /// where unknown.
    pub align: u32,
}

/// Instructions that define one value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Inst {
    /// Every element has this value.
    Const(Scalar),
    /// Value of symbol parameter `syms[i]` (i64 scalar).
    Sym(u32),
    /// Element value = its row or column number (integer dtypes).
    Iota {
        along_cols: bool,
    },
    /// 1x1 -> RxC, Rx1 -> RxC, 1xC -> RxC.
    Splat(Val),
    Unary(UnaryOp, Val),
    Binary(BinaryOp, Val, Val),
    /// a * b + c. One rounding on targets with FMA; floats, or integers (wrapping).
    Fma(Val, Val, Val),
    Cmp(CmpOp, Val, Val),
    /// Mask (bool tile), then, else.
    Select(Val, Val, Val),
    Convert(ConvertMode, Val),
    Bitcast(Val),
    Load(Addr),
    /// Element-wise addresses: `mem[index]`, `index` an i64 tile; masked elements are not read and give 0.
    Gather {
        mem: Mem,
        index: Val,
        mask: Option<Val>,
    },
    /// RxC -> Rx1.
    ReduceCols(Monoid, Val),
    /// RxC -> 1xC.
    ReduceRows(Monoid, Val),
    /// Element (row, col) of a tile as a scalar.
    Extract(Val, u32, u32),
    /// Machine form: vector with lane `lane` replaced.
    Insert {
        vec: Val,
        scalar: Val,
        lane: u32,
    },
    /// Machine form: `lanes[i]` of the concatenation of both operands (equal length).
    Shuffle(Val, Val, Vec<u32>),
    /// Tile instruction of a target's table: accumulator, a, b. Dot products of words (`vpdpbusd`, `vdpbf16ps`) and
    /// [`SCALE`] are element-wise. Those of matrices (`tdpbusd`, `tdpbf16ps`) add to R x C the product of R x K and K x C words.
    TileOp {
        name: String,
        acc: Val,
        a: Val,
        b: Val,
    },
}

/// Async pipes (double buffering through shared memory). Serial meaning: `Copy` copies at once.
#[derive(Clone, PartialEq, Debug)]
pub enum PipeOp {
    /// Copy `elems` elements asynchronously into the stage being filled.
    Copy { from: Addr, to: Addr, elems: u32 },
    /// The stage being filled is complete.
    Commit,
    /// Until at most `pending` committed stages are unfinished.
    Wait { pending: u32 },
}

/// Statements. A block is a list of them and the values it yields to its parent.
#[derive(Clone, PartialEq, Debug)]
pub enum Stmt {
    Let {
        val: Val,
        inst: Inst,
    },
    /// `for var in lo .. hi step step` (`lo`, `hi` i64 scalars, step > 0). `carries`: (value inside the body,
    /// initial value); the body yields the next ones; `results` are the final ones.
    For {
        var: Val,
        lo: Val,
        hi: Val,
        step: i64,
        carries: Vec<(Val, Val)>,
        results: Vec<Val>,
        body: Block,
        /// Iterations are independent and may run on this level. On a CPU exactly one loop, the outermost
        /// statement of the function, has `Some(Thread)`.
        parallel: Option<Level>,
    },
    /// `cond` yields one bool scalar and sees the carried values.
    While {
        carries: Vec<(Val, Val)>,
        results: Vec<Val>,
        cond: Block,
        body: Block,
    },
    /// `cond` is a bool scalar. Both blocks yield `results`.
    If {
        cond: Val,
        then: Block,
        otherwise: Block,
        results: Vec<Val>,
    },
    Store {
        addr: Addr,
        value: Val,
    },
    /// Element-wise addresses; masked elements are not written.
    Scatter {
        mem: Mem,
        index: Val,
        value: Val,
        mask: Option<Val>,
    },
    /// `mem[index]` (i64 scalar, in elements) will be read soon: a hint, whose place may lie outside of the
    /// region. It changes nothing but time.
    Prefetch {
        mem: Mem,
        index: Val,
    },
    /// All units of a level meet: `Barrier(Warp)` all warps of a block.
    Barrier(Level),
    Pipe(PipeOp),
    /// Where `ok` (bool scalar) is false, reports the first such error to the status word:
    /// (origin, value, limit) and goes on.
    Check {
        ok: Val,
        origin: OriginId,
        value: Val,
        limit: Val,
    },
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Block {
    pub stmts: Vec<Stmt>,
    pub yields: Vec<Val>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct BufParam {
    pub name: String,
    pub dtype: DType,
    pub writable: bool,
    /// Alignment of the base in bytes.
    pub align: u32,
}

/// A local array.
#[derive(Clone, PartialEq, Debug)]
pub struct LocalArray {
    pub dtype: DType,
    pub elems: Dim,
    pub space: Space,
}

/// How the host launches a function.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Launch {
    /// Iterations of the parallel loop; the runtime splits `0..trip` among threads.
    pub trip: Dim,
    /// Estimated nanoseconds of one iteration on one core: small launches stay on one thread.
    pub ns_per_iter: f64,
    /// GPU: blocks, blocks per cluster, threads per block, bytes of shared memory. Where the parallel loop is one of
    /// [`Level::Grid`], `block` says how many threads compute an iteration.
    pub grid: Vec<Dim>,
    pub cluster: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: Dim,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Form {
    #[default]
    Tile,
    Machine,
}

#[derive(Clone, PartialEq, Debug, Default)]
pub struct Func {
    pub name: String,
    pub form: Form,
    pub bufs: Vec<BufParam>,
    /// Symbols that the code reads, by position of the run-time parameter.
    pub syms: Vec<Sym>,
    pub locals: Vec<LocalArray>,
    /// Types by [`Val`].
    pub types: Vec<Ty>,
    pub body: Block,
    pub launch: Launch,
    pub origins: Vec<OriginId>,
}

impl Func {
    pub fn new_val(&mut self, ty: Ty) -> Val {
        self.types.push(ty);
        Val(self.types.len() as u32 - 1)
    }
    pub fn ty(&self, v: Val) -> Ty {
        self.types[v.0 as usize]
    }
}

impl Inst {
    /// Calls `f` for every operand, those of addresses included.
    pub fn for_each_operand(&self, f: &mut dyn FnMut(Val)) {
        match self {
            Inst::Const(_) | Inst::Sym(_) | Inst::Iota { .. } => {}
            Inst::Splat(a)
            | Inst::Unary(_, a)
            | Inst::Convert(_, a)
            | Inst::Bitcast(a)
            | Inst::ReduceCols(_, a)
            | Inst::ReduceRows(_, a)
            | Inst::Extract(a, ..) => f(*a),
            Inst::Binary(_, a, b) | Inst::Cmp(_, a, b) | Inst::Shuffle(a, b, _) => {
                f(*a);
                f(*b);
            }
            Inst::Fma(a, b, c) | Inst::Select(a, b, c) | Inst::TileOp { acc: a, a: b, b: c, .. } => {
                f(*a);
                f(*b);
                f(*c);
            }
            Inst::Insert { vec, scalar, .. } => {
                f(*vec);
                f(*scalar);
            }
            Inst::Load(addr) => addr.for_each_operand(f),
            Inst::Gather { index, mask, .. } => {
                f(*index);
                mask.iter().for_each(|m| f(*m));
            }
        }
    }
}

impl Addr {
    /// Calls `f` for every operand.
    pub fn for_each_operand(&self, f: &mut dyn FnMut(Val)) {
        f(self.index);
        for s in [self.row, self.col] {
            if let Stride::Val(v) = s {
                f(v);
            }
        }
        self.cols_valid.iter().chain(&self.rows_valid).for_each(|v| f(*v));
    }
}

impl Stmt {
    /// Calls `f` for every operand of the statement itself; those of its blocks are not visited.
    pub fn for_each_operand(&self, f: &mut dyn FnMut(Val)) {
        match self {
            Stmt::Let { inst, .. } => inst.for_each_operand(f),
            Stmt::For { lo, hi, carries, .. } => {
                f(*lo);
                f(*hi);
                carries.iter().for_each(|c| f(c.1));
            }
            Stmt::While { carries, .. } => carries.iter().for_each(|c| f(c.1)),
            Stmt::If { cond, .. } => f(*cond),
            Stmt::Store { addr, value } => {
                addr.for_each_operand(f);
                f(*value);
            }
            Stmt::Scatter { index, value, mask, .. } => {
                f(*index);
                f(*value);
                mask.iter().for_each(|m| f(*m));
            }
            Stmt::Prefetch { index, .. } => f(*index),
            Stmt::Barrier(_) | Stmt::Pipe(PipeOp::Commit | PipeOp::Wait { .. }) => {}
            Stmt::Pipe(PipeOp::Copy { from, to, .. }) => {
                from.for_each_operand(f);
                to.for_each_operand(f);
            }
            Stmt::Check { ok, value, limit, .. } => {
                f(*ok);
                f(*value);
                f(*limit);
            }
        }
    }
    /// Values that the statement defines for those after it.
    pub fn results(&self) -> &[Val] {
        match self {
            Stmt::Let { val, .. } => std::slice::from_ref(val),
            Stmt::For { results, .. } | Stmt::While { results, .. } | Stmt::If { results, .. } => results,
            _ => &[],
        }
    }
    /// The blocks inside the statement.
    pub fn blocks(&self) -> Vec<&Block> {
        match self {
            Stmt::For { body, .. } => vec![body],
            Stmt::While { cond, body, .. } => vec![cond, body],
            Stmt::If { then, otherwise, .. } => vec![then, otherwise],
            _ => Vec::new(),
        }
    }
}
