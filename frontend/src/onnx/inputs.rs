//! Inputs and outputs of a model: types to values, names to symbols, sequences to their elements.

use super::cx::{Seq, Val};
use super::import::Importer;
use super::tensor::{MAX_RANK, dtype_of};
use crate::diag::{Code, Diagnostic};
use crate::options::{ImportOptions, Structure};
use crate::{Port, PortKind};
use ir::build::{Builder, V};
use ir::{DType, Dim, Tensor};
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{TypeProto, ValueInfoProto, type_proto};
use std::collections::HashSet;
use std::rc::Rc;

impl Importer<'_> {
    pub(super) fn graph_input(
        &mut self,
        b: &mut Builder,
        name: &str,
        ty: &TypeProto,
        structure: Option<&Structure>,
    ) -> Result<(Val, Port), Diagnostic> {
        let at = |d: Diagnostic| Diagnostic { message: format!("input {name:?}: {}", d.message), ..d };
        match (&ty.value, structure) {
            (Some(type_proto::Value::TensorType(t)), _) => {
                let dtype = dtype_of(t.elem_type).map_err(at)?;
                let shape = match (&t.shape.0, structure, self.opts.shapes.get(name)) {
                    (declared, _, Some(dims)) => {
                        fixed_shape(dims, declared.as_ref().map(|s| s.dim.as_slice())).map_err(at)?
                    }
                    (Some(s), ..) => self.dims(b, name, &s.dim).map_err(at)?,
                    (None, Some(Structure::Tensor { rank }), _) => fresh_dims(b, self.opts, name, *rank),
                    (None, ..) => {
                        return Err(at(Diagnostic::unsupported(Code::Dynamic, "the model does not say its rank")
                            .hint("export the model with input shapes; dimensions may be symbolic, the rank may not")));
                    }
                };
                let v = match self.opts.constants.get(name) {
                    Some(t) => fixed_input(b, name, dtype, shape, t).map_err(at)?,
                    None => b.input(name, dtype, shape),
                };
                Ok((Val::Tensor(v), Port::tensor(name)))
            }
            (Some(type_proto::Value::SequenceType(s)), Some(Structure::Sequence(items))) => {
                let elem = s.elem_type.get_or_default();
                let own = self.with_own_dims(elem);
                let (mut vals, mut ports) = (Vec::new(), Vec::new());
                for (i, item) in items.iter().enumerate() {
                    let (v, p) = self.graph_input(b, &format!("{name}.{i}"), &own, Some(item))?;
                    vals.push(v);
                    ports.push(p);
                }
                let seq = Seq { dtype: element_dtype(elem), items: vals };
                Ok((Val::Seq(Rc::new(seq)), Port { name: name.into(), kind: PortKind::Sequence(ports) }))
            }
            (Some(type_proto::Value::OptionalType(o)), Some(Structure::Absent)) => {
                let dtype = element_dtype(o.elem_type.get_or_default());
                Ok((Val::Absent(dtype), Port { name: name.into(), kind: PortKind::Absent }))
            }
            (Some(type_proto::Value::OptionalType(o)), s) => {
                self.graph_input(b, name, o.elem_type.get_or_default(), s)
            }
            (Some(type_proto::Value::SequenceType(_)), _) => {
                Err(at(Diagnostic::unsupported(Code::Dynamic, "a sequence of unknown length")
                    .hint("say the structure of the input in the import options")))
            }
            (None, _) => Err(at(Diagnostic::invalid(Code::Type, "no type"))),
            _ => Err(at(Diagnostic::unsupported(Code::Type, "maps and sparse tensors are not supported"))),
        }
    }

    /// The element type of a sequence for one element: a named dim may have another value in each.
    fn with_own_dims(&self, elem: &TypeProto) -> TypeProto {
        let mut own = elem.clone();
        if let Some(type_proto::Value::TensorType(t)) = &mut own.value
            && let Some(shape) = t.shape.as_mut()
        {
            for d in &mut shape.dim {
                let named = matches!(&d.value, Some(dimension::Value::DimParam(p)) if !self.opts.dims.contains_key(p));
                if named {
                    d.value = None;
                }
            }
        }
        own
    }

    /// Dims of an input: fixed, a symbol per `dim_param`, or a fresh symbol.
    fn dims(
        &mut self,
        b: &mut Builder,
        name: &str,
        dims: &[onnx_protobuf::tensor_shape_proto::Dimension],
    ) -> Result<Vec<Dim>, Diagnostic> {
        if dims.len() > MAX_RANK {
            return Err(Diagnostic::limit(format!("rank {}", dims.len())));
        }
        let mut out = Vec::with_capacity(dims.len());
        for (i, d) in dims.iter().enumerate() {
            out.push(match &d.value {
                Some(dimension::Value::DimValue(0..)) if self.opts.all_dims_symbolic => {
                    fresh_dim(b, self.opts, name, i)
                }
                Some(dimension::Value::DimValue(n)) if (0..=Dim::LIMIT).contains(n) => Dim::from(*n),
                // some exporters write -1 for a dimension they do not know
                Some(dimension::Value::DimValue(-1)) | None => fresh_dim(b, self.opts, name, i),
                Some(dimension::Value::DimValue(n)) => {
                    return Err(Diagnostic::invalid(Code::Shape, format!("dimension {i} is {n}")));
                }
                Some(dimension::Value::DimParam(p)) if p.is_empty() => fresh_dim(b, self.opts, name, i),
                Some(dimension::Value::DimParam(p)) => match self.opts.dims.get(p) {
                    Some(n) if (0..=Dim::LIMIT).contains(n) => Dim::from(*n),
                    Some(n) => {
                        return Err(Diagnostic::invalid(Code::Shape, format!("dimension {p} cannot be {n}")));
                    }
                    None => match self.sum_of_named(b, p) {
                        Some(sum) => sum,
                        None => self.named_dim(b, p),
                    },
                },
                Some(_) => fresh_dim(b, self.opts, name, i),
            });
        }
        Ok(out)
    }

    /// The symbol of a `dim_param`, or the size that the options give it.
    fn named_dim(&mut self, b: &mut Builder, name: &str) -> Dim {
        match self.opts.dims.get(name) {
            Some(n) if (0..=Dim::LIMIT).contains(n) => Dim::from(*n),
            _ => self
                .symbols
                .entry(name.to_owned())
                .or_insert_with(|| entry_symbol(b, self.opts, name))
                .clone(),
        }
    }

    /// A `dim_param` that says itself that it is a sum of others (`past + seq`, `past_plus_seq`, `seq + 1`). So the
    /// sizes of masks and caches are seen to be equal; inputs that contradict it are refused at run time.
    fn sum_of_named(&mut self, b: &mut Builder, name: &str) -> Option<Dim> {
        if !self.opts.sums_of_names {
            return None;
        }
        let terms: Vec<&str> = name.split('+').flat_map(|t| t.split("_plus_")).map(str::trim).collect();
        let known = |t: &&str| t.parse::<u32>().is_ok() || self.input_dims.contains(*t);
        if terms.len() < 2 || !terms.iter().all(known) || !terms.iter().any(|t| self.input_dims.contains(*t))
        {
            return None;
        }
        let mut sum = Dim::from(0);
        for t in terms {
            sum = match t.parse::<u32>() {
                Ok(n) => sum + Dim::from(i64::from(n)),
                Err(_) => sum + self.named_dim(b, t),
            };
        }
        Some(sum)
    }
}

/// The `dim_param`s of inputs, except those whose shape the options fix: every such symbol has a value
/// once the inputs are there.
pub(super) fn dim_params<'m>(
    inputs: impl Iterator<Item = &'m ValueInfoProto>,
    opts: &ImportOptions,
) -> HashSet<&'m str> {
    let free = inputs.filter(|v| !opts.shapes.contains_key(&v.name));
    free.filter_map(|v| match &v.type_.value {
        Some(type_proto::Value::TensorType(t)) => Some(t.shape.dim.iter()),
        _ => None,
    })
    .flatten()
    .filter_map(|d| match &d.value {
        Some(dimension::Value::DimParam(p)) => Some(p.as_str()),
        _ => None,
    })
    .collect()
}

fn fresh_dims(b: &mut Builder, opts: &ImportOptions, name: &str, rank: usize) -> Vec<Dim> {
    (0..rank).map(|i| fresh_dim(b, opts, name, i)).collect()
}

/// The shape that the options give an input, checked against what the model declares.
fn fixed_shape(
    dims: &[i64],
    declared: Option<&[onnx_protobuf::tensor_shape_proto::Dimension]>,
) -> Result<Vec<Dim>, Diagnostic> {
    let contradicts = |(d, n): (&onnx_protobuf::tensor_shape_proto::Dimension, &i64)| matches!(d.value, Some(dimension::Value::DimValue(v)) if v >= 0 && v != *n);
    let wrong = declared.is_some_and(|d| d.len() != dims.len() || d.iter().zip(dims).any(contradicts));
    if wrong || dims.iter().any(|n| !(0..=Dim::LIMIT).contains(n)) {
        return Err(Diagnostic::invalid(
            Code::Shape,
            format!("the model does not accept the shape {dims:?}"),
        ));
    }
    Ok(dims.iter().map(|&n| Dim::from(n)).collect())
}

/// An input with a known value: the input stays, its users see a constant.
fn fixed_input(
    b: &mut Builder,
    name: &str,
    dtype: DType,
    shape: Vec<Dim>,
    value: &Tensor,
) -> Result<V, Diagnostic> {
    if value.dtype != dtype || value.shape.len() != shape.len() {
        return Err(Diagnostic::invalid(
            Code::Type,
            format!("the fixed value is {value:?}, the input {dtype} of rank {}", shape.len()),
        ));
    }
    b.input(name, dtype, shape);
    b.constant(value.clone()).map_err(|e| Diagnostic::invalid(Code::Type, e.to_string()))
}

/// A symbol for dim `i` of the input `name`, which the model does not name.
fn fresh_dim(b: &mut Builder, opts: &ImportOptions, input: &str, i: usize) -> Dim {
    let name = format!("{input}_{i}");
    match opts.dims.get(&name) {
        Some(n) if (0..=Dim::LIMIT).contains(n) => Dim::from(*n),
        _ => entry_symbol(b, opts, &name),
    }
}

/// The symbol of a dimension of the inputs, with its range.
fn entry_symbol(b: &mut Builder, opts: &ImportOptions, name: &str) -> Dim {
    // what counts the steps before this one is nothing at first, as in a key/value cache
    let lower = name.to_ascii_lowercase();
    let is_sum = ["+", "plus", "total"].iter().any(|w| lower.contains(w));
    let starts_empty = ["past", "cache", "history"].iter().any(|w| lower.contains(w)) && !is_sum;
    let default = (if starts_empty { 0 } else { opts.smallest_dim }, Dim::LIMIT);
    let (lo, hi) = opts.dim_ranges.get(name).copied().unwrap_or(default);
    let lo = lo.clamp(0, Dim::LIMIT);
    b.symbol(name, lo, hi.clamp(lo, Dim::LIMIT))
}

/// Element type at the bottom of a type.
pub fn element_dtype(ty: &TypeProto) -> Option<DType> {
    match &ty.value {
        Some(type_proto::Value::TensorType(t)) => dtype_of(t.elem_type).ok(),
        Some(type_proto::Value::SequenceType(s)) => element_dtype(s.elem_type.get_or_default()),
        Some(type_proto::Value::OptionalType(s)) => element_dtype(s.elem_type.get_or_default()),
        _ => None,
    }
}

pub(super) fn output_port(name: &str, val: &Val, values: &mut Vec<(String, V)>) -> Result<Port, Diagnostic> {
    let kind = match val {
        Val::Tensor(v) => {
            values.push((name.to_owned(), *v));
            PortKind::Tensor
        }
        Val::Seq(s) => PortKind::Sequence(
            s.items
                .iter()
                .enumerate()
                .map(|(i, v)| output_port(&format!("{name}.{i}"), v, values))
                .collect::<Result<_, _>>()?,
        ),
        Val::Absent(_) => PortKind::Absent,
        Val::Poison => {
            return Err(Diagnostic::invalid(Code::Name, format!("output {name:?} is never computed")));
        }
    };
    Ok(Port { name: name.to_owned(), kind })
}
