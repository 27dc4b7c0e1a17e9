//! Graph IR to ONNX: every primitive as operators of the standard, names and origins kept.
//!
//! Reading the result back gives a graph that computes the same. Composites are written as their bodies; `assert`,
//! which the standard has no operator for, is left out. Where ONNX leaves a result open (integers divided by 0,
//! floats out of range of the integer type, shifts by more than the width) the primitive's own meaning is
//! spelled out if [`ExportOptions::portable`] is set, and else left to the reader: our importer gives it the same.
//!
//! Sizes: a symbol is read off the shape of a value that has it, and size expressions are computed by
//! operators on one-element tensors, as exporters of frameworks do it.

mod dims;
mod elementwise;
mod movement;
mod sums;
mod tensor;
mod writer;

use ir::prim::HostFn;
use ir::{ConstData, DType, Graph, Module, Op, Prim, Tensor, TensorType, ValueId};
use onnx_protobuf::{GraphProto, Message, ModelProto, OperatorSetIdProto};
use thiserror::Error;
use writer::{At, Writer};

/// How a graph is written.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Spells out what ONNX leaves open, for runtimes other than ours.
    pub portable: bool,
    /// Constants of at least this many bytes go to a data file beside the model; 0: none do.
    pub external_bytes: usize,
    /// Name of that file.
    pub external_name: String,
}

/// Why a graph cannot be written as ONNX.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ExportError {
    #[error("{prim}{node}: {message}", node = at(node))]
    Op { prim: &'static str, node: String, message: String },
    #[error("{0}")]
    Model(String),
}

fn at(node: &str) -> String {
    if node.is_empty() { String::new() } else { format!(" (node \"{node}\")") }
}

pub(crate) type Result<T, E = ExportError> = std::result::Result<T, E>;

/// A model, and the contents of its data file (empty where it has none).
#[derive(Clone, Debug)]
pub struct Exported {
    pub model: ModelProto,
    pub data: Vec<u8>,
}

impl Exported {
    /// The bytes of the `.onnx` file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.model.write_to_bytes().map_err(|e| ExportError::Model(format!("the model: {e}")))
    }
}

/// Writes a module as ONNX. `materialise` gives the elements of constants that are formulas.
///
/// # Errors
/// The op, with its node, that ONNX cannot say; a size that no value shows.
pub fn export(
    module: &Module,
    options: &ExportOptions,
    materialise: &dyn Fn(&ConstData) -> std::result::Result<Tensor, String>,
) -> Result<Exported> {
    let mut w = Writer::new(module, options, materialise);
    let main = main_graph(&mut w, module)?;
    let (opset, data) = (w.opset(), w.take_data());
    let mut model = ModelProto::new();
    model.ir_version = if opset <= 22 { 10 } else { 11 };
    model.producer_name = "kernelsmith".into();
    model.producer_version = env!("CARGO_PKG_VERSION").into();
    let mut set = OperatorSetIdProto::new();
    set.version = opset;
    model.opset_import.push(set);
    model.graph = Some(main).into();
    Ok(Exported { model, data })
}

fn main_graph(w: &mut Writer, module: &Module) -> Result<GraphProto> {
    let g = &module.graph;
    // outputs have their names by right; the values behind them get them if nothing else has
    w.reserve(&module.output_names);
    let mut proto = GraphProto::new();
    proto.name = if g.name.is_empty() { "main".into() } else { g.name.clone() };
    let mut scope = At::new(g);
    for &v in &g.inputs {
        let name = w.fresh(g[v].name.as_deref().unwrap_or("x"));
        proto.input.push(w.value_info(&name, &g[v].ty));
        w.define(&mut scope, v, name);
    }
    w.open();
    for (&v, name) in g.outputs.iter().zip(&module.output_names) {
        if g.def_op(v).is_some() {
            scope.wanted.entry(v).or_insert_with(|| name.clone());
        }
    }
    body(w, &mut scope)?;
    for (&v, name) in g.outputs.iter().zip(&module.output_names) {
        let from = scope.name(v)?;
        if from != *name {
            w.node_named("Identity", &[&from], std::slice::from_ref(name));
        }
        proto.output.push(w.value_info(name, &g[v].ty));
    }
    proto.node = w.close();
    proto.initializer = w.take_initializers();
    Ok(proto)
}

/// The ops of a graph, in order.
fn body(w: &mut Writer, at: &mut At) -> Result<()> {
    let graph = at.graph;
    for (_, op) in graph.ops() {
        let mark = w.mark();
        let mut names = w.op(at, op)?;
        for (&v, name) in op.results.iter().zip(&mut names) {
            let given = at.wanted.get(&v).cloned();
            if let Some(to) = given.or_else(|| graph[v].name.as_deref().map(|n| w.fresh(n))) {
                w.rename_since(mark, name, to);
            }
        }
        for (&v, name) in op.results.iter().zip(names) {
            w.define(at, v, name);
        }
    }
    Ok(())
}

/// One op on its way out: its operands' names and types.
pub(crate) struct Site<'a> {
    pub op: &'a Op,
    pub names: Vec<String>,
    pub types: Vec<&'a TensorType>,
    pub results: Vec<&'a TensorType>,
}

impl<'a> Site<'a> {
    pub fn x(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
    pub fn dtype(&self) -> DType {
        self.types.first().map_or(DType::F32, |t| t.dtype)
    }
    pub fn result(&self) -> &'a TensorType {
        self.results[0]
    }
}

impl Writer<'_> {
    /// Writes one op; the names of its results.
    fn op(&mut self, at: &At, op: &Op) -> Result<Vec<String>> {
        let graph = at.graph;
        let names = op.operands.iter().map(|&v| at.name(v)).collect::<Result<Vec<_>>>()?;
        let site = Site {
            op,
            names,
            types: op.operands.iter().map(|&v| &graph[v].ty).collect(),
            results: op.results.iter().map(|&v| &graph[v].ty).collect(),
        };
        self.set_origin(op.origin);
        let one = match &op.prim {
            Prim::Const(id) => self.constant(*id)?,
            Prim::Iota { dtype, shape, axis } => self.iota(*dtype, shape, *axis)?,
            Prim::DimValue(d) => self.size_scalar(d)?,
            Prim::BindDim(sym) => {
                let one = self.ints(&[1]);
                let flat = self.node("Reshape", &[site.x(), &one]);
                self.bind(*sym, flat);
                return Ok(Vec::new());
            }
            Prim::Assert { .. } => return Ok(Vec::new()),
            Prim::RandomBits { shape } => self.random_bits(&site, shape)?,
            Prim::Unary(f) => self.unary(*f, site.x(), site.dtype()),
            Prim::Binary(f) => self.binary(*f, &site),
            Prim::Cmp(f) => self.compare(*f, &site.names[0], &site.names[1]),
            Prim::Select => self.node("Where", &[&site.names[0], &site.names[1], &site.names[2]]),
            Prim::Convert { to, mode } => self.convert(site.x(), site.dtype(), *to, *mode),
            Prim::Bitcast { to } => self.bitcast(site.x(), site.dtype(), *to),
            Prim::Reshape { shape } => self.reshape(site.x(), shape)?,
            Prim::Transpose { perm } => self.transpose(site.x(), perm),
            Prim::Broadcast { shape, dims } => self.broadcast(&site, shape, dims)?,
            Prim::Slice { start, size, step } => self.slice(&site, start, size, step)?,
            Prim::Pad { lo, hi, interior, mode } => self.pad_op(&site, lo, hi, interior, *mode)?,
            Prim::Concat { axis } => self.concat(&site.names, *axis),
            Prim::UpdateSlice { start } => self.update_slice(&site, start)?,
            Prim::Gather { axis } => self.gather(&site.names, *axis),
            Prim::Scatter { combine } => self.scatter(&site, *combine),
            Prim::Reduce { monoid, axes } => self.reduce(site.x(), *monoid, axes),
            Prim::ArgReduce { max, axis, last } => self.arg_reduce(site.x(), *max, *axis, *last),
            Prim::WindowReduce { monoid, size, window } => {
                self.window_reduce(&site, *monoid, size, window)?
            }
            Prim::Cumulative { monoid, axis, exclusive, reverse } => {
                self.cumulative(&site, *monoid, *axis, *exclusive, *reverse)?
            }
            Prim::Contract { batch, reduce, acc } => self.contract(&site, batch, reduce, *acc)?,
            Prim::Convolve { window, groups, acc } => self.convolve(&site, window, *groups, *acc)?,
            Prim::Sort { axis, descending } => return self.sort(&site, *axis, *descending),
            Prim::TopK { axis, k, largest } => return self.top_k(site.x(), *axis, k, *largest),
            Prim::Compact { .. } => self.compact(site.x()),
            Prim::If { .. } => return self.branch(&site),
            Prim::Loop { carried, .. } => return self.looped(&site, *carried),
            Prim::Call { .. } => return self.inline(&site),
            Prim::Host { func: HostFn::NonMaxSuppression { center_point_box }, .. } => {
                self.non_max_suppression(&site.names, *center_point_box)
            }
            #[allow(unreachable_patterns)] // a host function that comes later
            other => return Err(self.refuse(other.name(), "has no operator of the standard")),
        };
        Ok(vec![one])
    }

    /// The body of a composite in place of the call.
    fn inline(&mut self, site: &Site) -> Result<Vec<String>> {
        let Some(region) = site.op.regions.first() else {
            return Err(self.refuse("call", "has no body"));
        };
        let mut inner = At::new(region);
        for (&v, name) in region.inputs.iter().zip(&site.names) {
            inner.names.insert(v, name.clone());
            self.learn(name, &region[v].ty);
        }
        body(self, &mut inner)?;
        region.outputs.iter().map(|&v| inner.name(v)).collect()
    }

    fn branch(&mut self, site: &Site) -> Result<Vec<String>> {
        let mut graphs = Vec::new();
        for region in &site.op.regions {
            let mut inner = At::new(region);
            for (&v, name) in region.inputs.iter().zip(&site.names[1..]) {
                inner.names.insert(v, name.clone());
            }
            graphs.push(self.region(inner, Vec::new(), &[])?);
        }
        let [then, otherwise] = graphs.try_into().map_err(|_| self.refuse("if", "needs two regions"))?;
        Ok(self.node_with_graphs(
            "If",
            &[&site.names[0]],
            site.results.len(),
            vec![("then_branch", then), ("else_branch", otherwise)],
        ))
    }

    fn looped(&mut self, site: &Site, carried: usize) -> Result<Vec<String>> {
        let Some(region) = site.op.regions.first() else {
            return Err(self.refuse("loop", "has no body"));
        };
        let mut inner = At::new(region);
        // the iteration, the condition (which the primitive's body does not see), the carried values
        let counter = self.fresh("i");
        let cond = self.fresh("go");
        let mut inputs = vec![
            self.value_info(&counter, &TensorType::scalar(DType::I64)),
            self.value_info(&cond, &TensorType::scalar(DType::Bool)),
        ];
        let mut own = vec![(region.inputs[0], counter)];
        for &v in &region.inputs[1..1 + carried] {
            let name = self.fresh(region[v].name.as_deref().unwrap_or("state"));
            inputs.push(self.value_info(&name, &region[v].ty));
            own.push((v, name));
        }
        for (&v, name) in region.inputs[1 + carried..].iter().zip(&site.names[2 + carried..]) {
            inner.names.insert(v, name.clone());
        }
        let graph = self.region(inner, inputs, &own)?;
        let operands: Vec<&str> = site.names[..2 + carried].iter().map(String::as_str).collect();
        Ok(self.node_with_graphs("Loop", &operands, site.results.len(), vec![("body", graph)]))
    }

    /// A region as a subgraph. `own` are its inputs; the others are names of the outer graphs.
    fn region(
        &mut self,
        mut inner: At,
        inputs: Vec<onnx_protobuf::ValueInfoProto>,
        own: &[(ValueId, String)],
    ) -> Result<GraphProto> {
        let region: &Graph = inner.graph;
        let origin = self.origin();
        let sizes = self.enter();
        self.open();
        for (v, name) in own {
            self.define(&mut inner, *v, name.clone());
        }
        let captured: Vec<(ValueId, String)> = inner.names.iter().map(|(v, n)| (*v, n.clone())).collect();
        for (v, name) in &captured {
            self.learn(name, &region[*v].ty);
        }
        body(self, &mut inner)?;
        let mut proto = GraphProto::new();
        proto.name = if region.name.is_empty() { "body".into() } else { region.name.clone() };
        proto.input = inputs;
        for &v in &region.outputs {
            // a name of its own: the value may be an outer one, or an output twice
            let from = inner.name(v)?;
            let name = self.node("Identity", &[&from]);
            proto.output.push(self.value_info(&name, &region[v].ty));
        }
        proto.node = self.close();
        self.leave(sizes);
        self.set_origin(origin);
        Ok(proto)
    }
}
