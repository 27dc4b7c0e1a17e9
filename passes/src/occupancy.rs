//! What a product of matrices costs on a GPU, by the tile of its blocks.
//!
//! A block takes `depth` steps of the reduction in a round: it asks for the operands of the next round, multiplies those of
//! this one, and waits for all its warps. A multiprocessor has four schedulers, each of which issues one instruction of a warp
//! in a cycle. So a round takes what its schedulers have to issue, or what one warp issues and then waits for memory, whichever
//! is longer.
//!
//! The numbers were fitted on an H100 to 468 kernels: 11 tiles, products of 49 to 4096 rows over 64 to 4608 steps in up to
//! 36 parts (`benches/results/2026-11-26-h100.json`). The deviation is 10 % (root of the mean square), and the tile with the
//! least time by this model takes 5 % more than the best.

use ir::target::TargetDesc;

/// Multiprocessors of a GPU, each of which counts as 16 of the target's threads.
pub fn multiprocessors(target: &TargetDesc) -> f64 {
    (target.threads as f64 / 16.0).max(1.0)
}

/// Rows, columns and threads of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    pub rows: u32,
    pub cols: u32,
    pub threads: u32,
}

impl Tile {
    const fn new(rows: u32, cols: u32, threads: u32) -> Tile {
        Tile { rows, cols, threads }
    }
    /// Elements of a thread.
    pub const fn own(self) -> u32 {
        self.rows * self.cols / self.threads
    }
}

/// A thread has 8 x 8 elements, 8 x 4 or 4 x 4: 16, 12 or 8 words read from shared memory for 64, 32 or 16 multiply-adds.
pub const TILES: [Tile; 8] = [
    Tile::new(128, 128, 256),
    Tile::new(128, 64, 128),
    Tile::new(64, 128, 128),
    Tile::new(64, 64, 128),
    Tile::new(32, 64, 64),
    Tile::new(64, 32, 64),
    Tile::new(32, 32, 32),
    Tile::new(32, 32, 64),
];
/// Fewer rows, columns or steps than these leave most of the smallest block idle.
pub const LEAST: (i64, i64, i64) = (24, 24, 8);

/// Cycles of a scheduler for each multiply-add of a warp, by elements of a thread: with those that read shared memory,
/// stage and count.
fn issue(own: u32) -> f64 {
    match own {
        64.. => 1.55,
        32.. => 1.77,
        _ => 2.2,
    }
}
/// Cycles from a read of memory to its value.
const LATENCY: f64 = 430.0;
/// Cycles of a block before its first round and behind its last.
const START: f64 = 1230.0;
/// Cycles of one more kernel.
const LAUNCH: f64 = 5000.0;
/// Bytes that all multiprocessors together write or read in a cycle.
const BYTES: f64 = 1700.0;
const SCHEDULERS: f64 = 4.0;
const LANES: f64 = 32.0;

/// Threads that a multiprocessor holds, of so many elements each.
fn resident(own: u32) -> u32 {
    if own >= 64 { 512 } else { 1024 }
}

/// Steps of the reduction in a round, at most: beside 64 elements of a thread there are registers for 8 steps ahead.
pub fn depth(own: u32) -> u32 {
    if own >= 64 { 8 } else { 16 }
}

/// `others` products of `rows` x `cols` elements over `steps` each.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub rows: f64,
    pub cols: f64,
    pub others: f64,
    pub steps: f64,
}

impl Product {
    /// Cycles with this tile on so many multiprocessors.
    pub fn cycles(&self, tile: Tile, multiprocessors: f64) -> f64 {
        let (own, threads) = (tile.own(), f64::from(tile.threads));
        let tiles = self.others
            * (self.rows / f64::from(tile.rows)).ceil()
            * (self.cols / f64::from(tile.cols)).ceil();
        let depth = f64::from(depth(own));
        let rounds = (self.steps / depth).ceil();
        // of one warp in one round
        let warp = f64::from(own) * depth * issue(own);
        let alone = warp + LATENCY;
        let waves = |blocks: f64| {
            let busy = (blocks * threads / LANES / SCHEDULERS).max(1.0) * warp;
            rounds * busy.max(alone) + START
        };
        let blocks = (tiles / multiprocessors).ceil();
        let most = f64::from((resident(own) / tile.threads).max(1));
        let rest = blocks % most;
        (blocks / most).floor() * waves(most) + if rest > 0.0 { waves(rest) } else { 0.0 }
    }

    /// The tile with the least time among those that may be, and its cycles.
    pub fn best(&self, multiprocessors: f64, may_be: impl Fn(Tile) -> bool) -> Option<(Tile, f64)> {
        let timed = TILES.into_iter().filter(|t| may_be(*t)).map(|t| (t, self.cycles(t, multiprocessors)));
        timed.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Cycles where the steps are cut into parts, whose results a second kernel adds up.
    pub fn in_parts(&self, parts: f64, multiprocessors: f64) -> f64 {
        let part = Product { others: self.others * parts, steps: self.steps / parts, ..*self };
        let product = part.best(multiprocessors, |_| true).map_or(f64::INFINITY, |t| t.1);
        let written = self.others * self.rows * self.cols * 4.0;
        product + if parts > 1.0 { LAUNCH + 2.0 * parts * written / BYTES } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: f64 = 132.0;

    fn product(rows: f64, cols: f64, steps: f64) -> Product {
        Product { rows, cols, others: 1.0, steps }
    }

    /// What was measured on an H100, in microseconds at 1.755 GHz, 3.8 of them for the launch.
    #[test]
    fn the_model_is_near_what_was_measured() {
        let measured = [
            (Tile::new(32, 32, 32), product(128.0, 768.0, 3072.0), 129.0),
            (Tile::new(64, 64, 128), product(128.0, 768.0, 3072.0), 164.8),
            (Tile::new(128, 128, 256), product(1024.0, 1024.0, 1024.0), 114.0),
            (Tile::new(64, 128, 128), product(4096.0, 768.0, 768.0), 124.0),
            (Tile::new(32, 32, 64), product(784.0, 128.0, 1152.0), 47.7),
        ];
        for (tile, p, us) in measured {
            let found = p.cycles(tile, H100) / 1755.0 + 3.8;
            assert!((found / us).ln().abs() < 0.25, "{tile:?} {p:?}: {found} for {us}");
        }
    }

    #[test]
    fn few_results_are_computed_in_parts_and_many_are_not() {
        let best = |p: Product| {
            let n = [1.0, 2.0, 4.0, 8.0, 16.0, 24.0];
            n.into_iter().min_by(|a, b| p.in_parts(*a, H100).total_cmp(&p.in_parts(*b, H100))).unwrap()
        };
        assert!(best(product(128.0, 768.0, 3072.0)) >= 8.0);
        assert_eq!(best(product(4096.0, 4096.0, 4096.0)), 1.0);
    }
}
