//! Movement, indexed and selection primitives.

// Rows of operands read better alike.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod common;

use common::*;
use ir::prim::{Combine, PadMode};
use ir::{DType, Prim, Tensor};
use kernelsmith_interp::OpError;

fn m23() -> Tensor {
    t(&[2, 3], &[1i32, 2, 3, 4, 5, 6])
}

#[test]
fn reshape_and_transpose() {
    check(Prim::Reshape { shape: dims(&[3, 2]) }, &[m23()], &t(&[3, 2], &[1i32, 2, 3, 4, 5, 6]));
    check(Prim::Reshape { shape: dims(&[]) }, &[t(&[1, 1], &[7i32])], &scalar(7i32));
    check(Prim::Reshape { shape: dims(&[0, 5]) }, &[t::<i32>(&[3, 0], &[])], &t::<i32>(&[0, 5], &[]));
    check(Prim::Transpose { perm: vec![1, 0] }, &[m23()], &t(&[3, 2], &[1i32, 4, 2, 5, 3, 6]));
    check(Prim::Transpose { perm: vec![] }, &[scalar(7i32)], &scalar(7i32));
    let cube: Vec<i32> = (0..24).collect();
    let got = eval(Prim::Transpose { perm: vec![2, 0, 1] }, &[t(&[2, 3, 4], &cube)]);
    let want: Vec<i32> = (0..24).map(|i| i / 6 + (i % 6) * 4).collect();
    assert_same(&got, &t(&[4, 2, 3], &want), "transpose");
    check(Prim::Transpose { perm: vec![1, 0] }, &[t::<i32>(&[0, 3], &[])], &t::<i32>(&[3, 0], &[]));
}

#[test]
fn broadcast_extends() {
    let b = |shape: &[i64], d: &[usize]| Prim::Broadcast { shape: dims(shape), dims: d.to_vec() };
    check(b(&[2, 2], &[]), &[scalar(7i32)], &t(&[2, 2], &[7i32; 4]));
    check(b(&[2, 3], &[1]), &[t(&[3], &[1i32, 2, 3])], &t(&[2, 3], &[1i32, 2, 3, 1, 2, 3]));
    check(b(&[2, 3], &[0]), &[t(&[2], &[1i32, 2])], &t(&[2, 3], &[1i32, 1, 1, 2, 2, 2]));
    check(b(&[2, 3], &[0, 1]), &[t(&[2, 1], &[1i32, 2])], &t(&[2, 3], &[1i32, 1, 1, 2, 2, 2]));
    check(b(&[0, 3], &[0, 1]), &[t(&[1, 3], &[1i32, 2, 3])], &t::<i32>(&[0, 3], &[]));
}

#[test]
fn slices() {
    let s = |start: &[i64], size: &[i64], step: &[i64]| Prim::Slice {
        start: dims(start),
        size: dims(size),
        step: step.to_vec(),
    };
    let x = t(&[5], &[0i32, 1, 2, 3, 4]);
    check(s(&[1], &[2], &[2]), &[x.clone()], &t(&[2], &[1i32, 3]));
    check(s(&[4], &[5], &[-1]), &[x.clone()], &t(&[5], &[4i32, 3, 2, 1, 0]));
    check(s(&[9], &[0], &[1]), &[x.clone()], &t::<i32>(&[0], &[]));
    check(s(&[4], &[1], &[i64::MIN]), &[x], &t(&[1], &[4i32]));
    check(s(&[0, 2], &[2, 2], &[1, -2]), &[m23()], &t(&[2, 2], &[3i32, 1, 6, 4]));
    check(s(&[1, 1], &[1, 2], &[1, 1]), &[m23()], &t(&[1, 2], &[5i32, 6]));
    check(s(&[], &[], &[]), &[scalar(3i32)], &scalar(3i32));
}

fn pad(mode: PadMode, lo: &[i64], hi: &[i64], interior: &[i64], xs: &[Tensor], want: &Tensor) {
    let prim = Prim::Pad { lo: dims(lo), hi: dims(hi), interior: interior.to_vec(), mode };
    check(prim, xs, want);
}

#[test]
fn pads() {
    use PadMode::*;
    let (x, f) = (t(&[3], &[1i32, 2, 3]), scalar(9i32));
    let row = |lo, hi, interior, want: &[i32]| {
        let xs = [x.clone(), f.clone()];
        pad(Constant, &[lo], &[hi], &[interior], &xs, &t(&[want.len()], want));
    };
    row(1, 2, 0, &[9, 1, 2, 3, 9, 9]);
    row(-1, 1, 0, &[2, 3, 9]);
    row(-2, -1, 0, &[]);
    row(0, 0, 2, &[1, 9, 9, 2, 9, 9, 3]);
    // the crop removes filler that the interior inserted
    row(-1, -1, 1, &[9, 2, 9]);
    row(-3, 0, 0, &[]);
    let xs = [t::<i32>(&[0], &[]), f.clone()];
    pad(Constant, &[1], &[1], &[3], &xs, &t(&[2], &[9i32, 9]));
    pad(Constant, &[], &[], &[], &[scalar(5i32), f.clone()], &scalar(5i32));
    let other = |mode, lo, hi, want: &[i32]| {
        pad(mode, &[lo], &[hi], &[0], std::slice::from_ref(&x), &t(&[want.len()], want));
    };
    other(Edge, 2, 1, &[1, 1, 1, 2, 3, 3]);
    other(Edge, -1, 1, &[2, 3, 3]);
    other(Reflect, 2, 2, &[3, 2, 1, 2, 3, 2, 1]);
    other(Reflect, 5, 0, &[2, 1, 2, 3, 2, 1, 2, 3]);
    other(Wrap, 2, 2, &[2, 3, 1, 2, 3, 1, 2]);
    other(Wrap, 0, 4, &[1, 2, 3, 1, 2, 3, 1]);
    pad(Reflect, &[2], &[1], &[0], &[t(&[1], &[4i32])], &t(&[4], &[4i32; 4]));
    let want = [9i32, 9, 9, 9, 9, 1, 2, 3, 9, 4, 5, 6];
    pad(Constant, &[1, 1], &[0, 0], &[0, 0], &[m23(), f], &t(&[3, 4], &want));
}

#[test]
fn concatenation_and_update() {
    let c = |axis| Prim::Concat { axis };
    let y = t(&[2, 1], &[7i32, 8]);
    check(c(1), &[m23(), y, t::<i32>(&[2, 0], &[])], &t(&[2, 4], &[1i32, 2, 3, 7, 4, 5, 6, 8]));
    check(c(0), &[t(&[1], &[1i32]), t(&[2], &[2i32, 3])], &t(&[3], &[1i32, 2, 3]));
    let u = |start: &[i64]| Prim::UpdateSlice { start: dims(start) };
    let new = t(&[1, 2], &[8i32, 9]);
    check(u(&[1, 1]), &[m23(), new], &t(&[2, 3], &[1i32, 2, 3, 4, 8, 9]));
    check(u(&[2, 0]), &[m23(), t::<i32>(&[0, 3], &[])], &m23());
    check(u(&[]), &[scalar(1i32), scalar(2i32)], &scalar(2i32));
}

#[test]
fn strings_move() {
    let words = |shape: &[usize], v: &[&str]| Tensor {
        strings: v.iter().map(|s| s.to_string()).collect(),
        ..Tensor::new(DType::String, shape.to_vec(), vec![])
    };
    let x = words(&[2, 2], &["a", "b", "c", "d"]);
    check(Prim::Transpose { perm: vec![1, 0] }, &[x.clone()], &words(&[2, 2], &["a", "c", "b", "d"]));
    check(
        Prim::Concat { axis: 0 },
        &[x.clone(), words(&[1, 2], &["e", "f"])],
        &words(&[3, 2], &["a", "b", "c", "d", "e", "f"]),
    );
    check(Prim::Gather { axis: 0 }, &[x.clone(), t(&[1], &[1i64])], &words(&[1, 2], &["c", "d"]));
    check(Prim::Reshape { shape: dims(&[4]) }, &[x], &words(&[4], &["a", "b", "c", "d"]));
}

#[test]
fn gathers() {
    let g = |axis| Prim::Gather { axis };
    check(g(0), &[m23(), t(&[3], &[1i64, 0, 1])], &t(&[3, 3], &[4i32, 5, 6, 1, 2, 3, 4, 5, 6]));
    check(g(1), &[m23(), t(&[1, 2], &[2i32, 0])], &t(&[2, 1, 2], &[3i32, 1, 6, 4]));
    check(g(0), &[m23(), scalar(1i64)], &t(&[3], &[4i32, 5, 6]));
    check(g(0), &[m23(), t::<i64>(&[0], &[])], &t::<i32>(&[0, 3], &[]));
    for bad in [2i64, -1, i64::MIN] {
        let e = fails(g(0), &[m23(), scalar(bad)]);
        assert_eq!(e, OpError::Index { index: bad.into(), extent: 2 });
    }
    // nothing is read, so nothing is out of range
    check(g(0), &[t::<i32>(&[0, 0], &[]), t(&[1], &[5i64])], &t::<i32>(&[1, 0], &[]));
}

#[test]
fn scatters() {
    let base = t(&[3, 2], &[1f32, 1., 1., 1., 1., 1.]);
    let index = t(&[3], &[2i64, 0, 2]);
    let update = t(&[3, 2], &[2f32, 3., 4., 5., 6., 7.]);
    let rows = [
        (Combine::Set, [4f32, 5., 1., 1., 6., 7.]),
        (Combine::Add, [5., 6., 1., 1., 9., 11.]),
        (Combine::Mul, [4., 5., 1., 1., 12., 21.]),
        (Combine::Min, [1., 1., 1., 1., 1., 1.]),
        (Combine::Max, [4., 5., 1., 1., 6., 7.]),
    ];
    for (combine, want) in rows {
        let xs = [base.clone(), index.clone(), update.clone()];
        check(Prim::Scatter { combine }, &xs, &t(&[3, 2], &want));
    }
    let xs = [t(&[2], &[1u8, 2]), t(&[2], &[0i32, 0]), t(&[2], &[255u8, 3])];
    check(Prim::Scatter { combine: Combine::Add }, &xs, &t(&[2], &[3u8, 2]));
    let xs = [t(&[2], &[1u8, 2]), t::<i32>(&[0], &[]), t::<u8>(&[0], &[])];
    check(Prim::Scatter { combine: Combine::Set }, &xs, &t(&[2], &[1u8, 2]));
    let xs = [t(&[2], &[1u8, 2]), t(&[1], &[2i32]), t(&[1], &[255u8])];
    let e = fails(Prim::Scatter { combine: Combine::Set }, &xs);
    assert_eq!(e, OpError::Index { index: 2, extent: 2 });
}

#[test]
fn sorts_are_stable_with_nan_last() {
    let keys = t(&[6], &[2f32, f32::NAN, -0.0, 0.0, 2.0, -f32::INFINITY]);
    let tags = t(&[6], &[0i32, 1, 2, 3, 4, 5]);
    let sort = |descending| run(Prim::Sort { axis: 0, descending }, &[keys.clone(), tags.clone()]);
    let up = sort(false).unwrap();
    assert_same(&up[1], &t(&[6], &[5i32, 2, 3, 0, 4, 1]), "ascending");
    let down = sort(true).unwrap();
    assert_same(&down[1], &t(&[6], &[1i32, 0, 4, 2, 3, 5]), "descending");
    let x = t(&[2, 2, 1], &[3u8, 1, 0, 2]);
    check(Prim::Sort { axis: 1, descending: false }, &[x], &t(&[2, 2, 1], &[1u8, 3, 0, 2]));
    let x = t(&[2, 2], &[3u8, 1, 0, 2]);
    check(Prim::Sort { axis: 0, descending: false }, &[x], &t(&[2, 2], &[0u8, 1, 3, 2]));
    let x = t::<u8>(&[2, 0], &[]);
    check(Prim::Sort { axis: 1, descending: true }, &[x.clone()], &x);
}

#[test]
fn top_k_takes_the_first_of_equals() {
    let top = |x: &Tensor, axis, k: i64, largest| {
        let prim = Prim::TopK { axis, k: k.into(), largest };
        run(prim, std::slice::from_ref(x)).unwrap()
    };
    let x = t(&[5], &[1f32, 3.0, 3.0, f32::NAN, 2.0]);
    let got = top(&x, 0, 3, true);
    assert_same(&got[0], &t(&[3], &[f32::NAN, 3.0, 3.0]), "values");
    assert_same(&got[1], &t(&[3], &[3i64, 1, 2]), "indices");
    assert_same(&top(&x, 0, 2, false)[1], &t(&[2], &[0i64, 4]), "smallest");
    assert_same(&top(&x, 0, 0, false)[1], &t::<i64>(&[0], &[]), "none");
    let x = t(&[2, 3, 2], &[1i32, 12, 5, 10, 3, 11, 6, 1, 2, 2, 4, 3]);
    let got = top(&x, 1, 2, true);
    assert_same(&got[0], &t(&[2, 2, 2], &[5i32, 12, 3, 11, 6, 3, 4, 2]), "middle axis");
    assert_same(&got[1], &t(&[2, 2, 2], &[1i64, 0, 2, 2, 0, 2, 2, 1]), "middle axis");
}
