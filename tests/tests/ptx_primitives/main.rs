//! Every primitive with every element type that it takes, alone in a graph, on a GPU that is none: the interpreter of PTX
//! against the reference interpreter, and counted. A pair of both that no kernel has worked on fails the test.
//!
//! `KS_PRIMITIVES=N` tries N rounds of shapes instead of one.
#![cfg(feature = "cuda")]

mod forms;

use forms::{Cx, Form, variant};
use kernelsmith::interp::Bounded;
use kernelsmith::ir::{DType, Dim, Module, Sym, Tensor, ValueId};
use kernelsmith::{CompileOptions, DeviceChoice, compile_module};
use std::collections::BTreeMap;
use std::process::Command;

/// Runs with noise for a first bound of rounding, and for one that a disagreement is held against.
const SAMPLES: [u64; 2] = [4, 48];
/// Processes that share the work, and warp instructions that a launch may take.
const SHARES: usize = 2;
const STEPS: u64 = 20_000_000;
/// Rounds after which a pair whose shapes have all been empty is given up.
const MOST_ROUNDS: u64 = 12;

/// What one pair of form and type has come to.
#[derive(Default)]
struct Tally {
    legal: usize,
    refused: usize,
    kernels: u64,
}

/// Sizes of a run: of N and of M, and whether special numbers are among the inputs.
fn runs(symbolic: bool, cx: &mut Cx) -> Vec<([i64; 2], bool)> {
    let mut any = || [cx.rng.range(1, 9), cx.rng.range(1, 9)];
    match symbolic {
        true => vec![(any(), false), ([0, 1], false), (any(), true)],
        false => vec![([1, 1], false), ([1, 1], true)],
    }
}

fn tensors(module: &Module, cx: &mut Cx, sizes: &[(Sym, i64)], special: bool) -> Vec<Tensor> {
    let value = |s: Sym| sizes.iter().find(|x| x.0 == s).map(|x| x.1);
    let extent = |d: &Dim| d.eval_syms(&value).unwrap() as usize;
    let (g, kinds) = (&module.graph, cx.inputs.clone());
    let one = |(&v, values): (&ValueId, &forms::Values)| {
        let ty = &g[v].ty;
        let shape = ty.shape.iter().map(extent).collect();
        values.tensor(&mut cx.rng, ty.dtype, shape, sizes, special)
    };
    g.inputs.iter().zip(&kinds).map(one).collect()
}

/// One graph of a form with a type: builds, compiles, runs, compares. `None` where the primitive does not take the type.
fn attempt(which: &str, form: &Form, t: DType, seed: u64, symbolic: bool) -> Option<Result<u64, String>> {
    let mut cx = Cx::new(seed, symbolic);
    let outputs = (form.build)(&mut cx, t).ok()?;
    let named: Vec<_> = outputs.into_iter().enumerate().map(|(i, v)| (format!("y{i}"), v)).collect();
    let module =
        std::mem::replace(&mut cx.b, kernelsmith::ir::build::Builder::new("")).finish(&named).unwrap();
    assert!(module.graph.ops().any(|(_, op)| variant(&op.prim) == which), "{which} is not in its own graph");
    if form.host.is_some() || t == DType::String {
        return Some(Ok(0));
    }
    let text = || kernelsmith::ir::text::graph::print(&module);
    let fail = |what: String| Some(Err(format!("{what}\n{}", text())));
    let options = CompileOptions { device: DeviceChoice::PtxInterp, ..CompileOptions::default() };
    let compiled = match compile_module(module.clone(), &options) {
        Ok(compiled) => compiled,
        Err(e) => return fail(format!("compile: {e}")),
    };
    let mut context = compiled.context();
    for (values, special) in runs(symbolic, &mut cx) {
        let sizes = cx.sizes(values);
        let inputs = tensors(&module, &mut cx, &sizes, special);
        let got = match compiled.run(&mut context, &inputs) {
            Ok(got) => got,
            Err(e) => return fail(format!("sizes {values:?}: {e}")),
        };
        // a bound from a few samples may be too tight: the verdict takes many
        let mut wrong = None;
        for samples in SAMPLES {
            let bounded = Bounded::run(&module, &inputs, samples).unwrap();
            let differs = |(i, g): (usize, &Tensor)| {
                let c = bounded.compare(i, g);
                (!c.passes()).then(|| format!("sizes {values:?}, output {i}: {c}\n{:?}", shown(&inputs)))
            };
            wrong = got.iter().enumerate().find_map(differs);
            if wrong.is_none() {
                break;
            }
        }
        if let Some(wrong) = wrong {
            return fail(wrong);
        }
    }
    Some(Ok(context.launches() - compiled.model.init_launches() as u64))
}

/// Small inputs in words.
fn shown(inputs: &[Tensor]) -> Vec<String> {
    let one = |t: &Tensor| format!("{}{:?} {:02x?}", t.dtype, t.shape, &t.data[..t.data.len().min(64)]);
    inputs.iter().map(one).collect()
}

/// All pairs of this share of the work; prints what each has come to.
fn share(number: usize) {
    let rounds: u64 = std::env::var("KS_PRIMITIVES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut faults = Vec::new();
    let mut index = 0;
    for (which, forms) in forms::all() {
        for form in &forms {
            for &t in &form.types {
                index += 1;
                if index % SHARES != number {
                    continue;
                }
                let mut tally = Tally::default();
                for round in 0..MOST_ROUNDS.max(2 * rounds) {
                    // some shapes have no elements
                    let none = tally.kernels == 0 && form.host.is_none() && t != DType::String;
                    if round >= 2 * rounds && !none {
                        break;
                    }
                    let seed = index as u64 * 1000 + round;
                    match attempt(which, form, t, seed, round % 2 == 1) {
                        None => tally.refused += 1,
                        Some(Ok(kernels)) => {
                            tally.legal += 1;
                            tally.kernels += kernels;
                        }
                        Some(Err(e)) => {
                            tally.legal += 1;
                            faults.push(format!("{} of {t}, seed {seed}: {e}", form.name));
                        }
                    }
                }
                assert!(tally.legal == 0 || tally.refused == 0, "{} of {t}: legal by chance", form.name);
                if tally.legal > 0 {
                    let host = form.host.or((t == DType::String).then_some("strings are the host's"));
                    println!("pair\t{which}\t{}\t{t}\t{}\t{}", form.name, tally.kernels, host.unwrap_or("-"));
                }
            }
        }
    }
    for f in faults.iter().take(20) {
        println!("fault: {f}");
    }
    assert!(faults.is_empty(), "{} faults", faults.len());
}

#[test]
fn every_primitive_with_every_type() {
    if let Some(number) = std::env::var_os("KS_PRIMITIVES_SHARE") {
        return share(number.to_str().unwrap().parse().unwrap());
    }
    let child = |number: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_primitive_with_every_type", "--nocapture"])
            .env("KS_PRIMITIVES_SHARE", number.to_string())
            .env("KERNELSMITH_PTX_INTERP", format!("steps={STEPS}"))
            .output()
            .unwrap()
    };
    let shares: Vec<_> = std::thread::scope(|s| {
        let all: Vec<_> = (0..SHARES).map(|n| s.spawn(move || child(n))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // kernels by primitive and by pair
    let mut met = BTreeMap::<String, usize>::new();
    let (mut executed, mut of_host, mut never) = (0, 0, Vec::new());
    for out in shares {
        let text = String::from_utf8_lossy(&out.stdout);
        let faults: Vec<&str> = text.split("fault: ").skip(1).collect();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}\n{said}", faults.join("\n"));
        for line in text.lines().filter(|l| l.starts_with("pair\t")) {
            let [_, which, form, t, kernels, host] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            *met.entry(which.to_string()).or_default() += 1;
            match (host, kernels) {
                ("-", "0") => never.push(format!("{form} of {t}")),
                ("-", _) => executed += 1,
                _ => of_host += 1,
            }
        }
    }
    println!("{executed} pairs of primitive and type executed by kernels, {of_host} of the host");
    for (which, _) in forms::all() {
        assert!(met.contains_key(which), "no type is legal for {which}");
    }
    assert!(never.is_empty(), "no kernel has worked on: {}", never.join(", "));
}
