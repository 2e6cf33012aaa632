//! Resident pages of an address space.

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
            0 => read(mm, &MM_RSS_0),
            1 => read(mm, &MM_RSS_1),
            2 => read(mm, &MM_RSS_2),
            _ => read(mm, &MM_RSS_3),
        }
    }
}
