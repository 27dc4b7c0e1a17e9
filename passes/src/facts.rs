//! What grouping knows of each value of one graph, computed in one forward pass.

use crate::pull::{Unit, uniform_scalar};
use ir::dtype::Scalar;
use ir::prim::{PadMode, UnaryOp};
use ir::{Dim, OpId, Prim, Sym, ValueId};
use std::collections::{HashMap, HashSet};

/// How an op is executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Constant data.
    Const,
    /// A function of the index alone.
    Source,
    Elementwise,
    /// Every result element is one operand element.
    View,
    /// Result elements are chosen among operand elements and a fill.
    Select,
    /// A reduction whose operands must be plain reads to be fast.
    Gemm,
    /// A reduction over whole axes.
    Reduce,
    /// A kernel of its own, with a sequential part.
    Ordered,
    /// Executed by the host schedule (control, generated kernels, host functions, checks).
    Host,
}

pub fn class(prim: &Prim) -> Class {
    match prim {
        Prim::Const(_) => Class::Const,
        Prim::Iota { .. } | Prim::DimValue(_) => Class::Source,
        Prim::RandomBits { .. }
        | Prim::Unary(_)
        | Prim::Binary(_)
        | Prim::Cmp(_)
        | Prim::Select
        | Prim::Convert { .. }
        | Prim::Bitcast { .. } => Class::Elementwise,
        Prim::Reshape { .. } | Prim::Transpose { .. } | Prim::Broadcast { .. } | Prim::Slice { .. } => {
            Class::View
        }
        Prim::Pad { .. } | Prim::Concat { .. } | Prim::Gather { .. } => Class::Select,
        Prim::Contract { .. } | Prim::Convolve { .. } | Prim::WindowReduce { .. } => Class::Gemm,
        Prim::Reduce { .. } | Prim::ArgReduce { .. } => Class::Reduce,
        Prim::Cumulative { .. } | Prim::Scatter { .. } | Prim::UpdateSlice { .. } => Class::Ordered,
        Prim::BindDim(_)
        | Prim::Sort { .. }
        | Prim::TopK { .. }
        | Prim::Compact { .. }
        | Prim::If { .. }
        | Prim::Loop { .. }
        | Prim::Call { .. }
        | Prim::Assert { .. }
        | Prim::Host { .. } => Class::Host,
    }
}

/// Number of elements where it is known.
pub fn static_elems(shape: &[Dim]) -> Option<i64> {
    shape.iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const()?))
}

/// Facts by value, of one graph.
pub struct GraphFacts {
    /// Live uses: one entry per operand position.
    pub uses: Vec<Vec<OpId>>,
    /// The value is an output of the graph.
    pub output: Vec<bool>,
    /// Place of each op in the order of execution (`usize::MAX`: dead).
    pub position: Vec<usize>,
    /// The value depends on constants alone and has a static shape.
    pub constant: Vec<bool>,
    /// A contraction or window reaches the value through elementwise ops and views of the same
    /// element space, each used once: computing it for a consumer would repeat that work.
    pub carries_gemm: Vec<bool>,
    /// As `carries_gemm` for reductions.
    pub carries_reduce: Vec<bool>,
    /// Cheap enough to be computed by every consumer for itself.
    pub cheap: Vec<bool>,
    /// Rough cost of an element in additions, down to the next value that is no elementwise op.
    pub weight: Vec<u32>,
    /// Decodes a compressed constant for a contraction, which does so in registers ([`mark_decoded`]).
    pub decoded: Vec<bool>,
    /// Must lie in a buffer of its own: operands of the host schedule, outputs.
    pub exact: Vec<bool>,
    /// Position of the op that defines a symbol inside this graph.
    pub defined_at: HashMap<Sym, usize>,
}

/// Ops that are worth a pass over memory rather than being computed twice.
fn op_weight(prim: &Prim) -> u32 {
    match prim {
        Prim::Unary(
            UnaryOp::Neg
            | UnaryOp::Abs
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Trunc
            | UnaryOp::RoundEven
            | UnaryOp::Not,
        ) => 1,
        Prim::Unary(_) => 8,
        Prim::Binary(op) if op.name() == "pow" || op.name() == "atan2" => 16,
        Prim::Binary(op) if op.name() == "div" || op.name() == "rem" => 3,
        Prim::RandomBits { .. } => 8,
        _ => 1,
    }
}

impl GraphFacts {
    pub fn new(unit: Unit) -> GraphFacts {
        let g = unit.graph;
        let n = g.value_count();
        let mut f = GraphFacts {
            uses: g.uses(),
            output: vec![false; n],
            position: vec![usize::MAX; g.op_count()],
            constant: vec![false; n],
            carries_gemm: vec![false; n],
            carries_reduce: vec![false; n],
            cheap: vec![false; n],
            weight: vec![0; n],
            decoded: vec![false; n],
            exact: vec![false; n],
            defined_at: HashMap::new(),
        };
        for v in &g.outputs {
            f.output[v.index()] = true;
            f.exact[v.index()] = true;
        }
        // cost of values that are functions of the index alone, and depth of small chains
        let mut pure: Vec<Option<u32>> = vec![None; n];
        let mut depth: Vec<u32> = vec![0; n];
        for (at, (id, op)) in g.ops().enumerate() {
            f.position[id.index()] = at;
            for &s in op.prim.defines() {
                f.defined_at.insert(s, at);
            }
            let class = class(&op.prim);
            if class == Class::Host {
                op.operands.iter().for_each(|v| f.exact[v.index()] = true);
            }
            let all_const = op.operands.iter().all(|v| f.constant[v.index()]);
            for &v in &op.results {
                let i = v.index();
                let elems = static_elems(&g[v].ty.shape);
                f.constant[i] = match class {
                    Class::Const => true,
                    Class::Source => !matches!(op.prim, Prim::DimValue(_)) && elems.is_some(),
                    Class::Host => false,
                    _ => all_const && elems.is_some() && op.regions.is_empty(),
                };
                match class {
                    Class::Gemm => f.carries_gemm[i] = true,
                    Class::Reduce => f.carries_reduce[i] = true,
                    _ if passes_element_space(unit, id) => {
                        let once = |x: &&ValueId| f.uses[x.index()].len() == 1 && !f.output[x.index()];
                        let carried: Vec<ValueId> = op.operands.iter().filter(once).copied().collect();
                        f.carries_gemm[i] = carried.iter().any(|x| f.carries_gemm[x.index()]);
                        f.carries_reduce[i] = carried.iter().any(|x| f.carries_reduce[x.index()]);
                    }
                    _ => {}
                }
                if class == Class::Elementwise {
                    // what others use too is likely to lie in a buffer
                    let part = |x: &ValueId| {
                        let w = f.weight[x.index()];
                        if f.uses[x.index()].len() > 1 { w.min(4) } else { w }
                    };
                    let sum: u32 = op.operands.iter().map(part).sum();
                    f.weight[i] = (sum + op_weight(&op.prim)).min(1 << 20);
                } else if class == Class::View {
                    f.weight[i] = f.weight[op.operands[0].index()];
                }
                let over_operands =
                    || op.operands.iter().try_fold(1u32, |sum, x| Some(sum.saturating_add(pure[x.index()]?)));
                pure[i] = match (&op.prim, class) {
                    (Prim::Const(c), _) => unit.consts.get(c.0 as usize).and_then(uniform_scalar).map(|_| 0),
                    (_, Class::Source) => Some(1),
                    (_, Class::View) => over_operands().map(|c| c - 1),
                    (_, Class::Elementwise) => over_operands(),
                    _ => None,
                };
                let deepest = op.operands.iter().map(|x| depth[x.index()]).max().unwrap_or(0);
                depth[i] = match class {
                    Class::Const | Class::Source => 0,
                    Class::View => deepest,
                    _ => deepest + 1,
                };
                // what is narrowed once takes less memory from then on
                let widens = |to: ir::DType| to.bytes() >= g[op.operands[0]].ty.dtype.bytes();
                let convert = matches!(op.prim, Prim::Convert { to, .. } if widens(to)) && deepest == 0;
                let scalar = class == Class::Elementwise && elems == Some(1) && depth[i] <= 3;
                f.cheap[i] = convert || scalar || pure[i].is_some_and(|c| c <= 12);
            }
        }
        mark_decoded(unit, &mut f);
        f
    }

    /// True where every symbol of `shape` has a value before the op at position `at` runs.
    pub fn known_before(&self, shape: &[Dim], at: usize) -> bool {
        let mut known = true;
        for d in shape {
            d.visit_atoms(&mut |a| {
                if let ir::Atom::Sym(s) = a {
                    known &= self.defined_at.get(s).is_none_or(|&p| p < at);
                }
            });
        }
        known
    }
}

/// Operations per element beyond which decoding costs more than reading what was decoded.
const DECODING: u32 = 12;
/// Rows of the other operand up to which a contraction is bound by the bytes of its constant.
const FEW_ROWS: i64 = 16;
/// Bytes of constants that stay in the caches.
const CACHED: i64 = 64 << 10;

/// Marks the values between compressed constants and the contractions that they are decoded for: a few elementwise
/// ops per element, of at most half the bytes, read by a contraction that may have few rows (packed bits with
/// scales by block). Few rows take as long as their weights take to arrive.
fn mark_decoded(unit: Unit, f: &mut GraphFacts) {
    let g = unit.graph;
    let bytes =
        |v: ValueId| static_elems(&g[v].ty.shape).and_then(|n| n.checked_mul(g[v].ty.dtype.bytes() as i64));
    // bytes of the constants behind a value
    let mut behind: Vec<Option<i64>> = vec![None; g.value_count()];
    let mut found = Vec::new();
    for (_, op) in g.ops() {
        let Some(&result) = op.results.first() else { continue };
        let sum = || op.operands.iter().try_fold(0i64, |n, x| n.checked_add(behind[x.index()]?));
        behind[result.index()] = match (class(&op.prim), &op.prim) {
            (_, Prim::RandomBits { .. }) => None,
            (Class::Const, Prim::Const(c)) => match unit.consts.get(c.0 as usize).and_then(uniform_scalar) {
                Some(_) => Some(0),
                None => bytes(result),
            },
            (Class::Source, _) => Some(0),
            (Class::Elementwise | Class::View, _) if f.constant[result.index()] => sum(),
            _ => None,
        };
        let (Prim::Contract { batch, reduce, .. }, &[a, b]) = (&op.prim, op.operands.as_slice()) else {
            continue;
        };
        let (w, x, dims): (_, _, Vec<usize>) = match (f.constant[a.index()], f.constant[b.index()]) {
            (false, true) => (b, a, reduce.iter().map(|r| r.0).collect()),
            (true, false) => (a, b, reduce.iter().map(|r| r.1).collect()),
            _ => continue,
        };
        let rows: Vec<Dim> = g[x]
            .ty
            .shape
            .iter()
            .enumerate()
            .filter(|(d, _)| !dims.contains(d))
            .map(|(_, n)| n.clone())
            .collect();
        let few = Dim::product(&rows).bounds(unit.symbols).0 <= FEW_ROWS;
        let own = g.def_op(w).is_some_and(|d| class(&g[d].prim) == Class::Elementwise);
        let small = bytes(w).zip(behind[w.index()]).is_some_and(|(all, b)| all >= CACHED && 2 * b <= all);
        if batch.is_empty() && few && own && small && f.weight[w.index()] <= DECODING {
            found.push(w);
        }
    }
    while let Some(v) = found.pop() {
        let Some(def) = g.def_op(v) else { continue };
        match class(&g[def].prim) {
            Class::Elementwise if !f.decoded[v.index()] => f.decoded[v.index()] = true,
            Class::View => {}
            _ => continue,
        }
        found.extend(&g[def].operands);
    }
}

/// Elementwise ops and views that neither repeat nor drop elements.
fn passes_element_space(unit: Unit, op: OpId) -> bool {
    let op = &unit.graph[op];
    match &op.prim {
        Prim::Reshape { .. } | Prim::Transpose { .. } => true,
        Prim::Broadcast { .. } => !expands(unit, op.operands[0], op.results[0]),
        p => class(p) == Class::Elementwise && !matches!(p, Prim::RandomBits { .. }),
    }
}

/// True where a broadcast from `from` to `to` repeats elements (or may at run time).
pub fn expands(unit: Unit, from: ValueId, to: ValueId) -> bool {
    let (from, to) = (&unit.graph[from].ty.shape, &unit.graph[to].ty.shape);
    Dim::product(from) != Dim::product(to)
}

/// True where `to` surely has twice as many elements as `from` at least.
pub fn repeats(unit: Unit, from: ValueId, to: ValueId) -> bool {
    let elems = |v: ValueId| static_elems(&unit.graph[v].ty.shape);
    elems(from).zip(elems(to)).is_some_and(|(a, b)| a.saturating_mul(2) <= b)
}

/// Ops whose operands may be written straight into the result's buffer, and where: `(operand
/// position, offset of element 0)`. Empty for all other ops.
pub fn pieces(unit: Unit, op: OpId) -> Vec<(usize, Vec<Dim>)> {
    let g = unit.graph;
    let op = &g[op];
    let Some(&result) = op.results.first() else { return Vec::new() };
    let shape = &g[result].ty.shape;
    if static_elems(shape).is_some_and(|n| n <= 64) {
        return Vec::new();
    }
    match &op.prim {
        Prim::Concat { axis } => {
            let mut offset = vec![Dim::from(0); shape.len()];
            let mut pieces = Vec::new();
            for (i, &x) in op.operands.iter().enumerate() {
                pieces.push((i, offset.clone()));
                offset[*axis] = &offset[*axis] + &g[x].ty.shape[*axis];
            }
            pieces
        }
        Prim::Pad { lo, hi, interior, mode: PadMode::Constant } => {
            let positive = |d: &Dim| d.bounds(unit.symbols).0 >= 0;
            let known_fill = op.operands.get(1).is_none_or(|&f| fill_scalar(unit, f).is_some());
            if lo.iter().chain(hi).all(positive) && interior.iter().all(|&i| i == 0) && known_fill {
                vec![(0, lo.clone())]
            } else {
                Vec::new()
            }
        }
        Prim::Scatter { .. } | Prim::UpdateSlice { .. } => {
            vec![(0, vec![Dim::from(0); shape.len()])]
        }
        _ => Vec::new(),
    }
}

/// The scalar of a fill operand that is a constant.
pub fn fill_scalar(unit: Unit, v: ValueId) -> Option<Scalar> {
    match &unit.graph[unit.graph.def_op(v)?].prim {
        Prim::Const(c) => uniform_scalar(unit.consts.get(c.0 as usize)?),
        _ => None,
    }
}

/// Values that a set of ops reads more than once.
pub fn repeated(operands: &[ValueId]) -> HashSet<ValueId> {
    let mut seen = HashSet::new();
    operands.iter().copied().filter(|v| !seen.insert(*v)).collect()
}
