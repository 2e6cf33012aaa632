//! Which system calls are made, how long they take, and how they fail.

use lens_common::hist::Hist;

use super::{Look, Skill, View, quantile_us};
use crate::{
    base::metric::{Bad, Metric, Unit, gauge, quantile, rate},
    probes::syscalls::SyscallCounters,
};

/// The skill.
#[derive(Debug)]
pub(super) struct Syscalls;

const METRICS: &[Metric] = &[
    rate(
        "syscalls_per_sec",
        Unit::PerSec,
        Bad::High,
        50_000.0,
        "System calls that returned.",
    ),
    rate(
        "syscall_errors_per_sec",
        Unit::PerSec,
        Bad::Never,
        5000.0,
        "System calls that returned an error.",
    ),
    rate(
        "busiest_syscall_per_sec",
        Unit::PerSec,
        Bad::Never,
        50_000.0,
        "Calls of the number that is called most.",
    ),
    gauge(
        "busiest_syscall_percent",
        Unit::Percent,
        Bad::Never,
        10.0,
        "Its part of all calls.",
    ),
    quantile(
        "syscall_p99_us",
        Unit::Micros,
        Bad::Never,
        1000.0,
        "99th percentile of the time a call takes, of those that were timed; waiting calls are among them.",
    ),
    rate(
        "syscall_time_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        1000.0,
        "Time in system calls, waiting included, reckoned from those that were timed.",
    ),
];

impl Skill for Syscalls {
    fn id(&self) -> &'static str {
        "syscalls"
    }

    fn title(&self) -> &'static str {
        "System calls"
    }

    fn description(&self) -> &'static str {
        "Which system calls are made, how many fail, and how long they take. Counted in the kernel \
         when a call returns: all of them exactly, by cgroup and number, with errors by errno; the \
         time of one in several is measured. A call that waits counts when it returns, and calls \
         that never return (exit, exit_group) are not among them. An errno means something only \
         with its call: ENOENT from open, EAGAIN from a socket and EINPROGRESS from connect are \
         daily bread."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["syscalls"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let now = view.now.kernel.syscalls.as_ref()?;
        let then = view.before.kernel.syscalls.as_ref()?;
        let mut sum = Change::default();
        for (_, now, then) in view.of_scope(&now.cgroups, &then.cgroups)? {
            sum.add(now, then);
        }
        Some(sum.look(view))
    }
}

#[derive(Default)]
struct Change {
    calls: u64,
    errors: u64,
    busiest: u64,
    timed: u64,
    time_ns: f64,
    hist: Hist,
}

impl Change {
    fn add(&mut self, now: &SyscallCounters, then: Option<&SyscallCounters>) {
        let none = SyscallCounters::default();
        let then = then.unwrap_or(&none);
        self.calls += now.calls.saturating_sub(then.calls);
        self.errors += now.errors.saturating_sub(then.errors);
        for (number, now) in &now.by_number {
            let before = then.by_number.get(number).cloned().unwrap_or_default();
            let calls = now.calls.saturating_sub(before.calls);
            let timed = now.times.timed.saturating_sub(before.times.timed);
            let ns = now.times.ns.saturating_sub(before.times.ns);
            self.busiest = self.busiest.max(calls);
            self.timed += timed;
            if timed != 0 {
                self.time_ns += ns as f64 * calls as f64 / timed as f64;
            }
            let buckets = now.times.hist.iter().zip(before.times.hist);
            for (sum, (now, then)) in self.hist.iter_mut().zip(buckets) {
                *sum += now.saturating_sub(then);
            }
        }
    }

    fn look(&self, view: &View<'_>) -> Look {
        let part = (self.calls != 0).then(|| 100.0 * self.busiest as f64 / self.calls as f64);
        let mut look = Look::default();
        look.set("syscalls_per_sec", view.per_sec(self.calls as f64))
            .set("syscall_errors_per_sec", view.per_sec(self.errors as f64))
            .set("busiest_syscall_per_sec", view.per_sec(self.busiest as f64))
            .set("busiest_syscall_percent", part)
            .set("syscall_p99_us", quantile_us(&self.hist, 0.99));
        if self.timed != 0 {
            look.set("syscall_time_ms_per_sec", view.per_sec(self.time_ns / 1e6));
        }
        look
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::scope::Scope,
        probes::syscalls::{CallCounters, CallTimes, SyscallsReading},
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn time_is_reckoned_from_the_calls_that_were_timed() {
        let mut before = sample(Duration::from_secs(10), &[(7, "/shop")]);
        let mut now = sample(Duration::from_secs(12), &[(7, "/shop")]);
        before.kernel.syscalls = Some(SyscallsReading::default());
        let times = CallTimes {
            timed: 100,
            ns: 1_000_000,
            max_ns: 1,
            hist: Hist::default(),
        };
        let read = CallCounters {
            calls: 800,
            errors: 80,
            times,
            ..CallCounters::default()
        };
        let write = CallCounters {
            calls: 200,
            ..CallCounters::default()
        };
        let by_number = [(0, read), (1, write)].into();
        let shop = SyscallCounters {
            calls: 1000,
            errors: 80,
            other: 0,
            by_number,
        };
        now.kernel.syscalls = Some(SyscallsReading {
            cgroups: [(7, shop)].into(),
        });
        let looks = look_everywhere(1, &now, &before, &[&Syscalls]);
        let shop = looks
            .iter()
            .find(|s| s.scope == Scope::cgroup("/shop"))
            .unwrap();
        assert_eq!(shop.value("syscalls_per_sec", None), Some(500.0));
        assert_eq!(shop.value("busiest_syscall_percent", None), Some(80.0));
        assert_eq!(
            shop.value("syscall_time_ms_per_sec", None),
            Some(4.0),
            "800 calls of 10 µs in 2 s"
        );
    }
}
