//! Uninterruptible sleeps that are longer than a disk takes, with where in the kernel they are spent.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use lens_common::{
    limits::STALLS,
    sched::{self, Asleep, STALL_FRAMES, UNINTERRUPTIBLE},
};
use serde::{Deserialize, Serialize};

use super::SchedCounters;
use crate::{
    base::{quality::Quality, text},
    probes::{
        ProbeError, Setup,
        keyed::Strangers,
        mapped::Mapped,
        object::{Object, Plan},
        records::all,
        symbols::KernelSymbols,
        targets::Targets,
    },
};

/// A long uninterruptible sleep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// How long.
    pub ns: u64,
    /// Thread id in the initial namespace.
    pub tid: u32,
    /// Its name.
    pub comm: String,
    /// Where in the kernel, the innermost function first; an address where no symbol is known.
    pub stack: Vec<Arc<str>>,
}

/// `TASK_UNINTERRUPTIBLE`
const STATE_D: u32 = 2;

/// Where they are seen.
#[derive(Debug)]
pub(super) struct Stalls {
    ended: Mapped<sched::Stall>,
    /// Those under way; absent where the kernel refuses the iterator.
    under_way: Result<PathBuf, String>,
    strangers: Strangers,
    symbols: KernelSymbols,
}

/// The longest of each cgroup, with a stack that has no names yet.
#[derive(Debug, Default)]
struct Longest(BTreeMap<u64, (Stall, [u64; STALL_FRAMES])>);

impl Longest {
    fn keep(&mut self, cgroup: u64, stall: Stall, stack: [u64; STALL_FRAMES]) {
        let known = self.0.get(&cgroup).map_or(0, |(known, _)| known.ns);
        if stall.ns > known {
            self.0.insert(cgroup, (stall, stack));
        }
    }
}

impl Stalls {
    /// Gives the object room for them.
    pub(super) fn plan(plan: &mut Plan<'_>) -> Result<(), ProbeError> {
        plan.offset("TASK_STATE", "task_struct", "__state")?;
        plan.offset("TASK_COMM", "task_struct", "comm")?;
        plan.places("STALL", STALLS);
        Ok(())
    }

    pub(super) fn start(object: &mut Object, setup: &Setup<'_>) -> Result<Self, ProbeError> {
        Ok(Self {
            under_way: object
                .pin_iterator("asleep", "task", setup.types, setup.pins)
                .map_err(|why| why.to_string()),
            ended: object.mapped_places("STALL", STALLS)?,
            strangers: Strangers::default(),
            symbols: KernelSymbols::default(),
        })
    }

    /// Adds what has been seen since the last time.
    pub(super) fn read(
        &mut self,
        into: &mut BTreeMap<u64, SchedCounters>,
        targets: &Targets,
        quality: &mut Quality,
    ) {
        let mut longest = Longest::default();
        self.take_ended(targets, &mut longest);
        match self.under_way.as_ref().map(fs::read) {
            Ok(Ok(records)) => add_under_way(&records, into, &mut longest, quality),
            Ok(Err(why)) => quality.miss("sched.stalls", why.to_string()),
            Err(why) => quality.miss("sched.stalls", why),
        }
        for (cgroup, (mut stall, stack)) in longest.0 {
            if let Some(counters) = into.get_mut(&cgroup) {
                stall.stack = self.symbols.names(&stack);
                counters.longest_stall = Some(stall);
            }
        }
    }

    /// Those that have ended; begins anew.
    fn take_ended(&mut self, targets: &Targets, longest: &mut Longest) {
        let ended = &self.ended;
        self.strangers.next_reading();
        self.strangers.sweep(ended, targets, |cpu, i, at| {
            let stall = Stall {
                ns: at.ns,
                tid: u32::try_from(at.tid).unwrap_or_default(),
                comm: text::clean_bytes(at.comm.map(u64::to_ne_bytes).as_flattened()),
                stack: Vec::new(),
            };
            longest.keep(at.cgroup, stall, at.stack);
            let free = sched::Stall {
                cgroup: at.cgroup,
                ..sched::Stall::default()
            };
            ended.set(cpu, i, free);
        });
    }
}

fn add_under_way(
    records: &[u8],
    into: &mut BTreeMap<u64, SchedCounters>,
    longest: &mut Longest,
    quality: &mut Quality,
) {
    for asleep in all::<Asleep>(records) {
        let Some(counters) = into.get_mut(&asleep.cgroup) else {
            continue;
        };
        if asleep.state & STATE_D == 0 {
            counters.stopped += 1;
            continue;
        }
        counters.stalled += 1;
        counters.sleep_ns[UNINTERRUPTIBLE] += asleep.ns;
        quality.censored += 1;
        let stall = Stall {
            ns: asleep.ns,
            tid: asleep.tid,
            comm: text::clean_bytes(&asleep.comm),
            stack: Vec::new(),
        };
        longest.keep(asleep.cgroup, stall, asleep.stack);
    }
}
