//! When to ask again.

use std::time::Duration;

use backon::ExponentialBuilder;
use jiff::Timestamp;
use reqwest::header::HeaderMap;

/// How often and how fast a failed attempt is repeated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Attempts after the first.
    pub(super) again: usize,
    /// The pause before the second attempt; doubled for each further one, and jittered, so that
    /// the agents of many hosts don't come back at once.
    pub(super) first_pause: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            again: 3,
            first_pause: Duration::from_secs(1),
        }
    }
}

impl Policy {
    pub(super) fn backoff(self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.first_pause)
            .with_max_delay(Duration::from_secs(30))
            .with_max_times(self.again)
            .with_jitter()
    }
}

/// What the provider asks for: `retry-after-ms`, or `retry-after` in seconds or as a date.
pub(super) fn after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let header = |name| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(millis) = header("retry-after-ms").and_then(|text| text.parse().ok()) {
        return Some(Duration::from_millis(millis));
    }
    let text = header("retry-after")?;
    if let Ok(seconds) = text.parse() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_has_three_forms() {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        for (name, value, wanted) in [
            ("retry-after", "7", Some(7_000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after-ms", "250", Some(250)),
            ("retry-after", "Tue, 24 Nov 2026 12:00:20 GMT", Some(20_000)),
            ("retry-after", "Tue, 24 Nov 2026 11:00:00 GMT", Some(0)),
            ("retry-after", "soon", None),
            ("retry-after", "-3", None),
            ("x-other", "7", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let wanted = wanted.map(Duration::from_millis);
            assert_eq!(after(&headers, now), wanted, "{name}: {value}");
        }
    }
}
