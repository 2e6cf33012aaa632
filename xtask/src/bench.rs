//! `cargo xtask bench`: what watching costs, in interleaved rounds.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, setup, step::Step, workspace};

/// What is measured.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Part {
    /// Two loops that do nothing but what is watched
    Loops,
    /// Real programs
    Mixes,
    /// Few and many cgroups
    Growth,
    /// What the agent takes for itself
    Agent,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Loops => "loops",
            Self::Mixes => "mixes",
            Self::Growth => "growth",
            Self::Agent => "agent",
        }
    }
}

/// Builds what is measured, then measures; nothing else should run meanwhile.
pub(crate) fn bench(rounds: u32, parts: &[Part]) -> Result<ExitCode> {
    setup::ensure_bench()?;
    let lens = build::release()?;
    let object = workspace::target_dir().join("ebpf/bpfel-unknown-none/bpf/empty");
    Step::new("measure").run(
        workspace::cargo()
            .args([
                "run",
                "--release",
                "--package",
                "lens-tests",
                "--bin",
                "bench",
                "--",
            ])
            .arg(rounds.to_string())
            .args(parts.iter().map(|part| part.name()))
            .env("LENS_BIN", lens)
            .env("LENS_EMPTY_OBJECT", object),
    )?;
    Ok(ExitCode::SUCCESS)
}
