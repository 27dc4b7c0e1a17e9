//! Quotients by what many elements share become products with its reciprocal.
//!
//! Vectors multiply ten times as fast as they divide, and a softmax divides each of its elements by the sum of
//! their row, a GELU by the root of 2. The product is rounded twice where the quotient is rounded once: within 1.5
//! units in the last place in place of 0.5. So it is for math modes that allow it, and for divisors whose
//! reciprocal surely is a normal number: constants, sums of exponentials of what is at most 0 and once 0, roots of
//! sums with a positive constant. Quotients that are rounded to whole numbers next stay: a unit in the last place
//! decides there between two of them, and quantisers promise the nearest.

use super::rewrite::{Rule, Shared, Site, rewrite};
use super::simplify::splat;
use crate::error::Result;
use crate::limits::Fuel;
use ir::dtype::Scalar;
use ir::prim::{BinaryOp, Prim, UnaryOp};
use ir::{DType, Graph, Module, Monoid, TensorType, ValueId};

/// Numbers whose reciprocals are normal f32 numbers, and some way off the ends of their range.
const NORMAL: std::ops::Range<f64> = 1e-30..1e30;

pub fn reciprocals(module: &mut Module, fuel: &Fuel) -> Result<()> {
    rewrite(module, &mut Reciprocals::default(), fuel)
}

#[derive(Default)]
struct Reciprocals {
    /// Of each open region, by value of the old graph: whether it is rounded to a whole number.
    rounded: Vec<Vec<bool>>,
}

/// The values of a graph that become whole numbers, by way of bounds, sums and moves at most.
fn rounded(g: &Graph) -> Vec<bool> {
    use BinaryOp::{Add, Max, Min, Rem, Sub};
    use UnaryOp::{Ceil, Floor, RoundEven, Trunc};
    let mut rounded = vec![false; g.value_count()];
    for (_, op) in g.ops().rev() {
        let here = match &op.prim {
            Prim::Unary(Floor | Ceil | Trunc | RoundEven) | Prim::Binary(Rem) => true,
            // nobody promises digits of halves
            Prim::Convert { to, .. } => !to.is_float() || to.bits() < 16,
            Prim::Binary(Add | Sub | Min | Max) => rounded[op.results[0].index()],
            Prim::Reshape { .. } | Prim::Transpose { .. } | Prim::Broadcast { .. } | Prim::Slice { .. } => {
                rounded[op.results[0].index()]
            }
            Prim::Pad { .. } | Prim::Concat { .. } | Prim::Select => rounded[op.results[0].index()],
            _ => false,
        };
        if here {
            op.operands.iter().for_each(|v| rounded[v.index()] = true);
        }
    }
    rounded
}

impl Rule for Reciprocals {
    fn enter(&mut self, old: &Graph) {
        self.rounded.push(rounded(old));
    }
    fn leave(&mut self) {
        self.rounded.pop();
    }
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let (Prim::Binary(BinaryOp::Div), &[x, y]) = (&site.op.prim, site.operands) else { return Ok(None) };
        let ty = site.types[0].clone();
        let whole = self.rounded.last().is_some_and(|r| r[site.op.results[0].index()]);
        if ty.dtype != DType::F32 || whole {
            return Ok(None);
        }
        let product = Prim::Binary(BinaryOp::Mul);
        if let Some(c) = splat(cx, site, y) {
            if !NORMAL.contains(&c.abs()) {
                return Ok(None);
            }
            let factor = site.scalar(cx, DType::F32, Scalar::Float(1.0 / c));
            let factor = site.broadcast(factor, &ty);
            return Ok(Some(site.push(product, vec![x, factor], vec![ty])));
        }
        let one = |site: &mut Site<'_>, cx: &mut Shared<'_>, ty: &TensorType| {
            let one = site.scalar(cx, DType::F32, Scalar::Float(1.0));
            site.broadcast(one, ty)
        };
        let Some(Prim::Broadcast { shape, dims }) = site.def(y).map(|op| op.prim.clone()) else {
            if !is_broadcast(cx, site, y, 0) || !is_normal(cx, site, y, 0) {
                return Ok(None);
            }
            let one = one(site, cx, &ty);
            let inverse = site.push(Prim::Binary(BinaryOp::Div), vec![one, y], vec![ty.clone()])[0];
            return Ok(Some(site.push(product, vec![x, inverse], vec![ty])));
        };
        let shared = site.def(y).map(|op| op.operands[0]).filter(|v| is_normal(cx, site, *v, 0));
        let Some(shared) = shared else { return Ok(None) };
        let shared_ty = site.ty(shared).clone();
        let one = one(site, cx, &shared_ty);
        let inverse = site.push(Prim::Binary(BinaryOp::Div), vec![one, shared], vec![shared_ty])[0];
        let inverse = site.push(Prim::Broadcast { shape, dims }, vec![inverse], vec![ty.clone()])[0];
        Ok(Some(site.push(product, vec![x, inverse], vec![ty])))
    }
}

/// True where `v` is computed from broadcast values alone: whatever it is computed for, there are fewer elements of it.
fn is_broadcast(cx: &Shared<'_>, site: &Site<'_>, v: ValueId, depth: usize) -> bool {
    let Some(op) = site.def(v).filter(|_| depth < 8) else { return false };
    let fewer = |v: &ValueId| splat(cx, site, *v).is_some() || is_broadcast(cx, site, *v, depth + 1);
    match &op.prim {
        Prim::Broadcast { .. } => true,
        Prim::Unary(_) | Prim::Binary(_) => op.operands.iter().all(fewer),
        _ => false,
    }
}

/// True where every element of `v` is normal and positive, unless it is NaN or infinite.
fn is_normal(cx: &Shared<'_>, site: &Site<'_>, v: ValueId, depth: usize) -> bool {
    let Some(op) = site.def(v).filter(|_| depth < 8) else { return false };
    let same = |v: ValueId| is_normal(cx, site, v, depth + 1);
    let least = |v: ValueId| splat(cx, site, v).is_some_and(|c| NORMAL.contains(&c));
    match &op.prim {
        Prim::Reshape { .. } | Prim::Broadcast { .. } => same(op.operands[0]),
        Prim::Unary(UnaryOp::Sqrt) => {
            // of x + c, where the root of a negative sum is NaN in any case; x may cancel c, to no less than the
            // distance of two floats near it
            site.def(op.operands[0]).is_some_and(|sum| {
                matches!(sum.prim, Prim::Binary(BinaryOp::Add)) && sum.operands.iter().any(|v| least(*v))
            })
        }
        Prim::Binary(BinaryOp::Max) => op.operands.iter().any(|v| least(*v)),
        Prim::Reduce { monoid: Monoid::Sum, axes } => {
            // one of the exponents is 0
            let exp = site.def(op.operands[0]).filter(|e| matches!(e.prim, Prim::Unary(UnaryOp::Exp)));
            let below = exp
                .and_then(|e| site.def(e.operands[0]))
                .filter(|d| matches!(d.prim, Prim::Binary(BinaryOp::Sub)));
            below.is_some_and(|d| is_maximum(site, d.operands[1], d.operands[0], axes))
        }
        _ => false,
    }
}

/// True where `v` is the maximum of `of` over `axes`, broadcast or reshaped.
fn is_maximum(site: &Site<'_>, v: ValueId, of: ValueId, axes: &[usize]) -> bool {
    match site.def(v) {
        Some(op) => match &op.prim {
            Prim::Reshape { .. } | Prim::Broadcast { .. } => is_maximum(site, op.operands[0], of, axes),
            Prim::Reduce { monoid: Monoid::Max, axes: own } => op.operands[0] == of && own == axes,
            _ => false,
        },
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::build::{Builder, V};
    use ir::{Dim, Graph};

    /// Shapes of the results of an operation.
    fn of(op: BinaryOp, g: &Graph) -> Vec<Vec<Dim>> {
        let ops = g.ops().filter(|(_, o)| o.prim == Prim::Binary(op));
        ops.map(|(_, op)| g[op.results[0]].ty.shape.clone()).collect()
    }

    /// The quotients of `f(x)` for x of 4 x 32.
    fn after(f: impl Fn(&mut Builder, V) -> V) -> Vec<Vec<Dim>> {
        of(BinaryOp::Div, &graph_after(f))
    }

    fn graph_after(f: impl Fn(&mut Builder, V) -> V) -> Graph {
        let mut b = Builder::new("quotients");
        let x = b.input("x", DType::F32, vec![Dim::from(4), Dim::from(32)]);
        let y = f(&mut b, x);
        let mut m = b.finish(&[("y".into(), y)]).unwrap();
        let fuel = Fuel::new(&crate::Options::default());
        super::super::inline_composites(&mut m, &fuel).unwrap();
        reciprocals(&mut m, &fuel).unwrap();
        super::super::dce(&mut m, &fuel).unwrap();
        ir::verify::graph::verify(&m).unwrap();
        m.graph
    }

    #[test]
    fn one_quotient_for_a_row() {
        let found = after(|b, x| {
            let most = b.reduce_max(x, &[1], true).unwrap();
            let d = b.sub(x, most).unwrap();
            let e = b.exp(d).unwrap();
            let s = b.reduce_sum(e, &[1], true).unwrap();
            b.div(e, s).unwrap()
        });
        assert!(found.iter().all(|s| !s.contains(&Dim::from(32))) && !found.is_empty(), "{found:?}");
    }

    #[test]
    fn one_quotient_for_a_row_that_is_broadcast_early() {
        let whole = [Dim::from(4), Dim::from(32)];
        let found = graph_after(|b, x| {
            let s = b.reduce_sum(x, &[1], true).unwrap();
            let s = b.broadcast_to(s, &whole).unwrap();
            let little = b.scalar(DType::F32, 1e-5).unwrap();
            let s = b.add(s, little).unwrap();
            let s = b.sqrt(s).unwrap();
            b.div(x, s).unwrap()
        });
        // ones by the broadcast root, which is one quotient for all columns once it is a kernel
        assert_eq!((of(BinaryOp::Div, &found).len(), of(BinaryOp::Mul, &found).len()), (1, 1));
    }

    #[test]
    fn constants_are_inverted_once() {
        let by = |c: f64| {
            after(|b, x| {
                let c = b.scalar(DType::F32, c).unwrap();
                b.div(x, c).unwrap()
            })
        };
        assert!(by(3.0).is_empty());
        // its reciprocal is infinite
        assert_eq!(by(1e-40).len(), 1);
    }

    #[test]
    fn quantised_values_are_exact() {
        let found = after(|b, x| {
            let scale = b.scalar(DType::F32, 0.1).unwrap();
            let zero = b.scalar(DType::F32, 3.0).unwrap();
            let q = b.div(x, scale).unwrap();
            let q = b.add(q, zero).unwrap();
            b.round_even(q).unwrap()
        });
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn divisors_that_may_be_tiny_stay() {
        let whole = vec![Dim::from(4), Dim::from(32)];
        let found = after(|b, x| {
            let e = b.exp(x).unwrap();
            let s = b.reduce_sum(e, &[1], true).unwrap();
            b.div(e, s).unwrap()
        });
        assert_eq!(found, [whole]);
    }
}
