//! Operators that read or write at positions given by data.

use super::Op;

pub static OPS: &[Op] = &[];
