//! Emitted kernels broken on purpose, one instruction at a time: what the interpreter's checks and the comparison of
//! results catch is what a fault of the emitter could not hide from.
//!
//! `KS_MUTANTS=all` runs every mutant and lists the survivors; else a fixed share of them.

use crate::harness::Case;
use crate::lowered::{kernel_cases, named};
use crate::ptx::{execute, judge};
use kernelsmith_codegen::ptx::Ptx;
use kernelsmith_codegen::{Backend, CompiledFunc};
use ptx_interp::Config;
use ptx_interp::mutate::{Kind, Mutation, mutations};
use std::collections::BTreeMap;

const SEED: u64 = 5;
/// Of the mutants, one in so many runs by default.
const SHARE: usize = 12;

/// Modes in which a mutant is tried. Where the right kernel writes nothing twice, a mutant may not either.
fn modes(strict: bool, budget: u64) -> Vec<Config> {
    let mode = |c: Config| Config { equal_writes: !strict, step_limit: budget, ..c };
    Config::adversarial(SEED).into_iter().map(mode).collect()
}

/// Whether a mutant is noticed.
fn noticed(case: &Case, kernel: &CompiledFunc, mutation: &Mutation, modes: &[Config]) -> bool {
    let broken = CompiledFunc { object: mutation.text.clone().into_bytes(), ..kernel.clone() };
    modes.iter().any(|c| execute(case, &broken, c).map_or(true, |o| judge(case, &o).is_err()))
}

#[test]
fn mutants_are_caught() {
    let all = std::env::var("KS_MUTANTS").is_ok_and(|v| v == "all");
    let backend = Ptx::new(1);
    let target = backend.target();
    let (mut caught, mut survivors) = (BTreeMap::<Kind, usize>::new(), Vec::new());
    let mut number = 0usize;
    for (name, module) in named() {
        let cases = kernel_cases(module, &[], &target, SEED).unwrap_or_else(|e| panic!("{name}: {e}"));
        for case in cases.into_iter().flatten() {
            let compiled = backend.compile(&[&case.func]).expect("it compiles").remove(0);
            let text = std::str::from_utf8(&compiled.object).expect("PTX is text");
            let steps = execute(&case, &compiled, &Config::default()).expect("the kernel is right").steps;
            let strict = modes(true, 2 * steps).iter().all(|c| execute(&case, &compiled, c).is_ok());
            // a loop that does not end is given up long before a launch would be
            let modes = modes(strict, 8 * steps + 1000);
            for mutation in mutations(text).expect("the kernel parses") {
                number += 1;
                if !all && !number.is_multiple_of(SHARE) {
                    continue;
                }
                if noticed(&case, &compiled, &mutation, &modes) {
                    *caught.entry(mutation.kind).or_default() += 1;
                } else {
                    survivors.push((name, mutation));
                }
            }
        }
    }
    let hits: usize = caught.values().sum();
    let total = hits + survivors.len();
    println!("{hits} of {total} mutants caught: {caught:?}");
    for (name, m) in &survivors {
        println!("survived: {name} {:?} line {}: {} -> {}", m.kind, m.line, m.before, m.after);
    }
    assert!(hits * 100 >= total * 75, "{hits} of {total} mutants caught");
}
