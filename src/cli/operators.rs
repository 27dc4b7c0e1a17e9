//! `kernelsmith operators`: what the importer knows.

use super::Outcome;
use crate::driver::Error;
use clap::Args;
use frontend::onnx::ops;

#[derive(Args)]
pub(super) struct OperatorsArgs {
    /// One JSON document on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn operators(args: &OperatorsArgs) -> Result<Outcome, Error> {
    let domain = |d: &'static str| if d.is_empty() { "ai.onnx" } else { d };
    if args.json {
        let rows: Vec<_> = ops::all()
            .into_iter()
            .map(|o| serde_json::json!({"domain": domain(o.domain), "name": o.name, "since": o.since}))
            .collect();
        println!("{:#}", serde_json::Value::from(rows));
    } else {
        for o in ops::all() {
            println!("{:<28} {:<36} {}", domain(o.domain), o.name, o.since);
        }
    }
    Ok(Outcome::Good)
}
