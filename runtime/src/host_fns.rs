//! The closed table of host functions: what is not tensor arithmetic.

use crate::error::Result;
use crate::exec::HostArgs;
use format::HostFnDef;

/// Sizes that a host function defines, and the bytes of its results.
pub(crate) struct HostResults {
    pub sizes: Vec<i64>,
    pub results: Vec<Vec<u8>>,
}

pub(crate) fn call(func: HostFnDef, args: &HostArgs<'_, '_>) -> Result<HostResults> {
    match func {
        HostFnDef::NonMaxSuppression { center_point_box } => {
            let boxes = floats(args.bytes(0));
            let scores = floats(args.bytes(1));
            let shape = args.shape(1)?;
            let [batches, classes, n] = shape[..] else { return Ok(empty()) };
            let max = args
                .bytes(2)
                .get(..8)
                .map_or(0, |b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
            let iou = floats(args.bytes(3)).first().copied().unwrap_or(0.0);
            let threshold = floats(args.bytes(4)).first().copied();
            let max = usize::try_from(max).unwrap_or(0);
            let mut selected = Vec::new();
            for b in 0..batches {
                for c in 0..classes {
                    let at = (b * classes + c) * n;
                    let kept = suppress(
                        boxes.get(b * n * 4..(b + 1) * n * 4).unwrap_or(&[]),
                        scores.get(at..at + n).unwrap_or(&[]),
                        max,
                        iou,
                        threshold,
                        center_point_box,
                    );
                    selected.extend(kept.into_iter().map(|i| [b as i64, c as i64, i as i64]));
                }
            }
            let bytes = selected.iter().flatten().flat_map(|i| i.to_le_bytes()).collect();
            Ok(HostResults { sizes: vec![selected.len() as i64], results: vec![bytes] })
        }
    }
}

fn empty() -> HostResults {
    HostResults { sizes: vec![0], results: vec![Vec::new()] }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Greedy non-maximum suppression of one class (ONNX NonMaxSuppression): boxes in order of falling
/// score (ties: lower index) are kept unless they overlap a kept one by more than `iou`.
fn suppress(
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
    let mut order: Vec<usize> =
        (0..scores.len().min(corner.len())).filter(|&i| threshold.is_none_or(|t| scores[i] > t)).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        if kept.len() >= max {
            break;
        }
        if kept.iter().all(|&k| overlap(&corner[i], &corner[k]) <= iou) {
            kept.push(i);
        }
    }
    kept
}

/// Intersection over union of two boxes [y1, x1, y2, x2]; 0 where either has no area.
fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let area = |r: &[f32; 4]| (r[2] - r[0]) * (r[3] - r[1]);
    let h = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let w = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let (inter, areas) = (h * w, (area(a), area(b)));
    if areas.0 <= 0.0 || areas.1 <= 0.0 || inter <= 0.0 {
        return 0.0;
    }
    inter / (areas.0 + areas.1 - inter)
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
    }
}
