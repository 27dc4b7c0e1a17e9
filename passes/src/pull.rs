//! Pulling: "element of value `v` at this index" as a scalar expression of a kernel.
//!
//! Every elementwise, movement and indexed primitive is a function of operand elements at mapped
//! indices; pulling applies these functions from a kernel's store down to values that lie in buffers.
//! A reduction met on the way becomes a statement of the kernel, its result a local.

use crate::index::{IndexFacts, linearise, reshape_index, simplify_guards, vars_of};
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, BufId, Buffer, Expr, ExprId, Guard, Kernel, Stmt};
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp, WindowDim};
use ir::{ConstData, ConstSource, DType, Dim, Graph, Layout, OpId, PadMode, Prim, Symbols, ValueId, Var};
use std::collections::{HashMap, HashSet};

/// What pulling reads of the module.
#[derive(Clone, Copy)]
pub struct Unit<'a> {
    pub graph: &'a Graph,
    pub consts: &'a [ConstData],
    pub symbols: &'a Symbols,
    /// [`crate::planted::Fault::Pull`]
    #[cfg(feature = "planted-faults")]
    pub off_by_one: bool,
}

/// Where a value that is not pulled lies: in the buffer of another value, from an index on.
/// (The pieces of a concat are written straight into its buffer.)
#[derive(Clone, Debug, PartialEq)]
pub struct Home {
    pub value: ValueId,
    pub offset: Vec<Dim>,
}

/// Why an expression cannot be built.
#[derive(Debug, Clone, PartialEq)]
pub enum PullError {
    /// This value must lie in a buffer: its reduction cannot be a statement of this kernel, or the
    /// expression becomes too large.
    Materialise(ValueId),
    /// An op that is never part of an expression.
    Unsupported(OpId, String),
}

pub type Result<T> = std::result::Result<T, PullError>;

/// Builds one kernel.
pub struct Puller<'a> {
    pub unit: Unit<'a>,
    /// True for values that are pulled into this kernel; others are read from their buffers.
    inline: &'a dyn Fn(ValueId) -> bool,
    homes: &'a HashMap<ValueId, Home>,
    pub kernel: Kernel,
    /// Value whose buffer each operand is, by [`BufId`].
    pub args: Vec<ValueId>,
    /// Extents by [`Var`].
    pub extents: Vec<Dim>,
    /// Statements made by reductions, in order of execution.
    pub stmts: Vec<Stmt>,
    /// Variables that statements may use: those of the kernel's root.
    pub scope: HashSet<Var>,
    dtypes: Vec<DType>,
    local_dtypes: Vec<DType>,
    reads: HashMap<ValueId, BufId>,
    guards: Vec<Guard>,
    memo: HashMap<(ValueId, Vec<Dim>, Vec<Guard>), ExprId>,
    /// Index at which a reduction was pulled: at two of them it would be computed twice.
    reduced: HashMap<ValueId, (Vec<Dim>, Vec<Guard>)>,
    nodes: usize,
    limit: usize,
    /// Ops whose results were pulled.
    pub pulled: Vec<OpId>,
    /// The value that each of `stmts` computes.
    pub stmt_values: Vec<ValueId>,
    /// Elements of a value that an algorithm has computed already; it has no others.
    pub overrides: HashMap<(ValueId, Vec<Dim>), ExprId>,
    writes: HashMap<ValueId, BufId>,
}

impl<'a> Puller<'a> {
    pub fn new(
        unit: Unit<'a>,
        inline: &'a dyn Fn(ValueId) -> bool,
        homes: &'a HashMap<ValueId, Home>,
        limit: usize,
    ) -> Puller<'a> {
        Puller {
            unit,
            inline,
            homes,
            kernel: Kernel::default(),
            args: Vec::new(),
            extents: Vec::new(),
            stmts: Vec::new(),
            scope: HashSet::new(),
            dtypes: Vec::new(),
            local_dtypes: Vec::new(),
            reads: HashMap::new(),
            guards: Vec::new(),
            memo: HashMap::new(),
            reduced: HashMap::new(),
            nodes: 0,
            limit,
            pulled: Vec::new(),
            stmt_values: Vec::new(),
            overrides: HashMap::new(),
            writes: HashMap::new(),
        }
    }

    pub fn facts(&self) -> IndexFacts<'_> {
        IndexFacts { symbols: self.unit.symbols, extents: &self.extents }
    }

    // ---- parts of kernels ----------------------------------------------------------------

    pub fn new_var(&mut self, name: String, extent: Dim) -> Var {
        self.extents.push(extent);
        self.kernel.new_var(name)
    }

    /// Index over `0..extent`: a fresh axis, or 0 where there is one element only.
    pub fn axis(&mut self, name: String, extent: &Dim) -> (Dim, Option<Axis>) {
        if extent.is_const(1) {
            return (Dim::from(0), None);
        }
        let var = self.new_var(name, extent.clone());
        (Dim::from(var), Some(Axis { var, extent: extent.clone() }))
    }

    pub fn new_local(&mut self, dtype: DType) -> u32 {
        self.local_dtypes.push(dtype);
        self.kernel.new_local()
    }

    pub fn dtype(&self, e: ExprId) -> DType {
        self.dtypes[e.0 as usize]
    }

    pub fn expr(&mut self, e: Expr, dtype: DType) -> ExprId {
        let id = self.kernel.expr(e);
        if id.0 as usize == self.dtypes.len() {
            self.dtypes.push(dtype);
        }
        id
    }

    pub fn constant(&mut self, dtype: DType, s: Scalar) -> ExprId {
        self.expr(Expr::Const(dtype, s), dtype)
    }
    pub fn local(&mut self, local: u32) -> ExprId {
        let dtype = self.local_dtypes[local as usize];
        self.expr(Expr::Local(local), dtype)
    }
    pub fn index_value(&mut self, d: Dim) -> ExprId {
        self.expr(Expr::Index(d), DType::I64)
    }
    pub fn unary(&mut self, op: UnaryOp, x: ExprId) -> ExprId {
        self.expr(Expr::Unary(op, x), self.dtype(x))
    }
    pub fn binary(&mut self, op: BinaryOp, x: ExprId, y: ExprId) -> ExprId {
        self.expr(Expr::Binary(op, x, y), self.dtype(x))
    }
    pub fn convert(&mut self, to: DType, mode: ConvertMode, x: ExprId) -> ExprId {
        if self.dtype(x) == to && mode.keeps(to) {
            return x;
        }
        self.expr(Expr::Convert(to, mode, x), to)
    }

    /// The buffer of `value` (of its home) as an operand of the kernel.
    pub fn buffer(&mut self, value: ValueId, access: Access) -> BufId {
        if access == Access::Read
            && let Some(&b) = self.reads.get(&value)
        {
            return b;
        }
        let ty = &self.unit.graph[value].ty;
        let constant = matches!(self.def(value), Some(Prim::Const(_)));
        let id = self.kernel.add_buffer(Buffer {
            name: match access {
                Access::Read => format!("in{}", self.args.len()),
                _ => format!("out{}", self.args.len()),
            },
            dtype: ty.dtype,
            shape: ty.shape.clone(),
            layout: Layout::row_major(ty.rank()),
            access,
            constant,
        });
        self.args.push(value);
        if access == Access::Read {
            self.reads.insert(value, id);
        }
        id
    }

    /// The buffer of `value` as one result of several stores.
    pub fn output(&mut self, value: ValueId) -> BufId {
        if let Some(&b) = self.writes.get(&value) {
            return b;
        }
        let b = self.buffer(value, Access::Write);
        self.writes.insert(value, b);
        b
    }

    /// A buffer of f32 that belongs to no value of the graph, as an operand of the kernel.
    pub fn temp(&mut self, id: ValueId, shape: &[Dim], access: Access) -> BufId {
        if access == Access::Read
            && let Some(&b) = self.reads.get(&id)
        {
            return b;
        }
        let b = self.kernel.add_buffer(Buffer {
            name: format!("temp{}", self.args.len()),
            dtype: DType::F32,
            shape: shape.to_vec(),
            layout: Layout::row_major(shape.len()),
            access,
            constant: false,
        });
        self.args.push(id);
        if access == Access::Read {
            self.reads.insert(id, b);
        }
        b
    }

    /// The buffer in which `value` lies, and the index there of element `index`.
    pub fn locate(&self, value: ValueId, index: &[Dim]) -> (ValueId, Vec<Dim>) {
        locate(self.homes, value, index)
    }

    fn def(&self, v: ValueId) -> Option<&'a Prim> {
        let graph = self.unit.graph;
        graph.def_op(v).map(|op| &graph[op].prim)
    }

    fn shape(&self, v: ValueId) -> &'a [Dim] {
        let graph = self.unit.graph;
        &graph[v].ty.shape
    }

    // ---- pulling -------------------------------------------------------------------------

    /// Element of `v` at `index`, under the guards in force.
    pub fn pull(&mut self, v: ValueId, index: Vec<Dim>) -> Result<ExprId> {
        let key = (v, index, self.guards.clone());
        if let Some(&e) = self.memo.get(&key) {
            return Ok(e);
        }
        self.nodes += 1;
        let e = if let Some(e) = self.scalar_const(v) {
            e
        } else if self.overrides.keys().any(|(o, _)| *o == v) {
            match self.overrides.get(&(v, key.1.clone())) {
                Some(&e) => e,
                None => return Err(PullError::Materialise(v)),
            }
        } else if (self.inline)(v) && self.unit.graph.def_op(v).is_some() {
            if self.nodes > self.limit {
                return Err(PullError::Materialise(v));
            }
            self.compute(v, &key.1)?
        } else {
            self.read(v, &key.1)
        };
        self.memo.insert(key, e);
        Ok(e)
    }

    /// Constants of one value need no buffer.
    fn scalar_const(&mut self, v: ValueId) -> Option<ExprId> {
        let Some(Prim::Const(id)) = self.def(v) else { return None };
        let data = self.unit.consts.get(id.0 as usize)?;
        let s = uniform_scalar(data)?;
        Some(self.constant(data.dtype, s))
    }

    fn read(&mut self, v: ValueId, index: &[Dim]) -> ExprId {
        let (home, index) = self.locate(v, index);
        let buf = self.buffer(home, Access::Read);
        let dtype = self.unit.graph[v].ty.dtype;
        let fill = Scalar::zero(dtype);
        let guards = self.guards.clone();
        self.expr(Expr::Read { buf, index, guards, fill }, dtype)
    }

    /// Element of `v` where `guards` hold, else `fill`.
    pub fn pull_guarded(
        &mut self,
        v: ValueId,
        index: Vec<Dim>,
        guards: &[Guard],
        fill: Scalar,
    ) -> Result<ExprId> {
        let dtype = self.unit.graph[v].ty.dtype;
        let left = simplify_guards(guards, &self.facts());
        let Some(left) = left else { return Ok(self.constant(dtype, fill)) };
        if left.is_empty() {
            return self.pull(v, index);
        }
        let inner = self.pull_under(v, index, &left)?;
        // a read can deliver the fill itself
        if self.guards.is_empty()
            && let Expr::Read { buf, index, guards, .. } = self.kernel.get(inner).clone()
            && guards == left
        {
            return Ok(self.expr(Expr::Read { buf, index, guards, fill }, dtype));
        }
        let cond = self.expr(Expr::Inside(left), DType::Bool);
        let fill = self.constant(dtype, fill);
        Ok(self.expr(Expr::Select(cond, inner, fill), dtype))
    }

    /// Element of `v` with every read under additional guards; of no meaning where they fail.
    pub fn pull_under(&mut self, v: ValueId, index: Vec<Dim>, guards: &[Guard]) -> Result<ExprId> {
        let before = self.guards.len();
        for g in guards {
            if !self.guards.contains(g) {
                self.guards.push(g.clone());
            }
        }
        let e = self.pull(v, index);
        self.guards.truncate(before);
        e
    }

    fn compute(&mut self, v: ValueId, index: &[Dim]) -> Result<ExprId> {
        let graph = self.unit.graph;
        let ty = &graph[v].ty;
        let op_id = graph.def_op(v).expect("checked by the caller");
        let op = &graph[op_id];
        self.pulled.push(op_id);
        let x = op.operands.first().copied();
        let operand = |n: usize| {
            op.operands.get(n).copied().ok_or_else(|| {
                PullError::Unsupported(op_id, format!("{} has no operand {n}", op.prim.name()))
            })
        };
        Ok(match &op.prim {
            Prim::Const(_) => self.read(v, index),
            Prim::Iota { dtype, axis, .. } => {
                let e = self.index_value(index[*axis].clone());
                self.convert(*dtype, ConvertMode::Plain, e)
            }
            Prim::DimValue(d) => self.index_value(d.clone()),
            Prim::RandomBits { shape } => self.random_bits(operand(0)?, linearise(index, shape))?,
            Prim::Unary(f) => {
                let x = self.pull(operand(0)?, index.to_vec())?;
                self.unary(*f, x)
            }
            Prim::Binary(f) => {
                let a = self.pull(operand(0)?, index.to_vec())?;
                let b = self.pull(operand(1)?, index.to_vec())?;
                self.binary(*f, a, b)
            }
            Prim::Cmp(f) => {
                let a = self.pull(operand(0)?, index.to_vec())?;
                let b = self.pull(operand(1)?, index.to_vec())?;
                self.expr(Expr::Cmp(*f, a, b), DType::Bool)
            }
            Prim::Select => {
                let c = self.pull(operand(0)?, index.to_vec())?;
                let a = self.pull(operand(1)?, index.to_vec())?;
                let b = self.pull(operand(2)?, index.to_vec())?;
                self.expr(Expr::Select(c, a, b), ty.dtype)
            }
            Prim::Convert { to, mode } => {
                let x = self.pull(operand(0)?, index.to_vec())?;
                self.convert(*to, *mode, x)
            }
            Prim::Bitcast { to } => {
                let x = self.pull(operand(0)?, index.to_vec())?;
                if self.dtype(x) == *to { x } else { self.expr(Expr::Bitcast(*to, x), *to) }
            }
            Prim::Reshape { .. } => {
                let x = operand(0)?;
                let from = reshape_index(index, &ty.shape, self.shape(x), &self.facts());
                self.pull(x, from)?
            }
            Prim::Transpose { perm } => {
                let mut from = vec![Dim::from(0); perm.len()];
                for (i, &p) in perm.iter().enumerate() {
                    from[p] = index[i].clone();
                }
                self.pull(operand(0)?, from)?
            }
            Prim::Broadcast { shape, dims } => {
                let x = operand(0)?;
                let facts = self.facts();
                let from = dims.iter().zip(self.shape(x));
                let from = from.map(|(&d, extent)| broadcast_dim(&index[d], extent, &shape[d], &facts));
                let from = from.collect();
                self.pull(x, from)?
            }
            Prim::Slice { start, step, .. } => {
                #[cfg(feature = "planted-faults")]
                let start = &crate::planted::early(start, self.unit.off_by_one && self.pulled.len() > 1);
                let from = index.iter().zip(start).zip(step);
                let from = from.map(|((i, s), &step)| s + i * Dim::from(step)).collect();
                self.pull(operand(0)?, from)?
            }
            Prim::Pad { lo, interior, mode, .. } => {
                self.pad(operand(0)?, operand(1).ok(), index, lo, interior, *mode)?
            }
            Prim::Concat { axis } => self.concat(&op.operands, *axis, index)?,
            Prim::UpdateSlice { start } => {
                let (base, update) = (operand(0)?, operand(1)?);
                let at: Vec<Dim> = index.iter().zip(start).map(|(i, s)| i - s).collect();
                let guards = bounds_guards(&at, self.shape(update));
                match simplify_guards(&guards, &self.facts()) {
                    None => self.pull(base, index.to_vec())?,
                    Some(left) if left.is_empty() => self.pull(update, at)?,
                    Some(left) => {
                        let old = self.pull(base, index.to_vec())?;
                        let new = self.pull_under(update, at, &left)?;
                        let cond = self.expr(Expr::Inside(left), DType::Bool);
                        self.expr(Expr::Select(cond, new, old), ty.dtype)
                    }
                }
            }
            Prim::Gather { axis } => self.gather(operand(0)?, operand(1)?, *axis, index)?,
            Prim::Reduce { monoid, axes } => {
                let x = operand(0)?;
                self.begin_reduction(v, index)?;
                let (from, reduce) = self.reduce_index(index, axes, x);
                let acc = accumulator(ty.dtype);
                let value = self.pull(x, from)?;
                let value = self.convert(acc, ConvertMode::Plain, value);
                self.reduce(v, acc, *monoid, reduce, value)
            }
            Prim::ArgReduce { max, axis, last } => {
                let x = operand(0)?;
                self.begin_reduction(v, index)?;
                let extent = self.shape(x)[*axis].clone();
                let n = self.extents.len();
                // an axis even where there is one element: the statement needs one
                let var = self.new_var(format!("r{n}"), extent.clone());
                let mut from = index.to_vec();
                from.insert(*axis, Dim::from(var));
                let value = self.pull(x, from)?;
                let local = self.new_local(DType::I64);
                let axis = Axis { var, extent };
                self.stmts.push(Stmt::ArgReduce { local, max: *max, last: *last, axis, value });
                self.stmt_values.push(v);
                self.local(local)
            }
            Prim::WindowReduce { monoid, size, window } => {
                self.begin_reduction(v, index)?;
                self.window_reduce(v, operand(0)?, index, *monoid, size, window)?
            }
            Prim::Contract { batch, reduce, .. } => {
                self.begin_reduction(v, index)?;
                self.contract(v, [operand(0)?, operand(1)?], index, batch, reduce)?
            }
            Prim::Convolve { window, groups, .. } => {
                self.begin_reduction(v, index)?;
                self.convolve(v, [operand(0)?, operand(1)?], index, window, *groups)?
            }
            Prim::Call { .. }
            | Prim::BindDim(_)
            | Prim::Scatter { .. }
            | Prim::Cumulative { .. }
            | Prim::Sort { .. }
            | Prim::TopK { .. }
            | Prim::Compact { .. }
            | Prim::If { .. }
            | Prim::Loop { .. }
            | Prim::Assert { .. }
            | Prim::Host { .. } => match x {
                _ if (self.inline)(v) => {
                    return Err(PullError::Unsupported(
                        op_id,
                        format!("{} inside an expression", op.prim.name()),
                    ));
                }
                _ => self.read(v, index),
            },
        })
    }

    // ---- movement ------------------------------------------------------------------------

    fn pad(
        &mut self,
        x: ValueId,
        fill: Option<ValueId>,
        index: &[Dim],
        lo: &[Dim],
        interior: &[i64],
        mode: PadMode,
    ) -> Result<ExprId> {
        let shape = self.shape(x);
        let at: Vec<Dim> = index.iter().zip(lo).map(|(i, l)| i - l).collect();
        let one = Dim::from(1);
        let facts = self.facts();
        let wrapped = |period: &dyn Fn(&Dim, &Dim) -> Dim| -> Vec<Dim> {
            at.iter().zip(shape).map(|(y, n)| period(y, n)).collect()
        };
        let within =
            |y: &Dim, n: &Dim| crate::index::inside(&Guard { expr: y.clone(), bound: n.clone() }, &facts);
        let from = match mode {
            PadMode::Constant => {
                return self.pad_constant(x, fill, &at, interior);
            }
            PadMode::Edge => wrapped(&|y, n| y.max_with(&Dim::from(0), &facts).min_with(&(n - &one), &facts)),
            PadMode::Reflect => wrapped(&|y, n| {
                if within(y, n) {
                    return y.clone();
                }
                // a mirror at both ends: period 2 (n - 1), and 1 where there is one element
                let top = (n - &one) * Dim::from(2);
                let m = y.modulo(&top.max_with(&one, &facts), &facts);
                m.min_with(&(top - &m), &facts)
            }),
            PadMode::Wrap => wrapped(&|y, n| {
                if within(y, n) {
                    return y.clone();
                }
                y.modulo(&n.max_with(&one, &facts), &facts)
            }),
        };
        self.pull(x, from)
    }

    fn pad_constant(
        &mut self,
        x: ValueId,
        fill: Option<ValueId>,
        at: &[Dim],
        interior: &[i64],
    ) -> Result<ExprId> {
        let mut guards = Vec::new();
        let mut from = Vec::new();
        for ((y, n), &gap) in at.iter().zip(self.shape(x)).zip(interior) {
            if gap == 0 {
                guards.push(Guard { expr: y.clone(), bound: n.clone() });
                from.push(y.clone());
                continue;
            }
            let step = Dim::from(gap + 1);
            let facts = self.facts();
            let last = (n - Dim::from(1)) * &step;
            guards.push(Guard { expr: y.clone(), bound: last + Dim::from(1) });
            guards.push(Guard { expr: y.modulo(&step, &facts), bound: Dim::from(1) });
            from.push(y.floor_div(&step, &facts));
        }
        let dtype = self.unit.graph[x].ty.dtype;
        let fill = match fill {
            None => self.constant(dtype, Scalar::zero(dtype)),
            Some(f) => self.pull(f, Vec::new())?,
        };
        if let Expr::Const(_, s) = *self.kernel.get(fill) {
            return self.pull_guarded(x, from, &guards, s);
        }
        let Some(left) = simplify_guards(&guards, &self.facts()) else { return Ok(fill) };
        if left.is_empty() {
            return self.pull(x, from);
        }
        let inner = self.pull_under(x, from, &left)?;
        let cond = self.expr(Expr::Inside(left), DType::Bool);
        Ok(self.expr(Expr::Select(cond, inner, fill), dtype))
    }

    fn concat(&mut self, operands: &[ValueId], axis: usize, index: &[Dim]) -> Result<ExprId> {
        let mut pieces: Vec<(ValueId, Vec<Dim>, Guard)> = Vec::new();
        let mut offset = Dim::from(0);
        for &x in operands {
            let n = self.shape(x)[axis].clone();
            let mut from = index.to_vec();
            from[axis] = &from[axis] - &offset;
            let guard = Guard { expr: from[axis].clone(), bound: n.clone() };
            offset = offset + n;
            let facts = self.facts();
            if crate::index::inside(&guard, &facts) {
                return self.pull(x, from);
            }
            if !crate::index::outside(&guard, &facts) {
                pieces.push((x, from, guard));
            }
        }
        let mut result: Option<ExprId> = None;
        for (x, from, guard) in pieces.into_iter().rev() {
            let guards = [guard];
            let e = self.pull_under(x, from, &guards)?;
            result = Some(match result {
                // an index outside all pieces does not occur
                None => e,
                Some(rest) => {
                    let cond = self.expr(Expr::Inside(guards.to_vec()), DType::Bool);
                    self.expr(Expr::Select(cond, e, rest), self.dtype(e))
                }
            });
        }
        match (result, operands.first()) {
            (Some(e), _) => Ok(e),
            // every piece is empty: nothing is ever read
            (None, Some(&x)) => {
                let dtype = self.unit.graph[x].ty.dtype;
                Ok(self.constant(dtype, Scalar::zero(dtype)))
            }
            (None, None) => Ok(self.constant(DType::I64, Scalar::Int(0))),
        }
    }

    fn gather(&mut self, data: ValueId, indices: ValueId, axis: usize, index: &[Dim]) -> Result<ExprId> {
        let bound = self.shape(data)[axis].clone();
        let rank = self.unit.graph[indices].ty.rank();
        let at = self.pull(indices, index[axis..axis + rank].to_vec())?;
        let full = |row: Dim| -> Vec<Dim> {
            let (before, after) = (&index[..axis], &index[axis + rank..]);
            before.iter().cloned().chain([row]).chain(after.iter().cloned()).collect()
        };
        if let Some(row) = self.as_size(at)
            && crate::index::inside(&Guard { expr: row.clone(), bound: bound.clone() }, &self.facts())
        {
            return self.pull(data, full(row));
        }
        let at = self.convert(DType::I64, ConvertMode::Plain, at);
        let n = self.extents.len();
        let var = self.new_var(format!("g{n}"), bound.clone());
        let row = Dim::from(var);
        // the variable goes on as 0 after an index error, which a tensor without rows does not have
        let guards: &[Guard] = if bound.bounds(self.unit.symbols).0 >= 1 {
            &[]
        } else {
            &[Guard { expr: row.clone(), bound: bound.clone() }]
        };
        let body = self.pull_under(data, full(row), guards)?;
        Ok(self.expr(Expr::Bind { var, value: at, bound, body }, self.dtype(body)))
    }

    /// An integer expression as a size, if it is one, of constants far from those at which sizes saturate.
    fn as_size(&self, e: ExprId) -> Option<Dim> {
        match self.kernel.get(e) {
            Expr::Const(_, s) => {
                i64::try_from(s.as_int()).ok().filter(|c| c.unsigned_abs() < 1 << 40).map(Dim::from)
            }
            Expr::Index(d) => Some(d.clone()),
            Expr::Binary(op, x, y) if self.dtype(*x) == DType::I64 => {
                let (x, y) = (self.as_size(*x)?, self.as_size(*y)?);
                match op {
                    BinaryOp::Add => Some(x + y),
                    BinaryOp::Sub => Some(&x - &y),
                    BinaryOp::Mul if x.as_const().or(y.as_const()).is_some() => Some(x * y),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// SplitMix64 finaliser of `key + (i + 1) * golden gamma` (Steele, Lea, Flood 2014).
    fn random_bits(&mut self, key: ValueId, linear: Dim) -> Result<ExprId> {
        let rank = self.unit.graph[key].ty.rank();
        let key = self.pull(key, vec![Dim::from(0); rank])?;
        let key = self.convert(DType::U64, ConvertMode::Plain, key);
        let word = |p: &mut Self, c: u64| p.constant(DType::U64, Scalar::Int(c as i128));
        let counter = self.index_value(linear + Dim::from(1));
        let counter = self.convert(DType::U64, ConvertMode::Plain, counter);
        let gamma = word(self, 0x9E37_79B9_7F4A_7C15);
        let step = self.binary(BinaryOp::Mul, counter, gamma);
        let mut z = self.binary(BinaryOp::Add, key, step);
        for (shift, factor) in [(30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)] {
            let by = word(self, shift);
            let high = self.binary(BinaryOp::Shr, z, by);
            z = self.binary(BinaryOp::Xor, z, high);
            let factor = word(self, factor);
            z = self.binary(BinaryOp::Mul, z, factor);
        }
        let by = word(self, 31);
        let high = self.binary(BinaryOp::Shr, z, by);
        Ok(self.binary(BinaryOp::Xor, z, high))
    }

    // ---- reductions ----------------------------------------------------------------------

    /// A reduction becomes a statement of the kernel: its index may use variables of the root only,
    /// and must be the same wherever its result is used.
    fn begin_reduction(&mut self, v: ValueId, index: &[Dim]) -> Result<()> {
        let mut vars = Vec::new();
        index.iter().for_each(|d| vars_of(d, &mut vars));
        for g in &self.guards {
            vars_of(&g.expr, &mut vars);
            vars_of(&g.bound, &mut vars);
        }
        if vars.iter().any(|x| !self.scope.contains(x)) {
            return Err(PullError::Materialise(v));
        }
        let key = (index.to_vec(), self.guards.clone());
        match self.reduced.insert(v, key.clone()) {
            Some(before) if before != key => Err(PullError::Materialise(v)),
            _ => Ok(()),
        }
    }

    /// The statement that computes `v`, and its result.
    fn reduce(&mut self, v: ValueId, acc: DType, monoid: Monoid, axes: Vec<Axis>, value: ExprId) -> ExprId {
        let local = self.new_local(acc);
        self.stmts.push(Stmt::Reduce { local, acc, monoid, axes, value });
        self.stmt_values.push(v);
        let e = self.local(local);
        self.convert(self.unit.graph[v].ty.dtype, ConvertMode::Plain, e)
    }

    fn reduce_axis(&mut self, extent: &Dim, axes: &mut Vec<Axis>) -> Dim {
        let n = self.extents.len();
        let (i, axis) = self.axis(format!("r{n}"), extent);
        axes.extend(axis);
        i
    }

    fn reduce_index(&mut self, index: &[Dim], axes: &[usize], x: ValueId) -> (Vec<Dim>, Vec<Axis>) {
        let mut kept = index.iter();
        let mut reduce = Vec::new();
        let mut from = Vec::new();
        for (d, extent) in self.shape(x).iter().enumerate() {
            from.push(if axes.contains(&d) {
                self.reduce_axis(extent, &mut reduce)
            } else {
                kept.next().cloned().unwrap_or_default()
            });
        }
        (from, reduce)
    }

    fn window_reduce(
        &mut self,
        v: ValueId,
        x: ValueId,
        index: &[Dim],
        monoid: Monoid,
        size: &[i64],
        window: &[WindowDim],
    ) -> Result<ExprId> {
        let lead = index.len() - window.len();
        let mut axes = Vec::new();
        let mut from = index[..lead].to_vec();
        let mut guards = Vec::new();
        for (d, w) in window.iter().enumerate() {
            let k = self.reduce_axis(&Dim::from(size[d]), &mut axes);
            from.push(self.window_index(&index[lead + d], &k, w, &self.shape(x)[lead + d], &mut guards));
        }
        let dtype = self.unit.graph[x].ty.dtype;
        let value = self.pull_guarded(x, from, &guards, monoid.identity(dtype))?;
        let acc = accumulator(self.unit.graph[v].ty.dtype);
        let value = self.convert(acc, ConvertMode::Plain, value);
        Ok(self.reduce(v, acc, monoid, axes, value))
    }

    /// Index read by window position `k` of output `o`, and the guards for it.
    fn window_index(&self, o: &Dim, k: &Dim, w: &WindowDim, extent: &Dim, guards: &mut Vec<Guard>) -> Dim {
        let y = o * Dim::from(w.stride) + k * Dim::from(w.dilation) - &w.pad_lo;
        if w.base_dilation == 1 {
            guards.push(Guard { expr: y.clone(), bound: extent.clone() });
            return y;
        }
        let (facts, step) = (self.facts(), Dim::from(w.base_dilation));
        let last = (extent - Dim::from(1)) * &step;
        guards.push(Guard { expr: y.clone(), bound: last + Dim::from(1) });
        guards.push(Guard { expr: y.modulo(&step, &facts), bound: Dim::from(1) });
        y.floor_div(&step, &facts)
    }

    fn contract(
        &mut self,
        v: ValueId,
        [a, b]: [ValueId; 2],
        index: &[Dim],
        batch: &[(usize, usize)],
        reduce: &[(usize, usize)],
    ) -> Result<ExprId> {
        let (sa, sb) = (self.shape(a), self.shape(b));
        let mut ia: Vec<Option<Dim>> = vec![None; sa.len()];
        let mut ib: Vec<Option<Dim>> = vec![None; sb.len()];
        let mut axes = Vec::new();
        let mut rest = index.iter().cloned();
        for &(da, db) in batch {
            let i = rest.next();
            ia[da] = i.clone();
            ib[db] = i;
        }
        for &(da, db) in reduce {
            let r = self.reduce_axis(&sa[da], &mut axes);
            ia[da] = Some(r.clone());
            ib[db] = Some(r);
        }
        let mut free = |i: Option<Dim>| i.or_else(|| rest.next()).unwrap_or_default();
        let ia: Vec<Dim> = ia.into_iter().map(&mut free).collect();
        let ib: Vec<Dim> = ib.into_iter().map(&mut free).collect();
        let x = self.pull(a, ia)?;
        let y = self.pull(b, ib)?;
        Ok(self.sum_of_products(v, x, y, axes))
    }

    fn sum_of_products(&mut self, v: ValueId, x: ExprId, y: ExprId, axes: Vec<Axis>) -> ExprId {
        let acc = accumulator(self.unit.graph[v].ty.dtype);
        let x = self.convert(acc, ConvertMode::Plain, x);
        let y = self.convert(acc, ConvertMode::Plain, y);
        let value = self.binary(BinaryOp::Mul, x, y);
        self.reduce(v, acc, Monoid::Sum, axes, value)
    }

    fn convolve(
        &mut self,
        v: ValueId,
        [x, w]: [ValueId; 2],
        index: &[Dim],
        window: &[WindowDim],
        groups: usize,
    ) -> Result<ExprId> {
        let (sx, sw) = (self.shape(x), self.shape(w));
        let group_ci = sw[1].clone();
        let group_co = sw[0].floor_div(&Dim::from(groups), &self.facts());
        let group = if groups == 1 { Dim::from(0) } else { index[1].floor_div(&group_co, &self.facts()) };
        let mut axes = Vec::new();
        let ci = self.reduce_axis(&group_ci, &mut axes);
        let mut ix = vec![index[0].clone(), group * &group_ci + &ci];
        let mut iw = vec![index[1].clone(), ci];
        let mut guards = Vec::new();
        for (d, win) in window.iter().enumerate() {
            let k = self.reduce_axis(&sw[2 + d], &mut axes);
            ix.push(self.window_index(&index[2 + d], &k, win, &sx[2 + d], &mut guards));
            iw.push(k);
        }
        let dtype = self.unit.graph[x].ty.dtype;
        let x = self.pull_guarded(x, ix, &guards, Scalar::zero(dtype))?;
        let y = self.pull(w, iw)?;
        Ok(self.sum_of_products(v, x, y, axes))
    }

    /// `a == b` as a boolean expression.
    pub fn equal(&mut self, a: ExprId, b: ExprId) -> ExprId {
        self.expr(Expr::Cmp(CmpOp::Eq, a, b), DType::Bool)
    }
}

/// The value whose buffer holds `value`, and the index there of its element `index`.
pub fn locate(homes: &HashMap<ValueId, Home>, value: ValueId, index: &[Dim]) -> (ValueId, Vec<Dim>) {
    let (mut value, mut index) = (value, index.to_vec());
    while let Some(home) = homes.get(&value) {
        index = index.iter().zip(&home.offset).map(|(i, o)| i + o).collect();
        value = home.value;
    }
    (value, index)
}

/// `0 <= index[d] < shape[d]` for every dim.
pub fn bounds_guards(index: &[Dim], shape: &[Dim]) -> Vec<Guard> {
    index.iter().zip(shape).map(|(i, n)| Guard { expr: i.clone(), bound: n.clone() }).collect()
}

/// Index along an operand dim of `extent` that is broadcast to `result`: 0 where the extent is 1.
fn broadcast_dim(i: &Dim, extent: &Dim, result: &Dim, facts: &IndexFacts) -> Dim {
    if extent.is_const(1) {
        Dim::from(0)
    } else if extent.provably_eq(result, facts) || extent.bounds(facts.symbols).0 > 1 {
        i.clone()
    } else {
        i * (extent - Dim::from(1)).min_with(&Dim::from(1), facts)
    }
}

/// dtype in which a reduction with results of `dtype` accumulates.
pub fn accumulator(dtype: DType) -> DType {
    if dtype.is_float() && dtype.bytes() < 4 { DType::F32 } else { dtype }
}

/// The one value of a constant: a splat, or a single element.
pub fn uniform_scalar(data: &ConstData) -> Option<Scalar> {
    match &data.source {
        ConstSource::Splat(s) => Some(*s),
        ConstSource::Bytes(bytes) if data.shape.iter().all(|&d| d == 1) => {
            decode_scalar(data.dtype, bytes.bytes())
        }
        _ => None,
    }
}

/// The first element; `None` for types that only a convert understands.
pub fn decode_scalar(dtype: DType, bytes: &[u8]) -> Option<Scalar> {
    let bytes = bytes.get(..dtype.bytes())?;
    let word = bytes.iter().rev().fold(0u64, |w, &b| w << 8 | b as u64);
    Some(match dtype {
        DType::F64 => Scalar::Float(f64::from_bits(word)),
        DType::F32 => Scalar::Float(f32::from_bits(word as u32) as f64),
        DType::BF16 => Scalar::Float(f32::from_bits((word as u32) << 16) as f64),
        DType::F16 => Scalar::Float(f16_to_f64(word as u16)),
        DType::Bool => Scalar::Int((word != 0) as i128),
        _ if dtype.is_unsigned_int() => Scalar::Int((word & mask(dtype)) as i128),
        _ if dtype.is_signed_int() => {
            let unused = 64 - dtype.bits();
            Scalar::Int(((word << unused) as i64 >> unused) as i128)
        }
        _ => return None,
    })
}

fn mask(dtype: DType) -> u64 {
    u64::MAX >> (64 - dtype.bits())
}

/// IEEE 754 binary16.
fn f16_to_f64(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exp, frac) = ((bits >> 10 & 31) as i32, (bits & 1023) as f64);
    sign * match exp {
        0 => frac * 2f64.powi(-24),
        31 if frac == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + frac) * 2f64.powi(exp - 25),
    }
}
