//! PTX text to syntax tree. Nothing is skipped silently: what is not understood is an error with its line.

pub mod ast;
mod lex;
mod parse;
pub mod types;

pub use parse::parse;

/// Text that is not PTX as this crate knows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct SyntaxError {
    pub line: u32,
    pub message: String,
}
