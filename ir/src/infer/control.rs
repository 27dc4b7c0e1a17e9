//! Types of control ops, composites and host functions.

use super::{Cx, symbols_defined_in};
use crate::graph::{Graph, TensorType};
use crate::prim::HostFn;
use crate::{DType, Dim, Result, Sym};
use std::collections::BTreeSet;

impl Cx<'_> {
    /// The region's inputs take values of these types.
    pub(super) fn region_inputs(&self, region: &Graph, from: &[&TensorType], what: &str) -> Result<()> {
        self.expect_len(&format!("inputs of the {what} region"), region.inputs.len(), from.len())?;
        for (i, (&v, t)) in region.inputs.iter().zip(from).enumerate() {
            self.compatible(&region[v].ty, t, &format!("input {i} of the {what} region"))?;
        }
        Ok(())
    }
    fn compatible(&self, want: &TensorType, found: &TensorType, what: &str) -> Result<()> {
        if want == found {
            return Ok(());
        }
        if want.dtype != found.dtype {
            return self.fail(format!("{what}: expected {}, found {}", want.dtype, found.dtype));
        }
        self.same_shape(&want.shape, &found.shape, what).map(|_| ())
    }
    /// True where the expression means the same outside of the regions that define `local`.
    fn escapes(d: &Dim, local: &BTreeSet<Sym>) -> bool {
        let mut free = true;
        d.visit_atoms(&mut |a| {
            if let crate::Atom::Sym(s) = a {
                free &= !local.contains(s);
            }
        });
        free
    }
    fn defined(&self, symbols: &mut std::slice::Iter<Sym>, what: &str) -> Result<Dim> {
        match symbols.next() {
            Some(&s) => Ok(Dim::from(s)),
            None => self.fail(format!("too few symbols in `defines`: {what} needs one")),
        }
    }
    fn all_used(&self, symbols: std::slice::Iter<Sym>) -> Result<()> {
        if symbols.len() == 0 {
            return Ok(());
        }
        self.fail(format!("{} symbols too many in `defines`", symbols.len()))
    }

    /// A result dim is that of both branches where it is the same; otherwise the next of `defines`.
    pub(super) fn if_(&self, defines: &[Sym]) -> Result<Vec<TensorType>> {
        let [then, other] = self.regions else {
            return self.fail(format!("expected 2 regions, found {}", self.regions.len()));
        };
        if self.operands.is_empty() {
            return self.fail("expected a condition, found no operand");
        }
        self.scalar(0, DType::Bool)?;
        self.region_inputs(then, &self.operands[1..], "then")?;
        self.region_inputs(other, &self.operands[1..], "else")?;
        self.expect_len("outputs of the else region", other.outputs.len(), then.outputs.len())?;
        let mut local = symbols_defined_in(then);
        local.extend(symbols_defined_in(other));
        let mut fresh = defines.iter();
        let mut results = Vec::with_capacity(then.outputs.len());
        for (i, (&a, &b)) in then.outputs.iter().zip(&other.outputs).enumerate() {
            let (a, b) = (&then[a].ty, &other[b].ty);
            if a.dtype != b.dtype || a.rank() != b.rank() {
                return self.fail(format!(
                    "output {i}: the branches yield {}{} and {}{}; element types and ranks must agree",
                    a.dtype,
                    self.shape(&a.shape),
                    b.dtype,
                    self.shape(&b.shape)
                ));
            }
            let mut shape = Vec::with_capacity(a.rank());
            for (x, y) in a.shape.iter().zip(&b.shape) {
                shape.push(if x == y && Self::escapes(x, &local) {
                    x.clone()
                } else {
                    self.defined(&mut fresh, &format!("output {i}"))?
                });
            }
            results.push(TensorType::new(a.dtype, shape));
        }
        self.all_used(fresh)?;
        Ok(results)
    }

    /// `defines`: one symbol for each of `carried_syms` (its final value), then the number of iterations
    /// if there are scan outputs, then one for each dim of a scan output that has a meaning inside the
    /// body only.
    pub(super) fn loop_(
        &self,
        carried: usize,
        carried_syms: &[Sym],
        defines: &[Sym],
    ) -> Result<Vec<TensorType>> {
        let [body] = self.regions else {
            return self.fail(format!("expected 1 region, found {}", self.regions.len()));
        };
        if self.operands.len() < 2 + carried {
            return self.fail(format!(
                "expected trip count, condition and {carried} carried values, found {} operands",
                self.operands.len()
            ));
        }
        self.scalar(0, DType::I64)?;
        self.scalar(1, DType::Bool)?;
        self.expect_len("inputs of the body", body.inputs.len(), self.operands.len() - 1)?;
        if body.outputs.len() < 1 + carried {
            return self.fail(format!(
                "expected a condition and {carried} carried values as outputs of the body, found {} outputs",
                body.outputs.len()
            ));
        }
        let inputs: Vec<&TensorType> = body.inputs.iter().map(|&v| &body[v].ty).collect();
        let outputs: Vec<&TensorType> = body.outputs.iter().map(|&v| &body[v].ty).collect();
        self.compatible(&TensorType::scalar(DType::I64), inputs[0], "iteration number in the body")?;
        self.compatible(&TensorType::scalar(DType::Bool), outputs[0], "condition that the body yields")?;
        let mut finals: Vec<Option<Dim>> = vec![None; carried_syms.len()];
        for i in 0..carried {
            let what = format!("carried value {i}");
            self.carried(
                inputs[1 + i],
                self.operands[2 + i],
                carried_syms,
                &mut vec![None; carried_syms.len()],
                &what,
            )?;
            self.carried(inputs[1 + i], outputs[1 + i], carried_syms, &mut finals, &what)?;
        }
        for (i, t) in self.operands[2 + carried..].iter().enumerate() {
            self.compatible(inputs[1 + carried + i], t, &format!("capture {i}"))?;
        }
        let mut local = symbols_defined_in(body);
        local.extend(carried_syms);
        let mut fresh = defines.iter();
        let mut final_syms = Vec::with_capacity(carried_syms.len());
        for _ in carried_syms {
            final_syms.push(self.defined(&mut fresh, "a carried size")?);
        }
        let mut results = Vec::new();
        for input in &inputs[1..1 + carried] {
            let final_dim = |d: &Dim| match d.as_sym().and_then(|s| carried_syms.iter().position(|c| *c == s))
            {
                Some(i) => final_syms[i].clone(),
                None => d.clone(),
            };
            results.push(TensorType::new(input.dtype, input.shape.iter().map(final_dim).collect()));
        }
        let scans = &outputs[1 + carried..];
        if !scans.is_empty() {
            let count = self.defined(&mut fresh, "the number of iterations")?;
            for (i, scan) in scans.iter().enumerate() {
                let mut shape = vec![count.clone()];
                for d in &scan.shape {
                    shape.push(if Self::escapes(d, &local) {
                        d.clone()
                    } else {
                        self.defined(&mut fresh, &format!("scan output {i}"))?
                    });
                }
                results.push(TensorType::new(scan.dtype, shape));
            }
        }
        self.all_used(fresh)?;
        Ok(results)
    }
    /// `found` flows into the carried input of type `input`: equal but for the carried sizes, each of
    /// which must get one value.
    fn carried(
        &self,
        input: &TensorType,
        found: &TensorType,
        carried_syms: &[Sym],
        bound: &mut [Option<Dim>],
        what: &str,
    ) -> Result<()> {
        if input.dtype != found.dtype || input.rank() != found.rank() {
            return self.fail(format!(
                "{what}: expected {}{}, found {}{}",
                input.dtype,
                self.shape(&input.shape),
                found.dtype,
                self.shape(&found.shape)
            ));
        }
        for (want, d) in input.shape.iter().zip(&found.shape) {
            match want.as_sym().and_then(|s| carried_syms.iter().position(|c| *c == s)) {
                Some(i) => match &bound[i] {
                    Some(b) => {
                        self.eq(b, d, &format!("{what}: values of one carried size"))?;
                    }
                    None => bound[i] = Some(d.clone()),
                },
                None => {
                    self.eq(want, d, &format!("{what}: extents"))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn host(&self, func: &HostFn, defines: &[Sym]) -> Result<Vec<TensorType>> {
        match func {
            HostFn::NonMaxSuppression { .. } => {
                self.arity(5)?;
                let (boxes, scores) = (self.operands[0], self.operands[1]);
                self.dtype_is(0, DType::F32)?;
                self.dtype_is(1, DType::F32)?;
                self.scalar(2, DType::I64)?;
                self.scalar(3, DType::F32)?;
                self.scalar(4, DType::F32)?;
                self.expect_len("shape of the boxes", boxes.rank(), 3)?;
                self.expect_len("shape of the scores", scores.rank(), 3)?;
                self.expect_len("defines", defines.len(), 1)?;
                self.eq(&boxes.shape[0], &scores.shape[0], "batch sizes of boxes and scores")?;
                self.eq(&boxes.shape[1], &scores.shape[2], "numbers of boxes and scores")?;
                self.eq(&boxes.shape[2], &Dim::from(4), "last extent of the boxes and 4")?;
                let shape = vec![Dim::from(defines[0]), Dim::from(3)];
                Ok(vec![TensorType::new(DType::I64, shape)])
            }
            HostFn::DecodeImage { pixels } => {
                self.arity(1)?;
                self.dtype_is(0, DType::U8)?;
                self.expect_len("shape of the file", self.operands[0].rank(), 1)?;
                self.expect_len("defines", defines.len(), 2)?;
                let shape = vec![defines[0].into(), defines[1].into(), Dim::from(pixels.channels())];
                Ok(vec![TensorType::new(DType::U8, shape)])
            }
        }
    }
}
