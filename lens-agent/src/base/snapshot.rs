//! What a skill saw in one scope at one moment.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{quality::Quality, scope::Scope};

/// Who caused a wait. Names that are no cgroup have no leading `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// Another cgroup.
    Cgroup(Arc<str>),
    /// The waiter's own cgroup: its siblings, or its own quota.
    Own,
    /// Kernel threads, interrupts, the hypervisor.
    Kernel,
    /// Nobody: the resource was free.
    Idle,
    /// Not known.
    Unattributed,
    /// Cgroups that found no room in the pair table.
    Other,
}

impl By {
    /// The name as it is written: a path, or one of the closed words.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Cgroup(path) => path,
            Self::Own => "self",
            Self::Kernel => "kernel",
            Self::Idle => "idle",
            Self::Unattributed => "unattributed",
            Self::Other => "other",
        }
    }
}

impl From<&str> for By {
    fn from(text: &str) -> Self {
        match text {
            "self" => Self::Own,
            "kernel" => Self::Kernel,
            "idle" => Self::Idle,
            "other" => Self::Other,
            path if path.starts_with('/') => Self::Cgroup(path.into()),
            _ => Self::Unattributed,
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for By {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for By {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.as_str().into())
    }
}

/// The part of `metric` that `by` caused, in the metric's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The victim's metric.
    pub metric: Arc<str>,
    /// Who caused it.
    pub by: By,
    /// How much of it.
    pub value: f64,
}

/// What `metric` is for one of the things over which it was taken together: a mount, a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The metric.
    pub metric: Arc<str>,
    /// What the thing is called.
    pub item: Arc<str>,
    /// The number, in the metric's unit.
    pub value: f64,
}

/// `TICK/SKILL/SCOPE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(Arc<str>);

impl SnapshotId {
    /// The id of `skill`'s snapshot of `scope` at the agent's `tick`.
    pub fn new(tick: u64, skill: &str, scope: &Scope) -> Self {
        Self(format!("{tick}/{skill}/{scope}").into())
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tick, skill and scope, if it is well formed.
    pub fn parts(&self) -> Option<(u64, &str, Scope)> {
        let (tick, rest) = self.0.split_once('/')?;
        let (skill, scope) = rest.split_once('/')?;
        Some((tick.parse().ok()?, skill, scope.parse().ok()?))
    }
}

impl From<&str> for SnapshotId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A flat, ordered map of numbers, and who caused what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `TICK/SKILL/SCOPE`.
    pub id: SnapshotId,
    /// The skill's id.
    pub skill: Arc<str>,
    /// Where.
    pub scope: Scope,
    /// When the reading was taken.
    pub taken_at: Timestamp,
    /// The interval that rates refer to.
    pub elapsed_ms: u64,
    /// Metric name to number; what could not be seen is absent, never 0.
    pub metrics: BTreeMap<Arc<str>, f64>,
    /// Victim's side of the victim-aggressor matrix, largest first, bounded.
    pub pairs: Vec<Pair>,
    /// Numbers by thing, where one was taken over several of them, largest first, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
    /// What these numbers did not see.
    pub quality: Quality,
}

impl Snapshot {
    /// The number of `metric`, or the part of it that `by` caused.
    pub fn value(&self, metric: &str, by: Option<&By>) -> Option<f64> {
        match by {
            None => self.metrics.get(metric).copied(),
            Some(by) => self
                .pairs
                .iter()
                .find(|p| &*p.metric == metric && p.by == *by)
                .map(|p| p.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_id_keeps_the_slashes_of_its_scope() {
        let id = SnapshotId::new(18342, "scheduler", &Scope::cgroup("/shop/cart"));
        assert_eq!(id.as_str(), "18342/scheduler//shop/cart");
        assert_eq!(
            id.parts().unwrap(),
            (18342, "scheduler", Scope::cgroup("/shop/cart"))
        );
        assert_eq!(
            SnapshotId::new(1, "host", &Scope::Host).parts().unwrap().2,
            Scope::Host
        );
    }

    #[test]
    fn who_caused_it_survives_json() {
        for by in [
            By::Cgroup("/a".into()),
            By::Own,
            By::Kernel,
            By::Idle,
            By::Unattributed,
            By::Other,
        ] {
            let text = serde_json::to_string(&by).unwrap();
            assert_eq!(serde_json::from_str::<By>(&text).unwrap(), by);
        }
    }
}
