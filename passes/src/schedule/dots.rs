//! Contractions of 8-bit integers and of bf16 as dot products of words.
//!
//! A machine that adds the dot product of two words to each lane (four bytes, or two bf16) wants both operands
//! with the parts of a word next to one another along one axis of the reduction, the *word axis*:
//!
//! ```text
//! row operand      [..., k]             k contiguous, every other step a multiple of a word
//! column operand   [n / NR][k / 4][NR][k % 4]      a constant, packed so by schedule::operands
//! ```
//!
//! Where the layouts are so, [`words`] turns the reduction over single parts into one over words: the buffers
//! become buffers of i32, and every later step sees a plain contraction with [`Expr::Dot`] for a product.
//! Whether layouts are made so depends on the target ([`ir::target::TargetDesc::words`]); what they mean does not.

use crate::lower::space::{VarFacts, vars_of};
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, BufId, Buffer, Dot, Expr, ExprId, Kernel, Stmt};
use ir::prim::{BinaryOp, ConvertMode};
use ir::{DType, Dim, Monoid, Symbols, Var};
use std::collections::HashMap;

/// A product of narrow reads that words may stand for: the kind, and the reads (the unsigned one first).
pub fn product(k: &Kernel, value: ExprId) -> Option<(Dot, [ExprId; 2])> {
    let Expr::Binary(BinaryOp::Mul, x, y) = *k.get(value) else { return None };
    let read = |e: ExprId| match *k.get(e) {
        Expr::Convert(to, ConvertMode::Plain, r) => match k.get(r) {
            Expr::Read { buf, .. } => Some((r, k.buffers[buf.0 as usize].dtype, to)),
            _ => None,
        },
        _ => None,
    };
    let ((x, tx, to), (y, ty, _)) = (read(x)?, read(y)?);
    match (tx, ty, to) {
        (DType::U8, DType::I8, DType::I32) => Some((Dot::Bytes, [x, y])),
        (DType::I8, DType::U8, DType::I32) => Some((Dot::Bytes, [y, x])),
        (DType::BF16, DType::BF16, DType::F32) => Some((Dot::Bf16, [x, y])),
        _ => None,
    }
}

/// The reduction of a kernel that words may stand for: its place among the statements, kind and reads.
fn reduction(k: &Kernel) -> Option<(usize, Dot, [ExprId; 2])> {
    k.stmts.iter().enumerate().find_map(|(i, s)| match s {
        Stmt::Reduce { monoid: Monoid::Sum, value, acc, .. } => {
            let (dot, reads) = product(k, *value)?;
            (dot.dtype() == *acc).then_some((i, dot, reads))
        }
        _ => None,
    })
}

/// `offset` in words where `v` counts the parts of one: `None` where words would not be aligned.
fn in_words(offset: &Dim, v: Var, parts: usize) -> Option<Dim> {
    let (step, rest) = offset.affine_in(v)?;
    let (words, left) = rest.split_multiple(&Dim::from(parts));
    (step.is_const(1) && left.is_const(0)).then_some(words)
}

/// True where a row operand with this offset can be read in words along the reduce axis `v` of `extent`,
/// which its layout may pad.
pub fn suits(offset: &Dim, v: Var, extent: &Dim, padded: bool, dot: Dot, facts: &VarFacts) -> bool {
    let parts = dot.parts();
    let whole = extent.divisible_by(parts as i64, facts);
    in_words(offset, v, parts).is_some() && (whole || padded && dot == Dot::Bytes)
}

/// True where the layout of a buffer keeps the parts of a word of logical `dim` together, padded.
pub fn keeps_words(b: &Buffer, dim: usize, dot: Dot) -> bool {
    b.layout.frags.last().is_some_and(|f| f.dim == dim && f.div == 1 && f.len == Some(dot.parts()))
}

/// Rounds the extents of word axes up to whole words where both layouts pad them. What the row operand's
/// padding holds does not matter: that of a packed constant is 0. (For floats it would: NaN times 0.)
pub fn widen(kernel: &Kernel) -> Option<Kernel> {
    let (at, dot, reads) = reduction(kernel)?;
    let parts = dot.parts();
    let Stmt::Reduce { axes, .. } = &kernel.stmts[at] else { return None };
    if dot != Dot::Bytes {
        return None;
    }
    // the buffers and dims that an axis runs through in whole, where both keep words of it
    let places = |axis: &Axis| {
        let place = |r: &ExprId| {
            let Expr::Read { buf, index, .. } = kernel.get(*r) else { return None };
            let b = &kernel.buffers[buf.0 as usize];
            let d = index.iter().position(|i| *i == Dim::from(axis.var))?;
            let alone = index.iter().filter(|i| i.uses_var(axis.var)).count() == 1;
            (alone && b.shape[d] == axis.extent && keeps_words(b, d, dot)).then_some((*buf, d))
        };
        let places: Vec<(BufId, usize)> = reads.iter().map(place).collect::<Option<_>>()?;
        places.iter().any(|p| kernel.buffers[p.0.0 as usize].constant).then_some(places)
    };
    let (n, extent, places) = axes.iter().enumerate().find_map(|(n, axis)| {
        let extent = axis.extent.as_const().filter(|e| e % parts as i64 != 0)?;
        Some((n, extent, places(axis)?))
    })?;
    let whole = Dim::from(extent.div_euclid(parts as i64) * parts as i64 + parts as i64);
    let mut out = kernel.clone();
    for (buf, d) in places {
        out.buffers[buf.0 as usize].shape[d] = whole.clone();
    }
    if let Stmt::Reduce { axes, .. } = &mut out.stmts[at] {
        axes[n].extent = whole;
    }
    Some(out)
}

/// A kernel in normal form with its reduction over parts of words made one over words; `None` where its
/// layouts are not so.
pub fn words(k: &Kernel, symbols: &Symbols) -> Option<Kernel> {
    let (at, dot, reads) = reduction(k)?;
    let parts = dot.parts();
    let facts = VarFacts::of(k, symbols);
    let Stmt::Reduce { axes, value, .. } = &k.stmts[at] else { return None };
    let axis =
        axes.iter().position(|a| a.extent.is_const(parts as i64) && word_axis(k, a.var, &reads, dot))?;
    let var = axes[axis].var;
    let mut out = k.without_body();
    out.domain.clone_from(&k.domain);
    let mut operands = Vec::new();
    for r in reads {
        let Expr::Read { buf, index, guards, fill } = k.get(r) else { return None };
        let b = &mut out.buffers[buf.0 as usize];
        let plain = fill.as_f64() == 0.0 && guards.iter().all(|g| !g.expr.uses_var(var));
        if !plain || b.access != Access::Read || !b.shape[0].divisible_by(parts as i64, &facts) {
            return None;
        }
        b.dtype = DType::I32;
        b.shape[0] = b.shape[0].split_multiple(&Dim::from(parts)).0;
        let index = vec![in_words(&index[0], var, parts)?];
        operands.push((*buf, index, guards.clone()));
    }
    let [x, y]: [ExprId; 2] = operands
        .iter()
        .map(|(buf, index, guards)| {
            let (index, guards) = (index.clone(), guards.clone());
            out.expr(Expr::Read { buf: *buf, index, guards, fill: Scalar::Int(0) })
        })
        .collect::<Vec<_>>()
        .try_into()
        .ok()?;
    let replace = (*value, Expr::Dot(dot, x, y));
    let mut done = HashMap::new();
    for s in &k.stmts {
        for e in crate::stage::roots(s) {
            crate::stage::copy(k, &mut out, e, &mut done, Some(&replace));
        }
    }
    out.stmts = k.stmts.iter().map(|s| crate::stage::map_roots(s, &|e| done[&e], &|b| b)).collect();
    if let Stmt::Reduce { axes, .. } = &mut out.stmts[at] {
        axes.remove(axis);
    }
    // a buffer of words has no other readers, and nothing else counts the parts
    let stray = out.exprs().iter().enumerate().any(|(i, e)| match e {
        Expr::Read { buf, index, .. } => {
            let own = operands.iter().any(|o| o.0 == *buf);
            own && i != x.0 as usize && i != y.0 as usize || vars_of(&index[0]).contains(&var)
        }
        _ => false,
    });
    (!stray).then_some(out)
}

fn word_axis(k: &Kernel, v: Var, reads: &[ExprId; 2], dot: Dot) -> bool {
    reads.iter().all(|r| match k.get(*r) {
        Expr::Read { index, .. } => in_words(&index[0], v, dot.parts()).is_some(),
        _ => false,
    })
}
