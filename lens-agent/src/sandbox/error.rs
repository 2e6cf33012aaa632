//! Why a script has no result, in words that help a model to write a better one.

use std::time::Duration;

/// A failed run. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// It is no Luau.
    #[error("syntax error{}: {what}", at(*.line))]
    Syntax {
        /// Where.
        line: Option<u32>,
        /// What the parser says.
        what: String,
    },
    /// It uses a name that does not exist here.
    #[error("unknown name `{name}`{}; {hint}", at(*.line))]
    UnknownName {
        /// Where.
        line: Option<u32>,
        /// The name.
        name: String,
        /// What does exist.
        hint: String,
    },
    /// It failed, or a callback did.
    #[error("error{}: {what}", at(*.line))]
    Runtime {
        /// Where.
        line: Option<u32>,
        /// What the script or the callback says.
        what: String,
    },
    /// It ran for too long.
    #[error("the script ran for more than {after:?}; let it look at less")]
    Timeout {
        /// [`Limits::within`](super::Limits::within).
        after: Duration,
    },
    /// It took too many turns.
    #[error("the script took more than {limit} turns; let it loop less")]
    Turns {
        /// [`Limits::turns`](super::Limits::turns).
        limit: u64,
    },
    /// It held too much.
    #[error("the script held more than {limit} bytes; let it keep less")]
    Memory {
        /// [`Limits::memory`](super::Limits::memory).
        limit: usize,
    },
    /// It is too long itself.
    #[error("the script has {bytes} bytes, and at most {limit} are read; shorten it")]
    ScriptTooLarge {
        /// Its size.
        bytes: usize,
        /// [`Limits::script`](super::Limits::script).
        limit: usize,
    },
    /// What it returns is too large, nested too deeply, or contains itself.
    #[error("the result is more than {limit} bytes, or too deep; return less of it")]
    ResultTooLarge {
        /// [`Limits::result`](super::Limits::result).
        limit: usize,
    },
    /// Nobody wants to know any more.
    #[error("cancelled")]
    Cancelled,
    /// The sandbox itself failed; the script is not to blame.
    #[error("the sandbox failed: {0}")]
    Broken(String),
}

fn at(line: Option<u32>) -> String {
    line.map_or_else(String::new, |line| format!(" in line {line}"))
}
