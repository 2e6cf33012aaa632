//! The sched object: who waits for a CPU, who sleeps, and who ran meanwhile. Times are
//! nanoseconds of the run queue's clock.

use crate::{
    hist::Hist,
    limits::{HOLES, RUNS},
    plain,
};

/// Kinds of sleep: indexes into the arrays of [`SchedSlot`].
pub const INTERRUPTIBLE: usize = 0;
/// State D.
pub const UNINTERRUPTIBLE: usize = 1;
/// Stopped, traced, parked, idle kernel threads.
pub const OTHER_STATE: usize = 2;

/// Sleeps of one kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sleeps {
    /// Those that ended.
    pub n: u64,
    /// Time asleep: not on a CPU and not waiting for one.
    pub ns: u64,
}

/// The counters of one target on one CPU, in lines of the cache: what nearly every switch touches is
/// in the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedSlot {
    /// Waits for a CPU that ended.
    pub waits: u64,
    /// Their length in all; a wait that a migration split counts as far as it has been queued.
    pub wait_ns: u64,
    /// The longest; the agent sets it back when it reads.
    pub wait_max_ns: u64,
    /// Bookings begun. Until [`SchedSlot::done`] says the same, a wait may be in some of these numbers
    /// and in others not yet.
    pub begun: u32,
    /// The booking that ended last.
    pub done: u32,
    /// Waits that began when the task lost the CPU although it could have gone on.
    pub preempted: u64,
    /// The part of `wait_ns` whose pairs were subject to sampling, walked or not.
    pub sampled_ns: u64,
    /// By kind of sleep.
    pub sleeps: [Sleeps; 3],
    /// The part of `wait_ns` whose pair found no room; of waits that are all walked.
    pub other_ns: u64,
    /// As `other_ns`, of those short waits that the sample took.
    pub other_sampled_ns: u64,
    /// Waits whose end the tracepoint did not tell: counted when the task left the CPU, from what
    /// the kernel had written down.
    pub unseen: u64,
    /// Their length.
    pub unseen_ns: u64,
    /// Lengths of whole waits.
    pub wait_hist: Hist,
}

/// How long a victim waited while `by` held the CPU. The time of several waiters adds up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    /// The victim's cgroup id; 0 is a free place.
    pub victim: u64,
    /// The aggressor's cgroup id or one of the words in [`crate::holder`].
    pub by: u64,
    /// Time of waits that are all walked.
    pub ns: u64,
    /// Time of those short waits that the sample took; stands for [`SchedSlot::sampled_ns`].
    pub sampled_ns: u64,
}

/// An interval in which tasks of one cgroup ran; it begins where the one before it ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// The cgroup's id or one of the words in [`crate::holder`].
    pub by: u64,
    /// When it ended; 0 is an interval not written yet.
    pub end: u64,
    /// The same on the clock that stands still during interrupts and while a hypervisor runs
    /// others (`rq->clock_task`).
    pub task_end: u64,
}

/// The last intervals.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Index of the newest.
    pub head: u64,
    /// The intervals.
    pub runs: [Run; RUNS],
}

/// Who ran on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Who has run since the newest interval ended; 0 before the first switch.
    pub running: u64,
    /// Its thread id.
    pub tid: u64,
    /// Raised by the agent when the programs have been away: what they had noted before is void.
    pub generation: u64,
    /// Raised by the agent at each reading: what tasks remember of the table of targets is void.
    pub epoch: u64,
    /// State of a random sequence.
    pub random: u64,
    /// Length of the newest interval in `far`.
    pub stretch_ns: u64,
    /// Every interval.
    pub near: Ring,
    /// The same for longer, but for the newest: intervals that follow closely on one another are one, which is booked
    /// to one of those that ran, drawn by chance in proportion to how long each did. Where tasks
    /// run for milliseconds at a time, nothing is drawn.
    pub far: Ring,
}

/// When a run queue was throttled by a quota.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Hole {
    /// From.
    pub from: u64,
    /// Until.
    pub until: u64,
}

/// The throttlings of one group's run queue on one CPU. The kernel tells only their sum.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttled {
    /// Address of the `cfs_rq`; 0 is a free place.
    pub cfs_rq: u64,
    /// The sum when it was last looked at.
    pub seen_ns: u64,
    /// When a task of the group last left the CPU.
    pub last_ran: u64,
    /// When the throttling under way began, as the kernel told when a task left; else 0.
    pub since: u64,
    /// Where the next hole goes.
    pub next: u64,
    /// The throttling under way as the task sees it that comes onto the CPU or moves to another.
    pub under_way: Hole,
    /// The last throttlings.
    pub holes: [Hole; HOLES],
}

/// Where the run queue at address `cfs_rq` has its place among `places`, a power of two.
#[inline]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a hash of what is left")]
pub const fn place_of(cfs_rq: u64, places: u32) -> u32 {
    // Slabs are aligned: the low bits tell nothing apart.
    ((cfs_rq >> 6) as u32).wrapping_mul(0x9E37_79B1) >> (32 - places.trailing_zeros())
}

/// The slot of a task whose cgroup is not watched.
pub const OUTSIDE: u32 = u32::MAX;

/// What is kept of each task. With the word that the kernel puts before it, one line of the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskRec {
    /// When it went to sleep; 0 while it does not.
    pub slept_at: u64,
    /// Where the kernel keeps it, `sched_info.run_delay` as far as it is booked: that grows by itself
    /// only when a queued task leaves a run queue. Elsewhere when it was queued; 0 while it is not.
    pub queue: u64,
    /// The part of the wait under way that other CPUs saw.
    pub migrated_ns: u64,
    /// Address of the `css_set` that the rest was looked up for. A task that is moved has another one;
    /// it would have to be moved twice between two readings without running, and the freed address
    /// given away anew, for this to be believed wrongly.
    pub set: u64,
    /// The cgroup's id.
    pub cgroup: u64,
    /// Its slot, or [`OUTSIDE`].
    pub slot: u32,
    /// [`Runs::epoch`] when it was looked up.
    pub epoch: u32,
    /// The state in which it sleeps; or that it was preempted, or runs.
    pub state: u32,
    /// One more than [`Runs::generation`] when it was last seen leaving a CPU: then the rest holds.
    pub known: u32,
}

/// A task that waits for a CPU at the moment of reading, as the iterator writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Its cgroup's id.
    pub cgroup: u64,
    /// Since when.
    pub queued_at: u64,
    /// The run queue's clock.
    pub now: u64,
    /// The same without interrupts and a hypervisor's others, as in [`Run::task_end`].
    pub task_now: u64,
    /// When its group was throttled; 0 if it is not.
    pub throttled_at: u64,
    /// For how long its group has been throttled so far, the present time not included.
    pub throttled_ns: u64,
    /// Address of its group's run queue; 0 where throttlings are not known.
    pub cfs_rq: u64,
    /// Which run queue.
    pub cpu: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
}

/// Return addresses that are kept of a kernel stack, the innermost first.
pub const STALL_FRAMES: usize = 24;

/// The longest uninterruptible sleep of a cgroup's tasks that a CPU saw end; the agent sets it back
/// when it reads. Words only, so that a program can write them one by one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Stall {
    /// The cgroup's id; 0 is a free place.
    pub cgroup: u64,
    /// Always 0: a cgroup has one place.
    pub key: u64,
    /// How long.
    pub ns: u64,
    /// Thread id in the initial namespace.
    pub tid: u64,
    /// Its name.
    pub comm: [u64; 2],
    /// Where in the kernel it slept; zeros behind the outermost.
    pub stack: [u64; STALL_FRAMES],
}

/// A task that sleeps uninterruptibly, or is stopped, as the iterator writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Asleep {
    /// Its cgroup's id.
    pub cgroup: u64,
    /// For how long it has slept.
    pub ns: u64,
    /// Its state, as the kernel numbers them.
    pub state: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
    /// Its name.
    pub comm: [u8; crate::lifecycle::COMM],
    /// Where in the kernel it sleeps; zeros behind the outermost.
    pub stack: [u64; STALL_FRAMES],
}

crate::place!(Stall: 48 + 8 * STALL_FRAMES, crate::limits::STALLS);
plain!(
    Asleep: 40 + 8 * STALL_FRAMES,
    Sleeps: 16,
    SchedSlot: 6 * 64,
    Pair: 32,
    Run: 24,
    Ring: 8 + 24 * RUNS,
    Runs: 48 + 2 * size_of::<Ring>(),
    Hole: 16,
    Throttled: 56 + 16 * HOLES,
    TaskRec: 56,
    Waiting: 64,
);
