//! The files object: what a task waits for at a file system, and what the page cache did not hold. Calls
//! that wait until data is on its device are counted by the syscalls object, which is there anyway.

use crate::{counters, hist::Hist};

/// Calls that wait for one file: an index into [`crate::syscalls::SyscallSlot::syncs`].
pub const OF_FILE: usize = 0;
/// Calls that wait for all that is dirty, of a file system or of all.
pub const OF_ALL: usize = 1;
/// How many kinds there are.
pub const SYNCS: usize = 2;

/// The number of `msync`, which waits only if it is told to.
pub const MSYNC: u32 = 26;
/// The numbers of these calls and their kinds: `fsync`, `fdatasync`, `msync`, `sync_file_range`; `sync`,
/// `syncfs`.
pub const SYNC_CALLS: [(u32, usize); 6] = [
    (74, OF_FILE),
    (75, OF_FILE),
    (MSYNC, OF_FILE),
    (277, OF_FILE),
    (162, OF_ALL),
    (306, OF_ALL),
];

/// Writeback does not keep up, and who dirties pages is made to pause: a kind of
/// [`crate::lengths::Lengths`].
pub const PAUSE: u64 = 0;
/// A commit of a journal waits for an open handle: the same.
pub const HELD: u64 = 1;

/// The counters of one target on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSlot {
    /// Pauses that its tasks were given for dirtying pages.
    pub pauses: u64,
    /// Their length in all.
    pub pause_ns: u64,
    /// Pages put into the page cache to be read.
    pub read_pages: u64,
    /// Pages put there by page faults.
    pub faulted_pages: u64,
    /// Pages put there to be written.
    pub written_pages: u64,
    /// Handles that it closed while a commit waited for them.
    pub held: u64,
    /// For how long it did.
    pub held_ns: u64,
}

/// Errors told apart: indexes into [`FileDevice::errors`].
pub const EIO: usize = 0;
/// No room.
pub const ENOSPC: usize = 1;
/// The quota is used up.
pub const EDQUOT: usize = 2;
/// Everything else.
pub const OTHER: usize = 3;
/// How many there are.
pub const ERRORS: usize = 4;

/// One file system's device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FileDevice {
    /// Times that data which was written back did not get there, by error.
    pub errors: [u64; ERRORS],
    /// Commits of its journal that have ended.
    pub commits: u64,
    /// Their length in all.
    pub commit_ns: u64,
    /// The part of it in which they waited for open handles.
    pub locked_ns: u64,
    /// Since when a commit is under way; 0 if none is.
    pub commit_at: u64,
    /// Since when it waits for open handles; 0 if it does not.
    pub locked_at: u64,
    /// The number of the transaction that it commits.
    pub transaction: u64,
    /// Lengths of commits that have ended.
    pub hist: Hist,
}

counters!(
    FileSlot: 56,
    FileDevice: 48 + 8 * ERRORS + size_of::<Hist>(),
);
