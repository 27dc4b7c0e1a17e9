//! Verifier of loop IR.
//!
//! A function is well formed when
//!
//! **Tables.** Symbols are distinct; sizes of local arrays and of the launch mention only them. Alignments are powers
//! of two. Every tile has between 1 and [`MAX_TILE`] elements, none of strings.
//!
//! **SSA.** Every value is defined once, and used only after its definition in the same or an enclosing
//! block. A block of a `for` or `while` yields what is carried, in number and type; both blocks of an `if` yield its
//! results; the condition of a `while` yields one bool scalar. The body of the function yields nothing.
//!
//! **Types.** Operands of element-wise instructions have one shape; broadcasts are explicit (`splat`: 1 x 1, R x 1 or
//! 1 x C to R x C). Arithmetic keeps its operands' element type, comparisons and masks are bool. Math functions,
//! `atan2` and float remainders take floats, bit operations and shifts integers (bit operations bool too).
//! Indices, strides, bounds and valid rows and columns are i64 scalars. `load`, `gather`, `store` and `scatter` have the element type
//! of their memory (machine form: see below); nothing is stored to a buffer that is not writable.
//!
//! **Parallel levels.** Nested parallel loops go from outer to inner levels, each level once, and carry nothing. Where the only
//! level is `thread` (a CPU), there is exactly one such loop, it counts 0, 1, 2, ..., and beside it, in front,
//! there are only definitions without memory access. The same holds of a loop of `grid`. Barriers and pipes are collectives:
//! they do not stand inside of an `if` or `while`, whose conditions may differ between participants.
//!
//! Products of matrices (`tile_op` of the names in [`Dot::matrix_op`]) add to R x C the product of R x K and K x C words.
//!
//! **Machine form.** Values are scalars, vectors 1 x L with one L, or matrices of 2 to 16 rows and as many words, which are
//! constants, loads or products, carried and stored; element types are i32, u32, i64, u64, f32, f64 and bool; there
//! are no math functions, no `reduce_rows`, no `fma` of integers; vector accesses have column stride 1, or 4 for GPUs. Loads and stores may widen
//! and narrow as `codegen::legalise` lists.

use crate::dtype::Scalar;
use crate::kernel::Dot;
use crate::loops::{Addr, Block, Form, Func, Inst, Level, Mem, PipeOp, Stmt, Stride, Ty, Val};
use crate::prim::{BinaryOp, UnaryOp};
use crate::target::MATRIX_SIZE;
use crate::text::loops::stmt_line;
use crate::{Atom, DType, Dim, IrError, Result};
use std::collections::BTreeSet;

/// Elements of the largest tile.
pub const MAX_TILE: u64 = 1 << 16;
/// Blocks nest at most this deep.
const MAX_DEPTH: usize = 64;

/// Checks a function in either form; the error shows the guilty statement as printed.
pub fn verify(func: &Func) -> Result<()> {
    let mut v = Verifier {
        func,
        defined: vec![Defined::Not; func.types.len()],
        lanes: None,
        levels: Vec::new(),
        divergent: 0,
        depth: 0,
        place: func.name.clone(),
    };
    v.tables()?;
    v.launch_form()?;
    v.block(&func.body)?;
    if !func.body.yields.is_empty() {
        return v.fail("the body of a function yields nothing");
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Defined {
    Not,
    InScope,
    /// Its block has ended.
    Gone,
}

struct Verifier<'a> {
    func: &'a Func,
    defined: Vec<Defined>,
    /// Lanes of the vectors seen so far (machine form).
    lanes: Option<u32>,
    /// Parallel levels of the enclosing loops.
    levels: Vec<Level>,
    /// Enclosing `if`s and `while`s.
    divergent: usize,
    depth: usize,
    /// The statement that is being checked.
    place: String,
}

impl<'a> Verifier<'a> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(IrError::verify(self.place.trim(), message))
    }
    fn require(&self, ok: bool, message: impl FnOnce() -> String) -> Result<()> {
        if ok { Ok(()) } else { self.fail(message()) }
    }
    fn machine(&self) -> bool {
        self.func.form == Form::Machine
    }

    // ---- tables -----------------------------------------------------------------------------

    fn tables(&mut self) -> Result<()> {
        let f = self.func;
        let syms: BTreeSet<_> = f.syms.iter().collect();
        self.require(syms.len() == f.syms.len(), || "a symbol is a parameter twice".into())?;
        for b in &f.bufs {
            self.require(b.dtype != DType::String, || format!("buffer {} holds strings", b.name))?;
            self.require(b.align.is_power_of_two(), || format!("alignment {} of {}", b.align, b.name))?;
        }
        let dims = f.locals.iter().map(|l| &l.elems).chain(&f.launch.grid);
        for d in dims.chain([&f.launch.trip, &f.launch.shared_bytes]) {
            self.size(d)?;
        }
        for l in &f.locals {
            self.require(l.dtype != DType::String, || "a local array of strings".into())?;
        }
        for (i, t) in f.types.iter().enumerate() {
            let elems = u64::from(t.rows) * u64::from(t.cols);
            self.require((1..=MAX_TILE).contains(&elems) && t.dtype != DType::String, || {
                format!("%{i} has type {t}")
            })?;
        }
        Ok(())
    }

    fn size(&self, d: &Dim) -> Result<()> {
        let mut bad = None;
        d.visit_atoms(&mut |a| match a {
            Atom::Sym(s) if !self.func.syms.contains(s) => bad = Some(format!("s{} is no parameter", s.0)),
            Atom::Var(_) => bad = Some("an index variable".into()),
            _ => {}
        });
        match bad {
            Some(b) => self.fail(format!("size {d}: {b}")),
            None => Ok(()),
        }
    }

    /// What the top level may hold where the function is for a CPU.
    fn launch_form(&self) -> Result<()> {
        let mut loops = 0;
        let mut others = false;
        for s in &self.func.body.stmts {
            match s {
                Stmt::For { parallel: Some(Level::Thread | Level::Grid), .. } => loops += 1,
                Stmt::For { parallel: Some(_), .. } => return Ok(()),
                Stmt::Let { inst: Inst::Load(_) | Inst::Gather { .. }, .. } => others = true,
                Stmt::Let { .. } => {}
                _ => others = true,
            }
        }
        match (loops, others) {
            (1, true) => self.fail("statements beside the parallel loop"),
            (2.., _) => self.fail("more than one parallel loop"),
            // a function without a parallel loop is a test's or a fragment
            _ => Ok(()),
        }
    }

    // ---- values -----------------------------------------------------------------------------

    fn ty(&self, v: Val) -> Result<Ty> {
        match self.defined.get(v.0 as usize) {
            Some(Defined::InScope) => Ok(self.func.ty(v)),
            Some(Defined::Not) => self.fail(format!("{v} is used before it is defined")),
            Some(Defined::Gone) => self.fail(format!("{v} is used outside of its block")),
            None => self.fail(format!("{v} does not exist")),
        }
    }
    fn define(&mut self, v: Val, scope: &mut Vec<Val>) -> Result<()> {
        match self.defined.get_mut(v.0 as usize) {
            Some(d @ Defined::Not) => *d = Defined::InScope,
            Some(_) => return self.fail(format!("{v} is defined twice")),
            None => return self.fail(format!("{v} does not exist")),
        }
        scope.push(v);
        if self.machine() {
            let t = self.func.ty(v);
            let known = matches!(
                t.dtype,
                DType::I32 | DType::U32 | DType::I64 | DType::U64 | DType::F32 | DType::F64 | DType::Bool
            );
            let matrix = matches!(t.dtype, DType::I32 | DType::F32)
                && [t.rows, t.cols].iter().all(|n| (2..=MATRIX_SIZE).contains(n));
            self.require(known && (t.rows == 1 || matrix), || format!("{v} of type {t} in machine form"))?;
            if t.rows == 1 && t.cols > 1 {
                let lanes = *self.lanes.get_or_insert(t.cols);
                self.require(lanes == t.cols, || format!("vectors of {lanes} and of {} lanes", t.cols))?;
            }
        }
        Ok(())
    }
    fn expect(&self, v: Val, ty: Ty) -> Result<()> {
        let t = self.ty(v)?;
        self.require(t == ty, || format!("{v} has type {t}, expected {ty}"))
    }
    fn index(&self, v: Val) -> Result<()> {
        self.expect(v, Ty::INDEX)
    }

    // ---- statements -------------------------------------------------------------------------

    fn block(&mut self, b: &'a Block) -> Result<()> {
        let mut scope = Vec::new();
        self.open_block(b, &mut scope)?;
        self.close(scope);
        Ok(())
    }
    /// Checks a block whose first values are already in `scope`; it stays open.
    fn open_block(&mut self, b: &'a Block, scope: &mut Vec<Val>) -> Result<()> {
        self.depth += 1;
        self.require(self.depth <= MAX_DEPTH, || "blocks nest too deeply".into())?;
        for s in &b.stmts {
            self.stmt(s, scope).map_err(|e| match e {
                IrError::Verify { place, message } if place.is_empty() => {
                    IrError::verify(stmt_line(self.func, s).trim(), message)
                }
                e => e,
            })?;
        }
        for v in &b.yields {
            self.place = "yield".into();
            self.ty(*v)?;
        }
        self.depth -= 1;
        Ok(())
    }
    fn close(&mut self, scope: Vec<Val>) {
        for v in scope {
            self.defined[v.0 as usize] = Defined::Gone;
        }
    }

    fn yields(&self, b: &Block, like: &[Val], what: &str) -> Result<()> {
        let same = b.yields.len() == like.len()
            && b.yields.iter().zip(like).all(|(a, b)| self.func.ty(*a) == self.func.ty(*b));
        self.require(same, || format!("{what} does not yield what is carried"))
    }

    fn stmt(&mut self, s: &'a Stmt, scope: &mut Vec<Val>) -> Result<()> {
        // the line is printed only where something is wrong with it
        self.place = String::new();
        match s {
            Stmt::Let { val, inst } => {
                let ty = self.func.types.get(val.0 as usize).copied();
                let Some(ty) = ty else { return self.fail(format!("{val} does not exist")) };
                let register = matches!(inst, Inst::Const(_) | Inst::Load(_) | Inst::TileOp { .. });
                self.require(!self.machine() || ty.rows == 1 || register, || {
                    format!("{val} of type {ty} in machine form")
                })?;
                self.inst(ty, inst)?;
                self.define(*val, scope)
            }
            Stmt::For { var, lo, hi, step, carries, results, body, parallel } => {
                self.index(*lo)?;
                self.index(*hi)?;
                self.require(*step > 0, || format!("step {step}"))?;
                self.carries(carries, results)?;
                let mut inside = Vec::new();
                self.define(*var, &mut inside)?;
                self.expect(*var, Ty::INDEX)?;
                for c in carries {
                    self.define(c.0, &mut inside)?;
                }
                if let Some(level) = parallel {
                    self.parallel(*level, *lo, *step, carries)?;
                    self.levels.push(*level);
                }
                self.open_block(body, &mut inside)?;
                if parallel.is_some() {
                    self.levels.pop();
                }
                self.place = String::new();
                self.yields(body, results, "the body")?;
                self.close(inside);
                results.iter().try_for_each(|v| self.define(*v, scope))
            }
            Stmt::While { carries, results, cond, body } => {
                self.carries(carries, results)?;
                let mut inside = Vec::new();
                for c in carries {
                    self.define(c.0, &mut inside)?;
                }
                self.divergent += 1;
                let mut in_cond = Vec::new();
                self.open_block(cond, &mut in_cond)?;
                self.place = String::new();
                match cond.yields.as_slice() {
                    [c] => self.expect(*c, Ty::scalar(DType::Bool))?,
                    _ => return self.fail("the condition yields one value"),
                }
                self.close(in_cond);
                self.open_block(body, &mut inside)?;
                self.divergent -= 1;
                self.place = String::new();
                self.yields(body, results, "the body")?;
                self.close(inside);
                results.iter().try_for_each(|v| self.define(*v, scope))
            }
            Stmt::If { cond, then, otherwise, results } => {
                self.expect(*cond, Ty::scalar(DType::Bool))?;
                self.divergent += 1;
                for b in [then, otherwise] {
                    let mut inside = Vec::new();
                    self.open_block(b, &mut inside)?;
                    self.place = String::new();
                    self.yields(b, results, "a block")?;
                    self.close(inside);
                }
                self.divergent -= 1;
                results.iter().try_for_each(|v| self.define(*v, scope))
            }
            Stmt::Store { addr, value } => {
                let ty = self.ty(*value)?;
                self.addr(addr, ty)?;
                self.access(addr.mem, ty.dtype, true)
            }
            Stmt::Scatter { mem, index, value, mask } => {
                let ty = self.ty(*value)?;
                self.elements(ty, *index, *mask)?;
                self.access(*mem, ty.dtype, true)
            }
            Stmt::Prefetch { mem, index } => {
                self.mem(*mem)?;
                self.index(*index)
            }
            Stmt::Barrier(_) | Stmt::Pipe(PipeOp::Commit | PipeOp::Wait { .. }) => self.collective(),
            Stmt::Pipe(PipeOp::Copy { from, to, elems }) => {
                self.collective()?;
                let dtype = self.mem(from.mem)?;
                let ty = Ty::vector(dtype, *elems);
                self.addr(from, ty)?;
                self.addr(to, ty)?;
                self.access(to.mem, dtype, true)
            }
            Stmt::Check { ok, value, limit, .. } => {
                self.expect(*ok, Ty::scalar(DType::Bool))?;
                self.index(*value)?;
                self.index(*limit)
            }
        }
    }

    fn carries(&self, carries: &[(Val, Val)], results: &[Val]) -> Result<()> {
        self.require(carries.len() == results.len(), || {
            format!("{} carried values and {} results", carries.len(), results.len())
        })?;
        for ((inside, init), result) in carries.iter().zip(results) {
            let ty = self.ty(*init)?;
            let types = &self.func.types;
            let same = [inside, result].iter().all(|v| types.get(v.0 as usize) == Some(&ty));
            self.require(same, || format!("{inside} and {result} do not have the type {ty} of {init}"))?;
        }
        Ok(())
    }

    fn parallel(&self, level: Level, lo: Val, step: i64, carries: &[(Val, Val)]) -> Result<()> {
        self.require(carries.is_empty(), || "a parallel loop carries values".into())?;
        self.require(self.levels.last().is_none_or(|outer| *outer < level), || {
            format!("{level:?} inside of {:?}", self.levels)
        })?;
        if matches!(level, Level::Thread | Level::Grid) && self.levels.is_empty() {
            let zero = self
                .func
                .body
                .stmts
                .iter()
                .any(|s| matches!(s, Stmt::Let { val, inst: Inst::Const(Scalar::Int(0)) } if *val == lo));
            self.require(zero && step == 1, || "the parallel loop counts 0, 1, 2, ...".into())?;
            self.require(self.depth == 1, || "the parallel loop is not outermost".into())?;
        }
        Ok(())
    }

    fn collective(&self) -> Result<()> {
        self.require(self.divergent == 0, || "a collective under a condition".into())
    }

    // ---- memory -----------------------------------------------------------------------------

    fn mem(&self, mem: Mem) -> Result<DType> {
        let dtype = match mem {
            Mem::Buf(i) => self.func.bufs.get(i as usize).map(|b| b.dtype),
            Mem::Local(i) => self.func.locals.get(i as usize).map(|l| l.dtype),
        };
        dtype.map_or_else(|| self.fail(format!("no memory {mem:?}")), Ok)
    }

    fn access(&self, mem: Mem, value: DType, store: bool) -> Result<()> {
        let stored = self.mem(mem)?;
        let fits = match self.machine() {
            false => stored == value,
            true => machine_access(stored, value, store),
        };
        self.require(fits, || format!("{value} from or to memory of {stored}"))?;
        if store && let Mem::Buf(i) = mem {
            let b = &self.func.bufs[i as usize];
            self.require(b.writable, || format!("a store to the read-only buffer {}", b.name))?;
        }
        Ok(())
    }

    fn addr(&self, a: &Addr, ty: Ty) -> Result<()> {
        if self.levels.first() == Some(&Level::Grid) && self.ty(a.index)? != Ty::INDEX {
            // a place for each row of a tile, or for each lane
            let own = if self.machine() { ty } else { Ty { cols: 1, ..ty } };
            self.expect(a.index, own.with(DType::I64))?;
            self.require(a.row == Stride::Const(0), || "a row stride beside a place for each row".into())?;
            let gaps = a.col != Stride::Const(0);
            self.require(!self.machine() || !gaps, || "more than a place for each lane".into())?;
        } else {
            self.index(a.index)?;
        }
        for s in [a.row, a.col] {
            if let Stride::Val(v) = s {
                self.index(v)?;
            }
        }
        match a.cols_valid {
            Some(v) if self.machine() && self.ty(a.index)? != Ty::INDEX => {
                self.expect(v, ty.with(DType::Bool))?;
            }
            Some(v) => self.index(v)?,
            None => {}
        }
        if let Some(v) = a.rows_valid {
            self.index(v)?;
            let blocks = self.levels.first() == Some(&Level::Grid) && !self.machine();
            self.require(blocks, || "valid rows where iterations are not those of blocks".into())?;
        }
        self.require(a.align.is_power_of_two(), || format!("alignment {}", a.align))?;
        let lanes = self.ty(a.index)? != Ty::INDEX;
        let near = matches!(a.col, Stride::Const(1 | 4));
        self.require(!self.machine() || ty.cols == 1 || lanes || near, || {
            "a vector access with gaps in machine form".into()
        })
    }

    /// Index and mask of an element-wise access to values of type `ty`.
    fn elements(&self, ty: Ty, index: Val, mask: Option<Val>) -> Result<()> {
        self.expect(index, ty.with(DType::I64))?;
        mask.map_or(Ok(()), |m| self.expect(m, ty.with(DType::Bool)))
    }

    // ---- instructions -----------------------------------------------------------------------

    fn inst(&self, ty: Ty, inst: &Inst) -> Result<()> {
        let d = ty.dtype;
        let machine = self.machine();
        match inst {
            Inst::Const(s) => {
                let fits = match (s, d.int_range()) {
                    (Scalar::Int(i), Some((lo, hi))) => (lo..=hi).contains(i),
                    (Scalar::Float(_), None) => true,
                    _ => false,
                };
                self.require(fits, || format!("constant {s:?} of type {d}"))
            }
            Inst::Sym(i) => self.require((*i as usize) < self.func.syms.len() && ty == Ty::INDEX, || {
                format!("parameter {i}")
            }),
            Inst::Iota { along_cols } => {
                self.require(d.is_int(), || format!("iota of {d}"))?;
                self.require(!machine || *along_cols, || "iota of rows in machine form".into())
            }
            Inst::Splat(v) => {
                let t = self.ty(*v)?;
                let fits =
                    t.dtype == d && (t.rows == 1 || t.rows == ty.rows) && (t.cols == 1 || t.cols == ty.cols);
                self.require(fits, || format!("{t} does not broadcast to {ty}"))
            }
            Inst::Unary(op, v) => {
                self.expect(*v, ty)?;
                let native = match op {
                    UnaryOp::Not => !d.is_float(),
                    UnaryOp::Neg | UnaryOp::Abs => d != DType::Bool && (!machine || d.is_float()),
                    UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Trunc | UnaryOp::RoundEven => {
                        d != DType::Bool && (!machine || d.is_float())
                    }
                    UnaryOp::Sqrt => d.is_float(),
                    _ => d.is_float() && !machine,
                };
                self.require(native, || format!("{} of {d}", op.name()))
            }
            Inst::Binary(op, a, b) => {
                self.expect(*a, ty)?;
                self.expect(*b, ty)?;
                use BinaryOp::*;
                let fits = match op {
                    And | Or | Xor => !d.is_float(),
                    Shl | Shr => d.is_int(),
                    Min | Max => !machine || d != DType::Bool,
                    Add | Sub | Mul | Div => d != DType::Bool,
                    Rem => d.is_int() || d.is_float() && !machine,
                    Pow => d != DType::Bool && !machine,
                    Atan2 => d.is_float() && !machine,
                };
                self.require(fits, || format!("{} of {d}", op.name()))
            }
            Inst::Fma(a, b, c) => {
                [a, b, c].into_iter().try_for_each(|v| self.expect(*v, ty))?;
                let fits = d.is_float() || d.is_int() && !machine;
                self.require(fits, || format!("fma of {d}"))
            }
            Inst::Cmp(_, a, b) => {
                let t = self.ty(*a)?;
                self.expect(*b, t)?;
                self.require(ty == t.with(DType::Bool), || format!("a comparison of {t} gives no {ty}"))
            }
            Inst::Select(m, a, b) => {
                self.expect(*m, ty.with(DType::Bool))?;
                self.expect(*a, ty)?;
                self.expect(*b, ty)
            }
            Inst::Convert(_, v) => {
                let t = self.ty(*v)?;
                let fits = t.with(d) == ty && (!machine || d != DType::Bool && t.dtype != DType::Bool);
                self.require(fits, || format!("a conversion of {t} to {ty}"))
            }
            Inst::Bitcast(v) => {
                let t = self.ty(*v)?;
                let fits = t.with(d) == ty && t.dtype.bytes() == d.bytes();
                self.require(fits, || format!("a bitcast of {t} to {ty}"))
            }
            Inst::Load(addr) => {
                self.addr(addr, ty)?;
                self.access(addr.mem, d, false)
            }
            Inst::Gather { mem, index, mask } => {
                self.elements(ty, *index, *mask)?;
                self.access(*mem, d, false)
            }
            Inst::ReduceCols(_, v) => self.expect_reduced(*v, ty, |t| Ty { cols: 1, ..t }),
            Inst::ReduceRows(_, v) => {
                self.require(!machine, || "reduce_rows in machine form".into())?;
                self.expect_reduced(*v, ty, |t| Ty { rows: 1, ..t })
            }
            Inst::Extract(v, r, c) => {
                let t = self.ty(*v)?;
                let fits = *r < t.rows && *c < t.cols && ty == Ty::scalar(t.dtype);
                self.require(fits, || format!("element ({r}, {c}) of {t}"))
            }
            Inst::Insert { vec, scalar, lane } => {
                self.expect(*vec, ty)?;
                self.expect(*scalar, Ty::scalar(d))?;
                self.require(ty.rows == 1 && *lane < ty.cols, || format!("lane {lane} of {ty}"))
            }
            Inst::Shuffle(a, b, lanes) => {
                let t = self.ty(*a)?;
                self.expect(*b, t)?;
                let fits = t.rows == 1
                    && ty == Ty { cols: lanes.len() as u32, ..t }
                    && lanes.iter().all(|l| *l < 2 * t.cols);
                self.require(fits, || format!("a shuffle of {t} to {ty}"))
            }
            Inst::TileOp { name, acc, a, b } => {
                self.expect(*acc, ty)?;
                let (a, b) = (self.ty(*a)?, self.ty(*b)?);
                let shape = |t: Ty| (t.rows, t.cols);
                if let Some(dot) = Dot::of_matrix_op(name) {
                    let words = d == dot.dtype() && [a, b].iter().all(|t| t.dtype == DType::I32);
                    let fits = a.rows == ty.rows && a.cols == b.rows && b.cols == ty.cols;
                    return self
                        .require(words && fits, || format!("a product of matrices {a} and {b} as {ty}"));
                }
                self.require(shape(a) == shape(ty) && shape(b) == shape(ty), || {
                    format!("operands {a} and {b} of a tile instruction on {ty}")
                })
            }
        }
    }

    fn expect_reduced(&self, v: Val, ty: Ty, reduce: impl Fn(Ty) -> Ty) -> Result<()> {
        let t = self.ty(v)?;
        self.require(reduce(t) == ty, || format!("a reduction of {t} gives no {ty}"))
    }
}

/// Loads and stores of machine form: (memory type, register type).
fn machine_access(stored: DType, value: DType, store: bool) -> bool {
    use DType::*;
    match stored {
        I32 | U32 | I64 | U64 | F32 | F64 | Bool => stored == value,
        I8 | I16 | I4 | I2 => value == I32 || store && value == U32,
        U8 | U16 | U4 | U2 => matches!(value, I32 | U32),
        F16 => matches!(value, U32 | I32 | F32),
        _ => matches!(value, U32 | I32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::loops::parse;

    fn check(body: &str, expected: &str) {
        let text = format!("func @f tile (x: f32 align 4, y: f32 align 4 writable, s0) {{\n{body}\n}}");
        let f = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let got = verify(&f).err().map_or(String::new(), |e| e.to_string());
        assert!(got.contains(expected) && got.is_empty() == expected.is_empty(), "{text}\n{got}");
    }

    #[test]
    fn what_is_refused() {
        let zero = "%0 = const 0 : i64\n";
        check(&format!("{zero}%1 = add %0, %0 : i64"), "");
        check(&format!("{zero}%1 = add %0, %0 : i32"), "%0 has type i64, expected i32");
        check("%1 = add %0, %0 : i64\n%0 = const 0 : i64", "%0 is used before it is defined (at %1 = add");
        check(&format!("{zero}store %0, y[%0, align 4]"), "i64 from or to memory of f32 (at store %0, y");
        check(&format!("{zero}%1 = const 1.0 : f32\nstore %1, x[%0, align 4]"), "read-only buffer x");
        check(&format!("{zero}%1 = const 1.5 : i64"), "constant");
        check(&format!("{zero}%1 = tanh %0 : i64"), "tanh of i64");
        check(
            &format!("{zero}%2 = const 1.0 : f32[4]\n%3 = const 1.0 : f32\n%4 = add %2, %3 : f32[4]"),
            "%3 has type f32, expected f32[4]",
        );
        check(
            &format!("{zero}%9: i64 = for %1 in %0 .. %0 step 1 carries (%2: i64 = %0) {{ }}"),
            "does not yield what is carried",
        );
        check(
            &format!("{zero}for %1 in %0 .. %0 step 1 {{ %2 = add %1, %1 : i64 }}\n%3 = add %2, %0 : i64"),
            "%2 is used outside of its block",
        );
        check(
            &format!("{zero}for %1 in %0 .. %0 step 1 {{ for %2 in %0 .. %0 step 1 parallel thread {{ }} }}"),
            "not outermost",
        );
        check(
            &format!("{zero}for %2 in %0 .. %0 step 1 parallel thread {{ }}\n%3 = load x[%0, align 4] : f32"),
            "beside the parallel loop",
        );
        check(
            &format!("{zero}%1 = eq %0, %0 : bool\nif %1 {{ barrier thread }}"),
            "a collective under a condition",
        );
        let rows = |level: &str| {
            format!(
                "{zero}for %1 in %0 .. %0 step 1 parallel {level} {{\n\
                 %2 = load x[%1, row 8, col 1, valid %1, valid_rows %1, align 4] : f32[4,8] }}"
            )
        };
        check(&rows("grid"), "");
        check(&rows("thread"), "valid rows where iterations are not those of blocks");
        let product = |a: &str| {
            format!(
                "%0 = const 0 : i32[5,16]\n%1 = const 0 : {a}\n%2 = const 0 : i32[3,16]\n\
                 %3 = tile_op \"tdpbusd\" %0, %1, %2 : i32[5,16]"
            )
        };
        check(&product("i32[5,3]"), "");
        check(&product("i32[5,4]"), "a product of matrices i32[5,4] and i32[3,16] as i32[5,16]");
        check(&product("i32[4,3]"), "a product of matrices");
        check(&product("i64[5,3]"), "a product of matrices");
        check("%0 = const 0 : i64[300,300]", "%0 has type i64[300,300]");
        check("launch trip s5 ns 0.0", "s5 is no parameter");
    }

    #[test]
    fn machine_form_is_narrower() {
        let refuse = |text: &str, expected: &str| {
            let got = verify(&parse(text).unwrap()).unwrap_err().to_string();
            assert!(got.contains(expected), "{got}");
        };
        refuse("func @f machine () { %0 = const 1.0 : f16 }", "type f16 in machine form");
        refuse("func @f machine () { %0 = const 1.0 : f64[2,4] }", "in machine form");
        refuse("func @f machine () { %0 = const 1.0 : f32[17,4] }", "in machine form");
        refuse(
            "func @f machine () { %0 = const 1.0 : f32[4,4]\n %1 = neg %0 : f32[4,4] }",
            "in machine form",
        );
        refuse(
            "func @f machine () { %0 = const 1.0 : f32[4]\n %1 = const 1 : i64[8] }",
            "vectors of 4 and of 8 lanes",
        );
        refuse("func @f machine () { %0 = const 1.0 : f32\n %1 = exp %0 : f32 }", "exp of f32");
        let widen = "func @f machine (x: i8 align 1) {\n  %0 = const 0 : i64\n  \
                     for %1 in %0 .. %0 step 1 parallel thread {\n    \
                     %2 = load x[%1, col 1, align 1] : i32[16]\n  }\n}\n";
        verify(&parse(widen).unwrap()).unwrap();
        // lanes that take part, each with a place of its own
        let masked = "func @f machine (x: f32 align 4) {\n  %0 = const 0 : i64\n  %1 = const 1 : i64\n  \
                      for %2 in %0 .. %1 step 1 parallel grid {\n  for %3 in %0 .. %1 step 1 parallel warp {\n    \
                      %4 = splat %3 : i64[8]\n  %5 = eq %4, %4 : bool[8]\n    \
                      %6 = load x[%4, valid %5, align 4] : f32[8]\n  }\n  }\n}\n";
        verify(&parse(masked).unwrap()).unwrap();
        refuse(&masked.replace("valid %5", "valid %3"), "%3 has type i64, expected bool[8]");
        refuse(&masked.replace("valid %5", "valid_rows %3"), "valid rows");
    }
}
