//! Matrices in tile registers (Intel AMX).
//!
//! The registers have numbers here and not in LLVM: a product adds to its accumulator in place, a loop carries it in
//! the register that it came in. All shapes are known, so each function loads one configuration when it begins, and
//! gives the registers back when it ends.

use super::build::Value;
use super::func::Emitter;
use crate::Fault;
use crate::error::Emit;
use inkwell::values::IntValue;
use ir::kernel::Dot;
use ir::loops::{Addr, Block, Func, Inst, Mem, Stmt, Stride, Ty, Val};
use ir::target::{MATRIX_REGS, MATRIX_SIZE, TargetDesc};
use std::collections::HashMap;

/// Which register each matrix of a function lies in.
#[derive(Debug, Default)]
pub(super) struct Registers {
    of: HashMap<Val, u8>,
    /// Rows and words of a row, by register.
    shapes: [Option<(u32, u32)>; MATRIX_REGS],
}

/// True for what lies in matrix registers.
pub(super) fn is_matrix(ty: Ty) -> bool {
    ty.rows > 1
}

impl Registers {
    /// # Errors
    /// Where the target has no such registers or not enough of them, or an accumulator is used twice.
    pub fn of(func: &Func, target: &TargetDesc) -> Emit<Registers> {
        let fits = |n: u32| (2..=MATRIX_SIZE).contains(&n);
        let has = Dot::ALL.into_iter().any(|d| target.has_matrices(d));
        if let Some(t) = func.types.iter().find(|t| is_matrix(**t) && !(has && fits(t.rows) && fits(t.cols)))
        {
            return Err(Fault::invalid(format!("a value of {} x {}", t.rows, t.cols)));
        }
        let mut a = Assign {
            func,
            registers: Registers::default(),
            used: [false; MATRIX_REGS],
            uses: HashMap::new(),
            zeros: Vec::new(),
        };
        if func.types.iter().any(|t| is_matrix(*t)) {
            a.count(&func.body);
            a.block(&func.body)?;
        }
        Ok(a.registers)
    }

    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    fn get(&self, v: Val) -> Emit<u8> {
        self.of.get(&v).copied().ok_or_else(|| Fault::invalid(format!("value {} is in no register", v.0)))
    }

    /// What `ldtilecfg` reads: the palette, bytes of a row and rows by register.
    fn configuration(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for (i, (rows, words)) in self.shapes.iter().enumerate().filter_map(|(i, s)| Some((i, (*s)?))) {
            bytes[16 + 2 * i] = 4 * words as u8;
            bytes[48 + i] = rows as u8;
        }
        bytes
    }
}

struct Assign<'a> {
    func: &'a Func,
    registers: Registers,
    used: [bool; MATRIX_REGS],
    /// How often a matrix is still to be used.
    uses: HashMap<Val, usize>,
    zeros: Vec<Val>,
}

impl Assign<'_> {
    fn shape(&self, v: Val) -> Option<(u32, u32)> {
        let ty = self.func.types.get(v.0 as usize)?;
        is_matrix(*ty).then_some((ty.rows, ty.cols))
    }

    fn count(&mut self, block: &Block) {
        for stmt in &block.stmts {
            let mut operands = Vec::new();
            stmt.for_each_operand(&mut |v| operands.push(v));
            operands.into_iter().for_each(|v| self.count_one(v));
            stmt.blocks().into_iter().for_each(|b| self.count(b));
        }
        block.yields.iter().for_each(|v| self.count_one(*v));
    }
    fn count_one(&mut self, v: Val) {
        if self.shape(v).is_some() {
            *self.uses.entry(v).or_default() += 1;
        }
    }

    /// A register that nobody uses, of the shape of `v`.
    fn take(&mut self, v: Val) -> Emit<u8> {
        let shape = self.shape(v);
        let fits = |i: &usize| !self.used[*i] && self.registers.shapes[*i].is_none_or(|s| Some(s) == shape);
        // one that has the shape already leaves the others for other shapes
        let known = (0..MATRIX_REGS).filter(fits).max_by_key(|i| self.registers.shapes[*i].is_some());
        let i = known.ok_or_else(|| Fault::unsupported("more matrices than there are registers"))?;
        (self.used[i], self.registers.shapes[i]) = (true, shape);
        self.registers.of.insert(v, i as u8);
        Ok(i as u8)
    }

    /// Counts a use; after the last one the register is free.
    fn release(&mut self, v: Val) -> Emit<()> {
        let left = self.uses.get_mut(&v).map_or(0, |n| {
            *n = n.saturating_sub(1);
            *n
        });
        if left == 0 && !self.zeros.contains(&v) {
            let r = self.registers.get(v)?;
            self.used[r as usize] = false;
        }
        Ok(())
    }

    /// The register of what goes on as `to`: that of `from`, or a new one for zeros.
    fn pass(&mut self, from: Val, to: Val) -> Emit<u8> {
        if self.zeros.contains(&from) {
            return self.take(to);
        }
        self.release(from)?;
        let r = self.registers.get(from)?;
        if std::mem::replace(&mut self.used[r as usize], true) {
            return Err(Fault::unsupported("an accumulator with two uses"));
        }
        self.registers.of.insert(to, r);
        Ok(r)
    }

    fn block(&mut self, block: &Block) -> Emit<()> {
        block.stmts.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Emit<()> {
        match stmt {
            Stmt::Let { val, inst } if self.shape(*val).is_some() => match inst {
                Inst::Const(c) if c.as_f64() == 0.0 => self.zeros.push(*val),
                Inst::Load(_) => {
                    self.take(*val)?;
                }
                Inst::TileOp { acc, a, b, .. } => {
                    self.pass(*acc, *val)?;
                    self.release(*a)?;
                    self.release(*b)?;
                }
                _ => return Err(Fault::invalid("arithmetic on matrices")),
            },
            Stmt::Store { value, .. } if self.shape(*value).is_some() => self.release(*value)?,
            Stmt::For { carries, results, body, .. } => {
                let mut inside = Vec::new();
                for (i, c) in carries.iter().enumerate().filter(|(_, c)| self.func.ty(c.0).rows > 1) {
                    inside.push((i, self.pass(c.1, c.0)?));
                }
                self.block(body)?;
                for (i, r) in inside {
                    // the result goes on in the register of what the body yields, which must be that of the next turn
                    if self.pass(body.yields[i], results[i])? != r {
                        return Err(Fault::unsupported("a loop that exchanges matrices"));
                    }
                    if !self.uses.contains_key(&results[i]) {
                        self.used[r as usize] = false;
                    }
                }
            }
            Stmt::While { .. } | Stmt::If { .. } => {
                if stmt.results().iter().any(|v| self.shape(*v).is_some()) {
                    return Err(Fault::unsupported("matrices as results of a branch"));
                }
                stmt.blocks().into_iter().try_for_each(|b| self.block(b))?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl<'ctx> Emitter<'_, 'ctx> {
    fn number(&self, r: u8) -> Value<'ctx> {
        self.build.cx.i8_type().const_int(r.into(), false).into()
    }

    /// At the entry of a function: what its registers hold.
    pub fn configure_matrices(&self) -> Emit<()> {
        if self.matrices.is_empty() {
            return Ok(());
        }
        let word = self.build.cx.i64_type();
        let at = self.build.b.build_alloca(word.array_type(8), "tiles")?;
        for (i, part) in self.matrices.configuration().chunks(8).enumerate() {
            let bits = part.iter().rev().fold(0, |bits, b| bits << 8 | u64::from(*b));
            let place = self.build.offset(word.into(), at, self.build.i64(i as i64))?;
            self.build.b.build_store(place, word.const_int(bits, false))?;
        }
        self.build.call("llvm.x86.ldtilecfg", &[], &[at.into()])?;
        Ok(())
    }

    /// At the end of a function.
    pub fn release_matrices(&self) -> Emit<()> {
        if !self.matrices.is_empty() {
            self.build.call("llvm.x86.tilerelease", &[], &[])?;
        }
        Ok(())
    }

    /// Zeros in the register of `v`, where `from` is what it begins with and a constant.
    pub fn begin_matrix(&self, v: Val, from: Val) -> Emit<()> {
        if self.matrices.of.contains_key(&from) {
            return Ok(());
        }
        self.build.call("llvm.x86.tilezero", &[], &[self.number(self.matrices.get(v)?)])?;
        Ok(())
    }

    pub fn matrix(&self, val: Val, inst: &Inst) -> Emit<()> {
        match inst {
            Inst::Const(_) => Ok(()),
            Inst::Load(addr) => self.matrix_access("llvm.x86.tileloadd64", val, addr),
            Inst::TileOp { name, acc, a, b } => {
                self.begin_matrix(val, *acc)?;
                let name = match name.as_str() {
                    "tdpbusd" => "llvm.x86.tdpbusd",
                    "tdpbf16ps" => "llvm.x86.tdpbf16ps",
                    _ => return Err(Fault::unsupported(format!("tile instruction `{name}` on matrices"))),
                };
                let registers = [val, *a, *b].map(|v| self.matrices.get(v).map(|r| self.number(r)));
                let registers = registers.into_iter().collect::<Emit<Vec<_>>>()?;
                self.build.call(name, &[], &registers)?;
                Ok(())
            }
            other => Err(Fault::invalid(format!("{other:?} on matrices"))),
        }
    }

    pub fn matrix_store(&self, addr: &Addr, value: Val) -> Emit<()> {
        self.matrix_access("llvm.x86.tilestored64", value, addr)
    }

    fn matrix_access(&self, name: &'static str, v: Val, addr: &Addr) -> Emit<()> {
        let at = self.element_address(addr)?;
        let bytes = self.build.i64(4);
        let stride: IntValue<'ctx> = match addr.row {
            Stride::Const(s) => self.build.i64(s.saturating_mul(4)),
            Stride::Val(s) => self.build.b.build_int_mul(self.int(s)?, bytes, "")?,
        };
        if addr.col != Stride::Const(1) || addr.cols_valid.is_some() || !self.holds_words(addr.mem) {
            return Err(Fault::invalid(format!("a matrix at {addr:?}")));
        }
        self.build.call(name, &[], &[self.number(self.matrices.get(v)?), at.into(), stride.into()])?;
        Ok(())
    }

    fn holds_words(&self, mem: Mem) -> bool {
        let dtype = match mem {
            Mem::Buf(i) => self.func.bufs.get(i as usize).map(|b| b.dtype),
            Mem::Local(i) => self.func.locals.get(i as usize).map(|l| l.dtype),
        };
        dtype.is_some_and(|d| d.bytes() == 4)
    }
}
