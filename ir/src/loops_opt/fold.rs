//! Folding of one instruction: constants, identities, and constants moved outward in index sums.
//!
//! Everything here is exact: results equal those of the unfolded instruction bit for bit (which NaN a NaN
//! is aside). Math functions are not folded, their last digit is the target's matter.

use super::eval;
pub use super::eval::normalise;
use crate::DType;
use crate::dtype::Scalar;
use crate::loops::{Inst, Ty, Val};
use crate::loops_build::{Def, LoopBuilder};
use crate::prim::{BinaryOp, CmpOp, UnaryOp};

/// What became of an instruction.
pub enum Folded {
    /// It stays.
    Not,
    Same(Val),
    Const(Scalar),
}

/// Tries to do without a new instruction. May build others.
pub fn fold(b: &mut LoopBuilder, inst: &Inst, ty: Ty) -> Folded {
    if let Some(s) = constant(b, inst, ty) {
        return Folded::Const(s);
    }
    if let Some(v) = identity(b, inst, ty) {
        return Folded::Same(v);
    }
    if ty.dtype == DType::I64
        && let Some(v) = index_sum(b, inst, ty)
    {
        return Folded::Same(v);
    }
    if !ty.is_scalar()
        && let Some(v) = below_splat(b, inst, ty)
    {
        return Folded::Same(v);
    }
    Folded::Not
}

fn exact_unary(op: UnaryOp) -> bool {
    use UnaryOp::*;
    matches!(op, Neg | Abs | Floor | Ceil | Trunc | RoundEven | Sqrt | Not)
}

fn constant(b: &LoopBuilder, inst: &Inst, ty: Ty) -> Option<Scalar> {
    let c = |v: &Val| b.as_const(*v);
    Some(match inst {
        Inst::Splat(v) | Inst::Extract(v, ..) => c(v)?,
        Inst::Unary(op, v) if exact_unary(*op) => eval::unary(*op, ty.dtype, c(v)?),
        Inst::Binary(op, x, y) if !matches!(op, BinaryOp::Pow | BinaryOp::Atan2) => {
            eval::binary(*op, ty.dtype, c(x)?, c(y)?)
        }
        Inst::Fma(x, y, z) => eval::fma(ty.dtype, c(x)?, c(y)?, c(z)?),
        Inst::Cmp(op, x, y) => Scalar::Int(eval::cmp(*op, c(x)?, c(y)?).into()),
        Inst::Convert(mode, v) => eval::convert(ty.dtype, *mode, b.dtype(*v), c(v)?),
        Inst::Bitcast(v) => eval::bitcast(ty.dtype, b.dtype(*v), c(v)?),
        _ => return None,
    })
}

fn identity(b: &mut LoopBuilder, inst: &Inst, ty: Ty) -> Option<Val> {
    let int = |b: &LoopBuilder, v: &Val| match b.as_const(*v) {
        Some(Scalar::Int(i)) => Some(i),
        _ => None,
    };
    let float = |b: &LoopBuilder, v: &Val| match b.as_const(*v) {
        Some(Scalar::Float(x)) => Some(x),
        _ => None,
    };
    match inst {
        Inst::Splat(v) | Inst::Bitcast(v) if b.ty(*v) == ty => Some(*v),
        // a splat of a splat is a splat of the innermost value
        Inst::Splat(v) => match b.def(*v) {
            Def::Splat(w) => {
                let (w, t) = (w, b.ty(w));
                let fits = (t.rows == 1 || t.rows == ty.rows) && (t.cols == 1 || t.cols == ty.cols);
                fits.then(|| b.splat(w, ty.rows, ty.cols))
            }
            _ => None,
        },
        Inst::Convert(crate::prim::ConvertMode::Plain, v) if b.ty(*v) == ty => Some(*v),
        Inst::Extract(v, ..) if b.ty(*v).is_scalar() => Some(*v),
        Inst::Extract(v, r, c) => match b.def(*v) {
            Def::Splat(s) => {
                let t = b.ty(s);
                Some(b.extract(s, if t.rows == 1 { 0 } else { *r }, if t.cols == 1 { 0 } else { *c }))
            }
            _ => None,
        },
        Inst::ReduceCols(_, v) if b.ty(*v).cols == 1 => Some(*v),
        Inst::ReduceRows(_, v) if b.ty(*v).rows == 1 => Some(*v),
        Inst::Select(m, x, y) => match int(b, m) {
            Some(1) => Some(*x),
            Some(_) => Some(*y),
            None if x == y => Some(*x),
            None if ty.dtype == DType::Bool && int(b, x) == Some(1) && int(b, y) == Some(0) => Some(*m),
            None => None,
        },
        Inst::Cmp(op, x, y) if x == y && !b.dtype(*x).is_float() => {
            Some(b.bool(ty, matches!(op, CmpOp::Eq | CmpOp::Le | CmpOp::Ge)))
        }
        Inst::Unary(UnaryOp::Not | UnaryOp::Abs, _) | Inst::Unary(..) => None,
        Inst::Binary(op, x, y) => {
            use BinaryOp::*;
            let (x, y) = (*x, *y);
            let commutes = matches!(op, Add | Mul | And | Or | Xor | Min | Max);
            // constants to the right
            if commutes && b.as_const(x).is_some() && b.as_const(y).is_none() {
                return Some(b.binary(*op, y, x));
            }
            if ty.dtype.is_float() {
                return match (op, float(b, &y)?) {
                    (Mul | Div, 1.0) => Some(x),
                    // x - 0 is x even for x = -0
                    (Sub, c) if c.to_bits() == 0 => Some(x),
                    (Add, c) if c.to_bits() == (-0.0f64).to_bits() => Some(x),
                    _ => None,
                };
            }
            match (op, int(b, &y)) {
                (Min | Max | And | Or, _) if x == y => Some(x),
                (Sub | Xor, _) if x == y => Some(b.zero(ty)),
                (Add | Sub | Or | Xor | Shl | Shr, Some(0)) => Some(x),
                (Mul | And, Some(0)) => Some(y),
                (Mul | Div, Some(1)) => Some(x),
                (Rem, Some(1)) => Some(b.zero(ty)),
                (And, Some(1)) if ty.dtype == DType::Bool => Some(x),
                (Or, Some(1)) if ty.dtype == DType::Bool => Some(y),
                (Sub, Some(c)) => {
                    let minus = b.int(ty, eval::wrap(ty.dtype, -c));
                    Some(b.add(x, minus))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Constants of index sums move outward: `(x + 3) + y` is `(x + y) + 3`, `(x + 3) * 4` is `x * 4 + 12`.
fn index_sum(b: &mut LoopBuilder, inst: &Inst, ty: Ty) -> Option<Val> {
    let &Inst::Binary(op, x, y) = inst else { return None };
    let (dx, dy) = (b.def(x), b.def(y));
    let (v, c) = match (op, dx, dy) {
        (BinaryOp::Add, Def::AddConst(v, c), Def::Const(Scalar::Int(d))) => (v, c + d),
        (BinaryOp::Add, Def::AddConst(v, c), Def::AddConst(w, d)) => (b.add(v, w), c + d),
        (BinaryOp::Add, Def::AddConst(v, c), _) => (b.add(v, y), c),
        (BinaryOp::Add, _, Def::AddConst(v, c)) => (b.add(x, v), c),
        (BinaryOp::Mul, Def::AddConst(v, c), Def::Const(Scalar::Int(d))) => (b.mul(v, y), c.checked_mul(d)?),
        (BinaryOp::Sub, Def::AddConst(v, c), Def::AddConst(w, d)) => (b.sub(v, w), c - d),
        (BinaryOp::Sub, Def::AddConst(v, c), _) => (b.sub(v, y), c),
        (BinaryOp::Sub, _, Def::AddConst(v, c)) => (b.sub(x, v), -c),
        _ => return None,
    };
    let c = b.int(ty, eval::wrap(ty.dtype, c));
    Some(b.add(v, c))
}

/// An element-wise function of broadcast scalars is the broadcast of the function of the scalars.
fn below_splat(b: &mut LoopBuilder, inst: &Inst, ty: Ty) -> Option<Val> {
    let scalar = |b: &mut LoopBuilder, v: Val| match b.def(v) {
        Def::Splat(s) if b.ty(s).is_scalar() => Some(s),
        Def::Const(c) => Some(b.constant(Ty::scalar(b.dtype(v)), c)),
        _ => None,
    };
    let s = match inst {
        Inst::Unary(op, v) => {
            let s = scalar(b, *v)?;
            b.unary(*op, s)
        }
        Inst::Binary(op, x, y) => {
            let (x, y) = (scalar(b, *x)?, scalar(b, *y)?);
            b.binary(*op, x, y)
        }
        Inst::Fma(x, y, z) => {
            let (x, y, z) = (scalar(b, *x)?, scalar(b, *y)?, scalar(b, *z)?);
            b.fma(x, y, z)
        }
        Inst::Cmp(op, x, y) => {
            let (x, y) = (scalar(b, *x)?, scalar(b, *y)?);
            b.cmp(*op, x, y)
        }
        Inst::Select(m, x, y) => {
            let (m, x, y) = (scalar(b, *m)?, scalar(b, *x)?, scalar(b, *y)?);
            b.select(m, x, y)
        }
        Inst::Convert(mode, v) => {
            let s = scalar(b, *v)?;
            b.convert(ty.dtype, *mode, s)
        }
        Inst::Bitcast(v) => {
            let s = scalar(b, *v)?;
            b.bitcast(ty.dtype, s)
        }
        _ => return None,
    };
    Some(b.splat(s, ty.rows, ty.cols))
}
