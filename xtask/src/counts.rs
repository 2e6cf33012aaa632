//! How many tests passed and failed, as test programs say it.

use std::ops::AddAssign;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

/// What a line like `test result: FAILED. 3 passed; 1 failed; 0 ignored; …` counts.
pub(crate) fn of_line(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for number in numbers.split("; ") {
        match number.split_once(' ') {
            Some((n, "passed")) => counts.passed = n.parse().ok()?,
            Some((n, "failed")) => counts.failed = n.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_binaries_add_up() {
        let mut counts = Counts::default();
        for line in [
            "running 2 tests",
            "test a ... ok",
            "test result: ok. 21 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 1.50s",
            "  test result: ok. 100 passed; 0 failed",
        ] {
            counts += of_line(line).unwrap_or_default();
        }
        let sum = Counts {
            passed: 24,
            failed: 2,
        };
        assert_eq!(counts, sum);
    }
}
