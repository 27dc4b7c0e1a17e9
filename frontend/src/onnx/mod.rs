//! ONNX to graph IR.
//!
//! [`load`] reads a file, [`wire`] checks its bytes and leaves the weights where they are, [`import`]
//! walks the graph, and each operator has one row in [`ops`] with the function that composes it of
//! primitives.

pub mod attrs;
pub mod cx;
pub mod external;
mod extract;
pub mod import;
mod inputs;
pub mod ops;
pub mod sparse;
pub mod tensor;
pub mod wire;

use crate::Imported;
use crate::diag::{Code, Diagnostic, Kind};
use crate::options::ImportOptions;
use external::{DataFiles, FileBytes};
use onnx_protobuf::{Message, ModelProto};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::Storage;

/// Imports the model in `path`, memory-mapped.
pub fn load(path: &Path, opts: &ImportOptions) -> Result<Imported, Vec<Diagnostic>> {
    let io =
        |e: std::io::Error| vec![Diagnostic::new(Kind::Io, Code::File, format!("{}: {e}", path.display()))];
    let file = std::fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(vec![Diagnostic::new(
            Kind::Io,
            Code::File,
            format!("{} is not a regular file", path.display()),
        )]);
    }
    if meta.len() > opts.max_model_bytes {
        return Err(vec![Diagnostic::limit(format!("a model file of {} bytes", meta.len()))]);
    }
    let bytes = FileBytes::map(&file).map_err(io)?;
    import_file(bytes, Some(path.parent().unwrap_or(Path::new("")).to_owned()), opts)
}

/// Imports a model from memory; external data is looked for in `dir`.
pub fn load_bytes(
    bytes: Vec<u8>,
    dir: Option<PathBuf>,
    opts: &ImportOptions,
) -> Result<Imported, Vec<Diagnostic>> {
    if bytes.len() as u64 > opts.max_model_bytes {
        return Err(vec![Diagnostic::limit(format!("a model of {} bytes", bytes.len()))]);
    }
    import_file(FileBytes::Owned(bytes), dir, opts)
}

fn import_file(
    bytes: FileBytes,
    dir: Option<PathBuf>,
    opts: &ImportOptions,
) -> Result<Imported, Vec<Diagnostic>> {
    let bad = |e: &dyn std::fmt::Display| {
        vec![Diagnostic::invalid(Code::Format, format!("not an ONNX model: {e}"))]
    };
    let skeleton = wire::scan(bytes.as_slice()).map_err(|e| bad(&e))?;
    let model = ModelProto::parse_from_bytes(&skeleton.bytes).map_err(|e| bad(&e))?;
    let storage = Storage {
        file: Arc::new(bytes),
        blobs: skeleton.blobs,
        data_files: DataFiles::new(dir, opts.allow_hard_links),
        missing: opts.missing_weights,
    };
    import::import(&model, storage, opts)
}
