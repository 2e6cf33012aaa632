//! The stage that asks models about incidents, within limits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::records::{self, BUDGET, BUDGET_ID, NOTIFICATION, SENT};
use crate::{
    api::Api,
    base::clock::Clock,
    config::ConfigError,
    investigate::{
        Insight,
        agent_loop::{self, Bench, Failure, Outcome, Purse},
        scene::Scene,
    },
    llm::{
        Model, Models, ProviderConfig,
        budget::{Budget, Limits},
        outbound::{Outbound, SendLog, Sent},
    },
    skills,
    store::Store,
    supervise::Supervisor,
    telemetry::{Event, Telemetry},
};

/// Incidents that may wait for their turn; the oldest insight stands for those that find no room.
pub(super) const QUEUE: usize = 16;
/// Sent payloads that are kept.
const SENT_KEPT: u32 = 500;

/// Asks about one incident at a time.
#[derive(Debug)]
pub(super) struct Inquirer {
    model: Arc<dyn Model>,
    budget: Arc<Mutex<Budget>>,
    supervisor: Supervisor,
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    telemetry: Telemetry,
    api: Api,
    scenes: tokio::sync::Mutex<mpsc::Receiver<Scene>>,
}

/// What an inquirer works with.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) supervisor: Supervisor,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) store: Arc<Store>,
    pub(super) telemetry: Telemetry,
    pub(super) api: Api,
}

impl Inquirer {
    /// Connects the providers; `None` if there are none.
    pub(super) fn connect(
        providers: &[ProviderConfig],
        limits: Limits,
        tools: Tools,
        scenes: mpsc::Receiver<Scene>,
    ) -> Result<Option<Self>, ConfigError> {
        let Tools {
            supervisor,
            clock,
            store,
            telemetry,
            api,
        } = tools;
        let log = Arc::new(Log {
            store: store.clone(),
            telemetry: telemetry.clone(),
        });
        let outbound = Outbound::new(clock.clone(), telemetry.clone(), log);
        let Some(models) = Models::connect(providers, outbound)? else {
            return Ok(None);
        };
        // What earlier runs have spent counts: a restart is no way around the limits.
        let spent = store.get(BUDGET, BUDGET_ID).ok().flatten();
        let spent = spent
            .and_then(|r| serde_json::from_slice(&r.bytes).ok())
            .unwrap_or_default();
        let budget = Arc::new(Mutex::new(Budget::new(limits, spent, telemetry.clone())));
        let model = Arc::new(models);
        let scenes = tokio::sync::Mutex::new(scenes);
        Ok(Some(Self {
            model,
            budget,
            supervisor,
            clock,
            store,
            telemetry,
            api,
            scenes,
        }))
    }

    /// Asks about each incident that comes, until `stop` is cancelled.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut scenes = self.scenes.lock().await;
        loop {
            let scene = tokio::select! {
                () = stop.cancelled() => return,
                scene = scenes.recv() => scene,
            };
            let Some(scene) = scene else { return };
            self.ask(scene, &stop).await;
        }
    }

    async fn ask(&self, scene: Scene, stop: &CancellationToken) {
        // A refusal is counted by the budget itself.
        let Ok(purse) = Purse::open(self.budget.clone(), self.clock.clone()) else {
            return;
        };
        let began = self.clock.now();
        let bench = Bench {
            scene: Arc::new(scene),
            model: self.model.clone(),
            purse: Arc::new(purse),
            skills: skills::REGISTRY,
            supervisor: self.supervisor.clone(),
            clock: self.clock.clone(),
            cancel: stop.child_token(),
        };
        let outcome = agent_loop::investigate(&bench).await;
        self.keep_budget();
        match outcome {
            Ok(outcome) => {
                let duration = self.clock.now().since(&began);
                self.publish(&bench.scene, outcome, duration);
            }
            Err(Failure::Cancelled | Failure::Refused(_)) => {}
            // The offline insight stands.
            Err(why) => {
                tracing::warn!(incident = %bench.scene.incident.id, %why, "the model came to no insight");
            }
        }
    }

    fn publish(&self, scene: &Scene, outcome: Outcome, duration: std::time::Duration) {
        let now = self.clock.now().wall;
        for notification in &outcome.notifications {
            let id = format!("{}/{}", scene.incident.id, notification.id);
            let key = (NOTIFICATION, id.as_str());
            records::put(&self.store, &self.telemetry, key, now, notification, false);
        }
        let Some(insight) = self.insight(scene, outcome, duration) else {
            return;
        };
        records::put_insight(&self.store, &self.telemetry, &insight, |id| {
            self.api.snapshot(id)
        });
        self.telemetry.emit(Event::InsightProduced {
            id: insight.id.to_string(),
            verdict: insight.verdict.as_str().to_owned(),
            strategy: insight.strategy.clone(),
        });
        self.api.put_insight(insight);
    }

    /// The insight that supersedes the offline one, if the conclusion says more than it.
    fn insight(
        &self,
        scene: &Scene,
        outcome: Outcome,
        took: std::time::Duration,
    ) -> Option<Insight> {
        let incident = scene.incident.id.clone();
        // The newest that has been told: evidence may have moved on meanwhile.
        let told = self
            .api
            .insights(None, false)
            .into_iter()
            .find(|i| i.incident == incident);
        agent_loop::insight(scene, outcome, told.as_ref(), self.clock.now().wall, took)
    }

    fn keep_budget(&self) {
        let spent = self
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spent()
            .clone();
        let now = self.clock.now().wall;
        records::put(
            &self.store,
            &self.telemetry,
            (BUDGET, BUDGET_ID),
            now,
            &spent,
            false,
        );
    }
}

/// Keeps exactly what was sent.
#[derive(Debug)]
struct Log {
    store: Arc<Store>,
    telemetry: Telemetry,
}

impl SendLog for Log {
    fn record(&self, sent: Sent) {
        let id = format!("{}-{}", sent.at.as_nanosecond(), sent.provider);
        let record = records::SentRecord::from(&sent);
        records::put(
            &self.store,
            &self.telemetry,
            (SENT, &id),
            sent.at,
            &record,
            false,
        );
        if let Err(why) = self.store.retain(SENT, SENT_KEPT) {
            self.telemetry.emit(Event::StoreError {
                why: why.to_string(),
            });
        }
    }
}
