//! What a run would hand to its device, written down: the same for all sizes of a bucket, or the bucket has no recording.

use super::{Executor, Observer, State};
use crate::device::{Addr, Launch};
use crate::error::{Result, RunError};
use crate::model::Model;
use format::{SizeExpr, UNBOUND};
use std::ops::Range;

/// Memory for the largest sizes of a bucket may be so many times what the sizes at hand need, or this.
const ROOM: u64 = 4;
const SMALL: u64 = 256 << 20;

/// Work in order. Sizes are not part of it, other than those that decide what the work is.
#[derive(Default)]
pub(super) struct Tape {
    work: Vec<Work>,
    bufs: Vec<Addr>,
    /// The largest values of the symbols in this bucket; those that have none as yet are unbound.
    bounds: Vec<i64>,
    /// What stands against a recording that serves the whole bucket.
    unfit: bool,
    launches: usize,
    /// What the launches are known to take, in nanoseconds and in order.
    nanos: Vec<u64>,
}

#[derive(Clone, PartialEq, Debug)]
enum Work {
    Launch { kernel: usize, variant: usize, origin: usize, trip: i64, scratch: i64, bufs: Range<usize> },
    Copy { to: Addr, from: Addr, len: usize },
}

impl Tape {
    /// Nothing as yet, with these largest sizes and known times.
    fn begin(mut self, bounds: &[i64], nanos: Vec<u64>) -> Tape {
        self.work.clear();
        self.bufs.clear();
        self.bounds.clear();
        self.bounds.extend_from_slice(bounds);
        self.unfit = false;
        (self.launches, self.nanos) = (0, nanos);
        self
    }

    pub(super) fn is_unfit(&self) -> bool {
        self.unfit
    }

    /// Whether both are the same work.
    pub(super) fn is(&self, other: &Tape) -> bool {
        self.work == other.work && self.bufs == other.bufs
    }

    /// Writes a launch; the nanoseconds that it is known to take.
    pub(super) fn launch(&mut self, l: &Launch<'_>) -> u64 {
        let begin = self.bufs.len();
        self.bufs.extend_from_slice(l.bufs);
        let &Launch { kernel, variant, origin, trip, scratch, .. } = l;
        let bufs = begin..self.bufs.len();
        self.work.push(Work::Launch { kernel, variant, origin, trip, scratch, bufs });
        self.launches += 1;
        self.nanos.get(self.launches - 1).copied().unwrap_or(0)
    }

    pub(super) fn copy(&mut self, to: Addr, from: Addr, len: usize) {
        self.work.push(Work::Copy { to, from, len });
    }

    /// The symbol gets its value, and so does its bound; `before` is what it was.
    pub(super) fn bind(&mut self, sym: u32, value: &SizeExpr, before: i64) {
        // kernels read all sizes as they are at the end
        self.unfit |= before != UNBOUND;
        match value.eval(&self.bounds) {
            Ok(bound) => self.bounds[sym as usize] = bound,
            Err(_) => self.unfit = true,
        }
    }

    /// Hands everything over.
    ///
    /// # Safety
    /// As for [`crate::device::Queue::launch`]: what was written down is still as it was.
    pub(super) unsafe fn hand_over(&self, model: &Model, state: &State) -> Result<()> {
        for work in &self.work {
            match work {
                Work::Launch { kernel, variant, origin, trip, scratch, bufs } => {
                    let v = &model.program.kernels[*kernel].variants[*variant];
                    let launch = Launch {
                        kernel: *kernel,
                        variant: *variant,
                        origin: *origin,
                        trip: *trip,
                        ns_per_iter: v.ns_per_iter,
                        bufs: &self.bufs[bufs.clone()],
                        // a queue that records has kernels that read their sizes themselves
                        syms: &[],
                        numbers: &v.syms,
                        sizes: &state.syms,
                        scratch: *scratch,
                    };
                    // SAFETY: the caller's contract.
                    unsafe { state.queue.launch(&launch, false) }?;
                }
                // SAFETY: the caller's contract.
                Work::Copy { to, from, len } => unsafe { state.queue.copy(*to, *from, *len) }?,
            }
        }
        Ok(())
    }
}

impl Executor<'_> {
    /// The value of a size that decides about memory or the extent of a launch: where a bucket is gone through, that for
    /// its largest sizes.
    pub(super) fn extent(&mut self, e: &SizeExpr, what: &str) -> Result<i64> {
        let own = self.eval(e, what)?;
        let Some(tape) = &mut self.state.tape else { return Ok(own) };
        match e.eval(&tape.bounds) {
            Ok(most) if most >= own && !tape.unfit => {
                let room = (most as u64) <= SMALL.max(own.max(0) as u64 * ROOM);
                tape.unfit |= !room;
                Ok(if room { most } else { own })
            }
            _ => {
                tape.unfit = true;
                Ok(own)
            }
        }
    }

    /// Goes through the steps of a run whose inputs are bound, for sizes up to `bounds`. Memory is where it will be then.
    /// The observer is told `nanos` as the times of the launches, in order.
    pub(super) fn go_through(
        &mut self,
        bounds: &[i64],
        nanos: Vec<u64>,
        observer: &mut Option<Observer<'_>>,
    ) -> Result<Tape> {
        let tape = self.state.spare.take().unwrap_or_default();
        self.state.tape = Some(tape.begin(bounds, nanos));
        let model = self.model;
        let done = self.steps(&model.program.steps, observer);
        let Some(mut tape) = self.state.tape.take() else {
            return Err(RunError::Program("a run within a run".into()));
        };
        if !self.state.host_ops.is_empty() {
            // it saw values that no kernel had computed
            self.state.host_ops.clear();
            tape.unfit = true;
            return Ok(tape);
        }
        done.map(|()| tape)
    }
}
