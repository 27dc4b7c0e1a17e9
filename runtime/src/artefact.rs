//! Artefact files: programs whose constants stay mapped, and the program of a loaded model written as one.

use crate::arena::Region;
use crate::error::{Result, RunError};
use crate::model::Model;
use format::artefact::{self, Artefact, MadeFor};
use format::{Blob, Place, Program};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// A part of a mapped file.
struct Part {
    map: Arc<Mmap>,
    range: Range<usize>,
}

impl Blob for Part {
    fn bytes(&self) -> &[u8] {
        self.map.get(self.range.clone()).unwrap_or(&[])
    }
}

/// An artefact as read from a file.
pub struct Loaded {
    /// Ready for [`Model::load`]; its constants are parts of the mapped file.
    pub program: Program,
    pub made_for: MadeFor,
    /// What the writer added.
    pub extra: Vec<u8>,
    artefact: Artefact,
    map: Arc<Mmap>,
}

impl Loaded {
    /// Maps `file`, and checks all of it but the values of its constants.
    ///
    /// The file must not be changed while the program is in use: replace it by renaming another one over it.
    ///
    /// # Errors
    /// Where the file is no artefact, or a damaged one.
    pub fn open(file: &File) -> Result<Loaded> {
        // SAFETY: a private, read-only mapping; that nobody writes to the file is asked of the caller.
        let map = unsafe { Mmap::map(file) }.map_err(|e| RunError::Memory(e.to_string()))?;
        let map = Arc::new(map);
        let mut artefact = artefact::read(&map)?;
        let mut program = std::mem::take(&mut artefact.program);
        program.consts = artefact
            .consts
            .iter()
            .map(|range| {
                let range = range.clone()?;
                Some(Arc::new(Part { map: map.clone(), range }) as Arc<dyn Blob>)
            })
            .collect();
        let (made_for, extra) = (artefact.made_for.clone(), std::mem::take(&mut artefact.extra));
        Ok(Loaded { program, made_for, extra, artefact, map })
    }

    /// Checks the values of the constants against their hash: reads all of the file, on all cores.
    ///
    /// # Errors
    /// Where they differ.
    pub fn check_data(&self) -> Result<()> {
        Ok(artefact::check_data(&self.map, &self.artefact)?)
    }

    /// The constants' memory, to be moved to huge pages later.
    pub fn pages(&self) -> MappedData {
        MappedData { map: self.map.clone(), data: self.artefact.data.clone() }
    }
}

/// The constants of an artefact in mapped pages of 4 KiB: there at once, shared between processes, and a
/// third slower to stream than huge pages.
pub struct MappedData {
    map: Arc<Mmap>,
    data: Range<usize>,
}

const WINDOW: usize = 2 << 20;

impl MappedData {
    pub fn len(&self) -> usize {
        self.data.len()
    }
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Replaces the mapped pages by huge pages of the same contents, 2 MiB at a time, while others read them.
    /// Ends early where memory is short, or where the model is gone.
    pub fn promote(&self) {
        let base = self.map.as_ptr() as usize;
        let end = base + self.data.end;
        let mut at = (base + self.data.start).next_multiple_of(WINDOW);
        while at + WINDOW <= end && Arc::strong_count(&self.map) > 1 {
            let Ok(fresh) = Region::with_len(WINDOW) else { return };
            let from = self.map.as_ptr().wrapping_add(at - base);
            // SAFETY: source and target are whole windows, the source inside the mapping, the target fresh.
            unsafe { fresh.as_ptr().copy_from_nonoverlapping(from, WINDOW) };
            // SAFETY: the window lies inside our mapping, which lives on and will unmap whatever lies
            // there. Readers see the same bytes before and after; the kernel exchanges the pages under its
            // lock, so that an access in between waits.
            if !unsafe { fresh.move_over(from.cast_mut()) } {
                return;
            }
            at += WINDOW;
        }
    }
}

impl Model {
    /// Writes the program with its weights as they are now, packed and folded: an artefact without init steps.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_artefact(
        &self,
        made_for: &MadeFor,
        extra: &[u8],
        out: &mut dyn std::io::Write,
    ) -> std::io::Result<()> {
        let mut program = Program { consts: Vec::new(), init: Vec::new(), ..self.program.clone() };
        let mut held = Vec::new();
        for (b, def) in program.buffers.iter_mut().enumerate() {
            if !matches!(def.place, Place::Const(_) | Place::Init) {
                continue;
            }
            let bytes = self.fixed_bytes(b).map_err(std::io::Error::other)?;
            if bytes.is_none() {
                // nobody reads it any more
                def.bytes = format::SizeExpr::Const(0);
            }
            def.place = Place::Const(held.len());
            held.push(bytes.unwrap_or_default());
        }
        let consts: Vec<Option<&[u8]>> = held.iter().map(|bytes| Some(&**bytes)).collect();
        artefact::write(&program, &consts, made_for, extra, out)
    }
}
