//! An interpreter of PTX text that shares no code with the compiler: what it executes is the text that users
//! get, so a kernel that passes here has been read back by someone else.
//!
//! [`Module::parse`] reads a file and rejects what it does not know; [`Module::kernel`] decodes a kernel;
//! [`launch`] runs it over [`DeviceMemory`] under a [`Config`] that chooses the order of warps, the landing of
//! asynchronous copies and the checks. Faults name kernel, line, warp, lane and address ([`Fault`]).
//! [`mutate`] breaks correct kernels on purpose, to measure what the checks and tests catch; [`dataflow`] tells which
//! of that cannot make a difference. [`golden`] writes launches down, for a device to repeat.
//!
//! The references (§) are to the PTX ISA manual, version 8.8.

pub mod assemble;
pub mod dataflow;
mod decode;
mod exec;
mod fault;
pub mod golden;
mod mem;
mod module;
pub mod mutate;
mod num;
mod syntax;

pub use decode::Program;
pub use exec::config::{Config, Counters, Landing, Space as Requests};
pub use exec::{Launch, launch};
pub use fault::{Conflict, Fault, FaultKind};
pub use mem::global::DeviceMemory;
pub use module::{Error, Module, Params};
pub use num::formats;
pub use syntax::SyntaxError;
pub use syntax::ast;
pub use syntax::types::Space;
