//! Bytes as they lie in the file: compressed where that is worth it.

use std::borrow::Cow;

/// Below this many bytes compression saves nothing.
const WORTH_IT: usize = 512;
/// zstd's own default: about 3 times smaller, 200 MB a second.
const LEVEL: i32 = 3;
/// No record is larger; guards against a damaged length.
const LARGEST: usize = 256 << 20;

/// Bytes, and how many they were before compression (`None`: they are as they were).
pub(super) struct Packed<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) unpacked_len: Option<i64>,
}

pub(super) fn pack(bytes: &[u8]) -> Packed<'_> {
    let plain = Packed {
        bytes: Cow::Borrowed(bytes),
        unpacked_len: None,
    };
    if bytes.len() <= WORTH_IT {
        return plain;
    }
    // Compression in memory does not fail; if it did, the bytes are still as good as they were.
    match zstd::bulk::compress(bytes, LEVEL) {
        Ok(packed) if packed.len() < bytes.len() => Packed {
            bytes: Cow::Owned(packed),
            unpacked_len: i64::try_from(bytes.len()).ok(),
        },
        _ => plain,
    }
}

/// The bytes as they were, or what is wrong with them.
pub(super) fn unpack(bytes: Vec<u8>, unpacked_len: Option<i64>) -> Result<Vec<u8>, String> {
    let Some(len) = unpacked_len else {
        return Ok(bytes);
    };
    let len = usize::try_from(len)
        .ok()
        .filter(|&len| len <= LARGEST)
        .ok_or_else(|| format!("{len} bytes is no length"))?;
    let unpacked = zstd::bulk::decompress(&bytes, len).map_err(|error| error.to_string())?;
    if unpacked.len() == len {
        Ok(unpacked)
    } else {
        Err(format!("{} bytes where {len} should be", unpacked.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        for len in [0, 10, WORTH_IT, WORTH_IT + 1, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n % 7).unwrap()).collect();
            let packed = pack(&bytes);
            assert_eq!(packed.unpacked_len.is_some(), len > WORTH_IT);
            let again = unpack(packed.bytes.into_owned(), packed.unpacked_len);
            assert_eq!(again.unwrap(), bytes);
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(unpack(b"no zstd".to_vec(), Some(100)).is_err());
        assert!(unpack(Vec::new(), Some(-1)).is_err());
        assert!(unpack(Vec::new(), Some(i64::MAX)).is_err());
    }
}
