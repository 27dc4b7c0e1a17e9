//! Values that become sizes: elements of small integer tensors are bound to symbols at run time.
//!
//! Models spell one number in many ways (reshaped, joined with others, cut out again). An element is followed to
//! where it comes from, and bound there once, so that sizes that are the same number are the same symbol. What was
//! computed from such elements, even before they were bound, is an expression of their symbols.

use super::{Builder, Elem, Elems, V, known};
use crate::dim::{SymInfo, SymKind};
use crate::graph::{Graph, TensorType, ValueId};
use crate::prim::Prim;
use crate::{DType, Dim, IrError, Result, Sym};
use std::collections::HashMap;

/// So many values are looked at to find out what an element is computed from.
const SEARCH: usize = 64;

/// The value and the element of it (row-major) that this element is a copy of, as far as ops that only move
/// integers of static shape tell.
fn source(g: &Graph, mut value: ValueId, mut elem: usize) -> (ValueId, usize) {
    let elems = |v: ValueId| {
        let extent = |d: &Dim| usize::try_from(d.as_const()?).ok();
        g[v].ty
            .shape
            .iter()
            .map(extent)
            .collect::<Option<Vec<_>>>()
            .and_then(|s| crate::tensor::checked_elems(&s))
    };
    while let Some(op) = g.def_op(value) {
        let op = &g[op];
        let from = op.operands.first().copied();
        let next = match (&op.prim, from) {
            (Prim::Reshape { .. }, Some(x)) => (x, elem),
            (Prim::Convert { to: DType::I64, .. }, Some(x))
                if g[x].ty.dtype.is_int() && g[x].ty.dtype != DType::U64 =>
            {
                (x, elem)
            }
            (Prim::Broadcast { .. }, Some(x)) if elems(x) == Some(1) => (x, 0),
            (Prim::Slice { start, step, .. }, Some(x)) if g[x].ty.rank() == 1 => {
                let at = |s: i64| usize::try_from(s + elem as i64 * step[0]).ok();
                let Some(at) = start[0].as_const().and_then(at) else { break };
                (x, at)
            }
            (Prim::Concat { .. }, _) if g[value].ty.rank() == 1 => {
                let mut left = elem;
                let mut found = None;
                for &x in &op.operands {
                    let Some(n) = elems(x) else { break };
                    if left < n {
                        found = Some((x, left));
                        break;
                    }
                    left -= n;
                }
                let Some(found) = found else { break };
                found
            }
            _ => break,
        };
        (value, elem) = next;
    }
    (value, elem)
}

impl Builder {
    /// Elements of a value of the open graph at `level` as expressions of the symbols that were bound since it was
    /// computed, where they are; `seen` has those of the values before.
    fn derived(
        &self,
        level: usize,
        v: ValueId,
        seen: &mut HashMap<(usize, ValueId), Option<Elems>>,
    ) -> Option<Elems> {
        if let Some(elems) = seen.get(&(level, v)) {
            return elems.clone();
        }
        let frame = self.frames.get(level)?;
        let n = known::small_shape(&frame.graph[v].ty)?.iter().product();
        if seen.len() >= SEARCH {
            return None;
        }
        seen.insert((level, v), None);
        let found = match frame.graph.def_op(v) {
            Some(op) => {
                let op = &frame.graph[op];
                let elems: Vec<Option<Elems>> =
                    op.operands.iter().map(|&x| self.derived(level, x, seen)).collect();
                let operands: Vec<known::Operand> = op
                    .operands
                    .iter()
                    .zip(&elems)
                    .map(|(&x, known)| known::Operand { ty: &frame.graph[x].ty, known: known.as_ref() })
                    .collect();
                let results: Vec<TensorType> =
                    op.results.iter().map(|&y| frame.graph[y].ty.clone()).collect();
                let (consts, symbols) = (&self.module.consts, &self.module.symbols);
                known::eval(&op.prim, &operands, &results, consts, symbols).into_iter().next().flatten()
            }
            None => {
                let entry = |v: &V| &self.values[v.0 as usize];
                let outer = frame.captures.iter().find(|(_, inner)| entry(inner).id == v).map(|c| c.0);
                outer.filter(|_| level > 0).and_then(|o| self.derived(level - 1, entry(&o).id, seen))
            }
        };
        let mut elems = found.unwrap_or_else(|| vec![None; n]);
        for (i, e) in elems.iter_mut().enumerate().filter(|(_, e)| e.is_none()) {
            *e = self.bound.get(&(frame.uid, v, i)).map(|&s| Elem::int(s));
        }
        let elems = Some(elems).filter(|e| e.iter().any(Option::is_some));
        seen.insert((level, v), elems.clone());
        elems
    }

    /// Elements of `v` (integers, static shape, at most 64) as sizes. Those that are not known become
    /// value symbols with range `lo..=hi`, bound at run time; the same element binds once.
    pub fn bind_dims(&mut self, v: V, lo: i64, hi: i64, hint: i64) -> Result<Vec<Dim>> {
        let v = self.resolved(v)?;
        if let Some(dims) = self.known(v) {
            return Ok(dims);
        }
        let shape: Option<Vec<usize>> =
            self.shape(v).iter().map(|d| usize::try_from(d.as_const()?).ok()).collect();
        let n = shape.as_deref().and_then(crate::tensor::checked_elems);
        let (Some(n), true) = (n.filter(|&n| n <= known::MAX_ELEMS), self.dtype(v).is_int()) else {
            return Err(IrError::ty(
                "bind_dim",
                format!("expected at most 64 integers of static shape, found {}", self.show_type(v)),
            ));
        };
        let mut elems = self.known_elems(v).cloned().unwrap_or_else(|| vec![None; n]);
        let inner = self.frames.len() - 1;
        let derived = self.derived(inner, self.values[v.0 as usize].id, &mut HashMap::new());
        for (e, d) in elems.iter_mut().zip(derived.into_iter().flatten()) {
            let in_range = |d: &Elem| {
                let bounds = d.num.bounds(&self.module.symbols);
                bounds.0 >= lo && (bounds.1 <= hi || hi >= Dim::LIMIT)
            };
            *e = e.take().or_else(|| d.filter(in_range));
        }
        let flat = self.reshape(v, &[Dim::from(n)])?;
        let flat = self.convert(flat, DType::I64)?;
        let id = self.values[v.0 as usize].id;
        for (i, e) in elems.iter_mut().enumerate().filter(|(_, e)| e.is_none()) {
            let frame = self.frame();
            let (root, at) = source(&frame.graph, id, i);
            let key = (frame.uid, root, at);
            // a bound element need not be a size: -1 and counts from the end are elements too
            let fits = |s: &Sym| {
                let have = self.module.symbols.get(*s);
                have.lo >= lo && have.hi <= hi
            };
            let sym = match self.bound.get(&key).copied().filter(fits) {
                Some(sym) => sym,
                None => {
                    let one = self.slice_axis(flat, 0, &Dim::from(i), &Dim::from(1))?;
                    let one = self.reshape(one, &[])?;
                    let sym = self.module.symbols.add(SymInfo {
                        name: "v".into(),
                        kind: SymKind::Value,
                        lo,
                        hi,
                        divisor: 1,
                        hint: hint.clamp(lo, hi.max(lo)),
                    });
                    self.op(Prim::BindDim(sym), &[one])?;
                    let earlier = self.bound.insert(key, sym);
                    // a region need not run
                    if let (Some(wider), 1) = (earlier, self.frames.len()) {
                        self.learn_eq(&Dim::from(wider), &Dim::from(sym));
                    }
                    sym
                }
            };
            *e = Some(Elem::int(sym));
        }
        let dims = elems.iter().flatten().map(|e| e.num.clone()).collect();
        self.values[v.0 as usize].known = Some(elems);
        Ok(dims)
    }

    /// As [`Builder::bind_dims`] for a single element (a scalar, or `[1]`).
    pub fn bind_dim(&mut self, v: V, lo: i64, hi: i64, hint: i64) -> Result<Dim> {
        let dims = self.bind_dims(v, lo, hi, hint)?;
        match <[Dim; 1]>::try_from(dims) {
            Ok([d]) => Ok(d),
            Err(dims) => Err(IrError::ty("bind_dim", format!("expected 1 element, found {}", dims.len()))),
        }
    }
}
