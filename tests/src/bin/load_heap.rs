//! Allocations of the C library in named functions, as its input says. Says `ready`; then does what
//! each line says, and answers with one line of JSON; ends with its input.

#![expect(unsafe_code, reason = "the C library's allocator, by itself")]

use std::{
    hint::black_box,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, bail};
use lens_tests::work::serve;
use libc::{c_void, size_t};
use serde_json::json;

/// Memory that was allocated and is kept.
type Kept = Vec<*mut c_void>;

#[inline(never)]
fn leaking(times: u64, size: size_t, kept: &mut Kept) {
    for _ in 0..times {
        // SAFETY: what is kept is freed once or never.
        kept.push(black_box(unsafe { libc::malloc(size) }));
    }
}

#[inline(never)]
fn tidy(times: u64, size: size_t) {
    for _ in 0..times {
        // SAFETY: what was allocated is freed.
        unsafe { libc::free(black_box(libc::malloc(size))) };
    }
}

/// By everything else that allocates: `size` bytes each, of which none stays but what `realloc` has
/// made of half as many.
#[inline(never)]
fn by_relatives(times: u64, size: size_t, kept: &mut Kept) {
    for _ in 0..times {
        // SAFETY: each is freed once, or kept.
        unsafe {
            libc::free(black_box(libc::calloc(2, size / 2)));
            libc::free(black_box(libc::aligned_alloc(64, size)));
            libc::free(black_box(libc::memalign(64, size)));
            let mut aligned = ptr::null_mut();
            libc::posix_memalign(&raw mut aligned, 64, size);
            libc::free(black_box(aligned));
            let half = black_box(libc::malloc(size / 2));
            kept.push(black_box(libc::realloc(half, size)));
            let none = black_box(libc::reallocarray(ptr::null_mut(), 2, size / 2));
            // To nothing: it is freed.
            black_box(libc::realloc(none, 0));
        }
    }
}

/// A thread that allocates and frees without a pause, until it is told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    calls: JoinHandle<u64>,
}

/// Calls [`tidy`] so often, and spins in between, so that one call in so many instructions allocates.
fn flood(spins: u64) -> Flood {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let calls = std::thread::spawn(move || {
        let mut calls = 0;
        while !stopped.load(Ordering::Relaxed) {
            tidy(1, 64);
            calls += 1;
            for _ in 0..spins {
                std::hint::spin_loop();
            }
        }
        calls
    });
    Flood { stop, calls }
}

fn main() -> Result<()> {
    let mut kept: Kept = Vec::with_capacity(1 << 20);
    let mut flooding = None;
    serve(move |line| {
        let size = || -> Result<size_t> { Ok(usize::try_from(line.number(2)?)?) };
        let done = match line.work() {
            "leak" => {
                leaking(line.number(1)?, size()?, &mut kept);
                line.number(1)?
            }
            "tidy" => {
                tidy(line.number(1)?, size()?);
                line.number(1)?
            }
            "relatives" => {
                by_relatives(line.number(1)?, size()?, &mut kept);
                line.number(1)?
            }
            "release" => {
                let n = kept.len();
                for at in kept.drain(..) {
                    // SAFETY: it was kept, and is not any more.
                    unsafe { libc::free(at) };
                }
                u64::try_from(n)?
            }
            "flood" => {
                flooding = Some(flood(line.number(1)?));
                0
            }
            "calls" => {
                let Flood { stop, calls } = flooding.take().context("no flood")?;
                stop.store(true, Ordering::Relaxed);
                calls.join().ok().context("a thread panicked")?
            }
            other => bail!("no such work: {other}"),
        };
        Ok(json!({ "calls": done }))
    })
}
