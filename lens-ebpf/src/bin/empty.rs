//! Nothing, at the hooks of the always-on probes: what attaching alone costs. For `xtask bench`
//! only; the agent does not carry it.
#![no_std]
#![no_main]

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use lens_ebpf as _;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(_: BtfTracePointContext) -> i32 {
    0
}
