//! A scan of the protobuf bytes of a model before anything is built from them.
//!
//! It does two things. It refuses what could hurt the parser behind it: deep nesting and groups,
//! both of which make a recursive parser overflow its stack. And it leaves the tensors' bytes where
//! they are: each `raw_data` is replaced by the index of its place, so that weights are never copied
//! out of the (memory-mapped) file.

use std::ops::Range;

/// A model without the bytes of its tensors.
#[derive(Debug, Default)]
pub struct Skeleton {
    /// A `ModelProto` in which every `raw_data` holds a little-endian u32: an index into `blobs`.
    pub bytes: Vec<u8>,
    pub blobs: Vec<Range<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the data ends in the middle of a field at byte {0}")]
    Truncated(usize),
    #[error("a malformed field at byte {0}")]
    Malformed(usize),
    #[error("messages are nested more than {MAX_DEPTH} deep at byte {0}")]
    Depth(usize),
    #[error("more than {MAX_FIELDS} fields")]
    Fields,
}

/// Deepest nesting of messages; the parser's own limit is 100.
const MAX_DEPTH: usize = 96;
/// Bound on the number of fields, hence on the memory that parsing can take.
const MAX_FIELDS: usize = 50_000_000;

/// The messages on the way to tensors, and those that recurse.
#[derive(Clone, Copy, PartialEq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
    Training,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Container,
    /// Scanned for groups only.
    Leaf,
}

impl Message {
    /// The message in field `field`, by the numbers of onnx.proto.
    fn child(self, field: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, field) {
            (Model, 7) | (Attribute, 6 | 11) | (Training, 1 | 2) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Graph, 11..=13) | (Function, 12) => ValueInfo,
            (Node, 5) | (Function, 11) => Attribute,
            (ValueInfo, 2) | (Attribute, 14 | 15) => Type,
            (Type, 1 | 8) => TensorType,
            (TensorType, 2) => Shape,
            // sequences and optionals hold their element type in field 1, maps their value type in 2
            (Type, 4 | 5 | 9) => Container,
            (Container, 1 | 2) => Type,
            (Shape, 1) => Leaf,
            (Model, 8 | 14) | (Graph, 14 | 16) | (Function, 9 | 14) | (Node, 9) | (Tensor, 3 | 13 | 16) => {
                Leaf
            }
            _ => return None,
        })
    }
}

const RAW_DATA: u64 = 9;

/// Reads the structure of `model` (a `ModelProto`).
pub fn scan(model: &[u8]) -> Result<Skeleton, WireError> {
    scan_as(model, Message::Model)
}

/// Reads the structure of one `TensorProto`.
pub fn scan_tensor(tensor: &[u8]) -> Result<Skeleton, WireError> {
    scan_as(tensor, Message::Tensor)
}

fn scan_as(bytes: &[u8], message: Message) -> Result<Skeleton, WireError> {
    let mut s = Scan { bytes, blobs: Vec::new(), fields: 0 };
    let mut out = Vec::new();
    s.message(message, 0..bytes.len(), 0, &mut out)?;
    Ok(Skeleton { bytes: out, blobs: s.blobs })
}

struct Scan<'a> {
    bytes: &'a [u8],
    blobs: Vec<Range<usize>>,
    fields: usize,
}

impl Scan<'_> {
    fn varint(&self, at: &mut usize, end: usize) -> Result<u64, WireError> {
        let start = *at;
        let mut value = 0u64;
        for i in 0..10 {
            if *at >= end {
                return Err(WireError::Truncated(start));
            }
            let b = self.bytes[*at];
            *at += 1;
            value |= u64::from(b & 0x7f).checked_shl(7 * i).unwrap_or(0);
            if b & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Malformed(start))
    }

    fn message(
        &mut self,
        kind: Message,
        range: Range<usize>,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), WireError> {
        if depth > MAX_DEPTH {
            return Err(WireError::Depth(range.start));
        }
        let (mut at, end) = (range.start, range.end);
        while at < end {
            self.fields += 1;
            if self.fields > MAX_FIELDS {
                return Err(WireError::Fields);
            }
            let start = at;
            let key = self.varint(&mut at, end)?;
            let (field, wire) = (key >> 3, key & 7);
            if field == 0 || field > u64::from(u32::MAX >> 3) {
                return Err(WireError::Malformed(start));
            }
            let step = match wire {
                0 => {
                    self.varint(&mut at, end)?;
                    0
                }
                1 => 8,
                5 => 4,
                2 => self.varint(&mut at, end)?,
                // groups are not used by ONNX, and end-group marks without a group are malformed
                _ => return Err(WireError::Malformed(start)),
            };
            let step = usize::try_from(step).map_err(|_| WireError::Truncated(start))?;
            if step > end - at {
                return Err(WireError::Truncated(start));
            }
            let body = at..at + step;
            at += step;
            if wire != 2 {
                out.extend_from_slice(&self.bytes[start..at]);
            } else if kind == Message::Tensor && field == RAW_DATA {
                put_varint(out, key);
                put_varint(out, 4);
                out.extend_from_slice(&(self.blobs.len() as u32).to_le_bytes());
                self.blobs.push(body);
            } else if let Some(child) = kind.child(field) {
                let mut inner = Vec::new();
                self.message(child, body, depth + 1, &mut inner)?;
                put_varint(out, key);
                put_varint(out, inner.len() as u64);
                out.append(&mut inner);
            } else {
                out.extend_from_slice(&self.bytes[start..at]);
            }
        }
        Ok(())
    }
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::{GraphProto, Message as _, ModelProto, NodeProto, TensorProto};

    fn model() -> ModelProto {
        let mut t = TensorProto::new();
        t.dims = vec![3];
        t.raw_data = vec![1, 2, 3];
        let mut g = GraphProto::new();
        g.initializer.push(t);
        g.node.push(NodeProto::new());
        let mut m = ModelProto::new();
        m.graph = Some(g).into();
        m
    }

    #[test]
    fn tensors_are_left_where_they_are() {
        let bytes = model().write_to_bytes().unwrap();
        let s = scan(&bytes).unwrap();
        let back = ModelProto::parse_from_bytes(&s.bytes).unwrap();
        let raw = &back.graph.initializer[0].raw_data;
        let blob = s.blobs[u32::from_le_bytes(raw.as_slice().try_into().unwrap()) as usize].clone();
        assert_eq!(&bytes[blob], &[1, 2, 3]);
        assert_eq!(back.graph.node.len(), 1);
    }

    #[test]
    fn hostile_nesting_is_refused() {
        // groups in groups: what overflows the stack of a recursive skipper
        assert!(matches!(scan(&vec![0x0b; 1_000_000]), Err(WireError::Malformed(_))));
        // graphs in attributes in nodes in graphs ...
        let mut bytes = Vec::new();
        for i in 0..300 {
            let key = [0x32, 0x2a, 0x0a][i % 3];
            let mut next = vec![key];
            put_varint(&mut next, bytes.len() as u64);
            next.append(&mut bytes);
            bytes = next;
        }
        let mut m = vec![0x3a];
        put_varint(&mut m, bytes.len() as u64);
        m.append(&mut bytes);
        assert!(matches!(scan(&m), Err(WireError::Depth(_))));
    }

    #[test]
    fn truncations_are_errors_or_shorter_models() {
        let bytes = model().write_to_bytes().unwrap();
        for n in 0..bytes.len() {
            if let Ok(s) = scan(&bytes[..n]) {
                assert!(s.blobs.iter().all(|b| b.end <= n));
            }
        }
    }
}
