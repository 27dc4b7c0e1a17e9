//! Contraction and convolution. Both bring blocks of their operands into contiguous wide buffers and
//! multiply those; products are summed in ascending order of the reduced index.

use crate::context::Cx;
use crate::error::OpError;
use crate::number::Number;
use crate::reduce::Window;
use crate::view::{View, signed, strides, walk};
use ir::prim::WindowDim;
use ir::tensor::checked_elems;
use ir::{DType, Tensor};

type Result<T> = std::result::Result<T, OpError>;

/// The type that products accumulate in: `f64`, or `i64` modulo 2^64, which is exact for every integer
/// result of up to 64 bits after wrapping.
trait Acc: Copy {
    const ZERO: Self;
    /// How elements are read and written.
    type Wide: Number;
    fn from_wide(x: Self::Wide) -> Self;
    fn into_wide(self, dtype: DType) -> Self::Wide;
    fn mul_add(self, a: Self, b: Self) -> Self;
}

impl Acc for f64 {
    const ZERO: f64 = 0.0;
    type Wide = f64;
    fn from_wide(x: f64) -> f64 {
        x
    }
    fn into_wide(self, _: DType) -> f64 {
        self
    }
    fn mul_add(self, a: f64, b: f64) -> f64 {
        self + a * b
    }
}

impl Acc for i64 {
    const ZERO: i64 = 0;
    type Wide = i128;
    fn from_wide(x: i128) -> i64 {
        x as i64
    }
    fn into_wide(self, _: DType) -> i128 {
        self.into()
    }
    fn mul_add(self, a: i64, b: i64) -> i64 {
        self.wrapping_add(a.wrapping_mul(b))
    }
}

/// Columns, rows and depth of the blocks; a block of each operand fits the second-level cache.
const COLS: usize = 256;
const ROWS: usize = 1024;
const DEPTH: usize = 128;

/// `c[rows, cols] += a[rows, depth] b[depth, cols]`, all contiguous.
fn multiply<T: Acc>(a: &[T], b: &[T], c: &mut [T], depth: usize, cols: usize) {
    if depth == 0 || cols == 0 {
        return;
    }
    for (a, c) in a.chunks_exact(depth).zip(c.chunks_exact_mut(cols)) {
        // four steps of the depth at a time: `c` is read and written once for them
        let (quads, rest) = a.as_chunks::<4>();
        for (a, b) in quads.iter().zip(b.chunks_exact(4 * cols)) {
            let (b0, b) = b.split_at(cols);
            let (b1, b) = b.split_at(cols);
            let (b2, b3) = b.split_at(cols);
            for ((((c, b0), b1), b2), b3) in c.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
                let c2 = c.mul_add(a[0], *b0).mul_add(a[1], *b1);
                *c = c2.mul_add(a[2], *b2).mul_add(a[3], *b3);
            }
        }
        let done = depth - rest.len();
        for (a, b) in rest.iter().zip(b[done * cols..].chunks_exact(cols)) {
            c.iter_mut().zip(b).for_each(|(c, b)| *c = c.mul_add(*a, *b));
        }
    }
}

fn undefined<T>(prim: &'static str, dtype: DType) -> Result<T> {
    Err(OpError::Undefined { prim, dtype })
}

/// Floats give floats, integers integers.
fn check_classes(prim: &'static str, a: View, b: View, acc: DType) -> Result<()> {
    for dtype in [a.dtype, b.dtype, acc] {
        if matches!(dtype, DType::Bool | DType::String) || dtype.is_float() != acc.is_float() {
            return undefined(prim, dtype);
        }
    }
    Ok(())
}

/// Element offsets of all index tuples over the given dims, in row-major order.
fn offsets(cx: &Cx, x: View, dims: &[usize]) -> Result<Vec<usize>> {
    let all = strides(x.shape);
    let shape: Vec<usize> = dims.iter().map(|&d| x.shape[d]).collect();
    let n = cx.room(&shape, size_of::<usize>())?;
    let mut list = Vec::with_capacity(n);
    let steps: Vec<usize> = dims.iter().map(|&d| all[d]).collect();
    walk(&shape, &signed(&steps), 0, |at| list.push(at));
    Ok(list)
}

pub(crate) fn contract(
    cx: &Cx,
    a: View,
    b: View,
    batch: &[(usize, usize)],
    reduce: &[(usize, usize)],
    acc: DType,
) -> Result<Tensor> {
    check_classes("contract", a, b, acc)?;
    let (mut used_a, mut used_b) = (vec![false; a.rank()], vec![false; b.rank()]);
    for &(i, j) in batch.iter().chain(reduce) {
        let (Some(x), Some(y)) = (a.shape.get(i), b.shape.get(j)) else {
            let expected = format!("below {} and {}", a.rank(), b.rank());
            return Err(OpError::mismatch("paired axes", expected, format!("({i}, {j})")));
        };
        if x != y {
            return Err(OpError::mismatch(format!("extent of axis {j} of the second operand"), x, y));
        }
        if std::mem::replace(&mut used_a[i], true) || std::mem::replace(&mut used_b[j], true) {
            return Err(OpError::mismatch("paired axes", "distinct axes", format!("({i}, {j})")));
        }
    }
    let free = |used: &[bool]| -> Vec<usize> { (0..used.len()).filter(|&d| !used[d]).collect() };
    let (free_a, free_b) = (free(&used_a), free(&used_b));
    let mut shape: Vec<usize> = batch.iter().map(|p| a.shape[p.0]).collect();
    shape.extend(free_a.iter().map(|&d| a.shape[d]));
    shape.extend(free_b.iter().map(|&d| b.shape[d]));
    let mut out = cx.zeros(acc, shape)?;
    if out.elems() == 0 {
        return Ok(out);
    }
    let firsts = |pairs: &[(usize, usize)]| -> Vec<usize> { pairs.iter().map(|p| p.0).collect() };
    let seconds = |pairs: &[(usize, usize)]| -> Vec<usize> { pairs.iter().map(|p| p.1).collect() };
    let at_a = [firsts(batch), free_a, firsts(reduce)];
    let at_b = [seconds(batch), free_b, seconds(reduce)];
    let along: Vec<usize> = reduce.iter().map(|p| a.shape[p.0]).collect();
    let depth = checked_elems(&along).unwrap_or(0);
    cx.spend(out.elems().saturating_mul(depth.max(1)).saturating_mul(2))?;
    if acc.is_float() {
        contract_as::<f64>(cx, a, b, at_a, at_b, &mut out)?;
    } else {
        contract_as::<i64>(cx, a, b, at_a, at_b, &mut out)?;
    }
    Ok(out)
}

/// `dims_a`, `dims_b`: batch dims, free dims, reduced dims.
fn contract_as<T: Acc>(
    cx: &Cx,
    a: View,
    b: View,
    dims_a: [Vec<usize>; 3],
    dims_b: [Vec<usize>; 3],
    out: &mut Tensor,
) -> Result<()> {
    let (Some(load_a), Some(load_b), Some(store)) =
        (T::Wide::load(a.dtype), T::Wide::load(b.dtype), T::Wide::store(out.dtype))
    else {
        return undefined("contract", out.dtype);
    };
    let dims = |x, d: &[Vec<usize>; 3]| -> Result<[Vec<usize>; 3]> {
        Ok([offsets(cx, x, &d[0])?, offsets(cx, x, &d[1])?, offsets(cx, x, &d[2])?])
    };
    let [batch_a, rows, depth_a] = dims(a, &dims_a)?;
    let [batch_b, cols, depth_b] = dims(b, &dims_b)?;
    let mut acc = cx.scratch(ROWS.min(rows.len()) * COLS.min(cols.len()), T::ZERO)?;
    let (mut block_a, mut block_b) = (Vec::new(), Vec::new());
    for (n, (base_a, base_b)) in batch_a.iter().zip(&batch_b).enumerate() {
        for (col_block, col_at) in cols.chunks(COLS).enumerate() {
            for (row_block, row_at) in rows.chunks(ROWS).enumerate() {
                let acc = &mut acc[..row_at.len() * col_at.len()];
                acc.fill(T::ZERO);
                for (k_a, k_b) in depth_a.chunks(DEPTH).zip(depth_b.chunks(DEPTH)) {
                    block_a.clear();
                    for r in row_at {
                        let read = |k| T::from_wide(load_a(a.bytes, base_a + r + k));
                        block_a.extend(k_a.iter().map(read));
                    }
                    block_b.clear();
                    for k in k_b {
                        let read = |c| T::from_wide(load_b(b.bytes, base_b + k + c));
                        block_b.extend(col_at.iter().map(read));
                    }
                    multiply(&block_a, &block_b, acc, k_a.len(), col_at.len());
                }
                for (r, line) in acc.chunks_exact(col_at.len()).enumerate() {
                    let row = n * rows.len() + row_block * ROWS + r;
                    let first = row * cols.len() + col_block * COLS;
                    for (c, x) in line.iter().enumerate() {
                        store(x.into_wide(out.dtype), &mut out.data, first + c);
                    }
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn convolve(
    cx: &Cx,
    x: View,
    w: View,
    window: &[WindowDim],
    groups: usize,
    acc: DType,
) -> Result<Tensor> {
    check_classes("convolve", x, w, acc)?;
    let rank = window.len() + 2;
    if x.rank() != rank || w.rank() != rank || groups == 0 {
        let expected = format!("operands of rank {rank}, at least 1 group");
        let found = format!("{} and {}, {groups} groups", x.describe(), w.describe());
        return Err(OpError::mismatch("convolution", expected, found));
    }
    if w.shape[1].checked_mul(groups) != Some(x.shape[1]) || !w.shape[0].is_multiple_of(groups) {
        let expected = format!("weights [{groups}*Co, {}/{groups}, ...]", x.shape[1]);
        return Err(OpError::mismatch("channels", expected, w.describe()));
    }
    let windows: Vec<Window> = window.iter().map(|d| Window::new(cx, d)).collect::<Result<_>>()?;
    let mut shape = vec![x.shape[0], w.shape[0]];
    for ((d, &n), &k) in windows.iter().zip(&x.shape[2..]).zip(&w.shape[2..]) {
        shape.push(d.extent(n, k as i64)?);
    }
    let mut out = cx.zeros(acc, shape)?;
    if out.elems() == 0 {
        return Ok(out);
    }
    let depth = checked_elems(&w.shape[1..]).unwrap_or(0);
    cx.spend(out.elems().saturating_mul(depth.max(1)).saturating_mul(2))?;
    if acc.is_float() {
        convolve_as::<f64>(cx, x, w, &windows, groups, &mut out)?;
    } else {
        convolve_as::<i64>(cx, x, w, &windows, groups, &mut out)?;
    }
    Ok(out)
}

/// For each image, group and block of result positions: the inputs that the block reads are
/// gathered into columns `[Ci * kernel, positions]` (0 outside of the input), and multiplied by the weights.
fn convolve_as<T: Acc>(
    cx: &Cx,
    x: View,
    w: View,
    windows: &[Window],
    groups: usize,
    out: &mut Tensor,
) -> Result<()> {
    let (Some(load_x), Some(load_w), Some(store)) =
        (T::Wide::load(x.dtype), T::Wide::load(w.dtype), T::Wide::store(out.dtype))
    else {
        return undefined("convolve", out.dtype);
    };
    let (spatial, kernel, plane) = (&x.shape[2..], &w.shape[2..], out.shape[2..].to_vec());
    // beyond what memory holds only where a size is 0
    let size = |dims: &[usize]| checked_elems(dims).unwrap_or(0);
    let (elems, taps, positions) = (size(spatial), size(kernel), size(&plane));
    let (channels, filters) = (w.shape[1], w.shape[0] / groups);
    let depth = channels * taps;
    let from = strides(spatial);

    // per dim the input that each tap of each result index reads, `[kernel, plane]`
    let mut inputs = Vec::with_capacity(windows.len());
    for (d, w) in windows.iter().enumerate() {
        cx.room(&[kernel[d], plane[d]], size_of::<Option<usize>>())?;
        let (n, step) = (spatial[d], from[d]);
        let tap = |k| (0..plane[d]).map(move |o| Some(w.input(o, k as i64, n)? * step));
        inputs.push((0..kernel[d]).flat_map(tap).collect::<Vec<Option<usize>>>());
    }
    cx.room(&[COLS.min(positions), depth + filters + 2 * taps], size_of::<T>())?;
    cx.room(&[filters, depth], size_of::<T>())?;
    let mut columns = vec![T::ZERO; COLS.min(positions) * depth];
    let mut acc = vec![T::ZERO; COLS.min(positions) * filters];
    let mut weights: Vec<T> = Vec::new();
    for start in (0..positions).step_by(COLS) {
        let cols = COLS.min(positions - start);
        // the same for all groups, images and channels: where in a plane each tap of each position reads
        let reads: Vec<Option<usize>> = (0..taps)
            .flat_map(|tap| (start..start + cols).map(move |position| (tap, position)))
            .map(|(tap, position)| {
                let (mut tap, mut position, mut at) = (tap, position, 0);
                for d in (0..windows.len()).rev() {
                    let (k, o) = (tap % kernel[d], position % plane[d]);
                    (tap, position) = (tap / kernel[d], position / plane[d]);
                    at += inputs[d][k * plane[d] + o]?;
                }
                Some(at)
            })
            .collect();
        for g in 0..groups {
            let first = g * filters * depth;
            let read = |i| T::from_wide(load_w(w.bytes, first + i));
            weights.clear();
            weights.extend((0..filters * depth).map(read));
            for n in 0..x.shape[0] {
                for c in 0..channels {
                    let base = (n * x.shape[1] + g * channels + c) * elems;
                    let block = &mut columns[c * taps * cols..(c + 1) * taps * cols];
                    for (value, read) in block.iter_mut().zip(&reads) {
                        *value = match read {
                            Some(at) => T::from_wide(load_x(x.bytes, base + at)),
                            None => T::ZERO,
                        };
                    }
                }
                let acc = &mut acc[..filters * cols];
                acc.fill(T::ZERO);
                multiply_blocked(&weights, &columns[..depth * cols], acc, depth, cols);
                for (f, line) in acc.chunks_exact(cols).enumerate() {
                    let row = (n * out.shape[1] + g * filters + f) * positions + start;
                    for (c, v) in line.iter().enumerate() {
                        store(v.into_wide(out.dtype), &mut out.data, row + c);
                    }
                }
            }
        }
    }
    Ok(())
}

/// [`multiply`] in steps of the depth that keep the columns in the cache.
fn multiply_blocked<T: Acc>(a: &[T], b: &[T], c: &mut [T], depth: usize, cols: usize) {
    if depth <= DEPTH {
        return multiply(a, b, c, depth, cols);
    }
    let mut part = Vec::new();
    for (i, b) in b.chunks(DEPTH * cols).enumerate() {
        let len = b.len() / cols;
        part.clear();
        for row in a.chunks_exact(depth) {
            part.extend_from_slice(&row[i * DEPTH..i * DEPTH + len]);
        }
        multiply(&part, b, c, len, cols);
    }
}
