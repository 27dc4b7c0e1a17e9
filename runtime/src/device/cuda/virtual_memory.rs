//! Device memory that grows in place: a range of addresses as long as the device has memory, with pages behind the
//! front of it.

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

/// Memory that, once it is of some size, never moves and is never copied, however it grows.
///
/// Addresses cost nothing, so as many are reserved as the device has bytes: more cannot be had anyway. Pages are
/// taken as they are needed and given back when it goes. Nothing that uses the memory may be under way then: its
/// owner has waited.
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

    /// Reserves the range, where that has not been done.
    fn reserve(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.reserved == 0 {
            let address = &mut self.address;
            // SAFETY: writes the address of a range that is ours from here on.
            unsafe { self.driver.api.mem_address_reserve(address, bytes, self.unit, 0, 0) }?;
            self.reserved = bytes;
        }
        Ok(())
    }

    /// Puts `bytes` more behind what is mapped; nothing has changed where that fails.
    fn extend(&mut self, bytes: usize) -> Result<(), Failure> {
        let api = &self.driver.api;
        let at = self.address + self.mapped as u64;
        let access = cu::CUmemAccessDesc {
            location: location(&self.driver),
            flags: cu::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let mut page = 0;
        // SAFETY: the range is reserved and nothing is mapped there; what was begun is undone where the rest fails.
        unsafe {
            api.mem_create(&mut page, bytes, &properties(&self.driver), 0)?;
            let mut done = api.mem_map(at, bytes, 0, page, 0);
            if done.is_ok() {
                done = api.mem_set_access(at, bytes, &access, 1);
                if done.is_err() {
                    let _ = api.mem_unmap(at, bytes);
                }
            }
            if done.is_err() {
                let _ = api.mem_release(page);
                return done;
            }
        }
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
        self.reserve(all).map_err(|f| driver.memory_error(f, len))?;
        self.extend(wanted - self.mapped).map_err(|f| driver.memory_error(f, len))?;
        if first {
            self.small.hand_over(self.address)?;
        }
        Ok(first)
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
            // SAFETY: mapped by `extend`, and nobody uses it any more.
            unsafe {
                let _ = api.mem_unmap(at, bytes);
                let _ = api.mem_release(page);
            }
            at += bytes as u64;
        }
        // SAFETY: reserved by `reserve`, and nothing is mapped there now.
        let _ = unsafe { api.mem_address_free(self.address, self.reserved) };
    }
}
