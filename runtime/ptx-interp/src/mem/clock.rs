//! Happens-before (PTX ISA §8.8-8.9): who knows of whose accesses.
//!
//! Time is one counter of the device. Every access carries the *epoch* of its warp, the value of the counter
//! when the warp last synchronised. A [`Clock`] says up to which epoch the accesses of each warp are known;
//! lanes that synchronise alone (an acquire by one lane, `bar.warp.sync` of half a warp) are kept apart, so
//! accesses of two lanes of one warp are ordered by a synchronisation of the warp and by nothing else.

use crate::num::lanes::lanes_of;

/// Up to which epoch the accesses of warps (and of single lanes) are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clock {
    /// Grid-wide number of the block's first warp.
    first: u32,
    /// Warps of the same block.
    own: Vec<u32>,
    /// Other warps: number, epoch; sorted.
    far: Vec<(u32, u32)>,
    /// Single lanes beyond what is known of their warp: warp * 32 + lane, epoch; sorted.
    lanes: Vec<(u32, u32)>,
}

fn raise(list: &mut Vec<(u32, u32)>, key: u32, epoch: u32) {
    match list.binary_search_by_key(&key, |e| e.0) {
        Ok(i) => list[i].1 = list[i].1.max(epoch),
        Err(i) => list.insert(i, (key, epoch)),
    }
}

fn known(list: &[(u32, u32)], key: u32) -> u32 {
    list.binary_search_by_key(&key, |e| e.0).map_or(0, |i| list[i].1)
}

impl Clock {
    pub fn new(first: u32, warps: usize) -> Clock {
        Clock { first, own: vec![0; warps], far: Vec::new(), lanes: Vec::new() }
    }

    pub fn warp(&self, warp: u32) -> u32 {
        match self.own.get(warp.wrapping_sub(self.first) as usize) {
            Some(e) => *e,
            None => known(&self.far, warp),
        }
    }

    fn raise_warp(&mut self, warp: u32, epoch: u32) {
        match self.own.get_mut(warp.wrapping_sub(self.first) as usize) {
            Some(e) => *e = (*e).max(epoch),
            None => raise(&mut self.far, warp, epoch),
        }
    }

    fn thread(&self, thread: u32) -> u32 {
        self.warp(thread >> 5).max(if self.lanes.is_empty() { 0 } else { known(&self.lanes, thread) })
    }

    /// Everything either clock knows.
    pub fn join(&mut self, other: &Clock) {
        if self.first == other.first && self.own.len() == other.own.len() {
            for (a, b) in self.own.iter_mut().zip(&other.own) {
                *a = (*a).max(*b);
            }
        } else {
            for (i, e) in other.own.iter().enumerate().filter(|(_, e)| **e > 0) {
                self.raise_warp(other.first + i as u32, *e);
            }
        }
        for (w, e) in &other.far {
            self.raise_warp(*w, *e);
        }
        for (t, e) in &other.lanes {
            if self.warp(t >> 5) < *e {
                raise(&mut self.lanes, *t, *e);
            }
        }
        if !self.lanes.is_empty() {
            let mut lanes = std::mem::take(&mut self.lanes);
            lanes.retain(|(t, e)| self.warp(t >> 5) < *e);
            self.lanes = lanes;
        }
    }

    /// What is known of the warps of the own block.
    pub fn own(&self) -> &[u32] {
        &self.own
    }
}

/// The clocks of a warp and of its lanes.
#[derive(Debug, Clone)]
pub struct WarpClock {
    /// Grid-wide number.
    pub warp: u32,
    /// Epoch of the accesses that the warp makes now.
    pub epoch: u32,
    common: Clock,
    per_lane: Option<Box<[Clock]>>,
    /// All lanes know each other's accesses up to here.
    synced: u32,
    /// `matrix[l][k]`: what lane l knows of lane k, where that differs.
    matrix: Option<Box<[[u32; 32]; 32]>>,
    /// What relaxed reads have seen released, until a fence makes it known (§8.9.4).
    seen: Option<Box<[Option<Clock>; 32]>>,
    /// What the last fence of each lane publishes with later relaxed writes.
    fenced: Option<Box<[Option<Clock>; 32]>>,
}

impl WarpClock {
    pub fn new(warp: u32, first: u32, warps: usize, epoch: u32) -> WarpClock {
        let common = Clock::new(first, warps);
        WarpClock { warp, epoch, common, per_lane: None, synced: 0, matrix: None, seen: None, fenced: None }
    }

    fn clock(&self, lane: u32) -> &Clock {
        self.per_lane.as_ref().map_or(&self.common, |l| &l[lane as usize])
    }

    fn clock_mut(&mut self, lane: u32) -> &mut Clock {
        let common = &self.common;
        let lanes = self.per_lane.get_or_insert_with(|| vec![common.clone(); 32].into());
        &mut lanes[lane as usize]
    }

    fn of_lane(&self, lane: u32, other: u32) -> u32 {
        self.matrix.as_ref().map_or(self.synced, |m| m[lane as usize][other as usize])
    }

    /// Whether `lane` knows the access that `thread` (warp * 32 + lane) made at `epoch`.
    #[inline(always)]
    pub fn knows(&self, lane: u32, thread: u32, epoch: u32) -> bool {
        if thread >> 5 == self.warp {
            thread & 31 == lane || self.of_lane(lane, thread & 31) >= epoch
        } else {
            self.clock(lane).thread(thread) >= epoch
        }
    }

    /// Whether `lane` knows what all lanes of `warp` did up to `epoch`.
    pub fn knows_warp(&self, lane: u32, warp: u32, epoch: u32) -> bool {
        if warp == self.warp {
            if self.matrix.is_none() {
                return self.synced >= epoch;
            }
            (0..32).all(|k| k == lane || self.of_lane(lane, k) >= epoch)
        } else {
            self.clock(lane).warp(warp) >= epoch
        }
    }

    /// No lane knows more of other warps, or of its own, than the others do.
    #[inline(always)]
    pub fn is_common(&self) -> bool {
        self.per_lane.is_none() && self.matrix.is_none()
    }

    /// Where the clock is common: all lanes know each other's accesses up to `epoch`.
    #[inline(always)]
    pub fn is_synced(&self, epoch: u32) -> bool {
        self.synced >= epoch
    }

    /// What `lane` knows of each warp of its block.
    #[inline(always)]
    pub fn own(&self, lane: u32) -> &[u32] {
        self.clock(lane).own()
    }

    /// All that `lane` knows, its own accesses included; the warp enters a new epoch.
    pub fn publish(&mut self, lane: u32, now: &mut u32) -> Clock {
        let mut c = self.clock(lane).clone();
        let least = (0..32).filter(|k| *k != lane).map(|k| self.of_lane(lane, k)).min().unwrap_or(0);
        c.raise_warp(self.warp, least);
        for k in 0..32 {
            let e = if k == lane { self.epoch } else { self.of_lane(lane, k) };
            if e > least {
                raise(&mut c.lanes, self.warp * 32 + k, e);
            }
        }
        self.advance(now);
        c
    }

    /// A barrier of the whole warp: all that any lane knows; the lanes know each other.
    pub fn publish_all(&mut self, now: &mut u32) -> Clock {
        self.sync_all(now);
        self.common.clone()
    }

    fn sync_all(&mut self, now: &mut u32) {
        if let Some(lanes) = self.per_lane.take() {
            for l in &lanes {
                self.common.join(l);
            }
        }
        self.common.raise_warp(self.warp, self.epoch);
        self.synced = self.epoch;
        self.matrix = None;
        self.advance(now);
    }

    /// `bar.warp.sync`: the lanes of `mask` know each other's accesses.
    pub fn sync(&mut self, mask: u32, live: u32, now: &mut u32) {
        if mask & live == live {
            return self.sync_all(now);
        }
        let synced = self.synced;
        let m = self.matrix.get_or_insert_with(|| Box::new([[synced; 32]; 32]));
        let mut row = [0u32; 32];
        for l in lanes_of(mask) {
            for (r, e) in row.iter_mut().zip(&m[l]) {
                *r = (*r).max(*e);
            }
        }
        for l in lanes_of(mask) {
            row[l] = self.epoch;
        }
        for l in lanes_of(mask) {
            m[l] = row;
        }
        if self.per_lane.is_some() {
            let mut all = self.common.clone();
            for l in lanes_of(mask) {
                all.join(self.clock(l as u32));
            }
            for l in lanes_of(mask) {
                *self.clock_mut(l as u32) = all.clone();
            }
        }
        self.advance(now);
    }

    fn advance(&mut self, now: &mut u32) {
        *now += 1;
        self.epoch = *now;
    }

    /// What a barrier of the block has gathered becomes known to every lane.
    pub fn learn(&mut self, c: &Clock) {
        self.common.join(c);
        if let Some(lanes) = &mut self.per_lane {
            for l in lanes.iter_mut() {
                l.join(c);
            }
        }
    }

    /// An acquire by one lane.
    pub fn acquire(&mut self, lane: u32, c: &Clock, now: &mut u32) {
        self.clock_mut(lane).join(c);
        self.advance(now);
    }

    /// A relaxed read of something released: known after the lane's next fence.
    pub fn see(&mut self, lane: u32, c: &Clock) {
        let seen = self.seen.get_or_insert_with(|| Box::new([const { None }; 32]));
        match &mut seen[lane as usize] {
            Some(s) => s.join(c),
            none => *none = Some(c.clone()),
        }
    }

    /// A fence by the lanes of `mask`.
    pub fn fence(&mut self, mask: u32, now: &mut u32) {
        for l in lanes_of(mask) {
            if let Some(c) = self.seen.as_mut().and_then(|s| s[l].take()) {
                self.clock_mut(l as u32).join(&c);
            }
            let c = self.publish(l as u32, now);
            self.fenced.get_or_insert_with(|| Box::new([const { None }; 32]))[l] = Some(c);
        }
    }

    /// What a relaxed write of `lane` publishes.
    pub fn fenced(&self, lane: u32) -> Option<&Clock> {
        self.fenced.as_ref().and_then(|f| f[lane as usize].as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_of_a_warp_are_strangers_until_they_synchronise() {
        let mut now = 1;
        let mut w = WarpClock::new(0, 0, 2, 1);
        assert!(w.knows(3, 3, 1) && !w.knows(3, 4, 1));
        w.sync(0xf, u32::MAX, &mut now);
        assert!(w.knows(0, 3, 1) && !w.knows(0, 4, 1) && !w.knows(4, 0, 1));
        w.sync(u32::MAX, u32::MAX, &mut now);
        assert!(w.knows(0, 31, 2) && !w.knows(0, 31, 3));
    }

    #[test]
    fn a_release_by_one_lane_carries_only_what_it_knows() {
        let mut now = 1;
        let mut a = WarpClock::new(0, 0, 1, 1);
        let mut b = WarpClock::new(7, 7, 1, 1);
        let c = a.publish(5, &mut now);
        b.acquire(2, &c, &mut now);
        assert!(b.knows(2, 5, 1) && !b.knows(2, 6, 1) && !b.knows(3, 5, 1));
        let all = a.publish_all(&mut now);
        b.learn(&all);
        assert!(b.knows(9, 6, 2));
        // through a third warp
        let mut d = WarpClock::new(9, 9, 1, 1);
        let c = b.publish(2, &mut now);
        d.acquire(0, &c, &mut now);
        assert!(d.knows(0, 5, 1) && d.knows(0, 6, 2));
    }
}
