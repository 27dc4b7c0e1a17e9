//! Loads, stores, gathers and scatters of tiles.

use super::columns::{Chunk, WIDEST};
use super::narrow::{self, decode, encode, register};
use super::tile::{Legaliser, Tile};
use crate::Fault;
use crate::error::Emit;
use ir::DType;
use ir::dtype::Scalar;
use ir::loops::{Addr, Mem, Stride, Ty, Val};
use ir::minifloat::format;
use ir::prim::{BinaryOp, CmpOp};

fn overflow() -> Fault {
    Fault::invalid("an address overflows")
}

impl Legaliser<'_> {
    /// How elements of `dtype` are loaded and stored: the register type of the access, and whether it holds patterns.
    fn access(&self, dtype: DType) -> Emit<(DType, bool)> {
        let reg = register(dtype).ok_or_else(|| Fault::unsupported("strings"))?;
        Ok(match format(dtype) {
            Some(_) if dtype == DType::F16 && self.target.has_f16 => (DType::F32, false),
            Some(_) => (DType::U32, true),
            None => (reg, false),
        })
    }

    /// The address of row `row` and of the columns from `col` on.
    pub(super) fn part(&mut self, a: &Addr, row: u32, col: u32) -> Emit<Addr> {
        let mut out = Addr { row: Stride::Const(0), cols_valid: None, ..*a };
        let bytes = self.b.mem_dtype(a.mem).bytes().max(1) as i64;
        let mut align = i64::from(a.align).max(bytes);
        for (n, stride) in [(row, a.row), (col, a.col)] {
            match stride {
                _ if n == 0 => {}
                Stride::Const(s) => {
                    let d = s.checked_mul(n.into()).ok_or_else(overflow)?;
                    out.disp = out.disp.checked_add(d).ok_or_else(overflow)?;
                    if n == col {
                        align = common_align(align, d.saturating_mul(bytes));
                    }
                }
                Stride::Val(s) => {
                    let n = self.b.index(n.into());
                    let d = self.b.mul(s, n);
                    out.index = self.b.add(out.index, d);
                }
            }
        }
        out.align = u32::try_from(align).unwrap_or(1);
        if matches!(a.col, Stride::Val(_)) && col > 0 {
            out.align = bytes as u32;
        }
        Ok(out)
    }

    /// Operands of an address, in terms of the function being built.
    pub(super) fn address(&mut self, a: &Addr) -> Emit<Addr> {
        if a.rows_valid.is_some() {
            return Err(Fault::unsupported("valid rows where iterations are not those of blocks"));
        }
        let scalar = |me: &mut Self, v: Val| me.scalar(v);
        let mut out = *a;
        out.index = scalar(self, a.index)?;
        for (stride, from) in [(&mut out.row, a.row), (&mut out.col, a.col)] {
            if let Stride::Val(v) = from {
                let v = self.scalar(v)?;
                *stride = match self.b.as_index(v) {
                    Some(c) => Stride::Const(c),
                    None => Stride::Val(v),
                };
            }
        }
        out.cols_valid = a.cols_valid.map(|v| self.scalar(v)).transpose()?;
        if self.target.simt {
            out.align = self.multiples.align(self.func, a, WIDEST);
        }
        Ok(out)
    }

    /// How many lanes of a chunk of columns are accessed; `None`: all of them. `whole`: the number of valid columns ends no
    /// group of neighbours early.
    fn valid(&mut self, total: Option<Val>, chunk: Chunk, lanes: u32, whole: bool) -> Option<Val> {
        let Chunk { first, step, width } = chunk;
        let Some(n) = total else {
            return (width < lanes).then(|| self.b.index(width.into()));
        };
        // lanes whose own column is valid: of a group of neighbours that ends whole, those whose first is
        let from = if step > 1 && whole { first / step * step } else { first };
        let from = self.b.index(i64::from(from) - if step > 1 && !whole { i64::from(step) - 1 } else { 0 });
        let mut n = self.b.sub(n, from);
        if let Some(part) = self.warp_part(chunk) {
            n = self.b.sub(n, part);
        }
        let (zero, width) = (self.b.index(0), self.b.index(width.into()));
        n = self.b.max(n, zero);
        if step > 1 {
            let step = self.b.index(step.into());
            self.b.assume_nonneg(n);
            n = self.b.floor_div(n, step);
        }
        let n = self.b.min(n, width);
        (self.b.as_index(n) != Some(lanes.into())).then_some(n)
    }

    /// What the number of the warp adds to the columns of a chunk, an i64 scalar.
    pub(super) fn warp_part(&mut self, chunk: Chunk) -> Option<Val> {
        let warp = self.warp?;
        let columns = self.b.index((chunk.step * self.lanes).into());
        Some(self.b.mul(warp, columns))
    }

    pub(super) fn load(&mut self, ty: Ty, addr: &Addr) -> Emit<Tile> {
        let dtype = self.b.mem_dtype(addr.mem);
        if dtype != ty.dtype {
            return Err(Fault::invalid(format!("a load of {dtype} as {}", ty.dtype)));
        }
        let (reg, raw) = self.access(dtype)?;
        if self.spreads.is_some() && !ty.is_scalar() {
            let regs = self.block_load(ty, addr, reg)?;
            return Ok(self.read_tile(dtype, raw, regs));
        }
        let a = self.address(addr)?;
        if self.is_transposed(ty, &a, reg) {
            let regs = self.transposed_load(ty, &a, reg)?;
            return Ok(self.read_tile(dtype, raw, regs));
        }
        let whole = self.ends_whole(addr);
        let mut regs = Vec::with_capacity(self.reg_count(ty));
        for row in 0..ty.rows {
            for chunk in self.columns.chunks(ty.cols) {
                regs.push(match ty.cols {
                    1 => {
                        let mut one = self.part(&a, row, 0)?;
                        one.cols_valid = self.valid(a.cols_valid, chunk, 1, true);
                        self.b.load_as(one, Ty::scalar(reg))
                    }
                    _ => self.load_part(&a, reg, row, chunk, whole)?,
                });
            }
        }
        Ok(self.read_tile(dtype, raw, regs))
    }

    /// The tile of what was read.
    fn read_tile(&mut self, dtype: DType, raw: bool, regs: Vec<Val>) -> Tile {
        let values = regs.iter().map(|v| self.read_value(dtype, raw, *v)).collect();
        Tile { patterns: raw.then_some(regs), ..Tile::of(values) }
    }

    /// True for squares of registers whose columns lie contiguous in memory.
    fn is_transposed(&self, ty: Ty, a: &Addr, reg: DType) -> bool {
        let whole = |n: u32| n > 0 && n.is_multiple_of(self.lanes);
        a.row == Stride::Const(1)
            && !matches!(a.col, Stride::Const(0 | 1))
            && a.cols_valid.is_none()
            && self.lanes > 1
            && self.lanes.is_power_of_two()
            && whole(ty.rows)
            && whole(ty.cols)
            && reg != DType::Bool
            && !self.target.simt
    }

    /// Reads the columns of each square and transposes it.
    fn transposed_load(&mut self, ty: Ty, a: &Addr, reg: DType) -> Emit<Vec<Val>> {
        let n = self.lanes;
        let chunks = ty.cols / n;
        let bytes = self.b.mem_dtype(a.mem).bytes().max(1) as u32;
        let mut regs = Vec::with_capacity(self.reg_count(ty));
        for row in (0..ty.rows).step_by(n as usize) {
            let mut squares = Vec::new();
            for chunk in 0..chunks {
                let mut columns = Vec::new();
                for col in 0..n {
                    let part = self.part(a, row, chunk * n + col)?;
                    let part = Addr { col: Stride::Const(1), align: bytes, ..part };
                    columns.push(self.b.load_as(part, Ty::vector(reg, n)));
                }
                squares.push(self.transposed(columns));
            }
            regs.extend((0..n as usize).flat_map(|r| squares.iter().map(move |s| s[r])));
        }
        Ok(regs)
    }

    /// The columns of a square, given its rows, whose number is a power of two. Each round interleaves the first
    /// half of the rows with the second, which rotates the bits of (row, column) by one.
    fn transposed(&mut self, mut rows: Vec<Val>) -> Vec<Val> {
        let n = rows.len() as u32;
        let half = |h: u32| (0..n).map(|i| i % 2 * n + h * n / 2 + i / 2).collect::<Vec<u32>>();
        for _ in 0..n.ilog2() {
            let (first, second) = rows.split_at(n as usize / 2);
            let pairs = first.iter().zip(second);
            rows = pairs.flat_map(|(a, b)| [0, 1].map(|h| self.b.shuffle(*a, *b, half(h)))).collect();
        }
        rows
    }

    /// True where no valid column lies in a group of neighbours with one that is not.
    fn ends_whole(&self, addr: &Addr) -> bool {
        addr.cols_valid.is_none_or(|v| self.multiples.get(v) % 4 == 0)
    }

    /// An access of neighbours along the columns: in each lane its own.
    fn along(&mut self, a: &Addr, row: u32, chunk: Chunk, whole: bool) -> Emit<Addr> {
        let mut part = self.part(a, row, chunk.first)?;
        part.cols_valid = self.valid(a.cols_valid, chunk, self.lanes, whole);
        if let Some(warp) = self.warp_part(chunk) {
            part.index = self.b.add(part.index, warp);
        }
        part.col = Stride::Const(chunk.step.into());
        Ok(part)
    }

    fn load_part(&mut self, a: &Addr, reg: DType, row: u32, chunk: Chunk, whole: bool) -> Emit<Val> {
        let (lanes, scalar) = (self.lanes, Ty::scalar(reg));
        let vector = Ty::vector(reg, lanes);
        match (a.col, a.cols_valid) {
            (Stride::Const(1), _) => {
                let part = self.along(a, row, chunk, whole)?;
                Ok(self.b.load_as(part, vector))
            }
            (Stride::Const(0), None) => {
                let part = self.part(a, row, 0)?;
                let x = self.b.load_as(part, scalar);
                Ok(self.b.splat(x, 1, lanes))
            }
            // masks have no lanes to insert; a gather makes them whole
            (_, None) if reg != DType::Bool && !self.target.simt => {
                let mut v = self.b.zero(vector);
                for lane in 0..chunk.width {
                    let part = self.part(a, row, chunk.first + lane)?;
                    let x = self.b.load_as(part, scalar);
                    v = self.b.insert(v, x, lane);
                }
                Ok(v)
            }
            _ => {
                let (index, mask) = self.strided_lanes(a, row, chunk, whole)?;
                Ok(self.b.gather_as(a.mem, index, mask, vector))
            }
        }
    }

    /// Element indices and mask of a strided access with a number of valid columns.
    fn strided_lanes(&mut self, a: &Addr, row: u32, chunk: Chunk, whole: bool) -> Emit<(Val, Option<Val>)> {
        let lanes = self.lanes;
        let part = self.part(a, row, chunk.first)?;
        let disp = self.b.index(part.disp);
        let first = self.b.add(part.index, disp);
        let stride = match a.col {
            Stride::Const(c) => self.b.index(c),
            Stride::Val(v) => v,
        };
        let own = self.own_columns(Ty::vector(DType::I64, lanes), chunk);
        let way = self.b.mul(own, stride);
        let index = self.b.add(way, first);
        let mask = self.valid(a.cols_valid, chunk, lanes, whole).map(|n| self.prefix_mask(n, lanes));
        Ok((index, mask))
    }

    /// What the lane and the warp add to the first column of a chunk.
    pub(super) fn own_columns(&mut self, ty: Ty, chunk: Chunk) -> Val {
        let mut own = self.b.iota(ty, true);
        if chunk.step > 1 {
            let step = self.b.int(ty, chunk.step.into());
            own = self.b.mul(own, step);
        }
        let Some(part) = self.warp_part(chunk) else { return own };
        let part = self.b.convert(ty.dtype, ir::prim::ConvertMode::Plain, part);
        self.b.add(own, part)
    }

    /// Lanes below `n` (an i64 scalar in `0..=lanes`).
    pub(super) fn prefix_mask(&mut self, n: Val, lanes: u32) -> Val {
        let n = self.b.convert(DType::I32, ir::prim::ConvertMode::Plain, n);
        let iota = self.b.iota(Ty::vector(DType::I32, lanes), true);
        self.b.cmp(CmpOp::Lt, iota, n)
    }

    fn read_value(&mut self, dtype: DType, raw: bool, v: Val) -> Val {
        match format(dtype) {
            Some(f) if raw => decode(&mut self.b, f, v),
            _ => v,
        }
    }

    /// What to store for register `v` of element type `dtype`, which need not be normalised.
    fn stored_value(&mut self, dtype: DType, raw: bool, v: Val) -> Val {
        match format(dtype) {
            Some(f) if raw => encode(&mut self.b, f, v, false),
            _ => v,
        }
    }

    pub(super) fn store(&mut self, addr: &Addr, value: Val) -> Emit<()> {
        let ty = self.func.ty(value);
        let dtype = self.b.mem_dtype(addr.mem);
        if dtype != ty.dtype {
            return Err(Fault::invalid(format!("a store of {} to {dtype}", ty.dtype)));
        }
        let (_, raw) = self.access(dtype)?;
        // the store wraps and rounds
        let tile = self.tile(value)?.clone();
        let regs = match tile.patterns.filter(|_| raw) {
            Some(patterns) => patterns,
            None => tile.regs.into_iter().map(|v| self.stored_value(dtype, raw, v)).collect(),
        };
        if self.spreads.is_some() && !ty.is_scalar() {
            return self.block_store(ty, addr, &regs);
        }
        let a = self.address(addr)?;
        let whole = self.ends_whole(addr);
        let per_row = regs.len() / (ty.rows.max(1) as usize);
        self.open_one_warp(ty);
        for row in 0..ty.rows {
            for (j, chunk) in self.columns.chunks(ty.cols).enumerate() {
                let v = regs[row as usize * per_row + j];
                if ty.cols > 1 {
                    self.store_part(&a, v, row, chunk, whole)?;
                    continue;
                }
                let mut one = self.part(&a, row, 0)?;
                one.cols_valid = self.valid(a.cols_valid, chunk, 1, true);
                self.b.store(one, v);
            }
        }
        self.close_one_warp(ty);
        Ok(())
    }

    /// What the warps of a block all have, one of them writes.
    fn open_one_warp(&mut self, ty: Ty) {
        if let Some(warp) = self.warp.filter(|_| ty.cols == 1) {
            let zero = self.b.index(0);
            let first = self.b.cmp(CmpOp::Eq, warp, zero);
            self.b.open_if(first);
        }
    }
    fn close_one_warp(&mut self, ty: Ty) {
        if self.warp.is_some() && ty.cols == 1 {
            self.b.open_else(&[]);
            self.b.close_if(&[]);
        }
    }

    fn store_part(&mut self, a: &Addr, v: Val, row: u32, chunk: Chunk, whole: bool) -> Emit<()> {
        match (a.col, a.cols_valid) {
            (Stride::Const(1), _) => {
                let part = self.along(a, row, chunk, whole)?;
                self.b.store(part, v);
            }
            (_, None) if !self.target.simt => {
                for lane in 0..chunk.width {
                    let part = self.part(a, row, chunk.first + lane)?;
                    let x = self.b.extract(v, 0, lane);
                    self.b.store(part, x);
                }
            }
            _ => {
                let (index, mask) = self.strided_lanes(a, row, chunk, whole)?;
                self.b.scatter(a.mem, index, v, mask);
            }
        }
        Ok(())
    }

    /// The mask of each register of an element-wise access: that of the instruction, and no lanes beyond the tile.
    fn access_masks(&mut self, ty: Ty, mask: Option<Val>) -> Emit<Vec<Option<Val>>> {
        let given = mask.map(|m| self.regs(m)).transpose()?;
        if self.spreads.is_some() {
            let n = self.reg_count(ty);
            return Ok(given.map_or_else(|| vec![None; n], |g| g.into_iter().map(Some).collect()));
        }
        let chunks: Vec<_> = self.columns.chunks(ty.cols).collect();
        let mut out = Vec::with_capacity(self.reg_count(ty));
        for i in 0..ty.rows as usize * chunks.len() {
            let width = chunks[i % chunks.len()].width;
            let bound = (ty.cols > 1 && width < self.lanes).then(|| {
                let n = self.b.index(width.into());
                self.prefix_mask(n, self.lanes)
            });
            out.push(match (given.as_ref().map(|g| g[i]), bound) {
                (Some(m), Some(b)) => Some(self.b.binary(BinaryOp::And, m, b)),
                (m, b) => m.or(b),
            });
        }
        // a mask that is true is none
        for m in &mut out {
            *m = m.filter(|m| self.b.as_const(*m) != Some(Scalar::Int(1)));
        }
        Ok(out)
    }

    pub(super) fn gather(&mut self, ty: Ty, mem: Mem, index: Val, mask: Option<Val>) -> Emit<Tile> {
        let dtype = self.b.mem_dtype(mem);
        if dtype != ty.dtype {
            return Err(Fault::invalid(format!("a gather of {dtype} as {}", ty.dtype)));
        }
        let (reg, raw) = self.access(dtype)?;
        let index = self.regs(index)?;
        let masks = self.access_masks(ty, mask)?;
        let mut regs = Vec::with_capacity(index.len());
        for (index, mask) in index.into_iter().zip(masks) {
            let v = if self.b.ty(index).is_scalar() && mask.is_none() {
                let a = self.b.addr(mem, index, 0);
                self.b.load_as(a, Ty::scalar(reg))
            } else {
                self.b.gather_as(mem, index, mask, self.b.ty(index).with(reg))
            };
            regs.push(self.read_value(dtype, raw, v));
        }
        Ok(Tile::of(regs))
    }

    pub(super) fn scatter(&mut self, mem: Mem, index: Val, value: Val, mask: Option<Val>) -> Emit<()> {
        let ty = self.func.ty(value);
        let dtype = self.b.mem_dtype(mem);
        if dtype != ty.dtype {
            return Err(Fault::invalid(format!("a scatter of {} to {dtype}", ty.dtype)));
        }
        let (_, raw) = self.access(dtype)?;
        let index = self.regs(index)?;
        let masks = self.access_masks(ty, mask)?;
        let values = self.tile(value)?.regs.clone();
        self.open_one_warp(ty);
        for ((index, v), mask) in index.into_iter().zip(values).zip(masks) {
            let v = self.stored_value(dtype, raw, v);
            if self.b.ty(index).is_scalar() && mask.is_none() {
                let a = self.b.addr(mem, index, 0);
                self.b.store(a, v);
            } else {
                self.b.scatter(mem, index, v, mask);
            }
        }
        self.close_one_warp(ty);
        Ok(())
    }

    /// Whether registers of `dtype` can hold what is no value of it.
    pub(super) fn is_narrow(dtype: DType) -> bool {
        narrow::is_narrow(dtype)
    }
}

/// The largest power of two that divides both an alignment and a distance in bytes.
fn common_align(align: i64, distance: i64) -> i64 {
    if distance == 0 { align } else { align.min(1 << distance.trailing_zeros().min(30)) }
}
