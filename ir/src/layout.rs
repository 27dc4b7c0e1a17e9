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
    /// Elements from the start of the buffer to the element at `index` of a tensor of `shape`.
    pub fn offset(&self, shape: &[usize], index: &[usize]) -> usize {
        self.frags.iter().fold(0, |at, f| {
            let (lo, hi) = self.halo[f.dim];
            let extent = f.len.unwrap_or_else(|| (shape[f.dim] + lo + hi).div_ceil(f.div));
            let part = (index[f.dim] + lo) / f.div;
            at * extent + f.len.map_or(part, |len| part % len)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_split_and_haloed_layouts() {
        assert_eq!(Layout::permuted(&[0, 2, 3, 1]).offset(&[2, 3, 4, 5], &[1, 2, 3, 4]), 119);
        let mut l = Layout::permuted(&[0, 1]);
        l.halo = vec![(0, 0), (1, 2)];
        assert_eq!(l.offset(&[2, 4], &[1, 0]), 8);
        // n/16, k, n%16
        let frags = vec![
            Frag { dim: 1, div: 16, len: None },
            Frag { dim: 0, div: 1, len: None },
            Frag { dim: 1, div: 1, len: Some(16) },
        ];
        let l = Layout { frags, halo: vec![(0, 0); 2] };
        assert_eq!(l.offset(&[10, 20], &[3, 17]), 160 + 3 * 16 + 1);
    }
}
