//! How the elements of a logical tensor lie in memory.
//!
//! A layout is an attribute of a buffer and never changes a value's logical shape.

/// One physical dimension, outermost first in [`Layout::frags`]: the part
/// `(index[dim] / div) % len` of logical dimension `dim`; `len` is `None` for the outermost part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frag {
    pub dim: usize,
    pub div: usize,
    pub len: Option<usize>,
}

/// Ordered dim fragments, outermost first, and the halo of each logical dim.
///
/// `[O, I, KH, KW]` packed for a convolution tile of 32 output channels is
/// `o/32, kh, kw, i, o%32`. A split dim is padded up to a multiple of its split factor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    pub frags: Vec<Frag>,
    /// Elements before and after each logical dim that hold the fill value (0), by logical dim.
    pub halo: Vec<(usize, usize)>,
}

impl Layout {
    /// Row-major of `rank` dims.
    pub fn row_major(rank: usize) -> Layout {
        Layout::permuted(&(0..rank).collect::<Vec<_>>())
    }
    /// Dims in the given order, outermost first: `[0, 2, 3, 1]` keeps an NCHW value as NHWC.
    pub fn permuted(order: &[usize]) -> Layout {
        Layout {
            frags: order.iter().map(|&dim| Frag { dim, div: 1, len: None }).collect(),
            halo: vec![(0, 0); order.len()],
        }
    }
    pub fn rank(&self) -> usize {
        self.halo.len()
    }
    pub fn is_row_major(&self) -> bool {
        *self == Layout::row_major(self.rank())
    }
    /// The factor by which logical `dim` is split (1 where it is not).
    pub fn split_of(&self, dim: usize) -> usize {
        self.frags.iter().filter(|f| f.dim == dim).filter_map(|f| f.len).product()
    }
}
