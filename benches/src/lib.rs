//! Workloads of the benchmarks: single kernels as graphs, made with the public builder.

use kernelsmith::ir::build::Builder;
use kernelsmith::ir::prim::WindowDim;
use kernelsmith::ir::testing;
use kernelsmith::ir::{DType, IrError, Module};

/// `x f32[m, k] * w f32[k, n]` with a constant `w`, as in a linear layer.
pub fn linear(m: i64, n: i64, k: i64) -> Result<Module, IrError> {
    let mut b = Builder::new("linear");
    let x = b.input("x", DType::F32, vec![m.into(), k.into()]);
    let w = b.random_constant(DType::F32, &[k as usize, n as usize], 1, 0.0, 0.05)?;
    let y = b.matmul(x, w)?;
    b.finish(&[("y".into(), y)])
}

/// 2-D convolution of f32[1, ci, size, size] with `co` filters of kernel x kernel, padded to keep the size.
pub fn convolution(ci: i64, co: i64, size: i64, kernel: i64) -> Result<Module, IrError> {
    let mut b = Builder::new("convolution");
    let x = b.input("x", DType::F32, vec![1.into(), ci.into(), size.into(), size.into()]);
    let shape = [co as usize, ci as usize, kernel as usize, kernel as usize];
    let w = b.random_constant(DType::F32, &shape, 2, 0.0, 0.05)?;
    let pad = (kernel - 1) / 2;
    let dim = WindowDim { pad_lo: pad.into(), pad_hi: pad.into(), ..WindowDim::unit() };
    let y = b.convolve(x, w, &[dim.clone(), dim], 1, DType::F32)?;
    b.finish(&[("y".into(), y)])
}

/// Softmax over the rows of f32[rows, cols].
pub fn softmax(rows: i64, cols: i64) -> Result<Module, IrError> {
    let mut b = Builder::new("softmax");
    let x = b.input("x", DType::F32, vec![rows.into(), cols.into()]);
    let y = testing::softmax(&mut b, x, 1)?;
    b.finish(&[("y".into(), y)])
}

/// `tanh(x) * x` over f32[n]: one pass over memory.
pub fn elementwise(n: i64) -> Result<Module, IrError> {
    let mut b = Builder::new("elementwise");
    let x = b.input("x", DType::F32, vec![n.into()]);
    let t = b.tanh(x)?;
    let y = b.mul(t, x)?;
    b.finish(&[("y".into(), y)])
}
