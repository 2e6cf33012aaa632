//! Futexes by cgroup and address: the reader of that part of the syscalls object.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
};

use lens_common::{
    futex::{Futex, FutexWaiter, address_of, tgid_of},
    limits::FUTEXES,
};
use serde::{Deserialize, Serialize};

use super::{
    Fill, KernelTypes, ObjectError, ProbeError,
    keyed::{Strangers, free},
    lengths::now_ns,
    mapped::Mapped,
    object::{Object, Plan},
    pins::Pins,
    records::all,
    targets::Targets,
};

/// An address at which tasks of one process wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FutexCounters {
    /// The process.
    pub tgid: u32,
    /// The lower 42 bits of the address.
    pub address: u64,
    /// Waits that have ended.
    pub waits: u64,
    /// Their length in all.
    pub ns: u64,
    /// The part of it in which they waited for a CPU, nearly all of it after they were woken; 0 where
    /// [`FutexReading::has_run_ns`] says no.
    pub run_ns: u64,
    /// Those that ended because their time was over.
    pub timeouts: u64,
    /// Calls of the process that woke somebody there. A thread that ends is woken for by the kernel
    /// itself, and shared memory may be woken at from another process.
    pub wakes: u64,
    /// Tasks that wait there now.
    pub waiters: u64,
    /// How long the one waits that has waited for longest; at least so long if it waited before it
    /// was watched.
    pub oldest_ns: u64,
}

/// Futexes of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFutexes {
    /// Waits that have ended.
    pub waits: u64,
    /// Their length in all.
    pub ns: u64,
    /// The part of it in which they waited for a CPU.
    pub run_ns: u64,
    /// Calls that woke somebody.
    pub wakes: u64,
    /// By process and address, in one word. What found no room in the table is not among them, and
    /// is counted in Quality.
    pub by_key: BTreeMap<u64, FutexCounters>,
}

/// What is known of futexes, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FutexReading {
    /// One entry a target that has waited; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, CgroupFutexes>,
    /// Whether it is known how long was waited for CPUs.
    pub has_run_ns: bool,
}

/// The part.
#[derive(Debug)]
pub(super) struct Futexes {
    table: Mapped<Futex>,
    strangers: Strangers,
    waiting: PathBuf,
    /// Waiters from before they were watched, by thread: since when they are known.
    known: HashMap<u64, u64>,
    has_run_ns: bool,
    /// Of each place what it had counted, and at how many readings since then.
    idle: HashMap<(usize, usize), (u64, u32)>,
}

/// Readings after which a place that counts nothing more is freed: its address or its process may
/// be gone, and others want to be counted.
const IDLE_READINGS: u32 = 24;

impl Futexes {
    /// Says where things are, and gives the object room.
    pub(super) fn plan(plan: &mut Plan<'_>, types: &KernelTypes) -> Result<(), ObjectError> {
        let state = types.any_offset("task_struct", &["__state", "state"]);
        plan.constant(
            "TASK_STATE",
            state.ok_or(ObjectError::NoField {
                structure: "task_struct",
                field: "__state",
            })?,
        );
        let delay = run_delay(types);
        plan.constant("HAS_RUN_DELAY", u32::from(delay.is_some()))
            .constant("TASK_RUN_DELAY", delay.unwrap_or_default());
        plan.offset("REGS_DI", "pt_regs", "di")?
            .offset("REGS_SI", "pt_regs", "si")?
            .offset("TASK_TGID", "task_struct", "tgid")?
            .offset("TASK_MM", "task_struct", "mm")?
            .offset("META_SEQ", "bpf_iter_meta", "seq")?
            .places("FUTEX", FUTEXES);
        Ok(())
    }

    /// Maps what was counted, and finds out how to list who waits.
    pub(super) fn of(
        object: &mut Object,
        types: &KernelTypes,
        pins: &Pins,
    ) -> Result<Self, ObjectError> {
        Ok(Self {
            table: object.mapped_places("FUTEX", FUTEXES)?,
            strangers: Strangers::default(),
            waiting: object.pin_iterator("futex_waiters", "task", types, pins)?,
            has_run_ns: run_delay(types).is_some(),
            known: HashMap::new(),
            idle: HashMap::new(),
        })
    }

    /// Adds what is known of addresses to `into`, which has the sums. How full the table was.
    pub(super) fn read(
        &mut self,
        targets: &Targets,
        into: &mut FutexReading,
    ) -> Result<Fill, ProbeError> {
        into.has_run_ns = self.has_run_ns;
        self.strangers.next_reading();
        let before = std::mem::take(&mut self.idle);
        let (table, idle) = (&self.table, &mut self.idle);
        let fill = self.strangers.sweep(table, targets, |cpu, i, at| {
            let counted = at.waits + at.wakes;
            let known = before.get(&(cpu, i)).filter(|(n, _)| *n == counted);
            let readings = known.map_or(0, |(_, readings)| readings + 1);
            if readings >= IDLE_READINGS {
                free(table, cpu, i);
                return;
            }
            idle.insert((cpu, i), (counted, readings));
            let futex = entry(into, at.cgroup, at.key);
            futex.waits += at.waits;
            futex.ns += at.ns;
            futex.run_ns += at.run_ns;
            futex.timeouts += at.timeouts;
            futex.wakes += at.wakes;
        });
        self.add_waiters(targets, into)?;
        Ok(fill)
    }

    fn add_waiters(
        &mut self,
        targets: &Targets,
        into: &mut FutexReading,
    ) -> Result<(), ProbeError> {
        let records = fs::read(&self.waiting).map_err(|why| ProbeError::Read {
            probe: "syscalls",
            why: format!("futex waiters: {why}"),
        })?;
        let now = now_ns();
        let before = std::mem::take(&mut self.known);
        for waiter in all::<FutexWaiter>(&records) {
            let FutexWaiter {
                cgroup,
                key,
                since,
                tid,
            } = waiter;
            if !targets.live().contains_key(&cgroup) {
                continue;
            }
            let since = if since == 0 {
                let since = before.get(&tid).copied().unwrap_or(now);
                self.known.insert(tid, since);
                since
            } else {
                since
            };
            let futex = entry(into, cgroup, key);
            futex.waiters += 1;
            futex.oldest_ns = futex.oldest_ns.max(now.saturating_sub(since));
        }
        Ok(())
    }
}

/// Where the kernel keeps how long a task has waited for CPUs.
fn run_delay(types: &KernelTypes) -> Option<u32> {
    types.offset("task_struct", "sched_info.run_delay")
}

fn entry(into: &mut FutexReading, cgroup: u64, key: u64) -> &mut FutexCounters {
    let of_cgroup = into.cgroups.entry(cgroup).or_default();
    let futex = of_cgroup.by_key.entry(key).or_default();
    futex.tgid = tgid_of(key);
    futex.address = address_of(key);
    futex
}
