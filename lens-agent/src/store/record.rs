//! What is kept.

use jiff::Timestamp;

/// What a record is about: `incident`, `insight`, `baseline`...
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub &'static str);

/// Bytes, and what is needed to find and to understand them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// Unique within its kind.
    pub id: String,
    /// The version of the format that the bytes have; the owner of the kind counts it.
    pub version: u32,
    /// When the thing changed last, as its owner says.
    pub changed_at: Timestamp,
    /// The thing.
    pub bytes: Vec<u8>,
}

impl Record {
    pub(super) fn new(
        kind: Kind,
        id: &str,
        version: u32,
        changed_at: Timestamp,
        bytes: Vec<u8>,
    ) -> Self {
        Self {
            kind,
            id: id.to_owned(),
            version,
            changed_at,
            bytes,
        }
    }
}

/// A time as the file has it: nanoseconds since 1970, which last until 2262.
pub(super) fn to_nanos(time: Timestamp) -> i64 {
    let nanos = time.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

pub(super) fn from_nanos(nanos: i64) -> Timestamp {
    // Every i64 of nanoseconds is within what a timestamp can hold.
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}
