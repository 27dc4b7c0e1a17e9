//! Constant data.

use crate::DType;
use crate::dtype::Scalar;
use std::fmt;
use std::sync::Arc;

/// Bytes owned somewhere else: a vector, a memory-mapped file, a slice of one.
pub trait ByteSource: Send + Sync {
    fn bytes(&self) -> &[u8];
    /// Advice: nobody will read the bytes soon, so that memory which only caches them can be given back.
    fn release(&self) {}
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
    /// Every element has this value, converted plainly to the element type.
    Splat(Scalar),
    /// Normally distributed, reproducible on every machine: element i is
    /// `mean + std * sqrt(-2 ln u1) * cos(2 pi u2)`, computed in f64 with `libm`'s functions, with
    /// `u1 = (w(2 i) >> 11 + 1) / 2^53` and `u2 = (w(2 i + 1) >> 11) / 2^53`, where `w(k)` is element k of
    /// [`crate::Prim::RandomBits`] with the key `seed`. Converted plainly to the element type; integers
    /// are rounded to nearest even first.
    Random {
        seed: u64,
        mean: f64,
        std: f64,
    },
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

impl ConstData {
    /// A constant with the tensor's elements.
    pub fn from_tensor(t: Tensor) -> ConstData {
        let source = if t.dtype == DType::String {
            ConstSource::Strings(t.strings.into())
        } else {
            ConstSource::Bytes(Arc::new(t.data))
        };
        ConstData { dtype: t.dtype, shape: t.shape, source, name: None }
    }
    /// Every element is `value`.
    pub fn splat(dtype: DType, shape: Vec<usize>, value: Scalar) -> ConstData {
        ConstData { dtype, shape, source: ConstSource::Splat(value), name: None }
    }
    pub fn elems(&self) -> usize {
        checked_elems(&self.shape).unwrap_or(0)
    }
    /// Element `i` in row-major order, where it is cheap to know: integers, booleans and the IEEE float
    /// types; `None` for the others, for random constants and beyond the end.
    pub fn scalar_at(&self, i: usize) -> Option<Scalar> {
        match &self.source {
            ConstSource::Splat(s) => (i < self.elems()).then_some(*s),
            ConstSource::Bytes(b) => read_scalar(self.dtype, b.bytes(), i),
            ConstSource::Random { .. } | ConstSource::Strings(_) => None,
        }
    }
}

/// Element `i` of little-endian bytes; `None` beyond the end and for 8-bit and 4-bit floats and strings.
pub fn read_scalar(dtype: DType, bytes: &[u8], i: usize) -> Option<Scalar> {
    let n = dtype.bytes();
    let b = bytes.get(i.checked_mul(n)?..(i + 1).checked_mul(n)?)?;
    macro_rules! int {
        ($t:ty) => {
            Scalar::Int(<$t>::from_le_bytes(b.try_into().ok()?) as i128)
        };
    }
    Some(match dtype {
        DType::F64 => Scalar::Float(f64::from_le_bytes(b.try_into().ok()?)),
        DType::F32 => Scalar::Float(f32::from_le_bytes(b.try_into().ok()?) as f64),
        DType::F16 => Scalar::Float(half::f16::from_le_bytes(b.try_into().ok()?).to_f64()),
        DType::BF16 => Scalar::Float(half::bf16::from_le_bytes(b.try_into().ok()?).to_f64()),
        DType::I64 => int!(i64),
        DType::I32 => int!(i32),
        DType::I16 => int!(i16),
        DType::I8 | DType::I4 | DType::I2 => int!(i8),
        DType::U64 => int!(u64),
        DType::U32 => int!(u32),
        DType::U16 => int!(u16),
        DType::U8 | DType::U4 | DType::U2 => int!(u8),
        DType::Bool => Scalar::Int(i128::from(b[0] != 0)),
        DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0
        | DType::F4E2M1
        | DType::String => return None,
    })
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
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize)
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
    pub fn from_i32(shape: Vec<usize>, v: &[i32]) -> Tensor {
        Tensor::new(DType::I32, shape, v.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
    pub fn from_bool(shape: Vec<usize>, v: &[bool]) -> Tensor {
        Tensor::new(DType::Bool, shape, v.iter().map(|&x| u8::from(x)).collect())
    }
    pub fn from_i64(shape: Vec<usize>, v: &[i64]) -> Tensor {
        Tensor::new(DType::I64, shape, v.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
}
