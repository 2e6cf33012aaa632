//! From when on: how all who ask for what has changed say it.

use jiff::{SignedDuration, Timestamp};

/// Neither a time nor a span of time.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is neither a time (2026-01-31T12:00:00Z) nor a span of time back from now (2h, 1h30m)"
)]
pub struct SinceError(String);

/// A time in RFC 3339, or a span of time back from `now`. One that reaches further back than time
/// can be told means everything.
pub fn since(text: &str, now: Timestamp) -> Result<Timestamp, SinceError> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let span: SignedDuration = text.parse().map_err(|_| SinceError(text.to_owned()))?;
    if span.is_negative() {
        return Err(SinceError(text.to_owned()));
    }
    Ok(now.checked_sub(span).unwrap_or(Timestamp::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_or_a_span_back_from_now() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let check = |text: &str, wanted: &str| {
            let wanted: Timestamp = wanted.parse().unwrap();
            assert_eq!(since(text, now).unwrap(), wanted, "{text}");
        };
        check("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z");
        check("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00Z");
        check("2h", "2026-03-01T10:00:00Z");
        check("1h30m", "2026-03-01T10:30:00Z");
        check("48h", "2026-02-27T12:00:00Z");
        assert_eq!(since("9999999999999s", now).unwrap(), Timestamp::MIN);
        for wrong in ["", "yesterday", "5 parsecs", "-2h", "2026-01-31"] {
            assert!(since(wrong, now).is_err(), "{wrong}");
        }
    }
}
