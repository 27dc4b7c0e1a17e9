//! Schedules of chains, and their loop IR.
//!
//! A chain becomes one function: a parallel loop over blocks of the shared domain whose body runs the loop
//! nest of each stage on its part of the block. Buffers between stages are arrays in the thread's scratch
//! memory, of the size of one block.
//!
//! The text form has the cuts of the shared axes, then the schedules of the stages on one block:
//!
//! ```text
//! blocks 0 by 1, 1 by 32 | serial i by 8; ... | serial i by 1; ... | ...
//! ```

use super::block::{Cut, local_shape, stage_of_block};
use super::cost::Model;
use super::shared::{SharedAxis, shared_axes};
use crate::error::{PassError, Result};
use crate::lower::{access::physical_elems, nest};
use crate::schedule::choose::{self, Choice};
use crate::schedule::{Schedule, normal_form, without_repeats};
use ir::host::{LoweredKernel, Variant};
use ir::kernel::{Access, Guard, Kernel};
use ir::loops::{Func, Launch, Level, Space, Val};
use ir::loops_build::LoopBuilder;
use ir::target::TargetDesc;
use ir::{Dim, Layout, Symbols, Var};

/// In which blocks a chain is computed, and in which order each stage computes its part of a block.
#[derive(Clone, PartialEq, Debug)]
pub struct ChainSchedule {
    /// One for each shared axis that is cut, outermost loop first; the others stay whole.
    pub cuts: Vec<Cut>,
    pub stages: Vec<Schedule>,
}

/// A chain on one block: its stages in normal form.
pub struct Blocks<'a> {
    chain: &'a Kernel,
    shared: Vec<SharedAxis>,
    cuts: Vec<Cut>,
    pub stages: Vec<Kernel>,
    symbols: &'a Symbols,
}

impl<'a> Blocks<'a> {
    /// # Errors
    /// Where a stage is malformed, or a cut has no axis.
    pub fn new(chain: &'a Kernel, cuts: &[Cut], symbols: &'a Symbols) -> Result<Blocks<'a>> {
        let shared = shared_axes(chain);
        if cuts.iter().any(|c| c.axis >= shared.len() || c.size == 0) {
            return Err(fault(chain, "a cut of an axis that its stages do not share"));
        }
        let stages = (0..chain.stages.len())
            .map(|s| {
                let normal = normal_form(&stage_of_block(chain, &shared, cuts, s, symbols), symbols)?;
                Ok(without_repeats(normal, symbols))
            })
            .collect::<Result<_>>()?;
        Ok(Blocks { chain, shared, cuts: cuts.to_vec(), stages, symbols })
    }

    /// The function that computes the chain by `schedules`, one for each stage.
    ///
    /// # Errors
    /// Where schedules and stages do not fit each other.
    pub fn lower(&self, schedules: &[Schedule], ns_per_iter: f64) -> Result<Func> {
        if schedules.len() != self.stages.len() {
            return Err(fault(self.chain, "not one schedule for each stage"));
        }
        let mut b = LoopBuilder::new(self.chain.name.clone());
        let mut mems = Vec::new();
        for (i, x) in self.chain.buffers.iter().enumerate() {
            mems.push(match x.access {
                Access::Local => {
                    let buf = ir::kernel::BufId(i as u32);
                    let shape = local_shape(self.chain, buf, &self.shared, &self.cuts);
                    let elems = physical_elems(&shape, &Layout::row_major(shape.len()), self.symbols);
                    b.local(x.dtype, elems, Space::Scratch)
                }
                a => b.buf(x.name.clone(), x.dtype, a != Access::Read, x.dtype.bytes() as u32),
            });
        }
        let no_vars = |b: &mut LoopBuilder, d: &Dim| {
            let zero = b.index(0);
            b.dim(d, &|_: Var| zero)
        };
        let extent = |c: &Cut| &self.shared[c.axis].extent;
        let counts: Vec<Dim> = self.cuts.iter().map(|c| c.count(extent(c), self.symbols)).collect();
        let trip = Dim::product(&counts);
        let trip_val = no_vars(&mut b, &trip);
        let mut rest = b.open_parallel(Level::Thread, trip_val);
        let mut params: Vec<Val> = vec![rest; self.cuts.len()];
        for (i, cut) in self.cuts.iter().enumerate().rev() {
            let mut number = rest;
            if i > 0 {
                let n = no_vars(&mut b, &counts[i]);
                number = b.rem(rest, n);
                rest = b.div(rest, n);
                b.assume_nonneg(number);
                b.assume_nonneg(rest);
            }
            params[i] = number;
            if !cut.is_exact(extent(cut), self.symbols) {
                // the last block begins so early that it is a whole one
                let size = b.index(cut.size.into());
                let begin = b.mul(number, size);
                let last = no_vars(&mut b, &(extent(cut) - Dim::from(i64::from(cut.size))));
                params[i] = b.min(begin, last);
                b.assume_nonneg(params[i]);
            }
        }
        for ((stage, k), schedule) in self.chain.stages.iter().zip(&self.stages).zip(schedules) {
            let own = stage.args.iter().map(|a| mems[a.0 as usize]).collect();
            b = nest::lower_into(b, own, k, self.symbols, schedule, &params)?;
        }
        b.close_for(&[]);
        Ok(b.finish(Launch { trip, ns_per_iter, ..Launch::default() }))
    }
}

fn fault(chain: &Kernel, what: &str) -> PassError {
    PassError::internal("chain", format!("{}: {what}", chain.name))
}

impl ChainSchedule {
    pub fn text(&self, blocks: &Blocks) -> String {
        let cuts: Vec<String> = self.cuts.iter().map(|c| format!("{} by {}", c.axis, c.size)).collect();
        let mut text = format!("blocks {}", cuts.join(", "));
        for (s, k) in self.stages.iter().zip(&blocks.stages) {
            text += " | ";
            text += &s.text(k);
        }
        text
    }

    /// Parses [`ChainSchedule::text`].
    ///
    /// # Errors
    /// Where the text has another form or does not fit `chain`.
    #[cfg(test)]
    pub fn parse(text: &str, chain: &Kernel, symbols: &Symbols) -> Result<ChainSchedule> {
        let bad = || fault(chain, &format!("cannot parse `{text}`"));
        let mut parts = text.split('|').map(str::trim);
        let head = parts.next().and_then(|h| h.strip_prefix("blocks")).ok_or_else(bad)?;
        let mut cuts = Vec::new();
        for c in head.split(',').map(str::trim).filter(|c| !c.is_empty()) {
            let (axis, size) = c.split_once(" by ").ok_or_else(bad)?;
            let axis = axis.trim().parse().map_err(|_| bad())?;
            cuts.push(Cut { axis, size: size.trim().parse().map_err(|_| bad())? });
        }
        let blocks = Blocks::new(chain, &cuts, symbols)?;
        let texts: Vec<&str> = parts.collect();
        if texts.len() != blocks.stages.len() {
            return Err(bad());
        }
        let stages =
            texts.iter().zip(&blocks.stages).map(|(t, k)| Schedule::parse(t, k)).collect::<Result<_>>()?;
        Ok(ChainSchedule { cuts, stages })
    }
}

/// The chain in one block, its stages one element at a time: the schedule's text, and loop IR.
///
/// # Errors
/// Where a stage is malformed.
pub fn lower_plainly(chain: &Kernel, symbols: &Symbols) -> Result<(String, Func)> {
    let mut blocks = Blocks::new(chain, &[], symbols)?;
    for s in 0..chain.stages.len() {
        let stage = stage_of_block(chain, &blocks.shared, &[], s, symbols);
        blocks.stages[s] = crate::schedule::plain_form(&stage, symbols)?;
    }
    let stages: Vec<Schedule> = blocks.stages.iter().map(|k| choose::plain(k, symbols)).collect();
    let func = blocks.lower(&stages, 1.0)?;
    Ok((ChainSchedule { cuts: Vec::new(), stages }.text(&blocks), func))
}

/// Loop IR of a chain: in the blocks that the cost model likes best; with other versions for axes that may
/// be shorter than a block, or for tiles that may not fit.
///
/// # Errors
/// Where a stage is malformed.
pub fn lower_chain(chain: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Result<LoweredKernel> {
    let shared = shared_axes(chain);
    let best = Model { symbols, target }.best(chain, &shared).map_or_else(Vec::new, |e| e.cuts);
    let unbounded = Dim::from(Dim::LIMIT);
    // as long as some axis may be too short for its blocks, one more version with that axis whole
    let mut versions: Vec<(Vec<Guard>, Vec<Cut>)> = Vec::new();
    let mut guards = Vec::new();
    let mut whole = best.clone();
    for c in &best {
        let extent = &shared[c.axis].extent;
        if i64::from(c.size) > extent.bounds(symbols).0 && !c.is_exact(extent, symbols) {
            let expr = extent - Dim::from(i64::from(c.size));
            guards.push(Guard { expr, bound: unbounded.clone() });
            whole.retain(|w| w.axis != c.axis);
        }
    }
    let short = !guards.is_empty();
    versions.push((guards, best));
    if short {
        versions.push((Vec::new(), whole));
    }
    let mut variants = Vec::new();
    let mut scalar_reason = None;
    for (guards, cuts) in versions {
        let blocks = Blocks::new(chain, &cuts, symbols)?;
        let choices: Vec<Vec<Choice>> =
            blocks.stages.iter().map(|k| choose::serial_variants(k, symbols, target)).collect();
        let mut add = |pick: &dyn Fn(&[Choice]) -> Option<Choice>| -> Result<()> {
            let picked: Vec<Choice> = choices
                .iter()
                .map(|c| pick(c).ok_or_else(|| fault(chain, "a stage without a schedule")))
                .collect::<Result<_>>()?;
            let mut all = guards.clone();
            for g in picked.iter().flat_map(|c| &c.guards) {
                if !all.contains(g) {
                    all.push(g.clone());
                }
            }
            let ns = picked.iter().map(|c| c.ns_per_iter).sum();
            let stages: Vec<Schedule> = picked.into_iter().map(|c| c.schedule).collect();
            let func = blocks.lower(&stages, ns)?;
            let schedule = ChainSchedule { cuts: cuts.clone(), stages };
            scalar_reason =
                scalar_reason.take().or_else(|| schedule.stages.iter().find_map(|s| s.scalar.clone()));
            variants.push(Variant { guards: all, schedule: schedule.text(&blocks), func });
            Ok(())
        };
        add(&|c| c.first().cloned())?;
        if choices.iter().any(|c| c.len() > 1) {
            add(&|c| c.last().cloned())?;
        }
    }
    let mut flops = Dim::from(0);
    for s in &chain.stages {
        flops = flops + choose::cost(&normal_form(&s.kernel, symbols)?, symbols).flops;
    }
    Ok(LoweredKernel { kernel: chain.clone(), variants, scalar_reason, flops })
}
