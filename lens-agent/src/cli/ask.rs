//! Asking the running agent; or reading what an agent has left.

use std::{path::PathBuf, time::Duration};

use reqwest::{Url, redirect};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Trouble, out::note};
use crate::{
    agent::records,
    config::{ConfigError, STATE_DIR, Settings, TOKEN_FILE},
    outputs::http::Token,
    store::{Kind, Store},
};

/// The variable that holds the token to show.
const TOKEN: &str = "LENS_TOKEN";

/// Where to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Ask {
    /// The agent's address
    #[arg(
        long,
        value_name = "URL",
        env = "LENS_URL",
        default_value = "http://127.0.0.1:9700",
        value_parser = address
    )]
    url: String,
    /// File that holds the token which an agent on another host wants; without it, `LENS_TOKEN`
    /// may hold the token itself
    #[arg(long, value_name = "FILE", env = "LENS_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Where to read when no agent answers
    #[arg(long, value_name = "DIR", env = "LENS_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

/// An agent on this host answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found: the agent, or what it has left.
pub(super) enum Source {
    Agent(Agent),
    Store(Store),
}

/// A running agent.
pub(super) struct Agent {
    url: String,
    client: reqwest::Client,
    token: Option<Token>,
    /// Where the agent, if it is this host's, has left a token for commands.
    left: PathBuf,
}

/// An address without the slash at its end.
fn address(text: &str) -> Result<String, String> {
    let known = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    match text.parse().ok().filter(known) {
        Some(_) => Ok(text.trim_end_matches('/').to_owned()),
        None => Err("an address looks like http://127.0.0.1:9700".to_owned()),
    }
}

impl Ask {
    /// The agent if it answers, else the state directory.
    pub(super) async fn find(&self) -> Result<Source, Trouble> {
        match self.agent().await {
            Ok(agent) => Ok(Source::Agent(agent)),
            Err(Trouble::NoAgent { url, why, dir }) => match Store::open_read_only(&self.dir()) {
                Ok(store) => {
                    note(format!("no agent answers at {url} ({why}); reading {dir}"));
                    Ok(Source::Store(store))
                }
                Err(_) => Err(Trouble::NoAgent { url, why, dir }),
            },
            Err(other) => Err(other),
        }
    }

    /// The list at `path`, of the agent if it answers, else as one has left it under `kind`.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: Kind,
    ) -> Result<Vec<T>, Trouble> {
        match self.find().await? {
            Source::Agent(agent) => agent.get(path, &[]).await,
            Source::Store(store) => Ok(records::whole(&store, kind)?),
        }
    }

    /// The agent; an error if none answers.
    pub(super) async fn agent(&self) -> Result<Agent, Trouble> {
        let token = self.token().map_err(ConfigError::from)?;
        let url = self.url.clone();
        let trouble = |why: String| Trouble::Answer {
            url: url.clone(),
            why,
        };
        // Followed elsewhere, the token would go there too.
        let mut builder = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(redirect::Policy::none())
            .no_proxy();
        // Loopback without TLS needs no certificates, and a host may have none.
        if url.starts_with("http://") {
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|why| trouble(why.to_string()))?;
        let answer = client.get(format!("{url}/healthz")).send().await;
        match answer {
            Ok(_) => Ok(Agent {
                url,
                client,
                token,
                left: self.dir().join(TOKEN_FILE),
            }),
            Err(why) if why.is_connect() || why.is_timeout() => Err(Trouble::NoAgent {
                url,
                why: if why.is_timeout() {
                    "it takes too long"
                } else {
                    "nobody listens"
                }
                .to_owned(),
                dir: self.dir().display().to_string(),
            }),
            Err(why) => Err(trouble(why.without_url().to_string())),
        }
    }

    fn token(&self) -> Result<Option<Token>, crate::outputs::http::TokenError> {
        if let Some(file) = &self.token_file {
            return Token::from_file(file).map(Some);
        }
        let is_set = std::env::var_os(TOKEN).is_some_and(|t| !t.is_empty());
        is_set.then(|| Token::from_env(TOKEN)).transpose()
    }

    /// Where an agent remembers.
    pub(super) fn dir(&self) -> PathBuf {
        let configured = || Settings::from_file(None).ok().and_then(|s| s.state_dir);
        self.state_dir
            .clone()
            .or_else(configured)
            .unwrap_or_else(|| PathBuf::from(STATE_DIR))
    }
}

/// What an agent answers when it cannot do what it was asked.
#[derive(Deserialize)]
struct Problem {
    error: String,
}

impl Agent {
    /// The JSON at `/api/v1/` and this path.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Trouble> {
        let url = self.page(path);
        let pairs: Vec<String> = query
            .iter()
            .map(|(k, v)| format!("{k}={}", encode(v)))
            .collect();
        let full = if pairs.is_empty() {
            url.clone()
        } else {
            format!("{url}?{}", pairs.join("&"))
        };
        self.answer(&url, self.client.get(full), self.token.as_ref())
            .await
    }

    /// Tells the agent to do something, and waits for its answer, at most `within`.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<T, Trouble> {
        let url = self.page(path);
        let request = self.client.post(&url).json(body).timeout(within);
        // Without either it is the agent that says what is missing.
        let left = Token::from_file(&self.left).ok();
        let token = self.token.as_ref().or(left.as_ref());
        self.answer(&url, request, token).await
    }

    fn page(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.url)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        url: &str,
        mut request: reqwest::RequestBuilder,
        token: Option<&Token>,
    ) -> Result<T, Trouble> {
        let trouble = |why: String| Trouble::Answer {
            url: url.to_owned(),
            why,
        };
        if let Some(token) = token {
            request = request.bearer_auth(token.reveal());
        }
        let answer = request
            .send()
            .await
            .map_err(|why| trouble(why.without_url().to_string()))?;
        let status = answer.status();
        let body = answer
            .bytes()
            .await
            .map_err(|why| trouble(why.without_url().to_string()))?;
        if !status.is_success() {
            let why = match serde_json::from_slice(&body) {
                Ok(Problem { error }) => error,
                Err(_) => "is this the address of an agent?".to_owned(),
            };
            // It understood, and says what is wrong with the request.
            if status == reqwest::StatusCode::BAD_REQUEST {
                return Err(Trouble::Usage(why));
            }
            return Err(trouble(format!("{status}: {why}")));
        }
        serde_json::from_slice(&body)
            .map_err(|why| trouble(format!("not what it should be: {why}")))
    }
}

/// Percent-encodes what is not plainly allowed in a path or a query.
pub(super) fn encode(text: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/' | b':');
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        assert_eq!(address("http://[::1]:9700/").unwrap(), "http://[::1]:9700");
        for wrong in ["", "localhost:9700", "ftp://host", "http://", "/run/lens"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_plain_is_encoded() {
        assert_eq!(
            encode("2026-01-31T12:00:00+02:00"),
            "2026-01-31T12:00:00%2B02:00"
        );
        assert_eq!(encode("a b?c&d=é"), "a%20b%3Fc%26d%3D%C3%A9");
    }
}
