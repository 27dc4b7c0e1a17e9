//! Results smaller than all normal numbers, as zeros.
//!
//! Processors compute them in microcode: on Intel's a product that has one takes many times as long, and a softmax over
//! scores that lie far apart is full of them. Whether they become zeros is a mode of the thread on x86-64 (bit 15 of MXCSR);
//! elsewhere they stay what they are.

#[cfg(target_arch = "x86_64")]
mod mode {
    use std::arch::asm;

    pub const FLUSH_TO_ZERO: u32 = 1 << 15;

    pub fn get() -> u32 {
        let mut mode = 0u32;
        // SAFETY: writes the four bytes of `mode`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
        mode
    }

    /// # Safety
    /// No Rust code may compute with floats until the mode is what it was.
    pub unsafe fn set(mode: u32) {
        // SAFETY: reads the four bytes of `mode`; the rest is the caller's.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, readonly, preserves_flags)) };
    }
}

/// Calls `code` with such results flushed.
///
/// # Safety
/// `code` computes with floats in generated code alone.
pub unsafe fn flushed(code: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        let before = mode::get();
        // SAFETY: the caller's contract, until the mode is set back below; generated code does not unwind.
        unsafe { mode::set(before | mode::FLUSH_TO_ZERO) };
        code();
        // SAFETY: as it was.
        unsafe { mode::set(before) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    code();
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_on_inside_alone() {
        let before = mode::get();
        let mut inside = 0;
        // SAFETY: nothing computes.
        unsafe { flushed(|| inside = mode::get()) };
        assert_eq!(inside, before | mode::FLUSH_TO_ZERO);
        assert_eq!(mode::get(), before);
    }
}
