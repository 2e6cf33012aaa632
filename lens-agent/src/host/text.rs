//! The text of a kernel file, taken apart line by line, so that an error can say where it is.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    str::{FromStr, SplitAsciiWhitespace},
};

use super::ReadError;
use crate::base::text::clean;

/// A file's text. What is no UTF-8 in it is replaced.
#[derive(Debug)]
pub(super) struct Text<'b> {
    path: PathBuf,
    text: Cow<'b, str>,
}

impl<'b> Text<'b> {
    pub(super) fn new(path: PathBuf, bytes: &'b [u8]) -> Self {
        Self {
            path,
            text: String::from_utf8_lossy(bytes),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.text.lines().zip(1..).map(|(text, number)| Line {
            path: &self.path,
            number,
            text,
        })
    }

    /// The first line, or an empty one.
    pub(super) fn first_line(&self) -> Line<'_> {
        Line {
            path: &self.path,
            number: 1,
            text: self.text.lines().next().unwrap_or_default(),
        }
    }

    /// The whole text as one line: a name in it may contain line breaks.
    pub(super) fn as_line(&self) -> Line<'_> {
        Line {
            path: &self.path,
            number: 1,
            text: &self.text,
        }
    }

    /// Calls `take` for each line that has the form `key number` or `key: number unit`.
    pub(super) fn each_pair(&self, mut take: impl FnMut(&str, u64)) -> Result<(), ReadError> {
        for line in self.lines() {
            let mut fields = line.fields();
            let Ok(key) = fields.word("key") else {
                continue;
            };
            let key = key.trim_end_matches(':');
            take(key, fields.number(key)?);
        }
        Ok(())
    }

    /// A field that has to be there, and whether it was.
    pub(super) fn required<T>(
        &self,
        field: &'static str,
        value: Option<T>,
    ) -> Result<T, ReadError> {
        value.ok_or_else(|| ReadError::Absent {
            path: self.path.clone(),
            field,
        })
    }

    /// The one number that the file consists of.
    pub(super) fn number(&self, field: &str) -> Result<u64, ReadError> {
        self.first_line().fields().number(field)
    }

    /// The one number that the file consists of; `None` for `max`.
    pub(super) fn limit(&self, field: &str) -> Result<Option<u64>, ReadError> {
        self.first_line().fields().limit(field)
    }
}

/// One line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'t> {
    path: &'t Path,
    number: usize,
    pub(super) text: &'t str,
}

impl<'t> Line<'t> {
    pub(super) fn fields(self) -> Fields<'t> {
        Fields {
            line: self,
            rest: self.text.split_ascii_whitespace(),
        }
    }

    /// The same line from byte `start` on.
    pub(super) fn from(self, start: usize) -> Self {
        Self {
            text: self.text.get(start..).unwrap_or_default(),
            ..self
        }
    }

    pub(super) fn error(self, field: &str, expected: &'static str, found: &str) -> ReadError {
        ReadError::Field {
            path: self.path.to_owned(),
            line: self.number,
            field: field.to_owned(),
            expected,
            found: clean(found),
        }
    }
}

/// The words of a line, one after the other.
#[derive(Debug)]
pub(super) struct Fields<'t> {
    line: Line<'t>,
    rest: SplitAsciiWhitespace<'t>,
}

impl<'t> Fields<'t> {
    pub(super) fn word(&mut self, field: &str) -> Result<&'t str, ReadError> {
        self.rest
            .next()
            .ok_or_else(|| self.line.error(field, "there", self.line.text))
    }

    pub(super) fn number<T: FromStr>(&mut self, field: &str) -> Result<T, ReadError> {
        let word = self.word(field)?;
        word.parse()
            .map_err(|_| self.line.error(field, "a number", word))
    }

    /// The number in `field=number`.
    pub(super) fn assigned<T: FromStr>(&mut self, field: &str) -> Result<T, ReadError> {
        let word = self.word(field)?;
        word.strip_prefix(field)
            .and_then(|rest| rest.strip_prefix('='))
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| self.line.error(field, "a number", word))
    }

    /// A number, or `None` for `max`.
    pub(super) fn limit(&mut self, field: &str) -> Result<Option<u64>, ReadError> {
        match self.word(field)? {
            "max" => Ok(None),
            word => word
                .parse()
                .map(Some)
                .map_err(|_| self.line.error(field, "a number or `max`", word)),
        }
    }

    pub(super) fn skip(&mut self, words: usize) -> &mut Self {
        for _ in 0..words {
            self.rest.next();
        }
        self
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use crate::host::Root;

    /// A tree that has these files, with their directories.
    pub(in crate::host) fn root_with(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), files);
        let root = Root::new(dir.path());
        (dir, root)
    }

    pub(in crate::host) fn write(dir: &std::path::Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
}
