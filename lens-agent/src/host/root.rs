//! Where the kernel's files are, and what goes wrong with them.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::text::Text;

/// More than any of these files has; what is longer is cut.
const MAX_BYTES: u64 = 8 << 20;

/// The directory that has `proc` and `sys`: `/`, or a tree that a test has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// Kernel files are below `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The file at `path`, which may begin with `/`, below this root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads a whole file; `buffer` is reused.
    pub(super) fn read<'b>(
        &self,
        path: impl AsRef<Path>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Text<'b>, ReadError> {
        let path = self.path(path);
        buffer.clear();
        match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(buffer)) {
            Ok(_) => Ok(Text::new(path, buffer)),
            Err(source) => Err(ReadError::Io { path, source }),
        }
    }
}

impl Default for Root {
    /// The machine's own.
    fn default() -> Self {
        Self::new("/")
    }
}

/// A kernel file that cannot be read, or does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A field is not what it should be.
    #[error("{}:{line}: {field}: `{found}` is not {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The field's name.
        field: String,
        /// What should be there.
        expected: &'static str,
        /// What is there, cleaned.
        found: String,
    },
    /// A field is not there.
    #[error("{}: there is no {field}", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: &'static str,
    },
}

impl ReadError {
    /// Whether the file, or what it tells of, is not there (any more): a process that has ended, a
    /// cgroup that was removed, a controller that is not enabled.
    pub fn is_gone(&self) -> bool {
        // ENODEV: a file of a cgroup that was removed while it was open (kernfs_get_active).
        const GONE: [rustix::io::Errno; 3] = [
            rustix::io::Errno::NOENT,
            rustix::io::Errno::SRCH,
            rustix::io::Errno::NODEV,
        ];
        self.errno().is_some_and(|errno| GONE.contains(&errno))
    }

    /// Whether the kernel has this, but has it turned off (`psi=0` on its command line).
    pub fn is_off(&self) -> bool {
        self.errno() == Some(rustix::io::Errno::OPNOTSUPP)
    }

    fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Io { source, .. } => rustix::io::Errno::from_io_error(source),
            Self::Field { .. } | Self::Absent { .. } => None,
        }
    }
}

/// `None` for what is not there.
pub(super) fn unless_gone<T>(result: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}
