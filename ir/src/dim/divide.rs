//! Division with remainder: `floor_div`, `modulo`, and the identities that bring them back together.
//!
//! Divisors are positive wherever an expression has a value, and every rewrite below keeps the value
//! for all positive divisors.

use super::{Atom, Atoms, Dim, Facts, Term, sat};

impl Dim {
    /// `floor(self / by)` for a positive `by`, simplified with `facts`:
    /// `(64 i + d) / 64 = i` where `d in 0..64`.
    pub fn floor_div(&self, by: &Dim, facts: &dyn Facts) -> Dim {
        if by.is_const(1) {
            return self.clone();
        }
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b > 0
        {
            return Dim::from(a.div_euclid(b));
        }
        let (quotient, rest) = self.split_multiple(by);
        if rest.within(by, facts) {
            return quotient;
        }
        if !quotient.is_const(0) {
            return quotient + rest.floor_div(by, facts);
        }
        if let Some(d) = self.nested_floor_div(by, facts) {
            return d;
        }
        if let Some((x, _, y, _)) = self.reduce_fraction(by, facts) {
            return x.floor_div(&y, facts);
        }
        Dim::from(Atom::FloorDiv(Box::new(self.clone()), Box::new(by.clone())))
    }

    /// `self mod by` in `0..by` for a positive `by`, simplified with `facts`.
    pub fn modulo(&self, by: &Dim, facts: &dyn Facts) -> Dim {
        if by.is_const(1) || self == by {
            return Dim::from(0);
        }
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b > 0
        {
            return Dim::from(a.rem_euclid(b));
        }
        let (_, rest) = self.split_multiple(by);
        let rest = rest.without_multiples(by, facts);
        if rest.within(by, facts) {
            return rest;
        }
        // (g x + c) mod (g y) = g (x mod y) + c mod g
        if let Some((x, g, y, c)) = rest.reduce_fraction(by, facts) {
            return x.modulo(&y, facts) * g + Dim::from(c);
        }
        Dim::from(Atom::Mod(Box::new(rest), Box::new(by.clone())))
    }

    /// `ceil(self / by)` for a positive `by`.
    pub fn ceil_div(&self, by: &Dim, facts: &dyn Facts) -> Dim {
        (self + by - Dim::from(1)).floor_div(by, facts)
    }

    /// `self = q * by + rest` with every term that is a multiple of `by` in `q`. A constant `by`
    /// takes the Euclidean quotient of the constant term. Nothing is assumed of `by`.
    pub fn split_multiple(&self, by: &Dim) -> (Dim, Dim) {
        let [(by_atoms, by_c)] = by.terms() else { return self.split_sum(by) };
        let (mut q, mut r) = (Vec::new(), Vec::new());
        for (atoms, c) in self.terms() {
            match remove_all(atoms, by_atoms) {
                Some(left) if c % by_c == 0 => q.push((left, *c as i128 / *by_c as i128)),
                Some(left) if *by_c > 0 && by_atoms.is_empty() && atoms.is_empty() => {
                    q.push((left.clone(), c.div_euclid(*by_c) as i128));
                    r.push((left, c.rem_euclid(*by_c) as i128));
                }
                _ => r.push((atoms.clone(), *c as i128)),
            }
        }
        (Dim::from_terms(q), Dim::from_terms(r))
    }

    /// [`Dim::split_multiple`] for a sum: `(i W + i + j) = i (W + 1) + j`. A multiple of the divisor is
    /// taken out where that leaves fewer terms.
    fn split_sum(&self, by: &Dim) -> (Dim, Dim) {
        let (mut q, mut rest) = (Dim::from(0), self.clone());
        let Some((lead_atoms, lead_c)) = by.terms().last() else { return (q, rest) };
        'again: loop {
            for (atoms, c) in rest.terms() {
                let Some(left) = remove_all(atoms, lead_atoms).filter(|_| c % lead_c == 0) else { continue };
                let part = Dim::from_terms([(left, *c as i128 / *lead_c as i128)]);
                let next = &rest - &(&part * by);
                if next.terms().len() < rest.terms().len() {
                    q = q + part;
                    rest = next;
                    continue 'again;
                }
            }
            return (q, rest);
        }
    }

    /// Provably in `0..by`.
    fn within(&self, by: &Dim, facts: &dyn Facts) -> bool {
        let (lo, hi) = self.bounds(facts);
        if hi < 0 {
            return false;
        }
        let (by_lo, by_hi) = by.bounds(facts);
        if lo >= by_hi.max(1) {
            return false;
        }
        (lo >= 0 || self.provably_nonnegative(facts))
            && (hi < by_lo || (by - self - Dim::from(1)).provably_nonnegative(facts))
    }

    /// Division of a quotient or remainder by what its own divisor is made of.
    fn nested_floor_div(&self, by: &Dim, facts: &dyn Facts) -> Option<Dim> {
        let c = self.const_term();
        let atom = match c {
            0 => self.as_atom()?.clone(),
            _ => (self - &Dim::from(c)).as_atom()?.clone(),
        };
        match atom {
            // (x / a + c) / b = (x + a c) / (a b)
            Atom::FloorDiv(x, a) => {
                let numerator = *x + &*a * &Dim::from(c);
                Some(numerator.floor_div(&(&*a * by), facts))
            }
            // (x mod (a b)) / b = (x / b) mod a
            Atom::Mod(x, ab) if c == 0 => {
                let (a, rest) = ab.split_multiple(by);
                (rest.is_const(0) && !a.is_const(0)).then(|| x.floor_div(by, facts).modulo(&a, facts))
            }
            _ => None,
        }
    }

    /// The same fraction with the common factor of numerator and divisor removed:
    /// `self = g x + c`, `by = g y`, `0 <= c < g` (so `c` is a constant). `None` where there is none.
    fn reduce_fraction(&self, by: &Dim, facts: &dyn Facts) -> Option<(Dim, Dim, Dim, i64)> {
        // a factor of symbols: in every term of both
        let (first, others) = self.terms().split_first()?;
        let mut common: Atoms = first.0.clone();
        for (atoms, _) in others.iter().chain(by.terms()) {
            let mut left: Vec<&_> = atoms.iter().collect();
            common.retain(|a| match left.iter().position(|l| *l == a) {
                Some(i) => {
                    left.swap_remove(i);
                    true
                }
                None => false,
            });
        }
        // positive where the divisor is, if none of the factors can be negative
        common.retain(|a| Dim::from(a.clone()).bounds(facts).0 >= 0);
        if !common.is_empty() {
            let g = Dim::from_terms([(common.clone(), 1)]);
            let part = |d: &Dim| d.split_multiple(&g).0;
            return Some((part(self), g.clone(), part(by), 0));
        }
        let factor = |g: i64, t: &Term| gcd(g, t.1);
        let g = by.terms().iter().fold(0, factor);
        let g = self.terms().iter().filter(|t| !t.0.is_empty()).fold(g, factor);
        if g <= 1 {
            return None;
        }
        let c = self.const_term().rem_euclid(g);
        let over = |d: &Dim| d.split_multiple(&Dim::from(g)).0;
        Some((over(self), Dim::from(g), over(by), c))
    }

    /// What matters of the expression modulo `by`: no terms that are multiples by the divisors of their
    /// symbols, and `x` for `x mod m` where `m` is a multiple.
    fn without_multiples(&self, by: &Dim, facts: &dyn Facts) -> Dim {
        let mut changed = false;
        let mut sum = Dim::from(0);
        for (atoms, c) in self.terms() {
            let term = Dim::from_terms([(atoms.clone(), *c as i128)]);
            if let Some(n) = by.as_const()
                && !atoms.is_empty()
                && term.divisible_by(n, facts)
            {
                changed = true;
                continue;
            }
            if let [Atom::Mod(x, m)] = atoms.as_slice()
                && m.split_multiple(by).1.is_const(0)
            {
                changed = true;
                sum = sum + &**x * &Dim::from(*c);
                continue;
            }
            sum = sum + term;
        }
        if changed { sum.split_multiple(by).1.without_multiples(by, facts) } else { sum }
    }

    /// Replaces `n * floor(x / n) + x mod n` by `x`, and `min(x, y) + max(x, y)` by `x + y`.
    pub(super) fn recombined(self) -> Dim {
        let is_part = |a: &Atom| matches!(a, Atom::Mod(..) | Atom::Min(..));
        if self.terms().len() < 2 || !self.terms().iter().flat_map(|t| &t.0).any(is_part) {
            return self;
        }
        if let Some(sum) = self.without_extremes() {
            return sum;
        }
        for (atoms, c) in self.terms() {
            for (i, a) in atoms.iter().enumerate() {
                let Atom::Mod(x, n) = a else { continue };
                let [(n_atoms, n_c)] = n.terms() else { continue };
                let mut others = atoms.clone();
                others.remove(i);
                let mut partner: Atoms = others.iter().chain(n_atoms).cloned().collect();
                partner.push(Atom::FloorDiv(x.clone(), n.clone()));
                partner.sort();
                let want = *c as i128 * *n_c as i128;
                let found = self.terms().iter().any(|t| t.0 == partner && t.1 as i128 == want);
                if !found || sat(want) as i128 != want {
                    continue;
                }
                let rest = self.terms().iter().filter(|t| t.0 != *atoms && t.0 != partner);
                let rest = Dim::from_terms(rest.map(|t| (t.0.clone(), t.1 as i128)));
                return rest + Dim::from_terms([(others, *c as i128)]) * &**x;
            }
        }
        self
    }

    /// With one pair of a minimum and the maximum of the same operands replaced by their sum.
    fn without_extremes(&self) -> Option<Dim> {
        for (atoms, c) in self.terms() {
            for (i, a) in atoms.iter().enumerate() {
                let Atom::Min(x, y) = a else { continue };
                let mut others = atoms.clone();
                others.remove(i);
                let mut partner = others.clone();
                partner.push(Atom::Max(x.clone(), y.clone()));
                partner.sort();
                let Some(d) = self.terms().iter().find(|t| t.0 == partner).map(|t| t.1) else { continue };
                if (*c > 0) != (d > 0) {
                    continue;
                }
                let k = if c.unsigned_abs() < d.unsigned_abs() { *c } else { d };
                let left = self.terms().iter().map(|(t, n)| {
                    let taken = if t == atoms || *t == partner { k } else { 0 };
                    (t.clone(), *n as i128 - taken as i128)
                });
                let left = Dim::from_terms(left.collect::<Vec<_>>());
                return Some(left + Dim::from_terms([(others, k as i128)]) * (&**x + &**y));
            }
        }
        None
    }
}

/// `atoms` without one occurrence of each of `remove`, where all occur.
fn remove_all(atoms: &[Atom], remove: &[Atom]) -> Option<Atoms> {
    let mut left: Atoms = Atoms::from(atoms);
    for r in remove {
        let i = left.iter().position(|a| a == r)?;
        left.remove(i);
    }
    Some(left)
}

/// Greatest common divisor of the magnitudes.
pub(super) fn gcd(a: i64, b: i64) -> i64 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i64::try_from(a).unwrap_or(1)
}
