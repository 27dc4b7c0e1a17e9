//! `kernelsmith bisect`

use super::inputs::InputArgs;
use super::verify::EffortArgs;
use super::{ModelArgs, Outcome};
use crate::arrays;
use crate::compiled::inputs_of;
use crate::debug::{self, Finding, Repro, roads};
use crate::driver::{self, Error};
use clap::Args;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Args)]
pub(super) struct BisectArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    effort: EffortArgs,
    /// Seconds that making the model small may take
    #[arg(long, default_value_t = 60)]
    shrink: u64,
    /// Folder for the report, the reduced model (reduced.onnx, reduced.ksg) and its inputs (in_NAME.npy)
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn bisect(args: &BisectArgs) -> Result<Outcome, Error> {
    if !args.model.states.is_empty() {
        return Err(Error::Usage("bisect takes a model without states".into()));
    }
    let options = args.model.options();
    let given = if args.inputs.given() { args.inputs.read()? } else { InputArgs::with_seed(0).read()? };
    let module = driver::import_for(&args.model.model, &options, &given.values())?.module;
    let inputs = given.tensors(&inputs_of(&module))?;
    let model = Repro { module, sets: vec![inputs] };
    let shrinking = Duration::from_secs(args.shrink);
    let mut tell = |line: &str| println!("{line}");
    let (checked, found) = debug::bisect(&model, &options, args.effort.effort(), shrinking, &mut tell)?;
    let Some(found) = found else {
        match checked.iter().map(|c| c.outcome.left_out().len()).sum::<usize>() {
            0 => println!("no stage is wrong on these inputs"),
            n => println!("nothing that was checked is wrong; {n} steps were not checked (see `--effort`)"),
        }
        return Ok(Outcome::Good);
    };
    let report = report(&found);
    print!("{report}");
    if let Some(dir) = &args.out {
        write(dir, &found, &report)?;
    }
    Ok(Outcome::Failed)
}

fn report(f: &Finding) -> String {
    let mut s = String::new();
    let _ = writeln!(s, "first bad stage: {}", f.stage);
    let value = f.value.as_ref().map_or_else(String::new, |v| format!(", value `{v}`"));
    let at = if f.node.is_empty() { "an output" } else { &f.node };
    let _ = writeln!(s, "  it shows at {at}{value}: {}", f.seen);
    match &f.decision {
        Some((d, node)) => {
            let _ = writeln!(s, "first bad decision: {d} (of {})", f.of);
            let _ = writeln!(
                s,
                "  it is about {node}; with `--limit {}={}` it is not taken",
                d.class,
                d.number - 1
            );
        }
        None => s.push_str("the stage is wrong whatever it decides\n"),
    }
    let _ = writeln!(s, "reduced model, {} operations:", f.reduced.ops());
    let mut printer = ir::text::graph::Printer::new(&f.reduced.module);
    printer.elide_above = 256;
    s += &printer.module();
    s
}

fn write(dir: &Path, found: &Finding, report: &str) -> Result<(), Error> {
    let io = |e: std::io::Error| Error::Usage(format!("{}: {e}", dir.display()));
    std::fs::create_dir_all(dir).map_err(io)?;
    std::fs::write(dir.join("report.txt"), report).map_err(io)?;
    let m = &found.reduced.module;
    std::fs::write(dir.join("reduced.ksg"), ir::text::graph::print(m)).map_err(io)?;
    match roads::export(m, false) {
        Ok(bytes) => std::fs::write(dir.join("reduced.onnx"), bytes).map_err(io)?,
        Err(e) => eprintln!("note: no reduced.onnx: {e}"),
    }
    for (&v, t) in m.graph.inputs.iter().zip(found.reduced.sets.first().into_iter().flatten()) {
        let name = m.graph[v].name.clone().unwrap_or_default();
        let plain: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        arrays::write_npy(&dir.join(format!("in_{plain}.npy")), t)?;
    }
    println!("written to {}", dir.display());
    Ok(())
}
