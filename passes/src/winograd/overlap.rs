//! Tiles of the input, for convolutions that meet mostly padding: the contribution of each tile to all places that
//! its elements reach, then the sums of contributions that overlap.
//!
//! The same products as those of F(m x m, r x r), transposed: a tile of `m x m` elements and the `r x r` taps are
//! polynomials, and `B [(G g G') * (A x A')] B'` are the coefficients of their product.

use super::{Form, Parts, Result, Site, named_axes, temp};
use crate::group::Temp;
use crate::index::simplify_guards;
use crate::kernels::{Build, KernelUnit};
use ir::dtype::Scalar;
use ir::kernel::{Access, Expr, Guard, Stmt};
use ir::prim::{Combine, Monoid, WindowDim};
use ir::{DType, Dim};

/// Kernels of the group, in order of execution. `temps` get the buffers between them; `None` where the
/// epilogue uses the convolution's result at other places than its own.
pub fn build(
    b: &Build,
    site: Site,
    form: Form,
    window: &[WindowDim],
    temps: &mut Vec<Temp>,
) -> Result<Option<Vec<KernelUnit>>> {
    let g = b.unit.graph;
    let (input, out) = (&g[site.x].ty.shape, &g[site.conv].ty.shape);
    let parts = Parts::new(b, site, form, &input[2..], temps);
    let size = form.read();
    let shape_z = [parts.count(), parts.squares(), parts.co.clone()];
    let z = temp(temps, shape_z.to_vec(), false);
    // element i meets tap k at place i + (taps - 1 - k) + pad - (taps - 1)
    // A x A' of the elements of a tile
    let spread = parts.transforms.output.transposed();
    let mut units = vec![parts.weights(true)?, parts.input(form.tile, &spread)?, parts.products()?];

    // contributions: B m B'
    let mut p = b.puller();
    let (axes, at) = parts.axes(&mut p, ("co", &parts.co));
    let products = parts.products_of(&mut p, &at);
    let values = parts.transforms.input.transposed().both_ways(&mut p, &products);
    let buf = p.temp(z, &shape_z, Access::Write);
    let store = |(s, v): (usize, &_)| Stmt::store(buf, vec![at.tile.clone(), Dim::from(s), at.c.clone()], *v);
    let stores = values.iter().enumerate().map(store).collect();
    let mut unit = b.finish(p, axes, stores)?;
    unit.kernel.name = "winograd_contributions".into();
    units.push(unit);

    // sums, and the epilogue: place m a + r, shifted, gets element m j + r from tile a - j
    let mut p = b.puller();
    let tile = Dim::from(form.tile);
    let ceil = |d: &Dim| d.ceil_div(&tile, b.unit.symbols);
    let (rows, columns) = (ceil(&out[2]), ceil(&out[3]));
    let list = [("n", &out[0]), ("co", &out[1]), ("y", &rows), ("yr", &tile), ("x", &columns), ("xr", &tile)];
    let (domain, at) = named_axes(&mut p, &list);
    let mut index = at[..2].to_vec();
    let (mut axes, mut guards, mut inside) = (Vec::new(), Vec::new(), Vec::new());
    let (mut number, mut element) = (at[0].clone(), Dim::from(0));
    for (d, tiles) in [&parts.th, &parts.tw].into_iter().enumerate() {
        let (a, r) = (&at[2 + 2 * d], &at[3 + 2 * d]);
        let (shift, rest) = (Dim::from(form.taps - 1) - &window[d].pad_lo).split_multiple(&tile);
        if !rest.is_const(0) {
            return Ok(None);
        }
        let (j, axis) = p.axis(format!("j{d}"), &Dim::from(form.overlap()));
        axes.extend(axis);
        let from = a + shift - &j;
        let here = j * &tile + r;
        let place = a * &tile + r;
        number = number * tiles + &from;
        element = element * Dim::from(size) + &here;
        guards.push(Guard { expr: from, bound: tiles.clone() });
        guards.push(Guard { expr: here, bound: Dim::from(size) });
        inside.push(Guard { expr: place.clone(), bound: out[2 + d].clone() });
        index.push(place);
    }
    let Some(guards) = simplify_guards(&guards, &p.facts()) else { return Ok(None) };
    let Some(inside) = simplify_guards(&inside, &p.facts()) else { return Ok(None) };
    let buf = p.temp(z, &shape_z, Access::Read);
    let from = vec![number, element, at[1].clone()];
    let value = p.expr(Expr::Read { buf, index: from, guards, fill: Scalar::Float(0.0) }, DType::F32);
    let local = p.new_local(DType::F32);
    p.stmts.push(Stmt::Reduce { local, acc: DType::F32, monoid: Monoid::Sum, axes, value });
    let value = p.local(local);
    p.overrides.insert((site.conv, index.clone()), value);
    let Ok(value) = p.pull_under(site.root, index.clone(), &inside) else { return Ok(None) };
    // a reduction in the epilogue has its own idea of the domain
    if p.stmts.len() != 1 {
        return Ok(None);
    }
    let (home, index) = p.locate(site.root, &index);
    let buf = p.output(home);
    let store = Stmt::Store { axes: Vec::new(), buf, index, guards: inside, value, combine: Combine::Set };
    let mut unit = b.finish(p, domain, vec![store])?;
    unit.kernel.name = format!("winograd_{}", unit.kernel.name);
    units.push(unit);
    Ok(Some(units))
}
