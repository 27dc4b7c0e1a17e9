//! Symbolic integers: sizes of tensors, and index expressions over them.
//!
//! A [`Dim`] is a canonical polynomial with integer coefficients over [`Atom`]s. Two expressions that
//! are equal as polynomials are equal as values of this type. No size is ever merely "unknown":
//! what a model does not fix is a symbol with a range.
//!
//! Coefficients saturate at ±2^62, far beyond [`Dim::LIMIT`], which the verifier sets to sizes; what is
//! proved from ranges takes ±2^62 for infinity and never relies on a saturated number.
//!
//! Cloning is cheap: the terms are shared.

mod divide;
mod prove;
mod symbols;
#[cfg(test)]
mod tests;

pub use symbols::{Facts, NoFacts, SymInfo, SymKind, Symbols};

use smallvec::SmallVec;
use std::fmt;
use std::ops::{Add, Mul, Neg, Sub};
use std::sync::{Arc, LazyLock};

/// A size symbol; row of [`Symbols`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Sym(pub u32);

/// An index variable of one kernel (loop index or data-dependent integer).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Var(pub u32);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Atom {
    Sym(Sym),
    Var(Var),
    /// Rounds towards minus infinity; the divisor is positive.
    FloorDiv(Box<Dim>, Box<Dim>),
    /// Result in `0..divisor`; the divisor is positive.
    Mod(Box<Dim>, Box<Dim>),
    Min(Box<Dim>, Box<Dim>),
    Max(Box<Dim>, Box<Dim>),
}

/// A product of atoms, sorted; empty in the constant term.
pub type Atoms = SmallVec<[Atom; 1]>;
/// A product of atoms and its coefficient.
pub type Term = (Atoms, i64);

/// `sum of coef * product of atoms`, terms sorted by atoms, no zero coefficient; constants have no atom.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Dim {
    terms: Arc<[Term]>,
}

/// Coefficients lie in `-SATURATED..=SATURATED`; bounds of this size mean "unbounded".
const SATURATED: i64 = 1 << 62;

fn sat(x: i128) -> i64 {
    x.clamp(-(SATURATED as i128), SATURATED as i128) as i64
}

/// The constants that occur everywhere, made once.
static SMALL: LazyLock<Vec<Dim>> = LazyLock::new(|| (-8..=256).map(Dim::new_const).collect());

impl From<i64> for Dim {
    fn from(c: i64) -> Dim {
        match usize::try_from(c.saturating_add(8)).ok().and_then(|i| SMALL.get(i)) {
            Some(d) => d.clone(),
            None => Dim::new_const(c),
        }
    }
}
impl From<usize> for Dim {
    fn from(c: usize) -> Dim {
        Dim::from(i64::try_from(c).unwrap_or(i64::MAX))
    }
}
impl From<i32> for Dim {
    fn from(c: i32) -> Dim {
        Dim::from(i64::from(c))
    }
}
impl From<Sym> for Dim {
    fn from(s: Sym) -> Dim {
        Dim::from(Atom::Sym(s))
    }
}
impl From<Var> for Dim {
    fn from(v: Var) -> Dim {
        Dim::from(Atom::Var(v))
    }
}
impl From<Atom> for Dim {
    fn from(a: Atom) -> Dim {
        Dim { terms: Arc::new([(SmallVec::from_buf([a]), 1)]) }
    }
}

impl Dim {
    /// Largest size that any dim may have.
    pub const LIMIT: i64 = 1 << 48;

    /// Atoms that a size of a graph may have, nested ones included. Real models need a dozen; proofs about an
    /// expression take time in proportion to its size, and it can double with every op.
    pub const MAX_ATOMS: usize = 256;

    /// At most [`Dim::MAX_ATOMS`] atoms. Takes no longer for larger expressions.
    pub fn is_small(&self) -> bool {
        fn spend(d: &Dim, left: &mut usize) -> bool {
            d.terms.iter().flat_map(|t| &t.0).all(|a| {
                if *left == 0 {
                    return false;
                }
                *left -= 1;
                a.parts().is_none_or(|(x, y)| spend(x, left) && spend(y, left))
            })
        }
        spend(self, &mut Dim::MAX_ATOMS.clone())
    }

    fn new_const(c: i64) -> Dim {
        match sat(c as i128) {
            0 => Dim::default(),
            c => Dim { terms: Arc::new([(SmallVec::new(), c)]) },
        }
    }

    /// The canonical sum of these terms, whose atoms are sorted.
    fn from_terms(terms: impl IntoIterator<Item = (Atoms, i128)>) -> Dim {
        let mut terms: Vec<(Atoms, i128)> = terms.into_iter().collect();
        terms.sort_by(|a, b| a.0.cmp(&b.0));
        let mut sum: Vec<(Atoms, i128)> = Vec::with_capacity(terms.len());
        for (atoms, c) in terms {
            match sum.last_mut() {
                Some(last) if last.0 == atoms => last.1 = last.1.saturating_add(c),
                _ => sum.push((atoms, c)),
            }
        }
        let terms: Vec<Term> = sum.into_iter().map(|(a, c)| (a, sat(c))).filter(|t| t.1 != 0).collect();
        Dim::canonical(terms)
    }

    /// Terms that are sorted, distinct and not 0 as an expression.
    fn canonical(terms: Vec<Term>) -> Dim {
        if let [(atoms, c)] = terms.as_slice()
            && atoms.is_empty()
        {
            return Dim::from(*c);
        }
        Dim { terms: terms.into() }.recombined()
    }

    /// Terms as (product of atoms, coefficient).
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    pub fn as_const(&self) -> Option<i64> {
        match &*self.terms {
            [] => Some(0),
            [(atoms, c)] if atoms.is_empty() => Some(*c),
            _ => None,
        }
    }
    pub fn is_const(&self, c: i64) -> bool {
        self.as_const() == Some(c)
    }
    /// The symbol, where the expression is one symbol alone.
    pub fn as_sym(&self) -> Option<Sym> {
        match self.as_atom() {
            Some(Atom::Sym(s)) => Some(*s),
            _ => None,
        }
    }
    /// The atom, where the expression is one atom alone.
    pub fn as_atom(&self) -> Option<&Atom> {
        match &*self.terms {
            [(atoms, 1)] => match atoms.as_slice() {
                [a] => Some(a),
                _ => None,
            },
            _ => None,
        }
    }
    /// The constant term.
    pub fn const_term(&self) -> i64 {
        self.terms.first().filter(|t| t.0.is_empty()).map_or(0, |t| t.1)
    }

    pub fn min_with(&self, other: &Dim, facts: &dyn Facts) -> Dim {
        if self.provably_le(other, facts) {
            return self.clone();
        }
        if other.provably_le(self, facts) {
            return other.clone();
        }
        let (a, b) = if self <= other { (self, other) } else { (other, self) };
        Dim::from(Atom::Min(Box::new(a.clone()), Box::new(b.clone())))
    }

    pub fn max_with(&self, other: &Dim, facts: &dyn Facts) -> Dim {
        if self.provably_le(other, facts) {
            return other.clone();
        }
        if other.provably_le(self, facts) {
            return self.clone();
        }
        let (a, b) = if self <= other { (self, other) } else { (other, self) };
        Dim::from(Atom::Max(Box::new(a.clone()), Box::new(b.clone())))
    }

    /// Value under an assignment; `None` where an atom has none, a divisor is not positive, or a value
    /// does not fit 64 bits.
    pub fn eval(&self, atom: &dyn Fn(&Atom) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i128;
        for (atoms, c) in &*self.terms {
            let mut p = *c as i128;
            for a in atoms {
                let v = match a {
                    Atom::Sym(_) | Atom::Var(_) => atom(a)?,
                    Atom::FloorDiv(x, y) | Atom::Mod(x, y) => {
                        let (x, y) = (x.eval(atom)?, y.eval(atom)?);
                        if y <= 0 {
                            return None;
                        }
                        if matches!(a, Atom::Mod(..)) { x.rem_euclid(y) } else { x.div_euclid(y) }
                    }
                    Atom::Min(x, y) => x.eval(atom)?.min(y.eval(atom)?),
                    Atom::Max(x, y) => x.eval(atom)?.max(y.eval(atom)?),
                };
                p = p.checked_mul(v as i128)?;
            }
            sum = sum.checked_add(p)?;
        }
        i64::try_from(sum).ok()
    }

    /// Value under an assignment of symbols (no index variables).
    pub fn eval_syms(&self, sym: &dyn Fn(Sym) -> Option<i64>) -> Option<i64> {
        self.eval(&|a| match a {
            Atom::Sym(s) => sym(*s),
            _ => None,
        })
    }

    /// Replaces atoms bottom-up (symbols and variables alike) and simplifies with what `facts` know.
    pub fn subst(&self, facts: &dyn Facts, f: &mut dyn FnMut(&Atom) -> Option<Dim>) -> Dim {
        if self.as_const().is_some() {
            return self.clone();
        }
        let mut sum = Dim::from(0);
        for (atoms, c) in &*self.terms {
            let mut p = Dim::from(*c);
            for a in atoms {
                let d = match a {
                    Atom::Sym(_) | Atom::Var(_) => f(a).unwrap_or_else(|| Dim::from(a.clone())),
                    Atom::FloorDiv(x, y) => x.subst(facts, f).floor_div(&y.subst(facts, f), facts),
                    Atom::Mod(x, y) => x.subst(facts, f).modulo(&y.subst(facts, f), facts),
                    Atom::Min(x, y) => x.subst(facts, f).min_with(&y.subst(facts, f), facts),
                    Atom::Max(x, y) => x.subst(facts, f).max_with(&y.subst(facts, f), facts),
                };
                p = p * d;
            }
            sum = sum + p;
        }
        sum
    }

    /// Every atom that occurs, nested ones included.
    pub fn visit_atoms(&self, f: &mut dyn FnMut(&Atom)) {
        for a in self.terms.iter().flat_map(|t| &t.0) {
            f(a);
            if let Some((x, y)) = a.parts() {
                x.visit_atoms(f);
                y.visit_atoms(f);
            }
        }
    }

    /// True where `v` occurs anywhere.
    pub fn uses_var(&self, v: Var) -> bool {
        self.terms.iter().flat_map(|t| &t.0).any(|a| a.uses(&Atom::Var(v)))
    }

    /// `(coefficient, rest)` with `self = coefficient * v + rest`, neither mentioning `v`; `None` where
    /// the expression is not affine in `v`.
    pub fn affine_in(&self, v: Var) -> Option<(Dim, Dim)> {
        self.linear_in(&Atom::Var(v))
    }
    /// As [`Dim::affine_in`] for any atom.
    pub fn linear_in(&self, atom: &Atom) -> Option<(Dim, Dim)> {
        let (mut coef, mut rest) = (Vec::new(), Vec::new());
        for (atoms, c) in &*self.terms {
            let at = atoms.iter().position(|a| a == atom);
            let others =
                |skip: usize| atoms.iter().enumerate().filter(move |(i, _)| *i != skip).map(|(_, a)| a);
            if others(at.unwrap_or(usize::MAX)).any(|a| a.uses(atom)) {
                return None;
            }
            match at {
                Some(i) => coef.push((others(i).cloned().collect(), *c as i128)),
                None => rest.push((atoms.clone(), *c as i128)),
            }
        }
        Some((Dim::from_terms(coef), Dim::from_terms(rest)))
    }

    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::from(1), |p, d| p * d)
    }

    /// The terms of two sums, merged; those of `b` times `sign`.
    fn merge(a: &Dim, b: &Dim, sign: i64) -> Dim {
        if let (Some(x), Some(y)) = (a.as_const(), b.as_const()) {
            return Dim::from(sat(x as i128 + sign as i128 * y as i128));
        }
        if b.terms.is_empty() {
            return a.clone();
        }
        if a.terms.is_empty() && sign == 1 {
            return b.clone();
        }
        let mut out = Vec::with_capacity(a.terms.len() + b.terms.len());
        let (mut x, mut y) = (a.terms.iter().peekable(), b.terms.iter().peekable());
        loop {
            use std::cmp::Ordering::*;
            let order = match (x.peek(), y.peek()) {
                (Some(p), Some(q)) => p.0.cmp(&q.0),
                (Some(_), None) => Less,
                (None, Some(_)) => Greater,
                (None, None) => break,
            };
            let (p, q) =
                (if order != Greater { x.next() } else { None }, if order != Less { y.next() } else { None });
            let Some((atoms, _)) = p.or(q) else { break };
            let c = p.map_or(0, |t| t.1 as i128) + q.map_or(0, |t| t.1 as i128 * sign as i128);
            if c != 0 {
                out.push((atoms.clone(), sat(c)));
            }
        }
        Dim::canonical(out)
    }

    fn times(&self, other: &Dim) -> Dim {
        for (c, d) in [(self, other), (other, self)] {
            match c.as_const() {
                Some(0) => return Dim::from(0),
                Some(1) => return d.clone(),
                Some(c) => {
                    let scaled = |t: &Term| (t.0.clone(), sat(t.1 as i128 * c as i128));
                    return Dim::canonical(d.terms.iter().map(scaled).collect());
                }
                None => {}
            }
        }
        Dim::from_terms(self.terms.iter().flat_map(|(s, c)| {
            other.terms.iter().map(move |(t, d)| {
                let mut atoms: Atoms = s.iter().chain(t).cloned().collect();
                atoms.sort();
                (atoms, *c as i128 * *d as i128)
            })
        }))
    }
}

impl Atom {
    /// The operands of a compound atom.
    pub fn parts(&self) -> Option<(&Dim, &Dim)> {
        match self {
            Atom::Sym(_) | Atom::Var(_) => None,
            Atom::FloorDiv(x, y) | Atom::Mod(x, y) | Atom::Min(x, y) | Atom::Max(x, y) => Some((x, y)),
        }
    }
    /// True where `atom` is this one or occurs in it.
    fn uses(&self, atom: &Atom) -> bool {
        self == atom
            || self.parts().is_some_and(|(x, y)| {
                [x, y].into_iter().flat_map(|d| d.terms.iter()).flat_map(|t| &t.0).any(|a| a.uses(atom))
            })
    }
}

macro_rules! binary {
    ($tr:ident $f:ident, |$a:ident, $b:ident| $e:expr) => {
        impl $tr<&Dim> for &Dim {
            type Output = Dim;
            fn $f(self, rhs: &Dim) -> Dim {
                let ($a, $b) = (self, rhs);
                $e
            }
        }
        impl $tr<Dim> for Dim {
            type Output = Dim;
            fn $f(self, rhs: Dim) -> Dim {
                (&self).$f(&rhs)
            }
        }
        impl $tr<&Dim> for Dim {
            type Output = Dim;
            fn $f(self, rhs: &Dim) -> Dim {
                (&self).$f(rhs)
            }
        }
        impl $tr<Dim> for &Dim {
            type Output = Dim;
            fn $f(self, rhs: Dim) -> Dim {
                self.$f(&rhs)
            }
        }
    };
}
binary!(Add add, |a, b| Dim::merge(a, b, 1));
binary!(Sub sub, |a, b| Dim::merge(a, b, -1));
binary!(Mul mul, |a, b| a.times(b));
impl Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::merge(&Dim::default(), &self, -1)
    }
}
impl Neg for &Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::merge(&Dim::default(), self, -1)
    }
}

impl fmt::Display for Dim {
    /// Symbols print as `s0`, variables as `i0`; [`crate::text`] prints them by name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &|a| match a {
            Atom::Sym(s) => format!("s{}", s.0),
            Atom::Var(v) => format!("i{}", v.0),
            _ => String::new(),
        })
    }
}

impl Dim {
    /// Writes the expression with `name` for symbols and variables: `2*n*h + w floordiv 4 - 1`.
    pub fn write(&self, f: &mut dyn fmt::Write, name: &dyn Fn(&Atom) -> String) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // the constant last, as people write it
        let (consts, others): (Vec<_>, Vec<_>) = self.terms.iter().partition(|t| t.0.is_empty());
        for (i, (atoms, c)) in others.into_iter().chain(consts).enumerate() {
            match (i, *c < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let mag = c.unsigned_abs();
            if mag != 1 || atoms.is_empty() {
                write!(f, "{mag}")?;
                if !atoms.is_empty() {
                    f.write_str("*")?;
                }
            }
            for (k, a) in atoms.iter().enumerate() {
                if k > 0 {
                    f.write_str("*")?;
                }
                let mut call = |op: &str, x: &Dim, y: &Dim| {
                    write!(f, "{op}(")?;
                    x.write(f, name)?;
                    f.write_str(", ")?;
                    y.write(f, name)?;
                    f.write_str(")")
                };
                match a {
                    Atom::Sym(_) | Atom::Var(_) => f.write_str(&name(a))?,
                    Atom::FloorDiv(x, y) => call("floordiv", x, y)?,
                    Atom::Mod(x, y) => call("mod", x, y)?,
                    Atom::Min(x, y) => call("min", x, y)?,
                    Atom::Max(x, y) => call("max", x, y)?,
                }
            }
        }
        Ok(())
    }
}
