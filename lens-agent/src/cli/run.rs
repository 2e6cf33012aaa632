//! `lens run`: the agent.

use std::io::IsTerminal as _;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Outcome, Trouble, chosen::Chosen, out::Out};
use crate::{
    agent::{Agent, Prepared},
    api::{Api, ProbeState},
    telemetry::Event,
};

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    chosen: Chosen,
}

/// An error unless the process may load programs into the kernel.
pub(super) fn need_root() -> Result<(), Trouble> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().map(quoted).collect();
    Err(Trouble::NotRoot(words.join(" ")))
}

/// A word as the shell wants it: what is printed is to be typed.
fn quoted(word: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl Run {
    /// What must happen while the process has one thread.
    pub(super) fn prepare(self) -> Result<Prepared, Trouble> {
        let config = self.chosen.settings()?.resolve()?;
        need_root()?;
        log();
        Ok(Prepared::new(config)?)
    }

    /// Runs until a signal says otherwise.
    pub(super) async fn run(prepared: Prepared, out: &mut Out) -> Result<Outcome, Trouble> {
        let agent = Agent::start(prepared)?;
        let mut events = agent.telemetry.subscribe();
        let api = agent.api.clone();
        let url = format!("http://{}", agent.listening);
        let stop = CancellationToken::new();
        let mut running = std::pin::pin!(agent.run_until(stop.clone()));
        let mut terminate = signal(SignalKind::terminate()).map_err(Trouble::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Trouble::Runtime)?;
        let mut told = false;
        // Who read the output has gone: the agent stays.
        let mut say = |line: String| {
            if let Err(why) = out.line(line) {
                tracing::debug!(%why, "cannot write the output");
            }
        };
        let mut look = tokio::time::interval(std::time::Duration::from_millis(200));
        loop {
            tokio::select! {
                () = &mut running => return Ok(Outcome::Fine),
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
                _ = look.tick(), if !told => {
                    if api.status().ready {
                        told = true;
                        greeting(&api, &url).into_iter().for_each(&mut say);
                    }
                }
                event = events.recv() => {
                    // Lagging behind costs lines on the screen, nothing else.
                    if let Ok(event) = event
                        && let Event::InsightProduced { id, .. } = &*event
                        && let Some(insight) = api.insight(id)
                    {
                        say(format!("{:.0}  {}", insight.created_at, insight.summary));
                    }
                }
            }
        }
    }
}

/// What one sees first.
fn greeting(api: &Api, url: &str) -> Vec<String> {
    let status = api.status();
    let probes = api.probes();
    let names = |state| {
        let of_state = probes.iter().filter(|p| p.state == state);
        of_state
            .map(|p| p.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let refused = names(ProbeState::Refused);
    let refused =
        (!refused.is_empty()).then(|| format!("  refused  {refused} (`lens doctor` says why)"));
    let cost = status.cost;
    let mut lines = vec![
        format!("lens {}", env!("CARGO_PKG_VERSION")),
        format!("  probes   {}", names(ProbeState::Attached)),
    ];
    lines.extend(refused);
    lines.extend([
        format!("  targets  {} cgroups", status.targets),
        format!(
            "  cost     agent {:.2} % of a CPU, kernel programs {:.2} %, {} MiB",
            cost.agent_cpu_percent,
            cost.kernel_cpu_percent,
            cost.rss_bytes >> 20
        ),
        format!(
            "  learned  {:.0} % of {} series; until then they are judged by borrowed baselines, \
             where there are any",
            100.0 * status.learned,
            status.series
        ),
        format!("  url      {url}"),
    ]);
    lines
}

/// The log goes to stderr; `RUST_LOG` chooses, warnings and the agent's own notes by default.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,lens_agent=info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second subscriber in one process is a test's affair.
    let _ = log.try_init();
}
