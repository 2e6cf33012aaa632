//! What the agent measures in this kernel: real load, real counters. Needs root.

#[cfg(test)]
mod sched;
#[cfg(test)]
mod targets;
