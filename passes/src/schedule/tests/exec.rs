//! Executes loop IR in tile form, serially, on memories of scalars. Every access is checked: an element
//! that nobody wrote, or that lies outside of its buffer, is an error.

use ir::dtype::Scalar;
use ir::loops::{Addr, Block, Func, Inst, Mem, Stmt, Stride, Ty, Val};
use ir::loops_opt::eval;
use ir::prim::Monoid;
use ir::{DType, Sym};

/// Elements of one buffer; `None` where nothing was written yet.
pub type Memory = Vec<Option<Scalar>>;

pub struct Exec<'a> {
    f: &'a Func,
    pub bufs: Vec<Memory>,
    locals: Vec<Memory>,
    syms: &'a dyn Fn(Sym) -> i64,
    vals: Vec<Vec<Scalar>>,
    /// Failed checks: value and limit.
    pub failed: Vec<(i64, i64)>,
}

type R<T> = Result<T, String>;

impl<'a> Exec<'a> {
    pub fn run(f: &'a Func, bufs: Vec<Memory>, syms: &'a dyn Fn(Sym) -> i64) -> R<Exec<'a>> {
        let size = |d: &ir::Dim| d.eval_syms(&|s| Some(syms(s))).unwrap_or(0) as usize;
        let locals = f.locals.iter().map(|l| vec![None; size(&l.elems)]).collect();
        let vals = vec![Vec::new(); f.types.len()];
        let mut e = Exec { f, bufs, locals, syms, vals, failed: Vec::new() };
        e.block(&f.body)?;
        Ok(e)
    }

    fn block(&mut self, b: &Block) -> R<Vec<Vec<Scalar>>> {
        for s in &b.stmts {
            self.stmt(s)?;
        }
        Ok(b.yields.iter().map(|v| self.vals[v.0 as usize].clone()).collect())
    }

    fn int(&self, v: Val) -> i64 {
        self.vals[v.0 as usize][0].as_int() as i64
    }
    fn set(&mut self, vals: &[Val], to: Vec<Vec<Scalar>>) {
        for (v, x) in vals.iter().zip(to) {
            self.vals[v.0 as usize] = x;
        }
    }
    fn get(&self, v: Val) -> &[Scalar] {
        &self.vals[v.0 as usize]
    }

    fn stmt(&mut self, s: &Stmt) -> R<()> {
        match s {
            Stmt::Let { val, inst } => {
                let ty = self.f.ty(*val);
                let x = self.inst(inst, ty)?;
                if x.len() != (ty.rows * ty.cols) as usize {
                    return Err(format!("%{}: {inst:?} gives {} elements of {ty:?}", val.0, x.len()));
                }
                self.vals[val.0 as usize] = x;
            }
            Stmt::For { var, lo, hi, step, carries, results, body, .. } => {
                let (lo, hi) = (self.int(*lo), self.int(*hi));
                let mut carried: Vec<Vec<Scalar>> = carries.iter().map(|c| self.get(c.1).to_vec()).collect();
                let inside: Vec<Val> = carries.iter().map(|c| c.0).collect();
                let mut i = lo;
                while i < hi {
                    self.vals[var.0 as usize] = vec![Scalar::Int(i.into())];
                    self.set(&inside, carried);
                    carried = self.block(body)?;
                    i += step;
                }
                self.set(results, carried);
            }
            Stmt::While { carries, results, cond, body } => {
                let mut carried: Vec<Vec<Scalar>> = carries.iter().map(|c| self.get(c.1).to_vec()).collect();
                let inside: Vec<Val> = carries.iter().map(|c| c.0).collect();
                loop {
                    self.set(&inside, carried.clone());
                    if self.block(cond)?[0][0].as_int() == 0 {
                        break;
                    }
                    carried = self.block(body)?;
                }
                self.set(results, carried);
            }
            Stmt::If { cond, then, otherwise, results } => {
                let branch = if self.int(*cond) != 0 { then } else { otherwise };
                let x = self.block(branch)?;
                self.set(results, x);
            }
            Stmt::Store { addr, value } => {
                let ty = self.f.ty(*value);
                if ty.dtype != self.dtype(addr.mem) {
                    return Err(format!("stores {} to {:?} of {}", ty.dtype, addr.mem, self.dtype(addr.mem)));
                }
                let x = self.get(*value).to_vec();
                for (i, at) in self.places(addr, ty) {
                    *self.slot(addr.mem, at)? = Some(x[i]);
                }
            }
            Stmt::Scatter { mem, index, value, mask } => {
                let (at, x) = (self.get(*index).to_vec(), self.get(*value).to_vec());
                let mask = mask.map(|m| self.get(m).to_vec());
                for i in 0..at.len() {
                    if mask.as_ref().is_none_or(|m| m[i].as_int() != 0) {
                        *self.slot(*mem, at[i].as_int() as i64)? = Some(x[i]);
                    }
                }
            }
            Stmt::Check { ok, value, limit, .. } => {
                if self.int(*ok) == 0 {
                    self.failed.push((self.int(*value), self.int(*limit)));
                }
            }
            Stmt::Barrier(_) => {}
            Stmt::Pipe(_) => return Err("a pipe".into()),
        }
        Ok(())
    }

    fn dtype(&self, m: Mem) -> DType {
        match m {
            Mem::Buf(i) => self.f.bufs[i as usize].dtype,
            Mem::Local(i) => self.f.locals[i as usize].dtype,
        }
    }
    fn slot(&mut self, m: Mem, at: i64) -> R<&mut Option<Scalar>> {
        let memory = match m {
            Mem::Buf(i) => &mut self.bufs[i as usize],
            Mem::Local(i) => &mut self.locals[i as usize],
        };
        let n = memory.len();
        usize::try_from(at)
            .ok()
            .and_then(|i| memory.get_mut(i))
            .ok_or_else(|| format!("element {at} of {m:?} with {n}"))
    }
    fn read(&mut self, m: Mem, at: i64) -> R<Scalar> {
        self.slot(m, at)?.ok_or_else(|| format!("element {at} of {m:?} was never written"))
    }

    /// Element number in the tile and in memory.
    fn places(&self, a: &Addr, ty: Ty) -> Vec<(usize, i64)> {
        let stride = |s: Stride| match s {
            Stride::Const(c) => c,
            Stride::Val(v) => self.int(v),
        };
        let valid = a.cols_valid.map_or(i64::from(ty.cols), |v| self.int(v));
        let mut places = Vec::new();
        for r in 0..i64::from(ty.rows) {
            for c in 0..i64::from(ty.cols).min(valid) {
                let at = self.int(a.index) + a.disp + r * stride(a.row) + c * stride(a.col);
                places.push(((r * i64::from(ty.cols) + c) as usize, at));
            }
        }
        places
    }

    fn map2(&self, a: Val, b: Val, f: impl Fn(Scalar, Scalar) -> Scalar) -> Vec<Scalar> {
        assert_eq!(self.get(a).len(), self.get(b).len(), "operands of unequal shape");
        self.get(a).iter().zip(self.get(b)).map(|(x, y)| f(*x, *y)).collect()
    }

    fn inst(&mut self, inst: &Inst, ty: Ty) -> R<Vec<Scalar>> {
        let n = (ty.rows * ty.cols) as usize;
        let cols = ty.cols as usize;
        Ok(match inst {
            Inst::Const(s) => vec![eval::normalise(ty.dtype, *s); n],
            Inst::Sym(i) => vec![Scalar::Int((self.syms)(self.f.syms[*i as usize]).into())],
            Inst::Iota { along_cols } => {
                (0..n).map(|i| Scalar::Int(if *along_cols { i % cols } else { i / cols } as i128)).collect()
            }
            Inst::Splat(v) => {
                let (t, x) = (self.f.ty(*v), self.get(*v));
                let pick = |i: usize| {
                    let (r, c) = (i / cols, i % cols);
                    x[if t.rows == 1 { 0 } else { r } * t.cols as usize + if t.cols == 1 { 0 } else { c }]
                };
                (0..n).map(pick).collect()
            }
            Inst::Unary(op, a) => self.get(*a).iter().map(|x| eval::unary(*op, ty.dtype, *x)).collect(),
            Inst::Binary(op, a, b) => self.map2(*a, *b, |x, y| eval::binary(*op, ty.dtype, x, y)),
            Inst::Fma(a, b, c) => {
                let (a, b, c) = (self.get(*a), self.get(*b), self.get(*c));
                (0..n).map(|i| eval::fma(ty.dtype, a[i], b[i], c[i])).collect()
            }
            Inst::Cmp(op, a, b) => self.map2(*a, *b, |x, y| Scalar::Int(eval::cmp(*op, x, y).into())),
            Inst::Select(m, a, b) => {
                let (m, a, b) = (self.get(*m), self.get(*a), self.get(*b));
                (0..n).map(|i| if m[i].as_int() != 0 { a[i] } else { b[i] }).collect()
            }
            Inst::Convert(mode, a) => {
                let from = self.f.ty(*a).dtype;
                self.get(*a).iter().map(|x| eval::convert(ty.dtype, *mode, from, *x)).collect()
            }
            Inst::Bitcast(a) => {
                let from = self.f.ty(*a).dtype;
                self.get(*a).iter().map(|x| eval::bitcast(ty.dtype, from, *x)).collect()
            }
            Inst::Load(a) => {
                let mut x = vec![Scalar::zero(ty.dtype); n];
                for (i, at) in self.places(a, ty) {
                    x[i] = self.read(a.mem, at)?;
                }
                x
            }
            Inst::Gather { mem, index, mask } => {
                let at = self.get(*index).to_vec();
                let mask = mask.map(|m| self.get(m).to_vec());
                let mut x = vec![Scalar::zero(ty.dtype); n];
                for i in 0..n {
                    if mask.as_ref().is_none_or(|m| m[i].as_int() != 0) {
                        x[i] = self.read(*mem, at[i].as_int() as i64)?;
                    }
                }
                x
            }
            Inst::ReduceCols(m, a) => {
                let cols = self.f.ty(*a).cols as usize;
                self.get(*a).chunks(cols).map(|row| fold(*m, ty.dtype, row.iter().copied())).collect()
            }
            Inst::ReduceRows(m, a) => {
                let x = self.get(*a);
                (0..cols).map(|c| fold(*m, ty.dtype, x.iter().copied().skip(c).step_by(cols))).collect()
            }
            Inst::Extract(a, r, c) => {
                vec![self.get(*a)[(r * self.f.ty(*a).cols + c) as usize]]
            }
            other => return Err(format!("{other:?} in tile form")),
        })
    }
}

fn fold(m: Monoid, dtype: DType, xs: impl Iterator<Item = Scalar>) -> Scalar {
    xs.fold(m.identity(dtype), |a, b| eval::combine(m, dtype, a, b))
}
