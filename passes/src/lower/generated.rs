//! Loop IR of the generated kernels: sort, top-k, compact.
//!
//! Each iteration of the parallel loop handles one line along the axis. Lines are sorted by a stable
//! bottom-up merge of (key, index) pairs in scratch memory; NaN sorts as the largest value.

use super::access;
use super::space::VarFacts;
use crate::error::{PassError, Result};
use ir::kernel::{Access, Generated, Kernel};
use ir::loops::{Func, Launch, Level, Mem, Space, Val};
use ir::loops_build::LoopBuilder;
use ir::prim::{CmpOp, ConvertMode};
use ir::{DType, Dim, Symbols, Var};

/// Nanoseconds to merge one element once.
const NS_PER_MERGE: f64 = 3.0;

/// # Errors
/// Where operands do not fit the primitive.
pub fn lower(kernel: &Kernel, what: &Generated, symbols: &Symbols) -> Result<Func> {
    let mut g = Gen::new(kernel, symbols);
    match what {
        Generated::Sort { axis, descending } => g.sort(*axis, *descending)?,
        Generated::TopK { axis, largest } => g.top_k(*axis, *largest)?,
        Generated::Compact => g.compact()?,
    }
    Ok(g.b.finish(g.launch))
}

struct Gen<'a> {
    k: &'a Kernel,
    facts: VarFacts<'a>,
    b: LoopBuilder,
    mems: Vec<Mem>,
    launch: Launch,
}

/// The keys of one line and where they came from.
#[derive(Clone, Copy)]
struct Pairs {
    keys: Mem,
    from: Mem,
}

/// One line of the operands: the index of everything but the axis.
struct Line {
    axis: usize,
    /// Stands for the position along the axis.
    at: Var,
    index: Vec<Dim>,
    vals: Vec<Val>,
}

impl<'a> Gen<'a> {
    fn new(k: &'a Kernel, symbols: &'a Symbols) -> Gen<'a> {
        let mut b = LoopBuilder::new(k.name.clone());
        let mems = k
            .buffers
            .iter()
            .map(|x| b.buf(x.name.clone(), x.dtype, x.access != Access::Read, x.dtype.bytes().max(1) as u32))
            .collect();
        k.origins.iter().for_each(|o| b.origin(*o));
        Gen { k, facts: VarFacts::of(k, symbols), b, mems, launch: Launch::default() }
    }

    fn fail<T>(&self, m: &str) -> Result<T> {
        Err(PassError::internal("schedule", format!("kernel {}: {m}", self.k.name)))
    }
    fn operands(&self, access: Access) -> Vec<usize> {
        (0..self.k.buffers.len()).filter(|i| self.k.buffers[*i].access == access).collect()
    }
    fn dim(&mut self, d: &Dim) -> Val {
        let zero = self.b.index(0);
        self.b.dim(d, &|_| zero)
    }
    fn index(&mut self, i: i64) -> Val {
        self.b.index(i)
    }

    // ---- lines --------------------------------------------------------------------------------

    /// Opens the parallel loop over all lines of a shape along `axis`.
    fn open_lines(&mut self, shape: &[Dim], axis: usize, ns_per_iter: f64) -> Line {
        let others: Vec<&Dim> = (0..shape.len()).filter(|d| *d != axis).map(|d| &shape[d]).collect();
        self.launch.trip = Dim::product(others.iter().copied());
        self.launch.ns_per_iter = ns_per_iter;
        let trip = self.launch.trip.clone();
        let trip = self.dim(&trip);
        let mut rest = self.b.open_parallel(Level::Thread, trip);
        let mut line = Line {
            axis,
            at: Var(shape.len() as u32),
            index: (0..shape.len() as u32).map(|d| Dim::from(Var(d))).collect(),
            vals: vec![rest; shape.len() + 1],
        };
        line.index[axis] = Dim::from(line.at);
        for (d, extent) in shape.iter().enumerate() {
            self.facts.set(Var(d as u32), extent.clone());
        }
        self.facts.set(line.at, shape[axis].clone());
        for d in (0..shape.len()).rev().filter(|d| *d != axis) {
            let n = self.dim(&shape[d]);
            line.vals[d] = self.b.rem(rest, n);
            rest = self.b.div(rest, n);
            self.b.assume_nonneg(line.vals[d]);
            self.b.assume_nonneg(rest);
        }
        line
    }

    /// Element `at` of the line in operand `buf`.
    fn element(&mut self, buf: usize, line: &Line, at: Val) -> (Val, i64) {
        let b = &self.k.buffers[buf];
        let offset = access::offset(&line.index, &b.shape, &b.layout, &self.facts);
        let env = |v: Var| if v == line.at { at } else { line.vals[v.0 as usize] };
        self.b.dim_parts(&offset, &env)
    }
    fn load(&mut self, buf: usize, line: &Line, at: Val) -> Val {
        let (index, disp) = self.element(buf, line, at);
        let addr = self.b.addr(self.mems[buf], index, disp);
        self.b.load(addr, 1, 1)
    }
    fn store(&mut self, buf: usize, line: &Line, at: Val, value: Val) {
        let (index, disp) = self.element(buf, line, at);
        let addr = self.b.addr(self.mems[buf], index, disp);
        self.b.store(addr, value);
    }
    fn peek(&mut self, mem: Mem, at: Val) -> Val {
        let addr = self.b.addr(mem, at, 0);
        self.b.load(addr, 1, 1)
    }
    fn poke(&mut self, mem: Mem, at: Val, value: Val) {
        let addr = self.b.addr(mem, at, 0);
        self.b.store(addr, value);
    }

    // ---- the primitives -----------------------------------------------------------------------

    fn sort(&mut self, axis: usize, descending: bool) -> Result<()> {
        let (from, to) = (self.operands(Access::Read), self.operands(Access::Write));
        let Some(&keys) = from.first() else { return self.fail("sort without operands") };
        let shape = self.k.buffers[keys].shape.clone();
        let fits = |b: &usize| self.k.buffers[*b].shape == shape;
        if from.len() != to.len() || !from.iter().chain(&to).all(fits) || axis >= shape.len() {
            return self.fail("operands of a sort disagree");
        }
        let n = shape[axis].clone();
        let line = self.open_lines(&shape, axis, self.ns_per_line(&n));
        let count = self.dim(&n);
        let sorted = self.sorted(keys, &line, &n, count, descending);
        self.for_each(count, |g, i| {
            let source = g.peek(sorted.from, i);
            g.b.assume_nonneg(source);
            let key = g.peek(sorted.keys, i);
            g.store(to[0], &line, i, key);
            for (f, t) in from.iter().zip(&to).skip(1) {
                let v = g.load(*f, &line, source);
                g.store(*t, &line, i, v);
            }
        });
        self.b.close_for(&[]);
        Ok(())
    }

    fn top_k(&mut self, axis: usize, largest: bool) -> Result<()> {
        let (from, to) = (self.operands(Access::Read), self.operands(Access::Write));
        let (&[x], &[values, indices]) = (from.as_slice(), to.as_slice()) else {
            return self.fail("top_k takes one operand and has two results");
        };
        let shape = self.k.buffers[x].shape.clone();
        let k = match self.k.buffers[values].shape.get(axis) {
            Some(k) if axis < shape.len() => k.clone(),
            _ => return self.fail("top_k along an axis that is not there"),
        };
        let n = shape[axis].clone();
        let line = self.open_lines(&shape, axis, self.ns_per_line(&n));
        let count = self.dim(&n);
        let sorted = self.sorted(x, &line, &n, count, largest);
        // k lies in 0..=n; a larger one, which a broken size could give, reads nothing
        let k = self.dim(&k);
        let k = self.b.min(k, count);
        self.for_each(k, |g, i| {
            let key = g.peek(sorted.keys, i);
            g.store(values, &line, i, key);
            let source = g.peek(sorted.from, i);
            g.store(indices, &line, i, source);
        });
        self.b.close_for(&[]);
        Ok(())
    }

    /// Every index is written to the next free place, which moves on only past those that count.
    fn compact(&mut self) -> Result<()> {
        let (from, to) = (self.operands(Access::Read), self.operands(Access::Write));
        let (&[mask], &[result, count]) = (from.as_slice(), to.as_slice()) else {
            return self.fail("compact takes one operand and has a result and a count");
        };
        let [n] = self.k.buffers[mask].shape.as_slice() else { return self.fail("compact of one dim") };
        let n = n.clone();
        self.launch.trip = Dim::from(1);
        self.launch.ns_per_iter = self.facts.estimate(&n);
        let (zero, one) = (self.index(0), self.index(1));
        let hi = self.dim(&n);
        self.b.open_parallel(Level::Thread, one);
        let (i, free) = self.b.open_for(zero, hi, 1, &[zero]);
        self.b.assume_nonneg(free[0]);
        self.poke(self.mems[result], free[0], i);
        let hit = self.peek(self.mems[mask], i);
        let hit = self.b.convert(DType::I64, ConvertMode::Plain, hit);
        let next = self.b.add(free[0], hit);
        let total = self.b.close_for(&[next])[0];
        self.poke(self.mems[count], zero, total);
        self.b.close_for(&[]);
        Ok(())
    }

    // ---- merging ------------------------------------------------------------------------------

    fn ns_per_line(&self, n: &Dim) -> f64 {
        let n = self.facts.estimate(n).max(2.0);
        n * n.log2().ceil() * NS_PER_MERGE
    }

    fn for_each(&mut self, n: Val, body: impl FnOnce(&mut Self, Val)) {
        let zero = self.index(0);
        let i = self.b.open_for(zero, n, 1, &[]).0;
        body(self, i);
        self.b.close_for(&[]);
    }

    /// The line of operand `buf`, sorted stably.
    fn sorted(&mut self, buf: usize, line: &Line, n: &Dim, count: Val, descending: bool) -> Pairs {
        debug_assert!(line.axis < line.index.len());
        let dtype = self.k.buffers[buf].dtype;
        let mut pairs = || Pairs {
            keys: self.b.local(dtype, n.clone(), Space::Scratch),
            from: self.b.local(DType::I64, n.clone(), Space::Scratch),
        };
        let (a, other) = (pairs(), pairs());
        self.for_each(count, |g, i| {
            let key = g.load(buf, line, i);
            g.poke(a.keys, i, key);
            g.poke(a.from, i, i);
        });
        // runs of `width` become runs of `4 width` and lie where they were
        let one = self.index(1);
        let width = self.b.open_while(&[one])[0];
        let more = self.b.cmp(CmpOp::Lt, width, count);
        self.b.open_while_body(more);
        self.b.assume_nonneg(width);
        let double = self.b.add(width, width);
        self.merge_runs(a, other, width, count, descending);
        self.merge_runs(other, a, double, count, descending);
        let next = self.b.add(double, double);
        self.b.close_while(&[next]);
        a
    }

    /// Merges neighbouring runs of `width` of `a` into runs of `2 width` of `to`.
    fn merge_runs(&mut self, a: Pairs, to: Pairs, width: Val, n: Val, descending: bool) {
        let (zero, one) = (self.index(0), self.index(1));
        let last = self.b.sub(n, one);
        let double = self.b.add(width, width);
        let up = self.b.sub(double, one);
        let up = self.b.add(n, up);
        let runs = self.b.div(up, double);
        let run = self.b.open_for(zero, runs, 1, &[]).0;
        let lo = self.b.mul(run, double);
        let mid = self.b.add(lo, width);
        let mid = self.b.min(mid, n);
        let hi = self.b.add(lo, double);
        let hi = self.b.min(hi, n);
        let (at, carried) = self.b.open_for(lo, hi, 1, &[lo, mid]);
        let (i, j) = (carried[0], carried[1]);
        self.b.assume_nonneg(i);
        self.b.assume_nonneg(j);
        // a run that is used up is not read beyond the line
        let (ci, cj) = (self.b.min(i, last), self.b.min(j, last));
        let (x, y) = (self.peek(a.keys, ci), self.peek(a.keys, cj));
        let y_first = self.before(y, x, descending);
        let left_done = self.b.cmp(CmpOp::Ge, i, mid);
        let right_open = self.b.cmp(CmpOp::Lt, j, hi);
        let right = self.b.or(left_done, y_first);
        let right = self.b.and(right, right_open);
        let key = self.b.select(right, y, x);
        let source = self.b.select(right, cj, ci);
        let source = self.peek(a.from, source);
        self.poke(to.keys, at, key);
        self.poke(to.from, at, source);
        let step = self.b.convert(DType::I64, ConvertMode::Plain, right);
        let j = self.b.add(j, step);
        let i = self.b.add(i, one);
        let i = self.b.sub(i, step);
        self.b.close_for(&[i, j]);
        self.b.close_for(&[]);
    }

    /// True where `y` comes before `x` although it stands after it.
    fn before(&mut self, y: Val, x: Val, descending: bool) -> Val {
        let dtype = self.b.dtype(x);
        let (mut x, mut y) = (x, y);
        if dtype == DType::Bool {
            x = self.b.convert(DType::I32, ConvertMode::Plain, x);
            y = self.b.convert(DType::I32, ConvertMode::Plain, y);
        }
        let order = if descending { CmpOp::Gt } else { CmpOp::Lt };
        let first = self.b.cmp(order, y, x);
        if !dtype.is_float() {
            return first;
        }
        let (nan_x, nan_y) = (self.b.cmp(CmpOp::Ne, x, x), self.b.cmp(CmpOp::Ne, y, y));
        let (larger, other) = if descending { (nan_y, nan_x) } else { (nan_x, nan_y) };
        let other = self.b.not(other);
        let nan = self.b.and(larger, other);
        self.b.or(first, nan)
    }
}
