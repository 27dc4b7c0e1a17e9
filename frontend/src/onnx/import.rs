//! Walks a model: names, scopes, functions and subgraphs; asks the operator table for each node.

use super::attrs::Attrs;
use super::cx::{NodeCx, OpError, OpResult, Outs, Val};
use super::inputs::{dim_params, output_port};
use super::ops;
use super::tensor::Storage;
use crate::diag::{Code, Diagnostic, NodeRef};
use crate::options::ImportOptions;
use crate::{Imported, Port};
use ir::Dim;
use ir::build::{Builder, V};
use ir::graph::Origin;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto,
    ValueInfoProto,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Newest version of the standard operator set that is implemented.
pub const NEWEST_OPSET: i64 = 28;

/// Names visible in one graph or function body.
#[derive(Default)]
struct Scope<'m> {
    names: HashMap<&'m str, Val>,
    /// Declared types, used to go on checking after an error.
    declared: HashMap<&'m str, &'m TypeProto>,
    /// Nothing outside is visible: the body of a function.
    function: bool,
}

/// What the nodes of a function (or of the main graph) are read with.
#[derive(Clone, Default)]
struct Frame<'m> {
    opsets: HashMap<&'m str, i64>,
    attrs: Attrs<'m>,
}

/// State of one import.
pub struct Importer<'m> {
    pub(super) opts: &'m ImportOptions,
    pub storage: Storage,
    functions: HashMap<(&'m str, &'m str, &'m str), &'m FunctionProto>,
    scopes: Vec<Scope<'m>>,
    frames: Vec<Frame<'m>>,
    path: Vec<String>,
    problems: Vec<Diagnostic>,
    /// Symbols by `dim_param`.
    pub(super) symbols: BTreeMap<String, Dim>,
    /// Every `dim_param` that is a dimension of an input.
    pub(super) input_dims: HashSet<&'m str>,
    nodes: usize,
    region_depth: usize,
}

/// The standard domain has two spellings.
fn domain(d: &str) -> &str {
    if d == "ai.onnx" { "" } else { d }
}

fn opsets(imports: &[OperatorSetIdProto]) -> HashMap<&str, i64> {
    imports.iter().map(|o| (domain(&o.domain), o.version)).collect()
}

/// Imports a parsed model.
pub fn import<'m>(
    model: &'m ModelProto,
    storage: Storage,
    opts: &'m ImportOptions,
) -> Result<Imported, Vec<Diagnostic>> {
    let mut imp = Importer {
        opts,
        storage,
        functions: HashMap::new(),
        scopes: Vec::new(),
        frames: vec![Frame { opsets: opsets(&model.opset_import), attrs: Attrs::default() }],
        path: Vec::new(),
        problems: Vec::new(),
        symbols: BTreeMap::new(),
        input_dims: HashSet::new(),
        nodes: 0,
        region_depth: 0,
    };
    for f in &model.functions {
        if imp.functions.insert((domain(&f.domain), &f.name, &f.overload), f).is_some() {
            imp.report(Diagnostic::invalid(Code::Name, format!("function {:?} is defined twice", f.name)));
        }
    }
    imp.check_opsets(model);
    let Some(graph) = model.graph.as_ref() else {
        return Err(vec![Diagnostic::invalid(Code::Format, "the model has no graph")]);
    };
    let mut b = Builder::new(&graph.name);
    let (inputs, outputs, values) = imp.main_graph(&mut b, graph);
    if !imp.problems.is_empty() {
        return Err(imp.problems);
    }
    match b.finish(&values) {
        Ok(module) => {
            let data_files = imp.storage.data_files.paths();
            Ok(Imported { module, inputs, outputs, data_files })
        }
        Err(e) => Err(vec![Diagnostic::invalid(Code::Shape, e.to_string())]),
    }
}

impl<'m> Importer<'m> {
    pub fn report(&mut self, d: Diagnostic) {
        self.problems.push(d);
    }

    fn check_opsets(&mut self, model: &ModelProto) {
        match self.frames[0].opsets.get("") {
            None if model.opset_import.is_empty() => {
                // files of IR version 1 and 2 say nothing and mean version 1
                self.frames[0].opsets.insert("", 1);
            }
            Some(v) if *v > NEWEST_OPSET => {
                self.report(
                    Diagnostic::unsupported(
                        Code::Opset,
                        format!("operator set {v} is newer than {NEWEST_OPSET}"),
                    )
                    .hint(format!("convert the model to operator set {NEWEST_OPSET} or lower")),
                );
            }
            Some(v) if *v < 1 => {
                self.report(Diagnostic::invalid(Code::Opset, format!("operator set version {v}")));
            }
            _ => {}
        }
    }

    fn main_graph(
        &mut self,
        b: &mut Builder,
        graph: &'m GraphProto,
    ) -> (Vec<Port>, Vec<Port>, Vec<(String, V)>) {
        self.scopes.push(Scope { declared: declared(graph), ..Scope::default() });
        let initialised: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let constants_are_inputs = self.opts.initializers_are_inputs;
        let fed = |v: &&ValueInfoProto| constants_are_inputs || !initialised.contains(v.name.as_str());
        self.input_dims = dim_params(graph.input.iter().filter(fed), self.opts);
        let mut inputs = Vec::new();
        for info in &graph.input {
            let name = info.name.as_str();
            if !fed(&info) {
                continue;
            }
            let structure = self.opts.structures.get(name);
            match self.graph_input(b, name, info.type_.get_or_default(), structure) {
                Ok((val, port)) => {
                    inputs.push(port);
                    self.define(name, val);
                }
                Err(d) => {
                    self.report(d);
                    self.define(name, Val::Poison);
                }
            }
        }
        self.initializers(b, graph);
        self.nodes(b, &graph.node);
        let (mut outputs, mut values) = (Vec::new(), Vec::new());
        for info in &graph.output {
            match self.lookup(&info.name) {
                Some(Val::Poison) => {}
                Some(v) => match output_port(&info.name, &v, &mut values) {
                    Ok(p) => outputs.push(p),
                    Err(d) => self.report(d),
                },
                None => self.report(Diagnostic::invalid(
                    Code::Name,
                    format!("output {:?} is never computed", info.name),
                )),
            }
        }
        self.scopes.pop();
        (inputs, outputs, values)
    }

    // ---- names -----------------------------------------------------------------------------

    fn define(&mut self, name: &'m str, val: Val) {
        if let Some(s) = self.scopes.last_mut()
            && s.names.insert(name, val).is_some()
        {
            self.report(Diagnostic::invalid(Code::Name, format!("value {name:?} is defined twice")));
        }
    }

    /// The value of `name` in the innermost scope that has it.
    pub(super) fn lookup(&self, name: &str) -> Option<Val> {
        for s in self.scopes.iter().rev() {
            if let Some(v) = s.names.get(name) {
                return Some(v.clone());
            }
            if s.function {
                break;
            }
        }
        None
    }

    fn initializers(&mut self, b: &mut Builder, graph: &'m GraphProto) {
        for t in &graph.initializer {
            let known = self.scopes.last().is_some_and(|s| s.names.contains_key(t.name.as_str()));
            if known && self.opts.initializers_are_inputs {
                continue;
            }
            let val =
                match self.storage.constant(t).map_err(OpError::from).and_then(|c| Ok(b.constant_data(c)?)) {
                    Ok(v) => Val::Tensor(v),
                    Err(e) => {
                        let mut d = Diagnostic::new(
                            e.kind,
                            e.code,
                            format!("initializer {:?}: {}", t.name, e.message),
                        );
                        d.hint = e.hint;
                        self.report(d);
                        Val::Poison
                    }
                };
            self.define(&t.name, val);
        }
        for s in &graph.sparse_initializer {
            let name = s.values.name.as_str();
            let val = match super::sparse::densify(&mut self.storage, s)
                .map_err(OpError::from)
                .and_then(|c| Ok(b.constant_data(c)?))
            {
                Ok(v) => Val::Tensor(v),
                Err(e) => {
                    self.report(Diagnostic::new(
                        e.kind,
                        e.code,
                        format!("sparse initializer {name:?}: {}", e.message),
                    ));
                    Val::Poison
                }
            };
            self.define(&s.values.name, val);
        }
    }

    // ---- nodes -----------------------------------------------------------------------------

    fn nodes(&mut self, b: &mut Builder, nodes: &'m [NodeProto]) {
        for (i, n) in nodes.iter().enumerate() {
            self.nodes += 1;
            if self.nodes > self.opts.max_nodes {
                if self.nodes == self.opts.max_nodes + 1 {
                    self.report(Diagnostic::limit(format!("more than {} nodes", self.opts.max_nodes)));
                }
                return;
            }
            let label = if n.name.is_empty() { format!("{}_{i}", n.op_type) } else { n.name.clone() };
            self.path.push(label);
            self.node(b, n, &nodes[i + 1..]);
            self.path.pop();
        }
    }

    /// `later`: the nodes of the same graph that come behind.
    fn node(&mut self, b: &mut Builder, n: &'m NodeProto, later: &[NodeProto]) {
        let dom = domain(&n.domain);
        let frame = self.frames.last().cloned().unwrap_or_default();
        let version = frame.opsets.get(dom).copied();
        let attrs = resolve_attrs(&n.attribute, &frame.attrs);
        let path = self.path.join("/");
        let node = NodeRef {
            path: path.clone(),
            op_type: n.op_type.clone(),
            domain: dom.into(),
            opset: version.unwrap_or(0),
        };
        b.set_origin(Origin { node: path, op_type: n.op_type.clone(), opset: version.unwrap_or(0) });

        let mut poisoned = false;
        let mut inputs = Vec::with_capacity(n.input.len());
        for name in &n.input {
            inputs.push(match name.as_str() {
                "" => None,
                name => Some(self.lookup(name).unwrap_or_else(|| {
                    let mut d = Diagnostic::invalid(
                        Code::Name,
                        format!("input {name:?} is not defined before this node"),
                    );
                    d.node = Some(node.clone());
                    d.source = source_of(n);
                    d.hint = Some(undefined(name, later));
                    if self.opts.extract {
                        d.model = self.extracted(b, n, &attrs);
                    }
                    self.report(d);
                    Val::Poison
                })),
            });
            poisoned |= matches!(inputs.last(), Some(Some(Val::Poison)));
        }
        while matches!(inputs.last(), Some(None)) {
            inputs.pop();
        }
        let mut outputs = n.output.as_slice();
        while let [rest @ .., last] = outputs
            && last.is_empty()
        {
            outputs = rest;
        }

        // only a failure needs them again
        let kept = self.opts.extract.then(|| attrs.clone());
        let key = (dom, n.op_type.as_str(), n.overload.as_str());
        let result = if let Some(f) = self.functions.get(&key).copied() {
            if poisoned { Err(OpError::reported()) } else { self.call_function(b, f, attrs, &inputs) }
        } else {
            match ops::find(dom, &n.op_type, version) {
                Err(e) => Err(e),
                Ok(_) if poisoned => Err(OpError::reported()),
                Ok((op, version)) => {
                    let mut cx = NodeCx {
                        b: &mut *b,
                        imp: &mut *self,
                        attrs,
                        op_type: &n.op_type,
                        domain: dom,
                        opset: version,
                        inputs: inputs.clone(),
                        outputs,
                    };
                    (op.import)(&mut cx)
                }
            }
        };
        let result = result.and_then(|outs| {
            if outs.0.len() < outputs.len() && outputs[outs.0.len()..].iter().any(|o| !o.is_empty()) {
                return Err(OpError::invalid(
                    Code::Input,
                    format!("the node names {} outputs, the operator has {}", outputs.len(), outs.0.len()),
                ));
            }
            Ok(outs)
        });
        match result {
            Ok(outs) => {
                for (name, val) in outputs.iter().zip(outs.0) {
                    if !name.is_empty() {
                        if let Val::Tensor(v) = val {
                            b.name_value(v, name);
                        }
                        self.define(name, val);
                    }
                }
            }
            Err(e) => {
                self.problems.extend(e.nested);
                if !e.reported {
                    let operands = n
                        .input
                        .iter()
                        .zip(&inputs)
                        .map(|(name, v)| (name.clone(), show(b, v.as_ref())))
                        .collect();
                    let model = kept.and_then(|attrs| self.extracted(b, n, &attrs));
                    self.report(Diagnostic {
                        kind: e.kind,
                        code: e.code,
                        message: e.message,
                        node: Some(node),
                        operands,
                        source: source_of(n),
                        hint: e.hint,
                        model,
                    });
                }
                for name in outputs {
                    if !name.is_empty() {
                        let val = self.stand_in(b, name);
                        self.define(name, val);
                    }
                }
            }
        }
    }

    /// What stands for the result of a node in error: a value of the declared type where the model
    /// declares one, so that the nodes behind it are still checked.
    fn stand_in(&mut self, b: &mut Builder, name: &str) -> Val {
        if self.region_depth > 0 {
            return Val::Poison;
        }
        let declared = self.scopes.last().and_then(|s| s.declared.get(name)).copied();
        match declared.map(|t| self.graph_input(b, name, t, None)) {
            Some(Ok((v, _))) => v,
            _ => Val::Poison,
        }
    }

    /// The model of one node at this place.
    fn extracted(&mut self, b: &Builder, n: &NodeProto, attrs: &Attrs) -> Option<Vec<u8>> {
        // enough to work with, and a bound on the time
        if self.problems.len() >= 100 {
            return None;
        }
        let opsets: Vec<(String, i64)> =
            self.frames.last()?.opsets.iter().map(|(d, v)| ((*d).to_owned(), *v)).collect();
        let names: Vec<(String, Val)> = self
            .scopes
            .iter()
            .rev()
            .scan(false, |past, s| {
                let visible = !*past;
                *past |= s.function;
                visible.then_some(s)
            })
            .flat_map(|s| s.names.iter().map(|(n, v)| ((*n).to_owned(), v.clone())))
            .collect();
        let declared: HashMap<String, TypeProto> = self
            .scopes
            .iter()
            .flat_map(|s| s.declared.iter().map(|(n, t)| ((*n).to_owned(), (*t).clone())))
            .collect();
        super::extract::minimal(
            b,
            &mut self.storage,
            n,
            attrs,
            opsets.iter().map(|(d, v)| (d.as_str(), *v)),
            &|name| names.iter().find(|x| x.0 == name).map(|x| x.1.clone()),
            &|name| declared.get(name).cloned(),
        )
    }

    fn enter(&mut self) -> Result<(), OpError> {
        if self.scopes.len() > self.opts.max_depth {
            return Err(OpError::limit(format!(
                "subgraphs and functions are nested more than {} deep",
                self.opts.max_depth
            )));
        }
        Ok(())
    }

    fn call_function(
        &mut self,
        b: &mut Builder,
        f: &'m FunctionProto,
        given: Attrs<'m>,
        inputs: &[Option<Val>],
    ) -> OpResult {
        self.enter()?;
        if inputs.len() > f.input.len() {
            return Err(OpError::invalid(
                Code::Input,
                format!("function {:?} has {} inputs, {} are given", f.name, f.input.len(), inputs.len()),
            ));
        }
        let mut attrs = Attrs::default();
        attrs.0.extend(given.0.iter().filter(|a| {
            f.attribute.iter().any(|n| n == a.0) || f.attribute_proto.iter().any(|p| p.name == a.0)
        }));
        for default in &f.attribute_proto {
            if !attrs.has(&default.name) {
                attrs.0.push((&default.name, default));
            }
        }
        let mut opsets = opsets(&f.opset_import);
        if let Some(outer) = self.frames.last() {
            for (d, v) in &outer.opsets {
                opsets.entry(d).or_insert(*v);
            }
        }
        let mut scope = Scope { function: true, ..Scope::default() };
        for (name, v) in f.input.iter().zip(inputs) {
            if let Some(v) = v {
                scope.names.insert(name, v.clone());
            }
        }
        // an input that is not given is an absent one inside too
        let absent: HashSet<&str> = f.input.iter().skip(inputs.len()).map(String::as_str).collect();
        let absent: HashSet<&str> = f
            .input
            .iter()
            .zip(inputs)
            .filter(|(_, v)| v.is_none())
            .map(|(n, _)| n.as_str())
            .chain(absent)
            .collect();
        for name in absent {
            scope.names.insert(name, Val::Absent(None));
        }
        self.frames.push(Frame { opsets, attrs });
        self.scopes.push(scope);
        let outer = std::mem::take(&mut self.problems);
        self.nodes(b, &f.node);
        let outs = f.output.iter().map(|o| self.lookup(o)).collect::<Vec<_>>();
        self.scopes.pop();
        self.frames.pop();
        let inside = std::mem::replace(&mut self.problems, outer);
        if !inside.is_empty() || outs.iter().flatten().any(|v| matches!(v, Val::Poison)) {
            return Err(OpError::nested(inside));
        }
        outs.into_iter()
            .zip(&f.output)
            .map(|(v, name)| {
                v.ok_or_else(|| {
                    OpError::invalid(Code::Name, format!("function output {name:?} is never computed"))
                })
            })
            .collect::<Result<Vec<_>, _>>()
            .map(Outs)
    }

    /// Imports `graph` into the place the builder is at, with `inputs` for its formal inputs. Outer
    /// values are visible. Returns the values of its outputs.
    pub fn subgraph(
        &mut self,
        b: &mut Builder,
        label: &str,
        graph: &'m GraphProto,
        inputs: Vec<Val>,
    ) -> Result<Vec<Val>, OpError> {
        self.enter()?;
        if graph.input.len() != inputs.len() {
            return Err(OpError::invalid(
                Code::Input,
                format!("the subgraph has {} inputs, {} are expected", graph.input.len(), inputs.len()),
            ));
        }
        let mut scope = Scope::default();
        for (info, v) in graph.input.iter().zip(inputs) {
            scope.names.insert(&info.name, v);
        }
        self.scopes.push(scope);
        self.path.push(label.to_owned());
        self.region_depth += 1;
        // a loop's body may be tried twice: only the last attempt's problems count
        let outer = std::mem::take(&mut self.problems);
        self.initializers(b, graph);
        self.nodes(b, &graph.node);
        let mut outs = Vec::new();
        for o in &graph.output {
            match self.lookup(&o.name) {
                Some(v) => outs.push(v),
                None => self.report(Diagnostic::invalid(
                    Code::Name,
                    format!("{}: subgraph output {:?} is never computed", self.path.join("/"), o.name),
                )),
            }
        }
        self.region_depth -= 1;
        self.path.pop();
        self.scopes.pop();
        let inside = std::mem::replace(&mut self.problems, outer);
        if !inside.is_empty() || outs.iter().any(|v| matches!(v, Val::Poison)) {
            return Err(OpError::nested(inside));
        }
        Ok(outs)
    }
}

/// Declared types of the values of a graph.
fn declared(graph: &GraphProto) -> HashMap<&str, &TypeProto> {
    let infos = graph.value_info.iter().chain(&graph.output);
    infos.filter_map(|v| Some((v.name.as_str(), v.type_.as_ref()?))).collect()
}

fn resolve_attrs<'m>(attrs: &'m [AttributeProto], frame: &Attrs<'m>) -> Attrs<'m> {
    Attrs(
        attrs
            .iter()
            .filter_map(|a| {
                if a.ref_attr_name.is_empty() {
                    return Some((a.name.as_str(), a));
                }
                // a reference to an attribute that the caller did not give leaves this one out
                let (_, value) = frame.0.iter().find(|(n, _)| *n == a.ref_attr_name)?;
                Some((a.name.as_str(), *value))
            })
            .collect(),
    )
}

/// What may have become of a value that is not there.
fn undefined(name: &str, later: &[NodeProto]) -> String {
    match later.iter().find(|n| n.output.iter().any(|o| o == name)) {
        Some(n) => format!(
            "node {:?} ({}) gives it further down: sort the nodes in order of execution",
            n.name, n.op_type
        ),
        None => {
            "nothing in this graph gives it: a node was cut away, or one of both names was changed".into()
        }
    }
}

/// What the exporter noted of a node's origin: the innermost line of the program in a stack trace, or the first line
/// of the documentation.
fn source_of(n: &NodeProto) -> Option<String> {
    let trace = |key: &str| n.metadata_props.iter().find(|p| p.key == key).map(|p| p.value.as_str());
    let text = ["pkg.torch.onnx.stack_trace", "stack_trace", "source"]
        .into_iter()
        .find_map(trace)
        .or_else(|| (!n.doc_string.is_empty()).then_some(n.doc_string.as_str()))?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let place = lines.iter().rposition(|l| l.starts_with("File "));
    let shown = match place {
        Some(at) => match lines.get(at + 1) {
            Some(code) => format!("{}: {code}", lines[at]),
            None => lines[at].to_owned(),
        },
        None => (*lines.first()?).to_owned(),
    };
    Some(shown.chars().take(300).collect())
}

/// The type of a value for a message.
fn show(b: &Builder, v: Option<&Val>) -> String {
    match v {
        None => "absent".into(),
        Some(Val::Tensor(v)) => b.show_type(*v),
        Some(Val::Seq(s)) => format!("sequence of {}", s.items.len()),
        Some(Val::Absent(_)) => "empty optional".into(),
        Some(Val::Poison) => "unknown".into(),
    }
}
