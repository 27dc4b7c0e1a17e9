//! Primitives that move and choose elements.

use super::writer::{Attr, Writer};
use super::{Result, Site};
use ir::prim::{Combine, PadMode};
use ir::{DType, Dim, Tensor};

/// What is padded: a value and its type.
pub(crate) struct Padded<'a> {
    pub name: &'a str,
    pub shape: &'a [Dim],
}

impl Writer<'_> {
    pub fn reshape(&mut self, x: &str, shape: &[Dim]) -> Result<String> {
        let to = self.sizes_of(shape)?;
        // an extent of 0 is one, not a copy of the operand's
        Ok(self.node_attrs("Reshape", &[x, &to], &[("allowzero", Attr::Int(1))]))
    }

    pub fn transpose(&mut self, x: &str, perm: &[usize]) -> String {
        let perm = perm.iter().map(|&p| p as i64).collect();
        self.node_attrs("Transpose", &[x], &[("perm", Attr::Ints(perm))])
    }

    pub fn broadcast(&mut self, site: &Site, shape: &[Dim], dims: &[usize]) -> Result<String> {
        let from = &site.types[0].shape;
        let mut aligned = vec![Dim::from(1); shape.len()];
        for (d, &to) in from.iter().zip(dims) {
            aligned[to] = d.clone();
        }
        let mut x = site.x().to_string();
        if dims.len() < shape.len() {
            let axes: Vec<i64> = (0..shape.len()).filter(|i| !dims.contains(i)).map(|i| i as i64).collect();
            let axes = self.ints(&axes);
            x = self.node("Unsqueeze", &[&x, &axes]);
        }
        if aligned == shape {
            return Ok(x);
        }
        let to = self.sizes_of(shape)?;
        Ok(self.node("Expand", &[&x, &to]))
    }

    pub fn slice(&mut self, site: &Site, start: &[Dim], size: &[Dim], step: &[i64]) -> Result<String> {
        let shape = &site.types[0].shape;
        let (mut axes, mut starts, mut ends, mut steps) = (vec![], vec![], vec![], vec![]);
        for (i, ((d, first), (n, &by))) in shape.iter().zip(start).zip(size.iter().zip(step)).enumerate() {
            if first.is_const(0) && by == 1 && n == d {
                continue;
            }
            axes.push(i as i64);
            if n.is_const(0) {
                starts.push(Dim::from(0));
                ends.push(Dim::from(0));
                steps.push(1);
                continue;
            }
            starts.push(first.clone());
            steps.push(by);
            ends.push(if by > 0 {
                // beyond the end is the end
                first + &(n * &Dim::from(by))
            } else {
                // counted from the end, so that "before the first" is a number too
                first + &(&(n - &Dim::from(1)) * &Dim::from(by)) - Dim::from(1) - d
            });
        }
        if axes.is_empty() {
            return Ok(self.node("Identity", &[site.x()]));
        }
        let (starts, ends) = (self.sizes_of(&starts)?, self.sizes_of(&ends)?);
        let (axes, steps) = (self.ints(&axes), self.ints(&steps));
        Ok(self.node("Slice", &[site.x(), &starts, &ends, &axes, &steps]))
    }

    pub fn pad_op(
        &mut self,
        site: &Site,
        lo: &[Dim],
        hi: &[Dim],
        interior: &[i64],
        mode: PadMode,
    ) -> Result<String> {
        let x = Padded { name: site.x(), shape: &site.types[0].shape };
        if mode == PadMode::Constant {
            return self.pad(&x, &site.names[1], lo, hi, interior);
        }
        // these modes look at the whole operand: what is cropped is cropped afterwards
        let name = match mode {
            PadMode::Edge => "edge",
            PadMode::Reflect => "reflect",
            _ => "wrap",
        };
        let zero = Dim::from(0);
        let grow = |d: &Dim, w: &Self| d.max_with(&zero, &w.module.symbols);
        let outer: Vec<Dim> = lo.iter().chain(hi).map(|d| grow(d, self)).collect();
        let pads = self.sizes_of(&outer)?;
        let y = self.node_attrs("Pad", &[x.name, &pads], &[("mode", Attr::Str(name))]);
        if lo.iter().chain(hi).zip(&outer).all(|(a, b)| a == b) {
            return Ok(y);
        }
        let starts: Vec<Dim> = lo.iter().zip(&outer).map(|(l, grown)| grown - l).collect();
        let ends: Vec<Dim> = starts.iter().zip(&site.result().shape).map(|(s, n)| s + n).collect();
        let (starts, ends) = (self.sizes_of(&starts)?, self.sizes_of(&ends)?);
        Ok(self.node("Slice", &[&y, &starts, &ends]))
    }

    /// Padding with `fill`, a scalar; see [`ir::Prim::Pad`].
    pub fn pad(
        &mut self,
        x: &Padded,
        fill: &str,
        lo: &[Dim],
        hi: &[Dim],
        interior: &[i64],
    ) -> Result<String> {
        let mut shape = x.shape.to_vec();
        let (mut lo, mut hi) = (lo.to_vec(), hi.to_vec());
        let mut y = x.name.to_string();
        for (axis, &between) in interior.iter().enumerate() {
            if between == 0 || shape[axis].is_const(0) {
                continue;
            }
            // each element followed by its fill; the last one's goes again
            let mut apart = shape.clone();
            apart.insert(axis + 1, Dim::from(1));
            y = self.reshape(&y, &apart)?;
            let mut pads = vec![0; 2 * apart.len()];
            pads[apart.len() + axis + 1] = between;
            let pads = self.ints(&pads);
            y = self.node("Pad", &[&y, &pads, fill]);
            shape[axis] = &shape[axis] * &Dim::from(1 + between);
            y = self.reshape(&y, &shape)?;
            // nothing follows where there is no element
            let last = Dim::from(between).min_with(&shape[axis], &self.module.symbols);
            hi[axis] = &hi[axis] - &last;
        }
        // windows may have paddings that crop more than there is: the excess comes off the other side's fill
        let symbols = &self.module.symbols;
        for (axis, n) in shape.iter().enumerate() {
            let all = Dim::from(0) - n;
            let (before, after) = (lo[axis].max_with(&all, symbols), hi[axis].max_with(&all, symbols));
            let (more_before, more_after) = (&lo[axis] - &before, &hi[axis] - &after);
            lo[axis] = (before + more_after).max_with(&all, symbols);
            hi[axis] = (after + more_before).max_with(&(all - &lo[axis]), symbols);
        }
        let amounts: Vec<Dim> = lo.iter().chain(&hi).cloned().collect();
        if amounts.iter().all(|d| d.is_const(0)) {
            return Ok(y);
        }
        let pads = self.sizes_of(&amounts)?;
        Ok(self.node("Pad", &[&y, &pads, fill]))
    }

    pub fn concat(&mut self, names: &[String], axis: usize) -> String {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.node_attrs("Concat", &names, &[("axis", Attr::Int(axis as i64))])
    }

    /// The update padded to the base's shape, chosen where a padded mask says so.
    pub fn update_slice(&mut self, site: &Site, start: &[Dim]) -> Result<String> {
        let (base, update) = (&site.types[0].shape, &site.types[1].shape);
        if base.is_empty() {
            return Ok(self.node("Identity", &[&site.names[1]]));
        }
        let after: Vec<Dim> = base.iter().zip(start).zip(update).map(|((b, s), u)| b - s - u).collect();
        let none = vec![0; base.len()];
        let yes = self.small(&Tensor::from_bool(Vec::new(), &[true]));
        let no = self.small(&Tensor::from_bool(Vec::new(), &[false]));
        let shape = self.sizes_of(update)?;
        let inside = self.node("Expand", &[&yes, &shape]);
        let mask = self.pad(&Padded { name: &inside, shape: update }, &no, start, &after, &none)?;
        let dtype = site.dtype();
        let zero = self.small(&Tensor::zeros(dtype, Vec::new()));
        let written =
            self.pad(&Padded { name: &site.names[1], shape: update }, &zero, start, &after, &none)?;
        Ok(self.node("Where", &[&mask, &written, site.x()]))
    }

    pub fn gather(&mut self, names: &[String], axis: usize) -> String {
        self.node_attrs("Gather", &[&names[0], &names[1]], &[("axis", Attr::Int(axis as i64))])
    }

    pub fn scatter(&mut self, site: &Site, combine: Combine) -> String {
        let last = self.ints(&[-1]);
        let mut at = self.node("Unsqueeze", &[&site.names[1], &last]);
        if site.types[1].dtype != DType::I64 {
            at = self.cast(&at, DType::I64);
        }
        let how = match combine {
            Combine::Set => "none",
            Combine::Add => "add",
            Combine::Mul => "mul",
            Combine::Min => "min",
            Combine::Max => "max",
        };
        self.node_attrs("ScatterND", &[site.x(), &at, &site.names[2]], &[("reduction", Attr::Str(how))])
    }

    // ---- selection ---------------------------------------------------------------------------

    /// The first operand and its order by TopK, the others gathered in that order.
    pub fn sort(&mut self, site: &Site, axis: usize, descending: bool) -> Result<Vec<String>> {
        let n = site.types[0].shape[axis].clone();
        let mut results = self.top_k(site.x(), axis, &n, descending)?;
        let order = results.pop().unwrap_or_default();
        for other in &site.names[1..] {
            let axis = [("axis", Attr::Int(axis as i64))];
            results.push(self.node_attrs("GatherElements", &[other, &order], &axis));
        }
        Ok(results)
    }

    pub fn top_k(&mut self, x: &str, axis: usize, k: &Dim, largest: bool) -> Result<Vec<String>> {
        let k = self.size(k)?;
        let attrs = [("axis", Attr::Int(axis as i64)), ("largest", Attr::Int(largest.into()))];
        Ok(self.nodes_of("TopK", &[x, &k], 2, &attrs))
    }

    pub fn compact(&mut self, x: &str) -> String {
        let at = self.node("NonZero", &[x]);
        let first = self.ints(&[0]);
        self.node("Squeeze", &[&at, &first])
    }

    pub fn non_max_suppression(&mut self, names: &[String], center_point_box: bool) -> String {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let attr = [("center_point_box", Attr::Int(center_point_box.into()))];
        self.node_attrs("NonMaxSuppression", &names, &attr)
    }
}
