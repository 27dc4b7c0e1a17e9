//! From loop IR to machine code.
//!
//! An emitter ([`Backend`]) takes functions in machine form, puts the instructions of each block in order of
//! demand, and translates them one to one; all other decisions were taken before. The result is one relocatable, position-independent object per
//! function with a single global symbol and no undefined ones.

// A build without emitters still legalises and writes programs; what serves emitters alone lies idle in it.
#![cfg_attr(not(any(feature = "llvm", feature = "cranelift")), allow(dead_code, unused_variables))]

mod entry;
mod error;
pub mod legalise;
mod object_check;
mod order;
pub mod program;
pub mod ptx;
pub mod target;

#[cfg(feature = "cranelift")]
mod cranelift;
#[cfg(feature = "llvm")]
mod llvm;

pub use entry::scratch_bytes;
pub use error::{CodegenError, Fault};
pub use program::{ObjectStore, functions_compiled};

use ir::loops::Func;
use ir::target::TargetDesc;

/// Machine code of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledFunc {
    /// A relocatable ELF object, or PTX text.
    pub object: Vec<u8>,
    /// The global function symbol in it, with the ABI of `format::abi::KernelFn`; or the entry, with that of
    /// [`ptx::PtxKernel`].
    pub symbol: String,
    /// Threads of a block; 0 for the host.
    pub block: u32,
    /// Iterations that a block works on at once; 0 for the host.
    pub at_once: u32,
}

/// An emitter of machine code for this host.
pub trait Backend: Send + Sync {
    /// As in [`available`].
    fn name(&self) -> &'static str;
    /// What schedules and legalisation should aim at.
    fn target(&self) -> TargetDesc;
    /// Compiles functions in machine form, in the given order, on several threads.
    fn compile(&self, funcs: &[&Func]) -> Result<Vec<CompiledFunc>, CodegenError>;
    /// Gives memory back to the system that only compiling needs. More can be compiled afterwards, a little later.
    fn rest(&self) {}
    /// The emitter's own intermediate language (LLVM IR, CLIF), for people.
    fn ir_text(&self, func: &Func) -> Result<String, CodegenError>;
    /// Assembly, for people.
    fn asm_text(&self, func: &Func) -> Result<String, CodegenError>;
}

/// Names of the backends in this build, best first.
pub fn available() -> Vec<&'static str> {
    let mut names = Vec::new();
    if cfg!(feature = "llvm") {
        names.push("llvm");
    }
    if cfg!(feature = "cranelift") {
        names.push("cranelift");
    }
    names
}

/// The LLVM emitter for a CPU by name ([`target::named`]), whose code this machine may be unable to run: for people
/// who look at it.
pub fn backend_for(cpu: &str) -> Result<Box<dyn Backend>, CodegenError> {
    #[cfg(feature = "llvm")]
    if let Some(desc) = target::named(cpu) {
        return Ok(Box::new(llvm::Llvm::of(desc)?));
    }
    Err(CodegenError::UnknownBackend { name: format!("llvm for {cpu}"), available: target::names() })
}

/// A backend by name for the CPU that this runs on; `threads` is what a parallel loop and the
/// compiler itself may use (0: all cores).
pub fn backend(name: &str, threads: usize) -> Result<Box<dyn Backend>, CodegenError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    match name {
        #[cfg(feature = "llvm")]
        "llvm" => Ok(Box::new(llvm::Llvm::new(threads)?)),
        #[cfg(feature = "cranelift")]
        "cranelift" => Ok(Box::new(cranelift::Cranelift::new(threads)?)),
        _ => Err(CodegenError::UnknownBackend { name: name.to_string(), available: available().join(", ") }),
    }
}
