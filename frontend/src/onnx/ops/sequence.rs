//! Sequences: their structure is known at import, so these operators only rearrange what exists.

use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult, Outs, Seq, Val};
use ir::build::V;
use ir::{DType, Dim};
use std::rc::Rc;

pub static OPS: &[Op] = &[
    op("ConcatFromSequence", 11, concat_from_sequence),
    op("SequenceAt", 11, sequence_at),
    op("SequenceConstruct", 11, sequence_construct),
    op("SequenceEmpty", 11, |cx| {
        let dtype = Some(cx.dtype_attr("dtype")?.unwrap_or(DType::F32));
        Ok(sequence(dtype, Vec::new()).into())
    }),
    op("SequenceErase", 11, sequence_erase),
    op("SequenceInsert", 11, sequence_insert),
    op("SequenceLength", 11, |cx| {
        let n = cx.seq(0)?.items.len();
        Ok(cx.b.scalar_i64(n as i64)?.into())
    }),
    op("SequenceMap", 17, sequence_map),
    op("SplitToSequence", 11, split_to_sequence),
];

/// Most elements that an operator makes of one tensor, or a subgraph is laid out for.
const MAX_ITEMS: usize = 1 << 16;

fn sequence(dtype: Option<DType>, items: Vec<Val>) -> Val {
    Val::Seq(Rc::new(Seq { dtype, items }))
}

fn sequence_construct(cx: &mut NodeCx) -> OpResult {
    let mut items = Vec::new();
    for i in 0..cx.input_count() {
        let item = cx.val(i).cloned();
        items.push(item.ok_or_else(|| OpError::invalid(Code::Input, format!("input {i} is missing")))?);
    }
    let dtype = match items.first() {
        Some(Val::Tensor(v)) => Some(cx.dtype(*v)),
        _ => None,
    };
    Ok(sequence(dtype, items).into())
}

/// The position at input `i` in `0..=last`, counted from the end of `len` elements where negative.
fn position(cx: &NodeCx, i: usize, len: usize, last: usize) -> Result<Option<usize>, OpError> {
    let Some(v) = cx.opt(i)? else { return Ok(None) };
    let at = match cx.need_const_ints("the position in a sequence", v)?.as_slice() {
        [at] => *at,
        other => return Err(OpError::invalid(Code::Shape, format!("{} positions", other.len()))),
    };
    let found = if at < 0 { at + len as i64 } else { at };
    match usize::try_from(found) {
        Ok(found) if found <= last => Ok(Some(found)),
        _ => Err(OpError::invalid(Code::Input, format!("position {at} in a sequence of {len}"))),
    }
}

fn sequence_at(cx: &mut NodeCx) -> OpResult {
    let s = cx.seq(0)?;
    let n = s.items.len();
    match position(cx, 1, n, n.saturating_sub(1))?.and_then(|at| s.items.get(at)) {
        Some(v) => Ok(v.clone().into()),
        None => Err(OpError::invalid(Code::Input, format!("no such element in a sequence of {n}"))),
    }
}

fn sequence_insert(cx: &mut NodeCx) -> OpResult {
    let s = cx.seq(0)?;
    let n = s.items.len();
    let at = position(cx, 2, n, n)?.unwrap_or(n);
    let item = cx.val(1).cloned().ok_or_else(|| OpError::invalid(Code::Input, "input 1 is missing"))?;
    let dtype = match &item {
        Val::Tensor(v) => {
            let found = cx.dtype(*v);
            if s.dtype.is_some_and(|d| d != found) {
                return Err(OpError::invalid(Code::Type, format!("{found} in a sequence of another type")));
            }
            Some(found)
        }
        _ => s.dtype,
    };
    let mut items = s.items.clone();
    items.insert(at, item);
    Ok(sequence(dtype, items).into())
}

fn sequence_erase(cx: &mut NodeCx) -> OpResult {
    let s = cx.seq(0)?;
    let Some(last) = s.items.len().checked_sub(1) else {
        return Err(OpError::invalid(Code::Input, "the sequence is empty"));
    };
    let at = position(cx, 1, last + 1, last)?.unwrap_or(last);
    let mut items = s.items.clone();
    items.remove(at);
    Ok(sequence(s.dtype, items).into())
}

/// The elements of a sequence of tensors.
fn tensors(s: &Seq) -> Result<Vec<V>, OpError> {
    let tensor = |v: &Val| match v {
        Val::Tensor(v) => Ok(*v),
        _ => Err(OpError::invalid(Code::Type, "the sequence should hold tensors")),
    };
    s.items.iter().map(tensor).collect()
}

fn concat_from_sequence(cx: &mut NodeCx) -> OpResult {
    let mut parts = tensors(&*cx.seq(0)?)?;
    let Some(&first) = parts.first() else {
        return Err(OpError::invalid(Code::Input, "the sequence is empty"));
    };
    let new = cx.flag("new_axis", false)?;
    let rank = cx.rank(first) + usize::from(new);
    let axis = cx.axis(cx.need_int("axis")?, rank)?;
    if new {
        for p in &mut parts {
            *p = cx.b.unsqueeze(*p, &[axis as i64])?;
        }
    }
    Ok(cx.b.concat(&parts, axis)?.into())
}

fn split_to_sequence(cx: &mut NodeCx) -> OpResult {
    let (x, split) = (cx.input(0)?, cx.opt(1)?);
    let rank = cx.rank(x);
    let axis = cx.axis_attr("axis", 0, rank)?;
    let extent = cx.dim(x, axis)?;
    let known = || {
        extent.as_const().ok_or_else(|| {
            OpError::unsupported(
                Code::Dynamic,
                "a number of parts that is only known when the model is executed",
            )
            .hint("fix the size of the axis that is split")
        })
    };
    let equal = |total: i64, size: i64| -> Result<Vec<Dim>, OpError> {
        if size < 1 || total / size >= MAX_ITEMS as i64 {
            return Err(OpError::invalid(Code::Input, format!("parts of {size} of {total}")));
        }
        Ok((0..total).step_by(size as usize).map(|at| Dim::from(size.min(total - at))).collect())
    };
    let (sizes, single) = match split {
        None => (equal(known()?, 1)?, true),
        Some(s) => {
            let parts = cx.need_const_ints("the sizes of the parts", s)?;
            if cx.rank(s) == 0 {
                (equal(known()?, parts.first().copied().unwrap_or(0))?, false)
            } else if parts.len() > MAX_ITEMS || parts.iter().any(|p| !(0..=Dim::LIMIT).contains(p)) {
                return Err(OpError::invalid(Code::Input, "sizes of the parts"));
            } else {
                (parts.into_iter().map(Dim::from).collect(), false)
            }
        }
    };
    // the axis goes only where every part has one element by definition
    let drop = single && !cx.flag("keepdims", true)?;
    let total = sizes.iter().fold(Dim::from(0), |a, s| a + s);
    if total.as_const() != extent.as_const() && extent.as_const().is_some() {
        return Err(OpError::invalid(Code::Shape, "the parts do not add up to the axis"));
    }
    let dtype = cx.dtype(x);
    let mut items = Vec::new();
    for p in cx.b.split(x, axis, &sizes)? {
        items.push(Val::Tensor(if drop { cx.b.squeeze(p, &[axis as i64])? } else { p }));
    }
    Ok(sequence(Some(dtype), items).into())
}

/// The body for every element; further sequences go along, tensors are the same for all.
fn sequence_map(cx: &mut NodeCx) -> OpResult {
    let body = cx.need_graph("body")?;
    let n = cx.seq(0)?.items.len();
    if n > MAX_ITEMS {
        return Err(OpError::limit(format!("a subgraph for {n} elements")));
    }
    let mut results: Vec<Vec<Val>> = vec![Vec::with_capacity(n); body.output.len()];
    for i in 0..n {
        let mut inputs = Vec::new();
        for k in 0..cx.input_count() {
            inputs.push(match cx.val(k) {
                Some(Val::Seq(s)) => s.items.get(i).cloned().ok_or_else(|| {
                    OpError::invalid(
                        Code::Input,
                        format!("input {k} has {} elements, input 0 {n}", s.items.len()),
                    )
                })?,
                Some(v) => v.clone(),
                None => return Err(OpError::invalid(Code::Input, format!("input {k} is missing"))),
            });
        }
        let outs = cx.imp.subgraph(cx.b, &format!("body_{i}"), body, inputs)?;
        for (r, v) in results.iter_mut().zip(outs) {
            r.push(v);
        }
    }
    let declared = body.output.iter().map(|o| crate::onnx::inputs::element_dtype(o.type_.get_or_default()));
    Ok(Outs(results.into_iter().zip(declared).map(|(items, dtype)| sequence(dtype, items)).collect()))
}
