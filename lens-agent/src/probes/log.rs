//! What the kernel programs say of themselves, when they are asked to: through aya-log, and by the
//! variants of the objects that are built for it. The others hold no instruction and no map of it.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use serde::{Deserialize, Serialize};

/// How much they say.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What must not happen.
    Error,
    /// What is lost.
    Warn,
    /// What is worth knowing.
    Info,
    /// What they are told.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As the programs compare it.
    fn number(self) -> u8 {
        let level = match self {
            Self::Error => aya_log::Level::Error,
            Self::Warn => aya_log::Level::Warn,
            Self::Info => aya_log::Level::Info,
            Self::Debug => aya_log::Level::Debug,
            Self::Trace => aya_log::Level::Trace,
        };
        level as u8
    }
}

impl From<log::Level> for LogLevel {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => Self::Error,
            log::Level::Warn => Self::Warn,
            log::Level::Info => Self::Info,
            log::Level::Debug => Self::Debug,
            log::Level::Trace => Self::Trace,
        }
    }
}

/// One thing said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// By which object.
    pub object: &'static str,
    /// How bad it is.
    pub level: LogLevel,
    /// What.
    pub text: String,
}

/// Lines kept between two readings; of what comes beyond, nothing is kept.
const KEPT: usize = 256;

/// Where the lines of all objects come together.
#[derive(Clone)]
pub(super) struct KernelLog {
    level: LogLevel,
    readers: Arc<Mutex<Vec<EbpfLogger<Lines>>>>,
    lines: Arc<Mutex<Vec<LogLine>>>,
}

impl fmt::Debug for KernelLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelLog")
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KernelLog {
    pub(super) fn new(level: LogLevel) -> Self {
        Self {
            level,
            readers: Arc::default(),
            lines: Arc::default(),
        }
    }

    /// The constant that an object is loaded with.
    pub(super) fn constant(&self) -> (&'static str, u8) {
        (aya_log::LEVEL, self.level.number())
    }

    /// Listens to an object that was loaded.
    pub(super) fn listen(&self, object: &'static str, to: &mut Ebpf) -> Result<(), String> {
        let lines = Lines {
            object,
            lines: self.lines.clone(),
        };
        let reader = EbpfLogger::init_with_logger(to, lines).map_err(|why| why.to_string())?;
        lock(&self.readers).push(reader);
        Ok(())
    }

    /// What was said since the last call.
    pub(super) fn take(&self) -> Vec<LogLine> {
        for reader in lock(&self.readers).iter_mut() {
            reader.flush();
        }
        mem::take(&mut *lock(&self.lines))
    }
}

/// Takes the lines of one object.
struct Lines {
    object: &'static str,
    lines: Arc<Mutex<Vec<LogLine>>>,
}

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = lock(&self.lines);
        if lines.len() < KEPT {
            lines.push(LogLine {
                object: self.object,
                level: record.level().into(),
                text: record.args().to_string(),
            });
        }
    }

    fn flush(&self) {}
}
