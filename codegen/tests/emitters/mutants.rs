//! Emitted kernels broken on purpose, one instruction at a time: what the interpreter's checks and the comparison of
//! results catch is what a fault of the emitter could not hide from.
//!
//! Mutants that do the same as the kernel are left out, by rules that prove it ([`same`]). `KS_MUTANTS=all` runs every
//! mutant, `KS_MUTANTS=N` every N-th (`N+K`: from the K-th on), and without it a fixed share runs; `KS_MUTANTS_OF=NAME`
//! those of one kernel. Survivors are listed.

use crate::harness::Case;
use crate::lowered::{hard_cases, named};
use crate::ptx::{execute_on, judge};
use kernelsmith_codegen::ptx::Ptx;
use kernelsmith_codegen::{Backend, CompiledFunc};
use ptx_interp::ast::Kernel;
use ptx_interp::mutate::{Kind, Mutation, mutations};
use ptx_interp::{Config, DeviceMemory, Module, dataflow};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};

const SEED: u64 = 5;
/// Of so many mutants (a prime: what recurs in the text does not recur in the choice) these run by default.
const SHARE: usize = 31;
const CHOSEN: [usize; 2] = [0, 7];
/// Grids in which a mutant is tried: with one block every warp has several iterations of most loops, with three
/// warps have numbers of several blocks.
const GRIDS: [u32; 2] = [3, 1];

/// One way to run a kernel: operands, blocks, mode.
struct Trial<'a> {
    case: &'a Case,
    blocks: u32,
    config: Config,
}

/// Ways in which a mutant is tried. Where the right kernel writes nothing twice, a mutant may not either; a loop that does
/// not end is given up long before a launch would be.
fn trials<'a>(cases: &'a [Case], kernel: &CompiledFunc) -> Vec<Trial<'a>> {
    let mut out = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        for blocks in GRIDS {
            let plain = execute_on(case, kernel, &Config::default(), blocks);
            let plain = plain.unwrap_or_else(|e| panic!("{}: {e}", case.label));
            judge(case, &plain).unwrap_or_else(|e| panic!("{}: {e}", case.label));
            let modes = |strict: bool, step_limit: u64| {
                let mode = move |c: Config| Config { equal_writes: !strict, step_limit, ..c };
                // other operands show wrong values; the first ones have shown what an order of warps can show
                Config::adversarial(SEED).into_iter().map(mode).take(if i == 0 { usize::MAX } else { 1 })
            };
            let strict = modes(true, 2 * plain.steps).all(|c| execute_on(case, kernel, &c, blocks).is_ok());
            out.extend(modes(strict, 8 * plain.steps + 1000).map(|config| Trial { case, blocks, config }));
        }
    }
    out
}

impl Trial<'_> {
    /// Whether anything is wrong with a kernel.
    fn notices(&self, kernel: &CompiledFunc) -> bool {
        execute_on(self.case, kernel, &self.config, self.blocks)
            .map_or(true, |o| judge(self.case, &o).is_err())
    }
}

fn parse(text: &str) -> Kernel {
    let mut memory = DeviceMemory::new();
    let module = Module::load(text, &mut memory).expect("the kernel parses");
    module.kernels().next().expect("a kernel").clone()
}

/// What the text of a kernel says about its instructions, by line.
struct Facts {
    dead: HashSet<u32>,
    doubled: HashSet<u32>,
    idle: HashSet<u32>,
    sums_of_nan: HashSet<u32>,
    squared: HashSet<u32>,
    independent: HashSet<u32>,
    reached_alike: HashSet<u32>,
}

impl Facts {
    fn of(kernel: &Kernel) -> Facts {
        Facts {
            dead: dataflow::dead(kernel),
            doubled: dataflow::doubled_syncs(kernel),
            idle: dataflow::idle_syncs(kernel),
            sums_of_nan: dataflow::sums_of_nan(kernel),
            squared: dataflow::squared(kernel),
            independent: dataflow::independent(kernel),
            reached_alike: dataflow::reached_alike(kernel),
        }
    }
}

/// Why a mutant does the same as the kernel on every input, if that can be proved:
///
/// - *dead*: nothing reads what the instruction computes.
/// - *doubled*: another barrier stands beside the one that is left out, with no access to memory in between.
/// - *idle*: on no path does the barrier that is left out order two accesses to one array of which one writes.
/// - *nan*: a sum became a difference that is taken only where an operand is NaN; results that are NaN are equal.
/// - *square*: a difference, which is only squared, changed its sign.
/// - *unreached*: neither a branch nor the guard of the instruction depends on memory, the sizes of the kernel are constants, and
///   in launches of these grids no lane executes it.
/// - *same values*: the instruction depends on nothing in memory, nor does any branch; the sizes of the kernel are
///   constants. So it computes the same in every launch of these grids, and in one it has been seen to compute what the
///   right one does, every time: bounds beyond the last index, for example, and divisors that do not occur.
/// - *ends*: it does compute something else, but all who read that are such instructions too, and they or those who read them
///   compute the same all the same, or that are not reached: the number of a warp for which there is no iteration either
///   way, the address of what no lane loads.
fn same(
    facts: &Facts,
    case: &Case,
    kernel: &CompiledFunc,
    m: &Mutation,
    broken: &CompiledFunc,
) -> Option<&'static str> {
    if facts.dead.contains(&m.line) {
        return Some("dead");
    }
    if m.kind == Kind::SyncRemoved && facts.doubled.contains(&m.line) {
        return Some("doubled");
    }
    if m.kind == Kind::SyncRemoved && facts.idle.contains(&m.line) {
        return Some("idle");
    }
    if m.kind == Kind::WrongOperation && facts.sums_of_nan.contains(&m.line) {
        return Some("nan");
    }
    if m.kind == Kind::OperandsSwapped && facts.squared.contains(&m.line) {
        return Some("square");
    }
    let now = Facts::of(&parse(&m.text));
    if !case.func.syms.is_empty() || facts.independent.is_empty() || now.independent.is_empty() {
        return None;
    }
    let traces = |k: &CompiledFunc, line: u32| -> Option<Vec<u64>> {
        let config = Config { trace: Some(line), ..Config::default() };
        GRIDS.iter().map(|b| execute_on(case, k, &config, *b).ok().map(|o| o.trace)).collect()
    };
    let (right, wrong) = (traces(kernel, m.line)?, traces(broken, m.line)?);
    let known = facts.independent.contains(&m.line) && now.independent.contains(&m.line);
    // a guard that comes from memory may hold another time
    let gone = m.after.trim().is_empty();
    let alike = |line: u32| {
        facts.reached_alike.contains(&line) && (now.reached_alike.contains(&line) || gone && line == m.line)
    };
    if alike(m.line) && right.iter().chain(&wrong).all(|t| *t == 0) {
        return Some("unreached");
    }
    if !known || right.contains(&u64::MAX) {
        return None;
    }
    if right == wrong {
        return Some("same values");
    }
    let differs = |line: u32| {
        let traces = |k| traces(k, line).filter(|t| !t.contains(&u64::MAX));
        traces(kernel).is_none_or(|right| traces(broken) != Some(right))
    };
    let skipped = |line: u32| {
        let none = |k| traces(k, line).is_some_and(|t| t.iter().all(|t| *t == 0));
        alike(line) && none(kernel) && none(broken)
    };
    let text = std::str::from_utf8(&kernel.object).expect("PTX is text");
    dataflow::ends(&parse(text), m.line, differs, skipped).then_some("ends")
}

/// What came of a mutant.
enum Fate {
    Caught,
    Same(&'static str),
    Survived,
}

#[test]
fn mutants_are_caught() {
    let number = |n: &str| n.parse::<usize>().expect("KS_MUTANTS is `all`, `N` or `N+K`");
    let (share, from) = match std::env::var("KS_MUTANTS") {
        Ok(v) if v == "all" => (1, vec![0]),
        Ok(v) => {
            v.split_once('+').map_or_else(|| (number(&v), vec![0]), |(n, k)| (number(n), vec![number(k)]))
        }
        Err(_) => (SHARE, CHOSEN.to_vec()),
    };
    let only = std::env::var("KS_MUTANTS_OF").ok();
    // as many multiprocessors as make the loops long
    let backend = Ptx::new(16);
    let target = backend.target();
    let mut caught = BTreeMap::<Kind, usize>::new();
    let mut left_out = BTreeMap::<&str, usize>::new();
    let (mut survivors, mut count) = (0, 0usize);
    for (name, module) in named().into_iter().filter(|n| only.as_ref().is_none_or(|o| o == n.0)) {
        let calls = hard_cases(module, &target, SEED).unwrap_or_else(|e| panic!("{name}: {e}"));
        for cases in calls {
            let case = cases.first().unwrap_or_else(|| panic!("{name}: no operands"));
            let kernel = backend.compile(&[&case.func]).expect("it compiles").remove(0);
            let text = std::str::from_utf8(&kernel.object).expect("PTX is text");
            let facts = Facts::of(&parse(text));
            let trials = trials(&cases, &kernel);
            let mut chosen = mutations(text).expect("the kernel parses");
            chosen.retain(|_| {
                count += 1;
                from.contains(&(count % share))
            });
            let judged: Vec<Fate> = chosen
                .par_iter()
                .map(|m| {
                    let broken = CompiledFunc { object: m.text.clone().into_bytes(), ..kernel.clone() };
                    if trials.iter().any(|t| t.notices(&broken)) {
                        return Fate::Caught;
                    }
                    same(&facts, case, &kernel, m, &broken).map_or(Fate::Survived, Fate::Same)
                })
                .collect();
            for (m, fate) in chosen.into_iter().zip(judged) {
                match fate {
                    Fate::Caught => *caught.entry(m.kind).or_default() += 1,
                    Fate::Same(why) => *left_out.entry(why).or_default() += 1,
                    Fate::Survived => {
                        let (before, after) = (m.before.trim(), m.after.trim());
                        println!(
                            "survived: {name} (trip {}) {:?} line {}: {before} -> {after}",
                            case.trip, m.kind, m.line
                        );
                        survivors += 1;
                    }
                }
            }
        }
    }
    let hits: usize = caught.values().sum();
    let total = hits + survivors;
    println!("{hits} of {total} mutants caught: {caught:?}");
    println!("proved to do the same, and left out: {left_out:?}");
    // of a sample, two standard deviations less
    let expected = 0.95 * total as f64;
    let deviation = if share == 1 { 0.0 } else { (0.05 * expected).sqrt() };
    assert!(hits as f64 >= expected - 2.0 * deviation, "{hits} of {total} mutants caught");
}
