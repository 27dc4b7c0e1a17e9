//! `kernelsmith check`

use super::Outcome;
use crate::driver::{CompileOptions, Error, import};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The model: .onnx or .ksg
    model: PathBuf,
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs) -> Result<Outcome, Error> {
    let problems = match import(&args.model, &CompileOptions::default()) {
        Ok(_) => Vec::new(),
        Err(Error::Import(problems)) => problems,
        Err(other) => return Err(other),
    };
    if args.json {
        let rows: Vec<_> = problems
            .iter()
            .map(|d| {
                serde_json::json!({
                    "code": d.id(),
                    "message": d.message,
                    "node": d.node.as_ref().map(|n| &n.path),
                    "op_type": d.node.as_ref().map(|n| &n.op_type),
                    "domain": d.node.as_ref().map(|n| &n.domain),
                    "opset": d.node.as_ref().map(|n| n.opset),
                    "inputs": d.operands.iter().map(|(n, t)| serde_json::json!({"name": n, "type": t})).collect::<Vec<_>>(),
                    "hint": d.hint,
                })
            })
            .collect();
        println!("{:#}", serde_json::json!({"model": args.model.display().to_string(), "problems": rows}));
    } else if problems.is_empty() {
        println!("{}: good", args.model.display());
    } else {
        for d in &problems {
            println!("{d}");
        }
        println!("{}: {} problem(s)", args.model.display(), problems.len());
    }
    Ok(if problems.is_empty() { Outcome::Good } else { Outcome::Failed })
}
