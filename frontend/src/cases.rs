//! Conformance cases of the ONNX standard: `model.onnx` with recorded inputs and outputs.

use crate::diag::{Code, Diagnostic, Kind};
use crate::onnx::external::{DataFiles, FileBytes};
use crate::onnx::tensor::{MissingWeights, Storage};
use crate::onnx::wire;
use ir::dtype::DType;
use ir::tensor::Tensor;
use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, TensorProto, TypeProto, type_proto};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A value of a case: what ONNX can pass in and out of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum CaseValue {
    Tensor(Tensor),
    Sequence(Vec<CaseValue>),
    /// An optional that holds nothing.
    Absent,
}

/// One recorded run.
#[derive(Clone, Debug, Default)]
pub struct DataSet {
    /// By input name.
    pub inputs: Vec<(String, CaseValue)>,
    /// In the order of the graph's outputs; `None` where nothing was recorded.
    pub outputs: Vec<Option<CaseValue>>,
}

/// A case directory.
#[derive(Clone, Debug)]
pub struct Case {
    pub model: PathBuf,
    pub rtol: f64,
    pub atol: f64,
    /// True where an operator draws random numbers: only shapes and types can be compared.
    pub random: bool,
    pub sets: Vec<DataSet>,
}

fn io(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::new(Kind::Io, Code::File, format!("{}: {e}", path.display()))
}

fn format(path: &Path, what: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::invalid(Code::Format, format!("{}: {what}", path.display()))
}

/// Reads the case in directory `dir`.
pub fn load(dir: &Path) -> Result<Case, Diagnostic> {
    let model_path = dir.join("model.onnx");
    let bytes = std::fs::read(&model_path).map_err(|e| io(&model_path, &e))?;
    let skeleton = wire::scan(&bytes).map_err(|e| format(&model_path, e))?;
    let model = ModelProto::parse_from_bytes(&skeleton.bytes).map_err(|e| format(&model_path, e))?;
    let graph = model.graph.get_or_default();

    let number = |v: &serde_json::Value, key: &str, default: f64| {
        v.get(key).and_then(|x| x.as_f64()).unwrap_or(default)
    };
    let tolerance = std::fs::read(dir.join("data.json"))
        .ok()
        .and_then(|b| serde_json::from_slice(&b).ok())
        .unwrap_or(serde_json::Value::Null);

    let is_init = |name: &str| graph.initializer.iter().any(|t| t.name == name);
    let all: Vec<_> = graph.input.iter().collect();
    let fed: Vec<_> = graph.input.iter().filter(|v| !is_init(&v.name)).collect();
    let mut sets = Vec::new();
    for k in 0.. {
        let set_dir = dir.join(format!("test_data_set_{k}"));
        if !set_dir.is_dir() {
            break;
        }
        let mut set = DataSet::default();
        // a set with more files than free inputs feeds the initialisers too
        let infos = if set_dir.join(format!("input_{}.pb", fed.len())).exists() { &all } else { &fed };
        for (i, info) in infos.iter().enumerate() {
            let file = set_dir.join(format!("input_{i}.pb"));
            if file.exists() {
                set.inputs.push((info.name.clone(), value(&file, info.type_.get_or_default())?));
            }
        }
        for (i, info) in graph.output.iter().enumerate() {
            let file = set_dir.join(format!("output_{i}.pb"));
            let read = file.exists().then(|| value(&file, info.type_.get_or_default())).transpose()?;
            set.outputs.push(read);
        }
        sets.push(set);
    }
    let zero_ratio = dir.to_string_lossy().contains("zero_ratio");
    Ok(Case {
        model: model_path,
        rtol: number(&tolerance, "rtol", 1e-3),
        atol: number(&tolerance, "atol", 1e-7),
        random: draws_random(graph, zero_ratio)
            || model.functions.iter().any(|f| f.node.iter().any(|n| node_draws_random(n, zero_ratio))),
        sets,
    })
}

fn draws_random(graph: &GraphProto, zero_ratio: bool) -> bool {
    graph.node.iter().any(|n| node_draws_random(n, zero_ratio))
}

fn node_draws_random(n: &NodeProto, zero_ratio: bool) -> bool {
    const RANDOM: [&str; 6] = [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ];
    RANDOM.contains(&n.op_type.as_str())
        || n.op_type == "Dropout" && n.input.get(2).is_some_and(|s| !s.is_empty()) && !zero_ratio
        || n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).any(|g| draws_random(g, zero_ratio))
}

fn value(path: &Path, ty: &TypeProto) -> Result<CaseValue, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| io(path, &e))?;
    decode(bytes, ty).map_err(|e| format(path, e.message))
}

/// The fields of a small message as (number, payload of a length-delimited field).
fn fields(bytes: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let mut out = Vec::new();
    let mut at = 0;
    let varint = |at: &mut usize| -> Option<u64> {
        let mut v = 0u64;
        for i in 0..10 {
            let b = *bytes.get(*at)?;
            *at += 1;
            v |= u64::from(b & 0x7f).checked_shl(7 * i)?;
            if b & 0x80 == 0 {
                return Some(v);
            }
        }
        None
    };
    while at < bytes.len() {
        let key = varint(&mut at)?;
        match key & 7 {
            0 => {
                varint(&mut at)?;
            }
            2 => {
                let n = usize::try_from(varint(&mut at)?).ok()?;
                let body = bytes.get(at..at.checked_add(n)?)?;
                at += n;
                out.push((key >> 3, body));
            }
            _ => return None,
        }
    }
    Some(out)
}

/// `SequenceProto` (tensors in field 3, sequences in 5) and `OptionalProto` (likewise) of
/// onnx-data.proto, or a `TensorProto`.
fn decode(bytes: Vec<u8>, ty: &TypeProto) -> Result<CaseValue, Diagnostic> {
    let bad = || Diagnostic::invalid(Code::Format, "not a value of the declared type");
    match &ty.value {
        Some(type_proto::Value::SequenceType(s)) => {
            let elem = s.elem_type.get_or_default();
            fields(&bytes)
                .ok_or_else(bad)?
                .into_iter()
                .filter(|(n, _)| matches!(n, 3 | 5 | 7))
                .map(|(_, b)| decode(b.to_vec(), elem))
                .collect::<Result<Vec<_>, _>>()
                .map(CaseValue::Sequence)
        }
        Some(type_proto::Value::OptionalType(o)) => {
            let found = fields(&bytes).ok_or_else(bad)?.into_iter().find(|(n, _)| matches!(n, 3 | 5));
            match found {
                Some((_, b)) => decode(b.to_vec(), o.elem_type.get_or_default()),
                None => Ok(CaseValue::Absent),
            }
        }
        _ => tensor(bytes).map(CaseValue::Tensor),
    }
}

/// Reads one serialised `TensorProto`.
pub fn tensor(bytes: Vec<u8>) -> Result<Tensor, Diagnostic> {
    let fail = |e: &dyn std::fmt::Display| Diagnostic::invalid(Code::Format, e.to_string());
    let skeleton = wire::scan_tensor(&bytes).map_err(|e| fail(&e))?;
    let proto = TensorProto::parse_from_bytes(&skeleton.bytes).map_err(|e| fail(&e))?;
    Storage {
        file: Arc::new(FileBytes::Owned(bytes)),
        blobs: skeleton.blobs,
        data_files: DataFiles::new(None, false),
        missing: MissingWeights::Error,
    }
    .tensor(&proto)
}

/// Element `i` of a numeric tensor as f64 (64-bit integers beyond 2^53 lose digits).
pub fn element(t: &Tensor, i: usize) -> Option<f64> {
    let n = t.dtype.bytes();
    let b = t.data.get(i * n..(i + 1) * n)?;
    Some(match t.dtype {
        DType::F64 => f64::from_le_bytes(b.try_into().ok()?),
        DType::F32 => f32::from_le_bytes(b.try_into().ok()?).into(),
        DType::F16 => half::f16::from_le_bytes(b.try_into().ok()?).into(),
        DType::BF16 => half::bf16::from_le_bytes(b.try_into().ok()?).into(),
        DType::I64 => i64::from_le_bytes(b.try_into().ok()?) as f64,
        DType::U64 => u64::from_le_bytes(b.try_into().ok()?) as f64,
        DType::I32 => i32::from_le_bytes(b.try_into().ok()?).into(),
        DType::U32 => u32::from_le_bytes(b.try_into().ok()?).into(),
        DType::I16 => i16::from_le_bytes(b.try_into().ok()?).into(),
        DType::U16 => u16::from_le_bytes(b.try_into().ok()?).into(),
        DType::I8 | DType::I4 | DType::I2 => (b[0] as i8).into(),
        DType::U8 | DType::U4 | DType::U2 | DType::Bool => b[0].into(),
        // exponent bits, mantissa bits, bias; NaN patterns
        DType::F8E4M3FN => small_float(b[0], 4, 3, 7, b[0] & 0x7f == 0x7f, false),
        DType::F8E4M3FNUZ => small_float(b[0], 4, 3, 8, b[0] == 0x80, false),
        DType::F8E5M2 => small_float(b[0], 5, 2, 15, b[0] & 0x7f > 0x7c, b[0] & 0x7f == 0x7c),
        DType::F8E5M2FNUZ => small_float(b[0], 5, 2, 16, b[0] == 0x80, false),
        DType::F4E2M1 => small_float((b[0] & 8) << 4 | b[0] & 7, 2, 1, 1, false, false),
        DType::F8E8M0 => {
            if b[0] == 255 {
                f64::NAN
            } else {
                2f64.powi(i32::from(b[0]) - 127)
            }
        }
        DType::String => return None,
    })
}

fn small_float(b: u8, exp_bits: u32, man_bits: u32, bias: i32, nan: bool, inf: bool) -> f64 {
    let sign = if b & 0x80 != 0 { -1.0 } else { 1.0 };
    if nan {
        return f64::NAN;
    }
    if inf {
        return sign * f64::INFINITY;
    }
    let man = f64::from(b & ((1 << man_bits) - 1));
    let exp = i32::from((b >> man_bits) & ((1 << exp_bits) - 1));
    let scale = 2f64.powi(-(man_bits as i32));
    sign * if exp == 0 {
        man * scale * 2f64.powi(1 - bias)
    } else {
        (1.0 + man * scale) * 2f64.powi(exp - bias)
    }
}

/// Compares as the standard's runner does; the message names the first difference.
pub fn compare(got: &CaseValue, want: &CaseValue, case: &Case) -> Result<(), String> {
    match (got, want) {
        (CaseValue::Tensor(g), CaseValue::Tensor(w)) => {
            compare_tensors(g, w, case.rtol, case.atol, !case.random)
        }
        (CaseValue::Sequence(g), CaseValue::Sequence(w)) => {
            if g.len() != w.len() {
                return Err(format!("{} elements, expected {}", g.len(), w.len()));
            }
            g.iter()
                .zip(w)
                .enumerate()
                .try_for_each(|(i, (g, w))| compare(g, w, case).map_err(|e| format!("[{i}]: {e}")))
        }
        (CaseValue::Absent, CaseValue::Absent) => Ok(()),
        _ => Err("a value of another kind".into()),
    }
}

/// `|got - want| <= atol + rtol * |want|`; NaN equals NaN, infinities by sign. Only shapes and types
/// where not `values`.
pub fn compare_tensors(
    got: &Tensor,
    want: &Tensor,
    rtol: f64,
    atol: f64,
    values: bool,
) -> Result<(), String> {
    if got.shape != want.shape {
        return Err(format!("shape {:?}, expected {:?}", got.shape, want.shape));
    }
    if got.dtype != want.dtype {
        return Err(format!("type {}, expected {}", got.dtype, want.dtype));
    }
    if !values {
        return Ok(());
    }
    if want.dtype == DType::String {
        if got.strings.len() != want.strings.len() {
            return Err(format!("{} strings, expected {}", got.strings.len(), want.strings.len()));
        }
        return match got.strings.iter().zip(&want.strings).position(|(a, b)| a != b) {
            Some(i) => Err(format!("string {i} is {:?}, expected {:?}", got.strings[i], want.strings[i])),
            None => Ok(()),
        };
    }
    let rtol = if want.dtype == DType::BF16 { rtol.max(2f64.powi(-6)) } else { rtol };
    let (mut bad, mut first) = (0usize, None);
    for i in 0..want.elems() {
        let (Some(g), Some(w)) = (element(got, i), element(want, i)) else {
            return Err(format!("element {i} is missing"));
        };
        let same = if want.dtype == DType::Bool {
            g == w
        } else {
            g == w
                || g.is_nan() && w.is_nan()
                || g.is_finite() && w.is_finite() && (g - w).abs() <= atol + rtol * w.abs()
        };
        if !same {
            bad += 1;
            first.get_or_insert((i, g, w));
        }
    }
    match first {
        Some((i, g, w)) => Err(format!(
            "{bad} of {} elements differ, first at flat index {i}: {g}, expected {w}",
            want.elems()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_that_of_the_standard() {
        let t = |v: &[f32]| Tensor::from_f32(vec![v.len()], v);
        let inf = f32::INFINITY;
        assert!(
            compare_tensors(&t(&[1.0, f32::NAN, inf]), &t(&[1.0005, f32::NAN, inf]), 1e-3, 1e-7, true)
                .is_ok()
        );
        assert!(compare_tensors(&t(&[1.0]), &t(&[1.002]), 1e-3, 1e-7, true).is_err());
        assert!(compare_tensors(&t(&[inf]), &t(&[-inf]), 1e-3, 1e-7, true).is_err());
        assert!(compare_tensors(&t(&[0.0]), &t(&[9.0]), 1e-3, 1e-7, false).is_ok());
        assert!(compare_tensors(&t(&[0.0]), &t(&[0.0, 0.0]), 1e-3, 1e-7, false).is_err());
    }

    #[test]
    fn small_floats_decode() {
        let one = |dtype, byte| element(&Tensor::new(dtype, vec![1], vec![byte]), 0).unwrap();
        assert_eq!(one(DType::F8E4M3FN, 0x38), 1.0);
        assert_eq!(one(DType::F8E4M3FN, 0x7e), 448.0);
        assert!(one(DType::F8E4M3FN, 0xff).is_nan());
        assert_eq!(one(DType::F8E4M3FNUZ, 0x40), 1.0);
        assert_eq!(one(DType::F8E5M2, 0xfc), f64::NEG_INFINITY);
        assert_eq!(one(DType::F8E5M2FNUZ, 0x40), 1.0);
        assert_eq!(one(DType::F4E2M1, 0x0f), -6.0);
        assert_eq!(one(DType::F4E2M1, 1), 0.5);
        assert_eq!(one(DType::F8E8M0, 127), 1.0);
    }
}
