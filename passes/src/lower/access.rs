//! Physical accesses: the logical index of every read and store becomes one linear element offset.
//!
//! The result is a kernel over one-dimensional buffers with the same meaning, so every later step works
//! on plain kernel IR and need not know layouts.

use super::space::{Rewrite, VarFacts, rewrite};
use crate::error::{PassError, Result};
use crate::index::{inside, simplify_guards};
use ir::dtype::Scalar;
use ir::kernel::{Buffer, Expr, Guard, Kernel, Stmt};
use ir::{DType, Dim, Facts, Layout};

/// Extents of the physical dims of a buffer, outermost first; padding of splits and halo included.
pub fn physical_extents(shape: &[Dim], layout: &Layout, facts: &dyn Facts) -> Vec<Dim> {
    let extent = |f: &ir::layout::Frag| match f.len {
        Some(len) => Dim::from(len),
        None => {
            let (lo, hi) = layout.halo[f.dim];
            (&shape[f.dim] + Dim::from(lo + hi)).ceil_div(&Dim::from(f.div), facts)
        }
    };
    layout.frags.iter().map(extent).collect()
}

/// Number of elements that a buffer of this layout holds.
pub fn physical_elems(shape: &[Dim], layout: &Layout, facts: &dyn Facts) -> Dim {
    Dim::product(&physical_extents(shape, layout, facts))
}

/// Linear element offset of the logical `index`.
pub fn offset(index: &[Dim], shape: &[Dim], layout: &Layout, facts: &dyn Facts) -> Dim {
    let extents = physical_extents(shape, layout, facts);
    let mut stride = Dim::from(1);
    let mut sum = Dim::from(0);
    for (f, extent) in layout.frags.iter().zip(&extents).rev() {
        let i = &index[f.dim] + Dim::from(layout.halo[f.dim].0);
        let i = i.floor_div(&Dim::from(f.div), facts);
        let i = match f.len {
            Some(len) => i.modulo(&Dim::from(len), facts),
            None => i,
        };
        sum = sum + i * &stride;
        stride = stride * extent;
    }
    sum
}

/// Drops what is proved of the guards of an access; `None` where one is proved to fail. A guard on a
/// dim whose halo holds the fill value only has to hold for the halo.
fn discharge(
    guards: &[Guard],
    access: Option<(&[Dim], &Buffer, Scalar)>,
    facts: &dyn Facts,
) -> Option<Vec<Guard>> {
    let mut left = simplify_guards(guards, facts)?;
    if let Some((index, buffer, fill)) = access
        && fill.as_f64() == 0.0
    {
        left.retain(|g| {
            !index.iter().enumerate().any(|(d, i)| {
                let (lo, hi) = buffer.layout.halo[d];
                let wide = Guard { expr: i + Dim::from(lo), bound: &buffer.shape[d] + Dim::from(lo + hi) };
                *i == g.expr && buffer.shape[d] == g.bound && inside(&wide, facts)
            })
        });
    }
    Some(left)
}

struct Linearise<'a> {
    buffers: &'a [Buffer],
    facts: &'a VarFacts<'a>,
}

impl Rewrite for Linearise<'_> {
    fn expr(&mut self, e: Expr) -> Expr {
        match e {
            Expr::Read { buf, index, guards, fill } => {
                let b = &self.buffers[buf.0 as usize];
                match discharge(&guards, Some((&index, b, fill)), self.facts) {
                    Some(guards) => {
                        let linear = offset(&index, &b.shape, &b.layout, self.facts);
                        Expr::Read { buf, index: vec![linear], guards, fill }
                    }
                    None => Expr::Const(b.dtype, fill),
                }
            }
            Expr::Inside(guards) => match discharge(&guards, None, self.facts) {
                Some(guards) if guards.is_empty() => Expr::Const(DType::Bool, Scalar::Int(1)),
                Some(guards) => Expr::Inside(guards),
                None => Expr::Const(DType::Bool, Scalar::Int(0)),
            },
            e => e,
        }
    }

    fn stmt(&mut self, s: Stmt, _: &mut Kernel) -> Vec<Stmt> {
        match s {
            Stmt::Store { axes, buf, index, guards, value, combine } => {
                let b = &self.buffers[buf.0 as usize];
                let Some(guards) = discharge(&guards, None, self.facts) else { return Vec::new() };
                let linear = offset(&index, &b.shape, &b.layout, self.facts);
                vec![Stmt::Store { axes, buf, index: vec![linear], guards, value, combine }]
            }
            s => vec![s],
        }
    }
}

/// The kernel over one-dimensional buffers; guards that are proved, or discharged by a halo, are gone.
///
/// # Errors
/// Where an access and its buffer, or a buffer and its layout, disagree in rank.
pub fn linearise(kernel: &Kernel, facts: &VarFacts) -> Result<Kernel> {
    check(kernel)?;
    let mut out = rewrite(kernel, &mut Linearise { buffers: &kernel.buffers, facts });
    for b in &mut out.buffers {
        b.shape = vec![physical_elems(&b.shape, &b.layout, facts)];
        b.layout = Layout::row_major(1);
    }
    Ok(out)
}

fn check(kernel: &Kernel) -> Result<()> {
    let fail = |m: String| Err(PassError::internal("schedule", format!("kernel {}: {m}", kernel.name)));
    for b in &kernel.buffers {
        if b.layout.rank() != b.shape.len()
            || b.layout.frags.iter().any(|f| f.dim >= b.shape.len() || f.div == 0 || f.len == Some(0))
        {
            return fail(format!("layout of buffer {} does not fit its shape", b.name));
        }
        if b.dtype.bytes() == 0 {
            return fail(format!("buffer {} of strings", b.name));
        }
    }
    let access = |buf: ir::kernel::BufId, rank: usize| match kernel.buffers.get(buf.0 as usize) {
        Some(b) if b.shape.len() == rank => Ok(()),
        Some(b) => fail(format!("access of rank {rank} to {} of rank {}", b.name, b.shape.len())),
        None => fail(format!("access to operand {} of {}", buf.0, kernel.buffers.len())),
    };
    for e in kernel.exprs() {
        if let Expr::Read { buf, index, .. } = e {
            access(*buf, index.len())?;
        }
    }
    fn stores(list: &[Stmt], f: &dyn Fn(ir::kernel::BufId, usize) -> Result<()>) -> Result<()> {
        list.iter().try_for_each(|s| match s {
            Stmt::Store { buf, index, .. } => f(*buf, index.len()),
            Stmt::Ordered { body, .. } => stores(body, f),
            _ => Ok(()),
        })
    }
    stores(&kernel.stmts, &access)
}
