//! `lens config`: the settings that hold, and whether they make sense.

use super::{Outcome, Trouble, chosen::Chosen, out::Out};

/// Shows every setting as it holds: flags over environment over file over defaults. Keys and tokens
/// are named by where they are, never shown.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Config {
    #[command(subcommand)]
    command: Option<ConfigCommand>,
    #[command(flatten)]
    chosen: Chosen,
    /// JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Whether the settings make sense
    Check {
        #[command(flatten)]
        chosen: Box<Chosen>,
        /// JSON
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(super) fn run(self, out: &mut Out) -> Result<Outcome, Trouble> {
        if let Some(ConfigCommand::Check { chosen, json }) = self.command {
            chosen.settings()?.resolve()?;
            if json {
                out.json(&serde_json::json!({ "valid": true }))?;
            } else {
                out.line("the settings make sense")?;
            }
            return Ok(Outcome::Fine);
        }
        let settings = self.chosen.settings()?.complete();
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
