//! Which probes the open incidents stand on: the judge says it, the stage that reads them heeds it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{anomaly::Incidents, skills};

/// The names of probes.
#[derive(Clone, Debug, Default)]
pub(super) struct Needed(Arc<Mutex<BTreeSet<&'static str>>>);

impl Needed {
    /// By the open ones of `incidents`.
    pub(super) fn set(&self, incidents: &Incidents) {
        let series = incidents.open().flat_map(|(incident, _)| &incident.series);
        let probes = series.flat_map(|series| skills::probes_of(&series.metric));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = probes.copied().collect();
    }

    /// As it was said last.
    pub(super) fn get(&self) -> BTreeSet<&'static str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
