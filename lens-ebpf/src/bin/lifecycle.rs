//! Tasks that begin, become another program, and end.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    Global,
    bindings::BPF_NOEXIST,
    helpers::bpf_probe_read_kernel,
    macros::{btf_tracepoint, map},
    maps::{Array, LruHashMap, RingBuf},
    programs::BtfTracePointContext,
};
use lens_common::{
    lifecycle::{
        BY_ABRT, BY_FAULT, BY_KILL, BY_OTHER, BY_SEGV, ExitEvent, Forker, KILLERS, LifecycleSlot,
    },
    limits::{ENDED, EXIT_BYTES, FORKER_PROBES, FORKERS, SLOTS},
    loss,
};
use lens_ebpf::{
    atomic,
    clock::now,
    field::read,
    loss::count,
    offsets, per_cpu, places,
    target::{cgroup_of, slot_of},
    task::{TASK_LEADER, TASK_TGID, comm_of, current},
};

#[map]
static SLOT: Array<LifecycleSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
#[map]
static FORKER: Array<Forker> = Array::with_max_entries(FORKERS, per_cpu::MAPPED);
/// Abnormal exits.
#[map]
static EXITS: RingBuf = RingBuf::with_byte_size(EXIT_BYTES, 0);
/// Processes counted already, by address and start; only used where the kernel does not say which
/// thread is the last.
#[map]
static ENDED_ONCE: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(ENDED, 0);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `task_struct.exit_code`
    TASK_EXIT_CODE,
    /// `task_struct.real_parent`
    TASK_PARENT,
    /// `task_struct.start_time`
    TASK_START,
    /// `task_struct.signal`
    TASK_SIGNAL,
    /// `signal_struct.live`
    SIGNAL_LIVE,
    /// `signal_struct.nr_threads`
    SIGNAL_THREADS,
    /// `signal_struct.flags`
    SIGNAL_FLAGS,
    /// `signal_struct.group_exit_code`
    SIGNAL_EXIT_CODE,
    /// `kernel_siginfo.si_code`
    SIGINFO_CODE,
}

/// 1 where `sched_process_exit` says whether the whole process ends (since 6.16).
#[unsafe(no_mangle)]
static HAS_GROUP_DEAD: Global<u32> = Global::new(0);

/// In place of an address: a signal of a task's, one of the kernel's.
const SEND_SIG_NOINFO: u64 = 0;
const SEND_SIG_PRIV: u64 = 1;
const SI_TIMER: i32 = -2;

/// `SIGNAL_GROUP_EXIT`
const GROUP_EXIT: u32 = 4;

#[inline(always)]
fn slot_on_this_cpu(cgroup: u64) -> Option<*mut LifecycleSlot> {
    SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot_of(cgroup)?))
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`. Counts for the
/// parent's cgroup, also when the child is made in another one.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let parent: *const u8 = ctx.arg(0);
        let child: *const u8 = ctx.arg(1);
        let cgroup = cgroup_of(parent);
        let Some(slot) = slot_on_this_cpu(cgroup) else {
            return 0;
        };
        let is_process = read::<u32>(child, &TASK_PID) == read::<u32>(child, &TASK_TGID);
        if is_process {
            (*slot).forks += 1;
        } else {
            (*slot).threads += 1;
        }
        forked(parent, cgroup, is_process);
    }
    0
}

/// Remembers who forked; of those that hash alike, the one that has not for longest makes room.
#[inline(always)]
unsafe fn forked(parent: *const u8, cgroup: u64, is_process: bool) {
    // SAFETY: `parent` is a program's argument; this CPU's table.
    unsafe {
        let tgid: u32 = read(parent, &TASK_TGID);
        let mixed = (cgroup as u32).wrapping_mul(0x9E37_79B1) ^ tgid.wrapping_mul(0x85EB_CA6B);
        let block = places::block(per_cpu::cpu(), FORKERS, mixed);
        let mut oldest = block.at(0);
        let mut oldest_ns = u64::MAX;
        let mut k = 0;
        while k < FORKER_PROBES {
            let at = block.at(k);
            let Some(place) = FORKER.get_ptr_mut(at) else {
                return;
            };
            if (*place).cgroup == cgroup && (*place).tgid == tgid {
                oldest = at;
                break;
            }
            let last = if (*place).cgroup == 0 {
                0
            } else {
                (*place).last_ns
            };
            if last < oldest_ns {
                oldest = at;
                oldest_ns = last;
            }
            k += 1;
        }
        let Some(place) = FORKER.get_ptr_mut(oldest) else {
            return;
        };
        if (*place).cgroup != cgroup || (*place).tgid != tgid {
            if (*place).cgroup != 0 {
                count(loss::FORKERS);
            }
            (*place).processes = 0;
            (*place).threads = 0;
            (*place).tgid = tgid;
            (*place).cgroup = cgroup;
        }
        (*place).comm = comm_of(parent);
        (*place).last_ns = now();
        if is_process {
            (*place).processes += 1;
        } else {
            (*place).threads += 1;
        }
    }
}

/// `sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the argument is that of the prototype above; this CPU's counters.
    unsafe {
        if let Some(slot) = slot_on_this_cpu(cgroup_of(ctx.arg(0))) {
            (*slot).execs += 1;
        }
    }
    0
}

/// `sched_process_exit(struct task_struct *p, bool group_dead)`; without `group_dead` before 6.16.
/// The task is still in its cgroup.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above; this CPU's counters.
    unsafe {
        let task: *const u8 = ctx.arg(0);
        let cgroup = cgroup_of(task);
        let Some(slot) = slot_on_this_cpu(cgroup) else {
            return 0;
        };
        let is_last = if HAS_GROUP_DEAD.load() != 0 {
            ctx.arg::<u64>(1) & 1 != 0
        } else {
            is_last_thread(task)
        };
        if !is_last {
            (*slot).thread_exits += 1;
            return 0;
        }
        (*slot).exits += 1;
        let code = code_of(task);
        if code == 0 {
            return 0;
        }
        let signal = code & 0x7f;
        if signal == 0 {
            (*slot).failed += 1;
        } else {
            let by = killer(signal);
            if by < KILLERS {
                *(*slot).killed.as_mut_ptr().add(by) += 1;
            }
        }
        tell(task, cgroup, code);
    }
    0
}

/// `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group,
/// int result)`. Those that the kernel sends (a fault, a timer, a terminal) are nobody's, whoever
/// happens to run.
#[btf_tracepoint(function = "signal_generate")]
fn signal_generate(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above; the counters are only added to
    // atomically, because an interrupt sends signals too.
    unsafe {
        if let Some(slot) = slot_on_this_cpu(cgroup_of(ctx.arg(2))) {
            atomic::add(&raw mut (*slot).signals, 1);
        }
        let is_by_task = match ctx.arg::<u64>(1) {
            SEND_SIG_NOINFO => true,
            SEND_SIG_PRIV => false,
            // It may be no address at all, so some verifiers let nobody load from it.
            info => {
                let at = (info + u64::from(SIGINFO_CODE.load())) as *const i32;
                // SI_USER, and what a program may write itself.
                bpf_probe_read_kernel(at).is_ok_and(|code| code <= 0 && code != SI_TIMER)
            }
        };
        if is_by_task {
            let sender = current();
            if let Some(slot) = slot_on_this_cpu(cgroup_of(sender)) {
                atomic::add(&raw mut (*slot).signals_sent, 1);
            }
        }
    }
    0
}

/// Whether no thread of the process lives on. Two that end at once may both find it so; the first
/// to say it is the last.
#[inline(always)]
unsafe fn is_last_thread(task: *const u8) -> bool {
    // SAFETY: `task` is a program's argument.
    unsafe {
        let signal: *const u8 = read(task, &TASK_SIGNAL);
        if read::<u32>(signal, &SIGNAL_LIVE) != 0 {
            return false;
        }
        let leader: *const u8 = read(task, &TASK_LEADER);
        let process = [
            u64::from(read::<u32>(task, &TASK_TGID)),
            read(leader, &TASK_START),
        ];
        if read::<u32>(signal, &SIGNAL_THREADS) == 1 {
            // Nobody comes after it, but one that has gone may have said so.
            return ENDED_ONCE.get_ptr(process).is_none();
        }
        ENDED_ONCE
            .insert(process, 1, u64::from(BPF_NOEXIST))
            .is_ok()
    }
}

/// How the process ended, as its parent will be told.
#[inline(always)]
unsafe fn code_of(task: *const u8) -> u32 {
    // SAFETY: `task` is a program's argument.
    unsafe {
        let signal: *const u8 = read(task, &TASK_SIGNAL);
        if read::<u32>(signal, &SIGNAL_FLAGS) & GROUP_EXIT != 0 {
            read(signal, &SIGNAL_EXIT_CODE)
        } else {
            let leader: *const u8 = read(task, &TASK_LEADER);
            read(leader, &TASK_EXIT_CODE)
        }
    }
}

#[inline(always)]
fn killer(signal: u32) -> usize {
    match signal {
        11 => BY_SEGV,
        6 => BY_ABRT,
        4 | 7 | 8 => BY_FAULT,
        9 => BY_KILL,
        _ => BY_OTHER,
    }
}

#[inline(always)]
unsafe fn tell(task: *const u8, cgroup: u64, code: u32) {
    let Some(mut event) = EXITS.reserve::<ExitEvent>(0) else {
        count(loss::EVENTS);
        return;
    };
    // SAFETY: `task` is a program's argument.
    unsafe {
        let leader: *const u8 = read(task, &TASK_LEADER);
        let parent: *const u8 = read(task, &TASK_PARENT);
        event.write(ExitEvent {
            cgroup,
            lifetime_ns: now().wrapping_sub(read(leader, &TASK_START)),
            tgid: read(task, &TASK_TGID),
            parent: read(parent, &TASK_TGID),
            code,
            reserved: 0,
            comm: comm_of(leader),
            parent_comm: comm_of(parent),
        });
    }
    event.submit(0);
}
