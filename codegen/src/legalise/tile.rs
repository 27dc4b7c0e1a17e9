//! The walk over a function: each tile becomes the list of its registers.

use super::Options;
use super::block::Spreads;
use super::columns::Columns;
use super::math::{Math, is_native};
use super::matrix::Matrices;
use super::multiples::Multiples;
use super::narrow::{self, register};
use crate::Fault;
use crate::error::Emit;
use ir::DType;
use ir::dtype::Scalar;
use ir::kernel::Dot;
use ir::loops::{Block, Form, Func, Inst, Level, Stmt, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::loops_opt::eval;
use ir::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use ir::target::TargetDesc;

/// Registers of a tile, row by row: R x ceil(C / L) vectors, or R scalars where C is 1.
#[derive(Clone, Debug)]
pub struct Tile {
    pub regs: Vec<Val>,
    /// The registers may hold what is no value of a narrow type: wrap or round before any use but a store.
    pub loose: bool,
    /// The bits of what was read from memory and decoded, for who only stores it again.
    pub patterns: Option<Vec<Val>>,
}

impl Tile {
    pub fn of(regs: Vec<Val>) -> Tile {
        Tile { regs, loose: false, patterns: None }
    }
}

pub struct Legaliser<'a> {
    pub func: &'a Func,
    pub target: &'a TargetDesc,
    options: Options,
    pub b: LoopBuilder,
    /// Math functions so far.
    functions: Vec<&'static str>,
    /// Lanes of every vector.
    pub lanes: u32,
    /// Where the columns of a row lie.
    pub(super) columns: Columns,
    pub(super) multiples: Multiples,
    pub(super) matrices: Matrices,
    /// Number of the warp, where those of a block share rows.
    pub(super) warp: Option<Val>,
    /// Of tiles of a block of warps.
    pub(super) spreads: Option<Spreads>,
    /// The spread in which values are being computed.
    pub(super) at: usize,
    /// Tiles in front of the loop over the grid, which are computed inside of it.
    pub(super) deferred: Vec<&'a Stmt>,
    /// By spread and value; scalars are in the first.
    tiles: Vec<Vec<Option<Tile>>>,
}

impl<'a> Legaliser<'a> {
    pub fn new(func: &'a Func, target: &'a TargetDesc, options: Options) -> Self {
        let lanes = target.lanes(4).max(2);
        Legaliser {
            func,
            target,
            options,
            functions: Vec::new(),
            b: LoopBuilder::new(func.name.clone()),
            lanes,
            columns: Columns::plain(lanes),
            multiples: Multiples::default(),
            matrices: Matrices::of(func),
            warp: None,
            spreads: None,
            at: 0,
            deferred: Vec::new(),
            tiles: vec![vec![None; func.types.len()]],
        }
    }

    /// The function, and the math functions in it.
    pub fn run(mut self) -> Emit<(Func, Vec<&'static str>)> {
        for buf in &self.func.bufs {
            self.b.buf(buf.name.clone(), buf.dtype, buf.writable, buf.align);
        }
        for sym in &self.func.syms {
            self.b.sym_param(*sym);
        }
        for local in &self.func.locals {
            self.b.local(local.dtype, local.elems.clone(), local.space);
        }
        for origin in &self.func.origins {
            self.b.origin(*origin);
        }
        if self.target.simt {
            self.multiples = Multiples::of(self.func);
        }
        let rows = super::rows::warps(self.func)?;
        self.columns = Columns::of(self.func, self.target, self.lanes, rows.unwrap_or(1), &self.multiples);
        if rows.is_none() {
            self.spreads = Spreads::of(self.func, &self.multiples)?;
        }
        if let Some(s) = &self.spreads {
            self.tiles.resize(s.count(), vec![None; self.func.types.len()]);
        }
        self.block(&self.func.body)?;
        let mut out = self.b.finish(self.func.launch.clone());
        out.form = Form::Machine;
        super::sink::sink(&mut out);
        Ok((out, self.functions))
    }

    // ---- values -----------------------------------------------------------------------------

    pub fn tile(&self, v: Val) -> Emit<&Tile> {
        let scalar = self.func.types.get(v.0 as usize).is_none_or(|t| t.is_scalar());
        let tile = self.tiles[if scalar { 0 } else { self.at }].get(v.0 as usize).and_then(Option::as_ref);
        tile.ok_or_else(|| Fault::invalid(format!("%{} is used before it is defined", v.0)))
    }
    /// The registers of a value, wrapped and rounded.
    pub fn regs(&mut self, v: Val) -> Emit<Vec<Val>> {
        let tile = self.tile(v)?;
        if !tile.loose {
            return Ok(tile.regs.clone());
        }
        let regs = tile.regs.clone();
        let dtype = self.func.ty(v).dtype;
        let regs: Vec<Val> = regs.into_iter().map(|r| narrow::normalise(&mut self.b, dtype, r)).collect();
        Ok(regs)
    }
    pub fn scalar(&mut self, v: Val) -> Emit<Val> {
        match self.regs(v)?.as_slice() {
            [one] if self.func.ty(v).is_scalar() => Ok(*one),
            _ => Err(Fault::invalid(format!("%{} is no scalar", v.0))),
        }
    }
    fn define(&mut self, v: Val, tile: Tile) {
        let at = if self.func.ty(v).is_scalar() { 0 } else { self.at };
        self.tiles[at][v.0 as usize] = Some(tile);
    }
    /// Does something for each spread that a value is wanted in.
    fn in_spreads(&mut self, v: Val, mut f: impl FnMut(&mut Self) -> Emit<()>) -> Emit<()> {
        let wanted = match &self.spreads {
            Some(s) if !self.func.ty(v).is_scalar() => s.wants(v).to_vec(),
            _ => vec![0],
        };
        wanted.into_iter().try_for_each(|s| {
            self.at = s;
            let done = f(self);
            self.at = 0;
            done
        })
    }
    /// Type of the registers of a tile.
    pub fn reg_ty(&self, ty: Ty) -> Emit<Ty> {
        let dtype = register(ty.dtype).ok_or_else(|| Fault::unsupported("strings"))?;
        if ty.rows == 0 || ty.cols == 0 {
            return Err(Fault::invalid("a tile without elements"));
        }
        if !self.columns.fits(ty.cols) {
            return Err(Fault::unsupported(format!("{} columns on the warps of a block", ty.cols)));
        }
        let scalar = if self.spreads.is_some() { ty.is_scalar() } else { ty.cols == 1 };
        Ok(Ty::vector(dtype, if scalar { 1 } else { self.lanes }))
    }
    fn per_row(&self, ty: Ty) -> usize {
        self.columns.count(ty.cols) as usize
    }
    pub fn reg_count(&self, ty: Ty) -> usize {
        if let Some(s) = self.spreads.as_ref().filter(|_| !ty.is_scalar()) {
            return s.spread(self.at).count(ty);
        }
        ty.rows as usize * self.per_row(ty)
    }

    // ---- statements -------------------------------------------------------------------------

    fn block(&mut self, block: &'a Block) -> Emit<()> {
        block.stmts.iter().try_for_each(|s| self.stmt(s))
    }

    /// Registers of several values, one after another. Each pair: the value, and the one as which it is spread.
    fn flat(&mut self, vals: impl IntoIterator<Item = (Val, Val)>) -> Emit<Vec<Val>> {
        let mut out = Vec::new();
        for (v, like) in vals {
            self.in_spreads(like, |me| {
                out.extend(me.regs_like(v, like)?);
                Ok(())
            })?;
        }
        Ok(out)
    }
    /// Distributes registers to the values that they make up, in pairs as those of [`Self::flat`].
    fn unflatten(&mut self, vals: impl IntoIterator<Item = (Val, Val)>, regs: &[Val]) -> Emit<()> {
        let mut at = 0;
        for (v, like) in vals {
            self.in_spreads(like, |me| {
                let n = me.count_of(v)?;
                me.define(v, Tile::of(regs[at..at + n].to_vec()));
                at += n;
                Ok(())
            })?;
        }
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt) -> Emit<()> {
        match stmt {
            Stmt::Let { val, .. } if self.is_early(*val) => self.deferred.push(stmt),
            Stmt::Let { val, inst } if self.matrices.has(*val) => {
                let tile = self.matrix(self.func.ty(*val), inst)?;
                self.define(*val, tile);
            }
            Stmt::Let { val, inst } => {
                self.in_spreads(*val, |me| {
                    let tile = me.inst(me.func.ty(*val), inst)?;
                    me.define(*val, tile);
                    Ok(())
                })?;
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                let (lo, hi) = (self.scalar(*lo)?, self.scalar(*hi)?);
                let inits = self.flat(carries.iter().map(|c| (c.1, c.0)))?;
                let plain = inits.is_empty() && *step == 1 && self.b.as_index(lo) == Some(0);
                if *parallel == Some(Level::Grid) && plain && self.columns.warps() > 1 {
                    let v = self.b.open_parallel(Level::Grid, hi);
                    self.define(*var, Tile::of(vec![v]));
                    let warps = self.b.index(self.columns.warps().into());
                    self.warp = Some(self.b.open_parallel(Level::Warp, warps));
                    std::mem::take(&mut self.deferred).into_iter().try_for_each(|s| self.stmt(s))?;
                    self.block(body)?;
                    self.b.close_for(&[]);
                    self.b.close_for(&[]);
                    return Ok(());
                }
                if *parallel == Some(Level::Grid) && plain && self.spreads.is_some() {
                    let v = self.b.open_parallel(Level::Grid, hi);
                    self.define(*var, Tile::of(vec![v]));
                    self.open_warps();
                    std::mem::take(&mut self.deferred).into_iter().try_for_each(|s| self.stmt(s))?;
                    self.block(body)?;
                    self.b.close_for(&[]);
                    self.b.close_for(&[]);
                    return Ok(());
                }
                let (v, inside) = match parallel {
                    None => self.b.open_for(lo, hi, *step, &inits),
                    Some(Level::Thread) if plain => (self.b.open_parallel(Level::Thread, hi), Vec::new()),
                    Some(Level::Thread) => {
                        return Err(Fault::invalid("a parallel loop that does not count 0, 1, 2, ... alone"));
                    }
                    Some(level) => return Err(Fault::unsupported(format!("loops over {level:?}"))),
                };
                self.define(*var, Tile::of(vec![v]));
                let like = |c: &(Val, Val)| c.0;
                self.unflatten(carries.iter().map(|c| (c.0, c.0)), &inside)?;
                self.block(body)?;
                let next = self.flat(body.yields.iter().copied().zip(carries.iter().map(like)))?;
                self.check_arity(&next, &inside)?;
                let out = self.b.close_for(&next);
                self.unflatten(results.iter().copied().zip(carries.iter().map(like)), &out)?;
            }
            Stmt::While { carries, results, cond, body } => {
                let inits = self.flat(carries.iter().map(|c| (c.1, c.0)))?;
                let inside = self.b.open_while(&inits);
                self.unflatten(carries.iter().map(|c| (c.0, c.0)), &inside)?;
                self.block(cond)?;
                let [c] = cond.yields.as_slice() else {
                    return Err(Fault::invalid("the condition of a loop yields one value"));
                };
                let c = self.scalar(*c)?;
                self.b.open_while_body(c);
                self.block(body)?;
                let next = self.flat(body.yields.iter().map(|v| (*v, *v)))?;
                self.check_arity(&next, &inside)?;
                let out = self.b.close_while(&next);
                self.unflatten(results.iter().map(|v| (*v, *v)), &out)?;
            }
            Stmt::If { cond, then, otherwise, results } => {
                let cond = self.scalar(*cond)?;
                self.b.open_if(cond);
                self.block(then)?;
                let first = self.flat(then.yields.iter().copied().zip(results.iter().copied()))?;
                self.b.open_else(&first);
                self.block(otherwise)?;
                let second = self.flat(otherwise.yields.iter().copied().zip(results.iter().copied()))?;
                self.check_arity(&first, &second)?;
                let out = self.b.close_if(&second);
                self.unflatten(results.iter().map(|v| (*v, *v)), &out)?;
            }
            Stmt::Store { addr, value } if self.matrices.has(*value) => self.matrix_store(addr, *value)?,
            Stmt::Store { addr, value } => {
                self.at = self.spreads.as_mut().map_or(Ok(0), |s| s.stored(self.func, addr, *value))?;
                let done = self.store(addr, *value);
                self.at = 0;
                done?;
            }
            Stmt::Scatter { mem, index, value, mask } => self.scatter(*mem, *index, *value, *mask)?,
            Stmt::Prefetch { mem, index } => {
                let index = self.scalar(*index)?;
                self.b.prefetch(*mem, index);
            }
            // threads of a CPU share nothing inside of a function
            Stmt::Barrier(Level::Thread) => {}
            Stmt::Barrier(Level::Warp) if self.spreads.is_some() => self.b.barrier(Level::Warp),
            Stmt::Barrier(level) => return Err(Fault::unsupported(format!("barriers of {level:?}"))),
            Stmt::Pipe(_) => return Err(Fault::unsupported("asynchronous copies")),
            Stmt::Check { ok, origin, value, limit } => {
                let (ok, value, limit) = (self.scalar(*ok)?, self.scalar(*value)?, self.scalar(*limit)?);
                self.b.check(ok, *origin, value, limit);
            }
        }
        Ok(())
    }

    fn check_arity(&self, a: &[Val], b: &[Val]) -> Emit<()> {
        let same = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.b.ty(*a) == self.b.ty(*b));
        if same { Ok(()) } else { Err(Fault::invalid("a block yields other values than are carried")) }
    }

    // ---- instructions -----------------------------------------------------------------------

    fn inst(&mut self, ty: Ty, inst: &Inst) -> Emit<Tile> {
        self.refuse_in_blocks(inst)?;
        let reg = self.reg_ty(ty)?;
        let n = self.reg_count(ty);
        Ok(match inst {
            Inst::Const(s) => {
                let v = self.b.constant(reg, eval::normalise(ty.dtype, *s));
                Tile::of(vec![v; n])
            }
            Inst::Sym(i) => {
                let sym = self.func.syms.get(*i as usize);
                let sym = *sym.ok_or_else(|| Fault::invalid(format!("symbol parameter {i}")))?;
                Tile::of(vec![self.b.sym(sym)])
            }
            Inst::Iota { along_cols } if self.spreads.is_some() => self.block_iota(ty, reg, *along_cols)?,
            Inst::Iota { along_cols } => self.iota(ty, reg, *along_cols),
            Inst::Splat(v) if self.spreads.is_some() && !ty.is_scalar() => self.block_splat(ty, *v)?,
            Inst::Splat(v) => self.splat(ty, reg, *v)?,
            Inst::Unary(op, v) => self.unary(ty.dtype, *op, *v)?,
            Inst::Binary(op, x, y) => self.binary(ty.dtype, *op, *x, *y)?,
            Inst::Fma(x, y, z) => {
                let fuse = self.target.has_fma && ty.dtype.is_float();
                let tile = self.map3([*x, *y, *z], |b, [x, y, z]| {
                    if fuse {
                        return b.fma(x, y, z);
                    }
                    let p = b.mul(x, y);
                    b.add(p, z)
                })?;
                self.loosen(ty.dtype, tile)
            }
            Inst::Cmp(op, x, y) => self.cmp(*op, *x, *y)?,
            Inst::Select(m, x, y) => self.map3([*m, *x, *y], |b, [m, x, y]| b.select(m, x, y))?,
            Inst::Convert(mode, v) => self.convert(ty.dtype, *mode, *v)?,
            Inst::Bitcast(v) => self.bitcast(ty.dtype, *v)?,
            Inst::Load(addr) => self.load(ty, addr)?,
            Inst::Gather { mem, index, mask } => self.gather(ty, *mem, *index, *mask)?,
            Inst::ReduceCols(monoid, v) => self.reduce_cols(ty.dtype, *monoid, *v)?,
            Inst::ReduceRows(monoid, v) => self.reduce_rows(ty, *monoid, *v)?,
            Inst::Extract(v, row, col) => {
                let from = self.func.ty(*v);
                if *row >= from.rows || *col >= from.cols {
                    return Err(Fault::invalid("an element outside of a tile"));
                }
                let regs = self.regs(*v)?;
                let place = self.columns.place(from.cols, *col);
                let (register, lane) = place.ok_or_else(|| Fault::unsupported("an element of one warp"))?;
                let at = *row as usize * self.per_row(from) + register as usize;
                Tile::of(vec![self.b.extract(regs[at], 0, lane)])
            }
            Inst::TileOp { name, acc, a, b } => self.tile_op(name, *acc, *a, *b)?,
            Inst::Insert { .. } | Inst::Shuffle(..) => {
                return Err(Fault::invalid("lanes are exchanged in machine form only"));
            }
        })
    }

    /// Element-wise over the registers of one value.
    fn map(&mut self, v: Val, mut f: impl FnMut(&mut LoopBuilder, Val) -> Val) -> Emit<Tile> {
        let regs = self.regs(v)?;
        let mut out: Vec<Val> = Vec::with_capacity(regs.len());
        for (i, r) in regs.iter().enumerate() {
            // broadcast tiles repeat their registers
            let again = regs[..i].iter().rposition(|x| x == r).filter(|j| i - j <= 64);
            let y = match again {
                Some(j) => out[j],
                None => f(&mut self.b, *r),
            };
            out.push(y);
        }
        Ok(Tile::of(out))
    }
    fn map2(&mut self, v: [Val; 2], mut f: impl FnMut(&mut LoopBuilder, Val, Val) -> Val) -> Emit<Tile> {
        let (x, y) = (self.regs(v[0])?, self.regs(v[1])?);
        self.same_shape(&v)?;
        Ok(Tile::of(x.into_iter().zip(y).map(|(x, y)| f(&mut self.b, x, y)).collect()))
    }
    fn map3(&mut self, v: [Val; 3], mut f: impl FnMut(&mut LoopBuilder, [Val; 3]) -> Val) -> Emit<Tile> {
        let (x, y, z) = (self.regs(v[0])?, self.regs(v[1])?, self.regs(v[2])?);
        self.same_shape(&v)?;
        let regs = x.into_iter().zip(y).zip(z);
        Ok(Tile::of(regs.map(|((x, y), z)| f(&mut self.b, [x, y, z])).collect()))
    }
    fn same_shape(&self, vals: &[Val]) -> Emit<()> {
        let shape = |v: &Val| (self.func.ty(*v).rows, self.func.ty(*v).cols);
        if vals.iter().all(|v| shape(v) == shape(&vals[0])) {
            return Ok(());
        }
        Err(Fault::invalid("operands of different shapes"))
    }

    /// Marks the result of arithmetic that may leave a narrow type's values.
    fn loosen(&self, dtype: DType, mut tile: Tile) -> Tile {
        tile.loose = Self::is_narrow(dtype) && (!dtype.is_float() || self.options.strict_halves);
        tile
    }

    fn iota(&mut self, ty: Ty, reg: Ty, along_cols: bool) -> Tile {
        let mut regs = Vec::with_capacity(self.reg_count(ty));
        let wide = along_cols && ty.cols > 1;
        for row in 0..ty.rows {
            for chunk in self.columns.chunks(ty.cols) {
                let base = wide.then(|| self.own_columns(reg, chunk));
                let first = if along_cols { chunk.first } else { row };
                let first = self.b.constant(reg, Scalar::of(reg.dtype, first.into()));
                regs.push(base.map_or(first, |b| self.b.add(b, first)));
            }
        }
        self.loosen(ty.dtype, Tile::of(regs))
    }

    fn splat(&mut self, ty: Ty, reg: Ty, v: Val) -> Emit<Tile> {
        let from = self.func.ty(v);
        let fits = (from.rows == 1 || from.rows == ty.rows) && (from.cols == 1 || from.cols == ty.cols);
        if !fits {
            return Err(Fault::invalid("a broadcast to a shape that does not fit"));
        }
        let regs = self.regs(v)?;
        let per_row = self.per_row(ty);
        let widen = from.cols == 1 && ty.cols > 1;
        let mut out = Vec::with_capacity(self.reg_count(ty));
        for row in 0..ty.rows as usize {
            let row = if from.rows == 1 { 0 } else { row };
            if widen {
                let wide = self.b.splat(regs[row], 1, reg.cols);
                out.extend(std::iter::repeat_n(wide, per_row));
            } else {
                out.extend_from_slice(&regs[row * per_row..][..per_row]);
            }
        }
        Ok(Tile::of(out))
    }

    /// Counts one more math function; false where it is not to be expanded.
    fn expands(&mut self, name: &'static str) -> bool {
        self.functions.push(name);
        self.options.expansions.is_none_or(|most| self.functions.len() <= most)
    }

    fn unary(&mut self, dtype: DType, op: UnaryOp, v: Val) -> Emit<Tile> {
        let (fma, scale) = (self.target.has_fma, self.target.scales());
        let (float, bool) = (dtype.is_float(), dtype == DType::Bool);
        use UnaryOp as U;
        let tile = match op {
            U::Not if float => return Err(Fault::invalid("`not` of floats")),
            U::Not => self.map(v, |b, x| b.not(x))?,
            _ if float && !is_native(op) => {
                let expand = self.expands(op.name());
                #[cfg(feature = "planted-faults")]
                let wrong = expand && self.options.wrong_erf && op == U::Erf;
                self.map(v, |b, x| {
                    let expanded = if expand { Math { b, fma, scale }.unary(op, x) } else { None };
                    let y = expanded.unwrap_or_else(|| b.unary(op, x));
                    #[cfg(feature = "planted-faults")]
                    if wrong {
                        let off = b.constant(b.ty(y), ir::dtype::Scalar::Float(1.001));
                        return b.mul(y, off);
                    }
                    y
                })?
            }
            _ if float => self.map(v, |b, x| b.unary(op, x))?,
            _ if bool => return Err(Fault::invalid(format!("{} of bool", op.name()))),
            U::Neg => self.map(v, |b, x| {
                let zero = b.zero(b.ty(x));
                b.sub(zero, x)
            })?,
            U::Abs if dtype.is_unsigned_int() => return Ok(self.tile(v)?.clone()),
            U::Abs => self.map(v, |b, x| {
                let zero = b.zero(b.ty(x));
                let minus = b.sub(zero, x);
                b.max(x, minus)
            })?,
            U::Floor | U::Ceil | U::Trunc | U::RoundEven => return Ok(self.tile(v)?.clone()),
            _ => return Err(Fault::invalid(format!("{} of {dtype}", op.name()))),
        };
        let exact = float && matches!(op, U::Neg | U::Abs | U::Floor | U::Ceil | U::Trunc | U::RoundEven);
        Ok(if exact { tile } else { self.loosen(dtype, tile) })
    }

    fn binary(&mut self, dtype: DType, op: BinaryOp, x: Val, y: Val) -> Emit<Tile> {
        use BinaryOp as B;
        let (fma, scale) = (self.target.has_fma, self.target.scales());
        let (float, signed) = (dtype.is_float(), dtype.is_signed_int());
        let invalid = || Err(Fault::invalid(format!("{} of {dtype}", op.name())));
        let operands = [x, y];
        let tile = match op {
            _ if dtype == DType::Bool => {
                let op = match op {
                    B::And | B::Or | B::Xor => op,
                    B::Min => B::And,
                    B::Max => B::Or,
                    _ => return invalid(),
                };
                self.map2(operands, |b, x, y| b.binary(op, x, y))?
            }
            B::And | B::Or | B::Xor | B::Shl | B::Shr if float => return invalid(),
            B::Atan2 if !float => return invalid(),
            B::Rem | B::Pow | B::Atan2 if float && !self.expands(op.name()) => {
                self.map2(operands, |b, x, y| b.binary(op, x, y))?
            }
            B::Rem if float => self.map2(operands, |b, x, y| Math { b, fma, scale }.rem(x, y))?,
            B::Pow if float => self.map2(operands, |b, x, y| Math { b, fma, scale }.pow(x, y))?,
            B::Pow => self.map2(operands, |b, x, y| Math { b, fma, scale }.int_pow(x, y))?,
            B::Atan2 => self.map2(operands, |b, x, y| Math { b, fma, scale }.atan2(x, y))?,
            B::Min | B::Max | B::And | B::Or | B::Xor => {
                return self.map2(operands, |b, x, y| b.binary(op, x, y));
            }
            B::Shr => {
                // by the width or more: all bits become the sign, as they do by the width less 1
                return self.map2(operands, |b, x, n| {
                    let unsigned = if b.dtype(n).bytes() == 8 { DType::U64 } else { DType::U32 };
                    let width = 8 * b.dtype(n).bytes() as i128;
                    let count = b.bitcast(unsigned, n);
                    if b.as_const(count).is_some_and(|c| c.as_int() < width) {
                        return b.binary(op, x, n);
                    }
                    let limit = b.int(b.ty(count), width);
                    let inside = b.cmp(CmpOp::Lt, count, limit);
                    if !b.dtype(x).is_signed_int() {
                        let shifted = b.binary(op, x, n);
                        let zero = b.zero(b.ty(x));
                        return b.select(inside, shifted, zero);
                    }
                    let most = b.int(b.ty(n), width - 1);
                    let n = b.select(inside, n, most);
                    b.binary(op, x, n)
                });
            }
            B::Div | B::Rem
                if self.lanes >= 8 && register(dtype).is_some_and(|d| d.bytes() == 4) && !float =>
            {
                // wide vectors have no integer division, and a scalar one for each lane is slower
                self.map2(operands, |b, x, y| {
                    if b.ty(x).is_scalar() || b.as_const(y).is_some() {
                        return b.binary(op, x, y);
                    }
                    let q = Math { b, fma, scale }.int_div_by_float(x, y);
                    if op == B::Div {
                        return q;
                    }
                    let zero = b.zero(b.ty(y));
                    let by_zero = b.cmp(CmpOp::Eq, y, zero);
                    let whole = b.mul(q, y);
                    let rest = b.sub(x, whole);
                    b.select(by_zero, zero, rest)
                })?
            }
            _ => self.map2(operands, |b, x, y| b.binary(op, x, y))?,
        };
        let closed = matches!(op, B::Rem) || op == B::Div && !signed && !float;
        Ok(if closed && !float { tile } else { self.loosen(dtype, tile) })
    }

    fn cmp(&mut self, op: CmpOp, x: Val, y: Val) -> Emit<Tile> {
        if self.func.ty(x).dtype != DType::Bool {
            return self.map2([x, y], |b, x, y| b.cmp(op, x, y));
        }
        self.map2([x, y], |b, x, y| match op {
            CmpOp::Ne => b.binary(BinaryOp::Xor, x, y),
            CmpOp::Eq => {
                let d = b.binary(BinaryOp::Xor, x, y);
                b.not(d)
            }
            CmpOp::Lt | CmpOp::Le => {
                let n = b.not(x);
                b.binary(if op == CmpOp::Lt { BinaryOp::And } else { BinaryOp::Or }, n, y)
            }
            CmpOp::Gt | CmpOp::Ge => {
                let n = b.not(y);
                b.binary(if op == CmpOp::Gt { BinaryOp::And } else { BinaryOp::Or }, x, n)
            }
        })
    }

    fn convert(&mut self, to: DType, mode: ConvertMode, v: Val) -> Emit<Tile> {
        let from = self.func.ty(v).dtype;
        let mut loose = false;
        let mut failed = false;
        let mut tile = self.map(v, |b, x| match narrow::convert(b, from, to, mode, x) {
            Some((y, l)) => {
                loose |= l;
                y
            }
            None => {
                failed = true;
                x
            }
        })?;
        if failed {
            return Err(Fault::unsupported("strings"));
        }
        tile.loose = loose;
        Ok(tile)
    }

    fn bitcast(&mut self, to: DType, v: Val) -> Emit<Tile> {
        let from = self.func.ty(v).dtype;
        if from.bytes() != to.bytes() {
            return Err(Fault::invalid(format!("a bitcast of {from} to {to}")));
        }
        let (from_format, to_format) = (ir::minifloat::format(from), ir::minifloat::format(to));
        let reg = register(to).ok_or_else(|| Fault::unsupported("strings"))?;
        let mut tile = self.map(v, |b, x| {
            // narrow types go through their pattern
            let bits = match from_format {
                Some(f) => narrow::encode(b, f, x, false),
                None if from == DType::Bool => {
                    let (one, zero) =
                        (b.int(b.ty(x).with(DType::U32), 1), b.int(b.ty(x).with(DType::U32), 0));
                    b.select(x, one, zero)
                }
                None => x,
            };
            match to_format {
                Some(f) => {
                    let bits = b.bitcast(DType::U32, bits);
                    let mask = b.int(b.ty(bits), (1 << (8 * to.bytes())) - 1);
                    let bits = b.and(bits, mask);
                    narrow::decode(b, f, bits)
                }
                None if to == DType::Bool => {
                    let zero = b.zero(b.ty(bits));
                    b.cmp(CmpOp::Ne, bits, zero)
                }
                None => b.bitcast(reg, bits),
            }
        })?;
        // the pattern of an unsigned type is not sign extended
        tile.loose = to_format.is_none() && narrow::is_narrow(to);
        Ok(tile)
    }

    fn reduce_cols(&mut self, dtype: DType, monoid: Monoid, v: Val) -> Emit<Tile> {
        let from = self.func.ty(v);
        let regs = self.regs(v)?;
        let (monoid, op) = bool_monoid(dtype, monoid);
        if from.cols == 1 {
            return Ok(Tile::of(regs));
        }
        let per_row = self.per_row(from);
        let rest = from.cols % self.lanes;
        let mut out = Vec::with_capacity(from.rows as usize);
        for row in regs.chunks(per_row) {
            let mut row = row.to_vec();
            if rest != 0
                && let Some(last) = row.last_mut()
            {
                // lanes beyond the tile must not count
                let n = self.b.index(rest.into());
                let mask = self.prefix_mask(n, self.lanes);
                let ty = self.b.ty(*last);
                let identity = self.b.constant(ty, monoid.identity(dtype));
                *last = self.b.select(mask, *last, identity);
            }
            let all = self.tree(op, row);
            out.push(self.b.reduce_cols(monoid, all));
        }
        if self.warp.is_some() {
            out = self.reduce_warps(op, out);
        }
        Ok(self.loosen(dtype, Tile::of(out)))
    }

    fn reduce_rows(&mut self, ty: Ty, monoid: Monoid, v: Val) -> Emit<Tile> {
        let regs = self.regs(v)?;
        let (_, op) = bool_monoid(ty.dtype, monoid);
        let per_row = self.per_row(ty);
        let out = (0..per_row)
            .map(|j| {
                let column: Vec<Val> = regs.iter().copied().skip(j).step_by(per_row).collect();
                self.tree(op, column)
            })
            .collect();
        Ok(self.loosen(ty.dtype, Tile::of(out)))
    }

    /// Combines values pairwise: short chains of dependent operations.
    pub(super) fn tree(&mut self, op: BinaryOp, mut vals: Vec<Val>) -> Val {
        while vals.len() > 1 {
            let half = vals.len().div_ceil(2);
            for i in half..vals.len() {
                vals[i - half] = self.b.binary(op, vals[i - half], vals[i]);
            }
            vals.truncate(half);
        }
        vals[0]
    }

    /// Dot products of packed narrow operands, as the emitter has them or by shifts and products.
    fn tile_op(&mut self, name: &str, acc: Val, a: Val, b: Val) -> Emit<Tile> {
        let Some(dot) = Dot::ALL.into_iter().find(|d| d.tile_op() == name) else {
            return Err(Fault::unsupported(format!("tile instruction `{name}`")));
        };
        let native = self.lanes == self.target.vector_bits / 32 && self.target.words(dot).is_some();
        let fma = self.target.has_fma;
        self.map3([acc, a, b], |f, [acc, x, y]| {
            if native && !f.ty(acc).is_scalar() {
                return f.tile_op(name, acc, x, y);
            }
            let ty = f.ty(x);
            if name == "vpdpbusd" {
                return (0..4).fold(acc, |acc, i| {
                    let (down, up, top) = (f.int(ty, 8 * i), f.int(ty, 24 - 8 * i), f.int(ty, 24));
                    let mask = f.int(ty, 255);
                    let xi = f.binary(BinaryOp::Shr, x, down);
                    let xi = f.and(xi, mask);
                    let yi = f.binary(BinaryOp::Shl, y, up);
                    let yi = f.binary(BinaryOp::Shr, yi, top);
                    let p = f.mul(xi, yi);
                    f.add(acc, p)
                });
            }
            let (up, mask) = (f.int(ty, 16), f.int(ty, -65536));
            [true, false].into_iter().fold(acc, |acc, low| {
                let [xi, yi] = [x, y].map(|v| {
                    let bits = if low { f.binary(BinaryOp::Shl, v, up) } else { f.and(v, mask) };
                    f.bitcast(DType::F32, bits)
                });
                if fma {
                    return f.fma(xi, yi, acc);
                }
                let p = f.mul(xi, yi);
                f.add(acc, p)
            })
        })
    }
}

/// Monoid and function of a reduction; on bool sums and products are "any" and "all".
fn bool_monoid(dtype: DType, monoid: Monoid) -> (Monoid, BinaryOp) {
    match (dtype, monoid) {
        (DType::Bool, Monoid::Sum | Monoid::Max) => (Monoid::Max, BinaryOp::Or),
        (DType::Bool, _) => (Monoid::Min, BinaryOp::And),
        _ => (monoid, monoid.op()),
    }
}
