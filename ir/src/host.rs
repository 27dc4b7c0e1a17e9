//! The lowered model: kernels in loop IR, buffers with places, and the host schedule around them.
//! `passes` makes it, `codegen` turns it into a program for the runtime.

use crate::loops::Func;
use crate::prim::HostFn;
use crate::{ConstId, DType, Dim, Layout, Module, OriginId, Sym, ValueId};

/// A buffer of the program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BufferId(pub u32);

/// Where a buffer lives.
#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    /// Bytes of the module's constant, row-major.
    Const(ConstId),
    /// Written once by the `init` steps, shared by all contexts: packed and folded weights.
    Init,
    /// i-th input of the main graph: the caller's memory.
    Input(usize),
    /// i-th output of the main graph.
    Output(usize),
    /// Arena, from this byte offset on.
    Arena { offset: Dim },
    /// Memory of its own in the context, which grows as needed and is kept from run to run: loop-carried
    /// values of changing size, stacked scan outputs, results of host functions.
    Own,
    /// The same bytes as another buffer (reshape, in-place).
    Alias(BufferId),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Buffer {
    pub name: String,
    pub dtype: DType,
    /// Logical shape.
    pub shape: Vec<Dim>,
    pub layout: Layout,
    /// Allocated bytes, padding of layout splits and halos included.
    pub bytes: Dim,
    pub place: Place,
    /// The value of the main graph that it holds, for `verify` and profiles.
    pub value: Option<ValueId>,
}

/// One variant of a kernel: usable where every guard `0 <= expr < bound` holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Variant {
    pub guards: Vec<crate::kernel::Guard>,
    /// The schedule in its text form.
    pub schedule: String,
    pub func: Func,
}

#[derive(Clone, PartialEq, Debug)]
pub struct LoweredKernel {
    pub kernel: crate::kernel::Kernel,
    /// Tried in order; the last one has no guard.
    pub variants: Vec<Variant>,
    /// Why the kernel is scalar, where it is.
    pub scalar_reason: Option<String>,
    pub flops: Dim,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Evaluates, with the symbols as they are now, `bytes` and (arena) offset of the listed buffers:
    /// arena, output and own ones. These stay in force until the next `Layout` that lists the buffer. The
    /// arena holds `end` bytes from here on; what lies in it is kept where it must grow. An own buffer
    /// gets capacity for its bytes and keeps what it holds.
    Layout {
        buffers: Vec<BufferId>,
        end: Dim,
    },
    Call {
        kernel: usize,
        args: Vec<BufferId>,
        origin: OriginId,
    },
    /// Copies the bytes that `to` has since its last `Layout` (same shape and layout; the symbols of
    /// `from`'s shape may have been rebound). The buffers do not overlap.
    Copy {
        from: BufferId,
        to: BufferId,
    },
    /// Gives a symbol the value of an expression, checked against its range.
    SetSym {
        sym: Sym,
        value: Dim,
        origin: OriginId,
    },
    /// Gives a symbol the value of element 0 of an i64 (or i32) buffer, checked against its range.
    BindSym {
        sym: Sym,
        from: BufferId,
        origin: OriginId,
    },
    /// Two sizes that must agree; a typed error otherwise.
    CheckEq {
        a: Dim,
        b: Dim,
        message: String,
        origin: OriginId,
    },
    Assert {
        cond: BufferId,
        message: String,
        origin: OriginId,
    },
    If {
        cond: BufferId,
        then: Vec<Step>,
        otherwise: Vec<Step>,
    },
    /// Runs `body` while the counter is below the i64 in `trip` (i64::MAX: no limit) and the condition is
    /// true: `cond` (one bool) before the first iteration, `cond_next` before the others. Each iteration:
    /// writes the counter to `iter` (one i64), sets `count` to it, runs `body`. After the last one
    /// `count` is the number of iterations run. Carried values live in buffers that `body` overwrites at
    /// its end.
    Loop {
        trip: BufferId,
        cond: BufferId,
        iter: BufferId,
        cond_next: BufferId,
        count: Sym,
        body: Vec<Step>,
        origin: OriginId,
    },
    /// Copies all bytes of `from` into slice `index` (a counter symbol) of the leading dim of `to`, an own
    /// buffer that grows as needed and keeps what it holds.
    Append {
        from: BufferId,
        to: BufferId,
        index: Sym,
    },
    /// Runs a host function, which sets `defines` and sizes the results (own buffers).
    Host {
        func: HostFn,
        args: Vec<BufferId>,
        results: Vec<BufferId>,
        defines: Vec<Sym>,
        origin: OriginId,
    },
}

/// The result of the pass pipeline.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    pub module: Module,
    pub kernels: Vec<LoweredKernel>,
    pub buffers: Vec<Buffer>,
    /// Once per program.
    pub init: Vec<Step>,
    /// Once per run.
    pub steps: Vec<Step>,
    /// Buffers of the graph inputs and outputs.
    pub inputs: Vec<BufferId>,
    pub outputs: Vec<BufferId>,
}
