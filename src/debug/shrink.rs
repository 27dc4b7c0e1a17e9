//! Makes a model smaller while something about it stays as it is.
//!
//! Steps: one output; outputs further up; values computed elsewhere become inputs that hold what was computed;
//! ops bypassed; unused inputs dropped; symbols fixed; extents made smaller everywhere at once. A step counts if the
//! verifier and the reference interpreter accept the result and the predicate holds on it.

use super::Repro;
use ir::graph::Def;
use ir::{Atom, ConstId, ConstSource, Dim, Graph, Module, Op, Prim, Tensor, ValueId};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// The smallest model found in the time.
pub fn shrink(start: &Repro, limit: Duration, holds: &mut dyn FnMut(&Repro) -> bool) -> Repro {
    let end = Instant::now() + limit;
    let mut best = start.clone();
    loop {
        let before = size(&best);
        for step in
            [one_set, one_output, earlier_outputs, cut_prefix, cut_each, bypass, drop_inputs, fix_symbols]
        {
            reduce(&mut best, end, holds, &step);
        }
        reduce(&mut best, end, holds, &smaller_extents);
        if size(&best) >= before || Instant::now() >= end {
            return best;
        }
    }
}

/// What is made smaller: ops, inputs and outputs, elements, symbols.
fn size(r: &Repro) -> (usize, usize, usize, usize) {
    let g = &r.module.graph;
    let elems = r.sets.iter().flatten().map(Tensor::elems).sum();
    (r.ops(), g.inputs.len() + g.outputs.len(), elems, used_symbols(&r.module).len())
}

type Step = dyn Fn(&Repro) -> Vec<Repro>;

/// Applies a step until none of its candidates is accepted.
fn reduce(best: &mut Repro, end: Instant, holds: &mut dyn FnMut(&Repro) -> bool, step: &Step) {
    'again: loop {
        for candidate in step(best) {
            if Instant::now() >= end {
                return;
            }
            if size(&candidate) < size(best) && sound(&candidate) && holds(&candidate) {
                *best = candidate;
                continue 'again;
            }
        }
        return;
    }
}

/// The verifier and the interpreter accept it.
fn sound(r: &Repro) -> bool {
    ir::verify::graph::verify(&r.module).is_ok()
        && r.sets.iter().all(|s| interp::Interp::new(&r.module).run(s).is_ok())
}

fn used_symbols(m: &Module) -> HashSet<ir::Sym> {
    let mut used = HashSet::new();
    for &v in &m.graph.inputs {
        for d in &m.graph[v].ty.shape {
            d.visit_atoms(&mut |a| {
                if let Atom::Sym(s) = a {
                    used.insert(*s);
                }
            });
        }
    }
    used
}

// ---- rebuilding --------------------------------------------------------------------------------

/// The graph from `cut` values (inputs from now on) to `outputs`, without what neither needs.
fn rebuild(r: &Repro, outputs: &[ValueId], cut: &HashSet<ValueId>, drop_effects: bool) -> Option<Repro> {
    let values = if cut.is_empty() { Vec::new() } else { r.values().ok()? };
    let of = |set: usize, v: ValueId| values.get(set)?.get(v.index())?.clone();
    rebuild_with(r, outputs, cut, drop_effects, &of)
}

/// The part of a model that computes `outputs` from the values in `cut`, whose tensors (of the one set of inputs) are
/// `known`, and from constants.
pub fn cut(
    r: &Repro,
    outputs: &[ValueId],
    cut: &HashSet<ValueId>,
    known: &HashMap<ValueId, Tensor>,
) -> Option<Repro> {
    let part = rebuild_with(r, outputs, cut, true, &|_, v| known.get(&v).cloned())?;
    drop_inputs(&part).into_iter().next().or(Some(part))
}

/// As [`rebuild`]; `values` gives what was computed, by set.
fn rebuild_with(
    r: &Repro,
    outputs: &[ValueId],
    cut: &HashSet<ValueId>,
    drop_effects: bool,
    values: &dyn Fn(usize, ValueId) -> Option<Tensor>,
) -> Option<Repro> {
    let old = &r.module.graph;
    let mut needed: HashSet<ValueId> = outputs.iter().copied().collect();
    let mut keep = Vec::new();
    for (id, op) in old.ops().rev() {
        let effect = op.prim.has_effect() && !drop_effects;
        let wanted = op.results.iter().any(|v| needed.contains(v) && !cut.contains(v));
        if wanted || effect && op.operands.iter().all(|v| !cut.contains(v)) {
            needed.extend(&op.operands);
            keep.push(id);
        }
    }
    keep.reverse();
    let mut new = Graph::new(old.name.clone());
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    let mut sets: Vec<Vec<Tensor>> = vec![Vec::new(); r.sets.len()];
    let mut names: HashSet<String> = HashSet::new();
    for (i, &v) in old.inputs.iter().enumerate() {
        names.extend(old[v].name.clone());
        map.insert(v, new.add_input(old[v].name.clone(), old[v].ty.clone()));
        for (set, all) in sets.iter_mut().zip(&r.sets) {
            set.push(all[i].clone());
        }
    }
    for (id, _) in old.ops() {
        for &v in old[id].results.iter().filter(|v| cut.contains(v) && needed.contains(v)) {
            let mut name = format!("c{}", names.len());
            while !names.insert(name.clone()) {
                name.push('_');
            }
            map.insert(v, new.add_input(Some(name), old[v].ty.clone()));
            for (i, set) in sets.iter_mut().enumerate() {
                set.push(values(i, v)?);
            }
        }
    }
    for id in keep {
        let op = &old[id];
        let operands = op.operands.iter().map(|v| map.get(v).copied()).collect::<Option<Vec<_>>>()?;
        let types = op.results.iter().map(|&v| old[v].ty.clone()).collect();
        let copy = new.push_op(op.prim.clone(), operands, op.regions.clone(), types, op.origin);
        for (&from, &to) in op.results.iter().zip(&new[copy].results.clone()) {
            if !cut.contains(&from) {
                map.insert(from, to);
            }
        }
    }
    new.outputs = outputs.iter().map(|v| map.get(v).copied()).collect::<Option<Vec<_>>>()?;
    let mut module = r.module.clone();
    module.output_names = (0..outputs.len()).map(|i| format!("out{i}")).collect();
    module.graph = new;
    drop_consts(&mut module);
    Some(Repro { module, sets })
}

/// Drops the constants that nothing reads any more.
fn drop_consts(m: &mut Module) {
    fn renumber(g: &mut Graph, new: &mut HashMap<ConstId, ConstId>) {
        for id in g.order.clone() {
            if let Prim::Const(c) = &mut g[id].prim {
                let next = ConstId(new.len() as u32);
                *c = *new.entry(*c).or_insert(next);
            }
            g[id].regions.iter_mut().for_each(|r| renumber(r, new));
        }
    }
    let mut new = HashMap::new();
    renumber(&mut m.graph, &mut new);
    let mut order: Vec<(ConstId, ConstId)> = new.into_iter().map(|(old, new)| (new, old)).collect();
    order.sort_unstable_by_key(|(new, _)| new.0);
    m.consts = order.iter().map(|(_, old)| m.consts[old.0 as usize].clone()).collect();
}

// ---- steps -------------------------------------------------------------------------------------

fn one_set(r: &Repro) -> Vec<Repro> {
    if r.sets.len() < 2 {
        return Vec::new();
    }
    r.sets.iter().map(|s| Repro { module: r.module.clone(), sets: vec![s.clone()] }).collect()
}

fn one_output(r: &Repro) -> Vec<Repro> {
    let outputs = &r.module.graph.outputs;
    if outputs.len() < 2 {
        return Vec::new();
    }
    outputs.iter().filter_map(|&v| rebuild(r, &[v], &HashSet::new(), false)).collect()
}

/// Operands of the op that gives an output in its place.
fn earlier_outputs(r: &Repro) -> Vec<Repro> {
    let g = &r.module.graph;
    let [out] = g.outputs.as_slice() else { return Vec::new() };
    let Some(op) = g.def_op(*out) else { return Vec::new() };
    let mut candidates = Vec::new();
    // whole operands first, then all of them together
    for &v in &g[op].operands {
        if g.def_op(v).is_some() {
            candidates.extend(rebuild(r, &[v], &HashSet::new(), false));
        }
    }
    candidates
}

/// Everything before a place becomes inputs.
fn cut_prefix(r: &Repro) -> Vec<Repro> {
    let g = &r.module.graph;
    let n = g.order.len();
    let mut candidates = Vec::new();
    for eighths in [7, 6, 5, 4, 3, 2, 1] {
        let until = n * eighths / 8;
        let cut: HashSet<ValueId> = (g.ops().take(until))
            .filter(|(_, op)| !matches!(op.prim, Prim::Const(_)))
            .flat_map(|(_, op)| op.results.clone())
            .collect();
        if !cut.is_empty() {
            candidates.extend(rebuild(r, &g.outputs.clone(), &cut, false));
        }
    }
    candidates
}

/// The results of one op become inputs, late ones first.
fn cut_each(r: &Repro) -> Vec<Repro> {
    let g = &r.module.graph;
    let cut = |op: &Op| -> HashSet<ValueId> { op.results.iter().copied().collect() };
    let mut candidates: Vec<Repro> = (g.ops().rev())
        .filter(|(_, op)| !op.results.is_empty() && op.operands.len() + op.regions.len() > 0)
        .filter_map(|(_, op)| rebuild(r, &g.outputs, &cut(op), false))
        .collect();
    candidates.extend(rebuild(r, &g.outputs, &HashSet::new(), true));
    candidates
}

/// An operand of the result's type in place of the result.
fn bypass(r: &Repro) -> Vec<Repro> {
    let g = &r.module.graph;
    let mut candidates = Vec::new();
    for (_, op) in g.ops() {
        let [result] = op.results.as_slice() else { continue };
        for &v in op.operands.iter().filter(|&&v| g[v].ty == g[*result].ty) {
            let mut next = r.clone();
            next.module.graph.replace_uses(*result, v);
            let outputs = next.module.graph.outputs.clone();
            candidates.extend(rebuild(&next, &outputs, &HashSet::new(), false));
        }
    }
    candidates
}

fn drop_inputs(r: &Repro) -> Vec<Repro> {
    let g = &r.module.graph;
    let uses = g.uses();
    let unused = |v: &ValueId| uses[v.index()].is_empty() && !g.outputs.contains(v);
    let drop = |skip: &dyn Fn(usize) -> bool| -> Option<Repro> {
        let mut next = r.clone();
        let mut new = Graph::new(g.name.clone());
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        for (i, &v) in g.inputs.iter().enumerate().filter(|(i, _)| !skip(*i)) {
            let _ = i;
            map.insert(v, new.add_input(g[v].name.clone(), g[v].ty.clone()));
        }
        for (_, op) in g.ops() {
            let operands = op.operands.iter().map(|v| map.get(v).copied()).collect::<Option<Vec<_>>>()?;
            let types = op.results.iter().map(|&v| g[v].ty.clone()).collect();
            let copy = new.push_op(op.prim.clone(), operands, op.regions.clone(), types, op.origin);
            for (&from, &to) in op.results.iter().zip(&new[copy].results.clone()) {
                map.insert(from, to);
            }
        }
        new.outputs = g.outputs.iter().map(|v| map.get(v).copied()).collect::<Option<Vec<_>>>()?;
        next.module.graph = new;
        for set in &mut next.sets {
            let mut i = 0;
            set.retain(|_| {
                i += 1;
                !skip(i - 1)
            });
        }
        Some(next)
    };
    let idle: Vec<usize> = (0..g.inputs.len()).filter(|&i| unused(&g.inputs[i])).collect();
    let mut candidates: Vec<Repro> = Vec::new();
    if idle.len() > 1 {
        candidates.extend(drop(&|i| idle.contains(&i)));
    }
    candidates.extend(idle.iter().filter_map(|&gone| drop(&|i| i == gone)));
    candidates
}

/// A symbol of the inputs becomes the size that it has.
fn fix_symbols(r: &Repro) -> Vec<Repro> {
    if r.sets.len() != 1 {
        return Vec::new();
    }
    let fix = |(s, n): (ir::Sym, i64)| {
        let mut next = r.clone();
        let symbols = r.module.symbols.clone();
        let mut set = |d: &mut Dim| {
            *d = d.subst(&symbols, &mut |a| (*a == Atom::Sym(s)).then(|| Dim::from(n)));
        };
        map_dims(&mut next.module.graph, &mut set);
        next
    };
    r.sizes(0).into_iter().map(fix).collect()
}

/// Every extent of one size, wherever it stands, becomes a smaller one.
fn smaller_extents(r: &Repro) -> Vec<Repro> {
    if r.sets.len() != 1 {
        return Vec::new();
    }
    let mut extents: Vec<i64> = Vec::new();
    let g = &r.module.graph;
    for d in g.inputs.iter().flat_map(|&v| &g[v].ty.shape) {
        if let Some(n) = d.as_const().filter(|&n| n > 1 && !extents.contains(&n)) {
            extents.push(n);
        }
    }
    extents.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
    let mut candidates = Vec::new();
    for n in extents {
        for to in [1, 2, 3, n / 4, n / 2, n - 1] {
            if to >= 1 && to < n {
                candidates.extend(resize(r, n, to));
            }
        }
    }
    candidates
}

fn resize(r: &Repro, from: i64, to: i64) -> Option<Repro> {
    let mut next = r.clone();
    let mut set = |d: &mut Dim| {
        if d.is_const(from) {
            *d = Dim::from(to);
        }
    };
    map_dims(&mut next.module.graph, &mut set);
    let size = |n: &usize| if *n as i64 == from { to as usize } else { *n };
    for c in &mut next.module.consts {
        let shape: Vec<usize> = c.shape.iter().map(size).collect();
        if shape != c.shape {
            if !matches!(c.source, ConstSource::Splat(_)) {
                let t = crop(&interp::materialise(c).ok()?, &shape);
                c.source = ConstSource::Bytes(std::sync::Arc::new(t.data));
            }
            c.shape = shape;
        }
    }
    for t in next.sets.iter_mut().flatten() {
        let shape: Vec<usize> = t.shape.iter().map(size).collect();
        *t = crop(t, &shape);
    }
    Some(next)
}

/// The first elements of every axis.
fn crop(t: &Tensor, shape: &[usize]) -> Tensor {
    if t.shape == shape {
        return t.clone();
    }
    let mut out = Tensor::zeros(t.dtype, shape.to_vec());
    let unit = t.dtype.bytes();
    let mut index = vec![0usize; shape.len()];
    for chunk in out.data.chunks_exact_mut(unit.max(1)) {
        let at = index.iter().zip(&t.shape).fold(0, |at, (&i, &n)| at * n + i) * unit;
        if let Some(b) = t.data.get(at..at + unit) {
            chunk.copy_from_slice(b);
        }
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    out
}

/// Every size of a graph: in types, in attributes, in regions.
fn map_dims(g: &mut Graph, f: &mut dyn FnMut(&mut Dim)) {
    for i in 0..g.value_count() {
        let v = ValueId(i as u32);
        if matches!(g[v].def, Def::Input(_) | Def::Op(..)) {
            g[v].ty.shape.iter_mut().for_each(&mut *f);
        }
    }
    for id in g.order.clone() {
        g[id].prim.for_each_dim_mut(&mut *f);
        for region in &mut g[id].regions {
            map_dims(region, f);
        }
    }
}
