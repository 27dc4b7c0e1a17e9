//! Control flow.

use super::Op;

pub static OPS: &[Op] = &[];
