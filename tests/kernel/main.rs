//! What the agent measures in this kernel: real load, real counters. Needs root.

#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod objects;
#[cfg(test)]
mod syscalls;
#[cfg(test)]
mod trace;
