//! The shared memory of a block, with the state of every byte (PTX ISA §5.1.7).

use super::clock::WarpClock;
use super::{How, Write, first_bytes};
use crate::fault::{Conflict, FaultKind};
use crate::num::lanes::{L64, lanes_of};
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

    /// Plain reads by the lanes of `active`: what [`SharedMem::check`] and [`SharedMem::on_read`] do for each, at once.
    /// False where that cannot be, or something is wrong: then lane by lane tells what.
    #[inline(always)]
    pub fn read_lanes<const N: usize>(&mut self, clock: &WarpClock, addresses: &L64, active: u32) -> bool {
        let Some(same) = self.fits(addresses, active, N as u32) else { return false };
        let warp = (clock.warp - self.first_warp) as usize;
        let epoch = (clock.epoch - self.base) << 6;
        let several = same && clock.is_common() && active.count_ones() > 1;
        let lanes = if several { active & active.wrapping_neg() } else { active };
        for lane in lanes_of(lanes) {
            let at = addresses[lane] as usize;
            if self.uninitialised && !self.written[at..][..N].iter().fold(true, |all, w| all & w) {
                return false;
            }
            if !self.races {
                continue;
            }
            let mine = epoch | lane as u32;
            for cell in at >> self.shift..(at + N) >> self.shift {
                let w = self.writes[cell];
                // a lane knows of its own writes, whatever the others know
                let own = several && w.thread >> 5 == clock.warp && !clock.is_synced(w.epoch);
                if w.epoch > 0 && (own || !clock.knows(lane as u32, w.thread, w.epoch)) {
                    return false;
                }
                let r = &mut self.reads[cell * self.warps + warp];
                let shared = several || *r >> 6 == mine >> 6 && *r != mine;
                *r = if shared { epoch | SEVERAL } else { mine };
            }
        }
        true
    }

    /// Plain writes of `words` likewise; where it answers false, some lanes may have written already, as they will again.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "who writes what: each call differs in all of them")]
    pub fn write_lanes<const N: usize>(
        &mut self,
        clock: &WarpClock,
        addresses: &L64,
        active: u32,
        line: u32,
        equal: bool,
        words: &[[u32; 4]; 32],
    ) -> bool {
        if self.fits(addresses, active, N as u32).is_none() {
            return false;
        }
        for lane in lanes_of(active) {
            let at = addresses[lane] as usize;
            let data = first_bytes::<N>(&words[lane]);
            if self.races {
                let how = How::of(false, equal && self.data[at..][..N] == data);
                if self.check_write(clock, lane as u32, at, N as u32, how).is_err() {
                    return false;
                }
                let w = Write::new(clock.warp * 32 + lane as u32, clock.epoch, line, how);
                self.writes[at >> self.shift..(at + N) >> self.shift].fill(w);
            }
            if self.uninitialised {
                self.written[at..][..N].fill(true);
            }
            self.data[at..][..N].copy_from_slice(&data);
        }
        true
    }

    /// Whether accesses of `bytes` are aligned, in bounds, of whole cells and of nothing that is still to arrive; and if
    /// so, whether all lanes mean the same place.
    #[inline(always)]
    fn fits(&self, addresses: &L64, active: u32, bytes: u32) -> Option<bool> {
        if self.in_flight > 0 || bytes < 1 << self.shift {
            return None;
        }
        let first = addresses[active.trailing_zeros() as usize % 32];
        let (mut all, mut most, mut same) = (0, 0, true);
        for lane in lanes_of(active) {
            let a = addresses[lane];
            (all, most, same) = (all | a, a.max(most), same & (a == first));
        }
        let end = most.checked_add(bytes.into())?;
        (all & (u64::from(bytes) - 1) == 0 && end <= self.data.len() as u64).then_some(same)
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
