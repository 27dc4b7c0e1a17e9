//! Device memory that grows in place: a range of addresses that is longer than needed, with pages behind the front of it.

use super::super::{Addr, Memory};
use super::Driver;
use super::api::Failure;
use super::memory::DeviceMemory;
use crate::error::{DeviceError, Result};
use cudarc::driver::sys as cu;
use std::ops::Range;
use std::ptr::without_provenance_mut;
use std::sync::Arc;

/// A page for less than this part of it would be waste: such memory is allocated in the ordinary way.
const PART: usize = 8;
/// Times the bytes that are wanted, so many addresses are reserved: few of what an address space has, and enough for
/// sizes that vary.
const ROOM: usize = 16;

/// Memory that is not copied when it grows, once it is of some size, and that moves only where it outgrows its range: then
/// the same pages come behind a longer one. Pages are taken as they are needed and given back when it goes. Nothing
/// that uses the memory may be under way then: its owner has waited.
pub(super) struct VirtualMemory {
    driver: Arc<Driver>,
    /// Bytes of the smallest page.
    unit: usize,
    /// What it is as long as it is small.
    small: DeviceMemory,
    /// Of the range; 0 bytes before the first page is mapped.
    address: u64,
    reserved: usize,
    /// Pages in the order of their addresses, and how many bytes each has.
    pages: Vec<(cu::CUmemGenericAllocationHandle, usize)>,
    mapped: usize,
}

/// Memory of the device, as it is allocated.
fn properties(driver: &Driver) -> cu::CUmemAllocationProp {
    cu::CUmemAllocationProp {
        type_: cu::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: cu::CUmemAllocationHandleType_enum(0),
        location: location(driver),
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: cu::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

fn location(driver: &Driver) -> cu::CUmemLocation {
    cu::CUmemLocation { type_: cu::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: driver.device }
}

/// Bytes that pages come in.
pub(super) fn page(driver: &Driver) -> Result<usize, Failure> {
    let mut unit = 0;
    let option = cu::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED;
    // SAFETY: writes one number.
    unsafe { driver.api.mem_get_allocation_granularity(&mut unit, &properties(driver), option) }?;
    Ok(unit.max(1))
}

impl VirtualMemory {
    /// `unit`: what [`page`] says.
    pub(super) fn new(driver: Arc<Driver>, unit: usize) -> VirtualMemory {
        let small = DeviceMemory::new(driver.clone());
        VirtualMemory { driver, unit, small, address: 0, reserved: 0, pages: Vec::new(), mapped: 0 }
    }

    /// Puts the pages, and `more` bytes behind them, behind a range of `room` addresses. Where that fails everything is as
    /// it was; if the driver refuses even to put pages back, later use of them is an illegal address.
    fn widen(&mut self, room: usize, more: usize) -> Result<(), Failure> {
        let api = &self.driver.api;
        let (mut new, old) = (0, self.address);
        // SAFETY: the new range is ours from here on; nobody uses the old one once the device has nothing to do, and it is
        // given back when no page lies behind it any more.
        unsafe {
            api.mem_address_reserve(&mut new, room, self.unit, 0, 0)?;
            let free = |_: &Failure| drop(api.mem_address_free(new, room));
            let page = self.create(new + self.mapped as u64, more).inspect_err(free)?;
            let mut done = if self.mapped > 0 { api.ctx_synchronize() } else { Ok(()) };
            let mut moved = Vec::new();
            let mut offset = 0;
            for &(page, bytes) in &self.pages {
                if done.is_err() {
                    break;
                }
                moved.push((page, bytes, offset));
                done = api.mem_unmap(old + offset, bytes).and_then(|()| self.map(new + offset, page, bytes));
                offset += bytes as u64;
            }
            if let Err(f) = done {
                for (page, bytes, offset) in moved {
                    let _ = api.mem_unmap(new + offset, bytes);
                    let _ = self.map(old + offset, page, bytes);
                }
                let _ = api.mem_unmap(new + self.mapped as u64, more);
                let _ = api.mem_release(page);
                free(&f);
                return Err(f);
            }
            if self.reserved > 0 {
                let _ = api.mem_address_free(old, self.reserved);
            }
            self.pages.push((page, more));
        }
        (self.address, self.reserved, self.mapped) = (new, room, self.mapped + more);
        Ok(())
    }

    /// Makes a page usable at an address.
    ///
    /// # Safety
    /// The range is reserved and nothing is mapped there; the page has so many bytes and is mapped nowhere.
    unsafe fn map(
        &self,
        at: u64,
        page: cu::CUmemGenericAllocationHandle,
        bytes: usize,
    ) -> Result<(), Failure> {
        let api = &self.driver.api;
        let access = cu::CUmemAccessDesc {
            location: location(&self.driver),
            flags: cu::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the caller's contract; what was begun is undone where the rest fails.
        unsafe {
            api.mem_map(at, bytes, 0, page, 0)?;
            api.mem_set_access(at, bytes, &access, 1).inspect_err(|_| drop(api.mem_unmap(at, bytes)))
        }
    }

    /// A new page at an address.
    ///
    /// # Safety
    /// The range is reserved and nothing is mapped there.
    unsafe fn create(&self, at: u64, bytes: usize) -> Result<cu::CUmemGenericAllocationHandle, Failure> {
        let api = &self.driver.api;
        let mut page = 0;
        // SAFETY: writes the handle; the rest is the caller's contract.
        unsafe {
            api.mem_create(&mut page, bytes, &properties(&self.driver), 0)?;
            self.map(at, page, bytes).inspect_err(|_| drop(api.mem_release(page)))?;
        }
        Ok(page)
    }

    /// Puts `bytes` more behind what is mapped; nothing has changed where that fails.
    fn extend(&mut self, bytes: usize) -> Result<(), Failure> {
        // SAFETY: the range is longer than what is mapped by so much.
        let page = unsafe { self.create(self.address + self.mapped as u64, bytes) }?;
        self.pages.push((page, bytes));
        self.mapped += bytes;
        Ok(())
    }
}

impl Memory for VirtualMemory {
    fn base(&self) -> Addr {
        if self.mapped == 0 { self.small.base() } else { without_provenance_mut(self.address as usize) }
    }

    fn len(&self) -> usize {
        if self.mapped == 0 { self.small.len() } else { self.mapped }
    }

    fn grow(&mut self, len: usize) -> Result<bool> {
        if len <= self.len() {
            return Ok(false);
        }
        let first = self.mapped == 0;
        if first && len < self.unit / PART {
            return self.small.grow(len);
        }
        let driver = self.driver.clone();
        driver.enter()?;
        let total = driver.info.memory;
        let all = total.next_multiple_of(self.unit);
        let wanted = len.checked_next_multiple_of(self.unit).filter(|n| *n <= all);
        let wanted = wanted.ok_or(DeviceError::Memory { needed: len, free: 0, total })?;
        let longer = wanted > self.reserved;
        let more = wanted - self.mapped;
        let grown = match longer {
            true => self.widen(wanted.saturating_mul(ROOM).min(all).max(wanted), more),
            false => self.extend(more),
        };
        grown.map_err(|f| driver.memory_error(f, len))?;
        if first {
            self.small.hand_over(self.address)?;
        }
        Ok(longer)
    }

    unsafe fn release(&self, _: Range<usize>) {}
}

impl Drop for VirtualMemory {
    fn drop(&mut self) {
        if self.reserved == 0 || self.driver.enter().is_err() {
            return;
        }
        let api = &self.driver.api;
        let mut at = self.address;
        for &(page, bytes) in &self.pages {
            // SAFETY: mapped by `create` or `widen`, and nobody uses it any more.
            unsafe {
                let _ = api.mem_unmap(at, bytes);
                let _ = api.mem_release(page);
            }
            at += bytes as u64;
        }
        // SAFETY: reserved by `widen`, and nothing is mapped there now.
        let _ = unsafe { api.mem_address_free(self.address, self.reserved) };
    }
}
