//! Whether a model may be asked: investigations by hour and day, and what one may take.
//!
//! Pure over the moments that it is given. What is spent can be stored and read again, so that a
//! restart does not reset it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Tokens;
use crate::{
    base::clock::Moment,
    telemetry::{Event, Refusal, Telemetry},
};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// What investigations with a model may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Investigations that begin within any hour.
    pub per_hour: u32,
    /// Investigations that begin within any 24 hours.
    pub per_day: u32,
    /// Time for one.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub within: Duration,
    /// Turns of the model in one.
    pub iterations: u32,
    /// Tokens for one, input and output.
    pub tokens: u64,
    /// US dollars within any 24 hours; counts only where prices are configured.
    pub usd_per_day: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_hour: 3,
            per_day: 20,
            within: Duration::from_mins(5),
            iterations: 25,
            tokens: 50_000,
            usd_per_day: None,
        }
    }
}

/// Why a model is not asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The hour's investigations are used up.
    #[error(
        "{limit} investigations with a model within an hour are the limit; again at {again_at}"
    )]
    PerHour {
        /// [`Limits::per_hour`].
        limit: u32,
        /// When the next may begin.
        again_at: Timestamp,
    },
    /// The day's investigations are used up.
    #[error("{limit} investigations with a model within a day are the limit; again at {again_at}")]
    PerDay {
        /// [`Limits::per_day`].
        limit: u32,
        /// When the next may begin.
        again_at: Timestamp,
    },
    /// The day's money is used up.
    #[error("{limit} US dollars within a day are the limit")]
    Money {
        /// [`Limits::usd_per_day`].
        limit: f64,
    },
    /// The investigation's time is up.
    #[error("the investigation took its {limit:?}")]
    Time {
        /// [`Limits::within`].
        limit: Duration,
    },
    /// The investigation's turns are used up.
    #[error("the investigation took its {limit} turns")]
    Iterations {
        /// [`Limits::iterations`].
        limit: u32,
    },
    /// The investigation's tokens are used up.
    #[error("the investigation took its {limit} tokens")]
    Tokens {
        /// [`Limits::tokens`].
        limit: u64,
    },
}

impl Refused {
    fn refusal(&self) -> Refusal {
        match self {
            Self::PerHour { .. } | Self::PerDay { .. } => Refusal::RateLimit,
            Self::Money { .. }
            | Self::Time { .. }
            | Self::Iterations { .. }
            | Self::Tokens { .. } => Refusal::Budget,
        }
    }
}

/// What the last day's investigations took, oldest first. To be stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    /// On the wall's clock, because the other one begins anew with the host.
    at: Timestamp,
    usd: f64,
}

/// The limits and what is spent of them.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    spent: Spent,
    telemetry: Telemetry,
}

/// What is left to one investigation.
#[derive(Clone, Debug)]
pub struct Allowance {
    limits: Limits,
    began: Moment,
    iterations: u32,
    tokens: Tokens,
    usd: f64,
}

impl Budget {
    /// With what was stored before the restart. Refusals are
    /// [`ModelRefused`](Event::ModelRefused) events.
    pub fn new(limits: Limits, spent: Spent, telemetry: Telemetry) -> Self {
        Self {
            limits,
            spent,
            telemetry,
        }
    }

    /// What to store after each change.
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Begins an investigation, and counts it.
    pub fn begin(&mut self, now: Moment) -> Result<Allowance, Refused> {
        self.forget(now.wall);
        self.may_begin(now.wall)
            .inspect_err(|why| self.refused(why))?;
        self.spent.runs.push(Run {
            at: now.wall,
            usd: 0.0,
        });
        Ok(Allowance {
            limits: self.limits,
            began: now,
            iterations: 0,
            tokens: Tokens::default(),
            usd: 0.0,
        })
    }

    /// Allows one more turn, if all limits do; to be called before each.
    pub fn turn(&self, allowance: &mut Allowance, now: Moment) -> Result<(), Refused> {
        let allowed = allowance.next_turn(now).and_then(|()| self.has_money());
        allowed.inspect_err(|why| self.refused(why))
    }

    /// Counts what a turn took.
    pub fn took(&mut self, allowance: &mut Allowance, tokens: Tokens, usd: Option<f64>) {
        let usd = usd.unwrap_or(0.0);
        allowance.tokens += tokens;
        allowance.usd += usd;
        // The money belongs to the day, so that any run of the day may carry it: its own is gone
        // from its place when the clock was set back.
        let runs = &mut self.spent.runs;
        let own = runs.iter().rposition(|run| run.at == allowance.began.wall);
        let at = own.unwrap_or(runs.len().saturating_sub(1));
        if let Some(run) = runs.get_mut(at) {
            run.usd += usd;
        }
    }

    /// Drops what is older than a day. What lies ahead, because the clock was set back since,
    /// counts from now on, or it would count for as long as the clock was wrong.
    fn forget(&mut self, now: Timestamp) {
        for run in &mut self.spent.runs {
            run.at = run.at.min(now);
        }
        self.spent
            .runs
            .retain(|run| now.duration_since(run.at) < DAY);
    }

    fn may_begin(&self, now: Timestamp) -> Result<(), Refused> {
        let Limits {
            per_hour, per_day, ..
        } = self.limits;
        if let Some(again_at) = self.full_until(now, HOUR, per_hour) {
            return Err(Refused::PerHour {
                limit: per_hour,
                again_at,
            });
        }
        if let Some(again_at) = self.full_until(now, DAY, per_day) {
            return Err(Refused::PerDay {
                limit: per_day,
                again_at,
            });
        }
        self.has_money()
    }

    /// When the window has room again, if it has none.
    fn full_until(&self, now: Timestamp, window: SignedDuration, limit: u32) -> Option<Timestamp> {
        let recent = |run: &&Run| now.duration_since(run.at) < window;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let recent: Vec<_> = self.spent.runs.iter().filter(recent).collect();
        if recent.len() < limit {
            return None;
        }
        // The oldest of those that fill it; with a limit of 0 there is none, and no end either.
        let oldest = recent.get(recent.len() - limit);
        Some(oldest.map_or(Timestamp::MAX, |run| {
            run.at.saturating_add(window).unwrap_or(Timestamp::MAX)
        }))
    }

    fn has_money(&self) -> Result<(), Refused> {
        let spent: f64 = self.spent.runs.iter().map(|run| run.usd).sum();
        match self.limits.usd_per_day {
            Some(limit) if spent >= limit => Err(Refused::Money { limit }),
            _ => Ok(()),
        }
    }

    fn refused(&self, why: &Refused) {
        self.telemetry
            .emit(Event::ModelRefused { why: why.refusal() });
    }
}

impl Allowance {
    /// Tokens taken so far.
    pub fn tokens(&self) -> Tokens {
        self.tokens
    }

    /// Tokens that are left; the last turn may take more, by its own length.
    pub fn tokens_left(&self) -> u64 {
        self.limits.tokens.saturating_sub(self.tokens.total())
    }

    /// US dollars taken so far; 0 where no price is configured.
    pub fn usd(&self) -> f64 {
        self.usd
    }

    /// Turns taken so far.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// The time that is left.
    pub fn left(&self, now: Moment) -> Duration {
        self.limits.within.saturating_sub(now.since(&self.began))
    }

    fn next_turn(&mut self, now: Moment) -> Result<(), Refused> {
        let Limits {
            within,
            iterations,
            tokens,
            ..
        } = self.limits;
        if self.left(now).is_zero() {
            return Err(Refused::Time { limit: within });
        }
        if self.iterations >= iterations {
            return Err(Refused::Iterations { limit: iterations });
        }
        if self.tokens.total() >= tokens {
            return Err(Refused::Tokens { limit: tokens });
        }
        self.iterations += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::{Clock as _, ManualClock};

    fn clock() -> ManualClock {
        ManualClock::new("2026-11-24T12:00:00Z".parse().unwrap())
    }

    fn budget(limits: Limits) -> Budget {
        Budget::new(limits, Spent::default(), Telemetry::new())
    }

    fn refusals(budget: &Budget) -> u64 {
        let counters = budget.telemetry.counters();
        let of_refusals = counters.iter().filter(|c| c.name == "lens_model_refusals");
        of_refusals.map(|c| c.value).sum()
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn three_an_hour_and_twenty_a_day() {
        let (clock, mut budget) = (clock(), budget(Limits::default()));
        let mut begun = Vec::new();
        for minute in 0..48 * 60 {
            if budget.begin(clock.now()).is_ok() {
                begun.push(minute);
            }
            clock.advance(MINUTE);
        }
        assert_eq!(begun[..7], [0, 1, 2, 60, 61, 62, 120]);
        let on_first_day = begun.iter().filter(|minute| **minute < 24 * 60).count();
        assert_eq!((on_first_day, begun.len()), (20, 40));
        assert!(budget.spent.runs.len() <= 20, "bounded");
    }

    #[test]
    fn a_refusal_says_until_when_and_is_counted() {
        let (clock, mut budget) = (clock(), budget(Limits::default()));
        for _ in 0..3 {
            budget.begin(clock.now()).unwrap();
            clock.advance(MINUTE);
        }
        let refused = budget.begin(clock.now()).unwrap_err();
        let again_at = "2026-11-24T13:00:00Z".parse().unwrap();
        assert_eq!(refused, Refused::PerHour { limit: 3, again_at });
        assert_eq!(refusals(&budget), 1);
    }

    #[test]
    fn a_restart_resets_nothing() {
        let (clock, mut before) = (clock(), budget(Limits::default()));
        for _ in 0..3 {
            before.begin(clock.now()).unwrap();
        }
        let stored = serde_json::to_string(before.spent()).unwrap();
        let spent = serde_json::from_str(&stored).unwrap();
        let mut after = Budget::new(Limits::default(), spent, Telemetry::new());
        assert!(after.begin(clock.now()).is_err());
    }

    #[test]
    fn a_clock_that_was_wrong_blocks_for_an_hour_at_most() {
        let mut budget = budget(Limits::default());
        let wrong = ManualClock::new("2036-01-01T00:00:00Z".parse().unwrap());
        for _ in 0..3 {
            budget.begin(wrong.now()).unwrap();
        }
        let clock = clock();
        assert!(budget.begin(clock.now()).is_err());
        clock.advance(60 * MINUTE);
        budget.begin(clock.now()).unwrap();
    }

    #[test]
    fn an_investigation_has_turns_tokens_and_time() {
        let limits = Limits {
            iterations: 2,
            tokens: 100,
            ..Limits::default()
        };
        let (clock, mut budget) = (clock(), budget(limits));
        let mut turns = budget.begin(clock.now()).unwrap();
        budget.turn(&mut turns, clock.now()).unwrap();
        budget.turn(&mut turns, clock.now()).unwrap();
        let refused = budget.turn(&mut turns, clock.now());
        assert_eq!(refused, Err(Refused::Iterations { limit: 2 }));

        let mut tokens = budget.begin(clock.now()).unwrap();
        let took = Tokens {
            input: 90,
            cached: 80,
            output: 10,
        };
        budget.took(&mut tokens, took, None);
        let refused = budget.turn(&mut tokens, clock.now());
        assert_eq!(refused, Err(Refused::Tokens { limit: 100 }));

        let mut time = budget.begin(clock.now()).unwrap();
        clock.advance(Duration::from_mins(4));
        assert_eq!(time.left(clock.now()), MINUTE);
        budget.turn(&mut time, clock.now()).unwrap();
        clock.advance(MINUTE);
        let refused = budget.turn(&mut time, clock.now());
        assert_eq!(refused, Err(Refused::Time { limit: 5 * MINUTE }));
        assert_eq!(refusals(&budget), 3);
    }

    #[test]
    fn money_is_counted_when_the_clock_was_set_back() {
        let limits = Limits {
            usd_per_day: Some(0.05),
            ..Limits::default()
        };
        let mut budget = budget(limits);
        let wrong = ManualClock::new("2036-01-01T00:00:00Z".parse().unwrap());
        let mut run = budget.begin(wrong.now()).unwrap();
        let clock = clock();
        budget.begin(clock.now()).unwrap();
        budget.took(&mut run, Tokens::default(), Some(0.05));
        let refused = budget.begin(clock.now()).map(drop);
        assert_eq!(refused, Err(Refused::Money { limit: 0.05 }));
    }

    #[test]
    fn money_is_counted_over_a_day() {
        let limits = Limits {
            usd_per_day: Some(0.05),
            ..Limits::default()
        };
        let (clock, mut budget) = (clock(), budget(limits));
        let mut first = budget.begin(clock.now()).unwrap();
        budget.took(&mut first, Tokens::default(), Some(0.05));
        let refused = Err(Refused::Money { limit: 0.05 });
        assert_eq!(budget.turn(&mut first, clock.now()), refused);
        assert_eq!(budget.begin(clock.now()).map(drop), refused);
        clock.advance(Duration::from_hours(24));
        budget.begin(clock.now()).unwrap();
    }
}
