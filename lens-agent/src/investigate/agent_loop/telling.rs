//! When a model's conclusion is told, and how.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{NAME, Outcome};
use crate::investigate::{
    actor::actor,
    claim::Kind,
    insight::{Correlation, Insight, Tokens, Verdict},
    scene::Scene,
};

/// The insight that supersedes `told`; `None` if the conclusion does not say more than it: a cause
/// that holds is not taken back because a model is less sure.
pub fn insight(
    scene: &Scene,
    outcome: Outcome,
    told: Option<&Insight>,
    now: Timestamp,
    took: Duration,
) -> Option<Insight> {
    let conclusion = outcome.conclusion?;
    let told_cause = told.is_some_and(|t| t.verdict == Verdict::Cause);
    if told_cause && conclusion.verdict != Verdict::Cause {
        return None;
    }
    let sure_enough = told.is_none_or(|t| {
        t.verdict != Verdict::Cause
            || conclusion.confidence >= t.confidence
            || (conclusion.category == t.category
                && conclusion.culprit.as_ref().and_then(|c| c.path())
                    == t.culprit.as_ref().map(|c| &*c.cgroup))
    });
    if !sure_enough {
        return None;
    }
    let (category, sample) = (conclusion.category, &scene.sample);
    let by_code = || {
        let first = conclusion.claims.first().map_or("", |c| c.text.as_str());
        format!("{first} Verdict of the model, as far as code bears it out: {category}.")
    };
    let linked = conclusion.claims.iter().any(|c| c.kind == Kind::Pair);
    let id: Arc<str> = format!("{}-{NAME}-{}", scene.incident.id, now.as_millisecond()).into();
    Some(Insight {
        id,
        incident: scene.incident.id.clone(),
        supersedes: told.map(|t| t.id.clone()),
        opened_at: scene
            .incident
            .reopened_at
            .unwrap_or(scene.incident.opened_at),
        created_at: now,
        verdict: conclusion.verdict,
        category,
        summary: conclusion.summary.clone().unwrap_or_else(by_code),
        culprit: conclusion
            .culprit
            .as_ref()
            .and_then(|c| actor(c, category, sample)),
        victims: conclusion
            .victims
            .iter()
            .filter_map(|v| actor(v, category, sample))
            .collect(),
        correlation: (conclusion.verdict == Verdict::Cause).then_some(if linked {
            Correlation::Causal
        } else {
            Correlation::Symptomatic
        }),
        claims: conclusion.claims,
        hypotheses: conclusion.hypotheses,
        next_steps: scene.answer.next_steps.clone(),
        confidence: conclusion.confidence,
        quality: scene.answer.quality.clone(),
        strategy: NAME.to_owned(),
        provider: outcome.provider,
        model: outcome.model,
        tokens: Tokens {
            input: outcome.tokens.input,
            cached: outcome.tokens.cached,
            output: outcome.tokens.output,
        },
        cost_usd: outcome.cost_usd,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}
