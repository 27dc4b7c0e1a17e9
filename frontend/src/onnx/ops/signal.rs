//! Fourier transforms, fast where the length is fixed and has small factors and else as contractions with tables of
//! sines and cosines; window functions.

use super::compose;
use super::fft::{self, Complex};
use super::trees::floats;
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::{DType, Dim, IrError, Result};
use std::f64::consts::{PI, TAU};

pub static OPS: &[Op] = &[
    op("BlackmanWindow", 17, |cx| {
        window(cx, |b, n, last| {
            let (a, c) = (phase(b, n, last, TAU)?, phase(b, n, last, 2.0 * TAU)?);
            let (a, c) = (b.cos(a)?, b.cos(c)?);
            let (a, c) = (b.mul_scalar(a, -0.5)?, b.mul_scalar(c, 0.08)?);
            let s = b.add(a, c)?;
            b.add_scalar(s, 0.42)
        })
    }),
    op("DFT", 17, dft),
    op("HammingWindow", 17, |cx| {
        window(cx, |b, n, last| {
            let a = phase(b, n, last, TAU)?;
            let a = b.cos(a)?;
            let a = b.mul_scalar(a, 25.0 / 46.0 - 1.0)?;
            b.add_scalar(a, 25.0 / 46.0)
        })
    }),
    op("HannWindow", 17, |cx| {
        window(cx, |b, n, last| {
            let a = phase(b, n, last, PI)?;
            let a = b.sin(a)?;
            b.mul(a, a)
        })
    }),
    op("MelWeightMatrix", 17, mel_weight_matrix),
    op("STFT", 17, stft),
];

/// `n * turn / last`.
fn phase(b: &mut Builder, n: V, last: V, turn: f64) -> Result<V> {
    let x = b.mul_scalar(n, turn)?;
    b.div(x, last)
}

/// A window of `size` elements: `f` of the index and of the period, in f64.
fn window(cx: &mut NodeCx, f: impl FnOnce(&mut Builder, V, V) -> Result<V>) -> OpResult {
    let size = cx.input(0)?;
    let size = cx.size_of(size, 0)?;
    let periodic = cx.flag("periodic", true)?;
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    let b = &mut *cx.b;
    let n = b.iota(DType::F64, std::slice::from_ref(&size), 0)?;
    let last = b.dim_value(&if periodic { size } else { size - Dim::from(1) })?;
    let last = b.convert(last, DType::F64)?;
    let y = f(b, n, last)?;
    Ok(b.convert(y, dtype)?.into())
}

/// Cosines and sines of `2 pi k n / length`: two tables [bins, length], exact in the angle.
fn tables(b: &mut Builder, dtype: DType, bins: &Dim, length: &Dim) -> Result<(V, V)> {
    let k = compose::arange(b, DType::I64, bins, 0, 2)?;
    let n = compose::arange(b, DType::I64, length, 1, 2)?;
    let period = b.dim_value(length)?;
    let product = b.mul(k, n)?;
    // whole turns are taken out before rounding
    let rest = b.rem(product, period)?;
    let angle = b.convert(rest, DType::F64)?;
    let angle = b.mul_scalar(angle, TAU)?;
    let period = b.convert(period, DType::F64)?;
    let angle = b.div(angle, period)?;
    let (c, s) = (b.cos(angle)?, b.sin(angle)?);
    Ok((b.convert(c, dtype)?, b.convert(s, dtype)?))
}

/// `x` along `axis` with `size` elements: cut, or filled up with zeros.
fn resized(b: &mut Builder, x: V, axis: usize, size: &Dim) -> Result<V> {
    let shape = b.shape(x).to_vec();
    if b.same_dim(&shape[axis], size) {
        return Ok(x);
    }
    let (lo, mut hi) = (vec![Dim::from(0); shape.len()], vec![Dim::from(0); shape.len()]);
    hi[axis] = size - &shape[axis];
    let zero = b.scalar(b.dtype(x), 0.0)?;
    b.pad(x, zero, &lo, &hi, &vec![0; shape.len()])
}

/// Contracts axis `axis` of x with the second axis of a table; the bins take its place.
fn along(b: &mut Builder, x: V, axis: usize, table: V) -> Result<V> {
    let rank = b.rank(x);
    let y = b.contract(x, table, &[], &[(axis, 1)], b.dtype(x))?;
    let perm: Vec<usize> = (0..axis).chain([rank - 1]).chain(axis..rank - 1).collect();
    b.transpose(y, &perm)
}

/// Real and imaginary part (none: zero) of x[..., 1 or 2].
fn parts(b: &mut Builder, x: V) -> Result<(V, Option<V>)> {
    let axis = b.rank(x).checked_sub(1).ok_or_else(|| IrError::ty("dft", "a scalar has no parts"))?;
    let re = b.index_axis(x, axis, &Dim::from(0))?;
    let two = b.shape(x)[axis].is_const(2);
    Ok((re, if two { Some(b.index_axis(x, axis, &Dim::from(1))?) } else { None }))
}

fn stacked(b: &mut Builder, parts: &[V]) -> Result<V> {
    let parts = parts.iter().map(|&p| b.unsqueeze(p, &[-1])).collect::<Result<Vec<V>>>()?;
    let axis = b.rank(parts[0]) - 1;
    b.concat(&parts, axis)
}

/// All bins of the transform of x[..., n, ..., 2], or of the inverse without its division; `None` where it is no case
/// for the fast transform: signals of real numbers have a contraction of half the size, whose bins that are real come
/// out real.
fn fast(b: &mut Builder, x: V, axis: usize, length: &Dim, inverse: bool) -> Result<Option<V>> {
    let Some(radices) = length.as_const().and_then(fft::radices) else { return Ok(None) };
    let x = resized(b, x, axis, length)?;
    let (re, Some(im)) = parts(b, x)? else { return Ok(None) };
    let y = fft::transform(b, Complex(re, im), axis, &radices, inverse)?;
    Ok(Some(stacked(b, &[y.0, y.1])?))
}

/// The transform of x[..., n, ..., 1 or 2] along `axis` to `bins` complex numbers.
fn forward(b: &mut Builder, x: V, axis: usize, length: &Dim, bins: &Dim) -> Result<V> {
    let x = resized(b, x, axis, length)?;
    let dtype = b.dtype(x);
    let (cos, sin) = tables(b, dtype, bins, length)?;
    let (re, im) = parts(b, x)?;
    let mut out_re = along(b, re, axis, cos)?;
    let s = along(b, re, axis, sin)?;
    let mut out_im = b.neg(s)?;
    if let Some(im) = im {
        let (s, c) = (along(b, im, axis, sin)?, along(b, im, axis, cos)?);
        out_re = b.add(out_re, s)?;
        out_im = b.add(out_im, c)?;
    }
    stacked(b, &[out_re, out_im])
}

/// The inverse transform to `length` complex numbers, or to real ones from the first half of the bins.
fn backward(b: &mut Builder, x: V, axis: usize, length: &Dim, half: bool) -> Result<V> {
    let dtype = b.dtype(x);
    let count =
        if half { length.floor_div(&Dim::from(2), b.symbols()) + Dim::from(1) } else { length.clone() };
    let x = resized(b, x, axis, &count)?;
    let (cos, sin) = tables(b, dtype, length, length)?;
    let cos = b.slice_axis(cos, 1, &Dim::from(0), &count)?;
    let sin = b.slice_axis(sin, 1, &Dim::from(0), &count)?;
    let (mut re, mut im) = parts(b, x)?;
    let n = b.dim_value(length)?;
    let n = b.convert(n, dtype)?;
    if half {
        // bins between the first and the middle stand for two each
        let k = b.iota(DType::I64, std::slice::from_ref(&count), 0)?;
        let double = b.mul_scalar(k, 2.0)?;
        let len = b.dim_value(length)?;
        let (zero, middle) = (b.scalar_i64(0)?, b.eq(double, len)?);
        let first = b.eq(k, zero)?;
        let single = b.or(first, middle)?;
        let weight = compose::indicator(b, single, dtype, 1.0, 2.0)?;
        let weight = compose::along(b, weight, axis, b.rank(re))?;
        re = b.mul(re, weight)?;
        im = im.map(|im| b.mul(im, weight)).transpose()?;
    }
    let mut out_re = along(b, re, axis, cos)?;
    let mut out_im = along(b, re, axis, sin)?;
    if let Some(im) = im {
        let (s, c) = (along(b, im, axis, sin)?, along(b, im, axis, cos)?);
        out_re = b.sub(out_re, s)?;
        out_im = b.add(out_im, c)?;
    }
    let y = if half { stacked(b, &[out_re])? } else { stacked(b, &[out_re, out_im])? };
    b.div(y, n)
}

/// The last dim holds the parts of a complex number.
fn check_parts(cx: &NodeCx, x: V) -> Result<(), OpError> {
    match cx.shape(x).last().and_then(Dim::as_const) {
        Some(1 | 2) if cx.rank(x) >= 2 => Ok(()),
        _ => Err(OpError::invalid(Code::Shape, "the last dim should be 1 (real) or 2 (complex)")),
    }
}

fn dft(cx: &mut NodeCx) -> OpResult {
    let (x, length, axis) = (cx.input(0)?, cx.opt(1)?, cx.opt(2)?);
    check_parts(cx, x)?;
    let rank = cx.rank(x);
    let axis = match (cx.opset, axis) {
        (20.., Some(a)) => match cx.need_const_ints("axis", a)?.as_slice() {
            [a] => *a,
            other => return Err(OpError::invalid(Code::Input, format!("axis {other:?}"))),
        },
        (20.., None) => -2,
        _ => cx.int("axis", 1)?,
    };
    let axis = cx.axis(axis, rank)?;
    if axis == rank - 1 {
        return Err(OpError::invalid(Code::Attribute, "the last dim is not a signal"));
    }
    let (inverse, onesided) = (cx.flag("inverse", false)?, cx.flag("onesided", false)?);
    let own = cx.dim(x, axis)?;
    let length = match length {
        Some(l) => cx.size_of(l, 1)?,
        None if inverse && onesided => (own - Dim::from(1)) * Dim::from(2),
        None => own,
    };
    let (dtype, b) = (cx.dtype(x), &mut *cx.b);
    let attrs = vec![compose::int_attr("inverse", inverse.into()), compose::int_attr("axis", axis as i64)];
    let y = compose::call1(b, "dft", attrs, x, |b, x| {
        let x = b.convert(x, compose::wide(dtype))?;
        let whole = if inverse && onesided { None } else { fast(b, x, axis, &length, inverse)? };
        let y = if let Some(y) = whole {
            match (inverse, length.as_const()) {
                (true, Some(n)) => b.mul_scalar(y, 1.0 / n as f64)?,
                _ if onesided => {
                    let bins = length.floor_div(&Dim::from(2), b.symbols()) + Dim::from(1);
                    b.slice_axis(y, axis, &Dim::from(0), &bins)?
                }
                _ => y,
            }
        } else if inverse {
            backward(b, x, axis, &length, onesided)?
        } else {
            let bins = match onesided {
                true => length.floor_div(&Dim::from(2), b.symbols()) + Dim::from(1),
                false => length.clone(),
            };
            forward(b, x, axis, &length, &bins)?
        };
        b.convert(y, dtype)
    })?;
    Ok(y.into())
}

/// Transforms of windows of signal[B, L, 1 or 2] that start every `frame_step` elements:
/// [B, frames, bins, 2].
fn stft(cx: &mut NodeCx) -> OpResult {
    let (x, step, weights, length) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?, cx.opt(3)?);
    let x = if cx.rank(x) == 2 { cx.b.unsqueeze(x, &[2])? } else { x };
    cx.check_rank("signal", x, 3)?;
    check_parts(cx, x)?;
    let step = cx.size_of(step, 1)?;
    let length = match (length, weights) {
        (Some(l), _) => cx.size_of(l, 1)?,
        (None, Some(w)) => cx.dim(w, 0)?,
        (None, None) => return Err(OpError::invalid(Code::Input, "neither window nor frame_length")),
    };
    let onesided = cx.flag("onesided", true)?;
    let samples = cx.dim(x, 1)?;
    let b = &mut *cx.b;
    let frames = (samples - &length).floor_div(&step, b.symbols()) + Dim::from(1);
    let start = compose::arange(b, DType::I64, &frames, 0, 2)?;
    let step = b.dim_value(&step)?;
    let start = b.mul(start, step)?;
    let n = compose::arange(b, DType::I64, &length, 1, 2)?;
    let place = b.add(start, n)?;
    // [B, frames, length, parts]
    let mut framed = b.gather(x, place, 1)?;
    if let Some(w) = weights {
        let w = compose::along(b, w, 2, 4)?;
        framed = b.mul(framed, w)?;
    }
    let bins =
        if onesided { length.floor_div(&Dim::from(2), b.symbols()) + Dim::from(1) } else { length.clone() };
    Ok(forward(b, framed, 2, &length, &bins)?.into())
}

/// Triangular filters from bins of a spectrogram to mel bands [bins, bands]; all inputs are constants.
fn mel_weight_matrix(cx: &mut NodeCx) -> OpResult {
    let number = |i: usize| -> Result<f64, OpError> {
        let v = cx.input(i)?;
        cx.const_f64(v).ok_or_else(|| {
            OpError::unsupported(Code::Dynamic, "a filter bank whose sizes are only known at run time")
        })
    };
    let (bands, length, rate, low, high) = (number(0)?, number(1)?, number(2)?, number(3)?, number(4)?);
    let dtype = cx.dtype_attr("output_datatype")?.unwrap_or(DType::F32);
    if !(0.0..=65536.0).contains(&bands) || !(0.0..=1e7).contains(&length) || rate <= 0.0 {
        return Err(OpError::invalid(Code::Input, format!("{bands} bands of {length} bins at {rate} Hz")));
    }
    let (bands, bins) = (bands as usize, (length / 2.0) as usize + 1);
    let Some(cells) = bands.checked_mul(bins).filter(|&c| c <= 1 << 28) else {
        return Err(OpError::limit(format!("a filter bank of {bands} x {bins}")));
    };
    let mel = |hz: f64| 2595.0 * (hz / 700.0).ln_1p() / 10f64.ln();
    let step = (mel(high) - mel(low)) / (bands + 2) as f64;
    let edges: Vec<i64> = (0..bands + 2)
        .map(|i| {
            let hz = 700.0 * ((i as f64 * step + mel(low)) / 2595.0 * 10f64.ln()).exp_m1();
            ((length + 1.0) * hz / rate).floor() as i64
        })
        .collect();
    let mut table = vec![0.0; cells];
    let mut set = |bin: i64, band: usize, v: f64| {
        if let Ok(bin) = usize::try_from(bin)
            && bin < bins
        {
            table[bin * bands + band] = v;
        }
    };
    for band in 0..bands {
        let [left, centre, right] = [edges[band], edges[band + 1], edges[band + 2]];
        if centre == left {
            set(centre, band, 1.0);
        }
        for bin in left.max(0)..=centre.min(bins as i64) {
            if centre > left {
                set(bin, band, (bin - left) as f64 / (centre - left) as f64);
            }
        }
        for bin in centre.max(0)..right.min(bins as i64) {
            set(bin, band, (right - bin) as f64 / (right - centre) as f64);
        }
    }
    let c = floats(cx.b, DType::F64, &[bins, bands], &table)?;
    Ok(cx.b.convert(c, dtype)?.into())
}
