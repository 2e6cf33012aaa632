//! What the agent says of itself: one closed enum of events, each of which is a log line, a
//! counter and a broadcast.
//!
//! Nothing else in the agent counts its own work, so that what it counts and what a dashboard shows
//! never differ. Besides, a stage may warn in the log of what is nobody's concern but its own.

mod counters;
mod event;

use std::sync::Arc;

use tokio::sync::broadcast;

pub use counters::{Counter, CounterValue, MAX_LABEL_SETS, OTHER};
pub use event::{COUNTERS, Event, ModelOutcome, Refusal};

use counters::Counters;

/// How many events a slow subscriber may lag behind before it loses the oldest.
const BROADCAST_CAPACITY: usize = 256;

/// Where events go. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counters: Counters,
    subscribers: broadcast::Sender<Arc<Event>>,
}

impl Telemetry {
    /// All counters at 0, nobody listening.
    pub fn new() -> Self {
        let counters = Counters::default();
        for counter in COUNTERS {
            counters.declare(counter);
        }
        Self(Arc::new(Inner {
            counters,
            subscribers: broadcast::Sender::new(BROADCAST_CAPACITY),
        }))
    }

    /// Counts the event, writes its log line and tells the subscribers.
    ///
    /// An event that can repeat for months ([`Event::repeats`]) is logged only at its 1st, 2nd,
    /// 4th, 8th... occurrence with the same labels; all of them are counted.
    pub fn emit(&self, event: Event) {
        let mut occurrence = 1;
        event.count(&mut |counter, labels, by| {
            occurrence = self.0.counters.add(counter, labels, by);
        });
        if !event.repeats() || occurrence.is_power_of_two() {
            event.log();
        }
        // An error only says that nobody listens.
        let _ = self.0.subscribers.send(Arc::new(event));
    }

    /// All events from now on. A receiver that lags by more than 256 is told how many it lost.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribers.subscribe()
    }

    /// All counters, sorted by name and labels.
    pub fn counters(&self) -> Vec<CounterValue> {
        self.0.counters.values()
    }

    /// The sum over all labels of the counter of that name; 0 if there is none.
    pub fn total(&self, name: &str) -> u64 {
        self.0.counters.total(name)
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_counted_and_broadcast() {
        let telemetry = Telemetry::new();
        let mut events = telemetry.subscribe();
        let lost = Event::EventsLost {
            map: "waits".into(),
            n: 7,
        };
        telemetry.emit(lost.clone());
        telemetry.emit(lost.clone());
        assert_eq!(telemetry.total("lens_lost_events"), 14);
        assert_eq!(*events.try_recv().unwrap(), lost);
        let values = telemetry.counters();
        let value = values
            .iter()
            .find(|v| v.name == "lens_lost_events")
            .unwrap();
        assert_eq!(value.labels, [("map", "waits".to_owned())]);
        assert_eq!(value.value, 14);
    }

    #[test]
    fn a_model_call_counts_its_tokens_by_direction() {
        let telemetry = Telemetry::new();
        telemetry.emit(Event::ModelCall {
            provider: "local".into(),
            model: "small".into(),
            input_tokens: 100,
            output_tokens: 5,
            outcome: ModelOutcome::Ok,
        });
        let tokens: Vec<_> = telemetry
            .counters()
            .into_iter()
            .filter(|v| v.name == "lens_model_tokens")
            .map(|v| (v.labels[2].1.clone(), v.value))
            .collect();
        assert_eq!(
            tokens,
            [("input".to_owned(), 100), ("output".to_owned(), 5)]
        );
    }

    #[test]
    fn nobody_listening_is_fine() {
        let telemetry = Telemetry::new();
        for _ in 0..2 * BROADCAST_CAPACITY {
            telemetry.emit(Event::IncidentReopened { id: "1".into() });
        }
        assert_eq!(telemetry.total("lens_incidents_reopened"), 512);
    }
}
