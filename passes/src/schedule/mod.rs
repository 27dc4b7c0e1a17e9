//! Schedules: in which order, with which tiles, a kernel is computed.
//!
//! A schedule is data. [`choose`] makes one from a kernel in normal form and a target, [`text`] prints and
//! parses it, [`crate::lower::nest`] executes it. Nothing in a schedule changes what a kernel means.

mod analyse;
pub mod choose;
mod dots;
mod once;
pub mod operands;
#[cfg(test)]
mod tests;
pub mod text;
mod tiles;
pub mod tuned;

use crate::Options;
use crate::error::Result;
use crate::lower::{access, axes, generated, nest, space::VarFacts};
use ir::host::{LoweredKernel, Variant};
use ir::kernel::Kernel;
use ir::loops::Func;
use ir::target::TargetDesc;
use ir::{Dim, Symbols, Var};

/// What happens at the end of an axis that is no multiple of its column tile.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Edge {
    /// It is one.
    Exact,
    /// One version of the code; every tile counts its valid columns.
    Mask,
    /// Whole tiles without masks, then masked ones.
    Peel,
}

/// One loop over the domain. The innermost loop of an axis steps by its tile; loops before it cut chunks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LoopSpec {
    pub axis: Var,
    pub step: u32,
    /// Parallel loops come first; together they are the one parallel loop of the function.
    pub parallel: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RowTile {
    pub axis: Var,
    pub size: u32,
    /// The last tile begins early and repeats rows: stores must be idempotent, the extent at least `size`.
    pub overlap: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ColTile {
    pub axis: Var,
    pub size: u32,
    pub edge: Edge,
    /// Columns of a masked tile of a peeled loop.
    pub tail: u32,
    /// Tiles begin at multiples of `size`, which divisions in a packed operand's offset rely on.
    pub panel: bool,
}

/// The tile of a block of GPU warps (see [`crate::lower::block`]); its columns are [`Schedule::cols`]. All loops are
/// parallel and together those of the grid; that of the first row axis counts row tiles.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BlockTile {
    pub threads: u32,
    /// Axes that rows run through, the last fastest.
    pub rows: Vec<Var>,
    pub row_size: u32,
    /// Axes of the reduction, outermost first.
    pub steps: Vec<Var>,
    /// Steps of the reduction that are staged at a time.
    pub depth: u32,
    /// They run through all axes as if these were one, else through the last.
    pub flat: bool,
}

/// The tile of a block of GPU warps that reads along its rows' axis and writes along its columns' (see
/// [`crate::lower::across`]); these are [`Schedule::cols`]. All loops are parallel and together those of the grid.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AcrossTile {
    pub threads: u32,
    pub rows: Var,
    pub row_size: u32,
}

/// Sums of products of words in matrix registers: the tile of rows and columns is that of [`Schedule::rows`] and
/// [`Schedule::cols`], of at most two registers each way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MatrixTile {
    /// The axis of the reduction that runs through the words of a row: the innermost.
    pub axis: Var,
    /// Words of a step, which divide the axis.
    pub words: u32,
    /// Rows of the sums that are worked on at a time afterwards; they divide those of the tile.
    pub rows: u32,
}

impl MatrixTile {
    /// Of a tile of `size` rows those that are worked on at a time: few enough for vector registers.
    pub fn leaving(size: u32) -> u32 {
        (1..=8).rev().find(|n| size.is_multiple_of(*n)).unwrap_or(1)
    }
}

/// The loops inside a Reduce, or a Store with axes of its own.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct InnerSpec {
    /// Outermost first.
    pub order: Vec<Var>,
    /// The axis that lies in vector lanes, where no axis of the domain does, and its columns.
    pub cols: Option<(Var, u32)>,
    /// Columns of a masked tile of a store.
    pub tail: u32,
    /// Loops of at most so many iterations are unrolled.
    pub unroll: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Schedule {
    /// Outermost first.
    pub loops: Vec<LoopSpec>,
    pub rows: Option<RowTile>,
    pub cols: Option<ColTile>,
    pub block: Option<BlockTile>,
    pub across: Option<AcrossTile>,
    /// By Reduce and Store-with-axes, in order of occurrence.
    pub inner: Vec<InnerSpec>,
    /// Warps of a GPU that share the columns of each iteration; 0 where an iteration is the work of one.
    pub warps: u32,
    pub matrix: Option<MatrixTile>,
    /// Elements of the column operand's next panel that each step of a contraction's innermost loop asks
    /// for (see [`crate::lower::ahead`]); 0: none.
    pub ahead: u32,
    /// Why nothing is vectorised, where nothing is.
    pub scalar: Option<String>,
}

/// The kernel as schedules and [`nest::lower`] take it: linear accesses, normal-form axes.
///
/// # Errors
/// Where the kernel is malformed.
pub fn normal_form(kernel: &Kernel, symbols: &Symbols) -> Result<Kernel> {
    let kernel = axes::expand_arg_reduce(kernel);
    let kernel = dots::widen(&kernel).unwrap_or(kernel);
    let normal = plain_form(&kernel, symbols)?;
    // axes that differed in how they count parts may be one in words
    Ok(dots::words(&normal, symbols).map_or(normal, |w| axes::normalise(&w, symbols)))
}

/// The normal form that schedules for `target` are for: where one thread computes a row, no expensive value of
/// it twice.
///
/// # Errors
/// As [`normal_form`].
pub fn form_for(kernel: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Result<Kernel> {
    let normal = normal_form(kernel, symbols)?;
    // lanes that are threads would have to meet before they read what others stored
    Ok(if target.simt { normal } else { without_repeats(normal, symbols) })
}

/// See [`once`].
pub(crate) fn without_repeats(normal: Kernel, symbols: &Symbols) -> Kernel {
    once::once(&normal, symbols).unwrap_or(normal)
}

/// As [`normal_form`], without dot products of words.
pub(crate) fn plain_form(kernel: &Kernel, symbols: &Symbols) -> Result<Kernel> {
    let kernel = axes::expand_arg_reduce(kernel);
    let facts = VarFacts::of(&kernel, symbols);
    let linear = access::linearise(&kernel, &facts)?;
    Ok(axes::normalise(&linear, symbols))
}

/// Turns one kernel, whose buffers have their layouts, into loop IR for `target`: one function for each
/// range of sizes that deserves its own schedule.
///
/// An output may share memory with an input only where the kernel has no reduction and every read of
/// that input has the index of the store: other schedules may compute rows twice.
///
/// # Errors
/// Where the kernel is malformed, or of a kind that has no lowering.
pub fn lower_kernel(kernel: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Result<LoweredKernel> {
    lower_tuned(kernel, symbols, target, &Options::default())
}

/// As [`lower_kernel`], with the schedules of `options.tuned` where they fit.
pub fn lower_tuned(
    kernel: &Kernel,
    symbols: &Symbols,
    target: &TargetDesc,
    options: &Options,
) -> Result<LoweredKernel> {
    if let Some(what) = &kernel.generated {
        let func = generated::lower(kernel, what, symbols)?;
        let schedule = "scalar \"generated: one element at a time\"".to_string();
        return Ok(LoweredKernel {
            kernel: kernel.clone(),
            variants: vec![Variant { guards: Vec::new(), schedule, func }],
            scalar_reason: Some("generated: one element at a time".into()),
            flops: Dim::from(0),
        });
    }
    let normal = form_for(kernel, symbols, target)?;
    let mut variants = Vec::new();
    let mut scalar_reason = None;
    let cost = choose::cost(&normal, symbols);
    for choice in choose::variants(&normal, symbols, target) {
        scalar_reason = scalar_reason.or_else(|| choice.schedule.scalar.clone());
        let lowered = lower_choice(&normal, symbols, target, &choice, options.tuned.as_deref())?;
        #[cfg(feature = "planted-faults")]
        let lowered = crate::planted::without_masks(lowered, options.planted);
        let (schedule, func) = lowered;
        variants.push(Variant { guards: choice.guards, schedule: schedule.text(&normal), func });
    }
    Ok(LoweredKernel { kernel: kernel.clone(), variants, scalar_reason, flops: cost.flops })
}

/// As [`lower_kernel`], one element at a time in the order of the kernel's axes: nothing is decided.
///
/// # Errors
/// As [`lower_kernel`].
pub fn lower_plainly(kernel: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Result<LoweredKernel> {
    if kernel.generated.is_some() {
        return lower_kernel(kernel, symbols, target);
    }
    let (schedule, func) = if kernel.stages.is_empty() {
        let normal = plain_form(kernel, symbols)?;
        let schedule = choose::plain(&normal, symbols);
        (schedule.text(&normal), nest::lower(&normal, symbols, &schedule, 1.0)?)
    } else {
        crate::chain::lower_plainly(kernel, symbols)?
    };
    Ok(LoweredKernel {
        kernel: kernel.clone(),
        variants: vec![Variant { guards: Vec::new(), schedule, func }],
        scalar_reason: Some(choose::PLAIN.into()),
        flops: Dim::from(0),
    })
}

/// The function of one variant: by its winner, where there is one that fits, or by default.
fn lower_choice(
    normal: &Kernel,
    symbols: &Symbols,
    target: &TargetDesc,
    choice: &choose::Choice,
    tuned: Option<&tuned::Tuned>,
) -> Result<(Schedule, Func)> {
    let func = nest::lower(normal, symbols, &choice.schedule, choice.ns_per_iter)?;
    let winner = tuned.and_then(|t| t.find(normal, target, &choice.schedule));
    // a winner of another compiler may not fit; the default does
    let lowered = winner.and_then(|s| Some((nest::lower(normal, symbols, &s, choice.ns_per_iter).ok()?, s)));
    let Some((mut tuned, winner)) = lowered else { return Ok((choice.schedule.clone(), func)) };
    // the same time in another number of iterations
    if let (Some(old), Some(new)) = (func.launch.trip.as_const(), tuned.launch.trip.as_const()) {
        tuned.launch.ns_per_iter *= old.max(1) as f64 / new.max(1) as f64;
    }
    Ok((winner, tuned))
}
