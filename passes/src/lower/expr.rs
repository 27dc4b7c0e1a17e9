//! Evaluates kernel expressions on tiles.
//!
//! A value is R x C, R x 1, 1 x C or 1 x 1 according to the tile axes it depends on; the builder
//! broadcasts where values of different shape meet. Accesses become rectangular loads where their offset
//! is affine in both tile axes, and element-wise gathers otherwise. A guarded read touches memory only
//! where its guards hold.

use super::axes::dtype_of;
use super::space::{VarFacts, substitute};
use crate::error::{PassError, Result};
use ir::dtype::Scalar;
use ir::kernel::{Access, BufId, Dot, Expr, ExprId, Guard, Kernel, Stmt};
use ir::loops::{Addr, Mem, Stride, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::{BinaryOp, CmpOp, Combine, ConvertMode};
use ir::{Atom, DType, Dim, Monoid, Var};
use std::collections::HashMap;

/// A dimension of the tile being computed: `axis = base + iota`, for `size` values of iota.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileDim {
    pub iota: Var,
    pub size: u32,
}

/// How an offset depends on the tile: `offset = base + row * r + col * c`.
struct Affine {
    row: Dim,
    col: Dim,
    base: Dim,
}

/// What [`Eval::leave`] restores.
pub(super) struct Scope {
    env: Vec<Option<Val>>,
    row: Option<TileDim>,
    col: Option<TileDim>,
    valid: Option<Val>,
    valid_rows: Option<Val>,
}

pub(super) struct Eval<'a> {
    pub b: LoopBuilder,
    pub k: &'a Kernel,
    pub facts: VarFacts<'a>,
    pub mems: Vec<Mem>,
    pub row: Option<TileDim>,
    pub col: Option<TileDim>,
    /// Columns of the tile that exist (i64 scalar); all where `None`.
    pub valid: Option<Val>,
    /// The same of rows; then every access is regular.
    pub valid_rows: Option<Val>,
    /// Axes may be bound to a column of numbers, one for each row of the tile: accesses then have a place for each row.
    pub own_rows: bool,
    /// Values of index variables: scalars, and tiles for the tile's own axes and for gathered indices.
    env: Vec<Option<Val>>,
    /// Tiled axes as expressions of loop variables and iotas.
    subst: Vec<(Var, Dim)>,
    pub locals: Vec<Option<Val>>,
    /// Values of expressions by open scope, innermost last.
    memo: Vec<HashMap<ExprId, Val>>,
    /// Expressions that read memory which the kernel writes: evaluated anew each time.
    volatile: Vec<bool>,
}

/// By expression: reads a writable buffer, itself or through an operand.
fn volatile_exprs(k: &Kernel) -> Vec<bool> {
    let mut result: Vec<bool> = Vec::with_capacity(k.exprs().len());
    for e in k.exprs() {
        let of = |ids: &[ExprId]| ids.iter().any(|i| result[i.0 as usize]);
        result.push(match e {
            Expr::Const(..) | Expr::Index(_) | Expr::Inside(_) | Expr::Local(_) => false,
            Expr::Read { buf, .. } => k.buffers.get(buf.0 as usize).is_some_and(|b| b.access != Access::Read),
            Expr::Unary(_, a) | Expr::Convert(_, _, a) | Expr::Bitcast(_, a) => of(&[*a]),
            Expr::Binary(_, a, b) | Expr::Cmp(_, a, b) | Expr::Dot(_, a, b) => of(&[*a, *b]),
            Expr::Select(a, b, c) => of(&[*a, *b, *c]),
            Expr::Bind { value, body, .. } => of(&[*value, *body]),
        });
    }
    result
}

impl<'a> Eval<'a> {
    pub fn new(k: &'a Kernel, facts: VarFacts<'a>) -> Eval<'a> {
        let mut b = LoopBuilder::new(k.name.clone());
        let mems = k
            .buffers
            .iter()
            .map(|x| {
                let writable = x.access != Access::Read;
                b.buf(x.name.clone(), x.dtype, writable, x.dtype.bytes() as u32)
            })
            .collect();
        Eval::within(b, mems, k, facts)
    }

    /// Evaluates into a function that is being built; `mems`: its memory, by buffer of the kernel.
    pub fn within(mut b: LoopBuilder, mems: Vec<Mem>, k: &'a Kernel, facts: VarFacts<'a>) -> Eval<'a> {
        for o in &k.origins {
            b.origin(*o);
        }
        Eval {
            b,
            k,
            facts,
            mems,
            row: None,
            col: None,
            valid: None,
            valid_rows: None,
            own_rows: false,
            env: vec![None; k.vars.len()],
            subst: Vec::new(),
            locals: vec![None; k.locals as usize],
            memo: vec![HashMap::new()],
            volatile: volatile_exprs(k),
        }
    }

    // ---- variables --------------------------------------------------------------------------

    /// A variable that the kernel does not have, in `0..extent`.
    pub fn fresh(&mut self, extent: Dim) -> Var {
        let v = Var(self.env.len() as u32);
        self.env.push(None);
        self.facts.set(v, extent);
        v
    }
    pub fn bind(&mut self, v: Var, val: Val) {
        self.env[v.0 as usize] = Some(val);
    }
    pub fn value(&self, v: Var) -> Option<Val> {
        self.env.get(v.0 as usize).copied().flatten()
    }
    pub fn replace(&mut self, v: Var, by: Dim) {
        self.subst.retain(|(w, _)| *w != v);
        self.subst.push((v, by));
    }
    pub fn unreplace(&mut self, v: Var) {
        self.subst.retain(|(w, _)| *w != v);
    }
    /// Begins a scope of values that end with the block being built. [`Self::leave`] ends it.
    pub fn enter(&mut self) -> Scope {
        self.memo.push(HashMap::new());
        let (row, col, valid, valid_rows) = (self.row, self.col, self.valid, self.valid_rows);
        Scope { env: self.env.clone(), row, col, valid, valid_rows }
    }
    pub fn leave(&mut self, s: Scope) {
        self.memo.pop();
        self.env[..s.env.len()].copy_from_slice(&s.env);
        (self.row, self.col) = (s.row, s.col);
        (self.valid, self.valid_rows) = (s.valid, s.valid_rows);
    }

    pub fn rows(&self) -> u32 {
        self.row.map_or(1, |t| t.size)
    }
    pub fn cols(&self) -> u32 {
        self.col.map_or(1, |t| t.size)
    }

    /// The index expression with tiled axes replaced.
    pub fn resolve(&self, d: &Dim) -> Dim {
        substitute(d, &self.facts, &self.subst)
    }

    /// Value of a resolved index expression: a scalar, or a tile where it depends on the tile's axes.
    pub fn dim(&mut self, d: &Dim) -> Result<Val> {
        self.bound_vars(d)?;
        let env = std::mem::take(&mut self.env);
        let zero = self.b.index(0);
        let v = self.b.dim(d, &|v| env.get(v.0 as usize).copied().flatten().unwrap_or(zero));
        self.env = env;
        Ok(v)
    }
    fn dim_parts(&mut self, d: &Dim) -> Result<(Val, i64)> {
        self.bound_vars(d)?;
        let env = std::mem::take(&mut self.env);
        let zero = self.b.index(0);
        let v = self.b.dim_parts(d, &|v| env.get(v.0 as usize).copied().flatten().unwrap_or(zero));
        self.env = env;
        Ok(v)
    }
    fn bound_vars(&self, d: &Dim) -> Result<()> {
        let mut missing = None;
        d.visit_atoms(&mut |a| {
            if let Atom::Var(v) = a
                && self.env.get(v.0 as usize).copied().flatten().is_none()
            {
                missing = Some(*v);
            }
        });
        match missing {
            Some(v) => {
                let name = self.k.vars.get(v.0 as usize).cloned().unwrap_or_default();
                Err(self.fault(format!("index variable {name} (i{}) has no value in {d}", v.0)))
            }
            None => Ok(()),
        }
    }
    pub fn fault(&self, message: String) -> PassError {
        PassError::internal("schedule", format!("kernel {}: {message}", self.k.name))
    }

    /// Shape of the value of a resolved index expression.
    fn dim_shape(&self, d: &Dim) -> (u32, u32) {
        let (mut rows, mut cols) = (1, 1);
        d.visit_atoms(&mut |a| {
            let Atom::Var(v) = a else { return };
            if let Some(val) = self.env.get(v.0 as usize).copied().flatten() {
                let t = self.b.ty(val);
                (rows, cols) = (rows.max(t.rows), cols.max(t.cols));
            }
        });
        (rows, cols)
    }
    /// The offset as an affine function of the tile's axes; `None` where it is not one.
    fn affine(&self, d: &Dim) -> Option<Affine> {
        self.affine_in_tile(d).filter(|a| self.dim_shape(&a.base) == (1, 1))
    }
    /// As [`Eval::affine`]; the base may be another one in each row.
    fn affine_by_rows(&self, d: &Dim) -> Option<Affine> {
        let a = self.affine_in_tile(d)?;
        let (rows, cols) = self.dim_shape(&a.base);
        (rows == 1 && cols == 1 || self.own_rows && cols == 1 && self.row.is_none()).then_some(a)
    }
    fn affine_in_tile(&self, d: &Dim) -> Option<Affine> {
        let zero = Dim::from(0);
        let (row, rest) = match self.row {
            Some(t) => d.affine_in(t.iota)?,
            None => (zero.clone(), d.clone()),
        };
        let (col, base) = match self.col {
            Some(t) => rest.affine_in(t.iota)?,
            None => (zero, rest),
        };
        let scalar = |d: &Dim| self.dim_shape(d) == (1, 1);
        (scalar(&row) && scalar(&col)).then_some(Affine { row, col, base })
    }

    /// Shape of an expression's value, without evaluating it.
    pub fn shape(&self, e: ExprId) -> (u32, u32) {
        let join = |a: (u32, u32), b: (u32, u32)| (a.0.max(b.0), a.1.max(b.1));
        let dims = |ds: &mut dyn Iterator<Item = &Dim>| {
            ds.map(|d| self.dim_shape_open(&self.resolve(d))).fold((1, 1), join)
        };
        let guards = |gs: &[Guard]| dims(&mut gs.iter().flat_map(|g| [&g.expr, &g.bound]));
        match self.k.get(e) {
            Expr::Const(..) => (1, 1),
            Expr::Index(d) => self.dim_shape_open(&self.resolve(d)),
            Expr::Read { index, guards: gs, .. } => join(dims(&mut index.iter()), guards(gs)),
            Expr::Inside(gs) => guards(gs),
            Expr::Unary(_, a) | Expr::Convert(_, _, a) | Expr::Bitcast(_, a) => self.shape(*a),
            Expr::Binary(_, a, b) | Expr::Cmp(_, a, b) | Expr::Dot(_, a, b) => {
                join(self.shape(*a), self.shape(*b))
            }
            Expr::Select(a, b, c) => join(self.shape(*a), join(self.shape(*b), self.shape(*c))),
            Expr::Local(l) => match self.locals.get(*l as usize).copied().flatten() {
                Some(v) => (self.b.ty(v).rows, self.b.ty(v).cols),
                None => (self.rows(), self.cols()),
            },
            Expr::Bind { value, body, .. } => join(self.shape(*value), self.shape(*body)),
        }
    }
    /// As `dim_shape`, but knows the tile's own axes before their values are bound.
    fn dim_shape_open(&self, d: &Dim) -> (u32, u32) {
        let (mut rows, mut cols) = self.dim_shape(d);
        d.visit_atoms(&mut |a| {
            let Atom::Var(v) = a else { return };
            if self.row.is_some_and(|t| t.iota == *v) {
                rows = self.rows();
            }
            if self.col.is_some_and(|t| t.iota == *v) {
                cols = self.cols();
            }
        });
        (rows, cols)
    }

    // ---- expressions ------------------------------------------------------------------------

    pub fn dtype(&self, e: ExprId) -> DType {
        dtype_of(self.k, e, &[])
    }

    /// The value of `e` at the current tile, until the scope ends, is this.
    pub fn know(&mut self, e: ExprId, v: Val) {
        if let Some(scope) = self.memo.last_mut() {
            scope.insert(e, v);
        }
    }

    /// The value of `e` at the current tile.
    pub fn eval(&mut self, e: ExprId) -> Result<Val> {
        if let Some(v) = self.memo.iter().rev().find_map(|m| m.get(&e)) {
            return Ok(*v);
        }
        let v = match self.k.get(e).clone() {
            Expr::Const(t, s) => self.b.constant(Ty::scalar(t), s),
            Expr::Index(d) => {
                let d = self.resolve(&d);
                self.dim(&d)?
            }
            Expr::Read { buf, index, guards, fill } => self.read(buf, &index[0], &guards, fill)?,
            Expr::Unary(op, a) => {
                let a = self.eval(a)?;
                self.b.unary(op, a)
            }
            Expr::Binary(op, x, y) => self.binary(op, x, y)?,
            Expr::Cmp(op, x, y) => {
                let (x, y) = (self.eval(x)?, self.eval(y)?);
                self.b.cmp(op, x, y)
            }
            Expr::Select(c, x, y) => {
                let (c, x, y) = (self.eval(c)?, self.eval(x)?, self.eval(y)?);
                self.b.select(c, x, y)
            }
            Expr::Inside(guards) => {
                let guards: Vec<Guard> = guards.iter().map(|g| self.resolve_guard(g)).collect();
                self.guards_hold(&guards)?
            }
            Expr::Convert(t, mode, a) => {
                let a = self.eval(a)?;
                self.b.convert(t, mode, a)
            }
            Expr::Bitcast(t, a) => {
                let a = self.eval(a)?;
                self.b.bitcast(t, a)
            }
            Expr::Dot(dot, x, y) => {
                let (rows, cols) = self.shape(e);
                let zero = self.b.zero(Ty::tile(dot.dtype(), rows, cols));
                self.dot(dot, x, y, zero)?
            }
            Expr::Local(l) => self
                .locals
                .get(l as usize)
                .copied()
                .flatten()
                .ok_or_else(|| self.fault(format!("local {l} is used before it is defined")))?,
            Expr::Bind { var, value, bound, body } => {
                let index = self.checked_index(value, &bound)?;
                self.bind(var, index);
                self.eval(body)?
            }
        };
        if !self.volatile[e.0 as usize] {
            self.know(e, v);
        }
        Ok(v)
    }

    /// Float `a * b + c` is one fused operation only where the kernel is a reduction ([`super::nest`]);
    /// here products are rounded.
    fn binary(&mut self, op: BinaryOp, x: ExprId, y: ExprId) -> Result<Val> {
        let (x, y) = (self.eval(x)?, self.eval(y)?);
        Ok(self.b.binary(op, x, y))
    }

    /// `acc` plus the dot product of two words, in the shape of `acc`.
    pub fn dot(&mut self, dot: Dot, x: ExprId, y: ExprId, acc: Val) -> Result<Val> {
        let t = self.b.ty(acc);
        let (x, y) = (self.eval(x)?, self.eval(y)?);
        let (x, y) = (self.b.splat(x, t.rows, t.cols), self.b.splat(y, t.rows, t.cols));
        Ok(self.b.tile_op(dot.tile_op(), acc, x, y))
    }

    /// An index computed from data: reported where it is out of `0..bound`, and then 0.
    pub fn checked_index(&mut self, value: ExprId, bound: &Dim) -> Result<Val> {
        let mut v = self.eval(value)?;
        if self.b.dtype(v) != DType::I64 {
            v = self.b.convert(DType::I64, ConvertMode::Plain, v);
        }
        let bound = self.resolve(bound);
        let limit = self.dim(&bound)?;
        let zero = self.b.index(0);
        let (low, high) = (self.b.cmp(CmpOp::Ge, v, zero), self.b.cmp(CmpOp::Lt, v, limit));
        let mut ok = self.b.and(low, high);
        let index = self.b.select(ok, v, zero);
        let shown = self.masked_cols(v, zero)?;
        if shown != v {
            let inside = self.cols_mask(self.b.ty(v).cols)?;
            let outside = self.b.not(inside);
            ok = self.b.or(ok, outside);
        }
        let all = self.all(ok);
        // the offender: the least value where one is negative, else the greatest
        let least = self.reduce_tile(Monoid::Min, shown);
        let greatest = self.reduce_tile(Monoid::Max, shown);
        let negative = self.b.cmp(CmpOp::Lt, least, zero);
        let offender = self.b.select(negative, least, greatest);
        let origin = self.k.origins.first().copied().unwrap_or(ir::OriginId(0));
        self.b.check(all, origin, offender, limit);
        Ok(index)
    }

    /// `v` with the columns beyond the valid ones replaced.
    pub fn masked_cols(&mut self, v: Val, other: Val) -> Result<Val> {
        let cols = self.b.ty(v).cols;
        if self.valid.is_none() || cols == 1 {
            return Ok(v);
        }
        let mask = self.cols_mask(cols)?;
        Ok(self.b.select(mask, v, other))
    }
    fn cols_mask(&mut self, cols: u32) -> Result<Val> {
        let Some(valid) = self.valid else { return Ok(self.b.bool(Ty::scalar(DType::Bool), true)) };
        let iota = self.b.iota(Ty::vector(DType::I64, cols), true);
        Ok(self.b.cmp(CmpOp::Lt, iota, valid))
    }
    fn reduce_tile(&mut self, m: Monoid, v: Val) -> Val {
        let v = if self.b.ty(v).cols > 1 { self.b.reduce_cols(m, v) } else { v };
        if self.b.ty(v).rows > 1 { self.b.reduce_rows(m, v) } else { v }
    }
    fn all(&mut self, mask: Val) -> Val {
        self.reduce_tile(Monoid::Min, mask)
    }

    // ---- guards -----------------------------------------------------------------------------

    fn resolve_guard(&self, g: &Guard) -> Guard {
        Guard { expr: self.resolve(&g.expr), bound: self.resolve(&g.bound) }
    }

    /// All guards (resolved) hold: a bool scalar or tile.
    fn guards_hold(&mut self, guards: &[Guard]) -> Result<Val> {
        let mut all = self.b.bool(Ty::scalar(DType::Bool), true);
        for g in guards {
            let one = self.guard_holds(&g.expr, &g.bound)?;
            all = self.b.and(all, one);
        }
        Ok(all)
    }
    fn guard_holds(&mut self, expr: &Dim, bound: &Dim) -> Result<Val> {
        let (lo, _) = expr.bounds(&self.facts);
        let below = expr.provably_lt(bound, &self.facts);
        let (v, limit) = (self.dim(expr)?, self.dim(bound)?);
        let zero = self.b.index(0);
        let mut ok = self.b.bool(Ty::scalar(DType::Bool), true);
        if lo < 0 {
            ok = self.b.cmp(CmpOp::Ge, v, zero);
        }
        if !below {
            let high = self.b.cmp(CmpOp::Lt, v, limit);
            ok = self.b.and(ok, high);
        }
        Ok(ok)
    }

    /// The guards that depend on the tile, and a bool scalar for the others.
    fn split_guards(&mut self, guards: &[Guard]) -> Result<(Val, Vec<Guard>)> {
        let resolved: Vec<Guard> = guards.iter().map(|g| self.resolve_guard(g)).collect();
        let open: Vec<Guard> =
            resolved.into_iter().filter(|g| !crate::index::inside(g, &self.facts)).collect();
        let (uniform, tile): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|g| self.dim_shape(&g.expr) == (1, 1) && self.dim_shape(&g.bound) == (1, 1));
        Ok((self.guards_hold(&uniform)?, tile))
    }

    /// True in every element of the tile: decided at the corners, which is exact for affine guards.
    /// `None` where a guard is not affine.
    fn all_inside(&mut self, guards: &[Guard]) -> Result<Option<Val>> {
        let mut all = self.b.bool(Ty::scalar(DType::Bool), true);
        for g in guards {
            if self.affine(&g.expr).is_none() || self.dim_shape(&g.bound) != (1, 1) {
                return Ok(None);
            }
            let corner = |t: Option<TileDim>| match t {
                Some(t) if g.expr.uses_var(t.iota) => vec![(t.iota, 0), (t.iota, i64::from(t.size) - 1)],
                _ => Vec::new(),
            };
            let (rows, cols) = (corner(self.row), corner(self.col));
            let pick = |c: &[(Var, i64)]| -> Vec<Vec<(Var, Dim)>> {
                match c {
                    [] => vec![Vec::new()],
                    c => c.iter().map(|(v, x)| vec![(*v, Dim::from(*x))]).collect(),
                }
            };
            for r in pick(&rows) {
                for c in pick(&cols) {
                    let map = [r.clone(), c].concat();
                    let at = substitute(&g.expr, &self.facts, &map);
                    let ok = self.guard_holds(&at, &g.bound)?;
                    all = self.b.and(all, ok);
                }
            }
        }
        Ok(Some(all))
    }

    // ---- memory -----------------------------------------------------------------------------

    fn read(&mut self, buf: BufId, offset: &Dim, guards: &[Guard], fill: Scalar) -> Result<Val> {
        let offset = self.resolve(offset);
        let (uniform, tile) = self.split_guards(guards)?;
        let dtype = self.k.buffers[buf.0 as usize].dtype;
        let surely = self.b.as_const(uniform) == Some(Scalar::Int(1));
        if tile.is_empty() {
            if surely {
                return self.load(buf, &offset, None);
            }
            self.b.open_if(uniform);
            let v = self.load(buf, &offset, None)?;
            let ty = self.b.ty(v);
            self.b.open_else(&[v]);
            let fill = self.b.constant(ty, fill);
            return Ok(self.b.close_if(&[fill])[0]);
        }
        let shape = tile
            .iter()
            .flat_map(|g| [&g.expr, &g.bound])
            .map(|d| self.dim_shape(d))
            .fold(self.dim_shape(&offset), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        let ty = Ty::tile(dtype, shape.0, shape.1);
        let fast = match self.affine(&offset) {
            Some(_) => self.all_inside(&tile)?,
            None => None,
        };
        if let Some(inside) = fast {
            let inside = self.b.and(inside, uniform);
            self.b.open_if(inside);
            let v = self.load(buf, &offset, None)?;
            let v = self.b.splat(v, ty.rows, ty.cols);
            self.b.open_else(&[v]);
        }
        let mask = self.guards_hold(&tile)?;
        let mask = self.b.and(mask, uniform);
        let v = self.load(buf, &offset, Some(mask))?;
        let fill = self.b.constant(Ty::scalar(dtype), fill);
        let v = self.b.select(mask, v, fill);
        let v = self.b.splat(v, ty.rows, ty.cols);
        Ok(if fast.is_some() { self.b.close_if(&[v])[0] } else { v })
    }

    /// Reads the elements at `offset` (resolved); with a mask only where it holds.
    fn load(&mut self, buf: BufId, offset: &Dim, mask: Option<Val>) -> Result<Val> {
        let mem = self.mems[buf.0 as usize];
        if mask.is_none()
            && let Some(a) = self.affine_by_rows(offset)
        {
            let (rows, cols) = self.extent_of(&a);
            let masked = cols > 1 && self.valid.is_some() && !self.surely_allocated(buf, offset);
            let addr = self.address(mem, &a, masked)?;
            return Ok(self.b.load(addr, rows, cols));
        }
        self.all_rows()?;
        let mut index = self.dim(offset)?;
        let mut mask = mask;
        if self.valid.is_some() && self.b.ty(index).cols > 1 {
            let cols = self.cols_mask(self.b.ty(index).cols)?;
            mask = Some(match mask {
                Some(m) => self.b.and(m, cols),
                None => cols,
            });
        }
        if let Some(m) = mask {
            // both get the shape of the pair
            let (i, t) = (self.b.ty(index), self.b.ty(m));
            let (rows, cols) = (i.rows.max(t.rows), i.cols.max(t.cols));
            index = self.b.splat(index, rows, cols);
            mask = Some(self.b.splat(m, rows, cols));
        }
        Ok(self.b.gather(mem, index, mask))
    }

    /// Fails where some rows do not exist: accesses of single elements know nothing of these.
    fn all_rows(&self) -> Result<()> {
        match self.valid_rows {
            Some(_) => Err(self.fault("irregular accesses in a tile whose rows end early".into())),
            None => Ok(()),
        }
    }

    fn extent_of(&self, a: &Affine) -> (u32, u32) {
        let size = |d: &Dim, n: u32| if d.is_const(0) { 1 } else { n };
        (size(&a.row, self.rows()).max(self.dim_shape(&a.base).0), size(&a.col, self.cols()))
    }

    fn address(&mut self, mem: Mem, a: &Affine, masked: bool) -> Result<Addr> {
        let (index, disp) = self.dim_parts(&a.base)?;
        let mut addr = self.b.addr(mem, index, disp);
        addr.row = self.stride(&a.row)?;
        addr.col = self.stride(&a.col)?;
        addr.cols_valid = if masked { self.valid } else { None };
        addr.rows_valid = self.valid_rows.filter(|_| addr.row != Stride::Const(0));
        if self.own_rows {
            // the widest access that every row allows
            let wide = [4, 2].into_iter().find(|n| a.base.divisible_by(*n, &self.facts)).unwrap_or(1);
            addr.align *= wide as u32;
        }
        Ok(addr)
    }
    fn stride(&mut self, d: &Dim) -> Result<Stride> {
        Ok(match d.as_const() {
            Some(c) => Stride::Const(c),
            None => Stride::Val(self.dim(d)?),
        })
    }

    /// True where every column of the tile lies inside the buffer, valid or not: padded constants.
    fn surely_allocated(&self, buf: BufId, offset: &Dim) -> bool {
        let elems = &self.k.buffers[buf.0 as usize].shape[0];
        let (lo, hi) = offset.bounds(&self.facts);
        lo >= 0 && hi < elems.bounds(&self.facts).0
    }

    /// Computes a `Let`, or a `Store` without axes of its own; false where the statement is neither.
    pub fn plain(&mut self, s: &Stmt) -> Result<bool> {
        match s {
            Stmt::Let { local, value } => {
                let v = self.eval(*value)?;
                self.locals[*local as usize] = Some(v);
            }
            Stmt::Store { axes, buf, index, guards, value, combine } if axes.is_empty() => {
                let v = self.eval(*value)?;
                self.write(*buf, &index[0], guards, v, *combine)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Writes `value` to the elements at `offset`, where the guards hold.
    pub fn write(
        &mut self,
        buf: BufId,
        offset: &Dim,
        guards: &[Guard],
        value: Val,
        combine: Combine,
    ) -> Result<()> {
        let offset = self.resolve(offset);
        let (uniform, tile) = self.split_guards(guards)?;
        let dtype = self.k.buffers[buf.0 as usize].dtype;
        let value = if self.b.dtype(value) == dtype {
            value
        } else {
            self.b.convert(dtype, ConvertMode::Plain, value)
        };
        let surely = self.b.as_const(uniform) == Some(Scalar::Int(1));
        if !surely {
            self.b.open_if(uniform);
        }
        self.write_where(buf, &offset, &tile, value, combine)?;
        if !surely {
            self.b.open_else(&[]);
            self.b.close_if(&[]);
        }
        Ok(())
    }

    fn write_where(
        &mut self,
        buf: BufId,
        offset: &Dim,
        guards: &[Guard],
        value: Val,
        combine: Combine,
    ) -> Result<()> {
        let mem = self.mems[buf.0 as usize];
        let Some(a) = self.affine_by_rows(offset) else {
            return self.scatter(buf, offset, guards, value, combine);
        };
        let fast = if guards.is_empty() { None } else { self.all_inside(guards)? };
        if !guards.is_empty() && (fast.is_none() || combine != Combine::Set) {
            return self.scatter(buf, offset, guards, value, combine);
        }
        if let Some(inside) = fast {
            self.b.open_if(inside);
        }
        let (rows, cols) = self.extent_of(&a);
        let t = self.b.ty(value);
        if t.rows > rows || t.cols > cols {
            return Err(
                self.fault(format!("stores a {} x {} tile to {rows} x {cols} places", t.rows, t.cols))
            );
        }
        let masked = cols > 1 && self.valid.is_some();
        let addr = self.address(mem, &a, masked)?;
        let mut stored = self.b.splat(value, rows, cols);
        if combine != Combine::Set {
            let old = self.b.load(addr, rows, cols);
            stored = self.combined(combine, old, stored);
        }
        self.b.store(addr, stored);
        if fast.is_some() {
            self.b.open_else(&[]);
            self.scatter(buf, offset, guards, value, Combine::Set)?;
            self.b.close_if(&[]);
        }
        Ok(())
    }

    fn combined(&mut self, combine: Combine, old: Val, new: Val) -> Val {
        let op = match combine {
            Combine::Set => return new,
            Combine::Add => BinaryOp::Add,
            Combine::Mul => BinaryOp::Mul,
            Combine::Min => BinaryOp::Min,
            Combine::Max => BinaryOp::Max,
        };
        if op == BinaryOp::Add && self.b.dtype(old) == DType::Bool {
            return self.b.or(old, new);
        }
        self.b.binary(op, old, new)
    }

    fn scatter(
        &mut self,
        buf: BufId,
        offset: &Dim,
        guards: &[Guard],
        value: Val,
        combine: Combine,
    ) -> Result<()> {
        self.all_rows()?;
        let mem = self.mems[buf.0 as usize];
        let mut index = self.dim(offset)?;
        let mut mask = self.guards_hold(guards)?;
        let shape = [index, mask, value].map(|v| self.b.ty(v));
        let rows = shape.iter().map(|t| t.rows).max().unwrap_or(1);
        let cols = shape.iter().map(|t| t.cols).max().unwrap_or(1);
        if self.valid.is_some() && cols > 1 {
            let valid = self.cols_mask(cols)?;
            mask = self.b.and(mask, valid);
        }
        index = self.b.splat(index, rows, cols);
        let mut value = self.b.splat(value, rows, cols);
        let mask = match self.b.as_const(mask) {
            Some(Scalar::Int(1)) => None,
            _ => Some(self.b.splat(mask, rows, cols)),
        };
        if combine != Combine::Set {
            let old = self.b.gather(mem, index, mask);
            value = self.combined(combine, old, value);
        }
        self.b.scatter(mem, index, value, mask);
        Ok(())
    }

    /// True where the value is surely `true`.
    pub fn is_true(&self, v: Val) -> bool {
        self.b.as_const(v) == Some(Scalar::Int(1))
    }
}
