//! Whole graphs: sizes, control flow, errors, budgets, constants.

// Rows of operands read better alike.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod common;

use common::*;
use ir::build::{Builder, LoopStep};
use ir::dtype::Scalar;
use ir::graph::OriginId;
use ir::prim::{BinaryOp, Combine, HostFn, Monoid, UnaryOp, WindowDim};
use ir::{ConstData, ConstSource, DType, Dim, IrError, Module, Prim, SymKind, Tensor, TensorType};
use kernelsmith_interp::{Budget, Interp, InterpError, OpError, eval_op, materialise};
use std::sync::Arc;

fn finish(b: Builder, outputs: &[ir::build::V]) -> Module {
    let named: Vec<_> = outputs.iter().enumerate().map(|(i, &v)| (format!("y{i}"), v)).collect();
    b.finish(&named).expect("a module")
}

fn run_module(m: &Module, inputs: &[Tensor]) -> Vec<Tensor> {
    Interp::new(m).run(inputs).unwrap_or_else(|e| panic!("{e}"))
}

/// `x + x` with `x: f32[n, past + 1]`.
fn symbolic() -> Module {
    let mut b = Builder::new("main");
    let (n, past) = (b.symbol("n", 1, 8), b.symbol("past", 0, 100));
    let x = b.input("x", DType::F32, vec![n, past + Dim::from(1)]);
    let y = b.binary(BinaryOp::Add, x, x).unwrap();
    finish(b, &[y])
}

#[test]
fn entry_symbols_come_from_the_shapes() {
    let m = symbolic();
    let y = run_module(&m, &[t(&[2, 1], &[1f32, 2.])]);
    assert_same(&y[0], &t(&[2, 1], &[2f32, 4.]), "n = 2, past = 0");
    let error = |x: Tensor| match Interp::new(&m).run(&[x]) {
        Err(InterpError::Input { index: 0, name, source }) if name == "x" => *source,
        other => panic!("{other:?}"),
    };
    let range = |e: OpError| matches!(e, OpError::Symbol { value, .. } if value == 9 || value == -1);
    assert!(range(error(t(&[9, 1], &[0f32; 9]))));
    assert!(range(error(t::<f32>(&[2, 0], &[]))));
    assert!(matches!(error(t(&[2], &[1f32, 2.])), OpError::Mismatch { .. }));
    assert!(matches!(error(t(&[2, 1], &[1f64, 2.])), OpError::Mismatch { .. }));
    let short = Tensor::new(DType::F32, vec![2, 3], vec![0; 7]);
    assert!(matches!(error(short), OpError::Mismatch { .. }));
    let overflow = Tensor::new(DType::F32, vec![usize::MAX, usize::MAX], vec![]);
    assert!(matches!(error(overflow), OpError::Mismatch { .. }));
    let e = Interp::new(&m).run(&[]).unwrap_err();
    assert_eq!(e, InterpError::InputCount { expected: 1, found: 0 });
}

#[test]
fn one_symbol_has_one_value() {
    let mut b = Builder::new("main");
    let n = b.symbol("n", 0, 8);
    let x = b.input("x", DType::F32, vec![n.clone()]);
    let y = b.input("y", DType::F32, vec![n * Dim::from(2)]);
    let z = b.concat(&[x, y], 0).unwrap();
    let m = finish(b, &[z]);
    let xs = [t(&[1], &[1f32]), t(&[2], &[2f32, 3.])];
    assert_same(&run_module(&m, &xs)[0], &t(&[3], &[1f32, 2., 3.]), "concat");
    let e = Interp::new(&m).run(&[t(&[1], &[1f32]), t(&[1], &[2f32])]).unwrap_err();
    assert!(matches!(e.op_error(), Some(OpError::Mismatch { .. })), "{e}");
}

#[test]
fn every_value_is_shown_once() {
    let mut b = Builder::new("main");
    let x = b.input("x", DType::F32, dims(&[2]));
    let c = b.constant(t(&[2], &[10f32, 20.])).unwrap();
    let y = b.binary(BinaryOp::Add, x, c).unwrap();
    let z = b.unary(UnaryOp::Neg, y).unwrap();
    let m = finish(b, &[z]);
    let mut seen = Vec::new();
    let out = Interp::new(&m)
        .run_with_values(&[t(&[2], &[1f32, 2.])], &mut |v, x| {
            seen.push((v, numbers(x)));
            None
        })
        .unwrap();
    assert_same(&out[0], &t(&[2], &[-11f32, -22.]), "output");
    assert_eq!(seen.len(), 4);
    assert_eq!(seen.last().unwrap(), &(m.graph.outputs[0], vec![-11., -22.]));
    assert!(seen.iter().any(|s| s.1 == [10., 20.]));
}

#[test]
fn a_value_is_replaced_for_all_that_follows() {
    let mut b = Builder::new("main");
    let x = b.input("x", DType::F32, dims(&[2]));
    let y = b.unary(UnaryOp::Neg, x).unwrap();
    let z = b.unary(UnaryOp::Neg, y).unwrap();
    let m = finish(b, &[y, z]);
    let first = m.graph.outputs[0];
    let out = Interp::new(&m)
        .run_with_values(&[t(&[2], &[1f32, 2.])], &mut |v, _| (v == first).then(|| t(&[2], &[5f32, 6.])))
        .unwrap();
    assert_same(&out[0], &t(&[2], &[5f32, 6.]), "replaced");
    assert_same(&out[1], &t(&[2], &[-5f32, -6.]), "what reads it");
}

#[test]
fn sizes_from_data() {
    let mut b = Builder::new("main");
    let mask = b.input("mask", DType::Bool, dims(&[5]));
    let hits = b.compact(mask).unwrap();
    let n = b.shape(hits)[0].clone();
    let count = b.dim_value(&n).unwrap();
    let again = b.iota(DType::I32, &[n], 0).unwrap();
    let m = finish(b, &[hits, count, again]);
    let y = run_module(&m, &[t(&[5], &[false, true, false, true, true])]);
    assert_same(&y[0], &t(&[3], &[1i64, 3, 4]), "hits");
    assert_same(&y[1], &scalar(3i64), "count");
    assert_same(&y[2], &t(&[3], &[0i32, 1, 2]), "iota");
    let none = run_module(&m, &[t(&[5], &[false; 5])]);
    assert_same(&none[0], &t::<i64>(&[0], &[]), "no hits");

    let mut b = Builder::new("main");
    let size = b.input("size", DType::I64, vec![]);
    let d = b.bind_dim(size, 0, 4, 2).unwrap();
    let x = b.iota(DType::I64, &[d], 0).unwrap();
    let m = finish(b, &[x]);
    assert_same(&run_module(&m, &[scalar(2i64)])[0], &t(&[2], &[0i64, 1]), "bound");
    for bad in [5i64, -1] {
        let e = Interp::new(&m).run(&[scalar(bad)]).unwrap_err();
        assert!(
            matches!(e.op_error(), Some(OpError::Symbol { value, lo: 0, hi: 4, .. }) if *value == bad),
            "{e}"
        );
    }
}

#[test]
fn branches_of_different_extent() {
    let mut b = Builder::new("main");
    let (cond, x) = (b.input("cond", DType::Bool, vec![]), b.input("x", DType::I64, dims(&[3])));
    let y = b
        .if_::<IrError>(
            cond,
            |b| Ok(vec![b.concat(&[x, x], 0)?]),
            |b| Ok(vec![b.slice_axis(x, 0, &Dim::from(1), &Dim::from(2))?]),
        )
        .unwrap();
    let count = b.dim_value(&b.shape(y[0])[0].clone()).unwrap();
    let m = finish(b, &[y[0], count]);
    let x = t(&[3], &[1i64, 2, 3]);
    let then = run_module(&m, &[scalar(true), x.clone()]);
    assert_same(&then[0], &t(&[6], &[1i64, 2, 3, 1, 2, 3]), "then");
    assert_same(&then[1], &scalar(6i64), "size of then");
    let other = run_module(&m, &[scalar(false), x]);
    assert_same(&other[0], &t(&[2], &[2i64, 3]), "else");
    assert_same(&other[1], &scalar(2i64), "size of else");
}

/// Grows a vector by one element each step while it has less than `limit` elements.
fn growing_loop() -> Module {
    let mut b = Builder::new("main");
    let trip = b.input("trip", DType::I64, vec![]);
    let cond = b.input("cond", DType::Bool, vec![]);
    let limit = b.input("limit", DType::I64, vec![]);
    let start = b.vector_i64(&[7]).unwrap();
    let results = b
        .loop_::<IrError>(Some(trip), Some(cond), &[start], |b, i, carried| {
            let one = b.reshape(i, &dims(&[1]))?;
            let grown = b.concat(&[carried[0], one], 0)?;
            let size = b.dim_value(&b.shape(grown)[0].clone())?;
            let go = b.cmp(ir::prim::CmpOp::Lt, size, limit)?;
            let sum = b.reduce_sum(grown, &[0], false)?;
            Ok(LoopStep { cond: go, carried: vec![grown], scans: vec![sum] })
        })
        .unwrap();
    let size = b.dim_value(&b.shape(results[0])[0].clone()).unwrap();
    finish(b, &[results[0], results[1], size])
}

#[test]
fn loops_carry_growing_values() {
    let m = growing_loop();
    let go = |trip: i64, cond: bool, limit: i64| run_module(&m, &[scalar(trip), scalar(cond), scalar(limit)]);
    let y = go(3, true, 99);
    assert_same(&y[0], &t(&[4], &[7i64, 0, 1, 2]), "carried");
    assert_same(&y[1], &t(&[3], &[7i64, 8, 10]), "scan");
    assert_same(&y[2], &scalar(4i64), "final size");
    let y = go(i64::MAX, true, 3);
    assert_same(&y[0], &t(&[3], &[7i64, 0, 1]), "ended by the condition");
    for (trip, cond) in [(0, true), (-5, true), (3, false)] {
        let y = go(trip, cond, 99);
        assert_same(&y[0], &t(&[1], &[7i64]), "no iteration");
        assert_same(&y[1], &t::<i64>(&[0], &[]), "no scan");
    }
}

#[test]
fn endless_loops_run_out_of_fuel() {
    let m = growing_loop();
    let budget = Budget { max_bytes: 1 << 20, max_flops: 10_000 };
    let xs = [scalar(i64::MAX), scalar(true), scalar(i64::MAX)];
    let e = Interp::with_budget(&m, budget).run(&xs).unwrap_err();
    assert!(e.is_limit(), "{e}");
}

#[test]
fn calls_run_their_body() {
    let mut b = Builder::new("main");
    let x = b.input("x", DType::F32, dims(&[2]));
    let y = b
        .call::<IrError>("twice", vec![], &[x], |b, args| {
            Ok(vec![b.binary(BinaryOp::Add, args[0], args[0])?])
        })
        .unwrap();
    let m = finish(b, &y);
    assert_same(&run_module(&m, &[t(&[2], &[1f32, 2.])])[0], &t(&[2], &[2f32, 4.]), "call");
}

#[test]
fn deep_nesting_is_a_limit() {
    let ty = TensorType::scalar(DType::F32);
    let mut inner = ir::Graph::new("leaf");
    let x = inner.add_input(None, ty.clone());
    inner.outputs = vec![x];
    for _ in 0..500 {
        let mut g = ir::Graph::new("body");
        let x = g.add_input(None, ty.clone());
        let prim = Prim::Call { name: "f".into(), attrs: vec![] };
        let op = g.push_op(prim, vec![x], vec![inner], vec![ty.clone()], OriginId(0));
        g.outputs = g[op].results.clone();
        inner = g;
    }
    let mut m = Module::default();
    m.graph = inner;
    let e = Interp::new(&m).run(&[scalar(1f32)]).unwrap_err();
    assert!(e.is_limit(), "{e}");
}

#[test]
fn failures_name_the_node() {
    let e = run(Prim::Assert { message: "n is odd".into() }, &[scalar(false)]).unwrap_err();
    assert_eq!(e.to_string(), "node `the_node` (Test), assert: assertion failed: n is odd");
    assert!(run(Prim::Assert { message: String::new() }, &[scalar(true)]).is_ok());
}

#[test]
fn declared_types_are_checked() {
    let wrong = vec![TensorType::new(DType::F32, dims(&[4]))];
    let x = [t(&[2], &[1f32, 2.])];
    let m = unchecked(&Prim::Unary(UnaryOp::Neg), &x, wrong);
    let e = Interp::new(&m).run(&x).unwrap_err();
    assert!(matches!(e.op_error(), Some(OpError::Mismatch { .. })), "{e}");
}

/// Operands and attributes that inference refuses are errors here too, never panics.
#[test]
fn nonsense_is_an_error() {
    let f = |shape: &[usize]| t(shape, &vec![1f32; shape.iter().product()]);
    let big = 1i64 << 40;
    let slice = |start: i64, size: i64, step| Prim::Slice {
        start: dims(&[start]),
        size: dims(&[size]),
        step: vec![step],
    };
    let pad = |lo: i64| Prim::Pad {
        lo: dims(&[lo]),
        hi: dims(&[0]),
        interior: vec![0],
        mode: ir::PadMode::Constant,
    };
    let window =
        |size| Prim::WindowReduce { monoid: Monoid::Sum, size: vec![size], window: vec![WindowDim::unit()] };
    let huge = |shape: &[i64]| Prim::Iota { dtype: DType::F64, shape: dims(shape), axis: 0 };
    let rows: Vec<(Prim, Vec<Tensor>)> = vec![
        (huge(&[big]), vec![]),
        (huge(&[big, big, big]), vec![]),
        (huge(&[-1]), vec![]),
        (Prim::RandomBits { shape: dims(&[i64::MAX]) }, vec![scalar(1u64)]),
        (Prim::Broadcast { shape: dims(&[big]), dims: vec![] }, vec![scalar(1f32)]),
        (Prim::Broadcast { shape: dims(&[3]), dims: vec![7] }, vec![f(&[3])]),
        (Prim::Broadcast { shape: dims(&[3]), dims: vec![0] }, vec![f(&[2])]),
        (Prim::Reshape { shape: dims(&[3]) }, vec![f(&[2])]),
        (Prim::Reshape { shape: dims(&[big, big, 2]) }, vec![f(&[2])]),
        (Prim::Transpose { perm: vec![0, 0] }, vec![f(&[2, 2])]),
        (slice(0, 3, 1), vec![f(&[2])]),
        (slice(-1, 1, 1), vec![f(&[2])]),
        (slice(i64::MAX, 2, i64::MAX), vec![f(&[2])]),
        (pad(-3), vec![f(&[2]), scalar(0f32)]),
        (pad(big), vec![f(&[2]), scalar(0f32)]),
        (pad(1), vec![f(&[2]), scalar(0i32)]),
        (Prim::Concat { axis: 1 }, vec![f(&[2])]),
        (Prim::Concat { axis: 0 }, vec![]),
        (Prim::Concat { axis: 0 }, vec![f(&[2]), scalar(1f32)]),
        (Prim::UpdateSlice { start: dims(&[1]) }, vec![f(&[2]), f(&[2])]),
        (Prim::Gather { axis: 3 }, vec![f(&[2]), scalar(0i64)]),
        (Prim::Gather { axis: 0 }, vec![f(&[2]), scalar(0f32)]),
        (Prim::Scatter { combine: Combine::Add }, vec![f(&[2]), t(&[1], &[0i64]), f(&[2])]),
        (Prim::Scatter { combine: Combine::Add }, vec![scalar(1f32), t(&[1], &[0i64]), f(&[1])]),
        (Prim::Reduce { monoid: Monoid::Sum, axes: vec![5] }, vec![f(&[2])]),
        (Prim::Reduce { monoid: Monoid::Sum, axes: vec![0] }, vec![t(&[1], &[true])]),
        (Prim::ArgReduce { max: true, axis: 0, last: false }, vec![f(&[0])]),
        (window(0), vec![f(&[2])]),
        (window(i64::MAX), vec![f(&[2])]),
        (window(1), vec![scalar(1f32)]),
        (Prim::Binary(BinaryOp::Add), vec![f(&[2]), f(&[3])]),
        (Prim::Binary(BinaryOp::Add), vec![f(&[2])]),
        (Prim::Binary(BinaryOp::And), vec![f(&[2]), f(&[2])]),
        (Prim::Binary(BinaryOp::Add), vec![scalar(true), scalar(true)]),
        (Prim::Unary(UnaryOp::Not), vec![f(&[2])]),
        (Prim::Unary(UnaryOp::Exp), vec![scalar(1i32)]),
        (Prim::Select, vec![f(&[2]), f(&[2]), f(&[2])]),
        (Prim::Bitcast { to: DType::F64 }, vec![f(&[2])]),
        (Prim::TopK { axis: 0, k: 3.into(), largest: true }, vec![f(&[2])]),
        (Prim::Sort { axis: 0, descending: true }, vec![f(&[2]), f(&[3])]),
        (Prim::Contract { batch: vec![], reduce: vec![(0, 0)], acc: DType::F32 }, vec![f(&[2]), f(&[3])]),
        (
            Prim::Contract { batch: vec![(0, 0)], reduce: vec![(0, 0)], acc: DType::F32 },
            vec![f(&[2]), f(&[2])],
        ),
        (Prim::Convolve { window: vec![], groups: 0, acc: DType::F32 }, vec![f(&[1, 1]), f(&[1, 1])]),
        (
            Prim::Convolve { window: vec![WindowDim::unit()], groups: 1, acc: DType::F32 },
            vec![f(&[1, 2, 3]), f(&[1, 1, 3])],
        ),
        (Prim::DimValue(Dim::from(ir::Sym(7))), vec![]),
        (Prim::BindDim(ir::Sym(7)), vec![scalar(1i64)]),
        (Prim::Const(ir::ConstId(3)), vec![]),
        (Prim::Call { name: "f".into(), attrs: vec![] }, vec![]),
        (Prim::If { defines: vec![] }, vec![scalar(true)]),
        (Prim::Loop { carried: 9, carried_syms: vec![], defines: vec![] }, vec![scalar(1i64)]),
    ];
    let none = Module::default();
    for (prim, xs) in rows {
        let m = unchecked(&prim, &xs, vec![]);
        let op = m.graph.ops().next().unwrap().1;
        let got = eval_op(&none, op, &xs, &|_| None, Budget::RUN);
        assert!(got.is_err(), "{prim:?} on {xs:?} gave {got:?}");
    }
}

#[test]
fn folding_keeps_to_its_budget() {
    let m = unchecked(
        &Prim::Iota { dtype: DType::F32, shape: dims(&[1000]), axis: 0 },
        &[],
        vec![TensorType::new(DType::F32, dims(&[1000]))],
    );
    let op = m.graph.ops().next().unwrap().1;
    let none: [Tensor; 0] = [];
    let with = |max_bytes, max_flops| eval_op(&m, op, &none, &|_| None, Budget { max_bytes, max_flops });
    assert_eq!(with(4000, 1001).unwrap()[0].elems(), 1000);
    assert!(with(3999, 1001).unwrap_err().is_limit());
    assert!(with(4000, 1000).unwrap_err().is_limit());

    // sizes come from the caller
    let mut b = Builder::new("main");
    let n = b.symbol("n", 0, 8);
    let x = b.input("x", DType::F32, vec![n.clone()]);
    let size = b.dim_value(&n).unwrap();
    let m = finish(b, &[x, size]);
    let op = m.graph.ops().next().unwrap().1;
    let got = eval_op(&m, op, &none, &|_| Some(3), Budget::FOLD).unwrap();
    assert_same(&got[0], &scalar(3i64), "dim_value");
    let e = eval_op(&m, op, &none, &|_| None, Budget::FOLD).unwrap_err();
    assert!(matches!(e.op_error(), Some(OpError::Unbound(_))), "{e}");
}

#[test]
fn folding_a_constant_is_charged() {
    let mut b = Builder::new("main");
    let c = b.constant(t(&[4], &[1f32; 4])).unwrap();
    let x = b.input("x", DType::F32, dims(&[4]));
    let y = b.binary(BinaryOp::Add, x, c).unwrap();
    let m = finish(b, &[y]);
    let op = m.graph.ops().map(|o| o.1).find(|o| matches!(o.prim, Prim::Const(_))).unwrap();
    let with = |max_bytes| {
        let none: [Tensor; 0] = [];
        eval_op(&m, op, &none, &|_| None, Budget { max_bytes, max_flops: 100 })
    };
    assert_same(&with(16).unwrap()[0], &t(&[4], &[1f32; 4]), "constant");
    assert!(with(15).unwrap_err().is_limit());
}

#[test]
fn memory_is_given_back() {
    // a chain of 100 results of 4 KB never holds more than two of them
    let mut b = Builder::new("main");
    let mut x = b.input("x", DType::F32, dims(&[1024]));
    for _ in 0..100 {
        x = b.unary(UnaryOp::Sin, x).unwrap();
    }
    let m = finish(b, &[x]);
    let budget = Budget { max_bytes: 2 * 4096, max_flops: u64::MAX };
    let input = [t(&[1024], &[0.5f32; 1024])];
    assert!(Interp::with_budget(&m, budget).run(&input).is_ok());
    let budget = Budget { max_bytes: 4096, max_flops: u64::MAX };
    assert!(Interp::with_budget(&m, budget).run(&input).unwrap_err().is_limit());
}

fn constant(dtype: DType, shape: &[usize], source: ConstSource) -> ConstData {
    ConstData { dtype, shape: shape.to_vec(), source, name: Some("w".into()) }
}

#[test]
fn constants_of_every_source() {
    let bytes = ConstSource::Bytes(Arc::new(vec![1u8, 2, 3]));
    let got = materialise(&constant(DType::U8, &[3], bytes.clone())).unwrap();
    assert_same(&got, &t(&[3], &[1u8, 2, 3]), "bytes");
    assert!(materialise(&constant(DType::U8, &[4], bytes.clone())).is_err());
    assert!(materialise(&constant(DType::U8, &[usize::MAX, 2], bytes)).is_err());
    let splat = |x| ConstSource::Splat(x);
    let got = materialise(&constant(DType::F32, &[2], splat(Scalar::Float(1.5)))).unwrap();
    assert_same(&got, &t(&[2], &[1.5f32; 2]), "splat");
    let got = materialise(&constant(DType::U64, &[1], splat(Scalar::Int(u64::MAX.into())))).unwrap();
    assert_same(&got, &t(&[1], &[u64::MAX]), "splat u64");
    let got = materialise(&constant(DType::F32, &[0, 1 << 40], splat(Scalar::Float(1.5)))).unwrap();
    assert_eq!(got.elems(), 0);
    let e = materialise(&constant(DType::F32, &[1 << 40], splat(Scalar::Float(1.5)))).unwrap_err();
    assert!(e.is_limit(), "{e}");
    let text = ConstSource::Strings(vec!["a".to_string()].into());
    assert_eq!(materialise(&constant(DType::String, &[1], text)).unwrap().strings, ["a"]);
}

#[test]
fn random_constants_are_normal_and_fixed() {
    let random = |seed, dtype, n| {
        let source = ConstSource::Random { seed, mean: 2.0, std: 3.0 };
        materialise(&constant(dtype, &[n], source)).unwrap()
    };
    let x = numbers(&random(1, DType::F64, 20_000));
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
    assert!((mean - 2.0).abs() < 0.1 && (var - 9.0).abs() < 0.3, "{mean} {var}");
    assert_eq!(random(1, DType::F32, 5), random(1, DType::F32, 5));
    assert_ne!(random(1, DType::F32, 5), random(2, DType::F32, 5));
    // a prefix stays when the constant grows
    assert_eq!(random(1, DType::I32, 9).data[..20], random(1, DType::I32, 5).data[..]);
}

#[test]
fn non_max_suppression_as_in_onnx() {
    let nms = |center| Prim::Host {
        func: HostFn::NonMaxSuppression { center_point_box: center },
        defines: vec![ir::Sym(0)],
    };
    let mut m = Module::default();
    let sym = m.symbols.fresh("chosen", SymKind::Value);
    let run = |center, boxes: &Tensor, scores: &Tensor, max: i64, iou: f32, score: f32| {
        let mut m = m.clone();
        let xs = [boxes.clone(), scores.clone(), scalar(max), scalar(iou), scalar(score)];
        let inputs = xs
            .iter()
            .map(|x| {
                let shape = x.shape.iter().map(|&d| Dim::from(d)).collect();
                m.graph.add_input(None, TensorType::new(x.dtype, shape))
            })
            .collect();
        let ty = TensorType::new(DType::I64, vec![Dim::from(sym), Dim::from(3)]);
        let op = m.graph.push_op(nms(center), inputs, vec![], vec![ty], OriginId(0));
        m.graph.outputs = m.graph[op].results.clone();
        run_module(&m, &xs).remove(0)
    };
    // the operator's own examples
    let corners: [f32; 24] = [
        0.0, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, -0.1, 1.0, 0.9, 0.0, 10.0, 1.0, 11.0, 0.0, 10.1, 1.0,
        11.1, 0.0, 100.0, 1.0, 101.0,
    ];
    let boxes = t(&[1, 6, 4], &corners);
    let scores = t(&[1, 1, 6], &[0.9f32, 0.75, 0.6, 0.95, 0.5, 0.3]);
    let chosen = |v: &[i64]| t(&[v.len(), 3], &v.iter().flat_map(|&i| [0, 0, i]).collect::<Vec<i64>>());
    assert_same(&run(false, &boxes, &scores, 3, 0.5, 0.0), &chosen(&[3, 0, 5]), "three");
    assert_same(&run(false, &boxes, &scores, 2, 0.5, 0.0), &chosen(&[3, 0]), "two");
    assert_same(&run(false, &boxes, &scores, 3, 0.5, 0.4), &chosen(&[3, 0]), "by score");
    assert_same(&run(false, &boxes, &scores, 0, 0.5, 0.0), &chosen(&[]), "none");
    let centers: Vec<f32> = corners
        .chunks(4)
        .flat_map(|c| [(c[1] + c[3]) / 2.0, (c[0] + c[2]) / 2.0, c[3] - c[1], c[2] - c[0]])
        .collect();
    let boxes = t(&[1, 6, 4], &centers);
    assert_same(&run(true, &boxes, &scores, 3, 0.5, 0.0), &chosen(&[3, 0, 5]), "centres");
    // equal boxes and scores: the lower index wins
    let boxes = t(&[1, 3, 4], &[0f32, 0., 1., 1.].repeat(3));
    let scores = t(&[1, 1, 3], &[0.9f32; 3]);
    assert_same(&run(false, &boxes, &scores, 3, 0.5, 0.0), &chosen(&[0]), "ties");
}
