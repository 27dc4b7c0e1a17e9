//! Round trips and messages.

use super::parse;
use crate::loops::*;
use crate::loops_build::LoopBuilder;
use crate::prim::{CmpOp, ConvertMode, Monoid, UnaryOp};
use crate::{DType, Dim, OriginId, Sym};

/// One of everything.
fn sample() -> Func {
    let mut b = LoopBuilder::new("a b");
    let x = b.buf("x", DType::F32, false, 64);
    let y = b.buf("y z", DType::F32, true, 4);
    let u = b.buf("u", DType::I8, true, 1);
    let l = b.local(DType::F32, Dim::from(Sym(3)) * Dim::from(16), Space::Scratch);
    let n = b.sym(Sym(7));
    b.parallel(Level::Thread, n, |b, p| {
        let stride = b.sym(Sym(3));
        let a =
            Addr { row: Stride::Val(stride), cols_valid: Some(n), rows_valid: Some(p), ..b.addr(x, p, -8) };
        let v = b.load(a, 4, 16);
        let inf = b.float(b.ty(v), f64::INFINITY);
        let mask = b.cmp(CmpOp::Lt, v, inf);
        let nan = b.float(b.ty(v), -f64::NAN);
        let w = b.select(mask, v, nan);
        let (lo, hi) = (b.index(0), b.index(i64::MAX));
        let r = b.for_(lo, hi, 3, &[w, p], |b, i, c| {
            let t = b.fma(c[0], c[0], c[0]);
            let t = b.unary(UnaryOp::Tanh, t);
            vec![t, b.add(c[1], i)]
        });
        let w = b.while_(
            &[r[0]],
            |b, c| {
                let m = b.reduce_cols(Monoid::Max, c[0]);
                let m = b.reduce_rows(Monoid::Min, m);
                let one = b.float(Ty::scalar(DType::F32), 1.0);
                b.cmp(CmpOp::Gt, m, one)
            },
            |b, c| vec![b.mul(c[0], v)],
        );
        let first = b.cmp(CmpOp::Eq, p, lo);
        let s = b.if_(first, |b| vec![b.sub(w[0], v)], |_| vec![w[0]]);
        b.when(first, |b| {
            let a = b.addr(l, p, 4);
            b.store(a, s[0]);
        });
        let rows = b.iota(Ty::tile(DType::I64, 4, 16), false);
        let cols = b.iota(Ty::tile(DType::I64, 4, 16), true);
        let idx = b.add(rows, cols);
        let g = b.gather(x, idx, Some(mask));
        b.scatter(y, idx, g, Some(mask));
        let i8s = b.convert(DType::I8, ConvertMode::Saturate, g);
        b.scatter(u, idx, i8s, None);
        b.check(first, OriginId(9), p, n);
        b.barrier(Level::Thread);
        let e = b.extract(g, 3, 2);
        let bits = b.bitcast(DType::I32, e);
        let bits = b.splat(bits, 1, 16);
        let t = b.tile_op("vpdpbusd", bits, bits, bits);
        let t = b.shuffle(t, bits, (0..16).rev().collect());
        let t = b.insert(t, t, 3);
        let t = b.convert(DType::F32, ConvertMode::Plain, t);
        let a = b.addr(y, r[1], 0);
        b.store(a, t);
        let (from, to) = (b.addr(x, p, 0), b.addr(l, p, 0));
        b.pipe(PipeOp::Copy { from, to, elems: 4 });
        b.pipe(PipeOp::Commit);
        b.pipe(PipeOp::Wait { pending: 1 });
    });
    b.finish(Launch {
        trip: Dim::from(Sym(7)),
        ns_per_iter: 1.5,
        grid: vec![Dim::from(2), Dim::from(Sym(3)) + Dim::from(1)],
        cluster: [1, 1, 1],
        block: [32, 1, 1],
        shared_bytes: Dim::from(128),
    })
}

#[test]
fn round_trip() {
    let mut f = sample();
    let text = f.to_string();
    let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(back.to_string(), text);
    // NaN constants compare by bits
    assert_eq!(back, f, "{text}");
    f.bufs[0].name = "u".into();
    f.form = Form::Machine;
    assert_eq!(parse(&f.to_string()).unwrap(), f);
}

#[test]
fn errors_have_places() {
    for (text, message) in [
        ("func @f tile () {\n  %0 = addd %1, %1 : i64\n}", "2:8: unknown instruction `addd`"),
        ("func @f tile () {\n  %0 = const 1 : i64\n  %0 = const 2 : i64\n}", "4:1: %0 is defined twice"),
        ("func @f tile () {\n  %0 = neg %1 : i64\n}", "3:2: %1 has no definition"),
        ("func @f tile () {\n  store %0, q[%0]\n}", "2:13: unknown memory `q`"),
        (
            "func @f tile () {\n  %99999999999 = const 1 : i64\n}",
            "2:3: expected a value such as `%0`, found `%`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
    }
    let deep = format!("func @f tile () {{ {}", "if %0 { ".repeat(10_000));
    assert!(parse(&deep).is_err());
}
