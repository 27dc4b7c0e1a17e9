//! Index arithmetic of views: how an index of a result becomes an index of an operand.

use ir::kernel::Guard;
use ir::{Atom, Dim, Facts, Sym, Symbols, Var};

/// Facts inside one kernel: symbols of the module, and variables `v in 0..extents[v]`.
pub struct IndexFacts<'a> {
    pub symbols: &'a Symbols,
    /// Extent by [`Var`].
    pub extents: &'a [Dim],
}

impl Facts for IndexFacts<'_> {
    fn sym_range(&self, s: Sym) -> (i64, i64) {
        self.symbols.sym_range(s)
    }
    fn sym_divisor(&self, s: Sym) -> i64 {
        self.symbols.sym_divisor(s)
    }
    fn var_range(&self, v: Var) -> (i64, i64) {
        match self.extents.get(v.0 as usize) {
            // a loop over nothing has no index: any range is right, and 0..=0 is a harmless one
            Some(e) => (0, (e.bounds(self.symbols).1 - 1).max(0)),
            None => (-Dim::LIMIT, Dim::LIMIT),
        }
    }
    fn var_extent(&self, v: Var) -> Option<Dim> {
        self.extents.get(v.0 as usize).cloned()
    }
}

/// True where `0 <= expr < bound` is proved.
pub fn inside(guard: &Guard, facts: &dyn Facts) -> bool {
    // an index variable has values only where its extent is not 0; a number is no proof of that
    let mut of_axes = false;
    guard.expr.visit_atoms(&mut |a| of_axes |= matches!(a, Atom::Var(_)));
    (of_axes || guard.bound.bounds(facts).0 > 0)
        && guard.expr.bounds(facts).0 >= 0
        && guard.expr.modulo(&guard.bound, facts) == guard.expr
}

/// True where `0 <= expr < bound` is proved to fail.
pub fn outside(guard: &Guard, facts: &dyn Facts) -> bool {
    let (lo, hi) = guard.expr.bounds(facts);
    hi < 0 || lo >= guard.bound.bounds(facts).1
}

/// The guards that are not proved; `None` where one is proved to fail.
pub fn simplify_guards(guards: &[Guard], facts: &dyn Facts) -> Option<Vec<Guard>> {
    let mut left: Vec<Guard> = Vec::new();
    for g in guards {
        if outside(g, facts) {
            return None;
        }
        if !inside(g, facts) && !left.contains(g) {
            left.push(g.clone());
        }
    }
    Some(left)
}

/// Strides, in elements, of a row-major tensor.
pub fn row_major_strides(shape: &[Dim]) -> Vec<Dim> {
    let mut strides = vec![Dim::from(1); shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = &strides[i + 1] * &shape[i + 1];
    }
    strides
}

/// Row-major number of the element at `index`.
pub fn linearise(index: &[Dim], shape: &[Dim]) -> Dim {
    let strides = row_major_strides(shape);
    index.iter().zip(&strides).fold(Dim::from(0), |sum, (i, s)| sum + i * s)
}

/// The index whose row-major number is `linear`.
pub fn delinearise(linear: &Dim, shape: &[Dim], facts: &dyn Facts) -> Vec<Dim> {
    let strides = row_major_strides(shape);
    let mut index = Vec::with_capacity(shape.len());
    for (j, (size, stride)) in shape.iter().zip(strides).enumerate() {
        // a tensor without elements has no index; a divisor must be positive all the same
        let stride = if stride.is_const(0) { Dim::from(1) } else { stride };
        let q = linear.floor_div(&stride, facts);
        index.push(match j {
            _ if size.is_const(1) => Dim::from(0),
            0 => q,
            _ if size.is_const(0) => Dim::from(0),
            _ => q.modulo(size, facts),
        });
    }
    index
}

/// Index of the operand of `reshape(from) -> to` for an index of the result.
///
/// Both shapes are cut into segments of equal element count first, so that a split or merged dim
/// costs no division where the neighbours are only carried along.
pub fn reshape_index(index: &[Dim], to: &[Dim], from: &[Dim], facts: &dyn Facts) -> Vec<Dim> {
    let ones =
        |shape: &[Dim]| -> Vec<usize> { (0..shape.len()).filter(|&i| !shape[i].is_const(1)).collect() };
    let (to_dims, from_dims) = (ones(to), ones(from));
    let mut result = vec![Dim::from(0); from.len()];
    let (mut i, mut j) = (0, 0);
    while i < to_dims.len() || j < from_dims.len() {
        let (ni, nj) = segment(&to_dims[i..], &from_dims[j..], to, from);
        let (t, f) = (&to_dims[i..i + ni], &from_dims[j..j + nj]);
        let pick = |dims: &[usize], of: &[Dim]| -> Vec<Dim> { dims.iter().map(|&d| of[d].clone()).collect() };
        let linear = linearise(&pick(t, index), &pick(t, to));
        if let [only] = f {
            result[*only] = linear;
        } else {
            let parts = delinearise(&linear, &pick(f, from), facts);
            for (&d, part) in f.iter().zip(parts) {
                result[d] = part;
            }
        }
        i += ni;
        j += nj;
    }
    result
}

/// Lengths of the shortest prefixes with provably equal products; everything where there are none.
fn segment(to_dims: &[usize], from_dims: &[usize], to: &[Dim], from: &[Dim]) -> (usize, usize) {
    let whole = (to_dims.len(), from_dims.len());
    if to_dims.is_empty() || from_dims.is_empty() {
        return whole;
    }
    let (mut ni, mut nj) = (1, 1);
    let (mut a, mut b) = (to[to_dims[0]].clone(), from[from_dims[0]].clone());
    while a != b {
        let divides = |x: &Dim, y: &Dim| {
            let (q, rest) = y.split_multiple(x);
            rest.is_const(0) && !q.is_const(0)
        };
        let grow_a = match (a.as_const(), b.as_const()) {
            (Some(x), Some(y)) => x < y,
            _ if divides(&a, &b) => true,
            _ if divides(&b, &a) => false,
            _ => return whole,
        };
        if grow_a {
            match to_dims.get(ni) {
                Some(&d) => a = &a * &to[d],
                None => return whole,
            }
            ni += 1;
        } else {
            match from_dims.get(nj) {
                Some(&d) => b = &b * &from[d],
                None => return whole,
            }
            nj += 1;
        }
    }
    // the last dims may leave nothing but dims of unknown relation behind: these join this segment
    if (ni == to_dims.len()) != (nj == from_dims.len()) {
        return whole;
    }
    (ni, nj)
}

/// Index variables that occur in `dim`.
pub fn vars_of(dim: &Dim, into: &mut Vec<Var>) {
    dim.visit_atoms(&mut |a| {
        if let Atom::Var(v) = a
            && !into.contains(v)
        {
            into.push(*v);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::SymKind;

    fn check(to: &[i64], from: &[i64], expect: &[&str]) {
        let to: Vec<Dim> = to.iter().map(|&d| Dim::from(d)).collect();
        let from: Vec<Dim> = from.iter().map(|&d| Dim::from(d)).collect();
        let symbols = Symbols::default();
        let facts = IndexFacts { symbols: &symbols, extents: &to };
        let index: Vec<Dim> = (0..to.len() as u32).map(|i| Dim::from(Var(i))).collect();
        let got: Vec<String> = reshape_index(&index, &to, &from, &facts).iter().map(Dim::to_string).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn reshape_divides_only_where_it_must() {
        check(&[2, 7, 12, 64], &[2, 7, 768], &["i0", "i1", "64*i2 + i3"]);
        check(&[2, 7, 768], &[2, 7, 12, 64], &["i0", "i1", "floordiv(i2, 64)", "mod(i2, 64)"]);
        check(&[1, 2, 1, 3], &[2, 3, 1], &["i1", "i3", "0"]);
        check(&[6], &[2, 3], &["floordiv(i0, 3)", "mod(i0, 3)"]);
        check(&[], &[1, 1], &["0", "0"]);
        check(&[0, 3], &[3, 0], &["3*i0 + i1", "0"]);
    }

    #[test]
    fn reshape_of_symbolic_dims() {
        let mut symbols = Symbols::default();
        let b = Dim::from(symbols.fresh("b", SymKind::Entry));
        let s = Dim::from(symbols.fresh("s", SymKind::Entry));
        let to = [&b * &s, Dim::from(8)];
        let from = [b.clone(), s.clone(), Dim::from(4), Dim::from(2)];
        let facts = IndexFacts { symbols: &symbols, extents: &to };
        let index = [Dim::from(Var(0)), Dim::from(Var(1))];
        let got: Vec<String> = reshape_index(&index, &to, &from, &facts).iter().map(Dim::to_string).collect();
        assert_eq!(got, ["floordiv(i0, s1)", "mod(i0, s1)", "floordiv(i1, 2)", "mod(i1, 2)"]);
    }
}
