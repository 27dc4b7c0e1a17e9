//! From a model file to something that runs: the one place where all crates meet.

use frontend::cases::CaseValue;
use frontend::{Diagnostic, Imported, Port, PortKind, Structure};
use ir::host::Lowered;
use ir::{ConstSource, Dim, Math, Module, Tensor};
pub use passes::graph::StateSpec;
use runtime::{Context, InputView, Limits, Model, Pool, RunError};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// What to do with a model. The defaults are right for most uses.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// `llvm`, `cranelift`; `None` takes the best this build has.
    pub backend: Option<String>,
    /// Threads of one run, the caller's included; 0: the cores this process may use.
    pub threads: usize,
    /// Fixes named sizes (`batch=4`).
    pub dims: Vec<(String, i64)>,
    /// How exactly the model's arithmetic is followed.
    pub math: Math,
    /// Inputs and outputs that are one buffer, kept by the context from run to run (KV caches).
    pub states: Vec<StateSpec>,
    pub limits: Limits,
}

impl CompileOptions {
    /// What the passes are asked for.
    pub fn passes(&self) -> passes::Options {
        passes::Options { math: self.math, states: self.states.clone(), ..passes::Options::default() }
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
    #[error("{0}")]
    Usage(String),
}

fn list(problems: &[Diagnostic]) -> String {
    problems.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// Exit status of the command line: 1 wrong result, 2 usage, 3 unsupported, 4 bad input, 5 limit, 70 ours.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Import(d) if d.iter().any(|d| d.kind == frontend::Kind::Limit) => 5,
            Error::Import(d) if d.iter().all(|d| d.kind == frontend::Kind::Unsupported) => 3,
            Error::Import(_) | Error::Input(_) | Error::Array(_) => 4,
            Error::Passes(passes::PassError::Unsupported { .. }) => 3,
            Error::Codegen(codegen::CodegenError::UnknownBackend { .. }) | Error::Usage(_) => 2,
            Error::Passes(passes::PassError::State { .. }) => 2,
            Error::Passes(_) | Error::Codegen(_) => 70,
            Error::Run(RunError::Limit { .. } | RunError::Memory(_)) => 5,
            Error::Run(RunError::Program(_) | RunError::Code(_)) => 70,
            Error::Run(_) => 4,
            Error::Interp(e) if e.is_limit() => 5,
            Error::Interp(_) => 4,
        }
    }
}

/// Milliseconds of each stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub import: f64,
    pub passes: f64,
    pub codegen: f64,
    pub load: f64,
}

/// A compiled model, ready for any number of concurrent callers ([`Compiled::context`]).
pub struct Compiled {
    pub lowered: Lowered,
    pub model: Arc<Model>,
    pub stats: codegen::program::Stats,
    pub times: Times,
    pub backend: &'static str,
}

/// Reads a model (`.onnx`, `.ksg`) into import-stage graph IR.
pub fn import(path: &Path, options: &CompileOptions) -> Result<Imported, Error> {
    import_for(path, options, &[])
}

/// As [`import`], for a model whose structure (ranks, axes, numbers of results) may depend on what its
/// inputs hold or on their sizes: where that is so, and only then, these are fixed to those of `inputs`.
pub fn import_for(
    path: &Path,
    options: &CompileOptions,
    inputs: &[(String, CaseValue)],
) -> Result<Imported, Error> {
    let mut import = frontend::ImportOptions::default();
    import.dims.extend(options.dims.iter().cloned());
    import.structures.extend(inputs.iter().map(|(name, v)| (name.clone(), structure(v))));
    if inputs.iter().any(|(_, v)| matches!(v, CaseValue::Tensor(t) if t.elems() == 0)) {
        import.smallest_dim = 0;
    }
    let mut first = match frontend::load(path, &import) {
        Ok(imported) => return Ok(imported),
        Err(problems) => problems,
    };
    let tensors = || {
        inputs.iter().filter_map(|(name, v)| match v {
            CaseValue::Tensor(t) => Some((name, t)),
            _ => None,
        })
    };
    // integers decide structure more often than sizes do, and sizes more often than floats
    for fixed in [Fixed::Ints, Fixed::Sizes, Fixed::Floats] {
        if !first.iter().any(|d| d.code == frontend::Code::Dynamic) {
            break;
        }
        for (name, t) in tensors() {
            if fixed == Fixed::Sizes {
                import.shapes.insert(name.clone(), t.shape.iter().map(|&d| d as i64).collect());
            } else if t.elems() <= 64 && (fixed == Fixed::Floats || !t.dtype.is_float()) {
                import.constants.insert(name.clone(), t.clone());
            }
        }
        match frontend::load(path, &import) {
            Ok(imported) => return Ok(imported),
            // an error about what the caller did not write would only confuse
            Err(problems) if problems.len() < first.len() => first = problems,
            Err(_) => {}
        }
    }
    Err(Error::Import(first))
}

/// What of the inputs is fixed, in addition to what was fixed before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fixed {
    Ints,
    Sizes,
    Floats,
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

/// The backend that `options` ask for.
pub fn backend(options: &CompileOptions) -> Result<Box<dyn codegen::Backend>, Error> {
    let name = match &options.backend {
        Some(name) => name.as_str(),
        None => {
            *codegen::available().first().ok_or_else(|| Error::Usage("this build has no backend".into()))?
        }
    };
    Ok(codegen::backend(name, options.threads)?)
}

/// Compiles a model file.
pub fn compile(path: &Path, options: &CompileOptions) -> Result<Compiled, Error> {
    let began = Instant::now();
    let module = import(path, options)?.module;
    let import_ms = ms(began);
    let mut compiled = compile_module(module, options)?;
    compiled.times.import = import_ms;
    Ok(compiled)
}

/// Compiles a module from any source.
pub fn compile_module(mut module: Module, options: &CompileOptions) -> Result<Compiled, Error> {
    let backend = backend(options)?;
    let mut times = Times::default();
    let began = Instant::now();
    give_bytes(&mut module)?;
    let mut lowered = passes::compile(module, &backend.target(), &options.passes())?;
    // passes may add constants of their own
    give_bytes(&mut lowered.module)?;
    times.passes = ms(began);
    let began = Instant::now();
    let (program, stats) = codegen::program::build(&lowered, &*backend, options.math)?;
    times.codegen = ms(began);
    let began = Instant::now();
    let pool = Arc::new(Pool::new(options.threads));
    let model = Model::load(program, pool, options.limits)?;
    times.load = ms(began);
    Ok(Compiled { lowered, model, stats, times, backend: backend.name() })
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Splat and random constants become bytes, which is all that a program can hold.
fn give_bytes(module: &mut Module) -> Result<(), Error> {
    for c in &mut module.consts {
        if matches!(c.source, ConstSource::Splat(_) | ConstSource::Random { .. }) {
            c.source = ConstSource::Bytes(Arc::new(interp::materialise(c)?.data));
        }
    }
    Ok(())
}

impl Compiled {
    /// Memory for one caller.
    pub fn context(&self) -> Context {
        Context::new(self.model.clone())
    }

    /// Fills the states of `context` from tensors for all inputs of the model, in order; what is left of them
    /// are the inputs of a run.
    pub fn begin(&self, context: &mut Context, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let mut left: Vec<Option<Tensor>> = inputs.into_iter().map(Some).collect();
        for (i, s) in self.model.program().states.iter().enumerate() {
            if let Some(t) = left.get_mut(s.input).and_then(Option::take) {
                context.set_state(i, view(&t))?;
            }
        }
        Ok(left.into_iter().flatten().collect())
    }

    /// Runs on tensors, in the order of the model's inputs (without those that are states).
    pub fn run(&self, context: &mut Context, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        context.run(&views(inputs))?;
        Ok(self.outputs(context))
    }

    /// Copies of the outputs of the last run; of states, the rows that are there.
    pub fn outputs(&self, context: &Context) -> Vec<Tensor> {
        let states = &self.model.program().states;
        self.lowered
            .outputs
            .iter()
            .enumerate()
            .filter_map(|(i, &b)| {
                if let Some(s) = states.iter().position(|s| s.output == i) {
                    let s = context.state(s)?;
                    let dtype = self.lowered.buffers[b.0 as usize].dtype;
                    return Some(Tensor::new(dtype, s.dense_shape(), s.dense()));
                }
                let o = context.output(i)?;
                let mut t =
                    Tensor::new(self.lowered.buffers[b.0 as usize].dtype, o.shape.to_vec(), o.data.to_vec());
                if t.dtype == ir::DType::String {
                    t.strings = self.strings(i)?;
                }
                Some(t)
            })
            .collect()
    }

    /// Strings are the importer's matter: output `i`, where it holds any, is a constant.
    fn strings(&self, i: usize) -> Option<Vec<String>> {
        let m = &self.lowered.module;
        let op = m.graph.def_op(*m.graph.outputs.get(i)?)?;
        let ir::Prim::Const(c) = m.graph[op].prim else { return None };
        match &m.consts.get(c.0 as usize)?.source {
            ConstSource::Strings(s) => Some(s.to_vec()),
            _ => None,
        }
    }
}

fn view(t: &Tensor) -> InputView<'_> {
    InputView { elem: t.dtype.name(), shape: &t.shape, data: &t.data }
}

/// Tensors as the runtime takes them.
pub fn views(inputs: &[Tensor]) -> Vec<InputView<'_>> {
    inputs.iter().map(view).collect()
}

/// The inputs of a module: name, type with sizes by name.
pub fn describe_inputs(module: &Module) -> Vec<(String, String)> {
    module
        .graph
        .inputs
        .iter()
        .map(|&v| {
            let value = &module.graph[v];
            let dims: Vec<String> = value.ty.shape.iter().map(|d| dim_text(module, d)).collect();
            (value.name.clone().unwrap_or_default(), format!("{}[{}]", value.ty.dtype, dims.join(", ")))
        })
        .collect()
}

/// A size with its symbols by name.
pub fn dim_text(module: &Module, d: &Dim) -> String {
    let mut s = String::new();
    let name = |a: &ir::Atom| match a {
        ir::Atom::Sym(s) => module.symbols.infos.get(s.0 as usize).map_or("?".into(), |i| i.name.clone()),
        _ => "?".into(),
    };
    // writing to a String cannot fail
    let _ = d.write(&mut s, &name);
    s
}
