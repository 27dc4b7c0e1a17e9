//! Time by kernel, beside what the CPU could do at best; and the same as a trace. Times of a GPU are the device's own,
//! each kernel on its own.

use crate::ceiling::Ceiling;
use crate::compiled::Compiled;
use crate::device::DeviceChoice;
use crate::driver::{CompileOptions, Error};
use format::Place;
use ir::kernel::Dot;
use runtime::{Context, InputView};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

/// Runs that are added up.
const RUNS: usize = 7;

/// One kernel variant over all its calls, or the host functions.
struct Row {
    name: String,
    variant: usize,
    /// The first node that called it, and how many did.
    node: String,
    nodes: usize,
    /// Of one run.
    calls: f64,
    nanos: f64,
    flops: f64,
    bytes: f64,
    /// What the ceilings allow.
    least_nanos: f64,
}

/// One call, for the trace.
struct Call {
    kernel: String,
    node: String,
    begin_us: f64,
    nanos: u64,
    flops: i64,
    bytes: usize,
}

/// What a few runs told.
pub(super) struct Profile {
    /// Of the CPU, where that runs the model.
    ceiling: Option<Ceiling>,
    rows: Vec<Row>,
    /// The last run.
    calls: Vec<Call>,
    /// Wall-clock nanoseconds of a run, observed.
    run_nanos: f64,
}

impl Profile {
    /// Profiles a few runs. The ceilings are measured before, on the same threads.
    ///
    /// A kernel's bytes are those of its operands, each once. Constants are held against the bandwidth of the
    /// memory in which all constants of the model fit, everything else against that in which the operands of
    /// the kernel fit.
    pub(super) fn of(
        compiled: &Compiled,
        context: &mut Context,
        inputs: &[InputView<'_>],
        options: &CompileOptions,
    ) -> Result<Profile, Error> {
        let ceiling = match options.device {
            DeviceChoice::Cpu => Some(Ceiling::measure(options)?),
            _ => None,
        };
        let program = compiled.model.program();
        let weights = compiled.model.weight_bytes();
        let mut rows: BTreeMap<(usize, usize), (Row, Vec<usize>)> = BTreeMap::new();
        let mut calls = Vec::new();
        let mut run_nanos = 0.0;
        // every run begins with the states as they are now
        let state = context.state(0).map_or(0, |s| s.len);
        context.run(inputs)?;
        for _ in 0..RUNS {
            calls.clear();
            context.truncate_states(state);
            let began = Instant::now();
            let mut observe = |e: &runtime::Event<'_>| {
                let end_us = began.elapsed().as_secs_f64() * 1e6;
                let kernel = e.kernel.and_then(|k| program.kernels.get(k));
                let (mut constant, mut other) = (0, 0);
                let mut dot = None;
                let mut seen: Vec<usize> = Vec::with_capacity(e.args.len());
                for &b in e.args.iter().filter(|b| e.kernel.is_some() && **b < program.buffers.len()) {
                    if !seen.contains(&b) {
                        seen.push(b);
                        let bytes = e.len(b);
                        match program.buffers[b].place {
                            Place::Const(_) | Place::Init => {
                                constant += bytes;
                                // weights tell what products are of
                                dot = dot.or(match program.buffers[b].elem.name {
                                    "i8" => Some(Dot::Bytes),
                                    "bf16" => Some(Dot::Bf16),
                                    _ => None,
                                });
                            }
                            _ => other += bytes,
                        }
                    }
                }
                let flops = kernel.and_then(|k| e.size(&k.flops)).unwrap_or(0);
                let name = kernel.map_or("(host)", |k| &k.name).to_string();
                let node = program.origins.get(e.origin).map_or("", |o| &o.node).to_string();
                let (row, nodes) =
                    rows.entry((e.kernel.unwrap_or(usize::MAX), e.variant)).or_insert_with(|| {
                        let row = Row {
                            name: name.clone(),
                            variant: e.variant,
                            node: node.clone(),
                            nodes: 0,
                            calls: 0.0,
                            nanos: 0.0,
                            flops: 0.0,
                            bytes: 0.0,
                            least_nanos: 0.0,
                        };
                        (row, Vec::new())
                    });
                if !nodes.contains(&e.origin) {
                    nodes.push(e.origin);
                }
                let part = 1.0 / RUNS as f64;
                row.calls += part;
                row.nanos += e.nanos as f64 * part;
                row.flops += flops as f64 * part;
                row.bytes += (constant + other) as f64 * part;
                let traffic = [(constant, weights.max(constant)), (other, constant + other)];
                row.least_nanos += ceiling.map_or(0.0, |c| c.nanos(flops as f64, dot, &traffic)) * part;
                let begin_us = end_us - e.nanos as f64 / 1e3;
                calls.push(Call {
                    kernel: name,
                    node,
                    begin_us,
                    nanos: e.nanos,
                    flops,
                    bytes: constant + other,
                });
            };
            context.run_with(inputs, None, Some(&mut observe))?;
            run_nanos += began.elapsed().as_secs_f64() * 1e9 / RUNS as f64;
        }
        let mut rows: Vec<Row> =
            rows.into_values().map(|(row, nodes)| Row { nodes: nodes.len(), ..row }).collect();
        rows.sort_by(|a, b| b.nanos.total_cmp(&a.nanos));
        Ok(Profile { ceiling, rows, calls, run_nanos })
    }

    /// A table, slowest kernels first.
    pub(super) fn table(&self) -> String {
        let total: f64 = self.rows.iter().map(|r| r.nanos).sum();
        let least: f64 = self.rows.iter().map(|r| r.least_nanos).sum();
        let mut s = String::new();
        // writing to a String cannot fail
        let _ = write!(s, "\nkernels {:.3} ms of a run of {:.3} ms", total / 1e6, self.run_nanos / 1e6);
        let _ = match &self.ceiling {
            None => writeln!(s),
            Some(c) => writeln!(
                s,
                ", {:.0}% of the ceilings: {:.0} GFLOP/s (f32 multiply-add), {:.0} (bytes), {:.0} (bf16), reading {:.0} \
                 GB/s from L2, {:.0} from L3, {:.1} from memory",
                100.0 * least / total.max(1.0),
                c.gflops,
                c.bytes_gops,
                c.bf16_gflops,
                c.l2_gbs,
                c.l3_gbs,
                c.dram_gbs
            ),
        };
        let _ = writeln!(
            s,
            "{:>9} {:>6} {:>6} {:>9} {:>7} {:>8}  kernel",
            "us/run", "share", "calls", "GFLOP/s", "GB/s", "%ceiling"
        );
        for r in &self.rows {
            let more = if r.nodes > 1 { format!(" and {} more", r.nodes - 1) } else { String::new() };
            let _ = writeln!(
                s,
                "{:>9.1} {:>5.1}% {:>6.0} {:>9.1} {:>7.1} {:>7.0}%  {} #{}  {}{more}",
                r.nanos / 1e3,
                100.0 * r.nanos / total.max(1.0),
                r.calls,
                r.flops / r.nanos.max(1.0),
                r.bytes / r.nanos.max(1.0),
                100.0 * r.least_nanos / r.nanos.max(1.0),
                r.name,
                r.variant,
                r.node,
            );
        }
        s
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|r| {
                serde_json::json!({
                    "kernel": r.name, "variant": r.variant, "node": r.node, "nodes": r.nodes,
                    "us": r.nanos / 1e3, "calls": r.calls,
                    "gflops": r.flops / r.nanos.max(1.0), "gbs": r.bytes / r.nanos.max(1.0),
                    "of_ceiling": self.ceiling.map(|_| r.least_nanos / r.nanos.max(1.0)),
                })
            })
            .collect();
        serde_json::json!({
            "ceiling": self.ceiling.map(|c| serde_json::json!({
                "gflops": c.gflops, "bytes_gops": c.bytes_gops, "bf16_gflops": c.bf16_gflops, "l2_gbs": c.l2_gbs,
                "l3_gbs": c.l3_gbs, "dram_gbs": c.dram_gbs,
            })),
            "run_us": self.run_nanos / 1e3,
            "kernels": rows,
        })
    }

    /// The last run in the trace event format (complete events, microseconds), named by node.
    pub(super) fn trace(&self) -> serde_json::Value {
        let events: Vec<_> = self
            .calls
            .iter()
            .map(|c| {
                let nanos = c.nanos.max(1) as f64;
                serde_json::json!({
                    "name": if c.node.is_empty() { &c.kernel } else { &c.node },
                    "cat": "kernel", "ph": "X", "pid": 1, "tid": 1,
                    "ts": c.begin_us, "dur": c.nanos as f64 / 1e3,
                    "args": {
                        "kernel": c.kernel, "flops": c.flops, "bytes": c.bytes,
                        "GFLOP/s": c.flops as f64 / nanos, "GB/s": c.bytes as f64 / nanos,
                    },
                })
            })
            .collect();
        serde_json::json!({ "displayTimeUnit": "ns", "traceEvents": events })
    }
}
