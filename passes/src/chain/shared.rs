//! The domain that the stages of a chain share.
//!
//! Derived from index maps alone. A buffer between two stages has an axis in common with both where every
//! store and read of it goes, along one of its dims, by axes of the stage's domain: by one axis, or by
//! several of which the index is the row-major number (`(n * rows + y) * cols + x`). For each value of the shared
//! axis a stage then reads exactly what the stages before it wrote for the same value.

use ir::kernel::{Access, Axis, BufId, Expr, Kernel, Stmt};
use ir::{Dim, Var};
use std::collections::BTreeMap;

/// One axis of the shared domain.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedAxis {
    pub extent: Dim,
    /// By stage: axes of its domain, outermost first, of which the shared one is the row-major number.
    pub parts: Vec<Vec<Axis>>,
    /// Dims of buffers between stages that it runs along.
    pub dims: Vec<(BufId, usize)>,
}

/// A set of dims that the same axes index.
struct Class {
    dims: Vec<(BufId, usize)>,
    parts: BTreeMap<usize, Vec<Axis>>,
    dead: bool,
}

/// Buffers of a chain that one stage writes and another reads.
pub fn links(chain: &Kernel) -> Vec<BufId> {
    let touches = |b: BufId, access: Access| {
        chain
            .stages
            .iter()
            .any(|s| s.args.iter().zip(&s.kernel.buffers).any(|(a, x)| *a == b && x.access == access))
    };
    let all = (0..chain.buffers.len() as u32).map(BufId);
    all.filter(|b| touches(*b, Access::Write) && touches(*b, Access::Read)).collect()
}

/// Axes that the domains of all stages have in common, in the order of the last stage's domain.
pub fn shared_axes(chain: &Kernel) -> Vec<SharedAxis> {
    let links = links(chain);
    let mut classes: Vec<Class> = Vec::new();
    // axes of a stage's domain that index a link in some other way: no block of them stands alone
    let mut spoilt: Vec<(usize, Var)> = Vec::new();
    for &b in &links {
        for (d, size) in chain.buffers[b.0 as usize].shape.iter().enumerate() {
            let mut class = Class { dims: vec![(b, d)], parts: BTreeMap::new(), dead: false };
            for (s, stage) in chain.stages.iter().enumerate() {
                for index in accesses(&stage.kernel, &stage.args, b) {
                    match row_major_parts(&index[d], &stage.kernel.domain, size) {
                        Some(parts) => {
                            let known = class.parts.entry(s).or_insert_with(|| parts.clone());
                            class.dead |= *known != parts;
                        }
                        None => {
                            class.dead = true;
                            spoilt
                                .extend(crate::lower::space::vars_of(&index[d]).into_iter().map(|v| (s, v)));
                        }
                    }
                }
            }
            join(&mut classes, class);
        }
    }
    for c in &mut classes {
        let spoils = |(s, parts): (&usize, &Vec<Axis>)| parts.iter().any(|a| spoilt.contains(&(*s, a.var)));
        c.dead |= c.parts.iter().any(spoils);
        c.dead |= c.parts.len() != chain.stages.len();
        // every link is cut along the axis, or one block would overwrite what another one reads
        c.dead |= links.iter().any(|b| c.dims.iter().all(|(x, _)| x != b));
    }
    let mut axes: Vec<SharedAxis> = classes
        .into_iter()
        .filter(|c| !c.dead)
        .map(|c| {
            let (b, d) = c.dims[0];
            let extent = chain.buffers[b.0 as usize].shape[d].clone();
            SharedAxis { extent, parts: c.parts.into_values().collect(), dims: c.dims }
        })
        .filter(|a| !a.extent.is_const(1))
        .collect();
    let place = |a: &SharedAxis| {
        let last = chain.stages.last().zip(a.parts.last().and_then(|p| p.first()));
        last.and_then(|(s, first)| s.kernel.domain.iter().position(|x| x.var == first.var))
    };
    axes.sort_by_key(place);
    axes
}

/// Adds a class: it becomes one with those that have axes in common with it.
fn join(classes: &mut Vec<Class>, mut class: Class) {
    let meets = |a: &Class, b: &Class| {
        a.parts
            .iter()
            .any(|(s, p)| b.parts.get(s).is_some_and(|q| p.iter().any(|x| q.iter().any(|y| x.var == y.var))))
    };
    while let Some(i) = classes.iter().position(|c| meets(c, &class)) {
        let other = classes.remove(i);
        class.dead |= other.dead;
        class.dims.extend(other.dims);
        for (s, parts) in other.parts {
            let known = class.parts.entry(s).or_insert_with(|| parts.clone());
            class.dead |= *known != parts;
        }
    }
    // dims of extent 1 are indexed by nothing
    if class.parts.values().all(Vec::is_empty) {
        return;
    }
    class.dims.sort();
    classes.push(class);
}

/// Indices of all accesses of a stage to buffer `b` of the chain.
fn accesses<'a>(k: &'a Kernel, args: &[BufId], b: BufId) -> Vec<&'a [Dim]> {
    let is = |x: &BufId| args.get(x.0 as usize) == Some(&b);
    let reads = k.exprs().iter().filter_map(|e| match e {
        Expr::Read { buf, index, .. } if is(buf) => Some(index.as_slice()),
        _ => None,
    });
    let stores = k.stmts.iter().filter_map(|s| match s {
        Stmt::Store { buf, index, .. } if is(buf) => Some(index.as_slice()),
        _ => None,
    });
    reads.chain(stores).collect()
}

/// The axes, outermost first, of which `index` is the row-major number, where they cover `0..size`.
fn row_major_parts(index: &Dim, domain: &[Axis], size: &Dim) -> Option<Vec<Axis>> {
    let mut rest = index.clone();
    let mut stride = Dim::from(1);
    let mut parts: Vec<Axis> = Vec::new();
    while !rest.is_const(0) {
        let (axis, left) = domain.iter().find_map(|a| {
            let (coef, left) = rest.affine_in(a.var)?;
            (coef == stride).then_some((a, left))
        })?;
        stride = stride * &axis.extent;
        rest = left;
        parts.push(axis.clone());
    }
    parts.reverse();
    (stride == *size).then_some(parts)
}
