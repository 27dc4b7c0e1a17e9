//! Registers, constants, special registers and variables: names to slots (PTX ISA §6.4, §10 special registers).

use super::Res;
use super::op::Slot;
use crate::syntax::ast::{self, Operand};
use crate::syntax::types::{Space, Ty};
use std::collections::HashMap;

/// Values that differ between lanes, warps, blocks or launches but not over the life of a warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicShared,
    TotalShared,
    /// The dimensions of a cluster of one block, and `%nsmid`.
    One,
    /// Ranks inside a cluster of one block; `%smid`, `%gridid`.
    Zero,
}

/// What a slot holds when a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Initial {
    /// A register: nothing until it is written.
    Undefined,
    Const(u64),
    Special(Special),
}

#[derive(Debug, Clone, Copy)]
enum Named {
    Reg(Slot),
    Pred(u32),
}

pub struct Names<'a> {
    types: HashMap<&'a str, Ty>,
    slots: HashMap<String, Named>,
    fixed32: HashMap<Initial, u32>,
    fixed64: HashMap<u64, u32>,
    /// Shared, local and parameter symbols: space and offset.
    symbols: HashMap<&'a str, (Space, u64)>,
    globals: &'a HashMap<String, u64>,
    pub slots32: Vec<(Initial, String)>,
    pub slots64: Vec<(Initial, String)>,
    pub preds: Vec<String>,
    shared: u32,
    dynamic_align: u32,
    local: u32,
}

/// The name under which slot 0 of the predicates is constantly true.
const TRUE: &str = "(true)";

impl<'a> Names<'a> {
    pub fn new(module: &'a ast::Module, kernel: &'a ast::Kernel, globals: &'a HashMap<String, u64>) -> Self {
        let mut n = Names {
            types: kernel.regs.iter().map(|(name, ty)| (name.as_str(), *ty)).collect(),
            slots: HashMap::new(),
            fixed32: HashMap::new(),
            fixed64: HashMap::new(),
            symbols: HashMap::new(),
            globals,
            slots32: Vec::new(),
            slots64: Vec::new(),
            preds: vec![TRUE.into()],
            shared: 0,
            dynamic_align: 16,
            local: 0,
        };
        let vars = || module.vars.iter().chain(&kernel.vars);
        for v in vars() {
            let end = match v.space {
                Space::Shared if v.bytes > 0 => &mut n.shared,
                Space::Local => &mut n.local,
                _ => continue,
            };
            let offset = end.next_multiple_of(v.align);
            *end = offset.saturating_add(v.bytes);
            n.symbols.insert(&v.name, (v.space, u64::from(offset)));
        }
        for v in vars().filter(|v| v.space == Space::Shared && v.bytes == 0) {
            n.dynamic_align = n.dynamic_align.max(v.align);
        }
        let dynamic = u64::from(n.dynamic_shared());
        for v in vars().filter(|v| v.space == Space::Shared && v.bytes == 0) {
            n.symbols.insert(&v.name, (Space::Shared, dynamic));
        }
        for p in &kernel.params {
            n.symbols.insert(&p.name, (Space::Param, u64::from(p.offset)));
        }
        n
    }

    fn dynamic_shared(&self) -> u32 {
        self.shared.next_multiple_of(self.dynamic_align)
    }

    /// Static shared bytes, start of dynamic shared memory, local bytes.
    pub fn layout(&self) -> (u32, u32, u32) {
        (self.shared, self.dynamic_shared(), self.local)
    }

    fn register(&mut self, name: &str) -> Option<Named> {
        if let Some(n) = self.slots.get(name) {
            return Some(*n);
        }
        let ty = *self.types.get(name)?;
        let named = match ty.bits() {
            1 => {
                self.preds.push(name.to_string());
                Named::Pred(self.preds.len() as u32 - 1)
            }
            64 => {
                self.slots64.push((Initial::Undefined, name.to_string()));
                Named::Reg(Slot::R64(self.slots64.len() as u32 - 1))
            }
            _ => {
                self.slots32.push((Initial::Undefined, name.to_string()));
                Named::Reg(Slot::R32(self.slots32.len() as u32 - 1))
            }
        };
        self.slots.insert(name.to_string(), named);
        Some(named)
    }

    pub fn pred(&mut self, name: &str) -> Res<u32> {
        match self.register(name) {
            Some(Named::Pred(p)) => Ok(p),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    pub fn pred_true(&self) -> u32 {
        0
    }

    /// The declared type of a register.
    pub fn type_of(&self, op: &Operand) -> Option<Ty> {
        match op {
            Operand::Name(n) => self.types.get(n.as_str()).copied(),
            _ => None,
        }
    }

    pub fn destination(&mut self, op: &Operand) -> Res<Slot> {
        match op {
            Operand::Name(n) if n == "_" => Ok(Slot::None),
            Operand::Name(n) => match self.register(n) {
                Some(Named::Reg(s)) => Ok(s),
                Some(Named::Pred(_)) => Err(format!("`{n}` is a predicate")),
                None => Err(format!("`{n}` is not declared")),
            },
            _ => Err("a destination must be a register".into()),
        }
    }

    pub fn constant(&mut self, bits: u64, ty: Ty) -> Slot {
        match ty.bits() {
            64 => Slot::R64(self.const64(bits)),
            8 => Slot::R32(self.fixed32(Initial::Const(bits & 0xff))),
            16 => Slot::R32(self.fixed32(Initial::Const(bits & 0xffff))),
            _ => Slot::R32(self.fixed32(Initial::Const(bits & 0xffff_ffff))),
        }
    }

    fn const64(&mut self, bits: u64) -> u32 {
        let next = self.slots64.len() as u32;
        let slot = *self.fixed64.entry(bits).or_insert(next);
        if slot == next {
            self.slots64.push((Initial::Const(bits), format!("{bits:#x}")));
        }
        slot
    }

    fn fixed32(&mut self, what: Initial) -> u32 {
        let next = self.slots32.len() as u32;
        let slot = *self.fixed32.entry(what).or_insert(next);
        if slot == next {
            self.slots32.push((what, format!("{what:?}")));
        }
        slot
    }

    /// The slot of a source operand read as `ty`.
    pub fn source(&mut self, op: &Operand, ty: Ty) -> Res<Slot> {
        match op {
            Operand::Int(v) => match ty {
                Ty::F32 | Ty::TF32 => Ok(self.constant(u64::from((*v as f32).to_bits()), ty)),
                Ty::F64 => Ok(self.constant((*v as f64).to_bits(), ty)),
                _ => Ok(self.constant(*v as u64, ty)),
            },
            Operand::F32(bits) => Ok(match ty {
                Ty::F64 => self.constant(f64::from(f32::from_bits(*bits)).to_bits(), ty),
                _ => self.constant(u64::from(*bits), ty),
            }),
            Operand::F64(bits) => Ok(match ty.bits() {
                64 => self.constant(*bits, ty),
                _ => self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits()), ty),
            }),
            Operand::Name(n) => self.named_source(n, ty),
            _ => Err("this operand is not a value".into()),
        }
    }

    fn named_source(&mut self, n: &str, ty: Ty) -> Res<Slot> {
        match self.register(n) {
            Some(Named::Reg(s)) => return Ok(s),
            Some(Named::Pred(_)) => return Err(format!("`{n}` is a predicate")),
            None => {}
        }
        if let Some(special) = special(n) {
            return Ok(Slot::R32(self.fixed32(Initial::Special(special))));
        }
        if n == "WARP_SZ" {
            return Ok(self.constant(32, ty));
        }
        if let Some((space, offset)) = self.symbols.get(n).copied() {
            // a local variable's address is its offset in the lane's local memory
            return match space {
                Space::Param => Err("the address of a parameter is only usable by ld.param".into()),
                _ => Ok(self.constant(offset, ty)),
            };
        }
        match self.globals.get(n) {
            Some(address) => Ok(self.constant(*address, ty)),
            None => Err(format!("`{n}` is not declared")),
        }
    }

    /// The space and offset of a variable or parameter used as an address.
    pub fn symbol(&self, name: &str) -> Option<(Space, u64)> {
        let local = self.symbols.get(name).copied();
        local.or_else(|| self.globals.get(name).map(|a| (Space::Global, *a)))
    }
}

/// §10 special registers that are constant over the life of a warp.
fn special(name: &str) -> Option<Special> {
    let axis = |s: &str| match s {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    let (base, dim) = match name.split_once('.') {
        Some((b, d)) => (b, Some(axis(d)?)),
        None => (name, None),
    };
    Some(match (base, dim) {
        ("%tid", Some(d)) => Special::Tid(d),
        ("%ntid", Some(d)) => Special::Ntid(d),
        ("%ctaid", Some(d)) => Special::Ctaid(d),
        ("%nctaid", Some(d)) => Special::Nctaid(d),
        ("%nclusterid", Some(d)) => Special::Nctaid(d),
        ("%clusterid", Some(d)) => Special::Ctaid(d),
        ("%cluster_nctaid", Some(_)) => Special::One,
        ("%cluster_ctaid", Some(_)) => Special::Zero,
        ("%cluster_ctarank", None) | ("%smid", None) | ("%gridid", None) => Special::Zero,
        ("%cluster_nctarank", None) | ("%nsmid", None) => Special::One,
        ("%laneid", None) => Special::LaneId,
        ("%warpid", None) => Special::WarpId,
        ("%nwarpid", None) => Special::NWarpId,
        ("%lanemask_eq", None) => Special::LaneMaskEq,
        ("%lanemask_lt", None) => Special::LaneMaskLt,
        ("%lanemask_le", None) => Special::LaneMaskLe,
        ("%lanemask_gt", None) => Special::LaneMaskGt,
        ("%lanemask_ge", None) => Special::LaneMaskGe,
        ("%dynamic_smem_size", None) => Special::DynamicShared,
        ("%total_smem_size", None) => Special::TotalShared,
        _ => return None,
    })
}
