//! `kernelsmith run`

use super::inputs::InputArgs;
use super::{CacheArgs, ModelArgs, Outcome, output_error, progress, warn_unsaved};
use crate::arrays::write_npy;
use crate::compiled::{Compiled, inputs_of};
use crate::driver::{self, CompileOptions, Error};
use clap::Args;
use ir::Tensor;
use runtime::Context;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Write output_<i>.npy here
    #[arg(long)]
    output_dir: Option<PathBuf>,
    /// One line of JSON on standard output instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Result<Outcome, Error> {
    let options = CompileOptions { cache: args.cache.options(), ..args.model.options() };
    let began = Instant::now();
    let given = args.inputs.read()?;
    let path = &args.model.model;
    let (names, outputs, compile_ms, run_ms): (Vec<String>, Vec<Tensor>, f64, f64);
    let mut device = serde_json::Value::Null;
    if args.model.compile.interpreted() || !args.inputs.given() {
        let module = driver::import_for(path, &options, &given.values())?.module;
        if !args.inputs.given() && !module.graph.inputs.is_empty() {
            println!("{} wants:", path.display());
            for input in inputs_of(&module) {
                println!("  --input {}=FILE.npy    {}", input.name, input.ty());
            }
            println!("or --inputs FILE.npz with these names, or --random SEED");
            return Ok(Outcome::Good);
        }
    }
    if args.model.compile.interpreted() {
        let module = driver::import_for(path, &options, &given.values())?.module;
        let inputs = given.tensors(&inputs_of(&module))?;
        compile_ms = ms(began);
        let began = Instant::now();
        outputs = interp::Interp::new(&module).run(&inputs)?;
        run_ms = ms(began);
        names = module.output_names;
    } else {
        let bar = progress("compiling");
        let mut compiled = driver::compile_for(path, &options, &given.values())?;
        bar.finish_and_clear();
        compile_ms = ms(began);
        let inputs = given.tensors(&compiled.inputs)?;
        let mut context = compiled.context();
        let inputs = compiled.begin(&mut context, inputs)?;
        let began = Instant::now();
        outputs = compiled.run(&mut context, &inputs)?;
        run_ms = ms(began);
        device = device_report(&compiled, &context);
        names = compiled.outputs.iter().map(|o| o.name.clone()).collect();
        warn_unsaved(&mut compiled);
    }
    if let Some(dir) = &args.output_dir {
        std::fs::create_dir_all(dir).map_err(output_error)?;
        for (i, t) in outputs.iter().enumerate() {
            write_npy(&dir.join(format!("output_{i}.npy")), t)?;
        }
    }
    if args.json {
        let outs: Vec<_> = outputs
            .iter()
            .enumerate()
            .map(
                |(i, t)| serde_json::json!({"name": names.get(i), "dtype": t.dtype.name(), "shape": t.shape}),
            )
            .collect();
        let report = serde_json::json!({
            "compile_ms": compile_ms, "run_ms": run_ms, "device": device, "outputs": outs,
        });
        println!("{report}");
    } else {
        for (i, t) in outputs.iter().enumerate() {
            let name = names.get(i).map_or("", String::as_str);
            println!("output {i} {name}: {}{:?} {}", t.dtype, t.shape, preview(t));
        }
        eprintln!("compiled in {compile_ms:.1} ms, ran in {run_ms:.2} ms");
    }
    Ok(Outcome::Good)
}

/// What ran where: kernels on the device, and what the host had to do or to know meanwhile, node by node.
fn device_report(compiled: &Compiled, context: &Context) -> serde_json::Value {
    let model = &compiled.model;
    let node = |i: Option<usize>| i.and_then(|i| model.program().origins.get(i));
    let ops: Vec<_> = context
        .host_ops()
        .iter()
        .map(|op| {
            let at = node(op.origin);
            serde_json::json!({
                "node": at.map(|o| &o.node), "op": at.map(|o| &o.op_type), "reason": op.reason, "times": op.times,
            })
        })
        .collect();
    serde_json::json!({
        "name": model.device().info().name,
        "kernels": context.launches(),
        "init_kernels": model.init_launches(),
        "code_ms": model.code_ms(),
        "host_calls": context.host_calls().0,
        "host_ops": ops,
        "replays": context.replays(),
        "recordings": context.recordings().0,
        "recordings_bytes": context.recordings().1,
    })
}

/// The first few elements.
fn preview(t: &Tensor) -> String {
    let n = t.elems();
    let shown: Vec<String> =
        (0..n.min(6)).filter_map(|i| frontend::cases::element(t, i)).map(|x| format!("{x:.5}")).collect();
    format!("[{}{}]", shown.join(", "), if n > 6 { ", ..." } else { "" })
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
