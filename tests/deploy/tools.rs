//! Programs that check or build, and where they are.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};

/// The folder of deploy/.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A program: of those that `cargo xtask test` installed for this suite, or of the system.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let checkers = target.map(|target| target.join("checkers/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let system = env::split_paths(&path).collect::<Vec<_>>();
    let folders = checkers.into_iter().chain(system);
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    folders
        .chain(usual)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// All of these programs, or a word on what is missing.
pub(crate) fn need<const N: usize>(names: [&str; N]) -> Result<Option<[PathBuf; N]>> {
    let found = names.map(find);
    if let Some(missing) = names.iter().zip(&found).find(|(_, path)| path.is_none()) {
        lens_tests::not_run(&format!(
            "there is no {}; `cargo xtask test` as root installs it on Debian",
            missing.0
        ))?;
        return Ok(None);
    }
    Ok(Some(found.map(Option::unwrap_or_default)))
}

/// What a program says when all is well; an error with its words when it isn't.
pub(crate) fn said(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("{} does not start", command.get_program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {text}{words}");
    Ok(output)
}

/// Runs a program with these arguments.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let output = said(Command::new(program).args(arguments))?;
    Ok(String::from_utf8(output.stdout)?)
}
