//! `kernelsmith check` and `kernelsmith explain`: what is wrong with a model, all of it, in terms of the model.

use super::Outcome;
use crate::driver::{CompileOptions, Error, check_all};
use clap::Args;
use frontend::{Diagnostic, explain};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The model: .onnx or .ksg
    model: PathBuf,
    /// One JSON document on standard output
    #[arg(long, conflicts_with = "sarif")]
    json: bool,
    /// A SARIF 2.1.0 log on standard output, as editors and code hosts read it
    #[arg(long)]
    sarif: bool,
    /// Write the smallest model that still shows each problem into this folder
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct ExplainArgs {
    /// A code as `check` prints it (E0207, unsupported-op); all codes if left out
    code: Option<String>,
}

pub(super) fn check(args: &CheckArgs) -> Result<Outcome, Error> {
    let problems = check_all(&args.model, &CompileOptions::default(), args.extract.is_some())?;
    let extracted = match &args.extract {
        Some(dir) => extract(dir, &problems)?,
        None => vec![None; problems.len()],
    };
    if args.json {
        let rows: Vec<Value> = problems.iter().zip(&extracted).map(|(d, e)| row(d, e.as_deref())).collect();
        println!("{:#}", json!({"model": args.model.display().to_string(), "problems": rows}));
    } else if args.sarif {
        println!("{:#}", sarif(&args.model, &problems));
    } else {
        report(&args.model, &problems, &extracted);
    }
    Ok(if problems.is_empty() { Outcome::Good } else { Outcome::Failed })
}

fn report(model: &Path, problems: &[Diagnostic], extracted: &[Option<PathBuf>]) {
    if problems.is_empty() {
        println!("{}: good", model.display());
        return;
    }
    let like = |a: &Diagnostic, b: &Diagnostic| a.number() == b.number() && a.message == b.message;
    for (i, (d, e)) in problems.iter().zip(extracted).enumerate() {
        // what is wrong at many nodes is said once
        if d.node.is_some() && problems[..i].iter().any(|before| like(before, d)) {
            continue;
        }
        println!("{d}");
        if let Some(path) = e {
            println!("  extracted: {}", path.display());
        }
        for other in problems[i + 1..].iter().filter(|other| like(other, d)) {
            let Some(node) = &other.node else { continue };
            let source = other.source.as_ref().map_or_else(String::new, |s| format!(", from {s}"));
            println!("  also at node \"{}\"{source}", node.path);
        }
        println!();
    }
    let mut codes: Vec<String> = problems.iter().map(Diagnostic::number).collect();
    codes.sort();
    codes.dedup();
    println!(
        "{}: {} problem{}; `kernelsmith explain {}` says more",
        model.display(),
        problems.len(),
        if problems.len() == 1 { "" } else { "s" },
        codes.join("|")
    );
}

/// Writes `<number>-<operator>.onnx` for every problem that has a model of its own.
fn extract(dir: &Path, problems: &[Diagnostic]) -> Result<Vec<Option<PathBuf>>, Error> {
    let io = |e: std::io::Error| Error::Input(format!("{}: {e}", dir.display()));
    std::fs::create_dir_all(dir).map_err(io)?;
    let mut out = Vec::with_capacity(problems.len());
    for (i, d) in problems.iter().enumerate() {
        out.push(match (&d.model, &d.node) {
            (Some(bytes), Some(node)) => {
                let op: String = node.op_type.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
                let path = dir.join(format!("{i:02}-{op}.onnx"));
                std::fs::write(&path, bytes).map_err(io)?;
                Some(path)
            }
            _ => None,
        });
    }
    Ok(out)
}

fn row(d: &Diagnostic, extracted: Option<&Path>) -> Value {
    json!({
        "code": d.number(),
        "id": d.id(),
        "message": d.message,
        "node": d.node.as_ref().map(|n| &n.path),
        "op_type": d.node.as_ref().map(|n| &n.op_type),
        "domain": d.node.as_ref().map(|n| &n.domain),
        "opset": d.node.as_ref().map(|n| n.opset),
        "inputs": d.operands.iter().map(|(n, t)| json!({"name": n, "type": t})).collect::<Vec<_>>(),
        "source": d.source,
        "hint": d.hint,
        "extracted": extracted.map(|p| p.display().to_string()),
    })
}

/// The log of one run: a rule for each code that occurs, a result for each problem.
fn sarif(model: &Path, problems: &[Diagnostic]) -> Value {
    let mut codes: Vec<(String, String)> = problems.iter().map(|d| (d.number(), d.id())).collect();
    codes.sort();
    codes.dedup();
    let rules: Vec<Value> = codes
        .iter()
        .map(|(code, id)| {
            let text = explain::explain(code).unwrap_or_default();
            json!({"id": code, "name": id, "fullDescription": {"text": text}, "help": {"text": text}})
        })
        .collect();
    let results: Vec<Value> = problems
        .iter()
        .map(|d| {
            let mut location = json!({
                "physicalLocation": {"artifactLocation": {"uri": model.display().to_string()}},
            });
            if let Some(n) = &d.node {
                location["logicalLocations"] =
                    json!([{"fullyQualifiedName": n.path, "name": n.op_type, "kind": "function"}]);
            }
            let mut text = d.message.clone();
            for extra in [&d.hint, &d.source].into_iter().flatten() {
                text += &format!("\n{extra}");
            }
            json!({
                "ruleId": d.number(),
                "ruleIndex": codes.iter().position(|c| c.0 == d.number()),
                "level": "error",
                "message": {"text": text},
                "locations": [location],
            })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "kernelsmith", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "results": results,
        }],
    })
}

pub(super) fn explain(args: &ExplainArgs) -> Result<Outcome, Error> {
    match &args.code {
        Some(code) => match explain::explain(code) {
            Some(text) => print!("{text}"),
            None => {
                return Err(Error::Usage(format!("no such code: {code}; `kernelsmith explain` lists all")));
            }
        },
        None => {
            for (kind, code) in explain::all() {
                println!("{}  {}", kind.number(code), kind.slug(code));
            }
        }
    }
    Ok(Outcome::Good)
}
