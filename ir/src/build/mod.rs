//! Builds modules: every op is inferred as it is added, broadcasting is numpy's, regions capture outer
//! values by themselves, and size arithmetic on small integer tensors is followed symbolically.
//!
//! ```
//! use ir::build::Builder;
//! use ir::{DType, Dim};
//! # use kernelsmith_ir as ir;
//! let mut b = Builder::new("main");
//! let n = b.symbol("N", 1, 64);
//! let x = b.input("x", DType::F32, vec![n, Dim::from(4)]);
//! let two = b.scalar(DType::F32, 2.0)?;
//! let y = b.mul(x, two)?;
//! let module = b.finish(&[("y".to_string(), y)])?;
//! # Ok::<(), ir::IrError>(())
//! ```
//!
//! A [`V`] names a value of any graph under construction. Using one of an outer graph inside a region
//! makes it a capture: an operand of the control op and an input of the region. Constants are not
//! captured but repeated.

mod bind;
mod broadcast;
mod control;
pub mod known;
mod open;
mod ops;
#[cfg(test)]
mod tests;

pub use control::{LoopStep, RegionDone};
pub use known::{Elem, Elems};

use crate::dim::{Facts, SymInfo, SymKind};
use crate::dtype::Scalar;
use crate::graph::{Graph, Module, Origin, OriginId, TensorType, ValueId};
use crate::infer::{self, Require};
use crate::prim::{Prim, Region};
use crate::{Atom, ConstData, ConstId, DType, Dim, IrError, Result, Sym};
use std::collections::HashMap;

/// A value of one of the graphs under construction; cheap to copy, valid for one [`Builder`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct V(u32);

/// What the builder knows of a value.
#[derive(Clone)]
struct Entry {
    /// Graph it belongs to, by [`Frame::uid`].
    frame: u32,
    id: ValueId,
    ty: TensorType,
    known: Option<Elems>,
    /// The constant, where the value is one.
    constant: Option<ConstId>,
}

/// One graph under construction.
#[derive(Clone)]
struct Frame {
    uid: u32,
    graph: Graph,
    /// (value of the parent frame, input of this one), in the order of the capture operands.
    captures: Vec<(V, V)>,
    captured: HashMap<V, V>,
    constants: HashMap<ConstId, V>,
}

/// A module under construction. See the [module documentation](self).
#[derive(Clone)]
pub struct Builder {
    module: Module,
    frames: Vec<Frame>,
    next_frame: u32,
    values: Vec<Entry>,
    origin: OriginId,
    splats: HashMap<(DType, Scalar), ConstId>,
    /// Symbols that are equal to an expression wherever the program runs on.
    equal: HashMap<Sym, Dim>,
    /// Elements that symbols were bound to: graph, value, place among the elements; see [`bind`].
    bound: HashMap<(u32, ValueId, usize), Sym>,
    /// Extents that were broadcast against each other, by the result; see [`broadcast`].
    joined: HashMap<Dim, Vec<Dim>>,
    /// Conditions that inference left to the run time, in the order they came up.
    required: Vec<Require>,
}

impl Builder {
    pub fn new(name: impl Into<String>) -> Builder {
        let mut module = Module::default();
        let origin = module.add_origin(Origin::default());
        let mut b = Builder {
            module,
            frames: Vec::new(),
            next_frame: 0,
            values: Vec::new(),
            origin,
            splats: HashMap::new(),
            equal: HashMap::new(),
            bound: HashMap::new(),
            joined: HashMap::new(),
            required: Vec::new(),
        };
        b.push_frame(name.into());
        b
    }

    // ---- module -----------------------------------------------------------------------------

    /// Ops from here on come from this node.
    pub fn set_origin(&mut self, origin: Origin) -> OriginId {
        self.origin = self.module.add_origin(origin);
        self.origin
    }
    pub fn set_origin_id(&mut self, origin: OriginId) {
        self.origin = origin;
    }
    pub fn origin(&self) -> OriginId {
        self.origin
    }
    /// The module so far: symbols, constants, origins. The graph is there after [`Builder::finish`].
    pub fn module(&self) -> &Module {
        &self.module
    }
    pub fn symbols(&self) -> &crate::Symbols {
        &self.module.symbols
    }
    /// A size symbol of an input (kind `Entry`) with this inclusive range.
    pub fn symbol(&mut self, name: impl Into<String>, lo: i64, hi: i64) -> Dim {
        let hint = 8.clamp(lo, hi.max(lo));
        self.add_symbol(SymInfo { name: name.into(), kind: SymKind::Entry, lo, hi, divisor: 1, hint })
    }
    /// A symbol with all it says; an existing name is made unique by a suffix.
    pub fn add_symbol(&mut self, info: SymInfo) -> Dim {
        Dim::from(self.module.symbols.add(info))
    }
    /// A symbol that an op defines, range `lo..=hi`.
    pub fn value_symbol(&mut self, name: impl Into<String>, lo: i64, hi: i64, hint: i64) -> Sym {
        let (lo, hi) = (lo.max(0), hi.min(Dim::LIMIT));
        let hint = hint.clamp(lo, hi.max(lo));
        self.module.symbols.add(SymInfo { name: name.into(), kind: SymKind::Value, lo, hi, divisor: 1, hint })
    }
    /// An input of the main graph. Call it before any region is open.
    pub fn input(&mut self, name: impl Into<String>, dtype: DType, shape: Vec<Dim>) -> V {
        self.add_input(0, Some(name.into()), TensorType::new(dtype, shape), None)
    }
    /// Inputs of the main graph so far.
    pub fn input_count(&self) -> usize {
        self.frames.first().map_or(0, |f| f.graph.inputs.len())
    }
    /// Size conditions of the ops so far that the program will check.
    pub fn required(&self) -> &[Require] {
        &self.required
    }
    /// The finished module, outputs by name.
    pub fn finish(mut self, outputs: &[(String, V)]) -> Result<Module> {
        if self.frames.len() != 1 {
            return Err(IrError::ty("graph", format!("{} regions are still open", self.frames.len() - 1)));
        }
        let ids = outputs.iter().map(|(_, v)| self.resolve(*v)).collect::<Result<Vec<_>>>()?;
        let Some(frame) = self.frames.pop() else {
            return Err(IrError::ty("graph", "no graph to finish"));
        };
        let mut module = self.module;
        module.graph = frame.graph;
        module.graph.outputs = ids;
        module.output_names = outputs.iter().map(|(n, _)| n.clone()).collect();
        Ok(module)
    }

    // ---- values -----------------------------------------------------------------------------

    pub fn ty(&self, v: V) -> &TensorType {
        &self.values[v.0 as usize].ty
    }
    pub fn dtype(&self, v: V) -> DType {
        self.ty(v).dtype
    }
    pub fn shape(&self, v: V) -> &[Dim] {
        &self.ty(v).shape
    }
    pub fn rank(&self, v: V) -> usize {
        self.ty(v).rank()
    }
    /// `f32[2, N]`, for messages.
    pub fn show_type(&self, v: V) -> String {
        let t = self.ty(v);
        format!("{}{}", t.dtype, infer::show_shape(&t.shape, &self.module.symbols))
    }
    /// Names the value in printed IR (the first name stays).
    pub fn name_value(&mut self, v: V, name: &str) {
        let e = &self.values[v.0 as usize];
        if let Some(f) = self.frames.iter_mut().find(|f| f.uid == e.frame) {
            f.graph[e.id].name.get_or_insert_with(|| name.to_string());
        }
    }
    /// True while the graph of the value is still open (a value of a finished region is out of scope).
    pub fn in_scope(&self, v: V) -> bool {
        self.level_of(v).is_some()
    }
    /// The constant behind the value, where it is one.
    pub fn constant_of(&self, v: V) -> Option<&ConstData> {
        self.values[v.0 as usize].constant.map(|c| &self.module.consts[c.0 as usize])
    }

    /// Elements of a small integer tensor as sizes, row-major, where all are known.
    pub fn known(&self, v: V) -> Option<Vec<Dim>> {
        if self.dtype(v).is_float() {
            return None;
        }
        self.known_elems(v)?.iter().map(|e| e.as_ref().map(|e| e.num.clone())).collect()
    }
    /// Elements as numbers, where all are known and constant.
    pub fn known_ints(&self, v: V) -> Option<Vec<i64>> {
        if let Some(c) = self.constant_of(v)
            && !c.dtype.is_float()
            && c.elems() <= 1 << 16
        {
            let int = |i| i64::try_from(c.scalar_at(i)?.as_int()).ok();
            return (0..c.elems()).map(int).collect();
        }
        self.known(v)?.iter().map(Dim::as_const).collect()
    }
    /// Elements as floats, where all are known and constant (any numeric element type).
    pub fn known_floats(&self, v: V) -> Option<Vec<f64>> {
        if let Some(c) = self.constant_of(v)
            && c.elems() <= 1 << 16
        {
            return (0..c.elems()).map(|i| Some(c.scalar_at(i)?.as_f64())).collect();
        }
        let value = |e: &Option<Elem>| {
            let e = e.as_ref()?;
            Some(e.num.as_const()? as f64 / e.den as f64)
        };
        self.known_elems(v)?.iter().map(value).collect()
    }
    /// Elements one by one: some may be known although others are not.
    pub fn known_elems(&self, v: V) -> Option<&Elems> {
        self.values[v.0 as usize].known.as_ref()
    }

    // ---- sizes ------------------------------------------------------------------------------

    /// Records that two sizes are equal because the program checks it on every run. Never changes what
    /// is built already; later broadcasts treat the two as one.
    pub fn learn_eq(&mut self, a: &Dim, b: &Dim) {
        let (a, b) = (self.canonical(a), self.canonical(b));
        let mentions = |d: &Dim, s: Sym| {
            let mut found = false;
            d.visit_atoms(&mut |x| found |= *x == Atom::Sym(s));
            found
        };
        let (sym, to) = match (a.as_sym(), b.as_sym()) {
            (Some(s), _) if !mentions(&b, s) => (s, b),
            (_, Some(s)) if !mentions(&a, s) => (s, a),
            _ => return,
        };
        let symbols = &self.module.symbols;
        for d in self.equal.values_mut() {
            *d = d.subst(symbols, &mut |x| (*x == Atom::Sym(sym)).then(|| to.clone()));
        }
        self.equal.insert(sym, to);
    }
    /// The size with symbols replaced by what they are known to equal.
    pub fn canonical(&self, d: &Dim) -> Dim {
        if self.equal.is_empty() || d.as_const().is_some() {
            return d.clone();
        }
        d.subst(&self.module.symbols, &mut |a| match a {
            Atom::Sym(s) => self.equal.get(s).cloned(),
            _ => None,
        })
    }
    /// Equal by the ranges of the symbols or by what was learned.
    pub fn same_dim(&self, a: &Dim, b: &Dim) -> bool {
        a.provably_eq(b, &self.module.symbols)
            || !self.equal.is_empty()
                && self.canonical(a).provably_eq(&self.canonical(b), &self.module.symbols)
    }

    // ---- ops --------------------------------------------------------------------------------

    /// Adds an op to the innermost open graph.
    pub fn op(&mut self, prim: Prim, operands: &[V]) -> Result<Vec<V>> {
        self.op_with_regions(prim, operands, Vec::new())
    }
    /// As [`Builder::op`] for an op of one result.
    pub fn op1(&mut self, prim: Prim, operands: &[V]) -> Result<V> {
        let name = prim.name();
        let results = self.op(prim, operands)?;
        match results.as_slice() {
            [v] => Ok(*v),
            _ => Err(IrError::ty(name, format!("expected 1 result, found {}", results.len()))),
        }
    }
    /// Adds an op with finished regions; their inputs match the operands as [`Prim`] says.
    pub fn op_with_regions(&mut self, prim: Prim, operands: &[V], regions: Vec<Region>) -> Result<Vec<V>> {
        let operands = operands.iter().map(|&v| self.resolved(v)).collect::<Result<Vec<V>>>()?;
        let types: Vec<&TensorType> = operands.iter().map(|&v| self.ty(v)).collect();
        let (m, depth) = (&self.module, self.frames.len());
        let (results, required) = infer::infer_with(&prim, &types, &regions, &m.consts, &m.symbols)?;
        if !results.iter().flat_map(|t| &t.shape).all(Dim::is_small) {
            return Err(IrError::Limit(format!(
                "{}: a size of more than {} terms",
                prim.name(),
                Dim::MAX_ATOMS
            )));
        }
        let known_operands: Vec<known::Operand> =
            operands.iter().map(|&v| known::Operand { ty: self.ty(v), known: self.known_elems(v) }).collect();
        let known = known::eval(&prim, &known_operands, &results, &m.consts, &m.symbols);
        let constant = if let Prim::Const(c) = prim { Some(c) } else { None };
        let ids = operands.iter().map(|v| self.values[v.0 as usize].id).collect();
        let origin = self.origin;
        let frame = self.frame();
        let uid = frame.uid;
        let op = frame.graph.push_op(prim, ids, regions, results.clone(), origin);
        let ids = frame.graph[op].results.clone();
        let mut out = Vec::with_capacity(ids.len());
        for ((id, ty), known) in ids.into_iter().zip(results).zip(known) {
            self.values.push(Entry { frame: uid, id, ty, known, constant });
            out.push(V(self.values.len() as u32 - 1));
        }
        for r in required {
            // a check inside a region runs only where the region does
            if let (Require::Eq(a, b), 1) = (&r, depth) {
                self.learn_eq(a, b);
            }
            if !self.required.contains(&r) {
                self.required.push(r);
            }
        }
        Ok(out)
    }

    // ---- frames -----------------------------------------------------------------------------

    fn push_frame(&mut self, name: String) {
        self.frames.push(Frame {
            uid: self.next_frame,
            graph: Graph::new(name),
            captures: Vec::new(),
            captured: HashMap::new(),
            constants: HashMap::new(),
        });
        self.next_frame += 1;
    }
    /// The innermost open graph.
    fn frame(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }
    fn add_input(&mut self, level: usize, name: Option<String>, ty: TensorType, known: Option<Elems>) -> V {
        let frame = &mut self.frames[level];
        let id = frame.graph.add_input(name, ty.clone());
        self.values.push(Entry { frame: frame.uid, id, ty, known, constant: None });
        V(self.values.len() as u32 - 1)
    }
    fn level_of(&self, v: V) -> Option<usize> {
        let uid = self.values[v.0 as usize].frame;
        self.frames.iter().rposition(|f| f.uid == uid)
    }
    /// The value as one of the innermost open graph: outer values are captured, constants repeated.
    pub fn resolved(&mut self, v: V) -> Result<V> {
        self.resolve_at(self.frames.len() - 1, v)
    }
    /// The id of the value in the innermost open graph; see [`Builder::resolved`].
    pub fn resolve(&mut self, v: V) -> Result<ValueId> {
        let v = self.resolved(v)?;
        Ok(self.values[v.0 as usize].id)
    }
    fn resolve_at(&mut self, level: usize, v: V) -> Result<V> {
        let e = &self.values[v.0 as usize];
        if self.frames[level].uid == e.frame {
            return Ok(v);
        }
        if level == 0 {
            return Err(IrError::ty("capture", "a value of a finished region is used outside of it"));
        }
        if let Some(c) = e.constant {
            return Ok(self.const_in(level, c));
        }
        let outer = self.resolve_at(level - 1, v)?;
        if let Some(&inner) = self.frames[level].captured.get(&outer) {
            return Ok(inner);
        }
        let e = &self.values[outer.0 as usize];
        let (ty, known) = (e.ty.clone(), e.known.clone());
        let inner = self.add_input(level, None, ty, known);
        let frame = &mut self.frames[level];
        frame.captured.insert(outer, inner);
        frame.captures.push((outer, inner));
        Ok(inner)
    }
    /// The constant as a value of the graph at `level`, one op for all its uses.
    fn const_in(&mut self, level: usize, c: ConstId) -> V {
        if let Some(&v) = self.frames[level].constants.get(&c) {
            return v;
        }
        let data = &self.module.consts[c.0 as usize];
        let ty = TensorType::new(data.dtype, data.shape.iter().map(|&d| Dim::from(d)).collect());
        let types = [ty.clone()];
        let known =
            known::eval(&Prim::Const(c), &[], &types, &self.module.consts, &self.module.symbols).remove(0);
        let origin = self.origin;
        let frame = &mut self.frames[level];
        let op = frame.graph.push_op(Prim::Const(c), Vec::new(), Vec::new(), vec![ty.clone()], origin);
        let id = frame.graph[op].results[0];
        let uid = frame.uid;
        self.values.push(Entry { frame: uid, id, ty, known, constant: Some(c) });
        let v = V(self.values.len() as u32 - 1);
        self.frames[level].constants.insert(c, v);
        v
    }
}

/// `axis` counted from the end where negative, checked against `rank`.
pub fn normal_axis(axis: i64, rank: usize) -> Result<usize> {
    let r = rank as i64;
    if (-r..r).contains(&axis) {
        return Ok(axis.rem_euclid(r.max(1)) as usize);
    }
    Err(IrError::ty("axis", format!("axis {axis} is out of range for rank {rank}")))
}

/// The part of an axis that `[start : stop : step]` selects, with numpy's treatment of negative and
/// excessive bounds: `(first index, number of elements)`. `step` is not 0.
pub fn slice_range(start: &Dim, stop: &Dim, step: i64, extent: &Dim, facts: &dyn Facts) -> (Dim, Dim) {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    // adds the extent where the bound is negative
    let from_end = |d: &Dim| {
        let (lo, hi) = d.bounds(facts);
        if lo >= 0 {
            d.clone()
        } else if hi < 0 {
            d + extent
        } else {
            let negative = (-d.clone()).max_with(&zero, facts).min_with(&one, facts);
            d + &(extent * &negative)
        }
    };
    // beyond every extent, also where the extent is a product without a known bound
    let clamp = |d: &Dim, lo: &Dim, hi: &Dim| match d.as_const() {
        Some(c) if c >= Dim::LIMIT => hi.clone(),
        Some(c) if c <= -Dim::LIMIT => lo.clone(),
        _ => from_end(d).max_with(lo, facts).min_with(hi, facts),
    };
    if step > 0 {
        let first = clamp(start, &zero, extent);
        let last = clamp(stop, &zero, extent);
        let size = (&last - &first).max_with(&zero, facts).ceil_div(&Dim::from(step), facts);
        return (first, size);
    }
    let (below, top) = (Dim::from(-1), extent - &one);
    let first = clamp(start, &below, &top);
    // -1 counts from the end like every negative bound; below -extent is "before the first"
    let last = clamp(stop, &below, &top);
    let step = Dim::from(step.checked_neg().unwrap_or(i64::MAX));
    let size = (&first - &last).max_with(&zero, facts).ceil_div(&step, facts);
    (first, size)
}
