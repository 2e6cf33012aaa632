//! When an answer is told: one investigation of each open incident a tick, and an insight when
//! two ticks in a row agree, or when the first has been waited for long enough.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    actor::actor,
    case::Case,
    category::Category,
    claim::Kind,
    insight::{Insight, Tokens, Verdict},
    offline::{self, Answer},
};
use crate::{
    anomaly::{Detector, Incident, Severity},
    base::{clock::Moment, scope::Scope},
    history::Tick,
    skills::Sample,
};

/// The first answer is told at the latest this long after the incident was opened.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer that says the same replaces an earlier one when it is this much more confident.
const BETTER: f64 = 0.1;
/// A victim whose throughput fell below this part of what is normal makes an incident critical.
const THROUGHPUT: f64 = 0.5;

/// Looks in a row that agree on another cause before it takes the place of the one that was told.
const OTHERWISE: u32 = 3;

#[derive(Debug, Default)]
struct Watch {
    last: Option<Answer>,
    /// Looks in a row that agreed with the last.
    agreed: u32,
    told: Option<Told>,
    /// The newest insight, also of before the incident came back.
    newest: Option<Arc<str>>,
    made: u32,
    /// When the incident came back, as far as is known here.
    reopened_at: Option<Timestamp>,
    /// What was seen before the onset, held still: it is what the present is compared with.
    before: Vec<Arc<Tick>>,
}

/// What the newest insight says.
#[derive(Debug)]
struct Told {
    verdict: Verdict,
    category: Category,
    culprit: Option<Arc<str>>,
    confidence: f64,
}

impl Told {
    fn says(&self, answer: &Answer) -> bool {
        let culprit = answer.culprit.as_ref().and_then(Scope::path);
        (self.verdict, self.category, self.culprit.as_deref())
            == (answer.verdict, answer.category, culprit)
    }
}

impl From<&Insight> for Told {
    fn from(insight: &Insight) -> Self {
        Self {
            verdict: insight.verdict,
            category: insight.category,
            culprit: insight.culprit.as_ref().map(|c| c.cgroup.clone()),
            confidence: insight.confidence,
        }
    }
}

/// The open investigations.
#[derive(Debug, Default)]
pub(super) struct Desk {
    watches: BTreeMap<Arc<str>, Watch>,
}

impl Desk {
    /// Investigates an incident that was anomalous at the newest of `ticks`; an insight if there
    /// is something new to tell.
    pub(super) fn look(
        &mut self,
        incident: &Incident,
        onset: Moment,
        ticks: &[Arc<Tick>],
        detector: &Detector,
        sample: &Sample,
        now: Moment,
    ) -> Option<(Insight, Severity)> {
        let watch = self.watches.entry(incident.id.clone()).or_default();
        watch.follow(incident, onset, ticks);
        let ticks = watch.with_before(onset, ticks);
        let case = Case::new(incident, onset, &ticks, detector)?;
        let answer = offline::investigate(&case, watch.last.as_ref());
        let agreed = watch.last.as_ref().is_some_and(|last| last.agrees(&answer));
        watch.agreed = if agreed { watch.agreed + 1 } else { 0 };
        watch.last = Some(answer.clone());
        let opened = incident.reopened_at.unwrap_or(incident.opened_at);
        let waited = now.wall.duration_since(opened).unsigned_abs() >= PATIENCE;
        let new = match &watch.told {
            None if answer.verdict == Verdict::Cause => agreed || waited,
            None => waited,
            Some(told) if told.says(&answer) => answer.confidence >= told.confidence + BETTER,
            Some(told) => {
                let surer = told.verdict != Verdict::Cause || answer.confidence > told.confidence;
                agreed
                    && answer.verdict == Verdict::Cause
                    && (surer || watch.agreed + 1 >= OTHERWISE)
            }
        };
        if !new {
            return None;
        }
        watch.made += 1;
        let id: Arc<str> = format!("{}-{}", incident.id, watch.made).into();
        let severity = severity(&case, &answer);
        let supersedes = watch.newest.replace(id.clone());
        let insight = tell(incident, id, supersedes, answer, sample, now);
        watch.told = Some(Told::from(&insight));
        Some((insight, severity))
    }

    /// Another, a model, has answered: its insight is to supersede the newest one.
    pub(super) fn heard(&mut self, insight: &mut Insight) {
        let Some(watch) = self.watches.get_mut(&insight.incident) else {
            return;
        };
        insight.supersedes = watch.newest.replace(insight.id.clone());
        watch.told = Some(Told::from(&*insight));
    }

    /// The ticks that the newest answer was made from.
    pub(super) fn ticks(
        &self,
        incident: &str,
        onset: Moment,
        ticks: &[Arc<Tick>],
    ) -> Vec<Arc<Tick>> {
        let watch = self.watches.get(incident);
        watch.map_or_else(|| ticks.to_vec(), |watch| watch.with_before(onset, ticks))
    }

    /// The newest answer about an incident.
    pub(super) fn answer(&self, incident: &str) -> Option<&Answer> {
        self.watches.get(incident)?.last.as_ref()
    }

    /// Forgets incidents that are over.
    pub(super) fn retain(&mut self, open: impl Fn(&str) -> bool) {
        self.watches.retain(|id, _| open(id));
    }
}

impl Watch {
    /// Takes note of how the incident goes on: one that came back is looked at anew, because it may
    /// have another cause this time.
    fn follow(&mut self, incident: &Incident, onset: Moment, ticks: &[Arc<Tick>]) {
        let is_back = incident.reopened_at != self.reopened_at;
        if is_back {
            self.reopened_at = incident.reopened_at;
            (self.last, self.told, self.agreed) = (None, None, 0);
        }
        if is_back || self.before.is_empty() {
            let before = ticks.iter().filter(|tick| tick.at <= onset);
            self.before = before.cloned().collect();
        }
    }

    /// What was held still, then what came after it.
    fn with_before(&self, onset: Moment, ticks: &[Arc<Tick>]) -> Vec<Arc<Tick>> {
        let since = ticks.iter().filter(|tick| tick.at > onset);
        self.before.iter().chain(since).cloned().collect()
    }
}

fn severity(case: &Case<'_>, answer: &Answer) -> Severity {
    let lost = |scope: &Scope| {
        let now = case.value(scope, "syscalls_per_sec");
        let normal = case.normal(scope, "syscalls_per_sec");
        matches!((now, normal), (Some(now), Some(normal)) if now < THROUGHPUT * normal.median)
    };
    let hit = case.anomalous("memory_limit_hits_per_sec").next().is_some();
    if hit || answer.victims.iter().any(lost) {
        Severity::Critical
    } else if answer.victims.is_empty() {
        Severity::Info
    } else {
        Severity::Warning
    }
}

fn tell(
    incident: &Incident,
    id: Arc<str>,
    supersedes: Option<Arc<str>>,
    answer: Answer,
    sample: &Sample,
    now: Moment,
) -> Insight {
    let culprit = answer
        .culprit
        .as_ref()
        .and_then(|c| actor(c, answer.category, sample));
    let victims = answer
        .victims
        .iter()
        .filter_map(|v| actor(v, answer.category, sample))
        .collect();
    let summary = summary(
        incident,
        &answer,
        culprit.as_ref().and_then(|c| c.comm.as_deref()),
    );
    Insight {
        id,
        incident: incident.id.clone(),
        supersedes,
        opened_at: incident.reopened_at.unwrap_or(incident.opened_at),
        created_at: now.wall,
        verdict: answer.verdict,
        category: answer.category,
        summary,
        culprit,
        victims,
        correlation: answer.correlation(),
        claims: answer.claims,
        hypotheses: answer.hypotheses,
        next_steps: answer.next_steps,
        confidence: answer.confidence,
        quality: answer.quality,
        strategy: offline::NAME.to_owned(),
        provider: None,
        model: None,
        tokens: Tokens::default(),
        cost_usd: 0.0,
        duration_ms: 0,
    }
}

/// Two sentences, made of claims that hold.
fn summary(incident: &Incident, answer: &Answer, comm: Option<&str>) -> String {
    if answer.verdict != Verdict::Cause {
        let worst = incident.series.first();
        let what = worst.map_or_else(String::new, |s| {
            format!("{} of {} left its range. ", s.metric, s.scope)
        });
        return format!("{what}No explanation holds against what was counted.");
    }
    let of = |kinds: &[Kind]| answer.claims.iter().find(|c| kinds.contains(&c.kind));
    let first = of(&[Kind::Pair])
        .or_else(|| of(&[Kind::Change]))
        .map_or("", |c| c.text.as_str());
    let who = match (&answer.culprit, comm) {
        (Some(culprit), Some(comm)) => format!("{comm} in {culprit}"),
        (Some(culprit), None) => culprit.to_string(),
        (None, _) => "nobody in particular".to_owned(),
    };
    format!("{first} Behind it: {who} ({}).", answer.category)
}
