//! The calls of one function, on demand and bounded: how many, by cgroup, and how long they took.
//! Of a program's function both programs sit on one breakpoint; of the kernel's, they are called
//! where it begins and ends (`fentry`, `fexit`), or sit on the kernel's own breakpoints. The agent
//! is told by a record at the very hit that reaches a limit, and takes them away.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::{BPF_NOEXIST, pt_regs},
    macros::{btf_map, fentry, fexit, kprobe, kretprobe, map, uprobe, uretprobe},
    maps::{Array, HashMap, RingBuf},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use lens_common::{
    function::{ASKED, CALLERS, Calls, DEPTH, EVENT_BYTES, Frame, HITS, IN_KERNEL, Stack, Tracing},
    hist::{BUCKETS, bucket},
    loss,
};
use lens_ebpf::{
    atomic,
    clock::now,
    flat,
    loss::count,
    per_cpu,
    target::cgroup_of,
    task::{TaskStorage, current},
    traps,
};

#[map]
static TRACING: Array<Tracing> = Array::with_max_entries(1, per_cpu::MAPPED);
/// By cgroup id; 0 takes those that find no room.
#[map]
static CALLER: HashMap<u64, Calls> = HashMap::with_max_entries(CALLERS, 0);
/// Ids of the cgroups whose calls count, where not all do.
#[map]
static ASKED_FOR: HashMap<u64, u64> = HashMap::with_max_entries(ASKED, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);
#[btf_map]
static STACK: TaskStorage<Stack> = TaskStorage::new();
/// The same of the kernel's functions, by task, while any call is under way: they may be called
/// where nothing can be allocated, so their records are there from the beginning.
#[map]
static IN_KERNEL_STACK: HashMap<u64, Stack> = HashMap::with_max_entries(IN_KERNEL, 0);
/// None under way; too large to be made on a program's stack beside what else lies there.
#[unsafe(no_mangle)]
static EMPTY: Stack = Stack {
    depth: 0,
    frames: [Frame {
        sp: 0,
        at_ns: 0,
        cgroup: 0,
    }; DEPTH],
};

/// 1 where only the calls of [`ASKED_FOR`] count.
#[unsafe(no_mangle)]
static FILTERED: Global<u32> = Global::new(0);
/// 1 where returns are waited for.
#[unsafe(no_mangle)]
static TIMED: Global<u32> = Global::new(0);

const _: () = assert!(DEPTH.is_power_of_two());

/// Where frame `i` of a stack lies.
#[inline(always)]
unsafe fn frame(stack: *mut Stack, i: u64) -> *mut Frame {
    let i = flat::masked::<{ DEPTH as u32 - 1 }>(i);
    // SAFETY: inside the record.
    unsafe { (&raw mut (*stack).frames).cast::<Frame>().add(i as usize) }
}

/// A hit that counts.
struct Hit {
    tracing: *mut Tracing,
    task: *const u8,
    cgroup: u64,
}

/// Counts a hit; `None` if it is not one of those that were asked for.
#[inline(always)]
fn hit() -> Option<Hit> {
    let tracing = TRACING.get_ptr_mut(0)?;
    // SAFETY: words of a map's value, and the current task.
    unsafe {
        traps::hit(
            &EVENTS,
            &raw mut (*tracing).traps,
            &raw mut (*tracing).first_ns,
            &raw const (*tracing).trap_limit,
        );
        let task = current();
        let cgroup = cgroup_of(task);
        if FILTERED.load() != 0 && ASKED_FOR.get_ptr(cgroup).is_none() {
            return None;
        }
        let hits = atomic::add_up(&raw mut (*tracing).hits, 1);
        let limit = read_volatile(&raw const (*tracing).hit_limit);
        if hits > limit {
            return None;
        }
        if hits == limit {
            traps::tell(&EVENTS, HITS, hits);
        }
        if let Some(calls) = calls_of(cgroup) {
            atomic::add(&raw mut (*calls).calls, 1);
        }
        Some(Hit {
            tracing,
            task,
            cgroup,
        })
    }
}

/// At the breakpoint: the return address is the last thing on the stack where [`TIMED`] is 1.
#[uprobe]
fn entered(ctx: ProbeContext) -> u32 {
    if let Some(hit) = hit()
        && TIMED.load() != 0
    {
        // SAFETY: the current task.
        unsafe {
            let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
            push(hit.tracing, hit.task, hit.cgroup, (*regs).rsp);
        }
    }
    0
}

/// Where a function of the kernel begins.
#[fentry]
fn kernel_entered(ctx: FEntryContext) -> i32 {
    // SAFETY: the arguments lie on the stack, in the same place until the function has returned.
    unsafe { begun(ctx.as_ptr() as u64) };
    0
}

/// Where it ends.
#[fexit]
fn kernel_returned(ctx: FExitContext) -> i32 {
    // SAFETY: as above.
    unsafe { ended(ctx.as_ptr() as u64) };
    0
}

/// The same for kernels without `fentry`, and functions that have none: where the return address is
/// the last thing on the stack.
#[kprobe]
fn kernel_probed(ctx: ProbeContext) -> u32 {
    let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
    // SAFETY: the registers are there.
    unsafe { begun((*regs).rsp) };
    0
}

/// In the caller again, with the return address off the stack.
#[kretprobe]
fn kernel_probe_returned(ctx: RetProbeContext) -> u32 {
    let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
    // SAFETY: the registers are there.
    unsafe { ended((*regs).rsp.wrapping_sub(8)) };
    0
}

/// A call of a function of the kernel; `at` is a place on its stack by which it is known again.
#[inline(always)]
unsafe fn begun(at: u64) {
    let Some(hit) = hit() else { return };
    if TIMED.load() == 0 {
        return;
    }
    let task = hit.task as u64;
    // SAFETY: words of a map's value, which only the current task's calls write, one after the other.
    unsafe {
        if IN_KERNEL_STACK.get_ptr(task).is_none() {
            #[expect(
                clippy::needless_borrows_for_generic_args,
                reason = "by value it would not fit the program's stack"
            )]
            let _ = IN_KERNEL_STACK.insert(task, &EMPTY, u64::from(BPF_NOEXIST));
        }
        let Some(stack) = IN_KERNEL_STACK.get_ptr_mut(task) else {
            count(loss::TASKS);
            return;
        };
        let mut depth = read_volatile(&raw const (*stack).depth);
        // At the same place as an older one: that one's return was missed.
        if depth != 0 && read_volatile(&raw const (*frame(stack, depth - 1)).sp) == at {
            depth -= 1;
            atomic::add(&raw mut (*hit.tracing).missing, 1);
        }
        put(hit.tracing, stack, depth, at, hit.cgroup);
    }
}

/// The return of the call that is known by `at`.
#[inline(always)]
unsafe fn ended(at: u64) {
    let task = current();
    // SAFETY: words of a map's value, which only the current task's calls write.
    unsafe {
        // A task without a record was in the function before the trace began, or was not asked for.
        let Some(stack) = IN_KERNEL_STACK.get_ptr_mut(task as u64) else {
            return;
        };
        let Some(tracing) = TRACING.get_ptr_mut(0) else {
            return;
        };
        let had = read_volatile(&raw const (*stack).depth);
        let mut depth = had;
        // An interrupt may have a stack of its own, so places have no order; calls have.
        for _ in 0..DEPTH {
            if depth == 0 || read_volatile(&raw const (*frame(stack, depth - 1)).sp) == at {
                break;
            }
            depth -= 1;
        }
        if depth == 0 || read_volatile(&raw const (*frame(stack, depth - 1)).sp) != at {
            return;
        }
        if depth != had {
            atomic::add(&raw mut (*tracing).missing, had - depth);
        }
        let frame = frame(stack, depth - 1);
        let (cgroup, at_ns) = ((*frame).cgroup, read_volatile(&raw const (*frame).at_ns));
        write_volatile(&raw mut (*stack).depth, depth - 1);
        if depth == 1 {
            let _ = IN_KERNEL_STACK.remove(task as u64);
        }
        timed(cgroup, now().wrapping_sub(at_ns));
    }
}

/// In the caller again, with the return address off the stack.
#[uretprobe]
fn returned(ctx: RetProbeContext) -> u32 {
    // SAFETY: words of a map's value, and the current task.
    unsafe {
        // A thread without a record was in the function before the trace began, or was not asked for.
        let stack = STACK.get(current(), false);
        if stack.is_null() {
            return 0;
        }
        let Some(tracing) = TRACING.get_ptr_mut(0) else {
            return 0;
        };
        let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
        let sp = (*regs).rsp.wrapping_sub(8);
        let depth = drop_below(tracing, stack, sp);
        if depth == 0 {
            return 0;
        }
        let frame = frame(stack, depth - 1);
        if read_volatile(&raw const (*frame).sp) != sp {
            return 0;
        }
        write_volatile(&raw mut (*stack).depth, depth - 1);
        timed((*frame).cgroup, now().wrapping_sub((*frame).at_ns));
    }
    0
}

/// Notes how long a call took.
#[inline(always)]
unsafe fn timed(cgroup: u64, took: u64) {
    let Some(calls) = calls_of(cgroup) else {
        return;
    };
    // SAFETY: words of a map's value.
    unsafe {
        atomic::add(&raw mut (*calls).returns, 1);
        atomic::add(&raw mut (*calls).total_ns, took);
        atomic::raise(&raw mut (*calls).max_ns, took);
        let b = bucket(took);
        if b < BUCKETS {
            atomic::add((&raw mut (*calls).hist).cast::<u64>().add(b), 1);
        }
    }
}

/// Forgets the calls whose frames lie below `sp` on the stack, where nothing lives any more: a
/// `longjmp` went past their returns. How many are left.
#[inline(always)]
unsafe fn drop_below(tracing: *mut Tracing, stack: *mut Stack, sp: u64) -> u64 {
    // SAFETY: the caller's record, which only the current task's calls write.
    unsafe {
        let had = read_volatile(&raw const (*stack).depth);
        let mut depth = had;
        for _ in 0..DEPTH {
            if depth == 0 {
                break;
            }
            let frame = frame(stack, depth - 1);
            if read_volatile(&raw const (*frame).sp) >= sp {
                break;
            }
            depth -= 1;
        }
        if depth != had {
            write_volatile(&raw mut (*stack).depth, depth);
            atomic::add(&raw mut (*tracing).missing, had - depth);
        }
        depth
    }
}

/// Notes that a call began whose return address lies at `sp`.
#[inline(always)]
unsafe fn push(tracing: *mut Tracing, task: *const u8, cgroup: u64, sp: u64) {
    // SAFETY: `task` is the current task.
    unsafe {
        let stack = STACK.get(task, true);
        if stack.is_null() {
            count(loss::TASKS);
            return;
        }
        // A call at the same place as an older one: that one has gone.
        let depth = drop_below(tracing, stack, sp + 1);
        put(tracing, stack, depth, sp, cgroup);
    }
}

/// Puts a call that begins now on top of `depth` others.
#[inline(always)]
unsafe fn put(tracing: *mut Tracing, stack: *mut Stack, depth: u64, sp: u64, cgroup: u64) {
    // SAFETY: the caller's record, which only the current task's calls write.
    unsafe {
        if depth != 0 {
            atomic::add(&raw mut (*tracing).nested, 1);
        }
        if depth >= DEPTH as u64 {
            atomic::add(&raw mut (*tracing).deep, 1);
            return;
        }
        let frame = frame(stack, depth);
        (*frame).sp = sp;
        (*frame).cgroup = cgroup;
        write_volatile(&raw mut (*stack).depth, depth + 1);
        write_volatile(&raw mut (*frame).at_ns, now());
    }
}

/// The counters of a cgroup.
#[inline(always)]
fn calls_of(cgroup: u64) -> Option<*mut Calls> {
    if let Some(calls) = CALLER.get_ptr_mut(cgroup) {
        return Some(calls);
    }
    let none = Calls {
        calls: 0,
        returns: 0,
        total_ns: 0,
        max_ns: 0,
        hist: [0; BUCKETS],
    };
    // Another CPU may be faster.
    let _ = CALLER.insert(cgroup, none, u64::from(BPF_NOEXIST));
    if let Some(calls) = CALLER.get_ptr_mut(cgroup) {
        return Some(calls);
    }
    count(loss::CALLERS);
    CALLER.get_ptr_mut(0)
}
