//! One kernel in kernel IR, point by point.

use super::{Bits, ExecError, Machine, Result, fault};
use ir::dtype::Scalar;
use ir::host::BufferId;
use ir::kernel::{Axis, BufId, Expr, ExprId, Guard, Kernel, Stmt};
use ir::prim::{BinaryOp, CmpOp, Combine, ConvertMode};
use ir::{Atom, DType, Dim, Layout, OriginId, Prim, Tensor, TensorType};

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

pub(super) struct Run<'m, 'a> {
    m: &'m mut Machine<'a>,
    k: &'m Kernel,
    args: &'m [BufferId],
    shapes: Vec<Vec<usize>>,
    dtypes: Vec<DType>,
    vars: Vec<Option<i64>>,
    locals: Vec<Bits>,
    origin: OriginId,
    /// Stores so far, where somebody wants to know.
    stores: Option<Vec<(BufId, Vec<i64>)>>,
}

/// Which points of a kernel's domain are executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Points {
    All,
    /// The first, the last, and so many others spread over the domain.
    Some(u64),
}

impl<'m, 'a> Run<'m, 'a> {
    pub(super) fn new(
        m: &'m mut Machine<'a>,
        k: &'m Kernel,
        args: &'m [BufferId],
        origin: OriginId,
    ) -> Result<Run<'m, 'a>> {
        let shapes = k.buffers.iter().map(|b| m.shape(&b.shape)).collect::<Result<_>>()?;
        let (vars, locals) = (vec![None; k.vars.len()], vec![0; k.locals as usize]);
        Ok(Run { m, k, args, shapes, dtypes: dtypes(k), vars, locals, origin, stores: None })
    }

    /// Executes the kernel at these points of its domain; where these are not all, says which elements it wrote.
    pub(super) fn execute(mut self, points: Points) -> Result<Vec<(BufId, Vec<i64>)>> {
        let k = self.k;
        let Points::Some(n) = points else {
            self.points(&k.domain, &mut |r| r.stmts(&k.stmts))?;
            return Ok(Vec::new());
        };
        self.stores = Some(Vec::new());
        let extents: Vec<i64> = k.domain.iter().map(|a| self.dim(&a.extent)).collect::<Result<_>>()?;
        for mut at in spread(extents.iter().map(|&e| e.max(0) as u64).product(), n) {
            for (axis, &extent) in k.domain.iter().zip(&extents).rev() {
                self.vars[axis.var.0 as usize] = Some((at % extent as u64) as i64);
                at /= extent as u64;
            }
            self.stmts(&k.stmts)?;
        }
        Ok(self.stores.unwrap_or_default())
    }
}

/// `n` of the numbers below `total`, and the first and the last.
pub(super) fn spread(total: u64, n: u64) -> Vec<u64> {
    if n >= total {
        return (0..total).collect();
    }
    // steps of no regular length: tiles and images have regular ones
    let mut rng = ir::testing::Rng::new(total);
    let stride = total / n.max(1);
    let mut found: Vec<u64> = (0..n).map(|i| i * stride + rng.next_u64() % stride).collect();
    found.extend([0, total - 1]);
    found.sort_unstable();
    found.dedup();
    found
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
        if self.stores.is_some() {
            let index = index.iter().map(|d| self.dim(d)).collect::<Result<Vec<i64>>>()?;
            self.stores.get_or_insert_default().push((buf, index));
        }
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
pub(super) fn offset(layout: &Layout, shape: &[usize], index: &[i64]) -> Option<usize> {
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

pub(super) fn load(bytes: &[u8], at: usize, n: usize) -> Result<Bits> {
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
