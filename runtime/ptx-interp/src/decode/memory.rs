//! Loads, stores, atomics and asynchronous copies (PTX ISA §9.7.9.8-9.7.9.25, §9.7.13.6-7).

use super::op::*;
use super::{Form, Res};
use crate::syntax::ast::Operand;
use crate::syntax::types::{Space, Ty};

impl Form<'_, '_> {
    pub(super) fn memory(&mut self) -> Res<Op> {
        match self.base {
            "ld" => self.access(true),
            "st" => self.access(false),
            "atom" | "red" => self.atomic(),
            "cp" => self.copy(),
            _ => {
                // hints: no effect on results
                self.mods.clear();
                self.address(0)?;
                Ok(Op::Nop)
            }
        }
    }

    /// `[reg+offset]`, `[variable+offset]` or `[constant]`; gives the space of a variable too.
    pub(super) fn address(&mut self, i: usize) -> Res<(Addr, Option<Space>)> {
        let Some(Operand::Address(base, offset)) = self.ops.get(i) else {
            return Err(format!("operand {} must be an address", i + 1));
        };
        let Some(name) = base else { return Ok((Addr { base: Slot::None, offset: *offset }, None)) };
        if let Some((space, at)) = self.names.symbol(name) {
            return Ok((Addr { base: Slot::None, offset: (at as i64).wrapping_add(*offset) }, Some(space)));
        }
        let base = self.names.source(&Operand::Name(name.clone()), Ty::U64)?;
        Ok((Addr { base, offset: *offset }, None))
    }

    /// Cache operators, eviction priorities and prefetch sizes: parsed, without effect (§9.7.9.1-2).
    fn cache_hints(&mut self) {
        for h in [
            "ca",
            "cg",
            "cs",
            "lu",
            "cv",
            "wb",
            "wt",
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
            "L2::64B",
            "L2::128B",
            "L2::256B",
        ] {
            self.has(h);
        }
    }

    fn semantics(&mut self) -> Sem {
        let sem = match self.one_of(&["weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"])
        {
            None | Some("weak") => Sem::Weak,
            Some("acquire") => Sem::Acquire,
            Some("release") => Sem::Release,
            Some("acq_rel") => Sem::AcqRel,
            _ => Sem::Relaxed,
        };
        self.one_of(&["cta", "cluster", "gpu", "sys"]);
        sem
    }

    fn access(&mut self, load: bool) -> Res<Op> {
        let sem = self.semantics();
        let space = self.state_space();
        let non_coherent = load && self.has("nc");
        self.cache_hints();
        let n = match self.one_of(&["v2", "v4", "v8"]) {
            None => 1,
            Some("v2") => 2,
            Some("v4") => 4,
            Some(_) => 8,
        };
        let ty = self.ty()?;
        if ty == Ty::Pred
            || ty == Ty::B128
            || matches!(ty, Ty::F16x2 | Ty::BF16x2 | Ty::BF16 | Ty::F16 | Ty::TF32)
        {
            return Err("no such type".into());
        }
        if ty.bytes() * n > 16 {
            return Err("more than 16 bytes per lane".into());
        }
        self.arity(2)?;
        let (addr, of_symbol) = self.address(usize::from(load))?;
        let space = match (space, of_symbol) {
            (Some(s), Some(t)) if s != t && !(s == Space::Const && t == Space::Global) => {
                return Err(format!("a variable in .{t} used as .{s}"));
            }
            (Some(s), _) => s,
            (None, Some(s)) if s != Space::Global => return Err("a generic access by name".into()),
            (None, _) => Space::Generic,
        };
        if space == Space::Param && (!load || addr.base != Slot::None) {
            return Err("parameters are read by name".into());
        }
        if non_coherent && space != Space::Global {
            return Err("`.nc` only with .global".into());
        }
        let value = &self.ops[usize::from(!load)];
        let items: Vec<&Operand> = match value {
            Operand::Vector(v) => v.iter().collect(),
            one => vec![one],
        };
        if items.len() != n as usize {
            return Err("the vector has another length".into());
        }
        let mut regs = [Slot::None; 8];
        for (r, item) in regs.iter_mut().zip(items) {
            *r = if load { self.names.destination(item)? } else { self.names.source(item, ty)? };
            let wide = matches!(*r, Slot::R64(_));
            if (*r != Slot::None) && (ty.bits() == 64 && !wide || ty.bits() == 32 && wide && !load) {
                return Err("a register of another width".into());
            }
        }
        let first = match value {
            Operand::Vector(v) => v.first(),
            one => Some(one),
        };
        let narrow = first.and_then(|o| self.names.type_of(o)).is_some_and(|t| t.bits() == 16);
        let access = Access { space, addr, ty, n, regs, sem, non_coherent, narrow };
        Ok(if load { Op::Ld(access) } else { Op::St(access) })
    }

    fn atomic(&mut self) -> Res<Op> {
        let sem = match self.semantics() {
            Sem::Weak => Sem::Relaxed,
            s => s,
        };
        let red = self.base == "red";
        let space = self.state_space().unwrap_or(Space::Generic);
        let op = match self.one_of(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]) {
            Some("add") => Rmw::Add,
            Some("min") => Rmw::Min,
            Some("max") => Rmw::Max,
            Some("and") => Rmw::And,
            Some("or") => Rmw::Or,
            Some("xor") => Rmw::Xor,
            Some("exch") => Rmw::Exch,
            Some("cas") => Rmw::Cas,
            Some("inc") => Rmw::Inc,
            Some("dec") => Rmw::Dec,
            _ => return Err("no operation".into()),
        };
        self.has("noftz");
        let n = match self.one_of(&["v2", "v4"]) {
            None => 1,
            Some("v2") => 2,
            Some(_) => 4,
        };
        let ty = self.ty()?;
        let ok = match op {
            Rmw::Add => matches!(
                ty,
                Ty::U32 | Ty::S32 | Ty::U64 | Ty::F32 | Ty::F64 | Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2
            ),
            Rmw::Min | Rmw::Max => matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64),
            Rmw::And | Rmw::Or | Rmw::Xor | Rmw::Exch => matches!(ty, Ty::B32 | Ty::B64),
            Rmw::Cas => matches!(ty, Ty::B16 | Ty::B32 | Ty::B64),
            Rmw::Inc | Rmw::Dec => ty == Ty::U32,
        };
        if !ok || (n > 1 && (op != Rmw::Add || space != Space::Global || ty.bits() > 32)) {
            return Err("no such type".into());
        }
        if red && matches!(op, Rmw::Exch | Rmw::Cas) {
            return Err("no such reduction".into());
        }
        let first = usize::from(!red);
        self.arity(first + 2 + usize::from(op == Rmw::Cas))?;
        let (addr, _) = self.address(first)?;
        let mut atomic =
            Atomic { space, addr, op, ty, n, d: [Slot::None; 4], a: [Slot::None; 4], b: Slot::None, sem };
        let list = |o: &Operand| match o {
            Operand::Vector(v) => v.clone(),
            one => vec![one.clone()],
        };
        if !red {
            for (slot, o) in atomic.d.iter_mut().zip(list(&self.ops[0])) {
                *slot = self.names.destination(&o)?;
            }
        }
        let sources = list(&self.ops[first + 1]);
        if sources.len() != n as usize {
            return Err("the vector has another length".into());
        }
        for (slot, o) in atomic.a.iter_mut().zip(sources) {
            *slot = self.names.source(&o, ty)?;
        }
        if op == Rmw::Cas {
            atomic.b = self.src(first + 2, ty)?;
        }
        if matches!(ty, Ty::F32 | Ty::F64 | Ty::F16 | Ty::BF16) {
            self.flops = n;
        }
        Ok(Op::Atom(atomic))
    }

    /// §9.7.9.25: `cp.async`, `cp.async.commit_group`, `cp.async.wait_group`, `cp.async.wait_all`.
    fn copy(&mut self) -> Res<Op> {
        if !self.has("async") {
            return Err("only cp.async".into());
        }
        if self.has("commit_group") {
            self.arity(0)?;
            return Ok(Op::CpCommit);
        }
        if self.has("wait_all") {
            self.arity(0)?;
            return Ok(Op::CpWait { n: u32::MAX });
        }
        if self.has("wait_group") {
            self.arity(1)?;
            let n = self.constant_operand(0).ok_or("the group count must be a constant")?;
            return Ok(Op::CpWait { n });
        }
        let cg = self.one_of(&["ca", "cg"]).ok_or("no .ca or .cg")? == "cg";
        if !(self.has("shared") || self.has("shared::cta")) || !self.has("global") {
            return Err("only from .global to .shared".into());
        }
        self.cache_hints();
        if !(3..=4).contains(&self.ops.len()) {
            return Err("wrong number of operands".into());
        }
        let bytes = self.constant_operand(2).ok_or("the size must be a constant")?;
        if !(bytes == 16 || (!cg && matches!(bytes, 4 | 8))) {
            return Err("a size of 16 (.cg), or 4, 8, 16 (.ca)".into());
        }
        let src_bytes = if self.ops.len() == 4 { Slot::R32(self.src32(3, Ty::U32)?) } else { Slot::None };
        Ok(Op::CpAsync { dst: self.address(0)?.0, src: self.address(1)?.0, bytes, src_bytes })
    }
}
