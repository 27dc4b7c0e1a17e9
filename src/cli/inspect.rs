//! `kernelsmith inspect`

use super::{ModelArgs, Outcome, output_error};
use crate::compiled::{dim_text, inputs_of};
use crate::driver::{self, Error};
use clap::{Args, ValueEnum};
use ir::host::{Lowered, LoweredKernel, Step};
use ir::{Dim, Module};
use std::fmt::Write;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Print the model at this stage instead of the summary
    #[arg(long)]
    stage: Option<Stage>,
    /// As compiled by llvm for another CPU: haswell, skylake-avx512, znver4 or sapphirerapids
    #[arg(long)]
    cpu: Option<String>,
    /// With --stage import or graph: large constants too, so that the text is a model (.ksg)
    #[arg(long)]
    full: bool,
    /// Write the canonical graph in DOT form
    #[arg(long, value_name = "FILE")]
    dot: Option<PathBuf>,
    /// The summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The graph as imported.
    Import,
    /// The canonical graph.
    Graph,
    /// Fused kernels.
    Kernels,
    /// Their schedules.
    Schedule,
    /// Loop IR in tile form.
    Loops,
    /// The emitter's intermediate language.
    Llvm,
    /// Assembly.
    Asm,
    /// PTX, as scheduled for an NVIDIA GPU.
    Ptx,
}

pub(super) fn inspect(args: &InspectArgs) -> Result<Outcome, Error> {
    let options = args.model.options();
    let module = driver::import(&args.model.model, &options)?.module;
    if args.stage == Some(Stage::Import) {
        print!("{}", graph_text(&module, args.full));
        return Ok(Outcome::Good);
    }
    let backend: Box<dyn codegen::Backend> = match args.stage {
        Some(Stage::Ptx) => Box::new(codegen::ptx::Ptx::new(codegen::ptx::H100_SMS)),
        _ => match &args.cpu {
            Some(cpu) => codegen::backend_for(cpu)?,
            None => driver::backend(&options)?,
        },
    };
    let imported = module.graph.order.len();
    let lowered = passes::compile(module, &backend.target(), &options.passes())?;
    if let Some(path) = &args.dot {
        std::fs::write(path, dot(&lowered.module)).map_err(output_error)?;
    }
    let mut text = String::new();
    match args.stage {
        None => {
            let summary = Summary::new(&lowered, imported, backend.name());
            text = if args.json { format!("{:#}\n", summary.json()) } else { summary.text() };
        }
        Some(Stage::Import | Stage::Graph) => text = graph_text(&lowered.module, args.full),
        Some(Stage::Kernels) => {
            for k in &lowered.kernels {
                text += &k.kernel.to_string();
                text.push('\n');
            }
        }
        Some(Stage::Schedule) => {
            for k in &lowered.kernels {
                for v in &k.variants {
                    let _ = writeln!(text, "{}: {}", k.kernel.name, v.schedule);
                }
            }
        }
        Some(stage) => {
            for f in lowered.kernels.iter().flat_map(|k| &k.variants).map(|v| &v.func) {
                if stage == Stage::Loops {
                    text += &f.to_string();
                } else {
                    let machine =
                        codegen::legalise::legalise_with(f, &backend.target(), options.math.into())?;
                    text += &match stage {
                        Stage::Llvm | Stage::Ptx => backend.ir_text(&machine)?,
                        _ => backend.asm_text(&machine)?,
                    };
                }
                text.push('\n');
            }
        }
    }
    print!("{text}");
    Ok(Outcome::Good)
}

/// Graph IR as text; constants of more than 4 KiB are left out unless `full`.
fn graph_text(m: &Module, full: bool) -> String {
    let mut printer = ir::text::graph::Printer::new(m);
    if !full {
        printer.elide_above = 4 << 10;
    }
    printer.module()
}

/// What a person wants to know first.
struct Summary<'a> {
    lowered: &'a Lowered,
    imported: usize,
    backend: &'static str,
    parameters: u64,
    parameter_bytes: u64,
    calls: usize,
    init_calls: usize,
    host_calls: usize,
    flops: f64,
    scalar: Vec<(&'a LoweredKernel, f64)>,
    arena: String,
}

impl<'a> Summary<'a> {
    fn new(lowered: &'a Lowered, imported: usize, backend: &'static str) -> Summary<'a> {
        let m = &lowered.module;
        let at_hint = |d: &Dim| d.eval_syms(&|s| Some(m.symbols.get(s).hint)).unwrap_or(0).max(0) as f64;
        let mut count = Count::default();
        count.steps(&lowered.steps);
        let mut init = Count::default();
        init.steps(&lowered.init);
        let flops = count.kernels.iter().map(|&k| at_hint(&lowered.kernels[k].flops)).sum();
        let mut scalar: Vec<(&LoweredKernel, f64)> = Vec::new();
        for (i, k) in lowered.kernels.iter().enumerate() {
            if k.scalar_reason.is_some() {
                let calls = count.kernels.iter().filter(|&&c| c == i).count() as f64;
                scalar.push((k, calls * at_hint(&k.flops)));
            }
        }
        let arena = count.arena.as_ref().map_or("0".into(), |d| dim_text(m, d));
        let elems = |c: &ir::ConstData| c.shape.iter().product::<usize>() as u64;
        Summary {
            lowered,
            imported,
            backend,
            parameters: m.consts.iter().map(elems).sum(),
            parameter_bytes: m.consts.iter().map(|c| elems(c) * c.dtype.bytes() as u64).sum(),
            calls: count.kernels.len(),
            init_calls: init.kernels.len(),
            host_calls: count.host,
            flops,
            scalar,
            arena,
        }
    }

    fn scalar_share(&self) -> f64 {
        let flops = self.scalar.iter().fold(0.0, |sum, s| sum + s.1);
        if self.flops > 0.0 { flops / self.flops } else { 0.0 }
    }

    fn text(&self) -> String {
        let m = &self.lowered.module;
        let mut s = String::new();
        for input in inputs_of(m) {
            let _ = writeln!(s, "input   {}: {}", input.name, input.ty());
        }
        for (name, &v) in m.output_names.iter().zip(&m.graph.outputs) {
            let ty = &m.graph[v].ty;
            let dims: Vec<String> = ty.shape.iter().map(|d| dim_text(m, d)).collect();
            let _ = writeln!(s, "output  {name}: {}[{}]", ty.dtype, dims.join(", "));
        }
        let _ = writeln!(s, "backend             {}", self.backend);
        let _ = writeln!(
            s,
            "parameters          {} ({:.1} MB)",
            self.parameters,
            self.parameter_bytes as f64 / 1e6
        );
        let _ =
            writeln!(s, "graph operations    {} imported, {} canonical", self.imported, m.graph.order.len());
        let _ = writeln!(
            s,
            "kernels             {} different, {} calls per run, {} calls once at load",
            self.lowered.kernels.len(),
            self.calls,
            self.init_calls
        );
        let _ = writeln!(s, "host calls          {}", self.host_calls);
        let _ = writeln!(s, "GFLOP per run       {:.4} (at the suggested sizes)", self.flops / 1e9);
        let _ = writeln!(s, "arena bytes         {}", self.arena);
        let _ = writeln!(
            s,
            "scalar kernels      {} ({:.3} % of the FLOPs)",
            self.scalar.len(),
            100.0 * self.scalar_share()
        );
        for (k, _) in &self.scalar {
            let _ = writeln!(s, "  {}: {}", k.kernel.name, k.scalar_reason.as_deref().unwrap_or(""));
        }
        s
    }

    fn json(&self) -> serde_json::Value {
        let scalar: Vec<_> = self
            .scalar
            .iter()
            .map(|(k, flops)| serde_json::json!({"kernel": k.kernel.name, "reason": k.scalar_reason, "flops": flops}))
            .collect();
        serde_json::json!({
            "backend": self.backend,
            "parameters": self.parameters,
            "parameter_bytes": self.parameter_bytes,
            "ops_imported": self.imported,
            "ops_canonical": self.lowered.module.graph.order.len(),
            "kernels": self.lowered.kernels.len(),
            "calls": self.calls,
            "init_calls": self.init_calls,
            "host_calls": self.host_calls,
            "flops": self.flops,
            "arena_bytes": self.arena,
            "scalar_kernels": scalar,
            "scalar_flops_share": self.scalar_share(),
        })
    }
}

#[derive(Default)]
struct Count {
    /// Kernel of every call; bodies of loops and both branches of conditions count once.
    kernels: Vec<usize>,
    host: usize,
    arena: Option<Dim>,
}

impl Count {
    fn steps(&mut self, steps: &[Step]) {
        for s in steps {
            match s {
                Step::Call { kernel, .. } => self.kernels.push(*kernel),
                Step::Host { .. } => self.host += 1,
                Step::If { then, otherwise, .. } => {
                    self.steps(then);
                    self.steps(otherwise);
                }
                Step::Loop { body, .. } => self.steps(body),
                Step::Layout { end, .. } => self.arena = Some(end.clone()),
                _ => {}
            }
        }
    }
}

/// The main graph: boxes are operations, edges values with their types.
fn dot(m: &Module) -> String {
    let mut s = String::from("digraph model {\n  node [shape=box fontname=monospace];\n");
    for (i, &v) in m.graph.inputs.iter().enumerate() {
        let name = m.graph[v].name.clone().unwrap_or_default();
        let _ = writeln!(s, "  in{i} [label={name:?} shape=ellipse];");
    }
    for (id, op) in m.graph.ops() {
        let origin = m.origins.get(op.origin.index()).map_or("", |o| &o.node);
        let _ = writeln!(s, "  op{} [label={:?}];", id.0, format!("{}\n{origin}", op.prim.name()));
        for &v in &op.operands {
            let from = match m.graph[v].def {
                ir::graph::Def::Input(i) => format!("in{i}"),
                ir::graph::Def::Op(o, _) => format!("op{}", o.0),
            };
            let ty = &m.graph[v].ty;
            let dims: Vec<String> = ty.shape.iter().map(|d| dim_text(m, d)).collect();
            let _ = writeln!(
                s,
                "  {from} -> op{} [label={:?}];",
                id.0,
                format!("{}[{}]", ty.dtype, dims.join(", "))
            );
        }
    }
    s.push_str("}\n");
    s
}
