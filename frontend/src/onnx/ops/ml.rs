//! Classic machine learning of ai.onnx.ml, as far as it is arithmetic; trees are in [`super::trees`].

use super::compose::{self, arange};
use super::trees::{floats, rows, tensor_list};
use super::{Op, op_in};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::{Builder, V};
use ir::tensor::{ConstData, ConstSource};
use ir::{DType, Dim, Result};

const ML: &str = "ai.onnx.ml";

pub static OPS: &[Op] = &[
    op_in(ML, "ArrayFeatureExtractor", array_feature_extractor),
    op_in(ML, "Binarizer", binarizer),
    op_in(ML, "CategoryMapper", category_mapper),
    op_in(ML, "FeatureVectorizer", feature_vectorizer),
    op_in(ML, "Imputer", imputer),
    op_in(ML, "LabelEncoder", label_encoder),
    op_in(ML, "LinearClassifier", linear_classifier),
    op_in(ML, "LinearRegressor", linear_regressor),
    op_in(ML, "Normalizer", normalizer),
    op_in(ML, "OneHotEncoder", one_hot_encoder),
    op_in(ML, "Scaler", scaler),
    op_in(ML, "ZipMap", zip_map),
];

pub fn bad(message: impl Into<String>) -> OpError {
    OpError::invalid(Code::Attribute, message)
}

/// What a classifier calls its classes.
pub enum Labels {
    Ints(Vec<i64>),
    Strings(Vec<String>),
}

impl Labels {
    pub fn of(cx: &NodeCx, ints: &str, strings: &str) -> Result<Labels, OpError> {
        if let Some(v) = cx.ints(ints)?
            && !v.is_empty()
        {
            return Ok(Labels::Ints(v));
        }
        let text = cx.attrs.strs(strings)?.unwrap_or_default();
        if text.is_empty() {
            return Err(bad("the classes have no labels"));
        }
        Ok(Labels::Strings(text.into_iter().map(str::to_owned).collect()))
    }
    pub fn count(&self) -> usize {
        match self {
            Labels::Ints(v) => v.len(),
            Labels::Strings(v) => v.len(),
        }
    }
    /// The labels of these classes (i64).
    pub fn pick(&self, cx: &mut NodeCx, class: V) -> Result<V, OpError> {
        match self {
            Labels::Ints(v) => {
                let table = cx.b.vector_i64(v)?;
                Ok(cx.b.gather(table, class, 0)?)
            }
            // a label that nobody reads may be text
            Labels::Strings(_) if !cx.wants(0) => Ok(class),
            Labels::Strings(_) => Err(OpError::unsupported(Code::Type, "labels that are text")
                .hint("convert the model with integer class labels, or drop the label output")),
        }
    }
}

/// The transformation of scores [N, C] that ai.onnx.ml names.
pub fn post_transform(b: &mut Builder, x: V, name: &str) -> Result<V, OpError> {
    Ok(match name {
        "NONE" => x,
        "LOGISTIC" => compose::sigmoid(b, x)?,
        "SOFTMAX" => compose::softmax(b, x, &[1])?,
        "SOFTMAX_ZERO" => softmax_zero(b, x)?,
        "PROBIT" => probit(b, x)?,
        other => return Err(bad(format!("post_transform {other:?}"))),
    })
}

/// A softmax in which scores that are 0 stay 0; 1/2 everywhere where nothing is left.
fn softmax_zero(b: &mut Builder, x: V) -> Result<V> {
    let m = b.reduce_max(x, &[1], true)?;
    let d = b.sub(x, m)?;
    let e = b.exp(d)?;
    let nm = b.neg(m)?;
    let em = b.exp(nm)?;
    let small = b.mul(x, em)?;
    let a = b.abs(x)?;
    let limit = b.scalar(b.dtype(x), 1e-7)?;
    let large = b.gt(a, limit)?;
    let v = b.select(large, e, small)?;
    let s = b.reduce_sum(v, &[1], true)?;
    let (zero, half) = (b.scalar(b.dtype(x), 0.0)?, b.scalar(b.dtype(x), 0.5)?);
    let none = b.eq(s, zero)?;
    let q = b.div(v, s)?;
    b.select(none, half, q)
}

/// The inverse of the normal distribution function, by Winitzki's approximation of the inverse error
/// function, as the standard's runtimes do.
fn probit(b: &mut Builder, p: V) -> Result<V> {
    let dtype = b.dtype(p);
    let x = b.mul_scalar(p, 2.0)?;
    let x = b.add_scalar(x, -1.0)?;
    let sq = b.mul(x, x)?;
    let n = b.neg(sq)?;
    let rest = b.add_scalar(n, 1.0)?;
    let log = b.log(rest)?;
    let h = b.mul_scalar(log, 0.5)?;
    let v = b.add_scalar(h, 2.0 / (std::f64::consts::PI * 0.147))?;
    let v2 = b.mul_scalar(log, 1.0 / 0.147)?;
    let vv = b.mul(v, v)?;
    let r = b.sub(vv, v2)?;
    let r = b.sqrt(r)?;
    let r = b.sub(r, v)?;
    let r = b.sqrt(r)?;
    let zero = b.scalar(dtype, 0.0)?;
    let negative = b.lt(x, zero)?;
    let m = b.neg(r)?;
    let r = b.select(negative, m, r)?;
    b.mul_scalar(r, std::f64::consts::SQRT_2)
}

/// The columns that the second input names.
fn array_feature_extractor(cx: &mut NodeCx) -> OpResult {
    let (x, index) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(x);
    let count = Dim::product(&cx.shape(index));
    let index = cx.b.reshape(index, &[count])?;
    let index = cx.b.convert(index, DType::I64)?;
    let x = if rank < 2 { cx.b.reshape(x, &[Dim::from(1), Dim::product(&cx.shape(x))])? } else { x };
    let axis = cx.rank(x) - 1;
    Ok(cx.b.gather(x, index, axis)?.into())
}

fn binarizer(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    let threshold = cx.b.scalar(dtype, cx.float("threshold", 0.0)?.into())?;
    let above = cx.b.gt(x, threshold)?;
    Ok(cx.b.convert(above, dtype)?.into())
}

/// The rows of all inputs side by side.
fn feature_vectorizer(cx: &mut NodeCx) -> OpResult {
    let mut parts = Vec::new();
    for x in cx.all_inputs()? {
        let x = cx.b.convert(x, DType::F32)?;
        parts.push(match cx.rank(x) {
            1 => cx.b.unsqueeze(x, &[1])?,
            _ => cx.b.flatten(x, 1)?,
        });
    }
    Ok(cx.b.concat(&parts, 1)?.into())
}

/// A row of floats that broadcasts against the features.
fn row(cx: &mut NodeCx, name: &str, dtype: DType) -> Result<Option<V>, OpError> {
    let Some(v) = cx.attrs.floats(name)?.filter(|v| !v.is_empty()) else { return Ok(None) };
    let v: Vec<f64> = v.iter().map(|&x| x.into()).collect();
    Ok(Some(floats(cx.b, dtype, &[v.len()], &v)?))
}

/// Elements equal to the replaced value (or NaN) become those of the imputed row.
fn imputer(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    let (values, missing) = if dtype.is_float() {
        let values = row(cx, "imputed_value_floats", dtype)?;
        let old = cx.float("replaced_value_float", 0.0)?;
        let missing = if old.is_nan() {
            cx.b.ne(x, x)?
        } else {
            let old = cx.b.scalar(dtype, old.into())?;
            cx.b.eq(x, old)?
        };
        (values, missing)
    } else {
        let values = match cx.ints("imputed_value_int64s")? {
            Some(v) => {
                let v = cx.b.vector_i64(&v)?;
                Some(cx.b.convert(v, dtype)?)
            }
            None => None,
        };
        let old = cx.b.scalar_i64(cx.int("replaced_value_int64", 0)?)?;
        let old = cx.b.convert(old, dtype)?;
        (values, cx.b.eq(x, old)?)
    };
    let values = values.ok_or_else(|| bad("there are no imputed values"))?;
    Ok(cx.b.select(missing, values, x)?.into())
}

/// Numbers to numbers by a table of keys and values.
fn label_encoder(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    if cx.dtype(x) == DType::String {
        return super::strings::encode_labels(cx, x);
    }
    let ints = |v: Vec<i64>| v.into_iter().map(|i| i as f64).collect::<Vec<f64>>();
    let floats_of = |v: &[f32]| v.iter().map(|&f| f64::from(f)).collect::<Vec<f64>>();
    let keys = match (cx.ints("keys_int64s")?, cx.attrs.floats("keys_floats")?) {
        (Some(v), _) if !v.is_empty() => ints(v),
        (_, Some(v)) if !v.is_empty() => floats_of(v),
        _ => tensor_list(cx, "keys_tensor")?.ok_or_else(|| bad("the keys are not numbers"))?,
    };
    let (values, to, default) = match (cx.ints("values_int64s")?, cx.attrs.floats("values_floats")?) {
        (Some(v), _) if !v.is_empty() => (ints(v), DType::I64, cx.int("default_int64", -1)? as f64),
        (_, Some(v)) if !v.is_empty() => (floats_of(v), DType::F32, cx.float("default_float", -0.0)?.into()),
        _ => {
            let Some(v) = cx.tensor_attr("values_tensor")? else {
                return Err(OpError::unsupported(Code::Type, "labels that are text"));
            };
            let dtype = v.dtype;
            let all: Option<Vec<f64>> = (0..v.elems()).map(|i| Some(v.scalar_at(i)?.as_f64())).collect();
            let all = all.ok_or_else(|| OpError::unsupported(Code::Type, "labels that are text"))?;
            let default = tensor_list(cx, "default_tensor")?.and_then(|d| d.first().copied());
            (all, dtype, default.unwrap_or(if dtype.is_float() { -0.0 } else { -1.0 }))
        }
    };
    if keys.len() != values.len() || keys.len() > 1 << 16 {
        return Err(bad(format!("{} keys for {} values", keys.len(), values.len())));
    }
    let n = keys.len();
    let b = &mut *cx.b;
    // the first key that matches decides
    let rank = b.rank(x);
    let wide = b.unsqueeze(x, &[rank as i64])?;
    let dtype = b.dtype(x);
    let table = floats(b, DType::F64, &[n], &keys)?;
    let table = b.convert(table, dtype)?;
    let mut hit = b.eq(wide, table)?;
    if dtype.is_float() {
        let (xn, kn) = (b.ne(wide, wide)?, b.ne(table, table)?);
        let both = b.and(xn, kn)?;
        hit = b.or(hit, both)?;
    }
    let index = arange(b, DType::I64, &Dim::from(n), rank, rank + 1)?;
    let end = b.scalar_i64(n as i64)?;
    let index = b.select(hit, index, end)?;
    let index = b.reduce_min(index, &[rank], false)?;
    let all = [values, vec![default]].concat();
    let all = floats(b, DType::F64, &[n + 1], &all)?;
    let all = b.convert(all, to)?;
    // no match: the reduction gives n, the place of the default
    Ok(b.gather(all, index, 0)?.into())
}

/// Text to numbers by two tables; numbers to text, for which tensors of a program have no form, are refused.
fn category_mapper(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    if cx.dtype(x) != DType::String {
        return Err(OpError::unsupported(Code::Type, "categories as text: strings have no kernels"));
    }
    let words: Vec<String> =
        cx.attrs.strs("cats_strings")?.unwrap_or_default().into_iter().map(str::to_owned).collect();
    let numbers = cx.ints("cats_int64s")?.unwrap_or_default();
    if words.len() != numbers.len() {
        return Err(bad(format!("{} words for {} numbers", words.len(), numbers.len())));
    }
    let default = cx.int("default_int64", -1)?;
    super::strings::to_numbers(cx, x, &words, &numbers, default)
}

/// A row of scores for each input becomes a map from the labels to them. Maps are no tensors: the result is the tensor of
/// the scores, columns in the order of the labels.
fn zip_map(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let labels = Labels::of(cx, "classlabels_int64s", "classlabels_strings")?.count();
    let columns = cx.dim(x, 1)?;
    if columns.as_const().is_some_and(|c| c != labels as i64) {
        return Err(OpError::invalid(Code::Shape, format!("{columns} scores for {labels} labels")));
    }
    Ok(x.into())
}

/// `x * coefficients^T + intercepts` for coefficients in rows of targets.
fn linear(cx: &mut NodeCx, x: V, targets: Option<i64>) -> Result<V, OpError> {
    let dtype = cx.dtype(x);
    let coefficients: Vec<f64> =
        cx.attrs.floats("coefficients")?.unwrap_or_default().iter().map(|&c| c.into()).collect();
    let n = coefficients.len();
    let features = cx.dim(x, 1)?;
    let targets = match (targets, features.as_const()) {
        (Some(t), _) if t > 0 => t as usize,
        (None, Some(f)) if f > 0 => n / f as usize,
        _ => return Err(OpError::unsupported(Code::Dynamic, "a number of features that is not known")),
    };
    if targets == 0 || !n.is_multiple_of(targets) {
        return Err(bad(format!("{n} coefficients for {targets} targets")));
    }
    let w = floats(cx.b, dtype, &[targets, n / targets], &coefficients)?;
    let y = cx.b.contract(x, w, &[], &[(1, 1)], dtype)?;
    match row(cx, "intercepts", dtype)? {
        Some(i) => Ok(cx.b.add(y, i)?),
        None => Ok(y),
    }
}

fn linear_regressor(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let targets = cx.int("targets", 1)?;
    let y = linear(cx, x, Some(targets))?;
    Ok(post_transform(cx.b, y, cx.string("post_transform", "NONE")?)?.into())
}

/// (labels, scores).
fn linear_classifier(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let labels = Labels::of(cx, "classlabels_ints", "classlabels_strings")?;
    let mut scores = linear(cx, x, None)?;
    let one_score = cx.dim(scores, 1)?.is_const(1);
    if one_score && labels.count() == 2 {
        let n = cx.b.neg(scores)?;
        scores = cx.b.concat(&[n, scores], 1)?;
    }
    let transform = cx.string("post_transform", "NONE")?;
    let y = post_transform(cx.b, scores, transform)?;
    let class = if one_score && labels.count() == 1 {
        // the only class, or 0
        let limit = cx.b.scalar(cx.b.dtype(y), if transform == "NONE" { 0.0 } else { 0.5 })?;
        let yes = cx.b.ge(y, limit)?;
        let yes = cx.b.squeeze(yes, &[1])?;
        let Labels::Ints(v) = &labels else {
            return Err(OpError::unsupported(Code::Type, "labels that are text"));
        };
        let (a, z) = (cx.b.scalar_i64(v[0])?, cx.b.scalar_i64(0)?);
        cx.b.select(yes, a, z)?
    } else {
        let best = cx.b.arg_reduce(y, true, 1, false)?;
        labels.pick(cx, best)?
    };
    let y = cx.b.convert(y, DType::F32)?;
    Ok([class, y].into())
}

fn normalizer(cx: &mut NodeCx) -> OpResult {
    let x = rows(cx)?;
    let kind = cx.string("norm", "MAX")?;
    let b = &mut *cx.b;
    let norm = match kind {
        "MAX" => b.reduce_max(x, &[1], true)?,
        "L1" => {
            let a = b.abs(x)?;
            b.reduce_sum(a, &[1], true)?
        }
        "L2" => {
            let sq = b.mul(x, x)?;
            let s = b.reduce_sum(sq, &[1], true)?;
            b.sqrt(s)?
        }
        other => return Err(bad(format!("norm {other:?}"))),
    };
    // a norm of 0 leaves the row as it is
    let (zero, one) = (b.scalar(b.dtype(x), 0.0)?, b.scalar(b.dtype(x), 1.0)?);
    let none = b.eq(norm, zero)?;
    let norm = b.select(none, one, norm)?;
    Ok(b.div(x, norm)?.into())
}

/// One column for each category; a value of none gives zeros.
fn one_hot_encoder(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let Some(categories) = cx.ints("cats_int64s")?.filter(|c| !c.is_empty()) else {
        return Err(OpError::unsupported(Code::Type, "categories that are text"));
    };
    let zeros = cx.flag("zeros", true)?;
    let b = &mut *cx.b;
    let axis = b.rank(x);
    let x = b.convert(x, DType::I64)?;
    let wide = b.unsqueeze(x, &[axis as i64])?;
    let table = b.vector_i64(&categories)?;
    let hit = b.eq(wide, table)?;
    if !zeros {
        let all: Vec<usize> = (0..axis).collect();
        let found = b.reduce_max(hit, &[axis], false)?;
        let found = b.reduce_min(found, &all, false)?;
        b.assert(found, "one-hot encoder: a value of no category")?;
    }
    Ok(b.convert(hit, DType::F32)?.into())
}

/// `(x - offset) * scale`.
fn scaler(cx: &mut NodeCx) -> OpResult {
    let x = cx.input(0)?;
    let x = cx.b.convert(x, DType::F32)?;
    let mut y = x;
    if let Some(offset) = row(cx, "offset", DType::F32)? {
        y = cx.b.sub(y, offset)?;
    }
    if let Some(scale) = row(cx, "scale", DType::F32)? {
        y = cx.b.mul(y, scale)?;
    }
    Ok(y.into())
}

/// A constant of strings.
pub fn string_constant(b: &mut Builder, shape: Vec<usize>, text: Vec<String>) -> Result<V> {
    let source = ConstSource::Strings(text.into());
    b.constant_data(ConstData { dtype: DType::String, shape, source, name: None })
}
