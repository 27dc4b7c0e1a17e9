//! Floating-point arithmetic (PTX ISA §9.7.3 single and double, §9.7.4 half, §9.7.5 mixed).

use super::op::{Op, Slot};
use super::{Form, Res};
use crate::num::formats::{self, BF16, F16, F32, Round, b2f, f2b, f2h, h2f};
use crate::num::lanes::*;
use crate::num::math::*;
use crate::syntax::types::Ty;

const MODES: [Round; 4] = [Round::Even, Round::Zero, Round::Down, Round::Up];
const FTZ: u32 = 4;
const SAT: u32 = 8;

/// An exact (rounded to odd) result in f64 to f32 under the modifiers in `imm`.
fn finish32(exact: f64, imm: u32) -> u64 {
    let mut r = F32.encode(exact, MODES[(imm & 3) as usize], false);
    if imm & FTZ != 0 {
        r = z(r);
    }
    u64::from(if imm & SAT != 0 { sat(r) } else { r })
}

fn wide32(a: u64, imm: u32) -> f64 {
    let a = a as u32;
    f64::from(f(if imm & FTZ != 0 { z(a) } else { a }))
}

/// A quotient or root in f64 to odd, given the sign of what is missing from `q`.
fn odd(q: f64, residue: f64) -> f64 {
    if !q.is_finite() || residue == 0.0 || residue.is_nan() {
        q
    } else {
        formats::add_odd(q, q.abs() * residue.signum() * 1e-40)
    }
}

/// p + c in f32 rounded to odd, for p and c whose error of addition is exact.
#[inline(always)]
fn add_odd32(p: f32, c: f32) -> f32 {
    let s = p + c;
    let bb = s - p;
    let err = (p - (s - bb)) + (c - bb);
    let bits = s.to_bits();
    let step = if (err > 0.0) == (s > 0.0) { 1u32 } else { u32::MAX };
    let fix = err != 0.0 && bits & 1 == 0 && s.is_finite();
    f32::from_bits(if fix { bits.wrapping_add(step) } else { bits })
}

#[inline(always)]
fn fma_h(a: u32, b: u32, x: u32) -> u32 {
    f2h(add_odd32(h2f(a) * h2f(b), h2f(x)))
}

fn fma_b(a: u32, b: u32, x: u32) -> u32 {
    BF16.encode(formats::fma_odd(BF16.decode(a), BF16.decode(b), BF16.decode(x)), Round::Even, false)
}

#[inline(always)]
fn relu16(r: u32) -> u32 {
    // NaN stays NaN; negative numbers and -0 become +0
    if r & 0x8000 != 0 { 0 } else { r }
}

#[inline(always)]
fn sat_h(r: u32) -> u32 {
    f2h(f(sat(h2f(r).to_bits())))
}

#[inline(always)]
fn minmax16(a: u32, b: u32, x: f32, y: f32, max: bool) -> u32 {
    match (x.is_nan(), y.is_nan()) {
        (true, true) => 0x7fff,
        (true, false) => b,
        (false, true) => a,
        _ if x == y => {
            if max {
                a & b
            } else {
                a | b
            }
        }
        _ => {
            if (x > y) == max {
                a
            } else {
                b
            }
        }
    }
}

/// Functions of 16-bit floats in a register: one value, or both halves of a pair.
macro_rules! halves {
    ($packed:expr; $($v:ident),+; $e:expr) => {
        if $packed {
            lanes!(L32; $($v: L32),+; {
                let one = |$($v: u32),+| -> u32 { $e };
                one($($v & 0xffff),+) | one($($v >> 16),+) << 16
            })
        } else {
            lanes!(L32; $($v: L32),+; $e)
        }
    };
}

impl Form<'_, '_> {
    pub(super) fn float(&mut self) -> Res<Op> {
        let base = self.base;
        let round = self.one_of(&["rn", "rz", "rm", "rp"]);
        let ftz = self.has("ftz");
        let sat = self.has("sat");
        let approx = self.one_of(&["approx", "full"]);
        if base == "testp" {
            return self.testp();
        }
        if self.base == "mul" && self.has("lo") {
            return Err("`.lo` of floats".into());
        }
        let ty = self.ty()?;
        self.flops = match base {
            "fma" | "mad" => 2,
            "abs" | "neg" | "copysign" => 0,
            _ => 1,
        } * if matches!(ty, Ty::F16x2 | Ty::BF16x2) { 2 } else { 1 };
        let mode =
            round.map_or(0, |r| ["rn", "rz", "rm", "rp"].iter().position(|m| *m == r).unwrap_or(0) as u32);
        let imm = mode | if ftz { FTZ } else { 0 } | if sat { SAT } else { 0 };
        match ty {
            Ty::F32 => self.single(imm, round.is_some(), approx),
            Ty::F64 => {
                if ftz || sat {
                    return Err("no .ftz or .sat for f64".into());
                }
                self.double(mode, approx)
            }
            Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 => {
                if mode != 0 {
                    return Err("only .rn for 16-bit floats".into());
                }
                self.half(ty, ftz, sat, approx.is_some())
            }
            _ => Err("no such type".into()),
        }
    }

    fn single(&mut self, imm: u32, rounded: bool, approx: Option<&str>) -> Res<Op> {
        let base = self.base;
        let (ftz, plain) = (imm & FTZ != 0, imm & !FTZ == 0);
        let needs_kind = matches!(base, "div" | "rcp" | "sqrt");
        if needs_kind && approx.is_none() && !rounded {
            return Err("a rounding mode, .approx or .full is needed".into());
        }
        if matches!(base, "fma") && !rounded {
            return Err("fma needs a rounding mode".into());
        }
        if approx.is_some()
            && !matches!(base, "div" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh")
        {
            return Err("no .approx here".into());
        }
        match base {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => {
                let nan = matches!(base, "min" | "max") && self.has("NaN");
                self.arity(3)?;
                let (d, a, b) = (self.dst32(0)?, self.src32(1, Ty::F32)?, self.src32(2, Ty::F32)?);
                if !plain {
                    let g: Scalar = match base {
                        "add" => |a, b, _, i| finish32(formats::add_odd(wide32(a, i), wide32(b, i)), i),
                        "sub" => |a, b, _, i| finish32(formats::add_odd(wide32(a, i), -wide32(b, i)), i),
                        "mul" => |a, b, _, i| finish32(wide32(a, i) * wide32(b, i), i),
                        "div" => |a, b, _, i| {
                            let (x, y) = (wide32(a, i), wide32(b, i));
                            let q = x / y;
                            finish32(odd(q, (-q).mul_add(y, x) * y.signum()), i)
                        },
                        _ => return Err("no such modifier here".into()),
                    };
                    return Ok(self.scalar(g, Slot::R32(d), &[Slot::R32(a), Slot::R32(b)], imm));
                }
                let f: F2 = match (base, ftz) {
                    ("add", false) => lanes!(L32; a: L32, b: L32; c(f(a) + f(b))),
                    ("sub", false) => lanes!(L32; a: L32, b: L32; c(f(a) - f(b))),
                    ("mul", false) => lanes!(L32; a: L32, b: L32; c(f(a) * f(b))),
                    ("div", false) => lanes!(L32; a: L32, b: L32; c(f(a) / f(b))),
                    ("add", true) => lanes!(L32; a: L32, b: L32; z(c(f(z(a)) + f(z(b))))),
                    ("sub", true) => lanes!(L32; a: L32, b: L32; z(c(f(z(a)) - f(z(b))))),
                    ("mul", true) => lanes!(L32; a: L32, b: L32; z(c(f(z(a)) * f(z(b))))),
                    ("div", true) => lanes!(L32; a: L32, b: L32; z(c(f(z(a)) / f(z(b))))),
                    ("min", false) if nan => lanes!(L32; a: L32, b: L32; nan_wins(a, b, fmin(a, b))),
                    ("max", false) if nan => lanes!(L32; a: L32, b: L32; nan_wins(a, b, fmax(a, b))),
                    ("min", true) if nan => lanes!(L32; a: L32, b: L32; nan_wins(a, b, fmin(z(a), z(b)))),
                    ("max", true) if nan => lanes!(L32; a: L32, b: L32; nan_wins(a, b, fmax(z(a), z(b)))),
                    ("min", false) => lanes!(L32; a: L32, b: L32; fmin(a, b)),
                    ("max", false) => lanes!(L32; a: L32, b: L32; fmax(a, b)),
                    ("min", true) => lanes!(L32; a: L32, b: L32; fmin(z(a), z(b))),
                    ("max", true) => lanes!(L32; a: L32, b: L32; fmax(z(a), z(b))),
                    ("copysign", false) => lanes!(L32; a: L32, b: L32; (a & 0x8000_0000) | (b & 0x7fff_ffff)),
                    _ => return Err("no such modifier here".into()),
                };
                Ok(Op::F2 { f, d, a, b, imm: 0 })
            }
            "fma" | "mad" => {
                self.arity(4)?;
                let (d, a, b, x) = (
                    self.dst32(0)?,
                    self.src32(1, Ty::F32)?,
                    self.src32(2, Ty::F32)?,
                    self.src32(3, Ty::F32)?,
                );
                if !plain {
                    let g: Scalar =
                        |a, b, x, i| finish32(formats::fma_odd(wide32(a, i), wide32(b, i), wide32(x, i)), i);
                    return Ok(self.scalar(
                        g,
                        Slot::R32(d),
                        &[Slot::R32(a), Slot::R32(b), Slot::R32(x)],
                        imm,
                    ));
                }
                let f: F3 = if ftz {
                    lanes!(L32; a: L32, b: L32, x: L32; z(c(f(z(a)).mul_add(f(z(b)), f(z(x))))))
                } else {
                    lanes!(L32; a: L32, b: L32, x: L32; c(f(a).mul_add(f(b), f(x))))
                };
                Ok(Op::F3 { f, d, a, b, c: x, imm: 0 })
            }
            "abs" | "neg" | "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" => {
                self.arity(2)?;
                if matches!(base, "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh")
                    && approx != Some("approx")
                {
                    return Err(format!("`{base}` needs .approx"));
                }
                let (d, a) = (self.dst32(0)?, self.src32(1, Ty::F32)?);
                if !plain {
                    let g: Scalar = match base {
                        "rcp" => |a, _, _, i| {
                            let y = wide32(a, i);
                            let q = 1.0 / y;
                            finish32(odd(q, (-q).mul_add(y, 1.0) * y.signum()), i)
                        },
                        "sqrt" => |a, _, _, i| {
                            let y = wide32(a, i);
                            let q = y.sqrt();
                            finish32(odd(q, (-q).mul_add(q, y)), i)
                        },
                        _ => return Err("no such modifier here".into()),
                    };
                    return Ok(self.scalar(g, Slot::R32(d), &[Slot::R32(a)], imm));
                }
                let f: F1 = match (base, ftz) {
                    ("abs", false) => lanes!(L32; a: L32; a & 0x7fff_ffff),
                    ("neg", false) => lanes!(L32; a: L32; a ^ 0x8000_0000),
                    ("abs", true) => lanes!(L32; a: L32; z(a) & 0x7fff_ffff),
                    ("neg", true) => lanes!(L32; a: L32; z(a) ^ 0x8000_0000),
                    ("rcp", false) => lanes!(L32; a: L32; c(1.0 / f(a))),
                    ("rcp", true) => lanes!(L32; a: L32; z(c(1.0 / f(z(a))))),
                    ("sqrt", false) => lanes!(L32; a: L32; c(f(a).sqrt())),
                    ("sqrt", true) => lanes!(L32; a: L32; z(c(f(z(a)).sqrt()))),
                    ("rsqrt", false) => lanes!(L32; a: L32; c(rsqrt(f(a)))),
                    ("rsqrt", true) => lanes!(L32; a: L32; z(c(rsqrt(f(z(a)))))),
                    ("sin", false) => lanes!(L32; a: L32; c(f64::from(f(a)).sin() as f32)),
                    ("sin", true) => lanes!(L32; a: L32; z(c(f64::from(f(z(a))).sin() as f32))),
                    ("cos", false) => lanes!(L32; a: L32; c(f64::from(f(a)).cos() as f32)),
                    ("cos", true) => lanes!(L32; a: L32; z(c(f64::from(f(z(a))).cos() as f32))),
                    ("ex2", false) => lanes!(L32; a: L32; c(ex2(f(a)))),
                    ("ex2", true) => lanes!(L32; a: L32; z(c(ex2(f(z(a)))))),
                    ("lg2", false) => lanes!(L32; a: L32; c(lg2(f(a)))),
                    ("lg2", true) => lanes!(L32; a: L32; z(c(lg2(f(z(a)))))),
                    ("tanh", false) => lanes!(L32; a: L32; c(f64::from(f(a)).tanh() as f32)),
                    _ => return Err("no such modifier here".into()),
                };
                Ok(Op::F1 { f, d, a })
            }
            _ => Err("no such form".into()),
        }
    }

    fn double(&mut self, mode: u32, approx: Option<&str>) -> Res<Op> {
        if mode != 0 {
            return Err("only .rn for f64".into());
        }
        let base = self.base;
        if approx.is_some() && !matches!(base, "rsqrt") {
            return Err("no .approx for f64 here".into());
        }
        match base {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "copysign" => {
                self.arity(3)?;
                let (d, a, b) = (self.dst64(0)?, self.src64(1, Ty::F64)?, self.src64(2, Ty::F64)?);
                let f: D2 = match base {
                    "add" => lanes!(L64; a: L64, b: L64; cd(g(a) + g(b))),
                    "sub" => lanes!(L64; a: L64, b: L64; cd(g(a) - g(b))),
                    "mul" => lanes!(L64; a: L64, b: L64; cd(g(a) * g(b))),
                    "div" => lanes!(L64; a: L64, b: L64; cd(g(a) / g(b))),
                    "min" => lanes!(L64; a: L64, b: L64; dmin(a, b)),
                    "max" => lanes!(L64; a: L64, b: L64; dmax(a, b)),
                    _ => lanes!(L64; a: L64, b: L64; (a & (1 << 63)) | (b & !(1 << 63))),
                };
                Ok(Op::D2 { f, d, a, b })
            }
            "fma" | "mad" => {
                self.arity(4)?;
                let (d, a) = (self.dst64(0)?, self.src64(1, Ty::F64)?);
                let (b, c) = (self.src64(2, Ty::F64)?, self.src64(3, Ty::F64)?);
                let f: D3 = lanes!(L64; a: L64, b: L64, c: L64; cd(g(a).mul_add(g(b), g(c))));
                Ok(Op::D3 { f, d, a, b, c })
            }
            "abs" | "neg" | "rcp" | "sqrt" | "rsqrt" => {
                self.arity(2)?;
                let (d, a) = (self.dst64(0)?, self.src64(1, Ty::F64)?);
                let f: D1 = match base {
                    "abs" => lanes!(L64; a: L64; a & !(1 << 63)),
                    "neg" => lanes!(L64; a: L64; a ^ (1 << 63)),
                    "rcp" => lanes!(L64; a: L64; cd(1.0 / g(a))),
                    "sqrt" => lanes!(L64; a: L64; cd(g(a).sqrt())),
                    _ => lanes!(L64; a: L64; cd(1.0 / g(a).sqrt())),
                };
                Ok(Op::D1 { f, d, a })
            }
            _ => Err("no such form for f64".into()),
        }
    }

    fn half(&mut self, ty: Ty, ftz: bool, sat: bool, approx: bool) -> Res<Op> {
        let packed = matches!(ty, Ty::F16x2 | Ty::BF16x2);
        let bf = matches!(ty, Ty::BF16 | Ty::BF16x2);
        let base = self.base;
        if ftz && !(base == "ex2" && (bf || approx)) {
            return Err("`.ftz` of 16-bit floats is not supported".into());
        }
        let relu = base == "fma" && self.has("relu");
        let nan = matches!(base, "min" | "max") && self.has("NaN");
        if sat && (bf || !matches!(base, "add" | "sub" | "mul" | "fma")) {
            return Err("no .sat here".into());
        }
        let vt = if packed { Ty::B32 } else { Ty::B16 };
        match base {
            "add" | "sub" | "mul" | "min" | "max" => {
                self.arity(3)?;
                let (d, a, b) = (self.dst32(0)?, self.src32(1, vt)?, self.src32(2, vt)?);
                let f: F2 = match (base, bf, sat || nan) {
                    ("add", false, false) => halves!(packed; a, b; f2h(h2f(a) + h2f(b))),
                    ("sub", false, false) => halves!(packed; a, b; f2h(h2f(a) - h2f(b))),
                    ("mul", false, false) => halves!(packed; a, b; f2h(h2f(a) * h2f(b))),
                    ("add", false, true) => halves!(packed; a, b; sat_h(f2h(h2f(a) + h2f(b)))),
                    ("sub", false, true) => halves!(packed; a, b; sat_h(f2h(h2f(a) - h2f(b)))),
                    ("mul", false, true) => halves!(packed; a, b; sat_h(f2h(h2f(a) * h2f(b)))),
                    ("add", true, _) => halves!(packed; a, b; f2b(add_odd32(b2f(a), b2f(b)))),
                    ("sub", true, _) => halves!(packed; a, b; f2b(add_odd32(b2f(a), -b2f(b)))),
                    ("mul", true, _) => halves!(packed; a, b; f2b(b2f(a) * b2f(b))),
                    ("min", false, false) => halves!(packed; a, b; minmax16(a, b, h2f(a), h2f(b), false)),
                    ("max", false, false) => halves!(packed; a, b; minmax16(a, b, h2f(a), h2f(b), true)),
                    ("min", true, false) => halves!(packed; a, b; minmax16(a, b, b2f(a), b2f(b), false)),
                    ("max", true, false) => halves!(packed; a, b; minmax16(a, b, b2f(a), b2f(b), true)),
                    ("min", false, true) => {
                        halves!(packed; a, b; if h2f(a).is_nan() || h2f(b).is_nan() { 0x7fff } else { minmax16(a, b, h2f(a), h2f(b), false) })
                    }
                    ("max", false, true) => {
                        halves!(packed; a, b; if h2f(a).is_nan() || h2f(b).is_nan() { 0x7fff } else { minmax16(a, b, h2f(a), h2f(b), true) })
                    }
                    ("min", true, true) => {
                        halves!(packed; a, b; if b2f(a).is_nan() || b2f(b).is_nan() { 0x7fff } else { minmax16(a, b, b2f(a), b2f(b), false) })
                    }
                    _ => {
                        halves!(packed; a, b; if b2f(a).is_nan() || b2f(b).is_nan() { 0x7fff } else { minmax16(a, b, b2f(a), b2f(b), true) })
                    }
                };
                Ok(Op::F2 { f, d, a, b, imm: 0 })
            }
            "fma" => {
                self.arity(4)?;
                let (d, a, b, x) =
                    (self.dst32(0)?, self.src32(1, vt)?, self.src32(2, vt)?, self.src32(3, vt)?);
                let f: F3 = match (bf, relu, sat) {
                    (false, false, false) => halves!(packed; a, b, x; fma_h(a, b, x)),
                    (false, true, _) => halves!(packed; a, b, x; relu16(fma_h(a, b, x))),
                    (false, false, true) => halves!(packed; a, b, x; sat_h(fma_h(a, b, x))),
                    (true, false, _) => halves!(packed; a, b, x; fma_b(a, b, x)),
                    (true, true, _) => halves!(packed; a, b, x; relu16(fma_b(a, b, x))),
                };
                Ok(Op::F3 { f, d, a, b, c: x, imm: 0 })
            }
            "abs" | "neg" | "ex2" | "tanh" => {
                self.arity(2)?;
                if matches!(base, "ex2" | "tanh") != approx {
                    return Err(".approx belongs to ex2 and tanh".into());
                }
                let (d, a) = (self.dst32(0)?, self.src32(1, vt)?);
                let f: F1 = match (base, bf) {
                    ("abs", _) => halves!(packed; a; a & 0x7fff),
                    ("neg", _) => halves!(packed; a; a ^ 0x8000),
                    ("ex2", false) => halves!(packed; a; f2h(ex2(h2f(a)))),
                    ("ex2", true) => halves!(packed; a; f2b(ex2(f(z(b2f(a).to_bits()))))),
                    ("tanh", false) => {
                        halves!(packed; a; F16.encode(f64::from(h2f(a)).tanh(), Round::Even, false))
                    }
                    _ => halves!(packed; a; BF16.encode(f64::from(b2f(a)).tanh(), Round::Even, false)),
                };
                Ok(Op::F1 { f, d, a })
            }
            _ => Err("no such form for 16-bit floats".into()),
        }
    }

    /// §9.7.3.1 `testp`: the class of a number, as a predicate.
    fn testp(&mut self) -> Res<Op> {
        let kind = self.one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]);
        let kind = kind.ok_or("no class")?;
        let ty = self.ty()?;
        self.arity(2)?;
        let p = self.pred_dst(&self.ops[0])?;
        if ty == Ty::F64 {
            let a = self.src64(1, ty)?;
            let f: C64 = match kind {
                "finite" => lanes!(L32; a: L64, _b: L64; u32::from(g(a).is_finite())),
                "infinite" => lanes!(L32; a: L64, _b: L64; u32::from(g(a).is_infinite())),
                "number" => lanes!(L32; a: L64, _b: L64; u32::from(!g(a).is_nan())),
                "notanumber" => lanes!(L32; a: L64, _b: L64; u32::from(g(a).is_nan())),
                "normal" => lanes!(L32; a: L64, _b: L64; u32::from(g(a).is_normal())),
                _ => lanes!(L32; a: L64, _b: L64; u32::from(g(a).is_subnormal())),
            };
            return Ok(Op::C64 { f, a, b: a, p, q: super::op::NO_PRED, join: None });
        }
        if ty != Ty::F32 {
            return Err("no such type".into());
        }
        let a = self.src32(1, ty)?;
        let f: C32 = match kind {
            "finite" => lanes!(L32; a: L32, _b: L32; u32::from(f(a).is_finite())),
            "infinite" => lanes!(L32; a: L32, _b: L32; u32::from(f(a).is_infinite())),
            "number" => lanes!(L32; a: L32, _b: L32; u32::from(!f(a).is_nan())),
            "notanumber" => lanes!(L32; a: L32, _b: L32; u32::from(f(a).is_nan())),
            "normal" => lanes!(L32; a: L32, _b: L32; u32::from(f(a).is_normal())),
            _ => lanes!(L32; a: L32, _b: L32; u32::from(f(a).is_subnormal())),
        };
        Ok(Op::C32 { f, a, b: a, p, q: super::op::NO_PRED, join: None })
    }
}
