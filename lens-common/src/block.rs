//! The block object: requests to block devices, how long they took, and whose were served meanwhile.

use crate::{
    counters,
    hist::Hist,
    limits::{BLOCK_PAIRS, BLOCK_PLACES, DIRTIED_PLACES, SERVED},
    place, plain,
};

/// Kinds of requests: indexes into [`BlockIo::ios`].
pub const READ: usize = 0;
/// Writes.
pub const WRITE: usize = 1;
/// Flushes of a device's cache.
pub const FLUSH: usize = 2;
/// Discards and what else there is.
pub const OTHER: usize = 3;
/// How many there are.
pub const KINDS: usize = 4;

/// The number of a device as the tables know it.
#[inline]
#[must_use]
pub const fn device(major: u32, minor: u32) -> u64 {
    (major as u64) << 32 | minor as u64
}

/// Written back from the page cache by the kernel, whoever has dirtied it: stands for a holder, with
/// the device's number below.
pub const BY_WRITEBACK: u64 = 0xFFFE << 48;
/// The bits of [`BY_WRITEBACK`].
pub const BY_WRITEBACK_MASK: u64 = 0xFFFF << 48;

/// `device`'s number as one of [`BY_WRITEBACK`]: majors have 12 bits, minors 20.
#[inline]
#[must_use]
pub const fn writeback(device: u64) -> u64 {
    BY_WRITEBACK | (device >> 32 & 0xFFF) << 20 | device & 0xF_FFFF
}

/// The inverse of [`writeback`], if `by` is one.
#[must_use]
pub const fn device_of_writeback(by: u64) -> Option<u64> {
    if by & BY_WRITEBACK_MASK == BY_WRITEBACK {
        Some((by >> 20 & 0xFFF) << 32 | by & 0xF_FFFF)
    } else {
        None
    }
}

/// Requests of one cgroup to one device that ended, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockIo {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The device.
    pub key: u64,
    /// Requests by kind.
    pub ios: [u64; KINDS],
    /// Bytes by kind.
    pub bytes: [u64; KINDS],
    /// Requests that failed.
    pub errors: u64,
    /// Time from when they were made to when they ended, over all of them.
    pub wait_ns: u64,
    /// The part of it after they were handed to the device.
    pub device_ns: u64,
    /// Their lengths.
    pub hist: Hist,
}

/// How long requests of a cgroup waited while those of another were served.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockPair {
    /// The victim's id; 0 is a free place.
    pub cgroup: u64,
    /// Whose were served: a cgroup's id, a word of [`crate::holder`], or [`BY_WRITEBACK`].
    pub key: u64,
    /// For how long.
    pub ns: u64,
}

/// Pages of one device that a cgroup has dirtied.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Dirtied {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// The device.
    pub key: u64,
    /// How many.
    pub pages: u64,
}

/// What found no place in a table, by target.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockSlot {
    /// Requests that ended and are in no place of [`BlockIo`].
    pub ios: u64,
    /// Their time.
    pub wait_ns: u64,
    /// Time of all requests that is in no place of [`BlockPair`].
    pub other_ns: u64,
}

/// A request that has not ended; the key is its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Flight {
    /// Whose it is: as in [`BlockPair::key`].
    pub by: u64,
    /// To which device.
    pub device: u64,
    /// When it was made.
    pub made_at: u64,
    /// When it was handed to the device; 0 before.
    pub issued_at: u64,
}

/// A request that a device has served; the one before it ended where the work on this one began.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Service {
    /// Whose it was.
    pub by: u64,
    /// When it ended; 0 is not written yet.
    pub end: u64,
}

/// What one device has served.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// How many requests.
    pub served: u64,
    /// Requests of writeback, their bytes and their time.
    pub writeback_ios: u64,
    /// Bytes of these.
    pub writeback_bytes: u64,
    /// Time of these.
    pub writeback_ns: u64,
    /// Requests that failed, of anybody.
    pub errors: u64,
    /// The last ones, each at its number modulo the length.
    pub last: [Service; SERVED],
}

place!(
    BlockIo: 40 + 16 * KINDS + size_of::<Hist>(), BLOCK_PLACES;
    BlockPair: 24, BLOCK_PAIRS;
    Dirtied: 24, DIRTIED_PLACES;
);
counters!(BlockSlot: 24);
plain!(Flight: 32, Service: 16, Device: 40 + 16 * SERVED);
