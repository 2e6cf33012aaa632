//! `lens incidents` and `lens insights`.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Outcome, Trouble,
    ask::{Ask, Source},
    out::{Out, number},
};
use crate::{
    agent::records,
    anomaly::{Incident, State},
    api::newest_insights,
    base::clock::{Clock as _, SystemClock},
    investigate::Insight,
};

/// Records read from a state directory at the most.
const LIMIT: u32 = 10_000;
/// How often `--follow` asks.
const FOLLOW: Duration = Duration::from_secs(1);

/// RFC 3339, or a span of time back from now.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let back = text.parse::<SignedDuration>().map_err(|_| {
        format!("`{text}` is neither a time (2026-01-31T12:00:00Z) nor a span of time (2h)")
    })?;
    Ok(SystemClock.now().wall - back.abs())
}

#[derive(Debug, clap::Args)]
pub(super) struct Selection {
    /// Only what changed since: a time (RFC 3339) or a span of time back from now
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Go on with what comes, one JSON object a line
    #[arg(long, requires = "json")]
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
            return follow(out, list, |i| i.id.to_string()).await;
        }
        let incidents = list().await?;
        let open = incidents.iter().any(|i| i.state == State::Open);
        if self.of.json {
            out.json(&incidents)?;
        } else if incidents.is_empty() {
            out.line("no incidents")?;
        } else {
            let rows = incidents.iter().map(row).collect();
            out.table(&["incident", "state", "severity", "opened", "worst"], rows)?;
        }
        Ok(if open {
            Outcome::Finding
        } else {
            Outcome::Fine
        })
    }
}

fn row(incident: &Incident) -> Vec<String> {
    let worst = incident.series.first().map_or_else(String::new, |s| {
        let (seen, high) = (number(s.seen), number(s.expected.high));
        format!(
            "{} of {} is {seen} (usual: under {high})",
            s.metric, s.scope
        )
    });
    let word = |value: &dyn erased::Word| value.word();
    vec![
        incident.id.to_string(),
        word(&incident.state),
        word(&incident.severity),
        incident.opened_at.to_string(),
        worst,
    ]
}

mod erased {
    //! The word that a value is written as in JSON.
    pub(super) trait Word {
        fn word(&self) -> String;
    }
    impl<T: serde::Serialize> Word for T {
        fn word(&self) -> String {
            let json = serde_json::to_string(self).unwrap_or_default();
            json.trim_matches('"').to_owned()
        }
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
                tell(out, &insight)?;
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
            return follow(out, list, |i| i.id.to_string()).await;
        }
        let insights = list().await?;
        if self.of.json {
            out.json(&insights)?;
        } else if insights.is_empty() {
            out.line("no insights")?;
        } else {
            for insight in insights {
                tell(out, &insight)?;
            }
        }
        Ok(Outcome::Fine)
    }
}

async fn one(source: &Source, id: &str) -> Result<Insight, Trouble> {
    match source {
        Source::Agent(agent) => agent.get(&format!("insights/{id}"), &[]).await,
        Source::Store(store) => {
            let record = store.get(records::INSIGHT, id)?;
            let insight = record.and_then(|r| serde_json::from_slice(&r.bytes).ok());
            insight.ok_or_else(|| Trouble::Nothing(format!("there is no insight {id}")))
        }
    }
}

/// What an on-call engineer reads.
fn tell(out: &mut Out, insight: &Insight) -> Result<(), Trouble> {
    let confidence = number(100.0 * insight.confidence);
    out.line(format!(
        "{}  {}  {confidence} % sure",
        insight.id, insight.category
    ))?;
    out.line(format!("  {}", insight.summary))?;
    for claim in &insight.claims {
        out.line(format!("  - {}", claim.text))?;
    }
    for step in &insight.next_steps {
        out.line(format!("  > {step}"))?;
    }
    Ok(())
}

/// Writes what is new or has changed, until the reader goes away.
async fn follow<T: Serialize>(
    out: &mut Out,
    list: impl AsyncFn() -> Result<Vec<T>, Trouble>,
    id: impl Fn(&T) -> String,
) -> Result<Outcome, Trouble> {
    let mut written: BTreeMap<String, String> = BTreeMap::new();
    loop {
        for item in list().await?.into_iter().rev() {
            let text = serde_json::to_string(&item).unwrap_or_default();
            if written.insert(id(&item), text.clone()).as_ref() != Some(&text) {
                out.line(text)?;
            }
        }
        tokio::time::sleep(FOLLOW).await;
    }
}
