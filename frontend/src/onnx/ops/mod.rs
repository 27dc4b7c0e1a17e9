//! The operator table: one row per operator, by theme.
//!
//! A row names the operator, the first operator-set version whose meaning the handler implements
//! (it looks at [`NodeCx::opset`] where later versions differ), and the handler. To add an operator,
//! write a handler in the file of its theme and add its row to the `OPS` of that file.

use super::cx::{NodeCx, OpError, OpResult};
use crate::diag::Code;
use std::collections::HashMap;
use std::sync::OnceLock;

mod activations;
mod attention;
mod compose;
mod contrib;
mod control;
mod conv;
mod decoding;
mod elementwise;
mod experts;
mod fft;
mod gather;
mod image;
mod legacy;
mod linalg;
mod linear_attention;
mod loss;
mod microsoft;
mod ml;
mod movement;
mod narrow;
mod norm;
mod optional;
mod pool;
mod qlinear;
mod quant;
mod random;
mod reduce;
mod resize;
mod rnn;
mod sequence;
mod shape;
mod signal;
mod softmax;
mod strings;
mod svm;
mod training;
mod trees;

/// One operator.
pub struct Op {
    /// Empty for the standard domain.
    pub domain: &'static str,
    pub name: &'static str,
    /// First version that the handler understands.
    pub since: i64,
    pub import: fn(&mut NodeCx) -> OpResult,
}

/// A row of the standard domain.
const fn op(name: &'static str, since: i64, import: fn(&mut NodeCx) -> OpResult) -> Op {
    Op { domain: "", name, since, import }
}

/// A row of another domain.
const fn op_in(domain: &'static str, name: &'static str, import: fn(&mut NodeCx) -> OpResult) -> Op {
    Op { domain, name, since: 1, import }
}

/// Every theme.
static THEMES: &[&[Op]] = &[
    activations::OPS,
    attention::OPS,
    contrib::OPS,
    control::OPS,
    conv::OPS,
    decoding::OPS,
    elementwise::OPS,
    experts::OPS,
    gather::OPS,
    image::OPS,
    legacy::OPS,
    linalg::OPS,
    linear_attention::OPS,
    loss::OPS,
    microsoft::OPS,
    ml::OPS,
    movement::OPS,
    norm::OPS,
    optional::OPS,
    pool::OPS,
    qlinear::OPS,
    quant::OPS,
    random::OPS,
    reduce::OPS,
    resize::OPS,
    rnn::OPS,
    sequence::OPS,
    shape::OPS,
    signal::OPS,
    softmax::OPS,
    strings::OPS,
    svm::OPS,
    training::OPS,
    trees::OPS,
];

fn table() -> &'static HashMap<(&'static str, &'static str), &'static Op> {
    static TABLE: OnceLock<HashMap<(&'static str, &'static str), &'static Op>> = OnceLock::new();
    TABLE.get_or_init(|| THEMES.iter().flat_map(|t| t.iter()).map(|o| ((o.domain, o.name), o)).collect())
}

/// Domains whose operators exist without an import.
fn implied_version(domain: &str) -> Option<i64> {
    matches!(domain, "com.microsoft").then_some(1)
}

/// The operator and the version to read it with.
pub fn find(domain: &str, name: &str, version: Option<i64>) -> Result<(&'static Op, i64), OpError> {
    let shown = if domain.is_empty() { String::new() } else { format!(" of domain {domain:?}") };
    let Some(op) = table().get(&(domain, name)) else {
        let e = OpError::unsupported(Code::Op, format!("operator {name}{shown} is not supported"));
        if let ("ai.onnx.ml", "CastMap" | "DictVectorizer") = (domain, name) {
            return Err(
                e.hint("it takes a map, which is no tensor: make the vector of its values before the model")
            );
        }
        let known = table().keys().find(|k| k.1.eq_ignore_ascii_case(name) || k.1 == name);
        return Err(match known {
            Some((d, n)) => {
                e.hint(format!("there is {n} in domain {:?}", if d.is_empty() { "ai.onnx" } else { d }))
            }
            None => e,
        });
    };
    let Some(version) = version.or_else(|| implied_version(domain)) else {
        return Err(OpError::invalid(Code::Opset, format!("the model does not import domain {domain:?}")));
    };
    if version < op.since {
        return Err(OpError::unsupported(
            Code::Opset,
            format!("{name} is supported from operator set {} on, the model uses {version}", op.since),
        )
        .hint("convert the model to a newer operator set"));
    }
    Ok((op, version))
}

/// The node's result if it were `name` of the standard domain with these inputs: for operators that are
/// another one with something before or behind it. The inputs of the node are as before afterwards.
fn delegate(cx: &mut NodeCx, name: &str, opset: i64, inputs: &[Option<ir::build::V>]) -> OpResult {
    let (op, opset) = find("", name, Some(opset))?;
    let given = inputs.iter().map(|v| v.map(super::cx::Val::Tensor)).collect();
    let own = (std::mem::replace(&mut cx.inputs, given), std::mem::replace(&mut cx.opset, opset));
    let out = (op.import)(cx);
    (cx.inputs, cx.opset) = own;
    out
}

/// All operators, sorted, for documentation and tests.
pub fn all() -> Vec<&'static Op> {
    let mut all: Vec<_> = table().values().copied().collect();
    all.sort_by_key(|o| (o.domain, o.name));
    all
}
