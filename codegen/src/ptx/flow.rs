//! Statements: loops, branches, checks.

use super::func::{Emitter, Scope, class, untyped};
use super::isa::{Binary, Class, Compare, Op, Operand, Reg, Space, Type};
use super::range::{Range, fits};
use crate::Fault;
use crate::error::Emit;
use ir::DType;
use ir::loops::{Addr, Block, Func, Inst, Level, Mem, Stmt, Stride, Val};
use std::collections::{BTreeSet, HashSet};

/// What the emitter has to know of the accesses of a function beforehand.
#[derive(Default)]
pub(super) struct Accesses {
    reads: HashSet<Mem>,
    writes: HashSet<Mem>,
    /// Element sizes of the operands that are read.
    sizes: HashSet<usize>,
    /// Numbers of valid columns of vectors.
    counts: HashSet<Val>,
    /// Regions and elements from lane to lane of their vector accesses.
    steps: BTreeSet<(Mem, i64)>,
}

impl Accesses {
    pub fn of(func: &Func) -> Accesses {
        let mut found = Accesses::default();
        found.walk(func, &func.body);
        let size = |m: &Mem| match m {
            Mem::Buf(i) => func.bufs.get(*i as usize).map(|b| b.dtype.bytes()),
            Mem::Local(_) => None,
        };
        found.sizes = found.reads.iter().filter_map(size).collect();
        found
    }

    /// The function both reads and writes the region.
    pub fn shared(&self, mem: Mem) -> bool {
        self.reads.contains(&mem) && self.writes.contains(&mem)
    }

    /// An operand of elements of `bytes` bytes is read: one that is written may lie in the same memory.
    pub fn reads_elements_of(&self, bytes: usize) -> bool {
        self.sizes.contains(&bytes)
    }

    /// Regions, and how many elements the lanes of vector accesses to them are apart.
    pub fn steps(&self) -> Vec<(Mem, i64)> {
        self.steps.iter().copied().collect()
    }

    fn walk(&mut self, func: &Func, block: &Block) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let { val, inst: Inst::Load(addr) } => {
                    self.reads.insert(addr.mem);
                    self.count(func, *val, addr);
                }
                Stmt::Let { inst: Inst::Gather { mem, .. }, .. } => {
                    self.reads.insert(*mem);
                }
                Stmt::Store { addr, value } => {
                    self.writes.insert(addr.mem);
                    self.count(func, *value, addr);
                }
                Stmt::Scatter { mem, .. } => {
                    self.writes.insert(*mem);
                }
                _ => {}
            }
            stmt.blocks().into_iter().for_each(|b| self.walk(func, b));
        }
    }

    fn count(&mut self, func: &Func, of: Val, addr: &Addr) {
        let wide = |v: Val| func.types.get(v.0 as usize).is_some_and(|ty| !ty.is_scalar());
        if wide(of) {
            self.counts.extend(addr.cols_valid.filter(|v| !wide(*v)));
        }
        if let (true, false, Stride::Const(c)) = (wide(of), wide(addr.index), addr.col) {
            self.steps.insert((addr.mem, c));
        }
    }
}

/// How a loop counts.
struct Count {
    lo: Operand,
    hi: Operand,
    step: Operand,
    /// Of the counter, where it is held in 32 bits.
    range: Option<Range>,
}

/// The variable of a loop and the register that counts.
struct Counter {
    var: Val,
    reg: Reg,
    ty: Type,
}

/// Loads that should be under way at once in a loop, and the most copies of its body.
const IN_FLIGHT: usize = 16;
/// However many loads an iteration has itself.
const LEAST_COPIES: usize = 4;
/// Instructions of all copies of a body, at most.
const UNROLLED: usize = 160;

impl Emitter<'_> {
    pub fn stmts(&mut self, stmts: &[Stmt]) -> Emit<()> {
        // stores that wait for their neighbours
        let mut held: Vec<(Addr, Val)> = Vec::new();
        for stmt in stmts {
            let reads_held = |inst: &Inst| match inst {
                Inst::Load(a) => held.first().is_some_and(|h| h.0.mem == a.mem),
                Inst::Gather { mem, .. } => held.first().is_some_and(|h| h.0.mem == *mem),
                _ => false,
            };
            match stmt {
                Stmt::Let { inst, .. } if !reads_held(inst) => {}
                Stmt::Store { addr, value } if !held.is_empty() && self.joins(&held, addr, *value) => {}
                _ => self.store_held(&mut held)?,
            }
            match stmt {
                Stmt::Store { addr, value } if self.joins(&held, addr, *value) => held.push((*addr, *value)),
                stmt => self.stmt(stmt)?,
            }
            if held.len() == 4 {
                self.store_held(&mut held)?;
            }
        }
        self.store_held(&mut held)
    }

    /// The statements of a block, and the values it yields for `regs`; what it computes is not known behind it.
    fn block(&mut self, block: &Block, regs: &[Reg]) -> Emit<()> {
        self.scopes.push(Scope::default());
        let done = self.stmts(&block.stmts).and_then(|()| self.assign(regs, &block.yields));
        self.scopes.pop();
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
            Stmt::Let { val, inst: Inst::Load(addr) } if self.fours.contains_key(val) => {
                match (self.held(*val), self.fours.get(val).copied()) {
                    (None, Some(group)) => self.load_four(group, *val, addr),
                    _ => Ok(()),
                }
            }
            Stmt::Let { val, inst } => {
                let r = self.define_inst(*val, inst)?;
                self.set(*val, r)?;
                if self.accesses.counts.contains(val) {
                    let below = self.lanes_below(r);
                    self.below.insert(*val, below);
                }
                Ok(())
            }
            Stmt::For { var, body, parallel: Some(Level::Warp), .. } => {
                self.ranges.insert(*var, (0, i64::from(self.threads / super::LANES) - 1));
                self.set(*var, self.own_warp)?;
                self.block(body, &[])
            }
            Stmt::For { var, hi, body, parallel: Some(_), .. } => {
                let count = self.count_warps(*hi)?;
                self.for_loop(*var, count, &[], &[], body)
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel: None } => {
                let count = self.count(*lo, *hi, *step)?;
                self.for_loop(*var, count, carries, results, body)
            }
            Stmt::While { carries, results, cond, body } => self.while_loop(carries, results, cond, body),
            Stmt::If { cond, then, otherwise, results } => self.branch(*cond, then, otherwise, results),
            Stmt::Store { addr, value } => self.store(addr, *value),
            Stmt::Scatter { mem, index, value, mask } => self.scatter(*mem, *index, *value, *mask),
            // other warps hide latency
            Stmt::Prefetch { .. } => Ok(()),
            Stmt::Barrier(Level::Warp) => {
                self.push(Op::BarSync);
                Ok(())
            }
            Stmt::Barrier(_) | Stmt::Pipe(_) => Err(Fault::invalid("barriers and pipes between warps")),
            Stmt::Check { ok, origin, value, limit } => {
                let (ok, value, limit) = (self.scalar(*ok)?, self.scalar(*value)?, self.scalar(*limit)?);
                self.check(ok, 1 + i64::from(origin.0), value, limit);
                Ok(())
            }
        }
    }

    /// The register of what an instruction defines; indices that fit take 32 bits.
    fn define_inst(&mut self, val: Val, inst: &Inst) -> Emit<Reg> {
        if self.ty(val)?.dtype == DType::I64
            && let Some(range) = self.range_of(inst)
        {
            self.ranges.insert(val, range);
            if fits(range)
                && let Some(r) = self.narrow_inst(inst)?
            {
                return Ok(r);
            }
        }
        self.inst(val, inst)
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
        results.iter().zip(regs).try_for_each(|(v, r)| self.set(*v, *r))
    }

    /// How a sequential loop counts: in 32 bits where its bounds and the step behind the last one fit.
    fn count(&mut self, lo: Val, hi: Val, step: i64) -> Emit<Count> {
        let by = Operand::Int(step);
        let (from, to) = (self.range(lo).zip(self.narrow(lo)), self.range(hi).zip(self.narrow(hi)));
        if let (Some((least, lo)), Some((most, hi))) = (from, to)
            && most.1.checked_add(step).is_some_and(|end| end <= i64::from(i32::MAX))
        {
            let range = Some((least.0, least.0.max(most.1 - 1)));
            return Ok(Count { lo, hi, step: by, range });
        }
        Ok(Count { lo: self.scalar_operand(lo)?, hi: self.scalar_operand(hi)?, step: by, range: None })
    }

    /// The parallel loop: every warp takes its own number, and then what lies all warps further.
    fn count_warps(&mut self, hi: Val) -> Emit<Count> {
        let (warp, warps) = (self.warp, self.warps);
        // a launch has less than 2^28 warps
        if let Some((range, narrow)) = self.range(hi).zip(self.narrow(hi))
            && range.1 <= i64::from(i32::MAX) - (1 << 28)
        {
            let range = Some((0, range.1.max(1) - 1));
            return Ok(Count { lo: warp.into(), hi: narrow, step: warps.into(), range });
        }
        let hi = self.scalar_operand(hi)?;
        let (lo, step) = (self.widen(warp).into(), self.widen(warps).into());
        Ok(Count { lo, hi, step, range: None })
    }

    fn for_loop(
        &mut self,
        var: Val,
        Count { lo, hi, step, range }: Count,
        carries: &[(Val, Val)],
        results: &[Val],
        body: &Block,
    ) -> Emit<()> {
        let regs = self.carry(carries)?;
        let (class, ty) = match range {
            Some(_) => (Class::B32, Type::S32),
            None => (Class::B64, Type::S64),
        };
        self.ranges.extend(range.map(|r| (var, r)));
        let counter = Counter { var, reg: self.mov(class, lo), ty };
        let (Operand::Int(by), Some(most)) = (step, self.copies(body)) else {
            self.repeat(&counter, lo, hi, step, 1, &regs, body)?;
            return self.define(results, &regs);
        };
        let trips = match (lo, hi) {
            (Operand::Int(lo), Operand::Int(hi)) => Some((hi.saturating_sub(lo).max(1) - 1) / by + 1),
            _ => None,
        };
        // so many copies at a time, then what is left
        let most = trips.map_or(most, |n| (n - 1) / ((n - 1) / most + 1) + 1);
        let (last, mut rest) = ((most - 1) * by, lo);
        let until = match hi {
            Operand::Int(hi) => Operand::Int(hi.saturating_sub(last)),
            hi => self.binary(Binary::Sub, ty, class, hi, Operand::Int(last)).into(),
        };
        if !matches!((lo, until), (Operand::Int(lo), Operand::Int(until)) if lo >= until) {
            self.repeat(&counter, lo, until, step, most, &regs, body)?;
            rest = counter.reg.into();
        }
        if trips.is_none_or(|n| n % most != 0) {
            self.repeat(&counter, rest, hi, step, 1, &regs, body)?;
        }
        self.define(results, &regs)
    }

    /// How many iterations of an innermost loop are done at a time, where that has the loads of all of them under way
    /// before the first is used: where the loop reads the operands of the kernel and writes nothing. ptxas does not
    /// unroll such loops itself, and each iteration would wait for memory.
    fn copies(&self, body: &Block) -> Option<i64> {
        let mut loads = 0;
        for stmt in &body.stmts {
            let Stmt::Let { val, inst } = stmt else { return None };
            // four neighbours are one access
            let first = self.fours.get(val).is_none_or(|group| group[0] == *val);
            loads += match inst {
                Inst::Load(Addr { mem: Mem::Buf(_), .. }) | Inst::Gather { mem: Mem::Buf(_), .. } => {
                    usize::from(first)
                }
                _ => 0,
            };
        }
        let most = (IN_FLIGHT / loads.max(1)).max(LEAST_COPIES).min(UNROLLED / body.stmts.len().max(1));
        (loads > 0 && most > 1).then(|| 1 << most.ilog2())
    }

    /// `do { body; .. } while (counter < hi)` with so many copies of the body in a round; entered only where there is one, so
    /// that the test sits at the end. `lo`: what the counter holds, where that is known.
    #[allow(clippy::too_many_arguments)] // two call sites' parameters, spelled out
    fn repeat(
        &mut self,
        counter: &Counter,
        lo: Operand,
        hi: Operand,
        step: Operand,
        copies: i64,
        regs: &[Reg],
        body: &Block,
    ) -> Emit<()> {
        let Counter { var, reg, ty } = *counter;
        let (head, exit) = (self.label(), self.label());
        if !matches!((lo, hi), (Operand::Int(lo), Operand::Int(hi)) if lo < hi) {
            let enters = self.setp(Compare::Lt, ty, reg, hi);
            self.push_if(enters, false, Op::Bra(exit));
        }
        self.push(Op::Label(head));
        for copy in 0..copies {
            let at = match (step, copy) {
                (Operand::Int(step), 1..) => {
                    self.binary(Binary::Add, ty, reg.class, reg, Operand::Int(copy * step))
                }
                _ => reg,
            };
            // each has registers of its own
            for stmt in &body.stmts {
                if let Stmt::Let { val, .. } = stmt {
                    self.forget(*val);
                }
            }
            self.scopes.push(Scope::default());
            let done = self.set(var, at).and_then(|()| self.block(body, regs));
            self.scopes.pop();
            done?;
        }
        let by = match step {
            Operand::Int(step) => Operand::Int(step * copies),
            step => step,
        };
        self.push(Op::Binary { op: Binary::Add, ty, d: reg, a: reg.into(), b: by });
        let more = self.setp(Compare::Lt, ty, reg, hi);
        self.push_if(more, true, Op::Bra(head));
        self.push(Op::Label(exit));
        Ok(())
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
        self.scopes.push(Scope::default());
        self.stmts(&cond.stmts)?;
        let test = self.scalar(*test)?;
        self.push_if(test, false, Op::Bra(exit));
        self.block(body, &regs)?;
        self.scopes.pop();
        self.push(Op::Bra(head));
        self.push(Op::Label(exit));
        self.define(results, &regs)
    }

    fn branch(&mut self, cond: Val, then: &Block, other: &Block, results: &[Val]) -> Emit<()> {
        let cond = self.scalar(cond)?;
        let mut regs = Vec::with_capacity(results.len());
        for v in results {
            let class = class(self.ty(*v)?.dtype)?;
            regs.push(self.fresh(class));
        }
        let (no, exit) = (self.label(), self.label());
        self.push_if(cond, false, Op::Bra(no));
        self.block(then, &regs)?;
        self.push(Op::Bra(exit));
        self.push(Op::Label(no));
        self.block(other, &regs)?;
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
            self.push_if(
                first,
                true,
                Op::St { space: Space::Global, ty: Type::B64, base, offset, a: a.into() },
            );
        }
        self.push(Op::Label(fine));
    }
}
