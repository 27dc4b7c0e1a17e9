//! The compiled program as data: sizes as bytecode, kernels as objects, the host schedule, and the
//! ABI of kernel functions. Knows no IR and depends on nothing.

pub mod abi;
pub mod program;
pub mod size;

pub use program::*;
pub use size::{SizeError, SizeExpr, SizeOp, UNBOUND};
