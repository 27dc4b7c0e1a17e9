//! Passes: from the graph of a model to kernels in loop IR, places for buffers, and the host schedule.
//!
//! ```text
//! graph::*     simplify, fold, CSE, DCE, inline composites      graph -> canonical graph
//! group        which values lie in buffers                      canonical graph -> kernels
//!   facts        what grouping knows of each value
//!   pull         element of a value at an index
//!   kernels      the statements of one kernel
//!   normalise    axes split so that accesses become affine
//! layout       how each buffer lies in memory
//! host         the order of calls, sizes, control flow
//! chain        kernels that share an outer domain, as one
//! limits       how many decisions passes take
//! place        lifetimes and arena offsets
//! schedule, lower                                               kernels -> loop IR
//! ```
//!
//! [`pipeline::PASSES`] is the order of execution, [`compile`] the way in.

mod chain;
mod col2im;
mod control;
pub mod error;
pub mod facts;
mod forms;
pub mod graph;
pub mod group;
pub mod host;
pub mod index;
pub mod kernel_exec;
pub mod kernels;
pub mod layout;
pub mod limits;
pub mod lower;
pub mod normalise;
mod occupancy;
mod packs;
pub mod pipeline;
pub mod place;
#[cfg(feature = "planted-faults")]
pub mod planted;
pub mod pull;
pub mod schedule;
mod stage;
#[cfg(test)]
mod tests;
mod winograd;

pub use error::{PassError, Result};
pub use host::Planned;
pub use pipeline::{Stage, State, run_until};

use forms::Forms;
use ir::host::Lowered;
use ir::target::TargetDesc;
use ir::{Math, Module};
use limits::Limits;
use rayon::prelude::*;
use schedule::tuned::Tuned;
use std::sync::Arc;

/// What a caller may choose.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// Bytes that one folded constant may have.
    pub fold_bytes: usize,
    /// Nodes that the expression of one kernel may have.
    pub pull_limit: usize,
    /// How exactly the model's arithmetic is followed. Winograd's form for convolutions, which takes a third of
    /// the time at some 15 times the rounding error (1e-5 of the output's scale), is never strict.
    pub math: Math,
    /// Inputs and outputs that are one buffer, kept from run to run.
    pub states: Vec<graph::StateSpec>,
    /// Schedules to take in place of the default ones.
    pub tuned: Option<Arc<Tuned>>,
    /// How many decisions passes take; for finding a bad one.
    pub limits: Limits,
    /// Verify after each pass.
    pub verify: bool,
    /// A fault that a test wants found.
    #[cfg(feature = "planted-faults")]
    pub planted: Option<planted::Fault>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            fold_bytes: 256 << 10,
            pull_limit: 200,
            math: Math::Default,
            states: Vec::new(),
            tuned: None,
            limits: Limits::default(),
            verify: cfg!(debug_assertions),
            #[cfg(feature = "planted-faults")]
            planted: None,
        }
    }
}

impl Options {
    fn choices(&self, target: &TargetDesc) -> group::Choices {
        group::Choices { limit: self.pull_limit, forms: Forms::of(self.math, target), simt: target.simt }
    }
}

/// Compiles a module for a target, up to loop IR in tile form.
///
/// # Errors
/// What cannot be lowered, with its node; limits exceeded; broken invariants.
pub fn compile(module: Module, target: &TargetDesc, options: &Options) -> Result<Lowered> {
    match run_until(module, target, options, Stage::Loops)? {
        State::Lowered(l) => Ok(l),
        _ => Err(PassError::internal("pipeline", "the pipeline ended before loop IR")),
    }
}

/// Gives each kernel its loop IR, on all cores.
///
/// # Errors
/// The first kernel's that cannot be lowered.
pub fn lower_kernels(p: Planned, target: &TargetDesc, options: &Options) -> Result<Lowered> {
    let scheduled = options.limits.of(limits::SCHEDULES).unwrap_or(u64::MAX);
    let kernels = p
        .kernels
        .par_iter()
        .enumerate()
        .map(|(i, k)| match k.stages.is_empty() {
            _ if i as u64 >= scheduled => schedule::lower_plainly(k, &p.module.symbols, target),
            true => schedule::lower_tuned(k, &p.module.symbols, target, options),
            false => chain::lower_chain(k, &p.module.symbols, target),
        })
        .collect::<Vec<_>>()
        .into_iter()
        .collect::<Result<_>>()?;
    Ok(Lowered {
        module: p.module,
        kernels,
        buffers: p.buffers,
        init: p.init,
        steps: p.steps,
        inputs: p.inputs,
        outputs: p.outputs,
    })
}
