//! Sizes to plan for: what symbols of input shapes are likely to be.
//!
//! Hints steer schedules, algorithm choice and the sharing of arena slots; no result depends on them.

use ir::{Module, SymKind};

/// One image or sequence at a time, images of ImageNet's size, sequences of a paragraph.
const BATCH: i64 = 1;
const SPATIAL: i64 = 224;
const SEQUENCE: i64 = 128;

pub fn assign_hints(module: &mut Module) -> crate::Result<()> {
    let mut seen = std::collections::HashSet::new();
    for &v in &module.graph.inputs {
        let ty = &module.graph[v].ty;
        let image = ty.rank() >= 4 && ty.dtype.is_float();
        for (d, dim) in ty.shape.iter().enumerate() {
            let Some(s) = dim.as_sym().filter(|s| seen.insert(*s)) else { continue };
            let Some(info) = module.symbols.infos.get_mut(s.0 as usize) else { continue };
            if info.kind != SymKind::Entry {
                continue;
            }
            let likely = match d {
                0 if ty.rank() > 1 => BATCH,
                _ if image && d >= 2 => SPATIAL,
                _ => SEQUENCE,
            };
            let divisor = info.divisor.max(1);
            let likely = likely.clamp(info.lo, info.hi.max(info.lo));
            info.hint = ((likely + divisor - 1) / divisor * divisor).min(info.hi.max(info.lo));
        }
    }
    Ok(())
}
