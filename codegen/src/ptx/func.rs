//! Functions and statements: entry, loops, branches, checks.

use super::isa::{Binary, Class, Compare, Entry, Inst as PtxInst, Op, Operand, Reg, Special, Type};
use super::{LANES, WARPS_PER_BLOCK};
use crate::Fault;
use crate::entry::{IntEmit, check_entry, local_offsets, sym_param};
use crate::error::Emit;
use ir::dtype::Scalar;
use ir::loops::{Block, Func, Inst, Mem, Stmt, Ty, Val};
use ir::{DType, Sym};
use std::collections::{HashMap, HashSet};

/// Emission of one function.
pub(super) struct Emitter<'a> {
    pub func: &'a Func,
    body: Vec<PtxInst>,
    /// Registers of each class so far.
    counts: [u32; Class::ALL.len()],
    labels: u32,
    vals: Vec<Option<Reg>>,
    /// Constants are immediate operands.
    constants: HashMap<Val, Scalar>,
    /// Base address of each region: as it is, and moved to the lane's own element.
    pub bases: HashMap<Mem, (Reg, Option<Reg>)>,
    /// Addresses computed in the enclosing blocks: region, index, whether of the lane's own element.
    pub addresses: Vec<HashMap<(Mem, Val, bool), Reg>>,
    /// Regions that are both read and written.
    pub shared: HashSet<Mem>,
    syms: Vec<Reg>,
    status: Reg,
    /// Lane number, and whether it is 0.
    pub lane: Reg,
    pub first_lane: Reg,
    /// Number of this warp and of all warps, 64 bits.
    warp: Reg,
    warps: Reg,
}

/// The kernel of `func`.
pub(super) fn emit(func: &Func) -> Emit<Entry> {
    check_entry(func)?;
    let none = Reg { class: Class::B64, id: 0 };
    let mut e = Emitter {
        func,
        body: Vec::new(),
        counts: [0; Class::ALL.len()],
        labels: 0,
        vals: vec![None; func.types.len()],
        constants: HashMap::new(),
        bases: HashMap::new(),
        addresses: vec![HashMap::new()],
        shared: shared(func),
        syms: Vec::new(),
        status: none,
        lane: none,
        first_lane: none,
        warp: none,
        warps: none,
    };
    let params = e.entry()?;
    e.stmts(&func.body.stmts)?;
    e.push(Op::Ret);
    Ok(Entry { name: func.name.clone(), params, threads_per_block: LANES * WARPS_PER_BLOCK, body: e.body })
}

/// Regions that the function both reads and writes.
fn shared(func: &Func) -> HashSet<Mem> {
    fn walk(block: &Block, reads: &mut HashSet<Mem>, writes: &mut HashSet<Mem>) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let { inst: Inst::Load(addr), .. } => {
                    reads.insert(addr.mem);
                }
                Stmt::Let { inst: Inst::Gather { mem, .. }, .. } => {
                    reads.insert(*mem);
                }
                Stmt::Store { addr, .. } => {
                    writes.insert(addr.mem);
                }
                Stmt::Scatter { mem, .. } => {
                    writes.insert(*mem);
                }
                _ => {}
            }
            stmt.blocks().into_iter().for_each(|b| walk(b, reads, writes));
        }
    }
    let (mut reads, mut writes) = (HashSet::new(), HashSet::new());
    walk(&func.body, &mut reads, &mut writes);
    reads.intersection(&writes).copied().collect()
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
    fn label(&mut self) -> u32 {
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
            self.bases.insert(Mem::Buf(i as u32), (base, None));
        }
        for _ in 0..self.func.syms.len() {
            let sym = next(self);
            self.syms.push(sym);
        }
        let (scratch, status) = (next(self), next(self));
        self.status = self.global_address(status);
        self.lane = self.mov(Class::B32, Operand::Special(Special::Lane));
        self.first_lane = self.setp(Compare::Eq, Type::U32, self.lane, Operand::Int(0));
        self.number_warps();
        let (offsets, bytes) = local_offsets(self.func);
        if !offsets.is_empty() {
            let scratch = self.global_address(scratch);
            let bytes = self.dim(&bytes)?;
            let own = self.fresh(Class::B64);
            let (a, b) = (self.warp.into(), bytes.into());
            self.push(Op::MulAdd { ty: Type::S64, d: own, a, b, c: scratch.into() });
            for (i, offset) in offsets.iter().enumerate() {
                let offset = self.dim(offset)?;
                let base = self.binary(Binary::Add, Type::S64, Class::B64, own, offset.into());
                self.bases.insert(Mem::Local(i as u32), (base, None));
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
        let special = |e: &mut Self, s: Special| {
            let r = e.mov(Class::B32, Operand::Special(s));
            let wide = e.fresh(Class::B64);
            e.push(Op::Cvt { round: None, to: Type::U64, from: Type::U32, d: wide, a: r.into() });
            wide
        };
        let (tid, block) = (special(self, Special::Tid), special(self, Special::Ctaid));
        let blocks = special(self, Special::Nctaid);
        let per_block = Operand::Int(WARPS_PER_BLOCK.into());
        let own = self.binary(Binary::Shr, Type::U64, Class::B64, tid, Operand::Int(LANES.ilog2().into()));
        self.warp = self.fresh(Class::B64);
        self.push(Op::MulAdd { ty: Type::S64, d: self.warp, a: block.into(), b: per_block, c: own.into() });
        self.warps = self.binary(Binary::Mul, Type::S64, Class::B64, blocks, per_block);
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

    /// A value in a register.
    pub fn reg(&mut self, v: Val) -> Emit<Reg> {
        if let Some(r) = self.vals.get(v.0 as usize).copied().flatten() {
            return Ok(r);
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

    /// The register of a scalar.
    pub fn scalar(&mut self, v: Val) -> Emit<Reg> {
        if !self.ty(v)?.is_scalar() {
            return Err(Fault::invalid(format!("value {} is no scalar", v.0)));
        }
        self.reg(v)
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

    fn set(&mut self, v: Val, r: Reg) -> Emit<()> {
        let ty = self.ty(v)?;
        if ty.rows != 1 || !(ty.cols == 1 || ty.cols == LANES) || class(ty.dtype)? != r.class {
            return Err(Fault::invalid(format!("value {} of {} x {} {}", v.0, ty.rows, ty.cols, ty.dtype)));
        }
        self.vals[v.0 as usize] = Some(r);
        Ok(())
    }

    // ---- statements -------------------------------------------------------------------------

    fn stmts(&mut self, stmts: &[Stmt]) -> Emit<()> {
        stmts.iter().try_for_each(|s| self.stmt(s))
    }

    /// The statements of a block; addresses that they compute are not known behind it.
    fn block(&mut self, block: &Block) -> Emit<()> {
        self.addresses.push(HashMap::new());
        let done = self.stmts(&block.stmts);
        self.addresses.pop();
        done
    }

    fn stmt(&mut self, stmt: &Stmt) -> Emit<()> {
        match stmt {
            Stmt::Let { val, inst: Inst::Const(x) } => {
                self.constants.insert(*val, *x);
                Ok(())
            }
            Stmt::Let { val, inst: Inst::Splat(v) } if self.known(*v).is_some() => {
                let known = self.known(*v);
                self.constants.extend(known.map(|x| (*val, x)));
                Ok(())
            }
            Stmt::Let { val, inst } => {
                let r = self.inst(*val, inst)?;
                self.set(*val, r)
            }
            Stmt::For { var, hi, body, parallel: Some(_), .. } => {
                let range = (self.warp, self.scalar(*hi)?, self.warps.into());
                self.for_loop(*var, range, &[], &[], body)
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel: None } => {
                let range = (self.scalar(*lo)?, self.scalar(*hi)?, Operand::Int(*step));
                if *step <= 0 {
                    return Err(Fault::invalid("a loop that does not count up"));
                }
                self.for_loop(*var, range, carries, results, body)
            }
            Stmt::While { carries, results, cond, body } => self.while_loop(carries, results, cond, body),
            Stmt::If { cond, then, otherwise, results } => self.branch(*cond, then, otherwise, results),
            Stmt::Store { addr, value } => self.store(addr, *value),
            Stmt::Scatter { mem, index, value, mask } => self.scatter(*mem, *index, *value, *mask),
            // other warps hide latency
            Stmt::Prefetch { .. } => Ok(()),
            Stmt::Barrier(_) | Stmt::Pipe(_) => Err(Fault::invalid("barriers and pipes between warps")),
            Stmt::Check { ok, origin, value, limit } => {
                let (ok, value, limit) = (self.scalar(*ok)?, self.scalar(*value)?, self.scalar(*limit)?);
                self.check(ok, 1 + i64::from(origin.0), value, limit);
                Ok(())
            }
        }
    }

    /// Registers of their own for carried values, with what they hold at first.
    fn carry(&mut self, carries: &[(Val, Val)]) -> Emit<Vec<Reg>> {
        let mut regs = Vec::with_capacity(carries.len());
        for (_, init) in carries {
            let init = self.reg(*init)?;
            regs.push(self.mov(init.class, init.into()));
        }
        for ((inside, _), r) in carries.iter().zip(&regs) {
            self.set(*inside, *r)?;
        }
        Ok(regs)
    }

    /// Gives the carried registers their next values, all at once.
    fn assign(&mut self, regs: &[Reg], yields: &[Val]) -> Emit<()> {
        if regs.len() != yields.len() {
            return Err(Fault::invalid("a block yields other values than are carried"));
        }
        let mut next = Vec::with_capacity(regs.len());
        for (r, y) in regs.iter().zip(yields) {
            let y = self.reg(*y)?;
            // one carried register may be the next value of another
            let overwritten = y != *r && regs.contains(&y);
            next.push(if overwritten { self.mov(y.class, y.into()) } else { y });
        }
        for (d, a) in regs.iter().zip(next) {
            if *d != a {
                self.push(Op::Mov { ty: untyped(d.class), d: *d, a: a.into() });
            }
        }
        Ok(())
    }

    fn define(&mut self, results: &[Val], regs: &[Reg]) -> Emit<()> {
        if results.len() != regs.len() {
            return Err(Fault::invalid("results that do not fit the carried values"));
        }
        results.iter().zip(regs).try_for_each(|(v, r)| self.set(*v, *r))
    }

    fn for_loop(
        &mut self,
        var: Val,
        (lo, hi, step): (Reg, Reg, Operand),
        carries: &[(Val, Val)],
        results: &[Val],
        body: &Block,
    ) -> Emit<()> {
        let regs = self.carry(carries)?;
        let counter = self.mov(Class::B64, lo.into());
        let (head, exit) = (self.label(), self.label());
        // entered only if there is an iteration, so that the test sits at the end of the body
        let enters = self.setp(Compare::Lt, Type::S64, counter, hi.into());
        self.push_if(enters, false, Op::Bra(exit));
        self.push(Op::Label(head));
        self.set(var, counter)?;
        self.block(body)?;
        self.assign(&regs, &body.yields)?;
        let (ty, a) = (Type::S64, counter.into());
        self.push(Op::Binary { op: Binary::Add, ty, d: counter, a, b: step });
        let more = self.setp(Compare::Lt, Type::S64, counter, hi.into());
        self.push_if(more, true, Op::Bra(head));
        self.push(Op::Label(exit));
        self.define(results, &regs)
    }

    fn while_loop(
        &mut self,
        carries: &[(Val, Val)],
        results: &[Val],
        cond: &Block,
        body: &Block,
    ) -> Emit<()> {
        let [test] = cond.yields.as_slice() else {
            return Err(Fault::invalid("the condition of a while loop yields one value"));
        };
        let regs = self.carry(carries)?;
        let (head, exit) = (self.label(), self.label());
        self.push(Op::Label(head));
        self.addresses.push(HashMap::new());
        self.stmts(&cond.stmts)?;
        let test = self.scalar(*test)?;
        self.push_if(test, false, Op::Bra(exit));
        self.block(body)?;
        self.addresses.pop();
        self.assign(&regs, &body.yields)?;
        self.push(Op::Bra(head));
        self.push(Op::Label(exit));
        self.define(results, &regs)
    }

    fn branch(&mut self, cond: Val, then: &Block, other: &Block, results: &[Val]) -> Emit<()> {
        if then.yields.len() != results.len() || other.yields.len() != results.len() {
            return Err(Fault::invalid("the blocks of a branch yield other than its results"));
        }
        let cond = self.scalar(cond)?;
        let mut regs = Vec::with_capacity(results.len());
        for v in results {
            let class = class(self.ty(*v)?.dtype)?;
            regs.push(self.fresh(class));
        }
        let (no, exit) = (self.label(), self.label());
        self.push_if(cond, false, Op::Bra(no));
        self.block(then)?;
        self.assign(&regs, &then.yields)?;
        self.push(Op::Bra(exit));
        self.push(Op::Label(no));
        self.block(other)?;
        self.assign(&regs, &other.yields)?;
        self.push(Op::Label(exit));
        self.define(results, &regs)
    }

    /// The first error of any warp claims the status word and then fills in the rest.
    fn check(&mut self, ok: Reg, flag: i64, value: Reg, limit: Reg) {
        let fine = self.label();
        self.push_if(ok, true, Op::Bra(fine));
        let old = self.mov(Class::B64, Operand::Int(-1));
        let (base, compare, swap) = (self.status, Operand::Int(0), Operand::Int(flag));
        self.push_if(self.first_lane, true, Op::Cas { d: old, base, compare, swap });
        let first = self.setp(Compare::Eq, Type::S64, old, Operand::Int(0));
        for (offset, a) in [(8, value), (16, limit)] {
            self.push_if(first, true, Op::St { ty: Type::B64, base, offset, a: a.into() });
        }
        self.push(Op::Label(fine));
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
