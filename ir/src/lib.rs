//! Types, symbolic sizes, primitives, and the three intermediate representations.
//!
//! [`graph`] says what a model computes, [`kernel`] what one fused kernel computes, [`loops`] in
//! which order a target computes it. Nothing in this crate runs, schedules or emits anything.

pub mod build;
pub mod dim;
pub mod dtype;
pub mod error;
pub mod graph;
pub mod host;
pub mod infer;
pub mod kernel;
pub mod layout;
pub mod loops;
pub mod loops_build;
pub mod loops_exec;
pub mod loops_opt;
pub mod math;
pub mod minifloat;
pub mod prim;
pub mod target;
pub mod tensor;
pub mod testing;
pub mod text;
pub mod verify;

pub use dim::{Atom, Dim, Facts, Sym, SymInfo, SymKind, Symbols, Var};
pub use dtype::DType;
pub use error::{IrError, Result};
pub use graph::{Graph, Module, Op, OpId, Origin, OriginId, TensorType, Type, Value, ValueId};
pub use layout::Layout;
pub use math::Math;
pub use prim::{Monoid, PadMode, Prim};
pub use tensor::{ConstData, ConstId, ConstSource, Tensor};
