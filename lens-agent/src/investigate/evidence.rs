//! From checked claims to a verdict and a confidence.

use std::collections::BTreeSet;

use super::claim::{Claim, Kind};
use crate::base::{quality::Quality, scope::Scope, snapshot::By};

/// Kinds that bind a culprit to a victim or to a resource.
const LINKS: &[Kind] = &[Kind::Pair, Kind::Share, Kind::Limit, Kind::Order];

/// Whether these claims bear a cause: at least one change at the onset, and one link.
pub fn bears_cause(claims: &[Claim]) -> bool {
    let has = |kinds: &[Kind]| claims.iter().any(|c| c.holds() && kinds.contains(&c.kind));
    // A pair shows the victim's change as well.
    has(&[Kind::Change, Kind::Pair]) && has(LINKS)
}

/// Whether these claims bind `culprit` to what they say: it caused what a victim waits for, or it
/// changed and something links it to a resource. That it occurs in some claim is not enough.
pub fn binds(claims: &[Claim], culprit: &Scope) -> bool {
    let holding = || claims.iter().filter(|c| c.holds());
    let is_by =
        |by: &Option<By>| matches!(by, Some(By::Cgroup(path)) if culprit.path() == Some(path));
    let caused = holding().any(|c| c.kind == Kind::Pair && c.evidence.iter().any(|e| is_by(&e.by)));
    let is_about = |c: &Claim| c.evidence.iter().any(|e| e.scope == *culprit);
    let about = |kinds: &[Kind]| holding().any(|c| kinds.contains(&c.kind) && is_about(c));
    caused || about(&[Kind::Change]) && about(&[Kind::Share, Kind::Limit, Kind::Order])
}

/// What confidence begins with when all required claims hold.
const BASE: f64 = 0.6;
/// For each supporting claim that holds, up to [`SUPPORT_MAX`].
const SUPPORT: f64 = 0.08;
const SUPPORT_MAX: f64 = 0.24;
/// For claims from at least two skills: they are counted by different programs.
const CORROBORATED: f64 = 0.08;
/// For a second answer that agrees.
const AGREED: f64 = 0.05;
/// When a range was borrowed, the victim was never seen when it was well.
const BORROWED: f64 = 0.85;
/// Nothing is certain.
const MOST: f64 = 0.97;
/// When nothing was seen before the onset, whatever holds may have held all along.
const MOST_WITHOUT_BEFORE: f64 = 0.6;
/// With events lost in what was counted.
const MOST_WITH_LOSS: f64 = 0.7;
/// With something missing that would have been looked at.
const MOST_WITH_MISSING: f64 = 0.75;

/// What a confidence is made of.
#[derive(Clone, Copy, Debug)]
pub struct Grounds<'a> {
    /// Claims that were required, all of which hold.
    pub required: &'a [Claim],
    /// Other claims that hold.
    pub supporting: &'a [Claim],
    /// Supporting statements that do not hold.
    pub against: usize,
    /// Whether a range was borrowed.
    pub borrowed: bool,
    /// Whether the answer before said the same.
    pub agreed: bool,
    /// Whether the time before the onset was seen.
    pub before: bool,
    /// What was not seen.
    pub quality: &'a Quality,
}

/// 0 to 1: `BASE`, plus support, corroboration and agreement, less what speaks against it, capped
/// by what was not seen.
pub fn confidence(grounds: &Grounds<'_>) -> f64 {
    let support = (SUPPORT * grounds.supporting.len() as f64).min(SUPPORT_MAX);
    let skills: BTreeSet<&str> = grounds
        .required
        .iter()
        .chain(grounds.supporting)
        .flat_map(|c| &c.evidence)
        .filter_map(|e| e.snapshot.parts().map(|(_, skill, _)| skill))
        .collect();
    let corroborated = if skills.len() >= 2 { CORROBORATED } else { 0.0 };
    let agreed = if grounds.agreed { AGREED } else { 0.0 };
    let against = SUPPORT * grounds.against as f64;
    let mut confidence = BASE + support + corroborated + agreed - against;
    if grounds.borrowed {
        confidence *= BORROWED;
    }
    if !grounds.before {
        confidence = confidence.min(MOST_WITHOUT_BEFORE);
    }
    confidence.min(cap(grounds.quality)).clamp(0.0, 1.0)
}

/// The most confidence that what was seen allows.
pub fn cap(quality: &Quality) -> f64 {
    let lost: u64 = quality.lost.values().sum();
    let mut most: f64 = MOST;
    if lost != 0 {
        most = most.min(MOST_WITH_LOSS);
    }
    if !quality.missing.is_empty() {
        most = most.min(MOST_WITH_MISSING);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{scope::Scope, snapshot::SnapshotId},
        investigate::claim::{Evidence, Relation},
    };

    fn claim(kind: Kind, skill: &str, holds: bool) -> Claim {
        let evidence = Evidence {
            snapshot: SnapshotId::new(1, skill, &Scope::Host),
            scope: Scope::Host,
            metric: "m".to_owned(),
            by: None,
            relation: Relation::More,
            value: 1.0,
            seen: 2.0,
            holds,
        };
        Claim {
            kind,
            text: String::new(),
            evidence: vec![evidence],
        }
    }

    fn of(required: &[Claim], supporting: &[Claim], quality: &Quality) -> f64 {
        let grounds = Grounds {
            required,
            supporting,
            against: 0,
            borrowed: false,
            agreed: true,
            before: true,
            quality,
        };
        confidence(&grounds)
    }

    #[test]
    fn a_cause_needs_a_change_and_a_link_that_hold() {
        let change = claim(Kind::Change, "a", true);
        let share = claim(Kind::Share, "a", true);
        assert!(bears_cause(&[change.clone(), share.clone()]));
        assert!(!bears_cause(std::slice::from_ref(&change)));
        assert!(!bears_cause(std::slice::from_ref(&share)));
        assert!(!bears_cause(&[change, claim(Kind::Share, "a", false)]));
    }

    #[test]
    fn a_culprit_is_bound_by_what_it_did_not_by_being_named() {
        let of = |kind, scope: &Scope, by: Option<&str>| {
            let mut claim = claim(kind, "a", true);
            claim.evidence[0].scope = scope.clone();
            claim.evidence[0].by = by.map(By::from);
            claim
        };
        let (shop, batch, idle) = (
            Scope::cgroup("/shop"),
            Scope::cgroup("/batch"),
            Scope::cgroup("/idle"),
        );
        let claims = [
            of(Kind::Pair, &shop, Some("/batch")),
            of(Kind::Change, &shop, None),
            of(Kind::Absence, &idle, None),
            of(Kind::Share, &idle, None),
        ];
        assert!(binds(&claims, &batch));
        assert!(!binds(&claims, &idle), "a share, and no change");
        assert!(!binds(&claims, &shop), "a change, and no link");
        let throttled = [of(Kind::Change, &shop, None), of(Kind::Share, &shop, None)];
        assert!(binds(&throttled, &shop));
    }

    #[test]
    fn support_and_a_second_skill_raise_it_and_loss_caps_it() {
        let quality = Quality::default();
        let required = [claim(Kind::Change, "scheduler", true)];
        let alone = of(&required, &[], &quality);
        let supported = of(
            &required,
            &[claim(Kind::Change, "processes", true)],
            &quality,
        );
        assert!(supported > alone + 0.1, "{supported} {alone}");
        let lossy = Quality {
            lost: [("sched.tasks".to_owned(), 1)].into(),
            ..quality
        };
        let many = vec![claim(Kind::Share, "processes", true); 9];
        assert_eq!(of(&required, &many, &lossy), MOST_WITH_LOSS);
    }
}
