//! Every kernel here is lowered for two targets, executed as tile-form loop IR, and compared with its
//! point-by-point evaluation.

mod direct;
mod kernels;
mod words;

use super::{Schedule, form_for, lower_kernel, normal_form};
use crate::lower::{access, nest};
use direct::Direct;
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, BufId, Buffer, Expr, ExprId, Guard, Kernel, Stmt};
use ir::loops_exec;
use ir::loops_opt::eval;
use ir::prim::{BinaryOp, Combine, UnaryOp};
use ir::target::TargetDesc;
use ir::{DType, Dim, Layout, Monoid, Sym, SymKind, Symbols};

pub fn avx512() -> TargetDesc {
    TargetDesc {
        name: "avx512".into(),
        cpu: String::new(),
        features: String::new(),
        vector_bits: 512,
        vector_regs: 32,
        has_fma: true,
        has_masks: true,
        has_f16: true,
        simt: false,
        cache_line: 64,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        threads: 2,
    }
}
pub fn sse() -> TargetDesc {
    TargetDesc { name: "sse".into(), vector_bits: 128, vector_regs: 16, has_masks: false, ..avx512() }
}

/// Elements of one buffer; `None` where nobody writes.
pub type Memory = Vec<Option<Scalar>>;

/// SplitMix64.
pub struct Random(pub u64);
impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn pick<T: Copy>(&mut self, xs: &[T]) -> T {
        xs[self.below(xs.len() as u64) as usize]
    }
}

/// Builds kernels without ceremony.
#[derive(Default)]
pub struct Build {
    pub k: Kernel,
    pub symbols: Symbols,
    pub values: Vec<i64>,
}

impl Build {
    pub fn new(name: &str) -> Build {
        let mut b = Build::default();
        b.k.name = name.into();
        b
    }
    /// A size of value `n`: known, or a symbol that has it at run time.
    pub fn size(&mut self, n: i64, symbolic: bool) -> Dim {
        if !symbolic {
            return Dim::from(n);
        }
        self.values.push(n);
        Dim::from(self.symbols.fresh(format!("s{n}"), SymKind::Entry))
    }
    pub fn axis(&mut self, name: &str, extent: impl Into<Dim>) -> (Axis, Dim) {
        let var = self.k.new_var(name);
        (Axis { var, extent: extent.into() }, Dim::from(var))
    }
    pub fn buf(&mut self, name: &str, dtype: DType, shape: &[Dim], access: Access) -> BufId {
        self.k.add_buffer(Buffer {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            layout: Layout::row_major(shape.len()),
            access,
            constant: false,
        })
    }
    pub fn input(&mut self, name: &str, shape: &[Dim]) -> BufId {
        self.buf(name, DType::F32, shape, Access::Read)
    }
    pub fn output(&mut self, name: &str, shape: &[Dim]) -> BufId {
        self.buf(name, DType::F32, shape, Access::Write)
    }
    pub fn layout(&mut self, b: BufId, layout: Layout) {
        self.k.buffers[b.0 as usize].layout = layout;
    }
    pub fn read(&mut self, buf: BufId, index: &[&Dim]) -> ExprId {
        self.guarded(buf, index, &[], 0.0)
    }
    pub fn guarded(&mut self, buf: BufId, index: &[&Dim], guards: &[(Dim, Dim)], fill: f64) -> ExprId {
        let fill = Scalar::of(self.k.buffers[buf.0 as usize].dtype, fill);
        let guards = guards.iter().map(|(e, b)| Guard { expr: e.clone(), bound: b.clone() }).collect();
        let index = index.iter().map(|d| (*d).clone()).collect();
        self.k.expr(Expr::Read { buf, index, guards, fill })
    }
    pub fn bin(&mut self, op: BinaryOp, a: ExprId, b: ExprId) -> ExprId {
        self.k.expr(Expr::Binary(op, a, b))
    }
    pub fn un(&mut self, op: UnaryOp, a: ExprId) -> ExprId {
        self.k.expr(Expr::Unary(op, a))
    }
    pub fn float(&mut self, x: f64) -> ExprId {
        self.k.expr(Expr::Const(DType::F32, Scalar::Float(x)))
    }
    pub fn reduce(&mut self, monoid: Monoid, axes: &[&Axis], value: ExprId) -> ExprId {
        let local = self.k.new_local();
        let acc = crate::lower::axes::dtype_of(&self.k, value, &[]);
        let axes = axes.iter().map(|a| (*a).clone()).collect();
        self.k.stmts.push(Stmt::Reduce { local, acc, monoid, axes, value });
        self.k.expr(Expr::Local(local))
    }
    pub fn store(&mut self, axes: &[&Axis], buf: BufId, index: &[&Dim], value: ExprId) {
        let axes = axes.iter().map(|a| (*a).clone()).collect();
        let index = index.iter().map(|d| (*d).clone()).collect();
        let s = Stmt::Store { axes, buf, index, guards: Vec::new(), value, combine: Combine::Set };
        self.k.stmts.push(s);
    }
    pub fn domain(&mut self, axes: &[&Axis]) {
        self.k.domain = axes.iter().map(|a| (*a).clone()).collect();
    }

    /// Lowers, executes every variant that is usable, and compares.
    pub fn check(&self) {
        for target in [avx512(), sse()] {
            self.check_on(&target);
        }
    }
    pub fn check_on(&self, target: &TargetDesc) -> Vec<String> {
        let k = &self.k;
        let syms = |s: Sym| self.values[s.0 as usize];
        let lowered = lower_kernel(k, &self.symbols, target).unwrap_or_else(|e| panic!("{e}\n{k:#?}"));
        let bufs = self.memories();
        let expect = Direct::run(k, bufs.clone(), &syms);
        let normal = form_for(k, &self.symbols, target).unwrap();
        let mut used = 0;
        for v in &lowered.variants {
            let holds = v.guards.iter().all(|g| {
                let at = |d: &Dim| d.eval_syms(&|s| Some(syms(s))).unwrap();
                (0..at(&g.bound)).contains(&at(&g.expr))
            });
            let parsed = Schedule::parse(&v.schedule, &normal).unwrap();
            assert_eq!(parsed.text(&normal), v.schedule);
            let again = nest::lower(&normal, &self.symbols, &parsed, v.func.launch.ns_per_iter).unwrap();
            assert_eq!(again, v.func, "a printed schedule replays");
            if !holds {
                continue;
            }
            used += 1;
            let place = format!("{} on {} by {}", k.name, target.name, v.schedule);
            let mut got: Vec<Vec<u8>> =
                bufs.iter().zip(&k.buffers).map(|(m, b)| encode(m, b.dtype)).collect();
            let values: Vec<i64> = v.func.syms.iter().map(|s| syms(*s)).collect();
            let trip = v.func.launch.trip.eval_syms(&|s| Some(syms(s))).unwrap();
            let status = loops_exec::execute(&v.func, &mut got, &values, 0, trip)
                .unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!(expect.failed > 0, status != loops_exec::Status::Ok, "{place}: {status:?}");
            for (i, b) in k.buffers.iter().enumerate() {
                compare(&place, b, &got[i], &expect.bufs[i]);
            }
        }
        assert!(used > 0, "no variant for these sizes");
        lowered.variants.iter().map(|v| v.schedule.clone()).collect()
    }

    fn memories(&self) -> Vec<Memory> {
        let mut random = Random(7);
        let syms = |s: Sym| Some(self.values[s.0 as usize]);
        let mut memories = Vec::new();
        for b in &self.k.buffers {
            let elems = access::physical_elems(&b.shape, &b.layout, &self.symbols);
            let n = elems.eval_syms(&syms).unwrap() as usize;
            if b.access == Access::Write {
                memories.push(vec![None; n]);
                continue;
            }
            // what no logical element occupies holds zeros: halo and padding
            let mut memory = vec![Some(Scalar::zero(b.dtype)); n];
            let shape: Vec<usize> = b.shape.iter().map(|d| d.eval_syms(&syms).unwrap() as usize).collect();
            let count: usize = shape.iter().product();
            for i in 0..count {
                let mut rest = i;
                let mut at = vec![0; shape.len()];
                for d in (0..shape.len()).rev() {
                    at[d] = rest % shape[d];
                    rest /= shape[d];
                }
                let x = random.below(17) as i64 - 8;
                memory[b.layout.offset(&shape, &at)] = Some(match b.dtype {
                    DType::Bool => Scalar::Int((x > 0).into()),
                    t if t.is_float() => Scalar::Float(x as f64 / 4.0),
                    DType::I64 | DType::I32 => Scalar::Int((x.unsigned_abs() % 4).into()),
                    _ => Scalar::Int(x.unsigned_abs().into()),
                });
            }
            memories.push(memory);
        }
        memories
    }
}

/// What memory holds before anything is written.
const PATTERN: u8 = 0xA5;

fn encode(memory: &Memory, dtype: DType) -> Vec<u8> {
    let n = dtype.bytes();
    let element = |e: &Option<Scalar>| match e {
        Some(s) => eval::to_bits(dtype, *s).to_le_bytes()[..n].to_vec(),
        None => vec![PATTERN; n],
    };
    memory.iter().flat_map(element).collect()
}

/// Elements that nobody writes must hold what they held.
fn compare(place: &str, b: &Buffer, got: &[u8], expect: &Memory) {
    let n = b.dtype.bytes();
    let same_bytes = encode(expect, b.dtype);
    for (i, e) in expect.iter().enumerate() {
        let raw = &got[i * n..(i + 1) * n];
        let bits = raw.iter().rev().fold(0u64, |w, x| w << 8 | u64::from(*x));
        let g = eval::from_bits(b.dtype, bits);
        let same = raw == &same_bytes[i * n..(i + 1) * n]
            || match (g, e) {
                (Scalar::Float(g), Some(Scalar::Float(e))) => {
                    g.is_nan() && e.is_nan() || (g - e).abs() <= 2e-5 * (1.0 + e.abs())
                }
                _ => false,
            };
        assert!(same, "{place}: element {i} of {} is {g:?}, expected {e:?}", b.name);
    }
}
