//! Every series against its own baseline, and the anomalies that belong together as incidents.

mod baseline;
mod detector;
mod incident;

pub use self::{
    baseline::{Baseline, Expected},
    detector::{Anomaly, Config, Detector, Frozen, Kept, Ranges, Source},
    incident::{Incident, IncidentSeries, Incidents, Range, Severity, State, Update},
};
