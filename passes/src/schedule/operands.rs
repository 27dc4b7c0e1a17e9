//! What a contraction wants of its operands, before their layouts are final.
//!
//! A contraction is a sum of products of two factors, each of which depends on a domain axis that the
//! other does not. The factor that depends on the contiguous axis of the result is the *column* operand:
//! its elements lie in vector lanes, so it must be contiguous along that axis. The *row* operand is read
//! one element at a time; any affine, unguarded read will do.

use super::analyse::{Analysis, Step};
use super::choose::column_tile;
use super::{dots, normal_form};
use crate::error::Result;
use crate::lower::axes::{dtype_of, expr_vars};
use crate::lower::{access, space::VarFacts, space::vars_of};
use ir::kernel::{BufId, Dot, Expr, ExprId, Kernel, Stmt};
use ir::layout::Frag;
use ir::prim::BinaryOp;
use ir::target::TargetDesc;
use ir::{Dim, Layout, Monoid, Symbols, Var};

/// What has to happen to an operand so that the engine reads it at full speed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing.
    Ready,
    /// A constant: this layout.
    Pack(Layout),
    /// A halo of zeros of at least so many elements (before, after), by logical dim of the buffer.
    Halo(Vec<(usize, usize)>),
    /// The factor as a tensor over these axes, outermost first, row-major.
    Stage(Vec<Var>),
}

/// One factor of a contraction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operand {
    /// The factor: an expression of the kernel.
    pub factor: ExprId,
    /// The buffer, where the factor is a read, or a conversion of one.
    pub buf: Option<BufId>,
    pub column: bool,
    pub need: Need,
}

/// The first contraction of a kernel.
struct Found {
    product: ExprId,
    factors: [ExprId; 2],
    /// Axes of the reduction.
    reduce: Vec<Var>,
    /// The axis in lanes, and the factor that depends on it.
    col: Var,
    col_factor: usize,
}

/// The operands of the kernel's contraction, row operand first; none where it is no contraction.
///
/// The needs follow from the layouts that the other buffers have now: set those of activations first.
///
/// # Errors
/// Where the kernel is malformed.
pub fn operands(kernel: &Kernel, symbols: &Symbols, target: &TargetDesc) -> Result<Vec<Operand>> {
    if kernel.generated.is_some() {
        return Ok(Vec::new());
    }
    let facts = VarFacts::of(kernel, symbols);
    let linear = access::linearise(kernel, &facts)?;
    let a = Analysis::of(&linear, symbols);
    let Some(found) = find(kernel, &linear, &a) else { return Ok(Vec::new()) };
    let word = word_axis(kernel, &found, &facts, target);
    let mut result = Vec::new();
    for (i, factor) in found.factors.into_iter().enumerate() {
        let column = i == found.col_factor;
        let read = plain_read(kernel, factor);
        if column
            && read.is_none()
            && let Some(layouts) = decoded(kernel, symbols, target, &found, &facts)?
        {
            for (buf, layout) in layouts {
                let ready = layout == kernel.buffers[buf.0 as usize].layout;
                let need = if ready { Need::Ready } else { Need::Pack(layout) };
                result.push(Operand { factor, buf: Some(buf), column, need });
            }
            continue;
        }
        let need = match read {
            // conversions belong outside of the loop over the products
            Some((buf, _))
                if word.is_none()
                    && is_widened(kernel, factor, buf)
                    && stages(kernel, &facts, factor, &found, column) =>
            {
                stage(kernel, &facts, factor, &found, column)
            }
            Some((buf, _)) if kernel.buffers[buf.0 as usize].constant => {
                let layout = match column {
                    true => packed(kernel, symbols, target, buf, &found, word, &facts)?,
                    false => follow(kernel, buf, &found, &facts),
                };
                if layout == kernel.buffers[buf.0 as usize].layout { Need::Ready } else { Need::Pack(layout) }
            }
            Some((buf, read)) => of_read(kernel, &a, &facts, buf, read, column.then_some(found.col))
                .unwrap_or_else(|| stage(kernel, &facts, factor, &found, column)),
            None => stage(kernel, &facts, factor, &found, column),
        };
        result.push(Operand { factor, buf: read.map(|r| r.0), column, need });
    }
    result.sort_by_key(|o| o.column);
    Ok(result)
}

/// The layout in which `buf`, a constant operand of `kernel`, is read fastest; `None` where its present
/// one is as good.
///
/// # Errors
/// Where the kernel is malformed.
pub fn constant_layout(
    kernel: &Kernel,
    buf: BufId,
    symbols: &Symbols,
    target: &TargetDesc,
) -> Result<Option<Layout>> {
    let known = operands(kernel, symbols, target)?;
    Ok(known.into_iter().find(|o| o.buf == Some(buf)).and_then(|o| match o.need {
        Need::Pack(l) => Some(l),
        _ => None,
    }))
}

fn find(kernel: &Kernel, linear: &Kernel, a: &Analysis) -> Option<Found> {
    let domain: Vec<Var> = kernel.domain.iter().map(|x| x.var).collect();
    let (reduce, value) = kernel.stmts.iter().find_map(|s| match s {
        Stmt::Reduce { monoid: Monoid::Sum, axes, value, .. } => Some((axes, *value)),
        _ => None,
    })?;
    let Expr::Binary(BinaryOp::Mul, x, y) = kernel.get(value) else { return None };
    let factors = [*x, *y];
    let [dx, dy] = factors.map(|f| {
        let mut vars = Vec::new();
        expr_vars(kernel, f, &mut vars);
        vars
    });
    let store = linear.stmts.iter().find_map(|s| match s {
        Stmt::Store { index, .. } => Some(&index[0]),
        _ => None,
    })?;
    // the result's most contiguous axis, where one factor alone depends on it
    let distance = |v: Var| match a.step(store, v, None) {
        Step::Zero | Step::Irregular => f64::MAX,
        Step::One => 1.0,
        Step::By(d) => a.estimate(&d).max(2.0),
    };
    let own = |v: &Var| dx.contains(v) != dy.contains(v);
    let col = domain.iter().copied().min_by(|u, v| distance(*u).total_cmp(&distance(*v))).filter(own)?;
    let reduce = reduce.iter().map(|x| x.var).collect();
    Some(Found { product: value, factors, reduce, col, col_factor: usize::from(dy.contains(&col)) })
}

/// The read that a factor is, conversions aside.
fn plain_read(k: &Kernel, e: ExprId) -> Option<(BufId, ExprId)> {
    match k.get(e) {
        Expr::Read { buf, .. } => Some((*buf, e)),
        Expr::Convert(_, _, x) => plain_read(k, *x),
        _ => None,
    }
}

/// The reduce axis whose elements lie in words of the target's dot products, where both operands can lie so.
fn word_axis(kernel: &Kernel, found: &Found, facts: &VarFacts, target: &TargetDesc) -> Option<(Dot, Var)> {
    let (dot, _) = dots::product(kernel, found.product).filter(|p| target.words(p.0).is_some())?;
    let operand = |i: usize| {
        let (buf, e) = plain_read(kernel, found.factors[i])?;
        let Expr::Read { index, .. } = kernel.get(e) else { return None };
        Some((&kernel.buffers[buf.0 as usize], index))
    };
    let ((row, ri), (col, ci)) = (operand(1 - found.col_factor)?, operand(found.col_factor)?);
    let offset = access::offset(ri, &row.shape, &row.layout, facts);
    let axis = found.reduce.iter().copied().find(|v| {
        let Some(extent) = facts.extent(*v) else { return false };
        let own = |index: &[Dim]| index.iter().position(|i| *i == Dim::from(*v));
        let padded = own(ri).is_some_and(|d| dots::keeps_words(row, d, dot) && row.shape[d] == *extent);
        own(ci).is_some_and(|d| col.shape[d] == *extent)
            && dots::suits(&offset, *v, extent, padded, dot, facts)
    })?;
    col.constant.then_some((dot, axis))
}

/// What a plain read needs; `None` where nothing but staging helps.
fn of_read(
    kernel: &Kernel,
    a: &Analysis,
    facts: &VarFacts,
    buf: BufId,
    read: ExprId,
    col: Option<Var>,
) -> Option<Need> {
    let Expr::Read { index, guards, fill, .. } = kernel.get(read) else { return None };
    let b = &kernel.buffers[buf.0 as usize];
    let offset = access::offset(index, &b.shape, &b.layout, facts);
    let panel = col.and_then(|c| a.panel(c));
    let regular = vars_of(&offset).into_iter().all(|v| {
        let step = a.step(&offset, v, if Some(v) == col { panel } else { None });
        step != Step::Irregular && (Some(v) != col || step == Step::One)
    });
    if !regular {
        return None;
    }
    let open: Vec<_> = guards.iter().filter(|g| !crate::index::inside(g, facts)).collect();
    if open.is_empty() {
        return Some(Need::Ready);
    }
    // what the index can reach beyond the tensor must hold the fill value
    if fill.as_f64() != 0.0 {
        return None;
    }
    let mut halo = vec![(0, 0); index.len()];
    for g in open {
        let d = index.iter().zip(&b.shape).position(|(i, n)| *i == g.expr && *n == g.bound)?;
        let below = -g.expr.bounds(facts).0;
        let above = greatest(&(&g.expr - &g.bound), facts) + 1;
        let most = |x: i64| usize::try_from(x.max(0)).ok().filter(|x| *x <= 64);
        halo[d] = (most(below)?, most(above)?);
    }
    let enough = halo.iter().zip(&b.layout.halo).all(|(n, h)| n.0 <= h.0 && n.1 <= h.1);
    Some(if enough { Need::Ready } else { Need::Halo(halo) })
}

/// An upper bound of an expression in which symbols may cancel once indices take their last values.
fn greatest(d: &Dim, facts: &VarFacts) -> i64 {
    let last: Vec<(Var, Dim)> = vars_of(d)
        .into_iter()
        .filter(|v| d.affine_in(*v).is_some_and(|(c, _)| c.as_const().is_some_and(|c| c > 0)))
        .filter_map(|v| Some((v, facts.extent(v)? - &Dim::from(1))))
        .collect();
    let at_last = crate::lower::space::substitute(d, facts, &last);
    at_last.bounds(facts).1.min(d.bounds(facts).1)
}

/// True where the factor converts narrow floats of a buffer, which takes several instructions for each
/// element. Integers are widened by their loads, and staging them would only quadruple the traffic.
fn is_widened(kernel: &Kernel, factor: ExprId, buf: BufId) -> bool {
    let from = kernel.buffers[buf.0 as usize].dtype;
    from.is_float() && dtype_of(kernel, factor, &[]).bytes() > from.bytes()
}

/// True where [`stage`] stages.
fn stages(kernel: &Kernel, facts: &VarFacts, factor: ExprId, found: &Found, column: bool) -> bool {
    matches!(stage(kernel, facts, factor, found, column), Need::Stage(_))
}

/// A constant row operand: the reduction runs through it in the order in which it runs through the other.
fn follow(kernel: &Kernel, buf: BufId, found: &Found, facts: &VarFacts) -> Layout {
    let b = &kernel.buffers[buf.0 as usize];
    let row = found.factors[1 - found.col_factor];
    let Some(Expr::Read { index, .. }) = plain_read(kernel, row).map(|r| kernel.get(r.1)) else {
        return b.layout.clone();
    };
    let distance = distances(kernel, found.factors[found.col_factor], facts);
    let reduced = |d: &usize| vars_of(&index[*d]).iter().any(|v| found.reduce.contains(v));
    let (mut inner, outer): (Vec<usize>, Vec<usize>) = (0..b.shape.len()).partition(reduced);
    let key = |d: &usize| vars_of(&index[*d]).into_iter().map(&distance).fold(0.0, f64::max);
    inner.sort_by(|x, y| key(y).total_cmp(&key(x)));
    let order: Vec<usize> = outer.into_iter().chain(inner).collect();
    let ones_aside = |l: &Layout| -> Vec<usize> {
        l.frags.iter().map(|f| f.dim).filter(|d| !b.shape[*d].is_const(1)).collect()
    };
    let layout = Layout::permuted(&order);
    let same = b.layout.frags.iter().all(|f| f.len.is_none()) && ones_aside(&layout) == ones_aside(&b.layout);
    if same { b.layout.clone() } else { layout }
}

/// Distance in memory between neighbours along a variable, in a factor that is a read.
fn distances<'a>(kernel: &'a Kernel, factor: ExprId, facts: &'a VarFacts) -> impl Fn(Var) -> f64 + 'a {
    let offset = plain_read(kernel, factor).and_then(|(buf, e)| match kernel.get(e) {
        Expr::Read { index, .. } => {
            let b = &kernel.buffers[buf.0 as usize];
            Some(access::offset(index, &b.shape, &b.layout, facts))
        }
        _ => None,
    });
    move |v| {
        let coef = offset.as_ref().and_then(|o| o.affine_in(v)).map(|c| c.0);
        coef.map_or(0.0, |c| facts.estimate(&c))
    }
}

/// Staged factors have their reduce axes innermost, column operands their column axis.
fn stage(kernel: &Kernel, facts: &VarFacts, factor: ExprId, found: &Found, column: bool) -> Need {
    let mut vars = Vec::new();
    expr_vars(kernel, factor, &mut vars);
    let domain = kernel.domain.iter().map(|x| x.var).filter(|v| vars.contains(v));
    let mut axes: Vec<Var> = domain.filter(|v| !column || *v != found.col).collect();
    axes.extend(found.reduce.iter().copied().filter(|v| vars.contains(v)));
    if column {
        axes.push(found.col);
    }
    // windows would be stored once for each place they cover
    let elems = |b: BufId| Dim::product(&kernel.buffers[b.0 as usize].shape);
    if let Some((buf, _)) = plain_read(kernel, factor) {
        let staged: f64 = axes.iter().filter_map(|v| facts.extent(*v)).map(|e| facts.estimate(e)).product();
        if staged > 2.0 * facts.estimate(&elems(buf)).max(1.0) {
            return Need::Ready;
        }
    }
    Need::Stage(axes)
}

/// `[batch][n / NR][k ...][n % NR]` where the tile of the schedule has NR columns. The order of the
/// reduce axes follows the steps of the row operand, so that both operands run through memory. The parts of a
/// word (`word`: kind of dot product, axis) lie innermost.
fn packed(
    kernel: &Kernel,
    symbols: &Symbols,
    target: &TargetDesc,
    buf: BufId,
    found: &Found,
    word: Option<(Dot, Var)>,
    facts: &VarFacts,
) -> Result<Layout> {
    let b = &kernel.buffers[buf.0 as usize];
    let read = plain_read(kernel, found.factors[found.col_factor]);
    let Some(order) = read.and_then(|r| Order::of(kernel, r.1, found, word, facts)) else {
        return Ok(b.layout.clone());
    };
    let plain = order.plain();
    // the schedule for a contiguous column operand says how many columns a tile has
    let mut probe = kernel.clone();
    probe.buffers[buf.0 as usize].layout = plain.clone();
    let normal = normal_form(&probe, symbols)?;
    let Some(nr) = column_tile(&normal, symbols, target) else { return Ok(plain) };
    // a panel may not straddle two groups
    let extent = facts.extent(found.col).cloned().unwrap_or_else(|| Dim::from(1));
    if !order.alone && !extent.divisible_by(nr.into(), facts) || order.alone && extent.is_const(nr.into()) {
        return Ok(plain);
    }
    Ok(order.panels(nr as usize))
}

/// The dims of a constant column operand in the order in which they are to lie.
struct Order {
    batch: Vec<usize>,
    /// Dims of the reduction, outermost first.
    inner: Vec<usize>,
    /// The dim that the column axis runs through, and whether that axis alone does.
    col: usize,
    alone: bool,
    /// Parts of a word, and the dim that they belong to.
    word: Option<(usize, usize)>,
}

impl Order {
    /// `None` where `read` does not depend on the column axis.
    fn of(
        kernel: &Kernel,
        read: ExprId,
        found: &Found,
        word: Option<(Dot, Var)>,
        facts: &VarFacts,
    ) -> Option<Order> {
        let Expr::Read { buf, index, .. } = kernel.get(read) else { return None };
        let distance = distances(kernel, found.factors[1 - found.col_factor], facts);
        let of_dim = |d: usize| vars_of(&index[d]);
        let (mut batch, mut inner, mut col) = (Vec::new(), Vec::new(), None);
        for (d, size) in kernel.buffers[buf.0 as usize].shape.iter().enumerate() {
            let vars = of_dim(d);
            if vars.contains(&found.col) {
                col = Some(d);
            } else if vars.iter().any(|v| found.reduce.contains(v)) && !size.is_const(1) {
                inner.push(d);
            } else {
                batch.push(d);
            }
        }
        let col = col?;
        let key = |d: &usize| of_dim(*d).into_iter().map(&distance).fold(0.0, f64::max);
        inner.sort_by(|x, y| key(y).total_cmp(&key(x)));
        let word = word.and_then(|(dot, v)| {
            Some((dot.parts(), inner.iter().copied().find(|d| of_dim(*d).contains(&v))?))
        });
        Some(Order { batch, inner, alone: index[col] == Dim::from(found.col), col, word })
    }

    fn whole(&self, dim: usize) -> Frag {
        let div = self.word.filter(|w| w.1 == dim).map_or(1, |w| w.0);
        Frag { dim, div, len: None }
    }
    fn layout(&self, outer: Option<Frag>, col: Frag) -> Layout {
        let mut frags: Vec<Frag> = self.batch.iter().map(|d| self.whole(*d)).collect();
        frags.extend(outer);
        frags.extend(self.inner.iter().map(|d| self.whole(*d)));
        frags.push(col);
        frags.extend(self.word.map(|(parts, dim)| Frag { dim, div: 1, len: Some(parts) }));
        let rank = self.batch.len() + self.inner.len() + 1;
        Layout { frags, halo: vec![(0, 0); rank] }
    }
    /// `[batch][k ...][n]`
    fn plain(&self) -> Layout {
        self.layout(None, Frag { dim: self.col, div: 1, len: None })
    }
    /// `[batch][n / nr][k ...][n % nr]`
    fn panels(&self, nr: usize) -> Layout {
        let outer = Frag { dim: self.col, div: nr, len: None };
        self.layout(Some(outer), Frag { dim: self.col, div: 1, len: Some(nr) })
    }
}

/// Reads of constants that an expression is computed from; `None` where it reads anything else.
fn constant_reads(kernel: &Kernel, e: ExprId) -> Option<Vec<ExprId>> {
    let (mut reads, mut stack) = (Vec::new(), vec![e]);
    while let Some(e) = stack.pop() {
        match kernel.get(e) {
            Expr::Read { buf, guards, .. } => {
                if !kernel.buffers[buf.0 as usize].constant || !guards.is_empty() {
                    return None;
                }
                if !reads.contains(&e) {
                    reads.push(e);
                }
            }
            Expr::Local(_) | Expr::Inside(_) | Expr::Bind { .. } => return None,
            other => stack.extend(crate::kernels::children(other)),
        }
    }
    Some(reads)
}

/// The layouts in which a column factor is decoded, in registers, from constants of at most half its bytes; `None`
/// where it is no such factor.
fn decoded(
    kernel: &Kernel,
    symbols: &Symbols,
    target: &TargetDesc,
    found: &Found,
    facts: &VarFacts,
) -> Result<Option<Vec<(BufId, Layout)>>> {
    let factor = found.factors[found.col_factor];
    let Some(reads) = constant_reads(kernel, factor) else { return Ok(None) };
    let mut vars = Vec::new();
    expr_vars(kernel, factor, &mut vars);
    let size = |v: &Var| facts.extent(*v).and_then(Dim::as_const).map(|n| n as f64);
    let Some(elems) = vars.iter().map(size).try_fold(1.0, |n, d| Some(n * d?)) else { return Ok(None) };
    let mut orders: Vec<(BufId, Order)> = Vec::new();
    let mut bytes = 0.0;
    for read in reads {
        let Expr::Read { buf, .. } = kernel.get(read) else { return Ok(None) };
        let b = &kernel.buffers[buf.0 as usize];
        if orders.iter().any(|o| o.0 == *buf) {
            return Ok(None);
        }
        let elems = Dim::product(&b.shape);
        if elems.is_const(1) {
            continue;
        }
        let Some(order) = Order::of(kernel, read, found, None, facts).filter(|o| o.alone) else {
            return Ok(None);
        };
        bytes += facts.estimate(&elems) * b.dtype.bytes() as f64;
        orders.push((*buf, order));
    }
    if orders.is_empty() || 2.0 * bytes > elems * dtype_of(kernel, factor, &[]).bytes() as f64 {
        return Ok(None);
    }
    let mut probe = kernel.clone();
    for (buf, order) in &orders {
        probe.buffers[buf.0 as usize].layout = order.plain();
    }
    let nr = column_tile(&normal_form(&probe, symbols)?, symbols, target);
    let panels = nr.filter(|nr| size(&found.col) != Some(f64::from(*nr)));
    let layout = |o: &Order| panels.map_or_else(|| o.plain(), |nr| o.panels(nr as usize));
    Ok(Some(orders.iter().map(|(buf, o)| (*buf, layout(o))).collect()))
}
