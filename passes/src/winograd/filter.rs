//! Tiles of the output: each reads what its places need, with the neighbours' elements.

use super::{Form, Parts, Result, Site, store_all};
use crate::group::Temp;
use crate::kernels::{Build, KernelUnit};
use crate::pull::bounds_guards;
use ir::dtype::Scalar;
use ir::kernel::{Guard, Stmt};
use ir::prim::Combine;

/// Kernels of the group, in order of execution. `temps` get the buffers between them; `None` where the
/// epilogue uses the convolution's result at other places than its own.
pub fn build(b: &Build, site: Site, form: Form, temps: &mut Vec<Temp>) -> Result<Option<Vec<KernelUnit>>> {
    let g = b.unit.graph;
    let out = &g[site.conv].ty.shape;
    let parts = Parts::new(b, site, form, &out[2..], temps);
    let mut units = vec![parts.weights(false)?];

    // input: B' d B
    let mut p = b.puller();
    let (axes, at) = parts.axes(&mut p, ("c", &parts.ci));
    let mut elements = Vec::new();
    for i in 0..form.read() {
        for j in 0..form.read() {
            let index = vec![at.n.clone(), at.c.clone(), at.row(i), at.col(j)];
            let guards = bounds_guards(&index, &g[site.x].ty.shape);
            elements.push(p.pull_guarded(site.x, index, &guards, Scalar::Float(0.0))?);
        }
    }
    let values = parts.transforms.input.both_ways(&mut p, &elements);
    let place = [at.tile, at.c];
    let stores = store_all(&mut p, parts.v, &parts.shape_v(), &values, &place);
    let mut unit = b.finish(p, axes, stores)?;
    unit.kernel.name = "winograd_input".into();
    units.push(unit);

    units.push(parts.products()?);

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
