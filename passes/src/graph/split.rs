//! Few results of long sums, for a GPU: parts of the sum side by side, then the sum of the parts.
//!
//! A product of matrices of 49 x 512 elements over 4608 steps is 32 tiles of the smallest block: a device with 132
//! multiprocessors idles, while each of the 32 takes 4608 steps. As one of 24 batches over 192 steps each it fills the
//! device, and a second kernel adds 24 numbers for each element, in the order of the parts, with the epilogue of the
//! product. No result depends on which part is done first. A convolution is split along its input channels, each part a group
//! of its own, and a reduction along its first axis. Into how many parts a product is cut says the model of [`crate::occupancy`].

use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::forms::Forms;
use crate::limits::Fuel;
use crate::occupancy::{LEAST, Product, multiprocessors};
use ir::prim::{Monoid, Prim};
use ir::target::TargetDesc;
use ir::{DType, Dim, Module, Symbols, ValueId};

/// Columns of one warp, where there are few rows; warps that keep a multiprocessor busy.
const COLUMNS: i64 = 128;
const WARPS: f64 = 8.0;
/// Steps of a part, at least. What is written and read again for each part costs as much as some.
const LEAST_STEPS: i64 = 32;
/// Parts of a product, at most.
const MOST: i64 = 64;
/// Parts are whole numbers of such steps, which are staged together.
const STEP: i64 = 8;

/// Splits contractions, convolutions and reductions whose tiles leave `target` idle; convolutions that get one of `forms`
/// are left alone.
pub fn split_sums(module: &mut Module, target: &TargetDesc, forms: Forms, fuel: &Fuel) -> Result<()> {
    let symbols = module.symbols.clone();
    let units = multiprocessors(target);
    rewrite(module, &mut Split { symbols, units, forms }, fuel)
}

struct Split {
    symbols: Symbols,
    /// Multiprocessors.
    units: f64,
    forms: Forms,
}

impl Rule for Split {
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        if let (Prim::Reduce { monoid, axes }, [x]) = (&site.op.prim, site.operands) {
            return self.reduction(cx, site, *x, *monoid, axes);
        }
        let [x, w] = *site.operands else { return Ok(None) };
        match &site.op.prim {
            Prim::Contract { batch, reduce, acc: DType::F32 } => {
                let [(a, b)] = *reduce.as_slice() else { return Ok(None) };
                self.contraction(cx, site, [x, w], batch.clone(), (a, b))
            }
            Prim::Convolve { groups: 1, acc: DType::F32, .. } => self.convolution(cx, site, [x, w]),
            _ => Ok(None),
        }
    }
}

impl Split {
    fn likely(&self, dims: &[Dim]) -> i64 {
        let one = |d: &Dim| d.eval_syms(&|s| Some(self.symbols.get(s).hint)).unwrap_or(1).max(1);
        dims.iter().map(one).fold(1, i64::saturating_mul)
    }

    /// Into how many parts to cut the `length` steps of `others` products of rows x cols results, of which each takes
    /// `taps` products.
    fn parts(&self, [rows, cols, others]: [i64; 3], length: i64, taps: i64) -> Option<i64> {
        let steps = |n: i64| (length / n).saturating_mul(taps);
        let whole = |n: &i64| length % n == 0 && (length / n) % STEP.min((length / n).max(1)) == 0;
        let may_be = |n: &i64| whole(n) && steps(*n) >= LEAST_STEPS;
        if rows < LEAST.0 || cols < LEAST.1 {
            let tiles = (rows.max(cols) + COLUMNS - 1) / COLUMNS;
            return self.most_parts(tiles.saturating_mul(others), length, may_be);
        }
        let of = |n: i64| n as f64;
        let product = Product { rows: of(rows), cols: of(cols), others: of(others), steps: of(steps(1)) };
        let cycles = |n: i64| product.in_parts(of(n), self.units);
        let all = (1..=length.min(MOST)).filter(|n| *n == 1 || may_be(n));
        all.min_by(|a, b| cycles(*a).total_cmp(&cycles(*b))).filter(|n| *n > 1)
    }

    /// The most parts of `length` that keep all multiprocessors busy with `tiles` warps for each and that may be.
    fn most_parts(&self, tiles: i64, length: i64, may_be: impl Fn(&i64) -> bool) -> Option<i64> {
        let most = (WARPS * self.units) as i64 / tiles.max(1);
        (2..=most.min(length)).rev().find(may_be)
    }

    /// A reduction whose last axis stays: warps lie along that one.
    fn reduction(
        &self,
        cx: &mut Shared<'_>,
        site: &mut Site<'_>,
        x: ValueId,
        monoid: Monoid,
        axes: &[usize],
    ) -> Result<Option<Vec<ValueId>>> {
        let shape = site.ty(x).shape.clone();
        let (Some(&first), Some(last)) = (axes.first(), shape.len().checked_sub(1)) else { return Ok(None) };
        // sums of halves are rounded once
        if axes.contains(&last) || site.ty(x).dtype.bytes() < 4 {
            return Ok(None);
        }
        let Some(length) = shape[first].as_const() else { return Ok(None) };
        let others: Vec<Dim> = (0..last).filter(|i| !axes.contains(i)).map(|i| shape[i].clone()).collect();
        let tiles =
            self.likely(&others).saturating_mul((self.likely(&shape[last..]) + COLUMNS - 1) / COLUMNS);
        let least = |n: &i64| length % n == 0 && length / n >= LEAST_STEPS;
        let Some(n) = self.most_parts(tiles, length, least) else { return Ok(None) };
        let mut cut = shape;
        cut.splice(first..=first, [Dim::from(n), Dim::from(length / n)]);
        let parts = site.op(cx, &self.symbols, Prim::Reshape { shape: cut }, vec![x])?;
        let axes = axes.iter().map(|i| i + 1).collect();
        let parts = site.op(cx, &self.symbols, Prim::Reduce { monoid, axes }, vec![parts])?;
        let total = Prim::Reduce { monoid, axes: vec![first] };
        Ok(Some(vec![site.op(cx, &self.symbols, total, vec![parts])?]))
    }

    fn contraction(
        &self,
        cx: &mut Shared<'_>,
        site: &mut Site<'_>,
        [x, w]: [ValueId; 2],
        batch: Vec<(usize, usize)>,
        (a, b): (usize, usize),
    ) -> Result<Option<Vec<ValueId>>> {
        let (left, right) = (site.ty(x).shape.clone(), site.ty(w).shape.clone());
        let Some(length) = left[a].as_const() else { return Ok(None) };
        let free = |shape: &[Dim], axis: usize, of: &dyn Fn(&(usize, usize)) -> usize| -> Vec<Dim> {
            let kept = |i: &usize| *i != axis && !batch.iter().any(|p| of(p) == *i);
            (0..shape.len()).filter(kept).map(|i| shape[i].clone()).collect()
        };
        let (rows, cols) = (free(&left, a, &|p| p.0), free(&right, b, &|p| p.1));
        let others: Vec<Dim> = batch.iter().map(|p| left[p.0].clone()).collect();
        let sizes = [self.likely(&rows), self.likely(&cols), self.likely(&others)];
        let Some(n) = self.parts(sizes, length, 1) else { return Ok(None) };
        let cut = |shape: &[Dim], axis: usize| {
            let mut shape = shape.to_vec();
            shape.splice(axis..=axis, [Dim::from(n), Dim::from(length / n)]);
            Prim::Reshape { shape }
        };
        let x = site.op(cx, &self.symbols, cut(&left, a), vec![x])?;
        let w = site.op(cx, &self.symbols, cut(&right, b), vec![w])?;
        // axes behind the one that was cut are one further; the parts are the last batch
        let moved = |i: usize, axis: usize| if i > axis { i + 1 } else { i };
        let mut pairs: Vec<(usize, usize)> = batch.iter().map(|p| (moved(p.0, a), moved(p.1, b))).collect();
        pairs.push((a, b));
        let prim = Prim::Contract { batch: pairs, reduce: vec![(a + 1, b + 1)], acc: DType::F32 };
        let parts = site.op(cx, &self.symbols, prim, vec![x, w])?;
        let sum = Prim::Reduce { monoid: Monoid::Sum, axes: vec![batch.len()] };
        Ok(Some(vec![site.op(cx, &self.symbols, sum, vec![parts])?]))
    }

    fn convolution(
        &self,
        cx: &mut Shared<'_>,
        site: &mut Site<'_>,
        [x, w]: [ValueId; 2],
    ) -> Result<Option<Vec<ValueId>>> {
        let Prim::Convolve { window, .. } = site.op.prim.clone() else { return Ok(None) };
        let (weights, out) = (site.ty(w).shape.clone(), site.types[0].shape.clone());
        let (Some(co), Some(ci)) = (weights[0].as_const(), weights[1].as_const()) else { return Ok(None) };
        let taps = self.likely(&weights[2..]);
        let (prim, from, kernel, to) = (&site.op.prim, site.ty(x), site.ty(w), &site.types[0]);
        if self.forms.best(prim, [from, kernel, to], &self.symbols).is_some() {
            return Ok(None);
        }
        let places = self.likely(&out[..1]).saturating_mul(self.likely(&out[2..]));
        let Some(n) = self.parts([places, co, 1], ci, taps) else { return Ok(None) };
        // [co, n, ci / n, taps..] to [n, co, ci / n, taps..]
        let mut shape = weights.clone();
        shape.splice(1..2, [Dim::from(n), Dim::from(ci / n)]);
        let rank = shape.len();
        let w = site.op(cx, &self.symbols, Prim::Reshape { shape }, vec![w])?;
        let perm = [1, 0].into_iter().chain(2..rank).collect();
        let w = site.op(cx, &self.symbols, Prim::Transpose { perm }, vec![w])?;
        let mut shape = weights;
        (shape[0], shape[1]) = (Dim::from(n * co), Dim::from(ci / n));
        let w = site.op(cx, &self.symbols, Prim::Reshape { shape }, vec![w])?;
        let prim = Prim::Convolve { window, groups: n as usize, acc: DType::F32 };
        let y = site.op(cx, &self.symbols, prim, vec![x, w])?;
        let mut shape = out;
        shape.splice(1..2, [Dim::from(n), Dim::from(co)]);
        let y = site.op(cx, &self.symbols, Prim::Reshape { shape }, vec![y])?;
        let sum = Prim::Reduce { monoid: Monoid::Sum, axes: vec![1] };
        Ok(Some(vec![site.op(cx, &self.symbols, sum, vec![y])?]))
    }
}
