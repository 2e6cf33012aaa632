//! A small workload that knows what it did: the independent truth of the tests.
//!
//! `load MODE [--KEY VALUE]...` sets its threads up, says `ready`, waits for a line on its input,
//! works, says as one line of JSON what the kernel's own book-keeping tells of each thread, and
//! stays, asleep, until its input ends. With `--gate no` it begins at once and ends by itself.
//!
//! Modes: `burn`; `sleeper` (burns `--burn` µs of CPU time, sleeps `--sleep` µs, and so on);
//! `pingpong` (each two threads hand a byte back and forth); `yield`.
//! For all: `--for` ms, `--threads` n, `--cpu` n (else all), `--nice` n, `--policy fifo|idle`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for tests that talks through its standard streams"
)]

use std::{
    collections::HashMap,
    error::Error,
    fs,
    io::{Read as _, Write as _},
    process::ExitCode,
    sync::{Barrier, Mutex},
    time::Duration,
};

use rustix::{
    pipe::pipe,
    thread::{ClockId, CpuSet, sched_setaffinity, sched_yield},
    time::{Timespec, clock_gettime},
};
use serde_json::{Value, json};

/// System calls between two looks at the clock.
const CALLS: u64 = 1000;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Clone, Debug)]
enum Mode {
    Burn,
    Sleeper { burn: Duration, sleep: Duration },
    PingPong,
    Yield,
    Call,
}

#[derive(Clone, Debug)]
struct Work {
    mode: Mode,
    length: Duration,
    threads: usize,
    cpu: Option<usize>,
    nice: i32,
    policy: Option<i32>,
    gate: bool,
}

impl Work {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mode = words.next().ok_or("which mode?")?;
        let mut flags = HashMap::new();
        while let Some(flag) = words.next() {
            let value = words
                .next()
                .ok_or_else(|| format!("{flag} wants a value"))?;
            flags.insert(flag, value);
        }
        let mut take = |name: &str| flags.remove(&format!("--{name}"));
        let micros = |text: Option<String>| -> Result<Duration> {
            Ok(Duration::from_micros(text.ok_or("how long?")?.parse()?))
        };
        let work = Self {
            mode: match mode.as_str() {
                "burn" => Mode::Burn,
                "sleeper" => Mode::Sleeper {
                    burn: micros(take("burn"))?,
                    sleep: micros(take("sleep"))?,
                },
                "pingpong" => Mode::PingPong,
                "yield" => Mode::Yield,
                "call" => Mode::Call,
                other => return Err(format!("no mode `{other}`").into()),
            },
            length: Duration::from_millis(take("for").ok_or("--for?")?.parse()?),
            threads: take("threads").map_or(Ok(1), |n| n.parse())?,
            cpu: take("cpu").map(|n| n.parse()).transpose()?,
            nice: take("nice").map_or(Ok(0), |n| n.parse())?,
            policy: match take("policy").as_deref() {
                None => None,
                Some("fifo") => Some(libc::SCHED_FIFO),
                Some("idle") => Some(libc::SCHED_IDLE),
                Some(other) => return Err(format!("no policy `{other}`").into()),
            },
            gate: take("gate").is_none_or(|g| g != "no"),
        };
        match flags.keys().next() {
            Some(unknown) => Err(format!("no flag {unknown}").into()),
            None => Ok(work),
        }
    }

    /// Where and how the calling thread runs.
    fn settle(&self) -> Result<()> {
        let mut cpus = CpuSet::new();
        match self.cpu {
            Some(cpu) => cpus.set(cpu),
            None => (0..std::thread::available_parallelism()?
                .get()
                .max(CpuSet::MAX_CPU))
                .for_each(|cpu| cpus.set(cpu)),
        }
        sched_setaffinity(None, &cpus)?;
        if self.nice != 0 {
            rustix::process::setpriority_process(None, self.nice)?;
        }
        if let Some(policy) = self.policy {
            let priority = libc::sched_param {
                sched_priority: i32::from(policy == libc::SCHED_FIFO),
            };
            // SAFETY: concerns the calling thread; the parameter outlives the call.
            #[expect(unsafe_code, reason = "rustix does not offer scheduling policies")]
            let done = unsafe { libc::sched_setscheduler(0, policy, &raw const priority) };
            if done != 0 {
                return Err(std::io::Error::last_os_error().into());
            }
        }
        Ok(())
    }

    /// Works; returns how many rounds it made.
    fn run(&self, hands: Option<Hands>) -> Result<u64> {
        let end = monotonic() + self.length;
        let mut rounds = 0;
        match (&self.mode, hands) {
            (Mode::Sleeper { burn, sleep }, _) => {
                while monotonic() < end {
                    let until = cpu_time() + *burn;
                    while cpu_time() < until {}
                    std::thread::sleep(*sleep);
                    rounds += 1;
                }
            }
            (Mode::PingPong, Some(mut hands)) => {
                while (!hands.serves || monotonic() < end) && hands.pass()? {
                    rounds += 1;
                }
            }
            (Mode::Yield, _) => {
                while monotonic() < end {
                    sched_yield();
                    rounds += 1;
                }
            }
            (Mode::Call, _) => {
                while monotonic() < end {
                    for _ in 0..CALLS {
                        // SAFETY: takes nothing, and cannot fail.
                        #[expect(unsafe_code, reason = "the library would answer by itself")]
                        unsafe {
                            libc::syscall(libc::SYS_getppid)
                        };
                    }
                    rounds += CALLS;
                }
            }
            _ => {
                while monotonic() < end {
                    std::hint::spin_loop();
                    rounds += 1;
                }
            }
        }
        Ok(rounds)
    }
}

/// One end of a game of ping-pong.
#[derive(Debug)]
struct Hands {
    serves: bool,
    from: fs::File,
    to: fs::File,
}

impl Hands {
    fn pair() -> Result<[Self; 2]> {
        let (a_from, b_to) = pipe()?;
        let (b_from, a_to) = pipe()?;
        let hands = |serves, from, to| Self {
            serves,
            from: fs::File::from(from),
            to: fs::File::from(to),
        };
        Ok([hands(true, a_from, a_to), hands(false, b_from, b_to)])
    }

    /// One round; false when the other has gone.
    fn pass(&mut self) -> Result<bool> {
        let mut ball = [0_u8; 1];
        if self.serves {
            self.to.write_all(&ball)?;
        }
        if self.from.read(&mut ball)? == 0 {
            return Ok(false);
        }
        if !self.serves && self.to.write_all(&ball).is_err() {
            return Ok(false);
        }
        Ok(true)
    }
}

fn monotonic() -> Duration {
    as_duration(clock_gettime(ClockId::Monotonic))
}

fn cpu_time() -> Duration {
    as_duration(clock_gettime(ClockId::ThreadCPUTime))
}

fn as_duration(t: Timespec) -> Duration {
    Duration::new(
        u64::try_from(t.tv_sec).unwrap_or_default(),
        u32::try_from(t.tv_nsec).unwrap_or_default(),
    )
}

/// The calling thread's waits for a CPU so far: time and number.
fn schedstat() -> Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let mut words = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    Ok([
        words.next().ok_or("no wait")??,
        words.next().ok_or("no count")??,
    ])
}

fn thread(work: &Work, hands: Option<Hands>, stages: &Barrier) -> Result<Value> {
    let settled = work.settle();
    stages.wait();
    stages.wait();
    settled?;
    let before = (cpu_time(), schedstat()?);
    let rounds = work.run(hands)?;
    let after = (cpu_time(), schedstat()?);
    Ok(json!({
        "tid": rustix::thread::gettid().as_raw_nonzero().get(),
        "rounds": rounds,
        "cpu_ns": after.0.saturating_sub(before.0).as_nanos(),
        "wait_ns": after.1[0] - before.1[0],
        "waits": after.1[1] - before.1[1],
    }))
}

fn run(work: &Work) -> Result<()> {
    let mut hands = Vec::new();
    if matches!(work.mode, Mode::PingPong) {
        for _ in 0..work.threads.div_ceil(2) {
            hands.extend(Hands::pair()?);
        }
    }
    hands.reverse();
    let stages = Barrier::new(work.threads + 1);
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..work.threads {
            let hands = hands.pop();
            let (stages, seen) = (&stages, &seen);
            scope.spawn(move || {
                let done = thread(work, hands, stages);
                if let Ok(mut seen) = seen.lock() {
                    seen.push(done);
                }
                stages.wait();
                stages.wait();
            });
        }
        stages.wait();
        let mut line = String::new();
        if work.gate {
            println!("ready");
            std::io::stdin().read_line(&mut line)?;
        }
        stages.wait();
        stages.wait();
        let seen = std::mem::take(&mut *seen.lock().map_err(|_| "a thread died")?);
        let threads = seen.into_iter().collect::<Result<Vec<Value>>>();
        if let Ok(threads) = &threads {
            println!("{}", json!({ "threads": threads }));
        }
        if work.gate {
            std::io::stdin().read_line(&mut line)?;
        }
        stages.wait();
        threads.map(|_| ())
    })
}

fn main() -> ExitCode {
    match Work::parse(std::env::args().skip(1)).and_then(|work| run(&work)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("load: {why}");
            ExitCode::FAILURE
        }
    }
}
