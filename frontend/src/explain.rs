//! What the codes of diagnostics mean: the text of `kernelsmith explain`.

use crate::diag::{Code, Kind};

/// Every code that a diagnostic can have, in order.
pub fn all() -> impl Iterator<Item = (Kind, Code)> {
    Kind::ALL
        .into_iter()
        .flat_map(|k| Code::ALL.into_iter().map(move |c| (k, c)))
        .filter(|&(k, c)| possible(k, c))
}

/// Pairs that occur: limits and files have one code each, and the standard leaves nothing to be "unsupported" about
/// a name that is missing.
fn possible(kind: Kind, code: Code) -> bool {
    match kind {
        Kind::Limit => code == Code::Limit,
        Kind::Io => code == Code::File,
        Kind::Unsupported => !matches!(code, Code::Limit | Code::File | Code::Name | Code::Format),
        Kind::Invalid => !matches!(code, Code::Limit | Code::File),
    }
}

/// The explanation of `E0207` or `unsupported-op`; `None` for what is no code.
pub fn explain(name: &str) -> Option<String> {
    let (kind, code) = all().find(|&(k, c)| {
        k.number(c).eq_ignore_ascii_case(name.trim()) || k.slug(c).eq_ignore_ascii_case(name.trim())
    })?;
    let whose = match kind {
        Kind::Unsupported => {
            "The model is correct, as far as this was looked at, but beyond what this compiler can do."
        }
        Kind::Invalid => "The model contradicts the standard or itself.",
        Kind::Limit => {
            "A size, a count or a depth is above a limit that keeps hostile models from doing harm."
        }
        Kind::Io => "A file could not be read.",
    };
    let (meaning, advice) = text(code);
    Some(format!("{} {}\n\n{whose} {meaning}\n\nWhat to do: {advice}\n", kind.number(code), kind.slug(code)))
}

/// What went wrong, and what to do about it.
fn text(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::File => (
            "The path does not exist, is no regular file, or may not be opened.",
            "check the path and its permissions.",
        ),
        Code::Format => (
            "The bytes are no ONNX model (or no text of the native form): they are cut off, of another format, or nested \
             so deeply that no real model is.",
            "export or download the file again; `onnx.checker.check_model` should accept it.",
        ),
        Code::ExternalData => (
            "A constant names a file beside the model for its bytes, and that file is missing, too short, or outside of \
             the model's folder.",
            "put the data files where the model expects them: in its own folder, under the names it uses.",
        ),
        Code::Tensor => (
            "The bytes of a constant do not fit its element type and dims.",
            "export the model again; a tool that edits models may have changed one without the other.",
        ),
        Code::Name => (
            "A value is used that no input, initialiser or earlier node defines, or is defined twice. Nodes must be in \
             an order in which every value is there before it is used, and a subgraph sees the values around it, a \
             function only its own inputs.",
            "look at the named node in a viewer; tools that cut or merge models often leave such ends.",
        ),
        Code::Opset => (
            "The model does not import the operator set of the node's domain, or a version of it that is not known: too \
             new, or older than the operator.",
            "convert the model with onnx.version_converter to a version in the range that the message names, or add \
             the missing opset_import.",
        ),
        Code::Op => (
            "No operator of this name in this domain is known. It may be one of a runtime's own operators, a custom one, \
             or a misspelt name.",
            "export with operators of the standard, or give the model a function (a FunctionProto of that name and \
             domain) with the operator's definition: functions are expanded. `docs/operators.md` lists what is known.",
        ),
        Code::Attribute => (
            "An attribute is missing, of another type than the operator defines, or has a value that is out of range.",
            "compare with the operator's definition at the operator-set version that the message names.",
        ),
        Code::Input => (
            "A node has too few or too many inputs or outputs, or values that the operator does not allow.",
            "compare with the operator's definition; an input that is left out in the middle is written as \"\".",
        ),
        Code::Type => (
            "Element types (or tensor, sequence, optional) do not fit each other or the operator.",
            "insert a Cast before the node, or export the part of the model around it in one type.",
        ),
        Code::Shape => (
            "Shapes do not fit: ranks differ from what the operator wants, extents that must be equal cannot be, or a \
             broadcast is impossible for every size.",
            "follow the shapes that the message shows back to the node that made them; declared shapes (value_info) may \
             be out of date.",
        ),
        Code::Dynamic => (
            "The structure of the graph (a rank, a list of axes, the number of elements of a sequence, text) depends on \
             a value that is only known when the model is executed. Sizes may be anything at run time; structure may \
             not.",
            "run the model with its inputs (`kernelsmith run` compiles for the structure that they have), or make the \
             value a constant before exporting, for instance with a constant-folding simplifier.",
        ),
        Code::Limit => ("", "if the model is to be trusted, raise the limit in the import options."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_is_explained_once() {
        let codes: Vec<_> = all().map(|(k, c)| (k.number(c), k.slug(c))).collect();
        let distinct: HashSet<&String> = codes.iter().flat_map(|(n, s)| [n, s]).collect();
        assert_eq!(distinct.len(), 2 * codes.len());
        for (number, slug) in &codes {
            let text = explain(number).unwrap();
            assert!(text.starts_with(number.as_str()) && text.contains("What to do:"), "{text}");
            assert_eq!(explain(slug), Some(text));
        }
        assert_eq!(explain("E9999"), None);
    }

    /// Scripts match on them: they may be added to but not changed.
    #[test]
    fn codes_are_stable() {
        assert_eq!(Kind::Unsupported.number(Code::Op), "E0207");
        assert_eq!(Kind::Invalid.number(Code::Shape), "E0111");
        assert_eq!(Kind::Invalid.number(Code::Name), "E0105");
        assert_eq!(Kind::Limit.number(Code::Limit), "E0313");
        assert_eq!(Kind::Io.number(Code::File), "E0401");
        assert_eq!(Kind::Unsupported.slug(Code::Dynamic), "unsupported-dynamic");
    }
}
