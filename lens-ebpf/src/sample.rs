//! One event in so many counts, for as many, while the agent says so: when counting costs more than
//! it may. Nothing is looked at of the others.

use core::ptr::read_volatile;

use aya_ebpf::{macros::map, maps::Array};
use lens_common::sample::Sample;

use crate::{countdown::is_due, per_cpu};

#[map]
static SAMPLING: Array<Sample> = Array::with_max_entries(1, per_cpu::MAPPED);

/// One in so many, as the agent has set it; 0 if it has not.
#[inline(always)]
pub fn one_in() -> u64 {
    match SAMPLING.get_ptr(per_cpu::cpu()) {
        // SAFETY: this CPU's place, which the agent writes as a whole word.
        Some(sample) => unsafe { read_volatile(&raw const (*sample).one_in) },
        None => 0,
    }
}

/// For how many events this one stands; 0 if it is left out.
#[inline(always)]
pub fn weight() -> u64 {
    let Some(sample) = SAMPLING.get_ptr_mut(per_cpu::cpu()) else {
        return 1;
    };
    // SAFETY: this CPU's place, which the agent writes as whole words.
    unsafe {
        let one_in = read_volatile(&raw const (*sample).one_in);
        if one_in <= 1 {
            1
        } else if is_due(&raw mut (*sample).left, one_in as u32) {
            one_in
        } else {
            0
        }
    }
}
