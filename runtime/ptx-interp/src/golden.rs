//! Launches and what they must leave behind, written as files: `scripts/gpu/golden.py` repeats them on a device.
//!
//! A file is one line of JSON: a text, some byte strings, and launches of the text's kernels that refer to them by number.
//! Files are named by their contents, so equal cases are one file.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

/// Names the directory into which tests write their cases.
const DIRECTORY: &str = "KS_DEVICE_CASES";

/// Where to write, if somebody wants the cases.
pub fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// How the elements of a buffer are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Compare {
    /// Bit by bit, in elements of so many bytes.
    Bits(usize),
    /// As numbers: any NaN for a NaN, and no further away than `relative` of the magnitude plus `absolute`.
    Float { format: Float, relative: f64, absolute: f64, any_zero: bool },
}

impl Compare {
    /// The very number, or any NaN.
    pub fn number(format: Float) -> Compare {
        Compare::Float { format, relative: 0.0, absolute: 0.0, any_zero: false }
    }

    /// A number that is close; the signs of zeros do not count.
    pub fn close(format: Float, relative: f64, absolute: f64) -> Compare {
        Compare::Float { format, relative, absolute, any_zero: true }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    F16,
    Bf16,
    F32,
    F64,
    /// f32 whose 13 lowest bits mean nothing.
    Tf32,
}

impl Float {
    pub fn bytes(self) -> usize {
        match self {
            Float::F16 | Float::Bf16 => 2,
            Float::F32 | Float::Tf32 => 4,
            Float::F64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Float::F16 => "f16",
            Float::Bf16 => "bf16",
            Float::F32 => "f32",
            Float::F64 => "f64",
            Float::Tf32 => "tf32",
        }
    }
}

/// A buffer in device memory.
#[derive(Debug, Clone)]
pub struct Buffer {
    pub before: Vec<u8>,
    /// What it may hold afterwards: one of these. None: anything.
    pub after: Vec<Vec<u8>>,
    pub compare: Compare,
    /// Elements that the PTX ISA leaves open.
    pub open: Vec<usize>,
}

impl Buffer {
    /// One that must hold `after`, bit by bit.
    pub fn exact(before: Vec<u8>, after: Vec<u8>) -> Buffer {
        Buffer { before, after: vec![after], compare: Compare::Bits(1), open: Vec::new() }
    }

    /// One that is not written.
    pub fn kept(bytes: Vec<u8>) -> Buffer {
        Buffer::exact(bytes.clone(), bytes)
    }
}

/// A parameter of a kernel.
#[derive(Debug, Clone)]
pub enum Argument {
    Value(Vec<u8>),
    /// The address of a buffer, by number, and so many bytes on.
    Address(usize, usize),
}

/// A launch of a kernel.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    /// What results are counted by.
    pub group: String,
    pub entry: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub arguments: Vec<Argument>,
    pub buffers: Vec<Buffer>,
}

/// Writes launches of the kernels of `text`; does nothing where nobody wants them. `source` is the set that they belong to.
pub fn write(source: &str, text: &str, cases: &[Case]) {
    let Some(directory) = directory() else { return };
    let json = File::default().json(source, text, cases).expect("a string takes what is written");
    let mut hasher = DefaultHasher::new();
    json.hash(&mut hasher);
    let path = directory.join(format!("{source}-{:016x}.json", hasher.finish()));
    std::fs::write(&path, json).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The byte strings of a file.
#[derive(Default)]
struct File {
    strings: Vec<Vec<u8>>,
}

impl File {
    fn number(&mut self, bytes: &[u8]) -> usize {
        self.strings.iter().position(|s| s == bytes).unwrap_or_else(|| {
            self.strings.push(bytes.to_vec());
            self.strings.len() - 1
        })
    }

    fn json(mut self, source: &str, text: &str, cases: &[Case]) -> Result<String, fmt::Error> {
        let mut listed = Vec::new();
        for c in cases {
            let mut arguments = Vec::new();
            for a in &c.arguments {
                arguments.push(match a {
                    Argument::Value(bytes) => quoted(&hex(bytes)),
                    Argument::Address(buffer, offset) => format!("[{buffer},{offset}]"),
                });
            }
            let mut buffers = Vec::new();
            for b in &c.buffers {
                let before = self.number(&b.before);
                let after: Vec<usize> = b.after.iter().map(|a| self.number(a)).collect();
                let compare = match b.compare {
                    Compare::Bits(bytes) => format!("{{\"bits\":{bytes}}}"),
                    Compare::Float { format, relative, absolute, any_zero } => format!(
                        "{{\"float\":\"{}\",\"relative\":{relative:e},\"absolute\":{absolute:e},\"any_zero\":{any_zero}}}",
                        format.name()
                    ),
                };
                buffers.push(format!(
                    "{{\"before\":{before},\"after\":{after:?},\"compare\":{compare},\"open\":{:?}}}",
                    b.open
                ));
            }
            listed.push(format!(
                "{{\"name\":{},\"group\":{},\"entry\":{},\"grid\":{:?},\"block\":{:?},\"shared\":{},\"arguments\":[{}],\"buffers\":[{}]}}",
                quoted(&c.name),
                quoted(&c.group),
                quoted(&c.entry),
                c.grid,
                c.block,
                c.dynamic_shared,
                arguments.join(","),
                buffers.join(",")
            ));
        }
        let mut out = String::new();
        let strings: Vec<String> = self.strings.iter().map(|s| quoted(&hex(s))).collect();
        writeln!(
            out,
            "{{\"source\":{},\"text\":{},\"strings\":[{}],\"cases\":[{}]}}",
            quoted(source),
            quoted(text),
            strings.join(","),
            listed.join(",")
        )?;
        Ok(out)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='\u{7e}' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out += &format!("\\u{unit:04x}");
                }
            }
        }
    }
    out + "\""
}
