//! Statements that code checks. What an insight says beyond them is marked as speculation.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::case::Case;
use crate::{
    anomaly::Source,
    base::{
        metric::Unit,
        scope::Scope,
        snapshot::{By, SnapshotId},
    },
};

/// What a claim is about: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A number against another scope's, or against physics.
    Level,
    /// A number against what is normal for it.
    Change,
    /// Which of two things began first.
    Order,
    /// A part of what the host has of something.
    Share,
    /// How much of a victim's wait an aggressor caused.
    Pair,
    /// A number against the limit that is set for it.
    Limit,
    /// Something that would be there if it were otherwise is not.
    Absence,
}

/// How `seen` stands to `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    /// Less.
    #[serde(rename = "<")]
    Less,
    /// At most.
    #[serde(rename = "<=")]
    AtMost,
    /// The same, within [`TOLERANCE`].
    #[serde(rename = "=")]
    Equal,
    /// At least.
    #[serde(rename = ">=")]
    AtLeast,
    /// More.
    #[serde(rename = ">")]
    More,
}

/// Equality is equality within one percent.
pub const TOLERANCE: f64 = 0.01;

impl Relation {
    /// Whether it holds.
    pub fn holds(self, seen: f64, value: f64) -> bool {
        match self {
            Self::Less => seen < value,
            Self::AtMost => seen <= value,
            Self::Equal => (seen - value).abs() <= TOLERANCE * value.abs(),
            Self::AtLeast => seen >= value,
            Self::More => seen > value,
        }
    }
}

/// One number of one snapshot, and what it was held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Where the number stands.
    pub snapshot: SnapshotId,
    /// Whose it is.
    pub scope: Scope,
    /// Which.
    pub metric: String,
    /// The part that this one caused, or all of it.
    pub by: Option<By>,
    /// How it should stand to `value`.
    pub relation: Relation,
    /// From a baseline, a limit, another scope or another time; never from the number itself.
    pub value: f64,
    /// The number.
    pub seen: f64,
    /// Whether the relation holds.
    pub holds: bool,
}

/// A statement with its evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// What it is about.
    pub kind: Kind,
    /// The sentence, written by code.
    pub text: String,
    /// Why it is true; never empty.
    pub evidence: Vec<Evidence>,
}

impl Claim {
    /// Whether all of its evidence holds.
    pub fn holds(&self) -> bool {
        !self.evidence.is_empty() && self.evidence.iter().all(|e| e.holds)
    }
}

/// A statement to be checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// `metric` of `scope` is above what is normal for it, and was not before the onset.
    Rose {
        /// Where.
        scope: Scope,
        /// What.
        metric: &'static str,
    },
    /// `metric` of `scope` is below what is normal for it, and was not before the onset.
    Fell {
        /// Where.
        scope: Scope,
        /// What.
        metric: &'static str,
    },
    /// Of the victim's `metric`, which rose, `by` caused at least the part `least` (0 to 1), and
    /// did not cause that much before the onset.
    Caused {
        /// Who waits.
        victim: Scope,
        /// For what.
        metric: &'static str,
        /// Who caused it.
        by: By,
        /// The least part of it.
        least: f64,
    },
    /// `metric` of `scope` makes at least the part `least` of the host's.
    Share {
        /// Whose.
        scope: Scope,
        /// What.
        metric: &'static str,
        /// The least part.
        least: f64,
    },
    /// `metric` of `scope` makes at least the part `least` of its `of`.
    Part {
        /// Whose.
        scope: Scope,
        /// What.
        metric: &'static str,
        /// Of what.
        of: &'static str,
        /// The least part.
        least: f64,
    },
    /// `metric` of `scope` has reached the part `least` of its limit, another metric.
    Reached {
        /// Whose.
        scope: Scope,
        /// What.
        metric: &'static str,
        /// The metric that tells the limit.
        limit: &'static str,
        /// How near.
        least: f64,
    },
    /// `metric` of `scope` is at least `factor` times that of `other`.
    Exceeds {
        /// Whose.
        scope: Scope,
        /// What.
        metric: &'static str,
        /// The other.
        other: Scope,
        /// How many times.
        factor: f64,
    },
    /// The first series left its range no later than the second.
    Order {
        /// The earlier.
        first: (Scope, &'static str),
        /// The later.
        then: (Scope, &'static str),
    },
    /// `metric` of `scope` is no more than it was before the onset, but for a quarter.
    Kept {
        /// Whose.
        scope: Scope,
        /// What.
        metric: &'static str,
    },
    /// `metric` of `scope` is within what is normal for it.
    Normal {
        /// Whose.
        scope: Scope,
        /// What.
        metric: &'static str,
    },
}

/// Readings before the onset in which a relation held already, at the most, as a part of them.
const BEFORE_TOO: f64 = 0.1;

impl Statement {
    /// What it is about.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Rose { .. } | Self::Fell { .. } => Kind::Change,
            Self::Caused { .. } => Kind::Pair,
            Self::Share { .. } | Self::Part { .. } => Kind::Share,
            Self::Reached { .. } => Kind::Limit,
            Self::Exceeds { .. } => Kind::Level,
            Self::Order { .. } => Kind::Order,
            Self::Kept { .. } | Self::Normal { .. } => Kind::Absence,
        }
    }

    /// Holds it against what was seen. `None` if a number that it needs is not there.
    pub fn check(&self, case: &Case<'_>) -> Option<Claim> {
        let (text, evidence) = match self {
            Self::Rose { scope, metric } => change(case, scope, metric, true)?,
            Self::Fell { scope, metric } => change(case, scope, metric, false)?,
            Self::Caused {
                victim,
                metric,
                by,
                least,
            } => caused(case, victim, metric, by, *least)?,
            Self::Share {
                scope,
                metric,
                least,
            } => share(case, scope, metric, *least)?,
            Self::Part {
                scope,
                metric,
                of,
                least,
            } => part(case, scope, metric, of, *least)?,
            Self::Reached {
                scope,
                metric,
                limit,
                least,
            } => reached(case, scope, metric, limit, *least)?,
            Self::Exceeds {
                scope,
                metric,
                other,
                factor,
            } => exceeds(case, scope, metric, other, *factor)?,
            Self::Order { first, then } => order(case, first, then)?,
            Self::Kept { scope, metric } => kept(case, scope, metric)?,
            Self::Normal { scope, metric } => normal(case, scope, metric)?,
        };
        Some(Claim {
            kind: self.kind(),
            text,
            evidence,
        })
    }
}

/// A sentence and its evidence; `None` if a number is missing.
type Told = Option<(String, Vec<Evidence>)>;

fn change(case: &Case<'_>, scope: &Scope, metric: &str, up: bool) -> Told {
    let normal = case.normal(scope, metric)?;
    let (relation, value) = if up {
        (Relation::More, normal.high)
    } else {
        (Relation::Less, normal.low)
    };
    let mut row = evidence(case, scope, metric, None, relation, value)?;
    row = since_the_onset(case, row);
    let usual = match normal.source {
        Source::Own => "usual",
        Source::Borrowed => "to be expected, from others like it or from physical limits",
    };
    let bound = if up { "under" } else { "over" };
    let text = format!(
        "{} of {scope} is {} ({usual}: {bound} {}).",
        capital(&short(metric)),
        show(case, metric, row.seen),
        show(case, metric, value)
    );
    Some((text, vec![row]))
}

fn caused(case: &Case<'_>, victim: &Scope, metric: &str, by: &By, least: f64) -> Told {
    let (_, mut rows) = change(case, victim, metric, true)?;
    let whole = rows[0].seen;
    let mut part = evidence(
        case,
        victim,
        metric,
        Some(by),
        Relation::AtLeast,
        whole * least,
    )?;
    part = since_the_onset(case, part);
    part.holds &= part.seen > 0.0;
    let text = format!(
        "{victim} waited {} (usual: under {}); {} of it behind {by}.",
        show(case, metric, whole),
        show(case, metric, rows[0].value),
        percent(part.seen, whole)
    );
    rows.push(part);
    Some((text, rows))
}

fn share(case: &Case<'_>, scope: &Scope, metric: &str, least: f64) -> Told {
    let whole = case.value(&Scope::Host, metric)?;
    let row = since_the_onset(case, at_least(case, scope, metric, whole * least)?);
    let (part, name) = (percent(row.seen, whole), short(metric));
    let seen = show(case, metric, row.seen);
    let text = format!("{scope} makes {part} of the host's {name} ({seen}).");
    Some((text, vec![row]))
}

fn part(case: &Case<'_>, scope: &Scope, metric: &str, of: &str, least: f64) -> Told {
    let whole = case.value(scope, of)?;
    let row = since_the_onset(case, at_least(case, scope, metric, whole * least)?);
    let part = percent(row.seen, whole);
    let text = format!(
        "{part} of the {} of {scope} is {}.",
        short(of),
        short(metric)
    );
    Some((text, vec![row]))
}

fn reached(case: &Case<'_>, scope: &Scope, metric: &str, limit: &str, least: f64) -> Told {
    let most = case.value(scope, limit)?;
    let row = since_the_onset(case, at_least(case, scope, metric, most * least)?);
    let (seen, most) = (show(case, metric, row.seen), show(case, limit, most));
    let name = short(metric);
    let text = format!("{scope} is at {seen} of {name}, and its limit is {most}.");
    Some((text, vec![row]))
}

fn exceeds(case: &Case<'_>, scope: &Scope, metric: &str, other: &Scope, factor: f64) -> Told {
    let least = case.value(other, metric)? * factor;
    let row = since_the_onset(case, at_least(case, scope, metric, least)?);
    let (seen, least) = (show(case, metric, row.seen), show(case, metric, least));
    let name = capital(&short(metric));
    let text = format!("{name} of {scope} is {seen}; {factor} times that of {other} is {least}.");
    Some((text, vec![row]))
}

fn kept(case: &Case<'_>, scope: &Scope, metric: &str) -> Told {
    let most = case.most_before(scope, metric)?;
    let row = evidence(case, scope, metric, None, Relation::AtMost, most)?;
    let (seen, most) = (show(case, metric, row.seen), show(case, metric, most));
    let name = capital(&short(metric));
    let text = format!("{name} of {scope} did not grow: {seen}, to be expected up to {most}.");
    Some((text, vec![row]))
}

fn normal(case: &Case<'_>, scope: &Scope, metric: &str) -> Told {
    let high = case.normal(scope, metric)?.high;
    let row = evidence(case, scope, metric, None, Relation::AtMost, high)?;
    let (name, seen) = (capital(&short(metric)), show(case, metric, row.seen));
    Some((
        format!("{name} of {scope} is as usual ({seen})."),
        vec![row],
    ))
}

/// Onsets are compared as seconds since 1970.
fn order(case: &Case<'_>, first: &(Scope, &'static str), then: &(Scope, &'static str)) -> Told {
    let seconds = |t: jiff::Timestamp| t.as_millisecond() as f64 / 1e3;
    let seen = seconds(case.onset_of(&first.0, first.1)?);
    let value = seconds(case.onset_of(&then.0, then.1)?);
    let mut row = evidence(case, &first.0, first.1, None, Relation::AtMost, value)?;
    row.seen = seen;
    row.holds = row.relation.holds(seen, value);
    let text = format!(
        "{} of {} left its range {:.0} s before {} of {}.",
        capital(&short(first.1)),
        first.0,
        (value - seen).max(0.0),
        short(then.1),
        then.0
    );
    Some((text, vec![row]))
}

fn at_least(case: &Case<'_>, scope: &Scope, metric: &str, value: f64) -> Option<Evidence> {
    evidence(case, scope, metric, None, Relation::AtLeast, value)
}

fn evidence(
    case: &Case<'_>,
    scope: &Scope,
    metric: &str,
    by: Option<&By>,
    relation: Relation,
    value: f64,
) -> Option<Evidence> {
    let snapshot = case.newest.with(scope, metric)?;
    let seen = match by {
        None => snapshot.value(metric, None)?,
        Some(by) => snapshot.value(metric, Some(by)).unwrap_or_default(),
    };
    Some(Evidence {
        snapshot: snapshot.id.clone(),
        scope: scope.clone(),
        metric: metric.to_owned(),
        by: by.cloned(),
        relation,
        value,
        seen,
        holds: relation.holds(seen, value),
    })
}

/// A relation that held before the onset too supports no cause.
fn since_the_onset(case: &Case<'_>, mut row: Evidence) -> Evidence {
    let before = case.before(&row.scope, &row.metric, row.by.as_ref());
    let held = before
        .iter()
        .filter(|v| row.relation.holds(**v, row.value))
        .count();
    row.holds &= held as f64 <= BEFORE_TOO * before.len() as f64;
    row
}

/// `runq_wait_ms_per_sec` for people.
fn short(metric: &str) -> String {
    let name = [
        "_ms_per_sec",
        "_bytes_per_sec",
        "_per_sec",
        "_bytes",
        "_ms",
        "_us",
        "_percent",
        "_ratio",
    ]
    .iter()
    .find_map(|unit| metric.strip_suffix(unit))
    .unwrap_or(metric);
    name.replace("runq", "run-queue").replace('_', " ")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn percent(part: f64, whole: f64) -> String {
    if whole <= 0.0 {
        "nothing".to_owned()
    } else {
        format!("{:.0} %", 100.0 * part / whole)
    }
}

/// A number with its unit.
pub(super) fn show(case: &Case<'_>, metric: &str, value: f64) -> String {
    let mut text = String::new();
    let unit = case.metric(metric).map_or(Unit::Count, |m| m.unit);
    let (value, suffix) = match unit {
        Unit::Count => (value, ""),
        Unit::PerSec => (value, "/s"),
        Unit::Bytes => (value / f64::from(1 << 20), " MiB"),
        Unit::BytesPerSec => (value / f64::from(1 << 20), " MiB/s"),
        Unit::Millis => (value, " ms"),
        Unit::MillisPerSec => (value, " ms/s"),
        Unit::Micros => (value, " µs"),
        Unit::Nanos => (value, " ns"),
        Unit::Percent => (value, " %"),
        Unit::Ratio => (value * 100.0, " %"),
        Unit::Seconds => (value, " s"),
    };
    let digits = usize::from(value.abs() < 10.0 && value.fract() != 0.0);
    // Writing to a string does not fail.
    let _ = write!(text, "{value:.digits$}{suffix}");
    text
}
