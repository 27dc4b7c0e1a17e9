//! Normalisations, activations, transforms and samplers where they could go wrong.

use crate::model::{A, In, close, f32s, noise, one, run, values};
use ir::Tensor;

#[test]
fn softmax_before_version_13_takes_all_later_axes_together() {
    let x = noise(&[2, 2, 3], 1);
    let v = values(&x);
    let want = |group: usize| -> Vec<f64> {
        v.chunks(group)
            .flat_map(|c| {
                let s: f64 = c.iter().map(|x| x.exp()).sum();
                c.iter().map(move |x| x.exp() / s).collect::<Vec<_>>()
            })
            .collect()
    };
    close(&one("Softmax", 11, &[], &[&x]), &[2, 2, 3], &want(6), 1e-6);
    close(&one("Softmax", 13, &[], &[&x]), &[2, 2, 3], &want(3), 1e-6);
}

#[test]
fn large_values_neither_overflow_nor_cancel() {
    let x = f32s(&[1, 4], &[1000.0, -1000.0, 0.0, 999.0]);
    let e = (-1f64).exp();
    close(&one("Softmax", 13, &[], &[&x]), &[1, 4], &[1.0 / (1.0 + e), 0.0, 0.0, e / (1.0 + e)], 1e-6);
    close(&one("Sigmoid", 13, &[], &[&x]), &[1, 4], &[1.0, 0.0, 0.5, 1.0], 1e-6);
    close(&one("Softplus", 1, &[], &[&x]), &[1, 4], &[1000.0, 0.0, 2f64.ln(), 999.0], 1e-6);
    // a variance of 1 beside a mean of 100000
    let x = f32s(&[1, 2], &[100_001.0, 99_999.0]);
    let y = one("LayerNormalization", 17, &[("epsilon", A::F(0.0))], &[&x, &f32s(&[2], &[1.0; 2])]);
    close(&y, &[1, 2], &[1.0, -1.0], 1e-6);
}

#[test]
fn group_normalisation_changed_its_scale_in_version_21() {
    let x = f32s(&[1, 4, 1], &[1.0, 3.0, 5.0, 9.0]);
    let attrs = || [("num_groups", A::I(2)), ("epsilon", A::F(0.0))];
    let y =
        one("GroupNormalization", 18, &attrs(), &[&x, &f32s(&[2], &[2.0, 3.0]), &f32s(&[2], &[0.0, 1.0])]);
    close(&y, &[1, 4, 1], &[-2.0, 2.0, -2.0, 4.0], 1e-6);
    let four = |v: [f32; 4]| f32s(&[4], &v);
    let y = one(
        "GroupNormalization",
        21,
        &attrs(),
        &[&x, &four([1.0, 2.0, 3.0, 4.0]), &four([0.0, 0.0, 1.0, 1.0])],
    );
    close(&y, &[1, 4, 1], &[-1.0, 2.0, -2.0, 5.0], 1e-6);
}

#[test]
fn determinants_need_row_exchanges() {
    let x = f32s(&[3, 2, 2], &[0.0, 2.0, 3.0, 4.0, 1.0, 2.0, 2.0, 4.0, 5.0, 1.0, 1.0, 2.0]);
    close(&one("Det", 11, &[], &[&x]), &[3], &[-6.0, 0.0, 9.0], 1e-6);
    close(&one("Det", 11, &[], &[&f32s(&[2, 0, 0], &[])]), &[2], &[1.0, 1.0], 0.0);
}

#[test]
fn einsum_of_three_operands_and_a_diagonal() {
    let (a, b, c) = (noise(&[2, 3], 1), noise(&[3, 4], 2), noise(&[4, 4], 3));
    let y = one("Einsum", 12, &[("equation", A::S("ij, jk, kk -> ki"))], &[&a, &b, &c]);
    let (a, b, c) = (values(&a), values(&b), values(&c));
    let mut want = Vec::new();
    for k in 0..4 {
        for i in 0..2 {
            want.push((0..3).map(|j| a[i * 3 + j] * b[j * 4 + k]).sum::<f64>() * c[k * 4 + k]);
        }
    }
    close(&y, &[4, 2], &want, 1e-6);
}

#[test]
fn a_transform_and_its_inverse_of_half_the_bins() {
    let x = noise(&[1, 6, 1], 1);
    let half = one("DFT", 17, &[("onesided", A::I(1))], &[&x]);
    assert_eq!(half.shape, [1, 4, 2]);
    let n = Tensor::from_i64(vec![], &[6]);
    let attrs = [("inverse", A::I(1)), ("onesided", A::I(1))];
    let back = run("", "DFT", 17, &attrs, &[In::Fed(&half), In::Const(&n)], 1);
    close(&back[0], &[1, 6, 1], &values(&x), 1e-6);
    // an odd length has no middle bin
    let x = noise(&[1, 5, 1], 2);
    let half = one("DFT", 17, &[("onesided", A::I(1))], &[&x]);
    assert_eq!(half.shape, [1, 3, 2]);
    let n = Tensor::from_i64(vec![], &[5]);
    let attrs = [("inverse", A::I(1)), ("onesided", A::I(1))];
    let back = run("", "DFT", 17, &attrs, &[In::Fed(&half), In::Const(&n)], 1);
    close(&back[0], &[1, 5, 1], &values(&x), 1e-6);
}

/// Lengths of every radix, of several passes, and with a factor too large for the fast transform.
#[test]
fn transforms_of_many_lengths() {
    for n in [1usize, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 16, 17, 30, 60, 64] {
        let x = noise(&[2, n, 3, 2], n as u64);
        let v = values(&x);
        for (inverse, sign) in [(0, -1.0), (1, 1.0)] {
            let y = one("DFT", 17, &[("inverse", A::I(inverse))], &[&x]);
            let mut want = vec![0.0; v.len()];
            for (i, k, c, j) in (0..2).flat_map(|i| {
                (0..n).flat_map(move |k| (0..3).flat_map(move |c| (0..n).map(move |j| (i, k, c, j))))
            }) {
                let angle = sign * std::f64::consts::TAU * (j * k % n) as f64 / n as f64;
                let (from, to) = (((i * n + j) * 3 + c) * 2, ((i * n + k) * 3 + c) * 2);
                let scale = if inverse == 1 { n as f64 } else { 1.0 };
                want[to] += (v[from] * angle.cos() - v[from + 1] * angle.sin()) / scale;
                want[to + 1] += (v[from] * angle.sin() + v[from + 1] * angle.cos()) / scale;
            }
            close(&y, &[2, n, 3, 2], &want, 2e-5);
        }
    }
}

#[test]
fn samples_outside_an_image() {
    let x = f32s(&[1, 1, 1, 3], &[1.0, 2.0, 4.0]);
    // positions -2, -1, 3, 2.5 and NaN among the columns 0..=2
    let grid = f32s(&[1, 1, 5, 2], &[-3.0, 0.0, -2.0, 0.0, 2.0, 0.0, 1.5, 0.0, f32::NAN, 0.0]);
    for (mode, want) in [
        ("zeros", [0.0, 0.0, 0.0, 2.0, 0.0]),
        ("border", [1.0, 1.0, 4.0, 4.0, f64::NAN]),
        ("reflection", [4.0, 2.0, 2.0, 3.0, f64::NAN]),
    ] {
        let attrs = [("padding_mode", A::S(mode)), ("align_corners", A::I(1))];
        let y = one("GridSample", 16, &attrs, &[&x, &grid]);
        close(&y, &[1, 1, 1, 5], &want, 1e-6);
    }
}

#[test]
fn random_numbers_are_reproducible_and_in_range() {
    let shape = [("shape", A::Is(&[1000])), ("low", A::F(2.0)), ("high", A::F(3.0))];
    let (a, b) = (run("", "RandomUniform", 1, &shape, &[], 1), run("", "RandomUniform", 1, &shape, &[], 1));
    assert_eq!(values(&a[0]), values(&b[0]));
    assert!(values(&a[0]).iter().all(|x| (2.0..3.0).contains(x)));
    let n = run("", "RandomNormal", 1, &[("shape", A::Is(&[4000])), ("seed", A::F(7.0))], &[], 1);
    let v = values(&n[0]);
    let mean = v.iter().sum::<f64>() / 4000.0;
    let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4000.0;
    assert!(mean.abs() < 0.06 && (var - 1.0).abs() < 0.1, "{mean} {var}");
}

#[test]
fn dropout_scales_what_it_keeps() {
    let x = f32s(&[400], &[1.0; 400]);
    let (ratio, training) = (f32s(&[], &[0.75]), Tensor::from_bool(vec![], &[true]));
    let out = run("", "Dropout", 13, &[("seed", A::I(3))], &[&x, &ratio, &training].map(In::Fed), 2);
    let (y, kept) = (values(&out[0]), values(&out[1]));
    assert!(y.iter().zip(&kept).all(|(y, k)| *y == 4.0 * k));
    let count: f64 = kept.iter().sum();
    assert!((60.0..140.0).contains(&count), "{count}");
    let off = Tensor::from_bool(vec![], &[false]);
    let out = run("", "Dropout", 13, &[], &[&x, &ratio, &off].map(In::Fed), 2);
    assert!(values(&out[0]).iter().chain(&values(&out[1])).all(|&v| v == 1.0));
}

#[test]
fn losses_leave_ignored_classes_out_of_the_mean() {
    let scores = f32s(&[3, 2], &[1.0, 3.0, 2.0, 2.0, 5.0, 0.0]);
    let target = Tensor::from_i64(vec![3], &[0, -1, 0]);
    let weight = f32s(&[2], &[2.0, 1.0]);
    let y = one("NegativeLogLikelihoodLoss", 13, &[("ignore_index", A::I(-1))], &[&scores, &target, &weight]);
    close(&y, &[], &[-(2.0 * 1.0 + 2.0 * 5.0) / 4.0], 1e-6);
}

/// Values and positions of the maxima of x[n, c, h, w] by plain loops: the first maximum wins, padding never does.
fn maxima(x: &[f64], shape: [usize; 4], w: &Windows) -> (Vec<f64>, Vec<f64>) {
    let [n, c, height, width] = shape;
    let out = w.out(shape);
    let (mut values, mut positions) = (Vec::new(), Vec::new());
    for plane in 0..n * c {
        for o in 0..out[0] * out[1] {
            let at = [o / out[1], o % out[1]];
            let mut best: Option<(f64, usize)> = None;
            for tap in 0..w.kernel[0] * w.kernel[1] {
                let tap = [tap / w.kernel[1], tap % w.kernel[1]];
                let place =
                    |d: usize| (at[d] * w.strides[d] + tap[d] * w.dilations[d]).checked_sub(w.pads[d]);
                let (Some(i), Some(j)) = (place(0), place(1)) else { continue };
                if i >= height || j >= width {
                    continue;
                }
                let v = x[(plane * height + i) * width + j];
                if best.is_none_or(|(b, _)| v > b) {
                    let within = if w.column_major { i + j * height } else { i * width + j };
                    best = Some((v, plane * height * width + within));
                }
            }
            let (v, p) = best.expect("no window of padding alone");
            values.push(v);
            positions.push(p as f64);
        }
    }
    (values, positions)
}

struct Windows {
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    /// Before and after alike.
    pads: [usize; 2],
    column_major: bool,
}

impl Windows {
    fn out(&self, shape: [usize; 4]) -> [usize; 2] {
        [0, 1].map(|d| {
            let reach = (self.kernel[d] - 1) * self.dilations[d] + 1;
            (shape[2 + d] + 2 * self.pads[d] - reach) / self.strides[d] + 1
        })
    }
}

#[test]
fn the_first_of_equal_maxima_has_the_index() {
    let w = |kernel, strides, dilations, pads, column_major| Windows {
        kernel,
        strides,
        dilations,
        pads,
        column_major,
    };
    for (seed, w) in [
        w([2, 2], [2, 2], [1, 1], [0, 0], false),
        w([3, 2], [1, 2], [1, 1], [1, 0], false),
        w([3, 3], [2, 1], [2, 3], [2, 1], true),
        w([1, 4], [3, 3], [1, 2], [0, 3], true),
        w([20, 17], [1, 1], [1, 1], [4, 3], false),
    ]
    .iter()
    .enumerate()
    {
        let shape = [2, 3, 17, 19];
        // few different numbers, so that many are equal; one window all of the lowest
        let mut x: Vec<f32> =
            values(&noise(&shape, seed as u64)).iter().map(|v| (v * 2.0).round() as f32).collect();
        x[..19 * 4].fill(f32::NEG_INFINITY);
        let wide: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        let ints = |v: [usize; 2]| v.map(|i| i as i64);
        let (kernel, strides, dilations) = (ints(w.kernel), ints(w.strides), ints(w.dilations));
        let pads = [ints(w.pads), ints(w.pads)].concat();
        let attrs = [
            ("kernel_shape", A::Is(&kernel)),
            ("strides", A::Is(&strides)),
            ("dilations", A::Is(&dilations)),
            ("pads", A::Is(&pads)),
            ("storage_order", A::I(w.column_major.into())),
        ];
        let x = f32s(&shape, &x);
        let found = run("", "MaxPool", 12, &attrs, &[In::Fed(&x)], 2);
        let (want, at) = maxima(&wide, shape, w);
        let out = w.out(shape);
        let size = [2, 3, out[0], out[1]];
        assert_eq!(found[0].shape, size);
        assert_eq!(values(&found[0]), want, "{:?}", w.kernel);
        assert_eq!(values(&found[1]), at, "{:?}", w.kernel);
    }
}
