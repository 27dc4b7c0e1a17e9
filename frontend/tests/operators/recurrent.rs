//! Recurrent layers against a loop over single numbers.

use crate::model::{A, In, close, noise, run, values};
use ir::Tensor;

const T: usize = 4;
const B: usize = 2;
const I: usize = 3;
const H: usize = 2;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

struct Weights {
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor,
}

fn weights(gates: usize, directions: usize) -> Weights {
    Weights {
        x: noise(&[T, B, I], 1),
        w: noise(&[directions, gates * H, I], 2),
        r: noise(&[directions, gates * H, H], 3),
        bias: noise(&[directions, 2 * gates * H], 4),
    }
}

/// Gate `g` of unit `u` from the input at (t, b) and the state `h`: (input part, recurrent part).
fn gate(
    k: &Weights,
    gates: usize,
    d: usize,
    g: usize,
    u: usize,
    at: (usize, usize),
    h: &[f64],
) -> (f64, f64) {
    let (x, w, r, bias) = (values(&k.x), values(&k.w), values(&k.r), values(&k.bias));
    let row = d * gates * H + g * H + u;
    let input: f64 = (0..I).map(|i| x[(at.0 * B + at.1) * I + i] * w[row * I + i]).sum();
    let state: f64 = (0..H).map(|j| h[j] * r[row * H + j]).sum();
    let first = d * 2 * gates * H + g * H + u;
    (input + bias[first], state + bias[first + gates * H])
}

/// One LSTM cell for sequence `b` of length `len`: (outputs by time, last h, last c).
fn lstm(k: &Weights, d: usize, b: usize, len: usize, backward: bool) -> (Vec<Vec<f64>>, Vec<f64>, Vec<f64>) {
    let (mut h, mut c) = (vec![0.0; H], vec![0.0; H]);
    let mut out = vec![vec![0.0; H]; T];
    let steps: Vec<usize> = if backward { (0..len).rev().collect() } else { (0..len).collect() };
    for t in steps {
        let pre = |g: usize, u: usize| {
            let (x, r) = gate(k, 4, d, g, u, (t, b), &h);
            x + r
        };
        let next: Vec<(f64, f64)> = (0..H)
            .map(|u| {
                let (i, o, f, g) =
                    (sigmoid(pre(0, u)), sigmoid(pre(1, u)), sigmoid(pre(2, u)), pre(3, u).tanh());
                let cell = f * c[u] + i * g;
                (o * cell.tanh(), cell)
            })
            .collect();
        (h, c) = next.into_iter().unzip();
        out[t].clone_from(&h);
    }
    (out, h, c)
}

#[test]
fn lstm_in_both_directions_stops_at_the_end_of_each_sequence() {
    let k = weights(4, 2);
    let lens = [4usize, 2];
    let lengths = Tensor::from_i32(vec![B], &[4, 2]);
    let inputs = [&k.x, &k.w, &k.r, &k.bias, &lengths].map(In::Fed);
    let out = run(
        "",
        "LSTM",
        14,
        &[("hidden_size", A::I(H as i64)), ("direction", A::S("bidirectional"))],
        &inputs,
        3,
    );
    let mut y = vec![0.0; T * 2 * B * H];
    let (mut hs, mut cs) = (Vec::new(), Vec::new());
    for d in 0..2 {
        for (b, &len) in lens.iter().enumerate() {
            let (outs, h, c) = lstm(&k, d, b, len, d == 1);
            for (t, o) in outs.iter().enumerate() {
                y[((t * 2 + d) * B + b) * H..][..H].copy_from_slice(o);
            }
            hs.extend(h);
            cs.extend(c);
        }
    }
    close(&out[0], &[T, 2, B, H], &y, 1e-5);
    close(&out[1], &[2, B, H], &hs, 1e-5);
    close(&out[2], &[2, B, H], &cs, 1e-5);
}

#[test]
fn gru_resets_before_or_after_the_product() {
    let k = weights(3, 1);
    for linear in [false, true] {
        let inputs = [&k.x, &k.w, &k.r, &k.bias].map(In::Fed);
        let attrs = [("hidden_size", A::I(H as i64)), ("linear_before_reset", A::I(linear.into()))];
        let out = run("", "GRU", 14, &attrs, &inputs, 2);
        let mut y = vec![0.0; T * B * H];
        for b in 0..B {
            let mut h = vec![0.0; H];
            for t in 0..T {
                let at = (t, b);
                let reset: Vec<f64> = (0..H)
                    .map(|u| {
                        let (x, r) = gate(&k, 3, 0, 1, u, at, &h);
                        sigmoid(x + r)
                    })
                    .collect();
                let scaled: Vec<f64> = h.iter().zip(&reset).map(|(h, r)| h * r).collect();
                h = (0..H)
                    .map(|u| {
                        let (zx, zr) = gate(&k, 3, 0, 0, u, at, &h);
                        let z = sigmoid(zx + zr);
                        let n = if linear {
                            let (x, r) = gate(&k, 3, 0, 2, u, at, &h);
                            (x + reset[u] * r).tanh()
                        } else {
                            let (x, r) = gate(&k, 3, 0, 2, u, at, &scaled);
                            (x + r).tanh()
                        };
                        (1.0 - z) * n + z * h[u]
                    })
                    .collect();
                y[(t * B + b) * H..][..H].copy_from_slice(&h);
            }
        }
        close(&out[0], &[T, 1, B, H], &y, 1e-5);
    }
}

#[test]
fn a_layer_without_time_steps_returns_its_initial_state() {
    let k = weights(1, 1);
    let x = noise(&[0, B, I], 1);
    let h = noise(&[1, B, H], 9);
    let inputs = [In::Fed(&x), In::Fed(&k.w), In::Fed(&k.r), In::None, In::None, In::Fed(&h)];
    let out = run("", "RNN", 14, &[("hidden_size", A::I(H as i64))], &inputs, 2);
    assert_eq!(out[0].shape, [0, 1, B, H]);
    close(&out[1], &[1, B, H], &values(&h), 0.0);
}
