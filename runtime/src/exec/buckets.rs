//! Runs that are repeated, on devices that can record work.
//!
//! All that a run hands to the device follows from the values of the symbols and from where memory lies. Kernels read
//! those values in memory, so that a recording serves other sizes too, as long as the work is the same: a *bucket* is the
//! sizes that differ in nothing but how many rows the states hold, which memory and launches are then made for the
//! largest number of. (All steps of a decoder up to the capacity of its cache are one.) Its first run is a plain one; in the
//! second the work is recorded, if the host had no part in it; from then on the host goes through its schedule only to see
//! that the work is the same, hands over the sizes and replays the recording. With the very same sizes it does not
//! even look.

use super::tape::Tape;
use super::{Executor, Observer, State};
use crate::device::{Addr, Recording};
use crate::error::{DeviceError, Result, RunError};
use format::UNBOUND;

/// Buckets that a context keeps, and bytes of their recordings; the least recently used make room.
const MOST: usize = 16;
const MOST_BYTES: usize = 256 << 20;

#[derive(Default)]
pub(super) struct Buckets {
    all: Vec<Bucket>,
    /// Runs of this program differ in more than sizes where states hold other numbers of rows.
    exact: bool,
    /// Nothing is recorded: there was no memory for it, or its work differs even with the same sizes.
    plain: bool,
}

struct Bucket {
    /// The symbols that were bound when the run began, rows of states apart.
    key: Vec<i64>,
    /// [`State::moves`] when this was written.
    moves: u64,
    used: u64,
    recorded: Option<Recorded>,
}

struct Recorded {
    recording: Box<dyn Recording>,
    tape: Tape,
    /// The symbols that were bound when the last run began, and what that left behind.
    at: Vec<i64>,
    syms: Vec<i64>,
    ptrs: Vec<Addr>,
    lens: Vec<usize>,
}

impl Buckets {
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.plain = false;
    }
    /// Device memory of all recordings.
    pub(super) fn bytes(&self) -> usize {
        self.all.iter().filter_map(|b| b.recorded.as_ref()).map(|r| r.recording.bytes()).sum()
    }
    pub(super) fn recordings(&self) -> usize {
        self.all.iter().filter(|b| b.recorded.is_some()).count()
    }
    /// What the last run, numbered `runs`, replayed.
    fn last(&self, runs: u64) -> Option<&Recorded> {
        self.all.iter().find(|b| b.used == runs)?.recorded.as_ref()
    }
    fn find(&self, key: &[i64]) -> Option<usize> {
        self.all.iter().position(|b| b.key == key)
    }
    fn keep(&mut self, bucket: Bucket) {
        self.all.retain(|b| b.key != bucket.key);
        self.all.push(bucket);
        while self.all.len() > MOST || self.bytes() > MOST_BYTES && self.all.len() > 1 {
            if let Some(oldest) = (0..self.all.len()).min_by_key(|&i| self.all[i].used) {
                self.all.swap_remove(oldest);
            }
        }
    }
}

impl State {
    /// Replays what the last run replayed, so many times; nanoseconds of the device for all of them. `None` where it replayed
    /// nothing.
    pub(crate) fn time_replays(&self, times: u32) -> Result<Option<u64>> {
        let Some(r) = self.buckets.last(self.runs) else { return Ok(None) };
        self.queue.begin()?;
        self.queue.resize(&r.syms)?;
        // SAFETY: no memory of this context has moved or gone since the last run, and that was a replay.
        unsafe { self.queue.replay_timed(&*r.recording, times) }.map(Some)
    }
}

impl Executor<'_> {
    /// Records what the last run replayed once more, such that replays are timed. `None` where it replayed nothing, or
    /// the device has no memory for this.
    pub(crate) fn record_timed(&self) -> Result<Option<Box<dyn Recording>>> {
        let Some(r) = self.state.buckets.last(self.state.runs) else { return Ok(None) };
        self.state.queue.begin()?;
        self.state.queue.resize(&r.syms)?;
        match self.record(&r.tape, true) {
            Err(RunError::Device(DeviceError::Memory { .. })) => Ok(None),
            recording => recording,
        }
    }

    /// Replays what [`Executor::record_timed`] has recorded; no run has come between. The observer is told of the calls
    /// afterwards. Nanoseconds of the device.
    pub(crate) fn replay_timed(&mut self, recording: &dyn Recording, observer: Observer<'_>) -> Result<u64> {
        self.state.queue.begin()?;
        // SAFETY: no memory of this context has moved or gone since it was recorded.
        unsafe { self.state.queue.replay(recording) }?;
        self.wait()?;
        let times = self.state.queue.times(recording)?;
        // outputs are those of the last run
        let lens = self.state.lens.clone();
        let State { buckets, syms, offsets, runs, .. } = &mut *self.state;
        if let Some(r) = buckets.last(*runs) {
            syms.copy_from_slice(&r.at);
        }
        offsets.fill(None);
        let tape = self.go_through(&self.bounds(), times.kernels, &mut Some(observer));
        self.state.lens = lens;
        self.state.spare = Some(tape?);
        Ok(times.whole)
    }

    /// The steps of a run whose inputs are bound: replayed, recorded or plain.
    pub(super) fn steps_of_bucket(&mut self, observer: &mut Option<Observer<'_>>) -> Result<()> {
        let model = self.model;
        if self.state.queue.is_direct() || observer.is_some() {
            return self.steps(&model.program.steps, observer);
        }
        self.state.runs += 1;
        if self.state.buckets.plain {
            return self.steps(&model.program.steps, observer);
        }
        let mut key = self.state.syms.clone();
        if !self.state.buckets.exact {
            for s in &model.program.states {
                key[s.len as usize] = UNBOUND;
            }
        }
        let known = self.state.buckets.find(&key);
        let Some(i) = known else {
            self.steps(&model.program.steps, observer)?;
            if self.state.host_ops.is_empty() {
                let State { buckets, moves, runs, .. } = &mut *self.state;
                buckets.keep(Bucket { key, moves: *moves, used: *runs, recorded: None });
            }
            return Ok(());
        };
        match self.same_again(i)? {
            true => Ok(()),
            false => self.other_sizes(key),
        }
    }

    /// The largest values that the symbols bound so far have in this bucket.
    fn bounds(&self) -> Vec<i64> {
        let syms = &self.state.syms;
        let mut bounds = syms.clone();
        let states = || self.model.program.states.iter().filter(|_| !self.state.buckets.exact);
        states().for_each(|s| bounds[s.len as usize] = i64::MAX);
        for s in states() {
            let len = syms[s.len as usize];
            // the rows that a run adds have to fit too
            let added = s.next.eval(syms).map_or(0, |next| next.saturating_sub(len));
            let most = s.capacity.saturating_sub(added.max(0)).max(len);
            let bound = &mut bounds[s.len as usize];
            *bound = most.min(*bound);
        }
        bounds
    }

    /// Replays what was recorded for the very same sizes, if it was and nothing has moved since.
    fn same_again(&mut self, i: usize) -> Result<bool> {
        let State { buckets, queue, syms, ptrs, lens, moves, runs, replays, .. } = &mut *self.state;
        let bucket = &mut buckets.all[i];
        let Some(r) = bucket.recorded.as_ref().filter(|r| bucket.moves == *moves && r.at == *syms) else {
            return Ok(false);
        };
        bucket.used = *runs;
        queue.resize(&r.syms)?;
        // SAFETY: no memory of this context has moved or gone since it was recorded.
        unsafe { queue.replay(&*r.recording) }?;
        syms.copy_from_slice(&r.syms);
        ptrs.copy_from_slice(&r.ptrs);
        lens.copy_from_slice(&r.lens);
        *replays += 1;
        Ok(true)
    }

    /// Goes through the steps, and replays or records.
    fn other_sizes(&mut self, key: Vec<i64>) -> Result<()> {
        let (at, bounds) = (self.state.syms.clone(), self.bounds());
        let tape = self.go_through(&bounds, Vec::new(), &mut None)?;
        if tape.is_unfit() {
            // with these sizes alone, or not at all
            self.state.spare = Some(tape);
            self.state.buckets = Buckets { exact: true, plain: bounds == at, ..Buckets::default() };
            self.state.syms.copy_from_slice(&at);
            self.state.offsets.fill(None);
            return self.steps(&self.model.program.steps, &mut None);
        }
        let (model, moves) = (self.model, self.state.moves);
        self.state.queue.resize(&self.state.syms)?;
        let found = self.state.buckets.find(&key);
        let bucket = found.map(|i| self.state.buckets.all.swap_remove(i));
        let earlier = bucket.filter(|b| b.moves == moves).and_then(|b| b.recorded);
        let (recording, tape) = match earlier {
            Some(r) if r.tape.is(&tape) => {
                self.state.spare = Some(r.tape);
                (r.recording, tape)
            }
            // one recording does not serve all these sizes
            Some(_) => {
                self.state.buckets = Buckets { exact: true, ..Buckets::default() };
                // SAFETY: the tape has just been written.
                return unsafe { tape.hand_over(model, self.state) };
            }
            None => match self.record(&tape, false) {
                Ok(Some(recording)) => (recording, tape),
                // SAFETY: as above.
                Ok(None) => return unsafe { tape.hand_over(model, self.state) },
                Err(RunError::Device(DeviceError::Memory { .. })) => {
                    self.state.buckets.plain = true;
                    // SAFETY: as above.
                    return unsafe { tape.hand_over(model, self.state) };
                }
                Err(e) => return Err(e),
            },
        };
        // SAFETY: no memory of this context has moved or gone since the tape was written, which is what was recorded.
        unsafe { self.state.queue.replay(&*recording) }?;
        let State { buckets, syms, ptrs, lens, runs, replays, .. } = &mut *self.state;
        *replays += 1;
        let (syms, ptrs, lens) = (syms.clone(), ptrs.clone(), lens.clone());
        let recorded = Recorded { recording, tape, at, syms, ptrs, lens };
        buckets.keep(Bucket { key, moves, used: *runs, recorded: Some(recorded) });
        Ok(())
    }

    /// Records the work; `None` where this queue does not.
    fn record(&self, tape: &Tape, timed: bool) -> Result<Option<Box<dyn Recording>>> {
        if !self.state.queue.record(timed)? {
            return Ok(None);
        }
        // SAFETY: nothing is done as yet; what is recorded is replayed as long as memory stays where it is.
        let done = unsafe { tape.hand_over(self.model, self.state) };
        // the recording has to be ended even where something failed
        let recording = self.state.queue.recorded();
        done?;
        recording.map(Some)
    }
}
