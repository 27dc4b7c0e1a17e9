//! A compiled model, and what its callers have to know of it.

use crate::driver::Error;
use format::{Program, SizeExpr, SizeOp};
use ir::{DType, Dim, Module, Tensor};
use runtime::{Context, InputView, Model};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Milliseconds of each stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub import: f64,
    pub passes: f64,
    pub codegen: f64,
    pub load: f64,
}

/// An input as its caller sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputSpec {
    pub name: String,
    pub dtype: DType,
    /// Sizes with their symbols by name.
    pub dims: Vec<String>,
    /// The shape where every symbol has its least value, but 1 at least.
    pub least: Vec<usize>,
}

impl InputSpec {
    /// `f32[batch, 3]`
    pub fn ty(&self) -> String {
        format!("{}[{}]", self.dtype, self.dims.join(", "))
    }
}

/// An output as its caller sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputSpec {
    pub name: String,
    pub dtype: DType,
    /// Strings are the importer's matter: an output that holds any is a constant.
    pub strings: Option<Vec<String>>,
}

/// A compiled model, ready for any number of concurrent callers ([`Compiled::context`]).
pub struct Compiled {
    pub model: Arc<Model>,
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
    pub stats: codegen::program::Stats,
    pub times: Times,
    pub backend: &'static str,
    /// It was found in the cache.
    pub cached: bool,
    pub(crate) saving: Option<JoinHandle<std::io::Result<()>>>,
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
        self.outputs(context)
    }

    /// Copies of the outputs of the last run; of states, the rows that are there.
    ///
    /// # Errors
    /// Those of a device that states lie on.
    pub fn outputs(&self, context: &Context) -> Result<Vec<Tensor>, Error> {
        let states = &self.model.program().states;
        let of = |(i, spec): (usize, &OutputSpec)| {
            if let Some(s) = states.iter().position(|s| s.output == i) {
                let s = context.state(s)?;
                return Some(s.dense().map(|data| Tensor::new(spec.dtype, s.dense_shape(), data)));
            }
            let o = context.output(i)?;
            let mut t = Tensor::new(spec.dtype, o.shape.to_vec(), o.data.to_vec());
            if spec.dtype == DType::String {
                t.strings = spec.strings.clone()?;
            }
            Some(Ok(t))
        };
        self.outputs.iter().enumerate().filter_map(of).map(|t: Result<_, runtime::RunError>| Ok(t?)).collect()
    }

    /// Waits until the cache has the program. A compiled model that is dropped waits too.
    ///
    /// # Errors
    /// Why it could not be stored; the model is usable all the same.
    pub fn saved(&mut self) -> std::io::Result<()> {
        let Some(saving) = self.saving.take() else { return Ok(()) };
        saving.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer of the cache panicked")))
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // nobody is left to be told
        let _ = self.saved();
    }
}

fn view(t: &Tensor) -> InputView<'_> {
    InputView { elem: t.dtype.name(), shape: &t.shape, data: &t.data }
}

/// Tensors as the runtime takes them.
pub fn views(inputs: &[Tensor]) -> Vec<InputView<'_>> {
    inputs.iter().map(view).collect()
}

/// The inputs of a module.
pub fn inputs_of(module: &Module) -> Vec<InputSpec> {
    let spec = |&v: &ir::ValueId| {
        let value = &module.graph[v];
        let least = |d: &Dim| d.eval_syms(&|s| Some(module.symbols.get(s).lo.max(1))).unwrap_or(1);
        InputSpec {
            name: value.name.clone().unwrap_or_default(),
            dtype: value.ty.dtype,
            dims: value.ty.shape.iter().map(|d| dim_text(module, d)).collect(),
            least: value.ty.shape.iter().map(|d| least(d).max(0) as usize).collect(),
        }
    };
    let mut specs: Vec<InputSpec> = module.graph.inputs.iter().map(spec).collect();
    for s in &module.states {
        rows_of_state(
            &mut specs,
            s.input,
            s.axis,
            module.symbols.infos.get(s.len.0 as usize).map(|i| &i.name),
        );
    }
    specs
}

/// The caller gives a state the rows that there are, not all that there is room for.
fn rows_of_state(specs: &mut [InputSpec], input: usize, axis: usize, len: Option<&String>) {
    let Some(spec) = specs.get_mut(input) else { return };
    if let (Some(dim), Some(least), Some(len)) = (spec.dims.get_mut(axis), spec.least.get_mut(axis), len) {
        dim.clone_from(len);
        *least = (*least).min(1);
    }
}

/// The inputs of a program. `None` where an element type is none of ours.
pub(crate) fn inputs_of_program(program: &Program) -> Option<Vec<InputSpec>> {
    let least: Vec<i64> = program.symbols.iter().map(|s| s.lo.max(1)).collect();
    let spec = |io: &format::IoDef| {
        Some(InputSpec {
            name: io.name.clone(),
            dtype: dtype(io.elem.name)?,
            dims: io.shape.iter().map(|e| size_text(program, e)).collect(),
            least: io.shape.iter().map(|e| e.eval(&least).unwrap_or(1).max(0) as usize).collect(),
        })
    };
    let mut specs: Vec<InputSpec> = program.inputs.iter().map(spec).collect::<Option<_>>()?;
    for s in &program.states {
        rows_of_state(&mut specs, s.input, s.axis, program.symbols.get(s.len as usize).map(|s| &s.name));
    }
    Some(specs)
}

/// The outputs of a program without strings.
pub(crate) fn outputs_of_program(program: &Program) -> Option<Vec<OutputSpec>> {
    let spec = |io: &format::IoDef| {
        Some(OutputSpec { name: io.name.clone(), dtype: dtype(io.elem.name)?, strings: None })
    };
    program.outputs.iter().map(spec).collect()
}

/// The outputs of a module.
pub(crate) fn outputs_of(module: &Module) -> Vec<OutputSpec> {
    let strings = |v: ir::ValueId| {
        let op = module.graph.def_op(v)?;
        let ir::Prim::Const(c) = module.graph[op].prim else { return None };
        match &module.consts.get(c.0 as usize)?.source {
            ir::ConstSource::Strings(s) => Some(s.to_vec()),
            _ => None,
        }
    };
    let name = |i: usize| module.output_names.get(i).cloned().unwrap_or_default();
    let spec = |(i, &v): (usize, &ir::ValueId)| OutputSpec {
        name: name(i),
        dtype: module.graph[v].ty.dtype,
        strings: strings(v),
    };
    module.graph.outputs.iter().enumerate().map(spec).collect()
}

fn dtype(name: &str) -> Option<DType> {
    DType::ALL.iter().copied().find(|d| d.name() == name)
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

/// As [`dim_text`], for the sizes of a program.
fn size_text(program: &Program, e: &SizeExpr) -> String {
    let code = match e {
        SizeExpr::Const(c) => return c.to_string(),
        SizeExpr::Code(code) => code,
    };
    let mut stack: Vec<String> = Vec::new();
    for op in code.iter() {
        let text = match op {
            SizeOp::Const(c) => c.to_string(),
            SizeOp::Sym(s) => program.symbols.get(*s as usize).map_or("?".into(), |s| s.name.clone()),
            _ => {
                let (b, a) = (stack.pop().unwrap_or_default(), stack.pop().unwrap_or_default());
                match op {
                    SizeOp::Add => format!("({a} + {b})"),
                    SizeOp::Mul => format!("{a}*{b}"),
                    SizeOp::FloorDiv => format!("({a} floordiv {b})"),
                    SizeOp::Mod => format!("({a} mod {b})"),
                    SizeOp::Min => format!("min({a}, {b})"),
                    _ => format!("max({a}, {b})"),
                }
            }
        };
        stack.push(text);
    }
    stack.pop().unwrap_or_default()
}
