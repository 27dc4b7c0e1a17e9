//! The loop nest: a normal-form kernel and a schedule give one function in tile form.

mod matrix;

use super::ahead;
use super::expr::{Eval, TileDim};
use super::space::VarFacts;
use crate::error::Result;
use crate::schedule::{ColTile, Edge, InnerSpec, Schedule};
use ir::kernel::{Axis, Expr, ExprId, Guard, Kernel, Stmt};
use ir::loops::{Func, Launch, Level, Mem, Ty, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::{BinaryOp, Combine, ConvertMode};
use ir::{Dim, Monoid, Symbols, Var};
use std::collections::HashMap;

/// Threads of a warp.
const WARP: u32 = 32;

/// Lowers `kernel`, in normal form (linear accesses, [`super::axes::normalise`]), by `schedule`.
/// `ns_per_iter`: estimated nanoseconds of one iteration of the parallel loop.
///
/// # Errors
/// Where schedule and kernel do not fit each other, or the kernel breaks an invariant.
pub fn lower(kernel: &Kernel, symbols: &Symbols, schedule: &Schedule, ns_per_iter: f64) -> Result<Func> {
    if let Some(tile) = &schedule.block {
        return super::block::lower(kernel, symbols, schedule, tile, ns_per_iter);
    }
    if let Some(tile) = &schedule.across {
        return super::across::lower(kernel, symbols, schedule, tile, ns_per_iter);
    }
    let facts = VarFacts::of(kernel, symbols);
    let mut nest = Nest::new(Eval::new(kernel, facts), schedule);
    let trip = nest.run()?;
    let block = if schedule.warps > 0 { [WARP * schedule.warps, 1, 1] } else { [0; 3] };
    Ok(nest.e.b.finish(Launch { trip, ns_per_iter, block, ..Launch::default() }))
}

/// Lowers `kernel` into the open block of a function that is being built, by a schedule without parallel
/// loops. `mems`: its memory, by buffer of the kernel; `params`: values of the kernel's parameters.
///
/// # Errors
/// As [`lower`].
pub fn lower_into(
    b: LoopBuilder,
    mems: Vec<Mem>,
    kernel: &Kernel,
    symbols: &Symbols,
    schedule: &Schedule,
    params: &[Val],
) -> Result<LoopBuilder> {
    let mut e = Eval::within(b, mems, kernel, VarFacts::of(kernel, symbols));
    for (p, value) in kernel.params.iter().zip(params) {
        e.bind(p.var, *value);
    }
    let mut nest = Nest::new(e, schedule);
    nest.check()?;
    if schedule.loops.iter().any(|l| l.parallel) {
        return Err(nest.e.fault("a stage of a chain has no parallel loops of its own".into()));
    }
    if !nest.is_empty() {
        nest.begin_rows();
        nest.begin_ahead();
        let scope = nest.e.enter();
        nest.walk(0, &[])?;
        nest.e.leave(scope);
    }
    Ok(nest.e.b)
}

struct Nest<'a> {
    e: Eval<'a>,
    s: &'a Schedule,
    extents: HashMap<Var, Dim>,
    /// Part of a chunked axis that the current chunk covers.
    ranges: HashMap<Var, (Val, Val)>,
    row_base: Option<Var>,
    /// Number of the next statement that has an [`InnerSpec`].
    stmt: usize,
    /// What each step of the contraction asks for ahead of its use.
    ahead: Option<(Mem, Dim)>,
    /// What was asked for.
    asked: Vec<Val>,
    /// Where sums go from matrix registers.
    sums: Option<Mem>,
}

impl<'a> Nest<'a> {
    fn new(e: Eval<'a>, s: &'a Schedule) -> Nest<'a> {
        let extents = e.k.domain.iter().map(|a| (a.var, a.extent.clone())).collect();
        Nest {
            e,
            s,
            extents,
            ranges: HashMap::new(),
            row_base: None,
            stmt: 0,
            ahead: None,
            asked: Vec::new(),
            sums: None,
        }
    }

    /// Strides of an empty kernel may be 0 where its tiles have many rows: it has no code at all.
    fn is_empty(&self) -> bool {
        self.extents.values().any(|e| e.is_const(0))
    }

    /// The row axis becomes a base, which a loop binds, and the numbers of the tile's rows.
    fn begin_rows(&mut self) {
        let Some(r) = self.s.rows else { return };
        let extent = self.extents[&r.axis].clone();
        let base = self.e.fresh(extent);
        let iota = self.e.fresh(Dim::from(i64::from(r.size)));
        let numbers = self.e.b.iota(Ty::tile(ir::DType::I64, r.size, 1), false);
        self.e.bind(iota, numbers);
        let by = if r.size == 1 { Dim::from(base) } else { Dim::from(base) + Dim::from(iota) };
        self.e.replace(r.axis, by);
        self.e.row = (r.size > 1).then_some(TileDim { iota, size: r.size });
        self.row_base = Some(base);
    }

    /// A schedule that asks for panels that the kernel does not have asks for nothing.
    fn begin_ahead(&mut self) {
        let Some(cols) = self.s.cols.filter(|_| self.s.ahead > 0) else { return };
        let k = self.e.k;
        if let Some(panel) = ahead::panel(k, &cols, &self.e.facts) {
            let place = ahead::place(k, self.s, &panel, self.row_base, &self.e.facts);
            self.ahead = Some((self.e.mems[panel.buf.0 as usize], place));
        }
    }

    fn run(&mut self) -> Result<Dim> {
        self.check()?;
        let level = if self.s.warps > 0 { Level::Grid } else { Level::Thread };
        if self.is_empty() {
            let none = self.e.b.index(0);
            self.e.b.open_parallel(level, none);
            self.e.b.close_for(&[]);
            return Ok(Dim::from(0));
        }
        self.begin_rows();
        self.begin_ahead();
        let parallel = self.s.loops.iter().take_while(|l| l.parallel).count();
        let counts: Vec<Dim> = self.s.loops[..parallel]
            .iter()
            .map(|l| self.extents[&l.axis].ceil_div(&Dim::from(i64::from(l.step)), &self.e.facts))
            .collect();
        let trip = Dim::product(&counts);
        let trip_val = self.e.dim(&trip)?;
        let mut rest = self.e.b.open_parallel(level, trip_val);
        // the last loop of the list runs fastest
        let mut indices = vec![rest; parallel];
        for i in (0..parallel).rev() {
            if i == 0 {
                indices[0] = rest;
                break;
            }
            let n = self.e.dim(&counts[i])?;
            indices[i] = self.e.b.rem(rest, n);
            rest = self.e.b.div(rest, n);
            self.e.b.assume_nonneg(indices[i]);
            self.e.b.assume_nonneg(rest);
        }
        let scope = self.e.enter();
        self.walk(0, &indices)?;
        self.e.leave(scope);
        self.e.b.close_for(&[]);
        Ok(trip)
    }

    /// A schedule is text that may come from anywhere: it must fit the kernel.
    fn check(&self) -> Result<()> {
        let fail = |m: &str| Err(self.e.fault(format!("schedule `{}`: {m}", self.s.text(self.e.k))));
        for l in &self.s.loops {
            if !self.extents.contains_key(&l.axis) || l.step == 0 {
                return fail("a loop over something that is not an axis of the domain");
            }
        }
        for (axis, extent) in &self.extents {
            let Some(last) = self.s.loops.iter().rev().find(|l| l.axis == *axis) else {
                return fail("an axis of the domain has no loop");
            };
            let rows = self.s.rows.filter(|r| r.axis == *axis).map(|r| r.size);
            let cols = self.s.cols.filter(|c| c.axis == *axis).map(|c| c.size);
            if rows.is_some() && cols.is_some() || last.step != rows.or(cols).unwrap_or(1) {
                return fail("the innermost loop of an axis must step by its tile");
            }
            let whole = |n: u32| extent.divisible_by(i64::from(n), &self.e.facts);
            if self.s.rows.is_some_and(|r| r.axis == *axis && !r.overlap && !whole(r.size)) {
                return fail("rows neither divide their axis nor may overlap");
            }
            if self.s.cols.is_some_and(|c| c.axis == *axis && c.edge == Edge::Exact && !whole(c.size)) {
                return fail("columns do not divide their axis");
            }
        }
        if self.s.warps > 0 {
            let shared = |n: u32| n > 0 && n.is_multiple_of(WARP * self.s.warps);
            let cols = self.s.cols.iter().flat_map(|c| [c.size, c.tail]);
            let inner = self
                .s
                .inner
                .iter()
                .filter(|i| i.cols.is_some())
                .flat_map(|i| [i.cols.map_or(0, |c| c.1), i.tail]);
            let written = self.e.k.buffers.iter().any(|b| b.access == ir::kernel::Access::ReadWrite);
            if !(2..=32).contains(&self.s.warps) || !cols.chain(inner).all(shared) || written {
                return fail("warps without equal parts of the columns, or that read what they write");
            }
        }
        if self.s.matrix.is_some_and(|t| !self.fits_matrix(t)) {
            return fail("matrix registers for sums that do not fit them");
        }
        let chunks = self.s.loops.iter().enumerate().all(|(i, l)| {
            let inner = self.s.loops[i + 1..].iter().find(|m| m.axis == l.axis);
            inner.is_none_or(|m| l.step % m.step == 0 && !m.parallel)
        });
        let tiles_listed = [self.s.rows.map(|r| r.axis), self.s.cols.map(|c| c.axis)]
            .into_iter()
            .flatten()
            .all(|a| self.extents.contains_key(&a));
        if !chunks || !tiles_listed {
            return fail("a chunk is not a multiple of its tile, or a tile has no axis");
        }
        Ok(())
    }

    // ---- loops over the domain ----------------------------------------------------------------

    fn walk(&mut self, i: usize, parallel: &[Val]) -> Result<()> {
        let Some(l) = self.s.loops.get(i).copied() else {
            self.stmt = 0;
            let k = self.e.k;
            return self.stmts(&k.stmts);
        };
        let extent = self.extents[&l.axis].clone();
        let (lo, hi) = match self.ranges.get(&l.axis) {
            Some(r) => *r,
            None => (self.e.b.index(0), self.e.dim(&extent)?),
        };
        let is_chunk = self.s.loops[i + 1..].iter().any(|m| m.axis == l.axis);
        let cols = self.s.cols.filter(|c| c.axis == l.axis && !is_chunk);
        let given = parallel.get(i).map(|index| {
            let step = self.e.b.index(i64::from(l.step));
            self.e.b.mul(*index, step)
        });
        if let Some(c) = cols {
            return self.columns(i, parallel, c, given, lo, hi);
        }
        let base = match given {
            Some(b) => b,
            None => self.e.b.open_for(lo, hi, i64::from(l.step), &[]).0,
        };
        let scope = self.e.enter();
        if is_chunk {
            let step = self.e.b.index(i64::from(l.step));
            let mut end = self.e.b.add(base, step);
            if !extent.divisible_by(i64::from(l.step), &self.e.facts) {
                end = self.e.b.min(end, hi);
            }
            let outer = self.ranges.insert(l.axis, (base, end));
            self.walk(i + 1, parallel)?;
            match outer {
                Some(r) => self.ranges.insert(l.axis, r),
                None => self.ranges.remove(&l.axis),
            };
        } else {
            self.bind_axis(l.axis, base, &extent)?;
            self.walk(i + 1, parallel)?;
        }
        self.e.leave(scope);
        if given.is_none() {
            self.e.b.close_for(&[]);
        }
        Ok(())
    }

    fn bind_axis(&mut self, axis: Var, base: Val, extent: &Dim) -> Result<()> {
        let Some((r, row_base)) = self.s.rows.filter(|r| r.axis == axis).zip(self.row_base) else {
            self.e.bind(axis, base);
            return Ok(());
        };
        let size = Dim::from(i64::from(r.size));
        let mut base = base;
        if r.overlap && !extent.divisible_by(i64::from(r.size), &self.e.facts) {
            // the last tile begins so early that it is a whole one
            let last = self.e.dim(&(extent - &size))?;
            base = self.e.b.min(base, last);
            self.e.b.assume_nonneg(base);
        }
        self.e.bind(row_base, base);
        Ok(())
    }

    /// The loop over column tiles: whole tiles, then what is left of them.
    fn columns(
        &mut self,
        i: usize,
        parallel: &[Val],
        c: ColTile,
        given: Option<Val>,
        lo: Val,
        hi: Val,
    ) -> Result<()> {
        let size = i64::from(c.size);
        if let Some(base) = given {
            return match c.edge {
                Edge::Exact => self.column_tile(i, parallel, c, c.size, base, None),
                Edge::Mask => self.column_tile(i, parallel, c, c.size, base, Some(hi)),
                Edge::Peel => {
                    let step = self.e.b.index(size);
                    let end = self.e.b.add(base, step);
                    let whole = self.e.b.cmp(ir::prim::CmpOp::Le, end, hi);
                    self.e.b.open_if(whole);
                    self.column_tile(i, parallel, c, c.size, base, None)?;
                    self.e.b.open_else(&[]);
                    self.column_tile(i, parallel, c, c.size, base, Some(hi))?;
                    self.e.b.close_if(&[]);
                    Ok(())
                }
            };
        }
        if c.edge != Edge::Peel {
            let base = self.e.b.open_for(lo, hi, size, &[]).0;
            let edge = (c.edge == Edge::Mask).then_some(hi);
            self.column_tile(i, parallel, c, c.size, base, edge)?;
            self.e.b.close_for(&[]);
            return Ok(());
        }
        let whole = self.whole_tiles(lo, hi, size);
        let base = self.e.b.open_for(lo, whole, size, &[]).0;
        self.column_tile(i, parallel, c, c.size, base, None)?;
        self.e.b.close_for(&[]);
        let tail = c.tail.min(c.size);
        let base = self.e.b.open_for(whole, hi, i64::from(tail), &[]).0;
        self.column_tile(i, parallel, c, tail, base, Some(hi))?;
        self.e.b.close_for(&[]);
        Ok(())
    }

    /// Where the last whole tile of `lo .. hi` ends.
    fn whole_tiles(&mut self, lo: Val, hi: Val, size: i64) -> Val {
        let n = self.e.b.sub(hi, lo);
        // an empty range may not become a negative one
        let zero = self.e.b.index(0);
        let n = self.e.b.max(n, zero);
        self.e.b.assume_nonneg(n);
        let size = self.e.b.index(size);
        let rest = self.e.b.floor_mod(n, size);
        let n = self.e.b.sub(n, rest);
        self.e.b.add(lo, n)
    }

    /// Everything inside of one column tile that begins at `base`; `edge`: where the axis ends.
    fn column_tile(
        &mut self,
        i: usize,
        parallel: &[Val],
        c: ColTile,
        size: u32,
        base: Val,
        edge: Option<Val>,
    ) -> Result<()> {
        let scope = self.e.enter();
        let extent = self.extents[&c.axis].clone();
        self.bind_columns(c.axis, &extent, size, base, c.panel);
        self.e.valid = edge.map(|hi| self.e.b.sub(hi, base));
        self.walk(i + 1, parallel)?;
        self.e.leave(scope);
        Ok(())
    }

    /// `axis = base + iota`; in panels `axis = size * (base / size) + iota`, which lets the quotients
    /// and remainders of a packed operand vanish.
    fn bind_columns(&mut self, axis: Var, extent: &Dim, size: u32, base: Val, panel: bool) {
        let n = Dim::from(i64::from(size));
        let iota = self.e.fresh(n.clone());
        let numbers = self.e.b.iota(Ty::vector(ir::DType::I64, size), true);
        self.e.bind(iota, numbers);
        let tile = Dim::from(iota);
        let by = if panel {
            let count = extent.ceil_div(&n, &self.e.facts);
            let number = self.e.fresh(count);
            let size = self.e.b.index(i64::from(size));
            let index = self.e.b.floor_div(base, size);
            self.e.bind(number, index);
            Dim::from(number) * n + tile
        } else {
            let begin = self.e.fresh(extent.clone());
            self.e.bind(begin, base);
            Dim::from(begin) + tile
        };
        self.e.replace(axis, by);
        self.e.col = Some(TileDim { iota, size });
    }

    // ---- statements ---------------------------------------------------------------------------

    fn inner_spec(&mut self, axes: &[Axis]) -> InnerSpec {
        let spec = self.s.inner.get(self.stmt).cloned();
        self.stmt += 1;
        // a schedule that says nothing of a statement leaves it in the kernel's order
        spec.unwrap_or_else(|| InnerSpec {
            order: axes.iter().map(|a| a.var).collect(),
            ..InnerSpec::default()
        })
    }

    fn stmts(&mut self, list: &[Stmt]) -> Result<()> {
        for (i, s) in list.iter().enumerate() {
            match s {
                Stmt::Let { .. } => {
                    self.e.plain(s)?;
                }
                Stmt::Bind { var, value, bound } => {
                    let index = self.e.checked_index(*value, bound)?;
                    self.e.bind(*var, index);
                }
                Stmt::Reduce { local, acc, monoid, axes, value } => {
                    let spec = self.inner_spec(axes);
                    let v = self.reduce(*acc, *monoid, axes, *value, &spec)?;
                    if let Some(t) = self.s.matrix {
                        return self.after_matrix(*local, v, t, &list[i + 1..]);
                    }
                    self.e.locals[*local as usize] = Some(v);
                }
                Stmt::ArgReduce { .. } => {
                    return Err(self.e.fault("arg_reduce is expanded before scheduling".into()));
                }
                Stmt::Store { axes, buf, index, guards, value, combine } => {
                    if axes.iter().any(|a| a.extent.is_const(0)) {
                        self.stmt += 1;
                    } else if axes.is_empty() {
                        self.e.plain(s)?;
                    } else {
                        let spec = self.inner_spec(axes);
                        let order = ordered_axes(axes, &spec);
                        let store =
                            Store { buf: *buf, offset: &index[0], guards, value: *value, combine: *combine };
                        self.store(&order, &spec, &store)?;
                    }
                }
                // strides of what a loop without iterations would write may be 0 where its tiles are wide
                Stmt::Ordered { axis, .. } if axis.extent.is_const(0) => {}
                Stmt::Ordered { axis, carries, body } => self.ordered(axis, carries, body)?,
            }
        }
        Ok(())
    }

    fn ordered(
        &mut self,
        axis: &Axis,
        carries: &[(u32, ir::DType, ExprId, ExprId)],
        body: &[Stmt],
    ) -> Result<()> {
        let (rows, cols) = (self.e.rows(), self.e.cols());
        let widen = |n: &mut Self, e: ExprId, dtype: ir::DType| -> Result<Val> {
            let v = n.e.eval(e)?;
            let v = if n.e.b.dtype(v) == dtype { v } else { n.e.b.convert(dtype, ConvertMode::Plain, v) };
            Ok(n.e.b.splat(v, rows, cols))
        };
        let mut inits = Vec::with_capacity(carries.len());
        for c in carries {
            inits.push(widen(self, c.2, c.1)?);
        }
        let (lo, extent) = (self.e.b.index(0), self.e.resolve(&axis.extent));
        let hi = self.e.dim(&extent)?;
        let (var, inside) = self.e.b.open_for(lo, hi, 1, &inits);
        let scope = self.e.enter();
        self.e.bind(axis.var, var);
        for (c, v) in carries.iter().zip(inside) {
            self.e.locals[c.0 as usize] = Some(v);
        }
        self.stmts(body)?;
        let mut next = Vec::with_capacity(carries.len());
        for c in carries {
            next.push(widen(self, c.3, c.1)?);
        }
        self.e.leave(scope);
        let results = self.e.b.close_for(&next);
        for (c, v) in carries.iter().zip(results) {
            self.e.locals[c.0 as usize] = Some(v);
        }
        Ok(())
    }

    // ---- reductions ---------------------------------------------------------------------------

    fn reduce(
        &mut self,
        acc: ir::DType,
        monoid: Monoid,
        axes: &[Axis],
        value: ExprId,
        spec: &InnerSpec,
    ) -> Result<Val> {
        let order = ordered_axes(axes, spec);
        let scope = self.e.enter();
        if let Some((_, size)) = spec.cols {
            // the tile of the statement; its axis gets its value in the loop
            let iota = self.e.fresh(Dim::from(i64::from(size)));
            self.e.col = Some(TileDim { iota, size });
        }
        let (rows, mut cols) = self.e.shape(value);
        if let Some((_, size)) = spec.cols {
            cols = size;
        }
        let identity = monoid.identity(acc);
        let init = self.e.b.constant(Ty::tile(acc, rows, cols), identity);
        let r = Reduction { acc, monoid, value, spec };
        let total = self.reduce_over(&r, &order, init)?;
        self.e.leave(scope);
        Ok(if spec.cols.is_some() { self.e.b.reduce_cols(monoid, total) } else { total })
    }

    fn reduce_over(&mut self, r: &Reduction, axes: &[&Axis], carry: Val) -> Result<Val> {
        let Some((axis, rest)) = axes.split_first() else { return self.accumulate(r, carry) };
        let extent = self.e.resolve(&axis.extent);
        let lo = self.e.b.index(0);
        if let Some((_, size)) = r.spec.cols.filter(|c| c.0 == axis.var) {
            let hi = self.e.dim(&extent)?;
            let whole = self.whole_tiles(lo, hi, i64::from(size));
            let (base, inside) = self.e.b.open_for(lo, whole, i64::from(size), &[carry]);
            let next = self.reduce_columns(r, axis.var, &extent, rest, base, None, inside[0])?;
            let carry = self.e.b.close_for(&[next])[0];
            if extent.divisible_by(i64::from(size), &self.e.facts) {
                return Ok(carry);
            }
            let some = self.e.b.cmp(ir::prim::CmpOp::Lt, whole, hi);
            if self.e.is_true(some) {
                return self.reduce_columns(r, axis.var, &extent, rest, whole, Some(hi), carry);
            }
            self.e.b.open_if(some);
            let next = self.reduce_columns(r, axis.var, &extent, rest, whole, Some(hi), carry)?;
            self.e.b.open_else(&[next]);
            return Ok(self.e.b.close_if(&[carry])[0]);
        }
        if let Some(t) = self.s.matrix.filter(|t| t.axis == axis.var && rest.is_empty()) {
            return self.matrix_steps(r, t, axis, carry);
        }
        if let Some(n) = extent.as_const().filter(|n| *n <= i64::from(r.spec.unroll)) {
            let mut carry = carry;
            for i in 0..n {
                let scope = self.e.enter();
                self.e.replace(axis.var, Dim::from(i));
                carry = self.reduce_over(r, rest, carry)?;
                self.e.unreplace(axis.var);
                self.e.leave(scope);
            }
            return Ok(carry);
        }
        let hi = self.e.dim(&extent)?;
        let (var, inside) = self.e.b.open_for(lo, hi, 1, &[carry]);
        let scope = self.e.enter();
        self.e.bind(axis.var, var);
        let next = self.reduce_over(r, rest, inside[0])?;
        self.e.leave(scope);
        Ok(self.e.b.close_for(&[next])[0])
    }

    #[allow(clippy::too_many_arguments)] // one call site's parameters, spelled out
    fn reduce_columns(
        &mut self,
        r: &Reduction,
        axis: Var,
        extent: &Dim,
        rest: &[&Axis],
        base: Val,
        edge: Option<Val>,
        carry: Val,
    ) -> Result<Val> {
        let scope = self.e.enter();
        let size = self.e.cols();
        self.bind_columns(axis, extent, size, base, false);
        self.e.valid = edge.map(|hi| self.e.b.sub(hi, base));
        let next = self.reduce_over(r, rest, carry)?;
        self.e.unreplace(axis);
        self.e.leave(scope);
        Ok(next)
    }

    /// Asks for what the current step and the next ones, so many in all, have to ask for.
    fn ask_ahead(&mut self, steps: u32) -> Result<()> {
        let Some((mem, place)) = self.ahead.clone() else { return Ok(()) };
        let line = (ahead::LINE / self.e.b.mem_dtype(mem).bytes().max(1)) as u32;
        for part in 0..(steps * self.s.ahead).div_ceil(line) {
            let index = self.e.resolve(&(&place + &Dim::from(i64::from(part * line))));
            let index = self.e.dim(&index)?;
            // places in a byte ask for the same
            if !self.asked.contains(&index) {
                self.asked.push(index);
                self.e.b.prefetch(mem, index);
            }
        }
        Ok(())
    }

    /// One step: `carry` combined with the value at the current point.
    fn accumulate(&mut self, r: &Reduction, carry: Val) -> Result<Val> {
        if self.s.matrix.is_some() {
            return Err(self.e.fault("matrix registers along an axis that is not the innermost".into()));
        }
        self.ask_ahead(1)?;
        let exact = self.e.dtype(r.value) == r.acc;
        let own_mask = r.spec.cols.is_some() && self.e.valid.is_some();
        if let Expr::Binary(BinaryOp::Mul, x, y) = self.e.k.get(r.value)
            && r.monoid == Monoid::Sum
            && exact
            && r.acc != ir::DType::Bool
            && !own_mask
        {
            let (x, y) = (self.e.eval(*x)?, self.e.eval(*y)?);
            return Ok(self.e.b.fma(x, y, carry));
        }
        if let Expr::Dot(dot, x, y) = *self.e.k.get(r.value)
            && r.monoid == Monoid::Sum
            && exact
            && !own_mask
        {
            return self.e.dot(dot, x, y, carry);
        }
        let mut v = self.e.eval(r.value)?;
        if !exact {
            v = self.e.b.convert(r.acc, ConvertMode::Plain, v);
        }
        let t = self.e.b.ty(carry);
        v = self.e.b.splat(v, self.e.b.ty(v).rows, t.cols);
        if own_mask {
            let identity = self.e.b.constant(Ty::scalar(r.acc), r.monoid.identity(r.acc));
            v = self.e.masked_cols(v, identity)?;
        }
        Ok(self.e.b.binary(r.monoid.op(), carry, v))
    }

    // ---- stores -------------------------------------------------------------------------------

    fn store(&mut self, axes: &[&Axis], spec: &InnerSpec, s: &Store) -> Result<()> {
        let Some((axis, rest)) = axes.split_first() else {
            let v = self.e.eval(s.value)?;
            return self.e.write(s.buf, s.offset, s.guards, v, s.combine);
        };
        let extent = self.e.resolve(&axis.extent);
        let (lo, hi) = (self.e.b.index(0), self.e.dim(&extent)?);
        if let Some((_, size)) = spec.cols.filter(|c| c.0 == axis.var) {
            let whole = self.whole_tiles(lo, hi, i64::from(size));
            let base = self.e.b.open_for(lo, whole, i64::from(size), &[]).0;
            self.store_columns(axis, &extent, size, base, None, rest, spec, s)?;
            self.e.b.close_for(&[]);
            if !extent.divisible_by(i64::from(size), &self.e.facts) {
                let tail = size.min(spec.tail);
                let base = self.e.b.open_for(whole, hi, i64::from(tail), &[]).0;
                self.store_columns(axis, &extent, tail, base, Some(hi), rest, spec, s)?;
                self.e.b.close_for(&[]);
            }
            return Ok(());
        }
        let var = self.e.b.open_for(lo, hi, 1, &[]).0;
        let scope = self.e.enter();
        self.e.bind(axis.var, var);
        self.store(rest, spec, s)?;
        self.e.leave(scope);
        self.e.b.close_for(&[]);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one call site's parameters, spelled out
    fn store_columns(
        &mut self,
        axis: &Axis,
        extent: &Dim,
        size: u32,
        base: Val,
        edge: Option<Val>,
        rest: &[&Axis],
        spec: &InnerSpec,
        s: &Store,
    ) -> Result<()> {
        let scope = self.e.enter();
        self.bind_columns(axis.var, extent, size, base, false);
        self.e.valid = edge.map(|hi| self.e.b.sub(hi, base));
        self.store(rest, spec, s)?;
        self.e.unreplace(axis.var);
        self.e.leave(scope);
        Ok(())
    }
}

struct Reduction<'a> {
    acc: ir::DType,
    monoid: Monoid,
    value: ExprId,
    spec: &'a InnerSpec,
}

struct Store<'a> {
    buf: ir::kernel::BufId,
    offset: &'a Dim,
    guards: &'a [Guard],
    value: ExprId,
    combine: Combine,
}

/// The axes in the order of the schedule; those that it does not name come first.
fn ordered_axes<'a>(axes: &'a [Axis], spec: &InnerSpec) -> Vec<&'a Axis> {
    let place = |a: &&Axis| spec.order.iter().position(|v| *v == a.var).map_or(0, |p| p + 1);
    let mut order: Vec<&Axis> = axes.iter().collect();
    order.sort_by_key(place);
    order
}
