//! States of a context: buffers that keep their contents from run to run.
//!
//! A state is a dense tensor with room for a fixed number of rows along one dim, of which the first few
//! are there. A run appends rows in place; what the caller reads and writes is cut to the rows there.

use crate::arena::{ALIGN, Region};
use crate::context::InputView;
use crate::error::{Result, RunError};
use crate::model::Model;
use format::{IoDef, SizeExpr, StateDef};

/// One state of one context.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) region: Region,
    /// Rows that are there.
    pub(crate) len: i64,
    /// Extents, that of the rows at the capacity; empty before the first use.
    pub(crate) shape: Vec<usize>,
}

/// A state in the context's memory, valid until the next run.
#[derive(Clone, Copy, Debug)]
pub struct StateView<'a> {
    /// Name of the model's output.
    pub name: &'a str,
    pub elem: &'static str,
    /// Extents, with the capacity at `axis`.
    pub shape: &'a [usize],
    pub axis: usize,
    /// Rows that are there.
    pub len: usize,
    /// All of `shape`, row-major.
    pub data: &'a [u8],
}

/// A tensor as pieces with a run of rows each: pieces, and bytes of one row.
struct Rows {
    pieces: usize,
    row: usize,
}

impl Rows {
    fn of(shape: &[usize], axis: usize, elem: usize) -> Rows {
        let count = |dims: &[usize]| dims.iter().product::<usize>();
        Rows { pieces: count(&shape[..axis]), row: count(&shape[axis + 1..]) * elem }
    }
}

impl StateView<'_> {
    /// Extents of the rows that are there.
    pub fn dense_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.to_vec();
        if let Some(n) = shape.get_mut(self.axis) {
            *n = self.len;
        }
        shape
    }

    /// The rows that are there, row-major.
    pub fn dense(&self) -> Vec<u8> {
        let elems: usize = self.shape.iter().product();
        if elems == 0 {
            return Vec::new();
        }
        let rows = Rows::of(self.shape, self.axis, self.data.len() / elems);
        let whole = self.shape[self.axis] * rows.row;
        let used = self.len * rows.row;
        (0..rows.pieces).flat_map(|p| &self.data[p * whole..p * whole + used]).copied().collect()
    }
}

impl Kept {
    pub(crate) fn view<'a>(&'a self, model: &'a Model, s: &StateDef) -> StateView<'a> {
        let def = &model.program.outputs[s.output];
        let bytes = self.shape.iter().product::<usize>() * def.elem.bytes;
        let data = match self.shape.is_empty() || self.region.len() < bytes {
            true => &[][..],
            // SAFETY: the region holds that many bytes, and nobody writes them while `self` is borrowed.
            false => unsafe { std::slice::from_raw_parts(self.region.as_ptr(), bytes) },
        };
        let shape = &self.shape;
        StateView { name: &def.name, elem: def.elem.name, shape, axis: s.axis, len: self.len as usize, data }
    }

    /// Takes the rows of a dense tensor for what was there.
    pub(crate) fn set(&mut self, def: &IoDef, s: &StateDef, view: &InputView<'_>) -> Result<()> {
        let mut shape = view.shape.to_vec();
        let fits = |(d, (e, &n)): (usize, (&SizeExpr, &usize))| match e {
            _ if d == s.axis => n as u64 <= s.capacity as u64,
            SizeExpr::Const(c) => *c == n as i64,
            // seen when a run binds it
            SizeExpr::Code(_) => true,
        };
        let elems = view.shape.iter().try_fold(def.elem.bytes, |n, &d| n.checked_mul(d));
        let good = def.elem.name == view.elem
            && def.shape.len() == shape.len()
            && def.shape.iter().zip(&shape).enumerate().all(fits)
            && elems == Some(view.data.len());
        if !good {
            return Err(RunError::State {
                name: def.name.clone(),
                message: format!(
                    "{}{:?} in {} bytes does not fit a capacity of {} rows along dim {}",
                    view.elem,
                    view.shape,
                    view.data.len(),
                    s.capacity,
                    s.axis
                ),
            });
        }
        let len = std::mem::replace(&mut shape[s.axis], s.capacity as usize);
        let rows = Rows::of(&shape, s.axis, def.elem.bytes);
        let whole = rows.row.checked_mul(s.capacity as usize);
        let Some((whole, bytes)) = whole.and_then(|w| Some((w, w.checked_mul(rows.pieces)?))) else {
            return Err(RunError::Limit {
                what: def.name.clone(),
                needed: u64::MAX,
                limit: usize::MAX as u64,
            });
        };
        self.region.grow(bytes + ALIGN)?;
        let used = len * rows.row;
        for p in 0..rows.pieces {
            let from = &view.data[p * used..(p + 1) * used];
            // SAFETY: piece `p` of the region, which holds `pieces * whole` bytes, and `used <= whole`.
            unsafe { self.region.as_ptr().add(p * whole).copy_from_nonoverlapping(from.as_ptr(), used) };
        }
        self.shape = shape;
        self.len = len as i64;
        Ok(())
    }
}
