//! Structure of models: names, dims, functions, initialisers, sequences of opsets.

mod common;

use common::*;
use interp::Interp;
use ir::dim::SymKind;
use ir::{DType, Dim, Tensor};
use kernelsmith_frontend::onnx::load_bytes;
use kernelsmith_frontend::{Code, ImportOptions, Imported, PortKind, Structure};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{
    AttributeProto, FunctionProto, Message, ModelProto, OperatorSetIdProto, SparseTensorProto, TypeProto,
    type_proto,
};

fn import_with(m: &ModelProto, opts: &ImportOptions) -> Imported {
    load_bytes(m.write_to_bytes().unwrap(), None, opts).unwrap_or_else(|e| panic!("{e:#?}"))
}

fn good(m: &ModelProto) -> Imported {
    import_with(m, &ImportOptions::default())
}

fn run(m: &Imported, inputs: &[Tensor]) -> Vec<Tensor> {
    ir::verify::graph::verify(&m.module).unwrap();
    Interp::new(&m.module).run(inputs).unwrap()
}

fn f32s(shape: &[usize], v: &[f32]) -> Tensor {
    Tensor::from_f32(shape.to_vec(), v)
}

fn i64s(v: &[i64]) -> Tensor {
    Tensor::from_i64(vec![v.len()], v)
}

#[test]
fn a_dim_param_is_one_symbol_that_options_fix() {
    let x = info("x", 1, &[None, Some(3)]);
    let y = info("y", 1, &[None, Some(3)]);
    let m = model(&[x, y], vec![node("Add", &["x", "y"], &["z"])], vec![], "z");
    let imported = good(&m);
    let g = &imported.module.graph;
    assert_eq!(g[g.inputs[0]].ty.shape[0], g[g.inputs[1]].ty.shape[0]);
    let info = &imported.module.symbols.infos[0];
    assert_eq!((info.name.as_str(), info.kind, info.lo), ("N0", SymKind::Entry, 1));
    let mut opts = ImportOptions::default();
    opts.dims.insert("N0".into(), 5);
    let fixed = import_with(&m, &opts);
    assert!(fixed.module.symbols.infos.is_empty());
    let g = &fixed.module.graph;
    assert_eq!(g[g.outputs[0]].ty.shape, [Dim::from(5), Dim::from(3)]);
    let mut opts = ImportOptions::default();
    opts.dim_ranges.insert("N0".into(), (2, 64));
    let info = import_with(&m, &opts).module.symbols.infos[0].clone();
    assert_eq!((info.lo, info.hi), (2, 64));
}

#[test]
fn functions_are_inlined_with_their_attributes() {
    let mut f = FunctionProto::new();
    f.name = "Leak".into();
    f.domain = "local".into();
    f.input = vec!["a".into()];
    f.output = vec!["b".into()];
    let mut default = AttributeProto::new();
    default.name = "slope".into();
    default.type_ = AttributeType::FLOAT.into();
    default.f = 0.5;
    f.attribute_proto.push(default.clone());
    let mut leaky = node("LeakyRelu", &["a"], &["b"]);
    let mut reference = AttributeProto::new();
    reference.name = "alpha".into();
    reference.ref_attr_name = "slope".into();
    reference.type_ = AttributeType::FLOAT.into();
    leaky.attribute.push(reference);
    f.node.push(leaky);
    let call = |given: bool, from: &str, to: &str| {
        let mut n = node("Leak", &[from], &[to]);
        n.domain = "local".into();
        n.name = format!("call_{to}");
        if given {
            let mut a = default.clone();
            a.f = 0.25;
            n.attribute.push(a);
        }
        n
    };
    let mut m =
        model(&[info("x", 1, &[Some(2)])], vec![call(false, "x", "h"), call(true, "h", "y")], vec![], "y");
    let mut opset = OperatorSetIdProto::new();
    opset.domain = "local".into();
    opset.version = 1;
    m.opset_import.push(opset);
    m.functions.push(f);
    let imported = good(&m);
    assert_eq!(run(&imported, &[f32s(&[2], &[-8.0, 3.0])]), [f32s(&[2], &[-1.0, 3.0])]);
    assert!(
        imported.module.origins.iter().any(|o| o.node == "call_y/the_LeakyRelu"),
        "{:?}",
        imported.module.origins
    );
}

#[test]
fn an_initialiser_that_is_an_input_is_a_constant_unless_asked_otherwise() {
    let w = ints("w", &[10, 20]);
    let inputs = [info("x", 7, &[Some(2)]), info("w", 7, &[Some(2)])];
    let m = model(&inputs, vec![node("Add", &["x", "w"], &["y"])], vec![w], "y");
    let imported = good(&m);
    assert_eq!(run(&imported, &[i64s(&[1, 2])]), [i64s(&[11, 22])]);
    let opts = ImportOptions { initializers_are_inputs: true, ..ImportOptions::default() };
    let imported = import_with(&m, &opts);
    assert_eq!(run(&imported, &[i64s(&[1, 2]), i64s(&[5, 5])]), [i64s(&[6, 7])]);
}

#[test]
fn sparse_initialisers_become_dense() {
    let mut s = SparseTensorProto::new();
    s.values = Some(ints("w", &[7, 9])).into();
    s.indices = Some(ints("", &[1, 4])).into();
    s.dims = vec![2, 3];
    let mut m =
        model(&[info("x", 7, &[Some(2), Some(3)])], vec![node("Add", &["x", "w"], &["y"])], vec![], "y");
    m.graph.as_mut().unwrap().sparse_initializer.push(s.clone());
    let zeros = Tensor::zeros(DType::I64, vec![2, 3]);
    assert_eq!(run(&good(&m), &[zeros]), [Tensor::from_i64(vec![2, 3], &[0, 7, 0, 0, 9, 0])]);
    s.indices = Some(ints("", &[1, 6])).into();
    m.graph.as_mut().unwrap().sparse_initializer[0] = s;
    assert_eq!(import(&m).err().unwrap()[0].code, Code::Tensor);
}

#[test]
fn shapes_given_at_run_time_follow_the_rules_of_the_standard() {
    // Reshape with 0, -1 and a number, Slice with negative and excessive bounds: all fed
    let inputs = [
        info("x", 1, &[None, Some(6)]),
        info("s", 7, &[Some(3)]),
        info("a", 7, &[Some(1)]),
        info("b", 7, &[Some(1)]),
    ];
    let nodes = vec![node("Reshape", &["x", "s"], &["r"]), node("Slice", &["r", "a", "b"], &["y"])];
    let m = good(&model(&inputs, nodes, vec![], "y"));
    let x = f32s(&[2, 6], &(0..12).map(|i| i as f32).collect::<Vec<_>>());
    let y = |s: &[i64], a: i64, b: i64| run(&m, &[x.clone(), i64s(s), i64s(&[a]), i64s(&[b])]).remove(0);
    assert_eq!(y(&[0, -1, 2], -1, 99).shape, [1, 3, 2]);
    assert_eq!(y(&[0, -1, 2], -99, 1).shape, [1, 3, 2]);
    assert_eq!(y(&[-1, 1, 1], 3, -2).shape, [7, 1, 1]);
    assert_eq!(y(&[4, 3, 1], 5, 9).shape, [0, 3, 1]);
    assert_eq!(y(&[0, -1, 2], 0, 1).data, f32s(&[6], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).data);
    assert!(Interp::new(&m.module).run(&[x, i64s(&[5, -2, 1]), i64s(&[0]), i64s(&[1])]).is_err());
}

#[test]
fn inputs_fixed_by_value_or_shape_give_structure() {
    // axes at run time are structure: an error, and a model once they are fixed
    let inputs = [info("x", 1, &[None, Some(2)]), info("axes", 7, &[Some(1)])];
    let m = model(&inputs, vec![node("ReduceSum", &["x", "axes"], &["y"])], vec![], "y");
    assert_eq!(import(&m).err().unwrap()[0].code, Code::Dynamic);
    let mut opts = ImportOptions::default();
    opts.constants.insert("axes".into(), i64s(&[1]));
    let imported = import_with(&m, &opts);
    let y = run(&imported, &[f32s(&[1, 2], &[3.0, 4.0]), i64s(&[1])]);
    assert_eq!(y, [f32s(&[1, 1], &[7.0])]);
    let mut opts = ImportOptions::default();
    opts.shapes.insert("x".into(), vec![4, 3]);
    let problems = load_bytes(m.write_to_bytes().unwrap(), None, &opts).err().unwrap();
    assert!(problems.iter().any(|p| p.code == Code::Shape), "{problems:#?}");
}

#[test]
fn sequences_are_expanded() {
    let mut x = info("x", 1, &[]);
    let mut sequence = type_proto::Sequence::new();
    sequence.elem_type = x.type_.clone();
    let mut ty = TypeProto::new();
    ty.value = Some(type_proto::Value::SequenceType(sequence));
    x.type_ = Some(ty).into();
    let at = ints("at", &[1]);
    let nodes = vec![node("Squeeze", &["at"], &["k"]), node("SequenceAt", &["x", "k"], &["y"])];
    let m = model(&[x], nodes, vec![at], "y");
    assert_eq!(import(&m).err().unwrap()[0].code, Code::Dynamic);
    let mut opts = ImportOptions::default();
    opts.structures.insert("x".into(), Structure::Sequence(vec![Structure::Tensor { rank: 0 }; 2]));
    let imported = import_with(&m, &opts);
    assert!(matches!(&imported.inputs[0].kind, PortKind::Sequence(items) if items.len() == 2));
    assert_eq!(run(&imported, &[f32s(&[], &[1.0]), f32s(&[], &[2.0])]), [f32s(&[], &[2.0])]);
}

#[test]
fn a_dimension_named_like_a_sum_is_one() {
    let mut mask = info("mask", 1, &[None]);
    if let Some(type_proto::Value::TensorType(t)) = &mut mask.type_.as_mut().unwrap().value {
        t.shape.as_mut().unwrap().dim[0].set_dim_param("N0_plus_N1".into());
    }
    let nodes =
        vec![with_int(node("Concat", &["a", "b"], &["c"]), "axis", 0), node("Add", &["c", "mask"], &["y"])];
    // the second input's dim is called N1
    let b = info("b", 1, &[Some(1), None]);
    let nodes = [vec![node("Reshape", &["b2", "flat"], &["b"])], nodes].concat();
    let b = onnx_protobuf::ValueInfoProto { name: "b2".into(), ..b };
    let m = model(&[mask, info("a", 1, &[None]), b], nodes, vec![ints("flat", &[-1])], "y");
    let imported = good(&m);
    assert_eq!(imported.module.symbols.infos.len(), 2);
    let ones = |n: usize| f32s(&[n], &vec![1.0; n]);
    let y = run(&imported, &[ones(5), ones(2), f32s(&[1, 3], &[1.0; 3])]);
    assert_eq!(y, [f32s(&[5], &[2.0; 5])]);
    assert!(Interp::new(&imported.module).run(&[ones(4), ones(2), f32s(&[1, 3], &[1.0; 3])]).is_err());
    let opts = ImportOptions { sums_of_names: false, ..ImportOptions::default() };
    assert_eq!(import_with(&m, &opts).module.symbols.infos.len(), 3);
}
