//! Models of one node, and small helpers for their data.

use interp::Interp;
use ir::{DType, Tensor};
use kernelsmith_frontend::{Diagnostic, ImportOptions, Imported, onnx};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::Dimension;
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::MessageField;

/// An attribute's value.
pub enum A<'a> {
    I(i64),
    F(f32),
    S(&'a str),
    Is(&'a [i64]),
    Fs(&'a [f32]),
    Ss(&'a [&'a str]),
}

fn attribute(name: &str, value: &A) -> AttributeProto {
    let mut a = AttributeProto::new();
    a.name = name.into();
    let kind = match value {
        A::I(i) => {
            a.i = *i;
            AttributeType::INT
        }
        A::F(f) => {
            a.f = *f;
            AttributeType::FLOAT
        }
        A::S(s) => {
            a.s = s.as_bytes().to_vec();
            AttributeType::STRING
        }
        A::Is(v) => {
            a.ints = v.to_vec();
            AttributeType::INTS
        }
        A::Fs(v) => {
            a.floats = v.to_vec();
            AttributeType::FLOATS
        }
        A::Ss(v) => {
            a.strings = v.iter().map(|s| s.as_bytes().to_vec()).collect();
            AttributeType::STRINGS
        }
    };
    a.type_ = kind.into();
    a
}

fn code(d: DType) -> i32 {
    match d {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::Bool => 9,
        DType::F64 => 11,
        other => panic!("no code for {other} here"),
    }
}

fn port(name: &str, t: Option<&Tensor>) -> ValueInfoProto {
    let mut info = ValueInfoProto::new();
    info.name = name.into();
    let mut ty = type_proto::Tensor::new();
    if let Some(t) = t {
        ty.elem_type = code(t.dtype);
        let mut shape = TensorShapeProto::new();
        for &d in &t.shape {
            let mut dim = Dimension::new();
            dim.set_dim_value(d as i64);
            shape.dim.push(dim);
        }
        ty.shape = MessageField::some(shape);
    }
    let mut proto = TypeProto::new();
    proto.value = Some(type_proto::Value::TensorType(ty));
    info.type_ = MessageField::some(proto);
    info
}

/// An input of the node: fed at run time, a constant of the model, or left out.
pub enum In<'a> {
    Fed(&'a Tensor),
    Const(&'a Tensor),
    None,
}

impl<'a> From<&'a Tensor> for In<'a> {
    fn from(t: &'a Tensor) -> In<'a> {
        In::Fed(t)
    }
}

/// The model of one node.
pub fn import(
    domain: &str,
    op: &str,
    opset: i64,
    attrs: &[(&str, A)],
    inputs: &[In],
    outputs: usize,
) -> Result<Imported, Vec<Diagnostic>> {
    let (mut node, mut graph) = (NodeProto::new(), GraphProto::new());
    node.op_type = op.into();
    node.domain = domain.into();
    node.attribute = attrs.iter().map(|(n, v)| attribute(n, v)).collect();
    for (i, x) in inputs.iter().enumerate() {
        let name = format!("x{i}");
        match x {
            In::Fed(t) => graph.input.push(port(&name, Some(t))),
            In::Const(t) => {
                let mut p = TensorProto::new();
                p.name.clone_from(&name);
                p.dims = t.shape.iter().map(|&d| d as i64).collect();
                p.data_type = code(t.dtype);
                p.raw_data.clone_from(&t.data);
                graph.initializer.push(p);
            }
            In::None => {}
        }
        node.input.push(if matches!(x, In::None) { String::new() } else { name });
    }
    for i in 0..outputs {
        node.output.push(format!("y{i}"));
        graph.output.push(port(&format!("y{i}"), None));
    }
    graph.node.push(node);
    let mut model = ModelProto::new();
    model.ir_version = 9;
    for (d, version) in [("", if domain.is_empty() { opset } else { 17 }), (domain, opset)] {
        if model.opset_import.iter().all(|o| o.domain != d) {
            let mut set = OperatorSetIdProto::new();
            set.domain = d.into();
            set.version = version;
            model.opset_import.push(set);
        }
    }
    model.graph = MessageField::some(graph);
    let bytes = model.write_to_bytes().expect("a model serialises");
    onnx::load_bytes(bytes, None, &ImportOptions::default())
}

/// The outputs of one node.
pub fn run(
    domain: &str,
    op: &str,
    opset: i64,
    attrs: &[(&str, A)],
    inputs: &[In],
    outputs: usize,
) -> Vec<Tensor> {
    let m = import(domain, op, opset, attrs, inputs, outputs).unwrap_or_else(|problems| {
        panic!("{op}: {}", problems.iter().map(|p| p.to_string()).collect::<Vec<_>>().join("\n"))
    });
    let fed: Vec<Tensor> =
        inputs.iter().filter_map(|i| if let In::Fed(t) = i { Some((*t).clone()) } else { None }).collect();
    Interp::new(&m.module).run(&fed).unwrap_or_else(|e| panic!("{op}: {e}"))
}

/// The one output of a node of the standard domain.
pub fn one(op: &str, opset: i64, attrs: &[(&str, A)], inputs: &[&Tensor]) -> Tensor {
    let inputs: Vec<In> = inputs.iter().map(|t| In::Fed(t)).collect();
    run("", op, opset, attrs, &inputs, 1).remove(0)
}

pub fn f32s(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::from_f32(shape.to_vec(), v)
}

pub fn u8s(shape: &[usize], v: &[u8]) -> Tensor {
    Tensor::new(DType::U8, shape.to_vec(), v.to_vec())
}

pub fn i8s(shape: &[usize], v: &[i8]) -> Tensor {
    Tensor::new(DType::I8, shape.to_vec(), v.iter().map(|&x| x as u8).collect())
}

/// Reproducible numbers in -1..1.
pub fn noise(shape: &[usize], seed: u64) -> Tensor {
    f32s(
        shape,
        &bits(shape, seed).iter().map(|b| (*b >> 40) as f32 / (1 << 23) as f32 - 1.0).collect::<Vec<_>>(),
    )
}

/// Reproducible bytes.
pub fn bytes(shape: &[usize], seed: u64) -> Vec<u8> {
    bits(shape, seed).iter().map(|b| (b >> 33) as u8).collect()
}

fn bits(shape: &[usize], seed: u64) -> Vec<u64> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..shape.iter().product())
        .map(|_| {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            s ^ (s >> 29)
        })
        .collect()
}

/// The elements as f64.
pub fn values(t: &Tensor) -> Vec<f64> {
    (0..t.elems()).map(|i| kernelsmith_frontend::cases::element(t, i).expect("a number")).collect()
}

/// Equal shapes, and elements within `tol` of each other (NaN equals NaN).
pub fn close(got: &Tensor, shape: &[usize], want: &[f64], tol: f64) {
    assert_eq!(got.shape, shape);
    for (i, (g, w)) in values(got).iter().zip(want).enumerate() {
        let same = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= tol * (1.0 + w.abs());
        assert!(same, "element {i}: {g}, expected {w}\n{:?}\n{want:?}", values(got));
    }
    assert_eq!(got.elems(), want.len());
}
