//! Control flow: If, Loop, Scan.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Outs, Val};
use ir::build::{Builder, LoopStep, V};
use ir::{DType, Dim};
use onnx_protobuf::GraphProto;

pub static OPS: &[Op] = &[op("If", 1, if_), op("Loop", 1, loop_), op("Scan", 8, scan)];

/// The tensors among the outputs of a subgraph, which must be all of them.
fn tensors(vals: Vec<Val>) -> Result<Vec<V>, OpError> {
    vals.into_iter()
        .map(|v| match v {
            Val::Tensor(v) => Ok(v),
            _ => Err(OpError::unsupported(
                Code::Dynamic,
                "sequences and optionals that leave a subgraph at run time",
            )
            .hint("make the condition or the trip count a constant")),
        })
        .collect()
}

/// Where the condition is a constant, only the branch that is taken exists.
fn if_(cx: &mut NodeCx) -> OpResult {
    let cond = cx.input(0)?;
    let (then, otherwise) = (cx.need_graph("then_branch")?, cx.need_graph("else_branch")?);
    let cond = cx.as_scalar(cond)?;
    if let Some([c]) = cx.b.known_ints(cond).as_deref() {
        let (label, graph) = if *c != 0 { ("then_branch", then) } else { ("else_branch", otherwise) };
        return Ok(Outs(cx.imp.subgraph(cx.b, label, graph, Vec::new())?));
    }
    let depth = cx.b.depth();
    let mut branch = |label: &'static str, graph| -> Result<_, OpError> {
        cx.b.begin_region(label);
        let done = cx.imp.subgraph(cx.b, label, graph, Vec::new()).and_then(tensors).and_then(|outs| {
            let types: Vec<_> = outs.iter().map(|&v| cx.b.ty(v).clone()).collect();
            Ok((cx.b.end_region(&outs)?, types))
        });
        if done.is_err() {
            cx.b.abandon_regions(depth);
        }
        done
    };
    // both branches are imported even if the first is in error: all problems at once
    let (a, b) = (branch("then_branch", then), branch("else_branch", otherwise));
    let ((then, then_types), (otherwise, else_types)) = match (a, b) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(mut a), Err(b)) => {
            a.nested.extend(b.nested);
            return Err(a);
        }
        (Err(e), _) | (_, Err(e)) => return Err(e),
    };
    if then_types.len() != else_types.len() {
        return Err(OpError::invalid(
            Code::Shape,
            format!("the branches have {} and {} outputs", then_types.len(), else_types.len()),
        ));
    }
    for (i, (a, b)) in then_types.iter().zip(&else_types).enumerate() {
        if a.rank() != b.rank() {
            return Err(OpError::unsupported(
                Code::Dynamic,
                format!("output {i} has rank {} in one branch and {} in the other", a.rank(), b.rank()),
            )
            .hint("which branch is taken has to be known at compile time: make the condition a constant"));
        }
    }
    Ok(cx.b.finish_if(cond, then, otherwise)?.into())
}

/// Most iterations that are laid out one after the other.
const MAX_UNROLLED: i64 = 1024;

fn loop_(cx: &mut NodeCx) -> OpResult {
    let body = cx.need_graph("body")?;
    let (trip, cond) = (cx.opt(0)?, cx.opt(1)?);
    let carried: Vec<Val> = (2..cx.input_count())
        .map(|i| {
            cx.val(i).cloned().ok_or_else(|| OpError::invalid(Code::Input, format!("input {i} is missing")))
        })
        .collect::<Result<_, _>>()?;
    let scans = (body.output.len()).checked_sub(1 + carried.len()).ok_or_else(|| {
        OpError::invalid(
            Code::Shape,
            format!("the body has {} outputs for {} carried values", body.output.len(), carried.len()),
        )
    })?;
    let needs_unroll = carried.iter().any(|v| !matches!(v, Val::Tensor(_)));
    if needs_unroll {
        return unrolled(cx, body, trip, cond, carried, scans);
    }
    let carried = tensors(carried)?;
    let imp = &mut *cx.imp;
    let result = cx.b.loop_(trip, cond, &carried, |b: &mut Builder, iteration, args| {
        let mut inputs: Vec<Val> = vec![iteration.into()];
        // a body runs only while the condition is true
        let yes = b.scalar(DType::Bool, 1.0)?;
        inputs.push(yes.into());
        inputs.extend(args.iter().map(|&v| Val::Tensor(v)));
        let mut outs = tensors(imp.subgraph(b, "body", body, inputs)?)?.into_iter();
        let cond = outs.next().ok_or_else(|| OpError::invalid(Code::Shape, "the body has no outputs"))?;
        let carried = outs.by_ref().take(args.len()).collect();
        Ok::<_, OpError>(LoopStep { cond, carried, scans: outs.collect() })
    })?;
    Ok(result.into())
}

/// A loop whose trip count and conditions are constants, one iteration after the other: what carries
/// sequences.
fn unrolled<'m>(
    cx: &mut NodeCx<'_, 'm>,
    body: &'m GraphProto,
    trip: Option<V>,
    cond: Option<V>,
    mut carried: Vec<Val>,
    scans: usize,
) -> OpResult {
    let dynamic = |what: &str| {
        OpError::unsupported(
            Code::Dynamic,
            format!("a loop over sequences whose {what} is only known when it is executed"),
        )
        .hint("make the trip count a constant")
    };
    let one = |cx: &NodeCx, v: V| match cx.b.known_ints(v).as_deref() {
        Some([n]) => Some(*n),
        _ => None,
    };
    let trip = match trip {
        Some(v) => one(cx, v).ok_or_else(|| dynamic("trip count"))?,
        None => i64::MAX,
    };
    let mut go_on = match cond {
        Some(v) => one(cx, v).ok_or_else(|| dynamic("condition"))? != 0,
        None => true,
    };
    let mut stacked: Vec<Vec<V>> = vec![Vec::new(); scans];
    let mut i = 0;
    while go_on && i < trip {
        if i >= MAX_UNROLLED {
            return Err(OpError::limit(format!(
                "a loop over sequences with more than {MAX_UNROLLED} iterations"
            )));
        }
        let iteration = cx.b.scalar_i64(i)?;
        let yes = cx.b.scalar(DType::Bool, 1.0)?;
        let inputs = [vec![iteration.into(), yes.into()], carried].concat();
        let mut outs = cx.imp.subgraph(cx.b, "body", body, inputs)?.into_iter();
        let n = outs.len() - 1 - scans;
        match outs.next() {
            Some(Val::Tensor(c)) => go_on = one(cx, c).ok_or_else(|| dynamic("condition"))? != 0,
            _ => return Err(OpError::invalid(Code::Type, "the condition is not a tensor")),
        }
        carried = outs.by_ref().take(n).collect();
        for (s, v) in stacked.iter_mut().zip(tensors(outs.collect())?) {
            s.push(cx.b.unsqueeze(v, &[0])?);
        }
        i += 1;
    }
    let mut out = carried;
    for s in stacked {
        if s.is_empty() {
            return Err(OpError::unsupported(Code::Dynamic, "scan outputs of a loop that is never entered"));
        }
        out.push(cx.b.concat(&s, 0)?.into());
    }
    Ok(Outs(out))
}

/// Per scan input or output: an axis and whether it runs backwards.
fn scan_lists(cx: &NodeCx, axes: &str, directions: &str, n: usize) -> Result<(Vec<i64>, Vec<bool>), OpError> {
    let list = |name: &str| -> Result<Vec<i64>, OpError> {
        match cx.ints(name)? {
            None => Ok(vec![0; n]),
            Some(v) if v.len() == n => Ok(v),
            Some(v) => Err(OpError::invalid(
                Code::Attribute,
                format!("{name} has {} elements, expected {n}", v.len()),
            )),
        }
    };
    Ok((list(axes)?, list(directions)?.into_iter().map(|d| d != 0).collect()))
}

/// A loop over slices of the scan inputs. Version 8 has a batch dim in front of everything, and
/// sequence lengths.
fn scan(cx: &mut NodeCx) -> OpResult {
    let body = cx.need_graph("body")?;
    let n = usize::try_from(cx.need_int("num_scan_inputs")?)
        .map_err(|_| OpError::invalid(Code::Attribute, "a negative num_scan_inputs"))?;
    let first = usize::from(cx.opset < 9);
    let all: Vec<V> = (first..cx.input_count()).map(|i| cx.input(i)).collect::<Result<_, _>>()?;
    let states = all.len().checked_sub(n).ok_or_else(|| OpError::invalid(Code::Input, "too few inputs"))?;
    let outs = body.output.len().checked_sub(states).ok_or_else(|| {
        OpError::invalid(
            Code::Shape,
            format!("the body has {} outputs for {states} states", body.output.len()),
        )
    })?;
    if n == 0 {
        return Err(OpError::invalid(Code::Attribute, "no scan inputs"));
    }
    if cx.opset < 9 {
        if cx.opt(0)?.is_some() {
            return Err(OpError::unsupported(Code::Input, "sequence lengths of Scan-8"));
        }
        return scan_batched(cx, body, &all, states, outs);
    }
    let (in_axes, in_back) = scan_lists(cx, "scan_input_axes", "scan_input_directions", n)?;
    let (out_axes, out_back) = scan_lists(cx, "scan_output_axes", "scan_output_directions", outs)?;
    let mut inputs = Vec::new();
    for (i, &x) in all[states..].iter().enumerate() {
        inputs.push((x, cx.axis(in_axes[i], cx.rank(x))?, in_back[i]));
    }
    let results = scan_loop(cx, body, &all[..states], &inputs)?;
    let (finals, stacked) = results.split_at(states);
    let mut out = finals.to_vec();
    for (i, &v) in stacked.iter().enumerate() {
        let v = if out_back[i] { cx.b.reverse(v, 0)? } else { v };
        let rank = cx.rank(v);
        let axis = cx.axis(out_axes[i], rank)?;
        let mut perm: Vec<usize> = (1..rank).collect();
        perm.insert(axis, 0);
        out.push(cx.b.transpose(v, &perm)?);
    }
    Ok(out.into())
}

/// The loop itself: scan inputs with their axis and direction. Results: final states, stacked outputs.
fn scan_loop<'m>(
    cx: &mut NodeCx<'_, 'm>,
    body: &'m GraphProto,
    states: &[V],
    inputs: &[(V, usize, bool)],
) -> Result<Vec<V>, OpError> {
    let Some(&(x, axis, _)) = inputs.first() else {
        return Err(OpError::invalid(Code::Attribute, "no scan inputs"));
    };
    let count = cx.dim(x, axis)?;
    let trip = cx.b.dim_value(&count)?;
    let imp = &mut *cx.imp;
    cx.b.loop_(Some(trip), None, states, |b: &mut Builder, iteration, args| {
        let mut vals: Vec<Val> = args.iter().map(|&v| Val::Tensor(v)).collect();
        for &(x, axis, backwards) in inputs {
            let mut at = iteration;
            if backwards {
                let last = b.dim_value(&(&count - &Dim::from(1)))?;
                at = b.sub(last, at)?;
            }
            vals.push(b.gather(x, at, axis)?.into());
        }
        let mut outs = tensors(imp.subgraph(b, "body", body, vals)?)?.into_iter();
        let carried = outs.by_ref().take(args.len()).collect();
        Ok::<_, OpError>(LoopStep { cond: b.scalar(DType::Bool, 1.0)?, carried, scans: outs.collect() })
    })
}

/// Scan-8: one scan for each element of the batch, which has to be static.
fn scan_batched<'m>(
    cx: &mut NodeCx<'_, 'm>,
    body: &'m GraphProto,
    all: &[V],
    states: usize,
    outs: usize,
) -> OpResult {
    let directions = cx.ints("directions")?.unwrap_or_else(|| vec![0; all.len() - states]);
    if directions.len() != all.len() - states {
        return Err(OpError::invalid(Code::Attribute, format!("{} directions", directions.len())));
    }
    let batch = match all.first().and_then(|&v| cx.shape(v).first().cloned()) {
        Some(b) => b.as_const().filter(|&b| (1..=MAX_UNROLLED).contains(&b)).ok_or_else(|| {
            OpError::unsupported(
                Code::Dynamic,
                "Scan-8 over a batch of a size only known when the model is executed",
            )
        })?,
        None => return Err(OpError::invalid(Code::Shape, "the inputs have no batch dim")),
    };
    let mut parts: Vec<Vec<V>> = vec![Vec::new(); states + outs];
    for i in 0..batch {
        let of = |cx: &mut NodeCx, v: V| cx.b.index_axis(v, 0, &Dim::from(i));
        let state = all[..states].iter().map(|&v| of(cx, v)).collect::<Result<Vec<_>, _>>()?;
        let mut inputs = Vec::new();
        for (&v, &d) in all[states..].iter().zip(&directions) {
            inputs.push((of(cx, v)?, 0, d != 0));
        }
        for (p, v) in parts.iter_mut().zip(scan_loop(cx, body, &state, &inputs)?) {
            p.push(cx.b.unsqueeze(v, &[0])?);
        }
    }
    parts.iter().map(|p| Ok(cx.b.concat(p, 0)?)).collect::<Result<Vec<V>, OpError>>().map(Into::into)
}
