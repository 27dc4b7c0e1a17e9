//! Convolutions without products by zeros.
//!
//! * A transposed convolution is a convolution of an input with `s - 1` zeros between its elements. Of the
//!   taps of its kernel, an output at place `o` meets elements with those of one residue modulo `s` only.
//!   So the outputs of each residue ("phase") are an ordinary convolution of the input with every `s`-th tap.
//!   Where all phases begin at the same element, they are one convolution with `s` times as many channels in
//!   each dim, whose result is interleaved (Shi et al. 2016); elsewhere that form computes a margin and
//!   products by missing taps, which only pays where there are few channels.
//! * Taps that meet nothing but padding, wherever the kernel lies, are cut off: wide dilations on small
//!   images have many. Where most taps meet padding at most places, the result is put together from
//!   regions in each of which the same taps meet the input.
//! * An input of one element in each spatial dim meets one tap at each place: a product of matrices.

use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::limits::Fuel;
use crate::winograd::Form;
use ir::dtype::Scalar;
use ir::prim::{PadMode, Prim, WindowDim};
use ir::{ConstData, ConstSource, Dim, Module, Symbols, TensorType, ValueId};

/// `winograd`: convolutions may be computed that way.
pub fn densify_convolutions(module: &mut Module, winograd: bool, fuel: &Fuel) -> Result<()> {
    let symbols = module.symbols.clone();
    rewrite(module, &mut Dense { symbols, winograd }, fuel)
}

struct Dense {
    symbols: Symbols,
    winograd: bool,
}

/// One spatial dim of a transposed convolution as phases.
struct Phases {
    /// Phases, and taps of each.
    count: i64,
    taps: i64,
    /// Places that the first phase begins before the result.
    shift: i64,
    /// Results of each phase.
    extent: Dim,
    window: WindowDim,
}

/// One phase of one dim: taps `first`, `first + step`, ...
struct Phase {
    first: i64,
    step: i64,
    taps: i64,
    /// Results.
    extent: Dim,
    window: WindowDim,
}

impl Rule for Dense {
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let Prim::Convolve { window, groups, acc } = &site.op.prim else { return Ok(None) };
        let [x, w] = *site.operands else { return Ok(None) };
        let taps: Option<Vec<i64>> = site.ty(w).shape[2..].iter().map(Dim::as_const).collect();
        let Some(taps) = taps else { return Ok(None) };
        let mut build = Build { symbols: &self.symbols, winograd: self.winograd, cx, site };
        if *groups == 1
            && let Some(y) = build.single([x, w], window, &taps)?
        {
            return Ok(Some(vec![y]));
        }
        if window.iter().any(|d| d.base_dilation > 1) {
            return build.transposed([x, w], window, *groups, &taps);
        }
        if let Some(y) = build.by_regions([x, w], &taps)? {
            return Ok(Some(vec![y]));
        }
        let (mut start, mut size) = (vec![Dim::from(0); 2], build.shape(w)[..2].to_vec());
        let mut cut = window.clone();
        for (d, (dim, n)) in cut.iter_mut().zip(&taps).enumerate() {
            let (input, output) =
                (build.shape(x)[2 + d].as_const(), build.site.types[0].shape[2 + d].as_const());
            let (first, last) = live_taps(dim, *n, input, output).unwrap_or((0, *n - 1));
            dim.pad_lo = &dim.pad_lo - &Dim::from(first * dim.dilation);
            dim.pad_hi = &dim.pad_hi - &Dim::from((*n - 1 - last) * dim.dilation);
            start.push(Dim::from(first));
            size.push(Dim::from(last + 1 - first));
        }
        if cut == *window {
            return Ok(None);
        }
        let w = build.slice(w, start, size, 1)?;
        let types = build.site.types.to_vec();
        let prim = Prim::Convolve { window: cut, groups: *groups, acc: *acc };
        Ok(Some(build.site.push(prim, vec![x, w], types)))
    }
}

/// First and last tap that meets the input somewhere, where sizes are known; at least one.
fn live_taps(w: &WindowDim, taps: i64, input: Option<i64>, output: Option<i64>) -> Option<(i64, i64)> {
    let (input, output, pad) = (input?, output?, w.pad_lo.as_const()?);
    if input < 1 || output < 1 || taps < 1 || w.stride < 1 || w.dilation < 1 {
        return None;
    }
    let reach = (output - 1).checked_mul(w.stride)?;
    let first = (pad - reach).max(0).checked_add(w.dilation - 1)? / w.dilation;
    let last = (input - 1 + pad).max(0) / w.dilation;
    let first = first.min(taps - 1);
    Some((first, last.clamp(first, taps - 1)))
}

/// Neighbouring places of one dim that meet the same taps.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Region {
    start: i64,
    len: i64,
    first_tap: i64,
    taps: i64,
}

/// The regions of one dim, in order; `None` where sizes are unknown or some place meets no tap.
fn regions(w: &WindowDim, taps: i64, input: Option<i64>, output: Option<i64>) -> Option<Vec<Region>> {
    let (input, output, pad) = (input?, output?, w.pad_lo.as_const()?);
    if !(1..=1 << 16).contains(&output) || taps < 1 || w.stride < 1 || w.dilation < 1 {
        return None;
    }
    let mut found: Vec<Region> = Vec::new();
    for o in 0..output {
        let at = |k: i64| (o * w.stride).checked_add(k.checked_mul(w.dilation)?)?.checked_sub(pad);
        let meets = |k: &i64| at(*k).is_some_and(|y| (0..input).contains(&y));
        let first_tap = (0..taps).find(meets)?;
        let taps = (first_tap..taps).take_while(meets).count() as i64;
        match found.last_mut() {
            Some(r) if (r.first_tap, r.taps) == (first_tap, taps) => r.len += 1,
            _ => found.push(Region { start: o, len: 1, first_tap, taps }),
        }
    }
    Some(found)
}

/// Products that are worth the kernels of several regions.
const REGION_PRODUCTS: i64 = 1 << 23;
const MAX_REGIONS: usize = 16;

/// Channels of the result that fill a vector.
const MIN_CHANNELS: i64 = 16;

struct Build<'a, 'm, 's> {
    symbols: &'a Symbols,
    winograd: bool,
    cx: &'a mut Shared<'m>,
    site: &'a mut Site<'s>,
}

impl Build<'_, '_, '_> {
    fn shape(&self, v: ValueId) -> &[Dim] {
        &self.site.ty(v).shape
    }

    fn push(&mut self, prim: Prim, operands: Vec<ValueId>) -> Result<ValueId> {
        self.site.op(self.cx, self.symbols, prim, operands)
    }
    fn reshape(&mut self, v: ValueId, shape: Vec<Dim>) -> Result<ValueId> {
        self.push(Prim::Reshape { shape }, vec![v])
    }
    fn transpose(&mut self, v: ValueId, perm: Vec<usize>) -> Result<ValueId> {
        self.push(Prim::Transpose { perm }, vec![v])
    }
    fn slice(&mut self, v: ValueId, start: Vec<Dim>, size: Vec<Dim>, step: i64) -> Result<ValueId> {
        let step = vec![step; start.len()];
        self.push(Prim::Slice { start, size, step }, vec![v])
    }

    /// The convolution of an input with one element in each spatial dim: the taps in reverse, each a matrix.
    fn single(
        &mut self,
        [x, w]: [ValueId; 2],
        window: &[WindowDim],
        taps: &[i64],
    ) -> Result<Option<ValueId>> {
        let Prim::Convolve { acc, .. } = self.site.op.prim else { return Ok(None) };
        let (input, result) = (self.shape(x).to_vec(), self.site.types[0].shape.clone());
        let n = window.len();
        let mut start = vec![Dim::from(0); 2];
        let mut step = vec![1; 2];
        for (d, (dim, k)) in window.iter().zip(taps).enumerate() {
            let (Some(pad), Some(o)) = (dim.pad_lo.as_const(), result[2 + d].as_const()) else {
                return Ok(None);
            };
            // place o meets tap pad - o
            let all_meet = o > 1 && o <= pad + 1 && pad < *k;
            if !input[2 + d].is_const(1) || dim.stride != 1 || dim.dilation != 1 || !all_meet {
                return Ok(None);
            }
            start.push(Dim::from(pad));
            step.push(-1);
        }
        let mut size = self.shape(w)[..2].to_vec();
        size.extend(result[2..].iter().cloned());
        let w = self.push(Prim::Slice { start, size, step }, vec![w])?;
        let x = self.reshape(x, input[..2].to_vec())?;
        let prim = Prim::Contract { batch: Vec::new(), reduce: vec![(1, 1)], acc };
        let y = self.push(prim, vec![x, w])?;
        debug_assert_eq!(self.shape(y).len(), n + 2);
        Ok((self.shape(y) == result).then_some(y))
    }

    /// The convolution as a concatenation of ones without padding, where that halves the products at least.
    fn by_regions(&mut self, [x, w]: [ValueId; 2], taps: &[i64]) -> Result<Option<ValueId>> {
        let Prim::Convolve { window, groups, acc } = self.site.op.prim.clone() else { return Ok(None) };
        let (input, result) = (self.shape(x).to_vec(), self.site.types[0].shape.clone());
        let dims: Option<Vec<Vec<Region>>> = (0..window.len())
            .map(|d| regions(&window[d], taps[d], input[2 + d].as_const(), result[2 + d].as_const()))
            .collect();
        let Some(dims) = dims else { return Ok(None) };
        let met: i64 = dims.iter().map(|d| d.iter().map(|r| r.len * r.taps).sum::<i64>()).product();
        let used = |d: &Vec<Region>| {
            let first = d.iter().map(|r| r.first_tap).min().unwrap_or(0);
            d.iter().map(|r| r.first_tap + r.taps).max().unwrap_or(0) - first
        };
        let all: i64 = dims.iter().map(|d| d.iter().map(|r| r.len).sum::<i64>() * used(d)).product();
        let channels = self.shape(w)[..2].iter().map(Dim::as_const).try_fold(1i64, |n, c| n.checked_mul(c?));
        let products = channels.and_then(|c| c.checked_mul(all)).unwrap_or(0);
        let count: usize = dims.iter().map(Vec::len).product();
        if products < REGION_PRODUCTS || met.saturating_mul(2) > all || count > MAX_REGIONS {
            return Ok(None);
        }
        let mut chosen = Vec::new();
        self.region([x, w], (&window, groups, acc), &dims, &mut chosen).map(Some)
    }

    /// The part of the result in which the first dims are in the chosen regions.
    fn region(
        &mut self,
        [x, w]: [ValueId; 2],
        conv: (&[WindowDim], usize, ir::DType),
        dims: &[Vec<Region>],
        chosen: &mut Vec<Region>,
    ) -> Result<ValueId> {
        let (window, groups, acc) = conv;
        if let Some(list) = dims.get(chosen.len()) {
            let axis = 2 + chosen.len();
            let mut parts = Vec::new();
            for r in list {
                chosen.push(*r);
                parts.push(self.region([x, w], conv, dims, chosen)?);
                chosen.pop();
            }
            return match parts[..] {
                [one] => Ok(one),
                _ => self.push(Prim::Concat { axis }, parts),
            };
        }
        let lead = |v: &[Dim]| (vec![Dim::from(0); 2], v[..2].to_vec());
        let (mut start, mut size) = lead(self.shape(x));
        let (mut first, mut taps) = lead(self.shape(w));
        let mut plain = Vec::new();
        for (r, d) in chosen.iter().zip(window) {
            let begin = r.start * d.stride + r.first_tap * d.dilation;
            start.push(Dim::from(begin) - &d.pad_lo);
            size.push(Dim::from((r.len - 1) * d.stride + (r.taps - 1) * d.dilation + 1));
            first.push(Dim::from(r.first_tap));
            taps.push(Dim::from(r.taps));
            plain.push(WindowDim { stride: d.stride, dilation: d.dilation, ..WindowDim::unit() });
        }
        let x = self.slice(x, start, size, 1)?;
        let w = self.slice(w, first, taps, 1)?;
        self.push(Prim::Convolve { window: plain, groups, acc }, vec![x, w])
    }

    fn transposed(
        &mut self,
        [x, w]: [ValueId; 2],
        window: &[WindowDim],
        groups: usize,
        taps: &[i64],
    ) -> Result<Option<Vec<ValueId>>> {
        let Prim::Convolve { acc, .. } = self.site.op.prim else { return Ok(None) };
        let result = self.site.types[0].clone();
        let mut phases = Vec::new();
        for (d, (dim, k)) in window.iter().zip(taps).enumerate() {
            match self.phases(dim, *k, &self.shape(x)[2 + d], &result.shape[2 + d]) {
                Some(p) => phases.push(p),
                None => return Ok(None),
            }
        }
        if !self.tiles_pay([x, w], groups, taps, &phases)
            && let Some(y) = self.separate_phases([x, w], window, groups, taps, &phases)?
        {
            return Ok(Some(vec![y]));
        }
        let n = phases.len();
        let groups_dim = Dim::from(groups as i64);
        let (channels, rest) = self.shape(w)[0].split_multiple(&groups_dim);
        if !rest.is_const(0) {
            return Ok(None);
        }
        let w = self.phase_weights(w, &phases, [groups_dim.clone(), channels.clone()])?;
        let plain = phases.iter().map(|p| p.window.clone()).collect();
        let y = self.push(Prim::Convolve { window: plain, groups, acc }, vec![x, w])?;
        // [N, G, p.., C, q..] to [N, G, C, (q, p)..]
        let counts: Vec<Dim> = phases.iter().map(|p| Dim::from(p.count)).collect();
        let extents = phases.iter().map(|p| p.extent.clone());
        let mut shape = vec![result.shape[0].clone(), groups_dim];
        shape.extend(counts.iter().cloned().chain([channels]).chain(extents));
        let y = self.reshape(y, shape)?;
        let perm = [0, 1, 2 + n].into_iter().chain((0..n).flat_map(|d| [3 + n + d, 2 + d])).collect();
        let y = self.transpose(y, perm)?;
        let mut whole = result.shape[..2].to_vec();
        whole.extend(phases.iter().map(|p| &p.extent * &Dim::from(p.count)));
        let mut y = self.reshape(y, whole)?;
        if self.site.ty(y).shape != result.shape {
            let mut start = vec![Dim::from(0); 2];
            start.extend(phases.iter().map(|p| Dim::from(p.shift)));
            y = self.slice(y, start, result.shape, 1)?;
        }
        Ok(Some(vec![y]))
    }

    /// True where one convolution for all phases has a form that makes up for its missing taps and its margin.
    fn tiles_pay(&self, [x, w]: [ValueId; 2], groups: usize, taps: &[i64], phases: &[Phases]) -> bool {
        let Prim::Convolve { acc, .. } = self.site.op.prim else { return false };
        if !self.winograd || groups != 1 || !super::pads::of_constants(self.site, w) {
            return false;
        }
        let count: i64 = phases.iter().map(|p| p.count).product();
        let (x, w, result) = (self.site.ty(x), self.site.ty(w), &self.site.types[0]);
        let (mut weights, mut out) = (w.clone(), result.clone());
        weights.shape[0] = &weights.shape[0] * Dim::from(count);
        out.shape[1] = weights.shape[0].clone();
        for (d, p) in phases.iter().enumerate() {
            weights.shape[2 + d] = Dim::from(p.taps);
            out.shape[2 + d] = p.extent.clone();
        }
        let prim = Prim::Convolve { window: phases.iter().map(|p| p.window.clone()).collect(), groups, acc };
        Form::pays_with_zeros(&prim, [x, &weights, &out], self.symbols, taps.iter().product(), count)
    }

    /// A convolution for each phase, side by side in the channels of one value; `None` where one for all
    /// of them is better.
    fn separate_phases(
        &mut self,
        [x, w]: [ValueId; 2],
        window: &[WindowDim],
        groups: usize,
        taps: &[i64],
        together: &[Phases],
    ) -> Result<Option<ValueId>> {
        let Prim::Convolve { acc, .. } = self.site.op.prim else { return Ok(None) };
        let (input, result) = (self.shape(x).to_vec(), self.site.types[0].clone());
        let waste = together.iter().zip(taps).any(|(p, k)| p.shift != 0 || p.taps * p.count != *k);
        let wide = result.shape[1].as_const().is_some_and(|c| c >= MIN_CHANNELS);
        let count: i64 = together.iter().map(|p| p.count).product();
        if !waste || !wide || count > MAX_REGIONS as i64 {
            return Ok(None);
        }
        let mut dims = Vec::new();
        for ((d, w), k) in window.iter().enumerate().zip(taps) {
            match self.phases_of(w, *k, &input[2 + d], &result.shape[2 + d]) {
                Some(p) => dims.push(p),
                None => return Ok(None),
            }
        }
        // one padded input for all
        let margin = |f: &dyn Fn(&Dim, &Dim) -> Dim, of: &dyn Fn(&Phase) -> Dim, list: &[Phase]| {
            list.iter().map(of).reduce(|a, b| f(&a, &b)).unwrap_or_default()
        };
        let most = |a: &Dim, b: &Dim| a.max_with(b, self.symbols);
        let zero = Dim::from(0);
        let mut lo = vec![zero.clone(); 2];
        let mut hi = lo.clone();
        for list in &dims {
            lo.push(margin(&most, &|p| p.window.pad_lo.clone(), list).max_with(&zero, self.symbols));
            hi.push(margin(&most, &|p| p.window.pad_hi.clone(), list).max_with(&zero, self.symbols));
        }
        let padded = if lo.iter().chain(&hi).all(|d| d.is_const(0)) {
            x
        } else {
            let fill = self.zero(x);
            let interior = vec![0; lo.len()];
            let prim = Prim::Pad { lo: lo.clone(), hi, interior, mode: PadMode::Constant };
            self.push(prim, vec![x, fill])?
        };
        let mut parts = Vec::new();
        for number in 0..count {
            let mut rest = number;
            let mut chosen: Vec<&Phase> = Vec::new();
            for list in dims.iter().rev() {
                chosen.insert(0, &list[(rest % list.len() as i64) as usize]);
                rest /= list.len() as i64;
            }
            let (mut start, mut size) = (vec![zero.clone(); 2], input[..2].to_vec());
            let (mut first, mut every, mut some) = (start.clone(), vec![1; 2], self.shape(w)[..2].to_vec());
            let mut plain = Vec::new();
            for ((d, p), margin) in chosen.iter().enumerate().zip(&lo[2..]) {
                start.push(margin - &p.window.pad_lo);
                size.push(&input[2 + d] + &p.window.pad_lo + &p.window.pad_hi);
                first.push(Dim::from(p.first));
                every.push(p.step);
                some.push(Dim::from(p.taps));
                plain.push(WindowDim { pad_lo: zero.clone(), pad_hi: zero.clone(), ..p.window.clone() });
            }
            let x = self.slice(padded, start, size, 1)?;
            let w = self.push(Prim::Slice { start: first, size: some, step: every }, vec![w])?;
            parts.push(self.push(Prim::Convolve { window: plain, groups, acc }, vec![x, w])?);
        }
        // [N, (p.., C), q..] to [N, C, (q, p)..]
        let n = dims.len();
        let y = self.push(Prim::Concat { axis: 1 }, parts)?;
        let counts = dims.iter().map(|d| Dim::from(d.len() as i64));
        let extents: Vec<Dim> = dims.iter().map(|d| d[0].extent.clone()).collect();
        let mut shape = vec![result.shape[0].clone()];
        shape.extend(counts.chain([result.shape[1].clone()]).chain(extents.iter().cloned()));
        let y = self.reshape(y, shape)?;
        let perm = [0, 1 + n].into_iter().chain((0..n).flat_map(|d| [2 + n + d, 1 + d])).collect();
        let y = self.transpose(y, perm)?;
        let mut whole = result.shape[..2].to_vec();
        whole.extend(extents.iter().zip(&dims).map(|(q, d)| q * &Dim::from(d.len() as i64)));
        let y = self.reshape(y, whole)?;
        if self.site.ty(y).shape == result.shape {
            return Ok(Some(y));
        }
        let start = vec![zero; result.shape.len()];
        self.slice(y, start, result.shape, 1).map(Some)
    }

    fn zero(&mut self, like: ValueId) -> ValueId {
        let dtype = self.site.ty(like).dtype;
        let source = ConstSource::Splat(Scalar::zero(dtype));
        let id = self.cx.add_const(ConstData { dtype, shape: Vec::new(), source, name: None });
        self.site.push(Prim::Const(id), Vec::new(), vec![TensorType::scalar(dtype)])[0]
    }

    /// The phases of one dim, each with its own taps; `None` where one has none.
    fn phases_of(&self, w: &WindowDim, taps: i64, input: &Dim, output: &Dim) -> Option<Vec<Phase>> {
        let s = w.base_dilation;
        if s == 1 {
            let (window, extent) = (w.clone(), output.clone());
            return Some(vec![Phase { first: 0, step: 1, taps, extent, window }]);
        }
        let pad = w.pad_lo.as_const()?;
        let extent = output.ceil_div(&Dim::from(s), self.symbols);
        let phase = |p: i64| {
            // the place o = s q + p meets tap k = first + s j and the element q + j - before
            let first = (pad - p).rem_euclid(s);
            let before = (pad - p - first) / s;
            let each = (taps - first + s - 1) / s;
            let after = &extent + Dim::from(each - 1 - before) - input;
            let window = WindowDim { pad_lo: Dim::from(before), pad_hi: after, ..WindowDim::unit() };
            (first < taps).then(|| Phase { first, step: s, taps: each, extent: extent.clone(), window })
        };
        (0..s).map(phase).collect()
    }

    /// `None` for what has no such form.
    fn phases(&self, w: &WindowDim, taps: i64, input: &Dim, output: &Dim) -> Option<Phases> {
        let s = w.base_dilation;
        if s == 1 {
            let window = w.clone();
            return Some(Phases { count: 1, taps, shift: 0, extent: output.clone(), window });
        }
        let pad = w.pad_lo.as_const()?;
        if w.stride != 1 || w.dilation != 1 || taps < 1 {
            return None;
        }
        // the place o = s q + p - shift meets tap k = s - 1 - p + s j and the element q + j - before:
        // all phases begin at the same element
        let shift = (s - 1 - pad).rem_euclid(s);
        let before = (shift + pad - (s - 1)) / s;
        let each = (taps + s - 1) / s;
        let extent = (output + Dim::from(shift)).ceil_div(&Dim::from(s), self.symbols);
        let after = &extent + Dim::from(each - 1 - before) - input;
        let window = WindowDim { pad_lo: Dim::from(before), pad_hi: after, ..WindowDim::unit() };
        Some(Phases { count: s, taps: each, shift, extent, window })
    }

    /// `[G * C, Ci, k..]` as `[G * p.. * C, Ci, j..]`.
    fn phase_weights(&mut self, w: ValueId, phases: &[Phases], [g, c]: [Dim; 2]) -> Result<ValueId> {
        let n = phases.len();
        let shape = self.shape(w).to_vec();
        // missing taps are zeros
        let zero = Dim::from(0);
        let more = shape[2..].iter().zip(phases);
        let hi = [zero.clone(), zero.clone()].into_iter();
        let hi: Vec<Dim> = hi.chain(more.map(|(k, p)| Dim::from(p.taps * p.count) - k)).collect();
        let mut v = w;
        if hi.iter().any(|h| !h.is_const(0)) {
            let fill = self.zero(w);
            let (lo, interior) = (vec![zero.clone(); n + 2], vec![0; n + 2]);
            v = self.push(Prim::Pad { lo, hi, interior, mode: PadMode::Constant }, vec![v, fill])?;
        }
        let mut split = vec![g.clone(), c.clone(), shape[1].clone()];
        split.extend(phases.iter().flat_map(|p| [Dim::from(p.taps), Dim::from(p.count)]));
        v = self.reshape(v, split.clone())?;
        // phase p takes the taps with the residue s - 1 - p
        let mut start = vec![zero; split.len()];
        let mut step = vec![1; split.len()];
        for (d, p) in phases.iter().enumerate() {
            start[4 + 2 * d] = Dim::from(p.count - 1);
            step[4 + 2 * d] = -1;
        }
        v = self.push(Prim::Slice { start, size: split, step }, vec![v])?;
        let perm = [0].into_iter().chain((0..n).map(|d| 4 + 2 * d)).chain([1, 2]);
        v = self.transpose(v, perm.chain((0..n).map(|d| 3 + 2 * d)).collect())?;
        let count = phases.iter().fold(g * c, |all, p| all * Dim::from(p.count));
        let mut merged = vec![count, shape[1].clone()];
        merged.extend(phases.iter().map(|p| Dim::from(p.taps)));
        self.reshape(v, merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_a_wide_dilation() {
        let w = |dilation, pad: i64| WindowDim { dilation, pad_lo: Dim::from(pad), ..WindowDim::unit() };
        let region = |start, len, first_tap, taps| Region { start, len, first_tap, taps };
        assert_eq!(
            regions(&w(12, 12), 3, Some(16), Some(16)),
            Some(vec![region(0, 4, 1, 2), region(4, 8, 1, 1), region(12, 4, 0, 2)])
        );
        assert_eq!(regions(&w(1, 0), 3, Some(5), Some(3)), Some(vec![region(0, 3, 0, 3)]));
        assert_eq!(regions(&w(1, 3), 3, Some(5), Some(3)), None);
    }

    #[test]
    fn taps_that_meet_the_input() {
        let w = |dilation, pad: i64| WindowDim { dilation, pad_lo: Dim::from(pad), ..WindowDim::unit() };
        let live = |w: &WindowDim, n| live_taps(w, 3, Some(n), Some(n));
        assert_eq!(live(&w(1, 1), 16), Some((0, 2)));
        assert_eq!(live(&w(15, 15), 16), Some((0, 2)));
        assert_eq!(live(&w(16, 16), 16), Some((1, 1)));
        assert_eq!(live(&w(36, 36), 16), Some((1, 1)));
        // all of them in the padding: one is left
        assert_eq!(live_taps(&w(1, 40), 3, Some(4), Some(4)), Some((2, 2)));
        assert_eq!(live_taps(&w(1, 0), 3, None, Some(4)), None);
    }
}
