//! What all emitters do alike at the entry of a function: its scratch memory, its symbol
//! parameters, and size expressions as code.

use crate::Fault;
use crate::error::Emit;
use ir::dim::{Atom, NoFacts};
use ir::loops::{Block, Form, Func, Level, Space, Stmt};
use ir::{Dim, Sym};

/// Local arrays begin at multiples of this, in bytes.
const LOCAL_ALIGN: i64 = 64;

/// Bytes of scratch memory that one thread needs to run `func`.
pub fn scratch_bytes(func: &Func) -> Dim {
    local_offsets(func).1
}

/// Byte offset of each local array in the scratch memory, and the end of the last. What blocks share is elsewhere.
pub(crate) fn local_offsets(func: &Func) -> (Vec<Dim>, Dim) {
    let mut at = Dim::from(0);
    let mut offsets = Vec::with_capacity(func.locals.len());
    for local in &func.locals {
        offsets.push(at.clone());
        if local.space == Space::Shared {
            continue;
        }
        let bytes = local.elems.clone() * Dim::from(local.dtype.bytes());
        at = at + bytes.ceil_div(&Dim::from(LOCAL_ALIGN), &NoFacts) * Dim::from(LOCAL_ALIGN);
    }
    (offsets, at)
}

/// Position of a symbol among the parameters of `func`.
pub(crate) fn sym_param(func: &Func, sym: Sym) -> Emit<u32> {
    let at = func.syms.iter().position(|s| *s == sym);
    at.map(|i| i as u32)
        .ok_or_else(|| Fault::invalid(format!("symbol {} is no parameter of the function", sym.0)))
}

/// Integer arithmetic of an emitter, as far as sizes need it. All values are i64.
pub(crate) trait IntEmit {
    type V: Copy;
    fn number(&mut self, x: i64) -> Self::V;
    fn sym(&mut self, sym: Sym) -> Emit<Self::V>;
    fn add(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V>;
    fn mul(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V>;
    /// Quotient rounded down; the divisor is positive.
    fn floor_div(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V>;
    fn min(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V>;
    fn max(&mut self, a: Self::V, b: Self::V) -> Emit<Self::V>;

    /// Code for a size expression without index variables.
    fn dim(&mut self, dim: &Dim) -> Emit<Self::V> {
        let mut sum = None;
        for (atoms, coef) in dim.terms() {
            let mut product = None;
            for atom in atoms {
                let factor = self.atom(atom)?;
                product = Some(match product {
                    None => factor,
                    Some(p) => self.mul(p, factor)?,
                });
            }
            let term = match product {
                None => self.number(*coef),
                Some(p) if *coef == 1 => p,
                Some(p) => {
                    let c = self.number(*coef);
                    self.mul(p, c)?
                }
            };
            sum = Some(match sum {
                None => term,
                Some(s) => self.add(s, term)?,
            });
        }
        Ok(match sum {
            Some(s) => s,
            None => self.number(0),
        })
    }

    fn atom(&mut self, atom: &Atom) -> Emit<Self::V> {
        match atom {
            Atom::Sym(s) => self.sym(*s),
            Atom::Var(v) => Err(Fault::invalid(format!("index variable {} in a size", v.0))),
            Atom::FloorDiv(a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                self.floor_div(a, b)
            }
            Atom::Mod(a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                let q = self.floor_div(a, b)?;
                let whole = self.mul(q, b)?;
                let minus = self.number(-1);
                let less = self.mul(whole, minus)?;
                self.add(a, less)
            }
            Atom::Min(a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                self.min(a, b)
            }
            Atom::Max(a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                self.max(a, b)
            }
        }
    }
}

/// Checks the frame of a function in machine form, which the emitters rely on: pure definitions, then
/// one parallel loop without carried values, inside of which loops and branches yield what they have results for.
pub(crate) fn check_entry(func: &Func) -> Emit<()> {
    if func.form != Form::Machine {
        return Err(Fault::invalid("the function is in tile form"));
    }
    if let Some(local) = func.locals.iter().find(|l| l.space != Space::Scratch) {
        return Err(Fault::unsupported(format!("local arrays in {:?} memory", local.space)));
    }
    check_flow(&parallel_loop(&func.body, Level::Thread)?.stmts)
}

/// True where the iterations of a function are those of blocks of warps.
pub(crate) fn of_blocks(func: &Func) -> bool {
    func.body.stmts.iter().any(|s| matches!(s, Stmt::For { parallel: Some(Level::Grid), .. }))
}

/// As [`check_entry`], of a function over blocks: a loop over the grid, and in it one over the warps of a block.
pub(crate) fn check_entry_of_blocks(func: &Func) -> Emit<()> {
    if func.form != Form::Machine {
        return Err(Fault::invalid("the function is in tile form"));
    }
    if func.locals.iter().any(|l| l.space != Space::Shared || l.elems.as_const().is_none()) {
        return Err(Fault::unsupported("arrays of blocks but shared ones of known size"));
    }
    let block = parallel_loop(&func.body, Level::Grid)?;
    check_flow(&parallel_loop(block, Level::Warp)?.stmts)
}

/// The body of the plain parallel loop that a block consists of, definitions aside.
fn parallel_loop(block: &Block, level: Level) -> Emit<&Block> {
    let Some((last, before)) = block.stmts.split_last() else {
        return Err(Fault::invalid("an empty function"));
    };
    if !before.iter().all(|s| matches!(s, Stmt::Let { .. })) || !block.yields.is_empty() {
        return Err(Fault::invalid("more than definitions in front of the parallel loop"));
    }
    match last {
        Stmt::For { parallel: Some(l), step: 1, carries, results, body, .. }
            if *l == level && carries.is_empty() && results.is_empty() && body.yields.is_empty() =>
        {
            Ok(body)
        }
        _ => Err(Fault::invalid(format!("the last statement is no plain parallel loop over {level:?}"))),
    }
}

fn check_flow(stmts: &[Stmt]) -> Emit<()> {
    stmts.iter().try_for_each(|stmt| match stmt {
        Stmt::For { parallel: Some(_), .. } => Err(Fault::invalid("a parallel loop that is not outermost")),
        Stmt::For { step, carries, results, body, .. } => {
            if *step <= 0 || carries.len() != results.len() || carries.len() != body.yields.len() {
                return Err(Fault::invalid("a loop whose step, carries or results do not fit"));
            }
            check_flow(&body.stmts)
        }
        Stmt::While { carries, results, cond, body } => {
            if carries.len() != results.len() || carries.len() != body.yields.len() {
                return Err(Fault::invalid("a while loop whose carries or results do not fit"));
            }
            check_flow(&cond.stmts)?;
            check_flow(&body.stmts)
        }
        Stmt::If { then, otherwise, results, .. } => {
            if then.yields.len() != results.len() || otherwise.yields.len() != results.len() {
                return Err(Fault::invalid("the blocks of a branch yield other than its results"));
            }
            check_flow(&then.stmts)?;
            check_flow(&otherwise.stmts)
        }
        _ => Ok(()),
    })
}
