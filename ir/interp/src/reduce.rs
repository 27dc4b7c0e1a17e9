//! Reductions: whole axes, windows, running. Floats accumulate in `f64` in row-major order and are
//! rounded once; integers accumulate exactly and wrap once.

use crate::context::Cx;
use crate::error::OpError;
use crate::number::{Load, Number, Store};
use crate::view::{View, signed, split_at_axis, strides, walk};
use ir::Tensor;
use ir::prim::{Monoid, WindowDim};
use ir::tensor::checked_elems;

type Result<T> = std::result::Result<T, OpError>;

/// A monoid on one element type: identity, binary function, reader and writer.
struct Fold<N> {
    identity: N,
    f: fn(N, N, u32) -> N,
    bits: u32,
    load: Load<N>,
    store: Store<N>,
}

impl<N: Number> Fold<N> {
    fn new(monoid: Monoid, x: View) -> Result<Fold<N>> {
        let d = x.dtype;
        let sums = matches!(monoid, Monoid::Sum | Monoid::Prod);
        match (N::binary(monoid.op()), N::load(d), N::store(d)) {
            (Some(f), Some(load), Some(store)) if !(sums && d == ir::DType::Bool) => {
                Ok(Fold { identity: N::scalar(monoid.identity(d)), f, bits: d.bits(), load, store })
            }
            _ => Err(OpError::Undefined { prim: monoid.name(), dtype: d }),
        }
    }
    fn add(&self, acc: &mut N, x: N) {
        *acc = (self.f)(*acc, x, self.bits);
    }
}

/// Calls the generic function for the class of the operand's type.
macro_rules! by_class {
    ($x:expr, $f:ident($($arg:expr),*)) => {
        if $x.dtype.is_float() { $f::<f64>($($arg),*) } else { $f::<i128>($($arg),*) }
    };
}

pub(crate) fn reduce(cx: &Cx, x: View, monoid: Monoid, axes: &[usize]) -> Result<Tensor> {
    if !axes.is_sorted_by(|a, b| a < b) || axes.last().is_some_and(|&a| a >= x.rank()) {
        let expected = format!("sorted, distinct axes below {}", x.rank());
        return Err(OpError::mismatch("axes", expected, format!("{axes:?}")));
    }
    fn run<N: Number>(cx: &Cx, x: View, monoid: Monoid, axes: &[usize]) -> Result<Tensor> {
        let fold = Fold::<N>::new(monoid, x)?;
        let kept = |d: &usize| !axes.contains(d);
        let shape: Vec<usize> = (0..x.rank()).filter(kept).map(|d| x.shape[d]).collect();
        // where in the result each operand dim moves: nowhere for the reduced ones
        let mut compact = strides(&shape).into_iter();
        let to: Vec<isize> =
            (0..x.rank()).map(|d| if kept(&d) { compact.next().unwrap_or(0) as isize } else { 0 }).collect();
        let mut out = cx.zeros(x.dtype, shape)?;
        cx.spend(x.elems())?;
        cx.spend(out.elems())?;
        let mut acc = cx.scratch(out.elems(), fold.identity)?;
        let mut i = 0;
        walk(x.shape, &to, 0, |o| {
            fold.add(&mut acc[o], (fold.load)(x.bytes, i));
            i += 1;
        });
        for (o, a) in acc.into_iter().enumerate() {
            (fold.store)(a, &mut out.data, o);
        }
        Ok(out)
    }
    by_class!(x, run(cx, x, monoid, axes))
}

pub(crate) fn cumulative(
    cx: &Cx,
    x: View,
    monoid: Monoid,
    axis: usize,
    (exclusive, reverse): (bool, bool),
) -> Result<Tensor> {
    type Direction = (bool, bool);
    fn run<N: Number>(
        cx: &Cx,
        x: View,
        monoid: Monoid,
        axis: usize,
        (exclusive, reverse): Direction,
    ) -> Result<Tensor> {
        let fold = Fold::<N>::new(monoid, x)?;
        let (outer, n, inner) = split_at_axis(x.shape, axis)?;
        let mut out = cx.zeros(x.dtype, x.shape.to_vec())?;
        cx.spend(x.elems())?;
        if x.elems() == 0 {
            return Ok(out);
        }
        for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
            let mut acc = fold.identity;
            for k in 0..n {
                let k = if reverse { n - 1 - k } else { k };
                let at = (o * n + k) * inner + i;
                let before = acc;
                fold.add(&mut acc, (fold.load)(x.bytes, at));
                (fold.store)(if exclusive { before } else { acc }, &mut out.data, at);
            }
        }
        Ok(out)
    }
    by_class!(x, run(cx, x, monoid, axis, (exclusive, reverse)))
}

/// One window dim with its sizes known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) stride: i64,
    pub(crate) pad_lo: i64,
    pub(crate) pad_hi: i64,
    pub(crate) dilation: i64,
    pub(crate) base_dilation: i64,
}

impl Window {
    pub(crate) fn new(cx: &Cx, w: &WindowDim) -> Result<Window> {
        let smallest = w.stride.min(w.dilation).min(w.base_dilation);
        if smallest < 1 {
            return Err(OpError::mismatch("strides and dilations", "1 or more", smallest));
        }
        Ok(Window {
            stride: w.stride,
            pad_lo: cx.dim(&w.pad_lo)?,
            pad_hi: cx.dim(&w.pad_hi)?,
            dilation: w.dilation,
            base_dilation: w.base_dilation,
        })
    }
    /// Result extent for `n` inputs and a window of `k`.
    pub(crate) fn extent(&self, n: usize, k: i64) -> Result<usize> {
        if k < 1 {
            return Err(OpError::mismatch("window size", "1 or more", k));
        }
        let spread = if n == 0 { 0 } else { (n as i128 - 1) * i128::from(self.base_dilation) + 1 };
        let padded = spread + i128::from(self.pad_lo) + i128::from(self.pad_hi);
        let reach = (i128::from(k) - 1) * i128::from(self.dilation) + 1;
        let extent = (padded - reach).div_euclid(self.stride.into()) + 1;
        usize::try_from(extent)
            .map_err(|_| OpError::mismatch("padded extent", format!("at least the window's {reach}"), padded))
    }
    /// The input that position `k` of the window of result `o` reads, if it is one of `n`.
    pub(crate) fn input(&self, o: usize, k: i64, n: usize) -> Option<usize> {
        let p = o as i128 * i128::from(self.stride) + i128::from(k) * i128::from(self.dilation)
            - i128::from(self.pad_lo);
        let base = i128::from(self.base_dilation);
        let inside = p >= 0 && p % base == 0 && p / base < n as i128;
        inside.then_some((p / base) as usize)
    }
    /// All inputs in the window of `o`, in order.
    fn inputs(&self, o: usize, k: i64, n: usize) -> Vec<usize> {
        if k <= n as i64 {
            return (0..k).filter_map(|k| self.input(o, k, n)).collect();
        }
        // a window larger than the input: ask each input whether it is in it
        let start = o as i128 * i128::from(self.stride) - i128::from(self.pad_lo);
        let dilation = i128::from(self.dilation);
        (0..n)
            .filter(|&i| {
                let reach = i as i128 * i128::from(self.base_dilation) - start;
                reach >= 0 && reach % dilation == 0 && reach / dilation < i128::from(k)
            })
            .collect()
    }
}

pub(crate) fn window_reduce(
    cx: &Cx,
    x: View,
    monoid: Monoid,
    size: &[i64],
    window: &[WindowDim],
) -> Result<Tensor> {
    let Some(lead) = x.rank().checked_sub(size.len()).filter(|_| size.len() == window.len()) else {
        let expected = format!("{} or fewer, as many as sizes", x.rank());
        return Err(OpError::mismatch("window dims", expected, window.len()));
    };
    let windows: Vec<Window> = window.iter().map(|w| Window::new(cx, w)).collect::<Result<_>>()?;
    let mut shape = x.shape.to_vec();
    for ((n, w), &k) in shape[lead..].iter_mut().zip(&windows).zip(size) {
        *n = w.extent(*n, k)?;
    }
    by_class!(x, windows_of(cx, x, monoid, (size, &windows), shape))
}

fn windows_of<N: Number>(
    cx: &Cx,
    x: View,
    monoid: Monoid,
    (size, windows): (&[i64], &[Window]),
    shape: Vec<usize>,
) -> Result<Tensor> {
    let fold = Fold::<N>::new(monoid, x)?;
    let lead = x.rank() - size.len();
    let mut out = cx.zeros(x.dtype, shape)?;
    if out.elems() == 0 {
        return Ok(out);
    }
    // work per result: the inputs in its window, never more than there are
    let (spatial, plane) = (&x.shape[lead..], &out.shape[lead..]);
    let taps = size
        .iter()
        .zip(spatial)
        .fold(1usize, |t, (&k, &n)| t.saturating_mul(n.min(usize::try_from(k).unwrap_or(n))));
    cx.spend(out.elems().saturating_mul(taps.max(1)))?;
    // for each dim and each result index in it the offsets of the inputs in its window
    let from = strides(spatial);
    let mut offsets = Vec::with_capacity(windows.len());
    for (d, w) in windows.iter().enumerate() {
        cx.room(&[plane[d], spatial[d].min(usize::try_from(size[d]).unwrap_or(0))], 8)?;
        let of = |o| w.inputs(o, size[d], spatial[d]).into_iter().map(|i| i * from[d]).collect();
        offsets.push((0..plane[d]).map(of).collect::<Vec<Vec<usize>>>());
    }
    /// Visits the product of the offset lists of all dims.
    fn visit(lists: &[&[usize]], at: usize, f: &mut impl FnMut(usize)) {
        match lists.split_first() {
            None => f(at),
            Some((first, rest)) => first.iter().for_each(|i| visit(rest, at + i, f)),
        }
    }
    let planes: usize = x.shape[..lead].iter().product();
    let elems = checked_elems(spatial).unwrap_or(0);
    let mut to = 0;
    for p in 0..planes {
        walk(plane, &signed(&strides(plane)), 0, |o| {
            let mut rest = o;
            let mut lists: Vec<&[usize]> = vec![&[]; windows.len()];
            for d in (0..windows.len()).rev() {
                lists[d] = &offsets[d][rest % plane[d]];
                rest /= plane[d];
            }
            let mut acc = fold.identity;
            visit(&lists, p * elems, &mut |at| fold.add(&mut acc, (fold.load)(x.bytes, at)));
            (fold.store)(acc, &mut out.data, to);
            to += 1;
        });
    }
    Ok(out)
}
