//! The compiled program as data.

use crate::size::SizeExpr;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Element type of a buffer, as stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Elem {
    /// `f32`, `i64`, `bf16`, `bool`, ... as the text forms spell it.
    pub name: &'static str,
    /// Bytes of one stored element.
    pub bytes: usize,
}

/// Every element type that a program may store, with the bytes of an element.
const ELEMS: [(&str, usize); 24] = [
    ("f64", 8),
    ("f32", 4),
    ("f16", 2),
    ("bf16", 2),
    ("f8e4m3fn", 1),
    ("f8e4m3fnuz", 1),
    ("f8e5m2", 1),
    ("f8e5m2fnuz", 1),
    ("f8e8m0", 1),
    ("f4e2m1", 1),
    ("i64", 8),
    ("i32", 4),
    ("i16", 2),
    ("i8", 1),
    ("i4", 1),
    ("i2", 1),
    ("u64", 8),
    ("u32", 4),
    ("u16", 2),
    ("u8", 1),
    ("u4", 1),
    ("u2", 1),
    ("bool", 1),
    ("string", 0),
];

impl Elem {
    /// The element type of this name.
    pub fn named(name: &str) -> Option<Elem> {
        ELEMS.iter().find(|e| e.0 == name).map(|&(name, bytes)| Elem { name, bytes })
    }
}

impl Serialize for Elem {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.name.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Elem {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Elem, D::Error> {
        let name = String::deserialize(d)?;
        Elem::named(&name).ok_or_else(|| serde::de::Error::custom("unknown element type"))
    }
}

/// A size symbol: inclusive range, and what to plan for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SymbolDef {
    pub name: String,
    pub lo: i64,
    pub hi: i64,
    /// Bound by the shapes of the inputs.
    pub entry: bool,
}

/// A node of the model that errors and profiles speak of.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct OriginDef {
    pub node: String,
    pub op_type: String,
    pub opset: i64,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct IoDef {
    pub name: String,
    pub elem: Elem,
    pub shape: Vec<SizeExpr>,
    pub buffer: usize,
}

/// Read-only bytes shared by every context (a mapped file, a vector).
pub trait Blob: Send + Sync {
    fn bytes(&self) -> &[u8];
    /// Advice: nobody will read the bytes soon, so that memory which only caches them can be given back.
    fn release(&self) {}
}

impl Blob for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Where a buffer lives; see the fields of the same name in `ir::host::Place`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Place {
    Const(usize),
    Init,
    Input(usize),
    Output(usize),
    /// Memory of its own that grows as needed: scan outputs, results of host functions.
    Own,
    Arena {
        offset: SizeExpr,
    },
    Alias(usize),
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BufferDef {
    pub name: String,
    pub elem: Elem,
    pub shape: Vec<SizeExpr>,
    pub bytes: SizeExpr,
    pub place: Place,
}

/// Code of one kernel variant.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VariantDef {
    /// Usable where every `0 <= a < b` holds.
    pub guards: Vec<(SizeExpr, SizeExpr)>,
    /// Object and symbol of the code; `None` where there is never anything to do.
    pub code: Option<(usize, String)>,
    /// Symbols the code reads, in parameter order.
    pub syms: Vec<u32>,
    pub trip: SizeExpr,
    pub ns_per_iter: f64,
    /// Scratch bytes of one thread, or of one warp.
    pub scratch: SizeExpr,
    /// Threads of a block, a multiple of 32, where the code is PTX text for a GPU; 0 where it is an ELF object.
    pub block: u32,
    /// Iterations that a block works on at once: one for each of its warps, or one for all of them.
    pub at_once: u32,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct KernelDef {
    pub name: String,
    /// Which operands it writes.
    pub writes: Vec<bool>,
    pub variants: Vec<VariantDef>,
    pub flops: SizeExpr,
}

/// Host functions of the closed table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum HostFnDef {
    NonMaxSuppression { center_point_box: bool },
    DecodeImage { pixels: PixelsDef },
}

/// Order of the channels of a decoded image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PixelsDef {
    Rgb,
    Bgr,
    Grey,
}

/// One step of the host schedule; the semantics are those of `ir::host::Step`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Step {
    Layout {
        buffers: Vec<usize>,
        end: SizeExpr,
    },
    Call {
        kernel: usize,
        args: Vec<usize>,
        origin: usize,
    },
    Copy {
        from: usize,
        to: usize,
    },
    SetSym {
        sym: u32,
        value: SizeExpr,
        origin: usize,
    },
    BindSym {
        sym: u32,
        from: usize,
        origin: usize,
    },
    CheckEq {
        a: SizeExpr,
        b: SizeExpr,
        message: String,
        origin: usize,
    },
    Assert {
        cond: usize,
        message: String,
        origin: usize,
    },
    If {
        cond: usize,
        // bodies are serialised as a flat list, since a hostile nesting would overflow the stack
        #[serde(skip)]
        then: Vec<Step>,
        #[serde(skip)]
        otherwise: Vec<Step>,
    },
    Loop {
        trip: usize,
        cond: usize,
        iter: usize,
        cond_next: usize,
        count: u32,
        #[serde(skip)]
        body: Vec<Step>,
        origin: usize,
    },
    Append {
        from: usize,
        to: usize,
        index: u32,
    },
    Host {
        func: HostFnDef,
        args: Vec<usize>,
        results: Vec<usize>,
        defines: Vec<u32>,
        origin: usize,
    },
}

/// An input and an output that are one buffer, which a context keeps from run to run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StateDef {
    pub input: usize,
    pub output: usize,
    /// Dim along which rows lie, and how many there is room for.
    pub axis: usize,
    pub capacity: i64,
    /// Symbol that is the number of rows before a run, and their number after it.
    pub len: u32,
    pub next: SizeExpr,
}

/// Everything the runtime needs.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Program {
    pub symbols: Vec<SymbolDef>,
    pub origins: Vec<OriginDef>,
    pub inputs: Vec<IoDef>,
    pub outputs: Vec<IoDef>,
    pub states: Vec<StateDef>,
    pub buffers: Vec<BufferDef>,
    /// Not part of the serialised form: artefacts hold them beside it.
    #[serde(skip)]
    pub consts: Vec<Option<Arc<dyn Blob>>>,
    pub kernels: Vec<KernelDef>,
    /// Relocatable ELF objects, or PTX text.
    pub objects: Vec<Vec<u8>>,
    pub init: Vec<Step>,
    pub steps: Vec<Step>,
    /// Results smaller than all normal numbers may be zeros.
    pub flushes: bool,
}
