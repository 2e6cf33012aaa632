//! Arithmetic without branches.
//!
//! The verifier walks every path: in a loop, each branch that leaves different values behind
//! multiplies the work, until it gives up. LLVM likes to turn sign tricks back into branches, so
//! the sign passes through an assembler statement that it cannot see into. (An
//! empty one would leave a line of debug information without an instruction, which the kernel
//! refuses.)

#[cfg(target_arch = "bpf")]
use core::arch::asm;

/// `value`, or 0 if it is negative.
#[inline(always)]
pub fn positive(value: u64) -> u64 {
    #[cfg_attr(
        not(target_arch = "bpf"),
        expect(unused_mut, reason = "changed by the assembler")
    )]
    let mut sign = ((value as i64) >> 63) as u64;
    #[cfg(target_arch = "bpf")]
    // SAFETY: a register is moved onto itself.
    unsafe {
        asm!("{0} = {0}", inout(reg) sign, options(pure, nomem, nostack, preserves_flags));
    }
    value & !sign
}

/// The smaller of two numbers that are less than 2^63 apart.
#[inline(always)]
pub fn min(a: u64, b: u64) -> u64 {
    a.wrapping_sub(positive(a.wrapping_sub(b)))
}

/// The greater of two numbers that are less than 2^63 apart.
#[inline(always)]
pub fn max(a: u64, b: u64) -> u64 {
    b.wrapping_add(positive(a.wrapping_sub(b)))
}

/// `value & MASK`, also where the compiler knows that it changes nothing: the verifier may not.
#[inline(always)]
pub fn masked<const MASK: u32>(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: changes one register.
        unsafe {
            asm!("{0} &= {1}", inout(reg) value, const MASK, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value & u64::from(MASK)
    }
}
