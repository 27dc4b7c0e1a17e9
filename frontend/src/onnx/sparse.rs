//! Sparse initialisers, made dense.

use super::tensor::{Storage, shape_of};
use crate::diag::{Code, Diagnostic};
use ir::dtype::DType;
use ir::tensor::{ConstData, ConstSource, checked_elems};
use onnx_protobuf::SparseTensorProto;
use std::sync::Arc;

/// Largest dense form of a sparse tensor, in bytes.
const MAX_DENSE_BYTES: usize = 1 << 30;

/// The dense tensor that `s` describes. Indices are linear (`[nnz]`) or coordinates (`[nnz, rank]`).
pub fn densify(storage: &mut Storage, s: &SparseTensorProto) -> Result<ConstData, Diagnostic> {
    let bad = |m: String| Diagnostic::invalid(Code::Tensor, m);
    let values = storage.constant(s.values.get_or_default())?;
    let indices = storage.constant(s.indices.get_or_default())?;
    let shape = shape_of(&s.dims)?;
    let elems = checked_elems(&shape).unwrap_or(0);
    let size = values.dtype.bytes();
    let total = elems.checked_mul(size).filter(|&n| n <= MAX_DENSE_BYTES);
    let total = total.ok_or_else(|| Diagnostic::limit(format!("a sparse tensor of dims {:?}", s.dims)))?;
    let (ConstSource::Bytes(data), ConstSource::Bytes(at)) = (&values.source, &indices.source) else {
        return Err(Diagnostic::unsupported(Code::Tensor, "a sparse tensor without numbers"));
    };
    if indices.dtype != DType::I64 {
        return Err(bad(format!("indices of type {}", indices.dtype)));
    }
    let count = checked_elems(&values.shape).unwrap_or(0);
    let width = match indices.shape.as_slice() {
        [n] if *n == count => 1,
        [n, r] if *n == count && *r == shape.len() => *r,
        other => {
            return Err(bad(format!(
                "indices of shape {other:?} for {count} values of rank {}",
                shape.len()
            )));
        }
    };
    let coords: Vec<i64> =
        at.bytes().chunks_exact(8).filter_map(|b| b.try_into().ok().map(i64::from_le_bytes)).collect();
    let mut out = vec![0u8; total];
    for i in 0..count {
        let linear = if indices.shape.len() == 1 {
            usize::try_from(coords[i]).ok().filter(|&l| l < elems)
        } else {
            coords[i * width..(i + 1) * width]
                .iter()
                .zip(&shape)
                .try_fold(0usize, |l, (&c, &d)| usize::try_from(c).ok().filter(|&c| c < d).map(|c| l * d + c))
        };
        let linear = linear.ok_or_else(|| bad(format!("index {i} is outside dims {shape:?}")))?;
        if let Some(v) = data.bytes().get(i * size..(i + 1) * size) {
            out[linear * size..(linear + 1) * size].copy_from_slice(v);
        }
    }
    let name = (!s.values.name.is_empty()).then(|| s.values.name.clone());
    Ok(ConstData { dtype: values.dtype, shape, source: ConstSource::Bytes(Arc::new(out)), name })
}
