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

    /// Address of the first element of an access.
    pub fn element_address(&self, addr: &Addr) -> Emit<PointerValue<'ctx>> {
        let (base, dtype) = self.region(addr.mem)?;
        self.address(base, self.build.stored(dtype)?, addr)
    }

    /// Lanes below `valid`, which is in `0..=n`.
    fn prefix_mask(&self, valid: Val, n: u32) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let count = b.cast(Op::Trunc, self.int(valid)?.into(), b.cx.i32_type().into())?;
        b.icmp(IntPredicate::ULT, b.iota(b.cx.i32_type(), n), b.splat(count, n)?)
    }

    pub fn load(&self, ty: Ty, addr: &Addr) -> Emit<Value<'ctx>> {
        let (base, dtype) = self.region(addr.mem)?;
        let element = self.build.stored(dtype)?;
        let align = self.read_align(addr.mem, addr.align, dtype);
        let at = self.address(base, element, addr)?;
        let bits = match (ty.cols, addr.col, addr.cols_valid) {
            (1, _, None) => self.load_at(element, at, align)?,
            (1, _, Some(valid)) => self.load_if(self.nonzero(valid)?, element, at, align)?,
            (n, Stride::Const(1), None) => self.load_at(vector(element, n).into(), at, align)?,
            (n, Stride::Const(1), Some(valid)) => {
                let full = vector(element, n).into();
                let mask = self.prefix_mask(valid, n)?;
                let zero = self.build.constant(full, Scalar::Float(0.0));
                let types = [full, at.get_type().into()];
                let call = self.build.call("llvm.masked.load", &types, &[at.into(), mask, zero])?;
                call.set_alignment_attribute(AttributeLoc::Param(0), align);
                call.try_as_basic_value().basic().ok_or_else(|| Fault::emitter("masked load"))?
            }
            _ => return Err(Fault::invalid(format!("a load of {} lanes at {addr:?}", ty.cols))),
        };
        self.widened(dtype, ty.dtype, bits)
    }

    /// Into the second-level cache.
    pub fn prefetch(&self, mem: Mem, index: Val) -> Emit<()> {
        let (base, dtype) = self.region(mem)?;
        let b = &self.build;
        let at = b.offset(b.stored(dtype)?, base, self.int(index)?)?;
        let word = |n| b.cx.i32_type().const_int(n, false).into();
        // a read; locality 2 of 0..=3; of data
        b.call("llvm.prefetch", &[at.get_type().into()], &[at.into(), word(0), word(2), word(1)])?;
        Ok(())
    }

    fn load_at(&self, ty: Type<'ctx>, at: PointerValue<'ctx>, align: u32) -> Emit<Value<'ctx>> {
        let value = self.build.b.build_load(ty, at, "")?;
        if let Some(inst) = value.as_instruction_value() {
            inst.set_alignment(align).map_err(Fault::emitter)?;
        }
        Ok(value)
    }

    /// Bytes that a read is known to be aligned to: no more than its operand begins at.
    fn read_align(&self, mem: Mem, align: u32, dtype: DType) -> u32 {
        let base = match mem {
            Mem::Buf(i) => self.func.bufs.get(i as usize).map_or(1, |b| 1 << b.align.max(1).trailing_zeros()),
            Mem::Local(_) => MAX_ALIGN,
        };
        access_align(align, dtype).min(base)
    }

    /// Whether a scalar access takes place.
    fn nonzero(&self, valid: Val) -> Emit<IntValue<'ctx>> {
        let b = &self.build;
        let any = b.icmp(IntPredicate::NE, self.int(valid)?.into(), b.i64(0).into())?;
        Ok(any.into_int_value())
    }

    /// A scalar load that happens only where `cond` holds; 0 elsewhere.
    fn load_if(
        &self,
        cond: IntValue<'ctx>,
        element: Type<'ctx>,
        at: PointerValue<'ctx>,
        align: u32,
    ) -> Emit<Value<'ctx>> {
        let before = self.here()?;
        let (read, join) = (self.block("read"), self.block("join"));
        self.build.b.build_conditional_branch(cond, read, join)?;
        self.build.b.position_at_end(read);
        let value = self.load_at(element, at, align)?;
        self.build.b.build_unconditional_branch(join)?;
        self.build.b.position_at_end(join);
        let phi = self.build.b.build_phi(element, "")?;
        phi.add_incoming(&[(&value, read), (&element.const_zero(), before)]);
        Ok(phi.as_basic_value())
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

    pub fn store(&self, addr: &Addr, value: Val) -> Emit<()> {
        let (base, dtype) = self.region(addr.mem)?;
        let element = self.build.stored(dtype)?;
        let align = access_align(addr.align, dtype);
        let ty = self.ty(value)?;
        let bits = self.narrowed(ty.dtype, dtype, self.val(value)?)?;
        let at = self.address(base, element, addr)?;
        match (ty.cols, addr.col, addr.cols_valid) {
            (1, _, None) | (_, Stride::Const(1), None) => {
                let inst = self.build.b.build_store(at, bits)?;
                inst.set_alignment(align).map_err(Fault::emitter)
            }
            (1, _, Some(valid)) => self.store_if(self.nonzero(valid)?, at, bits),
            // One known lane is a scalar: LLVM 22 makes a scalar store of the wider type out of a masked store
            // of truncated values with one constant lane.
            (_, Stride::Const(1), Some(valid))
                if self.int(valid)?.get_sign_extended_constant() == Some(1) =>
            {
                let inst = self.build.b.build_store(at, self.build.extract(bits, 0)?)?;
                inst.set_alignment(align).map_err(Fault::emitter)
            }
            (n, Stride::Const(1), Some(valid)) => {
                let mask = self.prefix_mask(valid, n)?;
                let types = [bits.get_type(), at.get_type().into()];
                let call = self.build.call("llvm.masked.store", &types, &[bits, at.into(), mask])?;
                call.set_alignment_attribute(AttributeLoc::Param(1), align);
                Ok(())
            }
            (n, ..) => Err(Fault::invalid(format!("a store of {n} lanes at {addr:?}"))),
        }
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

    /// The given mask, or all lanes.
    fn mask(&self, mask: Option<Val>, n: u32) -> Emit<Value<'ctx>> {
        let all = vector(self.build.cx.bool_type().into(), n);
        mask.map_or_else(|| Ok(self.build.int_like(all.into(), 1)), |m| self.val(m))
    }

    pub fn gather(&self, ty: Ty, mem: Mem, index: Val, mask: Option<Val>) -> Emit<Value<'ctx>> {
        let (base, dtype) = self.region(mem)?;
        let element = self.build.stored(dtype)?;
        let align = self.read_align(mem, 0, dtype);
        if let Value::IntValue(index) = self.val(index)? {
            let at = self.build.offset(element, base, index)?;
            let bits = match mask {
                None => self.load_at(element, at, align)?,
                Some(mask) => self.load_if(self.int(mask)?, element, at, align)?,
            };
            return self.widened(dtype, ty.dtype, bits);
        }
        let at = self.pointers(base, element, self.val(index)?)?;
        let full: Type = vector(element, ty.cols).into();
        let zero = self.build.constant(full, Scalar::Float(0.0));
        let args = [at, self.mask(mask, ty.cols)?, zero];
        let call = self.build.call("llvm.masked.gather", &[full, at.get_type()], &args)?;
        call.set_alignment_attribute(AttributeLoc::Param(0), align);
        let bits = call.try_as_basic_value().basic().ok_or_else(|| Fault::emitter("masked gather"))?;
        self.widened(dtype, ty.dtype, bits)
    }

    /// Lanes are written in ascending order, as the intrinsic promises.
    pub fn scatter(&self, mem: Mem, index: Val, value: Val, mask: Option<Val>) -> Emit<()> {
        let (base, dtype) = self.region(mem)?;
        let element = self.build.stored(dtype)?;
        let ty = self.ty(value)?;
        let bits = self.narrowed(ty.dtype, dtype, self.val(value)?)?;
        if let Value::IntValue(index) = self.val(index)? {
            let at = self.build.offset(element, base, index)?;
            return match mask {
                None => self.build.b.build_store(at, bits).map(|_| ()).map_err(Fault::from),
                Some(mask) => self.store_if(self.int(mask)?, at, bits),
            };
        }
        let at = self.pointers(base, element, self.val(index)?)?;
        let args = [bits, at, self.mask(mask, ty.cols)?];
        let types = [bits.get_type(), at.get_type()];
        let call = self.build.call("llvm.masked.scatter", &types, &args)?;
        call.set_alignment_attribute(AttributeLoc::Param(1), access_align(0, dtype));
        Ok(())
    }

    /// What was loaded, as a register type.
    fn widened(&self, stored: DType, to: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let element = b.element(to)?;
        match (stored, to) {
            (DType::Bool, DType::Bool) => b.icmp(IntPredicate::NE, v, b.int_like(v.get_type(), 0)),
            (DType::F16, DType::F32) => b.cast(Op::FPExt, v, element),
            (DType::F16, DType::I32 | DType::U32) => {
                let bits = b.bits_as(v, b.cx.i16_type().into())?;
                b.cast(Op::ZExt, bits, element)
            }
            (s, t) if s != DType::Bool && s.bytes() == t.bytes() => b.bits_as(v, element),
            (s, DType::I32 | DType::U32) if s.bytes() < 4 => {
                b.cast(if s.is_signed_int() { Op::SExt } else { Op::ZExt }, v, element)
            }
            (s, t) => Err(Fault::invalid(format!("a load of {s} as {t}"))),
        }
    }

    /// A register value as what is stored.
    fn narrowed(&self, from: DType, stored: DType, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        let b = &self.build;
        let element = b.stored(stored)?;
        match (from, stored) {
            (DType::I32 | DType::U32, DType::U4 | DType::U2) => {
                let mask = b.int_like(v.get_type(), (1 << stored.bits()) - 1);
                b.cast(Op::Trunc, b.bin(Op::And, v, mask)?, element)
            }
            (DType::I32 | DType::U32, DType::I4 | DType::I2) => {
                // the byte holds the sign-extended number
                let unused = b.int_like(v.get_type(), 32 - i128::from(stored.bits()));
                let upper = b.bin(Op::Shl, v, unused)?;
                b.cast(Op::Trunc, b.bin(Op::AShr, upper, unused)?, element)
            }
            (DType::Bool, DType::Bool) => b.cast(Op::ZExt, v, element),
            (DType::F32, DType::F16) => b.cast(Op::FPTrunc, v, element),
            (DType::I32 | DType::U32, DType::F16) => {
                let bits = b.cast(Op::Trunc, v, b.cx.i16_type().into())?;
                b.bits_as(bits, element)
            }
            (f, s) if f != DType::Bool && f.bytes() == s.bytes() => b.bits_as(v, element),
            (DType::I32 | DType::U32, s) if s.bytes() < 4 && s != DType::Bool => {
                b.cast(Op::Trunc, v, element)
            }
            (f, s) => Err(Fault::invalid(format!("a store of {f} as {s}"))),
        }
    }
}

/// Bytes that an access is known to be aligned to.
fn access_align(align: u32, dtype: DType) -> u32 {
    let element = dtype.bytes().max(1) as u32;
    let power = if align == 0 { element } else { 1 << align.trailing_zeros() };
    power.clamp(element, MAX_ALIGN)
}
