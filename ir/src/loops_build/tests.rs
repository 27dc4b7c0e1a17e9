//! Placement, sharing and index expressions.

use super::*;
use crate::Var;
use crate::dim::NoFacts;
use crate::loops_exec::execute;
use proptest::prelude::*;

#[test]
fn invariants_leave_loops_and_equal_values_are_shared() {
    let mut b = LoopBuilder::new("f");
    let out = b.buf("y", DType::F32, true, 64);
    let n = b.sym(Sym(0));
    let (i, j) = (Var(0), Var(1));
    b.parallel(Level::Thread, n, |b, p| {
        let hi = b.index(8);
        let lo = b.index(0);
        b.for_(lo, hi, 1, &[], |b, q, _| {
            let d = Dim::from(i) * Dim::from(Sym(1)) * Dim::from(64) + Dim::from(j) + Dim::from(3);
            let env = |v: Var| if v == i { p } else { q };
            let (index, disp) = b.dim_parts(&d, &env);
            assert_eq!(disp, 3);
            assert_eq!(index, b.dim_parts(&d, &env).0);
            let v = b.float(Ty::vector(DType::F32, 4), 1.0);
            let addr = b.addr(out, index, disp);
            b.store(addr, v);
            Vec::new()
        });
    });
    let f = b.finish(Launch::default());
    // the inner loop holds one addition and the store; constants lie at the top
    let Some(Stmt::For { body, .. }) = f.body.stmts.last() else { panic!() };
    let Some(Stmt::For { body: inner, .. }) = body.stmts.last() else { panic!() };
    assert_eq!(inner.stmts.len(), 2, "{inner:?}");
    assert_eq!(body.stmts.len(), 2, "{body:?}");
}

#[test]
fn loads_are_shared_until_a_store() {
    let mut b = LoopBuilder::new("f");
    let y = b.buf("y", DType::F32, true, 4);
    let zero = b.index(0);
    let a = b.addr(y, zero, 0);
    let x = b.load(a, 1, 1);
    assert_eq!(x, b.load(a, 1, 1));
    let n = b.sym(Sym(0));
    b.open_for(zero, n, 1, &[]);
    let inner = b.load(a, 1, 1);
    assert_ne!(x, inner, "a later iteration may have stored");
    b.store(a, inner);
    b.close_for(&[]);
    assert_ne!(x, b.load(a, 1, 1));
}

#[test]
fn what_runs_once_is_no_loop() {
    let mut b = LoopBuilder::new("f");
    let y = b.buf("y", DType::F32, true, 4);
    let (zero, four, five) = (b.index(0), b.index(4), b.index(5));
    let start = b.float(Ty::scalar(DType::F32), 1.0);
    let (i, carried) = b.open_for(zero, four, 4, &[start]);
    assert_eq!((i, carried.as_slice()), (zero, [start].as_slice()));
    let (j, _) = b.open_for(zero, five, 4, &[]);
    assert_ne!(j, zero, "two iterations");
    let at = b.addr(y, j, 0);
    b.store(at, start);
    b.close_for(&[]);
    let sum = b.add(start, carried[0]);
    assert_eq!(b.close_for(&[sum]), [sum]);
    let func = b.finish(Launch::default());
    let loops = func.body.stmts.iter().filter(|s| matches!(s, Stmt::For { .. })).count();
    assert_eq!(loops, 1, "{func:?}");
}

#[test]
fn division_is_floor() {
    let mut b = LoopBuilder::new("f");
    let x = b.sym(Sym(0));
    let eight = b.index(8);
    let q = b.floor_div(x, eight);
    let three = b.index(3);
    let r = b.floor_mod(x, three);
    let minus = b.index(-7);
    let (q7, r7) = (b.floor_div(minus, three), b.floor_mod(minus, three));
    assert_eq!((b.as_index(q7), b.as_index(r7)), (Some(-3), Some(2)));
    assert_ne!(q, r);
}

/// Expressions over one symbol, an outer and an inner variable.
fn expressions() -> impl Strategy<Value = Dim> {
    let leaf = prop_oneof![
        (-40i64..40).prop_map(Dim::from),
        Just(Dim::from(Sym(0))),
        Just(Dim::from(Var(0))),
        Just(Dim::from(Var(1))),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            pair.clone().prop_map(|(a, b)| a + b),
            pair.clone().prop_map(|(a, b)| a - b),
            (inner.clone(), -9i64..9).prop_map(|(a, c)| a * Dim::from(c)),
            (inner.clone(), 1i64..20).prop_map(|(a, c)| a.floor_div(&Dim::from(c), &NoFacts)),
            (inner.clone(), 1i64..20).prop_map(|(a, c)| a.modulo(&Dim::from(c), &NoFacts)),
            pair.clone().prop_map(|(a, b)| a.min_with(&b, &NoFacts)),
            pair.prop_map(|(a, b)| a.max_with(&b, &NoFacts)),
        ]
    })
}

proptest! {
    /// The value of an index expression as scalar code, as tile code, and by definition.
    #[test]
    fn index_expressions_mean_what_they_say(d in expressions(), sym in 0i64..9) {
        let mut b = LoopBuilder::new("f");
        let y = b.buf("y", DType::I64, true, 8);
        let z = b.buf("z", DType::I64, true, 8);
        let n = b.index(6);
        b.parallel(Level::Thread, n, |b, p| {
            let (lo, hi) = (b.index(0), b.index(5));
            let width = b.index(5);
            let row = b.mul(p, width);
            b.for_(lo, hi, 1, &[], |b, q, _| {
                let v = b.dim(&d, &|v| if v == Var(0) { p } else { q });
                let at = b.add(row, q);
                let a = b.addr(y, at, 0);
                b.store(a, v);
                Vec::new()
            });
            let cols = b.iota(Ty::vector(DType::I64, 5), true);
            let v = b.dim(&d, &|v| if v == Var(0) { p } else { cols });
            let v = if b.ty(v).is_scalar() { b.splat(v, 1, 5) } else { v };
            let a = b.addr(z, row, 0);
            b.store(a, v);
            b.sym_param(Sym(0));
        });
        let f = b.finish(Launch::default());
        crate::verify::loops::verify(&f).unwrap();
        let mut bufs = [vec![0; 240], vec![0; 240]];
        execute(&f, &mut bufs, &[sym], 0, 6).unwrap();
        for i in 0..6 {
            for j in 0..5 {
                let want = d.eval(&|a| match a {
                    Atom::Sym(_) => Some(sym),
                    Atom::Var(Var(0)) => Some(i),
                    _ => Some(j),
                });
                for buf in &bufs {
                    let at = (i * 5 + j) as usize * 8;
                    let got = i64::from_le_bytes(buf[at..at + 8].try_into().unwrap());
                    prop_assert_eq!(Some(got), want, "{} at {} {}: {}", d, i, j, f);
                }
            }
        }
    }
}
