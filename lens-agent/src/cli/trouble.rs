//! What ends a command, in words that say what to do.

use std::io;

use crate::{agent, config::ConfigError, host, probes, store::StoreError};

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Whoever read the output has gone: no error.
    #[error("nobody reads the output")]
    Pipe,
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// The program cannot run at all.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// Bad settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Bad arguments.
    #[error("{0}")]
    Usage(String),
    /// Not allowed.
    #[error("lens loads programs into the kernel and needs root; run:\n  sudo {0}")]
    NotRoot(String),
    /// The agent does not start.
    #[error(transparent)]
    Agent(#[from] agent::StartError),
    /// No probe runs.
    #[error(transparent)]
    Probes(#[from] probes::StartError),
    /// Nothing was traced.
    #[error(transparent)]
    Trace(#[from] probes::TraceError),
    /// Nothing was profiled.
    #[error(transparent)]
    Profile(#[from] probes::ProfileError),
    /// No heap trace.
    #[error(transparent)]
    Heap(#[from] probes::heap::HeapError),
    /// What was asked for cannot be written.
    #[error("{file}: {why}")]
    File {
        /// The file.
        file: String,
        /// Why.
        why: io::Error,
    },
    /// The kernel's files cannot be read.
    #[error(transparent)]
    Host(#[from] host::ReadError),
    /// What was remembered cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent answers, but with something else.
    #[error("{url}: {why}")]
    Answer {
        /// What was asked.
        url: String,
        /// What came.
        why: String,
    },
    /// Neither agent nor state directory.
    #[error(
        "no agent answers at {url} ({why}), and {dir} holds nothing to read; start one with `lens run`, or name its address with --url"
    )]
    NoAgent {
        /// The address.
        url: String,
        /// Why it does not answer.
        why: String,
        /// The state directory.
        dir: String,
    },
    /// There is nothing of what was asked for.
    #[error("{0}")]
    Nothing(String),
}

impl Trouble {
    pub(super) fn is_usage(&self) -> bool {
        match self {
            Self::Config(_) | Self::Usage(_) => true,
            Self::Trace(why) => why.is_usage(),
            Self::Profile(why) => why.is_usage(),
            Self::Heap(why) => why.is_usage(),
            _ => false,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(why: io::Error) -> Self {
        if why.kind() == io::ErrorKind::BrokenPipe {
            Self::Pipe
        } else {
            Self::Output(why)
        }
    }
}
