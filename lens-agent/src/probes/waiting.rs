//! Waiting for what somebody has asked for, bounded in time.

use std::{io, os::fd::BorrowedFd, time::Duration};

use rustix::event::{PollFd, PollFlags, poll};

use crate::base::clock::{Clock as _, SystemClock};

/// The time by which those measure that wait.
pub(super) fn now() -> Duration {
    SystemClock.now().mono
}

/// Sleeps until `until`, until `stop` is readable or closed, or any of `others` is; whether it is
/// `stop`.
pub(super) fn sleep(
    stop: BorrowedFd<'_>,
    others: &[BorrowedFd<'_>],
    until: Duration,
) -> io::Result<bool> {
    let left = until.saturating_sub(now());
    let left = rustix::time::Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    let fds = std::iter::once(&stop).chain(others);
    let mut fds: Vec<_> = fds
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    match poll(&mut fds, Some(&left)) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(why) => Err(why.into()),
    }
}
