//! Names that a compiler at run time has written down: `/tmp/perf-PID.map`, a line a function:
//! address and size in hexadecimal, and the name.

use std::{collections::BTreeMap, io::Read as _};

use super::process::Opened;
use crate::base::text;

/// Bytes that are read of one; the rest is not known.
const LONGEST: u64 = 128 << 20;

/// Functions by their first address.
#[derive(Debug, Default)]
pub(super) struct PerfMap(BTreeMap<u64, (u64, String)>);

impl PerfMap {
    /// What is in the file by now. Lines that make no sense are left out: the last one may just be being
    /// written.
    pub(super) fn read(file: &Opened) -> Self {
        let mut bytes = Vec::new();
        let Some(file) = file.reopened() else {
            return Self::default();
        };
        match file.take(LONGEST).read_to_end(&mut bytes) {
            Ok(_) => Self::parse(&bytes),
            Err(_) => Self::default(),
        }
    }

    fn parse(bytes: &[u8]) -> Self {
        let mut functions = BTreeMap::new();
        // Of a line without an end the name may be cut off.
        let whole = bytes.split_inclusive(|b| *b == b'\n');
        for line in whole.filter_map(|line| line.strip_suffix(b"\n")) {
            let line = String::from_utf8_lossy(line);
            let mut words = line.splitn(3, ' ');
            let mut number = || {
                let word = words.next()?;
                u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok()
            };
            let (Some(at), Some(size)) = (number(), number()) else {
                continue;
            };
            let Some(name) = words.next().filter(|name| !name.is_empty()) else {
                continue;
            };
            // Code moves: what was written last is where it is.
            functions.insert(at, (size, text::clean(name)));
        }
        Self(functions)
    }

    /// The function that `at` lies in.
    pub(super) fn name(&self, at: u64) -> Option<&str> {
        let (start, (size, name)) = self.0.range(..=at).next_back()?;
        (at - start < *size).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_an_address_holds_and_broken_ones_do_not() {
        let map = PerfMap::parse(
            b"1000 20 first\njunk\n1000 10 LazyCompile:~second /a b.js:1\n2000 zz no\n\
              0x3000 8 third\x1b[31m\n4000 10 cut o",
        );
        assert_eq!(map.name(0x1000), Some("LazyCompile:~second /a b.js:1"));
        assert_eq!(map.name(0x100f), Some("LazyCompile:~second /a b.js:1"));
        assert_eq!(map.name(0x1010), None, "not the one before it");
        assert_eq!(map.name(0x3001), Some("third?[31m"));
        assert_eq!((map.name(0x4000), map.name(0xfff)), (None, None));
    }
}
