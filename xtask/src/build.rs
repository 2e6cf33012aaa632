//! `cargo xtask build`: the release binary, kernel programs inside.
//!
//! It is static: the same file runs on any host of its architecture, and in an image of nothing
//! else.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{setup, step::Step, workspace};

/// Named, so that flags for it are not those of macros, which the compiler loads.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// libc in the binary.
const STATIC: &str = "-C target-feature=+crt-static";

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
    let mut build = static_cargo("build");
    Step::new("build lens (release)")
        .advice(
            "the compiler's own words stand above; libc.a and libstdc++.a are needed (Debian: \
             libc6-dev, g++; Fedora: glibc-static, libstdc++-static)",
        )
        .run(build.arg("--package=lens-agent"))?;
    if env::var_os("LENS_WITHOUT_EBPF").is_some() {
        eprintln!("NOT BUILT: kernel programs (LENS_WITHOUT_EBPF is set)");
    }
    let target = workspace::target_dir();
    let lens = target.join("release/lens");
    place(&target.join(TARGET).join("release/lens"), &lens)
        .with_context(|| format!("cannot put the binary at {}", lens.display()))?;
    Ok(lens)
}

/// Cargo's `command` for the release profile, with libc in what it builds.
pub(crate) fn static_cargo(command: &str) -> Command {
    let flags = match env::var("RUSTFLAGS") {
        Ok(own) => format!("{own} {STATIC}"),
        Err(_) => STATIC.to_owned(),
    };
    let mut cargo = workspace::cargo();
    cargo.args([command, "--release", "--target", TARGET]);
    cargo.env("RUSTFLAGS", flags);
    cargo
}

/// Gives a built file its usual name too; what has that name may be running.
fn place(built: &Path, at: &Path) -> Result<()> {
    fs::create_dir_all(at.parent().unwrap_or(at))?;
    if at.exists() {
        fs::remove_file(at)?;
    }
    Ok(fs::hard_link(built, at)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_placed_again_and_again() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (built, at) = (folder.path().join("built"), folder.path().join("a/lens"));
        for content in ["one", "two", "two"] {
            fs::write(&built, content)?;
            place(&built, &at)?;
            assert_eq!(fs::read_to_string(&at)?, content);
        }
        Ok(())
    }
}
