//! Symbolic integers: sizes of tensors, and index expressions over them.
//!
//! A [`Dim`] is a canonical polynomial with integer coefficients over [`Atom`]s. Two expressions that
//! are equal as polynomials are equal as values of this type. No size is ever merely "unknown":
//! what a model does not fix is a symbol with a range.
//!
//! Arithmetic saturates at ±2^62; the verifier refuses sizes beyond [`Dim::LIMIT`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::{Add, Mul, Neg, Sub};

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

/// `sum of coef * product of atoms`, terms sorted by atoms, no zero coefficient; constants have no atom.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Dim {
    terms: Vec<(Vec<Atom>, i64)>,
}

/// How a symbol is born.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SymKind {
    /// From the shape of a graph input.
    Entry,
    /// Defined by an op when it is executed.
    Value,
    /// Size of a loop-carried value inside the loop's body.
    Carried,
}

/// Inclusive range, divisibility and name of a symbol.
#[derive(Clone, PartialEq, Debug)]
pub struct SymInfo {
    pub name: String,
    pub kind: SymKind,
    pub lo: i64,
    /// [`Dim::LIMIT`] where nothing is known.
    pub hi: i64,
    pub divisor: i64,
    /// Value to plan for where nothing better is known (buffer planning, cost models).
    pub hint: i64,
}

/// The symbols of a module. Names are unique.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    pub infos: Vec<SymInfo>,
    by_name: HashMap<String, u32>,
    /// The last suffix given to names of this stem.
    suffix: HashMap<String, u32>,
}

impl PartialEq for Symbols {
    fn eq(&self, other: &Symbols) -> bool {
        self.infos == other.infos
    }
}

impl Symbols {
    /// Adds a symbol; a name that is taken gets a suffix (`n`, `n_1`, `n_2`).
    pub fn add(&mut self, mut info: SymInfo) -> Sym {
        if self.by_name.contains_key(&info.name) {
            let next = self.suffix.entry(info.name.clone()).or_insert(0);
            info.name = loop {
                *next += 1;
                let name = format!("{}_{next}", info.name);
                if !self.by_name.contains_key(&name) {
                    break name;
                }
            };
        }
        let id = self.infos.len() as u32;
        self.by_name.insert(info.name.clone(), id);
        self.infos.push(info);
        Sym(id)
    }
    /// Forgets all symbols but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.infos.truncate(len);
        self.by_name.retain(|_, i| (*i as usize) < len);
        self.suffix.clear();
    }
    /// A symbol with range `0..=LIMIT`.
    pub fn fresh(&mut self, name: impl Into<String>, kind: SymKind) -> Sym {
        self.add(SymInfo { name: name.into(), kind, lo: 0, hi: Dim::LIMIT, divisor: 1, hint: 8 })
    }
    pub fn get(&self, s: Sym) -> &SymInfo {
        &self.infos[s.0 as usize]
    }
    pub fn by_name(&self, name: &str) -> Option<Sym> {
        self.by_name.get(name).map(|&i| Sym(i))
    }
    /// The expression with the symbols' names, for messages and the text form.
    pub fn show(&self, d: &Dim) -> String {
        let mut s = String::new();
        // writing to a String cannot fail
        let _ = d.write(&mut s, &|a| match a {
            Atom::Sym(x) => match self.infos.get(x.0 as usize) {
                Some(info) => crate::text::lex::name(&info.name).into_owned(),
                None => format!("s{}", x.0),
            },
            Atom::Var(v) => format!("i{}", v.0),
            _ => String::new(),
        });
        s
    }
}

/// What is known of atoms when expressions are simplified and compared.
pub trait Facts {
    /// Inclusive range of a symbol.
    fn sym_range(&self, s: Sym) -> (i64, i64);
    /// Inclusive range of an index variable.
    fn var_range(&self, _v: Var) -> (i64, i64) {
        (-Dim::LIMIT, Dim::LIMIT)
    }
    /// A positive number that divides every value of the symbol.
    fn sym_divisor(&self, _s: Sym) -> i64 {
        1
    }
    /// Range of an index variable as expressions, where known: `lo <= v <= hi` (inclusive).
    fn var_extent(&self, _v: Var) -> Option<Dim> {
        None
    }
}

impl Facts for Symbols {
    fn sym_range(&self, s: Sym) -> (i64, i64) {
        self.infos.get(s.0 as usize).map_or((-Dim::LIMIT, Dim::LIMIT), |i| (i.lo, i.hi))
    }
    fn sym_divisor(&self, s: Sym) -> i64 {
        self.infos.get(s.0 as usize).map_or(1, |i| i.divisor.max(1))
    }
}

/// Knows nothing.
pub struct NoFacts;
impl Facts for NoFacts {
    fn sym_range(&self, _: Sym) -> (i64, i64) {
        (-Dim::LIMIT, Dim::LIMIT)
    }
}

impl From<i64> for Dim {
    fn from(c: i64) -> Dim {
        Dim::from_terms([(Vec::new(), c)])
    }
}
impl From<usize> for Dim {
    fn from(c: usize) -> Dim {
        Dim::from(c as i64)
    }
}
impl From<i32> for Dim {
    fn from(c: i32) -> Dim {
        Dim::from(c as i64)
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
        Dim { terms: vec![(vec![a], 1)] }
    }
}

fn sat(x: i128) -> i64 {
    x.clamp(-(1 << 62), 1 << 62) as i64
}

impl Dim {
    /// Largest size that any dim may have.
    pub const LIMIT: i64 = 1 << 48;

    fn from_terms(terms: impl IntoIterator<Item = (Vec<Atom>, i64)>) -> Dim {
        let mut map: BTreeMap<Vec<Atom>, i128> = BTreeMap::new();
        for (atoms, c) in terms {
            *map.entry(atoms).or_default() += c as i128;
        }
        Dim { terms: map.into_iter().map(|(a, c)| (a, sat(c))).filter(|t| t.1 != 0).collect() }
    }

    /// Terms as (product of atoms, coefficient).
    pub fn terms(&self) -> &[(Vec<Atom>, i64)] {
        &self.terms
    }

    pub fn as_const(&self) -> Option<i64> {
        match self.terms.as_slice() {
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
        match self.terms.as_slice() {
            [(atoms, 1)] => match atoms.as_slice() {
                [Atom::Sym(s)] => Some(*s),
                _ => None,
            },
            _ => None,
        }
    }

    /// `floor(self / by)` for a positive `by`, simplified with `facts`:
    /// `(64 i + d) / 64 = i` where `d in 0..64`.
    pub fn floor_div(&self, by: &Dim, facts: &dyn Facts) -> Dim {
        if by.is_const(1) {
            return self.clone();
        }
        if self == by {
            return Dim::from(1);
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
        if quotient.as_const() != Some(0) {
            return quotient + rest.floor_div(by, facts);
        }
        // (x / a) / b = x / (a b)
        if let [(atoms, 1)] = self.terms.as_slice()
            && let [Atom::FloorDiv(x, a)] = atoms.as_slice()
        {
            return x.floor_div(&(&**a * by), facts);
        }
        // divide numerator and divisor by their common constant factor, where the rest cannot matter
        if let Some(b) = by.as_const() {
            let g = self.terms.iter().filter(|t| !t.0.is_empty()).fold(b, |g, t| gcd(g, t.1));
            if g > 1 {
                // the constant term takes its Euclidean quotient: floor((g x + c) / (g y)) = floor((x + floor(c / g)) / y)
                let (base, _) = self.split_multiple(&Dim::from(g));
                return base.floor_div(&Dim::from(b / g), facts);
            }
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
        if rest.within(by, facts) {
            return rest;
        }
        Dim::from(Atom::Mod(Box::new(rest), Box::new(by.clone())))
    }

    /// `ceil(self / by)` for a positive `by`.
    pub fn ceil_div(&self, by: &Dim, facts: &dyn Facts) -> Dim {
        (self.clone() + by.clone() - Dim::from(1)).floor_div(by, facts)
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

    /// `self = q * by + rest` with every term that is a multiple of `by` in `q`. A constant `by`
    /// takes the Euclidean quotient of the constant term.
    pub fn split_multiple(&self, by: &Dim) -> (Dim, Dim) {
        let [(by_atoms, by_c)] = by.terms.as_slice() else {
            // a sum: only an exact multiple by a constant is recognised
            if let (Some(a), Some(b)) = (self.terms.first(), by.terms.first())
                && a.0 == b.0
                && a.1 % b.1 == 0
                && *self == by.clone() * Dim::from(a.1 / b.1)
            {
                return (Dim::from(a.1 / b.1), Dim::from(0));
            }
            return (Dim::from(0), self.clone());
        };
        let (mut q, mut r) = (Vec::new(), Vec::new());
        for (atoms, c) in &self.terms {
            match remove_all(atoms, by_atoms) {
                Some(left) if *by_c != 0 && c % by_c == 0 => q.push((left, c / by_c)),
                Some(left) if *by_c > 0 && by_atoms.is_empty() && atoms.is_empty() => {
                    q.push((left.clone(), c.div_euclid(*by_c)));
                    r.push((left, c.rem_euclid(*by_c)));
                }
                _ => r.push((atoms.clone(), *c)),
            }
        }
        (Dim::from_terms(q), Dim::from_terms(r))
    }

    /// Provably in `0..by`.
    fn within(&self, by: &Dim, facts: &dyn Facts) -> bool {
        let (lo, hi) = self.bounds(facts);
        if lo < 0 {
            return false;
        }
        let (by_lo, _) = by.bounds(facts);
        if hi < by_lo {
            return true;
        }
        (by.clone() - Dim::from(1) - self.upper(facts)).bounds(facts).0 >= 0
    }

    /// Replaces index variables of positive coefficient by their symbolic upper bound (extent - 1).
    fn upper(&self, facts: &dyn Facts) -> Dim {
        self.map_atoms(&mut |a| match a {
            Atom::Var(v) => match facts.var_extent(*v) {
                Some(e) => Some(e - Dim::from(1)),
                None => None,
            },
            _ => None,
        })
    }

    /// Inclusive numeric bounds.
    pub fn bounds(&self, facts: &dyn Facts) -> (i64, i64) {
        let (mut lo, mut hi) = (0i128, 0i128);
        for (atoms, c) in &self.terms {
            let (mut l, mut h) = (1i128, 1i128);
            for a in atoms {
                let (al, ah) = a.bounds(facts);
                let p = [l * al as i128, l * ah as i128, h * al as i128, h * ah as i128];
                l = p.iter().copied().min().unwrap_or(0).max(-(1 << 100));
                h = p.iter().copied().max().unwrap_or(0).min(1 << 100);
                l = l.clamp(-(1 << 62), 1 << 62);
                h = h.clamp(-(1 << 62), 1 << 62);
            }
            let (x, y) = (l * *c as i128, h * *c as i128);
            lo += x.min(y);
            hi += x.max(y);
        }
        (sat(lo), sat(hi))
    }

    pub fn provably_eq(&self, other: &Dim, facts: &dyn Facts) -> bool {
        self == other || (self.clone() - other.clone()).bounds(facts) == (0, 0)
    }
    pub fn provably_le(&self, other: &Dim, facts: &dyn Facts) -> bool {
        self == other || (other.clone() - self.clone()).bounds(facts).0 >= 0
    }
    pub fn provably_lt(&self, other: &Dim, facts: &dyn Facts) -> bool {
        (other.clone() - self.clone()).bounds(facts).0 > 0
    }

    /// Provably a multiple of `n`.
    pub fn divisible_by(&self, n: i64, facts: &dyn Facts) -> bool {
        n == 1
            || n > 0
                && self.terms.iter().all(|(atoms, c)| {
                    let d = atoms.iter().fold(*c as i128, |d, a| match a {
                        Atom::Sym(s) => (d * facts.sym_divisor(*s) as i128) % (1 << 62),
                        _ => d,
                    });
                    d % n as i128 == 0
                })
    }

    /// Value under an assignment; `None` where an atom has none, or a divisor is not positive.
    pub fn eval(&self, atom: &dyn Fn(&Atom) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i128;
        for (atoms, c) in &self.terms {
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
        let mut sum = Dim::from(0);
        for (atoms, c) in &self.terms {
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

    fn map_atoms(&self, f: &mut dyn FnMut(&Atom) -> Option<Dim>) -> Dim {
        let mut sum = Dim::from(0);
        for (atoms, c) in &self.terms {
            let mut p = Dim::from(*c);
            for a in atoms {
                let d = if *c > 0 { f(a) } else { None };
                p = p * d.unwrap_or_else(|| Dim::from(a.clone()));
            }
            sum = sum + p;
        }
        sum
    }

    /// Every symbol and variable that occurs, nested ones included.
    pub fn visit_atoms(&self, f: &mut dyn FnMut(&Atom)) {
        for a in self.terms.iter().flat_map(|t| &t.0) {
            f(a);
            if let Atom::FloorDiv(x, y) | Atom::Mod(x, y) | Atom::Min(x, y) | Atom::Max(x, y) = a {
                x.visit_atoms(f);
                y.visit_atoms(f);
            }
        }
    }

    /// True where `v` occurs anywhere.
    pub fn uses_var(&self, v: Var) -> bool {
        let mut found = false;
        self.visit_atoms(&mut |a| found |= *a == Atom::Var(v));
        found
    }

    /// `(coefficient, rest)` with `self = coefficient * v + rest`, neither mentioning `v`; `None` where
    /// the expression is not affine in `v`.
    pub fn affine_in(&self, v: Var) -> Option<(Dim, Dim)> {
        let (mut coef, mut rest) = (Vec::new(), Vec::new());
        for (atoms, c) in &self.terms {
            let n = atoms.iter().filter(|a| **a == Atom::Var(v)).count();
            let others: Vec<Atom> = atoms.iter().filter(|a| **a != Atom::Var(v)).cloned().collect();
            let hidden = Dim { terms: vec![(others.clone(), 1)] }.uses_var(v);
            match (n, hidden) {
                (_, true) | (2.., _) => return None,
                (0, false) => rest.push((others, *c)),
                (_, false) => coef.push((others, *c)),
            }
        }
        Some((Dim::from_terms(coef), Dim::from_terms(rest)))
    }

    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::from(1), |p, d| p * d.clone())
    }
}

impl Atom {
    fn bounds(&self, facts: &dyn Facts) -> (i64, i64) {
        match self {
            Atom::Sym(s) => facts.sym_range(*s),
            Atom::Var(v) => facts.var_range(*v),
            Atom::FloorDiv(x, y) => {
                let ((xl, xh), (yl, yh)) = (x.bounds(facts), y.bounds(facts));
                let (yl, yh) = (yl.max(1), yh.max(1));
                let lo = if xl >= 0 { xl.div_euclid(yh) } else { xl.div_euclid(yl) };
                let hi = if xh >= 0 { xh.div_euclid(yl) } else { xh.div_euclid(yh) };
                (lo, hi)
            }
            Atom::Mod(x, y) => {
                let ((xl, xh), (_, yh)) = (x.bounds(facts), y.bounds(facts));
                let top = (yh - 1).max(0);
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

/// `atoms` without one occurrence of each of `remove`, where all occur.
fn remove_all(atoms: &[Atom], remove: &[Atom]) -> Option<Vec<Atom>> {
    let mut left = atoms.to_vec();
    for r in remove {
        let i = left.iter().position(|a| a == r)?;
        left.remove(i);
    }
    Some(left)
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
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
binary!(Add add, |a, b| Dim::from_terms(a.terms.iter().chain(&b.terms).cloned()));
binary!(Sub sub, |a, b| {
    Dim::from_terms(a.terms.iter().cloned().chain(b.terms.iter().map(|(t, c)| (t.clone(), -c))))
});
binary!(Mul mul, |a, b| {
    if let Some(1) = a.as_const() {
        return b.clone();
    }
    Dim::from_terms(a.terms.iter().flat_map(|(s, c)| {
        b.terms.iter().map(move |(t, d)| {
            let mut atoms = [s.as_slice(), t.as_slice()].concat();
            atoms.sort();
            (atoms, sat(*c as i128 * *d as i128))
        })
    }))
});
impl Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::from(0) - self
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
