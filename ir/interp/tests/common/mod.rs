//! One primitive on static shapes, through type inference and the interpreter.

#![allow(dead_code)]

use ir::graph::OriginId;
use ir::{DType, Dim, Module, Origin, Prim, Tensor, TensorType};
use kernelsmith_interp::{Interp, InterpError, OpError};

/// Elements of one Rust type as a tensor.
pub trait Element: Copy {
    const DTYPE: DType;
    fn bytes(self) -> Vec<u8>;
}

macro_rules! element {
    ($($ty:ty => $dtype:ident),*) => {
        $(impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
            fn bytes(self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
        })*
    };
}
element!(f64 => F64, f32 => F32, i64 => I64, i32 => I32, i16 => I16, i8 => I8, u64 => U64, u32 => U32, u16 => U16, u8 => U8);

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    fn bytes(self) -> Vec<u8> {
        vec![self.into()]
    }
}

pub fn t<T: Element>(shape: &[usize], v: &[T]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), v.len(), "test data of {shape:?}");
    Tensor::new(T::DTYPE, shape.to_vec(), v.iter().flat_map(|x| x.bytes()).collect())
}

pub fn scalar<T: Element>(x: T) -> Tensor {
    t(&[], &[x])
}

/// Raw codes of an 8-bit type.
pub fn codes(dtype: DType, shape: &[usize], v: &[u8]) -> Tensor {
    Tensor::new(dtype, shape.to_vec(), v.to_vec())
}

pub fn f16s(v: &[f32]) -> Tensor {
    let data = v.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    Tensor::new(DType::F16, vec![v.len()], data)
}

pub fn dims(v: &[i64]) -> Vec<Dim> {
    v.iter().map(|&x| Dim::from(x)).collect()
}

/// A module with this primitive alone, its operands as inputs; result types by inference.
pub fn module(prim: &Prim, operands: &[Tensor]) -> Result<Module, ir::IrError> {
    let mut m = Module::default();
    let origin = m.add_origin(Origin { node: "the_node".into(), op_type: "Test".into(), opset: 0 });
    let types: Vec<TensorType> = operands
        .iter()
        .map(|x| TensorType::new(x.dtype, x.shape.iter().map(|&d| Dim::from(d)).collect()))
        .collect();
    let refs: Vec<&TensorType> = types.iter().collect();
    let results = ir::infer::infer(prim, &refs, &[], &[], &m.symbols)?;
    let inputs = types.into_iter().map(|ty| m.graph.add_input(None, ty)).collect();
    let op = m.graph.push_op(prim.clone(), inputs, Vec::new(), results, origin);
    m.graph.outputs = m.graph[op].results.clone();
    Ok(m)
}

/// As [`module`] without inference: for what it would refuse already.
pub fn unchecked(prim: &Prim, operands: &[Tensor], results: Vec<TensorType>) -> Module {
    let mut m = Module::default();
    let inputs = operands
        .iter()
        .map(|x| {
            let shape = x.shape.iter().map(|&d| Dim::from(d)).collect();
            m.graph.add_input(None, TensorType::new(x.dtype, shape))
        })
        .collect();
    let op = m.graph.push_op(prim.clone(), inputs, Vec::new(), results, OriginId(0));
    m.graph.outputs = m.graph[op].results.clone();
    m
}

pub fn run(prim: Prim, operands: &[Tensor]) -> Result<Vec<Tensor>, InterpError> {
    let m = module(&prim, operands).unwrap_or_else(|e| panic!("{prim:?}: {e}"));
    Interp::new(&m).run(operands)
}

/// The one result.
pub fn eval(prim: Prim, operands: &[Tensor]) -> Tensor {
    let name = format!("{prim:?}");
    let mut results = run(prim, operands).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(results.len(), 1, "{name}");
    results.remove(0)
}

/// Bytes, types and shapes agree.
#[track_caller]
pub fn check(prim: Prim, operands: &[Tensor], want: &Tensor) {
    let name = format!("{prim:?}");
    assert_same(&eval(prim, operands), want, &name);
}

#[track_caller]
pub fn assert_same(got: &Tensor, want: &Tensor, what: &str) {
    let c = kernelsmith_interp::compare(got, want, kernelsmith_interp::Tolerance::EXACT);
    let show = |x: &Tensor| if x.elems() < 64 { numbers(x) } else { Vec::new() };
    assert!(c.passes(), "{what}: {c}\n got {:?}\nwant {:?}", show(got), show(want));
}

/// For messages.
pub fn numbers(x: &Tensor) -> Vec<f64> {
    let chunks = x.data.chunks_exact(x.dtype.bytes().max(1));
    chunks
        .map(|b| match x.dtype {
            DType::F32 => f32::from_le_bytes(b.try_into().unwrap()).into(),
            DType::F64 => f64::from_le_bytes(b.try_into().unwrap()),
            DType::I64 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
            DType::I32 => i32::from_le_bytes(b.try_into().unwrap()).into(),
            _ => b[0].into(),
        })
        .collect()
}

/// The failure of the op.
#[track_caller]
pub fn fails(prim: Prim, operands: &[Tensor]) -> OpError {
    let name = format!("{prim:?}");
    match run(prim, operands) {
        Err(InterpError::Op { node, source, .. }) => {
            assert_eq!(node, "the_node");
            *source
        }
        other => panic!("{name}: expected a failure of the op, found {other:?}"),
    }
}
