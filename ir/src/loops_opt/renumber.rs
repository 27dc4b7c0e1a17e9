//! Dense numbering of values in the order in which the text form defines them.

use crate::loops::{Addr, Block, Func, Inst, PipeOp, Stmt, Stride, Ty, Val};

/// Numbers the values of `func` 0, 1, 2, ... in order of definition and forgets types of values that
/// nothing defines.
pub fn renumber(func: &mut Func) {
    let mut r = Renumber { new: vec![None; func.types.len()], types: Vec::new(), old: &func.types };
    let mut body = std::mem::take(&mut func.body);
    r.block(&mut body);
    let types = r.types;
    func.body = body;
    func.types = types;
}

struct Renumber<'a> {
    new: Vec<Option<Val>>,
    old: &'a [Ty],
    types: Vec<Ty>,
}

impl Renumber<'_> {
    fn define(&mut self, v: &mut Val) {
        let new = Val(self.types.len() as u32);
        self.types.push(self.old[v.0 as usize]);
        self.new[v.0 as usize] = Some(new);
        *v = new;
    }
    /// A use; what is not defined before it gets a number that is not taken.
    fn map(&mut self, v: &mut Val) {
        match self.new[v.0 as usize] {
            Some(new) => *v = new,
            None => self.define(v),
        }
    }
    fn addr(&mut self, a: &mut Addr) {
        self.map(&mut a.index);
        for s in [&mut a.row, &mut a.col] {
            if let Stride::Val(v) = s {
                self.map(v);
            }
        }
        for v in [&mut a.cols_valid, &mut a.rows_valid].into_iter().flatten() {
            self.map(v);
        }
    }
    fn block(&mut self, b: &mut Block) {
        b.stmts.iter_mut().for_each(|s| self.stmt(s));
        b.yields.iter_mut().for_each(|v| self.map(v));
    }
    fn stmt(&mut self, s: &mut Stmt) {
        match s {
            Stmt::Let { val, inst } => {
                self.inst(inst);
                self.define(val);
            }
            Stmt::For { var, lo, hi, carries, results, body, .. } => {
                self.map(lo);
                self.map(hi);
                carries.iter_mut().for_each(|c| self.map(&mut c.1));
                self.define(var);
                carries.iter_mut().for_each(|c| self.define(&mut c.0));
                self.block(body);
                results.iter_mut().for_each(|v| self.define(v));
            }
            Stmt::While { carries, results, cond, body } => {
                carries.iter_mut().for_each(|c| self.map(&mut c.1));
                carries.iter_mut().for_each(|c| self.define(&mut c.0));
                self.block(cond);
                self.block(body);
                results.iter_mut().for_each(|v| self.define(v));
            }
            Stmt::If { cond, then, otherwise, results } => {
                self.map(cond);
                self.block(then);
                self.block(otherwise);
                results.iter_mut().for_each(|v| self.define(v));
            }
            Stmt::Store { addr, value } => {
                self.addr(addr);
                self.map(value);
            }
            Stmt::Scatter { index, value, mask, .. } => {
                self.map(index);
                self.map(value);
                mask.iter_mut().for_each(|m| self.map(m));
            }
            Stmt::Prefetch { index, .. } => self.map(index),
            Stmt::Barrier(_) | Stmt::Pipe(PipeOp::Commit | PipeOp::Wait { .. }) => {}
            Stmt::Pipe(PipeOp::Copy { from, to, .. }) => {
                self.addr(from);
                self.addr(to);
            }
            Stmt::Check { ok, value, limit, .. } => [ok, value, limit].into_iter().for_each(|v| self.map(v)),
        }
    }
    fn inst(&mut self, inst: &mut Inst) {
        match inst {
            Inst::Const(_) | Inst::Sym(_) | Inst::Iota { .. } => {}
            Inst::Splat(a)
            | Inst::Unary(_, a)
            | Inst::Convert(_, a)
            | Inst::Bitcast(a)
            | Inst::ReduceCols(_, a)
            | Inst::ReduceRows(_, a)
            | Inst::Extract(a, ..) => self.map(a),
            Inst::Binary(_, a, b) | Inst::Cmp(_, a, b) | Inst::Shuffle(a, b, _) => {
                self.map(a);
                self.map(b);
            }
            Inst::Fma(a, b, c) | Inst::Select(a, b, c) | Inst::TileOp { acc: a, a: b, b: c, .. } => {
                self.map(a);
                self.map(b);
                self.map(c);
            }
            Inst::Insert { vec, scalar, .. } => {
                self.map(vec);
                self.map(scalar);
            }
            Inst::Load(addr) => self.addr(addr),
            Inst::Gather { index, mask, .. } => {
                self.map(index);
                mask.iter_mut().for_each(|m| self.map(m));
            }
        }
    }
}
