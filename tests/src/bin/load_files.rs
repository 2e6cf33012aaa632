//! Work with files that knows what it did.

#![expect(
    unsafe_code,
    reason = "system calls as bare as they come, and mapped files"
)]

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
};

use anyhow::{Result, bail, ensure};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::work::serve;
use serde_json::{Value, json};

/// What is written and read at once.
const CHUNK: usize = 64 * 1024;
const PAGE: usize = 4096;

fn main() -> Result<()> {
    serve(|line| match line.work() {
        "sync" => sync(line.word(1)?, line.number(2)?),
        "each" => each(line.word(1)?, line.number(2)?),
        "again" => again(line.word(1)?),
        "fill" => fill(line.word(1)?, line.number(2)?),
        "write" => write(line.word(1)?, line.number(2)?),
        "read" => read(line.word(1)?),
        "map" => map(line.word(1)?),
        "make" => make(line.word(1)?, line.number(2)?),
        "idle" => Ok(json!({})),
        other => bail!("no such work: {other}"),
    })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let start = SystemClock.now();
    work()?;
    Ok(u64::try_from(SystemClock.now().since(&start).as_nanos())?)
}

fn open(path: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    Ok(options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?)
}

/// Writes a page and waits until it is on the device, `n` times; how long it waited.
fn sync(path: &str, n: u64) -> Result<Value> {
    let mut file = open(path)?;
    let (mut ns, mut longest, mut failed) = (0, 0, 0_u64);
    for _ in 0..n {
        file.write_all(&[7; PAGE])?;
        let took = timed(|| {
            failed += u64::from(file.sync_all().is_err());
            Ok(())
        })?;
        ns += took;
        longest = longest.max(took);
    }
    Ok(json!({ "ns": ns, "longest": longest, "failed": failed }))
}

/// Calls everything that waits so, `n` times; and `msync` also so that it does not.
fn each(path: &str, n: u64) -> Result<Value> {
    let file = open(path)?;
    file.set_len(PAGE as u64)?;
    let fd = file.as_raw_fd();
    let fine = |result: i32| {
        ensure!(result == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    };
    // SAFETY: an open file, and a page of it that is mapped.
    unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), PAGE, access, libc::MAP_SHARED, fd, 0);
        ensure!(at != libc::MAP_FAILED, "mmap");
        for _ in 0..n {
            at.cast::<u8>().write_volatile(1);
            fine(libc::fsync(fd))?;
            fine(libc::fdatasync(fd))?;
            fine(libc::msync(at, PAGE, libc::MS_SYNC))?;
            fine(libc::msync(at, PAGE, libc::MS_ASYNC))?;
            fine(libc::syncfs(fd))?;
            fine(libc::sync_file_range(fd, 0, 0, libc::SYNC_FILE_RANGE_WRITE))?;
        }
        libc::munmap(at, PAGE);
    }
    Ok(json!({}))
}

/// Waits until what was written to a file is on its device; with which error that failed.
fn again(path: &str) -> Result<Value> {
    let file = OpenOptions::new().write(true).open(path)?;
    let failed = file.sync_all().err();
    let errno = failed.and_then(|why| why.raw_os_error()).unwrap_or(0);
    Ok(json!({ "errno": errno }))
}

/// Writes until there is no room, and then so many times more than that; bytes that found room.
fn fill(path: &str, more: u64) -> Result<Value> {
    let (mut file, chunk) = (open(path)?, vec![7; CHUNK]);
    let (mut bytes, mut refused) = (0, 0);
    while refused < more {
        match file.write(&chunk) {
            Ok(n) => bytes += n,
            Err(why) if why.raw_os_error() == Some(libc::ENOSPC) => refused += 1,
            Err(why) => return Err(why.into()),
        }
    }
    Ok(json!({ "bytes": bytes }))
}

/// Writes so many bytes; how long it took, and for how much of it this thread slept.
fn write(path: &str, bytes: u64) -> Result<Value> {
    let (mut file, chunk) = (open(path)?, vec![7; CHUNK]);
    let before = awake()?;
    let ns = timed(|| {
        for _ in 0..bytes / CHUNK as u64 {
            file.write_all(&chunk)?;
        }
        Ok(())
    })?;
    let slept = ns.saturating_sub(awake()? - before);
    Ok(json!({ "ns": ns, "slept": slept }))
}

/// Nanoseconds for which this thread has run, or waited to run.
fn awake() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let mut words = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (Some(ran), Some(waited)) = (words.next(), words.next()) else {
        bail!("{text}");
    };
    Ok(ran? + waited?)
}

/// Reads a whole file.
fn read(path: &str) -> Result<Value> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        bytes += n;
        if n == 0 {
            return Ok(json!({ "bytes": bytes }));
        }
    }
}

/// Touches each page of a file that is mapped.
fn map(path: &str) -> Result<Value> {
    let file = File::open(path)?;
    let bytes = usize::try_from(file.metadata()?.len())?;
    let mut sum = 0_u64;
    // SAFETY: a new mapping, read inside only.
    unsafe {
        let kind = libc::MAP_PRIVATE;
        let fd = file.as_raw_fd();
        let at = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, kind, fd, 0);
        ensure!(at != libc::MAP_FAILED, "mmap");
        for page in 0..bytes / PAGE {
            sum += u64::from(at.cast::<u8>().add(page * PAGE).read_volatile());
        }
        libc::munmap(at, bytes);
    }
    Ok(json!({ "sum": sum }))
}

/// Makes so many empty files in a folder.
fn make(folder: &str, n: u64) -> Result<Value> {
    for i in 0..n {
        File::create(format!("{folder}/{i}"))?;
    }
    Ok(json!({}))
}
