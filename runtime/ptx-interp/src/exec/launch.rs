//! Blocks, their barriers, and the order in which warps run.

use super::config::{Config, Counters, Rng};
use super::step::{Failed, Machine, Stop};
use super::warp::{Geometry, Wait, Warp};
use crate::decode::Program;
use crate::decode::op::{BarKind, Slot};
use crate::fault::{Fault, FaultKind};
use crate::mem::clock::{Clock, WarpClock};
use crate::mem::global::DeviceMemory;
use crate::mem::shared::SharedMem;
use std::collections::HashMap;

/// What to run: the kernel, its extent, dynamic shared memory and the parameter block.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    pub program: &'a Program,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes.
    pub dynamic_shared: u32,
    pub params: &'a [u8],
}

/// One of the sixteen barriers of a block (PTX ISA §9.7.13.1).
#[derive(Default)]
struct Barrier {
    expected: u32,
    arrived: u32,
    waiting: Vec<u32>,
    kind: Option<BarKind>,
    clock: Option<Clock>,
    yes: u32,
    lanes: u32,
}

/// A warp at a barrier.
pub(super) struct Arrival<'a> {
    pub warp: u32,
    pub kind: BarKind,
    pub votes: u32,
    pub lanes: u32,
    pub clock: &'a Clock,
}

/// What a completed barrier hands to a warp that waited: what it now knows, and votes and voters.
struct Release {
    clock: Clock,
    yes: u32,
    lanes: u32,
    kind: BarKind,
}

/// The state of a block that its warps share.
pub(super) struct Env {
    pub shared: SharedMem,
    barriers: [Barrier; 16],
    warps: u32,
    /// By warp.
    released: Vec<Option<Release>>,
    /// By warp: the destinations of a `bar.red`.
    pub expecting: Vec<Option<(Slot, u32)>>,
    /// What has been released through shared addresses.
    pub sync: HashMap<u64, Clock>,
}

impl Env {
    pub fn arrive(&mut self, id: u64, threads: Option<u64>, a: Arrival) -> Result<(), String> {
        let all = self.warps * 32;
        let Some(b) = self.barriers.get_mut(id as usize) else {
            return Err(format!("there is no barrier {id}"));
        };
        let expected = threads.map_or(all, |t| t as u32);
        if expected == 0 || !expected.is_multiple_of(32) || expected > all {
            return Err(format!("{expected} threads cannot meet in a block of {} warps", self.warps));
        }
        if b.arrived > 0 && b.expected != expected {
            return Err(format!("barrier {id} is awaited by {} and by {expected} threads", b.expected));
        }
        let meets = match (b.kind, a.kind) {
            (None, _) | (_, BarKind::Arrive) | (Some(BarKind::Arrive), _) => true,
            (Some(k), l) => k == l,
        };
        if !meets {
            return Err(format!("barrier {id} is used by different instructions at a time"));
        }
        if b.kind.is_none_or(|k| k == BarKind::Arrive) {
            b.kind = Some(a.kind);
        }
        b.expected = expected;
        b.arrived += 32;
        b.yes += a.votes.count_ones();
        b.lanes += a.lanes.count_ones();
        match &mut b.clock {
            Some(c) => c.join(a.clock),
            none => *none = Some(a.clock.clone()),
        }
        if a.kind != BarKind::Arrive {
            b.waiting.push(a.warp);
        }
        if b.arrived >= b.expected {
            let b = std::mem::take(b);
            for w in &b.waiting {
                self.released[*w as usize] = Some(Release {
                    clock: b.clock.clone().unwrap_or_default(),
                    yes: b.yes,
                    lanes: b.lanes,
                    kind: b.kind.unwrap_or(BarKind::Sync),
                });
            }
        }
        Ok(())
    }

    /// Lets the groups of `warp` that wait for a completed barrier go on.
    fn wake(&mut self, warp: &mut Warp) {
        let Some(r) = self.released[warp.index as usize].take() else { return };
        warp.clock.learn(&r.clock);
        for g in &mut warp.groups {
            if matches!(g.wait, Wait::Barrier(_)) {
                g.wait = Wait::Ready;
            }
        }
        if let Some((d, p)) = self.expecting[warp.index as usize].take() {
            let lanes = warp.born;
            for l in crate::num::lanes::lanes_of(lanes) {
                warp.put(d, l, u64::from(r.yes));
            }
            let yes = match r.kind {
                BarKind::All => r.yes == r.lanes,
                _ => r.yes > 0,
            };
            warp.put_pred(p, if yes { u32::MAX } else { 0 }, lanes);
        }
    }

    fn report(&self) -> String {
        let mut out = Vec::new();
        for (i, b) in self.barriers.iter().enumerate().filter(|(_, b)| b.arrived > 0) {
            out.push(format!(
                "barrier {i} has {} of {} threads, warps {:?} wait",
                b.arrived, b.expected, b.waiting
            ));
        }
        out.join("; ")
    }
}

struct Block {
    geometry: Geometry,
    warps: Vec<Warp>,
    env: Env,
}

/// Runs a launch to its end. The counters tell what it did; a fault ends it and names the place.
pub fn launch(mem: &mut DeviceMemory, config: &Config, launch: &Launch) -> Result<Counters, Fault> {
    let program = launch.program;
    let refuse = |detail: String| Fault {
        kernel: program.name.clone(),
        line: program.code[0].line,
        text: String::new(),
        cta: [0; 3],
        warp: 0,
        lane: None,
        kind: FaultKind::Barrier { detail },
    };
    let threads = launch.block.iter().map(|b| u64::from(*b)).product::<u64>();
    let blocks = launch.grid.iter().map(|g| u64::from(*g)).product::<u64>();
    if threads == 0 || threads > 1024 || blocks == 0 || blocks > 1 << 26 {
        return Err(refuse(format!("a launch of {blocks} blocks of {threads} threads")));
    }
    if program.reqntid.is_some_and(|r| r != launch.block) {
        return Err(refuse(format!("block {:?} is not what .reqntid demands", launch.block)));
    }
    if program.maxntid.is_some_and(|r| r.iter().product::<u32>() < threads as u32) {
        return Err(refuse(format!("{threads} threads are more than .maxntid allows")));
    }
    if launch.params.len() < program.param_bytes as usize {
        return Err(refuse(format!("{} of {} parameter bytes", launch.params.len(), program.param_bytes)));
    }
    mem.races = config.races;
    mem.begin();
    let machine = Machine {
        program,
        mem,
        config,
        params: launch.params,
        counters: Counters::default(),
        traced: config.trace.unwrap_or(u32::MAX),
        rng: Rng::new(config.seed.unwrap_or(1)),
    };
    Grid { machine, launch, blocks, next: 0 }.run()
}

struct Grid<'a, 'b> {
    machine: Machine<'a>,
    launch: &'b Launch<'b>,
    blocks: u64,
    next: u64,
}

impl Grid<'_, '_> {
    fn run(mut self) -> Result<Counters, Fault> {
        let mut resident: Vec<Block> = Vec::new();
        let slots = self.machine.config.resident.max(1);
        loop {
            while resident.len() < slots && self.next < self.blocks {
                let block = self.start(self.next as u32);
                resident.push(block);
                self.next += 1;
            }
            if resident.is_empty() {
                return Ok(self.machine.counters);
            }
            let mut progress = false;
            let mut order: Vec<usize> = (0..resident.len()).collect();
            self.shuffle(&mut order);
            for b in order {
                progress |= self.visit(&mut resident[b])?;
            }
            let before = resident.len();
            resident.retain(|b| !b.warps.iter().all(Warp::done));
            if !progress && resident.len() == before {
                return Err(self.deadlock(&resident));
            }
        }
    }

    fn shuffle(&mut self, order: &mut [usize]) {
        if self.machine.config.seed.is_some() {
            for i in (1..order.len()).rev() {
                order.swap(i, self.machine.rng.below(i + 1));
            }
        }
    }

    fn start(&mut self, linear: u32) -> Block {
        let (grid, block) = (self.launch.grid, self.launch.block);
        let cta = [linear % grid[0], linear / grid[0] % grid[1], linear / (grid[0] * grid[1])];
        let program = self.launch.program;
        let dynamic = self.launch.dynamic_shared;
        let total = if dynamic > 0 { program.dynamic_shared + dynamic } else { program.shared_bytes };
        let geometry = Geometry { grid, block, cta, dynamic_shared: dynamic, total_shared: total };
        let warps = (block[0] * block[1] * block[2]).div_ceil(32);
        let first = linear * warps;
        let mem = &mut self.machine.mem;
        let clock = |w: u32| WarpClock::new(first + w, first, warps as usize, mem.now);
        let made = (0..warps).map(|w| Warp::new(program, w, &geometry, clock(w))).collect();
        let config = self.machine.config;
        let n = warps as usize;
        let shared = SharedMem::new(total as usize, n, first, mem.base(), config.races, config.uninitialised);
        let env = Env {
            shared,
            barriers: Default::default(),
            warps,
            released: (0..n).map(|_| None).collect(),
            expecting: vec![None; n],
            sync: HashMap::new(),
        };
        Block { geometry, warps: made, env }
    }

    /// Gives every warp of a block a turn; tells whether anything happened.
    fn visit(&mut self, block: &mut Block) -> Result<bool, Fault> {
        let mut progress = false;
        let mut order: Vec<usize> = (0..block.warps.len()).collect();
        self.shuffle(&mut order);
        for w in order {
            let warp = &mut block.warps[w];
            if warp.done() {
                continue;
            }
            block.env.wake(warp);
            let limit = self.machine.config.step_limit;
            let left = limit.saturating_sub(self.machine.counters.warp_instructions);
            let before = self.machine.counters.warp_instructions;
            let turn = match self.machine.config.seed {
                None => left,
                Some(_) => (1 + u64::from(self.machine.rng.next() % 256)).min(left),
            };
            match self.machine.run(warp, &mut block.env, turn) {
                Ok(Stop::Turn) if left == turn && self.machine.counters.warp_instructions >= limit => {
                    let pc = warp.groups.first().map_or(0, |g| g.pc);
                    return Err(self.fault(block, w, (FaultKind::Budget { limit }, None, pc)));
                }
                Ok(Stop::Barrier) => {
                    progress |= self.machine.counters.warp_instructions > before;
                }
                Ok(_) => progress = true,
                Err(failed) => return Err(self.fault(block, w, failed)),
            }
            progress |= block.env.released.iter().any(Option::is_some);
        }
        Ok(progress)
    }

    fn fault(&self, block: &Block, warp: usize, (kind, lane, pc): Failed) -> Fault {
        let program = self.launch.program;
        Fault {
            kernel: program.name.clone(),
            line: program.code[pc as usize].line,
            text: program.text[pc as usize].clone(),
            cta: block.geometry.cta,
            warp: warp as u32,
            lane,
            kind,
        }
    }

    fn deadlock(&self, resident: &[Block]) -> Fault {
        let block = &resident[0];
        let warp = block.warps.iter().position(|w| !w.done()).unwrap_or(0);
        let group = block.warps[warp].groups[0];
        let mut report: Vec<String> = Vec::new();
        for b in resident {
            let [x, y, z] = b.geometry.cta;
            let ended = b.warps.iter().filter(|w| w.done()).count();
            report.push(format!(
                "block ({x},{y},{z}): {} of {} warps have ended; {}",
                ended,
                b.warps.len(),
                b.env.report()
            ));
        }
        let kind = FaultKind::Deadlock { report: report.join(". ") };
        let pc = if matches!(group.wait, Wait::Barrier(_)) { group.pc.saturating_sub(1) } else { group.pc };
        self.fault(block, warp, (kind, None, pc))
    }
}
