//! `kernelsmith test-cases`: conformance cases, self-judged.

use super::{CompileArgs, Outcome, output_error};
use crate::device::{DeviceChoice, Machine};
use crate::driver::{self, CompileOptions, Error, flatten, rebuild};
use clap::Args;
use frontend::Port;
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
    #[command(flatten)]
    compile: CompileArgs,
}

pub(super) fn test_cases(args: &TestCasesArgs) -> Result<Outcome, Error> {
    let list = std::fs::read_to_string(&args.list)
        .map_err(|e| Error::Usage(format!("{}: {e}", args.list.display())))?;
    let mut out = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&args.jsonl)
        .map_err(|e| Error::Usage(format!("{}: {e}", args.jsonl.display())))?;
    let options = args.compile.options();
    // a GPU is made ready once, not by each case
    let _gpu = match options.device {
        DeviceChoice::Cpu => None,
        _ => Some(Machine::open(&options)?),
    };
    for line in list.lines().filter(|l| !l.trim().is_empty()) {
        let mut kernels = 0;
        let (status, detail) = judge(line.as_ref(), args, &mut kernels);
        let row = serde_json::json!({"case": line, "status": status, "detail": detail, "kernels": kernels});
        writeln!(out, "{row}").and_then(|()| out.flush()).map_err(output_error)?;
    }
    Ok(Outcome::Good)
}

/// `kernels` becomes the number of kernels that the case ran; 0 where the model folded to nothing but constants.
fn judge(dir: &Path, args: &TestCasesArgs, kernels: &mut u64) -> (&'static str, String) {
    let case = match cases::load(dir) {
        Ok(case) => case,
        Err(d) => return ("error", d.to_string()),
    };
    match run(&case, args, kernels) {
        Ok(Ok(())) => ("pass", String::new()),
        Ok(Err(difference)) => ("fail", difference),
        Err(e) if e.exit_code() == 3 => ("unsupported", e.to_string()),
        Err(e) => ("error", e.to_string()),
    }
}

/// The inner error is a wrong result.
fn run(case: &Case, args: &TestCasesArgs, kernels: &mut u64) -> Result<Result<(), String>, Error> {
    let options: CompileOptions = args.compile.options();
    let mut ready: Option<Ready> = None;
    for (k, set) in case.sets.iter().enumerate() {
        let again = ready.take().filter(|r| !r.specialised);
        let mut r = match again {
            Some(r) => r,
            None => Ready::new(case, &set.inputs, args.compile.interpreted(), &options)?,
        };
        let mut inputs = Vec::new();
        for port in &r.inputs {
            match set.inputs.iter().find(|(n, _)| *n == port.name) {
                Some((_, v)) => flatten(v, &mut inputs),
                None => return Err(Error::Input(format!("no data for input \"{}\"", port.name))),
            }
        }
        let (got, ran) = (r.run)(&inputs)?;
        *kernels += ran;
        let mut got = got.into_iter();
        if r.outputs.len() != set.outputs.len() {
            return Ok(Err(format!("expected {} outputs, found {}", set.outputs.len(), r.outputs.len())));
        }
        for (i, (port, want)) in r.outputs.iter().zip(&set.outputs).enumerate() {
            let Some(got) = rebuild(port, &mut got) else { return Ok(Err(format!("output {i} is missing"))) };
            if let Some(want) = want
                && let Err(e) = cases::compare(&got, want, case)
            {
                return Ok(Err(format!("data set {k}, output {i}: {e}")));
            }
        }
        ready = Some(r);
    }
    Ok(Ok(()))
}

/// Outputs, and how many kernels ran.
type Run = Box<dyn FnMut(&[Tensor]) -> Result<(Vec<Tensor>, u64), Error>>;

/// A case's model, compiled.
struct Ready {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Sequences and optionals have the structure of one data set.
    specialised: bool,
    run: Run,
}

impl Ready {
    fn new(
        case: &Case,
        inputs: &[(String, CaseValue)],
        interpreted: bool,
        options: &CompileOptions,
    ) -> Result<Ready, Error> {
        let plain = inputs.iter().all(|(_, v)| matches!(v, CaseValue::Tensor(_)));
        let (imported, specialised) = match driver::import(&case.model, options) {
            Ok(imported) if plain => (imported, false),
            _ => (driver::import_for(&case.model, options, inputs)?, true),
        };
        let module = imported.module;
        let run: Run = if interpreted {
            Box::new(move |inputs| Ok((interp::Interp::new(&module).run(inputs)?, 0)))
        } else {
            let compiled = driver::compile_module(module, options)?;
            let mut context = compiled.context();
            let mut before = 0;
            Box::new(move |inputs| {
                let outputs = compiled.run(&mut context, inputs)?;
                let launches = compiled.model.init_launches() + context.launches();
                let ran = launches - std::mem::replace(&mut before, launches);
                Ok((outputs, ran))
            })
        };
        Ok(Ready { inputs: imported.inputs, outputs: imported.outputs, specialised, run })
    }
}
