//! Functions over the 32 lanes of a warp, compiled twice: for the baseline of the target, and with AVX2 and
//! FMA where the processor is found to have them. Without hardware FMA, `mul_add` is a (slow, exact) call.

use std::sync::OnceLock;

/// The 32-bit (or 16-bit, zero-extended) register of each lane.
pub type L32 = [u32; 32];
/// The 64-bit register of each lane.
pub type L64 = [u64; 32];

pub type F1 = fn(&mut L32, &L32, u32);
pub type F2 = fn(&mut L32, &L32, &L32, u32);
pub type F3 = fn(&mut L32, &L32, &L32, &L32, u32);
pub type D1 = fn(&mut L64, &L64, u32);
pub type D2 = fn(&mut L64, &L64, &L64, u32);
pub type D3 = fn(&mut L64, &L64, &L64, &L64, u32);
/// 32 to 64 bits.
pub type W1 = fn(&mut L64, &L32, u32);
pub type W2 = fn(&mut L64, &L32, &L32, u32);
pub type W3 = fn(&mut L64, &L32, &L32, &L64, u32);
/// 64 to 32 bits.
pub type N1 = fn(&mut L32, &L64, u32);
/// Shifts of 64-bit values by a 32-bit amount.
pub type Sh = fn(&mut L64, &L64, &L32, u32);
/// Comparisons: 1 where true.
pub type C32 = fn(&mut L32, &L32, &L32, u32);
pub type C64 = fn(&mut L32, &L64, &L64, u32);
/// Everything that is not worth a vector: one lane at a time, up to three operands and a constant.
pub type Scalar = fn(u64, u64, u64, u32) -> u64;

/// Whether the AVX2+FMA instantiations run here.
pub fn wide() -> bool {
    static WIDE: OnceLock<bool> = OnceLock::new();
    *WIDE.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    })
}

/// `lanes!(L32 <- a: L32, b: L32; expr)`: the function that computes `expr` in every lane; `expr` may also
/// use the constant `imm` when it is named in front: `lanes!(imm; L32 <- a: L32; expr)`.
macro_rules! lanes {
    ($D:ty; $($v:ident : $T:ty),+; $e:expr) => { $crate::num::lanes::lanes!(_imm; $D; $($v: $T),+; $e) };
    ($imm:ident; $D:ty; $($v:ident : $T:ty),+; $e:expr) => {{
        #[inline(always)]
        #[allow(clippy::too_many_arguments, clippy::redundant_locals)]
        fn body(d: &mut $D, $($v: &$T),+, $imm: u32) {
            for i in 0..32 {
                $(let $v = $v[i];)+
                d[i] = $e;
            }
        }
        fn base(d: &mut $D, $($v: &$T),+, imm: u32) {
            body(d, $($v),+, imm)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn wide_body(d: &mut $D, $($v: &$T),+, imm: u32) {
            body(d, $($v),+, imm)
        }
        #[cfg(target_arch = "x86_64")]
        fn wide(d: &mut $D, $($v: &$T),+, imm: u32) {
            // SAFETY: handed out only where `lanes::wide` has found AVX2 and FMA.
            unsafe { wide_body(d, $($v),+, imm) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        use base as wide;
        if $crate::num::lanes::wide() { wide as fn(&mut $D, $(&$T),+, u32) } else { base }
    }};
}
pub(crate) use lanes;

/// Writes `value` into the lanes of `mask`.
#[inline(always)]
pub fn blend<T: Copy>(d: &mut [T; 32], value: &[T; 32], mask: u32) {
    if mask == u32::MAX {
        *d = *value;
        return;
    }
    for i in 0..32 {
        if mask >> i & 1 == 1 {
            d[i] = value[i];
        }
    }
}

/// The lanes where `v` is not zero, as a mask.
#[inline(always)]
pub fn to_mask(v: &L32) -> u32 {
    let mut m = 0;
    for (i, x) in v.iter().enumerate() {
        m |= u32::from(*x != 0) << i;
    }
    m
}

/// The lane numbers in `mask`, in order.
pub fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let i = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(i)
    })
}
