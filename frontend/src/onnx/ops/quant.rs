//! Quantisation by the standard: conversions, and integer contractions that accumulate exactly in i32.

use super::compose::{self, call_n, int_attr};
use super::{Op, conv, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::prim::ConvertMode;
use ir::{DType, Dim, IrError, Result};

pub static OPS: &[Op] = &[
    op("ConvInteger", 10, conv_integer),
    op("DequantizeLinear", 10, dequantize_linear),
    op("DynamicQuantizeLinear", 11, |cx| {
        let x = cx.input(0)?;
        Ok(dynamic_quantize(cx.b, x)?.into())
    }),
    op("MatMulInteger", 10, |cx| {
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let zero = (cx.opt(2)?, cx.opt(3)?);
        Ok(matmul_integer(cx.b, a, b, zero.0, zero.1)?.into())
    }),
    op("QLinearConv", 10, qlinear_conv),
    op("QLinearMatMul", 10, qlinear_matmul),
    op("QuantizeLinear", 10, quantize_linear),
];

/// How a scale or zero point applies to an operand.
#[derive(Clone, Copy)]
pub struct Granularity {
    pub axis: i64,
    /// Elements of the axis that share one parameter; 0: all or one by one, as the shape says.
    pub block: i64,
}

impl Granularity {
    /// One parameter for the whole tensor.
    pub const TENSOR: Granularity = Granularity { axis: 0, block: 0 };
}

/// A scale or zero point with a shape that broadcasts to `shape`: of one element, one for each index of
/// an axis, or one for each block of an axis.
pub fn expand_parameter(b: &mut Builder, p: V, shape: &[Dim], g: Granularity) -> Result<V> {
    let own = b.shape(p).to_vec();
    if own.iter().all(|d| d.is_const(1)) {
        return b.reshape(p, &[]);
    }
    let axis = ir::build::normal_axis(g.axis, shape.len())?;
    if own.len() == 1 && (shape.len() > 1 || g.block == 0) {
        return compose::along(b, p, axis, shape.len());
    }
    if own.len() != shape.len() {
        return Err(IrError::ty(
            "quantize",
            format!("a scale of rank {} for an operand of rank {}", own.len(), shape.len()),
        ));
    }
    if b.same_dim(&own[axis], &shape[axis]) {
        return Ok(p);
    }
    let block = match g.block {
        0 => match (shape[axis].as_const(), own[axis].as_const()) {
            (Some(d), Some(s)) if s > 0 => Dim::from(d.div_euclid(s) + i64::from(d % s != 0)),
            _ => return Err(IrError::ty("quantize", "the block size is not known")),
        },
        n if n > 0 => Dim::from(n),
        n => return Err(IrError::ty("quantize", format!("a block size of {n}"))),
    };
    // every parameter `block` times, the last ones cut off
    let wide = b.unsqueeze(p, &[axis as i64 + 1])?;
    let mut repeated = b.shape(wide).to_vec();
    repeated[axis + 1] = block.clone();
    let wide = b.broadcast_to(wide, &repeated)?;
    let mut merged = own.clone();
    merged[axis] = &own[axis] * &block;
    let wide = b.reshape(wide, &merged)?;
    b.slice_axis(wide, axis, &Dim::from(0), &shape[axis])
}

/// `saturate(round(x / scale) + zero)` as `to`. The division happens in type `precision`.
#[allow(clippy::too_many_arguments)]
pub fn quantize(
    b: &mut Builder,
    x: V,
    scale: V,
    zero: Option<V>,
    to: DType,
    g: Granularity,
    precision: DType,
    saturate: bool,
) -> Result<V> {
    let operands: Vec<V> = [Some(x), Some(scale), zero].into_iter().flatten().collect();
    let attrs = vec![int_attr("axis", g.axis), int_attr("block", g.block)];
    call_n(b, "quantize_linear", attrs, &operands, |b, a| {
        let shape = b.shape(a[0]).to_vec();
        let x = b.convert(a[0], precision)?;
        let scale = b.convert(a[1], precision)?;
        let scale = expand_parameter(b, scale, &shape, g)?;
        let q = b.div(x, scale)?;
        let q = b.convert(q, if precision == DType::F64 { DType::F64 } else { DType::F32 })?;
        if to.is_float() {
            let mode = if saturate { ConvertMode::Saturate } else { ConvertMode::Plain };
            return b.convert_with(q, to, mode);
        }
        let mut q = b.round_even(q)?;
        if let Some(&zero) = a.get(2)
            && !is_zero(b, zero)
        {
            let zero = b.convert(zero, b.dtype(q))?;
            let zero = expand_parameter(b, zero, &shape, g)?;
            q = b.add(q, zero)?;
        }
        b.convert_with(q, to, ConvertMode::Saturate)
    })
}

/// `(x - zero) * scale` as `to`.
pub fn dequantize(b: &mut Builder, x: V, scale: V, zero: Option<V>, to: DType, g: Granularity) -> Result<V> {
    let operands: Vec<V> = [Some(x), Some(scale), zero].into_iter().flatten().collect();
    let attrs = vec![int_attr("axis", g.axis), int_attr("block", g.block)];
    call_n(b, "dequantize_linear", attrs, &operands, |b, a| {
        let shape = b.shape(a[0]).to_vec();
        let compute = if to == DType::F64 { DType::F64 } else { DType::F32 };
        let mut x = a[0];
        if let Some(&zero) = a.get(2)
            && !is_zero(b, zero)
        {
            if b.dtype(x).is_int() {
                // the difference is exact in i32
                x = b.convert(x, DType::I32)?;
                let zero = b.convert(zero, DType::I32)?;
                let zero = expand_parameter(b, zero, &shape, g)?;
                x = b.sub(x, zero)?;
            } else {
                x = b.convert(x, compute)?;
                let zero = b.convert(zero, compute)?;
                let zero = expand_parameter(b, zero, &shape, g)?;
                x = b.sub(x, zero)?;
            }
        }
        let x = b.convert(x, compute)?;
        let scale = b.convert(a[1], compute)?;
        let scale = expand_parameter(b, scale, &shape, g)?;
        let y = b.mul(x, scale)?;
        b.convert(y, to)
    })
}

/// As [`dequantize`] of one parameter for the whole tensor, to f32.
pub fn dequantize_tensor(b: &mut Builder, x: V, scale: V, zero: Option<V>) -> Result<V> {
    dequantize(b, x, scale, zero, DType::F32, Granularity::TENSOR)
}

/// As [`quantize`] of one parameter for the whole tensor, from f32. Without a zero point the type is u8.
pub fn quantize_tensor(b: &mut Builder, x: V, scale: V, zero: Option<V>) -> Result<V> {
    let to = zero.map_or(DType::U8, |z| b.dtype(z));
    quantize(b, x, scale, zero, to, Granularity::TENSOR, DType::F32, true)
}

/// A zero point that is known to be 0 everywhere.
pub fn is_zero(b: &Builder, zero: V) -> bool {
    b.known_floats(zero).is_some_and(|z| z.iter().all(|&z| z == 0.0))
}

fn granularity(cx: &NodeCx) -> Result<Granularity, OpError> {
    Ok(Granularity { axis: cx.int("axis", 1)?, block: cx.int("block_size", 0)? })
}

fn dtype_or(cx: &NodeCx, name: &str) -> Result<Option<DType>, OpError> {
    // 0 says that the attribute is not there
    if cx.int(name, 0)? == 0 { Ok(None) } else { cx.dtype_attr(name) }
}

/// The axis of an operand whose parameters are a vector.
fn checked(cx: &NodeCx, x: V, scale: V, mut g: Granularity) -> Result<Granularity, OpError> {
    let rank = cx.rank(x);
    if cx.rank(scale) == 0 || rank == 0 {
        return Ok(Granularity { axis: 0, ..g });
    }
    if rank == 1 && g.block == 0 {
        g.axis = 0;
    }
    let one = cx.shape(scale).iter().all(|d| d.is_const(1));
    g.axis = if one { 0 } else { cx.axis(g.axis, rank)? as i64 };
    Ok(g)
}

pub fn quantize_linear(cx: &mut NodeCx) -> OpResult {
    let (x, scale, zero) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
    let g = checked(cx, x, scale, granularity(cx)?)?;
    let to = match zero {
        Some(z) => cx.dtype(z),
        None => dtype_or(cx, "output_dtype")?.unwrap_or(DType::U8),
    };
    let precision = match dtype_or(cx, "precision")? {
        Some(p) => p,
        None => match cx.dtype(scale) {
            // powers of two
            DType::F8E8M0 => DType::F32,
            d if d.is_float() => d,
            _ => DType::F32,
        },
    };
    let saturate = cx.flag("saturate", true)?;
    Ok(quantize(cx.b, x, scale, zero, to, g, precision, saturate)?.into())
}

pub fn dequantize_linear(cx: &mut NodeCx) -> OpResult {
    let (x, scale, zero) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
    let g = checked(cx, x, scale, granularity(cx)?)?;
    let to = match dtype_or(cx, "output_dtype")? {
        Some(d) => d,
        None if cx.dtype(scale) == DType::F8E8M0 => DType::F32,
        None => cx.dtype(scale),
    };
    Ok(dequantize(cx.b, x, scale, zero, to, g)?.into())
}

/// (u8 values, scale, zero point) with the range stretched to hold 0.
pub fn dynamic_quantize(b: &mut Builder, x: V) -> Result<[V; 3]> {
    let out = b.call::<IrError>("dynamic_quantize_linear", vec![], &[x], |b, a| {
        let axes: Vec<usize> = (0..b.rank(a[0])).collect();
        let zero = b.scalar(DType::F32, 0.0)?;
        let high = b.reduce_max(a[0], &axes, false)?;
        let high = b.max(high, zero)?;
        let low = b.reduce_min(a[0], &axes, false)?;
        let low = b.min(low, zero)?;
        let range = b.sub(high, low)?;
        let levels = b.scalar(DType::F32, 255.0)?;
        let scale = b.div(range, levels)?;
        // nothing but zeros: any scale will do
        let flat = b.eq(range, zero)?;
        let one = b.scalar(DType::F32, 1.0)?;
        let scale = b.select(flat, one, scale)?;
        let z = b.div(low, scale)?;
        let z = b.neg(z)?;
        let z = b.clamp(z, zero, levels)?;
        let z = b.round_even(z)?;
        let q = b.div(a[0], scale)?;
        let q = b.round_even(q)?;
        let q = b.add(q, z)?;
        let q = b.convert_with(q, DType::U8, ConvertMode::Saturate)?;
        let z = b.convert_with(z, DType::U8, ConvertMode::Saturate)?;
        Ok(vec![q, scale, z])
    })?;
    <[V; 3]>::try_from(out).map_err(|_| IrError::ty("call", "expected 3 results"))
}

/// A u8 constant with zero point 128 as i8 with zero point 0: the same numbers.
fn recentred(b: &mut Builder, x: V, zero: Option<V>) -> Result<(V, Option<V>)> {
    let Some(z) = zero else { return Ok((x, None)) };
    if is_zero(b, z) {
        return Ok((x, None));
    }
    let at_middle = b.known_ints(z).is_some_and(|z| z.iter().all(|&z| z == 128));
    if !at_middle || b.dtype(x) != DType::U8 || b.constant_of(x).is_none() {
        return Ok((x, zero));
    }
    let w = b.convert(x, DType::I16)?;
    let w = b.add_scalar(w, -128.0)?;
    Ok((b.convert(w, DType::I8)?, None))
}

/// `(a - zero_a) x (b - zero_b)` in i32. Zero points: of one element, or a vector for the rows of `a`
/// and the columns of `b`, or with all dims. They are subtracted from the product of the raw values:
/// `ab - za * colsum(b) - rowsum(a) * zb + k * za * zb`.
pub fn matmul_integer(b: &mut Builder, x: V, y: V, zero_x: Option<V>, zero_y: Option<V>) -> Result<V> {
    let (y, zero_y) = recentred(b, y, zero_y)?;
    let zero_x = zero_x.filter(|&z| !is_zero(b, z));
    let (rx, ry) = (b.rank(x), b.rank(y));
    let narrow = |d: DType| d.is_int() && d.bytes() == 1;
    let raw = rx >= 2 && ry >= 2 && narrow(b.dtype(x)) && narrow(b.dtype(y));
    // a column for the left operand, a row for the right one
    let place = |b: &mut Builder, z: V, left: bool| -> Result<V> {
        let z = b.convert(z, DType::I32)?;
        if b.shape(z).iter().all(|d| d.is_const(1)) {
            return b.reshape(z, &[]);
        }
        if b.rank(z) == 1 && left { b.unsqueeze(z, &[1]) } else { Ok(z) }
    };
    let zx = zero_x.map(|z| place(b, z, true)).transpose()?;
    let zy = zero_y.map(|z| place(b, z, false)).transpose()?;
    if !raw {
        let (mut x, mut y) = (b.convert(x, DType::I32)?, b.convert(y, DType::I32)?);
        if let Some(z) = zx {
            x = b.sub(x, z)?;
        }
        if let Some(z) = zy {
            y = b.sub(y, z)?;
        }
        return b.matmul_acc(x, y, DType::I32);
    }
    let mut out = b.matmul_acc(x, y, DType::I32)?;
    if let Some(zx) = zx {
        let wide = b.convert(y, DType::I32)?;
        let sums = b.reduce_sum(wide, &[ry - 2], true)?;
        let t = b.mul(zx, sums)?;
        out = b.sub(out, t)?;
    }
    if let Some(zy) = zy {
        let wide = b.convert(x, DType::I32)?;
        let sums = b.reduce_sum(wide, &[rx - 1], true)?;
        let t = b.mul(sums, zy)?;
        out = b.sub(out, t)?;
    }
    if let (Some(zx), Some(zy)) = (zx, zy) {
        let k = b.shape(x)[rx - 1].clone();
        let k = b.dim_value(&k)?;
        let k = b.convert(k, DType::I32)?;
        let t = b.mul(zx, zy)?;
        let t = b.mul(t, k)?;
        out = b.add(out, t)?;
    }
    Ok(out)
}

/// i32 sums times `multiplier`, rounded, plus the zero point, saturated to its type.
pub fn requantize(b: &mut Builder, acc: V, multiplier: V, zero: Option<V>) -> Result<V> {
    let to = zero.map_or(DType::U8, |z| b.dtype(z));
    let f = b.convert(acc, DType::F32)?;
    let f = b.mul(f, multiplier)?;
    let mut f = b.round_even(f)?;
    if let Some(z) = zero.filter(|&z| !is_zero(b, z)) {
        let z = b.convert(z, DType::F32)?;
        let z = if b.shape(z).iter().all(|d| d.is_const(1)) { b.reshape(z, &[])? } else { z };
        f = b.add(f, z)?;
    }
    b.convert_with(f, to, ConvertMode::Saturate)
}

/// `x_scale * w_scale / y_scale` in f32, where `place` gives each scale its dims.
pub fn multiplier(b: &mut Builder, x: V, w: V, y: Option<V>) -> Result<V> {
    let x = b.convert(x, DType::F32)?;
    let w = b.convert(w, DType::F32)?;
    let m = b.mul(x, w)?;
    match y {
        None => Ok(m),
        Some(y) => {
            let y = b.convert(y, DType::F32)?;
            b.div(m, y)
        }
    }
}

/// A scale of one element as a scalar, a vector as a row or a column of a matrix.
fn matrix_parameter(b: &mut Builder, s: V, column: bool) -> Result<V> {
    if b.shape(s).iter().all(|d| d.is_const(1)) {
        return b.reshape(s, &[]);
    }
    if b.rank(s) == 1 && column { b.unsqueeze(s, &[1]) } else { Ok(s) }
}

fn qlinear_matmul(cx: &mut NodeCx) -> OpResult {
    let ([a, sa, za], [w, sw, zw]) =
        ([cx.input(0)?, cx.input(1)?, cx.input(2)?], [cx.input(3)?, cx.input(4)?, cx.input(5)?]);
    let (sy, zy) = (cx.input(6)?, cx.input(7)?);
    let b = &mut *cx.b;
    let out_type = b.dtype(zy);
    let sa = matrix_parameter(b, sa, true)?;
    let (sw, sy) = (matrix_parameter(b, sw, false)?, matrix_parameter(b, sy, true)?);
    if b.dtype(a).is_int() && b.dtype(w).is_int() && out_type.is_int() {
        let acc = matmul_integer(b, a, w, Some(za), Some(zw))?;
        let m = multiplier(b, sa, sw, Some(sy))?;
        let zy = matrix_parameter(b, zy, true)?;
        return Ok(requantize(b, acc, m, Some(zy))?.into());
    }
    // 8-bit floats have no integer arithmetic
    let a = b.convert(a, DType::F32)?;
    let w = b.convert(w, DType::F32)?;
    let (sa, sw) = (b.convert(sa, DType::F32)?, b.convert(sw, DType::F32)?);
    let a = b.mul(a, sa)?;
    let w = b.mul(w, sw)?;
    let y = b.matmul(a, w)?;
    Ok(quantize(b, y, sy, Some(zy), out_type, Granularity::TENSOR, DType::F32, true)?.into())
}

/// The exact i32 convolution of quantised operands. Padding stands for the real number 0, the zero
/// point of the input. A zero point of the input is subtracted from the result: `zero * sum of the
/// kernel` for each output channel; one of the weights, which is rare, is subtracted before.
fn convolve_integer(cx: &mut NodeCx, x: V, w: V, zero_x: Option<V>, zero_w: Option<V>) -> Result<V, OpError> {
    let rank = cx.rank(x);
    if rank < 3 {
        return Err(OpError::invalid(
            Code::Shape,
            format!("expected an input of rank 3 at least, found {rank}"),
        ));
    }
    cx.check_rank("W", w, rank)?;
    let shape = cx.shape(x);
    let kernel = conv::kernel_of(cx, w)?;
    let mut window = conv::window(cx, &shape[2..], kernel)?;
    let groups = conv::groups(cx, &shape[1])? as usize;
    let b = &mut *cx.b;
    let (w, zero_w) = recentred(b, w, zero_w)?;
    let zero_x = match zero_x {
        Some(z) if !is_zero(b, z) => Some(compose::scalar(b, z)?),
        _ => None,
    };
    if let Some(zw) = zero_w {
        // 8-bit differences fit in 16 bits
        let zw = b.convert(zw, DType::I16)?;
        let zw = expand_parameter(b, zw, &vec![Dim::from(0); rank], Granularity::TENSOR)?;
        let mut x = b.convert(x, DType::I16)?;
        let w = b.convert(w, DType::I16)?;
        let w = b.sub(w, zw)?;
        if let Some(zx) = zero_x {
            let zx = b.convert(zx, DType::I16)?;
            x = b.sub(x, zx)?;
        }
        return Ok(b.convolve(x, w, &window.dims(), groups, DType::I32)?);
    }
    let Some(zx) = zero_x else {
        return Ok(b.convolve(x, w, &window.dims(), groups, DType::I32)?);
    };
    let (mut lo, mut hi) = (vec![Dim::from(0); 2], vec![Dim::from(0); 2]);
    for pad in &mut window.pads {
        lo.push(std::mem::take(&mut pad.0));
        hi.push(std::mem::take(&mut pad.1));
    }
    let x = b.pad(x, zx, &lo, &hi, &vec![0; rank])?;
    let acc = b.convolve(x, w, &window.dims(), groups, DType::I32)?;
    let wide = b.convert(w, DType::I32)?;
    let axes: Vec<usize> = (1..rank).collect();
    let sums = b.reduce_sum(wide, &axes, false)?;
    let zx = b.convert(zx, DType::I32)?;
    let shift = b.mul(sums, zx)?;
    let shift = compose::along(b, shift, 1, rank)?;
    Ok(b.sub(acc, shift)?)
}

fn conv_integer(cx: &mut NodeCx) -> OpResult {
    let (x, w, zx, zw) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?, cx.opt(3)?);
    Ok(convolve_integer(cx, x, w, zx, zw)?.into())
}

fn qlinear_conv(cx: &mut NodeCx) -> OpResult {
    let (x, sx, zx) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (w, sw, zw) = (cx.input(3)?, cx.input(4)?, cx.input(5)?);
    let (sy, zy, bias) = (cx.input(6)?, cx.input(7)?, cx.opt(8)?);
    let rank = cx.rank(x);
    let acc = convolve_integer(cx, x, w, Some(zx), Some(zw))?;
    let acc = conv::add_bias(cx, acc, bias)?;
    let b = &mut *cx.b;
    let (sx, sy) = (compose::scalar(b, sx)?, compose::scalar(b, sy)?);
    // one scale, or one for each output channel
    let sw = if b.shape(sw).iter().all(|d| d.is_const(1)) {
        b.reshape(sw, &[])?
    } else {
        compose::along(b, sw, 1, rank)?
    };
    let m = multiplier(b, sx, sw, Some(sy))?;
    Ok(requantize(b, acc, m, Some(zy))?.into())
}
