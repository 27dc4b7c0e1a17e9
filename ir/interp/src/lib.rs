//! The reference interpreter of graph IR: what every primitive means.
//!
//! It executes one operation after the other, in the plainest way, and shares no code with the compiler that it
//! judges. Floats of every kind are computed in `f64` and rounded once to the result's type; reductions and
//! contractions accumulate in `f64`; integers are exact and wrap once. Used for
//! `verify` and tests ([`Interp`], [`compare()`]), for constant folding ([`eval_op`] under a [`Budget`]),
//! and to expand constants ([`materialise`]).

mod compare;
mod constant;
mod context;
mod contract;
mod elementwise;
mod error;
mod eval;
mod float;
mod host;
mod indexed;
mod movement;
mod noise;
mod number;
mod reduce;
mod run;
mod view;

pub use compare::{Comparison, Tolerance, compare};
pub use constant::materialise;
pub use context::Budget;
pub use error::{InterpError, OpError};
pub use noise::Bounded;
pub use run::{Interp, Observer, eval_op};
