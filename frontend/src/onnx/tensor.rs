//! `TensorProto` to constants.

use super::external::{DataFiles, ExternalError, FileBytes, FileSlice};
use crate::diag::{Code, Diagnostic};
use ir::dtype::{DType, Scalar};
use ir::tensor::{ByteSource, ConstData, ConstSource, Tensor, checked_elems};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{StringStringEntryProto, TensorProto};
use std::ops::Range;
use std::sync::Arc;

/// What to do where a tensor's external data file does not exist.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum MissingWeights {
    /// Report it.
    #[default]
    Error,
    /// Fill floats with reproducible noise scaled like an initialised layer, others with zeros.
    Random { seed: u64 },
}

/// Where the bytes of a model's tensors are.
pub struct Storage {
    pub file: Arc<FileBytes>,
    /// Places of `raw_data` fields, see [`super::wire`].
    pub blobs: Vec<Range<usize>>,
    pub data_files: DataFiles,
    pub missing: MissingWeights,
}

/// The element type of ONNX's code, where there is one here.
pub fn dtype_of(code: i32) -> Result<DType, Diagnostic> {
    Ok(match code {
        1 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        4 => DType::U16,
        5 => DType::I16,
        6 => DType::I32,
        7 => DType::I64,
        8 => DType::String,
        9 => DType::Bool,
        10 => DType::F16,
        11 => DType::F64,
        12 => DType::U32,
        13 => DType::U64,
        14 | 15 => {
            return Err(Diagnostic::unsupported(Code::Type, "complex element types are not supported"));
        }
        16 => DType::BF16,
        17 => DType::F8E4M3FN,
        18 => DType::F8E4M3FNUZ,
        19 => DType::F8E5M2,
        20 => DType::F8E5M2FNUZ,
        21 => DType::U4,
        22 => DType::I4,
        23 => DType::F4E2M1,
        24 => DType::F8E8M0,
        25 => DType::U2,
        26 => DType::I2,
        _ => return Err(Diagnostic::invalid(Code::Type, format!("unknown element type {code}"))),
    })
}

/// ONNX's code of an element type.
pub fn code_of(dtype: DType) -> i32 {
    (1..=26).find(|&code| dtype_of(code).is_ok_and(|d| d == dtype)).unwrap_or(0)
}

/// Bytes of one element each as ONNX stores them: narrow types share bytes, low bits first.
pub fn packed(dtype: DType, bytes: &[u8]) -> Vec<u8> {
    let (per, bits) = (per_byte(dtype), dtype.bits());
    if per == 1 {
        return bytes.to_vec();
    }
    let join = |part: &[u8]| {
        part.iter().enumerate().fold(0, |all, (i, b)| all | ((b & ((1 << bits) - 1)) << (i as u32 * bits)))
    };
    bytes.chunks(per).map(join).collect()
}

/// Elements that share one byte of ONNX's storage.
fn per_byte(dtype: DType) -> usize {
    match dtype.bits() {
        4 => 2,
        2 => 4,
        _ => 1,
    }
}

/// Highest rank of a tensor; higher ones are hostile.
pub const MAX_RANK: usize = 64;

/// Static shape of a tensor, checked.
pub fn shape_of(dims: &[i64]) -> Result<Vec<usize>, Diagnostic> {
    if dims.len() > MAX_RANK {
        return Err(Diagnostic::limit(format!("a tensor of rank {}", dims.len())));
    }
    let shape = dims
        .iter()
        .map(|&d| usize::try_from(d).ok().filter(|&d| d as i64 <= ir::Dim::LIMIT))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Diagnostic::invalid(Code::Tensor, format!("impossible dims {dims:?}")))?;
    match checked_elems(&shape).and_then(|n| n.checked_mul(8)) {
        Some(n) if n <= isize::MAX as usize => Ok(shape),
        _ => Err(Diagnostic::limit(format!("a tensor of dims {dims:?}"))),
    }
}

impl Storage {
    /// The constant that `t` (a tensor of the skeleton) describes.
    pub fn constant(&mut self, t: &TensorProto) -> Result<ConstData, Diagnostic> {
        let dtype = dtype_of(t.data_type)?;
        let shape = shape_of(&t.dims)?;
        let elems = checked_elems(&shape).unwrap_or(0);
        let name = (!t.name.is_empty()).then(|| t.name.clone());
        if t.segment.is_some() {
            return Err(Diagnostic::unsupported(Code::Tensor, "segmented tensors are not supported"));
        }
        let source = if dtype == DType::String {
            strings(t, elems)?
        } else if t.data_location.enum_value() == Ok(DataLocation::EXTERNAL) {
            self.external(t, dtype, &shape, elems)?
        } else if t.raw_data.is_empty() {
            typed(t, dtype, elems)?
        } else {
            let range = <[u8; 4]>::try_from(t.raw_data.as_slice())
                .ok()
                .and_then(|i| self.blobs.get(u32::from_le_bytes(i) as usize).cloned());
            let slice = range
                .and_then(|r| FileSlice::new(self.file.clone(), r))
                .ok_or_else(|| Diagnostic::invalid(Code::Format, "tensor data outside the file"))?;
            from_bytes(slice, dtype, elems)?
        };
        Ok(ConstData { dtype, shape, source, name })
    }

    fn external(
        &mut self,
        t: &TensorProto,
        dtype: DType,
        shape: &[usize],
        elems: usize,
    ) -> Result<ConstSource, Diagnostic> {
        let entry = |key: &str| {
            t.external_data.iter().find(|e| e.key == key).map(|e: &StringStringEntryProto| e.value.as_str())
        };
        let number = |key: &str| -> Result<Option<u64>, Diagnostic> {
            entry(key).map(|v| v.trim().parse::<u64>()).transpose().map_err(|_| {
                Diagnostic::invalid(Code::ExternalData, format!("external data {key} is not a number"))
            })
        };
        let location = entry("location")
            .ok_or_else(|| Diagnostic::invalid(Code::ExternalData, "external data without a location"))?;
        let bytes = elems.div_ceil(per_byte(dtype)) * dtype.bytes();
        let length = match number("length")? {
            Some(n) => n,
            None => bytes as u64,
        };
        let offset = number("offset")?.unwrap_or(0);
        match self.data_files.slice(location, offset, Some(length)) {
            Ok(slice) => from_bytes(slice, dtype, elems),
            Err(ExternalError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                match self.missing {
                    MissingWeights::Error => Err(Diagnostic::invalid(
                        Code::ExternalData,
                        format!("external data {location:?} does not exist"),
                    )
                    .hint("put the data file beside the model, or ask for synthetic weights")),
                    MissingWeights::Random { seed } => Ok(synthetic(&t.name, seed, dtype, shape)),
                }
            }
            Err(e) => Err(Diagnostic::invalid(Code::ExternalData, e.to_string())),
        }
    }

    /// The constant as a host tensor.
    pub fn tensor(&mut self, t: &TensorProto) -> Result<Tensor, Diagnostic> {
        let c = self.constant(t)?;
        let mut out = Tensor::new(c.dtype, c.shape, Vec::new());
        match c.source {
            ConstSource::Bytes(b) => out.data = b.bytes().to_vec(),
            ConstSource::Strings(s) => out.strings = s.to_vec(),
            ConstSource::Splat(_) | ConstSource::Random { .. } => {
                return Err(Diagnostic::invalid(Code::Tensor, "a tensor without data"));
            }
        }
        Ok(out)
    }
}

/// Noise whose scale keeps activations of a layer near those of its input.
fn synthetic(name: &str, seed: u64, dtype: DType, shape: &[usize]) -> ConstSource {
    if !dtype.is_float() {
        return ConstSource::Splat(Scalar::zero(dtype));
    }
    // FNV-1a: a different, reproducible seed for every tensor
    let seed = name
        .bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let fan_in = match shape {
        [_, rest @ ..] if !rest.is_empty() => rest.iter().map(|&d| d.max(1) as f64).product(),
        _ => 64.0,
    };
    ConstSource::Random { seed, mean: 0.0, std: f64::sqrt(fan_in).recip() }
}

fn strings(t: &TensorProto, elems: usize) -> Result<ConstSource, Diagnostic> {
    if t.string_data.len() != elems {
        return Err(count_error(elems, t.string_data.len()));
    }
    let all = t
        .string_data
        .iter()
        .map(|s| String::from_utf8(s.clone()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Diagnostic::invalid(Code::Tensor, "a string that is not UTF-8"))?;
    Ok(ConstSource::Strings(all.into()))
}

fn count_error(want: usize, got: usize) -> Diagnostic {
    Diagnostic::invalid(Code::Tensor, format!("expected {want} elements, found {got}"))
}

/// Little-endian bytes as ONNX stores them.
fn from_bytes(slice: FileSlice, dtype: DType, elems: usize) -> Result<ConstSource, Diagnostic> {
    let bytes = slice.bytes();
    let packing = per_byte(dtype);
    let want = elems.div_ceil(packing).saturating_mul(dtype.bytes());
    if bytes.len() != want {
        return Err(Diagnostic::invalid(
            Code::Tensor,
            format!("expected {want} bytes of data, found {}", bytes.len()),
        ));
    }
    Ok(if packing > 1 {
        ConstSource::Bytes(Arc::new(unpack(bytes.iter().copied(), dtype, elems)))
    } else if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
        // a bool is 0 or 1 everywhere else
        ConstSource::Bytes(Arc::new(bytes.iter().map(|&b| u8::from(b != 0)).collect::<Vec<u8>>()))
    } else {
        ConstSource::Bytes(Arc::new(slice))
    })
}

/// One byte per element from elements packed low bits first. Signed types are sign-extended.
fn unpack(bytes: impl Iterator<Item = u8>, dtype: DType, elems: usize) -> Vec<u8> {
    let bits = dtype.bits();
    let per = 8 / bits;
    let mask = (1u8 << bits) - 1;
    // the shape may promise more than there is
    let mut out = Vec::with_capacity(elems.min(bytes.size_hint().0.saturating_mul(per as usize)));
    'all: for b in bytes {
        for i in 0..per {
            if out.len() == elems {
                break 'all;
            }
            let v = (b >> (i * bits)) & mask;
            let up = 8 - bits;
            out.push(if dtype.is_signed_int() { (((v << up) as i8) >> up) as u8 } else { v });
        }
    }
    out
}

/// The typed fields of a tensor.
fn typed(t: &TensorProto, dtype: DType, elems: usize) -> Result<ConstSource, Diagnostic> {
    fn all<T: Copy, const N: usize>(v: &[T], le: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        v.iter().flat_map(|&x| le(x)).collect()
    }
    let (count, data) = match dtype {
        DType::F32 => (t.float_data.len(), all(&t.float_data, f32::to_le_bytes)),
        DType::F64 => (t.double_data.len(), all(&t.double_data, f64::to_le_bytes)),
        DType::I64 => (t.int64_data.len(), all(&t.int64_data, i64::to_le_bytes)),
        DType::U64 => (t.uint64_data.len(), all(&t.uint64_data, u64::to_le_bytes)),
        DType::U32 => (t.uint64_data.len(), all(&t.uint64_data, |x| (x as u32).to_le_bytes())),
        DType::I32 => (t.int32_data.len(), all(&t.int32_data, i32::to_le_bytes)),
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => {
            (t.int32_data.len(), all(&t.int32_data, |x| (x as u16).to_le_bytes()))
        }
        DType::Bool => (t.int32_data.len(), all(&t.int32_data, |x| [u8::from(x != 0)])),
        _ if per_byte(dtype) > 1 => {
            let v = unpack(t.int32_data.iter().map(|&x| x as u8), dtype, elems);
            (v.len(), v)
        }
        _ => (t.int32_data.len(), all(&t.int32_data, |x| [x as u8])),
    };
    if count != elems {
        return Err(count_error(elems, count));
    }
    Ok(ConstSource::Bytes(Arc::new(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_elements_are_counted_before_memory_is_taken() {
        let t = TensorProto { int32_data: vec![0x21, 0x43], ..TensorProto::default() };
        let ConstSource::Bytes(bytes) = typed(&t, DType::U4, 4).unwrap() else { panic!("bytes") };
        assert_eq!(bytes.bytes(), [1, 2, 3, 4]);
        assert!(typed(&t, DType::U4, 1 << 43).is_err());
    }

    fn storage(bytes: &[u8]) -> Storage {
        Storage {
            file: Arc::new(FileBytes::Owned(bytes.to_vec())),
            blobs: std::iter::once(0..bytes.len()).collect(),
            data_files: DataFiles::new(None, false),
            missing: MissingWeights::Error,
        }
    }

    fn tensor(code: i32, dims: &[i64]) -> TensorProto {
        let mut t = TensorProto::new();
        t.data_type = code;
        t.dims = dims.to_vec();
        t
    }

    #[test]
    fn packed_elements_take_a_byte_each() {
        let mut t = tensor(22, &[3]);
        t.raw_data = vec![0; 4];
        assert_eq!(storage(&[0x8f, 0x07]).tensor(&t).unwrap().data, vec![0xff, 0xf8, 7]);
        t.data_type = 25;
        t.dims = vec![5];
        assert_eq!(storage(&[0b1110_0100, 0b01]).tensor(&t).unwrap().data, vec![0, 1, 2, 3, 1]);
        t.data_type = 21;
        t.raw_data.clear();
        t.int32_data = vec![0x21, 0x43, 0x05];
        assert_eq!(storage(&[]).tensor(&t).unwrap().data, vec![1, 2, 3, 4, 5]);
    }

    #[test]
    fn typed_fields_hold_narrow_bits() {
        let mut t = tensor(10, &[2]);
        t.int32_data = vec![0x3c00, 0xc000];
        assert_eq!(storage(&[]).tensor(&t).unwrap().data, vec![0, 0x3c, 0, 0xc0]);
        let mut t = tensor(12, &[1]);
        t.uint64_data = vec![0xffff_ffff];
        assert_eq!(storage(&[]).tensor(&t).unwrap().data, vec![255; 4]);
    }

    #[test]
    fn dims_that_do_not_fit_are_errors() {
        for dims in
            [&[4611686018427387906i64, 4][..], &[-1], &[1 << 40, 1 << 40], &[3], &[1; 65], &[0, i64::MAX]]
        {
            assert!(storage(&[0; 8]).tensor(&tensor(1, dims)).is_err(), "{dims:?}");
        }
        assert!(storage(&[]).tensor(&tensor(1, &[0, 5])).is_ok());
        let mut t = tensor(1, &[2]);
        t.raw_data = vec![0; 4];
        assert!(storage(&[0; 7]).tensor(&t).is_err());
        t.raw_data = vec![9; 4];
        assert!(storage(&[0; 8]).tensor(&t).is_err());
    }
}
