//! What can be wrong with a model, said in terms of the model: stable code, node, types, hint.

use std::fmt;

/// Whose fault it is. Decides the exit status of the command line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Kind {
    /// Correct by the standard, but beyond what this compiler can do.
    Unsupported,
    /// The model contradicts the standard or itself.
    Invalid,
    /// A size, count or depth above a limit of [`crate::ImportOptions`].
    Limit,
    /// A file that cannot be opened or read.
    Io,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Invalid, Kind::Unsupported, Kind::Limit, Kind::Io];

    /// `E0207`: the kind, then the code, by their places in the lists.
    pub fn number(self, code: Code) -> String {
        let place = |found: Option<usize>| found.map_or(0, |i| i + 1);
        let kind = place(Kind::ALL.iter().position(|k| *k == self));
        format!("E{kind:02}{:02}", place(Code::ALL.iter().position(|c| *c == code)))
    }
    /// `unsupported-op`, `invalid-shape`, ...: the same in words.
    pub fn slug(self, code: Code) -> String {
        match self {
            Kind::Unsupported => format!("unsupported-{}", code.as_str()),
            Kind::Invalid => format!("invalid-{}", code.as_str()),
            Kind::Limit => "limit-exceeded".into(),
            Kind::Io => format!("io-{}", code.as_str()),
        }
    }
}

/// Stable identity of a kind of problem, for scripts and documentation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Code {
    /// The file cannot be opened or read.
    File,
    /// The bytes are not a model.
    Format,
    /// External data that is missing, out of range or outside the model's directory.
    ExternalData,
    /// A constant whose bytes do not fit its type and dims.
    Tensor,
    /// Names that are used twice, never defined, or defined after their use.
    Name,
    /// A missing or impossible operator-set import.
    Opset,
    /// An operator this compiler does not know, at this operator-set version.
    Op,
    /// An attribute that is missing, of a wrong type, or out of range.
    Attribute,
    /// An input that is missing, or too many of them.
    Input,
    /// Element types that do not fit.
    Type,
    /// Shapes that do not fit.
    Shape,
    /// Something whose rank or structure is only known when the model is executed.
    Dynamic,
    /// A limit was exceeded.
    Limit,
}

impl Code {
    /// In the order of their numbers: new ones go to the end.
    pub const ALL: [Code; 13] = [
        Code::File,
        Code::Format,
        Code::ExternalData,
        Code::Tensor,
        Code::Name,
        Code::Opset,
        Code::Op,
        Code::Attribute,
        Code::Input,
        Code::Type,
        Code::Shape,
        Code::Dynamic,
        Code::Limit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Code::File => "file",
            Code::Format => "format",
            Code::ExternalData => "external-data",
            Code::Tensor => "tensor",
            Code::Name => "name",
            Code::Opset => "opset",
            Code::Op => "op",
            Code::Attribute => "attribute",
            Code::Input => "input",
            Code::Type => "type",
            Code::Shape => "shape",
            Code::Dynamic => "dynamic",
            Code::Limit => "limit",
        }
    }
}

/// The node a problem was found at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeRef {
    /// Name with the path through functions and subgraphs (`loop_1/body/add`).
    pub path: String,
    pub op_type: String,
    /// Empty for the standard domain.
    pub domain: String,
    pub opset: i64,
}

/// One problem of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    pub kind: Kind,
    pub code: Code,
    pub message: String,
    pub node: Option<NodeRef>,
    /// Inputs of the node: name in the model and type.
    pub operands: Vec<(String, String)>,
    /// Where the node came from, as the exporter noted it: a line of a program.
    pub source: Option<String>,
    pub hint: Option<String>,
    /// The smallest model that shows the problem, where the import was asked for it.
    pub model: Option<Vec<u8>>,
}

impl Diagnostic {
    pub fn new(kind: Kind, code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            kind,
            code,
            message: message.into(),
            node: None,
            operands: Vec::new(),
            source: None,
            hint: None,
            model: None,
        }
    }
    pub fn invalid(code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Kind::Invalid, code, message)
    }
    pub fn unsupported(code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Kind::Unsupported, code, message)
    }
    pub fn limit(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Kind::Limit, Code::Limit, message)
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hint = Some(hint.into());
        self
    }
    /// `unsupported-op`, `invalid-shape`, ...
    pub fn id(&self) -> String {
        self.kind.slug(self.code)
    }
    /// `E0207`: what scripts should match on, and what `kernelsmith explain` takes.
    pub fn number(&self) -> String {
        self.kind.number(self.code)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: ", self.number())?;
        if let Some(n) = &self.node {
            write!(f, "{}: {}", n.op_type, self.message)?;
            write!(f, "\n  at node {:?} ({}", n.path, n.op_type)?;
            if !n.domain.is_empty() {
                write!(f, " of {}", n.domain)?;
            }
            write!(f, ", opset {})", n.opset)?;
        } else {
            write!(f, "{}", self.message)?;
        }
        for (i, (name, ty)) in self.operands.iter().enumerate() {
            write!(f, "\n  input {i} {name:?}: {ty}")?;
        }
        if let Some(s) = &self.source {
            write!(f, "\n  from {s}")?;
        }
        if let Some(h) = &self.hint {
            write!(f, "\n  help: {h}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// Exit status of the command line for a list of problems: 3 where everything is merely
/// unsupported, 4 otherwise.
pub fn exit_code(problems: &[Diagnostic]) -> i32 {
    if problems.iter().all(|d| d.kind == Kind::Unsupported) { 3 } else { 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_reads_as_documented() {
        let mut d =
            Diagnostic::invalid(Code::Shape, "expected W of rank 4, found rank 3").hint("check the exporter");
        d.node = Some(NodeRef {
            path: "layer1/conv2".into(),
            op_type: "Conv".into(),
            domain: String::new(),
            opset: 11,
        });
        d.operands.push(("W".into(), "f32[64, 3, 3]".into()));
        assert_eq!(
            d.to_string(),
            "error[E0111]: Conv: expected W of rank 4, found rank 3\n  at node \"layer1/conv2\" (Conv, opset 11)\n  \
             input 0 \"W\": f32[64, 3, 3]\n  help: check the exporter"
        );
        assert_eq!(exit_code(&[d.clone()]), 4);
        d.kind = Kind::Unsupported;
        assert_eq!(exit_code(&[d]), 3);
    }
}
