//! What came of a guest, from what it said.

use crate::counts::{self, Counts};

/// What a guest has said, understood.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) counts: Counts,
    /// Lines that say what could not be tested there.
    pub(super) not_run: Vec<String>,
    /// Whether the kernel has come as far as its first program.
    booted: bool,
    /// Parts of probes that this kernel has nothing for, as `lens doctor` says it: `probe net.drops`.
    pub(super) lacking: Vec<String>,
    /// What `lens doctor` ended with: 0 where every probe loads and attaches, and none lacks a part.
    doctor: Option<i32>,
    /// What it found that is not as it should be.
    refused: Vec<String>,
    /// What the tests ended with.
    tests: Option<i32>,
    /// The last test that began.
    last: Option<String>,
}

impl Verdict {
    pub(super) fn parse(said: &str) -> Self {
        let mut verdict = Self::default();
        for line in said.lines().map(|line| line.trim_end_matches('\r')) {
            if let Some((test, _)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split_once(" ... "))
            {
                verdict.last = Some(test.to_owned());
            }
            // Behind the name of the test that says it.
            if let Some(at) = line.find("NOT RUN: ") {
                verdict.not_run.push(line[at..].to_owned());
            }
            if let Some(failed) = line.strip_prefix("FAILED  ")
                && verdict.doctor.is_none()
            {
                verdict.failed(failed);
            }
            if let Some(lacking) = line.strip_prefix("lacks   ")
                && verdict.doctor.is_none()
            {
                verdict.lacking.push(lacking.to_owned());
            }
            if let Some(counts) = counts::of_line(line) {
                verdict.counts = counts;
            }
            if let Some(mark) = line.strip_prefix("@ ") {
                verdict.mark(mark);
            }
        }
        verdict
    }

    /// Understands what `lens doctor` says of something that is not there.
    fn failed(&mut self, said: &str) {
        let (what, _) = said.split_once(':').unwrap_or((said, ""));
        let is_part = |probe: &str| probe.contains('.');
        let told = if what.strip_prefix("probe ").is_some_and(is_part) {
            &mut self.lacking
        } else {
            &mut self.refused
        };
        told.push(said.to_owned());
    }

    /// Understands a line of the guest's own, like `doctor 0 after 4.24 s`.
    fn mark(&mut self, mark: &str) {
        let mut words = mark.split(' ');
        match (words.next(), words.next()) {
            (Some("booted"), _) => self.booted = true,
            (Some("doctor"), Some(code)) => self.doctor = code.parse().ok(),
            (Some("tests"), Some(code)) => self.tests = code.parse().ok(),
            _ => {}
        }
    }

    /// What is not as it should be.
    pub(super) fn trouble(&self) -> Option<String> {
        if !self.booted {
            return Some("it does not boot".to_owned());
        }
        match self.doctor {
            None => return Some("it ended while `lens doctor` ran".to_owned()),
            Some(1) if self.refused.is_empty() && !self.lacking.is_empty() => {}
            Some(0) => {}
            Some(code) => {
                let refused = self.refused.join("; ");
                return Some(format!("`lens doctor` ended with {code}: {refused}"));
            }
        }
        match (self.tests, self.counts) {
            (None, _) => {
                let last = self.last.as_deref().unwrap_or("any test");
                Some(format!("it ended in the middle of {last}"))
            }
            (Some(0), Counts { passed: 0, .. }) => Some("it ran no test".to_owned()),
            (Some(0), _) => None,
            (Some(_), Counts { failed: 0, .. }) => Some("its tests were cut short".to_owned()),
            (Some(_), Counts { failed, .. }) => Some(format!("{failed} tests failed there")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTED: &str = "@ kernel 6.1.0-56-cloud-amd64\r\n@ booted after 1.58 s\r\n";
    const ATTACHED: &str =
        "ok      probe sched: attached: sched_switch\r\n@ doctor 0 after 3.5 s\r\n";
    const TESTS: &str = "running 2 tests\r\n\
        test sched::a ... NOT RUN: sched::a (no runqlat here)\r\nok\r\n\
        test sched::b ... ";

    fn trouble_of(said: &[&str]) -> Option<String> {
        Verdict::parse(&said.concat()).trouble()
    }

    #[test]
    fn a_guest_that_has_done_everything_is_fine() {
        let end = "ok\r\n\r\ntest result: ok. 2 passed; 0 failed; 0 ignored\r\n@ tests 0 after 9 s";
        let verdict = Verdict::parse(&[BOOTED, ATTACHED, TESTS, end].concat());
        assert_eq!(verdict.trouble(), None);
        let counts = Counts {
            passed: 2,
            failed: 0,
        };
        assert_eq!(verdict.counts, counts);
        assert_eq!(verdict.not_run, ["NOT RUN: sched::a (no runqlat here)"]);
    }

    #[test]
    fn a_kernel_that_lacks_a_part_is_no_trouble_but_one_that_refuses_a_probe_is() {
        let lacks = "FAILED  probe net.drops.received: no sock_recv_length: before 6.3\r\n";
        let refuses = "FAILED  probe net: the kernel refused object `net`\r\n";
        let rest =
            "@ doctor 1 after 3 s\r\ntest result: ok. 2 passed; 0 failed\r\n@ tests 0 after 9 s";
        let verdict = Verdict::parse(&[BOOTED, lacks, rest].concat());
        assert_eq!(verdict.trouble(), None);
        assert_eq!(verdict.lacking.len(), 1);
        let on_demand = "lacks   traces of the kernel's functions: no fentry\r\n";
        let fine =
            "@ doctor 0 after 3 s\r\ntest result: ok. 2 passed; 0 failed\r\n@ tests 0 after 9 s";
        let verdict = Verdict::parse(&[BOOTED, on_demand, fine].concat());
        assert_eq!((verdict.trouble(), verdict.lacking.len()), (None, 1));
        let trouble = trouble_of(&[BOOTED, lacks, refuses, rest]);
        assert!(trouble.is_some_and(|t| t.contains("refused object") && !t.contains("received")));
    }

    #[test]
    fn wherever_a_guest_ends_that_is_said() {
        let refused = "FAILED  probe sched: no\r\n@ doctor 1 after 3.5 s\r\n";
        let failed =
            "FAILED\r\n\r\ntest result: FAILED. 1 passed; 1 failed\r\n@ tests 101 after 9 s";
        let none = "test result: ok. 0 passed; 0 failed\r\n@ tests 0 after 9 s";
        for (said, trouble) in [
            (&[""][..], "it does not boot"),
            (&[BOOTED], "it ended while `lens doctor` ran"),
            (
                &[BOOTED, refused, TESTS],
                "`lens doctor` ended with 1: probe sched: no",
            ),
            (&[BOOTED, ATTACHED], "it ended in the middle of any test"),
            (
                &[BOOTED, ATTACHED, TESTS],
                "it ended in the middle of sched::b",
            ),
            (&[BOOTED, ATTACHED, TESTS, failed], "1 tests failed there"),
            (&[BOOTED, ATTACHED, none], "it ran no test"),
            (
                &[BOOTED, ATTACHED, "@ tests 127 after 4 s"],
                "its tests were cut short",
            ),
        ] {
            assert_eq!(trouble_of(said).as_deref(), Some(trouble));
        }
    }
}
