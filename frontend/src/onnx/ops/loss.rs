//! Losses of classifiers.

use super::compose::{self, arange, wide};
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError};
use ir::build::V;
use ir::{DType, Dim};

pub static OPS: &[Op] = &[
    op("NegativeLogLikelihoodLoss", 12, |cx| {
        let (x, target, weight) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
        Ok(negative_log_likelihood(cx, x, target, weight)?.into())
    }),
    op("SoftmaxCrossEntropyLoss", 12, |cx| {
        let (x, target, weight) = (cx.input(0)?, cx.input(1)?, cx.opt(2)?);
        if cx.rank(x) < 2 {
            return Err(OpError::invalid(Code::Shape, "expected scores of shape [N, C, ...]"));
        }
        let log_p = compose::log_softmax(cx.b, x, &[1])?;
        let loss = negative_log_likelihood(cx, log_p, target, weight)?;
        Ok([loss, log_p].into())
    }),
];

/// `-weight[t] * x[n, t, ...]` for x[N, C, d...] and classes t[N, d...], reduced as the node says;
/// elements of class `ignore_index` count for nothing. The mean is over the weights.
fn negative_log_likelihood(cx: &mut NodeCx, x: V, target: V, weight: Option<V>) -> Result<V, OpError> {
    let rank = cx.rank(x);
    if rank < 2 || cx.rank(target) + 1 != rank {
        return Err(OpError::invalid(Code::Shape, "expected input [N, C, d...] and target [N, d...]"));
    }
    let ignore = cx.attrs.int("ignore_index")?;
    let reduction = cx.string("reduction", "mean")?;
    let (dtype, classes) = (cx.dtype(x), cx.dim(x, 1)?);
    let compute = wide(dtype);
    let b = &mut *cx.b;
    let target = b.convert(target, DType::I64)?;
    let ignored = match ignore {
        Some(i) => {
            let i = b.scalar_i64(i)?;
            Some(b.eq(target, i)?)
        }
        None => None,
    };
    // the score of the class: a selection and a sum over the classes, which fuse
    let index = arange(b, DType::I64, &classes, 1, rank)?;
    let wanted = b.unsqueeze(target, &[1])?;
    let mut hit = b.eq(index, wanted)?;
    if let Some(ignored) = ignored {
        let counts = b.not(ignored)?;
        let counts = b.unsqueeze(counts, &[1])?;
        hit = b.and(hit, counts)?;
    }
    let wide_x = b.convert(x, compute)?;
    let zero = b.scalar(compute, 0.0)?;
    let picked = b.select(hit, wide_x, zero)?;
    let picked = b.reduce_sum(picked, &[1], false)?;
    let mut loss = b.neg(picked)?;
    let shape = b.shape(loss).to_vec();
    let mut weights = match weight {
        Some(w) => {
            let w = b.convert(w, compute)?;
            let safe = match ignored {
                Some(ignored) => {
                    let first = b.scalar_i64(0)?;
                    b.select(ignored, first, target)?
                }
                None => target,
            };
            let w = b.gather(w, safe, 0)?;
            loss = b.mul(loss, w)?;
            Some(w)
        }
        None => None,
    };
    if let Some(ignored) = ignored {
        let w = match weights {
            Some(w) => w,
            None => b.scalar(compute, 1.0)?,
        };
        weights = Some(b.select(ignored, zero, w)?);
    }
    let all: Vec<usize> = (0..shape.len()).collect();
    let out = match reduction {
        "none" => loss,
        "sum" => b.reduce_sum(loss, &all, false)?,
        "mean" => {
            let sum = b.reduce_sum(loss, &all, false)?;
            let total = match weights {
                Some(w) => {
                    let w = b.broadcast_to(w, &shape)?;
                    b.reduce_sum(w, &all, false)?
                }
                None => {
                    let n = b.dim_value(&Dim::product(&shape))?;
                    b.convert(n, compute)?
                }
            };
            b.div(sum, total)?
        }
        other => return Err(OpError::invalid(Code::Attribute, format!("reduction {other:?}"))),
    };
    Ok(b.convert(out, dtype)?)
}
