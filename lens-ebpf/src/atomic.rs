//! Atomic steps on memory that several CPUs write.
//!
//! As assembler: the intrinsics of `core` compile to something else when the order is relaxed and
//! the result is used, without a word.

#[cfg(target_arch = "bpf")]
use core::arch::asm;

/// Adds `by` to what is at `at`.
///
/// # Safety
///
/// `at` points into a map's value.
#[inline(always)]
pub unsafe fn add(at: *mut u64, by: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) at, in(reg) by, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller.
    unsafe {
        *at = (*at).wrapping_add(by);
    }
}

/// Puts `value` at `at`, and returns what was there.
///
/// # Safety
///
/// `at` points into a map's value.
#[inline(always)]
pub unsafe fn exchange(at: *mut u64, value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller.
    unsafe {
        let mut was = value;
        asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) was, in(reg) at, options(nostack));
        was
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller.
    unsafe {
        core::mem::replace(&mut *at, value)
    }
}
