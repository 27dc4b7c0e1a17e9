//! `kernelsmith tune`

use super::inputs::InputArgs;
use super::{CompileArgs, Outcome, output_error, parse_dim, progress};
use crate::compiled::inputs_of;
use crate::device::DeviceChoice;
use crate::driver::{self, CompileOptions, Error};
use crate::tune::{Database, tune as search};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args)]
pub(super) struct TuneArgs {
    /// The model: .onnx or .ksg
    #[arg(required_unless_present = "merge")]
    model: Option<PathBuf>,
    #[command(flatten)]
    compile: CompileArgs,
    /// Fix a named size of the inputs
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<(String, i64)>,
    #[command(flatten)]
    inputs: InputArgs,
    /// Time to spend
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// In place of a search: merge these databases, the faster schedule winning
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "model")]
    merge: Vec<PathBuf>,
    /// The database that is extended (default: $XDG_DATA_HOME/kernelsmith/tuned.json)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn tune(args: &TuneArgs) -> Result<Outcome, Error> {
    if args.compile.device != DeviceChoice::Cpu {
        return Err(Error::Usage("only schedules for the CPU can be searched".into()));
    }
    let path = args.out.clone().or_else(Database::user_path);
    let path = path.ok_or_else(|| Error::Usage("no home directory: name the database with --out".into()))?;
    let mut database = match path.exists() {
        true => Database::read(&path).map_err(Error::Usage)?,
        false => Database::default(),
    };
    for other in &args.merge {
        database.merge(Database::read(other).map_err(Error::Usage)?);
    }
    if let Some(model) = &args.model {
        let options = CompileOptions { dims: args.dims.clone(), ..args.compile.options() };
        let given = if args.inputs.given() { args.inputs.read()? } else { InputArgs::with_seed(0).read()? };
        let module = driver::import_for(model, &options, &given.values())?.module;
        let inputs = given.tensors(&inputs_of(&module))?;
        let budget = Duration::from_secs_f64(args.seconds.clamp(0.0, 1e6));
        let bar = progress("searching");
        let found = search(module, &inputs, &options, budget, &database)?;
        bar.finish_and_clear();
        for w in found.database.winners.values() {
            println!("{:.2}x  {}: {}", w.speedup, w.name, w.schedule);
        }
        println!(
            "{} schedules tried, {} winners, kernels {:.3} ms -> {:.3} ms per run",
            found.tried,
            found.database.winners.len(),
            found.before_ms,
            found.after_ms
        );
        database.merge(found.database);
    }
    database.write(&path).map_err(output_error)?;
    println!("{}: {} winners", path.display(), database.winners.len());
    Ok(Outcome::Good)
}
