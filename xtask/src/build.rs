//! `cargo xtask build`: the release binary, kernel programs inside.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{setup, step::Step, workspace};

pub(crate) fn build() -> Result<ExitCode> {
    let lens = release()?;
    let size = fs::metadata(&lens).context("the size of the binary")?.len();
    println!(
        "{} ({:.1} MiB)",
        lens.display(),
        size as f64 / f64::from(1 << 20)
    );
    Step::new("ask the binary for its version").run(Command::new(&lens).arg("--version"))?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the release binary and says where it is.
pub(crate) fn release() -> Result<PathBuf> {
    setup::ensure_build()?;
    Step::new("build lens (release)")
        .advice("the compiler's own words stand above")
        .run(workspace::cargo().args(["build", "--release", "--package", "lens-agent"]))?;
    if env::var_os("LENS_WITHOUT_EBPF").is_some() {
        eprintln!("NOT BUILT: kernel programs (LENS_WITHOUT_EBPF is set)");
    }
    Ok(workspace::target_dir().join("release/lens"))
}
