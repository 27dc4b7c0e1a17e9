//! Sizes: expressions over symbols as operators on i64[1] tensors.

use super::Result;
use super::writer::{Attr, Source, Writer};
use ir::{Atom, Dim, Sym};

impl Writer<'_> {
    /// The size as a tensor i64[1].
    pub fn size(&mut self, d: &Dim) -> Result<String> {
        if let Some(c) = d.as_const() {
            return Ok(self.ints(&[c]));
        }
        if let Some(name) = self.sizes.computed.get(d) {
            return Ok(name.clone());
        }
        let mut sum: Option<String> = None;
        for (atoms, c) in d.terms() {
            let mut product: Option<String> = None;
            for a in atoms {
                let x = self.atom(a)?;
                product = Some(match product {
                    Some(p) => self.node("Mul", &[&p, &x]),
                    None => x,
                });
            }
            let term = match product {
                None => self.ints(&[*c]),
                Some(p) if *c == 1 => p,
                Some(p) => {
                    let c = self.ints(&[*c]);
                    self.node("Mul", &[&p, &c])
                }
            };
            sum = Some(match sum {
                Some(s) => self.node("Add", &[&s, &term]),
                None => term,
            });
        }
        let name = sum.unwrap_or_else(|| self.ints(&[0]));
        self.sizes.computed.insert(d.clone(), name.clone());
        Ok(name)
    }

    fn atom(&mut self, a: &Atom) -> Result<String> {
        match a {
            Atom::Sym(s) => self.symbol(*s),
            Atom::Var(_) => Err(self.refuse("dim_value", "an index variable in the size of a tensor")),
            Atom::Min(x, y) | Atom::Max(x, y) => {
                let (x, y) = (self.size(x)?, self.size(y)?);
                Ok(self.node(if matches!(a, Atom::Min(..)) { "Min" } else { "Max" }, &[&x, &y]))
            }
            Atom::Mod(x, y) => {
                // Mod takes the sign of the divisor: the floored remainder
                let (x, y) = (self.size(x)?, self.size(y)?);
                Ok(self.node("Mod", &[&x, &y]))
            }
            Atom::FloorDiv(x, y) => {
                let plain = x.bounds(&self.module.symbols).0 >= 0;
                let (x, y) = (self.size(x)?, self.size(y)?);
                if plain {
                    return Ok(self.node("Div", &[&x, &y]));
                }
                let r = self.node("Mod", &[&x, &y]);
                let whole = self.node("Sub", &[&x, &r]);
                Ok(self.node("Div", &[&whole, &y]))
            }
        }
    }

    fn symbol(&mut self, s: Sym) -> Result<String> {
        let (value, axis, factor, offset) = match self.sizes.sources.get(&s) {
            Some(Source::Tensor(name)) => return Ok(name.clone()),
            Some(Source::Shape { value, axis, factor, offset }) => (value.clone(), *axis, *factor, *offset),
            None => {
                let name = self.module.symbols.show(&Dim::from(s));
                return Err(self.refuse("dim_value", format!("no value shows the size {name}")));
            }
        };
        let axis = axis as i64;
        let bounds = [("start", Attr::Int(axis)), ("end", Attr::Int(axis + 1))];
        let mut x = self.node_attrs("Shape", &[&value], &bounds);
        if offset != 0 {
            let by = self.ints(&[offset]);
            x = self.node("Sub", &[&x, &by]);
        }
        if factor != 1 {
            let by = self.ints(&[factor]);
            x = self.node("Div", &[&x, &by]);
        }
        self.sizes.computed.insert(Dim::from(s), x.clone());
        self.bind(s, x.clone());
        Ok(x)
    }

    /// The size as a scalar i64[].
    pub fn size_scalar(&mut self, d: &Dim) -> Result<String> {
        let x = self.size(d)?;
        let empty = self.ints(&[]);
        Ok(self.node("Reshape", &[&x, &empty]))
    }

    /// Sizes as a tensor i64[n].
    pub fn sizes_of(&mut self, dims: &[Dim]) -> Result<String> {
        let numbers: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        if let Some(numbers) = numbers {
            return Ok(self.ints(&numbers));
        }
        let parts = dims.iter().map(|d| self.size(d)).collect::<Result<Vec<_>>>()?;
        if let [one] = parts.as_slice() {
            return Ok(one.clone());
        }
        Ok(self.concat(&parts, 0))
    }
}
