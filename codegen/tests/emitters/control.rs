//! Loops, branches, checks, and the parts of the parallel loop.

use crate::harness::{Case, backends, check, machine};
use ir::dtype::Scalar;
use ir::loops::{Form, Func, Launch, Level, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::{BinaryOp, CmpOp};
use ir::{Atom, DType, Dim, OriginId, Sym};

fn longs(values: impl IntoIterator<Item = i64>) -> Vec<u8> {
    values.into_iter().flat_map(i64::to_le_bytes).collect()
}

/// `out[i] = f(i)` for i64 `f`.
fn tabulate(f: impl FnOnce(&mut LoopBuilder, Val) -> Val) -> Func {
    let mut b = LoopBuilder::new("table");
    let out = b.buf("out", DType::I64, true, 64);
    let trip = b.index(20);
    b.parallel(Level::Thread, trip, |b, i| {
        let v = f(b, i);
        let addr = b.addr(out, i, 0);
        b.store(addr, v);
    });
    machine(b)
}

fn table_case(label: &str, func: Func, want: impl Fn(i64) -> i64) -> Case {
    Case::new(label, func, vec![vec![0; 160]], vec![Some(longs((0..20).map(want)))], 20)
}

#[test]
fn only_the_given_iterations_run() {
    check(|_, _| {
        [(0, 20), (3, 7), (5, 5), (19, 20)]
            .map(|range| {
                let func = tabulate(|b, i| {
                    let hundred = b.index(100);
                    b.add(i, hundred)
                });
                let inside = |i: &i64| (range.0..range.1).contains(i);
                let want = longs((0..20).map(|i| if inside(&i) { i + 100 } else { 0 }));
                let mut case = Case::new("range", func, vec![vec![0; 160]], vec![Some(want)], 20);
                case.range = range;
                case
            })
            .into()
    });
}

#[test]
fn sequential_loops() {
    check(|_, _| {
        // sum of j in lo..i step 3, with a second carry that counts; none where i <= lo
        let func = tabulate(|b, i| {
            let (lo, zero) = (b.index(4), b.index(0));
            let r = b.for_(lo, i, 3, &[zero, zero], |b, j, c| {
                let one = b.index(1);
                vec![b.add(c[0], j), b.add(c[1], one)]
            });
            let thousand = b.index(1000);
            let count = b.mul(r[1], thousand);
            b.add(r[0], count)
        });
        let want = |i: i64| (4..i).step_by(3).map(|j| j + 1000).sum();
        // exchanged carries: the Fibonacci numbers
        let swap = tabulate(|b, i| {
            let (zero, one) = (b.index(0), b.index(1));
            b.for_(zero, i, 1, &[zero, one], |b, _, c| vec![c[1], b.add(c[0], c[1])])[0]
        });
        let fib = |n: i64| (0..n).fold((0, 1), |(a, b), _| (b, a + b)).0;
        // loops in loops
        let nested = tabulate(|b, i| {
            let zero = b.index(0);
            b.for_(zero, i, 1, &[zero], |b, j, outer| {
                b.for_(zero, j, 1, outer, |b, k, inner| {
                    let product = b.mul(j, k);
                    vec![b.add(inner[0], product)]
                })
            })[0]
        });
        let products = |i: i64| (0..i).flat_map(|j| (0..j).map(move |k| j * k)).sum();
        vec![
            table_case("for", func, want),
            table_case("exchange", swap, fib),
            table_case("nested", nested, products),
        ]
    });
}

#[test]
fn while_loops() {
    check(|_, _| {
        // steps of the Collatz sequence
        let func = tabulate(|b, i| {
            let one = b.index(1);
            let (start, zero) = (b.add(i, one), b.index(0));
            b.while_(
                &[start, zero],
                |b, c| {
                    let one = b.index(1);
                    b.cmp(CmpOp::Gt, c[0], one)
                },
                |b, c| {
                    let (one, two, three) = (b.index(1), b.index(2), b.index(3));
                    let odd = b.binary(BinaryOp::And, c[0], one);
                    let is_odd = b.cmp(CmpOp::Eq, odd, one);
                    let next = b.if_(
                        is_odd,
                        |b| {
                            let triple = b.mul(c[0], three);
                            vec![b.add(triple, one)]
                        },
                        |b| vec![b.div(c[0], two)],
                    );
                    vec![next[0], b.add(c[1], one)]
                },
            )[1]
        });
        let want = |i: i64| {
            let (mut x, mut n) = (i + 1, 0);
            while x > 1 {
                x = if x % 2 == 1 { 3 * x + 1 } else { x / 2 };
                n += 1;
            }
            n
        };
        vec![table_case("while", func, want)]
    });
}

#[test]
fn branches_and_vector_carries() {
    check(|lanes, _| {
        // a vector that is carried through a loop and changed in a branch
        let mut b = LoopBuilder::new("carry");
        let out = b.buf("out", DType::F64, true, 64);
        let ty = Ty::vector(DType::F64, lanes);
        let trip = b.index(4);
        b.parallel(Level::Thread, trip, |b, i| {
            let start = b.constant(ty, Scalar::Float(1.0));
            let zero = b.index(0);
            let r = b.for_(zero, i, 1, &[start], |b, j, c| {
                let one = b.index(1);
                let first = b.cmp(CmpOp::Lt, j, one);
                b.if_(
                    first,
                    |b| {
                        let ten = b.constant(ty, Scalar::Float(10.0));
                        vec![b.add(c[0], ten)]
                    },
                    |b| vec![b.mul(c[0], c[0])],
                )
            });
            let width = b.index(i64::from(lanes));
            let at = b.mul(i, width);
            let addr = b.addr(out, at, 0);
            b.store(addr, r[0]);
        });
        let want = [1.0, 11.0, 121.0, 14641.0f64]
            .iter()
            .flat_map(|x| x.to_le_bytes().repeat(lanes as usize))
            .collect();
        vec![Case::new("carry", machine(b), vec![vec![0; 32 * lanes as usize]], vec![Some(want)], 4)]
    });
}

#[test]
fn the_first_failed_check_is_reported() {
    check(|_, _| {
        [(7, (1 + 42, 7, 7)), (20, (0, 0, 0))]
            .map(|(limit, status)| {
                let func = tabulate(|b, i| {
                    let limit = b.sym(Sym(0));
                    let ok = b.cmp(CmpOp::Lt, i, limit);
                    b.check(ok, OriginId(42), i, limit);
                    i
                });
                let mut case = table_case("check", func, |i| i);
                case.syms = vec![limit];
                case.status = status;
                case.failures = (limit..case.trip).map(|i| (status.0, i, limit)).collect();
                case
            })
            .into()
    });
}

#[test]
fn sizes_as_code() {
    // every kind of expression, through the size of a local array and the offset of the next one
    let (n, k) = (Dim::from(Sym(0)), Dim::from(Sym(1)));
    let atom = |a: Atom| Dim::from(a);
    let pair = || (Box::new(n.clone() - Dim::from(9)), Box::new(k.clone()));
    let (x, y) = pair();
    let mut sizes = vec![atom(Atom::FloorDiv(x, y)) + Dim::from(50)];
    let (x, y) = pair();
    sizes.push(atom(Atom::Mod(x, y)) * Dim::from(3));
    let (x, y) = pair();
    sizes.push(atom(Atom::Min(x, y)) + Dim::from(20));
    let (x, y) = pair();
    sizes.push(atom(Atom::Max(x, y)) * n.clone() + Dim::from(2));
    check(|_, _| {
        let mut cases = Vec::new();
        for (n, k) in [(4, 3), (20, 7), (9, 5)] {
            // the last array lies where the host says, if it and the code agree on all sizes
            let mut b = LoopBuilder::new("sizes");
            let out = b.buf("out", DType::I64, true, 64);
            b.sym_param(Sym(0));
            b.sym_param(Sym(1));
            let last = [(DType::I64, Dim::from(8))];
            let arrays = sizes.iter().map(|s| (DType::U8, s.clone())).chain(last);
            let locals: Vec<_> =
                arrays.map(|(dtype, size)| b.local(dtype, size, ir::loops::Space::Scratch)).collect();
            let one = b.index(1);
            b.parallel(Level::Thread, one, |b, i| {
                for (j, mem) in locals.iter().enumerate() {
                    let value = b.int(Ty::scalar(if j < 4 { DType::I32 } else { DType::I64 }), j as i128 + 1);
                    let addr = b.addr(*mem, i, 0);
                    b.store(addr, value);
                }
                let addr = b.addr(locals[4], i, 0);
                let v = b.load(addr, 1, 1);
                let addr = b.addr(out, i, 0);
                b.store(addr, v);
            });
            let func = machine(b);
            let total = kernelsmith_codegen::scratch_bytes(&func).eval_syms(&|s| Some([n, k][s.0 as usize]));
            assert!(total.is_some_and(|t| t % 64 == 0 && (64..1 << 15).contains(&t)));
            let mut case = Case::new("sizes", func, vec![vec![0; 8]], vec![Some(longs([5]))], 1);
            case.syms = vec![n, k];
            cases.push(case);
        }
        cases
    });
}

#[test]
fn what_is_no_machine_form_is_refused() {
    use kernelsmith_codegen::{CodegenError, backend};
    let ok = tabulate(|_, i| i);
    let tile = Func { form: Form::Tile, ..ok.clone() };
    let empty = Func { name: "empty".into(), form: Form::Machine, ..Func::default() };
    let mut wide = LoopBuilder::new("wide");
    let mem = wide.buf("x", DType::F32, true, 64);
    let one = wide.index(1);
    wide.parallel(Level::Thread, one, |b, i| {
        let addr = b.addr(mem, i, 0);
        let v = b.load(addr, 20, 4);
        b.store(addr, v);
    });
    let mut wide = wide.finish(Launch::default());
    wide.form = Form::Machine;
    for backend in backends() {
        for func in [&tile, &empty, &wide] {
            let result = backend.compile(&[&ok, func]);
            let named = matches!(result, Err(CodegenError::Func { .. }));
            assert!(named, "{}: {}", backend.name(), func.name);
        }
        assert!(backend.ir_text(&ok).is_ok_and(|t| t.contains("ret")));
        assert!(backend.asm_text(&ok).is_ok_and(|t| t.contains("ret")));
    }
    assert!(matches!(backend("abacus", 1), Err(CodegenError::UnknownBackend { .. })));
}

#[test]
fn the_same_function_gives_the_same_bytes() {
    for backend in backends() {
        let func = tabulate(|b, i| b.mul(i, i));
        let both = backend.compile(&[&func, &func]).unwrap();
        assert_eq!(both[0], both[1], "{}", backend.name());
    }
}
