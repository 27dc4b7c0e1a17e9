//! Finding faults of the compiler: one model run along several roads and checked at every stage, the first bad
//! decision of the compiler, and models made small.

pub mod bisect;
pub mod levels;
pub mod ort;
mod ort_limits;
pub mod repro;
pub mod roads;
pub mod shrink;
pub mod stages;
mod tolerance;

pub use bisect::{Finding, bisect};
pub use ort_limits::known_difference;
pub use repro::Repro;
pub use roads::{Fault, Road, Roads};
pub use tolerance::{judge, tolerance, tolerance_of};
