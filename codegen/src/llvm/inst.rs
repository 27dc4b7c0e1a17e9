//! Instructions: arithmetic, comparisons, conversions, lanes.

use super::build::{Type, Value, lanes, vector, with_lanes};
use super::func::Emitter;
use crate::Fault;
use crate::error::Emit;
use inkwell::types::BasicTypeEnum;
use inkwell::values::{InstructionOpcode as Op, InstructionValue};
use inkwell::{FloatPredicate, IntPredicate};
use ir::DType;
use ir::dtype::Scalar;
use ir::kernel::Dot;
use ir::loops::{Inst, SCALE, Val};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use ir::target::Words;

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
            Inst::Binary(op, a, b) => self.binary(*op, ty.dtype, self.val(*a)?, self.val(*b)?),
            Inst::Fma(a, b, c) if ty.dtype.is_float() => {
                self.build.math("llvm.fma", &[self.val(*a)?, self.val(*b)?, self.val(*c)?])
            }
            Inst::Cmp(op, a, b) => {
                let dtype = self.ty(*a)?.dtype;
                self.compare(*op, dtype, self.val(*a)?, self.val(*b)?)
            }
            Inst::Select(m, a, b) => self.build.select(self.val(*m)?, self.val(*a)?, self.val(*b)?),
            Inst::Convert(ConvertMode::Plain, v) => {
                let from = self.ty(*v)?.dtype;
                self.convert(from, ty.dtype, self.val(*v)?)
            }
            Inst::Bitcast(v) => self.build.bits_as(self.val(*v)?, self.build.element(ty.dtype)?),
            Inst::Load(addr) => self.load(ty, addr),
            Inst::Gather { mem, index, mask } => self.gather(ty, *mem, *index, *mask),
            Inst::ReduceCols(monoid, v) => self.reduce_lanes(*monoid, ty.dtype, self.val(*v)?),
            Inst::Extract(v, 0, lane) => {
                if *lane >= self.ty(*v)?.cols {
                    return Err(Fault::invalid(format!("lane {lane} of a value of {} lanes", ty.cols)));
                }
                self.build.extract(self.val(*v)?, *lane)
            }
            Inst::Insert { vec, scalar, lane } => match (self.val(*vec)?, self.val(*scalar)?) {
                (Value::VectorValue(vec), scalar) if *lane < ty.cols => {
                    let lane = self.build.i32(*lane);
                    Ok(self.build.b.build_insert_element(vec, scalar, lane, "")?.into())
                }
                _ => Err(Fault::invalid(format!("lane {lane} of a value of {} lanes", ty.cols))),
            },
            Inst::Shuffle(a, b, pick) => self.shuffle(*a, *b, pick),
            Inst::TileOp { name, acc, a, b } => self.tile_op(name, *acc, *a, *b),
            other => Err(Fault::invalid(format!("{other:?} in machine form"))),
        }
    }

    fn shuffle(&self, a: Val, b: Val, pick: &[u32]) -> Emit<Value<'ctx>> {
        let n = self.ty(a)?.cols;
        match (self.val(a)?, self.val(b)?) {
            (Value::VectorValue(a), Value::VectorValue(b)) if pick.iter().all(|l| *l < 2 * n) => {
                self.build.shuffle(a, b, pick)
            }
            _ => Err(Fault::invalid("a shuffle of lanes that do not exist")),
        }
    }

    fn unary(&self, op: UnaryOp, v: Val) -> Emit<Value<'ctx>> {
        let dtype = self.ty(v)?.dtype;
        let b = &self.build;
        let v = self.val(v)?;
        let name = match (op, dtype.is_float()) {
            (UnaryOp::Not, false) => return b.bin(Op::Xor, v, b.int_like(v.get_type(), -1)),
            (UnaryOp::Neg, true) => return b.fneg(v),
            (UnaryOp::Abs, true) => "llvm.fabs",
            (UnaryOp::Floor, true) => "llvm.floor",
            (UnaryOp::Ceil, true) => "llvm.ceil",
            (UnaryOp::Trunc, true) => "llvm.trunc",
            (UnaryOp::RoundEven, true) => "llvm.roundeven",
            (UnaryOp::Sqrt, true) => "llvm.sqrt",
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        };
        b.math(name, &[v])
    }

    fn binary(&self, op: BinaryOp, dtype: DType, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        use BinaryOp as B;
        let signed = dtype.is_signed_int();
        let plain = match (op, dtype) {
            (B::Add, DType::F32 | DType::F64) => Op::FAdd,
            (B::Sub, DType::F32 | DType::F64) => Op::FSub,
            (B::Mul, DType::F32 | DType::F64) => Op::FMul,
            (B::Div, DType::F32 | DType::F64) => Op::FDiv,
            (B::And, _) if !dtype.is_float() => Op::And,
            (B::Or, _) if !dtype.is_float() => Op::Or,
            (B::Xor, _) if !dtype.is_float() => Op::Xor,
            (B::Min | B::Max, DType::F32 | DType::F64) => return self.float_extremum(op == B::Max, a, b),
            (_, DType::F32 | DType::F64 | DType::Bool) => {
                return Err(Fault::invalid(format!("{} of {dtype}", op.name())));
            }
            (B::Add, _) => Op::Add,
            (B::Sub, _) => Op::Sub,
            (B::Mul, _) => Op::Mul,
            (B::Div | B::Rem, _) => return self.divide(op == B::Rem, signed, a, b),
            (B::Shl, _) => return self.shift_left(dtype, a, b),
            (B::Shr, _) if signed => Op::AShr,
            (B::Shr, _) => Op::LShr,
            (B::Min, _) => return self.build.math(if signed { "llvm.smin" } else { "llvm.umin" }, &[a, b]),
            (B::Max, _) => return self.build.math(if signed { "llvm.smax" } else { "llvm.umax" }, &[a, b]),
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        };
        self.build.bin(plain, a, b)
    }

    /// Minimum or maximum that propagates NaN. `max(x, c) = c > x ? c : x` answers x where x is NaN, and is
    /// one instruction; the other operand needs care only where it may be NaN.
    fn float_extremum(&self, max: bool, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        let build = &self.build;
        let wins = if max { FloatPredicate::OGT } else { FloatPredicate::OLT };
        let (x, other) = if is_number(a) { (b, a) } else { (a, b) };
        let best = build.select(build.fcmp(wins, other, x)?, other, x)?;
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
        if !signed {
            let safe = build.bin(op, a, build.select(by_zero, one, b)?)?;
            // the remainder by 1 is the 0 that is wanted
            return if rem { Ok(safe) } else { build.select(by_zero, zero, safe) };
        }
        // x / -1 = -x and x rem -1 = 0, also for MIN, where the instruction would trap
        let by_minus = build.icmp(IntPredicate::EQ, b, build.int_like(ty, -1))?;
        let special = build.bin(Op::Or, by_zero, by_minus)?;
        let safe = build.bin(op, a, build.select(special, one, b)?)?;
        if rem {
            return Ok(safe);
        }
        let minus_a = build.bin(Op::Sub, zero, a)?;
        build.select(by_zero, zero, build.select(by_minus, minus_a, safe)?)
    }

    /// Left shift; a count that is negative or at least the width gives 0.
    fn shift_left(&self, dtype: DType, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        let build = &self.build;
        let (ty, width) = (a.get_type(), i64::from(dtype.bits()));
        if const_int(b).is_some_and(|c| (0..width).contains(&c)) {
            return build.bin(Op::Shl, a, b);
        }
        let fits = build.icmp(IntPredicate::ULT, b, build.int_like(ty, width.into()))?;
        let count = build.bin(Op::And, b, build.int_like(ty, i128::from(width - 1)))?;
        build.select(fits, build.bin(Op::Shl, a, count)?, build.int_like(ty, 0))
    }

    /// Folds the lanes of a vector, halves upon halves. Of bools, the maximum is "any", the minimum "all".
    fn reduce_lanes(&self, monoid: Monoid, dtype: DType, mut v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let op = match (monoid, dtype) {
            (Monoid::Max | Monoid::Sum, DType::Bool) => BinaryOp::Or,
            (Monoid::Min | Monoid::Prod, DType::Bool) => BinaryOp::And,
            (monoid, _) => monoid.op(),
        };
        while let Value::VectorValue(vec) = v {
            let n = vec.get_type().get_size();
            if !n.is_power_of_two() {
                return Err(Fault::invalid(format!("a vector of {n} lanes")));
            }
            let half = n / 2;
            let part = |from: u32| match half {
                1 => self.build.extract(v, from),
                _ => self.build.shuffle(vec, vec, &(from..from + half).collect::<Vec<_>>()),
            };
            v = self.binary(op, dtype, part(0)?, part(half)?)?;
        }
        Ok(v)
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

    /// Conversion between register types; floats to integers saturate, and NaN gives 0.
    fn convert(&self, from: DType, to: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let element = b.element(to)?;
        match (from, to) {
            (DType::Bool, _) | (_, DType::Bool) => Err(Fault::invalid(format!("convert {from} to {to}"))),
            (DType::F32, DType::F64) => b.cast(Op::FPExt, v, element),
            (DType::F64, DType::F32) => b.cast(Op::FPTrunc, v, element),
            (f, t) if f == t => Ok(v),
            (DType::F32, DType::I32) if lanes(v.get_type()).is_some() => self.to_i32_lanes(v),
            (f, t) if f.is_float() => {
                let name = if t.is_signed_int() { "llvm.fptosi.sat" } else { "llvm.fptoui.sat" };
                b.value_of(name, &[with_lanes(element, lanes(v.get_type())), v.get_type()], &[v])
            }
            (f, t) if t.is_float() => {
                b.cast(if f.is_signed_int() { Op::SIToFP } else { Op::UIToFP }, v, element)
            }
            (f, t) => b.resize(f.is_signed_int(), 8 * f.bytes(), 8 * t.bytes(), v, element),
        }
    }

    /// Lanes of f32 to i32, saturated, NaN to 0. LLVM takes its own saturating conversion of vectors apart, lane
    /// by lane: eight times as many instructions.
    fn to_i32_lanes(&self, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let ints = with_lanes(b.element(DType::I32)?, lanes(v.get_type()));
        let float = |x: f64| b.constant(v.get_type(), Scalar::Float(x));
        if is_limited(v) {
            return b.cast(Op::FPToSI, v, b.element(DType::I32)?);
        }
        let (limit, least) = (float(2f64.powi(31)), float(-2f64.powi(31)));
        // everything within range first: beyond it the plain conversion means nothing
        let below = b.fcmp(FloatPredicate::OLT, v, limit)?;
        let x = b.select(below, v, float(0.0))?;
        let inside = b.fcmp(FloatPredicate::OGT, x, least)?;
        let x = b.select(inside, x, least)?;
        let x = b.cast(Op::FPToSI, x, b.element(DType::I32)?)?;
        let above = b.fcmp(FloatPredicate::OGE, v, limit)?;
        b.select(above, b.int_like(ints, i128::from(i32::MAX)), x)
    }

    /// Dot products of four bytes or two bf16 in each lane, or products with powers of 2.
    fn tile_op(&self, name: &str, acc: Val, a: Val, b: Val) -> Emit<Value<'ctx>> {
        let n = self.ty(acc)?.cols;
        let cx = self.build.cx;
        if name == SCALE {
            let (intrinsic, mask) = match (self.ty(acc)?.dtype, n) {
                (DType::F32, 16) => ("llvm.x86.avx512.mask.scalef.ps.512", cx.i16_type()),
                (DType::F64, 8) => ("llvm.x86.avx512.mask.scalef.pd.512", cx.i8_type()),
                (d, n) => return Err(Fault::unsupported(format!("`{name}` on {n} lanes of {d}"))),
            };
            let (x, all) = (self.val(acc)?, mask.const_all_ones().into());
            // rounded as the thread's mode says
            let rounding = cx.i32_type().const_int(4, false).into();
            return self.build.value_of(intrinsic, &[], &[x, self.val(a)?, x, all, rounding]);
        }
        if name == Dot::Bytes.tile_op() && self.desc.words(Dot::Bytes) == Some(Words::Pairs) {
            return self.pairs_of_bytes(n, self.val(acc)?, self.val(a)?, self.val(b)?);
        }
        let (intrinsic, part, parts) = match (name, n) {
            ("vpdpbusd", 16) => ("llvm.x86.avx512.vpdpbusd.512", Type::from(cx.i8_type()), 64),
            ("vpdpbusd", 8) => ("llvm.x86.avx512.vpdpbusd.256", cx.i8_type().into(), 32),
            ("vdpbf16ps", 16) => ("llvm.x86.avx512bf16.dpbf16ps.512", cx.bf16_type().into(), 32),
            ("vdpbf16ps", 8) => ("llvm.x86.avx512bf16.dpbf16ps.256", cx.bf16_type().into(), 16),
            _ => return Err(Fault::unsupported(format!("tile instruction `{name}` on {n} lanes"))),
        };
        let ty = vector(part, parts);
        let pieces = |v: Val| -> Emit<Value<'ctx>> { Ok(self.build.b.build_bit_cast(self.val(v)?, ty, "")?) };
        self.build.value_of(intrinsic, &[], &[self.val(acc)?, pieces(a)?, pieces(b)?])
    }
}

/// True where `v` is `min(max(x, lo), hi)`, spelled as selects that answer a limit for NaN, with limits that i32 has.
fn is_limited(v: Value<'_>) -> bool {
    let upper = limited(v, FloatPredicate::OLT);
    let lower = upper.and_then(|u| limited(u.0, FloatPredicate::OGT));
    let fits = |limit: f64| limit.abs() <= f64::from(1 << 24);
    upper.zip(lower).is_some_and(|(u, l)| fits(u.1) && fits(l.1))
}

/// `x` and `c` of `x p c ? x : c`.
fn limited<'ctx>(v: Value<'ctx>, p: FloatPredicate) -> Option<(Value<'ctx>, f64)> {
    let Value::VectorValue(v) = v else { return None };
    let select = v.as_instruction().filter(|i| i.get_opcode() == Op::Select)?;
    let operand = |of: InstructionValue<'ctx>, i: u32| of.get_operand(i)?.value();
    let (mask, x, c) = (operand(select, 0)?, operand(select, 1)?, operand(select, 2)?);
    let Value::VectorValue(mask) = mask else { return None };
    let cmp = mask.as_instruction().filter(|i| i.get_fcmp_predicate() == Some(p))?;
    let same = operand(cmp, 0)? == x && operand(cmp, 1)? == c;
    same.then_some((x, lanes_of_constant(c)?))
}

/// The number that all lanes of a constant are.
fn lanes_of_constant(v: Value<'_>) -> Option<f64> {
    match v {
        Value::VectorValue(v) if v.is_const() && v.is_null() => Some(0.0),
        Value::VectorValue(v) if v.is_constant_data_vector() => match v.get_element_as_constant(0) {
            Value::FloatValue(f) => f.get_constant().map(|c| c.0),
            _ => None,
        },
        _ => None,
    }
}

impl<'ctx> Emitter<'_, 'ctx> {
    /// Dot products of four bytes, `a` unsigned and `b` signed, by those of two 16-bit numbers: the even bytes, then
    /// the odd ones. Instructions on pairs of bytes would saturate.
    fn pairs_of_bytes(&self, n: u32, acc: Value<'ctx>, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        let build = &self.build;
        let short = Type::from(build.cx.i16_type());
        let ty = vector(short, 2 * n);
        let of = |v: i128| build.int_like(ty.into(), v);
        let [a, b] = [a, b].map(|v| build.b.build_bit_cast(v, ty, ""));
        let (a, b) = (a?, b?);
        let even =
            [build.bin(Op::And, a, of(255))?, build.bin(Op::AShr, build.bin(Op::Shl, b, of(8))?, of(8))?];
        let odd = [build.bin(Op::LShr, a, of(8))?, build.bin(Op::AShr, b, of(8))?];
        let intrinsic = match n {
            8 => "llvm.x86.avx2.pmadd.wd",
            16 => "llvm.x86.avx512.pmaddw.d.512",
            _ => return Err(Fault::unsupported(format!("products of bytes on {n} lanes"))),
        };
        let even = build.value_of(intrinsic, &[], &even)?;
        let odd = build.value_of(intrinsic, &[], &odd)?;
        build.bin(Op::Add, acc, build.bin(Op::Add, even, odd)?)
    }
}

/// A constant that is not NaN (in any lane).
fn is_number(v: Value<'_>) -> bool {
    match v {
        Value::FloatValue(f) => f.get_constant().is_some_and(|(x, _)| !x.is_nan()),
        Value::VectorValue(v) if v.is_constant_data_vector() => {
            (0..v.get_type().get_size()).all(|i| is_number(v.get_element_as_constant(i)))
        }
        Value::VectorValue(v) => v.is_const() && v.is_null(),
        _ => false,
    }
}

/// The value of a constant, if all lanes have the same.
fn const_int(v: Value<'_>) -> Option<i64> {
    match v {
        Value::IntValue(i) => i.get_sign_extended_constant(),
        Value::VectorValue(v) if v.is_constant_data_vector() => {
            let first = const_int(v.get_element_as_constant(0))?;
            let same = |i| const_int(v.get_element_as_constant(i)) == Some(first);
            (1..v.get_type().get_size()).all(same).then_some(first)
        }
        Value::VectorValue(v) => (v.is_const() && v.is_null()).then_some(0),
        _ => None,
    }
}
