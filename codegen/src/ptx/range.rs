//! Bounds of index values: what fits 32 bits is computed in 32 bits, which are the width of the machine.

use super::func::Emitter;
use super::isa::{Binary, Class, Compare, Op, Operand, Reg, Type};
use crate::error::Emit;
use ir::DType;
use ir::loops::{Inst, Val};
use ir::prim::{BinaryOp, CmpOp, ConvertMode};

/// Least and greatest value.
pub(super) type Range = (i64, i64);

const NARROW: Range = (i32::MIN as i64, i32::MAX as i64);

pub(super) fn fits(r: Range) -> bool {
    NARROW.0 <= r.0 && r.1 <= NARROW.1
}

impl Emitter<'_> {
    /// What an i64 value is known to lie in.
    pub fn range(&self, v: Val) -> Option<Range> {
        self.known_int(v).map(|x| (x, x)).or_else(|| self.ranges.get(&v).copied())
    }

    /// Bounds of what an instruction defines.
    pub fn range_of(&self, inst: &Inst) -> Option<Range> {
        let range = |v: &Val| self.range(*v);
        match inst {
            Inst::Iota { along_cols: true } => Some((0, i64::from(super::LANES) - 1)),
            Inst::Splat(v) | Inst::Extract(v, ..) => range(v),
            Inst::Binary(op, a, b) => binary(*op, range(a)?, range(b)?),
            Inst::Select(_, a, b) => {
                let (a, b) = (range(a)?, range(b)?);
                Some((a.0.min(b.0), a.1.max(b.1)))
            }
            Inst::Convert(ConvertMode::Plain, v) => match self.ty(*v).ok()?.dtype {
                DType::I32 => Some(NARROW),
                DType::U32 => Some((0, u32::MAX.into())),
                _ => None,
            },
            _ => None,
        }
    }

    /// A value as an operand of 32 bits, if it is held in 32 bits.
    pub fn narrow(&self, v: Val) -> Option<Operand> {
        if let Some(x) = self.known_int(v) {
            return i32::try_from(x).ok().map(|x| Operand::Int(x.into()));
        }
        self.held(v).filter(|r| r.class == Class::B32).map(Operand::Reg)
    }

    fn narrow_reg(&mut self, v: Val) -> Option<Reg> {
        Some(match self.narrow(v)? {
            Operand::Reg(r) => r,
            x => self.mov(Class::B32, x),
        })
    }

    /// The 32-bit register of an i64 value that fits, where its operands are held in 32 bits too.
    pub fn narrow_inst(&mut self, inst: &Inst) -> Emit<Option<Reg>> {
        Ok(match inst {
            Inst::Iota { .. } => Some(self.lane),
            Inst::Splat(v) => self.narrow_reg(*v),
            Inst::Extract(v, 0, lane) => {
                let vector = self.narrow_reg(*v);
                vector.map(|r| self.broadcast_lane(r, Operand::Int((*lane).into())))
            }
            Inst::Convert(_, v) if matches!(self.ty(*v)?.dtype, DType::I32 | DType::U32) => {
                Some(self.reg(*v)?)
            }
            Inst::Select(mask, a, b) => match (self.narrow(*a), self.narrow(*b)) {
                (Some(a), Some(b)) => {
                    let (p, d) = (self.reg(*mask)?, self.fresh(Class::B32));
                    self.push(Op::Selp { ty: Type::B32, d, a, b, p });
                    Some(d)
                }
                _ => None,
            },
            Inst::Binary(op, a, b) => self.narrow_binary(*op, *a, *b),
            _ => None,
        })
    }

    fn narrow_binary(&mut self, op: BinaryOp, a: Val, b: Val) -> Option<Reg> {
        let known = self.known_int(b);
        let by_bits = known.is_some_and(|c| (0..32).contains(&c));
        let (op, ty) = match op {
            BinaryOp::Add => (Binary::Add, Type::S32),
            BinaryOp::Sub => (Binary::Sub, Type::S32),
            BinaryOp::Mul => (Binary::Mul, Type::S32),
            BinaryOp::Min => (Binary::Min, Type::S32),
            BinaryOp::Max => (Binary::Max, Type::S32),
            BinaryOp::And => (Binary::And, Type::B32),
            BinaryOp::Shr if by_bits => (Binary::Shr, Type::S32),
            BinaryOp::Div if known.is_some_and(|c| c > 0) => (Binary::Div, Type::S32),
            BinaryOp::Rem if known.is_some_and(|c| c > 0) => (Binary::Rem, Type::S32),
            _ => return None,
        };
        // both, before either costs anything
        let (_, b) = (self.narrow(a)?, self.narrow(b)?);
        let a = self.narrow_reg(a)?;
        Some(self.binary(op, ty, Class::B32, a, b))
    }

    /// A comparison of i64 values in 32 bits, where both are held so.
    pub fn narrow_compare(&mut self, op: CmpOp, a: Val, b: Val) -> Option<Reg> {
        let (_, b) = (self.narrow(a)?, self.narrow(b)?);
        let a = self.narrow_reg(a)?;
        let op = match op {
            CmpOp::Eq => Compare::Eq,
            CmpOp::Ne => Compare::Ne,
            CmpOp::Lt => Compare::Lt,
            CmpOp::Le => Compare::Le,
            CmpOp::Gt => Compare::Gt,
            CmpOp::Ge => Compare::Ge,
        };
        Some(self.setp(op, Type::S32, a, b))
    }
}

/// Bounds of a result; `None` where they pass those of i64 or are not worth knowing.
fn binary(op: BinaryOp, a: Range, b: Range) -> Option<Range> {
    let all = |f: fn(i64, i64) -> Option<i64>| {
        let corners = [f(a.0, b.0)?, f(a.0, b.1)?, f(a.1, b.0)?, f(a.1, b.1)?];
        Some((*corners.iter().min()?, *corners.iter().max()?))
    };
    match op {
        BinaryOp::Add => all(i64::checked_add),
        BinaryOp::Sub => all(i64::checked_sub),
        BinaryOp::Mul => all(i64::checked_mul),
        BinaryOp::Min => Some((a.0.min(b.0), a.1.min(b.1))),
        BinaryOp::Max => Some((a.0.max(b.0), a.1.max(b.1))),
        BinaryOp::And if b.0 >= 0 => Some((0, b.1)),
        BinaryOp::Shr if b.0 == b.1 && (0..64).contains(&b.0) => Some((a.0 >> b.0, a.1 >> b.0)),
        BinaryOp::Div if b.0 > 0 => all(i64::checked_div),
        BinaryOp::Rem if b.0 > 0 => {
            let most = b.1 - 1;
            Some((a.0.clamp(-most, 0), a.1.clamp(0, most)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_and_are_reached() {
        let ranges = [(-7, 5), (0, 0), (3, 9), (-4, -2), (-1, 6)];
        use BinaryOp as B;
        for op in [B::Add, B::Sub, B::Mul, B::Min, B::Max, B::And, B::Shr, B::Div, B::Rem] {
            for a in ranges {
                for b in ranges {
                    let Some((lo, hi)) = binary(op, a, b) else { continue };
                    let result = |x: i64, y: i64| match op {
                        B::Add => x + y,
                        B::Sub => x - y,
                        B::Mul => x * y,
                        B::Min => x.min(y),
                        B::Max => x.max(y),
                        B::And => x & y,
                        B::Shr => x >> y,
                        B::Div => x / y,
                        _ => x % y,
                    };
                    let results: Vec<i64> =
                        (a.0..=a.1).flat_map(|x| (b.0..=b.1).map(move |y| result(x, y))).collect();
                    assert!(results.iter().all(|r| (lo..=hi).contains(r)), "{op:?} {a:?} {b:?}");
                    if matches!(op, B::Add | B::Sub | B::Mul | B::Min | B::Max) {
                        assert!(results.contains(&lo) && results.contains(&hi), "{op:?} {a:?} {b:?}");
                    }
                }
            }
        }
        assert_eq!(binary(B::Add, (i64::MAX, i64::MAX), (1, 1)), None);
    }
}
