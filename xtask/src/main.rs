//! Sets up, builds, runs, tests and lints lens: `cargo xtask <command>`.
//!
//! One file a command. `step` runs what a command consists of and names the step that failed;
//! `workspace` knows where things are; `counts` reads what tests say; `layers` is the table of who
//! may import whom.
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command that people watch: progress goes to stderr, results to stdout"
)]

mod bench;
mod build;
mod counts;
mod layers;
mod lint;
mod run;
mod setup;
mod step;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and linting need; does nothing where all of it is there
    Setup,
    /// Build target/release/lens, kernel programs inside
    Build,
    /// Build lens and run it (as root): `cargo xtask run -- --cgroup '/shop/**'`
    Run {
        /// Flags of `lens run`
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Run the tests; what cannot run here is said, and fails if `LENS_TESTS_MUST_RUN=1`
    Test {
        /// Only this part
        #[arg(long, value_enum)]
        only: Option<test::Part>,
    },
    /// Load every probe and run the kernel tests on other kernels, in virtual machines
    Vm(vm::Choice),
    /// Measure what watching costs beside nothing, empty programs and peers (as root)
    Bench {
        /// Interleaved rounds
        #[arg(long, default_value_t = 7)]
        rounds: u32,
        /// Only these parts
        #[arg(long, value_enum, num_args = 1..)]
        only: Vec<bench::Part>,
    },
    /// Check formatting, lints, layers and unfinished work
    Lint,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup => setup::setup(),
        Command::Bench { rounds, only } => bench::bench(rounds, &only),
        Command::Build => build::build(),
        Command::Run { flags } => run::run(&flags),
        Command::Test { only } => test::test(only),
        Command::Vm(choice) => vm::vm(&choice),
        Command::Lint => lint::lint(),
    };
    outcome.unwrap_or_else(|why| {
        eprintln!("error: {why:#}");
        ExitCode::FAILURE
    })
}
