//! The promises of the room, on real files.

use std::fs;

use super::*;

const INCIDENT: Kind = Kind("incident");
const BASELINE: Kind = Kind("baseline");

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn open(dir: &Path) -> Store {
    Store::open(dir, &Telemetry::new()).unwrap()
}

/// Bytes that do not compress away.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn what_is_put_can_be_got() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("deep/state"));
    let large = vec![7; 100_000];
    store.put(BASELINE, "a", 3, at(10), large.clone()).unwrap();
    store
        .put(INCIDENT, "a", 1, at(11), b"small".to_vec())
        .unwrap();
    store
        .put(INCIDENT, "a", 2, at(12), b"newer".to_vec())
        .unwrap();
    store.flush().unwrap();

    let baseline = store.get(BASELINE, "a").unwrap().unwrap();
    assert_eq!((baseline.version, baseline.changed_at), (3, at(10)));
    assert_eq!(baseline.bytes, large);
    assert_eq!(store.get(INCIDENT, "a").unwrap().unwrap().bytes, b"newer");
    assert_eq!(store.get(INCIDENT, "b").unwrap(), None);
    assert!(store.bytes_on_disk() > 0);
    assert_eq!(store.moved_aside(), None);

    store.delete(INCIDENT, "a").unwrap();
    store.flush().unwrap();
    assert_eq!(store.get(INCIDENT, "a").unwrap(), None);
}

#[test]
fn lists_are_newest_first_and_retention_keeps_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for second in [30, 10, 20, 40] {
        store
            .put(INCIDENT, &second.to_string(), 1, at(second), Vec::new())
            .unwrap();
    }
    store.put(BASELINE, "old", 1, at(1), Vec::new()).unwrap();
    store.flush().unwrap();
    let ids = |since, limit| -> Vec<String> {
        store
            .list(INCIDENT, since, limit)
            .unwrap()
            .into_iter()
            .map(|r| r.id)
            .collect()
    };
    assert_eq!(ids(None, 10), ["40", "30", "20", "10"]);
    assert_eq!(ids(Some(at(20)), 10), ["40", "30", "20"]);
    assert_eq!(ids(None, 1), ["40"]);

    store.retain(INCIDENT, 2).unwrap();
    store.flush().unwrap();
    assert_eq!(
        store.ids(INCIDENT).unwrap(),
        [("40".to_owned(), at(40)), ("30".to_owned(), at(30))]
    );
    assert_eq!(store.ids(BASELINE).unwrap().len(), 1, "other kinds stay");
}

#[test]
fn retention_shrinks_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..100_u32 {
        store
            .put(BASELINE, &n.to_string(), 1, at(n.into()), noise(n, 20_000))
            .unwrap();
    }
    drop(store);
    let full = fs::metadata(dir.path().join("lens.db")).unwrap().len();
    let store = open(dir.path());
    store.retain(BASELINE, 1).unwrap();
    drop(store);
    let kept = fs::metadata(dir.path().join("lens.db")).unwrap().len();
    assert!(kept < full / 2, "{kept} of {full} bytes");
}

#[test]
fn a_committed_record_needs_no_orderly_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store
        .put(BASELINE, "before", 1, at(1), b"queued".to_vec())
        .unwrap();
    store
        .put_now(INCIDENT, "1", 1, at(1), b"opened".to_vec())
        .unwrap();
    // As after kill -9: no drop, no checkpoint, the log still beside the file.
    std::mem::forget(store);
    let store = open(dir.path());
    assert_eq!(store.get(INCIDENT, "1").unwrap().unwrap().bytes, b"opened");
    assert_eq!(
        store.get(BASELINE, "before").unwrap().unwrap().bytes,
        b"queued"
    );
}

#[test]
fn an_orderly_end_writes_what_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..500 {
        store
            .put(BASELINE, &n.to_string(), 1, at(n), vec![0; 2000])
            .unwrap();
    }
    drop(store);
    assert_eq!(open(dir.path()).ids(BASELINE).unwrap().len(), 500);
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lens.db");
    for damage in [
        b"this is no database, and never was one".repeat(100),
        vec![0xff; 8192],
    ] {
        fs::write(&file, &damage).unwrap();
        let store = open(dir.path());
        let aside = store.moved_aside().unwrap().to_owned();
        assert!(aside.to_string_lossy().contains("lens.db.corrupt-"));
        assert_eq!(
            fs::read(aside).unwrap(),
            damage,
            "what was recorded is still there"
        );
        store.put_now(INCIDENT, "1", 1, at(1), Vec::new()).unwrap();
    }
}

#[test]
fn damage_in_the_middle_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..200_u32 {
        store
            .put(BASELINE, &n.to_string(), 1, at(n.into()), noise(n, 3000))
            .unwrap();
    }
    drop(store);
    let file = dir.path().join("lens.db");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 8192 * 4096;
    bytes[middle..middle + 4096 * 4].fill(0x5a);
    fs::write(&file, bytes).unwrap();
    assert!(open(dir.path()).moved_aside().is_some());
}

#[test]
fn reading_goes_on_beside_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let writer = open(dir.path());
    let reader = Store::open_read_only(dir.path()).unwrap();
    writer
        .put_now(INCIDENT, "1", 1, at(1), b"seen".to_vec())
        .unwrap();
    assert_eq!(reader.get(INCIDENT, "1").unwrap().unwrap().bytes, b"seen");
    let refused = reader.put(INCIDENT, "2", 1, at(2), Vec::new());
    assert!(matches!(refused, Err(StoreError::ReadOnly)));
    drop(writer);
    let after = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(after.list(INCIDENT, None, 10).unwrap().len(), 1);
}

#[test]
fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, []).unwrap();
    let error = Store::open(&file.join("state"), &Telemetry::new()).unwrap_err();
    assert!(matches!(error, StoreError::Directory { .. }));
    assert!(error.to_string().contains("--state-dir"), "{error}");

    let error = Store::open_read_only(dir.path()).unwrap_err();
    assert!(error.to_string().contains("lens run"), "{error}");
}

#[test]
fn an_old_format_is_migrated_and_a_newer_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lens.db");
    // An empty database of format 0.
    let old = Connection::open(&file).unwrap();
    old.execute_batch("VACUUM").unwrap();
    drop(old);
    let store = open(dir.path());
    store.put_now(INCIDENT, "1", 1, at(1), Vec::new()).unwrap();
    drop(store);

    let newer = Connection::open(&file).unwrap();
    let version: u32 = newer
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(version, 1);
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let error = Store::open(dir.path(), &Telemetry::new()).unwrap_err();
    assert!(matches!(
        error,
        StoreError::Newer {
            found: 99,
            known: 1
        }
    ));
    assert!(Store::open_read_only(dir.path()).is_err());
    let aside = fs::read_dir(dir.path()).unwrap().any(|entry| {
        entry
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("corrupt")
    });
    assert!(!aside, "what is newer is not damaged");
}
