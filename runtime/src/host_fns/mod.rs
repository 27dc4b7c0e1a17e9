//! The closed table of host functions: what is not tensor arithmetic.

mod nms;

use crate::error::Result;
use crate::exec::HostArgs;
use format::{HostFnDef, PixelsDef};

/// Sizes that a host function defines, and the bytes of its results.
pub(crate) struct HostResults {
    pub sizes: Vec<i64>,
    pub results: Vec<Vec<u8>>,
}

pub(crate) fn call(func: HostFnDef, args: &HostArgs<'_, '_>) -> Result<HostResults> {
    match func {
        HostFnDef::NonMaxSuppression { center_point_box } => {
            let boxes = floats(&args.bytes(0)?);
            let scores = floats(&args.bytes(1)?);
            let shape = args.shape(1)?;
            let [batches, classes, n] = shape[..] else { return Ok(empty()) };
            let max = args
                .bytes(2)?
                .get(..8)
                .map_or(0, |b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
            let iou = floats(&args.bytes(3)?).first().copied().unwrap_or(0.0);
            let threshold = floats(&args.bytes(4)?).first().copied();
            let max = usize::try_from(max).unwrap_or(0);
            let mut selected = Vec::new();
            for b in 0..batches {
                for c in 0..classes {
                    let at = (b * classes + c) * n;
                    let kept = nms::suppress(
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
        HostFnDef::DecodeImage { pixels } => {
            let pixels = match pixels {
                PixelsDef::Rgb => images::Pixels::Rgb,
                PixelsDef::Bgr => images::Pixels::Bgr,
                PixelsDef::Grey => images::Pixels::Grey,
            };
            let image = images::decode(&args.bytes(0)?, pixels, args.limit())
                .map_err(|e| args.fault("decoding an image", e))?;
            Ok(HostResults {
                sizes: vec![image.height as i64, image.width as i64],
                results: vec![image.data],
            })
        }
    }
}

fn empty() -> HostResults {
    HostResults { sizes: vec![0], results: vec![Vec::new()] }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
