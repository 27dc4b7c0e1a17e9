//! A plain interpreter of loop IR, both forms: it tells a wrong schedule from a wrong emitter.
//!
//! Its meaning is sequential; of a block's warps, which meet at barriers, each goes from one to the next alone. Every access is checked against the memory it names. Element types are rounded after
//! every operation, so that narrow floats may differ from compiled code, which keeps them wide.

use crate::dtype::Scalar;
use crate::kernel::Dot;
use crate::loops::{Addr, Block, Func, Inst, Level, Mem, PipeOp, SCALE, Stmt, Stride, Ty, Val};
use crate::loops_opt::eval;
use crate::{DType, Dim, IrError, Monoid, OriginId, Result};

/// What a function reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Ok,
    /// The first failed check: where it comes from, the value, and the limit it breaks.
    Failed {
        origin: OriginId,
        value: i64,
        limit: i64,
    },
}

/// All lanes combined: the second half with the first as long as there are two equal ones, which is the order of the
/// emitters for LLVM and PTX.
fn reduce_lanes(monoid: Monoid, dtype: DType, lanes: &[Scalar]) -> Scalar {
    let mut lanes = lanes.to_vec();
    while lanes.len() > 1 && lanes.len().is_multiple_of(2) {
        let other = lanes.split_off(lanes.len() / 2);
        for (x, y) in lanes.iter_mut().zip(other) {
            *x = eval::combine(monoid, dtype, *x, y);
        }
    }
    let first = lanes.first().copied().unwrap_or_else(|| monoid.identity(dtype));
    lanes.iter().skip(1).fold(first, |s, x| eval::combine(monoid, dtype, s, *x))
}

/// Largest local array, in bytes.
const LOCAL_LIMIT: usize = 1 << 30;

/// Runs iterations `begin..end` of the parallel loop (of a function without one: everything once).
/// `syms`: values of `func.syms` by position.
///
/// # Errors
/// [`IrError::Verify`] for an access outside of its memory, a value used before it is defined, or an
/// instruction that is not well-formed; [`IrError::Limit`] for local arrays that are too large.
pub fn execute(func: &Func, bufs: &mut [Vec<u8>], syms: &[i64], begin: i64, end: i64) -> Result<Status> {
    if bufs.len() != func.bufs.len() || syms.len() != func.syms.len() {
        return Err(IrError::verify(&func.name, "wrong number of buffers or symbols"));
    }
    let mut m = Machine {
        func,
        bufs,
        syms,
        locals: Vec::new(),
        vals: vec![Vec::new(); func.types.len()],
        range: (begin, end),
        status: Status::Ok,
    };
    for l in &func.locals {
        let bytes = m.local_bytes(&l.elems, l.dtype.bytes())?;
        m.locals.push(vec![0; bytes]);
    }
    m.block(&func.body)?;
    Ok(m.status)
}

struct Machine<'a> {
    func: &'a Func,
    bufs: &'a mut [Vec<u8>],
    syms: &'a [i64],
    locals: Vec<Vec<u8>>,
    /// Elements of each value, row by row.
    vals: Vec<Vec<Scalar>>,
    range: (i64, i64),
    status: Status,
}

impl Machine<'_> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(IrError::verify(&self.func.name, message))
    }

    fn local_bytes(&self, elems: &Dim, size: usize) -> Result<usize> {
        let value = elems.eval_syms(&|s| {
            let i = self.func.syms.iter().position(|x| *x == s)?;
            self.syms.get(i).copied()
        });
        let bytes = value.and_then(|n| usize::try_from(n).ok()).and_then(|n| n.checked_mul(size));
        match bytes {
            Some(n) if n <= LOCAL_LIMIT => Ok(n),
            _ => Err(IrError::Limit(format!("local array of {elems} elements"))),
        }
    }

    fn get(&self, v: Val) -> Result<&[Scalar]> {
        match self.vals.get(v.0 as usize) {
            Some(x) if !x.is_empty() => Ok(x),
            _ => self.fail(format!("%{} is used before it is defined", v.0)),
        }
    }
    fn scalar(&self, v: Val) -> Result<Scalar> {
        match self.get(v)? {
            [x] => Ok(*x),
            _ => self.fail(format!("%{} is no scalar", v.0)),
        }
    }
    fn int(&self, v: Val) -> Result<i64> {
        Ok(self.scalar(v)?.as_int() as i64)
    }
    fn truth(&self, v: Val) -> Result<bool> {
        Ok(self.scalar(v)?.as_int() != 0)
    }
    fn set(&mut self, v: Val, x: Vec<Scalar>) -> Result<()> {
        let t = self.func.ty(v);
        if x.len() != t.rows as usize * t.cols as usize {
            return self.fail(format!("%{} has {} elements for a {}x{} tile", v.0, x.len(), t.rows, t.cols));
        }
        self.vals[v.0 as usize] = x;
        Ok(())
    }
    fn copy(&mut self, to: &[Val], from: &[Val]) -> Result<()> {
        if to.len() != from.len() {
            return self.fail(format!("{} values for {}", from.len(), to.len()));
        }
        // all are read before any is written: loops may exchange values
        let vals = from.iter().map(|v| self.get(*v).map(<[_]>::to_vec)).collect::<Result<Vec<_>>>()?;
        to.iter().zip(vals).try_for_each(|(v, x)| self.set(*v, x))
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        block.stmts.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<()> {
        match stmt {
            Stmt::Let { val, inst } => {
                let x = self.inst(self.func.ty(*val), inst)?;
                self.set(*val, x)?;
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                let (inside, inits): (Vec<_>, Vec<_>) = carries.iter().copied().unzip();
                let (mut i, hi) = match parallel {
                    Some(Level::Thread | Level::Grid) => self.range,
                    _ => (self.int(*lo)?, self.int(*hi)?),
                };
                if *step <= 0 {
                    return self.fail("a loop with a step that is not positive");
                }
                if *parallel == Some(Level::Warp) {
                    return self.warps(*var, i..hi, body);
                }
                self.copy(&inside, &inits)?;
                while i < hi {
                    self.set(*var, vec![Scalar::Int(i.into())])?;
                    self.block(body)?;
                    self.copy(&inside, &body.yields)?;
                    i = i.saturating_add(*step);
                }
                self.copy(results, &inside)?;
            }
            Stmt::While { carries, results, cond, body } => {
                let (inside, inits): (Vec<_>, Vec<_>) = carries.iter().copied().unzip();
                self.copy(&inside, &inits)?;
                loop {
                    self.block(cond)?;
                    let [c] = cond.yields.as_slice() else {
                        return self.fail("the condition of a loop yields one value");
                    };
                    if !self.truth(*c)? {
                        break;
                    }
                    self.block(body)?;
                    self.copy(&inside, &body.yields)?;
                }
                self.copy(results, &inside)?;
            }
            Stmt::If { cond, then, otherwise, results } => {
                let block = if self.truth(*cond)? { then } else { otherwise };
                self.block(block)?;
                self.copy(results, &block.yields)?;
            }
            Stmt::Store { addr, value } => {
                let ty = self.func.ty(*value);
                let vals = self.get(*value)?.to_vec();
                for (at, x) in self.places(addr, ty)?.into_iter().zip(vals) {
                    if let Some(at) = at {
                        self.write(addr.mem, at, ty, x)?;
                    }
                }
            }
            Stmt::Scatter { mem, index, value, mask } => {
                let ty = self.func.ty(*value);
                let index = self.get(*index)?.to_vec();
                let vals = self.get(*value)?.to_vec();
                let mask = mask.map(|m| self.get(m).map(<[_]>::to_vec)).transpose()?;
                for (i, (at, x)) in index.into_iter().zip(vals).enumerate() {
                    if mask.as_ref().is_none_or(|m| m.get(i).is_some_and(|b| b.as_int() != 0)) {
                        self.write(*mem, at.as_int() as i64, ty, x)?;
                    }
                }
            }
            Stmt::Prefetch { .. } => {}
            Stmt::Barrier(_) | Stmt::Pipe(PipeOp::Commit | PipeOp::Wait { .. }) => {}
            Stmt::Pipe(PipeOp::Copy { from, to, elems }) => {
                let ty = Ty::vector(self.mem_dtype(from.mem)?, *elems);
                let (from_at, to_at) = (self.places(from, ty)?, self.places(to, ty)?);
                for (f, t) in from_at.into_iter().zip(to_at) {
                    if let (Some(f), Some(t)) = (f, t) {
                        let x = self.read(from.mem, f, ty)?;
                        self.write(to.mem, t, ty, x)?;
                    }
                }
            }
            Stmt::Check { ok, origin, value, limit } => {
                if !self.truth(*ok)? && self.status == Status::Ok {
                    let (value, limit) = (self.int(*value)?, self.int(*limit)?);
                    self.status = Status::Failed { origin: *origin, value, limit };
                }
            }
        }
        Ok(())
    }

    // ---- warps of a block -------------------------------------------------------------------

    /// The body of a loop over warps, which all run at once.
    fn warps(&mut self, var: Val, numbers: std::ops::Range<i64>, body: &Block) -> Result<()> {
        let mut warps = Vec::new();
        for w in numbers {
            self.set(var, vec![Scalar::Int(w.into())])?;
            warps.push(self.vals.clone());
        }
        self.together(body, &mut warps)
    }

    /// A block of which every warp does each piece between barriers alone.
    fn together(&mut self, block: &Block, warps: &mut [Vec<Vec<Scalar>>]) -> Result<()> {
        for stmt in &block.stmts {
            if !meets(stmt) {
                self.each(warps, &mut |m| m.stmt(stmt))?;
                continue;
            }
            let Stmt::For { var, lo, hi, step, carries, results, body, parallel: None } = stmt else {
                if matches!(stmt, Stmt::Barrier(_)) {
                    continue;
                }
                return self.fail("warps meet where not all of them need come");
            };
            let mut bounds = Vec::new();
            self.each(warps, &mut |m| {
                bounds.push((m.int(*lo)?, m.int(*hi)?));
                Ok(())
            })?;
            bounds.dedup();
            let [(lo, hi)] = bounds[..] else { return self.fail("warps meet in loops of different length") };
            let (inside, inits): (Vec<_>, Vec<_>) = carries.iter().copied().unzip();
            self.each(warps, &mut |m| m.copy(&inside, &inits))?;
            let mut i = lo;
            while i < hi {
                self.each(warps, &mut |m| m.set(*var, vec![Scalar::Int(i.into())]))?;
                self.together(body, warps)?;
                self.each(warps, &mut |m| m.copy(&inside, &body.yields))?;
                i = i.saturating_add((*step).max(1));
            }
            self.each(warps, &mut |m| m.copy(results, &inside))?;
        }
        Ok(())
    }

    /// Does something with the values of one warp after the other.
    fn each(
        &mut self,
        warps: &mut [Vec<Vec<Scalar>>],
        f: &mut dyn FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        warps.iter_mut().try_for_each(|vals| {
            std::mem::swap(&mut self.vals, vals);
            let done = f(self);
            std::mem::swap(&mut self.vals, vals);
            done
        })
    }

    // ---- memory -----------------------------------------------------------------------------

    fn mem_dtype(&self, mem: Mem) -> Result<crate::DType> {
        let dtype = match mem {
            Mem::Buf(i) => self.func.bufs.get(i as usize).map(|b| b.dtype),
            Mem::Local(i) => self.func.locals.get(i as usize).map(|l| l.dtype),
        };
        dtype.map_or_else(|| self.fail(format!("no memory {mem:?}")), Ok)
    }

    /// Element index of each element of the access; `None` beyond the valid rows and columns, and in lanes that do not
    /// take part.
    fn places(&self, a: &Addr, ty: Ty) -> Result<Vec<Option<i64>>> {
        let stride = |s: Stride| match s {
            Stride::Const(c) => Ok(c),
            Stride::Val(v) => self.int(v),
        };
        let bases = self.get(a.index)?;
        let (rows, cols) = (ty.rows as usize, ty.cols as usize);
        let base = |r: u32, c: u32| match bases.len() {
            1 => Ok(bases[0]),
            // a place for each row, or for each lane
            n if n == rows && rows > 1 => Ok(bases[r as usize]),
            n if n == cols && rows == 1 => Ok(bases[c as usize]),
            n => self.fail(format!("{n} places for {rows} x {cols} elements")),
        };
        let (row, col) = (stride(a.row)?, stride(a.col)?);
        // a mask has as many elements as the access
        let lanes = a.cols_valid.map(|v| self.get(v)).transpose()?.filter(|l| l.len() > 1);
        let count = |v: Option<Val>| v.map_or(Ok(i64::MAX), |v| self.int(v));
        let (valid_rows, valid) = (count(a.rows_valid)?, count(a.cols_valid.filter(|_| lanes.is_none()))?);
        let mut out = Vec::with_capacity(ty.rows as usize * ty.cols as usize);
        for r in 0..ty.rows {
            for c in 0..ty.cols {
                let at = base(r, c)?.as_int() + i128::from(a.disp);
                let at = at + i128::from(row) * i128::from(r) + i128::from(col) * i128::from(c);
                let at = i64::try_from(at).unwrap_or(-1);
                let takes_part = lanes.is_none_or(|l| l.get(c as usize).is_some_and(|x| x.as_int() != 0));
                let inside = i64::from(r) < valid_rows && i64::from(c) < valid;
                out.push((inside && takes_part).then_some(at));
            }
        }
        Ok(out)
    }

    /// The bytes of one element.
    fn element(&mut self, mem: Mem, at: i64) -> Result<(&mut [u8], crate::DType)> {
        let dtype = self.mem_dtype(mem)?;
        let bytes = match mem {
            Mem::Buf(i) => &mut self.bufs[i as usize],
            Mem::Local(i) => &mut self.locals[i as usize],
        };
        let len = bytes.len() / dtype.bytes().max(1);
        let size = dtype.bytes();
        let range = usize::try_from(at).ok().filter(|i| *i < len).map(|i| i * size..(i + 1) * size);
        match range {
            Some(r) => Ok((&mut bytes[r], dtype)),
            None => {
                Err(IrError::verify(&self.func.name, format!("element {at} of {mem:?}, which has {len}")))
            }
        }
    }

    fn read(&mut self, mem: Mem, at: i64, ty: Ty) -> Result<Scalar> {
        let (bytes, dtype) = self.element(mem, at)?;
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(word);
        // machine form loads the patterns of narrow floats as integers
        if dtype.is_float() && !ty.dtype.is_float() {
            return Ok(Scalar::Int(bits.into()));
        }
        Ok(eval::normalise(ty.dtype, eval::from_bits(dtype, bits)))
    }

    fn write(&mut self, mem: Mem, at: i64, ty: Ty, x: Scalar) -> Result<()> {
        if let Mem::Buf(i) = mem
            && !self.func.bufs.get(i as usize).is_some_and(|b| b.writable)
        {
            return self.fail(format!("a store to read-only {mem:?}"));
        }
        let (bytes, dtype) = self.element(mem, at)?;
        let bits = match x {
            // machine form stores the patterns of narrow floats as integers
            Scalar::Int(i) if dtype.is_float() => i as u64,
            _ => eval::to_bits(dtype, if ty.dtype == dtype { x } else { eval::normalise(dtype, x) }),
        };
        let n = bytes.len();
        bytes.copy_from_slice(&bits.to_le_bytes()[..n]);
        Ok(())
    }

    // ---- instructions -----------------------------------------------------------------------

    fn map(&self, v: Val, f: impl Fn(Scalar) -> Scalar) -> Result<Vec<Scalar>> {
        Ok(self.get(v)?.iter().map(|x| f(*x)).collect())
    }
    fn map2(&self, a: Val, b: Val, f: impl Fn(Scalar, Scalar) -> Scalar) -> Result<Vec<Scalar>> {
        let (x, y) = (self.get(a)?, self.get(b)?);
        if x.len() != y.len() {
            return self.fail(format!("%{} and %{} have different shapes", a.0, b.0));
        }
        Ok(x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect())
    }
    fn map3(&self, v: [Val; 3], f: impl Fn(Scalar, Scalar, Scalar) -> Scalar) -> Result<Vec<Scalar>> {
        let (x, y, z) = (self.get(v[0])?, self.get(v[1])?, self.get(v[2])?);
        if x.len() != y.len() || x.len() != z.len() {
            return self.fail(format!("%{}, %{} and %{} have different shapes", v[0].0, v[1].0, v[2].0));
        }
        Ok(x.iter().zip(y).zip(z).map(|((x, y), z)| f(*x, *y, *z)).collect())
    }

    /// acc (R x C) + a (R x K) times b (K x C).
    fn matrices(&self, dot: Dot, cols: usize, [acc, a, b]: [Val; 3]) -> Result<Vec<Scalar>> {
        let depth = self.func.ty(a).cols as usize;
        let (acc, a, b) = (self.get(acc)?, self.get(a)?, self.get(b)?);
        if a.len() * cols != acc.len() * depth || b.len() != depth * cols {
            return self.fail("a product of matrices that do not fit");
        }
        let element = |(i, x): (usize, &Scalar)| {
            let row = &a[i / cols * depth..][..depth];
            let column = b.iter().skip(i % cols).step_by(cols);
            dot_words(dot, *x, row.iter().copied().zip(column.copied()))
        };
        Ok(acc.iter().enumerate().map(element).collect())
    }

    fn inst(&mut self, ty: Ty, inst: &Inst) -> Result<Vec<Scalar>> {
        let (rows, cols) = (ty.rows as usize, ty.cols as usize);
        let d = ty.dtype;
        Ok(match inst {
            Inst::Const(s) => vec![eval::normalise(d, *s); rows * cols],
            Inst::Sym(i) => match self.syms.get(*i as usize) {
                Some(s) => vec![Scalar::Int((*s).into())],
                None => return self.fail(format!("symbol parameter {i}")),
            },
            Inst::Iota { along_cols } => (0..rows * cols)
                .map(|i| Scalar::Int(if *along_cols { i % cols } else { i / cols } as i128))
                .map(|s| eval::normalise(d, s))
                .collect(),
            Inst::Splat(v) => {
                let t = self.func.ty(*v);
                let x = self.get(*v)?;
                let fits = |n: u32, m: usize| n == 1 || n as usize == m;
                if !fits(t.rows, rows) || !fits(t.cols, cols) {
                    return self.fail(format!("%{} does not broadcast to {rows}x{cols}", v.0));
                }
                let at = |r: usize, c: usize| {
                    let r = if t.rows == 1 { 0 } else { r };
                    let c = if t.cols == 1 { 0 } else { c };
                    x[r * t.cols as usize + c]
                };
                (0..rows * cols).map(|i| at(i / cols, i % cols)).collect()
            }
            Inst::Unary(op, v) => self.map(*v, |x| eval::unary(*op, d, x))?,
            Inst::Binary(op, a, b) => self.map2(*a, *b, |x, y| eval::binary(*op, d, x, y))?,
            Inst::Fma(a, b, c) => self.map3([*a, *b, *c], |x, y, z| eval::fma(d, x, y, z))?,
            Inst::Cmp(op, a, b) => self.map2(*a, *b, |x, y| Scalar::Int(eval::cmp(*op, x, y).into()))?,
            Inst::Select(m, a, b) => {
                self.map3([*m, *a, *b], |m, x, y| if m.as_int() != 0 { x } else { y })?
            }
            Inst::Convert(mode, v) => {
                let from = self.func.ty(*v).dtype;
                self.map(*v, |x| eval::convert(d, *mode, from, x))?
            }
            Inst::Bitcast(v) => {
                let from = self.func.ty(*v).dtype;
                self.map(*v, |x| eval::bitcast(d, from, x))?
            }
            Inst::Load(addr) => self
                .places(addr, ty)?
                .into_iter()
                .map(|at| at.map_or(Ok(Scalar::zero(d)), |at| self.read(addr.mem, at, ty)))
                .collect::<Result<_>>()?,
            Inst::Gather { mem, index, mask } => {
                let index = self.get(*index)?.to_vec();
                let mask = mask.map(|m| self.get(m).map(<[_]>::to_vec)).transpose()?;
                let on = |i: usize| mask.as_ref().is_none_or(|m| m.get(i).is_some_and(|b| b.as_int() != 0));
                let read = |(i, at): (usize, Scalar)| {
                    if on(i) { self.read(*mem, at.as_int() as i64, ty) } else { Ok(Scalar::zero(d)) }
                };
                index.into_iter().enumerate().map(read).collect::<Result<_>>()?
            }
            Inst::ReduceCols(monoid, v) => {
                let from = self.func.ty(*v).cols as usize;
                let row = |r: &[Scalar]| reduce_lanes(*monoid, d, r);
                self.get(*v)?.chunks(from).map(row).collect()
            }
            Inst::ReduceRows(monoid, v) => {
                let x = self.get(*v)?;
                let column = |c: usize| x.iter().skip(c).step_by(cols);
                let start = monoid.identity(d);
                (0..cols).map(|c| column(c).fold(start, |s, x| eval::combine(*monoid, d, s, *x))).collect()
            }
            Inst::Extract(v, r, c) => {
                let at = *r as usize * self.func.ty(*v).cols as usize + *c as usize;
                match self.get(*v)?.get(at) {
                    Some(x) => vec![*x],
                    None => return self.fail(format!("element ({r}, {c}) of %{}", v.0)),
                }
            }
            Inst::Insert { vec, scalar, lane } => {
                let s = self.scalar(*scalar)?;
                let mut x = self.get(*vec)?.to_vec();
                match x.get_mut(*lane as usize) {
                    Some(slot) => *slot = s,
                    None => return self.fail(format!("lane {lane} of %{}", vec.0)),
                }
                x
            }
            Inst::Shuffle(a, b, lanes) => {
                let all = [self.get(*a)?, self.get(*b)?].concat();
                let pick = |l: &u32| all.get(*l as usize).copied();
                match lanes.iter().map(pick).collect::<Option<Vec<_>>>() {
                    Some(x) => x,
                    None => return self.fail("a shuffle of lanes that do not exist"),
                }
            }
            Inst::TileOp { name, acc, a, b } => match name.as_str() {
                "vpdpbusd" => self.map3([*acc, *a, *b], dot_bytes)?,
                "vdpbf16ps" => self.map3([*acc, *a, *b], dot_bf16)?,
                SCALE => self.map3([*acc, *a, *b], |x, n, _| scaled(d, x, n))?,
                _ => match Dot::of_matrix_op(name) {
                    Some(dot) => self.matrices(dot, cols, [*acc, *a, *b])?,
                    None => return self.fail(format!("tile instruction `{name}`")),
                },
            },
        })
    }
}

/// acc + the product of a row and a column of words.
fn dot_words(dot: Dot, acc: Scalar, words: impl Iterator<Item = (Scalar, Scalar)>) -> Scalar {
    if dot == Dot::Bytes {
        return words.fold(acc, |acc, (a, b)| dot_bytes(acc, a, b));
    }
    // as the instruction has it: low and high halves have a sum each, which then are added
    let half = |x: Scalar, shift: u32| f32::from_bits(((x.as_int() as u32) << shift) & 0xffff_0000);
    let sums = words.fold([0f32; 2], |sums, (a, b)| {
        [16, 0].map(|s| half(a, s).mul_add(half(b, s), sums[usize::from(s == 0)]))
    });
    Scalar::Float((acc.as_f64() as f32 + (sums[0] + sums[1])).into())
}

/// A barrier, or a statement around one.
fn meets(stmt: &Stmt) -> bool {
    matches!(stmt, Stmt::Barrier(_)) || stmt.blocks().into_iter().any(|b| b.stmts.iter().any(meets))
}

/// x * 2^floor(n), rounded once.
fn scaled(dtype: crate::DType, x: Scalar, n: Scalar) -> Scalar {
    // a product of doubles is exact for what f32 holds; those of f64 come in two steps beyond the range of its powers
    let (x, n) = (x.as_f64(), n.as_f64().floor());
    let half = (n / 2.0).floor();
    let y = x * half.exp2() * (n - half).exp2();
    Scalar::Float(if dtype == crate::DType::F64 { y } else { f64::from(y as f32) })
}

/// acc + the sum of four products of an unsigned and a signed byte.
fn dot_bytes(acc: Scalar, a: Scalar, b: Scalar) -> Scalar {
    let (a, b) = (a.as_int() as u32, b.as_int() as u32);
    let products = a.to_le_bytes().into_iter().zip(b.to_le_bytes());
    let sum: i128 = products.map(|(x, y)| i128::from(x) * i128::from(y as i8)).sum();
    Scalar::Int(eval::wrap(crate::DType::I32, acc.as_int() + sum))
}

/// acc + the sum of two products of bf16, the low halves first.
fn dot_bf16(acc: Scalar, a: Scalar, b: Scalar) -> Scalar {
    let (a, b) = (a.as_int() as u32, b.as_int() as u32);
    let half = |x: u32| f32::from_bits(x);
    let low = half(a << 16).mul_add(half(b << 16), acc.as_f64() as f32);
    Scalar::Float(half(a & 0xffff_0000).mul_add(half(b & 0xffff_0000), low).into())
}
