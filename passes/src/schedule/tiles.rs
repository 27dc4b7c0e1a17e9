//! The register tile of a kernel: how many rows and columns one pass of its innermost loop computes.
//!
//! Measured on Zen 4 with 512-bit vectors: every tile with at least 12 accumulators, at least 3 rows and no
//! spill runs at the peak of the FMA units (14 x 32, 6 x 64, 8 x 48, 24 x 16 alike); on Zen 5 as well, but for one
//! vector of columns. So the choice is about what is wasted at edges, about loads per multiply-add, and about rows that fall into one cache set.

use ir::target::TargetDesc;

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Rows of the problem, where they are known.
    pub rows: Option<i64>,
    /// Divides the number of rows, known or not.
    pub rows_step: i64,
    pub cols: Option<i64>,
    /// Columns of a packed operand's panels: the tile must have as many.
    pub panel: Option<i64>,
    /// Bytes between neighbouring rows of the row operand, where known.
    pub row_bytes: Option<i64>,
    /// Lanes of a vector.
    pub lanes: u32,
    /// Accumulators are products of a row and a column operand.
    pub contraction: bool,
    /// Rows may be repeated: a last tile may overlap the one before.
    pub overlap: bool,
    /// Registers that other values of the innermost loop need.
    pub extra: u32,
    /// Column operands: more than one where the column factor is decoded.
    pub col_operands: u32,
    /// Rows are likely to be few where their number is not known.
    pub few: bool,
    /// Bytes of the column operand in one column, where they are known: the steps of the reduction.
    pub col_bytes: Option<i64>,
    /// Vectors of columns, where something else decides on them.
    pub vectors: Option<u32>,
}

/// Rows and columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    pub rows: u32,
    pub cols: u32,
}

/// A length that stands for those that are not known.
const USUAL: i64 = 128;

/// Bytes between lines of one set in a first-level cache.
const SET_STRIDE: i64 = 4096;

/// The best tile and its score, the estimated part of the machine's peak that it reaches.
pub fn best(q: &Question, target: &TargetDesc) -> (Tile, f64) {
    let lanes = q.lanes;
    let most_vectors = if q.contraction && q.rows != Some(1) { 6 } else { 8 };
    let vectors: Vec<u32> = match q.panel {
        Some(p) => vec![(p as u32).div_ceil(lanes)],
        // enough accumulators for one row to keep up with memory; the other registers are for more rows, which
        // share what was decoded
        None if q.vectors.is_some() => q.vectors.into_iter().collect(),
        None if q.contraction && q.col_operands > 1 => vec![DECODED_VECTORS],
        None => (1..=most_vectors).collect(),
    };
    let mut result = (Tile { rows: 1, cols: lanes }, 0.0);
    for nv in vectors {
        let cols = q.panel.map_or(nv * lanes, |p| p as u32);
        let budget = budget(target, nv, q);
        for rows in 1..=(budget / nv).max(1) {
            let tile = Tile { rows, cols };
            let score = score(q, tile, nv) * near(q, cols, target);
            // more rows at equal merit: fewer passes over the column operand
            if score > result.1 + 1e-9 || score > result.1 - 1e-9 && rows > result.0.rows && q.contraction {
                result = (tile, score);
            }
        }
    }
    result
}

/// Row elements in flight: LLVM's scheduler loads several of them ahead. With one register for them,
/// 14 x 32 spilled on Zen 5 and lost a quarter of its speed; with four no tile spilled.
const ROW_REGS: u32 = 4;

/// Vectors of a tile whose column factor is decoded in registers.
const DECODED_VECTORS: u32 = 2;

/// Accumulators that fit the register file beside the row elements and the column vectors.
fn budget(target: &TargetDesc, nv: u32, q: &Question) -> u32 {
    let ahead = if target.vector_regs > 16 { ROW_REGS } else { 1 };
    let vectors = nv * q.col_operands.max(1);
    let operands = if q.contraction && vectors == 1 { ahead } else { vectors + ahead };
    let most = if q.contraction { u32::MAX } else { target.vector_regs / 2 };
    target.vector_regs.saturating_sub(operands + q.extra).clamp(1, most)
}

/// Panels that fill the second-level cache are read from the next one, as row after row of the other operand drives
/// them out (measured on Zen 5, 197 x 768 x 3072 with 64 columns in place of 48: 0.97).
fn near(q: &Question, cols: u32, target: &TargetDesc) -> f64 {
    let bytes = q.col_bytes.filter(|_| q.contraction).map_or(0, |b| b.saturating_mul(cols.into()));
    if bytes * 5 > target.l2_bytes as i64 * 3 { 0.97 } else { 1.0 }
}

fn score(q: &Question, tile: Tile, nv: u32) -> f64 {
    let (r, c) = (f64::from(tile.rows), f64::from(tile.cols));
    let fill = |extent: i64, size: f64| {
        let extent = extent.max(1) as f64;
        extent / ((extent / size).ceil() * size)
    };
    let row_fill = match q.rows {
        // tiles smaller than the problem, or whole ones only
        Some(m) if m < i64::from(tile.rows) => return 0.0,
        Some(m) if !q.overlap && m % i64::from(tile.rows) != 0 => return 0.0,
        Some(m) => fill(m, r),
        None if !q.overlap && tile.rows > 1 => return 0.0,
        // unknown: most often a multiple of some power of two
        None => fill(USUAL, r),
    };
    let col_fill = match (q.cols, q.panel) {
        (Some(n), None) => fill(n, c),
        (None, None) => fill(USUAL, c),
        _ => 1.0,
    };
    let nv = f64::from(nv);
    let accumulators = r * nv;
    // two multiply-adds a cycle of four cycles each keep eight accumulators busy; twelve measured safe
    let needed = if q.contraction { 12.0 } else { 6.0 };
    let busy = (accumulators / needed).min(1.0);
    // column vectors come from the second-level cache, row elements mostly from the first; one column vector
    // leaves no multiply-add without a load of its own, which measured 0.80 of the peak on Zen 5 (22 x 16)
    let single = if nv == 1.0 { 0.12 } else { 0.0 };
    // the same panels serve a single row, whose accumulators are few
    let lone = if q.rows.is_none() && q.few { 0.005 * (4.0 - nv).max(0.0) } else { 0.0 };
    let loads = match q.contraction {
        true => 1.0 - 0.12 / r - 0.06 / nv - single - lone,
        false => 1.0 - 0.1 / r - 0.02 / nv,
    };
    let conflict = match q.row_bytes {
        Some(b) if q.contraction && b != 0 && b % SET_STRIDE == 0 && tile.rows > 8 => 0.8,
        _ => 1.0,
    };
    row_fill * col_fill * busy * loads * conflict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn avx512() -> TargetDesc {
        TargetDesc {
            name: "avx512".into(),
            cpu: String::new(),
            features: String::new(),
            vector_bits: 512,
            vector_regs: 32,
            has_fma: true,
            has_masks: true,
            has_f16: true,
            simt: false,
            cache_line: 64,
            l1_bytes: 32 << 10,
            l2_bytes: 1 << 20,
            threads: 2,
        }
    }

    fn check(target: &TargetDesc, lanes: u32, rows: i64, cols: i64, row_bytes: i64, expect: (u32, u32)) {
        let q = Question {
            rows: Some(rows),
            rows_step: rows,
            cols: Some(cols),
            panel: None,
            row_bytes: Some(row_bytes),
            lanes,
            contraction: true,
            overlap: true,
            extra: 0,
            col_operands: 1,
            few: false,
            col_bytes: None,
            vectors: None,
        };
        let (t, score) = best(&q, target);
        assert_eq!((t.rows, t.cols), expect, "{rows} x {cols}: {score}");
        let acc = t.rows * t.cols.div_ceil(lanes);
        assert!(acc + t.cols.div_ceil(lanes) < target.vector_regs);
    }

    #[test]
    fn tiles_fill_the_problem() {
        let t = avx512();
        check(&t, 16, 56, 64, 256, (8, 32));
        check(&t, 16, 1024, 1024, 4096, (6, 64));
        check(&t, 16, 128, 768, 3072, (8, 48));
        check(&t, 16, 7, 512, 2048, (7, 32));
    }

    #[test]
    fn sixteen_registers_of_four_lanes() {
        let t = TargetDesc { vector_bits: 128, vector_regs: 16, ..avx512() };
        check(&t, 4, 96, 96, 384, (6, 8));
    }
}
