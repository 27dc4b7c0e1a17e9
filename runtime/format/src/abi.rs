//! The ABI between generated code and the runtime.

use std::sync::atomic::AtomicI64;

/// The first data-dependent error that a kernel met. All zero: none.
#[repr(C)]
#[derive(Debug, Default)]
pub struct KernelStatus {
    /// 0, or 1 + index of the origin of the failing node.
    pub flag: AtomicI64,
    /// The offending value.
    pub value: AtomicI64,
    /// It should have been in `0..limit`.
    pub limit: AtomicI64,
}

/// Arguments of every kernel function. Every buffer is 64-byte aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelArgs {
    pub bufs: *const *mut u8,
    /// Values of the symbols that the kernel reads.
    pub syms: *const i64,
    /// Scratch memory of the calling thread, 64-byte aligned.
    pub scratch: *mut u8,
    pub status: *mut KernelStatus,
}

/// Runs iterations `begin..end` of the kernel's outermost parallel loop.
pub type KernelFn = unsafe extern "C" fn(args: *const KernelArgs, begin: i64, end: i64);
