//! Winograd's minimal filtering F(m x m, r x r) for convolutions of stride 1 (Lavin and Gray 2015).
//!
//! `Y = A' [(G g G') * (B' d B)] A` for every `m x m` tile of the output: `(m + r - 1)^2` products instead of
//! `m^2 r^2`. Three kernels: the input transform `B' d B` of all tiles, one contraction over the channels for each
//! of the `(m + r - 1)^2` positions, and the output transform with the epilogue of the convolution. The
//! weights' transform is an init kernel. The largest error is about 1e-5 of the output's scale in f32, some 15 times
//! that of the direct form, for 6 to 8 points in each dim (F(4, 3) and F(2, 7) alike), and twice that of the
//! direct form for 4.

mod filter;
mod form;
mod overlap;
mod transform;

pub use filter::build;
pub use form::Form;
pub use overlap::build as build_overlapping;

use crate::group::Temp;
use crate::kernels::{Build, KernelUnit};
use crate::pull::{PullError, Puller, bounds_guards};
use ir::dtype::Scalar;
use ir::kernel::{Access, Axis, Expr, ExprId, Stmt};
use ir::prim::{BinaryOp, Monoid};
use ir::{DType, Dim, TensorType, ValueId};
use transform::{Matrix, Transforms};

type Result<T> = std::result::Result<T, PullError>;

/// The convolution that a group is built around.
#[derive(Clone, Copy)]
pub struct Site {
    /// Result of the convolution, its operands, and the value that the group stores.
    pub conv: ValueId,
    pub x: ValueId,
    pub w: ValueId,
    pub root: ValueId,
}

/// What the kernels of one convolution have in common.
struct Parts<'b, 'a> {
    b: &'b Build<'a>,
    site: Site,
    form: Form,
    transforms: Transforms,
    /// Batches, and tiles of an image in both dims.
    n: Dim,
    th: Dim,
    tw: Dim,
    ci: Dim,
    co: Dim,
    /// Transformed weights `[s, ci, co]`, transformed input `[s, tiles, ci]` and products `[s, tiles, co]`.
    u: ValueId,
    v: ValueId,
    m: ValueId,
}

impl<'b, 'a> Parts<'b, 'a> {
    /// Tiles lie side by side along `places`, the spatial shape of the input or the output.
    fn new(b: &'b Build<'a>, site: Site, form: Form, places: &[Dim], temps: &mut Vec<Temp>) -> Parts<'b, 'a> {
        let g = b.unit.graph;
        let tiles = |d: &Dim| d.ceil_div(&Dim::from(form.tile), b.unit.symbols);
        let weights = &g[site.w].ty.shape;
        let none = ValueId(u32::MAX);
        let mut parts = Parts {
            b,
            site,
            form,
            transforms: Transforms::new(form.tile as usize, form.taps as usize),
            n: g[site.conv].ty.shape[0].clone(),
            th: tiles(&places[0]),
            tw: tiles(&places[1]),
            ci: weights[1].clone(),
            co: weights[0].clone(),
            u: none,
            v: none,
            m: none,
        };
        parts.u = temp(temps, parts.shape_u(), true);
        parts.v = temp(temps, parts.shape_v(), false);
        parts.m = temp(temps, parts.shape_m(), false);
        parts
    }

    fn squares(&self) -> Dim {
        Dim::from(self.form.read() * self.form.read())
    }
    fn count(&self) -> Dim {
        &(&self.n * &self.th) * &self.tw
    }
    fn shape_u(&self) -> Vec<Dim> {
        vec![self.squares(), self.ci.clone(), self.co.clone()]
    }
    fn shape_v(&self) -> Vec<Dim> {
        vec![self.squares(), self.count(), self.ci.clone()]
    }
    fn shape_m(&self) -> Vec<Dim> {
        vec![self.squares(), self.count(), self.co.clone()]
    }

    /// Axes over all tiles and the channels `c`.
    fn axes(&self, p: &mut Puller, c: (&str, &Dim)) -> (Vec<Axis>, At) {
        let (axes, index) = named_axes(p, &[("n", &self.n), ("ty", &self.th), ("tx", &self.tw), c]);
        let tile = (&index[0] * &self.th + &index[1]) * &self.tw + &index[2];
        let [n, ty, tx, c] = <[Dim; 4]>::try_from(index).unwrap_or_default();
        (axes, At { size: self.form.tile, n, ty, tx, c, tile })
    }

    /// The init kernel of the weights, `G g G'`; `reversed`: the last tap first.
    fn weights(&self, reversed: bool) -> Result<KernelUnit> {
        let mut p = self.b.puller();
        let (axes, index) = named_axes(&mut p, &[("ci", &self.ci), ("co", &self.co)]);
        let mut taps = Vec::new();
        let last = self.form.taps - 1;
        let tap = |k: i64| Dim::from(if reversed { last - k } else { k });
        for i in 0..self.form.taps {
            for j in 0..self.form.taps {
                taps.push(p.pull(self.site.w, vec![index[1].clone(), index[0].clone(), tap(i), tap(j)])?);
            }
        }
        let values = self.transforms.weights.both_ways(&mut p, &taps);
        let stores = store_all(&mut p, self.u, &self.shape_u(), &values, &index);
        let mut unit = self.b.finish(p, axes, stores)?;
        unit.init = true;
        unit.kernel.name = "winograd_weights".into();
        Ok(unit)
    }

    /// The transform of all tiles of `size` x `size` elements of the input.
    fn input(&self, size: i64, transform: &Matrix) -> Result<KernelUnit> {
        let input = &self.b.unit.graph[self.site.x].ty.shape;
        let mut p = self.b.puller();
        let (axes, at) = self.axes(&mut p, ("c", &self.ci));
        let mut elements = Vec::new();
        for i in 0..size {
            for j in 0..size {
                let index = vec![at.n.clone(), at.c.clone(), at.row(i), at.col(j)];
                let guards = bounds_guards(&index, input);
                elements.push(p.pull_guarded(self.site.x, index, &guards, Scalar::Float(0.0))?);
            }
        }
        let values = transform.both_ways(&mut p, &elements);
        let stores = store_all(&mut p, self.v, &self.shape_v(), &values, &[at.tile, at.c]);
        let mut unit = self.b.finish(p, axes, stores)?;
        unit.kernel.name = "winograd_input".into();
        Ok(unit)
    }

    /// One contraction over the channels for each position.
    fn products(&self) -> Result<KernelUnit> {
        let mut p = self.b.puller();
        let list = [("s", &self.squares()), ("t", &self.count()), ("co", &self.co)];
        let (axes, index) = named_axes(&mut p, &list);
        let k = p.new_var("k".into(), self.ci.clone());
        let kd = Dim::from(k);
        let x = read(&mut p, self.v, &self.shape_v(), &[index[0].clone(), index[1].clone(), kd.clone()]);
        let w = read(&mut p, self.u, &self.shape_u(), &[index[0].clone(), kd, index[2].clone()]);
        let value = p.binary(BinaryOp::Mul, x, w);
        let local = p.new_local(DType::F32);
        let axis = Axis { var: k, extent: self.ci.clone() };
        p.stmts.push(Stmt::Reduce { local, acc: DType::F32, monoid: Monoid::Sum, axes: vec![axis], value });
        let value = p.local(local);
        let buf = p.temp(self.m, &self.shape_m(), Access::Write);
        let store = Stmt::store(buf, index, value);
        let mut unit = self.b.finish(p, axes, vec![store])?;
        unit.kernel.name = "winograd_products".into();
        Ok(unit)
    }

    /// The products of one tile, by position.
    fn products_of(&self, p: &mut Puller, at: &At) -> Vec<ExprId> {
        let count = self.form.read() * self.form.read();
        let shape = self.shape_m();
        (0..count).map(|s| read(p, self.m, &shape, &[Dim::from(s), at.tile.clone(), at.c.clone()])).collect()
    }
}

/// Place of a tile, and a channel.
struct At {
    /// Elements of a tile in each dim.
    size: i64,
    n: Dim,
    ty: Dim,
    tx: Dim,
    c: Dim,
    /// Number of the tile.
    tile: Dim,
}

impl At {
    fn row(&self, i: i64) -> Dim {
        &self.ty * Dim::from(self.size) + Dim::from(i)
    }
    fn col(&self, j: i64) -> Dim {
        &self.tx * Dim::from(self.size) + Dim::from(j)
    }
}

/// A new buffer between kernels.
fn temp(temps: &mut Vec<Temp>, shape: Vec<Dim>, init: bool) -> ValueId {
    let id = ValueId(u32::MAX - temps.len() as u32);
    temps.push(Temp { id, ty: TensorType::new(DType::F32, shape), init });
    id
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
