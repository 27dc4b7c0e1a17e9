//! Loads, stores, read-modify-writes and asynchronous copies (PTX ISA §8, §9.7.9.8-25, §9.7.13.6-7).

use super::config;
use super::launch::Env;
use super::step::{Flow, Machine};
use super::warp::{Copy, Warp};
use crate::decode::op::*;
use crate::fault::{At, FaultKind, at};
use crate::mem::How;
use crate::mem::global::resolve;
use crate::mem::shared::SharedMem;
use crate::num::formats::{BF16, F16, Round};
use crate::num::lanes::*;
use crate::syntax::types::{Space, Ty};

/// Up to 16 bytes of each lane.
type Words = [[u32; 4]; 32];

/// One access of one lane.
#[derive(Clone, Copy)]
struct Lane {
    lane: usize,
    address: u64,
    bytes: u32,
    line: u32,
    strong: bool,
}

/// A store of many lanes.
struct Many<'a> {
    addresses: &'a L64,
    active: u32,
    line: u32,
    words: &'a Words,
}

/// Loads of all lanes at once; false where that cannot be, or something is wrong.
fn load_shared<const N: usize>(
    shared: &mut SharedMem,
    w: &Warp,
    addresses: &L64,
    active: u32,
    words: &mut Words,
) -> bool {
    if !shared.read_lanes::<N>(&w.clock, addresses, active) {
        return false;
    }
    for lane in lanes_of(active) {
        let mut all = [0; 16];
        all[..N].copy_from_slice(&shared.data[addresses[lane] as usize..][..N]);
        words[lane] =
            all.as_chunks::<4>().0.try_into().map_or([0; 4], |w: [[u8; 4]; 4]| w.map(u32::from_le_bytes));
    }
    true
}

impl Machine<'_> {
    /// `base + offset` in every lane.
    pub(super) fn addresses(&self, w: &Warp, addr: Addr, active: u32) -> At<L64> {
        w.need(self.program, addr.base, active)?;
        let mut out = [addr.offset as u64; 32];
        match addr.base {
            Slot::R64(s) => {
                for (o, b) in out.iter_mut().zip(&w.r64[s as usize]) {
                    *o = b.wrapping_add(*o);
                }
            }
            Slot::R32(s) => {
                for (o, b) in out.iter_mut().zip(&w.r32[s as usize]) {
                    *o = u64::from(*b).wrapping_add(*o);
                }
            }
            Slot::None => {}
        }
        Ok(out)
    }

    pub(super) fn load(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        a: &Access,
        line: u32,
        active: u32,
    ) -> At<Flow> {
        let bytes = a.ty.bytes() * a.n;
        let mut words: Words = [[0; 4]; 32];
        if a.space == Space::Param {
            let start = a.addr.offset as usize;
            let Some(p) = self.params.get(start..start + bytes as usize) else {
                let hint = format!("; the parameters have {} bytes", self.params.len());
                let kind = FaultKind::OutOfBounds { space: Space::Param, address: start as u64, bytes, hint };
                return Err((kind, None));
            };
            let word = to_words(p);
            words = [word; 32];
            distribute(w, a, &words, active);
            return Ok(Flow::Next);
        }
        let strong = a.sem != Sem::Weak;
        let addresses = self.addresses(w, a.addr, active)?;
        self.count(a.space, &addresses, bytes, active, true);
        if !strong
            && a.space == Space::Global
            && let Some((range, i)) = self.span(&addresses, bytes, active)
        {
            self.mem.on_read_lanes(&w.clock, i, &addresses, range, active, bytes, a.non_coherent)?;
            let (base, data) = self.mem.contents(i);
            if let (Slot::R32(d), 32, 1) = (a.regs[0], a.ty.bits(), a.n) {
                let mut t = [0; 32];
                for lane in lanes_of(active) {
                    t[lane] = to_words(&data[(addresses[lane] - base) as usize..][..4])[0];
                }
                w.put32(d, &t, active);
                return Ok(Flow::Next);
            }
            for lane in lanes_of(active) {
                words[lane] = to_words(&data[(addresses[lane] - base) as usize..][..bytes as usize]);
            }
            distribute(w, a, &words, active);
            return Ok(Flow::Next);
        }
        if !strong && a.space == Space::Shared {
            let shared = &mut env.shared;
            let done = match bytes {
                1 => load_shared::<1>(shared, w, &addresses, active, &mut words),
                2 => load_shared::<2>(shared, w, &addresses, active, &mut words),
                4 => load_shared::<4>(shared, w, &addresses, active, &mut words),
                8 => load_shared::<8>(shared, w, &addresses, active, &mut words),
                _ => load_shared::<16>(shared, w, &addresses, active, &mut words),
            };
            if done {
                distribute(w, a, &words, active);
                return Ok(Flow::Next);
            }
        }
        for lane in lanes_of(active) {
            let l = Lane { lane, address: addresses[lane], bytes, line, strong };
            words[lane] = self.load_lane(w, env, a, l)?;
        }
        distribute(w, a, &words, active);
        Ok(if strong { Flow::Poll } else { Flow::Next })
    }

    /// Where the lanes of `active` access global memory, and the one allocation that holds it all; `None` where there
    /// is none, or an access is misaligned.
    #[inline(always)]
    fn span(&mut self, addresses: &L64, bytes: u32, active: u32) -> Option<((u64, u64), usize)> {
        let (mut lo, mut hi, mut all) = (u64::MAX, 0, 0);
        for lane in lanes_of(active) {
            let a = addresses[lane];
            (lo, hi, all) = (lo.min(a), hi.max(a), all | a);
        }
        let range = (lo, hi.checked_add(bytes.into())?);
        if all & (u64::from(bytes) - 1) != 0 {
            return None;
        }
        Some((range, self.mem.holding(range.0, range.1)?))
    }

    fn load_lane(&mut self, w: &mut Warp, env: &mut Env, a: &Access, l: Lane) -> At<[u32; 4]> {
        let lane = l.lane as u32;
        let (space, address) =
            if a.space == Space::Generic { resolve(l.address) } else { (a.space, l.address) };
        match space {
            Space::Shared => {
                let offset = at(lane, env.shared.check(address, l.bytes))?;
                at(lane, env.shared.on_read(&w.clock, lane, offset, l.bytes, l.strong))?;
                if l.strong {
                    let seen = env.sync.get(&address);
                    observe(w, lane, seen, a.sem, &mut self.mem.now);
                }
                Ok(to_words(&env.shared.data[offset..offset + l.bytes as usize]))
            }
            Space::Local => {
                let offset = local(w, self.program.local_bytes, l.lane, address, l.bytes)?;
                Ok(to_words(&w.local[offset..offset + l.bytes as usize]))
            }
            _ => {
                let place = at(lane, self.mem.check(address, l.bytes))?;
                at(lane, self.mem.on_read(&w.clock, lane, place, l.bytes, l.strong, a.non_coherent))?;
                if l.strong {
                    let mut now = self.mem.now;
                    observe(w, lane, self.mem.released(address), a.sem, &mut now);
                    self.mem.now = now;
                }
                Ok(to_words(self.mem.bytes(place, l.bytes)))
            }
        }
    }

    pub(super) fn store(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        a: &Access,
        line: u32,
        active: u32,
    ) -> At<()> {
        let bytes = a.ty.bytes() * a.n;
        for r in &a.regs[..a.n as usize] {
            w.need(self.program, *r, active)?;
        }
        let strong = a.sem != Sem::Weak;
        let addresses = self.addresses(w, a.addr, active)?;
        self.count(a.space, &addresses, bytes, active, false);
        if !strong && matches!(a.space, Space::Global | Space::Shared) {
            let words = collect(w, a, active);
            let many = Many { addresses: &addresses, active, line, words: &words };
            let done = match bytes {
                1 => self.store_lanes::<1>(w, env, a.space, &many),
                2 => self.store_lanes::<2>(w, env, a.space, &many),
                4 => self.store_lanes::<4>(w, env, a.space, &many),
                8 => self.store_lanes::<8>(w, env, a.space, &many),
                _ => self.store_lanes::<16>(w, env, a.space, &many),
            };
            if done {
                return Ok(());
            }
        }
        let width = a.ty.bytes() as usize;
        for lane in lanes_of(active) {
            let mut data = [0u8; 16];
            for (i, r) in a.regs[..a.n as usize].iter().enumerate() {
                data[i * width..(i + 1) * width].copy_from_slice(&w.value(*r, lane).to_le_bytes()[..width]);
            }
            let l = Lane { lane, address: addresses[lane], bytes, line, strong };
            self.store_lane(w, env, a, l, &data[..bytes as usize])?;
        }
        Ok(())
    }

    /// All lanes at once; false where that cannot be, or something is wrong.
    fn store_lanes<const N: usize>(&mut self, w: &Warp, env: &mut Env, space: Space, many: &Many) -> bool {
        let (at, active, line, equal) = (many.addresses, many.active, many.line, self.config.equal_writes);
        if space == Space::Shared {
            return env.shared.write_lanes::<N>(&w.clock, at, active, line, equal, many.words);
        }
        self.span(at, N as u32, active).is_some_and(|(range, i)| {
            self.mem.write_lanes::<N>(&w.clock, i, at, range, active, line, equal, many.words)
        })
    }

    fn store_lane(&mut self, w: &mut Warp, env: &mut Env, a: &Access, l: Lane, data: &[u8]) -> At<()> {
        let lane = l.lane as u32;
        let (space, address) =
            if a.space == Space::Generic { resolve(l.address) } else { (a.space, l.address) };
        match space {
            Space::Shared => {
                let offset = at(lane, env.shared.check(address, l.bytes))?;
                let same = self.config.equal_writes && env.shared.data[offset..offset + data.len()] == *data;
                let how = How::of(l.strong, same);
                at(lane, env.shared.on_write(&w.clock, lane, offset, l.bytes, l.line, how))?;
                if l.strong {
                    let released = if a.sem.releases() {
                        Some(w.clock.publish(lane, &mut self.mem.now))
                    } else {
                        w.clock.fenced(lane).cloned()
                    };
                    match released {
                        Some(c) => drop(env.sync.insert(address, c)),
                        None => drop(env.sync.remove(&address)),
                    }
                }
                env.shared.data[offset..offset + data.len()].copy_from_slice(data);
            }
            Space::Local => {
                let offset = local(w, self.program.local_bytes, l.lane, address, l.bytes)?;
                w.local[offset..offset + data.len()].copy_from_slice(data);
            }
            _ => {
                let place = at(lane, self.mem.check(address, l.bytes))?;
                let same = self.config.equal_writes && self.mem.bytes(place, l.bytes) == data;
                let how = How::of(l.strong, same);
                at(lane, self.mem.on_write(&w.clock, lane, place, l.bytes, l.line, how))?;
                if l.strong {
                    self.publish(w, lane, address, a.sem, true);
                }
                self.mem.bytes_mut(place, l.bytes).copy_from_slice(data);
            }
        }
        Ok(())
    }

    /// What a strong write to a global address makes known.
    fn publish(&mut self, w: &mut Warp, lane: u32, address: u64, sem: Sem, replace: bool) {
        if sem.releases() {
            let c = w.clock.publish(lane, &mut self.mem.now);
            self.mem.release(address, Some(&c), replace);
        } else {
            self.mem.release(address, w.clock.fenced(lane), replace);
        }
    }

    pub(super) fn atomic(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        a: &Atomic,
        line: u32,
        active: u32,
    ) -> At<Flow> {
        for r in a.a.iter().chain([&a.b]) {
            w.need(self.program, *r, active)?;
        }
        let addresses = self.addresses(w, a.addr, active)?;
        self.count(a.space, &addresses, a.ty.bytes() * a.n, active, false);
        let mut order: Vec<usize> = lanes_of(active).collect();
        if self.config.seed.is_some() && self.rng.next() & 1 == 1 {
            order.reverse();
        }
        let width = a.ty.bytes();
        for lane in order {
            let l = lane as u32;
            let (space, address) = match a.space {
                Space::Generic => resolve(addresses[lane]),
                s => (s, addresses[lane]),
            };
            if a.n > 1 && !address.is_multiple_of(u64::from(width * a.n)) {
                let kind = FaultKind::Misaligned { space, address, align: width * a.n };
                return Err((kind, Some(l)));
            }
            for i in 0..a.n as usize {
                let address = address + i as u64 * u64::from(width);
                let (x, y) = (w.value(a.a[i], lane), w.value(a.b, lane));
                let old = match space {
                    Space::Shared => {
                        let offset = at(l, env.shared.check(address, width))?;
                        at(l, env.shared.on_read(&w.clock, l, offset, width, true))?;
                        at(l, env.shared.on_write(&w.clock, l, offset, width, line, How::Strong))?;
                        observe(w, l, env.sync.get(&address), a.sem, &mut self.mem.now);
                        let released = if a.sem.releases() {
                            Some(w.clock.publish(l, &mut self.mem.now))
                        } else {
                            w.clock.fenced(l).cloned()
                        };
                        if let Some(c) = released {
                            env.sync.entry(address).and_modify(|r| r.join(&c)).or_insert(c);
                        }
                        modify(&mut env.shared.data[offset..offset + width as usize], a, x, y)
                    }
                    Space::Local => {
                        let kind = FaultKind::Barrier { detail: "an atomic on local memory".into() };
                        return Err((kind, Some(l)));
                    }
                    _ => {
                        let place = at(l, self.mem.check(address, width))?;
                        at(l, self.mem.on_read(&w.clock, l, place, width, true, false))?;
                        at(l, self.mem.on_write(&w.clock, l, place, width, line, How::Strong))?;
                        let mut now = self.mem.now;
                        observe(w, l, self.mem.released(address), a.sem, &mut now);
                        self.mem.now = now;
                        self.publish(w, l, address, a.sem, false);
                        modify(self.mem.bytes_mut(place, width), a, x, y)
                    }
                };
                w.put(a.d[i], lane, old);
            }
        }
        Ok(if a.op == Rmw::Cas { Flow::Poll } else { Flow::Next })
    }

    /// `cp.async`: issued now, landing now or when it is waited for.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn copy(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        dst: Addr,
        src: Addr,
        bytes: u32,
        src_bytes: Slot,
        line: u32,
        active: u32,
    ) -> At<()> {
        w.need(self.program, src_bytes, active)?;
        let (to, from) = (self.addresses(w, dst, active)?, self.addresses(w, src, active)?);
        self.count(Space::Global, &from, bytes, active, true);
        self.count(Space::Shared, &to, bytes, active, false);
        for lane in lanes_of(active) {
            let l = lane as u32;
            let n = if src_bytes == Slot::None { bytes } else { w.value(src_bytes, lane) as u32 };
            if n > bytes {
                let detail = format!("the copy reads {n} of {bytes} bytes");
                return Err((FaultKind::Barrier { detail }, Some(l)));
            }
            let offset = at(l, env.shared.check(to[lane], bytes))?;
            if !from[lane].is_multiple_of(u64::from(bytes)) {
                let kind = FaultKind::Misaligned { space: Space::Global, address: from[lane], align: bytes };
                return Err((kind, Some(l)));
            }
            at(l, env.shared.on_issue(&w.clock, l, offset, bytes, line))?;
            let mut c = Copy {
                lane: l,
                group: w.committed[lane],
                dst: offset,
                src: from[lane],
                bytes,
                src_bytes: n,
                landed: false,
                line,
            };
            // the source is read at some time between issue and wait: checked now
            self.read_source(w, &c)?;
            if self.lands_early() {
                self.land(w, env, &c)?;
                c.landed = true;
            }
            w.copies.push(c);
        }
        Ok(())
    }

    fn read_source(&mut self, w: &Warp, c: &Copy) -> At<[u8; 16]> {
        let mut data = [0; 16];
        for i in 0..c.src_bytes {
            let place = at(c.lane, self.mem.check(c.src + u64::from(i), 1))?;
            data[i as usize] = self.mem.bytes(place, 1)[0];
        }
        if c.src_bytes == c.bytes {
            let place = at(c.lane, self.mem.check(c.src, c.bytes))?;
            at(c.lane, self.mem.on_read(&w.clock, c.lane, place, c.bytes, false, false))?;
        }
        Ok(data)
    }

    fn land(&mut self, w: &Warp, env: &mut Env, c: &Copy) -> At<()> {
        let data = self.read_source(w, c)?;
        env.shared.data[c.dst..c.dst + c.bytes as usize].copy_from_slice(&data[..c.bytes as usize]);
        Ok(())
    }

    /// `cp.async.wait_group n` and `wait_all`.
    pub(super) fn wait_copies(&mut self, w: &mut Warp, env: &mut Env, n: u32, active: u32) -> At<()> {
        let (finished, rest): (Vec<Copy>, Vec<Copy>) = w.copies.iter().partition(|c| {
            let committed = w.committed[c.lane as usize];
            active >> c.lane & 1 == 1 && (n == u32::MAX || (c.group < committed && c.group + n < committed))
        });
        w.copies = rest;
        for c in finished {
            if !c.landed {
                self.land(w, env, &c)?;
            }
            env.shared.on_landed(&w.clock, c.lane, c.dst, c.bytes, c.line);
        }
        Ok(())
    }

    /// Sectors and bank conflicts of one request.
    pub(super) fn count(&mut self, space: Space, addresses: &L64, bytes: u32, active: u32, load: bool) {
        if !self.config.counters {
            return;
        }
        let (space, base) = match space {
            Space::Generic => match resolve(addresses[active.trailing_zeros() as usize]) {
                (Space::Shared, _) => (Space::Shared, crate::mem::window(Space::Shared)),
                (s, _) => (s, 0),
            },
            s => (s, 0),
        };
        let c = &mut self.counters;
        let entry = match (space, load) {
            (Space::Shared, true) => &mut c.shared_loads,
            (Space::Shared, false) => &mut c.shared_stores,
            (Space::Local | Space::Param, _) => return,
            (_, true) => &mut c.global_loads,
            (_, false) => &mut c.global_stores,
        };
        let lanes = active.count_ones();
        entry.requests += 1;
        entry.bytes += u64::from(bytes * lanes);
        if space == Space::Shared {
            bank_passes(entry, addresses, base, bytes, active);
        } else {
            let sectors = lanes_of(active).flat_map(|l| {
                let a = addresses[l];
                a >> 5..=(a + u64::from(bytes) - 1) >> 5
            });
            let mut distinct: Vec<u64> = sectors.collect();
            distinct.sort_unstable();
            distinct.dedup();
            let mut touched: Vec<u64> = lanes_of(active).map(|l| addresses[l]).collect();
            touched.sort_unstable();
            touched.dedup();
            entry.passes += distinct.len() as u64;
            entry.ideal += (touched.len() as u64 * u64::from(bytes)).div_ceil(32);
        }
    }
}

/// Lanes of wide accesses go in halves (8 bytes) or quarters (16 bytes); within one, every bank serves one
/// four-byte word per pass, and lanes that want the same word share it.
fn bank_passes(entry: &mut config::Space, addresses: &L64, base: u64, bytes: u32, active: u32) {
    let together = if bytes <= 4 { 32 } else { 128 / bytes.max(4) as usize };
    for first in (0..32).step_by(together) {
        let mut words: Vec<u64> = (first..first + together)
            .filter(|l| active >> l & 1 == 1)
            .flat_map(|l| {
                let a = addresses[l].wrapping_sub(base);
                (a >> 2..=(a + u64::from(bytes) - 1) >> 2).take(4)
            })
            .collect();
        if words.is_empty() {
            continue;
        }
        words.sort_unstable();
        words.dedup();
        let mut per_bank = [0u64; 32];
        for w in &words {
            per_bank[(*w & 31) as usize] += 1;
        }
        entry.passes += per_bank.iter().max().copied().unwrap_or(0);
        entry.ideal += (words.len() as u64).div_ceil(32);
    }
}

/// A strong read of `address`: what was released there is acquired, or remembered until a fence.
fn observe(w: &mut Warp, lane: u32, released: Option<&crate::mem::clock::Clock>, sem: Sem, now: &mut u32) {
    if let Some(c) = released {
        if sem.acquires() {
            w.clock.acquire(lane, c, now);
        } else {
            w.clock.see(lane, c);
        }
    }
}

fn local(w: &Warp, per_lane: u32, lane: usize, address: u64, bytes: u32) -> At<usize> {
    let fault = |kind| Err((kind, Some(lane as u32)));
    if !address.is_multiple_of(u64::from(bytes)) {
        return fault(FaultKind::Misaligned { space: Space::Local, address, align: bytes });
    }
    if address.saturating_add(u64::from(bytes)) > u64::from(per_lane) {
        let hint = format!("; a lane has {per_lane} bytes");
        return fault(FaultKind::OutOfBounds { space: Space::Local, address, bytes, hint });
    }
    debug_assert!(w.local.len() == per_lane as usize * 32);
    Ok(lane * per_lane as usize + address as usize)
}

#[inline(always)]
fn to_words(bytes: &[u8]) -> [u32; 4] {
    let mut out = [0; 4];
    if let Ok(b) = bytes.try_into() {
        out[0] = u32::from_le_bytes(b);
        return out;
    }
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    for (o, b) in out.iter_mut().zip(all.chunks_exact(4)) {
        *o = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    out
}

/// Loaded words to registers, extended as the type says (§9.4.1: a destination may be wider).
/// What the lanes of `active` store: the elements one after the other.
fn collect(w: &Warp, a: &Access, active: u32) -> Words {
    let mut words: Words = [[0; 4]; 32];
    let bits = a.ty.bits();
    for (i, r) in a.regs[..a.n as usize].iter().enumerate() {
        if let (Slot::R32(s), 32) = (r, bits) {
            for (to, x) in words.iter_mut().zip(&w.r32[*s as usize]) {
                to[i] = *x;
            }
            continue;
        }
        for l in lanes_of(active) {
            let v = w.value(*r, l);
            match bits {
                64 => (words[l][2 * i], words[l][2 * i + 1]) = (v as u32, (v >> 32) as u32),
                32 => words[l][i] = v as u32,
                16 => words[l][i / 2] |= (v as u32 & 0xffff) << (16 * (i & 1)),
                _ => words[l][i / 4] |= (v as u32 & 0xff) << (8 * (i & 3)),
            }
        }
    }
    words
}

fn distribute(w: &mut Warp, a: &Access, words: &Words, active: u32) {
    let bits = a.ty.bits();
    for (i, r) in a.regs[..a.n as usize].iter().enumerate() {
        if let (Slot::R32(s), 32) = (r, bits) {
            let t: L32 = std::array::from_fn(|l| words[l][i]);
            w.put32(*s, &t, active);
            continue;
        }
        for l in lanes_of(active) {
            let v = match bits {
                64 => u64::from(words[l][2 * i]) | u64::from(words[l][2 * i + 1]) << 32,
                32 => u64::from(words[l][i]),
                16 => u64::from(words[l][i / 2] >> (16 * (i & 1)) & 0xffff),
                _ => u64::from(words[l][i / 4] >> (8 * (i & 3)) & 0xff),
            };
            let v = if a.ty.is_signed() && bits < 64 {
                ((v << (64 - bits)) as i64 >> (64 - bits)) as u64
            } else {
                v
            };
            let v = if a.narrow { v & 0xffff } else { v };
            w.put(*r, l, v);
        }
    }
}

/// Applies a read-modify-write to `place` and gives the old value.
fn modify(place: &mut [u8], a: &Atomic, x: u64, y: u64) -> u64 {
    let width = place.len();
    let mut raw = [0; 8];
    raw[..width].copy_from_slice(place);
    let old = u64::from_le_bytes(raw);
    let signed = |v: u64| if width == 4 { i64::from(v as u32 as i32) } else { v as i64 };
    let half = |o: u64, n: u64| {
        let e = if matches!(a.ty, Ty::F16 | Ty::F16x2) { F16 } else { BF16 };
        u64::from(e.encode(e.decode(o as u32 & 0xffff) + e.decode(n as u32 & 0xffff), Round::Even, false))
    };
    let new = match (a.op, a.ty) {
        (Rmw::Add, Ty::F32) => {
            u64::from(crate::num::math::c(f32::from_bits(old as u32) + f32::from_bits(x as u32)))
        }
        (Rmw::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        (Rmw::Add, Ty::F16 | Ty::BF16) => half(old, x),
        (Rmw::Add, Ty::F16x2 | Ty::BF16x2) => half(old, x) | half(old >> 16, x >> 16) << 16,
        (Rmw::Add, _) => old.wrapping_add(x),
        (Rmw::Min, t) if t.is_signed() => {
            if signed(x) < signed(old) {
                x
            } else {
                old
            }
        }
        (Rmw::Max, t) if t.is_signed() => {
            if signed(x) > signed(old) {
                x
            } else {
                old
            }
        }
        (Rmw::Min, _) => old.min(x),
        (Rmw::Max, _) => old.max(x),
        (Rmw::And, _) => old & x,
        (Rmw::Or, _) => old | x,
        (Rmw::Xor, _) => old ^ x,
        (Rmw::Exch, _) => x,
        (Rmw::Cas, _) => {
            if old == x {
                y
            } else {
                old
            }
        }
        (Rmw::Inc, _) => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        (Rmw::Dec, _) => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
    };
    place.copy_from_slice(&new.to_le_bytes()[..width]);
    old
}
