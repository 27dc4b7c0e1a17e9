//! Time by kernel, beside what the CPU could do at best; and the same as a trace. Every time is the median of a few
//! runs. Those of a GPU come from replays of a recorded run, in which the device notes when kernels end: a kernel's
//! time holds its launch by the device, about a microsecond. Where the host has a part in a run, each kernel is launched on its own
//! and waited for, and its time holds its launch by the host, some microseconds.

use crate::ceiling::Ceiling;
use crate::compiled::Compiled;
use crate::device::DeviceChoice;
use crate::driver::{CompileOptions, Error};
use format::{Place, Program};
use ir::kernel::Dot;
use runtime::{Context, Event, InputView};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

/// Runs that are timed.
const RUNS: usize = 7;
/// Runs before them, in which clocks, caches and memory come to where they stay.
const WARM_UP: usize = 3;

/// One kernel variant over all its calls, or the host functions.
struct Row {
    name: String,
    variant: usize,
    /// The first node that called it, and all of them.
    node: String,
    origins: Vec<usize>,
    /// Of one run.
    calls: usize,
    nanos: f64,
    flops: f64,
    bytes: f64,
    /// What the ceilings allow.
    least_nanos: f64,
}

/// One call of a run.
struct Call {
    kernel: Option<usize>,
    variant: usize,
    origin: usize,
    name: String,
    node: String,
    flops: i64,
    bytes: usize,
    /// What the ceilings allow.
    least_nanos: f64,
    /// By run: what it took, and what lies between it and the call before it.
    nanos: Vec<u64>,
    gaps: Vec<u64>,
}

/// The calls that timed runs tell of.
struct Observed<'a> {
    program: &'a Program,
    /// Bytes of all constants.
    weights: usize,
    ceiling: Option<Ceiling>,
    calls: Vec<Call>,
    /// Calls of the run under way, and when the last one of them ended.
    told: usize,
    end: u64,
    /// When that run began, if the calls are told of as they end.
    began: Option<Instant>,
}

impl Observed<'_> {
    fn begin(&mut self, began: Option<Instant>) {
        (self.told, self.end, self.began) = (0, 0, began);
    }

    fn call(&mut self, e: &Event<'_>) {
        let began = self.began.map_or(self.end, |b| (b.elapsed().as_nanos() as u64).saturating_sub(e.nanos));
        let gap = began.saturating_sub(self.end);
        self.end += gap + e.nanos;
        let same = |c: &Call| (c.kernel, c.variant, c.origin) == (e.kernel, e.variant, e.origin);
        if !self.calls.get(self.told).is_some_and(same) {
            // the first run, or one that goes another way from here on
            self.calls.truncate(self.told);
            let call = self.describe(e);
            self.calls.push(call);
        }
        let call = &mut self.calls[self.told];
        call.nanos.push(e.nanos);
        call.gaps.push(gap);
        self.told += 1;
    }

    /// A call without times.
    ///
    /// A kernel's bytes are those of its operands, each once. Constants are held against the bandwidth of the
    /// memory in which all constants of the model fit, everything else against that in which the operands of
    /// the kernel fit.
    fn describe(&self, e: &Event<'_>) -> Call {
        let program = self.program;
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
        let traffic = [(constant, self.weights.max(constant)), (other, constant + other)];
        Call {
            kernel: e.kernel,
            variant: e.variant,
            origin: e.origin,
            name: kernel.map_or("(host)", |k| &k.name).to_string(),
            node: program.origins.get(e.origin).map_or("", |o| &o.node).to_string(),
            flops,
            bytes: constant + other,
            least_nanos: self.ceiling.map_or(0.0, |c| c.nanos(flops as f64, dot, &traffic)),
            nanos: Vec::with_capacity(RUNS),
            gaps: Vec::with_capacity(RUNS),
        }
    }
}

/// Of an odd number of times the middle one.
fn median(times: &[u64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |t| *t as f64)
}

/// What a few runs told.
pub(super) struct Profile {
    /// Of the CPU, where that runs the model.
    ceiling: Option<Ceiling>,
    rows: Vec<Row>,
    calls: Vec<Call>,
    /// Nanoseconds of a run, observed: of the device for a replay, else by the clock on the wall.
    run_nanos: f64,
    /// The times are those of replays.
    replayed: bool,
}

impl Profile {
    /// Profiles a few runs. The ceilings are measured before, on the same threads.
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
        let (program, weights) = (compiled.model.program(), compiled.model.weight_bytes());
        let mut observed =
            Observed { program, weights, ceiling, calls: Vec::new(), told: 0, end: 0, began: None };
        let mut runs = Vec::with_capacity(RUNS);
        // every run begins with the states as they are now
        let state = context.state(0).map_or(0, |s| s.len);
        let replays = context.timed_replays(inputs)?;
        let replayed = replays.is_some();
        if let Some(mut replays) = replays {
            for _ in 0..WARM_UP {
                replays.run(&mut |_| {})?;
            }
            for _ in 0..RUNS {
                observed.begin(None);
                runs.push(replays.run(&mut |e| observed.call(e))?);
                observed.calls.truncate(observed.told);
            }
        } else {
            for _ in 0..WARM_UP {
                context.truncate_states(state);
                context.run(inputs)?;
            }
            for _ in 0..RUNS {
                context.truncate_states(state);
                let began = Instant::now();
                observed.begin(Some(began));
                context.run_with(inputs, None, Some(&mut |e| observed.call(e)))?;
                runs.push(began.elapsed().as_nanos() as u64);
                observed.calls.truncate(observed.told);
            }
        }
        let calls = observed.calls;
        Ok(Profile { ceiling, rows: rows(&calls), calls, run_nanos: median(&runs), replayed })
    }

    /// A table, slowest kernels first.
    pub(super) fn table(&self) -> String {
        let total: f64 = self.rows.iter().map(|r| r.nanos).sum();
        let least: f64 = self.rows.iter().map(|r| r.least_nanos).sum();
        let mut s = String::new();
        // writing to a String cannot fail
        let _ = write!(s, "\nkernels {:.3} ms of a run of {:.3} ms", total / 1e6, self.run_nanos / 1e6);
        let _ = match &self.ceiling {
            None if self.replayed => writeln!(s),
            None => writeln!(s, ", each launched on its own and waited for"),
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
            let more = match r.origins.len() {
                0 | 1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let _ = writeln!(
                s,
                "{:>9.1} {:>5.1}% {:>6} {:>9.1} {:>7.1} {:>7.0}%  {} #{}  {}{more}",
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
                    "kernel": r.name, "variant": r.variant, "node": r.node, "nodes": r.origins.len(),
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
            "replayed": self.replayed,
            "kernels": rows,
        })
    }

    /// A run in the trace event format (complete events, microseconds), named by node.
    pub(super) fn trace(&self) -> serde_json::Value {
        let mut end = 0.0;
        let event = |c: &Call| {
            let (nanos, begin) = (median(&c.nanos), end + median(&c.gaps));
            end = begin + nanos;
            serde_json::json!({
                "name": if c.node.is_empty() { &c.name } else { &c.node },
                "cat": "kernel", "ph": "X", "pid": 1, "tid": 1,
                "ts": begin / 1e3, "dur": nanos / 1e3,
                "args": {
                    "kernel": c.name, "flops": c.flops, "bytes": c.bytes,
                    "GFLOP/s": c.flops as f64 / nanos.max(1.0), "GB/s": c.bytes as f64 / nanos.max(1.0),
                },
            })
        };
        let events: Vec<_> = self.calls.iter().map(event).collect();
        serde_json::json!({ "displayTimeUnit": "ns", "traceEvents": events })
    }
}

/// Calls by kernel variant, the slowest first.
fn rows(calls: &[Call]) -> Vec<Row> {
    let mut rows: BTreeMap<(usize, usize), Row> = BTreeMap::new();
    for c in calls {
        let row = rows.entry((c.kernel.unwrap_or(usize::MAX), c.variant)).or_insert_with(|| Row {
            name: c.name.clone(),
            variant: c.variant,
            node: c.node.clone(),
            origins: Vec::new(),
            calls: 0,
            nanos: 0.0,
            flops: 0.0,
            bytes: 0.0,
            least_nanos: 0.0,
        });
        if !row.origins.contains(&c.origin) {
            row.origins.push(c.origin);
        }
        row.calls += 1;
        row.nanos += median(&c.nanos);
        row.flops += c.flops as f64;
        row.bytes += c.bytes as f64;
        row.least_nanos += c.least_nanos;
    }
    let mut rows: Vec<Row> = rows.into_values().collect();
    rows.sort_by(|a, b| b.nanos.total_cmp(&a.nanos));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(kernel: usize, origin: usize, nanos: [u64; 3], gaps: [u64; 3]) -> Call {
        Call {
            kernel: Some(kernel),
            variant: 0,
            origin,
            name: format!("k{kernel}"),
            node: format!("n{origin}"),
            flops: 10,
            bytes: 20,
            least_nanos: 1.0,
            nanos: nanos.to_vec(),
            gaps: gaps.to_vec(),
        }
    }

    #[test]
    fn a_disturbed_run_does_not_count() {
        let calls = vec![
            call(0, 0, [900, 10, 11], [5, 5, 5]),
            call(1, 1, [30, 31, 2000], [1, 700, 0]),
            call(0, 2, [20, 600, 21], [0, 0, 0]),
        ];
        let rows = rows(&calls);
        let told: Vec<_> =
            rows.iter().map(|r| (&*r.name, r.origins.len(), r.calls, r.nanos, r.flops)).collect();
        assert_eq!(told, [("k0", 2, 2, 32.0, 20.0), ("k1", 1, 1, 31.0, 10.0)]);
        let profile = Profile { ceiling: None, rows, calls, run_nanos: 69.0, replayed: true };
        let trace = profile.trace();
        let spans: Vec<_> =
            (0..3).map(|i| [&trace["traceEvents"][i]["ts"], &trace["traceEvents"][i]["dur"]]).collect();
        assert_eq!(spans, [[0.005, 0.011], [0.017, 0.031], [0.048, 0.021]]);
    }
}
