//! An agent in small: makes the child that attaches on demand, closes itself, and then traces the
//! function that it is told, with and without the child. Its arguments: a directory to keep, the
//! file, the function, the number of calls. Says `ready` when closed, then how both came out.

use std::{
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lens_agent::{
    agent::{Attacher, Door, close, try_doors},
    base::quality::Quality,
    probes::{TraceRequest, Watched, trace},
};
use lens_tests::cgroup::Hierarchy;
use serde_json::json;

/// The doors that are so.
fn doors(outside: &Path, so: impl Fn(&Door) -> bool) -> Vec<&'static str> {
    let tried = try_doors(outside);
    tried
        .iter()
        .filter(|door| so(door))
        .map(|door| door.what)
        .collect()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("too few arguments");
    let directory = PathBuf::from(next()?);
    let request = TraceRequest {
        file: Some(PathBuf::from(next()?)),
        function: next()?,
        span: Duration::from_secs(30),
        max_hits: next()?.parse()?,
        cgroups: Vec::new(),
        returns: false,
        single_step: false,
        force_fallback: false,
    };
    let outside = tempfile::tempdir()?;
    let attacher = Attacher::start()?;
    // What cannot be done before either tells nothing.
    let before: Vec<_> = doors(outside.path(), Door::is_closed);
    let mut open = Quality::default();
    close(&directory, &mut open);
    open.merge(attacher.not_closed());
    ensure!(open == Quality::default(), "{open:?}");
    let watched = Watched {
        root: Hierarchy::of_host()?.root,
        v1: None,
        id: 0,
    };
    let (stop, _other) = std::os::unix::net::UnixStream::pair()?;
    let itself = trace(&request, &watched, stop.as_fd(), || {});
    let open = doors(outside.path(), |door| !door.is_closed());
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    let seen = attacher.trace(request)?;
    let said = json!({
        "itself": itself.err().map(|why| why.to_string()),
        "closed_before": before,
        "open": open,
        "calls": seen.calls,
        "ended": seen.ended,
    });
    writeln!(out, "{said}")?;
    Ok(())
}
