//! `lens trace FILE:FUNCTION`: the calls of one function, for a bounded time.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
};

use lens_common::hist::Hist;
use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Outcome, Trouble,
    out::{Out, number, numbers, words},
    run::need_root,
};
use crate::{
    agent,
    base::quality::Quality,
    config::Span,
    host::{HostReader, Root},
    probes::{self, Ended, FunctionCalls, FunctionReading, Timing, TraceRequest, prologue::Place},
    skills::quantile_us,
};

/// Counts and times the calls of one function of a program or library, whoever runs it, with one
/// breakpoint that the kernel takes away when the time is over or the calls are enough.
///
/// A breakpoint costs each caller about a microsecond, two when calls are timed; that is also how
/// much too long a timed call looks. A function so hot that this would cost more than 5 % of a CPU
/// is refused.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct Trace {
    /// A program or library, and a symbol of it as the file spells it; of a container, by
    /// the root of one of its processes in /proc
    #[arg(value_name = "FILE:FUNCTION")]
    function: Site,
    /// How long to trace at most
    #[arg(long = "for", value_name = "SPAN", default_value = "10s")]
    span: Span,
    /// How many calls to trace at most
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    max_hits: u64,
    /// Cgroups whose calls count, as patterns of whole paths; all if none is given
    #[arg(long, value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    cgroup: Vec<String>,
    /// Fail where calls cannot be timed cheaply [default: then only count them]
    #[arg(long, conflicts_with = "no_returns")]
    returns: bool,
    /// Only count calls: half the cost
    #[arg(long)]
    no_returns: bool,
    /// Trace where each call costs 20 to 30 µs, if there is no better place
    #[arg(long)]
    single_step: bool,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// `FILE:FUNCTION`. The first colon after which the file exists; both may have others.
#[derive(Clone, Debug)]
struct Site {
    file: PathBuf,
    function: String,
}

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut cuts = text
            .match_indices(':')
            .map(|(at, _)| (&text[..at], &text[at + 1..]));
        let all: Vec<_> = cuts.by_ref().collect();
        let cut = all.iter().find(|(file, _)| Path::new(file).is_file());
        match cut.or(all.first()) {
            Some((file, function)) if !file.is_empty() && !function.is_empty() => Ok(Self {
                file: PathBuf::from(file),
                function: (*function).to_owned(),
            }),
            _ => Err("say FILE:FUNCTION, for example /usr/bin/python3:PyErr_SetString".to_owned()),
        }
    }
}

impl Trace {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        need_root()?;
        let json = self.json;
        let request = self.request();
        let reader = HostReader::new(Root::default())?;
        let watched = agent::watched(&reader)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|why| Trouble::Runtime(why.into()))?;
        let stopped = stop.try_clone().map_err(Trouble::Runtime)?;
        // Waits for the kernel.
        let tracing = tokio::task::spawn_blocking(move || {
            probes::trace(&request, &watched, stopped.as_fd(), |_| {})
        });
        let reading = until_signal(tracing, &stop).await??;
        if json {
            out.json(&Shown::of(&reading))?;
        } else {
            show(out, &reading)?;
        }
        Ok(Outcome::Fine)
    }

    fn request(self) -> TraceRequest {
        let timing = match (self.returns, self.no_returns) {
            (true, _) => Timing::Always,
            (_, true) => Timing::Never,
            _ => Timing::IfCheap,
        };
        TraceRequest {
            file: self.function.file,
            function: self.function.function,
            span: self.span.0,
            max_hits: self.max_hits,
            cgroups: self.cgroup,
            timing,
            single_step: self.single_step,
        }
    }
}

/// Waits for `work`; a signal to end makes `stop` readable.
async fn until_signal<T>(work: tokio::task::JoinHandle<T>, stop: &OwnedFd) -> Result<T, Trouble> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Trouble::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Trouble::Runtime)?;
    let mut work = work;
    loop {
        tokio::select! {
            done = &mut work => {
                return done.map_err(|why| Trouble::Runtime(std::io::Error::other(why)));
            }
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // A counter that is full is readable, too.
        let _ = rustix::io::write(stop, &1_u64.to_ne_bytes());
    }
}

/// What `--json` shows.
#[derive(Serialize)]
struct Shown<'a> {
    file: &'a Path,
    function: &'a str,
    place: &'a Place,
    timed: bool,
    elapsed_ms: f64,
    ended: Ended,
    calls: u64,
    calls_per_sec: f64,
    overshoot: u64,
    traps: u64,
    cgroups: Vec<Caller<'a>>,
    nested: u64,
    too_deep: u64,
    missing_returns: u64,
    under_way: u64,
    quality: &'a Quality,
}

/// The calls of one cgroup.
#[derive(Serialize)]
struct Caller<'a> {
    cgroup: &'a str,
    calls: u64,
    calls_per_sec: f64,
    returns: u64,
    mean_us: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    max_us: Option<f64>,
    histogram: Vec<Bar>,
}

/// Calls that took from `from_us` up to, not including, `to_us`.
#[derive(Serialize)]
struct Bar {
    from_us: f64,
    to_us: f64,
    calls: u64,
}

impl<'a> Shown<'a> {
    fn of(reading: &'a FunctionReading) -> Self {
        let mut cgroups: Vec<Caller<'_>> = reading
            .cgroups
            .iter()
            .map(|(cgroup, calls)| Caller::of(cgroup, calls, reading))
            .collect();
        cgroups.sort_by_key(|caller| std::cmp::Reverse(caller.calls));
        Self {
            file: &reading.file,
            function: &reading.function,
            place: &reading.place,
            timed: reading.timed,
            elapsed_ms: reading.elapsed.as_secs_f64() * 1e3,
            ended: reading.ended,
            calls: reading.calls,
            calls_per_sec: reading.per_sec(reading.calls),
            overshoot: reading.overshoot,
            traps: reading.traps,
            cgroups,
            nested: reading.nested,
            too_deep: reading.deep,
            missing_returns: reading.missing,
            under_way: reading.under_way,
            quality: &reading.quality,
        }
    }
}

impl<'a> Caller<'a> {
    fn of(cgroup: &'a str, calls: &FunctionCalls, reading: &FunctionReading) -> Self {
        let any = calls.returns != 0;
        let max_us = calls.max_ns as f64 / 1e3;
        // A bucket's upper end may lie above the longest call.
        let quantile = |q| quantile_us(&calls.hist, q).map(|us| us.min(max_us));
        Self {
            cgroup,
            calls: calls.calls,
            calls_per_sec: reading.per_sec(calls.calls),
            returns: calls.returns,
            mean_us: any.then(|| calls.total_ns as f64 / calls.returns as f64 / 1e3),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: any.then_some(max_us),
            histogram: bars(&calls.hist),
        }
    }
}

/// From the first bucket that holds calls to the last.
fn bars(hist: &Hist) -> Vec<Bar> {
    let first = hist.iter().position(|n| *n != 0).unwrap_or(hist.len());
    let last = hist.iter().rposition(|n| *n != 0).map_or(0, |at| at + 1);
    let edge = |at: usize| {
        if at == 0 {
            0.0
        } else {
            (1_u64 << at) as f64 / 1e3
        }
    };
    (first..last)
        .map(|at| Bar {
            from_us: edge(at),
            to_us: edge(at + 1),
            calls: hist[at],
        })
        .collect()
}

fn show(out: &mut Out, reading: &FunctionReading) -> Result<(), Trouble> {
    let shown = Shown::of(reading);
    let ended = match reading.ended {
        Ended::Time => "the time was over",
        Ended::Hits => "enough calls",
        Ended::Hot => "the function became too hot to trace",
        Ended::Stopped => "stopped",
    };
    out.line(format!(
        "{}:{}  at +{} ({}){}",
        reading.file.display(),
        reading.function,
        reading.place.skipped,
        reading.place.instruction,
        if reading.timed { "" } else { ", calls only" },
    ))?;
    out.line(format!(
        "{} calls in {:.3} s, {} a second; {ended}",
        reading.calls,
        reading.elapsed.as_secs_f64(),
        number(shown.calls_per_sec)
    ))?;
    let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let rows = shown.cgroups.iter().map(|c| {
        vec![
            c.cgroup.to_owned(),
            c.calls.to_string(),
            number(c.calls_per_sec),
            us(c.p50_us),
            us(c.p99_us),
            us(c.max_us),
        ]
    });
    let head = [
        words("cgroup"),
        numbers("calls"),
        numbers("per s"),
        numbers("p50 us"),
        numbers("p99 us"),
        numbers("max us"),
    ];
    if !shown.cgroups.is_empty() {
        out.table(&head, rows.collect())?;
    }
    for caller in &shown.cgroups {
        histogram(out, caller)?;
    }
    let notes = [
        (reading.overshoot, "calls came after the last that counts"),
        (reading.nested, "calls were made within another one"),
        (reading.deep, "of them too deep to be timed"),
        (
            reading.missing,
            "returns were jumped over (longjmp, an exception)",
        ),
        (reading.under_way, "calls were still under way at the end"),
    ];
    for (n, what) in notes.iter().filter(|(n, _)| *n != 0) {
        out.line(format!("{n} {what}"))?;
    }
    for (map, n) in &reading.quality.lost {
        out.line(format!("lost: {n} events of {map}"))?;
    }
    Ok(())
}

fn histogram(out: &mut Out, caller: &Caller<'_>) -> Result<(), Trouble> {
    const WIDE: f64 = 40.0;
    let Some(most) = caller.histogram.iter().map(|bar| bar.calls).max() else {
        return Ok(());
    };
    out.line(format!("\n{}", caller.cgroup))?;
    for bar in &caller.histogram {
        let share = WIDE * bar.calls as f64 / most as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most WIDE"
        )]
        let stars = "*".repeat(share.ceil() as usize);
        out.line(format!(
            "{:>12} µs {:>9}  {stars}",
            number(bar.from_us),
            bar.calls
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_cut_at_the_colon_behind_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        std::fs::write(&odd, "").unwrap();
        let site: Site = format!("{}:shop::cart::add", odd.display())
            .parse()
            .unwrap();
        assert_eq!((site.file, &*site.function), (odd, "shop::cart::add"));
        let site: Site = "/no/such/file:shop::cart".parse().unwrap();
        assert_eq!(site.file, Path::new("/no/such/file"));
        for bad in ["main", ":main", "/bin/ls:", ""] {
            assert!(
                bad.parse::<Site>().unwrap_err().contains("FILE:FUNCTION"),
                "{bad}"
            );
        }
    }

    #[test]
    fn bars_go_from_the_first_call_to_the_last() {
        let mut hist = Hist::default();
        hist[0] = 1;
        hist[2] = 3;
        let found: Vec<_> = bars(&hist)
            .iter()
            .map(|b| (b.from_us, b.to_us, b.calls))
            .collect();
        assert_eq!(
            found,
            [(0.0, 0.002, 1), (0.002, 0.004, 0), (0.004, 0.008, 3)]
        );
        assert!(bars(&Hist::default()).is_empty());
    }
}
