//! Kernel files: what `/proc`, `/sys` and the cgroup hierarchies say.
//!
//! ```text
//! Root (`/`, or a tree that a test has made)
//!   stat meminfo vmstat pressure loadavg diskstats pid     one file of /proc each
//!   hierarchy -> cgroups, by_id      which cgroups there are, their ids and paths
//!   filesystems                      what is mounted, and how full it is
//!   cgroup                           the files of one cgroup, wherever its controllers are
//!   scan                             all processes once, summed up by cgroup
//! reading                            all of it, once a tick
//! ```
//!
//! Counters are cumulative since boot (or since the cgroup was made) and carry their unit in the
//! name; what a kernel or a hierarchy does not have is `None`, never 0. An error names the file,
//! the line and the field. What vanishes while it is read is no error.

pub mod by_id;
pub mod cgroup;
pub mod diskstats;
pub mod filesystems;
pub mod hierarchy;
pub mod loadavg;
pub mod meminfo;
mod mounts;
pub mod pid;
pub mod pressure;
pub mod reading;
mod root;
pub mod scan;
pub mod stat;
mod text;
pub mod vmstat;

pub use hierarchy::{Cgroup, Hierarchy, Watched};
pub use reading::{CgroupReading, HostReader, HostReading, HostWide};
pub use root::{ReadError, Root};

/// Clock ticks a second in `/proc`. Fixed at 100 in the user-space interface
/// (`USER_HZ` in include/asm-generic/param.h), whatever the kernel's own `HZ`.
const TICKS_PER_SEC: u64 = 100;

/// Clock ticks as milliseconds.
fn ticks_to_ms(ticks: u64) -> u64 {
    ticks.saturating_mul(1000 / TICKS_PER_SEC)
}
