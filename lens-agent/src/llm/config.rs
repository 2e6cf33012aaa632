//! `[[provider]]`: who serves a model. None is configured by default, and then nothing leaves.

use std::{collections::BTreeSet, env, path::PathBuf, time::Duration};

use genai::adapter::AdapterKind;
use reqwest::Url;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Stands for the key of a server that wants none: some wire formats cannot leave it out.
const NO_KEY: &str = "none";

/// One provider. Several are asked in the order in which they stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// A name for it, unique.
    pub name: String,
    /// Its wire format.
    pub kind: Kind,
    /// Where its API begins, version included: `https://llm.internal/v1/`. Known for each kind but
    /// `openai-compatible`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The model, as the provider names it. With `anthropic` and `gemini` an ending such as
    /// `-high` is no part of the name: it sets the reasoning effort.
    pub model: String,
    /// The environment variable that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The file that holds the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// How tools are offered: `schema` for small and local models.
    #[serde(default)]
    pub tool_mode: ToolMode,
    /// The longest answer, in tokens, reasoning included.
    #[serde(default = "default_max_output_tokens")]
    pub max_output_tokens: u32,
    /// The time for one attempt, such as `60s`.
    #[serde(
        default = "default_timeout",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required"
    )]
    pub timeout: Duration,
    /// US dollars for a million tokens that the model reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_million_input: Option<f64>,
    /// US dollars for a million tokens that it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_million_output: Option<f64>,
    /// US dollars for a million tokens that the provider has in its cache; as for input, if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_million_cached: Option<f64>,
}

/// A wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `OpenAI`'s chat completions.
    Openai,
    /// `OpenAI`'s responses.
    OpenaiResponses,
    /// Anthropic's messages.
    Anthropic,
    /// Google's Gemini.
    Gemini,
    /// Ollama, by its `/v1/`: its own format ignores JSON schemas.
    Ollama,
    /// `OpenRouter`.
    Openrouter,
    /// Whatever speaks `OpenAI`'s chat completions: llama.cpp, vLLM, Azure's v1 surface...
    OpenaiCompatible,
}

/// How tools are offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolMode {
    /// By the provider's own tool calls.
    #[default]
    Native,
    /// As one JSON schema that every answer has to follow.
    Schema,
}

/// A configuration that cannot work, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A setting is wrong.
    #[error("provider `{provider}`: {why}")]
    Provider {
        /// The provider's name.
        provider: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The HTTP client cannot be made.
    #[error(
        "no HTTPS connection is possible: the system's CA certificates cannot be used; install \
         them (Debian: ca-certificates), or mount them at /etc/ssl/certs, or name their file in \
         SSL_CERT_FILE"
    )]
    Certificates(#[source] reqwest::Error),
    /// The client for the wire formats cannot be made.
    #[error("the client for model providers cannot be made: {0}")]
    Client(String),
}

impl Kind {
    pub(super) fn adapter(self) -> AdapterKind {
        match self {
            Self::Openai | Self::Ollama | Self::OpenaiCompatible => AdapterKind::OpenAI,
            Self::OpenaiResponses => AdapterKind::OpenAIResp,
            Self::Anthropic => AdapterKind::Anthropic,
            Self::Gemini => AdapterKind::Gemini,
            Self::Openrouter => AdapterKind::OpenRouter,
        }
    }

    fn default_url(self) -> Option<&'static str> {
        match self {
            Self::Openai | Self::OpenaiResponses => Some("https://api.openai.com/v1/"),
            Self::Anthropic => Some("https://api.anthropic.com/v1/"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com/v1beta/"),
            Self::Ollama => Some("http://127.0.0.1:11434/v1/"),
            Self::Openrouter => Some("https://openrouter.ai/api/v1/"),
            Self::OpenaiCompatible => None,
        }
    }

    /// The variable in which people usually have the key; `None` where a key isn't needed.
    fn usual_key(self) -> Option<&'static str> {
        match self {
            Self::Openai | Self::OpenaiResponses => Some("OPENAI_API_KEY"),
            Self::Anthropic => Some("ANTHROPIC_API_KEY"),
            Self::Gemini => Some("GEMINI_API_KEY"),
            Self::Openrouter => Some("OPENROUTER_API_KEY"),
            Self::Ollama | Self::OpenaiCompatible => None,
        }
    }
}

impl ProviderConfig {
    /// Checks what can be checked without the key and without the network.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.name.trim().is_empty() {
            return Err(self.wrong("`name` is empty; give it one, such as \"main\""));
        }
        if self.model.trim().is_empty() {
            return Err(self.wrong("`model` is empty; name one that the provider serves"));
        }
        if self.max_output_tokens == 0 {
            return Err(self.wrong("`max_output_tokens` is 0; 4096 is a good value"));
        }
        if self.timeout.is_zero() {
            return Err(self.wrong("`timeout` is 0; \"60s\" is a good value"));
        }
        let prices = [
            self.usd_per_million_input,
            self.usd_per_million_output,
            self.usd_per_million_cached,
        ];
        if prices
            .iter()
            .flatten()
            .any(|usd| !usd.is_finite() || *usd < 0.0)
        {
            return Err(self.wrong("a price is negative or no number"));
        }
        if self.usd_per_million_input.is_some() != self.usd_per_million_output.is_some() {
            return Err(self.wrong(
                "set both `usd_per_million_input` and `usd_per_million_output`, or neither",
            ));
        }
        match (&self.api_key_env, &self.api_key_file, self.kind.usual_key()) {
            (Some(_), Some(_), _) => {
                return Err(self.wrong("set `api_key_env` or `api_key_file`, not both"));
            }
            (None, None, Some(usual)) => {
                return Err(self.wrong(&format!(
                    "there is no key; export {usual} and set api_key_env = \"{usual}\", or set \
                     `api_key_file`"
                )));
            }
            _ => {}
        }
        self.url().map(drop)
    }

    /// Doubts that are no errors.
    pub fn warnings(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if let Ok(url) = self.url()
            && url.scheme() == "http"
            && !is_loopback(&url)
        {
            doubts.push(format!(
                "provider `{}`: {url} is not encrypted; whoever is on the way can read what is sent",
                self.name
            ));
        }
        doubts
    }

    /// `base_url` or the kind's own, ending in `/`.
    pub(super) fn url(&self) -> Result<Url, ConfigError> {
        let text = self.base_url.as_deref().or(self.kind.default_url());
        let text = text.ok_or_else(|| {
            self.wrong("set `base_url`, up to and with the version: \"http://127.0.0.1:8080/v1/\"")
        })?;
        let mut url = Url::parse(text)
            .map_err(|why| self.wrong(&format!("`base_url` \"{text}\" is no URL: {why}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(self.wrong(&format!(
                "`base_url` \"{text}\" does not begin with https:// or http:// and a host"
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong(
                "`base_url` holds a password; use `api_key_env` or `api_key_file` for the key",
            ));
        }
        if self.kind == Kind::Ollama && url.path() == "/" {
            url.set_path("/v1/");
        } else if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(url)
    }

    /// Reads the key from where it is.
    pub(super) fn key(&self) -> Result<SecretString, ConfigError> {
        let key = if let Some(variable) = &self.api_key_env {
            env::var(variable).map_err(|why| {
                self.wrong(&format!(
                    "the key cannot be taken from ${variable}: {why}; export it"
                ))
            })?
        } else if let Some(file) = &self.api_key_file {
            std::fs::read_to_string(file).map_err(|why| {
                self.wrong(&format!(
                    "the key cannot be read from {}: {why}",
                    file.display()
                ))
            })?
        } else {
            return Ok(NO_KEY.into());
        };
        let key = key.trim();
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
            return Err(self.wrong(
                "the key is empty or holds a blank; put nothing but the key into the variable or \
                 file",
            ));
        }
        Ok(key.into())
    }

    fn wrong(&self, why: &str) -> ConfigError {
        ConfigError::Provider {
            provider: self.name.clone(),
            why: why.to_owned(),
        }
    }
}

/// Checks each provider, and that their names differ.
pub fn check_all(providers: &[ProviderConfig]) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for provider in providers {
        provider.check()?;
        if !names.insert(&provider.name) {
            return Err(provider.wrong("the name is given twice; rename one"));
        }
    }
    Ok(())
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost"
            || host
                .parse()
                .is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    })
}

fn default_max_output_tokens() -> u32 {
    4096
}

fn default_timeout() -> Duration {
    Duration::from_mins(1)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;

    fn config(change: &serde_json::Value) -> ProviderConfig {
        let mut config = json!({"name": "main", "kind": "openai-compatible", "model": "small",
                                "base_url": "http://127.0.0.1:8080/v1"});
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn defaults_are_filled_in_and_unknown_keys_refused() {
        let config = config(&json!({"timeout": "90s"}));
        assert_eq!(config.tool_mode, ToolMode::Native);
        assert_eq!(config.max_output_tokens, 4096);
        assert_eq!(config.timeout, Duration::from_secs(90));
        config.check().unwrap();
        let unknown = json!({"name": "a", "kind": "openai", "model": "m", "api_key": "sk-1"});
        let why = serde_json::from_value::<ProviderConfig>(unknown).unwrap_err();
        assert!(why.to_string().contains("unknown field `api_key`"), "{why}");
    }

    #[test]
    fn urls_end_in_a_slash() {
        for (kind, given, wanted) in [
            ("openai", None, "https://api.openai.com/v1/"),
            ("ollama", None, "http://127.0.0.1:11434/v1/"),
            ("ollama", Some("http://gpu:11434"), "http://gpu:11434/v1/"),
            ("openai-compatible", Some("https://x/v1"), "https://x/v1/"),
            ("openai-compatible", Some("https://x/v1/"), "https://x/v1/"),
            (
                "openai-compatible",
                Some("https://x/v1?api-version=1"),
                "https://x/v1/?api-version=1",
            ),
        ] {
            let config = config(&json!({"kind": kind, "base_url": given}));
            assert_eq!(config.url().unwrap().as_str(), wanted);
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        for (change, wanted) in [
            (json!({"base_url": null}), "set `base_url`"),
            (
                json!({"base_url": "llm:8080"}),
                "does not begin with https://",
            ),
            (json!({"base_url": "127.0.0.1"}), "is no URL"),
            (json!({"base_url": "http://a:b@c/"}), "holds a password"),
            (
                json!({"kind": "anthropic"}),
                "export ANTHROPIC_API_KEY and set api_key_env",
            ),
            (
                json!({"api_key_env": "A", "api_key_file": "/a"}),
                "not both",
            ),
            (json!({"model": " "}), "`model` is empty"),
            (json!({"max_output_tokens": 0}), "4096 is a good value"),
            (json!({"timeout": "0s"}), "`timeout` is 0"),
            (json!({"usd_per_million_input": 1.0}), "or neither"),
            (
                json!({"usd_per_million_input": -1.0, "usd_per_million_output": 1.0}),
                "negative",
            ),
        ] {
            let why = config(&change).check().unwrap_err().to_string();
            assert!(
                why.starts_with("provider `main`: ") && why.contains(wanted),
                "{why}"
            );
        }
        let twice = [config(&json!({})), config(&json!({}))];
        assert!(check_all(&twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn a_key_comes_from_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "sk-very-secret\n").unwrap();
        let config = config(&json!({"api_key_file": file}));
        let key = config.key().unwrap();
        assert_eq!(key.expose_secret(), "sk-very-secret");
        assert!(!format!("{key:?} {config:?}").contains("very"));
        std::fs::write(&file, "two words").unwrap();
        assert!(
            config
                .key()
                .unwrap_err()
                .to_string()
                .contains("nothing but the key")
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        let unset = config(&json!({"api_key_env": "LENS_TEST_KEY_THAT_IS_NOT_SET"}));
        let why = unset.key().unwrap_err().to_string();
        assert!(why.contains("$LENS_TEST_KEY_THAT_IS_NOT_SET"), "{why}");
    }

    #[test]
    fn what_is_sent_in_the_clear_is_doubtful() {
        let doubts = |url: &str| config(&json!({"base_url": url})).warnings().len();
        assert_eq!(doubts("http://10.0.0.1/v1/"), 1);
        for fine in [
            "http://127.0.0.1/v1/",
            "http://localhost/",
            "http://[::1]:8080/",
            "https://x/",
        ] {
            assert_eq!(doubts(fine), 0, "{fine}");
        }
    }
}
