//! Runs a script that a model wrote, over numbers that it may read, and nothing else.
//!
//! Each run has a fresh Luau machine with `string`, `table`, `math`, `bit32`, `utf8`, a closed
//! list of base functions, and what its [`Host`] gives it. There is no I/O, no clock, no way to
//! load code and no state that outlives the run. Time, memory, turns and result are bounded; the
//! interpreter is interrupted at every loop, call and step of a pattern, and the functions that
//! run long without one are bounded by the memory they may hold or refuse long arguments.
//!
//! All numbers are 64-bit floats: whole ones are exact up to 2^53, so nanoseconds since boot are,
//! kernel addresses are not.

mod error;
mod host;
mod json;
mod machine;

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use error::SandboxError;
pub use host::{Callback, Host, Run, is_reserved};

/// What a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time on the wall, callbacks included.
    pub within: Duration,
    /// Bytes that the script may hold at once.
    pub memory: usize,
    /// Loops, calls and pattern steps.
    pub turns: u64,
    /// Bytes of the script itself.
    pub script: usize,
    /// Bytes of the result, and of what is handed to a callback, as JSON.
    pub result: usize,
}

impl Default for Limits {
    /// 5 s, 16 MiB, 100 million turns, a script and a result of 64 KiB.
    fn default() -> Self {
        Self {
            within: Duration::from_secs(5),
            memory: 16 * 1024 * 1024,
            turns: 100_000_000,
            script: 64 * 1024,
            result: 64 * 1024,
        }
    }
}

/// Runs `script`, an expression or statements with a `return`, and gives back its first value.
/// Blocks for at most [`Limits::within`], and however long the callbacks take.
///
/// A table whose keys are 1 to n is an array, an empty one too; any other is an object. What
/// JSON does not have (a function, infinity) is null.
pub fn run(script: &str, host: &Host, limits: &Limits) -> Result<Value, SandboxError> {
    machine::run(script, host, limits, &CancellationToken::new())
}

/// Like [`run`], on a thread where blocking is allowed. Cancelling it, or dropping the future,
/// ends the script at its next turn.
pub async fn run_until_cancelled(
    script: String,
    host: Arc<Host>,
    limits: Limits,
    cancel: CancellationToken,
) -> Result<Value, SandboxError> {
    let own = cancel.child_token();
    let _ends_with_this = own.clone().drop_guard();
    let running = tokio::task::spawn_blocking(move || machine::run(&script, &host, &limits, &own));
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(SandboxError::Cancelled),
        done = running => done.unwrap_or_else(|why| Err(SandboxError::Broken(why.to_string()))),
    }
}

#[cfg(test)]
mod tests;
