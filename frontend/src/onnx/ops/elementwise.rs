//! Elementwise operators: arithmetic, comparison, logic, casts.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};
use ir::{DType, Dim};

pub static OPS: &[Op] = &[
    op("Abs", 1, |cx| unary(cx, UnaryOp::Abs)),
    op("Acos", 7, |cx| unary(cx, UnaryOp::Acos)),
    op("Acosh", 9, |cx| unary(cx, UnaryOp::Acosh)),
    op("Add", 1, |cx| binary(cx, BinaryOp::Add)),
    op("And", 1, |cx| binary(cx, BinaryOp::And)),
    op("Asin", 7, |cx| unary(cx, UnaryOp::Asin)),
    op("Asinh", 9, |cx| unary(cx, UnaryOp::Asinh)),
    op("Atan", 7, |cx| unary(cx, UnaryOp::Atan)),
    op("Atanh", 9, |cx| unary(cx, UnaryOp::Atanh)),
    op("BitCast", 1, bit_cast),
    op("BitShift", 11, bit_shift),
    op("BitwiseAnd", 18, |cx| binary(cx, BinaryOp::And)),
    op("BitwiseNot", 18, |cx| unary(cx, UnaryOp::Not)),
    op("BitwiseOr", 18, |cx| binary(cx, BinaryOp::Or)),
    op("BitwiseXor", 18, |cx| binary(cx, BinaryOp::Xor)),
    op("Cast", 1, cast),
    op("CastLike", 15, cast_like),
    op("Ceil", 1, |cx| unary(cx, UnaryOp::Ceil)),
    op("Clip", 1, clip),
    op("Cos", 7, |cx| unary(cx, UnaryOp::Cos)),
    op("Cosh", 9, |cx| unary(cx, UnaryOp::Cosh)),
    op("Div", 1, |cx| binary(cx, BinaryOp::Div)),
    op("Equal", 1, equal),
    op("Erf", 9, |cx| unary(cx, UnaryOp::Erf)),
    op("Exp", 1, |cx| unary(cx, UnaryOp::Exp)),
    op("Floor", 1, |cx| unary(cx, UnaryOp::Floor)),
    op("Greater", 1, |cx| compare(cx, CmpOp::Gt)),
    op("GreaterOrEqual", 12, |cx| compare(cx, CmpOp::Ge)),
    op("Identity", 1, identity),
    op("IsInf", 10, is_inf),
    op("IsNaN", 9, is_nan),
    op("Less", 1, |cx| compare(cx, CmpOp::Lt)),
    op("LessOrEqual", 12, |cx| compare(cx, CmpOp::Le)),
    op("Log", 1, |cx| unary(cx, UnaryOp::Log)),
    op("Max", 1, |cx| variadic(cx, BinaryOp::Max)),
    op("Mean", 1, mean),
    op("Min", 1, |cx| variadic(cx, BinaryOp::Min)),
    op("Mod", 10, modulo),
    op("Mul", 1, |cx| binary(cx, BinaryOp::Mul)),
    op("Neg", 1, |cx| unary(cx, UnaryOp::Neg)),
    op("Not", 1, |cx| unary(cx, UnaryOp::Not)),
    op("Or", 1, |cx| binary(cx, BinaryOp::Or)),
    op("Pow", 1, pow),
    op("Reciprocal", 1, reciprocal),
    op("Relu", 1, relu),
    op("Round", 11, |cx| unary(cx, UnaryOp::RoundEven)),
    op("Sign", 9, sign),
    op("Sin", 7, |cx| unary(cx, UnaryOp::Sin)),
    op("Sinh", 9, |cx| unary(cx, UnaryOp::Sinh)),
    op("Sqrt", 1, |cx| unary(cx, UnaryOp::Sqrt)),
    op("Sub", 1, |cx| binary(cx, BinaryOp::Sub)),
    op("Sum", 1, |cx| variadic(cx, BinaryOp::Add)),
    op("Tan", 7, |cx| unary(cx, UnaryOp::Tan)),
    op("Tanh", 1, |cx| unary(cx, UnaryOp::Tanh)),
    op("Where", 9, where_),
    op("Xor", 1, |cx| binary(cx, BinaryOp::Xor)),
];

fn unary(cx: &mut NodeCx, f: UnaryOp) -> OpResult {
    let x = cx.input(0)?;
    Ok(cx.b.unary(f, x)?.into())
}

/// The two operands; before version 7 the second one is aligned by attributes.
fn operands(cx: &mut NodeCx) -> Result<(V, V), OpError> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    if cx.opset >= 7 || !cx.flag("broadcast", false)? {
        return Ok((a, b));
    }
    let Some(axis) = cx.attrs.int("axis")? else { return Ok((a, b)) };
    let axis = cx.axis(axis, cx.rank(a))?;
    let mut shape = cx.shape(b);
    let trailing = cx.rank(a).checked_sub(axis + shape.len()).ok_or_else(|| {
        OpError::invalid(
            Code::Shape,
            format!("an operand of rank {} does not fit at axis {axis}", shape.len()),
        )
    })?;
    shape.extend(vec![Dim::from(1); trailing]);
    Ok((a, cx.b.reshape(b, &shape)?))
}

fn binary(cx: &mut NodeCx, f: BinaryOp) -> OpResult {
    let (a, b) = operands(cx)?;
    Ok(cx.b.binary(f, a, b)?.into())
}

fn equal(cx: &mut NodeCx) -> OpResult {
    if cx.dtype(cx.input(0)?) == DType::String { super::strings::equal(cx) } else { compare(cx, CmpOp::Eq) }
}

fn compare(cx: &mut NodeCx, f: CmpOp) -> OpResult {
    let (a, b) = operands(cx)?;
    Ok(cx.b.cmp(f, a, b)?.into())
}

fn variadic(cx: &mut NodeCx, f: BinaryOp) -> OpResult {
    let all = cx.all_inputs()?;
    let Some((first, rest)) = all.split_first() else {
        return Err(OpError::invalid(Code::Input, "at least one input is needed"));
    };
    let mut out = *first;
    for v in rest {
        out = cx.b.binary(f, out, *v)?;
    }
    Ok(out.into())
}

fn mean(cx: &mut NodeCx) -> OpResult {
    let n = cx.input_count();
    let sum = variadic(cx, BinaryOp::Add)?;
    let Some(crate::onnx::cx::Val::Tensor(sum)) = sum.0.first() else { return Ok(sum) };
    let count = cx.like(*sum, n as f64)?;
    Ok(cx.b.div(*sum, count)?.into())
}

fn identity(cx: &mut NodeCx) -> OpResult {
    match cx.val(0) {
        Some(v) => Ok(v.clone().into()),
        None => Err(OpError::invalid(Code::Input, "input 0 is missing")),
    }
}

fn relu(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let zero = cx.like(x, 0.0)?;
    Ok(cx.b.max(x, zero)?.into())
}

fn reciprocal(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let one = cx.like(x, 1.0)?;
    Ok(cx.b.div(one, x)?.into())
}

/// -1, 0 or 1; NaN stays NaN.
fn sign(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (zero, one) = (cx.like(x, 0.0)?, cx.like(x, 1.0)?);
    let positive = cx.b.cmp(CmpOp::Gt, x, zero)?;
    if cx.dtype(x).is_unsigned_int() {
        return Ok(cx.b.select(positive, one, zero)?.into());
    }
    let minus = cx.like(x, -1.0)?;
    let negative = cx.b.cmp(CmpOp::Lt, x, zero)?;
    // neither: zero itself, or NaN
    let out = cx.b.select(negative, minus, x)?;
    Ok(cx.b.select(positive, one, out)?.into())
}

/// min(max(x, low), high); before version 11 the limits are attributes.
fn clip(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (low, high) = if cx.opset < 11 {
        let (lo, hi) = (cx.attrs.float("min")?, cx.attrs.float("max")?);
        (lo.map(|v| cx.like(x, v.into())).transpose()?, hi.map(|v| cx.like(x, v.into())).transpose()?)
    } else {
        (cx.opt(1)?, cx.opt(2)?)
    };
    let mut out = x;
    if let Some(low) = low {
        let low = cx.as_scalar(low)?;
        out = cx.b.max(out, low)?;
    }
    if let Some(high) = high {
        let high = cx.as_scalar(high)?;
        out = cx.b.min(out, high)?;
    }
    Ok(out.into())
}

/// The result has the type of the base; the exponent may have another one.
fn pow(cx: &mut NodeCx) -> OpResult {
    let (x, y) = operands(cx)?;
    let (tx, ty) = (cx.dtype(x), cx.dtype(y));
    if cx.const_f64(y) == Some(2.0) && cx.rank(y) <= cx.rank(x) {
        return Ok(cx.b.mul(x, x)?.into());
    }
    // two roundings; what underflows or overflows on the way does so in the end (narrow floats would lose more)
    if cx.const_f64(y) == Some(3.0) && cx.rank(y) <= cx.rank(x) && matches!(tx, DType::F32 | DType::F64) {
        let square = cx.b.mul(x, x)?;
        return Ok(cx.b.mul(square, x)?.into());
    }
    if tx == ty {
        return Ok(cx.b.pow(x, y)?.into());
    }
    if tx.is_float() || tx.is_int() && ty.is_int() {
        let y = cx.b.convert(y, tx)?;
        return Ok(cx.b.pow(x, y)?.into());
    }
    // an integer base with a fractional exponent
    let wide = cx.b.convert(x, DType::F64)?;
    let y = cx.b.convert(y, DType::F64)?;
    let p = cx.b.pow(wide, y)?;
    Ok(cx.b.convert(p, tx)?.into())
}

/// `fmod = 1` takes the sign of the dividend, 0 that of the divisor.
fn modulo(cx: &mut NodeCx) -> OpResult {
    let (x, y) = (cx.input(0)?, cx.input(1)?);
    let rem = cx.b.binary(BinaryOp::Rem, x, y)?;
    if cx.flag("fmod", false)? || cx.dtype(x).is_unsigned_int() {
        return Ok(rem.into());
    }
    let zero = cx.like(rem, 0.0)?;
    let nonzero = cx.b.cmp(CmpOp::Ne, rem, zero)?;
    let rem_negative = cx.b.cmp(CmpOp::Lt, rem, zero)?;
    let y_negative = cx.b.cmp(CmpOp::Lt, y, zero)?;
    let differ = cx.b.binary(BinaryOp::Xor, rem_negative, y_negative)?;
    let fix = cx.b.binary(BinaryOp::And, nonzero, differ)?;
    let mut rem = rem;
    if cx.dtype(rem).is_float() {
        // a remainder of zero takes the sign of the divisor too
        let minus = cx.like(rem, -0.0)?;
        let signed = cx.b.select(y_negative, minus, zero)?;
        rem = cx.b.select(nonzero, rem, signed)?;
    }
    let shifted = cx.b.add(rem, y)?;
    Ok(cx.b.select(fix, shifted, rem)?.into())
}

fn bit_shift(cx: &mut NodeCx) -> OpResult {
    let f = match cx.string("direction", "")? {
        "LEFT" => BinaryOp::Shl,
        "RIGHT" => BinaryOp::Shr,
        d => return Err(OpError::invalid(Code::Attribute, format!("direction {d:?}"))),
    };
    binary(cx, f)
}

fn is_nan(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    Ok(cx.b.cmp(CmpOp::Ne, x, x)?.into())
}

fn is_inf(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (neg, pos) = (cx.flag("detect_negative", true)?, cx.flag("detect_positive", true)?);
    let inf = cx.like(x, f64::INFINITY)?;
    let minus = cx.like(x, f64::NEG_INFINITY)?;
    Ok(match (neg, pos) {
        (true, true) => {
            let a = cx.b.unary(UnaryOp::Abs, x)?;
            cx.b.cmp(CmpOp::Eq, a, inf)?
        }
        (true, false) => cx.b.cmp(CmpOp::Eq, x, minus)?,
        (false, true) => cx.b.cmp(CmpOp::Eq, x, inf)?,
        (false, false) => cx.b.cmp(CmpOp::Lt, x, minus)?,
    }
    .into())
}

fn where_(cx: &mut NodeCx) -> OpResult {
    let (c, a, b) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    Ok(cx.b.select(c, a, b)?.into())
}

fn cast(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let to = if cx.opset < 6 {
        // the type's name, as text
        let name = cx.string("to", "")?.to_ascii_lowercase();
        let short = match name.as_str() {
            "float" => "f32",
            "double" => "f64",
            "float16" => "f16",
            "int64" => "i64",
            "int32" => "i32",
            "int16" => "i16",
            "int8" => "i8",
            "uint64" => "u64",
            "uint32" => "u32",
            "uint16" => "u16",
            "uint8" => "u8",
            other => other,
        };
        short.parse().map_err(|e: String| OpError::invalid(Code::Attribute, e))?
    } else {
        cx.dtype_attr("to")?.ok_or_else(|| OpError::invalid(Code::Attribute, "attribute to is missing"))?
    };
    cast_to(cx, x, to)
}

fn cast_like(cx: &mut NodeCx) -> OpResult {
    let (x, like) = (cx.input(0)?, cx.input(1)?);
    let to = cx.dtype(like);
    cast_to(cx, x, to)
}

/// Conversions saturate where the target is an 8-bit float, unless `saturate` is 0.
fn cast_to(cx: &mut NodeCx, x: V, to: DType) -> OpResult {
    let from = cx.dtype(x);
    if from == to {
        return Ok(x.into());
    }
    if from == DType::String {
        return match cx.const_strings(x) {
            Some(s) => parse_strings(cx, x, &s, to),
            None => Err(OpError::unsupported(
                Code::Type,
                "text is converted to numbers only where it is constant",
            )),
        };
    }
    if to == DType::String {
        return Err(OpError::unsupported(Code::Type, "numbers are not converted to text"));
    }
    let narrow =
        matches!(to, DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ | DType::F4E2M1);
    let saturate = narrow && cx.flag("saturate", true)?;
    if to == DType::F8E8M0 && from.is_float() {
        let mode = cx.string("round_mode", "up")?;
        return Ok(super::narrow::to_e8m0(cx, x, mode, cx.flag("saturate", true)?)?.into());
    }
    let tiny = matches!(to, DType::I4 | DType::U4 | DType::I2 | DType::U2);
    if tiny && from.is_float() {
        // out of range the low bits stay, as from a wider integer
        let wide = cx.b.convert(x, DType::I32)?;
        return Ok(cx.b.convert(wide, to)?.into());
    }
    let mode = if saturate { ConvertMode::Saturate } else { ConvertMode::Plain };
    Ok(cx.b.convert_with(x, to, mode)?.into())
}

fn parse_strings(cx: &mut NodeCx, x: V, text: &[String], to: DType) -> OpResult {
    let shape = cx.shape(x);
    let parse = |s: &String| -> Result<f64, OpError> {
        let t = s.trim();
        t.parse::<f64>().map_err(|_| OpError::invalid(Code::Type, format!("{t:?} is not a number")))
    };
    let bytes = text.iter().map(|s| parse(s).map(f64::to_le_bytes)).collect::<Result<Vec<_>, _>>()?.concat();
    let dims = shape.iter().map(|d| d.as_const().map_or(0, |d| d as usize)).collect();
    let v = cx.b.constant_data(ir::ConstData {
        dtype: DType::F64,
        shape: dims,
        source: ir::ConstSource::Bytes(std::sync::Arc::new(bytes)),
        name: None,
    })?;
    Ok(cx.b.convert(v, to)?.into())
}

/// Reinterprets the bits; both types have the same width.
fn bit_cast(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let to =
        cx.dtype_attr("to")?.ok_or_else(|| OpError::invalid(Code::Attribute, "attribute to is missing"))?;
    let from = cx.dtype(x);
    // a bool is stored as a byte of 0 or 1
    if from == DType::Bool && to.bits() == 8 && to.is_int() {
        return Ok(cx.b.convert(x, to)?.into());
    }
    if from == to {
        return Ok(x.into());
    }
    if from.bits() != to.bits() {
        return Err(OpError::unsupported(Code::Type, format!("bits of {} as {to}", cx.dtype(x))));
    }
    Ok(cx.b.bitcast(x, to)?.into())
}
