//! Operands as borrowed bytes, and walks over their elements.

use crate::error::OpError;
use crate::number::Number;
use ir::tensor::checked_elems;
use ir::{DType, Tensor};

/// A tensor that somebody else owns: a value of the graph or the bytes of a constant.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
    pub(crate) strings: &'a [String],
}

impl<'a> View<'a> {
    /// Checks that there are as many bytes (or strings) as the shape asks for.
    pub(crate) fn new(
        dtype: DType,
        shape: &'a [usize],
        bytes: &'a [u8],
        strings: &'a [String],
    ) -> Result<View<'a>, OpError> {
        let (found, unit) = match dtype {
            DType::String => (strings.len(), 1),
            _ => (bytes.len(), dtype.bytes()),
        };
        let expected = checked_elems(shape).and_then(|n| n.checked_mul(unit));
        if expected != Some(found) {
            let want = expected.map_or("a shape that fits in memory".into(), |n| n.to_string());
            return Err(OpError::mismatch(format!("data of {dtype}{shape:?}"), want, found));
        }
        Ok(View { dtype, shape, bytes, strings })
    }
    pub(crate) fn of(t: &'a Tensor) -> Result<View<'a>, OpError> {
        View::new(t.dtype, &t.shape, &t.data, &t.strings)
    }
    pub(crate) fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Number of elements; [`View::new`] made sure that it does not overflow.
    pub(crate) fn elems(&self) -> usize {
        checked_elems(self.shape).unwrap_or(0)
    }
    pub(crate) fn to_tensor(self) -> Tensor {
        Tensor {
            dtype: self.dtype,
            shape: self.shape.to_vec(),
            data: self.bytes.to_vec(),
            strings: self.strings.to_vec(),
        }
    }
    /// Element `i` as a wide number.
    pub(crate) fn get<N: Number>(&self, i: usize) -> Option<N> {
        (i < self.elems()).then_some(())?;
        Some(N::load(self.dtype)?(self.bytes, i))
    }
    /// The integer of a tensor with one element.
    pub(crate) fn int(&self) -> Result<i128, OpError> {
        match self.get::<i128>(0) {
            Some(x) if self.elems() == 1 => Ok(x),
            _ => Err(OpError::mismatch("operand", "one integer", self.describe())),
        }
    }
    pub(crate) fn describe(&self) -> String {
        format!("{}{:?}", self.dtype, self.shape)
    }
}

/// Collects copied elements of one type, numbers as bytes.
pub(crate) struct Gathered {
    dtype: DType,
    bytes: Vec<u8>,
    strings: Vec<String>,
}

impl Gathered {
    /// Room for `n` elements, which the caller has checked against the budget.
    pub(crate) fn new(dtype: DType, n: usize) -> Gathered {
        let bytes = Vec::with_capacity(n * dtype.bytes());
        Gathered { dtype, bytes, strings: Vec::new() }
    }
    /// Appends `len` elements of `src` from element `at` on.
    pub(crate) fn push(&mut self, src: &View, at: usize, len: usize) {
        if self.dtype == DType::String {
            self.strings.extend_from_slice(&src.strings[at..at + len]);
        } else {
            let size = self.dtype.bytes();
            let part = &src.bytes[at * size..(at + len) * size];
            // single elements as arrays: a call to copy four bytes costs more than the copy
            match (part.first_chunk::<4>(), part.first_chunk::<8>()) {
                (Some(four), _) if part.len() == 4 => self.bytes.extend_from_slice(four),
                (_, Some(eight)) if part.len() == 8 => self.bytes.extend_from_slice(eight),
                _ => self.bytes.extend_from_slice(part),
            }
        }
    }
    pub(crate) fn into_tensor(self, shape: Vec<usize>) -> Tensor {
        Tensor { dtype: self.dtype, shape, data: self.bytes, strings: self.strings }
    }
}

/// Row-major strides in elements. Saturating: with an extent of 0 there is nothing to address.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}

/// Calls `f` with `base + index . strides` for every index of `shape` in row-major order. The sums must
/// stay within the addressed tensor, which the caller has checked.
pub(crate) fn walk(shape: &[usize], strides: &[isize], base: isize, mut f: impl FnMut(usize)) {
    if shape.contains(&0) {
        return;
    }
    let Some((&inner, outer)) = shape.split_last() else {
        f(base as usize);
        return;
    };
    let step = strides[outer.len()];
    let mut index = vec![0; outer.len()];
    let mut at = base;
    loop {
        for i in 0..inner as isize {
            f((at + i * step) as usize);
        }
        // the next index of the outer dims, last one fastest
        let mut d = outer.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            at += strides[d];
            if index[d] < outer[d] {
                break;
            }
            at -= strides[d] * outer[d] as isize;
            index[d] = 0;
        }
    }
}

/// Strides of a walk in whose order the elements of a row-major tensor lie.
pub(crate) fn signed(strides: &[usize]) -> Vec<isize> {
    strides.iter().map(|&s| s as isize).collect()
}

/// Extents before, at and after `axis`, the first and last multiplied up. Zero extents elsewhere in
/// the shape make one of the products 0.
pub(crate) fn split_at_axis(shape: &[usize], axis: usize) -> Result<(usize, usize, usize), OpError> {
    let Some(&extent) = shape.get(axis) else {
        return Err(OpError::mismatch("axis", format!("below {}", shape.len()), axis));
    };
    let product = |part: &[usize]| checked_elems(part).unwrap_or(usize::MAX);
    Ok((product(&shape[..axis]), extent, product(&shape[axis + 1..])))
}
