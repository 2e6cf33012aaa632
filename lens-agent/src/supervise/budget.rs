//! How often and how fast a child may be restarted.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Restarts that a child may use up, and the pause before each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Restarts within [`Self::window`]; one more failure, and the child is given up.
    pub restarts: u32,
    /// How long a restart counts.
    pub window: Duration,
    /// The pause before the first restart; doubled for each further one within the window.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Budget {
    /// 5 restarts within 60 s, after 100 ms, 200 ms, 400 ms...
    fn default() -> Self {
        Self {
            restarts: 5,
            window: Duration::from_mins(1),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// What of a [`Budget`] is used up.
#[derive(Debug)]
pub(super) struct Spent {
    budget: Budget,
    restarts: VecDeque<Instant>,
}

impl Spent {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            restarts: VecDeque::new(),
        }
    }

    /// The child ended at `now`: the pause before its restart, or `None` when it is given up.
    pub(super) fn restart(&mut self, now: Instant) -> Option<Duration> {
        let Budget {
            restarts,
            window,
            first_pause,
            longest_pause,
        } = self.budget;
        while self
            .restarts
            .front()
            .is_some_and(|&then| now.duration_since(then) >= window)
        {
            self.restarts.pop_front();
        }
        let used = u32::try_from(self.restarts.len()).unwrap_or(u32::MAX);
        if used >= restarts {
            return None;
        }
        self.restarts.push_back(now);
        Some(
            first_pause
                .saturating_mul(2_u32.saturating_pow(used))
                .min(longest_pause),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        restarts: 4,
        window: Duration::from_mins(1),
        first_pause: Duration::from_secs(1),
        longest_pause: Duration::from_secs(3),
    };

    #[test]
    fn the_pause_grows_to_its_cap_and_the_budget_ends() {
        let mut spent = Spent::new(BUDGET);
        let now = Instant::now();
        let pauses: Vec<_> = (0..5)
            .map(|_| spent.restart(now).map(|p| p.as_secs()))
            .collect();
        assert_eq!(pauses, [Some(1), Some(2), Some(3), Some(3), None]);
    }

    #[test]
    fn old_restarts_are_forgiven() {
        let mut spent = Spent::new(BUDGET);
        let start = Instant::now();
        for minute in 0..10 {
            let pause = spent.restart(start + Duration::from_secs(60 * minute));
            assert_eq!(pause, Some(Duration::from_secs(1)));
        }
    }
}
