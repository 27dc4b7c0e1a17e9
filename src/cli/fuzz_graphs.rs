//! `kernelsmith fuzz-graphs`: random graphs along every road, for developers.

use super::{CompileArgs, Outcome};
use crate::debug::{Fault, Repro, Road, Roads, ort::Ort, shrink};
use crate::device::DeviceChoice;
use crate::driver::{CompileOptions, Error};
use clap::Args;
use ir::DType;
use ir::testing::{Options, random_graph};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(super) struct FuzzGraphsArgs {
    /// Graphs to run
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// Seed of the first one; the others follow
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compile: CompileArgs,
    /// Also run in ONNX Runtime, with this Python
    #[arg(long, value_name = "PYTHON")]
    ort: Option<PathBuf>,
    /// Only these roads (canonical, kernels, a backend, the device, onnx-round-trip, onnxruntime)
    #[arg(long)]
    road: Vec<String>,
    /// Folder for what fails: the graph made small (.ksg) and as a filetest (.txt)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seconds that making one failure small may take
    #[arg(long, default_value_t = 20)]
    shrink: u64,
    /// Print what each refused graph was refused for
    #[arg(long)]
    refusals: bool,
    /// Print which types each primitive was met with (of its first operand, or of its result)
    #[arg(long)]
    coverage: bool,
}

/// The kinds of graphs, in turn.
fn style(seed: u64) -> Options {
    let all = Options::default();
    let common = vec![DType::F32, DType::F64, DType::I32, DType::I64, DType::F32];
    match seed % 8 {
        0 => Options { control: false, ..all },
        1 => Options { control: false, symbolic: true, ..all },
        2 => Options { symbolic: true, ..all },
        3 => Options { ops: 8, control: false, max_elems: 20_000, ..all },
        // what other runtimes have kernels for
        4 => Options { control: false, dtypes: common, ..all },
        5 => Options { dtypes: common, symbolic: true, ..all },
        6 => Options { ops: 24, dtypes: common, ..all },
        _ => Options { ops: 4, ..all },
    }
}

#[derive(Default)]
struct Tally {
    ran: u64,
    refused: u64,
    wrong: u64,
}

pub(super) fn fuzz_graphs(args: &FuzzGraphsArgs) -> Result<Outcome, Error> {
    let mut roads = vec![Road::Canonical, Road::Kernels, Road::RoundTrip];
    match &args.compile.backend {
        Some(name) => roads.push(Road::Backend(name.clone())),
        None => roads.extend(codegen::available().into_iter().map(|n| Road::Backend(n.into()))),
    }
    let options = args.compile.options();
    if options.device != DeviceChoice::Cpu {
        roads.push(Road::Device(options.device));
    }
    if args.ort.is_some() {
        roads.push(Road::Ort);
    }
    roads.retain(|r| args.road.is_empty() || args.road.contains(&r.to_string()));
    let script = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ort_server.py"));
    let dir = std::env::temp_dir().join(format!("kernelsmith-ort-{}", std::process::id()));
    let ort = args.ort.as_ref().map(|python| Ort::new(python.clone(), script, dir.clone()));
    let mut judge =
        Roads { options: CompileOptions { threads: 2, device: DeviceChoice::Cpu, ..options }, ort };
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen: Vec<(Road, Fault)> = Vec::new();
    let began = Instant::now();
    let mut met: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for seed in args.seed..args.seed.saturating_add(args.count) {
        let repro = Repro::of_case(&random_graph(seed, &style(seed)));
        types_of_prims(&repro.module.graph, &mut met);
        let bounds = match repro.reference(false) {
            Ok(bounds) => bounds,
            Err(e) => {
                println!("seed {seed}: the reference interpreter: {e}");
                tallies.entry("interpreter".into()).or_default().wrong += 1;
                continue;
            }
        };
        for road in &roads {
            let tally = tallies.entry(road.to_string()).or_default();
            tally.ran += 1;
            let Some(fault) = judge.check(road, &repro, &bounds) else { continue };
            if let Fault::Refused(why) = &fault {
                tally.refused += 1;
                *refusals
                    .entry(why.chars().filter(|c| !c.is_ascii_digit()).take(90).collect())
                    .or_default() += 1;
                continue;
            }
            tally.wrong += 1;
            println!("seed {seed} on {road}: {fault}");
            // one small model for each kind of error, and for each wrong result
            let known =
                matches!(fault, Fault::Failed(_)) && seen.iter().any(|(r, f)| r == road && f.is_like(&fault));
            if !known {
                seen.push((road.clone(), fault.clone()));
                report(&mut judge, args, seed, road, &repro, &fault)?;
            }
        }
    }
    let _ = std::fs::remove_dir_all(dir);
    println!("{} graphs in {:.0} s", args.count, began.elapsed().as_secs_f64());
    for (road, t) in &tallies {
        println!("{road}: {} ran, {} refused, {} disagree", t.ran - t.refused, t.refused, t.wrong);
    }
    if args.refusals {
        refusals.iter().for_each(|(why, n)| println!("refused {n}: {why}"));
    }
    if args.coverage {
        for (prim, types) in &met {
            println!("{prim}: {}", types.iter().copied().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(if tallies.values().all(|t| t.wrong == 0) { Outcome::Good } else { Outcome::Failed })
}

/// Adds the types that the primitives of a graph, and of the graphs in it, work on.
fn types_of_prims(g: &ir::Graph, met: &mut BTreeMap<&'static str, BTreeSet<&'static str>>) {
    for (_, op) in g.ops() {
        if let Some(&v) = op.operands.first().or(op.results.first()) {
            met.entry(op.prim.name()).or_default().insert(g[v].ty.dtype.name());
        }
        op.regions.iter().for_each(|r| types_of_prims(r, met));
    }
}

/// Makes the failure small, prints it and writes it.
fn report(
    judge: &mut Roads,
    args: &FuzzGraphsArgs,
    seed: u64,
    road: &Road,
    repro: &Repro,
    fault: &Fault,
) -> Result<(), Error> {
    let mut holds = |r: &Repro| {
        let Ok(bounds) = r.reference(false) else { return false };
        judge.check(road, r, &bounds).is_some_and(|f| f.is_like(fault))
    };
    let small = shrink::shrink(repro, Duration::from_secs(args.shrink), &mut holds);
    // a filetest holds no inputs: a seed has to give ones that show it
    let by_seed = (0..40).find(|&s| small.sets.len() == 1 && holds(&small.with_seed(s)));
    let text = ir::text::graph::print(&small.module);
    println!("{text}");
    let Some(dir) = &args.out else { return Ok(()) };
    let io = |e: std::io::Error| Error::Usage(format!("{}: {e}", dir.display()));
    std::fs::create_dir_all(dir).map_err(io)?;
    let name = format!("{road}-{seed}");
    std::fs::write(dir.join(format!("{name}.ksg")), &text).map_err(io)?;
    if let Some(s) = by_seed {
        let symbols = &small.module.symbols;
        let sizes: String =
            small.sizes(0).iter().map(|&(s, n)| format!(" {}={n}", symbols.get(s).name)).collect();
        let test = format!("test agree seed={s}{sizes}\n{text}====\nagrees\n");
        std::fs::write(dir.join(format!("{name}.txt")), test).map_err(io)?;
    }
    Ok(())
}
