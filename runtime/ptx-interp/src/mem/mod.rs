//! Memory with the state that the checks need.

pub mod clock;
pub mod global;
pub mod shared;

use crate::syntax::types::Space;

/// The last write of a cell: who, when, on which line, and whether it was a strong operation (§8.3).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Write {
    pub thread: u32,
    pub epoch: u32,
    info: u32,
}

/// How a write stands to others of the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// They must be ordered.
    Plain,
    /// Other strong ones may come at any time.
    Strong,
    /// A plain one of what is there: other plain ones may have written it.
    Same,
}

impl How {
    pub fn of(strong: bool, same: bool) -> How {
        match (strong, same) {
            (true, _) => How::Strong,
            (false, true) => How::Same,
            (false, false) => How::Plain,
        }
    }

    /// Needs no order with the earlier write `w`.
    pub fn meets(self, w: Write) -> bool {
        match self {
            How::Plain => false,
            How::Strong => w.strong(),
            How::Same => true,
        }
    }
}

/// The first `N` bytes of four words.
#[inline(always)]
pub(crate) fn first_bytes<const N: usize>(words: &[u32; 4]) -> [u8; N] {
    let raw = words.map(u32::to_le_bytes);
    std::array::from_fn(|i| raw.as_flattened()[i])
}

impl Write {
    pub fn new(thread: u32, epoch: u32, line: u32, how: How) -> Write {
        Write { thread, epoch, info: line << 1 | u32::from(how == How::Strong) }
    }

    pub fn strong(self) -> bool {
        self.info & 1 == 1
    }

    pub fn line(self) -> u32 {
        self.info >> 1
    }
}

/// Where a state space begins in the generic address space (PTX ISA §6.4.1.1).
pub fn window(space: Space) -> u64 {
    match space {
        Space::Shared => 0x7000_0000_0000,
        Space::Local => 0x7100_0000_0000,
        _ => 0,
    }
}
