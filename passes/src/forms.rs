//! Which form computes a convolution, where another one pays more than the direct one.

use crate::winograd::Form;
use crate::{col2im, winograd};
use ir::prim::Prim;
use ir::{Symbols, TensorType};

/// A form other than the direct one. All of them add in another order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Other {
    /// Winograd's, with tiles of the result, which read padding as elements.
    Tiles(Form),
    /// Winograd's, with tiles of the input, which meet no padding.
    Overlap(Form),
    /// Products of each element with all taps, which meet no padding ([`crate::col2im`]).
    Col2im,
}

/// The form that pays, by the types of the input, the filter and the result.
pub fn of(prim: &Prim, [x, w, out]: [&TensorType; 3], symbols: &Symbols) -> Option<Other> {
    if let Some(form) = winograd::Form::overlapping(prim, x, w, out, symbols) {
        return Some(Other::Overlap(form));
    }
    if col2im::pays(prim, x, w, out) {
        return Some(Other::Col2im);
    }
    winograd::Form::of(prim, w, out, symbols).map(Other::Tiles)
}
