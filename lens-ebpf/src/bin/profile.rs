//! Where CPU time goes: the stacks of whoever runs, 99 times a second on each CPU that is not idle.
#![no_std]
#![no_main]
#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

use aya_ebpf::{
    EbpfContext as _,
    macros::{map, perf_event},
    maps::Array,
    programs::PerfEventContext,
};
use lens_common::{limits::SLOTS, profile::ProfileSlot};
use lens_ebpf::{
    per_cpu, sample, stacks,
    target::{cgroup_of, slot_of},
    task::current,
};

stacks!(STACK);

#[map]
static SLOT: Array<ProfileSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);

/// At each beat of `PERF_COUNT_SW_CPU_CLOCK`: an interrupt, in the name of the task that it
/// interrupts.
#[perf_event]
fn sampled(ctx: PerfEventContext) -> u32 {
    // SAFETY: the current task is typed; this CPU's counters.
    unsafe {
        let task = current();
        let cgroup = cgroup_of(task);
        let Some(slot) = slot_of(cgroup) else {
            return 0;
        };
        // The clock then beats the less often.
        let times = sample::one_in().max(1);
        let kernel = STACK.kernel(ctx.as_ptr());
        let user = STACK.user(ctx.as_ptr());
        if let Some(slot) = SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot)) {
            if kernel.is_none() {
                (*slot).user += times;
            } else {
                (*slot).kernel += times;
            }
        }
        let place = stacks::place(
            task,
            cgroup,
            user.unwrap_or_default(),
            kernel.unwrap_or_default(),
        );
        STACK.note(task, &place, times, 0);
    }
    0
}
