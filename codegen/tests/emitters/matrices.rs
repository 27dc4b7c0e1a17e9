//! Products of matrices of words in matrix registers: tile form, machine form and, where this machine has such
//! registers, native code all compute what plain Rust does.

use crate::harness::{Case, backends, run};
use ir::kernel::Dot;
use ir::loops::{Addr, Form, Func, Launch, Level, Mem, Space, Stride, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::loops_exec::execute;
use ir::target::TargetDesc;
use ir::testing::Rng;
use ir::{DType, Dim};
use kernelsmith_codegen::legalise::legalise;
use kernelsmith_codegen::target::named;

/// `taps` windows of `words` words each, which begin `apart` words apart, of rows that begin `between` words apart.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: u32,
    cols: u32,
    step: u32,
    words: u32,
    taps: u32,
    between: u32,
    apart: u32,
}

fn target() -> TargetDesc {
    named("sapphirerapids").expect("a CPU that is known by name")
}

/// One iteration: rows of `x` times all of `w`, through scratch memory to `y`, where 1 is added.
fn func(dot: Dot, s: Sizes) -> Func {
    let mut b = LoopBuilder::new("matrices");
    let x = b.buf("x", DType::I32, false, 4);
    let w = b.buf("w", DType::I32, false, 64);
    let y = b.buf("y", dot.dtype(), true, 64);
    let trip = b.index(1);
    let sums = b.local(dot.dtype(), Dim::from(i64::from(s.rows * s.cols)), Space::Scratch);
    let ty = Ty::tile(dot.dtype(), s.rows, s.cols);
    let at = |b: &LoopBuilder, mem: Mem, index, row: u32| Addr {
        row: Stride::Const(row.into()),
        ..b.addr(mem, index, 0)
    };
    b.parallel(Level::Thread, trip, |b, _| {
        let zero = b.zero(ty);
        let [lo, taps, words] = [0, s.taps, s.words].map(|n| b.index(n.into()));
        let total = b.for_(lo, taps, 1, &[zero], |b, tap, sum| {
            b.for_(lo, words, s.step.into(), sum, |b, k, sum| {
                let [apart, words, cols] = [s.apart, s.words, s.cols].map(|n| b.index(n.into()));
                let (from, first) = (b.mul(tap, apart), b.mul(tap, words));
                let (from, first) = (b.add(from, k), b.add(first, k));
                let first = b.mul(first, cols);
                let a = b.load(at(b, x, from, s.between), s.rows, s.step);
                let c = b.load(at(b, w, first, s.cols), s.step, s.cols);
                vec![b.tile_op(dot.matrix_op(), sum[0], a, c)]
            })
        })[0];
        b.store(at(b, sums, lo, s.cols), total);
        let rows = b.index(s.rows.into());
        b.for_(lo, rows, 1, &[], |b, r, _| {
            let width = b.index(s.cols.into());
            let row = b.mul(r, width);
            let v = b.load(b.addr(sums, row, 0), 1, s.cols);
            let one = b.constant(Ty::scalar(dot.dtype()), ir::dtype::Scalar::of(dot.dtype(), 1.0));
            let v = b.add(v, one);
            b.store(b.addr(y, row, 0), v);
            Vec::new()
        });
    });
    b.finish(Launch { trip: Dim::from(1), ..Launch::default() })
}

/// Words of small numbers: sums of their products are exact in f32, in any order.
fn words(rng: &mut Rng, dot: Dot, n: u32) -> Vec<u32> {
    let mut small = || rng.below(9) as i32 - 4;
    let mut word = || match dot {
        Dot::Bytes => u32::from_le_bytes([0; 4].map(|_: u8| small() as u8)),
        Dot::Bf16 => [0, 16].map(|shift| ((small() as f32).to_bits() >> 16) << shift).iter().sum(),
    };
    (0..n).map(|_| word()).collect()
}

fn product(dot: Dot, a: u32, b: u32) -> f64 {
    let half = |w: u32, shift: u32| f64::from(f32::from_bits((w << shift) & 0xffff_0000));
    match dot {
        Dot::Bytes => {
            let pairs = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
            pairs.map(|(a, b)| f64::from(a) * f64::from(b as i8)).sum()
        }
        Dot::Bf16 => [16, 0].into_iter().map(|s| half(a, s) * half(b, s)).sum(),
    }
}

/// Operands, and the result in place of the last.
fn operands(rng: &mut Rng, dot: Dot, s: Sizes) -> (Vec<Vec<u8>>, Vec<u8>) {
    let reach = (s.rows - 1) * s.between + (s.taps - 1) * s.apart + s.words;
    let (x, w) = (words(rng, dot, reach), words(rng, dot, s.taps * s.words * s.cols));
    let mut y = Vec::new();
    for r in 0..s.rows {
        for c in 0..s.cols {
            let mut sum = 1.0;
            for (tap, k) in (0..s.taps).flat_map(|t| (0..s.words).map(move |k| (t, k))) {
                let a = x[(r * s.between + tap * s.apart + k) as usize];
                sum += product(dot, a, w[((tap * s.words + k) * s.cols + c) as usize]);
            }
            y.extend(match dot {
                Dot::Bytes => (sum as i32).to_le_bytes(),
                Dot::Bf16 => (sum as f32).to_le_bytes(),
            });
        }
    }
    let bytes = |x: Vec<u32>| x.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let empty = vec![0; y.len()];
    (vec![bytes(x), bytes(w), empty], y)
}

/// All numbers of rows, with steps, windows and strides at random.
fn all_sizes() -> Vec<Sizes> {
    let mut rng = Rng::new(41);
    let mut below = |n: u32| rng.below(n as usize) as u32;
    (2..=32)
        .map(|rows| {
            let (step, steps, taps) = (2 + below(15), 1 + below(4), 1 + below(3));
            let words = step * steps;
            Sizes {
                rows,
                cols: 16 * (1 + below(2)),
                step,
                words,
                taps,
                between: words + below(9),
                apart: 1 + below(40),
            }
        })
        .collect()
}

#[test]
fn forms_agree_with_plain_rust() {
    let (target, mut rng) = (target(), Rng::new(5));
    let lent = |d| {
        let mut host = backends().into_iter().filter(|b| b.name() == "llvm");
        host.find(|b| b.target().has_matrices(d))
    };
    for dot in Dot::ALL {
        let mut cases = Vec::new();
        for s in all_sizes() {
            let what = format!("{dot:?} {s:?}");
            let tile = func(dot, s);
            let machine = legalise(&tile, &target).unwrap_or_else(|e| panic!("{what}: {e}"));
            let (bufs, want) = operands(&mut rng, dot, s);
            for f in [&tile, &machine] {
                ir::verify::loops::verify(f).unwrap_or_else(|e| panic!("{what}: {e}\n{f}"));
                assert_eq!(ir::text::loops::parse(&f.to_string()).as_ref(), Ok(f), "{what}");
                let mut got = bufs.clone();
                execute(f, &mut got, &[], 0, 1).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(got[2] == want, "{what}\n{f}");
            }
            let expect = bufs[..2].iter().cloned().chain([want]).map(Some).collect();
            cases.push(Case::new(what, machine, bufs, expect, 1));
        }
        match lent(dot) {
            Some(backend) => run(&*backend, 16, cases),
            None => {
                eprintln!("skipped: native code of {}, which this machine does not have", dot.matrix_op())
            }
        }
    }
}

#[test]
fn machines_without_matrices_refuse() {
    let sizes = Sizes { rows: 4, cols: 16, step: 4, words: 4, taps: 1, between: 4, apart: 1 };
    for dot in Dot::ALL {
        let plain = TargetDesc { features: "+avx512vnni,+avx512bf16".into(), ..target() };
        let error = legalise(&func(dot, sizes), &plain).unwrap_err().to_string();
        assert!(error.contains(dot.matrix_op()), "{error}");
    }
    let wide = Sizes { step: 20, words: 20, ..sizes };
    assert!(legalise(&func(Dot::Bytes, wide), &target()).is_err());
}

/// Registers are few, and what is added up in place has one use.
#[test]
fn what_registers_cannot_hold_is_refused() {
    let mut host = backends().into_iter().filter(|b| b.name() == "llvm");
    let Some(backend) = host.find(|b| b.target().has_matrices(Dot::Bytes)) else {
        eprintln!("skipped: matrix registers, which this machine does not have");
        return;
    };
    let refused = |products: &dyn Fn(&mut LoopBuilder, Mem, &[Val])| {
        let mut b = LoopBuilder::new("refused");
        let (x, y) = (b.buf("x", DType::I32, false, 64), b.buf("y", DType::I32, true, 64));
        let one = b.index(1);
        b.parallel(Level::Thread, one, |b, i| {
            let matrices: Vec<Val> = (0..9)
                .map(|n| b.load(Addr { row: Stride::Const(16), ..b.addr(x, i, 256 * n) }, 16, 16))
                .collect();
            products(b, y, &matrices);
        });
        let mut func = b.finish(Launch::default());
        func.form = Form::Machine;
        ir::verify::loops::verify(&func).unwrap();
        backend.compile(&[&func]).unwrap_err().to_string()
    };
    let store = |b: &mut LoopBuilder, y: Mem, v: Val, n: i64| {
        let zero = b.index(0);
        b.store(Addr { row: Stride::Const(16), ..b.addr(y, zero, 256 * n) }, v);
    };
    let twice = refused(&|b, y, m| {
        let sums = [m[1], m[2]].map(|w| b.tile_op("tdpbusd", m[0], w, w));
        sums.into_iter().for_each(|s| store(b, y, s, 0));
    });
    assert!(twice.contains("two uses"), "{twice}");
    let many = refused(&|b, y, m| {
        let zero = b.index(0);
        let sums = b.for_(zero, zero, 1, m, |_, _, sums| sums.to_vec());
        sums.into_iter().zip(0..).for_each(|(s, n)| store(b, y, s, n));
    });
    assert!(many.contains("more matrices than"), "{many}");
}
