//! Time, behind a trait so that tests can set it.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One instant on both clocks: the wall's for people, the monotonic one for arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// `CLOCK_MONOTONIC`, since boot; the kernel side stamps its records with it too.
    pub mono: Duration,
    /// UTC.
    pub wall: Timestamp,
}

impl Moment {
    /// Time from `earlier` to this moment; zero when `earlier` is later.
    pub fn since(&self, earlier: &Self) -> Duration {
        self.mono.saturating_sub(earlier.mono)
    }
}

/// Where the agent takes the time from.
pub trait Clock: Debug + Send + Sync {
    /// The present.
    fn now(&self) -> Moment;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    fn now(&self) -> Moment {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let mono = Duration::new(
            u64::try_from(t.tv_sec).unwrap_or_default(),
            u32::try_from(t.tv_nsec).unwrap_or_default(),
        );
        Moment {
            mono,
            wall: Timestamp::now(),
        }
    }
}

/// A clock that stands still until it is moved.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Moment>>);

impl ManualClock {
    /// Starts at `wall`, one day after boot.
    pub fn new(wall: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(Moment {
            mono: Duration::from_hours(24),
            wall,
        })))
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.mono += by;
        now.wall += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
