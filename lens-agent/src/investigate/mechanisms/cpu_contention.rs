//! Waits for a CPU that another holds.
//!
//! Told from its neighbours: under its own quota a cgroup waits as well, but behind nobody
//! (`cpu_throttling`); eight spinners wait for one another, which is their own affair. So it takes
//! a victim whose waits behind *others* rose, and one other cgroup that held the CPU for a good
//! part of them, more than it did before. And the one that changed is the other: it uses more CPU than
//! it used to, and the victim does not. Who begins to burn CPU beside one that was busy already
//! waits too, and has nobody to blame.

use super::{Mechanism, Proposal};
use crate::{
    base::{scope::Scope, snapshot::By},
    investigate::{case::Case, category::Category, claim::Statement},
};

#[derive(Debug)]
pub(super) struct CpuContention;

const CPU: &str = "cpu_ms_per_sec";
/// A victim's waits behind others.
pub(super) const WAIT: &str = "runq_wait_others_ms_per_sec";
/// The part of them that makes a culprit: the largest of several that changed.
const CULPRIT: f64 = 0.3;
/// The part that makes a victim one of this culprit's.
const SAME: f64 = 0.3;

impl Mechanism for CpuContention {
    fn category(&self) -> Category {
        Category::CpuContention
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        let mut victims: Vec<(&Scope, f64)> = case
            .anomalous(WAIT)
            .filter(|scope| **scope != Scope::Host)
            .filter_map(|scope| Some((scope, case.value(scope, WAIT)?)))
            .collect();
        // One that has grown is no victim, and is struck out. The root cgroup holds whatever
        // nobody has put anywhere: a service is told first.
        let last = |scope: &Scope| (case.grew(scope, CPU), scope.path() == Some("/"));
        victims.sort_by(|a, b| last(a.0).cmp(&last(b.0)).then(b.1.total_cmp(&a.1)));
        let mut proposals: Vec<Proposal> = Vec::new();
        for (victim, _) in &victims {
            let Some(culprit) = culprit(case, victim) else {
                continue;
            };
            let known = |p: &Proposal| p.culprit.as_ref() == Some(&culprit);
            if !proposals.iter().any(known) {
                proposals.push(proposal(case, victim, culprit, &victims));
            }
        }
        proposals
    }
}

/// `culprit` holds the CPU for which `victim` waits, and others of the `waiting`.
fn proposal(
    case: &Case<'_>,
    victim: &Scope,
    culprit: Scope,
    waiting: &[(&Scope, f64)],
) -> Proposal {
    let by = By::Cgroup(culprit.path().unwrap_or_default().into());
    let also = waiting.iter().filter(|(scope, waited)| {
        let held = case.newest.pair(scope, WAIT, &by).unwrap_or_default();
        *scope != victim && **scope != culprit && !case.grew(scope, CPU) && held >= SAME * waited
    });
    let mut victims = vec![victim.clone()];
    victims.extend(also.map(|(scope, _)| (*scope).clone()));
    let caused = |victim: &Scope, least: f64| Statement::Caused {
        victim: victim.clone(),
        metric: WAIT,
        by: by.clone(),
        least,
    };
    let (scope, metric) = (victim.clone(), WAIT);
    let mut required = vec![Statement::Rose { scope, metric }, caused(victim, CULPRIT)];
    // A cgroup that is not watched has no numbers of its own.
    if case.value(&culprit, CPU).is_some() {
        let (scope, metric) = (culprit.clone(), CPU);
        required.push(Statement::Rose { scope, metric });
    }
    if case.value(victim, CPU).is_some() {
        let (scope, metric) = (victim.clone(), CPU);
        required.push(Statement::Kept { scope, metric });
    }
    let mut supporting = vec![
        Statement::Normal {
            scope: victim.clone(),
            metric: "runq_wait_quota_ms_per_sec",
        },
        Statement::Share {
            scope: culprit.clone(),
            metric: CPU,
            least: 0.3,
        },
    ];
    supporting.extend(victims.iter().skip(1).map(|scope| caused(scope, SAME)));
    Proposal {
        category: Category::CpuContention,
        required,
        supporting,
        next_steps: vec![
            format!("Give {culprit} a lower CPU weight or a quota, or move it to other CPUs."),
            format!("If {culprit} is meant to have the CPU, give {victim} a higher weight."),
        ],
        culprit: Some(culprit),
        victims,
    }
}

/// Of those that held the CPU for a good part of the victim's waits, the first that changed; if
/// none did, the first.
fn culprit(case: &Case<'_>, victim: &Scope) -> Option<Scope> {
    let waited = case.value(victim, WAIT)?;
    let causers = case.causers(victim, WAIT);
    let mut guilty = causers
        .iter()
        .filter(|(_, held)| *held >= CULPRIT * waited)
        .map(|(path, _)| Scope::Cgroup(path.clone()));
    let changed = guilty.clone().find(|scope| case.rose(scope, CPU));
    changed.or_else(|| guilty.next())
}
