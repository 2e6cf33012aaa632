//! Plain arrays with one block a CPU, which the agent maps into its memory.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;

/// `BPF_F_MMAPABLE`.
pub const MAPPED: u32 = 1 << 10;

/// The number of the CPU that runs the program.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: takes nothing, and always succeeds.
    unsafe { bpf_get_smp_processor_id() }
}

/// Where entry `i` of this CPU's block of `block` entries lies.
#[inline(always)]
pub fn index(block: u32, i: u32) -> u32 {
    cpu() * block + i
}
