//! What found no room, by map: each object counts in an array of its own, one block a CPU.

/// Counters a CPU in each object.
pub const COUNTERS: u32 = 32;

/// A task whose record could not be made: its sleep or the migration of its wait is not seen.
pub const TASKS: u32 = 0;
/// A pair that went to the victim's `other`.
pub const PAIRS: u32 = 1;
/// A throttled run queue that took another's place: a throttling in progress may be booked as a
/// neighbour's.
pub const THROTTLED: u32 = 2;
/// A new cgroup that found no free slot, or no place in the table of targets.
pub const TARGETS: u32 = 3;
/// A record that found no room in a ring buffer.
pub const EVENTS: u32 = 4;
/// A system call that is counted in its cgroup's `other` only.
pub const CALLS: u32 = 5;
/// A measured latency of a system call.
pub const TIMES: u32 = 6;
/// A failed system call whose errno is not known.
pub const ERRNOS: u32 = 7;
/// A new address space whose resident pages are not counted.
pub const SPACES: u32 = 8;
/// A process that forked, forgotten for one that did so since.
pub const FORKERS: u32 = 9;
/// A sampled page fault whose stack could not be kept.
pub const STACKS: u32 = 10;
/// A call of a traced function that is counted with those of other cgroups.
pub const CALLERS: u32 = 11;
/// Something that is counted without its key: the table of places had no room for it.
pub const PLACES: u32 = 12;
/// Something under way whose beginning could not be remembered: its end is not seen.
pub const UNDER_WAY: u32 = 13;

/// One counter.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Counter(pub u64);

crate::plain!(Counter: 8);

/// The counters with the names that people see.
pub const NAMES: &[(u32, &str)] = &[
    (TASKS, "tasks"),
    (PAIRS, "pairs"),
    (THROTTLED, "throttled"),
    (TARGETS, "targets"),
    (EVENTS, "events"),
    (CALLS, "calls"),
    (TIMES, "times"),
    (ERRNOS, "errnos"),
    (SPACES, "spaces"),
    (FORKERS, "forkers"),
    (STACKS, "stacks"),
    (CALLERS, "callers"),
    (PLACES, "places"),
    (UNDER_WAY, "under_way"),
];
