//! `kernelsmith bench`

use super::inputs::InputArgs;
use super::profile::Profile;
use super::{CacheArgs, ModelArgs, Outcome, output_error, progress, warn_unsaved};
use crate::compiled::{Compiled, views};
use crate::driver::{self, CompileOptions, Error};
use clap::Args;
use runtime::Context;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Time to spend on measured runs
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Write the figures as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Time by kernel, and how near it comes to the ceilings of this machine, which are measured too
    #[arg(long)]
    profile: bool,
    /// Write a trace of one run for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<std::path::PathBuf>,
    /// For interleaved measuring: for each line N of standard input run N times and print the times
    #[arg(long, hide = true)]
    stdio: bool,
}

pub(super) fn bench(args: &BenchArgs) -> Result<Outcome, Error> {
    if args.model.compile.interpreted() {
        return Err(Error::Usage("the reference interpreter is not for timing".into()));
    }
    let options = CompileOptions { cache: args.cache.options(), ..args.model.options() };
    let given = args.inputs.read()?;
    let bar = progress("compiling");
    let mut compiled = driver::compile_for(&args.model.model, &options, &given.values())?;
    bar.finish_and_clear();
    let inputs = given.tensors(&compiled.inputs)?;
    let mut context = compiled.context();
    let t = compiled.times;
    let compile_ms = t.import + t.passes + t.codegen;
    let inputs = compiled.begin(&mut context, inputs)?;
    let views = views(&inputs);
    // every run begins with the states of the first one
    let rows = context.state(0).map_or(0, |s| s.len);
    if args.stdio {
        return stdio(&mut compiled, &mut context, &views, rows, compile_ms + t.load);
    }

    let began = Instant::now();
    context.run(&views)?;
    let first_run_ms = ms(began.elapsed());
    warn_unsaved(&mut compiled);
    let mut times = Vec::new();
    let deadline = Instant::now() + Duration::from_secs_f64(args.seconds.clamp(0.0, 86_400.0));
    while times.len() < 3 || Instant::now() < deadline {
        context.truncate_states(rows);
        let began = Instant::now();
        context.run(&views)?;
        times.push(ms(began.elapsed()));
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    const MB: f64 = 1e6;
    let (host_calls, host_nanos) = context.host_calls();
    let mut report = serde_json::json!({
        "model": args.model.model.display().to_string(),
        "backend": compiled.backend,
        "cached": compiled.cached,
        "device": compiled.model.device().info().name,
        "threads": compiled.model.device().info().units,
        "compile_ms": compile_ms,
        "import_ms": t.import,
        "passes_ms": t.passes,
        "codegen_ms": t.codegen,
        "load_ms": t.load,
        "first_run_ms": first_run_ms,
        "median_ms": at(0.5),
        "min_ms": times[0],
        "p95_ms": at(0.95),
        "iterations": times.len(),
        "peak_rss_mb": peak_rss_bytes() / MB,
        "arena_mb": context.arena_bytes() as f64 / MB,
        "weights_mb": compiled.model.weight_bytes() as f64 / MB,
        "host_calls": host_calls / (times.len() as u64 + 1),
        "host_ms": host_nanos as f64 / 1e6 / (times.len() as f64 + 1.0),
        "kernel_variants": compiled.stats.variants,
        "compiled_functions": compiled.stats.compiled,
        "code_bytes": compiled.stats.code_bytes,
    });
    context.truncate_states(rows);
    // without the copies of inputs and outputs
    report["device_us"] = device_us(&mut context, &views, REPLAYS)?.into();
    let profile = match args.profile || args.trace.is_some() {
        true => Some(Profile::of(&compiled, &mut context, &views, &options)?),
        false => None,
    };
    if let Some(profile) = &profile {
        report["profile"] = profile.json();
    }
    if let (Some(profile), Some(path)) = (&profile, &args.trace) {
        std::fs::write(path, profile.trace().to_string()).map_err(output_error)?;
    }
    match args.json.as_deref() {
        Some("-") => println!("{report}"),
        Some(path) => std::fs::write(path, format!("{report:#}\n")).map_err(output_error)?,
        None => {
            for key in
                ["compile_ms", "load_ms", "first_run_ms", "median_ms", "min_ms", "p95_ms", "iterations"]
            {
                println!("{key:>14}  {}", number(&report[key]));
            }
            for key in ["peak_rss_mb", "arena_mb", "weights_mb"] {
                println!("{key:>14}  {}", number(&report[key]));
            }
        }
    }
    if let (Some(profile), true) = (&profile, args.profile && args.json.as_deref() != Some("-")) {
        print!("{}", profile.table());
    }
    Ok(Outcome::Good)
}

/// Replays of a run that are timed at once.
const REPLAYS: u32 = 10;

/// Microseconds of a GPU for a run, where its runs are replayed.
fn device_us(
    context: &mut Context,
    views: &[runtime::InputView<'_>],
    times: u32,
) -> Result<Option<f64>, Error> {
    if context.model().device().info().compute_capability.is_none() {
        return Ok(None);
    }
    Ok(context.time_replays(views, times)?.map(|ns| ns / 1e3))
}

fn number(v: &serde_json::Value) -> String {
    v.as_f64().map_or_else(|| v.to_string(), |x| format!("{x:.3}"))
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn stdio(
    compiled: &mut Compiled,
    context: &mut Context,
    views: &[runtime::InputView<'_>],
    rows: usize,
    compile_ms: f64,
) -> Result<Outcome, Error> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::json!({ "compile_ms": compile_ms })).map_err(output_error)?;
    out.flush().map_err(output_error)?;
    warn_unsaved(compiled);
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(output_error)?;
        let n: usize =
            line.trim().parse().map_err(|_| Error::Usage(format!("expected a count, found {line:?}")))?;
        // on a GPU most of a run are copies, and replays are what is compared
        let gpu = context.model().device().info().compute_capability.is_some();
        let runs = if gpu { n.min(3) } else { n };
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            context.truncate_states(rows);
            let began = Instant::now();
            context.run(views)?;
            times.push(ms(began.elapsed()));
        }
        context.truncate_states(rows);
        let device = device_us(context, views, n.try_into().unwrap_or(REPLAYS))?;
        let said = serde_json::json!({ "times_ms": times, "device_us": device });
        writeln!(out, "{said}").map_err(output_error)?;
        out.flush().map_err(output_error)?;
    }
    Ok(Outcome::Good)
}

/// High-water mark of resident memory.
fn peak_rss_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kb = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kb.unwrap_or(0.0) * 1024.0
}
