//! Errors of the passes: they name the pass and the node of the model.

use ir::{Graph, IrError, Module, OpId, Origin};
use thiserror::Error;

/// Why a model could not be lowered.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PassError {
    /// The model uses something that has no lowering yet: a gap of ours.
    #[error("{pass}: {message} (node `{}`, {})", node.node, node.op_type)]
    Unsupported { pass: &'static str, node: Box<Origin>, message: String },
    /// An operation does not satisfy its definition: operand types, shapes or attributes.
    #[error("{pass}: invalid {prim}: {message} (node `{}`, {})", node.node, node.op_type)]
    Invalid { pass: &'static str, prim: &'static str, node: Box<Origin>, message: String },
    /// An input that the caller wants to be a state cannot be one.
    #[error("state `{input}`: {message}")]
    State { input: String, message: String },
    /// A broken invariant: a fault of ours.
    #[error("{pass}: internal error: {message}")]
    Internal { pass: &'static str, message: String },
    /// The verifier refused what a pass left behind.
    #[error("after pass {pass}: {error}")]
    Verify { pass: &'static str, error: IrError },
    #[error(transparent)]
    Ir(#[from] IrError),
}

pub type Result<T, E = PassError> = std::result::Result<T, E>;

impl PassError {
    pub fn internal(pass: &'static str, message: impl Into<String>) -> PassError {
        PassError::Internal { pass, message: message.into() }
    }
    /// The op `op` of `graph` has no lowering, for the reason in `message`.
    pub fn unsupported(
        pass: &'static str,
        origins: &[Origin],
        graph: &Graph,
        op: OpId,
        message: impl Into<String>,
    ) -> PassError {
        let node = origin_of(origins, graph, op);
        PassError::Unsupported { pass, node: Box::new(node), message: message.into() }
    }
    pub fn invalid(
        pass: &'static str,
        origins: &[Origin],
        graph: &Graph,
        op: OpId,
        message: impl Into<String>,
    ) -> PassError {
        let node = origin_of(origins, graph, op);
        let prim = graph[op].prim.name();
        PassError::Invalid { pass, prim, node: Box::new(node), message: message.into() }
    }
}

/// Origin of an op; an op of a module built by hand may have none.
pub fn origin_of(origins: &[Origin], graph: &Graph, op: OpId) -> Origin {
    origins.get(graph[op].origin.index()).cloned().unwrap_or_default()
}

/// As [`origin_of`] for the main graph of a module.
pub fn origin_in(module: &Module, op: OpId) -> Origin {
    origin_of(&module.origins, &module.graph, op)
}
