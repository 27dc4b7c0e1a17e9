//! Functions: entry, registers of values.

use super::flow::Accesses;
use super::four::{self, Fours};
use super::isa::{Binary, Class, Compare, Entry, Inst as PtxInst, Op, Operand, Reg, Space, Special, Type};
use super::range::Range;
use super::{LANES, WARPS_PER_BLOCK};
use crate::Fault;
use crate::entry::{IntEmit, check_entry, check_entry_of_blocks, local_offsets, of_blocks, sym_param};
use crate::error::Emit;
use ir::dtype::Scalar;
use ir::loops::{Func, LocalArray, Mem, Ty, Val};
use ir::{DType, Sym};
use std::collections::HashMap;

/// What one block has computed besides its values.
#[derive(Default)]
pub(super) struct Scope {
    /// Addresses: region, index, elements from lane to lane.
    pub addresses: HashMap<(Mem, Val, i64), Reg>,
    /// 64-bit registers of values that are held in 32 bits.
    wide: HashMap<Val, Reg>,
}

/// Emission of one function.
pub(super) struct Emitter<'a> {
    pub func: &'a Func,
    body: Vec<PtxInst>,
    /// Registers of each class so far.
    counts: [u32; Class::ALL.len()],
    labels: u32,
    vals: Vec<Option<Reg>>,
    /// Constants are immediate operands.
    pub constants: HashMap<Val, Scalar>,
    /// Base address of each region, moved to the lane's own element where lanes are so many elements apart.
    pub bases: HashMap<(Mem, i64), Reg>,
    /// What the enclosing blocks have computed, outermost first.
    pub scopes: Vec<Scope>,
    /// Bounds of i64 values.
    pub ranges: HashMap<Val, Range>,
    pub accesses: Accesses,
    /// Loads of four neighbours.
    pub fours: Fours,
    /// Iterations are those of blocks.
    pub blocks: bool,
    /// Threads of a block.
    pub threads: u32,
    /// Of numbers of valid columns, the lanes that are below them.
    pub below: HashMap<Val, Reg>,
    syms: Vec<Reg>,
    pub status: Reg,
    /// Lane number, and whether it is 0.
    pub lane: Reg,
    pub first_lane: Reg,
    /// Number of this warp in its block.
    pub own_warp: Reg,
    /// Number of this warp and of all warps, 32 bits; of blocks, where these are what iterates.
    pub warp: Reg,
    pub warps: Reg,
}

/// The kernel of `func`.
pub(super) fn emit(func: &Func) -> Emit<Entry> {
    let blocks = of_blocks(func);
    if blocks {
        check_entry_of_blocks(func)?
    } else {
        check_entry(func)?
    }
    let threads = if blocks { func.launch.block[0] } else { LANES * WARPS_PER_BLOCK };
    if !threads.is_multiple_of(LANES) || !(LANES..=1024).contains(&threads) {
        return Err(Fault::invalid(format!("blocks of {threads} threads")));
    }
    let none = Reg { class: Class::B64, id: 0 };
    let mut e = Emitter {
        func,
        body: Vec::new(),
        counts: [0; Class::ALL.len()],
        labels: 0,
        vals: vec![None; func.types.len()],
        constants: HashMap::new(),
        bases: HashMap::new(),
        scopes: vec![Scope::default()],
        ranges: HashMap::new(),
        accesses: Accesses::of(func),
        fours: four::of(func),
        blocks,
        threads,
        below: HashMap::new(),
        syms: Vec::new(),
        status: none,
        lane: none,
        first_lane: none,
        own_warp: none,
        warp: none,
        warps: none,
    };
    let params = e.entry()?;
    e.stmts(&func.body.stmts)?;
    e.push(Op::Ret);
    let shared = if blocks { shared_arrays(func)? } else { Vec::new() };
    Ok(Entry { name: func.name.clone(), params, threads_per_block: threads, shared, body: e.body })
}

/// Bytes of shared memory that every block of every device may have without asking.
const SHARED_LIMIT: u64 = 48 << 10;

/// Numbers and bytes of the shared arrays.
fn shared_arrays(func: &Func) -> Emit<Vec<(u32, u64)>> {
    let bytes = |l: &LocalArray| {
        l.elems.as_const().and_then(|n| u64::try_from(n).ok()).map(|n| n * l.dtype.bytes() as u64)
    };
    let sizes: Option<Vec<u64>> = func.locals.iter().map(bytes).collect();
    let sizes = sizes.filter(|s| s.iter().map(|n| n.next_multiple_of(16)).sum::<u64>() <= SHARED_LIMIT);
    let sizes = sizes.ok_or_else(|| Fault::unsupported("more shared memory than 48 KiB"))?;
    Ok((0..).zip(sizes).collect())
}

/// Class of the registers of a value type.
pub(super) fn class(dtype: DType) -> Emit<Class> {
    Ok(match dtype {
        DType::F32 => Class::F32,
        DType::F64 => Class::F64,
        DType::I32 | DType::U32 => Class::B32,
        DType::I64 | DType::U64 => Class::B64,
        DType::Bool => Class::Pred,
        other => return Err(Fault::invalid(format!("a value of type {other}"))),
    })
}

/// The instruction type of a value type: with its sign.
pub(super) fn typed(dtype: DType) -> Emit<Type> {
    Ok(match dtype {
        DType::F32 => Type::F32,
        DType::F64 => Type::F64,
        DType::I32 => Type::S32,
        DType::U32 => Type::U32,
        DType::I64 => Type::S64,
        DType::U64 => Type::U64,
        DType::Bool => Type::Pred,
        other => return Err(Fault::invalid(format!("a value of type {other}"))),
    })
}

/// The instruction type that only moves the bits of a register.
pub(super) fn untyped(class: Class) -> Type {
    match class {
        Class::Pred => Type::Pred,
        Class::B16 => Type::B16,
        Class::B32 => Type::B32,
        Class::B64 => Type::B64,
        Class::F32 => Type::F32,
        Class::F64 => Type::F64,
    }
}

impl Emitter<'_> {
    pub fn push(&mut self, op: Op) {
        self.body.push(PtxInst { guard: None, op });
    }
    /// Only in the lanes where `p` is `sense`.
    pub fn push_if(&mut self, p: Reg, sense: bool, op: Op) {
        self.body.push(PtxInst { guard: Some((p, sense)), op });
    }
    pub fn fresh(&mut self, class: Class) -> Reg {
        let id = self.counts[class as usize];
        self.counts[class as usize] += 1;
        Reg { class, id }
    }
    pub fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels - 1
    }
    pub fn binary(&mut self, op: Binary, ty: Type, class: Class, a: impl Into<Operand>, b: Operand) -> Reg {
        let d = self.fresh(class);
        self.push(Op::Binary { op, ty, d, a: a.into(), b });
        d
    }
    pub fn setp(&mut self, op: Compare, ty: Type, a: impl Into<Operand>, b: Operand) -> Reg {
        let d = self.fresh(Class::Pred);
        self.push(Op::Setp { op, ty, d, a: a.into(), b });
        d
    }
    pub fn mov(&mut self, class: Class, a: Operand) -> Reg {
        let d = self.fresh(class);
        self.push(Op::Mov { ty: untyped(class), d, a });
        d
    }

    // ---- entry ------------------------------------------------------------------------------

    /// Reads the parameters; answers how many there are.
    fn entry(&mut self) -> Emit<u32> {
        let mut param = 0;
        let mut next = |e: &mut Self| {
            let d = e.fresh(Class::B64);
            e.push(Op::LdParam { ty: Type::U64, d, param });
            param += 1;
            d
        };
        for i in 0..self.func.bufs.len() {
            let generic = next(self);
            let base = self.global_address(generic);
            self.bases.insert((Mem::Buf(i as u32), 0), base);
        }
        for _ in 0..self.func.syms.len() {
            let generic = next(self);
            let base = self.global_address(generic);
            let d = self.fresh(Class::B64);
            self.push(Op::Ld { space: Space::Global, ty: Type::S64, d, base, offset: 0 });
            self.syms.push(d);
        }
        let (scratch, status) = (next(self), next(self));
        self.status = self.global_address(status);
        self.lane = self.mov(Class::B32, Operand::Special(Special::Lane));
        self.first_lane = self.setp(Compare::Eq, Type::U32, self.lane, Operand::Int(0));
        self.number_warps();
        let (offsets, bytes) = local_offsets(self.func);
        if self.blocks {
            for i in 0..offsets.len() as u32 {
                let d = self.fresh(Class::B64);
                self.push(Op::SharedBase { d, local: i });
                self.bases.insert((Mem::Local(i), 0), d);
            }
        } else if !offsets.is_empty() {
            let scratch = self.global_address(scratch);
            let bytes = self.dim(&bytes)?;
            let own = self.fresh(Class::B64);
            let (a, b) = (self.widen(self.warp).into(), bytes.into());
            self.push(Op::MulAdd { ty: Type::S64, d: own, a, b, c: scratch.into() });
            for (i, offset) in offsets.iter().enumerate() {
                let offset = self.dim(offset)?;
                let base = self.binary(Binary::Add, Type::S64, Class::B64, own, offset.into());
                self.bases.insert((Mem::Local(i as u32), 0), base);
            }
        }
        self.lane_bases()?;
        Ok(param)
    }

    fn global_address(&mut self, a: Reg) -> Reg {
        let d = self.fresh(Class::B64);
        self.push(Op::ToGlobal { d, a });
        d
    }

    /// Numbers of this warp and of all warps of the grid.
    fn number_warps(&mut self) {
        let special = |e: &mut Self, s: Special| e.mov(Class::B32, Operand::Special(s));
        let (tid, block) = (special(self, Special::Tid), special(self, Special::Ctaid));
        let blocks = special(self, Special::Nctaid);
        let per_block = Operand::Int(WARPS_PER_BLOCK.into());
        self.own_warp =
            self.binary(Binary::Shr, Type::U32, Class::B32, tid, Operand::Int(LANES.ilog2().into()));
        if self.blocks {
            (self.warp, self.warps) = (block, blocks);
            return;
        }
        self.warp = self.fresh(Class::B32);
        let c = self.own_warp.into();
        self.push(Op::MulAdd { ty: Type::S32, d: self.warp, a: block.into(), b: per_block, c });
        self.warps = self.binary(Binary::Mul, Type::S32, Class::B32, blocks, per_block);
    }

    pub fn widen(&mut self, narrow: Reg) -> Reg {
        let d = self.fresh(Class::B64);
        self.push(Op::Cvt { round: None, to: Type::S64, from: Type::S32, d, a: narrow.into() });
        d
    }

    // ---- values -----------------------------------------------------------------------------

    pub fn ty(&self, v: Val) -> Emit<Ty> {
        let ty = self.func.types.get(v.0 as usize).copied();
        ty.ok_or_else(|| Fault::invalid(format!("value {} has no type", v.0)))
    }

    /// A value as an operand: constants are immediate. Not for bools.
    pub fn operand(&mut self, v: Val) -> Emit<Operand> {
        let dtype = self.ty(v)?.dtype;
        match self.constants.get(&v).copied() {
            Some(x) if dtype != DType::Bool => immediate(dtype, x),
            _ => Ok(self.reg(v)?.into()),
        }
    }

    /// The register that a value has, of 32 bits where those are enough.
    pub fn held(&self, v: Val) -> Option<Reg> {
        self.vals.get(v.0 as usize).copied().flatten()
    }

    /// A value in a register of its own type.
    pub fn reg(&mut self, v: Val) -> Emit<Reg> {
        if let Some(r) = self.held(v) {
            if r.class == class(self.ty(v)?.dtype)? {
                return Ok(r);
            }
            if let Some(wide) = self.scopes.iter().rev().find_map(|s| s.wide.get(&v)) {
                return Ok(*wide);
            }
            let wide = self.widen(r);
            if let Some(here) = self.scopes.last_mut() {
                here.wide.insert(v, wide);
            }
            return Ok(wide);
        }
        let Some(x) = self.constants.get(&v).copied() else {
            return Err(Fault::invalid(format!("value {} is used before it is defined", v.0)));
        };
        let dtype = self.ty(v)?.dtype;
        if dtype == DType::Bool {
            // there is no immediate predicate
            let zero = self.mov(Class::B32, Operand::Int(0));
            let op = if x.as_int() != 0 { Compare::Eq } else { Compare::Ne };
            return Ok(self.setp(op, Type::U32, zero, Operand::Int(0)));
        }
        Ok(self.mov(class(dtype)?, immediate(dtype, x)?))
    }

    pub fn is_scalar(&self, v: Val) -> bool {
        self.ty(v).is_ok_and(Ty::is_scalar)
    }

    /// The register of a scalar.
    pub fn scalar(&mut self, v: Val) -> Emit<Reg> {
        if !self.ty(v)?.is_scalar() {
            return Err(Fault::invalid(format!("value {} is no scalar", v.0)));
        }
        self.reg(v)
    }

    /// A scalar as an operand.
    pub fn scalar_operand(&mut self, v: Val) -> Emit<Operand> {
        if !self.ty(v)?.is_scalar() {
            return Err(Fault::invalid(format!("value {} is no scalar", v.0)));
        }
        self.operand(v)
    }

    /// The number that a value is known to be.
    pub fn known(&self, v: Val) -> Option<Scalar> {
        self.constants.get(&v).copied()
    }
    pub fn known_int(&self, v: Val) -> Option<i64> {
        self.known(v).and_then(|x| i64::try_from(x.as_int()).ok())
    }

    pub fn sym_value(&self, i: u32) -> Emit<Reg> {
        let value = self.syms.get(i as usize).copied();
        value.ok_or_else(|| Fault::invalid(format!("symbol parameter {i} does not exist")))
    }

    pub fn set(&mut self, v: Val, r: Reg) -> Emit<()> {
        let ty = self.ty(v)?;
        let narrow = ty.dtype == DType::I64 && r.class == Class::B32;
        let fits = narrow || class(ty.dtype)? == r.class;
        if ty.rows != 1 || !(ty.cols == 1 || ty.cols == LANES) || !fits {
            return Err(Fault::invalid(format!("value {} of {} x {} {}", v.0, ty.rows, ty.cols, ty.dtype)));
        }
        self.vals[v.0 as usize] = Some(r);
        Ok(())
    }

    /// What defines the value is about to be written again.
    pub fn forget(&mut self, v: Val) {
        self.vals[v.0 as usize] = None;
    }
}

/// A number as an immediate operand.
fn immediate(dtype: DType, x: Scalar) -> Emit<Operand> {
    Ok(match dtype {
        DType::F32 => Operand::F32(x.as_f64() as f32),
        DType::F64 => Operand::F64(x.as_f64()),
        d if d.is_int() && d.bytes() == 4 => Operand::Int((x.as_int() as i32).into()),
        d if d.is_int() => Operand::Int(x.as_int() as i64),
        d => return Err(Fault::invalid(format!("an immediate operand of type {d}"))),
    })
}

impl IntEmit for Emitter<'_> {
    type V = Reg;
    fn number(&mut self, x: i64) -> Reg {
        self.mov(Class::B64, Operand::Int(x))
    }
    fn sym(&mut self, sym: Sym) -> Emit<Reg> {
        self.sym_value(sym_param(self.func, sym)?)
    }
    fn add(&mut self, a: Reg, b: Reg) -> Emit<Reg> {
        Ok(self.binary(Binary::Add, Type::S64, Class::B64, a, b.into()))
    }
    fn mul(&mut self, a: Reg, b: Reg) -> Emit<Reg> {
        Ok(self.binary(Binary::Mul, Type::S64, Class::B64, a, b.into()))
    }
    fn floor_div(&mut self, a: Reg, b: Reg) -> Emit<Reg> {
        // round towards zero, then one down where the remainder is negative
        let quotient = self.binary(Binary::Div, Type::S64, Class::B64, a, b.into());
        let whole = self.mul(quotient, b)?;
        let below = self.setp(Compare::Lt, Type::S64, a, whole.into());
        let one = self.fresh(Class::B64);
        self.push(Op::Selp { ty: Type::B64, d: one, a: Operand::Int(-1), b: Operand::Int(0), p: below });
        self.add(quotient, one)
    }
    fn min(&mut self, a: Reg, b: Reg) -> Emit<Reg> {
        Ok(self.binary(Binary::Min, Type::S64, Class::B64, a, b.into()))
    }
    fn max(&mut self, a: Reg, b: Reg) -> Emit<Reg> {
        Ok(self.binary(Binary::Max, Type::S64, Class::B64, a, b.into()))
    }
}
