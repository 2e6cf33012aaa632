//! The memory of maps in the kernel, and what it would be on another machine.
//!
//! Maps that count have a block for each *possible* CPU (`/sys/devices/system/cpu/possible`), because
//! programs run on any of them; machines that could be given more have many of those. So the memory of
//! a lens is `once + cpus * (whole + slots + (places >> shrink))`, where `slots` grows with the number
//! of targets that have numbers of their own ([`MAX_TARGETS`]).

use std::ops::AddAssign;

use lens_common::limits::MAX_TARGETS;

/// Up to so many possible CPUs, tables are as large as they are meant to be.
const LARGE_UP_TO: usize = 32;
/// The most that is taken from a table: an eighth of it is left.
const SHRINK_AT_MOST: u32 = 3;

/// By how many powers of two the tables of places are smaller where `cpus` are possible.
pub(super) const fn shrink(cpus: usize) -> u32 {
    let mut shrink = 0;
    while shrink < SHRINK_AT_MOST && cpus > LARGE_UP_TO << shrink {
        shrink += 1;
    }
    shrink
}

/// What the block of a CPU is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Always the same.
    Whole,
    /// One entry a target.
    Slots,
    /// A table that is smaller where there are very many CPUs.
    Places,
}

/// Bytes of maps in the kernel, by what they depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapMemory {
    /// Whatever the machine is like.
    pub once: u64,
    /// For each possible CPU.
    pub a_cpu: u64,
    /// For each possible CPU, counters of targets.
    pub slots_a_cpu: u64,
    /// For each possible CPU, tables that are smaller where there are very many.
    pub places_a_cpu: u64,
    /// How many CPUs are possible.
    pub cpus: usize,
}

impl MapMemory {
    /// A map that takes `bytes`, `entries` of them for what is in it.
    pub(super) fn of(block: Option<Block>, bytes: u64, entries: u64, cpus: usize) -> Self {
        let mut memory = Self {
            once: bytes,
            cpus,
            ..Self::default()
        };
        let a_cpu = match block {
            None => return memory,
            Some(Block::Whole) => &mut memory.a_cpu,
            Some(Block::Slots) => &mut memory.slots_a_cpu,
            Some(Block::Places) => &mut memory.places_a_cpu,
        };
        *a_cpu = entries.checked_div(cpus as u64).unwrap_or_default();
        memory.once = bytes.saturating_sub(*a_cpu * cpus as u64);
        memory
    }

    /// All of it, on this machine.
    pub fn bytes(&self) -> u64 {
        self.once + self.cpus as u64 * (self.a_cpu + self.slots_a_cpu + self.places_a_cpu)
    }

    /// All of it where `cpus` are possible.
    pub fn bytes_with(&self, cpus: usize) -> u64 {
        let places = (self.places_a_cpu << shrink(self.cpus)) >> shrink(cpus);
        self.once + cpus as u64 * (self.a_cpu + self.slots_a_cpu + places)
    }

    /// The sum, as a person can check it.
    pub fn formula(&self) -> String {
        let kib = |bytes: u64| bytes / 1024;
        format!(
            "{} KiB = {} KiB + {} possible CPUs x ({} KiB + {MAX_TARGETS} targets x {} bytes + {} KiB of tables); with 256 CPUs {} MiB",
            kib(self.bytes()),
            kib(self.once),
            self.cpus,
            kib(self.a_cpu),
            self.slots_a_cpu / u64::from(MAX_TARGETS),
            kib(self.places_a_cpu),
            self.bytes_with(256) >> 20,
        )
    }
}

impl AddAssign for MapMemory {
    fn add_assign(&mut self, more: Self) {
        self.once += more.once;
        self.a_cpu += more.a_cpu;
        self.slots_a_cpu += more.slots_a_cpu;
        self.places_a_cpu += more.places_a_cpu;
        self.cpus = more.cpus;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_smaller_where_there_are_very_many_cpus() {
        let expected = [
            (1, 0),
            (32, 0),
            (33, 1),
            (64, 1),
            (65, 2),
            (128, 2),
            (129, 3),
            (4096, 3),
        ];
        for (cpus, by) in expected {
            assert_eq!(shrink(cpus), by, "{cpus}");
        }
    }

    #[test]
    fn a_machine_of_another_size_is_reckoned() {
        let mut memory = MapMemory::of(None, 1000, 900, 2);
        memory += MapMemory::of(Some(Block::Whole), 200, 200, 2);
        memory += MapMemory::of(Some(Block::Slots), 20, 20, 2);
        memory += MapMemory::of(Some(Block::Places), 84, 80, 2);
        assert_eq!(memory.bytes(), 1304);
        assert_eq!(memory.bytes_with(2), 1304);
        assert_eq!(memory.bytes_with(4), 1604);
        assert_eq!(memory.bytes_with(64), 1004 + 64 * (100 + 10 + 20));
        assert_eq!(memory.bytes_with(100), 1004 + 100 * (100 + 10 + 10));
    }
}
