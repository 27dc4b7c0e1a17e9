//! Runs conformance cases through the importer and the reference interpreter: what is wrong here is
//! wrong before any compiler is involved.
//!
//!     cargo run -p kernelsmith-frontend --example suite_interp -- DIR [FILTER] [--failures] [--models] [--symbolic]
//!
//! DIR holds case directories at any depth; FILTER is a part of their path. With `--models`, every
//! `.onnx` file is imported and nothing is run. With `--symbolic`, the fixed sizes of inputs are forgotten.

use kernelsmith_frontend as frontend;

use frontend::cases::{self, Case, CaseValue, DataSet};
use frontend::{Code, Diagnostic, ImportOptions, Imported, Kind, Port, PortKind, Structure};
use interp::Interp;
use ir::Tensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn find(dir: &Path, file: &dyn Fn(&Path) -> bool, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    entries.sort();
    for e in entries {
        if file(&e) {
            out.push(e);
        } else if e.is_dir() {
            find(&e, file, out);
        }
    }
}

fn structure(v: &CaseValue) -> Structure {
    match v {
        CaseValue::Tensor(t) => Structure::Tensor { rank: t.shape.len() },
        CaseValue::Sequence(s) => Structure::Sequence(s.iter().map(structure).collect()),
        CaseValue::Absent => Structure::Absent,
    }
}

/// Imports a case: as it is, then with the shapes of its inputs, with small integer inputs as constants, and with all small inputs.
fn import(case: &Case, set: &DataSet, symbolic: bool) -> Result<Imported, Vec<Diagnostic>> {
    let mut opts = ImportOptions {
        structures: set.inputs.iter().map(|(n, v)| (n.clone(), structure(v))).collect(),
        ..Default::default()
    };
    if symbolic {
        let empty = |v: &CaseValue| matches!(v, CaseValue::Tensor(t) if t.shape.contains(&0));
        opts.all_dims_symbolic = true;
        opts.smallest_dim = i64::from(!set.inputs.iter().any(|(_, v)| empty(v)));
    }
    let mut first: Option<Vec<Diagnostic>> = None;
    for pass in 0..4 {
        for (name, v) in &set.inputs {
            if pass == 1
                && !symbolic
                && let CaseValue::Tensor(t) = v
            {
                opts.shapes.insert(name.clone(), t.shape.iter().map(|&d| d as i64).collect());
            }
            if let CaseValue::Tensor(t) = v
                && t.elems() <= 64
                && (pass == 2 && !t.dtype.is_float() || pass == 3)
            {
                opts.constants.insert(name.clone(), t.clone());
            }
        }
        match frontend::load(&case.model, &opts) {
            Ok(m) => return Ok(m),
            Err(e) => {
                // a branch that is never taken may be wrong for one shape: only the first attempt decides
                let first = first.get_or_insert(e);
                if !first.iter().any(|d| d.code == Code::Dynamic) {
                    break;
                }
            }
        }
    }
    Err(first.unwrap_or_default())
}

fn flatten(
    ports: &[Port],
    values: &mut dyn FnMut(&str) -> Option<CaseValue>,
    out: &mut Vec<Tensor>,
) -> Option<()> {
    fn put(v: CaseValue, out: &mut Vec<Tensor>) {
        match v {
            CaseValue::Tensor(t) => out.push(t),
            CaseValue::Sequence(s) => s.into_iter().for_each(|v| put(v, out)),
            CaseValue::Absent => {}
        }
    }
    for p in ports {
        put(values(&p.name)?, out);
    }
    Some(())
}

fn rebuild(p: &Port, tensors: &mut impl Iterator<Item = Tensor>) -> Option<CaseValue> {
    Some(match &p.kind {
        PortKind::Tensor => CaseValue::Tensor(tensors.next()?),
        PortKind::Sequence(items) => {
            CaseValue::Sequence(items.iter().map(|i| rebuild(i, tensors)).collect::<Option<_>>()?)
        }
        PortKind::Absent => CaseValue::Absent,
    })
}

fn run(dir: &Path, symbolic: bool) -> (&'static str, String) {
    let case = match cases::load(dir) {
        Ok(c) => c,
        Err(e) => return ("error", format!("case: {e}")),
    };
    for set in &case.sets {
        let m = match import(&case, set, symbolic) {
            Ok(m) => m,
            Err(problems) => {
                let status = if problems.iter().all(|p| p.kind == Kind::Unsupported) {
                    "unsupported"
                } else {
                    "error"
                };
                let text: Vec<String> = problems.iter().map(|p| p.to_string().replace('\n', " ")).collect();
                return (status, text.join(" | "));
            }
        };
        if let Err(e) = ir::verify::graph::verify(&m.module) {
            return ("verify", e.to_string());
        }
        let mut inputs = Vec::new();
        let mut by_name = |n: &str| set.inputs.iter().find(|(name, _)| name == n).map(|(_, v)| v.clone());
        if flatten(&m.inputs, &mut by_name, &mut inputs).is_none() {
            return ("error", "an input has no data".into());
        }
        let got = match Interp::new(&m.module).run(&inputs) {
            Ok(t) => t,
            Err(e) => return ("run", e.to_string()),
        };
        let mut got = got.into_iter();
        for (i, (port, want)) in m.outputs.iter().zip(&set.outputs).enumerate() {
            let Some(got) = rebuild(port, &mut got) else { return ("run", format!("output {i} is missing")) };
            if let Some(want) = want
                && let Err(e) = cases::compare(&got, want, &case)
            {
                return ("fail", format!("output {i}: {e}"));
            }
        }
    }
    ("pass", String::new())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with("--")).collect();
    let Some(root) = words.first() else {
        eprintln!("usage: suite_interp DIR [FILTER] [--failures] [--models] [--symbolic]");
        std::process::exit(2);
    };
    let filter = words.get(1).map_or("", |s| s.as_str());
    let flag = |f: &str| args.iter().any(|a| a == f);
    let (models, failures) = (flag("--models"), flag("--failures"));
    let symbolic = flag("--symbolic");
    let mut found = Vec::new();
    if models {
        find(Path::new(root), &|p| p.extension().is_some_and(|e| e == "onnx"), &mut found);
    } else {
        find(Path::new(root), &|p| p.join("model.onnx").is_file(), &mut found);
    }
    if !flag("--trace") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let mut totals: BTreeMap<&str, usize> = BTreeMap::new();
    for dir in found.iter().filter(|d| d.to_string_lossy().contains(filter)) {
        let (status, detail) =
            std::panic::catch_unwind(|| if models { import_only(dir) } else { run(dir, symbolic) })
                .unwrap_or_else(|e| {
                    let text = e
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string()));
                    ("panic", text.unwrap_or_default())
                });
        *totals.entry(status).or_default() += 1;
        if !failures || status != "pass" {
            println!("{status:12}{} {detail}", dir.strip_prefix(root).unwrap_or(dir).display());
        }
    }
    println!("{totals:?}");
}

fn import_only(path: &Path) -> (&'static str, String) {
    let opts =
        ImportOptions { missing_weights: frontend::MissingWeights::Random { seed: 1 }, ..Default::default() };
    match frontend::load(path, &opts) {
        Ok(m) => match ir::verify::graph::verify(&m.module) {
            Ok(()) => ("pass", format!("{} ops", m.module.graph.order.len())),
            Err(e) => ("verify", e.to_string()),
        },
        Err(problems) => (
            "error",
            problems.iter().map(|p| format!("\n    {}", p.to_string().replace('\n', "\n    "))).collect(),
        ),
    }
}
