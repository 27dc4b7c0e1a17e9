//! Runs that are repeated with the same sizes, on devices that can record work.
//!
//! All that a run hands to the device follows from the values of the symbols and from where memory lies. A *bucket*
//! is one such set of values. Its first run is a plain one; in the second the work is recorded, if the host had no part
//! in it; from then on the recording is replayed, and the host schedule is not interpreted again.

use super::{Executor, Observer, State};
use crate::device::{Addr, Recording};
use crate::error::Result;

/// Buckets that a context keeps; the least recently used makes room.
const MOST: usize = 16;

pub(super) struct Bucket {
    /// The symbols that were bound when the run began.
    key: Vec<i64>,
    /// [`State::moves`] in the last plain run.
    moves: u64,
    recording: Option<Box<dyn Recording>>,
    /// What the run left behind.
    syms: Vec<i64>,
    ptrs: Vec<Addr>,
    lens: Vec<usize>,
    used: u64,
}

impl Executor<'_> {
    /// The steps of a run whose inputs are bound: replayed, recorded or plain.
    pub(super) fn steps_of_bucket(&mut self, observer: &mut Option<Observer<'_>>) -> Result<()> {
        let model = self.model;
        if self.state.queue.is_direct() || observer.is_some() {
            return self.steps(&model.program.steps, observer);
        }
        self.state.runs += 1;
        let (runs, moves) = (self.state.runs, self.state.moves);
        let known = self.state.buckets.iter().position(|b| b.key == self.state.syms);
        if let Some(i) = known {
            let b = &mut self.state.buckets[i];
            b.used = runs;
            if b.moves == moves {
                if b.recording.is_none() {
                    return self.record(i, observer);
                }
                return self.replay(i);
            }
            // memory has moved since: what was recorded is of no use
            self.state.buckets.swap_remove(i);
        }
        let key = self.state.syms.clone();
        self.steps(&model.program.steps, observer)?;
        if self.state.host_ops.is_empty() {
            self.keep(key, None);
        }
        Ok(())
    }

    fn keep(&mut self, key: Vec<i64>, recording: Option<Box<dyn Recording>>) {
        let State { buckets, moves, syms, ptrs, lens, runs, .. } = &mut *self.state;
        buckets.retain(|b| b.key != key);
        if buckets.len() >= MOST
            && let Some(oldest) = (0..buckets.len()).min_by_key(|&i| buckets[i].used)
        {
            buckets.swap_remove(oldest);
        }
        let (syms, ptrs, lens) = (syms.clone(), ptrs.clone(), lens.clone());
        buckets.push(Bucket { key, moves: *moves, recording, syms, ptrs, lens, used: *runs });
    }

    /// Hands over the steps once more, into a recording, and replays it.
    fn record(&mut self, i: usize, observer: &mut Option<Observer<'_>>) -> Result<()> {
        let model = self.model;
        if !self.state.queue.record()? {
            return self.steps(&model.program.steps, observer);
        }
        let key = self.state.buckets[i].key.clone();
        let done = self.steps(&model.program.steps, observer);
        // the recording has to be ended even where a step failed
        let recording = self.state.queue.recorded();
        done?;
        self.keep(key, Some(recording?));
        self.replay(self.state.buckets.len() - 1)
    }

    fn replay(&mut self, i: usize) -> Result<()> {
        let State { buckets, queue, syms, ptrs, lens, replays, .. } = &mut *self.state;
        let b = &buckets[i];
        if let Some(recording) = &b.recording {
            // SAFETY: no memory of this context has moved or gone since it was recorded.
            unsafe { queue.replay(&**recording) }?;
            syms.copy_from_slice(&b.syms);
            ptrs.copy_from_slice(&b.ptrs);
            lens.copy_from_slice(&b.lens);
            *replays += 1;
        }
        Ok(())
    }
}
