//! A plain interpreter of kernels and host steps: tests tell a wrong kernel from a wrong schedule or
//! emitter with it. Slow; never part of a compiled program.
//!
//! It executes kernels in kernel IR (before any schedule) on the arena that [`crate::place`] planned,
//! so it finds faults of grouping, index arithmetic, buffer planning and the host schedule; or the functions
//! in loop IR that were made of them ([`Code`]), so it finds faults of schedules and of legalisation too. Every
//! access is checked; the arena starts out filled with a pattern. [`check()`] compares each kernel by itself with
//! values that are known, and large ones at some of their points.

mod check;
mod code;
mod kernel;
mod values;

pub use check::{Budget, Call, Known, Report, Verdict, check};
pub use code::Code;
pub use kernel::dtypes;

use crate::host::Planned;
use ir::host::{BufferId, Place, Step};
use ir::kernel::{Access, Generated, Kernel};
use ir::{Dim, Graph, Module, OriginId, Prim, Tensor, TensorType};
use kernel::{Points, Run};
use thiserror::Error;

/// Why a run stopped.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ExecError {
    /// The program is at fault.
    #[error("{0}")]
    Fault(String),
    /// The data is: an index out of range, sizes that do not agree, a failed assertion.
    #[error("{0}")]
    Data(String),
}

type Result<T> = std::result::Result<T, ExecError>;

fn fault<T>(message: impl Into<String>) -> Result<T> {
    Err(ExecError::Fault(message.into()))
}

/// What memory holds that nobody wrote yet.
const FRESH: u8 = 0xAA;

/// An element as it is stored, zero-extended.
type Bits = u64;

/// Runs `init` and `steps` on the inputs.
///
/// # Errors
/// Faults of the program, and those of the data.
pub fn execute(planned: &Planned, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    execute_as(planned, None, inputs)
}

/// As [`execute`], with the kernels in the form that `code` has of them.
///
/// # Errors
/// As [`execute`].
pub fn execute_as(planned: &Planned, code: Option<&Code>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut m = Machine::new(planned)?;
    m.code = code;
    m.bind(inputs)?;
    m.steps(&planned.init)?;
    m.steps(&planned.steps)?;
    planned.outputs.iter().map(|&b| m.tensor(b)).collect()
}

#[derive(Clone, Default)]
struct Memory {
    bytes: Vec<u8>,
}

struct Machine<'a> {
    p: &'a Planned,
    /// The kernels in another form.
    code: Option<&'a Code<'a>>,
    syms: Vec<Option<i64>>,
    arena: Memory,
    /// Memory of buffers outside the arena, by buffer.
    own: Vec<Memory>,
    /// Arena offset, by buffer; `None` where it is not laid out yet.
    offsets: Vec<Option<usize>>,
    lens: Vec<usize>,
    /// Local buffers of the chain that runs: their ids come after those of the program.
    locals: Vec<Memory>,
    /// For `interp::eval_op`.
    empty: Module,
}

impl<'a> Machine<'a> {
    fn new(p: &'a Planned) -> Result<Machine<'a>> {
        let n = p.buffers.len();
        let mut m = Machine {
            p,
            code: None,
            syms: vec![None; p.module.symbols.infos.len()],
            arena: Memory::default(),
            own: vec![Memory::default(); n],
            offsets: vec![None; n],
            lens: vec![0; n],
            locals: Vec::new(),
            empty: Module::default(),
        };
        for (i, b) in p.buffers.iter().enumerate() {
            match &b.place {
                Place::Const(c) => {
                    let data = &p.module.consts[c.0 as usize];
                    let t = interp::materialise(data).map_err(|e| ExecError::Fault(e.to_string()))?;
                    m.lens[i] = t.data.len();
                    m.own[i].bytes = t.data;
                }
                Place::Init => {
                    m.lens[i] = m.size(&b.bytes)?;
                    m.own[i].bytes = vec![FRESH; m.lens[i]];
                }
                _ => {}
            }
        }
        Ok(m)
    }

    fn bind(&mut self, inputs: &[Tensor]) -> Result<()> {
        for (&id, t) in self.p.inputs.iter().zip(inputs) {
            for (d, &n) in self.p.buffers[id.0 as usize].shape.iter().zip(&t.shape) {
                if let Some(s) = d.as_sym() {
                    self.syms[s.0 as usize].get_or_insert(n as i64);
                }
            }
        }
        for (&id, t) in self.p.inputs.iter().zip(inputs) {
            let def = &self.p.buffers[id.0 as usize];
            for (d, &n) in def.shape.iter().zip(&t.shape) {
                if self.dim(d)? != n as i64 {
                    return Err(ExecError::Data(format!("input {}: {:?}", def.name, t.shape)));
                }
            }
            self.lens[id.0 as usize] = t.data.len();
            self.own[id.0 as usize].bytes = t.data.clone();
        }
        Ok(())
    }

    fn dim(&self, d: &Dim) -> Result<i64> {
        d.eval_syms(&|s| self.syms[s.0 as usize])
            .ok_or_else(|| ExecError::Fault(format!("size {d} has no value")))
    }
    fn size(&self, d: &Dim) -> Result<usize> {
        usize::try_from(self.dim(d)?).map_err(|_| ExecError::Fault(format!("size {d} is negative")))
    }
    fn shape(&self, shape: &[Dim]) -> Result<Vec<usize>> {
        shape.iter().map(|d| self.size(d)).collect()
    }

    fn bytes(&self, b: BufferId) -> Result<&[u8]> {
        if let Some(local) = (b.0 as usize).checked_sub(self.p.buffers.len()) {
            return Ok(&self.locals[local].bytes);
        }
        let i = self.resolve(b);
        match self.p.buffers[i].place {
            Place::Arena { .. } => match self.offsets[i] {
                Some(o) => Ok(&self.arena.bytes[o..o + self.lens[i]]),
                None => fault(format!("buffer {} is not laid out", self.p.buffers[i].name)),
            },
            _ => Ok(&self.own[i].bytes),
        }
    }
    fn bytes_mut(&mut self, b: BufferId) -> Result<&mut [u8]> {
        if let Some(local) = (b.0 as usize).checked_sub(self.p.buffers.len()) {
            return Ok(&mut self.locals[local].bytes);
        }
        let i = self.resolve(b);
        match self.p.buffers[i].place {
            Place::Arena { .. } => match self.offsets[i] {
                Some(o) => Ok(&mut self.arena.bytes[o..o + self.lens[i]]),
                None => fault(format!("buffer {} is not laid out", self.p.buffers[i].name)),
            },
            _ => Ok(&mut self.own[i].bytes),
        }
    }
    fn resolve(&self, b: BufferId) -> usize {
        let mut i = b.0 as usize;
        while let Place::Alias(of) = self.p.buffers[i].place {
            i = of.0 as usize;
        }
        i
    }

    /// The value in a row-major buffer.
    fn tensor(&self, b: BufferId) -> Result<Tensor> {
        let def = &self.p.buffers[b.0 as usize];
        let shape = self.shape(&def.shape)?;
        let n = shape.iter().product::<usize>() * def.dtype.bytes();
        match self.bytes(b)?.get(..n) {
            Some(data) => Ok(Tensor::new(def.dtype, shape, data.to_vec())),
            None => fault(format!("buffer {} is too small for {shape:?}", def.name)),
        }
    }
    fn scalar(&self, b: BufferId) -> Result<i64> {
        let def = &self.p.buffers[b.0 as usize];
        let bytes = self.bytes(b)?;
        match bytes.get(..def.dtype.bytes()) {
            Some(raw) => Ok(crate::pull::decode_scalar(def.dtype, raw).map_or(0, |s| s.as_int() as i64)),
            None => fault(format!("buffer {} has no element", def.name)),
        }
    }

    fn steps(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|s| self.step(s))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Layout { buffers, end } => {
                let end = self.size(end)?;
                if self.arena.bytes.len() < end {
                    self.arena.bytes.resize(end, FRESH);
                }
                for &b in buffers {
                    self.lay_out(b, end)?;
                }
            }
            Step::Call { kernel, args, origin } => {
                self.call(*kernel, args, *origin)?;
            }
            Step::Copy { from, to } => {
                let n = self.lens[self.resolve(*to)];
                let data = self.bytes(*from)?.to_vec();
                match data.get(..n) {
                    Some(data) => self.bytes_mut(*to)?[..n].copy_from_slice(data),
                    None => return fault("copy from a smaller buffer"),
                }
            }
            Step::SetSym { sym, value, .. } => {
                let value = self.dim(value)?;
                self.set(sym.0, value)?;
            }
            Step::BindSym { sym, from, .. } => {
                let value = self.scalar(*from)?;
                self.set(sym.0, value)?;
            }
            Step::CheckEq { a, b, message, .. } => {
                let (x, y) = (self.dim(a)?, self.dim(b)?);
                if x != y {
                    return Err(ExecError::Data(format!("{message}: {a} = {x}, {b} = {y}")));
                }
            }
            Step::Assert { cond, message, .. } => {
                if self.scalar(*cond)? == 0 {
                    return Err(ExecError::Data(message.clone()));
                }
            }
            Step::If { cond, then, otherwise } => {
                let branch = if self.scalar(*cond)? != 0 { then } else { otherwise };
                self.steps(branch)?;
            }
            Step::Loop { trip, cond, iter, cond_next, count, body, .. } => {
                let trip = self.scalar(*trip)?;
                let mut go = self.scalar(*cond)? != 0;
                let mut i = 0;
                while go && i < trip {
                    self.syms[count.0 as usize] = Some(i);
                    self.bytes_mut(*iter)?[..8].copy_from_slice(&i.to_le_bytes());
                    self.steps(body)?;
                    go = self.scalar(*cond_next)? != 0;
                    i += 1;
                }
                self.syms[count.0 as usize] = Some(i);
            }
            Step::Append { from, to, index } => {
                let data = self.bytes(*from)?[..self.lens[self.resolve(*from)]].to_vec();
                let at = self.syms[index.0 as usize].unwrap_or(0) as usize * data.len();
                let to = self.resolve(*to);
                let memory = &mut self.own[to].bytes;
                memory.resize(memory.len().max(at + data.len()), FRESH);
                memory[at..at + data.len()].copy_from_slice(&data);
                self.lens[to] = memory.len();
            }
            Step::Host { func, args, results, defines, .. } => {
                let prim = Prim::Host { func: func.clone(), defines: Vec::new() };
                let operands = args.iter().map(|&b| self.tensor(b)).collect::<Result<Vec<_>>>()?;
                let types: Vec<TensorType> = results
                    .iter()
                    .map(|b| &self.p.buffers[b.0 as usize])
                    .map(|d| TensorType::new(d.dtype, d.shape.clone()))
                    .collect();
                let out = self.eval(prim, &operands, types)?;
                if let (Some(s), Some(t)) = (defines.first(), out.first()) {
                    self.set(s.0, t.shape.first().map_or(0, |&n| n as i64))?;
                }
                for (&b, t) in results.iter().zip(out) {
                    self.lens[b.0 as usize] = t.data.len();
                    self.own[b.0 as usize].bytes = t.data;
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, kernel: usize, args: &[BufferId], origin: OriginId) -> Result<()> {
        if let Some(code) = self.code {
            return self.run_code(code, kernel, args, Points::All);
        }
        let kernel = &self.p.kernels[kernel];
        match &kernel.generated {
            Some(g) => self.generated(kernel, g, args),
            None if !kernel.stages.is_empty() => self.chain(kernel, args, origin),
            None => self.kernel(kernel, args, origin),
        }
    }

    fn set(&mut self, sym: u32, value: i64) -> Result<()> {
        let info = &self.p.module.symbols.infos[sym as usize];
        if value < info.lo || value > info.hi {
            return Err(ExecError::Data(format!("{} = {value}", info.name)));
        }
        self.syms[sym as usize] = Some(value);
        Ok(())
    }

    fn lay_out(&mut self, b: BufferId, end: usize) -> Result<()> {
        let i = b.0 as usize;
        let def = &self.p.buffers[i];
        self.lens[i] = self.size(&def.bytes)?;
        match &def.place {
            Place::Arena { offset } => {
                let offset = self.size(offset)?;
                if offset + self.lens[i] > end || offset % crate::place::ALIGN as usize != 0 {
                    return fault(format!("buffer {} at {offset} beyond the arena ({end})", def.name));
                }
                self.offsets[i] = Some(offset);
            }
            _ => {
                let len = self.lens[i];
                self.own[i].bytes.resize(len, FRESH);
            }
        }
        Ok(())
    }

    /// One primitive on whole tensors, by the reference interpreter.
    fn eval(&self, prim: Prim, operands: &[Tensor], results: Vec<TensorType>) -> Result<Vec<Tensor>> {
        let mut g = Graph::new("op");
        let inputs = operands
            .iter()
            .map(|t| {
                let shape = t.shape.iter().map(|&d| Dim::from(d)).collect();
                g.add_input(None, TensorType::new(t.dtype, shape))
            })
            .collect();
        let id = g.push_op(prim, inputs, Vec::new(), results, OriginId(0));
        let sym = |s: ir::Sym| self.syms.get(s.0 as usize).copied().flatten();
        interp::eval_op(&self.empty, &g[id], operands, &sym, interp::Budget::RUN)
            .map_err(|e| ExecError::Data(e.to_string()))
    }

    fn generated(&mut self, kernel: &Kernel, what: &Generated, args: &[BufferId]) -> Result<()> {
        let operands: Vec<Tensor> = kernel
            .buffers
            .iter()
            .zip(args)
            .filter(|(b, _)| b.access == Access::Read)
            .map(|(_, &b)| self.tensor(b))
            .collect::<Result<_>>()?;
        let targets: Vec<BufferId> = args[operands.len()..].to_vec();
        let types = targets
            .iter()
            .map(|b| &self.p.buffers[b.0 as usize])
            .map(|d| TensorType::new(d.dtype, d.shape.clone()))
            .collect();
        let prim = match what {
            Generated::Sort { axis, descending } => Prim::Sort { axis: *axis, descending: *descending },
            Generated::TopK { axis, largest } => {
                let k = self.p.buffers[targets[0].0 as usize].shape[*axis].clone();
                Prim::TopK { axis: *axis, k: Dim::from(self.dim(&k)?), largest: *largest }
            }
            Generated::Compact => return self.compact(&operands[0], &targets),
        };
        for (b, t) in targets.into_iter().zip(self.eval(prim, &operands, types)?) {
            let n = t.data.len();
            self.bytes_mut(b)?[..n].copy_from_slice(&t.data);
        }
        Ok(())
    }

    fn compact(&mut self, mask: &Tensor, targets: &[BufferId]) -> Result<()> {
        let found: Vec<u8> = mask
            .data
            .iter()
            .enumerate()
            .filter(|(_, b)| **b != 0)
            .flat_map(|(i, _)| (i as i64).to_le_bytes())
            .collect();
        self.bytes_mut(targets[0])?[..found.len()].copy_from_slice(&found);
        let count = (found.len() / 8) as i64;
        self.bytes_mut(targets[1])?[..8].copy_from_slice(&count.to_le_bytes());
        Ok(())
    }

    /// The stages one after another, each over its whole domain.
    fn chain(&mut self, chain: &Kernel, args: &[BufferId], origin: OriginId) -> Result<()> {
        let mut all = args.to_vec();
        for b in &chain.buffers[args.len()..] {
            let bytes = crate::host::buffer_bytes(b.dtype, &b.shape, &b.layout, &self.p.module.symbols);
            let bytes = self.size(&bytes)?;
            all.push(BufferId((self.p.buffers.len() + self.locals.len()) as u32));
            self.locals.push(Memory { bytes: vec![FRESH; bytes] });
        }
        for s in &chain.stages {
            let own: Vec<BufferId> = s.args.iter().map(|a| all[a.0 as usize]).collect();
            self.kernel(&s.kernel, &own, origin)?;
        }
        self.locals.clear();
        Ok(())
    }

    fn kernel(&mut self, kernel: &Kernel, args: &[BufferId], origin: OriginId) -> Result<()> {
        Run::new(self, kernel, args, origin)?.execute(Points::All).map(drop)
    }
}
