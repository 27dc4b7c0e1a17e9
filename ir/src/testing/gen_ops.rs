//! One step of a random graph: a primitive on fitting operands.

use super::values::Grid;
use super::{Gen, Item};
use crate::prim::{BinaryOp, CmpOp, Combine, ConvertMode, Monoid, PadMode, Prim, UnaryOp, WindowDim};
use crate::{DType, Dim, infer};

/// Magnitudes beyond this are brought down before they are built on.
const LARGE: f64 = 1e4;

impl Gen {
    /// Adds one op and what it needs; `None` where it did not work out (then the graph is spoilt).
    pub(super) fn step(&mut self) -> Option<()> {
        let kinds = if self.options.control && self.b.depth() < 3 { 32 } else { 28 };
        match self.rng.below(kinds) {
            0 => self.source(),
            1..=3 => self.unary(),
            4..=6 => self.binary(),
            7 => self.compare(),
            8 => self.select(),
            9 | 10 => self.convert(),
            11 => self.bitcast(),
            12 => self.reshape(),
            13 => self.transpose(),
            14 => self.broadcast(),
            15 => self.slice(),
            16 => self.pad(),
            17 => self.concat(),
            18 => self.update_slice(),
            19 => self.gather(),
            20 => self.scatter(),
            21 | 22 => self.reduce(),
            23 => self.window(),
            24 => self.cumulative(),
            25 => self.contract(),
            26 => self.convolve(),
            27 => self.order(),
            28 => self.data_dependent(),
            29 => self.call(),
            30 => self.branch(),
            _ => self.looped(),
        }
    }

    // ---- operands --------------------------------------------------------------------------

    fn is_arithmetic(&self, i: &Item) -> bool {
        infer::is_arithmetic(self.b.dtype(i.v))
    }
    /// A value of an arithmetic type, of moderate size where it is a float.
    pub(super) fn number(&mut self) -> Option<Item> {
        let item = match self.find(|g, i| g.is_arithmetic(i)) {
            Some(i) if !self.rng.one_in(8) => i,
            _ => {
                let (dtype, shape) = (self.arithmetic(), self.shape());
                self.fresh(dtype, shape)
            }
        };
        self.moderate(item)
    }
    pub(super) fn float(&mut self) -> Option<Item> {
        let item = match self.find(|g, i| g.is_arithmetic(i) && g.b.dtype(i.v).is_float()) {
            Some(i) => i,
            None => {
                let shape = self.shape();
                self.fresh(DType::F32, shape)
            }
        };
        self.moderate(item)
    }
    /// A number that every implementation computes exactly.
    fn exact(&mut self) -> Option<Item> {
        match self.find(|g, i| g.is_arithmetic(i) && i.grid.exact) {
            Some(i) => Some(i),
            None => {
                let (dtype, shape) = (self.arithmetic(), self.shape());
                Some(self.fresh(dtype, shape))
            }
        }
    }
    fn boolean(&mut self, shape: &[Dim]) -> Item {
        let found = self.find(|g, i| g.b.dtype(i.v) == DType::Bool && g.b.shape(i.v) == shape);
        match found {
            Some(i) => i,
            None => self.fresh(DType::Bool, shape.to_vec()),
        }
    }
    /// The value in a range in which functions do not blow up.
    fn moderate(&mut self, item: Item) -> Option<Item> {
        if !self.b.dtype(item.v).is_float() || item.grid.mag <= LARGE {
            return Some(item);
        }
        self.clamped(item, 4.0)
    }
    fn clamped(&mut self, item: Item, mag: f64) -> Option<Item> {
        let dtype = self.b.dtype(item.v);
        if item.grid.mag <= mag {
            return Some(item);
        }
        let lo = self.b.scalar(dtype, -mag).ok()?;
        let hi = self.b.scalar(dtype, mag).ok()?;
        let v = self.b.clamp(item.v, lo, hi).ok()?;
        Some(Item { v, grid: Grid { mag, ..item.grid } })
    }
    /// A value that broadcasts against `shape`: equal, or with dims of 1, or of lower rank.
    fn partner(&mut self, dtype: DType, shape: &[Dim]) -> Item {
        let same = self.find(|g, i| g.b.dtype(i.v) == dtype && g.b.shape(i.v) == shape);
        match same {
            Some(i) if !self.rng.one_in(4) => i,
            _ => {
                let drop = if self.rng.one_in(3) { self.rng.below(shape.len() + 1) } else { 0 };
                let mut shape = shape[drop..].to_vec();
                for d in &mut shape {
                    if self.rng.one_in(5) {
                        *d = Dim::from(1);
                    }
                }
                self.fresh(dtype, shape)
            }
        }
    }
    /// An axis of the value, with its extent.
    fn axis(&mut self, item: Item) -> Option<(usize, Dim)> {
        let rank = self.b.rank(item.v);
        if rank == 0 {
            return None;
        }
        let axis = self.rng.below(rank);
        Some((axis, self.b.shape(item.v)[axis].clone()))
    }
    /// A constant offset that is at most `extent` for every size.
    fn below_extent(&mut self, extent: &Dim) -> i64 {
        let lo = extent.bounds(self.b.symbols()).0.max(0);
        self.rng.range(0, lo)
    }

    // ---- sources and elementwise -----------------------------------------------------------

    fn source(&mut self) -> Option<()> {
        match self.rng.below(4) {
            0 => {
                let dtype = self.arithmetic();
                let mut shape = self.shape();
                if shape.is_empty() {
                    shape.push(Dim::from(5));
                }
                // exact in every type
                if shape.iter().any(|d| d.bounds(self.b.symbols()).1 > 100) {
                    return None;
                }
                let axis = self.rng.below(shape.len());
                let v = self.b.iota(dtype, &shape, axis).ok()?;
                self.push(v, Grid::int(100.0))
            }
            1 => {
                let item = self.any();
                let dims = self.b.shape(item.v).to_vec();
                let d = Dim::product(&dims);
                let v = self.b.dim_value(&d).ok()?;
                self.push(v, Grid::int(f64::from(1u32 << 20)))
            }
            2 => {
                let shape = self.shape();
                let key = self.fresh(DType::U64, Vec::new());
                let v = self.b.random_bits(key.v, &shape).ok()?;
                self.push(v, Grid::of_random(DType::U64))
            }
            _ => {
                let (dtype, shape) = (self.dtype(), self.shape());
                let item = self.fresh(dtype, shape);
                if !self.pool.iter().any(|i| i.v == item.v) {
                    self.pool.push(item);
                }
                Some(())
            }
        }
    }

    fn unary(&mut self) -> Option<()> {
        let op = *self.rng.pick(UnaryOp::ALL);
        use UnaryOp::*;
        if op == Not {
            let item = self.find(|g, i| {
                let d = g.b.dtype(i.v);
                d == DType::Bool || d.is_int() && infer::is_arithmetic(d)
            })?;
            let v = self.b.unary(op, item.v).ok()?;
            return self.push(v, Grid::of_random(self.b.dtype(v)));
        }
        if matches!(op, Neg | Abs) {
            let item = self.number()?;
            let v = self.b.unary(op, item.v).ok()?;
            return self.push(v, item.grid);
        }
        let item = self.float()?;
        let exact = item.grid.exact;
        let dtype = self.b.dtype(item.v);
        // into the domain of the function, and where it is smooth
        let (arg, mag) = match op {
            Floor | Ceil | Trunc | RoundEven if exact => (item, item.grid.mag + 1.0),
            Floor | Ceil | Trunc | RoundEven => return None,
            Sqrt | Log | Acosh => {
                let abs = self.b.abs(item.v).ok()?;
                let c = self.b.scalar(dtype, 1.5).ok()?;
                let v = self.b.add(abs, c).ok()?;
                (Item { v, grid: item.grid.sum(Grid { frac: 1, mag: 1.5, exact: true }) }, 110.0)
            }
            Log1p => {
                let v = self.b.abs(item.v).ok()?;
                (Item { v, ..item }, 20.0)
            }
            Asin | Acos | Atanh => {
                let t = self.b.tanh(item.v).ok()?;
                let c = self.b.scalar(dtype, 0.75).ok()?;
                (Item { v: self.b.mul(t, c).ok()?, grid: Grid::rounded(0.75) }, 4.0)
            }
            Exp | Expm1 | Sinh | Cosh => (self.clamped(item, 4.0)?, 60.0),
            Tan => (self.clamped(item, 1.0)?, 1.6),
            Sin | Cos => (self.clamped(item, 64.0)?, 1.0),
            Atan | Tanh | Erf => (item, 2.0),
            Asinh => (item, 20.0),
            Neg | Abs | Not => return None,
        };
        let v = self.b.unary(op, arg.v).ok()?;
        let stays = matches!(op, Floor | Ceil | Trunc | RoundEven);
        let grid = if stays { Grid { frac: 0, mag, ..item.grid } } else { Grid::rounded(mag) };
        self.push(v, grid)
    }

    fn binary(&mut self) -> Option<()> {
        let op = *self.rng.pick(BinaryOp::ALL);
        use BinaryOp::*;
        if matches!(op, And | Or | Xor | Shl | Shr) {
            let boolean = !matches!(op, Shl | Shr);
            let a = self.find(|g, i| {
                let d = g.b.dtype(i.v);
                boolean && d == DType::Bool || d.is_int() && infer::is_arithmetic(d)
            })?;
            let (dtype, shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
            let b = self.partner(dtype, &shape);
            let v = self.b.binary(op, a.v, b.v).ok()?;
            return self.push(v, Grid::of_random(dtype));
        }
        let a = if matches!(op, Atan2) { self.float()? } else { self.number()? };
        let (dtype, shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
        let b = self.partner(dtype, &shape);
        let b = self.moderate(b)?;
        let (a, b) = if self.rng.one_in(2) && !matches!(op, Atan2) { (b, a) } else { (a, b) };
        if dtype.is_int() {
            let v = self.b.binary(op, a.v, b.v).ok()?;
            return self.push(v, Grid::of_random(dtype));
        }
        let (x, y, grid) = match op {
            Add | Sub => (a.v, b.v, a.grid.sum(b.grid)),
            Mul => (a.v, b.v, a.grid.product(b.grid)),
            Min | Max => (a.v, b.v, a.grid.union(b.grid)),
            Div | Atan2 => {
                // away from 0
                let abs = self.b.abs(b.v).ok()?;
                let one = self.b.scalar(dtype, 1.0).ok()?;
                (a.v, self.b.add(abs, one).ok()?, Grid::rounded(a.grid.mag.max(4.0)))
            }
            Rem => {
                if !a.grid.exact || !b.grid.exact {
                    return None;
                }
                let c = self.b.scalar(dtype, 2.5).ok()?;
                (a.v, c, Grid { frac: a.grid.frac.max(1), mag: 2.5, exact: true })
            }
            _ => {
                let a = self.clamped(a, 4.0)?;
                let b = self.clamped(b, 3.0)?;
                let abs = self.b.abs(a.v).ok()?;
                let half = self.b.scalar(dtype, 0.5).ok()?;
                (self.b.add(abs, half).ok()?, b.v, Grid::rounded(100.0))
            }
        };
        let v = self.b.binary(op, x, y).ok()?;
        self.push(v, grid.within(dtype))
    }

    fn compare(&mut self) -> Option<()> {
        let a = self.exact()?;
        let (dtype, shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
        let b = self.partner(dtype, &shape);
        if !b.grid.exact {
            return None;
        }
        let op = *self.rng.pick(CmpOp::ALL);
        let v = self.b.cmp(op, a.v, b.v).ok()?;
        self.push(v, Grid::int(1.0))
    }

    fn select(&mut self) -> Option<()> {
        let a = self.any();
        let (dtype, shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
        let b = self.partner(dtype, &shape);
        let c = self.boolean(&shape);
        let v = self.b.select(c.v, a.v, b.v).ok()?;
        self.push(v, a.grid.union(b.grid))
    }

    fn convert(&mut self) -> Option<()> {
        let a = self.any();
        let (from, to) = (self.b.dtype(a.v), self.dtype());
        let wide = |d: DType| d.is_float() && infer::is_arithmetic(d);
        if !(a.grid.exact || wide(from) && wide(to)) {
            return None;
        }
        let mode = if self.rng.one_in(3) { ConvertMode::Saturate } else { ConvertMode::Plain };
        let v = self.b.convert_with(a.v, to, mode).ok()?;
        // rounding to a narrower type is one rounding of an exact value, the same for everybody
        let grid = match (from.is_float(), to.is_float()) {
            (_, false) => Grid::of_random(to),
            (_, true) if !wide(to) => Grid::of_random(to),
            (true, true) | (false, true) => {
                let g = a.grid.within(to);
                // a rounded value of an exact one is exact, on a finer grid than anything built on it can be
                if a.grid.exact && !g.exact { Grid { frac: 127, exact: true, ..g } } else { g }
            }
        };
        self.push(v, grid)
    }

    fn bitcast(&mut self) -> Option<()> {
        let a = self.find(|g, i| g.b.dtype(i.v).is_int())?;
        let to = match self.b.dtype(a.v) {
            DType::I64 => DType::U64,
            DType::U64 => DType::I64,
            DType::I32 => DType::U32,
            DType::U32 => DType::I32,
            DType::I16 => DType::U16,
            DType::U16 => DType::I16,
            DType::I8 => DType::U8,
            DType::U8 => DType::I8,
            _ => return None,
        };
        let v = self.b.bitcast(a.v, to).ok()?;
        self.push(v, Grid::of_random(to))
    }

    // ---- movement --------------------------------------------------------------------------

    fn reshape(&mut self) -> Option<()> {
        let a = self.any();
        let mut shape = self.b.shape(a.v).to_vec();
        for _ in 0..=self.rng.below(3) {
            match self.rng.below(4) {
                // merge two dims
                0 if shape.len() > 1 => {
                    let i = self.rng.below(shape.len() - 1);
                    let d = shape.remove(i);
                    shape[i] = d * &shape[i];
                }
                // split a static one
                1 if !shape.is_empty() => {
                    let i = self.rng.below(shape.len());
                    let n = shape[i].as_const()?;
                    let factors: Vec<i64> = (1..=n).filter(|f| n % f == 0).collect();
                    if factors.is_empty() {
                        return None;
                    }
                    let f = *self.rng.pick(&factors);
                    shape[i] = Dim::from(n / f);
                    shape.insert(i, Dim::from(f));
                }
                2 if shape.len() < 5 => {
                    let i = self.rng.below(shape.len() + 1);
                    shape.insert(i, Dim::from(1));
                }
                _ => shape.retain(|d| !d.is_const(1)),
            }
        }
        let v = self.b.reshape(a.v, &shape).ok()?;
        self.push(v, a.grid)
    }

    fn transpose(&mut self) -> Option<()> {
        let a = self.find(|g, i| g.b.rank(i.v) > 1)?;
        let mut perm: Vec<usize> = (0..self.b.rank(a.v)).collect();
        for i in (1..perm.len()).rev() {
            let j = self.rng.below(i + 1);
            perm.swap(i, j);
        }
        let v = self.b.transpose(a.v, &perm).ok()?;
        self.push(v, a.grid)
    }

    fn broadcast(&mut self) -> Option<()> {
        let a = self.any();
        let mut shape = self.b.shape(a.v).to_vec();
        let mut dims: Vec<usize> = (0..shape.len()).collect();
        for d in &mut shape {
            if d.is_const(1) {
                *d = self.extent();
            }
        }
        if shape.len() < 4 {
            let i = self.rng.below(shape.len() + 1);
            shape.insert(i, self.extent());
            dims.iter_mut().filter(|d| **d >= i).for_each(|d| *d += 1);
        }
        let v = self.b.broadcast(a.v, &shape, &dims).ok()?;
        self.push(v, a.grid)
    }

    fn slice(&mut self) -> Option<()> {
        let a = self.find(|g, i| g.b.rank(i.v) > 0)?;
        let (mut start, mut size, mut step) = (Vec::new(), Vec::new(), Vec::new());
        for n in self.b.shape(a.v).to_vec() {
            let skip = self.below_extent(&n);
            let left = &n - &Dim::from(skip);
            match (self.rng.below(4), n.as_const()) {
                // backwards over everything after the first ones
                (0, _) if self.is_positive(&n) => {
                    start.push(&n - &Dim::from(1));
                    size.push(left);
                    step.push(-1);
                }
                (1, Some(_)) | (1, None) => {
                    let by = self.rng.range(2, 3);
                    start.push(Dim::from(skip));
                    size.push(left.ceil_div(&Dim::from(by), self.b.symbols()));
                    step.push(by);
                }
                (2, Some(n)) => {
                    start.push(Dim::from(skip));
                    size.push(Dim::from(self.rng.range(0, n - skip)));
                    step.push(1);
                }
                _ => {
                    start.push(Dim::from(skip));
                    size.push(left);
                    step.push(1);
                }
            }
        }
        let v = self.b.slice(a.v, &start, &size, &step).ok()?;
        self.push(v, a.grid)
    }

    fn pad(&mut self) -> Option<()> {
        let a = self.find(|g, i| g.b.rank(i.v) > 0)?;
        let shape = self.b.shape(a.v).to_vec();
        let mode = *self.rng.pick(PadMode::ALL);
        let (mut lo, mut hi, mut interior) = (Vec::new(), Vec::new(), Vec::new());
        for n in &shape {
            let crop = self.below_extent(n).min(1);
            let edge = |g: &mut Gen, crop: i64| match g.rng.below(3) {
                0 => 0,
                1 => -crop,
                _ => g.rng.range(0, 3),
            };
            lo.push(Dim::from(edge(self, crop)));
            hi.push(Dim::from(if crop > 0 && lo.last().is_some_and(|l| l.is_const(-1)) {
                self.rng.range(0, 2)
            } else {
                edge(self, crop)
            }));
            let spread = mode == PadMode::Constant && self.rng.one_in(4);
            interior.push(if spread { self.rng.range(1, 2) } else { 0 });
        }
        if mode == PadMode::Constant {
            let fill = self.fresh(self.b.dtype(a.v), Vec::new());
            let v = self.b.pad(a.v, fill.v, &lo, &hi, &interior).ok()?;
            return self.push(v, a.grid.union(fill.grid));
        }
        if !shape.iter().all(|n| self.is_positive(n)) {
            return None;
        }
        let v = self.b.pad_mode(a.v, mode, &lo, &hi).ok()?;
        self.push(v, a.grid)
    }

    fn concat(&mut self) -> Option<()> {
        let a = self.find(|g, i| g.b.rank(i.v) > 0)?;
        let (axis, _) = self.axis(a)?;
        let (dtype, shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
        let mut parts = vec![a];
        for _ in 0..=self.rng.below(3) {
            let mut shape = shape.clone();
            shape[axis] = self.extent();
            parts.push(if self.rng.one_in(3) { a } else { self.fresh(dtype, shape) });
        }
        let at = self.rng.below(parts.len());
        parts.swap(0, at);
        let grid = parts.iter().fold(a.grid, |g, p| g.union(p.grid));
        let parts: Vec<_> = parts.iter().map(|p| p.v).collect();
        let v = self.b.concat(&parts, axis).ok()?;
        self.push(v, grid)
    }

    fn update_slice(&mut self) -> Option<()> {
        let a = self.any();
        let (dtype, shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
        let (mut start, mut update) = (Vec::new(), Vec::new());
        for n in &shape {
            let skip = self.below_extent(n);
            start.push(Dim::from(skip));
            let left = n - &Dim::from(skip);
            update.push(match left.as_const() {
                Some(n) => Dim::from(self.rng.range(0, n)),
                None => left,
            });
        }
        let u = self.fresh(dtype, update);
        let v = self.b.update_slice(a.v, u.v, &start).ok()?;
        self.push(v, a.grid.union(u.grid))
    }

    // ---- indexed ---------------------------------------------------------------------------

    /// Indices in `0..extent` of this shape, from random integers.
    fn indices(&mut self, shape: Vec<Dim>, extent: &Dim) -> Option<crate::build::V> {
        if !self.is_positive(extent) {
            return None;
        }
        let dtype = if self.rng.one_in(2) { DType::I32 } else { DType::I64 };
        let raw = self.fresh(dtype, shape).v;
        let n = self.b.dim_value(extent).ok()?;
        let n = self.b.convert(n, dtype).ok()?;
        // the remainder has the sign of the dividend
        let r = self.b.rem(raw, n).ok()?;
        let r = self.b.add(r, n).ok()?;
        self.b.rem(r, n).ok()
    }

    fn gather(&mut self) -> Option<()> {
        let a = self.find(|g, i| g.b.rank(i.v) > 0)?;
        let (axis, n) = self.axis(a)?;
        let rank = self.rng.below(3);
        let shape = (0..rank).map(|_| self.extent()).collect();
        let at = self.indices(shape, &n)?;
        let v = self.b.gather(a.v, at, axis).ok()?;
        self.push(v, a.grid)
    }

    fn scatter(&mut self) -> Option<()> {
        let combine = *self.rng.pick(Combine::ALL);
        let set = combine == Combine::Set;
        let a = self.find(|g, i| g.b.rank(i.v) > 0 && (set || g.is_arithmetic(i)))?;
        let (dtype, mut shape) = (self.b.dtype(a.v), self.b.shape(a.v).to_vec());
        let count = self.rng.range(0, 6);
        let at = self.indices(vec![Dim::from(count)], &shape[0])?;
        shape[0] = Dim::from(count);
        let u = self.fresh(dtype, shape);
        let u = self.moderate(u)?;
        let v = self.b.scatter(a.v, at, u.v, combine).ok()?;
        let grid = match combine {
            _ if !dtype.is_float() => Grid::of_random(dtype),
            Combine::Set | Combine::Min | Combine::Max => a.grid.union(u.grid),
            Combine::Add => a.grid.sum(u.grid.times(count as f64)).within(dtype),
            Combine::Mul => Grid::rounded(a.grid.mag * u.grid.mag.max(1.0).powi(count as i32)),
        };
        self.push(v, grid)
    }

    // ---- reductions ------------------------------------------------------------------------

    fn monoid_grid(&self, monoid: Monoid, a: Grid, dtype: DType, n: f64) -> Option<Grid> {
        if !dtype.is_float() {
            return Some(Grid::of_random(dtype));
        }
        Some(match monoid {
            Monoid::Sum => a.times(n).within(dtype),
            Monoid::Prod => {
                let mag = a.mag.max(1.0).powf(n);
                if mag > 1e30 || dtype == DType::F16 && mag > 1e4 {
                    return None;
                }
                Grid::rounded(mag)
            }
            // of nothing it is an infinity
            Monoid::Max | Monoid::Min => a,
        })
    }

    fn reduce(&mut self) -> Option<()> {
        if self.rng.one_in(4) {
            let a = self.exact()?;
            let (axis, n) = self.axis(a)?;
            if !self.is_positive(&n) {
                return None;
            }
            let (max, last) = (self.rng.one_in(2), self.rng.one_in(2));
            let v = self.b.arg_reduce(a.v, max, axis, last).ok()?;
            return self.push(v, Grid::int(self.options.max_elems as f64));
        }
        let monoid = *self.rng.pick(Monoid::ALL);
        let extreme = matches!(monoid, Monoid::Max | Monoid::Min);
        let a = match self.find(|g, i| g.b.dtype(i.v) == DType::Bool && g.b.rank(i.v) > 0) {
            Some(i) if extreme && self.rng.one_in(4) => i,
            _ => self.number()?,
        };
        let shape = self.b.shape(a.v).to_vec();
        let axes: Vec<usize> = (0..shape.len()).filter(|_| self.rng.one_in(2)).collect();
        let count = Dim::product(axes.iter().map(|&i| &shape[i]));
        let dtype = self.b.dtype(a.v);
        if extreme && dtype.is_float() && !self.is_positive(&count) {
            return None;
        }
        let n = count.bounds(self.b.symbols()).1 as f64;
        let grid = self.monoid_grid(monoid, a.grid, dtype, n)?;
        let keep = self.rng.one_in(2);
        let v = self.b.reduce(monoid, a.v, &axes, keep).ok()?;
        self.push(v, grid)
    }

    /// Window dims for these extents; `None` where no window fits every size.
    fn window_dims(&mut self, input: &[Dim], kernel: &[i64], crop: bool) -> Option<Vec<WindowDim>> {
        let mut dims = Vec::new();
        for (n, &k) in input.iter().zip(kernel) {
            let mut w = WindowDim::unit();
            w.stride = self.rng.range(1, 3);
            w.dilation = self.rng.range(1, 2);
            w.base_dilation = if self.rng.one_in(4) { 2 } else { 1 };
            let lowest = if crop && self.rng.one_in(6) { -1 } else { 0 };
            w.pad_lo = Dim::from(self.rng.range(lowest, k));
            w.pad_hi = Dim::from(self.rng.range(lowest, k));
            let out = infer::window_extent(n, &Dim::from(k), &w, self.b.symbols());
            if !Dim::from(0).provably_le(&out, self.b.symbols()) {
                return None;
            }
            dims.push(w);
        }
        Some(dims)
    }

    fn window(&mut self) -> Option<()> {
        let a = self.number()?;
        let shape = self.b.shape(a.v).to_vec();
        if shape.is_empty() {
            return None;
        }
        let rank = 1 + self.rng.below(shape.len().min(3));
        let size: Vec<i64> = (0..rank).map(|_| self.rng.range(1, 3)).collect();
        let dims = self.window_dims(&shape[shape.len() - rank..], &size, false)?;
        let monoid = *self.rng.pick(Monoid::ALL);
        let dtype = self.b.dtype(a.v);
        let n = size.iter().product::<i64>() as f64;
        let mut grid = self.monoid_grid(monoid, a.grid, dtype, n)?;
        let v = self.b.window_reduce(monoid, a.v, &size, &dims).ok()?;
        if dtype.is_float() && matches!(monoid, Monoid::Max | Monoid::Min) {
            // a window in the padding alone gives the identity, an infinity
            let item = Item { v, grid: Grid { mag: f64::INFINITY, ..grid } };
            let item = self.clamped(item, a.grid.mag.max(4.0))?;
            grid = item.grid;
            return self.push(item.v, grid);
        }
        self.push(v, grid)
    }

    fn cumulative(&mut self) -> Option<()> {
        let a = self.number()?;
        let (axis, n) = self.axis(a)?;
        let monoid = *self.rng.pick(Monoid::ALL);
        let dtype = self.b.dtype(a.v);
        let exclusive = self.rng.one_in(2) && matches!(monoid, Monoid::Sum | Monoid::Prod);
        let n = n.bounds(self.b.symbols()).1 as f64;
        let grid = self.monoid_grid(monoid, a.grid, dtype, n)?;
        let reverse = self.rng.one_in(2);
        let v = self.b.cumulative(monoid, a.v, axis, exclusive, reverse).ok()?;
        self.push(v, grid)
    }

    // ---- contractions and selection --------------------------------------------------------

    /// Accumulator and grid of a sum of `n` products.
    fn products(&mut self, a: Item, b: Item, n: f64) -> (DType, Grid) {
        let dtype = self.b.dtype(a.v);
        let acc = match dtype {
            d if d.is_int() && d.bytes() == 1 => DType::I32,
            DType::F16 | DType::BF16 if self.rng.one_in(2) => DType::F32,
            d => d,
        };
        if acc.is_int() {
            return (acc, Grid::of_random(acc));
        }
        (acc, a.grid.product(b.grid).times(n).within(acc))
    }
    /// A second operand for a contraction: 8-bit integers may differ in sign.
    fn factor(&mut self, dtype: DType, shape: Vec<Dim>) -> Item {
        let dtype = match dtype {
            DType::I8 if self.rng.one_in(2) => DType::U8,
            DType::U8 if self.rng.one_in(2) => DType::I8,
            d => d,
        };
        self.fresh(dtype, shape)
    }

    fn contract(&mut self) -> Option<()> {
        let a = self.number()?;
        let a = if self.b.dtype(a.v).is_float() { self.clamped(a, 64.0)? } else { a };
        let shape = self.b.shape(a.v).to_vec();
        // every axis of a: batch, reduced, or free; b gets its axes in any order
        let mut other: Vec<(Dim, Option<(usize, bool)>)> = Vec::new();
        let mut count = Dim::from(1);
        for (i, d) in shape.iter().enumerate() {
            match self.rng.below(4) {
                0 => other.push((d.clone(), Some((i, true)))),
                1 | 2 => {
                    other.push((d.clone(), Some((i, false))));
                    count = count * d;
                }
                _ => {}
            }
        }
        for _ in 0..self.rng.below(3) {
            other.push((self.extent(), None));
        }
        for i in (1..other.len()).rev() {
            let j = self.rng.below(i + 1);
            other.swap(i, j);
        }
        let dims: Vec<Dim> = other.iter().map(|o| o.0.clone()).collect();
        if !self.fits(&dims) {
            return None;
        }
        let b = self.factor(self.b.dtype(a.v), dims);
        let pairs = |batch: bool| -> Vec<(usize, usize)> {
            let chosen = other.iter().enumerate();
            chosen.filter_map(|(j, o)| o.1.filter(|p| p.1 == batch).map(|p| (p.0, j))).collect()
        };
        let n = count.bounds(self.b.symbols()).1 as f64;
        let (acc, grid) = self.products(a, b, n);
        let v = self.b.contract(a.v, b.v, &pairs(true), &pairs(false), acc).ok()?;
        self.push(v, grid)
    }

    fn convolve(&mut self) -> Option<()> {
        let dtype = self.arithmetic();
        let spatial = 1 + self.rng.below(2);
        let groups = *self.rng.pick(&[1usize, 1, 2, 3]);
        let (ci, co) = (self.rng.range(1, 3), self.rng.range(1, 3));
        let mut shape = vec![self.extent(), Dim::from(ci * groups as i64)];
        for _ in 0..spatial {
            shape.push(self.extent());
        }
        if !self.fits(&shape) {
            return None;
        }
        let found = self.find(|g, i| {
            let s = g.b.shape(i.v);
            g.is_arithmetic(i) && s.len() == spatial + 2 && s[1].is_const(ci * groups as i64)
        });
        let x = match found {
            Some(x) => self.clamped(x, 64.0)?,
            None => self.fresh(dtype, shape),
        };
        let input = self.b.shape(x.v)[2..].to_vec();
        let kernel: Vec<i64> = (0..spatial).map(|_| self.rng.range(1, 3)).collect();
        let window = self.window_dims(&input, &kernel, true)?;
        let mut shape = vec![Dim::from(co * groups as i64), Dim::from(ci)];
        shape.extend(kernel.iter().map(|&k| Dim::from(k)));
        let w = self.factor(self.b.dtype(x.v), shape);
        let n = (ci * kernel.iter().product::<i64>()) as f64;
        let (acc, grid) = self.products(x, w, n);
        let v = self.b.convolve(x.v, w.v, &window, groups, acc).ok()?;
        self.push(v, grid)
    }

    fn order(&mut self) -> Option<()> {
        let a = self.exact()?;
        let (axis, n) = self.axis(a)?;
        let descending = self.rng.one_in(2);
        if self.rng.one_in(2) {
            let least = n.bounds(self.b.symbols()).0.max(0);
            let k = if self.rng.one_in(3) { n } else { Dim::from(self.rng.range(0, least)) };
            let (v, i) = self.b.top_k(a.v, axis, &k, descending).ok()?;
            self.push(v, a.grid)?;
            return self.push(i, Grid::int(self.options.max_elems as f64));
        }
        let shape = self.b.shape(a.v).to_vec();
        let mut operands = vec![a];
        for _ in 0..self.rng.below(3) {
            let dtype = self.dtype();
            let found = self.find(|g, i| g.b.shape(i.v) == shape);
            operands.push(match found {
                Some(i) => i,
                None => self.fresh(dtype, shape.clone()),
            });
        }
        let values: Vec<_> = operands.iter().map(|i| i.v).collect();
        let results = self.b.sort(&values, axis, descending).ok()?;
        for (v, i) in results.into_iter().zip(operands) {
            self.push(v, i.grid)?;
        }
        Some(())
    }

    /// Sizes that only the run knows: `compact`, and `bind_dim` of a count.
    fn data_dependent(&mut self) -> Option<()> {
        let n = self.extent();
        let mask = self.boolean(std::slice::from_ref(&n));
        let limit = n.bounds(self.b.symbols()).1;
        if self.rng.one_in(2) {
            let at = self.b.compact(mask.v).ok()?;
            self.push(at, Grid::int(limit as f64))?;
            let rows = self.fresh(DType::F32, vec![n, Dim::from(2)]);
            let v = self.b.gather(rows.v, at, 0).ok()?;
            return self.push(v, rows.grid);
        }
        let ones = self.b.convert(mask.v, DType::I64).ok()?;
        let count = self.b.reduce_sum(ones, &[0], false).ok()?;
        let sym = self.b.value_symbol("bound", 0, limit, limit);
        self.b.op(Prim::BindDim(sym), &[count]).ok()?;
        let v = self.b.iota(DType::F32, &[Dim::from(2), Dim::from(sym)], 1).ok()?;
        self.push(v, Grid::int(limit as f64))
    }
}
