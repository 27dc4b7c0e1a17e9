//! Pooling.

use super::conv::{Window, explicit_pads, window};
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::prim::{Combine, Monoid};
use ir::{DType, Dim};

pub static OPS: &[Op] = &[
    op("AveragePool", 1, average_pool),
    op("GlobalAveragePool", 1, global_average_pool),
    op("GlobalLpPool", 2, global_lp_pool),
    op("GlobalMaxPool", 1, global_max_pool),
    op("LpPool", 2, lp_pool),
    op("MaxPool", 1, max_pool),
    op("MaxRoiPool", 1, max_roi_pool),
    op("MaxUnpool", 9, max_unpool),
];

/// A pool's window. `ceil` widens the padding behind so that the last, partial window counts.
struct Pool {
    x: V,
    window: Window,
    /// Padding behind that the model asks for, without the widening.
    declared_hi: Vec<Dim>,
    out: Vec<Dim>,
}

fn pool(cx: &NodeCx) -> Result<Pool, OpError> {
    let x = cx.input(0)?;
    let shape = cx.shape(x);
    if shape.len() < 3 {
        return Err(OpError::invalid(
            Code::Shape,
            format!("expected an input of rank 3 at least, found {}", shape.len()),
        ));
    }
    let kernel = cx.need_ints("kernel_shape")?;
    let mut window = window(cx, &shape[2..], kernel)?;
    let ceil = cx.flag("ceil_mode", false)?;
    let facts = cx.b.symbols();
    let declared_hi = window.pads.iter().map(|p| p.1.clone()).collect();
    let mut out = Vec::new();
    for (i, n) in shape[2..].iter().enumerate() {
        let reach = (window.kernel[i] - 1) * window.dilations[i] + 1;
        let (lo, hi) = window.pads[i].clone();
        let stride = Dim::from(window.strides[i]);
        let free = n + &lo + &hi - Dim::from(reach);
        if !ceil {
            out.push(free.floor_div(&stride, facts) + Dim::from(1));
            continue;
        }
        // the last window has to start inside the input or its front padding
        let count = free.ceil_div(&stride, facts) + Dim::from(1);
        let count = count.min_with(&(n + &lo).ceil_div(&stride, facts), facts);
        window.pads[i].1 = (&count - &Dim::from(1)) * &stride + Dim::from(reach) - n - &lo;
        out.push(count);
    }
    Ok(Pool { x, window, declared_hi, out })
}

fn max_pool(cx: &mut NodeCx) -> OpResult {
    let p = pool(cx)?;
    if cx.wants(1) {
        return max_pool_with_indices(cx, &p);
    }
    Ok(cx.b.window_reduce(Monoid::Max, p.x, &p.window.kernel, &p.window.dims())?.into())
}

/// Values and flat positions (in the input, or with `storage_order` 1 with the spatial dims
/// reversed) of the maxima: in each window the first element that equals its maximum. NaN is the maximum of its window.
fn max_pool_with_indices(cx: &mut NodeCx, p: &Pool) -> OpResult {
    let w = &p.window;
    let n = w.kernel.len();
    let all = w.kernel.iter().try_fold(1i64, |n, k| n.checked_mul(*k)).filter(|n| *n <= Dim::LIMIT);
    let all = all.ok_or_else(|| OpError::limit(format!("the indices of windows {:?}", w.kernel)))?;
    let dtype = cx.dtype(p.x);
    let shape = cx.shape(p.x);
    let lowest = cx.b.scalar_of(dtype, Monoid::Max.identity(dtype))?;
    let mut lo = vec![Dim::from(0); 2 + n];
    let mut hi = lo.clone();
    for i in 0..n {
        lo[2 + i] = w.pads[i].0.clone();
        hi[2 + i] = w.pads[i].1.clone();
    }
    let mut windows = cx.b.pad(p.x, lowest, &lo, &hi, &vec![0; 2 + n])?;
    // windows [N, C, O1, K1, O2, K2, ...], and for each dim its positions in the input, before padding, [1, .., Oi, Ki, ..]
    let mut positions = Vec::new();
    for i in 0..n {
        let size = [p.out[i].clone(), Dim::from(w.kernel[i])];
        let window = cx.b.iota(DType::I64, &size, 0)?;
        let window = cx.b.mul_scalar(window, w.strides[i] as f64)?;
        let tap = cx.b.iota(DType::I64, &size, 1)?;
        let tap = cx.b.mul_scalar(tap, w.dilations[i] as f64)?;
        let position = cx.b.add(window, tap)?;
        windows = cx.b.gather(windows, position, 2 + 2 * i)?;
        let pad = cx.b.dim_value(&w.pads[i].0)?;
        let position = cx.b.sub(position, pad)?;
        positions.push(cx.b.reshape(position, &spread(n, i, size))?);
    }
    let taps: Vec<usize> = (0..n).map(|i| 3 + 2 * i).collect();
    let values = cx.b.window_reduce(Monoid::Max, p.x, &w.kernel, &w.dims())?;
    let mut each = cx.shape(values)[..2].to_vec();
    each.extend(p.out.iter().flat_map(|o| [o.clone(), Dim::from(1)]));
    let best = cx.b.reshape(values, &each)?;
    let mut hit = cx.b.eq(windows, best)?;
    if dtype.is_float() {
        let nan = cx.b.ne(windows, windows)?;
        hit = cx.b.or(hit, nan)?;
    }
    // padding never wins, not even over a lowest value that is really there
    for (i, position) in positions.iter().enumerate() {
        if !(lo[2 + i].is_const(0) && hi[2 + i].is_const(0)) {
            let (zero, extent) = (cx.b.scalar_i64(0)?, cx.b.dim_value(&shape[2 + i])?);
            let (from, to) = (cx.b.ge(*position, zero)?, cx.b.lt(*position, extent)?);
            let inside = cx.b.and(from, to)?;
            hit = cx.b.and(hit, inside)?;
        }
    }
    // the first tap in the order of the dims; a window of padding alone has that of its start
    let mut number = cx.b.scalar_i64(0)?;
    for (i, &k) in w.kernel.iter().enumerate() {
        let one = cx.b.iota(DType::I64, &spread(n, i, [Dim::from(1), Dim::from(k)]), 3 + 2 * i)?;
        number = cx.b.mul_scalar(number, k as f64)?;
        number = cx.b.add(number, one)?;
    }
    let none = cx.b.scalar_i64(all)?;
    let number = cx.b.select(hit, number, none)?;
    let first = cx.b.reduce(Monoid::Min, number, &taps, true)?;
    let first = cx.b.rem(first, none)?;
    let at = flat_positions(cx, p, &shape, first)?;
    let size = [&shape[..2], &p.out].concat();
    Ok([values, cx.b.reshape(at, &size)?].into())
}

/// The shape [1, 1, ..] of windows with this size of outputs and taps in dim `i` alone.
fn spread(n: usize, i: usize, size: [Dim; 2]) -> Vec<Dim> {
    let mut shape = vec![Dim::from(1); 2 + 2 * n];
    shape[2 + 2 * i..4 + 2 * i].clone_from_slice(&size);
    shape
}

/// Flat positions in the input of taps, numbered in the order of the dims, [N, C, O1, 1, O2, 1, ...].
fn flat_positions(cx: &mut NodeCx, p: &Pool, shape: &[Dim], tap: V) -> Result<V, OpError> {
    let w = &p.window;
    let n = w.kernel.len();
    let column_major = cx.int("storage_order", 0)? == 1;
    let spatial = &shape[2..];
    let mut planes = vec![Dim::from(1); 2 + 2 * n];
    planes[..2].clone_from_slice(&shape[..2]);
    let (row, channel) = (cx.b.iota(DType::I64, &planes, 0)?, cx.b.iota(DType::I64, &planes, 1)?);
    let count = cx.b.dim_value(&shape[1])?;
    let row = cx.b.mul(row, count)?;
    let plane = cx.b.add(row, channel)?;
    let area = cx.b.dim_value(&Dim::product(spatial))?;
    let mut place = cx.b.mul(plane, area)?;
    for i in 0..n {
        let window = cx.b.iota(DType::I64, &spread(n, i, [p.out[i].clone(), Dim::from(1)]), 2 + 2 * i)?;
        let window = cx.b.mul_scalar(window, w.strides[i] as f64)?;
        let later = cx.b.scalar_i64(w.kernel[i + 1..].iter().product())?;
        let own = cx.b.scalar_i64(w.kernel[i])?;
        let step = cx.b.div(tap, later)?;
        let step = cx.b.rem(step, own)?;
        let step = cx.b.mul_scalar(step, w.dilations[i] as f64)?;
        let position = cx.b.add(window, step)?;
        let pad = cx.b.dim_value(&w.pads[i].0)?;
        let position = cx.b.sub(position, pad)?;
        let weight = if column_major { Dim::product(&spatial[..i]) } else { Dim::product(&spatial[i + 1..]) };
        let weight = cx.b.dim_value(&weight)?;
        let part = cx.b.mul(position, weight)?;
        place = cx.b.add(place, part)?;
    }
    Ok(place)
}

/// Sums in f32 where the elements are halves, whose range a sum leaves easily.
fn widen(cx: &mut NodeCx, x: V) -> Result<V, OpError> {
    Ok(match cx.dtype(x) {
        DType::F16 | DType::BF16 => cx.b.convert(x, DType::F32)?,
        _ => x,
    })
}

/// Number of elements that count in each window, as a tensor that broadcasts over the result.
fn counts(cx: &mut NodeCx, p: &Pool, with_pads: bool, dtype: DType) -> Result<V, OpError> {
    let shape = cx.shape(p.x);
    let w = &p.window;
    let n = w.kernel.len();
    let mut product: Option<V> = None;
    let mut whole = 1i64;
    for i in 0..n {
        let (lo, hi) = &w.pads[i];
        // padding that counts belongs to the extent
        let (extent, lo, hi) = if with_pads {
            (&shape[2 + i] + lo + &p.declared_hi[i], Dim::from(0), hi - &p.declared_hi[i])
        } else {
            (shape[2 + i].clone(), lo.clone(), hi.clone())
        };
        if lo.is_const(0) && hi.is_const(0) {
            whole *= w.kernel[i];
            continue;
        }
        let ones = cx.b.full(dtype, &[extent], 1.0)?;
        let mut dim = w.dims()[i].clone();
        (dim.pad_lo, dim.pad_hi) = (lo, hi);
        let count = cx.b.window_reduce(Monoid::Sum, ones, &w.kernel[i..=i], &[dim])?;
        let mut at = vec![p.out[i].clone()];
        at.resize(n - i, Dim::from(1));
        let count = cx.b.reshape(count, &at)?;
        product = Some(match product {
            Some(v) => cx.b.mul(v, count)?,
            None => count,
        });
    }
    let whole_v = cx.b.scalar(dtype, whole as f64)?;
    Ok(match product {
        Some(v) if whole == 1 => v,
        Some(v) => cx.b.mul(v, whole_v)?,
        None => whole_v,
    })
}

fn average_pool(cx: &mut NodeCx) -> OpResult {
    let p = pool(cx)?;
    let dtype = cx.dtype(p.x);
    let with_pads = cx.flag("count_include_pad", false)?;
    let wide = widen(cx, p.x)?;
    let acc = cx.dtype(wide);
    let sum = cx.b.window_reduce(Monoid::Sum, wide, &p.window.kernel, &p.window.dims())?;
    let count = counts(cx, &p, with_pads, acc)?;
    let mean = cx.b.div(sum, count)?;
    Ok(cx.b.convert(mean, dtype)?.into())
}

/// `(sum |x|^p)^(1/p)` over each window.
fn lp_pool(cx: &mut NodeCx) -> OpResult {
    let p = pool(cx)?;
    let power = cx.int("p", 2)?;
    let dtype = cx.dtype(p.x);
    let wide = widen(cx, p.x)?;
    let v = abs_power(cx, wide, power)?;
    let sum = cx.b.window_reduce(Monoid::Sum, v, &p.window.kernel, &p.window.dims())?;
    let root = root(cx, sum, power)?;
    Ok(cx.b.convert(root, dtype)?.into())
}

fn abs_power(cx: &mut NodeCx, x: V, p: i64) -> Result<V, OpError> {
    Ok(match p {
        1 => cx.b.abs(x)?,
        2 => cx.b.mul(x, x)?,
        p => {
            let a = cx.b.abs(x)?;
            let e = cx.like(a, p as f64)?;
            cx.b.pow(a, e)?
        }
    })
}

fn root(cx: &mut NodeCx, x: V, p: i64) -> Result<V, OpError> {
    Ok(match p {
        1 => x,
        2 => cx.b.sqrt(x)?,
        p => {
            let e = cx.like(x, 1.0 / p as f64)?;
            cx.b.pow(x, e)?
        }
    })
}

/// The spatial axes of the input.
fn spatial(cx: &NodeCx) -> Result<(V, Vec<usize>), OpError> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    if rank < 2 {
        return Err(OpError::invalid(
            Code::Shape,
            format!("expected an input of rank 2 at least, found {rank}"),
        ));
    }
    Ok((x, (2..rank).collect()))
}

fn global_average_pool(cx: &mut NodeCx) -> OpResult {
    let (x, axes) = spatial(cx)?;
    Ok(super::reduce::mean(cx, x, &axes, true)?.into())
}

fn global_max_pool(cx: &mut NodeCx) -> OpResult {
    let (x, axes) = spatial(cx)?;
    Ok(cx.b.reduce_max(x, &axes, true)?.into())
}

fn global_lp_pool(cx: &mut NodeCx) -> OpResult {
    let (x, axes) = spatial(cx)?;
    let power = cx.int("p", 2)?;
    let dtype = cx.dtype(x);
    let wide = widen(cx, x)?;
    let v = abs_power(cx, wide, power)?;
    let sum = cx.b.reduce_sum(v, &axes, true)?;
    let root = root(cx, sum, power)?;
    Ok(cx.b.convert(root, dtype)?.into())
}

/// Puts each element back at its flat position; zeros elsewhere.
fn max_unpool(cx: &mut NodeCx) -> OpResult {
    let (x, at) = (cx.input(0)?, cx.input(1)?);
    let shape = cx.shape(x);
    if shape.len() < 3 {
        return Err(OpError::invalid(
            Code::Shape,
            format!("expected an input of rank 3 at least, found {}", shape.len()),
        ));
    }
    let n = shape.len() - 2;
    let kernel = cx.need_ints("kernel_shape")?;
    let strides = cx.ints("strides")?.unwrap_or_else(|| vec![1; n]);
    let pads = explicit_pads(cx, n)?;
    if kernel.len() != n || strides.len() != n {
        return Err(OpError::invalid(
            Code::Attribute,
            format!("kernel {kernel:?} and strides {strides:?} for {n} dims"),
        ));
    }
    let mut inferred = shape[..2].to_vec();
    for i in 0..n {
        let steps = (&shape[2 + i] - &Dim::from(1)) * Dim::from(strides[i]);
        inferred.push(steps + Dim::from(kernel[i] - pads[i].0 - pads[i].1));
    }
    let dtype = cx.dtype(x);
    let total = Dim::product(&inferred);
    let count = Dim::product(&shape);
    let base = cx.b.full(dtype, &[total], 0.0)?;
    let at = cx.b.reshape(at, std::slice::from_ref(&count))?;
    let values = cx.b.reshape(x, &[count])?;
    let flat = cx.b.scatter(base, at, values, Combine::Set)?;
    let y = cx.b.reshape(flat, &inferred)?;
    let Some(wanted) = cx.opt(2)? else { return Ok(y.into()) };
    let wanted = cx.sizes_of(wanted, 0)?;
    if wanted.len() != inferred.len() {
        return Err(OpError::invalid(Code::Shape, format!("an output shape of {} dims", wanted.len())));
    }
    let hi: Vec<Dim> = wanted.iter().zip(&inferred).map(|(w, i)| w - i).collect();
    let zero = cx.like(y, 0.0)?;
    Ok(cx.b.pad(y, zero, &vec![Dim::from(0); hi.len()], &hi, &vec![0; hi.len()])?.into())
}

/// Maxima over the bins of regions. `rois` [R, 5] hold the number of the image and the corners x1, y1, x2, y2, which
/// belong to the region, in pixels times `spatial_scale`; bins share the pixels at their borders. An empty bin gives 0.
fn max_roi_pool(cx: &mut NodeCx) -> OpResult {
    let (x, rois) = (cx.input(0)?, cx.input(1)?);
    cx.check_rank("X", x, 4)?;
    cx.check_rank("rois", rois, 2)?;
    let pooled = cx.need_ints("pooled_shape")?;
    let &[bins_h, bins_w] = pooled.as_slice() else {
        return Err(OpError::invalid(Code::Attribute, "pooled_shape should hold two sizes"));
    };
    if ![bins_h, bins_w].iter().all(|n| (1..=1 << 12).contains(n)) {
        return Err(OpError::invalid(Code::Attribute, format!("pooled_shape {pooled:?}")));
    }
    let scale = f64::from(cx.float("spatial_scale", 1.0)?);
    let (shape, dtype) = (cx.shape(x), cx.dtype(x));
    let compute = super::compose::wide(dtype);
    let b = &mut *cx.b;
    let rois = b.convert(rois, compute)?;
    let image = b.index_axis(rois, 1, &Dim::from(0))?;
    let image = b.convert(image, DType::I64)?;
    // [R, C, H, W]
    let mut y = b.gather(x, image, 0)?;
    let least = b.scalar(dtype, f64::NEG_INFINITY)?;
    // first along rows, then along columns: [R, C, H, bins] and [R, C, bins, bins]
    for (axis, corner, bins) in [(3, 1, bins_w), (2, 2, bins_h)] {
        let inside = bin_masks(b, rois, corner, bins, &shape[axis], scale)?;
        // [R, bins, n] among [R, C, .., bins, n] or [R, C, bins, n, ..]
        let (y_axes, mask_axes): (&[i64], &[i64]) = if axis == 3 { (&[3], &[1, 2]) } else { (&[2], &[1, 4]) };
        let wide = b.unsqueeze(y, y_axes)?;
        let inside = b.unsqueeze(inside, mask_axes)?;
        let seen = b.select(inside, wide, least)?;
        y = b.reduce_max(seen, &[if axis == 3 { 4 } else { 3 }], false)?;
    }
    let (zero, empty) = (b.scalar(dtype, 0.0)?, b.eq(y, least)?);
    Ok(b.select(empty, zero, y)?.into())
}

/// Which of `n` places belong to each bin of the regions: [R, bins, n].
fn bin_masks(
    b: &mut ir::build::Builder,
    rois: V,
    corner: i64,
    bins: i64,
    n: &Dim,
    scale: f64,
) -> ir::Result<V> {
    let dtype = b.dtype(rois);
    let edge = |b: &mut ir::build::Builder, at: i64| -> ir::Result<V> {
        let e = b.slice_axis(rois, 1, &Dim::from(at), &Dim::from(1))?;
        let e = b.mul_scalar(e, scale)?;
        // halves away from zero
        let a = b.abs(e)?;
        let a = b.add_scalar(a, 0.5)?;
        let a = b.floor(a)?;
        let zero = b.scalar(dtype, 0.0)?;
        let negative = b.lt(e, zero)?;
        let minus = b.neg(a)?;
        b.select(negative, minus, a)
    };
    let (first, last) = (edge(b, corner)?, edge(b, corner + 2)?);
    let extent = b.sub(last, first)?;
    let extent = b.add_scalar(extent, 1.0)?;
    let one = b.scalar(dtype, 1.0)?;
    let extent = b.max(extent, one)?;
    let each = b.mul_scalar(extent, 1.0 / bins as f64)?;
    let number = super::compose::arange(b, dtype, &Dim::from(bins), 1, 2)?;
    let next = b.add_scalar(number, 1.0)?;
    let (lo, hi) = (b.mul(number, each)?, b.mul(next, each)?);
    let (lo, hi) = (b.floor(lo)?, b.ceil(hi)?);
    let (lo, hi) = (b.add(lo, first)?, b.add(hi, first)?);
    let (lo, hi) = (b.unsqueeze(lo, &[2])?, b.unsqueeze(hi, &[2])?);
    let place = super::compose::arange(b, dtype, n, 2, 3)?;
    let (after, before) = (b.ge(place, lo)?, b.lt(place, hi)?);
    b.and(after, before)
}
