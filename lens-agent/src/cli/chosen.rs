//! The settings that a command is given.

use std::path::PathBuf;

use crate::config::{ConfigError, Settings};

/// A file, and what goes over it.
#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// Settings [default: /etc/lens/lens.toml, if it exists]
    #[arg(long = "config", value_name = "FILE", env = "LENS_CONFIG")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Chosen {
    /// Flags over environment over file.
    pub(super) fn settings(self) -> Result<Settings, ConfigError> {
        let below = Settings::from_file(self.file.as_deref())?;
        Ok(self.settings.over(below))
    }
}
