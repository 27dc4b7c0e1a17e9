//! `kernelsmith export`

use super::{ModelArgs, Outcome, output_error};
use crate::driver::{self, Error};
use clap::{Args, ValueEnum};
use frontend::export::{ExportOptions, export as write_onnx};
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The file to write
    #[arg(short, long, value_name = "FILE.onnx")]
    out: PathBuf,
    /// The graph as imported, or as the passes leave it
    #[arg(long, default_value = "import")]
    stage: Stage,
    /// Spell out what ONNX leaves open (integers divided by 0, floats out of an integer's range), so that every runtime
    /// gives the results that this one does
    #[arg(long)]
    portable: bool,
    /// Constants of at least so many bytes go to FILE.onnx.data; 0: none, until the file would pass 2 GB
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    external: usize,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// As imported: operators of the model as primitives.
    Import,
    /// The canonical graph: folded, simplified, without duplicates.
    Graph,
}

/// Bytes of constants from which on a data file is needed: a protobuf message holds 2 GB.
const INLINE_LIMIT: usize = 2_000_000_000;

pub(super) fn export(args: &ExportArgs) -> Result<Outcome, Error> {
    let options = args.model.options();
    let mut module = driver::import(&args.model.model, &options)?.module;
    if args.stage == Stage::Graph {
        module = driver::canonical(module, &options)?;
    }
    // of constants that are not spelled out, too, which may be of any size
    let bytes_of = |c: &ir::ConstData| c.shape.iter().fold(c.dtype.bytes(), |n, d| n.saturating_mul(*d));
    let bytes = module.consts.iter().map(bytes_of).fold(0usize, usize::saturating_add);
    let external_bytes = if args.external == 0 && bytes > INLINE_LIMIT { 1024 } else { args.external };
    let file_name = args.out.file_name().unwrap_or_default().to_string_lossy();
    let external_name = format!("{file_name}.data");
    let how = ExportOptions { portable: args.portable, external_bytes, external_name: external_name.clone() };
    let materialise = |c: &ir::ConstData| interp::materialise(c).map_err(|e| e.to_string());
    let refused = |e: frontend::export::ExportError| Error::Export(e.to_string());
    let exported = write_onnx(&module, &how, &materialise).map_err(refused)?;
    let model = exported.to_bytes().map_err(refused)?;
    std::fs::write(&args.out, &model).map_err(output_error)?;
    if !exported.data.is_empty() {
        std::fs::write(args.out.with_file_name(&external_name), &exported.data).map_err(output_error)?;
    }
    let nodes = exported.model.graph.node.len();
    println!("{}: {nodes} nodes, {} bytes", args.out.display(), model.len() + exported.data.len());
    Ok(Outcome::Good)
}
