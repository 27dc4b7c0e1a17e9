//! Makes the padding of convolutions and windows an op of its own.
//!
//! A convolution then reads its operand without guards, and grouping writes the operand straight into
//! the interior of the padded buffer, so that padding costs its border and nothing else. Zeros between
//! input elements (transposed convolutions) become an interior pad.

use super::rewrite::{Rule, Shared, Site, rewrite};
use crate::error::Result;
use crate::forms::{Forms, Other};
use crate::limits::Fuel;
use ir::dtype::Scalar;
use ir::prim::{PadMode, Prim, WindowDim};
use ir::{Dim, Module, Symbols, TensorType, ValueId};

/// `forms`: leave room for whole tiles behind convolutions that will be computed that way.
pub fn separate_pads(module: &mut Module, forms: Option<Forms>, fuel: &Fuel) -> Result<()> {
    let symbols = module.symbols.clone();
    rewrite(module, &mut Pads { symbols, forms }, fuel)
}

struct Pads {
    symbols: Symbols,
    forms: Option<Forms>,
}

fn is_padded(window: &[WindowDim]) -> bool {
    window.iter().any(|w| !w.pad_lo.is_const(0) || !w.pad_hi.is_const(0) || w.base_dilation != 1)
}

/// True where the window dims may crop more than there is of `x`, padded: the window has no results then, but a pad
/// of its own would have fewer than no elements.
pub(super) fn may_crop_all(x: &TensorType, window: &[WindowDim], symbols: &Symbols) -> bool {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    let extents = &x.shape[x.rank() - window.len()..];
    window.iter().zip(extents).any(|(w, n)| {
        // with one tap everywhere, the extent of the result is that of the padded operand
        let taps = WindowDim { stride: 1, dilation: 1, ..w.clone() };
        let grows = zero.provably_le(&w.pad_lo, symbols) && zero.provably_le(&w.pad_hi, symbols);
        !grows && !zero.provably_le(&ir::infer::window_extent(n, &one, &taps, symbols), symbols)
    })
}

fn unpadded(window: &[WindowDim]) -> Vec<WindowDim> {
    let plain = |w: &WindowDim| WindowDim { stride: w.stride, dilation: w.dilation, ..WindowDim::unit() };
    window.iter().map(plain).collect()
}

impl Pads {
    /// `x` with the pads of `window` around its trailing dims; `None` where that may be less than nothing.
    fn pad(
        &self,
        cx: &mut Shared<'_>,
        site: &mut Site<'_>,
        x: ValueId,
        window: &[WindowDim],
        fill: Scalar,
    ) -> Option<ValueId> {
        let ty = site.ty(x).clone();
        let lead = ty.rank() - window.len();
        let by_dim = |f: &dyn Fn(&WindowDim) -> Dim| -> Vec<Dim> {
            (0..lead).map(|_| Dim::from(0)).chain(window.iter().map(f)).collect()
        };
        let prim = Prim::Pad {
            lo: by_dim(&|w| w.pad_lo.clone()),
            hi: by_dim(&|w| w.pad_hi.clone()),
            interior: (0..lead).map(|_| 0).chain(window.iter().map(|w| w.base_dilation - 1)).collect(),
            mode: PadMode::Constant,
        };
        let scalar = TensorType::scalar(ty.dtype);
        let types = ir::infer::infer(&prim, &[&ty, &scalar], &[], cx.consts, &self.symbols).ok()?;
        let fill = site.scalar(cx, ty.dtype, fill);
        site.push(prim, vec![x, fill], types).first().copied()
    }
}

/// True where the value is a constant or a view of one.
pub(super) fn of_constants(site: &Site<'_>, mut v: ValueId) -> bool {
    while let Some(op) = site.def(v) {
        match (&op.prim, op.operands.first()) {
            (Prim::Const(_), _) => return true,
            (Prim::Reshape { .. } | Prim::Transpose { .. } | Prim::Slice { .. }, Some(x)) => v = *x,
            _ => return false,
        }
    }
    false
}

impl Rule for Pads {
    fn apply(&mut self, cx: &mut Shared<'_>, site: &mut Site<'_>) -> Result<Option<Vec<ValueId>>> {
        let types = site.types.to_vec();
        match &site.op.prim {
            Prim::Convolve { window, groups, acc } => {
                let [x, w] = *site.operands else { return Ok(None) };
                let constant = matches!(site.def(w), Some(op) if matches!(op.prim, Prim::Const(_)));
                let types_of = [site.ty(x), site.ty(w), &types[0]];
                let form = self
                    .forms
                    .filter(|_| of_constants(site, w))
                    .and_then(|f| f.best(&site.op.prim, types_of, &self.symbols));
                let tiled = match form {
                    // these meet no padding
                    Some(Other::Overlap(_) | Other::Col2im) => return Ok(None),
                    Some(Other::Tiles(form)) => Some(form).filter(|_| constant),
                    None => None,
                };
                // what is padded for the tiles' sake only is cropped again by the convolution
                let (mut padded, mut plain) = (window.clone(), unpadded(window));
                if let Some(form) = tiled {
                    let extents = &types[0].shape[2..];
                    for ((before, after), n) in padded.iter_mut().zip(&mut plain).zip(extents) {
                        let extra = form.overhang(n, &self.symbols);
                        before.pad_hi = &before.pad_hi + &extra;
                        after.pad_hi = -extra;
                    }
                }
                if !is_padded(&padded) || may_crop_all(site.ty(x), window, &self.symbols) {
                    return Ok(None);
                }
                let zero = Scalar::zero(site.ty(x).dtype);
                let Some(x) = self.pad(cx, site, x, &padded, zero) else { return Ok(None) };
                let prim = Prim::Convolve { window: plain, groups: *groups, acc: *acc };
                Ok(Some(site.push(prim, vec![x, w], types)))
            }
            Prim::WindowReduce { monoid, size, window } if is_padded(window) => {
                let [x] = *site.operands else { return Ok(None) };
                if may_crop_all(site.ty(x), window, &self.symbols) {
                    return Ok(None);
                }
                let identity = monoid.identity(site.ty(x).dtype);
                let Some(x) = self.pad(cx, site, x, window, identity) else { return Ok(None) };
                let prim =
                    Prim::WindowReduce { monoid: *monoid, size: size.clone(), window: unpadded(window) };
                Ok(Some(site.push(prim, vec![x], types)))
            }
            _ => Ok(None),
        }
    }
}
