//! What is kept in the store, and under which kinds.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    anomaly::{Incident, Kept},
    base::snapshot::Snapshot,
    investigate::Insight,
    llm::outbound::Sent,
    store::{Kind, Store, StoreError},
    telemetry::{Event, Telemetry},
};

/// Incidents, as JSON.
pub(crate) const INCIDENT: Kind = Kind("incident");
/// Insights, as JSON.
pub(crate) const INSIGHT: Kind = Kind("insight");
/// Snapshots that an insight cites, as JSON.
pub(crate) const SNAPSHOT: Kind = Kind("snapshot");
/// What operators notified, as JSON.
pub(crate) const NOTIFICATION: Kind = Kind("notification");
/// What was sent to providers, as JSON.
pub(crate) const SENT: Kind = Kind("sent");
/// What models have taken, as JSON.
pub(crate) const BUDGET: Kind = Kind("budget");
/// The one id of that record.
pub(crate) const BUDGET_ID: &str = "spent";
/// All baselines in one record, as JSON.
pub(crate) const BASELINES: Kind = Kind("baselines");
/// The probes as they were last, in one record, as JSON.
pub(crate) const PROBES: Kind = Kind("probes");
/// The targets as they were last, in one record, as JSON.
pub(crate) const TARGETS: Kind = Kind("targets");
/// The one id of a record that holds all of a kind.
pub(crate) const ALL: &str = "all";
/// The format of all of them.
const VERSION: u32 = 1;

/// Records of a kind that are kept.
const KEPT: u32 = 10_000;

/// Writes `value`; a failure is told, not passed on: what is in memory stays.
pub(super) fn put<T: Serialize>(
    store: &Store,
    telemetry: &Telemetry,
    (kind, id): (Kind, &str),
    at: Timestamp,
    value: &T,
    now: bool,
) {
    let written = serde_json::to_vec(value)
        .map_err(|why| why.to_string())
        .and_then(|bytes| {
            let put = if now { Store::put_now } else { Store::put };
            put(store, kind, id, VERSION, at, bytes).map_err(|why| why.to_string())
        });
    if let Err(why) = written {
        telemetry.emit(Event::StoreError {
            why: format!("{} {id}: {why}", kind.0),
        });
    }
}

/// Keeps the newest records of each kind only.
pub(super) fn retain(store: &Store, telemetry: &Telemetry) {
    for kind in [INCIDENT, INSIGHT, SNAPSHOT, NOTIFICATION] {
        // An insight cites a handful of snapshots.
        let kept = if kind == SNAPSHOT { KEPT * 4 } else { KEPT };
        if let Err(why) = store.retain(kind, kept) {
            telemetry.emit(Event::StoreError {
                why: why.to_string(),
            });
        }
    }
}

/// The records of a kind, newest first; those that cannot be read are left out.
pub(crate) fn list<T: DeserializeOwned>(
    store: &Store,
    kind: Kind,
    since: Option<Timestamp>,
    limit: u32,
) -> Result<Vec<(Timestamp, T)>, StoreError> {
    let records = store.list(kind, since, limit)?;
    let parse =
        |r: crate::store::Record| Some((r.changed_at, serde_json::from_slice(&r.bytes).ok()?));
    Ok(records.into_iter().filter_map(parse).collect())
}

/// The list that is one record; empty if there is none.
pub(crate) fn whole<T: DeserializeOwned>(store: &Store, kind: Kind) -> Result<Vec<T>, StoreError> {
    let record = store.get(kind, ALL)?;
    let list = record.and_then(|r| serde_json::from_slice(&r.bytes).ok());
    Ok(list.unwrap_or_default())
}

/// A payload that left the host.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub(crate) struct SentRecord {
    /// When.
    pub(crate) at: Timestamp,
    /// To whom.
    pub(crate) provider: String,
    /// For which model.
    pub(crate) model: String,
    /// About which incident.
    pub(crate) incident: Option<String>,
    /// All of it, as it left.
    pub(crate) bytes: String,
}

impl From<&Sent> for SentRecord {
    fn from(sent: &Sent) -> Self {
        Self {
            at: sent.at,
            provider: sent.provider.clone(),
            model: sent.model.clone(),
            incident: sent.incident.clone(),
            bytes: sent.bytes.clone(),
        }
    }
}

/// What is remembered of earlier runs.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub(super) incidents: Vec<(Timestamp, Incident)>,
    pub(super) insights: Vec<Insight>,
    pub(super) baselines: Vec<Kept>,
}

/// Reads what earlier runs have left.
pub(super) fn remember(store: &Store, limit: u32) -> Result<Remembered, StoreError> {
    Ok(Remembered {
        incidents: list(store, INCIDENT, None, limit)?,
        insights: list(store, INSIGHT, None, limit)?
            .into_iter()
            .map(|(_, i)| i)
            .collect(),
        baselines: whole(store, BASELINES)?,
    })
}

/// Writes the snapshots that `insight` cites, then the insight; returns once they are durable.
pub(super) fn put_insight(
    store: &Store,
    telemetry: &Telemetry,
    insight: &Insight,
    snapshot: impl Fn(&crate::base::snapshot::SnapshotId) -> Option<Snapshot>,
) {
    let cited = insight
        .claims
        .iter()
        .flat_map(|c| &c.evidence)
        .map(|e| &e.snapshot);
    let cited: std::collections::BTreeSet<_> = cited.collect();
    for id in cited {
        if let Some(found) = snapshot(id) {
            put(
                store,
                telemetry,
                (SNAPSHOT, id.as_str()),
                insight.created_at,
                &found,
                false,
            );
        }
    }
    put(
        store,
        telemetry,
        (INSIGHT, &insight.id),
        insight.created_at,
        insight,
        true,
    );
}
