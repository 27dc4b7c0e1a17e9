//! Speed of the register-tiled matrix product that the whole compiler rests on: C[MR, NR] += A[MR, K] B[K, NR]
//! with B packed and everything in the cache, on every backend of this build, beside the speed of bare
//! multiply-adds. Reports accesses to the stack inside the code, of which there should be none.
//!
//! Then the same from tile form, and vector mathematics.
//!
//! `cargo run --release --example microkernel --features llvm [-- name of a function to print]`

use format::abi::{KernelArgs, KernelStatus};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Addr, Form, Func, Launch, Level, Stride, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::UnaryOp;
use ir::target::TargetDesc;
use kernelsmith_codegen::legalise::legalise;
use kernelsmith_codegen::{CodegenError, available, backend};
use runtime::loader::CodeImage;
use std::time::Instant;

/// Depth of the product.
const K: i64 = 256;
/// Elements of a map.
const MAP: i64 = 4096;

/// C = A B on one tile of `rows` x `vectors * lanes`, `K` deep.
fn gemm(rows: u32, vectors: u32, lanes: u32) -> Func {
    let mut b = LoopBuilder::new(format!("gemm_{rows}x{}", vectors * lanes));
    let (lhs, rhs) = (b.buf("a", DType::F32, false, 64), b.buf("b", DType::F32, false, 64));
    let out = b.buf("c", DType::F32, true, 64);
    let vec = Ty::vector(DType::F32, lanes);
    let columns = i64::from(vectors * lanes);
    let one = b.index(1);
    b.parallel(Level::Thread, one, |b, _| {
        let zero = b.constant(vec, Scalar::Float(0.0));
        let (lo, hi) = (b.index(0), b.index(K));
        let inits = vec![zero; (rows * vectors) as usize];
        let sums = b.for_(lo, hi, 1, &inits, |b, k, sums| {
            let width = b.index(columns);
            let row = b.mul(k, width);
            let right: Vec<_> = (0..vectors)
                .map(|v| {
                    let mut addr = b.addr(rhs, row, i64::from(v * lanes));
                    addr.align = lanes * 4;
                    b.load(addr, 1, lanes)
                })
                .collect();
            let mut next = Vec::new();
            for r in 0..rows {
                let addr = b.addr(lhs, k, i64::from(r) * K);
                let left = b.load(addr, 1, 1);
                let left = b.splat(left, 1, lanes);
                for v in 0..vectors {
                    next.push(b.fma(left, right[v as usize], sums[(r * vectors + v) as usize]));
                }
            }
            next
        });
        for (i, sum) in sums.iter().enumerate() {
            let (r, v) = (i as u32 / vectors, i as u32 % vectors);
            let at = b.index(0);
            let addr = b.addr(out, at, i64::from(r) * columns + i64::from(v * lanes));
            b.store(addr, *sum);
        }
    });
    machine(b)
}

/// 16 independent chains of multiply-adds: the ceiling.
fn peak(lanes: u32) -> Func {
    let mut b = LoopBuilder::new(format!("peak_{lanes}"));
    let out = b.buf("c", DType::F32, true, 64);
    let one = b.index(1);
    let chains = if lanes > 8 { 16 } else { 12 };
    b.parallel(Level::Thread, one, |b, _| {
        let at = b.index(0);
        let addr = b.addr(out, at, 0);
        let x = b.load(addr, 1, lanes);
        let (lo, hi) = (b.index(0), b.index(K));
        let sums =
            b.for_(lo, hi, 1, &vec![x; chains], |b, _, sums| sums.iter().map(|s| b.fma(x, x, *s)).collect());
        for (i, sum) in sums.iter().enumerate() {
            let addr = b.addr(out, at, i as i64 * i64::from(lanes));
            b.store(addr, *sum);
        }
    });
    machine(b)
}

/// The same product as a tile, before legalisation.
fn tile_gemm(rows: u32, cols: u32) -> Func {
    let mut b = LoopBuilder::new(format!("tile_{rows}x{cols}"));
    let (lhs, rhs) = (b.buf("a", DType::F32, false, 64), b.buf("b", DType::F32, false, 64));
    let out = b.buf("c", DType::F32, true, 64);
    let one = b.index(1);
    b.parallel(Level::Thread, one, |b, p| {
        let zero = b.constant(Ty::tile(DType::F32, rows, cols), Scalar::Float(0.0));
        let (lo, hi) = (b.index(0), b.index(K));
        let sums = b.for_(lo, hi, 1, &[zero], |b, k, sums| {
            let width = b.index(i64::from(cols));
            let at = b.mul(k, width);
            let addr = Addr { align: 64, ..b.addr(rhs, at, 0) };
            let right = b.load(addr, 1, cols);
            let addr = Addr { row: Stride::Const(K), ..b.addr(lhs, k, 0) };
            let left = b.load(addr, rows, 1);
            vec![b.fma(left, right, sums[0])]
        });
        let addr = Addr { row: Stride::Const(i64::from(cols)), ..b.addr(out, p, 0) };
        b.store(addr, sums[0]);
    });
    b.finish(Launch::default())
}

/// `c = f(a)` over `MAP` elements, as tiles of four vectors.
fn tile_map(name: &str, lanes: u32, f: impl FnOnce(&mut LoopBuilder, Val) -> Val) -> Func {
    let mut b = LoopBuilder::new(name);
    let (from, to) = (b.buf("a", DType::F32, false, 64), b.buf("c", DType::F32, true, 64));
    let one = b.index(1);
    b.parallel(Level::Thread, one, |b, _| {
        let (lo, hi) = (b.index(0), b.index(MAP));
        let (var, _) = b.open_for(lo, hi, i64::from(2 * lanes), &[]);
        let addr = Addr { align: 64, ..b.addr(from, var, 0) };
        let x = b.load(addr, 1, 2 * lanes);
        let y = f(b, x);
        let addr = Addr { align: 64, ..b.addr(to, var, 0) };
        b.store(addr, y);
        b.close_for(&[]);
    });
    b.finish(Launch::default())
}

fn machine(b: LoopBuilder) -> Func {
    let mut func = b.finish(Launch::default());
    func.form = Form::Machine;
    func
}

/// Instructions that touch memory relative to the stack pointer.
fn stack_accesses(asm: &str) -> usize {
    asm.lines().filter(|l| l.contains("(%rsp)") || l.contains("(%rbp)")).filter(|l| l.contains("mm")).count()
}

/// One measured function: what it does in a call, and in which unit.
struct Subject {
    func: Func,
    operands: usize,
    work: f64,
    unit: &'static str,
}

fn subjects(target: &TargetDesc) -> Result<Vec<Subject>, CodegenError> {
    let lanes = target.lanes(4);
    let chains = if lanes > 8 { 16 } else { 12 };
    let flops = |fmas: u32| 2.0 * f64::from(fmas) * K as f64;
    let product = |func, fmas| Subject { func, operands: 3, work: flops(fmas), unit: "GFLOP/s" };
    let mut list =
        vec![Subject { func: peak(lanes), operands: 1, work: flops(chains * lanes), unit: "GFLOP/s" }];
    let tiles: &[(u32, u32)] = match target.vector_regs {
        32 => &[(14, 2), (12, 2), (8, 2), (9, 3), (8, 3), (6, 4), (4, 6), (28, 1)],
        _ => &[(6, 2), (4, 2), (4, 3), (5, 2)],
    };
    list.extend(tiles.iter().map(|(r, v)| product(gemm(*r, *v, lanes), r * v * lanes)));
    for (r, v) in &tiles[..3] {
        list.push(product(legalise(&tile_gemm(*r, v * lanes), target)?, r * v * lanes));
    }
    for op in [UnaryOp::Neg, UnaryOp::Exp, UnaryOp::Tanh, UnaryOp::Erf, UnaryOp::Log, UnaryOp::Sin] {
        let func = tile_map(op.name(), lanes, |b, x| b.unary(op, x));
        list.push(Subject { func: legalise(&func, target)?, operands: 2, work: MAP as f64, unit: "el/ns" });
    }
    Ok(list)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let show = std::env::args().nth(1);
    for name in available() {
        let backend = backend(name, 1)?;
        let target = backend.target();
        println!("{} ({} lanes, {} registers)", target.name, target.lanes(4), target.vector_regs);
        let list = subjects(&target)?;
        let funcs: Vec<&Func> = list.iter().map(|s| &s.func).collect();
        let start = Instant::now();
        let compiled = backend.compile(&funcs)?;
        println!("  {:.2} ms to compile a function", start.elapsed().as_secs_f64() * 1e3 / list.len() as f64);
        let objects: Vec<_> = compiled.iter().map(|c| &c.object).collect();
        let image = CodeImage::load(&objects)?;
        let (a, b, c) = (aligned(64 << 10), aligned(64 << 10), aligned(64 << 10));
        let mut ceiling = None;
        for (i, subject) in list.iter().enumerate() {
            let kernel = image.function(i, &compiled[i].symbol)?;
            let bufs = match subject.operands {
                1 => vec![c],
                2 => vec![a, c],
                _ => vec![a, b, c],
            };
            let mut status = KernelStatus::default();
            let args = KernelArgs {
                bufs: bufs.as_ptr(),
                syms: std::ptr::null(),
                scratch: std::ptr::null_mut(),
                status: &mut status,
            };
            let mut best = f64::INFINITY;
            for _ in 0..200 {
                let start = Instant::now();
                for _ in 0..100 {
                    // SAFETY: the buffers are larger than anything the functions above touch.
                    unsafe { kernel(&args, 0, 1) };
                }
                best = best.min(start.elapsed().as_secs_f64() / 100.0);
            }
            let speed = subject.work / best / 1e9;
            let ceiling = *ceiling.get_or_insert(speed);
            let asm = backend.asm_text(&subject.func)?;
            println!(
                "  {:12} {speed:7.1} {:8} {}  {} vector accesses to the stack",
                subject.func.name,
                subject.unit,
                if subject.unit == "el/ns" {
                    " ".repeat(7)
                } else {
                    format!("{:5.1} %", 100.0 * speed / ceiling)
                },
                stack_accesses(&asm)
            );
            if show.as_deref() == Some(subject.func.name.as_str()) {
                println!("{}\n{asm}", backend.ir_text(&subject.func)?);
            }
        }
    }
    Ok(())
}

/// Zeroed memory at a page boundary, kept until the process ends.
fn aligned(bytes: usize) -> *mut u8 {
    let memory: &'static mut [u8] = vec![0u8; bytes + 4096].leak();
    let skip = memory.as_ptr().align_offset(4096);
    memory[skip..].as_mut_ptr()
}
