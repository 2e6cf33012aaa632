//! The one thread that writes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use rusqlite::{Connection, params};

use super::{Kind, Record, StoreError, packing::pack, record::to_nanos};
use crate::telemetry::{Event, Telemetry};

/// Changes that may wait. At a few KiB each that is some MiB at most.
const QUEUE: usize = 1024;
/// Changes in one transaction.
const BATCH: usize = 256;
/// How long [`Writer::queue`] waits for room.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long [`Writer::wait_for`] waits for the commit: who asks must not hang with a writer that
/// has failed.
const COMMITTED: Duration = Duration::from_secs(10);
/// How often the thread looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(200);
/// Free pages given back to the file system with each retention; 4 MiB.
const PAGES_GIVEN_BACK: u32 = 1024;

/// A change of what is stored.
#[derive(Debug)]
pub(super) enum Change {
    Put(Record),
    Delete {
        kind: Kind,
        id: String,
    },
    Retain {
        kind: Kind,
        keep_newest: u32,
    },
    /// To wait for what was queued before.
    Nothing,
}

type Reply = Sender<Result<(), StoreError>>;

#[derive(Debug)]
pub(super) struct Queued {
    change: Change,
    reply: Option<Reply>,
}

/// The writer's queue, and its thread if it has one of its own. Dropping it writes what is queued.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<Sender<Queued>>,
    thread: Option<JoinHandle<()>>,
}

/// What the writing thread works with. It lives outside of the thread: one that takes over goes on
/// with what the other had in hand.
#[derive(Debug)]
pub struct Writing {
    connection: Mutex<Connection>,
    changes: Receiver<Queued>,
    hand: Mutex<Vec<Queued>>,
    telemetry: Telemetry,
}

impl Writer {
    /// With a thread of its own.
    pub(super) fn start(connection: Connection, telemetry: Telemetry) -> Result<Self, StoreError> {
        let (mut writer, writing) = Self::without_thread(connection, telemetry);
        let thread = thread::Builder::new()
            .name("lens-store".to_owned())
            .spawn(move || writing.run(&|| false))
            .map_err(|error| StoreError::Thread(Arc::new(error)))?;
        writer.thread = Some(thread);
        Ok(writer)
    }

    /// Nothing is written until somebody runs what comes with it.
    pub(super) fn without_thread(connection: Connection, telemetry: Telemetry) -> (Self, Writing) {
        let (queue, changes) = bounded(QUEUE);
        let writer = Self {
            queue: Some(queue),
            thread: None,
        };
        let writing = Writing {
            connection: Mutex::new(connection),
            changes,
            hand: Mutex::default(),
            telemetry,
        };
        (writer, writing)
    }

    pub(super) fn queue(&self, change: Change) -> Result<(), StoreError> {
        self.send(Queued {
            change,
            reply: None,
        })
    }

    pub(super) fn wait_for(&self, change: Change) -> Result<(), StoreError> {
        let (reply, done) = bounded(1);
        self.send(Queued {
            change,
            reply: Some(reply),
        })?;
        match done.recv_timeout(COMMITTED) {
            Ok(result) => result,
            // It is still queued, and written if the thread ever gets to it.
            Err(RecvTimeoutError::Timeout) => Err(StoreError::Busy),
            Err(RecvTimeoutError::Disconnected) => Err(StoreError::Closed),
        }
    }

    fn send(&self, queued: Queued) -> Result<(), StoreError> {
        let Some(queue) = &self.queue else {
            return Err(StoreError::Closed);
        };
        queue
            .send_timeout(queued, PATIENCE)
            .map_err(|error| match error {
                SendTimeoutError::Timeout(_) => StoreError::Busy,
                SendTimeoutError::Disconnected(_) => StoreError::Closed,
            })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends when it has emptied the queue and nobody can add to it.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writing {
    /// Writes what is queued. Returns when nobody can add to it; or when `stop` says so, and nothing
    /// has come for a while.
    pub fn run(&self, stop: &dyn Fn() -> bool) {
        self.write_hand();
        loop {
            match self.changes.recv_timeout(GLANCE) {
                Ok(first) => self.take_and_write(first),
                Err(RecvTimeoutError::Timeout) if stop() => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes what is queued now.
    pub fn finish(&self) {
        self.write_hand();
        while let Ok(first) = self.changes.try_recv() {
            self.take_and_write(first);
        }
    }

    fn take_and_write(&self, first: Queued) {
        {
            let mut hand = lock(&self.hand);
            hand.push(first);
            hand.extend(self.changes.try_iter().take(BATCH - 1));
        }
        self.write_hand();
    }

    fn write_hand(&self) {
        let mut hand = lock(&self.hand);
        if hand.is_empty() {
            return;
        }
        let results = write(&mut lock(&self.connection), &hand);
        for (queued, result) in hand.drain(..).zip(results) {
            if let Some(reply) = queued.reply {
                // Who has stopped waiting does not want the answer.
                let _ = reply.send(result);
            } else if let Err(error) = result {
                self.telemetry
                    .emit(Event::StoreError { why: chain(&error) });
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a batch in one transaction. A change that fails does not take the others with it.
fn write(connection: &mut Connection, batch: &[Queued]) -> Vec<Result<(), StoreError>> {
    let written = connection.transaction().and_then(|transaction| {
        let results: Vec<_> = batch
            .iter()
            .map(|queued| apply(&transaction, &queued.change).map_err(StoreError::from))
            .collect();
        transaction.commit()?;
        Ok(results)
    });
    match written {
        Ok(results) => {
            give_back(connection, batch);
            results
        }
        Err(error) => {
            let error = StoreError::from(error);
            batch.iter().map(|_| Err(error.clone())).collect()
        }
    }
}

fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Put(Record {
            kind,
            id,
            version,
            changed_at,
            bytes,
        }) => {
            let packed = pack(bytes);
            connection
                .prepare_cached(
                    "INSERT INTO records (kind, id, version, changed_at, bytes, unpacked_len)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version,
                     changed_at = excluded.changed_at, bytes = excluded.bytes,
                     unpacked_len = excluded.unpacked_len",
                )?
                .execute(params![
                    kind.0,
                    id,
                    version,
                    to_nanos(*changed_at),
                    packed.bytes,
                    packed.unpacked_len
                ])?;
        }
        Change::Delete { kind, id } => {
            connection
                .prepare_cached("DELETE FROM records WHERE kind = ?1 AND id = ?2")?
                .execute(params![kind.0, id])?;
        }
        Change::Retain { kind, keep_newest } => {
            connection
                .prepare_cached(
                    "DELETE FROM records WHERE kind = ?1 AND rowid NOT IN (
                         SELECT rowid FROM records WHERE kind = ?1
                         ORDER BY changed_at DESC, rowid DESC LIMIT ?2)",
                )?
                .execute(params![kind.0, keep_newest])?;
        }
        Change::Nothing => {}
    }
    Ok(())
}

/// Gives room that a retention has freed back to the file system. If that fails, it stays in the
/// file, where the next records take it.
fn give_back(connection: &Connection, batch: &[Queued]) {
    if batch
        .iter()
        .any(|queued| matches!(queued.change, Change::Retain { .. }))
    {
        let pages = format!("PRAGMA incremental_vacuum({PAGES_GIVEN_BACK})");
        // A page is given back with each row, although the rows are empty.
        let _ = connection.prepare_cached(&pages).and_then(|mut vacuum| {
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
            Ok(())
        });
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
