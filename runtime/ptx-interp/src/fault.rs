//! What can be wrong with a kernel, and where.

use crate::syntax::types::Space;

/// A kernel did something that PTX leaves undefined, or did not finish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel `{kernel}`, line {line} (`{text}`), block ({},{},{}), warp {warp}{}: {kind}", cta[0], cta[1], cta[2], lane_text(*lane))]
pub struct Fault {
    pub kernel: String,
    /// Line of the PTX text.
    pub line: u32,
    /// The instruction as written.
    pub text: String,
    pub cta: [u32; 3],
    /// Index of the warp in its block.
    pub warp: u32,
    pub lane: Option<u32>,
    pub kind: FaultKind,
}

fn lane_text(lane: Option<u32>) -> String {
    lane.map_or(String::new(), |l| format!(", lane {l}"))
}

/// The two accesses of a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    WriteWrite,
    WriteRead,
    ReadWrite,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    #[error("{bytes} bytes at {space} address {address:#x} lie in no allocation{hint}")]
    OutOfBounds { space: Space, address: u64, bytes: u32, hint: String },
    #[error("{space} address {address:#x} is not aligned to {align} bytes")]
    Misaligned { space: Space, address: u64, align: u32 },
    #[error("register {name} is read before it is written")]
    UninitialisedRegister { name: String },
    #[error("shared address {address:#x} is read before it is written")]
    UninitialisedShared { address: u64 },
    #[error("race on {space} address {address:#x}: {} {other}", conflict_text(*conflict))]
    Race { space: Space, address: u64, conflict: Conflict, other: String },
    #[error(
        "shared address {address:#x} is accessed while an asynchronous copy of line {line} may still write it"
    )]
    AsyncPending { address: u64, line: u32 },
    #[error("`.nc` load of global address {address:#x}, which this launch writes")]
    NonCoherent { address: u64 },
    #[error("write to read-only address {address:#x}")]
    ReadOnly { address: u64 },
    #[error("an instruction of all lanes is reached by lanes {active:#010x} only; {detail}")]
    Divergent { active: u32, detail: String },
    #[error("lane mask {mask:#010x}: {detail}")]
    LaneMask { mask: u32, detail: String },
    #[error("barrier: {detail}")]
    Barrier { detail: String },
    #[error("deadlock: {report}")]
    Deadlock { report: String },
    #[error("more than {limit} warp instructions")]
    Budget { limit: u64 },
    #[error("trap")]
    Trap,
}

fn conflict_text(c: Conflict) -> &'static str {
    match c {
        Conflict::WriteWrite => "a write here is unordered with a write by",
        Conflict::WriteRead => "a write here is unordered with a read by",
        Conflict::ReadWrite => "a read here is unordered with a write by",
    }
}

/// A fault kind and the lane that caused it.
pub type At<T> = Result<T, (FaultKind, Option<u32>)>;

/// Attaches a lane to a fault kind.
pub fn at<T>(lane: u32, r: Result<T, FaultKind>) -> At<T> {
    r.map_err(|k| (k, Some(lane)))
}
