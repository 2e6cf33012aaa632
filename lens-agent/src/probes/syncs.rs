//! Calls that wait until data is on its device, by cgroup and kind: a part of the syscalls object,
//! read for whoever wants to know of files.

use std::collections::BTreeMap;

use lens_common::{
    files::{OF_ALL, OF_FILE, SYNC_CALLS, SYNCS},
    syscalls::SyscallSlot,
};
use serde::{Deserialize, Serialize};

use super::{
    Fill, ProbeError,
    lengths::{Lengths, Waits},
    object::{Object, ObjectError, Plan},
    slots::counted_as,
    targets::Targets,
};

/// Calls of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncCounters {
    kinds: [Waits; SYNCS],
}

impl SyncCounters {
    /// `fsync`, `fdatasync`, `msync` and `sync_file_range`.
    pub fn of_file(&self) -> &Waits {
        &self.kinds[OF_FILE]
    }

    /// `sync` and `syncfs`, which wait for what others have dirtied as well.
    pub fn of_all(&self) -> &Waits {
        &self.kinds[OF_ALL]
    }

    /// The numbers of these calls: by them their errors are found among those of all calls.
    pub fn numbers() -> impl Iterator<Item = u32> {
        SYNC_CALLS.into_iter().map(|(nr, _)| nr)
    }

    fn kind(&mut self, kind: u64) -> Option<&mut Waits> {
        self.kinds.get_mut(usize::try_from(kind).ok()?)
    }
}

impl From<&SyscallSlot> for SyncCounters {
    fn from(slot: &SyscallSlot) -> Self {
        let mut counters = Self::default();
        for (kind, waits) in counters.kinds.iter_mut().enumerate() {
            waits.ended = slot.syncs[kind];
            waits.ns = slot.sync_ns[kind];
        }
        counters
    }
}

/// What is known of these calls, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, SyncCounters>,
}

/// The part.
#[derive(Debug)]
pub(super) struct Syncs {
    lengths: Lengths,
}

impl Syncs {
    /// Says where things are, and gives the object room if they are wanted.
    pub(super) fn plan(plan: &mut Plan<'_>, is_wanted: bool) -> Result<(), ObjectError> {
        plan.offset("REGS_DX", "pt_regs", "dx")?;
        plan.constant("SYNC_COUNTED", u32::from(is_wanted));
        if is_wanted {
            Lengths::plan(plan);
        } else {
            plan.without("UNDER_WAY");
        }
        Ok(())
    }

    /// Finds what was counted.
    pub(super) fn of(object: &mut Object) -> Result<Self, ObjectError> {
        Ok(Self {
            lengths: Lengths::of("syscalls", object)?,
        })
    }

    /// Adds lengths, and the calls under way, to `into`, which has the sums. How full the table was.
    pub(super) fn read(
        &mut self,
        targets: &Targets,
        into: &mut SyncReading,
    ) -> Result<Fill, ProbeError> {
        let cgroups = &mut into.cgroups;
        let fill = self.lengths.add_ended(targets, |id, kind, add| {
            if let Some(waits) = cgroups.get_mut(&id).and_then(|c| c.kind(kind)) {
                add(waits);
            }
        });
        for (id, kind, ns) in self.lengths.under_way()? {
            let id = counted_as(cgroups, id);
            if let Some(waits) = cgroups.entry(id).or_default().kind(kind) {
                waits.add_under_way(ns);
            }
        }
        Ok(fill)
    }

    /// Forgets the calls under way: they may have ended, and nobody saw it.
    pub(super) fn forget(&mut self) {
        self.lengths.forget();
    }
}
