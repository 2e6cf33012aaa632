//! `lens heap PID`: what is allocated and not freed, for a bounded time.

use std::os::fd::AsFd as _;

use rustix::event::{EventfdFlags, eventfd};

use super::{
    Outcome, Trouble,
    out::{Out, number, numbers, words},
    profile::told,
    run::need_root,
    trace::until_signal,
};
use crate::{
    agent,
    config::Span,
    host::{HostReader, Root},
    probes::{
        self,
        heap::{BUDGET_PERCENT, HeapEnded, HeapReading, HeapRequest, HeapSite},
    },
};

/// Shows where processes allocate memory that they do not free meanwhile: bytes and allocations by
/// stack, of malloc and its relatives of a shared C library (glibc, musl), so of C++ `new`, too.
///
/// Each call of the allocator costs the process two breakpoints, each free one: about a microsecond
/// each, measured on this machine before. If that would be more than `--budget`, one address in so
/// many is followed, and what is shown is scaled; if the breakpoints alone are too much, it is
/// refused. The kernel tells at once when a limit is reached; to take the breakpoints away takes it
/// 100 ms each. What was allocated before and is freed meanwhile is counted apart: its size is not
/// known. Go, static programs and other allocators are refused.
#[derive(Debug, clap::Args)]
pub(super) struct Heap {
    /// Processes to look at
    #[arg(value_name = "PID")]
    pids: Vec<u32>,
    /// And all in these cgroups, as patterns of whole paths; up to 8 processes in all
    #[arg(long, value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    cgroup: Vec<String>,
    /// How long to look
    #[arg(long = "for", value_name = "SPAN", default_value = "5s")]
    span: Span,
    /// At most so much of the processes' CPU time, in percent; 1 % of a CPU is always allowed
    #[arg(long, value_name = "PERCENT", default_value_t = BUDGET_PERCENT)]
    budget: f64,
    /// Follow at most one address in so many (a power of two)
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u64,
    /// JSON
    #[arg(long)]
    json: bool,
}

impl Heap {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        need_root()?;
        let request = HeapRequest {
            pids: self.pids,
            cgroups: self.cgroup,
            span: self.span.0,
            budget_percent: self.budget,
            one_in: self.one_in,
        };
        let reader = HostReader::new(Root::default())?;
        let watched = agent::watched(&reader)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|why| Trouble::Runtime(why.into()))?;
        let stopped = stop.try_clone().map_err(Trouble::Runtime)?;
        // Waits for the kernel.
        let looking = tokio::task::spawn_blocking(move || {
            probes::heap::heap(&request, &watched, stopped.as_fd(), || {})
        });
        let reading = until_signal(looking, &stop).await??;
        if self.json {
            out.json(&reading)?;
        } else {
            show(out, &reading)?;
        }
        Ok(Outcome::Fine)
    }
}

/// Stacks shown.
const SITES: usize = 10;
/// Frames shown of a stack, the innermost ones.
const FRAMES: usize = 24;

fn show(out: &mut Out, reading: &HeapReading) -> Result<(), Trouble> {
    let ended = match reading.ended {
        HeapEnded::Time => "the time was over",
        HeapEnded::Hot => "it would have cost more than it may",
        HeapEnded::Stopped => "stopped",
        HeapEnded::Gone => "the processes are gone",
    };
    let sampled = match reading.one_in {
        1 => String::new(),
        n => format!(" (scaled: 1 in {n} addresses followed)"),
    };
    out.line(format!(
        "{} bytes in {} allocations not freed{sampled}, in {:.3} s; {ended}",
        reading.outstanding_bytes,
        reading.outstanding,
        reading.elapsed_ms / 1e3,
    ))?;
    out.line(format!(
        "{} allocations of {} bytes ({} bytes a second), {} frees, of which {} of what was allocated before",
        reading.allocs,
        reading.bytes,
        number(reading.bytes_per_sec),
        reading.frees,
        reading.older_frees,
    ))?;
    out.line(format!(
        "cost: {} hits of {} ns (measured here, trap and program) are {} ms of the {} ms of CPU time that they had",
        reading.traps,
        reading.hit_ns,
        number(reading.cost_ms),
        number(reading.cpu_ms),
    ))?;
    let left = || reading.sites.iter().filter(|site| site.outstanding != 0);
    let row = |site: &HeapSite| {
        let innermost = site.stack.frames.last();
        vec![
            site.outstanding_bytes.to_string(),
            site.outstanding.to_string(),
            site.allocs.to_string(),
            format!("{} ({})", site.comm, site.pid),
            innermost.map_or_else(String::new, |frame| frame.name.to_string()),
        ]
    };
    if left().next().is_some() {
        let head = [
            numbers("bytes left"),
            numbers("left"),
            numbers("allocated"),
            words("process"),
            words("by"),
        ];
        out.table(&head, left().take(SITES).map(row).collect())?;
    }
    for site in left().take(SITES) {
        out.line(format!(
            "\n{} bytes  {} ({})",
            site.outstanding_bytes, site.comm, site.pid
        ))?;
        for frame in site.stack.frames.iter().rev().take(FRAMES) {
            out.line(format!("         {}", told(frame)))?;
        }
        if site.stack.truncated && !site.stack.gone {
            out.line("         [truncated: its callers are not known]")?;
        }
    }
    if let Some(more @ 1..) = left().count().checked_sub(SITES) {
        out.line(format!("\n{more} more stacks"))?;
    }
    for (map, n) in &reading.quality.lost {
        out.line(format!("lost: {n} events of {map}"))?;
    }
    Ok(())
}
