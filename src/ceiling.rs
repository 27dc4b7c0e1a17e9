//! What the machine can do at best, measured by kernels of our own: multiply-adds in registers, and reading
//! memory that lies in each level of the cache hierarchy. Profiles and benchmarks hold kernels against it.

use crate::driver::{self, CompileOptions, Error};
use codegen::Backend;
use ir::host::{Buffer, BufferId, Lowered, LoweredKernel, Place, Step, Variant};
use ir::kernel::{Access, Dot, Kernel};
use ir::loops::{Addr, Func, Launch, Level, Mem, Space, Stride, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::ConvertMode;
use ir::target::{MATRIX_SIZE, TargetDesc};
use ir::{DType, Dim, Layout, OriginId};
use runtime::{Context, Model, Pool};
use std::sync::Arc;

/// Bytes of the working set that stands for main memory.
const DRAM_BYTES: i64 = 128 << 20;
/// Assumed where the system does not tell.
const L3_BYTES: usize = 32 << 20;
/// Runs, of which the fastest counts.
const RUNS: usize = 9;
/// Accumulators of the measuring loops: enough to hide the latency of an addition, and few enough for 16 registers.
const CHAINS: i64 = 12;
/// Rows and vectors of the tile of dot products: both operands are shared, as they are in a contraction.
const DOT_TILE: (i64, i64) = (4, 2);
/// Rows, words and columns of the product of matrices where the machine has registers for them.
const MATRIX_TILE: (u32, u32, u32) = (2 * MATRIX_SIZE, MATRIX_SIZE, 2 * MATRIX_SIZE);
/// Multiply-adds of each accumulator.
const FMA_DEPTH: i64 = 20_000;

/// Ceilings of all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceiling {
    /// f32 multiply-adds, in GFLOP/s (an addition and a multiplication each).
    pub gflops: f64,
    /// As `gflops`, for products of bytes and of bf16 ([`Dot`]): that of f32 where the machine has no better.
    pub bytes_gops: f64,
    pub bf16_gflops: f64,
    /// GB/s of reading what lies in the second-level caches, the last-level cache, main memory (huge pages).
    pub l2_gbs: f64,
    pub l3_gbs: f64,
    pub dram_gbs: f64,
    l2_bytes: usize,
    l3_bytes: usize,
}

impl Ceiling {
    /// Measures with the backend and the threads of `options`; takes about a third of a second.
    ///
    /// # Errors
    /// Those of compiling and running a program.
    pub fn measure(options: &CompileOptions) -> Result<Ceiling, Error> {
        let backend = driver::backend(options)?;
        let target = backend.target();
        let threads = target.threads as i64;
        let (l2_bytes, l3_bytes) = (target.l2_bytes * target.threads, last_level_bytes());
        let mut p = Probe::new(&*backend);
        let peak = p.kernel("fma_peak", p.fma(threads * 4));
        let mut words = Vec::new();
        for dot in Dot::ALL.into_iter().filter(|d| target.words(*d).is_some()) {
            let func = match target.has_matrices(dot) {
                true => p.matrices(dot, threads * 4),
                false => p.dot(dot, threads * 4),
            };
            words.push((dot, p.kernel(dot.name(), func)));
        }
        let mut levels = Vec::new();
        for (bytes, pieces, repeats) in
            [(DRAM_BYTES, 64, 1), (l3_bytes as i64 / 4, threads, 8), (l2_bytes as i64 / 4, threads, 64)]
        {
            // each piece a whole number of iterations
            let unit = CHAINS * p.lanes * 4 * pieces;
            let bytes = (bytes / unit).max(1) * unit;
            p.kernel("fill", p.fill(bytes / pieces, pieces));
            levels.push((p.kernel("read", p.read(bytes / pieces, pieces, repeats)), bytes * repeats));
        }
        let flops = 2 * FMA_DEPTH * CHAINS * p.lanes * threads * 4;
        let lanes = p.lanes;
        let best = p.run(&*backend, options)?;
        let rate = |kernel: usize, work: i64| work as f64 / best[kernel].max(1) as f64;
        let read = |i: usize| rate(levels[i].0, levels[i].1);
        let gflops = rate(peak, flops);
        let of = |dot: Dot| {
            let kernel = words.iter().find(|w| w.0 == dot).map(|w| w.1);
            let tile = words_of_tile(&target, dot, lanes);
            let products = FMA_DEPTH * tile * dot.parts() as i64 * threads * 4;
            kernel.map_or(gflops, |k| rate(k, 2 * products))
        };
        Ok(Ceiling {
            gflops,
            bytes_gops: of(Dot::Bytes),
            bf16_gflops: of(Dot::Bf16),
            dram_gbs: read(0),
            l3_gbs: read(1).max(read(0)),
            l2_gbs: read(2).max(read(1)).max(read(0)),
            l2_bytes,
            l3_bytes,
        })
    }

    /// GB/s of reading data of which `resident` bytes are in use between two readings.
    pub fn bandwidth(&self, resident: usize) -> f64 {
        match resident {
            n if n <= self.l2_bytes => self.l2_gbs,
            n if n <= self.l3_bytes => self.l3_gbs,
            _ => self.dram_gbs,
        }
    }

    /// Nanoseconds that `flops` and the traffic of (bytes, resident bytes) need at least, one hidden behind
    /// the other. `dot`: the operations are products of such parts.
    pub fn nanos(&self, flops: f64, dot: Option<Dot>, traffic: &[(usize, usize)]) -> f64 {
        let memory: f64 =
            traffic.iter().map(|&(bytes, resident)| bytes as f64 / self.bandwidth(resident)).sum();
        let peak = match dot {
            None => self.gflops,
            Some(Dot::Bytes) => self.bytes_gops,
            Some(Dot::Bf16) => self.bf16_gflops,
        };
        memory.max(flops / peak)
    }
}

/// A program of measuring kernels over one arena buffer.
struct Probe {
    lanes: i64,
    lowered: Lowered,
}

const MEMORY: BufferId = BufferId(0);
const RESULT: BufferId = BufferId(1);

impl Probe {
    fn new(backend: &dyn Backend) -> Probe {
        let buffer = |name: &str, bytes: i64, place| Buffer {
            name: name.into(),
            dtype: DType::F32,
            shape: vec![Dim::from(bytes / 4)],
            layout: Layout::row_major(1),
            bytes: Dim::from(bytes),
            place,
            value: None,
        };
        let buffers = vec![
            buffer("memory", 2 * DRAM_BYTES, Place::Arena { offset: Dim::from(0) }),
            buffer("result", 1 << 20, Place::Output(0)),
        ];
        let layout = Step::Layout { buffers: vec![MEMORY, RESULT], end: Dim::from(2 * DRAM_BYTES) };
        let mut lowered =
            Lowered { buffers, outputs: vec![RESULT], steps: vec![layout], ..Lowered::default() };
        lowered.module.add_origin(Default::default());
        Probe { lanes: backend.target().lanes(4).into(), lowered }
    }

    /// Adds a kernel and a call of it; its number.
    fn kernel(&mut self, name: &str, func: Func) -> usize {
        let mut kernel = Kernel::default();
        kernel.name = name.into();
        for (name, access) in [("memory", Access::ReadWrite), ("result", Access::Write)] {
            kernel.add_buffer(ir::kernel::Buffer {
                name: name.into(),
                dtype: DType::F32,
                shape: vec![Dim::from(0)],
                layout: Layout::row_major(1),
                access,
                constant: false,
            });
        }
        let variant = Variant { guards: Vec::new(), schedule: String::new(), func };
        let number = self.lowered.kernels.len();
        self.lowered.kernels.push(LoweredKernel {
            kernel,
            variants: vec![variant],
            scalar_reason: None,
            flops: Dim::from(0),
        });
        let origin = OriginId(0);
        self.lowered.steps.push(Step::Call { kernel: number, args: vec![MEMORY, RESULT], origin });
        number
    }

    /// Fastest run of each kernel, in nanoseconds.
    fn run(self, backend: &dyn Backend, options: &CompileOptions) -> Result<Vec<u64>, Error> {
        let kernels = self.lowered.kernels.len();
        let (program, _) = codegen::program::build(&self.lowered, backend, Default::default(), None)?;
        let model = Model::load(program, Arc::new(Pool::new(options.threads)), Default::default())?;
        let mut context = Context::new(model);
        let mut best = vec![u64::MAX; kernels];
        for _ in 0..RUNS {
            let mut observe = |e: &runtime::Event<'_>| {
                if let Some(b) = e.kernel.and_then(|k| best.get_mut(k)) {
                    *b = e.nanos.min(*b);
                }
            };
            context.run_with(&[], None, Some(&mut observe))?;
        }
        Ok(best)
    }

    /// `pieces` times [`CHAINS`] chains of [`FMA_DEPTH`] multiply-adds on whole vectors.
    fn fma(&self, pieces: i64) -> Func {
        function("fma_peak", pieces, |b, _, result, piece| {
            let x = b.float(Ty::vector(DType::F32, self.lanes as u32), 0.999);
            let (lo, hi) = (b.index(0), b.index(FMA_DEPTH));
            let inits = vec![x; CHAINS as usize];
            let sums = b.for_(lo, hi, 1, &inits, |b, _, sums| sums.iter().map(|s| b.fma(x, *s, x)).collect());
            self.store(b, result, piece, &sums);
        })
    }

    /// As [`Self::fma`], of dot products of words in tiles of [`DOT_TILE`].
    fn dot(&self, dot: Dot, pieces: i64) -> Func {
        function(dot.name(), pieces, |b, _, result, piece| {
            let lanes = self.lanes as u32;
            let ty = Ty::vector(DType::I32, lanes);
            let words = |b: &mut LoopBuilder, first: i64| {
                let (iota, first) = (b.iota(ty, true), b.int(ty, first.into()));
                b.add(iota, first)
            };
            let columns: Vec<Val> = (0..DOT_TILE.1).map(|c| words(b, c)).collect();
            let (lo, hi) = (b.index(0), b.index(FMA_DEPTH));
            let zero = b.zero(Ty::vector(dot.dtype(), lanes));
            let inits = vec![zero; (DOT_TILE.0 * DOT_TILE.1) as usize];
            let sums = b.for_(lo, hi, 1, &inits, |b, i, sums| {
                // rows that are others in each iteration, as in a contraction
                let i = b.convert(DType::I32, ConvertMode::Plain, i);
                let i = b.splat(i, 1, lanes);
                let mut next = Vec::new();
                for (row, sums) in sums.chunks(columns.len()).enumerate() {
                    let x = words(b, row as i64);
                    let x = b.add(x, i);
                    next.extend(columns.iter().zip(sums).map(|(w, s)| b.tile_op(dot.tile_op(), *s, x, *w)));
                }
                next
            });
            let sums: Vec<Val> = sums.iter().map(|s| b.convert(DType::F32, ConvertMode::Plain, *s)).collect();
            self.store(b, result, piece, &sums);
        })
    }

    /// As [`Self::dot`], of matrices in scratch memory: what they hold takes no time.
    fn matrices(&self, dot: Dot, pieces: i64) -> Func {
        function(dot.name(), pieces, |b, _, result, piece| {
            let (rows, depth, cols) = MATRIX_TILE;
            let [words, sums] = [DType::I32, dot.dtype()]
                .map(|t| b.local(t, Dim::from(i64::from(rows * cols)), Space::Scratch));
            let at = |b: &LoopBuilder, mem: Mem, index: Val, row: u32| Addr {
                row: Stride::Const(row.into()),
                ..b.addr(mem, index, 0)
            };
            let (lo, hi) = (b.index(0), b.index(FMA_DEPTH));
            let zero = b.zero(Ty::tile(dot.dtype(), rows, cols));
            let total = b.for_(lo, hi, 1, &[zero], |b, _, sum| {
                let x = b.load(at(b, words, lo, depth), rows, depth);
                let w = b.load(at(b, words, lo, cols), depth, cols);
                vec![b.tile_op(dot.matrix_op(), sum[0], x, w)]
            })[0];
            b.store(at(b, sums, lo, cols), total);
            let some: Vec<Val> = (0..CHAINS)
                .map(|i| {
                    let v = b.load(b.addr(sums, lo, i * self.lanes), 1, self.lanes as u32);
                    b.convert(DType::F32, ConvertMode::Plain, v)
                })
                .collect();
            self.store(b, result, piece, &some);
        })
    }

    /// Writes `pieces` stretches of `bytes`.
    fn fill(&self, bytes: i64, pieces: i64) -> Func {
        function("fill", pieces, |b, memory, _, piece| {
            let x = b.float(Ty::vector(DType::F32, self.lanes as u32), 1.0);
            let (lo, hi, stretch) = (b.index(0), b.index(bytes / 4), b.index(bytes / 4));
            let base = b.mul(piece, stretch);
            b.for_(lo, hi, self.lanes, &[], |b, i, _| {
                let at = b.add(base, i);
                let addr = b.addr(memory, at, 0);
                b.store(addr, x);
                Vec::new()
            });
        })
    }

    /// Adds up `pieces` stretches of `bytes`, each of them `repeats` times.
    fn read(&self, bytes: i64, pieces: i64, repeats: i64) -> Func {
        function("read", pieces, |b, memory, result, piece| {
            let zero = b.float(Ty::vector(DType::F32, self.lanes as u32), 0.0);
            let (lo, hi, times) = (b.index(0), b.index(bytes / 4), b.index(repeats));
            let base = b.mul(piece, hi);
            let inits = vec![zero; CHAINS as usize];
            let sums = b.for_(lo, times, 1, &inits, |b, _, sums| {
                b.for_(lo, hi, CHAINS * self.lanes, sums, |b, i, sums| {
                    let at = b.add(base, i);
                    let mut next = Vec::new();
                    for (c, sum) in sums.iter().enumerate() {
                        let addr = b.addr(memory, at, c as i64 * self.lanes);
                        let x = b.load(addr, 1, self.lanes as u32);
                        next.push(b.add(x, *sum));
                    }
                    next
                })
            });
            self.store(b, result, piece, &sums);
        })
    }

    fn store(&self, b: &mut LoopBuilder, result: Mem, piece: Val, sums: &[Val]) {
        let width = b.index(CHAINS * self.lanes);
        let at = b.mul(piece, width);
        for (i, sum) in sums.iter().enumerate() {
            let addr = b.addr(result, at, i as i64 * self.lanes);
            b.store(addr, *sum);
        }
    }
}

/// Words that one step of a measuring loop multiplies.
fn words_of_tile(target: &TargetDesc, dot: Dot, lanes: i64) -> i64 {
    let (rows, depth, cols) = MATRIX_TILE;
    match target.has_matrices(dot) {
        true => i64::from(rows * depth * cols),
        false => DOT_TILE.0 * DOT_TILE.1 * lanes,
    }
}

/// A function with one parallel loop over `pieces`, each of them worth a thread.
fn function(name: &str, pieces: i64, body: impl FnOnce(&mut LoopBuilder, Mem, Mem, Val)) -> Func {
    let mut b = LoopBuilder::new(name);
    let (memory, result) = (b.buf("memory", DType::F32, true, 64), b.buf("result", DType::F32, true, 64));
    let trip = b.index(pieces);
    b.parallel(Level::Thread, trip, |b, piece| body(b, memory, result, piece));
    b.finish(Launch { trip: Dim::from(pieces), ns_per_iter: 1e5, ..Launch::default() })
}

/// Bytes of the largest cache.
fn last_level_bytes() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
    text.trim().strip_suffix('K').and_then(|k| k.parse::<usize>().ok()).map_or(L3_BYTES, |k| k << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_in_order() {
        if codegen::available().is_empty() {
            return;
        }
        let c = Ceiling::measure(&CompileOptions { threads: 1, ..Default::default() }).unwrap();
        // slower than 1 GFLOP/s, or faster than 1 PFLOP/s, would be no measurement
        assert!(c.gflops > 1.0 && c.gflops < 1e6, "{c:?}");
        assert!(c.l2_gbs >= c.l3_gbs && c.l3_gbs >= c.dram_gbs && c.dram_gbs > 0.1, "{c:?}");
        assert_eq!(c.bandwidth(1), c.l2_gbs);
        assert_eq!(c.bandwidth(1 << 40), c.dram_gbs);
        assert!(c.bytes_gops > 1.0 && c.bf16_gflops > 1.0, "{c:?}");
        assert!(c.nanos(c.gflops * 1e3, None, &[]) - 1e3 < 1e-6);
        assert!(c.nanos(c.bytes_gops * 1e3, Some(Dot::Bytes), &[]) - 1e3 < 1e-6);
        let slow = [(1 << 30, 1 << 40)];
        assert!(c.nanos(0.0, None, &[slow[0], (1 << 20, 1)]) > c.nanos(0.0, None, &slow));
    }
}
