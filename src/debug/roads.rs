//! The roads from a graph to its results, all of which must agree with the reference interpreter.

use super::Repro;
use super::ort::Ort;
use crate::device::DeviceChoice;
use crate::driver::{CompileOptions, compile_module};
use interp::{Bounded, Interp};
use ir::{Module, Tensor};
use passes::{Stage, State};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One way to results.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Road {
    /// The canonical graph, interpreted.
    Canonical,
    /// The kernels before any schedule, on the planned arena.
    Kernels,
    /// Compiled by this backend, for the CPU.
    Backend(String),
    /// Compiled for this device.
    Device(DeviceChoice),
    /// Written as ONNX, read back, interpreted.
    RoundTrip,
    /// Written as ONNX, run by ONNX Runtime.
    Ort,
}

impl std::fmt::Display for Road {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Road::Canonical => "canonical",
            Road::Kernels => "kernels",
            Road::Backend(name) => name,
            Road::Device(device) => return device.fmt(f),
            Road::RoundTrip => "onnx-round-trip",
            Road::Ort => "onnxruntime",
        })
    }
}

/// What is wrong on a road.
#[derive(Clone, PartialEq, Debug)]
pub enum Fault {
    /// An output differs.
    Wrong(String),
    /// The road ended in an error.
    Failed(String),
    /// The road cannot take this graph: nothing is known.
    Refused(String),
}

impl Fault {
    /// Of one kind: what a smaller model must show too. Numbers in messages do not count.
    pub fn is_like(&self, other: &Fault) -> bool {
        let words = |s: &str| s.chars().filter(|c| !c.is_ascii_digit()).take(48).collect::<String>();
        match (self, other) {
            (Fault::Wrong(_), Fault::Wrong(_)) => true,
            (Fault::Failed(a), Fault::Failed(b)) => words(a) == words(b),
            _ => false,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Wrong(m) => write!(f, "{m}"),
            Fault::Failed(m) => write!(f, "error: {m}"),
            Fault::Refused(m) => write!(f, "refused: {m}"),
        }
    }
}

/// Runs models along roads.
pub struct Roads {
    pub options: CompileOptions,
    pub ort: Option<Ort>,
}

impl Roads {
    /// What is wrong with the model on this road; `None` where all is right.
    pub fn check(&mut self, road: &Road, repro: &Repro, bounds: &[Bounded]) -> Option<Fault> {
        let run = AssertUnwindSafe(|| self.run(road, repro));
        let results = match catch_unwind(run).unwrap_or_else(|panic| Err(panicked(&*panic))) {
            Ok(results) => results,
            Err(fault) => return Some(fault),
        };
        let wrong = compare(&results, bounds)?;
        // a bound from a few samples may be too tight: the verdict takes many
        let Ok(careful) = repro.reference(true) else { return Some(Fault::Wrong(wrong)) };
        let wrong = compare(&results, &careful)?;
        if *road == Road::Ort
            && let Some(why) = super::known_difference(repro)
        {
            return Some(Fault::Refused(format!("known of ONNX Runtime: {why}")));
        }
        Some(Fault::Wrong(wrong))
    }

    fn run(&mut self, road: &Road, repro: &Repro) -> Result<Vec<Vec<Tensor>>, Fault> {
        let failed = |e: &dyn std::fmt::Display| Fault::Failed(e.to_string());
        match road {
            Road::Canonical => {
                let State::Graph(m) = self.stage(repro, Stage::Canonical)? else {
                    return Err(Fault::Failed("the canonical stage is not a graph".into()));
                };
                interpret(&m, &repro.sets)
            }
            Road::Kernels => {
                let State::Planned(p) = self.stage(repro, Stage::Kernels)? else {
                    return Err(Fault::Failed("the kernel stage has no kernels".into()));
                };
                repro
                    .sets
                    .iter()
                    .map(|s| passes::kernel_exec::execute(&p, s).map_err(|e| failed(&e)))
                    .collect()
            }
            Road::Backend(name) => {
                let cpu = DeviceChoice::Cpu;
                compiled(
                    repro,
                    &CompileOptions { device: cpu, backend: Some(name.clone()), ..self.options.clone() },
                )
            }
            Road::Device(device) => {
                compiled(repro, &CompileOptions { device: *device, backend: None, ..self.options.clone() })
            }
            Road::RoundTrip => {
                let back = round_trip(&repro.module, false)?;
                interpret(&back, &repro.sets)
            }
            Road::Ort => {
                let bytes = export(&repro.module, true)?;
                let Some(ort) = &mut self.ort else {
                    return Err(Fault::Refused("ONNX Runtime is not there".into()));
                };
                repro.sets.iter().map(|s| ort.run(&bytes, s, &repro.module)).collect()
            }
        }
    }

    fn stage(&self, repro: &Repro, stage: Stage) -> Result<State, Fault> {
        let target =
            crate::driver::backend(&self.options).map_err(|e| Fault::Refused(e.to_string()))?.target();
        let options = passes::Options { verify: true, ..self.options.passes() };
        passes::run_until(repro.module.clone(), &target, &options, stage)
            .map_err(|e| Fault::Failed(e.to_string()))
    }
}

/// A panic is an error like any other: the next graph runs all the same.
fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    Fault::Failed(format!("panic: {}", text.unwrap_or("without a message")))
}

fn compiled(repro: &Repro, options: &CompileOptions) -> Result<Vec<Vec<Tensor>>, Fault> {
    let compiled =
        compile_module(repro.module.clone(), options).map_err(|e| Fault::Failed(format!("compile: {e}")))?;
    // one context: sizes that change meet memory that is in use
    let mut context = compiled.context();
    let run = |s: &Vec<Tensor>| compiled.run(&mut context, s).map_err(|e| Fault::Failed(e.to_string()));
    repro.sets.iter().map(run).collect()
}

fn interpret(m: &Module, sets: &[Vec<Tensor>]) -> Result<Vec<Vec<Tensor>>, Fault> {
    let run = |s: &Vec<Tensor>| Interp::new(m).run(s).map_err(|e| Fault::Failed(e.to_string()));
    sets.iter().map(run).collect()
}

/// The module as ONNX.
pub fn export(m: &Module, portable: bool) -> Result<Vec<u8>, Fault> {
    let options = frontend::export::ExportOptions { portable, ..Default::default() };
    let materialise = |c: &ir::ConstData| interp::materialise(c).map_err(|e| e.to_string());
    let exported = frontend::export::export(m, &options, &materialise);
    let exported = exported.map_err(|e| Fault::Failed(format!("export: {e}")))?;
    exported.to_bytes().map_err(|e| Fault::Failed(format!("export: {e}")))
}

/// The module written as ONNX and read back.
pub fn round_trip(m: &Module, portable: bool) -> Result<Module, Fault> {
    let bytes = export(m, portable)?;
    let mut options = frontend::ImportOptions { smallest_dim: 0, sums_of_names: false, ..Default::default() };
    for s in &m.symbols.infos {
        options.dim_ranges.insert(s.name.clone(), (s.lo, s.hi));
    }
    let imported = frontend::onnx::load_bytes(bytes, None, &options).map_err(|problems| {
        let text: Vec<String> = problems.iter().take(3).map(ToString::to_string).collect();
        Fault::Failed(format!("import: {}", text.join("; ")))
    })?;
    Ok(imported.module)
}

/// The first output that differs.
pub fn compare(results: &[Vec<Tensor>], bounds: &[Bounded]) -> Option<String> {
    for (set, (got, bounded)) in results.iter().zip(bounds).enumerate() {
        if got.len() != bounded.want.len() {
            return Some(format!("{} outputs, expected {}", got.len(), bounded.want.len()));
        }
        for (i, t) in got.iter().enumerate() {
            let c = bounded.compare(i, t);
            if !c.passes() {
                return Some(format!("inputs {set}, output {i} ({}): {c}", bounded.want[i].dtype));
            }
        }
    }
    None
}
