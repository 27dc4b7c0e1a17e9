//! ONNX to graph IR.

pub mod external;
pub mod tensor;
pub mod wire;
