//! Speed of the register-tiled matrix product that the whole compiler rests on: C[MR, NR] += A[MR, K] B[K, NR]
//! with B packed and everything in the cache, on every backend of this build, beside the speed of bare
//! multiply-adds. Reports accesses to the stack inside the code, of which there should be none.
//!
//! `cargo run --release --example microkernel --features llvm [-- asm]`

use format::abi::{KernelArgs, KernelStatus};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Form, Func, Launch, Level, Ty};
use ir::loops_build::LoopBuilder;
use runtime::loader::CodeImage;
use std::time::Instant;

/// Depth of the product.
const K: i64 = 256;

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

fn machine(b: LoopBuilder) -> Func {
    let mut func = b.finish(Launch::default());
    func.form = Form::Machine;
    func
}

/// Instructions that touch memory relative to the stack pointer.
fn stack_accesses(asm: &str) -> usize {
    asm.lines().filter(|l| l.contains("(%rsp)") || l.contains("(%rbp)")).filter(|l| l.contains("mm")).count()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let show = std::env::args().nth(1).is_some_and(|a| a == "asm");
    for name in kernelsmith_codegen::available() {
        let backend = kernelsmith_codegen::backend(name, 1)?;
        let target = backend.target();
        let lanes = target.lanes(4);
        let tiles: &[(u32, u32)] = match target.vector_regs {
            32 => &[(14, 2), (12, 2), (8, 2), (9, 3), (8, 3), (6, 4), (4, 6), (28, 1)],
            _ => &[(6, 2), (4, 2), (4, 3), (5, 2)],
        };
        println!("{} ({} lanes, {} registers)", target.name, lanes, target.vector_regs);
        let start = Instant::now();
        let mut funcs = vec![peak(lanes)];
        funcs.extend(tiles.iter().map(|(r, v)| gemm(*r, *v, lanes)));
        let compiled = backend.compile(&funcs.iter().collect::<Vec<_>>())?;
        println!(
            "  {:.2} ms to compile a function",
            start.elapsed().as_secs_f64() * 1e3 / funcs.len() as f64
        );
        let objects: Vec<_> = compiled.iter().map(|c| &c.object).collect();
        let image = CodeImage::load(&objects)?;
        let (a, b) = (aligned(64 << 10), aligned(64 << 10));
        let c = aligned(16 << 10);
        let mut ceiling = 0.0;
        for (i, func) in funcs.iter().enumerate() {
            let kernel = image.function(i, &compiled[i].symbol)?;
            let bufs: Vec<*mut u8> = match i {
                0 => vec![c],
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
            let fmas = match i {
                0 => f64::from(lanes * if lanes > 8 { 16 } else { 12 }),
                _ => f64::from(tiles[i - 1].0 * tiles[i - 1].1 * lanes),
            };
            let speed = 2.0 * fmas * K as f64 / best / 1e9;
            ceiling = if i == 0 { speed } else { ceiling };
            let asm = backend.asm_text(func)?;
            println!(
                "  {:12} {speed:7.1} GFLOP/s  {:5.1} %  {} vector accesses to the stack",
                func.name,
                100.0 * speed / ceiling,
                stack_accesses(&asm)
            );
            if show && i == 1 {
                println!("{}\n{asm}", backend.ir_text(func)?);
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
