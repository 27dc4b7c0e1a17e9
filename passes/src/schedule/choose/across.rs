//! Tiles that go through shared memory on a GPU, where a kernel reads along one axis and writes along another.

use super::{Choice, Chooser};
use crate::lower::across::{PAD, Reads, reads};
use crate::occupancy::multiprocessors;
use crate::schedule::{AcrossTile, ColTile, Edge, LoopSpec, Schedule};
use ir::kernel::{Expr, ExprId, Guard};
use ir::{Dim, Var};

/// Shorter axes fill no lines, whichever way they are accessed.
const LEAST: i64 = 16;
/// The smallest side of a tile: there are as many lanes.
const SMALLEST: u32 = 32;
/// Elements of a thread, which wait for memory together: four times 16 bytes of f32.
const OWN: u32 = 16;
/// Threads of a block, at most, so that two of them fit a multiprocessor with 64 registers each.
const MOST_THREADS: u32 = 512;
/// Operations on an element that 64 registers are enough for.
const MOST_OPS: f64 = 12.0;
/// Reads whose elements a thread holds at once, at most.
const MOST_READS: usize = 6;
/// Bytes of shared memory of a block, at most.
const SHARED: u32 = 40 << 10;
/// Blocks for each multiprocessor below which smaller tiles are better.
const FEW: f64 = 2.0;

impl Chooser<'_> {
    /// A schedule whose tiles go across; `None` where nothing is read so, or along axes too short.
    pub(super) fn across_choice(&self) -> Option<Choice> {
        if !self.target.simt || !self.parallel || self.free.len() != self.a.k.domain.len() {
            return None;
        }
        let all = self.free.iter().flat_map(|c| self.free.iter().map(move |r| (*r, *c)));
        let found = all.filter(|(r, c)| r != c).filter_map(|(r, c)| Some((r, c, reads(self.a.k, r, c)?)));
        // of several axes that are read along, the one of the most operands
        let (rows, cols, found) = found.max_by_key(|f| f.2.across.len())?;
        if found.across.is_empty() || found.across.len() + found.straight.len() > MOST_READS {
            return None;
        }
        let mut guards = Vec::new();
        for axis in [rows, cols] {
            let extent = self.a.extent(axis);
            let (least, most) = extent.bounds(&self.a.facts);
            if most < LEAST || self.a.facts.likely(&extent) < LEAST as f64 {
                return None;
            }
            if least < LEAST {
                guards.push(Guard { expr: extent - Dim::from(LEAST), bound: Dim::from(Dim::LIMIT) });
            }
        }
        let (row_size, col_size) = self.across_tile(rows, cols, &found)?;
        let threads = (row_size * col_size / OWN).min(MOST_THREADS);
        let others = self.a.k.domain.iter().map(|a| a.var).filter(|v| *v != rows && *v != cols);
        let axis = |axis, step| LoopSpec { axis, step, parallel: true };
        let mut loops: Vec<LoopSpec> = others.map(|v| axis(v, 1)).collect();
        loops.extend([axis(rows, row_size), axis(cols, col_size)]);
        let whole = self.a.extent(cols).divisible_by(col_size.into(), &self.a.facts);
        let edge = if whole { Edge::Exact } else { Edge::Mask };
        let schedule = Schedule {
            loops,
            cols: Some(ColTile { axis: cols, size: col_size, edge, tail: col_size, panel: false }),
            across: Some(AcrossTile { threads, rows, row_size }),
            ..Schedule::default()
        };
        Some(Choice { guards, schedule, ns_per_iter: self.nanoseconds() })
    }

    fn bytes_read(&self, e: ExprId) -> u32 {
        match self.a.k.get(e) {
            Expr::Read { buf, .. } => self.a.k.buffers[buf.0 as usize].dtype.bytes() as u32,
            _ => 0,
        }
    }

    /// Rows and columns: a line or more of what is accessed along each, and tiles for all multiprocessors.
    fn across_tile(&self, rows: Var, cols: Var, reads: &Reads) -> Option<(u32, u32)> {
        let read: Vec<u32> = reads.across.iter().map(|e| self.bytes_read(*e)).collect();
        let stores = self.a.works.iter().flat_map(|w| &w.accesses).filter(|x| x.store);
        let written = stores.map(|x| self.a.k.buffers[x.buf.0 as usize].dtype.bytes() as u32).min()?;
        let mut size = (self.side(rows, *read.iter().min()?), self.side(cols, written));
        let units = multiprocessors(self.target);
        let points = self.a.domain_points();
        let all: u32 = read.iter().sum();
        let fits = |(r, c): (u32, u32)| {
            let blocks = points / f64::from(r * c);
            all * r * (c + PAD) <= SHARED && (blocks >= FEW * units || (r, c) == (SMALLEST, SMALLEST))
        };
        while !fits(size) && size != (SMALLEST, SMALLEST) {
            let longer = if size.0 > size.1 { &mut size.0 } else { &mut size.1 };
            *longer /= 2;
        }
        fits(size).then_some(size)
    }

    /// A side of a tile along an axis along which elements of so many bytes lie.
    fn side(&self, axis: Var, bytes: u32) -> u32 {
        let extent = self.a.extent(axis).as_const();
        let filled = |size: u32| {
            let n = extent.unwrap_or(size.into()).max(1) as f64;
            n / ((n / f64::from(size)).ceil() * f64::from(size))
        };
        let ops: f64 = self.a.works.iter().map(|w| w.ops).sum();
        let mut size = match bytes {
            1 if ops <= MOST_OPS => 128,
            1..=4 => 64,
            _ => SMALLEST,
        };
        while size > SMALLEST && filled(size) < 0.75 && filled(size / 2) > filled(size) {
            size /= 2;
        }
        size
    }
}
