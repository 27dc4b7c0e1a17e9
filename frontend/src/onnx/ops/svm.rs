//! Support vector machines of ai.onnx.ml.

use super::compose;
use super::ml::{Labels, bad, post_transform};
use super::trees::{floats, rows};
use super::{Op, op_in};
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, LoopStep, V};
use ir::{DType, Dim, Result};

const ML: &str = "ai.onnx.ml";

pub static OPS: &[Op] =
    &[op_in(ML, "SVMClassifier", svm_classifier), op_in(ML, "SVMRegressor", svm_regressor)];

fn list(cx: &NodeCx, name: &str) -> Result<Vec<f64>, OpError> {
    Ok(cx.attrs.floats(name)?.unwrap_or_default().iter().map(|&c| c.into()).collect())
}

/// The kernel function that the attributes name.
struct Kernel {
    kind: String,
    gamma: f64,
    coef0: f64,
    degree: f64,
}

impl Kernel {
    fn of(cx: &NodeCx) -> Result<Kernel, OpError> {
        let params = list(cx, "kernel_params")?;
        let [gamma, coef0, degree] = [0, 1, 2].map(|i| params.get(i).copied().unwrap_or(0.0));
        Ok(Kernel { kind: cx.string("kernel_type", "LINEAR")?.to_owned(), gamma, coef0, degree })
    }

    /// Of every row of x[N, F] with every row of sv[M, F]: [N, M].
    fn apply(&self, b: &mut Builder, x: V, sv: V) -> Result<V, OpError> {
        let dtype = b.dtype(x);
        if self.kind == "RBF" {
            let (p, q) = (b.unsqueeze(x, &[1])?, b.unsqueeze(sv, &[0])?);
            let d = b.sub(p, q)?;
            let sq = b.mul(d, d)?;
            let s = b.reduce_sum(sq, &[2], false)?;
            let s = b.mul_scalar(s, -self.gamma)?;
            return Ok(b.exp(s)?);
        }
        let dot = b.contract(x, sv, &[], &[(1, 1)], dtype)?;
        if self.kind == "LINEAR" {
            return Ok(dot);
        }
        let s = b.mul_scalar(dot, self.gamma)?;
        let s = b.add_scalar(s, self.coef0)?;
        Ok(match self.kind.as_str() {
            "POLY" => {
                let e = b.scalar(dtype, self.degree)?;
                b.pow(s, e)?
            }
            "SIGMOID" => b.tanh(s)?,
            other => return Err(bad(format!("kernel_type {other:?}"))),
        })
    }
}

/// Support vectors by a kernel, or a plane.
fn svm_regressor(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let dtype = cx.dtype(x);
    let (coefficients, vectors) = (list(cx, "coefficients")?, list(cx, "support_vectors")?);
    let rho = list(cx, "rho")?;
    let supports = cx.int("n_supports", 0)?;
    let kernel = Kernel::of(cx)?;
    let one_class = cx.flag("one_class", false)?;
    let transform = cx.string("post_transform", "NONE")?;
    let b = &mut *cx.b;
    let count = usize::try_from(supports).map_err(|_| bad("n_supports"))?;
    let score = if count > 0 {
        if !vectors.len().is_multiple_of(count) || coefficients.len() != count {
            return Err(bad("coefficients and support vectors do not fit"));
        }
        let sv = floats(b, dtype, &[count, vectors.len() / count], &vectors)?;
        let k = kernel.apply(b, x, sv)?;
        let c = floats(b, dtype, &[count], &coefficients)?;
        b.contract(k, c, &[], &[(1, 0)], dtype)?
    } else {
        let c = floats(b, dtype, &[coefficients.len()], &coefficients)?;
        b.contract(x, c, &[], &[(1, 0)], dtype)?
    };
    let score = b.unsqueeze(score, &[1])?;
    let mut y = b.add_scalar(score, rho.first().copied().unwrap_or(0.0))?;
    if one_class {
        let zero = b.scalar(dtype, 0.0)?;
        let inside = b.gt(y, zero)?;
        y = compose::indicator(b, inside, dtype, 1.0, -1.0)?;
    }
    Ok(post_transform(b, y, transform)?.into())
}

/// What a classifier makes of its rows.
struct Votes {
    /// [N, scores]: by pair of classes, or by class.
    scores: V,
    /// Number of the chosen class [N].
    class: V,
    /// Scores are probabilities.
    probable: bool,
}

/// (labels, scores). Between any two classes a machine of its own decides, and the class with most votes wins; where the
/// model has Platt's parameters, the scores are probabilities.
fn svm_classifier(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let labels = Labels::of(cx, "classlabels_ints", "classlabels_strings")?;
    let sizes: Vec<usize> = match cx.ints("vectors_per_class")? {
        Some(v) => v
            .iter()
            .map(|&n| usize::try_from(n).map_err(|_| bad("vectors_per_class")))
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    let transform = cx.string("post_transform", "NONE")?;
    let votes = if sizes.is_empty() { planes(cx, x, &labels)? } else { pairs(cx, x, &sizes)? };
    let Votes { scores, class, probable } = votes;
    let two = labels.count() == 2 && cx.dim(scores, 1)?.is_const(1);
    let b = &mut *cx.b;
    let scores = if two && !probable {
        // one score decides between two classes, and both are reported
        let n = b.neg(scores)?;
        b.concat(&[n, scores], 1)?
    } else {
        scores
    };
    let scores = post_transform(b, scores, transform)?;
    let scores = b.convert(scores, DType::F32)?;
    let label = labels.pick(cx, class)?;
    Ok([label, scores].into())
}

/// One plane for each class; the largest score wins.
fn planes(cx: &mut NodeCx, x: V, labels: &Labels) -> Result<Votes, OpError> {
    let (coefficients, rho) = (list(cx, "coefficients")?, list(cx, "rho")?);
    let classes = labels.count();
    if coefficients.is_empty() || !coefficients.len().is_multiple_of(classes) {
        return Err(bad(format!("{} coefficients for {classes} classes", coefficients.len())));
    }
    let kernel = Kernel::of(cx)?;
    let dtype = cx.dtype(x);
    let b = &mut *cx.b;
    let planes = floats(b, dtype, &[classes, coefficients.len() / classes], &coefficients)?;
    let scores = kernel.apply(b, x, planes)?;
    let scores = b.add_scalar(scores, rho.first().copied().unwrap_or(0.0))?;
    let class = b.arg_reduce(scores, true, 1, false)?;
    Ok(Votes { scores, class, probable: false })
}

/// A machine for each pair of classes i < j: its vectors are those of both, with their coefficients against the
/// other class.
fn pairs(cx: &mut NodeCx, x: V, sizes: &[usize]) -> Result<Votes, OpError> {
    let (coefficients, vectors) = (list(cx, "coefficients")?, list(cx, "support_vectors")?);
    let (rho, a, c) = (list(cx, "rho")?, list(cx, "prob_a")?, list(cx, "prob_b")?);
    let classes = sizes.len();
    let total = sizes
        .iter()
        .try_fold(0usize, |sum, &n| sum.checked_add(n))
        .ok_or_else(|| bad("vectors_per_class"))?;
    let machines = classes * classes.saturating_sub(1) / 2;
    let fits = classes > 1
        && classes <= MOST_CLASSES
        && total > 0
        && vectors.len().is_multiple_of(total)
        && coefficients.len() == total * (classes - 1)
        && rho.len() >= machines
        && (a.is_empty() || a.len() >= machines && c.len() >= machines);
    if !fits {
        return Err(bad("coefficients, support vectors and classes do not fit"));
    }
    let kernel = Kernel::of(cx)?;
    let dtype = cx.dtype(x);
    let starts: Vec<usize> = sizes.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let each: Vec<(usize, usize)> =
        (0..classes).flat_map(|i| (i + 1..classes).map(move |j| (i, j))).collect();
    // the coefficients of machine m for every vector, 0 for those of other classes
    let mut weights = vec![0.0; machines * total];
    for (row, &(i, j)) in weights.chunks_exact_mut(total).zip(&each) {
        for (class, other) in [(i, j - 1), (j, i)] {
            let own = starts[class]..starts[class] + sizes[class];
            row[own.clone()].copy_from_slice(&coefficients[other * total..][own]);
        }
    }
    let b = &mut *cx.b;
    let sv = floats(b, dtype, &[total, vectors.len() / total], &vectors)?;
    let k = kernel.apply(b, x, sv)?;
    let w = floats(b, dtype, &[machines, total], &weights)?;
    let scores = b.contract(k, w, &[], &[(1, 1)], dtype)?;
    let rho = floats(b, dtype, &[machines], &rho[..machines])?;
    let scores = b.add(scores, rho)?;
    // machine (i, j) votes for i where its score is positive
    let (mut for_i, mut for_j) = (vec![0.0; machines * classes], vec![0.0; machines * classes]);
    for (m, &(i, j)) in each.iter().enumerate() {
        for_i[m * classes + i] = 1.0;
        for_j[m * classes + j] = 1.0;
    }
    let zero = b.scalar(dtype, 0.0)?;
    let positive = b.gt(scores, zero)?;
    let won = compose::indicator(b, positive, dtype, 1.0, 0.0)?;
    let lost = compose::indicator(b, positive, dtype, 0.0, 1.0)?;
    let for_i = floats(b, dtype, &[machines, classes], &for_i)?;
    let for_j = floats(b, dtype, &[machines, classes], &for_j)?;
    let (p, q) = (b.matmul(won, for_i)?, b.matmul(lost, for_j)?);
    let votes = b.add(p, q)?;
    let class = b.arg_reduce(votes, true, 1, false)?;
    let probable = !a.is_empty();
    let scores =
        if probable { coupled(b, scores, &a[..machines], &c[..machines], classes, &each)? } else { scores };
    Ok(Votes { scores, class, probable })
}

/// Classes between each two of which a machine decides.
const MOST_CLASSES: usize = 256;

/// Steps of pairwise coupling at most.
const STEPS: i64 = 100;

/// Probabilities of classes from those of pairs, by the method of libsvm (Wu, Lin and Weng 2004): p minimises
/// `sum over i, j of (r[j, i] p[i] - r[i, j] p[j])^2`.
fn coupled(
    b: &mut Builder,
    scores: V,
    a: &[f64],
    c: &[f64],
    classes: usize,
    each: &[(usize, usize)],
) -> Result<V, OpError> {
    let dtype = b.dtype(scores);
    let machines = each.len();
    let (a, c) = (floats(b, dtype, &[machines], a)?, floats(b, dtype, &[machines], c)?);
    let s = b.mul(scores, a)?;
    let s = b.add(s, c)?;
    let s = b.neg(s)?;
    let r = compose::sigmoid(b, s)?;
    let (lo, hi) = (b.scalar(dtype, 1e-7)?, b.scalar(dtype, 1.0 - 1e-7)?);
    let r = b.clamp(r, lo, hi)?;
    // r[n, i, j] for all pairs, 0 on the diagonal
    let one = b.scalar(dtype, 1.0)?;
    let other = b.sub(one, r)?;
    let both = b.concat(&[r, other], 1)?;
    let n = b.shape(scores)[0].clone();
    let none = b.full(dtype, &[n.clone(), Dim::from(1)], 0.0)?;
    let both = b.concat(&[both, none], 1)?;
    let mut place = vec![2 * machines as i64; classes * classes];
    for (m, &(i, j)) in each.iter().enumerate() {
        place[i * classes + j] = m as i64;
        place[j * classes + i] = (machines + m) as i64;
    }
    let place = b.vector_i64(&place)?;
    let flat = b.gather(both, place, 1)?;
    let k = Dim::from(classes);
    let r = b.reshape(flat, &[n.clone(), k.clone(), k.clone()])?;
    // Q[t, t] = sum over j of r[j, t]^2, Q[t, j] = -r[j, t] r[t, j]
    let turned = b.transpose(r, &[0, 2, 1])?;
    let cross = b.mul(r, turned)?;
    let cross = b.neg(cross)?;
    let squares = b.mul(turned, turned)?;
    let diagonal = b.reduce_sum(squares, &[2], true)?;
    let (i, j) = (compose::arange(b, DType::I64, &k, 1, 3)?, compose::arange(b, DType::I64, &k, 2, 3)?);
    let on = b.eq(i, j)?;
    let q = b.select(on, diagonal, cross)?;
    let start = b.full(dtype, &[n.clone(), k.clone()], 1.0 / classes as f64)?;
    let limit = 0.005 / classes as f64;
    let trip = b.scalar_i64(STEPS.max(classes as i64))?;
    let out = b.loop_::<ir::IrError>(Some(trip), None, &[start], |b, _, carried| {
        let next = coupling_step(b, carried[0], q, limit, classes)?;
        let cond = b.scalar(DType::Bool, 1.0)?;
        Ok(LoopStep { cond, carried: vec![next], scans: Vec::new() })
    })?;
    Ok(out[0])
}

/// One round over all classes; rows that are within `limit` of the solution stay as they are.
fn coupling_step(b: &mut Builder, p: V, q: V, limit: f64, classes: usize) -> Result<V> {
    let dtype = b.dtype(p);
    let mut qp = b.contract(q, p, &[(0, 0)], &[(2, 1)], dtype)?;
    let pqp = b.mul(p, qp)?;
    let mut pqp = b.reduce_sum(pqp, &[1], true)?;
    let off = b.sub(qp, pqp)?;
    let off = b.abs(off)?;
    let off = b.reduce_max(off, &[1], true)?;
    let limit = b.scalar(dtype, limit)?;
    let done = b.lt(off, limit)?;
    let mut new = p;
    for t in 0..classes {
        let at = Dim::from(t);
        let row = b.index_axis(q, 1, &at)?;
        let own = b.slice_axis(row, 1, &at, &Dim::from(1))?;
        let qpt = b.slice_axis(qp, 1, &at, &Dim::from(1))?;
        let d = b.sub(pqp, qpt)?;
        let d = b.div(d, own)?;
        let rest = b.add_scalar(d, 1.0)?;
        // p[t] grows by d, and all of p is scaled to the sum of 1 again
        let e = compose::arange(b, DType::I64, &Dim::from(classes), 1, 2)?;
        let here = b.scalar_i64(t as i64)?;
        let here = b.eq(e, here)?;
        let grown = b.add(new, d)?;
        let grown = b.select(here, grown, new)?;
        new = b.div(grown, rest)?;
        let twice = b.mul_scalar(qpt, 2.0)?;
        let x = b.mul(d, own)?;
        let x = b.add(x, twice)?;
        let x = b.mul(d, x)?;
        let x = b.add(pqp, x)?;
        let square = b.mul(rest, rest)?;
        pqp = b.div(x, square)?;
        let moved = b.mul(row, d)?;
        let moved = b.add(qp, moved)?;
        qp = b.div(moved, rest)?;
    }
    b.select(done, p, new)
}
