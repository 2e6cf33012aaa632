//! Where page faults come from: the user stack of one in so many. An object of its own, loaded
//! only when asked for: stacks are dear to keep and to take.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    EbpfContext as _, Global,
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use lens_ebpf::{
    countdown::{Countdown, is_due},
    per_cpu, stacks,
    target::{cgroup_of, slot_of},
    task::current,
};

stacks!(STACK);

/// Faults until the next one is looked at.
#[map]
static COUNTDOWN: Array<Countdown> = Array::with_max_entries(1, per_cpu::MAPPED);

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
        if slot_of(cgroup).is_some() {
            let user = STACK.user(ctx.as_ptr()).unwrap_or_default();
            STACK.note(task, &stacks::place(task, cgroup, user, 0), 1, 0);
        }
    }
    0
}
