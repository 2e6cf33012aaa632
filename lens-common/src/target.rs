//! Which cgroups are watched, and where their numbers go.

use crate::plain;

/// The slot of targets beyond the limit.
pub const OTHER_SLOT: u32 = 0;

/// A watched cgroup; the key is its id (the inode number of its directory).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index of its numbers in every array, by CPU.
    pub slot: u32,
    /// Whether cgroups made below it are watched too: 0 or 1.
    pub children: u32,
}

/// How much of a path the kernel hands over.
pub const PATH: usize = 1024;

/// A cgroup was made.
pub const MADE: u32 = 1;
/// A cgroup was removed.
pub const REMOVED: u32 = 2;

/// Something happened to a cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupEvent {
    /// Its id.
    pub id: u64,
    /// [`MADE`] or [`REMOVED`].
    pub what: u32,
    /// Its level in the hierarchy; the root is 0.
    pub level: u32,
    /// NUL-terminated, from the hierarchy's root.
    pub path: [u8; PATH],
}

/// What one CPU remembers of the table of targets, so as not to ask it at each event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Near {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// Its slot, or [`NOT_WATCHED`].
    pub slot: u64,
}

/// The cgroup is not watched.
pub const NOT_WATCHED: u64 = u64::MAX;

plain!(Near: 16, Target: 4 + 4, CgroupEvent: 8 + 4 + 4 + PATH);

impl Target {
    /// As one number, the way a map from u64 to u64 holds it.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.slot as u64 | (self.children as u64) << 32
    }

    /// The inverse of [`Target::to_bits`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            slot: bits as u32,
            children: (bits >> 32) as u32,
        }
    }
}
