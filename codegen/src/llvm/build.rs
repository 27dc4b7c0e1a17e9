//! Instructions of LLVM IR on values of any shape: a scalar and a vector are built alike.

use crate::Fault;
use crate::error::Emit;
use inkwell::builder::{Builder, BuilderError};
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::Module;
use inkwell::types::{BasicTypeEnum, FloatType, IntType, VectorType};
use inkwell::values::{
    BasicValue, BasicValueEnum, CallSiteValue, InstructionOpcode, IntValue, PointerValue, VectorValue,
};
use inkwell::{FloatPredicate, IntPredicate};
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::Ty;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

pub(super) type Value<'ctx> = BasicValueEnum<'ctx>;
pub(super) type Type<'ctx> = BasicTypeEnum<'ctx>;

impl From<BuilderError> for Fault {
    fn from(e: BuilderError) -> Fault {
        Fault::emitter(e)
    }
}

/// A builder that does not care whether its operands are scalars or vectors.
pub(super) struct Build<'a, 'ctx> {
    pub cx: &'ctx Context,
    pub module: &'a Module<'ctx>,
    pub b: Builder<'ctx>,
    intrinsics: RefCell<HashMap<&'static str, Intrinsic>>,
}

/// Number of lanes of a vector, nothing for a scalar.
pub(super) fn lanes(ty: Type<'_>) -> Option<u32> {
    match ty {
        BasicTypeEnum::VectorType(v) => Some(v.get_size()),
        _ => None,
    }
}

impl<'a, 'ctx> Build<'a, 'ctx> {
    pub fn new(cx: &'ctx Context, module: &'a Module<'ctx>) -> Self {
        Build { cx, module, b: cx.create_builder(), intrinsics: RefCell::default() }
    }

    /// Type of one element in a register.
    pub fn element(&self, dtype: DType) -> Emit<Type<'ctx>> {
        Ok(match dtype {
            DType::F32 => self.cx.f32_type().into(),
            DType::F64 => self.cx.f64_type().into(),
            DType::I32 | DType::U32 => self.cx.i32_type().into(),
            DType::I64 | DType::U64 => self.cx.i64_type().into(),
            DType::Bool => self.cx.bool_type().into(),
            other => return Err(Fault::invalid(format!("a value of type {other}"))),
        })
    }

    /// Type of one element in memory. Types without arithmetic of their own are plain bits.
    pub fn stored(&self, dtype: DType) -> Emit<Type<'ctx>> {
        Ok(match dtype {
            DType::F32 => self.cx.f32_type().into(),
            DType::F64 => self.cx.f64_type().into(),
            DType::F16 => self.cx.f16_type().into(),
            other => match other.bytes() {
                1 => self.cx.i8_type().into(),
                2 => self.cx.i16_type().into(),
                4 => self.cx.i32_type().into(),
                8 => self.cx.i64_type().into(),
                _ => return Err(Fault::invalid(format!("memory of type {other}"))),
            },
        })
    }

    pub fn ty(&self, ty: Ty) -> Emit<Type<'ctx>> {
        let element = self.element(ty.dtype)?;
        match (ty.rows, ty.cols) {
            (1, 1) => Ok(element),
            (1, cols) if cols > 1 => Ok(vector(element, cols).into()),
            (rows, cols) => Err(Fault::invalid(format!("a value of {rows} x {cols}"))),
        }
    }

    pub fn i64(&self, x: i64) -> IntValue<'ctx> {
        self.cx.i64_type().const_int(x as u64, true)
    }

    pub fn i32(&self, x: u32) -> IntValue<'ctx> {
        self.cx.i32_type().const_int(u64::from(x), false)
    }

    /// Every element is `x`, converted to the type exactly as the text of a constant would be.
    pub fn constant(&self, ty: Type<'ctx>, x: Scalar) -> Value<'ctx> {
        match ty {
            BasicTypeEnum::VectorType(v) => {
                let element = self.constant(v.get_element_type(), x);
                const_splat(element, v.get_size())
            }
            BasicTypeEnum::FloatType(f) => float_constant(f, x.as_f64()),
            BasicTypeEnum::IntType(i) => int_constant(i, x.as_int()),
            other => other.const_zero(),
        }
    }

    pub fn int_like(&self, ty: Type<'ctx>, x: i128) -> Value<'ctx> {
        self.constant(ty, Scalar::Int(x))
    }

    pub fn bin(&self, op: InstructionOpcode, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        if a.get_type() != b.get_type() {
            return Err(Fault::invalid(format!(
                "operands of {op:?} differ: {} and {}",
                a.get_type(),
                b.get_type()
            )));
        }
        Ok(self.b.build_binop(op, a, b, "")?)
    }

    /// Converts by `op`; a vector keeps its lanes.
    pub fn cast(&self, op: InstructionOpcode, v: Value<'ctx>, element: Type<'ctx>) -> Emit<Value<'ctx>> {
        let to = with_lanes(element, lanes(v.get_type()));
        if v.get_type() == to {
            return Ok(v);
        }
        Ok(self.b.build_cast(op, v, to, "")?)
    }

    /// The same bits as another element type of equal width.
    pub fn bits_as(&self, v: Value<'ctx>, element: Type<'ctx>) -> Emit<Value<'ctx>> {
        self.cast(InstructionOpcode::BitCast, v, element)
    }

    /// Truncates or extends integers of `from` bits to `to` bits.
    pub fn resize(
        &self,
        signed: bool,
        from: usize,
        to: usize,
        v: Value<'ctx>,
        element: Type<'ctx>,
    ) -> Emit<Value<'ctx>> {
        let op = match to.cmp(&from) {
            Ordering::Less => InstructionOpcode::Trunc,
            Ordering::Equal => InstructionOpcode::BitCast,
            Ordering::Greater if signed => InstructionOpcode::SExt,
            Ordering::Greater => InstructionOpcode::ZExt,
        };
        self.cast(op, v, element)
    }

    pub fn icmp(&self, p: IntPredicate, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        match (a, b) {
            (Value::IntValue(a), Value::IntValue(b)) => Ok(self.b.build_int_compare(p, a, b, "")?.into()),
            (Value::VectorValue(a), Value::VectorValue(b)) => {
                Ok(self.b.build_int_compare(p, a, b, "")?.into())
            }
            _ => Err(Fault::invalid("operands of a comparison differ")),
        }
    }

    pub fn fcmp(&self, p: FloatPredicate, a: Value<'ctx>, b: Value<'ctx>) -> Emit<Value<'ctx>> {
        match (a, b) {
            (Value::FloatValue(a), Value::FloatValue(b)) => {
                Ok(self.b.build_float_compare(p, a, b, "")?.into())
            }
            (Value::VectorValue(a), Value::VectorValue(b)) => {
                Ok(self.b.build_float_compare(p, a, b, "")?.into())
            }
            _ => Err(Fault::invalid("operands of a comparison differ")),
        }
    }

    pub fn select(&self, mask: Value<'ctx>, then: Value<'ctx>, otherwise: Value<'ctx>) -> Emit<Value<'ctx>> {
        if then.get_type() != otherwise.get_type() {
            return Err(Fault::invalid("arms of a select differ"));
        }
        match mask {
            Value::IntValue(m) => Ok(self.b.build_select(m, then, otherwise, "")?),
            Value::VectorValue(m) => Ok(self.b.build_select(m, then, otherwise, "")?),
            _ => Err(Fault::invalid("the mask of a select is not boolean")),
        }
    }

    pub fn fneg(&self, v: Value<'ctx>) -> Emit<Value<'ctx>> {
        match v {
            Value::FloatValue(v) => Ok(self.b.build_float_neg(v, "")?.into()),
            Value::VectorValue(v) => Ok(self.b.build_float_neg(v, "")?.into()),
            _ => Err(Fault::invalid("negation of a value that is no float")),
        }
    }

    /// Calls an intrinsic; `types` select the overload.
    pub fn call(
        &self,
        name: &'static str,
        types: &[Type<'ctx>],
        args: &[Value<'ctx>],
    ) -> Emit<CallSiteValue<'ctx>> {
        let missing = || Fault::emitter(format!("no intrinsic {name}"));
        let intrinsic = match self.intrinsics.borrow_mut().entry(name) {
            std::collections::hash_map::Entry::Occupied(e) => *e.get(),
            std::collections::hash_map::Entry::Vacant(e) => {
                *e.insert(Intrinsic::find(name).ok_or_else(missing)?)
            }
        };
        let function = intrinsic.get_declaration(self.module, types).ok_or_else(missing)?;
        let args: Vec<_> = args.iter().map(|a| (*a).into()).collect();
        Ok(self.b.build_call(function, &args, "")?)
    }

    /// Calls an intrinsic that answers a value.
    pub fn value_of(
        &self,
        name: &'static str,
        types: &[Type<'ctx>],
        args: &[Value<'ctx>],
    ) -> Emit<Value<'ctx>> {
        self.call(name, types, args)?
            .try_as_basic_value()
            .basic()
            .ok_or_else(|| Fault::emitter(format!("intrinsic {name} answers nothing")))
    }

    /// An intrinsic overloaded on the type of its operands alone.
    pub fn math(&self, name: &'static str, args: &[Value<'ctx>]) -> Emit<Value<'ctx>> {
        self.value_of(name, &[args[0].get_type()], args)
    }

    pub fn splat(&self, v: Value<'ctx>, lanes: u32) -> Emit<Value<'ctx>> {
        if lanes == 1 || matches!(v, Value::VectorValue(_)) {
            return Ok(v);
        }
        if is_constant(v) {
            return Ok(const_splat(v, lanes));
        }
        let ty = vector(v.get_type(), lanes);
        let poison = ty.get_poison();
        let first = self.b.build_insert_element(poison, v, self.i32(0), "")?;
        let zeros = vector(self.cx.i32_type().into(), lanes).const_zero();
        Ok(self.b.build_shuffle_vector(first, poison, zeros, "")?.into())
    }

    pub fn shuffle(&self, a: VectorValue<'ctx>, b: VectorValue<'ctx>, lanes: &[u32]) -> Emit<Value<'ctx>> {
        let mask: Vec<_> = lanes.iter().map(|l| self.i32(*l)).collect();
        Ok(self.b.build_shuffle_vector(a, b, VectorType::const_vector(&mask), "")?.into())
    }

    pub fn extract(&self, v: Value<'ctx>, lane: u32) -> Emit<Value<'ctx>> {
        match v {
            Value::VectorValue(v) => Ok(self.b.build_extract_element(v, self.i32(lane), "")?),
            scalar if lane == 0 => Ok(scalar),
            _ => Err(Fault::invalid(format!("lane {lane} of a scalar"))),
        }
    }

    /// 0, 1, 2, ... as integers of the element type.
    pub fn iota(&self, element: IntType<'ctx>, lanes: u32) -> Value<'ctx> {
        let values: Vec<_> = (0..lanes).map(|l| element.const_int(u64::from(l), false)).collect();
        if lanes == 1 { values[0].into() } else { VectorType::const_vector(&values).into() }
    }

    /// `ptr + index` elements. All our addresses lie inside the buffer they start from.
    pub fn offset(
        &self,
        element: Type<'ctx>,
        ptr: PointerValue<'ctx>,
        index: IntValue<'ctx>,
    ) -> Emit<PointerValue<'ctx>> {
        if index.is_const() && index.get_zero_extended_constant() == Some(0) {
            return Ok(ptr);
        }
        // SAFETY: building an address has no effect; that the access made through it is in bounds
        // is the contract of loop IR, which the verifier and the Check statements uphold.
        Ok(unsafe { self.b.build_gep(element, ptr, &[index], "")? })
    }
}

pub(super) fn vector(element: Type<'_>, lanes: u32) -> VectorType<'_> {
    match element {
        BasicTypeEnum::FloatType(t) => t.vec_type(lanes),
        BasicTypeEnum::PointerType(t) => t.vec_type(lanes),
        BasicTypeEnum::VectorType(t) => t,
        other => other.into_int_type().vec_type(lanes),
    }
}

pub(super) fn with_lanes(element: Type<'_>, lanes: Option<u32>) -> Type<'_> {
    match lanes {
        Some(n) => vector(element, n).into(),
        None => element,
    }
}

fn const_splat(v: Value<'_>, lanes: u32) -> Value<'_> {
    let n = lanes as usize;
    match v {
        Value::IntValue(v) => VectorType::const_vector(&vec![v; n]).into(),
        Value::FloatValue(v) => VectorType::const_vector(&vec![v; n]).into(),
        other => other,
    }
}

pub(super) fn is_constant(v: Value<'_>) -> bool {
    match v {
        Value::IntValue(v) => v.is_const(),
        Value::FloatValue(v) => v.is_const(),
        Value::VectorValue(v) => v.is_const(),
        _ => false,
    }
}

/// Integers wrap to the width of the type.
fn int_constant(ty: IntType<'_>, x: i128) -> Value<'_> {
    ty.const_int(x as u64, false).into()
}

/// The nearest value of the type; NaN and infinity keep their kind.
fn float_constant(ty: FloatType<'_>, x: f64) -> Value<'_> {
    ty.const_float(x).as_basic_value_enum()
}
