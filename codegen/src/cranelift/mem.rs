//! Loads, stores, gathers and scatters, with the widening and narrowing of stored types.

use super::func::Emitter;
use super::vals::{Parts, part_type, shape};
use crate::Fault;
use crate::error::Emit;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{ConstantData, InstBuilder, MemFlagsData, Value, types};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Addr, Mem, Stride, Ty, Val};
use smallvec::SmallVec;

/// A place in memory: base plus constant bytes.
#[derive(Clone, Copy)]
struct Place {
    base: Value,
    offset: i32,
}

impl Place {
    /// The neighbour `elems` further on. Offsets stay small: see [`Emitter::place`].
    fn next(self, elems: u32, dtype: DType) -> Place {
        Place { offset: self.offset + (elems * dtype.bytes() as u32) as i32, ..self }
    }
}

/// Nothing traps; vectors may be unaligned.
fn access() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Types in memory that a register type can be loaded from and stored to.
fn fits(stored: DType, value: DType) -> Emit<()> {
    let ok = match (stored, value) {
        (DType::Bool, v) => v == DType::Bool,
        (_, DType::Bool) => false,
        (s, v) if s.bytes() == v.bytes() => true,
        (s, DType::I32 | DType::U32) => s.bytes() < 4,
        _ => false,
    };
    if ok { Ok(()) } else { Err(Fault::invalid(format!("{value} of memory of {stored}"))) }
}

impl Emitter<'_> {
    fn region(&self, mem: Mem) -> Emit<(Value, DType)> {
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

    /// `base + index` elements, in a form that addressing modes absorb.
    fn element(&mut self, base: Value, index: Value, dtype: DType) -> Value {
        let shift = dtype.bytes().trailing_zeros();
        let bytes = if shift == 0 { index } else { self.b.ins().ishl_imm_u(index, i64::from(shift)) };
        self.b.ins().iadd(base, bytes)
    }

    fn place(&mut self, addr: &Addr) -> Emit<(Place, DType)> {
        let (base, dtype) = self.region(addr.mem)?;
        let bytes = addr.disp.checked_mul(dtype.bytes() as i64);
        let bytes = bytes.ok_or_else(|| Fault::invalid("a displacement beyond the address space"))?;
        let base = match self.known_int(addr.index) {
            Some(0) => base,
            _ => {
                let index = self.scalar(addr.index)?;
                self.element(base, index, dtype)
            }
        };
        // room is left for the lanes of one vector
        if let Ok(offset) = i32::try_from(bytes)
            && offset.checked_add(1 << 16).is_some()
        {
            return Ok((Place { base, offset }, dtype));
        }
        let base = self.b.ins().iadd_imm_s(base, bytes);
        Ok((Place { base, offset: 0 }, dtype))
    }

    /// One element, as the lane type of registers of type `to` (a mask's: all zeros or all ones).
    fn load_lane(&mut self, at: Place, stored: DType, to: DType) -> Value {
        let (p, o) = (at.base, at.offset);
        let ins = self.b.ins();
        match (stored, to) {
            (_, DType::F32) => ins.load(types::F32, access(), p, o),
            (_, DType::F64) => ins.load(types::F64, access(), p, o),
            (DType::Bool, _) => {
                let byte = ins.load(types::I8, access(), p, o);
                let zero = self.b.ins().iconst(types::I8, 0);
                let bit = self.icmp(IntCC::NotEqual, byte, zero);
                let wide = self.b.ins().uextend(types::I32, bit);
                self.b.ins().ineg(wide)
            }
            (s, _) => match (s.bytes(), s.is_signed_int()) {
                (8, _) => ins.load(types::I64, access(), p, o),
                (4, _) => ins.load(types::I32, access(), p, o),
                (2, true) => ins.sload16(types::I32, access(), p, o),
                (2, false) => ins.uload16(types::I32, access(), p, o),
                (_, true) => ins.sload8(types::I32, access(), p, o),
                (_, false) => ins.uload8(types::I32, access(), p, o),
            },
        }
    }

    /// The lane as a bool scalar where it is one of a mask.
    fn lane_to_scalar(&mut self, dtype: DType, lane: Value) -> Value {
        if dtype != DType::Bool {
            return lane;
        }
        let zero = self.b.ins().iconst(types::I32, 0);
        self.icmp(IntCC::NotEqual, lane, zero)
    }

    fn store_lane(&mut self, at: Place, stored: DType, element: Value) {
        let (p, o) = (at.base, at.offset);
        let wide = self.b.func.dfg.value_type(element) == types::I32;
        let ins = self.b.ins();
        match stored.bytes() {
            1 if wide => ins.istore8(access(), element, p, o),
            2 if wide => ins.istore16(access(), element, p, o),
            _ => ins.store(access(), element, p, o),
        };
    }

    pub fn load(&mut self, ty: Ty, addr: &Addr) -> Emit<Parts> {
        let (at, stored) = self.place(addr)?;
        fits(stored, ty.dtype)?;
        if ty.is_scalar() {
            let Some(valid) = addr.cols_valid else { return Ok(self.load_scalar(at, stored, ty.dtype)) };
            let valid = self.scalar(valid)?;
            return self.load_scalar_if(valid, at, stored, ty);
        }
        if addr.col != Stride::Const(1) {
            return Err(Fault::invalid(format!("a load of {} lanes at {addr:?}", ty.cols)));
        }
        let Some(valid) = addr.cols_valid else { return self.load_full(at, stored, ty) };
        if let Some(n) = self.known_int(valid) {
            return self.load_first(at, stored, ty, n.clamp(0, i64::from(ty.cols)) as u32);
        }
        // All lanes at once where they are all valid; else one by one until they are not.
        let valid = self.scalar(valid)?;
        let (part, n) = shape(ty)?;
        let (done, result) = self.join(part, n);
        let (full, partial) = (self.b.create_block(), self.b.create_block());
        let is_full = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, valid, i64::from(ty.cols));
        self.b.ins().brif(is_full, full, &[], partial, &[]);
        self.go_to(full);
        let all = self.load_full(at, stored, ty)?;
        self.jump(done, &all);
        self.go_to(partial);
        let mut v = self.constant(ty, Scalar::Int(0))?;
        for lane in 0..ty.cols - 1 {
            let more = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, valid, i64::from(lane));
            self.go_on_if(more, done, &v);
            let element = self.load_lane(at.next(lane, stored), stored, ty.dtype);
            self.set_lane(ty.dtype, &mut v, lane, element)?;
        }
        self.jump(done, &v);
        self.go_to(done);
        Ok(result)
    }

    fn load_scalar(&mut self, at: Place, stored: DType, dtype: DType) -> Parts {
        let lane = self.load_lane(at, stored, dtype);
        SmallVec::from_elem(self.lane_to_scalar(dtype, lane), 1)
    }

    /// A scalar load that happens only where `cond` is not 0; 0 elsewhere.
    fn load_scalar_if(&mut self, cond: Value, at: Place, stored: DType, ty: Ty) -> Emit<Parts> {
        let zero = self.constant(ty, Scalar::Int(0))?;
        let (part, n) = shape(ty)?;
        let (join, result) = self.join(part, n);
        self.go_on_if(cond, join, &zero);
        let v = self.load_scalar(at, stored, ty.dtype);
        self.jump(join, &v);
        self.go_to(join);
        Ok(result)
    }

    /// A scalar store that happens only where `cond` is not 0.
    fn store_scalar_if(&mut self, cond: Value, at: Place, stored: DType, element: Value) {
        let join = self.b.create_block();
        self.go_on_if(cond, join, &Parts::new());
        self.store_lane(at, stored, element);
        self.jump(join, &Parts::new());
        self.go_to(join);
    }

    /// The first `n` lanes; zeros behind them.
    fn load_first(&mut self, at: Place, stored: DType, ty: Ty, n: u32) -> Emit<Parts> {
        if n == ty.cols {
            return self.load_full(at, stored, ty);
        }
        let mut v = self.constant(ty, Scalar::Int(0))?;
        for lane in 0..n {
            let element = self.load_lane(at.next(lane, stored), stored, ty.dtype);
            self.set_lane(ty.dtype, &mut v, lane, element)?;
        }
        Ok(v)
    }

    fn load_full(&mut self, at: Place, stored: DType, ty: Ty) -> Emit<Parts> {
        let (part, n) = shape(ty)?;
        let per = part.lane_count();
        let mut parts = Parts::new();
        for i in 0..n as u32 {
            let Place { base, offset } = at.next(i * per, stored);
            let signed = stored.is_signed_int();
            let ins = self.b.ins();
            parts.push(match stored.bytes() {
                2 if signed => ins.sload16x4(access(), base, offset),
                2 => ins.uload16x4(access(), base, offset),
                1 => {
                    // four bytes, widened twice
                    let bytes = ins.load(types::I32, access(), base, offset);
                    let v = self.b.ins().scalar_to_vector(types::I32X4, bytes);
                    let v = self.bits_as(types::I8X16, v);
                    match signed {
                        true => {
                            let v = self.b.ins().swiden_low(v);
                            self.b.ins().swiden_low(v)
                        }
                        false => {
                            let v = self.b.ins().uwiden_low(v);
                            self.b.ins().uwiden_low(v)
                        }
                    }
                }
                _ => ins.load(part, access(), base, offset),
            });
        }
        if stored == DType::Bool {
            let zero = self.constant(ty, Scalar::Int(0))?;
            return Ok(parts.iter().map(|v| self.icmp(IntCC::NotEqual, *v, zero[0])).collect());
        }
        Ok(parts)
    }

    pub fn store(&mut self, addr: &Addr, value: Val) -> Emit<()> {
        let ty = self.ty(value)?;
        let (at, stored) = self.place(addr)?;
        fits(stored, ty.dtype)?;
        let v = self.val(value)?;
        let v = self.storable(ty, stored, v)?;
        if ty.is_scalar() {
            match addr.cols_valid {
                None => self.store_lane(at, stored, v[0]),
                Some(valid) => {
                    let valid = self.scalar(valid)?;
                    self.store_scalar_if(valid, at, stored, v[0]);
                }
            }
            return Ok(());
        }
        if addr.col != Stride::Const(1) {
            return Err(Fault::invalid(format!("a store of {} lanes at {addr:?}", ty.cols)));
        }
        let Some(valid) = addr.cols_valid else { return self.store_full(at, stored, ty, &v) };
        if let Some(n) = self.known_int(valid) {
            if n >= i64::from(ty.cols) {
                return self.store_full(at, stored, ty, &v);
            }
            for lane in 0..n.max(0) as u32 {
                self.store_one_of(at, stored, ty, &v, lane)?;
            }
            return Ok(());
        }
        let valid = self.scalar(valid)?;
        let (full, partial, done) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let is_full = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, valid, i64::from(ty.cols));
        self.b.ins().brif(is_full, full, &[], partial, &[]);
        self.go_to(full);
        self.store_full(at, stored, ty, &v)?;
        self.jump(done, &Parts::new());
        self.go_to(partial);
        for lane in 0..ty.cols - 1 {
            let more = self.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, valid, i64::from(lane));
            self.go_on_if(more, done, &Parts::new());
            self.store_one_of(at, stored, ty, &v, lane)?;
        }
        self.jump(done, &Parts::new());
        self.go_to(done);
        Ok(())
    }

    /// Masks as numbers 0 and 1; numbers of less than a byte as the byte that holds them; others as they are.
    fn storable(&mut self, ty: Ty, stored: DType, v: Parts) -> Emit<Parts> {
        if ty.dtype == DType::Bool {
            return Ok(if ty.is_scalar() { v } else { v.iter().map(|v| self.b.ins().ineg(*v)).collect() });
        }
        let unused = 32 - i64::from(stored.bits());
        let mut parts = Parts::new();
        for v in v {
            parts.push(match stored {
                DType::I4 | DType::I2 => {
                    let count = self.b.ins().iconst(types::I32, unused);
                    let upper = self.b.ins().ishl(v, count);
                    self.b.ins().sshr(upper, count)
                }
                DType::U4 | DType::U2 => {
                    let count = self.b.ins().iconst(types::I32, unused);
                    let upper = self.b.ins().ishl(v, count);
                    self.b.ins().ushr(upper, count)
                }
                _ => v,
            });
        }
        Ok(parts)
    }

    fn store_one_of(&mut self, at: Place, stored: DType, ty: Ty, v: &Parts, lane: u32) -> Emit<()> {
        // a storable mask is a vector of integers
        let ty = if ty.dtype == DType::Bool { ty.with(DType::I32) } else { ty };
        let element = self.lane(ty, v, lane)?;
        self.store_lane(at.next(lane, stored), stored, element);
        Ok(())
    }

    fn store_full(&mut self, at: Place, stored: DType, ty: Ty, v: &Parts) -> Emit<()> {
        let per = part_type(ty.dtype)?.lane_count();
        for (i, v) in v.iter().enumerate() {
            let Place { base, offset } = at.next(i as u32 * per, stored);
            match stored.bytes() {
                size @ (1 | 2) => {
                    // the low bytes of the four lanes together in the first ones
                    let keep = |i: usize| if i < 4 * size { (i / size * 4 + i % size) as u8 } else { 0 };
                    let order: Vec<u8> = (0..16).map(keep).collect();
                    let order = self.b.func.dfg.immediates.push(ConstantData::from(order));
                    let bytes = self.bits_as(types::I8X16, *v);
                    let packed = self.b.ins().shuffle(bytes, bytes, order);
                    let whole = if size == 1 { types::F32X4 } else { types::F64X2 };
                    let packed = self.bits_as(whole, packed);
                    let packed = self.b.ins().extractlane(packed, 0);
                    self.b.ins().store(access(), packed, base, offset);
                }
                _ => {
                    self.b.ins().store(access(), *v, base, offset);
                }
            }
        }
        Ok(())
    }

    pub fn gather(&mut self, ty: Ty, mem: Mem, index: Val, mask: Option<Val>) -> Emit<Parts> {
        let (base, stored) = self.region(mem)?;
        fits(stored, ty.dtype)?;
        let (index_ty, index) = (self.ty(index)?, self.val(index)?);
        if ty.is_scalar() {
            let at = Place { base: self.element(base, index[0], stored), offset: 0 };
            let Some(mask) = mask else { return Ok(self.load_scalar(at, stored, ty.dtype)) };
            let mask = self.scalar(mask)?;
            return self.load_scalar_if(mask, at, stored, ty);
        }
        let Some(mask) = mask else {
            let mut lanes = Vec::with_capacity(ty.cols as usize);
            for lane in 0..ty.cols {
                let at = self.lane_place(base, stored, index_ty, &index, lane)?;
                lanes.push(self.load_lane(at, stored, ty.dtype));
            }
            return self.vector_of(ty, &lanes);
        };
        let (mask_ty, mask) = (self.ty(mask)?, self.val(mask)?);
        let (part, n) = shape(ty)?;
        let mut v = self.constant(ty, Scalar::Int(0))?;
        for lane in 0..ty.cols {
            let wanted = self.lane(mask_ty, &mask, lane)?;
            let (join, joined) = self.join(part, n);
            self.go_on_if(wanted, join, &v);
            let at = self.lane_place(base, stored, index_ty, &index, lane)?;
            let element = self.load_lane(at, stored, ty.dtype);
            self.set_lane(ty.dtype, &mut v, lane, element)?;
            self.jump(join, &v);
            self.go_to(join);
            v = joined;
        }
        Ok(v)
    }

    fn lane_place(&mut self, base: Value, stored: DType, ty: Ty, index: &Parts, lane: u32) -> Emit<Place> {
        let index = self.lane(ty, index, lane)?;
        Ok(Place { base: self.element(base, index, stored), offset: 0 })
    }

    /// Lanes are written in ascending order.
    pub fn scatter(&mut self, mem: Mem, index: Val, value: Val, mask: Option<Val>) -> Emit<()> {
        let (base, stored) = self.region(mem)?;
        let (ty, v) = (self.ty(value)?, self.val(value)?);
        fits(stored, ty.dtype)?;
        let v = self.storable(ty, stored, v)?;
        let (index_ty, index) = (self.ty(index)?, self.val(index)?);
        if ty.is_scalar() {
            let at = Place { base: self.element(base, index[0], stored), offset: 0 };
            match mask {
                None => self.store_lane(at, stored, v[0]),
                Some(mask) => {
                    let mask = self.scalar(mask)?;
                    self.store_scalar_if(mask, at, stored, v[0]);
                }
            }
            return Ok(());
        }
        let mask = match mask {
            Some(m) => Some((self.ty(m)?, self.val(m)?)),
            None => None,
        };
        for lane in 0..ty.cols {
            let mut join = None;
            if let Some((mask_ty, mask)) = &mask {
                let wanted = self.lane(*mask_ty, mask, lane)?;
                let label = self.b.create_block();
                self.go_on_if(wanted, label, &Parts::new());
                join = Some(label);
            }
            let at = self.lane_place(base, stored, index_ty, &index, lane)?;
            let lanes = if ty.dtype == DType::Bool { ty.with(DType::I32) } else { ty };
            let element = self.lane(lanes, &v, lane)?;
            self.store_lane(at, stored, element);
            if let Some(label) = join {
                self.jump(label, &Parts::new());
                self.go_to(label);
            }
        }
        Ok(())
    }
}
