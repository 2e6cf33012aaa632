//! Resident pages of an address space.

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};

use crate::{field::read, offsets};

offsets! {
    /// `mm_struct.rss_stat[0].count`, or `mm_struct.rss_stat.count[0]` before 6.2
    MM_RSS_0,
    /// The next one.
    MM_RSS_1,
    /// The next one.
    MM_RSS_2,
    /// The last one.
    MM_RSS_3,
}

/// 1 where the counts are an array of `atomic_long_t`: the verifier of such kernels looks through no
/// name of a type there, and refuses a typed load.
#[unsafe(no_mangle)]
static MM_RSS_OPAQUE: Global<u32> = Global::new(0);

/// Pages of `kind` (an index of [`lens_common::memory`]) in `mm`.
///
/// # Safety
///
/// `mm` is a typed pointer to a `mm_struct`.
#[inline(always)]
pub unsafe fn pages(mm: *const u8, kind: usize) -> i64 {
    // SAFETY: `mm` is typed; such pointers take constant offsets only.
    unsafe {
        match kind {
            0 => at(mm, &MM_RSS_0),
            1 => at(mm, &MM_RSS_1),
            2 => at(mm, &MM_RSS_2),
            _ => at(mm, &MM_RSS_3),
        }
    }
}

#[inline(always)]
unsafe fn at(mm: *const u8, offset: &Global<u32>) -> i64 {
    // SAFETY: `mm` is typed; the helper checks the address.
    unsafe {
        if MM_RSS_OPAQUE.load() == 0 {
            return read(mm, offset);
        }
        bpf_probe_read_kernel(mm.add(offset.load() as usize).cast::<i64>()).unwrap_or_default()
    }
}
