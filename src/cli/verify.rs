//! `kernelsmith verify`

use super::inputs::InputArgs;
use super::{ModelArgs, Outcome, progress};
use crate::compiled::{Compiled, inputs_of, views};
use crate::driver::{self, Error};
use clap::Args;
use interp::{Comparison, Tolerance, compare};
use ir::host::Lowered;
use ir::prim::BinaryOp;
use ir::{DType, Layout, Math, Module, Prim, Tensor, ValueId};
use std::collections::HashMap;

#[derive(Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    /// Every comparison, not only deviations
    #[arg(short, long)]
    verbose: bool,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn verify(args: &VerifyArgs) -> Result<Outcome, Error> {
    if !args.model.states.is_empty() {
        return Err(Error::Usage("verify takes a model without states".into()));
    }
    let options = args.model.options();
    let given = if args.inputs.given() { args.inputs.read()? } else { InputArgs::with_seed(0).read()? };
    let module = driver::import_for(&args.model.model, &options, &given.values())?.module;
    let inputs = given.tensors(&inputs_of(&module))?;
    let bar = progress("compiling");
    let (compiled, lowered) = driver::compile_lowered(module, &options)?;
    bar.set_message("running");
    let (values, outputs) = observe(&compiled, &lowered, &inputs)?;
    bar.set_message("interpreting");
    // the canonical graph, value by value, each computed from what the kernels before it wrote
    let canonical = &lowered.module;
    let mut report = Report { compared: 0, rows: Vec::new() };
    let mut pending = values;
    let outputs_want =
        interp::Interp::new(canonical).run_with_values(&inputs, &mut |v: ValueId, want: &Tensor| {
            let got = pending.remove(&v)?;
            let comparison = compare(&got, want, tolerance(canonical, v, options.math));
            let good = comparison.passes();
            report.add(canonical, v, comparison, args.verbose);
            good.then_some(got)
        })?;
    for (i, (got, want)) in outputs.iter().zip(&outputs_want).enumerate() {
        if let Some(&v) = canonical.graph.outputs.get(i) {
            report.add(canonical, v, compare(got, want, tolerance(canonical, v, options.math)), args.verbose);
        }
    }
    bar.finish_and_clear();
    report.print(args.json);
    Ok(if report.rows.iter().all(|r| r.good) { Outcome::Good } else { Outcome::Failed })
}

/// How far a kernel's result may be from the interpreter's.
fn tolerance(m: &Module, v: ValueId, math: Math) -> Tolerance {
    let dtype = m.graph[v].ty.dtype;
    match math {
        // one operand beside a rounding boundary moves a whole step of bf16, and all sums after it
        Math::Bf16 if dtype == DType::F32 => Tolerance::of_network(DType::BF16),
        // so does one quantised value
        _ if is_rounded(m, v) => Tolerance { abs: 1.0, ..Tolerance::EXACT },
        _ => Tolerance::of_network(dtype),
    }
}

/// Bytes that were floats: rounded, or moved since.
fn is_rounded(m: &Module, v: ValueId) -> bool {
    let Some(op) = m.graph.def_op(v).map(|op| &m.graph[op]) else { return false };
    let Some(&x) = op.operands.first() else { return false };
    let (from, to) = (m.graph[x].ty.dtype, m.graph[v].ty.dtype);
    match &op.prim {
        Prim::Convert { .. } => from.is_float() && to.is_int() && to.bytes() == 1,
        Prim::Bitcast { .. }
        | Prim::Binary(BinaryOp::Xor)
        | Prim::Pad { .. }
        | Prim::Reshape { .. }
        | Prim::Transpose { .. }
        | Prim::WindowReduce { .. } => to.bytes() == 1 && is_rounded(m, x),
        _ => false,
    }
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

struct Row {
    origin: String,
    comparison: Comparison,
    good: bool,
}

struct Report {
    compared: usize,
    rows: Vec<Row>,
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
            println!("{:#}", serde_json::json!({"compared": self.compared, "deviating": bad, "rows": rows}));
            return;
        }
        for r in &self.rows {
            println!("{} {}: {}", if r.good { "ok  " } else { "FAIL" }, r.origin, r.comparison);
        }
        if let Some(first) = self.rows.iter().find(|r| !r.good) {
            println!("first deviation at {}", first.origin);
        }
        println!("{} values compared, {bad} deviate", self.compared);
    }
}
