//! `lens incidents` and `lens insights`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Outcome, Trouble,
    ask::{Ask, Source, encode},
    out::{Column, Out, amount, need_reader, note, number, words},
};
use crate::{
    agent::records,
    anomaly::{Incident, IncidentSeries, Range, State},
    api::{self, SinceError, newest_insights},
    base::clock::{Clock as _, SystemClock},
    investigate::{
        Insight,
        insight::{Actor, Verdict},
    },
};

/// Records read from a state directory at the most.
const LIMIT: u32 = 10_000;
/// How often `--follow` asks.
const FOLLOW: Duration = Duration::from_secs(1);

fn since(text: &str) -> Result<Timestamp, SinceError> {
    api::since(text, SystemClock.now().wall)
}

#[derive(Debug, clap::Args)]
pub(super) struct Selection {
    /// Only what changed since: a time (RFC 3339) or a span of time back from now
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Go on with what comes; with --json, one object a line
    #[arg(long)]
    follow: bool,
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Selection {
    async fn list<T: DeserializeOwned>(
        &self,
        source: &Source,
        path: &str,
        query: &[(&str, String)],
        kind: crate::store::Kind,
    ) -> Result<Vec<T>, Trouble> {
        match source {
            Source::Agent(agent) => {
                let mut query = query.to_vec();
                query.extend(self.since.map(|at| ("since", at.to_string())));
                agent.get(path, &query).await
            }
            Source::Store(store) => {
                let found = records::list(store, kind, self.since, LIMIT)?;
                Ok(found.into_iter().map(|(_, item)| item).collect())
            }
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Incidents {
    #[command(flatten)]
    of: Selection,
}

impl Incidents {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let source = self.of.ask.find().await?;
        let list = async || {
            self.of
                .list::<Incident>(&source, "incidents", &[], records::INCIDENT)
                .await
        };
        if self.of.follow {
            return follow(out, self.of.json, list, |i| i.id.clone(), told).await;
        }
        let incidents = list().await?;
        let open = incidents.iter().any(|i| i.state == State::Open);
        if self.of.json {
            out.json(&incidents)?;
        } else if incidents.is_empty() {
            out.line("no incidents")?;
        } else {
            let rows = incidents.iter().map(row).collect();
            out.table(&COLUMNS, rows)?;
        }
        Ok(if open {
            Outcome::Finding
        } else {
            Outcome::Fine
        })
    }
}

const COLUMNS: [Column; 5] = [
    words("opened"),
    words("state"),
    words("severity"),
    words("incident"),
    words("worst"),
];

fn row(incident: &Incident) -> Vec<String> {
    vec![
        format!("{:.0}", incident.opened_at),
        word(&incident.state),
        word(&incident.severity),
        incident.id.to_string(),
        incident.series.first().map_or_else(String::new, worst),
    ]
}

/// What is least normal, and what would be.
fn worst(series: &IncidentSeries) -> String {
    let amount = |value| amount(&series.metric, value);
    let usual = match series.expected {
        Range {
            low: Some(low),
            high,
        } if series.seen < low => {
            format!("{} to {}", amount(low), amount(high))
        }
        Range { high, .. } => format!("under {}", amount(high)),
    };
    let (metric, seen) = (&series.metric, amount(series.seen));
    format!("{metric} of {} is {seen} (usual: {usual})", series.scope)
}

/// An incident in one line.
fn told(incident: &Incident) -> String {
    row(incident).join("  ")
}

/// The word that a value is written as in JSON.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Insights {
    /// Only this one
    id: Option<String>,
    /// Also those that a later one superseded
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    of: Selection,
}

impl Insights {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let source = self.of.ask.find().await?;
        if let Some(id) = &self.id {
            let insight = one(&source, id).await?;
            if self.of.json {
                out.json(&insight)?;
            } else {
                out.line(tell(&insight))?;
            }
            return Ok(Outcome::Fine);
        }
        let all = self.all || self.of.follow;
        let list = async || {
            let query = [("all", all.to_string())];
            let found = self
                .of
                .list::<Insight>(&source, "insights", &query, records::INSIGHT)
                .await?;
            Ok::<_, Trouble>(newest_insights(found, self.of.since, all))
        };
        if self.of.follow {
            return follow(out, self.of.json, list, |i| i.id.clone(), tell).await;
        }
        let insights = list().await?;
        if self.of.json {
            out.json(&insights)?;
        } else if insights.is_empty() {
            out.line("no insights")?;
        } else {
            for insight in &insights {
                out.line(tell(insight))?;
            }
        }
        Ok(Outcome::Fine)
    }
}

async fn one(source: &Source, id: &str) -> Result<Insight, Trouble> {
    match source {
        Source::Agent(agent) => agent.get(&format!("insights/{}", encode(id)), &[]).await,
        Source::Store(store) => {
            let record = store.get(records::INSIGHT, id)?;
            let insight = record.and_then(|r| serde_json::from_slice(&r.bytes).ok());
            insight.ok_or_else(|| Trouble::Nothing(format!("there is no insight {id}")))
        }
    }
}

/// What an on-call engineer reads.
pub(super) fn tell(insight: &Insight) -> String {
    let confidence = number(100.0 * insight.confidence);
    let mut lines = vec![
        format!(
            "{:.0}  {}  {confidence} % sure  {}",
            insight.created_at,
            match insight.verdict {
                Verdict::Cause => word(&insight.category),
                other => word(&other),
            },
            insight.id
        ),
        format!("  {}", insight.summary),
    ];
    lines.extend(
        insight
            .culprit
            .iter()
            .map(|c| format!("  culprit  {}", named(c))),
    );
    lines.extend(
        insight
            .victims
            .iter()
            .map(|v| format!("  victim   {}", named(v))),
    );
    lines.extend(insight.claims.iter().map(|c| format!("  - {}", c.text)));
    lines.extend(insight.next_steps.iter().map(|step| format!("  > {step}")));
    lines.join("\n")
}

fn named(actor: &Actor) -> String {
    match &actor.comm {
        Some(comm) => format!("{} ({comm})", actor.cgroup),
        None => actor.cgroup.to_string(),
    }
}

/// Writes what is new or has changed, until the reader goes away. An agent that does not answer
/// for a while, because it is restarted for example, is asked again.
async fn follow<T: Serialize>(
    out: &mut Out,
    json: bool,
    list: impl AsyncFn() -> Result<Vec<T>, Trouble>,
    id: impl Fn(&T) -> Arc<str>,
    tell: impl Fn(&T) -> String,
) -> Result<Outcome, Trouble> {
    let mut found = list().await?;
    let mut written: BTreeMap<Arc<str>, String> = BTreeMap::new();
    let mut silent = false;
    loop {
        let mut listed = BTreeMap::new();
        for item in found.iter().rev() {
            let (id, state) = (id(item), serde_json::to_string(item).unwrap_or_default());
            if written.get(&id) != Some(&state) {
                out.line(if json { state.clone() } else { tell(item) })?;
            }
            listed.insert(id, state);
        }
        // What is listed no more does not come back.
        written = listed;
        found = loop {
            tokio::time::sleep(FOLLOW).await;
            need_reader()?;
            match list().await {
                Ok(found) => {
                    silent = false;
                    break found;
                }
                Err(trouble) if !silent => {
                    silent = true;
                    note(format!("{trouble}; asking again"));
                }
                Err(_) => {}
            }
        };
    }
}
