//! What holds of a model's conclusion.

use super::tools::{ClaimArguments, Direction, HypothesisStatus, ProduceInsight, Verdict as Said};
use crate::{
    anomaly::Source,
    base::{quality::Quality, scope::Scope, snapshot::By},
    investigate::{
        case::Case,
        category::Category,
        claim::{Claim, Statement},
        evidence::{Grounds, bears_cause, confidence},
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
    let bears = bears_cause(&claims) && culprit.as_ref().is_none_or(&names);
    let verdict = match said.verdict {
        Said::Cause if bears && category != Category::None => Verdict::Cause,
        Said::Cause | Said::Inconclusive => Verdict::Inconclusive,
        Said::NothingWrong => Verdict::NothingWrong,
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
        quality,
    });
    let summary = words::are_borne_out(&said.summary, &claims).then(|| said.summary.clone());
    Ok(Conclusion {
        verdict,
        category: if cause { category } else { Category::None },
        culprit: culprit.filter(|_| cause),
        victims: if cause { victims } else { Vec::new() },
        hypotheses: said.hypotheses.iter().map(hypothesis).collect(),
        claims,
        struck,
        summary,
        confidence: if cause { confidence } else { 0.0 },
    })
}

fn hypothesis(said: &super::tools::HypothesisArguments) -> Hypothesis {
    Hypothesis {
        text: said.text.clone(),
        status: match said.status {
            HypothesisStatus::Supported => Status::Supported,
            HypothesisStatus::Rejected => Status::Rejected,
            HypothesisStatus::Open => Status::Open,
        },
        why: said.why.clone(),
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
