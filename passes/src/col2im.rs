//! Convolutions that meet mostly padding, from the input's side.
//!
//! Where an image is small beside the kernel and padded all around (transposed convolutions of stride 1),
//! a direct convolution multiplies zeros most of the time. The products of each input element with all
//! taps are one product of matrices without padding; each element of the result is the sum of those of
//! its neighbours (`col2im`), read where there are any.

use crate::group::Temp;
use crate::index::{linearise, simplify_guards};
use crate::kernels::{Build, KernelUnit};
use crate::pull::PullError;
use crate::winograd::{Site, named_axes, read};
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, Expr, Guard, Stmt};
use ir::prim::{BinaryOp, Monoid, Prim, WindowDim};
use ir::{DType, Dim, TensorType, ValueId};

type Result<T> = std::result::Result<T, PullError>;

/// Products of the direct form by those that meet the input, at least.
const LEAST_SAVED: i64 = 2;
/// Products that are summed in registers, and results that share a sum's loads: below, the sums cost more
/// than the products.
const MIN_CHANNELS: i64 = 32;
/// Bytes of the products at most.
const MAX_BYTES: i64 = 8 << 20;

/// True where the form pays. `x`, `out`: types of the input and the result.
pub fn pays(prim: &Prim, x: &TensorType, w: &TensorType, out: &TensorType) -> bool {
    let Prim::Convolve { window, groups: 1, acc: DType::F32 } = prim else { return false };
    let plain = |d: &WindowDim| d.stride == 1 && d.dilation == 1 && d.base_dilation == 1;
    let size = |dims: &[Dim]| dims.iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const()?));
    let sizes = (size(&x.shape[2..]), size(&out.shape[2..]), size(&w.shape[2..]), size(&w.shape[..1]));
    let (Some(from), Some(to), Some(taps), Some(channels)) = sizes else { return false };
    let bytes = [from, taps, channels, 4].into_iter().try_fold(1i64, i64::checked_mul);
    window.iter().all(plain)
        && [x, w, out].iter().all(|t| t.dtype == DType::F32)
        && w.shape[..2].iter().all(|d| d.as_const().is_some_and(|c| c >= MIN_CHANNELS))
        && to >= LEAST_SAVED.saturating_mul(from)
        && bytes.is_some_and(|b| b <= MAX_BYTES)
}

/// Kernels of the group, in order of execution. `temps` get the buffers between them; `None` where the
/// epilogue uses the convolution's result at other places than its own.
pub fn build(
    b: &Build,
    site: Site,
    window: &[WindowDim],
    temps: &mut Vec<Temp>,
) -> Result<Option<Vec<KernelUnit>>> {
    let g = b.unit.graph;
    let (out, input, weights) = (&g[site.conv].ty.shape, &g[site.x].ty.shape, &g[site.w].ty.shape);
    let (co, ci) = (weights[0].clone(), weights[1].clone());
    let taps = Dim::product(&weights[2..]);
    let places = Dim::product(&input[2..]);
    let count = &input[0] * &places;
    let mut temp = |shape: &[Dim], init: bool| {
        let id = ValueId(u32::MAX - temps.len() as u32);
        temps.push(Temp { id, ty: TensorType::new(DType::F32, shape.to_vec()), init });
        id
    };
    let shape_u = [ci.clone(), taps.clone(), co.clone()];
    let shape_m = [count.clone(), taps.clone(), co.clone()];
    let (u, m) = (temp(&shape_u, true), temp(&shape_m, false));
    let dims = window.len();
    let names = ["z", "y", "x"];
    let spatial = |shape: &[Dim]| -> Vec<(&'static str, Dim)> {
        shape[2..]
            .iter()
            .enumerate()
            .map(|(d, n)| (names[(d + 3).saturating_sub(dims).min(2)], n.clone()))
            .collect()
    };
    let mut units = Vec::new();

    // weights: channels of the result and taps side by side
    let mut p = b.puller();
    let list: Vec<(&str, Dim)> =
        [("ci", ci.clone())].into_iter().chain(spatial(weights)).chain([("co", co.clone())]).collect();
    let (axes, index) = named_axes(&mut p, &list.iter().map(|(n, d)| (*n, d)).collect::<Vec<_>>());
    let (c, k, o) = (&index[0], &index[1..=dims], &index[dims + 1]);
    let from: Vec<Dim> = [o.clone(), c.clone()].into_iter().chain(k.iter().cloned()).collect();
    let value = p.pull(site.w, from)?;
    let buf = p.temp(u, &shape_u, Access::Write);
    let at = vec![c.clone(), linearise(k, &weights[2..]), o.clone()];
    let mut unit = b.finish(p, axes, vec![Stmt::store(buf, at, value)])?;
    unit.init = true;
    unit.kernel.name = "taps".into();
    units.push(unit);

    // products
    let mut p = b.puller();
    let list: Vec<(&str, Dim)> = [("n", input[0].clone())]
        .into_iter()
        .chain(spatial(input))
        .chain([("tap", taps.clone()), ("co", co.clone())])
        .collect();
    let (axes, index) = named_axes(&mut p, &list.iter().map(|(n, d)| (*n, d)).collect::<Vec<_>>());
    let (n, place, tap, o) = (&index[0], &index[1..=dims], &index[dims + 1], &index[dims + 2]);
    let k = p.new_var("k".into(), ci.clone());
    let from: Vec<Dim> = [n.clone(), Dim::from(k)].into_iter().chain(place.iter().cloned()).collect();
    let x = p.pull(site.x, from)?;
    let w = read(&mut p, u, &shape_u, &[Dim::from(k), tap.clone(), o.clone()]);
    let value = p.binary(BinaryOp::Mul, x, w);
    let local = p.new_local(DType::F32);
    let axis = Axis { var: k, extent: ci };
    p.stmts.push(Stmt::Reduce { local, acc: DType::F32, monoid: Monoid::Sum, axes: vec![axis], value });
    let value = p.local(local);
    let buf = p.temp(m, &shape_m, Access::Write);
    let at = vec![n * &places + linearise(place, &input[2..]), tap.clone(), o.clone()];
    let mut unit = b.finish(p, axes, vec![Stmt::store(buf, at, value)])?;
    unit.kernel.name = "tap_products".into();
    units.push(unit);

    // sums, and the epilogue
    let mut p = b.puller();
    let list: Vec<(&str, Dim)> =
        [("n", out[0].clone()), ("co", co.clone())].into_iter().chain(spatial(out)).collect();
    let (axes_out, index) = named_axes(&mut p, &list.iter().map(|(n, d)| (*n, d)).collect::<Vec<_>>());
    let mut axes = Vec::new();
    let (mut tap, mut place, mut guards) = (Dim::from(0), &index[0] * &places, Vec::new());
    let mut stride = Dim::from(1);
    for d in (0..dims).rev() {
        let (name, extent) = ("k".to_string(), weights[2 + d].clone());
        let (k, axis) = p.axis(name, &extent);
        axes.splice(0..0, axis);
        let at = &index[2 + d] + &k - &window[d].pad_lo;
        place = place + &at * &stride;
        stride = stride * &input[2 + d];
        guards.push(Guard { expr: at, bound: input[2 + d].clone() });
        tap = tap + k * Dim::product(&weights[3 + d..]);
    }
    let Some(guards) = simplify_guards(&guards, &p.facts()) else { return Ok(None) };
    let buf = p.temp(m, &shape_m, Access::Read);
    let at = vec![place, tap, index[1].clone()];
    let value = p.expr(Expr::Read { buf, index: at, guards, fill: Scalar::Float(0.0) }, DType::F32);
    let local = p.new_local(DType::F32);
    p.stmts.push(Stmt::Reduce { local, acc: DType::F32, monoid: Monoid::Sum, axes, value });
    let value = p.local(local);
    p.overrides.insert((site.conv, index.clone()), value);
    let Ok(value) = p.pull(site.root, index.clone()) else { return Ok(None) };
    // a reduction in the epilogue has its own idea of the domain
    if p.stmts.len() != 1 {
        return Ok(None);
    }
    let (home, index) = p.locate(site.root, &index);
    let buf = p.output(home);
    let mut unit = b.finish(p, axes_out, vec![Stmt::store(buf, index, value)])?;
    unit.kernel.name = format!("tap_sums_{}", unit.kernel.name);
    units.push(unit);
    Ok(Some(units))
}
