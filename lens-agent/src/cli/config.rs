//! `lens config`: the settings that hold, and whether they make sense.

use std::path::PathBuf;

use super::{Outcome, Trouble, out::Out};
use crate::config::Settings;

/// Shows every setting as it holds: flags over environment over file over defaults. Keys and tokens
/// are named by where they are, never shown.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Option<ConfigCommand>,
    /// Settings [default: /etc/lens/lens.toml, if it exists]
    #[arg(long = "config", value_name = "FILE", env = "LENS_CONFIG")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Whether the settings make sense
    Check {
        /// Settings [default: /etc/lens/lens.toml, if it exists]
        #[arg(long, value_name = "FILE", env = "LENS_CONFIG")]
        config: Option<PathBuf>,
        #[command(flatten)]
        settings: Box<Settings>,
        /// JSON
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(super) fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        if let Some(ConfigCommand::Check {
            config,
            settings,
            json,
        }) = self.command
        {
            let below = Settings::from_file(config.as_deref())?;
            settings.over(below).resolve()?;
            if json {
                out.json(&serde_json::json!({ "valid": true }))?;
            } else {
                out.line("the settings make sense")?;
            }
            return Ok(Outcome::Fine);
        }
        let below = Settings::from_file(self.file.as_deref())?;
        let settings = self.settings.over(below).complete();
        if self.json {
            out.json(&settings)?;
        } else {
            let text = toml::to_string(&settings)
                .map_err(|why| Trouble::Nothing(format!("the settings cannot be shown: {why}")))?;
            out.line(text.trim_end())?;
        }
        Ok(Outcome::Fine)
    }
}
