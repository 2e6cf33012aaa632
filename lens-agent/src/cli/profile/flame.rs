//! Stacks as lines, and as a flame graph.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options};

use crate::probes::{NamedSample, ProfileKind, Profiled};

/// One line a stack: cgroup, process and functions from the outermost on, then the number of samples,
/// or of microseconds asleep. Functions of the kernel end in `_[k]`.
pub(super) fn folded(profiled: &Profiled) -> impl Iterator<Item = String> {
    let kind = profiled.kind;
    let samples = profiled.samples.iter();
    samples.map(move |sample| {
        let value = match kind {
            ProfileKind::Cpu => sample.times,
            ProfileKind::OffCpu => sample.ns / 1000,
        };
        format!("{} {value}", path(sample))
    })
}

fn path(sample: &NamedSample) -> String {
    let mut path = format!("{};{}", part(&sample.cgroup), part(&sample.comm));
    if sample.stack.truncated && !sample.stack.gone {
        path.push_str(";[truncated]");
    }
    for frame in &sample.stack.frames {
        path.push(';');
        path.push_str(&part(&frame.name));
        if frame.kernel {
            path.push_str("_[k]");
        }
    }
    path
}

/// A name without what cuts such lines.
fn part(name: &str) -> String {
    name.replace(';', ":")
}

/// A flame graph, in which one can look for names and step into parts.
pub(super) fn svg(profiled: &Profiled, to: &mut impl Write) -> io::Result<()> {
    let mut options = Options::default();
    let (title, unit) = match profiled.kind {
        ProfileKind::Cpu => ("CPU time", "samples"),
        ProfileKind::OffCpu => ("Time asleep", "µs"),
    };
    title.clone_into(&mut options.title);
    unit.clone_into(&mut options.count_name);
    let mut lines: Vec<String> = folded(profiled).collect();
    lines.sort();
    let lines = lines.iter().map(String::as_str);
    flamegraph::from_lines(&mut options, lines, to)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{
        base::quality::Quality,
        probes::{Frame, NamedStack},
    };

    /// 30 samples in a kernel function that `a;b` calls, and a stack whose callers are not known.
    pub(in crate::cli::profile) fn profiled() -> Profiled {
        let frame = |name: &str, kernel| Frame {
            name: name.into(),
            kernel,
            module: (!kernel).then(|| "shop".into()),
            file: (!kernel).then(|| "/src/shop.rs".into()),
            line: (!kernel).then_some(7),
            ..Frame::default()
        };
        let sample = |times, frames: Vec<Frame>, truncated| NamedSample {
            cgroup: "/shop".into(),
            tgid: 7,
            comm: "shop <&\">".into(),
            times,
            ns: times * 10_000_000,
            stack: NamedStack {
                frames,
                truncated,
                gone: false,
            },
        };
        let whole = vec![
            frame("main", false),
            frame("a;b", false),
            frame("vfs_read", true),
        ];
        Profiled {
            kind: ProfileKind::Cpu,
            elapsed: Duration::from_secs(1),
            samples: vec![
                sample(30, whole, false),
                sample(5, vec![frame("lost", false)], true),
            ],
            sleeps: BTreeMap::new(),
            quality: Quality::default(),
        }
    }

    #[test]
    fn lines_are_cut_where_they_should_be() {
        let lines: Vec<_> = folded(&profiled()).collect();
        assert_eq!(
            lines,
            [
                "/shop;shop <&\">;main;a:b;vfs_read_[k] 30",
                "/shop;shop <&\">;[truncated];lost 5",
            ]
        );
    }

    #[test]
    fn names_cannot_break_the_picture() {
        let mut svg = Vec::new();
        super::svg(&profiled(), &mut svg).unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("shop &lt;&amp;") && !svg.contains("shop <&"));
        assert!(svg.contains("vfs_read"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }
}
