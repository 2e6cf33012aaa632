//! Keeps memory and does not give it back.
//!
//! Told from healthy growth: a cache that warms up or a new version with a higher level rises and
//! then stays; a heap goes up and down. A leak goes on: at nearly every reading since the onset
//! there is more than before, and now is the most of all.

use super::{Mechanism, Proposal};
use crate::{
    base::scope::Scope,
    investigate::{case::Case, category::Category, claim::Statement},
};

#[derive(Debug)]
pub(super) struct MemoryLeak;

const RSS: &str = "rss_bytes";
/// Readings since the onset that it takes to see that it goes on.
const READINGS: usize = 5;
/// The part of them at which there must be more than before.
const RISING: f64 = 0.8;
/// What is given back at once may be this part of all at most: a heap that goes up and down gives
/// back more.
const GIVEN_BACK: f64 = 0.1;
/// The last reading must still add at least this part of the average rise: it has not levelled off.
const GOING_ON: f64 = 0.25;

impl Mechanism for MemoryLeak {
    fn category(&self) -> Category {
        Category::MemoryLeak
    }

    fn propose(&self, case: &Case<'_>) -> Vec<Proposal> {
        let grown = case.anomalous(RSS).filter(|scope| **scope != Scope::Host);
        grown
            .filter(|scope| goes_on(&case.since(scope, RSS)))
            .map(proposal)
            .collect()
    }
}

fn proposal(scope: &Scope) -> Proposal {
    let rose = |metric| Statement::Rose {
        scope: scope.clone(),
        metric,
    };
    Proposal {
        category: Category::MemoryLeak,
        culprit: Some(scope.clone()),
        victims: Vec::new(),
        required: vec![
            rose(RSS),
            rose("rss_growth_bytes_per_sec"),
            Statement::Share {
                scope: scope.clone(),
                metric: "rss_growth_bytes_per_sec",
                least: 0.5,
            },
        ],
        supporting: vec![
            rose("page_allocs_bytes_per_sec"),
            Statement::Share {
                scope: scope.clone(),
                metric: "page_allocs_bytes_per_sec",
                least: 0.3,
            },
        ],
        next_steps: vec![format!(
            "See what {scope} allocates and keeps (`lens run --fault-stack-one-in 64` takes the stacks of page faults); restart it before memory runs out."
        )],
    }
}

fn goes_on(values: &[f64]) -> bool {
    let steps: Vec<f64> = values.windows(2).map(|w| w[1] - w[0]).collect();
    let (Some(last), Some(first)) = (values.last(), values.first()) else {
        return false;
    };
    let rising = steps.iter().filter(|s| **s > 0.0).count() as f64;
    let average = (last - first) / steps.len().max(1) as f64;
    values.len() >= READINGS
        && rising >= RISING * steps.len() as f64
        && values.iter().all(|v| v <= last)
        && steps.iter().all(|s| *s >= -GIVEN_BACK * last)
        && steps.last().is_some_and(|s| *s >= GOING_ON * average)
}

#[cfg(test)]
mod tests {
    use super::goes_on;

    #[test]
    fn only_what_goes_on_is_a_leak() {
        assert!(goes_on(&[100.0, 160.0, 220.0, 280.0, 340.0]));
        assert!(
            !goes_on(&[100.0, 300.0, 300.0, 300.0, 300.0]),
            "a new level"
        );
        assert!(
            !goes_on(&[100.0, 200.0, 300.0, 120.0, 220.0, 320.0]),
            "a saw-tooth"
        );
        assert!(!goes_on(&[100.0, 200.0]), "too early to say");
    }
}
