//! Algebraic identities. A rule's right side is never worse than its left.

use super::rewrite::{Rule, Shared, Site, copy_ops, mapped, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use ir::prim::{BinaryOp, ConvertMode, Prim, UnaryOp};
use ir::{ConstSource, DType, Module, ValueId};

pub fn simplify(module: &mut Module, fuel: &Fuel) -> Result<()> {
    rewrite(module, &mut Simplify, fuel)
}

struct Simplify;

impl Rule for Simplify {
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        if let Prim::If { defines } = &site.op.prim
            && defines.is_empty()
        {
            return self.known_branch(cx, site);
        }
        Ok(identity(cx, site).or_else(|| rebuild(site)).map(|v| vec![v]))
    }
}

impl Simplify {
    /// `if` on a constant is the chosen branch.
    fn known_branch(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let Some(cond) = site.operands.first().and_then(|&v| splat(cx, site, v)) else { return Ok(None) };
        let Some(branch) = site.op.regions.get(usize::from(cond == 0.0)) else { return Ok(None) };
        let mut map = vec![None; branch.value_count()];
        for (&input, &capture) in branch.inputs.iter().zip(&site.operands[1..]) {
            map[input.index()] = Some(capture);
        }
        copy_ops(cx, branch, site.graph, &mut map, self)?;
        branch.outputs.iter().map(|&v| mapped(&map, v)).collect::<Result<Vec<_>>>().map(Some)
    }
}

/// The existing value that the op's only result is equal to.
fn identity(cx: &Shared<'_>, site: &Site<'_>) -> Option<ValueId> {
    let ty = site.types.first()?;
    let &x = site.operands.first()?;
    let same_type = site.ty(x) == ty;
    let second = |i: usize| site.operands.get(i).copied();
    match &site.op.prim {
        Prim::Reshape { .. } | Prim::Broadcast { .. } | Prim::Bitcast { .. } if same_type => Some(x),
        Prim::Convert { to, mode } if same_type && mode.keeps(*to) => Some(x),
        Prim::Transpose { perm } if perm.iter().enumerate().all(|(i, &p)| i == p) => Some(x),
        Prim::Slice { start, step, .. }
            if same_type && step.iter().all(|&s| s == 1) && start.iter().all(|d| d.is_const(0)) =>
        {
            Some(x)
        }
        Prim::Pad { lo, hi, interior, .. }
            if lo.iter().chain(hi).all(|d| d.is_const(0)) && interior.iter().all(|&i| i == 0) =>
        {
            Some(x)
        }
        Prim::Concat { .. } if site.operands.len() == 1 => Some(x),
        Prim::Reduce { axes, .. } if axes.is_empty() => Some(x),
        Prim::Unary(UnaryOp::Neg | UnaryOp::Not) => {
            let inner = site.def(x)?;
            let again = matches!((&inner.prim, &site.op.prim), (Prim::Unary(a), Prim::Unary(b)) if a == b);
            if again { inner.operands.first().copied() } else { None }
        }
        Prim::Select => {
            let (a, b) = (second(1)?, second(2)?);
            if a == b {
                return Some(a);
            }
            splat(cx, site, x).map(|c| if c != 0.0 { a } else { b })
        }
        Prim::Binary(op) => {
            let y = second(1)?;
            let (cx_, cy) = (splat(cx, site, x), splat(cx, site, y));
            let neutral = |c: Option<f64>, n: f64| c.is_some_and(|c| c == n);
            match op {
                // x + 0 keeps every value but the sign of -0
                BinaryOp::Add if neutral(cy, 0.0) => Some(x),
                BinaryOp::Add if neutral(cx_, 0.0) => Some(y),
                BinaryOp::Sub if neutral(cy, 0.0) => Some(x),
                #[cfg(feature = "planted-faults")]
                BinaryOp::Sub if neutral(cx_, 0.0) && cx.fuel.planted(crate::planted::Fault::Simplify) => {
                    Some(y)
                }
                BinaryOp::Mul if neutral(cy, 1.0) => Some(x),
                BinaryOp::Mul if neutral(cx_, 1.0) => Some(y),
                BinaryOp::Div if neutral(cy, 1.0) => Some(x),
                BinaryOp::Pow if neutral(cy, 1.0) => Some(x),
                BinaryOp::And | BinaryOp::Or | BinaryOp::Min | BinaryOp::Max if x == y => Some(x),
                BinaryOp::And if ty.dtype == DType::Bool && neutral(cy, 1.0) => Some(x),
                BinaryOp::And if ty.dtype == DType::Bool && neutral(cx_, 1.0) => Some(y),
                BinaryOp::Or if ty.dtype == DType::Bool && neutral(cy, 0.0) => Some(x),
                BinaryOp::Or if ty.dtype == DType::Bool && neutral(cx_, 0.0) => Some(y),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A cheaper op with the same result.
fn rebuild(site: &mut Site<'_>) -> Option<ValueId> {
    let &x = site.operands.first()?;
    let ty = site.types.first()?.clone();
    let inner = site.def(x)?;
    let &y = inner.operands.first()?;
    let prim = match (&site.op.prim, &inner.prim) {
        (Prim::Reshape { .. }, Prim::Reshape { .. }) => {
            if *site.ty(y) == ty {
                return Some(y);
            }
            site.op.prim.clone()
        }
        (Prim::Transpose { perm: outer }, Prim::Transpose { perm: inner }) => {
            let perm: Vec<usize> = outer.iter().map(|&p| inner[p]).collect();
            if perm.iter().enumerate().all(|(i, &p)| i == p) {
                return Some(y);
            }
            Prim::Transpose { perm }
        }
        (Prim::Broadcast { shape, dims: outer }, Prim::Broadcast { dims: inner, .. }) => {
            Prim::Broadcast { shape: shape.clone(), dims: inner.iter().map(|&d| outer[d]).collect() }
        }
        // through a wider type and back: f16 -> f32 -> f16, i32 -> i64 -> i32
        (Prim::Convert { mode: ConvertMode::Plain, .. }, Prim::Convert { to: mid, .. }) => {
            let from = site.ty(y).dtype;
            if from != ty.dtype || !holds_exactly(*mid, from) {
                return None;
            }
            return Some(y);
        }
        _ => return None,
    };
    site.push(prim, vec![y], vec![ty]).first().copied()
}

/// Every value of `narrow` is a value of `wide`.
fn holds_exactly(wide: DType, narrow: DType) -> bool {
    if wide == narrow {
        return true;
    }
    match (wide, narrow) {
        (DType::F64, n) => matches!(n, DType::F32 | DType::F16 | DType::BF16) || n.is_int() && n.bits() <= 32,
        (DType::F32, n) => matches!(n, DType::F16 | DType::BF16) || n.is_int() && n.bits() <= 16,
        (w, n) => match (w.int_range(), n.int_range()) {
            (Some((wl, wh)), Some((nl, nh))) => wl <= nl && nh <= wh,
            _ => false,
        },
    }
}

/// The value of every element, where `v` is a constant of one value (or a broadcast of one).
pub(super) fn splat(cx: &Shared<'_>, site: &Site<'_>, v: ValueId) -> Option<f64> {
    let op = site.def(v)?;
    match &op.prim {
        Prim::Broadcast { .. } | Prim::Reshape { .. } => splat(cx, site, *op.operands.first()?),
        Prim::Const(id) => {
            let data = cx.consts.get(id.0 as usize)?;
            if let ConstSource::Splat(s) = &data.source {
                return Some(s.as_f64());
            }
            if data.shape.iter().any(|&d| d != 1) {
                return None;
            }
            let t = interp::materialise(data).ok()?;
            scalar(&t)
        }
        _ => None,
    }
}

fn scalar(t: &ir::Tensor) -> Option<f64> {
    Some(match (t.dtype, t.data.as_slice()) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (DType::I32, &[a, b, c, d]) => i32::from_le_bytes([a, b, c, d]).into(),
        (DType::F64, b) => f64::from_le_bytes(b.try_into().ok()?),
        (DType::I64, b) => {
            let i = i64::from_le_bytes(b.try_into().ok()?);
            // beyond 2^53 a float is not the integer
            if i.unsigned_abs() < 1 << 53 { i as f64 } else { return None }
        }
        (DType::I8, &[a]) => (a as i8).into(),
        (DType::U8 | DType::Bool, &[a]) => a.into(),
        _ => return None,
    })
}
