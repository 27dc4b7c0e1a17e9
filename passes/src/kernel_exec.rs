//! A plain interpreter of kernels and host steps: tests tell a wrong kernel from a wrong schedule or
//! emitter with it. Slow; never part of a compiled program.
//!
//! It executes kernels in kernel IR (before any schedule) on the arena that [`crate::place`] planned,
//! so it finds faults of grouping, index arithmetic, buffer planning and the host schedule. Every
//! access is checked; the arena starts out filled with a pattern.

use crate::host::Planned;
use ir::dtype::Scalar;
use ir::host::{BufferId, Place, Step};
use ir::kernel::{Access, Axis, BufId, Expr, ExprId, Generated, Guard, Kernel, Stmt};
use ir::prim::{BinaryOp, CmpOp, Combine, ConvertMode};
use ir::{Atom, DType, Dim, Graph, Layout, Module, OriginId, Prim, Tensor, TensorType};
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

/// An element as it is stored, zero-extended.
type Bits = u64;

/// Runs `init` and `steps` on the inputs.
pub fn execute(planned: &Planned, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut m = Machine::new(planned)?;
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
                    m.own[i].bytes = vec![0xAA; m.lens[i]];
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
                    self.arena.bytes.resize(end, 0xAA);
                }
                for &b in buffers {
                    self.lay_out(b, end)?;
                }
            }
            Step::Call { kernel, args, origin } => {
                let kernel = &self.p.kernels[*kernel];
                match &kernel.generated {
                    Some(g) => self.generated(kernel, g, args)?,
                    None if !kernel.stages.is_empty() => self.chain(kernel, args, *origin)?,
                    None => self.kernel(kernel, args, *origin)?,
                }
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
                memory.resize(memory.len().max(at + data.len()), 0xAA);
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
                self.own[i].bytes.resize(len, 0xAA);
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
            self.locals.push(Memory { bytes: vec![0xAA; bytes] });
        }
        for s in &chain.stages {
            let own: Vec<BufferId> = s.args.iter().map(|a| all[a.0 as usize]).collect();
            self.kernel(&s.kernel, &own, origin)?;
        }
        self.locals.clear();
        Ok(())
    }

    fn kernel(&mut self, kernel: &Kernel, args: &[BufferId], origin: OriginId) -> Result<()> {
        let mut shapes = Vec::new();
        for b in &kernel.buffers {
            shapes.push(self.shape(&b.shape)?);
        }
        let dtypes = dtypes(kernel);
        let mut run = Run {
            m: self,
            k: kernel,
            args,
            shapes,
            dtypes,
            vars: vec![None; kernel.vars.len()],
            locals: vec![0; kernel.locals as usize],
            origin,
        };
        run.points(&kernel.domain, &mut |r| r.stmts(&kernel.stmts))
    }
}

/// dtype of every expression of a kernel.
pub fn dtypes(k: &Kernel) -> Vec<DType> {
    let mut locals = vec![DType::I64; k.locals as usize];
    local_types(&k.stmts, &mut locals);
    let mut types: Vec<DType> = Vec::new();
    for e in k.exprs() {
        let of = |x: &ExprId| types[x.0 as usize];
        types.push(match e {
            Expr::Const(d, _) | Expr::Convert(d, _, _) | Expr::Bitcast(d, _) => *d,
            Expr::Index(_) => DType::I64,
            Expr::Read { buf, .. } => k.buffers[buf.0 as usize].dtype,
            Expr::Unary(_, x) | Expr::Binary(_, x, _) | Expr::Select(_, x, _) => of(x),
            Expr::Cmp(..) | Expr::Inside(_) => DType::Bool,
            Expr::Dot(dot, ..) => dot.dtype(),
            Expr::Local(l) => locals[*l as usize],
            Expr::Bind { body, .. } => of(body),
        });
    }
    types
}

fn local_types(stmts: &[Stmt], locals: &mut [DType]) {
    for s in stmts {
        match s {
            Stmt::Reduce { local, acc, .. } => locals[*local as usize] = *acc,
            Stmt::Ordered { carries, body, .. } => {
                for (l, d, ..) in carries {
                    locals[*l as usize] = *d;
                }
                local_types(body, locals);
            }
            _ => {}
        }
    }
}

struct Run<'m, 'a> {
    m: &'m mut Machine<'a>,
    k: &'m Kernel,
    args: &'m [BufferId],
    shapes: Vec<Vec<usize>>,
    dtypes: Vec<DType>,
    vars: Vec<Option<i64>>,
    locals: Vec<Bits>,
    origin: OriginId,
}

impl Run<'_, '_> {
    fn dim(&self, d: &Dim) -> Result<i64> {
        d.eval(&|a| match a {
            Atom::Sym(s) => self.m.syms[s.0 as usize],
            Atom::Var(v) => self.vars[v.0 as usize],
            _ => None,
        })
        .ok_or_else(|| ExecError::Fault(format!("{}: index {d} has no value", self.k.name)))
    }

    /// Runs `f` at every point of `axes`, the last one fastest.
    fn points(&mut self, axes: &[Axis], f: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let Some((first, rest)) = axes.split_first() else { return f(self) };
        for i in 0..self.dim(&first.extent)? {
            self.vars[first.var.0 as usize] = Some(i);
            self.points(rest, f)?;
        }
        self.vars[first.var.0 as usize] = None;
        Ok(())
    }

    fn stmts(&mut self, stmts: &[Stmt]) -> Result<()> {
        for s in stmts {
            match s {
                Stmt::Reduce { local, acc, monoid, axes, value } => {
                    let mut sum = from_scalar(*acc, monoid.identity(*acc));
                    // floats accumulate in f64, so that the order of terms does not show
                    let mut wide = monoid.identity(*acc).as_f64();
                    let float = acc.is_float();
                    self.points(axes, &mut |r| {
                        let x = r.expr(*value)?;
                        if float {
                            let x = to_f64(*acc, x);
                            wide = combine_f64(monoid.op(), wide, x);
                        } else {
                            sum = r.binary(monoid.op(), *acc, sum, x)?;
                        }
                        Ok(())
                    })?;
                    if float {
                        sum = from_scalar(*acc, Scalar::Float(wide));
                    }
                    self.locals[*local as usize] = sum;
                }
                Stmt::ArgReduce { local, max, last, axis, value } => {
                    let n = self.dim(&axis.extent)?;
                    let dtype = self.dtypes[value.0 as usize];
                    let mut best: Option<(Bits, i64)> = None;
                    for i in 0..n {
                        self.vars[axis.var.0 as usize] = Some(i);
                        let x = self.expr(*value)?;
                        let better = match best {
                            None => true,
                            Some((b, _)) => extreme(dtype, x, b, *max, *last),
                        };
                        if better {
                            best = Some((x, i));
                        }
                    }
                    self.vars[axis.var.0 as usize] = None;
                    self.locals[*local as usize] = best.map_or(0, |b| b.1) as u64;
                }
                Stmt::Store { axes, buf, index, guards, value, combine } => {
                    self.points(axes, &mut |r| {
                        if !r.holds(guards)? {
                            return Ok(());
                        }
                        let x = r.expr(*value)?;
                        r.store(*buf, index, x, *combine)
                    })?;
                }
                Stmt::Ordered { axis, carries, body } => {
                    for (l, _, start, _) in carries {
                        self.locals[*l as usize] = self.expr(*start)?;
                    }
                    for i in 0..self.dim(&axis.extent)? {
                        self.vars[axis.var.0 as usize] = Some(i);
                        self.stmts(body)?;
                        let next: Vec<Bits> =
                            carries.iter().map(|c| self.expr(c.3)).collect::<Result<_>>()?;
                        for (c, x) in carries.iter().zip(next) {
                            self.locals[c.0 as usize] = x;
                        }
                    }
                    self.vars[axis.var.0 as usize] = None;
                }
                Stmt::Let { local, value } => self.locals[*local as usize] = self.expr(*value)?,
                Stmt::Bind { var, value, bound } => {
                    let x = self.bound_index(*value, bound)?;
                    self.vars[var.0 as usize] = Some(x);
                }
            }
        }
        Ok(())
    }

    fn bound_index(&mut self, value: ExprId, bound: &Dim) -> Result<i64> {
        let x = self.expr(value)? as i64;
        let bound = self.dim(bound)?;
        if x < 0 || x >= bound {
            let message = format!("index {x} outside 0..{bound} (origin {})", self.origin.0);
            return Err(ExecError::Data(message));
        }
        Ok(x)
    }

    fn holds(&self, guards: &[Guard]) -> Result<bool> {
        for g in guards {
            let (x, bound) = (self.dim(&g.expr)?, self.dim(&g.bound)?);
            if x < 0 || x >= bound {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Byte offset of an element.
    fn address(&self, buf: BufId, index: &[Dim]) -> Result<usize> {
        let def = &self.k.buffers[buf.0 as usize];
        let at: Vec<i64> = index.iter().map(|d| self.dim(d)).collect::<Result<_>>()?;
        let shape = &self.shapes[buf.0 as usize];
        match offset(&def.layout, shape, &at) {
            Some(o) => Ok(o * def.dtype.bytes()),
            None => fault(format!("{}: {}{at:?} outside {shape:?}", self.k.name, def.name)),
        }
    }

    fn store(&mut self, buf: BufId, index: &[Dim], x: Bits, combine: Combine) -> Result<()> {
        let at = self.address(buf, index)?;
        let dtype = self.k.buffers[buf.0 as usize].dtype;
        let n = dtype.bytes();
        let target = self.args[buf.0 as usize];
        let x = match combine {
            Combine::Set => x,
            _ => {
                let old = load(self.m.bytes(target)?, at, n)?;
                let op = match combine {
                    Combine::Add => BinaryOp::Add,
                    Combine::Mul => BinaryOp::Mul,
                    Combine::Min => BinaryOp::Min,
                    _ => BinaryOp::Max,
                };
                self.binary(op, dtype, old, x)?
            }
        };
        match self.m.bytes_mut(target)?.get_mut(at..at + n) {
            Some(slot) => slot.copy_from_slice(&x.to_le_bytes()[..n]),
            None => return fault(format!("{}: store beyond the buffer", self.k.name)),
        }
        Ok(())
    }

    fn expr(&mut self, e: ExprId) -> Result<Bits> {
        let dtype = self.dtypes[e.0 as usize];
        Ok(match self.k.get(e) {
            Expr::Const(d, s) => from_scalar(*d, *s),
            Expr::Index(d) => self.dim(d)? as u64,
            Expr::Read { buf, index, guards, fill } => {
                if !self.holds(guards)? {
                    return Ok(from_scalar(dtype, *fill));
                }
                let at = self.address(*buf, index)?;
                load(self.m.bytes(self.args[buf.0 as usize])?, at, dtype.bytes())?
            }
            Expr::Unary(op, x) => {
                let x = self.expr(*x)?;
                self.tensor_op(Prim::Unary(*op), &[(dtype, x)], dtype)?
            }
            Expr::Binary(op, x, y) => {
                let (x, y) = (self.expr(*x)?, self.expr(*y)?);
                self.binary(*op, dtype, x, y)?
            }
            Expr::Cmp(op, x, y) => {
                let d = self.dtypes[x.0 as usize];
                let (x, y) = (self.expr(*x)?, self.expr(*y)?);
                self.cmp(*op, d, x, y)?
            }
            Expr::Select(c, x, y) => {
                let branch = if self.expr(*c)? != 0 { x } else { y };
                self.expr(*branch)?
            }
            Expr::Inside(guards) => self.holds(guards)? as u64,
            Expr::Convert(to, mode, x) => {
                let from = self.dtypes[x.0 as usize];
                let x = self.expr(*x)?;
                if from == DType::I64 && *to == DType::I32 && *mode == ConvertMode::Plain {
                    return Ok(x as u32 as u64);
                }
                self.tensor_op(Prim::Convert { to: *to, mode: *mode }, &[(from, x)], *to)?
            }
            Expr::Bitcast(_, x) => self.expr(*x)?,
            Expr::Dot(..) => return fault("dot products of words exist behind scheduling only"),
            Expr::Local(l) => self.locals[*l as usize],
            Expr::Bind { var, value, bound, body } => {
                let x = self.bound_index(*value, bound)?;
                let before = self.vars[var.0 as usize].replace(x);
                let result = self.expr(*body);
                self.vars[var.0 as usize] = before;
                result?
            }
        })
    }

    fn binary(&mut self, op: BinaryOp, d: DType, x: Bits, y: Bits) -> Result<Bits> {
        if matches!(d, DType::F32 | DType::F64) {
            let (a, b) = (to_f64(d, x), to_f64(d, y));
            // one rounding of an f64 result is right for f32 (Figueroa 1995)
            let r = match op {
                BinaryOp::Add => Some(a + b),
                BinaryOp::Sub => Some(a - b),
                BinaryOp::Mul => Some(a * b),
                BinaryOp::Div => Some(a / b),
                _ => None,
            };
            if let Some(r) = r {
                return Ok(from_scalar(d, Scalar::Float(r)));
            }
        }
        self.tensor_op(Prim::Binary(op), &[(d, x), (d, y)], d)
    }

    fn cmp(&mut self, op: CmpOp, d: DType, x: Bits, y: Bits) -> Result<Bits> {
        self.tensor_op(Prim::Cmp(op), &[(d, x), (d, y)], DType::Bool)
    }

    fn tensor_op(&self, prim: Prim, operands: &[(DType, Bits)], result: DType) -> Result<Bits> {
        let operands: Vec<Tensor> = operands
            .iter()
            .map(|(d, x)| Tensor::new(*d, Vec::new(), x.to_le_bytes()[..d.bytes()].to_vec()))
            .collect();
        let out = self.m.eval(prim, &operands, vec![TensorType::scalar(result)])?;
        match out.first() {
            Some(t) => load(&t.data, 0, result.bytes()),
            None => fault("an op without a result"),
        }
    }
}

/// Element number of `index` in a layout; `None` outside the shape.
fn offset(layout: &Layout, shape: &[usize], index: &[i64]) -> Option<usize> {
    if shape.len() != index.len() {
        return None;
    }
    let mut at = Vec::with_capacity(index.len());
    for (d, (&i, &n)) in index.iter().zip(shape).enumerate() {
        let (lo, hi) = layout.halo[d];
        let i = i + lo as i64;
        if i < 0 || i >= (n + lo + hi) as i64 {
            return None;
        }
        at.push(i as usize);
    }
    let mut sum = 0usize;
    for f in &layout.frags {
        let (lo, hi) = layout.halo[f.dim];
        let len = f.len.unwrap_or_else(|| (shape[f.dim] + lo + hi).div_ceil(f.div));
        sum = sum * len + (at[f.dim] / f.div) % len.max(1);
    }
    Some(sum)
}

fn load(bytes: &[u8], at: usize, n: usize) -> Result<Bits> {
    match bytes.get(at..at + n) {
        Some(raw) => Ok(raw.iter().rev().fold(0, |w, &b| w << 8 | b as u64)),
        None => fault("read beyond a buffer"),
    }
}

fn to_f64(d: DType, x: Bits) -> f64 {
    crate::pull::decode_scalar(d, &x.to_le_bytes()).map_or(0.0, |s| s.as_f64())
}

fn from_scalar(d: DType, s: Scalar) -> Bits {
    match d {
        DType::F64 => s.as_f64().to_bits(),
        DType::F32 => (s.as_f64() as f32).to_bits() as u64,
        _ if d.is_float() => {
            let data =
                ir::ConstData { dtype: d, shape: Vec::new(), source: ir::ConstSource::Splat(s), name: None };
            interp::materialise(&data).ok().and_then(|t| load(&t.data, 0, d.bytes()).ok()).unwrap_or(0)
        }
        _ => s.as_int() as u64 & (u64::MAX >> (64 - 8 * d.bytes())),
    }
}

/// The monoid's function; NaN propagates.
fn combine_f64(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Mul => a * b,
        _ if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Max => a.max(b),
        _ => a.min(b),
    }
}

/// `x` is more extreme than `best` (as extreme, for the last one of equals).
fn extreme(d: DType, x: Bits, best: Bits, max: bool, last: bool) -> bool {
    let ordering = match (
        crate::pull::decode_scalar(d, &x.to_le_bytes()),
        crate::pull::decode_scalar(d, &best.to_le_bytes()),
    ) {
        (Some(Scalar::Int(a)), Some(Scalar::Int(b))) => a.cmp(&b),
        (Some(a), Some(b)) => {
            let (a, b) = (a.as_f64(), b.as_f64());
            match (a.is_nan(), b.is_nan()) {
                (true, true) => return last,
                (true, false) => return true,
                (false, true) => return false,
                _ => a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal),
            }
        }
        _ => std::cmp::Ordering::Equal,
    };
    let ordering = if max { ordering } else { ordering.reverse() };
    ordering.is_gt() || last && ordering.is_eq()
}
