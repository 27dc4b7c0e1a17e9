//! Instructions: arithmetic, comparisons, conversions, lanes.

use super::build::{Type, Value, lanes};
use super::func::Emitter;
use crate::Fault;
use crate::error::Emit;
use inkwell::types::BasicTypeEnum;
use inkwell::values::InstructionOpcode as Op;
use inkwell::{FloatPredicate, IntPredicate};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Inst, Val};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};

impl<'ctx> Emitter<'_, 'ctx> {
    /// The value of an instruction that defines `val`.
    pub fn inst(&mut self, val: Val, inst: &Inst) -> Emit<Value<'ctx>> {
        let ty = self.ty(val)?;
        match inst {
            Inst::Const(x) => Ok(self.build.constant(self.build.ty(ty)?, *x)),
            Inst::Sym(i) => Ok(self.sym_value(*i)?.into()),
            Inst::Iota { along_cols } => {
                let BasicTypeEnum::IntType(element) = self.build.element(ty.dtype)? else {
                    return Err(Fault::invalid("an iota of floats"));
                };
                if *along_cols {
                    Ok(self.build.iota(element, ty.cols))
                } else {
                    Ok(self.build.int_like(self.build.ty(ty)?, 0))
                }
            }
            Inst::Splat(v) => self.build.splat(self.val(*v)?, ty.cols),
            Inst::Unary(op, v) => self.unary(*op, *v),
            Inst::Binary(op, a, b) => self.binary(*op, *a, *b),
            Inst::Fma(a, b, c) => {
                let is_float = ty.dtype.is_float();
                let (a, b, c) = (self.val(*a)?, self.val(*b)?, self.val(*c)?);
                if is_float && self.desc.has_fma {
                    return self.build.math("llvm.fma", &[a, b, c]);
                }
                let (mul, add) = if is_float { (Op::FMul, Op::FAdd) } else { (Op::Mul, Op::Add) };
                self.build.bin(add, self.build.bin(mul, a, b)?, c)
            }
            Inst::Cmp(op, a, b) => {
                let dtype = self.ty(*a)?.dtype;
                self.compare(*op, dtype, self.val(*a)?, self.val(*b)?)
            }
            Inst::Select(m, a, b) => self.build.select(self.val(*m)?, self.val(*a)?, self.val(*b)?),
            Inst::Convert(mode, v) => {
                let from = self.ty(*v)?.dtype;
                self.convert(*mode, from, ty.dtype, self.val(*v)?)
            }
            Inst::Bitcast(v) => self.build.bits_as(self.val(*v)?, self.build.element(ty.dtype)?),
            Inst::Load(addr) => self.load(ty, addr),
            Inst::Gather { mem, index, mask } => self.gather(ty, *mem, *index, *mask),
            Inst::ReduceCols(monoid, v) => self.reduce_lanes(*monoid, *v),
            // one row is its own reduction
            Inst::ReduceRows(_, v) => self.val(*v),
            Inst::Extract(v, 0, lane) => {
                if *lane >= self.ty(*v)?.cols {
                    return Err(Fault::invalid(format!("lane {lane} of a value of {} lanes", ty.cols)));
                }
                self.build.extract(self.val(*v)?, *lane)
            }
            Inst::Extract(_, row, _) => Err(Fault::invalid(format!("row {row} of a value of one row"))),
            Inst::Insert { vec, scalar, lane } => match (self.val(*vec)?, self.val(*scalar)?) {
                (Value::VectorValue(vec), scalar) if *lane < ty.cols => {
                    let lane = self.build.i32(*lane);
                    Ok(self.build.b.build_insert_element(vec, scalar, lane, "")?.into())
                }
                (_, scalar) if *lane == 0 && ty.cols == 1 => Ok(scalar),
                _ => Err(Fault::invalid(format!("lane {lane} of a value of {} lanes", ty.cols))),
            },
            Inst::Shuffle(a, b, pick) => self.shuffle(*a, *b, pick),
            Inst::TileOp { name, .. } => Err(Fault::unsupported(format!("tile instruction `{name}`"))),
        }
    }

    fn shuffle(&self, a: Val, b: Val, pick: &[u32]) -> Emit<Value<'ctx>> {
        let (from, n) = (self.ty(a)?, self.ty(a)?.cols);
        if self.ty(b)? != from || pick.is_empty() || pick.iter().any(|l| *l >= 2 * n) {
            return Err(Fault::invalid("a shuffle of lanes that do not exist"));
        }
        let (a, b) = (self.val(a)?, self.val(b)?);
        match (a, b, pick) {
            // of vectors a scalar is taken, of scalars a vector made, by element
            (_, _, [lane]) => self.build.extract(if *lane < n { a } else { b }, lane % n),
            (Value::VectorValue(a), Value::VectorValue(b), pick) => self.build.shuffle(a, b, pick),
            _ => {
                let mut vec = super::build::vector(a.get_type(), pick.len() as u32).get_poison();
                for (i, lane) in pick.iter().enumerate() {
                    let element = if *lane == 0 { a } else { b };
                    vec = self.build.b.build_insert_element(vec, element, self.build.i32(i as u32), "")?;
                }
                Ok(vec.into())
            }
        }
    }

    fn unary(&self, op: UnaryOp, v: Val) -> Emit<Value<'ctx>> {
        let dtype = self.ty(v)?.dtype;
        let b = &self.build;
        let v = self.val(v)?;
        let int = |x| b.int_like(v.get_type(), x);
        let name = match (op, dtype.is_float()) {
            (UnaryOp::Neg, true) => return b.fneg(v),
            (UnaryOp::Neg, false) => return b.bin(Op::Sub, int(0), v),
            (UnaryOp::Not, false) => return b.bin(Op::Xor, v, int(-1)),
            (UnaryOp::Abs, false) if dtype.is_signed_int() => {
                let wraps = b.cx.bool_type().const_zero();
                return b.value_of("llvm.abs", &[v.get_type()], &[v, wraps.into()]);
            }
            (UnaryOp::Abs | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Trunc | UnaryOp::RoundEven, false) => {
                return Ok(v);
            }
            (UnaryOp::Abs, true) => "llvm.fabs",
            (UnaryOp::Floor, true) => "llvm.floor",
            (UnaryOp::Ceil, true) => "llvm.ceil",
            (UnaryOp::Trunc, true) => "llvm.trunc",
            (UnaryOp::RoundEven, true) => "llvm.roundeven",
            (UnaryOp::Sqrt, true) => "llvm.sqrt",
            (op, _) => return Err(Fault::invalid(format!("{} of {dtype} in machine form", op.name()))),
        };
        b.math(name, &[v])
    }

    fn binary(&self, op: BinaryOp, a: Val, b: Val) -> Emit<Value<'ctx>> {
        let dtype = self.ty(a)?.dtype;
        let (a, b) = (self.val(a)?, self.val(b)?);
        self.arithmetic(op, dtype, a, b)
    }

    fn arithmetic(&self, op: BinaryOp, dtype: DType, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        use BinaryOp as B;
        let build = &self.build;
        let (float, signed) = (dtype.is_float(), dtype.is_signed_int());
        if dtype == DType::Bool {
            // as numbers 0 and 1: maximum is "or", minimum and product are "and"
            return match op {
                B::And | B::Min | B::Mul => build.bin(Op::And, a, b),
                B::Or | B::Max | B::Add => build.bin(Op::Or, a, b),
                B::Xor => build.bin(Op::Xor, a, b),
                _ => Err(Fault::invalid(format!("{} of bool in machine form", op.name()))),
            };
        }
        let plain = match (op, float) {
            (B::Add, true) => Op::FAdd,
            (B::Sub, true) => Op::FSub,
            (B::Mul, true) => Op::FMul,
            (B::Div, true) => Op::FDiv,
            (B::Min | B::Max, true) => return self.float_extremum(op == B::Max, a, b),
            (B::Add, false) => Op::Add,
            (B::Sub, false) => Op::Sub,
            (B::Mul, false) => Op::Mul,
            (B::And, false) => Op::And,
            (B::Or, false) => Op::Or,
            (B::Xor, false) => Op::Xor,
            (B::Min, false) => return build.math(if signed { "llvm.smin" } else { "llvm.umin" }, &[a, b]),
            (B::Max, false) => return build.math(if signed { "llvm.smax" } else { "llvm.umax" }, &[a, b]),
            (B::Div | B::Rem, false) => return self.divide(op == B::Rem, signed, a, b),
            (B::Shl | B::Shr, false) => return self.shift(op == B::Shl, dtype, a, b),
            (op, _) => return Err(Fault::invalid(format!("{} of {dtype} in machine form", op.name()))),
        };
        build.bin(plain, a, b)
    }

    /// Minimum or maximum that propagates NaN. `max(x, c) = c > x ? c : x` answers x where it is NaN,
    /// and is one instruction; the other operand needs care only where it may be NaN.
    fn float_extremum(&self, max: bool, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        let build = &self.build;
        let before = if max { FloatPredicate::OGT } else { FloatPredicate::OLT };
        let (x, other) = if is_number(a) { (b, a) } else { (a, b) };
        let best = build.select(build.fcmp(before, other, x)?, other, x)?;
        if is_number(other) {
            return Ok(best);
        }
        let other_is_nan = build.fcmp(FloatPredicate::UNO, other, other)?;
        build.select(other_is_nan, other, best)
    }

    /// Total division: by zero gives 0, `MIN / -1` wraps.
    fn divide(&self, rem: bool, signed: bool, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        let build = &self.build;
        let ty = b.get_type();
        let op = match (rem, signed) {
            (false, true) => Op::SDiv,
            (false, false) => Op::UDiv,
            (true, true) => Op::SRem,
            (true, false) => Op::URem,
        };
        if const_int(b).is_some_and(|c| c != 0 && c != -1) {
            return build.bin(op, a, b);
        }
        let (zero, one) = (build.int_like(ty, 0), build.int_like(ty, 1));
        let by_zero = build.icmp(IntPredicate::EQ, b, zero)?;
        // x / -1 = -x and x rem -1 = 0, also for MIN, where the instruction would trap
        let mut unsafe_divisor = by_zero;
        let mut negated = None;
        if signed {
            let by_minus = build.icmp(IntPredicate::EQ, b, build.int_like(ty, -1))?;
            unsafe_divisor = build.bin(Op::Or, by_zero, by_minus)?;
            negated = Some((by_minus, build.bin(Op::Sub, zero, a)?));
        }
        let divisor = build.select(unsafe_divisor, one, b)?;
        let mut result = build.bin(op, a, divisor)?;
        if !rem && let Some((by_minus, minus_a)) = negated {
            result = build.select(by_minus, minus_a, result)?;
        }
        // the remainder by 1 is 0 as wanted
        if rem { Ok(result) } else { build.select(by_zero, zero, result) }
    }

    /// Total shift: by the width or more gives 0; the amount counts as unsigned.
    fn shift(&self, left: bool, dtype: DType, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        let build = &self.build;
        let op = match (left, dtype.is_signed_int()) {
            (true, _) => Op::Shl,
            (false, true) => Op::AShr,
            (false, false) => Op::LShr,
        };
        let width = i128::from(dtype.bits());
        if const_int(b).is_some_and(|c| (0..width).contains(&i128::from(c))) {
            return build.bin(op, a, b);
        }
        let ty = a.get_type();
        let fits = build.icmp(IntPredicate::ULT, b, build.int_like(ty, width))?;
        let amount = build.bin(Op::And, b, build.int_like(ty, width - 1))?;
        build.select(fits, build.bin(op, a, amount)?, build.int_like(ty, 0))
    }

    fn compare(&self, op: CmpOp, dtype: DType, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        if dtype.is_float() {
            let p = match op {
                CmpOp::Eq => FloatPredicate::OEQ,
                CmpOp::Ne => FloatPredicate::UNE,
                CmpOp::Lt => FloatPredicate::OLT,
                CmpOp::Le => FloatPredicate::OLE,
                CmpOp::Gt => FloatPredicate::OGT,
                CmpOp::Ge => FloatPredicate::OGE,
            };
            return self.build.fcmp(p, a, b);
        }
        let signed = dtype.is_signed_int();
        let p = match (op, signed) {
            (CmpOp::Eq, _) => IntPredicate::EQ,
            (CmpOp::Ne, _) => IntPredicate::NE,
            (CmpOp::Lt, true) => IntPredicate::SLT,
            (CmpOp::Le, true) => IntPredicate::SLE,
            (CmpOp::Gt, true) => IntPredicate::SGT,
            (CmpOp::Ge, true) => IntPredicate::SGE,
            (CmpOp::Lt, false) => IntPredicate::ULT,
            (CmpOp::Le, false) => IntPredicate::ULE,
            (CmpOp::Gt, false) => IntPredicate::UGT,
            (CmpOp::Ge, false) => IntPredicate::UGE,
        };
        self.build.icmp(p, a, b)
    }

    /// Conversion between register types.
    pub fn convert(&self, mode: ConvertMode, from: DType, to: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let element = b.element(to)?;
        if from == to {
            return Ok(v);
        }
        if to == DType::Bool {
            let zero = b.int_like(v.get_type(), 0);
            return match from.is_float() {
                true => b.fcmp(FloatPredicate::UNE, v, b.constant(v.get_type(), Scalar::Float(0.0))),
                false => b.icmp(IntPredicate::NE, v, zero),
            };
        }
        match (from.is_float(), to.is_float()) {
            (true, true) if to == DType::F64 => b.cast(Op::FPExt, v, element),
            (true, true) => b.cast(Op::FPTrunc, v, element),
            (true, false) => {
                let name = if to.is_signed_int() { "llvm.fptosi.sat" } else { "llvm.fptoui.sat" };
                let result = super::build::with_lanes(element, lanes(v.get_type()));
                b.value_of(name, &[result, v.get_type()], &[v])
            }
            (false, true) if from.is_signed_int() => b.cast(Op::SIToFP, v, element),
            (false, true) => b.cast(Op::UIToFP, v, element),
            (false, false) => {
                let v = if mode == ConvertMode::Saturate { self.clamp(from, to, v)? } else { v };
                self.resize(from.is_signed_int(), v, element)
            }
        }
    }

    /// Truncates or extends integers.
    pub fn resize(&self, signed: bool, v: Value<'ctx>, element: Type<'ctx>) -> Emit<Value<'ctx>> {
        let bits = |t: Type<'ctx>| match t {
            BasicTypeEnum::VectorType(t) => t.get_element_type().into_int_type().get_bit_width(),
            other => other.into_int_type().get_bit_width(),
        };
        let op = match bits(element).cmp(&bits(v.get_type())) {
            std::cmp::Ordering::Less => Op::Trunc,
            std::cmp::Ordering::Equal => return Ok(v),
            std::cmp::Ordering::Greater if signed => Op::SExt,
            std::cmp::Ordering::Greater => Op::ZExt,
        };
        self.build.cast(op, v, element)
    }

    /// Limits integers of type `from` to the range of type `to`.
    fn clamp(&self, from: DType, to: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let (Some((lo, hi)), Some((from_lo, from_hi))) = (to.int_range(), from.int_range()) else {
            return Err(Fault::invalid("saturation of a type without a range"));
        };
        let mut v = v;
        if lo > from_lo {
            let bound = self.build.int_like(v.get_type(), lo);
            v = self.arithmetic(BinaryOp::Max, from, v, bound)?;
        }
        if hi < from_hi {
            let bound = self.build.int_like(v.get_type(), hi);
            v = self.arithmetic(BinaryOp::Min, from, v, bound)?;
        }
        Ok(v)
    }

    /// Folds the lanes of a vector, halves upon halves.
    fn reduce_lanes(&self, monoid: Monoid, v: Val) -> Emit<Value<'ctx>> {
        let dtype = self.ty(v)?.dtype;
        let mut v = self.val(v)?;
        while let Value::VectorValue(vec) = v {
            let n = vec.get_type().get_size();
            let half = n / 2;
            if n % 2 == 1 {
                // an odd lane is folded into the first
                let last = self.build.extract(v, n - 1)?;
                let first = self.build.extract(v, 0)?;
                let first = self.arithmetic(monoid.op(), dtype, first, last)?;
                v = self.build.b.build_insert_element(vec, first, self.build.i32(0), "")?.into();
            }
            let Value::VectorValue(vec) = v else { break };
            let part = |from: u32| -> Emit<Value<'ctx>> {
                if half == 1 {
                    return self.build.extract(v, from);
                }
                self.build.shuffle(vec, vec, &(from..from + half).collect::<Vec<_>>())
            };
            v = self.arithmetic(monoid.op(), dtype, part(0)?, part(half)?)?;
        }
        Ok(v)
    }
}

/// A constant that is not NaN (in any lane).
fn is_number(v: Value<'_>) -> bool {
    match v {
        Value::FloatValue(f) => f.get_constant().is_some_and(|(x, _)| !x.is_nan()),
        Value::VectorValue(v) if v.is_const() => {
            v.is_null()
                || v.is_constant_data_vector()
                    && (0..v.get_type().get_size()).all(|i| is_number(v.get_element_as_constant(i)))
        }
        _ => false,
    }
}

/// The value of a constant, if all lanes have the same.
fn const_int(v: Value<'_>) -> Option<i64> {
    match v {
        Value::IntValue(i) => i.get_sign_extended_constant(),
        Value::VectorValue(v) if v.is_null() => Some(0),
        Value::VectorValue(v) if v.is_constant_data_vector() => {
            let first = const_int(v.get_element_as_constant(0))?;
            let same = |i| const_int(v.get_element_as_constant(i)) == Some(first);
            (1..v.get_type().get_size()).all(same).then_some(first)
        }
        _ => None,
    }
}
