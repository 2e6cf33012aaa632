//! What the probes cost: the kernel's own count of what their programs ran, and the memory of their
//! maps.
//!
//! Counting costs 65 to 70 ns a run (measured with empty programs), more than most of the programs
//! themselves. So the kernel counts only in windows, which whoever reads the probes opens.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    time::Duration,
};

use super::{
    map_memory::MapMemory,
    object::{Object, ProgramCost},
};
use crate::base::clock::{Clock as _, Moment, SystemClock};

/// What each probe's programs have cost, by the probe's name.
pub type Costs = BTreeMap<&'static str, Vec<ProgramCost>>;

/// A window in which the kernel counted.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// How long it was open.
    pub elapsed: Duration,
    /// What had been counted when it was opened.
    pub before: Costs,
    /// What had when it was closed.
    pub after: Costs,
}

impl Measured {
    /// CPU time that a probe's programs took in the window, as a part of one CPU's.
    pub fn part(&self, probe: &str) -> f64 {
        let sum = |costs: &Costs| {
            let of_probe = costs.get(probe).into_iter().flatten();
            of_probe.map(|cost| cost.run_ns).sum::<u64>()
        };
        let ns = sum(&self.after).saturating_sub(sum(&self.before));
        let elapsed = self.elapsed.as_nanos() as f64;
        if elapsed > 0.0 {
            ns as f64 / elapsed
        } else {
            0.0
        }
    }
}

/// The window, and what is known of the last one.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The kernel counts while this is open.
    window: Option<(OwnedFd, Moment, Costs)>,
    measured: Option<Measured>,
    /// Memory of the maps of each probe.
    memory: BTreeMap<&'static str, MapMemory>,
    /// Maps by id that are accounted for.
    maps: BTreeSet<u32>,
}

impl Ledger {
    /// Enters the memory of a probe's maps. Of a map that several share, the first one's.
    pub(super) fn enter(&mut self, probe: &'static str, object: &Object) {
        for (id, memory) in object.maps() {
            if self.maps.insert(id) {
                *self.memory.entry(probe).or_default() += memory;
            }
        }
    }

    /// Whether the kernel counts at present.
    pub(super) fn is_open(&self) -> bool {
        self.window.is_some()
    }

    /// Opens a window, unless the kernel refuses to count; `costs` is what it has counted so far.
    pub(super) fn open(&mut self, costs: Costs) {
        if let Ok(statistics) = aya::sys::enable_stats(aya::sys::Stats::RunTime) {
            self.window = Some((statistics, SystemClock.now(), costs));
        }
    }

    /// Closes it.
    pub(super) fn close(&mut self, costs: Costs) {
        self.measured = self.window.take().map(|(_, opened, before)| Measured {
            elapsed: SystemClock.now().since(&opened),
            before,
            after: costs,
        });
    }

    /// The window that was closed last, if it was closed at the last reading.
    pub(super) fn measured(&self) -> Option<&Measured> {
        self.measured.as_ref()
    }

    /// Memory of a probe's maps in the kernel, in bytes.
    pub(super) fn map_bytes(&self, probe: &str) -> u64 {
        self.memory.get(probe).map_or(0, MapMemory::bytes)
    }

    /// Memory of all maps.
    pub(super) fn map_memory(&self) -> MapMemory {
        let mut sum = MapMemory::default();
        for memory in self.memory.values() {
            sum += *memory;
        }
        sum
    }
}
