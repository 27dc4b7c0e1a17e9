//! How a launch is executed, what is checked and what is counted.

/// When asynchronous copies take effect. A correct kernel gives the same result for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Landing {
    /// As soon as they are issued.
    #[default]
    Early,
    /// When they are waited for.
    Late,
    /// Either, by the seed.
    Random,
}

/// Choices that a correct kernel must not depend on, and the checks.
#[derive(Debug, Clone)]
pub struct Config {
    /// `None` runs warps and blocks in order, each until it waits; a seed makes every choice random.
    pub seed: Option<u64>,
    pub landing: Landing,
    /// Lanes that meet run on together. Without it they only come together where an instruction demands it.
    pub merge_early: bool,
    /// Blocks that are in flight together.
    pub resident: usize,
    /// Races on shared and global memory, `.nc` loads of written bytes.
    pub races: bool,
    /// Unordered plain writes of the bytes that are there are let pass: a schedule whose last tile begins early writes
    /// some rows twice, other compilers let all lanes store what they agree on. Readers must be ordered all the same.
    pub equal_writes: bool,
    /// Shared bytes read before they are written; registers are always checked.
    pub uninitialised: bool,
    /// Sectors, bank conflicts and bytes; instructions and FLOPs are always counted. Takes time: off by default.
    pub counters: bool,
    /// Warp instructions after which a launch is given up.
    pub step_limit: u64,
    /// A line of the text: [`Counters::trace`] tells what its instruction computed.
    pub trace: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            seed: None,
            landing: Landing::Early,
            merge_early: true,
            resident: 2,
            races: true,
            equal_writes: true,
            uninitialised: true,
            counters: false,
            step_limit: 200_000_000,
            trace: None,
        }
    }
}

impl Config {
    /// Modes that must agree: in order; late landing; random order and landing with and without early merging.
    pub fn adversarial(seed: u64) -> Vec<Config> {
        let base = Config::default();
        vec![
            base.clone(),
            Config { landing: Landing::Late, resident: 1, ..base.clone() },
            Config { seed: Some(seed), landing: Landing::Random, resident: 8, ..base.clone() },
            Config { seed: Some(seed ^ 0x9e37_79b9), landing: Landing::Late, merge_early: false, ..base },
        ]
    }
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub warp_instructions: u64,
    /// Instructions times executing lanes.
    pub lane_instructions: u64,
    /// A fused multiply-add is two.
    pub flops: u64,
    pub barriers: u64,
    /// A digest of who executed the instruction on line [`Config::trace`], in which order, and of its results; `u64::MAX`
    /// where those are no registers.
    pub trace: u64,
    pub global_loads: Space,
    pub global_stores: Space,
    pub shared_loads: Space,
    pub shared_stores: Space,
}

/// Memory requests of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Warp instructions.
    pub requests: u64,
    /// Bytes that the lanes asked for.
    pub bytes: u64,
    /// Global: 32-byte sectors touched. Shared: passes over the 32 banks.
    pub passes: u64,
    /// The least that the bytes could have needed.
    pub ideal: u64,
}

impl Space {
    /// Passes beyond what was needed: uncoalesced sectors or bank conflicts.
    pub fn wasted(&self) -> u64 {
        self.passes.saturating_sub(self.ideal)
    }
}

/// A small generator: all that scheduling needs, and the same on every machine.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.next()) * n as u64) >> 32) as usize
    }
}
