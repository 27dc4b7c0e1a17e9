//! Values of narrow types in wide registers: f16, bf16, f8 and f4 as f32, small integers as i32.

use ir::DType;
use ir::loops::{Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::minifloat::{Format, format};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, UnaryOp};

/// The register type that holds values of `dtype`; `None` for strings.
pub fn register(dtype: DType) -> Option<DType> {
    Some(match dtype {
        DType::String => return None,
        DType::F64 | DType::F32 | DType::I64 | DType::U64 | DType::I32 | DType::U32 | DType::Bool => dtype,
        d if d.is_float() => DType::F32,
        // their values fit, so that signed operations are right for the unsigned ones too
        _ => DType::I32,
    })
}

/// True where a register can hold what is no value of the type.
pub fn is_narrow(dtype: DType) -> bool {
    register(dtype) != Some(dtype)
}

/// The value of `dtype` that a register stands for: integers wrap, floats round.
pub fn normalise(b: &mut LoopBuilder, dtype: DType, v: Val) -> Val {
    if let Some(f) = format(dtype) {
        return round(b, f, v, false);
    }
    if !is_narrow(dtype) {
        return v;
    }
    let ty = b.ty(v);
    if dtype.is_signed_int() {
        let n = b.int(ty, i128::from(32 - dtype.bits()));
        let up = b.binary(BinaryOp::Shl, v, n);
        return b.binary(BinaryOp::Shr, up, n);
    }
    let mask = b.int(ty, (1 << dtype.bits()) - 1);
    b.and(v, mask)
}

/// An f32 register rounded to a value of the format.
pub fn round(b: &mut LoopBuilder, f: Format, v: Val, saturate: bool) -> Val {
    if f.inf && !saturate {
        return if f.bias == 127 { round_short(b, f, v) } else { round_in_place(b, f, v) };
    }
    let bits = encode(b, f, v, saturate);
    decode(b, f, bits)
}

/// [`round`] to a format with the exponents of f32 (bf16): the carry of the mantissa does it all.
fn round_short(b: &mut LoopBuilder, f: Format, v: Val) -> Val {
    let ty = b.ty(v).with(DType::U32);
    let dropped = 23 - f.man_bits;
    let bits = b.bitcast(DType::U32, v);
    let (n, one) = (b.int(ty, dropped.into()), b.int(ty, 1));
    let last = b.binary(BinaryOp::Shr, bits, n);
    let odd = b.and(last, one);
    let half = b.int(ty, (1 << (dropped - 1)) - 1);
    let up = b.add(bits, half);
    let up = b.add(up, odd);
    let mask = b.int(ty, i128::from(u32::MAX << dropped));
    let kept = b.and(up, mask);
    let y = b.bitcast(DType::F32, kept);
    let nan = b.cmp(CmpOp::Ne, v, v);
    b.select(nan, v, y)
}

/// [`round`] to a format with fewer exponents than f32 and with infinities (f16): adding and taking away
/// `1.5 * 2^(e + dropped)` leaves the digits of the format, `e` being the exponent of the value and not below that
/// of the least normal one (below it all have one quantum).
fn round_in_place(b: &mut LoopBuilder, f: Format, v: Val) -> Val {
    let (ty, ints) = (b.ty(v), b.ty(v).with(DType::I32));
    let dropped = 23 - f.man_bits;
    let int = |b: &mut LoopBuilder, x: u32| b.int(ints, x.into());
    let bits = b.bitcast(DType::I32, v);
    let exponent = int(b, 0x7f80_0000);
    let e = b.and(bits, exponent);
    let least = int(b, ((128 - f.bias) as u32) << 23);
    // from here on everything is infinite
    let beyond = int(b, ((128 + f.bias) as u32) << 23);
    let e = b.max(e, least);
    let e = b.min(e, beyond);
    let shift = int(b, (dropped << 23) + (1 << 22));
    let magic = b.add(e, shift);
    let magic = b.bitcast(DType::F32, magic);
    let sum = b.add(v, magic);
    let y = b.sub(sum, magic);
    let a = b.unary(UnaryOp::Abs, y);
    let (max, infinity) = (b.float(ty, f.decode(f.max)), b.float(ty, f64::INFINITY));
    let over = b.cmp(CmpOp::Gt, a, max);
    let infinite = b.mul(y, infinity);
    let y = b.select(over, infinite, y);
    // what became zero keeps its sign
    let top = b.int(ints, i128::from(i32::MIN));
    let sign = b.and(bits, top);
    let y = b.bitcast(DType::I32, y);
    let y = b.or(y, sign);
    b.bitcast(DType::F32, y)
}

/// Smallest normal number and distance of denormals.
fn normal_and_quantum(f: Format) -> (f64, f64) {
    let emin = 1 - f.bias;
    (2f64.powi(emin), 2f64.powi(emin - f.man_bits as i32))
}

/// The patterns (u32 registers) nearest to f32 values, ties to even.
pub fn encode(b: &mut LoopBuilder, f: Format, v: Val, saturate: bool) -> Val {
    let ty = b.ty(v).with(DType::U32);
    let bits = b.bitcast(DType::U32, v);
    if f.man_bits == 0 {
        return encode_e8m0(b, f, v, bits, saturate);
    }
    if is_upper_half(f) && !saturate {
        return encode_upper_half(b, f, v, bits);
    }
    let float_ty = b.ty(v);
    let int = |b: &mut LoopBuilder, x: u32| b.int(ty, x.into());
    let shift = 23 - f.man_bits;
    let nan = b.cmp(CmpOp::Ne, v, v);
    let a = b.unary(UnaryOp::Abs, v);
    let a_bits = b.bitcast(DType::U32, a);
    // normal results: round the mantissa in place, the carry goes into the exponent
    let n = int(b, shift);
    let upper = b.binary(BinaryOp::Shr, a_bits, n);
    let one = int(b, 1);
    let odd = b.and(upper, one);
    let half = int(b, (1 << (shift - 1)) - 1);
    let up = b.add(a_bits, half);
    let up = b.add(up, odd);
    let up = b.binary(BinaryOp::Shr, up, n);
    let rebias = int(b, ((127 - f.bias) as u32) << f.man_bits);
    let mut magnitude = b.sub(up, rebias);
    let (min_normal, quantum) = normal_and_quantum(f);
    if f.bias != 127 {
        // denormal results: adding 1.5 * 2^23 quanta rounds to whole ones
        let magic = 1.5 * 2f64.powi(23) * quantum;
        let magic_val = b.float(float_ty, magic);
        let sum = b.add(a, magic_val);
        let sum_bits = b.bitcast(DType::U32, sum);
        let base = int(b, (magic as f32).to_bits());
        let denormal = b.sub(sum_bits, base);
        let limit = b.float(float_ty, min_normal);
        let small = b.cmp(CmpOp::Lt, a, limit);
        magnitude = b.select(small, denormal, magnitude);
    }
    let infinity = ((1u32 << f.exp_bits) - 1) << f.man_bits;
    let beyond = match (saturate, f.inf, f.nan) {
        (true, ..) | (_, false, None) => u32::from(f.max),
        (_, true, _) => infinity,
        // without a negative zero the sign must not be added: below
        (_, false, Some(nan)) => u32::from(nan),
    };
    let max = int(b, f.max.into());
    let too_large = b.cmp(CmpOp::Gt, magnitude, max);
    // infinity itself would wrap around in formats with few exponents
    let finite_bits = int(b, 0x7f80_0000);
    let is_inf = b.cmp(CmpOp::Ge, a_bits, finite_bits);
    let too_large = b.or(too_large, is_inf);
    let beyond_val = int(b, beyond);
    magnitude = b.select(too_large, beyond_val, magnitude);
    let nan_bits = int(b, f.nan.unwrap_or(1 << (f.exp_bits + f.man_bits)).into());
    magnitude = b.select(nan, nan_bits, magnitude);
    let width = f.exp_bits + f.man_bits;
    let top = int(b, 31);
    let sign = b.binary(BinaryOp::Shr, bits, top);
    let place = int(b, width);
    let mut sign = b.binary(BinaryOp::Shl, sign, place);
    let zero = int(b, 0);
    if !f.neg_zero {
        let has_none = b.cmp(CmpOp::Eq, magnitude, zero);
        let no_sign = b.or(has_none, nan);
        let no_sign = if saturate { no_sign } else { b.or(no_sign, too_large) };
        sign = b.select(no_sign, zero, sign);
    } else {
        sign = b.select(nan, zero, sign);
    }
    b.or(magnitude, sign)
}

/// bf16: the upper half of an f32.
fn is_upper_half(f: Format) -> bool {
    (f.exp_bits, f.man_bits, f.bias, f.inf) == (8, 7, 127, true)
}

/// The upper half with what the lower one rounds it up by; a carry runs into the exponent, up to infinity.
fn encode_upper_half(b: &mut LoopBuilder, f: Format, v: Val, bits: Val) -> Val {
    let ty = b.ty(bits);
    let int = |b: &mut LoopBuilder, x: u32| b.int(ty, x.into());
    let (n, one, half) = (int(b, 16), int(b, 1), int(b, 0x7fff));
    let upper = b.binary(BinaryOp::Shr, bits, n);
    let odd = b.and(upper, one);
    let up = b.add(bits, half);
    let up = b.add(up, odd);
    let rounded = b.binary(BinaryOp::Shr, up, n);
    let nan = b.cmp(CmpOp::Ne, v, v);
    let nan_bits = int(b, f.nan.unwrap_or(0x7fc0).into());
    b.select(nan, nan_bits, rounded)
}

/// Powers of two without sign and zero: what is smaller becomes 2^-127.
fn encode_e8m0(b: &mut LoopBuilder, f: Format, v: Val, bits: Val, saturate: bool) -> Val {
    let ty = b.ty(bits);
    let int = |b: &mut LoopBuilder, x: u32| b.int(ty, x.into());
    // from 1.5 on the next power is nearer, a tie goes there too
    let half = int(b, 1 << 22);
    let n = int(b, 23);
    let up = b.add(bits, half);
    let normal = b.binary(BinaryOp::Shr, up, n);
    let min_normal = int(b, 1 << 23);
    let denormal = b.cmp(CmpOp::Lt, bits, min_normal);
    let three_quarters = int(b, 3 << 21);
    let to_one = b.cmp(CmpOp::Ge, bits, three_quarters);
    let (zero, one) = (int(b, 0), int(b, 1));
    let small = b.select(to_one, one, zero);
    let mut e = b.select(denormal, small, normal);
    if saturate {
        let max = int(b, f.max.into());
        e = b.min(e, max);
    }
    // negative zero is a zero, everything else below it has no place
    let float_zero = b.zero(b.ty(v));
    let is_zero = b.cmp(CmpOp::Eq, v, float_zero);
    e = b.select(is_zero, zero, e);
    let not_negative = b.cmp(CmpOp::Ge, v, float_zero);
    let nan = int(b, f.nan.unwrap_or(0xff).into());
    b.select(not_negative, e, nan)
}

/// The f32 values of patterns (u32 registers without higher bits).
pub fn decode(b: &mut LoopBuilder, f: Format, bits: Val) -> Val {
    let ty = b.ty(bits);
    let int = |b: &mut LoopBuilder, x: u32| b.int(ty, x.into());
    let width = f.exp_bits + f.man_bits;
    let place = int(b, 23 - f.man_bits);
    if is_upper_half(f) {
        let up = b.binary(BinaryOp::Shl, bits, place);
        return b.bitcast(DType::F32, up);
    }
    if f.man_bits == 0 {
        let up = b.binary(BinaryOp::Shl, bits, place);
        let x = b.bitcast(DType::F32, up);
        let zero = int(b, 0);
        let is_zero = b.cmp(CmpOp::Eq, bits, zero);
        let least = b.float(b.ty(x), 2f64.powi(-127));
        let x = b.select(is_zero, least, x);
        let nan = int(b, 0xff);
        let is_nan = b.cmp(CmpOp::Eq, bits, nan);
        let nan = b.float(b.ty(x), f64::NAN);
        return b.select(is_nan, nan, x);
    }
    let mask = int(b, (1 << width) - 1);
    let magnitude = b.and(bits, mask);
    let mut wide = b.binary(BinaryOp::Shl, magnitude, place);
    let sign_place = int(b, 31 - width);
    if f.bias != 127 {
        // as a tiny f32, times the difference of the biases: right for denormals too
        let x = b.bitcast(DType::F32, wide);
        let scale = b.float(b.ty(x), 2f64.powi(127 - f.bias));
        let x = b.mul(x, scale);
        wide = b.bitcast(DType::U32, x);
        if f.inf {
            let infinity = int(b, ((1u32 << f.exp_bits) - 1) << f.man_bits);
            let special = b.cmp(CmpOp::Ge, magnitude, infinity);
            let up = b.binary(BinaryOp::Shl, magnitude, place);
            let ones = int(b, 0x7f80_0000);
            let up = b.or(up, ones);
            wide = b.select(special, up, wide);
        }
    }
    let mask = int(b, 1 << width);
    let sign = b.and(bits, mask);
    let sign = b.binary(BinaryOp::Shl, sign, sign_place);
    let all = b.or(wide, sign);
    let mut x = b.bitcast(DType::F32, all);
    if !f.inf
        && let Some(nan) = f.nan
    {
        let pattern = int(b, nan.into());
        let probe = if f.neg_zero { magnitude } else { bits };
        let is_nan = b.cmp(CmpOp::Eq, probe, pattern);
        let nan = b.float(b.ty(x), f64::NAN);
        x = b.select(is_nan, nan, x);
    }
    x
}

/// [`ir::Prim::Convert`] between registers of element types; the result may need [`normalise`] (true).
pub fn convert(
    b: &mut LoopBuilder,
    from: DType,
    to: DType,
    mode: ConvertMode,
    v: Val,
) -> Option<(Val, bool)> {
    let (from_reg, to_reg) = (register(from)?, register(to)?);
    let saturate = mode == ConvertMode::Saturate;
    let ty = b.ty(v);
    if from == to && !saturate {
        return Some((v, false));
    }
    if to == DType::Bool {
        let zero = b.zero(ty);
        return Some((if from == to { v } else { b.cmp(CmpOp::Ne, v, zero) }, false));
    }
    let out = ty.with(to_reg);
    if from == DType::Bool {
        let one = b.constant(out, ir::dtype::Scalar::of(to_reg, 1.0));
        let zero = b.zero(out);
        // the one type without a zero
        return Some((b.select(v, one, zero), to == DType::F8E8M0));
    }
    Some(match (from.is_float(), to.is_float()) {
        (true, true) => (float_to_float(b, from_reg, to, v, saturate), is_narrow(to)),
        (false, true) => {
            let x = if matches!(to, DType::BF16 | DType::F8E8M0) && from.bytes() >= 4 {
                // integers with more digits than f32 must not be rounded twice
                let x = b.convert(DType::F64, ConvertMode::Plain, v);
                to_odd_f32(b, x)
            } else {
                b.convert(to_reg, ConvertMode::Plain, v)
            };
            match (format(to), saturate) {
                (Some(_), true) => (clamp_finite(b, to, x), true),
                (f, _) => (x, f.is_some()),
            }
        }
        (true, false) if from_reg == DType::F32 && is_narrow(to) => {
            (narrow_from_float(b, to, to_reg, v), false)
        }
        (true, false) => {
            let x = b.convert(to_reg, ConvertMode::Plain, v);
            (if is_narrow(to) { clamp_int(b, to, to_reg, x) } else { x }, false)
        }
        (false, false) => {
            let fits = contains(to, from);
            let v = if saturate && !fits { clamp_int(b, to, from, v) } else { v };
            let x = b.convert(to_reg, ConvertMode::Plain, v);
            (x, is_narrow(to) && !fits && !saturate)
        }
    })
}

/// f32 to a narrow integer type, saturated, NaN to 0: limited as a float, where it takes two instructions, so that
/// the conversion itself has nothing left to saturate.
fn narrow_from_float(b: &mut LoopBuilder, to: DType, to_reg: DType, v: Val) -> Val {
    let ty = b.ty(v);
    let Some((lo, hi)) = to.int_range() else { return b.convert(to_reg, ConvertMode::Plain, v) };
    let (least, most) = (b.float(ty, lo as f64), b.float(ty, hi as f64));
    // NaN is not above: it becomes the least value, which is 0 where there is no sign
    let v = match lo {
        0 => v,
        _ => {
            let number = b.cmp(CmpOp::Eq, v, v);
            let zero = b.zero(ty);
            b.select(number, v, zero)
        }
    };
    let above = b.cmp(CmpOp::Gt, v, least);
    let v = b.select(above, v, least);
    let below = b.cmp(CmpOp::Lt, v, most);
    let v = b.select(below, v, most);
    b.convert(to_reg, ConvertMode::Plain, v)
}

/// Every value of `inner` is one of `outer`.
fn contains(outer: DType, inner: DType) -> bool {
    match (outer.int_range(), inner.int_range()) {
        (Some((ol, oh)), Some((il, ih))) => ol <= il && ih <= oh,
        _ => false,
    }
}

/// Limits integers of type `from` to the range of `to`.
fn clamp_int(b: &mut LoopBuilder, to: DType, from: DType, v: Val) -> Val {
    let (Some((lo, hi)), Some((from_lo, from_hi))) = (to.int_range(), from.int_range()) else { return v };
    let ty: Ty = b.ty(v);
    let mut v = v;
    if lo > from_lo {
        let c = b.int(ty, lo);
        v = b.max(v, c);
    }
    if hi < from_hi {
        let c = b.int(ty, hi);
        v = b.min(v, c);
    }
    v
}

/// Limits floats to the finite values of `to`; NaN stays.
fn clamp_finite(b: &mut LoopBuilder, to: DType, v: Val) -> Val {
    let max = match format(to) {
        Some(f) => f.decode(f.max),
        None if to == DType::F32 => f32::MAX.into(),
        None => f64::MAX,
    };
    let ty = b.ty(v);
    let (lo, hi) = (b.float(ty, -max), b.float(ty, max));
    let v = b.min(v, hi);
    if to == DType::F8E8M0 { v } else { b.max(v, lo) }
}

fn float_to_float(b: &mut LoopBuilder, from_reg: DType, to: DType, v: Val, saturate: bool) -> Val {
    if to == DType::F64 {
        let v = b.convert(DType::F64, ConvertMode::Plain, v);
        return if saturate { clamp_finite(b, to, v) } else { v };
    }
    let v = if saturate { clamp_finite(b, to, v) } else { v };
    match (from_reg, to) {
        (DType::F64, DType::F32) => b.convert(DType::F32, ConvertMode::Plain, v),
        (DType::F64, _) => to_odd_f32(b, v),
        _ => v,
    }
}

/// f64 to f32 rounded to odd: rounding that once more to fewer digits gives what one rounding gives.
fn to_odd_f32(b: &mut LoopBuilder, v: Val) -> Val {
    let x = b.convert(DType::F32, ConvertMode::Plain, v);
    let back = b.convert(DType::F64, ConvertMode::Plain, x);
    let (va, ba) = (b.unary(UnaryOp::Abs, v), b.unary(UnaryOp::Abs, back));
    let inexact = b.cmp(CmpOp::Ne, va, ba);
    let away = b.cmp(CmpOp::Gt, ba, va);
    let bits = b.bitcast(DType::I32, x);
    let ty = b.ty(bits);
    let one = b.int(ty, 1);
    // towards zero, then the last bit tells that something is missing
    let less = b.sub(bits, one);
    let down = b.select(away, less, bits);
    let odd = b.or(down, one);
    let bits = b.select(inexact, odd, bits);
    let y = b.bitcast(DType::F32, bits);
    let nan = b.cmp(CmpOp::Ne, v, v);
    b.select(nan, x, y)
}
