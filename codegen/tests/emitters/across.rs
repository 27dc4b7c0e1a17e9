//! Kernels that read along one axis and write along another, as the work of blocks of warps: every width, form of operand and edge, against
//! the plain lowering of the same kernel (in `kernel_cases`), and as PTX against the loop IR, races included.

use crate::harness::{Case, run};
use crate::lowered::kernel_cases;
use crate::ptx::execute;
use ir::build::{Builder, V};
use ir::testing::Rng;
use ir::{DType, Dim, Module, Sym};
use kernelsmith_codegen::Backend;
use kernelsmith_codegen::ptx::Ptx;
use ptx_interp::{Config, Counters};

fn module(name: &str, build: impl Fn(&mut Builder) -> ir::Result<V>) -> Module {
    let mut b = Builder::new(name);
    let out = build(&mut b).unwrap_or_else(|e| panic!("{name}: {e}"));
    b.finish(&[("out".to_string(), out)]).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn dims(shape: &[i64]) -> Vec<Dim> {
    shape.iter().map(|d| Dim::from(*d)).collect()
}

/// The cases of a module whose tiles go across.
fn cases(name: &str, module: Module, sizes: &[(Sym, i64)]) -> Vec<Case> {
    let target = Ptx::new(1).target();
    let cases = kernel_cases(module, sizes, &target, 7).unwrap_or_else(|e| panic!("{name}: {e}"));
    cases.into_iter().flatten().filter(|c| c.label.contains("across")).collect()
}

#[track_caller]
fn check_sized(name: &str, module: Module, sizes: &[(Sym, i64)]) {
    let found = cases(name, module, sizes);
    assert!(!found.is_empty(), "{name}: no tile goes across");
    run(&Ptx::new(1), 32, found);
}

#[track_caller]
fn check(name: &str, build: impl Fn(&mut Builder) -> ir::Result<V>) {
    check_sized(name, module(name, build), &[]);
}

const WIDTHS: [DType; 10] = [
    DType::F32,
    DType::F64,
    DType::I64,
    DType::I32,
    DType::F16,
    DType::BF16,
    DType::I16,
    DType::U8,
    DType::Bool,
    DType::I4,
];

#[test]
fn every_width() {
    for dtype in WIDTHS {
        for shape in [[128, 128], [65, 36], [33, 40], [72, 100]] {
            check(&format!("{dtype} {shape:?}"), |b| {
                let x = b.input("x", dtype, dims(&shape));
                b.transpose(x, &[1, 0])
            });
        }
    }
}

#[test]
fn axes_in_any_order() {
    for (shape, perm) in [
        (vec![2, 40, 5, 7], vec![0, 2, 3, 1]),
        (vec![2, 5, 7, 40], vec![0, 3, 1, 2]),
        (vec![3, 17, 2, 33], vec![3, 0, 1, 2]),
        (vec![17, 3, 33], vec![2, 1, 0]),
        (vec![20, 2, 16, 3], vec![2, 3, 1, 0]),
    ] {
        check(&format!("{shape:?} to {perm:?}"), |b| {
            let x = b.input("x", DType::F32, dims(&shape));
            b.transpose(x, &perm)
        });
    }
}

#[test]
fn random_shapes() {
    let mut rng = Rng::new(5);
    for _ in 0..24 {
        let dtype = *rng.pick(&WIDTHS);
        let mut shape: Vec<i64> = (0..2 + rng.below(2)).map(|_| *rng.pick(&[1, 2, 3, 4])).collect();
        let long = |rng: &mut Rng| *rng.pick(&[16, 19, 32, 47, 64, 68, 97, 129]);
        let last = shape.len() - 1;
        (shape[0], shape[last]) = (long(&mut rng), long(&mut rng));
        let perm: Vec<usize> = (0..shape.len()).rev().collect();
        check(&format!("{dtype} {shape:?}"), |b| {
            let x = b.input("x", dtype, dims(&shape));
            b.transpose(x, &perm)
        });
    }
}

/// Beside what goes across: operands along the result, along one of its axes only, a number; and types that differ.
#[test]
fn fused_expressions() {
    for shape in [[2, 64, 64], [1, 37, 50]] {
        let [n, h, w] = shape;
        check(&format!("an expression of {shape:?}"), |b| {
            let x = b.input("x", DType::F32, dims(&shape));
            let z = b.input("z", DType::F32, dims(&[n, w, h]));
            let (row, col) =
                (b.input("row", DType::F32, dims(&[w, 1])), b.input("col", DType::F32, dims(&[h])));
            let all = dims(&[n, w, h]);
            let (row, col) = (b.broadcast_to(row, &all)?, b.broadcast_to(col, &all)?);
            let x = b.transpose(x, &[0, 2, 1])?;
            let y = b.mul(x, row)?;
            let y = b.add(y, col)?;
            let y = b.sub(y, z)?;
            let y = b.tanh(y)?;
            let half = b.scalar(DType::F32, 0.5)?;
            b.mul(y, half)
        });
        check(&format!("bytes to f32 of {shape:?}"), |b| {
            let x = b.input("x", DType::U8, dims(&shape));
            let x = b.transpose(x, &[0, 2, 1])?;
            let x = b.convert(x, DType::F32)?;
            let scale = b.scalar(DType::F32, 1.0 / 255.0)?;
            b.mul(x, scale)
        });
        check(&format!("f32 to bf16 of {shape:?}"), |b| {
            let x = b.input("x", DType::F32, dims(&shape));
            let x = b.transpose(x, &[0, 2, 1])?;
            b.convert(x, DType::BF16)
        });
    }
}

#[test]
fn several_operands_go_across() {
    check("two of one shape, one of another", |b| {
        let (x, y) =
            (b.input("x", DType::F32, dims(&[3, 40, 52])), b.input("y", DType::F64, dims(&[3, 40, 52])));
        let z = b.input("z", DType::F32, dims(&[40, 52]));
        let z = b.broadcast_to(z, &dims(&[3, 40, 52]))?;
        let (y, x) = (b.convert(y, DType::F32)?, b.mul(x, z)?);
        let s = b.add(x, y)?;
        b.transpose(s, &[0, 2, 1])
    });
}

#[test]
fn sizes_from_outside() {
    let mut b = Builder::new("symbols");
    let [n, m, k] = ["n", "m", "k"].map(|s| b.symbol(s, 1, 4096));
    let x = b.input("x", DType::F32, vec![n.clone(), m.clone(), k.clone()]);
    let z = b.input("z", DType::F32, vec![n.clone(), k.clone(), m.clone()]);
    let x = b.transpose(x, &[0, 2, 1]).unwrap();
    let out = b.add(x, z).unwrap();
    let module = b.finish(&[("out".to_string(), out)]).unwrap();
    let sym = |d: &Dim| d.as_sym().expect("a symbol");
    for sizes in [[1, 64, 64], [3, 17, 65], [2, 16, 129]] {
        let sizes: Vec<(Sym, i64)> = [&n, &m, &k].into_iter().map(sym).zip(sizes).collect();
        check_sized("symbols", module.clone(), &sizes);
    }
    // too short for tiles: another variant
    let short: Vec<(Sym, i64)> = [&n, &m, &k].into_iter().map(sym).zip([2, 15, 64]).collect();
    assert!(cases("symbols", module, &short).is_empty());
}

#[test]
fn what_stays_as_it_was() {
    let build = |shape: &'static [i64], perm: &'static [usize]| {
        module("as it was", move |b| {
            let x = b.input("x", DType::F32, dims(shape));
            b.transpose(x, perm)
        })
    };
    for (shape, perm) in [
        (&[2, 40, 8, 64][..], &[0, 2, 1, 3][..]),
        (&[1000, 3], &[1, 0]),
        (&[8, 500], &[1, 0]),
        (&[1, 90], &[1, 0]),
    ] {
        assert!(cases("as it was", build(shape, perm), &[]).is_empty(), "{shape:?} {perm:?}");
    }
}

fn counters(dtype: DType, shape: [i64; 2]) -> Counters {
    let backend = Ptx::new(1);
    let transposed = module("counted", |b| {
        let x = b.input("x", dtype, dims(&shape));
        b.transpose(x, &[1, 0])
    });
    let case = cases("counted", transposed, &[]).remove(0);
    let compiled = backend.compile(&[&case.func]).expect("it compiles").remove(0);
    let config = Config { counters: true, ..Config::default() };
    execute(&case, &compiled, &config).expect("it runs").counters
}

/// Whole tiles are read and written by whole sectors; no bank has more than two words at a time to give.
#[test]
fn sectors_are_whole_and_banks_shared_by_two_at_most() {
    for (dtype, free) in [
        (DType::F32, true),
        (DType::F64, false),
        (DType::BF16, false),
        (DType::U8, false),
        (DType::I64, false),
    ] {
        let c = counters(dtype, [256, 256]);
        assert_eq!((c.global_loads.wasted(), c.global_stores.wasted()), (0, 0), "{dtype}");
        for shared in [c.shared_loads, c.shared_stores] {
            let most = if free { shared.ideal } else { 2 * shared.ideal };
            assert!(shared.passes <= most, "{dtype}: {shared:?}");
        }
    }
    // rows of 65 elements are read one by one, and one at a time they suit all banks
    let c = counters(DType::F32, [128, 65]);
    assert_eq!((c.shared_loads.wasted(), c.shared_stores.wasted()), (0, 0));
}
