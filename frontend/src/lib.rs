//! Models from files: ONNX into import-stage graph IR.

pub mod diag;
pub mod onnx;

pub use diag::{Code, Diagnostic, Kind};
