//! Running a guest: QEMU without KVM, for that works in any virtual machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::workspace;

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// A guest that is not done by then hangs. Many times what it takes on a machine of its own.
const LIMIT: Duration = Duration::from_mins(15);
/// What `timeout` exits with when that was over.
const TIMED_OUT: i32 = 124;

/// What a guest wrote.
#[derive(Debug)]
pub(super) struct Logs {
    /// The kernel's own words.
    pub(super) console: PathBuf,
    /// What lens and the tests said.
    pub(super) tests: PathBuf,
}

/// Runs the guest on `disk` until it switches itself off. It has the two CPUs that tests want, which
/// take turns: where they run at once, QEMU 7.2 may run code half of which the kernel has just changed
/// (attaching programs does that), and the guest dies with `Oops: int3`.
pub(super) fn boot(kernel: &Kernel, disk: &Path, logs: &Logs) -> Result<()> {
    for log in [&logs.console, &logs.tests] {
        fs::write(log, "").with_context(|| log.display().to_string())?;
    }
    let mut timeout = workspace::program("timeout");
    // In the foreground: what ends this program ends the guest as well.
    timeout.args(["--foreground", "--kill-after=5"]);
    timeout.arg(LIMIT.as_secs().to_string()).arg(QEMU);
    timeout.args([
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max",
        "-machine",
        "q35",
    ]);
    timeout.args([
        "-smp",
        "2",
        "-m",
        "2048",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    for log in [&logs.console, &logs.tests] {
        timeout
            .arg("-serial")
            .arg(format!("file:{}", log.display()));
    }
    let drive = format!(
        "file={},format=raw,if=none,id=disk,cache=unsafe",
        disk.display()
    );
    timeout.args(["-drive", &drive, "-device", "nvme,serial=disk,drive=disk"]);
    // An oops ends the guest as a panic does: at once, and with the reason on its console.
    timeout.arg("-kernel").arg(kernel.image()).args([
        "-append",
        "console=ttyS0 quiet oops=panic panic=-1 root=/dev/nvme0n1 rw init=/init tsc=reliable",
    ]);
    let done = timeout.output().context("timeout cannot be started")?;
    let said = String::from_utf8_lossy(&done.stderr);
    match done.status.code() {
        Some(0) => Ok(()),
        Some(TIMED_OUT) => bail!("the guest hangs: it was not done after {LIMIT:?}"),
        _ => bail!("{QEMU}: {}: {}", done.status, said.trim()),
    }
}
