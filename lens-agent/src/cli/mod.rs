//! The command line: parses, runs a command, and turns its outcome into an exit code.

mod ask;
mod chosen;
mod config;
mod doctor;
mod found;
mod heap;
mod investigate;
mod list;
mod out;
mod profile;
mod run;
mod snapshot;
mod trace;
mod trouble;

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};

use self::{out::Out, run::Run, trouble::Trouble};
use crate::{agent::Prepared, base::names::resolve_without_modules};

/// Counts in the kernel who waits for what and because of whom, and explains what is not normal.
#[derive(Debug, Parser)]
#[command(name = "lens", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(Box<Run>),
    #[command(flatten)]
    Other(Other),
}

/// Everything but the agent.
#[derive(Debug, Subcommand)]
enum Other {
    /// What works on this kernel, and what a missing part costs in diagnosis
    Doctor(doctor::Doctor),
    /// One look without a running agent
    Snapshot(snapshot::Snapshot),
    /// The calls of one function, for a bounded time
    Trace(trace::Trace),
    /// What is allocated and not freed, and where, for a bounded time
    Heap(heap::Heap),
    /// In which functions time goes
    Profile(profile::Profile),
    /// What is wrong now
    Investigate(investigate::Investigate),
    /// Incidents, newest first
    Incidents(found::Incidents),
    /// The newest answer of each incident
    Insights(found::Insights),
    /// The skills and what they measure
    Skills(list::Skills),
    /// The probes and what they cost
    Probes(list::Probes),
    /// The cgroups that are watched
    Targets(list::Targets),
    /// The settings that hold
    Config(Box<config::Config>),
    /// The agent itself
    #[command(subcommand)]
    Agent(list::AgentCommand),
}

/// A command, as far as it gets without a runtime.
enum Ready {
    Agent(Box<Prepared>),
    Other(Other),
}

/// How a command came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing to report.
    Fine,
    /// A finding: an incident is open, a check failed.
    Finding,
}

/// Exit codes, a contract: 0 fine, 1 a finding, 2 an error, 64 usage or bad configuration.
const FINDING: u8 = 1;
const ERROR: u8 = 2;
const USAGE: u8 = 64;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    resolve_without_modules();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done about a terminal that is gone.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    match execute(arguments.command) {
        // Whoever read the output has gone: no error.
        Ok(Outcome::Fine) | Err(Trouble::Pipe) => ExitCode::SUCCESS,
        Ok(Outcome::Finding) => ExitCode::from(FINDING),
        Err(trouble) => fail(&trouble),
    }
}

fn execute(command: Command) -> Result<Outcome, Trouble> {
    let mut out = Out::stdout();
    // The agent gives up privileges while it has one thread.
    let ready = match command {
        Command::Run(run) => Ready::Agent(Box::new(run.prepare()?)),
        Command::Other(other) => Ready::Other(other),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Trouble::Runtime)?;
    let done = runtime.block_on(async {
        match ready {
            Ready::Agent(prepared) => Run::run(*prepared, &mut out).await,
            Ready::Other(command) => dispatch(command, &mut out).await,
        }
    });
    // A stage that blocks its thread must not hold up the end.
    runtime.shutdown_background();
    done
}

async fn dispatch(command: Other, out: &mut Out) -> Result<Outcome, Trouble> {
    match command {
        Other::Doctor(doctor) => doctor.run(out),
        Other::Snapshot(snapshot) => snapshot.run(out),
        Other::Trace(trace) => trace.run(out).await,
        Other::Heap(heap) => heap.run(out).await,
        Other::Profile(profile) => profile.run(out).await,
        Other::Investigate(investigate) => investigate.run(out).await,
        Other::Incidents(incidents) => incidents.run(out).await,
        Other::Insights(insights) => insights.run(out).await,
        Other::Skills(skills) => skills.run(out),
        Other::Probes(probes) => probes.run(out).await,
        Other::Targets(targets) => targets.run(out).await,
        Other::Config(config) => config.run(out),
        Other::Agent(agent) => agent.run(out).await,
    }
}

#[expect(clippy::print_stderr, reason = "the last words of a command")]
fn fail(trouble: &Trouble) -> ExitCode {
    eprintln!("lens: {trouble}");
    ExitCode::from(if trouble.is_usage() { USAGE } else { ERROR })
}
