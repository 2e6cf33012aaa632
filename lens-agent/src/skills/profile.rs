//! In what CPU time goes.

use super::{Look, Skill, View};
use crate::{
    base::metric::{Bad, Metric, Unit, gauge, rate},
    probes::{ProfileCounters, StackSample, profile::PERIOD_NS},
};

/// The skill.
#[derive(Debug)]
pub(super) struct Profile;

const METRICS: &[Metric] = &[
    rate(
        "on_cpu_user_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "CPU time in user code, by samples.",
    ),
    rate(
        "on_cpu_kernel_ms_per_sec",
        Unit::MillisPerSec,
        Bad::Never,
        100.0,
        "CPU time in the kernel, by samples: for the cgroup, or for interrupts while it ran.",
    ),
    gauge(
        "hottest_stack_percent",
        Unit::Percent,
        Bad::Never,
        20.0,
        "Of the samples of the interval, those of one process at the stack where there were most.",
    ),
];

impl Skill for Profile {
    fn id(&self) -> &'static str {
        "profile"
    }

    fn title(&self) -> &'static str {
        "Where CPU time goes"
    }

    fn description(&self) -> &'static str {
        "In what CPU time goes. Each CPU that is not idle is looked at 99 times a second: whose task \
         runs, in user code or in the kernel, and at which stack. A sample stands for 10 ms, so that \
         what takes less than a few percent of a CPU is seen roughly, and over one interval by \
         chance. Stacks are followed by frame pointers; `lens profile` shows them with names, and \
         those of sleeps as well. Not seen: the callers of code without frame pointers, and in whose \
         name an interrupt was raised."
    }

    fn metrics(&self) -> &'static [Metric] {
        METRICS
    }

    fn probes(&self) -> &'static [&'static str] {
        &["profile"]
    }

    fn look(&self, view: &View<'_>) -> Option<Look> {
        let now = view.now.kernel.profile.as_ref()?;
        let before = view.before.kernel.profile.as_ref()?;
        let none = ProfileCounters::default();
        let mut sum = ProfileCounters::default();
        for (_, now, then) in view.of_scope(&now.cgroups, &before.cgroups)? {
            let then = then.unwrap_or(&none);
            sum.user += now.user.saturating_sub(then.user);
            sum.kernel += now.kernel.saturating_sub(then.kernel);
        }
        let ms = |samples: u64| view.per_sec((samples * PERIOD_NS) as f64 / 1e6);
        let id = view.scope.path().map(|path| view.cgroup_id(path));
        let of_scope = |stack: &&StackSample| id.is_none_or(|id| id == Some(stack.cgroup));
        let hottest = now.stacks.iter().filter(of_scope).map(|s| s.samples).max();
        let all = (sum.user + sum.kernel) as f64;
        let mut look = Look::default();
        look.set("on_cpu_user_ms_per_sec", ms(sum.user))
            .set("on_cpu_kernel_ms_per_sec", ms(sum.kernel))
            .set(
                "hottest_stack_percent",
                // Where tables were full there are more samples than those with a stack.
                hottest.map(|n| (100.0 * n as f64 / all).min(100.0)),
            );
        Some(look)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        base::scope::Scope,
        probes::ProfileReading,
        skills::{look_everywhere, view::tests::sample},
    };

    #[test]
    fn samples_become_cpu_time_and_the_hottest_stack_its_share() {
        let targets = [(7, "/shop"), (8, "/batch")];
        let mut before = sample(Duration::from_secs(100), &targets);
        let mut now = sample(Duration::from_secs(102), &targets);
        let counters = |user, kernel| ProfileCounters { user, kernel };
        before.kernel.profile = Some(ProfileReading {
            cgroups: [(7, counters(100, 10)), (8, counters(0, 0))].into(),
            stacks: Vec::new(),
        });
        let stack = |cgroup, samples| StackSample {
            cgroup,
            samples,
            ..StackSample::default()
        };
        now.kernel.profile = Some(ProfileReading {
            cgroups: [(7, counters(298, 109)), (8, counters(0, 0))].into(),
            stacks: vec![stack(7, 150), stack(7, 100)],
        });
        let snapshots = look_everywhere(1, &now, &before, &[&Profile]);
        let value = |scope: &Scope, metric: &str| {
            let of = snapshots.iter().find(|s| s.scope == *scope);
            of.and_then(|s| s.value(metric, None))
        };
        let shop = Scope::cgroup("/shop");
        let user = value(&shop, "on_cpu_user_ms_per_sec").unwrap();
        assert!((user - 1000.0).abs() < 0.1, "{user}");
        let kernel = value(&shop, "on_cpu_kernel_ms_per_sec").unwrap();
        assert!((kernel - 500.0).abs() < 0.1, "{kernel}");
        let share = value(&shop, "hottest_stack_percent").unwrap();
        assert!((share - 100.0 * 150.0 / 297.0).abs() < 0.1, "{share}");
        let batch = Scope::cgroup("/batch");
        assert_eq!(value(&batch, "on_cpu_user_ms_per_sec"), Some(0.0));
        assert_eq!(value(&batch, "hottest_stack_percent"), None, "no stack");
    }
}
