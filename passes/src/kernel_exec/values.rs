//! What a check of kernels asks the machine for: whole values in and out of buffers, and what a kernel costs.

use super::kernel::offset;
use super::{FRESH, Machine, Result, fault};
use ir::Tensor;
use ir::host::{BufferId, Place, Step};
use ir::kernel::{Kernel, Stmt};

impl Machine<'_> {
    /// The buffer whose bytes these are.
    pub(super) fn whole(&self, b: BufferId) -> BufferId {
        BufferId(self.resolve(b) as u32)
    }

    /// Expressions that one call evaluates, by estimate.
    pub(super) fn cost(&self, k: &Kernel) -> u64 {
        let extent = |a: &ir::kernel::Axis| self.dim(&a.extent).unwrap_or(1).max(0) as u64;
        let product = |axes: &[ir::kernel::Axis]| axes.iter().map(extent).fold(1, u64::saturating_mul);
        fn inner(stmts: &[Stmt], product: &dyn Fn(&[ir::kernel::Axis]) -> u64) -> u64 {
            let one = |s: &Stmt| match s {
                Stmt::Reduce { axes, .. } | Stmt::Store { axes, .. } => product(axes),
                Stmt::ArgReduce { axis, .. } => product(std::slice::from_ref(axis)),
                Stmt::Ordered { axis, body, .. } => {
                    product(std::slice::from_ref(axis)).saturating_mul(inner(body, product))
                }
                _ => 1,
            };
            stmts.iter().map(one).fold(0, u64::saturating_add)
        }
        if k.generated.is_some() {
            let elems = |b: &ir::kernel::Buffer| {
                b.shape.iter().map(|d| self.dim(d).unwrap_or(1).max(0) as u64).product::<u64>()
            };
            return 8 * k.buffers.iter().map(elems).max().unwrap_or(0);
        }
        let own = product(&k.domain)
            .saturating_mul(inner(&k.stmts, &product))
            .saturating_mul(1 + k.exprs().len() as u64);
        k.stages.iter().map(|s| self.cost(&s.kernel)).fold(own, u64::saturating_add)
    }

    /// Goes on behind control flow that is not executed; false where it gives sizes their values.
    pub(super) fn pass_over(&mut self, step: &Step) -> Result<bool> {
        fn binds(steps: &[Step]) -> bool {
            steps.iter().any(|s| match s {
                Step::SetSym { .. } | Step::BindSym { .. } => true,
                Step::Host { defines, .. } => !defines.is_empty(),
                Step::If { then, otherwise, .. } => binds(then) || binds(otherwise),
                Step::Loop { body, .. } => binds(body),
                _ => false,
            })
        }
        match step {
            Step::If { then, otherwise, .. } => Ok(!binds(then) && !binds(otherwise)),
            Step::Loop { trip, count, body, .. } if !binds(body) => {
                let trip = self.scalar(*trip)?;
                // a condition may end it earlier: then sizes are wrong, and what has them does not fit
                self.syms[count.0 as usize] = Some(trip);
                Ok(trip < i64::MAX)
            }
            _ => Ok(false),
        }
    }

    /// The row-major tensor that a buffer holds.
    pub(super) fn logical(&self, b: BufferId) -> Result<Tensor> {
        self.logical_as(b, &self.p.buffers[b.0 as usize].layout)
    }

    pub(super) fn logical_as(&self, b: BufferId, layout: &ir::Layout) -> Result<Tensor> {
        let def = &self.p.buffers[b.0 as usize];
        let mut t = Tensor::zeros(def.dtype, self.shape(&def.shape)?);
        let bytes = self.bytes(b)?;
        let unit = def.dtype.bytes();
        each_index(&t.shape.clone(), &mut |at, index| {
            let from = offset(layout, &t.shape, index).map(|o| o * unit);
            match from.and_then(|o| bytes.get(o..o + unit)) {
                Some(x) => t.data[at * unit..(at + 1) * unit].copy_from_slice(x),
                None => return fault(format!("buffer {} is too small", def.name)),
            }
            Ok(())
        })?;
        Ok(t)
    }

    /// Writes a row-major tensor into a buffer.
    pub(super) fn put_as(&mut self, b: BufferId, t: &Tensor, layout: &ir::Layout) -> Result<()> {
        let unit = t.dtype.bytes();
        let whole = self.resolve(b);
        if self.p.buffers[whole].place == Place::Own && self.own[whole].bytes.len() < t.data.len() {
            self.own[whole].bytes.resize(t.data.len(), FRESH);
            self.lens[whole] = t.data.len();
        }
        let bytes = self.bytes_mut(b)?;
        each_index(&t.shape, &mut |at, index| {
            let to = offset(layout, &t.shape, index).map(|o| o * unit);
            match to.and_then(|o| bytes.get_mut(o..o + unit)) {
                Some(x) => x.copy_from_slice(&t.data[at * unit..(at + 1) * unit]),
                None => return fault("a value is larger than its buffer"),
            }
            Ok(())
        })
    }
}

/// Calls `f` with the number and the indices of every element, in order.
fn each_index(shape: &[usize], f: &mut dyn FnMut(usize, &[i64]) -> Result<()>) -> Result<()> {
    let mut index = vec![0i64; shape.len()];
    for at in 0..shape.iter().product() {
        f(at, &index)?;
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < shape[d] as i64 {
                break;
            }
            index[d] = 0;
        }
    }
    Ok(())
}
