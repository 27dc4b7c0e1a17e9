//! Kernels as functions in loop IR, of either form.

use super::kernel::{Points, spread};
use super::{ExecError, Machine, Result, fault};
use ir::Sym;
use ir::host::{BufferId, Lowered};
use ir::kernel::Guard;
use ir::loops::Func;
use ir::loops_exec::{Status, execute};

/// Functions by kernel: the variants with their guards, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct Code<'a> {
    pub kernels: Vec<Vec<(&'a [Guard], &'a Func)>>,
}

impl<'a> Code<'a> {
    /// The functions of a lowered program.
    pub fn of(lowered: &'a Lowered) -> Code<'a> {
        let variants = |k: &'a ir::host::LoweredKernel| {
            k.variants.iter().map(|v| (v.guards.as_slice(), &v.func)).collect()
        };
        Code { kernels: lowered.kernels.iter().map(variants).collect() }
    }
}

impl Machine<'_> {
    /// The variant that the sizes at hand choose.
    pub(super) fn variant<'c>(&self, code: &Code<'c>, kernel: usize) -> Result<&'c Func> {
        for (guards, func) in code.kernels.get(kernel).into_iter().flatten() {
            let mut holds = true;
            for g in *guards {
                let (x, bound) = (self.dim(&g.expr)?, self.dim(&g.bound)?);
                holds &= (0..bound).contains(&x);
            }
            if holds {
                return Ok(func);
            }
        }
        fault(format!("kernel {kernel} has no variant for these sizes"))
    }

    /// Runs a kernel as loop IR: `points` are iterations of its parallel loop.
    pub(super) fn run_code(
        &mut self,
        code: &Code,
        kernel: usize,
        args: &[BufferId],
        points: Points,
    ) -> Result<()> {
        let func = self.variant(code, kernel)?;
        let trip = self.dim(&func.launch.trip)?;
        if trip <= 0 {
            return Ok(());
        }
        let value = |s: &Sym| {
            let known = self.syms.get(s.0 as usize).copied().flatten();
            // a size of another branch, which this function does not use
            Ok(known.unwrap_or(0))
        };
        let syms = func.syms.iter().map(value).collect::<Result<Vec<i64>>>()?;
        if args.len() != func.bufs.len() {
            return fault(format!("{}: {} buffers for {}", func.name, args.len(), func.bufs.len()));
        }
        let mut bufs = args.iter().map(|&b| self.bytes(b).map(<[u8]>::to_vec)).collect::<Result<Vec<_>>>()?;
        let ranges: Vec<(i64, i64)> = match points {
            Points::All => vec![(0, trip)],
            Points::Some(n) => spread(trip as u64, n).into_iter().map(|i| (i as i64, i as i64 + 1)).collect(),
        };
        for (begin, end) in ranges {
            match execute(func, &mut bufs, &syms, begin, end) {
                Ok(Status::Ok) => {}
                Ok(Status::Failed { origin, value, limit }) => {
                    let message = format!("index {value} outside 0..{limit} (origin {})", origin.0);
                    return Err(ExecError::Data(message));
                }
                Err(e) => return fault(e.to_string()),
            }
        }
        for ((&b, data), def) in args.iter().zip(&bufs).zip(&func.bufs) {
            if def.writable {
                self.bytes_mut(b)?.copy_from_slice(data);
            }
        }
        Ok(())
    }
}
