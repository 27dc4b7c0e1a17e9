//! Control ops and composites: regions are built by closures (or by hand with
//! [`Builder::begin_region`] and [`Builder::end_region`]); captures come about by use.

use super::known::{Elem, Elems};
use super::{Builder, V};
use crate::dim::{SymInfo, SymKind};
use crate::graph::{Def, Graph, TensorType, ValueId};
use crate::infer::symbols_defined_in;
use crate::prim::{Attr, Prim, Region};
use crate::{Atom, DType, Dim, IrError, Result, Sym};
use std::collections::BTreeSet;

/// A finished region: its graph and the outer values that became inputs of it by use.
pub struct RegionDone {
    pub graph: Region,
    /// In the order of the capture inputs, which are the last inputs of the graph.
    pub captures: Vec<V>,
    /// What is known of the outputs.
    pub known: Vec<Option<Elems>>,
}

/// What the body of a loop yields for the next iteration.
pub struct LoopStep {
    /// bool[]: go on.
    pub cond: V,
    pub carried: Vec<V>,
    /// Values of this iteration that the loop stacks.
    pub scans: Vec<V>,
}

impl Builder {
    /// Opens a region; ops go there until [`Builder::end_region`].
    pub fn begin_region(&mut self, name: impl Into<String>) {
        self.push_frame(name.into());
    }
    /// Closes the innermost region with these outputs.
    pub fn end_region(&mut self, outputs: &[V]) -> Result<RegionDone> {
        if self.frames.len() < 2 {
            return Err(IrError::ty("region", "no region is open"));
        }
        let outputs = outputs.iter().map(|&v| self.resolved(v)).collect::<Result<Vec<V>>>()?;
        let known = outputs.iter().map(|&v| self.known_elems(v).cloned()).collect();
        let ids: Vec<ValueId> = outputs.iter().map(|v| self.values[v.0 as usize].id).collect();
        let Some(mut frame) = self.frames.pop() else {
            return Err(IrError::ty("region", "no region is open"));
        };
        frame.graph.outputs = ids;
        let captures = frame.captures.iter().map(|c| c.0).collect();
        Ok(RegionDone { graph: frame.graph, captures, known })
    }
    /// Drops regions opened since `depth` (see [`Builder::depth`]), after an error.
    pub fn abandon_regions(&mut self, depth: usize) {
        self.frames.truncate(depth.max(1));
    }
    /// Number of open graphs.
    pub fn depth(&self) -> usize {
        self.frames.len()
    }
    fn region<E: From<IrError>>(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self) -> Result<Vec<V>, E>,
    ) -> Result<RegionDone, E> {
        let depth = self.depth();
        self.begin_region(name);
        let done = body(self).and_then(|outputs| self.end_region(&outputs).map_err(E::from));
        if done.is_err() {
            self.abandon_regions(depth);
        }
        done
    }

    /// A composite: `body` gets its arguments as values of the region. Outer values that it uses
    /// besides become further operands.
    pub fn call<E: From<IrError>>(
        &mut self,
        name: impl Into<String>,
        attrs: Vec<(String, Attr)>,
        operands: &[V],
        body: impl FnOnce(&mut Self, &[V]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, E> {
        let name = name.into();
        let operands = operands.iter().map(|&v| self.resolved(v)).collect::<Result<Vec<V>>>()?;
        let depth = self.depth();
        let region = self.region(&name, |b| {
            let args: Vec<V> = operands
                .iter()
                .map(|&v| {
                    let (ty, known) = (b.ty(v).clone(), b.known_elems(v).cloned());
                    b.add_input(depth, None, ty, known)
                })
                .collect();
            body(b, &args)
        })?;
        let all = [operands, region.captures].concat();
        let results = self.op_with_regions(Prim::Call { name, attrs }, &all, vec![region.graph])?;
        for (v, known) in results.iter().zip(region.known) {
            self.values[v.0 as usize].known = known;
        }
        Ok(results)
    }

    /// Both branches yield values of equal element types and ranks; extents may differ.
    pub fn if_<E: From<IrError>>(
        &mut self,
        cond: V,
        then: impl FnOnce(&mut Self) -> Result<Vec<V>, E>,
        otherwise: impl FnOnce(&mut Self) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, E> {
        let then = self.region("then", then)?;
        let otherwise = self.region("else", otherwise)?;
        Ok(self.finish_if(cond, then, otherwise)?)
    }
    /// The `if` of two finished regions.
    pub fn finish_if(&mut self, cond: V, then: RegionDone, otherwise: RegionDone) -> Result<Vec<V>> {
        let mut captures = then.captures.clone();
        for &c in &otherwise.captures {
            if !captures.contains(&c) {
                captures.push(c);
            }
        }
        let mut regions = Vec::new();
        for (graph, own) in [(then.graph, then.captures), (otherwise.graph, otherwise.captures)] {
            regions.push(self.with_captures(graph, &own, &captures));
        }
        let [a, b] = [&regions[0], &regions[1]];
        let mut local = symbols_defined_in(a);
        local.extend(symbols_defined_in(b));
        // the rule of inference: a dim that differs, or that means nothing outside, is a new symbol
        let mut fresh = Vec::new();
        for (&x, &y) in a.outputs.iter().zip(&b.outputs) {
            for (d, e) in a[x].ty.shape.iter().zip(&b[y].ty.shape) {
                if d != e || mentions(d, &local) {
                    let (x, y) = (d.bounds(self.symbols()), e.bounds(self.symbols()));
                    fresh.push((x.0.min(y.0), x.1.max(y.1)));
                }
            }
        }
        let defines = fresh.into_iter().map(|(lo, hi)| self.value_symbol("if", lo, hi, hi.min(64))).collect();
        let operands = [vec![cond], captures].concat();
        let results = self.op_with_regions(Prim::If { defines }, &operands, regions)?;
        for ((&v, a), b) in results.iter().zip(then.known).zip(otherwise.known) {
            let (Some(a), Some(b)) = (a, b) else { continue };
            if a.len() == b.len() {
                let same = |(x, y): (Option<Elem>, Option<Elem>)| {
                    x.filter(|x| Some(x) == y.as_ref() && !mentions(&x.num, &local))
                };
                self.values[v.0 as usize].known = Some(a.into_iter().zip(b).map(same).collect());
            }
        }
        Ok(results)
    }
    /// The region with inputs for `all` captures, of which it has `own`.
    fn with_captures(&self, mut g: Graph, own: &[V], all: &[V]) -> Graph {
        let first = g.inputs.len() - own.len();
        let had = g.inputs.split_off(first);
        for &c in all {
            let id = match own.iter().position(|&o| o == c) {
                Some(i) => {
                    g.inputs.push(had[i]);
                    had[i]
                }
                None => g.add_input(None, self.ty(c).clone()),
            };
            let place = g.inputs.len() - 1;
            g[id].def = Def::Input(place);
        }
        g
    }

    /// ONNX's Loop; see [`Prim::Loop`]. `trip`: i64[] (none: unbounded), `cond`: bool[] (none: true).
    /// `body` gets the iteration number and the carried values. It runs again where the shape of a
    /// carried value turns out to change from step to step, so it must be repeatable; everything made by
    /// an abandoned run (values, symbols, constants) is forgotten.
    /// Results: final carried values, then stacked scan outputs.
    pub fn loop_<E: From<IrError>>(
        &mut self,
        trip: Option<V>,
        cond: Option<V>,
        carried: &[V],
        mut body: impl FnMut(&mut Self, V, &[V]) -> Result<LoopStep, E>,
    ) -> Result<Vec<V>, E> {
        let trip = match trip {
            Some(v) => self.reshape(v, &[])?,
            None => self.scalar_i64(i64::MAX)?,
        };
        let cond = match cond {
            Some(v) => self.reshape(v, &[])?,
            None => self.scalar(DType::Bool, 1.0)?,
        };
        let carried = carried.iter().map(|&v| self.resolved(v)).collect::<Result<Vec<V>>>()?;
        let ranks: Vec<usize> = carried.iter().map(|&v| self.rank(v)).collect();
        // which dims of which carried values change
        let mut varying: Vec<Vec<bool>> = ranks.iter().map(|&r| vec![false; r]).collect();
        let all_varying: Vec<Vec<bool>> = ranks.iter().map(|&r| vec![true; r]).collect();
        let mut first_error = None;
        loop {
            let mark = (self.module.symbols.infos.len(), self.module.consts.len());
            let attempt = self.loop_body(&carried, &varying, &mut body);
            let (region, carried_syms, step_shapes, input_shapes) = match attempt {
                Ok(done) => done,
                // an extent that changes may be what the body stumbled on
                Err(e) if first_error.is_none() && varying != all_varying => {
                    first_error = Some(e);
                    self.forget(mark);
                    varying = all_varying.clone();
                    continue;
                }
                Err(e) => return Err(first_error.unwrap_or(e)),
            };
            let mut grown = varying.clone();
            for (i, (out, input)) in step_shapes.iter().zip(&input_shapes).enumerate() {
                if out.len() != input.len() {
                    return Err(E::from(IrError::ty(
                        "loop",
                        format!("carried value {i} changes its rank from {} to {}", input.len(), out.len()),
                    )));
                }
                for (d, (o, n)) in out.iter().zip(input).enumerate() {
                    grown[i][d] |= !self.same_dim(o, n);
                }
            }
            if grown == varying {
                return Ok(self.finish_loop(trip, cond, &carried, region, carried_syms)?);
            }
            varying = grown;
            self.forget(mark);
        }
    }

    /// One run of the body: region, carried symbols, shapes of the carried outputs and inputs.
    #[allow(clippy::type_complexity)]
    fn loop_body<E: From<IrError>>(
        &mut self,
        carried: &[V],
        varying: &[Vec<bool>],
        body: &mut impl FnMut(&mut Self, V, &[V]) -> Result<LoopStep, E>,
    ) -> Result<(RegionDone, Vec<Sym>, Vec<Vec<Dim>>, Vec<Vec<Dim>>), E> {
        let mut carried_syms = Vec::new();
        let mut types = Vec::new();
        for (i, &v) in carried.iter().enumerate() {
            let mut ty = self.ty(v).clone();
            for (d, dim) in ty.shape.iter_mut().enumerate().filter(|(d, _)| varying[i][*d]) {
                let sym = self.module.symbols.add(SymInfo {
                    name: format!("carried{i}_{d}"),
                    kind: SymKind::Carried,
                    lo: 0,
                    hi: Dim::LIMIT,
                    divisor: 1,
                    hint: 16,
                });
                carried_syms.push(sym);
                *dim = Dim::from(sym);
            }
            types.push(ty);
        }
        let input_shapes = types.iter().map(|t| t.shape.clone()).collect();
        let mut step_shapes = Vec::new();
        let region = self.region("body", |b| {
            let iteration = b.region_input(Some("iteration"), TensorType::scalar(DType::I64));
            let args: Vec<V> = types.into_iter().map(|t| b.region_input(None, t)).collect();
            let step = body(b, iteration, &args)?;
            if step.carried.len() != args.len() {
                return Err(E::from(IrError::ty(
                    "loop",
                    format!("the body yields {} carried values, expected {}", step.carried.len(), args.len()),
                )));
            }
            step_shapes = step.carried.iter().map(|&v| b.shape(v).to_vec()).collect();
            let cond = b.reshape(step.cond, &[])?;
            Ok([vec![cond], step.carried, step.scans].concat())
        })?;
        Ok((region, carried_syms, step_shapes, input_shapes))
    }

    fn forget(&mut self, (symbols, consts): (usize, usize)) {
        self.module.symbols.truncate(symbols);
        self.module.consts.truncate(consts);
        self.splats.retain(|_, id| (id.0 as usize) < consts);
        for f in &mut self.frames {
            f.constants.retain(|id, _| (id.0 as usize) < consts);
        }
    }

    fn finish_loop(
        &mut self,
        trip: V,
        cond: V,
        carried: &[V],
        region: RegionDone,
        carried_syms: Vec<Sym>,
    ) -> Result<Vec<V>> {
        let truth = |e: &Option<Elems>| matches!(e.as_deref(), Some([Some(e)]) if e.num.is_const(1));
        let goes_on = truth(&region.known[0]) && truth(&self.known_elems(cond).cloned());
        let trip_dim = self.known(trip).and_then(|k| k.into_iter().next());
        let trip_dim = trip_dim.map(|d| d.max_with(&Dim::from(0), self.symbols()));
        // the exact number of iterations, where nothing but the trip count ends the loop
        let exact = trip_dim.clone().filter(|t| goes_on && t.bounds(self.symbols()).0 < Dim::LIMIT);
        let mut defines: Vec<Sym> = Vec::new();
        for _ in &carried_syms {
            defines.push(self.value_symbol("final", 0, Dim::LIMIT, 16));
        }
        let mut local = symbols_defined_in(&region.graph);
        local.extend(&carried_syms);
        let body = &region.graph;
        let scans: Vec<TensorType> =
            body.outputs.iter().skip(1 + carried.len()).map(|&v| body[v].ty.clone()).collect();
        let mut count = None;
        if !scans.is_empty() {
            let (lo, hi) = match (&exact, &trip_dim) {
                (Some(t), _) => t.bounds(self.symbols()),
                (None, Some(t)) => (0, t.bounds(self.symbols()).1),
                _ => (0, Dim::LIMIT),
            };
            let sym = self.value_symbol("iterations", lo, hi, 16);
            count = Some(sym);
            defines.push(sym);
        }
        for t in &scans {
            for d in &t.shape {
                if mentions(d, &local) {
                    let (lo, hi) = d.bounds(self.symbols());
                    defines.push(self.value_symbol("scan", lo, hi, 16));
                }
            }
        }
        let prim = Prim::Loop { carried: carried.len(), carried_syms, defines };
        let operands = [vec![trip, cond], carried.to_vec(), region.captures].concat();
        let mut results = self.op_with_regions(prim, &operands, vec![region.graph])?;
        // a count that is known replaces its symbol; the reshape is free
        if let (Some(sym), Some(exact)) = (count, exact) {
            for v in &mut results[carried.len()..] {
                let mut shape = self.shape(*v).to_vec();
                if shape[0].as_sym() == Some(sym) {
                    shape[0] = exact.clone();
                }
                *v = self.reshape(*v, &shape)?;
            }
        }
        Ok(results)
    }
}

/// True where one of these symbols occurs in the expression.
fn mentions(d: &Dim, symbols: &BTreeSet<Sym>) -> bool {
    let mut found = false;
    d.visit_atoms(&mut |a| {
        if let Atom::Sym(s) = a {
            found |= symbols.contains(s);
        }
    });
    found
}
