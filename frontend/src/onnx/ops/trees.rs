//! Tree ensembles of ai.onnx.ml: all trees of all rows walk down together, one level for each step of a
//! loop whose number of steps is the depth of the deepest tree.

use super::compose;
use super::ml::{Labels, post_transform};
use super::{Op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, LoopStep, V};
use ir::prim::{CmpOp, Monoid};
use ir::tensor::Tensor;
use ir::{DType, Dim, IrError, Result};
use std::collections::HashMap;

const ML: &str = "ai.onnx.ml";

pub static OPS: &[Op] = &[
    op_in(ML, "TreeEnsemble", tree_ensemble),
    op_in(ML, "TreeEnsembleClassifier", classifier),
    op_in(ML, "TreeEnsembleRegressor", regressor),
];

/// A comparison of a feature with a threshold; a leaf goes on to itself.
#[derive(Clone, Copy, Debug)]
struct Node {
    feature: i64,
    threshold: f64,
    /// None: a leaf.
    mode: Option<CmpOp>,
    yes: usize,
    no: usize,
    /// A missing value (NaN) goes to `yes`.
    missing_yes: bool,
}

/// Trees over one table of nodes.
#[derive(Default, Debug)]
struct Forest {
    nodes: Vec<Node>,
    roots: Vec<usize>,
    /// (node, target, weight).
    weights: Vec<(usize, usize, f64)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Aggregate {
    Sum,
    Average,
    Min,
    Max,
}

fn bad(message: impl Into<String>) -> OpError {
    OpError::invalid(Code::Attribute, message)
}

impl Forest {
    /// Steps from a root to its deepest leaf. Fails where nodes form a cycle.
    fn depth(&self) -> Result<i64, OpError> {
        // height of each node, found after those of its successors
        let mut height: Vec<Option<i64>> = vec![None; self.nodes.len()];
        let mut open = vec![false; self.nodes.len()];
        for &root in &self.roots {
            let mut stack = vec![root];
            while let Some(&n) = stack.last() {
                let node = self.nodes.get(n).ok_or_else(|| bad(format!("node {n} does not exist")))?;
                if height[n].is_some() || node.mode.is_none() {
                    height[n] = height[n].or(Some(0));
                    stack.pop();
                    continue;
                }
                let below = [node.yes, node.no];
                if below.iter().any(|&c| c >= self.nodes.len()) {
                    return Err(bad("a branch leads to a node that does not exist"));
                }
                let waiting: Vec<usize> = below.into_iter().filter(|&c| height[c].is_none()).collect();
                if waiting.is_empty() {
                    height[n] = below.iter().filter_map(|&c| height[c]).max().map(|h| h + 1);
                    open[n] = false;
                    stack.pop();
                } else {
                    if std::mem::replace(&mut open[n], true) {
                        return Err(bad("the nodes of a tree form a cycle"));
                    }
                    stack.extend(waiting);
                }
            }
        }
        Ok(self.roots.iter().filter_map(|&r| height[r]).max().unwrap_or(0))
    }

    /// Leaf of every row of x[N, F] in every tree: i64[N, T].
    fn leaves(&self, b: &mut Builder, x: V, depth: i64) -> Result<V> {
        let shape = b.shape(x).to_vec();
        let dtype = b.dtype(x);
        let flat = b.reshape(x, &[Dim::product(&shape)])?;
        let ints = |b: &mut Builder, f: &dyn Fn(&Node) -> i64| {
            let v: Vec<i64> = self.nodes.iter().map(f).collect();
            b.vector_i64(&v)
        };
        let features = ints(b, &|n| n.feature)?;
        let (yes, no) = (ints(b, &|n| n.yes as i64)?, ints(b, &|n| n.no as i64)?);
        let thresholds: Vec<f64> = self.nodes.iter().map(|n| n.threshold).collect();
        let thresholds = floats(b, dtype, &[thresholds.len()], &thresholds)?;
        let mut modes: Vec<CmpOp> = self.nodes.iter().filter_map(|n| n.mode).collect();
        modes.sort_unstable();
        modes.dedup();
        let codes = ints(b, &|n| n.mode.map_or(-1, |m| m as i64))?;
        let missing = if self.nodes.iter().any(|n| n.missing_yes) {
            let v: Vec<bool> = self.nodes.iter().map(|n| n.missing_yes).collect();
            Some(b.constant(Tensor::from_bool(vec![v.len()], &v))?)
        } else {
            None
        };
        let rows = b.iota(DType::I64, &[shape[0].clone(), Dim::from(1)], 0)?;
        let width = b.dim_value(&shape[1])?;
        let rows = b.mul(rows, width)?;
        let roots: Vec<i64> = self.roots.iter().map(|&r| r as i64).collect();
        let start = b.vector_i64(&roots)?;
        let start = b.broadcast_to(start, &[shape[0].clone(), Dim::from(roots.len())])?;
        let trip = b.scalar_i64(depth)?;
        let out = b.loop_::<IrError>(Some(trip), None, &[start], |b, _, at| {
            let at = at[0];
            let f = b.gather(features, at, 0)?;
            let place = b.add(rows, f)?;
            let value = b.gather(flat, place, 0)?;
            let threshold = b.gather(thresholds, at, 0)?;
            let mut go = None;
            for &mode in &modes {
                let mut hit = b.cmp(mode, value, threshold)?;
                if modes.len() > 1 {
                    let code = b.gather(codes, at, 0)?;
                    let this = b.scalar_i64(mode as i64)?;
                    let this = b.eq(code, this)?;
                    hit = b.and(hit, this)?;
                }
                go = Some(match go {
                    None => hit,
                    Some(g) => b.or(g, hit)?,
                });
            }
            if let Some(missing) = missing
                && let Some(g) = go
            {
                let nan = b.ne(value, value)?;
                let m = b.gather(missing, at, 0)?;
                let m = b.and(nan, m)?;
                go = Some(b.or(g, m)?);
            }
            let next = match go {
                Some(go) => {
                    let (y, n) = (b.gather(yes, at, 0)?, b.gather(no, at, 0)?);
                    b.select(go, y, n)?
                }
                None => at,
            };
            let cond = b.scalar(DType::Bool, 1.0)?;
            Ok(LoopStep { cond, carried: vec![next], scans: vec![] })
        })?;
        Ok(out[0])
    }

    /// Aggregated weights [N, targets] of x[N, F].
    fn evaluate(&self, cx: &mut NodeCx, x: V, targets: usize, aggregate: Aggregate) -> Result<V, OpError> {
        let depth = self.depth()?;
        let widest = self.nodes.iter().filter(|n| n.mode.is_some()).map(|n| n.feature).max().unwrap_or(-1);
        if self.nodes.iter().any(|n| n.feature < 0) || cx.dim(x, 1)?.as_const().is_some_and(|f| widest >= f) {
            return Err(bad("a node looks at a feature that does not exist"));
        }
        let cells = self.nodes.len().checked_mul(targets).filter(|&c| c <= 1 << 28);
        let Some(cells) = cells else {
            return Err(OpError::limit(format!("{} nodes with {targets} targets", self.nodes.len())));
        };
        let fill = match aggregate {
            Aggregate::Sum | Aggregate::Average => 0.0,
            Aggregate::Min => f64::from(f32::MAX),
            Aggregate::Max => f64::from(f32::MIN),
        };
        let mut table = vec![fill; cells];
        let mut first = vec![true; cells];
        for &(node, target, weight) in &self.weights {
            if node >= self.nodes.len() || target >= targets {
                return Err(bad(format!("a weight for node {node} and target {target}")));
            }
            let at = node * targets + target;
            table[at] = match aggregate {
                _ if std::mem::take(&mut first[at]) => weight,
                Aggregate::Sum | Aggregate::Average => table[at] + weight,
                Aggregate::Min => table[at].min(weight),
                Aggregate::Max => table[at].max(weight),
            };
        }
        let trees = self.roots.len();
        let attrs = vec![compose::int_attr("trees", trees as i64), compose::int_attr("depth", depth)];
        let y = compose::call1(cx.b, "tree_ensemble", attrs, x, |b, x| {
            let dtype = b.dtype(x);
            let count = compose::extent(b, x, 1)?;
            if count.as_const().is_none() {
                let (have, need) = (b.dim_value(&count)?, b.scalar_i64(widest)?);
                let enough = b.gt(have, need)?;
                b.assert(enough, "tree ensemble: the input has too few features")?;
            }
            let leaf = self.leaves(b, x, depth)?;
            let table = floats(b, dtype, &[self.nodes.len(), targets], &table)?;
            let w = b.gather(table, leaf, 0)?;
            let monoid = match aggregate {
                Aggregate::Sum | Aggregate::Average => Monoid::Sum,
                Aggregate::Min => Monoid::Min,
                Aggregate::Max => Monoid::Max,
            };
            let y = b.reduce(monoid, w, &[1], false)?;
            if aggregate == Aggregate::Average { b.mul_scalar(y, 1.0 / trees as f64) } else { Ok(y) }
        })?;
        Ok(y)
    }
}

/// A constant of floats.
pub fn floats(b: &mut Builder, dtype: DType, shape: &[usize], v: &[f64]) -> Result<V> {
    if dtype == DType::F64 {
        let bytes = v.iter().flat_map(|x| x.to_le_bytes()).collect();
        return b.constant(Tensor::new(dtype, shape.to_vec(), bytes));
    }
    let v: Vec<f32> = v.iter().map(|&x| x as f32).collect();
    let c = b.constant(Tensor::from_f32(shape.to_vec(), &v))?;
    b.convert(c, dtype)
}

/// The rows as floats [N, F].
pub fn rows(cx: &mut NodeCx) -> Result<V, OpError> {
    let x = cx.input(0)?;
    let x = match cx.rank(x) {
        1 => cx.b.unsqueeze(x, &[0])?,
        2 => x,
        r => return Err(OpError::invalid(Code::Shape, format!("expected rows of features, found rank {r}"))),
    };
    let to = if cx.dtype(x) == DType::F64 { DType::F64 } else { DType::F32 };
    Ok(cx.b.convert(x, to)?)
}

/// A list attribute of floats, or the tensor attribute of the same meaning.
fn float_list(cx: &mut NodeCx, name: &str) -> Result<Option<Vec<f64>>, OpError> {
    if let Some(v) = cx.attrs.floats(name)?
        && !v.is_empty()
    {
        return Ok(Some(v.iter().map(|&x| x.into()).collect()));
    }
    tensor_list(cx, &format!("{name}_as_tensor"))
}

/// The elements of a numeric tensor attribute.
pub fn tensor_list(cx: &mut NodeCx, name: &str) -> Result<Option<Vec<f64>>, OpError> {
    let Some(c) = cx.tensor_attr(name)? else { return Ok(None) };
    let all: Option<Vec<f64>> = (0..c.elems()).map(|i| Some(c.scalar_at(i)?.as_f64())).collect();
    all.map(Some).ok_or_else(|| bad(format!("{name} should hold numbers")))
}

fn mode_of(name: &str) -> Result<Option<CmpOp>, OpError> {
    Ok(Some(match name {
        "LEAF" => return Ok(None),
        "BRANCH_LEQ" => CmpOp::Le,
        "BRANCH_LT" => CmpOp::Lt,
        "BRANCH_GTE" => CmpOp::Ge,
        "BRANCH_GT" => CmpOp::Gt,
        "BRANCH_EQ" => CmpOp::Eq,
        "BRANCH_NEQ" => CmpOp::Ne,
        other => return Err(bad(format!("node mode {other:?}"))),
    }))
}

/// The forest of the older operators; weights have the prefix `class` or `target`.
fn classic(cx: &mut NodeCx, prefix: &str) -> Result<Forest, OpError> {
    let modes = cx.attrs.strs("nodes_modes")?.unwrap_or_default();
    let n = modes.len();
    let list = |cx: &NodeCx, name: &str| -> Result<Vec<i64>, OpError> {
        let v = cx.need_ints(name)?;
        if v.len() == n { Ok(v) } else { Err(bad(format!("{name} has {} elements, expected {n}", v.len()))) }
    };
    let (trees, ids) = (list(cx, "nodes_treeids")?, list(cx, "nodes_nodeids")?);
    let (yes, no) = (list(cx, "nodes_truenodeids")?, list(cx, "nodes_falsenodeids")?);
    let features = list(cx, "nodes_featureids")?;
    let missing = cx.ints("nodes_missing_value_tracks_true")?.unwrap_or_default();
    let values = float_list(cx, "nodes_values")?.unwrap_or_default();
    if values.len() != n {
        return Err(bad(format!("nodes_values has {} elements, expected {n}", values.len())));
    }
    let mut place = HashMap::new();
    let mut forest = Forest::default();
    let mut seen = std::collections::HashSet::new();
    for i in 0..n {
        if place.insert((trees[i], ids[i]), i).is_some() {
            return Err(bad(format!("node {} of tree {} is there twice", ids[i], trees[i])));
        }
        if seen.insert(trees[i]) {
            forest.roots.push(i);
        }
    }
    let find = |tree: i64, id: i64| {
        place.get(&(tree, id)).copied().ok_or_else(|| bad(format!("tree {tree} has no node {id}")))
    };
    for i in 0..n {
        let mode = mode_of(modes[i])?;
        let (yes, no) = match mode {
            None => (i, i),
            Some(_) => (find(trees[i], yes[i])?, find(trees[i], no[i])?),
        };
        forest.nodes.push(Node {
            feature: if mode.is_some() { features[i] } else { 0 },
            threshold: values[i],
            mode,
            yes,
            no,
            missing_yes: missing.get(i).is_some_and(|&m| m != 0),
        });
    }
    let name = |s: &str| format!("{prefix}_{s}");
    let targets = cx.need_ints(&name("ids"))?;
    let (trees, ids) = (cx.need_ints(&name("treeids"))?, cx.need_ints(&name("nodeids"))?);
    let weights = float_list(cx, &name("weights"))?.unwrap_or_default();
    if [trees.len(), ids.len(), weights.len()].iter().any(|&l| l != targets.len()) {
        return Err(bad(format!("the {prefix} lists differ in length")));
    }
    for i in 0..targets.len() {
        let target = usize::try_from(targets[i]).map_err(|_| bad("a negative target"))?;
        forest.weights.push((find(trees[i], ids[i])?, target, weights[i]));
    }
    Ok(forest)
}

/// Base values as a row that is added to the scores.
fn add_base(cx: &mut NodeCx, scores: V, base: &[f64]) -> Result<V, OpError> {
    if base.is_empty() {
        return Ok(scores);
    }
    let dtype = cx.dtype(scores);
    let row = floats(cx.b, dtype, &[base.len()], base)?;
    let wide = cx.rank(scores);
    let out = cx.b.add(scores, row)?;
    if cx.rank(out) != wide {
        return Err(bad("base_values do not fit the targets"));
    }
    Ok(out)
}

fn aggregate_of(name: &str) -> Result<Aggregate, OpError> {
    Ok(match name {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => return Err(bad(format!("aggregate_function {other:?}"))),
    })
}

fn regressor(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let forest = classic(cx, "target")?;
    let targets = usize::try_from(cx.int("n_targets", 1)?).map_err(|_| bad("n_targets"))?;
    let aggregate = aggregate_of(cx.string("aggregate_function", "SUM")?)?;
    let scores = forest.evaluate(cx, x, targets, aggregate)?;
    let base = float_list(cx, "base_values")?.unwrap_or_default();
    let scores = add_base(cx, scores, &base)?;
    let y = post_transform(cx.b, scores, cx.string("post_transform", "NONE")?)?;
    Ok(cx.b.convert(y, DType::F32)?.into())
}

/// The forest with 1 for every weight: which targets a leaf says anything about.
fn touched(forest: &Forest) -> Forest {
    let weights = forest.weights.iter().map(|w| (w.0, w.1, 1.0)).collect();
    Forest { nodes: forest.nodes.clone(), roots: forest.roots.clone(), weights }
}

/// (labels, scores). With two labels and weights for the first class only, that score is the one of the
/// second label: as a probability where all weights are positive, else as a logit.
fn classifier(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let forest = classic(cx, "class")?;
    let labels = Labels::of(cx, "classlabels_int64s", "classlabels_strings")?;
    let classes = labels.count();
    let base = float_list(cx, "base_values")?.unwrap_or_default();
    let transform = cx.string("post_transform", "NONE")?;
    let scores = forest.evaluate(cx, x, classes, Aggregate::Sum)?;
    let binary = classes == 2 && forest.weights.iter().all(|w| w.1 == 0);
    let positive = forest.weights.iter().all(|w| w.2 >= 0.0);
    if !binary {
        let scores = add_base(cx, scores, &base)?;
        let mut ranked = scores;
        if !positive && base.is_empty() {
            // a class without any weight is not chosen, though its score of 0 may be the largest
            let said = touched(&forest).evaluate(cx, x, classes, Aggregate::Max)?;
            let b = &mut *cx.b;
            let (zero, least) = (b.scalar(b.dtype(said), 0.0)?, b.scalar(b.dtype(said), f64::NEG_INFINITY)?);
            let said = b.gt(said, zero)?;
            ranked = b.select(said, scores, least)?;
        }
        let best = cx.b.arg_reduce(ranked, true, 1, false)?;
        let label = labels.pick(cx, best)?;
        let y = post_transform(cx.b, scores, transform)?;
        let y = cx.b.convert(y, DType::F32)?;
        return Ok([label, y].into());
    }
    let mut s = cx.b.slice_axis(scores, 1, &Dim::from(0), &Dim::from(1))?;
    if let Some(&last) = base.last() {
        s = cx.b.add_scalar(s, last)?;
    }
    let limit = cx.b.scalar(cx.b.dtype(s), if positive { 0.5 } else { 0.0 })?;
    let second = cx.b.gt(s, limit)?;
    let second = cx.b.convert(second, DType::I64)?;
    let second = cx.b.squeeze(second, &[1])?;
    let label = labels.pick(cx, second)?;
    let b = &mut *cx.b;
    let n = b.neg(s)?;
    let logits = transform == "LOGISTIC" || base.len() == 2;
    let first = if positive && !logits { b.add_scalar(n, 1.0)? } else { n };
    let both = b.concat(&[first, s], 1)?;
    let y = if logits { post_transform(b, both, transform)? } else { both };
    let y = b.convert(y, DType::F32)?;
    Ok([label, y].into())
}

/// Version 5: trees by tensors, with leaves in lists of their own.
fn tree_ensemble(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let splits = tensor_list(cx, "nodes_splits")?.unwrap_or_default();
    let modes = tensor_list(cx, "nodes_modes")?.unwrap_or_default();
    let n = splits.len();
    let list = |cx: &NodeCx, name: &str| -> Result<Vec<i64>, OpError> {
        let v = cx.need_ints(name)?;
        if v.len() == n { Ok(v) } else { Err(bad(format!("{name} has {} elements, expected {n}", v.len()))) }
    };
    let features = list(cx, "nodes_featureids")?;
    let (yes, no) = (list(cx, "nodes_truenodeids")?, list(cx, "nodes_falsenodeids")?);
    let (yes_leaf, no_leaf) = (list(cx, "nodes_trueleafs")?, list(cx, "nodes_falseleafs")?);
    let missing = cx.ints("nodes_missing_value_tracks_true")?.unwrap_or_default();
    let (leaf_targets, leaf_weights) =
        (cx.need_ints("leaf_targetids")?, tensor_list(cx, "leaf_weights")?.unwrap_or_default());
    let members = tensor_list(cx, "membership_values")?.unwrap_or_default();
    if modes.len() != n || leaf_weights.len() != leaf_targets.len() {
        return Err(bad("the lists of nodes or leaves differ in length"));
    }
    // leaves follow the nodes in the table
    let place = |id: i64, leaf: i64| -> Result<usize, OpError> {
        let count = if leaf != 0 { leaf_targets.len() } else { n };
        let at = usize::try_from(id).ok().filter(|&i| i < count);
        Ok(at.ok_or_else(|| bad(format!("node or leaf {id} does not exist")))?
            + if leaf != 0 { n } else { 0 })
    };
    let mut forest = Forest::default();
    let mut sets = members.split(|m| m.is_nan());
    // nodes that test the further members of a set
    let mut extra = Vec::new();
    let first_extra = n + leaf_targets.len();
    for i in 0..n {
        let missing_yes = missing.get(i).is_some_and(|&m| m != 0);
        let (yes, no) = (place(yes[i], yes_leaf[i])?, place(no[i], no_leaf[i])?);
        let mut node =
            Node { feature: features[i], threshold: splits[i], mode: Some(CmpOp::Le), yes, no, missing_yes };
        node.mode = Some(match modes[i] as i64 {
            0 => CmpOp::Le,
            1 => CmpOp::Lt,
            2 => CmpOp::Ge,
            3 => CmpOp::Gt,
            4 => CmpOp::Eq,
            5 => CmpOp::Ne,
            6 => {
                let set = sets.next().ok_or_else(|| bad("too few membership_values"))?;
                let Some((first, more)) = set.split_first() else {
                    // member of nothing: the comparison with NaN is never true
                    forest.nodes.push(Node { threshold: f64::NAN, mode: Some(CmpOp::Eq), ..node });
                    continue;
                };
                node.threshold = *first;
                for &m in more.iter().rev() {
                    extra.push(Node { threshold: m, mode: Some(CmpOp::Eq), ..node });
                    node.no = first_extra + extra.len() - 1;
                }
                CmpOp::Eq
            }
            m => return Err(bad(format!("node mode {m}"))),
        });
        forest.nodes.push(node);
    }
    for (i, (&target, &weight)) in leaf_targets.iter().zip(&leaf_weights).enumerate() {
        let at = n + i;
        forest.nodes.push(Node {
            feature: 0,
            threshold: 0.0,
            mode: None,
            yes: at,
            no: at,
            missing_yes: false,
        });
        let target = usize::try_from(target).map_err(|_| bad("a negative target"))?;
        forest.weights.push((at, target, weight));
    }
    forest.nodes.extend(extra);
    for root in cx.need_ints("tree_roots")? {
        forest.roots.push(place(root, 0)?);
    }
    let targets = usize::try_from(cx.int("n_targets", 1)?).map_err(|_| bad("n_targets"))?;
    let aggregate = match cx.int("aggregate_function", 1)? {
        0 => Aggregate::Average,
        1 => Aggregate::Sum,
        2 => Aggregate::Min,
        3 => Aggregate::Max,
        a => return Err(bad(format!("aggregate_function {a}"))),
    };
    let transform = match cx.int("post_transform", 0)? {
        0 => "NONE",
        1 => "SOFTMAX",
        2 => "LOGISTIC",
        3 => "SOFTMAX_ZERO",
        4 => "PROBIT",
        p => return Err(bad(format!("post_transform {p}"))),
    };
    let scores = forest.evaluate(cx, x, targets, aggregate)?;
    Ok(post_transform(cx.b, scores, transform)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(mode: Option<CmpOp>, yes: usize, no: usize) -> Node {
        Node { feature: 0, threshold: 0.0, mode, yes, no, missing_yes: false }
    }

    #[test]
    fn depth_counts_steps_and_finds_cycles() {
        let le = Some(CmpOp::Le);
        let mut f = Forest {
            nodes: vec![node(le, 1, 2), node(le, 2, 3), node(None, 2, 2), node(None, 3, 3)],
            roots: vec![0],
            weights: vec![],
        };
        assert_eq!(f.depth().unwrap(), 2);
        f.roots = vec![2];
        assert_eq!(f.depth().unwrap(), 0);
        f.roots = vec![0];
        f.nodes[1] = node(le, 0, 3);
        assert!(f.depth().is_err());
        f.nodes[1] = node(le, 9, 3);
        assert!(f.depth().is_err());
    }
}
