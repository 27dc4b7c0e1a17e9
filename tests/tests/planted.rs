//! Faults are planted in the compiler, one at a time, and `bisect` has to name each: stage, decision, node.
//!
//! Runs with `--features planted-faults` only (`make test` does).
#![cfg(feature = "planted-faults")]

use kernelsmith::debug::stages::Effort;
use kernelsmith::debug::{Finding, Repro, bisect};
use kernelsmith::driver::CompileOptions;
use kernelsmith::ir::build::{Builder, V};
use kernelsmith::ir::prim::{UnaryOp, WindowDim};
use kernelsmith::ir::testing::{Rng, random_tensor};
use kernelsmith::ir::{DType, Dim, Module, Origin};
use kernelsmith::passes::planted::Fault;
use std::time::Duration;

/// A model whose nodes have names, with random inputs.
fn model(shapes: &[&[i64]], f: impl Fn(&mut Named, &[V]) -> Vec<V>) -> Repro {
    let mut b = Named(Builder::new("main"));
    let xs: Vec<V> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| b.0.input(format!("x{i}"), DType::F32, s.iter().map(|&n| Dim::from(n)).collect()))
        .collect();
    let ys = f(&mut b, &xs);
    let outputs: Vec<(String, V)> = ys.into_iter().enumerate().map(|(i, y)| (format!("y{i}"), y)).collect();
    let module: Module = b.0.finish(&outputs).unwrap();
    let mut rng = Rng::new(7);
    let inputs = shapes
        .iter()
        .map(|s| random_tensor(&mut rng, DType::F32, s.iter().map(|&n| n as usize).collect()))
        .collect();
    Repro { module, sets: vec![inputs] }
}

struct Named(Builder);

impl Named {
    /// The builder, for ops of the node `name`.
    fn at(&mut self, name: &str, op_type: &str) -> &mut Builder {
        self.0.set_origin(Origin { node: name.into(), op_type: op_type.into(), opset: 20 });
        &mut self.0
    }
}

/// What bisect says of a model that an otherwise right compiler has this fault in.
fn find(model: &Repro, fault: Option<Fault>) -> (String, Option<Finding>) {
    find_with(model, &CompileOptions { planted: fault, ..options() })
}

fn options() -> CompileOptions {
    CompileOptions { backend: Some("cranelift".into()), threads: 1, ..CompileOptions::default() }
}

fn find_with(model: &Repro, options: &CompileOptions) -> (String, Option<Finding>) {
    let mut log = String::new();
    let mut tell = |line: &str| {
        log += line;
        log.push('\n');
    };
    let found = bisect(model, options, Effort::default(), Duration::from_secs(20), &mut tell).unwrap().1;
    if let Some(f) = &found {
        println!("{log}{} | {:?} of {} | {} ops left", f.stage, f.decision, f.of, f.reduced.ops());
    }
    (log, found)
}

/// Without the fault the model is right; with it, bisect names stage, class and node, and leaves a small model that
/// still shows it.
fn check(model: &Repro, fault: Fault, stage: &str, class: &str, node: &str, ops: usize) -> Finding {
    let (log, none) = find(model, None);
    assert!(none.is_none(), "{log}");
    let (log, found) = find(model, Some(fault));
    let found = found.unwrap_or_else(|| panic!("{fault:?} was not found\n{log}"));
    named(&found, stage, class, node, ops, &log);
    let (log, again) = find(&found.reduced, Some(fault));
    assert!(again.is_some_and(|a| a.stage == stage), "the small model shows it too\n{log}");
    found
}

fn named(found: &Finding, stage: &str, class: &str, node: &str, ops: usize, log: &str) {
    assert_eq!(found.stage, stage, "{log}");
    let (decision, at) = found.decision.as_ref().unwrap_or_else(|| panic!("no decision\n{log}"));
    assert_eq!(decision.class, class, "{log}");
    assert!(at.contains(node), "{at} for {node}\n{log}");
    assert!(found.reduced.ops() <= ops, "{} operations are left\n{log}", found.reduced.ops());
}

#[test]
fn a_wrong_fold() {
    let m = model(&[&[4]], |b, x| {
        // good ones before it and after it
        let ones = b.at("ones", "Constant").full(DType::F32, &[4.into()], 1.0).unwrap();
        let two = b.at("double", "Add").add(ones, ones).unwrap();
        let three = b.at("triple", "Add").add(two, ones).unwrap();
        let c = b.at("minus", "Sub").sub(three, two).unwrap();
        let d = b.at("more", "Mul").mul(c, three).unwrap();
        vec![b.at("out", "Add").add(x[0], d).unwrap()]
    });
    check(&m, Fault::Fold, "fold-constants", "fold-constants", "\"minus\"", 5);
}

#[test]
fn a_wrong_simplification() {
    let m = model(&[&[2, 3]], |b, x| {
        let b0 = b.at("twice", "Transpose").transpose(x[0], &[1, 0]).unwrap();
        let b1 = b.at("back", "Transpose").transpose(b0, &[1, 0]).unwrap();
        let zero = b.at("zero", "Constant").scalar(DType::F32, 0.0).unwrap();
        let y = b.at("negate", "Sub").sub(zero, b1).unwrap();
        let z = b.at("add0", "Add").add(y, zero).unwrap();
        vec![b.at("out", "Exp").unary(UnaryOp::Exp, z).unwrap()]
    });
    check(&m, Fault::Simplify, "simplify", "simplify", "\"negate\"", 4);
}

#[test]
fn a_wrong_merge_of_equal_ops() {
    let m = model(&[&[8]], |b, x| {
        let e1 = b.at("e1", "Exp").unary(UnaryOp::Exp, x[0]).unwrap();
        let e2 = b.at("e2", "Exp").unary(UnaryOp::Exp, x[0]).unwrap();
        let sum = b.at("sum", "Add").add(e1, e2).unwrap();
        let low = b.at("low", "Slice").slice(sum, &[0.into()], &[4.into()], &[1]).unwrap();
        let high = b.at("high", "Slice").slice(sum, &[4.into()], &[4.into()], &[1]).unwrap();
        vec![b.at("out", "Mul").mul(low, high).unwrap()]
    });
    check(&m, Fault::Cse, "cse", "cse", "\"high\"", 3);
}

#[test]
fn a_wrong_fusion() {
    let m = model(&[&[3, 9]], |b, x| {
        let e = b.at("tanh", "Tanh").unary(UnaryOp::Tanh, x[0]).unwrap();
        let sums = b.at("sums", "ReduceSum").reduce_sum(e, &[1], true).unwrap();
        let scaled = b.at("scaled", "Mul").mul(e, sums).unwrap();
        let tail = b.at("tail", "Slice").slice(scaled, &[0.into(), 4.into()], &[3.into(), 5.into()], &[1, 1]);
        vec![b.at("out", "Neg").unary(UnaryOp::Neg, tail.unwrap()).unwrap()]
    });
    check(&m, Fault::Pull, "group", "fusions", "\"tail\"", 2);
}

#[test]
fn a_wrong_layout() {
    let m = model(&[&[1, 8, 6, 5], &[8, 8, 3, 3]], |b, x| {
        let window = vec![WindowDim { pad_lo: 1.into(), pad_hi: 1.into(), ..WindowDim::unit() }; 2];
        let start = b.at("start", "Relu").unary(UnaryOp::Tanh, x[0]).unwrap();
        let y = b.at("conv1", "Conv").convolve(start, x[1], &window, 1, DType::F32).unwrap();
        let y = b.at("act", "Tanh").unary(UnaryOp::Tanh, y).unwrap();
        let y = b.at("conv2", "Conv").convolve(y, x[1], &window, 1, DType::F32).unwrap();
        vec![b.at("out", "Exp").unary(UnaryOp::Exp, y).unwrap()]
    });
    check(&m, Fault::Layout, "group", "layouts", "\"", 4);
}

#[test]
fn a_bad_schedule() {
    let m = model(&[&[7, 19], &[19, 37]], |b, x| {
        let y = b.at("product", "MatMul").matmul(x[0], x[1]).unwrap();
        vec![b.at("out", "Tanh").unary(UnaryOp::Tanh, y).unwrap()]
    });
    check(&m, Fault::Schedule, "lower-kernels", "schedules", "\"", 2);
}

#[test]
fn buffers_that_overlap() {
    let m = model(&[&[16, 16]], |b, x| {
        let mut y = x[0];
        for i in 0..4 {
            // each reads whole rows and whole columns of the one before
            let t = b.at(&format!("turn{i}"), "Transpose").transpose(y, &[1, 0]).unwrap();
            y = b.at(&format!("product{i}"), "MatMul").matmul(y, t).unwrap();
            let s = b.at(&format!("scale{i}"), "ReduceMax").reduce_max(y, &[0, 1], true).unwrap();
            y = b.at(&format!("div{i}"), "Div").div(y, s).unwrap();
        }
        vec![y]
    });
    check(&m, Fault::Place, "place-buffers", "sharings", "\"", 8);
}

#[test]
fn a_wrong_expansion_of_a_function() {
    let m = model(&[&[4, 33]], |b, x| {
        let t = b.at("tanh", "Tanh").unary(UnaryOp::Tanh, x[0]).unwrap();
        let e = b.at("erf", "Erf").unary(UnaryOp::Erf, t).unwrap();
        let y = b.at("exp", "Exp").unary(UnaryOp::Exp, e).unwrap();
        vec![b.at("out", "Sub").sub(y, t).unwrap()]
    });
    let (log, none) = find(&m, None);
    assert!(none.is_none(), "{log}");
    let (log, found) = find_with(&m, &CompileOptions { wrong_erf: true, ..options() });
    let found = found.unwrap_or_else(|| panic!("not found\n{log}"));
    named(&found, "legalise", "expansions", "", 2, &log);
    let (decision, _) = found.decision.as_ref().unwrap();
    assert!(decision.what.starts_with("erf in"), "{decision}");
}
