//! Functions with known first instructions, called as often as its input says. Says `ready`; then
//! does what each line says, and answers with one line of JSON; ends with its input.

#![expect(
    unsafe_code,
    reason = "functions in assembler, whose instructions are known"
)]

use std::{
    arch::global_asm,
    hint::black_box,
    io::{BufRead as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lens_agent::base::clock::{Clock as _, SystemClock};
use serde_json::json;

global_asm!(
    ".globl traced_push, traced_sub, traced_bare, traced_deep, traced_escape, let_escape",
    // Its first instruction is emulated.
    ".type traced_push, @function",
    "traced_push: push rbp",
    "mov rbp, rsp",
    "call {work}",
    "pop rbp",
    "ret",
    ".size traced_push, . - traced_push",
    // The first that is emulated comes after the stack has moved.
    ".type traced_sub, @function",
    "traced_sub: sub rsp, 8",
    "call {work}",
    "add rsp, 8",
    "ret",
    ".size traced_sub, . - traced_sub",
    // None is emulated.
    ".type traced_bare, @function",
    "traced_bare: lea rax, [rdi + 1]",
    "ret",
    ".size traced_bare, . - traced_bare",
    // Calls itself as often as its argument says.
    ".type traced_deep, @function",
    "traced_deep: push rbp",
    "test rdi, rdi",
    "jz 1f",
    "dec rdi",
    "call traced_deep",
    "1: pop rbp",
    "ret",
    ".size traced_deep, . - traced_deep",
    // Does not return but goes on at its caller's, as longjmp does.
    ".type traced_escape, @function",
    "traced_escape: push rbp",
    "mov rsp, rdi",
    "jmp rsi",
    ".size traced_escape, . - traced_escape",
    ".type let_escape, @function",
    "let_escape: push rbp",
    "mov rdi, rsp",
    "lea rsi, [rip + 2f]",
    "call traced_escape",
    "2: pop rbp",
    "ret",
    ".size let_escape, . - let_escape",
    work = sym work,
);

unsafe extern "C" {
    fn traced_push(micros: u64) -> u64;
    fn traced_sub(micros: u64) -> u64;
    fn traced_bare(n: u64) -> u64;
    fn traced_deep(n: u64) -> u64;
    fn let_escape(n: u64) -> u64;
}

/// Takes so many microseconds.
extern "C" fn work(micros: u64) -> u64 {
    if micros != 0 {
        let start = SystemClock.now();
        while SystemClock.now().since(&start).as_micros() < u128::from(micros) {
            std::hint::spin_loop();
        }
    }
    micros
}

/// A call of the kernel that hardly anybody makes.
unsafe extern "C" fn getpgid(_: u64) -> u64 {
    // SAFETY: takes and gives a number.
    u64::try_from(unsafe { libc::getpgid(0) }).unwrap_or_default()
}

fn function(name: &str) -> Result<unsafe extern "C" fn(u64) -> u64> {
    Ok(match name {
        "traced_push" => traced_push,
        "traced_sub" => traced_sub,
        "traced_bare" => traced_bare,
        "traced_deep" => traced_deep,
        "let_escape" => let_escape,
        "getpgid" => getpgid,
        other => bail!("no such function: {other}"),
    })
}

/// A thread that calls a function without a pause, until it is told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    calls: JoinHandle<u64>,
}

fn main() -> Result<()> {
    let out = std::io::stdout();
    writeln!(out.lock(), "ready")?;
    let mut flood = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let n = |i: usize| -> Result<u64> { Ok(words.get(i).context("too few words")?.parse()?) };
        let name = words.get(1).copied().unwrap_or_default();
        let calls = match words.first().copied().unwrap_or_default() {
            "call" => call(function(name)?, n(2)?, n(3)?),
            "sleep" => sleep(n(1)?, n(2)?),
            "flood" => {
                flood = Some(Flood::start(function(name)?));
                0
            }
            "stop" => flood.take().context("no flood")?.stop()?,
            other => bail!("no such work: {other}"),
        };
        writeln!(out.lock(), "{}", json!({ "calls": calls }))?;
    }
    Ok(())
}

fn call(function: unsafe extern "C" fn(u64) -> u64, times: u64, argument: u64) -> u64 {
    for _ in 0..times {
        // SAFETY: they take a number and touch nothing but their stack.
        black_box(unsafe { function(black_box(argument)) });
    }
    times
}

/// Sleeps so often for so many microseconds.
fn sleep(times: u64, micros: u64) -> u64 {
    for _ in 0..times {
        std::thread::sleep(Duration::from_micros(micros));
    }
    times
}

impl Flood {
    fn start(function: unsafe extern "C" fn(u64) -> u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let calls = std::thread::spawn(move || {
            let mut calls = 0;
            while !stopped.load(Ordering::Relaxed) {
                calls += call(function, 64, 0);
            }
            calls
        });
        Self { stop, calls }
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.calls.join().ok().context("a thread panicked")
    }
}
