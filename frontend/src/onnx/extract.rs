//! The smallest model that still shows a problem: one node, its constant inputs, and inputs for the rest.

use super::attrs::Attrs;
use super::cx::Val;
use super::tensor::{Storage, code_of, packed};
use ir::build::Builder;
use ir::{ConstData, ConstSource, DType, Dim};
use onnx_protobuf::type_proto::{Sequence, Tensor as TensorTypeProto, Value as TypeValue};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use protobuf::MessageField;
use std::collections::HashSet;

/// Larger constants become inputs.
const MAX_CONSTANT: usize = 1 << 20;

/// Serialises the model of one node. `value` looks a name up, `declared` the type that the model gives it.
pub(super) fn minimal<'a>(
    b: &Builder,
    storage: &mut Storage,
    node: &NodeProto,
    attrs: &Attrs,
    opsets: impl Iterator<Item = (&'a str, i64)>,
    value: &dyn Fn(&str) -> Option<Val>,
    declared: &dyn Fn(&str) -> Option<TypeProto>,
) -> Option<Vec<u8>> {
    let mut node = node.clone();
    node.attribute = attrs
        .0
        .iter()
        .map(|(name, a)| AttributeProto {
            name: (*name).to_owned(),
            ref_attr_name: String::new(),
            ..(*a).clone()
        })
        .collect();
    let mut names: Vec<String> = node.input.clone();
    for a in &mut node.attribute {
        restore(storage, a)?;
        for g in a.g.iter().chain(&a.graphs) {
            free(g, &mut HashSet::new(), &mut names);
        }
    }
    let mut graph = GraphProto { name: "extracted".into(), ..GraphProto::default() };
    let mut seen = HashSet::new();
    let mut first = None;
    for name in names {
        if name.is_empty() || !seen.insert(name.clone()) {
            continue;
        }
        // a name that stands for nothing is what is wrong with the node
        let Some(known) = value(&name) else { continue };
        match &known {
            Val::Tensor(v) => {
                let ty = b.ty(*v);
                first.get_or_insert(ty.dtype);
                if let Some(t) = b.constant_of(*v).and_then(|c| initializer(&name, c)) {
                    graph.initializer.push(t);
                    continue;
                }
                graph.input.push(info(&name, tensor_type(b, ty.dtype, Some(&ty.shape))));
            }
            Val::Seq(s) => {
                let inner = tensor_type(b, s.dtype.unwrap_or(DType::F32), None);
                let seq = Sequence { elem_type: MessageField::some(inner), ..Sequence::default() };
                let ty = TypeProto { value: Some(TypeValue::SequenceType(seq)), ..TypeProto::default() };
                graph.input.push(info(&name, ty));
            }
            Val::Poison => {
                let ty = declared(&name).unwrap_or_else(|| tensor_type(b, DType::F32, None));
                graph.input.push(info(&name, ty));
            }
            Val::Absent(_) => return None,
        }
    }
    for name in node.output.iter().filter(|n| !n.is_empty()) {
        let ty = declared(name).unwrap_or_else(|| tensor_type(b, first.unwrap_or(DType::F32), None));
        graph.output.push(info(name, ty));
    }
    graph.node.push(node);
    let opset_import = opsets
        .map(|(domain, version)| OperatorSetIdProto {
            domain: domain.to_owned(),
            version,
            ..Default::default()
        })
        .collect();
    let model = ModelProto {
        ir_version: 10,
        producer_name: "kernelsmith check".into(),
        opset_import,
        graph: MessageField::some(graph),
        ..ModelProto::default()
    };
    model.write_to_bytes().ok()
}

fn info(name: &str, ty: TypeProto) -> ValueInfoProto {
    ValueInfoProto { name: name.to_owned(), type_: MessageField::some(ty), ..ValueInfoProto::default() }
}

/// A tensor type; sizes that are not fixed get their names.
fn tensor_type(b: &Builder, dtype: DType, shape: Option<&[Dim]>) -> TypeProto {
    use onnx_protobuf::tensor_shape_proto::{Dimension, dimension::Value};
    let shape = shape.map(|dims| TensorShapeProto {
        dim: dims
            .iter()
            .map(|d| Dimension {
                value: Some(match d.as_const() {
                    Some(n) => Value::DimValue(n),
                    None => Value::DimParam(b.symbols().show(d)),
                }),
                ..Dimension::default()
            })
            .collect(),
        ..TensorShapeProto::default()
    });
    let tensor =
        TensorTypeProto { elem_type: code_of(dtype), shape: shape.into(), ..TensorTypeProto::default() };
    TypeProto { value: Some(TypeValue::TensorType(tensor)), ..TypeProto::default() }
}

fn initializer(name: &str, c: &ConstData) -> Option<TensorProto> {
    let mut t = TensorProto {
        name: name.to_owned(),
        data_type: code_of(c.dtype),
        dims: c.shape.iter().map(|&d| d as i64).collect(),
        ..TensorProto::default()
    };
    match &c.source {
        ConstSource::Bytes(bytes) if bytes.bytes().len() <= MAX_CONSTANT => {
            t.raw_data = packed(c.dtype, bytes.bytes());
        }
        ConstSource::Strings(s) => t.string_data = s.iter().map(|s| s.clone().into_bytes()).collect(),
        ConstSource::Bytes(_) | ConstSource::Splat(_) | ConstSource::Random { .. } => return None,
    }
    Some(t)
}

/// Gives tensors their bytes back, which the skeleton of a model holds as places in its file.
fn restore(storage: &mut Storage, a: &mut AttributeProto) -> Option<()> {
    for t in a.t.as_mut().into_iter().chain(&mut a.tensors) {
        if !t.raw_data.is_empty() || !t.external_data.is_empty() {
            let c = storage.constant(t).ok()?;
            *t = initializer(&t.name.clone(), &c)?;
        }
    }
    for g in a.g.as_mut().into_iter().chain(&mut a.graphs) {
        for t in &mut g.initializer {
            let c = storage.constant(t).ok()?;
            *t = initializer(&t.name.clone(), &c)?;
        }
        for n in &mut g.node {
            n.attribute.iter_mut().try_for_each(|a| restore(storage, a))?;
        }
    }
    Some(())
}

/// Names that a subgraph takes from outside.
fn free(g: &GraphProto, outer: &mut HashSet<String>, out: &mut Vec<String>) {
    let mut inside = outer.clone();
    inside.extend(g.input.iter().map(|i| i.name.clone()));
    inside.extend(g.initializer.iter().map(|i| i.name.clone()));
    for n in &g.node {
        out.extend(n.input.iter().filter(|i| !inside.contains(*i)).cloned());
        for a in &n.attribute {
            for sub in a.g.iter().chain(&a.graphs) {
                free(sub, &mut inside, out);
            }
        }
        inside.extend(n.output.iter().cloned());
    }
    out.extend(g.output.iter().map(|o| o.name.clone()).filter(|n| !inside.contains(n)));
}
