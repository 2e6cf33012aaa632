//! Where page faults come from: the user stack of one in so many. An object of its own, loaded
//! only when asked for: stacks are dear to keep and to take.
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
    EbpfContext as _, Global,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::generated::bpf_get_stack,
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use core::ffi::c_void;
use lens_common::{
    limits::{FAULT_SAMPLES, FAULT_STACKS},
    loss,
    memory::{FRAMES, FaultKey, Stack},
};
use lens_ebpf::{
    atomic,
    countdown::{Countdown, is_due},
    field::read,
    loss::count,
    offsets, per_cpu,
    target::{cgroup_of, slot_of},
    task::current,
};

/// Stacks by a hash of all their bits. The kernel's own map of stacks would put two of them in one
/// place, and the second, be it the hottest of all, would not be seen.
#[map]
static STACK: HashMap<u64, Stack> = HashMap::with_max_entries(FAULT_STACKS, 0);
/// Where a stack is put together: too big for a program's own.
#[map]
static SCRATCH: PerCpuArray<Stack> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SAMPLE: HashMap<FaultKey, u64> = HashMap::with_max_entries(FAULT_SAMPLES, 0);
/// Faults until the next one is looked at.
#[map]
static COUNTDOWN: Array<Countdown> = Array::with_max_entries(1, per_cpu::MAPPED);

offsets! {
    /// `task_struct.tgid`
    TASK_TGID,
}

/// One fault in so many is looked at.
#[unsafe(no_mangle)]
static SAMPLE_ONE_IN: Global<u32> = Global::new(1);

/// `page_fault_user(unsigned long address, struct pt_regs *regs, unsigned long error_code)`
#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(ctx: BtfTracePointContext) -> i32 {
    let Some(countdown) = COUNTDOWN.get_ptr_mut(per_cpu::cpu()) else {
        return 0;
    };
    // SAFETY: this CPU's counter; the current task is typed.
    unsafe {
        if !is_due(&raw mut (*countdown).left, SAMPLE_ONE_IN.load()) {
            return 0;
        }
        let task = current();
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        let Some(stack) = stack_of(&ctx) else {
            count(loss::STACKS);
            return 0;
        };
        let key = FaultKey {
            cgroup,
            tgid: u64::from(read::<u32>(task, &TASK_TGID)),
            stack,
        };
        if let Some(n) = SAMPLE.get_ptr_mut(key) {
            atomic::add(n, 1);
        } else if SAMPLE.insert(key, 1, u64::from(BPF_NOEXIST)).is_err() {
            count(loss::STACKS);
        }
    }
    0
}

/// Keeps the current user stack, and returns its key.
#[inline(always)]
unsafe fn stack_of(ctx: &BtfTracePointContext) -> Option<u64> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the helper is given as many bytes as there are, and fills all of them.
    unsafe {
        let got = bpf_get_stack(
            ctx.as_ptr(),
            scratch.cast::<c_void>(),
            size_of::<Stack>() as u32,
            u64::from(BPF_F_USER_STACK),
        );
        if got <= 0 {
            return None;
        }
        let mut key: u64 = 0xCBF2_9CE4_8422_2325;
        let mut i = 0;
        while i < FRAMES {
            key = (key ^ *(*scratch).as_ptr().add(i)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            key ^= key >> 32;
            i += 1;
        }
        if STACK.get_ptr(key).is_none() {
            // Another CPU may have been faster.
            #[expect(
                clippy::needless_borrows_for_generic_args,
                reason = "by value it would not fit a program's stack"
            )]
            let _ = STACK.insert(key, &*scratch, u64::from(BPF_NOEXIST));
            STACK.get_ptr(key)?;
        }
        Some(key)
    }
}
