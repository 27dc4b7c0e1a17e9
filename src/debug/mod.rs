//! Finding faults of the compiler: one model run along several roads, and models made small.

pub mod ort;
pub mod repro;
pub mod roads;
pub mod shrink;

pub use repro::Repro;
pub use roads::{Fault, Road, Roads};
