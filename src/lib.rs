//! kernelsmith compiles trained models to native code and runs them.
//!
//! ```no_run
//! use kernelsmith::{CompileOptions, compile};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let compiled = compile("model.onnx".as_ref(), &CompileOptions::default())?;
//! let mut context = compiled.context(); // one for each concurrent caller
//! let x = kernelsmith::ir::Tensor::from_f32(vec![1, 3], &[1.0, 2.0, 3.0]);
//! let outputs = compiled.run(&mut context, &[x])?;
//! # Ok(()) }
//! ```

pub mod arrays;
pub mod cache;
pub mod ceiling;
pub mod cli;
pub mod compiled;
pub mod debug;
pub mod device;
pub mod driver;
mod stored;
pub mod tune;

pub use compiled::Compiled;
pub use device::DeviceChoice;
pub use driver::{CompileOptions, Error, StateSpec, compile, compile_module, import};
pub use {codegen, frontend, interp, ir, passes, runtime};
