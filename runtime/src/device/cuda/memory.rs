//! Memory of a GPU, and memory of the host that it reads directly.

use super::super::{Addr, Memory, nowhere};
use super::Driver;
use crate::error::{DeviceError, Result};
use std::ops::Range;
use std::ptr::without_provenance_mut;
use std::sync::Arc;

/// What is asked for is rounded up to this.
const UNIT: usize = 512;

/// A stretch of device memory. Growing moves it.
pub(super) struct DeviceMemory {
    driver: Arc<Driver>,
    address: u64,
    len: usize,
}

impl DeviceMemory {
    pub(super) fn new(driver: Arc<Driver>) -> DeviceMemory {
        DeviceMemory { driver, address: 0, len: 0 }
    }

    /// Copies what it holds to `address`, where there is room for it, and is empty from then on.
    pub(super) fn hand_over(&mut self, address: u64) -> Result<(), DeviceError> {
        let (driver, old, held) = (&self.driver, self.address, std::mem::take(&mut self.len));
        if held == 0 {
            return Ok(());
        }
        // SAFETY: both hold `held` bytes; all work that uses the old ones is over before and after the copy.
        unsafe {
            driver.api.ctx_synchronize().map_err(|f| driver.error(f))?;
            let stream = std::ptr::null_mut();
            driver.api.memcpy_dtod_async(address, old, held, stream).map_err(|f| driver.error(f))?;
            driver.api.ctx_synchronize().map_err(|f| driver.error(f))?;
            driver.api.mem_free(old).map_err(|f| driver.error(f))
        }
    }
}

impl Memory for DeviceMemory {
    fn base(&self) -> Addr {
        if self.len == 0 { nowhere() } else { without_provenance_mut(self.address as usize) }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn grow(&mut self, len: usize) -> Result<bool> {
        if len <= self.len {
            return Ok(false);
        }
        let driver = self.driver.clone();
        driver.enter()?;
        let too_much = || DeviceError::Memory { needed: len, free: 0, total: driver.info.memory };
        let wanted = len.checked_next_multiple_of(UNIT).ok_or_else(too_much)?;
        let mut address = 0;
        // SAFETY: writes the address, which we own from here on.
        unsafe { driver.api.mem_alloc(&mut address, wanted) }.map_err(|f| driver.memory_error(f, wanted))?;
        let moved = self.hand_over(address);
        (self.address, self.len) = (address, wanted);
        moved.map(|()| true).map_err(Into::into)
    }

    unsafe fn release(&self, _: Range<usize>) {}
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.len > 0 && self.driver.enter().is_ok() {
            // SAFETY: ours; the driver waits for work that uses it.
            let _ = unsafe { self.driver.api.mem_free(self.address) };
        }
    }
}

/// Page-locked memory of the host. Growing loses nothing and moves it.
pub(super) struct PinnedMemory {
    driver: Arc<Driver>,
    base: *mut u8,
    len: usize,
}

// SAFETY: owned memory; access goes through the owner.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    pub(super) fn new(driver: Arc<Driver>) -> PinnedMemory {
        PinnedMemory { driver, base: nowhere(), len: 0 }
    }

    fn free(&mut self) {
        if self.len > 0 && self.driver.enter().is_ok() {
            // SAFETY: ours, from `mem_host_alloc`; copies into it are waited for before it is let go.
            let _ = unsafe { self.driver.api.mem_free_host(self.base.cast()) };
        }
    }
}

impl Memory for PinnedMemory {
    fn base(&self) -> Addr {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn grow(&mut self, len: usize) -> Result<bool> {
        if len <= self.len {
            return Ok(false);
        }
        let driver = self.driver.clone();
        driver.enter()?;
        let too_much = || DeviceError::Memory { needed: len, free: 0, total: 0 };
        let wanted = len.checked_next_multiple_of(4096).ok_or_else(too_much)?;
        let mut base = std::ptr::null_mut();
        // SAFETY: writes the address, which we own from here on.
        unsafe { driver.api.mem_host_alloc(&mut base, wanted, 0) }
            .map_err(|f| driver.memory_error(f, wanted))?;
        // SAFETY: the new memory is at least as long as what the old one held.
        unsafe { base.cast::<u8>().copy_from_nonoverlapping(self.base, self.len) };
        self.free();
        (self.base, self.len) = (base.cast(), wanted);
        Ok(true)
    }

    unsafe fn release(&self, _: Range<usize>) {}
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.free();
    }
}
