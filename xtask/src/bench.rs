//! `cargo xtask bench`: what watching costs, in interleaved rounds.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, setup, step::Step, workspace};

/// Builds what is measured, then measures; nothing else should run meanwhile.
pub(crate) fn bench(rounds: u32) -> Result<ExitCode> {
    setup::ensure_test()?;
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
            .env("LENS_BIN", lens)
            .env("LENS_EMPTY_OBJECT", object),
    )?;
    Ok(ExitCode::SUCCESS)
}
