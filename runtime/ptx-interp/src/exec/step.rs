//! The inner loop: one group of lanes runs until it meets another group, waits, or ends.

use super::config::{Config, Counters, Landing, Rng};
use super::launch::Env;
use super::trace;
use super::warp::{Group, Wait, Warp};
use crate::decode::Program;
use crate::decode::op::*;
use crate::fault::{At, FaultKind};
use crate::mem::global::DeviceMemory;
use crate::num::lanes::*;

/// Everything that instructions need besides their warp and block.
pub(super) struct Machine<'a> {
    pub program: &'a Program,
    pub mem: &'a mut DeviceMemory,
    pub config: &'a Config,
    pub params: &'a [u8],
    pub counters: Counters,
    /// [`Config::trace`], or a line that there is not.
    pub traced: u32,
    pub rng: Rng,
}

/// Why a warp stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its share of instructions is used up, or a poll failed.
    Turn,
    /// All groups wait for barriers.
    Barrier,
    Done,
}

/// What an instruction does with the flow of control.
pub(super) enum Flow {
    Next,
    Jump(u32),
    /// The lanes stay here until others come.
    WaitLanes(u32),
    WaitBarrier(u32),
    Exit,
    /// Go on, but let others run: the lanes are polling.
    Poll,
}

/// A fault and the pc where it happened.
pub(super) type Failed = (FaultKind, Option<u32>, u32);

fn unset(name: &str, set: u32, mask: u32) -> (FaultKind, Option<u32>) {
    let lane = (mask & !set).trailing_zeros();
    (FaultKind::UninitialisedRegister { name: name.to_string() }, Some(lane))
}

impl Warp {
    #[inline(always)]
    pub(super) fn need32(&self, p: &Program, s: u32, mask: u32) -> At<()> {
        let set = self.set32[s as usize];
        if set & mask == mask { Ok(()) } else { Err(unset(&p.slots32[s as usize].1, set, mask)) }
    }

    #[inline(always)]
    pub(super) fn need64(&self, p: &Program, s: u32, mask: u32) -> At<()> {
        let set = self.set64[s as usize];
        if set & mask == mask { Ok(()) } else { Err(unset(&p.slots64[s as usize].1, set, mask)) }
    }

    #[inline(always)]
    pub(super) fn need(&self, p: &Program, s: Slot, mask: u32) -> At<()> {
        match s {
            Slot::R32(s) => self.need32(p, s, mask),
            Slot::R64(s) => self.need64(p, s, mask),
            Slot::None => Ok(()),
        }
    }

    #[inline(always)]
    pub(super) fn pred(&self, p: &Program, s: PredSrc, mask: u32) -> At<u32> {
        let set = self.set_pred[s.slot as usize];
        if set & mask != mask {
            return Err(unset(&p.preds[s.slot as usize], set, mask));
        }
        let v = self.preds[s.slot as usize];
        Ok(if s.negated { !v } else { v })
    }

    #[inline(always)]
    pub(super) fn put_pred(&mut self, p: u32, value: u32, mask: u32) {
        if p != NO_PRED {
            let d = &mut self.preds[p as usize];
            *d = (*d & !mask) | (value & mask);
            self.set_pred[p as usize] |= mask;
        }
    }

    #[inline(always)]
    pub(super) fn put32(&mut self, d: u32, value: &L32, mask: u32) {
        if d != NO_REG {
            blend(&mut self.r32[d as usize], value, mask);
            self.set32[d as usize] |= mask;
        }
    }

    #[inline(always)]
    pub(super) fn put64(&mut self, d: u32, value: &L64, mask: u32) {
        blend(&mut self.r64[d as usize], value, mask);
        self.set64[d as usize] |= mask;
    }
}

impl Machine<'_> {
    /// Runs `warp` for at most `turn` instructions.
    pub fn run(&mut self, warp: &mut Warp, env: &mut Env, mut turn: u64) -> Result<Stop, Failed> {
        loop {
            if warp.done() {
                return Ok(Stop::Done);
            }
            if turn == 0 {
                return Ok(Stop::Turn);
            }
            let Some(i) = self.choose(warp) else {
                if warp.groups.iter().any(|g| matches!(g.wait, Wait::Barrier(_))) {
                    return Ok(Stop::Barrier);
                }
                return Err(stuck(warp));
            };
            self.run_group(warp, env, i, &mut turn)?;
            if warp.spun {
                return Ok(Stop::Turn);
            }
        }
    }

    /// The group to run: the one with the lowest pc, or any after a failed poll; merged with those it meets.
    fn choose(&mut self, warp: &mut Warp) -> Option<usize> {
        if warp.groups.len() == 1 {
            warp.spun = false;
            return (warp.groups[0].wait == Wait::Ready).then_some(0);
        }
        let ready: Vec<usize> =
            (0..warp.groups.len()).filter(|i| warp.groups[*i].wait == Wait::Ready).collect();
        let spun = std::mem::take(&mut warp.spun);
        let i = if spun && !ready.is_empty() {
            ready[self.rng.below(ready.len())]
        } else {
            ready.into_iter().min_by_key(|i| (warp.groups[*i].pc, *i))?
        };
        let pc = warp.groups[i].pc;
        Some(if self.config.merge_early { warp.merge_at(i, pc) } else { i })
    }

    fn run_group(&mut self, warp: &mut Warp, env: &mut Env, i: usize, turn: &mut u64) -> Result<(), Failed> {
        let Group { mut pc, mask, .. } = warp.groups[i];
        let others =
            warp.groups.iter().enumerate().filter(|(j, g)| *j != i && !matches!(g.wait, Wait::Barrier(_)));
        let meet = if self.config.merge_early {
            others.map(|(_, g)| g.pc).min().unwrap_or(u32::MAX)
        } else {
            u32::MAX
        };
        let program = self.program;
        let mut polled = false;
        let mut first = true;
        loop {
            if (pc >= meet && !first) || *turn == 0 {
                warp.groups[i].pc = pc;
                return Ok(());
            }
            first = false;
            let inst = &program.code[pc as usize];
            self.counters.warp_instructions += 1;
            *turn -= 1;
            let fail = |(k, l): (FaultKind, Option<u32>)| (k, l, pc);
            let mut active = mask;
            if let Some(guard) = inst.guard {
                active &= warp.pred(program, guard, mask).map_err(fail)?;
                if active == 0 {
                    pc += 1;
                    continue;
                }
            }
            self.counters.lane_instructions += u64::from(active.count_ones());
            self.counters.flops += u64::from(inst.flops) * u64::from(active.count_ones());
            let flow = self.step(warp, env, inst, pc, active, mask).map_err(fail)?;
            if self.traced == inst.line {
                self.counters.trace = trace::digest(self.counters.trace, warp, &inst.op, active);
            }
            match flow {
                Flow::Next => pc += 1,
                Flow::Poll => {
                    polled = true;
                    pc += 1;
                }
                Flow::Jump(target) => {
                    let back = target <= pc;
                    if active == mask {
                        pc = target;
                        if back && polled {
                            warp.groups[i].pc = pc;
                            warp.spun = true;
                            return Ok(());
                        }
                        continue;
                    }
                    warp.groups[i] = Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready };
                    warp.groups.push(Group { pc: target, mask: active, wait: Wait::Ready });
                    warp.spun = back && polled;
                    return Ok(());
                }
                Flow::WaitLanes(need) => {
                    self.wait_for_lanes(warp, i, pc, active, mask, need);
                    return Ok(());
                }
                Flow::WaitBarrier(id) => {
                    warp.groups[i] = Group { pc: pc + 1, mask, wait: Wait::Barrier(id) };
                    return Ok(());
                }
                Flow::Exit => {
                    warp.live &= !active;
                    if active == mask {
                        warp.groups.swap_remove(i);
                    } else {
                        warp.groups[i] = Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready };
                    }
                    return Ok(());
                }
            }
        }
    }

    /// The executing lanes stay at `pc`; those that the guard excludes go on.
    fn wait_for_lanes(&mut self, warp: &mut Warp, i: usize, pc: u32, active: u32, mask: u32, need: u32) {
        // the waiting instruction is not executed yet
        self.counters.warp_instructions -= 1;
        warp.groups[i] = Group { pc, mask: active, wait: Wait::Lanes(need) };
        if mask != active {
            warp.groups.push(Group { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
        }
        let here = warp.groups.iter().filter(|g| g.pc == pc && !matches!(g.wait, Wait::Barrier(_)));
        if here.fold(0, |m, g| m | g.mask) & need == need {
            warp.merge_at(i, pc);
        }
    }

    /// Executes one instruction for the lanes of `active`; `mask` are all lanes that have come here.
    #[inline(always)]
    fn step(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        inst: &Inst,
        pc: u32,
        active: u32,
        mask: u32,
    ) -> At<Flow> {
        let p = self.program;
        match inst.op {
            Op::F1 { f, d, a } => {
                w.need32(p, a, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], 0);
                w.put32(d, &t, active);
            }
            Op::F2 { f, d, a, b, imm } => {
                w.need32(p, a, active)?;
                w.need32(p, b, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], &w.r32[b as usize], imm);
                w.put32(d, &t, active);
            }
            Op::F3 { f, d, a, b, c, imm } => {
                w.need32(p, a, active)?;
                w.need32(p, b, active)?;
                w.need32(p, c, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], &w.r32[b as usize], &w.r32[c as usize], imm);
                w.put32(d, &t, active);
            }
            Op::D1 { f, d, a } => {
                w.need64(p, a, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r64[a as usize], 0);
                w.put64(d, &t, active);
            }
            Op::D2 { f, d, a, b } => {
                w.need64(p, a, active)?;
                w.need64(p, b, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r64[a as usize], &w.r64[b as usize], 0);
                w.put64(d, &t, active);
            }
            Op::D3 { f, d, a, b, c } => {
                w.need64(p, a, active)?;
                w.need64(p, b, active)?;
                w.need64(p, c, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r64[a as usize], &w.r64[b as usize], &w.r64[c as usize], 0);
                w.put64(d, &t, active);
            }
            Op::W1 { f, d, a } => {
                w.need32(p, a, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], 0);
                w.put64(d, &t, active);
            }
            Op::W2 { f, d, a, b } => {
                w.need32(p, a, active)?;
                w.need32(p, b, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], &w.r32[b as usize], 0);
                w.put64(d, &t, active);
            }
            Op::W3 { f, d, a, b, c } => {
                w.need32(p, a, active)?;
                w.need32(p, b, active)?;
                w.need64(p, c, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], &w.r32[b as usize], &w.r64[c as usize], 0);
                w.put64(d, &t, active);
            }
            Op::N1 { f, d, a } => {
                w.need64(p, a, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r64[a as usize], 0);
                w.put32(d, &t, active);
            }
            Op::Sh { f, d, a, b } => {
                w.need64(p, a, active)?;
                w.need32(p, b, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r64[a as usize], &w.r32[b as usize], 0);
                w.put64(d, &t, active);
            }
            Op::S { f, d, a, b, c, imm } => {
                for s in [a, b, c] {
                    w.need(p, s, active)?;
                }
                for l in lanes_of(active) {
                    let v = f(w.value(a, l), w.value(b, l), w.value(c, l), imm);
                    w.put(d, l, v);
                }
            }
            Op::Cvt(cvt) => {
                w.need(p, cvt.a, active)?;
                w.need(p, cvt.b, active)?;
                for l in lanes_of(active) {
                    let v = cvt.apply(w.value(cvt.a, l), w.value(cvt.b, l));
                    w.put(cvt.d, l, v);
                }
            }
            Op::C32 { f, a, b, p: d, q, join } => {
                w.need32(p, a, active)?;
                w.need32(p, b, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r32[a as usize], &w.r32[b as usize], 0);
                compared(w, p, to_mask(&t), d, q, join, active)?;
            }
            Op::C64 { f, a, b, p: d, q, join } => {
                w.need64(p, a, active)?;
                w.need64(p, b, active)?;
                let mut t = [0; 32];
                f(&mut t, &w.r64[a as usize], &w.r64[b as usize], 0);
                compared(w, p, to_mask(&t), d, q, join, active)?;
            }
            Op::Sel32 { d, a, b, p: s } => {
                let m = w.pred(p, s, active)?;
                w.need32(p, a, active & m)?;
                w.need32(p, b, active & !m)?;
                let mut t = w.r32[b as usize];
                blend(&mut t, &w.r32[a as usize], m);
                w.put32(d, &t, active);
            }
            Op::Sel64 { d, a, b, p: s } => {
                let m = w.pred(p, s, active)?;
                w.need64(p, a, active & m)?;
                w.need64(p, b, active & !m)?;
                let mut t = w.r64[b as usize];
                blend(&mut t, &w.r64[a as usize], m);
                w.put64(d, &t, active);
            }
            Op::P { logic, d, a, b } => {
                let v = logic.apply(w.pred(p, a, active)?, w.pred(p, b, active)?);
                w.put_pred(d, v, active);
            }
            Op::Bra { target } => return Ok(Flow::Jump(target)),
            Op::Exit => {
                if let Some(c) = w.copies.iter().find(|c| active >> c.lane & 1 == 1) {
                    let detail =
                        format!("lane {} ends with the copy of line {} not waited for", c.lane, c.line);
                    return Err((FaultKind::Barrier { detail }, Some(c.lane)));
                }
                return Ok(Flow::Exit);
            }
            Op::Nop => {}
            _ => return self.rare(w, env, inst, pc, active, mask),
        }
        Ok(Flow::Next)
    }

    /// Instructions that are not plain arithmetic.
    #[inline(never)]
    fn rare(
        &mut self,
        w: &mut Warp,
        env: &mut Env,
        inst: &Inst,
        _pc: u32,
        active: u32,
        mask: u32,
    ) -> At<Flow> {
        let p = self.program;
        match inst.op {
            Op::Pack { d, a, n, bits } => {
                for s in a {
                    w.need(p, s, active)?;
                }
                for l in lanes_of(active) {
                    let v = (0..n).fold(0, |v, i| v | (w.value(a[i as usize], l) & ones(bits)) << (i * bits));
                    w.put(d, l, v);
                }
            }
            Op::Unpack { d, a, n, bits } => {
                w.need(p, a, active)?;
                for l in lanes_of(active) {
                    let v = w.value(a, l);
                    for i in 0..n {
                        w.put(d[i as usize], l, v >> (i * bits) & ones(bits));
                    }
                }
            }
            Op::Clock { d } => {
                let t = self.counters.warp_instructions;
                for l in lanes_of(active) {
                    w.put(d, l, t);
                }
            }
            Op::ActiveMask { d } => w.put32(d, &[active; 32], active),
            Op::IsSpace { p: d, a, space } => {
                w.need64(p, a, active)?;
                let is = lanes_of(active)
                    .filter(|l| crate::mem::global::resolve(w.r64[a as usize][*l]).0 == space)
                    .fold(0, |m, l| m | 1 << l);
                w.put_pred(d, is, active);
            }
            Op::Ld(access) => return self.load(w, env, &access, inst.line, active),
            Op::St(access) => self.store(w, env, &access, inst.line, active)?,
            Op::Atom(a) => return self.atomic(w, env, &a, inst.line, active),
            Op::Fence => {
                let now = &mut self.mem.now;
                w.clock.fence(active, now);
            }
            Op::Trap => return Err((FaultKind::Trap, Some(active.trailing_zeros()))),
            Op::Bar(bar) => return self.barrier(w, env, &bar, active, mask),
            Op::Sleep => return Ok(Flow::Poll),
            Op::WarpSync { mask: m } => {
                if let Some(wait) = self.gather(w, m, active, mask)? {
                    return Ok(wait);
                }
                let now = &mut self.mem.now;
                w.clock.sync(active, w.live, now);
            }
            Op::CpAsync { dst, src, bytes, src_bytes } => {
                self.copy(w, env, dst, src, bytes, src_bytes, inst.line, active)?;
            }
            Op::CpCommit => {
                for l in lanes_of(active) {
                    w.committed[l] += 1;
                }
            }
            Op::CpWait { n } => self.wait_copies(w, env, n, active)?,
            Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::Mma(_) => {
                if let Some(wait) = aligned(w, active, mask)? {
                    return Ok(wait);
                }
                self.matrix(w, env, inst)?;
            }
            _ => return self.warp_op(w, inst, active, mask),
        }
        Ok(Flow::Next)
    }

    /// Whether a copy takes effect at once.
    pub fn lands_early(&mut self) -> bool {
        match self.config.landing {
            Landing::Early => true,
            Landing::Late => false,
            Landing::Random => self.rng.next() & 1 == 0,
        }
    }
}

fn ones(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn compared(
    w: &mut Warp,
    p: &Program,
    r: u32,
    d: u32,
    q: u32,
    join: Option<(Logic, PredSrc)>,
    active: u32,
) -> At<()> {
    let (x, y) = match join {
        None => (r, !r),
        Some((logic, c)) => {
            let c = w.pred(p, c, active)?;
            (logic.apply(r, c), logic.apply(!r, c))
        }
    };
    w.put_pred(d, x, active);
    w.put_pred(q, y, active);
    Ok(())
}

/// An `.aligned` instruction: every lane of the warp must come, none may be excluded by a guard.
pub(super) fn aligned(w: &Warp, active: u32, mask: u32) -> At<Option<Flow>> {
    if active == w.born {
        return Ok(None);
    }
    let lane = Some(active.trailing_zeros());
    if active != mask {
        let detail = "the guard excludes the others".to_string();
        return Err((FaultKind::Divergent { active, detail }, lane));
    }
    if w.live != w.born {
        let detail = format!("lanes {:#010x} have exited", w.born & !w.live);
        return Err((FaultKind::Divergent { active, detail }, lane));
    }
    Ok(Some(Flow::WaitLanes(w.born)))
}

/// No group of a warp can run and none waits for a barrier.
fn stuck(w: &Warp) -> Failed {
    let g = &w.groups[0];
    let rest = w.groups[1..].iter().map(|g| format!("lanes {:#010x} wait at instruction {}", g.mask, g.pc));
    let mut detail: Vec<String> = rest.collect();
    if w.live != w.born {
        detail.push(format!("lanes {:#010x} have exited", w.born & !w.live));
    }
    (FaultKind::Divergent { active: g.mask, detail: detail.join(", ") }, Some(g.mask.trailing_zeros()), g.pc)
}
