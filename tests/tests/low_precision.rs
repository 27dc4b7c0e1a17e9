//! Products of bytes and of bf16 against the reference interpreter, on every backend.

use kernelsmith::interp::{Interp, Tolerance, compare};
use kernelsmith::ir::build::{Builder, V};
use kernelsmith::ir::host::Place;
use kernelsmith::ir::kernel::Dot;
use kernelsmith::ir::prim::{Attr, ConvertMode, Prim, WindowDim};
use kernelsmith::ir::{DType, Dim, IrError, Math, Module, Tensor};
use kernelsmith::{CompileOptions, codegen, compile_module, driver, passes};

/// Bytes that look random; `seed` chooses them.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 32) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn floats(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product();
    let x: Vec<f32> = bytes(n, seed).iter().map(|b| (f32::from(*b) - 127.5) / 64.0).collect();
    Tensor::from_f32(shape.to_vec(), &x)
}

fn tensor(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::new(dtype, shape.to_vec(), bytes(n, seed))
}

fn options(backend: &str, math: Math) -> CompileOptions {
    CompileOptions { backend: Some(backend.into()), math, threads: 2, ..Default::default() }
}

/// Runs `m` on every backend.
fn each(m: &Module, math: Math, inputs: &[Tensor], judge: &dyn Fn(&str, &[Tensor])) {
    for backend in codegen::available() {
        let compiled = compile_module(m.clone(), &options(backend, math)).unwrap();
        judge(backend, &compiled.run(&mut compiled.context(), inputs).unwrap());
    }
}

fn exact(m: &Module, inputs: &[Tensor], what: &str) {
    let want = Interp::new(m).run(inputs).unwrap();
    each(m, Math::Default, inputs, &|backend, got| {
        for (g, w) in got.iter().zip(&want) {
            let c = compare(g, w, Tolerance::EXACT);
            assert!(c.passes(), "{what}, {backend}: {c}");
        }
    });
}

#[test]
fn matrices_of_bytes_of_all_sizes() {
    let unsigned = [(DType::U8, DType::I8), (DType::I8, DType::U8), (DType::I8, DType::I8)];
    for (rows, depth, cols) in
        [(1, 4, 1), (1, 64, 50), (2, 12, 17), (5, 30, 16), (7, 8, 33), (33, 60, 48), (40, 128, 130)]
    {
        for (tx, tw) in unsigned {
            let mut b = Builder::new("bytes");
            let x = b.input("x", tx, vec![rows.into(), depth.into()]);
            let w = b.constant(tensor(tw, &[depth, cols], 3)).unwrap();
            let y = b.matmul_acc(x, w, DType::I32).unwrap();
            let m = b.finish(&[("y".into(), y)]).unwrap();
            exact(
                &m,
                &[tensor(tx, &[rows, depth], 5)],
                &format!("{rows} x {depth} x {cols} of {tx} and {tw}"),
            );
        }
    }
}

#[test]
fn rows_of_unknown_number() {
    let mut b = Builder::new("rows");
    let n = b.symbol("n", 1, 100);
    let x = b.input("x", DType::U8, vec![n, 32.into()]);
    let w = b.constant(tensor(DType::I8, &[32, 40], 7)).unwrap();
    let y = b.matmul_acc(x, w, DType::I32).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    for rows in [1, 3, 9, 50] {
        exact(&m, &[tensor(DType::U8, &[rows, 32], 9)], &format!("{rows} rows"));
    }
}

#[test]
fn convolutions_of_bytes() {
    // channels: of a picture, that fill words, that do not, in groups
    for (ci, co, groups, size, stride, pad) in [
        (3, 20, 1, 3, 2, 1),
        (2, 8, 1, 7, 1, 3),
        (16, 33, 1, 3, 1, 1),
        (6, 8, 1, 1, 1, 0),
        (16, 16, 2, 3, 1, 1),
        (24, 24, 24, 3, 1, 1),
    ] {
        let mut b = Builder::new("convolution");
        let x = b.input("x", DType::U8, vec![1.into(), ci.into(), 11.into(), 9.into()]);
        let w = b.constant(tensor(DType::I8, &[co, ci / groups, size, size], 11)).unwrap();
        let pad = Dim::from(pad as i64);
        let window = WindowDim { stride, pad_lo: pad.clone(), pad_hi: pad, ..WindowDim::unit() };
        let y = b.convolve(x, w, &[window.clone(), window], groups, DType::I32).unwrap();
        let m = b.finish(&[("y".into(), y)]).unwrap();
        exact(&m, &[tensor(DType::U8, &[1, ci, 11, 9], 13)], &format!("{ci} -> {co} in {groups}"));
    }
}

// ---- quantised networks, as exporters write them --------------------------------------------------

fn attrs() -> Vec<(String, Attr)> {
    vec![("axis".into(), Attr::Int(0)), ("block".into(), Attr::Int(0))]
}

fn dequantize(b: &mut Builder, x: V, scale: f64, zero: i64) -> V {
    let dtype = b.dtype(x);
    let scale = b.scalar(DType::F32, scale).unwrap();
    let zero = b.scalar(dtype, zero as f64).unwrap();
    let body = |b: &mut Builder, a: &[V]| -> Result<Vec<V>, IrError> {
        let (x, z) = (b.convert(a[0], DType::I32)?, b.convert(a[2], DType::I32)?);
        let x = b.sub(x, z)?;
        let x = b.convert(x, DType::F32)?;
        Ok(vec![b.mul(x, a[1])?])
    };
    b.call::<IrError>("dequantize_linear", attrs(), &[x, scale, zero], body).unwrap()[0]
}

fn quantize(b: &mut Builder, x: V, scale: f64, zero: i64, to: DType) -> V {
    let scale = b.scalar(DType::F32, scale).unwrap();
    let zero = b.scalar(to, zero as f64).unwrap();
    let body = |b: &mut Builder, a: &[V]| -> Result<Vec<V>, IrError> {
        let q = b.div(a[0], a[1])?;
        let q = b.round_even(q)?;
        let z = b.convert(a[2], DType::F32)?;
        let q = b.add(q, z)?;
        Ok(vec![b.convert_with(q, to, ConvertMode::Saturate)?])
    };
    b.call::<IrError>("quantize_linear", attrs(), &[x, scale, zero], body).unwrap()[0]
}

/// Two layers with a window of maxima between them, a bias, a cut at 0 and a residual, on bytes of `dtype`.
fn network(dtype: DType) -> Module {
    let zero = if dtype == DType::U8 { 121 } else { -7 };
    let mut b = Builder::new("network");
    let x = b.input("x", DType::F32, vec![1.into(), 8.into(), 10.into(), 10.into()]);
    let weights = |b: &mut Builder, shape: &[usize], seed| {
        let w = b.constant(tensor(DType::I8, shape, seed)).unwrap();
        dequantize(b, w, 0.01, 0)
    };
    let q = quantize(&mut b, x, 0.02, zero, dtype);
    let x = dequantize(&mut b, q, 0.02, zero);
    let w = weights(&mut b, &[16, 8, 3, 3], 1);
    let pad = WindowDim { pad_lo: 1.into(), pad_hi: 1.into(), ..WindowDim::unit() };
    let y = b.convolve(x, w, &[pad.clone(), pad.clone()], 1, DType::F32).unwrap();
    let bias = b.constant(floats(&[16, 1, 1], 17)).unwrap();
    let y = b.add(y, bias).unwrap();
    let none = b.scalar(DType::F32, 0.0).unwrap();
    let y = b.max(y, none).unwrap();
    let q = quantize(&mut b, y, 0.25, zero, dtype);
    let y = dequantize(&mut b, q, 0.25, zero);
    let max = kernelsmith::ir::Monoid::Max;
    let y = b.window_reduce(max, y, &[3, 3], &[pad.clone(), pad]).unwrap();
    let q = quantize(&mut b, y, 0.25, zero, dtype);
    let y = dequantize(&mut b, q, 0.25, zero);
    let w = weights(&mut b, &[16, 16, 1, 1], 2);
    let unit = WindowDim::unit();
    let z = b.convolve(y, w, &[unit.clone(), unit], 1, DType::F32).unwrap();
    let z = b.add(z, y).unwrap();
    let q = quantize(&mut b, z, 1.5, zero, dtype);
    b.finish(&[("q".into(), q)]).unwrap()
}

#[test]
fn quantised_networks_compute_in_bytes() {
    for dtype in [DType::U8, DType::I8] {
        let m = network(dtype);
        let x = [floats(&[1, 8, 10, 10], 23)];
        let want = Interp::new(&m).run(&x).unwrap();
        for math in [Math::Default, Math::Strict] {
            each(&m, math, &x, &|backend, got| {
                // a sum beside a rounding boundary may fall on its other side
                let c = compare(&got[0], &want[0], Tolerance { abs: 1.0, ..Tolerance::EXACT });
                assert!(c.passes(), "{dtype} {backend} {}: {c}", math.name());
            });
        }
        let products = |math| {
            let options = options(codegen::available()[0], math);
            let g = driver::compile_lowered(m.clone(), &options).unwrap().1.module.graph;
            let integer = |p: &Prim| matches!(p, Prim::Convolve { acc: DType::I32, .. });
            g.ops().filter(|(_, op)| integer(&op.prim)).count()
        };
        assert_eq!(products(Math::Default), 2);
        assert_eq!(products(Math::Strict), 0);
    }
}

#[test]
fn parameters_of_quantised_networks_stay_small() {
    let m = network(DType::I8);
    let lowered = driver::compile_lowered(m, &options(codegen::available()[0], Math::Default)).unwrap().1;
    let constant = |p: &Place| matches!(p, Place::Const(_) | Place::Init);
    for b in lowered.buffers.iter().filter(|b| b.dtype == DType::F32 && constant(&b.place)) {
        let elems: i64 = b.shape.iter().map(|d| d.as_const().unwrap()).product();
        assert!(elems <= 16, "{} has {elems} elements, one for each of an activation", b.name);
    }
}

// ---- bf16 -----------------------------------------------------------------------------------------

#[test]
fn products_of_floats_in_bf16() {
    for (rows, depth, cols) in [(1, 64, 40), (9, 33, 17), (30, 96, 64)] {
        let mut b = Builder::new("bf16");
        let x = b.input("x", DType::F32, vec![rows.into(), depth.into()]);
        let x2 = b.add(x, x).unwrap();
        let w = b.constant(floats(&[depth, cols], 29)).unwrap();
        let y = b.matmul(x2, w).unwrap();
        let v = b.constant(floats(&[cols, cols], 31)).unwrap();
        let z = b.matmul(y, v).unwrap();
        let z = b.add(z, y).unwrap();
        let m = b.finish(&[("z".into(), z)]).unwrap();
        let x = [floats(&[rows, depth], 37)];
        let want = Interp::new(&m).run(&x).unwrap();
        each(&m, Math::Bf16, &x, &|backend, got| {
            let c = compare(&got[0], &want[0], Tolerance { abs: 0.0, rel: 0.0, scale: 0.01 });
            assert!(c.passes(), "{rows} x {depth} x {cols}, {backend}: {c}");
            let native = codegen::backend(backend, 1).unwrap().target().words(Dot::Bf16).is_some();
            let values = want[0].data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).abs());
            let largest = f64::from(values.fold(0.0, f32::max));
            assert_eq!(
                c.max_abs > 1e-5 * largest,
                native,
                "{backend}: rounded where the machine gains from it"
            );
        });
    }
}

/// Zeros, but where the operations are followed to the letter.
#[test]
fn results_below_the_normal_numbers() {
    let mut b = Builder::new("tiny");
    let x = b.input("x", DType::F32, vec![2.into()]);
    let half = b.scalar(DType::F32, 0.5).unwrap();
    let y = b.mul(x, half).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let x = [Tensor::from_f32(vec![2], &[1.5e-38, 3.0])];
    for (math, tiny) in [(Math::Strict, 7.5e-39), (Math::Default, 0.0)] {
        // a mode that other processors do not have here
        let tiny: f32 = if cfg!(target_arch = "x86_64") { tiny } else { 7.5e-39 };
        each(&m, math, &x, &|backend, got| {
            assert_eq!(
                got[0].data,
                Tensor::from_f32(vec![2], &[tiny, 1.5]).data,
                "{backend}, {}",
                math.name()
            );
        });
    }
}

/// Three colours, and the planes that follow: where there are matrix registers, both convolutions are in them.
#[test]
fn pictures_in_bf16() {
    let mut b = Builder::new("picture");
    let x = b.input("x", DType::F32, vec![1.into(), 3.into(), 40.into(), 44.into()]);
    let w = b.constant(floats(&[32, 3, 7, 7], 3)).unwrap();
    let pad = |n: i64, stride| WindowDim { pad_lo: n.into(), pad_hi: n.into(), stride, ..WindowDim::unit() };
    let y = b.convolve(x, w, &[pad(3, 2), pad(3, 2)], 1, DType::F32).unwrap();
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    let y = b.max(y, zero).unwrap();
    let w = b.constant(floats(&[48, 32, 3, 3], 5)).unwrap();
    let z = b.convolve(y, w, &[pad(1, 1), pad(1, 1)], 1, DType::F32).unwrap();
    let max = kernelsmith::ir::Monoid::Max;
    let z = b.window_reduce(max, z, &[3, 3], &[pad(1, 1), pad(1, 1)]).unwrap();
    let m = b.finish(&[("z".into(), z)]).unwrap();
    let x = [floats(&[1, 3, 40, 44], 7)];
    let want = Interp::new(&m).run(&x).unwrap();
    each(&m, Math::Bf16, &x, &|backend, got| {
        let c = compare(&got[0], &want[0], Tolerance { abs: 0.0, rel: 0.0, scale: 0.01 });
        assert!(c.passes(), "{backend}: {c}");
    });
    let target = codegen::target::named("sapphirerapids").unwrap();
    let lowered = passes::compile(m, &target, &options("llvm", Math::Bf16).passes()).unwrap();
    let schedules: Vec<&str> =
        lowered.kernels.iter().flat_map(|k| &k.variants).map(|v| v.schedule.as_str()).collect();
    let found = schedules.iter().filter(|s| s.contains("matrix")).count();
    assert_eq!(found, 2, "convolutions in matrix registers: {schedules:#?}");
}

#[test]
fn large_weights_lie_in_bf16() {
    let target = codegen::target::named("znver4").unwrap();
    let mut b = Builder::new("bf16");
    let x = b.input("x", DType::F32, vec![64.into(), 512.into()]);
    let w = b.constant(floats(&[512, 512], 29)).unwrap();
    let y = b.matmul(x, w).unwrap();
    let m = b.finish(&[("y".into(), y)]).unwrap();
    let lowered = passes::compile(m, &target, &options("llvm", Math::Bf16).passes()).unwrap();
    let loops: String =
        lowered.kernels.iter().flat_map(|k| &k.variants).map(|v| v.func.to_string()).collect();
    assert!(loops.contains(Dot::Bf16.tile_op()), "{loops}");
}

// ---- packed weights -------------------------------------------------------------------------------

/// Weights of four bits in blocks of 32 with a scale each, `[cols, blocks, 16]`, times rows.
fn packed_bits(rows: Option<usize>, cols: usize, blocks: usize) -> Module {
    let mut b = Builder::new("packed bits");
    let n = rows.map_or_else(|| b.symbol("n", 1, 64), Dim::from);
    let depth = 32 * blocks;
    let x = b.input("x", DType::F32, vec![n, depth.into()]);
    let q = b.constant(tensor(DType::U8, &[cols, blocks, 16], 41)).unwrap();
    let parts: Vec<Dim> = [cols, blocks, 16, 2].map(Dim::from).to_vec();
    let q = b.unsqueeze(q, &[3]).unwrap();
    let q = b.broadcast_to(q, &parts).unwrap();
    let shift = b.iota(DType::U8, &parts, 3).unwrap();
    let shift = b.mul_scalar(shift, 4.0).unwrap();
    let q = b.shr(q, shift).unwrap();
    let mask = b.scalar(DType::U8, 15.0).unwrap();
    let q = b.and(q, mask).unwrap();
    let q = b.reshape(q, &[cols.into(), depth.into()]).unwrap();
    let q = b.convert(q, DType::F32).unwrap();
    let zero = b.scalar(DType::F32, 8.0).unwrap();
    let q = b.sub(q, zero).unwrap();
    let s = b.constant(floats(&[cols, blocks, 1], 43)).unwrap();
    let s = b.broadcast_to(s, &[cols, blocks, 32].map(Dim::from)).unwrap();
    let s = b.reshape(s, &[cols.into(), depth.into()]).unwrap();
    let w = b.mul(q, s).unwrap();
    let y = b.contract(x, w, &[], &[(1, 1)], DType::F32).unwrap();
    b.finish(&[("y".into(), y)]).unwrap()
}

#[test]
fn packed_weights_are_decoded_in_registers() {
    // too large to be folded
    for (rows, cols, blocks) in [(Some(1), 640, 16), (Some(5), 650, 16), (None, 640, 16), (None, 530, 20)] {
        let m = packed_bits(rows, cols, blocks);
        for n in rows.map_or(vec![1, 3, 8, 33], |n| vec![n]) {
            let x = [floats(&[n, 32 * blocks], 47)];
            let want = Interp::new(&m).run(&x).unwrap();
            each(&m, Math::Default, &x, &|backend, got| {
                let c = compare(&got[0], &want[0], Tolerance { abs: 0.0, rel: 0.0, scale: 1e-5 });
                assert!(c.passes(), "{n} x {} x {cols}, {backend}: {c}", 32 * blocks);
            });
        }
        let lowered = driver::compile_lowered(m, &options(codegen::available()[0], Math::Default)).unwrap().1;
        // no weights of 32 bits anywhere
        let most = lowered.buffers.iter().filter_map(|b| b.bytes.as_const()).max().unwrap_or(0);
        let packed = (cols.next_multiple_of(64) * blocks * 16) as i64;
        assert!(most <= packed, "{most} bytes for {packed} of weights");
    }
}
