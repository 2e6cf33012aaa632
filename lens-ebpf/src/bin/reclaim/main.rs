//! Tasks that stop to find memory, by cgroup: for the host or for a limit, or to compact. What
//! kernel threads do for everybody. Processes that are killed for want of memory.
//!
//! All of it is rare beside what it measures: a stall is at least some microseconds.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

mod oom;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, LruHashMap},
    programs::BtfTracePointContext,
};
use lens_common::{
    lengths::UnderWay,
    limits::{RECLAIMERS, SLOTS, STALLED},
    loss,
    reclaim::{Background, COMPACTION, DIRECT, KINDS, KSWAPD, LIMIT, ReclaimSlot},
    target::OTHER_SLOT,
};
use lens_ebpf::{
    clock::now,
    field::read,
    lengths,
    loss::count,
    offsets, per_cpu,
    target::{cgroup_of, slot_of},
    task::{current, is_kernel_thread},
};

#[map]
static SLOT: Array<ReclaimSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
#[map]
static BACKGROUND: Array<Background> = Array::with_max_entries(1, per_cpu::MAPPED);
/// By thread id: a stall that has not ended is seen here only.
#[map]
static UNDER_WAY: HashMap<u32, UnderWay> = HashMap::with_max_entries(STALLED, 0);
/// Which kind of reclaim a thread has done last.
#[map]
static LAST: LruHashMap<u32, u32> = LruHashMap::with_max_entries(RECLAIMERS, 0);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
}

/// `mm_vmscan_direct_reclaim_begin(int order, gfp_t gfp_flags)`
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn mm_vmscan_direct_reclaim_begin(_: BtfTracePointContext) -> i32 {
    begin(DIRECT);
    0
}

/// `mm_vmscan_direct_reclaim_end(unsigned long nr_reclaimed)`
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn mm_vmscan_direct_reclaim_end(ctx: BtfTracePointContext) -> i32 {
    end(DIRECT, ctx.arg(0));
    0
}

/// `mm_vmscan_memcg_reclaim_begin(int order, gfp_t gfp_flags)`
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn mm_vmscan_memcg_reclaim_begin(_: BtfTracePointContext) -> i32 {
    begin(LIMIT);
    0
}

/// `mm_vmscan_memcg_reclaim_end(unsigned long nr_reclaimed)`
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn mm_vmscan_memcg_reclaim_end(ctx: BtfTracePointContext) -> i32 {
    end(LIMIT, ctx.arg(0));
    0
}

/// `mm_compaction_begin`: of one zone, in who wants a big page or in a kernel thread.
#[btf_tracepoint(function = "mm_compaction_begin")]
fn mm_compaction_begin(_: BtfTracePointContext) -> i32 {
    begin(COMPACTION);
    0
}

/// `mm_compaction_end`
#[btf_tracepoint(function = "mm_compaction_end")]
fn mm_compaction_end(_: BtfTracePointContext) -> i32 {
    end(COMPACTION, 0);
    0
}

/// `mm_vmscan_kswapd_wake(int nid, int zid, int order)`
#[btf_tracepoint(function = "mm_vmscan_kswapd_wake")]
fn mm_vmscan_kswapd_wake(_: BtfTracePointContext) -> i32 {
    if let Some(background) = background() {
        // SAFETY: this CPU's counters.
        unsafe { (*background).kswapd_wakes += 1 }
    }
    // It may be told to go on without having slept.
    begin(KSWAPD);
    0
}

/// `mm_vmscan_kswapd_sleep(int nid)`
#[btf_tracepoint(function = "mm_vmscan_kswapd_sleep")]
fn mm_vmscan_kswapd_sleep(_: BtfTracePointContext) -> i32 {
    end(KSWAPD, 0);
    0
}

/// `mm_vmscan_throttled(int nid, int usec_timeout, int usec_delayed, int reason)`
#[btf_tracepoint(function = "mm_vmscan_throttled")]
fn mm_vmscan_throttled(ctx: BtfTracePointContext) -> i32 {
    let delayed = u64::from(ctx.arg::<u64>(2) as u32);
    // SAFETY: the current task is typed; this CPU's counters.
    unsafe {
        let task = current();
        if is_kernel_thread(task) {
            return 0;
        }
        if let Some(slot) = slot_of(cgroup_of(task))
            && let Some(counters) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot))
        {
            (*counters).throttled += 1;
            (*counters).throttled_ns += delayed * 1000;
        }
    }
    0
}

fn background() -> Option<*mut Background> {
    BACKGROUND.get_ptr_mut(per_cpu::cpu())
}

/// The current task stops to find memory. One who does so already is not noted a second time: the
/// time is the outer stall's.
#[inline(always)]
fn begin(kind: usize) {
    // SAFETY: the current task is typed.
    let (task, tid) = unsafe { (current(), read::<u32>(current(), &TASK_PID)) };
    // SAFETY: the same.
    let cgroup = if unsafe { is_kernel_thread(task) } {
        if kind < COMPACTION {
            // Nobody's wait.
            return;
        }
        0
    } else {
        // SAFETY: the same.
        let cgroup = unsafe { cgroup_of(task) };
        if slot_of(cgroup).is_none() {
            return;
        }
        cgroup
    };
    let since = now();
    let under_way = UnderWay {
        cgroup,
        since,
        kind: kind as u64,
        what: 0,
    };
    let noted = UNDER_WAY.insert(tid, under_way, u64::from(BPF_NOEXIST));
    if noted.is_err() && UNDER_WAY.get_ptr(tid).is_none() {
        count(loss::UNDER_WAY);
    }
}

/// It goes on, with so many `pages` reclaimed.
#[inline(always)]
fn end(kind: usize, pages: u64) {
    // SAFETY: the current task is typed.
    let tid: u32 = unsafe { read(current(), &TASK_PID) };
    if kind < COMPACTION {
        // Who is not remembered has no cause told if somebody is killed for it.
        let _ = LAST.insert(tid, kind as u32, 0);
    }
    let Some(noted) = UNDER_WAY.get_ptr(tid) else {
        return;
    };
    // SAFETY: the current task's own record.
    let UnderWay {
        cgroup,
        since,
        kind: noted,
        ..
    } = unsafe { *noted };
    if noted != kind as u64 {
        return;
    }
    let ns = now().wrapping_sub(since);
    // It was there a moment ago, and nobody else removes it.
    let _ = UNDER_WAY.remove(tid);
    if cgroup != 0 {
        took(cgroup, kind, ns, pages);
    } else if let Some(background) = background() {
        // SAFETY: this CPU's counters.
        unsafe {
            if kind == KSWAPD {
                (*background).kswapd_ns += ns;
            } else {
                (*background).compactions += 1;
                (*background).compaction_ns += ns;
            }
        }
    }
}

#[inline(always)]
fn took(cgroup: u64, kind: usize, ns: u64, pages: u64) {
    let Some(slot) = slot_of(cgroup) else {
        return;
    };
    if kind >= KINDS {
        return;
    }
    // SAFETY: this CPU's counters; the kind and the bucket are in bounds.
    unsafe {
        if let Some(counters) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) {
            let stalls = (*counters).stalls.as_mut_ptr().add(kind);
            (*stalls).n += 1;
            (*stalls).ns += ns;
            (*stalls).pages += pages;
        }
        if slot == OTHER_SLOT {
            return;
        }
        lengths::note(cgroup, kind as u64, ns);
    }
}
