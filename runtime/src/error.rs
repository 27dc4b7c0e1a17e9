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
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What is wrong with a GPU or its driver.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    #[error("this build has no support for GPUs (feature `cuda`)")]
    NotBuilt,
    #[error("no CUDA driver on this machine: {reason} (looked for {looked_for})")]
    NoDriver { looked_for: String, reason: String },
    #[error("the CUDA driver is too old: {found}; 12.0 or later is needed")]
    OldDriver { found: String },
    #[error("the CUDA driver has no device")]
    NoDevice,
    #[error("no device {ordinal}: the CUDA driver has {count}, numbered from 0")]
    NoOrdinal { ordinal: usize, count: usize },
    #[error("{name} is too old: its compute capability is {}.{}, {}.{} or later is needed", found.0, found.1, needed.0, needed.1)]
    OldDevice { name: String, found: (u32, u32), needed: (u32, u32) },
    #[error("out of device memory: {needed} bytes wanted, {free} of {total} free")]
    Memory { needed: usize, free: usize, total: usize },
    #[error("loading kernel {kernel} for the device: {message}")]
    Code { kernel: String, message: String },
    #[error("launching kernel {kernel}: {message}")]
    Launch { kernel: String, message: String },
    /// The context is lost.
    #[error(
        "the device failed: {message}; the last kernel known to be done: {done}; the fault is in one of: {pending}"
    )]
    Failed { message: String, done: String, pending: String },
    #[error(
        "the device's context is dead since an earlier error: {cause}; only a new process can use the device"
    )]
    Lost { cause: String },
    #[error("a CPU has no streams")]
    NoStreams,
    #[error("{function}: {message}")]
    Call { function: &'static str, message: String },
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
