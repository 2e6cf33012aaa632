//! The stage that asks models about incidents, within limits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::{
    namer::Namer,
    records::{self, BUDGET, BUDGET_ID, NOTIFICATION, SENT},
};
use crate::{
    api::{Api, Asked},
    base::clock::Clock,
    config::ConfigError,
    investigate::{
        Insight,
        agent_loop::{self, Bench, Failure, Outcome, Purse},
        scene::Scene,
    },
    llm::{
        Model, Models, ProviderConfig,
        budget::{Budget, Limits, Refused},
        outbound::{Outbound, SendLog, Sent},
    },
    probes::{self, NamedSample},
    skills::{self, Sample},
    store::Store,
    supervise::Supervisor,
    telemetry::{Event, Telemetry},
};

/// Inquiries that may wait for their turn; the offline insight stands for those that find no room.
pub(super) const QUEUE: usize = 16;
/// Sent payloads that are kept.
const SENT_KEPT: u32 = 500;

/// Incidents that a model is to be asked about.
#[derive(Debug)]
pub(crate) struct Inquiry {
    /// The incidents, the worst first.
    pub(crate) scenes: Vec<Scene>,
    /// Who asked, if it was not the agent itself.
    pub(crate) asked: Option<Asked>,
}

/// Asks about one incident at a time.
#[derive(Debug)]
pub(crate) struct Inquirer {
    models: Models,
    budget: Arc<Mutex<Budget>>,
    tools: Tools,
}

/// Takes in a model's insight, and publishes it.
pub(crate) trait Hear: std::fmt::Debug + Send + Sync {
    /// Waits until it is durable.
    fn hear(&self, insight: Insight);
}

/// Where nobody judges, it stands beside the others.
impl Hear for Api {
    fn hear(&self, insight: Insight) {
        self.put_insight(insight);
    }
}

/// What an inquirer works with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) judge: Arc<dyn Hear>,
    pub(crate) supervisor: Supervisor,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Arc<Store>,
    pub(crate) telemetry: Telemetry,
    pub(crate) api: Api,
    /// Names stacks for a process that is closed.
    pub(crate) namer: Option<Arc<Namer>>,
}

/// Why a model came to no answer.
#[derive(Debug, thiserror::Error)]
enum InquiryError {
    #[error(transparent)]
    Limit(#[from] Refused),
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error("there is no provider `{0}`")]
    NoProvider(Arc<str>),
}

impl Inquirer {
    /// Connects the providers; `None` if there are none.
    pub(crate) fn connect(
        providers: &[ProviderConfig],
        limits: Limits,
        tools: Tools,
    ) -> Result<Option<Self>, ConfigError> {
        let log = Arc::new(Log {
            store: tools.store.clone(),
            telemetry: tools.telemetry.clone(),
        });
        let outbound = Outbound::new(tools.clock.clone(), tools.telemetry.clone(), log);
        let Some(models) = Models::connect(providers, outbound)? else {
            return Ok(None);
        };
        // What earlier runs have spent counts: a restart is no way around the limits.
        let spent = tools.store.get(BUDGET, BUDGET_ID).ok().flatten();
        let spent = spent
            .and_then(|r| serde_json::from_slice(&r.bytes).ok())
            .unwrap_or_default();
        let budget = Budget::new(limits, spent, tools.telemetry.clone());
        Ok(Some(Self {
            models,
            budget: Arc::new(Mutex::new(budget)),
            tools,
        }))
    }

    /// Asks about the incidents of one inquiry; why a model came to no answer, where it did not.
    pub(crate) async fn work(&self, inquiry: Inquiry, stop: &CancellationToken) -> Vec<String> {
        let Inquiry { scenes, asked } = inquiry;
        let mut troubles = Vec::new();
        let provider = asked.as_ref().and_then(|a| a.request.provider.clone());
        for scene in scenes {
            let incident = scene.incident.id.clone();
            let Err(why) = self.ask(scene, provider.clone(), stop).await else {
                continue;
            };
            // The offline insight stands.
            if !matches!(why, InquiryError::Failure(Failure::Cancelled)) {
                tracing::warn!(%incident, %why, "the model came to no insight");
            }
            troubles.push(format!(
                "incident {incident}: the model came to no insight: {why}"
            ));
        }
        if let Some(mut asked) = asked {
            asked.troubles.clone_from(&troubles);
            asked.end();
        }
        troubles
    }

    async fn ask(
        &self,
        mut scene: Scene,
        provider: Option<Arc<str>>,
        stop: &CancellationToken,
    ) -> Result<(), InquiryError> {
        let model: Arc<dyn Model> = match provider {
            None => Arc::new(self.models.clone()),
            Some(name) => match self.models.only(&name) {
                Some(only) => Arc::new(only),
                None => return Err(InquiryError::NoProvider(name)),
            },
        };
        let clock = &self.tools.clock;
        // A refusal is counted by the budget itself.
        let purse = Purse::open(self.budget.clone(), clock.clone())?;
        let began = clock.now();
        // As soon as may be: processes end.
        scene.stacks = self.stacks(&scene.sample).await;
        let bench = Bench {
            scene: Arc::new(scene),
            model,
            purse: Arc::new(purse),
            skills: skills::REGISTRY,
            supervisor: self.tools.supervisor.clone(),
            clock: clock.clone(),
            cancel: stop.child_token(),
        };
        // Before the first word: an agent that is killed meanwhile has taken this one.
        self.keep_budget();
        let outcome = agent_loop::investigate(&bench).await;
        self.keep_budget();
        self.publish(&bench.scene, outcome?, clock.now().since(&began))
            .await;
        Ok(())
    }

    /// Where CPU time went lately, with names.
    async fn stacks(&self, sample: &Arc<Sample>) -> Vec<NamedSample> {
        let (namer, sample) = (self.tools.namer.clone(), sample.clone());
        // Reads other processes' files, or waits for the child that does.
        let naming = tokio::task::spawn_blocking(move || {
            let stacks = &sample.kernel.profile.as_ref()?.stacks;
            let named = match namer {
                Some(namer) => namer.name(stacks),
                None => Ok(probes::name_stacks(stacks)),
            };
            let named = named.map_err(|why| tracing::warn!(%why, "stacks have no names"));
            let targets = &sample.kernel.targets;
            let all = stacks.iter().zip(named.ok()?);
            let known = all.filter_map(|(sample, stack)| {
                let cgroup = targets.get(&sample.cgroup)?.clone();
                Some(sample.named(cgroup, stack))
            });
            Some(known.collect())
        });
        naming.await.ok().flatten().unwrap_or_default()
    }

    async fn publish(&self, scene: &Scene, outcome: Outcome, duration: std::time::Duration) {
        let now = self.tools.clock.now().wall;
        for notification in &outcome.notifications {
            let id = format!("{}/{}", scene.incident.id, notification.id);
            let key = (NOTIFICATION, id.as_str());
            records::put(
                &self.tools.store,
                &self.tools.telemetry,
                key,
                now,
                notification,
                false,
            );
        }
        let Some(insight) = self.insight(scene, outcome, duration) else {
            return;
        };
        let judge = self.tools.judge.clone();
        // Waits for the disk.
        if let Err(why) = tokio::task::spawn_blocking(move || judge.hear(insight)).await {
            tracing::warn!(%why, "the model's insight was lost");
        }
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
            .tools
            .api
            .insights(None, false)
            .into_iter()
            .find(|i| i.incident == incident);
        agent_loop::insight(
            scene,
            outcome,
            told.as_ref(),
            self.tools.clock.now().wall,
            took,
        )
    }

    fn keep_budget(&self) {
        let spent = self
            .budget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spent()
            .clone();
        let now = self.tools.clock.now().wall;
        records::put(
            &self.tools.store,
            &self.tools.telemetry,
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
