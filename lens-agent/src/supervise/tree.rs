//! The supervision tree as something to look at.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Policy;

/// What a node of the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Has children and does nothing itself.
    Supervisor,
    /// Restarted however it ends.
    Permanent,
    /// Restarted when it fails.
    Transient,
    /// Never restarted.
    Temporary,
}

impl From<Policy> for Kind {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Permanent => Self::Permanent,
            Policy::Transient => Self::Transient,
            Policy::Temporary => Self::Temporary,
        }
    }
}

/// What a node does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It runs.
    Running,
    /// It failed, and waits for its restart.
    BackingOff,
    /// It came to its end, or was cancelled.
    Finished,
    /// It failed, and is not restarted any more.
    Failed,
}

impl State {
    /// Whether it will never run again.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

/// Why a child ended when it should not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// Its error with all causes, or the message of its panic.
    pub why: String,
}

/// A child, or a supervisor and all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its own name; the names from the root down, joined by `/`, are its path.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What it does at present.
    pub state: State,
    /// Restarts since its start.
    pub restarts: u32,
    /// The latest failure, if there ever was one.
    pub last_failure: Option<Failure>,
    /// When it entered this state.
    pub since: Timestamp,
    /// Children in the order in which they were added, then groups.
    pub children: Vec<Self>,
}

impl Node {
    /// The names of those at or below this one that failed and are not restarted any more.
    pub fn failed(&self) -> Vec<&str> {
        let below = self.children.iter().flat_map(Self::failed);
        let own = (self.state == State::Failed).then_some(&*self.name);
        own.into_iter().chain(below).collect()
    }

    /// The node at `path` below this one (`group/child`).
    pub fn find(&self, path: &str) -> Option<&Self> {
        let (first, rest) = path
            .split_once('/')
            .map_or((path, None), |(f, r)| (f, Some(r)));
        let child = self.children.iter().find(|child| child.name == first)?;
        rest.map_or(Some(child), |rest| child.find(rest))
    }
}
