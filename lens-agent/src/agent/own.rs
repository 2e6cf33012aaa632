//! What the agent itself takes.

use std::time::Duration;

use crate::{base::clock::Moment, skills::OwnCost};

/// CPU time of this process between two looks.
#[derive(Debug, Default)]
pub(super) struct OwnClock {
    last: Option<(Moment, Duration)>,
}

impl OwnClock {
    pub(super) fn cost(&mut self, now: Moment) -> OwnCost {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let used = Duration::new(
            u64::try_from(used.tv_sec).unwrap_or_default(),
            u32::try_from(used.tv_nsec).unwrap_or_default(),
        );
        let cpu = self.last.map_or(0.0, |(at, before)| {
            let elapsed = now.since(&at).as_secs_f64();
            if elapsed > 0.0 {
                100.0 * used.saturating_sub(before).as_secs_f64() / elapsed
            } else {
                0.0
            }
        });
        self.last = Some((now, used));
        OwnCost {
            agent_cpu_percent: cpu,
            rss_bytes: rss_bytes(),
            ..OwnCost::default()
        }
    }
}

/// The second field of `/proc/self/statm`, in pages; 0 if it cannot be read.
fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|p| p.parse().ok())
        .unwrap_or_default();
    pages * rustix::param::page_size() as u64
}
