//! Einsum and determinants.

use super::compose;
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, LoopStep, V};
use ir::{DType, Dim, IrError, Result};

pub static OPS: &[Op] = &[op("Det", 11, det), op("Einsum", 12, einsum)];

/// The label of an axis: a letter, or a place in the ellipsis counted from its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// Labels of a term for an operand of `rank` (of the output, where none is given).
fn labels(term: &str, rank: Option<usize>, ellipsis: usize) -> Result<Vec<Label>, OpError> {
    let bad = |m: String| OpError::invalid(Code::Attribute, m);
    let mut out = Vec::new();
    let letters = term.chars().filter(|c| *c != '.').count();
    let mut rest = term;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("...") {
            let n = match rank {
                Some(r) => {
                    r.checked_sub(letters).ok_or_else(|| bad(format!("term {term:?} for rank {r}")))?
                }
                None => ellipsis,
            };
            out.extend((0..n).rev().map(Label::Ellipsis));
            rest = after;
        } else if c.is_ascii_alphabetic() {
            out.push(Label::Letter(c));
            rest = &rest[1..];
        } else {
            return Err(bad(format!("{c:?} in the equation")));
        }
    }
    match rank {
        Some(r) if out.len() != r => Err(bad(format!("term {term:?} for an operand of rank {r}"))),
        _ => Ok(out),
    }
}

/// A parsed equation: labels of the operands and of the result.
fn parse(equation: &str, ranks: &[usize]) -> Result<(Vec<Vec<Label>>, Vec<Label>), OpError> {
    let bad = |m: String| OpError::invalid(Code::Attribute, m);
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != ranks.len() {
        return Err(bad(format!("{} terms for {} operands", terms.len(), ranks.len())));
    }
    let operands =
        terms.iter().zip(ranks).map(|(t, &r)| labels(t, Some(r), 0)).collect::<Result<Vec<_>, _>>()?;
    let all: Vec<Label> = operands.iter().flatten().copied().collect();
    let ellipsis =
        all.iter().filter_map(|l| if let Label::Ellipsis(i) = l { Some(i + 1) } else { None }).max();
    let output = match right {
        Some(r) => labels(r, None, ellipsis.unwrap_or(0))?,
        None => {
            // the ellipsis first, then what occurs once, sorted
            let mut once: Vec<Label> = all
                .iter()
                .copied()
                .filter(|l| matches!(l, Label::Letter(_)) && all.iter().filter(|x| *x == l).count() == 1)
                .collect();
            once.sort_unstable();
            (0..ellipsis.unwrap_or(0)).rev().map(Label::Ellipsis).chain(once).collect()
        }
    };
    for (i, l) in output.iter().enumerate() {
        if !all.contains(l) || output[..i].contains(l) {
            return Err(bad(format!("{l:?} in the result of {equation:?}")));
        }
    }
    Ok((operands, output))
}

/// The operand with each label once: repeated ones select the diagonal.
fn diagonal(b: &mut Builder, mut x: V, labels: &mut Vec<Label>) -> Result<V> {
    while let Some((i, j)) =
        (0..labels.len()).find_map(|j| labels[..j].iter().position(|l| *l == labels[j]).map(|i| (i, j)))
    {
        let shape = b.shape(x).to_vec();
        let rank = shape.len();
        let (p, q) = (
            compose::arange(b, DType::I64, &shape[i], i, rank)?,
            compose::arange(b, DType::I64, &shape[j], j, rank)?,
        );
        let on = b.eq(p, q)?;
        let zero = b.scalar(b.dtype(x), 0.0)?;
        let kept = b.select(on, x, zero)?;
        x = b.reduce_sum(kept, &[j], false)?;
        labels.remove(j);
    }
    Ok(x)
}

/// Sums over the axes whose label nobody else wants.
fn drop_axes(b: &mut Builder, x: V, labels: &mut Vec<Label>, keep: &dyn Fn(Label) -> bool) -> Result<V> {
    let axes: Vec<usize> = (0..labels.len()).filter(|&i| !keep(labels[i])).collect();
    labels.retain(|&l| keep(l));
    b.reduce_sum(x, &axes, false)
}

/// Drops axes of extent 1 whose label has another extent elsewhere: they broadcast.
fn drop_ones(b: &mut Builder, x: V, labels: &mut Vec<Label>, other: V, others: &[Label]) -> Result<V> {
    let axes: Vec<usize> = (0..labels.len())
        .filter(|&i| {
            let Some(j) = others.iter().position(|l| *l == labels[i]) else { return false };
            b.shape(x)[i].is_const(1) && !b.shape(other)[j].is_const(1)
        })
        .collect();
    let mut at = 0;
    labels.retain(|_| {
        at += 1;
        !axes.contains(&(at - 1))
    });
    let axes: Vec<i64> = axes.into_iter().map(|a| a as i64).collect();
    b.squeeze(x, &axes)
}

fn einsum(cx: &mut NodeCx) -> OpResult {
    let operands = cx.all_inputs()?;
    let equation = cx.string("equation", "")?;
    let ranks: Vec<usize> = operands.iter().map(|&v| cx.rank(v)).collect();
    let (terms, output) = parse(equation, &ranks)?;
    let attrs = vec![("equation".to_owned(), ir::prim::Attr::Str(equation.to_owned()))];
    let y = compose::call_n(cx.b, "einsum", attrs, &operands, |b, operands| {
        let mut acc: Option<(V, Vec<Label>)> = None;
        for (i, (&x, term)) in operands.iter().zip(&terms).enumerate() {
            let mut own = term.clone();
            let mut x = diagonal(b, x, &mut own)?;
            let later = |l: Label| output.contains(&l) || terms[i + 1..].iter().flatten().any(|t| *t == l);
            let Some((mut a, mut labels)) = acc.take() else {
                x = drop_axes(b, x, &mut own, &later)?;
                acc = Some((x, own));
                continue;
            };
            a = drop_ones(b, a, &mut labels, x, &own)?;
            x = drop_ones(b, x, &mut own, a, &labels)?;
            // sums of one operand alone come first
            let (left, right) = (labels.clone(), own.clone());
            a = drop_axes(b, a, &mut labels, &|l| later(l) || right.contains(&l))?;
            x = drop_axes(b, x, &mut own, &|l| later(l) || left.contains(&l))?;
            let (mut batch, mut reduce) = (Vec::new(), Vec::new());
            let mut result = Vec::new();
            for (p, l) in labels.iter().enumerate() {
                let Some(q) = own.iter().position(|o| o == l) else { continue };
                if later(*l) {
                    batch.push((p, q));
                    result.push(*l);
                } else {
                    reduce.push((p, q));
                }
            }
            result.extend(labels.iter().filter(|l| !own.contains(l)));
            result.extend(own.iter().filter(|l| !labels.contains(l)));
            let dtype = b.dtype(a);
            let y = b.contract(a, x, &batch, &reduce, dtype)?;
            acc = Some((y, result));
        }
        let Some((y, labels)) = acc else {
            return Err(IrError::ty("einsum", "there are no operands"));
        };
        let perm: Option<Vec<usize>> = output.iter().map(|l| labels.iter().position(|x| x == l)).collect();
        match perm {
            Some(perm) if perm.len() == labels.len() => b.transpose(y, &perm),
            _ => Err(IrError::ty("einsum", format!("{labels:?} do not give {output:?}"))),
        }
    })?;
    Ok(y.into())
}

/// Determinants of the matrices in the last two dims, by elimination with row pivots. Each step of a
/// loop clears one column of all matrices.
fn det(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let (shape, dtype) = (cx.shape(x), cx.dtype(x));
    let Some(lead) = shape.len().checked_sub(2) else {
        return Err(OpError::invalid(Code::Shape, "expected matrices"));
    };
    if shape[lead].is_const(0) {
        // the empty product
        return Ok(cx.b.full(dtype, &shape[..lead], 1.0)?.into());
    }
    let compute = compose::wide(dtype);
    let y = compose::call1(cx.b, "det", vec![], x, |b, x| {
        let n = shape[lead].clone();
        let count = Dim::product(&shape[..lead]);
        let x = b.convert(x, compute)?;
        let a = b.reshape(x, &[count.clone(), n.clone(), n.clone()])?;
        // also proves that the matrices are square
        let one = b.full(compute, std::slice::from_ref(&count), 1.0)?;
        let trip = b.dim_value(&n)?;
        let rows = b.iota(DType::I64, &[Dim::from(1), n.clone()], 1)?;
        let out = b.loop_::<IrError>(Some(trip), None, &[a, one], |b, k, state| {
            let (a, det) = (state[0], state[1]);
            let (zero, one) = (b.scalar(compute, 0.0)?, b.scalar(compute, 1.0)?);
            // the largest element of the column at or below the diagonal
            let column = b.gather(a, k, 2)?;
            let size = b.abs(column)?;
            let open = b.ge(rows, k)?;
            let never = b.scalar(compute, -1.0)?;
            let size = b.select(open, size, never)?;
            let p = b.arg_reduce(size, true, 1, false)?;
            let p1 = b.unsqueeze(p, &[1])?;
            let is_p = b.eq(rows, p1)?;
            let is_k = b.eq(rows, k)?;
            let is_p3 = b.unsqueeze(is_p, &[2])?;
            let is_k3 = b.unsqueeze(is_k, &[2])?;
            // rows k and p change places
            let picked = b.select(is_p3, a, zero)?;
            let pivot_row = b.reduce_sum(picked, &[1], false)?;
            let row_k = b.gather(a, k, 1)?;
            let (pivot3, k3) = (b.unsqueeze(pivot_row, &[1])?, b.unsqueeze(row_k, &[1])?);
            let a = b.select(is_p3, k3, a)?;
            let a = b.select(is_k3, pivot3, a)?;
            let pivot = b.gather(pivot_row, k, 1)?;
            let kept = b.eq(p, k)?;
            let back = b.neg(pivot)?;
            let factor = b.select(kept, pivot, back)?;
            let det = b.mul(det, factor)?;
            // clears the column below; a column of zeros stays, its determinant is 0 already
            let none = b.eq(pivot, zero)?;
            let safe = b.select(none, one, pivot)?;
            let column = b.gather(a, k, 2)?;
            let safe = b.unsqueeze(safe, &[1])?;
            let f = b.div(column, safe)?;
            let below = b.gt(rows, k)?;
            let f = b.select(below, f, zero)?;
            let f = b.unsqueeze(f, &[2])?;
            let change = b.mul(f, pivot3)?;
            let a = b.sub(a, change)?;
            let cond = b.scalar(DType::Bool, 1.0)?;
            Ok(LoopStep { cond, carried: vec![a, det], scans: vec![] })
        })?;
        let y = b.reshape(out[1], &shape[..lead])?;
        b.convert(y, dtype)
    })?;
    Ok(y.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations() {
        let l = |s: &str| s.chars().map(Label::Letter).collect::<Vec<_>>();
        let (terms, out) = parse("bij, bjk", &[3, 3]).unwrap();
        assert_eq!((terms, out), (vec![l("bij"), l("bjk")], l("ik")));
        let (_, out) = parse("...ii->...i", &[4]).unwrap();
        assert_eq!(out, vec![Label::Ellipsis(1), Label::Ellipsis(0), Label::Letter('i')]);
        for (bad, ranks) in
            [("ij->k", &[2][..]), ("ij,j", &[2]), ("i.j", &[3]), ("ij->ii", &[2]), ("i", &[2])]
        {
            assert!(parse(bad, ranks).is_err(), "{bad}");
        }
    }
}
