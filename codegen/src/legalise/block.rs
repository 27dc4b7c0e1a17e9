//! Tiles of a block of warps: which spreads the values of a function have, and accesses, broadcasts and numbers in them.

use super::columns::WIDEST;
use super::multiples::Multiples;
use super::spread::{Spread, TOGETHER, Thread};
use super::tile::{Legaliser, Tile};
use crate::Fault;
use crate::error::Emit;
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Addr, Block, Func, Inst, Level, Mem, Space, Stmt, Stride, Ty, Val};
use ir::prim::CmpOp;
use std::collections::HashMap;

/// Lanes of a warp.
const LANES: u32 = 32;

/// The spreads of a function's tiles. A value has each of those that its uses ask for.
#[derive(Clone, Debug)]
pub(super) struct Spreads {
    pub warps: u32,
    list: Vec<Spread>,
    /// By value: numbers of spreads.
    wants: Vec<Vec<usize>>,
    /// By spread, inside of the loop over warps.
    threads: Vec<Thread>,
    /// Of values that go across shared memory, the neighbours of a row that a lane reads at once.
    turned: HashMap<Val, u32>,
}

/// The result: what is written to operands.
const RESULT: usize = 0;

impl Spreads {
    /// `None` where iterations are those of threads.
    pub fn of(func: &Func, multiples: &Multiples) -> Emit<Option<Spreads>> {
        let grid = |s: &Stmt| matches!(s, Stmt::For { parallel: Some(Level::Grid), .. });
        if !func.body.stmts.iter().any(grid) {
            return Ok(None);
        }
        let [threads, 1, 1] = func.launch.block else {
            return Err(Fault::unsupported("blocks of more than one dim"));
        };
        if !threads.is_multiple_of(LANES) || !(LANES..=1024).contains(&threads) {
            return Err(Fault::unsupported(format!("blocks of {threads} threads")));
        }
        let mut tiles = Tiles { near: TOGETHER, ..Tiles::default() };
        tiles.walk(func, multiples, &func.body);
        let (Tiles { rows, cols, bytes, near, turned, .. }, warps) = (tiles, threads / LANES);
        let result = match turned.is_empty() {
            true => Spread::result(rows, cols, warps),
            false => Spread::lines(rows, cols, bytes, near, false, warps),
        };
        let result = result
            .ok_or_else(|| Fault::unsupported(format!("a tile of {rows} x {cols} on {warps} warps")))?;
        let wants = vec![Vec::new(); func.types.len()];
        let mut s = Spreads { warps, list: vec![result], wants, threads: Vec::new(), turned };
        // what a loop carries may be asked for in its body only
        while s.walk(func, &func.body)? {}
        Ok(Some(s))
    }

    /// The spread of a stored value.
    pub fn stored(&mut self, func: &Func, addr: &Addr, value: Val) -> Emit<usize> {
        let ty = func.ty(value);
        if !is_shared(func, addr.mem) {
            return Ok(RESULT);
        }
        let transposed = addr.col != Stride::Const(1);
        let bytes = mem_bytes(func, addr.mem);
        let spread = match self.turned.get(&value) {
            Some(near) if transposed => Spread::lines(ty.rows, ty.cols, bytes, *near, true, self.warps),
            _ => Spread::staged(ty.rows, ty.cols, transposed, self.warps),
        };
        let spread = spread.ok_or_else(|| Fault::unsupported(format!("staging of {ty:?}")))?;
        Ok(self.list.iter().position(|s| *s == spread).unwrap_or_else(|| {
            self.list.push(spread);
            self.list.len() - 1
        }))
    }

    /// Backwards, from what is stored to what it is computed from; true where a value is wanted anew.
    fn walk(&mut self, func: &Func, block: &Block) -> Emit<bool> {
        let mut grown = false;
        for stmt in block.stmts.iter().rev() {
            match stmt {
                Stmt::Let { val, inst } => {
                    for s in self.wants[val.0 as usize].clone() {
                        inst.for_each_operand(&mut |v| grown |= self.want(func, v, s));
                    }
                }
                Stmt::Store { addr, value } => {
                    let s = self.stored(func, addr, *value)?;
                    stmt.for_each_operand(&mut |v| grown |= self.want(func, v, s));
                }
                Stmt::Scatter { .. } => {
                    stmt.for_each_operand(&mut |v| grown |= self.want(func, v, RESULT));
                }
                Stmt::For { carries, results, body, .. } => {
                    let outer = carries.iter().zip(results).map(|((inside, _), r)| (*r, *inside));
                    grown |= self.same(func, outer);
                    let next = carries.iter().zip(&body.yields).map(|((inside, _), y)| (*inside, *y));
                    grown |= self.same(func, next);
                    grown |= self.walk(func, body)?;
                    grown |= self.same(func, carries.iter().copied());
                }
                Stmt::If { then, otherwise, results, .. } => {
                    for b in [then, otherwise] {
                        grown |= self.same(func, results.iter().copied().zip(b.yields.iter().copied()));
                        grown |= self.walk(func, b)?;
                    }
                }
                Stmt::While { .. } => return Err(Fault::unsupported("`while` in a block of warps")),
                Stmt::Prefetch { .. } | Stmt::Barrier(_) | Stmt::Check { .. } => {}
                Stmt::Pipe(_) => return Err(Fault::unsupported("asynchronous copies")),
            }
        }
        Ok(grown)
    }

    /// The second of each pair is wanted as the first is.
    fn same(&mut self, func: &Func, pairs: impl Iterator<Item = (Val, Val)>) -> bool {
        let mut grown = false;
        for (of, v) in pairs {
            for s in self.wants[of.0 as usize].clone() {
                grown |= self.want(func, v, s);
            }
        }
        grown
    }

    fn want(&mut self, func: &Func, v: Val, spread: usize) -> bool {
        let wants = &mut self.wants[v.0 as usize];
        if func.ty(v).is_scalar() || wants.contains(&spread) {
            return false;
        }
        wants.push(spread);
        true
    }

    pub fn wants(&self, v: Val) -> &[usize] {
        &self.wants[v.0 as usize]
    }
    pub fn count(&self) -> usize {
        self.list.len()
    }
    pub fn spread(&self, i: usize) -> &Spread {
        &self.list[i]
    }
    /// Tiles go across shared memory: there is no reduction, whose loop would be slower for masks.
    fn across(&self) -> bool {
        !self.turned.is_empty()
    }
}

fn is_shared(func: &Func, mem: Mem) -> bool {
    matches!(mem, Mem::Local(i) if func.locals.get(i as usize).is_some_and(|l| l.space == Space::Shared))
}

fn mem_bytes(func: &Func, mem: Mem) -> u32 {
    let dtype = match mem {
        Mem::Buf(i) => func.bufs.get(i as usize).map(|b| b.dtype),
        Mem::Local(i) => func.locals.get(i as usize).map(|l| l.dtype),
    };
    dtype.map_or(1, |d| d.bytes().max(1) as u32)
}

/// Neighbours of a row that may be accessed at once; two accesses for four would each touch half of every sector.
fn neighbours(func: &Func, multiples: &Multiples, addr: &Addr) -> u32 {
    let all = TOGETHER * mem_bytes(func, addr.mem);
    let aligned = all <= WIDEST && multiples.align(func, addr, WIDEST) >= all;
    if addr.col == Stride::Const(1) && aligned { TOGETHER } else { 1 }
}

/// What the tiles of a function are.
#[derive(Default)]
struct Tiles {
    /// The largest that is written to an operand.
    rows: u32,
    cols: u32,
    /// The fewest bytes of an element of those, and neighbours of a row that may be written at once.
    bytes: u32,
    near: u32,
    /// What was read from operands, and neighbours that may be read at once.
    loads: HashMap<Val, u32>,
    /// See [`Spreads::turned`].
    turned: HashMap<Val, u32>,
}

impl Tiles {
    fn walk(&mut self, func: &Func, multiples: &Multiples, block: &Block) {
        for stmt in &block.stmts {
            match stmt {
                Stmt::Let { val, inst: Inst::Load(addr) } => {
                    self.loads.insert(*val, neighbours(func, multiples, addr));
                }
                // lanes along whole rows, where the steps of a reduction are fewer
                Stmt::Store { addr, value } if is_shared(func, addr.mem) => {
                    let whole = func.ty(*value).cols.is_multiple_of(LANES);
                    if whole && addr.row == Stride::Const(1) && addr.col != Stride::Const(1) {
                        self.turned.insert(*value, self.loads.get(value).copied().unwrap_or(1));
                    }
                }
                Stmt::Store { addr, value } => {
                    self.written(func, addr.mem, *value, neighbours(func, multiples, addr));
                }
                Stmt::Scatter { mem, value, .. } => self.written(func, *mem, *value, 1),
                _ => {}
            }
            stmt.blocks().into_iter().for_each(|b| self.walk(func, multiples, b));
        }
    }

    fn written(&mut self, func: &Func, mem: Mem, value: Val, near: u32) {
        let (ty, bytes) = (func.ty(value), mem_bytes(func, mem));
        (self.rows, self.cols) = (self.rows.max(ty.rows), self.cols.max(ty.cols));
        self.bytes = if self.bytes == 0 { bytes } else { self.bytes.min(bytes) };
        self.near = self.near.min(near);
    }
}

/// The places of the registers of an access: index of each, a vector, and displacement in elements.
struct Places {
    index: Vec<Val>,
    disp: Vec<i64>,
    align: Vec<u32>,
}

impl Legaliser<'_> {
    /// Opens the loop over the warps of a block.
    pub(super) fn open_warps(&mut self) {
        let Some(mut s) = self.spreads.take() else { return };
        let n = self.b.index(s.warps.into());
        let warp = self.b.open_parallel(Level::Warp, n);
        s.threads = s.list.iter().map(|spread| Thread::of(spread, &mut self.b, warp)).collect();
        self.spreads = Some(s);
    }

    /// A tile of a block where no warps are known yet.
    pub(super) fn is_early(&self, v: Val) -> bool {
        let outside = self.spreads.as_ref().is_some_and(|s| s.threads.is_empty());
        let shared = self.columns.warps() > 1 && self.warp.is_none();
        (outside || shared) && !self.func.ty(v).is_scalar()
    }

    /// The spread in which values are being computed, and the lane's part of the indices.
    fn here(&self) -> Emit<(Spread, Thread)> {
        let found =
            self.spreads.as_ref().and_then(|s| Some((*s.list.get(self.at)?, *s.threads.get(self.at)?)));
        found.ok_or_else(|| Fault::invalid("a tile outside of the loop over a grid"))
    }

    pub(super) fn block_iota(&mut self, ty: Ty, reg: Ty, along_cols: bool) -> Emit<Tile> {
        let (spread, thread) = self.here()?;
        let wide = reg.dtype;
        let part = if along_cols { thread.col } else { thread.row };
        let part = self.b.convert(wide, ir::prim::ConvertMode::Plain, part);
        let part = self.b.splat(part, 1, LANES);
        let mut regs = Vec::new();
        for (r, c) in spread.places(ty) {
            let more = if along_cols { spread.cols.of_reg(c) } else { spread.rows.of_reg(r) };
            let more = self.b.constant(reg, Scalar::of(wide, more.into()));
            regs.push(self.b.add(part, more));
        }
        Ok(Tile::of(regs))
    }

    pub(super) fn block_splat(&mut self, ty: Ty, v: Val) -> Emit<Tile> {
        let (spread, _) = self.here()?;
        let (from, regs) = (self.func.ty(v), self.regs(v)?);
        if from.is_scalar() {
            let wide = self.b.splat(regs[0], 1, LANES);
            return Ok(Tile::of(vec![wide; spread.count(ty)]));
        }
        let per_row = spread.per_row(from);
        let of = |(r, c): (u32, u32)| {
            let (r, c) = (if from.rows == 1 { 0 } else { r }, if from.cols == 1 { 0 } else { c });
            regs[(r * per_row + c) as usize]
        };
        Ok(Tile::of(spread.places(ty).into_iter().map(of).collect()))
    }

    /// `v * n` for a stride.
    fn steps(&mut self, stride: Stride, n: Val) -> Val {
        let stride = match stride {
            Stride::Const(c) => self.b.index(c),
            Stride::Val(v) => v,
        };
        self.b.mul(n, stride)
    }

    fn block_places(&mut self, ty: Ty, addr: &Addr) -> Emit<Places> {
        let (spread, thread) = self.here()?;
        let bytes = self.b.mem_dtype(addr.mem).bytes().max(1) as u32;
        let own_rows = !self.func.ty(addr.index).is_scalar();
        let index = self.regs(addr.index)?;
        let stride = |me: &mut Self, s: Stride| -> Emit<Stride> {
            let Stride::Val(v) = s else { return Ok(s) };
            let v = me.scalar(v)?;
            Ok(me.b.as_index(v).map_or(Stride::Val(v), Stride::Const))
        };
        let row = if own_rows || ty.rows == 1 { Stride::Const(0) } else { stride(self, addr.row)? };
        let col = if ty.cols == 1 { Stride::Const(0) } else { stride(self, addr.col)? };
        // neighbours along a dim of step 1 are read together where the first of them is aligned
        let base = match addr.mem {
            Mem::Buf(i) if self.func.bufs[i as usize].align < bytes => 1,
            _ => self.multiples.align(self.func, addr, WIDEST),
        };
        let group = |r: u32, c: u32| match (row, col) {
            (_, Stride::Const(1)) => spread.cols.is_group(c),
            (Stride::Const(1), _) => spread.rows.is_group(r),
            _ => false,
        };
        let (down, across) = (self.steps(row, thread.row), self.steps(col, thread.col));
        let lanes = self.b.add(down, across);
        let mut places = Places { index: Vec::new(), disp: Vec::new(), align: Vec::new() };
        for (r, c) in spread.places(ty) {
            let mut at = self.b.add(lanes, if own_rows { index[r as usize] } else { index[0] });
            let mut disp = addr.disp;
            for (n, stride) in [(spread.rows.of_reg(r), row), (spread.cols.of_reg(c), col)] {
                match stride {
                    Stride::Const(s) => {
                        let more = s.checked_mul(n.into()).and_then(|s| disp.checked_add(s));
                        disp = more.ok_or_else(|| Fault::invalid("an address overflows"))?;
                    }
                    Stride::Val(_) => {
                        let n = self.b.index(n.into());
                        let more = self.steps(stride, n);
                        at = self.b.add(at, more);
                    }
                }
            }
            places.index.push(self.b.splat(at, 1, LANES));
            places.disp.push(disp);
            places.align.push(if group(r, c) { base.min(TOGETHER * bytes).max(bytes) } else { bytes });
        }
        Ok(places)
    }

    /// The address of a register's elements; `mask`: lanes that take part.
    fn lane_addr(&self, mem: Mem, p: &Places, i: usize, mask: Option<Val>) -> Addr {
        let zero = Stride::Const(0);
        Addr {
            mem,
            index: p.index[i],
            disp: p.disp[i],
            row: zero,
            col: zero,
            cols_valid: mask,
            rows_valid: None,
            align: p.align[i],
        }
    }

    /// Mask of each register, for an access of the first rows or columns. Neighbours of which none or all are accessed share one.
    fn masks(&mut self, ty: Ty, addr: &Addr) -> Emit<Vec<Val>> {
        let (spread, thread) = self.here()?;
        let mut dims = Vec::new();
        for (valid, along, own, down) in [
            (addr.rows_valid, spread.rows, thread.row, true),
            (addr.cols_valid, spread.cols, thread.col, false),
        ] {
            let Some(valid) = valid else { continue };
            let whole = self.multiples.get(valid) % i64::from(TOGETHER) == 0;
            dims.push((self.scalar(valid)?, along, own, whole, down));
        }
        let mut out = Vec::new();
        for (r, c) in spread.places(ty) {
            let mut mask = None;
            for (valid, along, own, whole, down) in &dims {
                let reg = if *down { r } else { c };
                let reg = if *whole { along.group(reg) } else { reg };
                let more = self.b.index(along.of_reg(reg).into());
                let at = self.b.add(*own, more);
                let at = self.b.splat(at, 1, LANES);
                let inside = self.b.cmp(CmpOp::Lt, at, *valid);
                mask = Some(mask.map_or(inside, |m| self.b.and(m, inside)));
            }
            out.push(mask.ok_or_else(|| Fault::invalid("a mask of nothing"))?);
        }
        Ok(out)
    }

    /// True where all rows and columns are valid, a bool scalar; `None` where that is known.
    fn all_valid(&mut self, ty: Ty, addr: &Addr) -> Emit<Option<Val>> {
        let mut all = None;
        for (valid, size) in [(addr.rows_valid, ty.rows), (addr.cols_valid, ty.cols)] {
            let Some(valid) = valid else { continue };
            if size == 1 {
                return Err(Fault::unsupported("valid rows or columns of one"));
            }
            let (valid, size) = (self.scalar(valid)?, self.b.index(size.into()));
            let whole = self.b.cmp(CmpOp::Ge, valid, size);
            all = Some(all.map_or(whole, |a| self.b.and(a, whole)));
        }
        Ok(all)
    }

    fn masked_everywhere(&self) -> bool {
        self.spreads.as_ref().is_some_and(Spreads::across)
    }

    pub(super) fn block_load(&mut self, ty: Ty, addr: &Addr, reg: DType) -> Emit<Vec<Val>> {
        let vector = Ty::vector(reg, LANES);
        let p = self.block_places(ty, addr)?;
        let load = |me: &mut Self, masks: Option<Vec<Val>>| -> Vec<Val> {
            let one = |i: usize| {
                let a = me.lane_addr(addr.mem, &p, i, masks.as_ref().map(|m| m[i]));
                me.b.load_as(a, vector)
            };
            (0..p.index.len()).map(one).collect()
        };
        let Some(all) = self.all_valid(ty, addr)? else { return Ok(load(self, None)) };
        if self.masked_everywhere() {
            let masks = self.masks(ty, addr)?;
            return Ok(load(self, Some(masks)));
        }
        self.b.open_if(all);
        let whole = load(self, None);
        self.b.open_else(&whole);
        let masks = self.masks(ty, addr)?;
        let masked = load(self, Some(masks));
        Ok(self.b.close_if(&masked))
    }

    pub(super) fn block_store(&mut self, ty: Ty, addr: &Addr, regs: &[Val]) -> Emit<()> {
        let p = self.block_places(ty, addr)?;
        let (spread, _) = self.here()?;
        // neighbours in memory one after another
        let (down, across) = (regs.len() / spread.per_row(ty) as usize, spread.per_row(ty) as usize);
        let turned = addr.row == Stride::Const(1) && addr.col != Stride::Const(1) && spread.rows.is_group(0);
        let order: Vec<usize> = match turned {
            true => (0..across).flat_map(|c| (0..down).map(move |r| r * across + c)).collect(),
            false => (0..regs.len()).collect(),
        };
        let store = |me: &mut Self, masks: Option<Vec<Val>>| {
            for i in &order {
                let a = me.lane_addr(addr.mem, &p, *i, masks.as_ref().map(|m| m[*i]));
                me.b.store(a, regs[*i]);
            }
        };
        let Some(all) = self.all_valid(ty, addr)? else {
            store(self, None);
            return Ok(());
        };
        if self.masked_everywhere() {
            let masks = self.masks(ty, addr)?;
            store(self, Some(masks));
            return Ok(());
        }
        self.b.open_if(all);
        store(self, None);
        self.b.open_else(&[]);
        let masks = self.masks(ty, addr)?;
        store(self, Some(masks));
        self.b.close_if(&[]);
        Ok(())
    }

    /// What has no meaning across the lanes of a block yet.
    pub(super) fn refuse_in_blocks(&self, inst: &Inst) -> Emit<()> {
        let across = matches!(inst, Inst::ReduceCols(..) | Inst::ReduceRows(..) | Inst::Extract(..));
        if self.spreads.is_some() && across {
            return Err(Fault::unsupported(format!("{inst:?} in a block of warps")));
        }
        Ok(())
    }
}
