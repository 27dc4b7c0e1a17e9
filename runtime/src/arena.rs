//! Growable memory in huge pages: arenas, outputs, packed weights.

use crate::error::{Result, RunError};
use std::ptr::{self, NonNull};

/// Every buffer starts at a multiple of this many bytes.
pub const ALIGN: usize = 64;
const HUGE: usize = 2 << 20;

/// Anonymous, zero-initialised memory that grows (keeping its contents, but moving) and never shrinks
/// before it is dropped. The default region is empty. Regions of 2 MiB and more ask for huge pages: +50 % DRAM bandwidth.
#[derive(Debug)]
pub struct Region {
    ptr: NonNull<u8>,
    len: usize,
}

impl Default for Region {
    fn default() -> Region {
        Region::empty()
    }
}

// SAFETY: a Region owns its mapping exclusively; access goes through &self / &mut self of its owner.
unsafe impl Send for Region {}
// SAFETY: a shared Region only hands out its address; who dereferences it says why that is sound.
unsafe impl Sync for Region {}

impl Region {
    pub const fn empty() -> Region {
        // a dangling pointer, aligned to 64 bytes as every buffer's start must be
        Region {
            ptr: NonNull::without_provenance(std::num::NonZeroUsize::new(ALIGN).expect("not zero")),
            len: 0,
        }
    }

    pub fn with_len(len: usize) -> Result<Region> {
        let mut r = Region::empty();
        r.grow(len)?;
        Ok(r)
    }

    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Puts the region's pages in the place of those at `at`; false where the system refuses. Then, as
    /// after success, the region is gone.
    ///
    /// # Safety
    /// `at` is page-aligned, and `self.len()` bytes from there on belong to a mapping of the caller that may be replaced.
    pub(crate) unsafe fn move_over(mut self, at: *mut u8) -> bool {
        let (from, len) = (self.ptr.as_ptr().cast::<libc::c_void>(), self.len);
        if len == 0 {
            return true;
        }
        // SAFETY: `from` is our whole mapping; the target is the caller's to give.
        let moved = unsafe {
            libc::mremap(from, len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, at.cast::<libc::c_void>())
        };
        if moved == libc::MAP_FAILED {
            return false;
        }
        // the pages belong to the mapping at `at` now
        self.len = 0;
        true
    }

    /// Gives the memory of the whole pages in a range back; it reads as zeros from then on.
    ///
    /// # Safety
    /// Nobody reads or writes the range at this moment.
    pub(crate) unsafe fn release(&self, range: std::ops::Range<usize>) {
        let (begin, end) = (range.start.next_multiple_of(4096), range.end.min(self.len) / 4096 * 4096);
        if begin < end {
            // SAFETY: whole pages of our mapping, which nobody uses; a failure leaves them as they are.
            unsafe {
                libc::madvise(self.ptr.as_ptr().byte_add(begin).cast(), end - begin, libc::MADV_DONTNEED)
            };
        }
    }

    /// Makes the region at least `len` bytes long. True where it moved or grew.
    pub fn grow(&mut self, len: usize) -> Result<bool> {
        if len <= self.len {
            return Ok(false);
        }
        let unit = if len >= HUGE { HUGE } else { 4096 };
        let wanted = len.checked_next_multiple_of(unit).ok_or_else(|| out_of_memory(len))?;
        // SAFETY: anonymous private mapping; the result is checked.
        let new = unsafe {
            if self.len == 0 {
                map(wanted)
            } else {
                libc::mremap(self.ptr.as_ptr().cast(), self.len, wanted, libc::MREMAP_MAYMOVE)
            }
        };
        if new == libc::MAP_FAILED {
            return Err(out_of_memory(len));
        }
        self.ptr = NonNull::new(new.cast()).ok_or_else(|| out_of_memory(len))?;
        self.len = wanted;
        if wanted >= HUGE {
            // SAFETY: the range is our mapping; the call is advice and may fail without harm.
            unsafe { libc::madvise(new, wanted, libc::MADV_HUGEPAGE) };
        }
        Ok(true)
    }
}

/// Maps `len` bytes, 2 MiB aligned where that can pay: maps one huge page more and trims both ends.
///
/// # Safety
/// `len` is a multiple of the page size and not 0.
unsafe fn map(len: usize) -> *mut libc::c_void {
    let slack = if len >= HUGE { HUGE } else { 0 };
    // SAFETY: a fresh anonymous mapping touches nobody's memory; the trimmed ends are ours.
    unsafe {
        let p = libc::mmap(
            ptr::null_mut(),
            len + slack,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        if p == libc::MAP_FAILED || slack == 0 {
            return p;
        }
        let lead = (p as usize).next_multiple_of(HUGE) - p as usize;
        if lead > 0 {
            libc::munmap(p, lead);
        }
        if slack > lead {
            libc::munmap(p.byte_add(lead + len), slack - lead);
        }
        p.byte_add(lead)
    }
}

fn out_of_memory(len: usize) -> RunError {
    RunError::Memory(format!("{len} bytes could not be mapped"))
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: ptr and len are those of our live mapping.
            unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_keeps_contents() {
        let mut r = Region::with_len(100).unwrap();
        // SAFETY: within the region.
        unsafe { *r.as_ptr().add(99) = 7 };
        for len in [5000, 3 << 20, 9 << 20] {
            assert!(r.grow(len).unwrap());
            assert!(r.len() >= len && (r.as_ptr() as usize).is_multiple_of(ALIGN));
            // SAFETY: within the region.
            unsafe {
                assert_eq!(*r.as_ptr().add(99), 7);
                *r.as_ptr().add(len - 1) = 1;
            }
        }
        assert!(!r.grow(10).unwrap());
    }

    #[test]
    fn absurd_sizes_are_errors() {
        assert!(Region::with_len(usize::MAX - 5).is_err());
        assert!(Region::with_len(1 << 60).is_err());
    }
}
