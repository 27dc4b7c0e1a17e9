//! Host functions.

use crate::context::Cx;
use crate::error::OpError;
use crate::number::Number;
use crate::view::View;
use ir::prim::{HostFn, Pixels};
use ir::{DType, Tensor};

type Result<T> = std::result::Result<T, OpError>;

pub(crate) fn call(cx: &Cx, func: &HostFn, xs: &[View]) -> Result<Vec<Tensor>> {
    match func {
        HostFn::NonMaxSuppression { center_point_box } => {
            let &[boxes, scores, max, iou, score] = xs else {
                return Err(OpError::mismatch("operands", 5, xs.len()));
            };
            let limits = Limits {
                boxes: max.int()?,
                iou: float(iou)?,
                score: float(score)?,
                center: *center_point_box,
            };
            Ok(vec![non_max_suppression(cx, boxes, scores, limits)?])
        }
        HostFn::DecodeImage { pixels } => {
            let &[file] = xs else { return Err(OpError::mismatch("operands", 1, xs.len())) };
            if file.dtype != DType::U8 || file.shape.len() != 1 {
                return Err(OpError::mismatch("an encoded image", "u8[n]", file.describe()));
            }
            let order = match pixels {
                Pixels::Rgb => images::Pixels::Rgb,
                Pixels::Bgr => images::Pixels::Bgr,
                Pixels::Grey => images::Pixels::Grey,
            };
            cx.spend(file.elems())?;
            let image = images::decode(file.bytes, order, cx.budget().max_bytes)
                .map_err(|e| OpError::Host(e.to_string()))?;
            cx.room(&[image.data.len()], 1)?;
            let shape = vec![image.height, image.width, pixels.channels() as usize];
            Ok(vec![Tensor::new(DType::U8, shape, image.data)])
        }
    }
}

fn float(x: View) -> Result<f32> {
    match x.get::<f64>(0) {
        Some(v) if x.dtype == DType::F32 && x.elems() == 1 => Ok(v as f32),
        _ => Err(OpError::mismatch("operand", "one f32", x.describe())),
    }
}

struct Limits {
    /// Boxes to choose for each class of each image; none if negative.
    boxes: i128,
    iou: f32,
    score: f32,
    center: bool,
}

/// ONNX NonMaxSuppression: per image and class the boxes whose score exceeds the threshold in order
/// of falling score (ties: lower index first), without those that overlap one chosen earlier by more
/// than the threshold. All arithmetic in `f32`, as the operator's reference does it: the choice is discrete,
/// so a more precise ratio could choose other boxes.
fn non_max_suppression(cx: &Cx, boxes: View, scores: View, limits: Limits) -> Result<Tensor> {
    let (&[images, count, 4], &[score_images, classes, score_count]) = (boxes.shape, scores.shape) else {
        let found = format!("{} and {}", boxes.describe(), scores.describe());
        return Err(OpError::mismatch("boxes and scores", "[B, N, 4] and [B, C, N]", found));
    };
    if (images, count) != (score_images, score_count) {
        let found = format!("{} and {}", boxes.describe(), scores.describe());
        return Err(OpError::mismatch("boxes and scores", "equal B and N", found));
    }
    if boxes.dtype != DType::F32 || scores.dtype != DType::F32 {
        let found = format!("{} and {}", boxes.dtype, scores.dtype);
        return Err(OpError::mismatch("boxes and scores", DType::F32, found));
    }
    let Some(load) = <f64 as Number>::load(DType::F32) else {
        return Err(OpError::Undefined { prim: "non_max_suppression", dtype: DType::F32 });
    };
    let corners = |image: usize, i: usize| {
        let at = (image * count + i) * 4;
        let row: [f32; 4] = std::array::from_fn(|k| load(boxes.bytes, at + k) as f32);
        Corners::new(row, limits.center)
    };
    let mut data = Vec::new();
    if scores.elems() == 0 {
        return Ok(Tensor::new(DType::I64, vec![0, 3], data));
    }
    for (image, class) in (0..images).flat_map(|b| (0..classes).map(move |c| (b, c))) {
        let score = |i: usize| load(scores.bytes, (image * classes + class) * count + i) as f32;
        // a NaN exceeds nothing
        let mut order: Vec<usize> = (0..count).filter(|&i| score(i) > limits.score).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        cx.spend(count)?;
        let mut chosen: Vec<(usize, Corners)> = Vec::new();
        for i in order {
            if chosen.len() as i128 >= limits.boxes {
                break;
            }
            cx.spend(chosen.len())?;
            let candidate = corners(image, i);
            if !chosen.iter().any(|(_, c)| candidate.overlap(c) > limits.iou) {
                chosen.push((i, candidate));
            }
        }
        cx.room(&[data.len() / 8 + chosen.len() * 3], 8)?;
        for (i, _) in chosen {
            for x in [image, class, i] {
                data.extend_from_slice(&(x as i64).to_le_bytes());
            }
        }
    }
    Ok(Tensor::new(DType::I64, vec![data.len() / 24, 3], data))
}

/// An axis-parallel box.
struct Corners {
    x: (f32, f32),
    y: (f32, f32),
}

impl Corners {
    /// From `[y1, x1, y2, x2]` (corners in any order) or `[x, y, width, height]` about the centre.
    fn new([a, b, c, d]: [f32; 4], center: bool) -> Corners {
        let ordered = |p: f32, q: f32| if p >= q { (q, p) } else { (p, q) };
        if center {
            Corners { x: (a - c / 2.0, a + c / 2.0), y: (b - d / 2.0, b + d / 2.0) }
        } else {
            Corners { x: ordered(b, d), y: ordered(a, c) }
        }
    }
    fn area(&self) -> f32 {
        (self.x.1 - self.x.0) * (self.y.1 - self.y.0)
    }
    /// Intersection over union; below every threshold where the boxes do not meet or have no area.
    fn overlap(&self, other: &Corners) -> f32 {
        let side = |a: (f32, f32), b: (f32, f32)| a.1.min(b.1) - a.0.max(b.0);
        let (width, height) = (side(self.x, other.x), side(self.y, other.y));
        if width <= 0.0 || height <= 0.0 {
            return f32::NEG_INFINITY;
        }
        let (shared, a, b) = (width * height, self.area(), other.area());
        let union = a + b - shared;
        if shared <= 0.0 || a <= 0.0 || b <= 0.0 || union <= 0.0 {
            return f32::NEG_INFINITY;
        }
        shared / union
    }
}
