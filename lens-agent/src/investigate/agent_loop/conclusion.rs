//! What holds of a model's conclusion.

use super::tools::{ClaimArguments, Direction, HypothesisStatus, ProduceInsight, Verdict as Said};
use crate::{
    anomaly::Source,
    base::{quality::Quality, scope::Scope, snapshot::By},
    investigate::{
        case::Case,
        category::Category,
        claim::{Claim, Statement},
        evidence::{Grounds, bears_cause, binds, confidence},
        insight::{Hypothesis, Status, Verdict},
        words,
    },
};

/// A conclusion after code has checked it.
#[derive(Clone, Debug, PartialEq)]
pub struct Conclusion {
    /// Whether a cause was found; a cause that nothing bears has become `inconclusive`.
    pub verdict: Verdict,
    /// Which.
    pub category: Category,
    /// Whose behaviour or limit must change.
    pub culprit: Option<Scope>,
    /// Who suffers, of those that a claim that holds names.
    pub victims: Vec<Scope>,
    /// What holds.
    pub claims: Vec<Claim>,
    /// What was struck out, with why.
    pub struck: Vec<String>,
    /// What was considered.
    pub hypotheses: Vec<Hypothesis>,
    /// The model's summary, if every number and name in it occurs in a claim that holds.
    pub summary: Option<String>,
    /// 0 to 1.
    pub confidence: f64,
}

/// Checks what the model said against the case; an error says what cannot be understood.
pub(super) fn check(
    said: &ProduceInsight,
    case: &Case<'_>,
    quality: &Quality,
    agrees: impl Fn(Category, Option<&Scope>) -> bool,
) -> Result<Conclusion, String> {
    let category: Category = said
        .category
        .parse()
        .map_err(|why| format!("category: {why}"))?;
    let culprit = said.culprit.as_deref().map(scope).transpose()?;
    let mut claims = Vec::new();
    let mut struck = Vec::new();
    for (i, arguments) in said.claims.iter().enumerate() {
        let statement = statement(arguments, case).map_err(|why| format!("claims[{i}]: {why}"))?;
        match statement.check(case) {
            Some(claim) if claim.holds() => claims.push(claim),
            Some(claim) => struck.push(format!("does not hold: {}", claim.text)),
            None => struck.push(format!("claims[{i}]: a number that it needs was not seen")),
        }
    }
    let names = |scope: &Scope| {
        claims.iter().flat_map(|c| &c.evidence).any(|e| {
            e.scope == *scope
                || matches!(&e.by, Some(By::Cgroup(path)) if scope.path() == Some(path))
        })
    };
    let bears = bears_cause(&claims) && culprit.as_ref().is_none_or(|c| binds(&claims, c));
    let verdict = match said.verdict {
        Said::Cause if bears && category != Category::None => Verdict::Cause,
        Said::NothingWrong if is_all_normal(case) => Verdict::NothingWrong,
        Said::Cause | Said::Inconclusive | Said::NothingWrong => Verdict::Inconclusive,
    };
    let cause = verdict == Verdict::Cause;
    let mut victims = Vec::new();
    for victim in &said.victims {
        let victim = scope(victim)?;
        if names(&victim) {
            victims.push(victim);
        }
    }
    let borrowed = case
        .incident
        .series
        .iter()
        .all(|s| s.baseline == Source::Borrowed);
    let confidence = confidence(&Grounds {
        required: &claims,
        supporting: &[],
        against: struck.len(),
        borrowed,
        agreed: agrees(category, culprit.as_ref()),
        before: case.has_before(),
        quality,
    });
    let strangers: Vec<&str> = case.newest.scopes.keys().filter_map(Scope::path).collect();
    let words = |text: &str| words::borne_out(text, &claims, &strangers);
    let mut hypotheses = Vec::new();
    for hypothesis in &said.hypotheses {
        match (words(&hypothesis.text), words(&hypothesis.why)) {
            (Some(text), Some(why)) => hypotheses.push(Hypothesis {
                text,
                status: status(hypothesis.status, cause),
                why,
            }),
            _ => struck
                .push("a hypothesis has a number or a name that no claim bears out".to_owned()),
        }
    }
    let summary = words(&said.summary);
    Ok(Conclusion {
        verdict,
        category: if cause { category } else { Category::None },
        culprit: culprit.filter(|_| cause),
        victims: if cause { victims } else { Vec::new() },
        hypotheses,
        claims,
        struck,
        summary,
        confidence: if cause { confidence } else { 0.0 },
    })
}

/// Whether every series of the incident is within what is normal for it again.
fn is_all_normal(case: &Case<'_>) -> bool {
    let normal = |scope: &Scope, name: &str| {
        let metric = case.metric(name).map(|m| m.name)?;
        let scope = scope.clone();
        Statement::Normal { scope, metric }.check(case)
    };
    case.incident
        .series
        .iter()
        .all(|series| normal(&series.scope, &series.metric).is_some_and(|claim| claim.holds()))
}

/// What supports no cause is not decided.
fn status(said: HypothesisStatus, cause: bool) -> Status {
    match said {
        HypothesisStatus::Supported if cause => Status::Supported,
        HypothesisStatus::Rejected => Status::Rejected,
        HypothesisStatus::Supported | HypothesisStatus::Open => Status::Open,
    }
}

fn scope(text: &str) -> Result<Scope, String> {
    text.parse()
        .map_err(|why: crate::base::scope::ScopeError| why.to_string())
}

fn part(least: f64) -> Result<f64, String> {
    let fits = least > 0.0 && least <= 1.0;
    fits.then_some(least)
        .ok_or_else(|| format!("`least` is {least}, and goes from 0 to 1"))
}

fn times(factor: f64) -> Result<f64, String> {
    let fits = factor >= 1.0;
    fits.then_some(factor)
        .ok_or_else(|| format!("`factor` is {factor}, and begins at 1"))
}

fn statement(said: &ClaimArguments, case: &Case<'_>) -> Result<Statement, String> {
    let metric = |name: &str| {
        case.metric(name)
            .map(|m| m.name)
            .ok_or_else(|| format!("there is no metric `{name}`"))
    };
    Ok(match said {
        ClaimArguments::Change {
            scope: at,
            metric: name,
            direction,
        } => {
            let (scope, metric) = (scope(at)?, metric(name)?);
            match direction {
                Direction::Up => Statement::Rose { scope, metric },
                Direction::Down => Statement::Fell { scope, metric },
            }
        }
        ClaimArguments::Pair {
            victim,
            metric: name,
            by,
            least,
        } => Statement::Caused {
            victim: scope(victim)?,
            metric: metric(name)?,
            by: by.as_str().into(),
            least: part(*least)?,
        },
        ClaimArguments::Share {
            scope: at,
            metric: name,
            least,
        } => Statement::Share {
            scope: scope(at)?,
            metric: metric(name)?,
            least: part(*least)?,
        },
        ClaimArguments::Limit {
            scope: at,
            metric: name,
            limit,
            least,
        } => Statement::Reached {
            scope: scope(at)?,
            metric: metric(name)?,
            limit: metric(limit)?,
            least: part(*least)?,
        },
        ClaimArguments::Order {
            first_scope,
            first_metric,
            then_scope,
            then_metric,
        } => Statement::Order {
            first: (scope(first_scope)?, metric(first_metric)?),
            then: (scope(then_scope)?, metric(then_metric)?),
        },
        ClaimArguments::Level {
            scope: at,
            metric: name,
            other,
            factor,
        } => Statement::Exceeds {
            scope: scope(at)?,
            metric: metric(name)?,
            other: scope(other)?,
            factor: times(*factor)?,
        },
        ClaimArguments::Absence {
            scope: at,
            metric: name,
        } => Statement::Normal {
            scope: scope(at)?,
            metric: metric(name)?,
        },
    })
}
