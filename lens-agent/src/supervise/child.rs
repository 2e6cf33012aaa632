//! A child: what is asked for it, what is known of it, and the loop that keeps it running.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::{sync::watch, task::AbortHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    attempt::{PlannedPanic, Run, run_once},
    budget::{Budget, Spent},
    tree::{Failure, Node, State},
};
use crate::{
    base::clock::Clock,
    telemetry::{Event, Telemetry},
};

/// When a child is restarted. Never after it was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// However it ends.
    Permanent,
    /// When it fails or panics.
    Transient,
    /// Never; when it ends, it leaves the tree.
    Temporary,
}

/// What is asked for a child.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name; unique among its living siblings, unless it is temporary.
    pub name: Cow<'static, str>,
    /// When it is restarted.
    pub policy: Policy,
    /// How often and how fast.
    pub budget: Budget,
}

impl Spec {
    /// A child that is always there, with the default budget.
    pub fn permanent(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Policy::Permanent)
    }

    /// A child that has an end, with the default budget.
    pub fn transient(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Policy::Transient)
    }

    /// A child that gets one attempt.
    pub fn temporary(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name, Policy::Temporary)
    }

    /// With another budget.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    fn new(name: impl Into<Cow<'static, str>>, policy: Policy) -> Self {
        Self {
            name: name.into(),
            policy,
            budget: Budget::default(),
        }
    }
}

/// A hold on a child. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Child {
    token: CancellationToken,
    state: watch::Receiver<State>,
}

impl Child {
    /// Asks the child to end; it is not restarted.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// What it does at present.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Waits until it is over, and says whether it finished or failed.
    pub async fn ended(&self) -> State {
        let mut state = self.state.clone();
        // The sender goes away only with a child that was aborted: that one failed.
        state
            .wait_for(|state| state.is_over())
            .await
            .map_or(State::Failed, |state| *state)
    }
}

/// What is known of a child.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) spec: Spec,
    /// Names from the root down, joined by `/`.
    pub(super) path: String,
    pub(super) token: CancellationToken,
    pub(super) panic: Arc<PlannedPanic>,
    clock: Arc<dyn Clock>,
    telemetry: Telemetry,
    state: watch::Sender<State>,
    past: Mutex<Past>,
}

#[derive(Debug)]
struct Past {
    restarts: u32,
    last_failure: Option<Failure>,
    since: Timestamp,
    task: Option<AbortHandle>,
}

impl Record {
    pub(super) fn new(
        spec: Spec,
        path: String,
        token: CancellationToken,
        clock: Arc<dyn Clock>,
        telemetry: Telemetry,
    ) -> Self {
        let past = Past {
            restarts: 0,
            last_failure: None,
            since: clock.now().wall,
            task: None,
        };
        Self {
            spec,
            path,
            token,
            panic: Arc::default(),
            clock,
            telemetry,
            state: watch::Sender::new(State::Running),
            past: Mutex::new(past),
        }
    }

    pub(super) fn child(&self) -> Child {
        Child {
            token: self.token.clone(),
            state: self.state.subscribe(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state.borrow().is_over()
    }

    pub(super) fn set_task(&self, task: AbortHandle) {
        self.past().task = Some(task);
    }

    /// Ends the child at its next pause, without asking.
    pub(super) fn abort(&self) {
        if let Some(task) = &self.past().task {
            task.abort();
        }
        self.enter(
            State::Failed,
            Some("aborted: it did not end when asked to".to_owned()),
        );
    }

    pub(super) fn node(&self) -> Node {
        let past = self.past();
        Node {
            name: self.spec.name.to_string(),
            kind: self.spec.policy.into(),
            state: *self.state.borrow(),
            restarts: past.restarts,
            last_failure: past.last_failure.clone(),
            since: past.since,
            children: Vec::new(),
        }
    }

    /// Runs the child until it is over.
    pub(super) async fn keep_running(&self, run: Run) {
        if self.token.is_cancelled() {
            return self.enter(State::Finished, None);
        }
        let mut spent = Spent::new(self.spec.budget);
        self.telemetry.emit(Event::ChildStarted {
            child: self.path.clone(),
        });
        loop {
            let done = run_once(&run, &self.token, &self.panic).await;
            // What a child says while it is being stopped is of no interest.
            if self.token.is_cancelled() {
                return self.enter(State::Finished, None);
            }
            let (why, failure) = match (self.spec.policy, done) {
                (Policy::Permanent, Ok(())) => ("ended".to_owned(), None),
                (Policy::Transient | Policy::Temporary, Ok(())) => {
                    return self.enter(State::Finished, None);
                }
                (_, Err(why)) => (why.clone(), Some(why)),
            };
            let pause = match self.spec.policy {
                Policy::Temporary => None,
                Policy::Permanent | Policy::Transient => spent.restart(Instant::now()),
            };
            let Some(pause) = pause else {
                self.enter(State::Failed, Some(why.clone()));
                let child = self.path.clone();
                return self.telemetry.emit(Event::ChildGaveUp { child, why });
            };
            self.enter(State::BackingOff, failure);
            if self
                .token
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return self.enter(State::Finished, None);
            }
            let restarts = self.restarted();
            let child = self.path.clone();
            self.telemetry.emit(Event::ChildRestarted {
                child,
                why,
                restarts,
            });
        }
    }

    fn restarted(&self) -> u32 {
        let restarts = {
            let mut past = self.past();
            past.restarts = past.restarts.saturating_add(1);
            past.restarts
        };
        self.enter(State::Running, None);
        restarts
    }

    fn enter(&self, state: State, failure: Option<String>) {
        let now = self.clock.now().wall;
        {
            let mut past = self.past();
            past.since = now;
            if let Some(why) = failure {
                past.last_failure = Some(Failure { at: now, why });
            }
        }
        self.state.send_replace(state);
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
