//! Where page faults come from: the user stack of one in so many. An object of its own, loaded
//! only when asked for: stacks are dear to keep and to take.
#![no_std]
#![no_main]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::needless_pass_by_value,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    Global,
    bindings::{BPF_F_FAST_STACK_CMP, BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::{bpf_get_current_task_btf, generated::bpf_get_prandom_u32},
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, StackTrace},
    programs::{BtfTracePointContext, tracing::StackIdContext as _},
};
use lens_common::{
    limits::{FAULT_SAMPLES, FAULT_STACKS},
    loss,
    memory::FaultKey,
};
use lens_ebpf::{
    atomic,
    field::read,
    loss::count,
    offsets, per_cpu,
    target::{cgroup_of, slot_of},
};

#[map]
static STACK: StackTrace = StackTrace::with_max_entries(FAULT_STACKS, 0);
#[map]
static SAMPLE: HashMap<FaultKey, u64> = HashMap::with_max_entries(FAULT_SAMPLES, 0);
/// Faults until the next one is looked at.
#[map]
static COUNTDOWN: Array<u64> = Array::with_max_entries(1, per_cpu::MAPPED);

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
        let left = *countdown;
        if left > 1 {
            *countdown = left - 1;
            return 0;
        }
        let spread = u64::from(SAMPLE_ONE_IN.load()) * 2 - 1;
        *countdown = 1 + ((u64::from(bpf_get_prandom_u32()) * spread) >> 32);
        let task = bpf_get_current_task_btf().cast::<u8>().cast_const();
        let cgroup = cgroup_of(task);
        if slot_of(cgroup).is_none() {
            return 0;
        }
        // A stack that hashes like another is not kept: replacing it would rename earlier samples.
        let flags = u64::from(BPF_F_USER_STACK | BPF_F_FAST_STACK_CMP);
        let Ok(stack) = ctx.get_stackid(&STACK, flags) else {
            count(loss::STACKS);
            return 0;
        };
        let key = FaultKey {
            cgroup,
            tgid: read(task, &TASK_TGID),
            stack: stack as u32,
        };
        if let Some(n) = SAMPLE.get_ptr_mut(key) {
            atomic::add(n, 1);
        } else if SAMPLE.insert(key, 1, u64::from(BPF_NOEXIST)).is_err() {
            count(loss::STACKS);
        }
    }
    0
}
