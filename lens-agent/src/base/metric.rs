//! What a number means: its unit, its kind, and which way it goes when things go wrong.

use serde::Serialize;

/// The unit of a metric; the metric's name ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A plain number of things.
    Count,
    /// Things a second.
    PerSec,
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSec,
    /// Milliseconds.
    Millis,
    /// Milliseconds of waiting or running in each second; 1000 is one thread (or CPU) all the time.
    MillisPerSec,
    /// Microseconds.
    Micros,
    /// Nanoseconds.
    Nanos,
    /// 0 to 100.
    Percent,
    /// 0 to 1.
    Ratio,
    /// Seconds.
    Seconds,
}

/// How a metric behaves over time, which decides how a baseline is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A level that is read (bytes in use, threads).
    Gauge,
    /// A counter's increase over the interval, a second.
    Rate,
    /// A quantile or maximum of the interval's samples.
    Quantile,
}

/// Which direction of change can be bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bad {
    /// Only a rise.
    High,
    /// Only a fall.
    Low,
    /// Either: a service that falls silent is news too.
    Both,
    /// Neither: shown, used as evidence, never an anomaly by itself.
    Never,
}

/// The definition of one metric. Names are unique over all skills.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Metric {
    /// `runq_wait_ms_per_sec`: carries its unit.
    pub name: &'static str,
    /// The unit.
    pub unit: Unit,
    /// Gauge, rate or quantile.
    pub kind: Kind,
    /// The direction that can be bad.
    pub bad: Bad,
    /// Whether a high value is somebody's suffering (waiting, failing), not somebody's use.
    pub suffering: bool,
    /// A level that is not normal on any host: the borrowed baseline while nothing better is
    /// known.
    pub never_normal: Option<f64>,
    /// Changes below this are never an anomaly, whatever the baseline: the size from which a
    /// person would care, in the metric's unit.
    pub floor: f64,
    /// One sentence for people and prompts.
    pub help: &'static str,
}

/// A level.
pub const fn gauge(
    name: &'static str,
    unit: Unit,
    bad: Bad,
    floor: f64,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        unit,
        kind: Kind::Gauge,
        bad,
        floor,
        suffering: false,
        never_normal: None,
        help,
    }
}

/// A counter's increase a second.
pub const fn rate(
    name: &'static str,
    unit: Unit,
    bad: Bad,
    floor: f64,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        unit,
        kind: Kind::Rate,
        bad,
        floor,
        suffering: false,
        never_normal: None,
        help,
    }
}

/// A quantile or maximum of the interval.
pub const fn quantile(
    name: &'static str,
    unit: Unit,
    bad: Bad,
    floor: f64,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        unit,
        kind: Kind::Quantile,
        bad,
        floor,
        suffering: false,
        never_normal: None,
        help,
    }
}

impl Metric {
    /// Marks it as somebody's suffering, which is not normal at `level` on any host.
    #[must_use]
    pub const fn suffering(mut self, level: f64) -> Self {
        self.suffering = true;
        self.never_normal(level)
    }

    /// Above `level` it is normal on no host: what judges a series that has not learned yet.
    #[must_use]
    pub const fn never_normal(mut self, level: f64) -> Self {
        self.never_normal = Some(level);
        self
    }
}
