//! The time that the agent reads as well.

use aya_ebpf::helpers::bpf_ktime_get_ns;

/// Nanoseconds of the monotonic clock. The dearest thing in a program that does little: 33 ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
