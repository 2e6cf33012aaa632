//! Hash maps read as a whole: many entries a system call, where aya takes two calls for each.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData},
};

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`, since 5.6.
const LOOKUP_BATCH: libc::c_int = 24;
/// Entries that one call has room for, at first.
const ROOM: usize = 256;

/// The part of `union bpf_attr` that batches use.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    /// Where to go on: what the call before wrote to `out_batch`; NULL at first.
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// Room in entries, and then how many there are.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// All entries of `map`. One that comes or goes meanwhile may be among them or not.
pub(super) fn entries<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>) -> io::Result<Vec<(K, V)>> {
    let fd = map.map().fd().as_fd().as_raw_fd();
    let fd = u32::try_from(fd).map_err(io::Error::other)?;
    let mut found = Vec::new();
    let mut room = ROOM;
    // A position in the map: of a hash map the number of a bucket.
    let (mut from, mut next) = (0_u64, 0_u64);
    let mut is_first = true;
    loop {
        let mut keys: Vec<MaybeUninit<K>> = Vec::with_capacity(room);
        let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(room);
        let mut batch = Attributes {
            in_batch: if is_first { 0 } else { address(&raw mut from) },
            out_batch: address(&raw mut next),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: fd,
            ..Attributes::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values, for which there is room, and a
        // position that is no larger than a word.
        #[expect(unsafe_code, reason = "aya has no batches")]
        let done = unsafe {
            let size = size_of::<Attributes>();
            libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut batch, size)
        };
        let failed = (done != 0).then(io::Error::last_os_error);
        let errno = failed.as_ref().and_then(io::Error::raw_os_error);
        if errno == Some(libc::ENOSPC) {
            // More entries than that in one bucket.
            room *= 2;
            continue;
        }
        let is_last = errno == Some(libc::ENOENT);
        if let Some(why) = failed
            && !is_last
        {
            return Err(why);
        }
        let n = room.min(batch.count as usize);
        // SAFETY: the kernel has written that many.
        #[expect(unsafe_code, reason = "what the kernel has written")]
        let written = unsafe {
            keys.set_len(n);
            values.set_len(n);
            let entries = keys.iter().zip(&values);
            entries.map(|(key, value)| (key.assume_init(), value.assume_init()))
        };
        found.extend(written);
        if is_last {
            return Ok(found);
        }
        (from, is_first) = (next, false);
    }
}

fn address<T>(of: *mut T) -> u64 {
    of.expose_provenance() as u64
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        os::fd::{FromRawFd as _, OwnedFd},
    };

    use aya::maps::Map;

    use super::*;

    /// A hash map of words, or why there is none.
    fn map_of_words(entries: u32) -> io::Result<HashMap<MapData, u64, u64>> {
        const CREATE: libc::c_int = 0;
        const HASH: u32 = 1;
        // `map_type`, `key_size`, `value_size`, `max_entries`, and zeros.
        let mut attributes = [0_u32; 16];
        attributes[..4].copy_from_slice(&[HASH, 8, 8, entries]);
        // SAFETY: the attributes live as long as the call; what it returns is a new descriptor.
        #[expect(unsafe_code, reason = "a map of a test's own")]
        let fd = unsafe {
            let size = size_of_val(&attributes);
            let fd = libc::syscall(libc::SYS_bpf, CREATE, attributes.as_ptr(), size);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
        };
        let data = MapData::from_fd(fd).map_err(io::Error::other)?;
        HashMap::try_from(Map::HashMap(data)).map_err(io::Error::other)
    }

    #[test]
    fn every_entry_is_read_once_however_many_there_are() {
        let mut map = match map_of_words(5000) {
            Ok(map) => map,
            Err(why) => {
                eprintln!("NOT RUN: batches (no map can be made: {why})");
                return;
            }
        };
        assert_eq!(entries(&map).unwrap(), []);
        for n in [1_u64, 255, 256, 257, 5000] {
            for key in 0..n {
                map.insert(key, key * 3, 0).unwrap();
            }
            let found = entries(&map).unwrap();
            assert_eq!(found.len() as u64, n);
            let found: BTreeMap<u64, u64> = found.into_iter().collect();
            assert!((0..n).all(|key| found[&key] == key * 3));
        }
    }
}
