//! The builder of loop IR: computes types, folds constants, shares equal values and hoists.
//!
//! Statements go into the innermost open block. A *pure* instruction goes to the end of the outermost
//! open block in which its operands are all defined, that is in front of the loop being built: common
//! subexpressions and loop invariants are gone by construction, which matters because the emitters
//! run no optimiser. Tiles and expensive scalars do not leave an `if` (they would be computed in vain).
//!
//! Loads stay where they are written. An equal load is reused while nothing was stored to the same memory
//! in between; from outside of a loop only where the memory is never written by this function.
//! Distinct buffers are taken not to overlap.
//!
//! Operands of element-wise instructions broadcast: 1 x 1, R x 1 and 1 x C operands get their `splat`.

mod blocks;
mod dims;
mod hash;
#[cfg(test)]
mod tests;

use crate::dtype::Scalar;
use crate::loops::{
    Addr, Block, BufParam, Func, Inst, Launch, Level, LocalArray, Mem, PipeOp, Space, Stmt, Stride, Ty, Val,
};
use crate::loops_opt::fold;
use crate::prim::{BinaryOp, CmpOp, ConvertMode, Monoid, UnaryOp};
use crate::{Atom, DType, Dim, OriginId, Sym};
use hash::FastHasher;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

type Table = HashMap<(Inst, Ty), Val, BuildHasherDefault<FastHasher>>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ScopeKind {
    Root,
    Loop,
    If,
}

/// What becomes of the block when it is closed.
enum Pending {
    Root,
    For { var: Val, lo: Val, hi: Val, step: i64, carries: Vec<(Val, Val)>, parallel: Option<Level> },
    WhileCond { carries: Vec<(Val, Val)> },
    WhileBody { carries: Vec<(Val, Val)>, cond: Block },
    Then { cond: Val },
    Else { cond: Val, then: Block },
}

struct Scope {
    kind: ScopeKind,
    stmts: Vec<Stmt>,
    pure_values: Table,
    loads: Table,
    pending: Pending,
}

/// What the builder knows about a value.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Number of the open block that defines it.
    depth: u32,
    /// Provably not negative (indices).
    nonneg: bool,
    def: Def,
}

/// Definition of a value as far as folding needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Def {
    Const(Scalar),
    Splat(Val),
    /// Integer sum of a value and a constant.
    AddConst(Val, i128),
    Other,
}

/// Builds one [`Func`]; see the module's documentation.
pub struct LoopBuilder {
    func: Func,
    scopes: Vec<Scope>,
    known: Vec<Known>,
    /// How many blocks were open where a loop of one iteration began, of which there is nothing but its body.
    once: Vec<usize>,
}

impl LoopBuilder {
    pub fn new(name: impl Into<String>) -> LoopBuilder {
        LoopBuilder {
            func: Func { name: name.into(), ..Func::default() },
            scopes: vec![Scope::new(ScopeKind::Root, Pending::Root)],
            known: Vec::new(),
            once: Vec::new(),
        }
    }

    // ---- parameters -------------------------------------------------------------------------

    /// Adds an operand. `align`: alignment of its base in bytes.
    pub fn buf(&mut self, name: impl Into<String>, dtype: DType, writable: bool, align: u32) -> Mem {
        self.func.bufs.push(BufParam { name: name.into(), dtype, writable, align });
        Mem::Buf(self.func.bufs.len() as u32 - 1)
    }
    /// Adds a local array of `elems` elements.
    pub fn local(&mut self, dtype: DType, elems: Dim, space: Space) -> Mem {
        // code that lays out locals needs their sizes at run time
        elems.visit_atoms(&mut |a| {
            if let Atom::Sym(s) = a {
                self.sym_param(*s);
            }
        });
        self.func.locals.push(LocalArray { dtype, elems, space });
        Mem::Local(self.func.locals.len() as u32 - 1)
    }
    /// The run-time value of a symbol; becomes a parameter on first use.
    pub fn sym(&mut self, s: Sym) -> Val {
        let i = self.sym_param(s);
        self.inst(Inst::Sym(i), Ty::INDEX)
    }
    /// Position of the parameter of a symbol, added where it is missing.
    pub fn sym_param(&mut self, s: Sym) -> u32 {
        let known = self.func.syms.iter().position(|x| *x == s);
        known.unwrap_or_else(|| {
            self.func.syms.push(s);
            self.func.syms.len() - 1
        }) as u32
    }
    /// Remembers where the function came from; the id is what [`Stmt::Check`] reports.
    pub fn origin(&mut self, origin: OriginId) {
        if !self.func.origins.contains(&origin) {
            self.func.origins.push(origin);
        }
    }

    pub fn ty(&self, v: Val) -> Ty {
        self.func.ty(v)
    }
    pub fn dtype(&self, v: Val) -> DType {
        self.func.ty(v).dtype
    }
    /// The function as built so far (without the open blocks).
    pub fn func(&self) -> &Func {
        &self.func
    }
    pub fn mem_dtype(&self, mem: Mem) -> DType {
        match mem {
            Mem::Buf(i) => self.func.bufs[i as usize].dtype,
            Mem::Local(i) => self.func.locals[i as usize].dtype,
        }
    }
    /// How the value is defined, where folding can use it.
    pub fn def(&self, v: Val) -> Def {
        self.known[v.0 as usize].def
    }
    /// The constant that the value is, if it is one.
    pub fn as_const(&self, v: Val) -> Option<Scalar> {
        match self.def(v) {
            Def::Const(s) => Some(s),
            _ => None,
        }
    }
    /// The integer constant that the value is, if it is one.
    pub fn as_index(&self, v: Val) -> Option<i64> {
        match self.as_const(v) {
            Some(Scalar::Int(i)) => i64::try_from(i).ok(),
            _ => None,
        }
    }
    /// Promises that an integer value is not negative: divisions of it become cheaper.
    pub fn assume_nonneg(&mut self, v: Val) {
        self.known[v.0 as usize].nonneg = true;
    }

    // ---- values -----------------------------------------------------------------------------

    /// A value with every element `s`.
    pub fn constant(&mut self, ty: Ty, s: Scalar) -> Val {
        self.inst(Inst::Const(fold::normalise(ty.dtype, s)), ty)
    }
    /// An i64 scalar.
    pub fn index(&mut self, i: i64) -> Val {
        self.constant(Ty::INDEX, Scalar::Int(i.into()))
    }
    pub fn float(&mut self, ty: Ty, x: f64) -> Val {
        self.constant(ty, Scalar::Float(x))
    }
    pub fn int(&mut self, ty: Ty, x: i128) -> Val {
        self.constant(ty, Scalar::Int(x))
    }
    pub fn bool(&mut self, ty: Ty, x: bool) -> Val {
        self.constant(ty.with(DType::Bool), Scalar::Int(x.into()))
    }
    pub fn zero(&mut self, ty: Ty) -> Val {
        self.constant(ty, Scalar::zero(ty.dtype))
    }
    pub fn iota(&mut self, ty: Ty, along_cols: bool) -> Val {
        if if along_cols { ty.cols } else { ty.rows } == 1 {
            return self.zero(ty);
        }
        self.inst(Inst::Iota { along_cols }, ty)
    }
    /// `v` broadcast to `rows x cols`.
    pub fn splat(&mut self, v: Val, rows: u32, cols: u32) -> Val {
        let ty = Ty::tile(self.dtype(v), rows, cols);
        self.inst(Inst::Splat(v), ty)
    }
    /// Broadcasts both operands to their common shape.
    fn unify(&mut self, vals: &mut [Val]) -> (u32, u32) {
        let (mut rows, mut cols) = (1, 1);
        for v in vals.iter() {
            let t = self.ty(*v);
            (rows, cols) = (rows.max(t.rows), cols.max(t.cols));
        }
        for v in vals.iter_mut() {
            let t = self.ty(*v);
            if (t.rows, t.cols) != (rows, cols) {
                *v = self.splat(*v, rows, cols);
            }
        }
        (rows, cols)
    }
    pub fn unary(&mut self, op: UnaryOp, v: Val) -> Val {
        self.inst(Inst::Unary(op, v), self.ty(v))
    }
    pub fn binary(&mut self, op: BinaryOp, a: Val, b: Val) -> Val {
        let mut v = [a, b];
        let (rows, cols) = self.unify(&mut v);
        let ty = Ty::tile(self.dtype(a), rows, cols);
        self.inst(Inst::Binary(op, v[0], v[1]), ty)
    }
    pub fn add(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Add, a, b)
    }
    pub fn sub(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Sub, a, b)
    }
    pub fn mul(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Mul, a, b)
    }
    pub fn div(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Div, a, b)
    }
    pub fn rem(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Rem, a, b)
    }
    pub fn min(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Min, a, b)
    }
    pub fn max(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Max, a, b)
    }
    pub fn and(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::And, a, b)
    }
    pub fn or(&mut self, a: Val, b: Val) -> Val {
        self.binary(BinaryOp::Or, a, b)
    }
    pub fn not(&mut self, v: Val) -> Val {
        self.unary(UnaryOp::Not, v)
    }
    /// a * b + c.
    pub fn fma(&mut self, a: Val, b: Val, c: Val) -> Val {
        let mut v = [a, b, c];
        let (rows, cols) = self.unify(&mut v);
        let ty = Ty::tile(self.dtype(c), rows, cols);
        self.inst(Inst::Fma(v[0], v[1], v[2]), ty)
    }
    pub fn cmp(&mut self, op: CmpOp, a: Val, b: Val) -> Val {
        let mut v = [a, b];
        let (rows, cols) = self.unify(&mut v);
        self.inst(Inst::Cmp(op, v[0], v[1]), Ty::tile(DType::Bool, rows, cols))
    }
    pub fn select(&mut self, mask: Val, then: Val, otherwise: Val) -> Val {
        let mut v = [mask, then, otherwise];
        let (rows, cols) = self.unify(&mut v);
        let ty = Ty::tile(self.dtype(then), rows, cols);
        self.inst(Inst::Select(v[0], v[1], v[2]), ty)
    }
    pub fn convert(&mut self, to: DType, mode: ConvertMode, v: Val) -> Val {
        self.inst(Inst::Convert(mode, v), self.ty(v).with(to))
    }
    /// Same bits; `to` has the same size.
    pub fn bitcast(&mut self, to: DType, v: Val) -> Val {
        self.inst(Inst::Bitcast(v), self.ty(v).with(to))
    }
    pub fn reduce_cols(&mut self, monoid: Monoid, v: Val) -> Val {
        let t = self.ty(v);
        self.inst(Inst::ReduceCols(monoid, v), Ty { cols: 1, ..t })
    }
    pub fn reduce_rows(&mut self, monoid: Monoid, v: Val) -> Val {
        let t = self.ty(v);
        self.inst(Inst::ReduceRows(monoid, v), Ty { rows: 1, ..t })
    }
    pub fn extract(&mut self, v: Val, row: u32, col: u32) -> Val {
        let ty = Ty::scalar(self.dtype(v));
        self.inst(Inst::Extract(v, row, col), ty)
    }
    pub fn insert(&mut self, vec: Val, scalar: Val, lane: u32) -> Val {
        self.inst(Inst::Insert { vec, scalar, lane }, self.ty(vec))
    }
    pub fn shuffle(&mut self, a: Val, b: Val, lanes: Vec<u32>) -> Val {
        let ty = Ty { cols: lanes.len() as u32, ..self.ty(a) };
        self.inst(Inst::Shuffle(a, b, lanes), ty)
    }
    pub fn tile_op(&mut self, name: impl Into<String>, acc: Val, a: Val, b: Val) -> Val {
        self.inst(Inst::TileOp { name: name.into(), acc, a, b }, self.ty(acc))
    }

    // ---- memory -----------------------------------------------------------------------------

    /// The address of one element, or of a row of neighbouring ones: `mem[index + disp]`.
    pub fn addr(&self, mem: Mem, index: Val, disp: i64) -> Addr {
        Addr {
            mem,
            index,
            disp,
            row: Stride::Const(0),
            col: Stride::Const(1),
            cols_valid: None,
            rows_valid: None,
            align: self.mem_dtype(mem).bytes() as u32,
        }
    }
    /// Reads `rows x cols` elements in the element type of the memory.
    pub fn load(&mut self, addr: Addr, rows: u32, cols: u32) -> Val {
        self.load_as(addr, Ty::tile(self.mem_dtype(addr.mem), rows, cols))
    }
    /// Reads with the conversions of machine form (see `codegen::legalise`).
    pub fn load_as(&mut self, addr: Addr, ty: Ty) -> Val {
        let addr = self.canonical_addr(addr, ty);
        self.inst(Inst::Load(addr), ty)
    }
    pub fn gather(&mut self, mem: Mem, index: Val, mask: Option<Val>) -> Val {
        let ty = self.ty(index).with(self.mem_dtype(mem));
        self.gather_as(mem, index, mask, ty)
    }
    pub fn gather_as(&mut self, mem: Mem, index: Val, mask: Option<Val>, ty: Ty) -> Val {
        self.inst(Inst::Gather { mem, index, mask }, ty)
    }
    pub fn store(&mut self, addr: Addr, value: Val) {
        let addr = self.canonical_addr(addr, self.ty(value));
        self.forget_loads(addr.mem);
        self.push(Stmt::Store { addr, value });
    }
    pub fn scatter(&mut self, mem: Mem, index: Val, value: Val, mask: Option<Val>) {
        self.forget_loads(mem);
        self.push(Stmt::Scatter { mem, index, value, mask });
    }
    /// Asks for the element at `index` ahead of its use.
    pub fn prefetch(&mut self, mem: Mem, index: Val) {
        self.push(Stmt::Prefetch { mem, index });
    }
    pub fn barrier(&mut self, level: Level) {
        for mem in (0..self.func.locals.len() as u32).map(Mem::Local) {
            self.forget_loads(mem);
        }
        self.push(Stmt::Barrier(level));
    }
    pub fn pipe(&mut self, op: PipeOp) {
        if let PipeOp::Copy { to, .. } = &op {
            self.forget_loads(to.mem);
        }
        self.push(Stmt::Pipe(op));
    }
    /// Reports (origin, value, limit) where `ok` is false.
    pub fn check(&mut self, ok: Val, origin: OriginId, value: Val, limit: Val) {
        if self.as_const(ok) == Some(Scalar::Int(1)) {
            return;
        }
        self.origin(origin);
        self.push(Stmt::Check { ok, origin, value, limit });
    }

    /// Equal accesses get equal addresses: constants live in `disp`, strides that cannot matter are 0.
    fn canonical_addr(&mut self, mut a: Addr, ty: Ty) -> Addr {
        match self.def(a.index) {
            Def::Const(Scalar::Int(c)) if c != 0 => {
                if let Some(d) = i64::try_from(c).ok().and_then(|c| a.disp.checked_add(c)) {
                    a.disp = d;
                    a.index = self.index(0);
                }
            }
            Def::AddConst(v, c) => {
                if let Some(d) = i64::try_from(c).ok().and_then(|c| a.disp.checked_add(c)) {
                    a.disp = d;
                    a.index = v;
                }
            }
            _ => {}
        }
        for (stride, n) in [(&mut a.row, ty.rows), (&mut a.col, ty.cols)] {
            match *stride {
                _ if n == 1 => *stride = Stride::Const(0),
                Stride::Val(v) => {
                    if let Some(c) = self.as_index(v) {
                        *stride = Stride::Const(c);
                    }
                }
                Stride::Const(_) => {}
            }
        }
        for (valid, size) in [(&mut a.rows_valid, ty.rows), (&mut a.cols_valid, ty.cols)] {
            if valid.is_some_and(|n| self.as_index(n).is_some_and(|n| n >= i64::from(size))) {
                *valid = None;
            }
        }
        a
    }

    fn forget_loads(&mut self, mem: Mem) {
        for scope in &mut self.scopes {
            scope.loads.retain(|(inst, _), _| match inst {
                Inst::Load(a) => a.mem != mem,
                Inst::Gather { mem: m, .. } => *m != mem,
                _ => true,
            });
        }
    }

    // ---- placement --------------------------------------------------------------------------

    /// The value of `inst`: folded, shared with an equal one in scope, or a new one.
    pub fn inst(&mut self, inst: Inst, ty: Ty) -> Val {
        match fold::fold(self, &inst, ty) {
            fold::Folded::Same(v) => return v,
            fold::Folded::Const(s) => return self.place(Inst::Const(s), ty),
            fold::Folded::Not => {}
        }
        self.place(inst, ty)
    }

    fn place(&mut self, inst: Inst, ty: Ty) -> Val {
        let top = self.scopes.len() - 1;
        if let Inst::Load(Addr { mem, .. }) | Inst::Gather { mem, .. } = inst {
            let read_only = matches!(mem, Mem::Buf(i) if !self.func.bufs[i as usize].writable);
            let key = (inst, ty);
            for scope in self.scopes.iter().rev() {
                if let Some(v) = scope.loads.get(&key) {
                    return *v;
                }
                if scope.kind == ScopeKind::Loop && !read_only {
                    break;
                }
            }
            let val = self.define(top, key.0.clone(), ty);
            self.scopes[top].loads.insert(key, val);
            return val;
        }
        let mut depth = 0;
        inst.for_each_operand(&mut |v| depth = depth.max(self.depth(v) as usize));
        let outer = depth;
        if !ty.is_scalar() && !matches!(inst, Inst::Const(_) | Inst::Iota { .. }) || is_expensive(&inst) {
            let inner_if = self.scopes.iter().rposition(|s| s.kind == ScopeKind::If);
            depth = depth.max(inner_if.unwrap_or(0));
        }
        let key = (inst, ty);
        if let Some(v) = self.scopes[outer..=depth].iter().find_map(|s| s.pure_values.get(&key)) {
            return *v;
        }
        let val = self.define(depth, key.0.clone(), ty);
        self.scopes[depth].pure_values.insert(key, val);
        val
    }

    fn define(&mut self, depth: usize, inst: Inst, ty: Ty) -> Val {
        let def = match inst {
            Inst::Const(s) => Def::Const(s),
            Inst::Splat(v) => Def::Splat(v),
            Inst::Binary(BinaryOp::Add, a, b) if ty.dtype.is_int() => match self.as_const(b) {
                Some(Scalar::Int(c)) => Def::AddConst(a, c),
                _ => Def::Other,
            },
            _ => Def::Other,
        };
        let nonneg = match &inst {
            Inst::Const(Scalar::Int(c)) => *c >= 0,
            Inst::Iota { .. } => true,
            Inst::Splat(v) | Inst::Extract(v, ..) => self.nonneg(*v),
            Inst::Binary(
                BinaryOp::Add | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Min | BinaryOp::Rem,
                a,
                b,
            ) => self.nonneg(*a) && self.nonneg(*b),
            Inst::Binary(BinaryOp::Shr, a, _) => self.nonneg(*a),
            Inst::Binary(BinaryOp::Max | BinaryOp::And, a, b) => self.nonneg(*a) || self.nonneg(*b),
            Inst::Select(_, a, b) => self.nonneg(*a) && self.nonneg(*b),
            _ => false,
        };
        let val = self.new_val(ty, depth as u32, nonneg, def);
        self.scopes[depth].stmts.push(Stmt::Let { val, inst });
        val
    }

    fn new_val(&mut self, ty: Ty, depth: u32, nonneg: bool, def: Def) -> Val {
        self.known.push(Known { depth, nonneg, def });
        self.func.new_val(ty)
    }

    fn push(&mut self, stmt: Stmt) {
        let top = self.scopes.len() - 1;
        self.scopes[top].stmts.push(stmt);
    }

    /// Ends the function. Statements whose values nobody uses are dropped.
    ///
    /// # Panics
    /// Where a block is still open.
    pub fn finish(mut self, launch: Launch) -> Func {
        assert!(self.scopes.len() == 1, "finish: {} blocks are still open", self.scopes.len() - 1);
        let (body, _) = self.close(&[]);
        self.func.body = body;
        self.func.launch = launch;
        crate::loops_opt::drop_dead(&mut self.func);
        crate::loops_opt::renumber(&mut self.func);
        self.func
    }
}

impl Scope {
    fn new(kind: ScopeKind, pending: Pending) -> Scope {
        Scope { kind, stmts: Vec::new(), pure_values: Table::default(), loads: Table::default(), pending }
    }
}

/// Scalars that are not worth computing in vain.
fn is_expensive(inst: &Inst) -> bool {
    match inst {
        Inst::Unary(op, _) => !matches!(
            op,
            UnaryOp::Neg
                | UnaryOp::Abs
                | UnaryOp::Floor
                | UnaryOp::Ceil
                | UnaryOp::Trunc
                | UnaryOp::RoundEven
                | UnaryOp::Not
        ),
        Inst::Binary(op, ..) => matches!(op, BinaryOp::Pow | BinaryOp::Atan2),
        Inst::TileOp { .. } => true,
        _ => false,
    }
}
