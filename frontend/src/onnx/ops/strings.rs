//! Operators on text. Kernels know no text: these are evaluated at import, where the text is constant;
//! n-gram counting is arithmetic once the tokens are integers.

use super::ml::string_constant;
use super::trees::floats;
use super::{Op, op};
use crate::diag::Code;
use crate::onnx::cx::{NodeCx, OpError, OpResult};
use ir::build::V;
use ir::tensor::{Tensor, checked_elems};
use ir::{DType, Dim};
use regex::RegexBuilder;
use std::collections::{HashMap, HashSet};

pub static OPS: &[Op] = &[
    op("RegexFullMatch", 20, full_match),
    op("StringConcat", 20, concat),
    op("StringNormalizer", 10, normalize),
    op("StringSplit", 20, split),
    op("TfIdfVectorizer", 9, tf_idf),
];

/// Static shape and elements of a constant text tensor.
fn text(cx: &NodeCx, v: V) -> Result<(Vec<usize>, Vec<String>), OpError> {
    let constant = cx.const_strings(v);
    let shape: Option<Vec<usize>> = cx.shape(v).iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
    constant.and_then(|c| Some((shape?, c))).ok_or_else(|| {
        OpError::unsupported(Code::Dynamic, "text that is only known when the model is executed")
            .hint("operators on text are evaluated at compile time: fix the input")
    })
}

fn concat(cx: &mut NodeCx) -> OpResult {
    let (shape, out) = pairs(cx, |a, b| format!("{a}{b}"))?;
    Ok(string_constant(cx.b, shape, out)?.into())
}

/// Equal of text.
pub fn equal(cx: &mut NodeCx) -> OpResult {
    let (shape, out) = pairs(cx, |a, b| u8::from(a == b))?;
    Ok(cx.b.constant(Tensor::new(DType::Bool, shape, out))?.into())
}

/// Which elements the pattern matches from their first to their last character.
fn full_match(cx: &mut NodeCx) -> OpResult {
    let (shape, words) = text(cx, cx.input(0)?)?;
    let pattern = cx.string("pattern", "")?;
    let regex = RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(1 << 20)
        .build()
        .map_err(|e| OpError::invalid(Code::Attribute, format!("pattern {pattern:?}: {e}")))?;
    let out = words.iter().map(|w| u8::from(regex.is_match(w))).collect();
    Ok(cx.b.constant(Tensor::new(DType::Bool, shape, out))?.into())
}

/// `f` of the elements of two constant text tensors, with numpy's broadcasting: shape and results.
fn pairs<T>(cx: &NodeCx, f: impl Fn(&str, &str) -> T) -> Result<(Vec<usize>, Vec<T>), OpError> {
    let ((sa, a), (sb, b)) = (text(cx, cx.input(0)?)?, text(cx, cx.input(1)?)?);
    let rank = sa.len().max(sb.len());
    let extent = |s: &[usize], d: usize| (d + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    let mut shape = Vec::with_capacity(rank);
    for d in 0..rank {
        let (x, y) = (extent(&sa, d), extent(&sb, d));
        if x != y && x != 1 && y != 1 {
            return Err(OpError::invalid(Code::Shape, format!("shapes {sa:?} and {sb:?} do not broadcast")));
        }
        shape.push(if x == 1 { y } else { x });
    }
    let count = checked_elems(&shape)
        .ok_or_else(|| OpError::limit(format!("a result of shape {shape:?}, which no memory holds")))?;
    let place = |s: &[usize], mut flat: usize| {
        let (mut at, mut stride) = (0, 1);
        for d in (0..rank).rev() {
            let i = flat % shape[d];
            flat /= shape[d];
            let n = extent(s, d);
            if n > 1 {
                at += i * stride;
            }
            stride *= n;
        }
        at
    };
    let out = (0..count).map(|i| f(&a[place(&sa, i)], &b[place(&sb, i)])).collect();
    Ok((shape, out))
}

/// (parts, padded with empty ones to equal numbers; numbers of parts).
fn split(cx: &mut NodeCx) -> OpResult {
    let (mut shape, words) = text(cx, cx.input(0)?)?;
    let delimiter = cx.string("delimiter", "")?;
    let limit = cx.attrs.int("maxsplit")?.and_then(|n| usize::try_from(n).ok());
    let parts: Vec<Vec<&str>> = words
        .iter()
        .map(|w| match (delimiter, limit) {
            ("", None) => w.split_whitespace().collect(),
            ("", Some(n)) => split_blank(w, n),
            (d, None) => w.split(d).collect(),
            (d, Some(n)) => w.splitn(n.saturating_add(1), d).collect(),
        })
        .collect();
    let widest = parts.iter().map(Vec::len).max().unwrap_or(0);
    let counts: Vec<i64> = parts.iter().map(|p| p.len() as i64).collect();
    let counts = cx.b.constant(Tensor::from_i64(shape.clone(), &counts))?;
    let padded =
        parts.iter().flat_map(|p| (0..widest).map(|i| p.get(i).copied().unwrap_or("").to_owned())).collect();
    shape.push(widest);
    Ok([string_constant(cx.b, shape, padded)?, counts].into())
}

/// At most `n` splits at runs of white space; the rest stays whole.
fn split_blank(text: &str, n: usize) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        match rest.find(char::is_whitespace) {
            Some(end) if out.len() < n => {
                out.push(&rest[..end]);
                rest = rest[end..].trim_start();
            }
            _ => {
                out.push(rest);
                break;
            }
        }
    }
    out
}

/// Removes stop words, then changes the case; one empty string where nothing is left.
fn normalize(cx: &mut NodeCx) -> OpResult {
    let (shape, words) = text(cx, cx.input(0)?)?;
    let row = match shape.as_slice() {
        [_] => false,
        [1, _] => true,
        s => return Err(OpError::invalid(Code::Shape, format!("expected [C] or [1, C], found {s:?}"))),
    };
    let exact = cx.flag("is_case_sensitive", false)?;
    let fold = |s: &str| if exact { s.to_owned() } else { s.to_lowercase() };
    let stop: HashSet<String> =
        cx.attrs.strs("stopwords")?.unwrap_or_default().into_iter().map(fold).collect();
    let case = cx.string("case_change_action", "NONE")?;
    let mut out = Vec::new();
    for w in words.iter().filter(|w| !stop.contains(&fold(w)) && !w.is_empty()) {
        out.push(match case {
            "LOWER" => w.to_lowercase(),
            "UPPER" => w.to_uppercase(),
            "NONE" => w.clone(),
            other => return Err(OpError::invalid(Code::Attribute, format!("case_change_action {other:?}"))),
        });
    }
    if out.is_empty() {
        out.push(String::new());
    }
    let shape = if row { vec![1, out.len()] } else { vec![out.len()] };
    Ok(string_constant(cx.b, shape, out)?.into())
}

/// LabelEncoder of text.
pub fn encode_labels(cx: &mut NodeCx, x: V) -> OpResult {
    let (shape, words) = text(cx, x)?;
    let keys: Vec<String> = match cx.attrs.strs("keys_strings")? {
        Some(k) if !k.is_empty() => k.into_iter().map(str::to_owned).collect(),
        _ => match cx.tensor_attr("keys_tensor")?.map(|t| t.source) {
            Some(ir::tensor::ConstSource::Strings(s)) => s.to_vec(),
            _ => return Err(OpError::invalid(Code::Attribute, "the keys are not text")),
        },
    };
    let table: HashMap<&str, usize> = keys.iter().enumerate().rev().map(|(i, k)| (k.as_str(), i)).collect();
    let found: Vec<Option<usize>> = words.iter().map(|w| table.get(w.as_str()).copied()).collect();
    let missing = || OpError::invalid(Code::Attribute, "there are fewer values than keys");
    if let Some(v) = cx.ints("values_int64s")?.filter(|v| !v.is_empty()) {
        let default = cx.int("default_int64", -1)?;
        let out = found
            .iter()
            .map(|f| f.map_or(Some(default), |i| v.get(i).copied()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(missing)?;
        return Ok(cx.b.constant(Tensor::from_i64(shape, &out))?.into());
    }
    if let Some(v) = cx.attrs.strs("values_strings")?.filter(|v| !v.is_empty()) {
        let default = cx.string("default_string", "_Unused")?;
        let out = found
            .iter()
            .map(|f| f.map_or(Some(default), |i| v.get(i).copied()).map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(missing)?;
        return Ok(string_constant(cx.b, shape, out)?.into());
    }
    let (values, default, dtype) = match cx.attrs.floats("values_floats")?.filter(|v| !v.is_empty()) {
        Some(v) => {
            (v.iter().map(|&f| f64::from(f)).collect(), cx.float("default_float", -0.0)?.into(), DType::F32)
        }
        None => {
            let dtype = cx.tensor_attr("values_tensor")?.map(|t| t.dtype).ok_or_else(missing)?;
            let values = super::trees::tensor_list(cx, "values_tensor")?.unwrap_or_default();
            let default = super::trees::tensor_list(cx, "default_tensor")?.and_then(|d| d.first().copied());
            (values, default.unwrap_or(if dtype.is_float() { -0.0 } else { -1.0 }), dtype)
        }
    };
    let out = found
        .iter()
        .map(|f| f.map_or(Some(default), |i| values.get(i).copied()))
        .collect::<Option<Vec<f64>>>()
        .ok_or_else(missing)?;
    let c = floats(cx.b, DType::F64, &shape, &out)?;
    Ok(cx.b.convert(c, dtype)?.into())
}

/// Each word's number, or `default`.
pub fn to_numbers(cx: &mut NodeCx, x: V, words: &[String], numbers: &[i64], default: i64) -> OpResult {
    let (shape, given) = text(cx, x)?;
    let table: HashMap<&str, i64> = words.iter().zip(numbers).rev().map(|(w, n)| (w.as_str(), *n)).collect();
    let out: Vec<i64> = given.iter().map(|w| table.get(w.as_str()).copied().unwrap_or(default)).collect();
    Ok(cx.b.constant(Tensor::from_i64(shape, &out))?.into())
}

/// Counts of n-grams from a pool, with up to `max_skip_count` tokens between their parts.
fn tf_idf(cx: &mut NodeCx) -> OpResult {
    let mut x = cx.input(0)?;
    let bad = |m: &str| OpError::invalid(Code::Attribute, m);
    // text becomes its place in the pool
    let pool = match cx.ints("pool_int64s")?.filter(|p| !p.is_empty()) {
        Some(p) => p,
        None => {
            let pool = cx.attrs.strs("pool_strings")?.unwrap_or_default();
            let mut number = HashMap::new();
            for w in &pool {
                let next = number.len() as i64;
                number.entry(*w).or_insert(next);
            }
            let (shape, words) = text(cx, x)?;
            let tokens: Vec<i64> = words.iter().map(|w| number.get(w.as_str()).map_or(-1, |n| *n)).collect();
            x = cx.b.constant(Tensor::from_i64(shape, &tokens))?;
            pool.iter().map(|w| number[w]).collect()
        }
    };
    let (starts, places) = (cx.need_ints("ngram_counts")?, cx.need_ints("ngram_indexes")?);
    let (shortest, longest) = (cx.need_int("min_gram_length")?, cx.need_int("max_gram_length")?);
    let skips = cx.need_int("max_skip_count")?;
    let weights = cx.attrs.floats("weights")?.unwrap_or_default();
    let mode = cx.string("mode", "TF")?;
    if !(1..=64).contains(&longest) || shortest < 1 || !(0..=64).contains(&skips) {
        return Err(bad("lengths of n-grams"));
    }
    let vector = cx.rank(x) == 1;
    let x = if vector { cx.b.unsqueeze(x, &[0])? } else { x };
    cx.check_rank("tokens", x, 2)?;
    let x = cx.b.convert(x, DType::I64)?;
    let shape = cx.shape(x);
    let b = &mut *cx.b;
    let mut columns = Vec::new();
    for (i, &start) in starts.iter().enumerate() {
        let n = i + 1;
        let end = starts.get(n).copied().unwrap_or(pool.len() as i64);
        let grams = usize::try_from(start)
            .ok()
            .zip(usize::try_from(end).ok())
            .and_then(|(s, e)| pool.get(s..e))
            .ok_or_else(|| bad("ngram_counts does not fit the pool"))?;
        let count = grams.len() / n;
        if count == 0 {
            continue;
        }
        let row = [shape[0].clone(), Dim::from(count)];
        let mut sum = b.full(DType::F32, &row, 0.0)?;
        if (n as i64) < shortest || n as i64 > longest {
            columns.push(sum);
            continue;
        }
        for skip in 0..if n == 1 { 1 } else { skips + 1 } {
            let step = skip + 1;
            let reach = Dim::from((n as i64 - 1) * step);
            let windows = (&shape[1] - &reach).max_with(&Dim::from(0), b.symbols());
            if windows.is_const(0) {
                continue;
            }
            let mut all = None;
            for k in 0..n {
                let part = b.slice_axis(x, 1, &Dim::from(k as i64 * step), &windows)?;
                let part = b.unsqueeze(part, &[2])?;
                let tokens: Vec<i64> = grams.iter().skip(k).step_by(n).take(count).copied().collect();
                let tokens = b.vector_i64(&tokens)?;
                let same = b.eq(part, tokens)?;
                all = Some(match all {
                    None => same,
                    Some(a) => b.and(a, same)?,
                });
            }
            if let Some(all) = all {
                let hits = b.convert(all, DType::F32)?;
                let hits = b.reduce_sum(hits, &[1], false)?;
                sum = b.add(sum, hits)?;
            }
        }
        columns.push(sum);
    }
    let total: usize = columns.iter().map(|&c| b.shape(c)[1].as_const().unwrap_or(0) as usize).sum();
    if places.len() != total || places.iter().any(|&p| !(0..1 << 24).contains(&p)) {
        return Err(bad("ngram_indexes does not fit the pool"));
    }
    // a last column of zeros stands for outputs without an n-gram
    columns.push(b.full(DType::F32, &[shape[0].clone(), Dim::from(1)], 0.0)?);
    let counts = b.concat(&columns, 1)?;
    let width = places.iter().max().map_or(0, |m| m + 1) as usize;
    let (mut source, mut scale) = (vec![total as i64; width], vec![1.0; width]);
    for (i, &p) in places.iter().enumerate() {
        source[p as usize] = i as i64;
        scale[p as usize] = weights.get(i).map_or(1.0, |&w| w.into());
    }
    let source = b.vector_i64(&source)?;
    let mut y = b.gather(counts, source, 1)?;
    if mode == "IDF" {
        let one = b.scalar(DType::F32, 1.0)?;
        y = b.min(y, one)?;
    }
    if mode != "TF" {
        let scale = floats(b, DType::F32, &[width], &scale)?;
        y = b.mul(y, scale)?;
    }
    Ok(if vector { b.squeeze(y, &[0])? } else { y }.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn blank_splits_keep_the_rest() {
        assert_eq!(super::split_blank("  a b  c ", 1), ["a", "b  c "]);
        assert_eq!(super::split_blank("a", 0), ["a"]);
        assert!(super::split_blank("  ", 3).is_empty());
    }
}
