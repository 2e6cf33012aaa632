//! One step of a command: says what begins and how long it took, and names itself when it fails.

use std::{
    io::{BufRead as _, BufReader},
    iter,
    process::{Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Error, Result, anyhow};

#[derive(Debug)]
pub(crate) struct Step<'a> {
    what: &'a str,
    advice: Option<&'a str>,
}

impl<'a> Step<'a> {
    pub(crate) fn new(what: &'a str) -> Self {
        Self { what, advice: None }
    }

    /// What to do about a failure.
    pub(crate) fn advice(self, advice: &'a str) -> Self {
        Self {
            advice: Some(advice),
            ..self
        }
    }

    /// Runs a command whose output passes through.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        self.check(|| {
            let status = command.status().with_context(|| cannot_start(command))?;
            verdict(command, status)
        })
    }

    /// Runs a command whose standard output passes through and is also shown to `line`.
    pub(crate) fn watch(&self, command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
        self.check(|| {
            let mut child = command
                .stdout(Stdio::piped())
                .spawn()
                .with_context(|| cannot_start(command))?;
            let output = child.stdout.take().context("its output cannot be read")?;
            for bytes in BufReader::new(output).split(b'\n') {
                let text = String::from_utf8_lossy(&bytes?).into_owned();
                println!("{text}");
                line(&text);
            }
            verdict(command, child.wait()?)
        })
    }

    /// Runs a piece of this program.
    pub(crate) fn check<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("==> {}", self.what);
        let begin = now();
        let outcome = work().map_err(|why| self.failure(&why));
        let word = if outcome.is_ok() {
            "done in"
        } else {
            "FAILED after"
        };
        eprintln!(
            "==> {}: {word} {:.1} s",
            self.what,
            begin.elapsed().as_secs_f64()
        );
        outcome
    }

    fn failure(&self, why: &Error) -> Error {
        let advice = self
            .advice
            .map(|text| format!("\n{text}"))
            .unwrap_or_default();
        anyhow!("step \"{}\" failed: {why:#}{advice}", self.what)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the clock of lens-agent is not for its tools"
)]
fn now() -> Instant {
    Instant::now()
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

/// A word as the shell wants it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn cannot_start(command: &Command) -> String {
    format!(
        "{} cannot be started",
        command.get_program().to_string_lossy()
    )
}

fn verdict(command: &Command, status: ExitStatus) -> Result<()> {
    let command = line(command);
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(anyhow!("{command} exited with {code}")),
        None => Err(anyhow!("{command} was ended ({status})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_names_the_step_the_command_and_what_to_do() {
        let step = Step::new("install").advice("ask for more disk");
        let why = step.run(&mut shell("exit 100")).unwrap_err();
        assert_eq!(
            why.to_string(),
            "step \"install\" failed: sh -c 'exit 100' exited with 100\nask for more disk"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let why = Step::new("x")
            .run(&mut Command::new("no-such-program"))
            .unwrap_err();
        let start = "step \"x\" failed: no-such-program cannot be started: ";
        assert!(why.to_string().starts_with(start), "{why}");
    }

    #[test]
    fn output_is_watched_line_by_line_even_when_the_command_fails() {
        let mut seen = Vec::new();
        let outcome = Step::new("x").watch(&mut shell("echo one; printf two; exit 3"), |line| {
            seen.push(line.to_owned());
        });
        assert_eq!(seen, ["one", "two"]);
        assert!(outcome.unwrap_err().to_string().contains("exited with 3"));
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("--only"), "--only");
        assert_eq!(quoted("/shop/*"), "'/shop/*'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
