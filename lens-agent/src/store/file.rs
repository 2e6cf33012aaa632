//! The file: opening it, bringing it to the present format, moving a damaged one aside.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;
use crate::base::clock::{Clock, SystemClock};

const NAME: &str = "lens.db";
/// What lies beside the file while it is open, and belongs to it.
const COMPANIONS: [&str; 2] = ["-wal", "-shm"];
/// How long a connection waits for another one's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The step from each format to the next; `user_version` says how many have been taken.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE records (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        version INTEGER NOT NULL,
        changed_at INTEGER NOT NULL,
        bytes BLOB NOT NULL,
        unpacked_len INTEGER,
        UNIQUE (kind, id)
    ) STRICT;
    CREATE INDEX records_by_change ON records (kind, changed_at);
"];

/// Makes the state directory, for its owner alone, and sees that it can be written to.
pub(super) fn make_directory(dir: &Path) -> Result<(), StoreError> {
    let make = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        rustix::fs::access(
            dir,
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
        )?;
        Ok(())
    };
    make().map_err(|error| StoreError::Directory {
        dir: dir.to_owned(),
        source: Arc::new(error),
    })
}

/// The connection for writing. A damaged file is moved aside first; then its new place comes too.
pub(super) fn open_or_start_afresh(
    dir: &Path,
) -> Result<(Connection, Option<PathBuf>), StoreError> {
    let path = dir.join(NAME);
    match open_writer(&path) {
        Ok(connection) => Ok((connection, None)),
        Err(Unopened::Damaged) => {
            let moved_to = move_aside(&path)?;
            let connection = open_writer(&path).map_err(|why| why.error(&path))?;
            Ok((connection, Some(moved_to)))
        }
        Err(other) => Err(other.error(&path)),
    }
}

/// A connection that can only read.
pub(super) fn open_reader(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(NAME);
    if !path.exists() {
        return Err(StoreError::NothingRecorded {
            dir: dir.to_owned(),
        });
    }
    let open = |name: &Path, flags| -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(name, flags)?;
        connection.busy_timeout(LOCK_PATIENCE)?;
        // Nothing is read before the first question.
        user_version(&connection)?;
        Ok(connection)
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = open(&path, flags).or_else(|error| {
        // A reader of a WAL file writes beside it. Where it may not, and no log is left to be
        // read, the file can be taken as one that nobody changes.
        if companion(&path, "-wal").exists() {
            return Err(error);
        }
        let frozen = format!("file:{}?immutable=1", escape(&path.to_string_lossy()));
        open(Path::new(&frozen), flags | OpenFlags::SQLITE_OPEN_URI)
    });
    opened.map_err(|error| Unopened::Sqlite(error).error(&path))
}

/// Refuses a format that is not the present one.
pub(super) fn check_version(connection: &Connection) -> Result<(), StoreError> {
    let found = user_version(connection)?;
    let known = known_version();
    if found > known {
        Err(StoreError::Newer { found, known })
    } else {
        Ok(())
    }
}

pub(super) fn bytes_on_disk(dir: &Path) -> u64 {
    let path = dir.join(NAME);
    let companions = COMPANIONS.iter().map(|suffix| companion(&path, suffix));
    std::iter::once(path.clone())
        .chain(companions)
        .filter_map(|path| fs::metadata(path).ok())
        .map(|metadata| metadata.len())
        .sum()
}

enum Unopened {
    Damaged,
    Newer { found: u32 },
    Sqlite(rusqlite::Error),
}

impl Unopened {
    fn error(self, path: &Path) -> StoreError {
        match self {
            Self::Newer { found } => StoreError::Newer {
                found,
                known: known_version(),
            },
            Self::Sqlite(error) => StoreError::Open {
                path: path.to_owned(),
                source: Arc::new(error),
            },
            Self::Damaged => StoreError::Open {
                path: path.to_owned(),
                source: Arc::new(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                    None,
                )),
            },
        }
    }
}

impl From<rusqlite::Error> for Unopened {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged,
            _ => Self::Sqlite(error),
        }
    }
}

fn open_writer(path: &Path) -> Result<Connection, Unopened> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(LOCK_PATIENCE)?;
    let found = user_version(&connection)?;
    if found > known_version() {
        return Err(Unopened::Newer { found });
    }
    // Only a file without tables takes this setting; it lets a retention shrink the file.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update_and_check(None, "journal_size_limit", 16 << 20, |_| Ok(()))?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Unopened::Damaged);
    }
    migrate(&mut connection, found)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, found: u32) -> rusqlite::Result<()> {
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    for (step, version) in MIGRATIONS.iter().zip(1_u32..).skip(done) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

fn known_version() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

fn user_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Renames the file and what belongs to it, to a name that nothing has yet.
fn move_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let stamp = SystemClock.now().wall.as_second();
    let mut to = companion(path, &format!(".corrupt-{stamp}"));
    while to.exists() {
        to = companion(&to, "-again");
    }
    let failed = |error| StoreError::MoveAside {
        path: path.to_owned(),
        source: Arc::new(error),
    };
    fs::rename(path, &to).map_err(failed)?;
    for suffix in COMPANIONS {
        match fs::rename(companion(path, suffix), companion(&to, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(to)
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A path within a URI (<https://sqlite.org/uri.html>).
fn escape(path: &str) -> String {
    path.replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23")
}
