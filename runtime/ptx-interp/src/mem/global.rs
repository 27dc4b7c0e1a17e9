//! Device memory: allocations with red zones between them, and who read and wrote them in this launch.

use super::clock::{Clock, WarpClock};
use super::{How, Write, first_bytes, window};
use crate::fault::{At, Conflict, FaultKind, at};
use crate::num::lanes::{L64, lanes_of};
use crate::syntax::types::Space;
use std::collections::HashMap;

type Res<T> = Result<T, FaultKind>;

/// Where device addresses begin; every generic window lies far above.
const FIRST: u64 = 0x2_0000_0000;
/// Bytes between allocations that belong to nobody.
const RED_ZONE: u64 = 1 << 16;
const PAGE: usize = 4096;
/// In a read cell: the rest is the number of a reader set.
const SET: u64 = 1 << 63;
/// Sets larger than this become [`MANY`].
const LARGEST_SET: usize = 128;
const MANY: u32 = u32::MAX;

struct Allocation {
    base: u64,
    data: Vec<u8>,
    read_only: bool,
    shadow: Shadow,
}

/// Cells of four bytes until someone accesses less; pages appear when touched.
#[derive(Default)]
struct Shadow {
    shift: u32,
    writes: Vec<Option<Box<[Write]>>>,
    reads: Vec<Option<Box<[u64]>>>,
}

/// A warp that has read a cell, and when.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Reader {
    warp: u32,
    epoch: u32,
}

/// Cells that several warps have read share a set of readers; sets are made once per way to reach them.
#[derive(Default)]
struct ReaderSets {
    sets: Vec<Vec<Reader>>,
    steps: HashMap<(u64, Reader), u32>,
    /// The step taken last: neighbouring cells take the same ones.
    last: Option<((u64, Reader), u32)>,
    /// Warps that have read cells with too many readers to list, and when last.
    many: HashMap<u32, u32>,
}

/// The memory of a device. Addresses stay valid until the allocation is freed; reads and writes from outside
/// a launch are ordered with everything.
#[derive(Default)]
pub struct DeviceMemory {
    /// Sorted by address.
    allocations: Vec<Allocation>,
    next: u64,
    last: usize,
    /// The device's counter of epochs.
    pub now: u32,
    /// Accesses up to this epoch belong to earlier launches.
    base: u32,
    pub(crate) races: bool,
    sets: ReaderSets,
    /// What has been released through an address (§8.9.2).
    released: HashMap<u64, Clock>,
}

impl DeviceMemory {
    pub fn new() -> DeviceMemory {
        DeviceMemory { next: FIRST, now: 1, races: true, ..DeviceMemory::default() }
    }

    /// Allocates `bytes` bytes, aligned to 512, filled with a pattern that no sane number has.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let base = self.reserve(bytes as u64, 512);
        self.insert(base, vec![0xcd; bytes], false);
        base
    }

    /// An address range that nothing else uses.
    pub fn reserve(&mut self, bytes: u64, align: u64) -> u64 {
        let base = self.next.next_multiple_of(align.max(512));
        self.next = base + bytes + RED_ZONE;
        base
    }

    /// Places `data` at `base`, inside a reserved range.
    pub fn insert(&mut self, base: u64, data: Vec<u8>, read_only: bool) {
        let i = self.allocations.partition_point(|a| a.base < base);
        let shadow = Shadow { shift: 2, ..Shadow::default() };
        self.allocations.insert(i, Allocation { base, data, read_only, shadow });
    }

    /// Frees the allocation that begins at `base` and gives its bytes.
    pub fn free(&mut self, base: u64) -> Option<Vec<u8>> {
        let i = self.allocations.binary_search_by_key(&base, |a| a.base).ok()?;
        self.last = 0;
        Some(self.allocations.remove(i).data)
    }

    /// Bytes allocated.
    pub fn used(&self) -> u64 {
        self.allocations.iter().map(|a| a.data.len() as u64).sum()
    }

    /// The base and size of the allocation that holds `address`.
    pub fn range(&self, address: u64) -> Option<(u64, u64)> {
        let i = self.allocations.partition_point(|a| a.base <= address).checked_sub(1)?;
        let a = &self.allocations[i];
        (address - a.base < a.data.len() as u64).then_some((a.base, a.data.len() as u64))
    }

    /// The bytes at `address`, which may run over adjacent allocations, in pieces.
    fn pieces(&self, address: u64, bytes: usize) -> Res<Vec<(usize, usize, usize)>> {
        let mut out = Vec::new();
        let mut done = 0;
        while done < bytes {
            let at = address + done as u64;
            let (i, offset) = self.find(at, 1)?;
            let n = (self.allocations[i].data.len() - offset).min(bytes - done);
            out.push((i, offset, n));
            done += n;
        }
        Ok(out)
    }

    pub fn read(&self, address: u64, out: &mut [u8]) -> Res<()> {
        let mut done = 0;
        for (i, offset, n) in self.pieces(address, out.len())? {
            out[done..done + n].copy_from_slice(&self.allocations[i].data[offset..offset + n]);
            done += n;
        }
        Ok(())
    }

    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Res<()> {
        let mut done = 0;
        for (i, offset, n) in self.pieces(address, bytes.len())? {
            self.allocations[i].data[offset..offset + n].copy_from_slice(&bytes[done..done + n]);
            done += n;
        }
        Ok(())
    }

    /// Begins a launch: everything before is ordered.
    pub(crate) fn begin(&mut self) {
        if self.now > u32::MAX / 2 {
            for a in &mut self.allocations {
                a.shadow = Shadow { shift: 2, ..Shadow::default() };
            }
            self.now = 1;
        }
        self.base = self.now;
        self.now += 1;
        self.sets = ReaderSets::default();
        self.released.clear();
    }

    /// Epochs above this belong to the launch in progress.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    fn out_of_bounds(&self, address: u64, bytes: u32) -> FaultKind {
        let i = self.allocations.partition_point(|a| a.base <= address);
        let mut hint = String::new();
        if let Some(a) = i.checked_sub(1).map(|i| &self.allocations[i]) {
            let past = (address - a.base).saturating_sub(a.data.len() as u64);
            if past < RED_ZONE {
                hint = format!("; {past} bytes past the end of the {} bytes at {:#x}", a.data.len(), a.base);
            }
        }
        if let Some(a) = self.allocations.get(i).filter(|a| hint.is_empty() && a.base - address < RED_ZONE) {
            hint = format!("; {} bytes before the {} bytes at {:#x}", a.base - address, a.data.len(), a.base);
        }
        FaultKind::OutOfBounds { space: Space::Global, address, bytes, hint }
    }

    fn find(&self, address: u64, bytes: u32) -> Res<(usize, usize)> {
        let fits = |a: &Allocation| {
            let offset = address.wrapping_sub(a.base);
            (address >= a.base && offset.saturating_add(u64::from(bytes)) <= a.data.len() as u64)
                .then_some(offset as usize)
        };
        if let Some(offset) = self.allocations.get(self.last).and_then(fits) {
            return Ok((self.last, offset));
        }
        let i = self.allocations.partition_point(|a| a.base <= address).wrapping_sub(1);
        match self.allocations.get(i).and_then(fits) {
            Some(offset) => Ok((i, offset)),
            None => Err(self.out_of_bounds(address, bytes)),
        }
    }

    /// The allocation that holds all bytes from `lo` up to `end`.
    #[inline(always)]
    pub(crate) fn holding(&mut self, lo: u64, end: u64) -> Option<usize> {
        let fits = |a: &Allocation| lo >= a.base && end <= a.base + a.data.len() as u64;
        if self.allocations.get(self.last).is_some_and(fits) {
            return Some(self.last);
        }
        let i = self.allocations.partition_point(|a| a.base <= lo).checked_sub(1)?;
        fits(&self.allocations[i]).then_some(())?;
        self.last = i;
        Some(i)
    }

    /// The address and the bytes of an allocation.
    #[inline(always)]
    pub(crate) fn contents(&self, i: usize) -> (u64, &[u8]) {
        (self.allocations[i].base, &self.allocations[i].data)
    }

    /// Alignment and bounds of an access by a kernel.
    #[inline(always)]
    pub(crate) fn check(&mut self, address: u64, bytes: u32) -> Res<(usize, usize)> {
        if !address.is_multiple_of(u64::from(bytes)) {
            return Err(FaultKind::Misaligned { space: Space::Global, address, align: bytes });
        }
        let (i, offset) = self.find(address, bytes)?;
        self.last = i;
        Ok((i, offset))
    }

    #[inline(always)]
    pub(crate) fn bytes(&self, (i, offset): (usize, usize), n: u32) -> &[u8] {
        &self.allocations[i].data[offset..offset + n as usize]
    }

    #[inline(always)]
    pub(crate) fn bytes_mut(&mut self, (i, offset): (usize, usize), n: u32) -> &mut [u8] {
        &mut self.allocations[i].data[offset..offset + n as usize]
    }

    fn race(address: u64, conflict: Conflict, warp: u32, lane: Option<u32>, line: u32) -> FaultKind {
        let lane = lane.map_or("several lanes".into(), |l| format!("lane {l}"));
        let line = if line > 0 { format!(", line {line}") } else { String::new() };
        let other = format!("warp {warp} of the grid, {lane}{line}");
        FaultKind::Race { space: Space::Global, address, conflict, other }
    }

    /// A read by a kernel at a checked place.
    #[inline(always)]
    pub(crate) fn on_read(
        &mut self,
        clock: &WarpClock,
        lane: u32,
        at: (usize, usize),
        bytes: u32,
        strong: bool,
        nc: bool,
    ) -> Res<()> {
        if !self.races {
            return Ok(());
        }
        let (base, a) = (self.base, &mut self.allocations[at.0]);
        if bytes < 1 << a.shadow.shift {
            a.shadow.refine(bytes);
        }
        let cells = at.1 >> a.shadow.shift..(at.1 + bytes as usize) >> a.shadow.shift;
        for cell in cells {
            let address = a.base + ((cell as u64) << a.shadow.shift);
            if let Some(w) = a.shadow.write(cell).filter(|w| w.epoch > base) {
                if nc {
                    return Err(FaultKind::NonCoherent { address });
                }
                if !((strong && w.strong()) || clock.knows(lane, w.thread, w.epoch)) {
                    return Err(Self::race(
                        address,
                        Conflict::ReadWrite,
                        w.thread >> 5,
                        Some(w.thread & 31),
                        w.line(),
                    ));
                }
            }
            if strong {
                continue;
            }
            let mine = u64::from(clock.warp * 32 + lane) << 32 | u64::from(clock.epoch);
            let cell = a.shadow.read_mut(cell);
            if *cell == mine {
                continue;
            }
            *cell = self.sets.add(*cell, mine, base, clock, lane);
        }
        Ok(())
    }

    /// Plain reads by the lanes of `active` between `lo` and `end`, aligned and inside allocation `i`: what
    /// [`DeviceMemory::on_read`] does for each of them.
    #[allow(clippy::too_many_arguments, reason = "who reads what: each call differs in all of them")]
    pub(crate) fn on_read_lanes(
        &mut self,
        clock: &WarpClock,
        i: usize,
        addresses: &L64,
        (lo, end): (u64, u64),
        active: u32,
        bytes: u32,
        nc: bool,
    ) -> At<()> {
        if !self.races {
            return Ok(());
        }
        let (base, a) = (self.base, &mut self.allocations[i]);
        if bytes < 1 << a.shadow.shift {
            a.shadow.refine(bytes);
        }
        let shift = a.shadow.shift;
        let (first, last) = ((lo - a.base) as usize >> shift, (end - 1 - a.base) as usize >> shift);
        let number = first / PAGE;
        let fresh = |w: &Write| w.epoch > base;
        let written = match a.shadow.writes.get(number) {
            Some(Some(page)) => number != last / PAGE || page[first % PAGE..=last % PAGE].iter().any(fresh),
            _ => number != last / PAGE,
        };
        if written {
            for lane in lanes_of(active) {
                let place = (i, (addresses[lane] - self.allocations[i].base) as usize);
                at(lane as u32, self.on_read(clock, lane as u32, place, bytes, false, nc))?;
            }
            return Ok(());
        }
        let cells = (bytes >> shift) as usize;
        let (start, sets) = (a.base, &mut self.sets);
        let page = whole_page(&mut a.shadow.reads, number);
        if lo + u64::from(bytes) == end && active.count_ones() > 1 {
            // all lanes read the same
            let me = Reader { warp: clock.warp, epoch: clock.epoch };
            for cell in &mut page[first % PAGE..=last % PAGE] {
                *cell = sets.add_warp(*cell, me, base, clock);
            }
            return Ok(());
        }
        for lane in lanes_of(active) {
            let at = ((addresses[lane] - start) as usize >> shift) % PAGE;
            let mine = u64::from(clock.warp * 32 + lane as u32) << 32 | u64::from(clock.epoch);
            for cell in &mut page[at..at + cells] {
                if *cell != mine {
                    *cell = sets.add(*cell, mine, base, clock, lane as u32);
                }
            }
        }
        Ok(())
    }

    /// A write by a kernel at a checked place.
    #[inline(always)]
    pub(crate) fn on_write(
        &mut self,
        clock: &WarpClock,
        lane: u32,
        at: (usize, usize),
        bytes: u32,
        line: u32,
        how: How,
    ) -> Res<()> {
        let a = &mut self.allocations[at.0];
        if a.read_only {
            return Err(FaultKind::ReadOnly { address: a.base + at.1 as u64 });
        }
        if !self.races {
            return Ok(());
        }
        let base = self.base;
        if bytes < 1 << a.shadow.shift {
            a.shadow.refine(bytes);
        }
        let new = Write::new(clock.warp * 32 + lane, clock.epoch, line, how);
        for cell in at.1 >> a.shadow.shift..(at.1 + bytes as usize) >> a.shadow.shift {
            let address = a.base + ((cell as u64) << a.shadow.shift);
            if let Some(w) = a.shadow.write(cell).filter(|w| w.epoch > base)
                && !(how.meets(w) || clock.knows(lane, w.thread, w.epoch))
            {
                return Err(Self::race(
                    address,
                    Conflict::WriteWrite,
                    w.thread >> 5,
                    Some(w.thread & 31),
                    w.line(),
                ));
            }
            if let Some((warp, l)) = a.shadow.read(cell).and_then(|r| self.sets.unknown(r, base, clock, lane))
            {
                return Err(Self::race(address, Conflict::WriteRead, warp, l, 0));
            }
            *a.shadow.write_mut(cell) = new;
        }
        Ok(())
    }

    /// Plain writes of `words` by the lanes of `active` between `lo` and `end`, aligned and inside allocation `i`: what
    /// [`DeviceMemory::on_write`] and the write itself do for each of them. False where that cannot be done at once, or
    /// something is wrong: some lanes may have written then, as they will again.
    #[allow(clippy::too_many_arguments, reason = "who writes what: each call differs in all of them")]
    pub(crate) fn write_lanes<const N: usize>(
        &mut self,
        clock: &WarpClock,
        i: usize,
        addresses: &L64,
        (lo, end): (u64, u64),
        active: u32,
        line: u32,
        equal: bool,
        words: &[[u32; 4]; 32],
    ) -> bool {
        let (base, races, a) = (self.base, self.races, &mut self.allocations[i]);
        let shift = a.shadow.shift;
        let (first, last) = ((lo - a.base) as usize >> shift, (end - 1 - a.base) as usize >> shift);
        if a.read_only || races && (N < 1 << shift || first / PAGE != last / PAGE) {
            return false;
        }
        let number = first / PAGE;
        let start = a.base;
        for lane in lanes_of(active) {
            let at = (addresses[lane] - start) as usize;
            let data = first_bytes::<N>(&words[lane]);
            if races {
                let how = How::of(false, equal && a.data[at..][..N] == data);
                let (lane, cell, cells) = (lane as u32, (at >> shift) % PAGE, N >> shift);
                let new = Write::new(clock.warp * 32 + lane, clock.epoch, line, how);
                let reads = a.shadow.reads.get(number).and_then(Option::as_ref);
                if let Some(reads) = reads {
                    let unknown = |r: &u64| self.sets.unknown(*r, base, clock, lane).is_some();
                    if reads[cell..cell + cells].iter().any(unknown) {
                        return false;
                    }
                }
                for w in &mut whole_page(&mut a.shadow.writes, number)[cell..cell + cells] {
                    if w.epoch > base && !(how.meets(*w) || clock.knows(lane, w.thread, w.epoch)) {
                        return false;
                    }
                    *w = new;
                }
            }
            a.data[at..][..N].copy_from_slice(&data);
        }
        true
    }

    /// A strong write (`replace`) or read-modify-write publishes `clock`, if there is something to publish.
    pub(crate) fn release(&mut self, address: u64, clock: Option<&Clock>, replace: bool) {
        match clock {
            None if replace => {
                self.released.remove(&address);
            }
            None => {}
            Some(c) => match self.released.get_mut(&address) {
                Some(r) if !replace => r.join(c),
                _ => {
                    self.released.insert(address, c.clone());
                }
            },
        }
    }

    pub(crate) fn released(&self, address: u64) -> Option<&Clock> {
        self.released.get(&address)
    }
}

impl Shadow {
    fn refine(&mut self, bytes: u32) {
        let shift = bytes.trailing_zeros().min(2);
        let k = 1usize << (self.shift - shift);
        self.writes = split(std::mem::take(&mut self.writes), k);
        self.reads = split(std::mem::take(&mut self.reads), k);
        self.shift = shift;
    }

    fn write(&self, cell: usize) -> Option<Write> {
        self.writes.get(cell / PAGE)?.as_ref().map(|p| p[cell % PAGE])
    }

    fn write_mut(&mut self, cell: usize) -> &mut Write {
        page(&mut self.writes, cell)
    }

    fn read(&self, cell: usize) -> Option<u64> {
        self.reads.get(cell / PAGE)?.as_ref().map(|p| p[cell % PAGE])
    }

    fn read_mut(&mut self, cell: usize) -> &mut u64 {
        page(&mut self.reads, cell)
    }
}

fn page<T: Copy + Default>(pages: &mut Vec<Option<Box<[T]>>>, cell: usize) -> &mut T {
    &mut whole_page(pages, cell / PAGE)[cell % PAGE]
}

fn whole_page<T: Copy + Default>(pages: &mut Vec<Option<Box<[T]>>>, number: usize) -> &mut [T] {
    if pages.len() <= number {
        pages.resize_with(number + 1, || None);
    }
    pages[number].get_or_insert_with(|| vec![T::default(); PAGE].into())
}

/// Each cell becomes `k` cells of the same state.
fn split<T: Copy + Default>(pages: Vec<Option<Box<[T]>>>, k: usize) -> Vec<Option<Box<[T]>>> {
    let mut out = Vec::with_capacity(pages.len() * k);
    for p in pages {
        for i in 0..k {
            let half = |p: &[T]| (0..PAGE).map(|c| p[(i * PAGE + c) / k]).collect();
            out.push(p.as_deref().map(half));
        }
    }
    out
}

impl ReaderSets {
    /// The readers of a cell after one more.
    fn add(&mut self, cell: u64, mine: u64, base: u32, clock: &WarpClock, lane: u32) -> u64 {
        let me = Reader { warp: (mine >> 37) as u32, epoch: mine as u32 };
        if cell & SET == 0 {
            let (thread, epoch) = ((cell >> 32) as u32, cell as u32);
            if epoch <= base || clock.knows(lane, thread, epoch) {
                return mine;
            }
        } else {
            let id = cell as u32;
            if (cell >> 32) as u32 & 0x7fff_ffff != base & 0x7fff_ffff {
                return mine;
            }
            if id == MANY {
                self.many.insert(me.warp, me.epoch);
                return cell;
            }
        }
        self.step(cell, me, base, clock, lane)
    }

    /// The readers of a cell after all lanes of a warp.
    fn add_warp(&mut self, cell: u64, me: Reader, base: u32, clock: &WarpClock) -> u64 {
        let stale = match cell & SET {
            0 => cell as u32 <= base,
            _ => (cell >> 32) as u32 & 0x7fff_ffff != base & 0x7fff_ffff,
        };
        if cell & SET != 0 && !stale && cell as u32 == MANY {
            self.many.insert(me.warp, me.epoch);
            return cell;
        }
        self.step(if stale { 0 } else { cell }, me, base, clock, 0)
    }

    /// The set of the readers of a cell and `me`.
    fn step(&mut self, cell: u64, me: Reader, base: u32, clock: &WarpClock, lane: u32) -> u64 {
        // which lane it was matters no longer: a set knows warps
        let key = if cell & SET == 0 { (cell >> 37) << 32 | (cell & 0xffff_ffff) } else { cell };
        let id = match self.last {
            Some((last, id)) if last == (key, me) => id,
            _ => match self.steps.get(&(key, me)) {
                Some(id) => *id,
                None => {
                    let id = self.grow(cell, me, clock, lane);
                    self.steps.insert((key, me), id);
                    id
                }
            },
        };
        self.last = Some(((key, me), id));
        if id == MANY {
            self.many.insert(me.warp, me.epoch);
        }
        SET | u64::from(base & 0x7fff_ffff) << 32 | u64::from(id)
    }

    fn grow(&mut self, cell: u64, me: Reader, clock: &WarpClock, lane: u32) -> u32 {
        let mut readers = if cell & SET == 0 {
            vec![Reader { warp: (cell >> 37) as u32, epoch: cell as u32 }]
        } else {
            self.sets[cell as u32 as usize].clone()
        };
        readers.retain(|r| r.warp != me.warp && !clock.knows_warp(lane, r.warp, r.epoch));
        if readers.len() >= LARGEST_SET {
            for r in readers {
                let e = self.many.entry(r.warp).or_default();
                *e = (*e).max(r.epoch);
            }
            return MANY;
        }
        readers.push(me);
        self.sets.push(readers);
        self.sets.len() as u32 - 1
    }

    /// A reader of the cell that `lane` does not know of.
    fn unknown(&self, cell: u64, base: u32, clock: &WarpClock, lane: u32) -> Option<(u32, Option<u32>)> {
        if cell & SET == 0 {
            let (thread, epoch) = ((cell >> 32) as u32, cell as u32);
            let fine = epoch <= base || clock.knows(lane, thread, epoch);
            return (!fine).then_some((thread >> 5, Some(thread & 31)));
        }
        if (cell >> 32) as u32 & 0x7fff_ffff != base & 0x7fff_ffff {
            return None;
        }
        let stranger = |r: &Reader| !clock.knows_warp(lane, r.warp, r.epoch);
        if cell as u32 == MANY {
            let mut readers: Vec<Reader> =
                self.many.iter().map(|(w, e)| Reader { warp: *w, epoch: *e }).collect();
            readers.sort();
            return readers.into_iter().find(stranger).map(|r| (r.warp, None));
        }
        self.sets[cell as u32 as usize].iter().find(|r| stranger(r)).map(|r| (r.warp, None))
    }
}

/// Which space a generic address lies in, and its offset there.
pub(crate) fn resolve(address: u64) -> (Space, u64) {
    for space in [Space::Local, Space::Shared] {
        if address >= window(space) {
            return (space, address - window(space));
        }
    }
    (Space::Global, address)
}
