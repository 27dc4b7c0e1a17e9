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

impl Write {
    pub fn new(thread: u32, epoch: u32, line: u32, strong: bool) -> Write {
        Write { thread, epoch, info: line << 1 | u32::from(strong) }
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
