//! Whether a chain pays, and in which blocks.
//!
//! The model, in nanoseconds of one core: arithmetic as [`choose`](crate::schedule::choose) estimates it; the
//! traffic of buffers between stages, at the speed of the memory that they fit in; what blocks read again and
//! again of other operands; threads that wait for the last block.

use super::block::{Cut, local_shape, stage_of_block};
use super::shared::{SharedAxis, links};
use crate::lower::space::{VarFacts, vars_of};
use crate::schedule::{choose, normal_form, without_repeats};
use ir::kernel::{Access, Axis, BufId, Expr, ExprId, Kernel, Stmt};
use ir::target::TargetDesc;
use ir::{Atom, Dim, Symbols, Var};
use std::collections::HashMap;

/// Bytes in a nanosecond of one core, from the second-level cache, the last one and main memory, where both
/// cores are busy (measured on Zen 4; stores and reads mixed).
const L2: f64 = 50.0;
const L3: f64 = 20.0;
const DRAM: f64 = 8.0;
/// As [`L3`] and [`DRAM`], for reads in order.
const L3_READ: f64 = 25.0;
const DRAM_READ: f64 = 12.0;
/// Part of the time of arithmetic in which reads in order cost nothing.
const HIDDEN: f64 = 0.6;
/// Part of its time that a chain must save, and each kernel that is added to one.
const WORTH: f64 = 0.08;
/// Cuts that are looked at closely.
const CLOSE: usize = 3;
/// Bytes beyond which buffers leave the last-level cache, as multiples of the second level.
const L3_SIZE: f64 = 16.0;
/// What a kernel call costs beside its work.
const CALL: f64 = 1500.0;
/// Rows that share a column operand until loads no longer bound a contraction.
const REUSE: f64 = 6.0;

/// Blocks of a chain, and the time that it saves.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Nanoseconds of the kernels as calls of their own, and as a chain.
    pub apart: f64,
    pub together: f64,
    pub cuts: Vec<Cut>,
}

impl Estimate {
    pub fn gain(&self) -> f64 {
        self.apart - self.together
    }
    /// The chain is worth having, in place of `shorter` where that is one already.
    pub fn pays(&self, shorter: Option<&Estimate>) -> bool {
        let (gain, apart) = shorter.map_or((0.0, 0.0), |s| (s.gain(), s.apart));
        self.gain() - gain > WORTH * (self.apart - apart)
    }
}

/// A read of an operand from outside of the chain, or of a buffer between stages inside of a reduction.
struct Read {
    bytes: f64,
    /// Extent by axis that its index depends on: shared ones by number, others together.
    shared: Vec<usize>,
    others: f64,
    /// Values of axes of the domain that it does not depend on: how often what is read is used.
    reuse: f64,
    /// Shared axes among these.
    reused: Vec<usize>,
    reduced: bool,
    link: bool,
}

struct StageCost {
    arithmetic: f64,
    reads: Vec<Read>,
}

/// Estimates chains of kernels; what is known of a kernel is kept.
pub struct Model<'a> {
    pub symbols: &'a Symbols,
    pub target: &'a TargetDesc,
}

impl Model<'_> {
    /// The best blocks for a chain, whether it pays or not; `None` where its stages share no axis.
    pub fn best(&self, chain: &Kernel, shared: &[SharedAxis]) -> Option<Estimate> {
        let stages: Vec<StageCost> =
            (0..chain.stages.len()).map(|s| self.stage(chain, shared, s)).collect::<Option<_>>()?;
        let size = |d: &Dim| self.estimate(d);
        let extents: Vec<f64> = shared.iter().map(|a| size(&a.extent)).collect();
        let apart = self.apart(chain, &stages, &extents);
        let mut found: Vec<(f64, Vec<Cut>)> = Vec::new();
        let order = outermost_first(&stages, shared.len());
        for (axis, a) in shared.iter().enumerate() {
            for block in self.sizes(a, chain) {
                let cuts: Vec<Cut> = order
                    .iter()
                    .map(|x| Cut { axis: *x, size: if *x == axis { block } else { 1 } })
                    .collect();
                let time = self.together(chain, shared, &stages, &extents, &cuts);
                found.push((time, cuts));
            }
        }
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.dedup_by(|b, a| a.1 == b.1);
        found
            .into_iter()
            .take(CLOSE)
            .filter_map(|(time, cuts)| {
                let lost = self.lost(chain, shared, &stages, &extents, &cuts)?;
                Some(Estimate { apart, together: time + lost, cuts })
            })
            .min_by(|a, b| a.together.total_cmp(&b.together))
    }

    /// Time that stages lose because their schedules for one block are worse than those for all of it.
    fn lost(
        &self,
        chain: &Kernel,
        shared: &[SharedAxis],
        stages: &[StageCost],
        extents: &[f64],
        cuts: &[Cut],
    ) -> Option<f64> {
        let blocks: f64 = cuts.iter().map(|c| (extents[c.axis] / f64::from(c.size)).ceil()).product();
        let mut lost = 0.0;
        for (i, s) in stages.iter().enumerate() {
            let k = normal_form(&stage_of_block(chain, shared, cuts, i, self.symbols), self.symbols).ok()?;
            let k = without_repeats(k, self.symbols);
            lost += (self.arithmetic(&k)? * blocks - s.arithmetic).max(0.0);
        }
        Some(lost / self.threads())
    }

    /// The value to expect: symbols at their hints, variables at 0; at least 1.
    fn estimate(&self, d: &Dim) -> f64 {
        let value = d.eval(&|a| match a {
            Atom::Sym(s) => self.symbols.infos.get(s.0 as usize).map(|i| i.hint.max(1)),
            Atom::Var(_) => Some(0),
            _ => None,
        });
        value.unwrap_or(1).max(1) as f64
    }

    /// Nanoseconds of arithmetic of a kernel in normal form. Schedules are chosen for no less than some least
    /// size of each symbol; the work is that of the size to expect.
    fn arithmetic(&self, normal: &Kernel) -> Option<f64> {
        let choice = choose::serial_variants(normal, self.symbols, self.target).into_iter().next()?;
        let facts = VarFacts::of(normal, self.symbols);
        let points = |size: &dyn Fn(&Dim) -> f64| -> f64 {
            let domain: f64 = normal.domain.iter().map(|a| size(&a.extent)).product();
            let inner = |s: &Stmt| match s {
                Stmt::Reduce { axes, .. } | Stmt::Store { axes, .. } => {
                    axes.iter().map(|a| size(&a.extent)).product()
                }
                _ => 0.0,
            };
            domain * normal.stmts.iter().map(inner).sum::<f64>()
        };
        Some(choice.ns_per_iter * points(&|d| self.estimate(d)) / points(&|d| facts.estimate(d)).max(1.0))
    }

    /// Block sizes to try along an axis.
    fn sizes(&self, axis: &SharedAxis, chain: &Kernel) -> Vec<u32> {
        let least = axis.extent.bounds(self.symbols).0.max(1);
        let known = axis.extent.as_const();
        let most = known.unwrap_or(i64::MAX).min(256);
        // whole rows of an axis that some stage splits
        let inner = chain.stages.iter().enumerate().filter_map(|(s, _)| match axis.parts[s].as_slice() {
            [_, .., last] => last.extent.as_const(),
            _ => None,
        });
        let mut sizes: Vec<i64> = vec![1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];
        sizes.extend(inner.flat_map(|n| [n, 2 * n, 3 * n, 4 * n]));
        if let Some(n) = known {
            // equal blocks, as few as may be
            sizes.extend((1..=16).map(|parts| (n + parts - 1) / parts));
        }
        // an axis that may be shorter than its blocks gets a version of its own, for some sizes only
        if known.is_none() && least < 2 {
            sizes.retain(|n| [1, 16, 32, 64].contains(n));
        }
        sizes.retain(|n| (1..=most).contains(n));
        sizes.sort_unstable();
        sizes.dedup();
        sizes.into_iter().filter_map(|n| u32::try_from(n).ok()).collect()
    }

    fn bytes(&self, chain: &Kernel, b: BufId, shape: &[Dim]) -> f64 {
        let elems: f64 = shape.iter().map(|d| self.estimate(d)).product();
        elems * chain.buffers[b.0 as usize].dtype.bytes() as f64
    }

    /// Bytes per nanosecond of one core for something of this size.
    fn speed(&self, bytes: f64) -> f64 {
        let l2 = self.target.l2_bytes as f64;
        match bytes {
            b if b <= 0.6 * l2 => L2,
            b if b <= L3_SIZE * l2 => L3,
            _ => DRAM,
        }
    }

    /// Stores and reads of the buffers between stages.
    fn traffic(&self, chain: &Kernel, b: BufId) -> f64 {
        let uses = chain.stages.iter().flat_map(|s| &s.args).filter(|a| **a == b).count();
        self.bytes(chain, b, &chain.buffers[b.0 as usize].shape) * uses as f64
    }

    fn threads(&self) -> f64 {
        self.target.threads.max(1) as f64
    }

    /// Time of the kernels as separate calls.
    fn apart(&self, chain: &Kernel, stages: &[StageCost], extents: &[f64]) -> f64 {
        let arithmetic: f64 = stages.iter().map(|s| s.arithmetic * slowness(s, extents)).sum();
        let traffic: f64 = links(chain)
            .into_iter()
            .map(|b| {
                // what one core wrote, the other one reads: nothing is as near as its own cache
                let size = self.bytes(chain, b, &chain.buffers[b.0 as usize].shape);
                self.traffic(chain, b) / self.speed(size).min(L3)
            })
            .sum();
        (arithmetic + traffic) / self.threads() + CALL * stages.len() as f64
    }

    /// Time of the chain in these blocks.
    fn together(
        &self,
        chain: &Kernel,
        shared: &[SharedAxis],
        stages: &[StageCost],
        extents: &[f64],
        cuts: &[Cut],
    ) -> f64 {
        let mut sizes = vec![1.0; extents.len()];
        for c in cuts {
            sizes[c.axis] = f64::from(c.size);
        }
        let counts: Vec<f64> = extents.iter().zip(&sizes).map(|(n, b)| (n / b).ceil()).collect();
        let blocks: f64 = counts.iter().product();
        // repeated elements of the last block
        let covered: f64 = counts.iter().zip(&sizes).zip(extents).map(|((c, b), n)| c * b / n).product();
        let links = links(chain);
        let is_local = |b: &BufId| chain.buffers[b.0 as usize].access == Access::Local;
        let resident: f64 = links
            .iter()
            .filter(|b| is_local(b))
            .map(|b| self.bytes(chain, *b, &local_shape(chain, *b, shared, cuts)))
            .sum();
        let traffic: f64 = links
            .iter()
            .map(|b| self.traffic(chain, *b) / if is_local(b) { self.speed(1.4 * resident) } else { L3 })
            .sum();
        let part = |r: &Read| match r.link {
            true => 0.0,
            false => r.shared.iter().map(|a| sizes[*a]).product::<f64>() * r.others * r.bytes,
        };
        // every block goes through what all stages read
        let read: f64 = stages.iter().flat_map(|s| &s.reads).map(part).sum();
        let fits = read + resident <= 0.8 * self.target.l2_bytes as f64;
        let mut time = 0.0;
        for s in stages {
            let arithmetic = s.arithmetic * slowness(s, &sizes);
            // what blocks read anew, as far as arithmetic does not hide it
            let stream: f64 = s
                .reads
                .iter()
                .filter(|r| !r.link)
                .map(|r| {
                    let part = part(r);
                    let speed = match part <= L3_SIZE * self.target.l2_bytes as f64 {
                        _ if fits => L2,
                        true => L3_READ,
                        false => DRAM_READ,
                    };
                    part * blocks / speed
                })
                .sum();
            time += arithmetic + (stream - HIDDEN * arithmetic).max(0.0);
        }
        let threads = self.threads();
        let waiting = (blocks / threads).ceil() * threads / blocks;
        (time + traffic) * covered * waiting / threads + CALL
    }

    fn stage(&self, chain: &Kernel, shared: &[SharedAxis], stage: usize) -> Option<StageCost> {
        let s = &chain.stages[stage];
        let k = &s.kernel;
        let normal = without_repeats(normal_form(k, self.symbols).ok()?, self.symbols);
        let arithmetic = self.arithmetic(&normal)?;
        let facts = VarFacts::of(k, self.symbols);
        let links = links(chain);
        let of_shared: HashMap<Var, usize> = shared
            .iter()
            .enumerate()
            .flat_map(|(i, a)| a.parts[stage].iter().map(move |p| (p.var, i)))
            .collect();
        let mut reads = Vec::new();
        let reduced = reduced_exprs(k);
        for (i, e) in k.exprs().iter().enumerate() {
            let Expr::Read { buf, index, .. } = e else { continue };
            let b = s.args[buf.0 as usize];
            let vars: Vec<Var> = index.iter().flat_map(vars_of).collect();
            let (mut used, mut others) = (Vec::new(), 1.0);
            let mut seen: Vec<Var> = Vec::new();
            for v in vars {
                if seen.contains(&v) {
                    continue;
                }
                seen.push(v);
                match of_shared.get(&v) {
                    Some(a) if used.contains(a) => {}
                    Some(a) => used.push(*a),
                    None => others *= facts.extent(v).map_or(1.0, |d| self.estimate(d)),
                }
            }
            let (mut reuse, mut reused) = (1.0, Vec::new());
            for a in &k.domain {
                match of_shared.get(&a.var) {
                    Some(x) if used.contains(x) || reused.contains(x) => {}
                    Some(x) => reused.push(*x),
                    None if seen.contains(&a.var) => {}
                    None => reuse *= self.estimate(&a.extent),
                }
            }
            let whole = self.bytes(chain, b, &chain.buffers[b.0 as usize].shape);
            let elem = chain.buffers[b.0 as usize].dtype.bytes() as f64;
            reads.push(Read {
                // windows overlap: no more than there is
                bytes: elem,
                others: others.min(whole / elem),
                shared: used,
                reuse,
                reused,
                reduced: reduced[i],
                link: links.contains(&b),
            });
        }
        Some(StageCost { arithmetic, reads })
    }
}

/// Shared axes so that what blocks read stays the same for as long as may be: those come first that most of it depends on.
fn outermost_first(stages: &[StageCost], axes: usize) -> Vec<usize> {
    let reads =
        |x: usize| stages.iter().flat_map(|s| &s.reads).filter(move |r| !r.link && r.shared.contains(&x));
    let bytes = |x: usize| reads(x).map(|r| r.bytes * r.others).sum::<f64>();
    let mut order: Vec<usize> = (0..axes).collect();
    order.sort_by(|a, b| bytes(*b).total_cmp(&bytes(*a)));
    order
}

/// How much longer a contraction takes because its operands are used too few times, at these sizes of the
/// shared axes.
fn slowness(s: &StageCost, sizes: &[f64]) -> f64 {
    let reuse = |r: &Read| r.reuse * r.reused.iter().map(|a| sizes[*a]).product::<f64>();
    let factors = s.reads.iter().filter(|r| r.reduced);
    factors.map(|r| REUSE / reuse(r).clamp(1.0, REUSE)).fold(1.0, f64::max)
}

/// By expression: below the value of a sum over products, which is where reuse pays.
fn reduced_exprs(k: &Kernel) -> Vec<bool> {
    let mut marked = vec![false; k.exprs().len()];
    let mut todo: Vec<ExprId> = Vec::new();
    for s in &k.stmts {
        if let Stmt::Reduce { value, axes, .. } = s {
            let many = axes.iter().any(|a: &Axis| !a.extent.is_const(1));
            if many && matches!(k.get(*value), Expr::Binary(ir::prim::BinaryOp::Mul, ..)) {
                todo.push(*value);
            }
        }
    }
    while let Some(e) = todo.pop() {
        if !std::mem::replace(&mut marked[e.0 as usize], true) {
            todo.extend(crate::kernels::children(k.get(e)));
        }
    }
    marked
}
