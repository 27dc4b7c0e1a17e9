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

fn targets() -> [TargetDesc; 2] {
    let vnni = TargetDesc { features: "+avx512bw,+avx512vnni,+avx512bf16".into(), ..avx512() };
    let avx2 = TargetDesc {
        name: "avx2".into(),
        vector_bits: 256,
        vector_regs: 16,
        has_masks: false,
        features: "+avx2".into(),
        ..avx512()
    };
    [vnni, avx2]
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
        let has = lowered.variants.iter().all(|v| v.func.to_string().contains(dot.tile_op()));
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
