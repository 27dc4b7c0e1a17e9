//! Reductions, contractions and convolutions.

// Rows of operands read better alike.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod common;

use common::*;
use ir::prim::{Monoid, WindowDim};
use ir::{DType, Dim, Prim, Tensor};

const NAN: f32 = f32::NAN;

fn reduce(monoid: Monoid, axes: &[usize]) -> Prim {
    Prim::Reduce { monoid, axes: axes.to_vec() }
}

#[test]
fn reductions() {
    use Monoid::*;
    let x = t(&[2, 3], &[1f32, 2., 3., 4., 5., 6.]);
    check(reduce(Sum, &[0]), &[x.clone()], &t(&[3], &[5f32, 7., 9.]));
    check(reduce(Sum, &[1]), &[x.clone()], &t(&[2], &[6f32, 15.]));
    check(reduce(Prod, &[0, 1]), &[x.clone()], &scalar(720f32));
    check(reduce(Max, &[1]), &[x.clone()], &t(&[2], &[3f32, 6.]));
    check(reduce(Min, &[0]), &[x.clone()], &t(&[3], &[1f32, 2., 3.]));
    check(reduce(Sum, &[]), &[x.clone()], &x);
    check(reduce(Sum, &[]), &[scalar(3i32)], &scalar(3i32));
    // NaN propagates
    let n = t(&[3], &[1f32, NAN, 2.]);
    check(reduce(Max, &[0]), &[n.clone()], &scalar(NAN));
    check(reduce(Min, &[0]), &[n], &scalar(NAN));
    // empty: the identity
    let empty = t::<f32>(&[2, 0], &[]);
    check(reduce(Sum, &[1]), &[empty.clone()], &t(&[2], &[0f32, 0.]));
    check(reduce(Prod, &[1]), &[empty.clone()], &t(&[2], &[1f32, 1.]));
    check(reduce(Max, &[1]), &[empty.clone()], &t(&[2], &[-f32::INFINITY; 2]));
    check(reduce(Sum, &[0]), &[empty], &t::<f32>(&[0], &[]));
    check(reduce(Min, &[0]), &[t::<i8>(&[0], &[])], &scalar(127i8));
    check(reduce(Max, &[0]), &[t::<bool>(&[0], &[])], &scalar(false));
    check(reduce(Max, &[0]), &[t(&[2], &[false, true])], &scalar(true));
    check(reduce(Min, &[0]), &[t(&[2], &[false, true])], &scalar(false));
    // integers wrap
    check(reduce(Sum, &[0]), &[t(&[3], &[i64::MAX, i64::MAX, 3])], &scalar(1i64));
    check(reduce(Prod, &[0]), &[t(&[2], &[200u8, 3])], &scalar(88u8));
    // one rounding at the end: 1 is lost when added to 2^24 in f32
    check(reduce(Sum, &[0]), &[t(&[3], &[16777216f32, 1., 1.])], &scalar(16777218f32));
    check(reduce(Sum, &[0]), &[f16s(&[2048., 1., 1.])], &Tensor { shape: vec![], ..f16s(&[2050.]) });
}

#[test]
fn extremes_by_index() {
    let arg = |max, last| Prim::ArgReduce { max, axis: 0, last };
    let x = t(&[4], &[1f32, 3., 3., 1.]);
    for (max, last, want) in [(true, false, 1i64), (true, true, 2), (false, false, 0), (false, true, 3)] {
        check(arg(max, last), &[x.clone()], &scalar(want));
    }
    let x = t(&[4], &[1f32, NAN, NAN, 9.]);
    for (max, last, want) in [(true, false, 1i64), (true, true, 2), (false, false, 1), (false, true, 2)] {
        check(arg(max, last), &[x.clone()], &scalar(want));
    }
    let x = t(&[2, 2, 2], &[1i32, 5, 2, 4, 8, 6, 7, 9]);
    check(Prim::ArgReduce { max: true, axis: 1, last: false }, &[x], &t(&[2, 2], &[1i64, 0, 0, 1]));
    let x = t::<i32>(&[0, 2], &[]);
    check(Prim::ArgReduce { max: true, axis: 1, last: false }, &[x], &t::<i64>(&[0], &[]));
}

#[test]
fn running_reductions() {
    let cum = |exclusive, reverse| Prim::Cumulative { monoid: Monoid::Sum, axis: 0, exclusive, reverse };
    let x = t(&[4], &[1i32, 2, 3, 4]);
    check(cum(false, false), &[x.clone()], &t(&[4], &[1i32, 3, 6, 10]));
    check(cum(true, false), &[x.clone()], &t(&[4], &[0i32, 1, 3, 6]));
    check(cum(false, true), &[x.clone()], &t(&[4], &[10i32, 9, 7, 4]));
    check(cum(true, true), &[x], &t(&[4], &[9i32, 7, 4, 0]));
    let x = t(&[2, 2], &[1i32, 5, 4, 2]);
    let max = Prim::Cumulative { monoid: Monoid::Max, axis: 0, exclusive: false, reverse: false };
    check(max, &[x], &t(&[2, 2], &[1i32, 5, 4, 5]));
    check(cum(false, false), &[t::<i32>(&[0, 3], &[])], &t::<i32>(&[0, 3], &[]));
}

fn w(stride: i64, lo: i64, hi: i64, dilation: i64, base_dilation: i64) -> WindowDim {
    WindowDim { stride, pad_lo: lo.into(), pad_hi: hi.into(), dilation, base_dilation }
}

#[test]
fn windows() {
    let win = |monoid, size, window| Prim::WindowReduce { monoid, size: vec![size], window: vec![window] };
    let x = t(&[5], &[1f32, 2., 3., 4., 5.]);
    let row = |monoid, size, window, want: &[f32]| {
        check(win(monoid, size, window), &[x.clone()], &t(&[want.len()], want));
    };
    row(Monoid::Sum, 2, w(1, 0, 0, 1, 1), &[3., 5., 7., 9.]);
    row(Monoid::Sum, 2, w(2, 1, 0, 1, 1), &[1., 5., 9.]);
    row(Monoid::Max, 3, w(2, 1, 1, 1, 1), &[2., 4., 5.]);
    row(Monoid::Sum, 2, w(1, 0, 0, 2, 1), &[4., 6., 8.]);
    // negative padding crops
    row(Monoid::Sum, 1, w(1, -1, -2, 1, 1), &[2., 3.]);
    // holes between inputs are identity
    row(Monoid::Sum, 2, w(1, 0, 0, 1, 2), &[1., 2., 2., 3., 3., 4., 4., 5.]);
    // a window outside of the input, and one larger than it
    row(Monoid::Max, 1, w(5, 1, 3, 1, 1), &[-f32::INFINITY, 5.]);
    row(Monoid::Sum, 8, w(1, 2, 2, 1, 1), &[15., 15.]);
    row(Monoid::Sum, 4, w(1, 4, 0, 3, 1), &[] as &[f32]);
    let x = t(&[1, 2, 3], &[1i32, 2, 3, 4, 5, 6]);
    let prim = Prim::WindowReduce {
        monoid: Monoid::Sum,
        size: vec![2, 2],
        window: vec![WindowDim::unit(), w(1, 0, 1, 1, 1)],
    };
    check(prim, &[x], &t(&[1, 1, 3], &[12i32, 16, 9]));
    let prim = Prim::WindowReduce { monoid: Monoid::Sum, size: vec![1], window: vec![w(1, 1, 1, 1, 3)] };
    check(prim, &[t::<f32>(&[0], &[])], &t(&[2], &[0f32, 0.]));
    let prim = Prim::WindowReduce { monoid: Monoid::Sum, size: vec![], window: vec![] };
    check(prim, &[scalar(4i32)], &scalar(4i32));
}

fn contract(batch: &[(usize, usize)], reduce: &[(usize, usize)], acc: DType) -> Prim {
    Prim::Contract { batch: batch.to_vec(), reduce: reduce.to_vec(), acc }
}

#[test]
fn contractions() {
    let (a, b) = (t(&[2, 2], &[1f32, 2., 3., 4.]), t(&[2, 2], &[5f32, 6., 7., 8.]));
    let f = DType::F32;
    let ab = [a.clone(), b.clone()];
    check(contract(&[], &[(1, 0)], f), &ab, &t(&[2, 2], &[19f32, 22., 43., 50.]));
    check(contract(&[], &[(1, 1)], f), &ab, &t(&[2, 2], &[17f32, 23., 39., 53.]));
    check(contract(&[], &[(0, 0), (1, 1)], f), &ab, &scalar(70f32));
    check(contract(&[(0, 0)], &[(1, 1)], f), &ab, &t(&[2], &[17f32, 53.]));
    check(contract(&[(0, 0), (1, 1)], &[], f), &ab, &t(&[2, 2], &[5f32, 12., 21., 32.]));
    let outer = t(&[2, 1, 1, 2], &[5f32, 6., 10., 12.]);
    let thin = [t(&[2, 1], &[1f32, 2.]), t(&[1, 2], &[5f32, 6.])];
    check(contract(&[], &[], f), &thin, &outer);
    // nothing to sum, nothing to yield
    let empty = [t::<f32>(&[2, 0], &[]), t::<f32>(&[0, 1], &[])];
    check(contract(&[], &[(1, 0)], f), &empty, &t(&[2, 1], &[0f32, 0.]));
    let empty = [t::<f32>(&[0, 2], &[]), b];
    check(contract(&[], &[(1, 0)], f), &empty, &t::<f32>(&[0, 2], &[]));
    // bytes of both signs, exactly
    let bytes = [t(&[1, 2], &[255u8, 255]), t(&[2, 1], &[-128i8, -128])];
    check(contract(&[], &[(1, 0)], DType::I32), &bytes, &t(&[1, 1], &[-65280i32]));
    let wrap = [t(&[1, 2], &[i64::MAX, 1]), t(&[2, 1], &[2i64, 5])];
    check(contract(&[], &[(1, 0)], DType::I64), &wrap, &t(&[1, 1], &[3i64]));
    // halves round once
    let halves = [f16s(&[2048., 1., 1.]), f16s(&[1., 1., 1.])];
    let want = Tensor { shape: vec![], ..f16s(&[2050.]) };
    check(contract(&[], &[(0, 0)], DType::F16), &halves, &want);
}

/// Sizes beyond every block against sums written down directly.
#[test]
fn contraction_blocks() {
    let (m, k, n) = (3, 261, 300);
    let value = |i: usize| (i % 17) as i32 - 8;
    let a: Vec<i32> = (0..m * k).map(value).collect();
    let b: Vec<i32> = (0..n * k).map(|i| value(i * 7 + 3)).collect();
    let want: Vec<i32> =
        (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum()).collect();
    let prim = contract(&[], &[(1, 1)], DType::I32);
    check(prim.clone(), &[t(&[m, k], &a), t(&[n, k], &b)], &t(&[m, n], &want));
    let floats = |v: &[i32]| v.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let prim = contract(&[], &[(1, 1)], DType::F32);
    let ab = [t(&[m, k], &floats(&a)), t(&[n, k], &floats(&b))];
    check(prim, &ab, &t(&[m, n], &floats(&want)));
    // more rows than a block
    let a: Vec<i32> = (0..1500).map(value).collect();
    let want: Vec<i32> = a.iter().map(|x| x * 3).collect();
    let ab = [t(&[1500, 1], &a), t(&[1], &[3])];
    check(contract(&[], &[(1, 0)], DType::I32), &ab, &t(&[1500], &want));
}

fn convolve(window: Vec<WindowDim>, groups: usize, acc: DType) -> Prim {
    Prim::Convolve { window, groups, acc }
}

#[test]
fn convolutions() {
    let f = DType::F32;
    let x = t(&[1, 1, 4], &[1f32, 2., 3., 4.]);
    let k = t(&[1, 1, 2], &[10f32, 1.]);
    let row = |window, want: &[f32]| {
        let want = t(&[1, 1, want.len()], want);
        check(convolve(vec![window], 1, f), &[x.clone(), k.clone()], &want);
    };
    row(w(1, 0, 0, 1, 1), &[12., 23., 34.]);
    row(w(1, 1, 1, 1, 1), &[1., 12., 23., 34., 40.]);
    row(w(2, 0, 0, 1, 1), &[12., 34.]);
    row(w(1, 0, 0, 2, 1), &[13., 24.]);
    row(w(1, -1, 0, 1, 1), &[23., 34.]);
    // transposed: zeros between the inputs
    row(w(1, 1, 1, 1, 2), &[1., 10., 2., 20., 3., 30., 4., 40.]);
    // no spatial dims at all
    let (x, k) = (t(&[2, 2], &[1f32, 2., 3., 4.]), t(&[1, 2], &[10f32, 1.]));
    check(convolve(vec![], 1, f), &[x, k], &t(&[2, 1], &[12f32, 34.]));
    // groups: each output channel reads its own input channel
    let x = t(&[1, 2, 2], &[1i8, 2, 3, 4]);
    let k = t(&[4, 1, 1], &[1u8, 2, 3, 255]);
    let want = t(&[1, 4, 2], &[1i32, 2, 2, 4, 9, 12, 765, 1020]);
    check(convolve(vec![WindowDim::unit()], 2, DType::I32), &[x, k], &want);
    // two spatial dims, two images
    let x = t(&[2, 1, 2, 2], &[1f32, 2., 3., 4., 5., 6., 7., 8.]);
    let k = t(&[1, 1, 2, 2], &[1f32, 10., 100., 1000.]);
    let unit = || vec![WindowDim::unit(), WindowDim::unit()];
    check(convolve(unit(), 1, f), &[x.clone(), k], &t(&[2, 1, 1, 1], &[4321f32, 8765.]));
    let none = t::<f32>(&[0, 1, 2, 2], &[]);
    check(convolve(unit(), 1, f), &[x, none], &t::<f32>(&[2, 0, 1, 1], &[]));
    let (x, k) = (t::<f32>(&[1, 0, 2], &[]), t::<f32>(&[2, 0, 1], &[]));
    check(convolve(vec![WindowDim::unit()], 1, f), &[x, k], &t(&[1, 2, 2], &[0f32; 4]));
}

/// Against the definition, for sizes beyond a block and all features at once.
#[test]
fn convolution_by_definition() {
    let (n, groups, ci, co) = (2, 2, 3, 2);
    let (h, wd, kh, kw) = (19, 23, 3, 2);
    let x: Vec<i32> = (0..n * groups * ci * h * wd).map(|i| (i * 31 % 13) as i32 - 6).collect();
    let k: Vec<i32> = (0..groups * co * ci * kh * kw).map(|i| (i * 17 % 11) as i32 - 5).collect();
    let window = [w(2, 1, 3, 2, 1), w(1, 2, -1, 1, 2)];
    let extent = |d: usize, i: usize, k: usize| {
        let v = &window[d];
        let pads = v.pad_lo.as_const().unwrap() + v.pad_hi.as_const().unwrap();
        let spread = (i as i64 - 1) * v.base_dilation + 1 + pads;
        ((spread - ((k as i64 - 1) * v.dilation + 1)) / v.stride + 1) as usize
    };
    let (oh, ow) = (extent(0, h, kh), extent(1, wd, kw));
    let read = |d: usize, o: usize, k: usize, n: usize| {
        let v = &window[d];
        let p = o as i64 * v.stride + k as i64 * v.dilation - v.pad_lo.as_const().unwrap();
        let i = p / v.base_dilation;
        (p >= 0 && p % v.base_dilation == 0 && i < n as i64).then_some(i as usize)
    };
    let mut want = Vec::new();
    for (b, f) in (0..n).flat_map(|b| (0..groups * co).map(move |f| (b, f))) {
        for (y, z) in (0..oh).flat_map(|y| (0..ow).map(move |z| (y, z))) {
            let mut sum = 0;
            for c in 0..ci {
                for (r, s) in (0..kh).flat_map(|r| (0..kw).map(move |s| (r, s))) {
                    if let (Some(i), Some(j)) = (read(0, y, r, h), read(1, z, s, wd)) {
                        let channel = (b * groups + f / co) * ci + c;
                        sum += x[(channel * h + i) * wd + j] * k[((f * ci + c) * kh + r) * kw + s];
                    }
                }
            }
            want.push(sum);
        }
    }
    let prim = convolve(window.to_vec(), groups, DType::I32);
    let xs = [t(&[n, groups * ci, h, wd], &x), t(&[groups * co, ci, kh, kw], &k)];
    check(prim, &xs, &t(&[n, groups * co, oh, ow], &want));
}

#[test]
fn symbolic_padding_is_evaluated() {
    let pad = Dim::from(1);
    let window = vec![WindowDim { pad_lo: pad.clone(), pad_hi: pad, ..WindowDim::unit() }];
    let xs = [t(&[1, 1, 1], &[3f32]), t(&[1, 1, 3], &[1f32, 10., 100.])];
    check(convolve(window, 1, DType::F32), &xs, &t(&[1, 1, 1], &[30f32]));
}
