//! Threads that wait for each other, and know for how long.

#![expect(unsafe_code, reason = "futexes and mappings as bare as they come")]

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Result, anyhow, bail};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::work::serve;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut stuck = Vec::new();
    serve(|line| {
        Ok(match line.work() {
            "convoy" => convoy(line.number(1)?, line.number(2)?)?,
            "deadlock" => deadlock(&mut stuck),
            "map" => mapping(line.number(1)?, line.number(2)?)?,
            other => bail!("no such work: {other}"),
        })
    })
}

fn now_ns() -> u64 {
    u64::try_from(SystemClock.now().mono.as_nanos()).unwrap_or_default()
}

/// How long the calling thread has waited for CPUs: the second number of `schedstat`
/// (Documentation/scheduler/sched-stats.rst).
fn delay_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let delay = text.split_ascii_whitespace().nth(1);
    delay.and_then(|ns| ns.parse().ok()).unwrap_or_default()
}

/// A lock as glibc makes it: 0 is free, 1 taken, 2 taken with waiters.
#[derive(Default)]
struct Lock(AtomicU32);

/// What a thread has done with a lock.
#[derive(Clone, Copy, Default)]
struct Did {
    /// Waits, not counting calls that came too late to wait.
    waits: u64,
    ns: u64,
    /// The part of it in which the thread waited for a CPU, as the kernel says it.
    run_ns: u64,
    /// Calls that woke somebody.
    wakes: u64,
}

impl Lock {
    fn futex(&self, op: i32, value: u32) -> i64 {
        let at = self.0.as_ptr();
        let op = op | libc::FUTEX_PRIVATE_FLAG;
        let none = std::ptr::null::<libc::timespec>();
        // SAFETY: the word outlives the call.
        unsafe { libc::syscall(libc::SYS_futex, at, op, value, none) }
    }

    fn lock(&self, did: &mut Did) {
        let taken = self
            .0
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            return;
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            let (start, delay) = (now_ns(), delay_ns());
            if self.futex(libc::FUTEX_WAIT, 2) == 0 {
                did.waits += 1;
                did.ns += now_ns() - start;
                did.run_ns += delay_ns() - delay;
            }
        }
    }

    fn unlock(&self, did: &mut Did) {
        if self.0.swap(0, Ordering::Release) == 2 && self.futex(libc::FUTEX_WAKE, 1) == 1 {
            did.wakes += 1;
        }
    }
}

/// `threads` threads take one lock `times` times each, and hold it while they sleep.
fn convoy(threads: u64, times: u64) -> Result<Value> {
    let lock = Arc::new(Lock::default());
    let all: Vec<JoinHandle<Did>> = (0..threads)
        .map(|_| {
            let lock = Arc::clone(&lock);
            std::thread::spawn(move || {
                let mut did = Did::default();
                for _ in 0..times {
                    lock.lock(&mut did);
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    lock.unlock(&mut did);
                }
                did
            })
        })
        .collect();
    let mut sum = Did::default();
    for one in all {
        let did = one.join().map_err(|_| anyhow!("a thread panicked"))?;
        sum.waits += did.waits;
        sum.ns += did.ns;
        sum.run_ns += did.run_ns;
        sum.wakes += did.wakes;
    }
    Ok(json!({
        "address": lock.0.as_ptr() as u64, "waits": sum.waits, "ns": sum.ns,
        "run_ns": sum.run_ns, "wakes": sum.wakes,
    }))
}

/// Two threads take two locks in turn, each the other's second one first; neither comes back.
fn deadlock(stuck: &mut Vec<JoinHandle<()>>) -> Value {
    let locks = Arc::new([Lock::default(), Lock::default()]);
    let both = Arc::new(Barrier::new(2));
    for first in 0..2 {
        let (locks, both) = (Arc::clone(&locks), Arc::clone(&both));
        stuck.push(std::thread::spawn(move || {
            let mut did = Did::default();
            locks[first].lock(&mut did);
            both.wait();
            locks[1 - first].lock(&mut did);
        }));
    }
    json!({ "addresses": [locks[0].0.as_ptr() as u64, locks[1].0.as_ptr() as u64] })
}

fn in_threads(
    threads: u64,
    work: impl Fn() -> Result<()> + Clone + Send + 'static,
) -> Result<Value> {
    let start = now_ns();
    let all: Vec<_> = (0..threads)
        .map(|_| {
            let work = work.clone();
            std::thread::spawn(work)
        })
        .collect();
    for one in all {
        one.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    Ok(json!({ "ns": now_ns() - start }))
}

/// `threads` threads of this process map and unmap memory `times` times each: all of them change
/// one address space.
fn mapping(threads: u64, times: u64) -> Result<Value> {
    const BYTES: usize = 64 * 4096;
    in_threads(threads, move || {
        for _ in 0..times {
            // SAFETY: a new mapping, touched inside only and gone at once.
            unsafe {
                let (access, kind) = (
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                );
                let at = libc::mmap(std::ptr::null_mut(), BYTES, access, kind, -1, 0);
                anyhow::ensure!(at != libc::MAP_FAILED, "mmap");
                for page in 0..BYTES / 4096 {
                    at.cast::<u8>().add(page * 4096).write_volatile(1);
                }
                libc::munmap(at, BYTES);
            }
        }
        Ok(())
    })
}
