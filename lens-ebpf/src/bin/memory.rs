//! Page faults, page allocations and resident pages by cgroup.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_get_current_task_btf,
    macros::{btf_tracepoint, map, perf_event},
    maps::{Array, HashMap},
    programs::{BtfTracePointContext, PerfEventContext},
};
use lens_common::{
    limits::{SLOTS, SPACES},
    loss,
    memory::{KINDS, MemorySlot, Space},
};
use lens_ebpf::{
    atomic,
    field::read,
    loss::count,
    offsets, per_cpu,
    target::{cgroup_of, slot_of},
};

#[map]
static SLOT: Array<MemorySlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
/// By address of the `mm_struct`. An entry is made when an address space is born in a watched
/// cgroup or first changes there, and goes when it is torn down.
#[map]
static SPACE: HashMap<u64, Space> = HashMap::with_max_entries(SPACES, 0);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `task_struct.mm`
    TASK_MM,
    /// `mm_struct.owner`
    MM_OWNER,
    /// `mm_struct.mm_users`
    MM_USERS,
    /// `mm_struct.rss_stat[0].count`, or `mm_struct.rss_stat.count[0]` before 6.2
    MM_RSS_0,
    /// The next one.
    MM_RSS_1,
    /// The next one.
    MM_RSS_2,
    /// The last one.
    MM_RSS_3,
}

#[inline(always)]
fn current() -> *const u8 {
    // SAFETY: takes nothing, and there is always a current task.
    unsafe { bpf_get_current_task_btf().cast::<u8>().cast_const() }
}

#[inline(always)]
fn slot_on_this_cpu(cgroup: u64) -> Option<*mut MemorySlot> {
    SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot_of(cgroup)?))
}

#[inline(always)]
fn own_slot() -> Option<*mut MemorySlot> {
    // SAFETY: the current task is typed.
    slot_on_this_cpu(unsafe { cgroup_of(current()) })
}

/// `page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code)`
#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(_: BtfTracePointContext) -> i32 {
    if let Some(slot) = own_slot() {
        // SAFETY: this CPU's counters.
        unsafe { (*slot).user_faults += 1 }
    }
    0
}

/// `page_fault_kernel(unsigned long address, struct pt_regs *regs, unsigned long error_code)`
#[btf_tracepoint(function = "page_fault_kernel")]
fn page_fault_kernel(_: BtfTracePointContext) -> i32 {
    if let Some(slot) = own_slot() {
        // SAFETY: this CPU's counters.
        unsafe { (*slot).kernel_faults += 1 }
    }
    0
}

/// At each `PERF_COUNT_SW_PAGE_FAULTS_MAJ`, in the task that has waited.
#[perf_event]
fn major_fault(_: PerfEventContext) -> u32 {
    if let Some(slot) = own_slot() {
        // SAFETY: this CPU's counters.
        unsafe { (*slot).major_faults += 1 }
    }
    0
}

/// `mm_page_alloc(struct page *page, unsigned int order, gfp_t gfp_flags, int migratetype)`. An
/// interrupt allocates in the name of the task that it interrupts.
#[btf_tracepoint(function = "mm_page_alloc")]
fn mm_page_alloc(ctx: BtfTracePointContext) -> i32 {
    let page: u64 = ctx.arg(0);
    let order: u64 = ctx.arg(1);
    let Some(slot) = own_slot() else {
        return 0;
    };
    // SAFETY: this CPU's counters.
    unsafe {
        if page == 0 {
            (*slot).failed_allocs += 1;
        } else {
            (*slot).allocs += 1;
            (*slot).alloc_pages += 1 << (order & 31);
        }
    }
    0
}

/// `rss_stat(struct mm_struct *mm, int member)`, with a third argument before 6.2.
///
/// Since 6.2 each CPU keeps the last few pages (32, or twice the number of CPUs) to itself; what is
/// read here lags by at most so many a CPU. Teardown takes back all that was counted, so that
/// the error of an address space ends with it.
#[btf_tracepoint(function = "rss_stat")]
fn rss_stat(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the arguments are those of the prototype above.
    unsafe {
        let mm: *const u8 = ctx.arg(0);
        let address: u64 = ctx.arg(0);
        let kind = ctx.arg::<u64>(1) as u32 as usize;
        if kind >= KINDS {
            return 0;
        }
        let space = SPACE.get_ptr_mut(&address);
        if read::<u32>(mm, &MM_USERS) == 0 {
            if let Some(space) = space {
                end(space);
                let _ = SPACE.remove(&address);
            }
            return 0;
        }
        let (cgroup, unborn) = owner_of(mm);
        let pages = resident(mm, kind);
        let space = match space {
            Some(space) => space,
            None => match enter(address, mm, cgroup, unborn) {
                Some(space) => space,
                None => return 0,
            },
        };
        if cgroup != 0 && (*space).cgroup != cgroup {
            // Moved, or cloned into another cgroup: its pages go with it.
            let was = atomic::exchange(&raw mut (*space).cgroup, cgroup);
            if was != cgroup {
                move_over(space, was, cgroup);
            }
        }
        let seen = (*space).seen.as_mut_ptr().add(kind);
        if *seen != pages {
            // Two CPUs may be here with the same address space: each takes what the other left.
            let was = atomic::exchange(seen.cast::<u64>(), pages as u64) as i64;
            if let Some(slot) = slot_on_this_cpu((*space).cgroup) {
                *(*slot).rss.as_mut_ptr().add(kind) += pages - was;
            }
        }
    }
    0
}

/// The cgroup that `mm`'s pages count for (0 if nobody's any more), and whether it is only being
/// made.
#[inline(always)]
unsafe fn owner_of(mm: *const u8) -> (u64, bool) {
    // SAFETY: `mm` is a program's argument.
    unsafe {
        let owner: *const u8 = read(mm, &MM_OWNER);
        if owner.is_null() {
            return (0, false);
        }
        let current = current();
        if read::<u32>(owner, &TASK_PID) != read::<u32>(current, &TASK_PID) {
            return (cgroup_of(owner), false);
        }
        // The current task, or the copy that it is making of itself, which still has its pid and
        // no cgroup yet; while that or an exec is under way, `mm` is not yet its own.
        let own: *const u8 = read(current, &TASK_MM);
        (cgroup_of(current), own != mm)
    }
}

#[inline(always)]
unsafe fn resident(mm: *const u8, kind: usize) -> i64 {
    // SAFETY: `mm` is a program's argument; typed pointers take constant offsets only.
    unsafe {
        match kind {
            0 => read(mm, &MM_RSS_0),
            1 => read(mm, &MM_RSS_1),
            2 => read(mm, &MM_RSS_2),
            _ => read(mm, &MM_RSS_3),
        }
    }
}

/// Makes an entry. What is resident already counts only if it was born here: pages from before the
/// start are no growth.
#[inline(always)]
unsafe fn enter(address: u64, mm: *const u8, cgroup: u64, unborn: bool) -> Option<*mut Space> {
    slot_of(cgroup)?;
    let mut space = Space {
        cgroup,
        seen: [0; KINDS],
    };
    if !unborn {
        // SAFETY: `mm` is a program's argument.
        space.seen = unsafe {
            [
                resident(mm, 0),
                resident(mm, 1),
                resident(mm, 2),
                resident(mm, 3),
            ]
        };
    }
    if SPACE
        .insert(&address, &space, u64::from(BPF_NOEXIST))
        .is_err()
    {
        count(loss::SPACES);
    }
    SPACE.get_ptr_mut(&address)
}

/// Takes back all pages of `space`, once, whoever sees first that it is torn down.
#[inline(always)]
unsafe fn end(space: *mut Space) {
    // SAFETY: `kind` is in bounds; this CPU's counters.
    unsafe {
        let slot = slot_on_this_cpu((*space).cgroup);
        let mut kind = 0;
        while kind < KINDS {
            let seen = (*space).seen.as_mut_ptr().add(kind);
            let pages = atomic::exchange(seen.cast::<u64>(), 0) as i64;
            if let Some(slot) = slot {
                *(*slot).rss.as_mut_ptr().add(kind) -= pages;
            }
            kind += 1;
        }
    }
}

#[inline(always)]
unsafe fn move_over(space: *mut Space, from: u64, to: u64) {
    // SAFETY: `kind` is in bounds; this CPU's counters.
    unsafe {
        let (from, to) = (slot_on_this_cpu(from), slot_on_this_cpu(to));
        let mut kind = 0;
        while kind < KINDS {
            let pages = *(*space).seen.as_ptr().add(kind);
            if let Some(slot) = from {
                *(*slot).rss.as_mut_ptr().add(kind) -= pages;
            }
            if let Some(slot) = to {
                *(*slot).rss.as_mut_ptr().add(kind) += pages;
            }
            kind += 1;
        }
    }
}
