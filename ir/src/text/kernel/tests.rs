//! Round trips and messages.

use super::parse;
use crate::dtype::Scalar;
use crate::kernel::*;
use crate::layout::{Frag, Layout};
use crate::prim::{BinaryOp, CmpOp, Combine, ConvertMode, Monoid, UnaryOp};
use crate::{DType, Dim, OriginId, Sym};

fn buffer(name: &str, dtype: DType, shape: &[i64], access: Access) -> Buffer {
    let shape: Vec<Dim> = shape.iter().map(|d| Dim::from(*d)).collect();
    let layout = Layout::row_major(shape.len());
    Buffer { name: name.into(), dtype, shape, layout, access, constant: false }
}

/// One of everything.
fn sample() -> Kernel {
    let mut k = Kernel::default();
    k.name = "conv relu".into();
    let x = k.add_buffer(buffer("x", DType::F32, &[2, 64, 56], Access::Read));
    k.buffers[0].layout = Layout {
        frags: vec![
            Frag { dim: 0, div: 1, len: None },
            Frag { dim: 1, div: 16, len: None },
            Frag { dim: 2, div: 1, len: None },
            Frag { dim: 1, div: 1, len: Some(16) },
        ],
        halo: vec![(0, 0), (0, 0), (1, 2)],
    };
    let q = k.add_buffer(Buffer { constant: true, ..buffer("q r", DType::I8, &[64], Access::Read) });
    let idx = k.add_buffer(buffer("idx", DType::I64, &[], Access::Read));
    let y = k.add_buffer(buffer("y", DType::F32, &[2, 64], Access::ReadWrite));
    k.buffers[3].shape[0] = Dim::from(Sym(4)) * Dim::from(2);
    let (n, c, w) = (k.new_var("n"), k.new_var("c"), k.new_var("max"));
    let j = k.new_var("n");
    k.domain = vec![Axis { var: n, extent: Dim::from(2) }, Axis { var: c, extent: Dim::from(64) }];
    k.origins = vec![OriginId(3), OriginId(8)];
    let guard = Guard { expr: Dim::from(w) - Dim::from(1), bound: Dim::from(56) };
    let read = k.expr(Expr::Read {
        buf: x,
        index: vec![Dim::from(n), Dim::from(c), Dim::from(w) - Dim::from(1)],
        guards: vec![guard.clone()],
        fill: Scalar::Float(f64::NEG_INFINITY),
    });
    let q = k.expr(Expr::Read { buf: q, index: vec![Dim::from(c)], guards: vec![], fill: Scalar::Int(0) });
    let q = k.expr(Expr::Convert(DType::F32, ConvertMode::Plain, q));
    let p = k.expr(Expr::Binary(BinaryOp::Mul, read, q));
    let l0 = k.new_local();
    let axes = vec![Axis { var: w, extent: Dim::from(58) }];
    k.stmts.push(Stmt::Reduce { local: l0, acc: DType::F32, monoid: Monoid::Sum, axes, value: p });
    let l = k.expr(Expr::Local(l0));
    let half = k.expr(Expr::Const(DType::F32, Scalar::Float(-0.5)));
    // a - (a - b) - c, shared twice
    let d = k.expr(Expr::Binary(BinaryOp::Sub, l, half));
    let d = k.expr(Expr::Binary(BinaryOp::Sub, l, d));
    let d = k.expr(Expr::Binary(BinaryOp::Sub, d, half));
    let t = k.expr(Expr::Unary(UnaryOp::Tanh, d));
    let e = k.expr(Expr::Binary(BinaryOp::Div, t, d));
    let e = k.expr(Expr::Binary(BinaryOp::Mul, t, e));
    let inf = k.expr(Expr::Const(DType::F32, Scalar::Float(f64::INFINITY)));
    let less = k.expr(Expr::Cmp(CmpOp::Le, e, inf));
    let inside = k.expr(Expr::Inside(vec![guard]));
    let both = k.expr(Expr::Binary(BinaryOp::And, less, inside));
    let bits = k.expr(Expr::Bitcast(DType::I32, e));
    let sat = k.expr(Expr::Convert(DType::I8, ConvertMode::Saturate, bits));
    let back = k.expr(Expr::Convert(DType::F32, ConvertMode::Plain, sat));
    let sel = k.expr(Expr::Select(both, e, back));
    let l1 = k.new_local();
    k.stmts.push(Stmt::Let { local: l1, value: sel });
    let l2 = k.new_local();
    let axis = Axis { var: w, extent: Dim::from(56) };
    k.stmts.push(Stmt::ArgReduce { local: l2, max: false, last: true, axis, value: read });
    let at = k.expr(Expr::Read { buf: idx, index: vec![], guards: vec![], fill: Scalar::Int(7) });
    let pos = k.expr(Expr::Index(Dim::from(j) * Dim::from(3) + Dim::from(Sym(4))));
    let bind = k.expr(Expr::Bind { var: j, value: at, bound: Dim::from(9), body: pos });
    let l3 = k.new_local();
    let step = k.expr(Expr::Local(l3));
    let next = k.expr(Expr::Binary(BinaryOp::Add, step, bind));
    let inner = Stmt::Bind { var: j, value: at, bound: Dim::from(4) };
    let t_axis = Axis { var: w, extent: Dim::from(5) };
    k.stmts.push(Stmt::Ordered {
        axis: t_axis,
        carries: vec![(l3, DType::I64, at, next)],
        body: vec![inner],
    });
    let store = Stmt::Store {
        axes: vec![Axis { var: w, extent: Dim::from(2) }],
        buf: y,
        index: vec![Dim::from(w), Dim::from(c)],
        guards: vec![Guard { expr: Dim::from(w), bound: Dim::from(Sym(4)) }],
        value: sel,
        combine: Combine::Add,
    };
    k.stmts.push(store);
    let index = vec![Dim::from(n), Dim::from(c)];
    let combine = Combine::Set;
    k.stmts.push(Stmt::Store { axes: vec![], buf: y, index, guards: vec![], value: e, combine });
    k
}

#[test]
fn round_trip() {
    let k = sample();
    let text = k.to_string();
    let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(back.to_string(), text);
    assert_eq!(parse(&back.to_string()).unwrap(), back);
    assert_eq!((&back.buffers, &back.domain, &back.vars), (&k.buffers, &k.domain, &k.vars));
    assert_eq!(back.exprs().len(), k.exprs().len(), "{text}");
    assert!(text.contains("v3: 9 = idx[ else 7]"), "{text}");
    assert!(text.contains("l0 - (l0 - -0.5f32) - -0.5f32"), "{text}");
    for g in [
        Generated::Sort { axis: 1, descending: true },
        Generated::TopK { axis: 0, largest: false },
        Generated::Compact,
    ] {
        let mut k = k.without_body();
        k.generated = Some(g);
        assert_eq!(parse(&k.to_string()).unwrap(), k);
    }
}

#[test]
fn shared_expressions_do_not_explode() {
    let mut k = sample();
    let mut e = k.expr(Expr::Local(0));
    for _ in 0..100 {
        e = k.expr(Expr::Binary(BinaryOp::Mul, e, e));
    }
    k.stmts.push(Stmt::Let { local: 0, value: e });
    let text = k.to_string();
    assert!(text.len() < 10_000);
    assert_eq!(parse(&text).unwrap().to_string(), text);
}

#[test]
fn errors_have_places() {
    let head = "kernel @k (x: f32[4] read) {\n  vars i\n  locals 1\n  domain i: 4\n";
    for (body, message) in [
        ("  l0 = sum f32 over [i: 4] of y[i]\n}", "5:31: unknown buffer `y`"),
        ("  let l1 = x[i]\n}", "5:7: expected a local below l1"),
        ("  let l0 = x[k]\n}", "5:14: unknown size symbol `k`"),
        ("  let l0 = $0\n}", "5:12: $0 has no meaning yet"),
        ("  let l0 = foo(x[i])\n}", "5:12: unknown function `foo`"),
    ] {
        assert_eq!(parse(&format!("{head}{body}")).unwrap_err().to_string(), message);
    }
    let deep = format!("{head}  let l0 = {}", "(".repeat(100_000));
    assert!(parse(&deep).is_err());
}
