//! Accuracy of the expansions, measured through the loop interpreter.

use crate::legalise::legalise;
use ir::dtype::{DType, Scalar};
use ir::loops::{Func, Launch, Level, Ty};
use ir::loops_build::LoopBuilder;
use ir::loops_exec::{Status, execute};
use ir::loops_opt::eval;
use ir::prim::{BinaryOp, UnaryOp};
use ir::target::TargetDesc;
use ir::{Dim, Sym};

fn target(vector_bits: u32, has_fma: bool) -> TargetDesc {
    TargetDesc {
        name: "test".into(),
        cpu: String::new(),
        features: String::new(),
        vector_bits,
        vector_regs: 32,
        has_fma,
        has_masks: true,
        has_f16: false,
        simt: false,
        cache_line: 64,
        l1_bytes: 32 << 10,
        l2_bytes: 1 << 20,
        threads: 1,
    }
}

const WIDTH: i64 = 16;

/// z[i] = f(x[i], y[i]) on rows of 16.
fn function(
    dtype: DType,
    f: impl FnOnce(&mut LoopBuilder, ir::loops::Val, ir::loops::Val) -> ir::loops::Val,
) -> Func {
    let mut b = LoopBuilder::new("f");
    let x = b.buf("x", dtype, false, 64);
    let y = b.buf("y", dtype, false, 64);
    let z = b.buf("z", dtype, true, 64);
    let n = b.sym(Sym(0));
    b.parallel(Level::Thread, n, |b, p| {
        let width = b.index(WIDTH);
        let at = b.mul(p, width);
        let [ax, ay, az] = [x, y, z].map(|m| b.addr(m, at, 0));
        let vx = b.load(ax, 1, WIDTH as u32);
        let vy = b.load(ay, 1, WIDTH as u32);
        let v = f(b, vx, vy);
        b.store(az, v);
    });
    b.finish(Launch { trip: Dim::from(Sym(0)), ..Launch::default() })
}

fn bytes(dtype: DType, xs: &[f64]) -> Vec<u8> {
    let n = dtype.bytes();
    xs.iter().flat_map(|x| eval::to_bits(dtype, Scalar::Float(*x)).to_le_bytes()[..n].to_vec()).collect()
}

fn run(func: &Func, target: &TargetDesc, dtype: DType, x: &[f64], y: &[f64]) -> Vec<f64> {
    let machine = legalise(func, target).unwrap();
    ir::verify::loops::verify(&machine).unwrap();
    let mut bufs = [bytes(dtype, x), bytes(dtype, y), vec![0; x.len() * dtype.bytes()]];
    let rows = x.len() as i64 / WIDTH;
    assert_eq!(execute(&machine, &mut bufs, &[rows], 0, rows).unwrap(), Status::Ok);
    bufs[2]
        .chunks(dtype.bytes())
        .map(|c| {
            let mut w = [0; 8];
            w[..c.len()].copy_from_slice(c);
            eval::from_bits(dtype, u64::from_le_bytes(w)).as_f64()
        })
        .collect()
}

/// Distance of `got` from `want` in units of the last place of `want`.
fn ulps(dtype: DType, got: f64, want: f64) -> f64 {
    let rounded = eval::normalise(dtype, Scalar::Float(want)).as_f64();
    if rounded.is_nan() || got.is_nan() {
        return if rounded.is_nan() && got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if got == rounded {
        return 0.0;
    }
    if dtype == DType::F64 {
        if !got.is_finite() || !want.is_finite() {
            return f64::INFINITY;
        }
        let key = |x: f64| if x < 0.0 { -((-x).to_bits() as i64) } else { x.to_bits() as i64 };
        return (i128::from(key(got)) - i128::from(key(want))).unsigned_abs() as f64;
    }
    if rounded.is_infinite() || got.is_infinite() {
        // just beyond the largest number is one unit from infinity
        let edge = got.abs().min(want.abs()) >= f64::from(f32::MAX) * 0.9999998;
        return if edge && got.signum() == want.signum() { 1.0 } else { f64::INFINITY };
    }
    let exp = ((want.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    (got - want).abs() / 2f64.powi(exp.max(-126) - 23)
}

/// Deterministic arguments: special ones, small ones, and patterns of the whole range.
fn arguments(dtype: DType, n: usize, seed: u64) -> Vec<f64> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e-40,
        -1e-40,
        1e-310,
        3.0,
        -3.0,
        88.5,
        88.8,
        -87.5,
        -103.5,
        -104.5,
        709.5,
        710.0,
        -745.0,
        1e10,
        1e20,
        -1e30,
        1e300,
        0.9999999,
        1.0000001,
        -0.9999999,
        1e-20,
        33.0,
        6.0,
        9.5,
        1e6,
        1e5,
        4e15,
    ];
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = s;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    (0..n)
        .map(|i| {
            let r = next();
            let unit = (r >> 11) as f64 / (1u64 << 53) as f64;
            let x = match i % 5 {
                0 if i / 5 < special.len() => special[i / 5],
                0 => eval::from_bits(dtype, r).as_f64(),
                1 => (unit - 0.5) * 4.0,
                2 => (unit - 0.5) * 24.0,
                3 => (unit - 0.5) * 250.0,
                _ => 2f64.powf((unit - 0.5) * 40.0),
            };
            eval::normalise(dtype, Scalar::Float(x)).as_f64()
        })
        .collect()
}

const FUNCTIONS: [UnaryOp; 18] = [
    UnaryOp::Exp,
    UnaryOp::Expm1,
    UnaryOp::Log,
    UnaryOp::Log1p,
    UnaryOp::Sin,
    UnaryOp::Cos,
    UnaryOp::Tan,
    UnaryOp::Asin,
    UnaryOp::Acos,
    UnaryOp::Atan,
    UnaryOp::Sinh,
    UnaryOp::Cosh,
    UnaryOp::Asinh,
    UnaryOp::Acosh,
    UnaryOp::Atanh,
    UnaryOp::Tanh,
    UnaryOp::Erf,
    UnaryOp::Sqrt,
];

/// (worst error, its argument) of a unary function.
fn worst(op: UnaryOp, dtype: DType, t: &TargetDesc, n: usize) -> (f64, f64) {
    let x = arguments(dtype, n, 7);
    let f = function(dtype, |b, x, _| b.unary(op, x));
    let got = run(&f, t, dtype, &x, &x);
    let mut worst = (0.0, 0.0);
    for (x, got) in x.iter().zip(got) {
        let want = eval::unary(op, DType::F64, Scalar::Float(*x)).as_f64();
        let e = ulps(dtype, got, want);
        if e > worst.0 {
            worst = (e, *x);
        }
        if want == 0.0 && e == 0.0 {
            assert_eq!(got.is_sign_negative(), want.is_sign_negative(), "{} of {x}: sign of zero", op.name());
        }
    }
    worst
}

fn check(dtype: DType, t: &TargetDesc, n: usize, bound: f64) {
    let mut bad = Vec::new();
    for op in FUNCTIONS {
        let (e, x) = worst(op, dtype, t, n);
        println!("//! | {} | {dtype} | {e:.2} | at {x:e}", op.name());
        if e > bound {
            bad.push(format!("{} of {x:e} ({dtype}): {e:.1} ulp", op.name()));
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn ulp_table() {
    check(DType::F32, &target(512, true), 20_000, 4.5);
    check(DType::F64, &target(512, true), 20_000, 8.0);
}

#[test]
fn without_fma() {
    check(DType::F32, &target(128, false), 4_000, 5.0);
    check(DType::F64, &target(128, false), 4_000, 12.0);
}

#[test]
fn two_operands() {
    for fma in [true, false] {
        for dtype in [DType::F32, DType::F64] {
            let n = 20_000;
            let (mut x, mut y) = (arguments(dtype, n, 1), arguments(dtype, n, 99));
            let special = [
                0.0,
                -0.0,
                1.0,
                -1.0,
                2.0,
                -3.0,
                0.5,
                f64::INFINITY,
                f64::NEG_INFINITY,
                f64::NAN,
                1e300,
                -7.0,
            ];
            let special = special.map(|s| eval::normalise(dtype, Scalar::Float(s)).as_f64());
            for (i, (a, b)) in special.iter().flat_map(|a| special.map(|b| (*a, b))).enumerate() {
                (x[i], y[i]) = (a, b);
            }
            for i in 200..5000 {
                // what powers are made of: results within the range
                x[i] = x[i].abs();
                if i % 3 == 0 {
                    y[i] = y[i].round();
                    x[i] = -x[i];
                }
            }
            for (op, bound) in [
                (BinaryOp::Pow, if dtype == DType::F64 { 8.0 } else { 1.0 }),
                (BinaryOp::Atan2, 3.0),
                (BinaryOp::Rem, 0.0),
            ] {
                let f = function(dtype, |b, x, y| b.binary(op, x, y));
                let got = run(&f, &target(512, fma), dtype, &x, &y);
                let mut worst = (0.0, 0.0, 0.0, 0.0, 0.0);
                for ((x, y), got) in x.iter().zip(&y).zip(got) {
                    let (sx, sy) = (Scalar::Float(*x), Scalar::Float(*y));
                    let want = eval::binary(op, DType::F64, sx, sy).as_f64();
                    let e = ulps(dtype, got, want);
                    if e > worst.0 {
                        worst = (e, *x, *y, got, want);
                    }
                }
                println!("//! | {} | {dtype} | {:.2} | fma {fma} {worst:?}", op.name(), worst.0);
                assert!(worst.0 <= bound, "{} {dtype} {worst:?}", op.name());
            }
        }
    }
}

#[test]
fn remainders_of_numbers_far_apart() {
    let least = f64::from_bits(1);
    let close = [0.3, 3.0, 7.0, 1e16, 1e290, f64::MAX / 3.0, f64::MAX / 1.0000001, f64::MAX];
    let far = [least, -3.0 * least, f64::MIN_POSITIVE, 1e-300];
    let below = (0..8).map(|i| f64::from_bits(f64::MAX.to_bits() - i));
    let (x, y): (Vec<f64>, Vec<f64>) = [-f64::MAX, 1e308, 2f64.powi(1022), -1.5, f64::MIN_POSITIVE]
        .into_iter()
        .chain(below)
        .flat_map(|x| close.into_iter().chain(far).map(move |y| (x, y)))
        .cycle()
        .take(40 * WIDTH as usize)
        .unzip();
    let f = function(DType::F64, |b, x, y| b.binary(BinaryOp::Rem, x, y));
    for has_fma in [true, false] {
        let got = run(&f, &target(512, has_fma), DType::F64, &x, &y);
        for ((x, y), got) in x.iter().zip(&y).zip(got) {
            assert_eq!(got.to_bits(), (x % y).to_bits(), "{x:e} rem {y:e}: {got:e}");
        }
    }
}

#[test]
fn integer_powers_and_quotients() {
    let mut b = LoopBuilder::new("f");
    let x = b.buf("x", DType::I32, false, 64);
    let y = b.buf("y", DType::I32, false, 64);
    let z = b.buf("z", DType::I32, true, 64);
    let one = b.index(1);
    b.parallel(Level::Thread, one, |b, p| {
        let [ax, ay] = [x, y].map(|m| b.addr(m, p, 0));
        let (vx, vy) = (b.load(ax, 1, 64), b.load(ay, 1, 64));
        for (i, op) in [BinaryOp::Pow, BinaryOp::Div, BinaryOp::Rem].into_iter().enumerate() {
            let v = b.binary(op, vx, vy);
            let a = b.addr(z, p, 64 * i as i64);
            b.store(a, v);
        }
    });
    let f = b.finish(Launch::default());
    let values = [0, 1, -1, 3, -7, 13, i32::MIN, i32::MAX];
    let pairs: Vec<(i32, i32)> = values.into_iter().flat_map(|a| values.map(|b| (a, b))).collect();
    let raw =
        |f: &dyn Fn(&(i32, i32)) -> i32| pairs.iter().flat_map(|p| f(p).to_le_bytes()).collect::<Vec<u8>>();
    for t in [target(512, true), target(128, false)] {
        let m = legalise(&f, &t).unwrap();
        let mut bufs = [raw(&|p| p.0), raw(&|p| p.1), vec![0; 3 * 64 * 4]];
        execute(&m, &mut bufs, &[], 0, 1).unwrap();
        for (i, c) in bufs[2].chunks(4).enumerate() {
            let (a, b) = pairs[i % 64];
            let op = [BinaryOp::Pow, BinaryOp::Div, BinaryOp::Rem][i / 64];
            let want = eval::binary(op, DType::I32, Scalar::Int(a.into()), Scalar::Int(b.into())).as_int();
            let got = i32::from_le_bytes(c.try_into().unwrap());
            assert_eq!(i128::from(got), want, "{a} {} {b}", op.name());
        }
    }
    assert_eq!(Ty::INDEX.dtype, DType::I64);
}
