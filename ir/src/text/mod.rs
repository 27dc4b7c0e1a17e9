//! Text of the IRs: what prints parses back to the same IR.

pub mod graph;
pub mod kernel;
pub mod lex;
pub mod loops;
