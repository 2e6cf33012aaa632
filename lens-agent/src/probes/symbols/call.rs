//! Whether an address can be one to which a function returns.
//!
//! Code without frame pointers uses their register for something else; who follows it then finds
//! numbers that were never return addresses. Nearly none of them lies behind a call.

/// The longest call: prefix-free, through memory with index and a long displacement.
pub(super) const LONGEST: usize = 7;
/// What the kernel has a signal's handler return to: `mov $__NR_rt_sigreturn, %rax; syscall`.
pub(super) const RESTORER: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// Whether `before`, the bytes in front of an address, end with a call of x86-64.
pub(super) fn ends_with_call(before: &[u8]) -> bool {
    let at = |back: usize| before.len().checked_sub(back).map(|i| before[i]);
    // `call rel32`
    if at(5) == Some(0xe8) {
        return true;
    }
    // `call r/m64` is ff /2; what follows says how long it is.
    let through = |back: usize| (at(back) == Some(0xff)).then(|| at(back - 1)).flatten();
    (2..=LONGEST).any(|back| {
        through(back).is_some_and(|modrm| {
            let (mode, rm) = (modrm >> 6, modrm & 7);
            if modrm >> 3 & 7 != 2 {
                return false;
            }
            let has_index = mode != 3 && rm == 4;
            let long = match mode {
                0 if rm == 5 => 4,
                0 if has_index && back >= 3 && at(back - 2).is_some_and(|sib| sib & 7 == 5) => 4,
                1 => 1,
                2 => 4,
                _ => 0,
            };
            back == 2 + usize::from(has_index) + long
        })
    })
}

/// Whether it is by the call that ends `before`, with `behind` following it, that the C library of GNU
/// begins a thread, or a program: its own functions that do it have no names where symbols have been
/// taken away. A thread's function is called through `pthread.start_routine`, at 0x600 to 0x6ff;
/// what `main` returns is given to `exit`.
pub(super) fn begins(before: &[u8], behind: &[u8]) -> bool {
    let through = before.last_chunk::<6>();
    let thread = through.is_some_and(|[call, modrm, _, page, high @ ..]| {
        *high == [0, 0]
            && *call == 0xff
            && (0x90..0x98).contains(modrm)
            && *modrm != 0x94
            && *page == 6
    });
    // `call *%reg; mov %eax, %edi; call exit`
    let program = behind.starts_with(&[0x89, 0xc7, 0xe8])
        && before
            .last_chunk::<2>()
            .is_some_and(|[call, modrm]| *call == 0xff && modrm & 0xf8 == 0xd0);
    thread || program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_every_length_are_known() {
        let calls: [&[u8]; 12] = [
            &[0xe8, 1, 2, 3, 4],
            // call *%rax, *%r11
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd3],
            // call *(%rbx), *(%rsp), *(%rax,%rcx,8)
            &[0xff, 0x13],
            &[0xff, 0x14, 0x24],
            &[0xff, 0x14, 0xc8],
            // call *8(%rax), *8(%rsp)
            &[0xff, 0x50, 8],
            &[0xff, 0x54, 0x24, 8],
            // call *0x640(%rbx), *0x640(%rsp), *0x640(%rip), *%fs:0x640
            &[0xff, 0x93, 0x40, 6, 0, 0],
            &[0xff, 0x94, 0x24, 0x40, 6, 0, 0],
            &[0xff, 0x15, 0x40, 6, 0, 0],
            &[0x64, 0xff, 0x14, 0x25, 0x40, 6, 0, 0],
        ];
        for call in calls {
            let before = [&[0x90; LONGEST][..], call].concat();
            assert!(ends_with_call(&before), "{call:x?}");
            assert!(ends_with_call(call), "{call:x?}");
        }
    }

    #[test]
    fn how_threads_and_programs_begin_is_known() {
        // call *0x638(%rbx)
        assert!(begins(&[0xff, 0x93, 0x38, 6, 0, 0], &[0x64]));
        assert!(!begins(&[0xff, 0x93, 0x38, 7, 0, 0], &[0x64]));
        // call *%rax; mov %eax, %edi; call
        assert!(begins(&[0xff, 0xd0], &[0x89, 0xc7, 0xe8, 0]));
        assert!(!begins(&[0xff, 0xd0], &[0x85, 0xc0]));
        assert!(!begins(&[], &[]));
    }

    #[test]
    fn what_is_no_call_is_none() {
        let others: [&[u8]; 7] = [
            // jmp *%rax, push (%rax), inc %eax
            &[0xff, 0xe0],
            &[0xff, 0x30],
            &[0xff, 0xc0],
            // jmp rel32, ret
            &[0xe9, 1, 2, 3, 4],
            &[0xc3],
            // a call that is cut off
            &[0xff, 0x50],
            &[],
        ];
        for other in others {
            let before = [&[0x90; LONGEST][..], other].concat();
            assert!(!ends_with_call(&before), "{other:x?}");
        }
    }
}
