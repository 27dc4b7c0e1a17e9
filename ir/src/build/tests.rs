//! Tests of the builder: broadcasting, symbolic values, captures, control.

use super::*;
use crate::Tensor;
use crate::prim::{Combine, Monoid, WindowDim};

fn d(x: i64) -> Dim {
    Dim::from(x)
}

#[test]
fn broadcasting() {
    let mut b = Builder::new("g");
    let (n, m) = (b.symbol("N", 0, 64), b.symbol("M", 1, 64));
    let x = b.input("x", DType::F32, vec![n.clone(), d(1), d(3)]);
    let y = b.input("y", DType::F32, vec![d(5), d(1)]);
    let z = b.add(x, y).unwrap();
    assert_eq!(b.shape(z), [n.clone(), d(5), d(3)]);
    // neither is provable: the extent is right for equal extents, for 1 and for 0 against 1
    let v = b.input("v", DType::F32, vec![n.clone()]);
    let w = b.input("w", DType::F32, vec![m.clone()]);
    let s = b.mul(v, w).unwrap();
    let at = |d: &Dim, n: i64, m: i64| d.eval_syms(&|s| Some(if s.0 == 0 { n } else { m }));
    for (a, c, want) in [(1, 7, 7), (7, 1, 7), (0, 1, 0), (4, 4, 4), (1, 1, 1)] {
        assert_eq!(at(&b.shape(s)[0], a, c), Some(want), "{a} {c}");
    }
    let bad = b.input("bad", DType::F32, vec![d(2)]);
    assert!(b.add(x, bad).is_err());
    let int = b.input("int", DType::I64, vec![]);
    let message = b.add(x, int).unwrap_err().to_string();
    assert!(message.contains("f32") && message.contains("i64"), "{message}");
}

#[test]
fn shape_arithmetic_disappears() {
    // reshape(x, concat(shape(x)[0:1], [-1 computed as C*H/2]))
    let mut b = Builder::new("g");
    let (n, h) = (b.symbol("N", 1, 64), b.symbol("H", 1, 512));
    let x = b.input("x", DType::F32, vec![n.clone(), d(4), h.clone()]);
    let shape = b.shape_of(x).unwrap();
    assert_eq!(b.known(shape), Some(vec![n.clone(), d(4), h.clone()]));
    let at = b.vector_i64(&[2]).unwrap();
    let last = b.gather(shape, at, 0).unwrap();
    let four = b.vector_i64(&[4]).unwrap();
    let ch = b.mul(last, four).unwrap();
    let first = b.slice_axis(shape, 0, &d(0), &d(1)).unwrap();
    let target = b.concat(&[first, ch], 0).unwrap();
    assert_eq!(b.known(target), Some(vec![n.clone(), h.clone() * d(4)]));
    let dims = b.bind_dims(target, 0, Dim::LIMIT, 8).unwrap();
    let y = b.reshape(x, &dims).unwrap();
    assert_eq!(b.shape(y), [n.clone(), h.clone() * d(4)]);
    // division, comparison, select, float scales
    let two = b.scalar_i64(2).unwrap();
    let half = b.div(last, two).unwrap();
    assert_eq!(b.known(half), Some(vec![h.floor_div(&d(2), b.symbols())]));
    let positive = b.scalar_i64(0).and_then(|z| b.gt(last, z)).unwrap();
    assert_eq!(b.known_ints(positive), Some(vec![1]));
    let picked = b.select(positive, last, four).unwrap();
    assert_eq!(b.known(picked), Some(vec![h.clone()]));
    let f = b.convert(last, DType::F32).unwrap();
    let f = b.mul_scalar(f, 2.0).unwrap();
    let f = b.floor(f).unwrap();
    let i = b.convert(f, DType::I64).unwrap();
    assert_eq!(b.known(i), Some(vec![h.clone() * d(2)]));
    let total = b.reduce(Monoid::Prod, shape, &[0], false).unwrap();
    assert_eq!(b.known(total), Some(vec![n * h * d(4)]));
}

#[test]
fn unknown_elements_bind_once() {
    let mut b = Builder::new("g");
    let v = b.input("v", DType::I64, vec![d(1)]);
    let three = b.vector_i64(&[3]).unwrap();
    let both = b.concat(&[v, three], 0).unwrap();
    let dims = b.bind_dims(both, 0, 100, 4).unwrap();
    assert_eq!(dims[1], d(3));
    let s = dims[0].as_sym().unwrap();
    assert_eq!(b.symbols().get(s).hi, 100);
    assert_eq!(b.bind_dims(both, 0, 100, 4).unwrap(), dims);
    let bound = b.bind_dims(both, 0, 5, 4).unwrap();
    assert_eq!(bound, dims);
    let y = b.full(DType::F32, &dims, 1.5).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let binds = m.graph.ops().filter(|(_, o)| matches!(o.prim, Prim::BindDim(_))).count();
    assert_eq!(binds, 1);
}

#[test]
fn matmul_shapes() {
    let mut b = Builder::new("g");
    let (n, m) = (b.symbol("N", 1, 64), b.symbol("M", 1, 64));
    let cases: Vec<(Vec<Dim>, Vec<Dim>, Vec<Dim>)> = vec![
        (vec![d(2), d(3)], vec![d(3), d(4)], vec![d(2), d(4)]),
        (vec![d(3)], vec![d(3)], vec![]),
        (vec![d(3)], vec![d(3), d(4)], vec![d(4)]),
        (vec![n.clone(), d(2), d(3)], vec![d(3)], vec![n.clone(), d(2)]),
        (vec![n.clone(), d(2), d(3)], vec![d(3), d(4)], vec![n.clone(), d(2), d(4)]),
        (vec![d(2), d(3)], vec![n.clone(), d(3), d(4)], vec![n.clone(), d(2), d(4)]),
        (vec![n.clone(), d(1), d(2), d(3)], vec![d(1), d(5), d(3), d(4)], vec![n.clone(), d(5), d(2), d(4)]),
        (vec![d(1), d(1), d(2), d(3)], vec![d(1), d(3), d(4)], vec![d(1), d(1), d(2), d(4)]),
        (vec![d(5), d(3)], vec![d(7), n.clone(), d(3), d(0)], vec![d(7), n.clone(), d(5), d(0)]),
    ];
    for (x, y, want) in cases {
        let (p, q) = (b.input("p", DType::F32, x), b.input("q", DType::F32, y));
        let r = b.matmul(p, q).unwrap();
        assert_eq!(b.shape(r), want);
    }
    let p = b.input("p", DType::F32, vec![n, d(2), d(3)]);
    let q = b.input("q", DType::F32, vec![m, d(3), d(4)]);
    let r = b.matmul(p, q).unwrap();
    assert_eq!(b.shape(r)[1..], [d(2), d(4)]);
    let wrong = b.input("w", DType::F32, vec![d(4), d(4)]);
    assert!(b.matmul(p, wrong).is_err());
}

#[test]
fn if_captures_and_joins() {
    let mut b = Builder::new("g");
    let c = b.input("c", DType::Bool, vec![]);
    let x = b.input("x", DType::F32, vec![d(4)]);
    let y = b.input("y", DType::F32, vec![d(6)]);
    let one = b.scalar(DType::F32, 1.0).unwrap();
    let r = b
        .if_::<IrError>(
            c,
            |b| Ok(vec![b.add(x, one)?, one]),
            |b| {
                let z = b.mul(y, one)?;
                let s = b.reduce_sum(x, &[0], false)?;
                Ok(vec![z, s])
            },
        )
        .unwrap();
    let s = b.shape(r[0])[0].as_sym().unwrap();
    assert_eq!((b.symbols().get(s).lo, b.symbols().get(s).hi), (4, 6));
    let m = b.finish(&[("r".into(), r[0])]).unwrap();
    let (_, op) = m.graph.ops().find(|(_, o)| matches!(o.prim, Prim::If { .. })).unwrap();
    // x and y; the constant is repeated inside
    assert_eq!(op.operands.len(), 3);
    assert_eq!(op.regions[0].inputs.len(), 2);
    assert_eq!(op.regions[1].inputs.len(), 2);
}

#[test]
fn loop_with_growing_value() {
    let mut b = Builder::new("g");
    let trip = b.input("trip", DType::I64, vec![]);
    let x = b.input("x", DType::F32, vec![d(1), d(3)]);
    let start = b.constant(Tensor::zeros(DType::F32, vec![0, 3])).unwrap();
    let sum = b.full(DType::F32, &[d(3)], 0.0).unwrap();
    let r = b
        .loop_::<IrError>(Some(trip), None, &[start, sum], |b, _, c| {
            let grown = b.concat(&[c[0], x], 0)?;
            let row = b.reshape(x, &[d(3)])?;
            let sum = b.add(c[1], row)?;
            let cond = b.scalar(DType::Bool, 1.0)?;
            Ok(LoopStep { cond, carried: vec![grown, sum], scans: vec![sum] })
        })
        .unwrap();
    assert!(b.shape(r[0])[0].as_sym().is_some());
    assert_eq!(b.shape(r[0])[1], d(3));
    assert_eq!(b.shape(r[1]), [d(3)]);
    assert_eq!(b.rank(r[2]), 2);
    let carried = b.symbols().infos.iter().filter(|i| i.kind == SymKind::Carried).count();
    assert_eq!(carried, 1);
    // a constant trip count gives the exact number of scan results
    let five = b.scalar_i64(5).unwrap();
    let r = b
        .loop_::<IrError>(Some(five), None, &[], |b, i, _| {
            let cond = b.scalar(DType::Bool, 1.0)?;
            Ok(LoopStep { cond, carried: vec![], scans: vec![i] })
        })
        .unwrap();
    assert_eq!(b.shape(r[0]), [d(5)]);
}

#[test]
fn composites_and_scopes() {
    let mut b = Builder::new("g");
    let x = b.input("x", DType::F32, vec![d(2), d(3)]);
    let y = b.input("y", DType::F32, vec![d(3)]);
    let mut leaked = None;
    let r = b
        .call::<IrError>("scale", vec![], &[x], |b, a| {
            let z = b.mul(a[0], y)?;
            leaked = Some(z);
            Ok(vec![z])
        })
        .unwrap();
    assert_eq!(b.shape(r[0]), [d(2), d(3)]);
    let leaked = leaked.unwrap();
    assert!(!b.in_scope(leaked));
    assert!(b.neg(leaked).is_err());
    let m = b.finish(&[("r".into(), r[0])]).unwrap();
    let (_, op) = m.graph.ops().last().unwrap();
    assert_eq!((op.operands.len(), op.regions[0].inputs.len()), (2, 2));
}

#[test]
fn windows_and_slices() {
    let mut b = Builder::new("g");
    let h = b.symbol("H", 7, 512);
    let x = b.input("x", DType::F32, vec![d(1), d(3), h.clone(), d(10)]);
    let w = b.input("w", DType::F32, vec![d(8), d(3), d(3), d(3)]);
    let mut dim = WindowDim::unit();
    dim.stride = 2;
    dim.pad_lo = d(1);
    dim.pad_hi = d(1);
    let y = b.convolve(x, w, &[dim.clone(), dim.clone()], 1, DType::F32).unwrap();
    assert_eq!(b.shape(y)[3], d(5));
    assert_eq!(b.shape(y)[2].eval_syms(&|_| Some(9)), Some(5));
    // transposed: stride 1, base dilation 2
    let t = WindowDim { base_dilation: 2, stride: 1, ..dim };
    let z = b.convolve(x, w, &[t.clone(), t], 1, DType::F32).unwrap();
    assert_eq!(b.shape(z)[3], d(19));
    let wrong = b.input("wrong", DType::F32, vec![d(8), d(2), d(3), d(3)]);
    assert!(b.convolve(x, wrong, &[WindowDim::unit(), WindowDim::unit()], 1, DType::F32).is_err());
    let r = b.reverse(x, 3).unwrap();
    assert_eq!(b.shape(r), b.shape(x));
    assert!(b.slice_axis(x, 3, &d(8), &d(3)).is_err());
    let facts = b.symbols();
    let range = |s: i64, e: i64, st: i64, n: i64| {
        let (a, k) = slice_range(&d(s), &d(e), st, &d(n), facts);
        (a.as_const().unwrap(), k.as_const().unwrap())
    };
    assert_eq!(range(1, 100, 2, 10), (1, 5));
    assert_eq!(range(-3, i64::MAX >> 2, 1, 10), (7, 3));
    assert_eq!(range(-1, -1000, -1, 10), (9, 10));
    assert_eq!(range(5, 2, 1, 10).1, 0);
    assert_eq!(range(0, 5, 1, 0), (0, 0));
    assert_eq!(range(100, 0, -4, 10), (9, 3));
    let base = b.input("base", DType::F32, vec![d(4), d(2)]);
    let at = b.input("at", DType::I32, vec![d(3)]);
    let up = b.input("up", DType::F32, vec![d(3), d(2)]);
    assert!(b.scatter(base, at, up, Combine::Add).is_ok());
    assert!(b.scatter(base, up, up, Combine::Add).is_err());
}

#[test]
fn the_largest_integers_only_move() {
    let mut b = Builder::new("g");
    let ends = b.vector_i64(&[i64::MAX, 4, i64::MIN]).unwrap();
    let end = b.slice_axis(ends, 0, &d(0), &d(1)).unwrap();
    let n = b.symbol("N", 0, 64);
    let (first, size) = slice_range(&d(1), &b.known(end).unwrap()[0], 1, &n, b.symbols());
    let at = |e: &Dim, n| e.eval_syms(&|_| Some(n));
    assert_eq!((at(&first, 5), at(&size, 5), at(&size, 0)), (Some(1), Some(4), Some(0)));
    let one = b.vector_i64(&[1]).unwrap();
    let sum = b.add(end, one).unwrap();
    assert_eq!(b.known(sum), None);
    let negative = b.neg(ends).unwrap();
    assert_eq!(b.known(negative), None);
}

/// Each step doubles the expression of the size; a model that does so is refused before it takes for ever.
#[test]
fn sizes_that_double_with_every_op_are_refused() {
    let mut b = Builder::new("main");
    let n = b.symbol("N", 1, 64);
    let mut x = b.input("x", DType::F32, vec![n.clone()]);
    for step in 0..64 {
        let d = b.shape(x)[0].clone();
        let other = b.symbol(format!("M{step}"), 1, 64);
        let size = (&d * &d).min_with(&(d + other), b.symbols());
        match b.slice(x, &[Dim::from(0)], std::slice::from_ref(&size), &[1]) {
            Ok(y) => x = y,
            Err(e) => return assert!(matches!(e, IrError::Limit(_)), "{e}"),
        }
    }
    panic!("64 doublings were accepted");
}
