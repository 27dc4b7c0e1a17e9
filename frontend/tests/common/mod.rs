//! Building ONNX models in tests.
#![allow(dead_code)] // each test binary uses a part

use kernelsmith_frontend::onnx::load_bytes;
use kernelsmith_frontend::{Diagnostic, ImportOptions, Imported};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

pub fn info(name: &str, code: i32, dims: &[Option<i64>]) -> ValueInfoProto {
    let mut shape = TensorShapeProto::new();
    for (i, d) in dims.iter().enumerate() {
        let mut dim = Dimension::new();
        dim.value = Some(match d {
            Some(n) => dimension::Value::DimValue(*n),
            None => dimension::Value::DimParam(format!("N{i}")),
        });
        shape.dim.push(dim);
    }
    let mut tensor = type_proto::Tensor::new();
    tensor.elem_type = code;
    tensor.shape = Some(shape).into();
    let mut ty = TypeProto::new();
    ty.value = Some(type_proto::Value::TensorType(tensor));
    let mut v = ValueInfoProto::new();
    v.name = name.into();
    v.type_ = Some(ty).into();
    v
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let mut n = NodeProto::new();
    n.op_type = op.into();
    n.name = format!("the_{op}");
    n.input = inputs.iter().map(|s| s.to_string()).collect();
    n.output = outputs.iter().map(|s| s.to_string()).collect();
    n
}

pub fn with_int(mut n: NodeProto, name: &str, i: i64) -> NodeProto {
    let mut a = AttributeProto::new();
    a.name = name.into();
    a.type_ = AttributeType::INT.into();
    a.i = i;
    n.attribute.push(a);
    n
}

pub fn with_ints(mut n: NodeProto, name: &str, ints: &[i64]) -> NodeProto {
    let mut a = AttributeProto::new();
    a.name = name.into();
    a.type_ = AttributeType::INTS.into();
    a.ints = ints.to_vec();
    n.attribute.push(a);
    n
}

pub fn with_graph(mut n: NodeProto, name: &str, g: GraphProto) -> NodeProto {
    let mut a = AttributeProto::new();
    a.name = name.into();
    a.type_ = AttributeType::GRAPH.into();
    a.g = Some(g).into();
    n.attribute.push(a);
    n
}

pub fn ints(name: &str, values: &[i64]) -> TensorProto {
    let mut t = TensorProto::new();
    t.name = name.into();
    t.data_type = 7;
    t.dims = vec![values.len() as i64];
    t.raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    t
}

pub fn model(
    inputs: &[ValueInfoProto],
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    output: &str,
) -> ModelProto {
    let mut g = GraphProto::new();
    g.input = inputs.to_vec();
    g.node = nodes;
    g.initializer = constants;
    g.output.push(info(output, 1, &[]));
    let mut m = ModelProto::new();
    m.ir_version = 10;
    let mut opset = OperatorSetIdProto::new();
    opset.version = 21;
    m.opset_import.push(opset);
    m.graph = Some(g).into();
    m
}

pub fn import(m: &ModelProto) -> Result<Imported, Vec<Diagnostic>> {
    load_bytes(m.write_to_bytes().unwrap(), None, &ImportOptions::default())
}
