//! The interrupts object: time in interrupts and softirqs, whom they interrupt, and timers set.

use crate::{counters, plain};

/// Softirqs, as the kernel numbers them: indexes into [`Interrupts::soft`].
pub const SOFTIRQS: usize = 10;

/// Handlers of one kind that ran.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Handled {
    /// How often.
    pub n: u64,
    /// For how long; a softirq without the interrupts that interrupted it.
    pub ns: u64,
}

/// What one CPU handled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Interrupts {
    /// Handlers of interrupts.
    pub hard: Handled,
    /// Softirqs by number.
    pub soft: [Handled; SOFTIRQS],
}

/// What one CPU is handling.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Handling {
    /// When the handler of an interrupt began; 0 if none runs.
    pub hard_at: u64,
    /// When the softirq began; 0 if none runs.
    pub soft_at: u64,
    /// Time in interrupts since then.
    pub within_soft_ns: u64,
}

/// The counters of one target on one CPU. Each field is written by one program only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct InterruptSlot {
    /// Time that handlers of interrupts took while its tasks ran.
    pub hard_ns: u64,
    /// Time that softirqs took while its tasks ran.
    pub soft_ns: u64,
    /// High-resolution timers that were started while its tasks ran.
    pub timers: u64,
}

counters!(
    Handled: 16,
    Interrupts: 16 * (1 + SOFTIRQS),
    InterruptSlot: 24,
);
plain!(Handling: 24);
