//! Chains of kernels, compiled and run: the same results as the reference interpreter at several sizes.

use kernelsmith::driver::compile_lowered;
use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::build::Builder;
use kernelsmith::ir::prim::Monoid;
use kernelsmith::ir::{DType, Dim, Module, Tensor};
use kernelsmith::{CompileOptions, codegen};

fn data(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) % 4001) as f32 / 2000.0 - 1.0
    };
    let n: usize = shape.iter().product();
    let bytes = (0..n).flat_map(|_| next().to_le_bytes()).collect();
    Tensor::new(DType::F32, shape.to_vec(), bytes)
}

/// Compiled once for each backend, then run on each set of input shapes.
fn check(module: &Module, cases: &[Vec<Vec<usize>>]) {
    for backend in codegen::available() {
        let options = CompileOptions { backend: Some(backend.into()), threads: 2, ..Default::default() };
        let (compiled, lowered) = compile_lowered(module.clone(), &options).unwrap();
        let chains = lowered.kernels.iter().filter(|k| !k.kernel.stages.is_empty()).count();
        assert!(chains > 0, "no chain on {backend}");
        let mut context = compiled.context();
        for case in cases {
            let inputs: Vec<Tensor> = case.iter().zip(1..).map(|(s, i)| data(s, i)).collect();
            let want = Interp::new(module).run(&inputs).unwrap();
            let got = compiled.run(&mut context, &inputs).unwrap();
            let c = compare(&got[0], &want[0], Tolerance::of_network(DType::F32));
            assert!(c.passes(), "{case:?} on {backend}: {c}");
        }
    }
}

#[test]
fn attention_over_long_rows() {
    let mut b = Builder::new("attention");
    // long enough that scores of all heads leave the caches
    let n = b.symbol("batch", 0, 64);
    let [t, s] = ["queries", "keys"].map(|name| b.symbol(name, 1050, 4096));
    let (h, d) = (Dim::from(8), Dim::from(4));
    let q = b.input("q", DType::F32, vec![n.clone(), t.clone(), h.clone(), d.clone()]);
    let k = b.input("k", DType::F32, vec![n.clone(), s.clone(), h.clone(), d.clone()]);
    let v = b.input("v", DType::F32, vec![n, s, h, d]);
    let q = b.transpose(q, &[0, 2, 1, 3]).unwrap();
    let k = b.transpose(k, &[0, 2, 3, 1]).unwrap();
    let v = b.transpose(v, &[0, 2, 1, 3]).unwrap();
    let x = b.matmul(q, k).unwrap();
    let x = b.mul_scalar(x, 0.25).unwrap();
    let max = b.reduce(Monoid::Max, x, &[3], true).unwrap();
    let e = b.sub(x, max).unwrap();
    let e = b.exp(e).unwrap();
    let sum = b.reduce(Monoid::Sum, e, &[3], true).unwrap();
    let p = b.div(e, sum).unwrap();
    let y = b.matmul(p, v).unwrap();
    let y = b.transpose(y, &[0, 2, 1, 3]).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let sizes = [(1, 1050, 1050), (1, 1061, 1053), (0, 1050, 1060)];
    let cases: Vec<Vec<Vec<usize>>> =
        sizes.iter().map(|&(n, t, s)| vec![vec![n, t, 8, 4], vec![n, s, 8, 4], vec![n, s, 8, 4]]).collect();
    check(&m, &cases);
}
