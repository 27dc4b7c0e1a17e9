//! Tiles of the output: each reads what its places need, with the neighbours' elements.

use super::{Form, Parts, Result, Site};
use crate::group::Temp;
use crate::kernels::{Build, KernelUnit};
use ir::kernel::{Guard, Stmt};
use ir::prim::Combine;

/// Kernels of the group, in order of execution. `temps` get the buffers between them; `None` where the
/// epilogue uses the convolution's result at other places than its own.
pub fn build(b: &Build, site: Site, form: Form, temps: &mut Vec<Temp>) -> Result<Option<Vec<KernelUnit>>> {
    let g = b.unit.graph;
    let out = &g[site.conv].ty.shape;
    let parts = Parts::new(b, site, form, &out[2..], temps);
    // B' d B of what the places of a tile read
    let mut units =
        vec![parts.weights(false)?, parts.input(form.read(), &parts.transforms.input)?, parts.products()?];

    // output: A' m A, and the epilogue at each place
    let mut p = b.puller();
    let (axes, at) = parts.axes(&mut p, ("co", &parts.co));
    let sums = parts.products_of(&mut p, &at);
    let values = parts.transforms.output.both_ways(&mut p, &sums);
    let mut stores = Vec::new();
    for (s, value) in values.into_iter().enumerate() {
        let (row, col) = (at.row(s as i64 / form.tile), at.col(s as i64 % form.tile));
        let index = vec![at.n.clone(), at.c.clone(), row.clone(), col.clone()];
        let guards = [(row, &out[2]), (col, &out[3])];
        let guards: Vec<Guard> =
            guards.into_iter().map(|(expr, bound)| Guard { expr, bound: bound.clone() }).collect();
        let guards = crate::index::simplify_guards(&guards, &p.facts()).unwrap_or_default();
        p.overrides.insert((site.conv, index.clone()), value);
        let value = match p.pull_under(site.root, index.clone(), &guards) {
            Ok(e) => e,
            Err(_) => return Ok(None),
        };
        let (home, index) = p.locate(site.root, &index);
        let buf = p.output(home);
        stores.push(Stmt::Store { axes: Vec::new(), buf, index, guards, value, combine: Combine::Set });
    }
    // a reduction in the epilogue has its own idea of the domain
    if !p.stmts.is_empty() {
        return Ok(None);
    }
    let mut unit = b.finish(p, axes, stores)?;
    unit.kernel.name = format!("winograd_{}", unit.kernel.name);
    units.push(unit);
    Ok(Some(units))
}
