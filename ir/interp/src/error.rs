//! What can go wrong when a graph is interpreted.

use thiserror::Error;

/// Why one operation has no result.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum OpError {
    /// Operands, attributes or results that do not fit the definition of the primitive.
    #[error("{what}: expected {expected}, found {found}")]
    Mismatch { what: String, expected: String, found: String },
    /// A data-dependent index outside of the indexed extent.
    #[error("index {index} is outside of 0..{extent}")]
    Index { index: i128, extent: usize },
    /// A size expression with a symbol that has no value, a division by zero or an overflow.
    #[error("size `{0}` has no value here")]
    Unbound(String),
    /// A value that a size symbol may not have.
    #[error("size `{name}`: expected a multiple of {divisor} in {lo}..={hi}, found {value}")]
    Symbol { name: String, value: i64, lo: i64, hi: i64, divisor: i64 },
    /// The message of an `assert` whose condition was false.
    #[error("assertion failed: {0}")]
    Assert(String),
    /// A host function that failed on what it was given.
    #[error("{0}")]
    Host(String),
    /// More memory, work or nesting than the [`crate::Budget`] allows.
    #[error("limit exceeded: {what} {needed}, allowed {allowed}")]
    Limit { what: &'static str, needed: u128, allowed: u128 },
    /// The primitive is not defined on these element types.
    #[error("{prim} is not defined on {dtype}")]
    Undefined { prim: &'static str, dtype: ir::DType },
}

impl OpError {
    pub(crate) fn mismatch(
        what: impl Into<String>,
        expected: impl ToString,
        found: impl ToString,
    ) -> OpError {
        OpError::Mismatch { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }
}

/// Why a run failed, in terms of the model.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum InterpError {
    #[error("expected {expected} inputs, found {found}")]
    InputCount { expected: usize, found: usize },
    #[error("input {index} `{name}`: {source}")]
    Input { index: usize, name: String, source: Box<OpError> },
    /// Failure of one operation; `node` and `op_type` are those of its origin in the model.
    #[error("node `{node}` ({op_type}), {prim}: {source}")]
    Op { node: String, op_type: String, prim: &'static str, source: Box<OpError> },
    #[error("constant `{name}`: {source}")]
    Const { name: String, source: Box<OpError> },
    /// The module refers to a value, constant or origin that it does not have.
    #[error("malformed module: {0}")]
    Malformed(String),
}

impl InterpError {
    /// The failure of the operation itself, where there is one.
    pub fn op_error(&self) -> Option<&OpError> {
        match self {
            InterpError::Input { source, .. }
            | InterpError::Op { source, .. }
            | InterpError::Const { source, .. } => Some(source),
            _ => None,
        }
    }
    /// True where a budget was too small, not the model wrong.
    pub fn is_limit(&self) -> bool {
        matches!(self.op_error(), Some(OpError::Limit { .. }))
    }
}
