//! Which minimal filtering pays for a convolution, if any does.

use super::transform::MAX_READ;
use ir::prim::{Prim, WindowDim};
use ir::{DType, Dim, Symbols, TensorType};

/// Tiles below which the transformed weights cost more than they save, where these are four times as large.
const MIN_TILES: i64 = 12;
const MIN_CHANNELS: i64 = 32;
/// Multiply-adds in the time that one more weight takes from the last-level cache.
const WEIGHT: i64 = 6;
/// Multiply-adds in the time of one more kernel call.
const CALL: i64 = 100_000;
/// Part of the cost that is left, at most, in percent.
const MOST_COST: i64 = 75;

/// Sizes of the form, in each spatial dim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    /// Places of a tile of the output.
    pub(super) tile: i64,
    /// Taps of the filter.
    pub(super) taps: i64,
}

impl Form {
    /// The form that pays, if one does: stride 1, enough channels and tiles, of which there are `least`. `out`: type of the
    /// result.
    pub fn of(prim: &Prim, w: &TensorType, out: &TensorType, least: i64, symbols: &Symbols) -> Option<Form> {
        let sizes = Sizes::of(prim, w, out, symbols)?;
        let form = Form::from_tiles(MIN_TILES, &sizes)?.0;
        (form.count(&sizes) >= least).then_some(form)
    }

    /// As [`Form::of`], where the direct form computes two products at once from weights of half the size: the transformed
    /// ones are twice as large beside them.
    pub fn over_halves(prim: &Prim, w: &TensorType, out: &TensorType, symbols: &Symbols) -> Option<Form> {
        Form::from_tiles(4 * MIN_TILES, &Sizes::of(prim, w, out, symbols)?).map(|f| f.0)
    }

    /// The form whose tiles are those of the input `x`, where it pays more than all others: the convolution meets
    /// much padding.
    pub fn overlapping(
        prim: &Prim,
        x: &TensorType,
        w: &TensorType,
        out: &TensorType,
        symbols: &Symbols,
    ) -> Option<Form> {
        let sizes = Sizes::of(prim, w, out, symbols)?;
        let (form, cost) = Form::of_input(prim, x, &sizes)?;
        let plain = match crate::col2im::pays(prim, x, w, out) {
            true => sizes.direct(sizes.input(x)?).saturating_add(sizes.sums(sizes.taps)),
            false => sizes.direct(sizes.places()),
        };
        let filter = Form::from_tiles(MIN_TILES, &sizes).map(|f| f.1);
        let less = filter.is_none_or(|f| cost.saturating_mul(10) < f.saturating_mul(9));
        (less && is_worth(cost, plain)).then_some(form)
    }

    /// True where some form of a convolution, with zeros in the place of missing taps, pays over the direct one with the
    /// taps that there are: `taps` in all of `parts` parts of the channels.
    pub fn pays_with_zeros(
        prim: &Prim,
        [x, w, out]: [&TensorType; 3],
        symbols: &Symbols,
        taps: i64,
        parts: i64,
    ) -> bool {
        let Some(sizes) = Sizes::of(prim, w, out, symbols) else { return false };
        let filter = Form::from_tiles(MIN_TILES, &sizes).map(|f| f.1);
        let overlap = Form::of_input(prim, x, &sizes).map(|f| f.1);
        // places that only the form with zeros computes
        let places: i64 = sizes.n.saturating_mul((sizes.h - 1) * (sizes.w - 1));
        let products = taps.saturating_mul(places.saturating_add(WEIGHT));
        let direct = products.saturating_mul(sizes.ci * sizes.co) / parts.max(1);
        filter.into_iter().chain(overlap).any(|cost| is_worth(cost, direct))
    }

    /// The best form with at least so many tiles, where it pays, and its cost.
    fn from_tiles(least: i64, s: &Sizes) -> Option<(Form, i64)> {
        let cost = |f: &Form| f.cost(f.count(s), s).saturating_add(2 * CALL);
        let fits = |f: &Form| {
            // the waste of ragged tiles
            let covered = f.tiles(s.h).saturating_mul(f.tiles(s.w)).saturating_mul(f.tile * f.tile);
            // how much larger the transformed weights are
            let (read, own) = (f.read() * f.read(), f.taps * f.taps);
            covered < 2 * s.h.saturating_mul(s.w)
                && f.count(s).saturating_mul(4 * own) >= least.saturating_mul(read)
        };
        let best = Form::all(s.taps).filter(fits).map(|f| (f, cost(&f))).min_by_key(|f| f.1)?;
        is_worth(best.1, s.direct(s.places())).then_some(best)
    }

    /// The best form with tiles of the input, and its cost.
    fn of_input(prim: &Prim, x: &TensorType, s: &Sizes) -> Option<(Form, i64)> {
        let Prim::Convolve { window, .. } = prim else { return None };
        let pads: Vec<i64> = window.iter().map(|d| d.pad_lo.as_const()).collect::<Option<_>>()?;
        let (h, w) = (x.shape[2].as_const()?, x.shape[3].as_const()?);
        let cost = |f: &Form| {
            let tiles = s.n.saturating_mul(f.tiles(h)).saturating_mul(f.tiles(w));
            f.cost(tiles, s).saturating_add(s.sums(f.overlap())).saturating_add(3 * CALL)
        };
        // the first place of the result is the first that some tile reaches
        let fits = |f: &Form| pads.iter().all(|p| (0..s.taps).contains(p) && (s.taps - 1 - p) % f.tile == 0);
        Form::all(s.taps).filter(fits).map(|f| (f, cost(&f))).min_by_key(|f| f.1)
    }

    fn all(taps: i64) -> impl Iterator<Item = Form> {
        (2..=4).map(move |tile| Form { tile, taps }).filter(|f| f.read() <= MAX_READ)
    }

    /// Tiles of the result.
    fn count(&self, s: &Sizes) -> i64 {
        s.n.saturating_mul(self.tiles(s.h)).saturating_mul(self.tiles(s.w))
    }

    /// Elements that a tile reads in each dim, and values that it is transformed to.
    pub(super) fn read(&self) -> i64 {
        self.tile + self.taps - 1
    }

    /// Tiles of the input that reach one place, in each dim.
    pub(super) fn overlap(&self) -> i64 {
        self.tiles(self.read())
    }

    fn tiles(&self, places: i64) -> i64 {
        (places + self.tile - 1) / self.tile
    }

    /// Multiply-adds, or what takes as long: the products of `tiles` tiles, their weights, the transforms.
    fn cost(&self, tiles: i64, s: &Sizes) -> i64 {
        let n = self.read();
        let products = (n * n).saturating_mul(tiles.saturating_add(WEIGHT)).saturating_mul(s.ci * s.co);
        let transforms = (3 * n * n * n / 2).saturating_mul(tiles).saturating_mul(s.ci + s.co);
        products.saturating_add(transforms)
    }

    /// Rows (or columns) that whole tiles read beyond what the convolution itself reads.
    pub fn overhang(&self, out: &Dim, symbols: &Symbols) -> Dim {
        out.ceil_div(&Dim::from(self.tile), symbols) * Dim::from(self.tile) - out
    }
}

fn is_worth(cost: i64, other: i64) -> bool {
    cost.saturating_mul(100) <= other.saturating_mul(MOST_COST)
}

/// Sizes of a convolution that may have such a form, likely ones where they are not known.
struct Sizes {
    n: i64,
    ci: i64,
    co: i64,
    /// In each dim.
    taps: i64,
    /// Of the result.
    h: i64,
    w: i64,
}

impl Sizes {
    fn of(prim: &Prim, w: &TensorType, out: &TensorType, symbols: &Symbols) -> Option<Sizes> {
        let Prim::Convolve { window, groups: 1, acc: DType::F32 } = prim else { return None };
        let [n, _, h, wd] = out.shape.as_slice() else { return None };
        let [co, ci, taps, other] = w.shape.iter().map(Dim::as_const).collect::<Option<Vec<_>>>()?[..] else {
            return None;
        };
        let plain = |d: &WindowDim| d.stride == 1 && d.dilation == 1 && d.base_dilation == 1;
        let hint = |d: &Dim| d.eval_syms(&|s| Some(symbols.get(s).hint)).unwrap_or(0).max(0);
        let fits = window.iter().all(|d| plain(d) && d.pad_lo.bounds(symbols).0 >= 0)
            && w.dtype == DType::F32
            && taps > 1
            && taps == other
            && co.min(ci) >= MIN_CHANNELS;
        fits.then(|| Sizes { n: hint(n), ci, co, taps, h: hint(h), w: hint(wd) })
    }

    fn places(&self) -> i64 {
        self.n.saturating_mul(self.h).saturating_mul(self.w)
    }

    /// Elements of the input in one channel.
    fn input(&self, x: &TensorType) -> Option<i64> {
        Some(self.n.saturating_mul(x.shape[2].as_const()?).saturating_mul(x.shape[3].as_const()?))
    }

    /// Multiply-adds of all taps with so many elements, or what takes as long.
    fn direct(&self, elements: i64) -> i64 {
        let products = (self.taps * self.taps).saturating_mul(elements.saturating_add(WEIGHT));
        products.saturating_mul(self.ci * self.co)
    }

    /// What it takes to add up the results, each of `each` parts in each dim.
    fn sums(&self, each: i64) -> i64 {
        3 * self.places().saturating_mul(each * each).saturating_mul(self.co)
    }
}
