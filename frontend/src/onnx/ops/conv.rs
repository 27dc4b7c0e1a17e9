//! Convolutions and matrix products.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::Dim;
use ir::build::V;
use ir::prim::WindowDim;

pub static OPS: &[Op] = &[
    op("Conv", 1, conv),
    op("ConvTranspose", 1, conv_transpose),
    op("Gemm", 1, gemm),
    op("MatMul", 1, matmul),
];

/// Strides, dilations and pads of a window over `n` spatial dims, from the attributes that
/// convolutions and pools share.
pub struct Window {
    pub kernel: Vec<i64>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
    /// Padding in front and behind, by dim.
    pub pads: Vec<(Dim, Dim)>,
}

/// An attribute of `n` positive integers.
fn positive(cx: &NodeCx, name: &str, n: usize) -> Result<Vec<i64>, OpError> {
    match cx.ints(name)? {
        None => Ok(vec![1; n]),
        Some(v) if v.is_empty() => Ok(vec![1; n]),
        Some(v) if v.len() == n && v.iter().all(|d| (1..=1 << 31).contains(d)) => Ok(v),
        Some(v) => {
            Err(OpError::invalid(Code::Attribute, format!("{name} is {v:?}, expected {n} positive numbers")))
        }
    }
}

/// Explicit pads: `n` numbers for the fronts, then `n` for the backs.
pub fn explicit_pads(cx: &NodeCx, n: usize) -> Result<Vec<(i64, i64)>, OpError> {
    match cx.ints("pads")? {
        None => Ok(vec![(0, 0); n]),
        Some(v) if v.is_empty() => Ok(vec![(0, 0); n]),
        Some(v) if v.len() == 2 * n && v.iter().all(|d| d.unsigned_abs() <= 1 << 31) => {
            Ok((0..n).map(|i| (v[i], v[n + i])).collect())
        }
        Some(v) => {
            Err(OpError::invalid(Code::Attribute, format!("pads is {v:?}, expected {} numbers", 2 * n)))
        }
    }
}

/// The window of a node whose input has these spatial dims.
pub fn window(cx: &NodeCx, spatial: &[Dim], kernel: Vec<i64>) -> Result<Window, OpError> {
    let n = spatial.len();
    if kernel.len() != n || kernel.iter().any(|k| !(1..=1 << 31).contains(k)) {
        return Err(OpError::invalid(Code::Attribute, format!("kernel {kernel:?} for {n} spatial dims")));
    }
    let strides = positive(cx, "strides", n)?;
    let dilations = positive(cx, "dilations", n)?;
    let facts = cx.b.symbols();
    let pads = match cx.string("auto_pad", "NOTSET")? {
        "NOTSET" | "" => {
            explicit_pads(cx, n)?.into_iter().map(|(l, h)| (Dim::from(l), Dim::from(h))).collect()
        }
        "VALID" => vec![(Dim::from(0), Dim::from(0)); n],
        same @ ("SAME_UPPER" | "SAME_LOWER") => (0..n)
            .map(|i| {
                // as many outputs as ceil(input / stride)
                let out = spatial[i].ceil_div(&Dim::from(strides[i]), facts);
                let reach = (out - Dim::from(1)) * Dim::from(strides[i])
                    + Dim::from((kernel[i] - 1) * dilations[i] + 1);
                let total = (reach - &spatial[i]).max_with(&Dim::from(0), facts);
                let half = total.floor_div(&Dim::from(2), facts);
                let other = total - &half;
                if same == "SAME_UPPER" { (half, other) } else { (other, half) }
            })
            .collect(),
        other => return Err(OpError::invalid(Code::Attribute, format!("auto_pad {other:?}"))),
    };
    Ok(Window { kernel, strides, dilations, pads })
}

impl Window {
    /// As windows of the primitives.
    pub fn dims(&self) -> Vec<WindowDim> {
        (0..self.kernel.len())
            .map(|i| WindowDim {
                stride: self.strides[i],
                pad_lo: self.pads[i].0.clone(),
                pad_hi: self.pads[i].1.clone(),
                dilation: self.dilations[i],
                base_dilation: 1,
            })
            .collect()
    }
}

/// Number of groups, checked against the channels.
pub fn groups(cx: &NodeCx, channels: &Dim) -> Result<i64, OpError> {
    let g = cx.int("group", 1)?;
    let fits = channels.as_const().is_none_or(|c| g > 0 && c % g == 0);
    if g < 1 || !fits {
        return Err(OpError::invalid(Code::Attribute, format!("group {g} for {channels} channels")));
    }
    Ok(g)
}

/// The spatial dims of the weights, which have to be static.
pub fn kernel_of(cx: &NodeCx, w: V) -> Result<Vec<i64>, OpError> {
    let kernel: Vec<i64> =
        cx.shape(w)[2..].iter().map(Dim::as_const).collect::<Option<_>>().ok_or_else(|| {
            OpError::unsupported(
                Code::Dynamic,
                "a kernel whose size is only known when the model is executed",
            )
        })?;
    match cx.ints("kernel_shape")? {
        Some(k) if k != kernel => Err(OpError::invalid(
            Code::Attribute,
            format!("kernel_shape is {k:?}, the weights have {kernel:?}"),
        )),
        _ => Ok(kernel),
    }
}

/// Input and weights of one rank of at least 3.
fn conv_operands(cx: &NodeCx) -> Result<(V, V), OpError> {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    if rank < 3 {
        return Err(OpError::invalid(
            Code::Shape,
            format!("expected an input of rank 3 at least, found {rank}"),
        ));
    }
    cx.check_rank("W", w, rank)?;
    Ok((x, w))
}

/// Adds a bias along the channels.
pub fn add_bias(cx: &mut NodeCx, y: V, bias: Option<V>) -> Result<V, OpError> {
    let Some(bias) = bias else { return Ok(y) };
    cx.check_rank("bias", bias, 1)?;
    let mut shape = vec![cx.dim(bias, 0)?];
    shape.resize(cx.rank(y) - 1, Dim::from(1));
    let bias = cx.b.reshape(bias, &shape)?;
    Ok(cx.b.add(y, bias)?)
}

fn conv(cx: &mut NodeCx) -> OpResult {
    let (x, w) = conv_operands(cx)?;
    let shape = cx.shape(x);
    let kernel = kernel_of(cx, w)?;
    let window = window(cx, &shape[2..], kernel)?;
    let groups = groups(cx, &shape[1])?;
    let acc = cx.dtype(x);
    let y = cx.b.convolve(x, w, &window.dims(), groups as usize, acc)?;
    let bias = cx.opt(2)?;
    Ok(add_bias(cx, y, bias)?.into())
}

/// A convolution of the input with zeros between its elements, by the mirrored kernel.
fn conv_transpose(cx: &mut NodeCx) -> OpResult {
    let (x, w) = conv_operands(cx)?;
    let shape = cx.shape(x);
    let n = shape.len() - 2;
    let kernel = kernel_of(cx, w)?;
    let groups = groups(cx, &shape[1])?;
    let strides = positive(cx, "strides", n)?;
    let dilations = positive(cx, "dilations", n)?;
    let extra = cx.ints("output_padding")?.filter(|p| !p.is_empty()).unwrap_or_else(|| vec![0; n]);
    if extra.len() != n || extra.iter().any(|p| !(0..=1 << 31).contains(p)) {
        return Err(OpError::invalid(Code::Attribute, format!("output_padding {extra:?}")));
    }
    let auto = cx.string("auto_pad", "NOTSET")?;
    let wanted = cx.ints("output_shape")?.filter(|s| !s.is_empty());
    // some exporters give batch and channels too
    let wanted = wanted.map(|s| if s.len() == n + 2 { s[2..].to_vec() } else { s });
    if wanted.as_ref().is_some_and(|s| s.len() != n) {
        return Err(OpError::invalid(
            Code::Attribute,
            format!("output_shape {wanted:?} for {n} spatial dims"),
        ));
    }
    let explicit = explicit_pads(cx, n)?;
    let facts = cx.b.symbols();
    let mut dims = Vec::with_capacity(n);
    for i in 0..n {
        let reach = (kernel[i] - 1) * dilations[i];
        let full = (&shape[2 + i] - &Dim::from(1)) * Dim::from(strides[i]) + Dim::from(extra[i] + reach + 1);
        let target = match (&wanted, auto) {
            (Some(s), _) => Some(Dim::from(s[i])),
            (None, "SAME_UPPER" | "SAME_LOWER") => Some(&shape[2 + i] * &Dim::from(strides[i])),
            _ => None,
        };
        let (lo, hi) = match (target, auto) {
            (Some(t), _) => {
                let total = full - t;
                // without auto_pad a result larger than the full one keeps its front
                let half = total.floor_div(&Dim::from(2), facts);
                let other = &total - &half;
                if auto == "SAME_UPPER" { (half, other) } else { (other, half) }
            }
            (None, "VALID") => (Dim::from(0), Dim::from(0)),
            (None, "NOTSET" | "") => (Dim::from(explicit[i].0), Dim::from(explicit[i].1)),
            (None, other) => return Err(OpError::invalid(Code::Attribute, format!("auto_pad {other:?}"))),
        };
        dims.push(WindowDim {
            stride: 1,
            pad_lo: Dim::from(reach) - lo,
            pad_hi: Dim::from(reach + extra[i]) - hi,
            dilation: dilations[i],
            base_dilation: strides[i],
        });
    }
    // [G * Ci, Co, k...] to [G * Co, Ci, k...], mirrored
    let ws = cx.shape(w);
    let g = Dim::from(groups);
    let ci = super::movement::quotient(cx, &[ws[0].clone()], std::slice::from_ref(&g))?;
    let (co, taps) = (ws[1].clone(), &ws[2..]);
    let mut v = w;
    if groups > 1 {
        v = cx.b.reshape(v, &[&[g.clone(), ci.clone(), co.clone()], taps].concat())?;
        v = cx.b.swap_axes(v, 1, 2)?;
        v = cx.b.reshape(v, &[&[g * &co, ci], taps].concat())?;
    } else {
        v = cx.b.swap_axes(v, 0, 1)?;
    }
    for (i, k) in kernel.iter().enumerate() {
        if *k > 1 {
            v = cx.b.reverse(v, 2 + i)?;
        }
    }
    let acc = cx.dtype(x);
    let y = cx.b.convolve(x, v, &dims, groups as usize, acc)?;
    let bias = cx.opt(2)?;
    Ok(add_bias(cx, y, bias)?.into())
}

fn matmul(cx: &mut NodeCx) -> OpResult {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let acc = cx.dtype(a);
    Ok(cx.b.matmul_acc(a, b, acc)?.into())
}

/// `alpha * A' * B' + beta * C`.
fn gemm(cx: &mut NodeCx) -> OpResult {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    cx.check_rank("A", a, 2)?;
    cx.check_rank("B", b, 2)?;
    let (alpha, beta) = (cx.float("alpha", 1.0)?, cx.float("beta", 1.0)?);
    let (ka, kb) = (usize::from(!cx.flag("transA", false)?), usize::from(cx.flag("transB", false)?));
    let acc = cx.dtype(a);
    let mut y = cx.b.contract(a, b, &[], &[(ka, kb)], acc)?;
    if alpha != 1.0 {
        y = scale(cx, y, alpha)?;
    }
    if let Some(mut c) = cx.opt(2)?
        && beta != 0.0
    {
        if beta != 1.0 {
            c = scale(cx, c, beta)?;
        }
        let wide = cx.shape(y);
        y = cx.b.add(y, c)?;
        if cx.rank(y) != wide.len() {
            return Err(OpError::invalid(Code::Shape, "C does not broadcast to the product"));
        }
    }
    Ok(y.into())
}

fn scale(cx: &mut NodeCx, v: V, by: f32) -> Result<V, OpError> {
    if cx.dtype(v).is_int() {
        // integers are scaled exactly where the factor is one
        if by.fract() != 0.0 {
            return Err(OpError::unsupported(Code::Attribute, format!("a factor of {by} on integers")));
        }
    }
    let s = cx.like(v, by.into())?;
    Ok(cx.b.mul(v, s)?)
}
