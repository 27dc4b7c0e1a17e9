//! Lowering of one scheduled kernel to tile-form loop IR.
//!
//! [`access`] makes accesses linear, [`axes`] brings the index space to its normal form, [`nest`] builds
//! the loops that a schedule names, [`block`] and [`across`] those of a block of GPU warps, and `expr` evaluates expressions on tiles inside of them.

pub mod access;
pub mod across;
pub mod ahead;
pub mod axes;
pub mod block;
mod expr;
pub mod generated;
mod grid;
pub mod nest;
pub mod space;
