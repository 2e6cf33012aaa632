//! The one view of the running agent that everything outside sees it by.
//!
//! The agent writes into it, the outputs read from it. Its JSON shapes are a promise.

mod investigation;
mod on_demand;
mod profiled;
mod since;
mod traced;
mod view;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use jiff::Timestamp;

pub use self::{
    investigation::{Asked, Investigation, InvestigationRequest, Progress},
    on_demand::{OnDemand, Refused, Tracing},
    profiled::{CgroupProfile, Profile, StackTime},
    since::{SinceError, since},
    traced::{Bar, Caller, Traced},
    view::{ProbeState, ProbeStatus, ProgramStatus, SkillEntry, Status, TargetStatus},
};
use crate::{
    anomaly::{self, Incident, Severity},
    base::{
        scope::Scope,
        snapshot::{Snapshot, SnapshotId},
    },
    history::{History, Tick},
    investigate::Insight,
    probes::TraceRequest,
    skills,
    supervise::{Node, Supervisor},
    telemetry::{CounterValue, Telemetry},
};

/// Incidents and insights kept in memory; older ones are in the store.
const KEPT: usize = 1000;

/// Investigations kept that somebody asked for.
const INVESTIGATIONS: usize = 100;

/// The view. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    telemetry: Telemetry,
    supervisor: Supervisor,
    on_demand: OnceLock<Arc<dyn OnDemand>>,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    incidents: BTreeMap<Arc<str>, (Timestamp, Incident)>,
    insights: BTreeMap<Arc<str>, Insight>,
    investigations: BTreeMap<Arc<str>, Investigation>,
    asked: u64,
    history: History,
    status: Status,
    probes: Vec<ProbeStatus>,
    targets: Vec<TargetStatus>,
}

impl Api {
    /// Empty, and not ready.
    pub fn new(telemetry: Telemetry, supervisor: Supervisor) -> Self {
        Self(Arc::new(Inner {
            telemetry,
            supervisor,
            on_demand: OnceLock::new(),
            state: RwLock::default(),
        }))
    }

    // What the agent writes.

    /// Takes in a new or changed incident.
    pub fn put_incident(&self, incident: Incident, changed_at: Timestamp) {
        let incidents = &mut self.write().incidents;
        incidents.insert(incident.id.clone(), (changed_at, incident));
        while incidents.len() > KEPT {
            incidents.pop_first();
        }
    }

    /// Takes in a new insight.
    pub fn put_insight(&self, insight: Insight) {
        let insights = &mut self.write().insights;
        insights.insert(insight.id.clone(), insight);
        while insights.len() > KEPT {
            insights.pop_first();
        }
    }

    /// Takes in a tick.
    pub fn put_tick(&self, tick: Arc<Tick>) {
        self.write().history.push(tick);
    }

    /// Changes what is shown of how the agent is.
    pub fn update_status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.write().status);
    }

    /// Takes in how the probes are.
    pub fn put_probes(&self, probes: Vec<ProbeStatus>) {
        self.write().probes = probes;
    }

    /// Takes in which cgroups are watched.
    pub fn put_targets(&self, targets: Vec<TargetStatus>) {
        self.write().targets = targets;
    }

    /// Who does what is asked for; the first that is named stays.
    pub fn set_on_demand(&self, agent: Arc<dyn OnDemand>) {
        // Named twice only by a mistake in the agent.
        let _ = self.0.on_demand.set(agent);
    }

    /// An investigation is over.
    fn investigated(&self, id: &str, incidents: Vec<Arc<str>>, troubles: Vec<String>) {
        let newest = self.insights(None, false);
        let answers = newest.iter().filter(|i| incidents.contains(&i.incident));
        let insights = answers.map(|i| i.id.clone()).collect();
        if let Some(investigation) = self.write().investigations.get_mut(id) {
            investigation.progress = Progress::Done;
            investigation.incidents = incidents;
            investigation.insights = insights;
            investigation.troubles = troubles;
        }
    }

    // What can be asked for.

    /// Asks for an investigation.
    pub fn investigate(
        &self,
        request: InvestigationRequest,
        now: Timestamp,
    ) -> Result<Investigation, Refused> {
        let agent = self.on_demand()?;
        let investigation = {
            let mut state = self.write();
            state.asked += 1;
            let id = format!("{:x}-{}", now.as_millisecond(), state.asked);
            let investigation = Investigation {
                id: id.into(),
                asked_at: now,
                request,
                progress: Progress::Running,
                incidents: Vec::new(),
                insights: Vec::new(),
                troubles: Vec::new(),
            };
            let all = &mut state.investigations;
            all.insert(investigation.id.clone(), investigation.clone());
            while all.len() > INVESTIGATIONS {
                all.pop_first();
            }
            investigation
        };
        let asked = Asked::new(self.clone(), &investigation);
        if let Err(why) = agent.investigate(asked) {
            self.write().investigations.remove(&investigation.id);
            return Err(why);
        }
        Ok(investigation)
    }

    /// Traces a function; dropping the future ends the trace.
    pub async fn trace(&self, request: TraceRequest) -> Result<Traced, Refused> {
        let reading = self.on_demand()?.trace(request).await?;
        Ok(Traced::from(&*reading))
    }

    fn on_demand(&self) -> Result<&Arc<dyn OnDemand>, Refused> {
        let starting = || Refused::Busy("the agent is starting; ask again".to_owned());
        self.0.on_demand.get().ok_or_else(starting)
    }

    // What everybody reads.

    /// Investigations that were asked for, newest first.
    pub fn investigations(&self) -> Vec<Investigation> {
        let state = self.read();
        state.investigations.values().rev().cloned().collect()
    }

    /// One of them.
    pub fn investigation(&self, id: &str) -> Option<Investigation> {
        self.read().investigations.get(id).cloned()
    }

    /// Incidents that changed at `since` or later, newest first.
    pub fn incidents(&self, since: Option<Timestamp>) -> Vec<Incident> {
        let state = self.read();
        let changed = state.incidents.values().rev();
        let of_time = changed.filter(|(at, _)| since.is_none_or(|since| *at >= since));
        of_time.map(|(_, incident)| incident.clone()).collect()
    }

    /// How many incidents are open, by how bad they are.
    pub fn open_incidents(&self) -> [(Severity, usize); 3] {
        let state = self.read();
        let open = |severity| {
            let incidents = state.incidents.values().map(|(_, incident)| incident);
            incidents
                .filter(|i| i.state == anomaly::State::Open && i.severity == severity)
                .count()
        };
        [Severity::Info, Severity::Warning, Severity::Critical].map(|s| (s, open(s)))
    }

    /// Insights said at `since` or later, newest first; with `all` also those superseded.
    pub fn insights(&self, since: Option<Timestamp>, all: bool) -> Vec<Insight> {
        let state = self.read();
        newest_insights(state.insights.values().cloned().collect(), since, all)
    }

    /// One insight.
    pub fn insight(&self, id: &str) -> Option<Insight> {
        self.read().insights.get(id).cloned()
    }

    /// One snapshot of the last half hour.
    pub fn snapshot(&self, id: &SnapshotId) -> Option<Snapshot> {
        self.read().history.get(id)
    }

    /// The newest snapshots, of this scope only if one is given.
    pub fn snapshots(&self, scope: Option<&Scope>) -> Vec<Snapshot> {
        let state = self.read();
        let Some(newest) = state.history.newest() else {
            return Vec::new();
        };
        newest
            .snapshots()
            .filter(|s| scope.is_none_or(|scope| s.scope == *scope))
            .cloned()
            .collect()
    }

    /// The uncompressed ticks, oldest first.
    pub fn ticks(&self) -> Vec<Arc<Tick>> {
        self.read().history.recent().cloned().collect()
    }

    /// Ticks of the history, and the bytes of the compressed ones.
    pub fn history_size(&self) -> (usize, usize) {
        self.read().history.size()
    }

    /// How the agent is.
    pub fn status(&self) -> Status {
        self.read().status.clone()
    }

    /// How the probes are.
    pub fn probes(&self) -> Vec<ProbeStatus> {
        self.read().probes.clone()
    }

    /// Which cgroups are watched.
    pub fn targets(&self) -> Vec<TargetStatus> {
        self.read().targets.clone()
    }

    /// The supervision tree.
    pub fn tree(&self) -> Node {
        self.0.supervisor.tree()
    }

    /// The agent's counters.
    pub fn counters(&self) -> Vec<CounterValue> {
        self.0.telemetry.counters()
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of `insights`, those said at `since` or later, newest first; without `all` only the last of
/// each chain of superseding ones.
pub fn newest_insights(
    mut insights: Vec<Insight>,
    since: Option<Timestamp>,
    all: bool,
) -> Vec<Insight> {
    if !all {
        let superseded: std::collections::BTreeSet<Arc<str>> = insights
            .iter()
            .filter_map(|i| i.supersedes.clone())
            .collect();
        insights.retain(|i| !superseded.contains(&i.id));
    }
    insights.retain(|i| since.is_none_or(|since| i.created_at >= since));
    insights.sort_by(|a, b| b.created_at.cmp(&a.created_at).then(b.id.cmp(&a.id)));
    insights
}

/// Every skill, as it is listed.
pub fn skill_entries() -> Vec<SkillEntry> {
    let info = |skill: &&'static dyn skills::Skill| SkillEntry {
        id: skill.id(),
        title: skill.title(),
        description: skill.description(),
        metrics: skill.metrics(),
    };
    skills::REGISTRY.iter().map(info).collect()
}
