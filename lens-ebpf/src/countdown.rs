//! One in so many, by chance.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;

/// How many are left until the next one, on a cache line of its own: each CPU counts at every event.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Countdown {
    /// So many.
    pub left: u64,
    apart: [u64; 7],
}

/// Whether it is this one's turn, of one in `one_in`. By chance with that mean: a fixed step would
/// keep step with a program's loop.
///
/// # Safety
///
/// `left` is this CPU's.
#[inline(always)]
pub unsafe fn is_due(left: *mut u64, one_in: u32) -> bool {
    // SAFETY: by the caller.
    unsafe {
        let now = *left;
        if now > 1 {
            *left = now - 1;
            return false;
        }
        let spread = u64::from(one_in) * 2 - 1;
        *left = 1 + ((u64::from(bpf_get_prandom_u32()) * spread) >> 32);
    }
    true
}
