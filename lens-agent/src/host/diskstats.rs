//! `/proc/diskstats`: what block devices did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ReadError, Root};
use crate::base::text::clean;

/// Devices that are kept; what comes after is left out.
const MAX_DEVICES: usize = 512;
/// A sector here is always 512 bytes, whatever the device's (Documentation/admin-guide/iostats.rst).
const SECTOR: u64 = 512;

/// One block device or partition, since boot (Documentation/admin-guide/iostats.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Device number, major.
    pub major: u32,
    /// Device number, minor.
    pub minor: u32,
    /// Reads completed.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Time that reads took, added up, in milliseconds.
    pub read_ms: u64,
    /// Writes completed.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Time that writes took, added up, in milliseconds.
    pub write_ms: u64,
    /// Requests under way at this moment.
    pub in_flight: u64,
    /// Time in which any request was under way, in milliseconds.
    pub busy_ms: u64,
    /// Requests under way times time, in milliseconds.
    pub queue_ms: u64,
}

/// Reads it: devices by name, those left out that never did any I/O.
pub fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<BTreeMap<String, DiskStats>, ReadError> {
    let text = root.read("proc/diskstats", buffer)?;
    let mut disks = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.fields();
        let (major, minor) = (fields.number("major")?, fields.number("minor")?);
        let name = clean(fields.word("device")?);
        let disk = DiskStats {
            major,
            minor,
            reads: fields.number("reads")?,
            read_bytes: fields
                .skip(1)
                .number::<u64>("read sectors")?
                .saturating_mul(SECTOR),
            read_ms: fields.number("read time")?,
            writes: fields.number("writes")?,
            write_bytes: fields
                .skip(1)
                .number::<u64>("written sectors")?
                .saturating_mul(SECTOR),
            write_ms: fields.number("write time")?,
            in_flight: fields.number("in flight")?,
            busy_ms: fields.number("busy time")?,
            queue_ms: fields.number("queue time")?,
        };
        let used = disk.reads + disk.writes + disk.in_flight > 0;
        if used && disks.len() < MAX_DEVICES {
            disks.insert(name, disk);
        }
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    #[test]
    fn sectors_become_bytes_and_unused_devices_are_left_out() {
        let text = "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n \
            254       0 vda 10 1 80 30 20 2 160 40 1 50 70 0 0 0 0 0 0\n";
        let (_dir, root) = root_with(&[("proc/diskstats", text)]);
        let disks = read(&root, &mut Vec::new()).unwrap();
        assert_eq!(disks.keys().collect::<Vec<_>>(), ["vda"]);
        let vda = disks["vda"];
        assert_eq!(
            (vda.major, vda.reads, vda.read_bytes, vda.read_ms),
            (254, 10, 40_960, 30)
        );
        assert_eq!(
            (vda.writes, vda.write_bytes, vda.write_ms),
            (20, 81_920, 40)
        );
        assert_eq!((vda.in_flight, vda.busy_ms, vda.queue_ms), (1, 50, 70));
    }
}
