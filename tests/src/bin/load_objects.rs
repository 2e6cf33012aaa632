//! Work that knows what it did.

#![expect(unsafe_code, reason = "system calls as bare as they come")]

use std::{
    fs,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    process::Command,
};

use anyhow::{Result, bail, ensure};
use lens_tests::work::serve;
use serde_json::{Value, json};

fn main() -> Result<()> {
    serve(|line| {
        let n = |i| line.number(i);
        Ok(match line.work() {
            "calls" => calls(n(1)?, n(2)?),
            "numbers" => numbers(n(1)?, n(2)?),
            "sleep" => sleeps(n(1)?, n(2)?),
            "fork" => fork(n(1)?, n(2)?, n(3)?)?,
            "exec" => exec(n(1)?)?,
            "threads" => threads(n(1)?)?,
            "group" => group(n(1)?, n(2)?)?,
            "touch" => touch(n(1)?, n(2)?)?,
            "file" => file(line.word(1)?)?,
            "pin" => pin(n(1)?)?,
            "direct" => direct(line.word(1)?, n(2)?, n(3)?)?,
            "vfork" => vfork(n(1)?)?,
            "timers" => timers(n(1)?)?,
            "signals" => signals(n(1)?, n(2)?)?,
            other => bail!("no such work: {other}"),
        })
    })
}

fn calls(parents: u64, reads: u64) -> Value {
    let mut failed = 0_u64;
    // SAFETY: neither touches memory.
    unsafe {
        for _ in 0..parents {
            libc::syscall(libc::SYS_getppid);
        }
        for _ in 0..reads {
            let got = libc::syscall(libc::SYS_read, -1, std::ptr::null::<u8>(), 0);
            failed += u64::from(got == -1);
        }
    }
    json!({ "failed": failed })
}

/// Calls every number from `from` up to, not including, `to`: none of them may exist.
fn numbers(from: u64, to: u64) -> Value {
    let mut failed = 0_u64;
    for nr in from..to {
        // SAFETY: there is no such call.
        let got = unsafe { libc::syscall(nr.cast_signed()) };
        failed += u64::from(got == -1);
    }
    json!({ "failed": failed })
}

fn sleeps(n: u64, micros: u64) -> Value {
    for _ in 0..n {
        std::thread::sleep(std::time::Duration::from_micros(micros));
    }
    json!({})
}

/// Makes `n` children, one after the other; the first `crash` of them die by SIGSEGV, the next
/// `fail` end with status 3.
fn fork(n: u64, crash: u64, fail: u64) -> Result<Value> {
    let mut crashed = 0;
    for i in 0..n {
        crashed += u64::from(
            child(|| {
                if i < crash {
                    segfault();
                }
                if i < crash + fail { 3 } else { 0 }
            })? == libc::SIGSEGV,
        );
    }
    Ok(json!({ "crashed": crashed, "pid": std::process::id() }))
}

fn segfault() -> ! {
    // SAFETY: no core is written, the default action is restored, and the signal ends the process.
    unsafe {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::raise(libc::SIGSEGV);
        libc::_exit(1)
    }
}

/// The signal that ended the child, 0 if none.
fn child(work: impl FnOnce() -> i32) -> Result<i32> {
    // SAFETY: this program has one thread when it forks.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let status = work();
        // SAFETY: ends the child without running what belongs to its parent.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    // SAFETY: a child of this process.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ensure!(ended == pid, "waitpid: {}", std::io::Error::last_os_error());
    Ok(status & 0x7f)
}

fn exec(n: u64) -> Result<Value> {
    for _ in 0..n {
        let status = Command::new("/bin/true").status()?;
        ensure!(status.success(), "/bin/true: {status}");
    }
    Ok(json!({}))
}

fn threads(n: u64) -> Result<Value> {
    for _ in 0..n {
        let joined = std::thread::spawn(|| {}).join();
        ensure!(joined.is_ok(), "a thread panicked");
    }
    Ok(json!({}))
}

/// `n` children of `threads` threads each that end all at once.
fn group(n: u64, threads: u64) -> Result<Value> {
    for _ in 0..n {
        child(|| {
            let (ready, all_ready) = std::sync::mpsc::channel();
            for _ in 1..threads {
                let ready = ready.clone();
                std::thread::spawn(move || {
                    let _ = ready.send(());
                    loop {
                        std::thread::park();
                    }
                });
            }
            for _ in 1..threads {
                let _ = all_ready.recv();
            }
            4
        })?;
    }
    Ok(json!({}))
}

fn map(pages: usize, fd: i32) -> Result<*mut u8> {
    let kind = if fd < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * 4096,
            libc::PROT_READ | if fd < 0 { libc::PROT_WRITE } else { 0 },
            libc::MAP_PRIVATE | kind,
            fd,
            0,
        )
    };
    ensure!(
        at != libc::MAP_FAILED,
        "mmap: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the mapping just made; big and read-ahead pages would make fewer faults of it.
    unsafe {
        libc::madvise(at, pages * 4096, libc::MADV_NOHUGEPAGE);
        libc::madvise(at, pages * 4096, libc::MADV_RANDOM);
    }
    Ok(at.cast())
}

/// Touches `own` new pages itself, and lets the kernel write to `kernel` others. Keeps them.
fn touch(own: u64, kernel: u64) -> Result<Value> {
    let zero = fs::File::open("/dev/zero")?;
    let (own, kernel) = (usize::try_from(own)?, usize::try_from(kernel)?);
    let at = map(own.max(1), -1)?;
    let to = map(kernel.max(1), -1)?;
    // SAFETY: inside the two mappings.
    unsafe {
        for page in 0..own {
            at.add(page * 4096).write_volatile(1);
        }
        for page in 0..kernel {
            libc::read(zero.as_raw_fd(), to.add(page * 4096).cast(), 1);
        }
    }
    Ok(json!({}))
}

/// Reads every page of a file through a mapping, after the cache has dropped it.
fn file(path: &str) -> Result<Value> {
    let file = fs::File::open(path)?;
    let pages = usize::try_from(file.metadata()?.len())? / 4096;
    // SAFETY: an open file.
    let dropped = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    ensure!(dropped == 0, "posix_fadvise: {dropped}");
    let at = map(pages, file.as_raw_fd())?;
    for page in 0..pages {
        // SAFETY: inside the mapping.
        unsafe { at.add(page * 4096).read_volatile() };
    }
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(at.cast(), pages * 4096) };
    Ok(json!({}))
}

/// Reads so many blocks of 64 KiB of a device one by one, past the page cache, and writes as many back.
fn direct(path: &str, reads: u64, writes: u64) -> Result<Value> {
    const BLOCK: usize = 64 * 1024;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    // Aligned as such a transfer has to be.
    let buffer = map(BLOCK / 4096, -1)?;
    // SAFETY: the mapping just made, which nobody else uses.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer, BLOCK) };
    for i in 0..reads {
        file.read_exact_at(buffer, i * BLOCK as u64)?;
    }
    for i in 0..writes {
        file.write_all_at(buffer, i * BLOCK as u64)?;
    }
    Ok(json!({}))
}

/// Makes a child in the way of vfork(2), which lives for so many milliseconds: until then it sleeps, and
/// cannot be interrupted.
fn vfork(millis: u64) -> Result<Value> {
    let length = libc::timespec {
        tv_sec: i64::try_from(millis / 1000)?,
        tv_nsec: i64::try_from(millis % 1000)? * 1_000_000,
    };
    // SAFETY: the child has a copy of the memory, and makes two system calls.
    let child = unsafe {
        let child = libc::syscall(
            libc::SYS_clone,
            libc::CLONE_VFORK | libc::SIGCHLD,
            0,
            0,
            0,
            0,
        );
        if child == 0 {
            libc::nanosleep(&raw const length, std::ptr::null_mut());
            libc::_exit(0);
        }
        child
    };
    ensure!(child > 0, "clone: {}", std::io::Error::last_os_error());
    // SAFETY: an own child, whose status nobody wants.
    unsafe { libc::waitpid(i32::try_from(child)?, std::ptr::null_mut(), 0) };
    Ok(json!({}))
}

/// Sets a timer so many times, far into the future.
fn timers(times: u64) -> Result<Value> {
    let mut far = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        },
    };
    // SAFETY: a new descriptor, and values that outlive the calls.
    unsafe {
        let timer = libc::timerfd_create(libc::CLOCK_MONOTONIC, 0);
        ensure!(timer >= 0, "timerfd: {}", std::io::Error::last_os_error());
        for _ in 0..times {
            far.it_value.tv_sec += 1;
            let set = libc::timerfd_settime(timer, 0, &raw const far, std::ptr::null_mut());
            ensure!(set == 0, "timerfd: {}", std::io::Error::last_os_error());
        }
        libc::close(timer);
    }
    Ok(json!({}))
}

/// Sends the process `pid` so many signals that it ignores.
fn signals(pid: u64, times: u64) -> Result<Value> {
    let pid = i32::try_from(pid)?;
    for _ in 0..times {
        // SAFETY: numbers only.
        let sent = unsafe { libc::kill(pid, libc::SIGURG) };
        ensure!(sent == 0, "kill: {}", std::io::Error::last_os_error());
    }
    Ok(json!({}))
}

fn pin(cpu: u64) -> Result<Value> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(usize::try_from(cpu)?);
    rustix::thread::sched_setaffinity(None, &cpus)?;
    Ok(json!({}))
}
