//! What a skill is shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    base::{clock::Moment, quality::Quality, scope::Scope, snapshot::By},
    host::{CgroupReading, HostReading, scan::ProcessSummary},
    probes::{Holder, KernelReading, OomKill, lifecycle::AbnormalExit},
};

/// What the agent itself takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnCost {
    /// CPU time of the agent, as a percentage of one CPU.
    pub agent_cpu_percent: f64,
    /// CPU time of its kernel programs, as a percentage of one CPU.
    pub kernel_cpu_percent: f64,
    /// Runs of its kernel programs a second.
    pub kernel_runs_per_sec: f64,
    /// Memory of its maps in the kernel.
    pub map_bytes: u64,
    /// Probes that do without something, to stay within the CPU budget.
    pub reduced_probes: usize,
    /// Memory of the agent.
    pub rss_bytes: u64,
}

/// All readings of one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When.
    pub at: Moment,
    /// What was counted in the kernel.
    pub kernel: KernelReading,
    /// What the host's files say.
    pub host: HostReading,
    /// Processes that ended by a signal or with a status other than 0 in the last minute.
    pub abnormal: Vec<AbnormalExit>,
    /// Processes that were killed for want of memory in the last minute.
    pub killed: Vec<OomKill>,
    /// What the agent itself took, where one is running.
    pub own: Option<OwnCost>,
}

impl Sample {
    /// The host, and every target.
    pub fn scopes(&self) -> BTreeSet<Scope> {
        let targets = self
            .kernel
            .targets
            .values()
            .map(|path| Scope::Cgroup(path.clone()));
        std::iter::once(Scope::Host).chain(targets).collect()
    }
}

/// Two samples, and the scope to look at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The newer sample.
    pub now: &'a Sample,
    /// The older one.
    pub before: &'a Sample,
    /// The time between them.
    pub elapsed: Duration,
    /// Where to look.
    pub scope: &'a Scope,
}

impl<'a> View<'a> {
    /// Looks at `scope` over the time from `before` to `now`.
    pub fn new(now: &'a Sample, before: &'a Sample, scope: &'a Scope) -> Self {
        Self {
            now,
            before,
            elapsed: now.at.since(&before.at),
            scope,
        }
    }

    /// `amount` over the elapsed time, a second.
    pub fn per_sec(&self, amount: f64) -> f64 {
        amount / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The id of the target at `path`. Where a cgroup was removed and made again within one
    /// interval, the newest: kernel ids only grow.
    pub fn cgroup_id(&self, path: &str) -> Option<u64> {
        let targets = &self.now.kernel.targets;
        targets
            .iter()
            .rev()
            .find(|(_, name)| &***name == path)
            .map(|(id, _)| *id)
    }

    /// What of a map by cgroup id belongs to the scope: id, now, and before if it was there. For the
    /// host all of it, unless only some cgroups are watched; `None` for a target that is not in it.
    pub fn of_scope<T>(
        &self,
        now: &'a BTreeMap<u64, T>,
        before: &'a BTreeMap<u64, T>,
    ) -> Option<impl Iterator<Item = (u64, &'a T, Option<&'a T>)>> {
        let ids = match self.scope {
            Scope::Host if self.now.kernel.partial => return None,
            Scope::Host => 0..=u64::MAX,
            Scope::Cgroup(path) => {
                let id = self.cgroup_id(path).filter(|id| now.contains_key(id))?;
                id..=id
            }
        };
        let row = |(id, now): (&u64, &'a T)| (*id, now, before.get(id));
        Some(now.range(ids).map(row))
    }

    /// The files of the scope's cgroup now and before; `None` when it was another cgroup before.
    pub fn cgroup(&self) -> Option<(&'a CgroupReading, &'a CgroupReading)> {
        let path = self.scope.path()?;
        let now = self.now.host.cgroups.get(path)?;
        let before = self
            .before
            .host
            .cgroups
            .get(path)
            .filter(|b| b.id == now.id)?;
        Some((now, before))
    }

    /// The processes of the scope now and before.
    pub fn processes(&self) -> Option<(&'a ProcessSummary, &'a ProcessSummary)> {
        if *self.scope == Scope::Host {
            let now = self.now.host.host.processes.as_ref()?;
            return Some((now, self.before.host.host.processes.as_ref()?));
        }
        let (now, before) = self.cgroup()?;
        Some((now.processes.as_ref()?, before.processes.as_ref()?))
    }

    /// What a cgroup that is no target is called, or a target.
    pub fn name_of(&self, id: u64) -> Option<Arc<str>> {
        let kernel = &self.now.kernel;
        kernel
            .targets
            .get(&id)
            .or_else(|| kernel.names.get(&id))
            .cloned()
    }

    /// Who `holder` is to the cgroup `victim`; `None` is what found no room in a table.
    pub fn by(&self, holder: Option<Holder>, victim: u64) -> By {
        match holder {
            None => By::Other,
            Some(Holder::Quota) => By::Own,
            Some(Holder::Kernel) => By::Kernel,
            Some(Holder::Idle) => By::Idle,
            Some(Holder::Unattributed) => By::Unattributed,
            Some(Holder::Cgroup(id)) if id == victim => By::Own,
            Some(Holder::Cgroup(id)) => self.name_of(id).map_or(By::Unattributed, By::Cgroup),
        }
    }

    /// What the kernel reading did not see for `probe`: what was lost over the interval only.
    pub(super) fn kernel_quality(&self, probe: &str, into: &mut Quality) {
        let of_probe =
            |name: &str| name.split('.').next() == Some(probe) || name.starts_with("targets");
        for (map, n) in &self.now.kernel.quality.lost {
            let then = self
                .before
                .kernel
                .quality
                .lost
                .get(map)
                .copied()
                .unwrap_or_default();
            if of_probe(map) && *n > then {
                into.lost.insert(map.clone(), n - then);
            }
        }
        for (what, n) in &self.now.kernel.quality.sampled {
            if of_probe(what) {
                into.sampled.insert(what.clone(), *n);
            }
        }
        for missing in &self.now.kernel.quality.missing {
            if of_probe(&missing.probe) {
                into.miss(&missing.probe, &missing.why);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::HostWide;

    /// A sample of nothing.
    pub(crate) fn empty(at: Moment) -> Sample {
        Sample {
            at,
            kernel: KernelReading::default(),
            host: HostReading {
                taken_at: at.wall,
                monotonic_ms: 0,
                host: HostWide::default(),
                cgroups: BTreeMap::new(),
                quality: Quality::default(),
            },
            abnormal: Vec::new(),
            killed: Vec::new(),
            own: None,
        }
    }

    /// A sample `mono` after boot with these targets.
    pub(in crate::skills) fn sample(mono: Duration, targets: &[(u64, &str)]) -> Sample {
        let at = Moment {
            mono,
            wall: jiff::Timestamp::UNIX_EPOCH + mono,
        };
        let mut sample = empty(at);
        sample.kernel.targets = targets
            .iter()
            .map(|(id, path)| (*id, Arc::from(*path)))
            .collect();
        sample
    }
}
