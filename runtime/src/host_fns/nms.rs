//! Greedy non-maximum suppression.
//!
//! Boxes that overlap lie near one another, so kept boxes are sorted into cells along the axis on which
//! the boxes are spread widest: a candidate is compared with those of three cells only. Detectors that
//! treat all classes at once shift each class to a place of its own, which this undoes.

/// Greedy non-maximum suppression of one class (ONNX NonMaxSuppression): boxes in order of falling
/// score (ties: lower index) are kept unless they overlap a kept one by more than `iou`.
pub(super) fn suppress(
    boxes: &[f32],
    scores: &[f32],
    max: usize,
    iou: f32,
    threshold: Option<f32>,
    center: bool,
) -> Vec<usize> {
    let corner: Vec<[f32; 4]> = boxes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|&[a, b, c, d]| match center {
            // x_center, y_center, width, height
            true => [b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0],
            // any two diagonal corners
            false => [a.min(c), b.min(d), a.max(c), b.max(d)],
        })
        .collect();
    let count = scores.len().min(corner.len());
    let mut order: Vec<(i32, u32)> = (0..count)
        .filter(|&i| threshold.is_none_or(|t| scores[i] > t))
        .map(|i| (falling(scores[i]), i as u32))
        .collect();
    order.sort_unstable();
    let mut kept: Vec<usize> = Vec::new();
    let mut cells = Cells::new(&corner[..count]);
    for (_, i) in order {
        if kept.len() >= max {
            break;
        }
        let i = i as usize;
        // a bound below 0 (or none at all) is exceeded by boxes that do not touch, too
        let free = if iou >= 0.0 { !cells.overlaps(&corner[i], iou) } else { kept.is_empty() };
        if free {
            kept.push(i);
            cells.insert(&corner[i]);
        }
    }
    kept
}

/// A key that sorts scores from the greatest to the least, in the order of [`f32::total_cmp`].
fn falling(score: f32) -> i32 {
    let bits = score.to_bits() as i32;
    !(bits ^ (((bits >> 31) as u32) >> 1) as i32)
}

/// Kept boxes [y1, x1, y2, x2] by place along one axis.
struct Cells {
    /// 0: y, 1: x.
    axis: usize,
    origin: f32,
    /// Cells of one unit of length; no box is longer than a cell.
    scale: f32,
    cells: Vec<Cell>,
}

/// Boxes with one vector for each coordinate.
#[derive(Clone, Default)]
struct Cell {
    coords: [Vec<f32>; 4],
    areas: Vec<f32>,
}

/// Boxes compared at once.
const LANES: usize = 16;
const MAX_CELLS: f32 = 4096.0;

impl Cells {
    fn new(boxes: &[[f32; 4]]) -> Cells {
        let mut best = Cells { axis: 0, origin: 0.0, scale: 0.0, cells: vec![Cell::default()] };
        if !boxes.iter().flatten().all(|x| x.is_finite()) {
            return best;
        }
        for axis in 0..2 {
            let fold = |f: &dyn Fn(f32, f32) -> f32, start, of: &dyn Fn(&[f32; 4]) -> f32| {
                boxes.iter().map(of).fold(start, f)
            };
            let low = fold(&f32::min, f32::INFINITY, &|b| b[axis]);
            let high = fold(&f32::max, f32::NEG_INFINITY, &|b| b[axis]);
            // a little longer than the longest, for the rounding of places
            let length = fold(&f32::max, 0.0, &|b| b[axis + 2] - b[axis]) * 1.01;
            let spread = high - low;
            let count = (spread / length).min(MAX_CELLS);
            if length > 0.0 && spread.is_finite() && count > best.cells.len() as f32 {
                let scale = count / spread;
                best = Cells { axis, origin: low, scale, cells: vec![Cell::default(); count as usize + 1] };
            }
        }
        best
    }

    /// The cell in which a box begins.
    fn place(&self, b: &[f32; 4]) -> usize {
        (((b[self.axis] - self.origin) * self.scale) as usize).min(self.cells.len() - 1)
    }

    fn insert(&mut self, b: &[f32; 4]) {
        let area = area(b);
        // a box without area overlaps nothing
        if area <= 0.0 {
            return;
        }
        let at = self.place(b);
        let cell = &mut self.cells[at];
        for (list, x) in cell.coords.iter_mut().zip(b) {
            list.push(*x);
        }
        cell.areas.push(area);
    }

    fn overlaps(&self, b: &[f32; 4], iou: f32) -> bool {
        if area(b) <= 0.0 {
            return false;
        }
        let at = self.place(b);
        let near = &self.cells[at.saturating_sub(1)..(at + 2).min(self.cells.len())];
        near.iter().any(|c| c.overlaps(b, iou))
    }
}

impl Cell {
    fn overlaps(&self, b: &[f32; 4], iou: f32) -> bool {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { self.overlaps_avx2(b, iou) };
        }
        self.overlaps_any(b, iou)
    }

    /// The same code in wider vectors.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn overlaps_avx2(&self, b: &[f32; 4], iou: f32) -> bool {
        self.overlaps_any(b, iou)
    }

    #[inline(always)]
    fn overlaps_any(&self, b: &[f32; 4], iou: f32) -> bool {
        let (parts, rest) = (self.areas.as_chunks::<LANES>(), self.areas.len() / LANES * LANES);
        let [y1, x1, y2, x2] = self.coords.each_ref().map(|c| c.as_chunks::<LANES>());
        let mine = area(b);
        for i in 0..parts.0.len() {
            let (y1, x1, y2, x2, areas) = (&y1.0[i], &x1.0[i], &y2.0[i], &x2.0[i], &parts.0[i]);
            let mut hits = [0u32; LANES];
            for l in 0..LANES {
                hits[l] = u32::from(exceeds(b, mine, [y1[l], x1[l], y2[l], x2[l]], areas[l], iou));
            }
            if hits.iter().fold(0, |a, h| a | h) != 0 {
                return true;
            }
        }
        (rest..self.areas.len()).any(|i| {
            let other = self.coords.each_ref().map(|c| c[i]);
            exceeds(b, mine, other, self.areas[i], iou)
        })
    }
}

fn area(b: &[f32; 4]) -> f32 {
    (b[2] - b[0]) * (b[3] - b[1])
}

/// True where the intersection over the union of two boxes that have an area is no number up to `iou`.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "what is no number counts as overlap")]
fn exceeds(a: &[f32; 4], area_a: f32, b: [f32; 4], area_b: f32, iou: f32) -> bool {
    let h = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let w = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let inter = h * w;
    !(inter <= 0.0) & !(inter / (area_a + area_b - inter) <= iou)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppresses_overlaps() {
        let boxes = [
            0.0, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, -0.1, 1.0, 0.9, 0.0, 10.0, 1.0, 11.0, 0.0, 10.1,
            1.0, 11.1, 0.0, 100.0, 1.0, 101.0,
        ];
        let scores = [0.9, 0.75, 0.6, 0.95, 0.5, 0.3];
        assert_eq!(suppress(&boxes, &scores, 3, 0.5, Some(0.0), false), [3, 0, 5]);
        assert_eq!(suppress(&boxes, &scores, 2, 0.5, Some(0.0), false), [3, 0]);
        assert_eq!(suppress(&boxes, &scores, 3, 0.5, Some(0.4), false), [3, 0]);
        assert_eq!(suppress(&boxes, &scores, 0, 0.5, None, false), [0usize; 0]);
        assert_eq!(suppress(&boxes, &scores, 3, -0.5, None, false), [3]);
    }

    #[test]
    fn falling_is_total() {
        let list = [f32::NAN, f32::INFINITY, 1.0, 0.5, 0.0, -0.0, -2.0, f32::NEG_INFINITY, -f32::NAN];
        assert!(list.is_sorted_by_key(|x| falling(*x)));
    }

    /// Every pair compared, as the definition says.
    fn all_pairs(boxes: &[f32], scores: &[f32], iou: f32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        let corner = |i: usize| {
            let b = &boxes[4 * i..4 * i + 4];
            [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
        };
        let mut kept: Vec<usize> = Vec::new();
        for i in order {
            let a = corner(i);
            let clash = kept
                .iter()
                .map(|k| corner(*k))
                .any(|b| area(&a) > 0.0 && area(&b) > 0.0 && exceeds(&a, area(&a), b, area(&b), iou));
            if !clash {
                kept.push(i);
            }
        }
        kept
    }

    #[test]
    fn cells_change_nothing() {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        for round in 0..60 {
            let n = 1 + (random() * 300.0) as usize;
            let classes = [1.0, 7.0, 90.0][round % 3];
            let mut boxes = Vec::new();
            for _ in 0..n {
                let shift = (random() * classes).floor() * if round % 2 == 0 { 40.0 } else { 0.0 };
                let (y, x) = (random() * 30.0 + shift, random() * 300.0 + shift);
                let (h, w) = ((random() * 9.0).floor(), random() * 9.0);
                boxes.extend([y, x, y + h, x + w]);
            }
            let scores: Vec<f32> = (0..n).map(|_| (random() * 20.0).floor()).collect();
            for iou in [0.0, 0.3, 0.7] {
                let got = suppress(&boxes, &scores, usize::MAX, iou, None, false);
                assert_eq!(got, all_pairs(&boxes, &scores, iou), "round {round}");
            }
        }
    }
}
