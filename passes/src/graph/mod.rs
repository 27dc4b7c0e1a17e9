//! Passes over graph IR: from the graph as imported to the canonical graph.
//!
//! Each pass walks a graph once, in order, and writes a new one ([`rewrite`]); regions are rewritten with
//! the op that holds them. All are linear in the size of the graph, up to hashing.

mod bf16;
mod cse;
mod dce;
mod dense;
mod fold;
mod hints;
mod inline;
mod pads;
mod quant;
mod reciprocal;
mod rewrite;
mod scales;
mod simplify;
mod split;
mod state;

pub use bf16::bf16_products;
pub use cse::cse;
pub use dce::dce;
pub use dense::densify_convolutions;
pub use fold::fold_constants;
pub use hints::assign_hints;
pub use inline::inline_composites;
pub use pads::separate_pads;
pub use quant::integer_products;
pub use reciprocal::reciprocals;
pub use scales::delay_scales;
pub use simplify::simplify;
pub use split::split_sums;
pub use state::{StateSpec, bind_states};
