//! What can be proved of an expression from the ranges of its symbols and the extents of its variables.

use super::divide::gcd;
use super::{Atom, Dim, Facts, SATURATED, sat};

/// Expressions that one proof may look at.
const FUEL: u32 = 48;

/// Beyond this magnitude a bound is infinite.
const INFINITE: i128 = 1 << 100;

impl Dim {
    /// Inclusive numeric bounds; ±2^62 where there is none.
    pub fn bounds(&self, facts: &dyn Facts) -> (i64, i64) {
        if let Some(c) = self.as_const() {
            return (c, c);
        }
        let (mut lo, mut hi) = (0i128, 0i128);
        let (mut no_lo, mut no_hi) = (false, false);
        for (atoms, c) in self.terms() {
            let (mut l, mut h) = (1i128, 1i128);
            for a in atoms {
                let (al, ah) = a.bounds(facts);
                let (al, ah) = (infinite(al), infinite(ah));
                let p = [times(l, al), times(l, ah), times(h, al), times(h, ah)];
                l = p.iter().copied().fold(i128::MAX, i128::min);
                h = p.iter().copied().fold(i128::MIN, i128::max);
            }
            let (x, y) = (times(l, *c as i128), times(h, *c as i128));
            let (x, y) = (x.min(y), x.max(y));
            no_lo |= x <= -INFINITE;
            no_hi |= y >= INFINITE;
            lo = lo.saturating_add(x);
            hi = hi.saturating_add(y);
        }
        let lo = if no_lo { -SATURATED } else { sat(lo) };
        let hi = if no_hi { SATURATED } else { sat(hi) };
        (lo, hi)
    }

    pub fn provably_eq(&self, other: &Dim, facts: &dyn Facts) -> bool {
        if self == other {
            return true;
        }
        let d = self - other;
        match d.bounds(facts) {
            (0, 0) => true,
            (lo, hi) if lo > 0 || hi < 0 => false,
            // equal polynomials are equal already: only compound atoms can hide an equality
            _ if !d.is_compound() => false,
            _ => d.provably_nonnegative(facts) && (-&d).provably_nonnegative(facts),
        }
    }
    pub fn provably_le(&self, other: &Dim, facts: &dyn Facts) -> bool {
        self == other || (other - self).provably_nonnegative(facts)
    }
    pub fn provably_lt(&self, other: &Dim, facts: &dyn Facts) -> bool {
        (other - self - Dim::from(1)).provably_nonnegative(facts)
    }

    fn is_compound(&self) -> bool {
        self.terms().iter().flat_map(|t| &t.0).any(|a| a.parts().is_some())
    }

    /// Provably a multiple of `n`.
    pub fn divisible_by(&self, n: i64, facts: &dyn Facts) -> bool {
        n > 0
            && self.terms().iter().all(|(atoms, c)| {
                let mut left = n / gcd(n, *c);
                for a in atoms {
                    if let Atom::Sym(s) = a {
                        left /= gcd(left, facts.sym_divisor(*s));
                    }
                }
                left == 1
            })
    }

    /// Provably at least 0.
    ///
    /// Atoms are removed one by one, each replaced by what makes the expression smallest: a variable or
    /// symbol by an end of its range (symbolic where the extent is), a minimum or maximum by its operands,
    /// a quotient by its own bounds. That is sharper than [`Dim::bounds`], which treats every
    /// occurrence of a symbol as if it had a value of its own.
    pub fn provably_nonnegative(&self, facts: &dyn Facts) -> bool {
        self.nonnegative(facts, &mut FUEL.clone())
    }

    fn nonnegative(&self, facts: &dyn Facts, fuel: &mut u32) -> bool {
        let (lo, hi) = self.bounds(facts);
        if lo >= 0 {
            return true;
        }
        if hi < 0 || *fuel == 0 {
            return false;
        }
        *fuel -= 1;
        // variables first, whose ranges are exact, and then what hides them; symbols last, as extents of
        // variables mention them
        let rank = |a: &Atom| match a {
            Atom::Var(_) => 0,
            Atom::Min(..) | Atom::Max(..) | Atom::FloorDiv(..) | Atom::Mod(..) => 1,
            Atom::Sym(_) => 2,
        };
        for wanted in 0..3 {
            for (i, (atoms, _)) in self.terms().iter().enumerate() {
                for (k, a) in atoms.iter().enumerate() {
                    let earlier = self.terms()[..i].iter().flat_map(|t| &t.0).chain(&atoms[..k]);
                    if rank(a) != wanted || { earlier }.any(|e| e == a) {
                        continue;
                    }
                    if let Some(proved) = self.without(a, facts, fuel) {
                        return proved;
                    }
                }
            }
        }
        false
    }

    /// `self >= 0` by removing one atom; `None` where that atom cannot be removed.
    fn without(&self, atom: &Atom, facts: &dyn Facts, fuel: &mut u32) -> Option<bool> {
        let (coef, rest) = self.linear_in(atom)?;
        let rising = match coef.bounds(facts) {
            (lo, _) if lo >= 0 => true,
            (_, hi) if hi <= 0 => false,
            _ => return None,
        };
        // self with the atom replaced
        let with = |d: &Dim| &coef * d + &rest;
        let one = Dim::from(1);
        Some(match atom {
            Atom::Var(v) => match facts.var_extent(*v) {
                Some(_) if rising => rest.nonnegative(facts, fuel),
                Some(e) => with(&(e - &one)).nonnegative(facts, fuel),
                None => with(&end(facts.var_range(*v), rising)?).nonnegative(facts, fuel),
            },
            Atom::Sym(s) => with(&end(facts.sym_range(*s), rising)?).nonnegative(facts, fuel),
            Atom::Max(x, y) if rising => with(x).nonnegative(facts, fuel) || with(y).nonnegative(facts, fuel),
            Atom::Min(x, y) if !rising => {
                with(x).nonnegative(facts, fuel) || with(y).nonnegative(facts, fuel)
            }
            Atom::Max(x, y) | Atom::Min(x, y) => {
                with(x).nonnegative(facts, fuel) && with(y).nonnegative(facts, fuel)
            }
            // n floor(x / n) lies in x - n + 1 ..= x; as the whole is an integer, n * self > -n is enough
            Atom::FloorDiv(x, n) => {
                let q = if rising { &**x - &**n + &one } else { (**x).clone() };
                (coef * q + &**n * &rest + &**n - &one).nonnegative(facts, fuel)
            }
            Atom::Mod(x, n) => {
                if rising {
                    rest.nonnegative(facts, fuel)
                } else {
                    // x mod n <= n - 1, and <= x where x is not negative
                    with(&(&**n - &one)).nonnegative(facts, fuel)
                        || x.bounds(facts).0 >= 0 && with(x).nonnegative(facts, fuel)
                }
            }
        })
    }
}

/// The end of a range at which a rising (falling) expression is smallest; `None` where it has none.
fn end((lo, hi): (i64, i64), rising: bool) -> Option<Dim> {
    let x = if rising { lo } else { hi };
    (x.abs() < SATURATED).then(|| Dim::from(x))
}

/// Saturated bounds stand for infinity.
fn infinite(x: i64) -> i128 {
    match x {
        SATURATED.. => INFINITE,
        _ if x <= -SATURATED => -INFINITE,
        _ => x as i128,
    }
}

/// The product, which stays infinite once it is.
fn times(a: i128, b: i128) -> i128 {
    let p = a.checked_mul(b).unwrap_or(if (a < 0) == (b < 0) { INFINITE } else { -INFINITE });
    p.clamp(-INFINITE, INFINITE)
}

impl Atom {
    pub(super) fn bounds(&self, facts: &dyn Facts) -> (i64, i64) {
        match self {
            Atom::Sym(s) => facts.sym_range(*s),
            Atom::Var(v) => facts.var_range(*v),
            Atom::FloorDiv(x, y) => {
                let ((xl, xh), (yl, yh)) = (x.bounds(facts), y.bounds(facts));
                let (yl, yh) = (yl.max(1), yh.max(1));
                let lo = if xl >= 0 { xl.div_euclid(yh) } else { xl.div_euclid(yl) };
                let hi = if xh >= 0 { xh.div_euclid(yl) } else { xh.div_euclid(yh) };
                // what has no bound has none divided by anything
                (if xl <= -SATURATED { -SATURATED } else { lo }, if xh >= SATURATED { SATURATED } else { hi })
            }
            Atom::Mod(x, y) => {
                let ((xl, xh), (_, yh)) = (x.bounds(facts), y.bounds(facts));
                let top = if yh >= SATURATED { SATURATED } else { (yh - 1).max(0) };
                (0, if xl >= 0 { top.min(xh) } else { top })
            }
            Atom::Min(x, y) => {
                let (a, b) = (x.bounds(facts), y.bounds(facts));
                (a.0.min(b.0), a.1.min(b.1))
            }
            Atom::Max(x, y) => {
                let (a, b) = (x.bounds(facts), y.bounds(facts));
                (a.0.max(b.0), a.1.max(b.1))
            }
        }
    }
}
