//! The shared memory of a block, with the state of every byte (PTX ISA §5.1.7).

use super::clock::WarpClock;
use super::{How, Write};
use crate::fault::{Conflict, FaultKind};
use crate::syntax::types::Space;

type Res<T> = Result<T, FaultKind>;

/// In [`SharedMem::reads`]: several lanes of the warp have read.
const SEVERAL: u32 = 32;

/// Shared memory and its shadow. A *cell* is four bytes until someone accesses less.
pub struct SharedMem {
    pub data: Vec<u8>,
    written: Vec<bool>,
    /// Line + 1 of the asynchronous copy in flight to a byte, or 0.
    pending: Vec<u32>,
    in_flight: u32,
    races: bool,
    uninitialised: bool,
    shift: u32,
    warps: usize,
    first_warp: u32,
    /// Epochs are stored relative to this one, in 26 bits.
    base: u32,
    writes: Vec<Write>,
    /// Per cell and warp of the block: epoch * 64 + lane, or [`SEVERAL`].
    reads: Vec<u32>,
}

impl SharedMem {
    pub fn new(
        bytes: usize,
        warps: usize,
        first_warp: u32,
        base: u32,
        races: bool,
        uninitialised: bool,
    ) -> Self {
        let cells = if races { bytes.div_ceil(4) } else { 0 };
        SharedMem {
            data: vec![0xcd; bytes],
            written: vec![false; if uninitialised { bytes } else { 0 }],
            pending: vec![0; bytes],
            in_flight: 0,
            races,
            uninitialised,
            shift: 2,
            warps,
            first_warp,
            base,
            writes: vec![Write::default(); cells],
            reads: vec![0; cells * warps],
        }
    }

    /// Bounds and alignment; gives the offset.
    pub fn check(&self, address: u64, bytes: u32) -> Res<usize> {
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(FaultKind::Misaligned { space: Space::Shared, address, align: bytes });
        }
        match address.checked_add(u64::from(bytes)) {
            Some(end) if end <= self.data.len() as u64 => Ok(address as usize),
            _ => {
                let hint = format!("; the block has {} bytes", self.data.len());
                Err(FaultKind::OutOfBounds { space: Space::Shared, address, bytes, hint })
            }
        }
    }

    /// Smaller cells, each with the state of the cell it comes from.
    fn refine(&mut self, bytes: u32) {
        let shift = bytes.trailing_zeros().min(2);
        if shift >= self.shift {
            return;
        }
        let k = 1usize << (self.shift - shift);
        self.writes = self.writes.iter().flat_map(|w| std::iter::repeat_n(*w, k)).collect();
        let rows = self.reads.chunks(self.warps);
        self.reads = rows.flat_map(|r| std::iter::repeat_n(r, k)).flatten().copied().collect();
        self.shift = shift;
    }

    fn race(&self, at: usize, conflict: Conflict, warp: u32, lane: u32, line: u32) -> FaultKind {
        let lane = if lane == SEVERAL { "several lanes".into() } else { format!("lane {lane}") };
        let line = if line > 0 { format!(", line {line}") } else { String::new() };
        let other = format!("warp {}, {lane}{line}", warp.wrapping_sub(self.first_warp));
        FaultKind::Race { space: Space::Shared, address: at as u64, conflict, other }
    }

    fn not_pending(&self, at: usize, bytes: u32) -> Res<()> {
        if self.in_flight > 0 {
            for (i, p) in self.pending[at..at + bytes as usize].iter().enumerate() {
                if *p > 0 {
                    return Err(FaultKind::AsyncPending { address: (at + i) as u64, line: *p - 1 });
                }
            }
        }
        Ok(())
    }

    /// A read of `bytes` at offset `at`, already checked, by `lane` of the warp of `clock`.
    #[inline(always)]
    pub fn on_read(&mut self, clock: &WarpClock, lane: u32, at: usize, bytes: u32, strong: bool) -> Res<()> {
        self.not_pending(at, bytes)?;
        if self.uninitialised
            && let Some(i) = self.written[at..at + bytes as usize].iter().position(|w| !w)
        {
            return Err(FaultKind::UninitialisedShared { address: (at + i) as u64 });
        }
        if !self.races {
            return Ok(());
        }
        if bytes < 1 << self.shift {
            self.refine(bytes);
        }
        let warp = (clock.warp - self.first_warp) as usize;
        let mine = (clock.epoch - self.base) << 6 | lane;
        for cell in at >> self.shift..(at + bytes as usize) >> self.shift {
            let w = self.writes[cell];
            if w.epoch > 0 && !(strong && w.strong()) && !clock.knows(lane, w.thread, w.epoch) {
                return Err(self.race(
                    cell << self.shift,
                    Conflict::ReadWrite,
                    w.thread >> 5,
                    w.thread & 31,
                    w.line(),
                ));
            }
            if !strong {
                let r = &mut self.reads[cell * self.warps + warp];
                let same_epoch = *r >> 6 == mine >> 6;
                *r = if same_epoch && *r != mine { (mine & !63) | SEVERAL } else { mine };
            }
        }
        Ok(())
    }

    fn check_write(&mut self, clock: &WarpClock, lane: u32, at: usize, bytes: u32, how: How) -> Res<()> {
        if bytes < 1 << self.shift {
            self.refine(bytes);
        }
        for cell in at >> self.shift..(at + bytes as usize) >> self.shift {
            let w = self.writes[cell];
            if w.epoch > 0 && !how.meets(w) && !clock.knows(lane, w.thread, w.epoch) {
                return Err(self.race(
                    cell << self.shift,
                    Conflict::WriteWrite,
                    w.thread >> 5,
                    w.thread & 31,
                    w.line(),
                ));
            }
            let own = clock.own(lane);
            let row = &self.reads[cell * self.warps..(cell + 1) * self.warps];
            for (i, r) in row.iter().enumerate() {
                if *r == 0 {
                    continue;
                }
                let (warp, epoch, reader) = (self.first_warp + i as u32, (*r >> 6) + self.base, *r & 63);
                let fine = if warp != clock.warp {
                    own[i] >= epoch || (reader < 32 && clock.knows(lane, warp * 32 + reader, epoch))
                } else if reader == SEVERAL {
                    clock.knows_warp(lane, warp, epoch)
                } else {
                    clock.knows(lane, warp * 32 + reader, epoch)
                };
                if !fine {
                    return Err(self.race(cell << self.shift, Conflict::WriteRead, warp, reader, 0));
                }
            }
        }
        Ok(())
    }

    /// A write of `bytes` at offset `at` by the instruction on `line`.
    #[inline(always)]
    pub fn on_write(
        &mut self,
        clock: &WarpClock,
        lane: u32,
        at: usize,
        bytes: u32,
        line: u32,
        how: How,
    ) -> Res<()> {
        self.not_pending(at, bytes)?;
        if self.races {
            self.check_write(clock, lane, at, bytes, how)?;
            let w = Write::new(clock.warp * 32 + lane, clock.epoch, line, how);
            self.writes[at >> self.shift..(at + bytes as usize) >> self.shift].fill(w);
        }
        if self.uninitialised {
            self.written[at..at + bytes as usize].fill(true);
        }
        Ok(())
    }

    /// An asynchronous copy to `at` is issued: nobody may touch the bytes until it is waited for.
    pub fn on_issue(&mut self, clock: &WarpClock, lane: u32, at: usize, bytes: u32, line: u32) -> Res<()> {
        self.not_pending(at, bytes)?;
        if self.races {
            self.check_write(clock, lane, at, bytes, How::Plain)?;
            let w = Write::new(clock.warp * 32 + lane, clock.epoch, line, How::Plain);
            self.writes[at >> self.shift..(at + bytes as usize) >> self.shift].fill(w);
        }
        self.pending[at..at + bytes as usize].fill(line + 1);
        self.in_flight += 1;
        Ok(())
    }

    /// The copy has been waited for: from now on it is a write of the lane that issued it.
    pub fn on_landed(&mut self, clock: &WarpClock, lane: u32, at: usize, bytes: u32, line: u32) {
        self.pending[at..at + bytes as usize].fill(0);
        self.in_flight -= 1;
        if self.races {
            let w = Write::new(clock.warp * 32 + lane, clock.epoch, line, How::Plain);
            self.writes[at >> self.shift..(at + bytes as usize) >> self.shift].fill(w);
        }
        if self.uninitialised {
            self.written[at..at + bytes as usize].fill(true);
        }
    }
}
