//! The events. To add one: its variant, its log line and its counter, all in this file.

use serde::Serialize;
use tracing::{error, info, warn};

use super::Counter;

/// How a model's answer came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelOutcome {
    /// It answered.
    Ok,
    /// The provider refused, failed, or answered with what cannot be read.
    Error,
}

/// Why a model was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Too many investigations in the hour or the day.
    RateLimit,
    /// Tokens, money or time are used up.
    Budget,
}

/// Something worth a log line and a counter. Texts come from the agent itself, or are cleaned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A probe counts from now on.
    ProbeAttached { probe: String },
    /// A probe could not be loaded or attached, or stopped working.
    ProbeFailed { probe: String, why: String },
    /// To stay within the CPU budget, a probe does without something more.
    ProbeReduced { probe: String, to: String },
    /// It got that back.
    ProbeRelieved { probe: String, to: String },
    /// Kernel events that found no room in a map, since the last such event.
    EventsLost { map: String, n: u64 },
    /// A supervised child runs for the first time.
    ChildStarted { child: String },
    /// A supervised child ended and runs again; `restarts` counts since its start.
    ChildRestarted {
        child: String,
        why: String,
        restarts: u32,
    },
    /// A supervised child failed and is not restarted any more.
    ChildGaveUp { child: String, why: String },
    /// An incident was opened.
    IncidentOpened { id: String },
    /// A closed incident came back.
    IncidentReopened { id: String },
    /// An incident was closed.
    IncidentClosed { id: String },
    /// An investigation came to an answer.
    InsightProduced {
        id: String,
        verdict: String,
        strategy: String,
    },
    /// A model was asked.
    ModelCall {
        provider: String,
        model: String,
        input_tokens: u64,
        output_tokens: u64,
        outcome: ModelOutcome,
    },
    /// A model would have been asked, if a limit had allowed it.
    ModelRefused { why: Refusal },
    /// So many bytes left the host.
    Sent { bytes: u64 },
    /// Something could not be written to or read from the store.
    StoreError { why: String },
    /// A host file could not be read.
    ReadFailed { source: String, why: String },
    /// A glob of `--cgroup` matches no cgroup at present.
    TargetsMissing { glob: String },
    /// The configuration is valid, but probably not what was meant.
    ConfigWarning { key: String, why: String },
}

// A macro, so that no counter can be left out of the list.
macro_rules! counters {
    ($($ident:ident = $name:literal $labels:expr, $help:literal;)*) => {
        $(static $ident: Counter =
            Counter { name: $name, help: $help, labels: &$labels };)*

        /// All counters.
        pub static COUNTERS: &[&Counter] = &[$(&$ident),*];
    };
}

counters! {
    PROBES_ATTACHED = "lens_probes_attached" ["probe"],
        "Probes attached since the start.";
    PROBE_FAILURES = "lens_probe_failures" ["probe"],
        "Probes that could not be attached or stopped working.";
    PROBE_REDUCTIONS = "lens_probe_reductions" ["probe"],
        "Times that a probe had to do without something more, to stay within the CPU budget.";
    PROBE_RELIEFS = "lens_probe_reliefs" ["probe"],
        "Times that it got that back.";
    LOST_EVENTS = "lens_lost_events" ["map"],
        "Kernel events that found no room in a map.";
    CHILD_STARTS = "lens_child_starts" [],
        "First starts of supervised children.";
    CHILD_RESTARTS = "lens_child_restarts" ["child"],
        "Restarts of supervised children.";
    CHILD_FAILURES = "lens_child_failures" ["child"],
        "Supervised children that were given up.";
    INCIDENTS_OPENED = "lens_incidents_opened" [],
        "Incidents opened.";
    INCIDENTS_REOPENED = "lens_incidents_reopened" [],
        "Incidents that came back after they were closed.";
    INCIDENTS_CLOSED = "lens_incidents_closed" [],
        "Incidents closed.";
    INSIGHTS_PRODUCED = "lens_insights_produced" ["verdict", "strategy"],
        "Answers that investigations came to.";
    MODEL_CALLS = "lens_model_calls" ["provider", "model", "outcome"],
        "Requests to a model.";
    MODEL_TOKENS = "lens_model_tokens" ["provider", "model", "direction"],
        "Tokens sent to and received from models.";
    MODEL_REFUSALS = "lens_model_refusals" ["why"],
        "Requests to a model that a limit forbade.";
    SENT_BYTES = "lens_sent_bytes" [],
        "Bytes that left the host.";
    STORE_FAILURES = "lens_store_failures" [],
        "Failed reads and writes of the store.";
    READ_FAILURES = "lens_read_failures" ["source"],
        "Host files that could not be read.";
    TARGETS_MISSING = "lens_targets_missing" [],
        "Times that a cgroup glob matched nothing.";
    CONFIG_WARNINGS = "lens_config_warnings" [],
        "Doubtful settings.";
}

impl Event {
    /// Whether it can come again and again for as long as its cause lasts.
    pub fn repeats(&self) -> bool {
        matches!(
            self,
            Self::EventsLost { .. }
                | Self::ModelRefused { .. }
                | Self::StoreError { .. }
                | Self::ReadFailed { .. }
                | Self::TargetsMissing { .. }
        )
    }

    /// Calls `add` with each counter that the event raises, its label values, and by how much.
    pub(super) fn count(&self, add: &mut dyn FnMut(&'static Counter, &[&str], u64)) {
        match self {
            Self::ProbeAttached { probe } => add(&PROBES_ATTACHED, &[probe], 1),
            Self::ProbeFailed { probe, .. } => add(&PROBE_FAILURES, &[probe], 1),
            Self::ProbeReduced { probe, .. } => add(&PROBE_REDUCTIONS, &[probe], 1),
            Self::ProbeRelieved { probe, .. } => add(&PROBE_RELIEFS, &[probe], 1),
            Self::EventsLost { map, n } => add(&LOST_EVENTS, &[map], *n),
            Self::ChildStarted { .. } => add(&CHILD_STARTS, &[], 1),
            Self::ChildRestarted { child, .. } => add(&CHILD_RESTARTS, &[child], 1),
            Self::ChildGaveUp { child, .. } => add(&CHILD_FAILURES, &[child], 1),
            Self::IncidentOpened { .. } => add(&INCIDENTS_OPENED, &[], 1),
            Self::IncidentReopened { .. } => add(&INCIDENTS_REOPENED, &[], 1),
            Self::IncidentClosed { .. } => add(&INCIDENTS_CLOSED, &[], 1),
            Self::InsightProduced {
                verdict, strategy, ..
            } => {
                add(&INSIGHTS_PRODUCED, &[verdict, strategy], 1);
            }
            Self::ModelCall {
                provider,
                model,
                input_tokens,
                output_tokens,
                outcome,
            } => {
                add(&MODEL_TOKENS, &[provider, model, "input"], *input_tokens);
                add(&MODEL_TOKENS, &[provider, model, "output"], *output_tokens);
                add(&MODEL_CALLS, &[provider, model, outcome.as_str()], 1);
            }
            Self::ModelRefused { why } => add(&MODEL_REFUSALS, &[why.as_str()], 1),
            Self::Sent { bytes } => add(&SENT_BYTES, &[], *bytes),
            Self::StoreError { .. } => add(&STORE_FAILURES, &[], 1),
            Self::ReadFailed { source, .. } => add(&READ_FAILURES, &[source], 1),
            Self::TargetsMissing { .. } => add(&TARGETS_MISSING, &[], 1),
            Self::ConfigWarning { .. } => add(&CONFIG_WARNINGS, &[], 1),
        }
    }

    /// Writes the event's line: the message for people, the fields for machines.
    pub(super) fn log(&self) {
        match self {
            Self::ProbeAttached { probe } => info!(probe, "probe attached"),
            Self::ProbeFailed { probe, why } => warn!(probe, why, "probe failed"),
            Self::ProbeReduced { probe, to } => {
                warn!(probe, to, "over the CPU budget: probe reduced");
            }
            Self::ProbeRelieved { probe, to } => info!(probe, to, "probe got something back"),
            Self::EventsLost { map, n } => warn!(map, n, "kernel events lost"),
            Self::ChildStarted { child } => info!(child, "child started"),
            Self::ChildRestarted {
                child,
                why,
                restarts,
            } => {
                warn!(child, why, restarts, "child restarted");
            }
            Self::ChildGaveUp { child, why } => error!(child, why, "child given up"),
            Self::IncidentOpened { id } => warn!(id, "incident opened"),
            Self::IncidentReopened { id } => warn!(id, "incident reopened"),
            Self::IncidentClosed { id } => info!(id, "incident closed"),
            Self::InsightProduced {
                id,
                verdict,
                strategy,
            } => {
                info!(id, verdict, strategy, "insight produced");
            }
            Self::ModelCall {
                provider,
                model,
                input_tokens,
                output_tokens,
                outcome,
            } => {
                let outcome = outcome.as_str();
                info!(
                    provider,
                    model, input_tokens, output_tokens, outcome, "model asked"
                );
            }
            Self::ModelRefused { why } => warn!(why = why.as_str(), "model not asked"),
            Self::Sent { bytes } => info!(bytes, "sent"),
            Self::StoreError { why } => error!(why, "store failed"),
            Self::ReadFailed { source, why } => warn!(source, why, "host file not read"),
            Self::TargetsMissing { glob } => warn!(glob, "no cgroup matches"),
            Self::ConfigWarning { key, why } => warn!(key, why, "doubtful setting"),
        }
    }
}

impl ModelOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::RateLimit => "rate limit",
            Self::Budget => "budget",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn counters_are_well_named() {
        let mut names = BTreeSet::new();
        for counter in COUNTERS {
            assert!(names.insert(counter.name), "{} twice", counter.name);
            assert!(counter.name.starts_with("lens_"), "{}", counter.name);
            assert!(
                !counter.name.ends_with("_total"),
                "{}: the encoder adds it",
                counter.name
            );
            assert!(counter.help.ends_with('.'), "{}", counter.name);
        }
    }

    #[test]
    fn an_event_is_json_with_its_name() {
        let event = Event::EventsLost {
            map: "waits".into(),
            n: 3,
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"events_lost","map":"waits","n":3}"#
        );
    }
}
