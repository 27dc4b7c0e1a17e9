//! Matrix instructions of a warp: `ldmatrix`, `stmatrix`, `mma.sync` (PTX ISA §9.7.15.5).

use super::op::*;
use super::{Form, Res};
use crate::syntax::ast::Operand;
use crate::syntax::types::{Space, Ty};

impl Form<'_, '_> {
    pub(super) fn tensor(&mut self) -> Res<Op> {
        if !self.has("sync") || !self.has("aligned") {
            return Err("only .sync.aligned".into());
        }
        match self.base {
            "ldmatrix" | "stmatrix" => {
                if !self.has("m8n8") || !self.has("b16") {
                    return Err("only .m8n8 and .b16".into());
                }
                let n = match self.one_of(&["x1", "x2", "x4"]).ok_or("no count")? {
                    "x1" => 1,
                    "x2" => 2,
                    _ => 4,
                };
                let trans = self.has("trans");
                if self.state_space() != Some(Space::Shared) {
                    return Err("only .shared".into());
                }
                self.arity(2)?;
                let load = self.base == "ldmatrix";
                let (addr, _) = self.address(usize::from(load))?;
                let regs = self.fragment(usize::from(!load), n as usize, load, Ty::B32)?;
                let four = [regs[0], regs[1], regs[2], regs[3]];
                Ok(if load {
                    Op::LdMatrix { addr, n, trans, d: four }
                } else {
                    Op::StMatrix { addr, n, trans, a: four }
                })
            }
            "mma" => self.mma(),
            other => Err(format!("unknown opcode `{other}`")),
        }
    }

    /// The registers of `{..}`, or one register.
    fn fragment(&mut self, i: usize, n: usize, dst: bool, ty: Ty) -> Res<[Slot; 8]> {
        let items: Vec<Operand> = match self.ops.get(i) {
            Some(Operand::Vector(v)) => v.clone(),
            Some(one) => vec![one.clone()],
            None => return Err("too few operands".into()),
        };
        if items.len() != n {
            return Err(format!("operand {} has {} registers, expected {n}", i + 1, items.len()));
        }
        let mut out = [Slot::None; 8];
        for (o, item) in out.iter_mut().zip(&items) {
            *o = if dst { self.names.destination(item)? } else { self.names.source(item, ty)? };
            if matches!(*o, Slot::R64(_)) != (ty.bits() == 64) {
                return Err("a register of another width".into());
            }
        }
        Ok(out)
    }

    fn mma(&mut self) -> Res<Op> {
        const SHAPES: [(&str, usize, usize, usize); 6] = [
            ("m16n8k4", 16, 8, 4),
            ("m16n8k8", 16, 8, 8),
            ("m16n8k16", 16, 8, 16),
            ("m16n8k32", 16, 8, 32),
            ("m16n8k64", 16, 8, 64),
            ("m8n8k4", 8, 8, 4),
        ];
        let shape = SHAPES.iter().find(|s| self.has(s.0)).ok_or("no such shape")?;
        if !self.has("row") || !self.has("col") {
            return Err("only .row.col".into());
        }
        let satfinite = self.has("satfinite");
        let mut types = Vec::new();
        for m in &mut self.mods {
            if let Some(e) = m.and_then(elem) {
                types.push(e);
                *m = None;
            }
        }
        let [d_ty, a_ty, b_ty, c_ty] = types[..] else { return Err("four types expected".into()) };
        self.arity(4)?;
        let (m, n, k) = (shape.1, shape.2, shape.3);
        use Elem::*;
        let int8 = |e| matches!(e, S8 | U8);
        let int4 = |e| matches!(e, S4 | U4);
        let fp8 = |e| matches!(e, E4M3 | E5M2);
        let ok = match (m, k) {
            (16, 8 | 16) if a_ty == F16 && b_ty == F16 => c_ty == d_ty && matches!(c_ty, F16 | F32),
            (16, 8 | 16) if a_ty == BF16 && b_ty == BF16 => (c_ty, d_ty) == (F32, F32),
            (16, 4 | 8) if a_ty == TF32 && b_ty == TF32 => (c_ty, d_ty) == (F32, F32),
            (16, 16 | 32) if int8(a_ty) && int8(b_ty) => (c_ty, d_ty) == (S32, S32),
            (16, 32 | 64) if int4(a_ty) && int4(b_ty) => (c_ty, d_ty) == (S32, S32),
            (16, 32) if fp8(a_ty) && fp8(b_ty) => (c_ty, d_ty) == (F32, F32),
            (8, 4) if a_ty == F64 && b_ty == F64 => (c_ty, d_ty) == (F64, F64),
            _ => false,
        };
        if !ok || (satfinite && d_ty != S32) {
            return Err("no such combination of shape and types".into());
        }
        let ty = |e: Elem| if e == F64 { Ty::B64 } else { Ty::B32 };
        let (na, nb) = (a_ty.registers(m * k), b_ty.registers(k * n));
        let (nc, nd) = (c_ty.registers(m * n), d_ty.registers(m * n));
        self.flops = (2 * m * n * k / 32) as u32;
        Ok(Op::Mma(Mma {
            m,
            n,
            k,
            a_ty,
            b_ty,
            c_ty,
            d_ty,
            satfinite,
            d: self.fragment(0, nd, true, ty(d_ty))?,
            a: self.fragment(1, na, false, ty(a_ty))?,
            b: self.fragment(2, nb, false, ty(b_ty))?,
            c: self.fragment(3, nc, false, ty(c_ty))?,
        }))
    }
}

fn elem(m: &str) -> Option<Elem> {
    Some(match m {
        "f16" => Elem::F16,
        "bf16" => Elem::BF16,
        "tf32" => Elem::TF32,
        "f64" => Elem::F64,
        "f32" => Elem::F32,
        "e4m3" => Elem::E4M3,
        "e5m2" => Elem::E5M2,
        "s8" => Elem::S8,
        "u8" => Elem::U8,
        "s4" => Elem::S4,
        "u4" => Elem::U4,
        "s32" => Elem::S32,
        _ => return None,
    })
}

impl Elem {
    pub fn bits(self) -> usize {
        match self {
            Elem::S4 | Elem::U4 => 4,
            Elem::E4M3 | Elem::E5M2 | Elem::S8 | Elem::U8 => 8,
            Elem::F16 | Elem::BF16 => 16,
            Elem::TF32 | Elem::F32 | Elem::S32 => 32,
            Elem::F64 => 64,
        }
    }

    /// Bits of the registers that hold it.
    pub fn word_bits(self) -> usize {
        if self == Elem::F64 { 64 } else { 32 }
    }

    /// Registers of each lane for a matrix of `len` elements.
    pub fn registers(self, len: usize) -> usize {
        len * self.bits() / 32 / self.word_bits()
    }
}
