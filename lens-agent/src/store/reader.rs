//! The questions.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Kind, Record, StoreError,
    packing::unpack,
    record::{from_nanos, to_nanos},
};

pub(super) fn get(
    connection: &Connection,
    kind: Kind,
    id: &str,
) -> Result<Option<Record>, StoreError> {
    connection
        .prepare_cached(
            "SELECT id, version, changed_at, bytes, unpacked_len FROM records
             WHERE kind = ?1 AND id = ?2",
        )?
        .query_row(params![kind.0, id], stored)
        .optional()?
        .map(|stored| stored.record(kind))
        .transpose()
}

pub(super) fn list(
    connection: &Connection,
    kind: Kind,
    since: Option<Timestamp>,
    limit: u32,
) -> Result<Vec<Record>, StoreError> {
    let since = since.map_or(i64::MIN, to_nanos);
    let mut query = connection.prepare_cached(
        "SELECT id, version, changed_at, bytes, unpacked_len FROM records
         WHERE kind = ?1 AND changed_at >= ?2 ORDER BY changed_at DESC, rowid DESC LIMIT ?3",
    )?;
    let rows = query.query_map(params![kind.0, since, limit], stored)?;
    rows.map(|row| row?.record(kind)).collect()
}

pub(super) fn ids(
    connection: &Connection,
    kind: Kind,
) -> Result<Vec<(String, Timestamp)>, StoreError> {
    let mut query = connection.prepare_cached(
        "SELECT id, changed_at FROM records WHERE kind = ?1 ORDER BY changed_at DESC, rowid DESC",
    )?;
    let rows = query.query_map([kind.0], |row| Ok((row.get(0)?, from_nanos(row.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

struct Stored {
    id: String,
    version: u32,
    changed_at: i64,
    bytes: Vec<u8>,
    unpacked_len: Option<i64>,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        id: row.get(0)?,
        version: row.get(1)?,
        changed_at: row.get(2)?,
        bytes: row.get(3)?,
        unpacked_len: row.get(4)?,
    })
}

impl Stored {
    fn record(self, kind: Kind) -> Result<Record, StoreError> {
        let Self {
            id,
            version,
            changed_at,
            bytes,
            unpacked_len,
        } = self;
        match unpack(bytes, unpacked_len) {
            Ok(bytes) => Ok(Record {
                kind,
                id,
                version,
                changed_at: from_nanos(changed_at),
                bytes,
            }),
            Err(why) => Err(StoreError::Damaged {
                kind: kind.0.to_owned(),
                id,
                why,
            }),
        }
    }
}
