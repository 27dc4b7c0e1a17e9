//! Numpy's broadcasting.
//!
//! Where two extents are not known to agree, the result's is an expression of both. The builder remembers of which
//! extents an expression was made: broadcasting it against one of them again changes nothing.

use super::{Builder, V};
use crate::prim::Prim;
use crate::{Dim, IrError, Result, infer};

impl Builder {
    /// Numpy's result shape of operands of these shapes; see [`infer::broadcast_extent`].
    pub fn broadcast_shapes(&mut self, shapes: &[Vec<Dim>]) -> Result<Vec<Dim>> {
        let rank = shapes.iter().map(Vec::len).max().unwrap_or(0);
        let mut out = vec![Dim::from(1); rank];
        for shape in shapes {
            for (o, d) in out[rank - shape.len()..].iter_mut().zip(shape) {
                *o = self.join(o, d).ok_or_else(|| {
                    let show = |s: &Vec<Dim>| infer::show_shape(s, &self.module.symbols);
                    let all: Vec<String> = shapes.iter().map(show).collect();
                    IrError::ty("broadcast", format!("shapes {} do not broadcast", all.join(" and ")))
                })?;
            }
        }
        Ok(out)
    }

    /// The extent of `a` broadcast against `b`; `None` where they provably disagree.
    fn join(&mut self, a: &Dim, b: &Dim) -> Option<Dim> {
        if self.same_dim(a, b) {
            return Some(if a.as_const().is_some() { a.clone() } else { b.clone() });
        }
        let parts = |d: &Dim| self.joined.get(d).cloned().unwrap_or_else(|| vec![d.clone()]);
        let (of_a, of_b) = (parts(a), parts(b));
        let mut all = of_a.clone();
        all.extend(of_b.iter().filter(|d| !of_a.contains(d)).cloned());
        if all.len() == of_a.len() {
            return Some(a.clone());
        }
        if all.len() == of_b.len() {
            return Some(b.clone());
        }
        let known = |have: &[Dim]| have.len() == all.len() && all.iter().all(|d| have.contains(d));
        if let Some((e, _)) = self.joined.iter().find(|(_, have)| known(have)) {
            return Some(e.clone());
        }
        let e = infer::broadcast_extent(a, b, &self.module.symbols)?;
        if e != *a && e != *b {
            self.joined.insert(e.clone(), all);
        }
        Some(e)
    }

    /// Numpy's broadcast: dims align at the end.
    pub fn broadcast_to(&mut self, x: V, shape: &[Dim]) -> Result<V> {
        let rank = self.rank(x);
        let same = |(a, b): (&Dim, &Dim)| self.same_dim(a, b);
        if rank == shape.len() && self.shape(x).iter().zip(shape).all(same) {
            return Ok(x);
        }
        let Some(lead) = shape.len().checked_sub(rank) else {
            return Err(IrError::ty(
                "broadcast",
                format!("{} has more dims than the result, which has {}", self.show_type(x), shape.len()),
            ));
        };
        let dims: Vec<usize> = (lead..shape.len()).collect();
        self.op1(Prim::Broadcast { shape: shape.to_vec(), dims }, &[x])
    }
    /// All values with one shape.
    pub fn broadcast_all<const N: usize>(&mut self, mut values: [V; N]) -> Result<[V; N]> {
        let shapes = values.map(|v| self.shape(v).to_vec());
        let shape = self.broadcast_shapes(&shapes)?;
        for v in &mut values {
            *v = self.broadcast_to(*v, &shape)?;
        }
        Ok(values)
    }
}
