//! Operators of com.microsoft and ai.onnx.ml that ONNX Runtime has no CPU kernel for, and region pooling, against
//! other operators and plain loops. (`tests/python/test_contrib.py` has those that it does have.)

use crate::model::{A, In, close, f32s, import, noise, one, run, values};
use ir::Tensor;

const MS: &str = "com.microsoft";
const ML: &str = "ai.onnx.ml";

fn fed<'a>(inputs: &[&'a Tensor]) -> Vec<In<'a>> {
    inputs.iter().map(|t| In::Fed(t)).collect()
}

fn sum(parts: &[&Tensor]) -> Vec<f64> {
    let all: Vec<Vec<f64>> = parts.iter().map(|t| values(t)).collect();
    (0..all[0].len()).map(|i| all.iter().map(|p| p[i % p.len()]).sum()).collect()
}

#[test]
fn skip_group_norm_is_a_group_norm_of_the_sum() {
    let (n, h, w, c) = (2, 3, 2, 8);
    let (x, skip, bias) = (noise(&[n, h, w, c], 1), noise(&[n, h, w, c], 2), noise(&[c], 3));
    let (gamma, beta) = (noise(&[c], 4), noise(&[c], 5));
    let attrs = || [("groups", A::I(4)), ("activation", A::I(1)), ("epsilon", A::F(1e-4))];
    let got = run(MS, "SkipGroupNorm", 1, &attrs(), &fed(&[&x, &gamma, &beta, &skip, &bias]), 2);
    let total: Vec<f32> = sum(&[&x, &skip, &bias]).iter().map(|&v| v as f32).collect();
    let total = f32s(&[n, h, w, c], &total);
    let want = run(MS, "GroupNorm", 1, &attrs(), &fed(&[&total, &gamma, &beta]), 1);
    close(&got[0], &[n, h, w, c], &values(&want[0]), 1e-6);
    close(&got[1], &[n, h, w, c], &values(&total), 1e-6);

    // one skip for all places of an image
    let flat = noise(&[n, c], 6);
    let got = run(MS, "SkipGroupNorm", 1, &attrs(), &fed(&[&x, &gamma, &beta, &flat]), 2);
    let (xs, fs) = (values(&x), values(&flat));
    let want: Vec<f64> = (0..xs.len()).map(|i| xs[i] + fs[i / (h * w * c) * c + i % c]).collect();
    close(&got[1], &[n, h, w, c], &want, 1e-6);
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (heads, width, lens) = (2, 8, [3usize, 1, 4]);
    let tokens: usize = lens.iter().sum();
    let (x, w, bias) = (noise(&[tokens, width], 1), noise(&[width, 3 * width], 2), noise(&[3 * width], 3));
    let ints = |v: &[i32]| {
        Tensor::new(ir::DType::I32, vec![v.len()], v.iter().flat_map(|i| i.to_le_bytes()).collect())
    };
    let (offsets, ends) = (ints(&[0; 12]), ints(&[0, 3, 4, 8]));
    let attrs = || [("num_heads", A::I(heads))];
    let got = run(MS, "PackedAttention", 1, &attrs(), &fed(&[&x, &w, &bias, &offsets, &ends]), 1).remove(0);
    let mut want = Vec::new();
    let mut at = 0;
    for n in lens {
        let own: Vec<f32> = values(&x)[at * width..(at + n) * width].iter().map(|&v| v as f32).collect();
        let own = f32s(&[1, n, width], &own);
        want.extend(values(&run(MS, "Attention", 1, &attrs(), &fed(&[&own, &w, &bias]), 1)[0]));
        at += n;
    }
    close(&got, &[tokens, width], &want, 1e-5);
}

#[test]
fn one_token_over_given_keys_and_values() {
    let (b, heads, t, d) = (2usize, 2usize, 5usize, 4usize);
    let q = noise(&[b, 1, heads * d], 1);
    let (k, v) = (noise(&[b, heads, t, d], 2), noise(&[b, heads, t, d], 3));
    // [B, N, T, D] as [B, T, N * D]
    let merged = |x: &Tensor| {
        let x = values(x);
        let at = |i: usize| {
            let (n, j, h, c) = (i / (t * heads * d), i / (heads * d) % t, i / d % heads, i % d);
            x[((n * heads + h) * t + j) * d + c] as f32
        };
        f32s(&[b, t, heads * d], &(0..x.len()).map(at).collect::<Vec<_>>())
    };
    let attrs = || [("num_heads", A::I(heads as i64))];
    let got = run(MS, "DecoderMaskedMultiHeadAttention", 1, &attrs(), &fed(&[&q, &k, &v]), 1).remove(0);
    let want = run(MS, "MultiHeadAttention", 1, &attrs(), &fed(&[&q, &merged(&k), &merged(&v)]), 1).remove(0);
    close(&got, &[b, 1, heads * d], &values(&want), 1e-6);
}

#[test]
fn regions_share_the_pixels_at_their_borders() {
    let (h, w) = (6usize, 5usize);
    let x = noise(&[1, 1, h, w], 9);
    // corners belong to the region; the second lies outside
    let rois = f32s(&[2, 5], &[0.0, 1.0, 0.0, 3.0, 4.0, 0.0, 9.0, 9.0, 12.0, 12.0]);
    let got = one("MaxRoiPool", 22, &[("pooled_shape", A::Is(&[2, 2]))], &[&x, &rois]);
    let pixels = values(&x);
    let most = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
        let all = rows.flat_map(|r| cols.clone().map(move |c| (r, c)));
        all.map(|(r, c)| pixels[r * w + c]).fold(f64::NEG_INFINITY, f64::max)
    };
    // five rows in two bins of 2.5: 0..3 and 2..5; three columns in two of 1.5: 1..3 and 2..4
    let first = [most(0..3, 1..3), most(0..3, 2..4), most(2..5, 1..3), most(2..5, 2..4)];
    close(&got, &[2, 1, 2, 2], &[first.as_slice(), &[0.0; 4]].concat(), 0.0);
}

#[test]
fn maps_are_the_tensor_of_their_values() {
    let x = noise(&[4, 3], 2);
    let labels = [("classlabels_strings", A::Ss(&["a", "b", "c"]))];
    let got = run(ML, "ZipMap", 1, &labels, &[In::Fed(&x)], 1).remove(0);
    close(&got, &[4, 3], &values(&x), 0.0);
    let wrong = [("classlabels_int64s", A::Is(&[1, 2]))];
    let problems =
        import(ML, "ZipMap", 1, &wrong, &[In::Fed(&x)], 1).expect_err("two labels for three scores");
    assert!(problems[0].to_string().contains("3 scores for 2 labels"), "{}", problems[0]);
}
