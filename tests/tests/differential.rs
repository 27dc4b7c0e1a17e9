//! Compiled programs against the reference interpreter, on random graphs over all primitives.
//!
//! `KS_SEEDS=from..to` runs other graphs than the default ones; a failure prints the seed and the graph.

use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::testing::{Case, Options, random_graph};
use kernelsmith::{CompileOptions, codegen, compile_module, ir};

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("KS_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("KS_SEEDS=from..to");
    from.parse().unwrap()..to.parse().unwrap()
}

/// What is wrong with the compiled case, if anything.
fn check(case: &Case, backend: &str) -> Result<(), String> {
    let options = CompileOptions { backend: Some(backend.into()), threads: 2, ..Default::default() };
    // compiled once, whatever the sizes
    let compiled = compile_module(case.module.clone(), &options).map_err(|e| format!("compile: {e}"))?;
    let mut context = compiled.context();
    for which in 0..case.sizes.len() {
        let inputs = case.inputs(which);
        let want = Interp::new(&case.module).run(&inputs).map_err(|e| format!("interpreter: {e}"))?;
        let got = compiled.run(&mut context, &inputs).map_err(|e| format!("sizes {which}: run: {e}"))?;
        if got.len() != want.len() {
            return Err(format!("{} outputs, expected {}", got.len(), want.len()));
        }
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let c = compare(got, want, Tolerance::of_network(want.dtype));
            if !c.passes() {
                return Err(format!("sizes {which}: output {i} ({}): {c}", want.dtype));
            }
        }
    }
    Ok(())
}

fn run(range: std::ops::Range<u64>, options: &Options) {
    let mut failures = Vec::new();
    let mut graphs = 0;
    for seed in range {
        let case = random_graph(seed, options);
        graphs += 1;
        for backend in codegen::available() {
            if let Err(e) = check(&case, backend) {
                let first =
                    if failures.is_empty() { ir::text::graph::print(&case.module) } else { String::new() };
                failures.push(format!("seed {seed} on {backend}: {e}\n{first}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {graphs} graphs:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn straight_line_graphs() {
    run(seeds(0..120), &Options { control: false, ..Default::default() });
}

#[test]
fn symbolic_sizes_compile_once() {
    run(seeds(1000..1100), &Options { control: false, symbolic: true, ..Default::default() });
}

#[test]
fn control_flow() {
    run(seeds(2000..2080), &Options { symbolic: true, ..Default::default() });
}

#[test]
fn larger_tensors() {
    run(seeds(3000..3030), &Options { ops: 8, control: false, max_elems: 20_000, ..Default::default() });
}
