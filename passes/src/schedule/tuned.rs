//! Schedules that measuring found better than the default ones, and the neighbours of a schedule that a
//! search may try.

use super::analyse::Analysis;
use super::{Edge, Schedule};
use crate::host::kernel_key;
use ir::kernel::Kernel;
use ir::target::TargetDesc;
use ir::{Dim, Symbols};
use std::collections::BTreeMap;

/// What a winner is for: a kernel on a target, in place of its default schedule. A default that changes, because
/// the model of costs does, leaves the winners over the old one without effect.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Question {
    /// Number of the kernel and its target, see [`question`].
    pub kernel: String,
    pub default: String,
}

/// Winners by question, as text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tuned {
    pub schedules: BTreeMap<Question, String>,
}

/// The question that a kernel in normal form asks. Names of buffers and values do not matter.
pub fn question(normal: &Kernel, target: &TargetDesc, default: &Schedule) -> Question {
    let text = format!("{} {} {} {}", kernel_key(normal), target.cpu, target.name, target.threads);
    Question { kernel: format!("{:016x}", fnv1a(text.as_bytes())), default: default.text(normal) }
}

/// FNV-1a: equal on all machines and in all versions, which the database relies on.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

impl Tuned {
    /// The winner over `default`, where there is one that fits the kernel.
    pub fn find(&self, normal: &Kernel, target: &TargetDesc, default: &Schedule) -> Option<Schedule> {
        if self.schedules.is_empty() {
            return None;
        }
        let text = self.schedules.get(&question(normal, target, default))?;
        Schedule::parse(text, normal).ok()
    }
}

/// Schedules that differ from `s` in one decision: rows of the tile, sizes of chunks, unrolling. Whether a
/// tile may overlap its neighbour is kept; what does not fit the kernel is refused by the lowering.
pub fn neighbours(s: &Schedule, k: &Kernel, symbols: &Symbols) -> Vec<Schedule> {
    let mut found = Vec::new();
    let extent = |v| k.domain.iter().find(|a| a.var == v).map(|a| a.extent.clone()).unwrap_or(Dim::from(1));
    if let Some(r) = s.rows {
        for size in [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16] {
            let n = extent(r.axis);
            let fits = if r.overlap {
                n.bounds(symbols).0 >= i64::from(size)
            } else {
                n.divisible_by(size.into(), symbols)
            };
            if size != r.size && fits {
                let mut t = s.clone();
                t.rows = Some(super::RowTile { size, ..r });
                if let Some(m) = &mut t.matrix {
                    m.rows = super::MatrixTile::leaving(size);
                }
                restep(&mut t, s, r.axis, r.size, size);
                found.push(t);
            }
        }
    }
    if let Some(c) = s.cols.filter(|c| !c.panel && c.edge != Edge::Exact) {
        for (by, of) in [(2, 1), (1, 2)] {
            let size = c.size * by / of;
            if (4..=256).contains(&size) && c.size.is_multiple_of(of) {
                let mut t = s.clone();
                t.cols = Some(super::ColTile { size, tail: c.tail.min(size), ..c });
                restep(&mut t, s, c.axis, c.size, size);
                found.push(t);
            }
        }
    }
    for i in 0..s.loops.len() {
        let inner = s.loops[i + 1..].iter().any(|m| m.axis == s.loops[i].axis);
        if !inner {
            continue;
        }
        // a chunk: of twice and of half as many tiles
        for (by, of) in [(2, 1), (1, 2), (4, 1), (1, 4)] {
            let mut t = s.clone();
            let step = t.loops[i].step;
            t.loops[i].step = step.saturating_mul(by) / of;
            if step.is_multiple_of(of) {
                found.push(t);
            }
        }
    }
    for i in 0..s.inner.len() {
        for unroll in [0, 2, 5, 9] {
            if unroll != s.inner[i].unroll {
                let mut t = s.clone();
                t.inner[i].unroll = unroll;
                found.push(t);
            }
        }
    }
    // the order of loops over axes that may run in any
    let free = Analysis::of(k, symbols).free_axes();
    for i in 1..s.loops.len() {
        let (a, b) = (s.loops[i - 1], s.loops[i]);
        let any = free.contains(&a.axis) && free.contains(&b.axis);
        if any && !a.parallel && !b.parallel && a.axis != b.axis {
            let mut t = s.clone();
            t.loops.swap(i - 1, i);
            found.push(t);
        }
    }
    found
}

/// Loops of an axis whose tile changes keep their numbers of tiles.
fn restep(t: &mut Schedule, s: &Schedule, axis: ir::Var, from: u32, to: u32) {
    for (l, old) in t.loops.iter_mut().zip(&s.loops).filter(|(l, _)| l.axis == axis) {
        l.step = old.step / from.max(1) * to;
    }
}
