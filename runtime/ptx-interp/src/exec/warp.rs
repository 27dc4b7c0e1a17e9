//! A warp: registers of 32 lanes, and the groups of lanes that share a program counter.

use crate::decode::op::Slot;
use crate::decode::{Initial, Program, Special};
use crate::mem::clock::WarpClock;
use crate::num::lanes::{L32, L64};

/// What a group of lanes waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Ready,
    /// That all lanes of the mask arrive at the same instruction.
    Lanes(u32),
    /// That a barrier of the block completes.
    Barrier(u32),
}

/// Lanes at one program counter.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

/// An asynchronous copy of one lane that nobody has waited for.
#[derive(Debug, Clone, Copy)]
pub struct Copy {
    pub lane: u32,
    pub group: u32,
    pub dst: usize,
    pub src: u64,
    pub bytes: u32,
    pub src_bytes: u32,
    pub landed: bool,
    pub line: u32,
}

pub struct Warp {
    /// Number in the block.
    pub index: u32,
    pub r32: Vec<L32>,
    pub r64: Vec<L64>,
    /// Predicates as lane masks.
    pub preds: Vec<u32>,
    /// Which lanes have written each register.
    pub set32: Vec<u32>,
    pub set64: Vec<u32>,
    pub set_pred: Vec<u32>,
    pub groups: Vec<Group>,
    /// The lanes that exist; fewer than 32 in the last warp of an odd block.
    pub born: u32,
    pub live: u32,
    pub clock: WarpClock,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    pub copies: Vec<Copy>,
    /// Groups of copies that each lane has committed.
    pub committed: L32,
    /// A loop has polled and failed since the last choice of a group.
    pub spun: bool,
}

/// Shape of the launch, as special registers see it.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cta: [u32; 3],
    pub dynamic_shared: u32,
    pub total_shared: u32,
}

impl Warp {
    pub fn new(program: &Program, index: u32, g: &Geometry, clock: WarpClock) -> Warp {
        let threads = g.block[0] * g.block[1] * g.block[2];
        let here = (threads - index * 32).min(32);
        let born = if here == 32 { u32::MAX } else { (1 << here) - 1 };
        let mut r32 = Vec::with_capacity(program.slots32.len());
        let mut set32 = Vec::with_capacity(program.slots32.len());
        for (initial, _) in &program.slots32 {
            let (value, set) = match initial {
                Initial::Undefined => ([0xdead_beef; 32], 0),
                Initial::Const(v) => ([*v as u32; 32], u32::MAX),
                Initial::Special(s) => (std::array::from_fn(|l| special(*s, index, l as u32, g)), u32::MAX),
            };
            r32.push(value);
            set32.push(set);
        }
        let value64 = |i: &Initial| match i {
            Initial::Const(v) => ([*v; 32], u32::MAX),
            _ => ([0xdead_beef_dead_beef; 32], 0),
        };
        let (r64, set64) = program.slots64.iter().map(|(i, _)| value64(i)).unzip();
        let mut preds = vec![0; program.preds.len()];
        let mut set_pred = preds.clone();
        preds[0] = u32::MAX;
        set_pred[0] = u32::MAX;
        Warp {
            index,
            r32,
            r64,
            preds,
            set32,
            set64,
            set_pred,
            groups: vec![Group { pc: 0, mask: born, wait: Wait::Ready }],
            born,
            live: born,
            clock,
            local: vec![0xcd; program.local_bytes as usize * 32],
            copies: Vec::new(),
            committed: [0; 32],
            spun: false,
        }
    }

    pub fn done(&self) -> bool {
        self.groups.is_empty()
    }

    /// The value of a slot in one lane; 32-bit values are zero-extended.
    #[inline(always)]
    pub fn value(&self, slot: Slot, lane: usize) -> u64 {
        match slot {
            Slot::R32(s) => u64::from(self.r32[s as usize][lane]),
            Slot::R64(s) => self.r64[s as usize][lane],
            Slot::None => 0,
        }
    }

    #[inline(always)]
    pub fn put(&mut self, slot: Slot, lane: usize, value: u64) {
        match slot {
            Slot::R32(s) => {
                self.r32[s as usize][lane] = value as u32;
                self.set32[s as usize] |= 1 << lane;
            }
            Slot::R64(s) => {
                self.r64[s as usize][lane] = value;
                self.set64[s as usize] |= 1 << lane;
            }
            Slot::None => {}
        }
    }

    /// Joins groups at `pc` into the group at `i`; gives its new index.
    pub fn merge_at(&mut self, i: usize, pc: u32) -> usize {
        let mut mask = self.groups[i].mask;
        let mut kept = Vec::with_capacity(self.groups.len());
        for (j, g) in self.groups.iter().enumerate() {
            if j != i && g.pc == pc && !matches!(g.wait, Wait::Barrier(_)) {
                mask |= g.mask;
            } else if j != i {
                kept.push(*g);
            }
        }
        kept.push(Group { pc, mask, wait: Wait::Ready });
        self.groups = kept;
        self.groups.len() - 1
    }
}

fn special(s: Special, warp: u32, lane: u32, g: &Geometry) -> u32 {
    let thread = warp * 32 + lane;
    match s {
        Special::Tid(0) => thread % g.block[0],
        Special::Tid(1) => thread / g.block[0] % g.block[1],
        Special::Tid(_) => thread / (g.block[0] * g.block[1]),
        Special::Ntid(d) => g.block[d as usize],
        Special::Ctaid(d) => g.cta[d as usize],
        Special::Nctaid(d) => g.grid[d as usize],
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::NWarpId => (g.block[0] * g.block[1] * g.block[2]).div_ceil(32),
        Special::LaneMaskEq => 1 << lane,
        Special::LaneMaskLt => (1 << lane) - 1,
        Special::LaneMaskLe => u32::MAX >> (31 - lane),
        Special::LaneMaskGt => !(u32::MAX >> (31 - lane)),
        Special::LaneMaskGe => !((1 << lane) - 1),
        Special::DynamicShared => g.dynamic_shared,
        Special::TotalShared => g.total_shared,
        Special::One => 1,
        Special::Zero => 0,
    }
}
