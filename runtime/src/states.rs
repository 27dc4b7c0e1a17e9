//! States of a context: buffers that keep their contents from run to run.
//!
//! A state is a dense tensor with room for a fixed number of rows along one dim, of which the first few
//! are there. A run appends rows in place; what the caller reads and writes is cut to the rows there.

use crate::arena::ALIGN;
use crate::context::InputView;
use crate::device::{Device, Memory, Queue};
use crate::error::{Result, RunError};
use crate::model::Model;
use format::{IoDef, SizeExpr, StateDef};
use std::borrow::Cow;

/// One state of one context.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) memory: Option<Box<dyn Memory>>,
    /// Rows that are there.
    pub(crate) len: i64,
    /// Extents, that of the rows at the capacity; empty before the first use.
    pub(crate) shape: Vec<usize>,
}

/// A state in the context's memory, valid until the next run.
#[derive(Clone, Copy)]
pub struct StateView<'a> {
    /// Name of the model's output.
    pub name: &'a str,
    pub elem: &'static str,
    /// Extents, with the capacity at `axis`.
    pub shape: &'a [usize],
    pub axis: usize,
    /// Rows that are there.
    pub len: usize,
    memory: Option<&'a dyn Memory>,
    queue: &'a dyn Queue,
    bytes: usize,
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

impl<'a> StateView<'a> {
    /// Extents of the rows that are there.
    pub fn dense_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.to_vec();
        if let Some(n) = shape.get_mut(self.axis) {
            *n = self.len;
        }
        shape
    }

    /// All of `shape`, row-major; a copy where the device has memory of its own.
    ///
    /// # Errors
    /// Those of the device.
    pub fn data(&self) -> Result<Cow<'a, [u8]>> {
        let Some(memory) = self.memory.filter(|m| self.bytes > 0 && m.len() >= self.bytes) else {
            return Ok(Cow::Borrowed(&[]));
        };
        if self.queue.is_direct() {
            // SAFETY: the memory holds that many bytes, and nobody writes them while the context is borrowed.
            return Ok(Cow::Borrowed(unsafe { std::slice::from_raw_parts(memory.base(), self.bytes) }));
        }
        let mut data = vec![0; self.bytes];
        // SAFETY: both hold so many bytes; the copy is waited for.
        unsafe { self.queue.read_later(memory.base(), data.as_mut_ptr(), self.bytes) }?;
        self.queue.wait()?;
        Ok(Cow::Owned(data))
    }

    /// The rows that are there, row-major.
    ///
    /// # Errors
    /// Those of the device.
    pub fn dense(&self) -> Result<Vec<u8>> {
        let elems: usize = self.shape.iter().product();
        let data = self.data()?;
        if elems == 0 || data.is_empty() {
            return Ok(Vec::new());
        }
        let rows = Rows::of(self.shape, self.axis, data.len() / elems);
        let whole = self.shape[self.axis] * rows.row;
        let used = self.len * rows.row;
        Ok((0..rows.pieces).flat_map(|p| &data[p * whole..p * whole + used]).copied().collect())
    }
}

impl Kept {
    pub(crate) fn view<'a>(&'a self, model: &'a Model, s: &StateDef, queue: &'a dyn Queue) -> StateView<'a> {
        let def = &model.program.outputs[s.output];
        let bytes = match self.shape.is_empty() {
            true => 0,
            false => self.shape.iter().product::<usize>() * def.elem.bytes,
        };
        StateView {
            name: &def.name,
            elem: def.elem.name,
            shape: &self.shape,
            axis: s.axis,
            len: self.len as usize,
            memory: self.memory.as_deref(),
            queue,
            bytes,
        }
    }

    /// Takes the rows of a dense tensor for what was there. True where the memory has moved.
    pub(crate) fn set(
        &mut self,
        def: &IoDef,
        s: &StateDef,
        view: &InputView<'_>,
        device: &dyn Device,
        queue: &dyn Queue,
    ) -> Result<bool> {
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
        let memory = self.memory.get_or_insert_with(|| device.memory());
        let moved = memory.grow(bytes + ALIGN)?;
        let used = len * rows.row;
        for p in 0..rows.pieces {
            let from = &view.data[p * used..(p + 1) * used];
            // SAFETY: piece `p` of the memory, which holds `pieces * whole` bytes, and `used <= whole`.
            unsafe { queue.write(memory.base().wrapping_add(p * whole), from) }?;
        }
        self.shape = shape;
        self.len = len as i64;
        Ok(moved)
    }
}
