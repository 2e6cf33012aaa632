//! What the agent measures in this kernel: real load, real counters. Needs root.

#[cfg(test)]
mod block;
#[cfg(test)]
mod files;
#[cfg(test)]
mod footprint;
#[cfg(test)]
mod governed;
#[cfg(test)]
mod governor;
#[cfg(test)]
mod heap;
#[cfg(test)]
mod interrupts;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod locks;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod model;
#[cfg(test)]
mod net;
#[cfg(test)]
mod objects;
#[cfg(test)]
mod probe_log;
#[cfg(test)]
mod profile;
#[cfg(test)]
mod reclaim;
#[cfg(test)]
mod sched;
#[cfg(test)]
mod story;
#[cfg(test)]
mod supervision;
#[cfg(test)]
mod syscalls;
#[cfg(test)]
mod targets;
#[cfg(test)]
mod trace;
#[cfg(test)]
mod trouble;
