//! Loads, stores, gathers and scatters, with the conversion between stored and register types.

use super::build::{Type, Value, vector};
use super::func::Emitter;
use crate::Fault;
use crate::error::Emit;
use inkwell::IntPredicate;
use inkwell::attributes::AttributeLoc;
use inkwell::llvm_sys::core::LLVMBuildGEP2;
use inkwell::types::AsTypeRef;
use inkwell::values::{AsValueRef, BasicValue, InstructionOpcode as Op, IntValue, PointerValue, VectorValue};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Addr, Mem, Stride, Ty, Val};
use ir::prim::ConvertMode;

/// Alignments beyond this help no instruction.
const MAX_ALIGN: u32 = 64;

impl<'ctx> Emitter<'_, 'ctx> {
    /// Base address and stored type of a memory region.
    fn region(&self, mem: Mem) -> Emit<(PointerValue<'ctx>, DType)> {
        let region = match mem {
            Mem::Buf(i) => {
                let base = self.bufs.get(i as usize);
                base.zip(self.func.bufs.get(i as usize).map(|b| b.dtype))
            }
            Mem::Local(i) => {
                let base = self.locals.get(i as usize);
                base.zip(self.func.locals.get(i as usize).map(|l| l.dtype))
            }
        };
        region.map(|(p, d)| (*p, d)).ok_or_else(|| Fault::invalid(format!("no memory {mem:?}")))
    }

    /// Address of the first element.
    fn address(
        &self,
        base: PointerValue<'ctx>,
        element: Type<'ctx>,
        addr: &Addr,
    ) -> Emit<PointerValue<'ctx>> {
        let at = self.build.offset(element, base, self.int(addr.index)?)?;
        self.build.offset(element, at, self.build.i64(addr.disp))
    }

    /// Indices of the lanes of a strided access.
    fn lane_indices(&self, addr: &Addr, n: u32) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let first = b.bin(Op::Add, self.int(addr.index)?.into(), b.i64(addr.disp).into())?;
        let stride = match addr.col {
            Stride::Const(s) => b.i64(s),
            Stride::Val(v) => self.int(v)?,
        };
        let iota = b.iota(b.cx.i64_type(), n);
        let way = b.bin(Op::Mul, iota, b.splat(stride.into(), n)?)?;
        b.bin(Op::Add, b.splat(first, n)?, way)
    }

    /// Lanes below `valid`.
    fn prefix_mask(&self, valid: Val, n: u32) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let valid: Value = self.int(valid)?.into();
        let valid = b.math("llvm.smax", &[valid, b.i64(0).into()])?;
        let valid = b.math("llvm.smin", &[valid, b.i64(i64::from(n)).into()])?;
        let count = b.cast(Op::Trunc, valid, b.cx.i32_type().into())?;
        b.icmp(IntPredicate::ULT, b.iota(b.cx.i32_type(), n), b.splat(count, n)?)
    }

    pub fn load(&self, ty: Ty, addr: &Addr) -> Emit<Value<'ctx>> {
        let (base, dtype) = self.region(addr.mem)?;
        let element = self.build.stored(dtype)?;
        let align = access_align(addr.align, dtype);
        let n = ty.cols;
        let bits = match (n, addr.col, addr.cols_valid) {
            (1, _, None) => self.load_one(base, element, addr, align)?,
            (_, Stride::Const(0), None) => {
                let one = self.load_one(base, element, addr, align)?;
                self.build.splat(one, n)?
            }
            (1, _, Some(valid)) => {
                let b = &self.build;
                let any = b.icmp(IntPredicate::SGT, self.int(valid)?.into(), b.i64(0).into())?;
                let at = self.address(base, element, addr)?;
                self.load_if(any.into_int_value(), element, at)?
            }
            (_, Stride::Const(1), None) => {
                let at = self.address(base, element, addr)?;
                self.load_at(vector(element, n).into(), at, align)?
            }
            (_, Stride::Const(1), Some(valid)) => {
                let at = self.address(base, element, addr)?;
                let full = vector(element, n).into();
                let mask = self.prefix_mask(valid, n)?;
                let zero = self.build.constant(full, Scalar::Float(0.0));
                let types = [full, at.get_type().into()];
                let call = self.build.call("llvm.masked.load", &types, &[at.into(), mask, zero])?;
                call.set_alignment_attribute(AttributeLoc::Param(0), align);
                call.try_as_basic_value().basic().ok_or_else(|| Fault::emitter("masked load"))?
            }
            _ => {
                let mask = match addr.cols_valid {
                    Some(valid) => self.prefix_mask(valid, n)?,
                    None => self.all_lanes(n),
                };
                self.gather_at(base, element, self.lane_indices(addr, n)?, mask, dtype, n)?
            }
        };
        self.from_stored(dtype, ty.dtype, bits)
    }

    fn load_one(
        &self,
        base: PointerValue<'ctx>,
        element: Type<'ctx>,
        addr: &Addr,
        align: u32,
    ) -> Emit<Value<'ctx>> {
        self.load_at(element, self.address(base, element, addr)?, align)
    }

    fn load_at(&self, ty: Type<'ctx>, at: PointerValue<'ctx>, align: u32) -> Emit<Value<'ctx>> {
        let value = self.build.b.build_load(ty, at, "")?;
        if let Some(inst) = value.as_instruction_value() {
            inst.set_alignment(align).map_err(Fault::emitter)?;
        }
        Ok(value)
    }

    /// A scalar load that happens only where `cond` holds; 0 elsewhere.
    fn load_if(
        &self,
        cond: IntValue<'ctx>,
        element: Type<'ctx>,
        at: PointerValue<'ctx>,
    ) -> Emit<Value<'ctx>> {
        let before = self.here()?;
        let (read, join) = (self.block("read"), self.block("join"));
        self.build.b.build_conditional_branch(cond, read, join)?;
        self.build.b.position_at_end(read);
        let value = self.build.b.build_load(element, at, "")?;
        self.build.b.build_unconditional_branch(join)?;
        self.build.b.position_at_end(join);
        let phi = self.build.b.build_phi(element, "")?;
        phi.add_incoming(&[(&value, read), (&element.const_zero(), before)]);
        Ok(phi.as_basic_value())
    }

    fn all_lanes(&self, n: u32) -> Value<'ctx> {
        let ones = vector(self.build.cx.bool_type().into(), n);
        self.build.int_like(ones.into(), 1)
    }

    /// Addresses of lanes at an i64 vector of element indices.
    fn pointers(
        &self,
        base: PointerValue<'ctx>,
        element: Type<'ctx>,
        index: Value<'ctx>,
    ) -> Emit<Value<'ctx>> {
        let Value::VectorValue(index) = index else {
            return Err(Fault::invalid("a vector access by a scalar index"));
        };
        let mut index = [index.as_value_ref()];
        // SAFETY: inkwell has no builder for vectors of addresses; these are live values and types
        // of one context and a positioned builder. An address alone touches nothing. The result of
        // a scalar base and one vector index is a vector of pointers.
        let at = unsafe {
            VectorValue::new(LLVMBuildGEP2(
                self.build.b.as_mut_ptr(),
                element.as_type_ref(),
                base.as_value_ref(),
                index.as_mut_ptr(),
                1,
                c"".as_ptr(),
            ))
        };
        Ok(at.into())
    }

    fn gather_at(
        &self,
        base: PointerValue<'ctx>,
        element: Type<'ctx>,
        index: Value<'ctx>,
        mask: Value<'ctx>,
        dtype: DType,
        n: u32,
    ) -> Emit<Value<'ctx>> {
        let full: Type = vector(element, n).into();
        let at = self.pointers(base, element, index)?;
        let zero = self.build.constant(full, Scalar::Float(0.0));
        let call = self.build.call("llvm.masked.gather", &[full, at.get_type()], &[at, mask, zero])?;
        call.set_alignment_attribute(AttributeLoc::Param(0), access_align(0, dtype));
        call.try_as_basic_value().basic().ok_or_else(|| Fault::emitter("masked gather"))
    }

    pub fn gather(&self, ty: Ty, mem: Mem, index: Val, mask: Option<Val>) -> Emit<Value<'ctx>> {
        let (base, dtype) = self.region(mem)?;
        let element = self.build.stored(dtype)?;
        let bits = match self.val(index)? {
            Value::IntValue(index) => {
                let at = self.build.offset(element, base, index)?;
                match mask {
                    None => self.load_at(element, at, access_align(0, dtype))?,
                    Some(mask) => self.load_if(self.int(mask)?, element, at)?,
                }
            }
            index => {
                let mask = match mask {
                    None => self.all_lanes(ty.cols),
                    Some(m) => self.val(m)?,
                };
                self.gather_at(base, element, index, mask, dtype, ty.cols)?
            }
        };
        self.from_stored(dtype, ty.dtype, bits)
    }

    pub fn store(&self, addr: &Addr, value: Val) -> Emit<()> {
        let (base, dtype) = self.region(addr.mem)?;
        let element = self.build.stored(dtype)?;
        let align = access_align(addr.align, dtype);
        let ty = self.ty(value)?;
        let n = ty.cols;
        let bits = self.to_stored(ty.dtype, dtype, self.val(value)?)?;
        match (n, addr.col, addr.cols_valid) {
            (1, _, None) | (_, Stride::Const(1), None) => {
                let at = self.address(base, element, addr)?;
                self.store_at(at, bits, align)
            }
            (1, _, Some(valid)) => {
                let b = &self.build;
                let any = b.icmp(IntPredicate::SGT, self.int(valid)?.into(), b.i64(0).into())?;
                let at = self.address(base, element, addr)?;
                self.store_if(any.into_int_value(), at, bits)
            }
            (_, Stride::Const(1), Some(valid)) => {
                let at = self.address(base, element, addr)?;
                let mask = self.prefix_mask(valid, n)?;
                let types = [bits.get_type(), at.get_type().into()];
                let call = self.build.call("llvm.masked.store", &types, &[bits, at.into(), mask])?;
                call.set_alignment_attribute(AttributeLoc::Param(1), align);
                Ok(())
            }
            _ => {
                let mask = match addr.cols_valid {
                    Some(valid) => self.prefix_mask(valid, n)?,
                    None => self.all_lanes(n),
                };
                self.scatter_at(base, element, self.lane_indices(addr, n)?, bits, mask, dtype)
            }
        }
    }

    fn store_at(&self, at: PointerValue<'ctx>, bits: Value<'ctx>, align: u32) -> Emit<()> {
        let inst = self.build.b.build_store(at, bits)?;
        inst.set_alignment(align).map_err(Fault::emitter)
    }

    fn store_if(&self, cond: IntValue<'ctx>, at: PointerValue<'ctx>, bits: Value<'ctx>) -> Emit<()> {
        let (write, join) = (self.block("write"), self.block("join"));
        self.build.b.build_conditional_branch(cond, write, join)?;
        self.build.b.position_at_end(write);
        self.build.b.build_store(at, bits)?;
        self.build.b.build_unconditional_branch(join)?;
        self.build.b.position_at_end(join);
        Ok(())
    }

    /// Lanes are written in order, so that the last of equal addresses wins.
    fn scatter_at(
        &self,
        base: PointerValue<'ctx>,
        element: Type<'ctx>,
        index: Value<'ctx>,
        bits: Value<'ctx>,
        mask: Value<'ctx>,
        dtype: DType,
    ) -> Emit<()> {
        let at = self.pointers(base, element, index)?;
        let types = [bits.get_type(), at.get_type()];
        let call = self.build.call("llvm.masked.scatter", &types, &[bits, at, mask])?;
        call.set_alignment_attribute(AttributeLoc::Param(1), access_align(0, dtype));
        Ok(())
    }

    pub fn scatter(&self, mem: Mem, index: Val, value: Val, mask: Option<Val>) -> Emit<()> {
        let (base, dtype) = self.region(mem)?;
        let element = self.build.stored(dtype)?;
        let ty = self.ty(value)?;
        let bits = self.to_stored(ty.dtype, dtype, self.val(value)?)?;
        match self.val(index)? {
            Value::IntValue(index) => {
                let at = self.build.offset(element, base, index)?;
                match mask {
                    None => self.store_at(at, bits, access_align(0, dtype)),
                    Some(mask) => self.store_if(self.int(mask)?, at, bits),
                }
            }
            index => {
                let mask = match mask {
                    None => self.all_lanes(ty.cols),
                    Some(m) => self.val(m)?,
                };
                self.scatter_at(base, element, index, bits, mask, dtype)
            }
        }
    }

    /// What was loaded, as a register type.
    fn from_stored(&self, stored: DType, to: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        match (stored, to) {
            (DType::Bool, DType::Bool) => {
                let zero = b.int_like(v.get_type(), 0);
                b.icmp(IntPredicate::NE, v, zero)
            }
            (DType::F16, _) if to.is_float() => b.cast(Op::FPExt, v, b.element(to)?),
            (DType::BF16, DType::F32) => {
                // bf16 is the upper half of f32
                let wide = b.cast(Op::ZExt, v, b.cx.i32_type().into())?;
                let bits = b.bin(Op::Shl, wide, b.int_like(wide.get_type(), 16))?;
                b.bits_as(bits, b.element(to)?)
            }
            // types without arithmetic in registers, as their bits
            (DType::F16 | DType::BF16, _) if to.is_int() => {
                let bits = b.cast(Op::BitCast, v, b.cx.i16_type().into())?;
                self.resize(false, bits, b.element(to)?)
            }
            (s, t) if s.is_float() && s.bytes() == 1 && t.is_int() => self.resize(false, v, b.element(t)?),
            (s, t) if (s.is_int() || s == DType::Bool) && t.is_int() => {
                self.resize(s.is_signed_int(), v, b.element(t)?)
            }
            (s, t) if s == t => Ok(v),
            (s, t) => Err(Fault::invalid(format!("a load of {s} as {t}"))),
        }
    }

    /// A register value as what is stored.
    fn to_stored(&self, from: DType, stored: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let element = b.stored(stored)?;
        match (from, stored) {
            (DType::Bool, s) if s == DType::Bool || s.is_int() => b.cast(Op::ZExt, v, element),
            (f, DType::Bool) if f.is_int() => {
                let bit = self.convert(ConvertMode::Plain, f, DType::Bool, v)?;
                b.cast(Op::ZExt, bit, element)
            }
            (f, DType::F16) if f.is_float() => b.cast(Op::FPTrunc, v, element),
            (DType::F32, DType::BF16) => self.round_to_bf16(v),
            (f, DType::F16) if f.is_int() => {
                let half = self.resize(false, v, b.cx.i16_type().into())?;
                b.bits_as(half, element)
            }
            (f, s) if f.is_int() && (s.is_int() || s.is_float() && s.bytes() <= 2) => {
                self.resize(f.is_signed_int(), v, element)
            }
            (f, s) if f == s => Ok(v),
            (f, s) => Err(Fault::invalid(format!("a store of {f} as {s}"))),
        }
    }

    /// f32 to the nearest bf16, ties to even; NaN stays NaN.
    fn round_to_bf16(&self, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let is_nan = b.fcmp(inkwell::FloatPredicate::UNO, v, v)?;
        let bits = b.bits_as(v, b.cx.i32_type().into())?;
        let int = |x| b.int_like(bits.get_type(), x);
        let upper = b.bin(Op::LShr, bits, int(16))?;
        let odd = b.bin(Op::And, upper, int(1))?;
        let up = b.bin(Op::Add, odd, int(0x7fff))?;
        let rounded = b.bin(Op::LShr, b.bin(Op::Add, bits, up)?, int(16))?;
        let quiet = b.bin(Op::Or, upper, int(0x40))?;
        let half = b.select(is_nan, quiet, rounded)?;
        b.cast(Op::Trunc, half, b.cx.i16_type().into())
    }
}

/// Bytes that an access is known to be aligned to.
fn access_align(align: u32, dtype: DType) -> u32 {
    let element = dtype.bytes().max(1) as u32;
    let power = if align == 0 { element } else { 1 << align.trailing_zeros() };
    power.clamp(element, MAX_ALIGN)
}
