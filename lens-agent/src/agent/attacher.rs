//! The child that attaches on demand.
//!
//! The agent cannot attach anything once it is closed, and must not be able to. So before it has
//! threads it forks a child that does one thing: it is handed bounded trace requests over a socket
//! pair, one at a time, and hands back what it has seen. The child closes itself as the agent does,
//! but for loading programs and attaching them; it writes nowhere, and it dies with the agent.
//!
//! A trace ends when the child is told to stop, or when its
//! socket is closed.

use std::{
    io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
};

use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use super::{
    child::{self, hear, say},
    closed, observe,
};
use crate::{
    base::quality::Quality,
    host::{HostReader, Root},
    probes::{self, FunctionReading, TraceRequest},
};

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Trace(TraceRequest),
    /// Ends the trace that goes on; nothing where none does.
    Stop,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Seen(Box<FunctionReading>),
    Refused(Refused),
}

/// Why nothing was traced, as the child says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    /// For a person.
    pub why: String,
    /// Whether the request is at fault.
    pub usage: bool,
}

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
pub enum AttacherError {
    /// The child said no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// One trace at a time.
    #[error("another function is being traced; one at a time")]
    Busy,
    /// The child is gone.
    #[error("the child that attaches on demand does not answer: {0}")]
    Gone(io::Error),
}

/// The last trace that ended and that nobody has taken up yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Latest(Arc<Mutex<Option<Arc<FunctionReading>>>>);

impl Latest {
    fn put(&self, reading: Arc<FunctionReading>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
    }

    /// Takes it up.
    pub(super) fn take(&self) -> Option<Arc<FunctionReading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The agent's side.
#[derive(Debug)]
pub struct Attacher {
    child: Pid,
    /// For orders.
    orders: Mutex<UnixStream>,
    /// For answers; locked while a trace goes on.
    answers: Mutex<UnixStream>,
    latest: Latest,
    not_closed: Quality,
}

/// Ends the trace that goes on when it is dropped armed.
struct StopOnDrop<'a> {
    attacher: &'a Attacher,
    armed: bool,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            // A child that cannot be told is gone, and its trace with it.
            let _ = self.attacher.order(&Order::Stop);
        }
    }
}

impl Attacher {
    /// Forks the child. To be called while the process has one thread, before it is closed.
    pub fn start() -> io::Result<Self> {
        let (child, mut ours) = child::fork(live)?;
        Ok(Self {
            child,
            orders: Mutex::new(ours.try_clone()?),
            // Its first words, when it has closed itself.
            not_closed: hear(&mut ours)?,
            answers: Mutex::new(ours),
            latest: Latest::default(),
        })
    }

    /// Traces, and waits until it is over. One trace at a time.
    pub fn trace(&self, request: TraceRequest) -> Result<Arc<FunctionReading>, AttacherError> {
        self.trace_by(self.free()?, request)
    }

    /// The same for one who may go away: then the trace ends.
    pub async fn trace_until_dropped(
        self: &Arc<Self>,
        request: TraceRequest,
    ) -> Result<Arc<FunctionReading>, AttacherError> {
        let attacher = self.clone();
        let (began, begins) = tokio::sync::oneshot::channel();
        // Waits for the child.
        let tracing = tokio::task::spawn_blocking(move || {
            let answers = attacher.free()?;
            // Nobody listens any more: then nobody wants a trace.
            if began.send(()).is_err() {
                return Err(AttacherError::Gone(io::ErrorKind::Interrupted.into()));
            }
            attacher.trace_by(answers, request)
        });
        // Whoever finds another's trace going on must not end that one.
        let armed = begins.await.is_ok();
        let mut stop = StopOnDrop {
            attacher: self,
            armed,
        };
        let done = tracing.await;
        stop.armed = false;
        done.unwrap_or_else(|why| Err(AttacherError::Gone(io::Error::other(why))))
    }

    /// The place of who traces, if nobody does.
    fn free(&self) -> Result<MutexGuard<'_, UnixStream>, AttacherError> {
        match self.answers.try_lock() {
            Ok(answers) => Ok(answers),
            Err(TryLockError::WouldBlock) => Err(AttacherError::Busy),
            Err(TryLockError::Poisoned(answers)) => Ok(answers.into_inner()),
        }
    }

    fn trace_by(
        &self,
        mut answers: MutexGuard<'_, UnixStream>,
        request: TraceRequest,
    ) -> Result<Arc<FunctionReading>, AttacherError> {
        self.order(&Order::Trace(request))
            .map_err(AttacherError::Gone)?;
        match hear(&mut *answers).map_err(AttacherError::Gone)? {
            Answer::Seen(reading) => {
                let reading = Arc::new(*reading);
                self.latest.put(reading.clone());
                Ok(reading)
            }
            Answer::Refused(refused) => Err(refused.into()),
        }
    }

    fn order(&self, order: &Order) -> io::Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        say(&mut *orders, order)
    }

    /// What the kernel does not forbid the child, although it should.
    pub fn not_closed(&self) -> &Quality {
        &self.not_closed
    }

    /// Where finished traces are taken up.
    pub(super) fn latest(&self) -> Latest {
        self.latest.clone()
    }
}

impl Drop for Attacher {
    /// A child that hears the end of its socket ends whatever it does.
    fn drop(&mut self) {
        let socket = self.orders.get_mut();
        let socket = socket.unwrap_or_else(PoisonError::into_inner);
        let _ = socket.shutdown(std::net::Shutdown::Both);
        let _ = rustix::process::waitpid(Some(self.child), WaitOptions::empty());
    }
}

/// The child's life.
fn live(mut socket: UnixStream) -> io::Result<()> {
    let mut open = Quality::default();
    closed::close_attacher(&mut open);
    say(&mut socket, &open)?;
    loop {
        let request = match hear(&mut socket) {
            Ok(Order::Trace(request)) => request,
            // The trace ended by itself meanwhile.
            Ok(Order::Stop) => continue,
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(why) => return Err(why),
        };
        let answer = match trace(&request, &socket) {
            Ok(reading) => Answer::Seen(Box::new(reading)),
            Err(refused) => Answer::Refused(refused),
        };
        probes::give_memory_back();
        say(&mut socket, &answer)?;
    }
}

fn trace(request: &TraceRequest, socket: &UnixStream) -> Result<FunctionReading, Refused> {
    let refused = |why: String, usage| Refused { why, usage };
    let reader = HostReader::new(Root::default()).map_err(|why| refused(why.to_string(), false))?;
    let watched = observe::watched(&reader).map_err(|why| refused(why.to_string(), false))?;
    // Whatever is said meanwhile, and the end of the socket, stops the trace.
    probes::trace(request, &watched, socket.as_fd(), || {})
        .map_err(|why| refused(why.to_string(), why.is_usage()))
}
