//! Shuffles, votes, matches, reductions over a mask, and barriers (PTX ISA §9.7.9.6, §9.7.13).

use super::launch::Env;
use super::step::{Flow, Machine, aligned};
use super::warp::Warp;
use crate::decode::op::*;
use crate::fault::{At, FaultKind};
use crate::num::lanes::lanes_of;

impl Machine<'_> {
    /// A `.sync` instruction with a mask of lanes: `None` when exactly those lanes execute it together.
    pub(super) fn gather(&mut self, w: &Warp, mask_slot: u32, active: u32, arrived: u32) -> At<Option<Flow>> {
        w.need32(self.program, mask_slot, active)?;
        let first = active.trailing_zeros();
        let values = w.r32[mask_slot as usize];
        let mask = values[first as usize];
        let fault = |lane: u32, detail: &str| {
            Err((FaultKind::LaneMask { mask, detail: detail.to_string() }, Some(lane)))
        };
        if let Some(l) = lanes_of(active).find(|l| values[*l] != mask) {
            return fault(l as u32, "lanes give different masks");
        }
        if active & !mask != 0 {
            return fault(
                (active & !mask).trailing_zeros(),
                "this lane executes the instruction but is not named",
            );
        }
        // lanes that do not exist may be named: their bits are ignored
        let need = mask & w.born;
        if active == need {
            return Ok(None);
        }
        let missing = need & !active;
        if missing & !w.live != 0 {
            return fault((missing & !w.live).trailing_zeros(), "this lane has exited");
        }
        if missing & arrived != 0 {
            return fault((missing & arrived).trailing_zeros(), "the guard excludes this lane");
        }
        Ok(Some(Flow::WaitLanes(need)))
    }

    pub(super) fn warp_op(&mut self, w: &mut Warp, inst: &Inst, active: u32, arrived: u32) -> At<Flow> {
        let p = self.program;
        let (Op::Shfl { mask, .. }
        | Op::Vote { mask, .. }
        | Op::Match { mask, .. }
        | Op::Redux { mask, .. }
        | Op::Elect { mask, .. }) = inst.op
        else {
            unreachable!("the caller has handled all other instructions")
        };
        if let Some(wait) = self.gather(w, mask, active, arrived)? {
            return Ok(wait);
        }
        match inst.op {
            Op::Shfl { kind, d, p: q, a, b, c, .. } => {
                for s in [a, b, c] {
                    w.need32(p, s, active)?;
                }
                let (value, from, clamp) = (w.r32[a as usize], w.r32[b as usize], w.r32[c as usize]);
                let (mut out, mut inside) = ([0; 32], 0u32);
                for l in lanes_of(active) {
                    let lane = l as u32;
                    let (bval, cval) = (from[l] & 31, clamp[l] & 31);
                    let segment = clamp[l] >> 8 & 31;
                    let max = (lane & segment) | (cval & !segment);
                    let (j, ok) = match kind {
                        ShflKind::Up => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= max as i32),
                        ShflKind::Down => (lane + bval, lane + bval <= max),
                        ShflKind::Bfly => (lane ^ bval, lane ^ bval <= max),
                        ShflKind::Idx => {
                            let j = (lane & segment) | (bval & !segment);
                            (j, j <= max)
                        }
                    };
                    let j = if ok { j } else { lane };
                    inside |= u32::from(ok) << lane;
                    if active >> j & 1 == 0 {
                        let detail = format!("lane {j}, which does not take part, is the source");
                        return Err((FaultKind::LaneMask { mask: active, detail }, Some(lane)));
                    }
                    out[l] = value[j as usize];
                }
                w.put32(d, &out, active);
                w.put_pred(q, inside, active);
            }
            Op::Vote { kind, p: q, d, a, .. } => {
                let yes = w.pred(p, a, active)? & active;
                match kind {
                    VoteKind::Ballot => w.put32(d, &[yes; 32], active),
                    VoteKind::All => w.put_pred(q, all(yes == active), active),
                    VoteKind::Any => w.put_pred(q, all(yes != 0), active),
                    VoteKind::Uni => w.put_pred(q, all(yes == 0 || yes == active), active),
                }
            }
            Op::Match { all: every, d, p: q, a, .. } => {
                w.need(p, a, active)?;
                let same = |l: usize| {
                    let v = w.value(a, l);
                    lanes_of(active).filter(|k| w.value(a, *k) == v).fold(0u32, |m, k| m | 1 << k)
                };
                let masks: Vec<(usize, u32)> = lanes_of(active).map(|l| (l, same(l))).collect();
                let agree = masks.iter().all(|m| m.1 == active);
                let mut out = [0; 32];
                for (l, m) in masks {
                    out[l] = if !every || agree { m } else { 0 };
                }
                w.put32(d, &out, active);
                w.put_pred(q, all(agree), active);
            }
            Op::Redux { op, d, a, .. } => {
                w.need32(p, a, active)?;
                let v = w.r32[a as usize];
                let values = lanes_of(active).map(|l| v[l]);
                let signed = |x: u32| x as i32;
                let r = match op {
                    Redux::Add => values.fold(0, u32::wrapping_add),
                    Redux::And => values.fold(u32::MAX, |x, y| x & y),
                    Redux::Or => values.fold(0, |x, y| x | y),
                    Redux::Xor => values.fold(0, |x, y| x ^ y),
                    Redux::MinU => values.min().unwrap_or(0),
                    Redux::MaxU => values.max().unwrap_or(0),
                    Redux::MinS => values.map(signed).min().unwrap_or(0) as u32,
                    Redux::MaxS => values.map(signed).max().unwrap_or(0) as u32,
                };
                w.put32(d, &[r; 32], active);
            }
            Op::Elect { d, p: q, .. } => {
                let leader = active.trailing_zeros();
                w.put32(d, &[leader; 32], active);
                w.put_pred(q, 1 << leader, active);
            }
            _ => {}
        }
        Ok(Flow::Next)
    }

    /// `bar.sync`, `bar.arrive`, `bar.red`: the warp arrives as a whole.
    pub(super) fn barrier(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        bar: &Bar,
        active: u32,
        mask: u32,
    ) -> At<Flow> {
        let p = self.program;
        if let Some(wait) = aligned(w, active, mask)? {
            return Ok(wait);
        }
        let uniform = |s: Slot| -> At<Option<u64>> {
            if s == Slot::None {
                return Ok(None);
            }
            w.need(p, s, active)?;
            let v = w.value(s, active.trailing_zeros() as usize);
            match lanes_of(active).find(|l| w.value(s, *l) != v) {
                None => Ok(Some(v)),
                Some(l) => {
                    let detail = "lanes of the warp name different barriers or counts".to_string();
                    Err((FaultKind::Barrier { detail }, Some(l as u32)))
                }
            }
        };
        let id = uniform(bar.id)?.unwrap_or(0);
        let threads = uniform(bar.threads)?;
        let votes = w.pred(p, bar.pred, active)? & active;
        self.counters.barriers += 1;
        let clock = w.clock.publish_all(&mut self.mem.now);
        let arrival =
            super::launch::Arrival { warp: w.index, kind: bar.kind, votes, lanes: active, clock: &clock };
        env.arrive(id, threads, arrival).map_err(|detail| (FaultKind::Barrier { detail }, None))?;
        if bar.kind == BarKind::Arrive {
            return Ok(Flow::Next);
        }
        env.expecting[w.index as usize] = Some((bar.d, bar.d_pred));
        Ok(Flow::WaitBarrier(id as u32))
    }
}

fn all(yes: bool) -> u32 {
    if yes { u32::MAX } else { 0 }
}
