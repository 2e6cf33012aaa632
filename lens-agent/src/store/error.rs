//! What can go wrong, and what a person does about it.

use std::{io, path::PathBuf, sync::Arc};

/// A failure of the store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory cannot be made, or nothing can be written there.
    #[error(
        "state directory {} is not writable; run lens as a user that may write there, or name \
         another with --state-dir", dir.display()
    )]
    Directory {
        /// The state directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// Nothing was ever recorded here.
    #[error(
        "nothing is recorded in {}; has `lens run` run with this --state-dir?", dir.display()
    )]
    NothingRecorded {
        /// The state directory.
        dir: PathBuf,
    },
    /// The file cannot be opened, although it is there.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A damaged file cannot be moved out of the way.
    #[error("cannot move the damaged {} aside; move it away by hand", path.display())]
    MoveAside {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The file was written by a lens that knows more than this one.
    #[error(
        "the store has format {found}, and this lens knows up to {known}; run the newer lens, or \
         name another --state-dir"
    )]
    Newer {
        /// The file's format.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// A change was asked for, but the store was opened for reading.
    #[error("the store is open for reading only")]
    ReadOnly,
    /// The queue stayed full: the disk is slower than what is recorded.
    #[error("the store's queue is full: the disk does not keep up")]
    Busy,
    /// The writer has ended.
    #[error("the store's writer has ended")]
    Closed,
    /// The writer's thread cannot be started.
    #[error("cannot start the store's writer")]
    Thread(#[source] Arc<io::Error>),
    /// `SQLite` refuses.
    #[error("the store failed")]
    Sqlite(#[source] Arc<rusqlite::Error>),
    /// What was written cannot be understood any more.
    #[error("record `{kind}/{id}` is damaged: {why}")]
    Damaged {
        /// The record's kind.
        kind: String,
        /// The record's id.
        id: String,
        /// What is wrong with it.
        why: String,
    },
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(Arc::new(error))
    }
}
