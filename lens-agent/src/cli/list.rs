//! Lists: `lens skills`, `probes`, `targets`, `agent tree`.

use super::{
    Outcome, Trouble,
    ask::Ask,
    out::{Out, number, numbers, words},
};
use crate::{
    agent::records,
    api::{ProbeState, ProbeStatus, TargetStatus, skill_entries},
    supervise::Node,
};

#[derive(Debug, clap::Args)]
pub(super) struct Skills {
    /// Only this one, with all it measures
    skill: Option<String>,
    /// JSON
    #[arg(long)]
    json: bool,
}

impl Skills {
    pub(super) fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let mut infos = skill_entries();
        if let Some(id) = &self.skill {
            infos.retain(|s| s.id == id);
            if infos.is_empty() {
                return Err(Trouble::Usage(format!(
                    "there is no skill `{id}`; see `lens skills`"
                )));
            }
        }
        if self.json {
            out.json(&infos)?;
        } else if self.skill.is_some() {
            for skill in infos {
                out.line(format!(
                    "{}: {}\n\n{}\n",
                    skill.id, skill.title, skill.description
                ))?;
                let rows = skill
                    .metrics
                    .iter()
                    .map(|m| vec![m.name.to_owned(), m.help.to_owned()]);
                out.table(&[words("metric"), words("meaning")], rows.collect())?;
            }
        } else {
            let row = |s: crate::api::SkillEntry| {
                vec![
                    s.id.to_owned(),
                    s.metrics.len().to_string(),
                    s.title.to_owned(),
                ]
            };
            out.table(
                &[words("skill"), numbers("metrics"), words("title")],
                infos.into_iter().map(row).collect(),
            )?;
        }
        Ok(Outcome::Fine)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Probes {
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Probes {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let probes: Vec<ProbeStatus> = self.ask.list("probes", records::PROBES).await?;
        if self.json {
            out.json(&probes)?;
            return Ok(Outcome::Fine);
        }
        let mut rows = Vec::new();
        for probe in &probes {
            let state = match probe.state {
                ProbeState::Attached => match probe.reductions.last() {
                    Some(reduced) => format!("over budget: {reduced}"),
                    None => "attached".to_owned(),
                },
                ProbeState::Refused => format!("refused: {}", probe.why.as_deref().unwrap_or("?")),
                ProbeState::Off => "off".to_owned(),
            };
            rows.push(vec![
                probe.name.clone(),
                state,
                String::new(),
                String::new(),
                String::new(),
                (probe.map_bytes / 1024).to_string(),
            ]);
            for program in &probe.programs {
                rows.push(vec![
                    format!("  {}", program.name),
                    String::new(),
                    number(program.runs_per_sec),
                    program.ns_per_run.map_or_else(String::new, number),
                    format!("{:.4}", program.cpu_percent),
                    String::new(),
                ]);
            }
        }
        let columns = [
            words("probe"),
            words("state"),
            numbers("runs/s"),
            numbers("ns/run"),
            numbers("cpu %"),
            numbers("maps KiB"),
        ];
        out.table(&columns, rows)?;
        Ok(Outcome::Fine)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Targets {
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
}

impl Targets {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let targets: Vec<TargetStatus> = self.ask.list("targets", records::TARGETS).await?;
        if self.json {
            out.json(&targets)?;
        } else {
            let row = |t: TargetStatus| vec![t.path.to_string(), t.id.to_string()];
            let rows = targets.into_iter().map(row).collect();
            out.table(&[words("cgroup"), numbers("id")], rows)?;
        }
        Ok(Outcome::Fine)
    }
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum AgentCommand {
    /// The supervision tree
    Tree {
        /// JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        ask: Ask,
    },
}

impl AgentCommand {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let Self::Tree { json, ask } = self;
        let tree: Node = ask.agent().await?.get("tree", &[]).await?;
        if json {
            out.json(&tree)?;
        } else {
            let mut rows = Vec::new();
            list(&tree, 0, &mut rows);
            let columns = [
                words("child"),
                words("state"),
                numbers("restarts"),
                words("last failure"),
            ];
            out.table(&columns, rows)?;
        }
        Ok(Outcome::Fine)
    }
}

fn list(node: &Node, depth: usize, rows: &mut Vec<Vec<String>>) {
    let state = serde_json::to_string(&node.state).unwrap_or_default();
    let failure = node.last_failure.as_ref();
    rows.push(vec![
        format!("{}{}", "  ".repeat(depth), node.name),
        state.trim_matches('"').to_owned(),
        node.restarts.to_string(),
        failure.map_or_else(String::new, |f| format!("{:.0}  {}", f.at, f.why)),
    ]);
    for child in &node.children {
        list(child, depth + 1, rows);
    }
}
