//! Who waits for a CPU, who sleeps, and who ran meanwhile: the reader of the sched object.

mod stalls;
mod under_way;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use lens_common::{
    hist::{BUCKETS, Hist},
    limits::{PAIRS, RUNS, SHORT_WAIT_SAMPLE, SLOTS, THROTTLED},
    sched::{Pair, Ring, Run, Runs, SchedSlot, Throttled, Waiting, place_of},
};
use serde::{Deserialize, Serialize};

pub use self::stalls::Stall;
use self::{
    stalls::Stalls,
    under_way::{holes_of, walk_back},
};
use super::{
    Fill, Holder, KernelReading, KernelTypes, Probe, ProbeError, Reduction, Setup,
    keyed::store,
    mapped::Mapped,
    object::{Losses, Object, Plan, bytes},
    records::all,
    sample::Sample,
    targets::{Targets, cgroup_constants},
};

/// Waiter time behind one holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Of waits that are all walked back.
    pub exact_ns: u64,
    /// Of the sampled short waits; their sum stands for [`SchedCounters::sampled_ns`].
    pub sampled_ns: u64,
}

/// Counters of one cgroup since it became a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedCounters {
    /// Waits for a CPU that ended.
    pub waits: u64,
    /// Time waited, over all tasks; waits under way count as far as they have come.
    pub wait_ns: u64,
    /// The longest wait that ended since the reading before, or is under way.
    pub wait_max_ns: u64,
    /// The part of `wait_ns` whose holders are sampled.
    pub sampled_ns: u64,
    /// The part of `wait_ns` whose holder found no room in the table; of waits all walked back.
    pub other_ns: u64,
    /// The same of the sampled short waits.
    pub other_sampled_ns: u64,
    /// Waits whose end this kernel's tracepoint did not tell; counted from its books all the same.
    pub unseen: u64,
    /// Their length.
    pub unseen_ns: u64,
    /// Waits of tasks that lost the CPU although they could have gone on.
    pub preempted: u64,
    /// Sleeps that ended: interruptible, uninterruptible, other states.
    pub sleeps: [u64; 3],
    /// Their length.
    pub sleep_ns: [u64; 3],
    /// Lengths of waits that ended, by power of two.
    pub wait_hist: Hist,
    /// Who ran meanwhile. Of a wait under way this is an estimate, and one holder's part may go
    /// back a little when it ends: take differences that stop at 0.
    pub held: BTreeMap<Holder, Held>,
    /// Waits under way.
    pub waiting: u64,
    /// Tasks that sleep uninterruptibly, and have for longer than a disk takes.
    pub stalled: u64,
    /// Tasks that are stopped or traced.
    pub stopped: u64,
    /// The longest uninterruptible sleep that ended since the reading before, or is under way; of
    /// those that were longer than a disk takes.
    pub longest_stall: Option<Stall>,
}

impl SchedCounters {
    /// Who held the CPU for how long (ns) since `then`, the sampled part scaled to what it stands
    /// for, so that the row sums to the wait. `None` is what found no room in the table.
    pub fn row(&self, then: &Self) -> Vec<(Option<Holder>, f64)> {
        let grown = |now: u64, then: u64| now.saturating_sub(then) as f64;
        let named = self.held.iter().map(|(holder, now)| {
            let then = then.held.get(holder).copied().unwrap_or_default();
            let exact = grown(now.exact_ns, then.exact_ns);
            (Some(*holder), exact, grown(now.sampled_ns, then.sampled_ns))
        });
        let other = (
            None,
            grown(self.other_ns, then.other_ns),
            grown(self.other_sampled_ns, then.other_sampled_ns),
        );
        let parts: Vec<_> = named.chain([other]).collect();
        let stands_for = grown(self.sampled_ns, then.sampled_ns);
        let sampled: f64 = parts.iter().map(|(_, _, sampled)| sampled).sum();
        let scale = if sampled == 0.0 {
            0.0
        } else {
            stands_for / sampled
        };
        let mut row: Vec<_> = parts
            .into_iter()
            .map(|(holder, exact, sampled)| (holder, exact + sampled * scale))
            .filter(|(holder, ns)| holder.is_some() || *ns != 0.0)
            .collect();
        if sampled == 0.0 && stands_for > 0.0 {
            row.push((Some(Holder::Unattributed), stands_for));
        }
        row
    }
}

/// What the sched object has counted, by cgroup id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedReading {
    /// One entry a target that has counted anything; id 0 stands for all targets beyond the limit.
    pub cgroups: BTreeMap<u64, SchedCounters>,
    /// The run queue of each CPU, as far as watched tasks are in it.
    pub queues: Vec<RunQueue>,
}

/// Waits on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunQueue {
    /// Time that tasks waited in it, ended waits and those under way: over an interval's length it is
    /// the mean number of tasks that waited.
    pub wait_ns: u64,
    /// Tasks that wait at the moment of reading.
    pub waiting: u64,
}

/// The probe.
#[derive(Debug)]
pub struct Sched {
    object: Object,
    losses: Losses,
    slots: Mapped<SchedSlot>,
    pairs: Mapped<Pair>,
    runs: Mapped<Runs>,
    throttled: Mapped<Throttled>,
    /// Raised at each reading.
    epoch: u64,
    sample: Sample,
    /// Where the waits under way can be read; absent where the kernel does not keep them.
    waiting: Option<PathBuf>,
    splits_quota: bool,
    /// Where uninterruptible sleeps are seen with their stacks.
    stalls: Stalls,
}

/// Loads and attaches it.
pub(super) fn start(setup: &Setup<'_>) -> Result<Box<dyn Probe>, ProbeError> {
    Ok(Box::new(Sched::start(setup)?))
}

/// How far the programs are with booking.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Bookings begun so far.
    begun: u32,
    /// Whether one has not ended.
    under_way: bool,
}

/// What this kernel has for the probe.
struct Abilities {
    /// Books of its own on when tasks were queued and how long they waited.
    has_sched_info: bool,
    /// Memory for records of tasks that may be taken under a run queue's lock.
    may_allocate: bool,
    /// Books on how long a quota held a run queue.
    splits_quota: bool,
}

/// Finds out, and tells the programs.
fn abilities(plan: &mut Plan<'_>, setup: &Setup<'_>) -> Abilities {
    let types = setup.types;
    let optional = [
        ("TASK_CFS_RQ", "task_struct", "se.cfs_rq"),
        ("TASK_LAST_QUEUED", "task_struct", "sched_info.last_queued"),
        ("TASK_RUN_DELAY", "task_struct", "sched_info.run_delay"),
        (
            "TASK_LAST_ARRIVAL",
            "task_struct",
            "sched_info.last_arrival",
        ),
        ("TASK_ARRIVALS", "task_struct", "sched_info.pcount"),
        ("TASK_CPU", "task_struct", "thread_info.cpu"),
        ("CFS_RQ_RQ", "cfs_rq", "rq"),
        ("RQ_CLOCK", "rq", "clock"),
        ("RQ_CLOCK_TASK", "rq", "clock_task"),
    ];
    let has_sched_info = set(plan, types, &optional) && !setup.config.force_fallback;
    plan.constant("HAS_SCHED_INFO", u32::from(has_sched_info));
    // Since 6.4: memory of its own, for where the page allocator must not be asked.
    let set_aside = types.offset("bpf_local_storage_map", "selem_ma");
    let may_allocate = set_aside.is_some() && !setup.config.force_fallback;
    plan.constant("MAY_ALLOCATE", u32::from(may_allocate));
    let throttled = types.any_offset(
        "cfs_rq",
        &["throttled_clock_self_time", "throttled_clock_pelt_time"],
    );
    let splits_quota = has_sched_info && throttled.is_some();
    plan.constant("CFS_RQ_THROTTLED_NS", throttled.unwrap_or_default());
    plan.constant("HAS_THROTTLED", u32::from(splits_quota));
    let since_when = [
        (
            "HAS_THROTTLED_AT",
            &[("CFS_RQ_THROTTLED_AT", "cfs_rq", "throttled_clock_self")][..],
        ),
        (
            "HAS_THROTTLED_PELT",
            &[
                ("CFS_RQ_THROTTLE_COUNT", "cfs_rq", "throttle_count"),
                ("CFS_RQ_THROTTLED_PELT", "cfs_rq", "throttled_clock_pelt"),
                ("RQ_CLOCK_PELT", "rq", "clock_pelt"),
                ("RQ_LOST_IDLE", "rq", "lost_idle_time"),
            ],
        ),
    ];
    for (flag, members) in since_when {
        let all = set(plan, types, members);
        plan.constant(flag, u32::from(splits_quota && all));
    }
    Abilities {
        has_sched_info,
        may_allocate,
        splits_quota,
    }
}

/// Tells the programs where the members are that this kernel has; whether that is all.
fn set(
    plan: &mut Plan<'_>,
    types: &KernelTypes,
    members: &[(&'static str, &'static str, &'static str)],
) -> bool {
    let mut all = true;
    for (name, structure, field) in members {
        let offset = types.offset(structure, field);
        all &= offset.is_some();
        plan.constant(name, offset.unwrap_or_default());
    }
    all
}

impl Sched {
    fn start(setup: &Setup<'_>) -> Result<Self, ProbeError> {
        let types = setup.types;
        let mut plan = Plan::new("sched", bytes!("sched"), types, setup.machine);
        cgroup_constants(&mut plan, types, setup.watched)?;
        plan.share("TARGETS", setup.pins);
        plan.offset("TASK_PID", "task_struct", "pid")?;
        plan.offset("TASK_FLAGS", "task_struct", "flags")?;
        plan.offset("META_SEQ", "bpf_iter_meta", "seq")?;
        let Abilities {
            has_sched_info,
            may_allocate,
            splits_quota,
        } = abilities(&mut plan, setup);
        plan.slots("SLOT").places("PAIR", PAIRS).per_cpu("RUN", 1);
        plan.per_cpu("THROTTLE", THROTTLED);
        Stalls::plan(&mut plan)?;
        Sample::plan(&mut plan);
        let mut object = plan.load()?;
        if !may_allocate {
            // In this order no task is without its record when it is first looked for.
            object.attach("task_newtask", types)?;
            let tasks = object.pin_iterator("tasks", "task", types, setup.pins)?;
            fs::read(tasks).map_err(|why| ProbeError::Read {
                probe: "sched",
                why: format!("tasks: {why}"),
            })?;
        }
        let waiting = if has_sched_info {
            object
                .pin_iterator("waiting", "task", types, setup.pins)
                .ok()
        } else {
            object.attach("sched_wakeup", types)?;
            object.attach("sched_wakeup_new", types)?;
            None
        };
        if has_sched_info {
            object.attach("sched_migrate_task", types)?;
        }
        object.attach("sched_switch", types)?;
        Ok(Self {
            losses: Losses::of(&object)?,
            slots: object.mapped("SLOT", SLOTS)?,
            pairs: object.mapped_places("PAIR", PAIRS)?,
            runs: object.mapped("RUN", 1)?,
            throttled: object.mapped("THROTTLE", THROTTLED)?,
            epoch: 0,
            sample: Sample::of(&object)?,
            stalls: Stalls::start(&mut object, setup)?,
            object,
            waiting,
            splits_quota,
        })
    }

    fn slot(&self, slot: u32) -> SchedCounters {
        let mut sum = SchedCounters::default();
        for cpu in 0..self.slots.cpus() {
            let Some(at) = self.slots.get(cpu, slot as usize) else {
                continue;
            };
            sum.waits += at.waits;
            sum.wait_ns += at.wait_ns;
            sum.sampled_ns += at.sampled_ns;
            sum.other_ns += at.other_ns;
            sum.other_sampled_ns += at.other_sampled_ns;
            sum.unseen += at.unseen;
            sum.unseen_ns += at.unseen_ns;
            sum.preempted += at.preempted;
            for kind in 0..3 {
                sum.sleeps[kind] += at.sleeps[kind].n;
                sum.sleep_ns[kind] += at.sleeps[kind].ns;
            }
            for bucket in 0..BUCKETS {
                sum.wait_hist[bucket] += at.wait_hist[bucket];
            }
            sum.wait_max_ns = sum.wait_max_ns.max(at.wait_max_ns);
        }
        sum
    }

    /// How far the programs are with booking in `slot`.
    fn progress(&self, slot: u32) -> Progress {
        let mut sum = Progress::default();
        for cpu in 0..self.slots.cpus() {
            let Some(at) = self.slots.at(cpu, slot as usize) else {
                continue;
            };
            // What ended first, and then what began: if that is the same, nothing was between.
            // SAFETY: inside the mapping and aligned; the kernel side stores whole words.
            #[expect(unsafe_code, reason = "atomic loads from shared memory")]
            let (done, begun) = unsafe {
                let load = |word| AtomicU32::from_ptr(word).load(Ordering::SeqCst);
                (load(&raw mut (*at).done), load(&raw mut (*at).begun))
            };
            sum.begun = sum.begun.wrapping_add(begun);
            sum.under_way |= done != begun;
        }
        sum
    }

    /// The longest wait since the last reading; begins anew.
    fn take_max(&self, slot: u32) -> u64 {
        let mut longest = 0;
        for cpu in 0..self.slots.cpus() {
            let Some(at) = self.slots.at(cpu, slot as usize) else {
                continue;
            };
            // SAFETY: inside the mapping and aligned; the kernel side stores whole words.
            #[expect(unsafe_code, reason = "an atomic exchange in shared memory")]
            let max = unsafe { AtomicU64::from_ptr(&raw mut (*at).wait_max_ns) };
            longest = longest.max(max.swap(0, Ordering::Relaxed));
        }
        longest
    }

    /// The counters of `slots` by cgroup id, and of waits under way. Those of a cgroup in which a
    /// wait ended meanwhile are read again: it might be counted in neither, or twice. So are those
    /// that a program was about to change: on a virtual machine that may last.
    fn read_once(
        &self,
        slots: &BTreeMap<u64, u32>,
        targets: &Targets,
        into: &mut KernelReading,
    ) -> Result<SchedReading, ProbeError> {
        // In a busy cgroup some wait ends at every moment: after a few tries only those count
        // that were long. What is missed is no longer than what is seen to have ended.
        const EXACT_TRIES: usize = 4;
        const TRIES: usize = 20;
        const SHORT_NS: u64 = 1_000_000;
        let mut done = SchedReading::default();
        let mut left = slots.clone();
        for attempt in 0..TRIES {
            let mut now = BTreeMap::new();
            let mut seen = BTreeMap::new();
            for (id, slot) in &left {
                let progress = self.progress(*slot);
                let counters = self.slot(*slot);
                seen.insert(*id, (progress, counters.wait_ns));
                now.insert(*id, counters);
            }
            let pairs = self.add_pairs(&mut now, targets);
            into.tables.insert("sched.pairs".to_owned(), pairs);
            done.queues = self.queues(slots);
            let waits = self.waits_under_way()?;
            self.add_waiting(&waits, &mut now);
            add_to_queues(&waits, &mut done.queues);
            done.cgroups.append(&mut now);
            left.retain(|id, slot| {
                let (progress, wait_ns) = seen.get(id).copied().unwrap_or_default();
                if progress.under_way {
                    return true;
                }
                let missed = self.slot(*slot).wait_ns.wrapping_sub(wait_ns);
                self.progress(*slot).begun != progress.begun
                    && (attempt < EXACT_TRIES || missed > SHORT_NS)
            });
            if left.is_empty() {
                break;
            }
        }
        into.quality.censored += done.cgroups.values().map(|c| c.waiting).sum::<u64>();
        Ok(done)
    }

    /// The run queues, as far as waits have ended in them.
    fn queues(&self, slots: &BTreeMap<u64, u32>) -> Vec<RunQueue> {
        let of = |cpu| {
            let all = slots.values().chain([&0]);
            let counters = all.filter_map(|slot| self.slots.get(cpu, *slot as usize));
            RunQueue {
                wait_ns: counters.map(|at| at.wait_ns).sum(),
                waiting: 0,
            }
        };
        (0..self.slots.cpus()).map(of).collect()
    }

    /// The waits that have not ended; none where this kernel does not tell.
    fn waits_under_way(&self) -> Result<Vec<Waiting>, ProbeError> {
        let Some(path) = &self.waiting else {
            return Ok(Vec::new());
        };
        let records = fs::read(path).map_err(|why| ProbeError::Read {
            probe: "sched",
            why: format!("waiting: {why}"),
        })?;
        Ok(all(&records).collect())
    }

    /// How full the table was.
    fn add_pairs(&self, into: &mut BTreeMap<u64, SchedCounters>, targets: &Targets) -> Fill {
        let mut fill = Fill {
            used: 0,
            places: self.pairs.block(),
        };
        for cpu in 0..self.pairs.cpus() {
            let mut used = 0;
            for i in 0..self.pairs.block() {
                let Some(pair) = self.pairs.get(cpu, i) else {
                    continue;
                };
                if pair.victim == 0 {
                    continue;
                }
                used += 1;
                let Some(counters) = into.get_mut(&pair.victim) else {
                    if !targets.counts(pair.victim) {
                        // Its cgroup is gone for good: make room.
                        self.free_pair(cpu, i);
                    }
                    continue;
                };
                let held = counters
                    .held
                    .entry(Holder::from_kernel(pair.by))
                    .or_default();
                held.exact_ns += pair.ns;
                held.sampled_ns += pair.sampled_ns;
            }
            fill.used = fill.used.max(used);
        }
        fill
    }

    /// Frees a pair's place. The kernel side takes it for another as soon as it has no victim, so
    /// that goes last.
    fn free_pair(&self, cpu: usize, i: usize) {
        let Some(pair) = self.pairs.get(cpu, i) else {
            return;
        };
        let victim = pair.victim;
        self.pairs.set(
            cpu,
            i,
            Pair {
                victim,
                ..Pair::default()
            },
        );
        if let Some(at) = self.pairs.at(cpu, i) {
            // SAFETY: inside the mapping and aligned; the kernel side stores whole words.
            #[expect(unsafe_code, reason = "an atomic store in shared memory")]
            unsafe { AtomicU64::from_ptr(&raw mut (*at).victim) }.store(0, Ordering::Release);
        }
    }

    /// Adds the waits that have not ended.
    fn add_waiting(&self, waits: &[Waiting], into: &mut BTreeMap<u64, SchedCounters>) {
        let mut runs: HashMap<u32, Option<Runs>> = HashMap::new();
        for waiting in waits {
            let Some(counters) = into.get_mut(&waiting.cgroup) else {
                continue;
            };
            let wait = waiting.now.saturating_sub(waiting.queued_at);
            counters.waiting += 1;
            counters.wait_ns += wait;
            counters.wait_max_ns = counters.wait_max_ns.max(wait);
            let cpu = waiting.cpu as usize;
            let ring = runs
                .entry(waiting.cpu)
                .or_insert_with(|| self.runs.get(cpu, 0));
            let place = place_of(waiting.cfs_rq, THROTTLED) as usize;
            let throttled = self.throttled.get(cpu, place).filter(|t| {
                // Another's place, or one that nobody has taken yet.
                waiting.cfs_rq != 0 && t.cfs_rq == waiting.cfs_rq
            });
            let holes = holes_of(waiting, throttled.as_ref());
            walk_back(waiting, &holes, ring.as_ref(), &mut |holder, ns| {
                counters.held.entry(holder).or_default().exact_ns += ns;
            });
        }
    }
}

/// Adds the waits that have not ended.
fn add_to_queues(waits: &[Waiting], queues: &mut [RunQueue]) {
    for waiting in waits {
        if let Some(queue) = queues.get_mut(waiting.cpu as usize) {
            queue.waiting += 1;
            queue.wait_ns += waiting.now.saturating_sub(waiting.queued_at);
        }
    }
}

impl Probe for Sched {
    fn name(&self) -> &'static str {
        "sched"
    }

    fn read(&mut self, targets: &Targets, into: &mut KernelReading) -> Result<(), ProbeError> {
        // The table of targets may change from here on.
        self.epoch += 1;
        for cpu in 0..self.runs.cpus() {
            if let Some(runs) = self.runs.at(cpu, 0) {
                let epoch = runs.wrapping_byte_add(std::mem::offset_of!(Runs, epoch));
                store(epoch.cast(), self.epoch);
            }
        }
        let slots: BTreeMap<u64, u32> = targets
            .live()
            .iter()
            .filter(|(_, target)| target.slot != 0)
            .map(|(id, target)| (*id, target.slot))
            .collect();
        let SchedReading {
            mut cgroups,
            queues,
        } = self.read_once(&slots, targets, into)?;
        self.stalls.read(&mut cgroups, targets, &mut into.quality);
        let quality = &mut into.quality;
        for (id, slot) in &slots {
            let ended = self.take_max(*slot);
            if let Some(counters) = cgroups.get_mut(id) {
                counters.wait_max_ns = counters.wait_max_ns.max(ended);
            }
        }
        let mut other = self.slot(0);
        if other.waits != 0 {
            other.wait_max_ns = self.take_max(0);
            // Nobody walks these back.
            other.other_ns = other.wait_ns;
            cgroups.insert(0, other);
        }
        if self.waiting.is_none() {
            quality.miss(
                "sched.waiting",
                "waits under way are not seen on this kernel",
            );
        }
        self.losses.tell(quality);
        quality.sampled.insert(
            "sched.short_waits".to_owned(),
            self.sample.one_in(SHORT_WAIT_SAMPLE),
        );
        if !self.splits_quota {
            quality.miss(
                "sched.quota",
                "this kernel does not tell how long a quota held a run queue",
            );
        }
        for holder in cgroups.values().flat_map(|c| c.held.keys()) {
            into.mention(targets, *holder);
        }
        into.sched = Some(SchedReading { cgroups, queues });
        Ok(())
    }

    fn clear(&self, slot: u32) {
        for cpu in 0..self.slots.cpus() {
            self.slots.set(cpu, slot as usize, SchedSlot::default());
        }
    }

    fn objects(&mut self) -> Vec<&mut Object> {
        vec![&mut self.object]
    }

    fn reductions(&self) -> &'static [Reduction] {
        // What is sampled are the walks back over short waits; the waits themselves always count.
        &[
            Reduction::Coarse(64),
            Reduction::Coarse(1024),
            Reduction::Detached,
        ]
    }

    fn reduce(&mut self, to: usize) -> Result<(), ProbeError> {
        self.sample.set(self.reductions(), to);
        Ok(())
    }

    fn forget(&mut self) -> Result<(), ProbeError> {
        for cpu in 0..self.runs.cpus() {
            let Some(mut runs) = self.runs.get(cpu, 0) else {
                continue;
            };
            runs.generation += 1;
            runs.running = 0;
            for ring in [&mut runs.near, &mut runs.far] {
                *ring = Ring {
                    head: 0,
                    runs: [Run::default(); RUNS],
                };
            }
            self.runs.set(cpu, 0, runs);
            for i in 0..self.throttled.block() {
                self.throttled.set(cpu, i, Throttled::default());
            }
        }
        Ok(())
    }
}
