//! Graph IR: tensors in SSA form with symbolic sizes and origins; knows no target.

use crate::prim::{Prim, Region};
use crate::{ConstData, ConstId, DType, Dim, Sym, Symbols};
use std::collections::HashMap;
use std::ops::{Index, IndexMut};

macro_rules! id {
    ($(#[$m:meta])* $name:ident) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub u32);
        impl $name {
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id!(
    /// A value of one [`Graph`].
    ValueId
);
id!(
    /// An operation of one [`Graph`].
    OpId
);
id!(
    /// A row of [`Module::origins`].
    OriginId
);

/// dtype and symbolic shape of a tensor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<Dim>,
}

impl TensorType {
    pub fn new(dtype: DType, shape: Vec<Dim>) -> TensorType {
        TensorType { dtype, shape }
    }
    pub fn scalar(dtype: DType) -> TensorType {
        TensorType { dtype, shape: Vec::new() }
    }
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

/// Type of a value. Sequences and optionals are moved by the host schedule only.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Type {
    Tensor(TensorType),
    Seq(Box<Type>),
    Optional(Box<Type>),
}

/// Where an operation came from: one node of the model it was imported from.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Origin {
    /// Node name, with the path through subgraphs and functions (`loop_1/body/add`).
    pub node: String,
    pub op_type: String,
    pub opset: i64,
}

/// Who defines a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Def {
    Input(usize),
    Op(OpId, usize),
}

#[derive(Clone, Debug)]
pub struct Value {
    pub ty: TensorType,
    pub def: Def,
    pub name: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Op {
    pub prim: Prim,
    pub operands: Vec<ValueId>,
    pub results: Vec<ValueId>,
    pub regions: Vec<Region>,
    pub origin: OriginId,
}

/// A straight-line list of operations in execution order over dense arenas. Regions of control
/// operations are graphs of their own; outer values reach them as captures (explicit operands).
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    /// Execution order; an op that is not in it is dead.
    pub order: Vec<OpId>,
    ops: Vec<Op>,
    values: Vec<Value>,
}

impl Graph {
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Default::default() }
    }
    pub fn add_input(&mut self, name: Option<String>, ty: TensorType) -> ValueId {
        let v = self.new_value(ty, Def::Input(self.inputs.len()));
        self[v].name = name;
        self.inputs.push(v);
        v
    }
    fn new_value(&mut self, ty: TensorType, def: Def) -> ValueId {
        let id = ValueId(self.values.len() as u32);
        self.values.push(Value { ty, def, name: None });
        id
    }
    /// Appends an op with the given result types. No check: see [`crate::infer`] and [`crate::build`].
    pub fn push_op(
        &mut self,
        prim: Prim,
        operands: Vec<ValueId>,
        regions: Vec<Region>,
        result_types: Vec<TensorType>,
        origin: OriginId,
    ) -> OpId {
        let id = self.add_op_detached(prim, operands, regions, result_types, origin);
        self.order.push(id);
        id
    }
    /// As [`Graph::push_op`] without a place in `order`: the caller inserts it.
    pub fn add_op_detached(
        &mut self,
        prim: Prim,
        operands: Vec<ValueId>,
        regions: Vec<Region>,
        result_types: Vec<TensorType>,
        origin: OriginId,
    ) -> OpId {
        let id = OpId(self.ops.len() as u32);
        let results =
            result_types.into_iter().enumerate().map(|(i, ty)| self.new_value(ty, Def::Op(id, i))).collect();
        self.ops.push(Op { prim, operands, results, regions, origin });
        id
    }
    pub fn value_count(&self) -> usize {
        self.values.len()
    }
    pub fn op_count(&self) -> usize {
        self.ops.len()
    }
    /// Live operations in execution order.
    pub fn ops(&self) -> impl DoubleEndedIterator<Item = (OpId, &Op)> {
        self.order.iter().map(|&id| (id, &self.ops[id.index()]))
    }
    /// The op that defines `v`, or `None` for a graph input.
    pub fn def_op(&self, v: ValueId) -> Option<OpId> {
        match self[v].def {
            Def::Op(op, _) => Some(op),
            Def::Input(_) => None,
        }
    }
    /// For every value the live ops that use it (an op occurs once per operand position); graph
    /// outputs are not counted.
    pub fn uses(&self) -> Vec<Vec<OpId>> {
        let mut uses = vec![Vec::new(); self.values.len()];
        for (id, op) in self.ops() {
            for v in &op.operands {
                uses[v.index()].push(id);
            }
        }
        uses
    }
    /// Replaces every use of `from` (operands and graph outputs) by `to`.
    pub fn replace_uses(&mut self, from: ValueId, to: ValueId) {
        for &id in &self.order {
            for v in &mut self.ops[id.index()].operands {
                if *v == from {
                    *v = to;
                }
            }
        }
        for v in &mut self.outputs {
            if *v == from {
                *v = to;
            }
        }
    }
}

impl Index<ValueId> for Graph {
    type Output = Value;
    fn index(&self, v: ValueId) -> &Value {
        &self.values[v.index()]
    }
}
impl IndexMut<ValueId> for Graph {
    fn index_mut(&mut self, v: ValueId) -> &mut Value {
        &mut self.values[v.index()]
    }
}
impl Index<OpId> for Graph {
    type Output = Op;
    fn index(&self, op: OpId) -> &Op {
        &self.ops[op.index()]
    }
}
impl IndexMut<OpId> for Graph {
    fn index_mut(&mut self, op: OpId) -> &mut Op {
        &mut self.ops[op.index()]
    }
}

/// An input and an output of the main graph that are one buffer, kept from run to run: the output is the
/// input with rows written behind those that were there, in place.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    pub input: usize,
    pub output: usize,
    /// The dim along which rows lie, and its extent: room for so many.
    pub axis: usize,
    pub capacity: i64,
    /// Rows there before a run (a symbol that the run binds), and after it.
    pub len: Sym,
    pub next: Dim,
}

/// A whole model: the main graph and what all graphs share.
#[derive(Clone, Debug, Default)]
pub struct Module {
    pub graph: Graph,
    pub symbols: Symbols,
    pub consts: Vec<ConstData>,
    pub origins: Vec<Origin>,
    /// Names of the graph outputs, in order (input names are those of the input values).
    pub output_names: Vec<String>,
    pub states: Vec<State>,
    /// Rows of `origins`, to find an equal one.
    origin_rows: HashMap<Origin, u32>,
}

impl Module {
    pub fn add_const(&mut self, data: ConstData) -> ConstId {
        self.consts.push(data);
        ConstId(self.consts.len() as u32 - 1)
    }
    pub fn add_origin(&mut self, origin: Origin) -> OriginId {
        if let Some(&i) = self.origin_rows.get(&origin)
            && self.origins.get(i as usize) == Some(&origin)
        {
            return OriginId(i);
        }
        let i = self.origins.len() as u32;
        self.origin_rows.insert(origin.clone(), i);
        self.origins.push(origin);
        OriginId(i)
    }
}
