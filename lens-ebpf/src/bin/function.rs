//! The calls of one user-space function, on demand and bounded: how many, by cgroup, and how long
//! they took. Both programs sit on one breakpoint; the agent is told by a record at the very hit
//! that reaches a limit, and takes the breakpoint away.
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
    macros::{btf_map, map, uprobe, uretprobe},
    maps::{Array, HashMap, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use lens_common::{
    function::{
        ASKED, CALLERS, Calls, DEPTH, EVENT_BYTES, Frame, HITS, LimitEvent, Stack, TRAPS, Tracing,
    },
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

/// At the breakpoint: the return address is the last thing on the stack where [`TIMED`] is 1.
#[uprobe]
fn entered(ctx: ProbeContext) -> u32 {
    let Some(tracing) = TRACING.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: words of a map's value, and the current task.
    unsafe {
        let traps = atomic::add_up(&raw mut (*tracing).traps, 1);
        if traps == 1 {
            write_volatile(&raw mut (*tracing).first_ns, now());
        }
        if traps == read_volatile(&raw const (*tracing).trap_limit) {
            tell(TRAPS, traps);
        }
        let task = current();
        let cgroup = cgroup_of(task);
        if FILTERED.load() != 0 && ASKED_FOR.get_ptr(cgroup).is_none() {
            return 0;
        }
        let hits = atomic::add_up(&raw mut (*tracing).hits, 1);
        let limit = read_volatile(&raw const (*tracing).hit_limit);
        if hits > limit {
            return 0;
        }
        if hits == limit {
            tell(HITS, hits);
        }
        if let Some(calls) = calls_of(cgroup) {
            atomic::add(&raw mut (*calls).calls, 1);
        }
        if TIMED.load() != 0 {
            let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
            push(tracing, task, cgroup, (*regs).rsp);
        }
    }
    0
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
        let took = now().wrapping_sub((*frame).at_ns);
        if let Some(calls) = calls_of((*frame).cgroup) {
            atomic::add(&raw mut (*calls).returns, 1);
            atomic::add(&raw mut (*calls).total_ns, took);
            atomic::raise(&raw mut (*calls).max_ns, took);
            let b = bucket(took);
            if b < BUCKETS {
                atomic::add((&raw mut (*calls).hist).cast::<u64>().add(b), 1);
            }
        }
    }
    0
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

#[inline(always)]
fn tell(what: u64, n: u64) {
    let Some(mut event) = EVENTS.reserve::<LimitEvent>(0) else {
        count(loss::EVENTS);
        return;
    };
    event.write(LimitEvent {
        what,
        n,
        at_ns: now(),
    });
    event.submit(0);
}
