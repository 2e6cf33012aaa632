//! What a breakpoint costs on this machine: the kernel's run-time statistics count the program
//! behind it, not the trap.
//!
//! A function of this process is called with and without the breakpoint, as often as makes a median.
//! Its code and the programs' are in the caches then: what is hit rarely costs more.

#![expect(
    unsafe_code,
    reason = "functions in assembler, whose instructions are known"
)]

use std::{
    arch::global_asm,
    fs,
    path::{Path, PathBuf},
};

use super::{object::ObjectError, prologue::Stepping};
use crate::base::clock::{Clock as _, SystemClock};

global_asm!(
    ".globl lens_trap_push, lens_trap_nop, lens_trap_lea",
    ".type lens_trap_push, @function",
    "lens_trap_push: push rbp",
    "mov rax, rdi",
    "pop rbp",
    "ret",
    ".size lens_trap_push, . - lens_trap_push",
    ".type lens_trap_nop, @function",
    "lens_trap_nop: .byte 0x0f, 0x1f, 0x44, 0, 0",
    "ret",
    ".size lens_trap_nop, . - lens_trap_nop",
    ".type lens_trap_lea, @function",
    "lens_trap_lea: lea rax, [rdi + 1]",
    "ret",
    ".size lens_trap_lea, . - lens_trap_lea",
);

unsafe extern "C" {
    fn lens_trap_push(n: u64) -> u64;
    fn lens_trap_nop(n: u64) -> u64;
    fn lens_trap_lea(n: u64) -> u64;
}

type Function = unsafe extern "C" fn(u64) -> u64;

/// Times are taken this often, and the middle one holds: a thread may lose its CPU in between.
const BATCHES: usize = 15;

/// What a hit costs, in nanoseconds: of a breakpoint on an instruction that is done like this, with
/// the programs that `attach` puts at an offset of a file for as long as what it returns lives.
/// `None` where this process does not find its own code.
pub(super) fn hit_ns<L>(
    stepping: Stepping,
    attach: impl FnOnce(&Path, u64) -> Result<L, ObjectError>,
) -> Result<Option<u64>, ObjectError> {
    let (function, calls): (Function, u32) = match stepping {
        Stepping::Emulated => (lens_trap_push, 200),
        Stepping::EmulatedLately => (lens_trap_nop, 50),
        Stepping::Single => (lens_trap_lea, 20),
    };
    let Some((file, offset)) = of_this_process(function as usize as u64) else {
        return Ok(None);
    };
    let without = call_ns(function, calls);
    let attached = attach(&file, offset)?;
    let with = call_ns(function, calls);
    drop(attached);
    Ok(Some(with.saturating_sub(without).max(1)))
}

/// What a call takes.
fn call_ns(function: Function, calls: u32) -> u64 {
    let mut batches = [0; BATCHES];
    for batch in &mut batches {
        let start = SystemClock.now();
        for _ in 0..calls {
            // SAFETY: it takes a number, gives one, and leaves the rest as it was.
            std::hint::black_box(unsafe { function(1) });
        }
        let ns = SystemClock.now().since(&start).as_nanos() / u128::from(calls);
        *batch = u64::try_from(ns).unwrap_or(u64::MAX);
    }
    batches.sort_unstable();
    batches[BATCHES / 2]
}

/// The file that the code at `at` of this process is from, and where in it.
fn of_this_process(at: u64) -> Option<(PathBuf, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let offset = maps.lines().find_map(|line| offset_in(line, at))?;
    Some((PathBuf::from("/proc/self/exe"), offset))
}

/// Where in its file `at` is, if this line of `/proc/PID/maps` is about it.
fn offset_in(line: &str, at: u64) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |word: &str| u64::from_str_radix(word, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let offset = number(words.nth(1)?)?;
    (start..end).contains(&at).then(|| at - start + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_finds_its_own_code() {
        for function in [
            lens_trap_push as Function,
            lens_trap_nop as Function,
            lens_trap_lea as Function,
        ] {
            let (file, offset) = of_this_process(function as usize as u64).unwrap();
            let bytes = fs::read(file).unwrap();
            let from = usize::try_from(offset).unwrap();
            let code = &bytes[from..from + 4];
            let known: [&[u8]; 3] = [
                &[0x55, 0x48, 0x89, 0xf8],
                &[0x0f, 0x1f, 0x44, 0],
                &[0x48, 0x8d, 0x47, 1],
            ];
            assert!(known.iter().any(|k| code.starts_with(k)), "{code:x?}");
        }
        let line = "1000-2000 r-xp 00000500 08:01 77 /x";
        assert_eq!(offset_in(line, 0x1010), Some(0x510));
        assert_eq!(offset_in(line, 0x2000), None);
    }
}
