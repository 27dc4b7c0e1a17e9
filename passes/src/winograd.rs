//! Winograd's minimal filtering F(4x4, 3x3) for convolutions of stride 1 (Lavin and Gray 2015).
//!
//! `Y = A' [(G g G') * (B' d B)] A` for every 4 x 4 tile of the output: 36 products instead of 144. Three
//! kernels: the input transform `B' d B` of all tiles, one contraction over the channels for each of the
//! 36 positions, and the output transform with the epilogue of the convolution. The weights' transform
//! is an init kernel. The error is some 15 times that of the direct form, about 1e-5 of the output's
//! scale in f32.

use crate::group::Temp;
use crate::kernels::{Build, KernelUnit};
use crate::pull::{PullError, Puller, bounds_guards};
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, Expr, ExprId, Guard, Stmt};
use ir::prim::{BinaryOp, Combine, Monoid, Prim, WindowDim};
use ir::{DType, Dim, Symbols, TensorType, ValueId};

/// Output rows and columns of a tile, and input rows and columns it reads.
const TILE: i64 = 4;
const READ: usize = 6;

/// Tiles below which the transformed weights, four times as large, cost more than they save.
const MIN_TILES: i64 = 12;
const MIN_CHANNELS: i64 = 32;

type Result<T> = std::result::Result<T, PullError>;

/// True where the form pays: 3 x 3, stride 1, enough channels and tiles. `out`: type of the result.
pub fn pays(prim: &Prim, w: &TensorType, out: &TensorType, symbols: &Symbols) -> bool {
    pays_from(MIN_TILES, prim, w, out, symbols)
}

/// As [`pays`], where the direct form computes two products at once from weights of half the size: the transformed
/// ones are eight times as large.
pub fn pays_over_halves(prim: &Prim, w: &TensorType, out: &TensorType, symbols: &Symbols) -> bool {
    pays_from(4 * MIN_TILES, prim, w, out, symbols)
}

fn pays_from(least: i64, prim: &Prim, w: &TensorType, out: &TensorType, symbols: &Symbols) -> bool {
    let Prim::Convolve { window, groups: 1, acc: DType::F32 } = prim else { return false };
    let [_, _, h, wd] = out.shape.as_slice() else { return false };
    let plain = |d: &WindowDim| d.stride == 1 && d.dilation == 1 && d.base_dilation == 1;
    let hint = |d: &Dim| d.eval_syms(&|s| Some(symbols.get(s).hint)).unwrap_or(0).max(0);
    let tiles = |d: &Dim| (hint(d) + TILE - 1) / TILE;
    let count = hint(&out.shape[0]).saturating_mul(tiles(h)).saturating_mul(tiles(wd));
    // the waste of ragged tiles
    let covered = tiles(h) * tiles(wd) * TILE * TILE;
    window.iter().all(plain)
        && window.iter().all(|d| d.pad_lo.bounds(symbols).0 >= 0)
        && w.dtype == DType::F32
        && w.shape[2..].iter().all(|d| d.is_const(3))
        && w.shape[..2].iter().all(|d| d.as_const().is_some_and(|c| c >= MIN_CHANNELS))
        && count >= least
        && covered < 2 * hint(h).saturating_mul(hint(wd))
}

/// Rows (or columns) that whole tiles read beyond what the convolution itself reads.
pub fn overhang(out: &Dim, symbols: &Symbols) -> Dim {
    out.ceil_div(&Dim::from(TILE), symbols) * Dim::from(TILE) - out
}

/// The convolution that a group is built around.
#[derive(Clone, Copy)]
pub struct Site {
    /// Result of the convolution, its operands, and the value that the group stores.
    pub conv: ValueId,
    pub x: ValueId,
    pub w: ValueId,
    pub root: ValueId,
}

/// Kernels of the group, in order of execution. `temps` get the buffers between them; `None` where the
/// epilogue uses the convolution's result at other places than its own.
pub fn build(b: &Build, site: Site, temps: &mut Vec<Temp>) -> Result<Option<Vec<KernelUnit>>> {
    let g = b.unit.graph;
    let out = &g[site.conv].ty.shape;
    let weights = &g[site.w].ty.shape;
    let tiles = |d: &Dim| d.ceil_div(&Dim::from(TILE), b.unit.symbols);
    let (th, tw) = (tiles(&out[2]), tiles(&out[3]));
    let count = &(&out[0] * &th) * &tw;
    let (co, ci) = (weights[0].clone(), weights[1].clone());
    let mut temp = |shape: Vec<Dim>, init: bool| {
        let id = ValueId(u32::MAX - temps.len() as u32);
        temps.push(Temp { id, ty: TensorType::new(DType::F32, shape), init });
        id
    };
    let squares = Dim::from(READ * READ);
    let u = temp(vec![squares.clone(), ci.clone(), co.clone()], true);
    let v = temp(vec![squares.clone(), count.clone(), ci.clone()], false);
    let m = temp(vec![squares.clone(), count.clone(), co.clone()], false);

    let mut units = Vec::new();
    // weights: G g G'
    let mut p = b.puller();
    let (axes, index) = named_axes(&mut p, &[("ci", &ci), ("co", &co)]);
    let mut g9 = Vec::new();
    for i in 0..3i64 {
        for j in 0..3i64 {
            g9.push(p.pull(site.w, vec![index[1].clone(), index[0].clone(), Dim::from(i), Dim::from(j)])?);
        }
    }
    let values = both_ways(&mut p, &g9, 3, &mut weight_transform);
    let stores = store_all(&mut p, u, &[squares.clone(), ci.clone(), co.clone()], &values, &index);
    let mut unit = b.finish(p, axes, stores)?;
    unit.init = true;
    unit.kernel.name = "winograd_weights".into();
    units.push(unit);

    // input: B' d B
    let mut p = b.puller();
    let (axes_in, at) = axes_of_tiles(&mut p, &out[0], &th, &tw, ("c", &ci));
    let mut d36 = Vec::new();
    for i in 0..READ as i64 {
        for j in 0..READ as i64 {
            let index = vec![at.n.clone(), at.c.clone(), at.row(i), at.col(j)];
            let guards = bounds_guards(&index, &g[site.x].ty.shape);
            d36.push(p.pull_guarded(site.x, index, &guards, Scalar::Float(0.0))?);
        }
    }
    let values = both_ways(&mut p, &d36, READ, &mut input_transform);
    let place = [at.tile(&th, &tw), at.c.clone()];
    let stores = store_all(&mut p, v, &[squares.clone(), count.clone(), ci.clone()], &values, &place);
    let mut unit = b.finish(p, axes_in, stores)?;
    unit.kernel.name = "winograd_input".into();
    units.push(unit);

    // products: one contraction for each of the 36 positions
    let mut p = b.puller();
    let (axes_mid, index) = named_axes(&mut p, &[("s", &squares), ("t", &count), ("co", &co)]);
    let k = p.new_var("k".into(), ci.clone());
    let kd = Dim::from(k);
    let a = read(
        &mut p,
        v,
        &[squares.clone(), count.clone(), ci.clone()],
        &[index[0].clone(), index[1].clone(), kd.clone()],
    );
    let c = read(
        &mut p,
        u,
        &[squares.clone(), ci.clone(), co.clone()],
        &[index[0].clone(), kd, index[2].clone()],
    );
    let value = p.binary(BinaryOp::Mul, a, c);
    let local = p.new_local(DType::F32);
    let axis = Axis { var: k, extent: ci };
    p.stmts.push(Stmt::Reduce { local, acc: DType::F32, monoid: Monoid::Sum, axes: vec![axis], value });
    let value = p.local(local);
    let buf = p.temp(m, &[squares.clone(), count.clone(), co.clone()], Access::Write);
    let store = Stmt::store(buf, index, value);
    let mut unit = b.finish(p, axes_mid, vec![store])?;
    unit.kernel.name = "winograd_products".into();
    units.push(unit);

    // output: A' m A, and the epilogue at each of the 16 places
    let mut p = b.puller();
    let (axes_out, at) = axes_of_tiles(&mut p, &out[0], &th, &tw, ("co", &co));
    let shape_m = [squares, count, co];
    let m36: Vec<ExprId> = (0..READ * READ)
        .map(|s| read(&mut p, m, &shape_m, &[Dim::from(s), at.tile(&th, &tw), at.c.clone()]))
        .collect();
    let values = both_ways(&mut p, &m36, READ, &mut output_transform);
    let mut stores = Vec::new();
    for (s, value) in values.into_iter().enumerate() {
        let (row, col) = (at.row(s as i64 / TILE), at.col(s as i64 % TILE));
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
    let mut unit = b.finish(p, axes_out, stores)?;
    unit.kernel.name = format!("winograd_{}", unit.kernel.name);
    units.push(unit);
    Ok(Some(units))
}

/// Place of a tile, and a channel.
struct At {
    n: Dim,
    ty: Dim,
    tx: Dim,
    c: Dim,
}

impl At {
    fn row(&self, i: i64) -> Dim {
        &self.ty * Dim::from(TILE) + Dim::from(i)
    }
    fn col(&self, j: i64) -> Dim {
        &self.tx * Dim::from(TILE) + Dim::from(j)
    }
    fn tile(&self, th: &Dim, tw: &Dim) -> Dim {
        (&self.n * th + &self.ty) * tw + &self.tx
    }
}

pub(crate) fn named_axes(p: &mut Puller, list: &[(&str, &Dim)]) -> (Vec<Axis>, Vec<Dim>) {
    let mut axes = Vec::new();
    let mut index = Vec::new();
    for (name, extent) in list {
        let (i, axis) = p.axis((*name).into(), extent);
        p.scope.extend(axis.iter().map(|a| a.var));
        axes.extend(axis);
        index.push(i);
    }
    (axes, index)
}

fn axes_of_tiles(p: &mut Puller, n: &Dim, th: &Dim, tw: &Dim, c: (&str, &Dim)) -> (Vec<Axis>, At) {
    let (axes, index) = named_axes(p, &[("n", n), ("ty", th), ("tx", tw), c]);
    let [n, ty, tx, c] = <[Dim; 4]>::try_from(index).unwrap_or_default();
    (axes, At { n, ty, tx, c })
}

pub(crate) fn read(p: &mut Puller, temp: ValueId, shape: &[Dim], index: &[Dim]) -> ExprId {
    let buf = p.temp(temp, shape, Access::Read);
    let index = index.to_vec();
    p.expr(Expr::Read { buf, index, guards: Vec::new(), fill: Scalar::Float(0.0) }, DType::F32)
}

/// Stores value `s` at `[s, place...]`.
fn store_all(p: &mut Puller, temp: ValueId, shape: &[Dim], values: &[ExprId], place: &[Dim]) -> Vec<Stmt> {
    let buf = p.temp(temp, shape, Access::Write);
    let store = |(s, &value): (usize, &ExprId)| {
        let index = [Dim::from(s)].into_iter().chain(place.iter().cloned()).collect();
        Stmt::store(buf, index, value)
    };
    values.iter().enumerate().map(store).collect()
}

/// Applies a transform to the columns of an `n x n` matrix, then to the rows of the result.
fn both_ways(
    p: &mut Puller,
    matrix: &[ExprId],
    n: usize,
    transform: &mut dyn FnMut(&mut Puller, &[ExprId]) -> Vec<ExprId>,
) -> Vec<ExprId> {
    let columns: Vec<Vec<ExprId>> = (0..n)
        .map(|j| {
            let column: Vec<ExprId> = (0..n).map(|i| matrix[i * n + j]).collect();
            transform(p, &column)
        })
        .collect();
    let rows = columns.first().map_or(0, Vec::len);
    (0..rows)
        .flat_map(|i| {
            let row: Vec<ExprId> = columns.iter().map(|c| c[i]).collect();
            transform(p, &row)
        })
        .collect()
}

fn scaled(p: &mut Puller, x: ExprId, c: f64) -> ExprId {
    let c = p.constant(DType::F32, Scalar::Float(c));
    p.binary(BinaryOp::Mul, x, c)
}
fn add(p: &mut Puller, x: ExprId, y: ExprId) -> ExprId {
    p.binary(BinaryOp::Add, x, y)
}
fn sub(p: &mut Puller, x: ExprId, y: ExprId) -> ExprId {
    p.binary(BinaryOp::Sub, x, y)
}

/// `G x`: points 0, 1, -1, 2, -2 and infinity.
fn weight_transform(p: &mut Puller, x: &[ExprId]) -> Vec<ExprId> {
    let [a, b, c] = [x[0], x[1], x[2]];
    let first = scaled(p, a, 1.0 / 4.0);
    let sum = add(p, a, c);
    let (plus, minus) = (add(p, sum, b), sub(p, sum, b));
    let (second, third) = (scaled(p, plus, -1.0 / 6.0), scaled(p, minus, -1.0 / 6.0));
    let (a, b, c2) = (scaled(p, a, 1.0 / 24.0), scaled(p, b, 1.0 / 12.0), scaled(p, c, 1.0 / 6.0));
    let sum = add(p, a, c2);
    vec![first, second, third, add(p, sum, b), sub(p, sum, b), c]
}

/// `B' x`.
fn input_transform(p: &mut Puller, x: &[ExprId]) -> Vec<ExprId> {
    let scaled4 = |p: &mut Puller, e| scaled(p, e, 4.0);
    // 4 x0 - 5 x2 + x4, and the same one further
    let ends = |p: &mut Puller, a, b, c| {
        let (a, b) = (scaled4(p, a), scaled(p, b, 5.0));
        let d = sub(p, a, b);
        add(p, d, c)
    };
    let (x2, x1) = (scaled4(p, x[2]), scaled4(p, x[1]));
    let (even, odd) = (sub(p, x[4], x2), sub(p, x[3], x1));
    let (near_even, near_odd) = (sub(p, x[4], x[2]), sub(p, x[3], x[1]));
    let near_odd = scaled(p, near_odd, 2.0);
    vec![
        ends(p, x[0], x[2], x[4]),
        add(p, even, odd),
        sub(p, even, odd),
        add(p, near_even, near_odd),
        sub(p, near_even, near_odd),
        ends(p, x[1], x[3], x[5]),
    ]
}

/// `A' x`.
fn output_transform(p: &mut Puller, x: &[ExprId]) -> Vec<ExprId> {
    let (s1, d1) = (add(p, x[1], x[2]), sub(p, x[1], x[2]));
    let (s2, d2) = (add(p, x[3], x[4]), sub(p, x[3], x[4]));
    let first = add(p, x[0], s1);
    let last = add(p, d1, x[5]);
    let (s4, d2x2, d8) = (scaled(p, s2, 4.0), scaled(p, d2, 2.0), scaled(p, d2, 8.0));
    vec![add(p, first, s2), add(p, d1, d2x2), add(p, s1, s4), add(p, last, d8)]
}
