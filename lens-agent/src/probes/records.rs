//! Records that programs write: into rings, and as iterators.

use aya::maps::{MapData, RingBuf};
use lens_common::Plain;

/// The record that `bytes` begin with.
pub(super) fn plain<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: as many bytes as a `T` has, and every bit pattern is one.
    #[expect(unsafe_code, reason = "reads what a program wrote")]
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// All of which `bytes` consist.
pub(super) fn all<T: Plain>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).filter_map(plain)
}

/// What `ring` holds, which has room for so many `bytes`, and at most as much as it can hold at once.
pub(super) fn drain<T: Plain>(ring: &mut RingBuf<MapData>, bytes: u32) -> Vec<T> {
    let at_most = bytes as usize / size_of::<T>();
    let mut found = Vec::new();
    while found.len() < at_most
        && let Some(record) = ring.next()
    {
        found.extend(plain::<T>(&record));
    }
    found
}

/// The bytes of `record`, as a map holds it.
pub(super) fn bytes_of<T: Plain, const N: usize>(record: &T) -> [u8; N] {
    const { assert!(size_of::<T>() == N) };
    let mut bytes = [0; N];
    // SAFETY: a `T` is as long as the bytes, and has no gaps.
    #[expect(unsafe_code, reason = "writes what a program reads")]
    unsafe {
        bytes
            .as_mut_ptr()
            .copy_from_nonoverlapping(std::ptr::from_ref(record).cast(), N);
    }
    bytes
}
