//! Which form computes a convolution, where another one pays more than the direct one.

use crate::winograd::Form;
use crate::{col2im, occupancy, winograd};
use ir::prim::Prim;
use ir::target::TargetDesc;
use ir::{Math, Symbols, TensorType};

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

/// The forms that a model's convolutions may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forms {
    /// Tiles of Winograd's forms, at least: the rows of their products.
    tiles: i64,
}

impl Forms {
    /// None but the direct form where sums keep their order.
    pub fn of(math: Math, target: &TargetDesc) -> Option<Forms> {
        // fewer rows are no blocks of a GPU, and sums of the direct form may be split there
        let tiles = if target.simt { occupancy::LEAST.0 } else { 1 };
        math.reassociates().then_some(Forms { tiles })
    }

    /// The form that pays, by the types of the input, the filter and the result.
    pub fn best(self, prim: &Prim, [x, w, out]: [&TensorType; 3], symbols: &Symbols) -> Option<Other> {
        if let Some(form) = winograd::Form::overlapping(prim, x, w, out, symbols) {
            return Some(Other::Overlap(form));
        }
        if col2im::pays(prim, x, w, out) {
            return Some(Other::Col2im);
        }
        winograd::Form::of(prim, w, out, self.tiles, symbols).map(Other::Tiles)
    }
}
