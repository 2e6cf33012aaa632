//! `/proc/meminfo`: where the memory is.

use serde::{Deserialize, Serialize};

use super::{ReadError, Root};

/// `/proc/meminfo`, in bytes (Documentation/filesystems/proc.rst, "meminfo").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemInfo {
    /// What the kernel can hand out.
    pub total_bytes: u64,
    /// Used for nothing.
    pub free_bytes: u64,
    /// What a new program could get without swapping, as the kernel estimates it.
    pub available_bytes: u64,
    /// Block device buffers.
    pub buffers_bytes: Option<u64>,
    /// Page cache, shared memory included.
    pub cached_bytes: Option<u64>,
    /// Anonymous pages.
    pub anon_bytes: Option<u64>,
    /// Files mapped by processes.
    pub mapped_bytes: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem_bytes: Option<u64>,
    /// To be written to disk.
    pub dirty_bytes: Option<u64>,
    /// Being written to disk.
    pub writeback_bytes: Option<u64>,
    /// Kernel objects that can be given up under pressure.
    pub slab_reclaimable_bytes: Option<u64>,
    /// Kernel objects that cannot.
    pub slab_unreclaimable_bytes: Option<u64>,
    /// Stacks of kernel threads and system calls.
    pub kernel_stack_bytes: Option<u64>,
    /// Page tables.
    pub page_tables_bytes: Option<u64>,
    /// Swap space.
    pub swap_total_bytes: Option<u64>,
    /// Swap space in no use.
    pub swap_free_bytes: Option<u64>,
    /// What may be promised, where overcommit is forbidden.
    pub commit_limit_bytes: Option<u64>,
    /// What has been promised.
    pub committed_bytes: Option<u64>,
}

/// Reads it.
pub fn read(root: &Root, buffer: &mut Vec<u8>) -> Result<MemInfo, ReadError> {
    let text = root.read("proc/meminfo", buffer)?;
    let mut memory = MemInfo::default();
    let (mut total, mut free, mut available) = (None, None, None);
    text.each_pair(|key, kib| {
        let field = match key {
            "MemTotal" => &mut total,
            "MemFree" => &mut free,
            "MemAvailable" => &mut available,
            "Buffers" => &mut memory.buffers_bytes,
            "Cached" => &mut memory.cached_bytes,
            "AnonPages" => &mut memory.anon_bytes,
            "Mapped" => &mut memory.mapped_bytes,
            "Shmem" => &mut memory.shmem_bytes,
            "Dirty" => &mut memory.dirty_bytes,
            "Writeback" => &mut memory.writeback_bytes,
            "SReclaimable" => &mut memory.slab_reclaimable_bytes,
            "SUnreclaim" => &mut memory.slab_unreclaimable_bytes,
            "KernelStack" => &mut memory.kernel_stack_bytes,
            "PageTables" => &mut memory.page_tables_bytes,
            "SwapTotal" => &mut memory.swap_total_bytes,
            "SwapFree" => &mut memory.swap_free_bytes,
            "CommitLimit" => &mut memory.commit_limit_bytes,
            "Committed_AS" => &mut memory.committed_bytes,
            _ => return,
        };
        // "kB" in the file means KiB.
        *field = Some(kib.saturating_mul(1024));
    })?;
    memory.total_bytes = text.required("MemTotal", total)?;
    memory.free_bytes = text.required("MemFree", free)?;
    memory.available_bytes = text.required("MemAvailable", available)?;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::text::tests::root_with;

    #[test]
    fn kib_become_bytes_and_absent_stays_absent() {
        let text = "MemTotal:  100 kB\nMemFree: 10 kB\nMemAvailable:  50 kB\nDirty: 0 kB\n\
            HugePages_Total:       0\n";
        let (_dir, root) = root_with(&[("proc/meminfo", text)]);
        let memory = read(&root, &mut Vec::new()).unwrap();
        assert_eq!(memory.total_bytes, 102_400);
        assert_eq!(
            (memory.dirty_bytes, memory.swap_free_bytes),
            (Some(0), None)
        );
    }

    #[test]
    fn an_error_names_line_and_field() {
        let (_dir, root) = root_with(&[("proc/meminfo", "MemTotal: 1 kB\nMemFree: -3 kB\n")]);
        let error = read(&root, &mut Vec::new()).unwrap_err().to_string();
        assert!(
            error.ends_with("meminfo:2: MemFree: `-3` is not a number"),
            "{error}"
        );
    }
}
