//! How much the kernel side keeps. Every map is bounded; what finds no room is counted.

/// Targets that have numbers of their own, when nothing else is configured.
pub const MAX_TARGETS: u32 = 512;
/// Slots a CPU: slot 0 takes the targets beyond the limit together.
pub const SLOTS: u32 = MAX_TARGETS + 1;
/// Cgroups that the table of targets can name, those that share slot 0 included.
pub const TARGET_NAMES: u32 = 8192;
/// Cgroups a CPU whose slot an object remembers; a power of two.
pub const NEAR: u32 = 64;
/// Victim-aggressor pairs a CPU; a power of two.
pub const PAIRS: u32 = 4096;
/// Places tried for a pair before its time goes to the victim's `other`.
pub const PAIR_PROBES: u32 = 4;
/// Run intervals remembered a CPU, and as many again that are longer; a power of two.
pub const RUNS: usize = 512;
/// The longer intervals (ns): while tasks run for less than this at a time, one stands for several.
pub const STRETCH_NS: u64 = 2_000_000;
/// Run queues remembered a CPU that were throttled by their quota; a power of two.
pub const THROTTLED: u32 = 256;
/// Throttlings remembered of one run queue.
pub const HOLES: usize = 4;
/// Waits at least this long (ns) always find out who ran meanwhile: there are few of them.
pub const LONG_WAIT_NS: u64 = 1_000_000;
/// Of shorter waits behind several others, one in this many does, if the agent says nothing else; a
/// power of two.
pub const SHORT_WAIT_SAMPLE: u32 = 8;

/// Uninterruptible sleeps of at least so long (ns) are looked at one by one, with their stacks: longer
/// than a disk takes.
pub const STALL_NS: u64 = 10_000_000;
/// Cgroups a CPU of which the longest one is kept; a power of two.
pub const STALLS: u32 = 64;

/// (cgroup, system call) places a CPU; a power of two.
pub const CALLS: u32 = 4096;
/// (cgroup, system call) places a CPU for latencies; a power of two.
pub const TIMES: u32 = 2048;
/// (cgroup, system call, errno) places a CPU; a power of two.
pub const ERRNOS: u32 = 2048;
/// Places tried in each of these tables; a power of two.
pub const CALL_PROBES: u32 = 8;
/// Groups of tasks by thread id, to tell whether a call of one is being timed; a power of two.
pub const TIMED_TASKS: u32 = 4096;

/// Address spaces whose resident pages are known.
pub const SPACES: u32 = 16_384;
/// Distinct stacks in each object that takes them.
pub const STACKS: u32 = 2048;
/// Places (of a process, by its stacks) in each of them, between two readings.
pub const STACK_PLACES: u32 = 4096;

/// Threads whose sleeps are followed.
pub const SLEEPERS: u32 = 16_384;

/// Tasks a CPU that are known for having forked; a power of two.
pub const FORKERS: u32 = 512;
/// Places tried for one of them; a power of two.
pub const FORKER_PROBES: u32 = 8;
/// Multi-threaded processes that ended a moment ago.
pub const ENDED: u32 = 1024;
/// Bytes for records of abnormal exits that nobody has read yet.
pub const EXIT_BYTES: u32 = 64 * 1024;

/// (cgroup, device) places a CPU; a power of two.
pub const BLOCK_PLACES: u32 = 256;
/// (victim, whose request was served) places a CPU; a power of two.
pub const BLOCK_PAIRS: u32 = 1024;
/// (cgroup, device) places a CPU for pages that were dirtied; a power of two.
pub const DIRTIED_PLACES: u32 = 256;
/// Block devices.
pub const DEVICES: u32 = 64;
/// Requests to them that have not ended.
pub const FLIGHTS: u32 = 4096;
/// Requests remembered of each device that it has served; a power of two.
pub const SERVED: usize = 256;
/// (cgroup, kind of wait) places a CPU for lengths, in each object that has them; a power of two.
pub const LENGTHS: u32 = 128;
/// Tasks that are in reclaim or compaction at one moment.
pub const STALLED: u32 = 2048;
/// Tasks whose last reclaim is remembered: who wants memory in vain has just reclaimed.
pub const RECLAIMERS: u32 = 1024;
/// Victims of the OOM killer that were sent their signal and are not yet marked.
pub const DOOMED: u32 = 256;
/// Bytes for records of processes killed for want of memory that nobody has read yet.
pub const OOM_BYTES: u32 = 128 * 1024;

/// Devices of file systems.
pub const FILE_DEVICES: u32 = 64;
/// Tasks that wait at one moment until data is on its device.
pub const SYNCING: u32 = 2048;

/// Tasks that sleep for a lock of the kernel at one moment.
pub const LOCK_SLEEPERS: u32 = 2048;
/// (cgroup, address) places a CPU for futexes; a power of two.
pub const FUTEXES: u32 = 512;

/// (cgroup, reason) places a CPU for dropped packets; a power of two.
pub const DROPS: u32 = 512;
/// Sockets that one reading takes note of.
pub const SOCKETS: u32 = 65_536;
