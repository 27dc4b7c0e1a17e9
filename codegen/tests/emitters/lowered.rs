//! Kernels of whole graphs, scheduled and legalised for each backend: they do what the interpreter of loop IR says the
//! machine form does. (That the machine form does what the graph says is tested where the passes are.)

use crate::harness::{Case, Near, backends, run};
use ir::host::{BufferId, Lowered, Place, Step};
use ir::loops::{Block, Inst, Stmt, Stride};
use ir::loops_exec::{Status, execute};
use ir::target::TargetDesc;
use ir::testing::{Options, Rng, random_graph, random_tensor};
use ir::{DType, Dim, Module, Sym};
use kernelsmith_codegen::legalise::legalise;
use passes::schedule::lower_plainly;

/// Iterations of one kernel, and bytes of one operand, that a test runs at most.
const MOST_TRIPS: i64 = 4096;
const MOST_BYTES: i64 = 2 << 20;

/// What operands hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    Random,
    /// Integers are 0 to 2: indices that fit almost everywhere.
    Small,
    /// Many equal elements and nearly equal ones, both zeros, infinities, NaN, values so large that sums and exponentials overflow; integers
    /// are -1 to 3.
    Special,
    /// Integers are 0 to 64: some are at the limits of indices.
    Limits,
    /// Integers are below a limit, and the last element of each operand is the limit.
    Edge(i64),
    /// Floats are -3 to -1: a maximum that sees a zero is wrong.
    Negative,
    /// Likewise, but one in 32 is 1 to 3 or a zero: few elements decide over a maximum, or whether any is positive.
    Sparse,
}

/// Every call of a kernel in a compiled module whose sizes are known from `sizes`, as a case with random operands.
/// Kernels whose checks fail on random indices are given small ones; `None` where even those do not fit.
pub fn kernel_cases(
    module: Module,
    sizes: &[(Sym, i64)],
    target: &TargetDesc,
    seed: u64,
) -> Result<Vec<Option<Case>>, String> {
    let mut rng = Rng::new(seed);
    let one = |call: &Call| {
        let found = [Operands::Random, Operands::Small].into_iter().map(|o| call.case(&mut rng, o));
        found.flatten().find(|case| case.status == (0, 0, 0))
    };
    Ok(calls(module, sizes, target)?.iter().map(one).collect())
}

/// As [`kernel_cases`], each call with several kinds of operands, those included that make a check fail.
pub fn hard_cases(module: Module, target: &TargetDesc, seed: u64) -> Result<Vec<Vec<Case>>, String> {
    let mut rng = Rng::new(seed);
    use Operands::{Limits, Negative, Random, Small, Sparse, Special};
    let kinds = [Random, Small, Special, Limits, Negative, Sparse, Sparse, Sparse, Sparse];
    let all = |call: &Call| {
        let mut cases: Vec<Case> = kinds.into_iter().filter_map(|o| call.case(&mut rng, o)).collect();
        // exactly the first index that does not fit
        if let Some(limit) = cases.iter().map(|c| c.status).find(|s| s.0 != 0).map(|s| s.2) {
            cases.extend(call.case(&mut rng, Operands::Edge(limit)));
        }
        cases
    };
    Ok(calls(module, &[], target)?.iter().map(all).collect())
}

/// A call of a kernel.
struct Call {
    label: String,
    func: ir::loops::Func,
    syms: Vec<i64>,
    trip: i64,
    /// Of each operand.
    bytes: Vec<i64>,
    place: Vec<usize>,
    /// Of a kernel for blocks of warps, or of which lanes have several neighbours: its tile form, and the kernel lowered
    /// plainly. Neither the schedule nor legalisation changes what is computed.
    others: Vec<(ir::loops::Func, Vec<i64>, i64)>,
}

fn calls(module: Module, sizes: &[(Sym, i64)], target: &TargetDesc) -> Result<Vec<Call>, String> {
    let lowered = passes::compile(module, target, &passes::Options::default()).map_err(|e| e.to_string())?;
    let mut calls = Vec::new();
    collect(&lowered.init, &mut calls);
    collect(&lowered.steps, &mut calls);
    let value = |s: Sym| sizes.iter().find(|x| x.0 == s).map(|x| x.1);
    let mut out = Vec::new();
    for (kernel, args) in calls {
        let k = &lowered.kernels[kernel];
        let holds = |g: &ir::kernel::Guard| {
            let (x, bound) = (g.expr.eval_syms(&value), g.bound.eval_syms(&value));
            x.zip(bound).is_some_and(|(x, bound)| (0..bound).contains(&x))
        };
        for variant in k.variants.iter().filter(|v| v.guards.iter().all(holds)) {
            let tile = &variant.func;
            let syms: Option<Vec<i64>> = tile.syms.iter().map(|s| value(*s)).collect();
            let trip = tile.launch.trip.eval_syms(&value);
            let bytes = |b: &BufferId| lowered.buffers[b.0 as usize].bytes.eval_syms(&value);
            let bytes: Option<Vec<i64>> = args.iter().map(bytes).collect();
            let (Some(syms), Some(trip), Some(bytes)) = (syms, trip, bytes) else { continue };
            // nothing to run, or more than a test should
            let runs = tile.body.stmts.iter().any(|s| matches!(s, ir::loops::Stmt::For { .. }));
            if trip == 0 || !runs || trip > MOST_TRIPS || bytes.iter().any(|b| *b > MOST_BYTES) {
                continue;
            }
            let func = legalise(tile, target).map_err(|e| format!("{}: {e}", variant.schedule))?;
            ir::verify::loops::verify(tile).map_err(|e| format!("{}: {e}", variant.schedule))?;
            ir::verify::loops::verify(&func)
                .map_err(|e| format!("{}, machine form: {e}", variant.schedule))?;
            let mut others = Vec::new();
            if tile.launch.block != [0; 3] || neighbours(&func.body) {
                let plain = lower_plainly(&k.kernel, &lowered.module.symbols, target);
                let plain = plain.map_err(|e| e.to_string())?.variants.remove(0).func;
                let own = plain.syms.iter().filter_map(|s| value(*s)).collect();
                let all = plain.launch.trip.eval_syms(&value).unwrap_or(0);
                others = vec![(tile.clone(), syms.clone(), trip), (plain, own, all)];
            }
            let place = places(&lowered, &args, &bytes);
            let label = format!("{} {}", k.kernel.name, variant.schedule);
            out.push(Call { label, func, syms, trip, bytes, place, others });
        }
    }
    Ok(out)
}

/// True where lanes read or write several elements that lie together.
fn neighbours(block: &Block) -> bool {
    block.stmts.iter().any(|s| {
        let own = match s {
            Stmt::Let { inst: Inst::Load(addr), .. } | Stmt::Store { addr, .. } => {
                addr.col == Stride::Const(4)
            }
            _ => false,
        };
        own || s.blocks().into_iter().any(neighbours)
    })
}

impl Call {
    /// With operands of a kind, and what the interpreter of loop IR makes of them.
    fn case(&self, rng: &mut Rng, kind: Operands) -> Option<Case> {
        let mut bufs: Vec<Vec<u8>> = Vec::new();
        for (i, (b, n)) in self.func.bufs.iter().zip(&self.bytes).enumerate() {
            // one memory holds one thing
            let shared = bufs.get(self.place[i]).cloned();
            bufs.push(shared.unwrap_or_else(|| operand(rng, b.dtype, *n as usize, kind)));
        }
        let mut want = bufs.clone();
        let status = execute(&self.func, &mut want, &self.syms, 0, self.trip);
        if let (Err(e), true) = (&status, self.func.launch.block != [0; 3]) {
            panic!("{}: {e}", self.label);
        }
        let status = status.ok()?;
        // what is written beside a failure is nobody's business
        let good = status == Status::Ok;
        let expect = want.into_iter().zip(&self.func.bufs).map(|(w, b)| (good && b.writable).then_some(w));
        let mut case = Case::new(&self.label, self.func.clone(), bufs, expect.collect(), self.trip);
        let said = |status| match status {
            Status::Failed { origin, value, limit } => Some((i64::from(origin.0) + 1, value, limit)),
            _ => None,
        };
        if let Some(status) = said(status) {
            case.status = status;
            let alone = |i| execute(&self.func, &mut case.bufs.clone(), &self.syms, i, i + 1);
            case.failures = (0..self.trip).filter_map(|i| said(alone(i).ok()?)).collect();
        }
        case.syms = self.syms.clone();
        case.place = self.place.clone();
        // sums of lanes have an order of their own
        case.near = Near { any_zero: true, relative: 1e-4 };
        // where sums overflow or cancel, their order shows
        let tame = matches!(kind, Operands::Random | Operands::Small) && good;
        for (f, syms, trip) in self.others.iter().filter(|_| tame) {
            let mut got = case.bufs.clone();
            assert_eq!(execute(f, &mut got, syms, 0, *trip), Ok(Status::Ok), "{}", case.label);
            for (b, got) in got.iter().enumerate() {
                // sums in another order, rounded to what is stored
                let relative = match self.func.bufs[b].dtype.bytes() {
                    1 => 0.26,
                    2 => 0.016,
                    _ => case.near.relative,
                };
                let near = Near { relative, ..case.near };
                assert_eq!(case.difference(b, got, near), None, "{}", case.label);
            }
        }
        Some(case)
    }
}

fn collect(steps: &[Step], calls: &mut Vec<(usize, Vec<BufferId>)>) {
    for step in steps {
        match step {
            Step::Call { kernel, args, .. } => calls.push((*kernel, args.clone())),
            Step::If { then, otherwise, .. } => {
                collect(then, calls);
                collect(otherwise, calls);
            }
            Step::Loop { body, .. } => collect(body, calls),
            _ => {}
        }
    }
}

/// By operand, the first one that lies in the same memory, all of it.
fn places(lowered: &Lowered, args: &[BufferId], bytes: &[i64]) -> Vec<usize> {
    let root = |mut b: BufferId| {
        while let Place::Alias(of) = lowered.buffers[b.0 as usize].place {
            b = of;
        }
        b
    };
    let roots: Vec<(BufferId, i64)> = args.iter().zip(bytes).map(|(b, n)| (root(*b), *n)).collect();
    roots.iter().map(|r| roots.iter().position(|x| x == r).unwrap_or(0)).collect()
}

fn operand(rng: &mut Rng, dtype: DType, bytes: usize, kind: Operands) -> Vec<u8> {
    let elems = bytes / dtype.bytes();
    let range = match kind {
        Operands::Random | Operands::Negative | Operands::Sparse => None,
        Operands::Small => Some((0, 2)),
        Operands::Special => Some((-1, 3)),
        Operands::Limits => Some((0, 64)),
        Operands::Edge(limit) => Some((0, (limit - 1).max(0))),
    };
    if let (Operands::Edge(limit), true, 1..) = (kind, dtype.is_int(), elems) {
        let last = std::iter::once(limit);
        let before = (1..elems).map(|_| rng.range(0, (limit - 1).max(0))).collect::<Vec<_>>();
        let all = before.into_iter().chain(last);
        return all.flat_map(|x| x.to_le_bytes()[..dtype.bytes()].to_vec()).collect();
    }
    if let Some((lo, hi)) = range.filter(|_| dtype.is_int()) {
        return (0..elems).flat_map(|_| rng.range(lo, hi).to_le_bytes()[..dtype.bytes()].to_vec()).collect();
    }
    let wide = matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
    if kind == Operands::Special && wide {
        let smallest = match dtype {
            DType::F16 => 2f64.powi(-24),
            _ => f64::from(f32::from_bits(1 << 16)),
        };
        // doubles that differ in their lower words alone
        let (above, below) = (1.0 + 2f64.powi(-40), -1.0 - 2f64.powi(-40));
        let special = [0.0, -0.0, 1.0, 1.0, above, -1.0, below, 0.5, 90.0, -90.0, smallest, -3.0 * smallest];
        let large = [1e30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 65504.0];
        let one = |_| match rng.range(0, 15) {
            // most rows of a kernel should have no NaN
            0 => large[rng.range(0, large.len() as i64 - 1) as usize],
            _ => special[rng.range(0, special.len() as i64 - 1) as usize],
        };
        return (0..elems).map(one).flat_map(|x| float_bytes(dtype, x)).collect();
    }
    if matches!(kind, Operands::Negative | Operands::Sparse) && wide {
        let one = |_| {
            // with digits in both words of a double
            let x = 1.0 + rng.range(0, 1 << 52) as f64 / 2f64.powi(51);
            if kind != Operands::Sparse || !rng.one_in(32) {
                return -x;
            }
            *rng.pick(&[x, x, 0.0, -0.0])
        };
        return (0..elems).map(one).flat_map(|x| float_bytes(dtype, x)).collect();
    }
    let mut data = random_tensor(rng, dtype, vec![elems]).data.clone();
    data.resize(bytes, 0);
    data
}

/// The number of a float type that is nearest, as bytes.
fn float_bytes(dtype: DType, x: f64) -> Vec<u8> {
    match dtype {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
        _ => half::bf16::from_f64(x).to_le_bytes().to_vec(),
    }
}

/// Runs the kernels of modules on every backend; answers how many ran and how many had no operands.
#[track_caller]
fn check(modules: impl Fn() -> Vec<(String, Module, Vec<(Sym, i64)>)>) -> (usize, usize) {
    let (mut ran, mut without) = (0, 0);
    for backend in backends() {
        let target = backend.target();
        for (i, (label, module, sizes)) in modules().into_iter().enumerate() {
            let cases = match kernel_cases(module, &sizes, &target, i as u64) {
                Ok(cases) => cases,
                Err(e) => panic!("{label} on {}: {e}", backend.name()),
            };
            without += cases.iter().filter(|c| c.is_none()).count();
            let cases: Vec<Case> = cases
                .into_iter()
                .flatten()
                .map(|c| Case { label: format!("{label}: {}", c.label), ..c })
                .collect();
            ran += cases.len();
            run(&*backend, target.lanes(4), cases);
        }
    }
    (ran, without)
}

#[test]
fn kernels_by_name() {
    let (ran, without) =
        check(|| named().into_iter().map(|(name, m)| (name.to_string(), m, Vec::new())).collect());
    assert!(ran >= 15 && without == 0, "{ran} ran, {without} had no operands");
}

#[test]
fn kernels_of_random_graphs() {
    let modules = |options: Options, seeds: std::ops::Range<u64>| {
        let graph = move |seed| {
            let case = random_graph(seed, &options);
            // each size once is enough: the last has the least in common with the default
            let sizes = case.sizes.last().cloned().unwrap_or_default();
            (format!("seed {seed}"), case.module, sizes)
        };
        seeds.map(graph).collect::<Vec<_>>()
    };
    let plain = Options { control: false, max_elems: 400, ..Options::default() };
    let symbolic = Options { symbolic: true, ..plain.clone() };
    let seeds = |from: u64| from..from + count();
    let (ran, without) =
        check(|| [modules(plain.clone(), seeds(0)), modules(symbolic.clone(), seeds(5000))].concat());
    println!("{ran} kernels ran, {without} had no operands");
    assert!(ran > 10 * without, "{ran} ran, {without} had no operands");
}

/// Graphs of each kind; `KS_GRAPHS` asks for more.
fn count() -> u64 {
    std::env::var("KS_GRAPHS").ok().and_then(|n| n.parse().ok()).unwrap_or(40)
}

/// Small graphs that between them have every kind of kernel. Many have numbers of rows that no number of warps divides: a
/// row that is done twice is then done by two of them.
pub fn named() -> Vec<(&'static str, Module)> {
    use ir::build::Builder;
    use ir::prim::{Combine, Monoid, WindowDim};
    type Build = fn(&mut Builder) -> ir::Result<Vec<ir::build::V>>;
    fn dims(d: &[i64]) -> Vec<Dim> {
        d.iter().map(|d| Dim::from(*d)).collect()
    }
    fn input(b: &mut Builder, name: &str, dtype: DType, shape: &[i64]) -> ir::build::V {
        b.input(name, dtype, dims(shape))
    }
    let all: [(&'static str, Build); 16] = [
        ("elementwise", |b| {
            let x = input(b, "x", DType::F32, &[48, 640]);
            let y = input(b, "y", DType::F32, &[640]);
            let y = b.broadcast_to(y, &dims(&[48, 640]))?;
            let t = b.tanh(x)?;
            let s = b.mul(t, y)?;
            Ok(vec![b.sub(s, x)?])
        }),
        ("softmax", |b| {
            let x = input(b, "x", DType::F32, &[47, 100]);
            let m = b.reduce_max(x, &[1], true)?;
            let d = b.sub(x, m)?;
            let e = b.exp(d)?;
            let s = b.reduce_sum(e, &[1], true)?;
            Ok(vec![b.div(e, s)?])
        }),
        ("normalisation", |b| {
            let x = input(b, "x", DType::F32, &[48, 128]);
            let mean = b.reduce_mean(x, &[1], true)?;
            let d = b.sub(x, mean)?;
            let q = b.mul(d, d)?;
            let var = b.reduce_mean(q, &[1], true)?;
            let var = b.add_scalar(var, 1e-5)?;
            let root = b.sqrt(var)?;
            Ok(vec![b.div(d, root)?])
        }),
        ("product", |b| {
            let x = input(b, "x", DType::F32, &[64, 96]);
            let y = input(b, "y", DType::F32, &[96, 128]);
            Ok(vec![b.matmul(x, y)?])
        }),
        ("batched product in f16", |b| {
            let x = input(b, "x", DType::F16, &[8, 32, 64]);
            let y = input(b, "y", DType::F16, &[8, 64, 65]);
            Ok(vec![b.matmul_acc(x, y, DType::F32)?])
        }),
        ("product of bytes", |b| {
            let x = input(b, "x", DType::I8, &[32, 64]);
            let y = input(b, "y", DType::I8, &[64, 100]);
            Ok(vec![b.matmul(x, y)?])
        }),
        ("convolution", |b| {
            let x = input(b, "x", DType::F32, &[1, 16, 16, 16]);
            let w = input(b, "w", DType::F32, &[16, 16, 3, 3]);
            let edge = WindowDim { pad_lo: Dim::from(1), pad_hi: Dim::from(1), ..WindowDim::unit() };
            let y = b.convolve(x, w, &[edge.clone(), edge], 1, DType::F32)?;
            let zero = b.scalar(DType::F32, 0.0)?;
            Ok(vec![b.max(y, zero)?])
        }),
        ("depthwise", |b| {
            let x = input(b, "x", DType::F32, &[1, 64, 30, 30]);
            let w = input(b, "w", DType::F32, &[64, 1, 3, 3]);
            let stride = WindowDim { stride: 2, ..WindowDim::unit() };
            Ok(vec![b.convolve(x, w, &[stride.clone(), stride], 64, DType::F32)?])
        }),
        ("pooling", |b| {
            let x = input(b, "x", DType::F32, &[1, 32, 40, 40]);
            let w = WindowDim { stride: 2, ..WindowDim::unit() };
            Ok(vec![b.window_reduce(Monoid::Max, x, &[3, 3], &[w.clone(), w])?])
        }),
        ("transpose", |b| {
            let x = input(b, "x", DType::I64, &[28, 12, 66]);
            Ok(vec![b.transpose(x, &[2, 0, 1])?])
        }),
        ("gather", |b| {
            let x = input(b, "x", DType::F32, &[50, 128]);
            let i = input(b, "i", DType::I32, &[64]);
            Ok(vec![b.gather(x, i, 0)?])
        }),
        ("scatter", |b| {
            let x = input(b, "x", DType::F32, &[50, 128]);
            let i = input(b, "i", DType::I64, &[64]);
            let u = input(b, "u", DType::F32, &[64, 128]);
            Ok(vec![b.scatter(x, i, u, Combine::Add)?])
        }),
        ("prefix sums", |b| {
            let x = input(b, "x", DType::I32, &[47, 64]);
            Ok(vec![b.cumulative(Monoid::Sum, x, 1, false, false)?])
        }),
        ("sort", |b| {
            let x = input(b, "x", DType::F32, &[23, 33]);
            b.sort(&[x], 1, true)
        }),
        ("top", |b| {
            let x = input(b, "x", DType::F32, &[23, 64]);
            let (v, i) = b.top_k(x, 1, &Dim::from(4), true)?;
            Ok(vec![v, i])
        }),
        ("extremes of doubles, flags", |b| {
            let x = input(b, "x", DType::F64, &[47, 128]);
            let m = b.reduce_max(x, &[1], false)?;
            let n = b.arg_reduce(x, false, 1, false)?;
            let zero = b.scalar(DType::F64, 0.0)?;
            let p = b.gt(x, zero)?;
            let any = b.reduce_max(p, &[0], false)?;
            Ok(vec![m, n, any])
        }),
    ];
    all.into_iter()
        .map(|(name, build)| {
            let mut b = Builder::new(name);
            let out = build(&mut b).unwrap_or_else(|e| panic!("{name}: {e}"));
            let out: Vec<_> = out.into_iter().enumerate().map(|(i, v)| (format!("out{i}"), v)).collect();
            (name, b.finish(&out).unwrap_or_else(|e| panic!("{name}: {e}")))
        })
        .collect()
}
