//! From a model file to something that runs: the one place where all crates meet.

use crate::cache::CacheOptions;
use crate::compiled::{Compiled, Times, inputs_of, outputs_of};
use crate::device::{DeviceChoice, Machine};
use crate::stored::{ModelFiles, Stored};
use frontend::cases::CaseValue;
use frontend::{Diagnostic, Imported, Port, PortKind, Structure};
use ir::host::Lowered;
use ir::{ConstSource, Math, Module, Tensor};
pub use passes::graph::StateSpec;
use passes::schedule::tuned::Tuned;
use runtime::{DeviceError, Limits, Model, RunError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use thiserror::Error;

/// What to do with a model. The defaults are right for most uses.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// Which processor runs the model.
    pub device: DeviceChoice,
    /// On a GPU: waits after each kernel, so that an error names the one that caused it.
    pub check_launches: bool,
    /// For the CPU: `llvm`, `cranelift`; `None` takes the best this build has.
    pub backend: Option<String>,
    /// Threads of one run, the caller's included; 0: the cores this process may use.
    pub threads: usize,
    /// Fixes named sizes (`batch=4`).
    pub dims: Vec<(String, i64)>,
    /// How exactly the model's arithmetic is followed.
    pub math: Math,
    /// Inputs and outputs that are one buffer, kept by the context from run to run (KV caches).
    pub states: Vec<StateSpec>,
    /// Schedules that `kernelsmith tune` found.
    pub tuned: Option<Arc<Tuned>>,
    pub limits: Limits,
    /// How many decisions the passes take; for finding a bad one.
    pub decisions: passes::limits::Limits,
    /// A fault that a test wants found.
    #[cfg(feature = "planted-faults")]
    pub planted: Option<passes::planted::Fault>,
    /// One more: the expansion of `erf` is off by a thousandth.
    #[cfg(feature = "planted-faults")]
    pub wrong_erf: bool,
    /// Where compiled programs and kernels are kept; `None`: nowhere.
    pub cache: Option<CacheOptions>,
}

impl CompileOptions {
    /// What the passes are asked for.
    pub fn passes(&self) -> passes::Options {
        passes::Options {
            math: self.math,
            states: self.states.clone(),
            tuned: self.tuned.clone(),
            limits: self.decisions.clone(),
            #[cfg(feature = "planted-faults")]
            planted: self.planted,
            ..passes::Options::default()
        }
    }
}

impl CompileOptions {
    /// What legalisation is asked for.
    pub(crate) fn legalisation(&self) -> codegen::legalise::Options {
        #[cfg_attr(not(feature = "planted-faults"), expect(unused_mut))]
        let mut options = codegen::legalise::Options::from(self.math);
        #[cfg(feature = "planted-faults")]
        {
            options.wrong_erf = self.wrong_erf;
        }
        options
    }
}

/// Why a model could not be compiled or run.
#[derive(Debug, Error)]
pub enum Error {
    /// Everything that is wrong with the model, or that we cannot do with it.
    #[error("{}", list(.0))]
    Import(Vec<Diagnostic>),
    #[error(transparent)]
    Passes(#[from] passes::PassError),
    #[error(transparent)]
    Codegen(#[from] codegen::CodegenError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("reference interpreter: {0}")]
    Interp(#[from] interp::InterpError),
    #[error(transparent)]
    Array(#[from] crate::arrays::ArrayError),
    /// Inputs that do not fit the model.
    #[error("{0}")]
    Input(String),
    /// What ONNX cannot say.
    #[error("export: {0}")]
    Export(String),
    #[error("{0}")]
    Usage(String),
}

fn list(problems: &[Diagnostic]) -> String {
    problems.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// Exit status of the command line: 1 wrong result, 2 usage, 3 unsupported, 4 bad input, 5 limit,
    /// 6 no such device or a failing one, 70 ours.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Import(d) if d.iter().any(|d| d.kind == frontend::Kind::Limit) => 5,
            Error::Import(d) if d.iter().all(|d| d.kind == frontend::Kind::Unsupported) => 3,
            Error::Import(_) | Error::Input(_) | Error::Array(_) => 4,
            Error::Passes(passes::PassError::Unsupported { .. }) | Error::Export(_) => 3,
            Error::Codegen(codegen::CodegenError::UnknownBackend { .. }) | Error::Usage(_) => 2,
            Error::Passes(passes::PassError::State { .. }) => 2,
            Error::Passes(_) | Error::Codegen(_) => 70,
            Error::Run(
                RunError::Limit { .. } | RunError::Memory(_) | RunError::Device(DeviceError::Memory { .. }),
            ) => 5,
            Error::Run(RunError::Device(DeviceError::Code { .. } | DeviceError::Launch { .. })) => 70,
            Error::Run(RunError::Device(_)) => 6,
            Error::Run(RunError::Program(_) | RunError::Code(_)) => 70,
            Error::Run(_) => 4,
            Error::Interp(e) if e.is_limit() => 5,
            Error::Interp(_) => 4,
        }
    }
}

/// Reads a model (`.onnx`, `.ksg`) into import-stage graph IR.
pub fn import(path: &Path, options: &CompileOptions) -> Result<Imported, Error> {
    import_for(path, options, &[])
}

/// Everything that is wrong with a model or beyond this compiler, without compiling it: what the importer finds, and
/// where it finds nothing the first op that has no kernel. `extract`: with the smallest model for each.
///
/// # Errors
/// What is no statement about the model: a fault of ours.
pub fn check_all(path: &Path, options: &CompileOptions, extract: bool) -> Result<Vec<Diagnostic>, Error> {
    let mut import = frontend::ImportOptions { extract, ..frontend::ImportOptions::default() };
    import.dims.extend(options.dims.iter().cloned());
    let mut module = match frontend::load(path, &import) {
        Ok(imported) => imported.module,
        Err(problems) => return Ok(problems),
    };
    give_bytes(&mut module)?;
    let target = backend(options)?.target();
    match passes::run_until(module, &target, &options.passes(), passes::Stage::Kernels) {
        Ok(_) => Ok(Vec::new()),
        Err(passes::PassError::Unsupported { node, message, .. }) => {
            let mut d = Diagnostic::unsupported(frontend::Code::Op, message);
            d.node = Some(frontend::NodeRef {
                path: node.node,
                op_type: node.op_type,
                domain: String::new(),
                opset: node.opset,
            });
            Ok(vec![d])
        }
        Err(e) => Err(e.into()),
    }
}

/// As [`import`], for a model whose structure (ranks, axes, numbers of results) may depend on what its
/// inputs hold or on their sizes: where that is so, and only then, these are fixed to those of `inputs`.
pub fn import_for(
    path: &Path,
    options: &CompileOptions,
    inputs: &[(String, CaseValue)],
) -> Result<Imported, Error> {
    import_fixing(path, options, inputs).map(|(imported, _)| imported)
}

/// As [`import_for`]; also what of the inputs was fixed.
fn import_fixing(
    path: &Path,
    options: &CompileOptions,
    inputs: &[(String, CaseValue)],
) -> Result<(Imported, Fixed), Error> {
    let mut problems: Vec<Diagnostic> = Vec::new();
    for fixed in Fixed::ALL {
        match frontend::load(path, &import_options(options, inputs, fixed)) {
            Ok(imported) => return Ok((imported, fixed)),
            Err(found) => {
                // an error about what the caller did not write would only confuse
                if fixed == Fixed::Nothing || found.len() < problems.len() {
                    problems = found;
                }
            }
        }
        if !problems.iter().any(|d| d.code == frontend::Code::Dynamic) {
            break;
        }
    }
    Err(Error::Import(problems))
}

/// What of the inputs is fixed: each step includes those before it. Integers decide structure more often
/// than sizes do, and sizes more often than floats.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fixed {
    Nothing,
    Ints,
    Sizes,
    Floats,
}

impl Fixed {
    pub(crate) const ALL: [Fixed; 4] = [Fixed::Nothing, Fixed::Ints, Fixed::Sizes, Fixed::Floats];
}

/// What the importer is asked for.
pub(crate) fn import_options(
    options: &CompileOptions,
    inputs: &[(String, CaseValue)],
    fixed: Fixed,
) -> frontend::ImportOptions {
    let mut import = frontend::ImportOptions::default();
    import.dims.extend(options.dims.iter().cloned());
    import.structures.extend(inputs.iter().map(|(name, v)| (name.clone(), structure(v))));
    if inputs.iter().any(|(_, v)| matches!(v, CaseValue::Tensor(t) if t.elems() == 0)) {
        import.smallest_dim = 0;
    }
    for (name, v) in inputs {
        let CaseValue::Tensor(t) = v else { continue };
        let wanted = if t.dtype.is_float() { Fixed::Floats } else { Fixed::Ints };
        if fixed >= wanted && t.elems() <= 64 {
            import.constants.insert(name.clone(), t.clone());
        }
        if fixed >= Fixed::Sizes {
            import.shapes.insert(name.clone(), t.shape.iter().map(|&d| d as i64).collect());
        }
    }
    import
}

fn structure(v: &CaseValue) -> Structure {
    match v {
        CaseValue::Tensor(t) => Structure::Tensor { rank: t.shape.len() },
        CaseValue::Sequence(items) => Structure::Sequence(items.iter().map(structure).collect()),
        CaseValue::Absent => Structure::Absent,
    }
}

/// The tensors of a value, in order.
pub fn flatten(v: &CaseValue, out: &mut Vec<Tensor>) {
    match v {
        CaseValue::Tensor(t) => out.push(t.clone()),
        CaseValue::Sequence(items) => items.iter().for_each(|i| flatten(i, out)),
        CaseValue::Absent => {}
    }
}

/// The value of an output made of the tensors that a program returned for it.
pub fn rebuild(port: &Port, tensors: &mut dyn Iterator<Item = Tensor>) -> Option<CaseValue> {
    Some(match &port.kind {
        PortKind::Tensor => CaseValue::Tensor(tensors.next()?),
        PortKind::Sequence(items) => {
            CaseValue::Sequence(items.iter().map(|i| rebuild(i, tensors)).collect::<Option<_>>()?)
        }
        PortKind::Absent => CaseValue::Absent,
    })
}

/// The emitter for the device that `options` ask for, which is opened if it is a GPU.
pub fn backend(options: &CompileOptions) -> Result<Box<dyn codegen::Backend>, Error> {
    Ok(Machine::open(options)?.backend)
}

/// Compiles a model file, or finds it in the cache of `options`.
pub fn compile(path: &Path, options: &CompileOptions) -> Result<Compiled, Error> {
    compile_for(path, options, &[])
}

/// As [`compile`], for a model whose structure may depend on these inputs (see [`import_for`]).
pub fn compile_for(
    path: &Path,
    options: &CompileOptions,
    inputs: &[(String, CaseValue)],
) -> Result<Compiled, Error> {
    let machine = Machine::open(options)?;
    let stored = Stored::open(options, &*machine.backend);
    if let Some(found) = stored.as_ref().and_then(|s| s.find(path, options, inputs, &machine)) {
        return Ok(found);
    }
    let (since, began) = (SystemTime::now(), Instant::now());
    let (imported, fixed) = import_fixing(path, options, inputs)?;
    let mut times = Times { import: ms(began), ..Times::default() };
    let lowered = lower(imported.module, options, &*machine.backend, &mut times)?;
    let mut compiled = finish(lowered, options, &machine, stored.as_ref(), times)?;
    if let Some(stored) = stored {
        let read = ModelFiles { path: path.to_owned(), data: imported.data_files, since };
        stored.save(&mut compiled, read, options, inputs, fixed);
    }
    Ok(compiled)
}

/// Compiles a module from any source, without a cache.
pub fn compile_module(module: Module, options: &CompileOptions) -> Result<Compiled, Error> {
    let machine = Machine::open(options)?;
    let mut times = Times::default();
    let lowered = lower(module, options, &*machine.backend, &mut times)?;
    finish(lowered, options, &machine, None, times)
}

/// As [`compile_module`]; also what the passes made of the module.
pub fn compile_lowered(module: Module, options: &CompileOptions) -> Result<(Compiled, Lowered), Error> {
    let machine = Machine::open(options)?;
    let mut times = Times::default();
    let lowered = lower(module, options, &*machine.backend, &mut times)?;
    Ok((finish(lowered.clone(), options, &machine, None, times)?, lowered))
}

/// The canonical graph of a model.
///
/// # Errors
/// Those of the passes.
pub fn canonical(mut module: Module, options: &CompileOptions) -> Result<Module, Error> {
    give_bytes(&mut module)?;
    let target = backend(options)?.target();
    match passes::run_until(module, &target, &options.passes(), passes::Stage::Canonical)? {
        passes::State::Graph(m) => Ok(m),
        _ => Err(Error::Usage("the canonical stage is not a graph".into())),
    }
}

/// The model as kernels without schedules.
pub(crate) fn plan(
    mut module: Module,
    options: &CompileOptions,
    backend: &dyn codegen::Backend,
) -> Result<passes::Planned, Error> {
    give_bytes(&mut module)?;
    let state = passes::run_until(module, &backend.target(), &options.passes(), passes::Stage::Kernels)?;
    let passes::State::Planned(mut planned) = state else {
        return Err(Error::Usage("the pipeline has no stage of kernels".into()));
    };
    give_bytes(&mut planned.module)?;
    Ok(planned)
}

fn lower(
    mut module: Module,
    options: &CompileOptions,
    backend: &dyn codegen::Backend,
    times: &mut Times,
) -> Result<Lowered, Error> {
    let began = Instant::now();
    give_bytes(&mut module)?;
    let mut lowered = passes::compile(module, &backend.target(), &options.passes())?;
    // passes may add constants of their own
    give_bytes(&mut lowered.module)?;
    times.passes = ms(began);
    Ok(lowered)
}

/// Machine code, packed weights. Takes the lowered model, so that its memory is free before weights are packed.
fn finish(
    lowered: Lowered,
    options: &CompileOptions,
    machine: &Machine,
    stored: Option<&Stored>,
    mut times: Times,
) -> Result<Compiled, Error> {
    let began = Instant::now();
    let backend = &*machine.backend;
    // what is kept of single kernels is code for the host
    let kernels = stored.filter(|_| machine.gpu.is_none()).map(Stored::kernels);
    let store = kernels.as_ref().map(|k| k as &dyn codegen::ObjectStore);
    let (program, stats) = codegen::program::build(&lowered, backend, options.math, store)?;
    let (inputs, outputs) = (inputs_of(&lowered.module), outputs_of(&lowered.module));
    drop(lowered);
    backend.rest();
    return_memory();
    times.codegen = ms(began);
    let model = load(program, options, machine, &mut times)?;
    let backend = backend.name();
    Ok(Compiled { model, inputs, outputs, stats, times, backend, cached: false, saving: None })
}

/// Gives what the allocator holds on to after compiling back to the system: weights are packed next.
fn return_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

pub(crate) fn load(
    program: format::Program,
    options: &CompileOptions,
    machine: &Machine,
    times: &mut Times,
) -> Result<Arc<Model>, Error> {
    let began = Instant::now();
    let model = Model::load_on(program, machine.device(options), options.limits)?;
    times.load = ms(began);
    Ok(model)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Splat and random constants become bytes, which is all that a program can hold.
pub(crate) fn give_bytes(module: &mut Module) -> Result<(), Error> {
    for c in &mut module.consts {
        if matches!(c.source, ConstSource::Splat(_) | ConstSource::Random { .. }) {
            c.source = ConstSource::Bytes(Arc::new(interp::materialise(c)?.data));
        }
    }
    Ok(())
}
