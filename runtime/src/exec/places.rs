//! Where buffers lie, and what the host reads and writes of them.

use super::{Executor, memory, placed};
use crate::arena::ALIGN;
use crate::error::{Result, RunError};
use format::Place;
use std::borrow::Cow;

impl Executor<'_> {
    pub(super) fn size_of(&self, b: usize) -> Result<usize> {
        let def = &self.model.program.buffers[b];
        let n = self.eval(&def.bytes, &def.name)?;
        usize::try_from(n).ok().filter(|&n| n as u64 <= self.model.limits.arena_bytes).ok_or_else(|| {
            RunError::Limit { what: def.name.clone(), needed: n as u64, limit: self.model.limits.arena_bytes }
        })
    }

    /// Constants and init buffers, and what is an alias of one.
    pub(super) fn place_fixed(&mut self) -> Result<()> {
        for b in 0..self.model.program.buffers.len() {
            if !self.model.fixed[b].is_null() {
                self.state.lens[b] = self.size_of(b)?;
            }
        }
        self.resolve_aliases();
        Ok(())
    }

    /// Makes the arena hold `end` bytes; placed buffers keep their contents and may move.
    pub(super) fn reserve(&mut self, end: i64) -> Result<()> {
        let limit = self.model.limits.arena_bytes;
        let needed = u64::try_from(end).unwrap_or(0);
        if needed > limit {
            return Err(RunError::Limit { what: "the arena".into(), needed, limit });
        }
        // one vector more, so that the last one of a buffer may be read whole
        if self.state.arena.grow(needed as usize + ALIGN)? {
            self.state.moves += 1;
            for (b, offset) in self.state.offsets.iter().enumerate() {
                if let Some(o) = offset {
                    self.state.ptrs[b] = self.state.arena.base().wrapping_add(*o);
                }
            }
        }
        Ok(())
    }

    /// Gives a buffer its address for the sizes known now.
    pub(super) fn place(&mut self, b: usize) -> Result<()> {
        let model = self.model;
        let len = self.size_of(b)?;
        self.state.lens[b] = len;
        let def = &model.program.buffers[b];
        // room for all sizes of the bucket, where one is gone through
        let room = match &self.state.tape {
            Some(_) => usize::try_from(self.extent(&def.bytes, &def.name)?).unwrap_or(usize::MAX),
            None => len,
        };
        match &def.place {
            Place::Arena { offset } => {
                let offset = self.extent(offset, &def.name)?;
                let end = i64::try_from(room).ok().and_then(|n| offset.checked_add(n));
                let end = end.filter(|_| offset >= 0);
                self.reserve(end.unwrap_or(i64::MAX))?;
                self.state.offsets[b] = Some(offset as usize);
                self.state.ptrs[b] = self.state.arena.base().wrapping_add(offset as usize);
            }
            Place::Output(_) | Place::Own => {
                let own = memory(&mut self.state.own[b], &*model.device);
                self.state.moves += u64::from(own.grow(room.saturating_add(ALIGN))?);
                self.state.ptrs[b] = own.base();
            }
            Place::Const(_) | Place::Init | Place::Input(_) | Place::Alias(_) => {}
        }
        Ok(())
    }

    /// The buffer behind an alias.
    fn root(&self, mut b: usize) -> usize {
        // aliases point backwards, so this ends
        while let Place::Alias(next) = self.model.program.buffers[b].place
            && next < b
        {
            b = next;
        }
        b
    }

    pub(super) fn resolve_aliases(&mut self) {
        for (b, def) in self.model.program.buffers.iter().enumerate() {
            if let Place::Alias(of) = def.place {
                let of = self.root(of);
                self.state.ptrs[b] = self.state.ptrs[of];
                self.state.lens[b] = self.state.lens[of];
            }
        }
    }

    /// Copies `from` behind what the own buffer `to` holds: it grows and keeps its contents.
    pub(super) fn append(&mut self, from: usize, to: usize, index: u32) -> Result<()> {
        let model = self.model;
        let len = self.state.lens[from];
        let at = self.state.syms[index as usize];
        let end = usize::try_from(at).ok().and_then(|i| i.checked_mul(len)?.checked_add(len));
        let end = end.filter(|&e| e as u64 <= model.limits.arena_bytes).ok_or_else(|| RunError::Limit {
            what: model.program.buffers[to].name.clone(),
            needed: u64::MAX,
            limit: model.limits.arena_bytes,
        })?;
        if len == 0 {
            return Ok(());
        }
        let own = memory(&mut self.state.own[to], &*model.device);
        let needed = if end + ALIGN > own.len() { (end + ALIGN).max(2 * end) } else { 0 };
        self.state.moves += u64::from(own.grow(needed)?);
        self.state.ptrs[to] = own.base();
        self.state.lens[to] = end;
        placed(self.state.ptrs[from])?;
        let to = self.state.ptrs[to].wrapping_add(end - len);
        // SAFETY: the own buffer was grown to `end` bytes; `from` lies elsewhere.
        unsafe { self.state.queue.copy(to, self.state.ptrs[from], len) }
    }

    /// Bytes of a buffer that the host has anyway: constants, and what the caller gave.
    fn at_hand(&self, b: usize) -> Option<&[u8]> {
        let program = &self.model.program;
        let bytes = match program.buffers[self.root(b)].place {
            Place::Const(c) => program.consts.get(c)?.as_ref()?.bytes(),
            Place::Input(i) => {
                let k = self.model.given.iter().position(|&g| g == i)?;
                self.inputs.get(k)?.data
            }
            _ => return None,
        };
        bytes.get(..self.state.lens[b])
    }

    /// What a buffer holds when everything before is done.
    pub(crate) fn bytes(&self, b: usize) -> Result<Cow<'_, [u8]>> {
        let (ptr, len) = (self.state.ptrs[b], self.state.lens[b]);
        if ptr.is_null() || len == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        if self.state.queue.is_direct() {
            // SAFETY: a placed buffer holds `len` bytes; no kernel runs while `self` is borrowed.
            return Ok(Cow::Borrowed(unsafe { std::slice::from_raw_parts(ptr, len) }));
        }
        if let Some(bytes) = self.at_hand(b) {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = vec![0; len];
        self.read(b, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    /// Copies the beginning of a buffer, which is as long as `to` at least, from a device that is not direct.
    fn read(&self, b: usize, to: &mut [u8]) -> Result<()> {
        placed(self.state.ptrs[b])?;
        // SAFETY: the buffer holds so many bytes; `to` is looked at after the wait.
        unsafe { self.state.queue.read_later(self.state.ptrs[b], to.as_mut_ptr(), to.len()) }?;
        self.wait()
    }

    /// Element 0 of a buffer of integers or booleans.
    pub(super) fn read_int(&self, b: usize) -> Result<i64> {
        let def = &self.model.program.buffers[b];
        let mut raw = [0u8; 8];
        let n = def.elem.bytes.min(8);
        if self.state.lens[b] < n || n == 0 {
            return Err(RunError::Program(format!("{} holds no integer ({})", def.name, def.elem.name)));
        }
        if self.state.queue.is_direct() || self.at_hand(b).is_some() {
            raw[..n].copy_from_slice(self.bytes(b)?.get(..n).unwrap_or(&[0; 8][..n]));
        } else {
            self.read(b, &mut raw[..n])?;
        }
        match def.elem.name {
            "i64" => Ok(i64::from_le_bytes(raw)),
            "i32" => Ok(i32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]).into()),
            "bool" => Ok((raw[0] != 0).into()),
            _ => Err(RunError::Program(format!("{} holds no integer ({})", def.name, def.elem.name))),
        }
    }

    pub(super) fn write_int(&mut self, b: usize, value: i64) -> Result<()> {
        placed(self.state.ptrs[b])?;
        if self.state.lens[b] < 8 {
            return Err(RunError::Program("a loop counter is an i64".into()));
        }
        // SAFETY: the buffer has a place and at least eight bytes.
        unsafe { self.state.queue.write(self.state.ptrs[b], &value.to_le_bytes()) }
    }
}
