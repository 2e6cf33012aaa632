//! Functions that burn CPU time, are in the kernel, or sleep, with and without frame pointers; it
//! knows for how long.

#![expect(
    unsafe_code,
    reason = "functions in assembler, whose frames are known, and threads as bare as they come"
)]

use std::{arch::global_asm, time::Duration};

use anyhow::{Result, bail, ensure};
use lens_agent::base::clock::{Clock as _, SystemClock};
use lens_tests::work::serve;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

global_asm!(
    ".globl profiled_outer, profiled_middle, profiled_inner, profiled_bare, profiled_nap, profiled_read",
    // What a thread begins with; its argument points to whether frame pointers are missing below, and
    // how long to count.
    ".type profiled_outer, @function",
    "profiled_outer: push rbp",
    "mov rbp, rsp",
    "mov rsi, [rdi + 8]",
    "mov rdi, [rdi]",
    "call profiled_middle",
    "pop rbp",
    "ret",
    ".size profiled_outer, . - profiled_outer",
    ".type profiled_middle, @function",
    "profiled_middle: push rbp",
    "mov rbp, rsp",
    "test rdi, rdi",
    "jz 1f",
    "call profiled_bare",
    "jmp 2f",
    "1: call profiled_inner",
    "2: pop rbp",
    "ret",
    ".size profiled_middle, . - profiled_middle",
    // Counts rsi down.
    ".type profiled_inner, @function",
    "profiled_inner: push rbp",
    "mov rbp, rsp",
    "1: dec rsi",
    "jnz 1b",
    "pop rbp",
    "ret",
    ".size profiled_inner, . - profiled_inner",
    // The same without a frame; where its pointer is looked for lies what looks like a frame: its
    // caller is a place in data, and then one in code that no call leads to.
    ".type profiled_bare, @function",
    "profiled_bare: push rbp",
    "lea rbp, [rip + profiled_junk]",
    "1: dec rsi",
    "jnz 1b",
    "pop rbp",
    "ret",
    ".size profiled_bare, . - profiled_bare",
    // Sleeps rdi seconds and rsi nanoseconds: nanosleep of what lies on its stack.
    ".type profiled_nap, @function",
    "profiled_nap: push rbp",
    "mov rbp, rsp",
    "push rsi",
    "push rdi",
    "mov rdi, rsp",
    "xor esi, esi",
    "mov eax, 35",
    "syscall",
    "leave",
    "ret",
    ".size profiled_nap, . - profiled_nap",
    // Reads rdx bytes of the file rdi to rsi.
    ".type profiled_read, @function",
    "profiled_read: push rbp",
    "mov rbp, rsp",
    "xor eax, eax",
    "syscall",
    "pop rbp",
    "ret",
    ".size profiled_read, . - profiled_read",
    ".pushsection .data.rel, \"aw\"",
    "profiled_junk: .quad profiled_junk_2",
    ".quad profiled_inner + 5",
    "profiled_junk_2: .quad 0",
    ".quad profiled_junk",
    ".popsection",
);

unsafe extern "C" {
    // It reads what it is given, which every caller has.
    safe fn profiled_outer(argument: *mut libc::c_void) -> *mut libc::c_void;
    fn profiled_nap(secs: u64, ns: u64) -> i64;
    fn profiled_read(file: u64, to: *mut u8, bytes: u64) -> i64;
}

fn main() -> Result<()> {
    serve(|line| {
        Ok(match line.work() {
            "burn" => in_threads(0, line.number(1)?)?,
            "bare" => in_threads(1, line.number(1)?)?,
            "kernel" => kernel(line.number(1)?)?,
            "nap" => nap(line.number(1)?, line.number(2)?)?,
            "pid" => json!({ "pid": std::process::id() }),
            other => bail!("no such work: {other}"),
        })
    })
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let at = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or_default(),
        u32::try_from(at.tv_nsec).unwrap_or_default(),
    )
}

fn said(cpu: Duration, wall: Duration) -> Value {
    json!({ "cpu_ms": cpu.as_secs_f64() * 1e3, "wall_ms": wall.as_secs_f64() * 1e3 })
}

/// Threads, one after the other, that begin with `profiled_outer` and burn so many milliseconds of CPU
/// time.
fn in_threads(bare: u64, millis: u64) -> Result<Value> {
    const TURNS: u64 = 100_000_000;
    let (start, began) = (SystemClock.now(), cpu_time());
    let burnt = || cpu_time().saturating_sub(began);
    while burnt().as_millis() < u128::from(millis) {
        let mut argument = [bare, TURNS];
        let mut id = 0;
        // SAFETY: the thread reads its argument, and is waited for.
        let done = unsafe {
            let argument = argument.as_mut_ptr().cast();
            match libc::pthread_create(&raw mut id, std::ptr::null(), profiled_outer, argument) {
                0 => libc::pthread_join(id, std::ptr::null_mut()),
                error => error,
            }
        };
        ensure!(done == 0, "no thread: {done}");
    }
    Ok(said(burnt(), SystemClock.now().since(&start)))
}

/// Reads zeros for so many milliseconds of CPU time.
fn kernel(millis: u64) -> Result<Value> {
    use std::os::fd::AsRawFd as _;
    let zeros = std::fs::File::open("/dev/zero")?;
    let mut into = vec![0_u8; 1 << 20];
    let (start, began) = (SystemClock.now(), cpu_time());
    while cpu_time().saturating_sub(began).as_millis() < u128::from(millis) {
        let file = u64::try_from(zeros.as_raw_fd())?;
        // SAFETY: as many bytes as there is room for.
        let read = unsafe { profiled_read(file, into.as_mut_ptr(), into.len() as u64) };
        ensure!(read > 0, "read: {read}");
    }
    Ok(said(
        cpu_time().saturating_sub(began),
        SystemClock.now().since(&start),
    ))
}

/// Sleeps `times` times for so many microseconds.
fn nap(times: u64, micros: u64) -> Result<Value> {
    let mut slept = Duration::ZERO;
    for _ in 0..times {
        let start = SystemClock.now();
        // SAFETY: takes numbers, and touches nothing but its stack.
        let done = unsafe { profiled_nap(micros / 1_000_000, micros % 1_000_000 * 1000) };
        ensure!(done == 0, "nanosleep: {done}");
        slept += SystemClock.now().since(&start);
    }
    Ok(said(Duration::ZERO, slept))
}
