//! Composites, branches and loops.

use crate::{GradError, Node, Result, pullback, zeros_like};
use ir::build::{Builder, LoopStep, V};
use ir::infer::symbols_defined_in;
use ir::prim::{Prim, Region};
use ir::{Atom, Dim, Graph, IrError, OpId, Sym, SymInfo, ValueId};
use std::collections::HashMap;

pub(crate) fn rule(b: &mut Builder, n: &Node, gs: &[Option<V>]) -> Result<Vec<Option<V>>> {
    match &n.prim {
        Prim::Call { .. } => {
            let Some(body) = n.regions.first() else { return n.fail("it has no body") };
            region(b, body, &n.operands, gs, &n.operands)
        }
        Prim::If { .. } => branches(b, n, gs),
        Prim::Loop { carried, carried_syms, .. } if carried_syms.is_empty() => steps(b, n, gs, *carried),
        Prim::Loop { .. } => n.fail("the carried values change their shapes from step to step"),
        _ => n.fail("no control op"),
    }
}

/// Runs the ops of a region once more on `args` and pulls the adjoints of its outputs back to `xs`.
fn region(b: &mut Builder, body: &Region, args: &[V], gs: &[Option<V>], xs: &[V]) -> Result<Vec<Option<V>>> {
    let from = b.graph().order.len();
    let outs = instantiate(b, body, args)?;
    let ys: Vec<(V, V)> = outs.into_iter().zip(gs).filter_map(|(y, g)| Some((y, (*g)?))).collect();
    pull_once(b, from, &ys, xs)
}

/// [`pullback`] where one value may be asked for twice: the adjoint goes to its first place only, since those of all
/// places are added up.
fn pull_once(b: &mut Builder, from: usize, ys: &[(V, V)], xs: &[V]) -> Result<Vec<Option<V>>> {
    let mut grads = pullback(b, from, ys, xs)?;
    let ids = xs.iter().map(|&x| b.resolve(x)).collect::<Result<Vec<ValueId>, IrError>>()?;
    for i in 1..ids.len() {
        if ids[..i].contains(&ids[i]) {
            grads[i] = None;
        }
    }
    Ok(grads)
}

/// The operands with a derivative: their places.
fn places(n: &Node, from: usize) -> Vec<usize> {
    (from..n.operands.len()).filter(|&i| n.wanted[i]).collect()
}

fn spread(n: &Node, places: &[usize], grads: Vec<V>) -> Vec<Option<V>> {
    let mut out = vec![None; n.operands.len()];
    for (&i, g) in places.iter().zip(grads) {
        out[i] = Some(g);
    }
    out
}

fn branches(b: &mut Builder, n: &Node, gs: &[Option<V>]) -> Result<Vec<Option<V>>> {
    let [then, otherwise] = n.regions.as_slice() else { return n.fail("it has no branches") };
    let places = places(n, 1);
    let grads =
        b.if_(n.operands[0], |b| side(b, n, then, gs, &places), |b| side(b, n, otherwise, gs, &places))?;
    Ok(spread(n, &places, grads))
}

/// The adjoints of the operands at `places` through one branch.
fn side(b: &mut Builder, n: &Node, body: &Region, gs: &[Option<V>], places: &[usize]) -> Result<Vec<V>> {
    let args = n.operands[1..].iter().map(|&v| b.resolved(v)).collect::<Result<Vec<V>, IrError>>()?;
    let from = b.graph().order.len();
    let outs = instantiate(b, body, &args)?;
    let mut ys = Vec::new();
    for (y, g) in outs.into_iter().zip(gs) {
        if let Some(g) = g {
            // the sizes of the branch at hand
            let shape = b.shape(y).to_vec();
            ys.push((y, b.reshape(*g, &shape)?));
        }
    }
    let xs: Vec<V> = places.iter().map(|&i| args[i - 1]).collect();
    let grads = pull_once(b, from, &ys, &xs)?;
    grads.into_iter().zip(&xs).map(|(g, &x)| g.map_or_else(|| zeros_like(b, x), Ok)).collect()
}

/// A loop of `n` steps with unchanging shapes. It is run again, stacking what each step starts from; then a loop runs
/// from the last step to the first, carrying the adjoints of the carried values and sums of those of the captures.
fn steps(b: &mut Builder, n: &Node, gs: &[Option<V>], carried: usize) -> Result<Vec<Option<V>>> {
    let Some(body) = n.regions.first() else { return n.fail("it has no body") };
    let (trip, cond) = (n.operands[0], n.operands[1]);
    let (initial, captures) = (n.operands[2..2 + carried].to_vec(), n.operands[2 + carried..].to_vec());
    let recorded = b.loop_::<GradError>(Some(trip), Some(cond), &initial, |b, i, values| {
        let args = arguments(b, i, values, &captures)?;
        let outs = instantiate(b, body, &args)?;
        let (Some(&cond), Some(next)) = (outs.first(), outs.get(1..1 + carried)) else {
            return n.fail("its body has too few results");
        };
        Ok(LoopStep { cond, carried: next.to_vec(), scans: [values, &[i]].concat() })
    })?;
    let records = recorded[carried..2 * carried].to_vec();
    let count = b.shape(recorded[2 * carried])[0].clone();
    // adjoints of the carried floats, then of the captured ones
    let float = |b: &Builder, v: &V| b.dtype(*v).is_float();
    let moving: Vec<usize> = (0..carried).filter(|&i| float(b, &initial[i])).collect();
    let fixed: Vec<usize> = (0..captures.len()).filter(|&i| n.wanted[2 + carried + i]).collect();
    let mut state = Vec::new();
    for &i in &moving {
        state.push(match gs.get(i).copied().flatten() {
            Some(g) => {
                let shape = b.shape(initial[i]).to_vec();
                b.reshape(g, &shape)?
            }
            None => zeros_like(b, initial[i])?,
        });
    }
    for &i in &fixed {
        state.push(zeros_like(b, captures[i])?);
    }
    let total = b.dim_value(&count)?;
    let grads = b.loop_::<GradError>(Some(total), None, &state, |b, i, adjoints| {
        let total = b.dim_value(&count)?;
        let last = b.add_scalar(total, -1.0)?;
        let step = b.sub(last, i)?;
        let values = records.iter().map(|&r| Ok(b.gather(r, step, 0)?)).collect::<Result<Vec<V>>>()?;
        let args = arguments(b, step, &values, &captures)?;
        let from = b.graph().order.len();
        let outs = instantiate(b, body, &args)?;
        let mut ys = Vec::new();
        for (&c, &g) in moving.iter().zip(adjoints) {
            ys.push((outs[1 + c], g));
        }
        for (y, g) in outs[1 + carried..].iter().zip(&gs[carried..]) {
            if let Some(g) = g {
                let g = b.gather(*g, step, 0)?;
                let shape = b.shape(*y).to_vec();
                ys.push((*y, b.reshape(g, &shape)?));
            }
        }
        let mut xs: Vec<V> = moving.iter().map(|&c| args[1 + c]).collect();
        xs.extend(fixed.iter().map(|&c| args[1 + carried + c]));
        let found = pull_once(b, from, &ys, &xs)?;
        let mut next = Vec::with_capacity(xs.len());
        for (k, g) in found.into_iter().enumerate() {
            next.push(match (g, k < moving.len()) {
                // a carried value starts from what its step makes of it, a capture sums over all steps
                (Some(g), true) => g,
                (None, true) => zeros_like(b, xs[k])?,
                (Some(g), false) => b.add(adjoints[k], g)?,
                (None, false) => adjoints[k],
            });
        }
        let go_on = b.scalar(ir::DType::Bool, 1.0)?;
        Ok(LoopStep { cond: go_on, carried: next, scans: Vec::new() })
    })?;
    let places: Vec<usize> =
        moving.iter().map(|&i| 2 + i).chain(fixed.iter().map(|&i| 2 + carried + i)).collect();
    Ok(spread(n, &places, grads))
}

/// Arguments of a loop's body as values of the graph at hand, each a value of its own: adjoints are told apart by it.
fn arguments(b: &mut Builder, i: V, values: &[V], captures: &[V]) -> Result<Vec<V>> {
    let mut args = vec![i];
    args.extend_from_slice(values);
    for &c in captures {
        args.push(b.resolved(c)?);
    }
    Ok(args)
}

/// Adds the ops of a region to the innermost graph, `args` being its inputs; symbols that it defines get new names.
pub(crate) fn instantiate(b: &mut Builder, body: &Region, args: &[V]) -> Result<Vec<V>> {
    let mut renamed = HashMap::new();
    for s in symbols_defined_in(body) {
        let info: SymInfo = b.symbols().get(s).clone();
        if let Some(new) = b.add_symbol(info).as_sym() {
            renamed.insert(s, new);
        }
    }
    let body = if renamed.is_empty() { body.clone() } else { rename(b, body, &renamed) };
    let lost = || GradError::Value { what: "an operand of a region".into() };
    let mut map: Vec<Option<V>> = vec![None; body.value_count()];
    for (&input, &arg) in body.inputs.iter().zip(args) {
        map[input.index()] = Some(arg);
    }
    let before = b.origin();
    for (_, op) in body.ops() {
        b.set_origin_id(op.origin);
        let results = match &op.prim {
            Prim::Const(id) => vec![b.const_value(*id)],
            prim => {
                let operands = op
                    .operands
                    .iter()
                    .map(|v| map[v.index()])
                    .collect::<Option<Vec<V>>>()
                    .ok_or_else(lost)?;
                b.op_with_regions(prim.clone(), &operands, op.regions.clone())?
            }
        };
        for (r, v) in op.results.iter().zip(results) {
            map[r.index()] = Some(v);
        }
    }
    b.set_origin_id(before);
    body.outputs.iter().map(|v| map[v.index()]).collect::<Option<Vec<V>>>().ok_or_else(lost)
}

/// The graph with other symbols, regions included.
fn rename(b: &Builder, graph: &Graph, names: &HashMap<Sym, Sym>) -> Graph {
    let other = |s: &mut Sym| *s = names.get(s).copied().unwrap_or(*s);
    let dim = |d: &mut Dim| {
        *d = d.subst(b.symbols(), &mut |a| match a {
            Atom::Sym(s) => names.get(s).map(|&n| Dim::from(n)),
            _ => None,
        });
    };
    let mut g = graph.clone();
    for i in 0..g.value_count() {
        g[ValueId(i as u32)].ty.shape.iter_mut().for_each(dim);
    }
    for i in 0..g.op_count() {
        let op = &mut g[OpId(i as u32)];
        op.prim.for_each_dim_mut(dim);
        match &mut op.prim {
            Prim::BindDim(s) | Prim::Compact { sym: s } => other(s),
            Prim::If { defines } | Prim::Host { defines, .. } => defines.iter_mut().for_each(other),
            Prim::Loop { defines, carried_syms, .. } => {
                defines.iter_mut().chain(carried_syms).for_each(other);
            }
            _ => {}
        }
        let regions = std::mem::take(&mut op.regions);
        g[OpId(i as u32)].regions = regions.iter().map(|r| rename(b, r, names)).collect();
    }
    g
}
