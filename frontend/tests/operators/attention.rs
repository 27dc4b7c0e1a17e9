//! Attention and rotary embeddings against plain loops.

use crate::model::{A, In, close, f32s, noise, run, values};
use ir::Tensor;

/// q[hq, s, d], k and v [hk, t, d] of one batch; `sees(i, j)`.
fn naive(q: &[f64], k: &[f64], v: &[f64], dims: [usize; 5], sees: impl Fn(usize, usize) -> bool) -> Vec<f64> {
    let [hq, hk, s, t, d] = dims;
    let mut out = Vec::new();
    for h in 0..hq {
        let g = h / (hq / hk);
        for i in 0..s {
            let score = |j: usize| -> f64 {
                let dot: f64 = (0..d).map(|c| q[(h * s + i) * d + c] * k[(g * t + j) * d + c]).sum();
                if sees(i, j) { (dot / (d as f64).sqrt()).exp() } else { 0.0 }
            };
            let weights: Vec<f64> = (0..t).map(score).collect();
            let sum: f64 = weights.iter().sum();
            for c in 0..d {
                let x: f64 = (0..t).map(|j| weights[j] * v[(g * t + j) * d + c]).sum();
                out.push(if sum == 0.0 { 0.0 } else { x / sum });
            }
        }
    }
    out
}

#[test]
fn grouped_heads_with_a_past_see_what_came_before() {
    let (hq, hk, s, p, d) = (4, 2, 3, 2, 4);
    let (q, k, v) = (noise(&[1, hq, s, d], 1), noise(&[1, hk, s, d], 2), noise(&[1, hk, s, d], 3));
    let (pk, pv) = (noise(&[1, hk, p, d], 4), noise(&[1, hk, p, d], 5));
    let out = run(
        "",
        "Attention",
        23,
        &[("is_causal", A::I(1))],
        &[In::Fed(&q), In::Fed(&k), In::Fed(&v), In::None, In::Fed(&pk), In::Fed(&pv)],
        3,
    );
    let joined = |past: &Tensor, new: &Tensor| {
        let (past, new) = (values(past), values(new));
        (0..hk)
            .flat_map(|h| [&past[h * p * d..][..p * d], &new[h * s * d..][..s * d]].concat())
            .collect::<Vec<_>>()
    };
    let (fk, fv) = (joined(&pk, &k), joined(&pv, &v));
    let want = naive(&values(&q), &fk, &fv, [hq, hk, s, p + s, d], |i, j| j <= i + p);
    close(&out[0], &[1, hq, s, d], &want, 1e-5);
    close(&out[1], &[1, hk, p + s, d], &fk, 0.0);
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let (s, t, d) = (2, 3, 2);
    let (q, k, v) = (noise(&[1, 1, s, d], 1), noise(&[1, 1, t, d], 2), noise(&[1, 1, t, d], 3));
    let mask = Tensor::from_bool(vec![s, t], &[false, false, false, true, false, true]);
    let out = run("", "Attention", 23, &[], &[In::Fed(&q), In::Fed(&k), In::Fed(&v), In::Fed(&mask)], 1);
    let want = naive(&values(&q), &values(&k), &values(&v), [1, 1, s, t, d], |i, j| i == 1 && j != 1);
    close(&out[0], &[1, 1, s, d], &want, 1e-5);
}

#[test]
fn a_turn_keeps_lengths_and_composes() {
    let x = f32s(&[1, 1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let angle: f32 = 0.7;
    let (cos, sin) = (f32s(&[1, 1, 2], &[angle.cos(); 2]), f32s(&[1, 1, 2], &[angle.sin(); 2]));
    let (c, s) = (f64::from(angle.cos()), f64::from(angle.sin()));
    for (interleaved, want) in [
        (0, [c - 3.0 * s, 2.0 * c - 4.0 * s, s + 3.0 * c, 2.0 * s + 4.0 * c]),
        (1, [c - 2.0 * s, s + 2.0 * c, 3.0 * c - 4.0 * s, 3.0 * s + 4.0 * c]),
    ] {
        let attrs = [("interleaved", A::I(interleaved))];
        let out = run("", "RotaryEmbedding", 23, &attrs, &[&x, &cos, &sin].map(In::Fed), 1);
        close(&out[0], &[1, 1, 1, 4], &want, 1e-6);
    }
}
