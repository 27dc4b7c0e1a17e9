//! Reverse-mode differentiation: adds to a graph the ops that compute the derivatives of one of its values.
//!
//! For every op between the values asked for and the result, in reverse order, a rule turns the adjoints of its
//! results (the derivatives of the result with respect to them) into those of its operands. The rules speak of
//! primitives only, and primitives are all they emit: what they add is simplified, fused and compiled like
//! everything else. Bodies of composites and branches are differentiated where they stand; a loop runs once
//! more forwards, recording the carried values of each step, and then backwards over the record.
//!
//! Conventions: among equal extremes of a maximum or minimum the derivative is shared equally; rounding, comparisons and
//! integers have derivative 0; conversions between float types pass adjoints through.
//!
//! ```
//! # use kernelsmith_grad as grad;
//! use ir::build::Builder;
//! use ir::{DType, Dim};
//! let mut b = Builder::new("main");
//! let x = b.input("x", DType::F32, vec![Dim::from(3)]);
//! let y = b.mul(x, x)?;
//! let y = b.reduce_sum(y, &[0], false)?;
//! // 2 x
//! let dx = grad::gradient(&mut b, y, &[x])?[0];
//! assert_eq!(b.shape(dx), b.shape(x));
//! # Ok::<(), grad::GradError>(())
//! ```

mod contract;
mod control;
mod elementwise;
mod indexed;
mod movement;
mod reduce;

use ir::build::{Builder, V};
use ir::prim::Prim;
use ir::{IrError, Module, OpId, OriginId, ValueId};
use std::collections::{HashMap, HashSet};
use thiserror::Error;

/// Why there is no derivative.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum GradError {
    /// An op without a rule stands between the values and the result.
    #[error("{prim} has no derivative here: {reason}{}", at(.node))]
    NotDifferentiable { prim: &'static str, reason: String, node: String },
    /// The result is no tensor of floats, or what is differentiated by is none.
    #[error("{what} should be a tensor of floats in the graph at hand")]
    Value { what: String },
    #[error(transparent)]
    Ir(#[from] IrError),
}

fn at(node: &str) -> String {
    if node.is_empty() { String::new() } else { format!(" (node {node:?})") }
}

pub type Result<T, E = GradError> = std::result::Result<T, E>;

/// The derivatives of the sum of `y` by each of `xs`, all values of the innermost open graph: tensors of the
/// types of `xs`, zeros where `y` does not depend on one.
///
/// # Errors
/// [`GradError`]; ops may have been added, which nothing uses.
pub fn gradient(b: &mut Builder, y: V, xs: &[V]) -> Result<Vec<V>> {
    if !b.dtype(y).is_float() || !b.is_local(y) {
        return Err(GradError::Value { what: "what is differentiated".into() });
    }
    if xs.iter().any(|&x| !b.dtype(x).is_float() || !b.is_local(x)) {
        return Err(GradError::Value { what: "what is differentiated by".into() });
    }
    let shape = b.shape(y).to_vec();
    let dtype = b.dtype(y);
    let seed = b.full(dtype, &shape, 1.0)?;
    let grads = pullback(b, 0, &[(y, seed)], xs)?;
    grads.into_iter().zip(xs).map(|(g, &x)| g.map_or_else(|| zeros_like(b, x), Ok)).collect()
}

/// A module whose outputs are those of `module` followed by the derivatives of the sum of output `output` by the
/// inputs `wrt`, named `d_<input>`.
///
/// # Errors
/// [`GradError`].
pub fn differentiate(module: Module, output: usize, wrt: &[usize]) -> Result<Module> {
    let (ids, names) = (module.graph.outputs.clone(), module.output_names.clone());
    let inputs = module.graph.inputs.clone();
    let input_names: Vec<String> =
        inputs.iter().map(|&v| module.graph[v].name.clone().unwrap_or_default()).collect();
    let mut b = Builder::reopen(module);
    let missing = |what: &str, i: usize| GradError::Value { what: format!("{what} {i}") };
    let value = |b: &Builder, id: ValueId| b.value_of(id).ok_or_else(|| missing("value", id.index()));
    let y = value(&b, *ids.get(output).ok_or_else(|| missing("output", output))?)?;
    let mut xs = Vec::with_capacity(wrt.len());
    for &i in wrt {
        let x = value(&b, *inputs.get(i).ok_or_else(|| missing("input", i))?)?;
        if !b.dtype(x).is_float() {
            return Err(missing("input", i));
        }
        xs.push(x);
    }
    let grads = gradient(&mut b, y, &xs)?;
    let mut outputs = Vec::new();
    for (i, &id) in ids.iter().enumerate() {
        outputs.push((names.get(i).cloned().unwrap_or_default(), value(&b, id)?));
    }
    outputs.extend(wrt.iter().zip(grads).map(|(&i, g)| (format!("d_{}", input_names[i]), g)));
    Ok(b.finish(&outputs)?)
}

/// An op of the graph, taken out so that the graph can grow.
pub(crate) struct Node {
    pub prim: Prim,
    pub operands: Vec<V>,
    pub results: Vec<V>,
    pub regions: Vec<ir::Graph>,
    /// Which operands a derivative is asked for.
    pub wanted: Vec<bool>,
    pub node: String,
}

impl Node {
    pub fn fail<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(GradError::NotDifferentiable {
            prim: self.prim.name(),
            reason: reason.into(),
            node: self.node.clone(),
        })
    }
}

/// Adjoints of values of one graph.
struct Adjoints(HashMap<ValueId, V>);

impl Adjoints {
    fn add(&mut self, b: &mut Builder, to: V, g: V) -> Result<()> {
        let id = b.resolve(to)?;
        let sum = match self.0.get(&id) {
            Some(&old) => b.add(old, g)?,
            None => g,
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

/// Adjoints of `xs` from those of some results; only ops from place `from` of the innermost graph on are looked at.
/// `None` where nothing depends on a value.
pub(crate) fn pullback(b: &mut Builder, from: usize, ys: &[(V, V)], xs: &[V]) -> Result<Vec<Option<V>>> {
    let mut ids = Vec::with_capacity(xs.len());
    for &x in xs {
        if !b.in_scope(x) {
            return Err(GradError::Value { what: "what is differentiated by".into() });
        }
        ids.push(b.resolve(x)?);
    }
    // what depends on the values
    let mut active: HashSet<ValueId> = ids.iter().copied().collect();
    let graph = b.graph();
    let mut list: Vec<OpId> = Vec::new();
    for &id in graph.order.get(from..).unwrap_or(&[]) {
        let op = &graph[id];
        // a value that the caller names cuts what is behind it off
        if op.operands.iter().any(|v| active.contains(v)) && !op.results.iter().any(|v| ids.contains(v)) {
            let floats = op.results.iter().filter(|&&v| graph[v].ty.dtype.is_float());
            active.extend(floats);
            list.push(id);
        }
    }
    let values = b.values();
    let value = |id: ValueId| values.get(id.index()).copied().flatten();
    let mut adjoints = Adjoints(HashMap::new());
    for &(y, g) in ys {
        adjoints.add(b, y, g)?;
    }
    for id in list.into_iter().rev() {
        let op = &b.graph()[id];
        let results = op.results.clone();
        if !results.iter().any(|r| adjoints.0.contains_key(r)) {
            continue;
        }
        let wanted: Vec<bool> =
            op.operands.iter().map(|v| active.contains(v) && b.graph()[*v].ty.dtype.is_float()).collect();
        let all = |ids: &[ValueId]| ids.iter().map(|&v| value(v)).collect::<Option<Vec<V>>>();
        let (Some(operands), Some(outs)) = (all(&op.operands), all(&results)) else {
            return Err(GradError::Value { what: "an operand".into() });
        };
        let origin = op.origin;
        let node = Node {
            prim: op.prim.clone(),
            operands,
            results: outs,
            regions: op.regions.clone(),
            wanted,
            node: node_name(b, origin),
        };
        let gs: Vec<Option<V>> = results.iter().map(|r| adjoints.0.get(r).copied()).collect();
        let before = b.origin();
        b.set_origin_id(origin);
        let out = rule(b, &node, &gs);
        b.set_origin_id(before);
        for ((g, &v), wanted) in out?.into_iter().zip(&node.operands).zip(&node.wanted) {
            if let (Some(g), true) = (g, *wanted) {
                adjoints.add(b, v, g)?;
            }
        }
    }
    Ok(ids.iter().map(|id| adjoints.0.get(id).copied()).collect())
}

fn node_name(b: &Builder, origin: OriginId) -> String {
    b.module().origins.get(origin.index()).map(|o| o.node.clone()).unwrap_or_default()
}

/// Adjoints of the operands of an op from those of its results.
fn rule(b: &mut Builder, n: &Node, gs: &[Option<V>]) -> Result<Vec<Option<V>>> {
    match &n.prim {
        Prim::If { .. } | Prim::Loop { .. } | Prim::Call { .. } => return control::rule(b, n, gs),
        Prim::Sort { .. } => return indexed::sort(b, n, gs),
        Prim::TopK { .. } => return indexed::top_k(b, n, gs),
        _ => {}
    }
    let Some(&Some(g)) = gs.first() else { return Ok(vec![None; n.operands.len()]) };
    match &n.prim {
        Prim::Unary(_) | Prim::Binary(_) | Prim::Select | Prim::Convert { .. } => elementwise::rule(b, n, g),
        Prim::Reshape { .. }
        | Prim::Transpose { .. }
        | Prim::Broadcast { .. }
        | Prim::Slice { .. }
        | Prim::Pad { .. }
        | Prim::Concat { .. }
        | Prim::UpdateSlice { .. } => movement::rule(b, n, g),
        Prim::Gather { .. } | Prim::Scatter { .. } => indexed::rule(b, n, g),
        Prim::Reduce { .. } | Prim::WindowReduce { .. } | Prim::Cumulative { .. } => reduce::rule(b, n, g),
        Prim::Contract { .. } | Prim::Convolve { .. } => contract::rule(b, n, g),
        Prim::Bitcast { .. } => n.fail("bits are no numbers"),
        Prim::Host { .. } => n.fail("it is a host function"),
        // sources have no operands, the others no floats among their results
        Prim::Const(_)
        | Prim::Iota { .. }
        | Prim::DimValue(_)
        | Prim::BindDim(_)
        | Prim::RandomBits { .. }
        | Prim::Cmp(_)
        | Prim::ArgReduce { .. }
        | Prim::Compact { .. }
        | Prim::Assert { .. }
        | Prim::Sort { .. }
        | Prim::TopK { .. }
        | Prim::If { .. }
        | Prim::Loop { .. }
        | Prim::Call { .. } => Ok(vec![None; n.operands.len()]),
    }
}

pub(crate) fn zeros_like(b: &mut Builder, x: V) -> Result<V> {
    let (dtype, shape) = (b.dtype(x), b.shape(x).to_vec());
    Ok(b.full(dtype, &shape, 0.0)?)
}
