//! A thread pool with fork-join in about half a microsecond while an inference runs, asleep otherwise.
//!
//! Every thread has a share of a loop's iterations, the same one whenever the same loop runs again: what
//! it read the last time (weights of a recurrent step, of a small net) is in its own core's cache. Who is
//! done with its share takes from the others', so a thread that is late or asleep delays nobody.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{self, JoinHandle, Thread};

/// Pause instructions before a worker begins to yield its core, and yields before it sleeps: about
/// 30 us of spinning, then roughly half a millisecond of letting others run.
const SPINS: u32 = 2_000;
const YIELDS: u32 = 300;

/// The current job accepts workers.
const OPEN: u64 = 1 << 31;
const JOB: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;

/// What one parallel loop runs: `call(data, worker, begin, end)`.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize, i64, i64),
    data: *const (),
    trip: i64,
    chunk: i64,
    /// Number of shares that the iterations are cut into.
    shares: i64,
}

impl Job {
    /// The iterations of one share.
    fn share(&self, i: usize) -> (i64, i64) {
        let at = |i: i64| (self.trip / self.shares) * i + (self.trip % self.shares) * i / self.shares;
        (at(i as i64), at(i as i64 + 1))
    }
}

/// A counter alone in its cache lines.
#[repr(align(128))]
struct Cursor(AtomicI64);

struct Shared {
    /// Job number in the high half, [`OPEN`], and the number of workers inside the job. A worker enters an
    /// open job by adding one; the launcher closes it when no iteration is left and waits only for those
    /// inside, never for a worker that is still asleep.
    state: AtomicU64,
    job: UnsafeCell<Job>,
    /// First iteration not yet taken, by share.
    next: Vec<Cursor>,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only under the launch lock while the state is closed with nobody inside, and read
// only by workers that entered after its publication.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is dereferenced only during a launch, whose caller keeps it alive.
unsafe impl Send for Shared {}

/// A pool of `threads` threads, the caller's included. Shared by any number of sessions; a loop that
/// finds the pool busy with another caller's loop runs on its own thread.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    wakers: Vec<Thread>,
    launch: Mutex<()>,
}

impl Pool {
    /// `threads` counts the calling thread; 0 means the cores this process may use (affinity and cgroup
    /// quota respected).
    pub fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, |n| n.get()),
            n => n.min(1024),
        };
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job {
                call: |_, _, _, _| {},
                data: std::ptr::null(),
                trip: 0,
                chunk: 1,
                shares: 1,
            }),
            next: (0..threads).map(|_| Cursor(AtomicI64::new(0))).collect(),
            sleeping: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let mut handles = Vec::new();
        for i in 1..threads {
            let shared = shared.clone();
            // a system that refuses threads leaves a smaller pool, which is still correct
            if let Ok(h) =
                thread::Builder::new().name(format!("ks-worker-{i}")).spawn(move || work(&shared, i))
            {
                handles.push(h);
            } else {
                break;
            }
        }
        let wakers = handles.iter().map(|h| h.thread().clone()).collect();
        Pool { shared, handles, wakers, launch: Mutex::new(()) }
    }

    /// Threads that take part in a loop, the caller's included.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Wakes sleeping workers ahead of the first loop of an inference (a wake-up costs 17-55 us).
    pub fn wake(&self) {
        for (waker, sleeping) in self.wakers.iter().zip(&self.shared.sleeping) {
            if sleeping.load(Ordering::SeqCst) {
                waker.unpark();
            }
        }
    }

    /// Runs `f(worker, begin, end)` over `0..trip` in pieces of `chunk`; returns when all are done.
    /// `worker` is below [`Pool::threads`] and unique among pieces that run at the same time.
    pub fn run<F: Fn(usize, i64, i64) + Sync>(&self, trip: i64, chunk: i64, f: &F) {
        unsafe fn call<F: Fn(usize, i64, i64) + Sync>(data: *const (), worker: usize, begin: i64, end: i64) {
            // SAFETY: data is the `f` of the `run` that is waiting for this job.
            unsafe { (*data.cast::<F>())(worker, begin, end) }
        }
        let chunk = chunk.max(1);
        let guard = match self.launch.try_lock() {
            Ok(g) => Some(g),
            Err(TryLockError::Poisoned(p)) => Some(p.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let Some(_guard) = guard.filter(|_| !self.handles.is_empty() && trip > chunk) else {
            if trip > 0 {
                f(0, 0, trip);
            }
            return;
        };
        let shares = self.threads();
        let job = Job { call: call::<F>, data: (f as *const F).cast(), trip, chunk, shares: shares as i64 };
        // SAFETY: the state is closed, nobody is inside, and we hold the launch lock.
        unsafe { *self.shared.job.get() = job };
        for (i, cursor) in self.shared.next[..shares].iter().enumerate() {
            cursor.0.store(job.share(i).0, Ordering::Relaxed);
        }
        let number = (self.shared.state.load(Ordering::Relaxed) & !(JOB - 1)).wrapping_add(JOB);
        // SeqCst pairs with the worker's store of `sleeping`: one of both sees the other.
        self.shared.state.store(number | OPEN, Ordering::SeqCst);
        self.wake();
        // Workers inside borrow `f`: they are awaited even where it panics.
        let wait = Wait(&self.shared);
        take(&self.shared, &job, 0);
        drop(wait);
    }
}

struct Wait<'a>(&'a Shared);
impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut spins = 0u32;
        self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins.is_multiple_of(4096) {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Runs pieces of the own share, then of the others'.
fn take(shared: &Shared, job: &Job, worker: usize) {
    let shares = job.shares as usize;
    for share in (worker..shares).chain(0..worker) {
        let cursor = &shared.next[share].0;
        let last = job.share(share).1;
        // looking first keeps the line of a share that is done where it is
        while cursor.load(Ordering::Relaxed) < last {
            let begin = cursor.fetch_add(job.chunk, Ordering::Relaxed);
            if begin >= last {
                break;
            }
            let end = begin.saturating_add(job.chunk).min(last);
            // SAFETY: the launching `run` waits until this job is done, so `data` is alive.
            unsafe { (job.call)(job.data, worker, begin, end) };
        }
    }
}

fn work(shared: &Shared, worker: usize) {
    let mut seen = 0u64;
    let mut idle = 0u32;
    let sleeping = &shared.sleeping[worker - 1];
    while !shared.stop.load(Ordering::Relaxed) {
        let state = shared.state.load(Ordering::Acquire);
        if state / JOB != seen {
            idle = 0;
            if state & OPEN == 0 {
                seen = state / JOB; // over before we came
                continue;
            }
            if shared.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                seen = state / JOB;
                let _inside = Inside(shared);
                // SAFETY: we are inside, so the job is published and not rewritten.
                let job = unsafe { *shared.job.get() };
                take(shared, &job, worker);
            }
            continue;
        }
        idle += 1;
        if idle < SPINS {
            std::hint::spin_loop();
        } else if idle < SPINS + YIELDS {
            thread::yield_now();
        } else {
            sleeping.store(true, Ordering::SeqCst);
            let state = shared.state.load(Ordering::SeqCst);
            if state / JOB == seen && !shared.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            sleeping.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }
}

/// Leaves the job, also where it panicked: the launcher must not wait for ever.
struct Inside<'a>(&'a Shared);
impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for w in &self.wakers {
            w.unpark();
        }
        for h in self.handles.drain(..) {
            // a worker that panicked has nothing more to say
            let _ = h.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_iteration_runs_once() {
        let pool = Pool::new(3);
        for trip in [0i64, 1, 2, 7, 100, 1000] {
            let hits: Vec<AtomicU32> = (0..trip).map(|_| AtomicU32::new(0)).collect();
            pool.run(trip, 3, &|worker, begin, end| {
                assert!(worker < 3);
                for i in begin..end {
                    hits[i as usize].fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "trip {trip}");
        }
    }

    #[test]
    fn concurrent_callers_and_sleepers() {
        let pool = Pool::new(2);
        let total = AtomicI64::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for k in 0..200 {
                        pool.run(64, 4, &|_, b, e| {
                            total.fetch_add(e - b, Ordering::Relaxed);
                        });
                        if k % 50 == 0 {
                            thread::sleep(std::time::Duration::from_millis(3));
                        }
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 4 * 200 * 64);
    }
}
