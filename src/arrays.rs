//! Tensors in `.npy` and `.npz` files, and random inputs.
//!
//! Types that `.npy` lacks: bf16 as its bits in uint16; 8- and 4-bit floats as their bits in uint8; the
//! 4- and 2-bit integers as int8 and uint8 by value, one element each; strings as numpy's unicode.

use ir::{DType, Tensor};
use npyz::{NpyHeader, Order, TypeStr, WriterBuilder};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ArrayError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("{path}: {message}")]
    Content { path: String, message: String },
}

/// An array as a file holds it: the type it is meant to have is the model's matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// numpy's type string without byte order: `f4`, `i8`, `b1`, `U7`.
    pub kind: String,
    pub shape: Vec<usize>,
    /// Row-major, little-endian.
    pub data: Vec<u8>,
}

/// The numpy type that stands for `dtype`.
fn kind_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "f8",
        DType::F32 => "f4",
        DType::F16 => "f2",
        DType::BF16 | DType::U16 => "u2",
        DType::I64 => "i8",
        DType::I32 => "i4",
        DType::I16 => "i2",
        DType::I8 | DType::I4 | DType::I2 => "i1",
        DType::U64 => "u8",
        DType::U32 => "u4",
        DType::Bool => "b1",
        DType::String => "U",
        _ => "u1",
    }
}

impl Array {
    /// Reads one array; at most `limit` bytes of data.
    fn read(mut r: impl Read, path: &str, limit: u64) -> Result<Array, ArrayError> {
        let io = |source| ArrayError::Io { path: path.into(), source };
        let content = |message: String| ArrayError::Content { path: path.into(), message };
        let header = NpyHeader::from_reader(&mut r).map_err(io)?;
        let npyz::DType::Plain(ty) = header.dtype() else {
            return Err(content("records are not tensors".into()));
        };
        if header.order() == Order::Fortran && header.shape().iter().filter(|&&d| d > 1).count() > 1 {
            return Err(content("Fortran order; save it with numpy.ascontiguousarray".into()));
        }
        let text = ty.to_string();
        if text.starts_with('>') {
            return Err(content("big-endian data".into()));
        }
        let kind = text.trim_start_matches(['<', '|', '=']).to_string();
        let shape: Vec<usize> = header.shape().iter().map(|&d| d as usize).collect();
        let item = ty.num_bytes().unwrap_or(1) as u64;
        let wanted = header.shape().iter().try_fold(item, |n, &d| n.checked_mul(d));
        let wanted =
            wanted.filter(|&n| n <= limit).ok_or_else(|| content(format!("more than {limit} bytes")))?;
        let mut data = Vec::new();
        r.take(wanted).read_to_end(&mut data).map_err(io)?;
        if data.len() as u64 != wanted {
            return Err(content(format!("expected {wanted} bytes of data, found {}", data.len())));
        }
        Ok(Array { kind, shape, data })
    }

    /// The type that the array has where nobody says that it stands for another.
    pub fn natural_dtype(&self) -> Option<DType> {
        Some(match self.kind.as_str() {
            "f8" => DType::F64,
            "f4" => DType::F32,
            "f2" => DType::F16,
            "i8" => DType::I64,
            "i4" => DType::I32,
            "i2" => DType::I16,
            "i1" => DType::I8,
            "u8" => DType::U64,
            "u4" => DType::U32,
            "u2" => DType::U16,
            "u1" => DType::U8,
            "b1" => DType::Bool,
            k if k.starts_with('U') => DType::String,
            _ => return None,
        })
    }

    /// The array as a tensor of `dtype`, where its type stands for that.
    pub fn into_tensor(self, dtype: DType) -> Result<Tensor, String> {
        if dtype == DType::String {
            let width = self.kind.strip_prefix('U').and_then(|w| w.parse::<usize>().ok());
            let width = width.ok_or_else(|| format!("expected strings, found numpy type {}", self.kind))?;
            let mut t = Tensor::zeros(DType::String, self.shape);
            for (s, chunk) in t.strings.iter_mut().zip(self.data.chunks(width.max(1) * 4)) {
                *s = chunk
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .filter_map(|c| char::from_u32(u32::from_le_bytes(*c)))
                    .filter(|&c| c != '\0')
                    .collect();
            }
            return Ok(t);
        }
        let wanted = kind_of(dtype);
        if self.kind != wanted {
            return Err(format!("expected {dtype} (numpy type {wanted}), found numpy type {}", self.kind));
        }
        Ok(Tensor::new(dtype, self.shape, self.data))
    }
}

/// Reads a `.npy` file.
pub fn read_npy(path: &Path) -> Result<Array, ArrayError> {
    let name = path.display().to_string();
    let io = |source| ArrayError::Io { path: name.clone(), source };
    let file = File::open(path).map_err(io)?;
    let limit = file.metadata().map_err(io)?.len();
    Array::read(io::BufReader::new(file), &name, limit)
}

/// Reads every array of a `.npz` file, by name.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>, ArrayError> {
    const LIMIT: u64 = 1 << 36;
    let name = path.display().to_string();
    let content = |message: String| ArrayError::Content { path: name.clone(), message };
    let file = File::open(path).map_err(|source| ArrayError::Io { path: name.clone(), source })?;
    let mut zip = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|e| content(e.to_string()))?;
    let mut arrays = Vec::new();
    for i in 0..zip.len() {
        let entry = zip.by_index(i).map_err(|e| content(e.to_string()))?;
        if let Some(key) = entry.name().strip_suffix(".npy").map(str::to_string) {
            arrays.push((key.clone(), Array::read(entry, &format!("{name}: {key}"), LIMIT)?));
        }
    }
    Ok(arrays)
}

/// Writes a tensor as a `.npy` file.
pub fn write_npy(path: &Path, t: &Tensor) -> Result<(), ArrayError> {
    let name = path.display().to_string();
    let io = |source| ArrayError::Io { path: name.clone(), source };
    let (kind, strings);
    let data = if t.dtype == DType::String {
        let width = t.strings.iter().map(|s| s.chars().count()).max().unwrap_or(0).max(1);
        kind = format!("<U{width}");
        strings = t
            .strings
            .iter()
            .flat_map(|s| {
                s.chars().map(u32::from).chain(std::iter::repeat(0)).take(width).collect::<Vec<_>>()
            })
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>();
        &strings
    } else {
        let order = if t.dtype.bytes() == 1 { '|' } else { '<' };
        kind = format!("{order}{}", kind_of(t.dtype));
        &t.data
    };
    let ty: TypeStr = kind.parse().map_err(|e| ArrayError::Content {
        path: name.clone(),
        message: format!("numpy type {kind}: {e}"),
    })?;
    let shape: Vec<u64> = t.shape.iter().map(|&d| d as u64).collect();
    let file = io::BufWriter::new(File::create(path).map_err(io)?);
    let mut w = npyz::WriteOptions::new_header_only()
        .dtype(npyz::DType::Plain(ty))
        .shape(&shape)
        .writer(file)
        .write_header_only()
        .map_err(io)?;
    w.write_all(data).map_err(io)?;
    w.flush().map_err(io)
}

/// Reproducible random contents: floats normal with standard deviation 1, integers 0 or 1 (valid as masks,
/// tokens and small indices), booleans fair.
pub fn random(dtype: DType, shape: Vec<usize>, seed: u64) -> Tensor {
    let mut t = Tensor::zeros(dtype, shape);
    if dtype == DType::String {
        return t;
    }
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
    let mut next = || {
        // SplitMix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let mut normal = || {
        let (a, b) = (next(), next());
        let u = ((a >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * (b >> 11) as f64 / (1u64 << 53) as f64).cos()
    };
    for chunk in t.data.chunks_mut(dtype.bytes().max(1)) {
        let x = normal();
        match dtype {
            DType::F64 => chunk.copy_from_slice(&x.to_le_bytes()),
            DType::F32 => chunk.copy_from_slice(&(x as f32).to_le_bytes()),
            DType::F16 => chunk.copy_from_slice(&half::f16::from_f64(x).to_le_bytes()),
            DType::BF16 => chunk.copy_from_slice(&half::bf16::from_f64(x).to_le_bytes()),
            // bits of small positive values in every 8- and 4-bit float format
            d if d.is_float() => chunk[0] = if x > 0.0 { 1 } else { 2 },
            _ => chunk[0] = u8::from(x > 0.0),
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_round_trip_of_every_type() {
        let dir = std::env::temp_dir().join(format!("kernelsmith-npy-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for dtype in DType::ALL {
            for shape in [vec![], vec![0, 3], vec![2, 3]] {
                let mut t = random(dtype, shape, 7);
                if let Some(s) = t.strings.first_mut() {
                    *s = "añb".into();
                }
                let path = dir.join("x.npy");
                write_npy(&path, &t).unwrap();
                let back = read_npy(&path).unwrap().into_tensor(dtype).unwrap();
                assert!(back == t, "{dtype} {:?}", t.shape);
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
