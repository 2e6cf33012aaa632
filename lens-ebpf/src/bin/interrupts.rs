//! Time in interrupts and softirqs, by CPU and by whom they interrupt; timers by who starts them.
//!
//! A handler works for whoever the packet or the timer is for; who is interrupted has nothing to do
//! with it, and only loses the time. Handlers of interrupts do not nest, nor do softirqs; an interrupt
//! may come during a softirq, and its time is not the softirq's.
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
    macros::{btf_tracepoint, map},
    maps::Array,
    programs::BtfTracePointContext,
};
use lens_common::{
    interrupts::{Handled, Handling, InterruptSlot, Interrupts, SOFTIRQS},
    limits::SLOTS,
};
use lens_ebpf::{
    clock::now,
    field::read,
    offsets, per_cpu, sample,
    target::{cgroup_of, slot_of},
    task::current,
};

#[map]
static SLOT: Array<InterruptSlot> = Array::with_max_entries(SLOTS, per_cpu::MAPPED);
#[map]
static HANDLED: Array<Interrupts> = Array::with_max_entries(1, per_cpu::MAPPED);
#[map]
static HANDLING: Array<Handling> = Array::with_max_entries(1, per_cpu::MAPPED);

offsets! {
    /// `task_struct.pid`
    TASK_PID,
}

/// The counters of the cgroup whose task is interrupted; `None` if it is idle or not watched.
#[inline(always)]
fn interrupted() -> Option<*mut InterruptSlot> {
    // SAFETY: the current task is typed.
    let cgroup = unsafe {
        let task = current();
        if read::<u32>(task, &TASK_PID) == 0 {
            return None;
        }
        cgroup_of(task)
    };
    SLOT.get_ptr_mut(per_cpu::index(SLOTS, slot_of(cgroup)?))
}

/// `irq_handler_entry(int irq, struct irqaction *action)`
#[btf_tracepoint(function = "irq_handler_entry")]
fn irq_handler_entry(_: BtfTracePointContext) -> i32 {
    if let Some(handling) = HANDLING.get_ptr_mut(per_cpu::cpu()) {
        // SAFETY: this CPU's place.
        unsafe { (*handling).hard_at = now() }
    }
    0
}

/// `irq_handler_exit(int irq, struct irqaction *action, int ret)`
#[btf_tracepoint(function = "irq_handler_exit")]
fn irq_handler_exit(_: BtfTracePointContext) -> i32 {
    let cpu = per_cpu::cpu();
    let (Some(handling), Some(handled)) = (HANDLING.get_ptr_mut(cpu), HANDLED.get_ptr_mut(cpu))
    else {
        return 0;
    };
    // SAFETY: this CPU's places.
    unsafe {
        let since = (*handling).hard_at;
        if since == 0 {
            return 0;
        }
        let ns = now().wrapping_sub(since);
        (*handling).hard_at = 0;
        (*handling).within_soft_ns += ns;
        add(&raw mut (*handled).hard, ns);
        if let Some(slot) = interrupted() {
            (*slot).hard_ns += ns;
        }
    }
    0
}

/// `softirq_entry(unsigned int vec_nr)`
#[btf_tracepoint(function = "softirq_entry")]
fn softirq_entry(_: BtfTracePointContext) -> i32 {
    if let Some(handling) = HANDLING.get_ptr_mut(per_cpu::cpu()) {
        // SAFETY: this CPU's place.
        unsafe {
            (*handling).within_soft_ns = 0;
            (*handling).soft_at = now();
        }
    }
    0
}

/// `softirq_exit(unsigned int vec_nr)`
#[btf_tracepoint(function = "softirq_exit")]
fn softirq_exit(ctx: BtfTracePointContext) -> i32 {
    let number = ctx.arg::<u64>(0) as u32 as usize;
    let cpu = per_cpu::cpu();
    let (Some(handling), Some(handled)) = (HANDLING.get_ptr_mut(cpu), HANDLED.get_ptr_mut(cpu))
    else {
        return 0;
    };
    // SAFETY: this CPU's places; the number is checked.
    unsafe {
        let since = (*handling).soft_at;
        if since == 0 || number >= SOFTIRQS {
            return 0;
        }
        let ns = now()
            .wrapping_sub(since)
            .wrapping_sub((*handling).within_soft_ns);
        (*handling).soft_at = 0;
        add((*handled).soft.as_mut_ptr().add(number), ns);
        if let Some(slot) = interrupted() {
            (*slot).soft_ns += ns;
        }
    }
    0
}

#[inline(always)]
unsafe fn add(handled: *mut Handled, ns: u64) {
    // SAFETY: the caller's.
    unsafe {
        (*handled).n += 1;
        (*handled).ns += ns;
    }
}

/// `hrtimer_start(struct hrtimer *hrtimer, enum hrtimer_mode mode, bool was_armed)`, without
/// `was_armed` before 6.18. Also each tick of the scheduler, in the name of whom it interrupts.
#[btf_tracepoint(function = "hrtimer_start")]
fn hrtimer_start(_: BtfTracePointContext) -> i32 {
    let weight = sample::weight();
    if weight != 0
        && let Some(slot) = interrupted()
    {
        // SAFETY: this CPU's counters.
        unsafe { (*slot).timers += weight }
    }
    0
}
