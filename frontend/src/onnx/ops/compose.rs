//! Compositions of primitives that several themes share. Each is a named composite, so that the graph
//! still shows what it is made of.

use ir::build::{Builder, V};
use ir::prim::Attr;
use ir::{DType, Dim, IrError, Result};

/// The type that sums and exponentials of `d` are computed in: halves go through f32.
pub fn wide(d: DType) -> DType {
    if matches!(d, DType::F16 | DType::BF16) { DType::F32 } else { d }
}

/// `f` computed in the wide type of `x`, its result rounded back once.
pub fn widened(b: &mut Builder, x: V, f: impl FnOnce(&mut Builder, V) -> Result<V>) -> Result<V> {
    let dtype = b.dtype(x);
    let w = b.convert(x, wide(dtype))?;
    let y = f(b, w)?;
    b.convert(y, dtype)
}

/// A composite of one operand and one result.
pub fn call1(
    b: &mut Builder,
    name: &str,
    attrs: Vec<(String, Attr)>,
    x: V,
    f: impl FnOnce(&mut Builder, V) -> Result<V>,
) -> Result<V> {
    let out = b.call::<IrError>(name, attrs, &[x], |b, a| Ok(vec![f(b, a[0])?]))?;
    Ok(out[0])
}

/// A composite of several operands and one result.
pub fn call_n(
    b: &mut Builder,
    name: &str,
    attrs: Vec<(String, Attr)>,
    operands: &[V],
    f: impl FnOnce(&mut Builder, &[V]) -> Result<V>,
) -> Result<V> {
    let out = b.call::<IrError>(name, attrs, operands, |b, a| Ok(vec![f(b, a)?]))?;
    Ok(out[0])
}

pub fn int_attr(name: &str, v: i64) -> (String, Attr) {
    (name.to_owned(), Attr::Int(v))
}
pub fn float_attr(name: &str, v: f64) -> (String, Attr) {
    (name.to_owned(), Attr::Float(v))
}
pub fn axes_attr(axes: &[usize]) -> (String, Attr) {
    ("axes".to_owned(), Attr::Ints(axes.iter().map(|&a| a as i64).collect()))
}

/// `1 / (1 + exp(-x))`: an overflow of the exponential gives the right 0, and small results keep their
/// relative accuracy.
pub fn sigmoid(b: &mut Builder, x: V) -> Result<V> {
    let n = b.neg(x)?;
    let e = b.exp(n)?;
    let d = b.add_scalar(e, 1.0)?;
    let one = b.scalar(b.dtype(x), 1.0)?;
    b.div(one, d)
}

/// `log(1 + exp(x))` as `max(x, 0) + log1p(exp(-|x|))`, which does not overflow.
pub fn softplus(b: &mut Builder, x: V) -> Result<V> {
    let a = b.abs(x)?;
    let n = b.neg(a)?;
    let e = b.exp(n)?;
    let l = b.log1p(e)?;
    let zero = b.scalar(b.dtype(x), 0.0)?;
    let m = b.max(x, zero)?;
    b.add(m, l)
}

/// `x * sigmoid(alpha * x)`.
pub fn swish(b: &mut Builder, x: V, alpha: f64) -> Result<V> {
    call1(b, "silu", vec![float_attr("alpha", alpha)], x, |b, x| {
        widened(b, x, |b, x| {
            let a = if alpha == 1.0 { x } else { b.mul_scalar(x, alpha)? };
            let s = sigmoid(b, a)?;
            b.mul(x, s)
        })
    })
}

/// `x / 2 * (1 + erf(x / sqrt 2))`.
pub fn gelu(b: &mut Builder, x: V) -> Result<V> {
    call1(b, "gelu", vec![], x, |b, x| {
        widened(b, x, |b, x| {
            let s = b.mul_scalar(x, std::f64::consts::FRAC_1_SQRT_2)?;
            let e = b.erf(s)?;
            let e = b.add_scalar(e, 1.0)?;
            let h = b.mul_scalar(x, 0.5)?;
            b.mul(h, e)
        })
    })
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
pub fn gelu_tanh(b: &mut Builder, x: V) -> Result<V> {
    call1(b, "gelu_tanh", vec![], x, |b, x| {
        widened(b, x, |b, x| {
            let x2 = b.mul(x, x)?;
            let c = b.mul_scalar(x2, 0.044715)?;
            let c = b.add_scalar(c, 1.0)?;
            let u = b.mul(x, c)?;
            let u = b.mul_scalar(u, (2.0 / std::f64::consts::PI).sqrt())?;
            let t = b.tanh(u)?;
            let t = b.add_scalar(t, 1.0)?;
            let h = b.mul_scalar(x, 0.5)?;
            b.mul(h, t)
        })
    })
}

/// Exponentials over their sum along `axes`, the largest subtracted first. All values are at most 1 but
/// for the sum, which is accumulated in f32, so halves need no wider type.
pub fn softmax(b: &mut Builder, x: V, axes: &[usize]) -> Result<V> {
    call1(b, "softmax", vec![axes_attr(axes)], x, |b, x| {
        let m = b.reduce_max(x, axes, true)?;
        let d = b.sub(x, m)?;
        let e = b.exp(d)?;
        let s = b.reduce_sum(e, axes, true)?;
        b.div(e, s)
    })
}

/// Logarithm of [`softmax`], without forming the quotient.
pub fn log_softmax(b: &mut Builder, x: V, axes: &[usize]) -> Result<V> {
    call1(b, "log_softmax", vec![axes_attr(axes)], x, |b, x| {
        widened(b, x, |b, x| {
            let m = b.reduce_max(x, axes, true)?;
            let d = b.sub(x, m)?;
            let e = b.exp(d)?;
            let s = b.reduce_sum(e, axes, true)?;
            let l = b.log(s)?;
            b.sub(d, l)
        })
    })
}

/// (x - mean, mean, variance) over `axes`, kept with extent 1. Two passes: no cancellation.
pub fn centre(b: &mut Builder, x: V, axes: &[usize]) -> Result<(V, V, V)> {
    let mean = b.reduce_mean(x, axes, true)?;
    let d = b.sub(x, mean)?;
    let sq = b.mul(d, d)?;
    let var = b.reduce_mean(sq, axes, true)?;
    Ok((d, mean, var))
}

/// `1 / sqrt(x + eps)`.
pub fn rsqrt_eps(b: &mut Builder, x: V, eps: f64) -> Result<V> {
    let x = b.add_scalar(x, eps)?;
    let s = b.sqrt(x)?;
    let one = b.scalar(b.dtype(s), 1.0)?;
    b.div(one, s)
}

/// A vector of extent `shape[axis]` (or 1) with a rank that broadcasts against `rank` dims.
pub fn along(b: &mut Builder, v: V, axis: usize, rank: usize) -> Result<V> {
    let mut shape = vec![Dim::from(1); rank];
    let count = Dim::product(b.shape(v));
    if let Some(d) = shape.get_mut(axis) {
        *d = count;
    }
    b.reshape(v, &shape)
}

/// A value of one element as a scalar.
pub fn scalar(b: &mut Builder, v: V) -> Result<V> {
    if b.rank(v) == 0 { Ok(v) } else { b.reshape(v, &[]) }
}

/// `select` between two constants of a type.
pub fn indicator(b: &mut Builder, cond: V, dtype: DType, yes: f64, no: f64) -> Result<V> {
    let yes = b.scalar(dtype, yes)?;
    let no = b.scalar(dtype, no)?;
    b.select(cond, yes, no)
}

/// Element values `0..n` along one axis of a shape that is 1 elsewhere.
pub fn arange(b: &mut Builder, dtype: DType, n: &Dim, axis: usize, rank: usize) -> Result<V> {
    let mut shape = vec![Dim::from(1); rank];
    shape[axis] = n.clone();
    b.iota(dtype, &shape, axis)
}

/// Uniform in `[0, 1)` from the counter-based generator: the top bits of each draw.
pub fn uniform(b: &mut Builder, dtype: DType, shape: &[Dim], seed: u64) -> Result<V> {
    let key = b.scalar_of(DType::U64, ir::dtype::Scalar::Int(i128::from(seed)))?;
    let bits = b.random_bits(key, shape)?;
    let (keep, compute) = if dtype == DType::F64 { (53, DType::F64) } else { (24, DType::F32) };
    let shift = b.scalar(DType::U64, f64::from(64 - keep))?;
    let top = b.shr(bits, shift)?;
    let x = b.convert(top, compute)?;
    b.mul_scalar(x, 2f64.powi(-keep))
}

/// Extent of one axis; a rank that is too small is an error.
pub fn extent(b: &Builder, x: V, axis: usize) -> Result<Dim> {
    b.shape(x).get(axis).cloned().ok_or_else(|| {
        IrError::ty("shape", format!("expected rank {} at least, found {}", axis + 1, b.rank(x)))
    })
}
