//! The last half hour of snapshots, in memory: the newest as they are, the rest one compressed
//! block a tick.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::{
    clock::Moment,
    ring::Ring,
    scope::Scope,
    snapshot::{By, Pair, Snapshot, SnapshotId},
};

/// How far back snapshots are kept.
pub const KEPT: Duration = Duration::from_mins(30);
/// Ticks that are kept uncompressed: what investigations look at all the time.
const RECENT: usize = 64;
/// Blocks at the most, whatever the interval.
const BLOCKS: usize = 1800;
/// Compression that costs about a millisecond a tick.
const LEVEL: i32 = 1;

/// All snapshots of one moment.
#[derive(Clone, Debug)]
pub struct Tick {
    /// Counts up from the agent's first.
    pub number: u64,
    /// When the readings were taken.
    pub at: Moment,
    /// The interval that rates refer to.
    pub elapsed: Duration,
    /// By scope; metric names are unique over a scope's snapshots.
    pub scopes: BTreeMap<Scope, Vec<Snapshot>>,
}

impl Tick {
    /// Sorts `snapshots` by scope.
    pub fn new(number: u64, at: Moment, elapsed: Duration, snapshots: Vec<Snapshot>) -> Self {
        let mut scopes: BTreeMap<Scope, Vec<Snapshot>> = BTreeMap::new();
        for snapshot in snapshots {
            scopes
                .entry(snapshot.scope.clone())
                .or_default()
                .push(snapshot);
        }
        Self {
            number,
            at,
            elapsed,
            scopes,
        }
    }

    /// Every snapshot.
    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.scopes.values().flatten()
    }

    /// The snapshot of `scope` that holds `metric`.
    pub fn with(&self, scope: &Scope, metric: &str) -> Option<&Snapshot> {
        self.scopes
            .get(scope)?
            .iter()
            .find(|s| s.metrics.contains_key(metric))
    }

    /// The number of `metric` in `scope`.
    pub fn value(&self, scope: &Scope, metric: &str) -> Option<f64> {
        self.with(scope, metric)?.value(metric, None)
    }

    /// Who caused `metric` in `scope`, largest first.
    pub fn pairs<'t>(&'t self, scope: &Scope, metric: &'t str) -> impl Iterator<Item = &'t Pair> {
        let snapshot = self.with(scope, metric);
        snapshot
            .into_iter()
            .flat_map(|s| &s.pairs)
            .filter(move |p| &*p.metric == metric)
    }

    /// The part of `metric` in `scope` that `by` caused; 0 when others caused all of it.
    pub fn pair(&self, scope: &Scope, metric: &str, by: &By) -> Option<f64> {
        let snapshot = self.with(scope, metric)?;
        Some(snapshot.value(metric, Some(by)).unwrap_or_default())
    }
}

#[derive(Serialize, Deserialize)]
struct Block {
    number: u64,
    mono: Duration,
    wall: Timestamp,
    elapsed: Duration,
    snapshots: Vec<Snapshot>,
}

#[derive(Debug)]
struct Packed {
    number: u64,
    at: Moment,
    bytes: Vec<u8>,
}

/// The ring of ticks.
#[derive(Debug)]
pub struct History {
    recent: Ring<Arc<Tick>>,
    packed: Ring<Packed>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            recent: Ring::new(RECENT),
            packed: Ring::new(BLOCKS),
        }
    }
}

impl History {
    /// Adds the newest tick.
    pub fn push(&mut self, tick: Arc<Tick>) {
        let now = tick.at;
        if let Some(old) = self.recent.push(tick)
            && let Some(packed) = pack(&old)
        {
            self.packed.push(packed);
        }
        self.packed.drop_oldest_while(|p| now.since(&p.at) > KEPT);
    }

    /// The newest tick.
    pub fn newest(&self) -> Option<&Arc<Tick>> {
        self.recent.last()
    }

    /// The uncompressed ticks, oldest first.
    pub fn recent(&self) -> impl DoubleEndedIterator<Item = &Arc<Tick>> {
        self.recent.iter()
    }

    /// The snapshot with this id, if it is not older than [`KEPT`].
    pub fn get(&self, id: &SnapshotId) -> Option<Snapshot> {
        let (number, ..) = id.parts()?;
        if let Some(tick) = self.recent.iter().find(|t| t.number == number) {
            return tick.snapshots().find(|s| s.id == *id).cloned();
        }
        let packed = self.packed.iter().find(|p| p.number == number)?;
        unpack(packed)?.snapshots.into_iter().find(|s| s.id == *id)
    }

    /// How many ticks are kept, and the bytes of the compressed ones.
    pub fn size(&self) -> (usize, usize) {
        let bytes = self.packed.iter().map(|p| p.bytes.len()).sum();
        (self.recent.len() + self.packed.len(), bytes)
    }
}

fn pack(tick: &Tick) -> Option<Packed> {
    let block = Block {
        number: tick.number,
        mono: tick.at.mono,
        wall: tick.at.wall,
        elapsed: tick.elapsed,
        snapshots: tick.snapshots().cloned().collect(),
    };
    let json = serde_json::to_vec(&block).ok()?;
    let bytes = zstd::bulk::compress(&json, LEVEL).ok()?;
    Some(Packed {
        number: tick.number,
        at: tick.at,
        bytes,
    })
}

fn unpack(packed: &Packed) -> Option<Block> {
    let json = zstd::stream::decode_all(packed.bytes.as_slice()).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{
        clock::{Clock as _, ManualClock},
        quality::Quality,
    };

    #[test]
    fn a_compressed_snapshot_comes_back_whole_and_an_old_one_is_gone() {
        let clock = ManualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let mut history = History::default();
        let step = Duration::from_secs(10);
        for number in 0..200 {
            clock.advance(step);
            let at = clock.now();
            let snapshot = Snapshot {
                id: SnapshotId::new(number, "scheduler", &Scope::Host),
                skill: "scheduler".into(),
                scope: Scope::Host,
                taken_at: at.wall,
                elapsed_ms: 10_000,
                metrics: [("switches_per_sec".into(), number as f64)].into(),
                pairs: Vec::new(),
                items: Vec::new(),
                quality: Quality::default(),
            };
            history.push(Arc::new(Tick::new(number, at, step, vec![snapshot])));
        }
        let value = |number| {
            let id = SnapshotId::new(number, "scheduler", &Scope::Host);
            history
                .get(&id)
                .and_then(|s| s.value("switches_per_sec", None))
        };
        assert_eq!(value(199), Some(199.0));
        assert_eq!(value(100), Some(100.0), "compressed");
        assert_eq!(value(5), None, "older than half an hour");
        assert_eq!(value(500), None);
    }
}
