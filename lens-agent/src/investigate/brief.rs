//! What code alone makes of an incident, as the beginning of an investigation by a model: onset
//! order, who waits behind whom, and the suspects with their evidence. Numbers, no dump.

use std::fmt::Write as _;

use super::{claim::show, scene::Scene};
use crate::base::{scope::Scope, snapshot::By};

/// Rows of each part that a brief holds.
const ROWS: usize = 12;

/// The brief of `scene`, as text.
pub fn render(scene: &Scene) -> String {
    let mut text = String::new();
    let mut line = |part: String| {
        text.push_str(&part);
        text.push('\n');
    };
    line(format!(
        "Incident {} opened at {}.",
        scene.incident.id, scene.incident.opened_at
    ));
    if let Some(reason) = &scene.reason {
        line(format!("Somebody asks because: {reason}"));
    }
    line("What left its range, in order of onset:".to_owned());
    let mut series: Vec<_> = scene.incident.series.iter().collect();
    series.sort_by_key(|s| s.since);
    let Some(case) = scene.case() else {
        return text;
    };
    for row in series.into_iter().take(ROWS) {
        let (seen, high) = (
            show(&case, &row.metric, row.seen),
            show(&case, &row.metric, row.expected.high),
        );
        line(format!(
            "- {} {}: {seen}, usual under {high}, since {}",
            row.scope, row.metric, row.since
        ));
    }
    line("Who waits behind whom (victim, metric, by, amount):".to_owned());
    for (victim, metric, by, value) in pairs(scene).into_iter().take(ROWS) {
        line(format!(
            "- {victim} {metric} by {by}: {}",
            show(&case, &metric, value)
        ));
    }
    line("What code considered:".to_owned());
    for hypothesis in scene.answer.hypotheses.iter().take(ROWS) {
        line(format!(
            "- {:?}: {} ({})",
            hypothesis.status, hypothesis.text, hypothesis.why
        ));
    }
    line(format!(
        "What code concludes: {:?} {} with confidence {:.2}.",
        scene.answer.verdict, scene.answer.category, scene.answer.confidence
    ));
    for claim in &scene.answer.claims {
        line(format!("- holds: {}", claim.text));
    }
    let mut missing = String::new();
    for gap in &scene.answer.quality.missing {
        // Writing to a string does not fail.
        let _ = write!(missing, " {}: {};", gap.probe, gap.why);
    }
    if !missing.is_empty() {
        line(format!("Not seen:{missing}"));
    }
    text
}

/// Who waits behind another cgroup, for what left its range: of those that code takes for victims
/// first, then the largest.
fn pairs(scene: &Scene) -> Vec<(Scope, String, By, f64)> {
    let Some(newest) = scene.ticks.last() else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for series in &scene.incident.series {
        for pair in newest.pairs(&series.scope, &series.metric) {
            if matches!(pair.by, By::Cgroup(_)) {
                let (scope, metric) = (series.scope.clone(), pair.metric.to_string());
                rows.push((scope, metric, pair.by.clone(), pair.value));
            }
        }
    }
    let is_victim = |scope: &Scope| scene.answer.victims.contains(scope);
    rows.sort_by(|a, b| {
        is_victim(&b.0)
            .cmp(&is_victim(&a.0))
            .then(b.3.total_cmp(&a.3))
    });
    rows
}
