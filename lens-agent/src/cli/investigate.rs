//! `lens investigate`: what is wrong now.

use std::{sync::Arc, time::Duration};

use super::{
    Outcome, Trouble,
    ask::Ask,
    found::tell,
    out::{Out, note},
    run::need_root,
};
use crate::{
    agent,
    anomaly::{self, Detector, Incidents, State},
    base::clock::{Clock as _, SystemClock},
    config::Span,
    history::Tick,
    host::{HostReader, Root},
    investigate::{Desk, Insight, insight::Verdict},
    probes::{self, Probes},
    skills,
};

#[derive(Debug, clap::Args)]
pub(super) struct Investigate {
    /// Why you ask; it is noted beside the answer
    reason: Option<String>,
    /// How long to look where no agent runs
    #[arg(long = "for", value_name = "SPAN", default_value = "30s")]
    span: Span,
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
}

/// Time between two looks of one's own.
const STEP: Duration = Duration::from_secs(1);

impl Investigate {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let insights = match self.ask.agent().await {
            Ok(agent) => {
                // The agent investigates every tick: its newest answers are those of now.
                let open: Vec<anomaly::Incident> = agent.get("incidents", &[]).await?;
                let told: Vec<Insight> = agent.get("insights", &[]).await?;
                let is_open =
                    |id: &str| open.iter().any(|i| &*i.id == id && i.state == State::Open);
                told.into_iter().filter(|i| is_open(&i.incident)).collect()
            }
            Err(Trouble::NoAgent { .. }) => self.look()?,
            Err(trouble) => return Err(trouble),
        };
        if let Some(reason) = &self.reason {
            tracing::info!(reason, "asked");
        }
        if self.json {
            out.json(&insights)?;
        } else if insights.is_empty() {
            out.line("nothing is outside of what is normal")?;
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

    /// Looks for itself: against physical limits and siblings, because it has learned nothing.
    fn look(&self) -> Result<Vec<Insight>, Trouble> {
        need_root()?;
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
        let mut detector = Detector::new(never, skills::metrics());
        let (mut incidents, mut desk) = (Incidents::default(), Desk::default());
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
            incidents.update(&detector.observe(&tick), &tick);
            for (incident, onset) in incidents.active() {
                let now = SystemClock.now();
                let told = desk.look(incident, onset, &ticks, &detector, &sample, now);
                if let Some((insight, _)) = told {
                    insights.retain(|i| i.incident != insight.incident);
                    insights.push(insight);
                }
            }
            before = sample;
        }
        Ok(insights)
    }
}
