//! Four neighbours at once: elements of one lane that lie together are read or written by one instruction of up to 16
//! bytes, where the first of them is aligned.

use super::func::Emitter;
use super::isa::Op;
use crate::error::Emit;
use ir::loops::{Addr, Block, Func, Inst, Mem, Stmt, Ty, Val};
use std::collections::{BTreeMap, HashMap};

/// By load that belongs to one, all four of its group.
pub(super) type Fours = HashMap<Val, [Val; 4]>;

/// Loads of one block from one place, by displacement: value and alignment.
type Open = HashMap<(Mem, Val, Ty), BTreeMap<i64, (Val, u32)>>;

fn bytes(func: &Func, mem: Mem) -> u32 {
    let dtype = match mem {
        Mem::Buf(i) => func.bufs.get(i as usize).map(|b| b.dtype),
        Mem::Local(i) => func.locals.get(i as usize).map(|l| l.dtype),
    };
    dtype.map_or(0, |d| d.bytes() as u32)
}

/// True where the access may be the first of four: each lane has its own place, which is aligned.
fn begins(func: &Func, addr: &Addr) -> bool {
    let bytes = bytes(func, addr.mem);
    in_lanes(func, addr) && (1..=4).contains(&bytes) && addr.align >= 4 * bytes
}

fn in_lanes(func: &Func, addr: &Addr) -> bool {
    let ty = func.types.get(addr.index.0 as usize);
    addr.cols_valid.is_none() && ty.is_some_and(|t| !t.is_scalar())
}

/// The groups of loads between which nothing is written to what they read.
pub(super) fn of(func: &Func) -> Fours {
    let mut fours = Fours::new();
    walk(func, &func.body, &mut fours);
    fours
}

fn walk(func: &Func, block: &Block, fours: &mut Fours) {
    let mut open = Open::new();
    for stmt in &block.stmts {
        match stmt {
            Stmt::Let { val, inst: Inst::Load(addr) } if in_lanes(func, addr) => {
                let key = (addr.mem, addr.index, func.ty(*val));
                open.entry(key).or_default().insert(addr.disp, (*val, addr.align));
            }
            Stmt::Let { .. } | Stmt::Check { .. } | Stmt::Prefetch { .. } => {}
            Stmt::Store { addr: Addr { mem, .. }, .. } | Stmt::Scatter { mem, .. } => {
                open.retain(|key, loads| {
                    if key.0 == *mem {
                        close(func, key.0, loads, fours);
                    }
                    key.0 != *mem
                });
            }
            other => {
                open.drain().for_each(|(key, loads)| close(func, key.0, &loads, fours));
                other.blocks().into_iter().for_each(|b| walk(func, b, fours));
            }
        }
    }
    open.into_iter().for_each(|(key, loads)| close(func, key.0, &loads, fours));
}

fn close(func: &Func, mem: Mem, loads: &BTreeMap<i64, (Val, u32)>, fours: &mut Fours) {
    let size = bytes(func, mem);
    for (disp, (first, align)) in loads {
        let next = |i: i64| loads.get(&disp.checked_add(i)?).map(|l| l.0);
        if let (Some(a), Some(b), Some(c)) = (next(1), next(2), next(3))
            && *align >= 4 * size
            && (1..=4).contains(&size)
        {
            let group = [*first, a, b, c];
            fours.extend(group.map(|v| (v, group)));
        }
    }
}

impl Emitter<'_> {
    /// Reads all four of a group, of which `val` at `addr` is one.
    pub fn load_four(&mut self, group: [Val; 4], val: Val, addr: &Addr) -> Emit<()> {
        let ty = self.ty(val)?;
        let before = group.iter().take_while(|v| **v != val).count() as i64;
        let at = self.own_place(&Addr { disp: addr.disp - before, ..*addr })?;
        let (memory, register) = self.read_as(addr.mem, ty.dtype)?;
        let d = group.map(|_| self.fresh(register));
        let space = self.space(addr.mem);
        self.push(Op::LdFour { space, ty: memory, d, base: at.base, offset: at.offset });
        for (val, d) in group.into_iter().zip(d) {
            let value = self.after_read(addr.mem, ty.dtype, d)?;
            self.set(val, value)?;
        }
        Ok(())
    }

    /// True where a store may stand beside those that are held back to be written together.
    pub fn joins(&self, held: &[(Addr, Val)], addr: &Addr, value: Val) -> bool {
        let Some((first, v)) = held.first() else { return begins(self.func, addr) };
        let follows = first.disp.checked_add(held.len() as i64) == Some(addr.disp);
        let same = first.mem == addr.mem && first.index == addr.index;
        follows && same && in_lanes(self.func, addr) && self.ty(value).ok() == self.ty(*v).ok()
    }

    /// Writes what was held back: four at once, fewer one by one.
    pub fn store_held(&mut self, held: &mut Vec<(Addr, Val)>) -> Emit<()> {
        let all = std::mem::take(held);
        let [(addr, a), (_, b), (_, c), (_, d)] = all[..] else {
            return all.into_iter().try_for_each(|(addr, v)| self.store(&addr, v));
        };
        let at = self.own_place(&addr)?;
        let mut memory = None;
        let mut regs = Vec::with_capacity(4);
        for v in [a, b, c, d] {
            let (ty, r) = self.written_as(addr.mem, v)?;
            memory = Some(ty);
            regs.push(r);
        }
        if let (Some(ty), &[a, b, c, d]) = (memory, regs.as_slice()) {
            let space = self.space(addr.mem);
            self.push(Op::StFour { space, ty, base: at.base, offset: at.offset, a: [a, b, c, d] });
        }
        Ok(())
    }
}
