//! Who held what somebody waited for.

use lens_common::holder::{BY_IDLE, BY_KERNEL, BY_QUOTA, BY_UNATTRIBUTED};
use serde::{Deserialize, Serialize};

/// Who held a CPU, a disk, or memory while somebody waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Holder {
    /// Tasks of this cgroup.
    Cgroup(u64),
    /// Kernel threads, interrupts, a hypervisor.
    Kernel,
    /// Nobody; the waiter's own quota kept it off.
    Quota,
    /// Nobody: it was idle.
    Idle,
    /// Not known.
    Unattributed,
}

impl Holder {
    pub(super) fn from_kernel(by: u64) -> Self {
        match by {
            BY_IDLE => Self::Idle,
            BY_KERNEL => Self::Kernel,
            BY_QUOTA => Self::Quota,
            BY_UNATTRIBUTED => Self::Unattributed,
            id => Self::Cgroup(id),
        }
    }
}
