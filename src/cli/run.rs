//! `kernelsmith run`

use super::inputs::InputArgs;
use super::{CacheArgs, ModelArgs, Outcome, output_error, progress, warn_unsaved};
use crate::arrays::write_npy;
use crate::compiled::inputs_of;
use crate::driver::{self, CompileOptions, Error};
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
    let (names, outputs, compile_ms, run_ms, host_calls): (Vec<String>, Vec<Tensor>, f64, f64, u64);
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
        host_calls = 0;
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
        host_calls = context.host_calls().0;
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
