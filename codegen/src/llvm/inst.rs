//! Instructions: arithmetic, comparisons, conversions, lanes.

use super::build::{Type, Value, lanes, vector, with_lanes};
use super::func::Emitter;
use crate::Fault;
use crate::error::Emit;
use inkwell::types::BasicTypeEnum;
use inkwell::values::InstructionOpcode as Op;
use inkwell::{FloatPredicate, IntPredicate};
use ir::DType;
use ir::loops::{Inst, Val};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};

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

    fn binary(&self, op: BinaryOp, a: Val, b: Val) -> Emit<Value<'ctx>> {
        use BinaryOp as B;
        let dtype = self.ty(a)?.dtype;
        let (a, b) = (self.val(a)?, self.val(b)?);
        let signed = dtype.is_signed_int();
        let plain = match (op, dtype) {
            (B::Add, DType::F32 | DType::F64) => Op::FAdd,
            (B::Sub, DType::F32 | DType::F64) => Op::FSub,
            (B::Mul, DType::F32 | DType::F64) => Op::FMul,
            (B::Div, DType::F32 | DType::F64) => Op::FDiv,
            (B::And, _) if !dtype.is_float() => Op::And,
            (B::Or, _) if !dtype.is_float() => Op::Or,
            (B::Xor, _) if !dtype.is_float() => Op::Xor,
            (_, DType::F32 | DType::F64 | DType::Bool) => {
                return Err(Fault::invalid(format!("{} of {dtype}", op.name())));
            }
            (B::Add, _) => Op::Add,
            (B::Sub, _) => Op::Sub,
            (B::Mul, _) => Op::Mul,
            (B::Div, _) if signed => Op::SDiv,
            (B::Div, _) => Op::UDiv,
            (B::Rem, _) if signed => Op::SRem,
            (B::Rem, _) => Op::URem,
            (B::Shl, _) => Op::Shl,
            (B::Shr, _) if signed => Op::AShr,
            (B::Shr, _) => Op::LShr,
            (B::Min, _) => return self.build.math(if signed { "llvm.smin" } else { "llvm.umin" }, &[a, b]),
            (B::Max, _) => return self.build.math(if signed { "llvm.smax" } else { "llvm.umax" }, &[a, b]),
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        };
        self.build.bin(plain, a, b)
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

    /// Dot products of four bytes or two bf16 in each lane.
    fn tile_op(&self, name: &str, acc: Val, a: Val, b: Val) -> Emit<Value<'ctx>> {
        let n = self.ty(acc)?.cols;
        let cx = self.build.cx;
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
