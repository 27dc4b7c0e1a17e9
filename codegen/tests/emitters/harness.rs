//! Builds functions around one expression, compiles them all at once, runs them and compares.

use format::abi::{KernelArgs, KernelStatus};
use ir::DType;
use ir::loops::{Form, Func, Launch, Level, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::loops_opt::eval;
use kernelsmith_codegen::ptx::Ptx;
use kernelsmith_codegen::{Backend, available, backend};
use runtime::loader::CodeImage;

/// Types of registers that hold numbers.
pub const NUMBERS: [DType; 6] = [DType::F32, DType::F64, DType::I32, DType::U32, DType::I64, DType::U64];

/// A function, its operands, and what each operand should hold afterwards (`None`: anything).
pub struct Case {
    pub label: String,
    pub func: Func,
    pub bufs: Vec<Vec<u8>>,
    pub syms: Vec<i64>,
    pub expect: Vec<Option<Vec<u8>>>,
    pub range: (i64, i64),
    /// Iterations of the parallel loop.
    pub trip: i64,
    /// Flag, value and limit. Where several iterations fail, those of the first one.
    pub status: (i64, i64, i64),
    /// Those of all iterations that fail, where there are several: on a GPU any may be reported.
    pub failures: Vec<(i64, i64, i64)>,
    pub near: Near,
    /// By operand, the first one in whose memory it lies (on a GPU; the host gives each its own).
    pub place: Vec<usize>,
}

/// What counts as the expected number.
#[derive(Clone, Copy, Default)]
pub struct Near {
    /// Either zero where a zero is expected.
    pub any_zero: bool,
    /// Deviation of a float, relative to its magnitude or to 1.
    pub relative: f64,
}

impl Case {
    pub fn new(
        label: impl Into<String>,
        func: Func,
        bufs: Vec<Vec<u8>>,
        expect: Vec<Option<Vec<u8>>>,
        trip: i64,
    ) -> Case {
        let label = label.into();
        let (range, status) = ((0, trip), (0, 0, 0));
        let place = (0..bufs.len()).collect();
        let near = Near::default();
        let (syms, failures) = (Vec::new(), Vec::new());
        Case { label, func, bufs, syms, expect, range, trip, status, failures, near, place }
    }
}

/// Ends a function and marks it as machine form.
pub fn machine(b: LoopBuilder) -> Func {
    let mut func = b.finish(Launch::default());
    func.form = Form::Machine;
    func
}

/// `out[i] = f(in0[i], in1[i], ...)` over `n` elements in steps of `lanes`; operand types in memory and in
/// registers.
pub fn map(
    lanes: u32,
    n: usize,
    inputs: &[(DType, DType)],
    out: DType,
    f: impl Fn(&mut LoopBuilder, &[Val]) -> Val,
) -> Func {
    let mut b = LoopBuilder::new("map");
    let mems: Vec<_> = inputs.iter().map(|(mem, _)| b.buf("in", *mem, false, 64)).collect();
    let result = b.buf("out", out, true, 64);
    assert!(n.is_multiple_of(lanes as usize), "{n} elements in steps of {lanes}");
    let trip = b.index(n as i64 / i64::from(lanes));
    b.parallel(Level::Thread, trip, |b, i| {
        let width = b.index(i64::from(lanes));
        let at = b.mul(i, width);
        let loads: Vec<_> = mems
            .iter()
            .zip(inputs)
            .map(|(mem, (_, reg))| b.load_as(b.addr(*mem, at, 0), Ty::vector(*reg, lanes)))
            .collect();
        let value = f(b, &loads);
        let addr = b.addr(result, at, 0);
        b.store(addr, value);
    });
    machine(b)
}

/// The widths that a backend's functions come in: its vectors, and scalars.
pub fn widths(backend: &dyn Backend) -> [u32; 2] {
    [backend.target().lanes(4), 1]
}

/// Runs what `cases` makes for each backend and each width.
#[track_caller]
pub fn check(cases: impl Fn(u32, &dyn Backend) -> Vec<Case>) {
    for backend in backends() {
        for lanes in widths(&*backend) {
            run(&*backend, lanes, cases(lanes, &*backend));
        }
    }
}

/// Every emitter of this build: those for the host, and the one of PTX.
pub fn backends() -> Vec<Box<dyn Backend>> {
    let host = available().into_iter().map(|name| backend(name, 2).expect("the host is supported"));
    host.chain([Box::new(Ptx::new(1)) as Box<dyn Backend>]).collect()
}

/// Of the kernels of one call, so many go through ptxas as well, where it is installed.
const ASSEMBLED: usize = 24;

#[track_caller]
pub fn run(backend: &dyn Backend, lanes: u32, cases: Vec<Case>) {
    let funcs: Vec<&Func> = cases.iter().map(|c| &c.func).collect();
    let compiled = match backend.compile(&funcs) {
        Ok(c) => c,
        Err(e) => panic!("{} x {lanes}: {e}", backend.name()),
    };
    if backend.name() == "ptx" {
        for (case, compiled) in cases.iter().zip(&compiled) {
            crate::ptx::run(case, lanes, compiled);
        }
        crate::ptx::assemble(&compiled, ASSEMBLED);
        return;
    }
    let objects: Vec<_> = compiled.iter().map(|c| &c.object).collect();
    let image = CodeImage::load(&objects).expect("objects load");
    for (i, mut case) in cases.into_iter().enumerate() {
        let what = format!("{} on {} x {lanes}", case.label, backend.name());
        let kernel = image.function(i, &compiled[i].symbol).expect("the symbol exists");
        let mut bufs: Vec<Aligned> = case.bufs.drain(..).map(Aligned::new).collect();
        let pointers: Vec<*mut u8> = bufs.iter_mut().map(Aligned::as_mut_ptr).collect();
        let mut scratch = Aligned::new(vec![0xEE; 1 << 16]);
        let mut status = KernelStatus::default();
        let args = KernelArgs {
            bufs: pointers.as_ptr(),
            syms: case.syms.as_ptr(),
            scratch: scratch.as_mut_ptr(),
            status: &mut status,
        };
        // SAFETY: the operands are as large as the expectations that the cases state for them.
        unsafe { kernel(&args, case.range.0, case.range.1) };
        let got = (*status.flag.get_mut(), *status.value.get_mut(), *status.limit.get_mut());
        assert_eq!(got, case.status, "status of {what}");
        for (b, buf) in bufs.iter().enumerate() {
            if let Some(difference) = case.difference(b, buf.bytes(), case.near) {
                panic!("{what}: {difference}\n{}", backend.ir_text(&case.func).unwrap_or_default());
            }
        }
    }
}

impl Case {
    /// What operand `b` should not hold; all NaNs are equal.
    pub fn difference(&self, b: usize, got: &[u8], near: Near) -> Option<String> {
        let (dtype, expect) = (self.func.bufs[b].dtype, self.expect[b].as_ref()?);
        assert_eq!(got.len(), expect.len());
        let size = dtype.bytes();
        let value = |c: &[u8]| {
            let mut word = [0; 8];
            word[..size].copy_from_slice(c);
            // other numbers agree bit by bit
            if dtype.is_float() {
                eval::from_bits(dtype, u64::from_le_bytes(word)).as_f64()
            } else {
                f64::INFINITY
            }
        };
        let same = |g: &[u8], e: &[u8]| {
            let (x, y) = (value(g), value(e));
            let close = y.is_finite() && (x - y).abs() <= near.relative * y.abs().max(1.0);
            let zeros = x == 0.0 && y == 0.0;
            // a relative deviation of 0 makes zeros close whatever their signs
            g == e || x.is_nan() && y.is_nan() || if zeros { near.any_zero } else { close }
        };
        let (at, (g, e)) =
            got.chunks(size).zip(expect.chunks(size)).enumerate().find(|(_, (g, e))| !same(g, e))?;
        Some(format!("operand {b} ({dtype}) element {at}: got {g:02x?}, expected {e:02x?}"))
    }
}

/// Bytes at a 64-byte boundary with room behind them that must stay as it is.
struct Aligned {
    words: Vec<[u64; 8]>,
    len: usize,
}

const GUARD: u64 = 0xA5A5_A5A5_A5A5_A5A5;

impl Aligned {
    fn new(bytes: Vec<u8>) -> Aligned {
        // [u64; 8] is aligned to 8 only; one extra block lets `skip` find a boundary
        let blocks = bytes.len().div_ceil(64) + 3;
        let mut aligned = Aligned { words: vec![[GUARD; 8]; blocks], len: bytes.len() };
        let (skip, len) = (aligned.skip(), aligned.len);
        aligned.all_mut()[skip..skip + len].copy_from_slice(&bytes);
        aligned
    }
    fn skip(&self) -> usize {
        self.words.as_ptr().cast::<u8>().align_offset(64)
    }
    fn all_mut(&mut self) -> &mut [u8] {
        let n = self.words.len() * 64;
        // SAFETY: plain words are valid as bytes.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), n) }
    }
    fn as_mut_ptr(&mut self) -> *mut u8 {
        let skip = self.skip();
        self.all_mut()[skip..].as_mut_ptr()
    }
    fn bytes(&self) -> &[u8] {
        // SAFETY: as above; the boundary and the length lie inside the words.
        let all: &[u8] =
            unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 64) };
        let (before, rest) = all.split_at(self.skip());
        let (bytes, after) = rest.split_at(self.len);
        assert!(before.iter().chain(after).all(|b| *b == GUARD as u8), "a write beside the operand");
        bytes
    }
}

/// A number of one of the register types.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Num {
    F(f64),
    I(i128),
}

/// Interesting values of a type, a multiple of 16 of them.
pub fn values(dtype: DType) -> Vec<Num> {
    let list: Vec<Num> = if dtype.is_float() {
        let list = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            1.5,
            2.5,
            -2.5,
            3.7,
            -3.7,
            1e-3,
            1e9,
            -1e9,
            4e9,
            -4e9,
            1e10,
            1e19,
            -1e19,
            2e19,
            1e30,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            16777217.0,
            0.1,
            -0.1,
            8388609.5,
            2147483647.0,
            -2147483648.0,
            255.0,
            1e-40,
        ];
        list.iter()
            .map(|x| if dtype == DType::F32 { Num::F(f64::from(*x as f32)) } else { Num::F(*x) })
            .collect()
    } else {
        let (lo, hi) = dtype.int_range().unwrap();
        let mut list: Vec<i128> = vec![
            0,
            1,
            2,
            3,
            5,
            7,
            8,
            31,
            100,
            127,
            128,
            255,
            32767,
            65535,
            1 << 30,
            hi,
            hi - 1,
            hi / 2,
            lo,
            lo + 1,
        ];
        list.extend(
            [-1i128, -2, -3, -7, -8, -100, -32768, 12345, 99999, 1 << 31, (1 << 31) - 1, 77]
                .map(|x| wrap(dtype, x)),
        );
        list.iter().map(|x| Num::I(wrap(dtype, *x))).collect()
    };
    assert_eq!(list.len(), 32);
    list
}

/// An integer wrapped to a type.
pub fn wrap(dtype: DType, x: i128) -> i128 {
    let bits = 8 * dtype.bytes() as u32;
    let low = x & ((1i128 << bits) - 1);
    if dtype.is_signed_int() && low >> (bits - 1) == 1 { low - (1i128 << bits) } else { low }
}

/// Numbers as they are stored.
pub fn store(dtype: DType, values: &[Num]) -> Vec<u8> {
    let one = |v: &Num| -> Vec<u8> {
        match (dtype, *v) {
            (DType::F32, Num::F(x)) => (x as f32).to_le_bytes().to_vec(),
            (DType::F64, Num::F(x)) => x.to_le_bytes().to_vec(),
            (d, Num::I(x)) => x.to_le_bytes()[..d.bytes()].to_vec(),
            (d, Num::F(x)) => panic!("{x} as {d}"),
        }
    };
    values.iter().flat_map(one).collect()
}
