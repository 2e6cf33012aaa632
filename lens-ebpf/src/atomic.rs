//! Atomic steps on memory that several CPUs write.
//!
//! As assembler: the intrinsics of `core` compile to something else when the order is relaxed and
//! the result is used, without a word.

#[cfg(target_arch = "bpf")]
use core::arch::asm;

/// What is done to memory before stays before, and what comes after stays after, for all that the
/// compiler knows. x86 shows stores to other CPUs in their order.
#[inline(always)]
pub fn in_order() {
    #[cfg(target_arch = "bpf")]
    // SAFETY: a register is moved onto itself.
    unsafe {
        asm!("{0} = {0}", in(reg) 0_u64, options(nostack));
    }
}

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

/// Adds `by` to what is at `at`, and returns what it makes.
///
/// # Safety
///
/// `at` points into a map's value.
#[inline(always)]
pub unsafe fn add_up(at: *mut u64, by: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller.
    unsafe {
        let mut was = by;
        asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) was, in(reg) at, options(nostack));
        was.wrapping_add(by)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller.
    unsafe {
        *at = (*at).wrapping_add(by);
        *at
    }
}

/// Leaves the greater of `value` and what is at `at` there.
///
/// # Safety
///
/// `at` points into a map's value.
#[inline(always)]
pub unsafe fn raise(at: *mut u64, value: u64) {
    // Whoever takes out a greater one puts it back; more than a few at a time do not meet.
    const TRIES: u32 = 4;
    // SAFETY: by the caller.
    unsafe {
        if value <= core::ptr::read_volatile(at) {
            return;
        }
        let mut mine = value;
        for _ in 0..TRIES {
            let theirs = exchange(at, mine);
            if theirs <= mine {
                return;
            }
            mine = theirs;
        }
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

/// Puts `new` at `at` if `old` is there; returns what was there.
///
/// # Safety
///
/// `at` points into a map's value.
#[inline(always)]
pub unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: by the caller.
    unsafe {
        let mut was = old;
        asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) at, in(reg) new, inout("r0") was, options(nostack));
        was
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: by the caller.
    unsafe {
        if *at == old {
            core::mem::replace(&mut *at, new)
        } else {
            *at
        }
    }
}
