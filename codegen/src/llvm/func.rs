//! Functions and statements: entry, loops, branches, checks.

use super::build::{Build, Value};
use super::matrix::{Registers, is_matrix};
use crate::Fault;
use crate::entry::{IntEmit, check_entry, local_offsets, sym_param};
use crate::error::Emit;
use inkwell::attributes::AttributeLoc;
use inkwell::basic_block::BasicBlock;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::values::{FunctionValue, InstructionOpcode as Op, IntValue, PhiValue, PointerValue};
use inkwell::{AddressSpace, AtomicOrdering, IntPredicate};
use ir::Sym;
use ir::loops::{Block, Func, Stmt, Val};
use ir::target::TargetDesc;

/// Emission of one function.
pub(super) struct Emitter<'a, 'ctx> {
    pub build: Build<'a, 'ctx>,
    pub func: &'a Func,
    pub desc: &'a TargetDesc,
    function: FunctionValue<'ctx>,
    vals: Vec<Option<Value<'ctx>>>,
    pub bufs: Vec<PointerValue<'ctx>>,
    pub locals: Vec<PointerValue<'ctx>>,
    pub matrices: Registers,
    syms: Vec<IntValue<'ctx>>,
    status: PointerValue<'ctx>,
    /// Iterations of the parallel loop that this call runs.
    range: (IntValue<'ctx>, IntValue<'ctx>),
}

/// Adds `func` to the module.
pub(super) fn emit<'ctx>(
    cx: &'ctx Context,
    module: &Module<'ctx>,
    desc: &TargetDesc,
    func: &Func,
) -> Emit<()> {
    check_entry(func)?;
    let build = Build::new(cx, module);
    let ptr = cx.ptr_type(AddressSpace::default());
    let i64t = cx.i64_type();
    let signature = cx.void_type().fn_type(&[ptr.into(), i64t.into(), i64t.into()], false);
    let function = module.add_function(&func.name, signature, None);
    add_attributes(cx, function, desc);
    build.b.position_at_end(cx.append_basic_block(function, "entry"));

    let param = |i| function.get_nth_param(i).ok_or_else(|| Fault::emitter("parameter missing"));
    let args = param(0)?.into_pointer_value();
    let range = (param(1)?.into_int_value(), param(2)?.into_int_value());
    // the fields of `KernelArgs`: four pointers
    let field = |i: i64| -> Emit<PointerValue<'ctx>> {
        let at = build.offset(ptr.into(), args, build.i64(i))?;
        Ok(build.b.build_load(ptr, at, "")?.into_pointer_value())
    };
    let (bufs_at, syms_at, scratch, status) = (field(0)?, field(1)?, field(2)?, field(3)?);
    let bufs = (0..func.bufs.len())
        .map(|i| {
            let at = build.offset(ptr.into(), bufs_at, build.i64(i as i64))?;
            Ok(build.b.build_load(ptr, at, &func.bufs[i].name)?.into_pointer_value())
        })
        .collect::<Emit<Vec<_>>>()?;
    let syms = (0..func.syms.len())
        .map(|i| {
            let at = build.offset(i64t.into(), syms_at, build.i64(i as i64))?;
            Ok(build.b.build_load(i64t, at, "")?.into_int_value())
        })
        .collect::<Emit<Vec<_>>>()?;

    let vals = vec![None; func.types.len()];
    let (locals, matrices) = (Vec::new(), Registers::of(func, desc)?);
    let mut emitter =
        Emitter { build, func, desc, function, vals, bufs, locals, matrices, syms, status, range };
    for offset in local_offsets(func).0 {
        let offset = emitter.dim(&offset)?;
        let byte = cx.i8_type().into();
        let local = emitter.build.offset(byte, scratch, offset)?;
        emitter.locals.push(local);
    }
    emitter.configure_matrices()?;
    emitter.stmts(&func.body.stmts)?;
    emitter.release_matrices()?;
    emitter.build.b.build_return(None)?;
    Ok(())
}

fn add_attributes(cx: &Context, function: FunctionValue<'_>, desc: &TargetDesc) {
    let text = |key: &str, value: &str| {
        function.add_attribute(AttributeLoc::Function, cx.create_string_attribute(key, value));
    };
    text("target-cpu", &desc.cpu);
    text("target-features", &desc.features);
    text("prefer-vector-width", &desc.vector_bits.to_string());
    let kind = inkwell::attributes::Attribute::get_named_enum_kind_id("nounwind");
    function.add_attribute(AttributeLoc::Function, cx.create_enum_attribute(kind, 0));
}

impl<'a, 'ctx> Emitter<'a, 'ctx> {
    pub fn val(&self, v: Val) -> Emit<Value<'ctx>> {
        self.vals
            .get(v.0 as usize)
            .copied()
            .flatten()
            .ok_or_else(|| Fault::invalid(format!("value {} is used before it is defined", v.0)))
    }

    pub fn int(&self, v: Val) -> Emit<IntValue<'ctx>> {
        match self.val(v)? {
            Value::IntValue(i) => Ok(i),
            _ => Err(Fault::invalid(format!("value {} is no integer scalar", v.0))),
        }
    }

    fn set(&mut self, v: Val, value: Value<'ctx>) -> Emit<()> {
        let ty = self.build.ty(self.ty(v)?)?;
        if ty != value.get_type() {
            return Err(Fault::invalid(format!(
                "value {} should be {}, its instruction makes {}",
                v.0,
                ty,
                value.get_type()
            )));
        }
        self.vals[v.0 as usize] = Some(value);
        Ok(())
    }

    pub fn ty(&self, v: Val) -> Emit<ir::loops::Ty> {
        let ty = self.func.types.get(v.0 as usize).copied();
        ty.ok_or_else(|| Fault::invalid(format!("value {} has no type", v.0)))
    }

    pub fn sym_value(&self, i: u32) -> Emit<IntValue<'ctx>> {
        let value = self.syms.get(i as usize).copied();
        value.ok_or_else(|| Fault::invalid(format!("symbol parameter {i} does not exist")))
    }

    pub fn block(&self, name: &str) -> BasicBlock<'ctx> {
        self.build.cx.append_basic_block(self.function, name)
    }

    pub fn here(&self) -> Emit<BasicBlock<'ctx>> {
        self.build.b.get_insert_block().ok_or_else(|| Fault::emitter("no block to emit into"))
    }

    fn stmts(&mut self, stmts: &[Stmt]) -> Emit<()> {
        stmts.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Emit<()> {
        match stmt {
            Stmt::Let { val, inst } if is_matrix(self.ty(*val)?) => self.matrix(*val, inst),
            Stmt::Let { val, inst } => {
                let value = self.inst(*val, inst)?;
                self.set(*val, value)
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                let (lo, hi) = match parallel {
                    Some(_) => self.range,
                    None => (self.int(*lo)?, self.int(*hi)?),
                };
                for c in carries.iter().filter(|c| is_matrix(self.func.ty(c.0))) {
                    self.begin_matrix(c.0, c.1)?;
                }
                self.for_loop(*var, lo, hi, *step, carries, results, body)
            }
            Stmt::While { carries, results, cond, body } => self.while_loop(carries, results, cond, body),
            Stmt::If { cond, then, otherwise, results } => self.branch(*cond, then, otherwise, results),
            Stmt::Store { addr, value } if is_matrix(self.ty(*value)?) => self.matrix_store(addr, *value),
            Stmt::Store { addr, value } => self.store(addr, *value),
            Stmt::Scatter { mem, index, value, mask } => self.scatter(*mem, *index, *value, *mask),
            Stmt::Prefetch { mem, index } => self.prefetch(*mem, *index),
            Stmt::Barrier(_) | Stmt::Pipe(_) => Err(Fault::invalid("barriers and pipes on a CPU")),
            Stmt::Check { ok, origin, value, limit } => {
                let (ok, value, limit) = (self.int(*ok)?, self.int(*value)?, self.int(*limit)?);
                self.check(ok, 1 + i64::from(origin.0), value, limit)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the statement")]
    fn for_loop(
        &mut self,
        var: Val,
        lo: IntValue<'ctx>,
        hi: IntValue<'ctx>,
        step: i64,
        carries: &[(Val, Val)],
        results: &[Val],
        body: &Block,
    ) -> Emit<()> {
        // matrices stay where they are
        let plain = |v: &Val| !is_matrix(self.func.ty(*v));
        let carries: Vec<(Val, Val)> = carries.iter().copied().filter(|c| plain(&c.0)).collect();
        let results: Vec<Val> = results.iter().copied().filter(plain).collect();
        let yields: Vec<Val> = body.yields.iter().copied().filter(plain).collect();
        let inits = carries.iter().map(|(_, i)| self.val(*i)).collect::<Emit<Vec<_>>>()?;
        // Entered only if there is an iteration, so that the test sits at the end of the body.
        let before = self.here()?;
        let (head, exit) = (self.block("loop"), self.block("done"));
        let enters = self.build.icmp(IntPredicate::SLT, lo.into(), hi.into())?.into_int_value();
        let constant = enters.is_const().then(|| enters.get_zero_extended_constant()).flatten();
        let always = constant == Some(1);
        if always {
            self.build.b.build_unconditional_branch(head)?;
        } else {
            self.build.b.build_conditional_branch(enters, head, exit)?;
        }
        self.build.b.position_at_end(head);
        let counter = self.build.b.build_phi(self.build.cx.i64_type(), "")?;
        self.set(var, counter.as_basic_value())?;
        let phis = self.phis(carries.iter().map(|c| c.0), &inits, before)?;
        self.stmts(&body.stmts)?;
        let nexts = yields.iter().map(|v| self.val(*v)).collect::<Emit<Vec<_>>>()?;
        let step = self.build.i64(step);
        let next = self.build.bin(Op::Add, counter.as_basic_value(), step.into())?;
        let more = self.build.icmp(IntPredicate::SLT, next, hi.into())?;
        let latch = self.here()?;
        self.build.b.build_conditional_branch(more.into_int_value(), head, exit)?;
        counter.add_incoming(&[(&lo, before), (&next, latch)]);
        for (phi, next) in phis.iter().zip(&nexts) {
            phi.add_incoming(&[(next, latch)]);
        }
        self.build.b.position_at_end(exit);
        for ((result, init), next) in results.into_iter().zip(&inits).zip(&nexts) {
            let phi = self.build.b.build_phi(next.get_type(), "")?;
            if !always {
                phi.add_incoming(&[(init, before)]);
            }
            phi.add_incoming(&[(next, latch)]);
            self.set(result, phi.as_basic_value())?;
        }
        Ok(())
    }

    /// One phi for each carried value, with its initial value.
    fn phis(
        &mut self,
        vals: impl Iterator<Item = Val>,
        inits: &[Value<'ctx>],
        before: BasicBlock<'ctx>,
    ) -> Emit<Vec<PhiValue<'ctx>>> {
        vals.zip(inits)
            .map(|(val, init)| {
                let phi = self.build.b.build_phi(init.get_type(), "")?;
                phi.add_incoming(&[(init, before)]);
                self.set(val, phi.as_basic_value())?;
                Ok(phi)
            })
            .collect()
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
        let inits = carries.iter().map(|(_, i)| self.val(*i)).collect::<Emit<Vec<_>>>()?;
        let before = self.here()?;
        let (head, inside, exit) = (self.block("while"), self.block("body"), self.block("done"));
        self.build.b.build_unconditional_branch(head)?;
        self.build.b.position_at_end(head);
        let phis = self.phis(carries.iter().map(|c| c.0), &inits, before)?;
        self.stmts(&cond.stmts)?;
        let test = self.int(*test)?;
        self.build.b.build_conditional_branch(test, inside, exit)?;
        self.build.b.position_at_end(inside);
        self.stmts(&body.stmts)?;
        let nexts = body.yields.iter().map(|v| self.val(*v)).collect::<Emit<Vec<_>>>()?;
        let latch = self.here()?;
        self.build.b.build_unconditional_branch(head)?;
        for (phi, next) in phis.iter().zip(&nexts) {
            phi.add_incoming(&[(next, latch)]);
        }
        self.build.b.position_at_end(exit);
        for (result, phi) in results.iter().zip(&phis) {
            self.set(*result, phi.as_basic_value())?;
        }
        Ok(())
    }

    fn branch(&mut self, cond: Val, then: &Block, other: &Block, results: &[Val]) -> Emit<()> {
        let cond = self.int(cond)?;
        let (yes, no, exit) = (self.block("then"), self.block("else"), self.block("join"));
        self.build.b.build_conditional_branch(cond, yes, no)?;
        let mut arms = Vec::with_capacity(2);
        for (block, arm) in [(yes, then), (no, other)] {
            self.build.b.position_at_end(block);
            self.stmts(&arm.stmts)?;
            let yields = arm.yields.iter().map(|v| self.val(*v)).collect::<Emit<Vec<_>>>()?;
            arms.push((yields, self.here()?));
            self.build.b.build_unconditional_branch(exit)?;
        }
        self.build.b.position_at_end(exit);
        for (i, result) in results.iter().enumerate() {
            let phi = self.build.b.build_phi(arms[0].0[i].get_type(), "")?;
            for (yields, from) in &arms {
                phi.add_incoming(&[(&yields[i], *from)]);
            }
            self.set(*result, phi.as_basic_value())?;
        }
        Ok(())
    }

    /// The first error of any thread claims the status word and then fills in the rest.
    fn check(&self, ok: IntValue<'ctx>, flag: i64, value: IntValue<'ctx>, limit: IntValue<'ctx>) -> Emit<()> {
        let b = &self.build;
        let (bad, first, fine) = (self.block("bad"), self.block("first"), self.block("fine"));
        b.b.build_conditional_branch(ok, fine, bad)?;
        b.b.position_at_end(bad);
        let order = (AtomicOrdering::AcquireRelease, AtomicOrdering::Monotonic);
        let old = b.b.build_cmpxchg(self.status, b.i64(0), b.i64(flag), order.0, order.1)?;
        let claimed = b.b.build_extract_value(old, 1, "")?.into_int_value();
        b.b.build_conditional_branch(claimed, first, fine)?;
        b.b.position_at_end(first);
        let word = b.cx.i64_type().into();
        b.b.build_store(b.offset(word, self.status, b.i64(1))?, value)?;
        b.b.build_store(b.offset(word, self.status, b.i64(2))?, limit)?;
        b.b.build_unconditional_branch(fine)?;
        b.b.position_at_end(fine);
        Ok(())
    }
}

impl<'ctx> IntEmit for Emitter<'_, 'ctx> {
    type V = IntValue<'ctx>;
    fn number(&mut self, x: i64) -> Self::V {
        self.build.i64(x)
    }
    fn sym(&mut self, sym: Sym) -> Emit<Self::V> {
        self.sym_value(sym_param(self.func, sym)?)
    }
    fn add(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V> {
        Ok(self.build.b.build_int_add(a, b, "")?)
    }
    fn mul(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V> {
        Ok(self.build.b.build_int_mul(a, b, "")?)
    }
    fn floor_div(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V> {
        // round towards zero, then one down where the remainder is negative
        let build = &self.build;
        let quotient = build.b.build_int_signed_div(a, b, "")?;
        let rest = build.b.build_int_signed_rem(a, b, "")?;
        let below = build.icmp(IntPredicate::SLT, rest.into(), build.i64(0).into())?;
        let less = build.b.build_int_s_extend(below.into_int_value(), build.cx.i64_type(), "")?;
        Ok(build.b.build_int_add(quotient, less, "")?)
    }
    fn min(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V> {
        Ok(self.build.math("llvm.smin", &[a.into(), b.into()])?.into_int_value())
    }
    fn max(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V> {
        Ok(self.build.math("llvm.smax", &[a.into(), b.into()])?.into_int_value())
    }
}
