//! Histograms with a bucket for each power of two.

/// Bucket `i` counts values from `2^i` up to, not including, `2^(i+1)`; bucket 0 also 0, the last
/// everything above: 2^31 ns is two seconds.
pub const BUCKETS: usize = 32;

/// Counts by bucket.
pub type Hist = [u64; BUCKETS];

/// The bucket of `value`, always below [`BUCKETS`].
///
/// Without a loop and without a count-leading-zeros instruction, which the BPF machine lacks.
#[expect(
    clippy::inline_always,
    reason = "a call costs a BPF program more than the work"
)]
#[inline(always)]
#[must_use]
pub const fn bucket(value: u64) -> usize {
    let mut v = value;
    let mut r = 0;
    if v >= 1 << 32 {
        return BUCKETS - 1;
    }
    if v >= 1 << 16 {
        v >>= 16;
        r += 16;
    }
    if v >= 1 << 8 {
        v >>= 8;
        r += 8;
    }
    if v >= 1 << 4 {
        v >>= 4;
        r += 4;
    }
    if v >= 1 << 2 {
        v >>= 2;
        r += 2;
    }
    if v >= 1 << 1 {
        r += 1;
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_the_logarithm() {
        for value in [
            1_u64,
            2,
            3,
            4,
            7,
            8,
            1023,
            1024,
            1 << 20,
            (1 << 31) + 5,
            (1 << 32) - 1,
        ] {
            assert_eq!(bucket(value), value.ilog2() as usize, "{value}");
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(1 << 40), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
