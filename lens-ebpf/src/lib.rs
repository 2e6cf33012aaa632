//! The kernel side of lens. One binary in `src/bin` is one object; what several share is here.
//!
//! Rules that hold for all of it:
//! - Fields of kernel structures are read at offsets that the agent takes from the kernel's own
//!   BTF and hands over in frozen `.rodata` ([`field`]): the verifier sees constants, so these are
//!   plain typed loads, and the same object fits every kernel.
//! - Who is watched is decided here ([`target`]), before anything is counted.
//! - Every table is bounded, and what finds no room is counted ([`loss`]).
//! - Counters lie in one block a CPU ([`per_cpu`]); no program writes another CPU's block.
#![no_std]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::cast_sign_loss,
    clippy::inline_always,
    reason = "the machine has 64-bit words and no calls worth their price; arguments are what the kernel gives"
)]
#![expect(unsafe_code, reason = "kernel memory, behind the verifier")]

pub mod atomic;
pub mod clock;
pub mod countdown;
pub mod field;
pub mod flat;
pub mod lengths;
#[cfg(feature = "log")]
pub mod log;
pub mod loss;
pub mod near;
pub mod per_cpu;
pub mod places;
pub mod resident;
pub mod sample;
pub mod stacks;
pub mod target;
pub mod task;
pub mod traps;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The verifier lets only programs under the GPL call most helpers; lens-ebpf may be used under it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
