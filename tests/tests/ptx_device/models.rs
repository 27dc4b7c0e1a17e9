//! Models with random weights, as the builder makes them.

use kernelsmith::ir::build::{Builder, LoopStep, V};
use kernelsmith::ir::prim::{Monoid, WindowDim};
use kernelsmith::ir::testing;
use kernelsmith::ir::{DType, Dim, IrError, Module};

pub fn dims(d: &[i64]) -> Vec<Dim> {
    d.iter().map(|&d| d.into()).collect()
}

/// Weights whose products keep their size: deviation 1/sqrt(`fan_in`).
pub fn weight(b: &mut Builder, shape: &[usize], fan_in: usize, seed: u64) -> V {
    b.random_constant(DType::F32, shape, seed, 0.0, 1.0 / (fan_in as f64).sqrt()).unwrap()
}

/// A language model: tokens[T, B] -> embeddings -> LSTM -> logits[T, B, 50].
pub fn lstm() -> Module {
    const HIDDEN: usize = 32;
    let mut b = Builder::new("lstm");
    let (time, batch) = (b.symbol("time", 1, 64), b.symbol("batch", 1, 16));
    let tokens = b.input("tokens", DType::I64, vec![time.clone(), batch.clone()]);
    let table = weight(&mut b, &[50, HIDDEN], 1, 1);
    let (wx, wh) =
        (weight(&mut b, &[HIDDEN, 4 * HIDDEN], HIDDEN, 2), weight(&mut b, &[HIDDEN, 4 * HIDDEN], 64, 3));
    let out = weight(&mut b, &[HIDDEN, 50], HIDDEN, 4);
    let x = b.gather(table, tokens, 0).unwrap();
    let gates = b.matmul(x, wx).unwrap();
    let zero = b.full(DType::F32, &[batch, (HIDDEN as i64).into()], 0.0).unwrap();
    let trip = b.dim_value(&time).unwrap();
    let done = b
        .loop_::<IrError>(Some(trip), None, &[zero, zero], |b, t, state| {
            let (now, past) = (b.gather(gates, t, 0)?, b.matmul(state[0], wh)?);
            let sum = b.add(now, past)?;
            let parts = b.split(sum, 1, &dims(&[HIDDEN as i64; 4]))?;
            let (i, f, o) = (b.sigmoid(parts[0])?, b.sigmoid(parts[1])?, b.sigmoid(parts[2])?);
            let g = b.tanh(parts[3])?;
            let (kept, new) = (b.mul(f, state[1])?, b.mul(i, g)?);
            let c = b.add(kept, new)?;
            let shown = b.tanh(c)?;
            let h = b.mul(o, shown)?;
            Ok(LoopStep { cond: b.scalar(DType::Bool, 1.0)?, carried: vec![h, c], scans: vec![h] })
        })
        .unwrap();
    let logits = b.matmul(done[2], out).unwrap();
    b.finish(&[("logits".into(), logits), ("hidden".into(), done[0])]).unwrap()
}

pub fn softmax(b: &mut Builder, x: V, axis: usize) -> V {
    testing::softmax(b, x, axis).unwrap()
}

pub fn normalise(b: &mut Builder, x: V) -> V {
    let mean = b.reduce_mean(x, &[2], true).unwrap();
    let apart = b.sub(x, mean).unwrap();
    let square = b.mul(apart, apart).unwrap();
    let variance = b.reduce_mean(square, &[2], true).unwrap();
    let more = b.add_scalar(variance, 1e-5).unwrap();
    let deviation = b.sqrt(more).unwrap();
    b.div(apart, deviation).unwrap()
}

/// One encoder layer: x[B, S, 64], 4 heads of 16, feed-forward of 128.
pub fn bert() -> Module {
    let mut b = Builder::new("bert");
    let (batch, seq) = (b.symbol("batch", 1, 8), b.symbol("seq", 1, 128));
    let x = b.input("x", DType::F32, vec![batch.clone(), seq.clone(), 64.into()]);
    let mut heads = Vec::new();
    for seed in 0..3 {
        let w = weight(&mut b, &[64, 64], 64, 10 + seed);
        let p = b.matmul(x, w).unwrap();
        let split = b.reshape(p, &[batch.clone(), seq.clone(), 4.into(), 16.into()]).unwrap();
        heads.push(b.transpose(split, &[0, 2, 1, 3]).unwrap());
    }
    let keys = b.transpose(heads[1], &[0, 1, 3, 2]).unwrap();
    let scores = b.matmul(heads[0], keys).unwrap();
    let scaled = b.mul_scalar(scores, 0.25).unwrap();
    let weights = softmax(&mut b, scaled, 3);
    let mixed = b.matmul(weights, heads[2]).unwrap();
    let back = b.transpose(mixed, &[0, 2, 1, 3]).unwrap();
    let joined = b.reshape(back, &[batch, seq, 64.into()]).unwrap();
    let w = weight(&mut b, &[64, 64], 64, 20);
    let attended = b.matmul(joined, w).unwrap();
    let sum = b.add(x, attended).unwrap();
    let h = normalise(&mut b, sum);
    let (up, down) = (weight(&mut b, &[64, 128], 64, 21), weight(&mut b, &[128, 64], 128, 22));
    let wide = b.matmul(h, up).unwrap();
    let scaled = b.mul_scalar(wide, std::f64::consts::FRAC_1_SQRT_2).unwrap();
    let erf = b.erf(scaled).unwrap();
    let one = b.add_scalar(erf, 1.0).unwrap();
    let gate = b.mul_scalar(one, 0.5).unwrap();
    let gelu = b.mul(wide, gate).unwrap();
    let narrow = b.matmul(gelu, down).unwrap();
    let sum = b.add(h, narrow).unwrap();
    let y = normalise(&mut b, sum);
    b.finish(&[("y".into(), y)]).unwrap()
}

/// A convolution over square images, `same` padding, and its ReLU.
pub fn conv(
    b: &mut Builder,
    x: V,
    (from, to): (usize, usize),
    (size, stride): (usize, i64),
    relu: bool,
) -> V {
    let w = weight(b, &[to, from, size, size], from * size * size, (from * 100 + to * 10 + size) as u64);
    let pad: Dim = (size as i64 / 2).into();
    let window = WindowDim { stride, pad_lo: pad.clone(), pad_hi: pad, ..WindowDim::unit() };
    let y = b.convolve(x, w, &[window.clone(), window], 1, DType::F32).unwrap();
    if !relu {
        return y;
    }
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    b.max(y, zero).unwrap()
}

/// images[N, 3, 16, 16] -> stem, max pooling, two residual blocks, mean, 10 classes.
pub fn resnet() -> Module {
    let mut b = Builder::new("resnet");
    let n = b.symbol("batch", 1, 8);
    let x = b.input("images", DType::F32, vec![n, 3.into(), 16.into(), 16.into()]);
    let stem = conv(&mut b, x, (3, 16), (3, 1), true);
    let window = WindowDim { stride: 2, pad_lo: 1.into(), pad_hi: 1.into(), ..WindowDim::unit() };
    let units = [WindowDim::unit(), WindowDim::unit(), window.clone(), window];
    let pooled = b.window_reduce(Monoid::Max, stem, &[1, 1, 3, 3], &units).unwrap();
    let a = conv(&mut b, pooled, (16, 16), (3, 1), true);
    let a = conv(&mut b, a, (16, 16), (3, 1), false);
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    let sum = b.add(a, pooled).unwrap();
    let first = b.max(sum, zero).unwrap();
    let c = conv(&mut b, first, (16, 32), (3, 2), true);
    let c = conv(&mut b, c, (32, 32), (3, 1), false);
    let skip = conv(&mut b, first, (16, 32), (1, 2), false);
    let sum = b.add(c, skip).unwrap();
    let second = b.max(sum, zero).unwrap();
    let mean = b.reduce_mean(second, &[2, 3], false).unwrap();
    let w = weight(&mut b, &[32, 10], 32, 99);
    let y = b.matmul(mean, w).unwrap();
    b.finish(&[("classes".into(), y)]).unwrap()
}
