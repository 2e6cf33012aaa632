//! `/proc/vmstat`: faults, reclaim and swap.

use serde::{Deserialize, Serialize};

use super::{ReadError, Root};

/// Of `/proc/vmstat` (mm/vmstat.c) what says that memory is short; events and pages since boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStat {
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_faults: Option<u64>,
    /// Pages allocated, over all zones.
    pub allocated_pages: Option<u64>,
    /// Pages looked at by the reclaiming kernel thread.
    pub scanned_by_kswapd: Option<u64>,
    /// Pages looked at by those who wanted memory themselves.
    pub scanned_directly: Option<u64>,
    /// Pages reclaimed by the reclaiming kernel thread.
    pub reclaimed_by_kswapd: Option<u64>,
    /// Pages reclaimed by those who wanted memory themselves.
    pub reclaimed_directly: Option<u64>,
    /// Allocations that had to reclaim first, over all zones.
    pub allocation_stalls: Option<u64>,
    /// Allocations that had to wait for compaction first.
    pub compaction_stalls: Option<u64>,
    /// Pages of the cache that were dropped and then missed.
    pub refaulted_file_pages: Option<u64>,
    /// Anonymous pages that were swapped out and then missed.
    pub refaulted_anon_pages: Option<u64>,
    /// Pages read from swap.
    pub swapped_in_pages: Option<u64>,
    /// Pages written to swap.
    pub swapped_out_pages: Option<u64>,
    /// Processes killed for want of memory, cgroup limits included (Linux 4.13).
    pub oom_kills: Option<u64>,
    /// Pages to be written to disk, at this moment.
    pub dirty_pages: Option<u64>,
    /// Pages being written to disk, at this moment.
    pub writeback_pages: Option<u64>,
}

/// Reads it.
pub fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<VmStat, ReadError> {
    let text = root.read("proc/vmstat", buffer)?;
    let mut vm = VmStat::default();
    text.each_pair(|key, n| {
        let field = match key {
            "pgfault" => &mut vm.page_faults,
            "pgmajfault" => &mut vm.major_faults,
            "pgscan_kswapd" => &mut vm.scanned_by_kswapd,
            "pgscan_direct" => &mut vm.scanned_directly,
            "pgsteal_kswapd" => &mut vm.reclaimed_by_kswapd,
            "pgsteal_direct" => &mut vm.reclaimed_directly,
            "compact_stall" => &mut vm.compaction_stalls,
            "workingset_refault_file" => &mut vm.refaulted_file_pages,
            "workingset_refault_anon" => &mut vm.refaulted_anon_pages,
            "pswpin" => &mut vm.swapped_in_pages,
            "pswpout" => &mut vm.swapped_out_pages,
            "oom_kill" => &mut vm.oom_kills,
            "nr_dirty" => &mut vm.dirty_pages,
            "nr_writeback" => &mut vm.writeback_pages,
            // One for each zone.
            _ if key.starts_with("allocstall") => &mut vm.allocation_stalls,
            _ if key.starts_with("pgalloc_") => &mut vm.allocated_pages,
            _ => return,
        };
        *field = Some(field.unwrap_or_default().saturating_add(n));
    })?;
    Ok(vm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    #[test]
    fn zones_add_up() {
        let text = "nr_dirty 63\nallocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\n\
            pgscan_direct 7\npgscan_direct_throttle 9\npgalloc_dma 2\npgalloc_normal 40\n";
        let (_dir, root) = root_with(&[("proc/vmstat", text)]);
        let vm = read(&root, &mut Vec::new()).unwrap();
        assert_eq!(vm.allocation_stalls, Some(321));
        assert_eq!((vm.dirty_pages, vm.scanned_directly), (Some(63), Some(7)));
        assert_eq!(vm.allocated_pages, Some(42));
        assert_eq!(vm.oom_kills, None);
    }
}
