//! Integer arithmetic, logic and shifts (PTX ISA §9.7.1, §9.7.8, §9.7.9.7).

use super::op::{Op, Slot};
use super::{Form, Res};
use crate::num::lanes::*;
use crate::num::math;
use crate::syntax::types::Ty;

/// Sign-extends the low 16 bits.
#[inline(always)]
fn s16(x: u32) -> i32 {
    i32::from(x as u16 as i16)
}

#[inline(always)]
fn h(x: i32) -> u32 {
    x as u32 & 0xffff
}

impl Form<'_, '_> {
    pub(super) fn integer(&mut self) -> Res<Op> {
        match self.base {
            "mul" | "mad" => self.multiply(),
            "mul24" | "mad24" => self.multiply24(),
            "add" | "sub" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" => self.binary(),
            "abs" | "neg" | "not" | "cnot" | "brev" => self.unary(),
            "popc" | "clz" | "bfind" => self.count(),
            "shl" | "shr" => self.shift(),
            _ => self.bits(),
        }
    }

    fn binary(&mut self) -> Res<Op> {
        if matches!(self.base, "and" | "or" | "xor") && self.has("pred") {
            return self.predicate_logic();
        }
        let sat = self.has("sat");
        let packed = self.one_of(&["u16x2", "s16x2"]);
        self.arity(3)?;
        if let Some(p) = packed {
            return self.packed16(p == "s16x2");
        }
        let ty = self.ty()?;
        let bits_only = matches!(self.base, "and" | "or" | "xor");
        if bits_only != ty.is_bits() || ty.bits() < 16 {
            return Err(format!("`{}` has no such type", self.base));
        }
        if sat && (ty != Ty::S32 || !matches!(self.base, "add" | "sub")) {
            return Err("`.sat` only with add.s32 and sub.s32".into());
        }
        let signed = ty.is_signed();
        if ty.bits() == 64 {
            let (d, a, b) = (self.dst64(0)?, self.src64(1, ty)?, self.src64(2, ty)?);
            let f: D2 = match (self.base, signed) {
                ("add", _) => lanes!(L64; a: L64, b: L64; a.wrapping_add(b)),
                ("sub", _) => lanes!(L64; a: L64, b: L64; a.wrapping_sub(b)),
                ("and", _) => lanes!(L64; a: L64, b: L64; a & b),
                ("or", _) => lanes!(L64; a: L64, b: L64; a | b),
                ("xor", _) => lanes!(L64; a: L64, b: L64; a ^ b),
                ("min", false) => lanes!(L64; a: L64, b: L64; a.min(b)),
                ("max", false) => lanes!(L64; a: L64, b: L64; a.max(b)),
                ("min", true) => lanes!(L64; a: L64, b: L64; (a as i64).min(b as i64) as u64),
                ("max", true) => lanes!(L64; a: L64, b: L64; (a as i64).max(b as i64) as u64),
                ("div", false) => lanes!(L64; a: L64, b: L64; a.checked_div(b).unwrap_or(u64::MAX)),
                ("rem", false) => lanes!(L64; a: L64, b: L64; a.checked_rem(b).unwrap_or(a)),
                ("div", true) => {
                    lanes!(L64; a: L64, b: L64; if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 })
                }
                _ => {
                    lanes!(L64; a: L64, b: L64; if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 })
                }
            };
            return Ok(Op::D2 { f, d, a, b });
        }
        let (d, a, b) = (self.dst32(0)?, self.src32(1, ty)?, self.src32(2, ty)?);
        let half = ty.bits() == 16;
        let f: F2 = match (self.base, half, signed) {
            ("add", false, _) if sat => {
                lanes!(L32; a: L32, b: L32; (a as i32).saturating_add(b as i32) as u32)
            }
            ("sub", false, _) if sat => {
                lanes!(L32; a: L32, b: L32; (a as i32).saturating_sub(b as i32) as u32)
            }
            ("add", false, _) => lanes!(L32; a: L32, b: L32; a.wrapping_add(b)),
            ("sub", false, _) => lanes!(L32; a: L32, b: L32; a.wrapping_sub(b)),
            ("add", true, _) => lanes!(L32; a: L32, b: L32; a.wrapping_add(b) & 0xffff),
            ("sub", true, _) => lanes!(L32; a: L32, b: L32; a.wrapping_sub(b) & 0xffff),
            ("and", _, _) => lanes!(L32; a: L32, b: L32; a & b),
            ("or", _, _) => lanes!(L32; a: L32, b: L32; a | b),
            ("xor", _, _) => lanes!(L32; a: L32, b: L32; a ^ b),
            ("min", _, false) => lanes!(L32; a: L32, b: L32; a.min(b)),
            ("max", _, false) => lanes!(L32; a: L32, b: L32; a.max(b)),
            ("min", false, true) => lanes!(L32; a: L32, b: L32; (a as i32).min(b as i32) as u32),
            ("max", false, true) => lanes!(L32; a: L32, b: L32; (a as i32).max(b as i32) as u32),
            ("min", true, true) => lanes!(L32; a: L32, b: L32; h(s16(a).min(s16(b)))),
            ("max", true, true) => lanes!(L32; a: L32, b: L32; h(s16(a).max(s16(b)))),
            ("div", false, false) => lanes!(L32; a: L32, b: L32; a.checked_div(b).unwrap_or(u32::MAX)),
            ("div", true, false) => lanes!(L32; a: L32, b: L32; a.checked_div(b).unwrap_or(0xffff)),
            ("rem", _, false) => lanes!(L32; a: L32, b: L32; a.checked_rem(b).unwrap_or(a)),
            ("div", false, true) => {
                lanes!(L32; a: L32, b: L32; if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 })
            }
            ("rem", false, true) => {
                lanes!(L32; a: L32, b: L32; if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 })
            }
            ("div", true, true) => {
                lanes!(L32; a: L32, b: L32; if b == 0 { 0xffff } else { h(s16(a).wrapping_div(s16(b))) })
            }
            _ => lanes!(L32; a: L32, b: L32; if b == 0 { a } else { h(s16(a).wrapping_rem(s16(b))) }),
        };
        Ok(Op::F2 { f, d, a, b, imm: 0 })
    }

    /// `add`, `min`, `max` of two 16-bit integers in a register (sm_90).
    fn packed16(&mut self, signed: bool) -> Res<Op> {
        let (d, a, b) = (self.dst32(0)?, self.src32(1, Ty::B32)?, self.src32(2, Ty::B32)?);
        let f: F2 = match (self.base, signed) {
            ("add", _) => lanes!(L32; a: L32, b: L32; (a.wrapping_add(b) & 0xffff)
                | ((a >> 16).wrapping_add(b >> 16) << 16)),
            ("min", true) => {
                lanes!(L32; a: L32, b: L32; h(s16(a).min(s16(b))) | h(s16(a >> 16).min(s16(b >> 16))) << 16)
            }
            ("max", true) => {
                lanes!(L32; a: L32, b: L32; h(s16(a).max(s16(b))) | h(s16(a >> 16).max(s16(b >> 16))) << 16)
            }
            ("min", false) => {
                lanes!(L32; a: L32, b: L32; (a & 0xffff).min(b & 0xffff) | (a >> 16).min(b >> 16) << 16)
            }
            ("max", false) => {
                lanes!(L32; a: L32, b: L32; (a & 0xffff).max(b & 0xffff) | (a >> 16).max(b >> 16) << 16)
            }
            _ => return Err("no packed form".into()),
        };
        Ok(Op::F2 { f, d, a, b, imm: 0 })
    }

    fn unary(&mut self) -> Res<Op> {
        if self.base == "not" && self.has("pred") {
            self.arity(2)?;
            let d = self.pred_dst(&self.ops[0])?;
            let mut a = self.pred_src(1)?;
            a.negated = !a.negated;
            return Ok(Op::P { logic: super::op::Logic::And, d, a, b: a });
        }
        let ty = self.ty()?;
        self.arity(2)?;
        let fits = match self.base {
            "abs" | "neg" => ty.is_signed(),
            _ => ty.is_bits(),
        };
        if !fits || ty.bits() < 16 || (self.base == "brev" && ty.bits() == 16) {
            return Err(format!("`{}` has no such type", self.base));
        }
        if ty.bits() == 64 {
            let (d, a) = (self.dst64(0)?, self.src64(1, ty)?);
            let f: D1 = match self.base {
                "abs" => lanes!(L64; a: L64; (a as i64).wrapping_abs() as u64),
                "neg" => lanes!(L64; a: L64; a.wrapping_neg()),
                "not" => lanes!(L64; a: L64; !a),
                "cnot" => lanes!(L64; a: L64; u64::from(a == 0)),
                _ => lanes!(L64; a: L64; a.reverse_bits()),
            };
            return Ok(Op::D1 { f, d, a });
        }
        let (d, a) = (self.dst32(0)?, self.src32(1, ty)?);
        let f: F1 = match (self.base, ty.bits()) {
            ("abs", 32) => lanes!(L32; a: L32; (a as i32).wrapping_abs() as u32),
            ("neg", 32) => lanes!(L32; a: L32; a.wrapping_neg()),
            ("not", 32) => lanes!(L32; a: L32; !a),
            ("abs", _) => lanes!(L32; a: L32; h(s16(a).wrapping_abs())),
            ("neg", _) => lanes!(L32; a: L32; a.wrapping_neg() & 0xffff),
            ("not", _) => lanes!(L32; a: L32; !a & 0xffff),
            ("cnot", _) => lanes!(L32; a: L32; u32::from(a == 0)),
            _ => lanes!(L32; a: L32; a.reverse_bits()),
        };
        Ok(Op::F1 { f, d, a })
    }

    fn count(&mut self) -> Res<Op> {
        let shift_amount = self.base == "bfind" && self.has("shiftamt");
        let ty = self.ty()?;
        self.arity(2)?;
        let fits = if self.base == "bfind" { ty.is_int() } else { ty.is_bits() };
        if !fits || ty.bits() < 32 {
            return Err(format!("`{}` has no such type", self.base));
        }
        let d = self.dst32(0)?;
        if self.base == "bfind" {
            let a = self.src(1, ty)?;
            let imm = ty.bits() | u32::from(ty.is_signed()) << 8 | u32::from(shift_amount) << 9;
            return Ok(self.scalar(
                |a, _, _, imm| {
                    let width = imm & 0xff;
                    let r = math::bfind(a, width, imm >> 8 & 1 == 1);
                    if imm >> 9 == 1 && r != u64::from(u32::MAX) { u64::from(width) - 1 - r } else { r }
                },
                Slot::R32(d),
                &[a],
                imm,
            ));
        }
        if ty.bits() == 64 {
            let a = self.src64(1, ty)?;
            let f: N1 = match self.base {
                "popc" => lanes!(L32; a: L64; a.count_ones()),
                _ => lanes!(L32; a: L64; a.leading_zeros()),
            };
            return Ok(Op::N1 { f, d, a });
        }
        let a = self.src32(1, ty)?;
        let f: F1 = match self.base {
            "popc" => lanes!(L32; a: L32; a.count_ones()),
            _ => lanes!(L32; a: L32; a.leading_zeros()),
        };
        Ok(Op::F1 { f, d, a })
    }

    fn multiply(&mut self) -> Res<Op> {
        let part = self.one_of(&["lo", "hi", "wide"]).ok_or("no .lo, .hi or .wide")?;
        let ty = self.ty()?;
        let mad = self.base == "mad";
        self.arity(if mad { 4 } else { 3 })?;
        if !ty.is_int() || ty.bits() < 16 {
            return Err("no such type".into());
        }
        let signed = ty.is_signed();
        match (part, ty.bits()) {
            ("wide", 32) => {
                let (d, a, b) = (self.dst64(0)?, self.src32(1, ty)?, self.src32(2, ty)?);
                if mad {
                    let c = self.src64(3, if signed { Ty::S64 } else { Ty::U64 })?;
                    let f: W3 = if signed {
                        lanes!(L64; a: L32, b: L32, c: L64; (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64)
                    } else {
                        lanes!(L64; a: L32, b: L32, c: L64; (u64::from(a) * u64::from(b)).wrapping_add(c))
                    };
                    return Ok(Op::W3 { f, d, a, b, c });
                }
                let f: W2 = if signed {
                    lanes!(L64; a: L32, b: L32; (i64::from(a as i32) * i64::from(b as i32)) as u64)
                } else {
                    lanes!(L64; a: L32, b: L32; u64::from(a) * u64::from(b))
                };
                Ok(Op::W2 { f, d, a, b })
            }
            ("wide", 64) => Err("no 64-bit .wide".into()),
            (_, 64) => {
                let (d, a, b) = (self.dst64(0)?, self.src64(1, ty)?, self.src64(2, ty)?);
                let f: D3 = match (part, signed) {
                    ("lo", _) => lanes!(L64; a: L64, b: L64, c: L64; a.wrapping_mul(b).wrapping_add(c)),
                    (_, true) => lanes!(L64; a: L64, b: L64, c: L64;
                        ((i128::from(a as i64) * i128::from(b as i64)) >> 64).wrapping_add(c as i128) as u64),
                    _ => lanes!(L64; a: L64, b: L64, c: L64;
                        (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)),
                };
                let c = if mad { self.src64(3, ty)? } else { self.zero64() };
                Ok(Op::D3 { f, d, a, b, c })
            }
            (_, bits) => {
                let (d, a, b) = (self.dst32(0)?, self.src32(1, ty)?, self.src32(2, ty)?);
                let wide16 = part == "wide";
                let c_ty = if wide16 { Ty::B32 } else { ty };
                let c = if mad { self.src32(3, c_ty)? } else { self.zero32() };
                let f: F3 = match (part, bits, signed) {
                    ("lo", 32, _) => lanes!(L32; a: L32, b: L32, c: L32; a.wrapping_mul(b).wrapping_add(c)),
                    ("hi", 32, true) => lanes!(L32; a: L32, b: L32, c: L32;
                        ((i64::from(a as i32) * i64::from(b as i32)) >> 32).wrapping_add(i64::from(c as i32)) as u32),
                    ("hi", 32, false) => lanes!(L32; a: L32, b: L32, c: L32;
                        (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)),
                    ("wide", _, true) => {
                        lanes!(L32; a: L32, b: L32, c: L32; ((s16(a) * s16(b)) as u32).wrapping_add(c))
                    }
                    ("wide", _, false) => lanes!(L32; a: L32, b: L32, c: L32; (a * b).wrapping_add(c)),
                    ("lo", _, _) => {
                        lanes!(L32; a: L32, b: L32, c: L32; a.wrapping_mul(b).wrapping_add(c) & 0xffff)
                    }
                    (_, _, true) => {
                        lanes!(L32; a: L32, b: L32, c: L32; ((s16(a) * s16(b)) as u32 >> 16).wrapping_add(c) & 0xffff)
                    }
                    _ => lanes!(L32; a: L32, b: L32, c: L32; ((a * b) >> 16).wrapping_add(c) & 0xffff),
                };
                Ok(Op::F3 { f, d, a, b, c, imm: 0 })
            }
        }
    }

    fn zero32(&mut self) -> u32 {
        match self.names.constant(0, Ty::B32) {
            Slot::R32(s) => s,
            _ => unreachable!("a 32-bit constant has a 32-bit slot"),
        }
    }

    fn zero64(&mut self) -> u32 {
        match self.names.constant(0, Ty::B64) {
            Slot::R64(s) => s,
            _ => unreachable!("a 64-bit constant has a 64-bit slot"),
        }
    }

    fn multiply24(&mut self) -> Res<Op> {
        let hi = self.one_of(&["lo", "hi"]).ok_or("no .lo or .hi")? == "hi";
        let ty = self.ty()?;
        let mad = self.base == "mad24";
        self.arity(if mad { 4 } else { 3 })?;
        if ty.bits() != 32 || !ty.is_int() {
            return Err("no such type".into());
        }
        let (d, a, b) = (self.dst32(0)?, self.src32(1, ty)?, self.src32(2, ty)?);
        let c = if mad { self.src32(3, ty)? } else { self.zero32() };
        let f: F3 = if ty.is_signed() {
            lanes!(imm; L32; a: L32, b: L32, c: L32; (((i64::from((a << 8) as i32 >> 8)
                * i64::from((b << 8) as i32 >> 8)) >> imm) as u32).wrapping_add(c))
        } else {
            lanes!(imm; L32; a: L32, b: L32, c: L32; (((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> imm) as u32)
                .wrapping_add(c))
        };
        Ok(Op::F3 { f, d, a, b, c, imm: if hi { 16 } else { 0 } })
    }

    fn shift(&mut self) -> Res<Op> {
        let ty = self.ty()?;
        self.arity(3)?;
        if ty.bits() < 16 || (self.base == "shl" && !ty.is_bits()) || ty.is_float() {
            return Err("no such type".into());
        }
        let arithmetic = ty.is_signed();
        let b = self.src32(2, Ty::U32)?;
        if ty.bits() == 64 {
            let (d, a) = (self.dst64(0)?, self.src64(1, ty)?);
            let f: Sh = match (self.base, arithmetic) {
                ("shl", _) => lanes!(L64; a: L64, b: L32; if b > 63 { 0 } else { a << b }),
                (_, true) => lanes!(L64; a: L64, b: L32; ((a as i64) >> b.min(63)) as u64),
                _ => lanes!(L64; a: L64, b: L32; if b > 63 { 0 } else { a >> b }),
            };
            return Ok(Op::Sh { f, d, a, b });
        }
        let (d, a) = (self.dst32(0)?, self.src32(1, ty)?);
        let f: F2 = match (self.base, ty.bits(), arithmetic) {
            ("shl", 32, _) => lanes!(L32; a: L32, b: L32; if b > 31 { 0 } else { a << b }),
            ("shl", _, _) => lanes!(L32; a: L32, b: L32; if b > 15 { 0 } else { a << b & 0xffff }),
            (_, 32, true) => lanes!(L32; a: L32, b: L32; ((a as i32) >> b.min(31)) as u32),
            (_, _, true) => lanes!(L32; a: L32, b: L32; h(s16(a) >> b.min(15))),
            _ => lanes!(L32; a: L32, b: L32; if b > 31 { 0 } else { a >> b }),
        };
        Ok(Op::F2 { f, d, a, b, imm: 0 })
    }

    fn bits(&mut self) -> Res<Op> {
        match self.base {
            "shf" => {
                let left = self.one_of(&["l", "r"]).ok_or("no direction")? == "l";
                let clamp = self.one_of(&["clamp", "wrap"]).ok_or("no .wrap or .clamp")? == "clamp";
                self.b32()?;
                let (d, a, b, c) = self.four()?;
                let f: F3 = match (left, clamp) {
                    (true, false) => lanes!(L32; a: L32, b: L32, c: L32;
                        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32),
                    (true, true) => lanes!(L32; a: L32, b: L32, c: L32;
                        ((u64::from(b) << 32 | u64::from(a)) << c.min(32) >> 32) as u32),
                    (false, false) => lanes!(L32; a: L32, b: L32, c: L32;
                        ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32),
                    (false, true) => lanes!(L32; a: L32, b: L32, c: L32;
                        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32),
                };
                Ok(Op::F3 { f, d, a, b, c, imm: 0 })
            }
            "lop3" => {
                self.b32()?;
                self.arity(5)?;
                let super::Operand::Int(table) = self.ops[4] else {
                    return Err("the table must be a constant".into());
                };
                let imm =
                    u32::try_from(table).ok().filter(|t| *t < 256).ok_or("the table must have 8 bits")?;
                let (d, a, b, c) = (
                    self.dst32(0)?,
                    self.src32(1, Ty::B32)?,
                    self.src32(2, Ty::B32)?,
                    self.src32(3, Ty::B32)?,
                );
                let f: F3 = lanes!(imm; L32; a: L32, b: L32, c: L32; math::lop3(a, b, c, imm));
                Ok(Op::F3 { f, d, a, b, c, imm })
            }
            "prmt" => {
                let mode = self.mods.iter().rposition(|m| m.is_some_and(|m| m != "b32"));
                let mode = mode.and_then(|i| self.mods[i].take());
                self.b32()?;
                let (d, a, b, c) = self.four()?;
                let f: F3 = match mode {
                    None => lanes!(L32; a: L32, b: L32, c: L32; math::prmt(a, b, c)),
                    Some(m) => prmt_mode(m)?,
                };
                Ok(Op::F3 { f, d, a, b, c, imm: 0 })
            }
            "bfe" => {
                let ty = self.ty()?;
                self.arity(4)?;
                if ty.bits() < 32 || !ty.is_int() {
                    return Err("no such type".into());
                }
                let (d, a) = (self.dst_of(0, ty)?, self.src(1, ty)?);
                let (b, c) = (Slot::R32(self.src32(2, Ty::U32)?), Slot::R32(self.src32(3, Ty::U32)?));
                let imm = ty.bits() | u32::from(ty.is_signed()) << 8;
                let f: Scalar = |a, b, c, imm| math::bfe(a, b, c, u64::from(imm & 0xff), imm >> 8 == 1);
                Ok(self.scalar(f, d, &[a, b, c], imm))
            }
            "bfi" => {
                let ty = self.ty()?;
                self.arity(5)?;
                if ty.bits() < 32 || !ty.is_bits() {
                    return Err("no such type".into());
                }
                let (d, a, b) = (self.dst_of(0, ty)?, self.src(1, ty)?, self.src(2, ty)?);
                let (Some(pos), Some(len)) = (self.constant_operand(3), self.constant_operand(4)) else {
                    return Err("position and length must be constants".into());
                };
                let imm = (pos & 0xff) | (len & 0xff) << 8 | ty.bits() << 16;
                let f: Scalar = |a, b, _, imm| math::bfi(a, b, imm, imm >> 8, imm >> 16);
                Ok(self.scalar(f, d, &[a, b], imm))
            }
            "sad" => {
                let ty = self.ty()?;
                if !matches!(ty, Ty::U32 | Ty::S32) {
                    return Err("no such type".into());
                }
                let (d, a, b, c) = self.four()?;
                let f: F3 = if ty.is_signed() {
                    lanes!(L32; a: L32, b: L32, c: L32; c.wrapping_add((a as i32).abs_diff(b as i32)))
                } else {
                    lanes!(L32; a: L32, b: L32, c: L32; c.wrapping_add(a.abs_diff(b)))
                };
                Ok(Op::F3 { f, d, a, b, c, imm: 0 })
            }
            "dp4a" => {
                let (at, bt) = (self.ty()?, self.ty()?);
                let (d, a, b, c) = self.four()?;
                let ok = |t| matches!(t, Ty::S32 | Ty::U32);
                if !ok(at) || !ok(bt) {
                    return Err("no such type".into());
                }
                let imm = u32::from(at.is_signed()) | u32::from(bt.is_signed()) << 1;
                let f: F3 = lanes!(imm; L32; a: L32, b: L32, c: L32; {
                    let byte = |v: u32, i: u32, s: u32| {
                        let x = (v >> (8 * i)) & 0xff;
                        if s == 1 { i32::from(x as u8 as i8) } else { x as i32 }
                    };
                    let dot = (0..4).fold(0i32, |t, i| t + byte(a, i, imm & 1) * byte(b, i, imm >> 1));
                    c.wrapping_add(dot as u32)
                });
                Ok(Op::F3 { f, d, a, b, c, imm })
            }
            "dp2a" => {
                let high = self.one_of(&["lo", "hi"]).ok_or("no .lo or .hi")? == "hi";
                let (at, bt) = (self.ty()?, self.ty()?);
                let (d, a, b, c) = self.four()?;
                let imm = u32::from(at.is_signed()) | u32::from(bt.is_signed()) << 1 | u32::from(high) << 2;
                let f: F3 = lanes!(imm; L32; a: L32, b: L32, c: L32; {
                    let half = |i: u32| {
                        let x = a >> (16 * i) & 0xffff;
                        if imm & 1 == 1 { i64::from(s16(x)) } else { i64::from(x) }
                    };
                    let byte = |i: u32| {
                        let x = b >> (8 * (i + 2 * (imm >> 2))) & 0xff;
                        if imm & 2 == 2 { i64::from(x as u8 as i8) } else { i64::from(x) }
                    };
                    c.wrapping_add((half(0) * byte(0) + half(1) * byte(1)) as u32)
                });
                Ok(Op::F3 { f, d, a, b, c, imm })
            }
            "bmsk" => {
                let clamp = self.one_of(&["clamp", "wrap"]).ok_or("no .wrap or .clamp")? == "clamp";
                self.b32()?;
                self.arity(3)?;
                let (d, a, b) = (self.dst32(0)?, self.src32(1, Ty::U32)?, self.src32(2, Ty::U32)?);
                let f: F2 = lanes!(imm; L32; a: L32, b: L32; {
                    let (a, b) = if imm == 1 { (a.min(32), b.min(32)) } else { (a & 31, b & 31) };
                    ((((1u64 << b) - 1) << a) & 0xffff_ffff) as u32
                });
                Ok(Op::F2 { f, d, a, b, imm: u32::from(clamp) })
            }
            "szext" => {
                let clamp = self.one_of(&["clamp", "wrap"]).ok_or("no .wrap or .clamp")? == "clamp";
                let ty = self.ty()?;
                self.arity(3)?;
                if !matches!(ty, Ty::U32 | Ty::S32) {
                    return Err("no such type".into());
                }
                let (d, a, b) = (self.dst32(0)?, self.src32(1, ty)?, self.src32(2, Ty::U32)?);
                let f: F2 = lanes!(imm; L32; a: L32, b: L32; {
                    let n = if imm & 1 == 1 { b.min(32) } else { b & 31 };
                    if n == 0 { 0 } else if n == 32 { a } else if imm & 2 == 2 {
                        ((a << (32 - n)) as i32 >> (32 - n)) as u32
                    } else {
                        a & ((1 << n) - 1)
                    }
                });
                Ok(Op::F2 { f, d, a, b, imm: u32::from(clamp) | u32::from(ty.is_signed()) << 1 })
            }
            other => Err(format!("unknown opcode `{other}`")),
        }
    }

    pub(super) fn constant_operand(&self, i: usize) -> Option<u32> {
        match self.ops.get(i) {
            Some(super::Operand::Int(v)) => u32::try_from(*v).ok(),
            _ => None,
        }
    }

    fn b32(&mut self) -> Res<()> {
        if self.has("b32") { Ok(()) } else { Err("only .b32".into()) }
    }

    fn four(&mut self) -> Res<(u32, u32, u32, u32)> {
        self.arity(4)?;
        Ok((self.dst32(0)?, self.src32(1, Ty::B32)?, self.src32(2, Ty::B32)?, self.src32(3, Ty::B32)?))
    }
}

/// A named `prmt` mode: the selector follows from the two low bits of operand c.
fn prmt_mode(mode: &str) -> Res<F3> {
    macro_rules! mode {
        ($name:literal) => {
            lanes!(L32; a: L32, b: L32, c: L32; math::prmt(a, b, math::prmt_selector($name, c).unwrap_or(0)))
        };
    }
    Ok(match mode {
        "f4e" => mode!("f4e"),
        "b4e" => mode!("b4e"),
        "rc8" => mode!("rc8"),
        "ecl" => mode!("ecl"),
        "ecr" => mode!("ecr"),
        "rc16" => mode!("rc16"),
        other => return Err(format!("unknown mode `.{other}`")),
    })
}
