//! The child that names addresses of other processes.
//!
//! Landlock keeps the closed agent from looking at the mappings of processes that are not its own, as
//! it keeps it from tracing them. And symbols take tens of megabytes. So before the agent is closed it
//! forks a child that does one thing: it is handed stacks over a socket pair and hands back names. It
//! has no Landlock; seccomp refuses it all that it refuses the agent, and to open anything for writing
//! or to change files in any other way. It speaks to nobody else, and dies with the agent.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, WaitOptions};

use super::{
    child::{self, hear, say},
    closed,
};
use crate::{
    base::quality::Quality,
    probes::{self, NamedStack, StackSample},
};

/// Stacks that are named at once.
const STACKS: usize = 256;
/// How long that may take: a file system that does not answer must not hold up whoever asks.
const PATIENCE: Duration = Duration::from_secs(20);

/// The agent's side.
#[derive(Debug)]
pub struct Namer {
    child: Pid,
    /// None when it has not answered once.
    socket: Mutex<Option<UnixStream>>,
    not_closed: Quality,
}

impl Namer {
    /// Forks the child. To be called while the process has one thread, before it is closed.
    pub fn start() -> io::Result<Self> {
        let (child, mut socket) = child::fork(live)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            child,
            // Its first words, when it has closed itself.
            not_closed: hear(&mut socket)?,
            socket: Mutex::new(Some(socket)),
        })
    }

    /// Names the first of these stacks. Waits for the child.
    pub fn name(&self, samples: &[StackSample]) -> io::Result<Vec<NamedStack>> {
        let samples = &samples[..samples.len().min(STACKS)];
        let mut place = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = place.as_mut() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let named = say(socket, &samples).and_then(|()| hear(socket));
        if named.is_err() {
            // What it may still say would pass for the next answer.
            *place = None;
        }
        named
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_raw_nonzero().get().unsigned_abs()
    }

    /// What the kernel does not forbid the child, although it should.
    pub fn not_closed(&self) -> &Quality {
        &self.not_closed
    }
}

impl Drop for Namer {
    fn drop(&mut self) {
        let place = self
            .socket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // One that does not answer is not waited for: it dies with the agent.
        if let Some(socket) = place.take() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
            let _ = rustix::process::waitpid(Some(self.child), WaitOptions::empty());
        }
    }
}

/// The child's life.
fn live(mut socket: UnixStream) -> io::Result<()> {
    let mut open = Quality::default();
    closed::close_namer(&mut open);
    say(&mut socket, &open)?;
    loop {
        let samples: Vec<StackSample> = match hear(&mut socket) {
            Ok(samples) => samples,
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(why) => return Err(why),
        };
        let named = probes::name_stacks(&samples);
        probes::give_memory_back();
        say(&mut socket, &named)?;
    }
}
