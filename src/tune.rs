//! Searches schedules for the kernels of a model by running them, and the database of what was found.
//!
//! Every round gives each kernel that matters one neighbour of its best schedule so far, compiles and runs the
//! whole model, and looks at the time of each kernel by itself. At the end default and winners are measured
//! against each other again, in turns, and only what is faster then is kept.

use crate::compiled::views;
use crate::driver::{self, CompileOptions, Error};
use codegen::{Backend, ObjectStore};
use interp::{Tolerance, compare};
use ir::host::Lowered;
use ir::kernel::Kernel;
use ir::{Module, Tensor};
use passes::Planned;
use passes::schedule::tuned::{Question, Tuned, neighbours, question};
use passes::schedule::{self, Schedule};
use runtime::{Context, Model, Pool};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A winner in the database.
#[derive(Clone, PartialEq, Debug)]
pub struct Winner {
    pub schedule: String,
    /// Time of the default over the time of this one, when it was found.
    pub speedup: f64,
    /// For people: kernel, CPU.
    pub name: String,
    pub cpu: String,
}

/// Winners by what they are for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Database {
    pub winners: BTreeMap<Question, Winner>,
}

const VERSION: u64 = 1;

impl Database {
    /// `$XDG_DATA_HOME/kernelsmith/tuned.json`, or below `~/.local/share`.
    pub fn user_path() -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
        Some(base.join("kernelsmith/tuned.json"))
    }

    /// Reads a database.
    ///
    /// # Errors
    /// Where the file cannot be read or has another form.
    pub fn read(path: &Path) -> Result<Database, String> {
        let fail = |what: &str| format!("{}: {what}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| fail(&e.to_string()))?;
        let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| fail(&e.to_string()))?;
        if json["version"].as_u64() != Some(VERSION) {
            return Err(fail("not a database of schedules of this version"));
        }
        let mut db = Database::default();
        for w in json["winners"].as_array().ok_or_else(|| fail("no list of winners"))? {
            let text = |key: &str| w[key].as_str().map(str::to_string).ok_or_else(|| fail(key));
            let q = Question { kernel: text("kernel")?, default: text("default")? };
            let speedup = w["speedup"].as_f64().ok_or_else(|| fail("speedup"))?;
            let winner =
                Winner { schedule: text("schedule")?, speedup, name: text("name")?, cpu: text("cpu")? };
            db.winners.insert(q, winner);
        }
        Ok(db)
    }

    /// Writes it beside its place and renames it.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let winners: Vec<_> = self
            .winners
            .iter()
            .map(|(q, w)| {
                serde_json::json!({
                    "kernel": q.kernel, "default": q.default, "schedule": w.schedule,
                    "speedup": w.speedup, "name": w.name, "cpu": w.cpu,
                })
            })
            .collect();
        let json = serde_json::json!({ "version": VERSION, "winners": winners });
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let part = path.with_extension(format!("{}.part", std::process::id()));
        std::fs::write(&part, format!("{json:#}\n"))?;
        std::fs::rename(&part, path)
    }

    /// Takes over what `other` knows better.
    pub fn merge(&mut self, other: Database) {
        for (q, w) in other.winners {
            if self.winners.get(&q).is_none_or(|mine| mine.speedup < w.speedup) {
                self.winners.insert(q, w);
            }
        }
    }

    /// What the passes need of it.
    pub fn schedules(&self) -> Tuned {
        let schedules = self.winners.iter().map(|(q, w)| (q.clone(), w.schedule.clone())).collect();
        Tuned { schedules }
    }
}

/// What a search found.
pub struct Found {
    pub database: Database,
    /// Schedules tried.
    pub tried: usize,
    /// Milliseconds in kernels per run, without and with the winners, measured in turns.
    pub before_ms: f64,
    pub after_ms: f64,
}

/// Kernels that take less of the time are left alone.
const LEAST_SHARE: f64 = 0.004;
/// A schedule must be so much faster to count.
const GAIN: f64 = 1.03;
/// Runs of which the fastest counts, in the search and at the end.
const RUNS: usize = 5;
const FINAL_TURNS: usize = 15;

/// Compiled functions of earlier rounds.
#[derive(Default)]
struct Memory(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

impl ObjectStore for Memory {
    fn get(&self, func: &[u8]) -> Option<Vec<u8>> {
        self.0.lock().ok()?.get(func).cloned()
    }
    fn put(&self, func: &[u8], object: &[u8]) {
        if let Ok(mut map) = self.0.lock() {
            map.insert(func.to_vec(), object.to_vec());
        }
    }
}

struct Bench<'a> {
    planned: Planned,
    backend: Box<dyn Backend>,
    options: &'a CompileOptions,
    inputs: &'a [Tensor],
    pool: Arc<Pool>,
    memory: Memory,
}

type Nanos = HashMap<(usize, usize), u64>;

impl Bench<'_> {
    fn model(&self, tuned: &Tuned) -> Result<Context, Error> {
        let options = passes::Options { tuned: Some(Arc::new(tuned.clone())), ..self.options.passes() };
        let lowered: Lowered = passes::lower_kernels(self.planned.clone(), &self.backend.target(), &options)?;
        let (program, _) =
            codegen::program::build(&lowered, &*self.backend, self.options.math, Some(&self.memory))?;
        Ok(Context::new(Model::load(program, self.pool.clone(), self.options.limits)?))
    }

    /// Runs once; the fastest times so far, by kernel and variant.
    fn run(&self, context: &mut Context, best: &mut Nanos) -> Result<(), Error> {
        let mut now = Nanos::new();
        let mut observe = |e: &runtime::Event<'_>| {
            if let Some(k) = e.kernel {
                *now.entry((k, e.variant)).or_default() += e.nanos;
            }
        };
        context.run_with(&views(self.inputs), None, Some(&mut observe))?;
        for (k, nanos) in now {
            let b = best.entry(k).or_insert(u64::MAX);
            *b = nanos.min(*b);
        }
        Ok(())
    }

    fn outputs(&self, context: &Context) -> Vec<Tensor> {
        let m = &self.planned.module;
        let of = |(i, &v): (usize, &ir::ValueId)| {
            let o = context.output(i)?;
            Some(Tensor::new(m.graph[v].ty.dtype, o.shape.to_vec(), o.data.to_vec()))
        };
        m.graph.outputs.iter().enumerate().filter_map(of).collect()
    }
}

/// A kernel variant that is searched.
struct Slot {
    at: (usize, usize),
    question: Question,
    normal: Kernel,
    best: Schedule,
    nanos: u64,
    waiting: Vec<Schedule>,
    seen: HashSet<String>,
}

/// Searches for about `budget`, beginning with what `known` has.
///
/// # Errors
/// Those of compiling and running the model with default schedules.
pub fn tune(
    module: Module,
    inputs: &[Tensor],
    options: &CompileOptions,
    budget: Duration,
    known: &Database,
) -> Result<Found, Error> {
    let deadline = Instant::now() + budget;
    let backend = driver::backend(options)?;
    let target = backend.target();
    let planned = driver::plan(module, options, &*backend)?;
    let pool = Arc::new(Pool::new(options.threads));
    let bench = Bench { planned, backend, options, inputs, pool, memory: Memory::default() };
    let default = Tuned::default();
    let mut first = bench.model(&default)?;
    let mut times = Nanos::new();
    for _ in 0..RUNS {
        bench.run(&mut first, &mut times)?;
    }
    let want = bench.outputs(&first);
    let total: u64 = times.values().sum();
    let symbols = &bench.planned.module.symbols;
    let mut slots = Vec::new();
    for (&at, &nanos) in &times {
        let kernel = &bench.planned.kernels[at.0];
        let single = kernel.generated.is_none() && kernel.stages.is_empty();
        if (nanos as f64) < LEAST_SHARE * total as f64 || !single {
            continue;
        }
        let normal = schedule::form_for(kernel, symbols, &target)?;
        let choices = schedule::choose::variants(&normal, symbols, &target);
        let Some(choice) = choices.into_iter().nth(at.1) else { continue };
        let question = question(&normal, &target, &choice.schedule);
        let before = known.winners.get(&question).and_then(|w| Schedule::parse(&w.schedule, &normal).ok());
        let mut waiting = neighbours(&choice.schedule, &normal, symbols);
        waiting.reverse();
        waiting.extend(before);
        let seen = HashSet::from([choice.schedule.text(&normal)]);
        slots.push(Slot { at, question, normal, best: choice.schedule, nanos, waiting, seen });
    }
    // the same order on every run
    slots.sort_by_key(|s| s.at);
    let mut winners = Tuned::default();
    let mut tried = 0;
    while Instant::now() < deadline {
        let mut round = winners.clone();
        let mut candidates = Vec::new();
        for (i, slot) in slots.iter_mut().enumerate() {
            while let Some(s) = slot.waiting.pop() {
                let text = s.text(&slot.normal);
                if slot.seen.insert(text.clone()) {
                    round.schedules.insert(slot.question.clone(), text);
                    candidates.push((i, s));
                    break;
                }
            }
        }
        if candidates.is_empty() {
            break;
        }
        tried += candidates.len();
        let mut times = Nanos::new();
        let good = bench.model(&round).and_then(|mut context| {
            for _ in 0..RUNS {
                bench.run(&mut context, &mut times)?;
            }
            let same = |(got, want): (&Tensor, &Tensor)| {
                compare(got, want, Tolerance::of_network(want.dtype)).passes()
            };
            Ok(bench.outputs(&context).iter().zip(&want).all(same))
        });
        // a round that fails proves nothing about any of its schedules, and wins nothing
        if !good.unwrap_or(false) {
            continue;
        }
        for (i, s) in candidates {
            let slot = &mut slots[i];
            let nanos = times.get(&slot.at).copied().unwrap_or(u64::MAX);
            if nanos as f64 * GAIN < slot.nanos as f64 {
                winners.schedules.insert(slot.question.clone(), s.text(&slot.normal));
                slot.waiting = neighbours(&s, &slot.normal, symbols);
                slot.waiting.reverse();
                (slot.best, slot.nanos) = (s, nanos);
            }
        }
    }
    confirm(&bench, first, &slots, &winners, tried)
}

/// Measures default and winners in turns, and keeps what is faster.
fn confirm(
    bench: &Bench<'_>,
    mut first: Context,
    slots: &[Slot],
    winners: &Tuned,
    tried: usize,
) -> Result<Found, Error> {
    let mut second = bench.model(winners)?;
    let (mut old, mut new) = (Nanos::new(), Nanos::new());
    for _ in 0..FINAL_TURNS {
        bench.run(&mut first, &mut old)?;
        bench.run(&mut second, &mut new)?;
    }
    let mut database = Database::default();
    let cpu = bench.backend.target().cpu;
    let mut gained = 0.0;
    for slot in slots.iter().filter(|s| winners.schedules.contains_key(&s.question)) {
        let (Some(&before), Some(&after)) = (old.get(&slot.at), new.get(&slot.at)) else { continue };
        let speedup = before as f64 / after.max(1) as f64;
        if speedup < GAIN {
            continue;
        }
        gained += (before - after.min(before)) as f64;
        let name = bench.planned.kernels[slot.at.0].name.clone();
        let schedule = slot.best.text(&slot.normal);
        let winner = Winner { schedule, speedup, name, cpu: cpu.clone() };
        database.winners.insert(slot.question.clone(), winner);
    }
    let before = old.values().sum::<u64>() as f64;
    Ok(Found { database, tried, before_ms: before / 1e6, after_ms: (before - gained) / 1e6 })
}
