//! The command line. Results go to standard output, everything else to standard error.

mod bench;
mod bisect;
mod check;
mod export;
mod fuzz_graphs;
mod inputs;
mod inspect;
mod operators;
mod profile;
mod run;
mod test_cases;
mod tune;
mod verify;

use crate::cache::{CacheOptions, DEFAULT_BYTES};
use crate::compiled::Compiled;
use crate::debug::levels::EXPANSIONS;
use crate::device::DeviceChoice;
use crate::driver::{CompileOptions, Error, StateSpec};
use crate::tune::Database;
use clap::{Args, Parser, Subcommand};
use ir::Math;
use passes::limits::{KERNEL_CLASSES, Limits, SCHEDULES};
use passes::schedule::tuned::Tuned;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Compiles trained models (ONNX, .ksg) to native code and runs them.
#[derive(Parser)]
#[command(
    name = "kernelsmith",
    version,
    after_help = "Exit status: 0 good, 1 failed (a wrong result), 2 usage, 3 model not supported, 4 bad input, \
                  5 a limit exceeded, 6 no such device or a failing one, 70 internal error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile a model and run it once.
    Run(run::RunArgs),
    /// Compile a model and time it.
    Bench(bench::BenchArgs),
    /// Search better schedules for a model's kernels, for this machine.
    Tune(tune::TuneArgs),
    /// Show a model at any stage of compilation.
    Inspect(inspect::InspectArgs),
    /// Compare the compiled model with the reference interpreter, kernel by kernel.
    Verify(verify::VerifyArgs),
    /// Find the first decision of the compiler that makes a model's results wrong, and a small model that shows it.
    Bisect(bisect::BisectArgs),
    /// Write a model's graph as ONNX, as imported or as the passes leave it.
    Export(export::ExportArgs),
    /// List everything in a model that is invalid or not supported, without compiling it.
    Check(check::CheckArgs),
    /// Say what a code of `check` means and what to do about it.
    Explain(check::ExplainArgs),
    /// List the operators that models may hold.
    Operators(operators::OperatorsArgs),
    /// Random graphs along every road, compared with the reference interpreter (for developers).
    #[command(hide = true)]
    FuzzGraphs(fuzz_graphs::FuzzGraphsArgs),
    /// Run conformance cases (for test harnesses).
    TestCases(test_cases::TestCasesArgs),
}

/// A model and how to compile it.
#[derive(Args, Clone)]
struct ModelArgs {
    /// The model: .onnx or .ksg
    model: PathBuf,
    #[command(flatten)]
    compile: CompileArgs,
    /// Fix a named size of the inputs
    #[arg(long = "dim", value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<(String, i64)>,
    /// Make an input and an output one buffer, which grows in place from run to run up to N rows (the KV cache of
    /// a decoder). One `*` in both names stands for the same text: 'past.*=present.*,capacity=2048'
    #[arg(long = "state", value_name = "INPUT=OUTPUT,capacity=N", value_parser = parse_state)]
    states: Vec<StateSpec>,
}

#[derive(Args, Clone)]
struct CompileArgs {
    /// Where the model runs: cpu, cuda (the first NVIDIA GPU), cuda:N, or ptx-interp (a stand-in for the CUDA driver
    /// that interprets the kernels of a GPU, for tests)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: DeviceChoice,
    /// On a GPU: wait after each kernel, so that an error names the kernel that caused it
    #[arg(long)]
    check_launches: bool,
    /// For the CPU: llvm, cranelift, or interp (the reference interpreter); the best of this build by default
    #[arg(long)]
    backend: Option<String>,
    /// Threads of one run (default: the cores that this process may use)
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// How exactly the model's arithmetic is followed: default, strict (the operations as written, halves
    /// rounded after each), bf16 (products of f32 tensors in bf16 where the machine
    /// has instructions for them, sums in f32)
    #[arg(long, default_value = "default", value_parser = parse_math)]
    math: Math,
    /// Schedules found by `tune`, or `off` (default: $XDG_DATA_HOME/kernelsmith/tuned.json, where it exists)
    #[arg(long, value_name = "FILE|off", value_parser = read_tuned)]
    tuned: Option<Schedules>,
    /// Take so many decisions of a class and no more (`simplify=12`, `fusions=0`), to see what `bisect` saw
    #[arg(long = "limit", value_name = "CLASS=N", value_parser = parse_limit, hide_short_help = true)]
    limits: Vec<(String, u64)>,
    /// A fault that the compiler gets, for `bisect` to find
    #[cfg(feature = "planted-faults")]
    #[arg(long, hide = true, value_parser = parse_plant)]
    plant: Option<Plant>,
}

/// A fault of the passes, or (`None`) the wrong expansion of `erf`.
#[cfg(feature = "planted-faults")]
#[derive(Clone, Copy)]
struct Plant(Option<passes::planted::Fault>);

#[cfg(feature = "planted-faults")]
fn parse_plant(s: &str) -> Result<Plant, String> {
    if s == "erf" {
        return Ok(Plant(None));
    }
    let name = |f: &passes::planted::Fault| format!("{f:?}").to_lowercase();
    let all = passes::planted::Fault::ALL;
    let known = || all.iter().map(name).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|f| name(f) == s);
    found.map(|f| Plant(Some(*f))).ok_or_else(|| format!("expected erf, {}", known()))
}

/// Schedules of a database.
#[derive(Clone)]
struct Schedules(Arc<Tuned>);

fn read_tuned(path: &str) -> Result<Schedules, String> {
    let database = if path == "off" { Database::default() } else { Database::read(path.as_ref())? };
    Ok(Schedules(Arc::new(database.schedules())))
}

/// Where compiled models are kept.
#[derive(Args, Clone)]
struct CacheArgs {
    /// Keep compiled models and kernels here, or `off` (default: $XDG_CACHE_HOME/kernelsmith)
    #[arg(long, value_name = "DIR|off")]
    cache: Option<PathBuf>,
    /// Bound on the size of the cache: least recently used entries are removed
    #[arg(long, value_name = "MB", default_value_t = DEFAULT_BYTES >> 20)]
    cache_size: u64,
}

impl CacheArgs {
    fn options(&self) -> Option<CacheOptions> {
        let dir = match &self.cache {
            Some(dir) if dir.as_os_str() == "off" => return None,
            Some(dir) => dir.clone(),
            None => CacheOptions::user()?.dir,
        };
        Some(CacheOptions { dir, max_bytes: self.cache_size.saturating_mul(1 << 20) })
    }
}

impl CompileArgs {
    fn options(&self) -> CompileOptions {
        CompileOptions {
            device: self.device,
            check_launches: self.check_launches,
            backend: self.backend.clone(),
            threads: self.threads,
            math: self.math,
            tuned: self.schedules(),
            decisions: self.limits.iter().fold(Limits::default(), |l, (class, n)| l.with(class, *n)),
            #[cfg(feature = "planted-faults")]
            planted: self.plant.and_then(|p| p.0),
            #[cfg(feature = "planted-faults")]
            wrong_erf: self.plant.is_some_and(|p| p.0.is_none()),
            ..Default::default()
        }
    }
    fn schedules(&self) -> Option<Arc<Tuned>> {
        let default = || {
            // what is not there, or not readable, is as good as empty
            let database = Database::read(&Database::user_path().filter(|p| p.is_file())?).ok()?;
            Some(Arc::new(database.schedules()))
        };
        self.tuned.as_ref().map(|t| t.0.clone()).or_else(default)
    }
    fn interpreted(&self) -> bool {
        self.backend.as_deref() == Some("interp")
    }
}

impl ModelArgs {
    fn options(&self) -> CompileOptions {
        CompileOptions { dims: self.dims.clone(), states: self.states.clone(), ..self.compile.options() }
    }
}

fn parse_math(s: &str) -> Result<Math, String> {
    let names = Math::ALL.map(Math::name).join(", ");
    Math::parse(s).ok_or_else(|| format!("expected one of {names}"))
}

fn parse_dim(s: &str) -> Result<(String, i64), String> {
    let (name, n) = s.rsplit_once('=').ok_or("expected NAME=N")?;
    let n: i64 = n.parse().map_err(|e| format!("{n}: {e}"))?;
    if n < 0 { Err(format!("{n} is negative")) } else { Ok((name.to_string(), n)) }
}

/// A class of decisions and how many of it are taken.
fn parse_limit(s: &str) -> Result<(String, u64), String> {
    let (class, n) = s.split_once('=').ok_or("expected CLASS=N")?;
    let passes = passes::pipeline::PASSES.iter().map(|p| p.name);
    let known: Vec<&str> = passes.chain(KERNEL_CLASSES).chain([SCHEDULES, EXPANSIONS]).collect();
    if !known.contains(&class) {
        return Err(format!("no decisions of class {class}; there are {}", known.join(", ")));
    }
    Ok((class.to_string(), n.parse().map_err(|e| format!("{n}: {e}"))?))
}

fn parse_state(s: &str) -> Result<StateSpec, String> {
    let (names, capacity) = s.rsplit_once(",capacity=").ok_or("expected INPUT=OUTPUT,capacity=N")?;
    let (input, output) = names.split_once('=').ok_or("expected INPUT=OUTPUT,capacity=N")?;
    let stars = |name: &str| name.matches('*').count();
    if stars(input) > 1 || stars(input) != stars(output) {
        return Err("at most one `*`, and then in both names".into());
    }
    let capacity: i64 = capacity.parse().map_err(|e| format!("capacity {capacity}: {e}"))?;
    if !(1..=1 << 31).contains(&capacity) {
        return Err(format!("a capacity of {capacity} rows"));
    }
    Ok(StateSpec { input: input.into(), output: output.into(), capacity })
}

/// What a command ended with, when it was not an error.
#[derive(PartialEq, Eq)]
enum Outcome {
    Good,
    /// A wrong result: exit status 1.
    Failed,
}

/// Entry point of the program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // help and version go to standard output and are no error
            let code = if e.use_stderr() { 2 } else { 0 };
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let result = match &cli.command {
        Command::Run(a) => run::run(a),
        Command::Bench(a) => bench::bench(a),
        Command::Tune(a) => tune::tune(a),
        Command::Inspect(a) => inspect::inspect(a),
        Command::Verify(a) => verify::verify(a),
        Command::Bisect(a) => bisect::bisect(a),
        Command::Export(a) => export::export(a),
        Command::Check(a) => check::check(a),
        Command::Explain(a) => check::explain(a),
        Command::Operators(a) => operators::operators(a),
        Command::FuzzGraphs(a) => fuzz_graphs::fuzz_graphs(a),
        Command::TestCases(a) => test_cases::test_cases(a),
    };
    match result {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Err(e) => {
            let text = e.to_string();
            let prefix = if text.starts_with("error") { "" } else { "error: " };
            eprintln!("{prefix}{text}");
            ExitCode::from(e.exit_code())
        }
    }
}

/// An error of writing a report.
fn output_error(e: impl std::fmt::Display) -> Error {
    Error::Usage(format!("writing the result: {e}"))
}

/// Waits for the cache; what it cannot keep is no error.
fn warn_unsaved(compiled: &mut Compiled) {
    if let Err(e) = compiled.saved() {
        eprintln!("note: not kept in the cache: {e}");
    }
}

/// A spinner on a terminal, nothing elsewhere.
fn progress(message: &str) -> indicatif::ProgressBar {
    let bar = indicatif::ProgressBar::new_spinner();
    bar.set_message(message.to_string());
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}
