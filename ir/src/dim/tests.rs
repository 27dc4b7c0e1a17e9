//! Properties: what is simplified keeps its value, what is bounded or proved holds, nothing panics.

use super::*;
use proptest::prelude::*;

/// An expression as it was asked for.
#[derive(Clone, Debug)]
enum Expr {
    Const(i64),
    Sym(u32),
    Var(u32),
    Add(Box<Expr>, Box<Expr>),
    Sub(Box<Expr>, Box<Expr>),
    Mul(Box<Expr>, Box<Expr>),
    Div(Box<Expr>, Divisor),
    Ceil(Box<Expr>, Divisor),
    Mod(Box<Expr>, Divisor),
    Min(Box<Expr>, Box<Expr>),
    Max(Box<Expr>, Box<Expr>),
}

/// Positive: `c * product of (positive) symbols + add`.
#[derive(Clone, Debug)]
struct Divisor {
    c: i64,
    syms: Vec<u32>,
    add: i64,
}

/// Ranges and divisors of the symbols: the first may be 0 or negative.
const RANGES: [(i64, i64, i64); 4] = [(-3, 9, 1), (1, 12, 1), (1, 7, 1), (4, 32, 4)];
/// Extents of the variables: 6, s1, s1 * s2, s3.
struct World;

fn extent(v: u32) -> Dim {
    let s = |i| Dim::from(Sym(i));
    match v {
        0 => Dim::from(6),
        1 => s(1),
        2 => s(1) * s(2),
        _ => s(3),
    }
}

impl Facts for World {
    fn sym_range(&self, s: Sym) -> (i64, i64) {
        let (lo, hi, _) = RANGES[s.0 as usize];
        (lo, hi)
    }
    fn sym_divisor(&self, s: Sym) -> i64 {
        RANGES[s.0 as usize].2
    }
    fn var_range(&self, v: Var) -> (i64, i64) {
        (0, extent(v.0).bounds(self).1 - 1)
    }
    fn var_extent(&self, v: Var) -> Option<Dim> {
        Some(extent(v.0))
    }
}

impl Divisor {
    fn dim(&self) -> Dim {
        let product = self.syms.iter().fold(Dim::from(self.c), |p, &s| p * Dim::from(Sym(s)));
        product + Dim::from(self.add)
    }
    fn value(&self, at: &Point) -> i128 {
        self.syms.iter().fold(self.c as i128, |p, &s| p * at.syms[s as usize] as i128) + self.add as i128
    }
}

impl Expr {
    fn dim(&self) -> Dim {
        match self {
            Expr::Const(c) => Dim::from(*c),
            Expr::Sym(s) => Dim::from(Sym(*s)),
            Expr::Var(v) => Dim::from(Var(*v)),
            Expr::Add(a, b) => a.dim() + b.dim(),
            Expr::Sub(a, b) => a.dim() - b.dim(),
            Expr::Mul(a, b) => a.dim() * b.dim(),
            Expr::Div(a, d) => a.dim().floor_div(&d.dim(), &World),
            Expr::Ceil(a, d) => a.dim().ceil_div(&d.dim(), &World),
            Expr::Mod(a, d) => a.dim().modulo(&d.dim(), &World),
            Expr::Min(a, b) => a.dim().min_with(&b.dim(), &World),
            Expr::Max(a, b) => a.dim().max_with(&b.dim(), &World),
        }
    }
    fn value(&self, at: &Point) -> i128 {
        match self {
            Expr::Const(c) => *c as i128,
            Expr::Sym(s) => at.syms[*s as usize] as i128,
            Expr::Var(v) => at.vars[*v as usize] as i128,
            Expr::Add(a, b) => a.value(at) + b.value(at),
            Expr::Sub(a, b) => a.value(at) - b.value(at),
            Expr::Mul(a, b) => a.value(at) * b.value(at),
            Expr::Div(a, d) => a.value(at).div_euclid(d.value(at)),
            Expr::Ceil(a, d) => -(-a.value(at)).div_euclid(d.value(at)),
            Expr::Mod(a, d) => a.value(at).rem_euclid(d.value(at)),
            Expr::Min(a, b) => a.value(at).min(b.value(at)),
            Expr::Max(a, b) => a.value(at).max(b.value(at)),
        }
    }
}

#[derive(Clone, Debug)]
struct Point {
    syms: [i64; 4],
    vars: [i64; 4],
}

impl Point {
    fn eval(&self, d: &Dim) -> Option<i64> {
        d.eval(&|a| match a {
            Atom::Sym(s) => Some(self.syms[s.0 as usize]),
            Atom::Var(v) => Some(self.vars[v.0 as usize]),
            _ => None,
        })
    }
}

fn point() -> impl Strategy<Value = Point> {
    (any::<[u32; 4]>(), any::<[u32; 4]>()).prop_map(|(a, b)| {
        let mut p = Point { syms: [0; 4], vars: [0; 4] };
        for i in 0..4 {
            let (lo, hi, step) = RANGES[i];
            p.syms[i] = lo + a[i] as i64 % ((hi - lo) / step + 1) * step;
        }
        for (i, pick) in b.into_iter().enumerate() {
            let n = p.eval(&extent(i as u32)).unwrap();
            // the ends are where mistakes are
            p.vars[i] = match pick % 3 {
                0 => 0,
                1 => n - 1,
                _ => (pick / 3) as i64 % n,
            };
        }
        p
    })
}

fn divisor() -> impl Strategy<Value = Divisor> + Clone {
    let syms = prop::collection::vec(1u32..4, 0..3);
    (1i64..9, syms, prop_oneof![3 => Just(0i64), 1 => 0i64..5]).prop_map(|(c, syms, add)| Divisor {
        c,
        syms,
        add,
    })
}

fn expr() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        (-9i64..40).prop_map(Expr::Const),
        (0u32..4).prop_map(Expr::Sym),
        (0u32..4).prop_map(Expr::Var),
    ];
    leaf.prop_recursive(5, 24, 2, |e| {
        let two = (e.clone(), e.clone()).prop_map(|(a, b)| (Box::new(a), Box::new(b)));
        let by = (e.prop_map(Box::new), divisor());
        prop_oneof![
            3 => two.clone().prop_map(|(a, b)| Expr::Add(a, b)),
            2 => two.clone().prop_map(|(a, b)| Expr::Sub(a, b)),
            2 => two.clone().prop_map(|(a, b)| Expr::Mul(a, b)),
            2 => by.clone().prop_map(|(a, d)| Expr::Div(a, d)),
            1 => by.clone().prop_map(|(a, d)| Expr::Ceil(a, d)),
            2 => by.prop_map(|(a, d)| Expr::Mod(a, d)),
            1 => two.clone().prop_map(|(a, b)| Expr::Min(a, b)),
            1 => two.prop_map(|(a, b)| Expr::Max(a, b)),
        ]
    })
}

/// The form every expression has.
fn assert_canonical(d: &Dim) {
    for w in d.terms().windows(2) {
        assert!(w[0].0 < w[1].0, "{d}: terms are not sorted");
    }
    for (atoms, c) in d.terms() {
        assert!(*c != 0 && atoms.is_sorted(), "{d}: a term is not canonical");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn simplification_keeps_the_value(e in expr(), at in prop::collection::vec(point(), 4)) {
        let d = e.dim();
        assert_canonical(&d);
        let (lo, hi) = d.bounds(&World);
        for p in &at {
            let want = e.value(p);
            prop_assert_eq!(p.eval(&d).map(i128::from), Some(want), "{} at {:?}", d, p);
            prop_assert!(lo as i128 <= want && want <= hi as i128, "{} in {}..={}", d, lo, hi);
            for n in [2, 3, 4, 8, 12] {
                if d.divisible_by(n, &World) {
                    prop_assert_eq!(want % n as i128, 0, "{} by {}", d, n);
                }
            }
        }
    }

    #[test]
    fn what_is_proved_holds(a in expr(), b in expr(), at in prop::collection::vec(point(), 6)) {
        let (x, y) = (a.dim(), b.dim());
        let (le, lt, eq) =
            (x.provably_le(&y, &World), x.provably_lt(&y, &World), x.provably_eq(&y, &World));
        let sign = x.provably_nonnegative(&World);
        for p in &at {
            let (v, w) = (a.value(p), b.value(p));
            prop_assert!(!le || v <= w, "{} <= {} at {:?}", x, y, p);
            prop_assert!(!lt || v < w, "{} < {} at {:?}", x, y, p);
            prop_assert!(!eq || v == w, "{} == {} at {:?}", x, y, p);
            prop_assert!(!sign || v >= 0, "{} >= 0 at {:?}", x, p);
        }
    }

    #[test]
    fn substitution_keeps_the_value(e in expr(), by in expr(), p in point()) {
        // what is simplified by the range of s0 holds for values in it
        let (lo, hi) = (Box::new(Expr::Const(-3)), Box::new(Expr::Const(9)));
        let by = Expr::Min(Box::new(Expr::Max(Box::new(by), lo)), hi);
        let d = e.dim().subst(&World, &mut |a| (*a == Atom::Sym(Sym(0))).then(|| by.dim()));
        let v = by.value(&p);
        let mut at = p.clone();
        at.syms[0] = v as i64;
        prop_assert_eq!(p.eval(&d).map(i128::from), Some(e.value(&at)));
    }

    #[test]
    fn splits_and_coefficients(e in expr(), by in divisor(), p in point()) {
        let (d, by) = (e.dim(), by.dim());
        let (q, r) = d.split_multiple(&by);
        let value = |d: &Dim| p.eval(d).map(i128::from);
        prop_assert_eq!(value(&(&q * &by + &r)), Some(e.value(&p)));
        for v in 0..4 {
            if let Some((c, rest)) = d.affine_in(Var(v)) {
                prop_assert!(!c.uses_var(Var(v)) && !rest.uses_var(Var(v)));
                prop_assert_eq!(value(&(c * Dim::from(Var(v)) + rest)), Some(e.value(&p)));
            }
        }
        // q + r recombine
        let (f, m) = (d.floor_div(&by, &World), d.modulo(&by, &World));
        prop_assert_eq!(value(&(f * &by + m)), Some(e.value(&p)));
    }

    #[test]
    fn extremes_do_not_panic(a in any::<i64>(), b in any::<i64>(), c in any::<i64>()) {
        let s = Dim::from(Sym(0));
        let d = (s.clone() * Dim::from(a) + Dim::from(b)) * (s.clone() + Dim::from(c)) * s;
        for by in [a, b, c, 0, 1, i64::MAX, i64::MIN].map(Dim::from) {
            for e in [d.floor_div(&by, &NoFacts), d.modulo(&by, &NoFacts), d.min_with(&by, &NoFacts)] {
                let (lo, hi) = e.bounds(&NoFacts);
                prop_assert!(lo <= hi);
                for v in [a, b, c, 0, i64::MAX, i64::MIN] {
                    let _ = e.eval_syms(&|_| Some(v));
                }
                let _ = e.provably_le(&d, &NoFacts);
                let _ = e.divisible_by(a, &NoFacts);
            }
        }
    }
}

fn s(i: u32) -> Dim {
    Dim::from(Sym(i))
}
fn v(i: u32) -> Dim {
    Dim::from(Var(i))
}
fn d(c: i64) -> Dim {
    Dim::from(c)
}

#[test]
fn index_arithmetic_simplifies() {
    let f = &World;
    // i * s1 + j with j in 0..s1
    let linear = v(0) * s(1) + v(1);
    assert_eq!(linear.floor_div(&s(1), f), v(0));
    assert_eq!(linear.modulo(&s(1), f), v(1));
    // a sum as divisor: i (s1 + 1) + j
    let by = s(1) + d(1);
    let linear = v(0) * &by + v(1);
    assert_eq!(linear.floor_div(&by, f), v(0));
    assert_eq!(linear.modulo(&by, f), v(1));
    // the remainder of a product: v2 in 0..s1 * s2
    let linear = v(0) * s(1) * s(2) + v(2);
    assert_eq!(linear.floor_div(&(s(1) * s(2)), f), v(0));
    // apart and together again
    let (q, r) = (v(2).floor_div(&s(2), f), v(2).modulo(&s(2), f));
    assert_eq!(q.clone() * s(2) + r.clone(), v(2));
    assert_eq!((q * s(2) + r).floor_div(&s(2), f), v(2).floor_div(&s(2), f));
    let (q, r) = (v(3).floor_div(&d(5), f), v(3).modulo(&d(5), f));
    assert_eq!(&q * &d(5) + r + d(7), v(3) + d(7));
    assert_eq!(q.floor_div(&d(4), f), v(3).floor_div(&d(20), f));
    assert_eq!(v(3).modulo(&d(20), f).modulo(&d(5), f), v(3).modulo(&d(5), f));
    assert_eq!(v(3).modulo(&d(20), f).floor_div(&d(5), f), v(3).floor_div(&d(5), f).modulo(&d(4), f));
    // common factors
    assert_eq!((v(0) * s(2) * d(2)).floor_div(&(s(2) * d(4)), f), v(0).floor_div(&d(2), f));
    assert_eq!((v(0) * d(4) + d(1)).modulo(&d(8), f), v(0).modulo(&d(2), f) * d(4) + d(1));
    // s3 is a multiple of 4
    assert_eq!((s(3) * v(0) + v(1)).modulo(&d(4), f), v(1).modulo(&d(4), f));
}

#[test]
fn proofs() {
    let f = &World;
    assert!(v(1).provably_lt(&s(1), f));
    assert!((v(1) * s(2) + v(0)).provably_le(&(s(1) * s(2) - s(2) + d(5)), f));
    assert!(s(1).max_with(&s(3), f).provably_le(&(s(1) + s(3)), f));
    assert!(s(1).min_with(&s(3), f).provably_le(&s(1), f));
    assert!((s(1) * s(2)).provably_le(&(s(1) * s(2) * s(3)), f));
    // ceil(n / 4) windows of 4 reach n
    let n = s(1);
    let tiles = n.ceil_div(&d(4), f);
    assert!(n.provably_le(&(&tiles * &d(4)), f));
    assert!(tiles.provably_le(&n, f));
    // nested minima collapse
    let m = s(1).min_with(&s(3), f);
    assert_eq!(m.min_with(&s(1), f), m);
    // the last element of a clamped slice is inside
    let (start, size) = crate::build::slice_range(&d(2), &d(1 << 40), 3, &s(3), f);
    let last = &start + &((&size - &d(1)) * d(3));
    assert!(last.provably_lt(&s(3), f));
}
