//! Arithmetic on bits: number formats with every rounding PTX names, and functions over the 32 lanes of a warp.

pub mod formats;
pub mod lanes;
pub mod math;
