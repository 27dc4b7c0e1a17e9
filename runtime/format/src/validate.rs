//! What a program must keep so that executing its host schedule touches nothing that it does not own.
//!
//! The machine code of kernels is outside of this: it is trusted to stay within its operands' sizes.

use crate::{BufferDef, Place, Program, SizeExpr, SizeOp, Step};
use thiserror::Error;

/// What is wrong with a program.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("inconsistent program: {0}")]
pub struct Invalid(String);

fn fail<T>(what: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid(what.into()))
}

fn ensure(good: bool, what: &str) -> Result<(), Invalid> {
    if good { Ok(()) } else { fail(what) }
}

/// Checks `program`, whose constants have these lengths.
///
/// # Errors
/// Numbers of buffers, kernels, objects, symbols that there are not; aliases that are not backwards; constants
/// shorter than their buffers; calls with the wrong number of operands.
pub fn validate(program: &Program, consts: &[Option<usize>]) -> Result<(), Invalid> {
    let v = Validator { p: program };
    for (i, b) in program.buffers.iter().enumerate() {
        v.buffer(i, b, consts)?;
    }
    for (list, what) in [(&program.inputs, "input"), (&program.outputs, "output")] {
        for io in list {
            ensure(io.buffer < program.buffers.len(), what)?;
            v.sizes(&io.shape)?;
        }
    }
    for k in &program.kernels {
        v.size(&k.flops)?;
        for variant in &k.variants {
            for (a, b) in &variant.guards {
                v.size(a)?;
                v.size(b)?;
            }
            v.size(&variant.trip)?;
            v.size(&variant.scratch)?;
            variant.syms.iter().try_for_each(|&s| v.symbol(s))?;
            if let Some((object, _)) = &variant.code {
                ensure(*object < program.objects.len(), "a kernel without its object")?;
            }
        }
    }
    for s in &program.states {
        let ranks = [program.inputs.get(s.input), program.outputs.get(s.output)];
        let fits = ranks.iter().all(|io| io.is_some_and(|io| s.axis < io.shape.len()));
        ensure(fits && s.capacity >= 0, "a state that is no input and output")?;
        v.symbol(s.len)?;
        v.size(&s.next)?;
    }
    v.steps(&program.init)?;
    v.steps(&program.steps)
}

struct Validator<'a> {
    p: &'a Program,
}

impl Validator<'_> {
    fn buffer(&self, i: usize, b: &BufferDef, consts: &[Option<usize>]) -> Result<(), Invalid> {
        self.sizes(&b.shape)?;
        self.size(&b.bytes)?;
        match &b.place {
            Place::Const(c) => {
                let Some(len) = consts.get(*c) else { return fail("a buffer without its constant") };
                match (len, &b.bytes) {
                    (None, _) => Ok(()),
                    (Some(len), SizeExpr::Const(n)) => ensure(
                        usize::try_from(*n).is_ok_and(|n| n <= *len),
                        "a constant shorter than its buffer",
                    ),
                    _ => fail("a constant without a fixed size"),
                }
            }
            Place::Init => {
                ensure(matches!(b.bytes, SizeExpr::Const(n) if n >= 0), "weights without a fixed size")
            }
            Place::Input(k) => ensure(*k < self.p.inputs.len(), "a buffer without its input"),
            Place::Output(k) => ensure(*k < self.p.outputs.len(), "a buffer without its output"),
            Place::Arena { offset } => self.size(offset),
            Place::Alias(of) => ensure(*of < self.p.buffers.len() && *of != i, "an alias of no other buffer"),
            Place::Own => Ok(()),
        }
    }

    fn sizes(&self, list: &[SizeExpr]) -> Result<(), Invalid> {
        list.iter().try_for_each(|e| self.size(e))
    }

    fn size(&self, e: &SizeExpr) -> Result<(), Invalid> {
        let SizeExpr::Code(code) = e else { return Ok(()) };
        let mut depth = 0usize;
        for op in code.iter() {
            match op {
                SizeOp::Const(_) => depth += 1,
                SizeOp::Sym(s) => {
                    self.symbol(*s)?;
                    depth += 1;
                }
                _ => {
                    ensure(depth >= 2, "a size expression without operands")?;
                    depth -= 1;
                }
            }
            ensure(depth <= SizeExpr::MAX_DEPTH, "a size expression that is too deep")?;
        }
        ensure(depth == 1, "a size expression without one value")
    }

    fn symbol(&self, s: u32) -> Result<(), Invalid> {
        ensure((s as usize) < self.p.symbols.len(), "a symbol that does not exist")
    }

    fn places(&self, list: &[usize]) -> Result<(), Invalid> {
        ensure(list.iter().all(|&b| b < self.p.buffers.len()), "a buffer that does not exist")
    }

    fn steps(&self, steps: &[Step]) -> Result<(), Invalid> {
        steps.iter().try_for_each(|s| self.step(s))
    }

    fn step(&self, step: &Step) -> Result<(), Invalid> {
        match step {
            Step::Layout { buffers, end } => {
                self.places(buffers)?;
                self.size(end)
            }
            Step::Call { kernel, args, .. } => {
                let Some(k) = self.p.kernels.get(*kernel) else {
                    return fail("a kernel that does not exist");
                };
                ensure(k.writes.len() == args.len(), "a call with the wrong number of operands")?;
                self.places(args)
            }
            Step::Copy { from, to } => self.places(&[*from, *to]),
            Step::SetSym { sym, value, .. } => {
                self.symbol(*sym)?;
                self.size(value)
            }
            Step::BindSym { sym, from, .. } => {
                self.symbol(*sym)?;
                self.places(&[*from])
            }
            Step::CheckEq { a, b, .. } => {
                self.size(a)?;
                self.size(b)
            }
            Step::Assert { cond, .. } => self.places(&[*cond]),
            Step::If { cond, then, otherwise } => {
                self.places(&[*cond])?;
                self.steps(then)?;
                self.steps(otherwise)
            }
            Step::Loop { trip, cond, iter, cond_next, count, body, .. } => {
                self.places(&[*trip, *cond, *iter, *cond_next])?;
                self.symbol(*count)?;
                self.steps(body)
            }
            Step::Append { from, to, index } => {
                self.places(&[*from, *to])?;
                ensure(self.p.buffers[*to].place == Place::Own, "an append to a buffer that cannot grow")?;
                self.symbol(*index)
            }
            Step::Host { args, results, defines, .. } => {
                self.places(args)?;
                self.places(results)?;
                defines.iter().try_for_each(|&s| self.symbol(s))
            }
        }
    }
}
