//! Resize and Upsample: interpolation, one axis after the other.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::prim::ConvertMode;
use ir::tensor::Tensor;
use ir::{DType, Dim};

pub static OPS: &[Op] = &[op("Resize", 10, resize), op("Upsample", 7, resize)];

#[derive(Clone, Copy, PartialEq)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    CropAndResize,
}

#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    Floor,
    Ceil,
    PreferFloor,
    PreferCeil,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest(Rounding),
    Linear,
    Cubic { a: f64 },
}

/// What is the same for all axes.
struct Plan {
    mode: Mode,
    coordinates: Coordinates,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
}

/// One axis: extents, the factor as given (none: the ratio of the extents), and the part of the input
/// that is read, as scalars.
struct Axis {
    axis: usize,
    input: Dim,
    output: Dim,
    scale: Option<f64>,
    roi: Option<(V, V)>,
}

fn resize(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    let plan = plan(cx)?;
    let mut axes = axes(cx, x, &plan)?;
    let mut v = x;
    let interpolates = !matches!(plan.mode, Mode::Nearest(_));
    if interpolates && !matches!(dtype, DType::F32 | DType::F64) {
        let wide = if dtype.is_int() && dtype.bytes() >= 4 { DType::F64 } else { DType::F32 };
        v = cx.b.convert(v, wide)?;
    }
    // the last axis first: along it elements are gathered one by one, along the others whole rows are, and the
    // fewer the rows before the others grow, the fewer gathers
    axes.sort_by_key(|a| std::cmp::Reverse(a.axis));
    for a in &axes {
        let whole = a.scale.is_none_or(|s| s == 1.0) && a.input == a.output && a.roi.is_none();
        if !whole {
            v = one_axis(cx, v, a, &plan)?;
        }
    }
    if dtype.is_int() && interpolates {
        v = cx.b.round_even(v)?;
        return Ok(cx.b.convert_with(v, dtype, ConvertMode::Saturate)?.into());
    }
    Ok(cx.b.convert(v, dtype)?.into())
}

fn plan(cx: &NodeCx) -> Result<Plan, OpError> {
    let old = cx.op_type == "Upsample" || cx.opset < 11;
    let bad = |name: &str, value: &str| OpError::invalid(Code::Attribute, format!("{name} {value:?}"));
    let coordinates =
        match if old { "asymmetric" } else { cx.string("coordinate_transformation_mode", "half_pixel")? } {
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            "asymmetric" => Coordinates::Asymmetric,
            "tf_crop_and_resize" => Coordinates::CropAndResize,
            "tf_half_pixel_for_nn" => {
                return Err(OpError::unsupported(
                    Code::Attribute,
                    "coordinates tf_half_pixel_for_nn, which version 13 removed",
                ));
            }
            m => return Err(bad("coordinate_transformation_mode", m)),
        };
    let mode = match cx.string("mode", "nearest")? {
        "nearest" => Mode::Nearest(
            match if old { "floor" } else { cx.string("nearest_mode", "round_prefer_floor")? } {
                "floor" => Rounding::Floor,
                "ceil" => Rounding::Ceil,
                "round_prefer_floor" => Rounding::PreferFloor,
                "round_prefer_ceil" => Rounding::PreferCeil,
                m => return Err(bad("nearest_mode", m)),
            },
        ),
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic { a: cx.float("cubic_coeff_a", -0.75)?.into() },
        m => return Err(bad("mode", m)),
    };
    let antialias = cx.flag("antialias", false)?;
    if antialias && matches!(mode, Mode::Nearest(_)) {
        return Err(OpError::invalid(Code::Attribute, "antialias with mode nearest"));
    }
    Ok(Plan {
        mode,
        coordinates,
        exclude_outside: cx.flag("exclude_outside", false)?,
        antialias,
        extrapolation: cx.float("extrapolation_value", 0.0)?.into(),
    })
}

/// Extents and factors of the axes that are resized.
fn axes(cx: &mut NodeCx, x: V, plan: &Plan) -> Result<Vec<Axis>, OpError> {
    let shape = cx.shape(x);
    let which = match cx.ints("axes")? {
        Some(a) => cx.axes(&a, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let old = cx.op_type == "Upsample" || cx.opset < 11;
    let (scales, sizes) = match (old, cx.op_type == "Upsample" && cx.opset < 9) {
        (_, true) => (None, None),
        (true, _) => (Some(cx.input(1)?), None),
        // an empty tensor stands for an absent one
        (false, _) => {
            let given = |cx: &NodeCx, i: usize| -> Result<Option<V>, OpError> {
                Ok(cx.opt(i)?.filter(|&v| !cx.shape(v).iter().any(|d| d.is_const(0))))
            };
            (given(cx, 2)?, given(cx, 3)?)
        }
    };
    let count = |n: usize| -> Result<(), OpError> {
        if n == which.len() {
            return Ok(());
        }
        Err(OpError::invalid(Code::Shape, format!("{n} scales or sizes for {} axes", which.len())))
    };
    let mut out: Vec<Axis> = Vec::with_capacity(which.len());
    if let Some(sizes) = sizes {
        let sizes = cx.sizes_of(sizes, 0)?;
        count(sizes.len())?;
        for (&axis, output) in which.iter().zip(sizes) {
            out.push(Axis { axis, input: shape[axis].clone(), output, scale: None, roi: None });
        }
        keep_aspect_ratio(cx, &mut out)?;
    } else {
        let scales: Vec<f64> = match scales {
            Some(v) => cx.b.known_floats(v).ok_or_else(|| {
                OpError::unsupported(Code::Dynamic, "scales that are only known when the model is executed")
                    .hint("give sizes, or make the scales constants")
            })?,
            None => match cx.attrs.floats("scales")? {
                Some(s) => s.iter().map(|&s| s.into()).collect(),
                None => return Err(OpError::invalid(Code::Input, "neither scales nor sizes")),
            },
        };
        count(scales.len())?;
        for (&axis, s) in which.iter().zip(scales) {
            let output = scaled(cx, &shape[axis], s)?;
            out.push(Axis { axis, input: shape[axis].clone(), output, scale: Some(s), roi: None });
        }
    }
    if plan.coordinates == Coordinates::CropAndResize {
        let roi = cx.input(1)?;
        let roi = cx.b.convert(roi, DType::F64)?;
        let n = out.len();
        if !cx.dim(roi, 0)?.is_const(2 * n as i64) {
            return Err(OpError::invalid(Code::Shape, format!("expected {} elements of roi", 2 * n)));
        }
        for (i, a) in out.iter_mut().enumerate() {
            let start = cx.b.index_axis(roi, 0, &Dim::from(i))?;
            let end = cx.b.index_axis(roi, 0, &Dim::from(n + i))?;
            if cx.const_f64(start) != Some(0.0) || cx.const_f64(end) != Some(1.0) {
                a.roi = Some((start, end));
            }
        }
    }
    Ok(out)
}

/// `floor(extent * scale)`, exactly: a float is an integer over a power of two.
fn scaled(cx: &NodeCx, extent: &Dim, scale: f64) -> Result<Dim, OpError> {
    let bad = || OpError::invalid(Code::Shape, format!("a scale of {scale}"));
    if !(scale > 0.0 && scale <= 1e9) {
        return Err(bad());
    }
    if let Some(n) = extent.as_const() {
        return Ok(Dim::from((n as f64 * scale).floor().min(Dim::LIMIT as f64) as i64));
    }
    let (mut num, mut den) = (scale, 1i64);
    while num.fract() != 0.0 && den < 1 << 30 {
        num *= 2.0;
        den *= 2;
    }
    if num.fract() != 0.0 || num > 1e9 {
        return Err(OpError::unsupported(
            Code::Dynamic,
            format!("a scale of {scale} on an axis of symbolic size"),
        )
        .hint("give sizes instead"));
    }
    let facts = cx.b.symbols();
    Ok((extent * &Dim::from(num as i64)).floor_div(&Dim::from(den), facts))
}

/// One factor for all axes, the smallest or largest of theirs.
fn keep_aspect_ratio(cx: &NodeCx, axes: &mut [Axis]) -> Result<(), OpError> {
    let larger = match cx.string("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => return Ok(()),
        "not_larger" => false,
        "not_smaller" => true,
        p => return Err(OpError::invalid(Code::Attribute, format!("keep_aspect_ratio_policy {p:?}"))),
    };
    let ratio = |a: &Axis| Some(a.output.as_const()? as f64 / a.input.as_const().filter(|&n| n > 0)? as f64);
    let ratios: Vec<f64> = axes.iter().map(ratio).collect::<Option<_>>().ok_or_else(|| {
        OpError::unsupported(Code::Dynamic, "an aspect ratio that is only known when the model is executed")
    })?;
    let scale = ratios.into_iter().reduce(if larger { f64::max } else { f64::min }).unwrap_or(1.0);
    for a in axes {
        a.scale = Some(scale);
        a.output = Dim::from((scale * a.input.as_const().unwrap_or(0) as f64 + 0.5).floor() as i64);
    }
    Ok(())
}

fn one_axis(cx: &mut NodeCx, x: V, a: &Axis, plan: &Plan) -> Result<V, OpError> {
    if let Some(v) = repeated(cx, x, a, plan)? {
        return Ok(v);
    }
    if plan.antialias {
        return filtered(cx, x, a, plan);
    }
    let at = positions(cx, a, plan.coordinates)?;
    let mut v = match plan.mode {
        Mode::Nearest(rounding) => {
            let i = match rounding {
                Rounding::Floor => cx.b.floor(at)?,
                Rounding::Ceil => cx.b.ceil(at)?,
                Rounding::PreferFloor => {
                    let p = cx.b.add_scalar(at, -0.5)?;
                    cx.b.ceil(p)?
                }
                Rounding::PreferCeil => {
                    let p = cx.b.add_scalar(at, 0.5)?;
                    cx.b.floor(p)?
                }
            };
            let i = inside(cx, i, a)?;
            cx.b.gather(x, i, a.axis)?
        }
        Mode::Linear | Mode::Cubic { .. } => weighted(cx, x, a, at, plan)?,
    };
    if a.roi.is_some() {
        // outside of the input there is nothing to read
        let zero = cx.b.scalar(DType::F64, 0.0)?;
        let last = size(cx, &a.input)?;
        let last = cx.b.add_scalar(last, -1.0)?;
        let (before, behind) = (cx.b.lt(at, zero)?, cx.b.gt(at, last)?);
        let outside = cx.b.or(before, behind)?;
        let outside = along(cx, outside, x, a.axis)?;
        let value = cx.like(v, plan.extrapolation)?;
        v = cx.b.select(outside, value, v)?;
    }
    Ok(v)
}

/// Nearest neighbours at a whole factor that only repeat each element: a view.
fn repeated(cx: &mut NodeCx, x: V, a: &Axis, plan: &Plan) -> Result<Option<V>, OpError> {
    let Mode::Nearest(rounding) = plan.mode else { return Ok(None) };
    let factor = match (a.scale, a.input.as_const(), a.output.as_const()) {
        (Some(s), ..) => s,
        (None, Some(i), Some(o)) if i > 0 => o as f64 / i as f64,
        _ => return Ok(None),
    };
    let centred = matches!(plan.coordinates, Coordinates::HalfPixel | Coordinates::HalfPixelSymmetric)
        || plan.coordinates == Coordinates::PytorchHalfPixel && a.input.bounds(cx.b.symbols()).0 > 1;
    let repeats = match rounding {
        Rounding::Floor => plan.coordinates == Coordinates::Asymmetric,
        // the centres of the copies lie less than half an element from that of the original
        Rounding::PreferFloor | Rounding::PreferCeil => centred,
        Rounding::Ceil => false,
    };
    if !repeats || factor.fract() != 0.0 || !(1.0..=4096.0).contains(&factor) {
        return Ok(None);
    }
    let factor = Dim::from(factor as i64);
    let shape = cx.shape(x);
    let (mut column, mut wide, mut out) = (shape.clone(), shape.clone(), shape);
    column.insert(a.axis + 1, Dim::from(1));
    wide.insert(a.axis + 1, factor.clone());
    out[a.axis] = &out[a.axis] * &factor;
    if out[a.axis] != a.output {
        return Ok(None);
    }
    let v = cx.b.reshape(x, &column)?;
    let v = cx.b.broadcast_to(v, &wide)?;
    Ok(Some(cx.b.reshape(v, &out)?))
}

/// A size as f64[].
fn size(cx: &mut NodeCx, d: &Dim) -> Result<V, OpError> {
    let v = cx.b.dim_value(d)?;
    Ok(cx.b.convert(v, DType::F64)?)
}

/// Where each result element lies in the input, f64[output].
fn positions(cx: &mut NodeCx, a: &Axis, mode: Coordinates) -> Result<V, OpError> {
    let o = cx.b.iota(DType::F64, std::slice::from_ref(&a.output), 0)?;
    let (n, m) = (size(cx, &a.input)?, size(cx, &a.output)?);
    let (scale, width) = match a.scale {
        Some(s) => {
            let s = cx.b.scalar(DType::F64, s)?;
            (s, cx.b.mul(s, n)?)
        }
        None => (cx.b.div(m, n)?, m),
    };
    let half_pixel = |cx: &mut NodeCx| -> Result<V, OpError> {
        let c = cx.b.add_scalar(o, 0.5)?;
        let c = cx.b.div(c, scale)?;
        Ok(cx.b.add_scalar(c, -0.5)?)
    };
    let one = cx.b.scalar(DType::F64, 1.0)?;
    Ok(match mode {
        Coordinates::HalfPixel => half_pixel(cx)?,
        Coordinates::Asymmetric => cx.b.div(o, scale)?,
        Coordinates::PytorchHalfPixel => {
            let single = cx.b.eq(width, one)?;
            let c = half_pixel(cx)?;
            let minus = cx.b.scalar(DType::F64, -0.5)?;
            cx.b.select(single, minus, c)?
        }
        Coordinates::HalfPixelSymmetric => {
            // centre * (1 - output / (scale * input)), which is 0 where the output is not rounded
            let adjustment = cx.b.div(m, width)?;
            let rest = cx.b.sub(one, adjustment)?;
            let centre = cx.b.mul_scalar(n, 0.5)?;
            let offset = cx.b.mul(centre, rest)?;
            let c = half_pixel(cx)?;
            cx.b.add(c, offset)?
        }
        Coordinates::AlignCorners => {
            let single = cx.b.eq(width, one)?;
            let (num, den) = (cx.b.sub(n, one)?, cx.b.sub(width, one)?);
            let den = cx.b.select(single, one, den)?;
            let c = cx.b.mul(o, num)?;
            let c = cx.b.div(c, den)?;
            let zero = cx.b.scalar(DType::F64, 0.0)?;
            cx.b.select(single, zero, c)?
        }
        Coordinates::CropAndResize => {
            let (start, end) = match a.roi {
                Some(r) => r,
                None => (cx.b.scalar(DType::F64, 0.0)?, one),
            };
            let span = cx.b.sub(end, start)?;
            let last = cx.b.sub(n, one)?;
            let span = cx.b.mul(span, last)?;
            let single = cx.b.eq(width, one)?;
            let den = cx.b.sub(width, one)?;
            let den = cx.b.select(single, one, den)?;
            let c = cx.b.mul(o, span)?;
            let c = cx.b.div(c, den)?;
            let middle = cx.b.mul_scalar(span, 0.5)?;
            let c = cx.b.select(single, middle, c)?;
            let origin = cx.b.mul(start, last)?;
            cx.b.add(c, origin)?
        }
    })
}

/// Whole positions, clamped to the input, as indices.
fn inside(cx: &mut NodeCx, at: V, a: &Axis) -> Result<V, OpError> {
    let i = cx.b.convert(at, DType::I64)?;
    let zero = cx.b.scalar_i64(0)?;
    let last = cx.b.dim_value(&(&a.input - &Dim::from(1)))?;
    let i = cx.b.min(i, last)?;
    Ok(cx.b.max(i, zero)?)
}

/// A vector along one axis of `like`.
fn along(cx: &mut NodeCx, v: V, like: V, axis: usize) -> Result<V, OpError> {
    let mut shape = vec![cx.dim(v, 0)?];
    shape.resize(cx.rank(like) - axis, Dim::from(1));
    Ok(cx.b.reshape(v, &shape)?)
}

/// The weighted sum of the 2 (linear) or 4 (cubic) neighbours.
fn weighted(cx: &mut NodeCx, x: V, a: &Axis, at: V, plan: &Plan) -> Result<V, OpError> {
    let base = cx.b.floor(at)?;
    let t = cx.b.sub(at, base)?;
    let one = cx.b.scalar(DType::F64, 1.0)?;
    let first = if plan.mode == Mode::Linear { 0 } else { -1 };
    let mut weights = match plan.mode {
        Mode::Cubic { a } => {
            let u = cx.b.sub(one, t)?;
            let far = |cx: &mut NodeCx, d: V| -> Result<V, OpError> {
                // ((a d - 5 a) d + 8 a) d - 4 a at distance d in 1..2
                let p = cx.b.mul_scalar(d, a)?;
                let p = cx.b.add_scalar(p, -5.0 * a)?;
                let p = cx.b.mul(p, d)?;
                let p = cx.b.add_scalar(p, 8.0 * a)?;
                let p = cx.b.mul(p, d)?;
                Ok(cx.b.add_scalar(p, -4.0 * a)?)
            };
            let near = |cx: &mut NodeCx, d: V| -> Result<V, OpError> {
                // ((a + 2) d - (a + 3)) d d + 1 at distance d in 0..1
                let p = cx.b.mul_scalar(d, a + 2.0)?;
                let p = cx.b.add_scalar(p, -(a + 3.0))?;
                let p = cx.b.mul(p, d)?;
                let p = cx.b.mul(p, d)?;
                Ok(cx.b.add_scalar(p, 1.0)?)
            };
            let (t1, u1) = (cx.b.add(t, one)?, cx.b.add(u, one)?);
            vec![far(cx, t1)?, near(cx, t)?, near(cx, u)?, far(cx, u1)?]
        }
        _ => vec![cx.b.sub(one, t)?, t],
    };
    let n = size(cx, &a.input)?;
    let zero = cx.b.scalar(DType::F64, 0.0)?;
    let mut indices = Vec::new();
    for (k, weight) in weights.iter_mut().enumerate() {
        let p = cx.b.add_scalar(base, (first + k as i64) as f64)?;
        if plan.exclude_outside {
            let (lo, hi) = (cx.b.ge(p, zero)?, cx.b.lt(p, n)?);
            let ok = cx.b.and(lo, hi)?;
            *weight = cx.b.select(ok, *weight, zero)?;
        }
        indices.push(inside(cx, p, a)?);
    }
    if plan.exclude_outside {
        let mut sum = weights[0];
        for w in &weights[1..] {
            sum = cx.b.add(sum, *w)?;
        }
        for w in &mut weights {
            *w = cx.b.div(*w, sum)?;
        }
    }
    let dtype = cx.dtype(x);
    let mut acc: Option<V> = None;
    for (i, w) in indices.into_iter().zip(weights) {
        let w = cx.b.convert(w, dtype)?;
        let w = along(cx, w, x, a.axis)?;
        let v = cx.b.gather(x, i, a.axis)?;
        let v = cx.b.mul(v, w)?;
        acc = Some(match acc {
            Some(s) => cx.b.add(s, v)?,
            None => v,
        });
    }
    acc.ok_or_else(|| OpError::invalid(Code::Attribute, "no neighbours"))
}

/// Largest matrix of filter weights.
const MAX_FILTER: i64 = 1 << 24;

/// Antialiasing widens the filter by the factor of shrinking: a product with a matrix of weights.
fn filtered(cx: &mut NodeCx, x: V, a: &Axis, plan: &Plan) -> Result<V, OpError> {
    let (Some(n), Some(m)) = (a.input.as_const(), a.output.as_const()) else {
        return Err(OpError::unsupported(Code::Dynamic, "antialias on an axis of symbolic size")
            .hint("fix the dimension with --dim"));
    };
    if a.roi.is_some() {
        return Err(OpError::unsupported(Code::Attribute, "antialias with a region of interest"));
    }
    if n == 0 || n.saturating_mul(m) > MAX_FILTER {
        return Err(OpError::limit(format!("a filter of {m} x {n} weights")));
    }
    let scale = a.scale.unwrap_or(m as f64 / n as f64);
    let width = scale * n as f64;
    let shrink = scale.min(1.0);
    let reach = if plan.mode == Mode::Linear { 1.0 } else { 2.0 };
    let start = (-reach / shrink).floor() as i64 + 1;
    let mut matrix = vec![0f32; (n * m) as usize];
    for o in 0..m {
        let of = o as f64;
        let half_pixel = (of + 0.5) / scale - 0.5;
        let at = match plan.coordinates {
            Coordinates::HalfPixel => half_pixel,
            Coordinates::Asymmetric => of / scale,
            Coordinates::PytorchHalfPixel if width == 1.0 => -0.5,
            Coordinates::PytorchHalfPixel => half_pixel,
            Coordinates::HalfPixelSymmetric => half_pixel + n as f64 / 2.0 * (1.0 - m as f64 / width),
            Coordinates::AlignCorners | Coordinates::CropAndResize if width == 1.0 => 0.0,
            Coordinates::AlignCorners | Coordinates::CropAndResize => of * (n - 1) as f64 / (width - 1.0),
        };
        // the neighbour on the left is strictly to the left
        let base = at.ceil() - 1.0;
        let ratio = at - base;
        let taps: Vec<(i64, f64)> = (start..=1 - start)
            .map(|i| {
                let d = ((i as f64 - ratio) * shrink).abs();
                let w = match plan.mode {
                    Mode::Cubic { a } if d <= 1.0 => (a + 2.0) * d.powi(3) - (a + 3.0) * d * d + 1.0,
                    Mode::Cubic { a } if d < 2.0 => a * d.powi(3) - 5.0 * a * d * d + 8.0 * a * d - 4.0 * a,
                    Mode::Cubic { .. } => 0.0,
                    _ => (1.0 - d).clamp(0.0, 1.0),
                };
                (base as i64 + i, w)
            })
            .filter(|(i, _)| !plan.exclude_outside || (0..n).contains(i))
            .collect();
        let sum: f64 = taps.iter().map(|t| t.1).sum();
        for (i, w) in taps {
            matrix[(o * n + i.clamp(0, n - 1)) as usize] += (w / sum) as f32;
        }
    }
    let w = cx.b.constant(Tensor::from_f32(vec![m as usize, n as usize], &matrix))?;
    let dtype = cx.dtype(x);
    let w = cx.b.convert(w, dtype)?;
    let y = cx.b.contract(x, w, &[], &[(a.axis, 1)], dtype)?;
    let mut perm: Vec<usize> = (0..cx.rank(y) - 1).collect();
    perm.insert(a.axis, cx.rank(y) - 1);
    Ok(cx.b.transpose(y, &perm)?)
}
