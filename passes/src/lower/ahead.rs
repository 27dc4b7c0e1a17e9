//! Panels of packed weights, asked for ahead of their use.
//!
//! A contraction goes through its column operand panel by panel, and through all rows of a panel before the
//! next one. The first rows then wait for memory, the others find the panel in the cache. So the loop over the
//! products of one panel asks for the next panel, a few elements at each step: tile `t` of the panel's
//! tiles and step `k` of the reduction ask for the `ahead` elements from `(t * steps + k) * ahead` of it.
//!
//! Where a panel serves one tile alone (a product of one row), all is read once and in order, and each step asks for what
//! comes [`DISTANCE`] bytes later: the processor's own prefetchers follow from too near where much is computed with each byte,
//! and stop at the ends of pages.

use super::space::{VarFacts, substitute};
use crate::schedule::{ColTile, Edge, Schedule};
use ir::kernel::{BufId, Expr, ExprId, Kernel, Stmt};
use ir::prim::BinaryOp;
use ir::{Dim, Var};

/// Bytes that one prefetch asks for.
pub const LINE: usize = 64;
/// What a core reads from main memory while it waits for one line, and some more: 14 bytes in a nanosecond were measured on an Intel,
/// and 2, 4 and 8 KB were as good as one another.
const DISTANCE: i64 = 4096;

/// The panels of a contraction's column operand: contiguous, one behind the other.
pub struct Panel {
    pub buf: BufId,
    /// Offset of the operand's element.
    offset: Dim,
    /// Axes of the reduction with the elements between their steps.
    steps: Vec<(Var, i64)>,
    /// Elements of a panel: columns times steps of the reduction.
    elems: i64,
    cols: i64,
    /// Axis of the columns, and whether it runs through all panels.
    axis: Var,
    whole: bool,
}

impl Panel {
    /// Which panel it is depends on this axis of the domain.
    pub fn uses(&self, v: Var) -> bool {
        self.offset.uses_var(v)
    }
}

/// The panels of a kernel in normal form whose columns are those of `cols`; `None` where it is no contraction
/// or the operand lies in another order.
pub fn panel(k: &Kernel, cols: &ColTile, facts: &VarFacts) -> Option<Panel> {
    let size = i64::from(cols.size);
    if !cols.panel && (cols.edge != Edge::Exact || !facts.extent(cols.axis)?.is_const(size)) {
        return None;
    }
    let mut reductions = k.stmts.iter().filter_map(|s| match s {
        Stmt::Reduce { axes, value, .. } => Some((axes, *value)),
        _ => None,
    });
    let (axes, value) = reductions.next().filter(|_| reductions.next().is_none())?;
    let (Expr::Binary(BinaryOp::Mul, x, y) | Expr::Dot(_, x, y)) = k.get(value) else { return None };
    let elems = |b: &BufId| Dim::product(&k.buffers[b.0 as usize].shape).as_const().unwrap_or(0);
    let mut reads = Vec::new();
    [*x, *y].into_iter().for_each(|e| plain_reads(k, e, &mut reads));
    let (buf, offset) = reads
        .into_iter()
        .filter(|(buf, offset)| k.buffers[buf.0 as usize].constant && offset.uses_var(cols.axis))
        .max_by_key(|(buf, _)| elems(buf))?;
    // in panels: tile and column of the axis
    let (tile, lane) = (Var(k.vars.len() as u32), Var(k.vars.len() as u32 + 1));
    let (inside, column) = if cols.panel {
        let mut facts = facts.clone();
        facts.set(tile, facts.extent(cols.axis)?.ceil_div(&Dim::from(size), &facts));
        facts.set(lane, Dim::from(size));
        let by = Dim::from(tile) * Dim::from(size) + Dim::from(lane);
        (substitute(offset, &facts, &[(cols.axis, by)]), lane)
    } else {
        (offset.clone(), cols.axis)
    };
    let coef = |v: Var| inside.affine_in(v).and_then(|(c, _)| c.as_const());
    if coef(column) != Some(1) {
        return None;
    }
    let mut steps = Vec::new();
    for a in axes {
        // places in a byte move on in no memory
        if inside.uses_var(a.var) {
            steps.push((a.var, coef(a.var)?, a.extent.as_const()?));
        }
    }
    steps.sort_by_key(|s| s.1);
    let mut elems = size;
    for (_, coef, extent) in &steps {
        if *coef != elems {
            return None;
        }
        elems = elems.checked_mul(*extent)?;
    }
    let steps = steps.into_iter().map(|(v, coef, _)| (v, coef)).collect();
    Some(Panel { buf, offset: offset.clone(), steps, elems, cols: size, axis: cols.axis, whole: cols.panel })
}

/// The unguarded reads that a factor is computed from, with their offsets.
fn plain_reads<'k>(k: &'k Kernel, e: ExprId, found: &mut Vec<(BufId, &'k Dim)>) {
    match k.get(e) {
        Expr::Read { buf, index, guards, .. } if guards.is_empty() => {
            found.extend(index.first().map(|i| (*buf, i)));
        }
        other => crate::kernels::children(other).into_iter().for_each(|c| plain_reads(k, c, found)),
    }
}

/// An axis of the domain whose points share a panel.
pub struct Sharing {
    pub axis: Var,
    /// Points of one tile.
    size: i64,
    /// Its points that follow one another, where threads share out blocks of it before they go through the panels.
    block: Option<i64>,
}

impl Sharing {
    /// Tiles that one panel serves, one after another.
    pub fn tiles(&self, facts: &VarFacts) -> Dim {
        let all = facts.extent(self.axis).cloned().unwrap_or_else(|| Dim::from(1));
        let points = self.block.map_or(all, Dim::from);
        points.ceil_div(&Dim::from(self.size), facts)
    }
}

/// Axes of the domain whose points share a panel, outermost loop first.
pub fn sharing(k: &Kernel, s: &Schedule, panel: &Panel) -> Vec<Sharing> {
    let mut found: Vec<Sharing> = Vec::new();
    let mut before = true;
    for l in &s.loops {
        if panel.uses(l.axis) {
            before = false;
            continue;
        }
        let known = k.domain.iter().any(|a| a.var == l.axis);
        if !known || found.iter().any(|f| f.axis == l.axis) {
            continue;
        }
        let size = s.rows.filter(|r| r.axis == l.axis).map_or(1, |r| i64::from(r.size));
        let block = (before && l.parallel).then_some(i64::from(l.step));
        found.push(Sharing { axis: l.axis, size, block });
    }
    found
}

/// Where in the operand's memory the first of the elements lies that the current step asks for. `row`: the
/// variable that holds the first row of the tile.
pub fn place(k: &Kernel, s: &Schedule, panel: &Panel, row: Option<Var>, facts: &VarFacts) -> Dim {
    let zero = |v: Var| (v, Dim::from(0));
    let cols = Dim::from(panel.cols);
    let first = match panel.whole {
        true => Dim::from(panel.axis).floor_div(&cols, facts) * &cols,
        false => Dim::from(0),
    };
    let here: Vec<(Var, Dim)> = panel.steps.iter().map(|x| zero(x.0)).chain([(panel.axis, first)]).collect();
    let start = substitute(&panel.offset, facts, &here);
    let steps = panel.steps.iter();
    let step = steps.fold(Dim::from(0), |sum, (v, coef)| sum + Dim::from(*v) * Dim::from(coef / panel.cols));
    if i64::from(s.ahead) >= panel.cols {
        let bytes = k.buffers[panel.buf.0 as usize].dtype.bytes() as i64;
        return start + step * cols + Dim::from(DISTANCE / bytes);
    }
    let start = start + Dim::from(panel.elems);
    let mut tile = Dim::from(0);
    for f in sharing(k, s, panel) {
        let at = match row.filter(|_| s.rows.is_some_and(|r| r.axis == f.axis && r.size > 1)) {
            Some(base) => Dim::from(base).floor_div(&Dim::from(f.size), facts),
            None => Dim::from(f.axis),
        };
        let count = f.tiles(facts);
        let at = if f.block.is_some() { at.modulo(&count, facts) } else { at };
        tile = tile * count + at;
    }
    // what more tiles than needed would ask for lies behind the next panel
    let ahead = i64::from(s.ahead).max(1);
    let enough = panel.cols / ahead;
    let tile = tile.min_with(&Dim::from(enough), facts);
    start + (tile * Dim::from(panel.elems / panel.cols) + step) * Dim::from(ahead)
}
