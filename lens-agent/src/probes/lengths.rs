//! The lengths of an object's waits, those under way included.

use aya::maps::{HashMap, MapData};
use lens_common::{hist::BUCKETS, lengths, limits::LENGTHS};
use serde::{Deserialize, Serialize};

use super::{
    Fill, ProbeError,
    batch::entries,
    keyed::{Strangers, empty, take},
    mapped::Mapped,
    object::{Object, ObjectError, Plan},
    targets::Targets,
};
use crate::base::clock::{Clock as _, SystemClock};

/// Waits of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// How many have ended.
    pub ended: u64,
    /// Their length in all, those under way included as far as they have come.
    pub ns: u64,
    /// The longest that ended since the reading before, or is under way.
    pub max_ns: u64,
    /// Lengths of those that ended, by power of two; not of the targets beyond the limit.
    pub hist: lens_common::hist::Hist,
    /// How many are under way.
    pub under_way: u64,
}

/// What an object keeps of its waits.
#[derive(Debug)]
pub(super) struct Lengths {
    probe: &'static str,
    ended: Mapped<lengths::Lengths>,
    /// `None` where waits are known with their length when they begin.
    under_way: Option<HashMap<MapData, u32, [u64; 4]>>,
    strangers: Strangers,
}

impl Lengths {
    /// Gives the object room for them.
    pub(super) fn plan(plan: &mut Plan<'_>) {
        plan.places("LENGTHS", LENGTHS);
    }

    /// Maps them.
    pub(super) fn of(probe: &'static str, object: &mut Object) -> Result<Self, ObjectError> {
        Ok(Self {
            under_way: Some(object.take_map("UNDER_WAY")?),
            ..Self::of_known(probe, object)?
        })
    }

    /// The same for an object that knows how long a wait will be when it begins.
    pub(super) fn of_known(probe: &'static str, object: &Object) -> Result<Self, ObjectError> {
        Ok(Self {
            probe,
            ended: object.mapped_places("LENGTHS", LENGTHS)?,
            under_way: None,
            strangers: Strangers::default(),
        })
    }

    /// Forgets what is under way: it may have ended, and nobody saw it.
    pub(super) fn forget(&mut self) {
        if let Some(under_way) = &mut self.under_way {
            empty(under_way);
        }
    }

    /// Has `with` add the lengths of waits that have ended to those of a cgroup and a kind. How full
    /// the table was.
    pub(super) fn add_ended(
        &mut self,
        targets: &Targets,
        mut with: impl FnMut(u64, u64, &mut dyn FnMut(&mut Waits)),
    ) -> Fill {
        self.strangers.next_reading();
        let table = &self.ended;
        self.strangers.sweep(table, targets, |cpu, i, at| {
            with(at.cgroup, at.key, &mut |waits| {
                if let Some(place) = table.at(cpu, i) {
                    const MAX: usize = std::mem::offset_of!(lengths::Lengths, max_ns);
                    let longest = take(place.cast::<u64>().wrapping_add(MAX / 8));
                    waits.max_ns = waits.max_ns.max(longest);
                }
                for bucket in 0..BUCKETS {
                    waits.hist[bucket] += at.hist[bucket];
                }
            });
        })
    }

    /// The waits that have not ended: cgroup, kind, and how long so far.
    pub(super) fn under_way(&self) -> Result<Vec<(u64, u64, u64)>, ProbeError> {
        const {
            use std::mem::offset_of;
            // The order in which the words are taken apart below.
            assert!(offset_of!(lengths::UnderWay, cgroup) == 0);
            assert!(offset_of!(lengths::UnderWay, since) == 8);
            assert!(offset_of!(lengths::UnderWay, kind) == 16);
        }
        let Some(under_way) = &self.under_way else {
            return Ok(Vec::new());
        };
        let now = now_ns();
        let waits = entries(under_way).map_err(|why| ProbeError::Read {
            probe: self.probe,
            why: format!("waits under way: {why}"),
        })?;
        let waits = waits.into_iter();
        Ok(waits
            .map(|(_, [cgroup, since, kind, _])| (cgroup, kind, now.saturating_sub(since)))
            .collect())
    }
}

impl Waits {
    /// With one more that has come so far.
    pub(super) fn add_under_way(&mut self, ns: u64) {
        self.ns += ns;
        self.max_ns = self.max_ns.max(ns);
        self.under_way += 1;
    }
}

/// Now, on the clock by which programs note when something began.
pub(super) fn now_ns() -> u64 {
    u64::try_from(SystemClock.now().mono.as_nanos()).unwrap_or(u64::MAX)
}
