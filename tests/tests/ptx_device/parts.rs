//! Long sums of few results, which a GPU computes in parts (`split-sums`): random shapes against the reference interpreter.

use super::{check, dims, options};
use kernelsmith::ir::build::{Builder, V};
use kernelsmith::ir::prim::{Monoid, WindowDim};
use kernelsmith::ir::testing::Rng;
use kernelsmith::ir::{DType, Module};
use kernelsmith::{arrays, compile_module};

/// Checks the results of the module, for random inputs of these shapes; whether it took more than one kernel.
fn in_parts(module: Module, shapes: &[Vec<usize>]) -> bool {
    let inputs: Vec<_> =
        shapes.iter().zip(1..).map(|(s, seed)| arrays::random(DType::F32, s.clone(), seed)).collect();
    let compiled = compile_module(module.clone(), &options()).unwrap();
    let mut context = compiled.context();
    compiled.run(&mut context, &inputs).unwrap();
    let parts = context.launches() > 1;
    check(module, &inputs);
    parts
}

fn of(shapes: &[Vec<usize>], f: impl FnOnce(&mut Builder, &[V]) -> V) -> Module {
    let mut b = Builder::new("parts");
    let size = |s: &[usize]| dims(&s.iter().map(|d| *d as i64).collect::<Vec<_>>());
    let inputs: Vec<V> =
        shapes.iter().enumerate().map(|(i, s)| b.input(format!("x{i}"), DType::F32, size(s))).collect();
    let y = f(&mut b, &inputs);
    b.finish(&[("y".into(), y)]).unwrap()
}

/// Of the cases of a test so many are in parts, at least.
const LEAST: usize = 4;

/// In `least..most`.
fn between(rng: &mut Rng, least: usize, most: usize) -> usize {
    least + rng.below(most - least)
}

/// Blocks of warps, and warps alone where there are few rows; operands either way round, batches, an epilogue.
#[test]
fn products() {
    let (mut rng, mut parts) = (Rng::new(3), 0);
    for case in 0..16 {
        let few = case % 2 == 1;
        let m = if few { between(&mut rng, 1, 6) } else { between(&mut rng, 24, 50) };
        let n = between(&mut rng, 24, 80);
        let k = 32 * between(&mut rng, 4, 15);
        let batch = 1 + case % 3;
        let shapes = [vec![batch, m, k], if case % 4 < 2 { vec![batch, k, n] } else { vec![batch, n, k] }];
        let module = of(&shapes, |b, x| {
            let w = if case % 4 < 2 { x[1] } else { b.transpose(x[1], &[0, 2, 1]).unwrap() };
            let y = b.matmul(x[0], w).unwrap();
            let y = b.add_scalar(y, 0.5).unwrap();
            b.tanh(y).unwrap()
        });
        parts += usize::from(in_parts(module, &shapes));
    }
    assert!(parts >= LEAST, "{parts} of them in parts");
}

#[test]
fn convolutions() {
    let (mut rng, mut parts) = (Rng::new(4), 0);
    for case in 0..8 {
        let (size, k) = (between(&mut rng, 5, 8), [1, 3][case % 2]);
        let (ci, co) = (16 * between(&mut rng, 4, 9), between(&mut rng, 24, 40));
        let shapes = [vec![1, ci, size, size], vec![co, ci, k, k]];
        let pad = kernelsmith::ir::Dim::from(k as i64 / 2);
        let window =
            WindowDim { stride: 1 + case as i64 / 4, pad_lo: pad.clone(), pad_hi: pad, ..WindowDim::unit() };
        let module = of(&shapes, |b, x| {
            b.convolve(x[0], x[1], &[window.clone(), window.clone()], 1, DType::F32).unwrap()
        });
        parts += usize::from(in_parts(module, &shapes));
    }
    assert!(parts >= LEAST, "{parts} of them in parts");
}

/// Every monoid, along first axes and middle ones, alone and together.
#[test]
fn reductions() {
    let (mut rng, mut parts) = (Rng::new(5), 0);
    let all = [Monoid::Sum, Monoid::Max, Monoid::Min, Monoid::Prod];
    for case in 0..12 {
        let n = 4 * between(&mut rng, 33, 120);
        let (shape, axes) = match case % 3 {
            0 => (vec![n, between(&mut rng, 1, 200)], vec![0]),
            1 => (vec![between(&mut rng, 1, 4), n, between(&mut rng, 1, 70)], vec![1]),
            _ => (vec![n, 3, between(&mut rng, 1, 70)], vec![0, 1]),
        };
        let shapes = [shape];
        let module = of(&shapes, |b, x| {
            // products of numbers near 1
            let small = b.mul_scalar(x[0], 0.01).unwrap();
            let near = b.add_scalar(small, 1.0).unwrap();
            b.reduce(all[case % 4], near, &axes, false).unwrap()
        });
        parts += usize::from(in_parts(module, &shapes));
    }
    assert!(parts >= LEAST, "{parts} of them in parts");
}
