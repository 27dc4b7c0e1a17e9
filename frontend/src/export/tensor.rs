//! Element types and constant data.

use ir::{DType, Tensor};
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{StringStringEntryProto, TensorProto};

/// `TensorProto.DataType`.
pub fn code_of(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::U16 => 4,
        DType::I16 => 5,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::String => 8,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::F64 => 11,
        DType::U32 => 12,
        DType::U64 => 13,
        DType::BF16 => 16,
        DType::F8E4M3FN => 17,
        DType::F8E4M3FNUZ => 18,
        DType::F8E5M2 => 19,
        DType::F8E5M2FNUZ => 20,
        DType::U4 => 21,
        DType::I4 => 22,
        DType::F4E2M1 => 23,
        DType::F8E8M0 => 24,
        DType::U2 => 25,
        DType::I2 => 26,
    }
}

/// The first operator set that has the type everywhere.
pub fn opset_of(dtype: DType) -> i64 {
    match dtype {
        DType::F4E2M1 => 23,
        DType::F8E8M0 => 24,
        DType::U2 | DType::I2 => 25,
        _ => 21,
    }
}

/// A tensor with its bytes, narrow elements packed as the standard has it (low bits first).
pub fn proto(name: &str, t: &Tensor) -> TensorProto {
    let mut p = TensorProto::new();
    p.name = name.into();
    p.data_type = code_of(t.dtype);
    p.dims = t.shape.iter().map(|&d| d as i64).collect();
    if t.dtype == DType::String {
        p.string_data = t.strings.iter().map(|s| s.as_bytes().to_vec()).collect();
        return p;
    }
    let bits = t.dtype.bits();
    p.raw_data = match t.dtype {
        DType::I4 | DType::U4 | DType::F4E2M1 | DType::I2 | DType::U2 => {
            let per = (8 / bits) as usize;
            let mask = (1u8 << bits) - 1;
            let pack = |c: &[u8]| c.iter().rev().fold(0u8, |b, x| b << bits | (x & mask));
            t.data.chunks(per).map(pack).collect()
        }
        _ => t.data.clone(),
    };
    p
}

/// Moves the bytes of a tensor to the end of the data file, aligned to 64 bytes.
pub fn move_out(p: &mut TensorProto, file: &mut Vec<u8>, name: &str) {
    file.resize(file.len().next_multiple_of(64), 0);
    let entries = [
        ("location", name.to_string()),
        ("offset", file.len().to_string()),
        ("length", p.raw_data.len().to_string()),
    ];
    file.append(&mut p.raw_data);
    p.data_location = DataLocation::EXTERNAL.into();
    for (key, value) in entries {
        let mut e = StringStringEntryProto::new();
        e.key = key.into();
        e.value = value;
        p.external_data.push(e);
    }
}

/// One number of a type that has arithmetic (or bool).
pub fn scalar(dtype: DType, x: f64) -> Tensor {
    let data = match dtype {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        _ => (x as i128).to_le_bytes()[..dtype.bytes()].to_vec(),
    };
    Tensor::new(dtype, Vec::new(), data)
}
