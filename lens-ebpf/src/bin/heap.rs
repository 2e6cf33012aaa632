//! Allocations of the C library that are not freed, by the stacks that asked for them; on demand, of
//! chosen processes and bounded. Calls are noted where they begin, and looked at where they return,
//! in the caller again: then it is the caller whose stack is seen.
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    clippy::needless_pass_by_value,
    reason = "calls are not worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, pt_regs},
    helpers::bpf_probe_read_user,
    macros::{btf_map, map, uprobe, uretprobe},
    maps::{Array, HashMap, RingBuf},
    programs::{ProbeContext, RetProbeContext},
};
use lens_common::{
    heap::{Call, EVENT_BYTES, Heaping, LIVE, Live, Site},
    limits, loss,
    stacks::Place,
};
use lens_ebpf::{
    atomic,
    field::read,
    loss::count,
    per_cpu, stacks,
    task::{TASK_TGID, TaskStorage, current},
    traps,
};

stacks!(STACK);

#[map]
static HEAPING: Array<Heaping> = Array::with_max_entries(1, per_cpu::MAPPED);
/// Allocations that are followed, by process and address.
#[map]
static ALLOCATED: HashMap<[u64; 2], Live> = HashMap::with_max_entries(LIVE, 0);
#[map]
static SITES: HashMap<Place, Site> = HashMap::with_max_entries(limits::STACK_PLACES, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);
#[btf_map]
static CALL: TaskStorage<Call> = TaskStorage::new();

/// What a call asks for.
struct Asked {
    size: u64,
    old: u64,
    out: u64,
}

impl Asked {
    const fn bytes(size: u64) -> Self {
        Self {
            size,
            old: 0,
            out: 0,
        }
    }
}

/// `malloc(size)`
#[uprobe]
fn malloc(ctx: ProbeContext) -> u32 {
    begun(&ctx, |regs| Asked::bytes(regs.rdi))
}

/// `calloc(n, size)`
#[uprobe]
fn calloc(ctx: ProbeContext) -> u32 {
    begun(&ctx, |regs| Asked::bytes(regs.rdi.wrapping_mul(regs.rsi)))
}

/// `realloc(old, size)`, in which `reallocarray` ends
#[uprobe]
fn realloc(ctx: ProbeContext) -> u32 {
    begun(&ctx, |regs| Asked {
        old: regs.rdi,
        ..Asked::bytes(regs.rsi)
    })
}

/// `aligned_alloc(alignment, size)`, and `memalign`
#[uprobe]
fn aligned_alloc(ctx: ProbeContext) -> u32 {
    begun(&ctx, |regs| Asked::bytes(regs.rsi))
}

/// `posix_memalign(&out, alignment, size)`
#[uprobe]
fn posix_memalign(ctx: ProbeContext) -> u32 {
    begun(&ctx, |regs| Asked {
        out: regs.rdi,
        ..Asked::bytes(regs.rdx)
    })
}

/// `free(old)`
#[uprobe]
fn free(ctx: ProbeContext) -> u32 {
    let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
    // SAFETY: words of a map's value; the registers; the current task.
    unsafe {
        let Some((heaping, one_in)) = trapped() else {
            return 0;
        };
        let task = current();
        let call = CALL.get(task, false);
        // `realloc` may free by itself; it is looked at when it returns.
        if !call.is_null() && (*regs).rsp < read_volatile(&raw const (*call).sp) {
            return 0;
        }
        freed(heaping, one_in, task, (*regs).rdi);
    }
    0
}

/// In the caller again, with the return address off the stack.
#[uretprobe]
fn returned(ctx: RetProbeContext) -> u32 {
    let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
    // SAFETY: words of maps' values; the registers; the current task.
    unsafe {
        let Some((heaping, one_in)) = trapped() else {
            return 0;
        };
        let task = current();
        let call = CALL.get(task, false);
        if call.is_null() || read_volatile(&raw const (*call).sp) != (*regs).rsp.wrapping_sub(8) {
            return 0;
        }
        let (size, old, out) = ((*call).size, (*call).old, (*call).out);
        write_volatile(&raw mut (*call).sp, 0);
        let at = if out == 0 {
            (*regs).rax
        } else if (*regs).rax == 0 {
            bpf_probe_read_user(out as *const u64).unwrap_or_default()
        } else {
            0
        };
        // A reallocation that fails leaves the old one; to nothing, it frees it.
        if old != 0 && (at != 0 || size == 0) {
            freed(heaping, one_in, task, old);
        }
        if at == 0 {
            return 0;
        }
        atomic::add(&raw mut (*heaping).allocs, 1);
        atomic::add(&raw mut (*heaping).bytes, size);
        if !is_followed(at, one_in) {
            return 0;
        }
        let user = STACK.user(ctx.as_ptr()).unwrap_or_default();
        let tgid = u64::from(read::<u32>(task, &TASK_TGID));
        // Whatever is there was freed by something that is not seen.
        if ALLOCATED
            .insert([tgid, at], Live { size, user }, 0)
            .is_err()
        {
            count(loss::UNDER_WAY);
            return 0;
        }
        if let Some(site) = site(&stacks::place(task, 0, user, 0)) {
            atomic::add(&raw mut (*site).allocs, 1);
            atomic::add(&raw mut (*site).bytes, size);
        }
    }
    0
}

/// Counts a hit: whether anything counts yet, and one address in how many.
#[inline(always)]
fn trapped() -> Option<(*mut Heaping, u64)> {
    let heaping = HEAPING.get_ptr_mut(0)?;
    // SAFETY: words of a map's value.
    unsafe {
        traps::hit(
            &EVENTS,
            &raw mut (*heaping).traps,
            &raw mut (*heaping).first_ns,
            &raw const (*heaping).trap_limit,
        );
        let one_in = read_volatile(&raw const (*heaping).one_in);
        (one_in != 0).then_some((heaping, one_in))
    }
}

#[inline(always)]
fn begun(ctx: &ProbeContext, asked: impl FnOnce(&pt_regs) -> Asked) -> u32 {
    let regs: *const pt_regs = ctx.as_ptr().cast_const().cast();
    // SAFETY: the registers; the current task's record, which only its own calls write.
    unsafe {
        if trapped().is_none() {
            return 0;
        }
        let call = CALL.get(current(), true);
        if call.is_null() {
            count(loss::TASKS);
            return 0;
        }
        // Within another call, which is the one that the caller made.
        let sp = (*regs).rsp;
        if sp < read_volatile(&raw const (*call).sp) {
            return 0;
        }
        let asked = asked(&*regs);
        (*call).size = asked.size;
        (*call).old = asked.old;
        (*call).out = asked.out;
        write_volatile(&raw mut (*call).sp, sp);
    }
    0
}

/// Forgets what lies at `at`.
#[inline(always)]
unsafe fn freed(heaping: *mut Heaping, one_in: u64, task: *const u8, at: u64) {
    if at == 0 {
        return;
    }
    // SAFETY: words of maps' values; by the caller the current task.
    unsafe {
        atomic::add(&raw mut (*heaping).frees, 1);
        if !is_followed(at, one_in) {
            return;
        }
        let key = [u64::from(read::<u32>(task, &TASK_TGID)), at];
        let Some(live) = ALLOCATED.get_ptr(key) else {
            atomic::add(&raw mut (*heaping).older_frees, 1);
            return;
        };
        let Live { size, user } = *live;
        let _ = ALLOCATED.remove(key);
        if let Some(site) = site(&stacks::place(task, 0, user, 0)) {
            atomic::add(&raw mut (*site).frees, 1);
            atomic::add(&raw mut (*site).freed_bytes, size);
        }
    }
}

/// One address in so many, chosen by the address: so it is the same ones that are freed.
#[inline(always)]
fn is_followed(at: u64, one_in: u64) -> bool {
    let hash = (at >> 4).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    hash & (one_in - 1) == 0
}

#[inline(always)]
fn site(place: &Place) -> Option<*mut Site> {
    if let Some(site) = SITES.get_ptr_mut(place) {
        return Some(site);
    }
    let none = Site {
        allocs: 0,
        bytes: 0,
        frees: 0,
        freed_bytes: 0,
    };
    // Another CPU may be faster.
    let _ = SITES.insert(place, none, u64::from(BPF_NOEXIST));
    let site = SITES.get_ptr_mut(place);
    if site.is_none() {
        count(loss::PLACES);
    }
    site
}
