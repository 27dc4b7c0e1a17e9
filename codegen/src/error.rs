//! Errors of code generation.

use thiserror::Error;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodegenError {
    #[error("unknown backend `{name}`; this build has: {available}")]
    UnknownBackend { name: String, available: String },
    /// The host is none that the backend can generate code for.
    #[error("backend `{backend}`: {message}")]
    Host { backend: &'static str, message: String },
    /// The model asks for more than the program format can hold.
    #[error("limit exceeded: {0}")]
    Limit(String),
    /// A bug of an earlier stage.
    #[error("internal error: {0}")]
    Internal(String),
    #[error("function `{func}`: {fault}")]
    Func { func: String, fault: Fault },
}

/// What went wrong inside one function.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// Breaks the contract of machine form: a bug of an earlier stage.
    #[error("not valid machine form: {0}")]
    Invalid(String),
    /// Valid, but this emitter cannot do it.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The code generator library refused: a bug of the emitter.
    #[error("emitter: {0}")]
    Emitter(String),
    /// Generated code would call a library function.
    #[error("generated code refers to `{0}`, which nothing provides")]
    UndefinedSymbol(String),
}

impl Fault {
    pub(crate) fn invalid(what: impl Into<String>) -> Fault {
        Fault::Invalid(what.into())
    }
    pub(crate) fn unsupported(what: impl Into<String>) -> Fault {
        Fault::Unsupported(what.into())
    }
    pub(crate) fn emitter(what: impl ToString) -> Fault {
        Fault::Emitter(what.to_string())
    }
    pub(crate) fn of(self, func: &str) -> CodegenError {
        CodegenError::Func { func: func.to_string(), fault: self }
    }
}

/// Result of emitting a part of a function.
pub(crate) type Emit<T> = Result<T, Fault>;
