//! Sizes as straight-line postfix code over the program's symbols.

use serde::{Deserialize, Serialize};

/// One instruction of the stack machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SizeOp {
    Const(i64),
    /// Value of a symbol.
    Sym(u32),
    Add,
    Mul,
    /// Rounds towards minus infinity; the divisor is positive.
    FloorDiv,
    /// Result in `0..divisor`; the divisor is positive.
    Mod,
    Min,
    Max,
}

/// A size expression; constants take no stack machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SizeExpr {
    Const(i64),
    /// At most [`SizeExpr::MAX_DEPTH`] operands wait on the stack at any time.
    Code(Box<[SizeOp]>),
}

/// Why a size has no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeError {
    Overflow,
    /// Division by zero or by a negative number.
    Division,
    /// A symbol without a value, or malformed code.
    Malformed,
}

impl SizeExpr {
    pub const MAX_DEPTH: usize = 64;

    /// The value under `syms` (indexed by symbol; [`UNBOUND`] marks a symbol without value). Does not
    /// allocate.
    pub fn eval(&self, syms: &[i64]) -> Result<i64, SizeError> {
        let code = match self {
            SizeExpr::Const(c) => return Ok(*c),
            SizeExpr::Code(code) => code,
        };
        let mut stack = [0i64; SizeExpr::MAX_DEPTH];
        let mut depth = 0usize;
        for op in code.iter() {
            let value = match *op {
                SizeOp::Const(c) => c,
                SizeOp::Sym(s) => match syms.get(s as usize) {
                    Some(&v) if v != UNBOUND => v,
                    _ => return Err(SizeError::Malformed),
                },
                _ => {
                    if depth < 2 {
                        return Err(SizeError::Malformed);
                    }
                    depth -= 2;
                    apply(*op, stack[depth], stack[depth + 1])?
                }
            };
            *stack.get_mut(depth).ok_or(SizeError::Malformed)? = value;
            depth += 1;
        }
        if depth == 1 { Ok(stack[0]) } else { Err(SizeError::Malformed) }
    }
}

/// Value of a symbol that has none yet.
pub const UNBOUND: i64 = i64::MIN;

fn apply(op: SizeOp, a: i64, b: i64) -> Result<i64, SizeError> {
    match op {
        SizeOp::Add => a.checked_add(b).ok_or(SizeError::Overflow),
        SizeOp::Mul => a.checked_mul(b).ok_or(SizeError::Overflow),
        SizeOp::FloorDiv if b > 0 => Ok(a.div_euclid(b)),
        SizeOp::Mod if b > 0 => Ok(a.rem_euclid(b)),
        SizeOp::FloorDiv | SizeOp::Mod => Err(SizeError::Division),
        SizeOp::Min => Ok(a.min(b)),
        SizeOp::Max => Ok(a.max(b)),
        SizeOp::Const(_) | SizeOp::Sym(_) => Err(SizeError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluates_and_reports() {
        let e = |ops: &[SizeOp]| SizeExpr::Code(ops.into());
        use SizeOp::*;
        assert_eq!(e(&[Sym(0), Const(3), Mul, Const(2), Add]).eval(&[5]), Ok(17));
        assert_eq!(e(&[Const(-7), Const(2), FloorDiv]).eval(&[]), Ok(-4));
        assert_eq!(e(&[Const(-7), Const(4), Mod]).eval(&[]), Ok(1));
        assert_eq!(e(&[Const(1), Const(0), Mod]).eval(&[]), Err(SizeError::Division));
        assert_eq!(e(&[Const(i64::MAX), Const(2), Mul]).eval(&[]), Err(SizeError::Overflow));
        assert_eq!(e(&[Sym(1)]).eval(&[5]), Err(SizeError::Malformed));
        assert_eq!(e(&[Sym(0)]).eval(&[UNBOUND]), Err(SizeError::Malformed));
        assert_eq!(e(&[Add]).eval(&[]), Err(SizeError::Malformed));
    }
}
