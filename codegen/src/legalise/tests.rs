//! Tile form and its machine form compute the same, both run by the loop interpreter.

use super::{legalise, legalise_with};
use crate::legalise::Options;
use ir::dtype::{DType, Scalar};
use ir::loops::{Addr, Func, Inst, Launch, Level, Mem, Stride, Ty};
use ir::loops_build::LoopBuilder;
use ir::loops_exec::{Status, execute};
use ir::loops_opt::eval;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use ir::target::TargetDesc;

fn target(vector_bits: u32, has_f16: bool) -> TargetDesc {
    TargetDesc {
        name: "test".into(),
        cpu: String::new(),
        features: String::new(),
        vector_bits,
        vector_regs: 32,
        has_fma: vector_bits > 128,
        has_masks: true,
        has_f16,
        simt: false,
        cache_line: 64,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        threads: 1,
    }
}

fn targets() -> [TargetDesc; 3] {
    [target(512, true), target(128, false), target(256, false)]
}

fn bytes(dtype: DType, xs: impl IntoIterator<Item = Scalar>) -> Vec<u8> {
    let n = dtype.bytes();
    xs.into_iter().flat_map(|x| eval::to_bits(dtype, x).to_le_bytes()[..n].to_vec()).collect()
}

/// Runs both forms on the same buffers and compares every byte.
fn check(f: &Func, bufs: &[Vec<u8>], what: &str) {
    check_with(f, bufs, what, Options::default());
}

fn check_with(f: &Func, bufs: &[Vec<u8>], what: &str, options: Options) {
    ir::verify::loops::verify(f).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut want = bufs.to_vec();
    let status = execute(f, &mut want, &[], 0, 2).unwrap();
    for t in targets() {
        let m = legalise_with(f, &t, options).unwrap();
        ir::verify::loops::verify(&m).unwrap_or_else(|e| panic!("{what}: {e}\n{m}"));
        assert_eq!(ir::text::loops::parse(&m.to_string()).as_ref(), Ok(&m), "{what}");
        let mut got = bufs.to_vec();
        assert_eq!(execute(&m, &mut got, &[], 0, 2).unwrap(), status, "{what} {}", t.vector_bits);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let dtype = f.bufs[i].dtype;
            let size = dtype.bytes();
            let value = |c: &[u8]| {
                let mut word = [0; 8];
                word[..size].copy_from_slice(c);
                eval::from_bits(dtype, u64::from_le_bytes(word))
            };
            for (at, (g, w)) in g.chunks(size).zip(w.chunks(size)).enumerate() {
                // which NaN it is means nothing
                let same = g == w || value(g).as_f64().is_nan() && value(w).as_f64().is_nan();
                assert!(
                    same,
                    "{what}, {} bits: element {at} of buffer {i} is {:?}, expected {:?}",
                    t.vector_bits,
                    value(g),
                    value(w)
                );
            }
        }
    }
}

/// Values that show rounding, wrapping and limits in every type.
fn samples(dtype: DType) -> Vec<Scalar> {
    let floats = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        2.5,
        3.0,
        0.1,
        -7.3,
        100.0,
        127.5,
        200.0,
        -129.0,
        255.5,
        65504.0,
        65520.0,
        7e4,
        -1e5,
        1e9,
        3e9,
        -3e9,
        1e10,
        1e19,
        1e38,
        3.4e38,
        1e39,
        -1e300,
        1e-3,
        6e-8,
        2.9e-8,
        1e-10,
        1e-38,
        1e-41,
        448.0,
        464.0,
        465.0,
        240.0,
        248.0,
        57344.0,
        61440.0,
        0.25,
        0.75,
        5.0,
        5.1,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1.0009765625,
        1.00048828125,
        0.0009765625,
        1.001953126,
        33.0,
        1.00390625,
        1.01171875,
    ];
    let ints: [i128; 24] = [
        0,
        1,
        -1,
        2,
        3,
        7,
        8,
        -8,
        15,
        16,
        100,
        127,
        128,
        -128,
        -129,
        255,
        256,
        32767,
        -32769,
        65536,
        2147483647,
        -2147483648,
        1 << 40,
        -(1 << 62) - 1,
    ];
    let n = 64;
    let mut v: Vec<Scalar> = if dtype.is_float() {
        floats.iter().map(|x| Scalar::Float(*x)).collect()
    } else {
        ints.iter().map(|x| Scalar::Int(*x)).collect()
    };
    let base = v.clone();
    while v.len() < n {
        v.push(base[(v.len() * 7) % base.len()]);
    }
    v.truncate(n);
    v.into_iter().map(|s| eval::normalise(dtype, s)).collect()
}

#[test]
fn every_conversion() {
    for from in DType::ALL {
        for to in DType::ALL {
            if from == DType::String || to == DType::String {
                continue;
            }
            for mode in [ConvertMode::Plain, ConvertMode::Saturate] {
                let mut b = LoopBuilder::new("f");
                let (x, y, z) =
                    (b.buf("x", from, false, 64), b.buf("y", to, true, 64), b.buf("z", from, true, 64));
                let two = b.index(2);
                b.parallel(Level::Thread, two, |b, p| {
                    let c = b.index(32);
                    let at = b.mul(p, c);
                    let [ax, ay, az] = [x, y, z].map(|m| b.addr(m, at, 0));
                    let v = b.load(ax, 1, 32);
                    let w = b.convert(to, mode, v);
                    b.store(ay, w);
                    // back again: the converted value must have been rounded
                    let v = b.convert(from, mode, w);
                    b.store(az, v);
                });
                let f = b.finish(Launch::default());
                let data = bytes(from, samples(from));
                let out = vec![0xaa; 64 * to.bytes()];
                check(&f, &[data.clone(), out, data], &format!("{from} to {to} {}", mode.name()));
            }
        }
    }
}

#[test]
fn integer_arithmetic_of_every_type() {
    use BinaryOp as B;
    for dtype in DType::ALL.into_iter().filter(|d| d.is_int()) {
        for op in [
            B::Add,
            B::Sub,
            B::Mul,
            B::Div,
            B::Rem,
            B::Min,
            B::Max,
            B::And,
            B::Or,
            B::Xor,
            B::Shl,
            B::Shr,
            B::Pow,
        ] {
            let mut b = LoopBuilder::new("f");
            let (x, y) = (b.buf("x", dtype, false, 64), b.buf("y", dtype, true, 64));
            let two = b.index(2);
            b.parallel(Level::Thread, two, |b, p| {
                let c = b.index(32);
                let at = b.mul(p, c);
                let (ax, ay) = (b.addr(x, at, 0), b.addr(y, at, 0));
                let v = b.load(ax, 1, 32);
                // shifted by one: every value meets another
                let idx = b.iota(Ty::vector(DType::I64, 32), true);
                let c5 = b.index(5);
                let idx = b.add(idx, c5);
                let c31 = b.index(31);
                let idx = b.and(idx, c31);
                let idx = b.add(idx, at);
                let w = b.gather(x, idx, None);
                let r = b.binary(op, v, w);
                let r = b.binary(B::Add, r, v);
                let n = b.unary(UnaryOp::Neg, r);
                let less = b.cmp(CmpOp::Lt, n, w);
                let a = b.unary(UnaryOp::Abs, n);
                let not = b.not(a);
                let r = b.select(less, r, not);
                b.store(ay, r);
            });
            let f = b.finish(Launch::default());
            let data = bytes(dtype, samples(dtype));
            check(&f, &[data.clone(), data], &format!("{} of {dtype}", op.name()));
        }
    }
}

#[test]
fn halves_round_after_every_step_when_strict() {
    for dtype in [DType::F16, DType::BF16] {
        let mut b = LoopBuilder::new("f");
        let (x, y) = (b.buf("x", dtype, false, 64), b.buf("y", dtype, true, 64));
        let two = b.index(2);
        b.parallel(Level::Thread, two, |b, p| {
            let c = b.index(32);
            let at = b.mul(p, c);
            let (ax, ay) = (b.addr(x, at, 0), b.addr(y, at, 0));
            let v = b.load(ax, 1, 32);
            let third = b.float(b.ty(v), 0.3333);
            let mut w = b.mul(v, third);
            w = b.add(w, v);
            w = b.sub(w, third);
            b.store(ay, w);
        });
        let f = b.finish(Launch::default());
        let data = bytes(
            dtype,
            samples(dtype)
                .into_iter()
                .map(|s| {
                    // NaN patterns may differ
                    if s.as_f64().is_nan() { Scalar::Float(3.0) } else { s }
                })
                .map(|s| if s.as_f64().is_infinite() { Scalar::Float(5.0) } else { s }),
        );
        check_with(
            &f,
            &[data.clone(), data],
            dtype.name(),
            Options { strict_halves: true, ..Options::default() },
        );
    }
}

/// Numbers around every place where rounding changes: normal and denormal results, ties, overflow, zeros of both
/// signs, what is no number.
#[test]
fn halves_round_as_a_conversion_does() {
    for dtype in [DType::F16, DType::BF16, DType::F8E5M2] {
        let mut xs =
            vec![0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 65504.0, 65519.99, 65520.0, 3e38];
        for e in -30..20 {
            for k in [4096, 4097, 4098, 4099, 4100, 4101, 4102, 4103, 4104, 6143, 6145, 8191] {
                xs.extend([-1.0, 1.0].map(|s| s * f64::from(k) / 4096.0 * 2f64.powi(e)));
            }
        }
        xs.resize(xs.len().next_multiple_of(32), 1.0);
        let n = xs.len() as i64;
        let mut b = LoopBuilder::new("f");
        let (x, y) = (b.buf("x", DType::F32, false, 64), b.buf("y", DType::F32, true, 64));
        let count = b.index(n / 32);
        b.parallel(Level::Thread, count, |b, p| {
            let c = b.index(32);
            let at = b.mul(p, c);
            let (ax, ay) = (b.addr(x, at, 0), b.addr(y, at, 0));
            let v = b.load(ax, 1, 32);
            let v = b.convert(dtype, ConvertMode::Plain, v);
            let w = b.convert(DType::F32, ConvertMode::Plain, v);
            b.store(ay, w);
        });
        let f = b.finish(Launch::default());
        let data = bytes(DType::F32, xs.iter().map(|&x| Scalar::Float(x)));
        check_with(
            &f,
            &[data.clone(), data],
            dtype.name(),
            Options { strict_halves: true, ..Options::default() },
        );
    }
}

/// Rectangles with strides, partial columns, broadcasts and reductions.
#[test]
fn tiles_of_odd_sizes() {
    for cols in [1u32, 2, 3, 4, 7, 8, 15, 16, 17, 33, 48] {
        for rows in [1u32, 2, 5] {
            for (row, col) in [(64i64, 1i64), (1, 5), (3, 0), (-64, 1), (2, -5)] {
                for valid in [None, Some(0i64), Some(3), Some(16), Some(40)] {
                    tile_case(rows, cols, row, col, valid);
                }
            }
        }
    }
}

fn tile_case(rows: u32, cols: u32, row: i64, col: i64, valid: Option<i64>) {
    let mut b = LoopBuilder::new("f");
    let x = b.buf("x", DType::F32, false, 64);
    let y = b.buf("y", DType::F32, true, 64);
    let s = b.buf("s", DType::F32, true, 64);
    let u = b.buf("u", DType::I8, true, 64);
    let n = b.buf("n", DType::I64, false, 64);
    let two = b.index(2);
    b.parallel(Level::Thread, two, |b, p| {
        let zero = b.index(0);
        // a run-time number of columns and a run-time stride
        let an = b.addr(n, zero, 0);
        let count = b.load(an, 1, 1);
        let an = b.addr(n, zero, 1);
        let run_stride = b.load(an, 1, 1);
        let at = |mem: Mem, b: &mut LoopBuilder| Addr {
            row: Stride::Val(run_stride),
            col: Stride::Const(col),
            cols_valid: valid.map(|_| count),
            ..b.addr(mem, p, 400)
        };
        let a = at(x, b);
        let v = b.load(a, rows, cols);
        let first_col = Addr { cols_valid: None, ..at(x, b) };
        let c = b.load(first_col, rows, 1);
        let a = Addr { cols_valid: None, ..at(x, b) };
        let r = b.load(a, 1, cols);
        let t = b.fma(v, c, r);
        let t = b.fma(t, v, t);
        let iota = b.iota(Ty::tile(DType::I32, rows, cols), true);
        let rowi = b.iota(Ty::tile(DType::I32, rows, cols), false);
        let sum = b.add(iota, rowi);
        let f = b.convert(DType::F32, ConvertMode::Plain, sum);
        let t = b.add(t, f);
        let a = at(y, b);
        b.store(a, t);
        let max = b.reduce_cols(Monoid::Max, t);
        let total = b.reduce_rows(Monoid::Min, max);
        let corner = b.extract(t, rows - 1, cols - 1);
        let total = b.add(total, corner);
        let c100 = b.index(100);
        let slot = b.mul(p, c100);
        let a = b.addr(s, slot, 0);
        b.store(a, total);
        let mins = b.reduce_rows(Monoid::Min, t);
        let a = Addr { cols_valid: valid.map(|_| count), ..b.addr(s, slot, 1) };
        b.store(a, mins);
        // bytes, element by element where the value is even
        let bytes = b.convert(DType::I8, ConvertMode::Plain, sum);
        let one = b.int(Ty::scalar(DType::I32), 1);
        let low = b.and(sum, one);
        let zero32 = b.int(Ty::scalar(DType::I32), 0);
        let even = b.cmp(CmpOp::Eq, low, zero32);
        let wide = b.convert(DType::I64, ConvertMode::Plain, iota);
        let widerow = b.convert(DType::I64, ConvertMode::Plain, rowi);
        let c50 = b.index(50);
        let off = b.mul(widerow, c50);
        let idx = b.add(wide, off);
        b.scatter(u, idx, bytes, Some(even));
        let back = b.gather(u, idx, Some(even));
        let back = b.convert(DType::F32, ConvertMode::Plain, back);
        let back = b.reduce_cols(Monoid::Sum, back);
        let back = b.reduce_rows(Monoid::Sum, back);
        let a = b.addr(s, slot, 60);
        b.store(a, back);
    });
    let f = b.finish(Launch::default());
    let data = bytes(DType::F32, (0..1000).map(|i| Scalar::Float(f64::from((i * 37) % 11))));
    let bufs = [
        data.clone(),
        data.clone(),
        data,
        vec![0; 400],
        bytes(DType::I64, [valid.unwrap_or(0), row].map(|v| Scalar::Int(v.into()))),
    ];
    check(&f, &bufs, &format!("{rows}x{cols} stride {row},{col} valid {valid:?}"));
}

#[test]
fn squares_are_transposed_in_registers() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8, DType::F64, DType::U64] {
        for (rows, cols) in [(16, 16), (32, 16), (16, 48)] {
            let mut b = LoopBuilder::new("f");
            let (x, y) = (b.buf("x", dtype, false, 64), b.buf("y", dtype, true, 64));
            let two = b.index(2);
            b.parallel(Level::Thread, two, |b, p| {
                let c = b.index(35);
                let at = b.mul(p, c);
                let from = Addr { row: Stride::Const(1), col: Stride::Const(50), ..b.addr(x, at, 3) };
                let v = b.load(from, rows, cols);
                let c = b.index(1600);
                let at = b.mul(p, c);
                let to = Addr { row: Stride::Const(50), ..b.addr(y, at, 0) };
                b.store(to, v);
            });
            let f = b.finish(Launch::default());
            let data = bytes(dtype, (0..3300).map(|i| Scalar::of(dtype, f64::from(i % 61))));
            check(&f, &[data.clone(), data], &format!("{rows}x{cols} of {dtype}"));
            for t in targets() {
                let text = legalise(&f, &t).unwrap().to_string();
                assert!(text.contains("shuffle") && !text.contains("insert"), "{text}");
            }
        }
    }
}

#[test]
fn control_flow_with_tiles() {
    let mut b = LoopBuilder::new("g");
    let x = b.buf("x", DType::I16, true, 64);
    let done = b.buf("done", DType::F32, true, 64);
    let two = b.index(2);
    b.parallel(Level::Thread, two, |b, p| {
        let c = b.index(40);
        let at = b.mul(p, c);
        let start = Addr { row: Stride::Const(20), ..b.addr(x, at, 0) };
        let v = b.load(start, 2, 20);
        let (lo, hi) = (b.index(0), b.index(5));
        let acc = b.zero(Ty::tile(DType::F32, 2, 20));
        let out = b.for_(lo, hi, 2, &[v, acc], |b, i, c| {
            let i16 = b.convert(DType::I16, ConvertMode::Plain, i);
            let k = b.int(Ty::scalar(DType::I16), 1000);
            let m = b.mul(c[0], k);
            let next = b.add(m, i16);
            let f = b.convert(DType::F32, ConvertMode::Plain, next);
            let acc = b.add(c[1], f);
            vec![next, acc]
        });
        // halve until small
        let small = b.while_(
            &[out[1]],
            |b, c| {
                let abs = b.unary(UnaryOp::Abs, c[0]);
                let most = b.reduce_cols(Monoid::Max, abs);
                let most = b.reduce_rows(Monoid::Max, most);
                let limit = b.float(Ty::scalar(DType::F32), 10.0);
                b.cmp(CmpOp::Gt, most, limit)
            },
            |b, c| {
                let h = b.float(Ty::scalar(DType::F32), 0.5);
                vec![b.mul(c[0], h)]
            },
        );
        let zero = b.index(0);
        let first = b.cmp(CmpOp::Eq, p, zero);
        let chosen = b.if_(first, |b| vec![b.unary(UnaryOp::Neg, out[0])], |_| vec![out[0]]);
        b.store(start, chosen[0]);
        let a = Addr { row: Stride::Const(20), ..b.addr(done, at, 0) };
        b.store(a, small[0]);
        let limit = b.index(1);
        let ok = b.cmp(CmpOp::Lt, p, limit);
        b.check(ok, ir::OriginId(3), p, limit);
    });
    let f = b.finish(Launch::default());
    let data = bytes(DType::I16, (0..80).map(|i| Scalar::Int(i * 13 - 200)));
    check(&f, &[data, vec![0; 320]], "control flow");
    let m = legalise(&f, &target(512, true)).unwrap();
    let mut bufs = [vec![0; 160], vec![0; 320]];
    let status = execute(&m, &mut bufs, &[], 0, 2).unwrap();
    assert_eq!(status, Status::Failed { origin: ir::OriginId(3), value: 1, limit: 1 });
}

/// The register-tiled matrix product: one load of B a step and column, accumulators carried, and nothing
/// in the loop but loads, broadcasts and multiply-adds.
#[test]
fn a_product_tile_becomes_registers() {
    let mut b = LoopBuilder::new("gemm");
    let a = b.buf("a", DType::F32, false, 64);
    let w = b.buf("b", DType::F32, false, 64);
    let c = b.buf("c", DType::F32, true, 64);
    let one = b.index(2);
    b.parallel(Level::Thread, one, |b, p| {
        let acc = b.zero(Ty::tile(DType::F32, 14, 32));
        let (lo, hi) = (b.index(0), b.index(10));
        let r = b.for_(lo, hi, 1, &[acc], |b, k, acc| {
            let ka = Addr { row: Stride::Const(10), ..b.addr(a, k, 0) };
            let x = b.load(ka, 14, 1);
            let c32 = b.index(32);
            let kb = b.mul(k, c32);
            let y = b.addr(w, kb, 0);
            let y = b.load(y, 1, 32);
            vec![b.fma(x, y, acc[0])]
        });
        let c448 = b.index(448);
        let at = b.mul(p, c448);
        let out = Addr { row: Stride::Const(32), ..b.addr(c, at, 0) };
        b.store(out, r[0]);
    });
    let f = b.finish(Launch::default());
    let t = target(512, true);
    let m = legalise(&f, &t).unwrap();
    let mut count = std::collections::BTreeMap::new();
    fn walk(
        block: &ir::loops::Block,
        depth: u32,
        count: &mut std::collections::BTreeMap<(u32, &'static str), u32>,
    ) {
        for s in &block.stmts {
            if let ir::loops::Stmt::Let { inst, .. } = s {
                let name = match inst {
                    Inst::Fma(..) => "fma",
                    Inst::Load(_) => "load",
                    Inst::Splat(_) => "splat",
                    _ => "other",
                };
                *count.entry((depth, name)).or_default() += 1;
            }
            s.blocks().into_iter().for_each(|b| walk(b, depth + 1, count));
        }
    }
    walk(&m.body, 0, &mut count);
    assert_eq!(count[&(2, "fma")], 28);
    assert_eq!(count[&(2, "load")], 16);
    assert_eq!(count[&(2, "splat")], 14);
    assert_eq!(count[&(2, "other")], 1, "only the index of B: {count:?}");
    let data = |n: usize| bytes(DType::F32, (0..n).map(|i| Scalar::Float(((i * 7) % 5) as f64)));
    check(&f, &[data(140), data(320), data(896)], "gemm");
    let start = std::time::Instant::now();
    for _ in 0..20 {
        legalise(&f, &t).unwrap();
    }
    println!("legalise 14x32: {:?}", start.elapsed() / 20);
}
