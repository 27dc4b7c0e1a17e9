//! `kernelsmith test-cases`: conformance cases, self-judged.

use super::{CompileArgs, Outcome, output_error};
use crate::driver::{self, CompileOptions, Error};
use clap::Args;
use frontend::cases::{self, Case, CaseValue};
use ir::Tensor;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct TestCasesArgs {
    /// A file with one case directory per line
    #[arg(long)]
    list: PathBuf,
    /// Where to append one line of JSON per case
    #[arg(long)]
    jsonl: PathBuf,
    /// Only `cpu` exists
    #[arg(long, default_value = "cpu")]
    device: String,
    #[command(flatten)]
    compile: CompileArgs,
}

pub(super) fn test_cases(args: &TestCasesArgs) -> Result<Outcome, Error> {
    if args.device != "cpu" {
        return Err(Error::Usage(format!("no device {}; this build has: cpu", args.device)));
    }
    let list = std::fs::read_to_string(&args.list)
        .map_err(|e| Error::Usage(format!("{}: {e}", args.list.display())))?;
    let mut out = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&args.jsonl)
        .map_err(|e| Error::Usage(format!("{}: {e}", args.jsonl.display())))?;
    for line in list.lines().filter(|l| !l.trim().is_empty()) {
        let (status, detail) = judge(line.as_ref(), args);
        let row = serde_json::json!({"case": line, "status": status, "detail": detail});
        writeln!(out, "{row}").and_then(|()| out.flush()).map_err(output_error)?;
    }
    Ok(Outcome::Good)
}

fn judge(dir: &Path, args: &TestCasesArgs) -> (&'static str, String) {
    let case = match cases::load(dir) {
        Ok(case) => case,
        Err(d) => return ("error", d.to_string()),
    };
    match run(&case, args) {
        Ok(Ok(())) => ("pass", String::new()),
        Ok(Err(difference)) => ("fail", difference),
        Err(e) if e.exit_code() == 3 => ("unsupported", e.to_string()),
        Err(e) => ("error", e.to_string()),
    }
}

/// The inner error is a wrong result.
fn run(case: &Case, args: &TestCasesArgs) -> Result<Result<(), String>, Error> {
    let options: CompileOptions = args.compile.options();
    let module = driver::import(&case.model, &options)?;
    let names: Vec<String> =
        module.graph.inputs.iter().map(|&v| module.graph[v].name.clone().unwrap_or_default()).collect();
    let mut runner: Box<dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>, Error>> = if args.compile.interpreted() {
        Box::new(move |inputs| Ok(interp::Interp::new(&module).run(inputs)?))
    } else {
        let compiled = driver::compile_module(module, &options)?;
        let mut context = compiled.context();
        Box::new(move |inputs| compiled.run(&mut context, inputs))
    };
    for (k, set) in case.sets.iter().enumerate() {
        let mut inputs = Vec::new();
        for name in &names {
            match set.inputs.iter().find(|(n, _)| n == name) {
                Some((_, CaseValue::Tensor(t))) => inputs.push(t.clone()),
                Some(_) => return Err(Error::Input(format!("input \"{name}\" is not a tensor"))),
                None => return Err(Error::Input(format!("no data for input \"{name}\""))),
            }
        }
        let outputs = runner(&inputs)?;
        if outputs.len() != set.outputs.len() {
            return Ok(Err(format!("expected {} outputs, found {}", set.outputs.len(), outputs.len())));
        }
        for (i, (got, want)) in outputs.into_iter().zip(&set.outputs).enumerate() {
            if let Some(want) = want
                && let Err(e) = cases::compare(&CaseValue::Tensor(got), want, case)
            {
                return Ok(Err(format!("data set {k}, output {i}: {e}")));
            }
        }
    }
    Ok(Ok(()))
}
