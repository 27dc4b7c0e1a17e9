//! Syntax tree to decoded instructions. Every opcode and modifier is consumed by name; what remains is an
//! error with the line and the text of the instruction.

mod arith;
mod control;
mod convert;
mod float;
mod memory;
mod names;
pub mod op;
mod tensor;

use crate::syntax::SyntaxError;
use crate::syntax::ast::{self, Operand, Stmt};
use crate::syntax::types::Ty;
use names::Names;
use op::{Inst, Op, PredSrc, Slot};
use std::collections::HashMap;

pub use names::{Initial, Special};

/// A kernel ready to run.
#[derive(Debug, Clone)]
pub struct Program {
    pub name: String,
    pub code: Vec<Inst>,
    /// What each 32-bit slot holds when a warp starts, and its name.
    pub slots32: Vec<(Initial, String)>,
    pub slots64: Vec<(Initial, String)>,
    pub preds: Vec<String>,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Where dynamic shared memory begins.
    pub dynamic_shared: u32,
    /// Bytes of local memory per lane.
    pub local_bytes: u32,
    pub params: Vec<ast::Param>,
    pub param_bytes: u32,
    pub reqntid: Option<[u32; 3]>,
    pub maxntid: Option<[u32; 3]>,
    /// Source text of each instruction, for messages.
    pub text: Vec<String>,
}

/// Decodes a kernel. `globals` gives the addresses of the module's variables.
pub fn decode(
    source: &str,
    module: &ast::Module,
    kernel: &ast::Kernel,
    globals: &HashMap<String, u64>,
) -> Result<Program, SyntaxError> {
    let mut names = Names::new(module, kernel, globals);
    let mut labels = HashMap::new();
    let mut count = 0u32;
    for s in &kernel.body {
        match s {
            Stmt::Label(l) => {
                if labels.insert(l.clone(), count).is_some() {
                    return Err(SyntaxError { line: kernel.line, message: format!("label `{l}` twice") });
                }
            }
            Stmt::Inst(_) => count += 1,
        }
    }
    let mut code = Vec::with_capacity(count as usize + 1);
    let mut text = Vec::with_capacity(count as usize + 1);
    for s in &kernel.body {
        let Stmt::Inst(inst) = s else { continue };
        let words =
            source.get(inst.span.clone()).unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ");
        let mut form = Form::new(&mut names, inst, &labels);
        let at =
            |message: String| SyntaxError { line: inst.line, message: format!("{message} in `{words}`") };
        let op = form.decode().and_then(|op| form.finish().map(|()| op)).map_err(at)?;
        let flops = form.flops;
        let guard = match &inst.guard {
            None => None,
            Some((negated, name)) => {
                let slot = names.pred(name).map_err(at)?;
                Some(PredSrc { slot, negated: *negated })
            }
        };
        code.push(Inst { op, guard, line: inst.line, flops });
        text.push(words);
    }
    // running off the end returns (§9.7.12.5)
    code.push(Inst { op: Op::Exit, guard: None, line: kernel.line, flops: 0 });
    text.push("(end of the kernel)".into());
    let layout = names.layout();
    Ok(Program {
        name: kernel.name.clone(),
        code,
        text,
        shared_bytes: layout.0,
        dynamic_shared: layout.1,
        local_bytes: layout.2,
        params: kernel.params.clone(),
        param_bytes: kernel.param_bytes(),
        reqntid: kernel.reqntid,
        maxntid: kernel.maxntid,
        slots32: names.slots32,
        slots64: names.slots64,
        preds: names.preds,
    })
}

type Res<T> = Result<T, String>;

/// One instruction being decoded: its modifiers are consumed one by one.
struct Form<'a, 'n> {
    names: &'a mut Names<'n>,
    mods: Vec<Option<&'a str>>,
    ops: &'a [Operand],
    labels: &'a HashMap<String, u32>,
    base: &'a str,
    flops: u32,
}

impl<'a, 'n> Form<'a, 'n> {
    fn new(names: &'a mut Names<'n>, inst: &'a ast::Inst, labels: &'a HashMap<String, u32>) -> Self {
        let mods = inst.opcode[1..].iter().map(|m| Some(m.as_str())).collect();
        Form { names, mods, ops: &inst.operands, labels, base: &inst.opcode[0], flops: 0 }
    }

    fn decode(&mut self) -> Res<Op> {
        match self.base {
            "add" | "sub" | "mul" | "fma" | "mad" | "div" | "min" | "max" | "abs" | "neg" => {
                if self.mods.iter().flatten().filter_map(|m| Ty::parse(m)).any(Ty::is_float) {
                    self.float()
                } else {
                    self.integer()
                }
            }
            "rcp" | "rsqrt" | "sqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" | "copysign" | "testp" => {
                self.float()
            }
            "rem" | "sad" | "mul24" | "mad24" | "popc" | "clz" | "bfind" | "brev" | "bfe" | "bfi" | "and"
            | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "dp4a" | "dp2a"
            | "bmsk" | "szext" => self.integer(),
            "setp" | "selp" | "slct" => self.select(),
            "cvt" => self.cvt(),
            "mov" | "cvta" | "isspacep" => self.moves(),
            "ld" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "cp" | "applypriority" | "discard" => {
                self.memory()
            }
            "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "shfl" | "vote" | "match" | "redux"
            | "elect" | "activemask" | "membar" | "fence" | "nanosleep" | "griddepcontrol" | "pmevent" => {
                self.control()
            }
            "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => self.tensor(),
            other => Err(format!("unknown opcode `{other}`")),
        }
    }

    fn finish(&self) -> Res<()> {
        match self.mods.iter().flatten().next() {
            Some(m) => Err(format!("unknown modifier `.{m}`")),
            None => Ok(()),
        }
    }

    /// Consumes a modifier if it is there.
    fn has(&mut self, name: &str) -> bool {
        match self.mods.iter_mut().find(|m| **m == Some(name)) {
            Some(m) => {
                *m = None;
                true
            }
            None => false,
        }
    }

    /// Consumes the one of `names` that is there.
    fn one_of(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|n| self.has(n))
    }

    /// Consumes the first type among the modifiers.
    fn ty(&mut self) -> Res<Ty> {
        for m in &mut self.mods {
            if let Some(t) = m.and_then(Ty::parse) {
                *m = None;
                return Ok(t);
            }
        }
        Err("no type".into())
    }

    fn arity(&self, n: usize) -> Res<()> {
        if self.ops.len() == n { Ok(()) } else { Err(format!("{} operands, expected {n}", self.ops.len())) }
    }

    /// A source of 8, 16 or 32 bits.
    fn src32(&mut self, i: usize, ty: Ty) -> Res<u32> {
        let op = self.ops.get(i).ok_or("too few operands")?;
        match self.names.source(op, ty)? {
            Slot::R32(s) => Ok(s),
            _ => Err(format!("operand {} must have at most 32 bits", i + 1)),
        }
    }

    fn src64(&mut self, i: usize, ty: Ty) -> Res<u32> {
        let op = self.ops.get(i).ok_or("too few operands")?;
        match self.names.source(op, ty)? {
            Slot::R64(s) => Ok(s),
            _ => Err(format!("operand {} must have 64 bits", i + 1)),
        }
    }

    fn src(&mut self, i: usize, ty: Ty) -> Res<Slot> {
        let op = self.ops.get(i).ok_or("too few operands")?;
        self.names.source(op, ty)
    }

    /// A destination of at most 32 bits.
    fn dst32(&mut self, i: usize) -> Res<u32> {
        match self.dst(i)? {
            Slot::R32(s) => Ok(s),
            _ => Err(format!("operand {} must have at most 32 bits", i + 1)),
        }
    }

    fn dst64(&mut self, i: usize) -> Res<u32> {
        match self.dst(i)? {
            Slot::R64(s) => Ok(s),
            _ => Err(format!("operand {} must have 64 bits", i + 1)),
        }
    }

    fn dst(&mut self, i: usize) -> Res<Slot> {
        let op = self.ops.get(i).ok_or("too few operands")?;
        self.names.destination(op)
    }

    /// A destination as wide as `ty`.
    fn dst_of(&mut self, i: usize, ty: Ty) -> Res<Slot> {
        let slot = self.dst(i)?;
        let wide = matches!(slot, Slot::R64(_));
        if wide == (ty.bits() == 64) { Ok(slot) } else { Err(format!("operand {} has another width", i + 1)) }
    }

    fn pred_dst(&mut self, op: &Operand) -> Res<u32> {
        match op {
            Operand::Name(n) if n == "_" => Ok(op::NO_PRED),
            Operand::Name(n) => self.names.pred(n),
            _ => Err("expected a predicate".into()),
        }
    }

    fn pred_src(&mut self, i: usize) -> Res<PredSrc> {
        match self.ops.get(i) {
            Some(Operand::Name(n)) => Ok(PredSrc { slot: self.names.pred(n)?, negated: false }),
            Some(Operand::Not(n)) => Ok(PredSrc { slot: self.names.pred(n)?, negated: true }),
            Some(Operand::Int(v)) => Ok(PredSrc { slot: self.names.pred_true(), negated: *v == 0 }),
            _ => Err(format!("operand {} must be a predicate", i + 1)),
        }
    }

    fn scalar(&mut self, f: crate::num::lanes::Scalar, d: Slot, srcs: &[Slot], imm: u32) -> Op {
        let s = |i: usize| srcs.get(i).copied().unwrap_or(Slot::None);
        Op::S { f, d, a: s(0), b: s(1), c: s(2), imm }
    }
}
