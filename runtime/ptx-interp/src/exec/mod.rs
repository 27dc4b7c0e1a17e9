//! Execution: warps step through decoded instructions ([`step`]), blocks and their barriers are scheduled by
//! [`launch`].

pub mod config;
mod launch;
mod memory;
mod step;
mod tensor;
mod trace;
mod warp;
mod warp_ops;

pub use launch::{Launch, launch};
