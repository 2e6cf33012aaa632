//! Waits for locks of the kernel by cgroup and kind: the reader of the locks object.

use std::{collections::BTreeMap, fmt};

use lens_common::locks::{
    KINDS, LockSlot, MUTEX, PERCPU_RWSEM, RT, RWLOCK, RWSEM, SEMAPHORE, SPINLOCK,
};
use serde::{Deserialize, Serialize};

use super::{
    KernelReading, Probe, ProbeError, Setup,
    lengths::{Lengths, Waits},
    object::{Losses, Object, Plan, bytes},
    slots::{Slots, counted_as},
    targets::{Targets, cgroup_constants},
};

/// What people call the kinds.
const NAMES: [&str; KINDS] = {
    let mut names = [""; KINDS];
    names[SPINLOCK] = "spinlock";
    names[RWLOCK] = "rwlock";
    names[MUTEX] = "mutex";
    names[RWSEM] = "rwsem";
    names[PERCPU_RWSEM] = "percpu_rwsem";
    names[RT] = "rt_mutex";
    names[SEMAPHORE] = "semaphore";
    names
};

/// Waits of one cgroup since it became a target, by kind; of an interrupt's waits those while one
/// of its tasks ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockCounters {
    kinds: [Waits; KINDS],
}

impl LockCounters {
    /// The kinds with their names.
    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, &Waits)> {
        NAMES.into_iter().zip(&self.kinds)
    }

    /// Waits for locks that their waiter sleeps for.
    pub fn sleeping(&self) -> impl Iterator<Item = &Waits> {
        let kinds = [MUTEX, RWSEM, PERCPU_RWSEM, RT, SEMAPHORE];
        kinds.into_iter().map(|kind| &self.kinds[kind])
    }

    /// Waits for locks that their waiter spins for.
    pub fn spinning(&self) -> impl Iterator<Item = &Waits> {
        [SPINLOCK, RWLOCK].into_iter().map(|kind| &self.kinds[kind])
    }

    fn kind(&mut self, kind: u64) -> Option<&mut Waits> {
        self.kinds.get_mut(usize::try_from(kind).ok()?)
    }
}

impl From<LockSlot> for LockCounters {
    fn from(sum: LockSlot) -> Self {
        let mut counters = Self::default();
        for (kind, waits) in counters.kinds.iter_mut().enumerate() {
            waits.ended = sum.n[kind];
            waits.ns = sum.ns[kind];
        }
        counters
    }
}

/// What the locks object has counted, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocksReading {
    /// One entry a target; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, LockCounters>,
}

/// The probe.
struct Locks {
    object: Object,
    losses: Losses,
    slots: Slots<LockSlot>,
    lengths: Lengths,
    /// Whether the probe runs that counts futexes.
    has_futexes: bool,
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("object", &self.object)
            .finish_non_exhaustive()
    }
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    let types = setup.types;
    let mut plan = Plan::new("locks", bytes!("locks"), types, setup.machine);
    cgroup_constants(&mut plan, types, setup.watched)?;
    plan.share("TARGETS", setup.pins);
    plan.offset("TASK_PID", "task_struct", "pid")?;
    plan.offset("TASK_FLAGS", "task_struct", "flags")?;
    plan.per_cpu("SPINNING", 1);
    Slots::<LockSlot>::plan(&mut plan);
    Lengths::plan(&mut plan);
    let mut object = plan.load()?;
    let lengths = Lengths::of("locks", &mut object)?;
    // A beginning that is noted and whose end is not would stay.
    object.attach("contention_end", types)?;
    object.attach("contention_begin", types)?;
    Ok(Box::new(Locks {
        losses: Losses::of(&object)?,
        slots: Slots::of(&object)?,
        object,
        lengths,
        has_futexes: setup.config.wants("syscalls"),
    }))
}

impl Probe for Locks {
    fn name(&self) -> &'static str {
        "locks"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        let mut cgroups: BTreeMap<u64, LockCounters> = self.slots.counters(targets);
        let fill = self.lengths.add_ended(targets, |id, kind, add| {
            if let Some(waits) = cgroups.get_mut(&id).and_then(|c| c.kind(kind)) {
                add(waits);
            }
        });
        into.tables.insert("locks.lengths".to_owned(), fill);
        for (id, kind, ns) in self.lengths.under_way()? {
            let counters = cgroups.entry(counted_as(&cgroups, id)).or_default();
            if let Some(waits) = counters.kind(kind) {
                waits.add_under_way(ns);
            }
        }
        let quality = &mut into.quality;
        if !self.has_futexes {
            let why = "futexes are counted by the probe `syscalls`, which does not run";
            quality.miss("locks.futexes", why);
        }
        self.losses.tell(quality);
        into.locks = Some(LocksReading { cgroups });
        Ok(())
    }

    fn clear(&self, slot: u32) {
        self.slots.clear(slot);
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        self.lengths.forget();
        Ok(())
    }
}
