//! Page faults, page allocations and resident pages by cgroup.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{btf_tracepoint, map, perf_event},
    maps::{Array, HashMap},
    programs::{BtfTracePointContext, PerfEventContext},
};
use lens_common::{
    limits::{SLOTS, SPACES},
    loss,
    memory::{KINDS, MemorySlot, Space},
    target::OTHER_SLOT,
};
use lens_ebpf::{
    atomic,
    field::read,
    loss::count,
    near, offsets, per_cpu, resident, sample,
    target::{cgroup_of, slot_of},
    task::{TASK_MM, TaskContext, current},
};

#[map]
static SLOT: Array<MemorySlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
/// By address of the `mm_struct`: exactly those whose pages are counted in a slot.
#[map]
static SPACE: HashMap<u64, Space> = HashMap::with_max_entries(SPACES, 0);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
    /// `mm_struct.owner`
    MM_OWNER,
    /// `mm_struct.mm_users`
    MM_USERS,
}

#[inline(always)]
fn own_slot() -> Option<*mut MemorySlot> {
    // SAFETY: the current task is typed.
    let slot = near::slot_of(unsafe { cgroup_of(current()) })?;
    SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot))
}

/// `page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code)`
#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(_: BtfTracePointContext) -> i32 {
    let weight = sample::weight();
    if weight != 0
        && let Some(slot) = own_slot()
    {
        // SAFETY: this CPU's counters.
        unsafe { (*slot).user_faults += weight }
    }
    0
}

/// `page_fault_kernel(unsigned long address, struct pt_regs *regs, unsigned long error_code)`
#[btf_tracepoint(function = "page_fault_kernel")]
fn page_fault_kernel(_: BtfTracePointContext) -> i32 {
    let weight = sample::weight();
    if weight != 0
        && let Some(slot) = own_slot()
    {
        // SAFETY: this CPU's counters.
        unsafe { (*slot).kernel_faults += weight }
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
    let weight = sample::weight();
    if weight == 0 {
        return 0;
    }
    let Some(slot) = own_slot() else {
        return 0;
    };
    // SAFETY: this CPU's counters.
    unsafe {
        if page == 0 {
            (*slot).failed_allocs += weight;
        } else {
            (*slot).allocs += weight;
            (*slot).alloc_pages += weight << (order & 31);
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
        let space = SPACE.get_ptr_mut(address);
        if read::<u32>(mm, &MM_USERS) == 0 {
            if let Some(space) = space {
                end(address, space);
            }
            return 0;
        }
        let cgroup = owner_of(mm);
        let Some(space) = space else {
            // Mostly a task that is not watched, at work on its own memory.
            if cgroup != cgroup_of(current()) || near::slot_of(cgroup).is_some() {
                enter(address, mm, cgroup);
            }
            return 0;
        };
        if cgroup != 0 && (*space).cgroup != cgroup {
            // Moved, or cloned into another cgroup: its pages go with it.
            end(address, space);
            enter(address, mm, cgroup);
            return 0;
        }
        let pages = resident::pages(mm, kind);
        let seen = (*space).seen.as_mut_ptr().add(kind);
        if *seen != pages {
            // Two CPUs may be here with the same address space: each takes what the other left.
            let was = atomic::exchange(seen.cast::<u64>(), pages as u64) as i64;
            if let Some(slot) = space_slot((*space).cgroup) {
                add(slot, kind, pages - was);
            }
        }
    }
    0
}

/// Counts the pages of processes that were there before their cgroup was watched. Writes nothing.
#[unsafe(link_section = "iter/task")]
#[unsafe(no_mangle)]
extern "C" fn spaces(ctx: *const TaskContext) -> i32 {
    // SAFETY: `ctx` is what the kernel gives; `task` is NULL after the last.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() {
            return 0;
        }
        let mm: *const u8 = read(task, &TASK_MM);
        if mm.is_null() {
            return 0;
        }
        let address = mm as u64;
        if SPACE.get_ptr(address).is_none() && read::<u32>(mm, &MM_USERS) != 0 {
            enter(address, mm, owner_of(mm));
        }
    }
    0
}

/// The cgroup that `mm`'s pages count for; 0 if nobody's any more.
#[inline(always)]
unsafe fn owner_of(mm: *const u8) -> u64 {
    // SAFETY: `mm` is typed.
    unsafe {
        let owner: *const u8 = read(mm, &MM_OWNER);
        if owner.is_null() {
            return 0;
        }
        // A copy that the current task is making of itself still has its pid, and no cgroup yet.
        let current = current();
        if read::<u32>(owner, &TASK_PID) == read::<u32>(current, &TASK_PID) {
            cgroup_of(current)
        } else {
            cgroup_of(owner)
        }
    }
}

/// Where the pages of `cgroup`'s address spaces are counted. Not in the slot of those beyond the
/// limit: what is added there could not be taken back when one of them gets a slot of its own.
#[inline(always)]
fn space_slot(cgroup: u64) -> Option<*mut MemorySlot> {
    let slot = slot_of(cgroup)?;
    if slot == OTHER_SLOT {
        return None;
    }
    SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot))
}

/// Atomic, because the iterator can be interrupted by a page fault.
#[inline(always)]
unsafe fn add(slot: *mut MemorySlot, kind: usize, pages: i64) {
    // SAFETY: `kind` is in bounds.
    unsafe {
        let at = (*slot).rss.as_mut_ptr().add(kind);
        atomic::add(at.cast::<u64>(), pages as u64);
    }
}

/// Begins to count an address space, with all that is resident now.
#[inline(always)]
unsafe fn enter(address: u64, mm: *const u8, cgroup: u64) {
    let Some(slot) = space_slot(cgroup) else {
        return;
    };
    // SAFETY: `mm` is typed.
    let seen = unsafe {
        [
            resident::pages(mm, 0),
            resident::pages(mm, 1),
            resident::pages(mm, 2),
            resident::pages(mm, 3),
        ]
    };
    let space = Space { cgroup, seen };
    let entered = SPACE.insert(address, space, u64::from(BPF_NOEXIST));
    if entered.is_ok() {
        let mut kind = 0;
        while kind < KINDS {
            // SAFETY: `kind` is in bounds.
            unsafe { add(slot, kind, *seen.as_ptr().add(kind)) };
            kind += 1;
        }
    } else if SPACE.get_ptr(address).is_none() {
        count(loss::SPACES);
    }
}

/// Takes back all that was counted of an address space, once, whoever sees its end first.
#[inline(always)]
unsafe fn end(address: u64, space: *mut Space) {
    // SAFETY: `kind` is in bounds.
    unsafe {
        let slot = space_slot((*space).cgroup);
        let mut kind = 0;
        while kind < KINDS {
            let seen = (*space).seen.as_mut_ptr().add(kind);
            let pages = atomic::exchange(seen.cast::<u64>(), 0) as i64;
            if let Some(slot) = slot {
                add(slot, kind, -pages);
            }
            kind += 1;
        }
    }
    // Whoever was first.
    let _ = SPACE.remove(address);
}
