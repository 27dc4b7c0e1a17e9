//! Factors that all elements of a product's operand share move behind the product.
//!
//! `(c x) y = c (x y)`: attention scales its queries, and often its keys, by the root of their size. Where `x` is
//! computed by a contraction of its own, the factor is free there and stays; a slice of one or an input would be
//! copied for it. The sums are rounded in another order of magnitude, not to fewer digits; factors are near enough
//! to 1 that no sum overflows for it.

use super::rewrite::{Rule, Shared, Site, rewrite};
use super::simplify::splat;
use crate::error::Result;
use crate::limits::Fuel;
use ir::dtype::Scalar;
use ir::prim::{BinaryOp, Prim};
use ir::{DType, Module, ValueId};

/// Factors that move.
const FACTORS: std::ops::Range<f64> = 1e-4..1e4;

pub fn delay_scales(module: &mut Module, fuel: &Fuel) -> Result<()> {
    rewrite(module, &mut Scales, fuel)
}

struct Scales;

impl Rule for Scales {
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let Prim::Contract { acc: DType::F32, .. } = &site.op.prim else { return Ok(None) };
        let ty = site.types[0].clone();
        if ty.dtype != DType::F32 {
            return Ok(None);
        }
        let found: Vec<Option<(ValueId, f64)>> =
            site.operands.iter().map(|v| unscaled(cx, site, *v)).collect();
        if found.iter().all(Option::is_none) {
            return Ok(None);
        }
        let operands = site.operands.iter().zip(&found).map(|(v, f)| f.map_or(*v, |(x, _)| x)).collect();
        let factor: f64 = found.iter().flatten().map(|(_, c)| c).product();
        let product = site.push(site.op.prim.clone(), operands, vec![ty.clone()])[0];
        let factor = site.scalar(cx, DType::F32, Scalar::Float(factor));
        let factor = site.broadcast(factor, &ty);
        Ok(Some(site.push(Prim::Binary(BinaryOp::Mul), vec![product, factor], vec![ty])))
    }
}

/// `x` and c where `v` is `c x` and would be computed for that alone.
fn unscaled(cx: &Shared<'_>, site: &Site<'_>, v: ValueId) -> Option<(ValueId, f64)> {
    let op = site.def(v).filter(|op| matches!(op.prim, Prim::Binary(BinaryOp::Mul)))?;
    let [a, b] = *op.operands.as_slice() else { return None };
    let (x, c) = [(a, b), (b, a)].into_iter().find_map(|(x, c)| Some((x, splat(cx, site, c)?)))?;
    (FACTORS.contains(&c.abs()) && site.ty(x).dtype == DType::F32 && is_read(site, x)).then_some((x, c))
}

/// True for views of slices and of inputs.
fn is_read(site: &Site<'_>, v: ValueId) -> bool {
    match site.def(v) {
        None | Some(ir::Op { prim: Prim::Slice { .. }, .. }) => true,
        Some(op) => {
            matches!(op.prim, Prim::Reshape { .. } | Prim::Transpose { .. }) && is_read(site, op.operands[0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::Dim;
    use ir::build::{Builder, V};

    /// Products by scalars, of the shape of an operand and of the shape of the result, of `f(x) y`.
    fn after(f: impl Fn(&mut Builder, V) -> V) -> (usize, usize) {
        let mut b = Builder::new("scales");
        let shape = |r, c| vec![Dim::from(r), Dim::from(c)];
        let x = b.input("x", DType::F32, shape(4, 64));
        let y = b.input("y", DType::F32, shape(32, 8));
        let x = f(&mut b, x);
        let z = b.matmul(x, y).unwrap();
        let mut m = b.finish(&[("z".into(), z)]).unwrap();
        let fuel = Fuel::new(&crate::Options::default());
        delay_scales(&mut m, &fuel).unwrap();
        super::super::dce(&mut m, &fuel).unwrap();
        ir::verify::graph::verify(&m).unwrap();
        let count = |s: Vec<Dim>| {
            let muls = m.graph.ops().filter(|(_, op)| matches!(op.prim, Prim::Binary(BinaryOp::Mul)));
            muls.filter(|(_, op)| m.graph[op.results[0]].ty.shape == s).count()
        };
        (count(shape(4, 32)), count(shape(4, 8)))
    }

    fn half(b: &mut Builder, x: V, c: f64) -> V {
        let part = b.slice_axis(x, 1, &Dim::from(32), &Dim::from(32)).unwrap();
        let c = b.scalar(DType::F32, c).unwrap();
        b.mul(part, c).unwrap()
    }

    #[test]
    fn of_a_slice() {
        assert_eq!(after(|b, x| half(b, x, 0.125)), (0, 1));
    }

    #[test]
    fn not_far_from_one() {
        assert_eq!(after(|b, x| half(b, x, 1e-20)), (1, 0));
    }

    #[test]
    fn not_where_it_is_free() {
        let computed = after(|b, x| {
            let w = b.input("w", DType::F32, vec![Dim::from(64), Dim::from(32)]);
            let x = b.matmul(x, w).unwrap();
            let c = b.scalar(DType::F32, 0.125).unwrap();
            b.mul(x, c).unwrap()
        });
        assert_eq!(computed, (1, 0));
    }
}
