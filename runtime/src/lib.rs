//! Executes compiled programs: memory, threads, models and their contexts. Knows no IR.
//!
//! A [`Model`] is immutable, `Send + Sync` and shared; every concurrent caller has a cheap [`Context`].

pub mod arena;
pub mod artefact;
pub mod context;
pub mod device;
pub mod error;
mod exec;
pub mod host_fns;
pub mod loader;
pub mod model;
pub mod pool;
mod states;

pub use context::{Context, InputView, OutputView, TimedReplays};
pub use device::{BinaryStore, CallerStream, Device, Gpu, GpuSettings};
pub use error::{DeviceError, Result, RunError};
pub use exec::{Event, HostOp, Observer};
pub use model::{Limits, Model};
pub use pool::Pool;
pub use states::StateView;
