//! A digest of what one instruction computes, execution by execution.

use super::warp::Warp;
use crate::decode::op::{NO_PRED, NO_REG, Op, Slot};
use crate::num::lanes::lanes_of;

/// Digest of an instruction whose results are not looked at.
pub const UNKNOWN: u64 = u64::MAX;

/// `before`, and what the lanes of `active` have just computed.
#[cold]
pub(super) fn digest(before: u64, w: &Warp, op: &Op, active: u32) -> u64 {
    let (slot, preds) = match *op {
        Op::F1 { d, .. } | Op::F2 { d, .. } | Op::F3 { d, .. } | Op::N1 { d, .. } | Op::Sel32 { d, .. } => {
            (Slot::R32(d), [NO_PRED; 2])
        }
        Op::D1 { d, .. }
        | Op::D2 { d, .. }
        | Op::D3 { d, .. }
        | Op::W1 { d, .. }
        | Op::W2 { d, .. }
        | Op::W3 { d, .. }
        | Op::Sh { d, .. }
        | Op::Sel64 { d, .. } => (Slot::R64(d), [NO_PRED; 2]),
        Op::S { d, .. } => (d, [NO_PRED; 2]),
        Op::Cvt(c) => (c.d, [NO_PRED; 2]),
        Op::C32 { p, q, .. } | Op::C64 { p, q, .. } => (Slot::None, [p, q]),
        Op::P { d, .. } => (Slot::None, [d, NO_PRED]),
        _ => return UNKNOWN,
    };
    if before == UNKNOWN || slot == Slot::R32(NO_REG) {
        return UNKNOWN;
    }
    let mut hash = before;
    let mut add = |x: u64| hash = (hash.rotate_left(23) ^ x).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    add(w.clock.warp.into());
    add(active.into());
    lanes_of(active).for_each(|l| add(w.value(slot, l)));
    for p in preds.into_iter().filter(|p| *p != NO_PRED) {
        add((w.preds[p as usize] & active).into());
    }
    if hash == UNKNOWN { 1 } else { hash }
}
