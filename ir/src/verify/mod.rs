//! Verifiers: what well-formed IR is, level by level. Each file begins with its contract in prose.

pub mod graph;
pub mod kernel;
pub mod loops;
