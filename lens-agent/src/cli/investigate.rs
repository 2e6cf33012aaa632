//! `lens investigate`: what is wrong now.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Outcome, Trouble,
    ask::{Agent, Ask},
    found::tell,
    out::{Out, note},
    run::need_root,
};
use crate::{
    agent::{self, Inquirer, Inquiry, Tools},
    anomaly::{self, Detector},
    api::{Api, Investigation, InvestigationRequest, Progress, newest_insights},
    base::clock::{Clock, SystemClock},
    config::{ConfigError, Settings, Span},
    history::Tick,
    host::{HostReader, Root},
    investigate::{Insight, Strategy, Triage, insight::Verdict, scene::Scene},
    probes::{self, Probes},
    skills,
    store::Store,
    supervise::Supervisor,
    telemetry::Telemetry,
};

/// Asks the running agent about its open incidents. Where none runs, looks for itself: against
/// physical limits and siblings, because it has learned nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Investigate {
    /// Why you ask; a model is told
    reason: Option<Arc<str>>,
    /// How
    #[arg(long, value_enum, default_value_t)]
    strategy: Strategy,
    /// The provider to ask, of those that are configured; all, one after the other, if none is named
    #[arg(long, value_name = "NAME")]
    provider: Option<Arc<str>>,
    /// How long to look where no agent runs
    #[arg(long = "for", value_name = "SPAN", default_value = "30s")]
    span: Span,
    /// Where no agent runs: the settings that name providers [default: /etc/lens/lens.toml]
    #[arg(long, value_name = "FILE", env = "LENS_CONFIG")]
    config: Option<PathBuf>,
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
}

/// Time between two looks of one's own.
const STEP: Duration = Duration::from_secs(1);
/// Time between two questions whether the agent's investigation is over.
const POLL: Duration = Duration::from_millis(300);
/// The time in which an agent takes an investigation on.
const TAKEN: Duration = Duration::from_secs(10);

impl Investigate {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let (insights, nothing) = match self.ask.agent().await {
            Ok(agent) => {
                let nothing = "no incident is open";
                (self.ask_agent(&agent).await?, nothing)
            }
            Err(Trouble::NoAgent { .. }) => {
                let nothing = "nothing beyond physical limits; what is only unusual here takes an \
                               agent that has learned what is usual";
                (self.look_myself().await?, nothing)
            }
            Err(trouble) => return Err(trouble),
        };
        if self.json {
            out.json(&insights)?;
        } else if insights.is_empty() {
            out.line(nothing)?;
        } else {
            insights
                .iter()
                .try_for_each(|insight| out.line(tell(insight)))?;
        }
        let cause = insights.iter().any(|i| i.verdict == Verdict::Cause);
        Ok(if cause {
            Outcome::Finding
        } else {
            Outcome::Fine
        })
    }

    async fn ask_agent(&self, agent: &Agent) -> Result<Vec<Insight>, Trouble> {
        let request = InvestigationRequest {
            reason: self.reason.clone(),
            strategy: self.strategy,
            provider: self.provider.clone(),
        };
        let mut asked: Investigation = agent.post("investigations", &request, TAKEN).await?;
        while asked.progress == Progress::Running {
            tokio::time::sleep(POLL).await;
            let page = format!("investigations/{}", asked.id);
            asked = agent.get(&page, &[]).await?;
        }
        asked.troubles.iter().for_each(note);
        let mut insights = Vec::new();
        for id in &asked.insights {
            insights.push(agent.get(&format!("insights/{id}"), &[]).await?);
        }
        Ok(insights)
    }

    async fn look_myself(&self) -> Result<Vec<Insight>, Trouble> {
        need_root()?;
        let mut settings = Settings::from_file(self.config.as_deref())?;
        self.choose_providers(&mut settings)?;
        let seen = self.look()?;
        let told = newest_insights(seen.insights.clone(), None, false);
        if settings.provider.is_empty() || seen.scenes.is_empty() {
            return Ok(told);
        }
        ask_models(settings, self.ask.dir(), seen).await
    }

    /// Leaves only the providers that are to be asked.
    fn choose_providers(&self, settings: &mut Settings) -> Result<(), Trouble> {
        if let Some(name) = &self.provider {
            settings.provider.retain(|p| *p.name == **name);
            if settings.provider.is_empty() {
                return Err(Trouble::Usage(format!(
                    "no provider `{name}` is configured; see `lens config`"
                )));
            }
        }
        match self.strategy {
            Strategy::Offline => settings.provider.clear(),
            Strategy::AgentLoop if settings.provider.is_empty() => {
                return Err(ConfigError::NoProvider.into());
            }
            Strategy::Auto | Strategy::AgentLoop => {}
        }
        Ok(())
    }

    fn look(&self) -> Result<Seen, Trouble> {
        let span = self.span;
        note(format!(
            "no agent answers; looking for {span} against physical limits and siblings, without \
             baselines"
        ));
        let reader = HostReader::new(Root::default())?;
        let watched = agent::watched(&reader)?;
        let mut probes = Probes::start(&watched, &probes::Config::default())?;
        let mut look = agent::Look::new(reader);
        let never = anomaly::Config {
            learn: Duration::MAX,
        };
        let mut triage = Triage::new(Detector::new(never, skills::metrics()));
        let (mut ticks, mut insights): (Vec<Arc<Tick>>, Vec<Insight>) = (Vec::new(), Vec::new());
        let began = SystemClock.now();
        let mut before = look.sample(&mut probes, began);
        while SystemClock.now().since(&began) < self.span.0 {
            std::thread::sleep(STEP);
            let sample = look.sample(&mut probes, SystemClock.now());
            let number = ticks.len() as u64 + 1;
            let seen = skills::look_everywhere(number, &sample, &before, skills::REGISTRY);
            let elapsed = sample.at.since(&before.at);
            let tick = Arc::new(Tick::new(number, sample.at, elapsed, seen));
            ticks.push(tick.clone());
            triage.observe(&tick);
            insights.extend(triage.answer(&ticks, &sample, SystemClock.now()));
            before = sample;
        }
        let open = triage.incidents().open();
        let scene = |id: &str| triage.scene(id, &ticks, &before, self.reason.clone());
        let scenes = open.filter_map(|(i, _)| scene(&i.id)).collect();
        Ok(Seen {
            ticks,
            insights,
            scenes,
        })
    }
}

/// What was seen without an agent.
struct Seen {
    ticks: Vec<Arc<Tick>>,
    insights: Vec<Insight>,
    /// The incidents that are open at the end.
    scenes: Vec<Scene>,
}

/// The same limits, the same record of what was sent as those of an agent with these settings.
async fn ask_models(settings: Settings, dir: PathBuf, seen: Seen) -> Result<Vec<Insight>, Trouble> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let telemetry = Telemetry::new();
    let supervisor = Supervisor::new("investigation", telemetry.clone(), clock.clone());
    let api = Api::new(telemetry.clone(), supervisor.clone());
    seen.ticks.into_iter().for_each(|tick| api.put_tick(tick));
    seen.insights.into_iter().for_each(|i| api.put_insight(i));
    Store::make_directory(&dir)?;
    let store = Arc::new(Store::open(&dir, &telemetry)?);
    let tools = Tools {
        judge: Arc::new(api.clone()),
        supervisor,
        clock,
        store: store.clone(),
        telemetry,
        api: api.clone(),
        namer: None,
    };
    let limits = settings.budget.unwrap_or_default();
    if let Some(inquirer) = Inquirer::connect(&settings.provider, limits, tools)? {
        let inquiry = Inquiry {
            scenes: seen.scenes,
            asked: None,
        };
        let troubles = inquirer.work(inquiry, &CancellationToken::new()).await;
        troubles.iter().for_each(note);
    }
    store.flush()?;
    Ok(api.insights(None, false))
}
