//! Versioned bytes by kind and id, in one `SQLite` file. Knows no domain type.
//!
//! ```text
//! put, put_now, delete, retain -> bounded queue -> one writer thread -> lens.db (WAL)
//! get, list, ids               <- a read-only connection <---------------'
//! ```
//!
//! The writer commits what is queued in one transaction. With WAL and `synchronous = NORMAL` what
//! is committed survives `kill -9`; a power cut may cost the last commits, never the file
//! (<https://sqlite.org/wal.html>, <https://sqlite.org/pragma.html#pragma_synchronous>).
//! All functions here are quick and blocking: in async code they take the time of a disk write at
//! most, and those that wait for one ([`Store::put_now`], [`Store::flush`]) belong on a thread
//! that may block.

mod error;
mod file;
mod packing;
mod reader;
mod record;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use rusqlite::Connection;

pub use error::StoreError;
pub use record::{Kind, Record};

use crate::telemetry::Telemetry;
pub use writer::Writing;
use writer::{Change, Writer};

/// The store in one state directory.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    reader: Mutex<Connection>,
    writer: Option<Writer>,
    moved_aside: Option<PathBuf>,
}

impl Store {
    /// Opens the store in `dir`, for writing too; makes the directory (mode 0700) and the file.
    ///
    /// A damaged file is moved aside, never removed, and a fresh one started: see
    /// [`Self::moved_aside`]. A queued change that fails is a
    /// [`StoreError`](crate::telemetry::Event::StoreError) event.
    pub fn open(dir: &Path, telemetry: &Telemetry) -> Result<Self, StoreError> {
        Self::open_with(dir, |connection| {
            Ok((Writer::start(connection, telemetry.clone())?, ()))
        })
        .map(|(store, ())| store)
    }

    /// The same without a thread that writes: that is for the caller to run, and to run again if it
    /// fails.
    pub fn open_without_thread(
        dir: &Path,
        telemetry: &Telemetry,
    ) -> Result<(Self, Writing), StoreError> {
        Self::open_with(dir, |connection| {
            Ok(Writer::without_thread(connection, telemetry.clone()))
        })
    }

    fn open_with<T>(
        dir: &Path,
        start: impl FnOnce(Connection) -> Result<(Writer, T), StoreError>,
    ) -> Result<(Self, T), StoreError> {
        file::make_directory(dir)?;
        let (connection, moved_aside) = file::open_or_start_afresh(dir)?;
        let reader = file::open_reader(dir)?;
        let (writer, with) = start(connection)?;
        let store = Self {
            dir: dir.to_owned(),
            reader: Mutex::new(reader),
            writer: Some(writer),
            moved_aside,
        };
        Ok((store, with))
    }

    /// Makes the directory for a store, as [`Self::open`] does.
    pub fn make_directory(dir: &Path) -> Result<(), StoreError> {
        file::make_directory(dir)
    }

    /// Opens the store in `dir` as it is, beside a running agent or without one.
    pub fn open_read_only(dir: &Path) -> Result<Self, StoreError> {
        let reader = file::open_reader(dir)?;
        file::check_version(&reader)?;
        Ok(Self {
            dir: dir.to_owned(),
            reader: Mutex::new(reader),
            writer: None,
            moved_aside: None,
        })
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the former file is now, if it was found damaged when this store was opened.
    pub fn moved_aside(&self) -> Option<&Path> {
        self.moved_aside.as_deref()
    }

    /// Queues a record; it replaces the one of the same kind and id.
    ///
    /// Returns once it is queued. It is durable, and seen by readers, after the next commit. While
    /// the queue is full this waits, for at most 1 s ([`StoreError::Busy`]).
    pub fn put(
        &self,
        kind: Kind,
        id: &str,
        version: u32,
        changed_at: Timestamp,
        bytes: Vec<u8>,
    ) -> Result<(), StoreError> {
        let record = Record::new(kind, id, version, changed_at, bytes);
        self.writer()?.queue(Change::Put(record))
    }

    /// Puts a record, and all that was queued before it, and returns once it is committed.
    pub fn put_now(
        &self,
        kind: Kind,
        id: &str,
        version: u32,
        changed_at: Timestamp,
        bytes: Vec<u8>,
    ) -> Result<(), StoreError> {
        let record = Record::new(kind, id, version, changed_at, bytes);
        self.writer()?.wait_for(Change::Put(record))
    }

    /// Queues the removal of a record. One that isn't there is no error.
    pub fn delete(&self, kind: Kind, id: &str) -> Result<(), StoreError> {
        self.writer()?.queue(Change::Delete {
            kind,
            id: id.to_owned(),
        })
    }

    /// Queues the removal of all records of `kind` but the `keep_newest` last changed ones.
    pub fn retain(&self, kind: Kind, keep_newest: u32) -> Result<(), StoreError> {
        self.writer()?.queue(Change::Retain { kind, keep_newest })
    }

    /// Returns once all that was queued before is committed.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.writer()?.wait_for(Change::Nothing)
    }

    /// The record of that kind and id.
    pub fn get(&self, kind: Kind, id: &str) -> Result<Option<Record>, StoreError> {
        reader::get(&self.reader(), kind, id)
    }

    /// At most `limit` records, those changed last first; of those changed at `since` or later.
    pub fn list(
        &self,
        kind: Kind,
        since: Option<Timestamp>,
        limit: u32,
    ) -> Result<Vec<Record>, StoreError> {
        reader::list(&self.reader(), kind, since, limit)
    }

    /// Ids of all records of a kind and when they were changed, those changed last first.
    pub fn ids(&self, kind: Kind) -> Result<Vec<(String, Timestamp)>, StoreError> {
        reader::ids(&self.reader(), kind)
    }

    /// What the store takes on disk, in bytes, with what is not yet moved out of the log; without
    /// files that were moved aside.
    pub fn bytes_on_disk(&self) -> u64 {
        file::bytes_on_disk(&self.dir)
    }

    fn writer(&self) -> Result<&Writer, StoreError> {
        self.writer.as_ref().ok_or(StoreError::ReadOnly)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
