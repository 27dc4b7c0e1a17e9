//! Grouping: which values lie in buffers, and the kernel that computes each of them.
//!
//! Ops are visited in reverse order of execution. A value that someone demands as a buffer is the root
//! of a kernel; its region grows from the root towards producers, in reverse order too, so that all
//! consumers of a value have been decided on before the value itself. What a region does not take is
//! demanded as a buffer. A trial pull then builds the kernel; where a reduction turns out to depend on
//! an inner axis, or the expression is too large, one more value is demanded and the region grows anew.

use crate::error::{PassError, Result};
use crate::facts::{Class, GraphFacts, class, expands, pieces, repeats, static_elems};
use crate::forms::{Forms, Other};
use crate::kernels::{Build, KernelUnit};
use crate::limits::{ALGORITHMS, FUSIONS, Fuel, HOMES};
use crate::pull::{Home, PullError, Unit, locate};
use crate::{col2im, winograd};
use ir::graph::State;
use ir::prim::WindowDim;
use ir::{DType, Graph, Layout, OpId, Origin, Prim, TensorType, ValueId};
use std::cell::RefCell;
use std::collections::{BinaryHeap, HashMap, HashSet};

const PASS: &str = "group";

/// A step of one graph.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are kernels")]
pub enum Item {
    Kernel(KernelUnit),
    /// The host schedule executes the op.
    Host(OpId),
}

/// A buffer between the kernels of one algorithm, which belongs to no value of the graph. Its id lies
/// beyond those of the graph's values.
#[derive(Clone, Debug, PartialEq)]
pub struct Temp {
    pub id: ValueId,
    pub ty: TensorType,
    /// Written once per program.
    pub init: bool,
}

/// What grouping may choose.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Nodes that one expression may have.
    pub limit: usize,
    /// Sums in another order: Winograd's and other forms for the convolutions where they pay.
    pub forms: Option<Forms>,
    /// For a GPU, which is filled by the domain of a kernel alone.
    pub simt: bool,
}

/// What one graph executes, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub items: Vec<Item>,
    /// Values that lie inside the buffer of another value.
    pub homes: HashMap<ValueId, Home>,
    /// Depends on constants alone, by value.
    pub constant: Vec<bool>,
    /// Layouts other than row-major, by value.
    pub layouts: HashMap<ValueId, Layout>,
    pub temps: Vec<Temp>,
}

/// What is known of a candidate from those of its consumers that are in the region.
#[derive(Clone, Copy, Default)]
struct Candidate {
    /// Uses by members that no other region computes.
    exclusive_uses: usize,
    /// Reductions between the value and the root, at most.
    level: u8,
    /// Some use is outside every reduction.
    at_top: bool,
    /// Operand of a contraction: only views may stand between it and its buffer.
    plain: bool,
    /// Contractions must not be repeated for a broadcast.
    no_gemm: bool,
    /// No reduction may be computed at guarded or shifted indices.
    no_heavy: bool,
}

struct Planner<'a> {
    unit: Unit<'a>,
    origins: &'a [Origin],
    facts: GraphFacts,
    homes: HashMap<ValueId, Home>,
    demanded: Vec<bool>,
    choices: Choices,
    temps: Vec<Temp>,
    fuel: &'a Fuel,
    /// Whether a region may take a value: it is grown more than once.
    fusions: RefCell<HashMap<(OpId, ValueId), bool>>,
}

/// Groups the ops of one graph; `states` are those among its inputs and outputs.
pub fn plan(unit: Unit, origins: &[Origin], states: &[State], choices: Choices, fuel: &Fuel) -> Result<Plan> {
    let facts = GraphFacts::new(unit);
    let mut homes = find_homes(unit, &facts, fuel);
    for s in states {
        // rows behind those that others read are written: the input may lie in the result
        let (input, value) = (unit.graph.inputs[s.input], unit.graph.outputs[s.output]);
        let offset = vec![ir::Dim::from(0); unit.graph[input].ty.rank()];
        homes.insert(input, Home { value, offset });
    }
    let demanded = vec![false; unit.graph.value_count()];
    let mut p = Planner {
        unit,
        origins,
        facts,
        homes,
        demanded,
        choices,
        temps: Vec::new(),
        fuel,
        fusions: RefCell::default(),
    };
    for &v in &unit.graph.outputs {
        p.demand(v);
    }
    let mut items = Vec::new();
    for &op in unit.graph.order.iter().rev() {
        // the items of one op are in order; the ops come in reverse
        items.extend(p.visit(op)?.into_iter().rev());
    }
    items.reverse();
    let layouts = crate::layout::assign(unit.graph, &p.homes, &p.facts.exact, choices.simt, fuel);
    Ok(Plan { items, homes: p.homes, constant: p.facts.constant, layouts, temps: p.temps })
}

/// Which values are written straight into the buffer of the concat, pad or update that uses them.
///
/// The last such user gets the value. A concat of values that lie side by side in a later, longer one
/// (dense blocks) is a part of that one.
fn find_homes(unit: Unit, facts: &GraphFacts, fuel: &Fuel) -> HashMap<ValueId, Home> {
    let g = unit.graph;
    let mut homes: HashMap<ValueId, Home> = HashMap::new();
    for &id in g.order.iter().rev() {
        let op = &g[id];
        let pieces = pieces(unit, id);
        if pieces.is_empty() {
            continue;
        }
        let result = op.results[0];
        if !facts.exact[result.index()]
            && !homes.contains_key(&result)
            && matches!(op.prim, Prim::Concat { .. })
            && let Some(home) = side_by_side(&op.operands, &pieces, &homes)
            && fuel.allow(HOMES, op.origin, || format!("%{} in %{}", result.0, home.value.0))
        {
            homes.insert(result, home);
            continue;
        }
        let overwritten = is_updated(g, &homes, result);
        for (n, offset) in pieces {
            let x = op.operands[n];
            let Some(def) = g.def_op(x) else { continue };
            let own_kernel =
                !matches!(class(&g[def].prim), Class::Const | Class::Source | Class::View | Class::Host);
            let repeated = op.operands.iter().filter(|&&o| o == x).count() > 1;
            // in place: whoever else reads the operand would see the update
            let shared = overwritten && facts.uses[x.index()].len() > 1;
            if own_kernel
                && !repeated
                && !shared
                && !facts.exact[x.index()]
                && !homes.contains_key(&x)
                && facts.constant[x.index()] == facts.constant[result.index()]
                && facts.known_before(&g[result].ty.shape, facts.position[def.index()])
                && facts.known_before(&offset, facts.position[def.index()])
                && fuel.allow(HOMES, g[def].origin, || {
                    format!("{} %{} in {} %{}", g[def].prim.name(), x.0, op.prim.name(), result.0)
                })
            {
                homes.insert(x, Home { value: result, offset });
            }
        }
    }
    homes
}

/// True where an op writes in place what lies in the buffer of this value: its own, or one after it.
fn is_updated(g: &Graph, homes: &HashMap<ValueId, Home>, mut value: ValueId) -> bool {
    loop {
        let def = g.def_op(value).map(|op| &g[op].prim);
        if matches!(def, Some(Prim::Scatter { .. } | Prim::UpdateSlice { .. })) {
            return true;
        }
        let Some(home) = homes.get(&value) else { return false };
        value = home.value;
    }
}

/// The place of a concat's result where all of its operands lie next to one another already.
fn side_by_side(
    operands: &[ValueId],
    pieces: &[(usize, Vec<ir::Dim>)],
    homes: &HashMap<ValueId, Home>,
) -> Option<Home> {
    let first = homes.get(operands.first()?)?.clone();
    let fits = pieces.iter().all(|(n, offset)| {
        homes.get(&operands[*n]).is_some_and(|h| {
            let at = first.offset.iter().zip(offset).map(|(a, b)| a + b);
            h.value == first.value && at.eq(h.offset.iter().cloned())
        })
    });
    (fits && operands.len() > 1).then_some(first)
}

impl Planner<'_> {
    fn demand(&mut self, v: ValueId) {
        self.demanded[v.index()] = true;
    }

    fn visit(&mut self, id: OpId) -> Result<Vec<Item>> {
        let g = self.unit.graph;
        let op = &g[id];
        let wanted = op.results.iter().any(|v| self.demanded[v.index()]);
        match class(&op.prim) {
            Class::Const => Ok(Vec::new()),
            _ if op.operands.iter().chain(&op.results).any(|v| g[*v].ty.dtype == DType::String) => {
                Err(PassError::unsupported(PASS, self.origins, g, id, "strings have no kernels"))
            }
            Class::Host => {
                if let Prim::Call { name, .. } = &op.prim {
                    return Err(PassError::internal(PASS, format!("composite {name} was not inlined")));
                }
                if wanted || op.prim.has_effect() || !op.prim.defines().is_empty() {
                    op.operands.iter().for_each(|&v| self.demand(v));
                    return Ok(vec![Item::Host(id)]);
                }
                Ok(Vec::new())
            }
            _ if !wanted => Ok(Vec::new()),
            // nothing to compute; and a kernel over nothing may not even have valid indices
            _ if static_elems(&g[op.results[0]].ty.shape) == Some(0) => Ok(Vec::new()),
            _ => self.kernels(id),
        }
    }

    fn kernels(&mut self, id: OpId) -> Result<Vec<Item>> {
        let g = self.unit.graph;
        let op = &g[id];
        let result = op.results[0];
        let operand = |n: usize| {
            op.operands.get(n).copied().ok_or_else(|| {
                PassError::invalid(PASS, self.origins, g, id, format!("operand {n} is missing"))
            })
        };
        let pieces = pieces(self.unit, id);
        let mut items = Vec::new();
        match &op.prim {
            Prim::Concat { .. } if !pieces.is_empty() => {
                for (n, offset) in pieces {
                    let piece = operand(n)?;
                    self.place(id, piece, result, &offset, &mut items)?;
                }
            }
            Prim::Pad { lo, hi, .. } if !pieces.is_empty() => {
                let x = operand(0)?;
                self.place(id, x, result, lo, &mut items)?;
                if lo.iter().chain(hi).any(|d| !d.is_const(0)) {
                    let apart = self.choices.simt;
                    let strips = self.build_all(id, &[], |b| b.border(result, x, lo, hi, apart))?;
                    items.extend(strips.into_iter().map(Item::Kernel));
                }
            }
            Prim::UpdateSlice { start } => {
                let zeros = vec![ir::Dim::from(0); start.len()];
                self.place(id, operand(0)?, result, &zeros, &mut items)?;
                let unit =
                    self.build(id, &[operand(1)?], |b| b.place(operand(1).unwrap_or(result), result, start))?;
                items.push(Item::Kernel(unit));
            }
            Prim::Scatter { combine } => {
                let (base, indices, updates) = (operand(0)?, operand(1)?, operand(2)?);
                let zeros = vec![ir::Dim::from(0); g[result].ty.rank()];
                self.place(id, base, result, &zeros, &mut items)?;
                let unit =
                    self.build(id, &[indices, updates], |b| b.scatter(indices, updates, result, *combine))?;
                items.push(Item::Kernel(unit));
            }
            Prim::Cumulative { monoid, axis, exclusive, reverse } => {
                let x = operand(0)?;
                let unit =
                    self.build(id, &[x], |b| b.cumulative(x, result, *monoid, *axis, *exclusive, *reverse))?;
                items.push(Item::Kernel(unit));
            }
            _ => {
                let region = match self.choices.forms.is_some() && !self.facts.constant[result.index()] {
                    true => self.grow(id, &[result], &HashSet::new(), false),
                    false => HashSet::new(),
                };
                if let Some(units) = self.algorithm(id, result, &region) {
                    return Ok(units.into_iter().map(Item::Kernel).collect());
                }
                // one of another shape: what stores its results elsewhere reads them from a buffer
                let other =
                    |v: &&ValueId| g[**v].ty.shape != g[result].ty.shape && self.form(**v, **v).is_some();
                let mut apart: Vec<ValueId> = region.iter().filter(other).copied().collect();
                apart.sort_by_key(|v| v.index());
                let unit = self.build(id, &[result], |b| match apart.iter().find(|v| (b.inline)(**v)) {
                    Some(v) => Err(PullError::Materialise(*v)),
                    None => b.root(result),
                })?;
                items.push(Item::Kernel(unit));
            }
        }
        Ok(items)
    }

    /// The kernels of a group around a convolution that is better computed in another than the direct form.
    fn algorithm(&mut self, id: OpId, root: ValueId, region: &HashSet<ValueId>) -> Option<Vec<KernelUnit>> {
        let g = self.unit.graph;
        let (site, form) = region.iter().find_map(|&conv| {
            let (site, form) = self.form(conv, root)?;
            (g[root].ty.shape == g[conv].ty.shape).then_some((site, form))
        })?;
        let what = || {
            let name = if form.1 == Other::Col2im { "col2im" } else { "winograd" };
            format!("{name} for convolve %{}", site.conv.0)
        };
        if !self.fuel.allow(ALGORITHMS, g[id].origin, what) {
            return None;
        }
        let inline = |v: ValueId| region.contains(&v);
        let build =
            Build { unit: self.unit, homes: &self.homes, inline: &inline, limit: self.choices.limit, op: id };
        let mut temps = self.temps.clone();
        let units = match form {
            (_, Other::Tiles(form)) => winograd::build(&build, site, form, &mut temps),
            (window, Other::Overlap(form)) => {
                winograd::build_overlapping(&build, site, form, window, &mut temps)
            }
            (window, Other::Col2im) => col2im::build(&build, site, window, &mut temps),
        };
        let units = units.ok()??;
        self.temps = temps;
        self.demand_reads(region);
        Some(units)
    }

    /// Another form for the convolution whose result is `conv`, where one pays, and its window.
    fn form(&self, conv: ValueId, root: ValueId) -> Option<(winograd::Site, (&[WindowDim], Other))> {
        let g = self.unit.graph;
        let op = &g[g.def_op(conv)?];
        let [x, w] = *op.operands.as_slice() else { return None };
        let Prim::Convolve { window, .. } = &op.prim else { return None };
        if !self.facts.constant[w.index()] {
            return None;
        }
        let types = [&g[x].ty, &g[w].ty, &g[conv].ty];
        let form = self.choices.forms?.best(&op.prim, types, self.unit.symbols)?;
        let padded = window.iter().any(|d| !d.pad_lo.is_const(0));
        let built = !(padded && matches!(form, Other::Tiles(_)));
        built.then_some((winograd::Site { conv, x, w, root }, (window.as_slice(), form)))
    }

    /// Demands what the members of a region read.
    fn demand_reads(&mut self, region: &HashSet<ValueId>) {
        let g = self.unit.graph;
        for &v in region {
            let Some(def) = g.def_op(v) else { continue };
            for &x in g[def].operands.iter().filter(|x| !region.contains(x)) {
                self.demand(x);
            }
        }
    }

    /// Gets `piece` into the buffer of `into`: its own kernel writes it there, or a copy does.
    fn place(
        &mut self,
        id: OpId,
        piece: ValueId,
        into: ValueId,
        offset: &[ir::Dim],
        items: &mut Vec<Item>,
    ) -> Result<()> {
        if static_elems(&self.unit.graph[piece].ty.shape) == Some(0) {
            return Ok(());
        }
        let there = |v: ValueId, index: &[ir::Dim]| locate(&self.homes, v, index);
        if there(piece, &vec![ir::Dim::from(0); offset.len()]) == there(into, offset) {
            self.demand(piece);
            return Ok(());
        }
        let unit = self.build(id, &[piece], |b| b.place(piece, into, offset))?;
        items.push(Item::Kernel(unit));
        Ok(())
    }

    /// As [`Self::build_all`], for one kernel.
    fn build(
        &mut self,
        op: OpId,
        seeds: &[ValueId],
        f: impl Fn(&Build) -> std::result::Result<KernelUnit, PullError>,
    ) -> Result<KernelUnit> {
        let [unit] = self.build_all(op, seeds, |b| Ok([f(b)?]))?;
        Ok(unit)
    }

    /// Grows a region from `seeds`, builds its kernels, and demands what they read.
    fn build_all<U: AsMut<[KernelUnit]>>(
        &mut self,
        op: OpId,
        seeds: &[ValueId],
        f: impl Fn(&Build) -> std::result::Result<U, PullError>,
    ) -> Result<U> {
        let g = self.unit.graph;
        let mut forced: HashSet<ValueId> = HashSet::new();
        let root_init = g[op].results.iter().all(|v| self.facts.constant[v.index()]);
        // each failed try forces one more value into a buffer, so this ends
        loop {
            let region = self.grow(op, seeds, &forced, root_init);
            let inline = |v: ValueId| region.contains(&v);
            let build = Build {
                unit: self.unit,
                homes: &self.homes,
                inline: &inline,
                // a region of views alone has no better form: it may be as large as it is
                limit: if forced.len() > region.len() { usize::MAX } else { self.choices.limit },
                op,
            };
            match f(&build) {
                Ok(mut built) => {
                    built.as_mut().iter_mut().for_each(|unit| unit.init = root_init);
                    // demand the values, not their homes: a home is demanded by its own op
                    self.demand_reads(&region);
                    seeds.iter().filter(|x| !region.contains(x)).for_each(|&v| self.demand(v));
                    return Ok(built);
                }
                Err(PullError::Materialise(v)) if forced.insert(v) && !g[op].results.contains(&v) => {}
                Err(PullError::Materialise(v)) => {
                    // the root itself is at fault: nothing but views goes with it
                    let before = forced.len();
                    forced.extend(region.iter().filter(|x| !self.is_view(**x) && !g[op].results.contains(x)));
                    if forced.len() == before {
                        let what = g[op].prim.name();
                        return Err(PassError::internal(
                            PASS,
                            format!("no kernel for {what} (value {})", v.0),
                        ));
                    }
                }
                Err(PullError::Unsupported(at, message)) => {
                    return Err(PassError::unsupported(PASS, self.origins, g, at, message));
                }
            }
        }
    }

    /// Fewer bytes than the sums of a contraction have.
    fn is_narrow(&self, v: ValueId) -> bool {
        self.unit.graph[v].ty.dtype.bytes() < 4
    }

    fn is_view(&self, v: ValueId) -> bool {
        let g = self.unit.graph;
        g.def_op(v).is_some_and(|op| matches!(class(&g[op].prim), Class::View | Class::Source))
    }

    /// True where a product is better written in the order of `v`, a transpose of it: a contraction sums over
    /// neighbouring axes of `v` as over one, and reads them at a stretch (the heads of attention side by side).
    /// Rows stay rows.
    fn rests_transposed(&self, v: ValueId, def: OpId) -> bool {
        let g = self.unit.graph;
        let f = &self.facts;
        let Prim::Transpose { perm } = &g[def].prim else { return false };
        let (&[x], &[user]) = (g[def].operands.as_slice(), f.uses[v.index()].as_slice()) else {
            return false;
        };
        let [.., before, last] = *perm.as_slice() else { return false };
        let shape = &g[v].ty.shape;
        let merged = g[user].results.first().is_some_and(|r| {
            let to = &g[*r].ty.shape;
            let n = shape.len();
            matches!(g[user].prim, Prim::Reshape { .. })
                && to.last() == Some(&(&shape[n - 2] * &shape[n - 1]))
        });
        let product =
            g.def_op(x).is_some_and(|p| matches!(class(&g[p].prim), Class::Gemm | Class::Elementwise));
        merged
            && product
            && last + 1 == perm.len()
            && before + 2 != perm.len()
            && f.carries_gemm[x.index()]
            && f.uses[x.index()].len() == 1
            && !f.output[x.index()]
            && !f.constant[x.index()]
            && !self.demanded[x.index()]
            && !self.homes.contains_key(&x)
    }

    /// The values that the kernel of `seeds` computes by itself.
    fn grow(
        &self,
        op: OpId,
        seeds: &[ValueId],
        forced: &HashSet<ValueId>,
        root_init: bool,
    ) -> HashSet<ValueId> {
        let g = self.unit.graph;
        let mut region: HashSet<ValueId> = HashSet::new();
        let mut heap: BinaryHeap<(usize, ValueId)> = BinaryHeap::new();
        let mut candidates: HashMap<ValueId, Candidate> = HashMap::new();
        let mut has_gemm = false;
        for &s in seeds {
            let is_root = g.def_op(s) == Some(op);
            let candidate = Candidate {
                exclusive_uses: if is_root {
                    usize::MAX
                } else {
                    g[op].operands.iter().filter(|&&o| o == s).count()
                },
                at_top: true,
                // a copy into another buffer or a sequential loop repeats no reduction, but the
                // engine wants its own domain
                no_gemm: !is_root,
                no_heavy: !is_root,
                ..Candidate::default()
            };
            if let Some(def) = g.def_op(s)
                && candidates.insert(s, candidate).is_none()
            {
                heap.push((self.facts.position[def.index()], s));
            }
        }
        while let Some((_, v)) = heap.pop() {
            let c = candidates[&v];
            let Some(def) = g.def_op(v) else { continue };
            let is_root = def == op && seeds.contains(&v);
            let exclusive = is_root
                || c.exclusive_uses >= self.facts.uses[v.index()].len()
                    && !self.facts.output[v.index()]
                    && !self.demanded[v.index()]
                    && !self.homes.contains_key(&v);
            let taken = || {
                !forced.contains(&v)
                    && self.takes(v, def, &c, exclusive, has_gemm, root_init)
                    && self.may_fuse(op, v, def)
            };
            if !is_root && !taken() {
                continue;
            }
            region.insert(v);
            let prim = &g[def].prim;
            has_gemm |= class(prim) == Class::Gemm;
            for (n, &x) in g[def].operands.iter().enumerate() {
                let Some(x_def) = g.def_op(x) else { continue };
                let next = candidates.entry(x).or_insert_with(|| {
                    heap.push((self.facts.position[x_def.index()], x));
                    Candidate::default()
                });
                next.exclusive_uses += exclusive as usize;
                self.pass_down(next, &c, prim, n, v, x);
            }
        }
        region
    }

    /// Asks for the decision to compute `v` inside of the kernel of `op`. Index patterns are no decision.
    fn may_fuse(&self, op: OpId, v: ValueId, def: OpId) -> bool {
        let g = self.unit.graph;
        if class(&g[def].prim) == Class::Source {
            return true;
        }
        *self.fusions.borrow_mut().entry((op, v)).or_insert_with(|| {
            let what = || format!("{} %{} into {}", g[def].prim.name(), v.0, g[op].prim.name());
            self.fuel.allow(FUSIONS, g[def].origin, what)
        })
    }

    /// What being operand `n` of `v`'s op means for `x`.
    fn pass_down(
        &self,
        x_info: &mut Candidate,
        c: &Candidate,
        prim: &Prim,
        n: usize,
        v: ValueId,
        x: ValueId,
    ) {
        let class = class(prim);
        let mut level = c.level;
        let mut at_top = c.at_top;
        match class {
            Class::Gemm => {
                x_info.plain = true;
                level = level.saturating_add(1);
                at_top = false;
            }
            Class::Reduce => {
                level = level.saturating_add(1);
                at_top = false;
            }
            Class::View => {
                x_info.plain |= c.plain;
                if matches!(prim, Prim::Slice { .. }) {
                    x_info.no_heavy = true;
                } else if matches!(prim, Prim::Broadcast { .. }) && expands(self.unit, x, v) {
                    x_info.no_gemm = true;
                    // a reduction that is broadcast along what encloses it does not depend on it;
                    // pulling finds out where that is not so
                    level = 0;
                    at_top = true;
                }
            }
            // each element is looked up several times: it is computed once, before
            Class::Select if matches!(prim, Prim::Gather { .. }) && n == 0 => {
                x_info.no_heavy = true;
                x_info.plain |= repeats(self.unit, x, v);
            }
            // the fill of a pad is a scalar
            Class::Select if !(matches!(prim, Prim::Pad { .. }) && n == 1) => x_info.no_heavy = true,
            _ => {}
        }
        x_info.no_gemm |= c.no_gemm;
        x_info.no_heavy |= c.no_heavy;
        x_info.level = x_info.level.max(level);
        x_info.at_top |= at_top;
    }

    /// True where the region takes `v` as an expression; false where it reads its buffer.
    fn takes(
        &self,
        v: ValueId,
        def: OpId,
        c: &Candidate,
        exclusive: bool,
        has_gemm: bool,
        root_init: bool,
    ) -> bool {
        let f = &self.facts;
        let i = v.index();
        let prim = &self.unit.graph[def].prim;
        let class = class(prim);
        if matches!(class, Class::Host | Class::Ordered | Class::Const) {
            return false;
        }
        if class == Class::Source {
            return true;
        }
        if self.demanded[i] || self.homes.contains_key(&v) {
            return false;
        }
        if class == Class::View {
            return !(c.plain && exclusive && self.rests_transposed(v, def));
        }
        if f.decoded[i] && !root_init {
            return true;
        }
        // computed once per program
        if f.constant[i] && !root_init && !f.cheap[i] {
            return false;
        }
        if c.plain && !(f.cheap[i] && f.constant[i]) {
            return false;
        }
        let carries = f.carries_gemm[i] || f.carries_reduce[i];
        match class {
            Class::Elementwise if !exclusive => f.cheap[i] && !carries,
            // somewhere above the other contraction a buffer begins: best where it is small
            Class::Elementwise if has_gemm && f.carries_gemm[i] && self.is_narrow(v) => false,
            Class::Elementwise => {
                let repeats_reduction =
                    c.level > 0 && carries || c.no_gemm && f.carries_gemm[i] || c.no_heavy && carries;
                let costly_twice = c.level > 0 && c.at_top && f.weight[i] > 24;
                !repeats_reduction && !costly_twice
            }
            Class::Select => {
                let elems = static_elems(&self.unit.graph[v].ty.shape);
                let small = elems.is_some_and(|n| n <= 64);
                exclusive
                    && (small || matches!(prim, Prim::Gather { .. }) || pieces(self.unit, def).is_empty())
            }
            Class::Reduce => exclusive && c.level == 0 && !c.no_heavy,
            Class::Gemm => exclusive && c.level == 0 && !c.no_heavy && !c.no_gemm && !has_gemm,
            _ => false,
        }
    }
}
