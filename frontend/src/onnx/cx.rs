//! What an operator's handler sees: inputs, attributes, and the builder it writes to.

use super::attrs::Attrs;
use super::import::Importer;
use crate::diag::{Code, Diagnostic, Kind};
use ir::build::{Builder, V};
use ir::tensor::{ConstData, ConstSource};
use ir::{DType, Dim, IrError, TensorType};
use onnx_protobuf::GraphProto;
use std::rc::Rc;

/// A value of an ONNX graph. Sequences and optionals have a structure that is known at import: they
/// are expanded into the tensors they hold.
#[derive(Clone, Debug)]
pub enum Val {
    Tensor(V),
    Seq(Rc<Seq>),
    /// An optional that holds nothing, with the type it could hold where that is known. One that
    /// holds something is that thing.
    Absent(Option<DType>),
    /// The result of a node that has been reported: its users are not reported again.
    Poison,
}

/// A sequence of tensors (or of sequences).
#[derive(Clone, Debug, Default)]
pub struct Seq {
    /// Element type where the sequence says it: empty sequences need it.
    pub dtype: Option<DType>,
    pub items: Vec<Val>,
}

impl From<V> for Val {
    fn from(v: V) -> Val {
        Val::Tensor(v)
    }
}

/// Why a node cannot be imported.
#[derive(Debug, Clone)]
pub struct OpError {
    pub kind: Kind,
    pub code: Code,
    pub message: String,
    pub hint: Option<String>,
    /// The cause has been reported already.
    pub reported: bool,
    /// What was found inside a subgraph or function.
    pub nested: Vec<Diagnostic>,
}

impl OpError {
    fn new(kind: Kind, code: Code, message: impl Into<String>) -> OpError {
        OpError { kind, code, message: message.into(), hint: None, reported: false, nested: Vec::new() }
    }
    pub fn invalid(code: Code, message: impl Into<String>) -> OpError {
        OpError::new(Kind::Invalid, code, message)
    }
    pub fn unsupported(code: Code, message: impl Into<String>) -> OpError {
        OpError::new(Kind::Unsupported, code, message)
    }
    pub fn limit(message: impl Into<String>) -> OpError {
        OpError::new(Kind::Limit, Code::Limit, message)
    }
    pub fn reported() -> OpError {
        OpError { reported: true, ..OpError::invalid(Code::Input, "") }
    }
    /// Problems of nodes inside.
    pub fn nested(problems: Vec<Diagnostic>) -> OpError {
        OpError { nested: problems, ..OpError::reported() }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> OpError {
        self.hint = Some(hint.into());
        self
    }
}

impl From<IrError> for OpError {
    fn from(e: IrError) -> OpError {
        match e {
            IrError::Limit(m) => OpError::limit(m),
            IrError::Type { message, .. } => OpError::invalid(Code::Shape, message),
            e => OpError::invalid(Code::Shape, e.to_string()),
        }
    }
}

impl From<Diagnostic> for OpError {
    fn from(d: Diagnostic) -> OpError {
        OpError {
            kind: d.kind,
            code: d.code,
            message: d.message,
            hint: d.hint,
            reported: false,
            nested: Vec::new(),
        }
    }
}

/// The results of a node, in the order of its outputs; there may be more than the node names.
#[derive(Debug, Default)]
pub struct Outs(pub Vec<Val>);

impl From<V> for Outs {
    fn from(v: V) -> Outs {
        Outs(vec![Val::Tensor(v)])
    }
}
impl From<Val> for Outs {
    fn from(v: Val) -> Outs {
        Outs(vec![v])
    }
}
impl From<Vec<V>> for Outs {
    fn from(v: Vec<V>) -> Outs {
        Outs(v.into_iter().map(Val::Tensor).collect())
    }
}
impl<const N: usize> From<[V; N]> for Outs {
    fn from(v: [V; N]) -> Outs {
        Outs(v.map(Val::Tensor).into())
    }
}

/// Beyond every position in a tensor.
const FAR: i64 = 4 * Dim::LIMIT;

pub type OpResult = Result<Outs, OpError>;

/// The context of one node.
pub struct NodeCx<'x, 'm> {
    /// Writes the graph.
    pub b: &'x mut Builder,
    /// The importer, for subgraphs and tensors.
    pub imp: &'x mut Importer<'m>,
    pub attrs: Attrs<'m>,
    pub op_type: &'m str,
    pub domain: &'m str,
    /// Version of the operator set of `domain` that the node is to be read with.
    pub opset: i64,
    pub(super) inputs: Vec<Option<Val>>,
    pub(super) outputs: &'m [String],
}

impl<'m> NodeCx<'_, 'm> {
    // ---- inputs ----------------------------------------------------------------------------

    /// Number of inputs, trailing absent ones not counted.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }
    /// Number of outputs, trailing unnamed ones not counted.
    pub fn output_count(&self) -> usize {
        self.outputs.len()
    }
    /// True where output `i` has a name.
    pub fn wants(&self, i: usize) -> bool {
        self.outputs.get(i).is_some_and(|s| !s.is_empty())
    }
    /// Input `i` of any kind, `None` where absent.
    pub fn val(&self, i: usize) -> Option<&Val> {
        self.inputs.get(i).and_then(|v| v.as_ref())
    }
    /// Tensor input `i`, `None` where absent.
    pub fn opt(&self, i: usize) -> Result<Option<V>, OpError> {
        match self.val(i) {
            // an input that the caller of a function left out is absent inside too
            None | Some(Val::Absent(_)) => Ok(None),
            Some(Val::Tensor(v)) => Ok(Some(*v)),
            Some(_) => Err(OpError::invalid(Code::Type, format!("input {i} should be a tensor"))),
        }
    }
    /// Tensor input `i`.
    pub fn input(&self, i: usize) -> Result<V, OpError> {
        self.opt(i)?.ok_or_else(|| OpError::invalid(Code::Input, format!("input {i} is missing")))
    }
    /// All inputs, which must be tensors.
    pub fn all_inputs(&self) -> Result<Vec<V>, OpError> {
        (0..self.input_count()).map(|i| self.input(i)).collect()
    }
    /// Sequence input `i`.
    pub fn seq(&self, i: usize) -> Result<Rc<Seq>, OpError> {
        match self.val(i) {
            Some(Val::Seq(s)) => Ok(s.clone()),
            _ => Err(OpError::invalid(Code::Type, format!("input {i} should be a sequence"))),
        }
    }

    pub fn ty(&self, v: V) -> TensorType {
        self.b.ty(v).clone()
    }
    pub fn dtype(&self, v: V) -> DType {
        self.b.ty(v).dtype
    }
    pub fn shape(&self, v: V) -> Vec<Dim> {
        self.b.ty(v).shape.clone()
    }
    pub fn rank(&self, v: V) -> usize {
        self.b.ty(v).shape.len()
    }
    /// Extent of one axis; a rank that is too small is an error.
    pub fn dim(&self, v: V, axis: usize) -> Result<Dim, OpError> {
        self.b.shape(v).get(axis).cloned().ok_or_else(|| {
            OpError::invalid(
                Code::Shape,
                format!("expected rank {} at least, found {}", axis + 1, self.rank(v)),
            )
        })
    }

    // ---- attributes ------------------------------------------------------------------------

    pub fn int(&self, name: &str, default: i64) -> Result<i64, OpError> {
        Ok(self.attrs.int(name)?.unwrap_or(default))
    }
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, OpError> {
        Ok(self.attrs.int(name)?.map_or(default, |i| i != 0))
    }
    pub fn float(&self, name: &str, default: f32) -> Result<f32, OpError> {
        Ok(self.attrs.float(name)?.unwrap_or(default))
    }
    pub fn string(&self, name: &str, default: &'m str) -> Result<&'m str, OpError> {
        Ok(self.attrs.str(name)?.unwrap_or(default))
    }
    pub fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, OpError> {
        Ok(self.attrs.ints(name)?.map(<[i64]>::to_vec))
    }
    /// A required integer attribute.
    pub fn need_int(&self, name: &str) -> Result<i64, OpError> {
        self.attrs
            .int(name)?
            .ok_or_else(|| OpError::invalid(Code::Attribute, format!("attribute {name} is missing")))
    }
    pub fn need_ints(&self, name: &str) -> Result<Vec<i64>, OpError> {
        self.ints(name)?
            .ok_or_else(|| OpError::invalid(Code::Attribute, format!("attribute {name} is missing")))
    }
    pub fn need_graph(&self, name: &str) -> Result<&'m GraphProto, OpError> {
        self.attrs
            .graph(name)?
            .ok_or_else(|| OpError::invalid(Code::Attribute, format!("attribute {name} is missing")))
    }
    /// A tensor attribute as a constant.
    pub fn tensor_attr(&mut self, name: &str) -> Result<Option<ConstData>, OpError> {
        match self.attrs.tensor(name)? {
            None => Ok(None),
            Some(t) => Ok(Some(self.imp.storage.constant(t)?)),
        }
    }
    /// Attribute `name` as an element type.
    pub fn dtype_attr(&self, name: &str) -> Result<Option<DType>, OpError> {
        match self.attrs.int(name)? {
            None => Ok(None),
            Some(i) => Ok(Some(super::tensor::dtype_of(i32::try_from(i).unwrap_or(0))?)),
        }
    }

    // ---- small things ----------------------------------------------------------------------

    /// A scalar of the element type of `x`.
    pub fn like(&mut self, x: V, value: f64) -> Result<V, OpError> {
        let dtype = self.dtype(x);
        Ok(self.b.scalar(dtype, value)?)
    }
    /// A tensor of one element as a scalar.
    pub fn as_scalar(&mut self, v: V) -> Result<V, OpError> {
        Ok(self.b.reshape(v, &[])?)
    }
    /// The value of a constant with one element.
    pub fn const_f64(&self, v: V) -> Option<f64> {
        match self.b.known_floats(v)?.as_slice() {
            [x] => Some(*x),
            _ => None,
        }
    }

    /// The text of a constant string tensor.
    pub fn const_strings(&self, v: V) -> Option<Vec<String>> {
        match &self.b.constant_of(v)?.source {
            ConstSource::Strings(s) => Some(s.to_vec()),
            _ => None,
        }
    }

    // ---- checks ----------------------------------------------------------------------------

    /// `axis` counted from the end where negative, checked against `rank`.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize, OpError> {
        let r = rank as i64;
        if (-r..r).contains(&axis) {
            Ok(axis.rem_euclid(r) as usize)
        } else {
            Err(OpError::invalid(Code::Attribute, format!("axis {axis} is out of range for rank {rank}")))
        }
    }
    /// Attribute `axis` (or another name) with its default, normalised.
    pub fn axis_attr(&self, name: &str, default: i64, rank: usize) -> Result<usize, OpError> {
        self.axis(self.int(name, default)?, rank)
    }
    /// Distinct axes, normalised, in the order given.
    pub fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
        let mut out = Vec::with_capacity(axes.len().min(rank));
        for &a in axes {
            let a = self.axis(a, rank)?;
            if out.contains(&a) {
                return Err(OpError::invalid(Code::Attribute, format!("axis {a} is named twice")));
            }
            out.push(a);
        }
        Ok(out)
    }
    /// Fails unless `v` has rank `want`.
    pub fn check_rank(&self, what: &str, v: V, want: usize) -> Result<(), OpError> {
        let found = self.rank(v);
        if found == want {
            return Ok(());
        }
        Err(OpError::invalid(Code::Shape, format!("expected {what} of rank {want}, found rank {found}")))
    }

    // ---- operands that are sizes -----------------------------------------------------------

    /// The elements of a small integer operand as size expressions: folded where the graph says
    /// them, else bound when the program reaches this node. The operand is a scalar or a vector.
    /// Run-time elements are at least `lo`.
    pub fn sizes_of(&mut self, v: V, lo: i64) -> Result<Vec<Dim>, OpError> {
        if self.rank(v) > 1 {
            return Err(OpError::invalid(
                Code::Shape,
                format!("expected a list of sizes, found rank {}", self.rank(v)),
            ));
        }
        if self.dim_count(v).is_none() {
            return Err(OpError::unsupported(
                Code::Dynamic,
                "a list of sizes whose length is only known when the model is executed",
            ));
        }
        if let Some(c) = self.b.known_ints(v) {
            // exporters write the largest integer for "to the end"
            return Ok(c.into_iter().map(|x| Dim::from(x.clamp(-FAR, FAR))).collect());
        }
        Ok(self.b.bind_dims(v, lo, Dim::LIMIT, 8)?)
    }
    /// Number of elements, where the shape is static.
    fn dim_count(&self, v: V) -> Option<i64> {
        let shape: Option<Vec<i64>> = self.b.shape(v).iter().map(Dim::as_const).collect();
        let shape = shape?;
        if shape.contains(&0) { Some(0) } else { shape.iter().try_fold(1i64, |n, d| n.checked_mul(*d)) }
    }
    /// The one element of an integer operand as a size expression, at least `lo`.
    pub fn size_of(&mut self, v: V, lo: i64) -> Result<Dim, OpError> {
        let d = self.sizes_of(v, lo)?;
        match d.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(OpError::invalid(Code::Shape, format!("expected one element, found {}", d.len()))),
        }
    }
    /// The elements of an integer operand where they are constants.
    pub fn const_ints(&self, v: V) -> Option<Vec<i64>> {
        self.b.known_ints(v)
    }
    /// As [`NodeCx::const_ints`] for what decides the structure of the graph (axes, permutations).
    pub fn need_const_ints(&self, what: &str, v: V) -> Result<Vec<i64>, OpError> {
        self.const_ints(v).ok_or_else(|| {
            OpError::unsupported(Code::Dynamic, format!("{what} is only known when the model is executed"))
                .hint("the structure of the graph has to be known at compile time: make it a constant")
        })
    }
}
