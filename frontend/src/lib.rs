//! Models from files into import-stage graph IR: primitives, and composites with a body of primitives.
//!
//! [`load`] takes a path and dispatches by extension, [`onnx::load_bytes`] takes ONNX from memory. All problems of a model
//! are reported at once, as [`Diagnostic`]s that name the node.

pub mod cases;
pub mod diag;
pub mod onnx;
pub mod options;

pub use diag::{Code, Diagnostic, Kind, NodeRef, exit_code};
pub use options::{ImportOptions, MissingWeights, Structure};

use ir::Module;
use std::path::Path;

/// An input or output of a model as its user sees it, in terms of the module's tensors.
#[derive(Clone, PartialEq, Debug)]
pub struct Port {
    pub name: String,
    pub kind: PortKind,
}

/// How a port maps to tensors. The module's inputs (outputs) are the tensors of all ports in order.
#[derive(Clone, PartialEq, Debug)]
pub enum PortKind {
    /// One tensor.
    Tensor,
    /// The elements of a sequence; their number is fixed by the model.
    Sequence(Vec<Port>),
    /// An optional that holds nothing.
    Absent,
}

impl Port {
    pub fn tensor(name: impl Into<String>) -> Port {
        Port { name: name.into(), kind: PortKind::Tensor }
    }
}

/// A model in graph IR.
#[derive(Clone, Debug)]
pub struct Imported {
    pub module: Module,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// Reads the model in `path`: ONNX.
pub fn load(path: impl AsRef<Path>, opts: &ImportOptions) -> Result<Imported, Vec<Diagnostic>> {
    onnx::load(path.as_ref(), opts)
}
