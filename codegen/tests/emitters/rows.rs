//! Elementwise kernels and row reductions on a GPU: four neighbours of a lane at once where that is aligned, rows that the
//! warps of a block share. Against the plain lowering of the same kernel (in `kernel_cases`), and as PTX against the loop IR.

use crate::harness::{Case, run};
use crate::lowered::kernel_cases;
use crate::ptx::execute;
use ir::build::{Builder, V};
use ir::prim::UnaryOp;
use ir::testing::{Rng, random_tensor};
use ir::{DType, Dim, Module, Sym, SymInfo, SymKind};
use kernelsmith_codegen::Backend;
use kernelsmith_codegen::ptx::Ptx;
use ptx_interp::{Config, Counters};

fn input(b: &mut Builder, name: &str, dtype: DType, shape: &[i64]) -> V {
    b.input(name, dtype, shape.iter().map(|d| Dim::from(*d)).collect())
}

fn module(name: &str, build: impl FnOnce(&mut Builder) -> ir::Result<V>) -> Module {
    let mut b = Builder::new(name);
    let out = build(&mut b).unwrap_or_else(|e| panic!("{name}: {e}"));
    b.finish(&[("out".to_string(), out)]).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A device on which few rows leave most of it idle.
fn device() -> Ptx {
    Ptx::new(16)
}

fn cases(name: &str, module: Module, sizes: &[(Sym, i64)]) -> Vec<Case> {
    let cases = kernel_cases(module, sizes, &device().target(), 7).unwrap_or_else(|e| panic!("{name}: {e}"));
    cases.into_iter().flatten().collect()
}

/// Texts of the kernels, all of which do what they should.
#[track_caller]
fn texts(name: &str, module: Module, sizes: &[(Sym, i64)]) -> Vec<String> {
    let cases = cases(name, module, sizes);
    assert!(!cases.is_empty(), "{name}: no kernel was run");
    let funcs: Vec<_> = cases.iter().map(|c| &c.func).collect();
    let compiled = device().compile(&funcs).unwrap_or_else(|e| panic!("{name}: {e}"));
    let texts = compiled.iter().map(|c| String::from_utf8(c.object.clone()).expect("PTX is text"));
    let texts = texts.collect();
    run(&device(), 32, cases);
    texts
}

fn count(texts: &[String], what: &str) -> usize {
    texts.iter().map(|t| t.matches(what).count()).sum()
}

fn scaled(b: &mut Builder, dtype: DType, shape: &[i64]) -> ir::Result<V> {
    let x = input(b, "x", dtype, shape);
    let y = input(b, "y", dtype, &shape[shape.len() - 1..]);
    let y = b.broadcast_to(y, &shape.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())?;
    let s = b.add(x, y)?;
    b.mul_scalar(s, 3.0)
}

/// Rows of so many elements, whole and masked tiles: `at once` says whether neighbours go together.
#[test]
fn neighbours_at_once() {
    use DType as D;
    let together = [
        (D::F32, vec![6, 128], "v4.f32"),
        (D::F32, vec![3, 1000], "v4.f32"),
        (D::F32, vec![5, 100], "v4.f32"),
        (D::F32, vec![300], "v4.f32"),
        (D::F16, vec![6, 256], "v4.b16"),
        (D::F16, vec![2, 1004], "v4.b16"),
        (D::BF16, vec![6, 260], "v4.u16"),
        (D::F64, vec![6, 132], "v2.f64"),
        (D::I64, vec![6, 132], "v2.b64"),
        (D::I32, vec![6, 132], "v4.b32"),
        (D::U8, vec![6, 132], "v4.u8"),
    ];
    for (dtype, shape, form) in together {
        let name = format!("{dtype} {shape:?}");
        let texts = texts(&name, module(&name, |b| scaled(b, dtype, &shape)), &[]);
        for access in ["ld.global", "st.global"] {
            let found = count(&texts, &format!("{access}.{form}"));
            assert!(found > 0, "{name}: no {access}.{form}\n{}", texts.join("\n"));
        }
    }
    // the second row begins at an odd place
    for (dtype, shape) in [(D::F32, vec![3, 1001]), (D::F32, vec![5, 66]), (D::F16, vec![4, 130])] {
        let name = format!("{dtype} {shape:?}");
        let texts = texts(&name, module(&name, |b| scaled(b, dtype, &shape)), &[]);
        assert_eq!(count(&texts, ".v4."), 0, "{name}\n{}", texts.join("\n"));
    }
}

/// A number of elements that is no multiple of four: the last group has a part in each register.
#[test]
fn groups_that_end_early() {
    for n in [65, 127, 129, 254, 1001, 1022] {
        let name = format!("{n} elements");
        let build = |b: &mut Builder| {
            let x = input(b, "x", DType::F32, &[n]);
            let y = input(b, "y", DType::F32, &[n]);
            let e = b.unary(UnaryOp::Exp, x)?;
            b.sub(e, y)
        };
        let texts = texts(&name, module(&name, build), &[]);
        assert!(n < 128 || count(&texts, "st.global.v4.f32") > 0, "{name}\n{}", texts.join("\n"));
    }
}

#[test]
fn sizes_from_outside() {
    for (rows, cols) in [(None, Some(96)), (None, Some(260)), (Some(5), None), (None, None)] {
        let mut b = Builder::new("symbols");
        let dim = |b: &mut Builder, name: &str, n: Option<i64>| match n {
            Some(n) => Dim::from(n),
            None => b.symbol(name, 1, 1 << 20),
        };
        let (r, c) = (dim(&mut b, "r", rows), dim(&mut b, "c", cols));
        let x = b.input("x", DType::F32, vec![r.clone(), c.clone()]);
        let y = b.input("y", DType::F32, vec![c.clone()]);
        let y = b.broadcast_to(y, &[r.clone(), c.clone()]).unwrap();
        let out = b.add(x, y).unwrap();
        let module = b.finish(&[("out".to_string(), out)]).unwrap();
        for n in [1, 3, 70, 129, 300] {
            let sizes: Vec<(Sym, i64)> =
                [&r, &c].into_iter().filter_map(Dim::as_sym).map(|s| (s, n)).collect();
            let texts = texts("symbols", module.clone(), &sizes);
            assert_eq!(cols.is_some(), count(&texts, "ld.global.v4.f32") > 0, "{rows:?} {cols:?}");
        }
    }
}

#[test]
fn rows_by_index() {
    let build = |b: &mut Builder| {
        let x = input(b, "x", DType::F32, &[9, 256]);
        let i = input(b, "i", DType::I64, &[7]);
        let y = input(b, "y", DType::F32, &[7, 256]);
        let x = b.gather(x, i, 0)?;
        b.add(x, y)
    };
    let texts = texts("gather", module("gather", build), &[]);
    assert!(count(&texts, "ld.global.v4.f32") >= 2, "{}", texts.join("\n"));
}

fn softmax(b: &mut Builder, x: V) -> ir::Result<V> {
    let axis = b.shape(x).len() - 1;
    ir::testing::softmax(b, x, axis)
}

fn normalised(b: &mut Builder, x: V) -> ir::Result<V> {
    let axis = b.shape(x).len() - 1;
    let shape = b.shape(x).to_vec();
    let x = b.convert(x, DType::F32)?;
    let mean = b.reduce_mean(x, &[axis], true)?;
    let mean = b.broadcast_to(mean, &shape)?;
    let d = b.sub(x, mean)?;
    let square = b.mul(d, d)?;
    let var = b.reduce_mean(square, &[axis], true)?;
    let var = b.add_scalar(var, 1e-5)?;
    let root = b.unary(UnaryOp::Sqrt, var)?;
    let root = b.broadcast_to(root, &shape)?;
    b.div(d, root)
}

/// Few long rows are the work of blocks, whose warps meet.
#[test]
fn warps_share_rows() {
    for shape in [vec![3, 1024], vec![2, 1000], vec![1, 3001], vec![2, 2, 516]] {
        let name = format!("softmax {shape:?}");
        let build = |b: &mut Builder| {
            let x = input(b, "x", DType::F32, &shape);
            softmax(b, x)
        };
        let texts = texts(&name, module(&name, build), &[]);
        assert!(count(&texts, "bar.sync") > 0, "{name}\n{}", texts.join("\n"));
    }
    for (dtype, shape) in [(DType::F16, [4, 768]), (DType::F32, [2, 700])] {
        let name = format!("normalisation {dtype} {shape:?}");
        let build = |b: &mut Builder| {
            let x = input(b, "x", dtype, &shape);
            normalised(b, x)
        };
        let texts = texts(&name, module(&name, build), &[]);
        assert!(count(&texts, "bar.sync") > 0, "{name}\n{}", texts.join("\n"));
    }
}

#[test]
fn every_monoid_and_type_by_shared_rows() {
    use DType as D;
    for dtype in [D::F32, D::F64, D::F16, D::BF16, D::I32, D::I64, D::U8] {
        for shape in [[2, 513], [1, 1024]] {
            let name = format!("reductions of {dtype} {shape:?}");
            let build = |b: &mut Builder| {
                let x = input(b, "x", dtype, &shape);
                let (least, most) = (b.reduce_min(x, &[1], false)?, b.reduce_max(x, &[1], false)?);
                let sum = b.reduce_sum(x, &[1], false)?;
                let s = b.add(least, most)?;
                b.add(s, sum)
            };
            let texts = texts(&name, module(&name, build), &[]);
            assert!(count(&texts, "bar.sync") > 0, "{name}\n{}", texts.join("\n"));
        }
    }
    let build = |b: &mut Builder| {
        let x = input(b, "x", D::F32, &[2, 1030]);
        b.arg_reduce(x, true, 1, false)
    };
    texts("positions", module("positions", build), &[]);
    let build = |b: &mut Builder| {
        let x = input(b, "x", D::F32, &[40, 50]);
        b.reduce_sum(x, &[0, 1], false)
    };
    texts("everything", module("everything", build), &[]);
}

#[test]
fn shared_rows_of_sizes_from_outside() {
    let mut b = Builder::new("symbols");
    let r = b.symbol("r", 1, 64);
    let (kind, hi) = (SymKind::Entry, 1 << 20);
    let c = b.add_symbol(SymInfo { name: "c".into(), kind, lo: 1, hi, divisor: 1, hint: 4096 });
    let x = b.input("x", DType::F32, vec![r.clone(), c.clone()]);
    let out = softmax(&mut b, x).unwrap();
    let module = b.finish(&[("out".to_string(), out)]).unwrap();
    let sym = |d: &Dim| d.as_sym().expect("a symbol");
    for (rows, cols) in [(1, 1), (2, 31), (3, 512), (2, 1500)] {
        texts("symbols", module.clone(), &[(sym(&r), rows), (sym(&c), cols)]);
    }
}

/// Random shapes and ranks: whatever is chosen does what the plain lowering does.
#[test]
fn random_shapes() {
    let mut rng = Rng::new(20);
    for round in 0..24 {
        let rank = rng.range(1, 3) as usize;
        let cols = [1, 4, 31, 64, 96, 128, 130, 200, 256, 511, 640][rng.range(0, 10) as usize];
        let mut shape: Vec<i64> = (1..rank).map(|_| rng.range(1, 5)).collect();
        shape.push(cols);
        let dtype = [DType::F32, DType::F16, DType::I32, DType::F64][rng.range(0, 3) as usize];
        let kind = rng.range(0, 3);
        let name = format!("round {round}: {dtype} {shape:?} kind {kind}");
        let build = |b: &mut Builder| {
            let x = input(b, "x", dtype, &shape);
            let dims: Vec<Dim> = shape.iter().map(|d| Dim::from(*d)).collect();
            match kind {
                0 => scaled(b, dtype, &shape),
                1 => {
                    let s = b.reduce_sum(x, &[rank - 1], true)?;
                    let s = b.broadcast_to(s, &dims)?;
                    b.sub(x, s)
                }
                2 => {
                    let c = b.constant(random_tensor(&mut Rng::new(3), dtype, vec![cols as usize]))?;
                    let c = b.broadcast_to(c, &dims)?;
                    let m = b.reduce_max(x, &[rank - 1], true)?;
                    let m = b.broadcast_to(m, &dims)?;
                    let x = b.mul(x, c)?;
                    b.add(x, m)
                }
                _ => b.reduce_sum(x, &[0], false),
            }
        };
        texts(&name, module(&name, build), &[]);
    }
}

/// What memory-bound kernels cost, for `docs/ptx-evidence.md`: run with `--run-ignored all --no-capture`.
#[test]
#[ignore = "prints figures"]
fn counted() {
    let f32s = |shape: &'static [i64]| move |b: &mut Builder| scaled(b, DType::F32, shape);
    let rows = |dtype, shape: &'static [i64]| {
        move |b: &mut Builder| {
            let x = input(b, "x", dtype, shape);
            softmax(b, x)
        }
    };
    print("x y + 3, 64 x 1024", module("a", f32s(&[64, 1024])));
    print("x y + 3, 64 x 1000", module("b", f32s(&[64, 1000])));
    print("x y + 3, 64 x 1024 f16", module("c", |b| scaled(b, DType::F16, &[64, 1024])));
    print("softmax 512 x 1024", module("d", rows(DType::F32, &[512, 1024])));
    print("softmax 4 x 4096", module("e", rows(DType::F32, &[4, 4096])));
}

fn print(name: &str, module: Module) {
    let backend = Ptx::new(132);
    let cases = kernel_cases(module, &[], &backend.target(), 7).unwrap_or_else(|e| panic!("{name}: {e}"));
    for case in cases.into_iter().flatten() {
        let compiled = backend.compile(&[&case.func]).expect("it compiles").remove(0);
        let config = Config { counters: true, ..Config::default() };
        let outcome = execute(&case, &compiled, &config).expect("it runs");
        let c: &Counters = &outcome.counters;
        let (out, written) =
            case.func.bufs.iter().zip(&case.bufs).find(|(b, _)| b.writable).expect("a result");
        let elems = (written.len() / out.dtype.bytes()) as f64;
        println!("{name}: {}, {} iterations of {} threads", case.label, case.trip, compiled.block);
        println!(
            "  each 1000 elements: {:.1} warp instructions, {:.1} loads and {:.1} stores of {:.1} and {:.1} sectors, {:.2} barriers",
            1e3 * c.warp_instructions as f64 / elems,
            1e3 * c.global_loads.requests as f64 / elems,
            1e3 * c.global_stores.requests as f64 / elems,
            1e3 * c.global_loads.passes as f64 / elems,
            1e3 * c.global_stores.passes as f64 / elems,
            1e3 * c.barriers as f64 / elems,
        );
    }
}
