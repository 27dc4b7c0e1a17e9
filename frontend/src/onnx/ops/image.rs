//! Sampling of images at computed positions, and selection of boxes.

use super::compose::{self, arange, wide};
use super::{Op, conv, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::prim::{HostFn, Monoid, Pixels};
use ir::{DType, Dim, Result};

pub static OPS: &[Op] = &[
    op("AffineGrid", 20, affine_grid),
    op("Col2Im", 18, col2im),
    op("DeformConv", 19, deform_conv),
    op("GridSample", 16, grid_sample),
    op("ImageDecoder", 20, image_decoder),
    op("NonMaxSuppression", 10, non_max_suppression),
    op("RoiAlign", 10, roi_align),
];

/// One of the positions along a dim that a sample is made of.
struct Tap {
    /// i64 index inside the dim.
    at: V,
    /// False where there is no element: 0 stands for it.
    valid: Option<V>,
    weight: Option<V>,
}

/// Weighted sums of elements of x[B, C, D...] at positions p[B, O]: [B, O, C]. `taps` are those of each
/// spatial dim; every combination of them is read.
fn sample(b: &mut Builder, x: V, taps: &[Vec<Tap>]) -> Result<V> {
    let shape = b.shape(x).to_vec();
    let area = Dim::product(&shape[2..]);
    let flat = b.reshape(x, &[shape[0].clone(), shape[1].clone(), area.clone()])?;
    let flat = b.transpose(flat, &[0, 2, 1])?;
    let table = b.reshape(flat, &[&shape[0] * &area, shape[1].clone()])?;
    let batch = b.iota(DType::I64, &[shape[0].clone(), Dim::from(1)], 0)?;
    let area = b.dim_value(&area)?;
    let base = b.mul(batch, area)?;
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let mut sum: Option<V> = None;
    let mut choice = vec![0; taps.len()];
    loop {
        let mut place = base;
        let (mut valid, mut weight): (Option<V>, Option<V>) = (None, None);
        for (d, &c) in choice.iter().enumerate() {
            let tap = &taps[d][c];
            let stride = b.dim_value(&Dim::product(&shape[3 + d..]))?;
            let step = b.mul(tap.at, stride)?;
            place = b.add(place, step)?;
            valid = match (valid, tap.valid) {
                (Some(v), Some(t)) => Some(b.and(v, t)?),
                (v, t) => v.or(t),
            };
            weight = match (weight, tap.weight) {
                (Some(w), Some(t)) => Some(b.mul(w, t)?),
                (w, t) => w.or(t),
            };
        }
        let mut v = b.gather(table, place, 0)?;
        if let Some(w) = weight {
            let w = b.unsqueeze(w, &[2])?;
            v = b.mul(v, w)?;
        }
        if let Some(ok) = valid {
            let ok = b.unsqueeze(ok, &[2])?;
            v = b.select(ok, v, zero)?;
        }
        sum = Some(match sum {
            Some(s) => b.add(s, v)?,
            None => v,
        });
        // the next combination, last dim fastest
        let mut d = taps.len();
        loop {
            if d == 0 {
                return match sum {
                    Some(s) => Ok(s),
                    None => Ok(zero),
                };
            }
            d -= 1;
            choice[d] += 1;
            if choice[d] < taps[d].len() {
                break;
            }
            choice[d] = 0;
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// Extent of a dim as a float scalar.
fn extent_value(b: &mut Builder, n: &Dim, dtype: DType) -> Result<V> {
    let v = b.dim_value(n)?;
    b.convert(v, dtype)
}

/// A position outside `lo..=hi` mirrored at the nearest border until it is inside.
fn reflect(b: &mut Builder, x: V, lo: V, hi: V) -> Result<V> {
    let range = b.sub(hi, lo)?;
    let one = b.scalar(b.dtype(x), 1.0)?;
    // a single element has no range; what comes out is limited to it afterwards
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let none = b.le(range, zero)?;
    let range = b.select(none, one, range)?;
    let d = b.sub(x, lo)?;
    let d = b.abs(d)?;
    let n = b.div(d, range)?;
    let n = b.floor(n)?;
    let whole = b.mul(n, range)?;
    let rest = b.sub(d, whole)?;
    let two = b.scalar(b.dtype(x), 2.0)?;
    let odd = b.rem(n, two)?;
    let odd = b.ne(odd, zero)?;
    let (up, down) = (b.add(lo, rest)?, b.sub(hi, rest)?);
    b.select(odd, down, up)
}

/// The tap at integer position `p` (a float) of a dim of `n` elements.
fn tap(b: &mut Builder, p: V, n: V, borders: (V, V), padding: Padding, weight: Option<V>) -> Result<Tap> {
    let dtype = b.dtype(p);
    let (zero, one) = (b.scalar(dtype, 0.0)?, b.scalar(dtype, 1.0)?);
    let last = b.sub(n, one)?;
    let valid = if padding == Padding::Zeros {
        let (a, c) = (b.ge(p, zero)?, b.le(p, last)?);
        Some(b.and(a, c)?)
    } else {
        None
    };
    let p = if padding == Padding::Reflection {
        let r = reflect(b, p, borders.0, borders.1)?;
        b.trunc(r)?
    } else {
        p
    };
    let p = b.clamp(p, zero, last)?;
    Ok(Tap { at: b.convert(p, DType::I64)?, valid, weight })
}

/// Keys' cubic convolution weights (a = -0.75) of the four elements around a position, `x` behind the
/// second one.
fn cubic_weights(b: &mut Builder, x: V) -> Result<[V; 4]> {
    const A: f64 = -0.75;
    let poly = |b: &mut Builder, x: V, c: [f64; 4]| -> Result<V> {
        let mut y = b.scalar(b.dtype(x), c[0])?;
        for &k in &c[1..] {
            y = b.mul(y, x)?;
            y = b.add_scalar(y, k)?;
        }
        Ok(y)
    };
    let outer = [A, -5.0 * A, 8.0 * A, -4.0 * A];
    let inner = [A + 2.0, -(A + 3.0), 0.0, 1.0];
    let back = b.neg(x)?;
    let from = |b: &mut Builder, v: V, by: f64| b.add_scalar(v, by);
    let (x1, r, r2) = (from(b, x, 1.0)?, from(b, back, 1.0)?, from(b, back, 2.0)?);
    Ok([poly(b, x1, outer)?, poly(b, x, inner)?, poly(b, r, inner)?, poly(b, r2, outer)?])
}

/// x[N, C, D...] at the positions that grid[N, O..., r] names by numbers from -1 to 1, last dim first.
fn grid_sample(cx: &mut NodeCx) -> OpResult {
    let (x, grid) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    let spatial = rank.saturating_sub(2);
    if spatial == 0 || cx.rank(grid) != rank || cx.dim(grid, rank - 1)?.as_const() != Some(spatial as i64) {
        return Err(OpError::invalid(Code::Shape, "expected input [N, C, D...] and grid [N, O..., r]"));
    }
    let mode = match cx.string("mode", "linear")? {
        "linear" | "bilinear" => "linear",
        "cubic" | "bicubic" => "cubic",
        "nearest" => "nearest",
        m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
    };
    if spatial > if mode == "cubic" { 3 } else { 6 } {
        return Err(OpError::limit(format!("{spatial} spatial dims")));
    }
    let padding = match cx.string("padding_mode", "zeros")? {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        m => return Err(OpError::invalid(Code::Attribute, format!("padding_mode {m:?}"))),
    };
    let align = cx.flag("align_corners", false)?;
    let (xs, gs, dtype) = (cx.shape(x), cx.shape(grid), cx.dtype(x));
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let b = &mut *cx.b;
    let points = Dim::product(&gs[1..rank - 1]);
    let grid = b.reshape(grid, &[gs[0].clone(), points, Dim::from(spatial)])?;
    let grid = b.convert(grid, compute)?;
    let mut taps = Vec::new();
    for d in 0..spatial {
        let g = b.index_axis(grid, 2, &Dim::from(spatial - 1 - d))?;
        let n = extent_value(b, &xs[2 + d], compute)?;
        let (zero, last) = (b.scalar(compute, 0.0)?, b.add_scalar(n, -1.0)?);
        let shifted = b.add_scalar(g, 1.0)?;
        let mut p = if align {
            let h = b.mul_scalar(shifted, 0.5)?;
            b.mul(h, last)?
        } else {
            let s = b.mul(shifted, n)?;
            let s = b.add_scalar(s, -1.0)?;
            b.mul_scalar(s, 0.5)?
        };
        let borders = if align { (zero, last) } else { (b.scalar(compute, -0.5)?, b.add_scalar(n, -0.5)?) };
        if mode == "nearest" {
            p = b.round_even(p)?;
        }
        match padding {
            Padding::Zeros => {}
            // the four elements of a cubic are limited one by one
            Padding::Border if mode == "cubic" => {}
            Padding::Border => p = b.clamp(p, zero, last)?,
            Padding::Reflection => {
                let (below, above) = (b.lt(p, borders.0)?, b.gt(p, borders.1)?);
                let outside = b.or(below, above)?;
                let r = reflect(b, p, borders.0, borders.1)?;
                p = b.select(outside, r, p)?;
            }
        }
        let mut own = Vec::new();
        if mode == "nearest" {
            own.push(tap(b, p, n, borders, padding, None)?);
        } else {
            let first = b.floor(p)?;
            let f = b.sub(p, first)?;
            let weights = if mode == "linear" {
                let r = b.neg(f)?;
                vec![b.add_scalar(r, 1.0)?, f]
            } else {
                cubic_weights(b, f)?.to_vec()
            };
            let before = if mode == "linear" { 0.0 } else { -1.0 };
            for (i, w) in weights.into_iter().enumerate() {
                let at = b.add_scalar(first, before + i as f64)?;
                own.push(tap(b, at, n, borders, padding, Some(w))?);
            }
        }
        taps.push(own);
    }
    let wide_x = b.convert(x, compute)?;
    let y = sample(b, wide_x, &taps)?;
    let y = b.transpose(y, &[0, 2, 1])?;
    let shape = [&[xs[0].clone(), xs[1].clone()], &gs[1..rank - 1]].concat();
    let y = b.reshape(y, &shape)?;
    Ok(b.convert(y, dtype)?.into())
}

/// Positions of an evenly spaced grid, transformed by theta[N, r, r + 1].
fn affine_grid(cx: &mut NodeCx) -> OpResult {
    let (theta, size) = (cx.input(0)?, cx.input(1)?);
    cx.check_rank("theta", theta, 3)?;
    let size = cx.sizes_of(size, 0)?;
    let align = cx.flag("align_corners", false)?;
    let dtype = cx.dtype(theta);
    let compute = wide(dtype);
    let Some(dims) = size.get(2..).filter(|d| !d.is_empty()) else {
        return Err(OpError::invalid(Code::Shape, "size should be [N, C, D...]"));
    };
    let r = dims.len();
    let b = &mut *cx.b;
    let full = [dims, &[Dim::from(1)]].concat();
    let mut parts = Vec::new();
    // x, the last dim, comes first
    for d in (0..r).rev() {
        let i = b.iota(compute, &full, d)?;
        let n = extent_value(b, &dims[d], compute)?;
        let (numerator, denominator) = if align {
            (b.mul_scalar(i, 2.0)?, b.add_scalar(n, -1.0)?)
        } else {
            let t = b.mul_scalar(i, 2.0)?;
            (b.add_scalar(t, 1.0)?, n)
        };
        let q = b.div(numerator, denominator)?;
        parts.push(b.add_scalar(q, -1.0)?);
    }
    parts.push(b.full(compute, &full, 1.0)?);
    let points = b.concat(&parts, r)?;
    let theta = b.convert(theta, compute)?;
    let y = b.contract(points, theta, &[], &[(r, 2)], compute)?;
    // [D..., N, r]
    let perm: Vec<usize> = [r].into_iter().chain(0..r).chain([r + 1]).collect();
    let y = b.transpose(y, &perm)?;
    Ok(b.convert(y, dtype)?.into())
}

/// Most positions of a block that is put in place position by position.
const MAX_TAPS: i64 = 4096;

/// Blocks x[N, C * taps, L] added up where they lie in an image [N, C, D...].
fn col2im(cx: &mut NodeCx) -> OpResult {
    let (x, image, block) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    cx.check_rank("input", x, 3)?;
    let image = cx.sizes_of(image, 0)?;
    let block = cx.need_const_ints("block_shape", block)?;
    let n = block.len();
    let taps = block.iter().try_fold(1i64, |t, &k| t.checked_mul(k).filter(|_| k > 0));
    let Some(taps) = taps.filter(|&t| t <= MAX_TAPS && image.len() == n) else {
        return Err(OpError::invalid(Code::Input, format!("block_shape {block:?} for {} dims", image.len())));
    };
    let window = conv::window(cx, &image, block.clone())?;
    let shape = cx.shape(x);
    let b = &mut *cx.b;
    let channels = shape[1].floor_div(&Dim::from(taps), b.symbols());
    // number of blocks by dim
    let blocks: Vec<Dim> = (0..n)
        .map(|d| {
            let reach = Dim::from(window.dilations[d] * (block[d] - 1) + 1);
            let free = &image[d] + &window.pads[d].0 + &window.pads[d].1 - reach;
            free.floor_div(&Dim::from(window.strides[d]), b.symbols()) + Dim::from(1)
        })
        .collect();
    let split = [&[shape[0].clone(), channels, Dim::from(taps)], &blocks[..]].concat();
    let x = b.reshape(x, &split)?;
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let mut sum: Option<V> = None;
    for t in 0..taps {
        let part = b.index_axis(x, 2, &Dim::from(t))?;
        let (mut lo, mut hi, mut gaps) =
            (vec![Dim::from(0); 2 + n], vec![Dim::from(0); 2 + n], vec![0; 2 + n]);
        let mut rest = t;
        for d in (0..n).rev() {
            let at = rest % block[d] * window.dilations[d];
            rest /= block[d];
            let spread = (&blocks[d] - &Dim::from(1)) * Dim::from(window.strides[d]) + Dim::from(1);
            lo[2 + d] = Dim::from(at) - &window.pads[d].0;
            hi[2 + d] = &image[d] - &spread - &lo[2 + d];
            gaps[2 + d] = window.strides[d] - 1;
        }
        let placed = b.pad(part, zero, &lo, &hi, &gaps)?;
        sum = Some(match sum {
            Some(s) => b.add(s, placed)?,
            None => placed,
        });
    }
    Ok(sum.unwrap_or(zero).into())
}

/// A convolution that reads its input at positions moved by `offset`, with linear interpolation.
fn deform_conv(cx: &mut NodeCx) -> OpResult {
    let (x, w, offset) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (bias, mask) = (cx.opt(3)?, cx.opt(4)?);
    let rank = cx.rank(x);
    if !(3..=8).contains(&rank) {
        return Err(OpError::invalid(Code::Shape, format!("an input of rank {rank}")));
    }
    cx.check_rank("W", w, rank)?;
    cx.check_rank("offset", offset, rank)?;
    let r = rank - 2;
    let (xs, ws, os) = (cx.shape(x), cx.shape(w), cx.shape(offset));
    let kernel = conv::kernel_of(cx, w)?;
    let window = conv::window(cx, &xs[2..], kernel)?;
    let groups = Dim::from(conv::groups(cx, &xs[1])?);
    let parts = match cx.int("offset_group", 1)? {
        n if n > 0 => Dim::from(n),
        n => return Err(OpError::invalid(Code::Attribute, format!("offset_group {n}"))),
    };
    let dtype = cx.dtype(x);
    let compute = wide(dtype);
    let b = &mut *cx.b;
    let (taps_count, outs) = (Dim::product(&ws[2..]), &os[2..]);
    let area = Dim::product(outs);
    // [N * parts, kernel positions * outputs]
    let rows = &xs[0] * &parts;
    let points = &taps_count * &area;
    let split = [std::slice::from_ref(&rows), &ws[2..], &[Dim::from(r)], outs].concat();
    let offset = b.reshape(offset, &split)?;
    let offset = b.convert(offset, compute)?;
    let one = Dim::from(1);
    let mut taps = Vec::new();
    for d in 0..r {
        let moved = b.index_axis(offset, 1 + r, &Dim::from(d))?;
        // places of the kernel and of the output among [rows, kernel..., out...]
        let mut shape = vec![one.clone(); 1 + 2 * r];
        shape[1 + d] = ws[2 + d].clone();
        let k = b.iota(compute, &shape, 1 + d)?;
        let k = b.mul_scalar(k, window.dilations[d] as f64)?;
        let mut shape = vec![one.clone(); 1 + 2 * r];
        shape[1 + r + d] = outs[d].clone();
        let o = b.iota(compute, &shape, 1 + r + d)?;
        let o = b.mul_scalar(o, window.strides[d] as f64)?;
        let pad = extent_value(b, &window.pads[d].0, compute)?;
        let p = b.add(k, o)?;
        let p = b.sub(p, pad)?;
        let p = b.add(p, moved)?;
        let p = b.reshape(p, &[rows.clone(), points.clone()])?;
        let n = extent_value(b, &xs[2 + d], compute)?;
        let zero = b.scalar(compute, 0.0)?;
        let first = b.floor(p)?;
        let f = b.sub(p, first)?;
        let rest = b.neg(f)?;
        let rest = b.add_scalar(rest, 1.0)?;
        let next = b.add_scalar(first, 1.0)?;
        let borders = (zero, zero);
        taps.push(vec![
            tap(b, first, n, borders, Padding::Zeros, Some(rest))?,
            tap(b, next, n, borders, Padding::Zeros, Some(f))?,
        ]);
    }
    let each = xs[1].floor_div(&parts, b.symbols());
    let grouped = [&[rows.clone(), each.clone()], &xs[2..]].concat();
    let table = b.reshape(x, &grouped)?;
    let table = b.convert(table, compute)?;
    let mut v = sample(b, table, &taps)?;
    if let Some(mask) = mask {
        let mask = b.reshape(mask, &[rows, points, one.clone()])?;
        let mask = b.convert(mask, compute)?;
        v = b.mul(v, mask)?;
    }
    // [N, parts, K, O, C / parts] to [N, G, C / G, K, O]
    let v = b.reshape(v, &[xs[0].clone(), parts, taps_count.clone(), area.clone(), each])?;
    let v = b.transpose(v, &[0, 1, 4, 2, 3])?;
    let inner = ws[1].clone();
    let v = b.reshape(v, &[xs[0].clone(), groups.clone(), inner.clone(), taps_count.clone(), area])?;
    let outer = ws[0].floor_div(&groups, b.symbols());
    let w = b.reshape(w, &[groups, outer, inner, taps_count])?;
    let w = b.convert(w, compute)?;
    let y = b.contract(v, w, &[(1, 0)], &[(2, 2), (3, 3)], compute)?;
    // [G, N, O, oC / G]
    let y = b.transpose(y, &[1, 0, 3, 2])?;
    let y = b.reshape(y, &[&[xs[0].clone(), ws[0].clone()], outs].concat())?;
    let y = b.convert(y, dtype)?;
    Ok(conv::add_bias(cx, y, bias)?.into())
}

/// One axis of the sample points of a region: (indices of the two neighbours, their weights, whether the
/// point counts), all [R, bins, samples].
struct Line {
    low: V,
    high: V,
    weights: [V; 2],
    inside: V,
}

/// Sample points of every bin along one axis; `start` and `bin` are [R, 1, 1], `count` likewise.
fn line(b: &mut Builder, n: &Dim, bins: i64, samples: &Dim, start: V, bin: V, count: V) -> Result<Line> {
    let dtype = b.dtype(start);
    let at = b.iota(dtype, &[Dim::from(1), Dim::from(bins), Dim::from(1)], 1)?;
    let i = arange(b, dtype, samples, 2, 3)?;
    let i = b.add_scalar(i, 0.5)?;
    let inner = b.mul(i, bin)?;
    let inner = b.div(inner, count)?;
    let outer = b.mul(at, bin)?;
    let p = b.add(start, outer)?;
    let p = b.add(p, inner)?;
    let size = extent_value(b, n, dtype)?;
    let (zero, least) = (b.scalar(dtype, 0.0)?, b.scalar(dtype, -1.0)?);
    let (after, before) = (b.ge(p, least)?, b.le(p, size)?);
    let mut inside = b.and(after, before)?;
    // with a number of samples of its own, a region leaves the last ones out
    let shown = b.add_scalar(count, 0.25)?;
    let counted = b.lt(i, shown)?;
    inside = b.and(inside, counted)?;
    let last = b.add_scalar(size, -1.0)?;
    let p = b.clamp(p, zero, last)?;
    let low = b.floor(p)?;
    let next = b.add_scalar(low, 1.0)?;
    let high = b.min(next, last)?;
    let f = b.sub(p, low)?;
    let rest = b.neg(f)?;
    let rest = b.add_scalar(rest, 1.0)?;
    let (low, high) = (b.convert(low, DType::I64)?, b.convert(high, DType::I64)?);
    Ok(Line { low, high, weights: [rest, f], inside })
}

/// Average or maximum of interpolated samples in each bin of each region.
fn roi_align(cx: &mut NodeCx) -> OpResult {
    let (x, rois, batch) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    cx.check_rank("X", x, 4)?;
    cx.check_rank("rois", rois, 2)?;
    let (height, width) = (cx.int("output_height", 1)?, cx.int("output_width", 1)?);
    let ratio = cx.int("sampling_ratio", 0)?;
    let scale = f64::from(cx.float("spatial_scale", 1.0)?);
    let max = match cx.string("mode", "avg")? {
        "avg" => false,
        "max" => true,
        m => return Err(OpError::invalid(Code::Attribute, format!("mode {m:?}"))),
    };
    // before version 16 there was no half pixel
    let default = if cx.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half = match cx.string("coordinate_transformation_mode", default)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        m => return Err(OpError::invalid(Code::Attribute, format!("coordinate_transformation_mode {m:?}"))),
    };
    if !(1..=1 << 16).contains(&height) || !(1..=1 << 16).contains(&width) || ratio > 1 << 16 {
        return Err(OpError::invalid(Code::Attribute, "sizes of the output"));
    }
    let xs = cx.shape(x);
    let dtype = cx.dtype(x);
    let compute = wide(dtype);
    let regions = cx.dim(rois, 0)?;
    let b = &mut *cx.b;
    let rois = b.convert(rois, compute)?;
    let rois = b.mul_scalar(rois, scale)?;
    let rois = if half { b.add_scalar(rois, -0.5)? } else { rois };
    let mut edge = Vec::new();
    for i in 0..4 {
        let e = b.slice_axis(rois, 1, &Dim::from(i), &Dim::from(1))?;
        edge.push(b.unsqueeze(e, &[2])?);
    }
    let one = b.scalar(compute, 1.0)?;
    let mut lines = Vec::new();
    let mut counts = Vec::new();
    let mut samples = Vec::new();
    for (start, end, bins, n) in [(edge[1], edge[3], height, &xs[2]), (edge[0], edge[2], width, &xs[3])] {
        let mut extent = b.sub(end, start)?;
        if !half {
            extent = b.max(extent, one)?;
        }
        let bin = b.mul_scalar(extent, 1.0 / bins as f64)?;
        let (count, most) = if ratio > 0 {
            (b.full(compute, &[regions.clone(), Dim::from(1), Dim::from(1)], ratio as f64)?, Dim::from(ratio))
        } else {
            let zero = b.scalar(compute, 0.0)?;
            let c = b.ceil(bin)?;
            let c = b.max(c, zero)?;
            // the largest number of samples of any region, known when they are
            let all = b.reduce_max(c, &[0, 1, 2], false)?;
            let all = b.max(all, one)?;
            let all = b.convert(all, DType::I64)?;
            (c, b.bind_dim(all, 1, 1 << 16, 2)?)
        };
        let safe = b.max(count, one)?;
        lines.push(line(b, n, bins, &most, start, bin, if ratio > 0 { count } else { safe })?);
        counts.push(count);
        samples.push(most);
    }
    let b = &mut *cx.b;
    // rows [R, PH, GH, 1, 1], columns [R, 1, 1, PW, GW]
    let row = |b: &mut Builder, v: V| b.unsqueeze(v, &[3, 4]);
    let column = |b: &mut Builder, v: V| b.unsqueeze(v, &[1, 2]);
    let table = b.transpose(x, &[0, 2, 3, 1])?;
    let area = &xs[2] * &xs[3];
    let table = b.reshape(table, &[&xs[0] * &area, xs[1].clone()])?;
    let table = b.convert(table, compute)?;
    let batch = b.convert(batch, DType::I64)?;
    let area = b.dim_value(&area)?;
    let base = b.mul(batch, area)?;
    let base = b.unsqueeze(base, &[1, 2, 3, 4])?;
    let stride = b.dim_value(&xs[3])?;
    let (ri, ci) = (row(b, lines[0].inside)?, column(b, lines[1].inside)?);
    let inside = b.and(ri, ci)?;
    let inside = b.unsqueeze(inside, &[5])?;
    let zero = b.scalar(compute, 0.0)?;
    let mut total: Option<V> = None;
    for (y, wy) in [(lines[0].low, lines[0].weights[0]), (lines[0].high, lines[0].weights[1])] {
        for (x, wx) in [(lines[1].low, lines[1].weights[0]), (lines[1].high, lines[1].weights[1])] {
            let (y, x) = (row(b, y)?, column(b, x)?);
            let place = b.mul(y, stride)?;
            let place = b.add(place, x)?;
            let place = b.add(place, base)?;
            let v = b.gather(table, place, 0)?;
            let (wy, wx) = (row(b, wy)?, column(b, wx)?);
            let w = b.mul(wy, wx)?;
            let w = b.unsqueeze(w, &[5])?;
            let v = b.mul(v, w)?;
            total = Some(match total {
                None => v,
                Some(t) if max => b.max(t, v)?,
                Some(t) => b.add(t, v)?,
            });
        }
    }
    let v = total.unwrap_or(zero);
    let v = b.select(inside, v, zero)?;
    // [R, PH, GH, PW, GW, C]
    let y = if max {
        b.reduce(Monoid::Max, v, &[2, 4], false)?
    } else {
        let s = b.reduce_sum(v, &[2, 4], false)?;
        let n = b.mul(counts[0], counts[1])?;
        let n = b.max(n, one)?;
        let n = b.unsqueeze(n, &[3])?;
        b.div(s, n)?
    };
    let y = b.transpose(y, &[0, 3, 1, 2])?;
    Ok(b.convert(y, dtype)?.into())
}

/// Indices (batch, class, box) of the boxes that no better one overlaps.
fn non_max_suppression(cx: &mut NodeCx) -> OpResult {
    let (boxes, scores) = (cx.input(0)?, cx.input(1)?);
    let (max, iou, score) = (cx.opt(2)?, cx.opt(3)?, cx.opt(4)?);
    let center_point_box = cx.flag("center_point_box", false)?;
    cx.check_rank("boxes", boxes, 3)?;
    cx.check_rank("scores", scores, 3)?;
    let (bs, ss) = (cx.shape(boxes), cx.shape(scores));
    let b = &mut *cx.b;
    let boxes = b.convert(boxes, DType::F32)?;
    let scores = b.convert(scores, DType::F32)?;
    let max = match max {
        Some(m) => {
            let m = compose::scalar(b, m)?;
            b.convert(m, DType::I64)?
        }
        None => b.scalar_i64(0)?,
    };
    let limit = |b: &mut Builder, v: Option<V>, default: f64| -> Result<V> {
        match v {
            Some(v) => {
                let v = compose::scalar(b, v)?;
                b.convert(v, DType::F32)
            }
            None => b.scalar(DType::F32, default),
        }
    };
    let iou = limit(b, iou, 0.0)?;
    let score = limit(b, score, f64::NEG_INFINITY)?;
    // every box of every class at most
    let all = Dim::product([&bs[0], &ss[1], &bs[1]]).bounds(b.symbols()).1;
    let func = HostFn::NonMaxSuppression { center_point_box };
    let out = b.host(func, &[boxes, scores, max, iou, score], &[(0, all)])?;
    Ok(out.into())
}

/// Pixels [H, W, C] of the file that the bytes are.
fn image_decoder(cx: &mut NodeCx) -> OpResult {
    let file = cx.input(0)?;
    cx.check_rank("the encoded image", file, 1)?;
    let pixels = match cx.string("pixel_format", "RGB")? {
        "RGB" => Pixels::Rgb,
        "BGR" => Pixels::Bgr,
        "Grayscale" => Pixels::Grey,
        other => return Err(OpError::invalid(Code::Attribute, format!("pixel_format {other:?}"))),
    };
    // the side of an image in every format that is read
    const SIDE: i64 = 1 << 20;
    Ok(cx.b.host(HostFn::DecodeImage { pixels }, &[file], &[(0, SIDE), (0, SIDE)])?.into())
}
