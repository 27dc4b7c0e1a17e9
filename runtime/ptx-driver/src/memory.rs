//! Entry points for memory.

use crate::codes;
use crate::context::put;
use crate::stream::Work;
use crate::world::{Pages, Res, World, within};
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

/// Of pages in the virtual memory calls. Devices have 2 MiB; small ones show what reaches beyond an arena.
const GRANULARITY: usize = 512;
/// `CU_MEM_LOCATION_TYPE_DEVICE`, `CU_MEM_ALLOCATION_TYPE_PINNED`, `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`
const ON_DEVICE: c_uint = 1;
const PINNED: c_uint = 1;
const READ_WRITE: c_uint = 3;

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    within(|w| {
        put(free, (w.settings.memory - w.used) as usize)?;
        put(total, w.settings.memory as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    within(|w| {
        if bytes == 0 {
            return Err(codes::INVALID_VALUE);
        }
        w.take(bytes as u64)?;
        let at = w.memory.alloc(bytes);
        w.allocations.insert(at, bytes as u64);
        put(address, at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    within(|w| {
        w.wait_for_all()?;
        let bytes = w.allocations.remove(&address).ok_or(codes::INVALID_VALUE)?;
        w.memory.free(address);
        w.used -= bytes;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: c_uint) -> u32 {
    within(|w| {
        let mut data = vec![0xcdcd_cdcd_cdcd_cdcd_u64; bytes.div_ceil(8).max(1)].into_boxed_slice();
        let at = data.as_mut_ptr();
        w.pinned.insert(at.addr(), data);
        put(address, at.cast())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: *mut c_void) -> u32 {
    within(|w| {
        w.wait_for_all()?;
        w.pinned.remove(&address.addr()).map(|_| ()).ok_or(codes::INVALID_VALUE)
    })
}

/// # Safety
/// `from` holds `len` bytes; where it is page-locked, until the copy has been waited for.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, len: usize, stream: usize) -> u32 {
    within(|w| {
        if len == 0 {
            return Ok(());
        }
        if w.is_pinned(from.addr(), len) || w.is_capturing(stream) {
            return w.hand(stream, Work::LateUpload { to, from: from.expose_provenance(), len });
        }
        // SAFETY: the caller's contract.
        let bytes = unsafe { std::slice::from_raw_parts(from, len) }.to_vec();
        w.hand(stream, Work::Upload { to, bytes })
    })
}

/// # Safety
/// `to` has room for `len` bytes; where it is page-locked, until the copy has been waited for.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, len: usize, stream: usize) -> u32 {
    within(|w| {
        if len == 0 {
            return Ok(());
        }
        let pinned = w.is_pinned(to.addr(), len);
        w.hand(stream, Work::Download { from, to: to.expose_provenance(), len })?;
        // copies to pageable memory are done when the call returns
        if pinned || w.is_capturing(stream) { Ok(()) } else { w.wait_for(stream) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: usize) -> u32 {
    within(|w| w.hand(stream, Work::Copy { from, to, len }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, len: usize, stream: usize) -> u32 {
    within(|w| w.hand(stream, Work::Fill { to, value, len }))
}

/// `CUmemLocation`
#[repr(C)]
struct Location {
    kind: c_uint,
    id: c_int,
}

/// `CUmemAllocationProp`
#[repr(C)]
#[allow(dead_code, reason = "the driver's layout")]
struct AllocationProp {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
    win32: *mut c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`
#[repr(C)]
struct AccessDesc {
    location: Location,
    flags: c_uint,
}

fn check_prop(prop: *const AllocationProp) -> Res<()> {
    // SAFETY: null, or by the API's contract a valid description.
    let prop = unsafe { prop.as_ref() }.ok_or(codes::INVALID_VALUE)?;
    let good = prop.kind == PINNED && prop.location.kind == ON_DEVICE && prop.location.id == 0;
    if good { Ok(()) } else { Err(codes::INVALID_VALUE) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetAllocationGranularity(
    bytes: *mut usize,
    prop: *const AllocationProp,
    _option: c_uint,
) -> u32 {
    within(|_| {
        check_prop(prop)?;
        put(bytes, GRANULARITY)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAddressReserve(
    address: *mut u64,
    bytes: usize,
    align: usize,
    _at: u64,
    _flags: c_ulonglong,
) -> u32 {
    within(|w| {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(codes::INVALID_VALUE);
        }
        let at = w.memory.reserve(bytes as u64, align.max(GRANULARITY) as u64);
        w.reserved.insert(at, bytes as u64);
        put(address, at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAddressFree(address: u64, bytes: usize) -> u32 {
    within(|w| {
        let inside = |at: u64| (address..address + bytes as u64).contains(&at);
        if w.pages.values().any(|p| p.mapped_at.is_some_and(inside)) {
            return Err(codes::INVALID_VALUE);
        }
        match w.reserved.remove(&address) {
            Some(n) if n == bytes as u64 => Ok(()),
            _ => Err(codes::INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemCreate(
    handle: *mut u64,
    bytes: usize,
    prop: *const AllocationProp,
    _flags: c_ulonglong,
) -> u32 {
    within(|w| {
        check_prop(prop)?;
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(codes::INVALID_VALUE);
        }
        w.take(bytes as u64)?;
        let new = w.handle() as u64;
        let data = Some(vec![0xcd; bytes]);
        w.pages.insert(new, Pages { bytes: bytes as u64, data, mapped_at: None });
        put(handle, new)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemRelease(handle: u64) -> u32 {
    within(|w| {
        // the memory lives on while it is mapped; we always unmap first
        let pages = w.pages.get(&handle).ok_or(codes::INVALID_VALUE)?;
        if pages.mapped_at.is_some() {
            return Err(codes::INVALID_VALUE);
        }
        w.used -= pages.bytes;
        w.pages.remove(&handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, _flags: c_ulonglong) -> u32 {
    within(|w| {
        w.maps += 1;
        if w.settings.unmapped == Some(w.maps) {
            return Err(codes::OUT_OF_MEMORY);
        }
        let end = address + bytes as u64;
        let reserved = w.reserved.range(..=address).next_back().is_some_and(|(at, n)| end <= at + n);
        let overlaps = |p: &Pages| p.mapped_at.is_some_and(|at| at < end && address < at + p.bytes);
        if !reserved || offset != 0 || w.pages.values().any(overlaps) {
            return Err(codes::INVALID_VALUE);
        }
        let pages = w.pages.get_mut(&handle).ok_or(codes::INVALID_VALUE)?;
        if pages.bytes != bytes as u64 || pages.mapped_at.is_some() {
            return Err(codes::INVALID_VALUE);
        }
        pages.mapped_at = Some(address);
        Ok(())
    })
}

/// What is mapped can be used from here on.
#[unsafe(no_mangle)]
extern "C" fn cuMemSetAccess(address: u64, bytes: usize, desc: *const AccessDesc, count: usize) -> u32 {
    within(|w| {
        // SAFETY: null, or by the API's contract a valid description.
        let desc = unsafe { desc.as_ref() }.ok_or(codes::INVALID_VALUE)?;
        let good = desc.location.kind == ON_DEVICE && desc.location.id == 0 && desc.flags == READ_WRITE;
        if count != 1 || !good {
            return Err(codes::INVALID_VALUE);
        }
        let World { pages, memory, .. } = w;
        for p in pages.values_mut() {
            if let Some(at) = p.mapped_at.filter(|at| (address..address + bytes as u64).contains(at))
                && let Some(data) = p.data.take()
            {
                memory.insert(at, data, false);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemUnmap(address: u64, bytes: usize) -> u32 {
    // waits for nothing: what is under way will miss the memory
    within(|w| {
        let World { pages, memory, .. } = w;
        for p in pages.values_mut() {
            if let Some(at) = p.mapped_at.filter(|at| (address..address + bytes as u64).contains(at)) {
                p.mapped_at = None;
                if p.data.is_none() {
                    p.data = memory.free(at);
                }
            }
        }
        Ok(())
    })
}
