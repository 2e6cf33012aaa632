//! The lifecycle object: tasks that begin, become another program, and end.

use crate::{counters, of_cgroup, plain};

/// Length of a task's name in the kernel, the NUL included.
pub const COMM: usize = 16;

/// SIGSEGV: an index into [`LifecycleSlot::killed`].
pub const BY_SEGV: usize = 0;
/// SIGABRT.
pub const BY_ABRT: usize = 1;
/// SIGBUS, SIGILL, SIGFPE.
pub const BY_FAULT: usize = 2;
/// SIGKILL: an operator, a supervisor, the OOM killer.
pub const BY_KILL: usize = 3;
/// Any other signal.
pub const BY_OTHER: usize = 4;
/// How many there are.
pub const KILLERS: usize = 5;

/// The counters of one target on one CPU. Each field is written by one program only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LifecycleSlot {
    /// Processes that its tasks made.
    pub forks: u64,
    /// Threads that its tasks made.
    pub threads: u64,
    /// Programs started.
    pub execs: u64,
    /// Processes that ended.
    pub exits: u64,
    /// Threads that ended while their process went on.
    pub thread_exits: u64,
    /// Processes that ended by themselves with a status other than 0.
    pub failed: u64,
    /// Processes that a signal ended, by signal.
    pub killed: [u64; KILLERS],
    /// Signals that its tasks sent.
    pub signals_sent: u64,
    /// Signals that were sent to its tasks, by anybody.
    pub signals: u64,
}

/// How much one process has forked; kept on each CPU for those that did so last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Forker {
    /// Its cgroup; 0 is a free place.
    pub cgroup: u64,
    /// When it last forked.
    pub last_ns: u64,
    /// Processes it made.
    pub processes: u64,
    /// Threads it made.
    pub threads: u64,
    /// The process.
    pub tgid: u32,
    /// Keeps `comm` aligned.
    pub reserved: u32,
    /// Its name when it last forked.
    pub comm: [u8; COMM],
}

/// A process ended by a signal, or with a status other than 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitEvent {
    /// Its cgroup's id.
    pub cgroup: u64,
    /// How long it lived, as any program.
    pub lifetime_ns: u64,
    /// The process.
    pub tgid: u32,
    /// Its parent.
    pub parent: u32,
    /// As `wait` gives it: the signal, and above the lowest byte the status.
    pub code: u32,
    /// Keeps the names aligned.
    pub reserved: u32,
    /// Its name.
    pub comm: [u8; COMM],
    /// Its parent's name.
    pub parent_comm: [u8; COMM],
}

counters!(LifecycleSlot: 64 + 8 * KILLERS);
plain!(Forker: 40 + COMM, ExitEvent: 32 + 2 * COMM);
of_cgroup!(Forker);
