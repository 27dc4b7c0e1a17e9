//! Functions and statements: entry, loops, branches, checks.

use super::vals::{Parts, shape};
use crate::Fault;
use crate::entry::{IntEmit, check_entry, local_offsets, sym_param};
use crate::error::Emit;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Block as Label, BlockArg, Function, InstBuilder, MemFlagsData, Signature, Type, Value, types,
};
use cranelift_codegen::isa::TargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use ir::Sym;
use ir::dtype::Scalar;
use ir::loops::{Block, Func, Inst, Stmt, Ty, Val};
use smallvec::SmallVec;
use std::collections::HashMap;

/// Emission of one function.
pub(super) struct Emitter<'a> {
    pub b: FunctionBuilder<'a>,
    pub func: &'a Func,
    vals: Vec<Option<Parts>>,
    /// Constants are made again in every block that uses them: registers are scarce.
    constants: HashMap<Val, Scalar>,
    constants_here: HashMap<Val, Parts>,
    /// Values that are the same scalar in every lane.
    pub splats: HashMap<Val, Val>,
    pub bufs: Vec<Value>,
    pub locals: Vec<Value>,
    syms: Vec<Value>,
    status: Value,
    /// Iterations of the parallel loop that this call runs.
    range: (Value, Value),
}

/// Fills `function` with the code of `func`.
pub(super) fn emit(
    isa: &dyn TargetIsa,
    func: &Func,
    function: &mut Function,
    work: &mut FunctionBuilderContext,
) -> Emit<()> {
    check_entry(func)?;
    let mut signature = Signature::new(isa.default_call_conv());
    signature.params.extend([AbiParam::new(types::I64); 3]);
    function.signature = signature;
    let mut b = FunctionBuilder::new(function, work);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let params = b.block_params(entry);
    let (args, range) = (params[0], (params[1], params[2]));
    let mut word = |at: Value, i: usize| -> Emit<Value> {
        let offset = i32::try_from(8 * i).map_err(|_| Fault::unsupported("so many parameters"))?;
        Ok(b.ins().load(types::I64, MemFlagsData::trusted(), at, offset))
    };
    // the fields of `KernelArgs`: four pointers
    let (bufs_at, syms_at) = (word(args, 0)?, word(args, 1)?);
    let (scratch, status) = (word(args, 2)?, word(args, 3)?);
    let bufs = (0..func.bufs.len()).map(|i| word(bufs_at, i)).collect::<Emit<Vec<_>>>()?;
    let syms = (0..func.syms.len()).map(|i| word(syms_at, i)).collect::<Emit<Vec<_>>>()?;
    let mut emitter = Emitter {
        b,
        func,
        vals: vec![None; func.types.len()],
        constants: HashMap::new(),
        constants_here: HashMap::new(),
        splats: HashMap::new(),
        bufs,
        locals: Vec::new(),
        syms,
        status,
        range,
    };
    for offset in local_offsets(func).0 {
        let offset = emitter.dim(&offset)?;
        let local = emitter.b.ins().iadd(scratch, offset);
        emitter.locals.push(local);
    }
    emitter.stmts(&func.body.stmts)?;
    emitter.b.ins().return_(&[]);
    emitter.b.seal_all_blocks();
    emitter.b.finalize(isa.frontend_config());
    Ok(())
}

fn args(parts: impl IntoIterator<Item = Value>) -> Vec<BlockArg> {
    parts.into_iter().map(BlockArg::Value).collect()
}

impl Emitter<'_> {
    /// The registers of a value.
    pub fn val(&mut self, v: Val) -> Emit<Parts> {
        if let Some(parts) = self.vals.get(v.0 as usize).and_then(Option::as_ref) {
            return Ok(parts.clone());
        }
        if let Some(parts) = self.constants_here.get(&v) {
            return Ok(parts.clone());
        }
        if let Some(x) = self.constants.get(&v).copied() {
            let ty = self.ty(v)?;
            let parts = self.constant(ty, x)?;
            if ty.is_scalar() {
                self.constants_here.insert(v, parts.clone());
            }
            return Ok(parts);
        }
        Err(Fault::invalid(format!("value {} is used before it is defined", v.0)))
    }

    /// The register of a scalar.
    pub fn scalar(&mut self, v: Val) -> Emit<Value> {
        if !self.ty(v)?.is_scalar() {
            return Err(Fault::invalid(format!("value {} is no scalar", v.0)));
        }
        Ok(self.val(v)?[0])
    }

    /// The constant that a scalar, or every lane of a vector, is known to be.
    pub fn known(&self, v: Val) -> Option<Scalar> {
        let v = self.splats.get(&v).unwrap_or(&v);
        self.constants.get(v).copied()
    }

    /// As [`Self::known`], for integers.
    pub fn known_int(&self, v: Val) -> Option<i64> {
        self.known(v).and_then(|x| i64::try_from(x.as_int()).ok())
    }

    pub fn ty(&self, v: Val) -> Emit<Ty> {
        let ty = self.func.types.get(v.0 as usize).copied();
        ty.ok_or_else(|| Fault::invalid(format!("value {} has no type", v.0)))
    }

    pub fn sym_value(&self, i: u32) -> Emit<Value> {
        let value = self.syms.get(i as usize).copied();
        value.ok_or_else(|| Fault::invalid(format!("symbol parameter {i} does not exist")))
    }

    fn set(&mut self, v: Val, parts: Parts) -> Emit<()> {
        let (ty, n) = shape(self.ty(v)?)?;
        let fits = |p: &Value| self.b.func.dfg.value_type(*p) == ty;
        if parts.len() != n || !parts.iter().all(fits) {
            return Err(Fault::invalid(format!("value {} should be {n} x {ty}", v.0)));
        }
        self.vals[v.0 as usize] = Some(parts);
        Ok(())
    }

    pub fn go_to(&mut self, label: Label) {
        self.constants_here.clear();
        self.b.switch_to_block(label);
    }

    fn stmts(&mut self, stmts: &[Stmt]) -> Emit<()> {
        stmts.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Emit<()> {
        match stmt {
            Stmt::Let { val, inst: Inst::Const(x) } => {
                self.constants.insert(*val, *x);
                Ok(())
            }
            Stmt::Let { val, inst } => {
                if let Inst::Splat(v) = inst {
                    self.splats.insert(*val, *v);
                }
                let parts = self.inst(*val, inst)?;
                self.set(*val, parts)
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                let (lo, hi) = match parallel {
                    Some(_) => self.range,
                    None => (self.scalar(*lo)?, self.scalar(*hi)?),
                };
                self.for_loop(*var, (lo, hi, *step), carries, results, body)
            }
            Stmt::While { carries, results, cond, body } => self.while_loop(carries, results, cond, body),
            Stmt::If { cond, then, otherwise, results } => self.branch(*cond, then, otherwise, results),
            Stmt::Store { addr, value } => self.store(addr, *value),
            Stmt::Scatter { mem, index, value, mask } => self.scatter(*mem, *index, *value, *mask),
            // Cranelift has no such instruction
            Stmt::Prefetch { .. } => Ok(()),
            Stmt::Barrier(_) | Stmt::Pipe(_) => Err(Fault::invalid("barriers and pipes on a CPU")),
            Stmt::Check { ok, origin, value, limit } => {
                let (ok, value, limit) = (self.scalar(*ok)?, self.scalar(*value)?, self.scalar(*limit)?);
                self.check(ok, 1 + i64::from(origin.0), value, limit)
            }
        }
    }

    /// The registers of several values, one after another: arguments of a block.
    fn flat(&mut self, vals: impl Iterator<Item = Val>) -> Emit<Vec<BlockArg>> {
        let mut all = Vec::new();
        for v in vals {
            all.extend(args(self.val(v)?));
        }
        Ok(all)
    }

    /// Makes parameters of a block the registers of values.
    fn define_params(&mut self, label: Label, vals: impl Iterator<Item = Val>) -> Emit<()> {
        for v in vals {
            let (ty, n) = shape(self.ty(v)?)?;
            let parts = (0..n).map(|_| self.b.append_block_param(label, ty)).collect();
            self.set(v, parts)?;
        }
        Ok(())
    }

    fn for_loop(
        &mut self,
        var: Val,
        (lo, hi, step): (Value, Value, i64),
        carries: &[(Val, Val)],
        results: &[Val],
        body: &Block,
    ) -> Emit<()> {
        // Entered only if there is an iteration, so that the test sits at the end of the body.
        let inits = self.flat(carries.iter().map(|c| c.1))?;
        let (head, exit) = (self.b.create_block(), self.b.create_block());
        let enters = self.icmp(IntCC::SignedLessThan, lo, hi);
        let first: Vec<_> = args([lo]).into_iter().chain(inits.iter().copied()).collect();
        self.b.ins().brif(enters, head, &first, exit, &inits);
        let counter = self.b.append_block_param(head, types::I64);
        self.define_params(head, carries.iter().map(|c| c.0))?;
        self.set(var, SmallVec::from_elem(counter, 1))?;
        self.go_to(head);
        self.stmts(&body.stmts)?;
        let nexts = self.flat(body.yields.iter().copied())?;
        let next = self.b.ins().iadd_imm_s(counter, step);
        let more = self.icmp(IntCC::SignedLessThan, next, hi);
        let again: Vec<_> = args([next]).into_iter().chain(nexts.iter().copied()).collect();
        self.b.ins().brif(more, head, &again, exit, &nexts);
        self.define_params(exit, results.iter().copied())?;
        self.go_to(exit);
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
        let inits = self.flat(carries.iter().map(|c| c.1))?;
        let (head, inside, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().jump(head, &inits);
        self.define_params(head, carries.iter().map(|c| c.0))?;
        self.go_to(head);
        self.stmts(&cond.stmts)?;
        let test = self.scalar(*test)?;
        self.b.ins().brif(test, inside, &[], exit, &[]);
        self.go_to(inside);
        self.stmts(&body.stmts)?;
        let nexts = self.flat(body.yields.iter().copied())?;
        self.b.ins().jump(head, &nexts);
        for (result, (carry, _)) in results.iter().zip(carries) {
            let parts = self.val(*carry)?;
            self.set(*result, parts)?;
        }
        self.go_to(exit);
        Ok(())
    }

    fn branch(&mut self, cond: Val, then: &Block, other: &Block, results: &[Val]) -> Emit<()> {
        let cond = self.scalar(cond)?;
        let (yes, no, exit) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().brif(cond, yes, &[], no, &[]);
        for (label, arm) in [(yes, then), (no, other)] {
            self.go_to(label);
            self.stmts(&arm.stmts)?;
            let yields = self.flat(arm.yields.iter().copied())?;
            self.b.ins().jump(exit, &yields);
        }
        self.define_params(exit, results.iter().copied())?;
        self.go_to(exit);
        Ok(())
    }

    /// The first error of any thread claims the status word and then fills in the rest.
    fn check(&mut self, ok: Value, flag: i64, value: Value, limit: Value) -> Emit<()> {
        let (bad, first, fine) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(bad);
        self.b.set_cold_block(first);
        self.b.ins().brif(ok, fine, &[], bad, &[]);
        self.go_to(bad);
        let (none, flag) = (self.int64(0), self.int64(flag));
        let status = self.status;
        let old = self.b.ins().atomic_cas(MemFlagsData::trusted(), status, none, flag);
        self.b.ins().brif(old, fine, &[], first, &[]);
        self.go_to(first);
        self.b.ins().store(MemFlagsData::trusted(), value, status, 8);
        self.b.ins().store(MemFlagsData::trusted(), limit, status, 16);
        self.b.ins().jump(fine, &[]);
        self.go_to(fine);
        Ok(())
    }

    /// A block with parameters of these types, which become the answer.
    pub fn join(&mut self, ty: Type, n: usize) -> (Label, Parts) {
        let label = self.b.create_block();
        let parts = (0..n).map(|_| self.b.append_block_param(label, ty)).collect();
        (label, parts)
    }

    pub fn jump(&mut self, label: Label, parts: &Parts) {
        self.b.ins().jump(label, &args(parts.iter().copied()));
    }

    /// Continues in a new block where `cond` holds, else jumps to `label`.
    pub fn go_on_if(&mut self, cond: Value, label: Label, parts: &Parts) {
        let next = self.b.create_block();
        self.b.ins().brif(cond, next, &[], label, &args(parts.iter().copied()));
        self.go_to(next);
    }
}

impl IntEmit for Emitter<'_> {
    type V = Value;
    fn number(&mut self, x: i64) -> Value {
        self.int64(x)
    }
    fn sym(&mut self, sym: Sym) -> Emit<Value> {
        self.sym_value(sym_param(self.func, sym)?)
    }
    fn add(&mut self, a: Value, b: Value) -> Emit<Value> {
        Ok(self.b.ins().iadd(a, b))
    }
    fn mul(&mut self, a: Value, b: Value) -> Emit<Value> {
        Ok(self.b.ins().imul(a, b))
    }
    fn floor_div(&mut self, a: Value, b: Value) -> Emit<Value> {
        // round towards zero, then one down where the remainder is negative
        let quotient = self.b.ins().sdiv(a, b);
        let whole = self.b.ins().imul(quotient, b);
        let below = self.icmp(IntCC::SignedLessThan, a, whole);
        let below = self.b.ins().uextend(types::I64, below);
        Ok(self.b.ins().isub(quotient, below))
    }
    fn min(&mut self, a: Value, b: Value) -> Emit<Value> {
        Ok(self.b.ins().smin(a, b))
    }
    fn max(&mut self, a: Value, b: Value) -> Emit<Value> {
        Ok(self.b.ins().smax(a, b))
    }
}
