//! Execution: one context per concurrent caller.

use crate::device::{CallerStream, Recording};
use crate::error::{Result, RunError};
use crate::exec::{Executor, HostOp, Observer, State};
use crate::model::Model;
use crate::states::StateView;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// An input tensor in the caller's memory: dense, row-major. Copied only where it is not 64-byte aligned.
#[derive(Clone, Copy, Debug)]
pub struct InputView<'a> {
    pub elem: &'a str,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

/// An output tensor in the context's memory, valid until the next run.
#[derive(Clone, Copy, Debug)]
pub struct OutputView<'a> {
    pub name: &'a str,
    pub elem: &'static str,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

/// Memory and symbol values of one caller. After the first run at the largest sizes, a run allocates
/// nothing on the heap.
pub struct Context {
    // dropped before the model, whose device its memory belongs to
    state: Result<State>,
    model: Arc<Model>,
}

// SAFETY: the pointers lead into regions and constants that the context or its model own, and into inputs
// that are borrowed for the duration of `run`, which has `&mut self`.
unsafe impl Send for Context {}

impl Context {
    /// What a device has against one more caller is said by the first run.
    pub fn new(model: Arc<Model>) -> Context {
        Context { state: State::new(&model, None), model }
    }

    /// As [`Context::new`], with all work of this context on a stream of the caller: it comes after what is there
    /// already, and what the caller hands over after [`Context::run_async`] comes after the run. On a CPU the first run
    /// says that there are no streams.
    pub fn on_stream(model: Arc<Model>, stream: CallerStream) -> Context {
        Context { state: State::new(&model, Some(stream)), model }
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs the model; the outputs are then in [`Context::output`]. Inputs are in the model's order, without
    /// those that are states.
    pub fn run(&mut self, inputs: &[InputView<'_>]) -> Result<()> {
        self.run_with(inputs, None, None)
    }

    /// As [`Context::run`]; `cancel` is looked at between kernels, `observer` is told of each.
    pub fn run_with(
        &mut self,
        inputs: &[InputView<'_>],
        cancel: Option<&AtomicBool>,
        observer: Option<Observer<'_>>,
    ) -> Result<()> {
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        let mut ex = Executor::new(&self.model, state, inputs, cancel);
        let done = ex.start(observer).and_then(|()| ex.finish());
        if done.is_err() {
            ex.abandon();
        }
        done
    }

    /// Makes everything that runs with inputs of these sizes keep: memory, and on a GPU the recording that such runs
    /// replay, which otherwise the second of them makes. States are as they were. Later runs with other numbers of rows in the
    /// states replay it too, as far as their work is the same.
    ///
    /// # Errors
    /// As for `run`.
    pub fn warm_up(&mut self, inputs: &[InputView<'_>]) -> Result<()> {
        let rows: Vec<i64> = self.state.iter().flat_map(|s| &s.kept).map(|k| k.len).collect();
        let mut done = Ok(());
        for _ in 0..2 {
            done = done.and_then(|()| self.run(inputs));
            let kept = self.state.iter_mut().flat_map(|s| &mut s.kept);
            kept.zip(&rows).for_each(|(kept, len)| kept.len = *len);
        }
        done
    }

    /// Nanoseconds of a GPU for a run with these inputs, without what goes to it and comes from it: of `times` replays one after
    /// the other, the mean. States are as they were. `None` where such runs are not replayed: on a CPU, or where the
    /// host has a part in them.
    ///
    /// # Errors
    /// As for `run`.
    pub fn time_replays(&mut self, inputs: &[InputView<'_>], times: u32) -> Result<Option<f64>> {
        self.warm_up(inputs)?;
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        let nanos = state.time_replays(times.max(1))?;
        Ok(nanos.map(|n| n as f64 / f64::from(times.max(1))))
    }

    /// Runs with these inputs that are timed kernel by kernel, as a GPU works on them: one recording, done again and again.
    /// `None` where such runs are not replayed, as for [`Context::time_replays`]. States are as they were.
    ///
    /// # Errors
    /// As for `run`.
    pub fn timed_replays(&mut self, inputs: &[InputView<'_>]) -> Result<Option<TimedReplays<'_>>> {
        if self.state.as_ref().map_err(|e| e.clone())?.queue.is_direct() {
            return Ok(None);
        }
        self.warm_up(inputs)?;
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        let recording = Executor::new(&self.model, state, &[], None).record_timed()?;
        Ok(recording.map(|recording| TimedReplays { context: self, recording }))
    }

    /// As [`Context::run`], but comes back as soon as the work is handed to the device, where the host has no part in
    /// the rest; the inputs may change then. There are no outputs before [`Context::wait`].
    ///
    /// # Errors
    /// As for `run`; what only the device can find is told by `wait`.
    pub fn run_async(&mut self, inputs: &[InputView<'_>]) -> Result<()> {
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        Executor::new(&self.model, state, inputs, None).start(None)?;
        state.queue.mark()
    }

    /// Whether the device has done what [`Context::run_async`] has handed over, so that [`Context::wait`] comes back at
    /// once; true where nothing is under way.
    ///
    /// # Errors
    /// Those of a device that has failed meanwhile.
    pub fn is_done(&self) -> Result<bool> {
        let state = self.state.as_ref().map_err(|e| e.clone())?;
        if state.pending { state.queue.is_at_mark() } else { Ok(true) }
    }

    /// Waits for what [`Context::run_async`] has handed over.
    ///
    /// # Errors
    /// What the device found.
    pub fn wait(&mut self) -> Result<()> {
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        Executor::new(&self.model, state, &[], None).finish()
    }

    /// The i-th output of the last run, if that was successful.
    pub fn output(&self, i: usize) -> Option<OutputView<'_>> {
        let def = self.model.program.outputs.get(i)?;
        let state = self.state.as_ref().ok().filter(|s| !s.pending)?;
        let len = state.lens[def.buffer];
        let ptr = state.mirrors.get(i).map_or(state.ptrs[def.buffer], |m| m.base());
        let data = if ptr.is_null() || len == 0 {
            &[][..]
        } else {
            // SAFETY: the buffer was placed by the last run, or its mirror filled, and nothing has moved since.
            unsafe { std::slice::from_raw_parts(ptr, len) }
        };
        Some(OutputView { name: &def.name, elem: def.elem.name, shape: &state.shapes[i], data })
    }

    /// State `i` (in the order of their declaration) as it is now.
    pub fn state(&self, i: usize) -> Option<StateView<'_>> {
        let def = self.model.program.states.get(i)?;
        let state = self.state.as_ref().ok()?;
        Some(state.kept.get(i)?.view(&self.model, def, &*state.queue))
    }

    /// Fills state `i` with the rows of a dense tensor.
    ///
    /// # Errors
    /// [`RunError::State`] where type or extents are not the state's, or there is no such state.
    pub fn set_state(&mut self, i: usize, rows: InputView<'_>) -> Result<()> {
        let program = &self.model.program;
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        let (Some(s), Some(kept)) = (program.states.get(i), state.kept.get_mut(i)) else {
            return Err(RunError::State { name: format!("#{i}"), message: "there is no such state".into() });
        };
        let moved = kept.set(&program.inputs[s.input], s, &rows, &*self.model.device, &*state.queue)?;
        state.moves += u64::from(moved);
        Ok(())
    }

    /// Forgets the rows of all states from row `len` on; 0 starts anew.
    pub fn truncate_states(&mut self, len: usize) {
        for kept in self.state.iter_mut().flat_map(|s| &mut s.kept) {
            kept.len = kept.len.min(i64::try_from(len).unwrap_or(i64::MAX));
        }
    }

    /// Gives back the memory that runs keep for the next one, outputs of the last run included; states stay as
    /// they are. The next run takes what it needs anew.
    ///
    /// # Errors
    /// Those of the device.
    pub fn trim(&mut self) -> Result<()> {
        let state = self.state.as_mut().map_err(|e| e.clone())?;
        state.trim(&self.model)
    }

    /// Bytes of the arena, at its high-water mark.
    pub fn arena_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |s| s.arena.len())
    }
    /// Host functions called so far, and the nanoseconds spent in them.
    pub fn host_calls(&self) -> (u64, u64) {
        self.state.as_ref().map_or((0, 0), |s| (s.host_calls, s.host_nanos))
    }
    /// What the host did for the device in the last run; nothing where the device is the host.
    pub fn host_ops(&self) -> &[HostOp] {
        self.state.as_ref().map_or(&[], |s| s.host_ops.as_slice())
    }
    /// Runs so far that were one call to the device, since an earlier run with the same sizes was recorded.
    pub fn replays(&self) -> u64 {
        self.state.as_ref().map_or(0, |s| s.replays)
    }
    /// Recordings that are kept, and the device memory that they take, in bytes.
    pub fn recordings(&self) -> (usize, usize) {
        self.state.as_ref().map_or((0, 0), State::recordings)
    }
    /// Kernels that were handed to the device so far.
    pub fn launches(&self) -> u64 {
        self.state.as_ref().map_or(0, |s| s.queue.launches())
    }
}

/// What [`Context::timed_replays`] has recorded.
pub struct TimedReplays<'c> {
    recording: Box<dyn Recording>,
    context: &'c mut Context,
}

impl TimedReplays<'_> {
    /// Does the run once more. The observer is told of each kernel with the time from the end of the kernel before it to its own
    /// end, as the device notes them: unlike [`Context::run_with`]'s it is without what the host takes to launch it, but
    /// holds about a microsecond in which the device does. (Copies between kernels belong to none.) Buffers hold what the end of the
    /// run left in them. Nanoseconds of the device for all kernels.
    ///
    /// # Errors
    /// As for `run`.
    pub fn run(&mut self, observer: Observer<'_>) -> Result<u64> {
        let state = self.context.state.as_mut().map_err(|e| e.clone())?;
        Executor::new(&self.context.model, state, &[], None).replay_timed(&*self.recording, observer)
    }
}
