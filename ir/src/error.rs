//! Errors of the IR crate.

use thiserror::Error;

/// What is wrong with a piece of IR: its text, its types, or its structure.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IrError {
    /// Operand types, shapes or attributes of a primitive that do not fit its definition.
    #[error("{prim}: {message}")]
    Type { prim: String, message: String },
    /// Text that does not parse; line and column count from 1.
    #[error("{line}:{column}: {message}")]
    Parse { line: usize, column: usize, message: String },
    /// A violated invariant. `line` refers to the printed text of the IR.
    #[error("verifier: {message} (at {place})")]
    Verify { place: String, message: String },
    /// A size, count or memory amount above a limit.
    #[error("limit exceeded: {0}")]
    Limit(String),
}

pub type Result<T, E = IrError> = std::result::Result<T, E>;

impl IrError {
    pub fn ty(prim: impl Into<String>, message: impl Into<String>) -> Self {
        IrError::Type { prim: prim.into(), message: message.into() }
    }
    pub fn verify(place: impl Into<String>, message: impl Into<String>) -> Self {
        IrError::Verify { place: place.into(), message: message.into() }
    }
}
