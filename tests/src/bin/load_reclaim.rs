//! Work that needs more memory than there is, and knows what it did.

#![expect(unsafe_code, reason = "fork, and pages touched one by one")]

use std::{fs, io::Read as _};

use anyhow::{Result, bail, ensure};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::work::serve;
use serde_json::{Value, json};

fn main() -> Result<()> {
    serve(|line| match line.work() {
        "read" => timed(|| read(line.word(1)?, line.number(2)?)),
        "write" => timed(|| Ok(fs::write(line.word(1)?, line.word(2)?)?)),
        "grow" => grow(line.number(1)?),
        other => bail!("no such work: {other}"),
    })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Value> {
    let start = SystemClock.now();
    work()?;
    let took = SystemClock.now().since(&start);
    Ok(json!({ "ns": u64::try_from(took.as_nanos())? }))
}

/// Reads a whole file `times` times.
fn read(path: &str, times: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..times {
        let mut file = fs::File::open(path)?;
        while file.read(&mut buffer)? != 0 {}
    }
    Ok(())
}

/// A child takes so many pages, one by one; how it ended.
fn grow(pages: u64) -> Result<Value> {
    const PAGE: usize = 4096;
    let bytes = usize::try_from(pages)? * PAGE;
    // SAFETY: this program has one thread when it forks.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: a new mapping, touched inside only; big pages would take more than is touched.
        unsafe {
            let (access, kind) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            let at = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0);
            if at == libc::MAP_FAILED {
                libc::_exit(1);
            }
            libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE);
            for page in 0..bytes / PAGE {
                at.cast::<u8>().add(page * PAGE).write_volatile(1);
            }
            libc::_exit(0)
        }
    }
    let mut status = 0;
    // SAFETY: a child of this process.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ensure!(ended == pid, "waitpid: {}", std::io::Error::last_os_error());
    Ok(json!({ "pid": pid, "signal": status & 0x7f }))
}
