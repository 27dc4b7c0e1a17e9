//! `kernelsmith run`

use super::inputs::InputArgs;
use super::{ModelArgs, Outcome, output_error, progress};
use crate::arrays::write_npy;
use crate::driver::{self, Error, describe_inputs};
use clap::Args;
use ir::Tensor;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    /// Write output_<i>.npy here
    #[arg(long)]
    output_dir: Option<PathBuf>,
    /// One line of JSON on standard output instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Result<Outcome, Error> {
    let options = args.model.options();
    let began = Instant::now();
    let given = args.inputs.read()?;
    let module = driver::import_for(&args.model.model, &options, &given.values())?.module;
    if !args.inputs.given() && !module.graph.inputs.is_empty() {
        println!("{} wants:", args.model.model.display());
        for (name, ty) in describe_inputs(&module) {
            println!("  --input {name}=FILE.npy    {ty}");
        }
        println!("or --inputs FILE.npz with these names, or --random SEED");
        return Ok(Outcome::Good);
    }
    let inputs = given.tensors(&module)?;
    let names = module.output_names.clone();

    let (outputs, compile_ms, run_ms, host_calls): (Vec<Tensor>, f64, f64, u64);
    if args.model.compile.interpreted() {
        compile_ms = ms(began);
        let began = Instant::now();
        outputs = interp::Interp::new(&module).run(&inputs)?;
        run_ms = ms(began);
        host_calls = 0;
    } else {
        let bar = progress("compiling");
        let compiled = driver::compile_module(module, &options)?;
        bar.finish_and_clear();
        compile_ms = ms(began);
        let mut context = compiled.context();
        let inputs = compiled.begin(&mut context, inputs)?;
        let began = Instant::now();
        outputs = compiled.run(&mut context, &inputs)?;
        run_ms = ms(began);
        host_calls = context.host_calls().0;
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
            "compile_ms": compile_ms, "run_ms": run_ms, "host_calls": host_calls, "outputs": outs,
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
