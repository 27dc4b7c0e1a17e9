//! Constant data.

use crate::DType;
use crate::dtype::Scalar;
use std::fmt;
use std::sync::Arc;

/// Bytes owned somewhere else: a vector, a memory-mapped file, a slice of one.
pub trait ByteSource: Send + Sync {
    fn bytes(&self) -> &[u8];
}

impl ByteSource for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Index of a constant in [`crate::Module::consts`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConstId(pub u32);

/// Where the elements of a constant come from. Row-major, little-endian, one byte at least each.
#[derive(Clone)]
pub enum ConstSource {
    Bytes(Arc<dyn ByteSource>),
    /// Every element has this value.
    Splat(Scalar),
    /// Normally distributed, reproducible on every machine: element i is
    /// `mean + std * sqrt(-2 ln u1) * cos(2 pi u2)` with u1, u2 from SplitMix64 of (seed, i).
    Random { seed: u64, mean: f64, std: f64 },
    /// `DType::String` elements (host only).
    Strings(Arc<[String]>),
}

/// A constant tensor: static shape, reference-counted data, the name it had in the model.
#[derive(Clone)]
pub struct ConstData {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub source: ConstSource,
    pub name: Option<String>,
}

impl fmt::Debug for ConstData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "const {}{:?}", self.dtype, self.shape)
    }
}

/// A dense row-major host tensor, the currency of the interpreter, of tests and of the API.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// `elems * dtype.bytes()` bytes, little-endian.
    pub data: Vec<u8>,
    /// The elements where `dtype` is `String` (then `data` is empty).
    pub strings: Vec<String>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {}{:?}", self.dtype, self.shape)
    }
}

/// Number of elements of a static shape, `None` on overflow of `isize::MAX`.
pub fn checked_elems(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize)
}

impl Tensor {
    pub fn new(dtype: DType, shape: Vec<usize>, data: Vec<u8>) -> Tensor {
        Tensor { dtype, shape, data, strings: Vec::new() }
    }
    pub fn zeros(dtype: DType, shape: Vec<usize>) -> Tensor {
        let n = checked_elems(&shape).unwrap_or(0);
        let strings = if dtype == DType::String { vec![String::new(); n] } else { Vec::new() };
        Tensor { dtype, shape, data: vec![0; n * dtype.bytes()], strings }
    }
    pub fn elems(&self) -> usize {
        checked_elems(&self.shape).unwrap_or(0)
    }
    pub fn from_f32(shape: Vec<usize>, v: &[f32]) -> Tensor {
        Tensor::new(DType::F32, shape, v.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
    pub fn from_i64(shape: Vec<usize>, v: &[i64]) -> Tensor {
        Tensor::new(DType::I64, shape, v.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
}
