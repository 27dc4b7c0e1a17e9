//! Elementwise ops: the chain rule, element by element.

use crate::{Node, Result};
use ir::Prim;
use ir::build::{Builder, V};
use ir::prim::{BinaryOp, UnaryOp};

pub(crate) fn rule(b: &mut Builder, n: &Node, g: V) -> Result<Vec<Option<V>>> {
    Ok(match &n.prim {
        Prim::Unary(op) => vec![unary(b, *op, n.operands[0], n.results[0], g)?],
        Prim::Binary(op) => binary(b, *op, n, g)?,
        Prim::Select => {
            let zero = b.scalar(b.dtype(g), 0.0)?;
            let cond = n.operands[0];
            vec![None, Some(b.select(cond, g, zero)?), Some(b.select(cond, zero, g)?)]
        }
        Prim::Convert { .. } => {
            let from = b.dtype(n.operands[0]);
            vec![if from.is_float() { Some(b.convert(g, from)?) } else { None }]
        }
        _ => vec![None; n.operands.len()],
    })
}

/// `1 + sign * x^2`.
fn one_and_square(b: &mut Builder, x: V, sign: f64) -> Result<V> {
    let sq = b.mul(x, x)?;
    let sq = b.mul_scalar(sq, sign)?;
    Ok(b.add_scalar(sq, 1.0)?)
}

fn unary(b: &mut Builder, op: UnaryOp, x: V, y: V, g: V) -> Result<Option<V>> {
    use UnaryOp as U;
    Ok(Some(match op {
        U::Neg => b.neg(g)?,
        U::Abs => {
            let zero = b.scalar(b.dtype(x), 0.0)?;
            let (positive, negative) = (b.gt(x, zero)?, b.lt(x, zero)?);
            let minus = b.neg(g)?;
            let other = b.select(negative, minus, zero)?;
            b.select(positive, g, other)?
        }
        U::Floor | U::Ceil | U::Trunc | U::RoundEven | U::Not => return Ok(None),
        U::Sqrt => {
            let half = b.mul_scalar(g, 0.5)?;
            b.div(half, y)?
        }
        U::Exp => b.mul(g, y)?,
        U::Expm1 => {
            let e = b.add_scalar(y, 1.0)?;
            b.mul(g, e)?
        }
        U::Log => b.div(g, x)?,
        U::Log1p => {
            let d = b.add_scalar(x, 1.0)?;
            b.div(g, d)?
        }
        U::Sin => {
            let c = b.cos(x)?;
            b.mul(g, c)?
        }
        U::Cos => {
            let s = b.sin(x)?;
            let s = b.neg(s)?;
            b.mul(g, s)?
        }
        U::Tan => {
            let d = one_and_square(b, y, 1.0)?;
            b.mul(g, d)?
        }
        U::Asin | U::Acos => {
            let d = one_and_square(b, x, -1.0)?;
            let d = b.sqrt(d)?;
            let q = b.div(g, d)?;
            if op == U::Asin { q } else { b.neg(q)? }
        }
        U::Atan => {
            let d = one_and_square(b, x, 1.0)?;
            b.div(g, d)?
        }
        U::Sinh => {
            let c = b.cosh(x)?;
            b.mul(g, c)?
        }
        U::Cosh => {
            let s = b.sinh(x)?;
            b.mul(g, s)?
        }
        U::Asinh => {
            let d = one_and_square(b, x, 1.0)?;
            let d = b.sqrt(d)?;
            b.div(g, d)?
        }
        U::Acosh => {
            let d = b.mul(x, x)?;
            let d = b.add_scalar(d, -1.0)?;
            let d = b.sqrt(d)?;
            b.div(g, d)?
        }
        U::Atanh => {
            let d = one_and_square(b, x, -1.0)?;
            b.div(g, d)?
        }
        U::Tanh => {
            let d = one_and_square(b, y, -1.0)?;
            b.mul(g, d)?
        }
        U::Erf => {
            let sq = b.mul(x, x)?;
            let e = b.neg(sq)?;
            let e = b.exp(e)?;
            let e = b.mul_scalar(e, std::f64::consts::FRAC_2_SQRT_PI)?;
            b.mul(g, e)?
        }
    }))
}

fn binary(b: &mut Builder, op: BinaryOp, n: &Node, g: V) -> Result<Vec<Option<V>>> {
    use BinaryOp as B;
    let (x, y, r) = (n.operands[0], n.operands[1], n.results[0]);
    let (dx, dy) = match op {
        B::Add => (Some(g), Some(g)),
        B::Sub => (Some(g), Some(b.neg(g)?)),
        B::Mul => (Some(b.mul(g, y)?), Some(b.mul(g, x)?)),
        B::Div => {
            let dx = b.div(g, y)?;
            let dy = b.mul(dx, r)?;
            (Some(dx), Some(b.neg(dy)?))
        }
        B::Rem => {
            // x - y * trunc(x / y)
            let q = b.div(x, y)?;
            let q = b.trunc(q)?;
            let dy = b.mul(g, q)?;
            (Some(g), Some(b.neg(dy)?))
        }
        B::Pow => {
            let zero = b.scalar(b.dtype(x), 0.0)?;
            let one = b.scalar(b.dtype(x), 1.0)?;
            // y x^(y - 1), which is 0 for y = 0 also where x is 0
            let none = b.eq(y, zero)?;
            let less = b.add_scalar(y, -1.0)?;
            let less = b.select(none, one, less)?;
            let p = b.pow(x, less)?;
            let p = b.mul(p, y)?;
            let dx = b.mul(g, p)?;
            // x^y log x, 0 where the logarithm is not real
            let positive = b.gt(x, zero)?;
            let safe = b.select(positive, x, one)?;
            let l = b.log(safe)?;
            let l = b.mul(r, l)?;
            (Some(dx), Some(b.mul(g, l)?))
        }
        B::Atan2 => {
            let (xx, yy) = (b.mul(x, x)?, b.mul(y, y)?);
            let sum = b.add(xx, yy)?;
            let q = b.div(g, sum)?;
            let dy = b.mul(q, x)?;
            (Some(b.mul(q, y)?), Some(b.neg(dy)?))
        }
        B::Min | B::Max => {
            let zero = b.scalar(b.dtype(x), 0.0)?;
            let tie = b.eq(x, y)?;
            let half = b.mul_scalar(g, 0.5)?;
            let first = if op == B::Max { b.gt(x, y)? } else { b.lt(x, y)? };
            let second = if op == B::Max { b.lt(x, y)? } else { b.gt(x, y)? };
            let mut share = |won: V| -> Result<V> {
                let s = b.select(won, g, zero)?;
                Ok(b.select(tie, half, s)?)
            };
            (Some(share(first)?), Some(share(second)?))
        }
        B::And | B::Or | B::Xor | B::Shl | B::Shr => (None, None),
    };
    Ok(vec![dx, dy])
}
