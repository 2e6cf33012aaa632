//! `lens snapshot`: one look without a running agent.

use std::sync::Arc;

use super::{
    Outcome, Trouble,
    out::{Out, amount, numbers, words},
    run::need_root,
};
use crate::{
    agent,
    base::{
        clock::{Clock as _, SystemClock},
        snapshot::Snapshot as Seen,
    },
    config::Span,
    host::{HostReader, Root},
    probes::{self, Globs, Probes},
    skills::{self, Sample, Skill},
};

#[derive(Debug, clap::Args)]
pub(super) struct Snapshot {
    /// Skills to look with, all if none is given
    skill: Vec<String>,
    /// How long to look
    #[arg(long = "for", value_name = "SPAN", default_value = "5s")]
    span: Span,
    /// Cgroups to look at, as patterns of whole paths; all if none is given
    #[arg(long, value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    cgroup: Vec<String>,
    /// JSON
    #[arg(long)]
    json: bool,
}

impl Snapshot {
    pub(super) fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let skills = self.skills()?;
        let globs = Globs::new(&self.cgroup).map_err(crate::config::ConfigError::from)?;
        need_root()?;
        let reader = HostReader::new(Root::default())?;
        let watched = agent::watched(&reader)?;
        let config = probes::Config {
            globs,
            ..probes::Config::default()
        };
        let mut probes = Probes::start(&watched, &config)?;
        let unmatched = probes.targets().unmatched();
        if !unmatched.is_empty() {
            let globs = unmatched.join("`, `");
            return Err(Trouble::Nothing(format!("no cgroup matches `{globs}`")));
        }
        let mut look = agent::Look::new(reader);
        let before = look.sample(&mut probes, SystemClock.now());
        std::thread::sleep(self.span.0);
        let now = look.sample(&mut probes, SystemClock.now());
        let snapshots = skills::look_everywhere(1, &now, &before, &skills);
        if self.json {
            out.json(&snapshots)?;
        } else {
            show(out, &snapshots, &now)?;
        }
        Ok(Outcome::Fine)
    }

    fn skills(&self) -> Result<Vec<&'static dyn Skill>, Trouble> {
        if self.skill.is_empty() {
            return Ok(skills::REGISTRY.to_vec());
        }
        let find = |id: &String| {
            skills::by_id(id).ok_or_else(|| {
                Trouble::Usage(format!("there is no skill `{id}`; see `lens skills`"))
            })
        };
        self.skill.iter().map(find).collect()
    }
}

fn show(out: &mut Out, snapshots: &[Seen], now: &Arc<Sample>) -> Result<(), Trouble> {
    for snapshot in snapshots {
        out.line(format!("{}  {}", snapshot.scope, snapshot.skill))?;
        let rows = snapshot.metrics.iter().map(|(name, value)| {
            vec![
                format!("  {name}"),
                amount(name, *value),
                told(snapshot, name),
            ]
        });
        let columns = [words("  metric"), numbers("value"), words("by")];
        out.table(&columns, rows.collect())?;
        out.line("")?;
    }
    let mut quality = now.kernel.quality.clone();
    quality.merge(&now.host.quality);
    for (map, n) in &quality.lost {
        out.line(format!("lost: {n} events of {map}"))?;
    }
    for missing in &quality.missing {
        out.line(format!("not seen: {}: {}", missing.probe, missing.why))?;
    }
    Ok(())
}

/// Causes and things shown of one metric.
const PARTS: usize = 5;

/// Who caused what of `metric`, and what it is for which thing, the greatest first.
fn told(snapshot: &Seen, metric: &str) -> String {
    let pairs = snapshot.pairs.iter().filter(|p| &*p.metric == metric);
    let items = snapshot.items.iter().filter(|i| &*i.metric == metric);
    let pairs = pairs.map(|p| format!("{} {}", p.by, amount(metric, p.value)));
    let items = items.map(|i| format!("{} {}", i.item, amount(metric, i.value)));
    let mut parts: Vec<String> = pairs.chain(items).collect();
    if let Some(more @ 1..) = parts.len().checked_sub(PARTS) {
        parts.truncate(PARTS);
        parts.push(format!("{more} more"));
    }
    parts.join(", ")
}
