//! Models from files into import-stage graph IR: primitives, and composites with a body of primitives.
//!
//! [`load`] takes a path and dispatches by extension, [`onnx::load_bytes`] takes ONNX from memory. All problems of a model
//! are reported at once, as [`Diagnostic`]s that name the node.

pub mod cases;
pub mod diag;
pub mod explain;
pub mod export;
pub mod onnx;
pub mod options;

pub use diag::{Code, Diagnostic, Kind, NodeRef, exit_code};
pub use options::{ImportOptions, MissingWeights, Structure};

use ir::Module;
use std::path::{Path, PathBuf};

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
    /// Files that were read beside the model's own.
    pub data_files: Vec<PathBuf>,
}

/// Reads the model in `path`: the native text form where the name ends in `.ksg`, else ONNX.
pub fn load(path: impl AsRef<Path>, opts: &ImportOptions) -> Result<Imported, Vec<Diagnostic>> {
    let path = path.as_ref();
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ksg")) {
        return native(path, opts).map_err(|d| vec![d]);
    }
    onnx::load(path, opts)
}

/// A model in the text form of the graph IR, verified.
fn native(path: &Path, opts: &ImportOptions) -> Result<Imported, Diagnostic> {
    let io = |e: std::io::Error| Diagnostic::new(Kind::Io, Code::File, format!("{}: {e}", path.display()));
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > opts.max_model_bytes {
        return Err(Diagnostic::limit(format!(
            "{size} bytes of text, at most {} are read",
            opts.max_model_bytes
        )));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let invalid = |e: ir::IrError| Diagnostic::invalid(Code::Format, format!("{}: {e}", path.display()));
    let module = ir::text::graph::parse(&text).map_err(invalid)?;
    ir::verify::graph::verify(&module).map_err(invalid)?;
    let g = &module.graph;
    let inputs = g.inputs.iter().map(|&v| Port::tensor(g[v].name.clone().unwrap_or_default())).collect();
    let outputs = module.output_names.iter().map(Port::tensor).collect();
    Ok(Imported { module, inputs, outputs, data_files: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_text_is_a_model() {
        let path = std::env::temp_dir().join(format!("kernelsmith-{}.ksg", std::process::id()));
        std::fs::write(&path, "graph @g(%x: f32[2]) {\n  %y = neg %x : f32[2]\n  return %y\n}\n").unwrap();
        let m = load(&path, &ImportOptions::default()).unwrap();
        assert_eq!((m.inputs.len(), m.outputs.len()), (1, 1));
        std::fs::write(&path, "graph @g(%x: f32[2]) {\n  %y = neg %x : f32[3]\n  return %y\n}\n").unwrap();
        let problems = load(&path, &ImportOptions::default()).unwrap_err();
        assert!(problems[0].message.contains("expected f32[2], found f32[3]"), "{}", problems[0]);
        std::fs::remove_file(&path).unwrap();
    }
}
