//! Contractions as the work of blocks of warps: every form of operand, edge and epilogue, against the plain lowering of the
//! same kernel (in `kernel_cases`), and as PTX against the loop IR.

use crate::harness::{Case, run};
use crate::lowered::kernel_cases;
use crate::ptx::execute;
use ir::build::{Builder, V};
use ir::prim::WindowDim;
use ir::testing::{Rng, random_tensor};
use ir::{DType, Dim, Module, Sym};
use kernelsmith_codegen::Backend;
use kernelsmith_codegen::ptx::Ptx;
use ptx_interp::Config;
use ptx_interp::assemble::Ptxas;

type Build = fn(&mut Builder) -> ir::Result<V>;

fn input(b: &mut Builder, name: &str, dtype: DType, shape: &[i64]) -> V {
    b.input(name, dtype, shape.iter().map(|d| Dim::from(*d)).collect())
}

fn weights(b: &mut Builder, dtype: DType, shape: &[usize]) -> ir::Result<V> {
    b.constant(random_tensor(&mut Rng::new(3), dtype, shape.to_vec()))
}

fn module(name: &str, build: Build) -> Module {
    let mut b = Builder::new(name);
    let out = build(&mut b).unwrap_or_else(|e| panic!("{name}: {e}"));
    b.finish(&[("out".to_string(), out)]).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The cases of a module whose kernels have block tiles.
fn block_cases(name: &str, module: Module, sizes: &[(Sym, i64)]) -> Vec<Case> {
    let target = Ptx::new(1).target();
    let cases = kernel_cases(module, sizes, &target, 7).unwrap_or_else(|e| panic!("{name}: {e}"));
    let all = cases.len();
    let blocks: Vec<Case> = cases.into_iter().flatten().filter(|c| c.func.launch.block != [0; 3]).collect();
    assert!(!blocks.is_empty(), "{name}: none of {all} kernels has a block tile");
    blocks
}

#[track_caller]
fn check(name: &str, build: Build) {
    let backend = Ptx::new(1);
    run(&backend, 32, block_cases(name, module(name, build), &[]));
}

#[test]
fn whole_tiles() {
    check("whole tiles", |b| {
        let x = input(b, "x", DType::F32, &[128, 48]);
        let y = input(b, "y", DType::F32, &[48, 128]);
        b.matmul(x, y)
    });
}

#[test]
fn edges_along_every_axis() {
    check("edges", |b| {
        let x = input(b, "x", DType::F32, &[75, 37]);
        let y = input(b, "y", DType::F32, &[37, 70]);
        b.matmul(x, y)
    });
}

#[test]
fn aligned_edges() {
    check("aligned edges", |b| {
        let x = input(b, "x", DType::F32, &[40, 36]);
        let y = input(b, "y", DType::F32, &[36, 200]);
        b.matmul(x, y)
    });
}

#[test]
fn transposed_operands() {
    check("rows along memory", |b| {
        let x = input(b, "x", DType::F32, &[40, 96]);
        let y = input(b, "y", DType::F32, &[40, 72]);
        let x = b.transpose(x, &[1, 0])?;
        b.matmul(x, y)
    });
    check("steps along memory", |b| {
        let x = input(b, "x", DType::F32, &[96, 40]);
        let y = input(b, "y", DType::F32, &[70, 40]);
        let y = b.transpose(y, &[1, 0])?;
        b.matmul(x, y)
    });
}

#[test]
fn halves_in_batches_with_an_epilogue() {
    for dtype in [DType::F16, DType::BF16] {
        let name = format!("batches of {dtype}");
        let mut b = Builder::new(&name);
        let x = input(&mut b, "x", dtype, &[2, 64, 48]);
        let y = input(&mut b, "y", dtype, &[2, 48, 65]);
        let z = input(&mut b, "z", DType::F32, &[65]);
        let build = |b: &mut Builder| {
            let p = b.matmul_acc(x, y, DType::F32)?;
            let z = b.broadcast_to(z, &[2, 64, 65].map(Dim::from))?;
            let s = b.add(p, z)?;
            let zero = b.scalar(DType::F32, 0.0)?;
            b.max(s, zero)
        };
        let out = build(&mut b).unwrap();
        let module = b.finish(&[("out".to_string(), out)]).unwrap();
        run(&Ptx::new(1), 32, block_cases(&name, module, &[]));
    }
}

#[test]
fn an_operand_is_an_expression() {
    check("prologue", |b| {
        let x = input(b, "x", DType::F32, &[64, 40]);
        let s = input(b, "s", DType::F32, &[40]);
        let y = input(b, "y", DType::F32, &[40, 64]);
        let zero = b.scalar(DType::F32, 0.0)?;
        let s = b.broadcast_to(s, &[64, 40].map(Dim::from))?;
        let x = b.add(x, s)?;
        let x = b.max(x, zero)?;
        b.matmul(x, y)
    });
}

#[test]
fn weights_in_panels() {
    for n in [200, 256] {
        let mut b = Builder::new("panels");
        let x = input(&mut b, "x", DType::F32, &[48, 40]);
        let w = weights(&mut b, DType::F32, &[40, n]).unwrap();
        let out = b.matmul(x, w).unwrap();
        let module = b.finish(&[("out".to_string(), out)]).unwrap();
        run(&Ptx::new(1), 32, block_cases("panels", module, &[]));
    }
}

#[test]
fn convolutions() {
    check("3 x 3 with a residual", |b| {
        let x = input(b, "x", DType::F32, &[1, 32, 17, 17]);
        let r = input(b, "r", DType::F32, &[1, 64, 9, 9]);
        let w = weights(b, DType::F32, &[64, 32, 3, 3])?;
        let (one, unit) = (Dim::from(1), WindowDim::unit());
        let edge = WindowDim { stride: 2, pad_lo: one.clone(), pad_hi: one, ..unit };
        let y = b.convolve(x, w, &[edge.clone(), edge], 1, DType::F32)?;
        let y = b.add(y, r)?;
        let zero = b.scalar(DType::F32, 0.0)?;
        b.max(y, zero)
    });
    check("few channels", |b| {
        let x = input(b, "x", DType::F32, &[2, 3, 19, 19]);
        let w = weights(b, DType::F32, &[32, 3, 5, 5])?;
        let stride = WindowDim { stride: 2, ..WindowDim::unit() };
        b.convolve(x, w, &[stride.clone(), stride], 1, DType::F32)
    });
}

#[test]
fn sizes_from_outside() {
    let mut b = Builder::new("symbols");
    let [m, k, n] = ["m", "k", "n"].map(|s| b.symbol(s, 1, 4096));
    let x = b.input("x", DType::F32, vec![m.clone(), k.clone()]);
    let y = b.input("y", DType::F32, vec![k.clone(), n.clone()]);
    let out = b.matmul(x, y).unwrap();
    let module = b.finish(&[("out".to_string(), out)]).unwrap();
    let sym = |d: &Dim| d.as_sym().expect("a symbol");
    for sizes in [[70, 20, 90], [24, 8, 24], [64, 48, 32]] {
        let sizes: Vec<(Sym, i64)> = [&m, &k, &n].into_iter().map(sym).zip(sizes).collect();
        run(&Ptx::new(1), 32, block_cases("symbols", module.clone(), &sizes));
    }
}

/// What the hot loops of contractions cost, for `docs/ptx-evidence.md`: run with `--run-ignored all --no-capture`. Rows are few, tiles
/// are those of the device.
#[test]
#[ignore = "prints figures; takes a minute"]
fn counted() {
    let mut b = Builder::new("product");
    let m = b.symbol("m", 1, 4096);
    let x = b.input("x", DType::F32, vec![m.clone(), Dim::from(512)]);
    let y = input(&mut b, "y", DType::F32, &[512, 512]);
    let out = b.matmul(x, y).unwrap();
    count("512 x 512 weights, 128 rows", b.finish(&[("out".to_string(), out)]).unwrap(), m, 128);
    let mut b = Builder::new("convolution");
    let n = b.symbol("n", 1, 64);
    let x = b.input("x", DType::F32, vec![n.clone(), Dim::from(128), Dim::from(9), Dim::from(29)]);
    let w = weights(&mut b, DType::F32, &[128, 128, 3, 3]).unwrap();
    let stride = WindowDim { stride: 2, ..WindowDim::unit() };
    let out = b.convolve(x, w, &[stride.clone(), stride], 1, DType::F32).unwrap();
    let zero = b.scalar(DType::F32, 0.0).unwrap();
    let out = b.max(out, zero).unwrap();
    count(
        "3 x 3 of 128 channels, stride 2, 4 x 14 places",
        b.finish(&[("out".to_string(), out)]).unwrap(),
        n,
        2,
    );
}

fn count(name: &str, module: Module, symbol: Dim, size: i64) {
    let backend = Ptx::new(1);
    let sizes = [(symbol.as_sym().expect("a symbol"), size)];
    let cases = kernel_cases(module, &sizes, &backend.target(), 7).unwrap_or_else(|e| panic!("{name}: {e}"));
    for case in cases.into_iter().flatten() {
        let compiled = backend.compile(&[&case.func]).expect("it compiles").remove(0);
        let config = Config { counters: true, ..Config::default() };
        let c = execute(&case, &compiled, &config).expect("it runs").counters;
        let fma = (c.flops / 2).max(1) as f64;
        let text = String::from_utf8(compiled.object.clone()).expect("PTX is text");
        let registers = |arch: &str| {
            let texts = [(compiled.symbol.clone(), text.clone())];
            Ptxas::find().and_then(|p| p.assemble(arch, &texts).ok()).map(|r| r.registers)
        };
        println!("{name}: {}", case.label);
        println!(
            "  {fma} fma; per 1000 of them: {:.2} warp instructions, {:.2} global sectors read, {:.2} written, {:.2} shared \
             passes, {:.3} of these conflicts; {} barriers; {:?} and {:?} registers, {} threads",
            1e3 * c.warp_instructions as f64 / fma,
            1e3 * c.global_loads.passes as f64 / fma,
            1e3 * c.global_stores.passes as f64 / fma,
            1e3 * (c.shared_loads.passes + c.shared_stores.passes) as f64 / fma,
            1e3 * (c.shared_loads.wasted() + c.shared_stores.wasted()) as f64 / fma,
            c.barriers,
            registers("sm_80"),
            registers("sm_90a"),
            compiled.block,
        );
    }
}
