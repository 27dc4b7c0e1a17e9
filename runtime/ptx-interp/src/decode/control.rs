//! Comparison and selection, moves, control flow and the instructions of warps
//! (PTX ISA §9.7.6, §9.7.9.1-6, §9.7.12, §9.7.13, §9.7.14 votes and shuffles).

use super::op::*;
use super::{Form, Res};
use crate::num::lanes::*;
use crate::num::math::{f, g};
use crate::syntax::ast::Operand;
use crate::syntax::types::{Space, Ty};

impl Form<'_, '_> {
    pub(super) fn predicate_logic(&mut self) -> Res<Op> {
        self.arity(3)?;
        let d = self.pred_dst(&self.ops[0])?;
        let logic = match self.base {
            "and" => Logic::And,
            "or" => Logic::Or,
            _ => Logic::Xor,
        };
        Ok(Op::P { logic, d, a: self.pred_src(1)?, b: self.pred_src(2)? })
    }

    pub(super) fn select(&mut self) -> Res<Op> {
        match self.base {
            "selp" => {
                let ty = self.ty()?;
                self.arity(4)?;
                if ty.bits() < 16 {
                    return Err("no such type".into());
                }
                let p = self.pred_src(3)?;
                Ok(if ty.bits() == 64 {
                    Op::Sel64 { d: self.dst64(0)?, a: self.src64(1, ty)?, b: self.src64(2, ty)?, p }
                } else {
                    Op::Sel32 { d: self.dst32(0)?, a: self.src32(1, ty)?, b: self.src32(2, ty)?, p }
                })
            }
            "setp" => self.setp(),
            other => Err(format!("unknown opcode `{other}`")),
        }
    }

    /// §9.7.6.2 `setp.cmp[.bool][.ftz].type p[|q], a, b[, c]`; q is the negated comparison joined likewise.
    fn setp(&mut self) -> Res<Op> {
        const ORDERS: [&str; 18] = [
            "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
            "geu", "num", "nan",
        ];
        let cmp = self.one_of(&ORDERS).ok_or("no comparison")?;
        let logic = self.one_of(&["and", "or", "xor"]);
        let ftz = self.has("ftz");
        let ty = self.ty()?;
        let (p, q) = match self.ops.first() {
            Some(Operand::Pair(a, b)) => (self.pred_dst(a)?, self.pred_dst(b)?),
            Some(op) => (self.pred_dst(op)?, NO_PRED),
            None => return Err("too few operands".into()),
        };
        let join = match logic {
            None => {
                self.arity(3)?;
                None
            }
            Some(l) => {
                self.arity(4)?;
                let logic = match l {
                    "and" => Logic::And,
                    "or" => Logic::Or,
                    _ => Logic::Xor,
                };
                Some((logic, self.pred_src(3)?))
            }
        };
        if ftz && ty != Ty::F32 {
            return Err("`.ftz` only with f32".into());
        }
        let unknown = || format!("no comparison `.{cmp}` of this type");
        if ty.bits() == 64 {
            let (a, b) = (self.src64(1, ty)?, self.src64(2, ty)?);
            let f = if ty == Ty::F64 { float64(cmp) } else { int64(cmp, ty) };
            return Ok(Op::C64 { f: f.ok_or_else(unknown)?, a, b, p, q, join });
        }
        let (a, b) = (self.src32(1, ty)?, self.src32(2, ty)?);
        let f = match ty {
            Ty::F32 => float32(cmp, ftz),
            Ty::F16 => float16(cmp),
            Ty::BF16 => float_b16(cmp),
            _ if ty.is_float() => None,
            _ => int32(cmp, ty),
        };
        Ok(Op::C32 { f: f.ok_or_else(unknown)?, a, b, p, q, join })
    }

    pub(super) fn moves(&mut self) -> Res<Op> {
        match self.base {
            "mov" => self.mov(),
            "cvta" => {
                let to = self.has("to");
                let space = self.state_space().ok_or("no state space")?;
                let ty = self.ty()?;
                self.arity(2)?;
                if ty != Ty::U64 {
                    return Err("only .u64".into());
                }
                let window = crate::mem::window(space);
                let (d, a) = (self.dst64(0)?, self.src64(1, ty)?);
                let Slot::R64(b) = self.names.constant(window, Ty::U64) else {
                    return Err("no constant".into());
                };
                let f: D2 = if to {
                    lanes!(L64; a: L64, b: L64; a.wrapping_sub(b))
                } else {
                    lanes!(L64; a: L64, b: L64; a.wrapping_add(b))
                };
                Ok(Op::D2 { f, d, a, b })
            }
            _ => {
                let space = self.state_space().ok_or("no state space")?;
                self.arity(2)?;
                Ok(Op::IsSpace { p: self.pred_dst(&self.ops[0])?, a: self.src64(1, Ty::U64)?, space })
            }
        }
    }

    pub(super) fn state_space(&mut self) -> Option<Space> {
        let names = ["global", "shared", "shared::cta", "local", "const", "param", "param::entry"];
        self.one_of(&names).and_then(Space::parse)
    }

    fn mov(&mut self) -> Res<Op> {
        let ty = self.ty()?;
        self.arity(2)?;
        if let Operand::Name(n) = &self.ops[1]
            && matches!(n.as_str(), "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo")
        {
            return Ok(Op::Clock { d: self.dst(0)? });
        }
        match (&self.ops[0], &self.ops[1]) {
            (Operand::Vector(_), Operand::Vector(_)) => Err("a move between vectors".into()),
            (Operand::Vector(parts), _) => {
                let (d, n, bits) = self.parts(parts, ty, false)?;
                Ok(Op::Unpack { d, a: self.src(1, ty)?, n, bits })
            }
            (_, Operand::Vector(parts)) => {
                let (a, n, bits) = self.parts(parts, ty, true)?;
                Ok(Op::Pack { d: self.dst_of(0, ty)?, a, n, bits })
            }
            _ if ty == Ty::Pred => {
                let a = self.pred_src(1)?;
                Ok(Op::P { logic: Logic::And, d: self.pred_dst(&self.ops[0])?, a, b: a })
            }
            _ if ty.bits() == 64 => {
                let f: D1 = lanes!(L64; a: L64; a);
                Ok(Op::D1 { f, d: self.dst64(0)?, a: self.src64(1, ty)? })
            }
            _ if ty.bits() >= 16 => {
                let f: F1 = lanes!(L32; a: L32; a);
                Ok(Op::F1 { f, d: self.dst32(0)?, a: self.src32(1, ty)? })
            }
            _ => Err("no such type".into()),
        }
    }

    /// The registers of `{a, b, ..}` that together have the width of `ty`.
    fn parts(&mut self, parts: &[Operand], ty: Ty, sources: bool) -> Res<([Slot; 4], u32, u32)> {
        let n = parts.len() as u32;
        if !(n == 2 || n == 4) || !ty.bits().is_multiple_of(n) || ty.bits() / n < 8 || ty.bits() > 64 {
            return Err("the parts do not make up the whole".into());
        }
        let bits = ty.bits() / n;
        let part_ty = [Ty::B8, Ty::B16, Ty::B32][bits.trailing_zeros() as usize - 3];
        let mut out = [Slot::None; 4];
        for (o, p) in out.iter_mut().zip(parts) {
            if let Some(t) = self.names.type_of(p)
                && t.bits() != bits
                && bits >= 16
            {
                return Err("a part has another width".into());
            }
            *o = if sources { self.names.source(p, part_ty)? } else { self.names.destination(p)? };
        }
        Ok((out, n, bits))
    }

    pub(super) fn control(&mut self) -> Res<Op> {
        match self.base {
            "bra" => {
                self.has("uni");
                self.arity(1)?;
                let Operand::Name(label) = &self.ops[0] else { return Err("expected a label".into()) };
                let target = *self.labels.get(label).ok_or_else(|| format!("no label `{label}`"))?;
                Ok(Op::Bra { target })
            }
            "ret" | "exit" => {
                self.has("uni");
                self.arity(0)?;
                Ok(Op::Exit)
            }
            "trap" => Ok(Op::Trap),
            "bar" | "barrier" => self.barrier(),
            "shfl" => self.shfl(),
            "vote" => self.vote(),
            "match" => {
                let all = self.one_of(&["any", "all"]).ok_or("no .any or .all")? == "all";
                self.synchronous()?;
                let ty = self.ty()?;
                self.arity(3)?;
                let (d, p) = self.reg_and_pred()?;
                Ok(Op::Match { all, d, p, a: self.src(1, ty)?, mask: self.src32(2, Ty::B32)? })
            }
            "redux" => {
                self.synchronous()?;
                let op = self.one_of(&["add", "min", "max", "and", "or", "xor"]).ok_or("no operation")?;
                let ty = self.ty()?;
                self.arity(3)?;
                let op = match (op, ty) {
                    ("add", Ty::U32 | Ty::S32) => Redux::Add,
                    ("min", Ty::U32) => Redux::MinU,
                    ("max", Ty::U32) => Redux::MaxU,
                    ("min", Ty::S32) => Redux::MinS,
                    ("max", Ty::S32) => Redux::MaxS,
                    ("and", Ty::B32) => Redux::And,
                    ("or", Ty::B32) => Redux::Or,
                    ("xor", Ty::B32) => Redux::Xor,
                    _ => return Err("no such type".into()),
                };
                Ok(Op::Redux { op, d: self.dst32(0)?, a: self.src32(1, ty)?, mask: self.src32(2, Ty::B32)? })
            }
            "elect" => {
                self.synchronous()?;
                self.arity(2)?;
                let (d, p) = self.reg_and_pred()?;
                Ok(Op::Elect { d, p, mask: self.src32(1, Ty::B32)? })
            }
            "activemask" => {
                self.has("b32");
                self.arity(1)?;
                Ok(Op::ActiveMask { d: self.dst32(0)? })
            }
            "membar" => {
                self.one_of(&["gl", "cta", "sys"]).ok_or("no scope")?;
                self.arity(0)?;
                Ok(Op::Fence)
            }
            "fence" => {
                self.one_of(&["acq_rel", "sc"]);
                self.one_of(&["cta", "cluster", "gpu", "sys"]).ok_or("no scope")?;
                self.arity(0)?;
                Ok(Op::Fence)
            }
            "nanosleep" => {
                self.has("u32");
                self.arity(1)?;
                Ok(Op::Sleep)
            }
            "griddepcontrol" => {
                self.one_of(&["launch_dependents", "wait"]).ok_or("no action")?;
                Ok(Op::Nop)
            }
            "pmevent" => Ok(Op::Nop),
            other => Err(format!("unknown opcode `{other}`")),
        }
    }

    fn synchronous(&mut self) -> Res<()> {
        if self.has("sync") { Ok(()) } else { Err("only the .sync form".into()) }
    }

    /// `d|p` or `d`.
    fn reg_and_pred(&mut self) -> Res<(u32, u32)> {
        let reg = |form: &mut Self, op: &Operand| match form.names.destination(op)? {
            Slot::R32(s) => Ok(s),
            Slot::None => Ok(NO_REG),
            Slot::R64(_) => Err("the result has 32 bits".to_string()),
        };
        match &self.ops[0] {
            Operand::Pair(a, b) => Ok((reg(self, a)?, self.pred_dst(b)?)),
            op => Ok((reg(self, op)?, NO_PRED)),
        }
    }

    /// §9.7.13.1 `bar`, `barrier`; §9.7.13.2 `bar.warp.sync`.
    fn barrier(&mut self) -> Res<Op> {
        if self.has("warp") {
            self.synchronous()?;
            self.arity(1)?;
            return Ok(Op::WarpSync { mask: self.src32(0, Ty::B32)? });
        }
        self.has("cta");
        let aligned = self.has("aligned") || self.base == "bar";
        let red = self.has("red");
        let kind = if red {
            match self.one_of(&["popc", "and", "or"]).ok_or("no operation")? {
                "popc" => BarKind::Popc,
                "and" => BarKind::All,
                _ => BarKind::Any,
            }
        } else if self.one_of(&["sync", "arrive"]).ok_or("no .sync, .arrive or .red")? == "sync" {
            BarKind::Sync
        } else {
            BarKind::Arrive
        };
        let always = PredSrc { slot: self.names.pred_true(), negated: false };
        let mut bar = Bar {
            kind,
            aligned,
            id: Slot::None,
            threads: Slot::None,
            pred: always,
            d: Slot::None,
            d_pred: NO_PRED,
        };
        let mut at = 0;
        if red {
            if kind == BarKind::Popc {
                if !self.has("u32") {
                    return Err("popc has type .u32".into());
                }
                bar.d = Slot::R32(self.dst32(0)?);
            } else {
                if !self.has("pred") {
                    return Err("and, or have type .pred".into());
                }
                bar.d_pred = self.pred_dst(&self.ops[0])?;
            }
            at = 1;
        }
        let rest = self.ops.len() - at - usize::from(red);
        if !(1..=2).contains(&rest) || (kind == BarKind::Arrive && rest != 2) {
            return Err("wrong number of operands".into());
        }
        bar.id = self.src(at, Ty::U32)?;
        if rest == 2 {
            bar.threads = self.src(at + 1, Ty::U32)?;
        }
        if red {
            bar.pred = self.pred_src(self.ops.len() - 1)?;
        }
        Ok(Op::Bar(bar))
    }

    fn shfl(&mut self) -> Res<Op> {
        self.synchronous()?;
        let kind = match self.one_of(&["up", "down", "bfly", "idx"]).ok_or("no direction")? {
            "up" => ShflKind::Up,
            "down" => ShflKind::Down,
            "bfly" => ShflKind::Bfly,
            _ => ShflKind::Idx,
        };
        if !self.has("b32") {
            return Err("only .b32".into());
        }
        self.arity(5)?;
        let (d, p) = self.reg_and_pred()?;
        let (a, b) = (self.src32(1, Ty::B32)?, self.src32(2, Ty::B32)?);
        Ok(Op::Shfl { kind, d, p, a, b, c: self.src32(3, Ty::B32)?, mask: self.src32(4, Ty::B32)? })
    }

    fn vote(&mut self) -> Res<Op> {
        self.synchronous()?;
        let kind = match self.one_of(&["all", "any", "uni", "ballot"]).ok_or("no kind of vote")? {
            "all" => VoteKind::All,
            "any" => VoteKind::Any,
            "uni" => VoteKind::Uni,
            _ => VoteKind::Ballot,
        };
        let ty = self.ty()?;
        self.arity(3)?;
        let (mut p, mut d) = (NO_PRED, NO_REG);
        match (kind, ty) {
            (VoteKind::Ballot, Ty::B32) => d = self.dst32(0)?,
            (_, Ty::Pred) if kind != VoteKind::Ballot => p = self.pred_dst(&self.ops[0])?,
            _ => return Err("no such type".into()),
        }
        Ok(Op::Vote { kind, p, d, a: self.pred_src(1)?, mask: self.src32(2, Ty::B32)? })
    }
}

fn int32(cmp: &str, ty: Ty) -> Option<C32> {
    Some(match (cmp, ty.is_signed(), ty.bits()) {
        ("eq", _, _) => lanes!(L32; a: L32, b: L32; u32::from(a == b)),
        ("ne", _, _) => lanes!(L32; a: L32, b: L32; u32::from(a != b)),
        _ if ty.is_bits() => return None,
        ("lt" | "lo", false, _) => lanes!(L32; a: L32, b: L32; u32::from(a < b)),
        ("le" | "ls", false, _) => lanes!(L32; a: L32, b: L32; u32::from(a <= b)),
        ("gt" | "hi", false, _) => lanes!(L32; a: L32, b: L32; u32::from(a > b)),
        ("ge" | "hs", false, _) => lanes!(L32; a: L32, b: L32; u32::from(a >= b)),
        ("lt", true, 32) => lanes!(L32; a: L32, b: L32; u32::from((a as i32) < b as i32)),
        ("le", true, 32) => lanes!(L32; a: L32, b: L32; u32::from(a as i32 <= b as i32)),
        ("gt", true, 32) => lanes!(L32; a: L32, b: L32; u32::from(a as i32 > b as i32)),
        ("ge", true, 32) => lanes!(L32; a: L32, b: L32; u32::from(a as i32 >= b as i32)),
        ("lt", true, 16) => lanes!(L32; a: L32, b: L32; u32::from((a as u16 as i16) < b as u16 as i16)),
        ("le", true, 16) => lanes!(L32; a: L32, b: L32; u32::from(a as u16 as i16 <= b as u16 as i16)),
        ("gt", true, 16) => lanes!(L32; a: L32, b: L32; u32::from(a as u16 as i16 > b as u16 as i16)),
        ("ge", true, 16) => lanes!(L32; a: L32, b: L32; u32::from(a as u16 as i16 >= b as u16 as i16)),
        _ => return None,
    })
}

fn int64(cmp: &str, ty: Ty) -> Option<C64> {
    Some(match (cmp, ty.is_signed()) {
        ("eq", _) => lanes!(L32; a: L64, b: L64; u32::from(a == b)),
        ("ne", _) => lanes!(L32; a: L64, b: L64; u32::from(a != b)),
        _ if ty.is_bits() => return None,
        ("lt" | "lo", false) => lanes!(L32; a: L64, b: L64; u32::from(a < b)),
        ("le" | "ls", false) => lanes!(L32; a: L64, b: L64; u32::from(a <= b)),
        ("gt" | "hi", false) => lanes!(L32; a: L64, b: L64; u32::from(a > b)),
        ("ge" | "hs", false) => lanes!(L32; a: L64, b: L64; u32::from(a >= b)),
        ("lt", true) => lanes!(L32; a: L64, b: L64; u32::from((a as i64) < b as i64)),
        ("le", true) => lanes!(L32; a: L64, b: L64; u32::from(a as i64 <= b as i64)),
        ("gt", true) => lanes!(L32; a: L64, b: L64; u32::from(a as i64 > b as i64)),
        ("ge", true) => lanes!(L32; a: L64, b: L64; u32::from(a as i64 >= b as i64)),
        _ => return None,
    })
}

/// The fourteen comparisons of floats: ordered ones are false, unordered ones true when an operand is NaN.
macro_rules! float_compare {
    ($cmp:expr, $T:ty, $get:expr) => {
        Some(match $cmp {
            "eq" => lanes!(L32; a: $T, b: $T; u32::from($get(a) == $get(b))),
            "ne" => lanes!(L32; a: $T, b: $T; u32::from($get(a) < $get(b) || $get(a) > $get(b))),
            "lt" => lanes!(L32; a: $T, b: $T; u32::from($get(a) < $get(b))),
            "le" => lanes!(L32; a: $T, b: $T; u32::from($get(a) <= $get(b))),
            "gt" => lanes!(L32; a: $T, b: $T; u32::from($get(a) > $get(b))),
            "ge" => lanes!(L32; a: $T, b: $T; u32::from($get(a) >= $get(b))),
            "equ" => lanes!(L32; a: $T, b: $T; u32::from(!($get(a) < $get(b) || $get(a) > $get(b)))),
            "neu" => lanes!(L32; a: $T, b: $T; u32::from($get(a) != $get(b))),
            "ltu" => lanes!(L32; a: $T, b: $T; u32::from(!($get(a) >= $get(b)))),
            "leu" => lanes!(L32; a: $T, b: $T; u32::from(!($get(a) > $get(b)))),
            "gtu" => lanes!(L32; a: $T, b: $T; u32::from(!($get(a) <= $get(b)))),
            "geu" => lanes!(L32; a: $T, b: $T; u32::from(!($get(a) < $get(b)))),
            "num" => lanes!(L32; a: $T, b: $T; u32::from(!($get(a).is_nan() || $get(b).is_nan()))),
            "nan" => lanes!(L32; a: $T, b: $T; u32::from($get(a).is_nan() || $get(b).is_nan())),
            _ => return None,
        })
    };
}

#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn float32(cmp: &str, ftz: bool) -> Option<C32> {
    #[inline(always)]
    fn flushed(x: u32) -> f32 {
        f(crate::num::math::z(x))
    }
    if ftz { float_compare!(cmp, L32, flushed) } else { float_compare!(cmp, L32, f) }
}

#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn float64(cmp: &str) -> Option<C64> {
    float_compare!(cmp, L64, g)
}

#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn float16(cmp: &str) -> Option<C32> {
    use crate::num::formats::h2f;
    float_compare!(cmp, L32, h2f)
}

#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn float_b16(cmp: &str) -> Option<C32> {
    use crate::num::formats::b2f;
    float_compare!(cmp, L32, b2f)
}
