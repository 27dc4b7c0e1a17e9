//! `kernelsmith bench`

use super::inputs::InputArgs;
use super::{ModelArgs, Outcome, output_error, progress};
use crate::driver::{self, Compiled, Error, views};
use clap::Args;
use runtime::Context;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

#[derive(Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: InputArgs,
    /// Time to spend on measured runs
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Write the figures as JSON (`-`: standard output)
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Time by kernel
    #[arg(long)]
    profile: bool,
    /// For interleaved measuring: for each line N of standard input run N times and print the times
    #[arg(long, hide = true)]
    stdio: bool,
}

pub(super) fn bench(args: &BenchArgs) -> Result<Outcome, Error> {
    if args.model.compile.interpreted() {
        return Err(Error::Usage("the reference interpreter is not for timing".into()));
    }
    let options = args.model.options();
    let began = Instant::now();
    let given = args.inputs.read()?;
    let module = driver::import_for(&args.model.model, &options, &given.values())?.module;
    let import_ms = ms(began.elapsed());
    let inputs = given.tensors(&module)?;
    let bar = progress("compiling");
    let compiled = driver::compile_module(module, &options)?;
    bar.finish_and_clear();
    let mut context = compiled.context();
    let t = compiled.times;
    let compile_ms = import_ms + t.passes + t.codegen;
    let views = views(&inputs);
    if args.stdio {
        return stdio(&mut context, &views, compile_ms + t.load);
    }

    let began = Instant::now();
    context.run(&views)?;
    let first_run_ms = ms(began.elapsed());
    let mut times = Vec::new();
    let deadline = Instant::now() + Duration::from_secs_f64(args.seconds.clamp(0.0, 86_400.0));
    while times.len() < 3 || Instant::now() < deadline {
        let began = Instant::now();
        context.run(&views)?;
        times.push(ms(began.elapsed()));
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    const MB: f64 = 1e6;
    let (host_calls, host_nanos) = context.host_calls();
    let report = serde_json::json!({
        "model": args.model.model.display().to_string(),
        "backend": compiled.backend,
        "threads": compiled.model.pool().threads(),
        "compile_ms": compile_ms,
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
    if args.profile {
        profile(&compiled, &mut context, &inputs)?;
    }
    Ok(Outcome::Good)
}

fn number(v: &serde_json::Value) -> String {
    v.as_f64().map_or_else(|| v.to_string(), |x| format!("{x:.3}"))
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn stdio(context: &mut Context, views: &[runtime::InputView<'_>], compile_ms: f64) -> Result<Outcome, Error> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::json!({ "compile_ms": compile_ms })).map_err(output_error)?;
    out.flush().map_err(output_error)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(output_error)?;
        let n: usize =
            line.trim().parse().map_err(|_| Error::Usage(format!("expected a count, found {line:?}")))?;
        let mut times = Vec::with_capacity(n);
        for _ in 0..n {
            let began = Instant::now();
            context.run(views)?;
            times.push(ms(began.elapsed()));
        }
        writeln!(out, "{}", serde_json::json!({ "times_ms": times })).map_err(output_error)?;
        out.flush().map_err(output_error)?;
    }
    Ok(Outcome::Good)
}

/// Time, calls and GFLOP/s by kernel, slowest first; the sum of 5 runs.
fn profile(compiled: &Compiled, context: &mut Context, inputs: &[ir::Tensor]) -> Result<(), Error> {
    const RUNS: u32 = 5;
    let mut rows: BTreeMap<(usize, usize), (u64, u64, i64, usize)> = BTreeMap::new();
    let program = compiled.model.program();
    for _ in 0..RUNS {
        let mut observe = |e: &runtime::Event<'_>| {
            let row = rows.entry((e.kernel.unwrap_or(usize::MAX), e.variant)).or_default();
            row.0 += e.nanos;
            row.1 += 1;
            row.3 = e.origin;
            row.2 += e.kernel.and_then(|k| e.size(&program.kernels[k].flops)).unwrap_or(0);
        };
        context.run_with(&views(inputs), None, Some(&mut observe))?;
    }
    let total: u64 = rows.values().map(|r| r.0).sum();
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|(_, r)| std::cmp::Reverse(r.0));
    println!("\n{:>9} {:>6} {:>6} {:>9}  kernel", "us/run", "share", "calls", "GFLOP/s");
    for ((k, variant), (nanos, calls, flops, origin)) in rows {
        let name = program.kernels.get(k).map_or("(host)", |k| &k.name);
        let node = program.origins.get(origin).map_or("", |o| &o.node);
        println!(
            "{:>9.1} {:>5.1}% {:>6} {:>9.1}  {name} #{variant}  {node}",
            nanos as f64 / 1e3 / f64::from(RUNS),
            100.0 * nanos as f64 / total.max(1) as f64,
            calls / u64::from(RUNS),
            flops as f64 / nanos.max(1) as f64,
        );
    }
    Ok(())
}

/// High-water mark of resident memory.
fn peak_rss_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kb = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kb.unwrap_or(0.0) * 1024.0
}
