//! Errors of loading and running.

use crate::loader::LoadError;
use format::{OriginDef, SizeError};
use thiserror::Error;

/// Why a program could not be loaded or run.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RunError {
    #[error("input {index} \"{name}\": expected {expected}, found {found}")]
    Input { index: usize, name: String, expected: String, found: String },
    #[error("{missing} input(s) missing; the model wants {expected}")]
    InputCount { expected: usize, missing: usize },
    #[error("state \"{name}\": {message}")]
    State { name: String, message: String },
    #[error("size `{symbol}` is {value}, outside its range {lo}..={hi}{}", at(.origin))]
    Range { symbol: String, value: i64, lo: i64, hi: i64, origin: Option<OriginDef> },
    #[error("{message}: {a} != {b}{}", at(.origin))]
    SizeMismatch { message: String, a: i64, b: i64, origin: Option<OriginDef> },
    #[error("index {value} out of range 0..{limit}{}", at(.origin))]
    Index { value: i64, limit: i64, origin: Option<OriginDef> },
    #[error("assertion failed: {message}{}", at(.origin))]
    Assert { message: String, origin: Option<OriginDef> },
    #[error("{function}: {message}{}", at(.origin))]
    Host { function: &'static str, message: String, origin: Option<OriginDef> },
    #[error("size computation failed ({kind:?}) for {what}")]
    Size { what: String, kind: SizeError },
    #[error("limit exceeded: {what} needs {needed} bytes, limit {limit}")]
    Limit { what: String, needed: u64, limit: u64 },
    #[error("out of memory: {0}")]
    Memory(String),
    #[error("run cancelled")]
    Cancelled,
    #[error("invalid program: {0}")]
    Program(String),
    #[error("artefact: {0}")]
    Artefact(#[from] format::artefact::ArtefactError),
    #[error("loading machine code: {0}")]
    Code(#[from] LoadError),
}

fn at(origin: &Option<OriginDef>) -> String {
    match origin {
        Some(o) if !o.node.is_empty() || !o.op_type.is_empty() => {
            format!(" at node \"{}\" ({}-{})", o.node, o.op_type, o.opset)
        }
        _ => String::new(),
    }
}

pub type Result<T, E = RunError> = std::result::Result<T, E>;
