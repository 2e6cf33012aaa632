//! What has begun and not ended.

use crate::base::clock::{Clock as _, SystemClock};

/// Now, on the clock by which programs note when something began.
pub(super) fn now_ns() -> u64 {
    u64::try_from(SystemClock.now().mono.as_nanos()).unwrap_or(u64::MAX)
}
