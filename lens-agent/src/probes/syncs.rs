//! Calls that wait until data is on its device, by cgroup and call: a part of the syscalls object,
//! read for whoever wants to know of files.

use std::collections::BTreeMap;

use lens_common::{
    files::{FDATASYNC, FSYNC, MSYNC, SYNC, SYNC_FILE_RANGE, SYNC_NUMBERS, SYNCFS, SYNCS},
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

/// What people call the calls.
const NAMES: [&str; SYNCS] = {
    let mut names = [""; SYNCS];
    names[FSYNC] = "fsync";
    names[FDATASYNC] = "fdatasync";
    names[MSYNC] = "msync";
    names[SYNC] = "sync";
    names[SYNCFS] = "syncfs";
    names[SYNC_FILE_RANGE] = "sync_file_range";
    names
};

/// Calls of one cgroup since it became a target, by call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncCounters {
    calls: [Waits; SYNCS],
}

impl SyncCounters {
    /// The calls with their names.
    pub fn by_call(&self) -> impl Iterator<Item = (&'static str, &Waits)> {
        NAMES.into_iter().zip(&self.calls)
    }

    /// The numbers of these calls: by them their errors are found among those of all calls.
    pub fn numbers() -> [u32; SYNCS] {
        SYNC_NUMBERS
    }

    fn call(&mut self, kind: u64) -> Option<&mut Waits> {
        self.calls.get_mut(usize::try_from(kind).ok()?)
    }
}

impl From<&SyscallSlot> for SyncCounters {
    fn from(slot: &SyscallSlot) -> Self {
        let mut counters = Self::default();
        for (kind, waits) in counters.calls.iter_mut().enumerate() {
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
            if let Some(waits) = cgroups.get_mut(&id).and_then(|c| c.call(kind)) {
                add(waits);
            }
        });
        for (id, kind, ns) in self.lengths.under_way()? {
            let id = counted_as(cgroups, id);
            if let Some(waits) = cgroups.entry(id).or_default().call(kind) {
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
