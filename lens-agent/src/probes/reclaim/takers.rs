//! Who takes memory while others reclaim, and who grew before somebody was killed.
//!
//! An estimate, made for each interval between two readings: what a cgroup has waited in it for
//! the host's memory is shared out by the pages that each cgroup has allocated in it. The pages
//! are those that the memory probe counts; what the host allocated beyond them is nobody's.

use std::{collections::BTreeMap, fs};

use super::{
    Holder, KernelReading, ReclaimReading,
    oom::{OomKill, PAGE},
};
use crate::{
    base::quality::Quality,
    host::{Root, vmstat},
    probes::memory::{MemoryCounters, MemoryReading},
};

/// Cgroups that are named in one interval's share.
const NAMED: usize = 16;
/// Cgroups that are named for one kill.
const GREW: usize = 4;

/// What was counted at the reading before.
#[derive(Debug, Default)]
pub(super) struct Takers {
    /// Pages allocated by each cgroup, and by the host.
    allocated: BTreeMap<u64, u64>,
    host_allocated: Option<u64>,
    /// Resident pages of each cgroup.
    resident: BTreeMap<u64, i64>,
    /// What each cgroup had waited, and by whose doing.
    waited: BTreeMap<u64, u64>,
    rows: BTreeMap<u64, BTreeMap<Option<Holder>, u64>>,
    buffer: Vec<u8>,
}

/// The pages taken in one interval, by who took them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    parts: Vec<(Option<Holder>, u64)>,
    all: u64,
}

impl Takers {
    /// Fills in the rows of `reading`, and who grew.
    pub(super) fn share(&mut self, into: &mut KernelReading, reading: &mut ReclaimReading) {
        let host = vmstat::read(&Root::default(), &mut self.buffer).ok();
        let host = host.and_then(|vm| vm.allocated_pages);
        let taken = self.taken(into.memory.as_ref(), host, &mut into.quality);
        self.rows.retain(|id, _| reading.cgroups.contains_key(id));
        for (id, counters) in &mut reading.cgroups {
            let before = self.waited.get(id).copied().unwrap_or_default();
            let row = self.rows.entry(*id).or_default();
            // One that ended while all was being read may be missing, until the next reading.
            counters.direct.ns = counters.direct.ns.max(before);
            for (holder, part) in taken.split(counters.direct.ns - before) {
                *row.entry(holder).or_default() += part;
            }
            counters.row.clone_from(row);
        }
        let waited = reading.cgroups.iter();
        self.waited = waited.map(|(id, c)| (*id, c.direct.ns)).collect();
        self.growth(into.memory.as_ref(), &mut reading.killed);
    }

    fn taken(
        &mut self,
        memory: Option<&MemoryReading>,
        host: Option<u64>,
        quality: &mut Quality,
    ) -> Taken {
        let Some(memory) = memory else {
            let why = "who takes memory is counted by the probe `memory`, which does not run";
            quality.miss("reclaim.pairs", why);
            return Taken::default();
        };
        let now: BTreeMap<u64, u64> = memory
            .cgroups
            .iter()
            .map(|(id, counters)| (*id, counters.alloc_pages))
            .collect();
        let then = std::mem::replace(&mut self.allocated, now);
        let host_then = std::mem::replace(&mut self.host_allocated, host);
        if then.is_empty() {
            return Taken::default();
        }
        let more = |(id, now): (&u64, &u64)| {
            let then = then.get(id).copied().unwrap_or_default();
            (*id, now.saturating_sub(then))
        };
        let parts = self.allocated.iter().map(more).collect();
        let host = host.zip(host_then).map(|(n, t)| n.saturating_sub(t));
        Taken::of(parts, host)
    }

    /// Says of each kill who grew in the interval in which it happened. What a victim had counts as
    /// if it were still there.
    fn growth(&mut self, memory: Option<&MemoryReading>, killed: &mut [OomKill]) {
        let Some(memory) = memory else { return };
        let pages = |(id, counters): (&u64, &MemoryCounters)| {
            let resident = counters.resident?;
            Some((*id, resident.file + resident.anon + resident.shmem))
        };
        let now: BTreeMap<u64, i64> = memory.cgroups.iter().filter_map(pages).collect();
        let then = std::mem::replace(&mut self.resident, now);
        if killed.is_empty() || then.is_empty() {
            return;
        }
        let mut lost: BTreeMap<u64, u64> = BTreeMap::new();
        for kill in killed.iter().filter(|kill| is_gone(kill.tgid)) {
            *lost.entry(kill.cgroup).or_default() += kill.resident_bytes / PAGE;
        }
        let mut grew: Vec<(u64, u64)> = Vec::new();
        for (id, now) in &self.resident {
            let lost = lost.get(id).copied().unwrap_or_default();
            let now = now.saturating_add_unsigned(lost);
            let more = now - then.get(id).copied().unwrap_or_default();
            if let Ok(more @ 1..) = u64::try_from(more) {
                grew.push((*id, more * PAGE));
            }
        }
        grew.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        grew.truncate(GREW);
        for kill in killed {
            kill.grew.clone_from(&grew);
        }
    }
}

/// Whether the process has no memory any more.
fn is_gone(tgid: u32) -> bool {
    let statm = fs::read_to_string(format!("/proc/{tgid}/statm"));
    statm.map_or(true, |pages| pages.starts_with("0 "))
}

impl Taken {
    /// Of what each cgroup took, and the whole host where that is known.
    fn of(mut parts: Vec<(u64, u64)>, host: Option<u64>) -> Self {
        parts.retain(|(_, pages)| *pages != 0);
        parts.sort_by_key(|(_, pages)| std::cmp::Reverse(*pages));
        let known: u64 = parts.iter().map(|(_, pages)| pages).sum();
        let rest = parts.split_off(parts.len().min(NAMED));
        let rest: u64 = rest.iter().map(|(_, pages)| pages).sum();
        let all = known.max(host.unwrap_or_default());
        let mut parts: Vec<_> = parts
            .into_iter()
            .map(|(id, pages)| match id {
                // Those beyond the limit.
                0 => (None, pages),
                id => (Some(Holder::Cgroup(id)), pages),
            })
            .collect();
        parts.push((None, rest));
        parts.push((Some(Holder::Unattributed), all - known));
        parts.retain(|(_, pages)| *pages != 0);
        Self { parts, all }
    }

    /// `ns` shared out; the sum is `ns`.
    fn split(&self, ns: u64) -> Vec<(Option<Holder>, u64)> {
        if ns == 0 {
            return Vec::new();
        }
        let mut left = ns;
        let mut parts = Vec::new();
        for (holder, pages) in &self.parts {
            let part = u128::from(ns) * u128::from(*pages) / u128::from(self.all.max(1));
            let part = u64::try_from(part).unwrap_or(left).min(left);
            parts.push((*holder, part));
            left -= part;
        }
        match parts.first_mut() {
            // What rounding left over.
            Some((_, first)) => *first += left,
            None => parts.push((Some(Holder::Unattributed), left)),
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_shared_by_the_pages_taken_and_sums_to_itself() {
        let taken = Taken::of(vec![(7, 100), (8, 600), (9, 0)], Some(1000));
        assert_eq!(
            taken.split(1000),
            [
                (Some(Holder::Cgroup(8)), 600),
                (Some(Holder::Cgroup(7)), 100),
                (Some(Holder::Unattributed), 300),
            ]
        );
        let odd = Taken::of(vec![(1, 1), (2, 1), (3, 1)], None).split(100);
        assert_eq!(odd.iter().map(|(_, ns)| ns).sum::<u64>(), 100);
        // Nothing is known before the second reading.
        let nobody = Taken::default().split(5);
        assert_eq!(nobody, [(Some(Holder::Unattributed), 5)]);
    }

    #[test]
    fn those_who_took_little_are_taken_together() {
        let many = (1..=40).map(|id| (id, 10)).collect();
        let parts = Taken::of(many, None).split(400);
        assert_eq!(parts.len(), NAMED + 1);
        assert_eq!(parts.last(), Some(&(None, 240)));
    }
}
