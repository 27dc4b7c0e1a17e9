//! The compiled program as data: sizes as bytecode, kernels as objects, the host schedule, and the
//! ABI of kernel functions; its form as a file. Knows no IR.

pub mod abi;
pub mod artefact;
pub mod program;
pub mod size;
pub mod validate;

pub use program::*;
pub use size::{SizeError, SizeExpr, SizeOp, UNBOUND};
