//! Values of machine form as CLIF values.
//!
//! A vector of L lanes (a multiple of 4) is a list of 128-bit registers: L / 4 of 32-bit elements, L / 2 of 64-bit
//! elements. A mask is held as 32-bit elements of all zeros or all ones. A bool scalar is an i8, 0 or 1.

use super::func::Emitter;
use crate::Fault;
use crate::error::Emit;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::Ty;
use smallvec::SmallVec;

/// The registers of one value: one for a scalar.
pub(super) type Parts = SmallVec<[Value; 4]>;

/// Type of a scalar in a register.
pub(super) fn scalar_type(dtype: DType) -> Emit<Type> {
    Ok(match dtype {
        DType::F32 => types::F32,
        DType::F64 => types::F64,
        DType::I32 | DType::U32 => types::I32,
        DType::I64 | DType::U64 => types::I64,
        DType::Bool => types::I8,
        other => return Err(Fault::invalid(format!("a value of type {other}"))),
    })
}

/// Type of one register of a vector.
pub(super) fn part_type(dtype: DType) -> Emit<Type> {
    Ok(match dtype {
        DType::F32 => types::F32X4,
        DType::F64 => types::F64X2,
        DType::I64 | DType::U64 => types::I64X2,
        DType::I32 | DType::U32 | DType::Bool => types::I32X4,
        other => return Err(Fault::invalid(format!("a vector of type {other}"))),
    })
}

/// Registers that a value takes, and the type of each.
pub(super) fn shape(ty: Ty) -> Emit<(Type, usize)> {
    if ty.is_scalar() {
        return Ok((scalar_type(ty.dtype)?, 1));
    }
    let part = part_type(ty.dtype)?;
    if ty.rows != 1 || !ty.cols.is_multiple_of(4) {
        return Err(Fault::invalid(format!("a value of {} x {}", ty.rows, ty.cols)));
    }
    Ok((part, (ty.cols / part.lane_count()) as usize))
}

/// Bit casts between vectors state which end the lanes are counted from.
pub(super) fn lane_order() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

impl Emitter<'_> {
    /// A constant of any type.
    pub fn constant(&mut self, ty: Ty, x: Scalar) -> Emit<Parts> {
        let (part, n) = shape(ty)?;
        let value = if ty.is_scalar() {
            self.scalar_constant(ty.dtype, x)?
        } else {
            let bytes: Vec<u8> = match ty.dtype {
                DType::F32 => (x.as_f64() as f32).to_le_bytes().repeat(4),
                DType::F64 => x.as_f64().to_le_bytes().repeat(2),
                DType::Bool => vec![if x.as_int() != 0 { 0xff } else { 0 }; 16],
                d if d.bytes() == 8 => (x.as_int() as i64).to_le_bytes().repeat(2),
                _ => (x.as_int() as i32).to_le_bytes().repeat(4),
            };
            self.vector_constant(part, bytes)
        };
        Ok(SmallVec::from_elem(value, n))
    }

    fn scalar_constant(&mut self, dtype: DType, x: Scalar) -> Emit<Value> {
        let ins = self.b.ins();
        Ok(match dtype {
            DType::F32 => ins.f32const(x.as_f64() as f32),
            DType::F64 => ins.f64const(x.as_f64()),
            DType::Bool => ins.iconst(types::I8, i64::from(x.as_int() != 0)),
            // immediates of 32 bits are zero-extended
            d if d.bytes() == 4 => ins.iconst(types::I32, i64::from(x.as_int() as u32)),
            d => ins.iconst(scalar_type(d)?, x.as_int() as i64),
        })
    }

    pub fn vector_constant(&mut self, ty: Type, bytes: Vec<u8>) -> Value {
        let handle = self.b.func.dfg.constants.insert(ConstantData::from(bytes));
        self.b.ins().vconst(ty, handle)
    }

    pub fn int64(&mut self, x: i64) -> Value {
        self.b.ins().iconst(types::I64, x)
    }

    /// The same bits as another type of equal size.
    pub fn bits_as(&mut self, ty: Type, v: Value) -> Value {
        if self.b.func.dfg.value_type(v) == ty {
            return v;
        }
        let order = if ty.is_vector() { lane_order() } else { MemFlagsData::new() };
        self.b.ins().bitcast(ty, order, v)
    }

    /// Element `lane` of a vector as a scalar (a mask's as bool).
    pub fn lane(&mut self, ty: Ty, v: &Parts, lane: u32) -> Emit<Value> {
        let per = part_type(ty.dtype)?.lane_count();
        let part = v.get((lane / per) as usize).copied();
        let part = part.ok_or_else(|| Fault::invalid(format!("lane {lane} of {} lanes", ty.cols)))?;
        let element = self.b.ins().extractlane(part, (lane % per) as u8);
        if ty.dtype != DType::Bool {
            return Ok(element);
        }
        let zero = self.b.ins().iconst(types::I32, 0);
        Ok(self.b.ins().icmp(IntCC::NotEqual, element, zero))
    }

    /// Replaces element `lane`, given as the lane type of the registers.
    pub fn set_lane(&mut self, dtype: DType, v: &mut Parts, lane: u32, element: Value) -> Emit<()> {
        let per = part_type(dtype)?.lane_count();
        let slot = v.get_mut((lane / per) as usize);
        let slot = slot.ok_or_else(|| Fault::invalid(format!("lane {lane} of a shorter vector")))?;
        *slot = self.b.ins().insertlane(*slot, element, (lane % per) as u8);
        Ok(())
    }

    /// A vector of scalars of the registers' lane type.
    pub fn vector_of(&mut self, ty: Ty, elements: &[Value]) -> Emit<Parts> {
        let (part, _) = shape(ty)?;
        let mut parts = Parts::new();
        for group in elements.chunks(part.lane_count() as usize) {
            let mut v = self.b.ins().scalar_to_vector(part, group[0]);
            for (i, element) in group.iter().enumerate().skip(1) {
                v = self.b.ins().insertlane(v, *element, i as u8);
            }
            parts.push(v);
        }
        Ok(parts)
    }

    /// Applies a function of scalars to each lane.
    pub fn by_lane(
        &mut self,
        ty: Ty,
        operands: &[(Ty, &Parts)],
        f: &mut dyn FnMut(&mut Self, &[Value]) -> Emit<Value>,
    ) -> Emit<Parts> {
        let mut results = Vec::with_capacity(ty.cols as usize);
        for lane in 0..ty.cols {
            let mut elements: SmallVec<[Value; 2]> = SmallVec::new();
            for (from, v) in operands {
                elements.push(if ty.is_scalar() { v[0] } else { self.lane(*from, v, lane)? });
            }
            results.push(f(self, &elements)?);
        }
        if ty.is_scalar() { Ok(Parts::from_slice(&results)) } else { self.vector_of(ty, &results) }
    }

    /// A scalar in every lane.
    pub fn splat(&mut self, ty: Ty, v: Value) -> Emit<Parts> {
        let (part, n) = shape(ty)?;
        let v = match ty.dtype {
            // 0 or 1 becomes all zeros or all ones
            DType::Bool => {
                let wide = self.b.ins().uextend(types::I32, v);
                self.b.ins().ineg(wide)
            }
            _ => v,
        };
        let v = self.b.ins().splat(part, v);
        Ok(SmallVec::from_elem(v, n))
    }

    /// A mask in the width of `dtype`, part by part.
    pub fn mask_for(&mut self, dtype: DType, mask: &Parts) -> Parts {
        if dtype.bytes() < 8 {
            return mask.clone();
        }
        let mut wide = Parts::new();
        for m in mask {
            wide.push(self.b.ins().swiden_low(*m));
            wide.push(self.b.ins().swiden_high(*m));
        }
        wide
    }

    /// A mask of 64-bit elements as one of 32-bit elements.
    pub fn narrow_mask(&mut self, wide: &Parts) -> Parts {
        self.even_words(wide)
    }

    /// The lower halves of 64-bit elements.
    pub fn even_words(&mut self, wide: &Parts) -> Parts {
        let pick = [0, 2, 4, 6];
        wide.chunks(2).map(|pair| self.pick_words(pair[0], pair[1], pick)).collect()
    }

    /// A register of four 32-bit lanes out of the eight of two registers.
    pub fn pick_words(&mut self, a: Value, b: Value, lanes: [u32; 4]) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|l| (0..4).map(move |i| (4 * l + i) as u8)).collect();
        let order = self.b.func.dfg.immediates.push(ConstantData::from(bytes));
        let (a, b) = (self.bits_as(types::I8X16, a), self.bits_as(types::I8X16, b));
        let v = self.b.ins().shuffle(a, b, order);
        self.bits_as(types::I32X4, v)
    }

    pub fn icmp(&mut self, cc: IntCC, a: Value, b: Value) -> Value {
        self.b.ins().icmp(cc, a, b)
    }

    /// Comparisons "greater" are "less" with operands exchanged, which minimum and maximum
    /// instructions are recognised by.
    pub fn fcmp(&mut self, cc: FloatCC, a: Value, b: Value) -> Value {
        match cc {
            FloatCC::GreaterThan => self.b.ins().fcmp(FloatCC::LessThan, b, a),
            FloatCC::GreaterThanOrEqual => self.b.ins().fcmp(FloatCC::LessThanOrEqual, b, a),
            cc => self.b.ins().fcmp(cc, a, b),
        }
    }
}
