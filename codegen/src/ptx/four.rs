//! Four neighbours at once: elements of one lane that lie together are read or written by one instruction of up to 16
//! bytes, where the first of them is aligned.

use super::func::Emitter;
use super::isa::{Op, Type};
use super::mem::Place;
use crate::error::Emit;
use ir::loops::{Addr, Block, Func, Inst, Mem, Stmt, Stride, Ty, Val};
use std::collections::{BTreeMap, HashMap};

/// By load that belongs to one, all four of its group.
pub(super) type Fours = HashMap<Val, [Val; 4]>;

/// Where a load begins, and in how many lanes, but for its displacement.
type From = (Mem, Val, Ty, Option<Val>);

/// Loads of one block from one place, by displacement: value and alignment.
type Open = HashMap<From, BTreeMap<i64, (Val, u32)>>;

fn bytes(func: &Func, mem: Mem) -> u32 {
    let dtype = match mem {
        Mem::Buf(i) => func.bufs.get(i as usize).map(|b| b.dtype),
        Mem::Local(i) => func.locals.get(i as usize).map(|l| l.dtype),
    };
    dtype.map_or(0, |d| d.bytes() as u32)
}

/// Bytes of the widest access.
const WIDEST: u32 = 16;

/// True where the place may be that of the first of four elements: it is aligned to all of them, or to two of 8 bytes.
fn aligned(bytes: u32, align: u32) -> bool {
    (1..=8).contains(&bytes) && align >= (4 * bytes).min(WIDEST)
}

/// True where each lane has its own place, and the elements behind it may be its own too.
fn in_lanes(func: &Func, addr: &Addr, ty: Ty) -> bool {
    let index = func.types.get(addr.index.0 as usize);
    let own = index.is_some_and(|t| !t.is_scalar());
    own || !ty.is_scalar() && addr.col == Stride::Const(4)
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
            Stmt::Let { val, inst: Inst::Load(addr) } if in_lanes(func, addr, func.ty(*val)) => {
                let key = (addr.mem, addr.index, func.ty(*val), addr.cols_valid);
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
            && aligned(size, *align)
        {
            let group = [*first, a, b, c];
            fours.extend(group.map(|v| (v, group)));
        }
    }
}

impl Emitter<'_> {
    fn place_of_four(&mut self, addr: &Addr, ty: Ty) -> Emit<Place> {
        if self.is_scalar(addr.index) { self.place_of(addr, ty) } else { self.own_place(addr) }
    }

    /// Reads all four of a group, of which `val` at `addr` is one.
    pub fn load_four(&mut self, group: [Val; 4], val: Val, addr: &Addr) -> Emit<()> {
        let ty = self.ty(val)?;
        let before = group.iter().take_while(|v| **v != val).count() as i64;
        let lanes = self.first(ty, addr.cols_valid)?;
        let at = self.place_of_four(&Addr { disp: addr.disp - before, ..*addr }, ty)?;
        let (memory, register) = self.read_as(addr.mem, ty.dtype)?;
        let d = group.map(|_| self.fresh(register));
        d.into_iter().for_each(|d| self.zero_idle(lanes, d));
        let (space, base, offset) = (self.space(addr.mem), at.base, at.offset);
        match second(memory, offset) {
            None => self.push_lanes(lanes, Op::LdFour { space, ty: memory, d, base, offset }),
            Some(next) => {
                let [x, y, z, w] = d;
                self.push_lanes(lanes, Op::LdTwo { space, ty: memory, d: [x, y], base, offset });
                self.push_lanes(lanes, Op::LdTwo { space, ty: memory, d: [z, w], base, offset: next });
            }
        }
        for (val, d) in group.into_iter().zip(d) {
            let value = self.after_read(addr.mem, ty.dtype, d)?;
            self.set(val, value)?;
        }
        Ok(())
    }

    /// True where a store may stand beside those that are held back to be written together.
    pub fn joins(&self, held: &[(Addr, Val)], addr: &Addr, value: Val) -> bool {
        let Ok(ty) = self.ty(value) else { return false };
        if !in_lanes(self.func, addr, ty) {
            return false;
        }
        let Some((first, v)) = held.first() else { return aligned(bytes(self.func, addr.mem), addr.align) };
        let follows = first.disp.checked_add(held.len() as i64) == Some(addr.disp);
        let same = first.mem == addr.mem && first.index == addr.index && first.cols_valid == addr.cols_valid;
        follows && same && self.ty(*v).ok() == Some(ty)
    }

    /// Writes what was held back: four at once, fewer one by one.
    pub fn store_held(&mut self, held: &mut Vec<(Addr, Val)>) -> Emit<()> {
        let all = std::mem::take(held);
        let [(addr, a), (_, b), (_, c), (_, d)] = all[..] else {
            return all.into_iter().try_for_each(|(addr, v)| self.store(&addr, v));
        };
        let ty = self.ty(a)?;
        let lanes = self.first(ty, addr.cols_valid)?;
        let at = self.place_of_four(&addr, ty)?;
        let mut memory = None;
        let mut regs = Vec::with_capacity(4);
        for v in [a, b, c, d] {
            let (ty, r) = self.written_as(addr.mem, v)?;
            memory = Some(ty);
            regs.push(r);
        }
        if let (Some(ty), &[a, b, c, d]) = (memory, regs.as_slice()) {
            let (space, base, offset) = (self.space(addr.mem), at.base, at.offset);
            self.meet(addr.mem);
            match second(ty, offset) {
                None => self.push_lanes(lanes, Op::StFour { space, ty, base, offset, a: [a, b, c, d] }),
                Some(next) => {
                    self.push_lanes(lanes, Op::StTwo { space, ty, base, offset, a: [a, b] });
                    self.push_lanes(lanes, Op::StTwo { space, ty, base, offset: next, a: [c, d] });
                }
            }
            self.meet(addr.mem);
        }
        Ok(())
    }
}

/// Where the other half of four elements begins that are more than one access.
fn second(ty: Type, offset: i32) -> Option<i32> {
    let wide = matches!(ty, Type::B64 | Type::F64 | Type::S64 | Type::U64);
    // displacements of groups are far from the limit: they are those of registers of one tile
    wide.then(|| offset.checked_add(WIDEST as i32)).flatten()
}
