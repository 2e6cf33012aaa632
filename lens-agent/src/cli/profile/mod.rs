//! `lens profile`: where time goes, for a bounded time.

mod flame;
mod pprof;

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
    str::FromStr,
};

use rustix::event::{EventfdFlags, eventfd};

use super::{
    Outcome, Trouble,
    out::{Out, number, numbers, words},
    run::need_root,
    trace::until_signal,
};
use crate::{
    agent,
    api::{CgroupProfile, StackTime},
    config::Span,
    host::{HostReader, Root},
    probes::{self, Frame, ProfileKind, ProfileRequest, Profiled},
};

/// Shows in which functions time goes: that of CPUs, looked at 99 times a second, or with
/// `--off-cpu` that which threads sleep until they run again.
///
/// Stacks are followed by frame pointers. Of code without them the callers are not known: its
/// stacks are marked as truncated, and no names are guessed. Where only the innermost function has
/// none, its caller is left out, and nothing tells. A process that ends within 50 ms of its first
/// sample is shown as `[gone]`.
#[derive(Debug, clap::Args)]
pub(super) struct Profile {
    /// How long to look
    #[arg(long = "for", value_name = "SPAN", default_value = "10s")]
    span: Span,
    /// Cgroups to look at, as patterns of whole paths; all if none is given
    #[arg(long, value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    cgroup: Vec<String>,
    /// Time asleep, in place of CPU time
    #[arg(long)]
    off_cpu: bool,
    /// Write the whole profile there: a flame graph (.svg), a line a stack (.folded), or what
    /// `pprof` reads (.pb.gz)
    #[arg(long, value_name = "FILE")]
    output: Option<Output>,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// A file, and what its name says is to be in it.
#[derive(Clone, Debug)]
struct Output {
    path: PathBuf,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Svg,
    Folded,
    Pprof,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let formats = [
            (".svg", Format::Svg),
            (".folded", Format::Folded),
            (".pb.gz", Format::Pprof),
        ];
        let known = formats.iter().find(|(end, _)| text.ends_with(end));
        match known {
            Some((_, format)) => Ok(Self {
                path: PathBuf::from(text),
                format: *format,
            }),
            None => {
                Err("a name that ends in .svg, .folded or .pb.gz says what to write".to_owned())
            }
        }
    }
}

impl Profile {
    pub(super) async fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        let (json, output) = (self.json, self.output.clone());
        let profiled = self.profile().await?;
        if let Some(output) = output {
            write(&output, &profiled)?;
        }
        let profile = crate::api::Profile::from(&profiled);
        if json {
            out.json(&profile)?;
        } else {
            show(out, &profile)?;
        }
        Ok(Outcome::Fine)
    }

    async fn profile(self) -> Result<Profiled, Trouble> {
        need_root()?;
        let request = ProfileRequest {
            kind: if self.off_cpu {
                ProfileKind::OffCpu
            } else {
                ProfileKind::Cpu
            },
            span: self.span.0,
            cgroups: self.cgroup,
        };
        let reader = HostReader::new(Root::default())?;
        let watched = agent::watched(&reader)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|why| Trouble::Runtime(why.into()))?;
        let stopped = stop.try_clone().map_err(Trouble::Runtime)?;
        // Waits for the kernel.
        let profiling = tokio::task::spawn_blocking(move || {
            probes::profile::profile(&request, &watched, stopped.as_fd(), || {})
        });
        Ok(until_signal(profiling, &stop).await??)
    }
}

fn write(output: &Output, profiled: &Profiled) -> Result<(), Trouble> {
    let trouble = |why| Trouble::File {
        file: output.path.display().to_string(),
        why,
    };
    let file = File::create(&output.path).map_err(trouble)?;
    let mut file = BufWriter::new(file);
    let done = match output.format {
        Format::Svg => flame::svg(profiled, &mut file),
        Format::Folded => flame::folded(profiled).try_for_each(|line| writeln!(file, "{line}")),
        Format::Pprof => pprof::write(profiled, &mut file),
    };
    done.and_then(|()| file.flush()).map_err(trouble)
}

/// Stacks shown of one cgroup.
const STACKS: usize = 10;
/// Cgroups shown with their stacks; of others only how much time they had.
const CGROUPS: usize = 10;
/// Frames shown of a stack, the innermost ones.
const FRAMES: usize = 24;

fn show(out: &mut Out, profile: &crate::api::Profile) -> Result<(), Trouble> {
    let what = match profile.hz {
        Some(hz) => format!("of CPU time, {} samples at {hz} Hz", profile.times),
        None => format!("asleep, {} sleeps charged", profile.times),
    };
    out.line(format!(
        "{} ms {what}, in {:.3} s",
        number(profile.time_ms),
        profile.elapsed_ms / 1e3,
    ))?;
    let row = |c: &CgroupProfile| {
        let percent = |ms: f64| format!("{:.1}", 100.0 * ms / c.time_ms.max(f64::MIN_POSITIVE));
        let mut row = vec![
            c.cgroup.to_string(),
            number(c.time_ms),
            format!(
                "{:.1}",
                100.0 * c.time_ms / profile.time_ms.max(f64::MIN_POSITIVE)
            ),
            percent(c.truncated_ms),
        ];
        row.push(match profile.kind {
            ProfileKind::Cpu => percent(c.kernel_ms),
            ProfileKind::OffCpu => c.sleeps.unwrap_or_default().to_string(),
        });
        row
    };
    if !profile.cgroups.is_empty() {
        let head = [
            words("cgroup"),
            numbers("ms"),
            numbers("%"),
            numbers("truncated %"),
            numbers(match profile.kind {
                ProfileKind::Cpu => "kernel %",
                ProfileKind::OffCpu => "sleeps ended",
            }),
        ];
        out.table(&head, profile.cgroups.iter().map(row).collect())?;
    }
    for cgroup in profile.cgroups.iter().take(CGROUPS) {
        for stack in cgroup.stacks.iter().take(STACKS) {
            out.line("")?;
            show_stack(out, cgroup, stack)?;
        }
        if let Some(more @ 1..) = cgroup.stacks.len().checked_sub(STACKS) {
            out.line(format!("\n{}: {more} more stacks", cgroup.cgroup))?;
        }
    }
    for (map, n) in &profile.quality.lost {
        out.line(format!("lost: {n} events of {map}"))?;
    }
    for missing in &profile.quality.missing {
        out.line(format!("not seen: {}: {}", missing.probe, missing.why))?;
    }
    Ok(())
}

fn show_stack(out: &mut Out, cgroup: &CgroupProfile, stack: &StackTime) -> Result<(), Trouble> {
    out.line(format!(
        "{:5.1} %  {} ms  {}  {} ({})",
        stack.percent,
        number(stack.time_ms),
        cgroup.cgroup,
        stack.comm,
        stack.pid,
    ))?;
    // The innermost first, as debuggers do.
    for frame in stack.frames.iter().rev().take(FRAMES) {
        out.line(format!("         {}", told(frame)))?;
    }
    if let Some(more @ 1..) = stack.frames.len().checked_sub(FRAMES) {
        out.line(format!("         ({more} more)"))?;
    }
    if stack.truncated && !stack.gone {
        out.line("         [truncated: its callers are not known]")?;
    }
    Ok(())
}

pub(super) fn told(frame: &Frame) -> String {
    let what = match (frame.kernel, frame.inlined) {
        (true, _) => " [kernel]",
        (_, true) => " [inlined]",
        _ => "",
    };
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{}{what}  {file}:{line}", frame.name),
        _ => format!("{}{what}", frame.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_says_what_is_to_be_in_it() {
        for (name, format) in [
            ("a.svg", Format::Svg),
            ("/tmp/x.y.folded", Format::Folded),
            ("p.pb.gz", Format::Pprof),
        ] {
            assert_eq!(name.parse::<Output>().unwrap().format, format);
        }
        assert!("a.gz".parse::<Output>().unwrap_err().contains(".pb.gz"));
    }
}
