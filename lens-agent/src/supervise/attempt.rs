//! One run of a child: its panic is caught, and can be caused.

use std::{
    any::Any,
    error::Error,
    fmt::Write,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    sync::Notify,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// The error of a child, whatever its type.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// What a child does, as often as it is called.
pub(super) type Run = Arc<
    dyn Fn(CancellationToken) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>
        + Send
        + Sync,
>;

/// A panic that a test wants to see at a child's next poll.
#[derive(Debug, Default)]
pub(super) struct PlannedPanic {
    planned: AtomicBool,
    wake: Notify,
}

impl PlannedPanic {
    pub(super) fn plan(&self) {
        self.planned.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Ends in a panic once one is planned.
    #[expect(clippy::panic, reason = "the fault that supervision has to survive")]
    async fn strike(&self) {
        while !self.planned.swap(false, Ordering::AcqRel) {
            self.wake.notified().await;
        }
        panic!("injected panic");
    }
}

/// Runs the child once. `Err` says why it failed.
///
/// The token that the child gets is cancelled when the run ends, however it ends, so that what it
/// left behind (a blocking thread, say) knows that nobody waits for it.
pub(super) async fn run_once(
    run: &Run,
    token: &CancellationToken,
    panic: &Arc<PlannedPanic>,
) -> Result<(), String> {
    let own = token.child_token();
    let _ends_with_this = own.clone().drop_guard();
    let (run, panic) = (Arc::clone(run), Arc::clone(panic));
    // A set of one, because dropping it ends the task: aborting the child aborts its run.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        tokio::select! {
            biased;
            () = panic.strike() => Ok(()),
            done = async { run(own).await } => done,
        }
    });
    match tasks.join_next().await {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(error))) => Err(chain(&*error)),
        Some(Err(ended)) => Err(why_ended(ended)),
    }
}

/// Runs `work` on a thread of its own; a panic there goes on in the caller.
pub(super) async fn run_blocking<E>(
    work: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> Result<(), BoxError>
where
    E: Into<BoxError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(ended) => match ended.try_into_panic() {
            Ok(payload) => std::panic::resume_unwind(payload),
            Err(ended) => Err(ended.into()),
        },
    }
}

fn why_ended(ended: JoinError) -> String {
    match ended.try_into_panic() {
        Ok(payload) => format!("panicked: {}", panic_message(&*payload)),
        Err(ended) => ended.to_string(),
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with something that is no text")
}

/// An error and all its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
