//! `lens trace FILE:FUNCTION` or `kernel:FUNCTION`: the calls of one function, for a bounded time.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Outcome, Trouble,
    ask::Ask,
    out::{Out, number, numbers, words},
    run::need_root,
};
use crate::{
    agent,
    api::{Caller, Traced},
    config::Span,
    host::{HostReader, Root},
    probes::{self, Ended, Means, TraceRequest},
};

/// Counts the calls of one function of a program or library, whoever runs it, or of the kernel, with
/// one breakpoint that is taken away when the time is over or the calls are enough; and times them,
/// if it is asked to.
///
/// A breakpoint costs each caller about a microsecond, two when calls are timed; that is also how
/// much too long a timed call looks. What it costs on this machine is measured before, and told. A
/// function so hot that this would cost more than 5 % of a CPU is refused. In the kernel a call
/// takes the place of the breakpoint (fentry), for a tenth of that, where the kernel has it.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct Trace {
    /// A program or library, and a symbol of it as the file spells it; of a container, by
    /// the root of one of its processes in /proc. `kernel:FUNCTION` is one of the kernel's, as
    /// /proc/kallsyms spells it (a file of that name is ./kernel)
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
    /// Time the calls, too, with a second breakpoint where the function returns. Not for functions
    /// that an exception or a panic may leave, nor under coroutines with stacks of their own: they
    /// would find a return address that is not their caller's, and end. Refused for Go
    #[arg(long)]
    returns: bool,
    /// Trace where each call costs 20 to 30 µs, if there is no better place
    #[arg(long)]
    single_step: bool,
    /// Let the running agent trace: its skill `tracer` then shows the calls
    #[arg(long)]
    agent: bool,
    /// JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ask: Ask,
}

/// What an agent may take beyond the time of the trace.
const ANSWER: Duration = Duration::from_secs(30);

/// `FILE:FUNCTION`. The first colon after which the file exists; both may have others. Without a
/// file it is the kernel's.
#[derive(Clone, Debug)]
struct Site {
    file: Option<PathBuf>,
    function: String,
}

/// What stands for the file of the kernel.
const KERNEL: &str = "kernel";

impl FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut cuts = text
            .match_indices(':')
            .map(|(at, _)| (&text[..at], &text[at + 1..]));
        let all: Vec<_> = cuts.by_ref().collect();
        let cut = all
            .iter()
            .find(|(file, _)| *file == KERNEL || Path::new(file).is_file());
        match cut.or(all.first()) {
            Some((file, function)) if !file.is_empty() && !function.is_empty() => Ok(Self {
                file: (*file != KERNEL).then(|| PathBuf::from(file)),
                function: (*function).to_owned(),
            }),
            _ => Err("say FILE:FUNCTION, for example /usr/bin/python3:PyErr_SetString, or kernel:FUNCTION".to_owned()),
        }
    }
}

impl Trace {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let json = self.json;
        let traced = if self.agent {
            let agent = self.ask.agent().await?;
            let longest = self.span.0 + ANSWER;
            agent.post("trace", &self.request(), longest).await?
        } else {
            self.trace().await?
        };
        if json {
            out.json(&traced)?;
        } else {
            show(out, &traced)?;
        }
        Ok(Outcome::Fine)
    }

    async fn trace(self) -> Result<Traced, Trouble> {
        need_root()?;
        let request = self.request();
        let reader = HostReader::new(Root::default())?;
        let watched = agent::watched(&reader)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|why| Trouble::Runtime(why.into()))?;
        let stopped = stop.try_clone().map_err(Trouble::Runtime)?;
        // Waits for the kernel.
        let tracing = tokio::task::spawn_blocking(move || {
            probes::trace(&request, &watched, stopped.as_fd(), || {})
        });
        let reading = until_signal(tracing, &stop).await??;
        Ok(Traced::from(&reading))
    }

    fn request(&self) -> TraceRequest {
        TraceRequest {
            file: self.function.file.clone(),
            function: self.function.function.clone(),
            span: self.span.0,
            max_hits: self.max_hits,
            cgroups: self.cgroup.clone(),
            returns: self.returns,
            single_step: self.single_step,
            force_fallback: false,
        }
    }
}

/// Waits for `work`; a signal to end makes `stop` readable.
pub(super) async fn until_signal<T>(
    work: tokio::task::JoinHandle<T>,
    stop: &OwnedFd,
) -> Result<T, Trouble> {
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

fn show(out: &mut Out, traced: &Traced) -> Result<(), Trouble> {
    let ended = match traced.ended {
        Ended::Time => "the time was over",
        Ended::Hits => "enough calls",
        Ended::Hot => "the function became too hot to trace",
        Ended::Stopped => "stopped",
    };
    let file = traced.file.as_ref().map(|file| file.display().to_string());
    let by = match (&traced.place, traced.by) {
        (Some(place), _) => format!("at +{} ({})", place.skipped, place.instruction),
        (None, Means::Fentry) => "by fentry".to_owned(),
        (None, Means::Kprobe | Means::Uprobe) => "by a kprobe".to_owned(),
    };
    let untimed = if traced.timed {
        ""
    } else {
        ", calls only: --returns times them"
    };
    let file = file.as_deref().unwrap_or(KERNEL);
    out.line(format!("{file}:{}  {by}{untimed}", traced.function))?;
    out.line(format!(
        "{} calls in {:.3} s, {} a second; {ended}",
        traced.calls,
        traced.elapsed_ms / 1e3,
        number(traced.calls_per_sec)
    ))?;
    if let (Some(hit), Some(ms), Some(percent)) =
        (traced.hit_ns, traced.cost_ms, traced.cost_percent)
    {
        out.line(format!(
            "cost: {} hits of {hit} ns (measured here, trap and program) are {} ms of the callers' time, {} % of a CPU",
            traced.traps,
            number(ms),
            number(percent)
        ))?;
    }
    let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    let rows = traced.cgroups.iter().map(|c| {
        vec![
            c.cgroup.clone(),
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
        numbers("p50 µs"),
        numbers("p99 µs"),
        numbers("max µs"),
    ];
    if !traced.cgroups.is_empty() {
        out.table(&head, rows.collect())?;
    }
    for caller in &traced.cgroups {
        histogram(out, caller)?;
    }
    let notes = [
        (traced.overshoot, "calls came after the last that counts"),
        (traced.nested, "calls were made within another one"),
        (traced.too_deep, "of them too deep to be timed"),
        (traced.missing_returns, "returns were jumped over (longjmp)"),
        (traced.under_way, "calls were still under way at the end"),
    ];
    for (n, what) in notes.iter().filter(|(n, _)| *n != 0) {
        out.line(format!("{n} {what}"))?;
    }
    for (map, n) in &traced.quality.lost {
        out.line(format!("lost: {n} events of {map}"))?;
    }
    Ok(())
}

fn histogram(out: &mut Out, caller: &Caller) -> Result<(), Trouble> {
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
        assert_eq!((site.file, &*site.function), (Some(odd), "shop::cart::add"));
        let site: Site = "/no/such/file:shop::cart".parse().unwrap();
        assert_eq!(site.file.as_deref(), Some(Path::new("/no/such/file")));
        let site: Site = "kernel:vfs_read".parse().unwrap();
        assert_eq!((site.file, &*site.function), (None, "vfs_read"));
        for bad in ["main", ":main", "/bin/ls:", "kernel:", ""] {
            assert!(
                bad.parse::<Site>().unwrap_err().contains("FILE:FUNCTION"),
                "{bad}"
            );
        }
    }
}
