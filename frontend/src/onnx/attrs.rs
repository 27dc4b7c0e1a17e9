//! Attributes of a node, typed.

use crate::diag::Code;
use crate::onnx::cx::OpError;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, TensorProto, TypeProto};

/// The attributes of one node by name, references to attributes of an enclosing function resolved.
#[derive(Clone, Default)]
pub struct Attrs<'m>(pub Vec<(&'m str, &'m AttributeProto)>);

/// The type of an attribute; files older than IR version 2 do not say it.
fn kind(a: &AttributeProto) -> AttributeType {
    match a.type_.enum_value() {
        Ok(AttributeType::UNDEFINED) | Err(_) => {
            if a.t.is_some() {
                AttributeType::TENSOR
            } else if a.g.is_some() {
                AttributeType::GRAPH
            } else if !a.floats.is_empty() {
                AttributeType::FLOATS
            } else if !a.ints.is_empty() {
                AttributeType::INTS
            } else if !a.strings.is_empty() {
                AttributeType::STRINGS
            } else if !a.s.is_empty() {
                AttributeType::STRING
            } else if a.f != 0.0 {
                AttributeType::FLOAT
            } else {
                AttributeType::INT
            }
        }
        Ok(k) => k,
    }
}

impl<'m> Attrs<'m> {
    fn find(&self, name: &str, want: AttributeType) -> Result<Option<&'m AttributeProto>, OpError> {
        let Some((_, a)) = self.0.iter().find(|a| a.0 == name) else {
            return Ok(None);
        };
        let found = kind(a);
        if found == want || empty_list(a, want) {
            Ok(Some(a))
        } else {
            Err(OpError::invalid(
                Code::Attribute,
                format!("attribute {name} should be {want:?}, found {found:?}"),
            ))
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|a| a.0 == name)
    }
    pub fn int(&self, name: &str) -> Result<Option<i64>, OpError> {
        Ok(self.find(name, AttributeType::INT)?.map(|a| a.i))
    }
    pub fn float(&self, name: &str) -> Result<Option<f32>, OpError> {
        Ok(self.find(name, AttributeType::FLOAT)?.map(|a| a.f))
    }
    pub fn str(&self, name: &str) -> Result<Option<&'m str>, OpError> {
        match self.find(name, AttributeType::STRING)? {
            None => Ok(None),
            Some(a) => text(name, &a.s).map(Some),
        }
    }
    pub fn ints(&self, name: &str) -> Result<Option<&'m [i64]>, OpError> {
        Ok(self.find(name, AttributeType::INTS)?.map(|a| a.ints.as_slice()))
    }
    pub fn floats(&self, name: &str) -> Result<Option<&'m [f32]>, OpError> {
        Ok(self.find(name, AttributeType::FLOATS)?.map(|a| a.floats.as_slice()))
    }
    pub fn strs(&self, name: &str) -> Result<Option<Vec<&'m str>>, OpError> {
        match self.find(name, AttributeType::STRINGS)? {
            None => Ok(None),
            Some(a) => a.strings.iter().map(|s| text(name, s)).collect::<Result<_, _>>().map(Some),
        }
    }
    pub fn tensor(&self, name: &str) -> Result<Option<&'m TensorProto>, OpError> {
        Ok(self.find(name, AttributeType::TENSOR)?.and_then(|a| a.t.as_ref()))
    }
    pub fn tensors(&self, name: &str) -> Result<&'m [TensorProto], OpError> {
        Ok(self.find(name, AttributeType::TENSORS)?.map_or(&[], |a| a.tensors.as_slice()))
    }
    pub fn type_proto(&self, name: &str) -> Result<Option<&'m TypeProto>, OpError> {
        Ok(self.find(name, AttributeType::TYPE_PROTO)?.and_then(|a| a.tp.as_ref()))
    }
    pub fn graph(&self, name: &str) -> Result<Option<&'m GraphProto>, OpError> {
        Ok(self.find(name, AttributeType::GRAPH)?.and_then(|a| a.g.as_ref()))
    }
}

/// A list without elements has no field that tells its type.
fn empty_list(a: &AttributeProto, want: AttributeType) -> bool {
    let list = matches!(want, AttributeType::INTS | AttributeType::FLOATS | AttributeType::STRINGS);
    list && matches!(a.type_.enum_value(), Ok(AttributeType::UNDEFINED) | Err(_)) && a.i == 0
}

fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, OpError> {
    std::str::from_utf8(bytes)
        .map_err(|_| OpError::invalid(Code::Attribute, format!("attribute {name} is not UTF-8")))
}
