//! Dot products of words, for targets that have them: operands packed as [`crate::schedule::operands`] packs them.

use super::*;
use ir::kernel::Dot;
use ir::layout::Frag;
use ir::prim::ConvertMode;

fn frag(dim: usize, div: usize, len: Option<usize>) -> Frag {
    Frag { dim, div, len }
}

fn layout(frags: &[Frag], rank: usize) -> Layout {
    Layout { frags: frags.to_vec(), halo: vec![(0, 0); rank] }
}

/// A machine with matrix registers.
fn matrices() -> TargetDesc {
    let features = "+avx512bw,+avx512vnni,+avx512bf16,+amx-tile,+amx-int8,+amx-bf16";
    TargetDesc { name: "amx".into(), features: features.into(), ..avx512() }
}

fn targets() -> [TargetDesc; 3] {
    let vnni = TargetDesc { features: "+avx512bw,+avx512vnni,+avx512bf16".into(), ..avx512() };
    let avx2 = TargetDesc {
        name: "avx2".into(),
        vector_bits: 256,
        vector_regs: 16,
        has_masks: false,
        features: "+avx2".into(),
        ..avx512()
    };
    [vnni, avx2, matrices()]
}

impl Build {
    /// Reads of `x` and of the constant `w` as the products of a sum.
    fn word_product(&mut self, dot: Dot, x: ExprId, w: ExprId) -> ExprId {
        let [x, w] = [x, w].map(|e| self.k.expr(Expr::Convert(dot.dtype(), ConvertMode::Plain, e)));
        self.bin(BinaryOp::Mul, x, w)
    }
    fn check_words(&self, dot: Dot, target: &TargetDesc) {
        self.check_on(target);
        let lowered = lower_kernel(&self.k, &self.symbols, target).unwrap();
        let [vector, matrix] = [dot.tile_op(), dot.matrix_op()];
        let in_words =
            |text: &str| text.contains(vector) || target.has_matrices(dot) && text.contains(matrix);
        let has = lowered.variants.iter().all(|v| in_words(&v.func.to_string()));
        assert_eq!(has, target.words(dot).is_some(), "{} on {}", self.k.name, target.name);
    }
}

fn dtypes(dot: Dot) -> (DType, DType) {
    match dot {
        Dot::Bytes => (DType::U8, DType::I8),
        Dot::Bf16 => (DType::BF16, DType::BF16),
    }
}

#[test]
fn matrices_in_words() {
    for dot in Dot::ALL {
        for target in targets().iter().filter(|t| t.words(dot).is_some()) {
            for (m, n, k, nr) in [(1, 40, 16, 32), (9, 64, 24, 32), (30, 130, 8, 64)] {
                let mut b = Build::new("words");
                let (ma, mi) = b.axis("m", m);
                let (na, ni) = b.axis("n", n);
                let (ka, ki) = b.axis("k", k);
                let d = |x: i64| Dim::from(x);
                let (tx, tw) = dtypes(dot);
                let x = b.buf("x", tx, &[d(m), d(k)], Access::Read);
                let w = b.buf("w", tw, &[d(k), d(n)], Access::Read);
                let parts = dot.parts();
                let packed =
                    [frag(1, nr, None), frag(0, parts, None), frag(1, 1, Some(nr)), frag(0, 1, Some(parts))];
                b.layout(w, layout(&packed, 2));
                b.k.buffers[w.0 as usize].constant = true;
                let y = b.buf("y", dot.dtype(), &[d(m), d(n)], Access::Write);
                b.domain(&[&ma, &na]);
                let (xv, wv) = (b.read(x, &[&mi, &ki]), b.read(w, &[&ki, &ni]));
                let p = b.word_product(dot, xv, wv);
                let s = b.reduce(Monoid::Sum, &[&ka], p);
                b.store(&[], y, &[&mi, &ni], s);
                b.check_words(dot, target);
            }
        }
    }
}

/// Three channels lie in words of four; windows of odd size stand beside them in the reduction.
#[test]
fn pictures_in_words() {
    for target in targets() {
        let mut b = Build::new("picture");
        let d = |x: i64| Dim::from(x);
        let (ca, ci) = b.axis("c", 20);
        let (ha, hi) = b.axis("h", 5);
        let (wa, wi) = b.axis("w", 8);
        let (ra, ri) = b.axis("r", 3);
        let (ya, yi) = b.axis("y", 3);
        let (xa, xi) = b.axis("x", 3);
        let image = b.buf("image", DType::U8, &[d(3), d(11), d(17)], Access::Read);
        b.layout(
            image,
            layout(&[frag(1, 1, None), frag(2, 1, None), frag(0, 4, None), frag(0, 1, Some(4))], 3),
        );
        let weights = b.buf("weights", DType::I8, &[d(20), d(3), d(3), d(3)], Access::Read);
        let packed = [
            frag(0, 32, None),
            frag(2, 1, None),
            frag(3, 1, None),
            frag(1, 4, None),
            frag(0, 1, Some(32)),
            frag(1, 1, Some(4)),
        ];
        b.layout(weights, layout(&packed, 4));
        b.k.buffers[weights.0 as usize].constant = true;
        let out = b.buf("out", DType::I32, &[d(5), d(8), d(20)], Access::Write);
        b.domain(&[&ca, &ha, &wa]);
        let (row, column) = (d(2) * hi.clone() + yi.clone(), d(2) * wi.clone() + xi.clone());
        let (xv, wv) = (b.read(image, &[&ri, &row, &column]), b.read(weights, &[&ci, &ri, &yi, &xi]));
        let p = b.word_product(Dot::Bytes, xv, wv);
        let s = b.reduce(Monoid::Sum, &[&ra, &ya, &xa], p);
        b.store(&[], out, &[&hi, &wi, &ci], s);
        b.check_words(Dot::Bytes, &target);
    }
}

/// A convolution with `taps` windows along a line of `m` places, of `k` parts each and with `n` filters.
fn line(dot: Dot, [m, n, k, taps, stride]: [i64; 5], panel: usize) -> Build {
    let mut b = Build::new("line");
    let (ma, mi) = b.axis("m", m);
    let (na, ni) = b.axis("n", n);
    let (ta, ti) = b.axis("t", taps);
    let (ka, ki) = b.axis("k", k);
    let d = |x: i64| Dim::from(x);
    let (tx, tw) = dtypes(dot);
    let x = b.buf("x", tx, &[d((m - 1) * stride + taps), d(k)], Access::Read);
    let w = b.buf("w", tw, &[d(taps), d(k), d(n)], Access::Read);
    let parts = dot.parts();
    let packed = [
        frag(2, panel, None),
        frag(0, 1, None),
        frag(1, parts, None),
        frag(2, 1, Some(panel)),
        frag(1, 1, Some(parts)),
    ];
    b.layout(w, layout(&packed, 3));
    b.k.buffers[w.0 as usize].constant = true;
    let bias = b.buf("bias", dot.dtype(), &[d(n)], Access::Read);
    let y = b.buf("y", dot.dtype(), &[d(m), d(n)], Access::Write);
    b.domain(&[&ma, &na]);
    let place = d(stride) * mi.clone() + ti.clone();
    let (xv, wv) = (b.read(x, &[&place, &ki]), b.read(w, &[&ti, &ki, &ni]));
    let p = b.word_product(dot, xv, wv);
    let s = b.reduce(Monoid::Sum, &[&ta, &ka], p);
    let add = b.read(bias, &[&ni]);
    let s = b.bin(BinaryOp::Add, s, add);
    b.store(&[], y, &[&mi, &ni], s);
    b
}

/// What has rows and words enough goes to matrix registers, the rest does not, and all of it is right.
#[test]
fn lines_in_matrices() {
    let target = matrices();
    let mut counts = [0, 0];
    for dot in Dot::ALL {
        let parts = dot.parts() as i64;
        for m in (1..=40).chain([49, 100]) {
            // words: fewer than a register has, no multiple of it, several of them, a prime number
            let (words, taps) = ([16, 3, 24, 32, 7, 40, 1][m as usize % 7], 1 + m % 3);
            let (n, panel) = [(32, 32), (16, 16), (70, 32), (24, 32), (64, 32)][m as usize % 5];
            let b = line(dot, [m, n, words * parts, taps, 1 + m % 2], panel);
            let schedules = b.check_on(&target);
            let matrix = schedules.iter().any(|s| s.contains("matrix"));
            counts[usize::from(matrix)] += 1;
            if m >= 16 && n >= 16 && words % 8 == 0 && words * taps >= 32 {
                assert!(matrix, "{dot:?} {m} x {n} x {words} words: {schedules:?}");
            }
        }
    }
    assert!(counts.into_iter().all(|n| n > 5), "{counts:?}");
}

#[test]
fn schedules_that_matrices_do_not_fit_are_refused() {
    let b = line(Dot::Bytes, [32, 64, 256, 1, 1], 32);
    let normal = form_for(&b.k, &b.symbols, &matrices()).unwrap();
    let lowered = lower_kernel(&b.k, &b.symbols, &matrices()).unwrap();
    let text = &lowered.variants[0].schedule;
    let whole = text.split("matrix ").nth(1).unwrap().split(';').next().unwrap();
    let axis = whole.split(' ').next().unwrap();
    for wrong in ["5 rows 4", "32 rows 4", "16 rows 5", "16 rows 0"] {
        let text = text.replace(whole, &format!("{axis} {wrong}"));
        let schedule = Schedule::parse(&text, &normal).unwrap();
        let error = nest::lower(&normal, &b.symbols, &schedule, 1.0).unwrap_err().to_string();
        assert!(error.contains("matrix registers"), "{error}");
    }
    assert!(Schedule::parse(&text.replace(whole, "nothing 16 rows 4"), &normal).is_err());
}
