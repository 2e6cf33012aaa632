//! A supervisor: children, groups of children, and their end.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    attempt::{BoxError, Run, run_blocking},
    child::{Child, Policy, Record, Spec},
    tree::{Kind, Node, State},
};
use crate::{base::clock::Clock, telemetry::Telemetry};

/// Keeps children running. Cheap to clone; when the last clone of the root goes, all below it is
/// cancelled.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: String,
    since: Timestamp,
    clock: Arc<dyn Clock>,
    telemetry: Telemetry,
    token: CancellationToken,
    tasks: TaskTracker,
    below: Mutex<Below>,
}

#[derive(Debug, Default)]
struct Below {
    children: Vec<Arc<Record>>,
    groups: Vec<Supervisor>,
}

/// How a shutdown went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Paths of the children that did not end in time and were aborted.
    pub aborted: Vec<String>,
}

impl Supervisor {
    /// The root of a tree, without children.
    pub fn new(name: impl Into<String>, telemetry: Telemetry, clock: Arc<dyn Clock>) -> Self {
        let name = name.into();
        Self::build(
            name.clone(),
            name,
            CancellationToken::new(),
            telemetry,
            clock,
        )
    }

    fn build(
        name: String,
        path: String,
        token: CancellationToken,
        telemetry: Telemetry,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self(Arc::new(Inner {
            name,
            path,
            since: clock.now().wall,
            clock,
            telemetry,
            token,
            tasks: TaskTracker::new(),
            below: Mutex::default(),
        }))
    }

    /// The supervisor `name` below this one; made when there is none yet.
    #[must_use]
    pub fn group(&self, name: &str) -> Self {
        let mut below = self.0.below();
        if let Some(group) = below.groups.iter().find(|group| group.0.name == name) {
            return group.clone();
        }
        let group = Self::build(
            name.to_owned(),
            format!("{}/{name}", self.0.path),
            self.0.token.child_token(),
            self.0.telemetry.clone(),
            Arc::clone(&self.0.clock),
        );
        below.groups.push(group.clone());
        group
    }

    /// Starts a child. `run` is called for each attempt, and ends when its token is cancelled.
    ///
    /// Must be called within a tokio runtime. A child that is over is replaced by one of its name.
    pub fn child<F, Fut, E>(&self, spec: Spec, run: F) -> Child
    where
        F: Fn(CancellationToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let run: Run = Arc::new(move |token| {
            let attempt = run(token);
            Box::pin(async move { attempt.await.map_err(Into::into) })
        });
        self.start(spec, run)
    }

    /// Starts a child that blocks its thread: it has one of its own, and looks at its token.
    ///
    /// A thread cannot be aborted. When the run is over for the tree (by an injected panic, or at
    /// the end of a shutdown), the thread goes on until it looks at its token.
    pub fn blocking_child<F, E>(&self, spec: Spec, run: F) -> Child
    where
        F: Fn(CancellationToken) -> Result<(), E> + Send + Sync + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        let run = Arc::new(run);
        let run: Run = Arc::new(move |token| {
            let run = Arc::clone(&run);
            Box::pin(run_blocking(move || run(token)))
        });
        self.start(spec, run)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that starts tasks")]
    fn start(&self, spec: Spec, run: Run) -> Child {
        let path = format!("{}/{}", self.0.path, spec.name);
        let record = Arc::new(Record::new(
            spec,
            path,
            self.0.token.child_token(),
            Arc::clone(&self.0.clock),
            self.0.telemetry.clone(),
        ));
        let child = record.child();
        // Held over the start: a temporary child may end, and leave, before the next line.
        let mut below = self.0.below();
        below
            .children
            .retain(|other| !(other.is_over() && other.spec.name == record.spec.name));
        below.children.push(Arc::clone(&record));
        let supervisor = Arc::downgrade(&self.0);
        let mine = Arc::clone(&record);
        let task = tokio::spawn(self.0.tasks.track_future(async move {
            mine.keep_running(run).await;
            if mine.spec.policy == Policy::Temporary
                && let Some(supervisor) = supervisor.upgrade()
            {
                supervisor
                    .below()
                    .children
                    .retain(|other| !Arc::ptr_eq(other, &mine));
            }
        }));
        record.set_task(task.abort_handle());
        child
    }

    /// The tree as it is now.
    pub fn tree(&self) -> Node {
        let below = self.0.below();
        let children = below.children.iter().map(|child| child.node());
        let groups = below.groups.iter().map(Self::tree);
        let stopped = self.0.token.is_cancelled();
        Node {
            name: self.0.name.clone(),
            kind: Kind::Supervisor,
            state: if stopped {
                State::Finished
            } else {
                State::Running
            },
            restarts: 0,
            last_failure: None,
            since: self.0.since,
            children: children.chain(groups).collect(),
        }
    }

    /// Asks all below to end, at once and without waiting.
    pub fn cancel(&self) {
        self.0.token.cancel();
    }

    /// Asks all below to end, waits for at most `deadline`, and aborts the rest.
    pub async fn shutdown(&self, deadline: Duration) -> Stopped {
        self.cancel();
        let until = Instant::now() + deadline;
        let mut stopped = Stopped::default();
        let mut supervisors = vec![self.clone()];
        while let Some(Self(inner)) = supervisors.pop() {
            inner.tasks.close();
            let ended = tokio::time::timeout_at(until, inner.tasks.wait()).await;
            let below = inner.below();
            if ended.is_err() {
                for child in below.children.iter().filter(|child| !child.is_over()) {
                    child.abort();
                    stopped.aborted.push(child.path.clone());
                }
            }
            supervisors.extend(below.groups.iter().cloned());
        }
        stopped
    }

    /// Makes the child at `path` (from the root: `agent/group/child`, or its name alone) panic at
    /// its next pause, as a test of supervision. Says whether there is such a child.
    pub fn inject_panic(&self, path: &str) -> bool {
        let below = self.0.below();
        for child in &below.children {
            if child.path == path || child.spec.name == path {
                child.panic.plan();
                return true;
            }
        }
        below.groups.iter().any(|group| group.inject_panic(path))
    }
}

impl Inner {
    fn below(&self) -> MutexGuard<'_, Below> {
        self.below.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.token.cancel();
    }
}
