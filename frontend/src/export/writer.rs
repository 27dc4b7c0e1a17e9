//! Nodes, names and constants of the model that is being written.

use super::{ExportError, ExportOptions, Result};
use ir::{ConstData, ConstId, DType, Dim, Graph, Module, OriginId, Sym, Tensor, TensorType, ValueId};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    type_proto,
};
use std::collections::{HashMap, HashSet};

/// A graph that is being written, and the names of its values.
pub(crate) struct At<'g> {
    pub graph: &'g Graph,
    pub names: HashMap<ValueId, String>,
    /// Names that values must get.
    pub wanted: HashMap<ValueId, String>,
}

impl<'g> At<'g> {
    pub fn new(graph: &'g Graph) -> At<'g> {
        At { graph, names: HashMap::new(), wanted: HashMap::new() }
    }
    pub fn name(&self, v: ValueId) -> Result<String> {
        let name = self.names.get(&v).cloned();
        name.ok_or_else(|| ExportError::Model(format!("value %{} is used before its definition", v.0)))
    }
}

/// Where the value of a symbol can be read.
#[derive(Clone)]
pub(crate) enum Source {
    /// A tensor i64[1].
    Tensor(String),
    /// `(extent of the axis - offset) / factor` of a value.
    Shape { value: String, axis: usize, factor: i64, offset: i64 },
}

/// Sizes that are computed, by graph: a subgraph sees those around it and takes its own along when it ends.
#[derive(Clone, Default)]
pub(crate) struct Sizes {
    pub sources: HashMap<Sym, Source>,
    pub computed: HashMap<Dim, String>,
}

pub(crate) enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Str(&'static str),
}

pub(crate) struct Writer<'a> {
    pub module: &'a Module,
    pub options: &'a ExportOptions,
    materialise: &'a dyn Fn(&ConstData) -> std::result::Result<Tensor, String>,
    /// Nodes by open graph, the innermost last.
    nodes: Vec<Vec<NodeProto>>,
    pub(crate) initializers: Vec<TensorProto>,
    pub(crate) data: Vec<u8>,
    constants: HashMap<ConstId, String>,
    small: HashMap<(DType, Vec<i64>, Vec<u8>), String>,
    taken: HashSet<String>,
    next: HashMap<String, usize>,
    origin: OriginId,
    pub sizes: Sizes,
    opset: i64,
}

impl<'a> Writer<'a> {
    pub fn new(
        module: &'a Module,
        options: &'a ExportOptions,
        materialise: &'a dyn Fn(&ConstData) -> std::result::Result<Tensor, String>,
    ) -> Writer<'a> {
        Writer {
            module,
            options,
            materialise,
            nodes: Vec::new(),
            initializers: Vec::new(),
            data: Vec::new(),
            constants: HashMap::new(),
            small: HashMap::new(),
            taken: HashSet::new(),
            next: HashMap::new(),
            origin: OriginId(0),
            sizes: Sizes::default(),
            // everything but the youngest element types
            opset: 21,
        }
    }

    // ---- graphs ------------------------------------------------------------------------------

    pub fn open(&mut self) {
        self.nodes.push(Vec::new());
    }
    pub fn close(&mut self) -> Vec<NodeProto> {
        self.nodes.pop().unwrap_or_default()
    }
    /// A subgraph begins: sizes that it computes stay in it.
    pub fn enter(&self) -> Sizes {
        self.sizes.clone()
    }
    pub fn leave(&mut self, outer: Sizes) {
        self.sizes = outer;
    }
    pub fn take_initializers(&mut self) -> Vec<TensorProto> {
        std::mem::take(&mut self.initializers)
    }
    pub fn take_data(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.data)
    }
    pub fn opset(&self) -> i64 {
        self.opset
    }
    pub fn needs_opset(&mut self, version: i64) {
        self.opset = self.opset.max(version);
    }
    pub fn origin(&self) -> OriginId {
        self.origin
    }
    pub fn set_origin(&mut self, origin: OriginId) {
        self.origin = origin;
    }
    pub fn refuse(&self, prim: &'static str, message: impl Into<String>) -> ExportError {
        let node = self.module.origins.get(self.origin.index()).map_or(String::new(), |o| o.node.clone());
        ExportError::Op { prim, node, message: message.into() }
    }

    // ---- names -------------------------------------------------------------------------------

    pub fn reserve(&mut self, names: &[String]) {
        self.taken.extend(names.iter().cloned());
    }
    /// `base`, or `base_2` and so on where it is taken.
    pub fn fresh(&mut self, base: &str) -> String {
        let base = if base.is_empty() { "v" } else { base };
        if self.taken.insert(base.to_string()) {
            return base.to_string();
        }
        let n = self.next.entry(base.to_string()).or_insert(1);
        loop {
            *n += 1;
            let name = format!("{base}_{n}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
    /// The place of the next node.
    pub fn mark(&self) -> usize {
        self.nodes.last().map_or(0, Vec::len)
    }
    /// Renames what a node since `mark` gives, unless it is a size that others may use already.
    pub fn rename_since(&mut self, mark: usize, name: &mut String, to: String) {
        if self.sizes.computed.values().any(|n| n == name) {
            return;
        }
        let nodes = self.nodes.last_mut().map_or(&mut [][..], |n| &mut n[mark..]);
        if !nodes.iter().any(|n| n.output.contains(name)) {
            return;
        }
        for n in nodes {
            n.input.iter_mut().chain(&mut n.output).filter(|x| *x == name).for_each(|x| x.clone_from(&to));
        }
        // a size may be read off the value already
        for source in self.sizes.sources.values_mut() {
            if let Source::Tensor(value) | Source::Shape { value, .. } = source
                && value == name
            {
                value.clone_from(&to);
            }
        }
        *name = to;
    }
    pub fn define(&mut self, at: &mut At, v: ValueId, name: String) {
        self.learn(&name, &at.graph[v].ty);
        at.names.insert(v, name);
    }
    /// Symbols that the shape of a value shows.
    pub fn learn(&mut self, name: &str, ty: &TensorType) {
        for (axis, d) in ty.shape.iter().enumerate() {
            let (mut offset, mut term) = (0, None);
            let linear = d.terms().iter().all(|(atoms, c)| match atoms.as_slice() {
                [] => {
                    offset = *c;
                    true
                }
                [ir::Atom::Sym(s)] if term.is_none() => {
                    term = Some((*s, *c));
                    true
                }
                _ => false,
            });
            if let (true, Some((s, factor))) = (linear, term) {
                let value = name.to_string();
                self.sizes.sources.entry(s).or_insert(Source::Shape { value, axis, factor, offset });
            }
        }
    }
    pub fn bind(&mut self, s: Sym, tensor: String) {
        self.sizes.sources.insert(s, Source::Tensor(tensor));
    }

    // ---- nodes -------------------------------------------------------------------------------

    pub fn node(&mut self, op: &str, inputs: &[&str]) -> String {
        self.node_attrs(op, inputs, &[])
    }
    pub fn node_attrs(&mut self, op: &str, inputs: &[&str], attrs: &[(&str, Attr)]) -> String {
        self.nodes_of(op, inputs, 1, attrs).swap_remove(0)
    }
    /// A node with `results` outputs under fresh names.
    pub fn nodes_of(
        &mut self,
        op: &str,
        inputs: &[&str],
        results: usize,
        attrs: &[(&str, Attr)],
    ) -> Vec<String> {
        let base = op.to_lowercase();
        let outputs: Vec<String> = (0..results).map(|_| self.fresh(&base)).collect();
        let node = self.push(op, inputs, &outputs);
        for (name, value) in attrs {
            let mut a = AttributeProto::new();
            a.name = (*name).into();
            match value {
                Attr::Int(i) => {
                    a.type_ = AttributeType::INT.into();
                    a.i = *i;
                }
                Attr::Ints(v) => {
                    a.type_ = AttributeType::INTS.into();
                    a.ints.clone_from(v);
                }
                Attr::Str(s) => {
                    a.type_ = AttributeType::STRING.into();
                    a.s = (*s).into();
                }
            }
            node.attribute.push(a);
        }
        outputs
    }
    pub fn node_named(&mut self, op: &str, inputs: &[&str], outputs: &[String]) {
        self.push(op, inputs, outputs);
    }
    pub fn node_text(&mut self, op: &str, inputs: &[&str], attr: &str, text: &str) -> String {
        let out = self.fresh(&op.to_lowercase());
        let node = self.push(op, inputs, std::slice::from_ref(&out));
        let mut a = AttributeProto::new();
        a.name = attr.into();
        a.type_ = AttributeType::STRING.into();
        a.s = text.as_bytes().to_vec();
        node.attribute.push(a);
        out
    }
    pub fn node_with_graphs(
        &mut self,
        op: &str,
        inputs: &[&str],
        results: usize,
        graphs: Vec<(&str, GraphProto)>,
    ) -> Vec<String> {
        let base = op.to_lowercase();
        let outputs: Vec<String> = (0..results).map(|_| self.fresh(&base)).collect();
        let node = self.push(op, inputs, &outputs);
        for (name, g) in graphs {
            let mut a = AttributeProto::new();
            a.name = name.into();
            a.type_ = AttributeType::GRAPH.into();
            a.g = Some(g).into();
            node.attribute.push(a);
        }
        outputs
    }
    fn push(&mut self, op: &str, inputs: &[&str], outputs: &[String]) -> &mut NodeProto {
        let origin = self.module.origins.get(self.origin.index());
        let base = origin.map(|o| o.node.as_str()).filter(|n| !n.is_empty()).unwrap_or(op).to_string();
        let mut n = NodeProto::new();
        n.name = self.fresh(&format!("{base}/{}", op.to_lowercase()));
        n.op_type = op.into();
        n.input = inputs.iter().map(|s| s.to_string()).collect();
        n.output = outputs.to_vec();
        if self.nodes.is_empty() {
            self.nodes.push(Vec::new());
        }
        let last = self.nodes.len() - 1;
        self.nodes[last].push(n);
        let at = self.nodes[last].len() - 1;
        &mut self.nodes[last][at]
    }

    // ---- constants ---------------------------------------------------------------------------

    /// A constant of the module as an initialiser, written once.
    pub fn constant(&mut self, id: ConstId) -> Result<String> {
        if let Some(name) = self.constants.get(&id) {
            return Ok(name.clone());
        }
        let Some(data) = self.module.consts.get(id.0 as usize) else {
            return Err(ExportError::Model(format!("no constant {}", id.0)));
        };
        let t = (self.materialise)(data).map_err(ExportError::Model)?;
        let name = self.fresh(data.name.as_deref().unwrap_or("const"));
        self.initializer(&name, &t);
        self.constants.insert(id, name.clone());
        Ok(name)
    }
    fn initializer(&mut self, name: &str, t: &Tensor) {
        self.needs_opset(super::tensor::opset_of(t.dtype));
        let mut p = super::tensor::proto(name, t);
        let at = self.options.external_bytes;
        if at > 0 && p.raw_data.len() >= at {
            super::tensor::move_out(&mut p, &mut self.data, &self.options.external_name);
        }
        self.initializers.push(p);
    }
    /// A small constant, shared by all that want the same.
    pub fn small(&mut self, t: &Tensor) -> String {
        let shape: Vec<i64> = t.shape.iter().map(|&d| d as i64).collect();
        let key = (t.dtype, shape, t.data.clone());
        if let Some(name) = self.small.get(&key) {
            return name.clone();
        }
        let name = self.fresh("k");
        self.initializer(&name, t);
        self.small.insert(key, name.clone());
        name
    }
    pub fn ints(&mut self, v: &[i64]) -> String {
        self.small(&Tensor::from_i64(vec![v.len()], v))
    }
    /// A scalar of any numeric type.
    pub fn scalar(&mut self, dtype: DType, x: f64) -> String {
        let t = super::tensor::scalar(dtype, x);
        self.small(&t)
    }

    // ---- types -------------------------------------------------------------------------------

    pub fn value_info(&mut self, name: &str, ty: &TensorType) -> ValueInfoProto {
        self.needs_opset(super::tensor::opset_of(ty.dtype));
        let mut shape = TensorShapeProto::new();
        for d in &ty.shape {
            let mut dim = Dimension::new();
            dim.value = Some(match d.as_const() {
                Some(n) => dimension::Value::DimValue(n),
                None => dimension::Value::DimParam(self.module.symbols.show(d)),
            });
            shape.dim.push(dim);
        }
        let mut tensor = type_proto::Tensor::new();
        tensor.elem_type = super::tensor::code_of(ty.dtype);
        tensor.shape = Some(shape).into();
        let mut proto = TypeProto::new();
        proto.value = Some(type_proto::Value::TensorType(tensor));
        let mut v = ValueInfoProto::new();
        v.name = name.into();
        v.type_ = Some(proto).into();
        v
    }
}
