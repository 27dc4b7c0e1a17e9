//! Loads, stores, gathers and scatters.

use super::func::{Emitter, class};
use super::isa::{Binary, Class, Compare, Op, Operand, Reg, Round, Space, Type, Vote};
use crate::Fault;
use crate::error::Emit;
use ir::DType;
use ir::loops::{Addr, Mem, Stride, Ty, Val};

/// Where an access begins, in this lane.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub base: Reg,
    pub offset: i32,
}

/// Which lanes take part.
#[derive(Clone, Copy)]
pub(super) enum Lanes {
    All,
    /// Where the predicate holds.
    Where(Reg),
    None,
}

impl Emitter<'_> {
    fn stored(&self, mem: Mem) -> Emit<DType> {
        let dtype = match mem {
            Mem::Buf(i) => self.func.bufs.get(i as usize).map(|b| b.dtype),
            Mem::Local(i) => self.func.locals.get(i as usize).map(|l| l.dtype),
        };
        dtype.ok_or_else(|| Fault::invalid(format!("{mem:?} does not exist")))
    }

    /// Where a region lies: what is local to a block is shared.
    pub fn space(&self, mem: Mem) -> Space {
        if self.blocks && matches!(mem, Mem::Local(_)) { Space::Shared } else { Space::Global }
    }

    /// Base addresses moved to the lane's own element, once for all accesses of vectors.
    pub fn lane_bases(&mut self) -> Emit<()> {
        for (mem, step) in self.accesses.steps() {
            let size = self.stored(mem)?.bytes() as i64;
            let Some(base) = self.bases.get(&(mem, 0)).copied() else { continue };
            let d = self.element_narrow(base, self.lane.into(), size * step);
            self.bases.insert((mem, step), d);
        }
        Ok(())
    }

    /// `base + index * size`
    fn element(&mut self, base: Reg, index: Operand, size: i64) -> Reg {
        let d = self.fresh(Class::B64);
        self.push(Op::MulAdd { ty: Type::S64, d, a: index, b: Operand::Int(size), c: base.into() });
        d
    }

    /// As [`Emitter::element`], of an index of 32 bits.
    fn element_narrow(&mut self, base: Reg, index: Operand, size: i64) -> Reg {
        let d = self.fresh(Class::B64);
        self.push(Op::MadWide { d, a: index, b: Operand::Int(size), c: base.into() });
        d
    }

    /// The place of each lane's own index, which is a vector.
    pub fn own_place(&mut self, addr: &Addr) -> Emit<Place> {
        if self.is_scalar(addr.index) {
            return Err(Fault::invalid("lanes without places of their own"));
        }
        self.place(addr.mem, addr.index, addr.disp, 0)
    }

    /// The place of each lane of an access to neighbours along the lanes, or of a scalar's one.
    pub fn place_of(&mut self, addr: &Addr, ty: Ty) -> Emit<Place> {
        let step = match addr.col {
            _ if ty.is_scalar() => 0,
            Stride::Const(c) if c > 0 => c,
            _ => return Err(Fault::invalid(format!("{} lanes at {addr:?}", ty.cols))),
        };
        self.place(addr.mem, addr.index, addr.disp, step)
    }

    /// The address of element `index + disp`, in each lane `step` elements further than in the one before it.
    fn place(&mut self, mem: Mem, index: Val, disp: i64, step: i64) -> Emit<Place> {
        let size = self.stored(mem)?.bytes() as i64;
        let start = self.bases.get(&(mem, step)).copied();
        let start = start.ok_or_else(|| Fault::invalid(format!("{mem:?} with a step of {step}")))?;
        let far = || Fault::invalid("an address overflows");
        let mut bytes = disp.checked_mul(size).ok_or_else(far)?;
        let mut base = start;
        match self.known_int(index) {
            Some(i) => bytes = i.checked_mul(size).and_then(|i| i.checked_add(bytes)).ok_or_else(far)?,
            None => {
                let key = (mem, index, step);
                let known = self.scopes.iter().rev().find_map(|s| s.addresses.get(&key)).copied();
                base = match known {
                    Some(r) => r,
                    None => {
                        let r = match self.narrow(index) {
                            Some(narrow) => self.element_narrow(start, narrow, size),
                            None => {
                                let index = self.reg(index)?;
                                self.element(start, index.into(), size)
                            }
                        };
                        if let Some(here) = self.scopes.last_mut() {
                            here.addresses.insert(key, r);
                        }
                        r
                    }
                };
            }
        }
        match i32::try_from(bytes) {
            Ok(offset) => Ok(Place { base, offset }),
            Err(_) => {
                let base = self.binary(Binary::Add, Type::S64, Class::B64, base, Operand::Int(bytes));
                Ok(Place { base, offset: 0 })
            }
        }
    }

    /// The lanes of an access of `ty` of which only the first `valid` elements count.
    pub(super) fn first(&mut self, ty: Ty, valid: Option<Val>) -> Emit<Lanes> {
        let Some(valid) = valid else { return Ok(Lanes::All) };
        if !self.is_scalar(valid) {
            return Ok(Lanes::Where(self.reg(valid)?));
        }
        match self.known_int(valid) {
            Some(n) if n >= i64::from(ty.cols) => return Ok(Lanes::All),
            Some(n) if n <= 0 => return Ok(Lanes::None),
            Some(n) => {
                let p = self.setp(Compare::Lt, Type::U32, self.lane, Operand::Int(n));
                return Ok(Lanes::Where(p));
            }
            None => {}
        }
        if let Some(p) = self.below.get(&valid).filter(|_| !ty.is_scalar()) {
            return Ok(Lanes::Where(*p));
        }
        let count = self.scalar(valid)?;
        if ty.is_scalar() {
            return Ok(Lanes::Where(self.setp(Compare::Gt, Type::S64, count, Operand::Int(0))));
        }
        Ok(Lanes::Where(self.lanes_below(count)))
    }

    /// The lanes below `count`, a number of at most as many as there are.
    pub fn lanes_below(&mut self, count: Reg) -> Reg {
        if count.class == Class::B32 {
            return self.setp(Compare::Lt, Type::U32, self.lane, count.into());
        }
        let n = self.fresh(Class::B32);
        self.push(Op::Cvt { round: None, to: Type::U32, from: Type::U64, d: n, a: count.into() });
        self.setp(Compare::Lt, Type::U32, self.lane, n.into())
    }

    pub(super) fn push_lanes(&mut self, lanes: Lanes, op: Op) {
        match lanes {
            Lanes::All => self.push(op),
            Lanes::Where(p) => self.push_if(p, true, op),
            Lanes::None => {}
        }
    }

    /// Lanes meet around a write to a region that is also read.
    pub(super) fn meet(&mut self, mem: Mem) {
        // warps of a block meet at barriers, and a lane reads what it wrote itself
        if self.accesses.shared(mem) && !self.blocks {
            self.push(Op::WarpSync);
        }
    }

    /// One lane writes what all lanes may have read: where an operand is computed in place, its memory has two names.
    fn meet_before_one(&mut self, mem: Mem) -> Emit<()> {
        let size = self.stored(mem)?.bytes();
        let in_place = matches!(mem, Mem::Buf(_)) && self.accesses.reads_elements_of(size);
        if in_place && !self.accesses.shared(mem) {
            self.push(Op::WarpSync);
        }
        Ok(())
    }

    // ---- reading ----------------------------------------------------------------------------

    pub fn load(&mut self, ty: Ty, addr: &Addr) -> Emit<Reg> {
        if !self.is_scalar(addr.index) {
            let (lanes, at) = (self.first(ty, addr.cols_valid)?, self.own_place(addr)?);
            return self.read(ty, addr.mem, at, lanes);
        }
        let lanes = self.first(ty, addr.cols_valid)?;
        let at = self.place_of(addr, ty)?;
        self.read(ty, addr.mem, at, lanes)
    }

    pub fn gather(&mut self, ty: Ty, mem: Mem, index: Val, mask: Option<Val>) -> Emit<Reg> {
        let lanes = match mask {
            Some(m) => Lanes::Where(self.reg(m)?),
            None => Lanes::All,
        };
        let at = self.at_lanes(mem, index)?;
        self.read(ty, mem, at, lanes)
    }

    /// The place of each lane's own index.
    fn at_lanes(&mut self, mem: Mem, index: Val) -> Emit<Place> {
        if self.ty(index)?.is_scalar() {
            return self.place(mem, index, 0, 0);
        }
        let base = self.bases.get(&(mem, 0)).copied();
        let base = base.ok_or_else(|| Fault::invalid(format!("{mem:?} does not exist")))?;
        let size = self.stored(mem)?.bytes() as i64;
        let base = match self.narrow(index) {
            Some(narrow) => self.element_narrow(base, narrow, size),
            None => {
                let index = self.reg(index)?;
                self.element(base, index.into(), size)
            }
        };
        Ok(Place { base, offset: 0 })
    }

    /// Reads an element into each lane, 0 in those that do not take part.
    fn read(&mut self, ty: Ty, mem: Mem, at: Place, lanes: Lanes) -> Emit<Reg> {
        let (memory, register) = self.read_as(mem, ty.dtype)?;
        let d = self.fresh(register);
        self.zero_idle(lanes, d);
        let space = self.space(mem);
        self.push_lanes(lanes, Op::Ld { space, ty: memory, d, base: at.base, offset: at.offset });
        self.after_read(mem, ty.dtype, d)
    }

    /// What a register holds in lanes that do not take part in a read.
    pub(super) fn zero_idle(&mut self, lanes: Lanes, d: Reg) {
        if matches!(lanes, Lanes::All) {
            return;
        }
        let (zero, ty) = match d.class {
            Class::F32 => (Operand::F32(0.0), Type::F32),
            Class::F64 => (Operand::F64(0.0), Type::F64),
            class => (Operand::Int(0), super::func::untyped(class)),
        };
        self.push(Op::Mov { ty, d, a: zero });
    }

    /// How elements come from memory for a register of this type.
    pub fn read_as(&self, mem: Mem, dtype: DType) -> Emit<(Type, Class)> {
        let stored = self.stored(mem)?;
        Ok(match (stored, dtype) {
            (DType::F16, DType::F32) => (Type::B16, Class::B16),
            (DType::Bool, _) => (Type::U8, Class::B32),
            _ => (memory_type(stored, dtype)?, class(dtype)?),
        })
    }

    /// The value of what was read.
    pub fn after_read(&mut self, mem: Mem, dtype: DType, d: Reg) -> Emit<Reg> {
        let stored = self.stored(mem)?;
        if stored == DType::F16 && dtype == DType::F32 {
            let wide = self.fresh(Class::F32);
            self.push(Op::Cvt { round: None, to: Type::F32, from: Type::F16, d: wide, a: d.into() });
            return Ok(wide);
        }
        if stored == DType::Bool {
            return Ok(self.setp(Compare::Ne, Type::U32, d, Operand::Int(0)));
        }
        Ok(d)
    }

    // ---- writing ----------------------------------------------------------------------------

    pub fn store(&mut self, addr: &Addr, value: Val) -> Emit<()> {
        let ty = self.ty(value)?;
        if !self.is_scalar(addr.index) {
            let (lanes, at) = (self.first(ty, addr.cols_valid)?, self.own_place(addr)?);
            return self.write(addr.mem, at, lanes, value);
        }
        let mut lanes = self.first(ty, addr.cols_valid)?;
        if ty.is_scalar() {
            lanes = self.only_first(lanes);
            self.meet_before_one(addr.mem)?;
        }
        let at = self.place_of(addr, ty)?;
        self.write(addr.mem, at, lanes, value)
    }

    /// One lane writes what all hold.
    fn only_first(&mut self, lanes: Lanes) -> Lanes {
        match lanes {
            Lanes::All => Lanes::Where(self.first_lane),
            Lanes::Where(p) => {
                let first = self.first_lane.into();
                Lanes::Where(self.binary(Binary::And, Type::Pred, Class::Pred, p, first))
            }
            Lanes::None => Lanes::None,
        }
    }

    /// Where several lanes write one element, the last lane wins.
    pub fn scatter(&mut self, mem: Mem, index: Val, value: Val, mask: Option<Val>) -> Emit<()> {
        let ty = self.ty(value)?;
        let mut lanes = match mask {
            Some(m) => Lanes::Where(self.reg(m)?),
            None => Lanes::All,
        };
        if ty.is_scalar() {
            lanes = self.only_first(lanes);
            self.meet_before_one(mem)?;
        } else if !self.ty(index)?.is_scalar() {
            lanes = self.last_of_equals(index, lanes)?;
        } else {
            return Err(Fault::invalid("a scatter of a vector to one index"));
        }
        let at = self.at_lanes(mem, index)?;
        self.write(mem, at, lanes, value)
    }

    /// Of the lanes with the same index only the last one.
    fn last_of_equals(&mut self, index: Val, lanes: Lanes) -> Emit<Lanes> {
        let index = self.reg(index)?;
        let equal = self.fresh(Class::B32);
        self.push(Op::MatchAny { d: equal, a: index });
        let candidates = match lanes {
            Lanes::Where(p) => {
                let active = self.fresh(Class::B32);
                self.push(Op::Vote { kind: Vote::Ballot, d: active, a: p });
                self.binary(Binary::And, Type::B32, Class::B32, equal, active.into())
            }
            _ => equal,
        };
        let last = self.fresh(Class::B32);
        self.push(Op::Bfind { d: last, a: candidates.into() });
        let own = self.setp(Compare::Eq, Type::U32, last, self.lane.into());
        Ok(match lanes {
            Lanes::Where(p) => Lanes::Where(self.binary(Binary::And, Type::Pred, Class::Pred, own, p.into())),
            Lanes::All => Lanes::Where(own),
            Lanes::None => Lanes::None,
        })
    }

    fn write(&mut self, mem: Mem, at: Place, lanes: Lanes, value: Val) -> Emit<()> {
        let (memory, v) = self.written_as(mem, value)?;
        let space = self.space(mem);
        self.meet(mem);
        self.push_lanes(lanes, Op::St { space, ty: memory, base: at.base, offset: at.offset, a: v.into() });
        self.meet(mem);
        Ok(())
    }

    /// The type as which a value is written to a region, and the register it is written from.
    pub fn written_as(&mut self, mem: Mem, value: Val) -> Emit<(Type, Reg)> {
        let (stored, dtype) = (self.stored(mem)?, self.ty(value)?.dtype);
        let v = self.reg(value)?;
        self.storable(stored, dtype, v)
    }

    /// The type that is written, and the register it is written from.
    fn storable(&mut self, stored: DType, dtype: DType, v: Reg) -> Emit<(Type, Reg)> {
        if stored == DType::F16 && dtype == DType::F32 {
            let d = self.fresh(Class::B16);
            self.push(Op::Cvt { round: Some(Round::Rn), to: Type::F16, from: Type::F32, d, a: v.into() });
            return Ok((Type::B16, d));
        }
        if stored == DType::Bool {
            let d = self.fresh(Class::B32);
            self.push(Op::Selp { ty: Type::B32, d, a: Operand::Int(1), b: Operand::Int(0), p: v });
            return Ok((Type::U8, d));
        }
        let memory = memory_type(stored, dtype)?;
        // numbers of less than a byte as the byte that holds them
        let unused = Operand::Int(32 - i64::from(stored.bits()));
        let shift = match stored {
            DType::I4 | DType::I2 => Type::S32,
            DType::U4 | DType::U2 => Type::U32,
            _ => return Ok((memory, v)),
        };
        let upper = self.binary(Binary::Shl, Type::B32, Class::B32, v, unused);
        Ok((memory, self.binary(Binary::Shr, shift, Class::B32, upper, unused)))
    }
}

/// How an element lies in memory, where a register of this type holds it.
fn memory_type(stored: DType, register: DType) -> Emit<Type> {
    let small = register.is_int() && register.bytes() == 4;
    Ok(match (stored.bytes(), stored.is_signed_int()) {
        // the bits are the same, whatever they mean
        (size @ (4 | 8), _) if size == register.bytes() => match register {
            DType::F32 => Type::F32,
            DType::F64 => Type::F64,
            _ if size == 8 => Type::B64,
            _ => Type::B32,
        },
        (2, true) if register == DType::I32 => Type::S16,
        (1, true) if register == DType::I32 => Type::S8,
        (2, false) if small => Type::U16,
        (1, false) if small => Type::U8,
        _ => return Err(Fault::invalid(format!("{stored} in memory as {register} in a register"))),
    })
}
