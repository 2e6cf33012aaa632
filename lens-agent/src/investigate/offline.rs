//! The strategy that needs no model: every mechanism proposes, code checks, the best that holds
//! is the answer. Free, and always there.

use std::collections::BTreeSet;

use super::{
    case::Case,
    category::Category,
    claim::{Claim, Kind, Statement},
    evidence::{Grounds, bears_cause, binds, confidence},
    insight::{Correlation, Hypothesis, Status, Verdict},
    mechanisms::{Mechanism, Proposal, REGISTRY},
};
use crate::{
    anomaly::Source,
    base::{quality::Quality, scope::Scope},
};

/// The name of this strategy.
pub const NAME: &str = "offline";

/// What the case bears, before it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Whether a cause was found.
    pub verdict: Verdict,
    /// Which.
    pub category: Category,
    /// Whose behaviour or limit must change.
    pub culprit: Option<Scope>,
    /// Who suffers.
    pub victims: Vec<Scope>,
    /// What holds.
    pub claims: Vec<Claim>,
    /// What was considered.
    pub hypotheses: Vec<Hypothesis>,
    /// What to do.
    pub next_steps: Vec<String>,
    /// 0 to 1.
    pub confidence: f64,
    /// What was not seen.
    pub quality: Quality,
}

impl Answer {
    /// What is said when nothing was looked at.
    pub fn nothing() -> Self {
        Self {
            verdict: Verdict::Inconclusive,
            category: Category::None,
            culprit: None,
            victims: Vec::new(),
            claims: Vec::new(),
            hypotheses: Vec::new(),
            next_steps: Vec::new(),
            confidence: 0.0,
            quality: Quality::default(),
        }
    }

    /// Whether another answer says the same.
    pub fn agrees(&self, other: &Self) -> bool {
        (self.verdict, self.category, &self.culprit)
            == (other.verdict, other.category, &other.culprit)
    }

    /// How the series belong together.
    pub fn correlation(&self) -> Option<Correlation> {
        let linked = self.claims.iter().any(|c| c.kind == Kind::Pair);
        match self.verdict {
            Verdict::Cause if linked => Some(Correlation::Causal),
            Verdict::Cause => Some(Correlation::Symptomatic),
            _ => None,
        }
    }
}

/// One proposal, checked.
#[derive(Clone, Debug)]
struct Finding {
    proposal: Proposal,
    required: Vec<Claim>,
    supporting: Vec<Claim>,
    confidence: f64,
}

/// Works out what is behind `case`; `last` is the answer at the reading before.
pub fn investigate(case: &Case<'_>, last: Option<&Answer>) -> Answer {
    investigate_with(REGISTRY, case, last)
}

/// The same, with these mechanisms only.
pub fn investigate_with(
    mechanisms: &[&dyn Mechanism],
    case: &Case<'_>,
    last: Option<&Answer>,
) -> Answer {
    let quality = quality(case);
    let mut findings = Vec::new();
    let mut hypotheses = Vec::new();
    for proposal in mechanisms.iter().flat_map(|m| m.propose(case)) {
        match check(case, proposal, &quality, last) {
            Ok(finding) => findings.push(finding),
            Err(rejected) => hypotheses.push(rejected),
        }
    }
    findings.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let Some(best) = best(&findings) else {
        return Answer {
            hypotheses,
            quality,
            ..Answer::nothing()
        };
    };
    hypotheses.insert(
        0,
        told(
            &best,
            Status::Supported,
            "all of its claims hold".to_owned(),
        ),
    );
    for other in findings.iter().filter(|f| f.proposal != best.proposal) {
        let why = format!("it explains less than {}", best.proposal.category);
        hypotheses.push(told(other, Status::Open, why));
    }
    let mut claims = best.required;
    claims.extend(best.supporting);
    Answer {
        verdict: Verdict::Cause,
        category: best.proposal.category,
        culprit: best.proposal.culprit,
        victims: best.proposal.victims,
        claims,
        hypotheses,
        next_steps: best.proposal.next_steps,
        confidence: best.confidence,
        quality,
    }
}

fn check(
    case: &Case<'_>,
    proposal: Proposal,
    quality: &Quality,
    last: Option<&Answer>,
) -> Result<Finding, Hypothesis> {
    let mut required = Vec::new();
    let reject = |why: String| Hypothesis {
        text: sentence(&proposal),
        status: Status::Rejected,
        why,
    };
    for statement in &proposal.required {
        match statement.check(case) {
            Some(claim) if claim.holds() => required.push(claim),
            Some(claim) => return Err(reject(format!("does not hold: {}", claim.text))),
            None => return Err(reject(unseen(statement))),
        }
    }
    let checked: Vec<_> = proposal
        .supporting
        .iter()
        .filter_map(|s| s.check(case))
        .collect();
    let (supporting, against): (Vec<_>, Vec<_>) = checked.into_iter().partition(Claim::holds);
    let claims: Vec<Claim> = required.iter().chain(&supporting).cloned().collect();
    let bound = |culprit: &Scope| binds(&claims, culprit);
    if !bears_cause(&claims) || !proposal.culprit.as_ref().is_none_or(bound) {
        return Err(reject("nothing binds it to what changed".to_owned()));
    }
    let borrowed = case
        .incident
        .series
        .iter()
        .all(|s| s.baseline == Source::Borrowed);
    let agreed =
        last.is_some_and(|l| l.category == proposal.category && l.culprit == proposal.culprit);
    let confidence = confidence(&Grounds {
        required: &required,
        supporting: &supporting,
        against: against.len(),
        borrowed,
        agreed,
        before: case.has_before(),
        quality,
    });
    Ok(Finding {
        proposal,
        required,
        supporting,
        confidence,
    })
}

/// The most credible; but where another says what the same culprit does, that one, with the
/// victims of both.
fn best(findings: &[Finding]) -> Option<Finding> {
    let first = findings.first()?;
    let doing = findings.iter().find(|f| {
        f.proposal.category.is_behaviour() && f.proposal.culprit == first.proposal.culprit
    });
    let mut best = doing.unwrap_or(first).clone();
    if best.proposal != first.proposal {
        let known: BTreeSet<Scope> = best.proposal.victims.iter().cloned().collect();
        let more = first
            .proposal
            .victims
            .iter()
            .filter(|v| !known.contains(v))
            .cloned();
        best.proposal.victims.extend(more);
        best.supporting.extend(first.required.iter().cloned());
        best.confidence = best.confidence.max(first.confidence);
    }
    Some(best)
}

fn told(finding: &Finding, status: Status, why: String) -> Hypothesis {
    Hypothesis {
        text: sentence(&finding.proposal),
        status,
        why,
    }
}

fn sentence(proposal: &Proposal) -> String {
    let meaning = proposal.category.meaning().trim();
    match (&proposal.culprit, proposal.victims.first()) {
        (Some(culprit), Some(victim)) if culprit != victim => {
            format!(
                "{}: {victim} {meaning}; the other is {culprit}",
                proposal.category
            )
        }
        (Some(culprit), _) => format!("{}: {culprit} {meaning}", proposal.category),
        (None, Some(victim)) => format!("{}: {victim} {meaning}", proposal.category),
        (None, None) => format!("{}: {meaning}", proposal.category),
    }
}

fn unseen(statement: &Statement) -> String {
    format!(
        "cannot be checked, a number is missing: {:?}",
        statement.kind()
    )
}

/// What the snapshots of the incident's scopes did not see.
fn quality(case: &Case<'_>) -> Quality {
    let mut quality = Quality::default();
    for scope in case.cgroups() {
        for snapshot in case.newest.scopes.get(scope).into_iter().flatten() {
            quality.merge(&snapshot.quality);
        }
    }
    quality
}
