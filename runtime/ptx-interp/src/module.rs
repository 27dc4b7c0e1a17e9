//! A loaded module: parsed text, and its variables placed in device memory.

use crate::decode::{Program, decode};
use crate::exec::config::{Config, Counters};
use crate::exec::{Launch, launch};
use crate::fault::Fault;
use crate::mem::global::DeviceMemory;
use crate::syntax::ast::{self, Kernel};
use crate::syntax::types::Space;
use crate::syntax::{SyntaxError, parse};
use std::collections::HashMap;

/// What can go wrong between a text and its results.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
    #[error("no kernel `{0}`")]
    NoKernel(String),
}

/// A parsed PTX file whose `.global` and `.const` variables have addresses.
#[derive(Debug)]
pub struct Module {
    source: String,
    ast: ast::Module,
    globals: HashMap<String, u64>,
    programs: HashMap<String, Program>,
}

impl Module {
    /// Parses `text` and decodes every kernel; variables are placed in `memory`.
    pub fn load(text: &str, memory: &mut DeviceMemory) -> Result<Module, Error> {
        let ast = parse(text)?;
        let mut globals = HashMap::new();
        for v in ast.vars.iter().filter(|v| matches!(v.space, Space::Global | Space::Const)) {
            let mut data = v.init.clone();
            data.resize(v.bytes as usize, 0);
            let base = memory.reserve(u64::from(v.bytes), u64::from(v.align));
            memory.insert(base, data, v.space == Space::Const);
            globals.insert(v.name.clone(), base);
        }
        let mut programs = HashMap::new();
        for k in &ast.kernels {
            programs.insert(k.name.clone(), decode(text, &ast, k, &globals)?);
        }
        Ok(Module { source: text.to_string(), ast, globals, programs })
    }

    /// Frees the variables.
    pub fn unload(&self, memory: &mut DeviceMemory) {
        for base in self.globals.values() {
            memory.free(*base);
        }
    }

    pub fn kernel(&self, name: &str) -> Result<&Program, Error> {
        self.programs.get(name).ok_or_else(|| Error::NoKernel(name.to_string()))
    }

    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.ast.kernels.iter()
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// `.version` and `.target`
    pub fn header(&self) -> ((u32, u32), &str) {
        (self.ast.version, &self.ast.target)
    }

    /// Address and size of a module variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        let bytes = self.ast.vars.iter().find(|v| v.name == name)?.bytes;
        Some((*self.globals.get(name)?, u64::from(bytes)))
    }

    /// Runs a kernel with its parameters packed in order, each at its own alignment.
    #[allow(clippy::too_many_arguments, reason = "the parts of a launch, as the driver takes them")]
    pub fn run(
        &self,
        memory: &mut DeviceMemory,
        config: &Config,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        params: &[u8],
    ) -> Result<Counters, Error> {
        let program = self.kernel(kernel)?;
        let l = Launch { program, grid, block, dynamic_shared, params };
        launch(memory, config, &l).map_err(|f| Error::Fault(Box::new(f)))
    }
}

/// Packs parameters: each value at a multiple of its size.
#[derive(Debug, Clone, Default)]
pub struct Params(Vec<u8>);

impl Params {
    pub fn new() -> Params {
        Params::default()
    }

    fn bytes(mut self, b: &[u8]) -> Params {
        self.0.resize(self.0.len().next_multiple_of(b.len()), 0);
        self.0.extend_from_slice(b);
        self
    }

    pub fn u64(self, v: u64) -> Params {
        self.bytes(&v.to_le_bytes())
    }

    pub fn u32(self, v: u32) -> Params {
        self.bytes(&v.to_le_bytes())
    }

    pub fn f32(self, v: f32) -> Params {
        self.bytes(&v.to_le_bytes())
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}
