//! One model checked after every stage of its compilation (`verify --passes`).
//!
//! Graphs are run whole by the reference interpreter and compared with the graph before; kernels are executed
//! one by one on values that the interpreter gave for the canonical graph, in every form that they take up to
//! machine code ([`Level`]). What costs more than the budget is left out and reported.

use super::levels::{At, Level, take};
use crate::driver::{self, CompileOptions, Error};
use interp::{Bounded, Interp, Tolerance, compare};
use ir::{DType, Math, Module, OriginId, Tensor, ValueId};
use passes::kernel_exec::{self, Budget, Call, Known, Verdict};
use passes::limits::{Fuel, Limits};
use passes::pipeline::{Cx, PASSES, Pass};
use passes::{Stage, State};
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What a check may cost.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Time for graphs. The canonical graph is compared in any case.
    pub graphs: Duration,
    /// For the kernels of each level.
    pub kernels: Budget,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { graphs: Duration::from_secs(60), kernels: Budget::default() }
    }
}

/// Where something is wrong.
#[derive(Clone, PartialEq, Debug)]
pub struct Deviation {
    /// Node of the model, with its op.
    pub node: String,
    /// The first value that differs, where one was found.
    pub value: Option<String>,
    /// The value in the canonical graph, at levels behind it.
    pub id: Option<ValueId>,
    pub message: String,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// The pass changed nothing.
    Unchanged,
    /// All is right, and how far that was looked at.
    Good(String),
    /// As `Good`, but for the parts that this says.
    Partly(String, Vec<String>),
    Skipped(String),
    Wrong(Deviation),
    /// The pass itself failed, or what it made cannot run.
    Failed(String),
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.node.is_empty() {
            write!(f, "at {}", self.node)?;
        }
        if let Some(value) = &self.value {
            write!(f, ", value `{value}`")?;
        }
        let colon = if self.node.is_empty() && self.value.is_none() { "" } else { ": " };
        write!(f, "{colon}{}", self.message)
    }
}

impl Outcome {
    /// A word for the state, and what there is to say about it.
    pub fn parts(&self) -> (&'static str, String) {
        match self {
            Outcome::Unchanged => ("unchanged", String::new()),
            Outcome::Good(how) => ("good", how.clone()),
            Outcome::Partly(how, left) => {
                let what = left.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
                let more = left.len().saturating_sub(3);
                let more = if more > 0 { format!("; {more} more") } else { String::new() };
                ("partly", format!("{how}; NOT CHECKED: {what}{more}"))
            }
            Outcome::Skipped(why) => ("skipped", why.clone()),
            Outcome::Wrong(d) => ("WRONG", d.to_string()),
            Outcome::Failed(message) => ("FAILED", message.clone()),
        }
    }
    /// What was left out for good. (A graph that was skipped is behind one that was compared.)
    pub fn left_out(&self) -> &[String] {
        match self {
            Outcome::Partly(_, left) => left,
            _ => &[],
        }
    }
    pub fn is_bad(&self) -> bool {
        matches!(self, Outcome::Wrong(_) | Outcome::Failed(_))
    }
}

/// A stage of compilation and what is known of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Checked {
    pub name: &'static str,
    pub outcome: Outcome,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, detail) = self.outcome.parts();
        write!(f, "{:<22} {state:<9} {detail}", self.name)
    }
}

/// The stages up to the first bad one; `tell` hears of each as soon as it is known.
///
/// # Errors
/// Where the model itself does not run in the interpreter.
pub fn check(
    module: &Module,
    inputs: &[Tensor],
    options: &CompileOptions,
    effort: Effort,
    tell: &mut dyn FnMut(&Checked),
) -> Result<Vec<Checked>, Error> {
    let mut all = Vec::new();
    let mut add = |name: &'static str, outcome: Outcome| {
        let bad = outcome.is_bad();
        let checked = Checked { name, outcome };
        tell(&checked);
        all.push(checked);
        !bad
    };
    let graphs = Graphs::new(module, inputs, options, effort)?;
    let Some(canonical) = graphs.run(&mut add)? else { return Ok(all) };
    let mut at = take(module, options, &Limits::default(), Level::Kernels);
    let values = match &at {
        Ok(at) => Values::of(&canonical, inputs, at)?,
        Err(_) => Values::default(),
    };
    for level in Level::ALL {
        if level > Level::Kernels {
            at = take(module, options, &Limits::default(), level);
        }
        let outcome = match &at {
            Ok(at) => kernels(at, level, inputs, &values, options.math, effort),
            Err(e) => Outcome::Failed(e.to_string()),
        };
        if !add(level.name(), outcome) {
            break;
        }
    }
    Ok(all)
}

// ---- graphs ------------------------------------------------------------------------------------

/// The passes over graphs, with the last graph that is known to be right.
struct Graphs<'a> {
    good: Module,
    outputs: Vec<Tensor>,
    inputs: &'a [Tensor],
    options: &'a CompileOptions,
    until: Instant,
    /// Time of one run.
    once: Duration,
}

type Add<'a> = dyn FnMut(&'static str, Outcome) -> bool + 'a;

impl<'a> Graphs<'a> {
    fn new(
        module: &Module,
        inputs: &'a [Tensor],
        options: &'a CompileOptions,
        effort: Effort,
    ) -> Result<Graphs<'a>, Error> {
        let began = Instant::now();
        let mut good = module.clone();
        driver::give_bytes(&mut good)?;
        let outputs = Interp::new(&good).run(inputs)?;
        let until = began + effort.graphs;
        Ok(Graphs { good, outputs, inputs, options, until, once: began.elapsed() })
    }

    /// The canonical graph, where all passes are good.
    fn run(mut self, add: &mut Add) -> Result<Option<Module>, Error> {
        let passes: Vec<&Pass> = graph_passes().collect();
        let backend = driver::backend(self.options)?;
        let target = backend.target();
        let options = passes::Options { verify: true, ..self.options.passes() };
        let fuel = Fuel::new(&options);
        let cx = Cx { target: &target, options: &options, fuel: &fuel };
        let mut now = self.good.clone();
        // passes since the last graph that was run
        let mut waiting = false;
        for (i, pass) in passes.iter().enumerate() {
            let next = match pass.apply(State::Graph(now.clone()), &cx) {
                Ok(State::Graph(m)) => m,
                Ok(_) => return Ok(None),
                Err(e) => {
                    add(pass.name, Outcome::Failed(e.to_string()));
                    return Ok(None);
                }
            };
            let same = text(&now) == text(&next);
            now = next;
            let last = i + 1 == passes.len();
            let outcome = if same && !(last && waiting) {
                Outcome::Unchanged
            } else if !last && Instant::now() + self.once > self.until {
                waiting = true;
                Outcome::Skipped("out of time; the canonical graph will be compared".into())
            } else {
                waiting = false;
                self.compare(pass, &now)
            };
            if !add(pass.name, outcome) {
                return Ok(None);
            }
        }
        Ok(Some(now))
    }

    /// Compares a graph with the last good one, and takes its place where it is good.
    fn compare(&mut self, pass: &Pass, next: &Module) -> Outcome {
        let got = match Interp::new(next).run(self.inputs) {
            Ok(got) => got,
            Err(e) => return Outcome::Failed(format!("the graph does not run any more: {e}")),
        };
        let samples = if Instant::now() + self.once * 8 > self.until { 2 } else { 4 };
        match agree(pass, &self.good, self.inputs, &self.outputs, &got, samples) {
            Ok(how) => {
                (self.good, self.outputs) = (next.clone(), got);
                Outcome::Good(how)
            }
            Err(message) => Outcome::Wrong(locate(&self.good, next, self.inputs, message)),
        }
    }
}

/// The passes that leave a graph.
pub fn graph_passes() -> impl Iterator<Item = &'static Pass> {
    PASSES.iter().take_while(|p| p.stage <= Stage::Canonical)
}

fn text(m: &Module) -> String {
    let mut printer = ir::text::graph::Printer::new(m);
    printer.elide_above = 0;
    printer.module()
}

/// Reorders of sums move elements by so much of the largest one, and need no closer look.
const ROUNDING: Tolerance = Tolerance { abs: 0.0, rel: 0.0, scale: 1e-6 };

/// Whether two graphs' outputs agree, and in what sense.
///
/// # Errors
/// The first output that differs.
pub fn agree(
    pass: &Pass,
    before: &Module,
    inputs: &[Tensor],
    want: &[Tensor],
    got: &[Tensor],
    samples: u64,
) -> Result<String, String> {
    if got.len() != want.len() {
        return Err(format!("{} outputs, expected {}", got.len(), want.len()));
    }
    let all = |tol: &dyn Fn(DType) -> Tolerance| {
        got.iter().zip(want).all(|(g, w)| compare(g, w, tol(w.dtype)).passes())
    };
    if all(&|_| Tolerance::EXACT) {
        return Ok("the same bits".into());
    }
    let wide = |d: DType| matches!(d, DType::F32 | DType::F64);
    if all(&|d| if wide(d) { ROUNDING } else { Tolerance::EXACT }) {
        return Ok("within rounding".into());
    }
    // halves instead of singles, as the caller asked for
    if pass.name == "bf16-products" {
        let of = |d| Tolerance::of_network(if d == DType::F32 { DType::BF16 } else { d });
        return match got.iter().zip(want).map(|(g, w)| compare(g, w, of(w.dtype))).find(|c| !c.passes()) {
            None => Ok("within the tolerance of bf16".into()),
            Some(c) => Err(c.to_string()),
        };
    }
    // a few samples may give too tight a bound; a verdict takes many
    let mut verdict = Ok("within the bounds of rounding".to_string());
    for n in [samples, samples * 8] {
        let bounds = Bounded::run(before, inputs, n).map_err(|e| format!("the graph before: {e}"))?;
        let bad = (0..got.len()).find_map(|i| {
            let c = bounds.compare(i, &got[i]);
            (!c.passes()).then(|| format!("output {i}: {c}"))
        });
        match bad {
            None => return Ok("within the bounds of rounding".into()),
            Some(message) => verdict = Err(message),
        }
    }
    verdict
}

/// The first value, by name, in which two graphs differ.
fn locate(before: &Module, after: &Module, inputs: &[Tensor], message: String) -> Deviation {
    let names = |m: &Module| -> HashMap<ValueId, String> {
        let ids = (0..m.graph.value_count()).map(|i| ValueId(i as u32));
        ids.filter_map(|v| Some((v, m.graph[v].name.clone()?))).collect()
    };
    let (old, new) = (names(before), names(after));
    let both: std::collections::HashSet<&String> = new.values().collect();
    let mut known: HashMap<&str, Tensor> = HashMap::new();
    let _ = Interp::new(before).run_with_values(inputs, &mut |v, t| {
        if let Some(name) = old.get(&v).filter(|n| both.contains(n)) {
            known.insert(name, t.clone());
        }
        None
    });
    let mut first = None;
    let _ = Interp::new(after).run_with_values(inputs, &mut |v, t| {
        let want = new.get(&v).and_then(|n| known.get(n.as_str()));
        if let Some(want) = want.filter(|_| first.is_none()) {
            let c = compare(t, want, Tolerance::of_network(want.dtype));
            if !c.passes() {
                first = Some((v, c.to_string()));
            }
        }
        None
    });
    match first {
        Some((v, message)) => Deviation {
            node: origin_text(after, origin(after, v)),
            value: new.get(&v).cloned(),
            id: None,
            message,
        },
        None => Deviation { node: String::new(), value: None, id: None, message },
    }
}

// ---- kernels -----------------------------------------------------------------------------------

/// What the reference gives for the values that lie in buffers.
#[derive(Default)]
pub struct Values {
    pub known: HashMap<ValueId, Tensor>,
}

impl Values {
    /// # Errors
    /// Those of the interpreter.
    pub fn of(canonical: &Module, inputs: &[Tensor], at: &At) -> Result<Values, Error> {
        let wanted: std::collections::HashSet<ValueId> =
            at.planned.buffers.iter().filter_map(|b| b.value).collect();
        let mut known = HashMap::new();
        Interp::new(canonical).run_with_values(inputs, &mut |v, t| {
            if wanted.contains(&v) {
                known.insert(v, t.clone());
            }
            None
        })?;
        Ok(Values { known })
    }
}

/// The kernels of one level, each by itself.
fn kernels(at: &At, level: Level, inputs: &[Tensor], values: &Values, math: Math, effort: Effort) -> Outcome {
    let m = &at.planned.module;
    if level == Level::Chains && at.planned.kernels.iter().all(|k| k.stages.is_empty()) {
        return Outcome::Unchanged;
    }
    let tolerance = |v: ValueId| super::tolerance(m, v, math);
    let known = Known { values: &values.known, tolerance: &tolerance };
    let report = match kernel_exec::check(&at.planned, at.code().as_ref(), inputs, &known, effort.kernels) {
        Ok(report) => report,
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    if let Some(bad) = report.bad() {
        return Outcome::Wrong(deviation(m, bad));
    }
    let (whole, sampled, skipped) = report.counts();
    let mut how = format!("{whole} calls whole");
    if sampled > 0 {
        how += &format!(", {sampled} at some points");
    }
    if skipped == 0 {
        return Outcome::Good(how);
    }
    let skipped = report.calls.iter().filter_map(|c| match &c.verdict {
        Verdict::Skipped(why) => Some(format!("{} at {}: {why}", c.name, origin_text(m, c.origin))),
        _ => None,
    });
    Outcome::Partly(how, skipped.collect())
}

fn deviation(m: &Module, call: &Call) -> Deviation {
    let message = match &call.verdict {
        Verdict::Bad(message) => format!("{}: {message}", call.name),
        Verdict::Failed(message) => format!("{} went wrong: {message}", call.name),
        Verdict::Good | Verdict::Sampled(_) | Verdict::Skipped(_) => String::new(),
    };
    let value = call.value.map(|v| m.graph[v].name.clone().unwrap_or_else(|| format!("%{}", v.0)));
    Deviation { node: origin_text(m, call.origin), value, id: call.value, message }
}

fn origin(m: &Module, v: ValueId) -> OriginId {
    m.graph.def_op(v).map_or(OriginId(0), |op| m.graph[op].origin)
}

/// A node of the model as people know it.
pub fn origin_text(m: &Module, origin: OriginId) -> String {
    let o = m.origins.get(origin.index()).cloned().unwrap_or_default();
    if o.node.is_empty() && o.op_type.is_empty() {
        return String::new();
    }
    format!("\"{}\" ({}-{})", o.node, o.op_type, o.opset)
}
