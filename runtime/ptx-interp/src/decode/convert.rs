//! `cvt` (PTX ISA §9.7.9.23): vector forms for the common conversions, a general scalar form for the rest.

use super::op::{Cvt, Op, Slot};
use super::{Form, Res};
use crate::num::formats::*;
use crate::num::lanes::*;
use crate::num::math::{c, cd, f, g, z};
use crate::syntax::types::Ty;

impl Form<'_, '_> {
    pub(super) fn cvt(&mut self) -> Res<Op> {
        let integral = self.one_of(&["rni", "rzi", "rmi", "rpi"]);
        let float = self.one_of(&["rn", "rz", "rm", "rp", "rna"]);
        let (ftz, sat, satfinite, relu) =
            (self.has("ftz"), self.has("sat"), self.has("satfinite"), self.has("relu"));
        let (to, from) = (self.ty()?, self.ty()?);
        if to.is_bits() || from.is_bits() || to == Ty::Pred || from == Ty::Pred {
            return Err("no such type".into());
        }
        let packed = matches!(to, Ty::F16x2 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2);
        let pair = packed && from == Ty::F32;
        self.arity(if pair { 3 } else { 2 })?;
        let round = match integral.or(float) {
            Some("rni" | "rn") | None => Round::Even,
            Some("rzi" | "rz") => Round::Zero,
            Some("rmi" | "rm") => Round::Down,
            Some("rpi" | "rp") => Round::Up,
            _ => Round::Away,
        };
        let from_float = from.is_float();
        let narrows = match (from, to) {
            (Ty::F64, t) => t.is_float() && t != Ty::F64,
            (Ty::F32, t) => t.is_float() && !matches!(t, Ty::F32 | Ty::F64),
            (f, t) if f.is_int() => t.is_float(),
            (Ty::F16 | Ty::BF16, t) => t.is_float() && !matches!(t, Ty::F32 | Ty::F64) && t != from,
            _ => false,
        };
        if to.is_int() && from_float && integral.is_none() {
            return Err("float to integer needs .rni, .rzi, .rmi or .rpi".into());
        }
        if narrows && float.is_none() {
            return Err("this conversion needs a rounding mode".into());
        }
        if float.is_some() && !narrows && !packed {
            return Err("this conversion is exact: no rounding mode".into());
        }
        if integral.is_some() && (!from_float || (to.is_float() && to != from)) {
            return Err("no rounding to integers here".into());
        }
        if satfinite != matches!(to, Ty::E4M3x2 | Ty::E5M2x2)
            && !(satfinite && matches!(to, Ty::F16x2 | Ty::BF16x2 | Ty::F16 | Ty::BF16 | Ty::TF32))
        {
            return Err("`.satfinite` belongs to 8-bit floats and must be there".into());
        }
        if relu
            && !matches!(to, Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 | Ty::E4M3x2 | Ty::E5M2x2 | Ty::TF32)
        {
            return Err("no .relu here".into());
        }
        let d = self.dst(0)?;
        let a = self.src(1, from)?;
        let b = if pair { self.src(2, from)? } else { Slot::None };
        let plain = !(ftz || sat || satfinite || relu);
        if plain && let Some(op) = fast(to, from, integral, float, d, a, b) {
            return Ok(op);
        }
        let narrow = self.names.type_of(&self.ops[0]).is_some_and(|t| t.bits() == 16);
        Ok(Op::Cvt(Cvt {
            to,
            from,
            round,
            integral: integral.is_some(),
            ftz,
            sat,
            satfinite,
            relu,
            narrow,
            d,
            a,
            b,
        }))
    }
}

/// The conversions that kernels are full of.
fn fast(
    to: Ty,
    from: Ty,
    integral: Option<&str>,
    float: Option<&str>,
    d: Slot,
    a: Slot,
    b: Slot,
) -> Option<Op> {
    use Slot::{R32, R64};
    use Ty::*;
    if let (R32(d), R32(a), R32(b)) = (d, a, b) {
        let f: F2 = match (to, from, float?) {
            (F16x2, F32, "rn") => lanes!(L32; a: L32, b: L32; f2h(f(a)) << 16 | f2h(f(b))),
            (BF16x2, F32, "rn") => lanes!(L32; a: L32, b: L32; f2b(f(a)) << 16 | f2b(f(b))),
            _ => return None,
        };
        return Some(Op::F2 { f, d, a, b, imm: 0 });
    }
    Some(match (d, a) {
        (R32(d), R32(a)) => {
            let f: F1 = match (to, from, integral, float) {
                (F32, F16, None, None) => lanes!(L32; a: L32; c(h2f(a))),
                (F32, BF16, None, None) => lanes!(L32; a: L32; c(b2f(a))),
                (F16, F32, None, Some("rn")) => lanes!(L32; a: L32; f2h(f(a))),
                (BF16, F32, None, Some("rn")) => lanes!(L32; a: L32; f2b(f(a))),
                (F32, S32, None, Some("rn")) => lanes!(L32; a: L32; (a as i32 as f32).to_bits()),
                (F32, U32, None, Some("rn")) => lanes!(L32; a: L32; (a as f32).to_bits()),
                (S32, F32, Some("rzi"), None) => lanes!(L32; a: L32; f(a) as i32 as u32),
                (U32, F32, Some("rzi"), None) => lanes!(L32; a: L32; f(a) as u32),
                (F32, F32, Some("rni"), None) => lanes!(L32; a: L32; c(f(a).round_ties_even())),
                (F32, F32, Some("rmi"), None) => lanes!(L32; a: L32; c(f(a).floor())),
                (F32, F32, Some("rpi"), None) => lanes!(L32; a: L32; c(f(a).ceil())),
                (F32, F32, Some("rzi"), None) => lanes!(L32; a: L32; c(f(a).trunc())),
                (U32 | S32, U16, None, None) | (U16 | S16, U32 | S32, None, None) => {
                    lanes!(L32; a: L32; a & 0xffff)
                }
                (U32 | S32, S16, None, None) => lanes!(L32; a: L32; a as u16 as i16 as i32 as u32),
                (U32 | S32, U8, None, None) => lanes!(L32; a: L32; a & 0xff),
                _ => return None,
            };
            Op::F1 { f, d, a }
        }
        (R64(d), R32(a)) => {
            let f: W1 = match (to, from) {
                (U64 | S64, U32) => lanes!(L64; a: L32; u64::from(a)),
                (U64 | S64, S32) => lanes!(L64; a: L32; i64::from(a as i32) as u64),
                (F64, F32) => lanes!(L64; a: L32; cd(f64::from(f(a)))),
                (F64, S32) => lanes!(L64; a: L32; f64::from(a as i32).to_bits()),
                _ => return None,
            };
            Op::W1 { f, d, a }
        }
        (R32(d), R64(a)) => {
            let f: N1 = match (to, from, float) {
                (U32 | S32, U64 | S64, None) => lanes!(L32; a: L64; a as u32),
                (F32, F64, Some("rn")) => lanes!(L32; a: L64; c(g(a) as f32)),
                _ => return None,
            };
            Op::N1 { f, d, a }
        }
        _ => return None,
    })
}

fn format(ty: Ty) -> Option<Format> {
    Some(match ty {
        Ty::F16 | Ty::F16x2 => F16,
        Ty::BF16 | Ty::BF16x2 => BF16,
        Ty::TF32 => TF32,
        Ty::E4M3 | Ty::E4M3x2 => E4M3,
        Ty::E5M2 | Ty::E5M2x2 => E5M2,
        Ty::F32 => F32,
        _ => return None,
    })
}

impl Cvt {
    /// The result for one lane; `b` is the second operand of packing forms.
    pub fn apply(&self, a: u64, b: u64) -> u64 {
        let (ef, et) = (format(self.from), format(self.to));
        match (self.from, self.to) {
            (Ty::F32, Ty::F16x2 | Ty::BF16x2) => self.pack(16, a, b),
            (Ty::F32, Ty::E4M3x2 | Ty::E5M2x2) => self.pack(8, a, b),
            (Ty::F16x2 | Ty::BF16x2, Ty::E4M3x2 | Ty::E5M2x2) => match (ef, et) {
                (Some(ef), Some(et)) => {
                    let one = |v: u64| u64::from(self.encode(et, ef.decode(v as u32 & 0xffff)));
                    one(a) | one(a >> 16) << 8
                }
                _ => 0,
            },
            (Ty::E4M3x2 | Ty::E5M2x2, Ty::F16x2) => match (ef, et) {
                (Some(ef), Some(et)) => {
                    let one = |v: u64| u64::from(self.encode(et, ef.decode(v as u32 & 0xff)));
                    one(a) | one(a >> 8) << 16
                }
                _ => 0,
            },
            (from, to) if from.is_int() && to.is_int() => self.int_to_int(a),
            (from, _) if from.is_int() => self.int_to_float(a),
            (_, to) if to.is_int() => self.float_to_int(a),
            _ => self.float_to_float(a),
        }
    }

    fn value(&self, bits: u64) -> f64 {
        match format(self.from) {
            Some(F32) => f64::from(f(if self.ftz { z(bits as u32) } else { bits as u32 })),
            Some(e) => e.decode(bits as u32),
            None => g(bits),
        }
    }

    /// The number in format `e`, after `.relu`.
    fn encode(&self, e: Format, x: f64) -> u32 {
        let x = if self.relu && (x < 0.0 || (x == 0.0 && x.is_sign_negative())) { 0.0 } else { x };
        e.encode(x, self.round, self.satfinite)
    }

    fn pack(&self, width: u32, a: u64, b: u64) -> u64 {
        let Some(e) = format(self.to) else { return 0 };
        let one = |v| u64::from(self.encode(e, self.value(v)));
        one(a) << width | one(b)
    }

    fn int(&self, a: u64) -> i128 {
        let bits = self.from.bits();
        let a = if bits == 64 { a } else { a & ((1 << bits) - 1) };
        if self.from.is_signed() {
            i128::from((a << (64 - bits)) as i64 >> (64 - bits))
        } else {
            i128::from(a)
        }
    }

    fn int_to_int(&self, a: u64) -> u64 {
        let v = self.int(a);
        let v = if self.sat { v.clamp(self.low(), self.high()) } else { v };
        self.int_bits(v)
    }

    fn low(&self) -> i128 {
        if self.to.is_signed() { -(1 << (self.to.bits() - 1)) } else { 0 }
    }

    fn high(&self) -> i128 {
        if self.to.is_signed() { (1 << (self.to.bits() - 1)) - 1 } else { (1 << self.to.bits()) - 1 }
    }

    /// The destination register's bits: narrower results are extended to the register (§9.4.1).
    fn int_bits(&self, v: i128) -> u64 {
        let bits = self.to.bits();
        if bits == 64 || self.to.is_signed() {
            // an 8-bit result is sign-extended into its 16-, 32- or 64-bit register
            let shift = 128 - bits;
            return ((v << shift) >> shift) as u64 & self.register_mask();
        }
        v as u64 & ((1 << bits) - 1)
    }

    fn register_mask(&self) -> u64 {
        match self.to.bits() {
            _ if self.narrow => 0xffff,
            16 => 0xffff,
            64 => u64::MAX,
            _ => 0xffff_ffff,
        }
    }

    fn int_to_float(&self, a: u64) -> u64 {
        let v = self.int(a);
        match format(self.to) {
            None => (v as f64).to_bits(),
            Some(e) => {
                // at most 64 bits: high and low part are exact, their sum is rounded to odd
                let (hi, lo) = ((v >> 32) << 32, v & 0xffff_ffff);
                let r = u64::from(e.encode(add_odd(hi as f64, lo as f64), self.round, self.satfinite));
                if self.sat && self.to == Ty::F32 { u64::from(crate::num::math::sat(r as u32)) } else { r }
            }
        }
    }

    fn integral_of(&self, x: f64) -> f64 {
        match self.round {
            Round::Even => x.round_ties_even(),
            Round::Zero => x.trunc(),
            Round::Down => x.floor(),
            Round::Up => x.ceil(),
            Round::Away => x.round(),
        }
    }

    fn float_to_int(&self, a: u64) -> u64 {
        let x = self.value(a);
        if x.is_nan() {
            let wide = self.from == Ty::F64 || self.to.bits() == 64;
            return if wide { 1 << (self.to.bits() - 1) } else { 0 };
        }
        // `as` saturates, as the instruction does
        self.int_bits((self.integral_of(x) as i128).clamp(self.low(), self.high()))
    }

    fn float_to_float(&self, a: u64) -> u64 {
        let x = self.value(a);
        let x = if self.integral { self.integral_of(x) } else { x };
        match format(self.to) {
            None => x.to_bits(),
            Some(e) => {
                let mut r = self.encode(e, x);
                if e == F32 {
                    r = if self.ftz { z(r) } else { r };
                    r = if self.sat { crate::num::math::sat(r) } else { r };
                } else if self.sat {
                    r = self.encode(e, if x > 0.0 { x.min(1.0) } else { 0.0 });
                }
                u64::from(r)
            }
        }
    }
}
