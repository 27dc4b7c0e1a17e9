//! `kernelsmith verify`

use super::inputs::InputArgs;
use super::{ModelArgs, Outcome, progress};
use crate::compiled::{Compiled, inputs_of, views};
use crate::debug::judge;
use crate::debug::stages::{self, Checked, Effort};
use crate::driver::{self, Error};
use clap::Args;
use interp::Comparison;
use ir::host::Lowered;
use ir::{DType, Layout, Module, Tensor, ValueId};
use passes::kernel_exec::Budget;
use std::collections::HashMap;
use std::time::Duration;

#[derive(Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    /// Check every stage of the compilation by itself, not only the compiled kernels: graphs after each pass, kernels
    /// before and after they get places, schedules and machine form
    #[arg(long)]
    passes: bool,
    #[command(flatten)]
    effort: EffortArgs,
    /// Every comparison, not only deviations
    #[arg(short, long)]
    verbose: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

/// What checks of stages may cost.
#[derive(Args, Clone)]
pub(super) struct EffortArgs {
    /// With --passes: seconds for graphs; passes beyond are left out, but for the canonical graph
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// With --passes: millions of operations for the kernels of each stage; larger kernels run at some of their points
    #[arg(long, default_value_t = 100)]
    effort: u64,
}

impl EffortArgs {
    pub(super) fn effort(&self) -> Effort {
        Effort {
            graphs: Duration::from_secs_f64(self.seconds.clamp(0.0, 1e6)),
            kernels: Budget { units: self.effort.saturating_mul(1_000_000) },
        }
    }
}

pub(super) fn verify(args: &VerifyArgs) -> Result<Outcome, Error> {
    if !args.model.states.is_empty() {
        return Err(Error::Usage("verify takes a model without states".into()));
    }
    let options = args.model.options();
    let given = if args.inputs.given() { args.inputs.read()? } else { InputArgs::with_seed(0).read()? };
    let module = driver::import_for(&args.model.model, &options, &given.values())?.module;
    let inputs = given.tensors(&inputs_of(&module))?;
    let mut stages = Vec::new();
    if args.passes {
        let mut tell = |c: &Checked| {
            if !args.json {
                println!("{c}");
            }
        };
        stages = stages::check(&module, &inputs, &options, args.effort.effort(), &mut tell)?;
        if stages.iter().any(|c| c.outcome.is_bad()) {
            if args.json {
                println!(
                    "{:#}",
                    serde_json::json!({"stages": stages.iter().map(stage_json).collect::<Vec<_>>()})
                );
            } else {
                println!("`kernelsmith bisect` finds the decision that is to blame");
            }
            return Ok(Outcome::Failed);
        }
    }
    let bar = progress("compiling");
    let (compiled, lowered) = driver::compile_lowered(module, &options)?;
    bar.set_message("running");
    let (values, outputs) = observe(&compiled, &lowered, &inputs)?;
    bar.set_message("interpreting");
    // the canonical graph, value by value, each computed from what the kernels before it wrote
    let canonical = &lowered.module;
    let mut report = Report { compared: 0, rows: Vec::new(), stages, verbose: args.verbose };
    let mut pending = values;
    let outputs_want =
        interp::Interp::new(canonical).run_with_values(&inputs, &mut |v: ValueId, want: &Tensor| {
            let got = pending.remove(&v)?;
            let comparison = judge(canonical, v, &got, want, options.math);
            // what reads it was computed from it, right or wrong
            let same = comparison.mismatch.is_none();
            report.add(canonical, v, comparison, args.verbose);
            same.then_some(got)
        })?;
    for (i, (got, want)) in outputs.iter().zip(&outputs_want).enumerate() {
        if let Some(&v) = canonical.graph.outputs.get(i) {
            report.add(canonical, v, judge(canonical, v, got, want, options.math), args.verbose);
        }
    }
    bar.finish_and_clear();
    report.print(args.json);
    Ok(if report.rows.iter().all(|r| r.good) { Outcome::Good } else { Outcome::Failed })
}

/// What the kernels wrote, by value of the canonical graph, and the outputs.
fn observe(
    compiled: &Compiled,
    lowered: &Lowered,
    inputs: &[Tensor],
) -> Result<(HashMap<ValueId, Tensor>, Vec<Tensor>), Error> {
    let mut values = HashMap::new();
    let mut context = compiled.context();
    let program = compiled.model.program();
    let mut failed = None;
    let mut observer = |e: &runtime::Event<'_>| {
        let Some(k) = e.kernel else { return };
        for (&b, &writes) in e.args.iter().zip(&program.kernels[k].writes) {
            let buffer = &lowered.buffers[b];
            let (Some(v), true) = (buffer.value, writes) else { continue };
            let shape: Option<Vec<usize>> = program.buffers[b]
                .shape
                .iter()
                .map(|d| e.size(d).and_then(|n| usize::try_from(n).ok()))
                .collect();
            match e.bytes(b) {
                Ok(bytes) => {
                    if let Some(t) = shape.and_then(|s| logical(&bytes, buffer.dtype, s, &buffer.layout)) {
                        values.insert(v, t);
                    }
                }
                Err(e) => failed = Some(e),
            }
        }
    };
    context.run_with(&views(inputs), None, Some(&mut observer))?;
    if let Some(e) = failed {
        return Err(e.into());
    }
    Ok((values, compiled.outputs(&context)?))
}

/// The row-major tensor that lies in `bytes` with `layout`; `None` where the bytes are too few.
fn logical(bytes: &[u8], dtype: DType, shape: Vec<usize>, layout: &Layout) -> Option<Tensor> {
    let mut t = Tensor::zeros(dtype, shape);
    let size = dtype.bytes();
    let shape = t.shape.clone();
    let mut index = vec![0usize; shape.len()];
    for out in t.data.chunks_exact_mut(size.max(1)) {
        let at = layout.offset(&shape, &index) * size;
        out.copy_from_slice(bytes.get(at..at + size)?);
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Some(t)
}

fn stage_json(c: &Checked) -> serde_json::Value {
    let (state, detail) = c.outcome.parts();
    serde_json::json!({"stage": c.name, "state": state, "detail": detail, "not_checked": c.outcome.left_out()})
}

struct Row {
    origin: String,
    comparison: Comparison,
    good: bool,
}

struct Report {
    compared: usize,
    rows: Vec<Row>,
    stages: Vec<Checked>,
    verbose: bool,
}

impl Report {
    fn add(&mut self, m: &Module, v: ValueId, comparison: Comparison, keep_all: bool) {
        self.compared += 1;
        let good = comparison.passes();
        if good && !keep_all {
            return;
        }
        let origin = m.graph.def_op(v).map_or_else(String::new, |op| {
            let o = m.origins.get(m.graph[op].origin.index()).cloned().unwrap_or_default();
            format!("\"{}\" {}-{}", o.node, o.op_type, o.opset)
        });
        self.rows.push(Row { origin: format!("%{} {origin}", v.0), comparison, good });
    }

    fn print(&self, json: bool) {
        let bad = self.rows.iter().filter(|r| !r.good).count();
        if json {
            let rows: Vec<_> = self
                .rows
                .iter()
                .map(|r| serde_json::json!({"value": r.origin, "ok": r.good, "comparison": r.comparison.to_string()}))
                .collect();
            let mut json = serde_json::json!({"compared": self.compared, "deviating": bad, "rows": rows});
            if !self.stages.is_empty() {
                json["stages"] = self.stages.iter().map(stage_json).collect();
            }
            println!("{json:#}");
            return;
        }
        for r in &self.rows {
            println!("{} {}: {}", if r.good { "ok  " } else { "FAIL" }, r.origin, r.comparison);
        }
        if let Some(first) = self.rows.iter().find(|r| !r.good) {
            println!("first deviation at {}", first.origin);
        }
        println!("{} values compared, {bad} deviate", self.compared);
        for c in self.stages.iter().filter(|c| !c.outcome.left_out().is_empty()) {
            let left = c.outcome.left_out();
            println!("{}: {} steps were NOT checked", c.name, left.len());
            left.iter().filter(|_| self.verbose).for_each(|what| println!("  {what}"));
        }
    }
}
