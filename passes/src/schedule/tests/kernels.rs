use super::*;
use crate::schedule::analyse::is_expensive;
use ir::layout::Frag;
use ir::prim::CmpOp;

fn matmul(m: i64, n: i64, k: i64, symbolic: bool, panel: Option<usize>) -> Build {
    let mut b = Build::new(&format!("matmul_{m}_{n}_{k}"));
    let (md, nd, kd) = (b.size(m, symbolic), Dim::from(n), Dim::from(k));
    let (ma, mi) = b.axis("m", md.clone());
    let (na, ni) = b.axis("n", nd.clone());
    let (ka, ki) = b.axis("k", kd.clone());
    let (x, w) = (b.input("x", &[md.clone(), kd.clone()]), b.input("w", &[kd, nd.clone()]));
    let bias = b.input("bias", std::slice::from_ref(&nd));
    let y = b.output("y", &[md, nd]);
    if let Some(p) = panel {
        let frags = vec![
            Frag { dim: 1, div: p, len: None },
            Frag { dim: 0, div: 1, len: None },
            Frag { dim: 1, div: 1, len: Some(p) },
        ];
        b.layout(w, Layout { frags, halo: vec![(0, 0); 2] });
    }
    b.domain(&[&ma, &na]);
    let (xv, wv) = (b.read(x, &[&mi, &ki]), b.read(w, &[&ki, &ni]));
    let p = b.bin(BinaryOp::Mul, xv, wv);
    let s = b.reduce(Monoid::Sum, &[&ka], p);
    let c = b.read(bias, &[&ni]);
    let v = b.bin(BinaryOp::Add, s, c);
    let zero = b.float(0.0);
    let v = b.bin(BinaryOp::Max, v, zero);
    b.store(&[], y, &[&mi, &ni], v);
    b
}

#[test]
fn matmuls_of_all_sizes() {
    let sizes = [0, 1, 2, 3, 7, 14, 15, 17, 33, 64, 100];
    let mut r = Random(1);
    for i in 0..60 {
        let (m, n, k) = (r.pick(&sizes), r.pick(&sizes), r.pick(&[0, 1, 2, 3, 7, 17, 33]));
        let panel = r.pick(&[None, Some(16), Some(32), Some(8)]);
        matmul(m, n, k, i % 2 == 0, panel).check();
    }
}

/// An operand of a convolution: how its input is padded.
#[derive(Clone, Copy, PartialEq)]
enum Pad {
    Guards,
    Halo,
}

#[derive(Clone, Copy)]
struct Conv {
    n: i64,
    hw: i64,
    ci: i64,
    co: i64,
    groups: i64,
    kernel: i64,
    stride: i64,
    dilation: i64,
    pad: i64,
}

/// NHWC convolution with bias-free epilogue; weights `[g, o, i, kh, kw]` packed for a tile of `panel`.
fn conv(c: Conv, pad: Pad, panel: Option<usize>, symbolic: bool) -> Build {
    let mut b = Build::new("conv");
    let n = b.size(c.n, symbolic);
    let out = (c.hw + 2 * c.pad - c.dilation * (c.kernel - 1) - 1) / c.stride + 1;
    let (na, ni) = b.axis("n", n.clone());
    let (ga, gi) = b.axis("g", c.groups);
    let (oa, oi) = b.axis("oc", c.co);
    let (ha, hi) = b.axis("oh", out);
    let (wa, wi) = b.axis("ow", out);
    let (ia, ii) = b.axis("ic", c.ci);
    let (kha, khi) = b.axis("kh", c.kernel);
    let (kwa, kwi) = b.axis("kw", c.kernel);
    let d = |x: i64| Dim::from(x);
    let x = b.input("x", &[n.clone(), d(c.groups * c.ci), d(c.hw), d(c.hw)]);
    let w = b.input("w", &[d(c.groups), d(c.co), d(c.ci), d(c.kernel), d(c.kernel)]);
    let y = b.output("y", &[n, d(c.groups * c.co), d(out), d(out)]);
    let mut nhwc = Layout::permuted(&[0, 2, 3, 1]);
    b.layout(y, nhwc.clone());
    if pad == Pad::Halo {
        nhwc.halo[2] = (c.pad as usize, c.pad as usize);
        nhwc.halo[3] = (c.pad as usize, c.pad as usize);
    }
    b.layout(x, nhwc);
    let f = |dim, div, len| Frag { dim, div, len };
    let frags = match panel {
        Some(p) => {
            let inner = f(1, 1, Some(p));
            vec![f(0, 1, None), f(1, p, None), f(3, 1, None), f(4, 1, None), f(2, 1, None), inner]
        }
        None => [3, 4, 2, 0, 1].map(|dim| f(dim, 1, None)).to_vec(),
    };
    b.layout(w, Layout { frags, halo: vec![(0, 0); 5] });
    b.domain(&[&na, &ga, &oa, &ha, &wa]);
    let at = |o: &Dim, k: &Dim| o * d(c.stride) + k * d(c.dilation) - d(c.pad);
    let (ih, iw) = (at(&hi, &khi), at(&wi, &kwi));
    let guards = [(ih.clone(), d(c.hw)), (iw.clone(), d(c.hw))];
    let xv = b.guarded(x, &[&ni, &(&gi * d(c.ci) + &ii), &ih, &iw], &guards, 0.0);
    let wv = b.read(w, &[&gi, &oi, &ii, &khi, &kwi]);
    let p = b.bin(BinaryOp::Mul, xv, wv);
    let s = b.reduce(Monoid::Sum, &[&ia, &kha, &kwa], p);
    b.store(&[], y, &[&ni, &(&gi * d(c.co) + &oi), &hi, &wi], s);
    b
}

#[test]
fn convolutions() {
    let base = Conv { n: 1, hw: 9, ci: 3, co: 32, groups: 1, kernel: 3, stride: 1, dilation: 1, pad: 1 };
    let mut r = Random(2);
    for i in 0..40 {
        let c = Conv {
            n: r.pick(&[1, 2]),
            hw: r.pick(&[5, 7, 14]),
            ci: r.pick(&[1, 3, 5]),
            co: r.pick(&[1, 5, 16, 33]),
            groups: r.pick(&[1, 1, 2]),
            kernel: r.pick(&[1, 3]),
            stride: r.pick(&[1, 2]),
            dilation: r.pick(&[1, 2]),
            pad: r.pick(&[0, 1, 2]),
        };
        let pad = r.pick(&[Pad::Guards, Pad::Halo]);
        conv(c, pad, r.pick(&[None, Some(16), Some(32)]), i % 3 == 0).check();
    }
    conv(base, Pad::Halo, Some(32), false).check();
    // depthwise
    for pad in [Pad::Guards, Pad::Halo] {
        for stride in [1, 2] {
            let c = Conv { n: 2, ci: 1, co: 1, groups: 37, stride, ..base };
            conv(c, pad, None, stride == 2).check();
        }
    }
}

#[test]
fn softmax_and_norms() {
    for (rows, cols, symbolic) in
        [(3, 5, false), (7, 16, true), (33, 100, false), (2, 0, true), (1, 257, true)]
    {
        for axis in [0, 1] {
            let mut b = Build::new("softmax");
            let (rd, cd) = (b.size(rows, symbolic), b.size(cols, symbolic));
            let (ra, ri) = b.axis("r", rd.clone());
            let (ca, ci) = b.axis("c", cd.clone());
            let shape = [rd, cd];
            let (x, y) = (b.input("x", &shape), b.output("y", &shape));
            let (outer, inner) = if axis == 1 { (&ra, &ca) } else { (&ca, &ra) };
            b.domain(&[outer]);
            let v = b.read(x, &[&ri, &ci]);
            let m = b.reduce(Monoid::Max, &[inner], v);
            let s = b.bin(BinaryOp::Sub, v, m);
            let e = b.un(UnaryOp::Exp, s);
            let d = b.reduce(Monoid::Sum, &[inner], e);
            let q = b.bin(BinaryOp::Div, e, d);
            b.store(&[inner], y, &[&ri, &ci], q);
            b.check();
        }
    }
}

#[test]
fn elementwise_with_broadcasts() {
    for (i, shape) in [[2, 3, 4], [5, 1, 33], [1, 1, 1], [4, 0, 3], [3, 40, 7], [2, 2, 64]].iter().enumerate()
    {
        let mut b = Build::new("map");
        let dims: Vec<Dim> = shape.iter().map(|n| b.size(*n, i % 2 == 1)).collect();
        let axes: Vec<(Axis, Dim)> = dims.iter().map(|d| b.axis("i", d.clone())).collect();
        let (x, y) = (b.input("x", &dims), b.output("y", &dims));
        let c = b.input("c", std::slice::from_ref(&dims[1]));
        let z = b.output("z", &[dims[2].clone(), dims[0].clone(), dims[1].clone()]);
        b.domain(&axes.iter().map(|a| &a.0).collect::<Vec<_>>());
        let at: Vec<&Dim> = axes.iter().map(|a| &a.1).collect();
        let (xv, cv) = (b.read(x, &at), b.read(c, &[at[1]]));
        let v = b.bin(BinaryOp::Add, xv, cv);
        let v = b.un(UnaryOp::Tanh, v);
        b.store(&[], y, &at, v);
        b.store(&[], z, &[at[2], at[0], at[1]], v);
        b.check();
    }
}

#[test]
fn max_pool_with_guards() {
    for (c, hw, nhwc) in [(3, 6, true), (20, 9, true), (5, 12, false), (1, 3, false)] {
        let mut b = Build::new("max_pool");
        let out = (hw + 2 - 3) / 2 + 1;
        let shape = |n: i64| [Dim::from(2), Dim::from(c), Dim::from(n), Dim::from(n)];
        let (x, y) = (b.input("x", &shape(hw)), b.output("y", &shape(out)));
        if nhwc {
            b.layout(x, Layout::permuted(&[0, 2, 3, 1]));
            b.layout(y, Layout::permuted(&[0, 2, 3, 1]));
        }
        let (na, ni) = b.axis("n", 2);
        let (ca, ci) = b.axis("c", c);
        let (ha, hi) = b.axis("h", out);
        let (wa, wi) = b.axis("w", out);
        let (ka, ki) = b.axis("kh", 3);
        let (la, li) = b.axis("kw", 3);
        b.domain(&[&na, &ca, &ha, &wa]);
        let at = |o: &Dim, k: &Dim| o * Dim::from(2) + k - Dim::from(1);
        let (ih, iw) = (at(&hi, &ki), at(&wi, &li));
        let guards = [(ih.clone(), Dim::from(hw)), (iw.clone(), Dim::from(hw))];
        let v = b.guarded(x, &[&ni, &ci, &ih, &iw], &guards, f64::NEG_INFINITY);
        let m = b.reduce(Monoid::Max, &[&ka, &la], v);
        b.store(&[], y, &[&ni, &ci, &hi, &wi], m);
        b.check();
    }
}

#[test]
fn gather_and_scatter() {
    for (n, inner, rows) in [(3, 4, 5), (17, 33, 4), (1, 1, 4), (0, 3, 4), (6, 7, 2)] {
        for combine in [Combine::Set, Combine::Add] {
            let mut b = Build::new("scatter");
            let (nd, id) = (b.size(n, true), Dim::from(inner));
            let (na, ni) = b.axis("n", nd.clone());
            let (ia, ii) = b.axis("i", id.clone());
            let table = b.input("table", &[Dim::from(rows), id.clone()]);
            let index = b.buf("index", DType::I32, std::slice::from_ref(&nd), Access::Read);
            let base = b.buf("base", DType::F32, &[Dim::from(rows), id], Access::ReadWrite);
            b.domain(&[&na, &ia]);
            let i = b.read(index, &[&ni]);
            let var = b.k.new_var("row");
            let row = Dim::from(var);
            let v = b.read(table, &[&row, &ii]);
            let v = b.k.expr(Expr::Bind { var, value: i, bound: Dim::from(rows), body: v });
            let target = b.k.new_var("target");
            b.k.stmts.push(Stmt::Bind { var: target, value: i, bound: Dim::from(rows) });
            b.store(&[], base, &[&Dim::from(target), &ii], v);
            if let Some(Stmt::Store { combine: c, .. }) = b.k.stmts.last_mut() {
                *c = combine;
            }
            b.check();
        }
    }
}

#[test]
fn arg_max_and_cumulative() {
    for (rows, cols) in [(3, 7), (17, 33), (1, 1)] {
        for last in [false, true] {
            let mut b = Build::new("arg_max");
            let (ra, ri) = b.axis("r", rows);
            let (ca, ci) = b.axis("c", cols);
            let shape = [Dim::from(rows), Dim::from(cols)];
            let x = b.input("x", &shape);
            let y = b.buf("y", DType::I64, &shape[..1], Access::Write);
            let z = b.output("z", &shape);
            b.domain(&[&ra]);
            let v = b.read(x, &[&ri, &ci]);
            let local = b.k.new_local();
            b.k.stmts.push(Stmt::ArgReduce { local, max: true, last, axis: ca, value: v });
            let a = b.k.expr(Expr::Local(local));
            b.store(&[], y, &[&ri], a);
            // running sum along the row
            let (oa, oi) = b.axis("o", cols);
            let sum = b.k.new_local();
            let zero = b.float(0.0);
            let (s, v) = (b.k.expr(Expr::Local(sum)), b.read(x, &[&ri, &oi]));
            let next = b.bin(BinaryOp::Add, s, v);
            let store = Stmt::store(z, vec![ri, oi], next);
            let carries = vec![(sum, DType::F32, zero, next)];
            b.k.stmts.push(Stmt::Ordered { axis: oa, carries, body: vec![store] });
            b.check();
        }
    }
}

#[test]
fn concat_and_pads() {
    let mut b = Build::new("concat");
    let (ra, ri) = b.axis("r", 5);
    let (ca, ci) = b.axis("c", 40);
    let d = |x: i64| Dim::from(x);
    let (x, y) = (b.input("x", &[d(5), d(13)]), b.input("y", &[d(5), d(27)]));
    let z = b.output("z", &[d(5), d(40)]);
    b.domain(&[&ra, &ca]);
    let v = b.guarded(x, &[&ri, &ci], &[(ci.clone(), d(13))], 0.0);
    let shifted = &ci - d(13);
    let w = b.guarded(y, &[&ri, &shifted], &[(shifted.clone(), d(27))], 0.0);
    let left = b.k.expr(Expr::Inside(vec![Guard { expr: ci.clone(), bound: d(13) }]));
    let v = b.k.expr(Expr::Select(left, v, w));
    b.store(&[], z, &[&ri, &ci], v);
    b.check();
}

#[test]
fn divisions_vanish_or_gather() {
    for (heads, size, symbolic) in [(3, 16, false), (4, 8, true), (2, 5, false)] {
        // [S, H * D] read as [H, S, D]; and a reversed axis
        let mut b = Build::new("heads");
        let s = b.size(6, symbolic);
        let (h, d) = (Dim::from(heads), b.size(size, symbolic));
        let width = &h * &d;
        let (sa, si) = b.axis("s", s.clone());
        let (ea, ei) = b.axis("e", width.clone());
        let x = b.input("x", &[h, s.clone(), d.clone()]);
        let y = b.output("y", &[s.clone(), width.clone()]);
        b.domain(&[&sa, &ea]);
        let (q, r) = (ei.floor_div(&d, &b.symbols), ei.modulo(&d, &b.symbols));
        let v = b.read(x, &[&q, &si, &r]);
        b.store(&[], y, &[&(&s - Dim::from(1) - &si), &(&width - Dim::from(1) - &ei)], v);
        b.check();
    }
}

/// A copy whose operand is contiguous along another axis goes in squares; short and ragged ones too are right.
#[test]
fn transposed_copies() {
    for (rows, cols, symbolic) in
        [(48, 64, false), (40, 64, true), (40, 31, false), (17, 33, true), (16, 5, true), (3, 40, false)]
    {
        let mut b = Build::new("transpose");
        let (r, c) = (Dim::from(rows), b.size(cols, symbolic));
        let ((ra, ri), (ca, ci)) = (b.axis("r", r.clone()), b.axis("c", c.clone()));
        let (x, y) = (b.input("x", &[c.clone(), r.clone()]), b.output("y", &[r, c]));
        b.domain(&[&ra, &ca]);
        let v = b.read(x, &[&ci, &ri]);
        let half = b.float(0.5);
        let v = b.bin(BinaryOp::Mul, v, half);
        b.store(&[], y, &[&ri, &ci], v);
        b.check_on(&sse());
        let schedule = b.check_on(&avx512()).remove(0);
        let square = schedule.contains("rows r 16") && schedule.contains("cols c 16");
        assert_eq!(square, rows >= 16 && (symbolic || cols >= 16), "{schedule}");
    }
}

/// On a GPU it goes through shared memory, whatever else is read along the result, in tiles of which some are not whole.
#[test]
fn tiles_that_go_across() {
    let simt = TargetDesc { simt: true, vector_bits: 1024, ..avx512() };
    for (rows, cols, symbolic) in
        [(64, 128, false), (70, 33, false), (40, 64, true), (15, 64, false), (64, 3, true)]
    {
        let mut b = Build::new("transpose");
        let (n, r, c) = (Dim::from(2), Dim::from(rows), b.size(cols, symbolic));
        b.symbols.infos.iter_mut().for_each(|s| s.hint = 64);
        let (na, ni) = b.axis("n", n.clone());
        let ((ra, ri), (ca, ci)) = (b.axis("r", r.clone()), b.axis("c", c.clone()));
        let x = b.input("x", &[n.clone(), c.clone(), r.clone()]);
        let bias = b.input("bias", std::slice::from_ref(&r));
        let z = b.input("z", &[r.clone(), c.clone()]);
        let y = b.output("y", &[n, r, c]);
        b.domain(&[&na, &ra, &ca]);
        let (v, w, u) = (b.read(x, &[&ni, &ci, &ri]), b.read(bias, &[&ri]), b.read(z, &[&ri, &ci]));
        let v = b.bin(BinaryOp::Mul, v, w);
        let v = b.bin(BinaryOp::Sub, v, u);
        b.store(&[], y, &[&ni, &ri, &ci], v);
        let schedules = b.check_on(&simt);
        assert_eq!(schedules[0].contains("across"), rows >= 16, "{schedules:?}");
        // sizes that are known only later may be short
        assert_eq!(schedules.len(), 1 + usize::from(symbolic), "{schedules:?}");
    }
}

/// A schedule may come from anywhere.
#[test]
fn tiles_across_that_do_not_fit_are_refused() {
    let mut b = Build::new("transpose");
    let ((ra, ri), (ca, ci)) = (b.axis("r", 64), b.axis("c", 70));
    let d = |n: i64| Dim::from(n);
    let (x, y) = (b.input("x", &[d(70), d(64)]), b.output("y", &[d(64), d(70)]));
    b.domain(&[&ra, &ca]);
    let v = b.read(x, &[&ci, &ri]);
    b.store(&[], y, &[&ri, &ci], v);
    let normal = form_for(&b.k, &b.symbols, &avx512()).unwrap();
    let lower = |text: &str| {
        let s = Schedule::parse(text, &normal).unwrap();
        nest::lower(&normal, &b.symbols, &s, 1.0)
    };
    let good = "parallel r by 32, c by 32; cols c 32 mask; across 64 rows r 32";
    assert!(lower(good).is_ok());
    for (from, to) in [
        ("mask", "exact"),
        ("rows r 32", "rows r 64"),
        ("rows r 32", "rows c 32"),
        ("parallel r by 32, c", "parallel c"),
        ("cols c 32 mask; ", ""),
        ("cols c 32", "cols r 32"),
        ("across 64", "across 0"),
        ("parallel r by 32, c by 32", "parallel r by 32; serial c by 32"),
    ] {
        let bad = good.replace(from, to);
        assert!(bad != good && lower(&bad).is_err(), "{bad}");
    }
}

#[test]
fn types_narrow_and_wide() {
    for (from, to) in [(DType::F16, DType::F32), (DType::I8, DType::I32), (DType::F64, DType::F64)] {
        let mut b = Build::new("dot");
        let (ma, mi) = b.axis("m", 9);
        let (na, ni) = b.axis("n", 20);
        let (ka, ki) = b.axis("k", 6);
        let d = |x: i64| Dim::from(x);
        let x = b.buf("x", from, &[d(9), d(6)], Access::Read);
        let w = b.buf("w", from, &[d(6), d(20)], Access::Read);
        let y = b.buf("y", to, &[d(9), d(20)], Access::Write);
        b.domain(&[&ma, &na]);
        let (xv, wv) = (b.read(x, &[&mi, &ki]), b.read(w, &[&ki, &ni]));
        let wide = |b: &mut Build, e| {
            if from == to { e } else { b.k.expr(Expr::Convert(to, ir::prim::ConvertMode::Plain, e)) }
        };
        let (xv, wv) = (wide(&mut b, xv), wide(&mut b, wv));
        let p = b.bin(BinaryOp::Mul, xv, wv);
        let s = b.reduce(Monoid::Sum, &[&ka], p);
        let zero = b.k.expr(Expr::Const(to, Scalar::zero(to)));
        let positive = b.k.expr(Expr::Cmp(CmpOp::Gt, s, zero));
        let v = b.k.expr(Expr::Select(positive, s, zero));
        b.store(&[], y, &[&mi, &ni], v);
        b.check();
    }
}

/// Lines of a generated kernel, checked against what sorting in Rust gives.
#[test]
fn sorts_and_compacts() {
    for (rows, n, inner) in
        [(2usize, 0usize, 1usize), (1, 1, 1), (3, 2, 2), (2, 7, 1), (1, 33, 3), (2, 64, 1)]
    {
        for descending in [false, true] {
            let shape = [Dim::from(rows), Dim::from(n), Dim::from(inner)];
            let mut b = Build::new("top_k");
            let x = b.input("x", &shape);
            let v = b.output("v", &shape);
            let i = b.buf("i", DType::I64, &shape, Access::Write);
            b.k.generated = Some(ir::kernel::Generated::TopK { axis: 1, largest: descending });
            let total = rows * n * inner;
            let mut r = Random(n as u64);
            let data: Vec<f32> = (0..total)
                .map(|_| if r.below(9) == 0 { f32::NAN } else { r.below(7) as f32 - 3.0 })
                .collect();
            let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            let lowered = lower_kernel(&b.k, &b.symbols, &avx512()).unwrap();
            let func = &lowered.variants[0].func;
            let mut bufs = vec![Vec::new(); 3];
            bufs[x.0 as usize] = bytes(&data);
            bufs[v.0 as usize] = vec![0; total * 4];
            bufs[i.0 as usize] = vec![0; total * 8];
            loops_exec::execute(func, &mut bufs, &[], 0, (rows * inner) as i64).unwrap();
            for (row, c) in (0..rows).flat_map(|r| (0..inner).map(move |c| (r, c))) {
                let at = |k: usize| (row * n + k) * inner + c;
                let mut order: Vec<usize> = (0..n).collect();
                let rank = |k: usize| if data[at(k)].is_nan() { f32::INFINITY } else { data[at(k)] };
                order.sort_by(|a, b| {
                    let (a, b) = (rank(*a), rank(*b));
                    if descending { b.total_cmp(&a) } else { a.total_cmp(&b) }
                });
                for (k, o) in order.iter().enumerate() {
                    let got = i64::from_le_bytes(bufs[2][at(k) * 8..][..8].try_into().unwrap());
                    assert_eq!(got, *o as i64, "line {row} {c} of {n}, place {k}");
                    assert_eq!(bufs[1][at(k) * 4..][..4], data[at(*o)].to_le_bytes());
                }
            }
        }
    }
    let mut b = Build::new("compact");
    let n = Dim::from(5);
    b.buf("mask", DType::Bool, std::slice::from_ref(&n), Access::Read);
    b.buf("found", DType::I64, &[n], Access::Write);
    b.buf("count", DType::I64, &[], Access::Write);
    b.k.generated = Some(ir::kernel::Generated::Compact);
    let lowered = lower_kernel(&b.k, &b.symbols, &avx512()).unwrap();
    let mut bufs = vec![vec![1, 0, 0, 1, 1], vec![0; 40], vec![0; 8]];
    loops_exec::execute(&lowered.variants[0].func, &mut bufs, &[], 0, 1).unwrap();
    assert_eq!((bufs[2][0], bufs[1][0], bufs[1][8], bufs[1][16]), (3, 0, 3, 4));
}

/// The contraction's operands before anything is packed, then after doing what they need.
#[test]
fn operands_say_what_they_need() {
    use crate::schedule::operands::{Need, operands};
    let c = Conv { n: 1, hw: 14, ci: 8, co: 40, groups: 1, kernel: 3, stride: 1, dilation: 1, pad: 1 };
    let mut b = conv(c, Pad::Guards, None, true);
    b.k.buffers[1].constant = true;
    let found = operands(&b.k, &b.symbols, &avx512()).unwrap();
    let [row, column] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(row.need, Need::Halo(vec![(0, 0), (0, 0), (1, 1), (1, 1)]));
    let Need::Pack(layout) = column.need.clone() else { panic!("{column:?}") };
    let order: Vec<(usize, Option<usize>)> = layout.frags.iter().map(|f| (f.dim, f.len)).collect();
    assert_eq!(order[1..], [(1, None), (3, None), (4, None), (2, None), (1, order[5].1)][..]);
    let mut b = conv(c, Pad::Halo, None, true);
    b.layout(BufId(1), layout);
    b.k.buffers[1].constant = true;
    let found = operands(&b.k, &b.symbols, &avx512()).unwrap();
    assert!(found.iter().all(|o| o.need == Need::Ready), "{found:?}");
    b.check();

    // q k^T: the column operand is contiguous along the reduction
    let mut b = Build::new("scores");
    let s = b.size(20, true);
    let d = Dim::from(16);
    let (sa, si) = b.axis("s", s.clone());
    let (ta, ti) = b.axis("t", s.clone());
    let (ea, ei) = b.axis("e", d.clone());
    let (q, k) = (b.input("q", &[s.clone(), d.clone()]), b.input("k", &[s.clone(), d]));
    let y = b.output("y", &[s.clone(), s]);
    b.domain(&[&sa, &ta]);
    let (qv, kv) = (b.read(q, &[&si, &ei]), b.read(k, &[&ti, &ei]));
    let p = b.bin(BinaryOp::Mul, qv, kv);
    let sum = b.reduce(Monoid::Sum, &[&ea], p);
    b.store(&[], y, &[&si, &ti], sum);
    let found = operands(&b.k, &b.symbols, &avx512()).unwrap();
    assert_eq!(found[0].need, Need::Ready);
    assert_eq!(found[1].need, Need::Stage(vec![ea.var, ta.var]));
    b.check();
}

/// Mean and variance of groups, applied to each element: the reductions do not depend on all axes.
#[test]
fn axes_without_reduction_sink_into_stores() {
    let mut b = Build::new("group_norm");
    let d = |x: i64| Dim::from(x);
    let shape = [d(3), d(2), d(5), d(9)];
    let axes: Vec<(Axis, Dim)> = shape.iter().map(|e| b.axis("i", e.clone())).collect();
    let ((ca, ci), (sa, si)) = (b.axis("c", 5), b.axis("s", 9));
    let (x, y) = (b.input("x", &shape), b.output("y", &shape));
    b.domain(&axes.iter().map(|a| &a.0).collect::<Vec<_>>());
    let v = b.read(x, &[&axes[0].1, &axes[1].1, &ci, &si]);
    let m = b.reduce(Monoid::Sum, &[&ca, &sa], v);
    let at: Vec<&Dim> = axes.iter().map(|a| &a.1).collect();
    let v = b.read(x, &at);
    let v = b.bin(BinaryOp::Sub, v, m);
    b.store(&[], y, &at, v);
    let normal = normal_form(&b.k, &b.symbols).unwrap();
    assert_eq!(normal.domain.len(), 1, "{:?}", normal.domain);
    b.check();
}

#[test]
fn exponentials_of_a_softmax_are_computed_once() {
    for n in [2, 7, 16, 50] {
        let mut b = Build::new("softmax");
        let shape = [Dim::from(3), Dim::from(n)];
        let (ia, i) = b.axis("i", 3);
        let (ja, j) = b.axis("j", n);
        let ((ma, m), (sa, s)) = (b.axis("m", n), b.axis("s", n));
        let (x, y) = (b.input("x", &shape), b.output("y", &shape));
        b.domain(&[&ia]);
        let v = b.read(x, &[&i, &m]);
        let most = b.reduce(Monoid::Max, &[&ma], v);
        let exp = |b: &mut Build, at: &Dim| {
            let v = b.read(x, &[&i, at]);
            let v = b.bin(BinaryOp::Sub, v, most);
            b.un(UnaryOp::Exp, v)
        };
        let v = exp(&mut b, &s);
        let sum = b.reduce(Monoid::Sum, &[&sa], v);
        let v = exp(&mut b, &j);
        let v = b.bin(BinaryOp::Div, v, sum);
        b.store(&[&ja], y, &[&i, &j], v);
        let normal = form_for(&b.k, &b.symbols, &avx512()).unwrap();
        let expensive = |s: &&Stmt| crate::stage::roots(s).iter().any(|e| is_expensive(&normal, *e));
        let exps = normal.stmts.iter().filter(expensive).count();
        assert_eq!((exps, normal.stmts.len()), (1, 4), "{normal}");
        let simt = TargetDesc { simt: true, ..avx512() };
        assert!(form_for(&b.k, &b.symbols, &simt).unwrap().stmts.len() <= 3);
        b.check();
    }
}

/// The tiles of one panel ask for every line of the next one.
#[test]
fn panels_are_asked_for_ahead() {
    use crate::lower::{ahead, space::VarFacts};
    use crate::schedule::choose;
    let (m, n, k, p) = (30, 96, 1500, 32);
    let mut b = matmul(m, n, k, false, Some(p));
    b.k.buffers[1].constant = true;
    let normal = form_for(&b.k, &b.symbols, &avx512()).unwrap();
    let choice = choose::variants(&normal, &b.symbols, &avx512()).remove(0);
    let s = choice.schedule;
    assert!(s.ahead > 0, "{}", s.text(&normal));
    let (rows, cols) = (s.rows.unwrap(), s.cols.unwrap());
    let mut facts = VarFacts::of(&normal, &b.symbols);
    let panel = ahead::panel(&normal, &cols, &facts).unwrap();
    let base = ir::Var(normal.vars.len() as u32);
    facts.set(base, Dim::from(m));
    let place = ahead::place(&normal, &s, &panel, Some(base), &facts);
    let mut lines = std::collections::BTreeSet::new();
    for row in (0..m).step_by(rows.size as usize) {
        for step in 0..k {
            let at = place.eval(&|a| match a {
                ir::Atom::Var(v) if *v == base => Some(row),
                // the second of three panels
                ir::Atom::Var(v) if normal.domain.iter().any(|x| x.var == *v) => Some(1),
                ir::Atom::Var(_) => Some(step),
                _ => None,
            });
            lines.insert(at.unwrap() / 16);
        }
    }
    let of_panel = p as i64 * k / 16;
    assert!((2 * of_panel..3 * of_panel).all(|l| lines.contains(&l)), "{place}");
    // what is asked for beyond it is little
    assert!(lines.last().unwrap() < &(4 * of_panel), "{place}");
    b.check();
}

/// Where rows outweigh columns, threads share out rows, in blocks that stay in the cache.
#[test]
fn blocks_of_rows() {
    let first = |b: &Build| b.check_on(&avx512())[0].split(',').next().unwrap_or_default().to_string();
    let tall = first(&matmul(1400, 32, 24, false, Some(16)));
    let step: i64 = tall.strip_prefix("parallel m by ").expect(&tall).parse().unwrap();
    assert!(step < 1400 / 2, "{tall}");
    assert!(!first(&matmul(60, 96, 300, false, Some(16))).starts_with("parallel m by"));
}

/// Where memory is contiguous along no axis, a batch, likely to be single, is not what fills the lanes.
#[test]
fn single_batches_fill_no_lanes() {
    let mut b = Build::new("interleave");
    let n = b.size(1, true);
    let last = b.symbols.infos.len() - 1;
    b.symbols.infos[last].hint = 1;
    let (x, y) =
        (b.input("x", &[n.clone(), Dim::from(24), Dim::from(4)]), b.output("y", &[n.clone(), Dim::from(50)]));
    let ((an, dn), (ai, di)) = (b.axis("n", n), b.axis("i", 24));
    let even = b.read(x, &[&dn, &di, &Dim::from(0)]);
    let even = b.un(UnaryOp::Exp, even);
    b.store(&[], y, &[&dn, &(di.clone() * Dim::from(2))], even);
    let odd = b.read(x, &[&dn, &di, &Dim::from(1)]);
    let odd = b.un(UnaryOp::Exp, odd);
    b.store(&[], y, &[&dn, &(di * Dim::from(2) + Dim::from(1))], odd);
    b.domain(&[&an, &ai]);
    let schedule = b.check_on(&avx512()).remove(0);
    assert!(schedule.contains("cols i "), "{schedule}");
}

/// Windows over more columns than the first-level cache has room for go tile after tile of columns.
#[test]
fn columns_before_windows() {
    let order = |channels: i64| {
        let mut b = Build::new("depthwise");
        let d = Dim::from;
        let x = b.input("x", &[d(18), d(20), d(channels)]);
        let (w, y) = (b.input("w", &[d(3), d(3), d(channels)]), b.output("y", &[d(16), d(18), d(channels)]));
        let ((ai, i), (aj, j), (ac, c)) = (b.axis("i", 16), b.axis("j", 18), b.axis("c", channels));
        let ((ar, r), (at, t)) = (b.axis("r", 3), b.axis("t", 3));
        let near = b.read(x, &[&(i.clone() + r.clone()), &(j.clone() + t.clone()), &c]);
        let weight = b.read(w, &[&r, &t, &c]);
        let product = b.bin(BinaryOp::Mul, near, weight);
        let sum = b.reduce(Monoid::Sum, &[&ar, &at], product);
        b.store(&[], y, &[&i, &j, &c], sum);
        b.domain(&[&ac, &ai, &aj]);
        let schedule = b.check_on(&avx512()).remove(0);
        let at = |axis: &str| schedule.rfind(&format!("{axis} by ")).expect(&schedule);
        (at("c") < at("i"), schedule)
    };
    let (before, schedule) = order(512);
    assert!(before, "{schedule}");
    let (before, schedule) = order(48);
    assert!(!before, "{schedule}");
}
